//! A sensor that knows nothing of xtee takes every copy: Suricata on the collector decapsulates by
//! itself, finds no broken packet, and raises alerts on what is inside.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/odd_frames.rs"]
mod odd_frames;
#[path = "common/production.rs"]
mod production;
#[path = "common/sensor.rs"]
mod sensor;
#[path = "common/wire.rs"]
mod wire;

use std::collections::BTreeMap;

use mirror::{target, Mirror, TestFolder};
use production::{worker_cpu, MirrorDevice, Production, INSTANCE_V4, INSTANCE_V6, MONITOR};
use sensor::{Report, Sensor, REQUEST_MARKER, REQUEST_RULE, RESPONSE_MARKER, RESPONSE_RULE};

/// Mirrors traffic of all kinds to a sensor. Returns how many copies left, and the sensor's report.
fn watched(device: MirrorDevice, tunnel_counter: &str, arguments: &[&str]) -> (u64, Report) {
    let production = Production::new(device);
    let sensor = Sensor::start(&production.collector, MONITOR);
    let common = ["tap:eth0", "--cpus", worker_cpu(), "--ring-size", "128MiB"];
    let mirror = Mirror::start(&production.instance, &[&common, arguments].concat());
    let folder = TestFolder::new();
    let page = format!("{REQUEST_MARKER}.bin");
    production.http(folder.path(), &page, RESPONSE_MARKER.as_bytes(), 300_000);
    production.pings();
    production.dns();
    production.udp_super_packets();
    production.raw_frames(odd_frames::right);
    for address in [INSTANCE_V4, INSTANCE_V6] {
        // Slow enough for a sensor of one thread beside production on two CPUs.
        production.iperf(address, &["-n", "4M", "-b", "200M"]);
        production.iperf(address, &["-n", "4M", "-b", "200M", "-R"]);
    }
    let status = mirror.assert_balanced();
    let sent = target(&status).sent_packets;
    println!("{status}");
    let finished = mirror.stop();
    finished.assert_clean();
    // Suricata writes its counters every second; at its end it may not have read all of its ring.
    sensor.wait_for(tunnel_counter, sent);
    let report = sensor.stop();
    assert_eq!(production.collector.counter(MONITOR, "rx_dropped"), 0);
    (finished.final_number("sent"), report)
}

fn assert_every_copy_was_taken(sent: u64, tunnel_counter: &str, report: &Report) {
    assert!(sent > 10_000, "{sent}");
    assert_eq!(report.counter("capture.kernel_drops"), 0);
    assert_eq!(report.counter(tunnel_counter), sent, "copies decoded");
    let mut faults = report.faults();
    // The kernels' own MLD reports: padding without bytes, which RFC 8200 (section 4.2) allows.
    faults.remove("decoder.event.ipv6.zero_len_padn");
    assert_eq!(faults, BTreeMap::new());
    assert_eq!(report.counter("tcp.invalid_checksum"), 0);
    assert_eq!(report.alerts.get(&REQUEST_RULE), Some(&1), "{report:?}");
    assert_eq!(report.alerts.get(&RESPONSE_RULE), Some(&1), "{report:?}");
}

macro_rules! require_programs {
    () => {
        require_root!("suricata", "iperf3", "dnsmasq", "dig", "curl", "python3", "taskset", "ss");
    };
}

#[test]
fn vxlan() {
    require_programs!();
    for device in [MirrorDevice::Splits, MirrorDevice::TakesSuperPackets] {
        let arguments = ["--to", "vxlan://203.0.113.2?vni=7&limit=none"];
        let (sent, report) = watched(device, "decoder.vxlan", &arguments);
        assert_every_copy_was_taken(sent, "decoder.vxlan", &report);
    }
}

#[test]
fn gre() {
    require_programs!();
    let arguments = ["--to", "gre://203.0.113.2?key=7&seq=on&limit=none"];
    let (sent, report) = watched(MirrorDevice::Splits, "decoder.gre", &arguments);
    assert_every_copy_was_taken(sent, "decoder.gre", &report);
}
