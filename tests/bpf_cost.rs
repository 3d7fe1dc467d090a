//! What the kernel programs cost: the verifier's work, and a packet's time as the rules grow.

#[path = "common/bpf_run.rs"]
mod bpf_run;
#[macro_use]
mod common;
#[path = "common/packets.rs"]
mod packets;

use bpf_run::{run_tc, run_xdp, verified_instructions, Context, SteerBench, TapBench};
use xtee::mirror::rules::{Action, Protocols, Rule};
use xtee::packet::link::LinkType;
use xtee::packet::Direction;

/// The kernel's limit is a million (BPF_COMPLEXITY_LIMIT_INSNS). Older verifiers prune less than this
/// one, so the programs stay far below. Today: 94,000 and 84,000.
const TAP_LIMIT: u32 = 120_000;
const STEER_LIMIT: u32 = 90_000;

const REPEAT: u32 = 200_000;

#[test]
fn the_verifier_has_little_to_do() {
    require_root!();
    let tap = TapBench::new();
    let ip = TapBench::on(LinkType::Ip, 1, 1 << 18);
    let steer = SteerBench::new(0);
    let counts = [
        ("xtee_ingress_ip", ip.program(Direction::In), TAP_LIMIT),
        ("xtee_egress_ip", ip.program(Direction::Out), TAP_LIMIT),
        ("xtee_ingress", tap.program(Direction::In), TAP_LIMIT),
        ("xtee_egress", tap.program(Direction::Out), TAP_LIMIT),
        (
            "xtee_steer",
            steer.steer.program().expect("program"),
            STEER_LIMIT,
        ),
    ];
    for (name, program, limit) in counts {
        let instructions = verified_instructions(program);
        println!("{name}: {instructions} instructions verified, limit {limit}");
        assert!((1..=limit).contains(&instructions), "{name}");
    }
}

/// Rules of which none takes the packet, with every field in use.
fn rules(count: usize) -> Vec<Rule> {
    (0..count as u16)
        .map(|number| {
            let mut rule = Rule::any(Action::Mirror);
            rule.protocol = Some(Protocols::one(if number % 2 == 0 { 6 } else { 17 }));
            rule.ports = vec![1000 + number..=1000 + number];
            let network = format!("203.0.113.{}", number % 256);
            rule.networks = vec![network.parse().expect("a network")];
            rule
        })
        .collect()
}

#[test]
fn a_packet_costs_the_same_with_one_rule_and_with_sixty_four() {
    require_root!();
    let mut tap = TapBench::new();
    let mut steer = SteerBench::new(0);
    let frame = packets::udp4("198.51.100.1", 40000, "198.51.100.2", 53, &[0; 22]);
    let mut nanoseconds = Vec::new();
    for count in [1, 8, 64] {
        let rules = rules(count);
        tap.rules(&rules, None);
        steer.rules(&rules, None);
        // The least of three: whatever else ran only adds.
        let least = |run: &dyn Fn() -> u32| (0..3).map(|_| run()).min().unwrap_or(u32::MAX);
        let ingress = least(&|| {
            let program = tap.program(Direction::In);
            let output = run_tc(program, &frame, Context::default(), REPEAT);
            output.expect("run").duration
        });
        let egress = least(&|| {
            let program = tap.program(Direction::Out);
            let output = run_tc(program, &frame, Context::default(), REPEAT);
            output.expect("run").duration
        });
        let xdp = least(&|| {
            let program = steer.steer.program().expect("program");
            run_xdp(program, &frame, REPEAT).expect("run").duration
        });
        println!("{count:2} rules, none matches: ingress {ingress} ns, egress {egress} ns, steer {xdp} ns a packet");
        nanoseconds.push([ingress, egress, xdp]);
    }
    assert_eq!(tap.added().matched, 0);
    let (one, most) = (nanoseconds[0], nanoseconds[2]);
    for (one, most) in one.into_iter().zip(most) {
        assert!(most <= one.max(10) * 2, "{one} ns grew to {most} ns");
    }
}

#[test]
fn publishing_is_quick() {
    require_root!();
    let mut tap = TapBench::new();
    for (name, rules) in [
        ("no networks", vec![Rule::any(Action::Skip)]),
        ("networks", rules(64)),
    ] {
        let start = std::time::Instant::now();
        let count = 20;
        for _ in 0..count {
            tap.rules(&rules, None);
        }
        let each = start.elapsed() / count;
        println!("publish, {name}: {each:?}");
        assert!(each < std::time::Duration::from_secs(1));
    }
}
