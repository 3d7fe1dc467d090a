//! The MTU ladder end to end: what does not fit the mirror path arrives whole all the same, in as many pieces as
//! it takes, and the balance counts copies.

#[macro_use]
mod common;
#[path = "common/compare.rs"]
mod compare;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/odd_frames.rs"]
mod odd_frames;
#[path = "common/production.rs"]
mod production;
#[path = "common/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xtee::packet::encap::Tunnel;
use xtee::telemetry::status::{Status, TargetStatus};

use common::netns::{veth, wait_until, Namespace, VethEnd};
use mirror::{target, Mirror, TestFolder};
use production::{worker_cpu, MirrorDevice, Production, ETH, INSTANCE_V4, MIRROR, MONITOR};
use wire::{checksum, WireCapture};

const VXLAN: &str = "vxlan://203.0.113.2?vni=7";
const TUNNEL: Tunnel = Tunnel::Vxlan { vni: 7, port: 4789 };
const ETHERNET: usize = 14;
const PATIENCE: Duration = Duration::from_secs(15);

/// A mirror path of 1500 bytes, as production's.
fn narrow() -> Production {
    let production = Production::new(MirrorDevice::Splits);
    production
        .instance
        .ip(&["link", "set", MIRROR, "mtu", "1500"]);
    production
        .collector
        .ip(&["link", "set", MONITOR, "mtu", "1500"]);
    production
}

fn start(production: &Production, url: &str, transmit: &str) -> Mirror {
    let arguments = [
        "tap:eth0",
        "--to",
        url,
        "--transmit",
        transmit,
        "--cpus",
        worker_cpu(),
        "--ring-size",
        "128MiB",
    ];
    Mirror::start(&production.instance, &arguments)
}

/// A TCP packet's flow, sequence number, flags and payload.
fn tcp(frame: &[u8]) -> Option<(Vec<u8>, u32, u8, &[u8])> {
    if frame.get(12..14)? != [8, 0] || frame[23] != 6 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let segment = frame.get(34..ETHERNET + total)?;
    let flow = [&frame[26..34], &segment[..4]].concat();
    let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
    let header = usize::from(segment[12] >> 4) * 4;
    Some((flow, sequence, segment[13], &segment[header..]))
}

/// What each direction of each connection carried, from its SYN on.
fn streams<'f>(frames: impl IntoIterator<Item = &'f [u8]>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut first = BTreeMap::new();
    let mut streams: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (flow, sequence, flags, payload) in frames.into_iter().filter_map(tcp) {
        if flags & 2 != 0 {
            first.insert(flow.clone(), sequence.wrapping_add(1));
        }
        let Some(first) = first.get(&flow) else {
            continue;
        };
        let at = sequence.wrapping_sub(*first) as usize;
        let stream = streams.entry(flow).or_default();
        if payload.is_empty() {
            continue;
        }
        if stream.len() < at + payload.len() {
            stream.resize(at + payload.len(), 0);
        }
        stream[at..at + payload.len()].copy_from_slice(payload);
    }
    streams
}

/// Everything was sent, and how many copies that were.
fn all_sent(status: &Status) -> &TargetStatus {
    let sender = target(status);
    assert_eq!(sender.sent_packets, sender.offered, "{status}");
    assert!(status.imbalances().is_empty(), "{status}");
    sender
}

fn resegmented(transmit: &str, bytes: &str) {
    let production = narrow();
    let folder = TestFolder::new();
    let originals = WireCapture::start(&production.client, ETH);
    let arrived = WireCapture::incoming(&production.collector, MONITOR);
    let mirror = start(&production, VXLAN, transmit);
    production.http(folder.path(), "page.bin", b"", 8 << 20);
    production.iperf(INSTANCE_V4, &["-n", bytes]);
    let status = mirror.settled();
    println!("{status}");
    let sender = all_sent(&status);
    assert!(sender.resegmented > 1000, "{status}");
    assert_eq!((sender.fragmented, sender.truncated), (0, 0), "{status}");
    let expected = sender.offered - sender.resegmented + sender.pieces;
    wait_until("the last copy", PATIENCE, || arrived.count() >= expected);
    mirror.stop().assert_clean();
    // Every one a whole datagram of at most 1500 bytes: `copies` asserts it.
    let copies = compare::copies(&arrived.stop(), TUNNEL, 1500);
    for copy in &copies {
        let inner = &copy.inner;
        if inner[12..14] != [8, 0] {
            continue;
        }
        let total = usize::from(u16::from_be_bytes([inner[16], inner[17]]));
        assert!(ETHERNET + total <= inner.len(), "truncated");
        assert_eq!(checksum(&inner[14..34]), 0);
        if inner[23] == 6 {
            let segment = &inner[34..ETHERNET + total];
            let length = (segment.len() as u16).to_be_bytes();
            let pseudo = [&inner[26..34], &[0, 6], &length, segment].concat();
            assert_eq!(checksum(&pseudo), 0, "TCP checksum");
        }
    }
    let originals: Vec<_> = originals
        .stop()
        .iter()
        .flat_map(|seen| seen.packets())
        .collect();
    let wanted = streams(originals.iter().map(Vec::as_slice));
    let found = streams(copies.iter().map(|copy| copy.inner.as_slice()));
    // What the mirror was not up for yet has no SYN in the copies.
    assert!(found.len() >= 4, "{} streams", found.len());
    for (flow, stream) in &found {
        assert!(wanted[flow] == *stream, "a stream differs");
    }
    let longest = found.values().map(Vec::len).max();
    println!("{} streams, the longest {longest:?} bytes", found.len());
    assert!(longest > Some(8 << 20));
}

