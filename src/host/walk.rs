//! Follows a route through tunnels and stacked devices down to where the packets leave this host.
//!
//! It answers two questions: does the outer flow of our copies pass the tapped interface as itself
//! (then it can be excluded exactly) or inside another tunnel (then it is hidden), and which devices
//! does it touch. Must not change anything. Called by facts (for `check`) and the doctor.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::link::{self, Link};
use super::neighbour;
use super::netlink::{Netlink, NetlinkError};
use super::route::{self, Route, RouteError, RouteQuery};

/// Tunnels in tunnels in tunnels: more than this is a loop in the configuration.
const DEEPEST: usize = 16;

/// A device on the way, outermost decision first, the physical device last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index of the device.
    pub index: u32,
    /// Name of the device.
    pub name: String,
    /// Its kind, as in [`Link::kind_name`].
    pub kind: String,
    /// For tunnels: the outer destination that the walk went on with.
    pub remote: Option<IpAddr>,
    /// From here on the packet is inside another one, so that its own headers cannot be matched on
    /// the devices that follow.
    pub encapsulates: bool,
}

/// How a walk ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The last step is a device of a driver.
    Physical,
    /// The last step hands packets to another network namespace (a veth, netkit or macvlan parent).
    OtherNamespace,
    /// The target is this host, or the packets come back into it.
    Local,
    /// The kernel does not tell where the outer packets go: tun, WireGuard, IPsec devices, tunnels
    /// whose remote each packet chooses.
    Hidden(String),
    /// There is no route to the target or to a tunnel's remote.
    NoRoute(String),
    /// Too deep or going in circles.
    Loop,
}

/// The way from this host towards a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Answer for the target itself, when there is one.
    pub route: Option<Route>,
    /// Devices passed, in order. A bond's or a bridge's possible ports all follow it.
    pub steps: Vec<Step>,
    /// Where it ends.
    pub end: End,
}

impl Walk {
    /// The packets are wrapped in another tunnel, or may be, before they pass the device with this
    /// index: our outer flow cannot be told apart there. `None` when the walk does not touch it and
    /// ended where the kernel tells.
    pub fn hidden_at(&self, device: u32) -> Option<bool> {
        let mut wrapped = false;
        for step in &self.steps {
            if step.index == device {
                return Some(wrapped);
            }
            wrapped |= step.encapsulates;
        }
        // Where the kernel does not tell, any device may carry the wrapped packets.
        matches!(self.end, End::Hidden(_)).then_some(true)
    }

    /// Index of the last device, if the walk reached one.
    pub fn last(&self) -> Option<&Step> {
        self.steps.last()
    }
}

/// Walks from a query to the end.
pub fn walk(netlink: &mut Netlink, query: RouteQuery) -> Result<Walk, NetlinkError> {
    let links = link::all(netlink)?;
    let mut walker = Walker {
        netlink,
        links,
        steps: Vec::new(),
        first: None,
    };
    let end = walker.follow_route(query)?;
    Ok(Walk {
        route: walker.first,
        steps: walker.steps,
        end,
    })
}

struct Walker<'a> {
    netlink: &'a mut Netlink,
    links: BTreeMap<u32, Link>,
    steps: Vec<Step>,
    first: Option<Route>,
}

/// What a device does with the packets it is given.
enum Next {
    End(End),
    Device(u32),
    Route(RouteQuery),
}

