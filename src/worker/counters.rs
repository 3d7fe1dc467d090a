//! What a worker counts. One writer each, so an addition is a load and a store, no locked operation.
//!
//! Read by the control plane at any time; each number is exact at a quiet moment.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::reason::Reason;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning worker may call it.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// Replaces the value; only the owning worker may call it.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by reason.
#[derive(Debug, Default)]
pub struct Drops([Counter; Reason::COUNT]);

impl Drops {
    /// Counts packets dropped for a reason.
    #[inline]
    pub fn add(&self, reason: Reason, packets: u64) {
        self.0[reason as usize].add(packets);
    }

    /// What was dropped for a reason.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize].get()
    }

    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        Reason::ALL.iter().map(|reason| self.get(*reason)).sum()
    }
}

/// A worker's share of a source's counters. Unit: packets on the wire. Aligned so that two workers
/// never write to one cache line (x86 prefetches them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct SourceCounters {
    /// Packets taken from the source and given to the targets.
    pub captured: Counter,
    /// Packets taken from the source and dropped before any target.
    pub dropped: Drops,
    /// Packets that super-packets had more than the kernel program counted (it goes by `gso_segs` where it
    /// cannot know the headers), and fewer: `seen` and `matched` are corrected by these.
    pub recounted_more: Counter,
    /// See `recounted_more`.
    pub recounted_fewer: Counter,
    /// Frames taken from the source: super-packets count once.
    pub frames: Counter,
    /// Times that the worker slept.
    pub sleeps: Counter,
    /// Frames handed over to the worker that owns their flow.
    pub handed_over: Counter,
    /// Bytes of the packets that were dropped before any target because production goes first.
    pub shed_bytes: Counter,
    /// Packets of which only so many bytes as their rule's snaplen were given to the targets.
    pub sliced: Counter,
    /// Frames in which our own copy stood (see `worker::breaker`).
    pub own_signatures: Counter,
    /// 1 once the worker has ended.
    pub ended: Counter,
}

/// A worker's share of a target's counters. Unit: packets on the wire.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct TargetCounters {
    /// Packets that were to be sent.
    pub offered: Counter,
    /// Bytes of the outer packets that were to be sent, from their IP header on; counted where a budget
    /// needs them.
    pub offered_bytes: Counter,
    /// Packets that left: the kernel took them (UDP, raw) or completed them (AF_XDP).
    pub sent_packets: Counter,
    /// Bytes of the outer packets that left, from their IP header on.
    pub sent_bytes: Counter,
    /// Packets that did not leave.
    pub dropped: Drops,
    /// Copies that were cut into TCP segments because they did not fit the path.
    pub resegmented: Counter,
    /// Copies that were cut into outer IP fragments.
    pub fragmented: Counter,
    /// Copies that were truncated.
    pub truncated: Counter,
    /// Segments and fragments of cut copies that left.
    pub pieces: Counter,
    /// Packets on a transmit ring, not completed yet.
    pub in_flight: Counter,
    /// System calls made to send.
    pub calls: Counter,
    /// Runs of copies that went out as one super-packet or could have.
    pub runs: Counter,
    /// Packets in those runs.
    pub run_packets: Counter,
    /// 1 while AF_XDP sends what UDP sockets could send too.
    pub by_xsk: Counter,
    /// 1 once the device has refused super-packets, so that copies go out one by one.
    pub gso_refused: Counter,
}
