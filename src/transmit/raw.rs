//! GRE and ERSPAN by a raw socket: the last resort, so that they work on every device.
//!
//! The kernel writes the outer IP header and routes. One packet a message: there is no GSO here.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::batch::{Batch, Sent};
use super::tally::Tally;
use super::wrap::Wrapping;
use super::{retry, send_reason, socket_reason};
use crate::mirror::path::PathState;
use crate::packet::encap::{ip_header, IpVersion, MAX_TUNNEL_HEADER};
use crate::packet::{PacketList, Part};
use crate::source::Frames;
use crate::worker::counters::TargetCounters;

/// Sends what GRE carries by a raw socket.
#[derive(Debug)]
pub struct RawSender {
    socket: Arc<OwnedFd>,
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
        socket: Arc<OwnedFd>,
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
        counters.offered.add(packets.copies() as u64);
        if let Some(reason) = socket_reason(path) {
            counters.dropped.add(reason, packets.copies() as u64);
            return;
        }
        let mut tally = Tally::default();
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
                    // Pieces of one copy are refused all together, for they are of one kind.
                    counters
                        .dropped
                        .add(reason, u64::from(packet.part != Part::More));
                    continue;
                }
            };
            if !self.batch.has_room() {
                self.flush(&mut tally, counters);
            }
            let carried = packet.length().saturating_sub(wrapped.skip);
            self.wrapping.number(&mut wrapped.fields);
            let header = &mut self.header[..self.header_length];
            // Less than the path's MTU, which the kernel keeps below 64 KiB for IP.
            tunnel.fill(header, carried as u16, &wrapped.fields);
            let [head, tail] = packets.parts_from(wrapped.skip, packet, frame);
            self.batch.begin();
            self.batch.packet(packet.part, [header, head], tail);
        }
        self.flush(&mut tally, counters);
    }

    fn flush(&mut self, tally: &mut Tally, counters: &TargetCounters) {
        self.batch.finish();
        send_all(
            &mut self.batch,
            &self.socket,
            self.ip_header,
            tally,
            counters,
        );
        self.batch.clear();
    }
}

/// Sends a batch of messages of one packet each; the kernel adds `header` bytes to each.
pub(super) fn send_all(
    batch: &mut Batch,
    socket: &OwnedFd,
    header: usize,
    tally: &mut Tally,
    counters: &TargetCounters,
) {
    let socket = socket.as_fd();
    let mut at = 0;
    let mut retries = 0;
    while at < batch.len() {
        counters.calls.add(1);
        let errno = match batch.send(socket, at) {
            Sent::Messages(count) if count > 0 => {
                for message in at..at + count {
                    tally.sent(&batch.extent(message), counters);
                    counters
                        .sent_bytes
                        .add(batch.bytes(message) + header as u64);
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
        tally.failed(&batch.extent(at), send_reason(errno), counters);
        at += 1;
    }
}
