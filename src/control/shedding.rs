//! Production first: measures what the mirror costs and how the machine is, and says when copies are shed.
//!
//! Budget and load are measured over the last second, four times a second. The network allowances of an
//! instance are counters of its driver (ENA), asked for once a second, for that takes the lock that all
//! network configuration takes; any of them that rises, on a device of a source or on the way to a target,
//! sheds. What is measured comes through [`Probes`], so that tests can make it up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::outputs::added;
use crate::config::plan::Plan;
use crate::config::settings::{Breaker, Distribution};
use crate::host::ethtool::Ethtool;
use crate::host::load::CpuTime;
use crate::mirror::path::PathState;
use crate::mirror::shed::{Cause, Change, Sample, Shedder, Thresholds};
use crate::reason::Reason;
use crate::telemetry::observer::Observer;

const SECOND: u64 = 1_000_000_000;
/// How often it is measured.
const PERIOD: u64 = SECOND / 4;
/// The counters of the ENA driver for what the instance may use.
const ALLOWANCES: [&str; 4] = [
    "bw_in_allowance_exceeded",
    "bw_out_allowance_exceeded",
    "pps_allowance_exceeded",
    "conntrack_allowance_exceeded",
];
/// Reasons for which sources shed.
const REASONS: [Reason; 3] = [Reason::Budget, Reason::Load, Reason::Allowance];

/// Driver counters of a device by name.
pub type Statistics = BTreeMap<String, u64>;

/// Where measurements come from.
pub struct Probes {
    /// The CPUs' time.
    pub cpu: Box<dyn FnMut() -> Option<CpuTime>>,
    /// The counters of a device's driver; empty where it has none.
    pub statistics: Box<dyn FnMut(&str) -> Statistics>,
}

impl Probes {
    /// This host, in the network namespace of the calling thread.
    #[must_use]
    pub fn of_host() -> Probes {
        let ethtool = Ethtool::open().ok();
        Probes {
            cpu: Box::new(CpuTime::now),
            statistics: Box::new(move |device| {
                let statistics = ethtool.as_ref().map(|ethtool| ethtool.statistics(device));
                statistics.and_then(Result::ok).unwrap_or_default()
            }),
        }
    }
}

/// What all targets together were to get since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offered {
    /// Outer bytes from the IP header on.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// What copies of one captured packet cost: how many there are, and their outer headers together.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    copies: u64,
    overhead: u64,
}

impl Cost {
    fn of(plan: &Plan) -> Cost {
        let (mut cost, mut shared) = (Cost::default(), 0);
        for target in &plan.targets {
            let overhead = u64::from(added(target));
            match target.distribution {
                Distribution::All => {
                    cost.copies += 1;
                    cost.overhead += overhead;
                }
                // One of the group gets it.
                Distribution::Hash => shared = shared.max(overhead),
            }
        }
        cost.copies += u64::from(shared > 0);
        cost.overhead += shared;
        cost
    }

    /// What the targets got, and would have got had nothing been shed.
    fn offered(&self, observer: &Observer) -> Offered {
        let mut offered = Offered::default();
        for worker in observer.targets.iter().flat_map(|target| &target.workers) {
            let unreachable =
                worker.dropped.get(Reason::NoNeighbour) + worker.dropped.get(Reason::NoRoute);
            offered.bytes += worker.offered_bytes.get();
            offered.packets += worker.offered.get().saturating_sub(unreachable);
        }
        for (_, worker) in observer.sources.iter().flat_map(|source| &source.workers) {
            let shed: u64 = REASONS
                .iter()
                .map(|reason| worker.dropped.get(*reason))
                .sum();
            offered.bytes += worker.shed_bytes.get() * self.copies + shed * self.overhead;
            offered.packets += shed * self.copies;
        }
        offered
    }
}

/// Counters of allowances, with what they were before.
#[derive(Debug, Default)]
struct Allowances {
    /// By device; empty where its driver has none of them.
    before: BTreeMap<String, Statistics>,
}

impl Allowances {
    /// The counters of a device that have risen since the last look.
    fn look(&mut self, device: &str, read: impl FnOnce() -> Statistics) -> Vec<&'static str> {
        if self.before.get(device).is_some_and(BTreeMap::is_empty) {
            return Vec::new();
        }
        let mut now = read();
        now.retain(|name, _| ALLOWANCES.contains(&name.as_str()));
        let before = self.before.insert(device.to_owned(), now.clone());
        let Some(before) = before else {
            return Vec::new();
        };
        let risen = |name: &&str| {
            let counted = |statistics: &Statistics| statistics.get(*name).copied();
            // A driver that was loaded anew begins at 0.
            counted(&now)
                .zip(counted(&before))
                .is_some_and(|(now, before)| now > before)
        };
        ALLOWANCES.into_iter().filter(risen).collect()
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: u64,
    offered: Offered,
    cpu: Option<CpuTime>,
}

