//! A target's limit: a token bucket for bits and one for packets, shared by all workers without a lock.
//!
//! A bucket is one number, `spent`: what was taken since the start, and what was forfeited because the
//! bucket was full. What was earned until a time is worked out from the start anew each time, so no
//! rounding adds up: in exact integers, however low or high the rate. Time is an argument: that of the
//! capture, so a worker that was held up does not lose the tokens of that time, and may catch up with what
//! the ring holds. The time never runs backwards: a worker that lags behind another goes by the other's.
//! Called by the workers, once a batch.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::PacketRef;

const SECOND: u64 = 1_000_000_000;
/// A full bucket holds what is earned in this time: enough for the bursts of TCP and for a production that
/// pauses for as long, and little beside the seconds that a rate is measured over.
const BURST: u64 = SECOND / 20;
/// It holds at least this much, or a low limit would never let the largest packet pass.
const LEAST_BYTES: u64 = 16 << 10;
const LEAST_PACKETS: u64 = 16;
/// A batch that was captured within this time is taken as a whole, as if all of it came last.
const MOMENT: u64 = SECOND / 1000;
/// Times that a worker looks again because another has taken meanwhile. Then it takes what it found: the
/// bucket owes it until it is earned.
const TRIES: u32 = 8;

/// What a target may get each second. `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bits of outer packets from their IP header on.
    pub bits: Option<u64>,
    /// Packets.
    pub packets: Option<u64>,
}

/// One bucket. The unit is the byte or the packet.
#[derive(Debug)]
struct Bucket {
    /// Units that are earned in `period` nanoseconds.
    rate: u64,
    period: u64,
    burst: u64,
    spent: AtomicU64,
}

impl Bucket {
    fn new(rate: u64, period: u64, least: u64) -> Bucket {
        let bucket = Bucket {
            rate,
            period,
            burst: 0,
            spent: AtomicU64::new(0),
        };
        let burst = bucket.earned(BURST).max(least);
        Bucket { burst, ..bucket }
    }

    /// What was earned until `time`, nanoseconds since the start.
    fn earned(&self, time: u64) -> u64 {
        let exact = u128::from(time) * u128::from(self.rate) / u128::from(self.period);
        u64::try_from(exact).unwrap_or(u64::MAX)
    }

    /// What will have been spent when so much is taken from `spent`; `None`: there is not so much.
    #[inline]
    fn take(&self, spent: u64, earned: u64, amount: u64) -> Option<u64> {
        // A full bucket has spent what it has earned: more is not put by.
        let after = spent.max(earned).saturating_add(amount);
        (after <= earned.saturating_add(self.burst)).then_some(after)
    }
}

/// A target's limit.
#[derive(Debug)]
pub struct Limit {
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
    /// When it began, nanoseconds of the workers' clock.
    start: u64,
    /// The latest time that any worker has come with, since the start.
    latest: AtomicU64,
}

/// What both buckets have spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    bytes: u64,
    packets: u64,
}

/// What was earned until a time, worked out once for all packets of that time.
#[derive(Clone, Copy, Debug, Default)]
struct Earned {
    time: Option<u64>,
    bytes: u64,
    packets: u64,
}

impl Limit {
    /// Full at `start`. `None` where nothing is limited.
    #[must_use]
    pub fn new(rates: Rates, start: u64) -> Option<Limit> {
        if rates == Rates::default() {
            return None;
        }
        let bytes = rates
            .bits
            .map(|bits| Bucket::new(bits, 8 * SECOND, LEAST_BYTES));
        let packets = rates
            .packets
            .map(|rate| Bucket::new(rate, SECOND, LEAST_PACKETS));
        Some(Limit {
            bytes,
            packets,
            start,
            latest: AtomicU64::new(0),
        })
    }

