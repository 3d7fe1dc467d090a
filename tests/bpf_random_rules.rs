//! The kernel programs against the obvious matcher: 10,000 random rule sets, swapped in one running
//! program, and a few packets on each.
//!
//! What the programs remember between packets (marks, first fragments) has a model here.

#[path = "common/bpf_run.rs"]
mod bpf_run;
#[macro_use]
mod common;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/random.rs"]
mod random;
#[path = "common/random_rules.rs"]
mod random_rules;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use bpf_run::{counted_rule, dropped, reference, Context, Copy, SteerBench, TapBench, ALL};
use random::Random;
use random_rules::{Packet, Part, MARKS};
use xtee::mirror::reference::sampled_out;
use xtee::mirror::rules::{Action, PacketFacts, Ports, Rule, Verdict};
use xtee::packet::{cut, flow, Direction, Packets};
use xtee::reason::Reason;

const RULE_SETS: usize = 10_000;
const PACKETS: usize = 6;
/// Every so many rule sets go to the steering program, too.
const STEER_EVERY: usize = 8;
/// A swap waits some 10 ms for the kernel, doing nothing. Threads wait at the same time.
const THREADS: usize = 6;

/// Addresses, identification, and the protocol where IPv4 has it in the key.
type FragmentKey = (IpAddr, IpAddr, u16, Option<u8>);
/// The two ends in order, and the protocol.
type FlowKey = ((IpAddr, u16), (IpAddr, u16), u8);

/// What a program remembers.
#[derive(Default)]
struct Memory {
    fragments: HashMap<FragmentKey, (Option<u8>, Ports)>,
    marks: HashMap<FlowKey, u32>,
}

impl Memory {
    /// The facts that the rules are asked with; learns from the packet.
    fn facts(
        &mut self,
        packet: &Packet,
        direction: Direction,
        mark: u32,
        rules: &[Rule],
    ) -> PacketFacts {
        let mut facts = PacketFacts {
            direction,
            protocol: packet.protocol,
            source: packet.addresses.map(|(source, _)| source),
            destination: packet.addresses.map(|(_, destination)| destination),
            ports: packet.ports,
            mark,
        };
        let Some((source, destination)) = packet.addresses else {
            return facts;
        };
        let key = |id| {
            let protocol = packet.protocol.filter(|_| source.is_ipv4());
            (source, destination, id, protocol)
        };
        match packet.part {
            Part::Whole => {}
            Part::First(id) => {
                self.fragments
                    .insert(key(id), (packet.protocol, packet.ports));
            }
            Part::Later(id) => {
                if let Some(&(protocol, ports)) = self.fragments.get(&key(id)) {
                    (facts.protocol, facts.ports) = (protocol, ports);
                }
            }
        }
        self.follow_mark(&mut facts, rules);
        facts
    }

    fn follow_mark(&mut self, facts: &mut PacketFacts, rules: &[Rule]) {
        let (Some(source), Some(destination), Some(protocol)) =
            (facts.source, facts.destination, facts.protocol)
        else {
            return;
        };
        // Without a rule on marks, none is learned and none is asked for.
        if rules.iter().all(|rule| rule.mark.is_none()) {
            return;
        }
        let (from, to) = match facts.ports {
            Ports::Known(from, to) => (from, to),
            Ports::None | Ports::Unknown => (0, 0),
        };
        let (a, b) = ((source, from), (destination, to));
        let key = (a.min(b), a.max(b), protocol);
        let wanted = |rule: &Rule| {
            rule.mark
                .is_some_and(|(value, mask)| facts.mark & mask == value)
        };
        match facts.direction {
            Direction::Out if facts.mark != 0 && rules.iter().any(wanted) => {
                self.marks.insert(key, facts.mark);
            }
            Direction::In if facts.mark == 0 => {
                facts.mark = self.marks.get(&key).copied().unwrap_or(0);
            }
            _ => {}
        }
    }
}

/// How often each kind of verdict came up: a test that never sees one proves nothing about it.
#[derive(Debug, Default)]
struct Kinds {
    first_rule: usize,
    later_rule: usize,
    default: usize,
    mirrored: usize,
    guessed: usize,
    learned_mark: usize,
    sampled_out: usize,
    sliced: usize,
    steered: usize,
}

impl Kinds {
    fn count(&mut self, verdict: &Verdict, learned: bool) {
        match verdict.rule {
            None => self.default += 1,
            Some(0) => self.first_rule += 1,
            Some(_) => self.later_rule += 1,
        }
        self.mirrored += usize::from(verdict.action == Action::Mirror);
        self.guessed += usize::from(verdict.unknown_ports_copied);
        self.learned_mark += usize::from(learned);
    }

    fn add(&mut self, other: &Kinds) {
        self.first_rule += other.first_rule;
        self.later_rule += other.later_rule;
        self.default += other.default;
        self.mirrored += other.mirrored;
        self.guessed += other.guessed;
        self.learned_mark += other.learned_mark;
        self.sampled_out += other.sampled_out;
        self.sliced += other.sliced;
        self.steered += other.steered;
    }
}