impl Walker<'_> {
    fn follow_route(&mut self, query: RouteQuery) -> Result<End, NetlinkError> {
        let mut query = query;
        loop {
            let route = match route::lookup(self.netlink, query) {
                Ok(route) => route,
                Err(RouteError::None { reason, .. }) => return Ok(End::NoRoute(reason)),
                Err(RouteError::Netlink(error)) => return Err(error),
            };
            let next_hop = route.next_hop(query.destination);
            if self.first.is_none() {
                self.first = Some(route.clone());
            }
            if route.local {
                return Ok(End::Local);
            }
            match self.descend(route.device, next_hop)? {
                Next::Route(outer) => query = outer,
                Next::End(end) => return Ok(end),
                Next::Device(_) => return Ok(End::Loop),
            }
        }
    }

    /// Goes down from a device through what it is stacked on.
    fn descend(&mut self, device: u32, next_hop: IpAddr) -> Result<Next, NetlinkError> {
        let mut device = device;
        loop {
            if self.steps.len() >= DEEPEST || self.steps.iter().any(|step| step.index == device) {
                return Ok(Next::End(End::Loop));
            }
            let Some(link) = self.links.get(&device).cloned() else {
                return Ok(Next::End(End::NoRoute(format!("device {device} is gone"))));
            };
            self.push(&link);
            match self.next(&link, next_hop)? {
                Next::Device(below) => device = below,
                other => return Ok(other),
            }
        }
    }

    fn push(&mut self, link: &Link) {
        self.steps.push(Step {
            index: link.index,
            name: link.name.clone(),
            kind: link.kind_name().to_owned(),
            remote: None,
            encapsulates: false,
        });
    }

    fn next(&mut self, link: &Link, next_hop: IpAddr) -> Result<Next, NetlinkError> {
        if link.tunnel.is_some() {
            return self.through_tunnel(link);
        }
        let hidden = |why: &str| Next::End(End::Hidden(format!("{} is {why}", link.name)));
        Ok(match link.kind.as_deref() {
            None | Some("dummy" | "ifb" | "netdevsim") if link.loopback => Next::End(End::Local),
            None => Next::End(End::Physical),
            Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap") => below(link),
            // MACsec keeps the Ethernet header and encrypts the rest.
            Some("macsec") => {
                self.wrap(None);
                below(link)
            }
            Some("bridge") => return self.through_bridge(link, next_hop),
            Some("bond" | "team") => self.through_ports(link),
            Some("veth" | "netkit") => self.through_pair(link),
            Some("tun") => {
                self.wrap(None);
                hidden("a tun device: a program reads the packets, and the kernel does not know what it does with them")
            }
            Some("wireguard") => {
                self.wrap(None);
                hidden("a WireGuard device: the copies leave encrypted, in a flow that only its peers' endpoints tell (wg show)")
            }
            Some("xfrm" | "ppp" | "amt" | "gtp" | "bareudp" | "ip6erspan") => {
                self.wrap(None);
                hidden("a tunnel whose outer flow the kernel does not list with the device")
            }
            Some("vrf") => Next::End(End::NoRoute(format!(
                "{} is a VRF: name a device in it with dev=",
                link.name
            ))),
            Some(_) => Next::End(End::Physical),
        })
    }

    /// Marks the step just made as one that wraps packets.
    fn wrap(&mut self, remote: Option<IpAddr>) {
        if let Some(step) = self.steps.last_mut() {
            step.encapsulates = true;
            step.remote = remote;
        }
    }

    fn through_tunnel(&mut self, link: &Link) -> Result<Next, NetlinkError> {
        let tunnel = link.tunnel.clone().unwrap_or_default();
        let mut remote = tunnel.remote.filter(|address| !address.is_multicast());
        if remote.is_none() && link.kind.as_deref() == Some("vxlan") {
            // Without a configured remote, the forwarding table holds it. Several: the first one is
            // followed; all are behind the same routing table, and seldom behind another device.
            remote = neighbour::tunnel_remotes(self.netlink, link.index)?
                .into_iter()
                .find(|address| !address.is_multicast());
        }
        self.wrap(remote);
        if let Some(destination) = remote {
            return Ok(Next::Route(RouteQuery {
                destination,
                source: tunnel.local,
                device: tunnel.link,
                mark: 0,
            }));
        }
        // A multicast group needs a device, and that is enough to go on.
        if let Some(device) = tunnel.link {
            return Ok(Next::Device(device));
        }
        let why = if tunnel.external {
            "chooses the remote by packet (external)"
        } else {
            "has no remote that the kernel would tell"
        };
        Ok(Next::End(End::Hidden(format!("{} {why}", link.name))))
    }

    /// A bridge forwards by hardware address: the port behind which the next hop was seen, or, if
    /// none was, all of them.
    fn through_bridge(&mut self, link: &Link, next_hop: IpAddr) -> Result<Next, NetlinkError> {
        let known = neighbour::lookup(self.netlink, link.index, next_hop)?;
        if let Some(mac) = known.and_then(|neighbour| neighbour.mac) {
            if let Some(port) = neighbour::bridge_port(self.netlink, link.index, mac)? {
                if port != link.index {
                    return Ok(Next::Device(port));
                }
            }
        }
        Ok(self.through_ports(link))
    }

    /// Any port of a bond or a flooding bridge may carry the packets: one is followed if it is the
    /// only one, otherwise all become steps and the walk ends with them.
    fn through_ports(&mut self, link: &Link) -> Next {
        let ports: Vec<Link> = self
            .links
            .values()
            .filter(|port| port.master == Some(link.index))
            // Packets do not leave by the port that they came in by.
            .filter(|port| self.steps.iter().all(|step| step.index != port.index))
            .cloned()
            .collect();
        match ports.as_slice() {
            [] => Next::End(End::NoRoute(format!("{} has no ports", link.name))),
            [only] => Next::Device(only.index),
            several => {
                for port in several {
                    self.push(port);
                }
                // A port that is itself a tunnel or a veth leads on to where this walk does not go.
                match several.iter().find(|port| port.kind.is_some()) {
                    Some(port) => Next::End(End::Hidden(format!(
                        "{} has several ports, among them {} ({})",
                        link.name,
                        port.name,
                        port.kind_name()
                    ))),
                    None => Next::End(End::Physical),
                }
            }
        }
    }

    /// What goes into one end of a pair comes out of the other: in another namespace, or here.
    fn through_pair(&mut self, link: &Link) -> Next {
        let peer = link
            .parent
            .and_then(|index| self.links.get(&index))
            .cloned();
        match peer {
            _ if link.parent_elsewhere => Next::End(End::OtherNamespace),
            None => Next::End(End::OtherNamespace),
            Some(peer) => {
                let seen = self.steps.iter().any(|step| step.index == peer.index);
                if seen {
                    return Next::End(End::Loop);
                }
                self.push(&peer);
                match peer.master {
                    // The peer is a port of a bridge: the packets are forwarded by it.
                    Some(bridge) => Next::Device(bridge),
                    None => Next::End(End::Local),
                }
            }
        }
    }
}

