//! What a flow comes to when it ends, and what all flows come to together.

use serde::Serialize;

use super::counts::Counts;
use super::flow::{mark, Flow};
use super::key::{End, Way};

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Silence.
    Idle,
    /// Thrown out to make room.
    Evicted,
    /// Another connection on the same addresses and ports.
    Reused,
    /// The tracker was ended.
    Finished,
}

/// What could be seen of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Both directions, and acknowledgments that move.
    Bidirectional,
    /// Data without its acknowledgments.
    DataOnly,
    /// Acknowledgments without the data.
    AcknowledgmentsOnly,
    /// Openings that came to nothing, or single packets.
    HalfOpen,
}

/// Where full-size packets vanish while small ones pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlackHole {
    /// On the way of the copies to us: the mirror path's MTU is too small.
    MirrorPath,
    /// Between the sender and us.
    BeforeUs,
    /// Between us and the receiver.
    BehindUs,
}

/// Packets that make a signature.
const BLACK_HOLE_PACKETS: u64 = 4;
/// Retransmissions of one segment without progress that make a signature.
const BLACK_HOLE_STUCK: u64 = 4;
/// How much smaller than announced segments may be and still count as full-size: options.
const OPTIONS_SLACK: u16 = 40;

/// One direction of a flow that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionReport {
    /// What was counted.
    pub counts: Counts,
    /// Shortest round trip between us and the receiver, microseconds.
    pub round_trip_us: Option<u32>,
    /// Payload of a full segment as used for estimates; 0 where no data was seen.
    pub segment_size: u64,
    /// Octets of sequence space from SYN to FIN, where both were seen.
    pub length: Option<u64>,
    /// Full-size packets vanish.
    pub black_hole: Option<BlackHole>,
}

/// A flow that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowReport {
    /// Who opened it, as far as one can tell.
    pub client: End,
    /// The other end.
    pub server: End,
    /// Tunnel or link that it was seen in, 0 for none.
    pub scope: u32,
    /// From the client to the server, and back.
    pub directions: [DirectionReport; 2],
    /// When its first packet came, nanoseconds.
    pub first_ns: u64,
    /// When its last packet came, nanoseconds.
    pub last_ns: u64,
    /// Why it ended.
    pub ending: Ending,
    /// What could be seen of it.
    pub visibility: Visibility,
    /// Picked up in the middle.
    pub midstream: bool,
    /// Memory was short: its counts are too low.
    pub degraded: bool,
}

impl FlowReport {
    pub(super) fn new(flow: &Flow, ending: Ending, counts: [Counts; 2]) -> Self {
        let client = flow.client();
        let direction = |way: Way| {
            let direction = &flow.directions[way as usize];
            let counts = counts[way as usize];
            let closed = direction.is(mark::SYN) && direction.is(mark::FIN);
            let peer_packets = flow.directions[way.reverse() as usize].packets;
            DirectionReport {
                round_trip_us: (direction.round_trip_us != 0).then_some(direction.round_trip_us),
                segment_size: direction.segment_size(),
                length: closed.then(|| direction.next.get() - direction.floor() - 1),
                black_hole: black_hole(
                    direction.largest,
                    direction.announced_size(),
                    &counts,
                    peer_packets,
                ),
                counts,
            }
        };
        let directions = [direction(client), direction(client.reverse())];
        let both = flow.directions.iter().all(|side| side.packets > 0);
        let progress = flow.directions.iter().any(|side| side.is(mark::PROGRESS));
        let data = flow.directions.iter().any(|side| side.data_packets > 0);
        let visibility = match (both, progress, data) {
            (true, true, _) => Visibility::Bidirectional,
            (false, _, true) => Visibility::DataOnly,
            (false, true, false) => Visibility::AcknowledgmentsOnly,
            _ => Visibility::HalfOpen,
        };
        Self {
            client: flow.key.sender(client),
            server: flow.key.sender(client.reverse()),
            scope: flow.key.scope(),
            directions,
            first_ns: flow.first_ns(),
            last_ns: flow.last_ns,
            ending,
            visibility,
            midstream: !flow.directions.iter().any(|side| side.is(mark::SYN)),
            degraded: flow.directions.iter().any(|side| side.is(mark::DEGRADED)),
        }
    }

    /// Both directions together.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = self.directions[0].counts;
        counts.merge(&self.directions[1].counts);
        counts
    }
}

/// Whether full-size packets vanish while small ones pass, and where.
fn black_hole(
    largest: u16,
    announced: Option<u16>,
    counts: &Counts,
    peer_packets: u32,
) -> Option<BlackHole> {
    let announced = announced?;
    let full_size_seen = largest + OPTIONS_SLACK >= announced;
    let enough = BLACK_HOLE_PACKETS * u64::from(announced);
    let mostly = |part: u64, whole: u64| part >= enough && part * 10 >= whole * 9;
    if full_size_seen {
        let stuck = counts.full_size_stuck >= BLACK_HOLE_STUCK && peer_packets > 1;
        return stuck.then_some(BlackHole::BehindUs);
    }
    if counts.data_packets == 0 {
        return None;
    }
    if mostly(
        counts.capture_loss_full_size_octets,
        counts.capture_loss.octets,
    ) {
        return Some(BlackHole::MirrorPath);
    }
    mostly(counts.unresolved_full_size_octets, counts.unresolved.octets)
        .then_some(BlackHole::BeforeUs)
}

/// How many flows were what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flows {
    /// All.
    pub total: u64,
    /// Both directions visible.
    pub bidirectional: u64,
    /// Data without acknowledgments.
    pub data_only: u64,
    /// Acknowledgments without data.
    pub acknowledgments_only: u64,
    /// Openings that came to nothing.
    pub half_open: u64,
    /// Picked up in the middle.
    pub midstream: u64,
    /// With counts that are too low for want of memory.
    pub degraded: u64,
    /// Thrown out to make room.
    pub evicted: u64,
    /// Flows in which full-size packets vanish.
    pub black_holes: u64,
}

/// Sums over flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// TCP segments, mirror duplicates included.
    pub segments: u64,
    /// How many flows.
    pub flows: Flows,
    /// Of the flows whose both directions were visible and that memory sufficed for: what ratios are
    /// made of.
    pub counts: Counts,
    /// Of all others.
    pub others: Counts,
}

impl Totals {
    pub(super) fn add(&mut self, report: &FlowReport) {
        let flows = &mut self.flows;
        flows.total += 1;
        *match report.visibility {
            Visibility::Bidirectional => &mut flows.bidirectional,
            Visibility::DataOnly => &mut flows.data_only,
            Visibility::AcknowledgmentsOnly => &mut flows.acknowledgments_only,
            Visibility::HalfOpen => &mut flows.half_open,
        } += 1;
        flows.midstream += u64::from(report.midstream);
        flows.degraded += u64::from(report.degraded);
        flows.evicted += u64::from(report.ending == Ending::Evicted);
        let vanish = report
            .directions
            .iter()
            .any(|side| side.black_hole.is_some());
        flows.black_holes += u64::from(vanish);
        let sum = if report.visibility == Visibility::Bidirectional && !report.degraded {
            &mut self.counts
        } else {
            &mut self.others
        };
        sum.merge(&report.counts());
    }
}