macro_rules! require_programs {
    () => {
        require_root!("iperf3", "curl", "python3", "taskset", "ss");
    };
}

#[test]
fn tcp_is_cut_into_segments_that_fit_by_udp() {
    require_programs!();
    let bytes = std::env::var("XTEE_LADDER_BYTES").unwrap_or_else(|_| "40M".to_owned());
    resegmented("udp", &bytes);
}

#[test]
fn tcp_is_cut_into_segments_that_fit_by_af_xdp() {
    require_programs!();
    resegmented("xsk", "10M");
}

/// Reads the datagrams that the collector's kernel has put together, without the VXLAN header.
/// until there are `count`, or none comes for a while.
fn datagrams(socket: &UdpSocket, count: &AtomicU64) -> Vec<Vec<u8>> {
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut buffer = vec![0; 65536];
    let mut found = Vec::new();
    let mut quiet = 0;
    while (found.len() as u64) < count.load(Ordering::Relaxed) && quiet < 20 {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                found.push(buffer[8..length].to_vec());
                quiet = 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => quiet += 1,
            Err(error) => panic!("{error}"),
        }
    }
    found
}

fn in_order_of_bytes(mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.sort();
    frames
}

fn fragmented(url: &str, transmit: &str) {
    let production = narrow();
    let folder = TestFolder::new();
    let socket = production::bind(&production.collector, "203.0.113.2", 4789);
    let stop = Arc::new(AtomicU64::new(u64::MAX));
    let reader = std::thread::spawn({
        let stop = stop.clone();
        move || datagrams(&socket, &stop)
    });
    let mirror = start(&production, url, transmit);
    let originals = WireCapture::start(&production.client, ETH);
    production.http(folder.path(), "page.bin", b"", 100_000);
    let status = mirror.settled();
    let originals = originals.stop();
    println!("{status}");
    let sender = all_sent(&status);
    assert!(sender.fragmented >= 60, "{status}");
    assert_eq!(sender.pieces, 2 * sender.fragmented, "{status}");
    assert_eq!(sender.resegmented, 0, "{status}");
    stop.store(sender.sent_packets, Ordering::Relaxed);
    let found = reader.join().unwrap();
    assert_eq!(found.len() as u64, sender.sent_packets);
    mirror.stop().assert_clean();
    let originals: Vec<_> = originals.iter().flat_map(|seen| seen.packets()).collect();
    let found = in_order_of_bytes(found);
    // The capture begins after the mirror: a packet of the kernel's own between the two is a copy only.
    for original in in_order_of_bytes(originals) {
        assert!(found.binary_search(&original).is_ok(), "a copy is missing");
    }
}

#[test]
fn fragments_by_udp_become_the_original_again() {
    require_programs!();
    fragmented("vxlan://203.0.113.2?vni=7&oversize=fragment", "udp");
}

#[test]
fn fragments_beside_af_xdp_become_the_original_again() {
    require_programs!();
    fragmented("vxlan://203.0.113.2?vni=7&oversize=fragment", "xsk");
}

#[test]
fn truncated_copies_say_how_long_they_were() {
    require_programs!();
    let production = narrow();
    let folder = TestFolder::new();
    let arrived = WireCapture::incoming(&production.collector, MONITOR);
    let url = "vxlan://203.0.113.2?vni=7&oversize=truncate&mtu=1400";
    let mirror = start(&production, url, "udp");
    production.http(folder.path(), "page.bin", b"", 100_000);
    let status = mirror.settled();
    let sender = all_sent(&status);
    assert!(sender.truncated >= 60, "{status}");
    assert_eq!(sender.pieces, 0, "{status}");
    assert_eq!(
        (sender.path_mtu, sender.path_mtu_from.as_str()),
        (1400, "configured")
    );
    wait_until("the last copy", PATIENCE, || {
        arrived.count() >= sender.sent_packets
    });
    let said = mirror.stop();
    said.assert_clean();
    assert!(
        said.stderr.contains("Suricata and Zeek drop truncated"),
        "{}",
        said.stderr
    );
    let copies = compare::copies(&arrived.stop(), TUNNEL, 1400);
    let truncated = copies.iter().filter(|copy| {
        let inner = &copy.inner;
        let total = usize::from(u16::from_be_bytes([inner[16], inner[17]]));
        inner[12..14] == [8, 0] && ETHERNET + total > inner.len()
    });
    assert_eq!(truncated.count() as u64, sender.truncated);
}

