//! Frames and devices of every kind: jumbo frames in tap and span, VLAN tags with their priority bits, a
//! bridge and a port of it, a macvlan.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/span_lab.rs"]
mod span_lab;

use std::collections::HashMap;
use std::time::Duration;

use common::netns::{veth, wait_until, Namespace, VethEnd};
use common::raw_socket::RawSocket;
use mirror::{source, target, Mirror};
use packets::{tagged, udp, IPV4, UDP, V4};
use span_lab::{keep_order, Collector, FEED_MAC, MIR_MAC, MON_MAC, SPAN_MAC};

const PATIENCE: Duration = Duration::from_secs(15);
const VXLAN: &str = "vxlan://203.0.113.2?vni=7";
const GRE: &str = "gre://203.0.113.2?key=7";
const JUMBO: u32 = 9001;

/// feeder feed0 ── span0 appliance mir0 ── mon0 collector, as in `span_lab`, with MTUs of choice.
struct Lab {
    feeder: Namespace,
    appliance: Namespace,
    collector: Namespace,
}

impl Lab {
    fn new(mtu: u32) -> Lab {
        let lab = Lab {
            feeder: Namespace::new(),
            appliance: Namespace::new(),
            collector: Namespace::new(),
        };
        veth(
            &VethEnd::new(&lab.feeder, "feed0").mac(FEED_MAC).mtu(mtu),
            &VethEnd::new(&lab.appliance, "span0")
                .mac(SPAN_MAC)
                .mtu(mtu)
                .address("198.51.100.2/24"),
        );
        let path = mtu + 100;
        veth(
            &VethEnd::new(&lab.appliance, "mir0")
                .mac(MIR_MAC)
                .mtu(path)
                .address("203.0.113.1/25"),
            &VethEnd::new(&lab.collector, "mon0")
                .mac(MON_MAC)
                .mtu(path)
                .address("203.0.113.2/25"),
        );
        lab.appliance
            .offload("mir0", &[("tx-udp-segmentation", false)]);
        keep_order(&lab.collector, "mon0", 1);
        lab
    }
}

/// A UDP frame of `length` bytes in all, of a flow of its own; what it says is in `number`.
fn frame_of(length: usize, number: u16) -> Vec<u8> {
    let payload: Vec<u8> = (0..length - 42)
        .map(|at| (at * 7 + at / 251 + usize::from(number)) as u8)
        .collect();
    let datagram = udp(10_000 + number, 443, &payload);
    V4::new("198.51.100.77", "198.51.100.200", UDP).frame(&datagram)
}

/// Sizes around what fits one frame of the umem, with room and headroom, two, and three of them.
fn jumbo_frames() -> Vec<Vec<u8>> {
    let borders = [3754, 3790, 3840, 4096, 7594, 7630, 7680, 8192];
    let around = borders
        .into_iter()
        .flat_map(|size| [size - 1, size, size + 1]);
    let sizes = [60, 600, 1514].into_iter().chain(around);
    let largest = JUMBO as usize + 14;
    sizes
        .chain([9000, largest - 1, largest])
        .zip(0..)
        .map(|(size, number)| frame_of(size, number))
        .collect()
}

fn assert_each_once(sent: &[Vec<u8>], copies: Vec<Vec<u8>>) {
    let mut counts: HashMap<Vec<u8>, usize> = HashMap::new();
    for copy in copies {
        *counts.entry(copy).or_default() += 1;
    }
    for frame in sent {
        let count = counts.remove(frame);
        assert_eq!(
            count,
            Some(1),
            "copies of the frame of {} bytes",
            frame.len()
        );
    }
    let sizes: Vec<_> = counts.keys().map(Vec::len).collect();
    assert!(sizes.is_empty(), "copies that were never sent: {sizes:?}");
}

fn healthy(mirror: &Mirror) {
    mirror.wait_for("a path to the collector", |status| {
        status.targets.iter().all(|target| target.healthy)
    });
}

