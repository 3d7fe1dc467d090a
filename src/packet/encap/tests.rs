//! Outer headers read back by the decapsulation and by etherparse, and their exact bits.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::packet::testing::slow_sum;
use crate::packet::Direction;
use crate::reason::Reason;

mod headers;

const MARKING: Marking = Marking { ttl: 63, tos: 0xb8 };

fn addresses(source: IpAddr, destination: IpAddr) -> OuterAddresses {
    OuterAddresses {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        source,
        destination,
    }
}

fn template(tunnel: Tunnel, version: IpVersion) -> OuterTemplate {
    let (source, destination) = match version {
        IpVersion::V4 => ("203.0.113.1", "203.0.113.2"),
        IpVersion::V6 => ("2001:db8::1", "2001:db8::2"),
    };
    let addresses = addresses(source.parse().unwrap(), destination.parse().unwrap());
    OuterTemplate::new(&addresses, MARKING, tunnel).unwrap()
}

fn vxlan() -> Tunnel {
    Tunnel::Vxlan { vni: 1, port: 4789 }
}

fn gre(key: Option<u32>, sequence: bool, inner: Inner) -> Tunnel {
    Tunnel::Gre {
        key,
        sequence,
        inner,
    }
}

fn erspan(version: erspan::Version) -> Tunnel {
    Tunnel::Erspan {
        version,
        session: 0x2aa,
    }
}

fn wrap(template: &OuterTemplate, carried: &[u8], fields: &OuterFields) -> Vec<u8> {
    let mut frame = vec![0xee; template.overhead()];
    let written = template.write(&mut frame, carried.len(), fields);
    assert_eq!(written, Ok(template.overhead()));
    frame.extend(carried);
    template.finish_checksum(&mut frame);
    frame
}

#[test]
fn overheads() {
    let of = |tunnel: Tunnel| {
        let overhead = tunnel.ip_overhead(IpVersion::V4);
        assert_eq!(tunnel.ip_overhead(IpVersion::V6), overhead + 20);
        overhead
    };
    assert_eq!(of(vxlan()), 36);
    assert_eq!(of(Tunnel::Geneve { vni: 1, port: 6081 }), 36);
    assert_eq!(of(gre(None, false, Inner::Ethernet)), 24);
    assert_eq!(of(gre(Some(1), false, Inner::Ethernet)), 28);
    assert_eq!(of(gre(Some(1), true, Inner::Ip)), 32);
    assert_eq!(of(erspan(erspan::Version::Two)), 36);
    assert_eq!(of(erspan(erspan::Version::Three)), 40);
    let largest = template(erspan(erspan::Version::Three), IpVersion::V6);
    assert_eq!((largest.overhead(), largest.ip_overhead()), (74, 60));
    assert_eq!(largest.overhead(), MAX_OUTER);
    assert_eq!(vxlan().largest_frame(IpVersion::V4, 1600), 1564);
    let ip = gre(None, false, Inner::Ip);
    assert_eq!(ip.largest_frame(IpVersion::V6, 1544), 1514);
}

#[test]
fn the_addresses_are_of_one_version() {
    let addresses = addresses(
        "203.0.113.1".parse().unwrap(),
        "2001:db8::2".parse().unwrap(),
    );
    assert!(OuterTemplate::new(&addresses, MARKING, vxlan()).is_none());
}

#[test]
fn what_does_not_fit_is_refused() {
    for (version, headers, largest) in [
        (IpVersion::V4, 50, 65_535 - 36),
        (IpVersion::V6, 70, 65_535 - 16),
    ] {
        let template = template(vxlan(), version);
        let fields = OuterFields::default();
        let short = &mut vec![0; headers - 1];
        assert_eq!(template.write(short, 100, &fields), Err(Reason::Headroom));
        let mut out = vec![7; headers];
        let refused = template.write(&mut out, largest + 1, &fields);
        assert_eq!(refused, Err(Reason::Oversize));
        assert_eq!(out, vec![7; headers]);
        assert_eq!(template.write(&mut out, largest, &fields), Ok(headers));
    }
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
    let ports = TunnelPorts::default();
    let frame = wrap(
        &template(vxlan(), IpVersion::V4),
        &[1; 60],
        &OuterFields::default(),
    );
    assert!(decapsulate(&frame, ports).is_some());
    let elsewhere = TunnelPorts {
        vxlan: 4790,
        ..ports
    };
    assert_eq!(decapsulate(&frame, elsewhere), None);
    assert_eq!(decapsulate(&frame[..frame.len() - 1], ports), None);
    let mut fragment = frame.clone();
    fragment[20] = 0x20;
    assert_eq!(decapsulate(&fragment, ports), None);
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    let version = prop_oneof![Just(erspan::Version::Two), Just(erspan::Version::Three)];
    let inner = prop_oneof![Just(Inner::Ethernet), Just(Inner::Ip)];
    prop_oneof![
        (0..=vxlan::MAX_VNI, any::<u16>()).prop_map(|(vni, port)| Tunnel::Vxlan { vni, port }),
        (0..=vxlan::MAX_VNI, any::<u16>()).prop_map(|(vni, port)| Tunnel::Geneve { vni, port }),
        (any::<(Option<u32>, bool)>(), inner).prop_map(|((key, sequence), inner)| Tunnel::Gre {
            key,
            sequence,
            inner
        }),
        (version, 0..=erspan::MAX_SESSION)
            .prop_map(|(version, session)| Tunnel::Erspan { version, session }),
    ]
}

