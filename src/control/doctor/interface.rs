//! Examines one interface: state, driver, queues, MTU, how XDP and AF_XDP would work on it.

use super::drivers::{self, Driver};
use super::{hooks, offloads, Check};
use crate::host::ethtool::{Channels, Ethtool, Feature, Rings};
use crate::host::features::{KernelFeatures, Probe};
use crate::host::link::{self, Link};
use crate::host::netdev::{self, XdpFeatures};
use crate::host::netlink::Netlink;
use crate::host::{cpu, hooks as host_hooks};

use std::collections::BTreeMap;

/// What was seen of an interface.
pub(super) struct Observed {
    pub(super) link: Link,
    pub(super) driver: String,
    pub(super) channels: Option<Channels>,
    pub(super) rings: Option<Rings>,
    pub(super) features: BTreeMap<String, Feature>,
    pub(super) statistics: BTreeMap<String, u64>,
    pub(super) xdp: Option<XdpFeatures>,
    pub(super) node: Option<u32>,
    /// Name and MTU of a veth's other end, when it is in this namespace.
    pub(super) peer: Option<(String, u32)>,
    /// It has a default route: what bounces it, cuts the host off.
    pub(super) default_route: bool,
}

impl Observed {
    /// `<name> <what>`, the area of a finding.
    pub(super) fn area(&self, what: &str) -> String {
        format!("{} {what}", self.link.name)
    }
}

/// Looks at an interface and judges it.
pub(super) fn examine(
    netlink: &mut Netlink,
    ethtool: &Ethtool,
    name: &str,
    defaults: &[u32],
    kernel: &KernelFeatures,
) -> Vec<Check> {
    let link = match link::by_name(netlink, name) {
        Ok(link) => link,
        Err(error) => {
            return vec![Check::problem(
                name,
                format!("no such interface: {error}"),
                "ip -br link",
            )]
        }
    };
    let peer = match (link.kind.as_deref(), link.parent, link.parent_elsewhere) {
        (Some("veth"), Some(peer), false) => link::by_index(netlink, peer).ok(),
        _ => None,
    };
    let observed = Observed {
        driver: ethtool.driver(name).unwrap_or_default(),
        channels: ethtool.channels(name).ok(),
        rings: ethtool.rings(name).ok(),
        features: ethtool.features(name).unwrap_or_default(),
        statistics: ethtool.statistics(name).unwrap_or_default(),
        xdp: netdev::xdp_features(link.index).ok().flatten(),
        node: cpu::numa_node(name),
        peer: peer.map(|peer| (peer.name, peer.mtu)),
        default_route: defaults.contains(&link.index),
        link,
    };
    let mut checks = judge(&observed);
    checks.extend(offloads::judge(&observed));
    checks.extend(offloads::allowances(&observed));
    match host_hooks::on(netlink, &observed.link) {
        Ok(found) => {
            let tcx = kernel.tcx.yes() || (kernel.tcx == Probe::Denied && kernel.tcx_in_btf);
            checks.extend(hooks::judge(name, &found, tcx));
        }
        Err(error) => checks.push(Check::warning(
            observed.area("hooks"),
            format!("cannot be read: {error}"),
            format!("tc filter show dev {name} ingress; bpftool net show dev {name}"),
        )),
    }
    checks
}

/// Judges what was seen, offloads and hooks aside.
pub(super) fn judge(observed: &Observed) -> Vec<Check> {
    let mut checks = vec![state(observed), identity(observed)];
    if !observed.link.ethernet {
        checks.push(Check::ok(
            observed.area("xdp"),
            "frames have no Ethernet header: a tap works (copies get one), a span does not",
        ));
        return checks;
    }
    if !observed.link.loopback {
        checks.push(mode(observed));
        checks.extend(obstacles(observed, &drivers::of(&observed.driver)));
    }
    checks
}

fn state(observed: &Observed) -> Check {
    let area = observed.link.name.as_str();
    let link = &observed.link;
    match (link.up, link.running) {
        (true, true) => Check::ok(area, "up, with a carrier"),
        (true, false) => Check::warning(
            area,
            "up, but without a carrier: nothing comes in and nothing leaves",
            match &observed.peer {
                Some((peer, _)) => format!("ip link set dev {peer} up"),
                None => format!("ethtool {area}  (check the cable, the port, or the other end)"),
            },
        ),
        (false, _) => Check::warning(area, "down", format!("ip link set dev {area} up")),
    }
}

