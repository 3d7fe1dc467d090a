//! Suricata on the collector: it reads an interface by AF_PACKET as a sensor does, decapsulates by
//! itself, verifies checksums, and tells what it saw.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::common::netns::{run, wait_until, Namespace, Running};
use crate::mirror::TestFolder;

const PATIENCE: Duration = Duration::from_secs(40);

/// What is looked for inside of the tunnel: in a request and in what is answered.
pub const REQUEST_MARKER: &str = "xtee-test-attack";
pub const RESPONSE_MARKER: &str = "XTEE-TEST-PAYLOAD";
pub const REQUEST_RULE: u64 = 9_000_001;
pub const RESPONSE_RULE: u64 = 9_000_002;

fn rules() -> String {
    format!(
        "alert http any any -> any any (msg:\"request\"; http.uri; content:\"{REQUEST_MARKER}\"; \
         sid:{REQUEST_RULE}; rev:1;)\n\
         alert http any any -> any any (msg:\"response\"; flow:to_client; file.data; \
         content:\"{RESPONSE_MARKER}\"; sid:{RESPONSE_RULE}; rev:1;)\n"
    )
}

fn configuration(folder: &str, interface: &str) -> String {
    format!(
        "%YAML 1.1
---
default-log-dir: {folder}
default-rule-path: {folder}
rule-files: [ test.rules ]
classification-file: {folder}/empty
reference-config-file: {folder}/empty
threshold-file: {folder}/empty
stats: {{ enabled: yes, interval: 1, decoder-events: true }}
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      types: [ alert: {{}}, files: {{ force-hash: [ sha256 ] }}, stats: {{ totals: yes, threads: no, deltas: no }} ]
logging:
  default-log-level: notice
  outputs: [ console: {{ enabled: yes }} ]
af-packet:
  - interface: {interface}
    threads: 1
    cluster-id: 98
    cluster-type: cluster_flow
    defrag: no
    use-mmap: yes
    tpacket-v3: yes
    block-size: 1048576
    ring-size: 65536
    checksum-checks: yes
decoder:
  vxlan: {{ enabled: true, ports: [ 4789 ] }}
  geneve: {{ enabled: true, ports: [ 6081 ] }}
app-layer:
  protocols:
    http:
      enabled: yes
      # Files of any size.
      libhtp: {{ default-config: {{ request-body-limit: 0, response-body-limit: 0 }} }}
    dns: {{ udp: {{ enabled: yes }}, tcp: {{ enabled: yes }} }}
stream:
  checksum-validation: yes
  inline: no
unix-command: {{ enabled: no }}
max-pending-packets: 4096
"
    )
}

/// Writes its files; returns the arguments that name them.
fn prepare(folder: &TestFolder, interface: &str) -> [String; 4] {
    let path = folder.path().to_str().expect("a path in UTF-8").to_owned();
    fs::write(folder.file("empty"), "").expect("write");
    fs::write(folder.file("test.rules"), rules()).expect("write the rules");
    let file = format!("{path}/suricata.yaml");
    fs::write(&file, configuration(&path, interface)).expect("write the configuration");
    ["-c".to_owned(), file, "-l".to_owned(), path]
}

/// Lets it read a capture file to the end.
pub fn read(capture: &Path) -> Report {
    let folder = TestFolder::new();
    let mut command = Command::new("suricata");
    command
        .args(prepare(&folder, "none"))
        .arg("-r")
        .arg(capture);
    run(&mut command);
    Report::of(&events(&folder.file("eve.json")))
}

fn events(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    text.lines()
        .map_while(|line| serde_json::from_str(line).ok())
        .collect()
}

/// A running Suricata.
#[derive(Debug)]
pub struct Sensor {
    process: Running,
    folder: TestFolder,
}

/// What it said at its end.
#[derive(Clone, Debug)]
pub struct Report {
    /// Alerts by rule.
    pub alerts: BTreeMap<u64, usize>,
    /// All counters by their full name, such as `decoder.vxlan`.
    pub counters: BTreeMap<String, u64>,
    /// Files that it took out of streams, by their name: state (`CLOSED`: whole) and SHA-256.
    pub files: BTreeMap<String, (String, String)>,
}

impl Sensor {
    /// Returns when it captures.
    pub fn start(namespace: &Namespace, interface: &str) -> Sensor {
        let folder = TestFolder::new();
        let mut command = namespace.command("suricata");
        command.args(prepare(&folder, interface));
        command.arg(format!("--af-packet={interface}"));
        let output = File::create(folder.file("output")).expect("an output file");
        let errors = output.try_clone().expect("duplicate a descriptor");
        command.stdout(output).stderr(errors);
        let mut process = Running::start(&mut command);
        let said = || fs::read_to_string(folder.file("output")).unwrap_or_default();
        wait_until("Suricata's start", PATIENCE, || {
            let ended = process.child().try_wait().expect("wait for a child");
            assert!(ended.is_none(), "Suricata ended:\n{}", said());
            said().contains("Engine started")
        });
        Sensor { process, folder }
    }

    fn log(&self) -> PathBuf {
        self.folder.file("eve.json")
    }

    fn events(&self) -> Vec<Value> {
        events(&self.log())
    }

    /// Waits until it has counted at least `count` of something.
    pub fn wait_for(&self, counter: &str, count: u64) {
        let what = format!("{count} in Suricata's {counter}");
        wait_until(&what, PATIENCE, || {
            let counters = counters(&self.events());
            counters.get(counter).is_some_and(|&found| found >= count)
        });
    }

    /// Ends it, upon which it writes its last counters.
    pub fn stop(mut self) -> Report {
        self.process.signal(libc::SIGINT);
        let status = self.process.wait(PATIENCE);
        assert!(status.success(), "Suricata ended with {status}");
        Report::of(&self.events())
    }
}

/// The last counters among the events.
fn counters(events: &[Value]) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let last = events.iter().rfind(|event| event["event_type"] == "stats");
    if let Some(event) = last {
        flatten("", &event["stats"], &mut counters);
    }
    counters
}

fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, u64>) {
    if let Some(number) = value.as_u64() {
        into.insert(prefix.to_owned(), number);
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let full = match prefix {
            "" => name.clone(),
            _ => format!("{prefix}.{name}"),
        };
        flatten(&full, value, into);
    }
}

impl Report {
    fn of(events: &[Value]) -> Report {
        let mut alerts = BTreeMap::new();
        for event in events.iter().filter(|event| event["event_type"] == "alert") {
            let rule = event["alert"]["signature_id"].as_u64().expect("a rule");
            *alerts.entry(rule).or_default() += 1;
        }
        let mut files = BTreeMap::new();
        for event in events
            .iter()
            .filter(|event| event["event_type"] == "fileinfo")
        {
            let file = &event["fileinfo"];
            let text = |key: &str| file[key].as_str().unwrap_or_default().to_owned();
            files.insert(text("filename"), (text("state"), text("sha256")));
        }
        Report {
            alerts,
            counters: counters(events),
            files,
        }
    }

    /// One counter; 0 if it was never written.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// Counters of broken packets that are not zero: all decoder events, and what else is called invalid
    /// or truncated.
    pub fn faults(&self) -> BTreeMap<&str, u64> {
        const WORDS: [&str; 5] = ["invalid", "trunc", "too_small", "too_large", "unsupported"];
        self.counters
            .iter()
            .filter(|(name, &count)| {
                let event = name.starts_with("decoder.event.");
                count > 0 && (event || WORDS.iter().any(|word| name.contains(word)))
            })
            .map(|(name, &count)| (name.as_str(), count))
            .collect()
    }
}
