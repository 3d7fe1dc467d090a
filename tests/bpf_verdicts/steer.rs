//! The steering program's own verdicts: to the socket with room in front, or to the kernel untouched.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use xtee::reason::Reason;
use xtee::xsk::RxPort;

use crate::bpf_run::{counted_rule, dropped, SteerBench, XDP_PASS, XDP_REDIRECT};
use crate::common::raw_socket::RawSocket;
use crate::lab::{assert_all_home, config, receive, umem, Lab};
use crate::packets::{ethernet, tcp4, udp4};
use crate::require_root;
use crate::{mirror, Narrow};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";
/// The least headroom that any driver gives an XDP program (XDP_PACKET_HEADROOM), less what the
/// kernel keeps there of it.
const MOST_ROOM: u32 = 200;

fn set_socket(bench: &SteerBench, port: &RxPort) {
    // SAFETY: the port is alive for as long as this borrow, and it owns the descriptor.
    let socket = unsafe { BorrowedFd::borrow_raw(port.as_raw_fd()) };
    bench.steer.set_socket(0, socket).expect("XSKMAP");
}

#[test]
fn without_a_socket_all_is_the_kernels() {
    require_root!();
    let mut bench = SteerBench::new(64);
    bench.rules(&[mirror().protocol(6)], None);
    let (output, added) = bench.run(&tcp4(A, 1, B, 2));
    assert_eq!(output.verdict, XDP_PASS);
    assert_eq!((added.matched, dropped(&added, Reason::NoSocket)), (1, 1));
    let (output, added) = bench.run(&udp4(A, 1, B, 2, b""));
    assert_eq!((output.verdict, added.unmatched), (XDP_PASS, 1));
}

#[test]
fn matched_frames_are_redirected_with_room() {
    require_root!();
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 256);
    let mut pool = umem.pool(0).expect("pool");
    let port = RxPort::open(&umem, &config("a0", 0), &mut pool, 64).expect("a0");
    let matched = tcp4(A, 1, B, 2);
    for room in [0, 14, 50, MOST_ROOM] {
        let mut bench = SteerBench::new(room);
        bench.rules(&[mirror().protocol(6)], None);
        set_socket(&bench, &port);
        let (output, added) = bench.run(&matched);
        assert_eq!(
            (output.verdict, added.matched),
            (XDP_REDIRECT, 1),
            "room {room}"
        );
        assert_eq!(output.bytes.len(), matched.len() + room as usize);
        assert_eq!(&output.bytes[room as usize..], matched);
        for frame in [udp4(A, 1, B, 2, b""), ethernet(0x0806, &[0; 28])] {
            let (output, added) = bench.run(&frame);
            assert_eq!((output.verdict, added.unmatched), (XDP_PASS, 1));
        }
        let (output, added) = bench.run(&tcp4(A, 1, "169.254.169.254", 80));
        assert_eq!(
            (output.verdict, dropped(&added, Reason::Sensitive)),
            (XDP_PASS, 1)
        );
        bench.steer.clear_socket(0);
        bench.steer.clear_socket(0);
        let (output, added) = bench.run(&matched);
        assert_eq!(
            (output.verdict, dropped(&added, Reason::NoSocket)),
            (XDP_PASS, 1)
        );
    }
    // More room than there is: the kernel gets the frame as it came.
    let mut bench = SteerBench::new(1000);
    bench.rules(&[mirror()], None);
    set_socket(&bench, &port);
    let (output, added) = bench.run(&matched);
    assert_eq!(
        (output.verdict, dropped(&added, Reason::Headroom)),
        (XDP_PASS, 1)
    );
    drop((port, pool));
    assert_all_home(&umem);
}

/// Frames of a real sender arrive at the socket, `room` bytes further in; the rest at the kernel.
fn steer_real_frames(native: bool, room: u32) {
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 256);
    let mut pool = umem.pool(0).expect("pool");
    let mut port = RxPort::open(&umem, &config("a0", 0), &mut pool, 64).expect("a0");
    let mut bench = SteerBench::new(room);
    bench.rules(&[mirror().protocol(6)], None);
    set_socket(&bench, &port);
    let index = crate::live::index("a0");
    bench.steer.attach(index, "a0", native).expect("attach");

    let generator = RawSocket::open(&lab.generator, "g0");
    let kernel = RawSocket::open(&lab.appliance, "a0");
    let matched: Vec<_> = (0..20)
        .map(|number| tcp4(A, 1000 + number, B, 443))
        .collect();
    let other: Vec<_> = (0..20)
        .map(|number| udp4(A, 1000 + number, B, 53, b"query"))
        .collect();
    for (matched, other) in matched.iter().zip(&other) {
        generator.send(matched);
        generator.send(other);
    }
    let mut arrived = Vec::new();
    receive(&mut port, &mut pool, matched.len(), |frame, pool| {
        arrived.push(frame.bytes()[room as usize..].to_vec());
        pool.put(frame.into_free());
    });
    assert_eq!(arrived, matched, "native {native}, room {room}");
    let seen = kernel.until_idle(Duration::from_millis(100), Duration::from_secs(5));
    let seen: Vec<_> = seen.into_iter().map(|frame| frame.bytes).collect();
    assert_eq!(seen, other, "native {native}, room {room}");
    let counters = bench.steer.counters().expect("counters");
    assert_eq!(
        (counters.seen, counters.matched, counters.unmatched),
        (40, 20, 20)
    );
    assert_eq!((counters.rules[0], counters.rules[64]), (20, 20));
    assert_eq!(counters.dropped.iter().sum::<u64>(), 0);

    bench.steer.detach();
    generator.send(&matched[0]);
    let seen = kernel.until_idle(Duration::from_millis(100), Duration::from_secs(5));
    assert_eq!(seen.len(), 1, "detached: all is the kernel's");
    drop((port, pool));
    assert_all_home(&umem);
}

#[test]
fn real_frames_arrive_natively() {
    require_root!();
    steer_real_frames(true, 0);
    steer_real_frames(true, 50);
    steer_real_frames(true, MOST_ROOM);
}

#[test]
fn real_frames_arrive_in_generic_mode() {
    require_root!();
    steer_real_frames(false, 0);
    steer_real_frames(false, 50);
}

#[test]
fn rules_are_counted_where_the_kernel_gets_the_frame() {
    require_root!();
    let mut bench = SteerBench::new(0);
    bench.rules(&[crate::skip().port(22), mirror().port(443)], None);
    for (port, rule) in [(22, Some(0)), (443, Some(1)), (80, None)] {
        let (_, added) = bench.run(&tcp4(A, 40000, B, port));
        assert_eq!(counted_rule(&added), Some(rule));
    }
}
