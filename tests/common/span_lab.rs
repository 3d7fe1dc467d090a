//! The span's test bed: a feeder sends frames by a chosen queue, the appliance takes them, a collector
//! sees the copies.
//!
//! feeder feed0 ── span0 appliance mir0 ── mon0 collector
//!
//! `#[path = "common/span_lab.rs"] mod span_lab;` beside `mod common;`. All MAC addresses are fixed and
//! all neighbours of the collector are resolved, so no frame but those of the test is under way.
#![allow(dead_code)]

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use xtee::xsk::{Mode, Pool, PortConfig, TxPort, Umem, UmemConfig};

use crate::common::netns::{veth, Namespace, VethEnd};
use crate::common::raw_socket::{Captured, RawSocket};

pub const FEED_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const SPAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub const MIR_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub const MON_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// Addresses of the feeder's and the appliance's end of the span.
pub const FEED: &str = "198.51.100.1";
pub const SPAN: &str = "198.51.100.2";
/// Where the copies come from and go to.
pub const MIR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const MON: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

const PATIENCE: Duration = Duration::from_secs(10);
/// A veth with native XDP takes up to 256 frames a queue before its poll begins.
pub const BURST: usize = 64;

/// The three namespaces, wired.
pub struct Lab {
    pub feeder: Namespace,
    pub appliance: Namespace,
    pub collector: Namespace,
}

impl Lab {
    /// With `feed` queues where the frames are sent, `span` where they arrive, as many where copies leave.
    pub fn new(feed: u32, span: u32) -> Lab {
        let lab = Lab {
            feeder: Namespace::new(),
            appliance: Namespace::new(),
            collector: Namespace::new(),
        };
        lab.wire_span(feed, span);
        veth(
            &VethEnd::new(&lab.appliance, "mir0")
                .mac(MIR_MAC)
                .queues(span)
                .mtu(1600)
                .address("203.0.113.1/25"),
            &VethEnd::new(&lab.collector, "mon0")
                .mac(MON_MAC)
                .queues(span)
                .mtu(1600)
                .address("203.0.113.2/25"),
        );
        // So that the kernel splits UDP super-packets before the veth, as it does before most NICs.
        lab.appliance
            .offload("mir0", &[("tx-udp-segmentation", false)]);
        // One CPU's backlog: a worker that moves from CPU to CPU cannot overtake itself on the veth.
        keep_order(&lab.collector, "mon0", span);
        lab
    }

    /// Makes the veth pair of the span: at first, and after the test has deleted it.
    pub fn wire_span(&self, feed: u32, span: u32) {
        veth(
            &VethEnd::new(&self.feeder, "feed0")
                .mac(FEED_MAC)
                .queues(feed)
                .mtu(1600)
                .address("198.51.100.1/24"),
            &VethEnd::new(&self.appliance, "span0")
                .mac(SPAN_MAC)
                .queues(span)
                .mtu(1600)
                .address("198.51.100.2/24"),
        );
    }

    /// Static neighbours on the span, so that no ARP is needed there.
    pub fn resolve_span(&self) {
        self.feeder.neighbour("feed0", SPAN, SPAN_MAC);
        self.appliance.neighbour("span0", FEED, FEED_MAC);
    }

    /// Whether the feeder's pings reach the appliance's kernel and are answered.
    pub fn ping(&self) -> bool {
        let arguments = ["-c", "3", "-i", "0.02", "-W", "2", SPAN];
        self.feeder.output("ping", &arguments).status.success()
    }
}

/// All packets that arrive at `interface` go through the backlog of CPU 0 (RPS).
pub fn keep_order(namespace: &Namespace, interface: &str, queues: u32) {
    for queue in 0..queues {
        // /sys shows the namespace that it was mounted in; `ip netns exec` mounts it anew.
        let file = format!("/sys/class/net/{interface}/queues/rx-{queue}/rps_cpus");
        namespace.run("sh", &["-c", &format!("echo 1 > {file}")]);
    }
}

/// Whether an XDP program is attached to an interface.
pub fn has_xdp(namespace: &Namespace, interface: &str) -> bool {
    let text = namespace.ip(&["-d", "link", "show", "dev", interface]);
    text.contains("prog/xdp")
}

/// Sends frames by a queue of the test's choice: AF_XDP puts a frame on exactly the queue that it is
/// bound to, which no routing socket can.
pub struct Feeder {
    // Before the pool: frames come home when the ports close.
    ports: Vec<TxPort>,
    pool: Pool,
    _umem: Umem,
}

impl Feeder {
    pub fn new(namespace: &Namespace, interface: &str, queues: u32) -> Feeder {
        let _there = namespace.enter();
        let umem = Umem::new(&UmemConfig {
            workers: 1,
            frames_per_worker: 2048,
            ..UmemConfig::default()
        })
        .expect("the feeder's UMEM");
        let pool = umem.pool(0).expect("the feeder's pool");
        let ports = (0..queues)
            .map(|queue| {
                let config = PortConfig::new(interface, queue, Mode::Copy);
                TxPort::open(&umem, &config).expect("the feeder's port")
            })
            .collect();
        Feeder {
            ports,
            pool,
            _umem: umem,
        }
    }

    /// Sends a frame now. Panics if the device dropped it.
    pub fn send(&mut self, queue: usize, frame: &[u8]) {
        self.push(queue, frame);
        self.flush(queue);
    }

