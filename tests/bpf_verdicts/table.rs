//! Packets of every kind against rules of every field: which rule takes them, and the record whole.

use std::time::Duration;

use xtee::mirror::rules::{Action, Rule};
use xtee::packet::flow::hash_frame;
use xtee::packet::{Checksum, Direction, Gso};

use crate::bpf_run::{counted_rule, facts, reference, Copy, SteerBench, TapBench};
use crate::packets::{
    ethernet, frame6, ipv6, tagged, tcp, tcp4, tcp6, udp, udp4, Extension, IPV4, IPV6, TCP, UDP, V4,
};
use crate::require_root;
use crate::{mirror, skip, Narrow};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
const A6: &str = "2001:db8::1";
const B6: &str = "2001:db8::2";

/// A packet, the rules it meets, and which of them takes it (`None`: the default action).
pub struct Case {
    name: &'static str,
    rules: Vec<Rule>,
    default: Option<Action>,
    frame: Vec<u8>,
    direction: Direction,
    rule: Option<u8>,
    action: Action,
}

/// Mirrored by this rule (`Some`) or the default action.
pub fn copied(
    name: &'static str,
    rules: Vec<Rule>,
    frame: Vec<u8>,
    rule: impl Into<Option<u8>>,
) -> Case {
    let rule = rule.into();
    Case {
        name,
        rules,
        default: None,
        frame,
        direction: Direction::In,
        rule,
        action: Action::Mirror,
    }
}

/// Skipped by this rule or the default action.
pub fn skipped(
    name: &'static str,
    rules: Vec<Rule>,
    frame: Vec<u8>,
    rule: impl Into<Option<u8>>,
) -> Case {
    Case {
        action: Action::Skip,
        ..copied(name, rules, frame, rule)
    }
}

fn out(case: Case) -> Case {
    Case {
        direction: Direction::Out,
        ..case
    }
}

pub fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    V4::new(A, B, protocol).frame(payload)
}

pub fn v6(extensions: &[Extension], protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame6(A6, B6, extensions, protocol, payload)
}

pub fn dns() -> Vec<u8> {
    udp(40000, 53, b"query")
}

pub fn check(cases: Vec<Case>) {
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::new(0));
    for case in cases {
        tap.rules(&case.rules, case.default);
        let seen = tap.run(case.direction, &case.frame);
        assert_eq!(seen.rule, Some(case.rule), "{}", case.name);
        assert_eq!(
            seen.copy.is_some(),
            case.action == Action::Mirror,
            "{}",
            case.name
        );
        if let Some(copy) = &seen.copy {
            check_record(case.name, &case.frame, copy);
        }
        // The table itself is held to the reference, so that a wrong expectation shows.
        let facts = facts(&case.frame, case.direction, 0);
        let expected = reference(&case.rules, case.default, &facts);
        assert_eq!(
            (expected.rule, expected.action),
            (case.rule, case.action),
            "{}",
            case.name
        );
        if case.direction == Direction::In {
            steer.rules(&case.rules, case.default);
            let (_, added) = steer.run(&case.frame);
            assert_eq!(
                counted_rule(&added),
                Some(case.rule),
                "steer: {}",
                case.name
            );
            assert_eq!(
                added.matched == 1,
                case.action == Action::Mirror,
                "steer: {}",
                case.name
            );
        }
    }
}

/// Direction, rule, generation and number of packets were checked by the bench.
fn check_record(name: &str, frame: &[u8], copy: &Copy) {
    let meta = &copy.meta;
    assert_eq!(copy.bytes, frame, "{name}");
    assert_eq!(meta.wire_length as usize, frame.len(), "{name}");
    assert_eq!(meta.flow_hash, hash_frame(frame), "{name}");
    assert_eq!(
        (meta.gso, meta.gso_size, meta.segments),
        (Gso::None, 0, 1),
        "{name}"
    );
    assert_eq!(meta.vlan, None, "{name}: nothing was stripped");
    assert_eq!(meta.checksum, Checksum::Finished, "{name}");
    let age = monotonic().checked_sub(Duration::from_nanos(meta.timestamp_ns));
    assert!(
        age.is_some_and(|age| age < Duration::from_secs(5)),
        "{name}: {age:?}"
    );
}

fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is the caller's.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[test]
fn protocols() {
    require_root!();
    let by_protocol = |number| vec![skip().protocol(200), mirror().protocol(number)];
    check(vec![
        copied("no rules", vec![], v4(TCP, &tcp(1, 2, b"")), None),
        copied("no rules, ARP", vec![], ethernet(0x0806, &[0; 28]), None),
        copied("TCP", by_protocol(6), tcp4(A, 1, B, 2), 1),
        out(copied("TCP out", by_protocol(6), tcp4(A, 1, B, 2), 1)),
        copied("UDP", by_protocol(17), udp4(A, 1, B, 2, b""), 1),
        copied(
            "ICMP",
            vec![mirror().icmp()],
            v4(1, &[8, 0, 0, 0, 0, 1, 0, 1]),
            0,
        ),
        copied(
            "ICMPv6",
            vec![mirror().icmp()],
            v6(&[], 58, &[128, 0, 0, 0]),
            0,
        ),
        copied("SCTP", by_protocol(132), v4(132, &udp(1, 2, b"")), 1),
        copied("DCCP", by_protocol(33), v4(33, &udp(1, 2, b"")), 1),
        copied("UDP-Lite", by_protocol(136), v4(136, &udp(1, 2, b"")), 1),
        copied("GRE", by_protocol(47), v4(47, &[0; 8]), 1),
        copied("ESP", by_protocol(50), v4(50, &[0; 16]), 1),
        copied(
            "AH in IPv4 is a protocol",
            by_protocol(51),
            v4(51, &[6; 24]),
            1,
        ),
        copied("protocol 0 in IPv4", by_protocol(0), v4(0, &[0; 8]), 1),
        copied("protocol 255", by_protocol(255), v4(255, &[0; 8]), 1),
        copied("TCP over IPv6", by_protocol(6), tcp6(A6, 1, B6, 2), 1),
        copied(
            "ESP in IPv6 is the upper layer",
            by_protocol(50),
            v6(&[], 50, &[6; 16]),
            1,
        ),
        skipped("no rule", by_protocol(6), udp4(A, 1, B, 2, b""), None),
        skipped(
            "a skip rule first",
            vec![skip().protocol(6), mirror()],
            tcp4(A, 1, B, 2),
            0,
        ),
        skipped(
            "ARP has no protocol",
            vec![mirror().protocol(0)],
            ethernet(0x0806, &[0; 28]),
            None,
        ),
        copied(
            "ARP by a rule for all",
            vec![mirror()],
            ethernet(0x0806, &[0; 28]),
            0,
        ),
        copied(
            "LLDP by a rule for all",
            vec![skip().network("0.0.0.0/0"), mirror()],
            ethernet(0x88cc, &[2; 40]),
            1,
        ),
        copied(
            "802.3 length",
            vec![skip().port(0), mirror()],
            ethernet(0x0026, &[0x42; 38]),
            1,
        ),
        Case {
            default: Some(Action::Mirror),
            ..copied(
                "default mirror",
                by_protocol(6),
                udp4(A, 1, B, 2, b""),
                None,
            )
        },
        Case {
            default: Some(Action::Skip),
            ..skipped("default skip, no rules", vec![], tcp4(A, 1, B, 2), None)
        },
    ]);
}

#[test]
fn directions() {
    require_root!();
    let rules = || {
        let mut rules = vec![mirror(), mirror()];
        rules[0].direction = Some(Direction::In);
        rules[1].direction = Some(Direction::Out);
        rules
    };
    check(vec![
        copied("in", rules(), tcp4(A, 1, B, 2), 0),
        out(copied("out", rules(), tcp4(A, 1, B, 2), 1)),
        out(skipped(
            "out, rule for in",
            rules()[..1].to_vec(),
            tcp4(A, 1, B, 2),
            None,
        )),
    ]);
}

#[test]
fn vlan_tags() {
    require_root!();
    let rules = || vec![mirror().port(53)];
    let frame = |tags: &[(u16, u16)]| tagged(tags, IPV4, &V4::new(A, B, UDP).packet(&dns()));
    check(vec![
        copied("802.1Q", rules(), frame(&[(0x8100, 7)]), 0),
        copied("802.1ad", rules(), frame(&[(0x88a8, 7)]), 0),
        copied("QinQ", rules(), frame(&[(0x88a8, 7), (0x8100, 8)]), 0),
        copied(
            "two of 0x8100",
            rules(),
            frame(&[(0x8100, 7), (0x8100, 8)]),
            0,
        ),
        copied("0x9100", rules(), frame(&[(0x9100, 7), (0x8100, 8)]), 0),
        skipped(
            "a third tag is not looked behind",
            rules(),
            frame(&[(0x8100, 1), (0x8100, 2), (0x8100, 3)]),
            None,
        ),
        copied(
            "IPv6 behind two tags",
            rules(),
            {
                tagged(
                    &[(0x88a8, 7), (0x8100, 8)],
                    IPV6,
                    &ipv6(A6, B6, &[], UDP, &dns()),
                )
            },
            0,
        ),
        copied(
            "ARP behind a tag",
            vec![mirror()],
            tagged(&[(0x8100, 7)], 0x0806, &[0; 28]),
            0,
        ),
        skipped(
            "a tag and nothing else",
            rules(),
            tagged(&[(0x8100, 7)], 0x8100, &[]),
            None,
        ),
    ]);
}

