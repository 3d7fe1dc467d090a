//! The acknowledgment of a segment: what its sender says about the data of the other direction.

use super::anomaly::{hole, Fate, Hole, List, Slab, View, NONE};
use super::flow::{mark, Direction};
use super::segment::{flags, Segment};
use super::sequence::{distance, extend};
use super::settle::{commit_spurious, commit_unresolved, merge_lowest};

/// No window is larger (RFC 7323 section 2.3): what is further away is not of this connection.
pub(super) const LARGEST_WINDOW: u64 = 1 << 30;
/// An answer to a bare SYN acknowledges at most what a SYN and its data can be.
pub(super) const FIRST_FLIGHT: u64 = 65_535;

/// What an acknowledgment says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// It is not of this connection, and neither is the rest of the segment.
    pub foreign: bool,
    /// A round trip from us to the receiver and back, microseconds, if it was measured in order.
    pub round_trip_us: Option<u32>,
}

/// Ranges of a SACK option, extended.
struct Sacked {
    blocks: [(u64, u64); 4],
    length: usize,
    /// The range that came twice (RFC 2883).
    duplicate: Option<(u64, u64)>,
}

impl Sacked {
    fn blocks(&self) -> &[(u64, u64)] {
        &self.blocks[..self.length]
    }
}

/// Takes the acknowledgment of `segment`, which `receiver` sends, for the data of `data`.
pub(super) fn acknowledge(
    slab: &mut Slab,
    data: &mut Direction,
    receiver: &Direction,
    segment: &Segment,
    now_ns: u64,
) -> Told {
    let mut told = Told::default();
    if !data.is(mark::NEXT) {
        if data.is(mark::ACKNOWLEDGED) && data.acknowledged != segment.acknowledgment {
            data.set(mark::PROGRESS);
        }
        data.acknowledged = segment.acknowledgment;
        data.set(mark::ACKNOWLEDGED);
        return told;
    }
    let una = data.una();
    let acknowledged = extend(segment.acknowledgment, una);
    if is_foreign(data, receiver, segment, acknowledged) {
        slab.open(&mut data.block).notes.counts.implausible_acks += 1;
        told.foreign = segment.payload == 0 && !segment.has_any(flags::SYN | flags::FIN);
        return told;
    }
    if segment.has(flags::SYN) && data.is(mark::FAST_OPEN) && acknowledged < data.next.get() {
        reject_fast_open(slab, data, acknowledged);
    }
    slab.fit(data.block, 2 * usize::from(segment.sack_blocks) + 1);
    let sacked = if segment.sack_blocks > 0 {
        Some(read_sack(slab, data, segment, acknowledged))
    } else {
        None
    };
    if acknowledged > una {
        told.round_trip_us = data.probed(acknowledged, now_ns);
        advance(slab, data, segment, acknowledged, now_ns);
        if data.block != NONE && slab.view(data.block).holes.len() > 0 {
            told.round_trip_us = None;
        }
    } else if acknowledged == una && is_duplicate(data, receiver, segment) {
        data.duplicate_acks = data.duplicate_acks.saturating_add(1);
        slab.open(&mut data.block).notes.counts.duplicate_acks += 1;
    }
    if data.block != NONE {
        let mut view = slab.view(data.block);
        if view.holes.len() > 0 {
            let blocks = sacked.as_ref().map_or(&[][..], Sacked::blocks);
            mark_holes(data, &mut view, blocks, acknowledged, now_ns);
        }
        if let Some(duplicate) = sacked.and_then(|sacked| sacked.duplicate) {
            take_duplicate_sack(&mut view, duplicate);
        }
    }
    told
}

/// Row 3: a peer that still has an older connection on these ports answers a SYN with an acknowledgment
/// of that one (challenge ACK, RFC 5961 section 4).
fn is_foreign(
    data: &Direction,
    receiver: &Direction,
    segment: &Segment,
    acknowledged: u64,
) -> bool {
    if !data.is(mark::SYN) || segment.has(flags::SYN) {
        return false;
    }
    let beyond = acknowledged > data.next.get() + FIRST_FLIGHT;
    let before = acknowledged < data.floor();
    // Where both sides have shown a SYN it is another one that this answers, if ours never was answered.
    let unanswered = data.una() == data.floor();
    !receiver.is(mark::SYN) && (beyond || before) || unanswered && beyond
}

