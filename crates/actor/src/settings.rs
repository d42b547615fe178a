//! What a worker process is given before it begins: environment, directory, limits, and its rank among others.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::output::Output;
use crate::spin::Spin;

/// The settings of a worker process. Every incarnation gets the same.
#[doc(hidden)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Variables to set, and to keep away where the value is `None`.
    pub env: BTreeMap<OsString, Option<OsString>>,
    /// Which of the parent's variables it inherits; all if `None`.
    pub env_only: Option<BTreeSet<OsString>>,
    /// Where it works, if not where its parent does.
    pub current_dir: Option<PathBuf>,
    /// Where its standard output goes.
    pub stdout: Output,
    /// Where its standard error goes, besides the exit.
    pub stderr: Output,
    /// Whether the ends of its channel spin, if not as the program says.
    pub spin: Option<Spin>,
    /// What it sets for itself at its door.
    pub resources: Resources,
}

/// What a worker sets for itself at its door; it travels in the invitation.
#[doc(hidden)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes of address space.
    pub memory: Option<u64>,
    /// Seconds of CPU time.
    pub cpu: Option<u64>,
    /// Descriptors at once.
    pub open_files: Option<u64>,
    /// Bytes of a file that it writes.
    pub file_size: Option<u64>,
    /// Bytes of a core dump.
    pub core_size: Option<u64>,
    /// -20 to 19.
    pub nice: Option<i32>,
    /// The numbers of the CPUs it may run on.
    pub cpus: Option<BTreeSet<usize>>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

/// The kernel's interface for CPU sets that are not measured first ends here.
const CPUS: usize = 1024;

impl Settings {
    /// Finds what no system could do, before anything is spawned. `reserved` is the variable of the library's own.
    ///
    /// # Errors
    /// Which setting, and what it may be.
    pub fn check(&self, reserved: &str) -> Result<(), Fault> {
        let mut names = self.env.keys().chain(self.env_only.iter().flatten());
        let wrong_name =
            |name: &&OsString| name.is_empty() || name.as_bytes().iter().any(|byte| matches!(byte, b'=' | 0));
        if let Some(name) = names.find(wrong_name) {
            return refused(format!("{name:?} cannot be the name of a variable"));
        }
        if self.env.contains_key(OsStr::new(reserved)) {
            return refused(format!("the variable {reserved} belongs to the library"));
        }
        let zero_inside =
            |value: &Option<OsString>| value.as_ref().is_some_and(|v| v.as_bytes().contains(&0));
        if let Some((name, _)) = self.env.iter().find(|(_, value)| zero_inside(value)) {
            return refused(format!("the value of the variable {name:?} has a zero byte in it"));
        }
        self.resources.check()
    }
}

impl Resources {
    fn check(&self) -> Result<(), Fault> {
        for (what, limit) in
            [("memory", self.memory), ("CPU time", self.cpu), ("open files", self.open_files)]
        {
            if limit == Some(0) {
                return refused(format!("a limit of 0 for {what}: a worker could not even begin"));
            }
        }
        if let Some(nice) = self.nice.filter(|nice| !(-20..=19).contains(nice)) {
            return refused(format!("a nice value of {nice}: it has to be -20 to 19"));
        }
        if let Some(adj) = self.oom_score_adj.filter(|adj| !(-1000..=1000).contains(adj)) {
            return refused(format!("an oom_score_adj of {adj}: it has to be -1000 to 1000"));
        }
        if let Some(cpus) = &self.cpus {
            let Some(last) = cpus.last() else {
                return refused("an empty list of CPUs: a worker needs one to run on".to_owned());
            };
            if *last >= CPUS {
                return refused(format!("CPU {last}: they are counted from 0 to {}", CPUS - 1));
            }
        }
        Ok(())
    }
}

fn refused(why: String) -> Result<(), Fault> {
    Err(Fault::Refused(why))
}

