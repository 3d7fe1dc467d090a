//! `xtee loss FILE` as a user runs it: exit codes, words and JSON, damage, gzip, standard input.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn xtee(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtee"))
        .args(arguments)
        .output()
        .expect("xtee runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file in a folder that goes away with it.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("xtee-loss-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("a temporary file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A capture of one connection: 200 segments of 1000 octets, each acknowledged; segments 50 and 51 are not
/// in it, segment 100 is there twice with different numbers, 200 ms apart, acknowledged after the second.
fn capture() -> Vec<u8> {
    let mut file = 0xa1b2_c3d4u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0]);
    for word in [0u32, 0, 65535, 1] {
        file.extend(word.to_le_bytes());
    }
    let mut number = 0u16;
    let mut add = |at_ms: u64, client: bool, sequence: u32, acknowledgment: u32, payload: u16| {
        number += 1;
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        frame.extend((40 + payload).to_be_bytes());
        frame.extend(number.to_be_bytes());
        frame.extend([0x40, 0, 64, 6, 0, 0]);
        let (from, to) = if client { (1, 2) } else { (2, 1) };
        frame.extend([198, 51, 100, from, 198, 51, 100, to]);
        let ports: [u16; 2] = if client { [40000, 80] } else { [80, 40000] };
        frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        frame.extend(sequence.to_be_bytes());
        frame.extend(acknowledgment.to_be_bytes());
        frame.extend([0x50, 0x10, 3, 232, 0, 0, 0, 0]);
        frame.resize(54 + usize::from(payload), 0);
        let length = frame.len() as u32;
        for word in [
            1_700_000_000 + (at_ms / 1000) as u32,
            (at_ms % 1000) as u32 * 1000,
            length,
            length,
        ] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    };
    for at in 0..200u32 {
        let mut now = u64::from(at) * 1000;
        if at != 50 && at != 51 {
            add(now, true, 1 + at * 1000, 1, 1000);
        }
        if at == 100 {
            now += 200;
            add(now, true, 1 + at * 1000, 1, 1000);
        }
        add(now + 20, false, 1, 1001 + at * 1000, 0);
    }
    file
}

#[test]
fn a_capture_is_told_in_words_and_in_json() {
    let file = Temporary::new("words.pcap", &capture());
    let ran = xtee(&["loss", file.path()]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let words = text(&ran.stdout);
    for part in [
        "198.51.100.1:40000 > 198.51.100.2:80",
        "399 frames, 399 of them TCP, in 1 flows: 1 seen in both directions",
        "Before us: no packets lost",
        "Behind us: about 1 packets lost between us and the receiver",
        "Capture: about 2 packets arrived at the receiver and are not in this capture",
        "Round trip to the servers: median 20 ms",
    ] {
        assert!(words.contains(part), "no {part:?} in:\n{words}");
    }
    let ran = xtee(&["loss", "--json", file.path()]);
    let json: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    assert_eq!(json["damage"], serde_json::Value::Null);
    let tcp = &json["tcp"];
    assert_eq!(tcp["capture_loss"]["octets"], 2000);
    assert_eq!(tcp["capture_loss"]["packets"], 2);
    assert_eq!(tcp["downstream_loss"]["packets"], 1);
    assert_eq!(tcp["upstream_loss"]["events"], 0);
    assert_eq!(tcp["unique_octets"], 198_000);
    let worst = &json["worst"][0];
    assert_eq!(worst["client"], "198.51.100.1:40000");
    assert_eq!(worst["to_server"]["capture_loss"]["octets"], 2000);
    assert_eq!(worst["to_server"]["round_trip_to_receiver_us"], 20_000);
}

#[test]
fn gzip_and_standard_input_are_the_same() {
    let plain = capture();
    let file = Temporary::new("same.pcap", &plain);
    let packed = Command::new("gzip")
        .args(["-c", file.path()])
        .output()
        .expect("gzip runs");
    let gzip = Temporary::new("same.pcap.gz", &packed.stdout);
    let of = |output: &Output| {
        let mut json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        json["file"] = serde_json::Value::Null;
        json
    };
    let expected = of(&xtee(&["loss", "--json", file.path()]));
    assert_eq!(of(&xtee(&["loss", "--json", gzip.path()])), expected);
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtee"))
        .args(["loss", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("xtee runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(&plain).expect("it reads all");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(of(&output), expected);
}

#[test]
fn damage_at_the_end_is_named_and_what_is_before_it_reported() {
    let whole = capture();
    let cut = Temporary::new("cut.pcap", &whole[..whole.len() - 7]);
    let ran = xtee(&["loss", cut.path()]);
    assert_eq!(ran.status.code(), Some(0), "{}", text(&ran.stderr));
    let words = text(&ran.stdout);
    assert!(words.contains("398 frames"), "{words}");
    assert!(
        words.contains("Damaged: the file ends within a record at byte"),
        "{words}"
    );
}

#[test]
fn what_is_no_capture_is_an_error_with_code_2() {
    let file = Temporary::new("none.pcap", b"GET / HTTP/1.1\r\n\r\n");
    let ran = xtee(&["loss", file.path()]);
    assert_eq!(ran.status.code(), Some(2));
    assert_eq!(text(&ran.stdout), "");
    let told = text(&ran.stderr);
    assert!(
        told.contains("is not a capture: expected pcap or pcapng"),
        "{told}"
    );
    let ran = xtee(&["loss", "/nonexistent.pcap"]);
    assert_eq!(ran.status.code(), Some(2));
    assert!(
        text(&ran.stderr).contains("No such file"),
        "{}",
        text(&ran.stderr)
    );
    for arguments in [&["loss"][..], &["loss", "--max-flows", "0", file.path()]] {
        assert_eq!(xtee(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
