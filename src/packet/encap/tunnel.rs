//! The tunnels, and the header of each between the outer IP header and the inner frame.
//!
//! Called by the outer template, the raw-socket transmitter and the loop guards. Pure bytes.

use serde::Serialize;

use super::{erspan, geneve, gre, vxlan};
use crate::packet::headers::{
    protocol, Version, ETHERNET_HEADER, ETHERTYPE_BRIDGED, ETHERTYPE_IPV4, ETHERTYPE_IPV6,
};
use crate::packet::Direction;

pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
/// Length of a UDP header in bytes.
pub const UDP_HEADER: usize = 8;
/// In the first byte of a GRE header.
const SEQUENCE_FLAG: u8 = gre::SEQUENCE.to_be_bytes()[0];
/// Longest header behind the outer IP header: GRE with a sequence number, then ERSPAN III.
pub const MAX_TUNNEL_HEADER: usize = gre::length(false, true) + erspan::HEADER_III;

/// What of the inner frame a tunnel carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Inner {
    /// All of it.
    #[default]
    Ethernet,
    /// The IP packet in it, without Ethernet header and VLAN tags. What is not IP cannot be carried.
    Ip,
}

/// Which tunnel the copies go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// VXLAN, RFC 7348.
    Vxlan {
        /// Network identifier, 24 bits.
        vni: u32,
        /// UDP destination port.
        port: u16,
    },
    /// Geneve, RFC 8926.
    Geneve {
        /// Network identifier, 24 bits.
        vni: u32,
        /// UDP destination port.
        port: u16,
    },
    /// GRE, RFC 2784 and RFC 2890.
    Gre {
        /// Key, if there is one.
        key: Option<u32>,
        /// Whether each packet carries a sequence number.
        sequence: bool,
        /// What is inside.
        inner: Inner,
    },
    /// ERSPAN; each packet carries a sequence number.
    Erspan {
        /// Type II or III.
        version: erspan::Version,
        /// Session identifier, 10 bits.
        session: u16,
    },
}

/// What differs from packet to packet. Host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterFields {
    /// UDP source port (see [`source_port`](super::source_port)); not used without UDP.
    pub source_port: u16,
    /// IPv4 identification; 0 unless there is a reason. Not used by IPv6.
    pub identification: u16,
    /// IPv6 flow label, of which 20 bits count (RFC 6438: what spreads tunnels over equal paths). Not
    /// used by IPv4.
    pub flow_label: u32,
    /// Sequence number of GRE and ERSPAN; not used where the tunnel has none.
    pub sequence: u32,
    /// Ethertype of the IP packet; used by a tunnel of [`Inner::Ip`] alone.
    pub ethertype: u16,
    /// The frame's outermost VLAN tag; used by ERSPAN.
    pub tci: Option<u16>,
    /// Time of capture (see [`erspan::timestamp`]); used by ERSPAN III.
    pub timestamp: u32,
    /// Which way the frame went; used by ERSPAN III.
    pub direction: Direction,
}

/// What the headers around a frame depend on, besides its length and flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depends {
    /// Nothing more.
    Nothing,
    /// Its Ethernet header: [`OuterFields::ethertype`] and [`OuterFields::tci`].
    EthernetHeader,
    /// That, and [`OuterFields::timestamp`] and [`OuterFields::direction`].
    Capture,
}