fn below(link: &Link) -> Next {
    match link.parent {
        _ if link.parent_elsewhere => Next::End(End::OtherNamespace),
        Some(parent) => Next::Device(parent),
        None => Next::End(End::Physical),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(index: u32, encapsulates: bool) -> Step {
        Step {
            index,
            name: format!("d{index}"),
            kind: "device".into(),
            remote: None,
            encapsulates,
        }
    }

    #[test]
    fn the_outer_flow_is_hidden_below_a_tunnel_only() {
        let walk = Walk {
            route: None,
            steps: vec![step(5, true), step(2, false)],
            end: End::Physical,
        };
        assert_eq!(walk.hidden_at(5), Some(false), "at the tunnel itself");
        assert_eq!(walk.hidden_at(2), Some(true), "below it");
        assert_eq!(walk.hidden_at(9), None, "not on the way");
    }

    #[test]
    fn where_the_kernel_does_not_tell_everything_may_be_hidden() {
        let walk = Walk {
            route: None,
            steps: vec![step(5, true)],
            end: End::Hidden("tun0".into()),
        };
        assert_eq!(walk.hidden_at(2), Some(true));
        assert_eq!(walk.hidden_at(5), Some(false));
    }

    #[test]
    fn this_host_is_local() {
        let mut netlink = Netlink::open().unwrap();
        let query = RouteQuery::to("127.0.0.1".parse().unwrap());
        assert_eq!(walk(&mut netlink, query).unwrap().end, End::Local);
    }
}
