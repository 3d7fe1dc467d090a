//! Which packets of a batch a target gets: its share of the flows, as long as it can be reached, within its
//! limit.
//!
//! Targets with `distribution = "all"` get every packet; those with `"hash"` form one group, of which each
//! packet goes to exactly one. What a target does not get for its limit is counted, by the caller. Where
//! everything goes, the batch's own list is passed on: no packet is looked at but for its length. Pure;
//! called by the workers with what control published.

use std::sync::Arc;

use super::limit::Limit;
use super::share::Shares;
use crate::packet::{PacketList, PacketRef};
use crate::reason::Reason;

/// What holds for all targets now: an immutable snapshot that a worker loads once a batch.
#[derive(Clone, Debug, Default)]
pub struct TargetSet {
    /// Who of the hash group owns which flow; `None` where there is no such group.
    pub shares: Option<Arc<Shares>>,
    /// By target: it is unhealthy, and what its path cannot carry is dropped at once.
    pub unhealthy: Box<[bool]>,
    /// Nothing is copied now, for this reason: production goes first.
    pub shed: Option<Reason>,
}

impl TargetSet {
    /// Whether a target is unhealthy.
    #[inline]
    #[must_use]
    pub fn is_unhealthy(&self, target: usize) -> bool {
        self.unhealthy.get(target).copied().unwrap_or(false)
    }
}

/// The owner of each packet of a batch.
pub fn owners(packets: PacketList<'_>, shares: &Shares, owners: &mut Vec<u8>) {
    owners.clear();
    let each = packets.refs().iter();
    owners.extend(each.map(|packet| shares.owner(packet.flow_hash)));
}

/// By what a target's packets are chosen.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// The number by which a [`Shares`] knows the target, if it belongs to the hash group.
    pub share: Option<u8>,
    /// Its limit, which all workers have in common.
    pub limit: Option<Arc<Limit>>,
    /// Bytes that the outer headers add to each packet, from the IP header on.
    pub overhead: u32,
    /// Somebody wants to know the bytes that are offered.
    pub measured: bool,
}

/// One target's choice, as one worker makes it.
#[derive(Debug)]
pub struct Selection {
    terms: Terms,
    chosen: Vec<PacketRef>,
    kept: Vec<bool>,
}

/// What a target gets of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'p> {
    /// The packets to send.
    pub packets: PacketList<'p>,
    /// Packets that were its, and that its limit does not let pass.
    pub limited: u64,
    /// Bytes of the outer packets of both, from their IP header on; 0 where nobody asks for them.
    pub bytes: u64,
}

impl Selection {
    /// For batches of at most `packets` packets.
    #[must_use]
    pub fn new(terms: Terms, packets: usize) -> Selection {
        Selection {
            terms,
            chosen: Vec::with_capacity(packets),
            kept: Vec::with_capacity(packets),
        }
    }

    /// The part of a batch that is the target's, whatever its limit. `owners` has the owner of each
    /// packet; it is empty where there is no hash group.
    pub fn share<'p>(&'p mut self, packets: PacketList<'p>, owners: &[u8]) -> PacketList<'p> {
        if !self.gather(packets, owners) {
            return packets;
        }
        PacketList::new(packets.arena(), &self.chosen)
    }

