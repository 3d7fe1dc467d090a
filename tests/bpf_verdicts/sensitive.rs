//! Cloud endpoints that carry credentials are never copied, unless that is asked for.

use xtee::packet::Direction;
use xtee::reason::Reason;

use crate::bpf_run::{dropped, SteerBench, TapBench, XDP_PASS};
use crate::packets::{tcp4, tcp6, udp4, V4};
use crate::require_root;

const A: &str = "198.51.100.1";
const A6: &str = "2001:db8::1";

fn endpoints() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for address in [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "168.63.129.16",
    ] {
        frames.push(tcp4(A, 40000, address, 80));
        frames.push(tcp4(address, 80, A, 40000));
        frames.push(udp4(A, 40000, address, 53, b""));
        frames.push(V4::new(A, address, 1).frame(&[8; 8]));
        frames.push(
            V4 {
                offset: 4,
                ..V4::new(address, A, 6)
            }
            .frame(&[8; 8]),
        );
    }
    frames.push(tcp6(A6, 40000, "fd00:ec2::254", 80));
    frames.push(tcp6("fd00:ec2::254", 80, A6, 40000));
    frames
}

fn neighbours() -> Vec<Vec<u8>> {
    let four = [
        "169.254.169.253",
        "169.254.169.255",
        "169.254.170.1",
        "169.254.170.22",
        "168.63.129.17",
        "254.169.254.169",
    ];
    let six = [
        "fd00:ec2::253",
        "fd00:ec2:1::254",
        "fd00:ec2:0:0:1::254",
        "fd00:ec3::254",
    ];
    let four = four
        .iter()
        .flat_map(|address| [tcp4(A, 1, address, 80), tcp4(address, 80, A, 1)]);
    let six = six
        .iter()
        .flat_map(|address| [tcp6(A6, 1, address, 80), tcp6(address, 80, A6, 1)]);
    four.chain(six).collect()
}

#[test]
fn credentials_are_dropped_from_the_mirror_and_counted() {
    require_root!();
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::new(0));
    tap.rules(&[], None);
    steer.rules(&[], None);
    for frame in endpoints() {
        for direction in [Direction::In, Direction::Out] {
            let seen = tap.run(direction, &frame);
            assert!(seen.copy.is_none(), "{frame:02x?}");
            assert_eq!(
                (seen.added.matched, seen.dropped(Reason::Sensitive)),
                (1, 1)
            );
        }
        let (output, added) = steer.run(&frame);
        assert_eq!(output.verdict, XDP_PASS);
        assert_eq!((added.matched, dropped(&added, Reason::Sensitive)), (1, 1));
    }
    for frame in neighbours() {
        assert!(
            tap.run(Direction::Out, &frame).copy.is_some(),
            "{frame:02x?}"
        );
        let (_, added) = steer.run(&frame);
        assert_eq!(dropped(&added, Reason::Sensitive), 0);
    }
}

#[test]
fn the_switch_lets_them_through_and_back() {
    require_root!();
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::new(0));
    for allow in [true, false, true] {
        tap.rules_and_switch(&[], None, allow);
        steer.rules_and_switch(&[], None, allow);
        for frame in endpoints() {
            assert_eq!(tap.run(Direction::In, &frame).copy.is_some(), allow);
            let (_, added) = steer.run(&frame);
            assert_eq!(dropped(&added, Reason::Sensitive), u64::from(!allow));
            assert_eq!(dropped(&added, Reason::NoSocket), u64::from(allow));
        }
    }
}

/// What no rule asked for is unmatched, not dropped.
#[test]
fn what_is_not_matched_is_not_counted_as_sensitive() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[crate::skip()], None);
    for frame in endpoints() {
        let seen = tap.run(Direction::In, &frame);
        assert_eq!(
            (seen.added.unmatched, seen.dropped(Reason::Sensitive)),
            (1, 0)
        );
    }
}
