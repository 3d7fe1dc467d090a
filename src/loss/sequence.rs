//! Sequence numbers that do not wrap.

/// 64 bits on a four-byte boundary: a flow's record has no room for padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wide([u32; 2]);

impl Wide {
    pub(super) const ZERO: Self = Self([0; 2]);

    #[inline]
    pub(super) const fn get(self) -> u64 {
        (self.0[1] as u64) << 32 | self.0[0] as u64
    }

    #[inline]
    pub(super) fn set(&mut self, value: u64) {
        self.0 = [value as u32, (value >> 32) as u32];
    }
}

/// Where extended sequence numbers begin, so that older ones than the first do not become negative.
const START: u64 = 1 << 32;

/// The extended number of the first sequence number that is known.
#[inline]
pub(super) const fn first(sequence: u32) -> u64 {
    START + sequence as u64
}

/// The extended number of `sequence` that is next to `near`: less than 2^31 away (RFC 9293 section 3.4).
#[inline]
pub(super) const fn extend(sequence: u32, near: u64) -> u64 {
    let distance = sequence.wrapping_sub(near as u32) as i32;
    near.wrapping_add_signed(distance as i64)
}

/// How many segments of at most `size` octets `octets` are; at least one.
#[inline]
pub(super) const fn packets(octets: u64, size: u64) -> u64 {
    if size == 0 || octets == 0 {
        1
    } else {
        octets.div_ceil(size)
    }
}

/// `a - b` modulo 2^32, as a signed distance: for timestamps, that wrap too.
#[inline]
pub(super) const fn distance(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_goes_both_ways_across_the_wrap() {
        let near = first(u32::MAX - 10);
        assert_eq!(extend(u32::MAX - 10, near), near);
        assert_eq!(extend(5, near), near + 16);
        assert_eq!(extend(u32::MAX - 20, near), near - 10);
        assert_eq!(extend(5, near + 16) - near, 16);
        let low = first(0);
        assert_eq!(extend(u32::MAX, low), low - 1);
        assert_eq!(extend(0x7fff_ffff, low), low + 0x7fff_ffff);
    }

    #[test]
    fn packets_are_at_least_one() {
        assert_eq!(packets(0, 1000), 1);
        assert_eq!(packets(1, 0), 1);
        assert_eq!(packets(1000, 1000), 1);
        assert_eq!(packets(1001, 1000), 2);
    }

    #[test]
    fn a_wide_number_is_whole() {
        let mut wide = Wide::default();
        wide.set(0x1234_5678_9abc_def0);
        assert_eq!(wide.get(), 0x1234_5678_9abc_def0);
        assert_eq!((size_of::<Wide>(), align_of::<Wide>()), (8, 4));
    }
}
