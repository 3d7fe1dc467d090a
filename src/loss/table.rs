//! The bounded flow table: slots, an index over them, and who is thrown out when it is full.
//!
//! Nothing here grows after construction and no operation takes longer with more flows. The index is
//! open addressing under a secret seed, at most half full. Flows stand in three queues by what they are
//! worth. A flood of SYNs can fill the table but not push connections out: only where fewer than an
//! eighth of the slots are openings does a connection make room, the one unused for longest.

use foldhash::fast::FixedState;

use super::anomaly::NONE;
use super::flow::{flow_mark, Flow, Stage};
use super::key::FlowKey;

const EMPTY: u32 = u32::MAX;
const SLOT_BITS: u32 = 24;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// A table has at most so many flows: the index keeps eight bits of the hash beside a slot's number.
pub(super) const MAX_FLOWS: usize = SLOT_MASK as usize;
/// Connections that get a second chance when room is needed.
const SECOND_CHANCES: usize = 8;

#[derive(Clone, Copy)]
struct Queue {
    /// Last put in.
    head: u32,
    /// Next to go.
    tail: u32,
    length: usize,
}

/// See the module.
pub(super) struct Table {
    flows: Vec<Flow>,
    index: Vec<u32>,
    capacity: usize,
    /// Slots that were used and are not, linked by `behind`.
    free: u32,
    queues: [Queue; 3],
    seed: FixedState,
}

/// Memory of a flow: its slot and its places in the index.
pub(super) const FLOW_BYTES: usize = size_of::<Flow>() + 2 * size_of::<u32>();

