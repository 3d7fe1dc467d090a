//! The batch of packets that [`cut`](super::cut) fills and a transmitter empties.
//!
//! Memory is allocated once, at construction, and never grows: whoever fills it asks for room first
//! and flushes when there is none. Called by the worker (construct, clear, read) and by `segment`.

use super::headers::LinkHeader;

/// Packets that a default [`Packets`] holds.
pub const DEFAULT_PACKETS: usize = 2048;

/// Most bytes of rebuilt headers that a packet may have: more than a tunnel's with all options.
pub(super) const MAX_HEAD: usize = 512;

/// Arena bytes of a default [`Packets`]: 1100 packets (64 KiB in pieces of 60 bytes) with the longest
/// headers.
pub const DEFAULT_ARENA_BYTES: usize = 1100 * MAX_HEAD;

/// One packet as it is on the wire: `head` bytes from the arena, then `tail` bytes of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRef {
    /// Index in the batch of the frame that the packet was cut from.
    pub frame: u32,
    /// Start and length, in bytes, of the rebuilt front in the arena. May be empty.
    pub head: (u32, u16),
    /// Start and length, in bytes, of the rest in the captured frame. May be empty.
    pub tail: (u32, u32),
    /// The frame's flow hash.
    pub flow_hash: u32,
    /// What it is of a copy.
    pub part: Part,
}

/// What a packet is of a copy. The pieces of one follow each other in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// A piece (see [`fit`](super::fit)), with others behind it.
    More,
    /// The last piece.
    Last,
}

impl PacketRef {
    /// Length of the packet in bytes.
    pub fn length(&self) -> usize {
        usize::from(self.head.1) + self.tail.1 as usize
    }

    /// The packet without its first `bytes` bytes.
    #[must_use]
    pub fn without_front(&self, bytes: usize) -> Self {
        let head = bytes.min(usize::from(self.head.1));
        let tail = (bytes - head).min(self.tail.1 as usize);
        Self {
            head: (self.head.0 + head as u32, self.head.1 - head as u16),
            tail: (self.tail.0 + tail as u32, self.tail.1 - tail as u32),
            ..*self
        }
    }

    /// The part of `frame` that follows the head. Empty if `frame` is not the one that was cut.
    pub fn tail_bytes<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let start = self.tail.0 as usize;
        frame
            .get(start..start + self.tail.1 as usize)
            .unwrap_or(&[])
    }
}

/// Packets that are lent: some or all of a batch, in order, with the arenas that their heads stand in.
///
/// What a transmitter takes. It can be fewer packets than were cut (a share of the flows, a limit), or
/// others (pieces that fit the path), without a copy of what stays as it is.
#[derive(Clone, Copy, Debug)]
pub struct PacketList<'p> {
    arena: &'p [u8],
    pieces: &'p [u8],
    refs: &'p [PacketRef],
    copies: usize,
}

impl<'p> PacketList<'p> {
    /// `refs` whose heads stand in `arena`, each a whole copy.
    pub fn new(arena: &'p [u8], refs: &'p [PacketRef]) -> Self {
        Self {
            arena,
            pieces: &[],
            refs,
            copies: refs.len(),
        }
    }

    /// `refs` that are `copies` copies, some of them in pieces: a head that starts beyond `arena` stands in
    /// the arena of the pieces, as if that followed.
    pub(super) fn with_pieces(
        arena: &'p [u8],
        pieces: &'p [u8],
        refs: &'p [PacketRef],
        copies: usize,
    ) -> Self {
        Self {
            arena,
            pieces,
            refs,
            copies,
        }
    }

    /// The packets, in order.
    pub fn refs(&self) -> &'p [PacketRef] {
        self.refs
    }

    /// The bytes that heads stand in, those of pieces aside.
    pub fn arena(&self) -> &'p [u8] {
        self.arena
    }

    /// How many copies the packets are: what the balance counts.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.refs.len()
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.refs.is_empty()
    }

    /// The rebuilt front of `packet`. Empty if `packet` is not of this batch.
    pub fn head_bytes(&self, packet: &PacketRef) -> &'p [u8] {
        let start = packet.head.0 as usize;
        let (arena, start) = match start.checked_sub(self.arena.len()) {
            Some(beyond) if !self.pieces.is_empty() => (self.pieces, beyond),
            _ => (self.arena, start),
        };
        arena
            .get(start..start + usize::from(packet.head.1))
            .unwrap_or(&[])
    }

    /// Writes the whole packet to the front of `out` and returns its length; `None`, with nothing
    /// written, if `out` is too short.
    pub fn write(&self, packet: &PacketRef, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        self.write_from(0, packet, frame, out)
    }

    /// The same without the packet's first `skip` bytes.
    pub fn write_from(
        &self,
        skip: usize,
        packet: &PacketRef,
        frame: &[u8],
        out: &mut [u8],
    ) -> Option<usize> {
        let [head, tail] = self.parts_from(skip, packet, frame);
        let out = out.get_mut(..head.len() + tail.len())?;
        out[..head.len()].copy_from_slice(head);
        out[head.len()..].copy_from_slice(tail);
        Some(out.len())
    }

    /// The packet without its first `skip` bytes, in the two parts that it stands in.
    pub fn parts_from<'b>(&self, skip: usize, packet: &PacketRef, frame: &'b [u8]) -> [&'b [u8]; 2]
    where
        'p: 'b,
    {
        let head = self.head_bytes(packet);
        let tail = packet.tail_bytes(frame);
        let of_tail = skip.saturating_sub(head.len());
        [
            head.get(skip..).unwrap_or(&[]),
            tail.get(of_tail..).unwrap_or(&[]),
        ]
    }

    /// The packet's Ethernet header, in one piece.
    pub fn link_header(&self, packet: &PacketRef, frame: &[u8]) -> LinkHeader {
        let head = self.head_bytes(packet);
        if head.is_empty() {
            return LinkHeader::parse(packet.tail_bytes(frame));
        }
        let mut front = [0; LinkHeader::LONGEST];
        let mut length = 0;
        for part in self.parts_from(0, packet, frame) {
            let bytes = part.len().min(front.len() - length);
            front[length..length + bytes].copy_from_slice(&part[..bytes]);
            length += bytes;
        }
        LinkHeader::parse(&front[..length])
    }
}

