//! Keeps the paths to the targets up to date for senders that bypass the kernel's routing.
//!
//! One control thread listens to link, address, route, rule and neighbour events, works the paths out
//! again after each burst of them and at least every second, keeps the next hops' hardware addresses
//! resolved and confirmed, hears the routers' ICMP errors about the path MTU, and publishes a new [`PathState`] when one differs. Must not touch a
//! packet. Started by control; the transmitters only load what it publishes.

mod find;

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netlink_sys::{protocols::NETLINK_ROUTE, Socket};

use super::neighbour;
use super::netlink::{borrow, Netlink, NetlinkError};
use super::path_mtu::{Learned, Listener, OuterFlow};
use super::route::{self, RouteError, RouteQuery};
use super::sys::{self, Signal};
use crate::mirror::path::{MtuSource, PathProblem, PathState};
use find::{find, Finding, Want};

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
/// Receive buffer for events; what does not fit is reported as ENOBUFS and answered by a full rebuild.
const EVENT_BUFFER: usize = 1 << 20;

/// A target whose path is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTarget {
    /// Outer destination address.
    pub destination: IpAddr,
    /// Outer source address, if it is fixed.
    pub source: Option<IpAddr>,
    /// Not by the user: `source` is what a route once said. It stays as long as the host and the destination
    /// have their addresses, because receivers and the loop guard know the copies by it.
    pub source_is_routes: bool,
    /// Name of the device that the copies must leave by, if the user has fixed it. A name, because
    /// an interface that is made anew has a new index.
    pub device: Option<String>,
    /// How the outer packets look: whose ICMP errors are ours.
    pub flow: OuterFlow,
    /// Path MTU that the user has set, in bytes; where it is less than the others it is the path's.
    pub mtu: Option<u32>,
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
    /// ICMP errors about our own packets that were too long for a link on the way.
    pub too_big: AtomicU64,
}

/// A running watch. Dropping it stops the thread.
pub struct PathWatch {
    paths: Vec<Arc<ArcSwap<PathState>>>,
    counters: Arc<WatchCounters>,
    moves: Arc<Moves>,
    stop: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
    deaf: Option<io::Error>,
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
        let moves = Arc::new(Moves {
            list: Mutex::default(),
            signal: Signal::new().map_err(WatchError::Events)?,
        });
        let (listener, deaf) = Listener::open();
        let mut tracker = Tracker {
            listener,
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
                let (stop, moves) = (Arc::clone(&stop), Arc::clone(&moves));
                move || run(&events, &stop, &moves, tracker)
            })
            .map_err(WatchError::Events)?;
        Ok(Self {
            paths,
            counters,
            moves,
            stop,
            thread: Some(thread),
            deaf,
        })
    }

    /// Why ICMP errors about the path MTU are not heard, if so. What the kernel's own discovery finds for its
    /// sockets is known all the same.
    pub fn deaf(&self) -> Option<&io::Error> {
        self.deaf.as_ref()
    }

    /// The published path of a target, by its position in the list given to [`Self::start`].
    pub fn path(&self, target: usize) -> Option<Arc<ArcSwap<PathState>>> {
        self.paths.get(target).cloned()
    }

    /// A target has another address from now on. Its path is worked out at once, but on the watch's thread.
    pub fn move_to(&self, target: usize, destination: IpAddr) {
        // Poisoned only if a thread panicked while it pushed or took.
        let list = self.moves.list.lock();
        list.unwrap_or_else(PoisonError::into_inner)
            .push((target, destination));
        self.moves.signal.raise();
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

/// Targets that have other addresses, on their way to the thread.
struct Moves {
    list: Mutex<Vec<(usize, IpAddr)>>,
    signal: Signal,
}

/// The thread: wait, gather the burst, rebuild.
fn run(events: &Socket, stop: &Signal, moves: &Moves, mut tracker: Tracker) {
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut next = Instant::now() + PERIOD;
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        let heard = listen(events, stop, Some((&tracker.listener, &moves.signal)), wait);
        if heard.stopped {
            return;
        }
        let learned = tracker.learn();
        let moved = heard.moved && tracker.take(moves);
        // Somebody else's ICMP error changes nothing, however many there are.
        if !heard.events && !learned && !moved && Instant::now() < next {
            continue;
        }
        if heard.events {
            let end = Instant::now() + LONGEST_BURST;
            loop {
                drain(events, &mut buffer, &tracker.counters);
                if Instant::now() >= end {
                    break;
                }
                match listen(events, stop, None, DEBOUNCE) {
                    Heard { stopped: true, .. } => return,
                    Heard { events: false, .. } => break,
                    Heard { events: true, .. } => {}
                }
            }
        }
        tracker.rebuild();
        next = Instant::now() + PERIOD;
    }
}

/// What ended a wait.
#[derive(Clone, Copy, Default)]
struct Heard {
    events: bool,
    stopped: bool,
    moved: bool,
}

