//! Targets: who sends, how, and what fits on the way.

use super::{Choice, TargetPlan, Transmitter, UdpSend};
use crate::config::error::ConfigError;
use crate::config::facts::{
    DeviceStep, HostFacts, InterfaceFacts, RouteFacts, TargetFacts, TX_UDP_SEGMENTATION,
};
use crate::config::settings::{
    Config, GsoChoice, Host, LimitChoice, Source, SourceKind, Target, TransmitChoice,
};
use crate::packet::fit::Oversize;
use crate::packet::headers::{LinkHeader, ETHERNET_HEADER};
use crate::transmit::xsk::LONGEST as XSK_LONGEST;

/// Bytes of an AF_XDP frame: a page. xtee sends a packet in one.
const XSK_FRAME: u32 = 4096;
/// IPv6, GRE and ERSPAN III with its subheader are less.
const LARGEST_OUTER: u32 = 80;
/// Kinds of devices that wrap packets in others: below them our outer flow cannot be seen.
const TUNNELS: [&str; 23] = [
    "amt",
    "bareudp",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "gtp",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "macsec",
    "ovpn",
    "ppp",
    "sit",
    "tap",
    "tun",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
    "xfrm",
];
/// Drivers of devices without a kind that are no hardware, or whose "hardware" is another host's
/// software: they hand super-packets on unsplit. virtio_net does so to a neighbour on its host.
const PASSING_ON: [&str; 8] = [
    "dummy",
    "hv_netvsc",
    "ibmveth",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
    "xen_netfront",
];

pub(super) fn targets(
    config: &Config,
    facts: &HostFacts,
    warnings: &mut Vec<String>,
) -> Result<Vec<TargetPlan>, ConfigError> {
    let unknown = TargetFacts::default();
    let mut plans = Vec::with_capacity(config.targets.len());
    for (index, target) in config.targets.iter().enumerate() {
        let here = facts.targets.get(index).unwrap_or(&unknown);
        plans.push(plan_target(config, target, here, facts, warnings)?);
    }
    Ok(plans)
}

fn error(target: &Target, wrong: impl Into<String>, allowed: impl Into<String>) -> ConfigError {
    ConfigError {
        place: target.place.clone(),
        key: target.name(),
        wrong: wrong.into(),
        allowed: allowed.into(),
    }
}

fn plan_target(
    config: &Config,
    target: &Target,
    here: &TargetFacts,
    facts: &HostFacts,
    warnings: &mut Vec<String>,
) -> Result<TargetPlan, ConfigError> {
    let address = match (&target.host, here.resolved) {
        (_, Some(address)) => address,
        (Host::Address(address), None) => *address,
        (Host::Name(name), None) => {
            let why = here.resolve_error.as_deref().unwrap_or("no address");
            return Err(error(
                target,
                format!("{name} cannot be resolved: {why}"),
                "an address, or a name that has one",
            ));
        }
    };
    if let Some(source) = target.source.filter(|s| s.is_ipv4() != address.is_ipv4()) {
        let version = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        return Err(error(
            target,
            format!(
                "`source` {source} and the target's address {address} are not of one IP version"
            ),
            format!("an {version} address of this host"),
        ));
    }
    if let Some(device) = target
        .device
        .as_deref()
        .filter(|d| facts.interface(d).is_none())
    {
        let there = facts.interfaces.iter().filter(|i| i.exists);
        let names: Vec<_> = there.map(|i| i.name.as_str()).collect();
        return Err(error(
            target,
            format!("`dev`: there is no interface {device}"),
            names.join(", "),
        ));
    }
    let Some(route) = &here.route else {
        let by = target.device.as_ref().map(|device| format!(" by {device}"));
        return Err(error(
            target,
            format!("there is no route to {address}{}", by.unwrap_or_default()),
            format!("a target that `ip route get {address}` finds"),
        ));
    };
    let device = facts.interface(&route.device);
    let transmit = transmitter(target, route, device, facts)?;
    let gso = match transmit.value {
        Transmitter::Udp => Some(udp_send(target, route, here, facts, warnings)?),
        Transmitter::Xsk | Transmitter::Raw => None,
    };
    let (path_mtu, path_mtu_from) = path_mtu(target, route, device, warnings);
    let transmit = match too_long(config, facts, path_mtu) {
        Some(bytes) if transmit.value == Transmitter::Xsk => {
            let why = format!(
                "copies of up to {bytes} bytes do not fit the frames of AF_XDP, {XSK_FRAME}"
            );
            if target.transmit == TransmitChoice::Auto {
                Choice::new(Transmitter::Raw, why)
            } else {
                warnings.push(format!(
                    "{}: {why}: larger ones are dropped as oversize",
                    target.name()
                ));
                transmit
            }
        }
        _ => transmit,
    };
    let mut plan = TargetPlan {
        url: target.name(),
        encapsulation: target.encapsulation,
        name: match &target.host {
            Host::Address(_) => None,
            Host::Name(name) => Some(name.clone()),
        },
        address,
        source: target.source.or(route.prefsrc),
        source_is_asked: target.source.is_some(),
        device: route.device.clone(),
        ifindex: route.ifindex,
        bind_device: target.device.is_some(),
        path: here.walk.iter().map(|step| step.device.clone()).collect(),
        jumbo: jumbo(config, facts, target, transmit.value),
        transmit,
        gso,
        source_ports: target.source_ports,
        oversize: target.oversize,
        mtu: target.mtu,
        path_mtu,
        path_mtu_from,
        largest_frame: 0,
        distribution: target.distribution,
        health: target.health,
        limit: target.limit.bits(),
        limit_is_default: target.limit == LimitChoice::Default,
        limit_packets: target.limit_packets,
        dscp: target.dscp,
        priority: target.priority,
        ttl: target.ttl,
    };
    plan.largest_frame = target
        .encapsulation
        .largest_frame(plan.outer(), path_mtu as usize) as u32;
    warn_oversize(config, facts, &plan, warnings);
    warn_tunnel(config, facts, here, &plan, warnings);
    if plan.priority.is_some() && plan.transmit.value == Transmitter::Xsk {
        warnings.push(format!(
            "{}: `priority` has no effect: AF_XDP passes no queueing discipline",
            plan.url
        ));
    }
    Ok(plan)
}

