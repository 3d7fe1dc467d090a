//! What must hold whatever a network does: invariants I1 to I9 with random networks whose losses are
//! known. `XTEE_LOSS_RUNS` sets how many networks are run; the sums are held to the truth.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::super::segment::{flags, Segment, Timestamps};
use super::super::Settings;
use super::network::{Copy, Network};
use super::{run, run_with, sum, Counts, Seen};

const MS: u64 = 1_000_000;
/// Networks of a default run; all of the suite takes seconds.
const RUNS: u32 = 300;

fn runs() -> u32 {
    let wanted = std::env::var("XTEE_LOSS_RUNS").ok();
    wanted.and_then(|runs| runs.parse().ok()).unwrap_or(RUNS)
}

fn config() -> Config {
    Config {
        cases: 64,
        rng_seed: RngSeed::Fixed(4),
        ..Config::default()
    }
}

/// A number from 0 to 1 for each purpose: reproducible without a generator's state.
fn chance(seed: u64, number: u64) -> f64 {
    let mut x = seed
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(number.wrapping_mul(0xD1B5_4A32_D192_ED03));
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ x >> 31) as f64 / u64::MAX as f64
}

/// Every copy of every segment by itself: 1 % lost before us, 1 % behind us, 1 % not mirrored, 0.5 %
/// late by 1.2 ms.
fn random(seed: u64, segments: u32, options: bool) -> Network {
    let mut network = Network {
        segments,
        sack: options,
        timestamps: options,
        isn: (chance(seed, 0) * f64::from(u32::MAX)) as u32,
        ..Network::default()
    };
    // The last segments stay: a loss at the end opens no hole.
    for number in 0..segments - 40 {
        for copy in 0..4u32 {
            let of = |what: u64| chance(seed, u64::from(number) * 64 + u64::from(copy) * 8 + what);
            let key: Copy = (number, copy);
            if of(1) < 0.01 {
                network.lost_up.insert(key);
            } else if of(2) < 0.01 {
                network.lost_down.insert(key);
            }
            if of(3) < 0.01 {
                network.not_mirrored.insert(key);
            }
            if of(4) < 0.005 {
                network.delayed_up.insert(key, 1_200_000);
            }
        }
    }
    network
}

/// What really happened to the copies that were sent.
#[derive(Debug, Default)]
struct Truth {
    up: u64,
    down: u64,
    capture: u64,
    reordered: u64,
}

/// Numbers of copies that were sent, from what is seen and what was done to it.
fn truth(network: &Network) -> Truth {
    let mut truth = Truth::default();
    for number in 0..network.segments {
        for copy in 0.. {
            let key = (number, copy);
            let up = network.lost_up.contains(&key);
            let down = network.lost_down.contains(&key);
            truth.up += u64::from(up);
            truth.down += u64::from(down && !up);
            let seen = !up && !network.not_mirrored.contains(&key);
            truth.capture += u64::from(!up && !seen);
            truth.reordered += u64::from(seen && network.delayed_up.contains_key(&key));
            if !up && !down {
                break;
            }
        }
    }
    truth
}

fn within(measured: u64, truth: u64, tolerance: f64, what: &str) {
    let ratio = measured as f64 / truth as f64;
    assert!(
        (1.0 - tolerance..=1.0 + tolerance).contains(&ratio),
        "{what}: {measured} of {truth}, {ratio:.3}"
    );
}

fn agree_in_sum(options: bool) {
    let mut measured = Counts::default();
    let mut true_sum = Truth::default();
    let mut needless = 0;
    for seed in 0..u64::from(runs()) {
        let network = random(seed + 1, 400, options);
        let one = truth(&network);
        true_sum.up += one.up;
        true_sum.down += one.down;
        true_sum.capture += one.capture;
        true_sum.reordered += one.reordered;
        let (seen, duplicates) = network.run_and_tell();
        let (totals, reports) = run(seen);
        let counts = sum(&totals);
        // A loss beside a late segment makes a sender resend needlessly at times; never more than that.
        assert!(counts.spurious.packets <= duplicates, "seed {seed}");
        needless += duplicates;
        measured.merge(&counts);
        for report in &reports {
            for direction in &report.directions {
                balance(&direction.counts, direction.length);
            }
        }
    }
    eprintln!("options {options}: {true_sum:?}, needless {needless}");
    eprintln!(
        "measured: up {} down {} capture {} reordered {} spurious {}",
        measured.upstream_loss.packets,
        measured.downstream_loss.packets,
        measured.capture_loss.packets,
        measured.reordered.packets,
        measured.spurious.packets
    );
    within(
        measured.upstream_loss.packets,
        true_sum.up,
        0.05,
        "before us",
    );
    within(
        measured.downstream_loss.packets,
        true_sum.down,
        0.05,
        "behind us",
    );
    within(
        measured.capture_loss.packets,
        true_sum.capture,
        0.05,
        "capture",
    );
    within(
        measured.reordered.packets,
        true_sum.reordered,
        0.12,
        "reordered",
    );
}

/// I1 and I2.
fn balance(counts: &Counts, length: Option<u64>) {
    if let Some(length) = length {
        let known = counts.unique_octets
            + counts.capture_loss.octets
            + counts.unresolved.octets
            + counts.fragment_gap.octets;
        assert_eq!(length, known, "I1: {counts:?}");
    }
    let again = &counts.retransmitted;
    let (needless, needed) = (&counts.spurious, &counts.downstream_loss);
    assert!(needless.packets + needed.packets <= again.packets, "I2");
    assert!(needless.octets + needed.octets <= again.octets, "I2");
}

