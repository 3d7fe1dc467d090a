//! The flow hash: equal in both directions, and equal to `bpf/flow.h` to the bit.
//!
//! It picks the ring, the worker, the target and the outer UDP source port, so that both directions of
//! a flow stay together and in order. Pure arithmetic; called by the sources and by the tests that hold
//! the BPF side to it.

use std::net::IpAddr;

use super::headers::{be16, be32, Fragment, Headers, Ip, Ports};

#[inline]
const fn mix(hash: u32, value: u32) -> u32 {
    let hash = (hash ^ value).wrapping_mul(0x9E37_79B1);
    hash ^ (hash >> 15)
}

const START: u32 = 0x811C_9DC5;

/// Hash of one end: address words (big-endian values) and port.
#[inline]
pub fn endpoint(words: &[u32], port: u16) -> u32 {
    let hash = words.iter().fold(START, |hash, &word| mix(hash, word));
    mix(hash, u32::from(port))
}

/// Hash of one end of an IP flow.
#[inline]
pub fn ip_endpoint(address: IpAddr, port: u16) -> u32 {
    match address {
        IpAddr::V4(address) => endpoint(&[address.to_bits()], port),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let words = [bits >> 96, bits >> 64, bits >> 32, bits].map(|word| word as u32);
            endpoint(&words, port)
        }
    }
}

/// Hash of a flow from its two ends, in any order, and its protocol.
#[inline]
pub const fn combine(a: u32, b: u32, protocol: u32) -> u32 {
    // The sum goes through a round of its own: sum ^ xor alone would keep only the carries.
    let hash = mix(mix(0, a.wrapping_add(b)), a ^ b);
    let hash = mix(hash, protocol);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0x85EB_CA6B);
    hash ^ (hash >> 16)
}

/// The hash that `sample` goes by: from the flow hash, but with bits of its own, because the flow hash
/// chooses the ring, the target and the outer source port.
#[inline]
#[must_use]
pub const fn sample_hash(hash: u32) -> u32 {
    let hash = hash ^ 0x9747_B28C;
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85EB_CA6B);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xC2B2_AE35);
    hash ^ (hash >> 16)
}

/// Flow hash of a frame with the headers that [`Headers::parse`] found in it.
///
/// Any fragment, first or later, hashes without ports: a datagram stays together. What is not IP
/// hashes by its MAC addresses and ethertype.
#[inline]
pub fn hash(frame: &[u8], headers: &Headers) -> u32 {
    match &headers.ip {
        Some(ip) => ip_hash(ip),
        None => mac_hash(frame, headers.ethertype),
    }
}

/// Flow hash of a frame; 0 if it has no whole Ethernet header.
#[inline]
pub fn hash_frame(frame: &[u8]) -> u32 {
    Headers::parse(frame).map_or(0, |headers| hash(frame, &headers))
}

#[inline]
fn ip_hash(ip: &Ip) -> u32 {
    let (source, destination) = match (ip.ports, ip.fragment) {
        (Ports::Known(source, destination), Fragment::Whole) => (source, destination),
        _ => (0, 0),
    };
    combine(
        ip_endpoint(ip.source, source),
        ip_endpoint(ip.destination, destination),
        u32::from(ip.protocol),
    )
}

fn mac_hash(frame: &[u8], ethertype: u16) -> u32 {
    let end = |at| {
        let words = [
            be32(frame, at).unwrap_or(0),
            u32::from(be16(frame, at + 4).unwrap_or(0)),
        ];
        endpoint(&words, 0)
    };
    combine(end(6), end(0), u32::from(ethertype))
}

#[cfg(test)]
mod tests;
