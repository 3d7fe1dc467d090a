//! The data of a segment: which of its bytes are new, fill a hole, or were seen before, and what that
//! means. Each range is classified once.

use super::acknowledge::{cut, FIRST_FLIGHT, LARGEST_WINDOW};
use super::anomaly::{hole, Fate, Hole, Repeat, Slab, View, NEVER, NONE};
use super::counts::Counts;
use super::flow::{mark, Direction};
use super::segment::{flags, Segment};
use super::sequence::{distance, extend, packets};
use super::settle::{commit_capture, commit_downstream, commit_spurious, merge_lowest, settle};
use super::Settings;

/// A timestamp that lies so far back is of another time (PAWS): 16 seconds even where the clock ticks in
/// microseconds. Reordering within a connection is not that old.
const ANCIENT_TICKS: i32 = 1 << 24;
/// RFC 5681 section 3.2 takes three duplicate acknowledgments for a loss; without a round trip to go by,
/// what is no later than this is taken for reordered.
const REORDER_NS: u64 = 3_000_000;
/// A SYN that comes this close before the data that was seen first has been overtaken by it.
const OVERTAKEN: u64 = 1 << 20;

/// What the other direction and the flow say.
pub(super) struct Surroundings<'a> {
    pub now_ns: u64,
    pub settings: &'a Settings,
    /// Shortest round trip between the ends, microseconds.
    pub loop_us: Option<u64>,
    /// Whether the receiver has closed its window.
    pub window_closed: bool,
    /// Whether the receiver's SYN was seen.
    pub receiver_syn: bool,
}

/// Sequence space of a segment, extended.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

/// Takes the data, SYN and FIN of `segment`, which `sender` sends.
pub(super) fn take(
    slab: &mut Slab,
    sender: &mut Direction,
    segment: &Segment,
    around: &Surroundings<'_>,
) {
    if segment.payload > 0 {
        sender.data_packets = sender.data_packets.saturating_add(1);
    }
    if !sender.is(mark::NEXT) {
        first(sender, segment, around.now_ns);
        note_timestamp(sender, segment);
        return;
    }
    let Some(start) = place(slab, sender, segment, around) else {
        return;
    };
    note_timestamp(sender, segment);
    if segment.has(flags::SYN) && syn(slab, sender, segment, start) {
        return;
    }
    if is_probe(slab, sender, segment, start, around) {
        return;
    }
    let data = start + u64::from(segment.has(flags::SYN));
    let fin = segment.has(flags::FIN);
    let mut span = Span {
        start: data,
        end: data + u64::from(segment.payload) + u64::from(fin),
    };
    if fin {
        sender.set(mark::FIN);
    }
    if span.start == span.end {
        return;
    }
    if span.start < sender.floor() {
        slab.open(&mut sender.block).notes.counts.before_pickup += 1;
        if span.end <= sender.floor() {
            return;
        }
        span.start = sender.floor();
    }
    receive(slab, sender, segment, span, around);
}

/// The first packet of a direction.
fn first(sender: &mut Direction, segment: &Segment, now_ns: u64) {
    let payload = u64::from(segment.payload);
    let fin = u64::from(segment.has(flags::FIN));
    if segment.has(flags::SYN) {
        sender.set(mark::SYN);
        if segment.has(flags::ACK) {
            sender.set(mark::SYN_ACK);
        }
        sender.begin(segment.sequence, 1 + payload + fin);
        if payload > 0 {
            sender.set(mark::FAST_OPEN);
        }
    } else {
        sender.set(mark::WARMING);
        sender.begin(segment.sequence, payload + fin);
    }
    if fin > 0 {
        sender.set(mark::FIN);
    }
    sender.unique.set(payload + fin);
    if payload > 0 || segment.has(flags::SYN) {
        sender.probe(sender.next.get(), now_ns);
    }
}

