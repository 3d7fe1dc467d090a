//! The internet checksum (RFC 1071) with wide words.
//!
//! A *partial sum* is a `u32` that is congruent, modulo 0xffff, to the sum of the big-endian 16-bit
//! words: partial sums are added with `+` (up to 65 535 of them) and [`fold`]ed at the end. In the hot
//! path of segmentation. Pure arithmetic, called by `segment` and `encap`.

/// Partial sum of `bytes`, at most 0xffff. An odd last byte counts as the high half of a word.
#[inline]
pub fn sum(bytes: &[u8]) -> u32 {
    // Words are added in the machine's byte order: the sum only comes out byte-swapped (RFC 1071
    // section 2B), so one swap at the end is enough. A u64 takes 2^32 additions of u32 without overflow.
    let mut lanes = [0u64; 4];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, pair) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            let pair = u64::from_ne_bytes([
                pair[0], pair[1], pair[2], pair[3], pair[4], pair[5], pair[6], pair[7],
            ]);
            *lane += (pair & 0xffff_ffff) + (pair >> 32);
        }
    }
    let mut total = lanes[0] + lanes[1] + lanes[2] + lanes[3];

    let mut words = blocks.remainder().chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    total += match *words.remainder() {
        [a] => u64::from(u16::from_ne_bytes([a, 0])),
        [a, b] => u64::from(u16::from_ne_bytes([a, b])),
        [a, b, c] => u64::from(u16::from_ne_bytes([a, b])) + u64::from(u16::from_ne_bytes([c, 0])),
        _ => 0,
    };
    u32::from(u16::from_be(fold64(total)))
}

/// A partial sum as 16 bits, not complemented: what Linux leaves in an unfinished field when it is the
/// pseudo-header's.
#[inline]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The checksum field for a partial sum: folded and complemented.
#[inline]
pub const fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// The partial sum of `first` followed by `second`, where `first` is `first_length` bytes long: behind
/// an odd number of bytes the words of the second are the other way round.
#[inline]
pub const fn combine(first: u32, first_length: usize, second: u32) -> u32 {
    let second = fold(second);
    let second = if first_length % 2 == 1 {
        second.swap_bytes()
    } else {
        second
    };
    fold(first) as u32 + second as u32
}

/// Partial sum of the TCP or UDP pseudo-header. `addresses` is the source then the destination address,
/// `length` that of the transport header and its payload in bytes. IPv4 (RFC 9293 section 3.1) and IPv6
/// (RFC 8200 section 8.1) order the fields differently, which a sum does not see.
#[inline]
pub fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, length: u32) -> u32 {
    sum(source) + sum(destination) + u32::from(protocol) + length_sum(length)
}

/// Partial sum of the pseudo-header's length field, which is 32 bits wide with IPv6.
#[inline]
pub const fn length_sum(length: u32) -> u32 {
    (length >> 16) + (length & 0xffff)
}

/// The checksum field after a covered word changed from `old` to `new` (RFC 1624 equation 3).
#[inline]
pub const fn update(field: u16, old: u16, new: u16) -> u16 {
    finish(!field as u32 + !old as u32 + new as u32)
}

#[inline]
const fn fold64(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    // Adding the halves of 32 bits before folding them could overflow a u32.
    let sum = (sum >> 16) + (sum & 0xffff);
    fold(sum as u32)
}

#[cfg(test)]
mod tests;
