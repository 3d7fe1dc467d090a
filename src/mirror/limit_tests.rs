//! The bucket in virtual time: exact at any rate, in any batches, by any number of workers.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const OVERHEAD: u64 = 36;
/// A limit starts at some time of the machine's clock.
const START: u64 = 77 * SECOND + 7;

fn packet(frame: u32, length: u32) -> PacketRef {
    PacketRef {
        frame,
        head: (0, 0),
        tail: (0, length),
        flow_hash: 0,
        part: crate::packet::Part::Whole,
    }
}

/// Packets with their times, offered in batches of `batch`.
struct Offer {
    limit: Limit,
    kept: Vec<bool>,
    bytes: u64,
    packets: u64,
    dropped: u64,
}

impl Offer {
    fn new(rates: Rates) -> Offer {
        Offer {
            limit: Limit::new(rates, START).expect("a limit"),
            kept: Vec::new(),
            bytes: 0,
            packets: 0,
            dropped: 0,
        }
    }

    /// Offers one batch; returns what was kept.
    fn batch(&mut self, arrivals: &[(u64, u32)]) -> Vec<bool> {
        let packets: Vec<_> = (0..)
            .zip(arrivals)
            .map(|(n, (_, length))| packet(n, *length))
            .collect();
        let time = |packet: &PacketRef| START + arrivals[packet.frame as usize].0;
        let all = self.limit.admit(&packets, OVERHEAD, time, &mut self.kept);
        let kept = if all {
            vec![true; packets.len()]
        } else {
            self.kept.clone()
        };
        for (packet, kept) in packets.iter().zip(&kept) {
            if *kept {
                self.bytes += cost(packet, OVERHEAD);
                self.packets += 1;
            } else {
                self.dropped += 1;
            }
        }
        kept
    }
}

