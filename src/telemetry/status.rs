//! The state of a mirror in numbers: what `xtee status --json` prints and the final balance shows.
//!
//! Unit of all packet counts: packets on the wire; a super-packet counts as its segments.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::dry_run::{DryRunRule, DryRunStatus};
use crate::reason::Reason;

/// Counts by reason; every reason is there.
pub type Dropped = BTreeMap<String, u64>;

/// A mirror's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// xtee's version.
    pub version: String,
    /// Process number.
    pub pid: u32,
    /// Seconds since the mirror started.
    pub uptime_seconds: u64,
    /// Where packets come from.
    pub sources: Vec<SourceStatus>,
    /// Where copies go.
    pub targets: Vec<TargetStatus>,
    /// The amplification breaker.
    pub breaker: BreakerStatus,
    /// The breaker for the mirror's cost.
    pub shedding: SheddingStatus,
}

/// One source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `tap:eth0`.
    pub name: String,
    /// `tap` or `span`.
    pub kind: String,
    /// How it captures: `tcx`, `clsact`, `native XDP, copy, …`.
    pub mode: String,
    /// Whether it has an interface: `present`, `down` (it is there, and down), `waiting` (it is not there).
    pub state: String,
    /// Names of the interfaces that it is on now.
    pub interfaces: Vec<String>,
    /// Why it is not on those that it should be on; empty where it is.
    pub problem: String,
    /// Packets that passed the hook, our own copies not among them.
    pub seen: u64,
    /// Packets that no mirror rule took.
    pub unmatched: u64,
    /// Packets that were to be mirrored.
    pub matched: u64,
    /// Packets given to the targets.
    pub captured: u64,
    /// Packets that were to be mirrored and were not.
    pub dropped: Dropped,
    /// Our own copies, which are never copied again.
    pub own_copies: u64,
    /// Frames inside which our own copy came back.
    pub own_signatures: u64,
    /// Later fragments copied although their first was not seen.
    pub unknown_fragments: u64,
    /// Packets of which no more than their rule's snaplen was copied.
    #[serde(default)]
    pub sliced: u64,
    /// Packets that each rule took, in order.
    pub rules: Vec<u64>,
    /// Of those, what the rule's own `sample` and `cutoff` left out.
    #[serde(default)]
    pub rules_left_out: Vec<u64>,
    /// Packets that no rule took.
    pub default_action: u64,
    /// Its workers.
    pub workers: Vec<WorkerStatus>,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Frames it took; a super-packet is one.
    pub frames: u64,
    /// Times that it slept.
    pub sleeps: u64,
    /// Frames that it handed over to the worker of their flow.
    pub handed_over: u64,
}

/// One target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// The target's URL.
    pub url: String,
    /// Which packets it gets: `all`, or `hash` for its share of the flows.
    pub distribution: String,
    /// Who sends.
    pub transmit: String,
    /// Packets that were to be sent.
    pub offered: u64,
    /// Packets that left.
    pub sent_packets: u64,
    /// Bytes that left: outer packets from their IP header on.
    pub sent_bytes: u64,
    /// Packets that did not leave.
    pub dropped: Dropped,
    /// Packets on a transmit ring.
    pub in_flight: u64,
    /// Whether copies can be sent now.
    pub healthy: bool,
    /// Where they go.
    #[serde(default)]
    pub address: String,
    /// Why not, or the way that they take.
    pub path: String,
    /// Largest outer packet, bytes from its IP header on.
    pub path_mtu: u32,
    /// Where that comes from: device, route, configured, or who told.
    pub path_mtu_from: String,
    /// Times that it has changed.
    pub path_mtu_changes: u64,
    /// Copies that did not fit and were cut into TCP segments.
    pub resegmented: u64,
    /// Copies that did not fit and were cut into outer IP fragments.
    pub fragmented: u64,
    /// Copies that did not fit and were truncated.
    pub truncated: u64,
    /// Segments and fragments that left in place of those copies.
    pub pieces: u64,
    /// Mean number of equal packets of one source port in a row, times 100.
    pub mean_run_hundredths: u64,
    /// Sending system calls.
    pub calls: u64,
    /// What a dry run would send, where the target is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<DryRunStatus>,
}