#[test]
fn ipv6_extension_headers() {
    require_root!();
    let rules = || vec![mirror().protocol(17).port(53)];
    let chain = |count: usize| v6(&vec![Extension::plain(60, 0); count], UDP, &dns());
    let mut cases: Vec<_> = [
        ("hop-by-hop", 0),
        ("routing", 43),
        ("destination", 60),
        ("mobility", 135),
        ("HIP", 139),
    ]
    .into_iter()
    .chain([("shim6", 140)])
    .flat_map(|(name, number)| [0, 1, 5].map(|units| (name, Extension::plain(number, units))))
    .map(|(name, extension)| copied(name, rules(), v6(&[extension], UDP, &dns()), 0))
    .collect();
    let kinds = [
        Extension::plain(0, 0),
        Extension::plain(60, 1),
        Extension::plain(43, 2),
        Extension::authentication(5),
    ];
    cases.extend([
        copied(
            "AH of 12 bytes",
            rules(),
            v6(&[Extension::authentication(3)], UDP, &dns()),
            0,
        ),
        copied(
            "AH of 28 bytes",
            rules(),
            v6(&[Extension::authentication(7)], UDP, &dns()),
            0,
        ),
        copied("four kinds", rules(), v6(&kinds, UDP, &dns()), 0),
        copied("eight headers", rules(), chain(8), 0),
        skipped("the ninth is the upper layer", rules(), chain(9), None),
        copied(
            "the ninth, by its number",
            vec![mirror().protocol(60)],
            chain(9),
            0,
        ),
        copied(
            "atomic fragment",
            rules(),
            v6(&[Extension::fragment(7, 0, false)], UDP, &dns()),
            0,
        ),
        copied(
            "no next header",
            vec![mirror().protocol(59)],
            v6(&[], 59, &[]),
            0,
        ),
        copied(
            "a header beyond 255 bytes",
            rules(),
            v6(&[Extension::plain(60, 60)], UDP, &dns()),
            0,
        ),
    ]);
    check(cases);
}

/// Both look as far as the packet goes: what does not lie in the first buffer is had by a helper (for XDP
/// from 5.18 on; before, it looks 1024 bytes far).
#[test]
fn headers_far_into_the_packet() {
    require_root!();
    let rules = [mirror().port(53), mirror().protocol(17)];
    let frame = v6(&[Extension::plain(60, 130)], UDP, &dns());
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::new(0));
    tap.rules(&rules, None);
    assert_eq!(tap.run(Direction::In, &frame).rule, Some(Some(0)));
    steer.rules(&rules, None);
    assert_eq!(counted_rule(&steer.run(&frame).1), Some(Some(0)));
}

#[test]
fn malformed_packets() {
    require_root!();
    let rules = || {
        vec![
            mirror().port(53),
            mirror().protocol(17),
            skip().network("0.0.0.0/0"),
            mirror(),
        ]
    };
    let with = |at: usize, value: u8| {
        let mut frame = udp4(A, 40000, B, 53, b"query");
        frame[14 + at] = value;
        frame
    };
    let mut six = v6(&[], UDP, &dns());
    six[14] = 0x40;
    check(vec![
        copied("well formed", rules(), with(0, 0x45), 0),
        copied("version 6 in IPv4 is not IP", rules(), with(0, 0x65), 3),
        copied("version 4 in IPv6 is not IP", rules(), six, 3),
        copied("header length 4 is not IP", rules(), with(0, 0x41), 3),
        copied("header length 0 is not IP", rules(), with(0, 0x40), 3),
        copied(
            "header beyond the packet: no ports",
            rules(),
            with(0, 0x4f),
            1,
        ),
        copied("total length 0", rules(), with(3, 0), 0),
        copied("total length too large", rules(), with(2, 0xff), 0),
        copied("time to live 0", rules(), with(8, 0), 0),
        copied("reserved flag", rules(), with(6, 0x80), 0),
    ]);
}
