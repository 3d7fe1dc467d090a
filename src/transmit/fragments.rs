//! Copies in outer IP fragments, by a raw socket that takes whole IP packets.
//!
//! Whatever a target's transmitter is, its fragments leave here: they are few, they are built by
//! `packet::fit`, and the kernel's own fragmentation would go by a path MTU of its own. The kernel routes.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use super::batch::Batch;
use super::raw::send_all;
use super::socket_reason;
use super::tally::Tally;
use super::wrap::Wrapping;
use crate::mirror::path::PathState;
use crate::packet::encap::{Marking, OuterAddresses, OuterTemplate, MAX_OUTER};
use crate::packet::fit::{fragment, NotCut, Pieces};
use crate::packet::headers::ETHERNET_HEADER;
use crate::packet::{PacketList, PacketRef, DEFAULT_PACKETS};
use crate::reason::Reason;
use crate::source::Frames;
use crate::worker::counters::TargetCounters;

/// Numbers of fragmented datagrams, shared by all workers that send to one target: two datagrams between two
/// addresses must not have the same within the time of reassembly (RFC 6864).
pub type Identification = Arc<AtomicU32>;

/// What makes the outer headers.
#[derive(Debug)]
pub struct FragmentOuter {
    /// The tunnel, and the fields of its headers; its sequence is the transmitter's.
    pub wrapping: Wrapping,
    /// TTL and DSCP.
    pub marking: Marking,
    /// The target's numbers.
    pub identification: Identification,
}

/// Sends fragments.
#[derive(Debug)]
pub struct FragmentSender {
    socket: Arc<OwnedFd>,
    outer: FragmentOuter,
    template: Option<OuterTemplate>,
    generation: u64,
    /// A whole outer packet, where its checksum has to be computed.
    scratch: Box<[u8]>,
    pieces: Pieces,
    batch: Batch,
}

impl FragmentSender {
    /// From a connected raw socket of [`open::whole_packets`](super::open::whole_packets).
    #[must_use]
    pub fn new(socket: Arc<OwnedFd>, outer: FragmentOuter) -> FragmentSender {
        FragmentSender {
            socket,
            outer,
            template: None,
            generation: 0,
            scratch: vec![0; MAX_OUTER + usize::from(u16::MAX)].into_boxed_slice(),
            pieces: Pieces::default(),
            batch: Batch::new(DEFAULT_PACKETS),
        }
    }

    /// Whether nothing waits to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Cuts one copy into fragments, which leave with [`flush`](Self::flush). The copy is counted as offered, and
    /// where it cannot be cut as dropped.
    ///
    /// # Errors
    /// [`NotCut::NoRoom`]: flush and add it again.
    pub fn add(
        &mut self,
        packets: PacketList<'_>,
        packet: &PacketRef,
        frames: &impl Frames,
        path: &PathState,
        counters: &TargetCounters,
    ) -> Result<(), NotCut> {
        let outcome = match socket_reason(path) {
            Some(reason) => Err(reason),
            None => match self.cut(packets, packet, frames, path) {
                Err(Refusal::NoRoom) => return Err(NotCut::NoRoom),
                Err(Refusal::Drop(reason)) => Err(reason),
                Ok(()) => Ok(()),
            },
        };
        counters.offered.add(1);
        match outcome {
            Ok(()) => counters.fragmented.add(1),
            Err(reason) => counters.dropped.add(reason, 1),
        }
        Ok(())
    }

    fn cut(
        &mut self,
        packets: PacketList<'_>,
        packet: &PacketRef,
        frames: &impl Frames,
        path: &PathState,
    ) -> Result<(), Refusal> {
        if self.generation != path.generation || self.template.is_none() {
            self.generation = path.generation;
            let addresses = OuterAddresses {
                source_mac: [0; 6],
                destination_mac: [0; 6],
                source: path.source_ip,
                destination: path.destination,
            };
            let tunnel = self.outer.wrapping.tunnel;
            self.template = OuterTemplate::new(&addresses, self.outer.marking, tunnel);
        }
        let template = self
            .template
            .as_ref()
            .ok_or(Refusal::Drop(Reason::NoRoute))?;
        let frame = frames.bytes(packet.frame);
        let wrapping = &self.outer.wrapping;
        let mut wrapped = wrapping
            .wrap(
                packet.flow_hash,
                || packets.link_header(packet, frame),
                || frames.capture(packet.frame),
            )
            .map_err(Refusal::Drop)?;
        let carried = packet.length().saturating_sub(wrapped.skip);
        let number = self.outer.identification.fetch_add(1, Ordering::Relaxed);
        wrapping.number(&mut wrapped.fields);
        let made = template
            .write(&mut self.scratch, carried, &wrapped.fields)
            .map_err(Refusal::Drop)
            .and_then(|headers| {
                if template.needs_checksum() {
                    let (_, inner) = self.scratch.split_at_mut(headers);
                    packets.write_from(wrapped.skip, packet, frame, inner);
                    template.finish_checksum(&mut self.scratch[..headers + carried]);
                }
                let outer = &self.scratch[ETHERNET_HEADER..headers];
                let packet = packet.without_front(wrapped.skip);
                let mtu = path.mtu as usize;
                let pieces = &mut self.pieces;
                match fragment(outer, packets, &packet, frame, mtu, number, pieces) {
                    Ok(_) => Ok(()),
                    Err(NotCut::NoRoom) => Err(Refusal::NoRoom),
                    Err(NotCut::Unsuitable) => Err(Refusal::Drop(Reason::Oversize)),
                }
            });
        if made.is_err() {
            wrapping.unnumber(&wrapped.fields);
        }
        made
    }

    /// Sends what was cut since the last time from `packets`: counted when this returns.
    pub fn flush(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        counters: &TargetCounters,
    ) {
        let mut tally = Tally::default();
        let list = self.pieces.list(packets);
        for piece in list.refs() {
            if !self.batch.has_room() {
                send(&mut self.batch, &self.socket, &mut tally, counters);
            }
            self.batch.begin();
            self.batch.packet(
                piece.part,
                [&[], list.head_bytes(piece)],
                piece.tail_bytes(frames.bytes(piece.frame)),
            );
        }
        send(&mut self.batch, &self.socket, &mut tally, counters);
        self.pieces.clear();
    }
}

enum Refusal {
    NoRoom,
    Drop(Reason),
}

fn send(batch: &mut Batch, socket: &OwnedFd, tally: &mut Tally, counters: &TargetCounters) {
    batch.finish();
    send_all(batch, socket, 0, tally, counters);
    batch.clear();
}
