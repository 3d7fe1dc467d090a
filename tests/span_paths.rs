//! AF_XDP sends past the kernel's routing, so it has to follow it: a collector whose hardware address
//! changes, a route that goes and comes back, or that moves to another device. UDP sockets beside it.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/numbered.rs"]
mod numbered;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/span_lab.rs"]
mod span_lab;

use std::time::{Duration, Instant};

use common::netns::{mac_text, veth, VethEnd};
use mirror::{source, target, Mirror};
use numbered::Book;
use span_lab::{keep_order, Collector, Copy, Feeder, Lab, MIR, MIR_MAC, MON_MAC};

/// On the collector's loopback, so that it can be reached by either link.
const BEHIND: &str = "203.0.113.250";
const NEW_MAC: [u8; 6] = [2, 0, 0, 0, 2, 9];
const SECOND_MIR_MAC: [u8; 6] = [2, 0, 0, 0, 3, 1];
const SECOND_MON_MAC: [u8; 6] = [2, 0, 0, 0, 3, 2];

/// How soon copies have to go the new way.
const SOON: Duration = Duration::from_secs(3);

struct Bench {
    lab: Lab,
    mirror: Mirror,
    feeder: Feeder,
    book: Book,
    queues: usize,
}

impl Bench {
    fn new(lab: Lab, queues: u32, url: &str) -> Bench {
        let arguments = ["span:span0", "--mode", "native", "--to", url, "--workers"];
        let workers = queues.to_string();
        let mirror = Mirror::start(&lab.appliance, &[&arguments[..], &[&workers]].concat());
        mirror.wait_for("a path", |status| target(status).healthy);
        let feeder = Feeder::new(&lab.feeder, "feed0", queues);
        Bench {
            lab,
            mirror,
            feeder,
            book: Book::default(),
            queues: queues as usize,
        }
    }

    /// Sends a frame of each of 26 flows, without waiting for its copy.
    fn feed(&mut self) -> usize {
        for flow in 0..26 {
            let frame = self.book.next(flow, false);
            self.feeder.send(flow % self.queues, &frame);
        }
        let sent = self.book.len() as u64;
        self.mirror
            .wait_for("the workers", |status| target(status).offered == sent);
        26
    }

    fn dropped(&self, reason: &str) -> u64 {
        target(&self.mirror.status()).dropped[reason]
    }

    /// Sends until all copies of a round arrive at `collector`, which must be soon: each worker turns to
    /// the new path by itself.
    fn until_they_arrive(&mut self, collector: &Collector, copies: &mut Vec<Copy>) {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < SOON, "not after {:?}", start.elapsed());
            let count = self.feed();
            let mut arrived = collector.rest();
            let all = arrived.len() == count;
            copies.append(&mut arrived);
            if all {
                return;
            }
        }
    }

    /// Balance, frames home, and nothing lost but for the reasons named.
    fn end(self, reasons: &[&str]) {
        let status = self.mirror.assert_balanced();
        assert_eq!(source(&status).captured, self.book.len() as u64);
        for (reason, packets) in &target(&status).dropped {
            assert!(
                *packets == 0 || reasons.contains(&reason.as_str()),
                "{status}"
            );
        }
        self.mirror.stop().assert_clean();
    }
}

/// The collector gets another hardware address and says so, as most systems do (gratuitous ARP).
fn collector_changes_its_address(url: &str) {
    require_root!();
    let lab = Lab::new(1, 1);
    lab.collector
        .write_sysctl("net/ipv4/conf/mon0/arp_notify", "1");
    let collector = Collector::new(&lab.collector, "mon0");
    let mut bench = Bench::new(lab, 1, url);
    let mut copies = Vec::new();
    let count = bench.feed();
    collector.take(count, &mut copies);
    assert!(copies.iter().all(|copy| copy.macs == (MON_MAC, MIR_MAC)));

    // An address that was learned a moment ago is not given up (locktime, one second).
    bench
        .lab
        .appliance
        .write_sysctl("net/ipv4/neigh/mir0/locktime", "0");
    let text = mac_text(NEW_MAC);
    bench
        .lab
        .collector
        .ip(&["link", "set", "mon0", "address", &text]);
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < SOON, "still to the old address");
        bench.feed();
        let now = collector.rest();
        if now.iter().any(|copy| copy.macs == (NEW_MAC, MIR_MAC)) {
            break;
        }
    }
    copies.clear();
    let count = bench.feed();
    collector.take(count, &mut copies);
    assert!(copies.iter().all(|copy| copy.macs == (NEW_MAC, MIR_MAC)));
    bench.end(&["no_neighbour"]);
}

