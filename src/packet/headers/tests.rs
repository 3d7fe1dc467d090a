//! The parser against etherparse, on good packets, on changed and on cut ones.

use std::net::IpAddr;

use etherparse::{
    LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, LinkExtSlice, NetSlice, SlicedPacket,
    TransportSlice,
};
use proptest::prelude::*;

use super::super::testing::{any_spec, ethernet, TransportSpec, TunnelKind};
use super::*;

/// What etherparse says of a frame's IP packet.
struct Facts {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    is_fragment: bool,
    payload: usize,
    end: usize,
    transport: Option<Transport>,
}

struct Transport {
    ports: (u16, u16),
    tcp_header: Option<usize>,
}

fn transport(slice: Option<TransportSlice>) -> Option<Transport> {
    match slice? {
        TransportSlice::Udp(udp) => Some(Transport {
            ports: (udp.source_port(), udp.destination_port()),
            tcp_header: None,
        }),
        TransportSlice::Tcp(tcp) => Some(Transport {
            ports: (tcp.source_port(), tcp.destination_port()),
            tcp_header: Some(tcp.header_slice().len()),
        }),
        _ => None,
    }
}

fn place(frame: &[u8], part: &[u8]) -> (usize, usize) {
    let start = part.as_ptr() as usize - frame.as_ptr() as usize;
    (start, start + part.len())
}

/// `None`: not accepted, not IP, or with links that only etherparse knows.
fn strict(frame: &[u8]) -> Option<Facts> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let foreign = |link: &LinkExtSlice| matches!(link, LinkExtSlice::Macsec(_));
    if packet.link_exts.len() > MAX_VLAN_TAGS || packet.link_exts.iter().any(foreign) {
        return None;
    }
    let net = packet.net.as_ref()?;
    let (source, destination) = match net {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => return None,
    };
    let payload = net.ip_payload_ref()?;
    let (start, end) = place(frame, payload.payload);
    Some(Facts {
        source,
        destination,
        protocol: payload.ip_number.0,
        is_fragment: payload.fragmented,
        payload: start,
        end,
        transport: transport(packet.transport),
    })
}

/// As [`strict`], for frames that are damaged or cut.
fn lax(frame: &[u8]) -> Option<Facts> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let foreign = |link: &LaxLinkExtSlice| matches!(link, LaxLinkExtSlice::Macsec(_));
    if packet.link_exts.len() > MAX_VLAN_TAGS || packet.link_exts.iter().any(foreign) {
        return None;
    }
    let net = packet.net.as_ref()?;
    let (source, destination) = match net {
        LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Arp(_) => return None,
    };
    let payload = net.ip_payload_ref()?;
    let (start, end) = place(frame, payload.payload);
    Some(Facts {
        source,
        destination,
        protocol: payload.ip_number.0,
        is_fragment: payload.fragmented,
        payload: start,
        end,
        transport: transport(packet.transport),
    })
}

/// Extension headers that one side steps over and the other does not, at that place: AH behind IPv4,
/// mobility, HIP and Shim6, hop-by-hop options that do not come first, chains of more than 8.
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

