//! Wrong configurations and arguments: one error that tells what, where and what would be right, exit
//! code 2, nothing attached, no file left behind.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/refusal_lab.rs"]
mod refusal_lab;

use std::fs;
use std::path::Path;

use refusal_lab::Lab;

const TAP: &str = "[[source]]\nkind = \"tap\"\ninterface = \"tap0\"\n";
const SPAN: &str = "[[source]]\nkind = \"span\"\ninterface = \"span0\"\n";
const RULE: &str = "[[rule]]\naction = \"mirror\"\n";
const TARGET: &str = "[[target]]\nurl = \"vxlan://203.0.113.2?vni=7\"\n";
const TO: &str = "vxlan://203.0.113.2?vni=7";
const TO_NAME: &str = "vxlan://203.0.113.2:4789?vni=7";

/// Text of a file, its line in question, its key, words of what is wrong, words of what is allowed.
type Wrong = (String, usize, &'static str, &'static str, &'static str);

fn wrong_files() -> Vec<Wrong> {
    let source = |line: &str| format!("{TAP}{line}\n{TARGET}");
    let span = |line: &str| format!("{SPAN}{line}\n{TARGET}");
    let rule = |line: &str| format!("{TAP}{RULE}{line}\n{TARGET}");
    let target = |line: &str| format!("{TAP}{TARGET}{line}\n");
    let url = |url: &str| format!("{TAP}[[target]]\nurl = \"{url}\"\n");
    let interface = |kind: &str, name: &str| {
        format!("[[source]]\nkind = \"{kind}\"\ninterface = \"{name}\"\n{TARGET}")
    };
    vec![
        (
            String::new(),
            1,
            "",
            "empty",
            "one [[source]] and one [[target]]",
        ),
        (format!("{TAP}{TARGET}= 1\n"), 6, "", "", ""),
        (
            source("colour = 1"),
            4,
            "source.colour",
            "unknown key",
            "`ring_size`",
        ),
        (
            source("ring_size = \"9MiB\""),
            4,
            "source.ring_size",
            "power of two",
            "64KiB to 1GiB",
        ),
        (
            source("mode = \"native\""),
            4,
            "source.mode",
            "setting of a span",
            "attach",
        ),
        (
            span("zero_copy = \"yes\""),
            4,
            "source.zero_copy",
            "`yes`",
            "require, prefer, never",
        ),
        (
            rule("ports = [\"9-8\"]"),
            6,
            "rule.ports",
            "backwards",
            "8-9",
        ),
        (
            rule("networks = [\"198.51.100.7/24\"]"),
            6,
            "rule.networks",
            "bits",
            "198.51.100.0/24",
        ),
        (
            target("gso = \"maybe\""),
            6,
            "target.gso",
            "`maybe`",
            "auto, on, off",
        ),
        (
            url("vxlan://203.0.113.2"),
            5,
            "target.url",
            "`vni` is missing",
            "vni=N",
        ),
        // Of the design, and not built yet.
        (
            interface("wire", "a"),
            2,
            "source.kind",
            "wire is not built yet",
            "tap, span",
        ),
        (
            interface("span", "default-route"),
            3,
            "source.interface",
            "a span would take",
            "tap",
        ),
        (
            rule("snaplen = 9"),
            6,
            "rule.snaplen",
            "a snaplen of 9",
            "0 (the whole packet), or 64 to 65535",
        ),
        (
            url("geneve://203.0.113.2"),
            5,
            "target.url",
            "`vni` is missing",
            "geneve://HOST?vni=N",
        ),
        (
            url("erspan://[fe80::2%eth0]?session=7"),
            5,
            "target.url",
            "scoped address",
            "unique local IPv6",
        ),
        (
            target("health = \"heartbeat\""),
            6,
            "target.health",
            "not built yet",
            "neighbour",
        ),
        (
            target("oversize = \"keep\""),
            6,
            "target.oversize",
            "not possible",
            "resegment",
        ),
        (
            target("limit = \"2Gbit\""),
            6,
            "target.limit",
            "has no unit",
            "none",
        ),
        (
            target("[breaker]\nload = 90"),
            7,
            "breaker.load",
            "`90` is not possible",
            "90%",
        ),
        (target("mtu = 1"), 6, "target.mtu", "not a path MTU", "552"),
        (
            target("[metrics]\nlisten = \"127.0.0.1:9417\""),
            6,
            "metrics",
            "not built yet",
            "",
        ),
        // Not possible on this host.
        (
            interface("tap", "nope0"),
            1,
            "tap:nope0",
            "there is no interface nope0",
            "tap0",
        ),
        (
            interface("span", "lo"),
            1,
            "span:lo",
            "no Ethernet frames",
            "tap:lo to copy",
        ),
        (
            source("cpus = [4095]"),
            1,
            "tap:tap0",
            "CPU 4095 is not online",
            "out of 0",
        ),
        (
            span("workers = 3"),
            1,
            "span:span0",
            "3 workers for 1 receive queues",
            "at most 1",
        ),
        (
            span("zero_copy = \"require\""),
            1,
            "span:span0",
            "has no zero copy",
            "prefer",
        ),
        (
            url("vxlan://192.0.2.1?vni=7"),
            4,
            "vxlan://192.0.2.1:4789?vni=7",
            "no route to 192.0.2.1",
            "ip route get",
        ),
        (
            url("vxlan://203.0.113.2?vni=7&dev=nope0"),
            4,
            TO_NAME,
            "there is no interface nope0",
            "mir0",
        ),
        (
            url("vxlan://203.0.113.2?vni=7&source=2001:db8::1"),
            4,
            TO_NAME,
            "are not of one IP version",
            "an IPv4 address of this host",
        ),
    ]
}

#[test]
fn wrong_configurations() {
    require_root!();
    let lab = Lab::new();
    let socket = lab.path("xtee.sock");
    for (text, line, key, wrong, allowed) in wrong_files() {
        // At the end, where it does not move the lines.
        let separate = format!("\n[control]\nsocket = \"{socket}\"\n");
        let control = if text.is_empty() { "" } else { &separate };
        let file = lab.file("xtee.toml", &format!("{text}{control}"));
        let place = format!("xtee: {file}:{line}: ");
        // The check first: it ends in any case.
        for command in ["check", "run"] {
            let ran = lab.run(&[command, "--config", &file]);
            let shown = ran.assert_refused(2, &[&place, wrong, allowed]);
            let named = key.is_empty() || shown.starts_with(&format!("{place}`{key}`: "));
            assert!(named, "{key}: {shown}");
            assert!(
                allowed.is_empty() || shown.contains("; allowed: "),
                "{shown}"
            );
            assert_eq!(ran.stdout, "", "something was done: {shown}");
        }
        assert!(!Path::new(&socket).exists());
    }
    lab.assert_nothing_attached();

    let folder = lab.path("");
    for (file, why) in [
        ("/nonexistent/xtee.toml", "No such file"),
        (&folder, "directory"),
    ] {
        let ran = lab.run(&["run", "--config", file]);
        ran.assert_refused(2, &[file, "cannot be read", why]);
    }
    fs::write(lab.path("binary"), [0xff, 0xfe, 0]).expect("write a file");
    let ran = lab.run(&["check", "--config", &lab.path("binary")]);
    ran.assert_refused(2, &["cannot be read"]);
}

#[test]
fn wrong_arguments() {
    require_root!();
    let lab = Lab::new();
    let socket = lab.path("xtee.sock");
    for (arguments, words) in [
        (
            &["tap:nope0", "--to", TO][..],
            ["`tap:nope0`", "there is no interface nope0"],
        ),
        (&["tap0", "--to", TO], ["`SOURCE`", "tap:IF, span:IF"]),
        (
            &["wire:tap0,span0", "--to", TO],
            ["`SOURCE`", "a wire is not built yet"],
        ),
        (
            &["tap:tap0", "--to", "geneve://203.0.113.2"],
            ["`--to`", "`vni` is missing"],
        ),
        (
            &["tap:tap0", "--to", TO, "--port", "99999"],
            ["`--port`", "`99999` is not a port"],
        ),
        (
            &["tap:tap0", "--to", TO, "--protocol", "tpc"],
            ["`--protocol`", "`tpc` is not a protocol"],
        ),
        (
            &["tap:tap0", "--to", TO, "--mode", "native"],
            ["`--mode`", "setting of a span"],
        ),
        (
            &["span:span0", "--to", TO, "--ring-size", "1MiB"],
            ["`--ring-size`", "setting of a tap"],
        ),
        (
            &["tap:tap0", "--to", TO, "--transmit", "fast"],
            ["`--transmit`", "auto, udp, xsk, raw"],
        ),
        (
            &["tap:tap0", "--to", TO, "--cpus", "0,0"],
            ["`--cpus`", "CPU 0 stands twice"],
        ),
        (&["tap:tap0", "--to", TO, TO], ["`--to`", "allowed: "]),
    ] {
        let mut all = vec!["mirror"];
        all.extend(arguments);
        all.extend(["--socket", &socket]);
        let ran = lab.run(&all);
        ran.assert_refused(2, &["xtee: arguments: ", words[0], words[1]]);
        assert_eq!(ran.stdout, "");
    }
    // What clap finds has clap's form, with a hint of what would be right, and the same code.
    for (arguments, word) in [
        (&["frobnicate"][..], "'frobnicate'"),
        (&["collect"], "'collect'"),
        (&["mirror"], "--to <URL>"),
        (&["mirror", "tap:tap0"], "--to <URL>"),
        (
            &["mirror", "tap:tap0", "--to", TO, "--colour"],
            "'--colour'",
        ),
        (
            &["mirror", "tap:tap0", "--to", TO, "--workers", "x"],
            "'--workers <N>'",
        ),
        (&["run"], "--config <FILE>"),
        (&["check"], "--config <FILE>"),
        (&["check", "tap:tap0"], "--to <URL>"),
        (
            &["check", "--config", "x", "--port", "1"],
            "cannot be used with",
        ),
        (&["status", "--colour"], "'--colour'"),
    ] {
        let ran = lab.run(arguments);
        assert_eq!(ran.code, Some(2), "{ran:#?}");
        assert!(ran.stderr.starts_with("error: "), "{ran:#?}");
        assert!(
            ran.stderr.contains(word) && ran.stderr.contains("--help"),
            "{ran:#?}"
        );
    }
    assert!(!Path::new(&socket).exists());
    lab.assert_nothing_attached();
}
