//! The targets as one worker sees them: each with its transmitter, its path and its counters.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};

use super::counters::TargetCounters;
use crate::mirror::path::PathState;
use crate::packet::{flow, Checksum, Direction, FrameMeta, PacketList};
use crate::source::{Capture, Frames};
use crate::transmit::auto::AutoSender;
use crate::transmit::capture::CaptureSender;
use crate::transmit::discard::DryRun;
use crate::transmit::raw::RawSender;
use crate::transmit::udp::UdpSender;
use crate::transmit::xsk::{Received, XskSender};
use crate::xsk::{Pool, ReceivedFrame};

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
    transmitter: Transmitter,
    path: Cache<Arc<ArcSwap<PathState>>, Arc<PathState>>,
    counters: Arc<TargetCounters>,
}

impl Output {
    /// A target with its transmitter; `path` is published by control.
    #[must_use]
    pub fn new(
        transmitter: Transmitter,
        path: Arc<ArcSwap<PathState>>,
        counters: Arc<TargetCounters>,
    ) -> Output {
        Output {
            transmitter,
            path: Cache::new(path),
            counters,
        }
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
}

impl Outputs {
    /// `pool` is needed where a transmitter is AF_XDP, and by a span.
    #[must_use]
    pub fn new(list: Vec<Output>, sinks: Vec<SinkOutput>, pool: Option<Pool>) -> Outputs {
        let in_place = list
            .iter()
            .rposition(|output| matches!(output.transmitter, Transmitter::Xsk(_)));
        Outputs {
            list,
            sinks,
            pool,
            in_place,
        }
    }

    /// The frames.
    pub fn pool(&mut self) -> Option<&mut Pool> {
        self.pool.as_mut()
    }

    /// Gives every packet of a batch to every target.
    pub fn send(&mut self, packets: PacketList<'_>, frames: &impl Frames) {
        if packets.is_empty() {
            return;
        }
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

    fn send_one(&mut self, index: usize, packets: PacketList<'_>, frames: &impl Frames) {
        let output = &mut self.list[index];
        let path = output.path.load();
        match (&mut output.transmitter, self.pool.as_mut()) {
            (Transmitter::Udp(sender), _) => sender.send(packets, frames, path, &output.counters),
            (Transmitter::Raw(sender), _) => sender.send(packets, frames, path, &output.counters),
            (Transmitter::Xsk(sender), Some(pool)) => {
                sender.send(packets, frames, path, pool, &output.counters)
            }
            (Transmitter::Auto(sender), Some(pool)) => {
                sender.send(packets, frames, path, pool, &output.counters);
            }
            (Transmitter::Xsk(_) | Transmitter::Auto(_), None) => {
                // Control never makes an AF_XDP output without a pool; the balance holds all the same.
                output.counters.offered.add(packets.len() as u64);
                output
                    .counters
                    .dropped
                    .add(crate::reason::Reason::TxFull, packets.len() as u64);
            }
        }
    }

    /// Gives a span's frames to every target: to those that copy first, to the last AF_XDP target in
    /// place. `packets` are the frames without their `room`. Takes the frames; none is left behind.
    pub fn send_span(&mut self, packets: PacketList<'_>, frames: &mut SpanFrames) {
        for index in 0..self.list.len() {
            if Some(index) != self.in_place {
                self.send_one(index, packets, frames);
            }
        }
        self.send_sinks(packets, frames);
        let Some(pool) = self.pool.as_mut() else {
            return;
        };
        let Some(index) = self.in_place else {
            for frame in frames.list.drain(..) {
                pool.put(frame.into_free());
            }
            return;
        };
        let output = &mut self.list[index];
        let path = output.path.load();
        let Transmitter::Xsk(sender) = &mut output.transmitter else {
            return;
        };
        if let Some(reason) = sender.begin(path, pool, &output.counters) {
            output.counters.offered.add(frames.list.len() as u64);
            output
                .counters
                .dropped
                .add(reason, frames.list.len() as u64);
            for frame in frames.list.drain(..) {
                pool.put(frame.into_free());
            }
            return;
        }
        let (room, capture) = (frames.room, frames.capture(0));
        for (frame, packet) in frames.list.drain(..).zip(packets.refs()) {
            let received = Received {
                frame,
                room,
                flow_hash: packet.flow_hash,
                capture,
            };
            sender.send_in_place(received, path, pool, &output.counters);
        }
        sender.finish(pool, &output.counters);
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

/// Received frames, each with `room` bytes in front of its packet.
#[derive(Debug)]
pub struct SpanFrames {
    /// The frames, in order.
    pub list: Vec<ReceivedFrame>,
    /// Bytes that the XDP program made in front of each.
    pub room: usize,
    /// When the batch was taken from the queues: nanoseconds of CLOCK_MONOTONIC.
    pub received_ns: u64,
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
            ..FrameMeta::plain(frame.len() as u32)
        }
    }
}
