//! Runs the kernel programs on packets of our making with BPF_PROG_TEST_RUN: nothing is attached, and
//! no interface is involved.
//!
//! Every run checks what holds always: the original is untouched, the program has no opinion (tc) or
//! one of two (XDP), one rule counter moves, and the balance is exact.
#![allow(dead_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use xtee::bpf::needs::Needs;
use xtee::bpf::skel::Counters;
use xtee::bpf::steer::Steer;
use xtee::bpf::tap::{Links, Tap};
use xtee::mirror::reference;
use xtee::mirror::rules::{Action, PacketFacts, Rule, Verdict};
use xtee::mirror::tables::compile_with_default;
use xtee::packet::link::LinkType;
use xtee::packet::{Direction, FrameMeta};
use xtee::reason::Reason;
use xtee::source::ring::Ring;
use xtee::source::Frames;

/// `TC_ACT_UNSPEC`, equal to `TCX_NEXT`: no opinion.
pub const NO_OPINION: i32 = -1;
pub const XDP_DROP: i32 = 1;
pub const XDP_PASS: i32 = 2;
pub const XDP_REDIRECT: i32 = 4;

/// Everything that a rule can ask for; a span's frames then come out with a note in front.
pub const ALL: Needs = Needs {
    cutoff: true,
    snaplen: true,
};

// Words of `struct __sk_buff` (linux/bpf.h), which libbpf-sys does not offer.
const SKB_WORDS: usize = 48;
const SKB_MARK: usize = 2;
const SKB_GSO_SEGS: usize = 41;
const SKB_GSO_SIZE: usize = 44;

/// Larger than any frame that BPF_PROG_TEST_RUN takes.
const OUTPUT: usize = 8192;

/// What the kernel would say of a frame besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    pub mark: u32,
    pub gso_size: u32,
    pub gso_segs: u32,
}

/// What a run gave.
#[derive(Debug)]
pub struct Output {
    pub verdict: i32,
    /// The frame as the program left it.
    pub bytes: Vec<u8>,
    /// Nanoseconds a run, the mean of all.
    pub duration: u32,
}

/// Runs a tc program `repeat` times on one frame.
pub fn run_tc(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: Context,
    repeat: u32,
) -> io::Result<Output> {
    let mut skb = [0u32; SKB_WORDS];
    skb[SKB_MARK] = context.mark;
    skb[SKB_GSO_SEGS] = context.gso_segs;
    skb[SKB_GSO_SIZE] = context.gso_size;
    run(program, frame, &skb, repeat)
}

/// Runs an XDP program `repeat` times on one frame, as if it came from queue 0.
pub fn run_xdp(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Output> {
    run(program, frame, &[], repeat)
}

fn run(program: BorrowedFd<'_>, frame: &[u8], context: &[u32], repeat: u32) -> io::Result<Output> {
    let mut bytes = vec![0; OUTPUT];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        data_out: bytes.as_mut_ptr().cast(),
        data_size_out: bytes.len() as u32,
        ctx_in: if context.is_empty() {
            std::ptr::null()
        } else {
            context.as_ptr().cast()
        },
        ctx_size_in: size_of_val(context) as u32,
        repeat: repeat as i32,
        ..libbpf_sys::bpf_test_run_opts::default()
    };
    // SAFETY: every pointer in the options is to a buffer that lives on, of the size given beside it.
    let result =
        unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    bytes.truncate(options.data_size_out as usize);
    Ok(Output {
        verdict: options.retval as i32,
        bytes,
        duration: options.duration,
    })
}

/// Instructions that the verifier looked at to prove a program.
pub fn verified_instructions(program: BorrowedFd<'_>) -> u32 {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: the structure is as large as `size` says.
    let result = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(
            program.as_raw_fd(),
            &raw mut info,
            std::ptr::from_mut(&mut size),
        )
    };
    assert_eq!(result, 0, "program info: {}", io::Error::last_os_error());
    info.verified_insns
}

/// What one run added to the counters.
pub fn added(before: &Counters, after: &Counters) -> Counters {
    let mut added = *after;
    added.seen -= before.seen;
    added.unmatched -= before.unmatched;
    added.matched -= before.matched;
    added.captured -= before.captured;
    added.own_copies -= before.own_copies;
    added.unknown_fragments -= before.unknown_fragments;
    for (now, before) in added.dropped.iter_mut().zip(before.dropped) {
        *now -= before;
    }
    for (now, before) in added.rules.iter_mut().zip(before.rules) {
        *now -= before;
    }
    for (now, before) in added.left_out.iter_mut().zip(before.left_out) {
        *now -= before;
    }
    added
}