#[inline]
fn note_timestamp(sender: &mut Direction, segment: &Segment) {
    if let Some(timestamps) = segment.timestamps {
        if !sender.is(mark::TIMESTAMP) || distance(timestamps.value, sender.timestamp) > 0 {
            sender.timestamp = timestamps.value;
        }
        sender.set(mark::TIMESTAMP);
    }
}

/// The extended sequence number of a segment; `None` for what is not of this time.
fn place(
    slab: &mut Slab,
    sender: &mut Direction,
    segment: &Segment,
    around: &Surroundings<'_>,
) -> Option<u64> {
    let next = sender.next.get();
    let start = extend(segment.sequence, next);
    let age = match segment.timestamps {
        Some(timestamps) if sender.is(mark::TIMESTAMP) => {
            distance(sender.timestamp, timestamps.value)
        }
        _ => 0,
    };
    let far_behind = next.saturating_sub(start) > LARGEST_WINDOW;
    if age > ANCIENT_TICKS || far_behind && age > 0 {
        slab.open(&mut sender.block).notes.counts.old_duplicates += 1;
        return None;
    }
    // An older connection goes on behind a stray SYN.
    let stray_syn = sender.is(mark::SYN)
        && sender.una() <= sender.floor() + u64::from(!around.receiver_syn)
        && start > next + FIRST_FLIGHT;
    if far_behind || stray_syn {
        // More than any window away: the numbers have moved while nobody looked.
        resync(slab, sender, segment, around);
        return None;
    }
    Some(start)
}

/// Begins the direction anew at this segment. No hole: what lies between cannot be told.
fn resync(slab: &mut Slab, sender: &mut Direction, segment: &Segment, around: &Surroundings<'_>) {
    let Surroundings {
        now_ns, settings, ..
    } = *around;
    if sender.block != NONE {
        let mut view = slab.view(sender.block);
        settle(sender, &mut view, now_ns, settings, true);
    }
    slab.open(&mut sender.block).notes.counts.resyncs += 1;
    sender.clear(
        mark::SYN
            | mark::SYN_ACK
            | mark::PROBE
            | mark::FAST_OPEN
            | mark::WINDOW_PROBE
            | mark::ACKNOWLEDGED,
    );
    let unique = sender.unique.get();
    first(sender, segment, now_ns);
    sender.unique.set(sender.unique.get() + unique);
}

/// A SYN within a known direction; whether that is all there is to the segment.
fn syn(slab: &mut Slab, sender: &mut Direction, segment: &Segment, start: u64) -> bool {
    if sender.is(mark::SYN) {
        // Its number is the known one: the tracker begins anew for any other. With an acknowledgment for
        // the first time it is the second step of a simultaneous open (RFC 9293 figure 8), not a repeat.
        let answers = segment.has(flags::ACK) && !sender.is(mark::SYN_ACK);
        if answers {
            sender.set(mark::SYN_ACK);
        } else {
            slab.open(&mut sender.block).notes.counts.syn_retransmitted += 1;
        }
        sender.clear(mark::PROBE);
        return true;
    }
    // Overtaken by its data: see `is_overtaken`.
    let data = sender.floor();
    sender.set(mark::SYN);
    sender.clear(mark::WARMING);
    sender.base = segment.sequence;
    let shift = super::sequence::first(segment.sequence).wrapping_sub(start);
    let (next, una) = (sender.next.get(), sender.una());
    sender.next.set(next.wrapping_add(shift));
    sender.acknowledged = una as u32;
    let (from, to) = (sender.floor() + 1, data.wrapping_add(shift));
    if from < to {
        let opened = Hole {
            start: from,
            end: to,
            opened_ns: 0,
            acknowledged_ns: NEVER,
            timestamp: 0,
            identification: 0,
            marks: 0,
        };
        let mut view = slab.open(&mut sender.block);
        let _ = view.holes.insert(0, opened);
    }
    true
}