    /// Takes a frame for the next flush of its queue.
    pub fn push(&mut self, queue: usize, frame: &[u8]) {
        let end = Instant::now() + PATIENCE;
        let free = loop {
            if let Some(free) = self.pool.take() {
                break free;
            }
            assert!(Instant::now() < end, "the feeder's frames do not come back");
            self.reclaim();
        };
        let full = free.write(|out| {
            out[..frame.len()].copy_from_slice(frame);
            frame.len()
        });
        let refused = self.ports[queue].push(full).is_err();
        assert!(!refused, "the feeder's ring is full");
    }

    /// Sends what was pushed.
    pub fn flush(&mut self, queue: usize) {
        let kick = self.ports[queue].flush_and_kick();
        assert_eq!(kick.error, None);
        self.reclaim();
    }

    /// Frames that the device did not take, since the start: its ring was full.
    pub fn dropped(&self) -> u64 {
        self.ports.iter().map(TxPort::dropped).sum()
    }

    fn reclaim(&mut self) {
        for port in &mut self.ports {
            port.reclaim(&mut self.pool);
        }
    }
}

/// A copy as it arrived at the collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Outer MAC addresses: destination, source.
    pub macs: ([u8; 6], [u8; 6]),
    /// Outer addresses: source, destination.
    pub addresses: (Ipv4Addr, Ipv4Addr),
    /// Outer UDP source port; 0 in GRE.
    pub source_port: u16,
    /// VNI or key.
    pub identifier: Option<u32>,
    /// GRE sequence number.
    pub sequence: Option<u32>,
    /// The copied frame.
    pub inner: Vec<u8>,
}

/// Reads a copy by the letter of RFC 7348 and RFC 2890; `None` for other traffic. Panics at a tunnel
/// header that is not as it must be.
pub fn decapsulate(frame: &[u8]) -> Option<Copy> {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    let address = |at: usize| Ipv4Addr::from(long(at));
    let mac = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).expect("six bytes");
    if frame.len() < 42 || word(12) != 0x0800 {
        return None;
    }
    let (protocol, payload) = (frame[23], 34);
    let vxlan = protocol == 17 && word(payload + 2) == 4789;
    if !vxlan && protocol != 47 {
        return None;
    }
    assert_eq!(frame[14], 0x45, "an outer IPv4 header without options");
    assert_eq!(word(20), 0x4000, "DF, and no fragment");
    assert_eq!(usize::from(word(16)), frame.len() - 14, "outer IP length");
    let sum: u32 = (14..34).step_by(2).map(|at| u32::from(word(at))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    assert_eq!(
        (folded & 0xffff) + (folded >> 16),
        0xffff,
        "outer IP checksum"
    );
    let mut copy = Copy {
        macs: (mac(0), mac(6)),
        addresses: (address(26), address(30)),
        source_port: 0,
        identifier: None,
        sequence: None,
        inner: Vec::new(),
    };
    if vxlan {
        assert_eq!(usize::from(word(payload + 4)), frame.len() - payload);
        assert_eq!(long(payload + 8), 0x0800_0000, "VXLAN flags");
        assert_eq!(frame[payload + 15], 0, "a reserved byte of VXLAN");
        copy.source_port = word(payload);
        copy.identifier = Some(long(payload + 12) >> 8);
        copy.inner = frame[payload + 16..].to_vec();
        return Some(copy);
    }
    let flags = word(payload);
    assert_eq!(flags & !0x3000, 0, "GRE flags {flags:#x}");
    assert_eq!(word(payload + 2), 0x6558, "Ethernet in GRE");
    let mut at = payload + 4;
    for (flag, field) in [(0x2000, &mut copy.identifier), (0x1000, &mut copy.sequence)] {
        if flags & flag != 0 {
            *field = Some(long(at));
            at += 4;
        }
    }
    copy.inner = frame[at..].to_vec();
    Some(copy)
}

/// The collector's eyes: takes copies off an interface.
pub struct Collector {
    socket: RawSocket,
}

impl Collector {
    pub fn new(namespace: &Namespace, interface: &str) -> Collector {
        Collector {
            socket: RawSocket::open(namespace, interface),
        }
    }

    /// Waits until `count` copies have arrived and appends them; panics when they do not.
    pub fn take(&self, count: usize, copies: &mut Vec<Copy>) {
        let (end, before) = (Instant::now() + PATIENCE, copies.len());
        while copies.len() < before + count {
            assert!(
                Instant::now() < end,
                "{} of {count} copies arrived",
                copies.len() - before
            );
            if let Some(frame) = self.socket.receive(Duration::from_millis(50)) {
                copies.extend(incoming(&frame));
            }
        }
    }

    /// The copies that are there, until none came for a while.
    pub fn rest(&self) -> Vec<Copy> {
        let frames = self
            .socket
            .until_idle(Duration::from_millis(100), Duration::from_secs(20));
        assert_eq!(self.socket.dropped(), 0, "the collector was too slow");
        frames.iter().filter_map(incoming).collect()
    }
}

fn incoming(frame: &Captured) -> Option<Copy> {
    (!frame.outgoing).then(|| decapsulate(&frame.bytes))?
}

/// Descriptors that a process holds open, for leaks.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
