//! A tap that cannot keep up: production loses nothing, every lost copy is counted, and what was
//! copied is right.

#[macro_use]
mod common;
#[path = "common/compare.rs"]
mod compare;
#[path = "common/echo_stream.rs"]
mod echo_stream;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/odd_frames.rs"]
mod odd_frames;
#[path = "common/production.rs"]
mod production;
#[path = "common/tapped.rs"]
mod tapped;
#[path = "common/wire.rs"]
mod wire;

use xtee::packet::encap::{Inner, Tunnel};
use xtee::reason::Reason;

use compare::{compare, copies, Expect};
use echo_stream::EchoStream;
use mirror::{source, target, Mirror};
use production::{
    worker_cpu, MirrorDevice, Production, ETH, INSTANCE_V4, MIRROR_MTU, MONITOR, MTU,
};
use tapped::{Outcome, Tapped};
use wire::WireCapture;

const VXLAN: &str = "vxlan://203.0.113.2?vni=7&limit=none";
const TUNNEL: Tunnel = Tunnel::Vxlan { vni: 7, port: 4789 };

/// Both interfaces count the same packets, and neither dropped one but the `marks`, which nobody wants.
fn assert_interfaces_agree(production: &Production, marks: u64) {
    let (client, instance) = (&production.client, &production.instance);
    for (from, to) in [(client, instance), (instance, client)] {
        let sent = from.counter(ETH, "tx_packets");
        let received = to.counter(ETH, "rx_packets");
        assert_eq!(sent, received, "packets that left and that arrived");
        assert_eq!(from.counter(ETH, "tx_dropped"), 0);
    }
    assert_eq!(client.counter(ETH, "rx_dropped"), 0);
    assert_eq!(instance.counter(ETH, "rx_dropped"), marks);
}

/// The ring was full, nothing else was lost, every packet is accounted for, and the copies are right.
/// Returns how many packets were dropped.
fn assert_overloaded(production: &Production, outcome: &Outcome) -> u64 {
    let status = &outcome.status;
    let compared = compare(&outcome.originals, &outcome.copies, MTU, Expect::Some)
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{compared:?}, {} copies", outcome.copies.len());
    let tap = source(status);
    let lost = tap.dropped[Reason::Ring.name()];
    assert!(lost > 0, "this was to be too much: {status}");
    assert_eq!(tap.dropped.values().sum::<u64>(), lost, "{status}");
    let sender = target(status);
    assert_eq!(sender.sent_packets, sender.offered, "{status}");
    assert!(sender.sent_packets > 100, "{status}");
    // All that the client's interface saw, and the two marks.
    assert_eq!(tap.seen, compared.packets as u64 + 2, "{status}");
    assert_eq!(outcome.copies.len() as u64 + 2, tap.captured, "{status}");
    assert_interfaces_agree(production, 2);
    lost
}

#[test]
fn bulk_tcp_through_a_ring_that_holds_two_super_packets() {
    require_root!("iperf3", "taskset", "ss");
    let production = Production::new(MirrorDevice::Splits).silent();
    let arguments = [
        "--to",
        VXLAN,
        "--ring-size",
        "128KiB",
        "--cpus",
        worker_cpu(),
    ];
    let tapped = Tapped::start(&production, TUNNEL, &arguments);
    for direction in [&["-n", "30M"][..], &["-n", "30M", "-R"]] {
        let report = production.iperf(INSTANCE_V4, direction);
        // Of what is sent last iperf3 does not wait for all to be received.
        let sent = &report["end"]["sum_sent"]["bytes"];
        assert!(sent.as_u64() >= Some(30_000_000), "{sent}");
    }
    assert_overloaded(&production, &tapped.finish());
}

#[test]
fn a_flood_of_datagrams_on_the_workers_own_cpu() {
    require_root!();
    let production = Production::new(MirrorDevice::Splits).silent();
    let arguments = ["--to", VXLAN, "--ring-size", "64KiB", "--cpus", "0"];
    let tapped = Tapped::start(&production, TUNNEL, &arguments);
    let _here = on_cpu(0);
    let stream = EchoStream::start(&production, 64, None);
    stream.go_on(100_000);
    let passed = stream.stop();
    passed.assert_nothing_lost();
    assert_overloaded(&production, &tapped.finish());
}

/// A ring smaller than one super-packet: none can ever be copied, and each is counted.
#[test]
fn super_packets_that_fit_no_ring_are_counted() {
    require_root!("iperf3", "taskset", "ss");
    let production = Production::new(MirrorDevice::Splits).silent();
    let arguments = [
        "--to",
        VXLAN,
        "--ring-size",
        "64KiB",
        "--cpus",
        worker_cpu(),
    ];
    let tapped = Tapped::start(&production, TUNNEL, &arguments);
    production.iperf(INSTANCE_V4, &["-n", "10M"]);
    assert_overloaded(&production, &tapped.finish());
}

/// The balance holds, and every copy that was sent arrived, too when it is started and ended in the
/// middle.
#[test]
fn started_and_ended_under_load() {
    require_root!("tc");
    const GRE: &str = "gre://203.0.113.2?key=7&transmit=raw&limit=none";
    let gre = Tunnel::Gre {
        key: Some(7),
        sequence: false,
        inner: Inner::Ethernet,
    };
    let production = Production::new(MirrorDevice::Splits).silent();
    // Where the qdisc has to be made, production loses packets: see tap_kill.rs.
    production
        .instance
        .run("tc", &["qdisc", "add", "dev", ETH, "clsact"]);
    for (tunnel, arguments) in [
        (TUNNEL, &["--to", VXLAN, "--ring-size", "64KiB"][..]),
        (TUNNEL, &["--to", VXLAN, "--attach", "clsact"]),
        (TUNNEL, &["--to", VXLAN, "--transmit", "xsk"]),
        (gre, &["--to", GRE]),
    ] {
        let arrived = WireCapture::incoming(&production.collector, MONITOR);
        let stream = EchoStream::start(&production, 64, None);
        let arguments = [&["tap:eth0"], arguments].concat();
        let mirror = Mirror::start(&production.instance, &arguments);
        stream.go_on(20_000);
        let finished = mirror.stop();
        stream.go_on(1_000);
        stream.stop().assert_nothing_lost();
        finished.assert_clean();
        println!("{}", finished.stdout);
        assert!(finished.final_number("seen") > 10_000);
        let copies = copies(&arrived.stop(), tunnel, MIRROR_MTU);
        assert_eq!(copies.len() as u64, finished.final_number("sent"));
    }
    assert_interfaces_agree(&production, 0);
}

/// Puts the calling thread, and those that it starts, on one CPU until the guard is dropped.
fn on_cpu(cpu: usize) -> OnCpu {
    // SAFETY: a cpu_set_t of zeros is the empty set.
    let mut before: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of::<libc::cpu_set_t>();
    // SAFETY: the set is as large as `size` says.
    let result = unsafe { libc::sched_getaffinity(0, size, &mut before) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    assert!(core_affinity::set_for_current(core_affinity::CoreId {
        id: cpu
    }));
    OnCpu { before }
}

struct OnCpu {
    before: libc::cpu_set_t,
}

impl Drop for OnCpu {
    fn drop(&mut self) {
        // SAFETY: the set is as large as the size says.
        unsafe { libc::sched_setaffinity(0, std::mem::size_of_val(&self.before), &self.before) };
    }
}
