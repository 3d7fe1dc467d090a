//! From a frame to the TCP segment in it, through tags, labels and tunnels.
//!
//! Bounds-checked, no panic on any bytes, nothing copied but addresses. Ends of packets come from their
//! length fields, bounded by those of what they are in; captured bytes may be fewer.

use super::tunnel::StreamKey;
use crate::packet::headers::{self, protocol, Fragment, Ip};

/// How a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Ethernet header.
    Ethernet,
    /// IPv4 or IPv6 header, told by its version.
    Ip,
    /// Four bytes of address family, BSD loopback.
    Loopback,
    /// Linux cooked capture, version 1.
    Cooked,
    /// Linux cooked capture, version 2.
    Cooked2,
    /// PPP in HDLC-like framing.
    Ppp,
}

/// Tunnels within tunnels are looked into so far.
const MAX_DEPTH: usize = 6;
/// Tags and labels in a row.
const MAX_TAGS: usize = 8;

const ETHERTYPE_MPLS: [u16; 2] = [0x8847, 0x8848];
const ETHERTYPE_PPPOE: u16 = 0x8864;
const ETHERTYPE_ERSPAN_2: u16 = 0x88be;
const ETHERTYPE_ERSPAN_3: u16 = 0x22eb;
const ETHERTYPE_PPP: u16 = 0x880b;
const PORT_VXLAN: [u16; 2] = [4789, 8472];
const PORT_VXLAN_GPE: u16 = 4790;
const PORT_GENEVE: u16 = 6081;

/// The innermost packet of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inner {
    pub ip: Ip,
    /// Where it ends on the wire.
    pub end: usize,
    /// VNI that it was in; 0 outside. Not GRE keys and ERSPAN sessions: some senders have one for each
    /// direction.
    pub scope: u32,
}

/// Walks through a frame. `stream` gets each numbered tunnel packet on the way.
pub(super) fn innermost(
    frame: &[u8],
    wire_length: usize,
    link: Link,
    stream: &mut impl FnMut(&StreamKey, u32),
) -> Option<Inner> {
    let (mut ethertype, mut at) = begin(frame, link)?;
    // Only length fields bound what is in them, not the frame: slicing tools cut the wire length as well.
    let mut end = usize::MAX;
    let wire_end = wire_length.max(frame.len());
    let mut scope = 0;
    let mut found = None;
    for _ in 0..MAX_DEPTH {
        let Some((kind, network, bound)) = untag(frame, ethertype, at, end) else {
            break;
        };
        let Some(ip) = headers::parse_ip(frame, network, kind) else {
            break;
        };
        end = if ip.length_known {
            ip.end.min(bound.max(network))
        } else {
            bound.min(wire_end)
        };
        found = Some(Inner { ip, end, scope });
        // The first piece of a tunnel packet has the headers of what is inside, and they tell its length.
        let inside = match ip.fragment {
            Fragment::Whole => end,
            Fragment::First => usize::MAX,
            Fragment::Later => break,
        };
        let Some(next) = enter(frame, &ip, inside, stream) else {
            break;
        };
        (ethertype, at, end) = (next.ethertype, next.at, next.end);
        scope = next.scope;
    }
    found
}

fn be16(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}

fn be32(frame: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}

/// Ethertype by the version of the IP header at `at`.
fn version(frame: &[u8], at: usize) -> Option<u16> {
    match frame.get(at)? >> 4 {
        4 => Some(headers::ETHERTYPE_IPV4),
        6 => Some(headers::ETHERTYPE_IPV6),
        _ => None,
    }
}

fn begin(frame: &[u8], link: Link) -> Option<(u16, usize)> {
    match link {
        Link::Ethernet => Some((be16(frame, 12)?, headers::ETHERNET_HEADER)),
        Link::Ip => Some((version(frame, 0)?, 0)),
        // The family is in the byte order of whoever captured, and its number for IPv6 is not the same
        // everywhere: the version tells.
        Link::Loopback => Some((version(frame, 4)?, 4)),
        Link::Cooked => Some((be16(frame, 14)?, 16)),
        Link::Cooked2 => Some((be16(frame, 0)?, 20)),
        Link::Ppp => {
            let at = if frame.starts_with(&[0xff, 0x03]) {
                2
            } else {
                0
            };
            Some((ppp(be16(frame, at)?)?, at + 2))
        }
    }
}

const fn ppp(kind: u16) -> Option<u16> {
    match kind {
        0x0021 => Some(headers::ETHERTYPE_IPV4),
        0x0057 => Some(headers::ETHERTYPE_IPV6),
        _ => None,
    }
}

/// Behind VLAN tags, MPLS labels and PPPoE: ethertype, place, and the end that they set.
fn untag(
    frame: &[u8],
    mut ethertype: u16,
    mut at: usize,
    mut end: usize,
) -> Option<(u16, usize, usize)> {
    for _ in 0..MAX_TAGS {
        if headers::is_vlan(ethertype) || ethertype == 0x9200 {
            ethertype = be16(frame, at + 2)?;
            at += 4;
        } else if ethertype == ETHERTYPE_PPPOE {
            // Its length leaves padding out that an IP length may count in.
            end = end.min(at + 6 + usize::from(be16(frame, at + 4)?));
            ethertype = ppp(be16(frame, at + 6)?)?;
            at += 8;
        } else if ETHERTYPE_MPLS.contains(&ethertype) {
            let bottom = be32(frame, at)? & 0x100 != 0;
            at += 4;
            if bottom {
                match version(frame, at) {
                    Some(kind) => ethertype = kind,
                    // RFC 4448: Ethernet behind a control word.
                    None => {
                        at += 4;
                        ethertype = be16(frame, at + 12)?;
                        at += headers::ETHERNET_HEADER;
                    }
                }
            }
        } else {
            return Some((ethertype, at, end));
        }
    }
    None
}