/// Waits for an event, the stop signal and, where there are `others`, for an ICMP error or a target's move. A
/// failing poll must not turn into a busy loop.
fn listen(
    events: &Socket,
    stop: &Signal,
    others: Option<(&Listener, &Signal)>,
    timeout: Duration,
) -> Heard {
    let mut descriptors = vec![borrow(events), stop.as_fd()];
    if let Some((listener, moves)) = others {
        descriptors.push(moves.as_fd());
        descriptors.extend(listener.descriptors());
    }
    match sys::wait_any(&descriptors, Some(timeout)).as_deref() {
        Ok(&[events, stopped, ref others @ ..]) => Heard {
            events,
            stopped,
            moved: others.first().copied().unwrap_or(false),
        },
        _ => {
            std::thread::sleep(DEBOUNCE);
            Heard::default()
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
    listener: Listener,
    netlink: Netlink,
    paths: Vec<Path>,
    counters: Arc<WatchCounters>,
}

/// Whether this host has the address.
fn is_own(netlink: &mut Netlink, address: IpAddr) -> Result<bool, NetlinkError> {
    match route::lookup(netlink, RouteQuery::to(address)) {
        Ok(route) => Ok(route.local),
        Err(RouteError::None { .. }) => Ok(false),
        Err(RouteError::Netlink(error)) => Err(error),
    }
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
    /// What a router told about the path MTU.
    learned: Option<Learned>,
}

impl Path {
    fn new(target: PathTarget) -> Self {
        let state = PathState::without_route(target.destination);
        Self {
            target,
            published: Arc::new(ArcSwap::from_pointee(state)),
            retired: Vec::new(),
            asked: None,
            learned: None,
        }
    }

    /// Looks at the tables. Where the user has not fixed the source, it is the route's when there is none yet, and
    /// again when this host has lost the address.
    fn look(&mut self, netlink: &mut Netlink) -> Result<Finding, NetlinkError> {
        let mut finding = find(netlink, &self.target)?;
        if !self.target.source_is_routes {
            return Ok(finding);
        }
        if let Some(source) = self.target.source {
            // The kernel refuses an IPv4 source that is not its own; of IPv6 it takes any.
            let suspect = finding.state.problem == Some(PathProblem::NoRoute) || source.is_ipv6();
            if !suspect || is_own(netlink, source)? {
                return Ok(finding);
            }
            self.target.source = None;
            finding = find(netlink, &self.target)?;
        }
        let source = finding.state.source_ip;
        if finding.state.ifindex == 0 || source.is_unspecified() {
            return Ok(finding);
        }
        // As connect(2) does it: policy rules may lead packets of this source another way.
        self.target.source = Some(source);
        find(netlink, &self.target)
    }

    /// Another host: whatever was learned about the one before does not hold for it.
    fn move_to(&mut self, destination: IpAddr) {
        self.target.destination = destination;
        if self.target.source_is_routes {
            self.target.source = None;
        }
        (self.asked, self.learned) = (None, None);
    }

    /// Takes what the user set and what was learned into account.
    fn limit_mtu(&mut self, state: &mut PathState) {
        if let Some(mtu) = self.target.mtu {
            state.limit_mtu(mtu, MtuSource::Configured);
        }
        let way = (state.ifindex, state.next_hop);
        self.learned = self
            .learned
            .filter(|learned| learned.holds(way, Instant::now()));
        if let Some(learned) = self.learned {
            // The kernel may have learned the same; who told is more to know.
            if state.mtu_source == MtuSource::Kernel && state.mtu == learned.mtu {
                state.mtu_source = MtuSource::Router(learned.router);
            }
            state.limit_mtu(learned.mtu, MtuSource::Router(learned.router));
        }
    }

    fn publish(&mut self, mut state: PathState) {
        let current = self.published.load_full();
        if current.generation > 0 && current.same_as(&state) {
            return;
        }
        state.generation = current.generation + 1;
        // A path without a route has none: not a change, but an interruption.
        let changed = current.mtu != state.mtu && current.mtu != 0 && state.mtu != 0;
        state.mtu_changes = current.mtu_changes + u64::from(changed);
        drop(current);
        self.retired.push(self.published.swap(Arc::new(state)));
        self.retired.retain(|state| Arc::strong_count(state) > 1);
    }
}

impl Tracker {
    /// Takes the targets' new addresses over. Returns whether there are any.
    fn take(&mut self, moves: &Moves) -> bool {
        moves.signal.clear();
        let list = moves.list.lock();
        let list = std::mem::take(&mut *list.unwrap_or_else(PoisonError::into_inner));
        for (target, destination) in &list {
            if let Some(path) = self.paths.get_mut(*target) {
                path.move_to(*destination);
            }
        }
        !list.is_empty()
    }

    /// Takes in what routers said about our packets; returns whether there was anything.
    fn learn(&mut self) -> bool {
        let mut any = false;
        for error in self.listener.receive() {
            for path in &mut self.paths {
                let state = path.published.load();
                let target = &path.target;
                if !error.is_about(state.source_ip, target.destination, &target.flow) {
                    continue;
                }
                self.counters.too_big.fetch_add(1, Ordering::Relaxed);
                let way = (state.ifindex, state.next_hop);
                let now = Instant::now();
                path.learned = Some(Learned::after(path.learned, &error, way, now));
                any = true;
            }
        }
        any
    }

    fn rebuild(&mut self) {
        self.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
        for path in &mut self.paths {
            let mut finding = match path.look(&mut self.netlink) {
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
            path.limit_mtu(&mut finding.state);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_published_and_old_states_are_freed_here() {
        let mut path = Path::new(PathTarget {
            destination: "203.0.113.2".parse().unwrap(),
            source: None,
            source_is_routes: true,
            device: None,
            flow: OuterFlow {
                protocol: 17,
                destination_port: 4789,
                source_ports: 61000..=61063,
            },
            mtu: None,
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
        assert_eq!(path.published.load().mtu_changes, 1, "none was no MTU");
    }
}
