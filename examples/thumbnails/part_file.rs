//! A file appears under its name when it is whole; until then its name says which process is writing it.

use std::{
    fs, io,
    path::Path,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::scan;

/// Write `bytes` to `target`, replacing what was there, and make the directories above it.
///
/// Whoever looks at `target` sees the old file or the new one, even if this process is killed half-way.
/// Then a file named `.<pid>-<number>.part` stays behind: see [`remove_leftovers`].
pub(crate) fn write_whole(target: &Path, bytes: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let dir = target.parent().unwrap_or(Path::new(""));
    let part = dir.join(format!(".{}-{}.part", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(dir)?;
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, target));
    if written.is_err() {
        let _ = fs::remove_file(&part); // the first error is the one to tell
    }
    written
}

/// The process that writes, or was writing, the file of this name; `None` if it is not an unfinished file.
pub(crate) fn writer(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let (pid, number) = name.strip_prefix('.')?.strip_suffix(".part")?.split_once('-')?;
    number.parse::<u64>().ok()?;
    pid.parse().ok()
}

/// Remove what the process `pid`, which must be dead, left unfinished below `dir`; answers how many files that were.
pub(crate) fn remove_leftovers(dir: &Path, pid: u32) -> Result<usize, String> {
    let mut removed = 0;
    for path in scan::files_below(dir)? {
        if writer(&path) == Some(pid) {
            let path = dir.join(path);
            fs::remove_file(&path).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        write_whole(&dir.path().join("a/b/c"), b"one").unwrap();
        write_whole(&dir.path().join("a/b/c"), b"two").unwrap();
        assert_eq!(scan::files_below(dir.path()).unwrap(), [Path::new("a/b/c")]);
        assert_eq!(fs::read(dir.path().join("a/b/c")).unwrap(), b"two");
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("taken/inside")).unwrap();
        write_whole(&dir.path().join("taken"), b"one").unwrap_err();
        assert!(scan::files_below(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn leftovers_go_by_their_writer() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in [".17-0.part", "sub/.17-3.part", ".18-0.part", "17-0.part", ".17.part"] {
            fs::write(dir.path().join(name), b"half").unwrap();
        }
        assert_eq!(remove_leftovers(dir.path(), 17).unwrap(), 2);
        let left = scan::files_below(dir.path()).unwrap();
        assert_eq!(left, [".17.part", ".18-0.part", "17-0.part"].map(Path::new));
        assert_eq!(writer(Path::new("sub/.18-0.part")), Some(18));
        assert_eq!(writer(Path::new("sub/18.jpg")), None);
    }
}
