//! Copies by UDP sockets, one a source port; runs of equal copies leave as one super-packet.
//!
//! The kernel routes, so this follows its routes, neighbours and policy rules. A flow keeps its port,
//! so grouping a batch by port keeps the order within a flow and makes the runs longer.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::batch::{Batch, Sent};
use super::tally::Tally;
use super::{open, retry, send_reason, socket_reason};
use crate::mirror::path::PathState;
use crate::packet::encap::{ip_header, IpVersion, Tunnel, UDP_HEADER};
use crate::packet::{PacketList, PacketRef};
use crate::source::Frames;
use crate::worker::counters::TargetCounters;

/// Segments of one super-packet: `UDP_MAX_SEGMENTS` is 64 before kernel 6.11, 128 from then on.
pub(super) const MAX_SEGMENTS: u32 = 64;
/// Largest UDP payload of one send: 65535 less the IPv4 and UDP headers.
const MAX_PAYLOAD: usize = 65535 - 20 - 8;
/// Length of the header that follows UDP's: VXLAN and Geneve without options.
const HEADER: usize = 8;
const NONE: u32 = u32::MAX;

/// Sends VXLAN and Geneve by UDP.
#[derive(Debug)]
pub struct UdpSender {
    sockets: Vec<Arc<OwnedFd>>,
    header: [u8; HEADER],
    /// Outer IP and UDP headers, which the kernel writes.
    ip_udp_headers: usize,
    /// Whether runs go out with `UDP_SEGMENT`. Cleared for good when the device says that it cannot.
    segment: bool,
    /// Calls in a row that ended in EINVAL although size and count of the run were right.
    invalid: u32,
    /// By port: first and last packet of the batch, linked by `next`.
    first: Vec<u32>,
    last: Vec<u32>,
    next: Vec<u32>,
    /// First packet of each message.
    starts: Vec<u32>,
    batch: Batch,
    outer: IpVersion,
    too_long: TooLong,
}

/// Copies that the kernel found too long for the path, because it has learned of a smaller path MTU just now.
/// They are neither offered nor dropped: whoever sent them makes them fit and sends them again.
#[derive(Debug)]
pub struct TooLong {
    /// The copies.
    pub copies: Vec<PacketRef>,
    /// What the kernel takes for the path MTU, in bytes.
    pub mtu: u32,
}

impl TooLong {
    /// Room for a batch.
    #[must_use]
    pub fn new(packets: usize) -> TooLong {
        TooLong {
            copies: Vec::with_capacity(packets),
            mtu: 0,
        }
    }

    /// Moves them here, behind those that are here, as far as there is room.
    pub fn take_from(&mut self, other: &mut TooLong) {
        if !other.copies.is_empty() {
            self.mtu = other.mtu;
            self.copies.append(&mut other.copies);
        }
    }
}

impl UdpSender {
    /// From connected sockets, one a source port in order; batches hold at most `packets` packets. `None`
    /// if the tunnel is not carried by UDP.
    #[must_use]
    pub fn new(
        sockets: Vec<Arc<OwnedFd>>,
        tunnel: Tunnel,
        outer: IpVersion,
        segment: bool,
        packets: usize,
    ) -> Option<UdpSender> {
        tunnel.udp_port()?;
        let ports = sockets.len();
        let header = tunnel.header();
        let (_, behind_udp) = header.split_at(UDP_HEADER);
        Some(UdpSender {
            sockets,
            header: *behind_udp.first_chunk()?,
            ip_udp_headers: ip_header(outer) + UDP_HEADER,
            segment,
            invalid: 0,
            first: vec![NONE; ports],
            last: vec![NONE; ports],
            next: vec![NONE; packets],
            starts: Vec::with_capacity(packets),
            batch: Batch::new(packets),
            outer,
            too_long: TooLong::new(packets),
        })
    }

    /// Whether runs leave as super-packets.
    #[must_use]
    pub fn segments(&self) -> bool {
        self.segment
    }

