//! Copies into a capture: a worker encodes pcapng blocks into buffers that were made beforehand, and a
//! writer with a thread of its own takes the full ones.
//!
//! A disk may be slow and a pipe may be full; a worker waits for neither. When every buffer is at the
//! writer, packets are dropped and counted. Buffers come back with what became of their packets, as
//! completions of a transmit ring do: until then these are in flight. The writer is control's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use super::wrap::UtcOffset;
use crate::packet::pcapng::{packet_length, write_packet, PacketInfo};
use crate::packet::PacketList;
use crate::reason::Reason;
use crate::source::Frames;
use crate::worker::counters::TargetCounters;

/// Bytes of a buffer: a few hundred full-size packets, or the largest packet many times over.
pub const BUFFER: usize = 512 << 10;
/// Buffers of one worker: 32 MiB, a quarter of a second at 1 Gbit/s. Their memory is taken as they are
/// first used, and the last that came back is used first.
pub const BUFFERS: usize = 64;
/// A buffer that has waited this long is handed to the writer although others wait there.
const OLDEST_NS: u64 = 50_000_000;
/// After this long without a buffer that came back, a writer at the end is not waited for any longer.
const STUCK: Duration = Duration::from_secs(1);
/// Longest wait for the writer at the end.
const LONGEST_DRAIN: Duration = Duration::from_secs(8);

/// A buffer of encoded packets.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    used: usize,
    packets: u64,
    /// Time stamp of its first packet, CLOCK_MONOTONIC.
    first_ns: u64,
    /// Lost packets that its first packet tells of.
    told: u64,
    /// What became of it, once it comes back.
    outcome: Outcome,
}

/// What became of a buffer's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Packets that were written.
    pub packets: u64,
    /// Bytes that they are in the file.
    pub bytes: u64,
    /// Why the others were not.
    pub reason: Option<Reason>,
}

impl Buffer {
    fn new(capacity: usize) -> Buffer {
        Buffer {
            bytes: vec![0; capacity].into_boxed_slice(),
            used: 0,
            packets: 0,
            first_ns: 0,
            told: 0,
            outcome: Outcome::default(),
        }
    }

    /// The encoded packets: whole blocks.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or(&[])
    }

    /// How many packets there are.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }
}

/// What a worker and the writer share.
#[derive(Debug)]
pub struct Channel {
    filled: ArrayQueue<Buffer>,
    back: ArrayQueue<Buffer>,
    abandoned: AtomicBool,
}

impl Channel {
    /// Buffers of one worker on their way.
    #[must_use]
    pub fn new() -> Arc<Channel> {
        Arc::new(Channel {
            filled: ArrayQueue::new(BUFFERS),
            back: ArrayQueue::new(BUFFERS),
            abandoned: AtomicBool::new(false),
        })
    }

    /// The next buffer to write.
    #[must_use]
    pub fn take(&self) -> Option<Buffer> {
        self.filled.pop()
    }

    /// Gives a buffer back with what became of it.
    pub fn give_back(&self, mut buffer: Buffer, outcome: Outcome) {
        buffer.outcome = outcome;
        // There are as many places as buffers.
        drop(self.back.push(buffer));
    }

    /// The worker ends and waits for its buffers no longer than the writer needs to give them back.
    #[must_use]
    pub fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }
}

/// Encodes packets for the writer.
#[derive(Debug)]
pub struct CaptureSender {
    channel: Arc<Channel>,
    utc: UtcOffset,
    /// Number of the interface in the capture.
    interface: u32,
    free: Vec<Buffer>,
    current: Option<Buffer>,
    /// Packets in `current` and at the writer.
    in_flight: u64,
    /// Buffers at the writer.
    away: usize,
    /// Packets dropped since the last one that was encoded.
    lost: u64,
}

impl CaptureSender {
    /// For packets of interface number `interface`, with [`BUFFERS`] buffers of `capacity` bytes.
    #[must_use]
    pub fn new(
        channel: Arc<Channel>,
        utc: UtcOffset,
        interface: u32,
        capacity: usize,
    ) -> CaptureSender {
        CaptureSender {
            channel,
            utc,
            interface,
            free: (0..BUFFERS).map(|_| Buffer::new(capacity)).collect(),
            current: None,
            in_flight: 0,
            away: 0,
            lost: 0,
        }
    }