impl Tunnel {
    /// The tunnel's name, for people.
    pub const fn name(&self) -> &'static str {
        match self {
            Tunnel::Vxlan { .. } => "VXLAN",
            Tunnel::Geneve { .. } => "Geneve",
            Tunnel::Gre { .. } => "GRE",
            Tunnel::Erspan { .. } => "ERSPAN",
        }
    }

    /// UDP destination port; `None`: the tunnel is not carried by UDP.
    pub const fn udp_port(&self) -> Option<u16> {
        match self {
            Tunnel::Vxlan { port, .. } | Tunnel::Geneve { port, .. } => Some(*port),
            Tunnel::Gre { .. } | Tunnel::Erspan { .. } => None,
        }
    }

    /// IP protocol.
    pub const fn protocol(&self) -> u8 {
        match self.udp_port() {
            Some(_) => protocol::UDP,
            None => protocol::GRE,
        }
    }

    /// Whether packets carry a sequence number.
    pub const fn is_numbered(&self) -> bool {
        matches!(
            self,
            Tunnel::Gre { sequence: true, .. } | Tunnel::Erspan { .. }
        )
    }

    /// What of the inner frame is carried.
    pub const fn inner(&self) -> Inner {
        match self {
            Tunnel::Gre { inner, .. } => *inner,
            _ => Inner::Ethernet,
        }
    }

    /// What the headers depend on.
    pub const fn depends(&self) -> Depends {
        match self {
            Tunnel::Erspan {
                version: erspan::Version::Three,
                ..
            } => Depends::Capture,
            Tunnel::Erspan { .. } => Depends::EthernetHeader,
            Tunnel::Gre {
                inner: Inner::Ip, ..
            } => Depends::EthernetHeader,
            _ => Depends::Nothing,
        }
    }

    /// Bytes between the outer IP header and what is carried.
    pub const fn header_length(&self) -> usize {
        match self {
            Tunnel::Vxlan { .. } => UDP_HEADER + vxlan::HEADER,
            Tunnel::Geneve { .. } => UDP_HEADER + geneve::HEADER,
            Tunnel::Gre { key, sequence, .. } => gre::length(key.is_some(), *sequence),
            Tunnel::Erspan { version, .. } => gre::length(false, true) + version.length(),
        }
    }

    /// Bytes between the start of the outer IP header and what is carried.
    pub const fn ip_overhead(&self, outer: Version) -> usize {
        ip_header(outer) + self.header_length()
    }

    /// Bytes at the front of an inner frame of `link_header` bytes of Ethernet header and tags that are
    /// not carried.
    pub const fn stripped(&self, link_header: usize) -> usize {
        match self.inner() {
            Inner::Ethernet => 0,
            Inner::Ip => link_header,
        }
    }

    /// Largest inner frame, its Ethernet header included, that fits an outer IP packet of `mtu` bytes.
    /// A frame with VLAN tags may be longer by them where those are not carried.
    pub const fn largest_frame(&self, outer: Version, mtu: usize) -> usize {
        mtu.saturating_sub(self.ip_overhead(outer)) + self.stripped(ETHERNET_HEADER)
    }

    /// The header with every variable field 0.
    pub const fn header(&self) -> [u8; MAX_TUNNEL_HEADER] {
        let mut bytes = [0; MAX_TUNNEL_HEADER];
        match self {
            Tunnel::Vxlan { vni, port } => {
                [bytes[2], bytes[3]] = port.to_be_bytes();
                copy(&mut bytes, UDP_HEADER, &vxlan::header(*vni));
            }
            Tunnel::Geneve { vni, port } => {
                [bytes[2], bytes[3]] = port.to_be_bytes();
                copy(&mut bytes, UDP_HEADER, &geneve::header(*vni));
            }
            Tunnel::Gre {
                key,
                sequence,
                inner,
            } => {
                let protocol_type = match inner {
                    Inner::Ethernet => ETHERTYPE_BRIDGED,
                    Inner::Ip => 0,
                };
                let sequence = if *sequence { Some(0) } else { None };
                copy(&mut bytes, 0, &gre::header(protocol_type, *key, sequence));
            }
            Tunnel::Erspan { version, session } => {
                let gre = gre::header(version.protocol_type(), None, Some(0));
                copy(&mut bytes, 0, &gre);
                let at = gre::length(false, true);
                copy(
                    &mut bytes,
                    at,
                    &erspan::first_word(*version, *session, None),
                );
            }
        }
        bytes
    }

    /// Sets the variable fields of a [`header`](Self::header) that stands in `bytes`, in front of
    /// `carried` bytes. The UDP checksum stays 0.
    #[inline]
    pub fn fill(&self, bytes: &mut [u8], carried: u16, fields: &OuterFields) {
        match *self {
            Tunnel::Vxlan { .. } | Tunnel::Geneve { .. } => {
                let length = carried.saturating_add(self.header_length() as u16);
                if let Some(udp) = bytes.first_chunk_mut::<UDP_HEADER>() {
                    [udp[0], udp[1]] = fields.source_port.to_be_bytes();
                    [udp[4], udp[5]] = length.to_be_bytes();
                }
            }
            Tunnel::Gre {
                sequence, inner, ..
            } => {
                if let (Inner::Ip, Some(front)) = (inner, bytes.first_chunk_mut::<4>()) {
                    [front[2], front[3]] = fields.ethertype.to_be_bytes();
                }
                // The sequence number is the last field of the header.
                if let (true, Some(field)) = (sequence, bytes.last_chunk_mut()) {
                    *field = fields.sequence.to_be_bytes();
                }
            }
            Tunnel::Erspan { version, session } => {
                let Some((gre, rest)) = bytes.split_first_chunk_mut::<8>() else {
                    return;
                };
                if let Some(field) = gre.last_chunk_mut() {
                    *field = fields.sequence.to_be_bytes();
                }
                if let Some(word) = rest.first_chunk_mut() {
                    *word = erspan::first_word(version, session, fields.tci);
                }
                if let (erspan::Version::Three, Some(third)) =
                    (version, rest.first_chunk_mut::<12>())
                {
                    [third[4], third[5], third[6], third[7]] = fields.timestamp.to_be_bytes();
                    [third[10], third[11]] = erspan::type_iii_flags(fields.direction);
                }
            }
        }
    }

    /// The header as the loop guards look for it: bytes, and which bits of them tell our copies from
    /// other packets. Nothing that differs from packet to packet, and not the UDP source port.
    pub fn signatures(&self) -> Vec<Signature> {
        let mut signature = Signature {
            length: self.header_length(),
            bytes: self.header(),
            mask: [0; MAX_TUNNEL_HEADER],
        };
        let mask = &mut signature.mask;
        match self {
            Tunnel::Vxlan { .. } | Tunnel::Geneve { .. } => {
                mask[2..4].fill(0xff);
                mask[UDP_HEADER..UDP_HEADER + 8].fill(0xff);
            }
            Tunnel::Gre { key, inner, .. } => {
                mask[..4].fill(0xff);
                mask[0] &= !SEQUENCE_FLAG;
                if key.is_some() {
                    mask[4..8].fill(0xff);
                }
                if *inner == Inner::Ip {
                    let of = |ethertype: u16| {
                        let mut one = signature.clone();
                        one.bytes[2..4].copy_from_slice(&ethertype.to_be_bytes());
                        one
                    };
                    return vec![of(ETHERTYPE_IPV4), of(ETHERTYPE_IPV6)];
                }
            }
            Tunnel::Erspan { .. } => {
                mask[..4].fill(0xff);
                mask[8..12].copy_from_slice(&[0xf0, 0, 0x03, 0xff]);
            }
        }
        vec![signature]
    }
}

/// See [`Tunnel::signatures`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Length of the header in bytes.
    pub length: usize,
    /// The header.
    pub bytes: [u8; MAX_TUNNEL_HEADER],
    /// The bits of it that count.
    pub mask: [u8; MAX_TUNNEL_HEADER],
}

impl Signature {
    /// Bytes up to the last one that counts.
    pub fn decisive(&self) -> usize {
        self.mask
            .iter()
            .rposition(|bits| *bits != 0)
            .map_or(0, |at| at + 1)
    }
}

/// Length of an outer IP header.
pub const fn ip_header(version: Version) -> usize {
    match version {
        Version::V4 => IPV4_HEADER,
        Version::V6 => IPV6_HEADER,
    }
}

const fn copy(to: &mut [u8; MAX_TUNNEL_HEADER], at: usize, from: &[u8]) {
    let mut index = 0;
    while index < from.len() {
        to[at + index] = from[index];
        index += 1;
    }
}
