//! Links, routes, neighbours, walks, hooks and facts of made-up networks.

use std::net::IpAddr;
use std::os::fd::AsFd;

use netlink_packet_route::neighbour::NeighbourState;

use super::namespace::{run, within_a_second, Pair};
use crate::host::facts::{self, TargetQuery};
use crate::host::hooks::{self, Hook};
use crate::host::netlink::Netlink;
use crate::host::route::{self, RouteError, RouteQuery};
use crate::host::walk::{self, End, Walk};
use crate::host::{bpf_syscall, ethtool, link, neighbour, netdev};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn routes() {
    let Some(pair) = Pair::make() else { return };
    pair.near_ip("route add 203.0.113.0/25 via 198.51.100.2 mtu 1400");
    pair.near_ip("route add unreachable 203.0.113.128/25");
    pair.near_ip("route add 203.0.113.0/25 via 198.51.100.66 table 77");
    pair.near_ip("rule add fwmark 7 table 77");
    pair.in_near(|| {
        let mut netlink = Netlink::open().unwrap();
        let a0 = link::by_name(&mut netlink, "a0").unwrap();
        let b0 = link::by_name(&mut netlink, "b0").unwrap();
        let query = RouteQuery::to(ip("203.0.113.2"));
        let far = route::lookup(&mut netlink, query).unwrap();
        assert_eq!((far.device, far.mtu), (a0.index, Some(1400)));
        assert_eq!(far.gateway, Some(ip("198.51.100.2")));
        assert_eq!(far.source, Some(ip("198.51.100.1")));
        let marked = route::lookup(&mut netlink, RouteQuery { mark: 7, ..query }).unwrap();
        assert_eq!(marked.device, b0.index, "policy rules are followed");
        let fixed = RouteQuery {
            destination: ip("198.51.100.66"),
            source: Some(ip("198.51.100.1")),
            device: Some(b0.index),
            mark: 0,
        };
        let near = route::lookup(&mut netlink, fixed).unwrap();
        assert_eq!((near.device, near.gateway), (b0.index, None));
        assert_eq!(near.source, Some(ip("198.51.100.1")));
        for nowhere in ["203.0.113.200", "192.0.2.1", "2001:db8::1"] {
            let error = route::lookup(&mut netlink, RouteQuery::to(ip(nowhere))).unwrap_err();
            assert!(matches!(error, RouteError::None { .. }), "{error}");
            assert!(error.to_string().contains(nowhere), "{error}");
        }
        assert!(route::default_devices(&mut netlink).unwrap().is_empty());
    });
    pair.near_ip("route add default via 198.51.100.66 metric 5");
    pair.near_ip("route add default via 198.51.100.2 metric 9");
    assert_eq!(
        pair.in_near(|| facts::gather(&[], &[]).unwrap().default_route),
        ["b0"]
    );
}

#[test]
fn neighbours() {
    let Some(pair) = Pair::make() else { return };
    pair.far_ip("link set a1 address 02:00:00:00:00:a1");
    pair.in_near(|| {
        let mut netlink = Netlink::open().unwrap();
        let a0 = link::by_name(&mut netlink, "a0").unwrap().index;
        let far = ip("198.51.100.2");
        assert_eq!(neighbour::lookup(&mut netlink, a0, far).unwrap(), None);
        neighbour::resolve(&mut netlink, a0, far).unwrap();
        let state = |netlink: &mut Netlink| neighbour::lookup(netlink, a0, far).unwrap().unwrap();
        within_a_second("resolution", || state(&mut netlink).usable());
        assert_eq!(state(&mut netlink).mac, Some([2, 0, 0, 0, 0, 0xa1]));
        neighbour::confirm(&mut netlink, a0, far).unwrap();
        assert!(state(&mut netlink).usable(), "usable while probed");
        within_a_second("confirmation", || {
            state(&mut netlink).state == NeighbourState::Reachable
        });
        // Nobody is there: the entry exists, and is not usable.
        let nobody = ip("198.51.100.60");
        neighbour::resolve(&mut netlink, a0, nobody).unwrap();
        let found = neighbour::lookup(&mut netlink, a0, nobody)
            .unwrap()
            .unwrap();
        assert!(!found.usable());
    });
}

fn walked(pair: &Pair, destination: &'static str) -> (Walk, Vec<String>) {
    let walk = pair.in_near(move || {
        let mut netlink = Netlink::open().unwrap();
        walk::walk(&mut netlink, RouteQuery::to(ip(destination))).unwrap()
    });
    let steps = walk
        .steps
        .iter()
        .map(|step| format!("{}:{}", step.name, step.kind))
        .collect();
    (walk, steps)
}