fn any_fields() -> impl Strategy<Value = OuterFields> {
    let numbers = any::<(u16, u16, u32, u32, u32, bool)>();
    (numbers, any::<Option<u16>>(), any::<bool>()).prop_map(|(numbers, tci, out)| OuterFields {
        source_port: numbers.0,
        identification: numbers.1,
        flow_label: numbers.2,
        sequence: numbers.3,
        timestamp: numbers.4,
        ethertype: if numbers.5 { 0x0800 } else { 0x86dd },
        tci,
        direction: if out { Direction::Out } else { Direction::In },
    })
}

fn any_addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into())),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into())),
    ]
}

/// Ports that a decapsulation takes `tunnel` at, and nothing else of UDP.
fn ports_of(tunnel: Tunnel) -> TunnelPorts {
    let port = tunnel.udp_port().unwrap_or(0);
    match tunnel {
        Tunnel::Geneve { .. } => TunnelPorts {
            vxlan: !port,
            geneve: port,
        },
        _ => TunnelPorts {
            vxlan: port,
            geneve: !port,
        },
    }
}

proptest! {
    #[test]
    fn comes_back_as_it_went(
        tunnel in any_tunnel(),
        (source, destination) in any_addresses(),
        fields in any_fields(),
        inner in prop::collection::vec(any::<u8>(), 14..1600),
    ) {
        let template = OuterTemplate::new(&addresses(source, destination), MARKING, tunnel).unwrap();
        let frame = wrap(&template, &inner, &fields);
        prop_assert_eq!(frame.len(), 14 + template.ip_overhead() + inner.len());
        let back = decapsulate(&frame, ports_of(tunnel)).unwrap();
        prop_assert_eq!((back.source, back.destination), (source, destination));
        prop_assert_eq!(back.tunnel, tunnel);
        prop_assert_eq!(&frame[back.inner.clone()], &inner[..]);
        let in_udp = tunnel.udp_port().is_some();
        prop_assert_eq!(back.source_port, if in_udp { fields.source_port } else { 0 });
        prop_assert_eq!(back.sequence, tunnel.is_numbered().then_some(fields.sequence));
        let ip = tunnel.inner() == Inner::Ip;
        prop_assert_eq!(back.ethertype, ip.then_some(fields.ethertype));
        let third = tunnel.depends() == Depends::Capture;
        prop_assert_eq!(back.capture.is_some(), third);
        if let Some(capture) = back.capture {
            prop_assert_eq!(capture.timestamp, fields.timestamp);
            prop_assert_eq!(capture.direction, fields.direction);
            prop_assert!(capture.unit_is_100_ns);
        }
    }

    /// The outer IP header by somebody else's parser, the checksums by somebody else's sum.
    #[test]
    fn others_understand_it(
        tunnel in any_tunnel(),
        (source, destination) in any_addresses(),
        fields in any_fields(),
        inner in prop::collection::vec(any::<u8>(), 14..300),
    ) {
        let template = OuterTemplate::new(&addresses(source, destination), MARKING, tunnel).unwrap();
        let frame = wrap(&template, &inner, &fields);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let payload = template.ip_overhead() - if source.is_ipv4() { 20 } else { 40 } + inner.len();
        match &packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                // The header sums to all ones (RFC 1071), DF is set.
                prop_assert_eq!(slow_sum(&frame[14..34]), 0xffff);
                let header = ip.header();
                prop_assert!(header.dont_fragment() && !header.more_fragments());
                prop_assert_eq!(header.identification(), fields.identification);
                prop_assert_eq!((header.ttl(), header.dcp().value()), (63, 0xb8 >> 2));
                prop_assert_eq!(IpAddr::from(header.source_addr()), source);
                prop_assert_eq!(IpAddr::from(header.destination_addr()), destination);
                prop_assert_eq!(header.protocol().0, tunnel.protocol());
                prop_assert_eq!(usize::from(header.total_len()), 20 + payload);
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                prop_assert_eq!((header.hop_limit(), header.traffic_class()), (63, 0xb8));
                prop_assert_eq!(header.flow_label().value(), fields.flow_label & 0xf_ffff);
                prop_assert_eq!(IpAddr::from(header.source_addr()), source);
                prop_assert_eq!(IpAddr::from(header.destination_addr()), destination);
                prop_assert_eq!(header.next_header().0, tunnel.protocol());
                prop_assert_eq!(usize::from(header.payload_length()), payload);
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
        let Some(TransportSlice::Udp(udp)) = &packet.transport else {
            prop_assert!(tunnel.udp_port().is_none());
            return Ok(());
        };
        prop_assert_eq!(usize::from(udp.length()), 16 + inner.len());
        prop_assert_eq!(Some(udp.destination_port()), tunnel.udp_port());
        prop_assert_eq!(udp.source_port(), fields.source_port);
        if source.is_ipv4() {
            prop_assert_eq!(udp.checksum(), 0);
        } else {
            prop_assert_ne!(udp.checksum(), 0);
            let length = u32::try_from(frame.len() - 54).unwrap().to_be_bytes();
            let covered = [&frame[22..54], &length, &[0, 0, 0, 17], &frame[54..]].concat();
            prop_assert_eq!(slow_sum(&covered), 0xffff);
        }
    }

    #[test]
    fn any_bytes_do_no_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0..4,
    ) {
        if bytes.len() > 24 {
            let six = kind % 2 == 1;
            bytes[12..15].copy_from_slice(if six { &[0x86, 0xdd, 0x60] } else { &[8, 0, 0x45] });
            bytes[if six { 20 } else { 23 }] = if kind < 2 { 47 } else { 17 };
        }
        if let Some(back) = decapsulate(&bytes, TunnelPorts::default()) {
            prop_assert!(back.inner.start <= back.inner.end && back.inner.end <= bytes.len());
        }
        let _ = gre::parse(&bytes);
        let _ = geneve::parse(&bytes);
        for kind in [erspan::TYPE_II, erspan::TYPE_III] {
            let _ = erspan::parse(kind, &bytes);
        }
    }
}
