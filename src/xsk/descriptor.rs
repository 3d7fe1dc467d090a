//! Writing address and length of an `xsk_rs` frame descriptor.
//!
//! `FrameDesc` has no way to say where in its chunk a packet begins, yet an outer header written
//! in front of a packet, in place, moves that beginning. Its fields are private, but all of them
//! are integers (`addr: usize, options: u32, lengths: {headroom, data: usize}` in 0.11.0, which
//! Cargo.toml pins), so any byte of it may be overwritten; where the two words of interest lie is
//! found out once, at set-up, through the public getters. If they are not found, no UMEM is made.

use std::mem::size_of;

use xsk_rs::FrameDesc;

/// Where a descriptor keeps the address and the length: byte offsets within `FrameDesc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DescriptorLayout {
    address: usize,
    length: usize,
}

impl DescriptorLayout {
    /// Finds the two words, or `None` with a version of `xsk_rs` that stores them otherwise.
    pub(super) fn probe() -> Option<Self> {
        // Both halves are set, so that a field of 32 bits cannot be mistaken for the word.
        const SENTINEL: usize = 0x5a5a_0001_a5a5_0003;
        let mut address = None;
        let mut length = None;
        let last = size_of::<FrameDesc>().checked_sub(size_of::<usize>())?;
        for offset in (0..=last).step_by(size_of::<usize>()) {
            let mut descriptor = FrameDesc::default();
            write_word(&mut descriptor, offset, SENTINEL);
            if descriptor.addr() == SENTINEL {
                address = Some(offset);
            }
            if descriptor.lengths().data() == SENTINEL {
                length = Some(offset);
            }
        }
        match (address, length) {
            (Some(address), Some(length)) if address != length => Some(Self { address, length }),
            _ => None,
        }
    }

    /// A descriptor of `length` bytes at `address`, both in bytes, `address` from the start of
    /// the UMEM.
    #[inline]
    pub(super) fn describe(self, address: usize, length: usize) -> FrameDesc {
        let mut descriptor = FrameDesc::default();
        write_word(&mut descriptor, self.address, address);
        write_word(&mut descriptor, self.length, length);
        descriptor
    }
}

#[inline]
fn write_word(descriptor: &mut FrameDesc, offset: usize, value: usize) {
    assert!(offset + size_of::<usize>() <= size_of::<FrameDesc>());
    let bytes = std::ptr::from_mut(descriptor).cast::<u8>();
    // SAFETY: the assertion keeps the word inside the descriptor.
    let word = unsafe { bytes.add(offset) };
    // SAFETY: the word lies inside a descriptor that is borrowed exclusively, and all fields of
    // a descriptor are integers, for which every bit pattern is valid.
    unsafe { word.cast::<usize>().write_unaligned(value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_version_is_understood() {
        let layout = DescriptorLayout::probe().expect("layout of the pinned xsk-rs");
        for (address, length) in [
            (0, 0),
            (1, 2),
            (usize::MAX, 0),
            (0, usize::MAX),
            (4096 + 206, 1500),
        ] {
            let descriptor = layout.describe(address, length);
            assert_eq!(descriptor.addr(), address);
            assert_eq!(descriptor.lengths().data(), length);
            assert_eq!(descriptor.lengths().headroom(), 0);
            assert_eq!(descriptor.options(), 0);
        }
    }
}
