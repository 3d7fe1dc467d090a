//! Packets that are too long for the path, made to fit: the steps of the MTU ladder.
//!
//! [`resegment`] cuts the TCP payload into packets that fit, [`fragment()`] cuts the outer IP packet,
//! [`truncate`] cuts the end off. As in `segment`, payload is never copied: a piece is a rebuilt head in an
//! arena of its own and a slice of the captured frame. Which step a packet takes, and the counting, is the
//! caller's (`worker::ladder`). Pure; must not allocate after construction, log or panic on any bytes.

mod fragment;
mod resegment;

pub use fragment::fragment;
pub use resegment::resegment;

use super::{PacketList, PacketRef, Part};

/// What a target does with a copy that does not fit its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Oversize {
    /// Cut TCP into segments that fit; fragment what is not TCP.
    #[default]
    Resegment,
    /// Fragment the outer IP packet.
    Fragment,
    /// Cut the end off; the lengths in the inner headers stay.
    Truncate,
    /// Drop it.
    Drop,
}

/// Why a packet was not cut. Nothing was appended then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCut {
    /// There is no room for its pieces now: send what is there, clear, and ask again.
    #[error("no room for the pieces: send what is there and ask again")]
    NoRoom,
    /// It cannot be cut in this way.
    #[error("the packet cannot be cut in this way")]
    Unsuitable,
}

/// Packets that a default [`Pieces`] holds; a transmitter takes as many.
const DEFAULT_PACKETS: usize = super::DEFAULT_PACKETS;
/// Arena bytes of a default [`Pieces`]: 2048 pieces with Ethernet, IPv6 and TCP headers and the usual options
/// need 110 KiB; the longest packet in its smallest pieces with the longest headers less than the rest.
const DEFAULT_ARENA_BYTES: usize = 512 << 10;
/// Most pieces of one copy: 64 KiB over a path of 552 bytes, the smallest that is believed, are 156.
const MAX_PIECES: usize = 256;

/// Packets that fit: those that did anyway, as they are, and the pieces of those that did not.
#[derive(Debug)]
pub struct Pieces {
    arena: Box<[u8]>,
    used: usize,
    refs: Vec<PacketRef>,
    limit: usize,
    copies: usize,
}

impl Pieces {
    /// Room for `packets` packets and `arena_bytes` bytes of rebuilt headers.
    pub fn new(packets: usize, arena_bytes: usize) -> Self {
        Self {
            arena: vec![0; arena_bytes.min(u32::MAX as usize / 2)].into_boxed_slice(),
            used: 0,
            refs: Vec::with_capacity(packets),
            limit: packets,
            copies: 0,
        }
    }

    /// Forgets all packets; keeps the memory.
    pub fn clear(&mut self) {
        self.refs.clear();
        self.used = 0;
        self.copies = 0;
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.refs.is_empty()
    }

    /// The packets, lent. `batch` is the one that they were cut from.
    pub fn list<'p>(&'p self, batch: PacketList<'p>) -> PacketList<'p> {
        PacketList::with_pieces(batch.arena(), &self.arena, &self.refs, self.copies)
    }

    /// Appends a packet of the batch, which is a whole copy, as it is.
    ///
    /// # Errors
    /// [`NotCut::NoRoom`].
    pub fn pass(&mut self, packet: PacketRef) -> Result<(), NotCut> {
        if self.refs.len() == self.limit {
            return Err(NotCut::NoRoom);
        }
        self.refs.push(packet);
        self.copies += usize::from(packet.part != Part::More);
        Ok(())
    }

    /// Whether `pieces` pieces with `bytes` head bytes together fit now; otherwise whether they ever will.
    fn check_room(&self, pieces: usize, bytes: usize) -> Result<(), NotCut> {
        if self.refs.len() + pieces <= self.limit && self.used + bytes <= self.arena.len() {
            Ok(())
        } else if self.is_empty() {
            Err(NotCut::Unsuitable)
        } else {
            Err(NotCut::NoRoom)
        }
    }

    /// Appends a piece of `whole`, a packet of `batch`, and returns its head to be filled in.
    fn push(
        &mut self,
        batch: PacketList<'_>,
        whole: &PacketRef,
        head_length: usize,
        tail: (u32, u32),
        more: bool,
    ) -> Result<&mut [u8], NotCut> {
        let length = u16::try_from(head_length).map_err(|_| NotCut::Unsuitable)?;
        self.check_room(1, head_length)?;
        let start = self.used;
        self.used += head_length;
        self.refs.push(PacketRef {
            frame: whole.frame,
            head: ((batch.arena().len() + start) as u32, length),
            tail,
            flow_hash: whole.flow_hash,
            part: if more { Part::More } else { Part::Last },
        });
        self.copies += usize::from(!more);
        self.arena
            .get_mut(start..start + head_length)
            .ok_or(NotCut::NoRoom)
    }
}

impl Default for Pieces {
    fn default() -> Self {
        Self::new(DEFAULT_PACKETS, DEFAULT_ARENA_BYTES)
    }
}

/// `packet` without what is beyond `limit` bytes. Its headers go on saying how long it was, so that a receiver
/// sees that it is truncated.
#[must_use]
pub fn truncate(packet: &PacketRef, limit: usize) -> PacketRef {
    let head = usize::from(packet.head.1).min(limit);
    let tail = (packet.tail.1 as usize).min(limit - head);
    PacketRef {
        head: (packet.head.0, head as u16),
        tail: (packet.tail.0, tail as u32),
        ..*packet
    }
}

/// How many pieces of at most `most` bytes `length` bytes become, and how long each but the last is: as even
/// as they can be, because equal packets leave as one run and a tiny last one would end it.
fn even(length: usize, most: usize) -> Option<(usize, usize)> {
    let count = length.div_ceil(most.max(1));
    let size = length.div_ceil(count.max(1));
    (most > 0 && count <= MAX_PIECES).then_some((count, size))
}

#[cfg(test)]
mod tests;
