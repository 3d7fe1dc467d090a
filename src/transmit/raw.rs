//! GRE and ERSPAN by a raw socket: the last resort, so that they work on every device.
//!
//! The kernel writes the outer IP header and routes. One packet a message: there is no GSO here.

use std::os::fd::{AsFd, OwnedFd};

use super::batch::{Batch, Sent};
use super::wrap::Wrapping;
use super::{retry, send_reason, socket_reason};
use crate::mirror::path::PathState;
use crate::packet::encap::{ip_header, IpVersion, MAX_TUNNEL_HEADER};
use crate::packet::PacketList;
use crate::reason::Reason;
use crate::source::Frames;
use crate::worker::counters::TargetCounters;

/// Sends what GRE carries by a raw socket.
#[derive(Debug)]
pub struct RawSender {
    socket: OwnedFd,
    wrapping: Wrapping,
    ip_header: usize,
    header_length: usize,
    header: [u8; MAX_TUNNEL_HEADER],
    batch: Batch,
}

impl RawSender {
    /// From a connected raw socket of protocol GRE; batches hold at most `packets` packets. `None` if
    /// the tunnel is not GRE's.
    #[must_use]
    pub fn new(
        socket: OwnedFd,
        wrapping: Wrapping,
        outer: IpVersion,
        packets: usize,
    ) -> Option<RawSender> {
        if wrapping.tunnel.udp_port().is_some() {
            return None;
        }
        Some(RawSender {
            socket,
            ip_header: ip_header(outer),
            header_length: wrapping.tunnel.header_length(),
            header: wrapping.tunnel.header(),
            wrapping,
            batch: Batch::new(packets),
        })
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
        let limit = (path.mtu as usize).saturating_sub(self.ip_header + self.header_length);
        let tunnel = self.wrapping.tunnel;
        for packet in packets.refs() {
            let frame = frames.bytes(packet.frame);
            let wrapped = self.wrapping.wrap(
                packet.flow_hash,
                || packets.link_header(packet, frame),
                || frames.capture(packet.frame),
            );
            let mut wrapped = match wrapped {
                Ok(wrapped) => wrapped,
                Err(reason) => {
                    counters.dropped.add(reason, 1);
                    continue;
                }
            };
            let carried = packet.length().saturating_sub(wrapped.skip);
            if carried > limit {
                counters.dropped.add(Reason::Oversize, 1);
                continue;
            }
            self.wrapping.number(&mut wrapped.fields);
            let header = &mut self.header[..self.header_length];
            // Less than the path's MTU, which the kernel keeps below 64 KiB for IP.
            tunnel.fill(header, carried as u16, &wrapped.fields);
            let [head, tail] = packets.parts_from(wrapped.skip, packet, frame);
            self.batch.begin();
            self.batch.packet([header, head], tail);
            // Many short packets are more bytes to copy than a batch has room for.
            if !self.batch.has_room() {
                self.flush(counters);
            }
        }
        self.flush(counters);
    }

    fn flush(&mut self, counters: &TargetCounters) {
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
                            .add(self.batch.bytes(message) + self.ip_header as u64);
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
