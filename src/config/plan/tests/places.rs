//! Which interface a source is on: devices without Ethernet, the default route, other namespaces.

use super::*;
use crate::config::facts::NamespaceFacts;

fn tap(interface: &str) -> String {
    format!("[[source]]\nkind = \"tap\"\ninterface = \"{interface}\"\n{VXLAN}")
}

fn tun() -> InterfaceFacts {
    InterfaceFacts {
        has_ethernet_header: false,
        arp_type: 0xfffe,
        kind: "tun".to_owned(),
        mtu: 1400,
        ..interface("tun0", 7)
    }
}

#[test]
fn a_device_without_ethernet_gets_a_header() {
    let mut facts = host();
    facts.interfaces.push(tun());
    let plan = decide(&tap("tun0"), &facts).unwrap();
    assert_eq!(plan.sources[0].links, [LinkType::Ip]);
    let text = plan.to_string();
    assert!(
        text.contains("IP packets: copies get an Ethernet header, here 02:78:74:"),
        "{text}"
    );
    let plan = decide(&tap("eth0"), &facts).unwrap();
    assert_eq!(plan.sources[0].links, [LinkType::Ethernet]);
    // A wireless monitor.
    facts.interfaces[3].arp_type = 803;
    refused(
        &tap("tun0"),
        &facts,
        1,
        "neither Ethernet nor IP packets (link type 803)",
        "an Ethernet interface, or one of IP packets",
    );
}

#[test]
fn the_default_route_is_where_it_is_now() {
    let mut facts = host();
    facts.interfaces.push(tun());
    let plan = decide(&tap("default-route"), &facts).unwrap();
    let source = &plan.sources[0];
    assert_eq!(source.name, "tap:default-route");
    assert_eq!((source.interface.as_str(), source.ifindex), ("eth0", 1));
    assert_eq!(source.links, [LinkType::Ethernet, LinkType::Ip]);
    assert!(!plan.warnings.iter().any(|w| w.contains("both are tapped")));
    assert!(plan
        .to_string()
        .contains("eth0 now; follows the default route"));

    facts.default_route.push("tun0".to_owned());
    let plan = decide(&tap("default-route"), &facts).unwrap();
    let both = "the default routes lead to eth0 and tun0: both are tapped";
    assert!(
        plan.warnings.iter().any(|w| w.contains(both)),
        "{:?}",
        plan.warnings
    );

    facts.default_route.clear();
    refused(
        &tap("default-route"),
        &facts,
        1,
        "there is no default route",
        "eth0, eth1, eth2, tun0",
    );
}

#[test]
fn another_namespace_has_interfaces_of_its_own() {
    let mut facts = host();
    let shop = NamespaceFacts {
        namespace: "/run/netns/shop".to_owned(),
        problem: None,
        interfaces: vec![interface("eth9", 4)],
        default_route: vec!["eth9".to_owned()],
    };
    let gone = NamespaceFacts {
        namespace: "pid:7".to_owned(),
        problem: Some("cannot enter the network namespace pid:7: No such process".to_owned()),
        ..NamespaceFacts::default()
    };
    facts.elsewhere = vec![shop, gone];
    for text in [
        tap("eth9@/run/netns/shop"),
        tap("default-route@/run/netns/shop"),
    ] {
        let plan = decide(&text, &facts).unwrap();
        let source = &plan.sources[0];
        assert_eq!((source.interface.as_str(), source.ifindex), ("eth9", 4));
        assert_eq!(
            source.namespace,
            Some(Namespace::Path("/run/netns/shop".into()))
        );
        assert!(source.name.ends_with("@/run/netns/shop"), "{}", source.name);
    }
    refused(
        &tap("eth0@/run/netns/shop"),
        &facts,
        1,
        "there is no interface eth0 in /run/netns/shop",
        "eth9",
    );
    refused(
        &tap("eth0@pid:7"),
        &facts,
        1,
        "cannot enter the network namespace pid:7: No such process",
        "the path of a network namespace",
    );
    // One name, two interfaces.
    facts.elsewhere[0].interfaces.push(interface("eth0", 5));
    let two = format!(
        "{TAP}[[source]]\nkind = \"tap\"\ninterface = \"eth0\"\nnamespace = \"/run/netns/shop\"\n{VXLAN}"
    );
    let plan = decide(&two, &facts).unwrap();
    assert_eq!((plan.sources[0].ifindex, plan.sources[1].ifindex), (1, 5));
}

#[test]
fn jumbo_copies_do_not_go_by_af_xdp() {
    let mut facts = host();
    for interface in &mut facts.interfaces {
        interface.mtu = 9001;
    }
    facts.targets[0].route.as_mut().unwrap().mtu = 9100;
    let to = |url: &str| format!("{SPAN}[[target]]\nurl = \"gre://203.0.113.2?key=7{url}\"\n");
    let plan = decide(&to(""), &facts).unwrap();
    let transmit = &plan.targets[0].transmit;
    assert_eq!(transmit.value, Transmitter::Raw);
    assert!(
        transmit.why.contains("9109 bytes do not fit"),
        "{transmit:?}"
    );
    let plan = decide(&to("&transmit=xsk"), &facts).unwrap();
    assert_eq!(plan.targets[0].transmit.value, Transmitter::Xsk);
    assert!(
        plan.warnings
            .iter()
            .any(|w| w.contains("dropped as oversize")),
        "{:?}",
        plan.warnings
    );
    // The path carries no jumbo frames, so none are sent.
    facts.targets[0].route.as_mut().unwrap().mtu = 1600;
    let plan = decide(&to(""), &facts).unwrap();
    assert_eq!(plan.targets[0].transmit.value, Transmitter::Xsk);
}