fn check(
    what: &str,
    added: &xtee::bpf::skel::Counters,
    expected: &Verdict,
    case: &dyn Fn() -> String,
) {
    let mirrored = u64::from(expected.action == Action::Mirror);
    assert_eq!(
        counted_rule(added),
        Some(expected.rule),
        "{what}: {}",
        case()
    );
    assert_eq!(added.matched, mirrored, "{what}: {}", case());
    let guessed = u64::from(expected.unknown_ports_copied);
    assert_eq!(added.unknown_fragments, guessed, "{what}: {}", case());
}

/// What the rule that took a packet copies of it.
fn slice_of(rules: &[Rule], expected: &Verdict, facts: &PacketFacts, frame: &[u8]) -> (bool, u32) {
    match expected.rule {
        Some(number) if expected.action == Action::Mirror => {
            let rule = &rules[usize::from(number)];
            let left_out = sampled_out(rule, facts, flow::hash_frame(frame));
            (left_out, rule.slice.snaplen)
        }
        _ => (false, 0),
    }
}

/// The copy holds what the worker needs, and is no longer than the snaplen once it is cut.
fn check_copy(copy: &Copy, frame: &[u8], snaplen: u32, case: &dyn Fn() -> String) -> bool {
    assert_eq!(copy.meta.snaplen, snaplen, "{}", case());
    let wanted = match snaplen {
        0 => frame.len(),
        snaplen => frame.len().min(snaplen as usize),
    };
    assert!(copy.bytes.len() >= wanted && frame.starts_with(&copy.bytes));
    assert_eq!(copy.meta.wire_length as usize, frame.len(), "{}", case());
    let mut packets = Packets::default();
    assert_eq!(cut(&copy.meta, &copy.bytes, 0, &mut packets), Ok(1));
    assert_eq!(packets.refs()[0].length(), wanted, "{}", case());
    assert_eq!(packets.sliced() != 0, wanted < frame.len(), "{}", case());
    wanted < frame.len()
}

/// Runs `sets` rule sets on one tap and one steering program.
fn compare(seed: u64, sets: usize) -> Kinds {
    let mut random = Random::new(seed);
    let (mut tap, mut steer) = (TapBench::new(), SteerBench::with_needs(0, ALL));
    let (mut tap_memory, mut steer_memory) = (Memory::default(), Memory::default());
    let mut kinds = Kinds::default();
    for number in 0..sets {
        let rules = random_rules::rules(&mut random);
        let default = random_rules::default(&mut random);
        let steered = number % STEER_EVERY == 0;
        tap.rules(&rules, default);
        if steered {
            steer.rules(&rules, default);
        }
        // New identifications: what an earlier round taught has its lifetime in real time.
        let base = number as u16 * 2;
        tap_memory.fragments.clear();
        steer_memory.fragments.clear();
        for _ in 0..PACKETS {
            let packet = random_rules::packet(&mut random, &[base, base + 1]);
            let direction = random_rules::direction(&mut random);
            let mark = if random.chance(50) {
                *random.pick(&MARKS)
            } else {
                0
            };
            let facts = tap_memory.facts(&packet, direction, mark, &rules);
            let expected = reference(&rules, default, &facts);
            let context = Context {
                mark,
                ..Context::default()
            };
            let seen = tap.run_with(direction, &packet.frame, context);
            let case = || {
                format!("seed {seed}, set {number}\n{rules:#?}\ndefault {default:?}\n{packet:02x?}\n{facts:?}")
            };
            check("tap", &seen.added, &expected, &case);
            kinds.count(&expected, facts.mark != mark);
            let (left_out, snaplen) = slice_of(&rules, &expected, &facts, &packet.frame);
            assert_eq!(
                seen.dropped(Reason::Sampled),
                u64::from(left_out),
                "{}",
                case()
            );
            kinds.sampled_out += usize::from(left_out);
            if let Some(copy) = &seen.copy {
                let sliced = check_copy(copy, &packet.frame, snaplen, &case);
                kinds.sliced += usize::from(sliced);
            }
            if steered {
                let facts = steer_memory.facts(&packet, Direction::In, 0, &rules);
                let expected = reference(&rules, default, &facts);
                let (_, added) = steer.run(&packet.frame);
                check("steer", &added, &expected, &case);
                let (left_out, _) = slice_of(&rules, &expected, &facts, &packet.frame);
                assert_eq!(
                    dropped(&added, Reason::Sampled),
                    u64::from(left_out),
                    "{}",
                    case()
                );
                kinds.steered += 1;
            }
        }
    }
    kinds
}

#[test]
fn kernel_programs_agree_with_the_reference_on_random_rules() {
    require_root!();
    let start = Instant::now();
    let mut kinds = Kinds::default();
    std::thread::scope(|scope| {
        let share = RULE_SETS.div_ceil(THREADS);
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|seed| scope.spawn(move || compare(seed, share)))
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(share) => kinds.add(&share),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    println!(
        "{RULE_SETS} rule sets, {} packets in {:?}: {kinds:?}",
        RULE_SETS * PACKETS,
        start.elapsed()
    );
    for count in [
        kinds.first_rule,
        kinds.later_rule,
        kinds.default,
        kinds.mirrored,
        kinds.guessed,
        kinds.learned_mark,
        kinds.sampled_out,
        kinds.sliced,
        kinds.steered,
    ] {
        assert!(count > 200, "{kinds:?}");
    }
}