#[test]
fn losses_agree_with_the_truth_with_sack_and_timestamps() {
    agree_in_sum(true);
}

#[test]
fn losses_agree_with_the_truth_without_options() {
    agree_in_sum(false);
}

fn counts_of(seen: Vec<Seen>) -> Counts {
    sum(&run(seen).0)
}

proptest! {
    #![proptest_config(config())]

    /// I3: where the sequence numbers begin does not matter.
    #[test]
    fn i3_a_shift_of_all_numbers_changes_nothing(seed in 1u64..1000, shift: u32) {
        let network = random(seed, 200, true);
        let shifted = Network {
            isn: network.isn.wrapping_add(shift),
            peer_isn: network.peer_isn.wrapping_sub(shift),
            ..network.clone()
        };
        prop_assert_eq!(counts_of(network.run()), counts_of(shifted.run()));
    }

    /// I4: what is taken out of a clean capture is capture loss, to the octet.
    #[test]
    fn i4_deleted_data_is_capture_loss(seed in 1u64..1000) {
        let mut seen = Network::default().run();
        let mut octets = 0;
        let mut place = 0;
        seen.retain(|seen| {
            place += 1;
            let gone = seen.segment.payload > 0 && chance(seed, place) < 0.05;
            octets += if gone { u64::from(seen.segment.payload) } else { 0 };
            !gone
        });
        let counts = counts_of(seen);
        prop_assert_eq!(counts.capture_loss.octets, octets);
        prop_assert_eq!(counts.upstream_loss.events + counts.downstream_loss.events, 0);
        prop_assert_eq!(counts.unresolved.events, 0);
    }

    /// I5: a second copy of every packet changes nothing but their number.
    #[test]
    fn i5_copies_of_all_packets_are_copies(seed in 1u64..1000, later in 0u64..300) {
        let seen = random(seed, 200, true).run();
        let once = counts_of(seen.clone());
        let mut twice: Vec<Seen> = Vec::new();
        for one in &seen {
            twice.push(*one);
            twice.push(Seen { at: one.at + later * 1000, ..*one });
        }
        let mut counts = counts_of(twice);
        prop_assert_eq!(counts.mirror_duplicates, seen.len() as u64);
        counts.mirror_duplicates = 0;
        prop_assert_eq!(counts, once);
    }

    /// I6: which end has the lower address does not matter.
    #[test]
    fn i6_swapped_addresses_swap_nothing_else(seed in 1u64..1000) {
        let seen = random(seed, 200, true).run();
        let settings = Settings::for_flows(8);
        let (straight, _) = run_with(seen.clone(), settings, false);
        let (swapped, _) = run_with(seen, settings, true);
        prop_assert_eq!(straight, swapped);
    }

    /// I7: directions that reach us skewed by less than the grace give no loss.
    #[test]
    fn i7_skewed_directions_lose_nothing(skew in 0u64..49, client: bool) {
        let mut seen = Network::default().run();
        for one in &mut seen {
            if one.client == client {
                one.at += skew * MS;
            }
        }
        let counts = counts_of(seen);
        prop_assert_eq!(counts.capture_loss.events, 0);
        prop_assert_eq!(counts.unresolved.events, 0);
        prop_assert_eq!(counts.lost_packets() + counts.retransmitted.events, 0);
    }

    /// I8: no bytes and no numbers make it panic, and its sums stay sums.
    #[test]
    fn i8_nothing_panics(steps in prop::collection::vec(arbitrary(), 1..300), blocks in 0usize..4) {
        let mut settings = Settings::for_flows(3);
        settings.blocks = blocks;
        settings.spills = blocks / 2;
        let (totals, reports) = run_with(steps, settings, false);
        prop_assert_eq!(totals.flows.total, reports.len() as u64);
        for report in reports {
            for direction in report.directions {
                balance(&direction.counts, None);
            }
        }
    }
}

/// Segments near each other, so that they meet.
fn arbitrary() -> impl Strategy<Value = Seen> {
    let numbers = (near(), near(), 0u32..3000, any::<u8>(), 0u16..3);
    let sack = prop::array::uniform4((near(), near()));
    let rest = (
        0u8..=4,
        sack,
        prop::option::of((0u32..50, 0u32..50)),
        0u16..6,
    );
    (any::<bool>(), 1u16..6, 0u64..2_000_000, numbers, rest).prop_map(
        |(client, port, at, numbers, rest)| {
            let (sequence, acknowledgment, payload, bits, window) = numbers;
            let (sack_blocks, sack, timestamps, identification) = rest;
            Seen {
                at: super::network::START + at * 1000,
                client,
                port,
                segment: Segment {
                    // Mostly what connections consist of.
                    flags: if bits < 200 { flags::ACK } else { bits },
                    window,
                    sack_blocks,
                    sack,
                    timestamps: timestamps.map(|(value, echo)| Timestamps { value, echo }),
                    identification: Some(identification),
                    ..Segment::plain(sequence, acknowledgment, payload)
                },
            }
        },
    )
}

fn near() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => (0u32..20_000).prop_map(|at| at.wrapping_sub(10_000)),
        1 => any::<u32>(),
    ]
}
