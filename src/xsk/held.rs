//! The frames that a port has given to the kernel: a bit each, and their number.
//!
//! The types make sure that *we* use a frame once; the kernel's side of it is only a promise.
//! A driver that completes a frame twice, or returns one it was never given, would make two
//! tokens of one frame. With the bit checked it becomes a count instead. The bits also name the
//! frames that come home when a socket is closed. Used by the ports only.

/// A set of frame numbers below a fixed limit.
#[derive(Debug)]
pub(super) struct Held {
    words: Box<[u64]>,
    count: u32,
}

impl Held {
    /// An empty set for frame numbers below `frames`.
    pub(super) fn new(frames: u32) -> Self {
        Self {
            words: vec![0; frames.div_ceil(64) as usize].into_boxed_slice(),
            count: 0,
        }
    }

    /// How many frames the kernel holds.
    #[inline]
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Books a frame that goes to the kernel.
    #[inline]
    pub(super) fn insert(&mut self, index: u32) {
        if let Some(word) = self.words.get_mut(index as usize / 64) {
            let bit = 1 << (index % 64);
            debug_assert_eq!(*word & bit, 0, "frame {index} was given away twice");
            *word |= bit;
            self.count += 1;
        }
    }

    /// Books a frame that comes back; false if the kernel does not hold it.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> bool {
        match self.words.get_mut(index as usize / 64) {
            Some(word) if *word & (1 << (index % 64)) != 0 => {
                *word &= !(1 << (index % 64));
                self.count -= 1;
                true
            }
            _ => false,
        }
    }

    /// Empties the set and lists what was in it. Allocates: for closing only.
    pub(super) fn take_all(&mut self) -> Vec<u32> {
        let mut indices = Vec::with_capacity(self.count as usize);
        for (position, word) in self.words.iter_mut().enumerate() {
            while *word != 0 {
                indices.push(position as u32 * 64 + word.trailing_zeros());
                *word &= *word - 1;
            }
        }
        self.count = 0;
        indices
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(operations in prop::collection::vec((any::<bool>(), 0u32..200), 0..500)) {
            let mut held = Held::new(130);
            let mut model = BTreeSet::new();
            for (insert, index) in operations {
                if insert {
                    if index < 130 && model.insert(index) {
                        held.insert(index);
                    }
                } else {
                    prop_assert_eq!(held.remove(index), model.remove(&index));
                }
                prop_assert_eq!(held.count() as usize, model.len());
            }
            prop_assert_eq!(held.take_all(), model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(held.count(), 0);
        }
    }
}