/// The SYN-ACK leaves out what the SYN carried (RFC 7413 section 4.2): it will be sent again, and nothing
/// was lost.
fn reject_fast_open(slab: &mut Slab, data: &mut Direction, acknowledged: u64) {
    data.clear(mark::FAST_OPEN);
    let next = acknowledged.max(data.floor() + 1);
    let refused = data.next.get().saturating_sub(next);
    if refused > 0 {
        data.next.set(next);
        data.unique.set(data.unique.get().saturating_sub(refused));
        data.clear(mark::PROBE);
        slab.open(&mut data.block).notes.counts.fast_open_rejected += 1;
    }
}

fn read_sack(
    slab: &mut Slab,
    data: &mut Direction,
    segment: &Segment,
    acknowledged: u64,
) -> Sacked {
    let mut sacked = Sacked {
        blocks: [(0, 0); 4],
        length: 0,
        duplicate: None,
    };
    let mut implausible = 0;
    for &(left, right) in segment.sack_blocks() {
        let (left, right) = (extend(left, acknowledged), extend(right, acknowledged));
        let possible = left < right
            && right <= acknowledged + LARGEST_WINDOW
            && left + LARGEST_WINDOW >= acknowledged;
        if possible {
            sacked.blocks[sacked.length] = (left, right);
            sacked.length += 1;
        } else {
            implausible += 1;
        }
    }
    let counts = &mut slab.open(&mut data.block).notes.counts;
    counts.implausible_sacks += implausible;
    // RFC 2883 section 4: the first block is a duplicate if it is acknowledged or within the second.
    if sacked.length > 0 {
        let (left, right) = sacked.blocks[0];
        let within_second =
            sacked.length > 1 && sacked.blocks[1].0 <= left && right <= sacked.blocks[1].1;
        if right <= acknowledged || within_second {
            sacked.duplicate = Some((left, right));
            sacked.blocks.copy_within(1.., 0);
            sacked.length -= 1;
            counts.dsack_blocks += 1;
        }
    }
    let length = sacked.length;
    sacked.blocks[..length].sort_unstable();
    let view = slab.open(&mut data.block);
    view.notes.set_sacked(&sacked.blocks[..length]);
    slab.fit(data.block, 2 * length + 1);
    sacked
}

/// RFC 5681 section 2, with SACK blocks standing in for an unchanged window; MPTCP sends such
/// acknowledgments to carry options (RFC 8684 section 3.3.2).
fn is_duplicate(data: &Direction, receiver: &Direction, segment: &Segment) -> bool {
    segment.payload == 0
        && !segment.has_any(flags::SYN | flags::FIN | flags::RST)
        && data.next.get() > data.una()
        && (segment.window == receiver.window || segment.sack_blocks > 0)
        && !segment.multipath
}

/// The acknowledgment moves forward.
fn advance(
    slab: &mut Slab,
    data: &mut Direction,
    segment: &Segment,
    acknowledged: u64,
    now_ns: u64,
) {
    if data.block != NONE {
        let mut view = slab.view(data.block);
        view.notes.stuck = 0;
        judge_repeats(data, &mut view, segment, acknowledged, now_ns);
        for found in view.holes.as_mut_slice() {
            if !found.is_acknowledged() && acknowledged >= found.end {
                found.acknowledged_ns = now_ns;
            }
        }
    }
    let next = data.next.get();
    if data.is(mark::WINDOW_PROBE) && acknowledged == next + 1 {
        data.next.set(acknowledged);
        data.unique.set(data.unique.get() + 1);
    } else if acknowledged > next {
        acknowledge_unseen(slab, data, acknowledged, now_ns);
    }
    if acknowledged > data.floor() + 1 {
        data.clear(mark::FAST_OPEN);
    }
    data.clear(mark::WINDOW_PROBE | mark::WARMING);
    data.acknowledged = acknowledged as u32;
    data.set(mark::PROGRESS);
    data.duplicate_acks = 0;
}

/// The first acknowledgment that covers a retransmission tells whether it was needed: not if it answers a
/// segment sent before it (Eifel, RFC 3522), nor if it came sooner than any answer can. The echo is that of
/// the segment at the left edge of the window (RFC 7323 section 4.3): it speaks for no other.
fn judge_repeats(
    data: &Direction,
    view: &mut View<'_>,
    segment: &Segment,
    acknowledged: u64,
    now_ns: u64,
) {
    let una = data.una();
    let View { repeats, notes, .. } = view;
    for repeat in repeats.as_mut_slice() {
        if repeat.fate != Fate::Pending || acknowledged < repeat.end {
            continue;
        }
        let unneeded = match segment.timestamps {
            Some(timestamps) if repeat.has_timestamp && repeat.start <= una => {
                distance(timestamps.echo, repeat.timestamp) < 0
            }
            Some(_) => false,
            None => {
                let elapsed_us = now_ns.saturating_sub(repeat.seen_ns) / 1000;
                data.round_trip_us != 0 && elapsed_us * 2 < u64::from(data.round_trip_us)
            }
        };
        if unneeded {
            commit_spurious(notes, repeat);
            repeat.fate = Fate::Spurious;
        } else {
            repeat.fate = Fate::Acknowledged;
        }
    }
}

