//! Fragments of one datagram get one verdict, wherever the ports and the protocol stand.

use xtee::mirror::rules::Action;
use xtee::packet::flow::hash_frame;
use xtee::packet::Direction;

use crate::bpf_run::{SteerBench, TapBench, XDP_PASS};
use crate::packets::{frame6, udp, Extension, TCP, UDP, V4};
use crate::require_root;
use crate::{mirror, skip, Narrow};

fn four(identification: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let header = V4 {
        identification,
        offset,
        more,
        ..V4::new("198.51.100.1", "198.51.100.2", UDP)
    };
    header.frame(payload)
}

/// The first fragment's header chain goes on behind the fragment header; a later one names only `next`.
fn six(
    identification: u32,
    offset: u16,
    behind: &[Extension],
    next: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut extensions = vec![Extension::fragment(identification, offset, offset == 0)];
    extensions.extend_from_slice(behind);
    frame6("2001:db8::1", "2001:db8::2", &extensions, next, payload)
}

#[test]
fn later_fragments_follow_the_first() {
    require_root!();
    let mut tap = TapBench::new();
    for (action, rules) in [
        (Action::Mirror, [mirror().protocol(17).port(53), skip()]),
        (Action::Skip, [skip().protocol(17).port(53), mirror()]),
    ] {
        tap.rules(&rules, None);
        let first = udp(40000, 53, &[1; 24]);
        let options = [Extension::plain(60, 0)];
        for direction in [Direction::In, Direction::Out] {
            let datagrams = [
                [
                    four(1, 0, true, &first),
                    four(1, 4, true, &[2; 32]),
                    four(1, 8, false, &[3; 9]),
                ],
                [
                    six(1, 0, &[], UDP, &first),
                    six(1, 4, &[], UDP, &[2; 32]),
                    six(1, 8, &[], UDP, &[3; 9]),
                ],
                [
                    six(2, 0, &options, UDP, &first),
                    six(2, 5, &[], 60, &[2; 32]),
                    six(2, 9, &[], 60, &[3; 9]),
                ],
            ];
            for datagram in datagrams {
                let hash = hash_frame(&datagram[0]);
                for frame in datagram {
                    let seen = tap.run(direction, &frame);
                    assert_eq!(seen.rule, Some(Some(0)));
                    assert_eq!(seen.copy.is_some(), action == Action::Mirror);
                    assert_eq!(seen.added.unknown_fragments, 0);
                    // Also where only the first says the protocol: the datagram stays in one ring.
                    if let Some(copy) = seen.copy {
                        assert_eq!(copy.meta.flow_hash, hash);
                    }
                }
            }
        }
    }
}

#[test]
fn datagrams_are_told_apart() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[mirror().port(53), skip().port(54), mirror()], None);
    tap.run(Direction::In, &four(7, 0, true, &udp(1, 53, &[0; 24])));
    tap.run(Direction::In, &four(8, 0, true, &udp(1, 54, &[0; 24])));
    tap.run(Direction::In, &six(7, 0, &[], UDP, &udp(1, 54, &[0; 24])));
    let rule = |tap: &mut TapBench, frame: Vec<u8>| tap.run(Direction::In, &frame).rule;
    assert_eq!(rule(&mut tap, four(7, 4, false, &[0; 8])), Some(Some(0)));
    assert_eq!(rule(&mut tap, four(8, 4, false, &[0; 8])), Some(Some(1)));
    assert_eq!(rule(&mut tap, six(7, 4, &[], UDP, &[0; 8])), Some(Some(1)));
    // Another protocol, or the other way round, with the same identification.
    let other = V4 {
        identification: 8,
        offset: 4,
        ..V4::new("198.51.100.1", "198.51.100.2", TCP)
    };
    let seen = tap.run(Direction::In, &other.frame(&[0; 8]));
    assert_eq!(
        (seen.rule, seen.added.unknown_fragments),
        (Some(Some(0)), 1)
    );
    for (source, destination) in [
        ("198.51.100.2", "198.51.100.1"),
        ("198.51.100.3", "198.51.100.2"),
        ("198.51.100.1", "198.51.100.3"),
    ] {
        let stranger = V4 {
            identification: 8,
            offset: 4,
            ..V4::new(source, destination, UDP)
        };
        let seen = tap.run(Direction::In, &stranger.frame(&[0; 8]));
        assert_eq!(seen.added.unknown_fragments, 1);
    }
}

