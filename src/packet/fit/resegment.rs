//! One TCP packet becomes several that fit: what a sender with a smaller MSS would have sent.
//!
//! Like Linux's `tcp_gso_segment`, with three differences: the pieces are even, they all keep the IPv4
//! identification of the original, and a checksum that was wrong is as wrong in each piece. Called by
//! `worker::ladder`.

use super::{even, NotCut, Pieces, MAX_PIECES};
use crate::packet::headers::{
    be16, be32, is_vlan, parse_ip, protocol, tcp_header_length, Fragment, Version, ETHERNET_HEADER,
};
use crate::packet::packets::MAX_HEAD;
use crate::packet::{checksum, PacketList, PacketRef, VLAN_TAG};

const IPV6_HEADER: usize = 40;
const AUTHENTICATION: u8 = 51;
const FRAGMENT: u8 = 44;

const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 12;
const TCP_CHECKSUM: usize = 16;
const TCP_URGENT: usize = 18;

const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
const RST: u16 = 0x04;
const PSH: u16 = 0x08;
const URG: u16 = 0x20;
const CWR: u16 = 0x80;

/// Bytes behind the IP packet (a time stamp that a switch appended) that go along with the last piece.
const MAX_TRAILER: usize = 64;

/// Appends the pieces of `packet`, a packet of `batch` cut from `frame`, to `out`: each at most `limit`
/// bytes long, Ethernet header included. Returns how many there are.
///
/// # Errors
/// [`NotCut::Unsuitable`] for what is no TCP with payload, for an IP fragment, a packet of which bytes are
/// missing, one with an IPsec authentication header (which covers the lengths), and for SYN and RST: their
/// payload is rare, and cutting it would put data behind a connection that is not open yet, or not any more.
pub fn resegment(
    batch: PacketList<'_>,
    packet: &PacketRef,
    frame: &[u8],
    limit: usize,
    out: &mut Pieces,
) -> Result<u32, NotCut> {
    let mut buffer = [0; MAX_HEAD];
    let front = front(batch, packet, frame, &mut buffer);
    let shape = Shape::read(front, packet.length()).ok_or(NotCut::Unsuitable)?;
    let head = front.get(..shape.payload).ok_or(NotCut::Unsuitable)?;
    // Where the payload stands in the frame. A head that reaches into it belongs to no TCP packet that `cut`
    // has made.
    let start = shape
        .payload
        .checked_sub(usize::from(packet.head.1))
        .ok_or(NotCut::Unsuitable)?;
    let payload = packet
        .tail_bytes(frame)
        .get(start..start + shape.length)
        .ok_or(NotCut::Unsuitable)?;
    let room = limit
        .checked_sub(head.len() + shape.trailer)
        .ok_or(NotCut::Unsuitable)?;
    let (count, size) = even(payload.len(), room).ok_or(NotCut::Unsuitable)?;
    if count <= 1 {
        return Err(NotCut::Unsuitable);
    }
    out.check_room(count, count * head.len())?;

    let mut sums = [0u32; MAX_PIECES];
    let mut whole = 0;
    for (index, (piece, sum)) in payload.chunks(size).zip(&mut sums).enumerate() {
        *sum = checksum::sum(piece);
        whole = checksum::combine(whole, index * size, *sum);
    }
    let first = packet.tail.0 as usize + start;
    for (index, (piece, sum)) in payload.chunks(size).zip(sums).enumerate() {
        let is_last = index + 1 == count;
        let at = first + index * size;
        let trailer = if is_last { shape.trailer } else { 0 };
        let tail = (at as u32, (piece.len() + trailer) as u32);
        let place = out.push(batch, packet, head.len(), tail, !is_last)?;
        place.copy_from_slice(head);
        let piece = Piece {
            offset: index * size,
            length: piece.len(),
            is_last,
            sum_change: sum + u32::from(!checksum::fold(whole)),
        };
        shape.write(place, &piece);
    }
    Ok(count as u32)
}

/// The first bytes of the packet, as many as headers can have.
fn front<'b>(
    batch: PacketList<'_>,
    packet: &PacketRef,
    frame: &[u8],
    buffer: &'b mut [u8; MAX_HEAD],
) -> &'b [u8] {
    let mut used = 0;
    for part in [batch.head_bytes(packet), packet.tail_bytes(frame)] {
        let length = part.len().min(buffer.len() - used);
        buffer[used..used + length].copy_from_slice(&part[..length]);
        used += length;
    }
    &buffer[..used]
}

/// What the headers of a packet say. Offsets in the packet.
struct Shape {
    version: Version,
    ip: usize,
    tcp: usize,
    payload: usize,
    /// Payload bytes.
    length: usize,
    /// Bytes behind the IP packet.
    trailer: usize,
}

/// A piece's place in the packet.
struct Piece {
    /// Payload bytes before it.
    offset: usize,
    /// Payload bytes in it.
    length: usize,
    is_last: bool,
    /// What the checksum's sum changes by because of the payload.
    sum_change: u32,
}

