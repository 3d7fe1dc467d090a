//! The packets on a transmit ring, oldest first: they complete in this order, and then it is known what became
//! of the copies that they are, or are pieces of.
//!
//! Never holds more than a ring of packets and as many lost copies; does not allocate once made.

use std::collections::VecDeque;

use super::tally::{Extent, Tally};
use crate::packet::Part;
use crate::reason::Reason;
use crate::worker::counters::TargetCounters;

/// A packet on the ring, or in place of one that did not get there.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Outer IP packet in bytes.
    length: u16,
    part: Part,
    lost: Option<Reason>,
}

/// See above.
#[derive(Debug)]
pub(super) struct InFlight {
    list: VecDeque<Entry>,
    /// Copies of which the end is in the list.
    copies: u64,
    tally: Tally,
    /// The last packet was a piece and others of its copy are to follow.
    open: bool,
    /// Packets that the device dropped and that will complete like those it sent.
    owed: u64,
}

impl InFlight {
    /// For a ring of `ring` packets.
    pub fn new(ring: usize) -> InFlight {
        InFlight {
            list: VecDeque::with_capacity(ring * 2),
            copies: 0,
            tally: Tally::default(),
            open: false,
            owed: 0,
        }
    }

    /// A packet is on the ring; `length` bytes from its IP header on.
    pub fn push(&mut self, length: u16, part: Part) {
        self.add(Entry {
            length,
            part,
            lost: None,
        });
    }

    /// A packet did not get on the ring, so its copy is lost. The copy's further pieces must be left out.
    pub fn lose(&mut self, reason: Reason, counters: &TargetCounters) {
        if !self.open {
            counters.dropped.add(reason, 1);
            return;
        }
        // Earlier pieces are on the ring: the copy is not settled before they are.
        self.add(Entry {
            length: 0,
            part: Part::Last,
            lost: Some(reason),
        });
    }

    fn add(&mut self, entry: Entry) {
        self.open = entry.part == Part::More;
        self.copies += u64::from(!self.open);
        self.list.push_back(entry);
    }

    /// The device dropped so many packets.
    pub fn owe(&mut self, packets: u64) {
        self.owed += packets;
    }

    /// So many packets have completed.
    pub fn complete(&mut self, packets: usize, counters: &TargetCounters) {
        for _ in 0..packets {
            self.settle_lost(counters);
            let Some(entry) = self.take() else { break };
            let extent = Extent::of(entry.part);
            if self.owed > 0 {
                self.owed -= 1;
                self.tally.failed(&extent, Reason::Congested, counters);
            } else {
                self.tally.sent(&extent, counters);
                counters.sent_bytes.add(u64::from(entry.length));
            }
        }
        self.settle_lost(counters);
        counters.in_flight.set(self.copies);
    }

    /// What is in the list will not complete any more.
    pub fn abandon(&mut self, reason: Reason, counters: &TargetCounters) {
        while let Some(entry) = self.take() {
            let reason = entry.lost.unwrap_or(reason);
            self.tally.failed(&Extent::of(entry.part), reason, counters);
        }
        self.owed = 0;
        counters.in_flight.set(0);
    }

    fn settle_lost(&mut self, counters: &TargetCounters) {
        while let Some(Entry {
            part,
            lost: Some(reason),
            ..
        }) = self.list.front().copied()
        {
            self.take();
            self.tally.failed(&Extent::of(part), reason, counters);
        }
    }

    fn take(&mut self) -> Option<Entry> {
        let entry = self.list.pop_front()?;
        self.copies -= u64::from(entry.part != Part::More);
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(counters: &TargetCounters) -> [u64; 5] {
        [
            counters.sent_packets.get(),
            counters.dropped.get(Reason::TxFull),
            counters.dropped.get(Reason::Congested),
            counters.in_flight.get(),
            counters.pieces.get(),
        ]
    }

    #[test]
    fn a_copy_is_sent_when_its_last_piece_is() {
        let counters = TargetCounters::default();
        let mut ring = InFlight::new(8);
        ring.push(700, Part::More);
        ring.push(700, Part::Last);
        ring.push(100, Part::Whole);
        ring.complete(1, &counters);
        assert_eq!(counted(&counters), [0, 0, 0, 2, 1]);
        ring.complete(2, &counters);
        assert_eq!(counted(&counters), [2, 0, 0, 0, 2]);
        assert_eq!(counters.sent_bytes.get(), 1500);
    }

    #[test]
    fn a_copy_whose_end_found_no_room_is_dropped_once_its_beginning_is_settled() {
        let counters = TargetCounters::default();
        let mut ring = InFlight::new(8);
        ring.push(100, Part::Whole);
        ring.push(700, Part::More);
        ring.lose(Reason::TxFull, &counters);
        // Nothing of this one is on the ring.
        ring.lose(Reason::TxFull, &counters);
        ring.complete(1, &counters);
        assert_eq!(counted(&counters), [1, 1, 0, 1, 0]);
        ring.complete(1, &counters);
        assert_eq!(counted(&counters), [1, 2, 0, 0, 1]);
    }

    #[test]
    fn what_the_device_dropped_and_what_never_completes() {
        let counters = TargetCounters::default();
        let mut ring = InFlight::new(8);
        ring.push(700, Part::More);
        ring.push(700, Part::Last);
        ring.owe(1);
        ring.complete(2, &counters);
        assert_eq!(counted(&counters), [0, 0, 1, 0, 1]);
        ring.push(700, Part::More);
        ring.push(700, Part::Last);
        ring.complete(1, &counters);
        ring.abandon(Reason::TxFull, &counters);
        assert_eq!(counted(&counters), [0, 1, 1, 0, 2]);
    }
}
