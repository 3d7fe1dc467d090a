//! The headers of a super-packet, from the outermost to the transport header whose payload is split.
//!
//! Understands Ethernet, VLAN tags, IPv4, IPv6 with extension headers, VXLAN, Geneve, GRE without a
//! sequence number, IP in IP, and TCP or UDP at the end. Changes nothing; called by `split`.

use super::super::headers::{
    be16, lone_jumbo_header, parse_ethernet, parse_ip, protocol, tcp_header_length, Fragment, Ip,
    Version, ETHERTYPE_BRIDGED, ETHERTYPE_IPV4, ETHERTYPE_IPV6,
};
use crate::packet::{FrameMeta, Gso};

/// Headers with length fields before the transport header that can be dealt with.
const MAX_LAYERS: usize = 8;

/// `gso_size` of a super-packet whose pieces the kernel keeps in a list (SCTP): the borders are not in
/// the bytes.
const GSO_BY_FRAGS: u16 = 0xffff;

const UDP_HEADER: usize = 8;
const VXLAN_HEADER: usize = 8;
/// IANA's VXLAN port, and Linux's default before there was one.
const VXLAN_PORTS: [u16; 2] = [4789, 8472];
const GENEVE_PORT: u16 = 6081;

/// GRE flags (RFC 2890 section 2).
const GRE_CHECKSUM: u16 = 0x8000;
const GRE_KEY: u16 = 0x2000;
const GRE_SEQUENCE: u16 = 0x1000;

/// A header with fields that depend on the packet's length. `at` is an offset in the frame.
#[derive(Clone, Copy)]
pub(super) enum Layer {
    Ipv4 {
        at: usize,
        header_length: usize,
    },
    Ipv6 {
        at: usize,
    },
    /// UDP of a tunnel. The addresses are those of the IP header before it.
    Udp {
        at: usize,
        ip: Addresses,
    },
    /// GRE with a checksum.
    Gre {
        at: usize,
    },
}

/// Where the addresses of a pseudo-header stand, and how long each is.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub source: usize,
    pub destination: usize,
    pub length: usize,
}

impl Addresses {
    pub(super) fn of(ip: &Ip) -> Self {
        let (source, length) = match ip.version {
            Version::V4 => (ip.offset + 12, 4),
            Version::V6 => (ip.offset + 8, 16),
        };
        Self {
            source,
            destination: ip.final_destination,
            length,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// All that `split` needs to know of a super-packet's headers. Offsets in the frame.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    layers: [Layer; MAX_LAYERS],
    count: usize,
    pub transport: Transport,
    pub transport_at: usize,
    /// The addresses of the transport's pseudo-header.
    pub ip: Addresses,
    /// Start of the payload that is split.
    pub payload: usize,
    /// A hop-by-hop header of 8 bytes that exists for BIG TCP only and is not on the wire.
    pub jumbo_header: Option<usize>,
}

impl Shape {
    /// From the outermost to the innermost.
    pub(super) fn layers(&self) -> &[Layer] {
        self.layers.get(..self.count).unwrap_or(&[])
    }
}

/// Reads the headers of a super-packet of `length` bytes, of which `frame` has at least the headers.
///
/// A UDP packet to a tunnel's port can be a tunnel with one large packet inside or a run of datagrams
/// that each hold a tunnelled packet. It is a tunnel if the inner headers make sense and the inner IP
/// length reaches to the end; otherwise the outer UDP is the one that is split.
pub(super) fn understand(meta: &FrameMeta, frame: &[u8], length: usize) -> Option<Shape> {
    if meta.gso_size == GSO_BY_FRAGS {
        return None;
    }
    let (ethertype, network) = parse_ethernet(frame, 0)?;
    let mut walk = Walk {
        frame,
        length,
        gso: meta.gso,
        layers: [Layer::Ipv6 { at: 0 }; MAX_LAYERS],
        count: 0,
        jumbo_header: None,
        datagrams: None,
    };
    walk.run(ethertype, network).or(walk.datagrams)
}

struct Walk<'f> {
    frame: &'f [u8],
    length: usize,
    gso: Gso,
    layers: [Layer; MAX_LAYERS],
    count: usize,
    jumbo_header: Option<usize>,
    /// The outermost UDP header as the one to split.
    datagrams: Option<Shape>,
}

impl Walk<'_> {
    fn run(&mut self, mut ethertype: u16, mut network: usize) -> Option<Shape> {
        for _ in 0..MAX_LAYERS {
            let ip = parse_ip(self.frame, network, ethertype)?;
            if ip.fragment != Fragment::Whole {
                return None;
            }
            if self.datagrams.is_some() && ip.length_known && ip.end != self.length {
                return None;
            }
            self.push_ip(&ip)?;
            let at = ip.transport;
            match ip.protocol {
                protocol::TCP if self.gso != Gso::Udp => {
                    let header_length = tcp_header_length(self.frame, at)?;
                    return Some(self.shape(&ip, Transport::Tcp, header_length));
                }
                protocol::UDP => {
                    self.frame.get(at..at + UDP_HEADER)?;
                    let shape = self.shape(&ip, Transport::Udp, UDP_HEADER);
                    let splits_udp = self.gso != Gso::Tcp;
                    match inner_network(self.frame, &ip) {
                        Some(inner) => {
                            if splits_udp && self.datagrams.is_none() {
                                self.datagrams = Some(shape);
                            }
                            self.push(Layer::Udp {
                                at,
                                ip: Addresses::of(&ip),
                            })?;
                            (network, ethertype) = inner;
                        }
                        None => return splits_udp.then_some(shape),
                    }
                }
                protocol::GRE => {
                    let flags = be16(self.frame, at)?;
                    // A sequence number counts packets, so each piece would need its own.
                    if flags & GRE_SEQUENCE != 0 {
                        return None;
                    }
                    (network, ethertype) = inner_network(self.frame, &ip)?;
                    if flags & GRE_CHECKSUM != 0 {
                        self.push(Layer::Gre { at })?;
                    }
                }
                _ => (network, ethertype) = inner_network(self.frame, &ip)?,
            }
        }
        None
    }

