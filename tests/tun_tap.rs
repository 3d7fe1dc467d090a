//! A device whose packets begin with the IP header (tun, as VPNs have it) is tapped: the copies are the
//! decrypted inner packets behind a synthetic Ethernet header, super-packets cut, and a sensor takes them.

#[macro_use]
mod common;
#[path = "common/compare.rs"]
mod compare;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/odd_frames.rs"]
mod odd_frames;
#[path = "common/production.rs"]
mod production;
#[path = "common/sensor.rs"]
mod sensor;
#[path = "common/tun_pair.rs"]
mod tun_pair;
#[path = "common/wire.rs"]
mod wire;

use std::time::Duration;

use common::netns::wait_until;
use compare::{assert_tshark_agrees, compare, copies, Comparison, Copy, Expect};
use mirror::{source, target, Mirror, TestFolder};
use production::{
    bind, worker_cpu, MirrorDevice, Production, CLIENT_V4, ETH, INSTANCE_V4, INSTANCE_V6,
    MIRROR_MTU, MONITOR, MTU,
};
use sensor::{Sensor, REQUEST_MARKER, REQUEST_RULE, RESPONSE_MARKER, RESPONSE_RULE};
use tun_pair::TunPair;
use wire::{Seen, WireCapture};
use xtee::packet::encap::{Inner, Tunnel};
use xtee::packet::link::synthetic_macs;
use xtee::packet::Direction;

const PATIENCE: Duration = Duration::from_secs(15);

/// Client and instance as the two ends of a VPN.
fn vpn() -> (Production, TunPair) {
    let production = Production::unwired(MirrorDevice::Splits);
    let pair = TunPair::new(&production.client, &production.instance, ETH);
    for (namespace, last) in [(&production.client, 1), (&production.instance, 2)] {
        namespace.address(ETH, &format!("198.51.100.{last}/24"));
        namespace.address(ETH, &format!("2001:db8::{last}/64"));
        namespace.ip(&["link", "set", ETH, "mtu", "1500", "up"]);
    }
    (production, pair)
}

/// Datagrams that nothing else sends: they mark a moment in the captures.
fn mark(production: &Production, number: u8) {
    let socket = bind(&production.client, CLIENT_V4, 7777);
    let sent = socket.send_to(&[number; 40], (INSTANCE_V4, 7778));
    assert_eq!(sent.expect("send a mark"), 40);
}

/// What the client's device saw, as the copies of the instance's have to be: `Seen` begins with an
/// Ethernet header, the one that xtee makes up.
fn framed(mut seen: Seen) -> Seen {
    let direction = match seen.outgoing {
        true => Direction::In,
        false => Direction::Out,
    };
    let ethertype = match seen.bytes[0] >> 4 {
        4 => [0x08, 0x00],
        _ => [0x86, 0xdd],
    };
    let macs = synthetic_macs(&format!("tap:{ETH}"))[direction as usize];
    seen.bytes = [&macs[..], &ethertype, &seen.bytes].concat();
    seen.unfinished = seen.unfinished.map(|(start, field)| (start + 14, field));
    seen
}

fn between_marks<T>(mut frames: Vec<T>, bytes: impl Fn(&T) -> &[u8]) -> Vec<T> {
    let find = |number: u8| {
        let place = frames
            .iter()
            .position(|frame| bytes(frame).ends_with(&[number; 40]));
        place.unwrap_or_else(|| panic!("mark {number} is missing"))
    };
    let (first, last) = (find(1), find(2));
    frames.drain(first + 1..last).collect()
}