fn agree(frame: &[u8], facts: &Facts, check_end: bool) -> Result<(), TestCaseError> {
    let headers = Headers::parse(frame).expect("etherparse found an Ethernet header");
    let Some(ip) = headers.ip else {
        // The lax parser goes by the version nibble where the ethertype says otherwise.
        let version = if facts.source.is_ipv4() {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        prop_assert_ne!(headers.ethertype, version);
        return Ok(());
    };
    prop_assert_eq!(ip.source, facts.source);
    prop_assert_eq!(ip.destination, facts.destination);
    if is_extension(ip.protocol) || is_extension(facts.protocol) {
        return Ok(());
    }
    // Behind a later fragment's header etherparse goes on reading the payload as headers.
    if ip.fragment == Fragment::Later && ip.version == Version::V6 {
        prop_assert!(facts.is_fragment);
        return Ok(());
    }
    prop_assert_eq!(ip.fragment != Fragment::Whole, facts.is_fragment);
    prop_assert_eq!(ip.protocol, facts.protocol);
    prop_assert_eq!(ip.transport, facts.payload);
    if check_end {
        prop_assert_eq!(ip.end, facts.end);
    }
    match &facts.transport {
        Some(transport) => {
            let (source, destination) = transport.ports;
            prop_assert_eq!(ip.ports, Ports::Known(source, destination));
            if let Some(length) = transport.tcp_header {
                prop_assert_eq!(tcp_header_length(frame, ip.transport), Some(length));
            }
        }
        None if ip.fragment == Fragment::Later => {
            prop_assert!(matches!(ip.ports, Ports::Unknown | Ports::None));
        }
        None => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_on_good_packets(spec in any_spec(200), padding in 0usize..20) {
        let built = spec.build();
        let mut frame = built.bytes;
        frame.extend(vec![0xaa; padding]);
        let facts = strict(&frame).expect("a good packet");
        agree(&frame, &facts, true)?;

        let ip = Headers::parse(&frame).unwrap().ip.unwrap();
        prop_assert_eq!(ip.end, frame.len() - padding);
        if spec.tunnel.is_none() {
            prop_assert_eq!(ip.transport, built.transport);
            prop_assert_eq!(ip.ports, Ports::Known(spec.ports.0, spec.ports.1));
            if matches!(spec.transport, TransportSpec::Tcp { .. }) {
                let length = tcp_header_length(&frame, ip.transport);
                prop_assert_eq!(length, Some(built.payload - built.transport));
            }
        } else if let Some(TunnelKind::Geneve { .. }) = spec.tunnel.map(|tunnel| tunnel.kind) {
            prop_assert_eq!(ip.ports, Ports::Known(61007, 6081));
        }
    }

    #[test]
    fn agrees_on_changed_packets(
        spec in any_spec(100),
        changes in prop::collection::vec((0usize..110, any::<u8>()), 1..4),
    ) {
        let mut frame = spec.build().bytes;
        for (at, byte) in changes {
            let at = at % frame.len();
            frame[at] = byte;
        }
        if let Some(facts) = strict(&frame) {
            agree(&frame, &facts, false)?;
        }
        if let Some(facts) = lax(&frame) {
            agree(&frame, &facts, false)?;
        }
    }

    #[test]
    fn agrees_on_cut_packets(spec in any_spec(100), keep: prop::sample::Index) {
        let mut frame = spec.build().bytes;
        frame.truncate(keep.index(frame.len() + 1));
        if let Some(facts) = lax(&frame) {
            agree(&frame, &facts, false)?;
        }
        prop_assert_eq!(Headers::parse(&frame).is_some(), frame.len() >= ETHERNET_HEADER);
    }

    #[test]
    fn any_bytes_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..150), ethertype in 0usize..5,
    ) {
        let mut frame = bytes;
        if frame.len() >= 15 {
            let ethertype = [0x0800u16, 0x86dd, 0x8100, 0x9100, 0x0806][ethertype];
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            frame[14] = if ethertype == 0x0800 { 0x45 } else { 0x60 };
        }
        if let Some(facts) = lax(&frame) {
            agree(&frame, &facts, false)?;
        }
        let _ = Headers::parse(&frame);
    }
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
    packet.extend([0x20; 16]);
    packet.extend([0x21; 16]);
    packet.extend(payload);
    ethernet(&[], ETHERTYPE_IPV6, &packet)
}

fn parse(frame: &[u8]) -> Ip {
    Headers::parse(frame).unwrap().ip.unwrap()
}

#[test]
fn two_tags_are_looked_behind_and_not_three() {
    let mut packet = vec![0x45];
    packet.resize(20, 0);
    let tags = [(0x9100, 1), (0x88a8, 2), (0x8100, 3)];
    let two = Headers::parse(&ethernet(&tags[..2], 0x0800, &packet)).unwrap();
    assert_eq!((two.ethertype, two.network), (0x0800, 22));
    assert!(two.ip.is_some());
    let three = Headers::parse(&ethernet(&tags, 0x0800, &packet)).unwrap();
    assert_eq!((three.ethertype, three.network), (0x8100, 22));
    assert!(three.ip.is_none());
}

