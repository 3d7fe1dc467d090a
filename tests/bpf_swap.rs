//! Rules are swapped between two packets, never within one: while one thread swaps, another runs
//! packets, and each gets the verdict of one rule set, whole, with that set's generation.

#[path = "common/bpf_run.rs"]
mod bpf_run;
#[macro_use]
mod common;
#[path = "common/packets.rs"]
mod packets;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bpf_run::{assert_tap_balances, run_tc, Context, NO_OPINION};
use xtee::bpf::needs::Needs;
use xtee::bpf::tap::{Links, Tap};
use xtee::mirror::rules::{Action, Rule};
use xtee::mirror::tables::{compile, Tables};
use xtee::packet::link::LinkType;
use xtee::packet::Direction;
use xtee::source::ring::Ring;
use xtee::source::Frames;

const RING: u32 = 1 << 20;
/// Packets between two looks at the ring, which holds them all.
const BURST: u32 = 256;
const DURATION: Duration = Duration::from_secs(5);

fn rule(action: Action, port: u16, networks: &[&str]) -> Rule {
    let mut rule = Rule::any(action);
    rule.ports = vec![port..=port];
    rule.networks = networks
        .iter()
        .map(|text| text.parse().expect("a network"))
        .collect();
    rule
}

const OURS: [&str; 2] = ["198.51.100.0/24", "2001:db8::/32"];
const OTHERS: [&str; 2] = ["203.0.113.0/24", "2001:db9::/32"];

/// Mirrors the packets by rule 0.
fn mirroring() -> Tables {
    let rules = [
        rule(Action::Mirror, 1, &OURS),
        rule(Action::Skip, 2, &OTHERS),
    ];
    compile(&rules).expect("rules that compile")
}

/// Skips the packets by rule 3. The ports of one set with the networks of the other take no rule.
fn skipping() -> Tables {
    let rules = [
        rule(Action::Mirror, 2, &OTHERS),
        rule(Action::Mirror, 2, &OURS),
        rule(Action::Mirror, 1, &OTHERS),
        rule(Action::Skip, 1, &OURS),
    ];
    compile(&rules).expect("rules that compile")
}

#[derive(Debug, Default)]
struct Observed {
    packets: u64,
    copies: u64,
    generations: u64,
}

/// Runs packets until told to stop; every copy must be of a generation that mirrors.
fn run_packets(program: OwnedFd, ring: &mut Ring, stop: &AtomicBool) -> Observed {
    let frames = [
        packets::tcp4("198.51.100.1", 1, "198.51.100.2", 1),
        packets::tcp6("2001:db8::1", 1, "2001:db8::2", 1),
    ];
    let mut observed = Observed::default();
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        for frame in &frames {
            let output = run_tc(program.as_fd(), frame, Context::default(), BURST).expect("run");
            assert_eq!(output.verdict, NO_OPINION);
            observed.packets += u64::from(BURST);
        }
        loop {
            let count = ring.gather() as u32;
            for index in 0..count {
                let meta = ring.meta(index).expect("metadata");
                let of_generation = (meta.rule, meta.generation % 2);
                assert_eq!(
                    of_generation,
                    (0, 1),
                    "rule 0 of an odd generation mirrors: {meta:?}"
                );
                assert!(meta.generation >= last, "generations never go back");
                observed.generations += u64::from(meta.generation != last);
                last = meta.generation;
                assert!(frames.iter().any(|frame| ring.bytes(index) == frame));
            }
            observed.copies += u64::from(count);
            ring.release();
            if count == 0 {
                break;
            }
        }
    }
    observed
}

#[test]
fn a_packet_sees_one_rule_set_while_they_are_swapped() {
    require_root!();
    let links = Links::new("tap:t0", &[LinkType::Ethernet]);
    let mut tap = Tap::load(1, RING, &links, Needs::default()).expect("load");
    let sets = [skipping(), mirroring()];
    let mut generation = tap.publish(&sets[1], false).expect("publish");
    assert_eq!(generation % 2, 1, "odd generations mirror");
    let program = tap.program("xtee_ingress").expect("program");
    let program = program.try_clone_to_owned().expect("descriptor");
    let mut ring = Ring::new(tap.ring(0).expect("ring"), RING, 1024).expect("map");

    let stop = AtomicBool::new(false);
    let observed = std::thread::scope(|scope| {
        let runner = scope.spawn(|| run_packets(program, &mut ring, &stop));
        let end = Instant::now() + DURATION;
        while Instant::now() < end && !runner.is_finished() {
            let set = &sets[(generation + 1) as usize % 2];
            generation = tap.publish(set, false).expect("publish");
        }
        stop.store(true, Ordering::Relaxed);
        runner.join().expect("every packet right")
    });

    let counters = tap.counters().expect("counters");
    println!("{generation} swaps, {observed:?}");
    assert_tap_balances(&counters);
    assert_eq!(counters.seen, observed.packets);
    assert_eq!(counters.captured, observed.copies);
    assert_eq!(counters.dropped.iter().sum::<u64>(), 0);
    // One verdict or the other; anything else is a mixture of the two.
    assert_eq!(counters.rules[0], observed.copies);
    assert_eq!(counters.rules[3], observed.packets - observed.copies);
    assert!(generation > 50 && observed.generations > 20);
    assert!(observed.copies > 1000 && counters.rules[3] > 1000);
}

/// The direction is a program of its own; both see the swap.
#[test]
fn both_directions_follow_a_swap_at_once() {
    require_root!();
    let mut bench = bpf_run::TapBench::new();
    let frame = packets::tcp4("198.51.100.1", 1, "198.51.100.2", 1);
    for round in 0..20 {
        let action = if round % 2 == 0 {
            Action::Mirror
        } else {
            Action::Skip
        };
        bench.rules(&[rule(action, 1, &["198.51.100.0/24"])], None);
        for direction in [Direction::In, Direction::Out] {
            let seen = bench.run(direction, &frame);
            assert_eq!(seen.rule, Some(Some(0)));
            assert_eq!(seen.copy.is_some(), action == Action::Mirror);
        }
    }
}
