//! `xtee probe`: marked test copies arrive as the tunnel wants them, and what is told of the way is true.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/tapped_lab.rs"]
mod tapped_lab;

use common::netns;
use common::raw_socket;
use mirror::xtee_output;
use serde_json::Value;
use tapped_lab::Tapped;
use xtee::packet::encap::{decapsulate, TunnelPorts};
use xtee::packet::probe::recognise;

/// Runs a probe; returns its exit code, its JSON and the inner frames that arrived.
fn probe(lab: &Tapped, arguments: &[&str]) -> (Option<i32>, Value, Vec<Vec<u8>>) {
    let monitor = lab.monitor().in_background();
    let output = xtee_output(&lab.instance, &[&["probe", "--json"], arguments].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let frames = monitor.stop();
    let inner = frames
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| {
            let found = decapsulate(&frame.bytes, TunnelPorts::default())?;
            Some(frame.bytes[found.inner].to_vec())
        });
    (output.status.code(), report, inner.collect())
}

fn assert_numbered(frames: &[Vec<u8>], count: u32, size: usize) {
    let numbers: Vec<_> = frames.iter().filter_map(|frame| recognise(frame)).collect();
    let id = numbers.first().expect("a test copy").0;
    assert_eq!(
        numbers,
        (0..count).map(|number| (id, number)).collect::<Vec<_>>()
    );
    assert!(frames.iter().all(|frame| frame.len() == size));
}

#[test]
fn test_copies_arrive_by_every_transmitter() {
    require_root!();
    let lab = Tapped::new();
    for (url, transmit) in [
        ("vxlan://203.0.113.2?vni=7", "udp"),
        ("vxlan://203.0.113.2?vni=7&transmit=xsk", "xsk"),
        ("gre://203.0.113.2?key=7&transmit=raw", "raw"),
    ] {
        let (code, report, frames) = probe(&lab, &[url, "--count", "4", "--size", "300"]);
        assert_eq!(code, Some(0), "{url}: {report:#}");
        assert_eq!((&report["sent"], &report["wanted"]), (&4.into(), &4.into()));
        assert!(report["transmit"]
            .as_str()
            .expect("words")
            .starts_with(transmit));
        assert_numbered(&frames, 4, 300);
        let way = &report["way"];
        assert_eq!(way["address"], "203.0.113.2");
        assert_eq!(way["source"], "203.0.113.1");
        assert_eq!(way["devices"][0], "mir0");
        assert_eq!(way["next_hop"], "203.0.113.2");
        assert_eq!(way["path_mtu"], 1600);
        assert_eq!(way["full_size_fits"], true);
        assert!(report["arrived"]
            .as_str()
            .expect("words")
            .starts_with("unknown"));
        // Nobody listens at the collector: its kernel says so, which is normal.
        let errors = report["icmp"].as_array().expect("a list");
        let normal = ["port_unreachable", "protocol_unreachable"];
        for error in errors {
            assert!(
                normal.iter().any(|name| error["error"] == *name),
                "{errors:?}"
            );
            assert_eq!(error["from"], "203.0.113.2");
        }
        assert!(!errors.is_empty(), "{url}");
    }
}

#[test]
fn what_cannot_be_sent_is_told_with_its_reason() {
    require_root!();
    let lab = Tapped::new();
    lab.instance.ip(&["link", "set", "mir0", "mtu", "1500"]);
    // Too large for the path: in fragments, as a mirror would send it, unless that is not wanted.
    let (code, report, _) = probe(&lab, &["vxlan://203.0.113.2?vni=7", "--size", "1514"]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["sent"], 5);
    assert_eq!(report["way"]["full_size_fits"], false);
    let url = "vxlan://203.0.113.2?vni=7&oversize=drop";
    let (code, report, frames) = probe(&lab, &[url, "--size", "1514"]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(report["dropped"]["oversize"], 5);
    assert_eq!(report["way"]["full_size_fits"], false);
    assert!(frames.is_empty());
    // A neighbour that does not answer.
    let (code, report, _) = probe(&lab, &["gre://203.0.113.99?transmit=xsk", "--count", "2"]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(report["dropped"]["no_neighbour"], 2);
    // No route, no name, and a URL that is none.
    let (code, report, _) = probe(&lab, &["vxlan://198.18.0.1?vni=7"]);
    assert_eq!(code, Some(1), "{report:#}");
    let problem = report["problem"].as_str().expect("a problem");
    assert!(problem.contains("no route"), "{problem}");
    let (code, report, _) = probe(&lab, &["vxlan://xtee.invalid?vni=7"]);
    assert_eq!(code, Some(1), "{report:#}");
    for wrong in ["vxlan://203.0.113.2", "pcap:-", "discard:"] {
        let (code, report, _) = probe(&lab, &[wrong]);
        assert_eq!((code, report), (Some(2), Value::Null), "{wrong}");
    }
    let text = lab
        .instance
        .output(env!("CARGO_BIN_EXE_xtee"), &["probe", "gre://203.0.113.2"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("are 38 bytes too long") || text.contains("(1514)"),
        "{text}"
    );
}