/// The rule that was counted: `Some(None)` is the default action, `None` that nothing was seen.
pub fn counted_rule(added: &Counters) -> Option<Option<u8>> {
    let mut counted = (0u8..).zip(added.rules).filter(|&(_, count)| count != 0);
    let (rule, packets) = counted.next()?;
    assert_eq!(counted.next(), None, "one packet, one rule");
    assert_eq!(packets, added.seen, "rule counters are in packets, too");
    Some((rule < 64).then_some(rule))
}

pub fn dropped(added: &Counters, reason: Reason) -> u64 {
    added.dropped[reason as usize]
}

fn dropped_for(added: &Counters, reasons: &[Reason]) -> u64 {
    reasons.iter().map(|&reason| dropped(added, reason)).sum()
}

fn assert_seen_balances(counters: &Counters) {
    assert_eq!(
        counters.seen,
        counters.unmatched + counters.matched,
        "seen = unmatched + matched"
    );
}

/// The tap's balance: exact at any quiet moment.
pub fn assert_tap_balances(counters: &Counters) {
    assert_seen_balances(counters);
    let dropped: u64 = counters.dropped.iter().sum();
    assert_eq!(
        counters.matched,
        counters.captured + dropped,
        "matched = captured + dropped"
    );
}

/// The facts that rules ask for, by the Rust parser; marks that were learned are the caller's to add.
pub fn facts(frame: &[u8], direction: Direction, mark: u32) -> PacketFacts {
    PacketFacts::of_frame(frame, direction, mark)
}

/// The default action that `default` stands for.
pub fn default_action(rules: &[Rule], default: Option<Action>) -> Action {
    default.unwrap_or(if rules.is_empty() {
        Action::Mirror
    } else {
        Action::Skip
    })
}

/// What the obvious matcher says.
pub fn reference(rules: &[Rule], default: Option<Action>, facts: &PacketFacts) -> Verdict {
    reference::verdict(rules, default_action(rules, default), facts)
}

/// What became of one packet.
#[derive(Debug)]
pub struct Seen {
    /// See [`counted_rule`].
    pub rule: Option<Option<u8>>,
    /// What the counters went up by.
    pub added: Counters,
    pub copy: Option<Copy>,
}

/// A record of the ring.
#[derive(Clone, Debug)]
pub struct Copy {
    pub meta: FrameMeta,
    pub bytes: Vec<u8>,
}

impl Seen {
    pub fn dropped(&self, reason: Reason) -> u64 {
        dropped(&self.added, reason)
    }
}

/// The source that a [`TapBench`] is.
pub const SOURCE: &str = "tap:bench0";

/// A loaded tap that is attached to nothing, and its rings.
#[derive(Debug)]
pub struct TapBench {
    pub tap: Tap,
    /// Which of its programs run.
    pub link: LinkType,
    rings: Vec<Ring>,
    counters: Counters,
    generation: u32,
}

impl TapBench {
    /// One ring that holds any frame of BPF_PROG_TEST_RUN.
    pub fn new() -> TapBench {
        TapBench::with_rings(1, 1 << 18)
    }

    pub fn with_rings(count: usize, size: u32) -> TapBench {
        TapBench::on(LinkType::Ethernet, count, size)
    }

    /// For devices whose packets begin with this.
    pub fn on(link: LinkType, count: usize, size: u32) -> TapBench {
        let tap = Tap::load(count, size, &Links::new(SOURCE, &[link]), ALL).expect("load the tap");
        let rings = (0..count)
            .map(|index| {
                let descriptor = tap.ring(index).expect("a ring");
                Ring::new(descriptor, size, 1024).expect("map a ring")
            })
            .collect();
        TapBench {
            tap,
            link,
            rings,
            counters: Counters::default(),
            generation: 0,
        }
    }

    /// Puts rules in force; credential endpoints are not allowed.
    pub fn rules(&mut self, rules: &[Rule], default: Option<Action>) {
        self.rules_and_switch(rules, default, false);
    }

    pub fn rules_and_switch(&mut self, rules: &[Rule], default: Option<Action>, allow: bool) {
        let tables = compile_with_default(rules, default).expect("rules that compile");
        self.generation = self.tap.publish(&tables, allow).expect("publish");
    }

