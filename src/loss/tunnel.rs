//! Tunnels that number their packets: exact loss, without any guess.
//!
//! GRE with sequence numbers (RFC 2890) and ERSPAN II and III. Each stream has its own numbers: by both
//! outer addresses, key or session, and protocol type. Two sources may well use one session.

use std::net::IpAddr;

use serde::Serialize;

/// How many packets back one is told from a copy: 16 words.
const WINDOW: u64 = 1024;
/// A step that no loss explains: the sender began anew.
const RESTART: u64 = 100_000;

/// What was counted of one stream. All epochs together:
/// `expected - lost = received - duplicated - stale - strays`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SequenceCounts {
    /// Numbers from the first to the highest.
    pub expected: u64,
    /// Packets.
    pub received: u64,
    /// Numbers that did not come.
    pub lost: u64,
    /// Came again, within the last 1024 numbers.
    pub duplicated: u64,
    /// Came after higher numbers.
    pub reordered: u64,
    /// Came more than 1024 numbers late: whether for the first time cannot be told; counted as lost.
    pub stale: u64,
    /// Times that the sender began anew. What may have been lost at that moment is in no count.
    pub restarts: u64,
    /// Single numbers far from all others: damaged, or of somebody else. In no other count but received.
    pub strays: u64,
}

impl SequenceCounts {
    /// Adds those of another stream.
    pub fn merge(&mut self, other: &Self) {
        self.expected += other.expected;
        self.received += other.received;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.stale += other.stale;
        self.restarts += other.restarts;
        self.strays += other.strays;
    }
}

/// Follows one stream of 32-bit numbers.
#[derive(Clone, Debug, Default)]
pub struct SequenceTracker {
    /// Counts of earlier epochs, and what does not depend on the epoch.
    past: SequenceCounts,
    started: bool,
    base: u64,
    highest: u64,
    unique: u64,
    seen: [u64; (WINDOW / 64) as usize],
    /// A number far away, in case that the next one follows it.
    candidate: Option<u32>,
}

impl SequenceTracker {
    /// Takes the number of a packet.
    pub fn take(&mut self, number: u32) {
        self.past.received += 1;
        if !self.started {
            self.begin(number);
            return;
        }
        let extended = super::sequence::extend(number, self.highest);
        if extended.abs_diff(self.highest) > RESTART {
            self.far(number);
            return;
        }
        self.drop_candidate();
        if extended > self.highest {
            self.advance(extended);
        } else if self.highest - extended >= WINDOW {
            self.past.stale += 1;
        } else if extended < self.base {
            // Sent before what was seen first: the stream began earlier than thought.
            self.past.reordered += 1;
            self.base = extended;
            self.mark(extended);
        } else if self.is_marked(extended) {
            self.past.duplicated += 1;
        } else {
            self.past.reordered += 1;
            self.mark(extended);
        }
    }

    fn begin(&mut self, number: u32) {
        self.started = true;
        self.base = super::sequence::first(number);
        self.highest = self.base;
        self.unique = 0;
        self.seen = [0; (WINDOW / 64) as usize];
        self.mark(self.highest);
    }

    /// One far number is damage; a second that follows it is a sender that began anew.
    fn far(&mut self, number: u32) {
        match self.candidate.take() {
            Some(candidate) if number.wrapping_sub(candidate).wrapping_sub(1) < 8 => {
                let epoch = self.counts();
                self.past.expected = epoch.expected;
                self.past.lost = epoch.lost;
                self.past.restarts += 1;
                self.begin(candidate);
                self.advance(super::sequence::extend(number, self.highest));
            }
            Some(_) => {
                self.past.strays += 1;
                self.candidate = Some(number);
            }
            None => self.candidate = Some(number),
        }
    }

    fn drop_candidate(&mut self) {
        if self.candidate.take().is_some() {
            self.past.strays += 1;
        }
    }

    fn advance(&mut self, to: u64) {
        if to - self.highest >= WINDOW {
            self.seen = [0; (WINDOW / 64) as usize];
        } else {
            for number in self.highest + 1..to {
                let (word, bit) = place(number);
                self.seen[word] &= !bit;
            }
        }
        self.highest = to;
        self.mark(to);
    }

    fn mark(&mut self, number: u64) {
        let (word, bit) = place(number);
        self.seen[word] |= bit;
        self.unique += 1;
    }

    fn is_marked(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.seen[word] & bit != 0
    }

    /// Counts so far. Lost includes what may still come late.
    #[must_use]
    pub fn counts(&self) -> SequenceCounts {
        let mut counts = self.past;
        if self.started {
            let expected = self.highest - self.base + 1;
            counts.expected += expected;
            counts.lost += expected - self.unique;
        }
        counts.strays += u64::from(self.candidate.is_some());
        counts
    }
}

const fn place(number: u64) -> (usize, u64) {
    ((number % WINDOW / 64) as usize, 1 << (number % 64))
}

/// What tells streams apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamKey {
    /// Outer source.
    pub source: IpAddr,
    /// Outer destination.
    pub destination: IpAddr,
    /// GRE key, or ERSPAN session; 0 without.
    pub key: u32,
    /// GRE protocol type.
    pub protocol: u16,
}

