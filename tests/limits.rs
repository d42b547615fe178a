//! What a worker process is given before it begins: limits, rank, environment; and how the end by a limit is told.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use hatchery::prelude::*;
use hatchery::{ChildSpec, Limit, ProcessError, Status};
use hatchery_tests::{becomes_true, ends};
use rustix::process::{Resource, getrlimit};

/// Large enough for a test harness with its threads.
const MEMORY: u64 = 512 << 20;

/// What a process finds set.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Found {
    memory: Option<u64>,
    cpu: (Option<u64>, Option<u64>),
    open_files: Option<u64>,
    file_size: Option<u64>,
    core_size: Option<u64>,
    nice: i32,
    cpus: Vec<usize>,
    oom_score_adj: String,
}

fn found() -> Found {
    let soft = |resource| getrlimit(resource).current;
    let cpu = getrlimit(Resource::Cpu);
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    Found {
        memory: soft(Resource::As),
        cpu: (cpu.current, cpu.maximum),
        open_files: soft(Resource::Nofile),
        file_size: soft(Resource::Fsize),
        core_size: soft(Resource::Core),
        nice: rustix::process::getpriority_process(None).unwrap(),
        cpus: (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu)).collect(),
        oom_score_adj: fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().to_owned(),
    }
}

#[hatchery::task]
fn looks() -> Found {
    found()
}

#[hatchery::task]
async fn looks_further() -> hatchery::Result<Found> {
    Ok(Process::spawn(looks, ()).await?.join().await?)
}

#[hatchery::task]
fn eats_memory() -> usize {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![1_u8; 1 << 20]);
        assert!(eaten.len() < 1 << 16, "there is no limit");
    }
}

#[hatchery::task]
async fn has_a_hungry_child() -> hatchery::Result<hatchery::Exit> {
    let child = Process::spawn(eats_memory, ()).await?;
    Ok((*child.wait().await).clone())
}

#[hatchery::task]
fn burns_cpu() -> u64 {
    (0..u64::MAX).map(std::hint::black_box).fold(0, u64::wrapping_add)
}

#[hatchery::task]
fn opens_files() -> (usize, String) {
    let mut files = Vec::new();
    loop {
        match fs::File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => return (files.len(), error.to_string()),
        }
        assert!(files.len() < 1 << 16, "there is no limit");
    }
}

#[hatchery::task]
fn writes(file: String) {
    let mut file = fs::File::create(file).unwrap();
    loop {
        file.write_all(&[1; 1 << 10]).unwrap();
    }
}

#[hatchery::task]
fn aborts_under_a_pretext() {
    eprintln!("memory allocation of 7 bytes failed");
    std::process::abort()
}

#[hatchery::task]
fn environment() -> BTreeMap<String, String> {
    std::env::vars().collect()
}

#[hatchery::task]
async fn environment_further() -> hatchery::Result<BTreeMap<String, String>> {
    Ok(Process::spawn(environment, ()).await?.join().await?)
}

struct Limited {
    found: Found,
}

#[hatchery::actor]
impl Limited {
    fn start() -> Self {
        Limited { found: found() }
    }
    fn found(&self) -> (Option<u64>, i32, Vec<usize>) {
        (self.found.open_files, self.found.nice, self.found.cpus.clone())
    }
    fn environment(&self) -> (BTreeMap<String, String>, String) {
        (std::env::vars().collect(), std::env::current_dir().unwrap().display().to_string())
    }
    fn eats_memory(&mut self) -> usize {
        eats_memory()
    }
}

async fn tree() -> Tree {
    Supervisor::new(Strategy::OneForOne)
        .intensity(100, Duration::from_secs(60))
        .backoff(Duration::ZERO, Duration::ZERO)
        .start()
        .await
        .unwrap()
}

#[hatchery::test]
async fn a_process_begins_with_the_limits_and_the_rank_it_was_given() {
    let here = found();
    let cpu = here.cpus[0];
    let process = Process::builder(looks, ())
        .memory_limit(MEMORY)
        .cpu_limit(Duration::from_millis(20_500))
        .open_files_limit(100)
        .file_size_limit(1 << 20)
        .core_size_limit(0)
        .nice((here.nice + 1).min(19))
        .cpus([cpu])
        .oom_score_adj(1000);
    let found = ends("join", process.spawn().await.unwrap().join()).await.unwrap();
    let expected = Found {
        memory: Some(MEMORY),
        cpu: (Some(21), Some(22)),
        open_files: Some(100),
        file_size: Some(1 << 20),
        core_size: Some(0),
        nice: (here.nice + 1).min(19),
        cpus: vec![cpu],
        oom_score_adj: "1000".to_owned(),
    };
    assert_eq!(found, expected);
    // Here nothing has changed, and whatever starts next does without.
    let plain = Process::spawn(looks, ()).await.unwrap();
    assert_eq!(ends("join", plain.join()).await.unwrap(), here);
}