/// Whether the SYN of a direction comes after data of it: reordered at the beginning.
pub(super) fn is_overtaken(sender: &Direction, segment: &Segment) -> bool {
    if !sender.is(mark::NEXT) || sender.is(mark::SYN) || segment.payload > 0 {
        return false;
    }
    let start = extend(segment.sequence, sender.next.get()) + 1;
    let untroubled = sender.block == NONE;
    untroubled && start <= sender.floor() && sender.floor() - start < OVERTAKEN
}

/// Keep-alives and probes of a closed window: they carry nothing new and nothing was lost.
fn is_probe(
    slab: &mut Slab,
    sender: &mut Direction,
    segment: &Segment,
    start: u64,
    around: &Surroundings<'_>,
) -> bool {
    if segment.has_any(flags::SYN | flags::FIN | flags::RST) || segment.payload > 1 {
        return false;
    }
    let next = sender.next.get();
    // Everything must be acknowledged, else it is one byte sent again.
    if start + 1 == next && sender.una() >= next {
        let counts = &mut slab.open(&mut sender.block).notes.counts;
        if around.window_closed {
            counts.window_probes += 1;
        } else {
            counts.keep_alives += 1;
        }
        return true;
    }
    if segment.payload == 1 && start == next && around.window_closed {
        slab.open(&mut sender.block).notes.counts.window_probes += 1;
        sender.set(mark::WINDOW_PROBE);
        return true;
    }
    false
}

/// Bytes of one segment by what they are.
#[derive(Clone, Copy, Debug, Default)]
struct Filled {
    late: u64,
    reordered: u64,
    upstream: u64,
    /// Of holes that were merged.
    ambiguous: u64,
    late_us: u64,
}

impl Filled {
    const fn octets(&self) -> u64 {
        self.late + self.reordered + self.upstream + self.ambiguous
    }
}

/// Sorts the bytes of a segment.
fn receive(
    slab: &mut Slab,
    sender: &mut Direction,
    segment: &Segment,
    span: Span,
    around: &Surroundings<'_>,
) {
    let next = sender.next.get();
    sender.clear(mark::ASYMMETRIC);
    slab.fit(sender.block, 3);
    if span.start > next {
        open_hole(slab, sender, segment, span.start, around);
    }
    if span.end > next {
        sender.next.set(span.end);
        sender.clear(mark::WINDOW_PROBE);
    }
    let old = Span {
        start: span.start,
        end: span.end.min(next),
    };
    let new = span.end.saturating_sub(span.start.max(next));
    let mut filled = Filled::default();
    let mut seen = 0;
    if old.start < old.end {
        if sender.block != NONE {
            filled = fill(slab, sender, segment, old, around);
        }
        seen = old.end - old.start - filled.octets();
    }
    let fresh = new + filled.octets();
    sender.unique.set(sender.unique.get() + fresh);
    if filled.octets() > 0 {
        count_filled(slab, sender, &filled, next - old.end);
    }
    if seen > 0 {
        repeat(slab, sender, segment, old, seen, fresh, around);
    }
    if seen > 0 || filled.octets() > 0 {
        // Karn: from now on an acknowledgment may answer either copy.
        sender.clear(mark::PROBE);
    } else if segment.payload > 0 {
        sender.probe(span.end, around.now_ns);
    }
}

fn open_hole(
    slab: &mut Slab,
    sender: &mut Direction,
    segment: &Segment,
    end: u64,
    around: &Surroundings<'_>,
) {
    let mut marks = 0;
    if segment.timestamps.is_some() {
        marks |= hole::TIMESTAMP;
    }
    if segment.identification.is_some() {
        marks |= hole::IDENTIFICATION;
    }
    let opened = Hole {
        start: sender.next.get(),
        end,
        opened_ns: around.now_ns,
        acknowledged_ns: NEVER,
        timestamp: segment.timestamps.map_or(0, |timestamps| timestamps.value),
        identification: segment.identification.unwrap_or(0),
        marks,
    };
    let mut view = slab.open(&mut sender.block);
    if sender.block == NONE {
        sender.set(mark::DEGRADED);
    }
    if view.holes.is_full() {
        merge_lowest(&mut view);
    }
    view.holes.push(opened);
}

