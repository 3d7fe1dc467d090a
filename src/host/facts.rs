//! Gathers what the plan has to know of this host into the plain data that it reads.
//!
//! Only looks. Missing things are facts too (an interface that does not exist, a name that does not
//! resolve): only a kernel that does not answer at all is an error. Called by `check`, `run` and
//! `reload` before the plan is made.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

use super::ethtool::{Ethtool, EthtoolError};
use super::features::{self, KernelFeatures, Probe};
use super::link::{self, Link};
use super::namespace::Place;
use super::netlink::{Netlink, NetlinkError};
use super::route::{self, RouteQuery};
use super::walk::{self, Walk};
use super::{cpu, neighbour, netdev};
use crate::config::facts::{
    DeviceStep, HostFacts, InterfaceFacts, KernelFacts, NamespaceFacts, RouteFacts, SinkFacts,
    TargetFacts,
};
use crate::config::settings::Namespace;
use crate::config::url::host::is_link_local;

/// Why the facts could not be gathered.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The kernel did not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No socket for ethtool.
    #[error(transparent)]
    Ethtool(#[from] EthtoolError),
}

/// A target to look the way up for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetQuery {
    /// Host name or address.
    pub host: String,
    /// Source address, if the target fixes it.
    pub source: Option<IpAddr>,
    /// Device, if the target fixes it.
    pub device: Option<String>,
}

/// Gathers the facts: of the interfaces named, of those on the way to the targets, and of those with
/// a default route. Everything is seen from the network namespace of the calling thread.
pub fn gather(interfaces: &[String], targets: &[TargetQuery]) -> Result<HostFacts, FactsError> {
    let mut netlink = Netlink::open()?;
    let ethtool = Ethtool::open()?;
    let links = link::all(&mut netlink)?;
    let host_devices = host_devices(&links, &route::default_devices(&mut netlink)?);

    let mut wanted: BTreeSet<u32> = host_devices.clone();
    let mut missing = Vec::new();
    for name in interfaces {
        match links.values().find(|link| &link.name == name) {
            Some(link) => drop(wanted.insert(link.index)),
            None if missing.contains(name) => {}
            None => missing.push(name.clone()),
        }
    }
    let here = |name: &String| links.values().any(|link| &link.name == name);
    if !missing.is_empty() || !targets.iter().filter_map(|t| t.device.as_ref()).all(here) {
        // Whoever has to say that one is not there names those that are.
        wanted.extend(links.keys());
    }
    let mut target_facts = Vec::with_capacity(targets.len());
    for target in targets {
        let (facts, devices) = target_facts_of(&mut netlink, &links, target)?;
        wanted.extend(devices);
        target_facts.push(facts);
    }
    let mut facts: Vec<InterfaceFacts> = wanted
        .iter()
        .filter_map(|index| links.get(index))
        .map(|link| interface_facts(&ethtool, link, host_devices.contains(&link.index)))
        .collect();
    facts.extend(missing.into_iter().map(|name| InterfaceFacts {
        name,
        ..InterfaceFacts::default()
    }));
    let default_route = route::default_route_devices(&mut netlink)?;
    Ok(HostFacts {
        interfaces: facts,
        default_route: default_route
            .iter()
            .filter_map(|index| Some(links.get(index)?.name.clone()))
            .collect(),
        elsewhere: Vec::new(),
        targets: target_facts,
        sinks: Vec::new(),
        kernel: kernel_facts(&features::probe()),
        online_cpus: cpu::cpus().online.into_iter().collect(),
    })
}

/// What there is in another network namespace: the interfaces named and those with a default route; all,
/// where one that was named is missing. A namespace that cannot be looked at is a fact, too.
#[must_use]
pub fn gather_elsewhere(namespace: &Namespace, interfaces: &[String]) -> NamespaceFacts {
    let look = || -> Result<(Vec<InterfaceFacts>, Vec<String>), FactsError> {
        let facts = gather(interfaces, &[])?;
        Ok((facts.interfaces, facts.default_route))
    };
    let found = Place::of(Some(namespace)).and_then(|place| place.within(look));
    let mut facts = NamespaceFacts {
        namespace: namespace.to_string(),
        ..NamespaceFacts::default()
    };
    match found {
        Ok(Ok((interfaces, default_route))) => {
            facts.interfaces = interfaces;
            facts.default_route = default_route;
        }
        Ok(Err(error)) => facts.problem = Some(error.to_string()),
        Err(error) => facts.problem = Some(error.to_string()),
    }
    facts
}