impl Shape {
    /// From the first bytes of a packet of `length` bytes; `None` if it cannot be cut.
    fn read(front: &[u8], length: usize) -> Option<Self> {
        let (ethertype, network) = behind_tags(front)?;
        let ip = parse_ip(front, network, ethertype)?;
        if ip.protocol != protocol::TCP || ip.fragment != Fragment::Whole || !ip.length_known {
            return None;
        }
        // A jumbogram (RFC 2675) has its length elsewhere; on a wire there is none.
        if ip.version == Version::V6
            && (be16(front, network + 4)? == 0 || has_authentication(front, network, ip.transport)?)
        {
            return None;
        }
        let flags = be16(front, ip.transport + TCP_FLAGS)?;
        if flags & (SYN | RST) != 0 {
            return None;
        }
        let payload = ip.transport + tcp_header_length(front, ip.transport)?;
        let trailer = length.checked_sub(ip.end)?;
        (trailer <= MAX_TRAILER).then_some(Self {
            version: ip.version,
            ip: network,
            tcp: ip.transport,
            payload,
            length: ip.end.checked_sub(payload)?,
            trailer,
        })
    }

    /// Changes `head`, a copy of the packet's headers, into that of a piece.
    ///
    /// Both checksums are updated by what changes (RFC 1624), so an error in them stays as it is.
    fn write(&self, head: &mut [u8], piece: &Piece) {
        let cut = self.length - piece.length;
        match self.version {
            // The identification stays, in all pieces: they are pieces of one packet of the wire, and the
            // next number is that of the sender's next packet. Unique it needs to be only for datagrams that
            // may be fragmented (RFC 6864 section 4), and within the tunnel none is.
            Version::V4 => {
                let (old, new) = reduce16(head, self.ip + 2, cut);
                let field = be16(head, self.ip + 10).unwrap_or(0);
                put16(head, self.ip + 10, checksum::update(field, old, new));
            }
            Version::V6 => {
                reduce16(head, self.ip + 4, cut);
            }
        }

        let mut change = Change(piece.sum_change);
        // The pseudo-header's length.
        let length = self.payload - self.tcp + self.length;
        change.word(length as u16, (length - cut) as u16);

        let at = self.tcp + TCP_SEQUENCE;
        let old = be32(head, at).unwrap_or(0);
        let new = old.wrapping_add(piece.offset as u32);
        change.word((old >> 16) as u16, (new >> 16) as u16);
        change.word(old as u16, new as u16);
        put16(head, at, (new >> 16) as u16);
        put16(head, at + 2, new as u16);

        let at = self.tcp + TCP_FLAGS;
        let old = be16(head, at).unwrap_or(0);
        let mut new = old;
        if piece.offset > 0 {
            new &= !CWR;
        }
        if !piece.is_last {
            new &= !(FIN | PSH);
        }
        // The urgent pointer counts from the sequence number; behind the urgent data there is none.
        let urgent_at = self.tcp + TCP_URGENT;
        let pointer = be16(head, urgent_at).unwrap_or(0);
        if old & URG != 0 && piece.offset > 0 {
            let left = usize::from(pointer).saturating_sub(piece.offset) as u16;
            if left == 0 {
                new &= !URG;
            }
            change.word(pointer, left);
            put16(head, urgent_at, left);
        }
        change.word(old, new);
        put16(head, at, new);

        let at = self.tcp + TCP_CHECKSUM;
        let field = be16(head, at).unwrap_or(0);
        put16(head, at, change.apply(field));
    }
}

/// What a covered sum changes by, word for word.
struct Change(u32);

impl Change {
    fn word(&mut self, old: u16, new: u16) {
        self.0 += u32::from(!old) + u32::from(new);
    }

    /// RFC 1624 equation 3, for all of them at once.
    fn apply(&self, field: u16) -> u16 {
        checksum::finish(u32::from(!field) + self.0)
    }
}

/// Ethertype behind all VLAN tags, and where the network header begins.
fn behind_tags(front: &[u8]) -> Option<(u16, usize)> {
    let mut network = ETHERNET_HEADER;
    loop {
        let ethertype = be16(front, network - 2)?;
        if !is_vlan(ethertype) {
            return Some((ethertype, network));
        }
        network += VLAN_TAG;
    }
}

/// Whether an authentication header stands between the IPv6 header and the transport.
fn has_authentication(front: &[u8], ip: usize, transport: usize) -> Option<bool> {
    let mut kind = *front.get(ip + 6)?;
    let mut at = ip + IPV6_HEADER;
    while at < transport {
        if kind == AUTHENTICATION {
            return Some(true);
        }
        let units = match kind {
            FRAGMENT => 0,
            _ => usize::from(*front.get(at + 1)?),
        };
        kind = *front.get(at)?;
        at += (units + 1) * 8;
    }
    Some(false)
}

/// Subtracts from a field; returns it before and after.
fn reduce16(head: &mut [u8], at: usize, by: usize) -> (u16, u16) {
    let old = be16(head, at).unwrap_or(0);
    let new = usize::from(old).saturating_sub(by) as u16;
    put16(head, at, new);
    (old, new)
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}