/// Streams by their keys, at most [`Tunnels::CAPACITY`].
#[derive(Debug, Default)]
pub struct Tunnels {
    streams: Vec<(StreamKey, SequenceTracker)>,
    /// Packets of streams that there was no room for.
    pub untracked: u64,
    last: usize,
}

impl Tunnels {
    /// More mirrors than one collector has. Looked through one by one: packets of a stream come together.
    pub const CAPACITY: usize = 256;

    /// Takes the number of a packet of a stream.
    pub fn take(&mut self, key: &StreamKey, number: u32) {
        let known = match self.streams.get(self.last) {
            Some((last, _)) if last == key => Some(self.last),
            _ => self.streams.iter().position(|(known, _)| known == key),
        };
        let place = match known {
            Some(place) => place,
            None if self.streams.len() < Self::CAPACITY => {
                self.streams.push((*key, SequenceTracker::default()));
                self.streams.len() - 1
            }
            None => {
                self.untracked += 1;
                return;
            }
        };
        self.last = place;
        self.streams[place].1.take(number);
    }

    /// All streams, in the order in which they appeared.
    pub fn streams(&self) -> impl Iterator<Item = (&StreamKey, SequenceCounts)> {
        self.streams
            .iter()
            .map(|(key, tracker)| (key, tracker.counts()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(numbers: impl IntoIterator<Item = u32>) -> SequenceCounts {
        let mut tracker = SequenceTracker::default();
        numbers.into_iter().for_each(|number| tracker.take(number));
        tracker.counts()
    }

    /// Scenario 53: wrap, duplicates, reordering, restart, losses; two of them around the wrap.
    #[test]
    fn s53_wrap_duplicates_reordering_and_restart() {
        let mut order: Vec<u32> = (0..600)
            .filter(|at| !(100..110).contains(at) && *at != 255 && *at != 256)
            .collect();
        let find = |order: &[u32], wanted| order.iter().position(|&at| at == wanted).unwrap();
        let swap = find(&order, 300);
        order.swap(swap, swap + 1);
        let late = find(&order, 400);
        let moved = order.remove(late);
        order.insert(late + 7, moved);
        for twice in [450, 451] {
            let at = find(&order, twice);
            order.insert(at + 1, twice);
        }
        let numbers = order.into_iter().map(|at| 0xffff_ff00u32.wrapping_add(at));
        let anew = [0, 1, 2, 4, 5].map(|at| 3_000_000_000u32 + at);
        let counts = run(numbers.chain(anew));
        assert_eq!(counts.received, 595);
        assert_eq!((counts.lost, counts.duplicated), (13, 2));
        assert_eq!((counts.reordered, counts.restarts), (2, 1));
        assert_eq!((counts.stale, counts.strays), (0, 0));
        assert_eq!(counts.expected, 606);
    }

    /// Scenario 54: two sources with one key.
    #[test]
    fn s54_sources_have_their_own_numbers() {
        let mut tunnels = Tunnels::default();
        for at in (0..200u32).filter(|&at| at != 40) {
            let odd = at % 2 == 1;
            let key = StreamKey {
                source: IpAddr::from([198, 51, 100, 1 + u8::from(odd)]),
                destination: IpAddr::from([203, 0, 113, 1]),
                key: 7,
                protocol: 0x6558,
            };
            tunnels.take(&key, if odd { 1000 } else { 900_000 } + at / 2);
        }
        let counts: Vec<_> = tunnels.streams().map(|(_, counts)| counts).collect();
        assert_eq!((counts[0].received, counts[0].lost), (99, 1));
        assert_eq!((counts[1].received, counts[1].lost), (100, 0));
    }

    #[test]
    fn a_stray_number_is_no_restart() {
        let counts = run((0..100).chain([4_000_000]).chain(100..200));
        assert_eq!((counts.lost, counts.restarts, counts.strays), (0, 0, 1));
        assert_eq!(counts.expected, 200);
    }

    proptest! {
        /// Whatever is dropped, doubled and swapped: to the packet.
        #[test]
        fn counts_are_exact(start: u32, fates in prop::collection::vec(0u8..20, 2..3000)) {
            let mut numbers = Vec::new();
            let (mut lost, mut duplicated, mut highest) = (0, 0, 0);
            for (at, fate) in fates.iter().enumerate() {
                let number = start.wrapping_add(at as u32);
                let first_or_last = at == 0 || at + 1 == fates.len();
                match fate {
                    0 if !first_or_last => { lost += 1; continue }
                    1 => { numbers.push(number); numbers.push(number); duplicated += 1 }
                    _ => numbers.push(number),
                }
                highest = at as u64;
            }
            let counts = run(numbers);
            prop_assert_eq!(counts.lost, lost);
            prop_assert_eq!(counts.duplicated, duplicated);
            prop_assert_eq!(counts.reordered + counts.stale + counts.restarts + counts.strays, 0);
            prop_assert_eq!(counts.expected, highest + 1);
        }

        #[test]
        fn nothing_panics(numbers in prop::collection::vec(any::<u32>(), 0..500)) {
            let counts = run(numbers.iter().copied());
            prop_assert_eq!(counts.received, numbers.len() as u64);
        }
    }
}