#[test]
fn walks_through_tunnels_and_stacked_devices() {
    let Some(pair) = Pair::make() else { return };
    let (plain, steps) = walked(&pair, "198.51.100.2");
    assert_eq!(plain.end, End::OtherNamespace);
    assert_eq!(steps, ["a0:veth"]);

    pair.near_ip("link add vx type vxlan id 7 remote 198.51.100.2 dstport 4789");
    pair.near_ip("addr add 192.0.2.1/24 dev vx");
    pair.near_ip("link set vx up");
    let (tunnel, steps) = walked(&pair, "192.0.2.2");
    assert_eq!(steps, ["vx:vxlan", "a0:veth"]);
    assert_eq!(tunnel.steps[0].remote, Some(ip("198.51.100.2")));
    assert_eq!(tunnel.hidden_at(tunnel.steps[0].index), Some(false));
    assert_eq!(tunnel.hidden_at(tunnel.steps[1].index), Some(true));

    // Without a remote of its own: the forwarding table holds it.
    pair.near_ip("link add vx2 type vxlan id 8 dstport 4790");
    pair.near_ip("addr add 192.0.3.1/24 dev vx2");
    pair.near_ip("link set vx2 up");
    let (unknown, _) = walked(&pair, "192.0.3.2");
    assert!(matches!(unknown.end, End::Hidden(_)), "{unknown:?}");
    run(&format!(
        "bridge -n {} fdb append 00:00:00:00:00:00 dev vx2 dst 198.51.100.66",
        pair.near
    ));
    let (known, steps) = walked(&pair, "192.0.3.2");
    assert_eq!(steps, ["vx2:vxlan", "b0:veth"], "{known:?}");

    pair.near_ip("tuntap add dev tn mode tun");
    pair.near_ip("addr add 192.0.4.1/24 dev tn");
    pair.near_ip("link set tn up");
    let (tun, steps) = walked(&pair, "192.0.4.2");
    assert_eq!(steps, ["tn:tun"]);
    assert!(
        matches!(&tun.end, End::Hidden(why) if why.contains("tn")),
        "{tun:?}"
    );

    pair.near_ip("link add mv link b0 type macvlan");
    pair.near_ip("addr add 192.0.5.1/24 dev mv");
    pair.near_ip("link set mv up");
    assert_eq!(walked(&pair, "192.0.5.2").1, ["mv:macvlan", "b0:veth"]);

    pair.near_ip("link add bri0 type bridge");
    pair.near_ip("addr flush dev b0");
    pair.near_ip("link del mv");
    pair.near_ip("link set b0 master bri0");
    pair.near_ip("addr add 192.0.6.1/24 dev bri0");
    pair.near_ip("link set bri0 up");
    assert_eq!(walked(&pair, "192.0.6.2").1, ["bri0:bridge", "b0:veth"]);

    // A veth pair inside one namespace whose other end is a port of the bridge.
    pair.near_ip("link add pa type veth peer name pb");
    pair.near_ip("link set pb master bri0");
    pair.near_ip("addr add 192.0.7.1/24 dev pa");
    pair.near_ip("link set pa up");
    pair.near_ip("link set pb up");
    assert_eq!(
        walked(&pair, "192.0.7.2").1,
        ["pa:veth", "pb:veth", "bri0:bridge", "b0:veth"]
    );

    assert_eq!(walked(&pair, "198.51.100.1").0.end, End::Local);
    assert!(matches!(
        walked(&pair, "203.0.113.9").0.end,
        End::NoRoute(_)
    ));
}

#[test]
fn a_tunnel_over_itself_ends() {
    let Some(pair) = Pair::make() else { return };
    pair.near_ip("link add vx type vxlan id 7 remote 192.0.2.2 dstport 4789");
    pair.near_ip("addr add 192.0.2.1/24 dev vx");
    pair.near_ip("link set vx up");
    assert_eq!(walked(&pair, "192.0.2.2").0.end, End::Loop);
}

#[test]
fn drivers_queues_and_offloads() {
    let Some(pair) = Pair::make() else { return };
    pair.near_ip("link add q0 numtxqueues 4 numrxqueues 4 type veth peer name q1");
    pair.in_near(|| {
        let ethtool = ethtool::Ethtool::open().unwrap();
        assert_eq!(ethtool.driver("a0").unwrap(), "veth");
        assert!(ethtool.channels("q0").unwrap().receiving() >= 1);
        assert!(ethtool.features("a0").unwrap()["tx-udp-segmentation"].on);
        assert!(ethtool
            .statistics("a0")
            .unwrap()
            .contains_key("peer_ifindex"));
        let mut netlink = Netlink::open().unwrap();
        let q0 = link::by_name(&mut netlink, "q0").unwrap();
        assert_eq!((q0.rx_queues, q0.tx_queues), (4, 4));
        assert_eq!(q0.kind.as_deref(), Some("veth"));
        let q1 = link::by_name(&mut netlink, "q1").unwrap();
        assert_eq!((q0.parent, q0.parent_elsewhere), (Some(q1.index), false));
        let a0 = link::by_name(&mut netlink, "a0").unwrap();
        assert!(a0.parent_elsewhere);
        // Kernels before 6.3 do not tell.
        if let Some(xdp) = netdev::xdp_features(a0.index).unwrap() {
            assert!(xdp.native && xdp.redirect && !xdp.zero_copy);
        }
    });
    run(&format!(
        "ip netns exec {} ethtool -K a0 tx-udp-segmentation off",
        pair.near
    ));
    pair.in_near(|| {
        let ethtool = ethtool::Ethtool::open().unwrap();
        assert!(!ethtool.features("a0").unwrap()["tx-udp-segmentation"].on);
    });
}

