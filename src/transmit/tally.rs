//! From what became of packets to what became of copies: a copy in pieces is sent if all its pieces left, else
//! dropped, with the reason of the first that did not.
//!
//! Pure but for the counters. Pieces of one copy follow each other, so it is enough to remember one reason.

use crate::packet::Part;
use crate::reason::Reason;
use crate::worker::counters::TargetCounters;

/// What a message, or a packet on a ring, holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Packets that are pieces of copies.
    pub pieces: u32,
    /// Copies of which it holds the end.
    pub ends: u32,
    /// The copy of its last packet goes on in what follows.
    pub open: bool,
}

impl Extent {
    /// Of one packet.
    pub fn of(part: Part) -> Self {
        let mut extent = Self::default();
        extent.add(part);
        extent
    }

    /// Adds a packet.
    pub fn add(&mut self, part: Part) {
        self.pieces += u32::from(part != Part::Whole);
        self.ends += u32::from(part != Part::More);
        self.open = part == Part::More;
    }
}

/// Counts copies; one for each queue in which pieces keep their order.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Why the copy whose pieces are being told is lost, if it is.
    lost: Option<Reason>,
}

impl Tally {
    /// It left.
    pub fn sent(&mut self, extent: &Extent, counters: &TargetCounters) {
        if extent.pieces > 0 {
            counters.pieces.add(u64::from(extent.pieces));
        }
        let mut sent = extent.ends;
        if sent > 0 {
            if let Some(reason) = self.lost.take() {
                counters.dropped.add(reason, 1);
                sent -= 1;
            }
        }
        counters.sent_packets.add(u64::from(sent));
    }

    /// It did not.
    pub fn failed(&mut self, extent: &Extent, reason: Reason, counters: &TargetCounters) {
        let mut ends = extent.ends;
        if ends > 0 {
            counters.dropped.add(self.lost.take().unwrap_or(reason), 1);
            ends -= 1;
            counters.dropped.add(reason, u64::from(ends));
        }
        if extent.open {
            self.lost.get_or_insert(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Copies of 1 to 4 pieces, cut into messages anywhere, each sent or refused for one of two reasons.
        #[test]
        fn copies_are_counted_as_their_pieces_went(
            copies in prop::collection::vec(1usize..5, 1..40),
            messages in prop::collection::vec((1usize..6, 0u8..3), 1..200),
        ) {
            let parts: Vec<Part> = copies
                .iter()
                .flat_map(|&count| match count {
                    1 => vec![Part::Whole],
                    count => [vec![Part::More; count - 1], vec![Part::Last]].concat(),
                })
                .collect();
            let counters = TargetCounters::default();
            let mut tally = Tally::default();
            let mut fates = Vec::new();
            let mut at = 0;
            for (length, fate) in messages.into_iter().chain(std::iter::repeat((7, 0))) {
                if at == parts.len() {
                    break;
                }
                let mut extent = Extent::default();
                for _ in 0..length.min(parts.len() - at) {
                    extent.add(parts[at]);
                    fates.push(fate);
                    at += 1;
                }
                match fate {
                    0 => tally.sent(&extent, &counters),
                    1 => tally.failed(&extent, Reason::Congested, &counters),
                    _ => tally.failed(&extent, Reason::TxFull, &counters),
                }
            }
            let mut expected = [0u64; 3];
            let mut pieces = 0;
            let mut start = 0;
            for count in copies {
                let mine = &fates[start..start + count];
                start += count;
                let first = mine.iter().find(|&&fate| fate != 0).copied().unwrap_or(0);
                expected[usize::from(first)] += 1;
                if count > 1 {
                    pieces += mine.iter().filter(|&&fate| fate == 0).count() as u64;
                }
            }
            prop_assert_eq!(counters.sent_packets.get(), expected[0]);
            prop_assert_eq!(counters.dropped.get(Reason::Congested), expected[1]);
            prop_assert_eq!(counters.dropped.get(Reason::TxFull), expected[2]);
            prop_assert_eq!(counters.pieces.get(), pieces);
        }
    }
}