fn jumbo(arguments: &[&str], mode: &str, transmit: &str) {
    let lab = Lab::new(JUMBO);
    let collector = Collector::new(&lab.collector, "mon0");
    let mirror = Mirror::start(&lab.appliance, arguments);
    healthy(&mirror);
    let status = mirror.status();
    assert!(source(&status).mode.contains(mode), "{status}");
    assert!(target(&status).transmit.starts_with(transmit), "{status}");
    let feeder = RawSocket::open(&lab.feeder, "feed0");
    let frames = jumbo_frames();
    let mut copies = Vec::new();
    // Several rounds: the frames of the umem have to come back.
    let mut sent = Vec::new();
    for round in 0..40u16 {
        for frame in &frames {
            let mut frame = frame.clone();
            // The source port: a flow of its own in each round.
            let port = 20_000 + 100 * round + sent.len() as u16 % 100;
            frame[34..36].copy_from_slice(&port.to_be_bytes());
            feeder.send(&frame);
            sent.push(frame);
        }
        collector.take(frames.len(), &mut copies);
    }
    copies.extend(collector.rest());
    assert_each_once(&sent, copies.into_iter().map(|copy| copy.inner).collect());
    let status = mirror.assert_balanced();
    assert_eq!(source(&status).matched, sent.len() as u64, "{status}");
    assert_eq!(source(&status).dropped.values().sum::<u64>(), 0, "{status}");
    // That every frame of the umem came home is part of a clean end.
    mirror.stop().assert_clean();
}

#[test]
fn jumbo_frames_in_a_span() {
    require_root!();
    for (mode, word) in [("native", "native XDP"), ("generic", "generic XDP")] {
        let arguments = ["span:span0", "--mode", mode, "--to", VXLAN];
        jumbo(&arguments, &format!("{word}, AF_XDP copy"), "udp");
    }
    // AF_XDP sends a packet in one frame of 4096 bytes: the plan takes another way.
    jumbo(&["span:span0", "--to", GRE], "frames of any size", "raw");
}

#[test]
fn jumbo_frames_in_a_tap() {
    require_root!();
    // In one flow each, they come in runs that are too short for UDP_SEGMENT: AF_XDP sends what it can.
    jumbo(&["tap:span0", "--to", VXLAN], "tcx", "auto: udp");
    // By AF_XDP what fits its frames, by a raw socket what is larger.
    jumbo(&["tap:span0", "--to", GRE], "tcx", "xsk");
}

/// Bursts of jumbo frames beyond what the rings hold: dropped and counted, never leaked.
#[test]
fn a_burst_of_jumbo_frames_is_accounted_for() {
    require_root!();
    let lab = Lab::new(JUMBO);
    let mirror = Mirror::start(&lab.appliance, &["span:span0", "--to", VXLAN]);
    healthy(&mirror);
    let feeder = RawSocket::open(&lab.feeder, "feed0");
    let frame = frame_of(9015, 1);
    for _ in 0..30_000 {
        feeder.send(&frame);
    }
    let status = mirror.assert_balanced();
    assert!(source(&status).captured > 100, "{status}");
    // Afterwards it goes on as if nothing had been.
    let before = source(&status).captured;
    for number in 0..100 {
        feeder.send(&frame_of(9015, number));
        mirror.wait_for("its copy", |status| {
            source(status).captured == before + u64::from(number) + 1
        });
    }
    mirror.assert_balanced();
    mirror.stop().assert_clean();
}

