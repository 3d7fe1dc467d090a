//! The pinned threads: take a batch, cut it into packets, give it to the targets, release it.
//!
//! Data plane: in the loop no lock, no allocation, no log, no wait that is not bounded by a
//! millisecond. Started, watched and ended by `control`, with which a worker shares atomics and an
//! occasional pointer, nothing else.

pub mod breaker;
pub mod counters;
pub mod ladder;
pub mod outputs;
pub mod span;
pub mod stop;
pub mod tap;

/// Frames of a batch: enough for long runs, few enough to stay in the cache.
pub const BATCH: usize = 256;
