//! Where batches of captured frames come from: the tap's ring. (A span's frames come from `xsk`.)
//!
//! Data plane. A batch lends its bytes until it is released; nothing is copied here. Knows no target.

pub mod capture;
pub mod mapped;
pub mod ring;
pub mod sleep;

use crate::packet::{Direction, FrameMeta};

/// When and which way a frame was captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub timestamp_ns: u64,
    /// As the source's interface sees it.
    pub direction: Direction,
}

/// Frames lent by a source, by their index in the batch.
pub trait Frames {
    /// The bytes of frame `index`; empty if there is no such frame.
    fn bytes(&self, index: u32) -> &[u8];

    /// When and which way frame `index` was captured. Asked for by the few tunnels that tell it, so that
    /// it need not travel with every packet.
    fn capture(&self, index: u32) -> Capture {
        let meta = self.meta(index);
        Capture {
            timestamp_ns: meta.timestamp_ns,
            direction: meta.direction,
        }
    }

    /// What is known of frame `index`; an empty frame's if there is no such frame.
    fn meta(&self, index: u32) -> FrameMeta;
}
