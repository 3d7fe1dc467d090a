//! The hash against values from the definition written in another language, and its symmetry.

use proptest::prelude::*;

use super::super::testing::{any_spec, IpSpec, Spec};
use super::*;

fn swap_ip(ip: &mut IpSpec) {
    match ip {
        IpSpec::V4 {
            source,
            destination,
            ..
        } => std::mem::swap(source, destination),
        IpSpec::V6 {
            source,
            destination,
            ..
        } => std::mem::swap(source, destination),
    }
}

fn reversed(spec: &Spec) -> Spec {
    let mut back = spec.clone();
    back.ports = (spec.ports.1, spec.ports.0);
    swap_ip(&mut back.ip);
    back
}

/// Values computed from the contract's definition by a script, not by this code.
#[test]
fn known_values() {
    let v4 = |text: &str, port| ip_endpoint(text.parse().unwrap(), port);
    let tcp = combine(v4("198.51.100.1", 40000), v4("203.0.113.9", 443), 6);
    assert_eq!(tcp, 0x57a3_a554);
    let dns = combine(v4("2001:db8::1", 5353), v4("2001:db8::2", 53), 17);
    assert_eq!(dns, 0x14b8_22cc);
}

fn datagram(fragment: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0]);
    frame[20..22].copy_from_slice(&fragment.to_be_bytes());
    frame.extend([198, 51, 100, 1, 203, 0, 113, 9, 0, 53, 0, 99, 0, 8, 0, 0]);
    frame
}

#[test]
fn all_fragments_hash_without_ports() {
    assert_eq!(hash_frame(&datagram(0x2000)), 0x91c2_7799);
    assert_eq!(hash_frame(&datagram(0x0010)), 0x91c2_7799);
    assert_ne!(hash_frame(&datagram(0)), 0x91c2_7799);
}

#[test]
fn what_is_not_ip_hashes_by_its_addresses() {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 2, 8, 6]);
    frame.extend([0; 28]);
    assert_eq!(hash_frame(&frame), 0xf272_473a);
    assert_eq!(hash_frame(&frame[..13]), 0);
}

proptest! {
    #[test]
    fn equal_in_both_directions(mut spec in any_spec(20)) {
        spec.tunnel = None;
        let there = hash_frame(&spec.build().bytes);
        let back = hash_frame(&reversed(&spec).build().bytes);
        prop_assert_eq!(there, back);
    }

    #[test]
    fn payload_and_tags_do_not_matter(mut spec in any_spec(20), payload: [u8; 9]) {
        spec.tunnel = None;
        let before = hash_frame(&spec.build().bytes);
        spec.payload = payload.to_vec();
        spec.tags.clear();
        prop_assert_eq!(hash_frame(&spec.build().bytes), before);
    }
}

/// A hash is no key: two flows may share one. But the ports of one client do tell its flows apart.
#[test]
fn ports_matter() {
    let server = ip_endpoint("198.51.100.1".parse().unwrap(), 443);
    let client = "203.0.113.9".parse().unwrap();
    let hashes: std::collections::HashSet<u32> = (32768..33768)
        .map(|port| combine(ip_endpoint(client, port), server, 6))
        .collect();
    assert!(hashes.len() > 900, "{} of 1000", hashes.len());
}

/// 64 outer source ports, 100 000 flows of one server: no port has twice or half its share.
#[test]
fn flows_spread_over_the_ports() {
    let mut counts = [0u32; 64];
    let server = ip_endpoint("198.51.100.1".parse().unwrap(), 443);
    for flow in 0..100_000u32 {
        let address = IpAddr::from((0xcb00_7100 + (flow & 0xff)).to_be_bytes());
        let client = ip_endpoint(address, 32768 + (flow >> 8) as u16);
        counts[(combine(client, server, 6) % 64) as usize] += 1;
    }
    assert!(counts.iter().all(|&count| (781..3125).contains(&count)));
}
