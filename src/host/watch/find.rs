//! One look at the kernel's tables: the path to a target as it is now, and what its next hop needs.
//!
//! Remembers nothing; called by the watch's thread.

use netlink_packet_route::neighbour::NeighbourState;

use super::PathTarget;
use crate::host::link::{self, Link};
use crate::host::neighbour::{self, Neighbour};
use crate::host::netlink::{Netlink, NetlinkError};
use crate::host::route::{self, RouteError, RouteQuery};
use crate::mirror::path::{MtuSource, PathProblem, PathState};

/// A known address is confirmed again at this age. The kernel calls it stale after 15 seconds at the
/// earliest (base_reachable_time 30 s, times 0.5 to 1.5).
const CONFIRM_AFTER_MS: u64 = 10_000;

/// What one look at the tables gave: the path, and what to ask the kernel for.
pub(super) struct Finding {
    pub state: PathState,
    pub want: Option<Want>,
}

/// What a next hop needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Resolve,
    Confirm,
}

/// Works one path out.
pub(super) fn find(netlink: &mut Netlink, target: &PathTarget) -> Result<Finding, NetlinkError> {
    let nothing = || Finding {
        state: PathState::without_route(target.destination),
        want: None,
    };
    let device = match &target.device {
        None => None,
        Some(name) => match link::by_name(netlink, name) {
            Ok(link) if !link.up => return Ok(downed(target, &link)),
            Ok(link) => Some(link.index),
            Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(nothing()),
            Err(error) => return Err(error),
        },
    };
    let query = RouteQuery {
        destination: target.destination,
        source: target.source,
        device,
        mark: 0,
    };
    let route = match route::lookup(netlink, query) {
        Ok(route) => route,
        Err(RouteError::None { .. }) => return Ok(nothing()),
        Err(RouteError::Netlink(error)) => return Err(error),
    };
    let link = match link::by_index(netlink, route.device) {
        Ok(link) => link,
        Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(nothing()),
        Err(error) => return Err(error),
    };
    let next_hop = route.next_hop(target.destination);
    let known = if link.ethernet && !route.local {
        neighbour::lookup(netlink, link.index, next_hop)?
    } else {
        None
    };
    let mut state = on_link(target, &link);
    state.source_ip = target
        .source
        .or(route.source)
        .unwrap_or_else(|| route::unspecified(target.destination));
    state.next_hop = next_hop;
    state.mtu = link.mtu;
    if let Some(mtu) = route.mtu {
        let source = match route.learned {
            true => MtuSource::Kernel,
            false => MtuSource::Route,
        };
        state.limit_mtu(mtu, source);
    }
    state.next_hop_mac = known.filter(Neighbour::usable).and_then(|known| known.mac);
    state.problem = problem(&link, route.local, state.next_hop_mac.is_some());
    let want = match state.problem {
        None | Some(PathProblem::NoNeighbour) => want(known),
        Some(_) => None,
    };
    Ok(Finding { state, want })
}

/// A path whose device the user fixed and which is down: the kernel gives no route then, but the
/// reader wants to know which device is down.
fn downed(target: &PathTarget, link: &Link) -> Finding {
    let mut state = on_link(target, link);
    state.mtu = link.mtu;
    state.problem = Some(PathProblem::Down);
    Finding { state, want: None }
}

fn on_link(target: &PathTarget, link: &Link) -> PathState {
    PathState {
        ifindex: link.index,
        device: link.name.clone(),
        source_mac: link.mac.unwrap_or_default(),
        up: link.running,
        ..PathState::without_route(target.destination)
    }
}

fn problem(link: &Link, local: bool, resolved: bool) -> Option<PathProblem> {
    if local || !link.ethernet {
        Some(PathProblem::NotEthernet)
    } else if !link.running {
        Some(PathProblem::Down)
    } else if !resolved {
        Some(PathProblem::NoNeighbour)
    } else {
        None
    }
}

/// What the next hop's entry needs, so that an address is there before it is missed.
fn want(known: Option<Neighbour>) -> Option<Want> {
    let Some(known) = known else {
        return Some(Want::Resolve);
    };
    if known.fixed() {
        return None;
    }
    match known.state {
        NeighbourState::Reachable if known.confirmed_ms < CONFIRM_AFTER_MS => None,
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay => {
            Some(Want::Confirm)
        }
        // The kernel is at it.
        NeighbourState::Incomplete | NeighbourState::Probe => None,
        _ => Some(Want::Resolve),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(state: NeighbourState, confirmed_ms: u64) -> Option<Neighbour> {
        Some(Neighbour {
            mac: Some([2, 0, 0, 0, 0, 1]),
            state,
            confirmed_ms,
        })
    }

    #[test]
    fn addresses_are_confirmed_before_they_go_stale() {
        assert_eq!(want(None), Some(Want::Resolve));
        assert_eq!(want(neighbour(NeighbourState::Reachable, 500)), None);
        for (state, age) in [
            (NeighbourState::Reachable, CONFIRM_AFTER_MS),
            (NeighbourState::Stale, 0),
            (NeighbourState::Delay, 0),
        ] {
            assert_eq!(want(neighbour(state, age)), Some(Want::Confirm), "{state}");
        }
        assert_eq!(
            want(neighbour(NeighbourState::Failed, 0)),
            Some(Want::Resolve)
        );
        for state in [
            NeighbourState::Permanent,
            NeighbourState::Noarp,
            NeighbourState::Probe,
            NeighbourState::Incomplete,
        ] {
            assert_eq!(want(neighbour(state, 60_000)), None, "{state}");
        }
    }
}
