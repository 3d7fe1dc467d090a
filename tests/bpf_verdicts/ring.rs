//! The rings: full ones drop and count, flows keep to theirs, order is kept, sleepers are woken.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use xtee::bpf::tap::Tap;
use xtee::packet::Direction;
use xtee::reason::Reason;

use crate::bpf_run::{dropped, run_tc, Context, TapBench, NO_OPINION};
use crate::packets::{tcp4, udp4, UDP, V4};
use crate::require_root;

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";

/// Frames of these lengths are around the borders of the record's size classes.
#[test]
fn every_length_is_copied_whole() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let borders = [80, 128, 256, 512, 1024, 1536, 3072];
    let around = borders.iter().flat_map(|border| border - 1..=border + 1);
    for length in (42..79).chain(around).chain([3500]) {
        let mut frame = udp4(A, 1, B, 2, &[0; 3600]);
        for (at, byte) in frame.iter_mut().enumerate().skip(42) {
            *byte = at as u8;
        }
        frame.truncate(length);
        let copy = tap.run(Direction::In, &frame).copy.expect("copied");
        assert_eq!(copy.bytes, frame, "{length}");
    }
}

#[test]
fn a_full_ring_drops_and_counts_and_goes_on() {
    require_root!();
    let mut tap = TapBench::with_rings(1, 4096);
    tap.rules(&[], None);
    let frame = udp4(A, 1, B, 2, &[7; 1000]);
    for round in 0..3 {
        for _ in 0..10 {
            let program = tap.program(Direction::In);
            let output = run_tc(program, &frame, Context::default(), 1).expect("run");
            assert_eq!(output.verdict, NO_OPINION, "the original goes its way");
        }
        let added = tap.added();
        let lost = dropped(&added, Reason::Ring);
        assert_eq!((added.seen, added.matched), (10, 10));
        assert_eq!(added.captured + lost, 10);
        assert!(
            added.captured >= 2 && lost >= 5,
            "round {round}: {lost} lost"
        );
        let copies = tap.copies();
        assert_eq!(copies.len() as u64, added.captured);
        assert!(copies.iter().all(|copy| copy.bytes == frame));
    }
}

#[test]
fn records_come_in_order() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    for number in 0..200u16 {
        let frame = udp4(A, 1, B, 2, &vec![number as u8; usize::from(number) * 7]);
        let direction = if number % 3 == 0 {
            Direction::Out
        } else {
            Direction::In
        };
        let output = run_tc(tap.program(direction), &frame, Context::default(), 1).expect("run");
        assert_eq!(output.verdict, NO_OPINION);
    }
    let copies = tap.copies();
    assert_eq!(copies.len(), 200);
    for (number, copy) in copies.iter().enumerate() {
        assert_eq!(copy.bytes.len(), 42 + number * 7);
    }
    let ordered =
        |pair: &[crate::bpf_run::Copy]| pair[0].meta.timestamp_ns <= pair[1].meta.timestamp_ns;
    assert!(copies.windows(2).all(ordered));
}

/// Both directions of a flow, and all its fragments, share a ring; flows spread over the rings.
#[test]
fn a_flow_has_one_ring() {
    require_root!();
    for rings in [2, 3, 4] {
        let mut tap = TapBench::with_rings(rings, 1 << 18);
        tap.rules(&[], None);
        let mut used: HashMap<usize, usize> = HashMap::new();
        for port in 1000..1200 {
            let part = |source: &str, destination: &str, offset| {
                let header = V4 {
                    offset,
                    more: true,
                    identification: port,
                    ..V4::new(source, destination, UDP)
                };
                header.frame(&[0; 8])
            };
            for frames in [
                [tcp4(A, port, B, 443), tcp4(B, 443, A, port)],
                [udp4(A, port, B, 53, b""), udp4(B, 53, A, port, b"")],
                [part(A, B, 0), part(A, B, 1)],
            ] {
                for (frame, direction) in frames.iter().zip([Direction::Out, Direction::In]) {
                    run_tc(tap.program(direction), frame, Context::default(), 1).expect("run");
                }
                let counts: Vec<_> = (0..rings).map(|ring| tap.copies_of(ring).len()).collect();
                let ring = counts.iter().position(|&count| count == 2);
                let ring = ring.unwrap_or_else(|| panic!("both in one ring: {counts:?}"));
                assert_eq!(counts.iter().sum::<usize>(), 2);
                *used.entry(ring).or_default() += 1;
            }
        }
        assert_eq!(tap.added().captured, 1200);
        // 400 flows and one pair of hosts whose fragments are all of one flow.
        assert_eq!(used.len(), rings);
        assert!(
            used.values().all(|&flows| flows > 400 / rings / 2),
            "{used:?}"
        );
    }
}

/// The program takes the sleep flag back when it wakes the poller, and leaves an awake one alone.
#[test]
fn a_sleeper_is_woken_once() {
    require_root!();
    let mut tap = TapBench::with_rings(2, 1 << 16);
    tap.rules(&[], None);
    let sleepers = tap.tap.sleepers().expect("flags");
    let descriptors = [0, 1].map(|ring| tap.tap.ring(ring).expect("ring"));
    let readable = |ring: usize| {
        use std::os::fd::AsRawFd;
        let fd = descriptors[ring].as_raw_fd();
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, and it says so.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    };
    let flag = |ring: usize| sleepers.word(ring * Tap::SLEEPER_SIZE).expect("a flag");
    flag(0).store(1, Ordering::SeqCst);
    flag(1).store(1, Ordering::SeqCst);
    let frame = tcp4(A, 1, B, 2);
    tap.run(Direction::In, &frame);
    let asleep = [0, 1].map(|ring| flag(ring).load(Ordering::SeqCst));
    assert_eq!(asleep.iter().sum::<u32>(), 1, "one was woken: {asleep:?}");
    let woken = asleep.iter().position(|&flag| flag == 0).expect("one");
    tap.run(Direction::In, &frame);
    assert_eq!(flag(woken).load(Ordering::SeqCst), 0);
    assert_eq!(
        flag(1 - woken).load(Ordering::SeqCst),
        1,
        "its ring is empty"
    );
    assert!(!readable(1 - woken));
}
