//! Judges the offloads that change what xtee sees or how fast it sends, and what the cloud's limits
//! have already taken.

use super::drivers;
use super::interface::Observed;
use super::Check;

/// Largest super-packet that a tap captures in one piece; BIG TCP builds larger ones.
const LARGEST_SUPER_PACKET: u32 = 65_536;
/// Counters of the Elastic Network Adapter for packets dropped above the instance's allowance.
const ALLOWANCES: [(&str, &str); 5] = [
    ("bw_in_allowance_exceeded", "incoming bandwidth"),
    ("bw_out_allowance_exceeded", "outgoing bandwidth"),
    ("pps_allowance_exceeded", "packets per second"),
    ("conntrack_allowance_exceeded", "tracked connections"),
    (
        "linklocal_allowance_exceeded",
        "DNS, metadata and time services",
    ),
];

/// Judges the offloads of one interface.
pub(super) fn judge(observed: &Observed) -> Vec<Check> {
    let area = observed.area("offloads");
    let name = &observed.link.name;
    let on = |feature: &str| {
        observed
            .features
            .get(feature)
            .is_some_and(|feature| feature.on)
    };
    let fixed = |feature: &str| {
        observed
            .features
            .get(feature)
            .is_some_and(|feature| feature.fixed)
    };
    let mut checks = Vec::new();
    if observed.features.is_empty() {
        return vec![Check::hint(
            area,
            "unknown: ethtool gives no answer",
            format!("ethtool -k {name}"),
        )];
    }
    let driver = drivers::of(&observed.driver);
    if driver.passes_super_packets_on && on("tx-udp-segmentation") {
        checks.push(Check::warning(
            area.as_str(),
            format!(
                "tx-udp-segmentation is on, and {} hands UDP super-packets on unsplit: for copies that leave here gso=auto falls back to sendmmsg, which is three times slower",
                driver.name
            ),
            format!("ethtool -K {name} tx-udp-segmentation off"),
        ));
    } else if on("tx-udp-segmentation") {
        checks.push(Check::ok(
            area.as_str(),
            "the device splits UDP super-packets: gso=auto sends copies in runs",
        ));
    } else if !observed.link.loopback {
        checks.push(Check::ok(
            area.as_str(),
            "the kernel splits UDP super-packets before the driver: gso=auto sends copies in runs",
        ));
    }
    if on("rx-lro") {
        checks.push(Check::warning(
            area.as_str(),
            "LRO is on: the device merges incoming segments and loses their boundaries, so that copies are not the packets of the wire",
            format!("ethtool -K {name} lro off"),
        ));
    }
    if on("rx-gro-hw") {
        checks.push(Check::hint(
            area.as_str(),
            "hardware GRO is on: a tap splits its super-packets again; a span on this interface needs it off",
            format!("ethtool -K {name} rx-gro-hw off"),
        ));
    }
    if on("rx-vlan-hw-parse") && !observed.default_route && !observed.link.loopback {
        // Software devices keep the tag beside the packet whatever the setting.
        let finding =
            "the device strips VLAN tags: a tap restores them, a span by AF_XDP never sees them";
        checks.push(if fixed("rx-vlan-hw-parse") {
            Check::hint(
                area.as_str(),
                format!("{finding} (fixed)"),
                "use tap: for VLAN-tagged traffic",
            )
        } else if observed.link.kind.is_some() {
            Check::hint(
                area.as_str(),
                finding,
                format!("for a span: ethtool -K {name} rxvlan off"),
            )
        } else {
            Check::warning(
                area.as_str(),
                finding,
                format!("for a span: ethtool -K {name} rxvlan off"),
            )
        });
    }
    let largest = observed.link.gso_max_size.max(observed.link.gro_max_size);
    if largest > LARGEST_SUPER_PACKET {
        checks.push(Check::warning(
            area.as_str(),
            format!("BIG TCP is on (super-packets up to {largest} bytes): those above {LARGEST_SUPER_PACKET} are not copied, but counted as super_packet"),
            format!("ip link set dev {name} gso_max_size {LARGEST_SUPER_PACKET} gro_max_size {LARGEST_SUPER_PACKET}"),
        ));
    }
    checks
}

