//! How much memory a process has to itself.

use std::io;

use crate::table::Bytes;

/// What `/proc/<pid>/smaps_rollup` says.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Its own pages, and of those it shares with others its part (PSS).
    pub proportional: Bytes,
    /// Pages that nobody else has and that it has written.
    pub private: Bytes,
}

impl Footprint {
    /// Of a living process.
    ///
    /// # Errors
    /// There is no such process, it is another user's, or the kernel keeps no such figures.
    pub fn of(pid: u32) -> io::Result<Footprint> {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(Bytes(kibibytes * 1024))
        };
        let fields = field("Pss:").zip(field("Private_Dirty:"));
        let (proportional, private) = fields.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Footprint { proportional, private })
    }
}
