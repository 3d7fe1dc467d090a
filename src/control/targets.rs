//! Which targets get what now: their health, the shares of the hash group, and whether copies are shed.
//! Published as one snapshot, of which each worker loads the newest once a batch.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::outputs::share_number;
use crate::config::plan::{Plan, TargetPlan, Transmitter};
use crate::config::settings::HealthCheck;
use crate::mirror::health::{Health, State};
use crate::mirror::path::{PathProblem, PathState};
use crate::mirror::selection::TargetSet;
use crate::mirror::share::{key, Shares};
use crate::reason::Reason;

/// One target, as control looks at it.
#[derive(Debug)]
struct Watched {
    url: String,
    /// Its number and its key in the hash group.
    member: Option<(u8, u64)>,
    check: HealthCheck,
    by_socket: bool,
    path: Arc<ArcSwap<PathState>>,
    health: Health,
}

impl Watched {
    fn new(target: &TargetPlan, number: usize, path: Arc<ArcSwap<PathState>>) -> Watched {
        Watched {
            url: target.url.clone(),
            member: share_number(target, number).map(|number| (number, key(&target.url))),
            check: target.health,
            by_socket: target.transmit.value != Transmitter::Xsk,
            path,
            health: Health::default(),
        }
    }

    fn problem(&self) -> Option<PathProblem> {
        let path = self.path.load();
        match self.by_socket {
            true => path.socket_problem(),
            false => path.problem,
        }
    }

    /// Looks at the path; returns whether the target's state changed, and what the operator should know.
    fn look(&mut self, now: u64) -> Option<Option<String>> {
        if self.check == HealthCheck::None {
            return None;
        }
        let problem = self.problem();
        let before = self.health.state();
        let state = self.health.feed(now, problem.is_none())?;
        Some(match state {
            State::Unhealthy => {
                let what = if self.member.is_some() {
                    "the others of its hash group get its flows"
                } else {
                    "its copies are dropped and counted"
                };
                let why = problem.map_or("its path", PathProblem::describe);
                Some(format!("{} is unhealthy: {why}; {what}", self.url))
            }
            // At a start nobody is told that all is well.
            _ if before == State::Starting => None,
            _ => Some(format!("{} is healthy again", self.url)),
        })
    }
}

/// The targets of a mirror, looked after.
#[derive(Debug)]
pub struct Targets {
    list: Vec<Watched>,
    set: Arc<ArcSwap<TargetSet>>,
    /// Earlier snapshots that a worker may still hold: they are freed here, never in a worker's loop.
    retired: Vec<Arc<TargetSet>>,
}

impl Targets {
    /// The targets of a plan with their paths, which control keeps up to date. All get their share.
    #[must_use]
    pub fn new(plan: &Plan, paths: &[Arc<ArcSwap<PathState>>]) -> Targets {
        let each = plan.targets.iter().zip(paths).enumerate();
        let list: Vec<_> = each
            .map(|(number, (target, path))| Watched::new(target, number, path.clone()))
            .collect();
        let set = Arc::new(ArcSwap::from_pointee(set_of(&list, None)));
        Targets {
            list,
            set,
            retired: Vec::new(),
        }
    }

    /// What workers and observers go by.
    #[must_use]
    pub fn published(&self) -> Arc<ArcSwap<TargetSet>> {
        self.set.clone()
    }

    /// Looks at every target; to be called many times a second. Returns what the operator should know.
    pub fn tend(&mut self, now: u64) -> Vec<String> {
        let looked = self.list.iter_mut().filter_map(|target| target.look(now));
        let changes: Vec<_> = looked.collect();
        if changes.is_empty() {
            return Vec::new();
        }
        let set = set_of(&self.list, self.set.load().shed);
        self.publish(set);
        changes.into_iter().flatten().collect()
    }

    /// Sheds all copies for a reason from now on, or none.
    pub fn shed(&mut self, reason: Option<Reason>) {
        let set = TargetSet {
            shed: reason,
            ..TargetSet::clone(&self.set.load())
        };
        self.publish(set);
    }

    fn publish(&mut self, set: TargetSet) {
        self.retired.push(self.set.swap(Arc::new(set)));
        self.retired.retain(|set| Arc::strong_count(set) > 1);
    }
}

