//! What time decides: a hole stays unfilled after its bytes were acknowledged, a retransmission was
//! acknowledged and nobody complained. Counts are committed here, once, and never taken back.

use super::anomaly::{hole, Fate, Hole, Merged, Repeat, View};
use super::flow::{mark, Direction};
use super::sequence::packets;
use super::Settings;

/// Bytes acknowledged beyond what a silent direction has shown before its route must have changed.
const ASYMMETRIC_OCTETS: u64 = 1 << 20;
/// And for how long it was silent.
const ASYMMETRIC_NS: u64 = 2_000_000_000;

/// Commits what is decided at `now_ns`; all there is if this is the `end` of the flow.
pub(super) fn settle(
    direction: &mut Direction,
    view: &mut View<'_>,
    now_ns: u64,
    settings: &Settings,
    end: bool,
) {
    settle_merged(direction, view, now_ns, settings, end);
    settle_holes(direction, view, now_ns, settings, end);
    settle_repeats(direction, view, now_ns, settings, end);
}

fn settle_holes(
    direction: &mut Direction,
    view: &mut View<'_>,
    now_ns: u64,
    settings: &Settings,
    end: bool,
) {
    let View { holes, notes, .. } = view;
    let mut asymmetric = direction.is(mark::ASYMMETRIC);
    let (next, una) = (direction.next.get(), direction.una());
    holes.retain(|found| {
        if !found.is_acknowledged() {
            if end {
                // An acknowledgment within the hole speaks for the part before it.
                let parted = una.clamp(found.start, found.end);
                let (before, after) = (
                    split(found, found.start, parted),
                    split(found, parted, found.end),
                );
                if before.octets() > 0 {
                    commit_capture(direction, notes, &before);
                }
                if after.octets() > 0 {
                    commit_unresolved(direction, notes, &after);
                }
            }
            return !end;
        }
        let waited = now_ns.saturating_sub(found.acknowledged_ns) >= settings.grace_ns;
        let silent = found.is(hole::TAIL) && found.end == next;
        let long_silent = now_ns.saturating_sub(found.opened_ns) >= ASYMMETRIC_NS;
        if silent && long_silent && found.octets() >= ASYMMETRIC_OCTETS {
            asymmetric = true;
            notes.counts.went_asymmetric_octets += found.octets();
            commit_unresolved(direction, notes, found);
            return false;
        }
        if end || waited && (!silent || long_silent) {
            commit_capture(direction, notes, found);
            return false;
        }
        true
    });
    if asymmetric {
        direction.set(mark::ASYMMETRIC);
    }
}

const fn split(whole: &Hole, start: u64, end: u64) -> Hole {
    Hole {
        start,
        end,
        ..*whole
    }
}

/// The receiver has the bytes and we have not.
pub(super) fn commit_capture(
    direction: &mut Direction,
    notes: &mut super::anomaly::Notes,
    found: &Hole,
) {
    let counts = &mut notes.counts;
    let octets = found.octets();
    let estimate = packets(octets, direction.segment_size());
    if direction.is(mark::FRAGMENT) {
        direction.clear(mark::FRAGMENT);
        counts.fragment_gap.add(octets, estimate);
        return;
    }
    counts.capture_loss.add(octets, estimate);
    counts.capture_loss_ambiguous += u64::from(found.is(hole::MISSED));
    if is_full_size(direction, octets) {
        counts.capture_loss_full_size_octets += octets;
    }
}

pub(super) fn commit_unresolved(
    direction: &Direction,
    notes: &mut super::anomaly::Notes,
    found: &Hole,
) {
    let octets = found.octets();
    let estimate = packets(octets, direction.segment_size());
    notes.counts.unresolved.add(octets, estimate);
    if found.is(hole::MISSED) && is_full_size(direction, octets) {
        notes.counts.unresolved_full_size_octets += octets;
    }
}

/// Whether a range can be one or more segments of the announced size.
fn is_full_size(direction: &Direction, octets: u64) -> bool {
    direction
        .announced_size()
        .is_some_and(|size| octets >= u64::from(size))
}

fn settle_merged(
    direction: &Direction,
    view: &mut View<'_>,
    now_ns: u64,
    settings: &Settings,
    end: bool,
) {
    let notes = &mut *view.notes;
    if notes.merged.events == 0 {
        return;
    }
    if notes.merged.acknowledged_ns > now_ns && direction.una() >= notes.merged.end {
        notes.merged.acknowledged_ns = now_ns;
    }
    let Merged {
        octets,
        events,
        acknowledged_ns,
        ..
    } = notes.merged;
    let acknowledged = direction.una() >= notes.merged.end;
    let waited = acknowledged && now_ns.saturating_sub(acknowledged_ns) >= settings.grace_ns;
    if !end && !waited {
        return;
    }
    if octets > 0 {
        let estimate = packets(octets, direction.segment_size()).max(events);
        let tally = if acknowledged {
            notes.counts.capture_loss_coarse += events;
            &mut notes.counts.capture_loss
        } else {
            &mut notes.counts.unresolved
        };
        tally.add(octets, estimate);
        tally.events += events - 1;
    }
    notes.merged = Merged::EMPTY;
}

/// Gives the lowest hole up to make room; it loses its place but not its octets.
pub(super) fn merge_lowest(view: &mut View<'_>) {
    if view.holes.len() == 0 {
        return;
    }
    let lowest = view.holes.remove(0);
    let merged = &mut view.notes.merged;
    if merged.events == 0 {
        merged.start = lowest.start;
    }
    merged.end = lowest.end;
    merged.octets += lowest.octets();
    merged.events += 1;
    merged.acknowledged_ns = super::anomaly::NEVER;
}

fn settle_repeats(
    direction: &Direction,
    view: &mut View<'_>,
    now_ns: u64,
    settings: &Settings,
    end: bool,
) {
    let View { repeats, notes, .. } = view;
    let patience = repeat_patience(direction, settings);
    repeats.retain(|repeat| {
        let waited = now_ns.saturating_sub(repeat.seen_ns) > patience;
        match repeat.fate {
            Fate::Spurious => !end && !waited,
            Fate::Acknowledged if waited => {
                commit_downstream(notes, repeat);
                false
            }
            _ if end => {
                // Without acknowledgments in sight nobody can say whether it was needed.
                if direction.is(mark::PROGRESS) {
                    commit_downstream(notes, repeat);
                }
                false
            }
            _ => true,
        }
    });
}

/// How long a D-SACK may take: 1.5 round trips to the receiver, at least the shortest RTO.
fn repeat_patience(direction: &Direction, settings: &Settings) -> u64 {
    let round_trip_ns = u64::from(direction.round_trip_us) * 1000;
    settings.repeat_ns.max(round_trip_ns * 3 / 2)
}

/// The retransmission was needed: the bytes were lost behind us.
pub(super) fn commit_downstream(notes: &mut super::anomaly::Notes, repeat: &Repeat) {
    commit_repeat(&mut notes.counts.downstream_loss, repeat);
}

/// The receiver had the bytes already.
pub(super) fn commit_spurious(notes: &mut super::anomaly::Notes, repeat: &Repeat) {
    commit_repeat(&mut notes.counts.spurious, repeat);
}

pub(super) fn commit_repeat(tally: &mut super::counts::Tally, repeat: &Repeat) {
    tally.events += u64::from(repeat.packets > 0);
    tally.octets += u64::from(repeat.octets);
    tally.packets += u64::from(repeat.packets);
}
