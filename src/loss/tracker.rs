//! The life of flows: which flow a segment belongs to, when a flow begins, begins anew and ends.

use hdrhistogram::Histogram;

use super::acknowledge::acknowledge;
use super::anomaly::{Slab, NONE};
use super::counts::Counts;
use super::data::{is_overtaken, take, Surroundings};
use super::flow::{flow_mark, mark, Direction, Flow, Stage};
use super::key::{FlowKey, Way};
use super::report::{Ending, FlowReport, Totals};
use super::segment::{flags, Segment};
use super::settle::settle;
use super::table::Table;
use super::Settings;

/// Round trips up to this are told apart, microseconds: a minute.
const LONGEST_ROUND_TRIP_US: u64 = 60_000_000;
/// The two histograms.
pub(super) const FIXED_BYTES: usize = 1 << 20;
/// Packets of one side alone that make a flow more than an opening.
const ONE_SIDED_PACKETS: u32 = 8;
/// Without IP identification two transmissions within a tick of the sender's clock look alike.
const TIMESTAMP_TICK_US: u64 = 2_000;
/// What is certainly sooner than any retransmission, where no round trip is known.
const SOON_NS: u64 = 3_000_000;

/// The tracker. See the module `loss`.
pub struct Tracker {
    settings: Settings,
    table: Table,
    slab: Slab,
    totals: Totals,
    client_side: Histogram<u64>,
    server_side: Histogram<u64>,
}

