//! The record of a flow: 248 bytes, and with its place in the index no more than 256.
//!
//! Everything that a flow in order needs is here; what is not in order is in a block of the slab.

use super::anomaly::NONE;
use super::key::{FlowKey, Way};
use super::segment::Segment;
use super::sequence::{extend, first, Wide};

/// Marks of a direction.
pub(super) mod mark {
    /// `next` is known: something was seen of this direction's sequence space.
    pub const NEXT: u16 = 1;
    /// Its SYN was seen.
    pub const SYN: u16 = 1 << 1;
    /// That SYN, or a later one, acknowledged the other's.
    pub const SYN_ACK: u16 = 1 << 2;
    /// Its FIN was seen.
    pub const FIN: u16 = 1 << 3;
    /// `acknowledged` is known.
    pub const ACKNOWLEDGED: u16 = 1 << 4;
    /// An acknowledgment moved forward: both directions are visible.
    pub const PROGRESS: u16 = 1 << 5;
    /// Picked up in the middle, and no acknowledgment has shown yet that its first packet was new.
    pub const WARMING: u16 = 1 << 6;
    /// The SYN carried data, and the answer is open.
    pub const FAST_OPEN: u16 = 1 << 7;
    /// A round trip is being measured.
    pub const PROBE: u16 = 1 << 8;
    /// A window probe carried the byte at `next`.
    pub const WINDOW_PROBE: u16 = 1 << 9;
    /// `timestamp` is known.
    pub const TIMESTAMP: u16 = 1 << 10;
    /// `identification` is known.
    pub const IDENTIFICATION: u16 = 1 << 11;
    /// The slab was used up when this direction needed a block.
    pub const DEGRADED: u16 = 1 << 12;
    /// A fragment came and its datagram is not complete.
    pub const FRAGMENT: u16 = 1 << 13;
    /// Went silent while the other side kept acknowledging.
    pub const ASYMMETRIC: u16 = 1 << 14;
}

/// What the marks of a flow say.
pub(super) mod flow_mark {
    /// A reset was seen, and nothing after it that says it was ignored.
    pub const RESET: u8 = 1;
    /// Used since it was last put at the head of its queue.
    pub const USED: u8 = 1 << 1;
    /// The initiator is known.
    pub const CLIENT_KNOWN: u8 = 1 << 2;
    /// The initiator sends [`Way::Down`].
    pub const CLIENT_DOWN: u8 = 1 << 3;
}

/// State of one direction: what its sender sends, and the acknowledgments for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direction {
    /// Extended sequence number that is expected next.
    pub next: Wide,
    /// Octets of sequence space that were seen, without the SYN.
    pub unique: Wide,
    pub packets: u32,
    pub data_packets: u32,
    /// Low half of the highest acknowledgment; never more than 2^32 below `next`.
    pub acknowledged: u32,
    /// Initial sequence number, or the first that was seen.
    pub base: u32,
    /// Shortest time from a segment to its acknowledgment: twice the way from us to the receiver. 0: not
    /// known.
    pub round_trip_us: u32,
    probe_end: u32,
    probe_us: u32,
    pub timestamp: u32,
    /// Handle of the block in the slab.
    pub block: u32,
    /// Identities of the last packets, and when they came.
    recent: [u32; 4],
    recent_at: [u16; 4],
    pub window: u16,
    pub identification: u16,
    /// Largest payload that can be one segment.
    pub largest: u16,
    /// Maximum segment size that the receiver announced, 0: not known.
    pub limit: u16,
    pub marks: u16,
    /// Steps of the IP identification: like a counter, and not.
    pub identification_good: u8,
    pub identification_bad: u8,
    pub duplicate_acks: u8,
    turn: u8,
}

/// Bytes that a timestamps option takes from each segment (RFC 7323 appendix A).
const TIMESTAMPS_LENGTH: u16 = 12;
/// No segment is longer, if nobody told the maximum: jumbo frames.
const LARGEST_SEGMENT: u32 = 9000;
/// Unit of `recent_at`: 2^14 ns.
const RECENT_UNIT: u32 = 14;

const fn micros(now_ns: u64) -> u32 {
    (now_ns / 1000) as u32
}

impl Direction {
    pub(super) const NEW: Self = Self {
        next: Wide::ZERO,
        unique: Wide::ZERO,
        packets: 0,
        data_packets: 0,
        acknowledged: 0,
        base: 0,
        round_trip_us: 0,
        probe_end: 0,
        probe_us: 0,
        timestamp: 0,
        block: NONE,
        recent: [0; 4],
        recent_at: [0; 4],
        window: 0,
        identification: 0,
        largest: 0,
        limit: 0,
        marks: 0,
        identification_good: 0,
        identification_bad: 0,
        duplicate_acks: 0,
        turn: 0,
    };

    #[inline]
    pub(super) const fn is(&self, mark: u16) -> bool {
        self.marks & mark != 0
    }

