//! What does not fit a target's path is made to fit: resegmented, fragmented, truncated or dropped, as the target
//! says, before its transmitter sees it.
//!
//! Costs one comparison a packet while everything fits. In the balance a copy counts once, however many pieces
//! it leaves in; the transmitters see to that.

use super::counters::TargetCounters;
use crate::mirror::path::PathState;
use crate::packet::encap::{Inner, IpVersion, Tunnel};
use crate::packet::fit::{resegment, truncate, NotCut, Oversize, Pieces};
use crate::packet::headers::ETHERNET_HEADER;
use crate::packet::{PacketList, PacketRef, DEFAULT_PACKETS};
use crate::reason::Reason;
use crate::source::Frames;
use crate::transmit::fragments::FragmentSender;
use crate::transmit::udp::TooLong;

/// One target's ladder.
#[derive(Debug)]
pub struct Ladder {
    oversize: Oversize,
    tunnel: Tunnel,
    outer: IpVersion,
    pieces: Pieces,
    fragments: Option<FragmentSender>,
    too_long: TooLong,
    spare: TooLong,
    /// The path MTU that a send was refused for, and the path's generation then: control publishes the next one
    /// within milliseconds.
    refused: Option<(u32, u64)>,
}

impl Ladder {
    /// `fragments` sends what is to be fragmented; without it that is dropped as oversize.
    #[must_use]
    pub fn new(
        oversize: Oversize,
        tunnel: Tunnel,
        outer: IpVersion,
        fragments: Option<FragmentSender>,
    ) -> Ladder {
        Ladder {
            oversize,
            tunnel,
            outer,
            pieces: Pieces::default(),
            fragments,
            too_long: TooLong::new(DEFAULT_PACKETS),
            spare: TooLong::new(DEFAULT_PACKETS),
            refused: None,
        }
    }

    /// Longest packet, Ethernet header included, that fits the path now, and no more than `most` bytes of outer
    /// IP packet, which is what the transmitter can take.
    #[must_use]
    pub fn limit(&self, path: &PathState, most: usize) -> usize {
        let refused = self
            .refused
            .filter(|&(_, generation)| generation == path.generation);
        let mtu = refused.map_or(path.mtu, |(mtu, _)| mtu.min(path.mtu));
        self.limit_of(mtu, most)
    }

    fn limit_of(&self, mtu: u32, most: usize) -> usize {
        let mtu = (mtu as usize).min(most);
        // Where IP alone is carried, the Ethernet header is left behind.
        let stripped = match self.tunnel.inner() {
            Inner::Ip => ETHERNET_HEADER,
            Inner::Ethernet => 0,
        };
        (mtu + stripped).saturating_sub(self.tunnel.ip_overhead(self.outer))
    }

    /// Sends `packets` by `send`, each list of packets of at most `limit` bytes.
    pub fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        limit: usize,
        counters: &TargetCounters,
        mut send: impl FnMut(PacketList<'_>, &mut TooLong),
    ) {
        // Without a route there is nothing to fit: the transmitter counts them with its reason.
        let fits = |packet: &PacketRef| packet.length() <= limit;
        if path.mtu == 0 || packets.refs().iter().all(fits) {
            send(packets, &mut self.too_long);
        } else {
            self.fit(
                packets,
                packets.refs(),
                frames,
                path,
                limit,
                counters,
                &mut send,
            );
        }
        if self.too_long.copies.is_empty() {
            return;
        }
        // The kernel has heard from a router before we have: cut them for what it says and go on.
        // The lists only change places.
        let mtu = self.too_long.mtu;
        self.refused = Some((mtu, path.generation));
        let limit = self.limit_of(mtu, usize::MAX).min(limit);
        let spare = std::mem::replace(&mut self.spare, TooLong::new(0));
        let mut again = std::mem::replace(&mut self.too_long, spare);
        self.fit(
            packets,
            &again.copies,
            frames,
            path,
            limit,
            counters,
            &mut send,
        );
        for _ in self.too_long.copies.drain(..) {
            drop_one(counters);
        }
        again.copies.clear();
        self.spare = again;
    }

    /// Makes `refs`, copies of the batch `packets`, fit, and sends them.
    #[allow(clippy::too_many_arguments)] // What a batch is, and what it goes through.
    fn fit(
        &mut self,
        packets: PacketList<'_>,
        refs: &[PacketRef],
        frames: &impl Frames,
        path: &PathState,
        limit: usize,
        counters: &TargetCounters,
        send: &mut impl FnMut(PacketList<'_>, &mut TooLong),
    ) {
        for packet in refs {
            let taken = self.take(packets, packet, frames, path, limit, counters, send);
            if taken == Err(NotCut::NoRoom) {
                // There is room now, at the latest in what is empty.
                self.flush(packets, frames, counters, send);
                let again = self.take(packets, packet, frames, path, limit, counters, send);
                if again.is_err() {
                    drop_one(counters);
                }
            }
        }
        self.flush(packets, frames, counters, send);
    }

    #[allow(clippy::too_many_arguments)] // What a batch is, and what it goes through.
    fn take(
        &mut self,
        packets: PacketList<'_>,
        packet: &PacketRef,
        frames: &impl Frames,
        path: &PathState,
        limit: usize,
        counters: &TargetCounters,
        send: &mut impl FnMut(PacketList<'_>, &mut TooLong),
    ) -> Result<(), NotCut> {
        let fits = packet.length() <= limit;
        if !fits && self.oversize == Oversize::Drop {
            drop_one(counters);
            return Ok(());
        }
        if fits || self.oversize != Oversize::Fragment {
            // Fragments wait: they leave before what comes behind them.
            if let Some(fragments) = self.fragments.as_mut().filter(|waits| !waits.is_empty()) {
                fragments.flush(packets, frames, counters);
            }
        }
        if fits {
            return self.pieces.pass(*packet);
        }
        if self.oversize == Oversize::Truncate {
            self.pieces.pass(truncate(packet, limit))?;
            counters.truncated.add(1);
            return Ok(());
        }
        if self.oversize == Oversize::Resegment {
            let frame = frames.bytes(packet.frame);
            match resegment(packets, packet, frame, limit, &mut self.pieces) {
                Ok(_) => {
                    counters.resegmented.add(1);
                    return Ok(());
                }
                Err(NotCut::NoRoom) => return Err(NotCut::NoRoom),
                Err(NotCut::Unsuitable) => {}
            }
        }
        if !self.pieces.is_empty() {
            send(self.pieces.list(packets), &mut self.too_long);
            self.pieces.clear();
        }
        match &mut self.fragments {
            Some(fragments) => fragments.add(packets, packet, frames, path, counters),
            None => {
                drop_one(counters);
                Ok(())
            }
        }
    }

    fn flush(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        counters: &TargetCounters,
        send: &mut impl FnMut(PacketList<'_>, &mut TooLong),
    ) {
        // Never both: each is sent before the other begins.
        if !self.pieces.is_empty() {
            send(self.pieces.list(packets), &mut self.too_long);
            self.pieces.clear();
        }
        if let Some(fragments) = self.fragments.as_mut().filter(|waits| !waits.is_empty()) {
            fragments.flush(packets, frames, counters);
        }
    }
}

fn drop_one(counters: &TargetCounters) {
    counters.offered.add(1);
    counters.dropped.add(Reason::Oversize, 1);
}