/// A bounded batch of packets with the bytes that differ from the captured frames.
#[derive(Debug)]
pub struct Packets {
    arena: Box<[u8]>,
    used: usize,
    refs: Vec<PacketRef>,
    limit: usize,
    sliced: u64,
}

impl Packets {
    /// Room for `packets` packets and `arena_bytes` bytes of rebuilt headers (at most 4 GiB).
    pub fn new(packets: usize, arena_bytes: usize) -> Self {
        let arena_bytes = arena_bytes.min(u32::MAX as usize);
        Self {
            arena: vec![0; arena_bytes].into_boxed_slice(),
            used: 0,
            refs: Vec::with_capacity(packets),
            limit: packets,
            sliced: 0,
        }
    }

    /// Forgets all packets; keeps the memory.
    pub fn clear(&mut self) {
        self.refs.clear();
        self.used = 0;
        self.sliced = 0;
    }

    /// How many of the packets are shorter than on the wire because of a snaplen.
    pub fn sliced(&self) -> u64 {
        self.sliced
    }

    /// The packets, in the order in which they were cut.
    pub fn refs(&self) -> &[PacketRef] {
        &self.refs
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.refs.len()
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.refs.is_empty()
    }

    /// How many more packets fit, as far as their number goes.
    pub fn remaining(&self) -> usize {
        self.limit - self.refs.len()
    }

    /// How many arena bytes are free.
    pub fn remaining_bytes(&self) -> usize {
        self.arena.len() - self.used
    }

    /// All packets, lent.
    pub fn list(&self) -> PacketList<'_> {
        PacketList::new(&self.arena, &self.refs)
    }

    /// The rebuilt front of `packet`. Empty if `packet` is not of this batch.
    pub fn head_bytes(&self, packet: &PacketRef) -> &[u8] {
        self.list().head_bytes(packet)
    }

    /// Writes the whole packet to the front of `out`; see [`PacketList::write`].
    pub fn write(&self, packet: &PacketRef, frame: &[u8], out: &mut [u8]) -> Option<usize> {
        self.list().write(packet, frame, out)
    }

    /// Cuts the packets from number `first` on to at most `length` bytes each. `already`: the frame that
    /// they come from was cut before, so that its packet counts although nothing is left to take away.
    pub(super) fn shorten(&mut self, first: usize, length: u32, already: bool) {
        for packet in self.refs.iter_mut().skip(first) {
            if already || packet.length() > length as usize {
                self.sliced += 1;
            }
            let head = u32::from(packet.head.1).min(length);
            packet.head.1 = head as u16;
            packet.tail.1 = packet.tail.1.min(length - head);
        }
    }

    /// Whether `packets` packets with `bytes` head bytes together fit now.
    pub(super) fn has_room(&self, packets: usize, bytes: usize) -> bool {
        packets <= self.remaining() && bytes <= self.remaining_bytes()
    }

    /// Appends a packet and returns its head to be filled in; `None` if there is no room.
    ///
    /// The head holds what an earlier batch left there: the caller writes all of it.
    pub(super) fn push(
        &mut self,
        frame: u32,
        head_length: usize,
        tail: (u32, u32),
        flow_hash: u32,
    ) -> Option<&mut [u8]> {
        let length = u16::try_from(head_length).ok()?;
        if !self.has_room(1, head_length) {
            return None;
        }
        let start = self.used;
        self.used += head_length;
        self.refs.push(PacketRef {
            frame,
            head: (start as u32, length),
            tail,
            flow_hash,
            part: Part::Whole,
        });
        self.arena.get_mut(start..start + head_length)
    }
}

impl Default for Packets {
    fn default() -> Self {
        Self::new(DEFAULT_PACKETS, DEFAULT_ARENA_BYTES)
    }
}
