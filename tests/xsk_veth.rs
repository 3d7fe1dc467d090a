//! The AF_XDP layer against a real kernel: veth pairs in namespaces, a tiny XDP program that
//! redirects, frames compared at the far end, and every frame home when it is over.

#[macro_use]
mod common;
#[path = "common/xsk_lab.rs"]
mod lab;
#[path = "common/xdp_program.rs"]
mod program;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use common::raw_socket::RawSocket;
use lab::{
    assert_all_home, at_sink, config, encapsulated, header, packet, receive, umem, Lab, HEADER,
};
use xtee::xsk::{
    open_both, BusyPoll, Kick, PortConfig, ReceivedFrame, Refused, RxPort, Statistics, TxPort,
};

/// Packets go through the appliance, one by one in lockstep so that no ring can overflow, and come
/// out with a header in front, written in place.
fn forward(room: usize) {
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 512);
    let mut pool = umem.pool(0).expect("pool");
    let mut rx = RxPort::open(&umem, &config("a0", 0), &mut pool, 128).expect("a0");
    let mut tx = TxPort::open(&umem, &config("a1", 0)).expect("a1");
    println!("a0: {}", rx.obtained());
    assert!(!rx.obtained().zero_copy && rx.obtained().need_wakeup);
    assert_eq!(rx.with_kernel(), 128);
    assert_eq!(pool.outstanding(), 128);

    let sockets = program::sockets(1);
    program::insert(&sockets, 0, rx.as_raw_fd());
    let map = sockets.as_raw_fd();
    program::attach("a0", &program::redirect(map, room as i32));
    let generator = RawSocket::open(&lab.generator, "g0");
    let capture = RawSocket::open(&lab.sink, "s0").in_background();

    let count = 1000;
    let mut number = 0;
    while number < count {
        let burst = number..count.min(number + 50);
        for number in burst.clone() {
            generator.send(&packet(number));
        }
        receive(&mut rx, &mut pool, burst.len(), |mut frame, _| {
            if room == 0 {
                // The kernel leaves XDP_PACKET_HEADROOM in front of a packet by itself.
                assert_eq!(frame.headroom(), 256);
                frame.prepend(HEADER).expect("headroom");
            }
            assert_eq!(&frame.bytes()[HEADER.max(room)..], packet(number));
            let offset = room.saturating_sub(HEADER);
            frame.bytes_mut()[offset..offset + HEADER].copy_from_slice(&header(number));
            tx.push(frame.into_send(offset))
                .expect("room on the tx ring");
            number += 1;
        });
        let kick = tx.flush_and_kick();
        assert_eq!((kick.dropped, kick.error), (0, None));
        tx.reclaim(&mut pool);
    }
    assert_eq!(tx.drain(&mut pool, Duration::from_secs(1)), 0);

    let arrived = at_sink(capture);
    assert_eq!(arrived.len(), count as usize);
    for (number, frame) in (0..).zip(arrived) {
        assert_eq!(
            frame,
            [&header(number)[..], &packet(number)].concat(),
            "packet {number}"
        );
    }
    let statistics = rx.statistics().expect("statistics");
    assert_eq!((statistics.rx_dropped, statistics.rx_ring_full), (0, 0));
    assert_eq!(
        (statistics.fill_invalid, rx.strays(), tx.strays()),
        (0, 0, 0)
    );
    assert_eq!(tx.statistics().expect("statistics").tx_invalid, 0);
    assert_eq!(pool.outstanding(), rx.with_kernel());
    drop((rx, tx, pool));
    assert_all_home(&umem);
}

#[test]
fn header_goes_into_the_room_that_xdp_made() {
    require_root!();
    forward(HEADER);
}

#[test]
fn header_shorter_than_the_room_is_sent_from_further_on() {
    require_root!();
    forward(HEADER + 14);
}

#[test]
fn header_goes_into_the_headroom_without_help_of_xdp() {
    require_root!();
    forward(0);
}

