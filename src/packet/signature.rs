//! Is our own copy inside this frame? The pure half of the amplification breaker.
//!
//! Where the copies leave through another tunnel on the tapped interface (tun, WireGuard without
//! encryption, a relay), the program in the kernel cannot see the outer flow that it must not copy.
//! Then our outer IPv4 header stands somewhere behind the frame's own, at any offset. An ICMP error
//! about a copy quotes it there as well. Called by the worker on frames that it is about to copy;
//! decides nothing and counts nothing.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::encap::{gre, vxlan, Tunnel};
use super::headers::{be16, protocol, Headers, Version, ETHERNET_HEADER};

/// The inner header must begin in this many bytes of the frame.
pub const SEARCHED_BYTES: usize = 192;

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
/// The part of a GRE header that is always there.
const GRE_FIXED: usize = 4;
/// Place of the addresses in an IPv4 header.
const ADDRESSES: usize = 12;

/// The outer flow of our copies to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFlow {
    /// Outer source address.
    pub source: Ipv4Addr,
    /// Outer destination address.
    pub destination: Ipv4Addr,
    /// Tunnel with its identifier.
    pub tunnel: Tunnel,
    /// Outer UDP source ports; not looked at for GRE.
    pub source_ports: RangeInclusive<u16>,
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
                Version::V6 => 40,
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
        // RFC 4443 section 2.1: errors have the high bit clear.
        protocol::ICMPV6 => kind < 128,
        _ => false,
    }
}

/// RFC 792: unreachable, source quench, redirect, time exceeded and parameter problem quote a packet.
fn is_icmp_error_type(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

fn search(frame: &[u8], start: usize, is_error: bool, flow: &OwnFlow) -> Own {
    let end = frame.len().min(SEARCHED_BYTES + ADDRESSES + 8);
    let Some(mut window) = frame.get(start + ADDRESSES..end) else {
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
    let [a, b, c, d] = flow.source.octets();
    let [e, f, g, h] = flow.destination.octets();
    let needle = [a, b, c, d, e, f, g, h];
    if !may_hold(window, [c, d, g, h]) {
        return None;
    }
    window
        .windows(needle.len())
        .position(|bytes| bytes == needle)
}

/// Whether the low halves of both addresses stand anywhere at their distance. Without an early exit and
/// byte by byte side by side, which the compiler turns into comparisons of 16 places at a time.
fn may_hold(window: &[u8], [c, d, g, h]: [u8; 4]) -> bool {
    let Some(places) = window.len().checked_sub(7) else {
        return false;
    };
    let [from_c, from_d, from_g, from_h] =
        [2, 3, 6, 7].map(|skip| window.get(skip..skip + places).unwrap_or(&[]));
    let mut any = 0u8;
    for (((&at_c, &at_d), &at_g), &at_h) in from_c.iter().zip(from_d).zip(from_g).zip(from_h) {
        any |=
            u8::from(at_c == c) & u8::from(at_d == d) & u8::from(at_g == g) & u8::from(at_h == h);
    }
    any != 0
}

/// Whether an IPv4 header of `flow` with its tunnel header stands at `at`. A quotation may end within the
/// tunnel header: RFC 792 promises 8 bytes behind the IP header, no more.
fn is_own_header(frame: &[u8], at: usize, quoted: bool, flow: &OwnFlow) -> bool {
    let Some(packet) = frame.get(at..) else {
        return false;
    };
    // Ours never has options.
    if packet.first() != Some(&0x45) {
        return false;
    }
    let Some(payload) = packet.get(IPV4_HEADER..) else {
        return false;
    };
    let begins = |bytes: &[u8], header: &[u8]| {
        bytes.starts_with(header) || quoted && header.starts_with(bytes)
    };
    match (packet.get(9).copied(), flow.tunnel) {
        (Some(protocol::UDP), Tunnel::Vxlan { vni, port }) => {
            let from_us = be16(payload, 0).is_some_and(|port| flow.source_ports.contains(&port));
            let header = payload.get(UDP_HEADER..).unwrap_or(&[]);
            from_us && be16(payload, 2) == Some(port) && begins(header, &vxlan::header(vni))
        }
        (Some(protocol::GRE), Tunnel::Gre { key, sequence }) => {
            // Without the sequence number, which comes last.
            let header = gre::header(key, sequence.then_some(0));
            let length = gre::length(key.is_some(), false);
            payload.len() >= GRE_FIXED && begins(payload, &header[..length])
        }
        _ => false,
    }
}

/// Whether the header at `at` is the quotation in an ICMP error to us, itself within a tunnel.
fn is_quoted(frame: &[u8], at: usize, flow: &OwnFlow) -> bool {
    let Some(error) = at
        .checked_sub(ICMP_HEADER + IPV4_HEADER)
        .and_then(|start| frame.get(start..at))
    else {
        return false;
    };
    error.first() == Some(&0x45)
        && error.get(9) == Some(&protocol::ICMP)
        && error.get(16..20) == Some(&flow.source.octets())
        && error.get(20).is_some_and(|&kind| is_icmp_error_type(kind))
}

#[cfg(test)]
mod tests;
