//! The MTU ladder end to end: what does not fit the mirror path arrives whole all the same, in as many pieces as
//! it takes, and the balance counts copies.

#[macro_use]
mod common;
#[path = "common/compare.rs"]
mod compare;
#[path = "common/ladder_lab.rs"]
mod ladder_lab;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/odd_frames.rs"]
mod odd_frames;
#[path = "common/production.rs"]
mod production;
#[path = "common/sensor.rs"]
mod sensor;
#[path = "common/wire.rs"]
mod wire;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use xtee::telemetry::status::TargetStatus;

use common::netns::{run, veth, wait_until, Namespace, VethEnd};
use ladder_lab::{all_sent, narrow, start, streams, tcp, ETHERNET, PATIENCE, TUNNEL, VXLAN};
use mirror::{source, target, TestFolder};
use production::{MirrorDevice, Production, ETH, INSTANCE_V4, MIRROR, MONITOR};
use wire::{checksum, write_pcap, WireCapture};

/// Bytes of iperf3 that are cut by the UDP transmitter, as iperf3's `-n` takes them.
const STREAM: &str = "200M";

fn resegmented(transmit: &str, bytes: &str) {
    let production = narrow();
    let folder = TestFolder::new();
    let originals = WireCapture::start(&production.client, ETH);
    let arrived = WireCapture::incoming(&production.collector, MONITOR);
    let mirror = start(&production, VXLAN, transmit);
    production.http(folder.path(), "page.bin", b"", 8 << 20);
    // At a pace that two busy CPUs follow: what the ring cannot hold is missing in the streams.
    production.iperf(INSTANCE_V4, &["-n", bytes, "-b", "1G"]);
    let status = mirror.settled();
    println!("{status}");
    let tapped = source(&status);
    assert_eq!(tapped.captured, tapped.matched, "{status}");
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
    let originals = originals.stop();
    let wanted = streams(originals.iter().flat_map(|seen| seen.packets()));
    let found = streams(copies.iter().map(|copy| &copy.inner));
    // What the mirror was not up for yet has no SYN in the copies.
    assert!(found.len() >= 4, "{} streams", found.len());
    for (flow, stream) in &found {
        assert!(wanted[flow] == *stream, "a stream differs");
    }
    let longest = found.values().map(Vec::len).max();
    println!("{} streams, the longest {longest:?} bytes", found.len());
    assert!(longest > Some(8 << 20));

    let page = folder.file("page.bin");
    let packets = originals.iter().flat_map(|seen| seen.packets());
    let originals: Vec<_> = packets.filter(|packet| is_web(packet)).collect();
    let copies = copies.iter().filter(|copy| is_web(&copy.inner));
    let copies: Vec<_> = copies.map(|copy| copy.outer.as_slice()).collect();
    assert_suricata_extracts(&page, originals.iter().map(Vec::as_slice), &folder);
    assert_suricata_extracts(&page, copies.into_iter(), &folder);
}

/// A packet to or from the web server.
fn is_web(frame: &[u8]) -> bool {
    tcp(frame).is_some_and(|(flow, ..)| flow[8..].chunks(2).any(|port| port == [0, 80]))
}

/// Suricata finds the page in these frames, whole, with its hash, and no broken packet.
fn assert_suricata_extracts<'f>(
    page: &Path,
    frames: impl Iterator<Item = &'f [u8]>,
    folder: &TestFolder,
) {
    let hashed = run(Command::new("sha256sum").arg(page));
    let hash = hashed.split(' ').next().expect("a hash");
    let capture = folder.file("web.pcap");
    write_pcap(&capture, frames);
    let report = sensor::read(&capture);
    let whole = ("CLOSED".to_owned(), hash.to_owned());
    assert_eq!(report.files, [("/page.bin".to_owned(), whole)].into());
    assert!(report.faults().is_empty(), "{:?}", report.faults());
}

macro_rules! require_programs {
    () => {
        require_root!(
            "iperf3",
            "curl",
            "python3",
            "taskset",
            "ss",
            "suricata",
            "sha256sum"
        );
    };
}

#[test]
fn tcp_is_cut_into_segments_that_fit_by_udp() {
    require_programs!();
    let bytes = std::env::var("XTEE_LADDER_BYTES");
    resegmented("udp", bytes.as_deref().unwrap_or(STREAM));
}

#[test]
fn tcp_is_cut_into_segments_that_fit_by_af_xdp() {
    require_programs!();
    resegmented("xsk", "10M");
}

#[test]
fn truncated_copies_say_how_long_they_were() {
    require_programs!();
    let production = narrow();
    let folder = TestFolder::new();
    let arrived = WireCapture::incoming(&production.collector, MONITOR);
    let url = "vxlan://203.0.113.2?vni=7&limit=none&oversize=truncate&mtu=1400";
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
        "vxlan://203.0.113.2?vni=7&limit=none&oversize=drop",
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
    let mirror = start(
        &production,
        "vxlan://203.0.113.130?vni=7&limit=none",
        transmit,
    );
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
    let found = streams(copies.iter().map(|copy| &copy.inner));
    assert!(found.values().any(|stream| stream.ends_with(&page)));
}
