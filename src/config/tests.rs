//! Good files are read, defaults filled in, the shipped files load, and no text makes the parser
//! panic. What is refused, and how, is in `refused`.

mod gets;
mod places;
mod refused;

use std::path::Path;

use proptest::prelude::*;

use super::settings::{
    AttachChoice, Breaker, Distribution, GsoChoice, HealthCheck, Host, LimitChoice, ModeChoice,
    SourceKind, TransmitChoice, ZeroCopy,
};
use super::*;
use crate::mirror::rules::{Action, Protocols};
use crate::packet::encap::{Inner, Tunnel};
use crate::packet::Direction;

const GOOD: &str = r#"default_action = "skip"

[[source]]
kind = "tap"
interface = "eth0"
cpus = [3]
attach = "clsact"
ring_size = "8MiB"
allow_credential_endpoints = true

[[source]]
kind = "span"
interface = "eth1"
workers = 2
mode = "native"
zero_copy = "require"
busy_poll = false
frames = 2048
allow_link_reset = true

[[rule]]
action = "mirror"
direction = "egress"
protocol = "tcp"
ports = [443, "8000-8100"]
source_ports = ["0-65535"]
destination_ports = ["53"]
networks = ["198.51.100.0/24", "2001:db8::1"]
source = ["0.0.0.0/0"]
destination = ["::/0"]
mark = "0x1/0xff"
snaplen = 0

[[target]]
url = "vxlan://203.0.113.2?vni=7&gso=on&ports=128&source=198.51.100.9"
transmit = "udp"
dev = "eth2"
distribution = "hash"
oversize = "fragment"
mtu = 1400
limit = "none"
limit_packets = "1.5M/s"
health = "none"
dscp = "CS1"
priority = 3
ttl = 255

[[target]]
url = "gre://ndr.example.net?key=9&seq=on&transmit=raw&limit=2.5Gbit/s&limit_packets=none&health=neighbour&dscp=46&ttl=1"

[breaker]
budget = "5Gbit/s"
budget_packets = "900k/s"
load = "87.5%"
allowances = false

[control]
socket = "/tmp/xtee.sock"
"#;

/// The least of each section.
const SOURCE: &str = "[[source]]\nkind = \"tap\"\ninterface = \"eth0\"\n";
const SPAN: &str = "[[source]]\nkind = \"span\"\ninterface = \"eth1\"\n";
const TARGET: &str = "[[target]]\nurl = \"vxlan://203.0.113.2?vni=7\"\n";

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(Path::new("dir/test.toml"), text)
}

#[test]
fn slices_are_read_and_warned_of() {
    let rule =
        "[[rule]]\naction = \"mirror\"\nsnaplen = 128\nsample = \"1/16\"\ncutoff = \"10MB\"\n";
    let config = read(&format!("{SOURCE}{rule}{TARGET}")).unwrap();
    let slice = config.rules[0].slice;
    assert_eq!((slice.snaplen, slice.cutoff), (128, Some(10_000_000)));
    assert_eq!(
        slice.sample.map(|sample| sample.limit()),
        Some((1 << 28) - 1)
    );
    let mib = rule.replace("\"10MB\"", "\"1MiB\"");
    let config = read(&format!("{SOURCE}{mib}{TARGET}")).unwrap();
    assert_eq!(config.rules[0].slice.cutoff, Some(1 << 20));
    let skip = rule.replace("mirror", "skip");
    let error = read(&format!("{SOURCE}{skip}{TARGET}")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a rule that skips copies nothing"),
        "{error}"
    );
    // What changes nothing is no contradiction.
    let skip = "[[rule]]\naction = \"skip\"\nsnaplen = 0\n";
    assert!(read(&format!("{SOURCE}{skip}{TARGET}")).is_ok());
}

