//! Sources: how they are attached, and which worker serves what on which CPU.

use super::{Attach, Capture, Choice, SourcePlan, TargetPlan, Transmitter, WorkerPlan, XdpMode};
use crate::config::error::ConfigError;
use crate::config::facts::{HostFacts, InterfaceFacts};
use crate::config::settings::{
    AttachChoice, Config, Interface, ModeChoice, Source, SourceKind, Span, Tap, ZeroCopy,
};
use crate::mirror::rules::Action;
use crate::packet::headers::ETHERNET_HEADER;
use crate::packet::link::LinkType;

pub(super) fn sources(
    config: &Config,
    facts: &HostFacts,
    targets: &[TargetPlan],
    warnings: &mut Vec<String>,
) -> Result<Vec<SourcePlan>, ConfigError> {
    let mut plans: Vec<SourcePlan> = Vec::with_capacity(config.sources.len());
    for source in &config.sources {
        let plan = plan_source(config, source, facts, targets, warnings)?;
        for worker in &plan.workers {
            let same_cpu = |other: &SourcePlan| {
                let cpus = other.workers.iter().map(|w| w.cpu);
                worker.cpu.is_some() && cpus.into_iter().any(|cpu| cpu == worker.cpu)
            };
            if let (Some(cpu), Some(other)) = (worker.cpu, plans.iter().find(|p| same_cpu(p))) {
                warnings.push(format!(
                    "{} and {} share CPU {cpu}: each waits for the other",
                    other.name, plan.name
                ));
            }
        }
        plans.push(plan);
    }
    Ok(plans)
}

fn error(source: &Source, wrong: impl Into<String>, allowed: impl Into<String>) -> ConfigError {
    ConfigError {
        place: source.place.clone(),
        key: source.name(),
        wrong: wrong.into(),
        allowed: allowed.into(),
    }
}

fn plan_source(
    config: &Config,
    source: &Source,
    facts: &HostFacts,
    targets: &[TargetPlan],
    warnings: &mut Vec<String>,
) -> Result<SourcePlan, ConfigError> {
    let interface = first_interface(source, facts, warnings)?;
    if !interface.up {
        warnings.push(format!(
            "{}: {} is down: nothing is seen until it is up (`ip link set {} up`)",
            source.name(),
            interface.name,
            interface.name
        ));
    }
    let tapped = matches!(source.kind, SourceKind::Tap(_));
    let (capture, queues) = match &source.kind {
        SourceKind::Tap(tap) => {
            can_be_tapped(source, interface)?;
            (plan_tap(source, tap, facts)?, None)
        }
        SourceKind::Span(span) => {
            let capture = plan_span(source, span, facts, interface, targets)?;
            if interface.carries_host_traffic && config.default_action() == Action::Mirror {
                warnings.push(format!(
                    "{}: a span takes what it mirrors, and {} carries the host's own traffic: all \
                     that is not skipped by a rule is lost to the host. Use tap:{} to copy",
                    source.name(),
                    interface.name,
                    interface.name
                ));
            }
            (capture, Some(interface.rx_queues.max(1)))
        }
    };
    Ok(SourcePlan {
        name: source.name(),
        chosen: source.interface.clone(),
        namespace: source.namespace.clone(),
        interface: interface.name.clone(),
        ifindex: interface.index,
        links: match (&source.interface, interface.has_ethernet_header) {
            // The default route of a VPN client goes back and forth between the two.
            (Interface::DefaultRoute, _) => vec![LinkType::Ethernet, LinkType::Ip],
            (Interface::Name(_), true) => vec![LinkType::Ethernet],
            (Interface::Name(_), false) => vec![LinkType::Ip],
        },
        capture,
        workers: workers(source, facts, queues)?,
        carries_host_traffic: tapped || interface.carries_host_traffic,
        allow_link_reset: source.allow_link_reset,
        allow_credential_endpoints: source.allow_credential_endpoints,
    })
}