#[test]
fn programs_on_the_hooks() {
    let Some(pair) = Pair::make() else { return };
    let tc = |arguments: &str| run(&format!("tc -n {} {arguments}", pair.near));
    tc("qdisc add dev a0 clsact");
    tc("filter add dev a0 ingress pref 3 u32 match u32 0 0 classid 1:1");
    tc("filter add dev a0 egress pref 2 u32 match u32 0 0 classid 1:1");
    pair.in_near(|| {
        let mut netlink = Netlink::open().unwrap();
        let a0 = link::by_name(&mut netlink, "a0").unwrap();
        let found = hooks::on(&mut netlink, &a0).unwrap();
        assert!(found.clsact);
        // A u32 filter brings its hash tables along, which the kernel lists like filters.
        let of = |hook, priority| {
            found.attached.iter().any(|attached| {
                (attached.hook, attached.priority) == (hook, Some(priority))
                    && attached.kind == "u32"
            })
        };
        assert!(of(Hook::ClsactIngress, 3), "{found:?}");
        assert!(of(Hook::ClsactEgress, 2), "{found:?}");
        assert_eq!(found.attached[0].hook, Hook::ClsactIngress);
        let b0 = link::by_name(&mut netlink, "b0").unwrap();
        assert_eq!(
            hooks::on(&mut netlink, &b0).unwrap(),
            hooks::Hooks::default()
        );

        // tcx, where this kernel has it, and XDP.
        let program = bpf_syscall::load_return(bpf_syscall::PROG_TYPE_SCHED_CLS, -1).unwrap();
        let tcx =
            bpf_syscall::create_link(program.as_fd(), b0.index, bpf_syscall::ATTACH_TCX_EGRESS, 0);
        let xdp = bpf_syscall::load_return(bpf_syscall::PROG_TYPE_XDP, 2).unwrap();
        let _xdp =
            bpf_syscall::create_link(xdp.as_fd(), b0.index, bpf_syscall::ATTACH_XDP, 2).unwrap();
        let b0 = link::by_name(&mut netlink, "b0").unwrap();
        let found = hooks::on(&mut netlink, &b0).unwrap();
        assert_eq!(found.attached[0].hook, Hook::Xdp);
        assert_eq!(found.attached[0].kind, "generic xdp");
        if tcx.is_ok() {
            assert_eq!(found.attached[1].hook, Hook::TcxEgress);
            assert!(found.attached[1].program.is_some());
            assert!(!found.attached[1].ours());
        }
        drop(tcx);
    });
}

#[test]
fn facts_of_a_small_network() {
    let Some(pair) = Pair::make() else { return };
    pair.near_ip("route add default via 198.51.100.66");
    pair.near_ip("link add vx type vxlan id 7 remote 198.51.100.2 dstport 4789");
    pair.near_ip("addr add 192.0.2.1/24 dev vx");
    pair.near_ip("link set vx mtu 1450 up");
    let facts = pair.in_near(|| {
        let query = |host: &str, device: Option<&str>| TargetQuery {
            host: host.into(),
            source: None,
            device: device.map(str::to_owned),
        };
        let targets = [
            query("203.0.113.2", None),
            query("192.0.2.2", None),
            query("203.0.113.2", Some("a0")),
            query("203.0.113.2", Some("xtee-none")),
        ];
        facts::gather(&["a0".into(), "xtee-none".into()], &targets).unwrap()
    });
    let b0 = facts.interface("b0").unwrap();
    assert!(b0.carries_host_traffic && b0.has_ethernet_header);
    assert_eq!((b0.kind.as_str(), b0.driver.as_str()), ("veth", "veth"));
    assert!(!facts.interface("a0").unwrap().carries_host_traffic);
    assert!(facts.interface("xtee-none").is_none());
    let route = facts.targets[0].route.as_ref().unwrap();
    assert_eq!(route.device, "b0");
    assert_eq!(route.gateway, Some("198.51.100.66".parse().unwrap()));
    assert_eq!(route.prefsrc, Some("198.51.100.65".parse().unwrap()));
    let steps: Vec<&str> = facts.targets[1]
        .walk
        .iter()
        .map(|s| s.device.as_str())
        .collect();
    assert_eq!(steps, ["vx", "a0"]);
    assert_eq!(facts.targets[1].route.as_ref().unwrap().mtu, 1450);
    assert_eq!(facts.targets[2].route.as_ref().unwrap().device, "a0");
    assert_eq!(facts.targets[3].route, None);
    assert!(facts.kernel.btf && facts.kernel.af_xdp && facts.kernel.xdp);
}