/// Equal packets, evenly spaced: packet `n` comes when `n` of them are due at `offered` bits a second.
fn even(offered: u64, length: u32, count: u64) -> impl Iterator<Item = (u64, u32)> {
    let bits = u128::from((u64::from(length) + OVERHEAD) * 8);
    (0..count).map(move |number| {
        let time = u128::from(number) * bits * u128::from(SECOND) / u128::from(offered);
        (time as u64, length)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// At twice the limit what leaves is the limit, to a packet and a millisecond, over any time.
    #[test]
    fn at_twice_the_limit_exactly_the_limit_leaves(
        exponent in 13u32..38, mantissa in 1000u64..2000, length in 60u32..9000, batch in 1usize..300,
    ) {
        let bits = (mantissa << exponent) / 1000;
        let mut offer = Offer::new(Rates { bits: Some(bits), packets: None });
        let arrivals: Vec<_> = even(2 * bits, length, 20_000).collect();
        for batch in arrivals.chunks(batch) {
            offer.batch(batch);
        }
        let span = arrivals.last().unwrap().0;
        let bucket = offer.limit.bytes.as_ref().unwrap();
        let exact = bucket.earned(span) + bucket.burst;
        let one = u64::from(length) + OVERHEAD;
        // All that was earned and the full bucket of the start, but for what does not make a packet; a
        // batch of a millisecond counts as if all came last.
        let slack = bucket.earned(MOMENT);
        prop_assert!(offer.bytes <= exact + slack, "{} {exact}", offer.bytes);
        let offered = one * arrivals.len() as u64;
        prop_assert!(offer.bytes + one + slack >= exact.min(offered), "{} {exact}", offer.bytes);
    }

    /// At a thousandth of the limit nothing is dropped: no token is lost by rounding.
    #[test]
    fn at_a_thousandth_of_the_limit_nothing_is_dropped(
        exponent in 13u32..38, mantissa in 1000u64..2000, length in 60u32..9000, batch in 1usize..10,
    ) {
        let bits = (mantissa << exponent) / 1000;
        let mut offer = Offer::new(Rates { bits: Some(bits), packets: None });
        let arrivals: Vec<_> = even(bits / 1000, length, 1000).collect();
        for batch in arrivals.chunks(batch) {
            offer.batch(batch);
        }
        prop_assert_eq!(offer.dropped, 0);
    }

    /// Packets a second alike, beside bits or alone.
    #[test]
    fn the_limit_of_packets_is_as_exact(
        rate in 1u64..5_000_000, length in 60u32..9000, batch in 1usize..300, both: bool,
    ) {
        // Bits that never bind.
        let bits = both.then_some(1 << 40);
        let mut offer = Offer::new(Rates { bits, packets: Some(rate) });
        let count = 20_000u64;
        let time = |number: u64| number * SECOND / (2 * rate);
        let arrivals: Vec<_> = (0..count).map(|number| (time(number), length)).collect();
        for batch in arrivals.chunks(batch) {
            offer.batch(batch);
        }
        let span = time(count - 1);
        let bucket = offer.limit.packets.as_ref().unwrap();
        let exact = bucket.earned(span) + bucket.burst;
        let slack = bucket.earned(MOMENT) + 1;
        prop_assert!(offer.packets <= exact + slack, "{} {exact}", offer.packets);
        prop_assert!(offer.packets + slack >= exact.min(count), "{} {exact}", offer.packets);
    }

    /// However the packets come, no window gets more than its time earns and a full bucket; and no packet is
    /// refused that one bucket a packet, without batches, would let pass long after.
    #[test]
    fn no_window_gets_more_than_it_earns(
        bits in 100_000u64..10_000_000_000,
        gaps in prop::collection::vec((0u64..30_000_000, 60u32..1500), 1..300),
        idle in 0u64..100, batch in 1usize..64,
    ) {
        let mut offer = Offer::new(Rates { bits: Some(bits), packets: None });
        let mut now = 0;
        let arrivals: Vec<_> = gaps.iter().map(|(gap, length)| {
            // Mostly bursts, sometimes a pause.
            now += if gap % 100 < idle { *gap } else { gap / 1000 };
            (now, *length)
        }).collect();
        let kept: Vec<bool> = arrivals.chunks(batch).flat_map(|batch| offer.batch(batch)).collect();
        let bucket = offer.limit.bytes.as_ref().unwrap();
        for first in 0..arrivals.len() {
            let mut sum = 0;
            for last in first..arrivals.len() {
                if kept[last] {
                    sum += u64::from(arrivals[last].1) + OVERHEAD;
                }
                let span = arrivals[last].0 - arrivals[first].0 + MOMENT;
                prop_assert!(sum <= bucket.earned(span) + bucket.burst + 1);
            }
        }
        // The plain bucket, packet by packet.
        let (mut spent, mut plain) = (0, 0);
        for (time, length) in &arrivals {
            if let Some(after) = bucket.take(spent, bucket.earned(*time), u64::from(*length) + OVERHEAD) {
                spent = after;
                plain += u64::from(*length) + OVERHEAD;
            }
        }
        let slack = bucket.earned(MOMENT) + 2000;
        prop_assert!(offer.bytes + slack >= plain, "{} {plain}", offer.bytes);
    }
}

#[test]
fn a_worker_that_was_held_up_loses_no_tokens() {
    let rates = Rates {
        bits: Some(16_000_000),
        packets: None,
    };
    // Captured over a second at the limit, taken in one go afterwards.
    let mut offer = Offer::new(rates);
    let arrivals: Vec<_> = even(16_000_000, 964, 2000).collect();
    offer.batch(&arrivals);
    assert_eq!(offer.dropped, 0);
}

#[test]
fn a_worker_that_lags_goes_by_the_time_of_the_others() {
    let mut offer = Offer::new(Rates {
        bits: Some(8_000_000),
        packets: None,
    });
    assert_eq!(offer.batch(&[(10 * SECOND, 1000)]), [true]);
    // A second earlier the bucket had earned less than that one has marked as spent.
    assert_eq!(offer.batch(&[(9 * SECOND, 1000)]), [true]);
}

#[test]
fn the_first_limit_that_binds_decides_and_the_other_loses_nothing() {
    // 2000 packets a second of 1000 bytes and no more than 100 packets a second: packets bind.
    let mut offer = Offer::new(Rates {
        bits: Some(16_000_000),
        packets: Some(100),
    });
    for second in 0..10 {
        let arrivals: Vec<_> = (0..2000u64)
            .map(|number| (second * SECOND + number * 500_000, 964))
            .collect();
        for batch in arrivals.chunks(50) {
            offer.batch(batch);
        }
    }
    assert!(
        (1000..=1000 + 17).contains(&offer.packets),
        "{}",
        offer.packets
    );
    // What was refused for the packets has not been taken from the bytes.
    let bytes = offer.limit.bytes.as_ref().unwrap();
    let spent = bytes.spent.load(Ordering::Relaxed);
    let earned = bytes.earned(10 * SECOND);
    assert!(spent <= earned + 20_000, "{spent} {earned}");
}

#[test]
fn what_a_copy_grew_by_is_owed() {
    let mut offer = Offer::new(Rates {
        bits: Some(8_000_000),
        packets: None,
    });
    let burst = offer.limit.bytes.as_ref().unwrap().burst;
    offer.limit.charge(burst + 1000, 0);
    assert_eq!(offer.batch(&[(0, 64)]), [false]);
    // 1000 bytes and the packet take 1.1 ms at a megabyte a second.
    assert_eq!(offer.batch(&[(1_000_000, 64)]), [false]);
    assert_eq!(offer.batch(&[(1_100_001, 64)]), [true]);
}

#[test]
fn a_tebibit_for_years_does_not_overflow() {
    let mut offer = Offer::new(Rates {
        bits: Some(1_000_000_000_000),
        packets: Some(1_000_000_000),
    });
    let year = 365 * 86_400 * SECOND;
    for years in 0..4 {
        assert_eq!(offer.batch(&[(years * year, 1500)]), [true]);
    }
}

/// Workers on as many threads, one virtual clock: together they get the limit.
#[test]
fn workers_share_one_limit() {
    const WORKERS: u64 = 4;
    const ROUNDS: u64 = 4000;
    let rates = Rates {
        bits: Some(800_000_000),
        packets: Some(90_000),
    };
    let limit = Limit::new(rates, START).unwrap();
    let clock = AtomicU64::new(0);
    let (bytes, packets) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let batch: Vec<_> = (0..32).map(|_| packet(0, 964)).collect();
                let mut kept = Vec::new();
                for _ in 0..ROUNDS {
                    // All workers together offer a batch each 125 µs: 256 000 packets a second.
                    let now = START + clock.fetch_add(125_000, Ordering::Relaxed);
                    let all = limit.admit(&batch, OVERHEAD, |_| now, &mut kept);
                    let count = if all {
                        32
                    } else {
                        kept.iter().filter(|kept| **kept).count()
                    };
                    packets.fetch_add(count as u64, Ordering::Relaxed);
                    bytes.fetch_add(count as u64 * 1000, Ordering::Relaxed);
                }
            });
        }
    });
    let span = WORKERS * ROUNDS * 125_000;
    let seconds = span as f64 / SECOND as f64;
    // The packets bind: 90 000 × 2 s, and the full bucket of the start.
    let exact = 90_000.0 * seconds + 4500.0;
    let got = packets.load(Ordering::Relaxed) as f64;
    assert!((got / exact - 1.0).abs() < 0.02, "{got} of {exact}");
    assert!(bytes.load(Ordering::Relaxed) <= limit.bytes.as_ref().unwrap().earned(span));
}