/// Looks at the place where a capture shall be written.
#[must_use]
pub fn capture_place(path: &Path) -> SinkFacts {
    let found = std::fs::metadata(path).ok();
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    SinkFacts {
        has_content: found
            .as_ref()
            .is_some_and(|found| found.is_file() && found.len() > 0),
        is_folder: found.as_ref().is_some_and(std::fs::Metadata::is_dir),
        folder_exists: folder.is_dir(),
    }
}

/// Devices that carry the host's own traffic: those with a default route, and what they stand on
/// (the ports of a bond or bridge, the parent of a VLAN).
fn host_devices(links: &BTreeMap<u32, Link>, defaults: &[u32]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut open: Vec<u32> = defaults.to_vec();
    while let Some(index) = open.pop() {
        if !found.insert(index) {
            continue;
        }
        let Some(link) = links.get(&index) else {
            continue;
        };
        // A veth's "parent" is its other end, not what it stands on.
        let paired = matches!(link.kind.as_deref(), Some("veth" | "netkit"));
        if !paired && !link.parent_elsewhere {
            open.extend(link.parent);
        }
        let ports = links.values().filter(|port| port.master == Some(index));
        open.extend(ports.map(|port| port.index));
    }
    found
}

fn interface_facts(ethtool: &Ethtool, link: &Link, carries_host_traffic: bool) -> InterfaceFacts {
    // What a driver does not offer stays at the default: unknown.
    let channels = ethtool.channels(&link.name).ok();
    let features = ethtool.features(&link.name).unwrap_or_default();
    let xdp = netdev::xdp_features(link.index).ok().flatten();
    InterfaceFacts {
        name: link.name.clone(),
        index: link.index,
        exists: true,
        up: link.up,
        mac: link.mac,
        mtu: link.mtu,
        kind: link.kind.clone().unwrap_or_default(),
        driver: ethtool.driver(&link.name).unwrap_or_default(),
        rx_queues: channels.map_or(link.rx_queues, |c| c.receiving()),
        tx_queues: channels.map_or(link.tx_queues, |c| c.transmitting()),
        features: features
            .into_iter()
            .map(|(name, feature)| (name, feature.on))
            .collect(),
        carries_host_traffic,
        has_ethernet_header: link.ethernet,
        arp_type: link.arp_type,
        loopback: link.loopback,
        // AF_XDP needs native XDP that can redirect: ixgbevf, for one, cannot.
        native_xdp: xdp.map(|xdp| xdp.native && xdp.redirect),
        zero_copy: xdp.map(|xdp| xdp.zero_copy),
    }
}

/// Facts of one target, and the devices on the way.
fn target_facts_of(
    netlink: &mut Netlink,
    links: &BTreeMap<u32, Link>,
    target: &TargetQuery,
) -> Result<(TargetFacts, Vec<u32>), NetlinkError> {
    let mut facts = TargetFacts::default();
    match resolve(&target.host, target.source) {
        Ok(address) => facts.resolved = Some(address),
        Err(error) => {
            facts.resolve_error = Some(error);
            return Ok((facts, Vec::new()));
        }
    }
    let device = match &target.device {
        None => None,
        Some(name) => match links.values().find(|link| &link.name == name) {
            Some(link) => Some(link.index),
            // No such device: no route. The plan finds the name among the interfaces that do not
            // exist, or says that there is no route.
            None => return Ok((facts, Vec::new())),
        },
    };
    let Some(address) = facts.resolved else {
        return Ok((facts, Vec::new()));
    };
    let query = RouteQuery {
        destination: address,
        source: target.source,
        device,
        mark: 0,
    };
    let walk = walk::walk(netlink, query)?;
    let devices = walk.steps.iter().map(|step| step.index).collect();
    facts.route = route_facts(netlink, links, address, &walk)?;
    facts.walk = walk
        .steps
        .iter()
        .map(|step| DeviceStep {
            device: step.name.clone(),
            kind: links
                .get(&step.index)
                .and_then(|link| link.kind.clone())
                .unwrap_or_default(),
        })
        .collect();
    Ok((facts, devices))
}

fn route_facts(
    netlink: &mut Netlink,
    links: &BTreeMap<u32, Link>,
    destination: IpAddr,
    walk: &Walk,
) -> Result<Option<RouteFacts>, NetlinkError> {
    let Some(route) = &walk.route else {
        return Ok(None);
    };
    let Some(link) = links.get(&route.device) else {
        return Ok(None);
    };
    let next_hop = route.next_hop(destination);
    let known = neighbour::lookup(netlink, link.index, next_hop)?;
    Ok(Some(RouteFacts {
        ifindex: link.index,
        device: link.name.clone(),
        gateway: route.gateway,
        prefsrc: route.source,
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        mtu_learned: route.learned && route.mtu.is_some(),
        neighbour: known
            .filter(neighbour::Neighbour::usable)
            .and_then(|known| known.mac),
    }))
}

