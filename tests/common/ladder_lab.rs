//! The MTU ladder's test bed: a mirror path as narrow as production's, and what TCP carried.
//!
//! `#[path = "common/ladder_lab.rs"] mod ladder_lab;` beside `mod common;`, `mirror` and `production`.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use xtee::packet::encap::Tunnel;
use xtee::telemetry::status::{Status, TargetStatus};

use crate::mirror::{target, Mirror};
use crate::production::{worker_cpu, MirrorDevice, Production, MIRROR, MONITOR};

/// Without a limit: production in a lab is faster than the default.
pub const VXLAN: &str = "vxlan://203.0.113.2?vni=7&limit=none";
pub const TUNNEL: Tunnel = Tunnel::Vxlan { vni: 7, port: 4789 };
pub const ETHERNET: usize = 14;
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A mirror path of 1500 bytes, as production's.
pub fn narrow() -> Production {
    let production = Production::new(MirrorDevice::Splits);
    production
        .instance
        .ip(&["link", "set", MIRROR, "mtu", "1500"]);
    production
        .collector
        .ip(&["link", "set", MONITOR, "mtu", "1500"]);
    production
}

pub fn start(production: &Production, url: &str, transmit: &str) -> Mirror {
    let arguments = [
        "tap:eth0",
        "--to",
        url,
        "--transmit",
        transmit,
        "--cpus",
        worker_cpu(),
        "--ring-size",
        "256MiB",
    ];
    Mirror::start(&production.instance, &arguments)
}

/// A TCP packet's flow, sequence number, flags and payload.
pub fn tcp(frame: &[u8]) -> Option<(Vec<u8>, u32, u8, &[u8])> {
    if frame.get(12..14)? != [8, 0] || frame[23] != 6 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let segment = frame.get(34..ETHERNET + total)?;
    let flow = [&frame[26..34], &segment[..4]].concat();
    let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
    let header = usize::from(segment[12] >> 4) * 4;
    Some((flow, sequence, segment[13], &segment[header..]))
}

/// What each direction of each connection carried, from its SYN on.
pub fn streams<F: AsRef<[u8]>>(frames: impl IntoIterator<Item = F>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut first = BTreeMap::new();
    let mut streams: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for frame in frames {
        let Some((flow, sequence, flags, payload)) = tcp(frame.as_ref()) else {
            continue;
        };
        if flags & 2 != 0 {
            first.insert(flow.clone(), sequence.wrapping_add(1));
        }
        let Some(first) = first.get(&flow) else {
            continue;
        };
        let at = sequence.wrapping_sub(*first) as usize;
        let stream = streams.entry(flow).or_default();
        if payload.is_empty() {
            continue;
        }
        if stream.len() < at + payload.len() {
            stream.resize(at + payload.len(), 0);
        }
        stream[at..at + payload.len()].copy_from_slice(payload);
    }
    streams
}

/// Everything was sent, and how many copies that were.
pub fn all_sent(status: &Status) -> &TargetStatus {
    let sender = target(status);
    assert_eq!(sender.sent_packets, sender.offered, "{status}");
    assert!(status.imbalances().is_empty(), "{status}");
    sender
}