/// Many more packets than the ring has slots: what does not fit is given back, never waited for;
/// what was taken arrives, or is counted as dropped by the device.
#[test]
fn a_burst_larger_than_the_rings() {
    require_root!();
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 1024);
    let mut pool = umem.pool(0).expect("pool");
    let mut tx = TxPort::open(&umem, &config("a1", 0)).expect("a1");
    let capture = RawSocket::open(&lab.sink, "s0").in_background();

    let (mut taken, mut refused, mut calls) = (0, 0, 0);
    for round in 0..20 {
        for number in round * 1000..(round + 1) * 1000 {
            match tx.push(encapsulated(&mut pool, number)) {
                Ok(()) => taken += 1,
                Err(Refused::RingFull(frame)) => {
                    refused += 1;
                    pool.put(frame.into_free());
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(tx.in_flight(), 256, "the ring is full");
        let kick = tx.flush_and_kick();
        calls += kick.calls;
        assert_eq!(kick.error, None);
        assert_eq!(tx.drain(&mut pool, Duration::from_secs(1)), 0);
    }
    assert_eq!((taken, refused), (20 * 256, 20 * 744));
    assert!(calls <= 20 * 8, "{calls} calls");
    assert_eq!(pool.outstanding(), 0);
    let arrived = at_sink(capture).len() as u64;
    let dropped = tx.dropped();
    println!("{arrived} arrived, {dropped} dropped by the device, {calls} calls");
    assert_eq!(arrived + dropped, taken);
    drop((tx, pool));
    assert_all_home(&umem);
}

/// A device that has no carrier drops, one that is down keeps the frames on the ring: both are told,
/// neither hangs, and no frame is missing in the end.
#[test]
fn a_link_that_goes_away() {
    require_root!();
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 256);
    let mut pool = umem.pool(0).expect("pool");
    // The first socket of a UMEM stays with the kernel; this test is about one that does not.
    let first = TxPort::open(&umem, &config("a0", 0)).expect("a0");
    let mut tx = TxPort::open(&umem, &config("a1", 0)).expect("a1");

    lab.sink.ip(&["link", "set", "s0", "down"]);
    for number in 0..100 {
        tx.push(encapsulated(&mut pool, number)).expect("room");
    }
    let kick = tx.flush_and_kick();
    assert!(
        kick.dropped > 0 && kick.calls <= 8 && kick.error.is_none(),
        "{kick:?}"
    );
    assert_eq!(tx.drain(&mut pool, Duration::from_secs(1)), 0);
    assert_eq!((tx.dropped(), pool.outstanding()), (100, 0));

    lab.appliance.ip(&["link", "set", "a1", "down"]);
    for number in 0..100 {
        tx.push(encapsulated(&mut pool, number)).expect("room");
    }
    let kick = tx.flush_and_kick();
    assert_eq!(
        kick,
        Kick {
            calls: 1,
            dropped: 0,
            error: Some(libc::ENETDOWN)
        }
    );
    let start = Instant::now();
    assert_eq!(tx.drain(&mut pool, Duration::from_millis(50)), 100);
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );

    drop(tx);
    assert_eq!(pool.outstanding(), 0, "closing brings the frames home");
    drop((first, pool));
    assert_eq!(umem.balance().retired, 0);
    assert_all_home(&umem);
}

/// The interface is deleted under the sockets.
#[test]
fn an_interface_that_is_deleted() {
    require_root!();
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 256);
    let mut pool = umem.pool(0).expect("pool");
    let mut rx = RxPort::open(&umem, &config("a0", 0), &mut pool, 64).expect("a0");
    let mut tx = TxPort::open(&umem, &config("a1", 0)).expect("a1");
    lab.appliance.ip(&["link", "delete", "a0"]);
    lab.appliance.ip(&["link", "delete", "a1"]);
    tx.push(encapsulated(&mut pool, 0)).expect("room");
    let kick = tx.flush_and_kick();
    assert!(kick.error.is_some(), "{kick:?}");
    let mut frames = Vec::with_capacity(64);
    assert_eq!(rx.receive(&mut frames), 0);
    rx.refill(&mut pool);
    assert_eq!(tx.drain(&mut pool, Duration::from_millis(10)), 1);
    drop((rx, tx, pool));
    assert_all_home(&umem);
}

/// A ring that nobody empties: the kernel counts, and the frames are home all the same.
fn overflow(rx_ring: u32, stock: u32) -> Statistics {
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 512);
    let mut pool = umem.pool(0).expect("pool");
    let asked = PortConfig {
        rx_ring,
        ..config("a0", 0)
    };
    let mut rx = RxPort::open(&umem, &asked, &mut pool, stock).expect("a0");
    let sockets = program::sockets(1);
    program::insert(&sockets, 0, rx.as_raw_fd());
    program::attach("a0", &program::redirect(sockets.as_raw_fd(), 0));
    let generator = RawSocket::open(&lab.generator, "g0");
    for number in 0..200 {
        generator.send(&packet(number));
    }
    let mut seen = 0;
    receive(&mut rx, &mut pool, 64, |frame, pool| {
        assert_eq!(frame.bytes(), packet(seen));
        seen += 1;
        pool.put(frame.into_free());
    });
    let statistics = rx.statistics().expect("statistics");
    println!("{statistics:?}");
    assert_eq!(pool.outstanding(), stock);
    drop((rx, pool));
    assert_all_home(&umem);
    statistics
}

#[test]
fn too_few_frames_are_counted_by_the_kernel() {
    require_root!();
    let statistics = overflow(256, 64);
    assert_eq!((statistics.rx_dropped, statistics.rx_ring_full), (136, 0));
    assert_eq!(statistics.fill_ring_empty, 136);
}

#[test]
fn a_full_rx_ring_is_counted_by_the_kernel() {
    require_root!();
    let statistics = overflow(64, 256);
    assert_eq!((statistics.rx_dropped, statistics.rx_ring_full), (0, 136));
    assert_eq!(statistics.fill_ring_empty, 0);
}

