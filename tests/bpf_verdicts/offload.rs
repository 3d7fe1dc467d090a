//! Super-packets as `__sk_buff` tells them: counted in packets on the wire.
//!
//! BPF_PROG_TEST_RUN sets a size but no kind, so the kind is not known here; `live` has the kinds.

use xtee::packet::{wire_packets, Direction, Gso};
use xtee::reason::Reason;

use crate::bpf_run::{Context, TapBench};
use crate::packets::{frame6, tagged, tcp, udp, Extension, IPV4, TCP, UDP, V4};
use crate::require_root;
use crate::{mirror, skip, Narrow};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";

fn segments(tap: &mut TapBench, frame: &[u8], gso_size: u32, gso_segs: u32) -> u16 {
    let context = Context {
        gso_size,
        gso_segs,
        ..Context::default()
    };
    let seen = tap.run_with(Direction::Out, frame, context);
    let copy = seen.copy.expect("copied");
    let meta = copy.meta;
    assert_eq!(copy.bytes, frame);
    assert_eq!(meta.wire_length as usize, frame.len());
    assert_eq!(u32::from(meta.gso_size), gso_size);
    assert_eq!(
        meta.gso,
        if gso_size == 0 {
            Gso::None
        } else {
            Gso::Unknown
        }
    );
    // The worker cuts it into as many.
    assert_eq!(
        wire_packets(&meta, frame),
        Some(u32::from(meta.segments)),
        "{meta:?}"
    );
    // All counters are in this unit.
    let added = seen.added;
    let packets = u64::from(meta.segments);
    assert_eq!(
        (added.seen, added.matched, added.captured),
        (packets, packets, packets)
    );
    meta.segments
}

#[test]
fn segments_are_the_payload_over_the_size() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let payload = |length: usize| vec![0u8; length];
    for (length, size, expected) in [
        (1, 100, 1),
        (100, 100, 1),
        (101, 100, 2),
        (3000, 1000, 3),
        (3001, 1000, 4),
        (3000, 1, 3000),
    ] {
        let tcp_payload = tcp(1, 2, &payload(length));
        let frames = [
            V4::new(A, B, TCP).frame(&tcp_payload),
            V4 {
                options: 3,
                ..V4::new(A, B, TCP)
            }
            .frame(&tcp_payload),
            tagged(
                &[(0x8100, 7)],
                IPV4,
                &V4::new(A, B, TCP).packet(&tcp_payload),
            ),
            frame6("2001:db8::1", "2001:db8::2", &[], TCP, &tcp_payload),
            frame6(
                "2001:db8::1",
                "2001:db8::2",
                &[Extension::plain(60, 1)],
                TCP,
                &tcp_payload,
            ),
            V4::new(A, B, UDP).frame(&udp(1, 2, &payload(length))),
            frame6(
                "2001:db8::1",
                "2001:db8::2",
                &[],
                UDP,
                &udp(1, 2, &payload(length)),
            ),
        ];
        for frame in frames {
            assert_eq!(
                segments(&mut tap, &frame, size, 0),
                expected,
                "{length} bytes by {size}"
            );
        }
    }
}

/// A TCP header with options is longer; the kernel's own number is often not set, and not asked.
#[test]
fn tcp_options_are_not_payload() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let mut segment = tcp(1, 2, &[0; 1012]);
    segment[12] = 0x80;
    let frame = V4::new(A, B, TCP).frame(&segment);
    assert_eq!(segments(&mut tap, &frame, 100, 0), 10);
    assert_eq!(
        segments(&mut tap, &frame, 100, 11),
        10,
        "headers count, not a stale number"
    );
}

#[test]
fn what_is_no_super_packet_is_one_packet() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let frame = V4::new(A, B, TCP).frame(&tcp(1, 2, &[0; 1000]));
    assert_eq!(segments(&mut tap, &frame, 0, 0), 1);
    assert_eq!(segments(&mut tap, &frame, 0, 5), 1);
}

/// Skipped and dropped super-packets count as their segments, too.
#[test]
fn every_counter_is_in_packets_on_the_wire() {
    require_root!();
    let mut tap = TapBench::with_rings(1, 4096);
    tap.rules(&[skip().port(22), mirror()], None);
    let context = Context {
        gso_size: 100,
        ..Context::default()
    };
    let mut run = |destination, port| {
        let frame = V4::new(A, destination, TCP).frame(&tcp(40000, port, &[0; 1000]));
        tap.run_with(Direction::In, &frame, context)
    };
    let skipped = run(B, 22);
    assert_eq!(
        (skipped.added.seen, skipped.added.unmatched, skipped.rule),
        (10, 10, Some(Some(0)))
    );
    let sensitive = run("169.254.169.254", 80);
    assert_eq!(
        (
            sensitive.added.matched,
            sensitive.dropped(Reason::Sensitive)
        ),
        (10, 10)
    );
    let copied = run(B, 443);
    assert_eq!((copied.added.captured, copied.rule), (10, Some(Some(1))));
    // Longer than what the ring has left: nothing was released yet but by the bench, so ask for more
    // than it has at all.
    let frame = V4::new(A, B, TCP).frame(&tcp(40000, 443, &[0; 3500]));
    let full = tap.run_with(Direction::In, &frame, context);
    assert_eq!((full.added.matched, full.dropped(Reason::Ring)), (35, 35));
}
