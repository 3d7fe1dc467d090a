//! Devices without an Ethernet header: the copy gets a synthetic one, and all else is as on Ethernet.
//!
//! BPF_PROG_TEST_RUN gives the program a frame with an Ethernet header and the network header behind it:
//! what a packet looks like that a GRE device received, only with another sort of outer header.

use xtee::mirror::rules::Action;
use xtee::mirror::slice::Slice;
use xtee::packet::flow::hash_frame;
use xtee::packet::link::{synthetic_macs, LinkType};
use xtee::packet::Direction;

use crate::bpf_run::{facts, reference, TapBench, SOURCE};
use crate::packets::{tagged, tcp4, udp4};
use crate::random::Random;
use crate::random_rules;
use crate::require_root;

fn bench() -> TapBench {
    TapBench::on(LinkType::Ip, 1, 1 << 18)
}

/// The frame with the addresses that its copy has to have.
fn synthetic(frame: &[u8], direction: Direction) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..12].copy_from_slice(&synthetic_macs(SOURCE)[direction as usize]);
    frame
}

#[test]
fn copies_have_a_synthetic_header_and_the_hash_of_the_packet_plane() {
    require_root!();
    let mut tap = bench();
    tap.rules(&[], None);
    let mut random = Random::new(7);
    let mut number = 0;
    for _ in 0..3000 {
        let packet = random_rules::packet(&mut random, &[number]);
        let direction = random_rules::direction(&mut random);
        // Tags do not occur on such a device; neither does what is not IP.
        if !matches!(packet.frame[12..14], [8, 0] | [0x86, 0xdd]) {
            continue;
        }
        number += 1;
        let copy = tap.run(direction, &packet.frame).copy.expect("copied");
        assert_eq!(copy.bytes, synthetic(&packet.frame, direction));
        assert_eq!(copy.meta.wire_length as usize, packet.frame.len());
        assert_eq!(copy.meta.flow_hash, hash_frame(&copy.bytes));
        assert_eq!(copy.meta.flow_hash, hash_frame(&packet.frame));
    }
    assert!(number > 1000, "{number}");
}

#[test]
fn rules_decide_as_on_ethernet() {
    require_root!();
    let mut random = Random::new(8);
    for _ in 0..20 {
        let mut tap = bench();
        // Marks are learned from packet to packet: not here.
        let mut rules = random_rules::rules(&mut random);
        rules.retain(|rule| rule.mark.is_none());
        // What a rule leaves out of what it takes is another matter.
        for rule in &mut rules {
            rule.slice = Slice::WHOLE;
        }
        let default = random_rules::default(&mut random);
        tap.rules(&rules, default);
        for _ in 0..100 {
            let frame = match random.next() % 2 {
                0 => tcp4("198.51.100.1", random.next() as u16, "203.0.113.9", 443),
                _ => udp4(
                    "198.51.100.1",
                    53,
                    "198.51.100.2",
                    random.next() as u16,
                    &[2; 20],
                ),
            };
            let direction = random_rules::direction(&mut random);
            let seen = tap.run(direction, &frame);
            let wanted = reference(&rules, default, &facts(&frame, direction, 0));
            let mirrors = wanted.action == Action::Mirror;
            assert_eq!(seen.copy.is_some(), mirrors, "{rules:?}");
            assert_eq!(seen.rule, Some(wanted.rule));
        }
    }
}

/// Around the borders of the record's size classes, which count the synthetic header.
#[test]
fn every_length_is_copied_whole() {
    require_root!();
    let mut tap = bench();
    tap.rules(&[], None);
    let borders = [80, 128, 256, 512, 1024, 1536, 3072];
    for length in borders.iter().flat_map(|border| border - 15..=border + 15) {
        let mut frame = udp4("198.51.100.1", 1, "198.51.100.2", 2, &[0; 3600]);
        for (at, byte) in frame.iter_mut().enumerate().skip(42) {
            *byte = at as u8;
        }
        frame.truncate(length);
        let copy = tap.run(Direction::Out, &frame).copy.expect("copied");
        assert_eq!(copy.bytes, synthetic(&frame, Direction::Out), "{length}");
    }
}

/// What is not IP keeps the kernel's protocol as its ethertype.
#[test]
fn other_protocols_keep_their_ethertype() {
    require_root!();
    let mut tap = bench();
    tap.rules(&[], None);
    let frame = tagged(&[], 0x8847, &[0xfe; 60]);
    let copy = tap.run(Direction::In, &frame).copy.expect("copied");
    assert_eq!(copy.bytes, synthetic(&frame, Direction::In));
    assert_eq!(copy.meta.flow_hash, hash_frame(&copy.bytes));
}