    /// Takes what the packets need. `time` is a packet's, in nanoseconds, not decreasing along the list;
    /// `overhead` are the bytes of each packet's outer headers. Returns whether all may go; otherwise `kept`
    /// says of each packet, in order, whether it may.
    pub fn admit(
        &self,
        packets: &[PacketRef],
        overhead: u64,
        time: impl Fn(&PacketRef) -> u64,
        kept: &mut Vec<bool>,
    ) -> bool {
        let (Some(first), Some(last)) = (packets.first(), packets.last()) else {
            return true;
        };
        let latest = self.latest.load(Ordering::Relaxed);
        let since = |packet: &PacketRef| time(packet).saturating_sub(self.start).max(latest);
        let (begin, end) = (since(first), since(last));
        if end > latest {
            self.latest.fetch_max(end, Ordering::Relaxed);
        }
        let total = Spent {
            bytes: packets.iter().map(|packet| cost(packet, overhead)).sum(),
            packets: packets.len() as u64,
        };
        for attempt in 1..=TRIES {
            let before = self.spent();
            let at_once = (end.saturating_sub(begin) <= MOMENT)
                .then(|| self.take(before, self.earned(end), total))
                .flatten();
            let after =
                at_once.unwrap_or_else(|| self.take_each(before, packets, overhead, since, kept));
            if self.replace(before, after, attempt == TRIES) {
                return at_once.is_some() || kept.iter().all(|kept| *kept);
            }
        }
        true
    }

    /// Takes more than `admit` did: bytes and packets that a copy grew by on its way out. They are owed when
    /// there are not so many.
    pub fn charge(&self, bytes: u64, packets: u64) {
        for (bucket, amount) in [(&self.bytes, bytes), (&self.packets, packets)] {
            if let Some(bucket) = bucket {
                bucket.spent.fetch_add(amount, Ordering::Relaxed);
            }
        }
    }

    fn take_each(
        &self,
        mut spent: Spent,
        packets: &[PacketRef],
        overhead: u64,
        since: impl Fn(&PacketRef) -> u64,
        kept: &mut Vec<bool>,
    ) -> Spent {
        let mut earned = Earned::default();
        kept.clear();
        kept.extend(packets.iter().map(|packet| {
            let time = since(packet);
            if earned.time != Some(time) {
                earned = self.earned(time);
            }
            let one = Spent {
                bytes: cost(packet, overhead),
                packets: 1,
            };
            let after = self.take(spent, earned, one);
            spent = after.unwrap_or(spent);
            after.is_some()
        }));
        spent
    }

    fn earned(&self, time: u64) -> Earned {
        let of = |bucket: &Option<Bucket>| bucket.as_ref().map_or(0, |bucket| bucket.earned(time));
        Earned {
            time: Some(time),
            bytes: of(&self.bytes),
            packets: of(&self.packets),
        }
    }

    #[inline]
    fn take(&self, spent: Spent, earned: Earned, amount: Spent) -> Option<Spent> {
        let take = |bucket: &Option<Bucket>, spent, earned, amount| match bucket {
            Some(bucket) => bucket.take(spent, earned, amount),
            None => Some(spent),
        };
        Some(Spent {
            bytes: take(&self.bytes, spent.bytes, earned.bytes, amount.bytes)?,
            packets: take(&self.packets, spent.packets, earned.packets, amount.packets)?,
        })
    }

    fn spent(&self) -> Spent {
        let of = |bucket: &Option<Bucket>| {
            let spent = bucket.as_ref().map(|bucket| &bucket.spent);
            spent.map_or(0, |spent| spent.load(Ordering::Relaxed))
        };
        Spent {
            bytes: of(&self.bytes),
            packets: of(&self.packets),
        }
    }

    /// Writes what was spent, unless another worker has taken meanwhile; with `whatever` what was taken is
    /// added to what the other left.
    fn replace(&self, before: Spent, after: Spent, whatever: bool) -> bool {
        if whatever {
            self.charge(after.bytes - before.bytes, after.packets - before.packets);
            return true;
        }
        let swap = |bucket: &Option<Bucket>, before, after| {
            bucket.as_ref().is_none_or(|bucket| {
                let spent = &bucket.spent;
                let swapped =
                    spent.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed);
                swapped.is_ok()
            })
        };
        if !swap(&self.bytes, before.bytes, after.bytes) {
            return false;
        }
        if swap(&self.packets, before.packets, after.packets) {
            return true;
        }
        if let Some(bytes) = &self.bytes {
            bytes
                .spent
                .fetch_sub(after.bytes - before.bytes, Ordering::Relaxed);
        }
        false
    }
}

#[inline]
fn cost(packet: &PacketRef, overhead: u64) -> u64 {
    packet.length() as u64 + overhead
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
