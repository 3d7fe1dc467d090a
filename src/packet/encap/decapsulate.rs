//! Outer packets taken apart: for the collector, and for tests.

use std::net::IpAddr;
use std::ops::Range;

use super::tunnel::{Inner, Tunnel, UDP_HEADER};
use super::{erspan, geneve, gre, vxlan};
use crate::packet::headers::{
    be16, parse_ethernet, parse_ip, protocol, Fragment, ETHERTYPE_BRIDGED, ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
};

/// UDP ports that tunnels are expected at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelPorts {
    /// VXLAN.
    pub vxlan: u16,
    /// Geneve.
    pub geneve: u16,
}

impl Default for TunnelPorts {
    fn default() -> Self {
        TunnelPorts {
            vxlan: vxlan::PORT,
            geneve: geneve::PORT,
        }
    }
}

/// What was found around a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decapsulated {
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address.
    pub destination: IpAddr,
    /// Outer UDP source port; 0 without UDP.
    pub source_port: u16,
    /// The tunnel, as its header has it.
    pub tunnel: Tunnel,
    /// Sequence number of GRE and ERSPAN.
    pub sequence: Option<u32>,
    /// What ERSPAN III tells of the capture.
    pub capture: Option<erspan::Capture>,
    /// Ethertype of what was carried without its Ethernet header ([`Inner::Ip`]).
    pub ethertype: Option<u16>,
    /// Where in the outer frame what was carried stands.
    pub inner: Range<usize>,
}

/// Takes one outer frame apart. `None` if it is not an unfragmented IP packet with one of our tunnels,
/// or if it is truncated. Checksums are not judged.
pub fn decapsulate(frame: &[u8], ports: TunnelPorts) -> Option<Decapsulated> {
    let (ethertype, network) = parse_ethernet(frame, 0)?;
    let ip = parse_ip(frame, network, ethertype)?;
    if ip.fragment != Fragment::Whole || !ip.length_known {
        return None;
    }
    let payload = frame.get(ip.transport..ip.end)?;
    let mut found = match ip.protocol {
        protocol::UDP => in_udp(payload, ports)?,
        protocol::GRE => in_gre(payload)?,
        _ => return None,
    };
    found.source = ip.source;
    found.destination = ip.destination;
    found.inner = ip.transport + found.inner.start..ip.transport + found.inner.end;
    Some(found)
}

fn found(tunnel: Tunnel, inner: Range<usize>) -> Decapsulated {
    Decapsulated {
        source: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        destination: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        source_port: 0,
        tunnel,
        sequence: None,
        capture: None,
        ethertype: None,
        inner,
    }
}

fn in_udp(payload: &[u8], ports: TunnelPorts) -> Option<Decapsulated> {
    let port = be16(payload, 2)?;
    let end = usize::from(be16(payload, 4)?);
    let datagram = payload.get(UDP_HEADER..end)?;
    let (tunnel, start) = if port == ports.vxlan {
        let (vni, start) = vxlan::parse(datagram)?;
        (Tunnel::Vxlan { vni, port }, start)
    } else if port == ports.geneve {
        let (vni, start) = geneve::parse(datagram)?;
        (Tunnel::Geneve { vni, port }, start)
    } else {
        return None;
    };
    Some(Decapsulated {
        source_port: be16(payload, 0)?,
        ..found(tunnel, UDP_HEADER + start..end)
    })
}

fn in_gre(payload: &[u8]) -> Option<Decapsulated> {
    let header = gre::parse(payload)?;
    let inner = match header.protocol_type {
        ETHERTYPE_BRIDGED => Inner::Ethernet,
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Inner::Ip,
        erspan::TYPE_II | erspan::TYPE_III => return in_erspan(&header, payload),
        _ => return None,
    };
    let tunnel = Tunnel::Gre {
        key: header.key,
        sequence: header.sequence.is_some(),
        inner,
    };
    Some(Decapsulated {
        sequence: header.sequence,
        ethertype: (inner == Inner::Ip).then_some(header.protocol_type),
        ..found(tunnel, header.length..payload.len())
    })
}

/// Type I, which has neither sequence number nor header of its own, is not ours.
fn in_erspan(gre: &gre::Header, payload: &[u8]) -> Option<Decapsulated> {
    gre.sequence?;
    let header = erspan::parse(gre.protocol_type, payload.get(gre.length..)?)?;
    let tunnel = Tunnel::Erspan {
        version: header.version,
        session: header.session,
    };
    Some(Decapsulated {
        sequence: gre.sequence,
        capture: header.capture,
        ..found(tunnel, gre.length + header.length..payload.len())
    })
}