#[test]
fn collector_changes_its_address_gre() {
    collector_changes_its_address("gre://203.0.113.2?key=7");
}

#[test]
fn collector_changes_its_address_vxlan() {
    collector_changes_its_address("vxlan://203.0.113.2?vni=7");
}

/// The route goes, comes back by another device, and moves to the first one again.
fn route_moves(queues: u32, url: &str) {
    require_root!();
    let lab = Lab::new(queues, queues);
    veth(
        &VethEnd::new(&lab.appliance, "mir1")
            .mac(SECOND_MIR_MAC)
            .queues(queues)
            .mtu(1600)
            .address("203.0.113.129/26"),
        &VethEnd::new(&lab.collector, "mon1")
            .mac(SECOND_MON_MAC)
            .queues(queues)
            .mtu(1600)
            .address("203.0.113.130/26"),
    );
    lab.appliance
        .offload("mir1", &[("tx-udp-segmentation", false)]);
    keep_order(&lab.collector, "mon1", queues);
    lab.collector.address("lo", &format!("{BEHIND}/32"));
    let first = Collector::new(&lab.collector, "mon0");
    let second = Collector::new(&lab.collector, "mon1");
    let appliance = lab.appliance.name().to_owned();
    let route = |verb: &str, gateway: &[&str]| {
        let mut command = std::process::Command::new("ip");
        command.args(["-n", &appliance, "route", verb, BEHIND]);
        common::netns::run(command.args(gateway));
    };
    route("add", &["via", "203.0.113.2"]);
    let mut bench = Bench::new(lab, queues, url);
    let mut copies = Vec::new();
    let count = bench.feed();
    first.take(count, &mut copies);

    route("delete", &[]);
    bench
        .mirror
        .wait_for("no path", |status| !target(status).healthy);
    let count = bench.feed() as u64;
    assert_eq!(bench.dropped("no_route"), count);
    assert_eq!(first.rest().len() + second.rest().len(), 0);

    route("add", &["via", "203.0.113.130"]);
    bench.until_they_arrive(&second, &mut copies);
    let path = target(&bench.mirror.status()).path.clone();
    assert_eq!(path, "by mir1 from 203.0.113.1");
    assert_eq!(first.rest().len(), 0);

    // And back, without a moment without a route; twice, so that a queue is opened that was closed.
    for _ in 0..2 {
        route("replace", &["via", "203.0.113.2"]);
        bench.until_they_arrive(&first, &mut copies);
        route("replace", &["via", "203.0.113.130"]);
        bench.until_they_arrive(&second, &mut copies);
    }
    for copy in &copies {
        let sent = bench.book.find(copy);
        let by_first = copy.macs == (MON_MAC, MIR_MAC);
        let by_second = copy.macs == (SECOND_MON_MAC, SECOND_MIR_MAC);
        assert!(by_first || by_second, "{sent:?}: {:?}", copy.macs);
        // The source stays: the loop guard, and the collector, know the copies by it.
        assert_eq!(copy.addresses, (MIR, BEHIND.parse().expect("an address")));
    }
    bench.end(&["no_route", "no_neighbour"]);
}

#[test]
fn route_moves_gre_one_queue() {
    route_moves(1, "gre://203.0.113.250?key=7");
}

#[test]
fn route_moves_gre_four_queues() {
    route_moves(4, "gre://203.0.113.250?key=7");
}

#[test]
fn route_moves_vxlan() {
    route_moves(1, "vxlan://203.0.113.250?vni=7");
}

/// The next hop does not answer at first: its packets are counted, and copies flow once it does.
#[test]
fn next_hop_not_there_at_first() {
    require_root!();
    let lab = Lab::new(1, 1);
    lab.collector
        .ip(&["address", "delete", "203.0.113.2/25", "dev", "mon0"]);
    let collector = Collector::new(&lab.collector, "mon0");
    let url = "gre://203.0.113.2?key=7";
    let mirror = Mirror::start(&lab.appliance, &["span:span0", "--to", url]);
    let feeder = Feeder::new(&lab.feeder, "feed0", 1);
    let mut bench = Bench {
        lab,
        mirror,
        feeder,
        book: Book::default(),
        queues: 1,
    };
    let count = bench.feed() as u64;
    assert_eq!(bench.dropped("no_neighbour"), count);
    let path = target(&bench.mirror.status()).path.clone();
    assert!(path.contains("hardware address is not resolved"), "{path}");
    bench.lab.collector.address("mon0", "203.0.113.2/25");
    bench.until_they_arrive(&collector, &mut Vec::new());
    bench.end(&["no_neighbour"]);
}