struct Next {
    ethertype: u16,
    at: usize,
    end: usize,
    scope: u32,
}

/// Enters the tunnel that an IP packet is, if it is one.
fn enter(
    frame: &[u8],
    ip: &Ip,
    end: usize,
    stream: &mut impl FnMut(&StreamKey, u32),
) -> Option<Next> {
    let at = ip.transport;
    match ip.protocol {
        protocol::IPIP | protocol::IPV6 => Some(Next {
            ethertype: version(frame, at)?,
            at,
            end,
            scope: 0,
        }),
        protocol::UDP => enter_udp(frame, at, end),
        protocol::GRE => enter_gre(frame, ip, end, stream),
        _ => None,
    }
}

fn ethernet(frame: &[u8], at: usize, end: usize, scope: u32) -> Option<Next> {
    Some(Next {
        ethertype: be16(frame, at + 12)?,
        at: at + headers::ETHERNET_HEADER,
        end,
        scope,
    })
}

fn enter_udp(frame: &[u8], at: usize, end: usize) -> Option<Next> {
    let port = be16(frame, at + 2)?;
    let length = usize::from(be16(frame, at + 4)?);
    // 0 in a super-packet.
    let end = if length == 0 {
        end
    } else {
        end.min(at + length)
    };
    let at = at + 8;
    let flags = *frame.get(at)?;
    let vni = be32(frame, at + 4)? >> 8;
    if PORT_VXLAN.contains(&port) || port == PORT_VXLAN_GPE && flags & 0x04 == 0 {
        return if flags & 0x08 != 0 {
            ethernet(frame, at + 8, end, vni)
        } else {
            None
        };
    }
    match port {
        PORT_VXLAN_GPE => match frame.get(at + 3)? {
            1 | 2 => Some(Next {
                ethertype: version(frame, at + 8)?,
                at: at + 8,
                end,
                scope: vni,
            }),
            3 => ethernet(frame, at + 8, end, vni),
            _ => None,
        },
        PORT_GENEVE if flags & 0xc0 == 0 => {
            let inner = at + 8 + usize::from(flags & 0x3f) * 4;
            match be16(frame, at + 2)? {
                headers::ETHERTYPE_BRIDGED => ethernet(frame, inner, end, vni),
                ethertype => Some(Next {
                    ethertype,
                    at: inner,
                    end,
                    scope: vni,
                }),
            }
        }
        _ => None,
    }
}

fn enter_gre(
    frame: &[u8],
    ip: &Ip,
    end: usize,
    stream: &mut impl FnMut(&StreamKey, u32),
) -> Option<Next> {
    let flags = be16(frame, ip.transport)?;
    let kind = be16(frame, ip.transport + 2)?;
    let mut at = ip.transport + 4;
    let (has_checksum, has_key, has_sequence) = (
        flags & 0x8000 != 0,
        flags & 0x2000 != 0,
        flags & 0x1000 != 0,
    );
    // Version 0 (RFC 2784) and the enhanced one of PPTP (RFC 2637). A source route is deprecated.
    let gre_version = flags & 7;
    if gre_version > 1 || flags & 0x4000 != 0 {
        return None;
    }
    at += if has_checksum { 4 } else { 0 };
    let mut key = if has_key { be32(frame, at)? } else { 0 };
    at += if has_key { 4 } else { 0 };
    let sequence = if has_sequence {
        Some(be32(frame, at)?)
    } else {
        None
    };
    at += if has_sequence { 4 } else { 0 };
    if gre_version == 1 {
        // The low half is the call; the high one the length of the payload.
        key &= 0xffff;
        at += if flags & 0x80 != 0 { 4 } else { 0 };
    }
    let erspan = match (kind, sequence) {
        // Type I: Ethernet at once, no number.
        (ETHERTYPE_ERSPAN_2, None) => 0,
        (ETHERTYPE_ERSPAN_2, Some(_)) => 8,
        // An optional sub-header follows where the last bit says so.
        (ETHERTYPE_ERSPAN_3, _) => 12 + 8 * usize::from(be32(frame, at + 8)? & 1 != 0),
        _ => 0,
    };
    if erspan > 0 {
        key = be32(frame, at)? & 0x3ff;
    }
    if let Some(sequence) = sequence {
        let stream_key = StreamKey {
            source: ip.source,
            destination: ip.destination,
            key,
            protocol: kind,
        };
        stream(&stream_key, sequence);
    }
    match kind {
        headers::ETHERTYPE_BRIDGED => ethernet(frame, at, end, 0),
        ETHERTYPE_ERSPAN_2 | ETHERTYPE_ERSPAN_3 => ethernet(frame, at + erspan, end, 0),
        ETHERTYPE_PPP => {
            let at = if frame.get(at..)?.starts_with(&[0xff, 0x03]) {
                at + 2
            } else {
                at
            };
            let (kind, at) = match frame.get(at)? {
                // Compressed to one byte (RFC 1661 section 6.5).
                0x21 => (0x0021, at + 1),
                0x57 => (0x0057, at + 1),
                _ => (be16(frame, at)?, at + 2),
            };
            Some(Next {
                ethertype: ppp(kind)?,
                at,
                end,
                scope: 0,
            })
        }
        _ => Some(Next {
            ethertype: kind,
            at,
            end,
            scope: 0,
        }),
    }
}
