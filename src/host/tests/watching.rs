//! The path watch follows what happens to the network, each time within a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::namespace::{within_a_second, Pair};
use crate::host::link;
use crate::host::netlink::Netlink;
use crate::host::path_mtu::OuterFlow;
use crate::host::watch::{PathTarget, PathWatch};
use crate::mirror::path::{PathProblem, PathState};

type Published = Arc<ArcSwap<PathState>>;

const TARGET: &str = "203.0.113.2";
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa1];

/// A pair whose target stands behind `far`, with known hardware addresses, and a watch on it.
fn watched(device: Option<&str>) -> Option<(Pair, PathWatch, Published)> {
    let pair = Pair::make()?;
    pair.far_ip("link set a1 address 02:00:00:00:00:a1");
    pair.far_ip("link set b1 address 02:00:00:00:00:b1");
    pair.far_ip("addr add 203.0.113.2/32 dev lo");
    pair.near_ip("route add 203.0.113.0/24 via 198.51.100.2");
    let target = PathTarget {
        destination: TARGET.parse().unwrap(),
        source: None,
        source_is_routes: false,
        device: device.map(str::to_owned),
        flow: OuterFlow {
            protocol: 17,
            destination_port: 4789,
            source_ports: 61000..=61063,
        },
        mtu: None,
    };
    let watch = pair.in_near(move || PathWatch::start(vec![target]).unwrap());
    let path = watch.path(0).unwrap();
    assert!(watch.path(1).is_none());
    within_a_second("first resolution", || path.load().problem.is_none());
    Some((pair, watch, path))
}

#[test]
fn the_first_state_has_all_that_a_frame_needs() {
    let Some((pair, _watch, path)) = watched(None) else {
        return;
    };
    let a0 = pair.in_near(|| link::by_name(&mut Netlink::open().unwrap(), "a0").unwrap());
    let state = path.load_full();
    assert_eq!((state.ifindex, state.device.as_str()), (a0.index, "a0"));
    assert_eq!(state.source_ip.to_string(), "198.51.100.1");
    assert_eq!(state.next_hop.to_string(), "198.51.100.2");
    assert_eq!(state.mtu, 1500);
    assert!(state.up);
    assert_eq!(state.ethernet(), Some((FAR_MAC, a0.mac.unwrap())));
}

#[test]
fn a_next_hop_that_changes_its_hardware_address() {
    let Some((pair, _watch, path)) = watched(None) else {
        return;
    };
    pair.far_ip("link set a1 address 02:00:00:00:00:a9");
    pair.far_speaks();
    within_a_second("new hardware address", || {
        path.load().next_hop_mac == Some([2, 0, 0, 0, 0, 0xa9])
    });
    assert_eq!(path.load().problem, None);
}

#[test]
fn a_route_that_moves_to_another_device() {
    let Some((pair, _watch, path)) = watched(None) else {
        return;
    };
    let before = path.load().generation;
    pair.near_ip("route replace 203.0.113.0/24 via 198.51.100.66");
    within_a_second("the other device", || {
        let state = path.load();
        state.device == "b0" && state.next_hop_mac == Some([2, 0, 0, 0, 0, 0xb1])
    });
    let state = path.load();
    assert_eq!(state.source_ip.to_string(), "198.51.100.65");
    assert!(state.generation > before);
}

#[test]
fn mtu_of_the_device_and_of_the_route() {
    let Some((pair, _watch, path)) = watched(None) else {
        return;
    };
    pair.near_ip("link set a0 mtu 1400");
    within_a_second("device MTU", || path.load().mtu == 1400);
    pair.near_ip("link set a0 mtu 1600");
    pair.near_ip("route replace 203.0.113.0/24 via 198.51.100.2 mtu 1300");
    within_a_second("route MTU", || path.load().mtu == 1300);
}