impl Table {
    pub(super) fn new(capacity: usize, seed: u64) -> Self {
        let capacity = capacity.clamp(1, MAX_FLOWS);
        Self {
            flows: Vec::with_capacity(capacity),
            index: vec![EMPTY; capacity * 2],
            capacity,
            free: NONE,
            queues: [Queue {
                head: NONE,
                tail: NONE,
                length: 0,
            }; 3],
            seed: FixedState::with_seed(seed),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(|queue| queue.length).sum()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == self.capacity
    }

    #[inline]
    pub(super) fn get(&mut self, slot: u32) -> &mut Flow {
        &mut self.flows[slot as usize]
    }

    #[inline]
    pub(super) fn hash(&self, key: &FlowKey) -> u64 {
        key.hash(&self.seed)
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (((hash >> 32) * self.index.len() as u64) >> 32) as usize
    }

    #[inline]
    fn after(&self, place: usize) -> usize {
        if place + 1 == self.index.len() {
            0
        } else {
            place + 1
        }
    }

    #[inline]
    const fn entry(hash: u64, slot: u32) -> u32 {
        (hash as u32) << SLOT_BITS | slot
    }

    /// The slot of a flow.
    #[inline]
    pub(super) fn find(&self, key: &FlowKey, hash: u64) -> Option<u32> {
        let tag = Self::entry(hash, 0);
        let mut place = self.home(hash);
        loop {
            let entry = self.index[place];
            if entry == EMPTY {
                return None;
            }
            let slot = entry & SLOT_MASK;
            if entry & !SLOT_MASK == tag && self.flows[slot as usize].key == *key {
                return Some(slot);
            }
            place = self.after(place);
        }
    }

    /// Puts a flow that is not in it into the table, which must not be full.
    pub(super) fn insert(&mut self, hash: u64, flow: Flow) -> u32 {
        let slot = if self.free == NONE {
            debug_assert!(self.flows.len() < self.capacity);
            self.flows.push(flow);
            (self.flows.len() - 1) as u32
        } else {
            let slot = self.free;
            self.free = self.flows[slot as usize].behind;
            self.flows[slot as usize] = flow;
            slot
        };
        let mut place = self.home(hash);
        while self.index[place] != EMPTY {
            place = self.after(place);
        }
        self.index[place] = Self::entry(hash, slot);
        self.link(slot);
        slot
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, slot: u32) {
        let hash = self.hash(&self.flows[slot as usize].key);
        let entry = Self::entry(hash, slot);
        let mut place = self.home(hash);
        while self.index[place] != entry {
            place = self.after(place);
        }
        self.close_gap(place);
        self.unlink(slot);
        self.flows[slot as usize].behind = self.free;
        self.free = slot;
    }

    /// Empties a place of the index; what probing had pushed behind it moves up, so that no tombstones
    /// gather.
    fn close_gap(&mut self, mut gap: usize) {
        let length = self.index.len();
        let mut place = gap;
        loop {
            place = self.after(place);
            let entry = self.index[place];
            if entry == EMPTY {
                break;
            }
            let key = self.flows[(entry & SLOT_MASK) as usize].key;
            let home = self.home(self.hash(&key));
            let from_home = (place + length - home) % length;
            let from_gap = (place + length - gap) % length;
            if from_home >= from_gap {
                self.index[gap] = entry;
                gap = place;
            }
        }
        self.index[gap] = EMPTY;
    }

    /// Puts a flow at the head of the queue of its stage.
    fn link(&mut self, slot: u32) {
        let stage = self.flows[slot as usize].stage;
        let queue = &mut self.queues[stage as usize];
        let head = std::mem::replace(&mut queue.head, slot);
        queue.length += 1;
        if head == NONE {
            queue.tail = slot;
        } else {
            self.flows[head as usize].before = slot;
        }
        let flow = &mut self.flows[slot as usize];
        flow.before = NONE;
        flow.behind = head;
        flow.marks &= !flow_mark::USED;
    }

    fn unlink(&mut self, slot: u32) {
        let Flow {
            before,
            behind,
            stage,
            ..
        } = self.flows[slot as usize];
        let queue = &mut self.queues[stage as usize];
        queue.length -= 1;
        if before == NONE {
            queue.head = behind;
        }
        if behind == NONE {
            queue.tail = before;
        }
        if before != NONE {
            self.flows[before as usize].behind = behind;
        }
        if behind != NONE {
            self.flows[behind as usize].before = before;
        }
    }

    /// Moves a flow to the head of the queue of a stage.
    pub(super) fn requeue(&mut self, slot: u32, stage: Stage) {
        self.unlink(slot);
        self.flows[slot as usize].stage = stage;
        self.link(slot);
    }

    /// The flow of a stage that was put in first.
    pub(super) fn oldest(&self, stage: Stage) -> Option<u32> {
        let tail = self.queues[stage as usize].tail;
        (tail != NONE).then_some(tail)
    }

    /// Who has to make room. `None` only in an empty table.
    pub(super) fn victim(&mut self) -> Option<u32> {
        if let Some(over) = self.oldest(Stage::Over) {
            return Some(over);
        }
        let openings = self.queues[Stage::Opening as usize].length;
        let connections = self.queues[Stage::Open as usize].length;
        if openings > self.capacity / 8 || connections == 0 {
            return self.oldest(Stage::Opening);
        }
        for _ in 0..SECOND_CHANCES {
            let slot = self.oldest(Stage::Open)?;
            if !self.flows[slot as usize].is(flow_mark::USED) {
                return Some(slot);
            }
            self.requeue(slot, Stage::Open);
        }
        self.oldest(Stage::Open)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::key::End;
    use super::*;

    fn key(number: u32) -> FlowKey {
        let end = |address: u32, port| End {
            address: std::net::Ipv4Addr::from_bits(address).into(),
            port,
        };
        FlowKey::new(end(number, 1), end(0xc633_6401, 80), 0).0
    }

    fn insert(table: &mut Table, number: u32, stage: Stage) -> u32 {
        let key = key(number);
        let hash = table.hash(&key);
        let slot = table.insert(hash, Flow::new(key, 0));
        table.requeue(slot, stage);
        slot
    }

    fn find(table: &Table, number: u32) -> Option<u32> {
        table.find(&key(number), table.hash(&key(number)))
    }

    proptest! {
        /// As a map would have it, whatever comes and goes.
        #[test]
        fn it_finds_what_is_in_it(steps in prop::collection::vec((0u32..40, any::<bool>()), 1..400), seed: u64) {
            let mut table = Table::new(24, seed);
            let mut model = HashMap::new();
            for (number, add) in steps {
                if add {
                    if !model.contains_key(&number) && !table.is_full() {
                        model.insert(number, insert(&mut table, number, Stage::Open));
                    }
                } else if let Some(slot) = model.remove(&number) {
                    table.remove(slot);
                }
                prop_assert_eq!(table.len(), model.len());
                for number in 0..40 {
                    prop_assert_eq!(find(&table, number), model.get(&number).copied());
                }
            }
        }
    }

    #[test]
    fn openings_make_room_before_connections() {
        let mut table = Table::new(16, 1);
        for number in 0..12 {
            insert(&mut table, number, Stage::Open);
        }
        let first = insert(&mut table, 12, Stage::Opening);
        for number in 13..16 {
            insert(&mut table, number, Stage::Opening);
        }
        assert!(table.is_full());
        assert_eq!(table.victim(), Some(first));
        let over = find(&table, 5).unwrap();
        table.requeue(over, Stage::Over);
        assert_eq!(table.victim(), Some(over));
    }

    #[test]
    fn a_table_of_connections_gives_up_the_one_that_is_unused() {
        let mut table = Table::new(16, 1);
        for number in 0..16 {
            let slot = insert(&mut table, number, Stage::Open);
            if number != 3 {
                table.get(slot).marks |= flow_mark::USED;
            }
        }
        assert_eq!(table.victim(), find(&table, 3));
        let again = table.victim().unwrap();
        table.remove(again);
        assert!(table.victim().is_some());
    }

    #[test]
    fn an_empty_table_has_no_victim() {
        assert_eq!(Table::new(4, 0).victim(), None);
    }
}
