//! The targets as one worker sees them: each with what it gets of a batch, its transmitter, its path and its
//! counters.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};

use super::counters::TargetCounters;
use super::ladder::Ladder;
use crate::mirror::path::{PathProblem, PathState};
use crate::mirror::selection::{self, Selection, TargetSet};
use crate::packet::{flow, Checksum, Direction, FrameMeta, PacketList, PacketRef, DEFAULT_PACKETS};
use crate::reason::Reason;
use crate::source::{Capture, Frames};
use crate::transmit;
use crate::transmit::auto::AutoSender;
use crate::transmit::capture::CaptureSender;
use crate::transmit::discard::DryRun;
use crate::transmit::raw::RawSender;
use crate::transmit::udp::UdpSender;
use crate::transmit::xsk::{Received, XskSender};
use crate::xsk::{Pool, ReceivedFrame};

/// An IP packet's length field has 16 bits.
const MAX_IP_PACKET: usize = 65535;

/// Who sends.
#[derive(Debug)]
pub enum Transmitter {
    /// UDP sockets.
    Udp(Box<UdpSender>),
    /// A raw socket.
    Raw(Box<RawSender>),
    /// AF_XDP.
    Xsk(Box<XskSender>),
    /// UDP sockets or AF_XDP, as the traffic suits.
    Auto(Box<AutoSender>),
}

impl Transmitter {
    /// What stops copies on an unhealthy path and what the transmitter itself does not look at: where the
    /// next hop does not answer, the kernel drops what sockets send without a word.
    fn obstacle(&self, path: &PathState) -> Option<Reason> {
        match (self, path.problem) {
            (Transmitter::Xsk(_), _) | (_, None | Some(PathProblem::NotEthernet)) => None,
            (_, Some(problem)) => Some(transmit::reason_of(problem)),
        }
    }

    /// Longest outer IP packet that it takes, in bytes.
    fn most(&self) -> usize {
        match self {
            Transmitter::Xsk(sender) => sender.most(),
            Transmitter::Auto(_) | Transmitter::Udp(_) | Transmitter::Raw(_) => MAX_IP_PACKET,
        }
    }

    fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        pool: Option<&mut Pool>,
        counters: &TargetCounters,
    ) {
        match (self, pool) {
            (Transmitter::Udp(sender), _) => sender.send(packets, frames, path, counters),
            (Transmitter::Raw(sender), _) => sender.send(packets, frames, path, counters),
            (Transmitter::Xsk(sender), Some(pool)) => {
                sender.send(packets, frames, path, pool, counters);
            }
            (Transmitter::Auto(sender), Some(pool)) => {
                sender.send(packets, frames, path, pool, counters);
            }
            (Transmitter::Xsk(_) | Transmitter::Auto(_), None) => {
                // Control never makes an AF_XDP output without a pool; the balance holds all the same.
                let copies = packets.copies() as u64;
                counters.offered.add(copies);
                counters.dropped.add(Reason::TxFull, copies);
            }
        }
    }

    /// The AF_XDP transmitter, where there is one.
    fn xsk(&mut self) -> Option<&mut XskSender> {
        match self {
            Transmitter::Xsk(sender) => Some(sender),
            Transmitter::Auto(sender) => Some(sender.xsk()),
            Transmitter::Udp(_) | Transmitter::Raw(_) => None,
        }
    }
}

/// One target of one worker.
#[derive(Debug)]
pub struct Output {
    selection: Selection,
    transmitter: Transmitter,
    ladder: Ladder,
    path: Cache<Arc<ArcSwap<PathState>>, Arc<PathState>>,
    counters: Arc<TargetCounters>,
}

impl Output {
    /// A target with what it gets, its transmitter and its MTU ladder; `path` is published by control.
    #[must_use]
    pub fn new(
        selection: Selection,
        transmitter: Transmitter,
        ladder: Ladder,
        path: Arc<ArcSwap<PathState>>,
        counters: Arc<TargetCounters>,
    ) -> Output {
        Output {
            selection,
            transmitter,
            ladder,
            path: Cache::new(path),
            counters,
        }
    }
}

