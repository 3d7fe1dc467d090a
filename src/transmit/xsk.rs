//! Copies by AF_XDP: the outer headers are ours, so are the route and the neighbour (the path).
//!
//! From a tap a packet is written into a frame of the pool; from a span the received frame itself is
//! sent, its outer header written into the room in front of it. Invisible to tc, hence no loop.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::in_flight::InFlight;
use super::path_reason;
use super::wrap::{Wrapped, Wrapping};
use crate::mirror::path::PathState;
use crate::packet::encap::{Marking, OuterAddresses, OuterTemplate, MAX_OUTER};
use crate::packet::headers::LinkHeader;
use crate::packet::{PacketList, PacketRef, Part};
use crate::reason::Reason;
use crate::source::{Capture, Frames};
use crate::worker::counters::TargetCounters;
use crate::xsk::{Pool, ReceivedFrame, ToSendFrame, TxPort};

/// The longest packet that fits a frame of the umem with any outer header in front.
pub const LONGEST: usize = crate::xsk::FRAME_SIZE as usize - MAX_OUTER;

/// The outer IP header is followed by this much at least; its bytes are what `sent_bytes` counts.
const ETHERNET: u64 = 14;

/// What makes the outer headers of one target.
#[derive(Clone, Debug)]
pub struct Outer {
    /// The tunnel, and the fields of its headers.
    pub wrapping: Wrapping,
    /// TTL and DSCP.
    pub marking: Marking,
}

/// A transmit port and the number of the device it is bound to.
#[derive(Debug)]
pub struct BoundPort {
    /// The port.
    pub port: TxPort,
    /// The device's number.
    pub ifindex: u32,
}

/// What control and a transmitter exchange after the route has moved. One place each.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Where control leaves a port on the new device.
    pub successor: Arc<ArrayQueue<BoundPort>>,
    /// Where the transmitter leaves the old one: closing it waits for the kernel, so control does it.
    pub left: Arc<ArrayQueue<BoundPort>>,
}

impl Exchange {
    /// Nothing is there yet.
    #[must_use]
    pub fn new() -> Exchange {
        Exchange {
            successor: Arc::new(ArrayQueue::new(1)),
            left: Arc::new(ArrayQueue::new(1)),
        }
    }
}

impl Default for Exchange {
    fn default() -> Self {
        Exchange::new()
    }
}

/// A span's frame that is to be sent in place.
#[derive(Debug)]
pub struct Received {
    /// The frame.
    pub frame: ReceivedFrame,
    /// Bytes in front of its packet.
    pub room: usize,
    /// The packet's flow hash.
    pub flow_hash: u32,
    /// When and which way it was captured.
    pub capture: Capture,
}

/// Sends by AF_XDP.
#[derive(Debug)]
pub struct XskSender {
    bound: BoundPort,
    exchange: Exchange,
    outer: Outer,
    template: Option<OuterTemplate>,
    generation: u64,
    in_flight: InFlight,
}

impl XskSender {
    /// On a bound port; `exchange` is where control leaves its successor. At most `ring` packets are in
    /// flight.
    #[must_use]
    pub fn new(bound: BoundPort, exchange: Exchange, outer: Outer, ring: usize) -> XskSender {
        XskSender {
            bound,
            exchange,
            outer,
            template: None,
            generation: 0,
            in_flight: InFlight::new(ring),
        }
    }

    /// Before a batch: completions come home, a new path or port takes effect. Returns why nothing can
    /// be sent, if so.
    pub fn begin(
        &mut self,
        path: &PathState,
        pool: &mut Pool,
        counters: &TargetCounters,
    ) -> Option<Reason> {
        self.reclaim(pool, counters);
        if path.ifindex != self.bound.ifindex {
            if let Some(successor) = self.exchange.successor.pop() {
                self.replace(successor, pool, counters);
            }
        }
        if let Some(reason) = path_reason(path) {
            return Some(reason);
        }
        if path.ifindex != self.bound.ifindex {
            return Some(Reason::NoRoute);
        }
        if self.generation != path.generation || self.template.is_none() {
            self.template = self.make_template(path);
            self.generation = path.generation;
        }
        if self.template.is_none() {
            return Some(Reason::NoNeighbour);
        }
        None
    }

