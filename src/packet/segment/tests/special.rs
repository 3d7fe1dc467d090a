//! Super-packets that are rare: BIG TCP, runs of tunnelled datagrams, and what must be refused.

use super::super::super::encap::vxlan;
use super::super::super::testing::{
    ethernet, Extension, IpSpec, Spec, TransportSpec, TunnelKind, TunnelSpec,
};
use super::super::super::{
    cut, wire_packets, Checksum, CutError, FrameMeta, Gso, Packets, VlanTag,
};
use super::{cut_all, unfinished, v4};
use crate::reason::Reason;

const MALFORMED: CutError = CutError::Drop(Reason::Malformed);

fn v6(extensions: Vec<Extension>) -> IpSpec {
    IpSpec::V6 {
        source: [0x20; 16],
        destination: [0x21; 16],
        extensions,
    }
}

fn tcp(ip: IpSpec, length: usize) -> Spec {
    let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
    Spec {
        transport: TransportSpec::Tcp {
            sequence: 0xffff_f000,
            flags: 0x89,
            urgent: 0,
            options: 3,
        },
        ..super::tcp(ip, &payload)
    }
}

fn super_packet(frame: &[u8], gso: Gso, gso_size: u16) -> FrameMeta {
    FrameMeta {
        gso,
        gso_size,
        ..FrameMeta::plain(frame.len() as u32)
    }
}

/// Headers that say 1000 bytes, then all of the payload: no length field could say it.
fn big(spec: &Spec) -> Vec<u8> {
    let mut small = spec.clone();
    small.payload.truncate(1000);
    let built = small.build();
    [&built.bytes[..built.payload], &spec.payload].concat()
}

fn expected(spec: &Spec, gso_size: usize) -> Vec<Vec<u8>> {
    let count = spec.payload.len().div_ceil(gso_size);
    (0..count)
        .map(|index| spec.piece(index, count, gso_size).build().bytes)
        .collect()
}

#[test]
fn big_tcp_over_ipv4_has_no_total_length() {
    let spec = tcp(v4(), 150_000);
    let mut frame = big(&spec);
    frame[16..18].fill(0);
    let meta = super_packet(&frame, Gso::Tcp, 1448);
    assert_eq!(wire_packets(&meta, &frame), Some(104));
    assert_eq!(cut_all(&meta, &frame).unwrap(), expected(&spec, 1448));
}

#[test]
fn big_tcp_over_ipv6_loses_its_jumbo_header() {
    let tag = (0x8100, 42);
    for tags in [vec![], vec![tag]] {
        let spec = Spec {
            tags,
            ..tcp(v6(vec![]), 150_000)
        };
        let mut frame = big(&spec);
        let ip = 14 + 4 * spec.tags.len();
        let length = (frame.len() - ip - 40 + 8) as u32;
        let mut hop_by_hop = vec![6, 0, 0xc2, 4];
        hop_by_hop.extend(length.to_be_bytes());
        frame.splice(ip + 40..ip + 40, hop_by_hop);
        frame[ip + 6] = 0;
        frame[ip + 4..ip + 6].fill(0);
        let meta = super_packet(&frame, Gso::Unknown, 1428);
        assert_eq!(wire_packets(&meta, &frame), Some(106));
        assert_eq!(cut_all(&meta, &frame).unwrap(), expected(&spec, 1428));

        if !spec.tags.is_empty() {
            let mut stripped = frame.clone();
            stripped.drain(12..16);
            let vlan = Some(VlanTag {
                tci: tag.1,
                protocol: tag.0,
            });
            let meta = FrameMeta { vlan, ..meta };
            assert_eq!(cut_all(&meta, &stripped).unwrap(), expected(&spec, 1428));
        }
    }
}

#[test]
fn big_tcp_over_ipv6_without_the_jumbo_header() {
    let spec = tcp(v6(vec![]), 100_000);
    let mut frame = big(&spec);
    frame[18..20].fill(0);
    let meta = super_packet(&frame, Gso::Tcp, 1428);
    assert_eq!(cut_all(&meta, &frame).unwrap(), expected(&spec, 1428));
}

/// A sender with `UDP_SEGMENT` to the VXLAN port: each datagram has its own VXLAN header.
#[test]
fn a_run_of_vxlan_datagrams_is_split_at_the_datagrams() {
    let inner = tcp(v4(), 100).build().bytes;
    let datagram = [vxlan::header(7).as_slice(), &inner].concat();
    let spec = Spec {
        transport: TransportSpec::Udp { checksum: true },
        ports: (61001, 4789),
        payload: datagram.repeat(5),
        ..tcp(v4(), 0)
    };
    let built = spec.build_unfinished();
    for gso in [Gso::Udp, Gso::Unknown] {
        let mut meta = super_packet(&built.bytes, gso, datagram.len() as u16);
        meta.checksum = unfinished(&spec, &built);
        let packets = cut_all(&meta, &built.bytes).unwrap();
        assert_eq!(packets, expected(&spec, datagram.len()));
    }
}

/// The field is 0 but unfinished: the checksum is to come, so 0 does not mean "none".
#[test]
fn an_unfinished_zero_is_computed() {
    let spec = Spec {
        transport: TransportSpec::Udp { checksum: true },
        ports: (5000, 443),
        ..tcp(v4(), 3000)
    };
    let mut built = spec.build();
    built.bytes[built.transport + 6..][..2].fill(0);
    let mut meta = super_packet(&built.bytes, Gso::Udp, 1200);
    meta.checksum = unfinished(&spec, &built);
    assert_eq!(cut_all(&meta, &built.bytes).unwrap(), expected(&spec, 1200));
}