impl Tracker {
    /// Makes a tracker; all memory that it ever takes is reserved here.
    ///
    /// # Panics
    /// Never: the bounds of the histograms are constants that are valid.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, LONGEST_ROUND_TRIP_US, 2).expect("valid constant bounds")
        };
        Self {
            settings,
            table: Table::new(settings.flows, settings.seed),
            slab: Slab::new(settings.blocks, settings.spills),
            totals: Totals::default(),
            client_side: histogram(),
            server_side: histogram(),
        }
    }

    /// Takes one segment that was seen at `now_ns`. Flows that end by it go to `ended`: the same
    /// addresses used anew, or thrown out to make room.
    #[inline]
    pub fn segment(
        &mut self,
        now_ns: u64,
        key: &FlowKey,
        way: Way,
        segment: &Segment,
        ended: &mut impl FnMut(&FlowReport),
    ) {
        self.totals.segments += 1;
        let slot = self.flow(now_ns, key, ended);
        let flow = self.table.get(slot);
        let last_ns = flow.last_ns;
        flow.last_ns = last_ns.max(now_ns);
        flow.marks |= flow_mark::USED;
        if let Some(measured) = in_order(flow, way, segment, now_ns) {
            if measured != 0 {
                self.round_trip(slot, way, measured);
            }
            return;
        }
        self.slow(slot, now_ns, last_ns, way, segment, ended);
    }

    /// The slot of a flow, made if it is not there.
    #[inline]
    fn flow(&mut self, now_ns: u64, key: &FlowKey, ended: &mut impl FnMut(&FlowReport)) -> u32 {
        let hash = self.table.hash(key);
        if let Some(slot) = self.table.find(key, hash) {
            if !self.is_idle(slot, now_ns) {
                return slot;
            }
            self.end(slot, Ending::Idle, ended);
        } else if self.table.is_full() {
            if let Some(victim) = self.table.victim() {
                self.end(victim, Ending::Evicted, ended);
            }
        }
        self.table.insert(hash, Flow::new(*key, now_ns))
    }

    fn is_idle(&mut self, slot: u32, now_ns: u64) -> bool {
        let settings = &self.settings;
        let flow = self.table.get(slot);
        let patience = match flow.stage {
            Stage::Opening => settings.opening_ns,
            Stage::Open => settings.idle_ns,
            // A connection that goes on after its end is looked at all the same.
            Stage::Over => settings.over_ns,
        };
        now_ns.saturating_sub(flow.last_ns) > patience
    }

    fn slow(
        &mut self,
        slot: u32,
        now_ns: u64,
        last_ns: u64,
        way: Way,
        segment: &Segment,
        ended: &mut impl FnMut(&FlowReport),
    ) {
        let mut slot = slot;
        if self.is_reuse(slot, way, segment) {
            // Row 2: the same addresses and ports, another connection.
            let key = self.table.get(slot).key;
            self.end(slot, Ending::Reused, ended);
            let hash = self.table.hash(&key);
            slot = self.table.insert(hash, Flow::new(key, now_ns));
            let (sender, _) = self.table.get(slot).pair(way);
            self.slab.open(&mut sender.block).notes.counts.tuple_reuses += 1;
        }
        if self.is_after_reset(slot, way, segment) {
            return;
        }
        self.restart_direction(slot, now_ns, way, segment);
        for way in [Way::Up, Way::Down] {
            self.settle(slot, now_ns, way, false);
        }
        let flow = self.table.get(slot);
        let loop_us = flow.loop_us();
        let (sender, receiver) = flow.pair(way);
        if is_duplicate(sender, segment, now_ns, last_ns, loop_us, &self.settings) {
            self.slab
                .open(&mut sender.block)
                .notes
                .counts
                .mirror_duplicates += 1;
            return;
        }
        count_packet(sender, receiver, segment);
        if segment.window == 0 && !segment.has_any(flags::SYN | flags::FIN | flags::RST) {
            self.slab.open(&mut sender.block).notes.counts.zero_windows += 1;
        }
        if segment.flags & (flags::SYN | flags::ACK) == flags::SYN {
            flow.note_client(way);
        } else if segment.has(flags::SYN) {
            flow.note_client(way.reverse());
        }
        let (sender, receiver) = flow.pair(way);
        let mut foreign = false;
        let mut measured = None;
        if segment.has(flags::ACK) && !segment.has(flags::RST) {
            let told = acknowledge(&mut self.slab, receiver, sender, segment, now_ns);
            foreign = told.foreign;
            measured = told.round_trip_us;
        }
        let loop_us = flow.loop_us();
        let (sender, receiver) = flow.pair(way);
        if !foreign && !segment.has(flags::RST) {
            let around = Surroundings {
                now_ns,
                settings: &self.settings,
                loop_us,
                window_closed: receiver.packets > 0 && receiver.window == 0,
                receiver_syn: receiver.is(mark::SYN),
            };
            take(&mut self.slab, sender, segment, &around);
        }
        if !foreign {
            sender.window = segment.window;
        }
        for direction in [sender, receiver] {
            if direction.block == NONE && self.slab.is_exhausted() {
                // Something above may have wanted a block and got none.
                direction.set(mark::DEGRADED);
            }
        }
        if segment.has(flags::RST) {
            self.reset(slot, now_ns);
        }
        if let Some(measured) = measured {
            self.round_trip(slot, way, u64::from(measured));
        }
        self.restage(slot, way, segment);
    }

    /// Whether a segment opens another connection on the addresses and ports of this flow.
    fn is_reuse(&mut self, slot: u32, way: Way, segment: &Segment) -> bool {
        if segment.flags & (flags::SYN | flags::ACK | flags::RST) != flags::SYN {
            return false;
        }
        let flow = self.table.get(slot);
        let closed = flow.is(flow_mark::RESET);
        let (sender, _) = flow.pair(way);
        if !sender.is(mark::NEXT) {
            return closed;
        }
        let known = sender.is(mark::SYN) && segment.sequence == sender.base;
        closed || !known && !is_overtaken(sender, segment)
    }

    /// After a reset nothing counts, unless the connection goes on where it was: then the reset was
    /// ignored, as it should be if it was injected (RFC 5961).
    fn is_after_reset(&mut self, slot: u32, way: Way, segment: &Segment) -> bool {
        let flow = self.table.get(slot);
        if !flow.is(flow_mark::RESET) || segment.has(flags::SYN) {
            return false;
        }
        let (sender, _) = flow.pair(way);
        let goes_on = segment.payload > 0
            && !segment.has(flags::RST)
            && sender.is(mark::NEXT)
            && segment.sequence == sender.next.get() as u32;
        let (block, reset) = (&mut sender.block, goes_on);
        let counts = &mut self.slab.open(block).notes.counts;
        if reset {
            counts.resets_ignored += 1;
            flow.marks &= !flow_mark::RESET;
            return false;
        }
        counts.after_reset += 1;
        sender.packets = sender.packets.saturating_add(1);
        true
    }

    /// A SYN with acknowledgment whose number is not the known one begins its direction anew: the answer
    /// after a challenge ACK, a split handshake.
    fn restart_direction(&mut self, slot: u32, now_ns: u64, way: Way, segment: &Segment) {
        if !segment.has(flags::SYN | flags::ACK) {
            return;
        }
        let flow = self.table.get(slot);
        let (sender, _) = flow.pair(way);
        let known = !sender.is(mark::NEXT)
            || sender.is(mark::SYN) && segment.sequence == sender.base
            || is_overtaken(sender, segment);
        if known {
            return;
        }
        self.settle(slot, now_ns, way, true);
        let (sender, _) = self.table.get(slot).pair(way);
        let mut fresh = Direction::NEW;
        fresh.packets = sender.packets;
        fresh.data_packets = sender.data_packets;
        fresh.unique = sender.unique;
        fresh.block = sender.block;
        fresh.limit = sender.limit;
        fresh.largest = sender.largest;
        *sender = fresh;
        self.slab.open(&mut sender.block).notes.counts.resyncs += 1;
    }

    fn settle(&mut self, slot: u32, now_ns: u64, way: Way, end: bool) {
        let (direction, _) = self.table.get(slot).pair(way);
        if direction.block != NONE {
            let mut view = self.slab.view(direction.block);
            settle(direction, &mut view, now_ns, &self.settings, end);
        }
    }

    fn reset(&mut self, slot: u32, now_ns: u64) {
        for way in [Way::Up, Way::Down] {
            self.settle(slot, now_ns, way, true);
        }
        self.table.get(slot).marks |= flow_mark::RESET;
    }

    /// Moves a flow to the queue where it belongs now.
    fn restage(&mut self, slot: u32, way: Way, segment: &Segment) {
        let flow = self.table.get(slot);
        let closed = flow.directions.iter().all(|side| side.is(mark::FIN));
        let reset = flow.is(flow_mark::RESET);
        let (sender, receiver) = flow.pair(way);
        let answers = receiver.packets > 0
            && segment.has(flags::ACK)
            && !segment.has_any(flags::SYN | flags::RST);
        let stage = if reset || closed {
            Stage::Over
        } else if answers || sender.packets >= ONE_SIDED_PACKETS {
            Stage::Open
        } else {
            Stage::Opening
        };
        // Back only from an end that was none.
        let moves = match flow.stage {
            Stage::Opening => stage != Stage::Opening,
            Stage::Open => stage == Stage::Over,
            Stage::Over => stage == Stage::Open,
        };
        if moves {
            self.table.requeue(slot, stage);
        }
    }

    /// Notes a round trip of the data that goes against `way`, whose sender has just acknowledged.
    fn round_trip(&mut self, slot: u32, way: Way, measured_us: u64) {
        let histogram = if self.table.get(slot).client() == way {
            &mut self.client_side
        } else {
            &mut self.server_side
        };
        histogram.saturating_record(measured_us);
    }

    /// Notes that a fragment with this segment's header came whose datagram is not complete: what it
    /// leaves open is not lost.
    pub fn fragment(&mut self, key: &FlowKey, way: Way, complete: bool) {
        let hash = self.table.hash(key);
        if let Some(slot) = self.table.find(key, hash) {
            let (sender, _) = self.table.get(slot).pair(way);
            if complete {
                sender.clear(mark::FRAGMENT);
            } else {
                sender.set(mark::FRAGMENT);
            }
        }
    }

    /// Ends flows that were silent for too long by `now_ns`, looking at no more than `budget` of each
    /// kind. To be called often with a small budget.
    pub fn expire(&mut self, now_ns: u64, budget: usize, ended: &mut impl FnMut(&FlowReport)) {
        for stage in [Stage::Opening, Stage::Open, Stage::Over] {
            for _ in 0..budget {
                let Some(slot) = self.table.oldest(stage) else {
                    break;
                };
                if self.is_idle(slot, now_ns) {
                    self.end(slot, Ending::Idle, ended);
                } else if self.table.get(slot).is(flow_mark::USED) {
                    for way in [Way::Up, Way::Down] {
                        self.settle(slot, now_ns, way, false);
                    }
                    self.table.requeue(slot, stage);
                } else {
                    // Put in no longer ago than it was used: all after it are younger.
                    break;
                }
            }
        }
    }

    /// Ends all flows.
    pub fn finish(&mut self, ended: &mut impl FnMut(&FlowReport)) {
        for stage in [Stage::Opening, Stage::Open, Stage::Over] {
            while let Some(slot) = self.table.oldest(stage) {
                self.end(slot, Ending::Finished, ended);
            }
        }
    }

    fn end(&mut self, slot: u32, ending: Ending, ended: &mut impl FnMut(&FlowReport)) {
        let now_ns = self.table.get(slot).last_ns;
        for way in [Way::Up, Way::Down] {
            self.settle(slot, now_ns, way, true);
        }
        let flow = self.table.get(slot);
        let counts = [0, 1].map(|side| {
            let direction = &mut flow.directions[side];
            let mut counts = self.slab.release(&mut direction.block);
            finish_counts(direction, &mut counts);
            counts
        });
        let report = FlowReport::new(flow, ending, counts);
        self.table.remove(slot);
        self.totals.add(&report);
        ended(&report);
    }

    /// Sums over all flows that have ended.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Round trips from us to the initiators of connections and back, microseconds.
    #[must_use]
    pub const fn client_side(&self) -> &Histogram<u64> {
        &self.client_side
    }

    /// Round trips from us to the accepting sides and back, microseconds.
    #[must_use]
    pub const fn server_side(&self) -> &Histogram<u64> {
        &self.server_side
    }

    /// Flows, blocks and spills in use.
    #[must_use]
    pub fn in_use(&self) -> [usize; 3] {
        let (blocks, spills) = self.slab.in_use();
        [self.table.len(), blocks, spills]
    }
}

