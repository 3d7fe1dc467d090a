//! Packets cut at every byte: never a fact from beyond the end, always the reference's verdict.

use xtee::mirror::rules::{Action, Rule};
use xtee::packet::flow::hash_frame;
use xtee::packet::Direction;

use crate::bpf_run::{
    counted_rule, facts, reference, run_tc, run_xdp, Context, SteerBench, TapBench,
};
use crate::packets::{
    ethernet, frame6, gre, ipv6, tagged, tcp, tcp4, udp, udp4, vxlan, Extension, IPV6, TCP, UDP, V4,
};
use crate::require_root;
use crate::{mirror, skip, Narrow};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";

/// BPF_PROG_TEST_RUN takes no frame shorter than its Ethernet header, and no driver delivers one.
const SHORTEST: usize = 14;

/// The shortest cut that BPF_PROG_TEST_RUN takes: with an IP ethertype, the header must be whole. (`live`
/// has the others.) Behind a VLAN tag it does not look.
fn shortest(frame: &[u8]) -> usize {
    match frame[12..14] {
        [0x08, 0x00] => SHORTEST + 20,
        [0x86, 0xdd] => SHORTEST + 40,
        _ => SHORTEST,
    }
}

/// A rule for each fact, the one that reads furthest first.
fn rules() -> Vec<Rule> {
    vec![
        mirror().port(53),
        skip().port(443),
        mirror().port(0),
        skip().protocol(6),
        mirror().protocol(17),
        mirror().protocol(60),
        mirror().network("198.51.100.0/24"),
        mirror().network("2001:db8::/32"),
    ]
}

fn frames() -> Vec<Vec<u8>> {
    let options = [
        Extension::plain(0, 0),
        Extension::authentication(5),
        Extension::plain(60, 2),
    ];
    let fragment = [Extension::plain(43, 0), Extension::fragment(1, 0, true)];
    let later = V4 {
        offset: 4,
        ..V4::new(A, B, UDP)
    };
    let tags = [(0x88a8, 1), (0x8100, 2)];
    let dns = udp(40000, 53, b"query");
    vec![
        tcp4(A, 40000, B, 443),
        udp4(A, 40000, B, 53, b"query"),
        V4 {
            options: 10,
            ..V4::new(A, B, UDP)
        }
        .frame(&dns),
        later.frame(&[0; 16]),
        V4::new(A, B, 1).frame(&[8, 0, 0, 0, 0, 1, 0, 1]),
        V4::new(A, B, 47).frame(&gre(0x2000, 0x6558, &[7], &tcp4(A, 1, B, 2))),
        V4::new(A, B, UDP).frame(&vxlan(61000, 4789, 7, &tcp4(A, 1, B, 2))),
        frame6(
            "2001:db8::1",
            "2001:db8::2",
            &[],
            TCP,
            &tcp(40000, 443, b""),
        ),
        frame6("2001:db8::1", "2001:db8::2", &options, UDP, &dns),
        frame6("2001:db8::1", "2001:db8::2", &fragment, UDP, &dns),
        tagged(
            &tags,
            IPV6,
            &ipv6("2001:db8::1", "2001:db8::2", &[], UDP, &dns),
        ),
        ethernet(0x0806, &[0; 28]),
        ethernet(0x88cc, &[2; 40]),
    ]
}

#[test]
fn cut_at_every_byte_the_verdict_is_the_references() {
    require_root!();
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::new(0));
    let rules = rules();
    tap.rules(&rules, None);
    steer.rules(&rules, None);
    // So that a guess about our own copies is made, too.
    crate::loop_guard::set_some_flows(&tap);
    for whole in frames() {
        // The longest first: what it leaves in memory must not be read for a shorter one.
        for length in (shortest(&whole)..=whole.len()).rev() {
            let frame = &whole[..length];
            for direction in [Direction::In, Direction::Out] {
                let expected = reference(&rules, None, &facts(frame, direction, 0));
                let seen = tap.run(direction, frame);
                assert_eq!(
                    seen.rule,
                    Some(expected.rule),
                    "{length} bytes of {whole:02x?}"
                );
                let mirrored = expected.action == Action::Mirror;
                assert_eq!(
                    seen.copy.is_some(),
                    mirrored,
                    "{length} bytes of {whole:02x?}"
                );
                if let Some(copy) = seen.copy {
                    assert_eq!(copy.bytes, frame);
                    assert_eq!(copy.meta.flow_hash, hash_frame(frame));
                    assert_eq!(copy.meta.wire_length as usize, length);
                }
                if direction == Direction::In {
                    let (_, added) = steer.run(frame);
                    assert_eq!(
                        counted_rule(&added),
                        Some(expected.rule),
                        "{length} bytes of {whole:02x?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_no_frame_is_refused_before_the_programs() {
    require_root!();
    let (tap, steer) = (TapBench::new(), SteerBench::new(0));
    for length in 0..SHORTEST {
        let frame = &tcp4(A, 1, B, 2)[..length];
        assert!(run_tc(tap.program(Direction::In), frame, Context::default(), 1).is_err());
        assert!(run_xdp(steer.steer.program().expect("program"), frame, 1).is_err());
    }
    assert_eq!(tap.tap.counters().expect("counters").seen, 0);
}
