//! The exact bits of each tunnel's own header.

use super::super::*;
use super::{erspan, gre as gre_tunnel, template, wrap};
use crate::packet::headers::ETHERTYPE_BRIDGED;
use crate::packet::Direction;

/// Flags exactly 0x08 and no reserved bit, whatever the identifier.
#[test]
fn vxlan_header_bits() {
    assert_eq!(
        vxlan::header(0x00ab_cdef),
        [8, 0, 0, 0, 0xab, 0xcd, 0xef, 0]
    );
    assert_eq!(vxlan::header(u32::MAX), [8, 0, 0, 0, 0xff, 0xff, 0xff, 0]);
    assert_eq!(vxlan::parse(&vxlan::header(7)), Some((7, 8)));
    assert_eq!(vxlan::parse(&[0; 8]), None);
    assert_eq!(vxlan::parse(&vxlan::header(7)[..7]), None);
}

#[test]
fn geneve_header_bits() {
    let header = geneve::header(0x00ab_cdef);
    assert_eq!(header, [0, 0, 0x65, 0x58, 0xab, 0xcd, 0xef, 0]);
    assert_eq!(geneve::parse(&header), Some((0x00ab_cdef, 8)));
    assert_eq!(geneve::parse(&header[..7]), None);
    // Version 1, a control packet, IPv4 inside.
    for (at, value) in [(0, 0x40), (1, 0x80), (2, 0x08)] {
        let mut bad = header;
        bad[at] = value;
        assert_eq!(geneve::parse(&bad), None, "byte {at}");
    }
    // Options are stepped over, critical ones too: we only look for the frame.
    let with_options = [&[2, 0x40, 0x65, 0x58, 0, 0, 7, 0][..], &[9; 8]].concat();
    assert_eq!(geneve::parse(&with_options), Some((7, 16)));
    assert_eq!(geneve::parse(&with_options[..15]), None);
}

#[test]
fn gre_header_bits() {
    let bytes = |key: Option<u32>, sequence: Option<u32>| {
        let length = gre::length(key.is_some(), sequence.is_some());
        gre::header(ETHERTYPE_BRIDGED, key, sequence)[..length].to_vec()
    };
    assert_eq!(bytes(None, None), [0, 0, 0x65, 0x58]);
    assert_eq!(bytes(Some(5), None), [0x20, 0, 0x65, 0x58, 0, 0, 0, 5]);
    assert_eq!(bytes(None, Some(6)), [0x10, 0, 0x65, 0x58, 0, 0, 0, 6]);
    let both = [0x30, 0, 0x65, 0x58, 0, 0, 0, 5, 0, 0, 0, 6];
    assert_eq!(bytes(Some(5), Some(6)), both);
}

#[test]
fn gre_that_is_not_ours_is_refused() {
    let good = gre::header(ETHERTYPE_BRIDGED, Some(1), Some(2));
    assert!(gre::parse(&good).is_some());
    assert_eq!(gre::parse(&good[..11]), None);
    // With routing, with a version.
    for (at, value) in [(0, 0x70), (1, 1)] {
        let mut bad = good;
        bad[at] = value;
        assert_eq!(gre::parse(&bad), None, "byte {at}");
    }
    // A checksum is stepped over.
    let summed = [0xa0, 0, 0x65, 0x58, 9, 9, 0, 0, 0, 0, 0, 5];
    let header = gre::parse(&summed).unwrap();
    assert_eq!((header.key, header.length), (Some(5), 12));
    // The decapsulation knows what is inside.
    let ports = TunnelPorts::default();
    let tunnel = gre_tunnel(None, false, Inner::Ethernet);
    let mut frame = wrap(
        &template(tunnel, IpVersion::V4),
        &[0; 60],
        &OuterFields::default(),
    );
    assert!(decapsulate(&frame, ports).is_some());
    frame[36..38].copy_from_slice(&[0x88, 0x0b]);
    assert_eq!(decapsulate(&frame, ports), None, "PPP");
}