/// The interface that a source is on now; the first, where the default routes lead to two.
fn first_interface<'f>(
    source: &Source,
    facts: &'f HostFacts,
    warnings: &mut Vec<String>,
) -> Result<&'f InterfaceFacts, ConfigError> {
    let found = facts.interfaces_of(source);
    if let [first, others @ ..] = found.as_slice() {
        for other in others {
            warnings.push(format!(
                "{}: the default routes lead to {} and {}: both are tapped",
                source.name(),
                first.name,
                other.name
            ));
        }
        return Ok(first);
    }
    let mut there = &facts.interfaces;
    if let Some(namespace) = &source.namespace {
        let Some(elsewhere) = facts.namespace(namespace) else {
            return Err(error(source, "its network namespace was not looked at", ""));
        };
        if let Some(problem) = &elsewhere.problem {
            let allowed =
                "the path of a network namespace (`ip netns list`), or pid:N of a running process";
            return Err(error(source, problem.as_str(), allowed));
        }
        there = &elsewhere.interfaces;
    }
    let place = match &source.namespace {
        None => String::new(),
        Some(namespace) => format!(" in {namespace}"),
    };
    let names: Vec<_> = there
        .iter()
        .filter(|i| i.exists)
        .map(|i| i.name.as_str())
        .collect();
    let wrong = match &source.interface {
        Interface::Name(name) => format!("there is no interface {name}{place}"),
        Interface::DefaultRoute => format!("there is no default route{place}"),
    };
    Err(error(source, wrong, names.join(", ")))
}

/// `ARPHRD_*` of devices without an Ethernet header whose packets are IP: NONE (tun, WireGuard), PPP, RAWIP,
/// TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE.
const IP_LINKS: [u16; 8] = [0xfffe, 512, 519, 768, 769, 776, 778, 823];

/// A wireless monitor's frames, for one, are neither Ethernet nor IP.
fn can_be_tapped(source: &Source, interface: &InterfaceFacts) -> Result<(), ConfigError> {
    if interface.has_ethernet_header || IP_LINKS.contains(&interface.arp_type) {
        return Ok(());
    }
    Err(error(
        source,
        format!(
            "{} carries neither Ethernet nor IP packets (link type {})",
            interface.name, interface.arp_type
        ),
        "an Ethernet interface, or one of IP packets (tun, WireGuard, PPP, an IP tunnel)",
    ))
}

fn plan_tap(source: &Source, tap: &Tap, facts: &HostFacts) -> Result<Capture, ConfigError> {
    let attach = match (tap.attach, facts.kernel.tcx) {
        (AttachChoice::Clsact, _) => Choice::new(Attach::Clsact, "asked for; detached on exit"),
        (AttachChoice::Tcx, true) => Choice::new(Attach::Tcx, "asked for"),
        (AttachChoice::Tcx, false) => {
            return Err(error(
                source,
                format!("the kernel ({}) has no tcx links", facts.kernel.release),
                "attach = \"auto\", attach = \"clsact\", or a kernel from 6.6 on",
            ));
        }
        (AttachChoice::Auto, true) => Choice::new(
            Attach::Tcx,
            "the kernel has tcx links, which go away with the process",
        ),
        (AttachChoice::Auto, false) => Choice::new(
            Attach::Clsact,
            "the kernel has no tcx links (6.6 and newer); detached on exit",
        ),
    };
    Ok(Capture::Tap {
        attach,
        ring_size: tap.ring_size,
    })
}

fn plan_span(
    source: &Source,
    span: &Span,
    facts: &HostFacts,
    interface: &InterfaceFacts,
    targets: &[TargetPlan],
) -> Result<Capture, ConfigError> {
    if !(facts.kernel.xdp && facts.kernel.af_xdp) {
        let lacking = if facts.kernel.xdp { "AF_XDP" } else { "XDP" };
        return Err(error(
            source,
            format!("a span needs {lacking}, and this kernel has none or we may not use it"),
            "a kernel with XDP and AF_XDP and the privilege to use them (see `xtee doctor`)",
        ));
    }
    if interface.loopback || !interface.has_ethernet_header {
        return Err(error(
            source,
            format!("{} has no Ethernet frames to take", interface.name),
            format!("an Ethernet interface; tap:{} to copy", interface.name),
        ));
    }
    let mode = mode(source, span, interface)?;
    let zero_copy = zero_copy(source, span, interface, mode.value)?;
    Ok(Capture::Span {
        generic_if_native_fails: span.mode == ModeChoice::Auto && mode.value == XdpMode::Native,
        mode,
        zero_copy,
        busy_poll: span.busy_poll && facts.kernel.prefer_busy_poll,
        frames: span.frames,
        room: room(targets),
    })
}

/// Native XDP or zero copy might bounce the link that the host itself lives on, and nobody has
/// allowed that.
fn hands_off(source: &Source, interface: &InterfaceFacts) -> bool {
    interface.carries_host_traffic && !source.allow_link_reset
}

