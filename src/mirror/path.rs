//! The way to a target as a sender that bypasses the kernel's routing needs it: device, addresses,
//! MTU, and what is wrong if it cannot be used.
//!
//! A pure snapshot: knows no socket and no netlink. The control plane (`host::watch`) makes a new one
//! on every change and publishes it by one pointer swap; an AF_XDP transmitter loads it once a batch.

use std::fmt;
use std::net::IpAddr;

/// Where a path's MTU comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtuSource {
    /// The device.
    Device,
    /// The route, as it was set by hand.
    Route,
    /// The kernel's own path MTU discovery.
    Kernel,
    /// A router on the way that could not pass a copy on.
    Router(IpAddr),
    /// The user.
    Configured,
}

impl fmt::Display for MtuSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("device"),
            Self::Route => f.write_str("route"),
            Self::Kernel => f.write_str("learned by the kernel"),
            Self::Router(router) => write!(f, "learned from {router}"),
            Self::Configured => f.write_str("configured"),
        }
    }
}

/// Why copies cannot be sent on a path now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathProblem {
    /// The kernel has no route to the target, or its device is gone.
    NoRoute,
    /// The next hop's hardware address is not known (yet).
    NoNeighbour,
    /// The device is down or has no carrier.
    Down,
    /// The device takes no Ethernet frames (tun, GRE, WireGuard), or the target is this host. Stops
    /// AF_XDP alone.
    NotEthernet,
}

impl PathProblem {
    /// In words, for status and logs.
    pub fn describe(self) -> &'static str {
        match self {
            Self::NoRoute => "no route to the target",
            Self::NoNeighbour => "the next hop's hardware address is not resolved",
            Self::Down => "the device is down or has no carrier",
            Self::NotEthernet => "the device takes no Ethernet frames",
        }
    }
}

/// One path, as it was when its generation was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathState {
    /// Index of the device; 0 when there is no route.
    pub ifindex: u32,
    /// Name of the device; empty when there is no route.
    pub device: String,
    /// Outer destination address. A target that is named may get another one while the mirror runs.
    pub destination: IpAddr,
    /// Outer source address. Unspecified when the kernel names none.
    pub source_ip: IpAddr,
    /// Hardware address of the device; zeros when it has none.
    pub source_mac: [u8; 6],
    /// The router, or the target itself when it is on the link.
    pub next_hop: IpAddr,
    /// Hardware address of the next hop.
    pub next_hop_mac: Option<[u8; 6]>,
    /// Largest IP packet on this path in bytes: the least of the device's MTU, the route's, what was learned
    /// from routers on the way, and what the user set.
    pub mtu: u32,
    /// Which of them it is.
    pub mtu_source: MtuSource,
    /// Times that `mtu` has changed.
    pub mtu_changes: u64,
    /// The device is up and has a carrier.
    pub up: bool,
    /// Grows by one with every published change, beginning at 1.
    pub generation: u64,
    /// Set when copies cannot be sent now.
    pub problem: Option<PathProblem>,
}

impl PathState {
    /// A path without a route.
    pub fn without_route(target: IpAddr) -> Self {
        Self {
            ifindex: 0,
            device: String::new(),
            destination: target,
            source_ip: match target {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            },
            source_mac: [0; 6],
            next_hop: target,
            next_hop_mac: None,
            mtu: 0,
            mtu_source: MtuSource::Device,
            mtu_changes: 0,
            up: false,
            generation: 0,
            problem: Some(PathProblem::NoRoute),
        }
    }

    /// Everything a frame needs is known: the two hardware addresses, destination first, as they
    /// stand in the Ethernet header.
    pub fn ethernet(&self) -> Option<([u8; 6], [u8; 6])> {
        match (self.problem, self.next_hop_mac) {
            (None, Some(next_hop)) => Some((next_hop, self.source_mac)),
            _ => None,
        }
    }

    /// What stops copies that leave by a socket: the kernel routes them, so any device will do.
    pub fn socket_problem(&self) -> Option<PathProblem> {
        self.problem
            .filter(|problem| *problem != PathProblem::NotEthernet)
    }

    /// `mtu`, if it is less, is this path's MTU and comes from `source`.
    pub fn limit_mtu(&mut self, mtu: u32, source: MtuSource) {
        if mtu < self.mtu {
            (self.mtu, self.mtu_source) = (mtu, source);
        }
    }

    /// The same path, generations and changes aside.
    pub fn same_as(&self, other: &Self) -> bool {
        let mut other = other.clone();
        other.generation = self.generation;
        other.mtu_changes = self.mtu_changes;
        *self == other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_problem_gives_no_addresses() {
        let mut path = PathState::without_route("203.0.113.2".parse().unwrap());
        assert_eq!(path.ethernet(), None);
        path.next_hop_mac = Some([2, 0, 0, 0, 0, 1]);
        path.problem = Some(PathProblem::Down);
        assert_eq!(path.ethernet(), None);
        path.problem = None;
        assert_eq!(path.ethernet(), Some(([2, 0, 0, 0, 0, 1], [0; 6])));
    }

    #[test]
    fn a_socket_needs_no_ethernet() {
        let mut path = PathState::without_route("203.0.113.2".parse().unwrap());
        assert_eq!(path.socket_problem(), Some(PathProblem::NoRoute));
        path.problem = Some(PathProblem::NotEthernet);
        assert_eq!(path.socket_problem(), None);
    }

    #[test]
    fn the_least_mtu_counts() {
        let mut path = PathState::without_route("203.0.113.2".parse().unwrap());
        path.mtu = 1500;
        path.limit_mtu(1500, MtuSource::Route);
        assert_eq!(path.mtu_source, MtuSource::Device);
        path.limit_mtu(1400, MtuSource::Router("198.51.100.9".parse().unwrap()));
        path.limit_mtu(1450, MtuSource::Configured);
        assert_eq!(path.mtu, 1400);
        assert_eq!(path.mtu_source.to_string(), "learned from 198.51.100.9");
    }

    #[test]
    fn generations_do_not_make_a_difference() {
        let path = PathState::without_route("2001:db8::2".parse().unwrap());
        let mut later = path.clone();
        later.generation = 9;
        assert!(path.same_as(&later));
        later.mtu = 1400;
        assert!(!path.same_as(&later));
    }
}