/// What of a batch a target is to be sent; the rest of what is its is counted.
fn choose<'p>(
    selection: &'p mut Selection,
    packets: PacketList<'p>,
    owners: &[u8],
    obstacle: Option<Reason>,
    frames: &impl Frames,
    counters: &TargetCounters,
) -> Option<PacketList<'p>> {
    let chosen = match obstacle {
        Some(reason) => {
            let share = selection.share(packets, owners);
            count_unsent(counters, reason, share.len() as u64);
            return None;
        }
        None => selection.choose(packets, owners, |frame| frames.capture(frame).timestamp_ns),
    };
    count_unsent(counters, Reason::Limit, chosen.limited);
    counters.offered_bytes.add(chosen.bytes);
    (!chosen.packets.is_empty()).then_some(chosen.packets)
}

fn count_unsent(counters: &TargetCounters, reason: Reason, packets: u64) {
    if packets > 0 {
        counters.offered.add(packets);
        counters.dropped.add(reason, packets);
    }
}

/// A target that copies do not travel to.
#[derive(Debug)]
pub enum Sink {
    /// A capture.
    Capture(Box<CaptureSender>),
    /// A dry run.
    DryRun(DryRun),
}

/// One such target of one worker. It has no path, no share of the flows and no limit: it gets every
/// packet.
#[derive(Debug)]
pub struct SinkOutput {
    /// What takes the packets.
    pub sink: Sink,
    /// Its counters.
    pub counters: Arc<TargetCounters>,
}

impl SinkOutput {
    fn send(&mut self, packets: PacketList<'_>, frames: &impl Frames) {
        match &mut self.sink {
            Sink::Capture(sender) => sender.send(packets, frames, &self.counters),
            Sink::DryRun(counter) => counter.send(packets, frames, &self.counters),
        }
    }

    fn capture(&mut self) -> Option<(&mut CaptureSender, &TargetCounters)> {
        match &mut self.sink {
            Sink::Capture(sender) => Some((sender, &self.counters)),
            Sink::DryRun(_) => None,
        }
    }
}

/// All targets of one worker, and the frames that its AF_XDP transmitters send from.
#[derive(Debug)]
pub struct Outputs {
    list: Vec<Output>,
    sinks: Vec<SinkOutput>,
    pool: Option<Pool>,
    /// The AF_XDP output that sends a span's frames in place.
    in_place: Option<usize>,
    set: Cache<Arc<ArcSwap<TargetSet>>, Arc<TargetSet>>,
    owners: Vec<u8>,
}

impl Outputs {
    /// `pool` is needed where a transmitter is AF_XDP, and by a span; `set` is published by control.
    #[must_use]
    pub fn new(
        list: Vec<Output>,
        sinks: Vec<SinkOutput>,
        pool: Option<Pool>,
        set: Arc<ArcSwap<TargetSet>>,
    ) -> Outputs {
        let in_place = list
            .iter()
            .rposition(|output| matches!(output.transmitter, Transmitter::Xsk(_)));
        Outputs {
            list,
            sinks,
            pool,
            in_place,
            set: Cache::new(set),
            owners: Vec::with_capacity(DEFAULT_PACKETS),
        }
    }

    /// Why nothing is to be copied now, if so. To be asked before a batch is cut into packets.
    #[inline]
    pub fn shed(&mut self) -> Option<Reason> {
        self.set.load().shed
    }

    /// The frames.
    pub fn pool(&mut self) -> Option<&mut Pool> {
        self.pool.as_mut()
    }

    /// Takes over the targets that copies do not travel to from the worker that came before.
    pub fn take_sinks(&mut self, sinks: Vec<SinkOutput>) {
        self.sinks = sinks;
    }

    /// The targets that copies do not travel to, for the worker that comes after this one.
    #[must_use]
    pub fn into_sinks(self) -> Vec<SinkOutput> {
        self.sinks
    }