    /// The generation in force.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    pub fn program(&self, direction: Direction) -> BorrowedFd<'_> {
        let name = match (direction, self.link) {
            (Direction::In, LinkType::Ethernet) => "xtee_ingress",
            (Direction::Out, LinkType::Ethernet) => "xtee_egress",
            (Direction::In, LinkType::Ip) => "xtee_ingress_ip",
            (Direction::Out, LinkType::Ip) => "xtee_egress_ip",
        };
        self.tap.program(name).expect("the program")
    }

    /// An ordinary frame without a mark.
    pub fn run(&mut self, direction: Direction, frame: &[u8]) -> Seen {
        self.run_with(direction, frame, Context::default())
    }

    /// Runs a frame through one of the programs and takes its copy from the ring.
    pub fn run_with(&mut self, direction: Direction, frame: &[u8], context: Context) -> Seen {
        let output = run_tc(self.program(direction), frame, context, 1)
            .unwrap_or_else(|error| panic!("run {} bytes: {error}", frame.len()));
        assert_eq!(output.verdict, NO_OPINION, "the tap never decides");
        assert_eq!(output.bytes, frame, "the tap never changes the original");
        let added = self.added();
        let mut copies = self.copies();
        assert!(copies.len() <= 1, "one packet, one copy");
        let copy = copies.pop();
        assert_eq!(copy.is_some(), added.captured != 0);
        if let Some(copy) = &copy {
            assert_eq!(u64::from(copy.meta.segments), added.captured);
            assert_eq!(copy.meta.direction, direction);
            assert_eq!(copy.meta.generation, self.generation);
            let rule = counted_rule(&added).expect("a copy was seen");
            assert_eq!(copy.meta.rule, rule.unwrap_or(xtee::packet::DEFAULT_RULE));
        }
        Seen {
            rule: counted_rule(&added),
            added,
            copy,
        }
    }

    /// What the counters went up by since the last call; asserts the balance.
    pub fn added(&mut self) -> Counters {
        let now = self.tap.counters().expect("counters");
        assert_tap_balances(&now);
        let added = added(&self.counters, &now);
        self.counters = now;
        added
    }

    /// Takes what is in the rings.
    pub fn copies(&mut self) -> Vec<Copy> {
        (0..self.rings.len())
            .flat_map(|ring| self.copies_of(ring))
            .collect()
    }

    /// Takes what is in one ring.
    pub fn copies_of(&mut self, index: usize) -> Vec<Copy> {
        let ring = &mut self.rings[index];
        let mut copies = Vec::new();
        loop {
            let count = ring.gather();
            for index in 0..count as u32 {
                copies.push(Copy {
                    meta: *ring.meta(index).expect("metadata"),
                    bytes: ring.bytes(index).to_vec(),
                });
            }
            ring.release();
            if count == 0 {
                return copies;
            }
        }
    }
}

/// A loaded steering program that is attached to nothing.
#[derive(Debug)]
pub struct SteerBench {
    pub steer: Steer,
    counters: Counters,
}

impl SteerBench {
    pub fn new(room: u32) -> SteerBench {
        SteerBench::with_needs(room, Needs::default())
    }

    pub fn with_needs(room: u32, needs: Needs) -> SteerBench {
        SteerBench {
            steer: Steer::load(room, needs).expect("load the steering program"),
            counters: Counters::default(),
        }
    }

    pub fn rules(&mut self, rules: &[Rule], default: Option<Action>) {
        self.rules_and_switch(rules, default, false);
    }

    pub fn rules_and_switch(&mut self, rules: &[Rule], default: Option<Action>, allow: bool) {
        let tables = compile_with_default(rules, default).expect("rules that compile");
        self.steer.publish(&tables, allow).expect("publish");
    }

    /// Runs a frame; returns what came out and what the counters went up by. What is matched is
    /// either redirected or dropped from the mirror (that is, passed) for a reason.
    pub fn run(&mut self, frame: &[u8]) -> (Output, Counters) {
        let program = self.steer.program().expect("the program");
        let output = run_xdp(program, frame, 1)
            .unwrap_or_else(|error| panic!("run {} bytes: {error}", frame.len()));
        let now = self.steer.counters().expect("counters");
        assert_seen_balances(&now);
        let added = added(&self.counters, &now);
        self.counters = now;
        let dropped: u64 = added.dropped.iter().sum();
        let redirected = u64::from(output.verdict == XDP_REDIRECT);
        assert_eq!(added.matched, redirected + dropped, "{output:?}");
        let left_out = dropped_for(&added, &[Reason::Sampled, Reason::Cutoff]);
        if left_out != 0 {
            assert_eq!(output.verdict, XDP_DROP, "taken like the rest of its rule");
        } else if redirected == 0 {
            assert_eq!(output.verdict, XDP_PASS, "the rest is the kernel's");
            assert_eq!(output.bytes, frame, "what is passed is unchanged");
        }
        (output, added)
    }
}
