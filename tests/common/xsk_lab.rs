//! The AF_XDP layer's test bed: three namespaces, packets that can be told apart, and the balance.
//!
//! generator g0 ── a0 (XDP: room, redirect) appliance a1 ── s0 sink
#![allow(dead_code)]

use std::time::{Duration, Instant};

use xtee::xsk::{
    lost_frames, Mode, Pool, PortConfig, ReceivedFrame, RxPort, ToSendFrame, Umem, UmemConfig,
};

use crate::common::netns::{veth, Entered, Namespace, VethEnd};
use crate::common::raw_socket::Capture;
use crate::program;

/// Bytes of the outer header that the tests write.
pub const HEADER: usize = 50;

/// The three namespaces, wired.
pub struct Lab {
    pub generator: Namespace,
    pub appliance: Namespace,
    pub sink: Namespace,
}

impl Lab {
    pub fn new(queues: u32) -> Self {
        let lab = Self {
            generator: Namespace::new(),
            appliance: Namespace::new(),
            sink: Namespace::new(),
        };
        veth(
            &VethEnd::new(&lab.generator, "g0").queues(queues),
            &VethEnd::new(&lab.appliance, "a0").queues(queues),
        );
        veth(
            &VethEnd::new(&lab.appliance, "a1").queues(queues).mtu(1600),
            &VethEnd::new(&lab.sink, "s0").queues(queues).mtu(1600),
        );
        // veth delivers to the XDP program of an end only where NAPI runs at it.
        for (namespace, interface) in [(&lab.generator, "g0"), (&lab.sink, "s0")] {
            let _there = namespace.enter();
            program::attach(interface, &program::pass());
        }
        lab
    }

    pub fn enter(&self) -> Entered {
        self.appliance.enter()
    }
}

pub fn umem(workers: u32, frames: u32) -> Umem {
    Umem::new(&UmemConfig {
        workers,
        frames_per_worker: frames,
        fill_ring: 256,
        completion_ring: 256,
        ..UmemConfig::default()
    })
    .expect("UMEM")
}

pub fn config(interface: &str, queue: u32) -> PortConfig {
    PortConfig {
        rx_ring: 256,
        tx_ring: 256,
        ..PortConfig::new(interface, queue, Mode::Any)
    }
}

/// Frame `number`: UDP of a length, a flow and with bytes of its own. Checksums are not looked at.
pub fn packet(number: u32) -> Vec<u8> {
    let length = 64 + (number as usize * 37) % 1400;
    let mut bytes = vec![number as u8; length];
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let [high, low] = (length as u16 - 14).to_be_bytes();
    bytes[14..24].copy_from_slice(&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17]);
    bytes[26..34].copy_from_slice(&[198, 51, 100, 1, 198, 51, 100, 2]);
    bytes[34..36].copy_from_slice(&(number as u16).to_be_bytes());
    bytes[42..46].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub fn header(number: u32) -> [u8; HEADER] {
    let mut header = [0xee; HEADER];
    header[12..14].copy_from_slice(&[0x88, 0xb6]);
    header[14..18].copy_from_slice(&number.to_be_bytes());
    header
}

pub fn encapsulated(pool: &mut Pool, number: u32) -> ToSendFrame {
    let frame = pool.take().expect("a frame");
    frame.write(|buffer| {
        let bytes = [&header(number)[..], &packet(number)].concat();
        buffer[..bytes.len()].copy_from_slice(&bytes);
        bytes.len()
    })
}

/// The packets with the outer header that arrived at the sink.
pub fn at_sink(capture: Capture) -> Vec<Vec<u8>> {
    capture
        .stop()
        .into_iter()
        .filter(|frame| !frame.outgoing && frame.bytes[12..14] == [0x88, 0xb6])
        .map(|frame| frame.bytes)
        .collect()
}

pub fn assert_all_home(umem: &Umem) {
    let balance = umem.balance();
    assert!(balance.all_home(), "{balance:?}");
    assert_eq!(lost_frames(), 0);
}

/// Receives `count` packets, each to be handled; panics when they do not come.
pub fn receive(
    rx: &mut RxPort,
    pool: &mut Pool,
    count: usize,
    mut handle: impl FnMut(ReceivedFrame, &mut Pool),
) {
    let mut batch = Vec::with_capacity(64);
    let end = Instant::now() + Duration::from_secs(10);
    let mut done = 0;
    while done < count {
        assert!(
            Instant::now() < end,
            "{done} of {count} received: {:?}",
            rx.statistics()
        );
        rx.receive(&mut batch);
        done += batch.len();
        for frame in batch.drain(..) {
            handle(frame, pool);
        }
        rx.refill(pool);
    }
}
