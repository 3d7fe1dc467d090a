//! A tap end to end: what the client's interface saw and what came out of the tunnel at the collector
//! are the same packets, each exactly once, in order, with right checksums.
//!
//! Originals are captured at the client's end of the veth with the kernel's own segment sizes, so that
//! super-packets too are compared packet by packet and byte by byte.

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
#[path = "common/tapped.rs"]
mod tapped;
#[path = "common/wire.rs"]
mod wire;

use xtee::packet::encap::{Inner, Tunnel};

use compare::{assert_tshark_agrees, compare, Comparison, Copy, Expect};
use mirror::{source, target, TestFolder};
use production::{worker_cpu, MirrorDevice, Production, INSTANCE_V4, INSTANCE_V6, MTU};
use tapped::{Outcome, Tapped};
use wire::Seen;

const VXLAN: &str = "vxlan://203.0.113.2?vni=7&limit=none";
const VXLAN_TUNNEL: Tunnel = Tunnel::Vxlan { vni: 7, port: 4789 };

/// A run and what its comparison found.
struct Compared {
    outcome: Outcome,
    compared: Comparison,
}

impl std::ops::Deref for Compared {
    type Target = Outcome;

    fn deref(&self) -> &Outcome {
        &self.outcome
    }
}

/// A whole run: mirrors all traffic, compares, and lets tshark look at the copies.
fn everything(
    production: &Production,
    tunnel: Tunnel,
    arguments: &[&str],
    bytes: &str,
) -> Compared {
    // The ring is larger than any burst here: this is about what is copied, not how fast.
    let common = ["--cpus", worker_cpu(), "--ring-size", "128MiB"];
    let tapped = Tapped::start(production, tunnel, &[&common, arguments].concat());
    let wrong = all_traffic(production, bytes);
    let outcome = tapped.finish();

    let status = &outcome.status;
    let dropped: u64 = source(status).dropped.values().sum();
    assert_eq!(dropped, 0, "{status}");
    let sender = target(status);
    assert_eq!(sender.sent_packets, sender.offered, "{status}");
    let compared = compare(&outcome.originals, &outcome.copies, MTU, Expect::All)
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{compared:?}");
    let folder = TestFolder::new();
    assert_tshark_agrees(&outcome.copies, &wrong, folder.path());
    Compared { outcome, compared }
}

/// Everything that the production network carries here. Returns the frames that are wrong on purpose.
fn all_traffic(production: &Production, bytes: &str) -> Vec<Vec<u8>> {
    let folder = TestFolder::new();
    production.pings();
    production.dns();
    production.http(folder.path(), "page.bin", b"", 300_000);
    production.udp_super_packets();
    for address in [INSTANCE_V4, INSTANCE_V6] {
        production.iperf(address, &["-n", bytes]);
        production.iperf(address, &["-n", bytes, "-R"]);
    }
    production.iperf(
        INSTANCE_V4,
        &["-u", "-b", "50M", "-n", "500K", "-l", "1400"],
    );
    production.raw_frames(odd_frames::right);
    production.raw_frames(odd_frames::unknown);
    production.raw_frames(odd_frames::wrong)
}

fn assert_super_packets(outcome: &Compared) {
    let compared = &outcome.compared;
    let (tcp, udp) = compared.super_packets;
    assert!(tcp > 100, "{compared:?}");
    assert!(udp >= 4, "{compared:?}");
    assert!(compared.unfinished > 100, "{compared:?}");
    assert!(compared.stripped_tags > 0, "{compared:?}");
    // Flows are spread over the outer source ports.
    assert!(compared.ports.len() > 4, "{compared:?}");
}

macro_rules! require_programs {
    () => {
        require_root!("iperf3", "tshark", "dnsmasq", "dig", "curl", "python3", "taskset", "ss");
    };
}

#[test]
fn where_the_kernel_splits_before_the_device() {
    require_programs!();
    let production = Production::new(MirrorDevice::Splits);
    let outcome = everything(&production, VXLAN_TUNNEL, &["--to", VXLAN], "20M");
    let sender = target(&outcome.status);
    assert_eq!(source(&outcome.status).mode, "tcx");
    assert!(sender.transmit.contains("udp, UDP_SEGMENT"), "{sender:?}");
    // Runs leave as super-packets.
    assert!(sender.calls * 4 < sender.sent_packets, "{sender:?}");
    assert_super_packets(&outcome);
}

#[test]
fn where_the_device_takes_super_packets_and_hands_them_on_unsplit() {
    require_programs!();
    let production = Production::new(MirrorDevice::TakesSuperPackets);
    let outcome = everything(&production, VXLAN_TUNNEL, &["--to", VXLAN], "20M");
    // That no copy arrived unsplit is in `copies`.
    let sender = target(&outcome.status);
    assert!(sender.transmit.contains("udp, sendmmsg"), "{sender:?}");
    assert_super_packets(&outcome);
}

