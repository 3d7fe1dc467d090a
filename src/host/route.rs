//! Asks the kernel which way a packet to a destination takes.
//!
//! Must not keep a routing table of its own: the kernel's answer already holds policy rules, VRFs and
//! learned path MTUs. Called by walk, watch and facts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, NetlinkError};

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery {
    /// Where the packets go.
    pub destination: IpAddr,
    /// Source address that the packets will have, if it is fixed.
    pub source: Option<IpAddr>,
    /// Index of the device that the packets must leave by, if it is fixed.
    pub device: Option<u32>,
    /// Firewall mark of the socket that sends them; 0 for none. Policy rules may look at it.
    pub mark: u32,
}

impl RouteQuery {
    /// The plain question, without source, device or mark.
    pub fn to(destination: IpAddr) -> Self {
        Self {
            destination,
            source: None,
            device: None,
            mark: 0,
        }
    }
}

/// The kernel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the device that the packets leave by.
    pub device: u32,
    /// Router on the way; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Source address that the kernel would pick (or the one that was asked for).
    pub source: Option<IpAddr>,
    /// MTU of the route (RTAX_MTU: set by hand or learned); the device's own holds where `None`.
    pub mtu: Option<u32>,
    /// The answer is an exception that the kernel has learned and will forget: the MTU is learned.
    pub learned: bool,
    /// The destination is this host: packets would go through loopback.
    pub local: bool,
}

impl Route {
    /// Who must be resolved to a hardware address: the router, or the destination itself.
    pub fn next_hop(&self, destination: IpAddr) -> IpAddr {
        self.gateway.unwrap_or(destination)
    }
}

/// Why there is no route.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No route, or one that forbids: unreachable, prohibit, blackhole.
    #[error("no route to {destination}: {reason}")]
    None {
        /// The destination asked for.
        destination: IpAddr,
        /// The kernel's words.
        reason: String,
    },
    /// The question itself failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Looks a route up in the namespace of `netlink`.
pub fn lookup(netlink: &mut Netlink, query: RouteQuery) -> Result<Route, RouteError> {
    let what = format!("route to {}", query.destination);
    let answer = netlink.ask(&what, RouteNetlinkMessage::GetRoute(request(query)));
    let no_route = |reason: String| RouteError::None {
        destination: query.destination,
        reason,
    };
    match answer {
        Ok(RouteNetlinkMessage::NewRoute(message)) => parse(&message).map_err(no_route),
        Ok(other) => Err(RouteError::Netlink(NetlinkError::Malformed {
            what,
            detail: format!("expected a route, got {other:?}"),
        })),
        // ENETUNREACH: none, or the device given is down; EHOSTUNREACH: "unreachable"; EACCES:
        // "prohibit"; EINVAL: "blackhole", or a source that is not ours; ENODEV: the device is gone.
        Err(error) => match error.errno() {
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EACCES
                | libc::EINVAL
                | libc::ENODEV
                | libc::ENETDOWN,
            ) => Err(no_route(error.to_string())),
            _ => Err(RouteError::Netlink(error)),
        },
    }
}

/// The source address that the kernel would give packets to a destination, by a device or by any; `None` where it
/// knows no way now, or does not answer.
pub fn source_towards(destination: IpAddr, device: Option<&str>) -> Option<IpAddr> {
    let mut netlink = Netlink::open().ok()?;
    let device = match device {
        Some(name) => Some(super::link::by_name(&mut netlink, name).ok()?.index),
        None => None,
    };
    let query = RouteQuery {
        device,
        ..RouteQuery::to(destination)
    };
    lookup(&mut netlink, query).ok()?.source
}

fn request(query: RouteQuery) -> RouteMessage {
    let bits = if query.destination.is_ipv4() { 32 } else { 128 };
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match query.destination {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: bits,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(query.destination.into()));
    if let Some(source) = query.source {
        message.header.source_prefix_length = bits;
        attributes.push(RouteAttribute::Source(source.into()));
    }
    if let Some(device) = query.device {
        attributes.push(RouteAttribute::Oif(device));
    }
    if query.mark != 0 {
        attributes.push(RouteAttribute::Mark(query.mark));
    }
    message
}