/// Fills holes with `old`, which lies below what was expected, and classifies each byte that does.
fn fill(
    slab: &mut Slab,
    sender: &mut Direction,
    segment: &Segment,
    old: Span,
    around: &Surroundings<'_>,
) -> Filled {
    let una = sender.una();
    let mut filled = Filled::default();
    let mut view = slab.view(sender.block);
    // One hole less after the cuts than room for them, or the rest of a hole stays open by its bytes.
    for at in [old.start, old.end, una] {
        let wanted = at > old.start && at < old.end || at == old.start || at == old.end;
        if wanted && needs_cut(&view, at) && !cut(&mut view.holes, at) {
            merge_lowest(&mut view);
            cut(&mut view.holes, at);
        }
    }
    let mut place = 0;
    while place < view.holes.len() {
        let found = view.holes.as_slice()[place];
        if found.start >= old.end {
            break;
        }
        if found.start < old.start || found.end > old.end {
            place += 1;
            continue;
        }
        view.holes.remove(place);
        let octets = found.octets();
        let acknowledged_ns = if found.is_acknowledged() {
            found.acknowledged_ns
        } else if found.end <= una {
            around.now_ns
        } else {
            NEVER
        };
        if acknowledged_ns == NEVER {
            if is_reordered(sender, segment, &found, around) {
                filled.reordered += octets;
                let late_ns = around.now_ns.saturating_sub(found.opened_ns);
                filled.late_us = filled.late_us.max(late_ns / 1000);
            } else {
                filled.upstream += octets;
            }
        } else if around.now_ns.saturating_sub(acknowledged_ns) >= around.settings.grace_ns {
            // Too late to be the copy that was acknowledged: that one is lost, this one is another.
            commit_capture(sender, view.notes, &found);
        } else {
            filled.late += octets;
        }
    }
    filled.ambiguous = fill_merged(&mut view, old);
    filled
}

fn needs_cut(view: &View<'_>, at: u64) -> bool {
    let holes = view.holes.as_slice();
    holes.iter().any(|found| found.start < at && at < found.end)
}

/// Octets of `old` that may be those missing in the merged range.
fn fill_merged(view: &mut View<'_>, old: Span) -> u64 {
    let merged = &mut view.notes.merged;
    if merged.events == 0 {
        return 0;
    }
    let overlap = old
        .end
        .min(merged.end)
        .saturating_sub(old.start.max(merged.start));
    let taken = overlap.min(merged.octets);
    merged.octets -= taken;
    taken
}

/// Whether bytes that come late were overtaken, not lost and sent again. Rows 10 to 15, best evidence
/// first.
fn is_reordered(
    sender: &Direction,
    segment: &Segment,
    found: &Hole,
    around: &Surroundings<'_>,
) -> bool {
    // 1. A timestamp tells when the segment was sent (RFC 7323 section 3.2), also of a retransmission.
    if let (Some(timestamps), true) = (segment.timestamps, found.is(hole::TIMESTAMP)) {
        let newer = distance(timestamps.value, found.timestamp);
        if newer != 0 {
            return newer < 0;
        }
    }
    // 2. A retransmission comes no sooner than the news of the loss has gone round.
    let late_ns = around.now_ns.saturating_sub(found.opened_ns);
    if let Some(loop_us) = around.loop_us {
        if late_ns < loop_us * 900 {
            return true;
        }
    }
    // 3. The receiver has told that it misses them.
    if found.is(hole::MISSED) {
        return false;
    }
    // 4. A counter in the IP header.
    if let (Some(identification), true) = (segment.identification, found.is(hole::IDENTIFICATION)) {
        if sender.counts_identification() {
            return (identification.wrapping_sub(found.identification) as i16) < 0;
        }
    }
    // 5. A guess.
    around.loop_us.is_none() && late_ns < REORDER_NS
}

