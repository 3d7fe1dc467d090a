//! Where our own copies come back inside other packets: behind a user-space tunnel that leaves by the
//! tapped interface, and from a host that mirrors to us. Exactly one copy of each packet as long as it
//! is few, and an end within 100 ms when it is many.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/guard_lab.rs"]
mod guard_lab;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/tun_relay.rs"]
mod tun_relay;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use common::netns::{self, Namespace};
use common::raw_socket::{self, Capture, Captured, RawSocket};
use copies::{assert_one_each, Copy};
use guard_lab::{COLLECTOR, HOST, HOST_MAC, ROUTER, ROUTER_MAC};
use mirror::{source, target, Mirror};
use tun_relay::TunRelay;

const LIMIT: Duration = Duration::from_millis(100);
const GAP: Duration = Duration::from_millis(20);
const FLOOD: u32 = 60_000;

/// The host, whose way to the collector is a tunnel to the router.
struct Tunnelled {
    host: Namespace,
    router: Namespace,
    _relay: TunRelay,
    /// The tunnel's other end; nobody needs what arrives.
    _end: UdpSocket,
}

impl Tunnelled {
    fn new() -> Tunnelled {
        let (host, router) = (Namespace::new(), Namespace::new());
        guard_lab::link(&host, &router);
        let end = {
            let _there = router.enter();
            UdpSocket::bind((ROUTER, tun_relay::PORT)).expect("bind the tunnel's end")
        };
        let relay = TunRelay::start(&host, "203.0.113.1/24", 1400, HOST, ROUTER);
        Tunnelled {
            host,
            router,
            _relay: relay,
            _end: end,
        }
    }
}

/// The copies that arrived through the tunnel.
fn relayed(frames: &[Captured]) -> Vec<Copy> {
    frames
        .iter()
        .filter_map(|frame| {
            let (_, port, packet) = copies::udp_in(&frame.bytes)?;
            (port == tun_relay::PORT).then_some(())?;
            copies::open(
                &packets::ethernet(packets::IPV4, packet),
                frame.timestamp_ns,
            )
        })
        .collect()
}

/// What came in at the ends of a link.
struct Wire(Vec<Capture>);

impl Wire {
    fn between(ends: &[&Namespace]) -> Wire {
        let listen = |end: &&Namespace| RawSocket::open(end, "eth0").in_background();
        Wire(ends.iter().map(listen).collect())
    }

    fn stop(self) -> Vec<Captured> {
        let mut frames: Vec<_> = self.0.into_iter().flat_map(Capture::stop).collect();
        frames.retain(|frame| !frame.outgoing);
        frames.sort_by_key(|frame| frame.timestamp_ns);
        frames
    }
}

fn first_number_at(frames: &[Captured]) -> u64 {
    frames
        .iter()
        .find(|frame| copies::number_in(&frame.bytes).is_some())
        .expect("a numbered datagram")
        .timestamp_ns
}

#[test]
fn few_packets_behind_a_tunnel_have_one_copy_each() {
    require_root!();
    let lab = Tunnelled::new();
    let (near, far) = (
        copies::sink(&lab.host, HOST),
        copies::sink(&lab.router, ROUTER),
    );
    for url in ["vxlan://203.0.113.2?vni=7", "gre://203.0.113.2?key=7"] {
        let mirror = Mirror::start(&lab.host, &["tap:eth0", "--to", url]);
        assert!(
            mirror.stdout().contains("tun0"),
            "the plan does not warn:\n{}",
            mirror.stdout()
        );
        let wire = Wire::between(&[&lab.router]);
        copies::send(&near, ROUTER, 0..6, 100, GAP);
        copies::send(&far, HOST, 6..12, 100, GAP);
        let status = mirror.assert_balanced();
        let frames = wire.stop();
        mirror.stop().assert_clean();

        let copies = relayed(&frames);
        assert_one_each(&copies, 0..12);
        let (source, target) = (source(&status), target(&status));
        assert_eq!(target.sent_packets, 12, "{status}");
        assert_eq!(source.own_signatures, 12, "{status}");
        assert_eq!(source.dropped["loop_breaker"], 12, "{status}");
        assert_eq!(status.breaker.times_opened, 0);
    }
}