#[test]
fn what_is_to_be_dropped_is_dropped_and_counted() {
    require_programs!();
    let production = narrow();
    let folder = TestFolder::new();
    let mirror = start(
        &production,
        "vxlan://203.0.113.2?vni=7&oversize=drop",
        "udp",
    );
    production.http(folder.path(), "page.bin", b"", 100_000);
    let status = mirror.settled();
    let sender = target(&status);
    assert!(status.imbalances().is_empty(), "{status}");
    assert!(sender.dropped["oversize"] >= 60, "{status}");
    assert_eq!(sender.resegmented + sender.fragmented, 0, "{status}");
    mirror.stop().assert_clean();
}

/// The collector of the lab becomes a router; behind it stands another.
fn behind_a_router(production: &Production) -> Namespace {
    let router = &production.collector;
    for (namespace, device, address) in [
        (&production.instance, MIRROR, "203.0.113.1/25"),
        (router, MONITOR, "203.0.113.2/25"),
    ] {
        namespace.ip(&["addr", "flush", "dev", device]);
        namespace.address(device, address);
    }
    let far = Namespace::new();
    veth(
        &VethEnd::new(router, "far0")
            .mtu(1600)
            .address("203.0.113.129/25"),
        &VethEnd::new(&far, "far1")
            .mtu(1600)
            .address("203.0.113.130/25"),
    );
    router.write_sysctl("net/ipv4/ip_forward", "1");
    production
        .instance
        .ip(&["route", "add", "203.0.113.128/25", "via", "203.0.113.2"]);
    far.ip(&["route", "add", "203.0.113.0/25", "via", "203.0.113.129"]);
    far
}

fn path_mtu_is_learned(transmit: &str) {
    let production = Production::new(MirrorDevice::Splits);
    let far = behind_a_router(&production);
    let arrived = WireCapture::incoming(&far, "far1");
    let folder = TestFolder::new();
    let mirror = start(&production, "vxlan://203.0.113.130?vni=7", transmit);
    production.http(folder.path(), "before.bin", b"", 200_000);
    let before = mirror.settled();
    assert_eq!(target(&before).path_mtu, 1600, "{before}");
    assert_eq!(target(&before).resegmented, 0, "{before}");

    production
        .collector
        .ip(&["link", "set", "far0", "mtu", "1400"]);
    // In mid-flow: the first full-size copy brings the router's answer.
    let start = Instant::now();
    production.iperf(INSTANCE_V4, &["-n", "20M"]);
    mirror.wait_for("the learned path MTU", |status| {
        target(status).path_mtu == 1400
    });
    println!("learned within {:?} of the change", start.elapsed());
    let learned = mirror.settled();
    println!("{learned}");
    let sender = all_sent(&learned);
    assert_eq!(
        sender.path_mtu_from, "learned from 203.0.113.2",
        "{learned}"
    );
    assert_eq!(sender.path_mtu_changes, 1, "{learned}");
    // The flow that was going on when it happened was cut from then on.
    assert!(sender.resegmented > 1000, "{learned}");

    // From now on every copy arrives, and is whole.
    let passed = arrived.count();
    production.http(folder.path(), "after.bin", b"", 200_000);
    let after = mirror.settled();
    let (then, now) = (target(&learned), all_sent(&after));
    let packets = |status: &TargetStatus| status.sent_packets - status.resegmented + status.pieces;
    wait_until("the last copy", PATIENCE, || {
        arrived.count() - passed >= packets(now) - packets(then)
    });
    mirror.stop().assert_clean();
    for seen in arrived.stop().iter().skip(passed as usize) {
        assert!(seen.bytes.len() <= ETHERNET + 1400);
    }
}

#[test]
fn a_path_that_becomes_narrower_in_mid_flow_by_udp() {
    require_programs!();
    path_mtu_is_learned("udp");
}

#[test]
fn a_path_that_becomes_narrower_in_mid_flow_by_af_xdp() {
    require_programs!();
    path_mtu_is_learned("xsk");
}

#[test]
fn jumbo_production_over_an_ordinary_path() {
    require_programs!();
    let production = narrow();
    for namespace in [&production.client, &production.instance] {
        namespace.ip(&["link", "set", ETH, "mtu", "9001"]);
    }
    let production = production.without_offloads();
    let folder = TestFolder::new();
    let arrived = WireCapture::incoming(&production.collector, MONITOR);
    let mirror = start(&production, VXLAN, "udp");
    production.http(folder.path(), "page.bin", b"", 2 << 20);
    let status = mirror.settled();
    println!("{status}");
    let sender = all_sent(&status);
    assert!(sender.resegmented >= 200, "{status}");
    assert!(sender.pieces >= 6 * sender.resegmented, "{status}");
    wait_until("the last copy", PATIENCE, || {
        arrived.count() >= sender.sent_packets - sender.resegmented + sender.pieces
    });
    mirror.stop().assert_clean();
    let copies = compare::copies(&arrived.stop(), TUNNEL, 1500);
    let page = std::fs::read(folder.path().join("page.bin")).unwrap();
    let found = streams(copies.iter().map(|copy| copy.inner.as_slice()));
    assert!(found.values().any(|stream| stream.ends_with(&page)));
}
