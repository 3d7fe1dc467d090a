//! The outer Ethernet, IPv4 and tunnel headers, built once for a target and filled in per packet.
//!
//! Called by the transmitters that send whole frames or whole IP packets; never reads a route itself: a
//! new next hop means a new template.

use std::net::Ipv4Addr;

use super::{gre, vxlan, Tunnel};
use crate::packet::checksum;
use crate::packet::headers::{protocol, ETHERNET_HEADER, ETHERTYPE_IPV4};
use crate::reason::Reason;

pub(super) const IPV4_HEADER: usize = 20;
pub(super) const UDP_HEADER: usize = 8;

/// Longest outer header, Ethernet included.
pub const MAX_OUTER: usize = ETHERNET_HEADER + IPV4_HEADER + UDP_HEADER + gre::MAX_HEADER;

/// Don't fragment: with it, a constant identification of 0 is right (RFC 6864 section 4.1).
const DONT_FRAGMENT: u16 = 0x4000;

/// Who sends to whom, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterAddresses {
    /// MAC address of the device that sends.
    pub source_mac: [u8; 6],
    /// MAC address of the next hop.
    pub destination_mac: [u8; 6],
    /// Outer source address.
    pub source: Ipv4Addr,
    /// Outer destination address: the collector.
    pub destination: Ipv4Addr,
    /// Time to live; 64 is usual.
    pub ttl: u8,
    /// Type of service: DSCP in the upper 6 bits.
    pub tos: u8,
}

/// What differs from packet to packet. Host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterFields {
    /// UDP source port (see [`source_port`](super::source_port)); not used by GRE.
    pub source_port: u16,
    /// IPv4 identification; 0 unless there is a reason.
    pub identification: u16,
    /// GRE sequence number; not used where the tunnel has none.
    pub sequence: u32,
}

/// The outer headers of one target, all but the fields that differ from packet to packet.
#[derive(Clone, Debug)]
pub struct OuterTemplate {
    bytes: [u8; MAX_OUTER],
    length: usize,
    /// Partial sum of the IPv4 header without total length and identification.
    ip_sum: u32,
    tunnel: Tunnel,
}

impl OuterTemplate {
    /// Builds the headers. There is no outer VLAN tag: a tagged path has its own device.
    pub fn new(addresses: &OuterAddresses, tunnel: Tunnel) -> Self {
        let mut bytes = [0; MAX_OUTER];
        let (ethernet, rest) = bytes.split_at_mut(ETHERNET_HEADER);
        ethernet[..6].copy_from_slice(&addresses.destination_mac);
        ethernet[6..12].copy_from_slice(&addresses.source_mac);
        ethernet[12..].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());

        let (ip, transport) = rest.split_at_mut(IPV4_HEADER);
        ip[0] = 0x45;
        ip[1] = addresses.tos;
        ip[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
        ip[8] = addresses.ttl;
        ip[9] = match tunnel {
            Tunnel::Vxlan { .. } => protocol::UDP,
            Tunnel::Gre { .. } => protocol::GRE,
        };
        ip[12..16].copy_from_slice(&addresses.source.octets());
        ip[16..20].copy_from_slice(&addresses.destination.octets());
        let ip_sum = checksum::sum(ip);

        match tunnel {
            Tunnel::Vxlan { vni, port } => {
                transport[2..4].copy_from_slice(&port.to_be_bytes());
                transport[UDP_HEADER..][..vxlan::HEADER].copy_from_slice(&vxlan::header(vni));
            }
            Tunnel::Gre { key, sequence } => {
                let header = gre::header(key, sequence.then_some(0));
                transport[..gre::MAX_HEADER].copy_from_slice(&header);
            }
        }
        Self {
            bytes,
            length: ETHERNET_HEADER + tunnel.ip_overhead(),
            ip_sum,
            tunnel,
        }
    }

    /// Bytes before the inner frame, outer Ethernet header included: the room a frame needs in front.
    pub const fn overhead(&self) -> usize {
        self.length
    }

    /// Bytes that the outer IP packet is longer than the inner frame: for the arithmetic of MTUs.
    pub const fn ip_overhead(&self) -> usize {
        self.length - ETHERNET_HEADER
    }

    /// Writes the outer headers of an inner frame of `inner_length` bytes to the front of `out` and
    /// returns their length, which is [`overhead`](Self::overhead). The inner frame belongs right behind.
    ///
    /// The UDP checksum is 0, as RFC 7348 section 4.1 wants it over IPv4.
    ///
    /// # Errors
    /// [`Reason::Headroom`] if `out` is shorter than the headers, [`Reason::Oversize`] if the outer IP
    /// packet would be longer than 65 535 bytes. Nothing is written then.
    #[inline]
    pub fn write(
        &self,
        out: &mut [u8],
        inner_length: usize,
        fields: &OuterFields,
    ) -> Result<usize, Reason> {
        let out = out.get_mut(..self.length).ok_or(Reason::Headroom)?;
        let total = inner_length.saturating_add(self.ip_overhead());
        let total = u16::try_from(total).map_err(|_| Reason::Oversize)?;
        out.copy_from_slice(self.bytes.get(..self.length).ok_or(Reason::Headroom)?);

        let (_, ip) = out.split_at_mut(ETHERNET_HEADER);
        let (ip, transport) = ip.split_at_mut(IPV4_HEADER);
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[4..6].copy_from_slice(&fields.identification.to_be_bytes());
        let sum = self.ip_sum + u32::from(total) + u32::from(fields.identification);
        ip[10..12].copy_from_slice(&checksum::finish(sum).to_be_bytes());

        match self.tunnel {
            Tunnel::Vxlan { .. } => {
                let length = total - IPV4_HEADER as u16;
                transport[0..2].copy_from_slice(&fields.source_port.to_be_bytes());
                transport[4..6].copy_from_slice(&length.to_be_bytes());
            }
            Tunnel::Gre { sequence: true, .. } => {
                // The sequence number is the last field of the header.
                if let Some(field) = transport.last_chunk_mut() {
                    *field = fields.sequence.to_be_bytes();
                }
            }
            Tunnel::Gre { .. } => {}
        }
        Ok(self.length)
    }
}
