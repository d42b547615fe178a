//! Packages as users write them, below `fixture/`: what `cargo test` and nextest make of tests that start workers,
//! and what the compiler says of every mistake that the macros can be told of.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use hatchery_tests::{eventually, runs};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group};

/// Time for cargo to build the library once more, on a slow machine.
const BUILD: Duration = Duration::from_secs(1200);

/// What a command came to.
struct Outcome {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixture")
}

/// Runs cargo in the fixture, with the versions of this workspace and below its target directory.
fn cargo(arguments: &[&str]) -> Outcome {
    cargo_heard(arguments, &[], |_| {})
}

fn cargo_heard(
    arguments: &[&str],
    variables: &[(&str, &str)],
    hears: impl FnMut(&str) + Send + 'static,
) -> Outcome {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixture");
    std::fs::create_dir_all(&target).unwrap();
    // Tests of one run may be processes of their own, which would take turns at the lock file otherwise.
    let turn = std::fs::File::create(target.join("turn")).unwrap();
    flock(&turn, FlockOperation::LockExclusive).unwrap();
    std::fs::copy(fixture().join("../../Cargo.lock"), fixture().join("Cargo.lock")).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command
        .args(arguments)
        .current_dir(fixture())
        .envs([("CARGO_TERM_COLOR", "never"), ("CARGO_NET_OFFLINE", "true"), ("RUST_BACKTRACE", "0")])
        .env("CARGO_TARGET_DIR", target)
        .envs(variables.iter().copied());
    for inherited in ["RUST_TEST_THREADS", "RUST_TEST_NOCAPTURE", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(inherited);
    }
    run(&mut command, hears)
}

/// Runs a command to its end; `hears` is told each line of its stderr there and then.
fn run(command: &mut Command, mut hears: impl FnMut(&str) + Send + 'static) -> Outcome {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Pid::from_child(&child);
    let (_patience, over) = channel::<()>();
    std::thread::spawn(move || {
        // One that hangs is ended, so that its test can fail. Not reaped before, the number is its own.
        if over.recv_timeout(BUILD) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    });
    let pipe = BufReader::new(child.stderr.take().unwrap());
    let stderr = std::thread::spawn(move || {
        let mut text = String::new();
        for line in pipe.lines() {
            let line = line?;
            hears(&line);
            text.push_str(&line);
            text.push('\n');
        }
        std::io::Result::Ok(text)
    });
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let stderr = stderr.join().unwrap().unwrap();
    Outcome { status: child.wait().unwrap(), stdout, stderr }
}

/// What libtest printed about every test: `name ... result`.
fn results(stdout: &str) -> Vec<&str> {
    let mut results: Vec<_> = stdout.lines().filter_map(|line| line.strip_prefix("test ")).collect();
    results.retain(|line| line.contains(" ... "));
    results.sort_unstable();
    results
}

/// What libtest shows of a test that failed, but for what the panic hook adds.
fn section<'a>(stdout: &'a str, test: &str) -> Vec<&'a str> {
    let begin = format!("---- {test} stdout ----");
    let lines = stdout.lines().skip_while(|line| *line != begin).skip(1);
    lines
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .filter(|line| !line.is_empty() && !line.starts_with("thread '") && !line.starts_with("note: "))
        .collect()
}

/// Test and workers, stdout and stderr of a worker: what these print takes ways of its own, in no order among them.
fn sorted<T: Ord>(mut lines: Vec<T>) -> Vec<T> {
    lines.sort_unstable();
    lines
}

/// What three workers of that name print.
fn spoken(tag: &str) -> Vec<String> {
    let one = [format!("out of {tag}"), format!("err of {tag}"), format!("no end of line of {tag}")];
    [one.clone(), one.clone(), one].concat()
}

/// The pid in `worker 123`, and the rest of the lines.
fn without_pid(lines: Vec<&str>) -> (u32, Vec<&str>) {
    let pid = lines.iter().find_map(|line| line.strip_prefix("worker ")?.parse().ok()).expect("a pid");
    (pid, lines.into_iter().filter(|line| !line.starts_with("worker ")).collect())
}

