//! pcapng blocks (draft-ietf-opsawg-pcapng), little-endian: what a capture file is made of.
//!
//! Pure. [`write_packet`] is called by a worker for every packet and allocates nothing; the other blocks
//! are written by control, once. What is written here must be readable by tcpdump, tshark and capinfos:
//! the end-to-end tests hold it to that.

use super::Direction;

/// LINKTYPE_ETHERNET.
pub const ETHERNET: u16 = 1;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Of a section whose length is not known when it begins.
const UNKNOWN_LENGTH: u64 = u64::MAX;
/// if_tsresol: time stamps count units of 10^-9 s.
const NANOSECONDS: u8 = 9;

/// Option codes.
const END_OF_OPTIONS: u16 = 0;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_FILTERACCEPT: u16 = 6;
const ISB_USRDELIV: u16 = 8;

/// Type and length in front, length behind.
const FRAME: usize = 12;
/// Interface, time stamp in two halves, captured and original length.
const PACKET_FIELDS: usize = 20;
const FLAGS_OPTION: usize = 8;
const DROPS_OPTION: usize = 12;
const END_OPTION: usize = 4;

/// What a packet block says besides the packet's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketInfo {
    /// Number of the interface: its place among the interface descriptions, from 0 on.
    pub interface: u32,
    /// Time of capture, nanoseconds since 1970.
    pub time_ns: u64,
    /// Bytes that the packet has on the wire.
    pub original_length: u32,
    /// Which way it went.
    pub direction: Direction,
    /// Packets of this interface lost since the block before this one; 0 is not written.
    pub lost: u64,
}

/// What an interface description says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface<'t> {
    /// As the system calls it.
    pub name: &'t str,
    /// As the configuration calls it.
    pub description: &'t str,
    /// LINKTYPE of its packets.
    pub link_type: u16,
}

/// What an interface statistics block says. Unit of all counts: packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Number of the interface.
    pub interface: u32,
    /// When the capture began, nanoseconds since 1970.
    pub started_ns: u64,
    /// When this block was made, nanoseconds since 1970.
    pub now_ns: u64,
    /// Seen by the interface.
    pub received: u64,
    /// Taken by the rules.
    pub accepted: u64,
    /// Taken by the rules and not in this file, for whatever reason.
    pub dropped: u64,
    /// In this file.
    pub delivered: u64,
}

/// Bytes of a packet's block. `lost`: whether it tells a number of lost packets.
#[must_use]
pub fn packet_length(captured: usize, lost: bool) -> usize {
    let drops = if lost { DROPS_OPTION } else { 0 };
    FRAME + PACKET_FIELDS + captured.next_multiple_of(4) + FLAGS_OPTION + drops + END_OPTION
}

/// Writes the block of a packet of `captured` bytes, which `fill` writes, to the front of `out`; returns
/// the block's length. `None`, and the front of `out` is rubbish, when it does not fit or `fill` fails.
pub fn write_packet(
    out: &mut [u8],
    info: &PacketInfo,
    captured: usize,
    fill: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Option<usize> {
    let length = packet_length(captured, info.lost > 0);
    let out = out.get_mut(..length)?;
    let (fields, rest) = out.split_at_mut(8 + PACKET_FIELDS);
    for (place, value) in fields.chunks_exact_mut(4).zip([
        ENHANCED_PACKET,
        u32::try_from(length).ok()?,
        info.interface,
        (info.time_ns >> 32) as u32,
        info.time_ns as u32,
        u32::try_from(captured).ok()?,
        info.original_length,
    ]) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    let (packet, rest) = rest.split_at_mut_checked(captured)?;
    fill(packet).filter(|written| *written == captured)?;
    let (padding, rest) = rest.split_at_mut_checked(captured.next_multiple_of(4) - captured)?;
    padding.fill(0);
    // epb_flags, bits 0 and 1: 1 is inbound, 2 is outbound.
    let flags: u32 = match info.direction {
        Direction::In => 1,
        Direction::Out => 2,
    };
    let mut options = Options { out: rest, at: 0 };
    options.put(EPB_FLAGS, &flags.to_le_bytes())?;
    if info.lost > 0 {
        options.put(EPB_DROPCOUNT, &info.lost.to_le_bytes())?;
    }
    options.put(END_OF_OPTIONS, &[])?;
    let end = options.at;
    rest.get_mut(end..end + 4)?
        .copy_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    Some(length)
}

/// Options in a buffer that they fit exactly.
struct Options<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl Options<'_> {
    fn put(&mut self, code: u16, value: &[u8]) -> Option<()> {
        let padded = value.len().next_multiple_of(4);
        let place = self.out.get_mut(self.at..self.at + 4 + padded)?;
        let (header, body) = place.split_at_mut(4);
        header[..2].copy_from_slice(&code.to_le_bytes());
        header[2..].copy_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
        body.fill(0);
        body[..value.len()].copy_from_slice(value);
        self.at += 4 + padded;
        Some(())
    }
}

