//! The GRE header: RFC 2784 with the key and sequence number of RFC 2890.
//!
//! No checksum, no routing, version 0. What is inside is said by the protocol type: bridged Ethernet
//! (0x6558), IP, ERSPAN. Called by the tunnel header and the decapsulation.

use crate::packet::headers::{be16, be32};

const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
pub(super) const SEQUENCE: u16 = 0x1000;

/// Longest header that is written here.
pub const MAX_HEADER: usize = 12;

/// Length of a header in bytes.
pub const fn length(has_key: bool, has_sequence: bool) -> usize {
    4 + if has_key { 4 } else { 0 } + if has_sequence { 4 } else { 0 }
}

/// A header with these options; the bytes beyond [`length`] are 0. The sequence number comes last.
pub const fn header(
    protocol_type: u16,
    key: Option<u32>,
    sequence: Option<u32>,
) -> [u8; MAX_HEADER] {
    let mut bytes = [0; MAX_HEADER];
    let mut flags = 0;
    let mut at = 4;
    if let Some(key) = key {
        flags |= KEY;
        [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]] = key.to_be_bytes();
        at += 4;
    }
    if let Some(sequence) = sequence {
        flags |= SEQUENCE;
        [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]] = sequence.to_be_bytes();
    }
    [bytes[0], bytes[1]] = flags.to_be_bytes();
    [bytes[2], bytes[3]] = protocol_type.to_be_bytes();
    bytes
}

/// A header as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is inside: an ethertype.
    pub protocol_type: u16,
    /// Key, if there is one.
    pub key: Option<u32>,
    /// Sequence number, if there is one.
    pub sequence: Option<u32>,
    /// Bytes before what is inside.
    pub length: usize,
}

/// Reads the header at the front of an IP payload. `None` if it is not whole, or has routing, a version
/// or an unknown flag. A checksum is stepped over.
pub fn parse(payload: &[u8]) -> Option<Header> {
    let flags = be16(payload, 0)?;
    if flags & !(CHECKSUM | KEY | SEQUENCE) != 0 {
        return None;
    }
    let protocol_type = be16(payload, 2)?;
    let mut length = 4;
    let mut next = |flag| {
        let present = flags & flag != 0;
        let value = be32(payload, length);
        length += if present { 4 } else { 0 };
        match (present, value) {
            (true, None) => Err(()),
            (true, value) => Ok(value),
            (false, _) => Ok(None),
        }
    };
    next(CHECKSUM).ok()?;
    let key = next(KEY).ok()?;
    let sequence = next(SEQUENCE).ok()?;
    Some(Header {
        protocol_type,
        key,
        sequence,
        length,
    })
}