    #[inline]
    pub(super) fn set(&mut self, mark: u16) {
        self.marks |= mark;
    }

    #[inline]
    pub(super) fn clear(&mut self, mark: u16) {
        self.marks &= !mark;
    }

    /// Extended number of the first byte that counts.
    #[inline]
    pub(super) const fn floor(&self) -> u64 {
        first(self.base)
    }

    /// Extended number of the highest acknowledgment.
    #[inline]
    pub(super) const fn una(&self) -> u64 {
        let next = self.next.get();
        next.wrapping_sub((next as u32).wrapping_sub(self.acknowledged) as u64)
    }

    /// Begins the sequence space at `base`, with `length` octets of which the first is at it.
    pub(super) fn begin(&mut self, base: u32, length: u64) {
        self.base = base;
        self.next.set(first(base) + length);
        self.set(mark::NEXT);
        if self.is(mark::ACKNOWLEDGED) {
            // The acknowledgment came first. It may be beyond what was seen, never below the beginning.
            let una = extend(self.acknowledged, self.next.get());
            let una = una.clamp(self.floor(), self.next.get());
            self.acknowledged = una as u32;
        } else {
            self.acknowledged = base;
            self.set(mark::ACKNOWLEDGED);
        }
    }

    /// Payload of a full segment, as far as one can know.
    #[inline]
    pub(super) fn segment_size(&self) -> u64 {
        u64::from(self.largest.max(self.announced_size().unwrap_or(0)))
    }

    /// Payload of a full segment by what the receiver announced.
    #[inline]
    pub(super) fn announced_size(&self) -> Option<u16> {
        let options = if self.is(mark::TIMESTAMP) {
            TIMESTAMPS_LENGTH
        } else {
            0
        };
        (self.limit > options).then(|| self.limit - options)
    }

    #[inline]
    pub(super) fn note_size(&mut self, payload: u32) {
        let one_segment = if self.limit != 0 {
            payload <= u32::from(self.limit)
        } else {
            true
        };
        if one_segment {
            self.largest = self.largest.max(payload.min(LARGEST_SEGMENT) as u16);
        }
    }

    /// Begins to measure a round trip, if none is being measured.
    #[inline]
    pub(super) fn probe(&mut self, end: u64, now_ns: u64) {
        if !self.is(mark::PROBE) {
            self.probe_end = end as u32;
            self.probe_us = micros(now_ns);
            self.set(mark::PROBE);
        }
    }

    /// The round trip that an acknowledgment up to `una` ends, microseconds.
    #[inline]
    pub(super) fn probed(&mut self, una: u64, now_ns: u64) -> Option<u32> {
        if !self.is(mark::PROBE) || extend(self.probe_end, una) > una {
            return None;
        }
        self.clear(mark::PROBE);
        // Capture clocks step back at times; that is no measurement.
        let elapsed = micros(now_ns).wrapping_sub(self.probe_us) as i32;
        let elapsed = u32::try_from(elapsed).ok()?.max(1);
        if self.round_trip_us == 0 || elapsed < self.round_trip_us {
            self.round_trip_us = elapsed;
        }
        Some(elapsed)
    }

    /// Remembers a packet; whether it came just before, no longer than `window_ns` ago.
    #[inline]
    pub(super) fn remember(&mut self, identity: u32, now_ns: u64, window_ns: u64) -> bool {
        let now = (now_ns >> RECENT_UNIT) as u16;
        let window = window_ns >> RECENT_UNIT;
        let known = (0..self.recent.len()).any(|at| {
            self.recent[at] == identity && u64::from(now.wrapping_sub(self.recent_at[at])) <= window
        });
        self.push_recent(identity, now_ns);
        known
    }

    /// Remembers a packet that cannot be a copy of another.
    #[inline]
    pub(super) fn push_recent(&mut self, identity: u32, now_ns: u64) {
        let at = usize::from(self.turn) % self.recent.len();
        self.recent[at] = identity;
        self.recent_at[at] = (now_ns >> RECENT_UNIT) as u16;
        self.turn = self.turn.wrapping_add(1);
    }

    /// Follows the sender's IP identification: whether it is a counter.
    #[inline]
    pub(super) fn note_identification(&mut self, segment: &Segment) {
        let Some(identification) = segment.identification else {
            return;
        };
        if !self.is(mark::IDENTIFICATION) {
            self.set(mark::IDENTIFICATION);
            self.identification = identification;
            return;
        }
        let step = identification.wrapping_sub(self.identification) as i16;
        if step > 0 {
            self.identification = identification;
        }
        if (1..1000).contains(&step) {
            self.identification_good = self.identification_good.saturating_add(1);
        } else if step != 0 || segment.payload > 0 {
            self.identification_bad = self.identification_bad.saturating_add(1);
        }
        // Both saturate: halved together they keep their proportion and follow what changes.
        if self.identification_good == u8::MAX || self.identification_bad == u8::MAX {
            self.identification_good /= 2;
            self.identification_bad /= 2;
        }
    }