    fn make_template(&self, path: &PathState) -> Option<OuterTemplate> {
        let (destination_mac, source_mac) = path.ethernet()?;
        let addresses = OuterAddresses {
            source_mac,
            destination_mac,
            source: path.source_ip,
            destination: path.destination,
        };
        OuterTemplate::new(&addresses, self.outer.marking, self.outer.wrapping.tunnel)
    }

    fn replace(&mut self, successor: BoundPort, pool: &mut Pool, counters: &TargetCounters) {
        // What is still on the old ring will not be sent any more.
        self.bound.port.kick();
        self.reclaim(pool, counters);
        self.in_flight.abandon(Reason::NoRoute, counters);
        let left = std::mem::replace(&mut self.bound, successor);
        // Full only if the route has moved twice within a round of control: then it closes here.
        drop(self.exchange.left.push(left));
        self.template = None;
    }

    /// Sends a batch by copying each packet into a frame. Every packet is counted.
    pub fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        pool: &mut Pool,
        counters: &TargetCounters,
    ) {
        if let Some(reason) = self.begin(path, pool, counters) {
            counters.offered.add(packets.copies() as u64);
            counters.dropped.add(reason, packets.copies() as u64);
            return;
        }
        self.send_begun(packets, frames, path, pool, counters);
    }

    /// The same where `begin` has been called for this batch and found no obstacle.
    pub fn send_begun(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        pool: &mut Pool,
        counters: &TargetCounters,
    ) {
        self.queue(packets, frames, path, pool, counters);
        self.finish(pool, counters);
    }

    /// Longest outer IP packet that fits a frame.
    #[must_use]
    pub fn most(&self) -> usize {
        crate::xsk::FRAME_SIZE as usize - ETHERNET as usize
    }

    /// The same as `send_begun` without `finish`, which is to follow.
    pub fn queue(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        pool: &mut Pool,
        counters: &TargetCounters,
    ) {
        counters.offered.add(packets.copies() as u64);
        let mut lost = false;
        for packet in packets.refs() {
            if lost {
                // Without the piece before it is of no use.
                lost = packet.part == Part::More;
                continue;
            }
            lost = self
                .send_one(packets, packet, frames, path, pool)
                .is_err_and(|reason| {
                    self.in_flight.lose(reason, counters);
                    packet.part == Part::More
                });
        }
    }

    /// Writes one packet into a frame and puts that on the ring.
    fn send_one(
        &mut self,
        packets: PacketList<'_>,
        packet: &PacketRef,
        frames: &impl Frames,
        path: &PathState,
        pool: &mut Pool,
    ) -> Result<(), Reason> {
        let bytes = frames.bytes(packet.frame);
        let mut wrapped = self.outer.wrapping.wrap(
            packet.flow_hash,
            || packets.link_header(packet, bytes),
            || frames.capture(packet.frame),
        )?;
        let carried = packet.length().saturating_sub(wrapped.skip);
        let headers = self.headers(carried, path)?;
        let frame = pool.take().ok_or(Reason::TxFull)?;
        if headers + carried > frame.capacity() {
            pool.put(frame);
            return Err(Reason::Oversize);
        }
        self.outer.wrapping.number(&mut wrapped.fields);
        let template = self.template.as_ref();
        let mut written = 0;
        let frame = frame.write(|out| {
            let Some(template) = template else { return 0 };
            let outer = template.write(out, carried, &wrapped.fields).ok();
            let inner = outer.and_then(|outer| {
                packets.write_from(wrapped.skip, packet, bytes, &mut out[outer..])
            });
            written = outer.unwrap_or(0) + inner.unwrap_or(0);
            template.finish_checksum(&mut out[..written]);
            written
        });
        self.push(frame, &wrapped, written, packet.part, pool)
    }

    /// Sends one received frame in place. `begin` has been called for this batch; `finish` follows it.
    pub fn send_in_place(
        &mut self,
        received: Received,
        path: &PathState,
        pool: &mut Pool,
        counters: &TargetCounters,
    ) {
        counters.offered.add(1);
        let Received {
            mut frame,
            room,
            flow_hash,
            capture,
        } = received;
        if frame.is_gathered() {
            // A packet leaves in one frame, and this one is larger.
            counters.dropped.add(Reason::Oversize, 1);
            pool.put(frame.into_free());
            return;
        }
        let packet = frame.bytes().get(room..).unwrap_or(&[]);
        let length = packet.len();
        let wrapped = self
            .outer
            .wrapping
            .wrap(flow_hash, || LinkHeader::parse(packet), || capture);
        let mut wrapped = match wrapped {
            Ok(wrapped) => wrapped,
            Err(reason) => {
                counters.dropped.add(reason, 1);
                pool.put(frame.into_free());
                return;
            }
        };
        let carried = length.saturating_sub(wrapped.skip);
        let headers = match self.headers(carried, path) {
            Ok(headers) => headers,
            Err(reason) => {
                counters.dropped.add(reason, 1);
                pool.put(frame.into_free());
                return;
            }
        };
        // The XDP program made room for the largest outer header; what is missing stands free before it.
        let room = room + wrapped.skip;
        let fits = if headers <= room {
            frame.trim_front(room - headers);
            true
        } else {
            frame.prepend(headers - room).is_some()
        };
        self.outer.wrapping.number(&mut wrapped.fields);
        let written = match (&self.template, fits) {
            (Some(template), true) => {
                let outer = frame.bytes_mut();
                let written = template.write(outer, carried, &wrapped.fields).is_ok();
                template.finish_checksum(outer);
                written
            }
            _ => false,
        };
        if !written {
            self.outer.wrapping.unnumber(&wrapped.fields);
            counters.dropped.add(Reason::Headroom, 1);
            pool.put(frame.into_free());
            return;
        }
        let length = headers + carried;
        if let Err(reason) = self.push(frame.into_send(0), &wrapped, length, Part::Whole, pool) {
            counters.dropped.add(reason, 1);
        }
    }

    /// After a batch: the kernel is told, completions come home.
    pub fn finish(&mut self, pool: &mut Pool, counters: &TargetCounters) {
        let kick = self.bound.port.flush_and_kick();
        counters.calls.add(u64::from(kick.calls));
        self.in_flight.owe(u64::from(kick.dropped));
        self.reclaim(pool, counters);
    }

    /// Completed packets are counted, their frames go home.
    pub fn reclaim(&mut self, pool: &mut Pool, counters: &TargetCounters) {
        let completed = self.bound.port.reclaim(pool);
        self.in_flight.complete(completed, counters);
    }

    /// While idle: what the last kick left on the ring is sent.
    pub fn idle(&mut self, pool: &mut Pool, counters: &TargetCounters) {
        if self.bound.port.in_flight() > 0 {
            self.finish(pool, counters);
        }
    }

    /// At the end: waits for completions, at most `limit`; what does not come is counted as dropped.
    pub fn drain(&mut self, limit: Duration, pool: &mut Pool, counters: &TargetCounters) {
        let end = std::time::Instant::now() + limit;
        loop {
            self.finish(pool, counters);
            if self.bound.port.in_flight() == 0 || std::time::Instant::now() >= end {
                break;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        self.in_flight.abandon(Reason::Shutdown, counters);
    }

    /// Length of the outer headers if the packet fits the path, as `worker::ladder` has made sure unless the
    /// path has changed meanwhile.
    fn headers(&self, length: usize, path: &PathState) -> Result<usize, Reason> {
        let template = self.template.as_ref().ok_or(Reason::NoNeighbour)?;
        if length + template.ip_overhead() > path.mtu as usize {
            return Err(Reason::Oversize);
        }
        Ok(template.overhead())
    }

    fn push(
        &mut self,
        frame: ToSendFrame,
        wrapped: &Wrapped,
        length: usize,
        part: Part,
        pool: &mut Pool,
    ) -> Result<(), Reason> {
        match self.bound.port.push(frame) {
            Ok(()) => {
                let length = u64::try_from(length).unwrap_or(0).saturating_sub(ETHERNET);
                self.in_flight
                    .push(u16::try_from(length).unwrap_or(u16::MAX), part);
                Ok(())
            }
            Err(refused) => {
                self.outer.wrapping.unnumber(&wrapped.fields);
                pool.put(refused.into_frame().into_free());
                Err(Reason::TxFull)
            }
        }
    }
}