/// Priority, drop eligibility and both tags are in the copy as on the wire.
#[test]
fn tags_keep_their_priority_bits() {
    require_root!();
    let mut frames = Vec::new();
    let packet =
        |number| V4::new("198.51.100.1", "198.51.100.2", UDP).packet(&udp(number, 9, &[1; 30]));
    for priority in 0..8u16 {
        for drop_eligible in [0, 1u16] {
            let tci = |vlan: u16| priority << 13 | drop_eligible << 12 | vlan;
            let other = |vlan: u16| (7 - priority) << 13 | (1 - drop_eligible) << 12 | vlan;
            let number = 100 + 2 * priority + drop_eligible;
            frames.push(tagged(&[(0x8100, tci(5))], IPV4, &packet(number)));
            frames.push(tagged(&[(0x8100, tci(0))], IPV4, &packet(number)));
            frames.push(tagged(
                &[(0x88a8, tci(7)), (0x8100, other(4094))],
                IPV4,
                &packet(number),
            ));
            frames.push(tagged(
                &[(0x8100, tci(7)), (0x8100, other(1))],
                IPV4,
                &packet(number),
            ));
        }
    }
    for (arguments, ends) in [
        (&["tap:span0", "--to", VXLAN][..], 2),
        (&["tap:span0", "--attach", "clsact", "--to", GRE], 2),
        (&["span:span0", "--to", VXLAN], 1),
        (&["span:span0", "--mode", "generic", "--to", GRE], 1),
    ] {
        let lab = Lab::new(1500);
        let collector = Collector::new(&lab.collector, "mon0");
        let mirror = Mirror::start(&lab.appliance, arguments);
        healthy(&mirror);
        let mut copies = Vec::new();
        let mut sent = Vec::new();
        // A tap sees what goes out as well.
        let senders = [(&lab.feeder, "feed0"), (&lab.appliance, "span0")];
        for (namespace, interface) in senders.into_iter().take(ends) {
            let socket = RawSocket::open(namespace, interface);
            for frame in &frames {
                let mut frame = frame.clone();
                frame[11] = sent.len() as u8;
                socket.send(&frame);
                sent.push(frame);
            }
            collector.take(frames.len(), &mut copies);
        }
        copies.extend(collector.rest());
        assert_each_once(&sent, copies.into_iter().map(|copy| copy.inner).collect());
        mirror.assert_balanced();
        mirror.stop().assert_clean();
    }
}

/// A bridge, a port of it, and a macvlan: each sees the traffic that passes it, once.
#[test]
fn bridge_port_and_macvlan() {
    require_root!("ping");
    let (host, guest, lan, collector) = (
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
    );
    host.ip(&["link", "add", "br0", "type", "bridge"]);
    host.address("br0", "198.51.100.2/24");
    host.ip(&["link", "set", "br0", "up"]);
    veth(
        &VethEnd::new(&host, "port0"),
        &VethEnd::new(&guest, "eth0").address("198.51.100.1/24"),
    );
    host.ip(&["link", "set", "port0", "master", "br0"]);
    veth(
        &VethEnd::new(&host, "under0"),
        &VethEnd::new(&lan, "eth0").address("198.51.100.129/25"),
    );
    host.ip(&[
        "link", "add", "link", "under0", "name", "mac0", "type", "macvlan", "mode", "bridge",
    ]);
    // Else the interface underneath answers for it as well, and the first echo goes there.
    host.ip(&["link", "set", "mac0", "address", "02:00:00:00:03:01"]);
    lan.neighbour("eth0", "198.51.100.130", [2, 0, 0, 0, 3, 1]);
    host.address("mac0", "198.51.100.130/25");
    host.ip(&["link", "set", "mac0", "up"]);
    veth(
        &VethEnd::new(&host, "mir0")
            .mtu(1600)
            .address("203.0.113.1/25"),
        &VethEnd::new(&collector, "mon0")
            .mtu(1600)
            .address("203.0.113.2/25"),
    );
    wait_until("the bridge's port", PATIENCE, || {
        let ping = guest.output("ping", &["-c", "1", "-W", "1", "198.51.100.2"]);
        ping.status.success()
    });
    for (interface, namespace, address) in [
        ("br0", &guest, "198.51.100.2"),
        ("port0", &guest, "198.51.100.2"),
        ("mac0", &lan, "198.51.100.130"),
        ("under0", &lan, "198.51.100.130"),
    ] {
        let copies = Collector::new(&collector, "mon0");
        let mirror = Mirror::start(&host, &[&format!("tap:{interface}"), "--to", VXLAN]);
        healthy(&mirror);
        namespace.run("ping", &["-c", "5", "-i", "0.02", "-W", "5", address]);
        let status = mirror.assert_balanced();
        mirror.stop().assert_clean();
        let echoes: Vec<_> = copies
            .rest()
            .into_iter()
            .filter(|copy| copy.inner[12..14] == [8, 0] && copy.inner[23] == 1)
            .map(|copy| (copy.inner[34], copy.inner[41]))
            .collect();
        assert_eq!(echoes.len(), 10, "{interface}: {echoes:?}\n{status}");
    }
}