    /// Encodes a batch: every packet is counted as in flight or dropped when this returns.
    pub fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        counters: &TargetCounters,
    ) {
        self.reclaim(counters);
        counters.offered.add(packets.len() as u64);
        let interface = self.interface;
        let mut now = 0;
        for packet in packets.refs() {
            let frame = frames.bytes(packet.frame);
            let meta = frames.meta(packet.frame);
            now = meta.timestamp_ns;
            let length = packet.length();
            // A super-packet's pieces are whole; what was cut to a snaplen says how long it was.
            let original = match meta.gso_size {
                0 => meta.wire_length.max(length as u32),
                _ => length as u32,
            };
            let time_ns = self.utc.utc(meta.timestamp_ns);
            // Told by the first packet of a buffer alone: what is not written is told again by the next.
            let lost = self.lost;
            let Some(buffer) = self.buffer(packet_length(length, lost > 0)) else {
                self.lost += 1;
                counters.dropped.add(Reason::WriterFull, 1);
                continue;
            };
            let lost = if buffer.packets == 0 { lost } else { 0 };
            let info = PacketInfo {
                interface,
                time_ns,
                original_length: original,
                direction: meta.direction,
                lost,
            };
            let out = buffer.bytes.get_mut(buffer.used..).unwrap_or_default();
            let written = write_packet(out, &info, length, |out| packets.write(packet, frame, out));
            let Some(written) = written else {
                // Larger than a whole buffer, or bytes that the frame does not have.
                self.lost += 1;
                counters.dropped.add(Reason::WriterFull, 1);
                continue;
            };
            if buffer.packets == 0 {
                (buffer.first_ns, buffer.told) = (now, lost);
            }
            buffer.used += written;
            buffer.packets += 1;
            self.in_flight += 1;
            self.lost -= lost;
        }
        let old = |buffer: &Buffer| now.saturating_sub(buffer.first_ns) > OLDEST_NS;
        if self.current.as_ref().is_some_and(old) {
            self.hand_over(counters);
        }
        counters.in_flight.set(self.in_flight);
    }

    /// The buffer that has room for a block of `length` bytes: the current one, or the next.
    fn buffer(&mut self, length: usize) -> Option<&mut Buffer> {
        let full = |buffer: &Buffer| buffer.bytes.len() - buffer.used < length;
        if self.current.as_ref().is_some_and(full) {
            self.push();
        }
        if self.current.is_none() {
            self.current = self.free.pop();
        }
        self.current.as_mut()
    }

    fn hand_over(&mut self, counters: &TargetCounters) {
        self.push();
        counters.calls.add(1);
    }

    fn push(&mut self) {
        let Some(buffer) = self.current.take() else {
            return;
        };
        if buffer.packets == 0 {
            // Too small for one packet: it stays the next.
            self.free.push(buffer);
        } else if self.channel.filled.push(buffer).is_ok() {
            // Always: there are as many places as buffers.
            self.away += 1;
        }
    }

    /// While there is nothing to send: what was encoded goes to the writer, unless it is busy. Then it
    /// waits for company: many small writes would cost it more than one.
    pub fn idle(&mut self, counters: &TargetCounters) {
        self.reclaim(counters);
        if self.current.is_some() && self.channel.filled.is_empty() {
            self.hand_over(counters);
        }
    }

    /// What became of the buffers that came back is counted.
    fn reclaim(&mut self, counters: &TargetCounters) {
        while let Some(mut buffer) = self.channel.back.pop() {
            let Outcome {
                packets,
                bytes,
                reason,
            } = std::mem::take(&mut buffer.outcome);
            let packets = packets.min(buffer.packets);
            counters.sent_packets.add(packets);
            counters.sent_bytes.add(bytes);
            let reason = reason.unwrap_or(Reason::WriteError);
            counters.dropped.add(reason, buffer.packets - packets);
            self.lost += buffer.packets - packets;
            if packets == 0 {
                self.lost += buffer.told;
            }
            self.in_flight = self.in_flight.saturating_sub(buffer.packets);
            self.away = self.away.saturating_sub(1);
            (buffer.used, buffer.packets) = (0, 0);
            self.free.push(buffer);
        }
        counters.in_flight.set(self.in_flight);
    }

    /// At the end: waits for the writer as long as it gets on with it, then takes back what is there.
    pub fn drain(&mut self, counters: &TargetCounters) {
        self.push();
        let end = Instant::now() + LONGEST_DRAIN;
        let mut before = self.away;
        let mut stuck = Instant::now() + STUCK;
        while self.away > 0 {
            self.reclaim(counters);
            let now = Instant::now();
            if self.away != before {
                (before, stuck) = (self.away, now + STUCK);
            } else if now >= stuck || now >= end {
                if self.channel.abandoned() {
                    break;
                }
                // A writer that can be woken gives everything back now; one that hangs in a dead disk
                // is waited for once more.
                self.channel.abandoned.store(true, Ordering::Release);
                stuck = now + STUCK;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        counters.dropped.add(Reason::Shutdown, self.in_flight);
        self.in_flight = 0;
        counters.in_flight.set(0);
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
