//! Memory is bounded, and what is over the bound is told.

use super::super::segment::flags;
use super::network::START;
use super::*;

/// SYNs of a flood in a run of the suite; `XTEE_LOSS_FLOOD` sets another number.
const FLOOD: u32 = 300_000;

fn syn(number: u32) -> (FlowKey, Way, Segment) {
    let source = End {
        address: std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into(),
        port: (number % 60_000) as u16 + 1,
    };
    let (key, way) = FlowKey::new(source, end(2, 80), 0);
    let segment = Segment {
        flags: flags::SYN,
        ..Segment::plain(number.wrapping_mul(0x9E37_79B1), 0, 0)
    };
    (key, way, segment)
}

/// Connections keep their state while a flood of SYNs from ever new sources goes on.
#[test]
fn a_flood_of_syns_evicts_syns_and_nothing_else() {
    let wanted = std::env::var("XTEE_LOSS_FLOOD").ok();
    let flood = wanted
        .and_then(|number| number.parse().ok())
        .unwrap_or(FLOOD);
    let settings = Settings::for_flows(1024);
    let mut tracker = Tracker::new(settings);
    let mut evicted = 0u64;
    let mut connections = 0u64;
    let mut ended = |report: &FlowReport| {
        evicted += u64::from(report.ending == super::super::Ending::Evicted);
        connections += u64::from(report.counts().data_packets > 0);
    };
    let mut now = START;
    for number in 0..flood {
        now += 1000;
        let (key, way, segment) = syn(number);
        tracker.segment(now, &key, way, &segment, &mut ended);
        // Hundred connections, each going on now and then.
        if number % 16 == 0 {
            let port = 40_000 + (number / 16 % 100) as u16;
            let round = number / 16 / 100;
            for (client, segment) in [
                (true, Segment::plain(1000 + round * 500, 7000, 500)),
                (false, Segment::plain(7000, 1500 + round * 500, 0)),
            ] {
                let seen = Seen {
                    at: now,
                    client,
                    port,
                    segment,
                };
                let (key, way) = key_of(&seen, false);
                tracker.segment(now, &key, way, &segment, &mut ended);
            }
        }
        assert!(tracker.in_use()[0] <= 1024);
    }
    assert!(evicted > u64::from(flood) - 2000);
    assert_eq!(connections, 0, "no connection was thrown out");
    tracker.finish(&mut |report| {
        let counts = report.counts();
        assert_eq!(counts.lost_packets() + counts.unresolved.events, 0);
    });
    assert_eq!(tracker.totals().flows.degraded, 0);
}

/// Many flows with a hole each, and one with very many: the slabs hold, the octets stay.
#[test]
fn holes_beyond_the_slab_are_merged_or_told() {
    let mut settings = Settings::for_flows(512);
    settings.blocks = 64;
    settings.spills = 2;
    let mut tracker = Tracker::new(settings);
    let mut ended = |_: &FlowReport| {};
    for port in 0..512u16 {
        for sequence in [1000, 2000, 4000] {
            let segment = Segment::plain(sequence, 1, 1000);
            let seen = Seen {
                at: START,
                client: true,
                port,
                segment,
            };
            let (key, way) = key_of(&seen, false);
            tracker.segment(START, &key, way, &segment, &mut ended);
        }
    }
    let [_, blocks, spills] = tracker.in_use();
    assert!(blocks <= 64 && spills <= 2);
    tracker.finish(&mut ended);
    let totals = tracker.totals();
    assert!(totals.flows.degraded >= 512 - 64);
    assert_eq!(tracker.in_use(), [0, 0, 0]);

    let mut seen = Vec::new();
    let holes = 100_000u32;
    for number in 0..holes {
        let segment = Segment::plain(1000 + number * 2000, 1, 1000);
        let at = START + u64::from(number) * 1000;
        seen.push(Seen {
            at,
            client: true,
            port: 1,
            segment,
        });
    }
    let (totals, _) = run_with(seen, settings, false);
    let counts = sum(&totals);
    assert_eq!(counts.unresolved.octets, u64::from(holes - 1) * 1000);
    assert_eq!(counts.unresolved.events, u64::from(holes - 1));
    assert_eq!(counts.capture_loss.events, 0);
}

#[test]
fn a_flow_takes_no_more_than_it_may() {
    const { assert!(super::super::table::FLOW_BYTES <= 256) };
    let settings = Settings::default();
    eprintln!(
        "flow {} bytes, block {}, spill {}, all of the default {}",
        super::super::table::FLOW_BYTES,
        super::super::anomaly::BLOCK_BYTES,
        super::super::anomaly::SPILL_BYTES,
        settings.memory()
    );
    assert!(settings.memory() < 64 << 20);
}