/// CPU time in whole seconds, as the kernel counts it.
#[doc(hidden)]
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// The methods that set these, the same for everything that starts a worker process and keeps [`Settings`] in a field
/// `settings`.
#[doc(hidden)]
#[macro_export]
macro_rules! settings {
    () => {
        /// Sets a variable of its environment.
        pub fn env(
            mut self,
            name: impl Into<std::ffi::OsString>,
            value: impl Into<std::ffi::OsString>,
        ) -> Self {
            self.settings.env.insert(name.into(), Some(value.into()));
            self
        }

        /// Keeps it from inheriting a variable.
        pub fn env_remove(mut self, name: impl Into<std::ffi::OsString>) -> Self {
            self.settings.env.insert(name.into(), None);
            self
        }

        /// Of this process's environment it inherits these variables only, instead of all or of those that
        /// `program().worker_env_only(..)` names; what [`env`](Self::env) sets comes on top.
        ///
        /// Nothing is added for comfort: without `PATH` a worker finds no programs, without `LD_LIBRARY_PATH` no
        /// libraries that need it, without `HOME`, `TZ` or `RUST_BACKTRACE` it does as if they were not set.
        pub fn env_only<N: Into<std::ffi::OsString>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
            self.settings.env_only = Some(names.into_iter().map(Into::into).collect());
            self
        }

        /// The directory it works in; else this process's.
        pub fn current_dir(mut self, dir: impl Into<std::path::PathBuf>) -> Self {
            self.settings.current_dir = Some(dir.into());
            self
        }

        /// Where its standard output goes; this process's own unless told otherwise.
        #[doc(alias = "capture")]
        pub fn stdout(mut self, output: $crate::output::Output) -> Self {
            self.settings.stdout = output;
            self
        }

        /// Where its standard error goes; printed by this process, line by line, unless told otherwise. Its last lines
        /// are in the exit whatever this says.
        pub fn stderr(mut self, output: $crate::output::Output) -> Self {
            self.settings.stderr = output;
            self
        }

        /// How many bytes of address space it may have (`RLIMIT_AS`). That is more than the memory it uses: each
        /// thread reserves megabytes that it never touches.
        ///
        /// An allocation over the limit fails, and Rust aborts then: the exit says
        /// [`Limit::Memory`](hatchery_actor::exit::Limit::Memory). Foreign code that goes on with a null pointer
        /// crashes in its own way, which the exit cannot tell from any other crash. As all limits it counts for each
        /// process by itself, and processes that the worker starts inherit it.
        #[doc(alias = "RLIMIT_AS")]
        #[doc(alias = "rlimit")]
        pub fn memory_limit(mut self, bytes: u64) -> Self {
            self.settings.resources.memory = Some(bytes);
            self
        }

        /// How much CPU time it may use altogether (`RLIMIT_CPU`), in whole seconds, rounded up.
        ///
        /// SIGXCPU ends it then, and the exit says [`Limit::Cpu`](hatchery_actor::exit::Limit::Cpu); a worker that
        /// ignores that is killed by SIGKILL one second of CPU time later, which looks like any other SIGKILL.
        #[doc(alias = "RLIMIT_CPU")]
        pub fn cpu_limit(mut self, time: std::time::Duration) -> Self {
            self.settings.resources.cpu = Some($crate::settings::whole_seconds(time));
            self
        }

        /// How many descriptors it may have open at once (`RLIMIT_NOFILE`); a worker needs some 20 for itself.
        #[doc(alias = "RLIMIT_NOFILE")]
        pub fn open_files_limit(mut self, descriptors: u64) -> Self {
            self.settings.resources.open_files = Some(descriptors);
            self
        }

        /// How many bytes a file that it writes may get (`RLIMIT_FSIZE`), its standard output included where that is
        /// a file. SIGXFSZ ends it when it writes more, and the exit says
        /// [`Limit::FileSize`](hatchery_actor::exit::Limit::FileSize).
        #[doc(alias = "RLIMIT_FSIZE")]
        pub fn file_size_limit(mut self, bytes: u64) -> Self {
            self.settings.resources.file_size = Some(bytes);
            self
        }

        /// How many bytes of a core dump are written when it crashes (`RLIMIT_CORE`); 0 for none.
        #[doc(alias = "RLIMIT_CORE")]
        pub fn core_size_limit(mut self, bytes: u64) -> Self {
            self.settings.resources.core_size = Some(bytes);
            self
        }

        /// How much it leaves the CPU to others: from -20 over 0 to 19, which is the most. A value, not a step; less
        /// than this process's own takes a privilege.
        pub fn nice(mut self, nice: i32) -> Self {
            self.settings.resources.nice = Some(nice);
            self
        }

        /// The CPUs that it may run on, counted from 0. One that is not there, or not for this process, is an error of
        /// the start.
        #[doc(alias = "affinity")]
        #[doc(alias = "taskset")]
        pub fn cpus(mut self, cpus: impl IntoIterator<Item = usize>) -> Self {
            self.settings.resources.cpus = Some(cpus.into_iter().collect());
            self
        }

        /// How gladly the kernel kills it when the machine is out of memory: -1000 (never) to 1000 (first). Less than
        /// this process's own takes a privilege. What the kernel kills so is a plain SIGKILL to the exit.
        pub fn oom_score_adj(mut self, adj: i32) -> Self {
            self.settings.resources.oom_score_adj = Some(adj);
            self
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_system_could_do_is_refused_by_name() {
        assert!(Settings::default().check("OURS").is_ok());
        type Change = fn(&mut Settings);
        let cases: [(Change, &str); 13] = [
            (|s| s.resources.memory = Some(0), "memory"),
            (|s| s.resources.cpu = Some(0), "CPU time"),
            (|s| s.resources.open_files = Some(0), "open files"),
            (|s| s.resources.nice = Some(20), "nice value of 20"),
            (|s| s.resources.nice = Some(-21), "-20 to 19"),
            (|s| s.resources.oom_score_adj = Some(1001), "oom_score_adj of 1001"),
            (|s| s.resources.cpus = Some([].into()), "empty list of CPUs"),
            (|s| s.resources.cpus = Some([0, 1024].into()), "CPU 1024"),
            (|s| drop(s.env.insert("".into(), None)), "\"\""),
            (|s| drop(s.env.insert("A=B".into(), None)), "A=B"),
            (|s| drop(s.env.insert("A".into(), Some("x\0".into()))), "zero byte"),
            (|s| s.env_only = Some(["A\0".into()].into()), "name of a variable"),
            (|s| drop(s.env.insert("OURS".into(), None)), "belongs to the library"),
        ];
        for (change, part) in cases {
            let mut settings = Settings::default();
            change(&mut settings);
            let wrong = settings.check("OURS").unwrap_err().to_string();
            assert!(wrong.contains(part), "{part}: {wrong}");
        }
    }

    #[test]
    fn cpu_time_is_rounded_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(2)), 2);
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }
}