/// draft-foschiano-erspan-03 section 4.2.
#[test]
fn erspan_ii_header_bits() {
    let fields = OuterFields {
        sequence: 0x0102_0304,
        ..OuterFields::default()
    };
    let template = template(erspan(erspan::Version::Two), IpVersion::V4);
    let header = |fields| wrap(&template, &[], fields)[34..].to_vec();
    // GRE: S alone, 0x88be. ERSPAN: version 1, no tag, session 0x2aa, index 0.
    let untagged = [
        0x10, 0, 0x88, 0xbe, 1, 2, 3, 4, 0x10, 0, 0x02, 0xaa, 0, 0, 0, 0,
    ];
    assert_eq!(header(&fields), untagged);
    // VLAN 0xabc, priority 5: class of service 5, En 3 (the tag stands in the frame).
    let tagged = OuterFields {
        tci: Some(0xaabc),
        ..fields
    };
    assert_eq!(header(&tagged)[8..12], [0x1a, 0xbc, 0xba, 0xaa]);
    let parsed = erspan::parse(erspan::TYPE_II, &header(&tagged)[8..]).unwrap();
    assert_eq!((parsed.session, parsed.tci), (0x2aa, 0xaabc));
    assert_eq!((parsed.length, parsed.capture), (8, None));
    assert_eq!(erspan::parse(erspan::TYPE_II, &untagged[8..15]), None);
    assert_eq!(erspan::parse(erspan::TYPE_III, &untagged[8..]), None);
}

/// draft-foschiano-erspan-03 section 4.3.
#[test]
fn erspan_iii_header_bits() {
    let fields = OuterFields {
        sequence: 1,
        tci: Some(0xa003),
        timestamp: 0x1122_3344,
        direction: Direction::Out,
        ..OuterFields::default()
    };
    let template = template(erspan(erspan::Version::Three), IpVersion::V6);
    let bytes = wrap(&template, &[], &fields)[54..].to_vec();
    // S alone, 0x22eb; version 2, VLAN 3, class 5, session; time; no group; P, egress, 100 ns.
    let wanted = [
        0x10, 0, 0x22, 0xeb, 0, 0, 0, 1, 0x20, 3, 0xa2, 0xaa, 0x11, 0x22, 0x33, 0x44, 0, 0, 0x80,
        0x0a,
    ];
    assert_eq!(bytes, wanted);
    let parsed = erspan::parse(erspan::TYPE_III, &bytes[8..]).unwrap();
    let capture = parsed.capture.unwrap();
    assert_eq!(capture.direction, Direction::Out);
    assert_eq!((parsed.length, parsed.session), (12, 0x2aa));
    // Another's header, with a platform's part and another granularity.
    let mut other = [&bytes[8..], &[0; 8]].concat();
    other[11] = 0x01;
    let parsed = erspan::parse(erspan::TYPE_III, &other).unwrap();
    assert_eq!(parsed.length, 20);
    let capture = parsed.capture.unwrap();
    assert!(!capture.unit_is_100_ns);
    assert_eq!(capture.direction, Direction::In);
    assert_eq!(erspan::parse(erspan::TYPE_III, &other[..19]), None);
}

#[test]
fn the_time_stamp_counts_tenths_of_microseconds_and_wraps() {
    assert_eq!(erspan::timestamp(1_000_000_000), 10_000_000);
    assert_eq!(erspan::timestamp(199), 1);
    assert_eq!(erspan::timestamp((1 << 32) * 100 + 500), 5);
}

/// ERSPAN I has no sequence number and no header: not ours.
#[test]
fn erspan_i_is_not_taken_apart() {
    let tunnel = gre_tunnel(None, false, Inner::Ethernet);
    let mut frame = wrap(
        &template(tunnel, IpVersion::V4),
        &[0x10; 60],
        &OuterFields::default(),
    );
    frame[36..38].copy_from_slice(&erspan::TYPE_II.to_be_bytes());
    assert_eq!(decapsulate(&frame, TunnelPorts::default()), None);
}
