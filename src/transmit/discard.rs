//! A dry run: packets are counted by rule, and nothing leaves.
//!
//! What a mirror would cost can be known before it costs anything. In the balance every packet is dropped,
//! for the reason that says so.

use std::sync::Arc;

use crate::mirror::rules::{PacketFacts, MAX_RULES};
use crate::mirror::tables::Tables;
use crate::packet::{PacketList, DEFAULT_RULE};
use crate::reason::Reason;
use crate::source::Frames;
use crate::worker::counters::{Counter, TargetCounters};

/// Packets and bytes by rule. The last place is for the packets that no rule took.
#[derive(Debug)]
#[repr(align(128))]
pub struct RuleCounters([RuleCounter; MAX_RULES + 1]);

/// What one rule took.
#[derive(Debug, Default)]
pub struct RuleCounter {
    /// Packets on the wire.
    pub packets: Counter,
    /// Their bytes, from the Ethernet header on.
    pub bytes: Counter,
}

impl Default for RuleCounters {
    fn default() -> Self {
        RuleCounters(std::array::from_fn(|_| RuleCounter::default()))
    }
}

impl RuleCounters {
    /// Of a rule by its number; [`DEFAULT_RULE`] and whatever is no rule: of the default action.
    #[must_use]
    pub fn of(&self, rule: u8) -> &RuleCounter {
        &self.0[usize::from(rule).min(MAX_RULES)]
    }
}

/// Counts instead of sending.
#[derive(Debug)]
pub struct DryRun {
    counters: Arc<RuleCounters>,
    /// A span's frames do not say which rule took them; then the rules are asked again.
    tables: Option<Arc<Tables>>,
}

impl DryRun {
    /// Counts in `counters`; `tables` where the source's frames do not carry their rule.
    #[must_use]
    pub fn new(counters: Arc<RuleCounters>, tables: Option<Arc<Tables>>) -> DryRun {
        DryRun { counters, tables }
    }

    /// Counts a batch.
    pub fn send(&self, packets: PacketList<'_>, frames: &impl Frames, target: &TargetCounters) {
        let count = packets.len() as u64;
        target.offered.add(count);
        target.dropped.add(Reason::DryRun, count);
        let mut known = None;
        for packet in packets.refs() {
            let rule = match known {
                Some((frame, rule)) if frame == packet.frame => rule,
                _ => self.rule(packet.frame, frames),
            };
            known = Some((packet.frame, rule));
            let counter = self.counters.of(rule);
            counter.packets.add(1);
            counter.bytes.add(packet.length() as u64);
        }
    }

    fn rule(&self, frame: u32, frames: &impl Frames) -> u8 {
        let meta = frames.meta(frame);
        match &self.tables {
            None => meta.rule,
            Some(tables) => {
                let facts = PacketFacts::of_frame(frames.bytes(frame), meta.direction, 0);
                tables.lookup(&facts).rule.unwrap_or(DEFAULT_RULE)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{FrameMeta, PacketRef};

    struct OfRules(Vec<u8>);

    impl Frames for OfRules {
        fn bytes(&self, _: u32) -> &[u8] {
            &[]
        }
        fn meta(&self, index: u32) -> FrameMeta {
            FrameMeta {
                rule: self.0[index as usize],
                ..FrameMeta::plain(0)
            }
        }
    }

    #[test]
    fn packets_and_bytes_are_counted_by_the_rule_of_their_frame() {
        let counters = Arc::new(RuleCounters::default());
        let target = TargetCounters::default();
        let packet = |frame, length| PacketRef {
            frame,
            head: (0, 0),
            tail: (0, length),
            part: crate::packet::Part::Whole,
            flow_hash: 0,
        };
        let refs = [
            packet(0, 100),
            packet(0, 50),
            packet(1, 60),
            packet(2, 70),
            packet(3, 80),
        ];
        let list = PacketList::new(&[], &refs);
        let frames = OfRules(vec![2, 63, DEFAULT_RULE, 2]);
        DryRun::new(counters.clone(), None).send(list, &frames, &target);
        let of = |rule| {
            let counter = counters.of(rule);
            (counter.packets.get(), counter.bytes.get())
        };
        assert_eq!(of(2), (3, 230));
        assert_eq!(of(63), (1, 60));
        assert_eq!(of(DEFAULT_RULE), (1, 70));
        assert_eq!(of(0), (0, 0));
        assert_eq!(target.offered.get(), 5);
        assert_eq!(target.dropped.get(Reason::DryRun), 5);
        assert_eq!(target.sent_packets.get(), 0);
    }
}