fn mode(
    source: &Source,
    span: &Span,
    interface: &InterfaceFacts,
) -> Result<Choice<XdpMode>, ConfigError> {
    let name = &interface.name;
    let obstacle = if hands_off(source, interface) {
        Some(format!(
            "{name} carries the host's own traffic, and native XDP can bounce its link"
        ))
    } else if interface.native_xdp == Some(false) {
        Some(format!("the driver of {name} has no native XDP"))
    } else {
        None
    };
    match (span.mode, obstacle) {
        (ModeChoice::Generic, _) => Ok(Choice::new(XdpMode::Generic, "asked for")),
        (ModeChoice::Native, None) => Ok(Choice::new(XdpMode::Native, "asked for")),
        (ModeChoice::Auto, None) => Ok(Choice::new(
            XdpMode::Native,
            "fastest; generic is tried where the driver refuses it",
        )),
        (ModeChoice::Auto, Some(why)) => Ok(Choice::new(XdpMode::Generic, why)),
        (ModeChoice::Native, Some(why)) => {
            let mut allowed = "mode = \"auto\", mode = \"generic\"".to_owned();
            if hands_off(source, interface) {
                allowed.push_str(", or allow_link_reset = true");
            }
            Err(error(source, why, allowed))
        }
    }
}

fn zero_copy(
    source: &Source,
    span: &Span,
    interface: &InterfaceFacts,
    mode: XdpMode,
) -> Result<Choice<ZeroCopy>, ConfigError> {
    let name = &interface.name;
    let obstacle = if hands_off(source, interface) {
        Some(format!(
            "{name} carries the host's own traffic, and binding for zero copy can bounce its link \
             (allow_link_reset = true permits that)"
        ))
    } else if mode == XdpMode::Generic {
        Some("generic XDP has no zero copy".to_owned())
    } else if interface.zero_copy == Some(false) {
        Some(format!("the driver of {name} has no zero copy"))
    } else {
        None
    };
    match (span.zero_copy, obstacle) {
        (ZeroCopy::Require, Some(why)) => Err(error(
            source,
            format!("zero copy is required, and {why}"),
            "zero_copy = \"prefer\", zero_copy = \"never\"",
        )),
        (ZeroCopy::Prefer, Some(why)) => Ok(Choice::new(ZeroCopy::Never, why)),
        (ZeroCopy::Prefer, None) => Ok(Choice::new(
            ZeroCopy::Prefer,
            "used where the driver has it",
        )),
        (asked, _) => Ok(Choice::new(asked, "asked for")),
    }
}

/// Where AF_XDP transmits, the frame that came in goes out again, with the outer header in front.
fn room(targets: &[TargetPlan]) -> Choice<u16> {
    let by_xsk = targets
        .iter()
        .filter(|t| t.transmit.value == Transmitter::Xsk);
    let largest = by_xsk.max_by_key(|t| t.overhead());
    match largest {
        None => Choice::new(0, "no target is sent to by AF_XDP"),
        Some(target) => Choice::new(
            // At most 14 + 60 bytes.
            (ETHERNET_HEADER + target.overhead()) as u16,
            format!("for the outer header of {}", target.url),
        ),
    }
}

/// One worker for each CPU, or as many as asked for; queues are dealt out in turn.
fn workers(
    source: &Source,
    facts: &HostFacts,
    queues: Option<u32>,
) -> Result<Vec<WorkerPlan>, ConfigError> {
    if let Some(cpu) = source
        .cpus
        .iter()
        .find(|cpu| !facts.online_cpus.contains(cpu))
    {
        let online: Vec<_> = facts.online_cpus.iter().map(usize::to_string).collect();
        return Err(error(
            source,
            format!("CPU {cpu} is not online"),
            format!("`cpus` out of {}", online.join(", ")),
        ));
    }
    let asked = source.workers.or(match source.cpus.len() {
        0 => None,
        cpus => Some(cpus),
    });
    let count = match queues {
        None => asked.unwrap_or(1),
        Some(queues) => {
            let queues = queues as usize;
            let count = asked.unwrap_or(queues.min(facts.online_cpus.len().max(1)));
            if count > queues {
                return Err(error(
                    source,
                    format!("{count} workers for {queues} receive queues"),
                    format!("at most {queues} workers; `ethtool -L` changes the number of queues"),
                ));
            }
            count
        }
    };
    let of_worker = |index: usize| {
        let all = 0..queues.unwrap_or(0);
        all.filter(|&queue| queue as usize % count == index)
            .collect()
    };
    Ok((0..count)
        .map(|index| WorkerPlan {
            index,
            cpu: source.cpus.get(index).copied(),
            queues: of_worker(index),
        })
        .collect())
}