    fn push(&mut self, layer: Layer) -> Option<()> {
        *self.layers.get_mut(self.count)? = layer;
        self.count += 1;
        Some(())
    }

    fn push_ip(&mut self, ip: &Ip) -> Option<()> {
        let at = ip.offset;
        match ip.version {
            Version::V4 => self.push(Layer::Ipv4 {
                at,
                header_length: ip.transport - at,
            }),
            Version::V6 => {
                if let Some(jumbo) = lone_jumbo_header(self.frame, ip) {
                    if self.jumbo_header.replace(jumbo).is_some() {
                        return None;
                    }
                }
                self.push(Layer::Ipv6 { at })
            }
        }
    }

    fn shape(&self, ip: &Ip, transport: Transport, header_length: usize) -> Shape {
        Shape {
            layers: self.layers,
            count: self.count,
            transport,
            transport_at: ip.transport,
            ip: Addresses::of(ip),
            payload: ip.transport + header_length,
            jumbo_header: self.jumbo_header,
        }
    }
}

/// The next network header behind a tunnel header: offset and ethertype. `None` if `ip` carries none.
pub(in crate::packet) fn inner_network(frame: &[u8], ip: &Ip) -> Option<(usize, u16)> {
    if ip.fragment != Fragment::Whole {
        return None;
    }
    let at = ip.transport;
    match ip.protocol {
        protocol::IPIP => Some((at, ETHERTYPE_IPV4)),
        protocol::IPV6 => Some((at, ETHERTYPE_IPV6)),
        protocol::UDP => {
            let port = be16(frame, at + 2)?;
            let tunnel = at + UDP_HEADER;
            let first = *frame.get(tunnel)?;
            if VXLAN_PORTS.contains(&port) {
                // RFC 7348 section 5: the I flag must be set.
                (first & 0x08 != 0).then_some(())?;
                behind_ethertype(frame, ETHERTYPE_BRIDGED, tunnel + VXLAN_HEADER)
            } else if port == GENEVE_PORT {
                // RFC 8926 section 3.4: version 0, option length in 4 bytes.
                (first >> 6 == 0).then_some(())?;
                let options = usize::from(first & 0x3f) * 4;
                behind_ethertype(frame, be16(frame, tunnel + 2)?, tunnel + 8 + options)
            } else {
                None
            }
        }
        protocol::GRE => {
            let flags = be16(frame, at)?;
            // Any other bit is routing (RFC 1701), a version or something newer.
            if flags & !(GRE_CHECKSUM | GRE_KEY | GRE_SEQUENCE) != 0 {
                return None;
            }
            let optional = [GRE_CHECKSUM, GRE_KEY, GRE_SEQUENCE];
            let present = optional.iter().filter(|&&flag| flags & flag != 0).count();
            behind_ethertype(frame, be16(frame, at + 2)?, at + 4 + present * 4)
        }
        _ => None,
    }
}

fn behind_ethertype(frame: &[u8], ethertype: u16, at: usize) -> Option<(usize, u16)> {
    match ethertype {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Some((at, ethertype)),
        ETHERTYPE_BRIDGED => {
            parse_ethernet(frame, at).map(|(ethertype, network)| (network, ethertype))
        }
        _ => None,
    }
}