/// Whether these lines name the worker that was left behind, which is gone by now.
fn assert_left_behind(lines: Vec<&str>, before: &[&str]) {
    let (pid, mut lines) = without_pid(lines);
    let last = lines.pop().expect("a reason");
    let expected = format!("left behind by the test, and killed: /tree/deaf (pid {pid}). ");
    assert!(last.starts_with(&expected), "{last}");
    assert_eq!(lines.pop(), Some("deaf to the end"));
    assert_eq!(lines, before);
    eventually("the worker is gone", || !runs(pid));
}

const PASSING: [&str; 15] = [
    "tests::passes_although_its_program_fails_in_workers",
    "tests::passes_beside_a_helper_in_a_session_of_its_own",
    "tests::passes_by_a_panic",
    "tests::passes_by_an_expected_panic",
    "tests::passes_in_a_binary",
    "tests::passes_on_threads",
    "tests::passes_once_its_process_has_ended",
    "tests::passes_quietly",
    "tests::passes_with_a_daemon_and_a_forgotten_tree",
    "tests::passes_with_a_result",
    "tests::passes_with_a_worker_of_a_worker",
    "tests::prepared_once",
    "tests::prepared_once_for_two",
    "tests::r#type::deep::r#move",
    "passes_without_the_door",
];

const PASSING_TESTS: [&str; 4] = [
    "below::passes_in_a_module",
    "below::passes_with_the_same_name",
    "passes_at_the_root",
    "passes_with_the_same_name",
];

const FAILING: [&str; 7] = [
    "tests::fails_for_want_of_a_panic",
    "tests::fails_leaving_a_local_actor_behind",
    "tests::fails_leaving_a_worker_behind",
    "tests::fails_leaving_a_worker_behind_a_panic",
    "tests::fails_on_threads",
    "tests::fails_with_an_error",
    "tests::fails_with_its_workers_output",
];

#[test]
fn tests_with_workers_behave_under_cargo_test() {
    let Outcome { status, stdout, stderr } = cargo(&["test", "--package", "dashed-suite", "--no-fail-fast"]);
    assert_eq!(status.code(), Some(101), "{stdout}{stderr}");

    let mut expected = vec!["tests::ignored ... ignored, not today".to_owned()];
    for test in PASSING.iter().chain(&PASSING_TESTS) {
        let panics = if test.contains("_panic") { " - should panic" } else { "" };
        expected.push(format!("{test}{panics} ... ok"));
    }
    for test in FAILING {
        let panics = if test.contains("_a_panic") { " - should panic" } else { "" };
        expected.push(format!("{test}{panics} ... FAILED"));
    }
    // Three that are merged, one that stands alone, and one that is a test itself.
    expected.extend([6, 22, 37, 53, 65].map(|line| format!("suite/src/lib.rs - (line {line}) ... ok")));
    expected.sort_unstable();
    assert_eq!(results(&stdout), expected, "{stdout}{stderr}");

    // Nothing of the harness inside of the workers: three binaries, two kinds of doc tests.
    assert_eq!(stdout.matches("\nrunning ").count(), 5, "{stdout}");
    // What workers print is shown with the test that failed, and nowhere else.
    assert!(!stderr.contains(" of "), "{stderr}");
    let shown: Vec<_> = FAILING.iter().flat_map(|test| section(&stdout, test)).collect();
    let from_workers = |line: &&str| line.contains("out of ") || line.contains("err of ");
    assert_eq!(
        stdout.lines().filter(from_workers).count(),
        shown.into_iter().filter(|line| from_workers(line)).count(),
        "{stdout}"
    );
    for test in ["fails_for_want_of_a_panic", "fails_on_threads", "fails_with_its_workers_output"] {
        let mut expected = spoken(test);
        if test == "fails_with_its_workers_output" {
            expected.insert(0, "the test begins".to_owned());
        }
        if test != "fails_for_want_of_a_panic" {
            expected.push("this is why".to_owned());
        }
        assert_eq!(sorted(section(&stdout, &format!("tests::{test}"))), sorted(expected), "{stdout}");
    }
    let mut with_error = spoken("fails_with_an_error");
    with_error.push("Error: an error as a reason".to_owned());
    assert_eq!(sorted(section(&stdout, "tests::fails_with_an_error")), sorted(with_error));

    assert_left_behind(section(&stdout, "tests::fails_leaving_a_worker_behind"), &[]);
    assert_left_behind(section(&stdout, "tests::fails_leaving_a_worker_behind_a_panic"), &["wanted"]);
    let local = section(&stdout, "tests::fails_leaving_a_local_actor_behind");
    assert!(
        matches!(local[..], ["deaf to the end", why] if why.starts_with("left behind by the test: ")),
        "{local:?}"
    );
}

