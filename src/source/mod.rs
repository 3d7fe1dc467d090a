//! Where batches of captured frames come from: the tap's ring. (A span's frames come from `xsk`.)
//!
//! Data plane. A batch lends its bytes until it is released; nothing is copied here. Knows no target.

pub mod mapped;
pub mod ring;
pub mod sleep;

/// Frames lent by a source, by their index in the batch.
pub trait Frames {
    /// The bytes of frame `index`; empty if there is no such frame.
    fn bytes(&self, index: u32) -> &[u8];
}
