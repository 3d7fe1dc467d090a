//! The span beside others and where something is wrong: what it leaves to the kernel, several sources and
//! targets, hooks that are refused or taken, interfaces that go away. Nothing stays attached.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/numbered.rs"]
mod numbered;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/xdp_program.rs"]
mod program;
#[path = "common/span_lab.rs"]
mod span_lab;

use std::collections::HashSet;
use std::process::Output;
use std::time::Duration;

use common::netns::{veth, wait_until, VethEnd};
use common::raw_socket::RawSocket;
use mirror::{source, target, xtee_output, Mirror, TestFolder};
use numbered::{Book, KINDS};
use span_lab::{has_xdp, open_files, Collector, Feeder, Lab};

const VXLAN: &str = "vxlan://203.0.113.2?vni=7";
const GRE: &str = "gre://203.0.113.2?key=7";
const PATIENCE: Duration = Duration::from_secs(10);

fn healthy(mirror: &Mirror) {
    mirror.wait_for("a path to the collector", |status| {
        status.targets.iter().all(|target| target.healthy)
    });
}

/// `xtee mirror span:span0 …` that must fail; returns how it did.
fn refused(lab: &Lab, arguments: &[&str]) -> Output {
    let folder = TestFolder::new();
    let socket = folder.file("xtee.sock");
    let mut all = vec!["mirror", "span:span0", "--to", VXLAN, "--socket"];
    all.push(socket.to_str().expect("a path in UTF-8"));
    all.extend(arguments);
    let output = xtee_output(&lab.appliance, &all);
    assert!(!output.status.success());
    assert!(!socket.exists(), "a socket was left behind");
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the rules do not take reaches the kernel as it was, and what they take does not.
fn unmatched_reaches_the_kernel(mode: &str) {
    require_root!();
    let lab = Lab::new(1, 1);
    let collector = Collector::new(&lab.collector, "mon0");
    let arguments = ["span:span0", "--mode", mode, "--to", GRE];
    let filter = ["--protocol", "udp", "--net", "198.51.100.200"];
    let mirror = Mirror::start(&lab.appliance, &[&arguments[..], &filter].concat());
    healthy(&mirror);
    // Nothing is resolved yet: ARP is asked and answered first.
    assert!(lab.ping(), "{mode}");

    let kernel = RawSocket::open(&lab.appliance, "span0");
    let mut feeder = Feeder::new(&lab.feeder, "feed0", 1);
    let (mut book, mut copies) = (Book::default(), Vec::new());
    let (mut taken, mut passed) = (HashSet::new(), HashSet::new());
    for round in 0..8 {
        for kind in 0..KINDS {
            let frame = book.next(kind, round % 2 == 1);
            feeder.send(0, &frame);
            // UDP over IPv4: plain, tagged, fragmented, of extreme sizes.
            if [1, 4, 8, 12].contains(&kind) {
                collector.take(1, &mut copies);
                taken.insert(frame);
            } else {
                passed.insert(frame);
            }
        }
    }
    copies.extend(collector.rest());
    let copied: HashSet<_> = copies.iter().map(|copy| copy.inner.clone()).collect();
    assert_eq!((copies.len(), &copied), (taken.len(), &taken));
    let seen: HashSet<_> = kernel
        .until_idle(Duration::from_millis(100), Duration::from_secs(10))
        .into_iter()
        .filter(|frame| !frame.outgoing)
        .map(|frame| frame.bytes)
        .collect();
    assert_eq!(passed.difference(&seen).count(), 0, "changed on the way");
    assert_eq!(taken.intersection(&seen).count(), 0, "taken and passed");
    let status = mirror.assert_balanced();
    assert_eq!(source(&status).matched, taken.len() as u64);
    assert!(source(&status).unmatched >= passed.len() as u64 + 3);
    mirror.stop().assert_clean();
}

#[test]
fn unmatched_reaches_the_kernel_native() {
    unmatched_reaches_the_kernel("native");
}

#[test]
fn unmatched_reaches_the_kernel_generic() {
    unmatched_reaches_the_kernel("generic");
}

/// Killed, it leaves nothing on the interface: the kernel has its traffic back, and a restart works.
#[test]
fn killed() {
    require_root!();
    let lab = Lab::new(2, 2);
    lab.resolve_span();
    for mode in ["native", "generic"] {
        // Without rules it takes everything, pings too.
        let mirror = Mirror::start(&lab.appliance, &["span:span0", "--mode", mode, "--to", GRE]);
        healthy(&mirror);
        assert!(!lab.ping());
        assert_eq!(mirror.kill().code, None);
        wait_until("the kernel to let go", PATIENCE, || {
            !has_xdp(&lab.appliance, "span0")
        });
        assert!(lab.ping(), "{mode}");
        let again = Mirror::start(&lab.appliance, &["span:span0", "--mode", mode, "--to", GRE]);
        again.stop().assert_clean();
        assert!(lab.ping(), "{mode}");
    }
}

/// A packet of the veth's peer would not fit a page: the program takes packets of several buffers, so
/// native XDP is to be had all the same.
#[test]
fn native_beside_jumbo_frames() {
    require_root!();
    let lab = Lab::new(1, 1);
    lab.feeder.ip(&["link", "set", "feed0", "mtu", "9000"]);
    let mirror = Mirror::start(
        &lab.appliance,
        &["span:span0", "--mode", "native", "--to", VXLAN],
    );
    let mode = source(&mirror.status()).mode.clone();
    assert!(mode.starts_with("native XDP, AF_XDP copy"), "{mode}");
    assert!(mode.ends_with("frames of any size"), "{mode}");
    mirror.stop().assert_clean();
}

/// The driver says beforehand that it has no native XDP: a veth with fewer queues than its peer.
#[test]
fn native_not_offered() {
    require_root!();
    let lab = Lab::new(3, 2);
    let output = refused(&lab, &["--mode", "native"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("the driver of span0 has no native XDP"),
        "{text}"
    );
    let mirror = Mirror::start(&lab.appliance, &["span:span0", "--to", VXLAN]);
    let mode = source(&mirror.status()).mode.clone();
    assert!(mode.starts_with("generic XDP, AF_XDP copy"), "{mode}");
    mirror.stop().assert_clean();
}

/// Another XDP program is there: it stays, and xtee says so.
#[test]
fn hook_taken() {
    require_root!();
    let lab = Lab::new(1, 1);
    {
        let _there = lab.appliance.enter();
        program::attach("span0", &program::pass());
    }
    let id = || {
        let text = lab.appliance.ip(&["-d", "link", "show", "dev", "span0"]);
        let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        let at = words.iter().position(|word| word == "prog/xdp");
        words[at.expect("a program") + 2].clone()
    };
    let before = id();
    for mode in ["auto", "native", "generic"] {
        let output = refused(&lab, &["--mode", mode]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("another XDP program is attached"), "{text}");
        assert_eq!(id(), before);
    }
}

#[test]
fn zero_copy_that_cannot_be_had() {
    require_root!();
    let lab = Lab::new(1, 1);
    let output = refused(&lab, &["--zero-copy", "require"]);
    let text = stderr(&output);
    // The driver says so itself, so this is known before anything is tried.
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("zero copy is required, and the driver of span0 has no zero copy"),
        "{text}"
    );
    assert!(!has_xdp(&lab.appliance, "span0"));
}

/// A tap and a span, two targets: each target gets each packet of both once.
#[test]
fn two_sources_and_two_targets() {
    require_root!();
    let lab = Lab::new(2, 2);
    lab.resolve_span();
    veth(
        &VethEnd::new(&lab.feeder, "user0").address("198.51.100.193/26"),
        &VethEnd::new(&lab.appliance, "live0").address("198.51.100.194/26"),
    );
    let collector = Collector::new(&lab.collector, "mon0");
    let mirror = Mirror::start_config(
        &lab.appliance,
        "[[source]]\nkind = \"tap\"\ninterface = \"live0\"\n\
         [[source]]\nkind = \"span\"\ninterface = \"span0\"\nworkers = 1\n\
         [[target]]\nurl = \"vxlan://203.0.113.2?vni=7\"\n\
         [[target]]\nurl = \"gre://203.0.113.2?key=7\"\n",
    );
    healthy(&mirror);
    let output = lab.feeder.output(
        "ping",
        &["-c", "5", "-i", "0.02", "-W", "2", "198.51.100.194"],
    );
    assert!(output.status.success());
    let mut feeder = Feeder::new(&lab.feeder, "feed0", 2);
    let (mut book, mut copies) = (Book::default(), Vec::new());
    for round in 0..6 {
        for flow in 0..KINDS {
            feeder.send(flow % 2, &book.next(flow, round % 2 == 1));
        }
        let pings = if round == 0 { 10 } else { 0 };
        collector.take(2 * (KINDS + pings), &mut copies);
    }
    copies.extend(collector.rest());
    let ours = |inner: &[u8]| inner[..2] == [2, 0] && inner[4] == 9;
    for vxlan in [true, false] {
        let of_target: Vec<_> = copies
            .iter()
            .filter(|copy| (copy.source_port != 0) == vxlan)
            .cloned()
            .collect();
        let (spanned, tapped): (Vec<_>, Vec<_>) =
            of_target.into_iter().partition(|copy| ours(&copy.inner));
        book.assert_copied_once(&spanned, true);
        let icmp = tapped
            .iter()
            .filter(|copy| copy.inner[12..14] == [8, 0] && copy.inner[23] == 1);
        assert_eq!(icmp.count(), 10);
    }
    let status = mirror.assert_balanced();
    let [tap, span] = &status.sources[..] else {
        panic!("{status}")
    };
    assert_eq!((&*tap.name, &*span.name), ("tap:live0", "span:span0"));
    assert_eq!(span.captured, book.len() as u64);
    assert!(tap.captured >= 10 && tap.mode.starts_with("tcx"));
    let captured = tap.captured + span.captured;
    assert!(status
        .targets
        .iter()
        .all(|target| target.offered == captured));
    mirror.stop().assert_clean();
}

/// Two targets that AF_XDP sends to: one gets copies of the frames, the other the frames themselves.
#[test]
fn two_targets_by_af_xdp() {
    require_root!();
    let lab = Lab::new(2, 2);
    let collector = Collector::new(&lab.collector, "mon0");
    let arguments = ["span:span0", "--workers", "1", "--to"];
    let urls = [GRE, "gre://203.0.113.2?key=8&seq=on"];
    let mirror = Mirror::start(&lab.appliance, &[&arguments[..], &urls].concat());
    healthy(&mirror);
    let mut feeder = Feeder::new(&lab.feeder, "feed0", 2);
    let (mut book, mut copies) = (Book::default(), Vec::new());
    for round in 0..6 {
        for flow in 0..KINDS {
            feeder.send(flow % 2, &book.next(flow, round % 2 == 1));
        }
        collector.take(2 * KINDS, &mut copies);
    }
    copies.extend(collector.rest());
    for key in [7, 8] {
        let of_target: Vec<_> = copies
            .iter()
            .filter(|copy| copy.identifier == Some(key))
            .cloned()
            .collect();
        book.assert_copied_once(&of_target, true);
    }
    let status = mirror.assert_balanced();
    assert!(status.targets.iter().all(|t| t.transmit.starts_with("xsk")));
    mirror.stop().assert_clean();
}

/// A link that goes down and comes up costs nothing but the time; an interface that is deleted is waited for,
/// and made again it is mirrored again: nothing leaks, and all counters go on.
#[test]
fn interface_down_gone_and_there_again() {
    require_root!();
    for url in [GRE, VXLAN] {
        let lab = Lab::new(1, 1);
        let collector = Collector::new(&lab.collector, "mon0");
        let mirror = Mirror::start(&lab.appliance, &["span:span0", "--to", url]);
        healthy(&mirror);
        let state = |wanted: &str| {
            wait_until(wanted, PATIENCE, || {
                source(&mirror.status()).state == wanted
            });
        };
        let mut feeder = Feeder::new(&lab.feeder, "feed0", 1);
        let (mut book, mut copies) = (Book::default(), Vec::new());
        feeder.send(0, &book.next(0, false));
        collector.take(1, &mut copies);
        lab.appliance.ip(&["link", "set", "span0", "down"]);
        state("down");
        lab.appliance.ip(&["link", "set", "span0", "up"]);
        state("present");
        feeder.send(0, &book.next(0, true));
        collector.take(1, &mut copies);

        let mut files = Vec::new();
        for round in 0..4 {
            drop(feeder);
            lab.appliance.ip(&["link", "delete", "span0"]);
            state("waiting");
            files.push(open_files(mirror.pid()));
            lab.wire_span(1, 1);
            state("present");
            feeder = Feeder::new(&lab.feeder, "feed0", 1);
            for flow in 0..2 * KINDS {
                feeder.send(0, &book.next(flow, round % 2 == 1));
                collector.take(1, &mut copies);
            }
        }
        copies.extend(collector.rest());
        book.assert_copied_once(&copies, true);
        assert!(
            files[1..].iter().all(|&count| count == files[1]),
            "{files:?}"
        );
        let status = mirror.assert_balanced();
        assert_eq!(source(&status).matched, book.len() as u64);
        assert_eq!(target(&status).sent_packets, book.len() as u64);
        assert_eq!(target(&status).transmit.contains("xsk"), url == GRE);
        // Gone for good: the end is as clean.
        drop(feeder);
        lab.appliance.ip(&["link", "delete", "span0"]);
        state("waiting");
        let finished = mirror.stop();
        finished.assert_clean();
        assert_eq!(finished.stderr.matches("span0 is gone; waiting").count(), 5);
        assert_eq!(finished.stderr.matches("is there and mirrored").count(), 4);
    }
}
