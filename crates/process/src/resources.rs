//! Sets what its parent asked for, in the worker itself, at its door: what needs code between fork and exec elsewhere
//! costs a fork of the whole parent there.

use std::fmt::Display;
use std::fs;

use hatchery_actor::settings::Resources;
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Address space that a worker still needs when it sets its limit: the stack of its warden, its runtime, its arguments.
const TO_BEGIN: u64 = 8 << 20;

/// Raises the limit of open files as far as this process may: the usual one is there for programs that use `select`.
pub(crate) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // What cannot be had is not needed to begin.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// Sets all of it, or says what could not be set and why. Runs before there is a second thread, since some of these
/// belong to a thread and those that it starts.
pub(crate) fn set(resources: &Resources) -> Result<(), String> {
    let Resources { memory, cpu, open_files, file_size, core_size, nice, cpus, oom_score_adj } = resources;
    if let Some(adj) = oom_score_adj {
        let written = fs::write("/proc/self/oom_score_adj", adj.to_string());
        written.map_err(|error| cannot("its oom_score_adj", adj, error))?;
    }
    if let Some(nice) = nice {
        setpriority_process(None, *nice).map_err(|error| cannot("its nice value", nice, error))?;
    }
    if let Some(cpus) = cpus {
        let mut wanted = CpuSet::new();
        for cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
            wanted.set(*cpu);
        }
        let shown = format!("{cpus:?}");
        sched_setaffinity(None, &wanted).map_err(|error| cannot("its CPUs", &shown, error))?;
        // The kernel leaves out what is not there and takes the rest.
        let got = sched_getaffinity(None).map_err(|error| cannot("its CPUs", &shown, error))?;
        if let Some(missing) = cpus.iter().find(|cpu| **cpu >= CpuSet::MAX_CPU || !got.is_set(**cpu)) {
            return Err(cannot("its CPUs", &shown, format!("it may not run on CPU {missing}")));
        }
    }
    limit("its core size limit", Resource::Core, *core_size, 0)?;
    limit("its file size limit", Resource::Fsize, *file_size, 0)?;
    limit("its limit of open files", Resource::Nofile, *open_files, 0)?;
    // SIGXCPU comes at the soft limit, SIGKILL at the hard one: the first says what happened.
    limit("its CPU limit", Resource::Cpu, *cpu, 1)?;
    if let Some(memory) = *memory {
        let taken = taken()?;
        let least = taken.saturating_add(TO_BEGIN);
        if memory < least {
            let why = format!(
                "it has taken {taken} bytes of addresses before it begins, so it needs {least} at least"
            );
            return Err(cannot("its memory limit", memory, why));
        }
    }
    // Last: what is done under it may fail for it.
    limit("its memory limit", Resource::As, *memory, 0)
}

/// Sets a soft limit, and a hard one that is so much above it where that may be.
fn limit(what: &str, resource: Resource, limit: Option<u64>, above: u64) -> Result<(), String> {
    let Some(limit) = limit else { return Ok(()) };
    let now = getrlimit(resource).maximum;
    let mut hard = limit.saturating_add(above);
    if let Some(now) = now {
        // Lowering takes no privilege: only what has to be above the present one does.
        hard = hard.min(now.max(limit));
    }
    let set = setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(hard) });
    set.map_err(|error| match now {
        Some(now) if limit > now => cannot(what, limit, format!("{error}; the hard limit is {now}")),
        _ => cannot(what, limit, error),
    })
}

/// Bytes of address space that this process has.
fn taken() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kibibytes.ok_or("/proc/self/status: no VmSize")?.saturating_mul(1024))
}

fn cannot(what: &str, value: impl Display, why: impl Display) -> String {
    format!("cannot set {what} to {value}: {why}")
}
