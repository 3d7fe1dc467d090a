//! What the tracker costs: nanoseconds per packet by number of flows, and bytes per flow.
//!
//! `loss_cost [FLOWS PACKETS]`; without arguments 1, 10 000 and 1 000 000 flows. For instructions:
//! `valgrind --tool=callgrind loss_cost 1 100000`.

use std::net::Ipv4Addr;
use std::time::Instant;

use xtee::loss::{End, FlowKey, FlowReport, Segment, Settings, Timestamps, Tracker, Way};

/// Both directions of a flow: its key, and how it stands.
struct Flow {
    key: FlowKey,
    way: Way,
    sequence: u32,
}

fn flows(count: u32) -> Vec<Flow> {
    (0..count)
        .map(|number| {
            let client = End {
                address: Ipv4Addr::from_bits(0xc612_0000 + number / 16).into(),
                port: 40_000 + (number % 16) as u16,
            };
            let server = End {
                address: Ipv4Addr::new(203, 0, 113, 1).into(),
                port: 443,
            };
            let (key, way) = FlowKey::new(client, server, 0);
            Flow {
                key,
                way,
                sequence: number.wrapping_mul(0x9E37_79B1),
            }
        })
        .collect()
}

fn measure(count: u32, packets: u64) {
    let settings = Settings {
        seed: 0x5bd1_e995,
        ..Settings::for_flows(count as usize + 1)
    };
    let mut tracker = Tracker::new(settings);
    let mut flows = flows(count);
    let ended = &mut |_: &FlowReport| {};
    let mut now = 1_700_000_000_000_000_000u64;
    // In an order that no prefetcher follows.
    let mut at = 0usize;
    let step = (flows.len() as f64 * 0.618_033_98) as usize | 1;
    let mut round = |packets: u64, now: &mut u64| {
        for number in 0..packets / 2 {
            at += step;
            if at >= flows.len() {
                at %= flows.len();
            }
            let flow = &mut flows[at];
            let stamp = Some(Timestamps {
                value: (*now / 1_000_000) as u32,
                echo: 1,
            });
            let data = Segment {
                timestamps: stamp,
                identification: Some(number as u16),
                ..Segment::plain(flow.sequence, 1, 1448)
            };
            flow.sequence = flow.sequence.wrapping_add(1448);
            let answer = Segment {
                timestamps: stamp,
                identification: Some(number as u16),
                ..Segment::plain(1, flow.sequence, 0)
            };
            *now += 1000;
            tracker.segment(*now, &flow.key, flow.way, &data, ended);
            *now += 1000;
            tracker.segment(*now, &flow.key, flow.way.reverse(), &answer, ended);
        }
    };
    // Every flow is there, and in order, before the clock runs.
    round(u64::from(count) * 6, &mut now);
    let mut figures = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        round(packets, &mut now);
        figures.push(began.elapsed().as_nanos() as f64 / packets as f64);
    }
    figures.sort_by(f64::total_cmp);
    println!(
        "{count} flows: {:.1} ns a packet (5 rounds: {:.1} to {:.1}), in use {:?}, bound {} bytes",
        figures[2],
        figures[0],
        figures[4],
        tracker.in_use(),
        settings.memory()
    );
}

/// A flood: every packet a SYN from a new source.
fn flood(packets: u32) {
    let mut tracker = Tracker::new(Settings::default());
    let mut evicted = 0u64;
    let began = Instant::now();
    for number in 0..packets {
        let source = End {
            address: Ipv4Addr::from_bits(number).into(),
            port: 1024,
        };
        let server = End {
            address: Ipv4Addr::new(203, 0, 113, 1).into(),
            port: 443,
        };
        let (key, way) = FlowKey::new(source, server, 0);
        let segment = Segment {
            flags: xtee::loss::flags::SYN,
            ..Segment::plain(number, 0, 0)
        };
        let now = 1_700_000_000_000_000_000 + u64::from(number) * 1000;
        tracker.segment(now, &key, way, &segment, &mut |_| evicted += 1);
    }
    println!(
        "flood of {packets} SYN: {:.1} ns a packet, {evicted} evicted, in use {:?}",
        began.elapsed().as_nanos() as f64 / f64::from(packets),
        tracker.in_use()
    );
}

fn main() {
    let arguments: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    if let [flows, packets] = arguments[..] {
        measure(flows as u32, packets);
        return;
    }
    for flows in [1, 10_000, 1_000_000] {
        measure(flows, 4_000_000);
    }
    flood(10_000_000);
}