/// The largest outer packet as far as it is known now, and who says so.
fn path_mtu(
    target: &Target,
    route: &RouteFacts,
    device: Option<&InterfaceFacts>,
    warnings: &mut Vec<String>,
) -> (u32, &'static str) {
    let device = device.map_or(0, |device| device.mtu);
    let known = match route.mtu {
        0 => (device, "device"),
        mtu if route.mtu_learned => (mtu, "learned by the kernel"),
        mtu if mtu < device => (mtu, "route"),
        mtu => (mtu, "device"),
    };
    match target.mtu {
        Some(mtu) if mtu <= known.0 || known.0 == 0 => (mtu, "configured"),
        Some(mtu) => {
            warnings.push(format!(
                "{}: mtu = {mtu} has no effect: {} takes packets of up to {} bytes ({})",
                target.name(),
                route.device,
                known.0,
                known.1
            ));
            known
        }
        None => known,
    }
}

fn transmitter(
    target: &Target,
    route: &RouteFacts,
    device: Option<&InterfaceFacts>,
    facts: &HostFacts,
) -> Result<Choice<Transmitter>, ConfigError> {
    let name = target.encapsulation.name();
    let in_udp = target.encapsulation.udp_port().is_some();
    let obstacle = xsk_obstacle(route, device, facts);
    match (target.transmit, obstacle) {
        // These two are refused by the validation already; said again because this function stands alone.
        (TransmitChoice::Udp, _) if !in_udp => Err(error(
            target,
            format!("{name} is not carried by UDP"),
            "transmit = \"auto\", \"xsk\", \"raw\"",
        )),
        (TransmitChoice::Raw, _) if in_udp => Err(error(
            target,
            format!("{name} is carried by UDP, which raw sockets do not send"),
            "transmit = \"auto\", \"udp\", \"xsk\"",
        )),
        (TransmitChoice::Udp, _) => Ok(Choice::new(Transmitter::Udp, "asked for")),
        (TransmitChoice::Raw, _) => Ok(Choice::new(Transmitter::Raw, "asked for")),
        (TransmitChoice::Xsk, None) => Ok(Choice::new(
            Transmitter::Xsk,
            "asked for; sends in copy mode",
        )),
        (TransmitChoice::Xsk, Some(why)) => Err(error(
            target,
            format!("AF_XDP cannot send to it: {why}"),
            if in_udp {
                "transmit = \"auto\", \"udp\""
            } else {
                "transmit = \"auto\", \"raw\""
            },
        )),
        (TransmitChoice::Auto, _) if in_udp => Ok(Choice::new(
            Transmitter::Udp,
            format!(
                "{name}: a UDP socket follows the kernel's routes, neighbours and policy rules; a tap \
                 changes to AF_XDP while equal packets come in short runs"
            ),
        )),
        (TransmitChoice::Auto, None) => Ok(Choice::new(
            Transmitter::Xsk,
            format!(
                "{name} is not carried by UDP, and AF_XDP is faster than a raw socket; sends in copy mode"
            ),
        )),
        (TransmitChoice::Auto, Some(why)) => Ok(Choice::new(
            Transmitter::Raw,
            format!("{name} is not carried by UDP, and AF_XDP cannot send to it: {why}"),
        )),
    }
}