    /// Whether the IP identification is proven to be a counter.
    pub(super) fn counts_identification(&self) -> bool {
        self.identification_good >= 8
            && u16::from(self.identification_bad) * 8 < u16::from(self.identification_good)
    }
}

/// What a flow is to the queues: who is thrown out first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// Not more than one side has shown itself, or only SYNs: what a flood is made of.
    Opening,
    /// A connection.
    Open,
    /// Reset, or closed from both sides.
    Over,
}

/// A flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub key: FlowKey,
    pub last_ns: u64,
    /// Milliseconds of the clock, modulo 2^32.
    first_ms: u32,
    /// Neighbours in the queue.
    pub before: u32,
    pub behind: u32,
    pub stage: Stage,
    pub marks: u8,
    pub directions: [Direction; 2],
}

impl Flow {
    pub(super) fn new(key: FlowKey, now_ns: u64) -> Self {
        Self {
            key,
            last_ns: now_ns,
            first_ms: (now_ns / 1_000_000) as u32,
            before: NONE,
            behind: NONE,
            stage: Stage::Opening,
            marks: 0,
            directions: [Direction::NEW; 2],
        }
    }

    #[inline]
    pub(super) const fn is(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    /// The direction of a segment and the other one.
    #[inline]
    pub(super) fn pair(&mut self, way: Way) -> (&mut Direction, &mut Direction) {
        let [up, down] = &mut self.directions;
        match way {
            Way::Up => (up, down),
            Way::Down => (down, up),
        }
    }

    /// When its first packet came, nanoseconds; right for flows of less than 49 days.
    pub(super) fn first_ns(&self) -> u64 {
        let last_ms = self.last_ns / 1_000_000;
        let age_ms = (last_ms as u32).wrapping_sub(self.first_ms);
        last_ms.saturating_sub(u64::from(age_ms)) * 1_000_000
    }

    /// Shortest round trip between both ends by way of us, microseconds: a retransmission takes longer.
    pub(super) fn loop_us(&self) -> Option<u64> {
        let [up, down] = self.directions.map(|direction| direction.round_trip_us);
        (up != 0 && down != 0).then(|| u64::from(up) + u64::from(down))
    }

    pub(super) fn note_client(&mut self, way: Way) {
        if !self.is(flow_mark::CLIENT_KNOWN) {
            self.marks |= flow_mark::CLIENT_KNOWN;
            if way == Way::Down {
                self.marks |= flow_mark::CLIENT_DOWN;
            }
        }
    }

    /// Which way the initiator sends: by the SYN, else the one with the higher port.
    pub(super) fn client(&self) -> Way {
        if !self.is(flow_mark::CLIENT_KNOWN) {
            let up = self.key.sender(Way::Up).port;
            let down = self.key.sender(Way::Down).port;
            return if up >= down { Way::Up } else { Way::Down };
        }
        if self.is(flow_mark::CLIENT_DOWN) {
            Way::Down
        } else {
            Way::Up
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_keeps_to_its_size() {
        assert_eq!(size_of::<Direction>(), 92);
        assert!(size_of::<Flow>() <= 248, "{}", size_of::<Flow>());
    }

    #[test]
    fn the_acknowledgment_follows_from_next() {
        let mut direction = Direction::NEW;
        direction.begin(u32::MAX - 5, 10);
        assert_eq!(direction.una(), direction.floor());
        direction.acknowledged = 2;
        assert_eq!(direction.una(), direction.floor() + 8);
    }

    #[test]
    fn an_early_acknowledgment_is_kept_within_bounds() {
        for (early, expected) in [(1000, 1000), (990, 1000), (1005, 1005), (1050, 1010)] {
            let mut direction = Direction::NEW;
            direction.acknowledged = early;
            direction.set(mark::ACKNOWLEDGED);
            direction.begin(1000, 10);
            assert_eq!(direction.una(), first(expected), "{early}");
        }
    }

    #[test]
    fn segment_sizes_leave_super_packets_out() {
        let mut direction = Direction::NEW;
        direction.note_size(14600);
        assert_eq!(direction.segment_size(), 9000);
        let mut direction = Direction::NEW;
        direction.limit = 1460;
        direction.set(mark::TIMESTAMP);
        direction.note_size(14600);
        assert_eq!(direction.segment_size(), 1448);
        direction.note_size(1460);
        assert_eq!(direction.segment_size(), 1460);
    }

    #[test]
    fn recent_packets_are_known_for_a_while() {
        let mut direction = Direction::NEW;
        assert!(!direction.remember(7, 0, 50_000_000));
        assert!(direction.remember(7, 49_000_000, 50_000_000));
        assert!(!direction.remember(7, 149_000_000, 50_000_000));
        for other in 10..14 {
            direction.push_recent(other, 149_000_000);
        }
        assert!(!direction.remember(7, 149_000_000, 50_000_000));
    }
}
