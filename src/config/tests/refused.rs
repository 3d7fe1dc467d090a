//! Every way to write a wrong configuration gives one error that names the file, the line, the key
//! and what is allowed.

use std::path::Path;

use super::super::load;
use super::{read, SOURCE, SPAN, TARGET};

/// Asserts the one error of `text`: line, key, and words of what is wrong and of what is allowed.
#[track_caller]
pub(super) fn refused(text: &str, line: usize, key: &str, wrong: &str, allowed: &str) {
    let error = match read(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error,
    };
    let shown = error.to_string();
    assert!(
        shown.starts_with(&format!("dir/test.toml:{line}: ")),
        "{shown}"
    );
    assert_eq!(error.key, key, "{shown}");
    assert!(error.wrong.contains(wrong), "{shown}");
    assert!(error.allowed.contains(allowed), "{shown}");
    assert!(shown.contains(wrong) && shown.contains(allowed), "{shown}");
    assert!(!shown.contains('\n'), "{shown}");
}

#[test]
fn whole_files() {
    refused("", 1, "", "empty", "[[source]]");
    refused(" \n\n", 1, "", "empty", "[[target]]");
    refused(TARGET, 1, "source", "no [[source]]", "at least one");
    refused(SOURCE, 1, "target", "no [[target]]", "at least one");
    let target = |vni: usize| format!("[[target]]\nurl = \"vxlan://203.0.113.2?vni={vni}\"\n");
    let most: String = (0..16).map(target).collect();
    assert!(read(&format!("{SOURCE}{most}")).is_ok());
    let more = format!("{SOURCE}{most}{}", target(16));
    refused(&more, 37, "target", "more targets than", "at most 16");
    refused("[[source]\n", 1, "", "", "");
    refused("a = 1\nb = = 2\n", 2, "", "", "");
    let unknown = format!("{SOURCE}{TARGET}[contrl]\nsocket = \"x\"\n");
    refused(&unknown, 6, "contrl", "unknown key `contrl`", "`control`");
    let metrics = format!("{SOURCE}{TARGET}\n[metrics]\nlisten = \"127.0.0.1:9417\"\n");
    refused(
        &metrics,
        7,
        "metrics",
        "`[metrics]` is not built yet in this version",
        "",
    );
    let default = format!("default_action = \"drop\"\n{SOURCE}{TARGET}");
    refused(&default, 1, "default_action", "`drop`", "mirror, skip");
    let control = format!(
        "{SOURCE}{TARGET}[control]\nsocket = \"{}\"\n",
        "x".repeat(108)
    );
    refused(&control, 7, "control.socket", "108 bytes", "107");
    let missing = load(Path::new("/nonexistent/xtee.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("/nonexistent/xtee.toml: cannot be read"),
        "{missing}"
    );
}

#[test]
fn sources() {
    let tap = |line: &str| format!("{SOURCE}{line}\n{TARGET}");
    let span = |line: &str| format!("{SPAN}{line}\n{TARGET}");
    for (line, key, wrong, allowed) in [
        (
            "colour = 1",
            "source.colour",
            "unknown key `colour`",
            "`ring_size`",
        ),
        ("cpus = []", "source.cpus", "empty", "leave the key out"),
        ("cpus = [1, -1]", "source.cpus", "-1 is not a CPU", "0 to"),
        ("cpus = [1, 1]", "source.cpus", "stands twice", "once"),
        ("cpus = 1", "source.cpus", "integer `1`", "sequence"),
        ("workers = 0", "source.workers", "0 workers", "1 to 64"),
        ("workers = 65", "source.workers", "65 workers", "1 to 64"),
        ("workers = \"2\"", "source.workers", "string \"2\"", "i64"),
        (
            "attach = \"xdp\"",
            "source.attach",
            "`xdp`",
            "auto, tcx, clsact",
        ),
        ("attach = 1", "source.attach", "integer `1`", "string"),
        (
            "ring_size = \"9MiB\"",
            "source.ring_size",
            "not a power of two",
            "64KiB to 1GiB",
        ),
        (
            "ring_size = \"2GiB\"",
            "source.ring_size",
            "out of range",
            "64KiB to 1GiB",
        ),
        (
            "ring_size = \"8MB\"",
            "source.ring_size",
            "`MB` is not a unit",
            "MiB",
        ),
        (
            "ring_size = \"-8MiB\"",
            "source.ring_size",
            "not a size",
            "power of two",
        ),
        (
            "ring_size = 4096",
            "source.ring_size",
            "out of range",
            "64KiB",
        ),
        (
            "ring_size = \"99999999999999999999GiB\"",
            "source.ring_size",
            "not a size",
            "64KiB",
        ),
        (
            "mode = \"native\"",
            "source.mode",
            "setting of a span",
            "attach, ring_size",
        ),
        (
            "frames = 4096",
            "source.frames",
            "setting of a span",
            "attach, ring_size",
        ),
        (
            "allow_link_reset = 1",
            "source.allow_link_reset",
            "integer `1`",
            "boolean",
        ),
    ] {
        refused(&tap(line), 4, key, wrong, allowed);
    }
    for (line, key, wrong, allowed) in [
        (
            "attach = \"tcx\"",
            "source.attach",
            "setting of a tap",
            "mode, zero_copy",
        ),
        (
            "mode = \"fast\"",
            "source.mode",
            "`fast`",
            "auto, native, generic",
        ),
        (
            "zero_copy = \"yes\"",
            "source.zero_copy",
            "`yes`",
            "require, prefer, never",
        ),
        (
            "frames = 3000",
            "source.frames",
            "3000 frames",
            "power of two",
        ),
        ("frames = 32", "source.frames", "32 frames", "64"),
        ("frames = -64", "source.frames", "-64 frames", "64"),
        (
            "busy_poll = \"yes\"",
            "source.busy_poll",
            "string",
            "boolean",
        ),
    ] {
        refused(&span(line), 4, key, wrong, allowed);
    }
    let both = span("mode = \"generic\"\nzero_copy = \"require\"");
    refused(
        &both,
        5,
        "source.zero_copy",
        "generic XDP has no zero copy",
        "never",
    );
    let cpus = tap("cpus = [0, 1]\nworkers = 3");
    refused(&cpus, 5, "source.workers", "3 workers on 2 CPUs", "2");

    let kind = |kind: &str, name: &str| {
        format!("[[source]]\nkind = \"{kind}\"\ninterface = \"{name}\"\n{TARGET}")
    };
    refused(
        &kind("wire", "a"),
        2,
        "source.kind",
        "wire is not built yet",
        "tap, span",
    );
    refused(
        &kind("mirror", "a"),
        2,
        "source.kind",
        "`mirror`",
        "tap, span",
    );
    for name in ["", "sixteen-bytes-xx", "a/b", "a b", "..", "eth0:1"] {
        refused(
            &kind("tap", name),
            3,
            "source.interface",
            "not the name",
            "1 to 15 bytes",
        );
    }
    let twice = format!("{SOURCE}[[source]]\nkind = \"span\"\ninterface = \"eth0\"\n{TARGET}");
    refused(
        &twice,
        6,
        "source.interface",
        "interface of tap:eth0 already",
        "one [[source]]",
    );
    let no_kind = format!("\n[[source]]\ninterface = \"eth0\"\n{TARGET}");
    refused(&no_kind, 2, "source.kind", "`kind` is missing", "tap, span");
    let no_interface = format!("[[source]]\nkind = \"tap\"\n{TARGET}");
    refused(
        &no_interface,
        1,
        "source.interface",
        "`interface` is missing",
        "interface",
    );
}

#[test]
fn rules() {
    let rule = |line: &str| format!("{SOURCE}[[rule]]\naction = \"mirror\"\n{line}\n{TARGET}");
    for (line, key, wrong, allowed) in [
        (
            "colour = 1",
            "rule.colour",
            "unknown key `colour`",
            "`destination_ports`",
        ),
        (
            "direction = \"up\"",
            "rule.direction",
            "`up`",
            "both, in, out, ingress, egress",
        ),
        (
            "protocol = \"tpc\"",
            "rule.protocol",
            "`tpc` is not a protocol",
            "tcp, udp",
        ),
        ("protocol = 256", "rule.protocol", "`256`", "0 to 255"),
        ("protocol = -1", "rule.protocol", "`-1`", "0 to 255"),
        (
            "protocol = true",
            "rule.protocol",
            "boolean",
            "a number or a string",
        ),
        (
            "ports = [65536]",
            "rule.ports",
            "`65536` is not a port",
            "65535",
        ),
        (
            "ports = [80, \"9000-8000\"]",
            "rule.ports",
            "backwards",
            "8000-9000",
        ),
        ("ports = [-1]", "rule.ports", "`-1` is not a port", "65535"),
        ("ports = [\"80-\"]", "rule.ports", "not a port", "8000-8100"),
        ("ports = []", "rule.ports", "empty", "leave the key out"),
        ("ports = 80", "rule.ports", "integer `80`", "sequence"),
        (
            "source_ports = [\"x\"]",
            "rule.source_ports",
            "`x` is not a port",
            "65535",
        ),
        (
            "destination_ports = [1.5]",
            "rule.destination_ports",
            "floating",
            "a number or",
        ),
        (
            "networks = [\"198.51.100.7/24\"]",
            "rule.networks",
            "bits set",
            "198.51.100.0/24",
        ),
        (
            "source = [\"2001:db8::1/32\"]",
            "rule.source",
            "bits set",
            "2001:db8::/32",
        ),
        (
            "destination = [\"10.0.0.0/33\"]",
            "rule.destination",
            "longer",
            "0 to 32",
        ),
        (
            "networks = [\"host\"]",
            "rule.networks",
            "`host`",
            "198.51.100.0/24",
        ),
        (
            "networks = []",
            "rule.networks",
            "empty",
            "leave the key out",
        ),
        (
            "mark = \"0x\"",
            "rule.mark",
            "`0x` is not a number",
            "0x1/0xff",
        ),
        ("mark = \"1/0\"", "rule.mark", "mask of 0", "bits set"),
        (
            "mark = \"0x100/0xff\"",
            "rule.mark",
            "outside of the mask",
            "0x0/0xff",
        ),
        ("mark = 4294967296", "rule.mark", "`4294967296`", "0x1/0xff"),
        (
            "snaplen = 63",
            "rule.snaplen",
            "a snaplen of 63",
            "64 to 65535",
        ),
        (
            "snaplen = -1",
            "rule.snaplen",
            "a snaplen of -1",
            "64 to 65535",
        ),
        (
            "snaplen = \"all\"",
            "rule.snaplen",
            "a snaplen of all",
            "0 (the whole packet)",
        ),
        (
            "sample = \"16\"",
            "rule.sample",
            "`16` is not a share",
            "\"1/16\"",
        ),
        (
            "sample = \"0/16\"",
            "rule.sample",
            "`0/16` is not a share",
            "\"1/16\"",
        ),
        (
            "sample = \"3/2\"",
            "rule.sample",
            "`3/2` is not a share",
            "\"1/16\"",
        ),
        (
            "cutoff = \"10 apples\"",
            "rule.cutoff",
            "`apples` is not a unit",
            "\"10MB\"",
        ),
        (
            "cutoff = 0",
            "rule.cutoff",
            "copies nothing",
            "leave the key out",
        ),
    ] {
        refused(&rule(line), 6, key, wrong, allowed);
    }
    let icmp = rule("protocol = \"icmp\"\nports = [80]");
    refused(&icmp, 7, "rule.ports", "icmp has no ports", "tcp, udp");
    let gre = rule("protocol = 47\ndestination_ports = [80]");
    refused(
        &gre,
        7,
        "rule.destination_ports",
        "47 has no ports",
        "tcp, udp",
    );
    let action = format!("{SOURCE}[[rule]]\nprotocol = 6\n{TARGET}");
    refused(
        &action,
        4,
        "rule.action",
        "`action` is missing",
        "mirror, skip",
    );
    let action = format!("{SOURCE}[[rule]]\naction = \"copy\"\n{TARGET}");
    refused(&action, 5, "rule.action", "`copy`", "mirror, skip");

    let many = "[[rule]]\naction = \"mirror\"\n".repeat(65);
    refused(
        &format!("{SOURCE}{many}{TARGET}"),
        4 + 128,
        "rule",
        "65 rules",
        "at most 64",
    );
    let many = "[[rule]]\naction = \"mirror\"\n".repeat(64);
    assert_eq!(
        read(&format!("{SOURCE}{many}{TARGET}"))
            .unwrap()
            .rules
            .len(),
        64
    );

    let classes: String = (0..13)
        .map(|bit| {
            let ports = (0..8192).filter(|port| port & (1 << bit) != 0);
            let ports: Vec<_> = ports.map(|port: u32| port.to_string()).collect();
            format!(
                "[[rule]]\naction = \"skip\"\nports = [{}]\n",
                ports.join(",")
            )
        })
        .collect();
    refused(
        &format!("{SOURCE}{classes}{TARGET}"),
        4,
        "rule",
        "8192 different classes",
        "",
    );
}

#[test]
fn targets() {
    let target = |line: &str| format!("{SOURCE}{TARGET}{line}\n");
    for (line, key, wrong, allowed) in [
        (
            "colour = 1",
            "target.colour",
            "unknown key `colour`",
            "`transmit`",
        ),
        (
            "mtu = 551",
            "target.mtu",
            "`551` is not a path MTU",
            "552 to 65535",
        ),
        (
            "transmit = \"tcp\"",
            "target.transmit",
            "`tcp`",
            "auto, udp, xsk, raw",
        ),
        ("gso = true", "target.gso", "boolean", "string"),
        ("gso = \"yes\"", "target.gso", "`yes`", "auto, on, off"),
        (
            "source = \"::\"",
            "target.source",
            "not the address of one host",
            "unicast IPv6",
        ),
        (
            "source = \"fe80::1%eth0\"",
            "target.source",
            "scoped",
            "global",
        ),
        (
            "source = \"eth0\"",
            "target.source",
            "not a source address",
            "IPv4 or IPv6",
        ),
        (
            "transmit = \"raw\"",
            "target.transmit",
            "VXLAN is carried by UDP",
            "auto, udp, xsk",
        ),
        ("dev = \"a/b\"", "target.dev", "not the name", "15 bytes"),
        ("ports = 1025", "target.ports", "`1025`", "1 to 1024"),
        ("ports = 0", "target.ports", "`0`", "1 to 1024"),
        (
            "distribution = \"any\"",
            "target.distribution",
            "not possible",
            "all",
        ),
        (
            "oversize = \"keep\"",
            "target.oversize",
            "not possible",
            "resegment, fragment, truncate, drop",
        ),
    ] {
        refused(&target(line), 6, key, wrong, allowed);
    }
    let with_url = |url: &str, line: &str| format!("{SOURCE}[[target]]\nurl = \"{url}\"\n{line}\n");
    for (url, wrong, allowed) in [
        ("vxlan://203.0.113.2?vni=16777216", "`vni`", "16777215"),
        ("vxlan://[fe80::2%eth0]?vni=7", "scoped", "global"),
        ("geneve://203.0.113.2", "`vni` is missing", "geneve://"),
        (
            "vxlan://203.0.113.2?vni=7&ports=x",
            "parameter `ports`: `x`",
            "1 to 1024",
        ),
        (
            "vxlan://203.0.113.2?vni=7&limit=1Gbit",
            "parameter `limit`: `1Gbit` has no unit",
            "none",
        ),
        (
            "vxlan://203.0.113.2?vni=7&mtu=70000",
            "parameter `mtu`: `70000` is not a path MTU",
            "65535",
        ),
    ] {
        refused(&with_url(url, ""), 5, "target.url", wrong, allowed);
    }
    let vxlan = "vxlan://203.0.113.2?vni=7";
    let twice = with_url(&format!("{vxlan}&gso=on"), "gso = \"on\"");
    refused(&twice, 6, "target.gso", "in the URL too", "one of the two");
    let udp = with_url("gre://203.0.113.2", "transmit = \"udp\"");
    refused(
        &udp,
        6,
        "target.transmit",
        "not carried by UDP",
        "auto, xsk, raw",
    );
    let udp = with_url("gre://203.0.113.2?transmit=udp", "");
    refused(
        &udp,
        5,
        "target.transmit",
        "not carried by UDP",
        "auto, xsk, raw",
    );
    let gso = with_url("gre://203.0.113.2", "gso = \"on\"");
    refused(
        &gso,
        6,
        "target.gso",
        "GSO is done by UDP sockets",
        "auto, off",
    );
    let gso = with_url(vxlan, "transmit = \"xsk\"\ngso = \"on\"");
    refused(
        &gso,
        7,
        "target.gso",
        "GSO is done by UDP sockets",
        "auto, off",
    );
    let no_url = format!("{SOURCE}[[target]]\ngso = \"on\"\n");
    refused(&no_url, 4, "target.url", "`url` is missing", "vxlan://");
    let same = format!("{SOURCE}{TARGET}{TARGET}");
    refused(&same, 7, "target.url", "is a target already", "once");
    let other = TARGET.replace("vni=7", "vni=8");
    assert!(read(&format!("{SOURCE}{TARGET}{other}")).is_ok());
}