fn finish_counts(direction: &Direction, counts: &mut Counts) {
    counts.packets += u64::from(direction.packets);
    counts.data_packets += u64::from(direction.data_packets);
    counts.unique_octets += direction.unique.get();
}

fn count_packet(sender: &mut Direction, receiver: &mut Direction, segment: &Segment) {
    sender.packets = sender.packets.saturating_add(1);
    if segment.payload > 0 {
        sender.note_size(segment.payload);
    }
    if segment.has(flags::SYN) && segment.maximum_segment > 0 {
        // It limits what the other side sends. Of this side nothing better is known until that one tells.
        receiver.limit = segment.maximum_segment;
        if sender.limit == 0 {
            sender.limit = segment.maximum_segment;
        }
    }
    sender.note_identification(segment);
}

/// Row 1: whether a segment is a second copy of one transmission.
fn is_duplicate(
    sender: &mut Direction,
    segment: &Segment,
    now_ns: u64,
    last_ns: u64,
    loop_us: Option<u64>,
    settings: &Settings,
) -> bool {
    let identity = segment.identity();
    let numbered = segment.identification.is_some_and(|number| number != 0);
    let occupies = segment.payload > 0 || segment.has_any(flags::SYN | flags::FIN);
    // Without a number an acknowledgment that repeats another is nothing unusual.
    let window_ns = if numbered {
        settings.duplicate_ns
    } else if !occupies {
        sender.push_recent(identity, now_ns);
        return false;
    } else {
        match loop_us {
            Some(loop_us) if segment.timestamps.is_some() && loop_us >= TIMESTAMP_TICK_US => {
                settings.duplicate_ns
            }
            // No answer to a loss can be there yet.
            Some(loop_us) => settings.duplicate_ns.min(loop_us * 900),
            None if segment.timestamps.is_some() => settings.duplicate_ns,
            None => settings.duplicate_ns.min(SOON_NS),
        }
    };
    if now_ns.saturating_sub(last_ns) > window_ns {
        sender.push_recent(identity, now_ns);
        return false;
    }
    sender.remember(identity, now_ns, window_ns)
}

