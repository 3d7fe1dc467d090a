//! Production first: when copies are shed, and when they may go again.
//!
//! What is measured is compared with what was set, over the last second. One that is exceeded sheds every
//! copy; they go again once all have been well below for a while, and for longer each time that this was too
//! soon: without copies the machine is calmer, and calm alone must not make it flap. Pure; control feeds it
//! and tells the workers, which drop whole batches and count them.

use crate::reason::Reason;

const SECOND: u64 = 1_000_000_000;
/// What was exceeded has to be at most this share of its threshold, in percent …
const CALM: u64 = 80;
/// … for so long at first, nanoseconds.
const HOLD: u64 = 5 * SECOND;
/// The longest that it has to.
const LONGEST: u64 = 80 * SECOND;
/// Shed again within this time after it ended: it ended too soon.
const SOON: u64 = 60 * SECOND;

/// What must not be exceeded. `None`: may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Bits a second of all targets together.
    pub bits: Option<u64>,
    /// Packets a second of all targets together.
    pub packets: Option<u64>,
    /// Busy time of the CPUs, in thousandths.
    pub load: Option<u32>,
}

/// What was measured over the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Bits that all targets together got or, while copies are shed, would have got.
    pub bits: u64,
    /// Packets, likewise.
    pub packets: u64,
    /// Busy time of the CPUs, in thousandths, where it is known.
    pub load: Option<u32>,
    /// A network allowance of the instance was exceeded.
    pub allowance: bool,
}

/// Why copies are shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// All targets together were above the budget.
    Budget,
    /// The machine was busy.
    Load,
    /// The instance exceeded a network allowance.
    Allowance,
}

impl Cause {
    /// The reason in the balance.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Cause::Budget => Reason::Budget,
            Cause::Load => Reason::Load,
            Cause::Allowance => Reason::Allowance,
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Copies are shed from now on.
    Began(Cause),
    /// Copies go again.
    Ended,
}

/// The state.
#[derive(Clone, Debug)]
pub struct Shedder {
    thresholds: Thresholds,
    shedding: Option<Cause>,
    /// Since when all has been calm.
    calm_since: Option<u64>,
    hold: u64,
    ended: Option<u64>,
}

impl Shedder {
    /// Nothing is shed at first.
    #[must_use]
    pub fn new(thresholds: Thresholds) -> Shedder {
        Shedder {
            thresholds,
            shedding: None,
            calm_since: None,
            hold: HOLD,
            ended: None,
        }
    }

    /// How long all has to be calm before copies go again, nanoseconds.
    #[must_use]
    pub fn hold(&self) -> u64 {
        self.hold
    }

    /// What was measured until `now`, nanoseconds. Returns the change, if there is one.
    pub fn feed(&mut self, now: u64, sample: &Sample) -> Option<Change> {
        if self.shedding.is_none() {
            let cause = self.exceeded(sample, 100)?;
            let too_soon = self
                .ended
                .is_some_and(|ended| now.saturating_sub(ended) < SOON);
            self.hold = if too_soon {
                (self.hold * 2).min(LONGEST)
            } else {
                HOLD
            };
            self.shedding = Some(cause);
            self.calm_since = None;
            return Some(Change::Began(cause));
        }
        if self.exceeded(sample, CALM).is_some() {
            self.calm_since = None;
            return None;
        }
        let since = *self.calm_since.get_or_insert(now);
        if now.saturating_sub(since) < self.hold {
            return None;
        }
        self.shedding = None;
        self.ended = Some(now);
        Some(Change::Ended)
    }

    /// What is above so many percent of its threshold.
    fn exceeded(&self, sample: &Sample, percent: u64) -> Option<Cause> {
        let above = |measured: u64, threshold: Option<u64>| {
            threshold.is_some_and(|threshold| measured > threshold / 100 * percent)
        };
        let load = self.thresholds.load.zip(sample.load);
        if sample.allowance {
            Some(Cause::Allowance)
        } else if above(sample.bits, self.thresholds.bits)
            || above(sample.packets, self.thresholds.packets)
        {
            Some(Cause::Budget)
        } else if load
            .is_some_and(|(threshold, load)| u64::from(load) * 100 > u64::from(threshold) * percent)
        {
            Some(Cause::Load)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shedder() -> Shedder {
        Shedder::new(Thresholds {
            bits: Some(100_000_000),
            packets: Some(10_000),
            load: Some(900),
        })
    }

    fn bits(bits: u64) -> Sample {
        Sample {
            bits,
            ..Sample::default()
        }
    }

    #[test]
    fn each_threshold_sheds_with_its_cause() {
        for (sample, cause) in [
            (bits(100_000_001), Cause::Budget),
            (
                Sample {
                    packets: 10_001,
                    ..Sample::default()
                },
                Cause::Budget,
            ),
            (
                Sample {
                    load: Some(901),
                    ..Sample::default()
                },
                Cause::Load,
            ),
            (
                Sample {
                    allowance: true,
                    ..Sample::default()
                },
                Cause::Allowance,
            ),
        ] {
            let mut shedder = shedder();
            let calm = Sample {
                bits: 100_000_000,
                packets: 10_000,
                load: Some(900),
                allowance: false,
            };
            assert_eq!(shedder.feed(0, &calm), None);
            assert_eq!(shedder.feed(1, &sample), Some(Change::Began(cause)));
            assert_eq!(shedder.feed(2, &sample), None);
        }
        // What was not set is not looked at.
        let mut free = Shedder::new(Thresholds::default());
        let busy = Sample {
            bits: u64::MAX,
            packets: u64::MAX,
            load: Some(1000),
            allowance: false,
        };
        assert_eq!(free.feed(0, &busy), None);
    }

    #[test]
    fn copies_go_again_after_a_calm_and_not_before() {
        let mut shedder = shedder();
        shedder.feed(0, &bits(200_000_000));
        for second in 1..100 {
            // Below the threshold and not calm.
            assert_eq!(shedder.feed(second * SECOND, &bits(80_000_001)), None);
        }
        assert_eq!(shedder.feed(100 * SECOND, &bits(80_000_000)), None);
        // One busy second begins it anew.
        assert_eq!(shedder.feed(104 * SECOND, &bits(90_000_000)), None);
        assert_eq!(shedder.feed(105 * SECOND, &bits(1)), None);
        assert_eq!(shedder.feed(109 * SECOND, &bits(1)), None);
        assert_eq!(shedder.feed(110 * SECOND, &bits(1)), Some(Change::Ended));
    }

    #[test]
    fn when_it_ended_too_soon_it_holds_for_longer_next_time() {
        let mut shedder = shedder();
        let mut now = 0;
        for hold in [5, 10, 20, 40, 80, 80] {
            assert!(matches!(
                shedder.feed(now, &bits(200_000_000)),
                Some(Change::Began(_))
            ));
            assert_eq!(shedder.hold(), hold * SECOND);
            assert_eq!(shedder.feed(now + SECOND, &bits(0)), None);
            now += (1 + hold) * SECOND;
            assert_eq!(shedder.feed(now, &bits(0)), Some(Change::Ended));
            now += SECOND;
        }
        now += 70 * SECOND;
        shedder.feed(now, &bits(200_000_000));
        assert_eq!(shedder.hold(), HOLD);
    }
}
