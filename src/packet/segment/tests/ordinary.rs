//! Frames that are one packet: what is touched, and what must not be.

use super::super::super::crc32c::crc32c;
use super::super::super::testing::{
    ethernet, Extension, IpSpec, Spec, TransportSpec, TunnelKind, TunnelSpec,
};
use super::super::super::{cut, Checksum, CutError, FrameMeta, Packets, VlanTag};
use super::{cut_all, tcp, unfinished, v4};
use crate::reason::Reason;

fn udp(payload: &[u8]) -> Spec {
    Spec {
        transport: TransportSpec::Udp { checksum: true },
        ..tcp(v4(), payload)
    }
}

fn meta(frame: &[u8], checksum: Checksum) -> FrameMeta {
    FrameMeta {
        checksum,
        ..FrameMeta::plain(frame.len() as u32)
    }
}

fn cut_with(frame: &[u8], checksum: Checksum) -> Vec<u8> {
    cut_one(&meta(frame, checksum), frame)
}

fn cut_one(meta: &FrameMeta, frame: &[u8]) -> Vec<u8> {
    let mut packets = cut_all(meta, frame).unwrap();
    assert_eq!(packets.len(), 1);
    packets.remove(0)
}

#[test]
fn nothing_is_copied_where_nothing_changes() {
    let frame = tcp(v4(), b"hello").build().bytes;
    for checksum in [Checksum::Finished, Checksum::Unknown] {
        let mut out = Packets::default();
        assert_eq!(cut(&meta(&frame, checksum), &frame, 0, &mut out), Ok(1));
        assert_eq!(out.refs()[0].head.1, 0);
        assert_eq!(out.refs()[0].tail, (0, frame.len() as u32));
    }
}

#[test]
fn only_the_front_is_copied_where_the_checksum_is_completed() {
    let spec = tcp(v4(), &[0x55; 1000]);
    let built = spec.build_unfinished();
    let mut out = Packets::default();
    let meta = meta(&built.bytes, unfinished(&spec, &built));
    assert_eq!(cut(&meta, &built.bytes, 0, &mut out), Ok(1));
    assert_eq!(usize::from(out.refs()[0].head.1), built.transport + 18);
}

#[test]
fn a_corrupt_packet_stays_corrupt() {
    let mut frame = tcp(v4(), b"payload").build().bytes;
    *frame.last_mut().unwrap() ^= 1;
    for checksum in [Checksum::Finished, Checksum::Unknown] {
        assert_eq!(cut_with(&frame, checksum), frame);
    }
}

#[test]
fn a_finished_field_that_looks_unfinished_is_not_touched() {
    let frame = tcp(v4(), b"payload").build_unfinished().bytes;
    assert_eq!(cut_with(&frame, Checksum::Finished), frame);
}

/// Searches a payload whose finished checksum is the pseudo-header's sum: completing changes nothing.
#[test]
fn completing_a_right_checksum_changes_nothing() {
    for value in 0..=u16::MAX {
        let spec = tcp(v4(), &value.to_be_bytes());
        let built = spec.build();
        let at = built.transport + 16;
        let field = [built.bytes[at], built.bytes[at + 1]];
        let pseudo = spec.ip.pseudo(6, built.bytes.len() - built.transport);
        if u16::from_be_bytes(field) == pseudo {
            assert_eq!(cut_with(&built.bytes, Checksum::Unknown), built.bytes);
            return;
        }
    }
    panic!("no payload gives the pseudo-header's sum");
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut spec = udp(b"data");
    spec.transport = TransportSpec::Udp { checksum: false };
    let frame = spec.build().bytes;
    assert_eq!(cut_with(&frame, Checksum::Unknown), frame);
}

/// A sum that would be 0 is written as 0xffff, because 0 in UDP means "none".
#[test]
fn udp_zero_becomes_ones() {
    for value in 0..=u16::MAX {
        let spec = udp(&value.to_be_bytes());
        let built = spec.build();
        let at = built.transport + 6;
        if built.bytes[at..at + 2] != [0xff, 0xff] {
            continue;
        }
        let raw = spec.build_unfinished();
        for checksum in [Checksum::Unknown, unfinished(&spec, &raw)] {
            assert_eq!(cut_with(&raw.bytes, checksum), built.bytes);
        }
        return;
    }
    panic!("no payload gives the checksum 0xffff");
}

#[test]
fn later_fragments_and_truncated_frames_are_left_alone() {
    let spec = udp(&[1; 64]);
    let built = spec.build_unfinished();
    let short = &built.bytes[..built.bytes.len() - 1];
    for checksum in [Checksum::Unknown, unfinished(&spec, &built)] {
        let meta = meta(&built.bytes, checksum);
        assert_eq!(cut_one(&meta, short), short);
    }

    let mut fragment = built.bytes.clone();
    fragment[21] = 1;
    assert_eq!(cut_with(&fragment, Checksum::Unknown), fragment);
}

#[test]
fn ethernet_padding_is_not_payload() {
    let spec = tcp(v4(), b"");
    let mut frame = spec.build_unfinished().bytes;
    let mut expected = spec.build().bytes;
    frame.extend([0xee; 6]);
    expected.extend([0xee; 6]);
    assert_eq!(cut_with(&frame, Checksum::Unknown), expected);
}