/// The receiver has bytes beyond all that was seen: lost by the capture at the end of what was sent, or
/// the two directions reach us skewed.
fn acknowledge_unseen(slab: &mut Slab, data: &mut Direction, acknowledged: u64, now_ns: u64) {
    let next = data.next.get();
    if data.is(mark::WARMING) {
        // Picked up at an old retransmission: what lies between was before our time.
        slab.open(&mut data.block).notes.counts.pickup_resyncs += 1;
        data.base = acknowledged as u32;
        data.next.set(data.floor());
        data.clear(mark::PROBE);
        return;
    }
    data.next.set(acknowledged);
    data.clear(mark::PROBE);
    let tail = Hole {
        start: next,
        end: acknowledged,
        opened_ns: now_ns,
        acknowledged_ns: now_ns,
        timestamp: 0,
        identification: 0,
        marks: hole::TAIL,
    };
    let mut view = slab.open(&mut data.block);
    if data.block == NONE {
        data.set(mark::DEGRADED);
    }
    if data.is(mark::ASYMMETRIC) {
        view.notes.counts.went_asymmetric_octets += tail.octets();
        commit_unresolved(data, view.notes, &tail);
        return;
    }
    if let Some(last) = view.holes.as_mut_slice().last_mut() {
        if last.end == next && last.is_acknowledged() {
            last.end = acknowledged;
            last.acknowledged_ns = now_ns;
            return;
        }
    }
    if view.holes.is_full() {
        merge_lowest(&mut view);
    }
    view.holes.push(tail);
}

/// SACK blocks and duplicate acknowledgments tell of each hole whether the receiver has its bytes or
/// misses them. A hole that is covered in part is cut: one side is the capture's, the other the path's.
fn mark_holes(
    data: &Direction,
    view: &mut View<'_>,
    blocks: &[(u64, u64)],
    acknowledged: u64,
    now_ns: u64,
) {
    for &(left, right) in blocks {
        cut(&mut view.holes, left);
        cut(&mut view.holes, right);
    }
    for found in view.holes.as_mut_slice() {
        if found.is_acknowledged() || found.end <= acknowledged {
            continue;
        }
        let covered = |&&(left, right): &&(u64, u64)| left <= found.start && found.end <= right;
        if blocks.iter().find(covered).is_some() {
            found.acknowledged_ns = now_ns;
            found.marks &= !hole::MISSED;
        } else if found.start >= acknowledged {
            let data_above = blocks.iter().any(|&(left, _)| left >= found.end);
            let repeated = found.start == acknowledged && data.duplicate_acks >= 3;
            if data_above || repeated {
                found.marks |= hole::MISSED;
            }
        }
    }
}

/// Cuts the hole that has `at` inside; the parts know what the whole knew. Does nothing where there is
/// no room: the hole then waits for a cumulative acknowledgment.
pub(super) fn cut(holes: &mut List<'_, Hole>, at: u64) -> bool {
    let inside = |found: &Hole| found.start < at && at < found.end;
    let Some(place) = holes.as_slice().iter().position(inside) else {
        return false;
    };
    let mut upper = holes.as_slice()[place];
    upper.start = at;
    if !holes.insert(place + 1, upper) {
        return false;
    }
    holes.as_mut_slice()[place].end = at;
    true
}

/// A D-SACK: the receiver got these bytes twice.
fn take_duplicate_sack(view: &mut View<'_>, (left, right): (u64, u64)) {
    let View { repeats, notes, .. } = view;
    let overlaps = |start: u64, end: u64| start < right && left < end;
    let repeats = repeats.as_mut_slice();
    let open = repeats
        .iter_mut()
        .find(|repeat| repeat.fate != Fate::Spurious && overlaps(repeat.start, repeat.end));
    if let Some(repeat) = open {
        commit_spurious(notes, repeat);
        repeat.fate = Fate::Spurious;
        return;
    }
    let known = repeats
        .iter()
        .any(|repeat| overlaps(repeat.start, repeat.end));
    if !known {
        notes.counts.dsack_unmatched += 1;
    }
}