/// Appends the block that begins a file.
pub fn section_header(application: &str, out: &mut Vec<u8>) {
    block(SECTION_HEADER, out, |out| {
        out.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        out.extend(1u16.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out.extend(UNKNOWN_LENGTH.to_le_bytes());
        option(SHB_USERAPPL, application.as_bytes(), out);
        option(END_OF_OPTIONS, &[], out);
    });
}

/// Appends an interface description; packets name interfaces by the order of these.
pub fn interface_description(interface: &Interface<'_>, out: &mut Vec<u8>) {
    block(INTERFACE_DESCRIPTION, out, |out| {
        out.extend(interface.link_type.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        // Packets are not cut to a common length.
        out.extend(0u32.to_le_bytes());
        option(IF_NAME, interface.name.as_bytes(), out);
        option(IF_DESCRIPTION, interface.description.as_bytes(), out);
        option(IF_TSRESOL, &[NANOSECONDS], out);
        option(END_OF_OPTIONS, &[], out);
    });
}

/// Appends an interface's statistics.
pub fn interface_statistics(statistics: &Statistics, out: &mut Vec<u8>) {
    block(INTERFACE_STATISTICS, out, |out| {
        let time = |time: u64| {
            let mut halves = [0; 8];
            halves[..4].copy_from_slice(&((time >> 32) as u32).to_le_bytes());
            halves[4..].copy_from_slice(&(time as u32).to_le_bytes());
            halves
        };
        out.extend(statistics.interface.to_le_bytes());
        out.extend(time(statistics.now_ns));
        option(ISB_STARTTIME, &time(statistics.started_ns), out);
        option(ISB_ENDTIME, &time(statistics.now_ns), out);
        for (code, count) in [
            (ISB_IFRECV, statistics.received),
            (ISB_IFDROP, statistics.dropped),
            (ISB_FILTERACCEPT, statistics.accepted),
            (ISB_USRDELIV, statistics.delivered),
        ] {
            option(code, &count.to_le_bytes(), out);
        }
        option(END_OF_OPTIONS, &[], out);
    });
}

fn block(kind: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    fill(out);
    let length = ((out.len() - start + 4) as u32).to_le_bytes();
    out.extend(length);
    out[start + 4..start + 8].copy_from_slice(&length);
}

/// A value longer than an option can hold is cut.
fn option(code: u16, value: &[u8], out: &mut Vec<u8>) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// How many whole blocks stand at the front of `bytes`, and how many bytes they are.
#[must_use]
pub fn whole_blocks(bytes: &[u8]) -> (u64, usize) {
    let mut blocks = 0;
    let mut at = 0;
    while let Some(length) = bytes.get(at + 4..at + 8) {
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length < FRAME || length > bytes.len() - at {
            break;
        }
        blocks += 1;
        at += length;
    }
    (blocks, at)
}

#[cfg(test)]
#[path = "pcapng_tests.rs"]
mod tests;