/// The breaker of a mirror for its cost.
pub struct Shedding {
    settings: Breaker,
    shedder: Shedder,
    probes: Probes,
    cost: Cost,
    allowances: Allowances,
    devices: BTreeSet<String>,
    paths: Vec<Arc<ArcSwap<PathState>>>,
    /// The readings of the last second, oldest first.
    window: VecDeque<Reading>,
    next: u64,
    next_allowances: u64,
    times: Arc<AtomicU64>,
}

impl std::fmt::Debug for Shedding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shedding")
            .field("shedder", &self.shedder)
            .finish_non_exhaustive()
    }
}

impl Shedding {
    /// As the plan says; `paths` are the targets'.
    #[must_use]
    pub fn new(plan: &Plan, paths: &[Arc<ArcSwap<PathState>>], probes: Probes) -> Shedding {
        let settings = plan.breaker;
        let sources = plan.sources.iter().map(|source| source.interface.clone());
        let ways = plan.targets.iter().flat_map(|target| target.path.clone());
        Shedding {
            settings,
            shedder: Shedder::new(Thresholds {
                bits: settings.budget,
                packets: settings.budget_packets,
                load: settings.load,
            }),
            probes,
            cost: Cost::of(plan),
            allowances: Allowances::default(),
            devices: sources.chain(ways).collect(),
            paths: paths.to_vec(),
            window: VecDeque::new(),
            next: 0,
            next_allowances: 0,
            times: Arc::default(),
        }
    }

    /// How often copies began to be shed.
    #[must_use]
    pub fn times(&self) -> Arc<AtomicU64> {
        self.times.clone()
    }

    /// Measures, now and then; to be called many times a second. Returns the change, if there is one, with
    /// what the operator should know.
    pub fn tend(&mut self, now: u64, observer: &Observer) -> Option<(Option<Reason>, String)> {
        if now < self.next {
            return None;
        }
        self.next = now + PERIOD;
        self.measure(now, self.cost.offered(observer))
    }

    fn measure(&mut self, now: u64, offered: Offered) -> Option<(Option<Reason>, String)> {
        let risen = self.risen(now);
        let reading = Reading {
            at: now,
            offered,
            cpu: self.settings.load.and_then(|_| (self.probes.cpu)()),
        };
        self.window.push_back(reading);
        // The oldest that stays is the last one that is a second old.
        while self
            .window
            .get(1)
            .is_some_and(|second| second.at + SECOND <= now)
        {
            self.window.pop_front();
        }
        let sample = self.sample(&reading, !risen.is_empty());
        let change = self.shedder.feed(now, &sample)?;
        Some(match change {
            Change::Began(cause) => {
                self.times.fetch_add(1, Ordering::Relaxed);
                let why = self.describe(cause, &sample, &risen);
                let hold = self.shedder.hold() / SECOND;
                let text = format!(
                    "shedding all copies, production goes first: {why}; until it has been calm for {hold} s"
                );
                (Some(cause.reason()), text)
            }
            Change::Ended => (None, "copies go again".to_owned()),
        })
    }

    fn sample(&self, now: &Reading, allowance: bool) -> Sample {
        let Some(before) = self.window.front() else {
            return Sample::default();
        };
        let passed = now.at.saturating_sub(before.at);
        if passed < SECOND {
            // The first second of all.
            return Sample {
                allowance,
                ..Sample::default()
            };
        }
        let a_second = |amount: u64| {
            let exact = u128::from(amount) * u128::from(SECOND) / u128::from(passed);
            u64::try_from(exact).unwrap_or(u64::MAX)
        };
        let bytes = now.offered.bytes.saturating_sub(before.offered.bytes);
        let packets = now.offered.packets.saturating_sub(before.offered.packets);
        let load = now.cpu.zip(before.cpu);
        Sample {
            bits: a_second(bytes).saturating_mul(8),
            packets: a_second(packets),
            load: load.and_then(|(now, before)| now.busy_since(&before)),
            allowance,
        }
    }

    /// Allowances that were exceeded since the last look, with their devices.
    fn risen(&mut self, now: u64) -> Vec<String> {
        if !self.settings.allowances || now < self.next_allowances {
            return Vec::new();
        }
        self.next_allowances = now + SECOND;
        let mut devices = self.devices.clone();
        // Routes move.
        devices.extend(self.paths.iter().map(|path| path.load().device.clone()));
        let mut risen = Vec::new();
        for device in devices.iter().filter(|device| !device.is_empty()) {
            let read = || (self.probes.statistics)(device);
            let names = self.allowances.look(device, read);
            risen.extend(names.into_iter().map(|name| format!("{name} of {device}")));
        }
        risen
    }

    fn describe(&self, cause: Cause, sample: &Sample, risen: &[String]) -> String {
        match cause {
            Cause::Budget => format!(
                "all targets together would get {} Mbit/s in {} packets/s, above the budget",
                sample.bits / 1_000_000,
                sample.packets
            ),
            Cause::Load => format!(
                "the CPUs were busy for {} % of the last second",
                sample.load.unwrap_or(0) / 10
            ),
            Cause::Allowance => format!("network allowance exceeded: {}", risen.join(", ")),
        }
    }
}

#[cfg(test)]
#[path = "shedding_tests.rs"]
mod tests;
