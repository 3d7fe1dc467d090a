//! xtee itself in a test: started in a namespace, asked for its counters, ended as an operator would.
//!
//! `#[path = "common/mirror.rs"] mod mirror;` beside `mod common;`. Ends only what it started.
#![allow(dead_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use xtee::control::server::ask;
use xtee::telemetry::status::{SourceStatus, Status, TargetStatus};

use crate::common::netns::{wait_until, Namespace, Running};

/// Until xtee answers, or has ended after it was asked to.
const PATIENCE: Duration = Duration::from_secs(15);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A folder for the files of one test; removed on drop.
#[derive(Debug)]
pub struct TestFolder {
    path: PathBuf,
}

impl TestFolder {
    pub fn new() -> TestFolder {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("xtee-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        TestFolder { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// `xtee` with these arguments in a namespace, to be started by the caller.
pub fn xtee(namespace: &Namespace, arguments: &[&str]) -> Command {
    let mut command = namespace.command(env!("CARGO_BIN_EXE_xtee"));
    command.args(arguments);
    command
}

/// Runs `xtee` in a namespace to its end, which may be a failure.
pub fn xtee_output(namespace: &Namespace, arguments: &[&str]) -> Output {
    namespace.output(env!("CARGO_BIN_EXE_xtee"), arguments)
}

/// A running `xtee`; killed on drop.
#[derive(Debug)]
pub struct Mirror {
    process: Running,
    socket: PathBuf,
    folder: TestFolder,
}

/// A mirror that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// All that it printed: the plan, and the balance at the end.
    pub stdout: String,
    /// Its log.
    pub stderr: String,
    /// The last status before it was asked to end.
    pub last: Status,
}

impl Mirror {
    /// `xtee mirror ARGUMENTS… --socket …`; returns when it answers on its socket. Panics with what
    /// it printed if it ends before.
    pub fn start(namespace: &Namespace, arguments: &[&str]) -> Mirror {
        let folder = TestFolder::new();
        let socket = folder.file("xtee.sock");
        Mirror::start_in(namespace, arguments, folder, socket)
    }

    /// The same with a socket of the caller's choice, which may have been another's before.
    pub fn start_at(namespace: &Namespace, arguments: &[&str], socket: &Path) -> Mirror {
        Mirror::start_in(namespace, arguments, TestFolder::new(), socket.to_owned())
    }

    fn start_in(
        namespace: &Namespace,
        arguments: &[&str],
        folder: TestFolder,
        socket: PathBuf,
    ) -> Mirror {
        let mut all = vec!["mirror"];
        all.extend(arguments);
        let text = socket.to_str().expect("a path in UTF-8").to_owned();
        all.extend(["--socket", &text]);
        Mirror::start_command(xtee(namespace, &all), folder, socket)
    }

    /// `xtee run --config FILE` with this configuration; a `[control]` table is added to it.
    pub fn start_config(namespace: &Namespace, configuration: &str) -> Mirror {
        let folder = TestFolder::new();
        let socket = folder.file("xtee.sock");
        let file = folder.file("xtee.toml");
        let text = format!(
            "{configuration}\n[control]\nsocket = \"{}\"\n",
            socket.display()
        );
        fs::write(&file, text).expect("write a configuration");
        let file = file.to_str().expect("a path in UTF-8").to_owned();
        let command = xtee(namespace, &["run", "--config", &file]);
        Mirror::start_command(command, folder, socket)
    }

    fn start_command(mut command: Command, folder: TestFolder, socket: PathBuf) -> Mirror {
        let file = |name: &str| File::create(folder.file(name)).expect("an output file");
        command.stdout(file("stdout")).stderr(file("stderr"));
        let process = Running::start(&mut command);
        let mut mirror = Mirror {
            process,
            socket,
            folder,
        };
        let end = Instant::now() + PATIENCE;
        while mirror.try_status().is_none() {
            let ended = mirror.process.child().try_wait().expect("wait for a child");
            let late = Instant::now() >= end;
            assert!(
                ended.is_none() && !late,
                "xtee does not answer ({ended:?}):\n{}{}",
                mirror.stdout(),
                mirror.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        mirror
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it answers.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// What it printed so far.
    pub fn stdout(&self) -> String {
        self.printed("stdout")
    }

    /// Its log so far.
    pub fn stderr(&self) -> String {
        self.printed("stderr")
    }

    fn printed(&self, name: &str) -> String {
        fs::read_to_string(self.folder.file(name)).unwrap_or_default()
    }

    fn try_status(&self) -> Option<Status> {
        ask(&self.socket).ok()
    }

    /// Its counters now. While packets are under way they need not add up.
    pub fn status(&self) -> Status {
        ask(&self.socket)
            .unwrap_or_else(|error| panic!("status: {error:#}\n{}{}", self.stdout(), self.stderr()))
    }

    /// Its counters when nothing is under way: they have stood still for 100 ms and nothing is in
    /// flight. Panics if that does not happen.
    pub fn settled(&self) -> Status {
        let end = Instant::now() + PATIENCE;
        let mut before = at_rest(self.status());
        let mut since = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(10));
            let now = self.status();
            if at_rest(now.clone()) != before {
                before = at_rest(now);
                since = Instant::now();
            } else if since.elapsed() >= Duration::from_millis(100)
                && now.targets.iter().all(|target| target.in_flight == 0)
            {
                return now;
            }
            assert!(
                Instant::now() < end,
                "the counters do not come to rest: {before:#?}"
            );
        }
    }

    /// Waits until the counters are as `done` wants them.
    pub fn wait_for(&self, what: &str, done: impl Fn(&Status) -> bool) {
        wait_until(what, PATIENCE, || done(&self.status()));
    }

    /// Asserts that every equation of the balance holds at rest; returns the counters.
    pub fn assert_balanced(&self) -> Status {
        let status = self.settled();
        assert_eq!(status.imbalances(), Vec::<String>::new(), "{status}");
        status
    }

    /// Ends it by SIGINT at once, under load or not.
    pub fn stop(self) -> Finished {
        self.end_by(libc::SIGINT)
    }

    /// Ends it by SIGKILL and waits until it is gone.
    pub fn kill(self) -> Finished {
        self.end_by(libc::SIGKILL)
    }

    /// Sends it a signal and waits until it is gone.
    pub fn end_by(mut self, signal: i32) -> Finished {
        let last = self.status();
        self.signal(signal);
        let status = self.process.wait(PATIENCE);
        Finished {
            code: status.code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            last,
        }
    }
}

/// What moves with packets only: time goes on, and an idle worker sleeps again and again.
fn at_rest(mut status: Status) -> Status {
    status.uptime_seconds = 0;
    status.breaker.remaining_seconds = 0;
    for target in &mut status.targets {
        // Rates; what they are made of is in the other numbers.
        target.dry_run = None;
    }
    for source in &mut status.sources {
        for worker in &mut source.workers {
            worker.sleeps = 0;
        }
    }
    status
}

/// The only source.
pub fn source(status: &Status) -> &SourceStatus {
    assert_eq!(status.sources.len(), 1);
    &status.sources[0]
}

/// The only target.
pub fn target(status: &Status) -> &TargetStatus {
    assert_eq!(status.targets.len(), 1);
    &status.targets[0]
}

impl Finished {
    /// Asserts that it ended in order and that its own balance holds.
    pub fn assert_clean(&self) {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        assert!(
            self.stdout.contains("balance   holds"),
            "no balance at the end:\n{}{}",
            self.stdout,
            self.stderr
        );
    }

    /// A number of the balance that it printed at the end, summed over all sources or targets: `seen`,
    /// `unmatched`, `matched`, `captured`, `offered`, `sent`, `dropped`, `in flight`. What sources and
    /// targets both have (`dropped`) is summed over all of them.
    pub fn final_number(&self, word: &str) -> u64 {
        // `  matched  7 packets = captured 5 + dropped 2`, `  offered  5 packets = sent 5 + …`
        let mut found = Vec::new();
        for line in self.stdout.lines() {
            let Some((left, right)) = line.split_once(" packets = ") else {
                continue;
            };
            for term in std::iter::once(left).chain(right.split(" + ")) {
                if let Some((name, number)) = term.trim().rsplit_once(' ') {
                    if name.trim() == word {
                        found.push(number.parse::<u64>().expect("a count"));
                    }
                }
            }
        }
        assert!(!found.is_empty(), "no `{word}` in:\n{}", self.stdout);
        found.iter().sum()
    }
}
