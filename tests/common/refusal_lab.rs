//! One namespace in which xtee is run to its end, and what must not be there afterwards.
//!
//! `#[path = "common/refusal_lab.rs"] mod refusal_lab;` beside `mod common;` and `mod mirror;`.
#![allow(dead_code)]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{ExitStatus, Output};
use std::time::Duration;

use xtee::host::{hooks, link, netlink::Netlink};

use crate::common::netns::{veth, Namespace, Running, VethEnd};
use crate::mirror::{xtee, xtee_output, TestFolder};

const PATIENCE: Duration = Duration::from_secs(15);

/// `tap0` and `span0` lead to another namespace, `mir0` to the target 203.0.113.2.
pub struct Lab {
    pub host: Namespace,
    pub outside: Namespace,
    pub folder: TestFolder,
}

impl Lab {
    pub fn new() -> Lab {
        let (host, outside) = (Namespace::new(), Namespace::new());
        for (name, peer, address, target) in [
            ("tap0", "tap9", "198.51.100.1/25", "198.51.100.2/25"),
            ("span0", "span9", "198.51.100.129/25", "198.51.100.130/25"),
            ("mir0", "mon0", "203.0.113.1/24", "203.0.113.2/24"),
        ] {
            veth(
                &VethEnd::new(&host, name).mtu(1600).address(address),
                &VethEnd::new(&outside, peer).mtu(1600).address(target),
            );
        }
        Lab {
            host,
            outside,
            folder: TestFolder::new(),
        }
    }

    pub fn path(&self, name: &str) -> String {
        let path = self.folder.file(name);
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("write a file");
        path
    }

    /// Runs xtee to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(&xtee_output(&self.host, arguments))
    }

    /// Starts xtee; its output goes to files.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Started {
        let files = [".out", ".err"].map(|end| self.folder.file(&format!("{name}{end}")));
        let [stdout, stderr] = files.each_ref().map(|file| {
            File::create(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        });
        let mut command = xtee(&self.host, arguments);
        command.stdout(stdout).stderr(stderr);
        Started {
            process: Running::start(&mut command),
            files,
        }
    }

    /// Programs, filters and queueing disciplines that stand on the three interfaces, in words.
    pub fn attached(&self) -> Vec<String> {
        let _here = self.host.enter();
        let mut netlink = Netlink::open().expect("netlink");
        let mut found = Vec::new();
        for name in ["tap0", "span0", "mir0"] {
            let link = link::by_name(&mut netlink, name).expect("an interface");
            let hooks = hooks::on(&mut netlink, &link).expect("its hooks");
            assert_eq!(hooks.unread, None);
            let words = hooks.attached.iter().map(|attached| attached.describe());
            found.extend(words.map(|words| format!("{name}: {words}")));
            if hooks.clsact {
                found.push(format!("{name}: clsact"));
            }
        }
        found
    }

    #[track_caller]
    pub fn assert_nothing_attached(&self) {
        assert_eq!(self.attached(), Vec::<String>::new());
    }

    /// All that can be seen of the namespace's network, counters aside.
    pub fn everything(&self) -> String {
        let mut text = String::new();
        for arguments in [
            &["-d", "link"][..],
            &["address"],
            &["route", "show", "table", "all"],
            &["rule"],
            &["neighbour"],
        ] {
            text += &self.host.ip(arguments);
        }
        text += &self.host.run("tc", &["qdisc"]);
        for interface in ["tap0", "span0", "mir0"] {
            text += &self.host.run("ethtool", &["-k", interface]);
            text += &self.host.run("ethtool", &["-l", interface]);
        }
        text
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: &Output) -> Ran {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts the code and one line of error that has all these words in it; returns the line.
    #[track_caller]
    pub fn assert_refused(&self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let lines: Vec<_> = self.stderr.lines().collect();
        let [line] = lines[..] else {
            panic!("not one line: {self:#?}");
        };
        assert!(line.starts_with("xtee: "), "{line}");
        for word in words {
            assert!(line.contains(word), "no {word:?} in: {line}");
        }
        line.to_owned()
    }
}

/// A running xtee; killed on drop.
pub struct Started {
    pub process: Running,
    files: [PathBuf; 2],
}

impl Started {
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.files[0]).unwrap_or_default()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.files[1]).unwrap_or_default()
    }

    /// Waits for its end.
    pub fn end(mut self) -> (ExitStatus, Ran) {
        let status = self.process.wait(PATIENCE);
        let ran = Ran {
            code: status.code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
        };
        (status, ran)
    }
}
