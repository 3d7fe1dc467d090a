//! Our own copies in every tunnel, over both IP versions, whole and in fragments; beside each, the packets
//! that differ from it in one thing and stay visible.

use std::net::IpAddr;

use xtee::bpf::own_flows::own_flows;
use xtee::packet::encap::{
    erspan, Inner, Marking, OuterAddresses, OuterFields, OuterTemplate, Tunnel,
};
use xtee::packet::Direction;

use crate::bpf_run::TapBench;
use crate::packets::tcp4;
use crate::require_root;

const SOURCE_PORT: u16 = 61005;

fn ends() -> [(IpAddr, IpAddr); 2] {
    [
        ("198.51.100.1", "203.0.113.2"),
        ("2001:db8:1::1", "2001:db8:2::2"),
    ]
    .map(|(us, collector)| (us.parse().expect("ours"), collector.parse().expect("its")))
}

/// Each tunnel, and another that a receiver tells from it.
fn tunnels() -> Vec<(Tunnel, Tunnel)> {
    let gre = |key, inner| Tunnel::Gre {
        key,
        sequence: true,
        inner,
    };
    let erspan = |version, session| Tunnel::Erspan { version, session };
    let (two, three) = (erspan::Version::Two, erspan::Version::Three);
    vec![
        (
            Tunnel::Vxlan { vni: 7, port: 4789 },
            Tunnel::Vxlan { vni: 8, port: 4789 },
        ),
        (
            Tunnel::Geneve { vni: 7, port: 6081 },
            Tunnel::Geneve { vni: 8, port: 6081 },
        ),
        (
            Tunnel::Geneve { vni: 7, port: 4789 },
            Tunnel::Vxlan { vni: 7, port: 4789 },
        ),
        (gre(None, Inner::Ethernet), gre(Some(0), Inner::Ethernet)),
        (gre(Some(7), Inner::Ethernet), gre(Some(8), Inner::Ethernet)),
        (gre(Some(7), Inner::Ip), gre(Some(7), Inner::Ethernet)),
        (gre(None, Inner::Ip), gre(Some(7), Inner::Ip)),
        (erspan(two, 7), erspan(two, 8)),
        (erspan(two, 7), erspan(three, 7)),
        (erspan(three, 1023), erspan(three, 1022)),
    ]
}

fn frame(us: IpAddr, collector: IpAddr, tunnel: Tunnel, ethertype: u16) -> Vec<u8> {
    let addresses = OuterAddresses {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: us,
        destination: collector,
    };
    let template =
        OuterTemplate::new(&addresses, Marking::default(), tunnel).expect("one IP version");
    let inner = tcp4("192.0.2.1", 1, "192.0.2.2", 2);
    let inner = match tunnel.inner() {
        Inner::Ethernet => &inner[..],
        Inner::Ip => &inner[14..],
    };
    let fields = OuterFields {
        source_port: SOURCE_PORT,
        flow_label: 0x12345,
        sequence: 0x9999_9999,
        ethertype,
        tci: Some(0xefff),
        timestamp: 0x8888_8888,
        direction: Direction::Out,
        ..OuterFields::default()
    };
    let mut frame = vec![0; template.overhead()];
    template
        .write(&mut frame, inner.len(), &fields)
        .expect("it fits");
    frame.extend(inner);
    template.finish_checksum(&mut frame);
    frame
}

#[track_caller]
fn assert_own(tap: &mut TapBench, frame: &[u8], what: &str) {
    let seen = tap.run(Direction::Out, frame);
    let counts = (seen.added.own_copies, seen.added.seen);
    assert_eq!(counts, (1, 0), "{what}: {frame:02x?}");
    assert!(seen.copy.is_none());
    let seen = tap.run(Direction::In, frame);
    let counts = (seen.added.own_copies, seen.added.captured);
    assert_eq!(counts, (0, 1), "{what}, coming in");
}

#[track_caller]
fn assert_visible(tap: &mut TapBench, frame: &[u8], what: &str) {
    let seen = tap.run(Direction::Out, frame);
    let counts = (seen.added.own_copies, seen.added.captured);
    assert_eq!(counts, (0, 1), "{what}: {frame:02x?}");
}

/// Where the transport header stands.
fn transport(frame: &[u8]) -> usize {
    14 + if frame[14] >> 4 == 4 { 20 } else { 40 }
}

