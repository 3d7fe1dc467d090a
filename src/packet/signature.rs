//! Is our own copy inside this frame? The pure half of the amplification breaker.
//!
//! Where the copies leave through another tunnel on the tapped interface (tun, WireGuard without
//! encryption, a relay), the program in the kernel cannot see the outer flow that it must not copy.
//! Then our outer IP header stands somewhere behind the frame's own, at any offset. An ICMP error
//! about a copy quotes it there as well. Called by the worker on frames that it is about to copy;
//! decides nothing and counts nothing.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::encap::{Signature, Tunnel};
use super::headers::{be16, protocol, Headers, Version, ETHERNET_HEADER};

/// The inner header must begin in this many bytes of the frame.
pub const SEARCHED_BYTES: usize = 192;

/// A frame's bytes that [`find`] is given whatever the snaplen: with all that a header of ours in them needs,
/// unless it begins in the last few of [`SEARCHED_BYTES`].
pub const LOOKED_AT_BYTES: usize = SEARCHED_BYTES + 64;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
/// The IPv6 fragment header, and its protocol number.
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;
/// Least of a tunnel header that tells ours in a quotation: the fixed part of GRE, the ports of UDP.
const LEAST_QUOTED: usize = 4;

/// The outer flow of our copies to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFlow {
    addresses: Addresses,
    protocol: u8,
    /// The tunnel headers that our copies begin with behind the outer IP header.
    headers: Vec<Signature>,
    /// Outer UDP source ports; not looked at without UDP.
    source_ports: RangeInclusive<u16>,
}

/// Outer source and destination, as they follow each other in the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addresses {
    V4([u8; 8]),
    V6([u8; 32]),
}

impl OwnFlow {
    /// `None` if the addresses are not of one IP version: such a flow cannot be.
    pub fn new(
        source: IpAddr,
        destination: IpAddr,
        tunnel: Tunnel,
        source_ports: RangeInclusive<u16>,
    ) -> Option<OwnFlow> {
        let addresses = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut both = [0; 8];
                both[..4].copy_from_slice(&source.octets());
                both[4..].copy_from_slice(&destination.octets());
                Addresses::V4(both)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut both = [0; 32];
                both[..16].copy_from_slice(&source.octets());
                both[16..].copy_from_slice(&destination.octets());
                Addresses::V6(both)
            }
            _ => return None,
        };
        Some(OwnFlow {
            addresses,
            protocol: tunnel.protocol(),
            headers: tunnel.signatures(),
            source_ports,
        })
    }
}

impl Addresses {
    fn bytes(&self) -> &[u8] {
        match self {
            Addresses::V4(both) => both,
            Addresses::V6(both) => both,
        }
    }

    fn source(&self) -> &[u8] {
        let bytes = self.bytes();
        &bytes[..bytes.len() / 2]
    }

    /// Place of the addresses in the IP header.
    const fn offset(&self) -> usize {
        match self {
            Addresses::V4(_) => 12,
            Addresses::V6(_) => 8,
        }
    }

    const fn header(&self) -> usize {
        match self {
            Addresses::V4(_) => IPV4_HEADER,
            Addresses::V6(_) => IPV6_HEADER,
        }
    }
}

/// What of ours stands in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Nothing.
    Nothing,
    /// The beginning of a copy, quoted by an ICMP or ICMPv6 error: a passive sensor's kernel answers
    /// with those. No copy came back; but a copy of the error would be answered by the next error.
    Quoted,
    /// A copy.
    Copy,
}

/// What of `flows` stands in `frame` behind its own outermost IP header.
///
/// Costs two comparisons per 16 bytes and flow as long as nothing looks like us.
pub fn find(frame: &[u8], flows: &[OwnFlow]) -> Own {
    let Some(headers) = Headers::parse(frame) else {
        return Own::Nothing;
    };
    let (start, is_error) = match &headers.ip {
        Some(ip) => {
            let header = match ip.version {
                Version::V4 => IPV4_HEADER,
                Version::V6 => IPV6_HEADER,
            };
            let is_error = is_icmp_error(frame, ip.protocol, ip.transport);
            (ip.offset + header, is_error)
        }
        None => (ETHERNET_HEADER, false),
    };
    let mut found = Own::Nothing;
    for flow in flows {
        match search(frame, start, is_error, flow) {
            Own::Copy => return Own::Copy,
            Own::Quoted => found = Own::Quoted,
            Own::Nothing => {}
        }
    }
    found
}

fn is_icmp_error(frame: &[u8], protocol: u8, at: usize) -> bool {
    let Some(&kind) = frame.get(at) else {
        return false;
    };
    match protocol {
        protocol::ICMP => is_icmp_error_type(kind),
        protocol::ICMPV6 => is_icmpv6_error_type(kind),
        _ => false,
    }
}

