//! What is counted for one direction of a flow, and how counts add up.

use serde::Serialize;

/// How often, how many octets of sequence space, and how many packets that makes. Packets are estimated
/// from octets and the segment size, at least one an event; octets are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Ranges or segments.
    pub events: u64,
    /// Octets of sequence space; SYN and FIN take one each.
    pub octets: u64,
    /// Packets, estimated.
    pub packets: u64,
}

impl Tally {
    /// Counts one event.
    #[inline]
    pub fn add(&mut self, octets: u64, packets: u64) {
        self.merge(&Self {
            events: 1,
            octets,
            packets,
        });
    }

    fn merge(&mut self, other: &Self) {
        self.events = self.events.saturating_add(other.events);
        self.octets = self.octets.saturating_add(other.octets);
        self.packets = self.packets.saturating_add(other.packets);
    }

    /// Whether nothing was counted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.events == 0 && self.octets == 0 && self.packets == 0
    }
}

/// Declares [`Counts`] with how each of its fields adds up.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident: $kind:tt,)*) => {
        /// Counts of one direction: what its sender sent, and what the other side said about it. Never
        /// counted down: what is not decided yet is in none of them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: counts!(@type $kind),)*
        }

        impl Counts {
            /// Adds the counts of another direction or flow.
            pub fn merge(&mut self, other: &Self) {
                $(counts!(@merge $kind self.$name, other.$name);)*
            }
        }
    };
    (@type tally) => { Tally };
    (@type sum) => { u64 };
    (@type max) => { u64 };
    (@merge tally $a:expr, $b:expr) => { $a.merge(&$b) };
    (@merge sum $a:expr, $b:expr) => { $a = $a.saturating_add($b) };
    (@merge max $a:expr, $b:expr) => { $a = $a.max($b) };
}

counts! {
    /// Packets, whatever they carry; without mirror duplicates.
    packets: sum,
    /// Packets with payload.
    data_packets: sum,
    /// Octets of sequence space that were seen at least once.
    unique_octets: sum,
    /// Lost between the sender and us: a hole that a copy sent later has filled.
    upstream_loss: tally,
    /// Lost between us and the receiver: bytes that were seen twice and were needed again.
    downstream_loss: tally,
    /// Acknowledged by the receiver, never seen by us: lost by the mirror.
    capture_loss: tally,
    /// Of the capture losses, events where the receiver had missed the same bytes before: the copy that
    /// we lack is a retransmission.
    capture_loss_ambiguous: sum,
    /// Of the capture losses, events that stand for several holes merged for want of memory.
    capture_loss_coarse: sum,
    /// Of the capture losses, octets of holes that are no shorter than a full segment.
    capture_loss_full_size_octets: sum,
    /// Holes left by fragments that did not come together: neither loss nor capture loss.
    fragment_gap: tally,
    /// Holes of which nothing can be known: never acknowledged, or one direction is not visible.
    unresolved: tally,
    /// Of the unresolved, octets of holes that are no shorter than a full segment and that the receiver
    /// said it misses.
    unresolved_full_size_octets: sum,
    /// Came after bytes that were sent later.
    reordered: tally,
    /// Most octets that came before a reordered packet and were sent after it.
    reorder_extent_octets: max,
    /// The same in packets, estimated (RFC 4737 section 4.2.1).
    reorder_extent_packets: max,
    /// Longest time that a reordered packet was late, microseconds.
    reorder_late_us: max,
    /// Bytes that were seen before: spurious + downstream loss + what is undecided.
    retransmitted: tally,
    /// Retransmitted though the receiver had the bytes.
    spurious: tally,
    /// Bit-identical copies of a packet just seen. They take part in nothing else.
    mirror_duplicates: sum,
    /// Came after their own acknowledgment: the two directions reach us skewed.
    late_after_ack: tally,
    /// Repeated acknowledgments for this direction's data.
    duplicate_acks: sum,
    /// D-SACK blocks (RFC 2883) about this direction's data.
    dsack_blocks: sum,
    /// Of these, blocks about bytes that we saw once: duplicated or resent where we do not look.
    dsack_unmatched: sum,
    /// SYN sent again: lost on the round trip, one cannot tell where.
    syn_retransmitted: sum,
    /// FIN alone sent again.
    fin_retransmitted: sum,
    /// Keep-alives.
    keep_alives: sum,
    /// Packets that say: window 0.
    zero_windows: sum,
    /// Probes of a closed window.
    window_probes: sum,
    /// New connections on the same addresses and ports.
    tuple_reuses: sum,
    /// Fast Open data that the receiver did not take and that was sent again: no loss.
    fast_open_rejected: sum,
    /// Packets before the place where a flow was picked up.
    before_pickup: sum,
    /// Picked-up flows whose first packet turned out to be an old retransmission.
    pickup_resyncs: sum,
    /// Directions begun anew because sequence numbers had moved further than any window allows.
    resyncs: sum,
    /// Acknowledgments that cannot belong to the connection, as a challenge ACK on a reused port.
    implausible_acks: sum,
    /// SACK blocks that cannot be.
    implausible_sacks: sum,
    /// Packets that fall into a range whose holes were merged for want of memory.
    ambiguous_packets: sum,
    /// Old packets by their timestamp (PAWS, RFC 7323 section 5): not taken into account.
    old_duplicates: sum,
    /// Packets after a reset.
    after_reset: sum,
    /// Resets that the connection survived.
    resets_ignored: sum,
    /// Octets acknowledged and not seen after the direction went silent: its route changed.
    went_asymmetric_octets: sum,
    /// Most consecutive retransmissions of one full-size segment without progress.
    full_size_stuck: max,
}

impl Counts {
    /// Retransmissions of which nobody knows yet whether they were needed.
    #[must_use]
    pub const fn pending_packets(&self) -> u64 {
        self.retransmitted
            .packets
            .saturating_sub(self.spurious.packets)
            .saturating_sub(self.downstream_loss.packets)
    }

    /// Packets lost, by us or by the network, estimated: the order of a table "worst first".
    #[must_use]
    pub const fn lost_packets(&self) -> u64 {
        self.upstream_loss.packets + self.downstream_loss.packets + self.capture_loss.packets
    }
}