    /// Gives every target what it gets of a batch.
    pub fn send(&mut self, packets: PacketList<'_>, frames: &impl Frames) {
        if packets.is_empty() {
            return;
        }
        self.share_out(packets);
        for index in 0..self.list.len() {
            self.send_one(index, packets, frames);
        }
        self.send_sinks(packets, frames);
    }

    fn send_sinks(&mut self, packets: PacketList<'_>, frames: &impl Frames) {
        for sink in &mut self.sinks {
            sink.send(packets, frames);
        }
    }

    /// Finds out whose each packet is, once for all targets of the hash group.
    fn share_out(&mut self, packets: PacketList<'_>) {
        match &self.set.load().shares {
            Some(shares) => selection::owners(packets, shares, &mut self.owners),
            None => self.owners.clear(),
        }
    }

    fn send_one(&mut self, index: usize, packets: PacketList<'_>, frames: &impl Frames) {
        let Output {
            selection,
            transmitter,
            ladder,
            path,
            counters,
        } = &mut self.list[index];
        let path = path.load();
        let unhealthy = self.set.load().is_unhealthy(index);
        let obstacle = unhealthy.then(|| transmitter.obstacle(path)).flatten();
        let chosen = choose(selection, packets, &self.owners, obstacle, frames, counters);
        let Some(packets) = chosen else {
            // Its frames would be missing to others.
            if let (Some(sender), Some(pool)) = (transmitter.xsk(), self.pool.as_mut()) {
                sender.idle(pool, counters);
            }
            return;
        };
        let pool = &mut self.pool;
        let limit = ladder.limit(path, transmitter.most());
        ladder.send(
            packets,
            frames,
            path,
            limit,
            counters,
            |packets, too_long| {
                transmitter.send(packets, frames, path, pool.as_mut(), counters);
                match transmitter {
                    Transmitter::Udp(sender) => too_long.take_from(sender.too_long()),
                    Transmitter::Auto(sender) => {
                        if let Some(udp) = sender.udp() {
                            too_long.take_from(udp.too_long());
                        }
                    }
                    Transmitter::Xsk(_) | Transmitter::Raw(_) => {}
                }
            },
        );
    }

    /// Gives a span's frames to every target: to those that copy first, to the last AF_XDP target in
    /// place. `packets` are the frames without their `room`. Takes the frames; none is left behind.
    pub fn send_span(&mut self, packets: PacketList<'_>, frames: &mut SpanFrames) {
        self.share_out(packets);
        for index in 0..self.list.len() {
            if Some(index) != self.in_place {
                self.send_one(index, packets, frames);
            }
        }
        self.send_sinks(packets, frames);
        self.send_in_place(packets, frames);
        if let Some(pool) = self.pool.as_mut() {
            for frame in frames.list.drain(..) {
                pool.put(frame.into_free());
            }
        }
    }

    /// Sends those frames in place that the in-place target gets; leaves the others, or all.
    fn send_in_place(&mut self, packets: PacketList<'_>, frames: &mut SpanFrames) {
        let (Some(pool), Some(index)) = (self.pool.as_mut(), self.in_place) else {
            return;
        };
        let Output {
            selection,
            transmitter: Transmitter::Xsk(sender),
            ladder,
            path,
            counters,
        } = &mut self.list[index]
        else {
            return;
        };
        let path = path.load();
        let obstacle = sender.begin(path, pool, counters);
        let chosen = choose(selection, packets, &self.owners, obstacle, frames, counters);
        let Some(chosen) = chosen else {
            return;
        };
        // The list is the frames in order, one packet each; what is chosen is some of them in order.
        let mut chosen = chosen.refs().iter().peekable();
        let (room, capture) = (frames.room, frames.capture(0));
        let limit = ladder.limit(path, sender.most());
        for (number, frame) in (0..).zip(frames.list.drain(..)) {
            let Some(packet) = chosen.next_if(|packet| packet.frame == number) else {
                pool.put(frame.into_free());
                continue;
            };
            if packet.length() > limit {
                // Its pieces are written into frames of their own, in the same order on the ring.
                let lone = [PacketRef {
                    frame: 0,
                    ..*packet
                }];
                let list = PacketList::new(packets.arena(), &lone);
                let bytes = frame.bytes().get(room..).unwrap_or(&[]);
                let one = OneFrame { bytes, capture };
                ladder.send(list, &one, path, limit, counters, |list, _| {
                    sender.queue(list, &one, path, pool, counters);
                });
                pool.put(frame.into_free());
                continue;
            }
            let received = Received {
                frame,
                room,
                flow_hash: packet.flow_hash,
                capture,
            };
            sender.send_in_place(received, path, pool, counters);
        }
        sender.finish(pool, counters);
    }