/// Who sends the packets of a tap that are longer than a frame of AF_XDP, if it has such.
fn jumbo(
    config: &Config,
    facts: &HostFacts,
    target: &Target,
    transmit: Transmitter,
) -> Option<Transmitter> {
    let longest = |source: &Source| {
        let interfaces = facts.interfaces_of(source);
        let mtu = interfaces.iter().map(|i| i.mtu as usize).max();
        let tapped = matches!(source.kind, SourceKind::Tap(_));
        // With both VLAN tags.
        tapped && mtu.is_some_and(|mtu| mtu + LinkHeader::LONGEST > XSK_LONGEST)
    };
    if transmit != Transmitter::Xsk || !config.sources.iter().any(longest) {
        return None;
    }
    Some(match target.encapsulation.udp_port() {
        Some(_) => Transmitter::Udp,
        None => Transmitter::Raw,
    })
}

/// Bytes of the largest copies of a span with their outer headers, where they are more than AF_XDP sends.
fn too_long(config: &Config, facts: &HostFacts, path_mtu: u32) -> Option<u32> {
    let spans = config
        .sources
        .iter()
        .filter(|source| matches!(source.kind, SourceKind::Span(_)));
    let interfaces = spans.flat_map(|source| facts.interfaces_of(source));
    let largest = interfaces.map(|interface| interface.mtu).max()?;
    // The loopback's MTU says nothing of the path; what is larger than that is not sent.
    let bytes = largest
        .saturating_add(14 + LARGEST_OUTER)
        .min(path_mtu)
        .saturating_add(14);
    (bytes > XSK_FRAME).then_some(bytes)
}

/// Why AF_XDP cannot send by the route's device. It builds whole frames, so it needs an Ethernet
/// device where the next hop is a neighbour with a hardware address.
fn xsk_obstacle(
    route: &RouteFacts,
    device: Option<&InterfaceFacts>,
    facts: &HostFacts,
) -> Option<String> {
    let name = &route.device;
    let Some(device) = device else {
        return Some(format!("nothing is known of {name}"));
    };
    if !facts.kernel.af_xdp {
        Some("the kernel has no AF_XDP, or we may not use it".to_owned())
    } else if device.loopback {
        Some(format!("{name} is the loopback"))
    } else if !device.has_ethernet_header {
        Some(format!(
            "{name} is no Ethernet device: there is no next hop with a hardware address"
        ))
    } else if device.mac.is_none() {
        Some(format!("{name} has no hardware address"))
    } else {
        None
    }
}

/// `UDP_SEGMENT` where the wire will see single packets. A device that takes super-packets and
/// hands them on unsplit would show the receiver one datagram of 64 KB, of which an NDR decodes
/// the first inner packet only.
fn udp_send(
    target: &Target,
    route: &RouteFacts,
    here: &TargetFacts,
    facts: &HostFacts,
    warnings: &mut Vec<String>,
) -> Result<Choice<UdpSend>, ConfigError> {
    if target.gso == GsoChoice::Off {
        return Ok(Choice::new(UdpSend::Sendmmsg, "gso = \"off\" asked for"));
    }
    if !facts.kernel.udp_segment {
        let why = "the kernel has no UDP_SEGMENT";
        return match target.gso {
            GsoChoice::On => Err(error(target, why, "gso = \"auto\", gso = \"off\"")),
            _ => Ok(Choice::new(UdpSend::Sendmmsg, why)),
        };
    }
    let splitter = splitter(route, here, facts);
    match (target.gso, splitter) {
        (GsoChoice::On, Ok(_)) => Ok(Choice::new(UdpSend::Segment, "gso = \"on\" asked for")),
        (GsoChoice::On, Err(why)) => {
            warnings.push(format!(
                "{}: gso = \"on\", but {why}: the receiver may see unsplit datagrams",
                target.name()
            ));
            Ok(Choice::new(UdpSend::Segment, "gso = \"on\" asked for"))
        }
        (_, Ok(why)) => Ok(Choice::new(UdpSend::Segment, why)),
        (_, Err(why)) => Ok(Choice::new(
            UdpSend::Sendmmsg,
            format!(
                "{why}; three times as fast: ethtool -K {} tx-udp-segmentation off",
                route.device
            ),
        )),
    }
}

