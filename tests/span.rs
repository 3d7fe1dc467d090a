//! The span, end to end: numbered frames go in by chosen queues, every copy is compared at the
//! collector, in native and generic XDP, with one and four queues, in VXLAN by UDP and GRE by AF_XDP.

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

use mirror::{source, target, Mirror};
use numbered::{Book, KINDS};
use span_lab::{
    has_xdp, Collector, Copy, Feeder, Lab, BURST, FEED_MAC, MIR, MIR_MAC, MON, MON_MAC, SPAN_MAC,
};
use xtee::packet::flow::hash_frame;
use xtee::telemetry::status::Status;

const VXLAN: &str = "vxlan://203.0.113.2?vni=7";
const GRE: &str = "gre://203.0.113.2?key=7";
const GRE_NUMBERED: &str = "gre://203.0.113.2?key=7&seq=on";

/// Flows of the tests: a few of each kind.
const FLOWS: usize = 3 * KINDS;

/// Takes everything but what is for the appliance itself.
const RULES: &str = "
default_action = \"mirror\"
[[rule]]
action = \"skip\"
networks = [\"198.51.100.2/32\"]
";

/// One combination.
#[derive(Clone, Copy, Debug)]
struct Case {
    mode: &'static str,
    queues: usize,
    workers: usize,
    url: &'static str,
}

impl Case {
    fn new(mode: &'static str, queues: usize, url: &'static str) -> Case {
        let workers = queues;
        Case {
            mode,
            queues,
            workers,
            url,
        }
    }

    /// Without NAPI a veth leaves the sending queue's number in the packet, where generic XDP reads
    /// numbers that begin at 1: sending queue n + 1 is receiving queue n.
    fn shift(self) -> usize {
        usize::from(self.mode == "generic" && self.queues > 1)
    }

    fn lab(self) -> Lab {
        let queues = self.queues as u32;
        Lab::new(queues + self.shift() as u32, queues)
    }

    fn feeder(self, lab: &Lab) -> Feeder {
        Feeder::new(&lab.feeder, "feed0", (self.queues + self.shift()) as u32)
    }

    fn configuration(self) -> String {
        // With more workers than CPUs they cannot be pinned.
        let pinned = if self.workers == 1 { "cpus = [1]" } else { "" };
        format!(
            "{RULES}[[source]]\nkind = \"span\"\ninterface = \"span0\"\nmode = \"{}\"\nworkers = {}\n{pinned}\n\
             [[target]]\nurl = \"{}\"\n",
            self.mode, self.workers, self.url
        )
    }

    /// The queue that a frame arrives on: never one queue for both directions of a flow.
    fn queue(self, flow: usize, back: bool) -> usize {
        (2 * flow + usize::from(back)) % self.queues
    }
}

fn healthy(mirror: &Mirror) {
    mirror.wait_for("a path to the collector", |status| {
        status.targets.iter().all(|target| target.healthy)
    });
}

/// Sends `rounds` frames of each direction of each flow, a burst at a time, each burst's copies awaited
/// so that no ring can overflow. Returns how many frames were handed over if `workers` owned the flows.
fn feed(
    case: Case,
    feeder: &mut Feeder,
    collector: &Collector,
    rounds: usize,
    book: &mut Book,
    copies: &mut Vec<Copy>,
) -> u64 {
    let (mut waiting, mut handed_over) = (0, 0);
    for round in 0..rounds {
        for flow in 0..FLOWS {
            for back in [false, true] {
                let frame = book.next(flow, back);
                let queue = case.queue(flow, back);
                let owner = (u64::from(hash_frame(&frame)) * case.workers as u64) >> 32;
                handed_over += u64::from(owner as usize != queue % case.workers);
                feeder.send(queue + case.shift(), &frame);
                waiting += 1;
                let last = (round, flow, back) == (rounds - 1, FLOWS - 1, true);
                if waiting == BURST || last {
                    collector.take(waiting, copies);
                    waiting = 0;
                }
            }
        }
    }
    handed_over
}

fn assert_outer(copies: &[Copy], url: &str) {
    for copy in copies {
        assert_eq!(copy.macs, (MON_MAC, MIR_MAC));
        assert_eq!(copy.addresses, (MIR, MON));
        assert_eq!(copy.identifier, Some(7));
        let vxlan = url.starts_with("vxlan");
        assert_eq!((61000..61064).contains(&copy.source_port), vxlan);
        assert_eq!(copy.sequence.is_some(), url.contains("seq=on"));
    }
}

fn assert_mode(status: &Status, case: Case) {
    let mode = &source(status).mode;
    let wanted = format!("{} XDP, AF_XDP copy, need_wakeup, busy polling", case.mode);
    assert!(mode.starts_with(&wanted), "{mode}");
    let transmit = &target(status).transmit;
    let wanted = if case.url.starts_with("vxlan") {
        "udp, UDP_SEGMENT"
    } else {
        "xsk, copy, need_wakeup"
    };
    assert!(transmit.starts_with(wanted), "{transmit}");
    // One text: all workers have the same transmitter.
    assert_eq!(
        transmit.matches("copy").count(),
        wanted.matches("copy").count()
    );
}

fn every_frame_once(case: Case) {
    require_root!();
    let lab = case.lab();
    lab.resolve_span();
    let collector = Collector::new(&lab.collector, "mon0");
    let mirror = Mirror::start_config(&lab.appliance, &case.configuration());
    assert!(has_xdp(&lab.appliance, "span0"));
    healthy(&mirror);
    assert_mode(&mirror.status(), case);

    let mut feeder = case.feeder(&lab);
    let (mut book, mut copies) = (Book::default(), Vec::new());
    let handed_over = feed(case, &mut feeder, &collector, 12, &mut book, &mut copies);
    assert!(lab.ping(), "what is skipped reaches the kernel");
    copies.extend(collector.rest());
    book.assert_copied_once(&copies, true);
    assert_outer(&copies, case.url);
    if case.url == GRE_NUMBERED {
        let numbers: Vec<_> = copies.iter().map(|copy| copy.sequence).collect();
        let wanted: Vec<_> = (0..copies.len() as u32).map(Some).collect();
        assert_eq!(numbers, wanted);
    }

    let status = mirror.assert_balanced();
    let (seen, sent) = (source(&status), book.len() as u64);
    assert_eq!((seen.captured, seen.matched), (sent, sent));
    assert_eq!(seen.unmatched, 3, "three pings");
    assert_eq!(target(&status).sent_packets, sent);
    let ip_bytes = |copy: &Copy| copy.inner.len() as u64 + overhead(case.url);
    let bytes: u64 = copies.iter().map(ip_bytes).sum();
    assert_eq!(target(&status).sent_bytes, bytes);
    // The two directions were on different queues, and each flow had one worker all the same.
    let counted: u64 = seen.workers.iter().map(|worker| worker.handed_over).sum();
    assert_eq!(counted, handed_over);
    assert_eq!(handed_over > sent / 4, case.workers > 1);
    assert_eq!(seen.workers.len(), case.workers);
    assert!(seen.workers.iter().all(|worker| worker.frames > 0));

    let finished = mirror.stop();
    finished.assert_clean();
    assert!(!has_xdp(&lab.appliance, "span0"));
    assert_eq!(finished.final_number("captured"), sent);
}

/// Bytes from the outer IP header to the inner frame.
fn overhead(url: &str) -> u64 {
    match url {
        VXLAN => 20 + 8 + 8,
        GRE => 20 + 8,
        _ => 20 + 12,
    }
}

#[test]
fn native_one_queue_vxlan() {
    every_frame_once(Case::new("native", 1, VXLAN));
}

#[test]
fn native_one_queue_gre_numbered() {
    every_frame_once(Case::new("native", 1, GRE_NUMBERED));
}

#[test]
fn native_four_queues_vxlan() {
    every_frame_once(Case::new("native", 4, VXLAN));
}

#[test]
fn native_four_queues_gre() {
    every_frame_once(Case::new("native", 4, GRE));
}

#[test]
fn native_four_queues_one_worker_gre_numbered() {
    let workers = 1;
    every_frame_once(Case {
        workers,
        ..Case::new("native", 4, GRE_NUMBERED)
    });
}

#[test]
fn generic_one_queue_vxlan() {
    every_frame_once(Case::new("generic", 1, VXLAN));
}

#[test]
fn generic_one_queue_gre_numbered() {
    every_frame_once(Case::new("generic", 1, GRE_NUMBERED));
}

#[test]
fn generic_four_queues_vxlan() {
    every_frame_once(Case::new("generic", 4, VXLAN));
}

#[test]
fn generic_four_queues_gre() {
    every_frame_once(Case::new("generic", 4, GRE));
}

#[test]
fn generic_four_queues_one_worker_gre_numbered() {
    let workers = 1;
    every_frame_once(Case {
        workers,
        ..Case::new("generic", 4, GRE_NUMBERED)
    });
}

/// The collector stands behind the span itself: copies leave by the queue that their frames came from.
fn by_the_span_itself(case: Case) {
    require_root!();
    let lab = case.lab();
    lab.feeder.address("feed0", "203.0.113.130/25");
    lab.appliance.address("span0", "203.0.113.129/25");
    span_lab::keep_order(&lab.feeder, "feed0", (case.queues + case.shift()) as u32);
    lab.appliance
        .offload("span0", &[("tx-udp-segmentation", false)]);
    let collector = Collector::new(&lab.feeder, "feed0");
    let url = case.url.replace("203.0.113.2", "203.0.113.130");
    // Answers of the neighbour must reach the kernel.
    let rules = format!(
        "default_action = \"mirror\"\n[[rule]]\naction = \"skip\"\nnetworks = [\"203.0.113.128/25\"]\n\
         [[source]]\nkind = \"span\"\ninterface = \"span0\"\nmode = \"{}\"\nworkers = {}\n\
         [[target]]\nurl = \"{url}\"\n",
        case.mode, case.workers
    );
    lab.appliance.neighbour("span0", "203.0.113.130", FEED_MAC);
    lab.feeder.neighbour("feed0", "203.0.113.129", SPAN_MAC);
    let mirror = Mirror::start_config(&lab.appliance, &rules);
    healthy(&mirror);
    assert_mode(&mirror.status(), case);

    let mut feeder = case.feeder(&lab);
    let (mut book, mut copies) = (Book::default(), Vec::new());
    feed(case, &mut feeder, &collector, 6, &mut book, &mut copies);
    copies.extend(collector.rest());
    book.assert_copied_once(&copies, true);
    for copy in &copies {
        assert_eq!(copy.macs, (FEED_MAC, SPAN_MAC));
    }
    let status = mirror.assert_balanced();
    assert_eq!(target(&status).sent_packets, book.len() as u64);
    assert_eq!(target(&status).path, "by span0 from 203.0.113.129");
    mirror.stop().assert_clean();
}

#[test]
fn target_behind_the_span_native_one_queue() {
    by_the_span_itself(Case::new("native", 1, GRE_NUMBERED));
}

#[test]
fn target_behind_the_span_native_four_queues() {
    by_the_span_itself(Case::new("native", 4, GRE));
}

#[test]
fn target_behind_the_span_generic_four_queues() {
    by_the_span_itself(Case::new("generic", 4, GRE));
}

#[test]
fn target_behind_the_span_by_udp() {
    by_the_span_itself(Case::new("native", 1, VXLAN));
}
