//! GRE by a raw socket: the last resort, so that GRE works on every device.
//!
//! The kernel writes the outer IP header and routes. One packet a message: there is no GSO here.

use std::os::fd::{AsFd, OwnedFd};

use super::batch::{Batch, Sent};
use super::{retry, send_reason, socket_reason};
use crate::mirror::path::PathState;
use crate::packet::encap::gre;
use crate::packet::PacketList;
use crate::reason::Reason;
use crate::source::Frames;
use crate::worker::counters::TargetCounters;

const IP_HEADER: usize = 20;

/// Sends GRE by a raw socket.
#[derive(Debug)]
pub struct RawSender {
    socket: OwnedFd,
    key: Option<u32>,
    /// The next sequence number, where wanted (RFC 2890 section 2.2: the first is 0).
    sequence: Option<u32>,
    header_length: usize,
    headers: Vec<[u8; gre::MAX_HEADER]>,
    batch: Batch,
}

impl RawSender {
    /// From a connected raw socket of protocol GRE; batches hold at most `packets` packets.
    #[must_use]
    pub fn new(socket: OwnedFd, key: Option<u32>, sequence: bool, packets: usize) -> RawSender {
        RawSender {
            socket,
            key,
            sequence: sequence.then_some(0),
            header_length: gre::length(key.is_some(), sequence),
            headers: vec![[0; gre::MAX_HEADER]; packets],
            batch: Batch::new(packets),
        }
    }

    /// Sends a batch: every packet is counted as sent or dropped when this returns.
    pub fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        counters: &TargetCounters,
    ) {
        counters.offered.add(packets.len() as u64);
        if let Some(reason) = socket_reason(path) {
            counters.dropped.add(reason, packets.len() as u64);
            return;
        }
        let limit = (path.mtu as usize).saturating_sub(IP_HEADER + self.header_length);
        let mut oversize = 0;
        for (packet, header) in packets.refs().iter().zip(&mut self.headers) {
            if packet.length() > limit {
                oversize += 1;
                continue;
            }
            *header = gre::header(self.key, self.sequence);
            self.sequence = self.sequence.map(|number| number.wrapping_add(1));
            self.batch.begin();
            self.batch.packet([
                &header[..self.header_length],
                packets.head_bytes(packet),
                packet.tail_bytes(frames.bytes(packet.frame)),
            ]);
        }
        if oversize > 0 {
            counters.dropped.add(Reason::Oversize, oversize);
        }
        self.batch.finish();
        self.send_all(counters);
        self.batch.clear();
    }

    fn send_all(&mut self, counters: &TargetCounters) {
        let socket = self.socket.as_fd();
        let mut at = 0;
        let mut retries = 0;
        while at < self.batch.len() {
            counters.calls.add(1);
            let errno = match self.batch.send(socket, at) {
                Sent::Messages(count) if count > 0 => {
                    for message in at..at + count {
                        counters.sent_packets.add(1);
                        counters
                            .sent_bytes
                            .add(self.batch.bytes(message) + IP_HEADER as u64);
                    }
                    at += count;
                    retries = 0;
                    continue;
                }
                Sent::Messages(_) => libc::EIO,
                Sent::Refused(errno) => errno,
            };
            if retry(socket, errno, &mut retries) {
                continue;
            }
            retries = 0;
            counters.dropped.add(send_reason(errno), 1);
            at += 1;
        }
    }
}
