//! Our own copies are never copied again; everything else that goes to the collector is.

use std::ops::RangeInclusive;

use xtee::bpf::own_flows::own_flows;
use xtee::bpf::skel::OwnFlow;
use xtee::packet::encap::{Inner, Tunnel};
use xtee::packet::Direction;

use crate::bpf_run::{Context, TapBench};
use crate::packets::{gre, tcp4, udp4, vxlan, UDP, V4};
use crate::require_root;

const US: &str = "198.51.100.1";
const COLLECTOR: &str = "203.0.113.2";
const BRIDGED: u16 = 0x6558;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;

const PORTS: RangeInclusive<u16> = 61000..=61063;

fn flows(destination: &str, tunnel: Tunnel) -> Vec<OwnFlow> {
    own_flows(destination.parse().expect("an address"), &tunnel, PORTS)
}

fn vxlan_flow() -> OwnFlow {
    flows(COLLECTOR, Tunnel::Vxlan { vni: 7, port: 4789 })[0]
}

fn gre_flow(destination: &str, key: Option<u32>) -> OwnFlow {
    let tunnel = Tunnel::Gre {
        key,
        sequence: false,
        inner: Inner::Ethernet,
    };
    flows(destination, tunnel)[0]
}

/// For tests about something else that want the guard at work.
pub fn set_some_flows(tap: &TapBench) {
    let flows = [vxlan_flow(), gre_flow(COLLECTOR, Some(7))];
    tap.tap.set_own_flows(&flows).expect("two fit");
}

fn inner() -> Vec<u8> {
    tcp4("192.0.2.1", 1, "192.0.2.2", 2)
}

fn to_collector(payload: &[u8], protocol: u8) -> Vec<u8> {
    V4::new(US, COLLECTOR, protocol).frame(payload)
}

fn assert_own(tap: &mut TapBench, frame: &[u8]) {
    let seen = tap.run(Direction::Out, frame);
    assert_eq!(
        (seen.added.own_copies, seen.added.seen),
        (1, 0),
        "{frame:02x?}"
    );
    assert!(seen.copy.is_none());
    // The guard is for what we send. What comes in is somebody else's and is seen.
    let seen = tap.run(Direction::In, frame);
    assert_eq!(
        (seen.added.own_copies, seen.added.captured),
        (0, 1),
        "{frame:02x?}"
    );
}

fn assert_visible(tap: &mut TapBench, frame: &[u8]) {
    for direction in [Direction::Out, Direction::In] {
        let seen = tap.run(direction, frame);
        assert_eq!(
            (seen.added.own_copies, seen.added.captured),
            (0, 1),
            "{frame:02x?}"
        );
    }
}

#[test]
fn vxlan_copies_and_their_neighbours() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let own = |port| to_collector(&vxlan(port, 4789, 7, &inner()), UDP);
    assert_visible(&mut tap, &own(61000));
    tap.tap.set_own_flows(&[vxlan_flow()]).expect("one fits");
    for port in [61000, 61001, 61062, 61063] {
        assert_own(&mut tap, &own(port));
    }
    assert_own(
        &mut tap,
        &V4 {
            options: 2,
            ..V4::new(US, COLLECTOR, UDP)
        }
        .frame(&vxlan(61000, 4789, 7, &inner())),
    );
    for port in [60999, 61064, 0, 65535, 4789] {
        assert_visible(&mut tap, &own(port));
    }
    let mut flagged = vxlan(61000, 4789, 7, &inner());
    flagged[8] = 0x88;
    for payload in [
        vxlan(61000, 4789, 6, &inner()),
        vxlan(61000, 4789, 0x700, &inner()),
        vxlan(61000, 4789, 0, &inner()),
        vxlan(61000, 4790, 7, &inner()),
        vxlan(61000, 8472, 7, &inner()),
        flagged,
        // Too short for a VXLAN header.
        vxlan(61000, 4789, 7, &[])[..15].to_vec(),
    ] {
        assert_visible(&mut tap, &to_collector(&payload, UDP));
    }
    assert_visible(&mut tap, &tcp4(US, 61000, COLLECTOR, 22));
    assert_visible(&mut tap, &tcp4(US, 61000, COLLECTOR, 4789));
    assert_visible(&mut tap, &udp4(US, 61000, COLLECTOR, 53, b"query"));
    assert_visible(
        &mut tap,
        &V4::new(US, "203.0.113.3", UDP).frame(&vxlan(61000, 4789, 7, &inner())),
    );
    // What the collector sends back to us is not ours.
    assert_visible(
        &mut tap,
        &V4::new(COLLECTOR, US, UDP).frame(&vxlan(61000, 4789, 7, &inner())),
    );
}