#[test]
fn the_output_of_workers_is_printed_where_nothing_is_captured() {
    let select = ["test", "--package", "dashed-suite", "--lib", "--", "--nocapture", "--test-threads=1"];
    let tests = ["--exact", "tests::passes_quietly", "tests::ignored", "--include-ignored"];
    let Outcome { status, stdout, stderr } = cargo(&[&select[..], &tests].concat());
    assert!(status.success(), "{stdout}{stderr}");
    let mut said: Vec<_> = stdout.lines().filter(|line| !line.is_empty()).collect();
    // libtest begins the line that the first worker goes on with.
    assert_eq!(said.remove(0), "running 2 tests");
    assert!(said.pop().is_some_and(|line| line.starts_with("test result: ok. 2 passed")), "{stdout}");
    let mut expected = Vec::new();
    for tag in ["ignored", "passes_quietly"] {
        for (index, line) in spoken(tag).into_iter().filter(|line| !line.starts_with("err")).enumerate() {
            expected.push(if index == 0 { format!("test tests::{tag} ... {line}") } else { line });
        }
        expected.push("ok".to_owned());
    }
    assert_eq!(said, expected, "{stdout}");
    for tag in ["ignored", "passes_quietly"] {
        assert_eq!(stderr.matches(&format!("err of {tag}\n")).count(), 3, "{stderr}");
    }
}

#[test]
fn ignored_tests_run_when_asked_for() {
    let Outcome { status, stdout, .. } =
        cargo(&["test", "--package", "dashed-suite", "--lib", "--", "--ignored"]);
    assert!(status.success(), "{stdout}");
    assert_eq!(results(&stdout), ["tests::ignored ... ok"]);
    assert!(!stdout.contains("out of"), "{stdout}");
}

#[test]
fn a_test_that_waits_for_its_processes_says_so_past_the_capture() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("waited for");
    let waited_for = file.to_str().unwrap().to_owned();
    let test = "tests::passes_once_its_process_has_ended";
    let note = format!("hatchery: the test {test} has returned, and waits for its processes: /waits (pid ");
    let select = ["test", "--package", "dashed-suite", "--lib", "--", "--exact", test];
    // It can end only if it has said so.
    let Outcome { status, stdout, stderr } =
        cargo_heard(&select, &[("WAITED_FOR", &waited_for)], move |line| {
            if line.starts_with(&note) {
                std::fs::write(&file, "").unwrap();
            }
        });
    assert!(status.success(), "{stdout}{stderr}");
    assert_eq!(results(&stdout), [format!("{test} ... ok")]);
}