/// Two queues, two workers: each receives, hands every other frame to its colleague, and sends what
/// it holds by its own queue. Frames end in pools they did not come from, and find home.
#[test]
fn frames_handed_over_between_workers_come_home() {
    require_root!();
    let lab = Lab::new(2);
    let here = lab.enter();
    let umem = umem(2, 512);
    let sockets = program::sockets(2);
    let map = sockets.as_raw_fd();
    let generator = RawSocket::open(&lab.generator, "g0");
    let capture = RawSocket::open(&lab.sink, "s0").in_background();
    let mut workers = Vec::new();
    for queue in 0..2 {
        let mut pool = umem.pool(queue).expect("pool");
        let rx = RxPort::open(&umem, &config("a0", queue), &mut pool, 128).expect("a0");
        let tx = TxPort::open(&umem, &config("a1", queue)).expect("a1");
        program::insert(&sockets, queue, rx.as_raw_fd());
        workers.push((pool, rx, tx));
    }
    program::attach("a0", &program::redirect(map, HEADER as i32));
    drop(here);

    let count = 2000u32;
    let done = std::sync::atomic::AtomicU32::new(0);
    let queues = [
        crossbeam::queue::ArrayQueue::<ReceivedFrame>::new(1024),
        crossbeam::queue::ArrayQueue::<ReceivedFrame>::new(1024),
    ];
    let received: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .zip(0usize..)
            .map(|((mut pool, mut rx, mut tx), own)| {
                let (queues, done) = (&queues, &done);
                scope.spawn(move || {
                    use std::sync::atomic::Ordering::SeqCst;
                    let end = Instant::now() + Duration::from_secs(10);
                    let mut batch = Vec::with_capacity(64);
                    let mut received = 0;
                    while done.load(SeqCst) < count && Instant::now() < end {
                        rx.receive(&mut batch);
                        for frame in batch.drain(..) {
                            received += 1;
                            queues[(received as usize + own) % 2]
                                .push(frame)
                                .expect("room");
                        }
                        while let Some(mut frame) = queues[own].pop() {
                            frame.bytes_mut()[..HEADER].copy_from_slice(&header(0));
                            tx.push(frame.into_send(0)).expect("room");
                            done.fetch_add(1, SeqCst);
                        }
                        tx.flush_and_kick();
                        tx.reclaim(&mut pool);
                        rx.refill(&mut pool);
                    }
                    assert_eq!(tx.drain(&mut pool, Duration::from_secs(1)), 0);
                    received
                })
            })
            .collect();
        for number in 0..count {
            generator.send(&packet(number));
            if number % 50 == 49 {
                let end = Instant::now() + Duration::from_secs(10);
                while done.load(std::sync::atomic::Ordering::SeqCst) < number + 1 {
                    assert!(Instant::now() < end, "stuck at {number}");
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
        threads
            .into_iter()
            .map(|thread| thread.join().expect("worker"))
            .collect()
    });
    println!("received by queue: {received:?}");
    assert_eq!(received.iter().sum::<u32>(), count);
    assert!(
        received.iter().all(|received| *received > 0),
        "a flow hash chooses the queue"
    );
    let arrived = at_sink(capture);
    assert_eq!(arrived.len(), count as usize);
    let mut numbers: Vec<u32> = arrived
        .iter()
        .map(|frame| {
            u32::from_be_bytes(frame[HEADER + 42..HEADER + 46].try_into().expect("4 bytes"))
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    assert_all_home(&umem);
}

/// Source and egress on one queue, with preferred busy polling: what comes in goes back out.
#[test]
fn one_queue_for_both_directions_with_busy_polling() {
    require_root!();
    let lab = Lab::new(1);
    let _here = lab.enter();
    let umem = umem(1, 256);
    let mut pool = umem.pool(0).expect("pool");
    let asked = PortConfig {
        busy_poll: Some(BusyPoll {
            micros: 20,
            budget: 64,
        }),
        ..config("a0", 0)
    };
    let (mut rx, mut tx) = open_both(&umem, &asked, &mut pool, 128).expect("a0");
    println!("a0: {}", rx.obtained());
    assert!(rx.obtained().busy_poll || rx.obtained().busy_poll_refused.is_some());
    let sockets = program::sockets(1);
    program::insert(&sockets, 0, rx.as_raw_fd());
    let map = sockets.as_raw_fd();
    program::attach("a0", &program::redirect(map, HEADER as i32));
    let generator = RawSocket::open(&lab.generator, "g0");
    for number in 0..100 {
        generator.send(&packet(number));
    }
    let mut number = 0;
    receive(&mut rx, &mut pool, 100, |mut frame, _| {
        frame.bytes_mut()[..HEADER].copy_from_slice(&header(number));
        number += 1;
        tx.push(frame.into_send(0)).expect("room");
    });
    assert_eq!(tx.flush_and_kick().error, None);
    assert_eq!(tx.drain(&mut pool, Duration::from_secs(1)), 0);
    let back = generator.until_idle(Duration::from_millis(100), Duration::from_secs(5));
    let back = back
        .iter()
        .filter(|frame| !frame.outgoing && frame.bytes[12..14] == [0x88, 0xb6]);
    assert_eq!(back.count(), 100);
    drop(rx);
    drop((tx, pool));
    assert_all_home(&umem);
}