fn identity(observed: &Observed) -> Check {
    let link = &observed.link;
    let mut words = vec![format!(
        "{} ({})",
        if observed.driver.is_empty() {
            "unknown driver"
        } else {
            &observed.driver
        },
        link.kind_name()
    )];
    match &observed.channels {
        Some(channels) => words.push(format!(
            "{} receive and {} transmit queues of at most {} and {}",
            channels.receiving(),
            channels.transmitting(),
            channels.max_rx + channels.max_combined,
            channels.max_tx + channels.max_combined,
        )),
        None => words.push(format!(
            "{} receive and {} transmit queues",
            link.rx_queues, link.tx_queues
        )),
    }
    if let Some(rings) = observed.rings.filter(|rings| rings.rx > 0) {
        words.push(format!("rings of {} and {} slots", rings.rx, rings.tx));
    }
    words.push(format!("MTU {}", link.mtu));
    if let Some(node) = observed.node {
        words.push(format!("NUMA node {node}"));
    }
    if let Some((peer, mtu)) = &observed.peer {
        words.push(format!("peer {peer} with MTU {mtu}"));
    } else if link.parent_elsewhere {
        words.push("other end in another namespace".into());
    }
    if let Some(note) = drivers::of(&observed.driver).note {
        words.push(note.into());
    }
    Check::ok(observed.area("driver"), words.join(", "))
}

/// The AF_XDP mode that a span or an AF_XDP transmitter would get.
fn mode(observed: &Observed) -> Check {
    let driver = drivers::of(&observed.driver);
    let (native, zero_copy, how) = match observed.xdp {
        Some(xdp) => (
            xdp.native && xdp.redirect,
            xdp.zero_copy,
            "the driver says so",
        ),
        None => (
            driver.native,
            driver.zero_copy,
            "by the driver's name; the kernel tells from 6.3 on",
        ),
    };
    let area = observed.area("af_xdp");
    if zero_copy {
        return Check::ok(area, format!("native XDP with zero-copy expected ({how})"));
    }
    if native {
        return Check::ok(area, format!("native XDP with a copy expected ({how})"));
    }
    Check::hint(
        area,
        format!("generic XDP only ({how}): a span works at a fraction of the speed, and sees nothing that another program redirected here"),
        "prefer tap: on this interface, or put the mirror port on one with native XDP",
    )
}