#[hatchery::test]
async fn workers_of_a_limited_worker_inherit_its_limits() {
    let process = Process::builder(looks_further, ()).open_files_limit(100).memory_limit(MEMORY);
    let found = ends("join", process.spawn().await.unwrap().join()).await.unwrap().unwrap();
    assert_eq!((found.open_files, found.memory), (Some(100), Some(MEMORY)));
}

#[hatchery::test]
async fn every_incarnation_gets_the_same_settings() {
    let nice = (found().nice + 1).min(19);
    let cpu = found().cpus[0];
    let tree = tree().await;
    let spec = worker::<Limited>("limited", ())
        .memory_limit(MEMORY)
        .open_files_limit(100)
        .nice(nice)
        .cpus([cpu])
        .env("EXTRA", "yes")
        .env_only(["PATH"])
        .current_dir("/");
    let actor = tree.start_child(spec).await.unwrap();
    for incarnation in 1..=3 {
        assert_eq!(actor.incarnation(), Some(incarnation));
        assert_eq!(ends("ask", actor.found()).await.unwrap(), (Some(100), nice, vec![cpu]));
        let (mut variables, directory) = ends("ask", actor.environment()).await.unwrap();
        assert_eq!((variables.remove("EXTRA").as_deref(), directory.as_str()), (Some("yes"), "/"));
        assert_eq!(variables.remove("PATH"), std::env::var("PATH").ok());
        assert!(variables.remove("HATCHERY_PARENT").is_some());
        assert_eq!(variables, BTreeMap::new());
        let error = ends("ask", actor.eats_memory()).await.unwrap_err();
        assert!(error.is_crash());
        assert_eq!(error.exit().unwrap().limit(), Some(Limit::Memory(MEMORY)), "{error}");
        becomes_true("the next one sits", || actor.incarnation() == Some(incarnation + 1)).await;
    }
}

#[hatchery::test]
async fn a_lack_of_memory_is_told_apart_from_an_abort() {
    let process = Process::builder(eats_memory, ()).memory_limit(MEMORY).spawn().await.unwrap();
    let exit = ends("wait", process.wait()).await;
    assert_eq!((exit.status(), exit.limit()), (Status::Signal(6), Some(Limit::Memory(MEMORY))));
    let shown = "out of memory under its limit of 512 MiB: killed by SIGABRT (signal 6)";
    assert_eq!(exit.to_string(), shown);
    let error = process.join().await.unwrap_err();
    assert!(error.is_crash() && error.to_string().contains(shown), "{error}");

    // Without a limit there is none to have hit, whatever it says.
    let process = Process::spawn(aborts_under_a_pretext, ()).await.unwrap();
    let exit = ends("wait", process.wait()).await;
    assert_eq!((exit.status(), exit.limit()), (Status::Signal(6), None));
}

#[hatchery::test]
async fn a_lack_of_memory_under_an_inherited_limit_is_told_too() {
    let process = Process::builder(has_a_hungry_child, ()).memory_limit(MEMORY).spawn().await.unwrap();
    let exit = ends("join", process.join()).await.unwrap().unwrap();
    assert_eq!(exit.limit(), Some(Limit::Memory(MEMORY)), "{exit}");
}

#[hatchery::test]
async fn the_end_of_cpu_time_is_told_as_such() {
    let process = Process::builder(burns_cpu, ()).cpu_limit(Duration::from_secs(1)).spawn().await.unwrap();
    let exit = ends("wait", process.wait()).await;
    assert_eq!(exit.limit(), Some(Limit::Cpu(Duration::from_secs(1))), "{exit}");
    assert_eq!(exit.to_string(), "hit its CPU limit of 1 s: killed by SIGXCPU (signal 24)");
}