/// A sum that would be 0 is written as 0xffff in every datagram, because 0 means "none".
#[test]
fn udp_zero_becomes_ones_in_each_piece() {
    for value in 0..=u16::MAX {
        let spec = Spec {
            transport: TransportSpec::Udp { checksum: true },
            ports: (5000, 443),
            payload: [value.to_be_bytes(), [1, 2]].concat(),
            ..tcp(v4(), 0)
        };
        let expected = expected(&spec, 2);
        if expected[0][40..42] != [0xff, 0xff] {
            continue;
        }
        let frame = spec.build_unfinished().bytes;
        let meta = super_packet(&frame, Gso::Udp, 2);
        assert_eq!(cut_all(&meta, &frame).unwrap(), expected);
        return;
    }
    panic!("no payload gives the checksum 0xffff");
}

fn assert_refused(frame: &[u8], gso: Gso, gso_size: u16) {
    let meta = super_packet(frame, gso, gso_size);
    let mut out = Packets::default();
    assert_eq!(wire_packets(&meta, frame), None);
    assert_eq!(cut(&meta, frame, 0, &mut out), Err(MALFORMED));
    assert!(out.is_empty());
}

#[test]
fn what_is_not_understood_is_refused() {
    let spec = tcp(v4(), 3000);
    let frame = spec.build().bytes;
    // The kernel's mark for pieces in a list.
    assert_refused(&frame, Gso::Unknown, 0xffff);
    // The kernel says UDP, the header says TCP, and the other way round.
    assert_refused(&frame, Gso::Udp, 1000);
    let udp = Spec {
        transport: TransportSpec::Udp { checksum: true },
        ..spec
    };
    assert_refused(&udp.build().bytes, Gso::Tcp, 1000);

    let changed = |at: usize, value| {
        let mut frame = frame.clone();
        frame[at] = value;
        frame
    };
    let esp = changed(23, 50);
    assert_refused(&esp, Gso::Unknown, 1000);
    let fragment = changed(20, 0x20);
    assert_refused(&fragment, Gso::Tcp, 1000);
    let short_tcp_header = changed(46, 0x40);
    assert_refused(&short_tcp_header, Gso::Tcp, 1000);
    assert_refused(&ethernet(&[], 0x0806, &[0; 2000]), Gso::Unknown, 1000);
    assert_refused(&[], Gso::Unknown, 1000);
}

#[test]
fn gre_with_a_sequence_number_is_refused() {
    let kind = TunnelKind::Gre {
        key: true,
        checksum: false,
    };
    let spec = Spec {
        tunnel: Some(TunnelSpec {
            kind,
            outer: v4(),
            inner_tag: None,
        }),
        ..tcp(v4(), 3000)
    };
    let mut frame = spec.build().bytes;
    assert!(wire_packets(&super_packet(&frame, Gso::Tcp, 1000), &frame).is_some());
    frame[34] = 0x10;
    assert_refused(&frame, Gso::Tcp, 1000);
}

#[test]
fn a_truncated_super_packet_is_refused() {
    let frame = tcp(v4(), 3000).build().bytes;
    let meta = super_packet(&frame, Gso::Tcp, 1000);
    let short = &frame[..2000];
    assert_eq!(wire_packets(&meta, short), Some(3));
    assert_eq!(cut_all(&meta, short), Err(MALFORMED));
}

#[test]
fn more_pieces_than_fit_are_refused_and_fewer_wait() {
    let frame = tcp(v4(), 64_000).build().bytes;
    let small = super_packet(&frame, Gso::Tcp, 1);
    assert_eq!(
        cut_all(&small, &frame),
        Err(CutError::Drop(Reason::SuperPacket))
    );

    let meta = super_packet(&frame, Gso::Tcp, 60);
    let mut out = Packets::default();
    assert_eq!(cut(&meta, &frame, 0, &mut out), Ok(1067));
    assert_eq!(cut(&meta, &frame, 1, &mut out), Err(CutError::NoRoom));
    assert_eq!(out.len(), 1067);
    out.clear();
    assert_eq!(cut(&meta, &frame, 1, &mut out), Ok(1067));
}

#[test]
fn a_default_batch_holds_1100_packets_with_long_headers() {
    let ip = v6(vec![
        Extension::Padding {
            kind: 60,
            units: 20,
        },
        Extension::Padding {
            kind: 60,
            units: 25,
        },
    ]);
    let spec = tcp(ip, 1100 * 8);
    let built = spec.build_unfinished();
    assert!((460..=512).contains(&built.payload), "{}", built.payload);
    let mut meta = super_packet(&built.bytes, Gso::Tcp, 8);
    meta.checksum = unfinished(&spec, &built);
    assert_eq!(cut_all(&meta, &built.bytes).unwrap(), expected(&spec, 8));
}

/// GRO checked the pieces before it joined them: the field of the whole means nothing.
#[test]
fn the_checksum_of_the_whole_does_not_matter() {
    let spec = tcp(v4(), 3000);
    let mut built = spec.build();
    built.bytes[built.transport + 16] ^= 0x5a;
    let mut meta = super_packet(&built.bytes, Gso::Tcp, 1000);
    meta.checksum = Checksum::Finished;
    assert_eq!(cut_all(&meta, &built.bytes).unwrap(), expected(&spec, 1000));
}
