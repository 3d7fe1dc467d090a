//! Tunnel headers around the copies: VXLAN and GRE over IPv4.
//!
//! Only writes and reads bytes; routes, neighbours and sockets are the transmitters'. [`OuterTemplate`]
//! is for those that send whole frames (AF_XDP, raw socket); a UDP socket needs [`vxlan::header`]
//! alone. [`decapsulate`] is for the collector and for tests.

pub mod gre;
mod outer;
pub mod vxlan;

use std::net::Ipv4Addr;
use std::ops::Range;

pub use outer::{OuterAddresses, OuterFields, OuterTemplate, MAX_OUTER};

use super::headers::{be16, parse_ethernet, parse_ip, protocol, Fragment, Version, ETHERTYPE_IPV4};
use std::net::IpAddr;

/// First outer UDP source port: above Linux's ephemeral range (32768 to 60999).
pub const FIRST_SOURCE_PORT: u16 = 61000;
/// How many outer source ports are used unless told otherwise.
pub const DEFAULT_SOURCE_PORTS: u16 = 64;
/// How many there are from the first one to 65535.
pub const MAX_SOURCE_PORTS: u16 = u16::MAX - FIRST_SOURCE_PORT + 1;

/// Outer UDP source port for a flow, of `ports` ports; a number beyond 1..=[`MAX_SOURCE_PORTS`] counts
/// as the nearest possible.
#[inline]
pub const fn source_port(flow_hash: u32, ports: u16) -> u16 {
    let ports = match ports {
        0 => 1,
        MAX_SOURCE_PORTS.. => MAX_SOURCE_PORTS,
        ports => ports,
    };
    FIRST_SOURCE_PORT + (flow_hash % ports as u32) as u16
}

/// Which tunnel the copies go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// VXLAN, RFC 7348.
    Vxlan {
        /// Network identifier, 24 bits.
        vni: u32,
        /// UDP destination port.
        port: u16,
    },
    /// GRE with bridged Ethernet, RFC 2784 and RFC 2890.
    Gre {
        /// Key, if there is one.
        key: Option<u32>,
        /// Whether each packet carries a sequence number.
        sequence: bool,
    },
}

impl Tunnel {
    /// Bytes between the outer IP header and the inner frame.
    pub const fn overhead(&self) -> usize {
        match self {
            Tunnel::Vxlan { .. } => outer::UDP_HEADER + vxlan::HEADER,
            Tunnel::Gre { key, sequence } => gre::length(key.is_some(), *sequence),
        }
    }

    /// Bytes that the outer IP packet is longer than the inner frame: what a path MTU must have over
    /// the copied frame, Ethernet header included.
    pub const fn ip_overhead(&self) -> usize {
        outer::IPV4_HEADER + self.overhead()
    }
}

/// What was found around a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decapsulated {
    /// Outer source address.
    pub source: Ipv4Addr,
    /// Outer destination address.
    pub destination: Ipv4Addr,
    /// Outer UDP source port; 0 for GRE.
    pub source_port: u16,
    /// The tunnel, as its header has it.
    pub tunnel: Tunnel,
    /// GRE sequence number.
    pub sequence: Option<u32>,
    /// Where in the outer frame the inner one stands.
    pub inner: Range<usize>,
}

/// Takes one outer frame apart. `None` if it is not an unfragmented IPv4 packet with VXLAN (to UDP port
/// `vxlan_port`) or with bridged GRE, or if it is truncated.
pub fn decapsulate(frame: &[u8], vxlan_port: u16) -> Option<Decapsulated> {
    let (ethertype, network) = parse_ethernet(frame, 0)?;
    if ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = parse_ip(frame, network, ethertype)?;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (ip.source, ip.destination) else {
        return None;
    };
    if ip.version != Version::V4 || ip.fragment != Fragment::Whole {
        return None;
    }
    let payload = frame.get(ip.transport..ip.end)?;
    let (source_port, tunnel, sequence, range) = match ip.protocol {
        protocol::UDP => {
            let port = be16(payload, 2)?;
            let end = usize::from(be16(payload, 4)?);
            let datagram = payload.get(outer::UDP_HEADER..end)?;
            if port != vxlan_port {
                return None;
            }
            let (vni, start) = vxlan::parse(datagram)?;
            let start = outer::UDP_HEADER + start;
            (
                be16(payload, 0)?,
                Tunnel::Vxlan { vni, port },
                None,
                start..end,
            )
        }
        protocol::GRE => {
            let header = gre::parse(payload)?;
            let tunnel = Tunnel::Gre {
                key: header.key,
                sequence: header.sequence.is_some(),
            };
            (0, tunnel, header.sequence, header.length..payload.len())
        }
        _ => return None,
    };
    Some(Decapsulated {
        source,
        destination,
        source_port,
        tunnel,
        sequence,
        inner: ip.transport + range.start..ip.transport + range.end,
    })
}

#[cfg(test)]
mod tests;