    /// Sends a batch: every packet is counted as sent or dropped when this returns.
    pub fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        counters: &TargetCounters,
    ) {
        counters.offered.add(packets.copies() as u64);
        if let Some(reason) = socket_reason(path) {
            counters.dropped.add(reason, packets.copies() as u64);
            return;
        }
        self.group(packets);
        for port in 0..self.sockets.len() {
            let mut at = self.first[port];
            self.first[port] = NONE;
            let mut segment = self.segment;
            let mut tally = Tally::default();
            while at != NONE {
                let following = self.fill(at, segment, packets, frames, counters);
                at = match self.send_port(port, packets.refs(), &mut tally, counters) {
                    Outcome::Done => following,
                    Outcome::Again(packet) => {
                        segment = false;
                        packet
                    }
                };
                self.batch.clear();
                self.starts.clear();
            }
        }
    }

    /// What the last batch had that was too long.
    pub fn too_long(&mut self) -> &mut TooLong {
        &mut self.too_long
    }

    /// Remembers the copies of message `at`, unless they are pieces: those were cut for a path MTU that has
    /// become smaller meanwhile once more.
    fn remember_too_long(&mut self, port: usize, at: usize, refs: &[PacketRef]) -> bool {
        if self.batch.extent(at).pieces > 0 {
            return false;
        }
        let Some(mtu) = open::path_mtu(self.sockets[port].as_fd(), self.outer) else {
            return false;
        };
        self.too_long.mtu = mtu;
        let mut packet = self.starts[at];
        for _ in 0..self.batch.packets(at) {
            self.too_long.copies.push(refs[packet as usize]);
            packet = self.next[packet as usize];
        }
        true
    }

    /// Links the packets of each port, in order.
    fn group(&mut self, packets: PacketList<'_>) {
        let ports = self.sockets.len() as u32;
        for (index, packet) in packets.refs().iter().enumerate() {
            let port = (packet.flow_hash % ports) as usize;
            let index = index as u32;
            self.next[index as usize] = NONE;
            if self.first[port] == NONE {
                self.first[port] = index;
            } else {
                self.next[self.last[port] as usize] = index;
            }
            self.last[port] = index;
        }
    }

    /// Fills the message list from packet `at` of a port on; returns where to go on.
    fn fill(
        &mut self,
        mut at: u32,
        segment: bool,
        packets: PacketList<'_>,
        frames: &impl Frames,
        counters: &TargetCounters,
    ) -> u32 {
        let refs = packets.refs();
        while at != NONE && self.batch.has_room() {
            let size = refs[at as usize].length() + self.header.len();
            let mut run = 0;
            let mut bytes = 0;
            self.starts.push(at);
            self.batch.begin();
            loop {
                let packet = &refs[at as usize];
                let length = packet.length() + self.header.len();
                self.batch.packet(
                    packet.part,
                    [&self.header, packets.head_bytes(packet)],
                    packet.tail_bytes(frames.bytes(packet.frame)),
                );
                run += 1;
                bytes += length;
                at = self.next[at as usize];
                // All segments are equal but the last, which may be shorter.
                if !segment
                    || at == NONE
                    || length < size
                    || run == MAX_SEGMENTS
                    || !self.batch.last_has_room()
                {
                    break;
                }
                let following = refs[at as usize].length() + self.header.len();
                if following > size || bytes + following > MAX_PAYLOAD {
                    break;
                }
            }
            if run > 1 {
                self.batch
                    .segment_last(u16::try_from(size).unwrap_or(u16::MAX));
            }
            counters.runs.add(1);
            counters.run_packets.add(u64::from(run));
        }
        self.batch.finish();
        at
    }

    fn send_port(
        &mut self,
        port: usize,
        refs: &[PacketRef],
        tally: &mut Tally,
        counters: &TargetCounters,
    ) -> Outcome {
        let mut at = 0;
        let mut retries = 0;
        while at < self.batch.len() {
            let socket = self.sockets[port].as_fd();
            let batch = &mut self.batch;
            counters.calls.add(1);
            let errno = match batch.send(socket, at) {
                Sent::Messages(count) if count > 0 => {
                    for message in at..at + count {
                        let sent = u64::from(batch.packets(message));
                        tally.sent(&batch.extent(message), counters);
                        counters
                            .sent_bytes
                            .add(batch.bytes(message) + sent * self.ip_udp_headers as u64);
                    }
                    at += count;
                    retries = 0;
                    self.invalid = 0;
                    continue;
                }
                Sent::Messages(_) => libc::EIO,
                Sent::Refused(errno) => errno,
            };
            if retry(socket, errno, &mut retries) {
                continue;
            }
            retries = 0;
            if batch.packets(at) > 1 && matches!(errno, libc::EIO | libc::EINVAL) {
                // EIO: the device has no checksum offload, so it never will. EINVAL can have passing
                // causes; size and count are right here, so three in a row are taken for the same.
                self.invalid += 1;
                if errno == libc::EIO || self.invalid >= 3 {
                    self.segment = false;
                    counters.gso_refused.set(1);
                }
                return Outcome::Again(self.starts[at]);
            }
            if errno == libc::EMSGSIZE && self.remember_too_long(port, at, refs) {
                // They are offered again once they fit.
                let copies = u64::from(self.batch.packets(at));
                counters.offered.add(copies.wrapping_neg());
            } else {
                tally.failed(&self.batch.extent(at), send_reason(errno), counters);
            }
            at += 1;
        }
        Outcome::Done
    }
}

/// What became of a port's messages.
enum Outcome {
    Done,
    /// From this packet on they have to go one by one.
    Again(u32),
}