    /// What the target gets: its share, as far as its limit lets it. `time` says when a packet's frame was
    /// captured, in nanoseconds.
    pub fn choose<'p>(
        &'p mut self,
        packets: PacketList<'p>,
        owners: &[u8],
        time: impl Fn(u32) -> u64,
    ) -> Chosen<'p> {
        let shared = self.gather(packets, owners);
        let share = if shared {
            self.chosen.as_slice()
        } else {
            packets.refs()
        };
        let overhead = u64::from(self.terms.overhead);
        let mut bytes = 0;
        if self.terms.measured {
            let lengths = share.iter().map(|packet| packet.length() as u64);
            bytes = lengths.sum::<u64>() + overhead * share.len() as u64;
        }
        let before = share.len();
        let all = self.terms.limit.as_ref().is_none_or(|limit| {
            let time = |packet: &PacketRef| time(packet.frame);
            limit.admit(share, overhead, time, &mut self.kept)
        });
        if !all {
            if !shared {
                self.chosen.clear();
                self.chosen.extend_from_slice(packets.refs());
            }
            let mut kept = self.kept.iter();
            self.chosen
                .retain(|_| kept.next().copied().unwrap_or(false));
        }
        let packets = if shared || !all {
            PacketList::new(packets.arena(), &self.chosen)
        } else {
            packets
        };
        Chosen {
            packets,
            limited: (before - packets.len()) as u64,
            bytes,
        }
    }

    /// Gathers the target's share; false if it gets all packets.
    fn gather(&mut self, packets: PacketList<'_>, owners: &[u8]) -> bool {
        let Some(share) = self.terms.share.filter(|_| !owners.is_empty()) else {
            return false;
        };
        self.chosen.clear();
        let each = packets.refs().iter().zip(owners);
        let own = each.filter(|(_, owner)| **owner == share);
        self.chosen.extend(own.map(|(packet, _)| *packet));
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mirror::limit::Rates;
    use crate::mirror::share::key;

    fn batch(hashes: &[u32]) -> Vec<PacketRef> {
        let packet = |(frame, hash): (u32, &u32)| PacketRef {
            frame,
            head: (0, 0),
            tail: (0, 1000),
            flow_hash: *hash,
            part: crate::packet::Part::Whole,
        };
        (0..).zip(hashes).map(packet).collect()
    }

    fn group(members: u8) -> Shares {
        let members: Vec<_> = (0..members).map(|n| (n, key(&n.to_string()))).collect();
        Shares::new(&members).unwrap()
    }

    proptest! {
        /// Of the hash group exactly one gets each packet, in order; the others get all.
        #[test]
        fn each_packet_goes_to_one_of_the_group_and_to_all_others(
            hashes in prop::collection::vec(any::<u32>(), 1..500), members in 1u8..6,
        ) {
            let refs = batch(&hashes);
            let packets = PacketList::new(&[], &refs);
            let mut whose = Vec::new();
            owners(packets, &group(members), &mut whose);
            let mut seen = vec![0; refs.len()];
            for member in 0..members {
                let terms = Terms { share: Some(member), overhead: 36, ..Terms::default() };
                let mut selection = Selection::new(terms, 500);
                let chosen = selection.choose(packets, &whose, |_| 0);
                prop_assert_eq!(chosen.limited, 0);
                prop_assert!(chosen.packets.refs().is_sorted_by_key(|packet| packet.frame));
                for packet in chosen.packets.refs() {
                    prop_assert_eq!(packet, &refs[packet.frame as usize]);
                    seen[packet.frame as usize] += 1;
                }
            }
            prop_assert!(seen.iter().all(|count| *count == 1));
            let terms = Terms { measured: true, overhead: 36, ..Terms::default() };
            let mut everything = Selection::new(terms, 0);
            let chosen = everything.choose(packets, &whose, |_| 0);
            prop_assert_eq!(chosen.bytes, 1036 * refs.len() as u64);
            prop_assert_eq!(chosen.packets.refs().as_ptr(), refs.as_ptr(), "not copied");
        }

        /// What the limit takes away and what is left are the share.
        #[test]
        fn share_is_sent_and_limited(
            hashes in prop::collection::vec(any::<u32>(), 1..500), shared: bool, bits in 1u64..40_000_000,
        ) {
            let refs = batch(&hashes);
            let packets = PacketList::new(&[], &refs);
            let mut whose = Vec::new();
            owners(packets, &group(2), &mut whose);
            let rates = Rates { bits: Some(bits), packets: None };
            let limit = Limit::new(rates, 0).map(Arc::new);
            let share = shared.then_some(1);
            let terms = Terms { share, limit, overhead: 36, measured: false };
            let mut selection = Selection::new(terms, 500);
            let share = selection.share(packets, &whose).len() as u64;
            let chosen = selection.choose(packets, &whose, |_| 0);
            prop_assert_eq!(chosen.packets.len() as u64 + chosen.limited, share);
            // A full bucket holds 16 KiB or 50 ms.
            let room = (bits / 20 / 8).max(16 << 10) / 1036;
            prop_assert_eq!(chosen.packets.len() as u64, room.min(share));
        }
    }
}
