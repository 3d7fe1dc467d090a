//! Decisions for targets.

use std::path::Path;

use super::super::*;
use super::{decide, host, refused, step, GRE, SPAN, TAP, VXLAN};
use crate::config::facts::{DeviceStep, TX_UDP_SEGMENTATION};
use crate::config::parse;

/// Takes something away from the host.
type Change = fn(&mut HostFacts);

fn transmit(text: &str, facts: &HostFacts) -> (Transmitter, String) {
    let plan = decide(&format!("{TAP}{text}"), facts).unwrap();
    let transmit = plan.targets[0].transmit.clone();
    (transmit.value, transmit.why)
}

#[test]
fn vxlan_goes_by_udp_and_gre_by_af_xdp_where_it_can() {
    let mut facts = host();
    let vxlan = |how: &str| format!("{VXLAN}transmit = \"{how}\"\n");
    assert_eq!(transmit(VXLAN, &facts).0, Transmitter::Udp);
    assert_eq!(transmit(&vxlan("udp"), &facts).0, Transmitter::Udp);
    assert_eq!(transmit(&vxlan("xsk"), &facts).0, Transmitter::Xsk);
    let text = format!("{TAP}{}", vxlan("raw"));
    assert!(
        parse(Path::new("test.toml"), &text).is_err(),
        "the validation says so"
    );
    let (who, why) = transmit(GRE, &facts);
    assert_eq!(who, Transmitter::Xsk);
    assert!(why.contains("copy mode"), "{why}");
    let raw = format!("{GRE}transmit = \"raw\"\n");
    assert_eq!(transmit(&raw, &facts).0, Transmitter::Raw);

    let without: [(&str, Change); 4] = [
        ("no Ethernet device", |f| {
            f.interfaces[2].has_ethernet_header = false
        }),
        ("loopback", |f| f.interfaces[2].loopback = true),
        ("no hardware address", |f| f.interfaces[2].mac = None),
        ("no AF_XDP", |f| f.kernel.af_xdp = false),
    ];
    for (reason, change) in without {
        let mut facts = host();
        change(&mut facts);
        let (who, why) = transmit(GRE, &facts);
        assert_eq!(who, Transmitter::Raw);
        assert!(why.contains(reason), "{why}");
        let text = format!("{TAP}{}", vxlan("xsk"));
        refused(&text, &facts, 4, reason, "transmit = \"auto\", \"udp\"");
        assert_eq!(transmit(VXLAN, &facts).0, Transmitter::Udp);
    }
    // The walk and the route name a device that nothing is known of.
    facts.interfaces.truncate(2);
    let (who, why) = transmit(GRE, &facts);
    assert_eq!(who, Transmitter::Raw);
    assert!(why.contains("nothing is known of eth2"), "{why}");
}

fn gso(line: &str, facts: &HostFacts) -> (UdpSend, String, Vec<String>) {
    let plan = decide(&format!("{TAP}{VXLAN}{line}\n"), facts).unwrap();
    let gso = plan.targets[0].gso.clone().unwrap();
    (gso.value, gso.why, plan.warnings)
}

