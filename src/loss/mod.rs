//! Loss from sequence numbers: headers and times in, counts out.
//!
//! For each TCP flow and direction the tracker tells loss before us, loss behind us, what the capture
//! itself lacks, reordering, needless retransmissions and copies that came twice. It works in bytes of
//! sequence space: each range is classified once, packets are estimated afterwards. Where one direction
//! is not visible it makes no claim. What a tunnel numbers (GRE, ERSPAN) is counted exactly.
//!
//! Pure: no clock (time is an argument, in nanoseconds of any epoch), no socket, no file; memory is fixed
//! when it is made, and nothing panics on any bytes. Called by `xtee loss` and by whoever else has frames.
#![forbid(unsafe_code)]

mod acknowledge;
mod anomaly;
mod counts;
mod data;
mod flow;
mod fragments;
mod frame;
mod key;
mod monitor;
mod report;
mod segment;
mod sequence;
mod settle;
mod table;
#[cfg(test)]
mod tests;
mod tracker;
mod tunnel;

pub use counts::{Counts, Tally};
pub use frame::Link;
pub use key::{End, FlowKey, Way};
pub use monitor::{Frames, Monitor};
pub use report::{BlackHole, DirectionReport, Ending, FlowReport, Flows, Totals, Visibility};
pub use segment::{flags, SackBlocks, Segment, Timestamps};
pub use tracker::Tracker;
pub use tunnel::{SequenceCounts, SequenceTracker, StreamKey, Tunnels};

/// What a tracker is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Flows at the same time, at most 2^24 - 1.
    pub flows: usize,
    /// Directions that are not in order at the same time.
    pub blocks: usize,
    /// Of these, directions with more than eight holes or retransmissions open.
    pub spills: usize,
    /// Of the hash; from a good source where others choose addresses.
    pub seed: u64,
    /// How long bytes may come after their acknowledgment, nanoseconds. Above the worst skew between the
    /// two directions of a mirrored link.
    pub grace_ns: u64,
    /// How long a bit-identical packet is a copy and not sent again, nanoseconds.
    pub duplicate_ns: u64,
    /// How long a D-SACK may take at least, nanoseconds.
    pub repeat_ns: u64,
    /// Silence that ends a connection, nanoseconds.
    pub idle_ns: u64,
    /// Silence that ends an opening, nanoseconds.
    pub opening_ns: u64,
    /// Silence that ends a connection that is over, nanoseconds.
    pub over_ns: u64,
}

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;

impl Default for Settings {
    fn default() -> Self {
        Self::for_flows(65_536)
    }
}

impl Settings {
    /// Room for `flows` flows of which a quarter have a direction that is not in order.
    #[must_use]
    pub const fn for_flows(flows: usize) -> Self {
        Self {
            flows,
            blocks: flows / 4 + 16,
            spills: flows / 64 + 16,
            seed: 0,
            grace_ns: 50 * MILLISECOND,
            duplicate_ns: 50 * MILLISECOND,
            repeat_ns: 200 * MILLISECOND,
            idle_ns: 300 * SECOND,
            opening_ns: 60 * SECOND,
            over_ns: 5 * SECOND,
        }
    }

    /// Most bytes that a tracker with these settings ever takes.
    #[must_use]
    pub const fn memory(&self) -> usize {
        self.flows * table::FLOW_BYTES
            + self.blocks * (anomaly::BLOCK_BYTES + size_of::<u32>())
            + self.spills * (anomaly::SPILL_BYTES + size_of::<u32>())
            + tracker::FIXED_BYTES
    }
}
