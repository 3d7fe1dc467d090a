//! Which outer flows are our own copies, told to the kernel programs and to the workers; followed when a target
//! has another address or another source.
//!
//! A flow is known before its first copy leaves, and for a while after its last.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::outputs::ports;
use crate::bpf::own_flows::own_flows;
use crate::bpf::policy::bytes_of;
use crate::bpf::skel::{OwnFlow as Exclusion, MAX_OWN_FLOWS};
use crate::config::plan::TargetPlan;
use crate::mirror::path::PathState;
use crate::packet::signature::OwnFlow;
use crate::worker::breaker::Signatures;

/// How long copies that have left may still be under way, and errors about them.
const KEPT: Duration = Duration::from_secs(10);

/// Two addresses between which our copies go, or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    source: IpAddr,
    destination: IpAddr,
}

/// The ways of one target.
#[derive(Debug)]
struct Guarded {
    now: Way,
    /// With the end of their time.
    others: Vec<(Way, Instant)>,
}

impl Guarded {
    /// Returns whether anything has changed.
    fn set(&mut self, way: Way, until: Instant) -> bool {
        if self.now == way {
            return false;
        }
        self.others.retain(|(other, _)| *other != way);
        let before = std::mem::replace(&mut self.now, way);
        self.others.push((before, until));
        true
    }

    fn all(&self) -> impl Iterator<Item = Way> + '_ {
        let others = self.others.iter().rev().map(|(way, _)| *way);
        std::iter::once(self.now).chain(others)
    }
}

/// The guard of a mirror.
#[derive(Debug)]
pub struct Guard {
    plans: Vec<TargetPlan>,
    targets: Vec<Guarded>,
    signatures: Signatures,
    /// Earlier lists that a worker may still hold: they are freed here, never in a worker's loop.
    retired: Vec<Arc<Vec<OwnFlow>>>,
}

impl Guard {
    /// For the targets as they are now.
    #[must_use]
    pub fn new(plans: &[TargetPlan], paths: &[Arc<ArcSwap<PathState>>]) -> Guard {
        let now = |(plan, path): (&TargetPlan, &Arc<ArcSwap<PathState>>)| Guarded {
            now: Way {
                source: plan.source.unwrap_or(path.load().source_ip),
                destination: plan.address,
            },
            others: Vec::new(),
        };
        let guard = Guard {
            plans: plans.to_vec(),
            targets: plans.iter().zip(paths).map(now).collect(),
            signatures: Signatures::default(),
            retired: Vec::new(),
        };
        guard.signatures.store(Arc::new(guard.flows()));
        guard
    }

    /// Our outer flows as the workers look for them.
    #[must_use]
    pub fn signatures(&self) -> Signatures {
        self.signatures.clone()
    }

    /// A target's copies will go to another address soon. The programs are to be told at once.
    pub fn expect(&mut self, target: usize, way: (IpAddr, IpAddr)) {
        let (source, destination) = way;
        let way = Way {
            source,
            destination,
        };
        if let Some(guarded) = self.targets.get_mut(target) {
            if guarded.set(way, Instant::now() + KEPT) {
                self.publish();
            }
        }
    }

    /// Looks at the paths; `settled` says of a target whether its copies go nowhere else than to an address. Returns
    /// whether the programs are to be told.
    pub fn tend(
        &mut self,
        paths: &[Arc<ArcSwap<PathState>>],
        settled: impl Fn(usize, IpAddr) -> bool,
    ) -> bool {
        let now = Instant::now();
        let mut changed = false;
        for (number, (guarded, path)) in self.targets.iter_mut().zip(paths).enumerate() {
            let path = path.load();
            let way = Way {
                source: path.source_ip,
                destination: path.destination,
            };
            if path.ifindex != 0 && !way.source.is_unspecified() {
                changed |= guarded.set(way, now + KEPT);
            }
            if !settled(number, guarded.now.destination) {
                for (_, until) in &mut guarded.others {
                    *until = now + KEPT;
                }
            }
            let before = guarded.others.len();
            guarded.others.retain(|(_, until)| *until > now);
            changed |= guarded.others.len() != before;
        }
        if changed {
            self.publish();
        }
        changed
    }

    /// Our outer flows as the kernel program excludes them: those of now first, and of earlier ones as many as
    /// there is room for. (What it does not know the workers still do.)
    #[must_use]
    pub fn exclusions(&self) -> Vec<Exclusion> {
        let mut list: Vec<Exclusion> = Vec::new();
        let mut add = |plan: &TargetPlan, way: Way| {
            let flows = own_flows(way.destination, &plan.encapsulation, ports(plan));
            for flow in flows {
                let known = |other: &Exclusion| bytes_of(other) == bytes_of(&flow);
                if list.len() < MAX_OWN_FLOWS && !list.iter().any(known) {
                    list.push(flow);
                }
            }
        };
        let each = || self.plans.iter().zip(&self.targets);
        for (plan, guarded) in each() {
            add(plan, guarded.now);
        }
        for (plan, guarded) in each() {
            guarded.all().skip(1).for_each(|way| add(plan, way));
        }
        list
    }

    fn flows(&self) -> Vec<OwnFlow> {
        let each = self.plans.iter().zip(&self.targets);
        let flows = each.flat_map(|(plan, guarded)| {
            guarded.all().filter_map(|way| {
                OwnFlow::new(way.source, way.destination, plan.encapsulation, ports(plan))
            })
        });
        flows.collect()
    }

    fn publish(&mut self) {
        let flows = Arc::new(self.flows());
        self.retired.push(self.signatures.swap(flows));
        self.retired.retain(|flows| Arc::strong_count(flows) > 1);
    }
}
