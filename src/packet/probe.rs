//! Frames of `xtee probe`: harmless, and never to be confused with mirrored traffic.
//!
//! An Ethernet frame of the ethertype that IEEE 802 keeps for local experiments, between addresses that
//! nobody has, with a text that says what it is. Tunnels that carry IP alone get an echo request between
//! addresses of documentation (RFC 5737) with the same text.

use super::checksum;
use super::encap::Inner;
use super::headers::{be16, ETHERNET_HEADER, ETHERTYPE_IPV4};

/// Local Experimental Ethertype 1 (IEEE 802).
pub const ETHERTYPE: u16 = 0x88b5;
/// Smallest frame: its text stands in it.
pub const SMALLEST: usize = ETHERNET_HEADER + IPV4 + ICMP + TEXT;
/// Largest frame.
pub const LARGEST: usize = 65_000;

const IPV4: usize = 20;
const ICMP: usize = 8;
/// Room for the text, whatever the numbers.
const TEXT: usize = 80;
/// Locally administered: 02, then "xtee".
const SOURCE_MAC: [u8; 6] = [2, b'x', b't', b'e', b'e', 1];
const DESTINATION_MAC: [u8; 6] = [2, b'x', b't', b'e', b'e', 2];
const SOURCE: [u8; 4] = [192, 0, 2, 1];
const DESTINATION: [u8; 4] = [192, 0, 2, 2];
const MAGIC: &[u8] = b"xtee probe ";

/// The frame number `number` (from 0 on) of probe `id`, of `size` bytes, which counts as the nearest
/// possible.
#[must_use]
pub fn frame(inner: Inner, id: u32, number: u32, size: usize) -> Vec<u8> {
    let size = size.clamp(SMALLEST, LARGEST);
    let mut frame = Vec::with_capacity(size);
    frame.extend(DESTINATION_MAC);
    frame.extend(SOURCE_MAC);
    let text = format!("xtee probe {id:08x} {number:08x}: a test copy, no mirrored traffic ");
    match inner {
        Inner::Ethernet => {
            frame.extend(ETHERTYPE.to_be_bytes());
            frame.extend(text.as_bytes());
            frame.resize(size, b'.');
        }
        Inner::Ip => {
            frame.extend(ETHERTYPE_IPV4.to_be_bytes());
            let length = (size - ETHERNET_HEADER) as u16;
            frame.extend([0x45, 0]);
            frame.extend(length.to_be_bytes());
            // No identification, DF, TTL 1: should it ever be routed, it goes nowhere. Protocol 1 is ICMP.
            frame.extend([0, 0, 0x40, 0, 1, 1, 0, 0]);
            frame.extend(SOURCE);
            frame.extend(DESTINATION);
            frame.extend([8, 0, 0, 0]);
            frame.extend(id.to_be_bytes());
            frame.extend(text.as_bytes());
            frame.resize(size, b'.');
            let ip = ETHERNET_HEADER;
            let icmp = ip + IPV4;
            let sum = checksum::finish(checksum::sum(&frame[ip..icmp]));
            frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
            let sum = checksum::finish(checksum::sum(&frame[icmp..]));
            frame[icmp + 2..icmp + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }
    frame
}

/// Probe and number of a frame of [`frame`]; `None` for any other.
#[must_use]
pub fn recognise(frame: &[u8]) -> Option<(u32, u32)> {
    let text = match be16(frame, 12)? {
        ETHERTYPE => ETHERNET_HEADER,
        ETHERTYPE_IPV4 if frame.get(..12)? == [DESTINATION_MAC, SOURCE_MAC].concat() => {
            ETHERNET_HEADER + IPV4 + ICMP
        }
        _ => return None,
    };
    let numbers = frame.get(text..)?.strip_prefix(MAGIC)?;
    let hex = |from: usize| {
        let digits = std::str::from_utf8(numbers.get(from..from + 8)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    Some((hex(0)?, hex(9)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::headers::Headers;

    #[test]
    fn probes_are_recognised_and_nothing_else_is() {
        for inner in [Inner::Ethernet, Inner::Ip] {
            for size in [0, SMALLEST, 1514, LARGEST + 1] {
                let frame = frame(inner, 0xdead_beef, 7, size);
                assert_eq!(frame.len(), size.clamp(SMALLEST, LARGEST));
                assert_eq!(recognise(&frame), Some((0xdead_beef, 7)), "{inner:?}");
                assert_eq!(recognise(&frame[..40]), None);
            }
        }
        let mut other = frame(Inner::Ethernet, 1, 2, 200);
        other[13] = 0xb6;
        assert_eq!(recognise(&other), None);
        assert_eq!(recognise(&[]), None);
    }

    #[test]
    fn the_echo_request_is_valid() {
        let frame = frame(Inner::Ip, 1, 2, 200);
        let ip = Headers::parse(&frame)
            .and_then(|headers| headers.ip)
            .unwrap();
        assert_eq!((ip.protocol, ip.end), (1, frame.len()));
        assert_eq!(checksum::fold(checksum::sum(&frame[14..34])), 0xffff);
        assert_eq!(checksum::fold(checksum::sum(&frame[34..])), 0xffff);
    }
}