fn count_filled(slab: &mut Slab, sender: &mut Direction, filled: &Filled, beyond: u64) {
    let size = sender.segment_size();
    let notes = slab.open(&mut sender.block).notes;
    let counts = &mut notes.counts;
    if filled.upstream > 0 {
        let estimate = packets(filled.upstream, size);
        counts.upstream_loss.add(filled.upstream, estimate);
    }
    if filled.reordered > 0 {
        let estimate = packets(filled.reordered, size);
        counts.reordered.add(filled.reordered, estimate);
        note_extent(counts, beyond, size, filled.late_us);
    }
    if filled.late > 0 {
        counts
            .late_after_ack
            .add(filled.late, packets(filled.late, size));
    }
    if filled.ambiguous > 0 {
        counts.ambiguous_packets += 1;
    }
}

fn note_extent(counts: &mut Counts, beyond: u64, size: u64, late_us: u64) {
    let extent = packets(beyond, size);
    counts.reorder_extent_octets = counts.reorder_extent_octets.max(beyond);
    counts.reorder_extent_packets = counts.reorder_extent_packets.max(extent);
    counts.reorder_late_us = counts.reorder_late_us.max(late_us);
}

/// Bytes that were seen before. Reordering is out of the question now; rows 16 to 19.
fn repeat(
    slab: &mut Slab,
    sender: &mut Direction,
    segment: &Segment,
    old: Span,
    seen: u64,
    fresh: u64,
    around: &Surroundings<'_>,
) {
    let una = sender.una();
    let size = sender.segment_size();
    let full_size = sender
        .announced_size()
        .is_some_and(|announced| segment.payload >= u32::from(announced));
    let rejected = sender.is(mark::FAST_OPEN) && old.start <= sender.floor() + 1;
    let View {
        mut repeats, notes, ..
    } = slab.open(&mut sender.block);
    let counts = &mut notes.counts;
    if segment.has(flags::FIN) && segment.payload == 0 && fresh == 0 {
        counts.fin_retransmitted += 1;
    }
    if rejected {
        counts.fast_open_rejected += 1;
        sender.clear(mark::FAST_OPEN);
        return;
    }
    if around.window_closed && old.start == una && fresh == 0 {
        counts.window_probes += 1;
        return;
    }
    if full_size && old.start == una {
        notes.stuck = notes.stuck.saturating_add(1);
        counts.full_size_stuck = counts.full_size_stuck.max(u64::from(notes.stuck));
    }
    // What fills a hole as well counts there as a packet, here by its octets only.
    let partly = fresh > 0 && segment.payload > 0 && old.end - old.start > seen;
    let mut again = Repeat {
        start: old.start,
        end: old.end,
        seen_ns: around.now_ns,
        octets: u32::try_from(seen).unwrap_or(u32::MAX),
        packets: if partly {
            0
        } else {
            packets(seen, size) as u32
        },
        timestamp: segment.timestamps.map_or(0, |timestamps| timestamps.value),
        has_timestamp: segment.timestamps.is_some(),
        fate: Fate::Pending,
    };
    super::settle::commit_repeat(&mut counts.retransmitted, &again);
    let within = |&(left, right): &(u64, u64)| left <= old.start && old.end <= right;
    if old.end <= una || notes.sacked().iter().any(within) {
        again.fate = Fate::Spurious;
        commit_spurious(notes, &again);
    }
    if repeats.is_full() {
        let oldest = repeats.remove(0);
        if oldest.fate != Fate::Spurious && sender.is(mark::PROGRESS) {
            commit_downstream(notes, &oldest);
        }
    }
    repeats.push(again);
}