#[test]
fn a_device_that_goes_down_and_comes_back() {
    let Some((pair, _watch, path)) = watched(Some("a0")) else {
        return;
    };
    pair.near_ip("link set a0 down");
    within_a_second("down", || path.load().problem == Some(PathProblem::Down));
    assert!(path.load().ethernet().is_none());
    pair.near_ip("link set a0 up");
    // The kernel took the route away with the device.
    pair.near_ip("route replace 203.0.113.0/24 via 198.51.100.2");
    within_a_second("up again", || path.load().problem.is_none());
    assert_eq!(path.load().next_hop_mac, Some(FAR_MAC));
}

#[test]
fn a_lost_carrier() {
    let Some((pair, _watch, path)) = watched(None) else {
        return;
    };
    pair.far_ip("link set a1 down");
    within_a_second("no carrier", || path.load().problem.is_some());
    pair.far_ip("link set a1 up");
    within_a_second("carrier again", || path.load().problem.is_none());
}

#[test]
fn a_target_that_cannot_be_reached_and_then_can() {
    let Some((pair, _watch, path)) = watched(None) else {
        return;
    };
    pair.near_ip("route del 203.0.113.0/24");
    within_a_second("no route", || {
        path.load().problem == Some(PathProblem::NoRoute)
    });
    assert_eq!(path.load().ifindex, 0);
    // A next hop that nobody has: the route is there, the address is not.
    pair.near_ip("route add 203.0.113.0/24 via 198.51.100.9");
    within_a_second("no neighbour", || {
        path.load().problem == Some(PathProblem::NoNeighbour)
    });
    pair.far_ip("addr add 198.51.100.9/26 dev a1");
    // The kernel asks once a second.
    let start = Instant::now();
    while path.load().problem.is_some() {
        assert!(start.elapsed() < Duration::from_secs(3), "not asked again");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_device_that_is_made_anew() {
    let Some((pair, _watch, path)) = watched(Some("a0")) else {
        return;
    };
    let old = path.load().ifindex;
    pair.near_ip("link del a0");
    within_a_second("gone", || path.load().problem == Some(PathProblem::NoRoute));
    pair.near_ip(&format!(
        "link add a0 type veth peer name a1 netns {}",
        pair.far
    ));
    pair.far_ip("link set a1 address 02:00:00:00:00:a2");
    pair.far_ip("addr add 198.51.100.2/26 dev a1");
    pair.far_ip("link set a1 up");
    pair.near_ip("addr add 198.51.100.1/26 dev a0");
    pair.near_ip("link set a0 up");
    pair.near_ip("route add 203.0.113.0/24 via 198.51.100.2");
    within_a_second("back", || path.load().problem.is_none());
    assert_ne!(path.load().ifindex, old);
    assert_eq!(path.load().next_hop_mac, Some([2, 0, 0, 0, 0, 0xa2]));
}

#[test]
fn a_stale_address_is_confirmed_and_stays_usable() {
    let Some((pair, watch, path)) = watched(None) else {
        return;
    };
    let generation = path.load().generation;
    let before = watch
        .counters()
        .resolutions
        .load(std::sync::atomic::Ordering::Relaxed);
    // After the rate limit of the first question.
    std::thread::sleep(Duration::from_millis(1100));
    pair.near_ip("neigh replace 198.51.100.2 lladdr 02:00:00:00:00:a1 dev a0 nud stale");
    within_a_second("a question to the kernel", || {
        watch
            .counters()
            .resolutions
            .load(std::sync::atomic::Ordering::Relaxed)
            > before
    });
    assert_eq!(
        path.load().generation,
        generation,
        "nothing changed for senders"
    );
}

#[test]
fn stopping_is_quick() {
    let Some((_pair, watch, path)) = watched(None) else {
        return;
    };
    let start = Instant::now();
    watch.stop();
    assert!(start.elapsed() < Duration::from_millis(200));
    assert_eq!(path.load().problem, None, "the last state stays");
}
