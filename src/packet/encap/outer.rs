//! The outer Ethernet, IP and tunnel headers, built once for a target and filled in per packet.
//!
//! Called by the transmitter that sends whole frames; never reads a route itself: a new next hop means
//! a new template.

use std::net::IpAddr;

use super::tunnel::{ip_header, OuterFields, Tunnel, IPV4_HEADER, IPV6_HEADER, MAX_TUNNEL_HEADER};
use crate::packet::checksum;
use crate::packet::headers::{Version, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::reason::Reason;

/// Longest outer header, Ethernet included: IPv6 and ERSPAN III.
pub const MAX_OUTER: usize = ETHERNET_HEADER + IPV6_HEADER + MAX_TUNNEL_HEADER;

/// Don't fragment: with it, a constant identification of 0 is right (RFC 6864 section 4.1).
const DONT_FRAGMENT: u16 = 0x4000;
/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// How outer packets are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marking {
    /// Time to live, or hop limit; 64 unless told otherwise.
    pub ttl: u8,
    /// Type of service, or traffic class: DSCP in the upper 6 bits.
    pub tos: u8,
}

impl Default for Marking {
    fn default() -> Self {
        Marking { ttl: 64, tos: 0 }
    }
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterAddresses {
    /// MAC address of the device that sends.
    pub source_mac: [u8; 6],
    /// MAC address of the next hop.
    pub destination_mac: [u8; 6],
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address, of the same IP version: the collector.
    pub destination: IpAddr,
}

/// The outer headers of one target, all but the fields that differ from packet to packet.
#[derive(Clone, Debug)]
pub struct OuterTemplate {
    bytes: [u8; MAX_OUTER],
    length: usize,
    version: Version,
    /// Partial sum of the IPv4 header without total length and identification; with IPv6, that of the
    /// UDP pseudo-header without the length.
    sum: u32,
    tunnel: Tunnel,
}

impl OuterTemplate {
    /// Builds the headers; `None` if the addresses are not of one IP version. There is no outer VLAN
    /// tag: a tagged path has its own device.
    pub fn new(addresses: &OuterAddresses, marking: Marking, tunnel: Tunnel) -> Option<Self> {
        let mut bytes = [0; MAX_OUTER];
        let (ethernet, rest) = bytes.split_at_mut(ETHERNET_HEADER);
        ethernet[..6].copy_from_slice(&addresses.destination_mac);
        ethernet[6..12].copy_from_slice(&addresses.source_mac);
        let (ethertype, version, sum) = match (addresses.source, addresses.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ip = &mut rest[..IPV4_HEADER];
                ip[0] = 0x45;
                ip[1] = marking.tos;
                ip[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
                ip[8] = marking.ttl;
                ip[9] = tunnel.protocol();
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                (ETHERTYPE_IPV4, Version::V4, checksum::sum(ip))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = &mut rest[..IPV6_HEADER];
                ip[0] = 0x60 | marking.tos >> 4;
                ip[1] = marking.tos << 4;
                ip[6] = tunnel.protocol();
                ip[7] = marking.ttl;
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&destination.octets());
                let sum = checksum::pseudo_header(&ip[8..24], &ip[24..40], tunnel.protocol(), 0);
                (ETHERTYPE_IPV6, Version::V6, sum)
            }
            _ => return None,
        };
        ethernet[12..].copy_from_slice(&ethertype.to_be_bytes());
        rest[ip_header(version)..][..MAX_TUNNEL_HEADER].copy_from_slice(&tunnel.header());
        Some(Self {
            bytes,
            length: ETHERNET_HEADER + tunnel.ip_overhead(version),
            version,
            sum,
            tunnel,
        })
    }

    /// Bytes before what is carried, outer Ethernet header included: the room a frame needs in front.
    pub const fn overhead(&self) -> usize {
        self.length
    }

    /// Bytes that the outer IP packet is longer than what is carried.
    pub const fn ip_overhead(&self) -> usize {
        self.length - ETHERNET_HEADER
    }

    /// The tunnel.
    pub const fn tunnel(&self) -> Tunnel {
        self.tunnel
    }

    /// Whether [`finish_checksum`](Self::finish_checksum) has something to do.
    pub const fn needs_checksum(&self) -> bool {
        matches!(self.version, Version::V6) && self.tunnel.udp_port().is_some()
    }

    /// Writes the outer headers of `carried` bytes to the front of `out` and returns their length, which
    /// is [`overhead`](Self::overhead). What is carried belongs right behind.
    ///
    /// The UDP checksum is 0, as RFC 7348 section 4.1 wants it over IPv4; over IPv6 it is
    /// [`finish_checksum`](Self::finish_checksum)'s.
    ///
    /// # Errors
    /// [`Reason::Headroom`] if `out` is shorter than the headers, [`Reason::Oversize`] if the outer IP
    /// packet would be longer than its length field can say. Nothing is written then.
    #[inline]
    pub fn write(
        &self,
        out: &mut [u8],
        carried: usize,
        fields: &OuterFields,
    ) -> Result<usize, Reason> {
        let out = out.get_mut(..self.length).ok_or(Reason::Headroom)?;
        let total = carried.saturating_add(self.ip_overhead());
        // IPv6 counts without its header.
        let counted = match self.version {
            Version::V4 => total,
            Version::V6 => total - IPV6_HEADER,
        };
        let counted = u16::try_from(counted).map_err(|_| Reason::Oversize)?;
        out.copy_from_slice(self.bytes.get(..self.length).ok_or(Reason::Headroom)?);

        let (_, ip) = out.split_at_mut(ETHERNET_HEADER);
        let (ip, transport) = ip.split_at_mut(ip_header(self.version));
        match self.version {
            Version::V4 => {
                ip[2..4].copy_from_slice(&counted.to_be_bytes());
                ip[4..6].copy_from_slice(&fields.identification.to_be_bytes());
                let sum = self.sum + u32::from(counted) + u32::from(fields.identification);
                ip[10..12].copy_from_slice(&checksum::finish(sum).to_be_bytes());
            }
            Version::V6 => {
                let [_, high, middle, low] = fields.flow_label.to_be_bytes();
                ip[1] |= high & 0x0f;
                ip[2..4].copy_from_slice(&[middle, low]);
                ip[4..6].copy_from_slice(&counted.to_be_bytes());
            }
        }
        // Cannot be cut: it is less than `counted`.
        self.tunnel.fill(transport, carried as u16, fields);
        Ok(self.length)
    }

    /// Sets the UDP checksum of a whole outer frame that [`write`](Self::write) began, where there has to
    /// be one: over IPv6 (RFC 8200 section 8.1), since receivers drop other tunnels than VXLAN without.
    /// `frame` ends with the outer packet.
    #[inline]
    pub fn finish_checksum(&self, frame: &mut [u8]) {
        if !self.needs_checksum() {
            return;
        }
        let Some(datagram) = frame.get_mut(ETHERNET_HEADER + IPV6_HEADER..) else {
            return;
        };
        let length = checksum::length_sum(datagram.len() as u32);
        let sum = self.sum + length + checksum::sum(datagram);
        // A sum of 0 is sent as all ones: 0 means that there is none (RFC 768).
        let field = match checksum::finish(sum) {
            0 => 0xffff,
            field => field,
        };
        if let Some(place) = datagram.get_mut(UDP_CHECKSUM..UDP_CHECKSUM + 2) {
            place.copy_from_slice(&field.to_be_bytes());
        }
    }
}
