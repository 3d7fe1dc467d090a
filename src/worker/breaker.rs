//! The amplification breaker: when our own copies come back, the mirror stops before it feeds itself.
//!
//! The kernel program excludes our outer flow exactly where it can see it. Where the copies leave
//! through another tunnel, or where the target mirrors back to us, they return inside other packets.
//! Such a frame is never copied, whatever the breaker's state; and if many come, nothing is copied for a
//! while, and control says so loudly. One for all workers of a mirror; time is an argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::packet::signature::{find, Own, OwnFlow};

/// Frames with our own copy inside one window that open the breaker.
const LIMIT: u64 = 16;
/// The window, nanoseconds.
const WINDOW: u64 = 1_000_000_000;
/// How long it stays open at first; it doubles each time, up to [`LONGEST`], and begins anew after it has
/// been closed for as long as that.
const HOLD: u64 = 10_000_000_000;
/// The longest time it stays open.
const LONGEST: u64 = 320_000_000_000;

/// State shared by workers and control. All times: nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Default)]
struct Shared {
    window_started: AtomicU64,
    hits: AtomicU64,
    open_until: AtomicU64,
    hold: AtomicU64,
    opened: AtomicU64,
}

/// The breaker.
#[derive(Clone, Debug, Default)]
pub struct Breaker(Arc<Shared>);

impl Breaker {
    /// Whether nothing may be copied at this time.
    #[inline]
    #[must_use]
    pub fn is_open(&self, now: u64) -> bool {
        now < self.0.open_until.load(Ordering::Relaxed)
    }

    /// How often it has opened.
    #[must_use]
    pub fn times_opened(&self) -> u64 {
        self.0.opened.load(Ordering::Relaxed)
    }

    /// Nanoseconds that it stays open from `now` on; 0 when it is closed.
    #[must_use]
    pub fn remaining(&self, now: u64) -> u64 {
        self.0
            .open_until
            .load(Ordering::Relaxed)
            .saturating_sub(now)
    }

    /// One of our own copies was seen.
    pub fn hit(&self, now: u64) {
        let started = self.0.window_started.load(Ordering::Relaxed);
        if now.saturating_sub(started) > WINDOW {
            self.0.window_started.store(now, Ordering::Relaxed);
            self.0.hits.store(0, Ordering::Relaxed);
        }
        let hits = self.0.hits.fetch_add(1, Ordering::Relaxed) + 1;
        if hits == LIMIT && !self.is_open(now) {
            let closed_for = now.saturating_sub(self.0.open_until.load(Ordering::Relaxed));
            let hold = match self.0.hold.load(Ordering::Relaxed) {
                longer if longer > HOLD && closed_for <= LONGEST => longer,
                _ => HOLD,
            };
            self.0
                .hold
                .store((hold * 2).min(LONGEST), Ordering::Relaxed);
            self.0.open_until.store(now + hold, Ordering::Relaxed);
            self.0.window_started.store(0, Ordering::Relaxed);
            self.0.opened.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Our outer flows, published by control.
pub type Signatures = Arc<ArcSwap<Vec<OwnFlow>>>;

/// A worker's look at each frame.
#[derive(Clone, Debug)]
pub struct Watch {
    breaker: Breaker,
    flows: Cache<Signatures, Arc<Vec<OwnFlow>>>,
    skipped: u32,
}

/// TCP carries tunnels seldom, and is most of the traffic: one frame of this many is searched.
const TCP_SAMPLE: u32 = 16;

/// What a worker does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Copy it.
    Clear,
    /// Our own copy stands inside: never copy it.
    OwnCopy,
    /// An error about our own copy: never copy it, for the copy would be answered by the next error.
    OwnError,
    /// The breaker is open: copy nothing.
    Open,
}

impl Watch {
    /// Looks for copies of these flows, as they are at the time of each look.
    #[must_use]
    pub fn new(breaker: Breaker, flows: Signatures) -> Watch {
        Watch {
            breaker,
            flows: Cache::new(flows),
            skipped: 0,
        }
    }

    /// Looks at a frame captured at `now`.
    #[inline]
    pub fn look(&mut self, frame: &[u8], now: u64) -> Look {
        if self.breaker.is_open(now) {
            return Look::Open;
        }
        if is_plain_tcp(frame) {
            self.skipped += 1;
            if self.skipped < TCP_SAMPLE {
                return Look::Clear;
            }
            self.skipped = 0;
        }
        match find(frame, self.flows.load()) {
            Own::Nothing => Look::Clear,
            Own::Quoted => Look::OwnError,
            Own::Copy => {
                self.breaker.hit(now);
                Look::OwnCopy
            }
        }
    }
}

/// TCP over untagged IPv4 or IPv6 without extension headers.
fn is_plain_tcp(frame: &[u8]) -> bool {
    match frame.get(12..24) {
        Some([0x08, 0x00, rest @ ..]) => rest[9] == 6,
        Some([0x86, 0xdd, rest @ ..]) => rest[6] == 6,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_at_the_limit_within_a_window_and_holds_longer_each_time() {
        let breaker = Breaker::default();
        let start = 5 * WINDOW;
        for hit in 0..LIMIT {
            assert!(!breaker.is_open(start + hit));
            breaker.hit(start + hit);
        }
        let opened = start + LIMIT;
        assert!(breaker.is_open(opened));
        assert_eq!(breaker.times_opened(), 1);
        assert!(!breaker.is_open(opened + HOLD));
        let again = opened + HOLD + WINDOW;
        for hit in 0..LIMIT {
            breaker.hit(again + hit);
        }
        assert!(breaker.is_open(again + LIMIT + HOLD));
        assert!(!breaker.is_open(again + LIMIT + 2 * HOLD));
    }

    #[test]
    fn after_a_long_calm_it_holds_as_shortly_as_at_first() {
        let breaker = Breaker::default();
        let open_at = |now: u64| {
            (0..LIMIT).for_each(|_| breaker.hit(now));
            breaker.remaining(now)
        };
        let mut now = 5 * WINDOW;
        for hold in [HOLD, 2 * HOLD, 4 * HOLD] {
            assert_eq!(open_at(now), hold);
            now += hold + WINDOW;
        }
        assert_eq!(open_at(now + LONGEST), HOLD);
    }

    #[test]
    fn a_few_hits_a_window_never_open_it() {
        let breaker = Breaker::default();
        for window in 1..100 {
            for hit in 0..LIMIT - 1 {
                breaker.hit(window * 2 * WINDOW + hit);
            }
        }
        assert_eq!(breaker.times_opened(), 0);
    }
}
