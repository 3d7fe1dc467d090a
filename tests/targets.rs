//! Several targets: each gets what is its, and one that is slow, dead, gone or unfriendly costs the others
//! nothing.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/guard_lab.rs"]
mod guard_lab;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/targets_lab.rs"]
mod targets_lab;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use xtee::mirror::limit::{Limit, Rates};
use xtee::packet::PacketRef;

use common::{netns, raw_socket};
use guard_lab::answer_without_limit;
use mirror::Mirror;
use targets_lab::{all_healthy, counted, device, start, url, Arrived, Lab, Numbered};

const PATIENCE: Duration = Duration::from_secs(10);
const FLOWS: u32 = 300;

/// Rounds of all flows, a few milliseconds apart, until `done`; at least one. Returns the next round.
fn rounds_until(lab: &Lab, first: u32, mut done: impl FnMut() -> bool) -> u32 {
    let mut round = first;
    loop {
        lab.round(FLOWS, round, 64);
        round += 1;
        if done() {
            return round;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Three targets share the flows, a fourth gets all. One of the three is lost, and comes back.
#[test]
fn targets_share_the_flows_and_a_lost_ones_go_to_the_others() {
    require_root!();
    let lab = Lab::new(4);
    let share = "&distribution=hash&limit=none";
    let mirror = start(
        &lab,
        &[
            url(0, share),
            url(1, share),
            url(2, share),
            url(3, "&limit=none"),
        ],
    );
    let everything: BTreeSet<u32> = (0..FLOWS).collect();

    let captures = lab.capture();
    let end = rounds_until(&lab, 0, || true);
    let status = mirror.assert_balanced();
    let arrived: Vec<_> = captures.into_iter().map(Arrived::of).collect();
    arrived[3].assert_once(&everything, 0..end);
    let before: Vec<_> = arrived[..3].iter().map(Arrived::flows).collect();
    for (arrived, flows) in arrived.iter().zip(&before) {
        assert!(flows.len() > FLOWS as usize / 5, "{} flows", flows.len());
        // Both directions, and of no other target's: each flow stands in one of the sets.
        arrived.assert_once(flows, 0..end);
    }
    assert_eq!(
        before.iter().map(BTreeSet::len).sum::<usize>(),
        FLOWS as usize
    );
    assert_eq!(status.targets[3].offered, 2 * u64::from(FLOWS * end));

    // The link to the second goes while packets flow.
    let captures = lab.capture();
    rounds_until(&lab, end, || true);
    lab.instance.ip(&["link", "set", &device(1), "down"]);
    let lost_at = Instant::now();
    let mut moved = Duration::ZERO;
    let first = end + 1;
    let last = rounds_until(&lab, first, || {
        moved = lost_at.elapsed();
        !mirror.status().targets[1].healthy && moved > Duration::from_millis(400)
    });
    let status = mirror.assert_balanced();
    let arrived: Vec<_> = captures.into_iter().map(Arrived::of).collect();
    arrived[3].assert_once(&everything, end..last);
    for other in [0, 2] {
        // They lost nothing of theirs.
        arrived[other].assert_once(&before[other], end..last);
    }
    // Once moved, a flow of the lost one is at one of the others, whole.
    let settled = last - 1..last;
    let now: Vec<_> = [0, 2]
        .map(|other| {
            let in_last = arrived[other]
                .0
                .keys()
                .filter(|packet| settled.contains(&packet.round));
            in_last.map(|packet| packet.flow).collect::<BTreeSet<u32>>()
        })
        .into();
    for (other, flows) in [0, 2].into_iter().zip(&now) {
        arrived[other].assert_once(flows, settled.clone());
        assert!(flows.is_superset(&before[other]));
        let came: BTreeSet<_> = flows.difference(&before[other]).copied().collect();
        assert!(!came.is_empty() && came.is_subset(&before[1]), "{came:?}");
    }
    assert_eq!(now[0].len() + now[1].len(), FLOWS as usize);
    assert!(status.targets[1].dropped["no_route"] > 0, "{status}");
    println!(
        "flows of the lost target moved within: {}",
        moved_after(&arrived, &before[1])
    );

    // It comes back: so do its flows, and no other.
    lab.instance.ip(&["link", "set", &device(1), "up"]);
    all_healthy(&mirror);
    let captures = lab.capture();
    lab.round(FLOWS, last, 64);
    mirror.assert_balanced();
    let arrived: Vec<_> = captures.into_iter().map(Arrived::of).collect();
    for (arrived, flows) in arrived.iter().zip(&before) {
        assert_eq!(&arrived.flows(), flows);
        arrived.assert_once(flows, last..last + 1);
    }
    let finished = mirror.stop();
    finished.assert_clean();
    let log = &finished.stderr;
    assert_eq!(log.matches("is unhealthy: ").count(), 1, "{log}");
    assert_eq!(log.matches("is healthy again").count(), 1, "{log}");
}

/// From the last copy of a lost target's flow at that target to the first at another.
fn moved_after(arrived: &[Arrived], flows: &BTreeSet<u32>) -> String {
    let times = |arrived: &Arrived, flow: u32| -> Vec<u64> {
        let own = arrived.0.iter().filter(|(packet, _)| packet.flow == flow);
        own.flat_map(|(_, times)| times.clone()).collect()
    };
    let mut gaps: Vec<u64> = flows
        .iter()
        .filter_map(|flow| {
            let last = times(&arrived[1], *flow).into_iter().max()?;
            let others = [0, 2]
                .iter()
                .flat_map(|other| times(&arrived[*other], *flow));
            Some(others.min()?.saturating_sub(last) / 1_000_000)
        })
        .collect();
    gaps.sort_unstable();
    format!("{:?} to {:?} ms", gaps.first(), gaps.last())
}

/// A black hole, one whose kernel answers port unreachable to every copy, one that does not answer ARP from
/// the start, and one whose interface is deleted on the way: the good one gets everything, and so do the
/// first two.
#[test]
fn bad_targets_cost_the_others_nothing() {
    require_root!("nft");
    let lab = Lab::new(5);
    let drop = "table netdev hole { chain in { type filter hook ingress device mon0 priority 0; udp dport 4789 drop; }; }";
    lab.collectors[0].run("nft", &[drop]);
    answer_without_limit(&lab.collectors[1]);
    // It does not know the address that it is asked for.
    lab.collectors[2].ip(&["address", "flush", "dev", "mon0"]);
    let urls: Vec<_> = (0..5).map(|target| url(target, "&limit=none")).collect();
    let mut arguments = vec!["tap:eth0", "--to"];
    arguments.extend(urls.iter().map(String::as_str));
    let mirror = Mirror::start(&lab.instance, &arguments);
    netns::wait_until("the good ones are healthy", PATIENCE, || {
        let healthy: Vec<_> = mirror.status().targets.iter().map(|t| t.healthy).collect();
        healthy == [true, true, false, true, true]
    });
    // Long enough to be taken for unhealthy.
    std::thread::sleep(Duration::from_millis(500));

    let captures = lab.capture();
    let mut at = 0;
    let halfway = Instant::now();
    let last = rounds_until(&lab, 0, || {
        at += 1;
        if at == 20 {
            lab.instance.ip(&["link", "delete", &device(3)]);
        }
        at > 40 && halfway.elapsed() > Duration::from_secs(1)
    });
    let status = mirror.assert_balanced();
    let arrived: Vec<_> = captures.into_iter().map(Arrived::of).collect();
    let everything: BTreeSet<u32> = (0..FLOWS).collect();
    for good in [0, 1, 4] {
        arrived[good].assert_once(&everything, 0..last);
        let target = &status.targets[good];
        assert!(target.healthy, "{status}");
        assert_eq!(target.sent_packets, target.offered, "{status}");
    }
    let silent = &status.targets[2];
    assert!(
        !silent.healthy && silent.dropped["no_neighbour"] >= 2 * u64::from(FLOWS * last),
        "{status}"
    );
    let gone = &status.targets[3];
    assert!(!gone.healthy && gone.dropped["no_route"] > 0, "{status}");
    // The answers went to the instance's other interface; none was mirrored, none counted.
    let finished = mirror.stop();
    finished.assert_clean();
}

/// What a limit lets pass of packets of `length` bytes at these times, nanoseconds.
fn ideal(rates: Rates, times: &[u64], length: u32) -> u64 {
    let limit = Limit::new(rates, 0).expect("a limit");
    let packet = PacketRef {
        frame: 0,
        head: (0, 0),
        tail: (0, length),
        flow_hash: 0,
        part: xtee::packet::Part::Whole,
    };
    let mut kept = Vec::new();
    let passes = times
        .iter()
        .filter(|time| limit.admit(&[packet], 0, |_| **time, &mut kept));
    passes.count() as u64
}

/// At a thousandth of the limit nothing is dropped; at twice the limit what leaves is the limit; and the
/// target beside it without limit gets everything.
#[test]
fn limits_are_exact() {
    require_root!();
    const OUTER: u64 = 1000;
    const BITS: u64 = 16_000_000;
    const PACKETS: u64 = 2000;
    let lab = Lab::new(3);
    let mirror = start(
        &lab,
        &[
            url(0, "&limit=16Mbit/s"),
            url(1, "&limit=none&limit_packets=2k/s"),
            url(2, "&limit=none"),
        ],
    );
    let plan = mirror.stdout();
    assert!(plan.contains("at most 16Mbit/s\n"), "{plan}");
    // Outer IPv4, UDP, VXLAN, inner Ethernet, IPv4, UDP.
    let size = OUTER as usize - 20 - 8 - 8 - 14 - 20 - 8;
    let packet = |number: u64| Numbered {
        flow: (number % 50) as u32,
        back: false,
        round: (number / 50) as u32,
    };
    let before = mirror.assert_balanced();
    for number in 0..5 {
        lab.send(packet(number), size);
        std::thread::sleep(Duration::from_millis(500));
    }
    let slow = mirror.assert_balanced();
    for (target, then) in slow.targets.iter().zip(&before.targets) {
        assert_eq!(target.sent_packets - then.sent_packets, 5, "{slow}");
        assert_eq!(target.dropped["limit"], 0, "{slow}");
    }

    // Twice the limit of both: 4000 packets a second of 1000 bytes, for 5 seconds.
    let began = Instant::now();
    let mut times = Vec::new();
    let count = 5 * 2 * PACKETS;
    while (times.len() as u64) < count {
        let now = began.elapsed().as_nanos() as u64;
        let due = now * 2 * PACKETS / 1_000_000_000;
        while (times.len() as u64) < due.min(count) {
            lab.send(packet(times.len() as u64), size);
            times.push(began.elapsed().as_nanos() as u64);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    let status = mirror.assert_balanced();
    let span = *times.last().expect("packets");
    let sent = |index: usize| status.targets[index].sent_packets - slow.targets[index].sent_packets;
    assert_eq!(sent(2), count, "{status}");
    for (index, rates) in [
        (
            0,
            Rates {
                bits: Some(BITS),
                packets: None,
            },
        ),
        (
            1,
            Rates {
                bits: None,
                packets: Some(PACKETS),
            },
        ),
    ] {
        // What the bucket gives at the times at which packets really came: a machine that stalls makes a
        // pause of the generator, not an error of the limit.
        let ideal = ideal(rates, &times, OUTER as u32);
        let rate = PACKETS as f64 * span as f64 / 1e9;
        println!("sent {}, ideal {ideal}, rate alone {rate:.0}", sent(index));
        assert!(
            sent(index).abs_diff(ideal) * 50 <= ideal,
            "{} of {ideal}",
            sent(index)
        );
        assert_eq!(
            status.targets[index].dropped["limit"],
            count - sent(index),
            "{status}"
        );
    }
    let bytes = status.targets[0].sent_bytes - slow.targets[0].sent_bytes;
    assert_eq!(bytes, sent(0) * OUTER);
    mirror.stop().assert_clean();
}

/// Above the budget nothing is copied, and each packet that is not is counted; when it is calm, copies go
/// again. Production's packets pass all the time.
#[test]
fn above_the_budget_copies_are_shed_first() {
    require_root!();
    let lab = Lab::new(2);
    let mirror = Mirror::start_config(
        &lab.instance,
        &format!(
            "[[source]]\nkind = \"tap\"\ninterface = \"eth0\"\n\
             [[target]]\nurl = \"{}\"\n[[target]]\nurl = \"{}\"\n[breaker]\nbudget = \"20Mbit/s\"\n",
            url(0, ""),
            url(1, "")
        ),
    );
    all_healthy(&mirror);
    let plan = mirror.stdout();
    assert!(plan
        .contains("breaker   no copies while all targets together would get more than 20Mbit/s"));
    assert!(
        plan.contains("at most 1Gbit/s (the default limit"),
        "{plan}"
    );
    let before = lab.instance.counter("eth0", "rx_packets");
    // Two targets, 1000 bytes, a packet each 200 µs at most: up to 80 Mbit/s.
    let mut sent = 0;
    let mut send = |count: u32| {
        for _ in 0..count {
            let packet = Numbered {
                flow: sent % 100,
                back: false,
                round: sent / 100,
            };
            lab.send(packet, 922);
            sent += 1;
            std::thread::sleep(Duration::from_micros(100));
        }
    };
    netns::wait_until("shedding", PATIENCE, || {
        send(100);
        mirror.status().shedding.reason.as_deref() == Some("budget")
    });
    let then = mirror.status();
    send(2000);
    let status = mirror.assert_balanced();
    let tap = &status.sources[0];
    assert!(tap.dropped["budget"] >= 2000, "{status}");
    // What was on its way when it began, and nothing since.
    assert!(tap.captured - then.sources[0].captured <= 100, "{status}");
    assert_eq!(status.shedding.times, 1);

    netns::wait_until("calm", Duration::from_secs(20), || {
        mirror.status().shedding.reason.is_none()
    });
    send(5);
    let after = mirror.assert_balanced();
    assert_eq!(
        after.sources[0].captured - status.sources[0].captured,
        5,
        "{after}"
    );
    let passed = lab.instance.counter("eth0", "rx_packets") - before;
    assert_eq!(passed, u64::from(sent), "production's packets");
    let finished = mirror.stop();
    finished.assert_clean();
    assert_eq!(finished.stderr.matches("shedding all copies").count(), 1);
    assert_eq!(finished.stderr.matches("copies go again").count(), 1);
}

/// DSCP, TTL and socket priority stand on the copies, whoever sends.
#[test]
fn copies_are_marked() {
    require_root!("nft");
    let lab = Lab::new(3);
    let watch = "table inet watch { chain out { type filter hook output priority 0; udp dport 4789 meta priority 0:3 \
                 counter; }; }";
    lab.instance.run("nft", &[watch]);
    let gre = |target, parameters: &str| {
        format!("gre://{}?key=7{parameters}", targets_lab::address(target))
    };
    let urls = [
        url(0, "&transmit=udp&gso=off&dscp=cs1&ttl=32&priority=3"),
        gre(1, "&transmit=xsk&dscp=46&ttl=9"),
        gre(2, "&transmit=raw&dscp=af41"),
    ];
    let mirror = start(&lab, &urls);
    let plan = mirror.stdout();
    assert!(
        plan.contains("  marks     DSCP 8, TTL 32, socket priority 3\n"),
        "{plan}"
    );
    let captures = lab.capture();
    lab.round(20, 0, 64);
    let status = mirror.assert_balanced();
    for (capture, (dscp, ttl)) in captures.into_iter().zip([(8, 32), (46, 9), (34, 64)]) {
        let frames = capture.stop();
        let outer = frames
            .iter()
            .filter(|frame| copies::open(&frame.bytes, 0).is_some());
        let marks: Vec<_> = outer
            .map(|frame| (frame.bytes[15], frame.bytes[22]))
            .collect();
        assert!(marks.len() >= 40, "{}", marks.len());
        assert!(
            marks.iter().all(|mark| *mark == (dscp << 2, ttl)),
            "{marks:?}"
        );
    }
    assert_eq!(
        counted(&lab.instance, "meta priority"),
        status.targets[0].sent_packets
    );
    mirror.stop().assert_clean();
}