/// Mirrors what runs through the tunnel and compares it with what the other end saw.
fn compared(tunnel: Tunnel, arguments: &[&str]) -> Comparison {
    let (production, _pair) = vpn();
    // Else the kernel answers a mark by an error, in which the mark's unfinished checksum is quoted.
    let _taker = bind(&production.instance, INSTANCE_V4, 7778);
    let originals = WireCapture::start(&production.client, ETH);
    let arrived = WireCapture::incoming(&production.collector, MONITOR);
    let common = ["tap:eth0", "--cpus", worker_cpu(), "--ring-size", "128MiB"];
    let mirror = Mirror::start(&production.instance, &[&common, arguments].concat());
    assert!(
        mirror
            .stdout()
            .contains("IP packets: copies get an Ethernet header"),
        "{}",
        mirror.stdout()
    );
    wait_until("the first copy", PATIENCE, || {
        mark(&production, 9);
        target(&mirror.status()).sent_packets > 0
    });
    mirror.settled();
    mark(&production, 1);
    let folder = TestFolder::new();
    production.dns();
    production.http(folder.path(), "page.bin", b"", 300_000);
    production.udp_super_packets();
    for address in [INSTANCE_V4, INSTANCE_V6] {
        for size in ["56", "1400", "4000"] {
            let arguments = ["-c", "2", "-i", "0.01", "-W", "5", "-s", size, address];
            production.client.run("ping", &arguments);
        }
        production.iperf(address, &["-n", "8M"]);
        production.iperf(address, &["-n", "8M", "-R"]);
    }
    mirror.assert_balanced();
    mark(&production, 2);
    let status = mirror.assert_balanced();
    let dropped: u64 = source(&status).dropped.values().sum();
    assert_eq!(dropped, 0, "{status}");
    let sender = target(&status);
    assert_eq!(sender.sent_packets, sender.offered, "{status}");
    mirror.stop().assert_clean();

    let originals = originals.stop().into_iter().map(framed).collect();
    let originals = between_marks(originals, |seen: &Seen| &seen.bytes);
    let all = copies(&arrived.stop(), tunnel, MIRROR_MTU);
    let copies = between_marks(all, |copy: &Copy| &copy.inner);
    let compared =
        compare(&originals, &copies, MTU, Expect::All).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{compared:?}");
    assert_tshark_agrees(&copies, &[], folder.path());
    compared
}

macro_rules! require_programs {
    () => {
        require_root!("iperf3", "tshark", "dnsmasq", "dig", "curl", "python3", "taskset", "ss");
    };
}

fn assert_super_packets(compared: &Comparison) {
    let (tcp, udp) = compared.super_packets;
    assert!(tcp > 50 && udp >= 4, "{compared:?}");
    assert!(compared.unfinished > 50, "{compared:?}");
}

/// Super-packets cross the tunnel whole, those of the instance's kernel and those that its device receives.
#[test]
fn copies_equal_what_the_other_end_saw() {
    require_programs!();
    let tunnel = Tunnel::Vxlan { vni: 7, port: 4789 };
    let arguments = ["--to", "vxlan://203.0.113.2?vni=7&limit=none"];
    assert_super_packets(&compared(tunnel, &arguments));
}

#[test]
fn by_clsact_and_gre() {
    require_programs!();
    let tunnel = Tunnel::Gre {
        key: Some(7),
        sequence: false,
        inner: Inner::Ethernet,
    };
    let arguments = [
        "--to",
        "gre://203.0.113.2?key=7&limit=none",
        "--attach",
        "clsact",
    ];
    assert_super_packets(&compared(tunnel, &arguments));
}

#[test]
fn the_sensor_alerts() {
    require_root!("suricata", "curl", "python3", "taskset", "ss");
    let (production, _pair) = vpn();
    let sensor = Sensor::start(&production.collector, MONITOR);
    let arguments = ["tap:eth0", "--to", "vxlan://203.0.113.2?vni=7&limit=none"];
    let mirror = Mirror::start(&production.instance, &arguments);
    let folder = TestFolder::new();
    let page = format!("{REQUEST_MARKER}.bin");
    production.http(folder.path(), &page, RESPONSE_MARKER.as_bytes(), 100_000);
    let status = mirror.assert_balanced();
    mirror.stop().assert_clean();
    let sent = target(&status).sent_packets;
    sensor.wait_for("decoder.vxlan", sent);
    let report = sensor.stop();
    assert!(sent > 70, "{status}");
    assert_eq!(report.alerts.get(&REQUEST_RULE), Some(&1), "{report:?}");
    assert_eq!(report.alerts.get(&RESPONSE_RULE), Some(&1), "{report:?}");
    let mut faults = report.faults();
    // The kernels' own MLD reports: padding without bytes, which RFC 8200 (section 4.2) allows.
    faults.remove("decoder.event.ipv6.zero_len_padn");
    assert!(faults.is_empty(), "{faults:?}");
}