#[test]
fn everything_is_read() {
    let config = read(GOOD).unwrap();
    assert_eq!(config.default_action, Some(Action::Skip));
    assert_eq!(config.control_socket, Path::new("/tmp/xtee.sock"));

    let tap = &config.sources[0];
    assert_eq!(tap.name(), "tap:eth0");
    assert_eq!(tap.cpus, [3]);
    assert!(tap.allow_credential_endpoints && !tap.allow_link_reset);
    let SourceKind::Tap(settings) = &tap.kind else {
        panic!("not a tap: {tap:?}");
    };
    assert_eq!(settings.attach, AttachChoice::Clsact);
    assert_eq!(settings.ring_size, 8 << 20);

    let span = &config.sources[1];
    assert_eq!(span.workers, Some(2));
    assert!(span.allow_link_reset);
    let SourceKind::Span(settings) = &span.kind else {
        panic!("not a span: {span:?}");
    };
    assert_eq!(settings.mode, ModeChoice::Native);
    assert_eq!(settings.zero_copy, ZeroCopy::Require);
    assert!(!settings.busy_poll);
    assert_eq!(settings.frames, 2048);

    let rule = &config.rules[0];
    assert_eq!(rule.action, Action::Mirror);
    assert_eq!(rule.direction, Some(Direction::Out));
    assert_eq!(rule.protocol, Some(Protocols::one(6)));
    assert_eq!(rule.ports, [443..=443, 8000..=8100]);
    assert_eq!(rule.source_ports, [0..=65535]);
    assert_eq!(rule.destination_ports, [53..=53]);
    assert_eq!(rule.networks[0].to_string(), "198.51.100.0/24");
    assert_eq!(rule.networks[1].to_string(), "2001:db8::1/128");
    assert_eq!(rule.mark, Some((1, 0xff)));
    assert!(rule.slice.is_whole());

    let vxlan = &config.targets[0];
    assert_eq!(vxlan.transmit, TransmitChoice::Udp);
    assert_eq!(vxlan.gso, GsoChoice::On);
    assert_eq!(vxlan.source_ports, 128);
    assert_eq!(vxlan.source, Some("198.51.100.9".parse().unwrap()));
    assert_eq!(vxlan.device.as_deref(), Some("eth2"));
    assert_eq!(vxlan.distribution, Distribution::Hash);
    assert_eq!(vxlan.health, HealthCheck::None);
    assert_eq!(vxlan.limit.bits(), None);
    assert_eq!(vxlan.limit_packets, Some(1_500_000));
    let marks = (vxlan.dscp, vxlan.priority, vxlan.ttl);
    assert_eq!(marks, (Some(8), Some(3), Some(255)));
    let gre = &config.targets[1];
    assert_eq!(gre.host, Host::Name("ndr.example.net".to_owned()));
    let sequenced = Tunnel::Gre {
        key: Some(9),
        sequence: true,
        inner: Inner::Ethernet,
    };
    assert_eq!(gre.encapsulation, sequenced);
    assert_eq!(gre.transmit, TransmitChoice::Raw);
    assert_eq!(gre.name(), "gre://ndr.example.net?key=9&seq=on");
    assert_eq!(gre.health, HealthCheck::Neighbour);
    assert_eq!(gre.limit, LimitChoice::Rate(2_500_000_000));
    assert_eq!(gre.limit_packets, None);
    assert_eq!((gre.dscp, gre.priority, gre.ttl), (Some(46), None, Some(1)));

    let breaker = Breaker {
        budget: Some(5_000_000_000),
        budget_packets: Some(900_000),
        load: Some(875),
        allowances: false,
    };
    assert_eq!(config.breaker, breaker);
}

#[test]
fn defaults_are_filled_in() {
    let config = read(&format!("{SOURCE}{SPAN}{TARGET}")).unwrap();
    assert_eq!(config.default_action(), Action::Mirror);
    assert_eq!(config.control_socket, Path::new("/run/xtee/xtee.sock"));
    let SourceKind::Tap(tap) = &config.sources[0].kind else {
        panic!("not a tap");
    };
    assert_eq!((tap.attach, tap.ring_size), (AttachChoice::Auto, 16 << 20));
    let SourceKind::Span(span) = &config.sources[1].kind else {
        panic!("not a span");
    };
    assert_eq!(
        (span.mode, span.zero_copy),
        (ModeChoice::Auto, ZeroCopy::Prefer)
    );
    assert!(span.busy_poll);
    assert_eq!(config.targets[0].source_ports, 64);
    assert_eq!(config.targets[0].name(), "vxlan://203.0.113.2:4789?vni=7");
    let target = &config.targets[0];
    assert_eq!(target.distribution, Distribution::All);
    assert_eq!(target.health, HealthCheck::Neighbour);
    assert_eq!(target.limit, LimitChoice::Default);
    assert_eq!(target.limit.bits(), Some(1_000_000_000));
    assert_eq!(target.limit_packets, None);
    assert_eq!(config.breaker, Breaker::default());
    assert!(config.breaker.allowances);
    let rule = "[[rule]]\naction = \"mirror\"\n";
    let config = read(&format!("{SOURCE}{rule}{TARGET}")).unwrap();
    assert_eq!(config.default_action(), Action::Skip);
}

