//! The record's flow hash is the packet plane's, to the bit, and the same in both directions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xtee::packet::flow::hash_frame;
use xtee::packet::Direction;

use crate::bpf_run::TapBench;
use crate::packets::{ip_frame, tagged, MAC_A, MAC_B};
use crate::random::Random;
use crate::random_rules::{self, Part};
use crate::require_root;

const PACKETS: usize = 6000;

#[test]
fn records_have_the_hash_of_the_packet_plane() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let mut random = Random::new(1);
    let mut distinct = std::collections::HashSet::new();
    for number in 0..PACKETS {
        let packet = random_rules::packet(&mut random, &[number as u16]);
        let direction = random_rules::direction(&mut random);
        let copy = tap.run(direction, &packet.frame).copy.expect("copied");
        assert_eq!(
            copy.meta.flow_hash,
            hash_frame(&packet.frame),
            "{packet:02x?}"
        );
        if packet.part == Part::Whole {
            distinct.insert(copy.meta.flow_hash);
        }
    }
    assert!(distinct.len() > PACKETS / 4, "{} hashes", distinct.len());
}

#[test]
fn both_directions_have_one_hash() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let mut random = Random::new(2);
    for number in 0..2000 {
        let address = |random: &mut Random| -> IpAddr {
            if number % 2 == 0 {
                Ipv4Addr::from_bits(random.next() as u32).into()
            } else {
                Ipv6Addr::from_bits(u128::from(random.next()) << 64 | u128::from(random.next()))
                    .into()
            }
        };
        let (a, b) = (address(&mut random), address(&mut random));
        let protocol = *random.pick(&[1, 6, 17, 33, 47, 58, 132, 136]);
        let ports = random.next() as u32;
        let payload = |ports: u32| [&ports.to_be_bytes()[..], &[0; 16]].concat();
        let there = ip_frame(a, b, protocol, &payload(ports));
        let back = ip_frame(b, a, protocol, &payload(ports.rotate_left(16)));
        let hash = |tap: &mut TapBench, direction, frame: &[u8]| {
            tap.run(direction, frame)
                .copy
                .expect("copied")
                .meta
                .flow_hash
        };
        let (out, in_) = (
            hash(&mut tap, Direction::Out, &there),
            hash(&mut tap, Direction::In, &back),
        );
        assert_eq!(out, in_, "{a} {b} {protocol} {ports:08x}");
        assert_eq!(out, hash_frame(&there));
    }
}

/// What is not IP hashes by its MAC addresses and ethertype, tags left aside.
#[test]
fn frames_that_are_not_ip() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[], None);
    let mut hashes = Vec::new();
    for (tags, ethertype) in [
        (vec![], 0x0806),
        (vec![(0x8100, 7)], 0x0806),
        (vec![], 0x88cc),
        (vec![], 0x0026),
    ] {
        let there = tagged(&tags, ethertype, &[0; 46]);
        let mut back = there.clone();
        back[..6].copy_from_slice(&MAC_B);
        back[6..12].copy_from_slice(&MAC_A);
        for frame in [&there, &back] {
            let copy = tap.run(Direction::In, frame).copy.expect("copied");
            assert_eq!(copy.meta.flow_hash, hash_frame(frame));
            hashes.push(copy.meta.flow_hash);
        }
    }
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(hashes[0], hashes[2], "the tag is no part of it");
    hashes.dedup();
    assert_eq!(hashes.len(), 3);
}
