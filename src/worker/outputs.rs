//! The targets as one worker sees them: each with its transmitter, its path and its counters.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};

use super::counters::TargetCounters;
use super::ladder::Ladder;
use crate::mirror::path::PathState;
use crate::packet::{Direction, PacketList, PacketRef};
use crate::reason::Reason;
use crate::source::{Capture, Frames};
use crate::transmit::auto::AutoSender;
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
    transmitter: Transmitter,
    ladder: Ladder,
    path: Cache<Arc<ArcSwap<PathState>>, Arc<PathState>>,
    counters: Arc<TargetCounters>,
}

impl Output {
    /// A target with its transmitter and its MTU ladder; `path` is published by control.
    #[must_use]
    pub fn new(
        transmitter: Transmitter,
        ladder: Ladder,
        path: Arc<ArcSwap<PathState>>,
        counters: Arc<TargetCounters>,
    ) -> Output {
        Output {
            transmitter,
            ladder,
            path: Cache::new(path),
            counters,
        }
    }
}

/// All targets of one worker, and the frames that its AF_XDP transmitters send from.
#[derive(Debug)]
pub struct Outputs {
    list: Vec<Output>,
    pool: Option<Pool>,
    /// The AF_XDP output that sends a span's frames in place.
    in_place: Option<usize>,
}

impl Outputs {
    /// `pool` is needed where a transmitter is AF_XDP, and by a span.
    #[must_use]
    pub fn new(list: Vec<Output>, pool: Option<Pool>) -> Outputs {
        let in_place = list
            .iter()
            .rposition(|output| matches!(output.transmitter, Transmitter::Xsk(_)));
        Outputs {
            list,
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
    }

    fn send_one(&mut self, index: usize, packets: PacketList<'_>, frames: &impl Frames) {
        let Output {
            transmitter,
            ladder,
            path,
            counters,
        } = &mut self.list[index];
        let path = path.load();
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
        for index in 0..self.list.len() {
            if Some(index) != self.in_place {
                self.send_one(index, packets, frames);
            }
        }
        let Some(pool) = self.pool.as_mut() else {
            return;
        };
        let Some(index) = self.in_place else {
            for frame in frames.list.drain(..) {
                pool.put(frame.into_free());
            }
            return;
        };
        let Output {
            transmitter: Transmitter::Xsk(sender),
            ladder,
            path,
            counters,
        } = &mut self.list[index]
        else {
            return;
        };
        let path = path.load();
        if let Some(reason) = sender.begin(path, pool, counters) {
            counters.offered.add(frames.list.len() as u64);
            counters.dropped.add(reason, frames.list.len() as u64);
            for frame in frames.list.drain(..) {
                pool.put(frame.into_free());
            }
            return;
        }
        let (room, capture) = (frames.room, frames.capture(0));
        let limit = ladder.limit(path, sender.most());
        for (frame, packet) in frames.list.drain(..).zip(packets.refs()) {
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
        let Some(pool) = self.pool.as_mut() else {
            return;
        };
        for output in &mut self.list {
            if let Some(sender) = output.transmitter.xsk() {
                sender.idle(pool, &output.counters);
            }
        }
    }

    /// At the end: waits for what is in flight, at most `limit` for each target.
    pub fn drain(&mut self, limit: Duration) {
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
}
