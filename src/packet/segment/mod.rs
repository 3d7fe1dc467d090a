//! From one captured frame to the packets that are, or would be, on the wire.
//!
//! [`cut`] splits super-packets, completes unfinished checksums and puts stripped VLAN tags back.
//! Payload is never copied: a packet is a rebuilt head in the arena and a piece of the frame. Bytes that
//! the kernel did not leave unfinished stay exactly as they are, so a corrupt packet stays corrupt.
//! Called by the worker for every captured frame; must not allocate, log or panic.

mod layers;
mod ordinary;
mod split;

use super::{FrameMeta, Packets};
use crate::reason::Reason;

pub(super) use layers::inner_network;

#[cfg(test)]
mod tests;

/// Why [`cut`] appended nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// The batch is too full for this frame: flush it, clear it and call again.
    #[error("no room in the batch: flush it and cut the frame again")]
    NoRoom,
    /// The frame must be dropped and counted.
    #[error("frame dropped: {0:?}")]
    Drop(Reason),
}

/// Appends the packets of one captured frame to `out` and returns how many there are.
///
/// `frame` starts with its Ethernet header; `frame_index` goes into the packets as it is. With a
/// `meta.snaplen` each packet ends after so many bytes; its headers stay as they are on the wire, lengths and
/// checksums included. The checksum of a packet whose payload is not in `frame` cannot be finished: it stays as
/// the kernel left it.
///
/// # Errors
/// Nothing is appended when there is an error. [`CutError::NoRoom`] is only returned when `out` is not
/// empty, so that a caller who flushes and calls again ends. [`Reason::Malformed`]: a super-packet of a
/// shape that cannot be split, or truncated. [`Reason::SuperPacket`]: more packets than an empty `out`
/// holds.
#[inline]
pub fn cut(
    meta: &FrameMeta,
    frame: &[u8],
    frame_index: u32,
    out: &mut Packets,
) -> Result<u32, CutError> {
    let first = out.len();
    let count = if meta.gso_size == 0 {
        ordinary::append(meta, frame, frame_index, out)
    } else {
        split::append(meta, frame, frame_index, out)
    }?;
    if meta.snaplen != 0 {
        let already = meta.gso_size == 0 && meta.wire_length > meta.snaplen;
        out.shorten(first, meta.snaplen, already);
    }
    Ok(count)
}

/// How many packets a frame is on the wire: 1 for an ordinary frame, else transport payload divided by
/// `gso_size`, rounded up. `None` for a super-packet that [`cut`] does not understand.
///
/// Needs only the headers in `frame`: the length comes from `meta.wire_length`.
pub fn wire_packets(meta: &FrameMeta, frame: &[u8]) -> Option<u32> {
    if meta.gso_size == 0 {
        return Some(1);
    }
    let shape = layers::understand(meta, frame, meta.byte_length())?;
    let payload = meta.byte_length().saturating_sub(shape.payload);
    Some(packets_of(payload, meta.gso_size))
}

/// Number of packets that carry `payload` bytes in pieces of `gso_size`.
fn packets_of(payload: usize, gso_size: u16) -> u32 {
    payload.div_ceil(usize::from(gso_size).max(1)).max(1) as u32
}

/// Whether the packets fit; otherwise why not.
fn check_room(out: &Packets, packets: usize, bytes: usize) -> Result<(), CutError> {
    if out.has_room(packets, bytes) {
        Ok(())
    } else if out.is_empty() {
        Err(CutError::Drop(Reason::SuperPacket))
    } else {
        Err(CutError::NoRoom)
    }
}