fn parse(message: &RouteMessage) -> Result<Route, String> {
    match message.header.kind {
        RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit => {
            return Err(format!("the route is {:?}", message.header.kind).to_lowercase());
        }
        _ => {}
    }
    let mut route = Route {
        device: 0,
        gateway: None,
        source: None,
        mtu: None,
        learned: false,
        local: message.header.kind == RouteType::Local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(device) => route.device = *device,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            // An IPv4 route through an IPv6 router (RFC 8950).
            RouteAttribute::Via(via) => {
                route.gateway = match via {
                    RouteVia::Inet(address) => Some((*address).into()),
                    RouteVia::Inet6(address) => Some((*address).into()),
                    _ => None,
                }
            }
            // RTA_SRC echoes the source asked for, RTA_PREFSRC is the kernel's choice; only one of
            // them is set, except by kernels that echo both with the same value.
            RouteAttribute::PrefSource(address) | RouteAttribute::Source(address) => {
                route.source = ip(address);
            }
            // RTM_F_CLONED alone also marks plain answers; only an exception expires.
            RouteAttribute::CacheInfo(cache) => route.learned = cache.expires != 0,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        route.mtu = (*mtu != 0).then_some(*mtu);
                    }
                }
            }
            _ => {}
        }
    }
    if route.device == 0 {
        return Err("the kernel named no device".into());
    }
    Ok(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// Interfaces with a default route in the main table: IPv4 before IPv6, lowest metric first, each once.
pub fn default_devices(netlink: &mut Netlink) -> Result<Vec<u32>, NetlinkError> {
    let mut devices: Vec<u32> = Vec::new();
    for (_, device) in default_routes(netlink)?.concat() {
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    Ok(devices)
}

/// What `tap:default-route` stands for: the interfaces of the default routes that are in force, those with
/// the lowest metric of their family. IPv4 first, each once; several where the families part, or where a
/// route has several next hops.
pub fn default_route_devices(netlink: &mut Netlink) -> Result<Vec<u32>, NetlinkError> {
    Ok(in_force(&default_routes(netlink)?))
}

fn in_force(families: &[Vec<(u32, u32)>; 2]) -> Vec<u32> {
    let mut devices = Vec::new();
    for routes in families {
        let lowest = routes.first().map(|&(metric, _)| metric);
        for &(metric, device) in routes {
            if Some(metric) == lowest && !devices.contains(&device) {
                devices.push(device);
            }
        }
    }
    devices
}

/// (metric, device) of the default routes of IPv4 and of IPv6, ascending.
fn default_routes(netlink: &mut Netlink) -> Result<[Vec<(u32, u32)>; 2], NetlinkError> {
    let mut families = [Vec::new(), Vec::new()];
    let kinds = [AddressFamily::Inet, AddressFamily::Inet6];
    for (family, routes) in kinds.into_iter().zip(&mut families) {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let answers = netlink.dump("routes", RouteNetlinkMessage::GetRoute(message))?;
        let found = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => Some(default_of(message)),
            _ => None,
        });
        routes.extend(found.flatten());
        routes.sort_unstable();
    }
    Ok(families)
}

/// (metric, device) of each way of a unicast default route in the main table.
fn default_of(message: &RouteMessage) -> Vec<(u32, u32)> {
    let header = &message.header;
    if header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return Vec::new();
    }
    let mut metric = 0;
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    devices.into_iter().map(|device| (metric, device)).collect()
}

/// The unspecified address of the family of `like`.
pub fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.header.address_family = AddressFamily::Inet;
        message.attributes = attributes;
        message
    }

    fn address(text: &str) -> RouteAddress {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn reads_gateway_source_and_mtu() {
        let route = parse(&answer(
            RouteType::Unicast,
            vec![
                RouteAttribute::Oif(4),
                RouteAttribute::Gateway(address("198.51.100.1")),
                RouteAttribute::PrefSource(address("198.51.100.7")),
                RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
            ],
        ))
        .unwrap();
        assert_eq!(route.device, 4);
        assert_eq!(route.mtu, Some(1400));
        assert_eq!(route.source, Some("198.51.100.7".parse().unwrap()));
        let far: IpAddr = "203.0.113.2".parse().unwrap();
        assert_eq!(route.next_hop(far).to_string(), "198.51.100.1");
        assert!(!route.local);
    }

    #[test]
    fn a_next_hop_of_the_other_family() {
        let via = RouteVia::Inet6("2001:db8::1".parse().unwrap());
        let route = parse(&answer(
            RouteType::Unicast,
            vec![RouteAttribute::Oif(4), RouteAttribute::Via(via)],
        ))
        .unwrap();
        assert_eq!(route.gateway, Some("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn forbidding_routes_are_no_routes() {
        for kind in [
            RouteType::Unreachable,
            RouteType::BlackHole,
            RouteType::Prohibit,
        ] {
            assert!(parse(&answer(kind, vec![RouteAttribute::Oif(1)])).is_err());
        }
        assert!(parse(&answer(RouteType::Unicast, Vec::new())).is_err());
    }

    #[test]
    fn this_host_is_local() {
        let mut netlink = Netlink::open().unwrap();
        let query = RouteQuery::to("127.0.0.1".parse().unwrap());
        assert!(lookup(&mut netlink, query).unwrap().local);
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_counts() {
        let with = |metric, device| {
            let mut message = answer(
                RouteType::Unicast,
                vec![
                    RouteAttribute::Priority(metric),
                    RouteAttribute::Oif(device),
                ],
            );
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message
        };
        let best = [with(200, 3), with(100, 5)]
            .iter()
            .flat_map(default_of)
            .min();
        assert_eq!(best, Some((100, 5)));
        let families = [
            vec![(100, 5), (100, 6), (200, 3)],
            vec![(1024, 6), (1024, 7)],
        ];
        assert_eq!(in_force(&families), [5, 6, 7]);
        let mut network = with(0, 9);
        network.header.destination_prefix_length = 24;
        assert!(default_of(&network).is_empty());
    }
}