/// RFC 792: unreachable, source quench, redirect, time exceeded and parameter problem quote a packet.
fn is_icmp_error_type(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// RFC 4443 section 2.1: errors have the high bit clear.
fn is_icmpv6_error_type(kind: u8) -> bool {
    kind < 128
}

fn search(frame: &[u8], start: usize, is_error: bool, flow: &OwnFlow) -> Own {
    let place = flow.addresses.offset();
    let both = flow.addresses.bytes().len();
    let end = frame.len().min(SEARCHED_BYTES + place + both);
    let Some(mut window) = frame.get(start + place..end) else {
        return Own::Nothing;
    };
    let mut at = start;
    let mut own = Own::Nothing;
    while let Some(found) = find_addresses(window, flow) {
        let here = at + found;
        let quoted = is_error || is_quoted(frame, here, flow);
        if here < SEARCHED_BYTES && is_own_header(frame, here, quoted, flow) {
            if !quoted {
                return Own::Copy;
            }
            own = Own::Quoted;
        }
        window = window.get(found + 1..).unwrap_or(&[]);
        at = here + 1;
    }
    own
}

/// First place in `window` of the flow's source and destination address.
fn find_addresses(window: &[u8], flow: &OwnFlow) -> Option<usize> {
    let may_be = match &flow.addresses {
        Addresses::V4(both) => may_hold::<2, 3, 6, 7, 8>(window, both),
        Addresses::V6(both) => may_hold::<14, 15, 30, 31, 32>(window, both),
    };
    if !may_be {
        return None;
    }
    let needle = flow.addresses.bytes();
    window
        .windows(needle.len())
        .position(|bytes| bytes == needle)
}

/// Whether the last two bytes of both addresses, which stand at A, B, C and D of LENGTH, stand anywhere at
/// their distance. Without an early exit and byte by byte side by side, which the compiler turns into
/// comparisons of 16 places at a time.
fn may_hold<const A: usize, const B: usize, const C: usize, const D: usize, const LENGTH: usize>(
    window: &[u8],
    both: &[u8; LENGTH],
) -> bool {
    let Some(places) = window.len().checked_sub(LENGTH - 1) else {
        return false;
    };
    let [from_a, from_b, from_c, from_d] =
        [A, B, C, D].map(|skip| window.get(skip..skip + places).unwrap_or(&[]));
    let (a, b, c, d) = (both[A], both[B], both[C], both[D]);
    let mut any = 0u8;
    for (((&at_a, &at_b), &at_c), &at_d) in from_a.iter().zip(from_b).zip(from_c).zip(from_d) {
        any |=
            u8::from(at_a == a) & u8::from(at_b == b) & u8::from(at_c == c) & u8::from(at_d == d);
    }
    any != 0
}

/// Whether an IP header of `flow` with its tunnel header stands at `at`. A quotation may end within the
/// tunnel header: RFC 792 promises 8 bytes behind the IP header, no more. Of a copy that was fragmented
/// the first piece is found: the others have no tunnel header.
fn is_own_header(frame: &[u8], at: usize, quoted: bool, flow: &OwnFlow) -> bool {
    let Some(packet) = frame.get(at..) else {
        return false;
    };
    let Some((protocol, start)) = upper_layer(packet, &flow.addresses) else {
        return false;
    };
    let Some(payload) = packet.get(start..) else {
        return false;
    };
    if protocol != flow.protocol {
        return false;
    }
    if protocol == protocol::UDP
        && !be16(payload, 0).is_some_and(|port| flow.source_ports.contains(&port))
    {
        return false;
    }
    let least = |header: &Signature| {
        if quoted {
            LEAST_QUOTED
        } else {
            header.decisive()
        }
    };
    flow.headers.iter().any(|header| {
        let there = payload.len().min(header.decisive());
        let same = payload
            .iter()
            .zip(&header.bytes)
            .zip(&header.mask)
            .take(there)
            .all(|((byte, own), mask)| (byte ^ own) & mask == 0);
        same && there >= least(header)
    })
}

/// Protocol and start of what follows our own IP header: it never has options, and no extension header
/// but the one of a fragment.
fn upper_layer(packet: &[u8], addresses: &Addresses) -> Option<(u8, usize)> {
    match addresses {
        Addresses::V4(_) => (*packet.first()? == 0x45).then_some((*packet.get(9)?, IPV4_HEADER)),
        Addresses::V6(_) => {
            let next = (packet.first()? >> 4 == 6).then_some(*packet.get(6)?)?;
            if next == FRAGMENT {
                return Some((*packet.get(IPV6_HEADER)?, IPV6_HEADER + FRAGMENT_HEADER));
            }
            Some((next, IPV6_HEADER))
        }
    }
}

/// Whether the header at `at` is the quotation in an ICMP error to us, itself within a tunnel.
fn is_quoted(frame: &[u8], at: usize, flow: &OwnFlow) -> bool {
    let header = flow.addresses.header();
    let Some(error) = at
        .checked_sub(ICMP_HEADER + header)
        .and_then(|start| frame.get(start..at))
    else {
        return false;
    };
    let kind = error.get(header);
    let to_us = error
        .get(..header)
        .is_some_and(|ip| ip.ends_with(flow.addresses.source()));
    to_us
        && match flow.addresses {
            Addresses::V4(_) => {
                error.first() == Some(&0x45)
                    && error.get(9) == Some(&protocol::ICMP)
                    && kind.is_some_and(|&kind| is_icmp_error_type(kind))
            }
            Addresses::V6(_) => {
                error.first().is_some_and(|first| first >> 4 == 6)
                    && error.get(6) == Some(&protocol::ICMPV6)
                    && kind.is_some_and(|&kind| is_icmpv6_error_type(kind))
            }
        }
}

#[cfg(test)]
mod tests;