fn set_of(list: &[Watched], shed: Option<Reason>) -> TargetSet {
    let members = |healthy: bool| {
        let those = list
            .iter()
            .filter(|target| !healthy || target.health.is_in());
        let members: Vec<_> = those.filter_map(|target| target.member).collect();
        Shares::new(&members)
    };
    TargetSet {
        // Where none is healthy the flows stay where they belong, and are counted there.
        shares: members(true).or_else(|| members(false)).map(Arc::new),
        unhealthy: list.iter().map(|target| !target.health.is_in()).collect(),
        shed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::health::{DOWN_AFTER, UP_AFTER};

    fn target(number: u8, hash: bool) -> Watched {
        let address = std::net::IpAddr::from([203, 0, 113, number]);
        let mut path = PathState::without_route(address);
        path.problem = None;
        Watched {
            url: format!("vxlan://{address}"),
            member: hash.then(|| (number, key(&number.to_string()))),
            check: HealthCheck::Neighbour,
            by_socket: true,
            path: Arc::new(ArcSwap::from_pointee(path)),
            health: Health::default(),
        }
    }

    fn targets(list: Vec<Watched>) -> Targets {
        let set = Arc::new(ArcSwap::from_pointee(set_of(&list, None)));
        Targets {
            list,
            set,
            retired: Vec::new(),
        }
    }

    fn break_path(targets: &Targets, index: usize, problem: Option<PathProblem>) {
        let path = &targets.list[index].path;
        let mut state = PathState::clone(&path.load());
        state.problem = problem;
        path.store(Arc::new(state));
    }

    fn owners(targets: &Targets) -> Vec<u8> {
        let set = targets.set.load();
        let shares = set.shares.as_ref().unwrap();
        (0..1000u32)
            .map(|flow| shares.owner(flow.wrapping_mul(0x9E37_79B1)))
            .collect()
    }

    #[test]
    fn an_unhealthy_target_leaves_the_hash_group_and_comes_back() {
        let mut targets = targets(vec![target(0, true), target(1, true), target(2, false)]);
        assert!(targets.tend(0).is_empty());
        let before = owners(&targets);
        break_path(&targets, 0, Some(PathProblem::NoNeighbour));
        assert!(targets.tend(1).is_empty());
        let news = targets.tend(1 + DOWN_AFTER);
        assert_eq!(news.len(), 1, "{news:?}");
        assert!(news[0].contains("203.0.113.0 is unhealthy"), "{news:?}");
        assert!(owners(&targets).iter().all(|owner| *owner == 1));
        assert_eq!(*targets.set.load().unhealthy, [true, false, false]);

        // The last one, too: flows stay where they belong.
        break_path(&targets, 1, Some(PathProblem::Down));
        let later = 10 * UP_AFTER;
        targets.tend(later);
        assert_eq!(targets.tend(later + DOWN_AFTER).len(), 1);
        assert_eq!(owners(&targets), before);
        assert_eq!(*targets.set.load().unhealthy, [true, true, false]);

        break_path(&targets, 0, None);
        break_path(&targets, 1, None);
        targets.tend(2 * later);
        assert_eq!(targets.tend(2 * later + UP_AFTER).len(), 2);
        assert_eq!(owners(&targets), before);
        assert_eq!(*targets.set.load().unhealthy, [false; 3]);
    }

    #[test]
    fn one_that_is_not_checked_never_leaves() {
        let mut targets = targets(vec![target(0, true), target(1, true)]);
        targets.list[0].check = HealthCheck::None;
        break_path(&targets, 0, Some(PathProblem::NoRoute));
        for second in 0..10 {
            assert!(targets.tend(second * UP_AFTER).is_empty());
        }
        assert!(owners(&targets).contains(&0));
    }

    #[test]
    fn shedding_changes_nothing_else() {
        let mut targets = targets(vec![target(0, true), target(1, true)]);
        let before = owners(&targets);
        targets.shed(Some(Reason::Load));
        assert_eq!(targets.set.load().shed, Some(Reason::Load));
        assert_eq!(owners(&targets), before);
        break_path(&targets, 1, Some(PathProblem::NoRoute));
        targets.tend(0);
        targets.tend(DOWN_AFTER);
        assert_eq!(targets.set.load().shed, Some(Reason::Load));
        targets.shed(None);
        assert_eq!(targets.set.load().shed, None);
        assert!(targets.retired.is_empty(), "nobody holds the old ones");
    }
}