#[test]
fn every_tunnel_over_both_versions_and_its_neighbours() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    for (us, collector) in ends() {
        for (tunnel, other) in tunnels() {
            let what = format!("{tunnel:?} to {collector}");
            let set = |tap: &TapBench, flows: &[_]| tap.tap.set_own_flows(flows).expect("fits");
            let ours = frame(us, collector, tunnel, 0x0800);
            set(&tap, &[]);
            assert_visible(&mut tap, &ours, &what);
            set(&tap, &own_flows(collector, &tunnel, 61000..=61063));
            assert_own(&mut tap, &ours, &what);
            // GRE with IP inside has two protocol types.
            assert_own(&mut tap, &frame(us, collector, tunnel, 0x86dd), &what);
            assert_visible(&mut tap, &frame(us, collector, other, 0x0800), &what);
            assert_visible(&mut tap, &frame(collector, us, tunnel, 0x0800), &what);
            let at = transport(&ours);
            // The last byte of the destination address, and each byte of it that IPv6 alone has.
            for byte in [at - 1, at - 5, at - 9, at - 13]
                .into_iter()
                .take(if at == 34 { 1 } else { 4 })
            {
                let mut elsewhere = ours.clone();
                elsewhere[byte] ^= 1;
                assert_visible(&mut tap, &elsewhere, &format!("{what}, byte {byte}"));
            }
            if tunnel.udp_port().is_some() {
                for (field, port) in [(at, 60999), (at, 61064), (at + 2, 61000)] {
                    let mut elsewhere = ours.clone();
                    elsewhere[field..field + 2].copy_from_slice(&u16::to_be_bytes(port));
                    assert_visible(&mut tap, &elsewhere, &format!("{what}, port {port}"));
                }
            }
            // Cut off within the tunnel header.
            assert_visible(&mut tap, &ours[..at + 3], &what);
        }
    }
}

/// An IPv4 address must not be taken for the IPv6 address that begins with the same bytes.
#[test]
fn the_versions_are_told_apart() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let tunnel = Tunnel::Vxlan { vni: 7, port: 4789 };
    let [v4, v6]: [IpAddr; 2] = ["32.1.13.184", "2001:db8::"].map(|text| text.parse().unwrap());
    let flows = own_flows(v4, &tunnel, 61000..=61063);
    tap.tap.set_own_flows(&flows).expect("it fits");
    let us = ends();
    assert_own(&mut tap, &frame(us[0].0, v4, tunnel, 0), "IPv4");
    assert_visible(&mut tap, &frame(us[1].0, v6, tunnel, 0), "IPv6");
}

/// Cuts the outer packet in two behind `first` bytes of its payload.
fn fragments(frame: &[u8], first: usize, identification: u16) -> [Vec<u8>; 2] {
    let at = transport(frame);
    let payload = &frame[at..];
    let piece = |range: std::ops::Range<usize>, offset: usize, more: bool| {
        let part = &payload[range];
        let field = (offset as u16) | u16::from(more);
        let mut piece = frame[..at].to_vec();
        if frame[14] >> 4 == 4 {
            piece[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            piece[18..20].copy_from_slice(&identification.to_be_bytes());
            let field = (offset as u16 / 8) | if more { 0x2000 } else { 0 };
            piece[20..22].copy_from_slice(&field.to_be_bytes());
        } else {
            let next = std::mem::replace(&mut piece[20], 44);
            piece[18..20].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
            piece.extend([next, 0]);
            piece.extend(field.to_be_bytes());
            piece.extend(u32::from(identification).to_be_bytes());
        }
        piece.extend(part);
        piece
    };
    [
        piece(0..first, 0, true),
        piece(first..payload.len(), first, false),
    ]
}

#[test]
fn later_fragments_of_ours_are_known_by_their_first() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    for (us, collector) in ends() {
        for (number, (tunnel, other)) in tunnels().into_iter().enumerate() {
            let what = format!("{tunnel:?} to {collector}");
            let flows = own_flows(collector, &tunnel, 61000..=61063);
            tap.tap.set_own_flows(&flows).expect("it fits");
            let id = 100 * (number as u16 + 1);
            let [first, later] = fragments(&frame(us, collector, tunnel, 0x0800), 32, id);
            assert_visible(&mut tap, &later, &format!("{what}: before its first"));
            assert_own(&mut tap, &first, &what);
            assert_own(&mut tap, &later, &what);
            // Another datagram's, and one of another tunnel to the same host.
            let [_, stranger] = fragments(&frame(us, collector, tunnel, 0x0800), 32, id + 1);
            assert_visible(&mut tap, &stranger, &what);
            let theirs = fragments(&frame(us, collector, other, 0x0800), 32, id + 2);
            for piece in &theirs {
                assert_visible(&mut tap, piece, &what);
            }
        }
    }
}