/// Takes a segment that is in order in a flow that is in order, which nearly all are. `None` for any
/// other; else the round trip that it ended in microseconds, 0 for none.
#[inline]
fn in_order(flow: &mut Flow, way: Way, segment: &Segment, now_ns: u64) -> Option<u64> {
    if flow.stage != Stage::Open {
        return None;
    }
    let (sender, receiver) = flow.pair(way);
    const NEEDED: u16 = mark::NEXT | mark::ACKNOWLEDGED;
    const UNUSUAL: u16 = mark::WARMING
        | mark::FAST_OPEN
        | mark::WINDOW_PROBE
        | mark::DEGRADED
        | mark::FRAGMENT
        | mark::ASYMMETRIC;
    let both = sender.marks & receiver.marks;
    let next = sender.next.get();
    let ordinary = sender.block == NONE
        && receiver.block == NONE
        && both & NEEDED == NEEDED
        && (sender.marks | receiver.marks) & UNUSUAL == 0
        && segment.flags & !flags::PSH == flags::ACK
        && segment.sack_blocks == 0
        && segment.window != 0
        && receiver.window != 0
        && segment.sequence == next as u32;
    if !ordinary {
        return None;
    }
    let acknowledgeable = receiver.next.get().wrapping_sub(receiver.una());
    let advance = segment.acknowledgment.wrapping_sub(receiver.acknowledged);
    if u64::from(advance) > acknowledgeable {
        return None;
    }
    if advance == 0 && segment.payload == 0 {
        // Perhaps a duplicate acknowledgment, perhaps a second copy of one.
        return None;
    }
    if let (Some(timestamps), true) = (segment.timestamps, sender.is(mark::TIMESTAMP)) {
        if super::sequence::distance(timestamps.value, sender.timestamp) < 0 {
            return None;
        }
    }
    sender.push_recent(segment.identity(), now_ns);
    sender.packets = sender.packets.saturating_add(1);
    sender.note_identification(segment);
    sender.window = segment.window;
    if let Some(timestamps) = segment.timestamps {
        sender.timestamp = timestamps.value;
        sender.set(mark::TIMESTAMP);
    }
    let mut measured = None;
    if advance != 0 {
        let una = receiver.una() + u64::from(advance);
        measured = receiver.probed(una, now_ns);
        receiver.acknowledged = segment.acknowledgment;
        receiver.set(mark::PROGRESS);
        receiver.duplicate_acks = 0;
    }
    if segment.payload > 0 {
        sender.data_packets = sender.data_packets.saturating_add(1);
        let payload = u64::from(segment.payload);
        sender.note_size(segment.payload);
        sender.next.set(next + payload);
        sender.unique.set(sender.unique.get() + payload);
        sender.probe(next + payload, now_ns);
    }
    Some(u64::from(measured.unwrap_or(0)))
}