#[test]
fn gre_copies_with_a_key_and_their_neighbours() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    tap.tap
        .set_own_flows(&[gre_flow(COLLECTOR, Some(7))])
        .expect("one fits");
    assert_own(
        &mut tap,
        &to_collector(&gre(KEY, BRIDGED, &[7], &inner()), 47),
    );
    assert_own(
        &mut tap,
        &to_collector(&gre(KEY | SEQUENCE, BRIDGED, &[7, 99], &inner()), 47),
    );
    for payload in [
        gre(KEY, BRIDGED, &[8], &inner()),
        gre(KEY, 0x0800, &[7], &inner()[14..]),
        gre(0, BRIDGED, &[], &inner()),
        gre(SEQUENCE, BRIDGED, &[7], &inner()),
        // With a checksum, which stands where the key would; of another version.
        gre(KEY | 0x8000, BRIDGED, &[7, 7], &inner()),
        gre(KEY | 1, BRIDGED, &[7], &inner()),
        gre(KEY, BRIDGED, &[], &[]),
        vec![0x20],
    ] {
        assert_visible(&mut tap, &to_collector(&payload, 47));
    }
    assert_visible(
        &mut tap,
        &V4::new(US, "203.0.113.3", 47).frame(&gre(KEY, BRIDGED, &[7], &inner())),
    );
    assert_visible(&mut tap, &tcp4(US, 40000, COLLECTOR, 22));
}

#[test]
fn gre_copies_without_a_key_and_their_neighbours() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    tap.tap
        .set_own_flows(&[gre_flow(COLLECTOR, None)])
        .expect("one fits");
    assert_own(&mut tap, &to_collector(&gre(0, BRIDGED, &[], &inner()), 47));
    assert_own(
        &mut tap,
        &to_collector(&gre(SEQUENCE, BRIDGED, &[99], &inner()), 47),
    );
    assert_visible(
        &mut tap,
        &to_collector(&gre(KEY, BRIDGED, &[0], &inner()), 47),
    );
    assert_visible(
        &mut tap,
        &to_collector(&gre(0, 0x86dd, &[], &[0x60; 40]), 47),
    );
}

#[test]
fn all_sixteen_flows_are_looked_at_and_no_more() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let name = |number: usize| format!("203.0.113.{}", 10 + number);
    let flows: Vec<_> = (0..17)
        .map(|number| gre_flow(&name(number), Some(number as u32)))
        .collect();
    assert!(
        tap.tap.set_own_flows(&flows).is_err(),
        "seventeen do not fit"
    );
    tap.tap.set_own_flows(&flows[..16]).expect("sixteen fit");
    let frame = |number: usize, key| {
        V4::new(US, &name(number), 47).frame(&gre(KEY, BRIDGED, &[key], &inner()))
    };
    for number in 0..16 {
        assert_own(&mut tap, &frame(number, number as u32));
        assert_visible(&mut tap, &frame(number, 100));
    }
    assert_visible(&mut tap, &frame(16, 16));
    tap.tap.set_own_flows(&flows[..1]).expect("one fits");
    assert_own(&mut tap, &frame(0, 0));
    assert_visible(&mut tap, &frame(1, 1));
    tap.tap.set_own_flows(&[]).expect("none fits");
    assert_visible(&mut tap, &frame(0, 0));
}

/// Our UDP_SEGMENT sends pass the hook as one super-packet, counted as what it is on the wire.
#[test]
fn own_super_packets_count_as_their_segments() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    set_some_flows(&tap);
    let frame = to_collector(&vxlan(61000, 4789, 7, &[0; 992]), UDP);
    let context = Context {
        gso_size: 250,
        gso_segs: 4,
        ..Context::default()
    };
    let seen = tap.run_with(Direction::Out, &frame, context);
    assert_eq!((seen.added.own_copies, seen.added.seen), (4, 0));
}
