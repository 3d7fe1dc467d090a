//! Keeps the paths to the targets up to date for senders that bypass the kernel's routing.
//!
//! One control thread listens to link, address, route, rule and neighbour events, works the paths out
//! again after each burst of them and at least every second, keeps the next hops' hardware addresses
//! resolved and confirmed, and publishes a new [`PathState`] when one differs. Must not touch a
//! packet. Started by control; the transmitters only load what it publishes.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_sys::{protocols::NETLINK_ROUTE, Socket};

use super::link::{self, Link};
use super::neighbour::{self, Neighbour};
use super::netlink::{borrow, Netlink, NetlinkError};
use super::route::{self, RouteError, RouteQuery};
use super::sys::{self, Signal};
use crate::mirror::path::{PathProblem, PathState};

/// RTNLGRP_* of linux/rtnetlink.h: link, neighbour, IPv4 and IPv6 address, route and rule, next-hop
/// objects.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];
/// Events come in bursts (an interface that goes down takes its addresses, routes and neighbours with
/// it): the paths are worked out once the burst pauses for this long …
const DEBOUNCE: Duration = Duration::from_millis(5);
/// … or has lasted for this long.
const LONGEST_BURST: Duration = Duration::from_millis(50);
/// The paths are worked out again at least this often, whatever was or was not heard. Some changes
/// send no event: an expired learned MTU, for instance.
const PERIOD: Duration = Duration::from_secs(1);
/// A next hop is asked for at most this often; the kernel itself repeats each question every second.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
/// A known address is confirmed again at this age. The kernel calls it stale after 15 seconds at the
/// earliest (base_reachable_time 30 s, times 0.5 to 1.5).
const CONFIRM_AFTER_MS: u64 = 10_000;
/// Receive buffer for events; what does not fit is reported as ENOBUFS and answered by a full rebuild.
const EVENT_BUFFER: usize = 1 << 20;

/// A target whose path is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTarget {
    /// Outer destination address.
    pub destination: IpAddr,
    /// Outer source address, if the user has fixed it.
    pub source: Option<IpAddr>,
    /// Name of the device that the copies must leave by, if the user has fixed it. A name, because
    /// an interface that is made anew has a new index.
    pub device: Option<String>,
}

/// Why a watch could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The event socket could not be made.
    #[error("route watch: {0}")]
    Events(#[source] io::Error),
    /// The request socket could not be made.
    #[error("route watch: {0}")]
    Netlink(#[from] NetlinkError),
}

/// What the watch has done so far, for status.
#[derive(Debug, Default)]
pub struct WatchCounters {
    /// Times that the paths were worked out.
    pub rebuilds: AtomicU64,
    /// Times that events were lost (ENOBUFS) and everything was read again.
    pub overruns: AtomicU64,
    /// Next hops asked for, first time or again.
    pub resolutions: AtomicU64,
    /// Requests that failed, a missing CAP_NET_ADMIN for resolving included.
    pub errors: AtomicU64,
}

/// A running watch. Dropping it stops the thread.
pub struct PathWatch {
    paths: Vec<Arc<ArcSwap<PathState>>>,
    counters: Arc<WatchCounters>,
    stop: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for PathWatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PathWatch")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl PathWatch {
    /// Works all paths out once, then starts the thread. Everything happens in the network namespace
    /// of the calling thread, now and later.
    pub fn start(targets: Vec<PathTarget>) -> Result<Self, WatchError> {
        let mut events = Socket::new(NETLINK_ROUTE).map_err(WatchError::Events)?;
        // The memberships come before the first look at the tables, so that no change falls between.
        events.bind_auto().map_err(WatchError::Events)?;
        for group in GROUPS {
            events.add_membership(group).map_err(WatchError::Events)?;
        }
        // Best effort: net.core.rmem_max caps it, and an overrun is handled.
        let _ = events.set_rx_buf_sz(EVENT_BUFFER as libc::c_int);
        let stop = Arc::new(Signal::new().map_err(WatchError::Events)?);
        let counters = Arc::new(WatchCounters::default());
        let mut tracker = Tracker {
            netlink: Netlink::open()?,
            paths: targets.into_iter().map(Path::new).collect(),
            counters: Arc::clone(&counters),
        };
        tracker.rebuild();
        let paths = tracker
            .paths
            .iter()
            .map(|path| Arc::clone(&path.published))
            .collect();
        let thread = std::thread::Builder::new()
            .name("xtee-path-watch".into())
            .spawn({
                let stop = Arc::clone(&stop);
                move || run(&events, &stop, tracker)
            })
            .map_err(WatchError::Events)?;
        Ok(Self {
            paths,
            counters,
            stop,
            thread: Some(thread),
        })
    }

    /// The published path of a target, by its position in the list given to [`Self::start`].
    pub fn path(&self, target: usize) -> Option<Arc<ArcSwap<PathState>>> {
        self.paths.get(target).cloned()
    }

    /// What the watch has done so far.
    pub fn counters(&self) -> &WatchCounters {
        &self.counters
    }

    /// Stops the thread and waits for it. The published paths stay as they are.
    pub fn stop(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook; there is nothing left to save.
            let _ = thread.join();
        }
    }
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The thread: wait, gather the burst, rebuild.
fn run(events: &Socket, stop: &Signal, mut tracker: Tracker) {
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut next = Instant::now() + PERIOD;
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        let (heard, stopped) = listen(events, stop, wait);
        if stopped {
            return;
        }
        if heard {
            let end = Instant::now() + LONGEST_BURST;
            loop {
                drain(events, &mut buffer, &tracker.counters);
                if Instant::now() >= end {
                    break;
                }
                match listen(events, stop, DEBOUNCE) {
                    (_, true) => return,
                    (false, _) => break,
                    (true, _) => {}
                }
            }
        }
        tracker.rebuild();
        next = Instant::now() + PERIOD;
    }
}