#[test]
fn tests_with_workers_behave_under_nextest() {
    let installed = Command::new(env!("CARGO")).args(["nextest", "--version"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        println!("skipped: cargo-nextest is not installed");
        return;
    }
    let options = ["--no-fail-fast", "--status-level", "all", "--final-status-level", "none"];
    let run = ["nextest", "run", "--package", "dashed-suite", "--failure-output", "immediate"];
    let Outcome { status, stdout, stderr } = cargo(&[&run[..], &options].concat());
    assert_eq!(status.code(), Some(100), "{stdout}{stderr}");
    // `PASS [ 0.011s] (1/26) package::binary name`, and the same for what else can become of one.
    let mut results: Vec<(&str, &str)> = stderr
        .lines()
        .filter_map(|line| Some((line.split_whitespace().next()?, line.rsplit(' ').next()?)))
        .filter(|(word, _)| {
            ["PASS", "FAIL", "LEAK", "LEAK-FAIL", "SLOW", "TIMEOUT", "SIGABRT"].contains(word)
        })
        .collect();
    results.sort_unstable();
    let passing = PASSING.iter().chain(&PASSING_TESTS).map(|test| ("PASS", *test));
    let mut expected: Vec<_> = passing.chain(FAILING.map(|test| ("FAIL", test))).collect();
    expected.sort_unstable();
    assert_eq!(results, expected, "{stderr}");
    // Its own output is all that a process of a test has: one harness each, and the test's workers.
    let spoken_by = |test: &str| stderr.matches(&format!("out of {test}\n")).count();
    assert_eq!(spoken_by("fails_with_its_workers_output"), 3, "{stderr}");
    assert_eq!(spoken_by("passes_quietly"), 0, "{stderr}");
    assert_eq!(stderr.matches("running 1 test\n").count(), FAILING.len(), "{stderr}");
}

/// Above a mistake stand the words that the compiler owes it: `//~ words`, or `//~* words` where the compiler says so of
/// everything that hangs on it. There is nothing else to be said; `//~+ words` are among the notes to what is. Only words
/// and lines are compared: what else the compiler shows changes from version to version.
#[test]
fn every_mistake_is_told_once_where_it_is_with_what_to_write_instead() {
    let build = ["build", "--package", "mistakes", "--tests", "--keep-going", "--message-format"];
    let outcome = cargo(&[&build[..], &["short"]].concat());
    let long = cargo(&[&build[..], &["human"]].concat()).stderr;
    let notes = |place: &str, words: &str| {
        // The first place of a report is its own.
        let is_here = |report: &&str| {
            report
                .lines()
                .find_map(|line| line.trim_start().strip_prefix("--> "))
                .is_some_and(|at| at.starts_with(place))
        };
        long.split("\n\n").filter(is_here).any(|report| report.contains(words))
    };
    let mut told: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for line in outcome.stderr.lines() {
        // `mistakes/src/bin/name.rs:4:17: error[E0277]: why`; cargo's own lines have no place.
        let Some((place, why)) = line.split_once(": error") else { continue };
        let mut place = place.split(':');
        let (Some(file), Some(Ok(number))) = (place.next(), place.next().map(str::parse)) else { continue };
        told.entry(file.to_owned()).or_default().push((number, why.to_owned()));
    }
    let mut wrong = String::new();
    let files = fixture().join("mistakes/src/bin");
    for file in std::fs::read_dir(files).unwrap() {
        let file = file.unwrap().path();
        let name = format!("mistakes/src/bin/{}", file.file_name().unwrap().to_str().unwrap());
        let mut told = told.remove(&name).unwrap_or_default();
        let text = std::fs::read_to_string(file).unwrap();
        let mut owed = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(words) = line.trim_start().strip_prefix("//~") {
                owed.push(words);
                continue;
            }
            for words in owed.drain(..) {
                if let Some(words) = words.strip_prefix('+') {
                    if !notes(&format!("{name}:{number}:"), words.trim()) {
                        wrong += &format!("{name}:{number}: not in the notes: {words}\n");
                    }
                    continue;
                }
                let (often, words) = match words.strip_prefix('*') {
                    Some(words) => (true, words.trim()),
                    None => (false, words.trim()),
                };
                let mut found = false;
                told.retain(|(at, why)| {
                    let this = (often || !found) && *at == number && why.contains(words);
                    found |= this;
                    !this
                });
                if !found {
                    wrong += &format!("{name}:{number}: not told: {words}\n");
                }
            }
        }
        for (number, why) in told {
            wrong += &format!("{name}:{number}: told, but not expected: {why}\n");
        }
    }
    for (name, told) in told {
        wrong += &format!("{name}: no mistake, but: {told:?}\n");
    }
    assert!(wrong.is_empty(), "{wrong}\n{}", outcome.stderr);
}