/// What makes a native attach fail or hurt.
fn obstacles(observed: &Observed, driver: &Driver) -> Vec<Check> {
    let area = observed.area("xdp");
    let name = &observed.link.name;
    let mut checks = Vec::new();
    // A tap does not use XDP. On the host's own uplink a span is refused unless the user insists, so
    // that there the finding is only to know.
    let judge = |finding: String, remedy: String| {
        if observed.default_route {
            Check::hint(area.as_str(), format!("for a span only: {finding}"), remedy)
        } else {
            Check::warning(area.as_str(), finding, remedy)
        }
    };
    let mtu = match &observed.peer {
        Some((_, mtu)) => (*mtu).max(observed.link.mtu),
        None => observed.link.mtu,
    };
    if let Some(limit) = driver.xdp_mtu.filter(|limit| mtu > *limit) {
        let both = observed
            .peer
            .as_ref()
            .map(|(peer, _)| format!("; ip link set dev {peer} mtu {limit}"))
            .unwrap_or_default();
        checks.push(judge(
            format!("MTU {mtu} is above {limit}, the most that {} takes with a native XDP program without fragments", driver.name),
            format!("ip link set dev {name} mtu {limit}{both}"),
        ));
    }
    if let (true, Some(channels)) = (driver.half_the_queues, &observed.channels) {
        let now = channels.combined.max(channels.rx).max(channels.tx);
        let most = channels
            .max_combined
            .max(channels.max_rx)
            .max(channels.max_tx);
        if now > most / 2 && most > 1 {
            checks.push(judge(
                format!("{now} of {most} queues are in use, and native XDP on {} needs half of them free: the attach fails", driver.name),
                format!("ethtool -L {name} {} {}", if channels.combined > 0 { "combined" } else { "rx" }, most / 2),
            ));
        }
    }
    let lro = observed.features.get("rx-lro").is_some_and(|lro| lro.on);
    if driver.refuses_lro && lro {
        checks.push(judge(
            format!("LRO is on, and {} refuses XDP with it", driver.name),
            format!("ethtool -K {name} lro off"),
        ));
    }
    if observed.default_route {
        let why = if driver.link_bounces {
            format!(
                "and the first XDP attach on {} stops and restarts it",
                driver.name
            )
        } else {
            "and XDP may interrupt it".into()
        };
        checks.push(Check::hint(
            area.as_str(),
            format!("the default route goes here, {why}: xtee attaches no XDP unless told to"),
            "use tap:; to insist on a span: allow_link_reset = true",
        ));
    } else if driver.link_bounces {
        checks.push(Check::ok(
            area.as_str(),
            format!(
                "the first XDP attach on {} stops and restarts the interface",
                driver.name
            ),
        ));
    }
    checks
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::assert_remedies;
    use super::super::Status;
    use super::*;

    /// An interface in good order.
    pub(in super::super) fn made_up(driver: &str) -> Observed {
        let mut message = netlink_packet_route::link::LinkMessage::default();
        message.header.index = 2;
        let mut link = link::parse(&message);
        link.name = "eth9".into();
        link.mtu = 1500;
        link.up = true;
        link.running = true;
        link.ethernet = true;
        Observed {
            link,
            driver: driver.into(),
            channels: None,
            rings: None,
            features: BTreeMap::new(),
            statistics: BTreeMap::new(),
            xdp: None,
            node: None,
            peer: None,
            default_route: false,
        }
    }

    fn statuses(checks: &[Check], status: Status) -> Vec<&str> {
        checks
            .iter()
            .filter(|check| check.status == status)
            .map(|check| check.finding.as_str())
            .collect()
    }

    #[test]
    fn ena_with_jumbo_frames_and_all_queues() {
        let mut ena = made_up("ena");
        ena.link.mtu = 9001;
        ena.channels = Some(Channels {
            combined: 8,
            max_combined: 8,
            ..Channels::default()
        });
        let checks = judge(&ena);
        assert_remedies(&checks);
        let warnings = statuses(&checks, Status::Warning);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        let remedies = format!("{checks:?}");
        assert!(remedies.contains("mtu 3498"), "{remedies}");
        assert!(
            remedies.contains("ethtool -L eth9 combined 4"),
            "{remedies}"
        );
        // As the host's uplink the same is only to know: a tap needs none of it.
        ena.default_route = true;
        let checks = judge(&ena);
        assert!(statuses(&checks, Status::Warning).is_empty());
        assert!(format!("{checks:?}").contains("allow_link_reset"));
    }

    #[test]
    fn the_mode_is_what_the_kernel_tells_or_else_the_driver() {
        let mut nic = made_up("ice");
        assert!(mode(&nic).finding.contains("zero-copy"));
        nic.xdp = Some(XdpFeatures::default());
        assert!(mode(&nic).finding.contains("generic"));
        nic.xdp = Some(XdpFeatures {
            native: true,
            redirect: true,
            ..XdpFeatures::default()
        });
        assert!(mode(&nic).finding.contains("with a copy"));
        assert!(mode(&made_up("ixgbevf")).finding.contains("generic"));
    }

    #[test]
    fn states() {
        let mut nic = made_up("veth");
        nic.peer = Some(("peer9".into(), 9000));
        nic.link.running = false;
        let checks = judge(&nic);
        assert_remedies(&checks);
        assert_eq!(
            checks[0].remedy.as_deref(),
            Some("ip link set dev peer9 up")
        );
        assert!(format!("{checks:?}").contains("ip link set dev peer9 mtu 3506"));
        nic.link.up = false;
        assert_eq!(state(&nic).finding, "down");
    }

    #[test]
    fn lro_and_drivers_that_refuse_it() {
        let mut gve = made_up("gve");
        let on = Feature {
            on: true,
            fixed: false,
        };
        gve.features.insert("rx-lro".into(), on);
        let checks = judge(&gve);
        assert_remedies(&checks);
        assert!(format!("{checks:?}").contains("ethtool -K eth9 lro off"));
    }

    #[test]
    fn without_ethernet_there_is_no_span() {
        let mut tun = made_up("tun");
        tun.link.ethernet = false;
        let checks = judge(&tun);
        assert!(checks
            .last()
            .unwrap()
            .finding
            .contains("no Ethernet header"));
    }
}