/// Judges the allowance counters, where the driver has them.
pub(super) fn allowances(observed: &Observed) -> Vec<Check> {
    let area = observed.area("allowance");
    let known: Vec<(&str, u64)> = ALLOWANCES
        .iter()
        .filter_map(|(counter, what)| Some((*what, *observed.statistics.get(*counter)?)))
        .collect();
    if known.is_empty() {
        return Vec::new();
    }
    let exceeded: Vec<String> = known
        .iter()
        .filter(|(_, packets)| *packets > 0)
        .map(|(what, packets)| format!("{what} ({packets} packets)"))
        .collect();
    if exceeded.is_empty() {
        return vec![Check::ok(
            area,
            "the instance has stayed below its limits since boot",
        )];
    }
    vec![Check::warning(
        area,
        format!(
            "the cloud has queued or dropped packets above the instance's limits: {}; copies add to it",
            exceeded.join(", ")
        ),
        format!(
            "set limit= in the target's URL below the free bandwidth, or take a larger instance; watch with: ethtool -S {} | grep allowance",
            observed.link.name
        ),
    )]
}

#[cfg(test)]
mod tests {
    use super::super::interface::tests::made_up;
    use super::super::tests::assert_remedies;
    use super::super::Status;
    use super::*;
    use crate::host::ethtool::Feature;

    fn with(driver: &str, features: &[&str]) -> Observed {
        let mut observed = made_up(driver);
        observed.features.insert(
            "tx-checksumming".into(),
            Feature {
                on: true,
                fixed: false,
            },
        );
        for name in features {
            observed.features.insert(
                (*name).into(),
                Feature {
                    on: true,
                    fixed: false,
                },
            );
        }
        observed
    }

    fn remedies(checks: &[Check], status: Status) -> Vec<String> {
        assert_remedies(checks);
        checks
            .iter()
            .filter(|check| check.status == status)
            .filter_map(|check| check.remedy.clone())
            .collect()
    }

    #[test]
    fn udp_segmentation_is_a_warning_only_where_it_is_passed_on() {
        for driver in ["veth", "virtio_net"] {
            let checks = judge(&with(driver, &["tx-udp-segmentation"]));
            let found = remedies(&checks, Status::Warning);
            assert_eq!(
                found,
                ["ethtool -K eth9 tx-udp-segmentation off"],
                "{driver}"
            );
        }
        assert!(remedies(
            &judge(&with("ice", &["tx-udp-segmentation"])),
            Status::Warning
        )
        .is_empty());
        assert!(remedies(&judge(&with("veth", &[])), Status::Warning).is_empty());
    }

    #[test]
    fn offloads_that_change_what_is_seen() {
        let checks = judge(&with("ice", &["rx-lro", "rx-gro-hw", "rx-vlan-hw-parse"]));
        let found = remedies(&checks, Status::Warning);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("lro off") && found[1].contains("rxvlan off"));
        let mut big = with("ice", &[]);
        big.link.gro_max_size = 185_000;
        assert!(remedies(&judge(&big), Status::Warning)[0].contains("gso_max_size 65536"));
    }

    #[test]
    fn allowances_of_the_cloud() {
        let mut ena = with("ena", &[]);
        assert!(allowances(&ena).is_empty());
        ena.statistics.insert("pps_allowance_exceeded".into(), 0);
        assert_eq!(allowances(&ena)[0].status, Status::Ok);
        ena.statistics
            .insert("bw_out_allowance_exceeded".into(), 12);
        let checks = allowances(&ena);
        assert_remedies(&checks);
        assert!(checks[0]
            .finding
            .contains("outgoing bandwidth (12 packets)"));
    }
}