#[test]
fn a_flood_behind_a_tunnel_opens_the_breaker_in_time() {
    require_root!();
    let lab = Tunnelled::new();
    let near = copies::sink(&lab.host, HOST);
    let _far = copies::sink(&lab.router, ROUTER);
    let mirror = Mirror::start(
        &lab.host,
        &["tap:eth0", "--to", "vxlan://203.0.113.2?vni=7"],
    );
    let wire = Wire::between(&[&lab.router]);
    copies::send(&near, ROUTER, 0..FLOOD, 100, Duration::ZERO);
    let status = mirror.assert_balanced();
    let frames = wire.stop();
    netns::wait_until("the log says it", Duration::from_secs(1), || {
        mirror.stderr().contains("STOPPED MIRRORING")
    });
    mirror.stop().assert_clean();

    let copies = relayed(&frames);
    let tally = copies::tally(copies.iter().map(|copy| copy.inner.as_slice()));
    assert_eq!(tally.len(), copies.len(), "a packet was copied twice");
    let first = first_number_at(&frames);
    let last = copies.last().expect("a copy").timestamp_ns;
    let took = Duration::from_nanos(last - first);
    println!("{} copies in {took:?}\n{status}", copies.len());
    assert!(took < LIMIT, "copies for {took:?}");
    assert_eq!(status.breaker.times_opened, 1, "{status}");
    assert!(status.breaker.open);
    let source = source(&status);
    assert!(source.own_signatures >= 16, "{status}");
    assert!(source.dropped["loop_breaker"] > 0, "{status}");
}

/// How often each number stands in what `sender` sent: copies of packets, copies of the other's copies,
/// and deeper.
fn depths(wire: &[Captured], sender: &str) -> Vec<BTreeMap<u32, u32>> {
    let mut depths = vec![BTreeMap::new(); 4];
    for frame in wire {
        let Some(mut copy) = copies::open(&frame.bytes, 0) else {
            continue;
        };
        if copy.source.to_string() != sender {
            continue;
        }
        let mut depth = 0;
        while let Some(inner) = copies::open(&copy.inner, 0) {
            copy = inner;
            depth += 1;
        }
        if let Some(number) = copies::number_in(&copy.inner) {
            *depths[depth.min(3)].entry(number).or_default() += 1;
        }
    }
    depths
}

fn two_hosts(to_router: &str, to_host: &str) {
    let (host, router) = (Namespace::new(), Namespace::new());
    guard_lab::link(&host, &router);
    let near = copies::sink(&host, HOST);
    let far = copies::sink(&router, ROUTER);
    let one = Mirror::start(&host, &["tap:eth0", "--to", to_router]);
    let other = Mirror::start(&router, &["tap:eth0", "--to", to_host]);

    let wire = Wire::between(&[&host, &router]);
    copies::send(&near, ROUTER, 0..3, 100, GAP);
    copies::send(&far, HOST, 3..6, 100, GAP);
    one.assert_balanced();
    other.assert_balanced();
    let frames = wire.stop();
    for sender in [HOST, ROUTER] {
        let depths = depths(&frames, sender);
        let once: BTreeMap<u32, u32> = (0..6).map(|number| (number, 1)).collect();
        // The packet, and the other's copy of it: a packet on the wire as any other. Ours within it
        // is not copied again.
        assert_eq!(depths[..2], [once.clone(), once], "{sender}");
        assert!(depths[2].is_empty() && depths[3].is_empty(), "{depths:?}");
    }
    assert_eq!(one.status().breaker.times_opened, 0);
    assert_eq!(other.status().breaker.times_opened, 0);

    let wire = Wire::between(&[&host, &router]);
    copies::send(&near, ROUTER, 6..FLOOD, 100, Duration::ZERO);
    let mut opened = Vec::new();
    for mirror in [&one, &other] {
        let status = mirror.assert_balanced();
        println!("{status}");
        opened.push(status.breaker.times_opened);
    }
    let frames = wire.stop();
    one.stop().assert_clean();
    other.stop().assert_clean();

    let first = first_number_at(&frames);
    let lasted = |sender: &str| {
        let sent = frames.iter().filter(|frame| {
            copies::open(&frame.bytes, 0).is_some_and(|copy| copy.source.to_string() == sender)
        });
        let times: Vec<u64> = sent.map(|frame| frame.timestamp_ns).collect();
        let last = times.iter().max().copied().unwrap_or(first);
        (
            times.len(),
            Duration::from_nanos(last.saturating_sub(first)),
        )
    };
    let (by_host, by_router) = (lasted(HOST), lasted(ROUTER));
    println!(
        "host {by_host:?}, router {by_router:?}, opened {opened:?}, {} frames",
        frames.len()
    );
    assert!(opened.contains(&1), "{opened:?}");
    assert!(
        by_host.1.min(by_router.1) < LIMIT,
        "{by_host:?} {by_router:?}"
    );
    // Never deeper than a copy of the other's copy, and each once.
    for sender in [HOST, ROUTER] {
        let depths = depths(&frames, sender);
        assert!(depths[2].is_empty() && depths[3].is_empty(), "{sender}");
        assert!(depths[..2]
            .iter()
            .flat_map(BTreeMap::values)
            .all(|&times| times == 1));
    }
}

