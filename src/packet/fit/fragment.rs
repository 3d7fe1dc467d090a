//! One outer IP packet becomes fragments that fit: RFC 791 section 3.2 and RFC 8200 section 4.5.
//!
//! Done here and not by the kernel, so that it is the same for every way to send, goes by the path MTU that
//! xtee knows, and every fragment is counted. Called by `worker::ladder`.

use super::{even, NotCut, Pieces};
use crate::packet::headers::Version;
use crate::packet::packets::MAX_HEAD;
use crate::packet::{checksum, PacketList, PacketRef};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;

const MORE_FRAGMENTS: u16 = 0x2000;
/// The fields are 13 bits, in units of 8 bytes.
const LARGEST_PAYLOAD: usize = 65535;

/// Appends the fragments of one copy to `out`: whole IP packets of at most `mtu` bytes, without Ethernet
/// header. Returns how many there are.
///
/// `outer` is everything before the inner frame, from the outer IP header on, as it would be if the copy went
/// out whole; the inner frame is `packet`, a packet of `batch` cut from `frame`. `identification` must not
/// come back between the two addresses before a receiver gives up on the datagram: 30 s with Linux. IPv4 has
/// 16 bits for it (RFC 6864 section 5.3), IPv6 has 32.
///
/// # Errors
/// [`NotCut::Unsuitable`] if `outer` is no IP header without options and extensions, if the copy does not fit
/// one datagram, or if it needs too many fragments.
pub fn fragment(
    outer: &[u8],
    batch: PacketList<'_>,
    packet: &PacketRef,
    frame: &[u8],
    mtu: usize,
    identification: u32,
    out: &mut Pieces,
) -> Result<u32, NotCut> {
    let header = Header::read(outer, identification).ok_or(NotCut::Unsuitable)?;
    let inner = batch.head_bytes(packet);
    let body = Body {
        front: [outer.get(header.length..).unwrap_or(&[]), inner],
        tail: packet.tail,
    };
    if body.tail_start() > MAX_HEAD + IPV6_HEADER || body.length() > LARGEST_PAYLOAD {
        return Err(NotCut::Unsuitable);
    }
    if packet.tail_bytes(frame).len() != packet.tail.1 as usize {
        return Err(NotCut::Unsuitable);
    }
    let room = mtu.saturating_sub(header.fragment_length()) / 8 * 8;
    let (count, size) = even(body.length(), room).ok_or(NotCut::Unsuitable)?;
    // All but the last are a multiple of 8 bytes long; `room` is one, so this does not exceed it.
    let size = size.next_multiple_of(8);
    let heads = count * header.fragment_length() + body.tail_start();
    out.check_room(count, heads)?;

    let mut at = 0;
    let mut fragments = 0;
    while at < body.length() {
        let end = body.length().min(at + size);
        let more = end < body.length();
        let copied = body.copied(at, end);
        let length = header.fragment_length() + copied;
        let place = out.push(batch, packet, length, body.referred(at, end), more)?;
        let (place, rest) = place.split_at_mut(header.fragment_length());
        header.write(outer, place, at, end - at, more);
        body.copy(at, rest);
        at = end;
        fragments += 1;
    }
    Ok(fragments)
}

/// The outer IP header.
struct Header {
    version: Version,
    length: usize,
    identification: u32,
}

impl Header {
    fn read(outer: &[u8], identification: u32) -> Option<Self> {
        let (version, length) = match outer.first()? {
            0x45 => (Version::V4, IPV4_HEADER),
            first if first >> 4 == 6 => (Version::V6, IPV6_HEADER),
            _ => return None,
        };
        (outer.len() >= length).then_some(Self {
            version,
            length,
            identification,
        })
    }

    /// Bytes before the part of the body in each fragment.
    fn fragment_length(&self) -> usize {
        match self.version {
            Version::V4 => IPV4_HEADER,
            Version::V6 => IPV6_HEADER + FRAGMENT_HEADER,
        }
    }

    /// Writes the header of the fragment whose part of the body begins at `at` and is `length` bytes long.
    fn write(&self, outer: &[u8], place: &mut [u8], at: usize, length: usize, more: bool) {
        let Some(header) = outer.get(..self.length) else {
            return;
        };
        place[..self.length].copy_from_slice(header);
        match self.version {
            Version::V4 => {
                // Don't fragment is cleared with the rest of the field: a smaller link further on may have
                // to fragment again (RFC 791 allows it, a set DF would drop it).
                let flags = if more { MORE_FRAGMENTS } else { 0 };
                put16(place, 2, (IPV4_HEADER + length) as u16);
                put16(place, 4, self.identification as u16);
                put16(place, 6, flags | (at / 8) as u16);
                put16(place, 10, 0);
                let field = checksum::finish(checksum::sum(place));
                put16(place, 10, field);
            }
            Version::V6 => {
                put16(place, 4, (FRAGMENT_HEADER + length) as u16);
                let following = std::mem::replace(&mut place[6], FRAGMENT);
                let [a, b, c, d] = self.identification.to_be_bytes();
                let offset = at as u16 | u16::from(more);
                let [high, low] = offset.to_be_bytes();
                place[IPV6_HEADER..].copy_from_slice(&[following, 0, high, low, a, b, c, d]);
            }
        }
    }
}

/// What is cut: the rest of the outer headers, the inner frame's rebuilt front, and its rest, which stays in
/// the captured frame.
struct Body<'b> {
    front: [&'b [u8]; 2],
    tail: (u32, u32),
}

impl Body<'_> {
    fn tail_start(&self) -> usize {
        self.front[0].len() + self.front[1].len()
    }

    fn length(&self) -> usize {
        self.tail_start() + self.tail.1 as usize
    }

    /// How many bytes of a part are of the front.
    fn copied(&self, at: usize, end: usize) -> usize {
        self.tail_start().clamp(at, end) - at
    }

    /// Where the rest of a part stands in the captured frame.
    fn referred(&self, at: usize, end: usize) -> (u32, u32) {
        let first = at.max(self.tail_start()).min(end);
        let start = self.tail.0 as usize + first.saturating_sub(self.tail_start());
        (start as u32, (end - first) as u32)
    }

    /// Fills `out` with the front from `at` on.
    fn copy(&self, at: usize, out: &mut [u8]) {
        let front = self.front.iter().flat_map(|part| part.iter()).skip(at);
        for (to, from) in out.iter_mut().zip(front) {
            *to = *from;
        }
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}
