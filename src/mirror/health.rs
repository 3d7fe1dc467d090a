//! Whether a target is taken for healthy: what is seen of it, with hysteresis.
//!
//! A path that flaps must not move flows back and forth, so a target leaves when it has been bad for a
//! while, and comes back when it has been good for longer. What *good* means is the caller's: control asks
//! the path (see `control::targets`). An ICMP error about our own copies is no reason: the kernel of a
//! passive sensor answers port unreachable all day. Pure; time is an argument.

/// Bad for as long, nanoseconds: the target leaves. A device that is restarted answers sooner.
pub const DOWN_AFTER: u64 = 200_000_000;
/// Good for as long, nanoseconds: the target comes back.
pub const UP_AFTER: u64 = 1_000_000_000;

/// What a target is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not seen good yet, and not long bad: it gets its copies.
    #[default]
    Starting,
    /// It gets its copies.
    Healthy,
    /// Its share goes to others.
    Unhealthy,
}

/// One target's health.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: State,
    /// Since when what is seen differs from the state.
    differs_since: Option<u64>,
}

impl Health {
    /// What the target is taken for.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it gets its share.
    #[must_use]
    pub fn is_in(&self) -> bool {
        self.state != State::Unhealthy
    }

    /// What is seen at `now`, nanoseconds. Returns the new state if it changed.
    pub fn feed(&mut self, now: u64, good: bool) -> Option<State> {
        let (wanted, after) = match (self.state, good) {
            (State::Starting, true) => (State::Healthy, 0),
            (State::Starting | State::Healthy, false) => (State::Unhealthy, DOWN_AFTER),
            (State::Unhealthy, true) => (State::Healthy, UP_AFTER),
            (State::Healthy, true) | (State::Unhealthy, false) => {
                self.differs_since = None;
                return None;
            }
        };
        let since = *self.differs_since.get_or_insert(now);
        if now.saturating_sub(since) < after {
            return None;
        }
        self.differs_since = None;
        self.state = wanted;
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn leaves_after_a_while_and_comes_back_after_a_longer_one() {
        let mut health = Health::default();
        assert_eq!(health.feed(0, true), Some(State::Healthy));
        assert_eq!(health.feed(1000 * MS, false), None);
        assert_eq!(health.feed(1199 * MS, false), None);
        assert!(health.is_in());
        assert_eq!(health.feed(1200 * MS, false), Some(State::Unhealthy));
        assert!(!health.is_in());
        assert_eq!(health.feed(1300 * MS, true), None);
        assert_eq!(health.feed(2299 * MS, true), None);
        assert_eq!(health.feed(2300 * MS, true), Some(State::Healthy));
    }

    #[test]
    fn a_path_that_flaps_changes_nothing() {
        let mut health = Health::default();
        health.feed(0, true);
        for round in 1..100 {
            assert_eq!(health.feed(round * 200 * MS, false), None);
            assert_eq!(health.feed(round * 200 * MS + 150 * MS, true), None);
        }
        health.feed(100_000 * MS, false);
        assert_eq!(health.feed(100_200 * MS, false), Some(State::Unhealthy));
        for round in 1..100 {
            let now = 100_200 * MS + round * 900 * MS;
            assert_eq!(health.feed(now, true), None);
            assert_eq!(health.feed(now + 899 * MS, false), None);
        }
    }

    #[test]
    fn a_start_is_neither_hurried_nor_held_up() {
        let mut health = Health::default();
        assert_eq!(health.feed(5, false), None);
        assert_eq!(health.feed(150 * MS, true), Some(State::Healthy));
        let mut never = Health::default();
        never.feed(5, false);
        assert_eq!(never.feed(5 + DOWN_AFTER, false), Some(State::Unhealthy));
    }
}