#[test]
fn fragments_of_ipv4() {
    let mut packet = vec![0x45, 0, 0, 28, 0xab, 0xcd, 0, 0, 64, 17, 0, 0];
    packet.extend([198, 51, 100, 1, 203, 0, 113, 1, 0, 53, 0, 99, 0, 8, 0, 0]);
    let with = |field: u16| {
        let mut packet = packet.clone();
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        let ip = parse(&ethernet(&[], 0x0800, &packet));
        assert_eq!(ip.identification, 0xabcd);
        (ip.fragment, ip.ports)
    };
    assert_eq!(with(0x4000), (Fragment::Whole, Ports::Known(53, 99)));
    assert_eq!(with(0x2000), (Fragment::First, Ports::Known(53, 99)));
    assert_eq!(with(0x2001), (Fragment::Later, Ports::Unknown));
    assert_eq!(with(0x0001), (Fragment::Later, Ports::Unknown));
}

#[test]
fn fragments_of_ipv6() {
    let with = |field: u16| {
        let [high, low] = field.to_be_bytes();
        let mut payload = vec![17, 0, high, low, 0, 0, 0, 5];
        payload.extend([0, 53, 0, 99]);
        let ip = parse(&ipv6(44, &payload));
        assert_eq!(ip.protocol, protocol::UDP);
        (ip.fragment, ip.ports, ip.identification)
    };
    // An atomic fragment is whole (RFC 6946).
    assert_eq!(with(0), (Fragment::Whole, Ports::Known(53, 99), 0));
    // Bits 1 and 2 are reserved (RFC 8200 section 4.5).
    assert_eq!(with(6), (Fragment::Whole, Ports::Known(53, 99), 0));
    assert_eq!(with(1), (Fragment::First, Ports::Known(53, 99), 5));
    assert_eq!(with(8), (Fragment::Later, Ports::Unknown, 5));
}

#[test]
fn every_extension_header_is_stepped_over() {
    for kind in [0, 43, 51, 60, 135, 139, 140] {
        // AH counts in 4 bytes less 2, the others in 8 less 1: 16 bytes each.
        let units = if kind == 51 { 2 } else { 1 };
        let mut payload = vec![6, units];
        payload.resize(16, 0);
        payload.extend([0, 80, 1, 187]);
        let ip = parse(&ipv6(kind, &payload));
        assert_eq!(ip.protocol, protocol::TCP, "{kind}");
        assert_eq!(ip.transport, 14 + 40 + 16);
        assert_eq!(ip.ports, Ports::Known(80, 443));
    }
}

#[test]
fn the_ninth_extension_header_is_the_upper_layer() {
    let chain = |count: usize| {
        let mut payload = Vec::new();
        for i in 0..count {
            let next = if i + 1 == count { 17 } else { 60 };
            payload.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend([0, 53, 0, 99]);
        parse(&ipv6(60, &payload))
    };
    assert_eq!(chain(8).ports, Ports::Known(53, 99));
    assert_eq!((chain(9).protocol, chain(9).ports), (60, Ports::None));
}

#[test]
fn lengths_that_are_not_there() {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.resize(60, 0);
    let ip = parse(&ethernet(&[], 0x0800, &packet));
    assert_eq!((ip.length_known, ip.end), (false, 74));

    let mut jumbo = vec![6, 0, 0xc2, 4, 0, 1, 0, 0];
    jumbo.resize(40, 0);
    let mut frame = ipv6(0, &jumbo);
    frame[18..20].fill(0);
    let ip = parse(&frame);
    assert_eq!((ip.length_known, ip.end), (true, 54 + 0x10000));
    assert_eq!(lone_jumbo_header(&frame, &ip), Some(54));
}

#[test]
fn other_ports() {
    for number in [6, 17, 33, 132, 136] {
        let ip = parse(&ipv6(number, &[0, 80, 1, 187]));
        assert_eq!(ip.ports, Ports::Known(80, 443));
        assert_eq!(parse(&ipv6(number, &[0, 80, 1])).ports, Ports::None);
    }
    assert_eq!(parse(&ipv6(58, &[128, 0, 0, 0])).ports, Ports::None);
}