/// An identification that is used again belongs to the newer datagram.
#[test]
fn a_new_first_fragment_replaces_the_old() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[mirror().port(53)], None);
    for (port, rule) in [(53, Some(0)), (54, None), (53, Some(0))] {
        tap.run(Direction::In, &four(9, 0, true, &udp(1, port, &[0; 24])));
        let seen = tap.run(Direction::In, &four(9, 4, false, &[0; 8]));
        assert_eq!((seen.rule, seen.added.unknown_fragments), (Some(rule), 0));
    }
}

#[test]
fn a_later_fragment_that_comes_first_is_copied_and_counted() {
    require_root!();
    let mut tap = TapBench::new();
    let mut steer = SteerBench::new(0);
    let port = || mirror().port(53);
    for (number, (rules, default, rule, mirrored, counted)) in [
        (vec![port()], None, Some(0), true, true),
        (vec![skip().port(53)], None, None, false, false),
        (
            vec![skip().port(53)],
            Some(Action::Mirror),
            None,
            true,
            true,
        ),
        (vec![skip().port(53), mirror()], None, Some(1), true, true),
        (
            vec![skip().port(53), port(), skip()],
            None,
            Some(1),
            true,
            true,
        ),
        (vec![skip(), port()], None, Some(0), false, false),
        (vec![mirror(), port()], None, Some(0), true, false),
        (
            vec![skip().protocol(6), port().protocol(6)],
            None,
            None,
            false,
            false,
        ),
        (
            vec![port().network("203.0.113.0/24")],
            None,
            None,
            false,
            false,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        tap.rules(&rules, default);
        let number = number as u16;
        for frame in [
            four(100 + number, 4, true, &[0; 8]),
            six(100 + u32::from(number), 4, &[], UDP, &[0; 8]),
        ] {
            let seen = tap.run(Direction::In, &frame);
            assert_eq!(seen.rule, Some(rule), "{rules:?}");
            assert_eq!(seen.copy.is_some(), mirrored, "{rules:?}");
            assert_eq!(
                seen.added.unknown_fragments,
                u64::from(counted),
                "{rules:?}"
            );
        }
        steer.rules(&rules, default);
        let (output, added) = steer.run(&four(100 + number, 4, true, &[0; 8]));
        assert_eq!(output.verdict, XDP_PASS, "no socket");
        assert_eq!(
            (added.matched, added.unknown_fragments),
            (u64::from(mirrored), u64::from(counted))
        );
    }
}

/// Protocols without ports need no first fragment.
#[test]
fn fragments_without_ports() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[mirror().port(53), mirror().icmp()], None);
    let icmp = V4 {
        offset: 4,
        ..V4::new("198.51.100.1", "198.51.100.2", 1)
    };
    let seen = tap.run(Direction::In, &icmp.frame(&[0; 8]));
    assert_eq!(
        (seen.rule, seen.added.unknown_fragments),
        (Some(Some(1)), 0)
    );
}

/// A first fragment too short for its ports: the rest of the datagram gets its verdict.
#[test]
fn tiny_first_fragments() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[mirror().port(53), mirror().protocol(17)], None);
    tap.run(Direction::In, &four(200, 0, true, &[0; 2]));
    let seen = tap.run(Direction::In, &four(200, 1, false, &[0; 8]));
    assert_eq!(
        (seen.rule, seen.added.unknown_fragments),
        (Some(Some(1)), 0)
    );
}