/// The amplification breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerStatus {
    /// Nothing is copied now, because our own copies came back.
    pub open: bool,
    /// How often it opened.
    pub times_opened: u64,
    /// Seconds until copying is tried again.
    pub remaining_seconds: u64,
}

/// The breaker for the mirror's cost: production goes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SheddingStatus {
    /// Why nothing is copied now, by its name among the reasons of dropped packets.
    pub reason: Option<String>,
    /// How often copies began to be shed.
    pub times: u64,
}

/// All reasons with nothing dropped.
#[must_use]
pub fn nothing_dropped() -> Dropped {
    Reason::ALL
        .iter()
        .map(|reason| (reason.name().to_owned(), 0))
        .collect()
}

/// Adds to one reason.
pub fn add_drop(dropped: &mut Dropped, reason: Reason, packets: u64) {
    *dropped.entry(reason.name().to_owned()).or_default() += packets;
}

fn total(dropped: &Dropped) -> u64 {
    dropped.values().sum()
}

impl Status {
    /// What does not add up, in words; empty at a quiet moment and at the end.
    #[must_use]
    pub fn imbalances(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |what: String, left: u64, right: u64| {
            if left != right {
                found.push(format!("{what}: {left} is not {right}"));
            }
        };
        let mut captured = 0;
        for source in &self.sources {
            let name = &source.name;
            check(
                format!("{name}: seen = unmatched + matched"),
                source.seen,
                source.unmatched + source.matched,
            );
            let accounted = source.captured + total(&source.dropped);
            check(
                format!("{name}: matched = captured + dropped"),
                source.matched,
                accounted,
            );
            captured += source.captured;
        }
        let shared = |target: &&TargetStatus| target.distribution == "hash";
        if self.targets.iter().any(|target| shared(&target)) {
            let group = self.targets.iter().filter(shared);
            check(
                "the targets that share the flows: offered = captured".to_owned(),
                group.map(|target| target.offered).sum(),
                captured,
            );
        }
        for target in &self.targets {
            let url = &target.url;
            if !shared(&target) {
                check(
                    format!("{url}: offered = captured"),
                    target.offered,
                    captured,
                );
            }
            let accounted = target.sent_packets + total(&target.dropped) + target.in_flight;
            check(
                format!("{url}: offered = sent + dropped + in flight"),
                target.offered,
                accounted,
            );
        }
        found
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for source in &self.sources {
            write!(f, "{source}")?;
        }
        for target in &self.targets {
            write!(f, "{target}")?;
        }
        if self.breaker.times_opened > 0 {
            let state = if self.breaker.open { "open" } else { "closed" };
            writeln!(
                f,
                "breaker   {state}, opened {} times: our own copies came back",
                self.breaker.times_opened
            )?;
        }
        if self.shedding.times > 0 {
            let now = match &self.shedding.reason {
                Some(reason) => format!("all copies now, for {reason}"),
                None => "nothing now".to_owned(),
            };
            writeln!(
                f,
                "shedding  {now}; began {} times: production goes first",
                self.shedding.times
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for SourceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source    {}  ({})", self.name, self.mode)?;
        match (self.state.as_str(), self.problem.as_str()) {
            ("present", "") => writeln!(f)?,
            (state, "") => writeln!(f, ": {state}")?,
            (state, problem) => writeln!(f, ": {state}: {problem}")?,
        }
        writeln!(
            f,
            "  seen      {:>12} packets = unmatched {} + matched {}",
            self.seen, self.unmatched, self.matched
        )?;
        writeln!(
            f,
            "  matched   {:>12} packets = captured {} + dropped {}",
            self.matched,
            self.captured,
            total(&self.dropped)
        )?;
        write_drops(f, &self.dropped)?;
        if self.sliced > 0 {
            writeln!(
                f,
                "  sliced    {:>12} of the captured to their rule's snaplen",
                self.sliced
            )?;
        }
        for (number, packets) in self.rules_left_out.iter().enumerate() {
            if *packets > 0 {
                let taken = self.rules.get(number).copied().unwrap_or(0);
                writeln!(
                    f,
                    "  rule {number:<4} {taken:>12} taken, of which its sample or cutoff left out {packets}"
                )?;
            }
        }
        if self.own_copies > 0 {
            writeln!(
                f,
                "  own       {:>12} of our own copies passed and were left alone",
                self.own_copies
            )?;
        }
        if self.unknown_fragments > 0 {
            writeln!(
                f,
                "  fragments {:>12} copied without knowing their ports",
                self.unknown_fragments
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for TargetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "target    {}  ({}; {})",
            self.url, self.transmit, self.path
        )?;
        writeln!(
            f,
            "  offered   {:>12} packets = sent {} + dropped {} + in flight {}",
            self.offered,
            self.sent_packets,
            total(&self.dropped),
            self.in_flight
        )?;
        write_drops(f, &self.dropped)?;
        if let Some(dry_run) = &self.dry_run {
            return write!(f, "{dry_run}");
        }
        writeln!(f, "  sent      {:>12} bytes", self.sent_bytes)?;
        if self.resegmented + self.fragmented + self.truncated > 0 {
            writeln!(
                f,
                "  too long  {:>12} resegmented, {} fragmented (into {} pieces), {} truncated",
                self.resegmented, self.fragmented, self.pieces, self.truncated
            )?;
        }
        let changes = match self.path_mtu_changes {
            0 => String::new(),
            changes => format!(", changed {changes} times"),
        };
        writeln!(
            f,
            "  path MTU  {:>12} bytes ({}{changes})",
            self.path_mtu, self.path_mtu_from
        )
    }
}

fn write_drops(f: &mut fmt::Formatter<'_>, dropped: &Dropped) -> fmt::Result {
    for reason in Reason::ALL {
        let packets = dropped.get(reason.name()).copied().unwrap_or(0);
        if packets > 0 {
            writeln!(
                f,
                "    dropped {packets:>12} {}: {}",
                reason.name(),
                reason.text()
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balanced() -> Status {
        let mut source = SourceStatus {
            seen: 10,
            unmatched: 3,
            matched: 7,
            captured: 5,
            dropped: nothing_dropped(),
            ..SourceStatus::default()
        };
        add_drop(&mut source.dropped, Reason::Ring, 2);
        let mut target = TargetStatus {
            offered: 5,
            sent_packets: 3,
            in_flight: 1,
            dropped: nothing_dropped(),
            ..TargetStatus::default()
        };
        add_drop(&mut target.dropped, Reason::Oversize, 1);
        Status {
            sources: vec![source],
            targets: vec![target],
            ..Status::default()
        }
    }

    #[test]
    fn a_balanced_status_has_no_imbalance_and_each_break_is_named() {
        assert_eq!(balanced().imbalances(), Vec::<String>::new());
        let broken: [fn(&mut Status); 4] = [
            |status| status.sources[0].seen += 1,
            |status| status.sources[0].dropped.clear(),
            |status| status.targets[0].offered += 1,
            |status| status.targets[0].in_flight = 0,
        ];
        for break_it in broken {
            let mut status = balanced();
            break_it(&mut status);
            assert!(!status.imbalances().is_empty());
        }
    }

    #[test]
    fn targets_that_share_the_flows_have_been_offered_each_packet_once() {
        let mut status = balanced();
        let share = |offered: u64| TargetStatus {
            distribution: "hash".to_owned(),
            offered,
            sent_packets: offered,
            dropped: nothing_dropped(),
            ..TargetStatus::default()
        };
        status.targets.extend([share(2), share(3)]);
        assert_eq!(status.imbalances(), Vec::<String>::new());
        status.targets[1] = share(3);
        assert_eq!(status.imbalances().len(), 1);
        // The one that gets all is not one of the group.
        status.targets[0].distribution = "hash".to_owned();
        assert!(!status.imbalances().is_empty());
    }

    #[test]
    fn json_goes_there_and_back_and_text_names_the_reason() {
        let status = balanced();
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
        assert!(status.to_string().contains("oversize"));
    }
}