#[test]
fn gso_where_the_wire_sees_single_packets() {
    let mut facts = host();
    let (how, why, _) = gso("", &facts);
    assert_eq!(how, UdpSend::Segment);
    assert!(
        why.contains("kernel splits them before the driver"),
        "{why}"
    );

    let on = [(TX_UDP_SEGMENTATION.to_owned(), true)];
    facts.interfaces[2].features = on.clone().into();
    let (how, why, _) = gso("", &facts);
    assert_eq!(how, UdpSend::Segment);
    assert!(
        why.contains("eth2 (ixgbe) splits UDP super-packets in hardware"),
        "{why}"
    );

    let soft: [(&str, &str, bool); 6] = [
        ("veth", "veth", false),
        ("", "veth", false),
        ("", "virtio_net", false),
        ("bridge", "bridge", false),
        ("", "", false),
        ("", "", true),
    ];
    for (kind, driver, loopback) in soft {
        facts.interfaces[2].kind = kind.to_owned();
        facts.interfaces[2].driver = driver.to_owned();
        facts.interfaces[2].loopback = loopback;
        let (how, why, warnings) = gso("", &facts);
        assert_eq!(how, UdpSend::Sendmmsg, "{kind} {driver}");
        assert!(
            why.contains("ethtool -K eth2 tx-udp-segmentation off"),
            "{why}"
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        // Asked for, it is done, but said.
        let (how, _, warnings) = gso("gso = \"on\"", &facts);
        assert_eq!(how, UdpSend::Segment);
        assert!(warnings[0].contains("unsplit datagrams"), "{warnings:?}");
        assert_eq!(gso("gso = \"off\"", &facts).0, UdpSend::Sendmmsg);
    }
    // The same device, told not to take them.
    facts.interfaces[2].features = [("tx_udp_segmentation".to_owned(), false)].into();
    assert_eq!(gso("", &facts).0, UdpSend::Segment);
    // Unknown is not on.
    facts.interfaces[2].features.clear();
    let (how, why, _) = gso("", &facts);
    assert_eq!(how, UdpSend::Sendmmsg);
    assert!(why.contains("not known"), "{why}");

    facts = host();
    facts.kernel.udp_segment = false;
    assert_eq!(gso("", &facts).0, UdpSend::Sendmmsg);
    let on = format!("{TAP}{VXLAN}gso = \"on\"\n");
    refused(&on, &facts, 4, "no UDP_SEGMENT", "gso = \"auto\"");
}

#[test]
fn gso_looks_at_the_device_below_a_stacked_one() {
    let mut facts = host();
    facts.interfaces[2].kind = "vlan".to_owned();
    facts.interfaces[2].features = [(TX_UDP_SEGMENTATION.to_owned(), true)].into();
    facts.targets[0].walk = vec![step("eth2", "vlan"), step("eth1", "")];
    let (how, why, _) = gso("", &facts);
    assert_eq!(how, UdpSend::Segment);
    assert!(why.contains("eth1 takes no UDP super-packets"), "{why}");
    facts.interfaces[1].features = [(TX_UDP_SEGMENTATION.to_owned(), true)].into();
    let (how, why, _) = gso("", &facts);
    assert_eq!(how, UdpSend::Segment);
    assert!(why.contains("eth1 (ixgbe) splits"), "{why}");
    facts.interfaces[1].driver = "virtio_net".to_owned();
    assert_eq!(gso("", &facts).0, UdpSend::Sendmmsg);
}

#[test]
fn what_does_not_fit_is_told_in_numbers() {
    let mut facts = host();
    let sizes = |text: &str, facts: &HostFacts| {
        let plan = decide(&format!("{TAP}{text}"), facts).unwrap();
        let target = &plan.targets[0];
        (target.path_mtu, target.largest_frame, plan.warnings)
    };
    assert_eq!(sizes(VXLAN, &facts), (1600, 1564, vec![]));
    let largest = |url: &str| sizes(&format!("[[target]]\nurl = \"{url}\"\n"), &facts).1;
    assert_eq!(largest("gre://203.0.113.2"), 1576);
    assert_eq!(largest("gre://203.0.113.2?key=1"), 1572);
    assert_eq!(largest("gre://203.0.113.2?seq=on"), 1572);
    assert_eq!(largest("gre://203.0.113.2?key=1&seq=on"), 1568);
    // Without its Ethernet header a packet has 14 bytes more.
    assert_eq!(largest("gre://203.0.113.2?inner=ip"), 1590);
    assert_eq!(largest("geneve://203.0.113.2?vni=1"), 1564);
    assert_eq!(largest("erspan://203.0.113.2?session=1"), 1564);
    assert_eq!(largest("erspan://203.0.113.2?session=1&version=3"), 1560);

    facts.targets[0].route.as_mut().unwrap().mtu = 1550;
    assert_eq!(sizes(VXLAN, &facts).2.len(), 0);
    facts.targets[0].route.as_mut().unwrap().mtu = 1549;
    let (_, largest, warnings) = sizes(VXLAN, &facts);
    assert_eq!(largest, 1513);
    for number in ["1514", "1513", "1549", "1550", "tap:eth0"] {
        assert!(warnings[0].contains(number), "{warnings:?}");
    }
    for (oversize, words) in [
        ("resegment", "into smaller segments"),
        ("fragment", "into outer IP fragments"),
        ("truncate", "Suricata and Zeek drop truncated"),
        ("drop", "dropped as oversize"),
    ] {
        let text = format!("{VXLAN}oversize = \"{oversize}\"\n");
        let warnings = sizes(&text, &facts).2;
        assert!(warnings[0].contains(words), "{warnings:?}");
    }
    // What the user knows counts where it is less.
    let configured = sizes(&format!("{VXLAN}mtu = 1400\n"), &facts);
    assert_eq!((configured.0, configured.1), (1400, 1364));
    let too_much = sizes(&format!("{VXLAN}mtu = 9000\n"), &facts);
    assert_eq!(too_much.0, 1549);
    assert!(too_much.2[0].contains("mtu = 9000 has no effect"));
    // A route without an MTU of its own has the device's.
    facts.targets[0].route.as_mut().unwrap().mtu = 0;
    assert_eq!(sizes(VXLAN, &facts).0, 1600);
}

#[test]
fn targets_have_to_be_reachable() {
    let mut facts = host();
    facts.targets[0].route = None;
    let text = format!("{TAP}{VXLAN}");
    refused(
        &text,
        &facts,
        4,
        "no route to 203.0.113.2",
        "a target that `ip route get",
    );
    facts.targets[0].resolved = None;
    facts.targets[0].resolve_error = Some("no such host".to_owned());
    let name = format!("{TAP}[[target]]\nurl = \"vxlan://ndr.example.net?vni=7\"\n");
    refused(
        &name,
        &facts,
        4,
        "ndr.example.net cannot be resolved: no such host",
        "an address",
    );
    let device = format!("{TAP}{VXLAN}dev = \"eth9\"\n");
    refused(
        &device,
        &facts,
        4,
        "`dev`: there is no interface eth9",
        "eth0, eth1, eth2",
    );
    let plan = decide(&format!("{TAP}{VXLAN}dev = \"eth2\"\n"), &host()).unwrap();
    assert!(plan.targets[0].bind_device);
    assert_eq!(plan.targets[0].source, Some([203, 0, 113, 1].into()));
}

#[test]
fn ipv6_headers_are_twenty_bytes_longer_and_the_source_is_of_the_same_version() {
    let mut facts = host();
    facts.targets[0].resolved = Some("2001:db8::2".parse().unwrap());
    let route = facts.targets[0].route.as_mut().unwrap();
    route.prefsrc = Some("2001:db8::1".parse().unwrap());
    let vxlan = "[[target]]\nurl = \"vxlan://[2001:db8::2]?vni=7\"\n";
    let plan = decide(&format!("{TAP}{vxlan}"), &facts).unwrap();
    let target = &plan.targets[0];
    assert_eq!(target.url, "vxlan://[2001:db8::2]:4789?vni=7");
    assert_eq!(target.source, Some("2001:db8::1".parse().unwrap()));
    assert_eq!((target.path_mtu, target.largest_frame), (1600, 1544));
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    facts.targets[0].route.as_mut().unwrap().mtu = 1569;
    let plan = decide(&format!("{TAP}{vxlan}"), &facts).unwrap();
    assert!(plan.warnings[0].contains("a path MTU of 1570"), "{plan}");
    let other = format!("{TAP}{vxlan}source = \"203.0.113.1\"\n");
    refused(
        &other,
        &facts,
        4,
        "not of one IP version",
        "an IPv6 address",
    );
}

#[test]
fn a_tunnel_hides_the_copies_from_the_loop_guard() {
    let warnings = |walk: &[DeviceStep]| {
        let mut facts = host();
        facts.targets[0].walk = walk.to_vec();
        decide(&format!("{TAP}{VXLAN}"), &facts).unwrap().warnings
    };
    assert!(warnings(&[step("eth2", ""), step("eth0", "")]).is_empty());
    let sure = warnings(&[step("wg0", "wireguard"), step("eth0", "")]);
    assert!(
        sure[0].contains("wg0 (wireguard) and leave by eth0"),
        "{sure:?}"
    );
    assert!(sure[0].contains("breaker"), "{sure:?}");
    let perhaps = warnings(&[step("tun0", "tun")]);
    assert!(perhaps[0].contains("may leave by eth0"), "{perhaps:?}");
    // On the tunnel device itself the outer flow is in plain sight.
    assert!(warnings(&[step("eth0", "tun")]).is_empty());
    let mut facts = host();
    facts.targets[0].walk = vec![step("tun0", "tun")];
    assert!(decide(&format!("{SPAN}{VXLAN}"), &facts)
        .unwrap()
        .warnings
        .is_empty());
}

/// An AF_XDP frame is a page: what a tap's jumbo packets need more goes by a socket.
#[test]
fn jumbo_packets_go_by_a_socket() {
    let mut facts = host();
    let xsk = format!("{VXLAN}transmit = \"xsk\"\n");
    let jumbo = |text: &str, facts: &HostFacts| decide(text, facts).unwrap().targets[0].jumbo;
    let tap = |target: &str| format!("{TAP}{target}");
    assert_eq!(jumbo(&tap(GRE), &facts), None);
    facts.interfaces[0].mtu = 4000;
    assert_eq!(jumbo(&tap(GRE), &facts), None);
    facts.interfaces[0].mtu = 4001;
    assert_eq!(jumbo(&tap(GRE), &facts), Some(Transmitter::Raw));
    assert_eq!(jumbo(&tap(&xsk), &facts), Some(Transmitter::Udp));
    assert_eq!(jumbo(&tap(VXLAN), &facts), None, "UDP sends all of it");
    facts.interfaces[1].mtu = 9000;
    facts.interfaces[0].mtu = 1500;
    assert_eq!(jumbo(&format!("{SPAN}{GRE}"), &facts), None);
    let plan = decide(&tap(GRE), &facts).unwrap().to_string();
    assert!(!plan.contains("jumbo"), "{plan}");
}

#[test]
fn what_a_target_gets_is_shown_with_its_limit() {
    let facts = host();
    let shown = |keys: &str| {
        let text = format!("{TAP}{VXLAN}{keys}");
        decide(&text, &facts).unwrap().to_string()
    };
    for (keys, line) in [
        (
            "",
            "gets      every packet, at most 1Gbit/s (the default limit;",
        ),
        (
            "limit = \"none\"\n",
            "gets      every packet, without limit (limit = \"none\" asked for)\n",
        ),
        (
            "limit = \"2.5Gbit/s\"\nlimit_packets = \"200k/s\"\n",
            "gets      every packet, at most 2500Mbit/s and 200000 packets/s\n",
        ),
        (
            "distribution = \"hash\"\n",
            "gets      its share of the flows, at most 1Gbit/s",
        ),
        (
            "distribution = \"hash\"\n",
            "health    neighbour: while it has no route",
        ),
        ("health = \"none\"\n", "health    none: it is never taken"),
        (
            "dscp = \"ef\"\nttl = 3\npriority = 5\n",
            "  marks     DSCP 46, TTL 3, socket priority 5\n",
        ),
        (
            "[breaker]\nbudget = \"5Gbit/s\"\nbudget_packets = \"1M/s\"\nload = \"90%\"\n",
            "breaker   no copies while all targets together would get more than 5Gbit/s or 1000000 packets/s, or \
             the CPUs are busy for more than 90% of the time\n",
        ),
    ] {
        assert!(shown(keys).contains(line), "{keys}{}", shown(keys));
    }
    assert!(!shown("").contains("breaker"));
}