/// The pseudo-header has a length; without one nothing says that the field is unfinished.
#[test]
fn a_packet_without_a_length_is_left_alone() {
    let mut frame = tcp(v4(), b"payload").build_unfinished().bytes;
    frame[16..18].fill(0);
    assert_eq!(cut_with(&frame, Checksum::Unknown), frame);
}

#[test]
fn an_impossible_checksum_place_is_ignored() {
    let frame = tcp(v4(), b"x").build().bytes;
    for (start, offset) in [(60, 16), (u16::MAX, u16::MAX), (0, 8), (40, 8)] {
        let checksum = Checksum::Unfinished { start, offset };
        assert_eq!(cut_with(&frame, checksum), frame);
    }
    let long = vec![0; 4000];
    let far = Checksum::Unfinished {
        start: 3000,
        offset: 16,
    };
    assert_eq!(cut_with(&long, far), long);
}

#[test]
fn the_stripped_tag_comes_back_behind_the_addresses() {
    let spec = Spec {
        tags: vec![(0x88a8, 0x6123), (0x8100, 0x0007)],
        ..tcp(v4(), b"tagged")
    };
    let whole = spec.build_unfinished();
    let mut frame = whole.bytes.clone();
    frame.drain(12..16);
    let vlan = Some(VlanTag {
        tci: 0x6123,
        protocol: 0x88a8,
    });
    let finished = FrameMeta {
        vlan,
        ..meta(&whole.bytes, Checksum::Finished)
    };
    assert_eq!(cut_one(&finished, &frame), whole.bytes);
    let start = (whole.transport - 4) as u16;
    for checksum in [
        Checksum::Unknown,
        Checksum::Unfinished { start, offset: 16 },
    ] {
        let meta = FrameMeta {
            checksum,
            ..finished
        };
        assert_eq!(cut_one(&meta, &frame), spec.build().bytes);
    }
}

#[test]
fn local_sctp_gets_its_crc() {
    let mut sctp = vec![0x9c, 0x40, 0x0b, 0x59, 1, 2, 3, 4, 0, 0, 0, 0];
    sctp.extend(b"chunks of an association");
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 132, 0, 0];
    packet.extend([198, 51, 100, 1, 198, 51, 100, 2]);
    packet[3] = (20 + sctp.len()) as u8;
    packet.extend(&sctp);
    let frame = ethernet(&[], 0x0800, &packet);
    let mut expected = frame.clone();
    expected[42..46].copy_from_slice(&crc32c(&sctp).to_le_bytes());

    let unfinished = Checksum::Unfinished {
        start: 34,
        offset: 8,
    };
    assert_eq!(cut_with(&frame, unfinished), expected);
    assert_eq!(cut_with(&frame, Checksum::Unknown), frame);
}

#[test]
fn an_unfinished_checksum_in_a_tunnel_is_found() {
    let mut spec = tcp(v4(), b"within");
    spec.tunnel = Some(TunnelSpec {
        kind: TunnelKind::Vxlan {
            port: 8472,
            checksum: true,
        },
        outer: v4(),
        inner_tag: None,
    });
    // The kernel computes the outer checksum as if the inner one were finished (lco_csum).
    let expected = spec.build();
    let mut frame = expected.bytes.clone();
    let pseudo = spec.ip.pseudo(6, frame.len() - expected.transport);
    frame[expected.transport + 16..][..2].copy_from_slice(&pseudo.to_be_bytes());
    for checksum in [Checksum::Unknown, unfinished(&spec, &expected)] {
        assert_eq!(cut_with(&frame, checksum), expected.bytes);
    }
}

#[test]
fn the_last_address_of_a_route_is_the_one_that_counts() {
    let ip = IpSpec::V6 {
        source: [1; 16],
        destination: [2; 16],
        extensions: vec![Extension::Route { last: [9; 16] }],
    };
    let spec = tcp(ip, b"routed");
    let frame = spec.build_unfinished().bytes;
    assert_eq!(cut_with(&frame, Checksum::Unknown), spec.build().bytes);
}

#[test]
fn a_full_batch_says_so_and_keeps_what_it_has() {
    let frame = tcp(v4(), b"x").build().bytes;
    let meta = meta(&frame, Checksum::Finished);
    let mut out = Packets::new(2, 0);
    assert_eq!(cut(&meta, &frame, 0, &mut out), Ok(1));
    assert_eq!(cut(&meta, &frame, 1, &mut out), Ok(1));
    assert_eq!(out.remaining(), 0);
    assert_eq!(cut(&meta, &frame, 2, &mut out), Err(CutError::NoRoom));
    assert_eq!(out.len(), 2);
    out.clear();
    assert_eq!(cut(&meta, &frame, 2, &mut out), Ok(1));
    assert_eq!(out.refs()[0].frame, 2);

    // A head that an empty batch cannot hold would never fit.
    let raw = tcp(v4(), b"x").build_unfinished().bytes;
    out.clear();
    let never = cut(&FrameMeta::plain(raw.len() as u32), &raw, 0, &mut out);
    assert_eq!(never, Err(CutError::Drop(Reason::SuperPacket)));
}