#[test]
fn two_hosts_that_mirror_to_each_other_with_one_vni() {
    require_root!();
    two_hosts(
        "vxlan://198.51.100.1?vni=7&limit=none",
        "vxlan://198.51.100.2?vni=7&limit=none",
    );
}

#[test]
fn two_hosts_that_mirror_to_each_other_with_two_vnis() {
    require_root!();
    two_hosts(
        "vxlan://198.51.100.1?vni=7&limit=none",
        "vxlan://198.51.100.2?vni=8&limit=none",
    );
}

#[test]
fn two_hosts_that_mirror_to_each_other_in_gre() {
    require_root!();
    two_hosts(
        "gre://198.51.100.1?key=7&limit=none",
        "gre://198.51.100.2?key=7&limit=none",
    );
}

#[test]
fn two_hosts_that_mirror_to_each_other_in_super_packets() {
    require_root!();
    two_hosts(
        "vxlan://198.51.100.1?vni=7&gso=on&limit=none",
        "vxlan://198.51.100.2?vni=7&gso=on&limit=none",
    );
}

/// A frame to the host as the router sends it.
fn to_host(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&HOST_MAC);
    frame[6..12].copy_from_slice(&ROUTER_MAC);
    frame
}

/// Whoever knows our outer header can write it into a packet: such a packet is not copied, but it stops
/// nothing. Errors about our copies count for nothing at all, and errors about others are traffic.
#[test]
fn single_packets_with_our_signature_stop_nothing() {
    require_root!("ping");
    const CRAFTED: u64 = 12;
    const ERRORS: u64 = 50;
    let lab = guard_lab::Routed::new();
    let near = copies::sink(&lab.host, HOST);
    let _far = copies::sink(&lab.router, ROUTER);
    let mirror = Mirror::start(
        &lab.host,
        &["tap:eth0", "--to", "vxlan://203.0.113.2?vni=7"],
    );
    let inner = packets::tcp4("198.51.100.77", 1, "198.51.100.78", 2);
    let own = |vni| {
        packets::V4::new(HOST, COLLECTOR, packets::UDP)
            .packet(&packets::vxlan(61001, 4789, vni, &inner))
    };
    let crafted = to_host(packets::udp4(ROUTER, 5, HOST, copies::PORT, &own(7)));
    let error = |vni| {
        let message = [&[3, 3, 0, 0, 0, 0, 0, 0], own(vni).as_slice()].concat();
        to_host(packets::V4::new(COLLECTOR, HOST, 1).frame(&message))
    };
    let wire = RawSocket::open(&lab.collector, "mon0").in_background();
    let router = RawSocket::open(&lab.router, "eth0");
    copies::send(&near, ROUTER, 0..100, 100, Duration::ZERO);
    for _ in 0..CRAFTED {
        router.send(&crafted);
    }
    for _ in 0..ERRORS {
        router.send(&error(7));
        router.send(&error(8));
    }
    copies::send(&near, ROUTER, 100..200, 100, Duration::ZERO);
    let status = mirror.assert_balanced();
    let frames = wire.stop();
    mirror.stop().assert_clean();

    let copies: Vec<Copy> = copies::copies(&frames);
    assert_one_each(&copies, 0..200);
    assert_eq!(status.breaker.times_opened, 0);
    let source = source(&status);
    assert_eq!(source.own_signatures, CRAFTED, "{status}");
    let others = error(8);
    let copied = copies.iter().filter(|copy| copy.inner == others).count();
    assert_eq!(copied as u64, ERRORS, "errors about others");
    // The collector has no listener and says so a few times by itself.
    let answers = source.dropped["loop_breaker"] - CRAFTED - ERRORS;
    assert!(answers <= 20, "{status}");
}