#[test]
fn marks_and_protocols_are_read_in_every_spelling() {
    let rule = |line: &str| {
        let text = format!("{SOURCE}[[rule]]\naction = \"mirror\"\n{line}\n{TARGET}");
        read(&text).unwrap().rules.remove(0)
    };
    for (line, mark) in [
        ("mark = 7", (7, u32::MAX)),
        ("mark = \"7\"", (7, u32::MAX)),
        ("mark = \"0xFF\"", (0xff, u32::MAX)),
        ("mark = \"0/1\"", (0, 1)),
        ("mark = \"16/0xf0\"", (16, 0xf0)),
        ("mark = 0xffffffff", (u32::MAX, u32::MAX)),
    ] {
        assert_eq!(rule(line).mark, Some(mark), "{line}");
    }
    for (line, set) in [
        ("protocol = \"icmp\"", Protocols::icmp()),
        ("protocol = \"icmpv6\"", Protocols::one(58)),
        ("protocol = 1", Protocols::one(1)),
        ("protocol = \"255\"", Protocols::one(255)),
        ("protocol = \"sctp\"", Protocols::one(132)),
        ("protocol = \"gre\"", Protocols::one(47)),
        ("protocol = \"esp\"", Protocols::one(50)),
        ("protocol = \"udp\"", Protocols::one(17)),
    ] {
        assert_eq!(rule(line).protocol, Some(set), "{line}");
    }
}

#[test]
fn shipped_files_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut loaded = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            load(&path).unwrap_or_else(|error| panic!("{error}"));
            loaded += 1;
        }
    }
    assert!(loaded >= 2, "only {loaded} files in {}", folder.display());
}

/// The example shows every key; taking the comment sign off each of them must still load.
#[test]
fn commented_keys_of_the_example_are_real() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/xtee.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let is_setting = |line: &str| {
        let name = line.split('=').next().unwrap_or_default().trim();
        let table = line.starts_with('[');
        let key = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        table || (key && line.contains('='))
    };
    let mut shown = 0;
    let bare: Vec<&str> = text
        .lines()
        // One worker a CPU is what `cpus` says already.
        .filter(|line| !line.starts_with("# workers"))
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_setting(rest) => {
                shown += 1;
                rest
            }
            _ => line,
        })
        .collect();
    assert!(shown > 15, "only {shown} commented settings");
    parse(&path, &bare.join("\n")).unwrap_or_else(|error| panic!("{error}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// Cut, doubled, overwritten: whatever becomes of a file, it is read or refused with one error
    /// that names a line of it.
    #[test]
    fn mutated_files_never_panic(
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0usize..24, 0u8..4, "[ -~\\n]{0,6}|[\"\\[\\]=#.,{}'0-9\\-]{1,4}|\u{e9}|\u{0}"),
            1..5,
        ),
    ) {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (index, length, what, new) in edits {
            let at = index.index(text.len().max(1)).min(text.len());
            let end = (at + length).min(text.len());
            match what {
                0 => drop(text.drain(at..end)),
                1 => drop(text.splice(at..at, new.chars())),
                2 => drop(text.splice(at..end, new.chars())),
                _ => {
                    let copy = text[at..end].to_vec();
                    drop(text.splice(end..end, copy));
                }
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = read(&text) {
            let line = match &error.place {
                Place::File { line, .. } => line.unwrap_or(0),
                Place::Arguments => 0,
            };
            prop_assert!(line >= 1 && line <= text.split('\n').count(), "{}", error);
            prop_assert!(!error.wrong.is_empty(), "{}", error);
        }
    }
}