    /// While there is nothing to send: completions come home.
    pub fn idle(&mut self) {
        for (sender, counters) in self.sinks.iter_mut().filter_map(SinkOutput::capture) {
            sender.idle(counters);
        }
        let Some(pool) = self.pool.as_mut() else {
            return;
        };
        for output in &mut self.list {
            if let Some(sender) = output.transmitter.xsk() {
                sender.idle(pool, &output.counters);
            }
        }
    }

    /// At the end: waits for what is in flight, at most `limit` for each target that copies travel to, and
    /// for the writer of a capture as long as it gets on.
    pub fn drain(&mut self, limit: Duration) {
        for (sender, counters) in self.sinks.iter_mut().filter_map(SinkOutput::capture) {
            sender.drain(counters);
        }
        let Some(pool) = self.pool.as_mut() else {
            return;
        };
        for output in &mut self.list {
            if let Some(sender) = output.transmitter.xsk() {
                sender.drain(limit, pool, &output.counters);
            }
        }
    }
}

/// One frame of a batch by itself.
struct OneFrame<'f> {
    bytes: &'f [u8],
    capture: Capture,
}

impl Frames for OneFrame<'_> {
    fn bytes(&self, _index: u32) -> &[u8] {
        self.bytes
    }

    fn capture(&self, _index: u32) -> Capture {
        self.capture
    }

    fn meta(&self, _index: u32) -> FrameMeta {
        FrameMeta {
            timestamp_ns: self.capture.timestamp_ns,
            direction: self.capture.direction,
            checksum: Checksum::Finished,
            ..FrameMeta::plain(self.bytes.len() as u32)
        }
    }
}

/// Received frames, each with `room` bytes in front of its packet.
#[derive(Debug)]
pub struct SpanFrames {
    /// The frames, in order.
    pub list: Vec<ReceivedFrame>,
    /// Bytes that the XDP program made in front of each.
    pub room: usize,
    /// When the batch was taken from the queues: nanoseconds of CLOCK_MONOTONIC.
    pub received_ns: u64,
    /// How long each frame was on the wire, where the program may have cut it; else empty.
    pub wire_lengths: Vec<u32>,
}

impl SpanFrames {
    fn wire_length(&self, index: u32, captured: usize) -> u32 {
        let noted = self.wire_lengths.get(index as usize).copied();
        noted.unwrap_or(0).max(captured as u32)
    }
}

impl Frames for SpanFrames {
    fn bytes(&self, index: u32) -> &[u8] {
        self.list
            .get(index as usize)
            .and_then(|frame| frame.bytes().get(self.room..))
            .unwrap_or(&[])
    }

    fn capture(&self, _index: u32) -> Capture {
        Capture {
            timestamp_ns: self.received_ns,
            direction: Direction::In,
        }
    }

    fn meta(&self, index: u32) -> FrameMeta {
        let frame = self.bytes(index);
        FrameMeta {
            timestamp_ns: self.received_ns,
            flow_hash: flow::hash_frame(frame),
            // The frame was on a wire: it is copied as it is, right or wrong.
            checksum: Checksum::Finished,
            ..FrameMeta::plain(self.wire_length(index, frame.len()))
        }
    }
}