/// Waits for an event or the stop signal. A failing poll must not turn into a busy loop.
fn listen(events: &Socket, stop: &Signal, timeout: Duration) -> (bool, bool) {
    match sys::wait_readable([borrow(events), stop.as_fd()], Some(timeout)) {
        Ok([heard, stopped]) => (heard, stopped),
        Err(_) => {
            std::thread::sleep(DEBOUNCE);
            (false, false)
        }
    }
}

/// Takes all events off the socket. Their content does not matter: any of them means "look again",
/// and the tables are asked, so a lost event costs nothing but the overrun's count.
fn drain(events: &Socket, buffer: &mut Vec<u8>, counters: &WatchCounters) {
    // Bounded, so that a storm of events cannot keep the paths from being worked out.
    for _ in 0..4096 {
        buffer.clear();
        match events.recv(buffer, libc::MSG_DONTWAIT) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                counters.overruns.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

struct Tracker {
    netlink: Netlink,
    paths: Vec<Path>,
    counters: Arc<WatchCounters>,
}

/// One target with what is remembered between rebuilds.
struct Path {
    target: PathTarget,
    published: Arc<ArcSwap<PathState>>,
    /// Earlier snapshots that a worker may still hold. They are dropped here, when nobody does: the
    /// last reference must not be the worker's, which would then free memory in its loop.
    retired: Vec<Arc<PathState>>,
    /// When the kernel was last asked to resolve or confirm, and whom.
    asked: Option<(Instant, u32, IpAddr)>,
}

impl Path {
    fn new(target: PathTarget) -> Self {
        let state = PathState::without_route(target.destination);
        Self {
            target,
            published: Arc::new(ArcSwap::from_pointee(state)),
            retired: Vec::new(),
            asked: None,
        }
    }

    fn publish(&mut self, mut state: PathState) {
        let current = self.published.load_full();
        if current.generation > 0 && current.same_as(&state) {
            return;
        }
        state.generation = current.generation + 1;
        drop(current);
        self.retired.push(self.published.swap(Arc::new(state)));
        self.retired.retain(|state| Arc::strong_count(state) > 1);
    }
}

/// What one look at the tables gave: the path, and what to ask the kernel for.
struct Finding {
    state: PathState,
    want: Option<Want>,
}

/// What a next hop needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Resolve,
    Confirm,
}

impl Tracker {
    fn rebuild(&mut self) {
        self.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
        for path in &mut self.paths {
            let finding = match find(&mut self.netlink, &path.target) {
                Ok(finding) => finding,
                Err(_) => {
                    // The tables could not be read: what was published stays, the next round tries
                    // again.
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            let (device, next_hop) = (finding.state.ifindex, finding.state.next_hop);
            if !matches!(finding.state.problem, None | Some(PathProblem::NoNeighbour)) {
                // When the route or the device comes back, its next hop is asked for at once.
                path.asked = None;
            }
            path.publish(finding.state);
            let Some(want) = finding.want else { continue };
            let recently = path.asked.is_some_and(|(when, asked_device, asked_hop)| {
                (asked_device, asked_hop) == (device, next_hop) && when.elapsed() < RESOLVE_INTERVAL
            });
            if recently {
                continue;
            }
            path.asked = Some((Instant::now(), device, next_hop));
            self.counters.resolutions.fetch_add(1, Ordering::Relaxed);
            let asked = match want {
                Want::Resolve => neighbour::resolve(&mut self.netlink, device, next_hop),
                Want::Confirm => neighbour::confirm(&mut self.netlink, device, next_hop),
            };
            if asked.is_err() {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn find(netlink: &mut Netlink, target: &PathTarget) -> Result<Finding, NetlinkError> {
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
    state.mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
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

    #[test]
    fn only_changes_are_published_and_old_states_are_freed_here() {
        let mut path = Path::new(PathTarget {
            destination: "203.0.113.2".parse().unwrap(),
            source: None,
            device: None,
        });
        let mut state = PathState::without_route(path.target.destination);
        path.publish(state.clone());
        path.publish(state.clone());
        assert_eq!(path.published.load().generation, 1, "no change, no news");
        let held = path.published.load_full();
        state.mtu = 1400;
        path.publish(state.clone());
        assert_eq!(path.published.load().generation, 2);
        assert_eq!(path.retired.len(), 1, "kept while a worker holds it");
        drop(held);
        state.mtu = 1500;
        path.publish(state);
        assert!(path.retired.is_empty());
    }
}
