//! The commands that only look: `check`, `doctor` and the help. They tell what there is to tell, in words
//! and in JSON, and change nothing.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/refusal_lab.rs"]
mod refusal_lab;

use std::path::Path;
use std::process::Command;

use common::netns::run;
use mirror::Mirror;
use refusal_lab::Lab;

const TAP: &str = "[[source]]\nkind = \"tap\"\ninterface = \"tap0\"\n";
const SPAN: &str = "[[source]]\nkind = \"span\"\ninterface = \"span0\"\n";
const TARGET: &str = "[[target]]\nurl = \"vxlan://203.0.113.2?vni=7\"\n";
const TO: &str = "vxlan://203.0.113.2?vni=7";

#[test]
fn check_looks_and_changes_nothing() {
    require_root!("tc");
    let lab = Lab::new();
    let socket = lab.path("folder/xtee.sock");
    let text = format!(
        "{TAP}{SPAN}cpus = [0]\n[[rule]]\naction = \"skip\"\nports = [22]\n{TARGET}\
         [[target]]\nurl = \"gre://203.0.113.2?key=7\"\n[control]\nsocket = \"{socket}\"\n"
    );
    let file = lab.file("xtee.toml", &text);
    let before = lab.everything();
    let ran = lab.run(&["check", "--config", &file]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:#?}");
    for line in [
        "source    tap:tap0",
        "  attach    tcx (",
        "  worker 0  not pinned (`cpus` pins it)",
        "source    span:span0",
        "  mode      native (",
        "  zero copy never (the driver of span0 has no zero copy)",
        "  room      42 (for the outer header of gre://203.0.113.2?key=7)",
        "  worker 0  CPU 0, queues 0",
        "rules     1; what none takes is skipped",
        "target    vxlan://203.0.113.2:4789?vni=7",
        "  path      203.0.113.2 from 203.0.113.1 by mir0",
        "  transmit  udp (VXLAN: a UDP socket follows",
        "  gso       sendmmsg (",
        "target    gre://203.0.113.2?key=7",
        "  transmit  xsk (GRE is not carried by UDP",
    ] {
        assert!(ran.stdout.contains(line), "no {line:?} in:\n{}", ran.stdout);
    }
    let ran = lab.run(&["check", "--config", &file, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json["sources"][1]["capture"]["room"]["value"], 42);
    assert_eq!(json["targets"][1]["transmit"]["value"], "xsk");
    let why = json["targets"][0]["gso"]["why"].as_str().expect("a reason");
    assert!(why.contains("may hand them on unsplit"), "{why}");
    let warned = json["warnings"].as_array().expect("warnings");
    assert!(warned.iter().any(|warning| warning.as_str().is_some()));
    // The same by arguments.
    let ran = lab.run(&["check", "span:span0", "--to", "gre://203.0.113.2?key=7"]);
    assert!(ran.stdout.contains("  room      42 ("), "{ran:#?}");

    assert_eq!(lab.everything(), before);
    assert!(!Path::new(&socket).parent().expect("a folder").exists());
    lab.assert_nothing_attached();
}

#[test]
fn doctor_tells_and_remedies() {
    require_root!("tc");
    let lab = Lab::new();
    let before = lab.everything();
    let ran = lab.run(&["doctor", "span0", "mir0", "nope0"]);
    assert_eq!(ran.stderr, "");
    for words in [
        "privileges",
        "tcx",
        "span0 driver",
        "span0 af_xdp",
        "mir0 offloads",
    ] {
        assert!(
            ran.stdout.contains(words),
            "no {words:?} in:\n{}",
            ran.stdout
        );
    }
    for line in ran.stdout.lines() {
        let wants = line.starts_with("warning") || line.starts_with("PROBLEM");
        assert!(!wants || line.contains("  ->  "), "no remedy: {line}");
    }
    assert!(ran
        .stdout
        .contains("ethtool -K mir0 tx-udp-segmentation off"));
    let missing = |line: &str| line.starts_with("PROBLEM") && line.contains("nope0");
    assert!(ran.stdout.lines().any(missing), "{}", ran.stdout);

    let ran = lab.run(&["doctor", "span0", "nope0", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let checks = json["checks"].as_array().expect("checks");
    assert!(checks.len() > 8);
    for check in checks {
        let healthy = check["status"] == "ok";
        assert!(healthy || check["remedy"].as_str().is_some(), "{check}");
    }
    assert!(checks.iter().any(|check| check["status"] != "ok"));
    assert_eq!(lab.everything(), before);

    // A program of ours on a hook is seen.
    let mirror = Mirror::start(&lab.host, &["span:span0", "--to", TO]);
    let ran = lab.run(&["doctor", "span0"]);
    assert!(
        ran.stdout.contains("xtee is attached: XDP"),
        "{}",
        ran.stdout
    );
    mirror.stop().assert_clean();
}

#[test]
fn help_of_every_command() {
    let program = env!("CARGO_BIN_EXE_xtee");
    for (command, words) in [
        (
            &["--help"][..],
            &["run", "mirror", "check", "status", "doctor"][..],
        ),
        (&["run", "--help"], &["--config <FILE>", "balance"]),
        (
            &["mirror", "--help"],
            &[
                "<SOURCE>",
                "--to <URL>",
                "vxlan://HOST",
                "gre://HOST",
                "--protocol",
                "--socket",
            ],
        ),
        (
            &["check", "--help"],
            &["--config <FILE>", "--json", "Changes nothing"],
        ),
        (
            &["status", "--help"],
            &["--json", "--socket <PATH>", "/run/xtee/xtee.sock"],
        ),
        (&["doctor", "--help"], &["[IF]", "--json"]),
        (&["help", "mirror"], &["--to <URL>"]),
    ] {
        let text = run(Command::new(program).args(command));
        for word in words {
            assert!(text.contains(word), "{command:?}: no {word} in:\n{text}");
        }
    }
    let version = run(Command::new(program).arg("--version"));
    assert_eq!(version, format!("xtee {}\n", env!("CARGO_PKG_VERSION")));
}