#[test]
fn clsact() {
    require_programs!();
    let production = Production::new(MirrorDevice::Splits);
    let arguments = ["--to", VXLAN, "--attach", "clsact"];
    let outcome = everything(&production, VXLAN_TUNNEL, &arguments, "8M");
    assert_eq!(source(&outcome.status).mode, "clsact");
    assert_super_packets(&outcome);
}

/// Without offloads the originals are what a wire carries: nothing is cut or completed, by xtee or by
/// the test.
#[test]
fn packets_of_a_wire_one_by_one() {
    require_programs!();
    for attach in ["tcx", "clsact"] {
        let production = Production::new(MirrorDevice::Splits).without_offloads();
        let arguments = ["--to", VXLAN, "--attach", attach];
        let outcome = everything(&production, VXLAN_TUNNEL, &arguments, "8M");
        assert_eq!(source(&outcome.status).mode, attach);
        let compared = &outcome.compared;
        assert_eq!(compared.super_packets, (0, 0), "{compared:?}");
        assert_eq!(compared.unfinished, 0, "{compared:?}");
        assert_eq!(compared.originals, compared.packets);
        // Four times 8 MB, of which iperf3 does not wait for the last part with -R.
        assert!(compared.bytes > 20_000_000, "{compared:?}");
    }
}

#[test]
fn vxlan_by_af_xdp() {
    require_programs!();
    let production = Production::new(MirrorDevice::Splits);
    let arguments = ["--to", VXLAN, "--transmit", "xsk"];
    let outcome = everything(&production, VXLAN_TUNNEL, &arguments, "8M");
    let sender = target(&outcome.status);
    assert!(sender.transmit.starts_with("xsk, copy"), "{sender:?}");
    assert_super_packets(&outcome);
}

/// Sequence numbers count the copies from 0 (RFC 2890, section 2.2).
fn assert_sequence(outcome: &Compared) {
    let numbers: Vec<u32> = outcome
        .copies
        .iter()
        .filter_map(|copy| copy.sequence)
        .collect();
    assert_eq!(numbers.len(), outcome.copies.len());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn gre_by_af_xdp() {
    require_programs!();
    let production = Production::new(MirrorDevice::Splits);
    let tunnel = Tunnel::Gre {
        key: Some(7),
        sequence: true,
        inner: Inner::Ethernet,
    };
    let arguments = ["--to", "gre://203.0.113.2?key=7&seq=on&limit=none"];
    let outcome = everything(&production, tunnel, &arguments, "8M");
    let sender = target(&outcome.status);
    assert!(sender.transmit.starts_with("xsk, copy"), "{sender:?}");
    assert_sequence(&outcome);
}

#[test]
fn gre_by_a_raw_socket() {
    require_programs!();
    let production = Production::new(MirrorDevice::Splits);
    for sequence in [false, true] {
        let tunnel = Tunnel::Gre {
            key: Some(7),
            sequence,
            inner: Inner::Ethernet,
        };
        let url = match sequence {
            false => "gre://203.0.113.2?key=7&transmit=raw&limit=none",
            true => "gre://203.0.113.2?key=7&transmit=raw&seq=on&limit=none",
        };
        let outcome = everything(&production, tunnel, &["--to", url], "4M");
        assert_eq!(target(&outcome.status).transmit, "raw");
        if sequence {
            assert_sequence(&outcome);
        }
    }
}

/// The comparison itself: every way in which copies can be wrong is noticed.
#[test]
fn the_comparison_notices() {
    let frames: Vec<Vec<u8>> = (0..4u8)
        .map(|number| vec![number; 64])
        .map(as_one_flow)
        .collect();
    let originals: Vec<Seen> = frames.iter().map(|bytes| seen(bytes)).collect();
    let right: Vec<Copy> = frames.iter().map(|bytes| copy(bytes, 61000)).collect();
    let passes = |copies: &[Copy], expect| compare(&originals, copies, MTU, expect).is_ok();
    assert!(passes(&right, Expect::All) && passes(&right, Expect::Some));
    let missing = &right[1..];
    assert!(!passes(missing, Expect::All) && passes(missing, Expect::Some));
    assert!(!passes(&[], Expect::All) && passes(&[], Expect::Some));
    let mut others = vec![right.clone(); 5];
    others[0].push(right[3].clone());
    others[1].swap(1, 2);
    others[2][1].inner[63] ^= 1;
    others[3][1].source_port += 1;
    others[4][1] = copy(&[0xee; 64], 61000);
    for (number, copies) in others.iter().enumerate() {
        assert!(!passes(copies, Expect::All), "{number}");
        assert!(!passes(copies, Expect::Some), "{number}");
    }
}

fn as_one_flow(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    frame
}

fn seen(bytes: &[u8]) -> Seen {
    Seen {
        bytes: bytes.to_vec(),
        outgoing: true,
        gso: None,
        unfinished: None,
        vlan: None,
    }
}

fn copy(inner: &[u8], source_port: u16) -> Copy {
    Copy {
        outer: Vec::new(),
        inner: inner.to_vec(),
        source_port,
        sequence: None,
    }
}
