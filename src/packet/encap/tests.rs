//! Outer headers read back by the decapsulation and by etherparse, and their exact bits.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::packet::testing::slow_sum;
use crate::reason::Reason;

fn addresses(source: u32, destination: u32) -> OuterAddresses {
    OuterAddresses {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source: source.into(),
        destination: destination.into(),
        ttl: 64,
        tos: 0xb8,
    }
}

fn wrap(template: &OuterTemplate, inner: &[u8], fields: &OuterFields) -> Vec<u8> {
    let mut frame = vec![0xee; template.overhead()];
    let written = template.write(&mut frame, inner.len(), fields);
    assert_eq!(written, Ok(template.overhead()));
    frame.extend(inner);
    frame
}

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
fn gre_header_bits() {
    let bytes = |key: Option<u32>, sequence: Option<u32>| {
        let length = gre::length(key.is_some(), sequence.is_some());
        gre::header(key, sequence)[..length].to_vec()
    };
    assert_eq!(bytes(None, None), [0, 0, 0x65, 0x58]);
    assert_eq!(bytes(Some(5), None), [0x20, 0, 0x65, 0x58, 0, 0, 0, 5]);
    assert_eq!(bytes(None, Some(6)), [0x10, 0, 0x65, 0x58, 0, 0, 0, 6]);
    let both = [0x30, 0, 0x65, 0x58, 0, 0, 0, 5, 0, 0, 0, 6];
    assert_eq!(bytes(Some(5), Some(6)), both);
}

#[test]
fn gre_that_is_not_ours_is_refused() {
    let good = gre::header(Some(1), Some(2));
    assert!(gre::parse(&good).is_some());
    assert_eq!(gre::parse(&good[..11]), None);
    for (at, value) in [(0, 0x70), (1, 1), (2, 0x08)] {
        let mut bad = good;
        bad[at] = value;
        assert_eq!(gre::parse(&bad), None, "byte {at}");
    }
    // A checksum is stepped over.
    let summed = [0xa0, 0, 0x65, 0x58, 9, 9, 0, 0, 0, 0, 0, 5];
    let header = gre::parse(&summed).unwrap();
    assert_eq!((header.key, header.length), (Some(5), 12));
}

#[test]
fn overheads() {
    let vxlan = Tunnel::Vxlan { vni: 1, port: 4789 };
    assert_eq!(vxlan.ip_overhead(), 36);
    let gre = |key, sequence| Tunnel::Gre { key, sequence }.ip_overhead();
    assert_eq!(gre(None, false), 24);
    assert_eq!(gre(Some(1), false), 28);
    assert_eq!(gre(Some(1), true), 32);
    let template = OuterTemplate::new(&addresses(1, 2), vxlan);
    assert_eq!((template.overhead(), template.ip_overhead()), (50, 36));
    assert!(template.overhead() <= MAX_OUTER);
}

#[test]
fn what_does_not_fit_is_refused() {
    let vxlan = Tunnel::Vxlan { vni: 1, port: 4789 };
    let template = OuterTemplate::new(&addresses(1, 2), vxlan);
    let fields = OuterFields::default();
    assert_eq!(
        template.write(&mut [0; 49], 100, &fields),
        Err(Reason::Headroom)
    );
    let mut out = [7; 50];
    assert_eq!(
        template.write(&mut out, 65_536 - 36, &fields),
        Err(Reason::Oversize)
    );
    assert_eq!(out, [7; 50]);
    assert_eq!(template.write(&mut out, 65_535 - 36, &fields), Ok(50));
}

#[test]
fn source_ports_stay_above_the_ephemeral_range() {
    for hash in [0, 1, 63, 64, 0xffff_ffff] {
        assert!((61000..61064).contains(&source_port(hash, DEFAULT_SOURCE_PORTS)));
        assert_eq!(source_port(hash, 0), 61000);
        assert_eq!(source_port(hash, 1), 61000);
        assert!(source_port(hash, u16::MAX) >= 61000);
    }
    assert_eq!(source_port(4535, MAX_SOURCE_PORTS), 65535);
}

#[test]
fn other_traffic_is_not_taken_apart() {
    let template = OuterTemplate::new(&addresses(1, 2), Tunnel::Vxlan { vni: 1, port: 4789 });
    let frame = wrap(&template, &[1; 60], &OuterFields::default());
    assert!(decapsulate(&frame, 4789).is_some());
    assert_eq!(decapsulate(&frame, 4790), None);
    assert_eq!(decapsulate(&frame[..frame.len() - 1], 4789), None);
    let mut fragment = frame.clone();
    fragment[20] = 0x20;
    assert_eq!(decapsulate(&fragment, 4789), None);
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    prop_oneof![
        (0..=vxlan::MAX_VNI, any::<u16>()).prop_map(|(vni, port)| Tunnel::Vxlan { vni, port }),
        any::<(Option<u32>, bool)>().prop_map(|(key, sequence)| Tunnel::Gre { key, sequence }),
    ]
}

proptest! {
    #[test]
    fn comes_back_as_it_went(
        tunnel in any_tunnel(),
        source: u32,
        destination: u32,
        fields in any::<(u16, u16, u32)>(),
        inner in prop::collection::vec(any::<u8>(), 14..1600),
    ) {
        let template = OuterTemplate::new(&addresses(source, destination), tunnel);
        let fields = OuterFields {
            source_port: fields.0,
            identification: fields.1,
            sequence: fields.2,
        };
        let frame = wrap(&template, &inner, &fields);
        prop_assert_eq!(frame.len(), 14 + template.ip_overhead() + inner.len());
        let port = match tunnel {
            Tunnel::Vxlan { port, .. } => port,
            Tunnel::Gre { .. } => 0,
        };
        let back = decapsulate(&frame, port).unwrap();
        prop_assert_eq!(u32::from(back.source), source);
        prop_assert_eq!(u32::from(back.destination), destination);
        prop_assert_eq!(back.tunnel, tunnel);
        prop_assert_eq!(&frame[back.inner.clone()], &inner[..]);
        match tunnel {
            Tunnel::Vxlan { .. } => prop_assert_eq!(back.source_port, fields.source_port),
            Tunnel::Gre { sequence, .. } => {
                prop_assert_eq!(back.sequence, sequence.then_some(fields.sequence));
            }
        }

        // The IPv4 header sums to all ones (RFC 1071), DF is set, the UDP checksum is 0.
        prop_assert_eq!(slow_sum(&frame[14..34]), 0xffff);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &packet.net else {
            return Err(TestCaseError::fail("not IPv4"));
        };
        prop_assert!(ip.header().dont_fragment());
        prop_assert_eq!(ip.header().identification(), fields.identification);
        prop_assert_eq!((ip.header().ttl(), ip.header().dcp().value()), (64, 0xb8 >> 2));
        if let Some(TransportSlice::Udp(udp)) = &packet.transport {
            prop_assert_eq!(udp.checksum(), 0);
            prop_assert_eq!(usize::from(udp.length()), 16 + inner.len());
            prop_assert_eq!(udp.destination_port(), port);
        }
    }

    #[test]
    fn any_bytes_do_no_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120), gre: bool,
    ) {
        if bytes.len() > 24 {
            bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
            bytes[23] = if gre { 47 } else { 17 };
        }
        if let Some(back) = decapsulate(&bytes, 4789) {
            prop_assert!(back.inner.end <= bytes.len());
        }
        let _ = gre::parse(&bytes);
    }
}