/// Who splits super-packets on the way, else why they may arrive unsplit. The first device on the
/// way that does not take them makes the kernel split; else it is up to the last.
fn splitter(route: &RouteFacts, here: &TargetFacts, facts: &HostFacts) -> Result<String, String> {
    let walked: Vec<&str> = here.walk.iter().map(|step| step.device.as_str()).collect();
    let devices = if walked.is_empty() {
        vec![route.device.as_str()]
    } else {
        walked
    };
    let mut last = None;
    for name in devices {
        let device = facts.interface(name);
        match device.and_then(|device| device.feature(TX_UDP_SEGMENTATION)) {
            Some(false) => {
                return Ok(format!(
                    "{name} takes no UDP super-packets: the kernel splits them before the driver"
                ));
            }
            Some(true) => last = device,
            None => {
                return Err(format!(
                    "it is not known whether {name} splits UDP super-packets"
                ))
            }
        }
    }
    match last {
        Some(nic) if splits_in_hardware(nic) => Ok(format!(
            "{} ({}) splits UDP super-packets in hardware",
            nic.name, nic.driver
        )),
        Some(device) => {
            let what = if device.kind.is_empty() {
                &device.driver
            } else {
                &device.kind
            };
            let what = if device.loopback { "loopback" } else { what };
            Err(format!(
                "{} ({what}) takes UDP super-packets and may hand them on unsplit",
                device.name
            ))
        }
        None => Err("nothing is known of the way to the target".to_owned()),
    }
}

fn splits_in_hardware(device: &InterfaceFacts) -> bool {
    let driver = device.driver.as_str();
    device.kind.is_empty()
        && !device.loopback
        && !driver.is_empty()
        && !PASSING_ON.contains(&driver)
}

fn warn_oversize(
    config: &Config,
    facts: &HostFacts,
    plan: &TargetPlan,
    warnings: &mut Vec<String>,
) {
    for source in &config.sources {
        let Some(interface) = facts
            .interfaces_of(source)
            .into_iter()
            .max_by_key(|i| i.mtu)
        else {
            continue;
        };
        let full = interface.mtu.saturating_add(ETHERNET_HEADER as u32);
        if full > plan.largest_frame {
            warnings.push(format!(
                "{}: full-size packets of {} make frames of {full} bytes, and the path MTU of {} \
                 has room for {}: {}; whole ones need a path MTU of {}",
                plan.url,
                source.name(),
                plan.path_mtu,
                plan.largest_frame,
                outcome(plan.oversize),
                plan.path_mtu.saturating_add(full - plan.largest_frame)
            ));
        }
    }
}

/// What becomes of copies that do not fit, in words.
fn outcome(oversize: Oversize) -> &'static str {
    match oversize {
        Oversize::Resegment => {
            "larger ones are cut, TCP into smaller segments, what is not TCP into outer IP fragments"
        }
        Oversize::Fragment => "larger ones are cut into outer IP fragments",
        Oversize::Truncate => {
            "larger ones are truncated, and Suricata and Zeek drop truncated packets"
        }
        Oversize::Drop => "larger ones are dropped as oversize",
    }
}

/// Inside of another tunnel our outer flow is hidden, so a tap below it sees the copies as
/// somebody's traffic.
fn warn_tunnel(
    config: &Config,
    facts: &HostFacts,
    here: &TargetFacts,
    plan: &TargetPlan,
    warnings: &mut Vec<String>,
) {
    let is_tunnel = |kind: &str| TUNNELS.contains(&kind);
    let Some(depth) = here.walk.iter().position(|step| is_tunnel(&step.kind)) else {
        return;
    };
    let tunnel = &here.walk[depth];
    let above = &here.walk[..=depth];
    let below = &here.walk[depth + 1..];
    for source in &config.sources {
        // Our copies leave from our own namespace.
        if !matches!(source.kind, SourceKind::Tap(_)) || source.namespace.is_some() {
            continue;
        }
        let found = facts.interfaces_of(source);
        let stands_on = |steps: &[DeviceStep]| {
            steps
                .iter()
                .any(|step| found.iter().any(|i| i.name == step.device))
        };
        // On the tunnel device itself, and above it, the outer flow can still be seen.
        if stands_on(above) {
            continue;
        }
        let sure = stands_on(below);
        let leave = if sure { "leave" } else { "may leave" };
        warnings.push(format!(
            "{}: the copies go through the tunnel {} ({}) and {leave} by {}, which is tapped: the \
             loop guard cannot see them there. The amplification breaker watches; a rule that \
             skips the tunnel's outer packets prevents it",
            plan.url, tunnel.device, tunnel.kind, source.interface
        ));
    }
}