/// The address of a host: of the version of `source` where that is fixed, else IPv4 before IPv6, whose
/// headers leave 20 bytes less of the path's MTU to the copies. Link-local addresses are another host on
/// every link, and passed over.
fn resolve(host: &str, source: Option<IpAddr>) -> Result<IpAddr, String> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let found = addresses_of(host).map_err(|error| format!("{host}: {error}"))?;
    choose(&found, source).ok_or_else(|| {
        let wanted = match source {
            Some(IpAddr::V4(_)) => "IPv4 address, which `source` asks for",
            Some(IpAddr::V6(_)) => "IPv6 address, which `source` asks for",
            None => "usable address",
        };
        format!("{host}: no {wanted}")
    })
}

/// All addresses of a name, in the resolver's order. May take as long as the resolver waits for its servers.
///
/// # Errors
/// The resolver's words.
pub fn addresses_of(name: &str) -> Result<Vec<IpAddr>, String> {
    let found = (name, 0).to_socket_addrs();
    let found = found.map_err(|error| error.to_string())?;
    Ok(found.map(|address| address.ip()).collect())
}

fn choose(found: &[IpAddr], source: Option<IpAddr>) -> Option<IpAddr> {
    let usable = || found.iter().copied().filter(|a| !is_link_local(*a));
    let first = |v4: bool| usable().find(|address| address.is_ipv4() == v4);
    match source {
        Some(source) => first(source.is_ipv4()),
        None => first(true).or_else(|| first(false)),
    }
}

/// Where the kernel did not let us try, the facts say what it most likely can: `check` is useful
/// without privileges, and `run` without them fails by name in any case.
fn kernel_facts(features: &KernelFeatures) -> KernelFacts {
    let likely = |probe: Probe| matches!(probe, Probe::Yes | Probe::Denied);
    KernelFacts {
        release: features.release.clone(),
        tcx: features.tcx.yes() || (features.tcx == Probe::Denied && features.tcx_in_btf),
        btf: features.btf,
        cast_to_kern_ctx: features.cast_to_kern_ctx,
        xdp: likely(features.xdp_program),
        // The family refuses by EPERM only if it exists.
        af_xdp: likely(features.af_xdp),
        udp_segment: features.udp_segment.yes(),
        prefer_busy_poll: features.prefer_busy_poll.yes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_is_a_fact() {
        let facts = gather(
            &["xtee-none".into(), "lo".into(), "xtee-none".into()],
            &[TargetQuery {
                host: "127.0.0.1".into(),
                ..TargetQuery::default()
            }],
        )
        .unwrap();
        let missing: Vec<_> = facts.interfaces.iter().filter(|i| !i.exists).collect();
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].name, "xtee-none");
        let lo = facts.interface("lo").unwrap();
        assert!(lo.loopback && lo.has_ethernet_header && lo.exists);
        assert_eq!(facts.targets[0].resolved, Some([127, 0, 0, 1].into()));
        assert!(!facts.online_cpus.is_empty());
    }

    #[test]
    fn names_that_do_not_resolve_say_so() {
        let error = resolve("xtee.invalid", None).unwrap_err();
        assert!(error.contains("xtee.invalid"), "{error}");
        for address in ["203.0.113.2", "2001:db8::1"] {
            assert_eq!(resolve(address, None), Ok(address.parse().unwrap()));
        }
    }

    #[test]
    fn a_name_with_addresses_of_both_versions() {
        let [v4, v6, local]: [IpAddr; 3] =
            ["203.0.113.2", "2001:db8::1", "fe80::1"].map(|text| text.parse().unwrap());
        assert_eq!(choose(&[v6, v4], None), Some(v4));
        assert_eq!(choose(&[local, v6], None), Some(v6));
        assert_eq!(choose(&[v4, v6], Some(v6)), Some(v6));
        assert_eq!(choose(&[v6], Some(v4)), None);
        assert_eq!(choose(&[local], None), None);
    }

    #[test]
    fn denied_is_taken_as_likely() {
        let mut features = KernelFeatures {
            tcx: Probe::Denied,
            af_xdp: Probe::Denied,
            ..KernelFeatures::default()
        };
        assert!(!kernel_facts(&features).tcx);
        assert!(kernel_facts(&features).af_xdp);
        features.tcx_in_btf = true;
        assert!(kernel_facts(&features).tcx);
        features.tcx = Probe::No;
        assert!(!kernel_facts(&features).tcx);
    }
}
