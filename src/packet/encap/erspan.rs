//! The ERSPAN headers, types II and III, of draft-foschiano-erspan-03 (behind a GRE header that has a
//! sequence number and nothing else).
//!
//! The type III time stamp counts units of 100 ns of UTC, modulo 2^32: it wraps every 429 s, and who
//! receives it adds the rest from its own clock. Finer than the 100 µs of the other choice, which orders
//! nothing on a fast link. Suricata decodes I and II only, Zeek and Arkime III too. Called by the tunnel
//! header and the decapsulation.

use serde::Serialize;

use crate::packet::headers::{be16, be32};
use crate::packet::Direction;

/// GRE protocol type of type II (and I, which has no sequence number).
pub const TYPE_II: u16 = 0x88be;
/// GRE protocol type of type III.
pub const TYPE_III: u16 = 0x22eb;
/// Length of a type II header in bytes.
pub const HEADER_II: usize = 8;
/// Length of a type III header in bytes, without a platform's own part.
pub const HEADER_III: usize = 12;
/// The largest session identifier: 10 bits.
pub const MAX_SESSION: u16 = 0x3ff;
/// Nanoseconds of one unit of the type III time stamp.
pub const TIMESTAMP_UNIT_NS: u64 = 100;

/// En of type II: the tag stands in the frame as it was.
const TAG_IN_FRAME: u16 = 3 << 11;
/// P of type III: an Ethernet frame follows (with the frame type 0).
const ETHERNET_FRAME: u16 = 1 << 15;
const DIRECTION_OUT: u16 = 1 << 3;
const GRANULARITY: u16 = 3 << 1;
const GRANULARITY_100_NS: u16 = 1 << 1;
/// O of type III: 8 bytes of the platform follow.
const PLATFORM_PART: u16 = 1;
const PLATFORM_BYTES: usize = 8;

/// Which header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Version {
    /// Type II.
    #[serde(rename = "2")]
    Two,
    /// Type III: with the time of capture and the direction.
    #[serde(rename = "3")]
    Three,
}

impl Version {
    /// Length of the header in bytes.
    pub const fn length(self) -> usize {
        match self {
            Version::Two => HEADER_II,
            Version::Three => HEADER_III,
        }
    }

    /// Protocol type of the GRE header in front.
    pub const fn protocol_type(self) -> u16 {
        match self {
            Version::Two => TYPE_II,
            Version::Three => TYPE_III,
        }
    }

    const fn number(self) -> u16 {
        match self {
            Version::Two => 1,
            Version::Three => 2,
        }
    }
}

/// The first four bytes: version, VLAN, class of service, session. `tci` is the frame's outermost tag.
pub const fn first_word(version: Version, session: u16, tci: Option<u16>) -> [u8; 4] {
    let (vlan, class) = match tci {
        Some(tci) => (tci & 0xfff, tci & 0xe000),
        None => (0, 0),
    };
    let tag = match (version, tci) {
        (Version::Two, Some(_)) => TAG_IN_FRAME,
        _ => 0,
    };
    let [a, b] = (version.number() << 12 | vlan).to_be_bytes();
    let [c, d] = (class | tag | session & MAX_SESSION).to_be_bytes();
    [a, b, c, d]
}

/// The last two bytes of a type III header.
pub const fn type_iii_flags(direction: Direction) -> [u8; 2] {
    let out = match direction {
        Direction::In => 0,
        Direction::Out => DIRECTION_OUT,
    };
    (ETHERNET_FRAME | GRANULARITY_100_NS | out).to_be_bytes()
}

/// The type III time stamp for a time in nanoseconds of UTC.
pub const fn timestamp(utc_ns: u64) -> u32 {
    (utc_ns / TIMESTAMP_UNIT_NS) as u32
}

/// A header as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which header.
    pub version: Version,
    /// Session identifier.
    pub session: u16,
    /// VLAN identifier and class of service as in a tag; 0 where the frame had none.
    pub tci: u16,
    /// Time of capture and direction, with type III.
    pub capture: Option<Capture>,
    /// Bytes before the inner frame.
    pub length: usize,
}

/// What a type III header tells of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Time stamp as it stands there; its unit is 100 ns if `unit_is_100_ns`.
    pub timestamp: u32,
    /// Whether the granularity is the one that we write.
    pub unit_is_100_ns: bool,
    /// Which way the frame went.
    pub direction: Direction,
}

/// Reads the header behind a GRE header with this protocol type. `None` if it is not whole, or of a
/// version that is not the protocol type's.
pub fn parse(protocol_type: u16, bytes: &[u8]) -> Option<Header> {
    let version = match protocol_type {
        TYPE_II => Version::Two,
        TYPE_III => Version::Three,
        _ => return None,
    };
    let front = be16(bytes, 0)?;
    let back = be16(bytes, 2)?;
    if front >> 12 != version.number() || bytes.len() < version.length() {
        return None;
    }
    let mut header = Header {
        version,
        session: back & MAX_SESSION,
        tci: back & 0xe000 | front & 0xfff,
        capture: None,
        length: version.length(),
    };
    if version == Version::Three {
        let flags = be16(bytes, 10)?;
        header.capture = Some(Capture {
            timestamp: be32(bytes, 4)?,
            unit_is_100_ns: flags & GRANULARITY == GRANULARITY_100_NS,
            direction: if flags & DIRECTION_OUT == 0 {
                Direction::In
            } else {
                Direction::Out
            },
        });
        if flags & PLATFORM_PART != 0 {
            header.length += PLATFORM_BYTES;
        }
    }
    (bytes.len() >= header.length).then_some(header)
}