#[hatchery::test]
async fn a_file_that_gets_too_large_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large");
    let process =
        Process::builder(writes, file.display().to_string()).file_size_limit(10_000).core_size_limit(0);
    let exit = ends("wait", process.spawn().await.unwrap().wait()).await;
    assert_eq!(exit.limit(), Some(Limit::FileSize(10_000)), "{exit}");
    assert_eq!(fs::metadata(file).unwrap().len(), 10_000);
}

#[hatchery::test]
async fn a_worker_out_of_descriptors_gets_an_error_and_lives() {
    let process = Process::builder(opens_files, ()).open_files_limit(50).spawn().await.unwrap();
    let (opened, error) = ends("join", process.join()).await.unwrap();
    assert!(opened < 50 && error.contains("Too many open files"), "{opened}: {error}");
}

/// What could not be set is an error of the start, which names it.
#[hatchery::test]
async fn what_cannot_be_set_is_an_error_of_the_start() {
    let tree = tree().await;
    type Set = fn(hatchery::ProcessBuilder<Found>) -> hatchery::ProcessBuilder<Found>;
    let processes: [(Set, &str); 3] = [
        (|process| process.cpus([1023]), "cannot set its CPUs to {1023}: "),
        (|process| process.cpus([found().cpus[0], 1023]), "it may not run on CPU 1023"),
        // Over what this kernel allows anybody.
        (
            |process| process.open_files_limit(1 << 40),
            "cannot set its limit of open files to 1099511627776: ",
        ),
    ];
    for (set, part) in processes {
        let error: ProcessError =
            ends("spawn", set(Process::builder(looks, ())).spawn()).await.map(drop).unwrap_err();
        assert!(!error.is_crash() && !error.is_timeout(), "{error}");
        assert!(error.to_string().contains("the start failed: cannot set"), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = ends("start", tree.start_child(worker::<Limited>("small", ()).memory_limit(1 << 20))).await;
    let error = error.map(drop).unwrap_err().to_string();
    assert!(error.contains("cannot set its memory limit to 1048576: it has taken "), "{error}");
    // Too few to begin with: it could set them, and then could not go on.
    let error = ends("start", tree.start_child(worker::<Limited>("few", ()).open_files_limit(4))).await;
    let error = error.map(drop).unwrap_err().to_string();
    assert!(error.contains("Too many open files"), "{error}");
    assert_eq!(hatchery::active_children(), []);
}

#[hatchery::test]
async fn what_no_system_could_do_is_refused_before_anything_is_started() {
    let tree = tree().await;
    let limited = || worker::<Limited>("limited", ());
    let specs: [(ChildSpec<_>, &str); 6] = [
        (limited().memory_limit(0), "a limit of 0 for memory"),
        (limited().cpu_limit(Duration::ZERO), "a limit of 0 for CPU time"),
        (limited().open_files_limit(0), "a limit of 0 for open files"),
        (limited().nice(20), "a nice value of 20"),
        (limited().cpus([]), "an empty list of CPUs"),
        (limited().env("HATCHERY_PARENT", "1"), "belongs to the library"),
    ];
    for (spec, part) in specs {
        let error = ends("start", tree.start_child(spec)).await.map(drop).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = ends("spawn", Process::builder(looks, ()).oom_score_adj(1001).spawn()).await;
    assert!(error.map(drop).unwrap_err().to_string().contains("an oom_score_adj of 1001"));
    // An actor in this process has no settings of its own.
    let near = || local::<Limited>("near", ());
    for spec in [near().memory_limit(MEMORY), near().nice(1), near().env("A", "b"), near().current_dir("/")] {
        let error = ends("start", tree.start_child(spec)).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("use `worker` in place of `local`"), "{error}");
    }
}

#[hatchery::test]
async fn an_environment_can_be_cut_down_to_a_list() {
    let path = std::env::var("PATH").ok();
    let process = Process::builder(environment_further, ())
        .env_only(["PATH", "NO_SUCH_VARIABLE", "REMOVED"])
        .env("ADDED", "1")
        .env("REMOVED", "2")
        .env_remove("REMOVED");
    let mut variables = ends("join", process.spawn().await.unwrap().join()).await.unwrap().unwrap();
    // Seen by a worker of that worker, which inherits all of what there is.
    assert_eq!(variables.remove("PATH"), path);
    assert_eq!(variables.remove("ADDED").as_deref(), Some("1"));
    assert!(variables.remove("HATCHERY_PARENT").is_some());
    assert_eq!(variables, BTreeMap::new());
}
