//! A tapped instance with a collector a target, each on a link of its own, and flows of numbered packets.
//!
//! client eth0 ── eth0 instance mir0 203.0.113.1/30 ── 203.0.113.2 mon0 collector 0
//!                              mir1 203.0.113.5/30 ── 203.0.113.6 mon0 collector 1 …
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::common::netns::{self, veth, Namespace, VethEnd};
use crate::common::raw_socket::{Capture, RawSocket};
use crate::copies::{self, Copy};
use crate::mirror::Mirror;
use crate::packets;

/// The namespaces, wired.
pub struct Lab {
    pub client: Namespace,
    pub instance: Namespace,
    pub collectors: Vec<Namespace>,
    from_client: RawSocket,
    from_instance: RawSocket,
}

/// One packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Numbered {
    pub flow: u32,
    pub back: bool,
    pub round: u32,
}

impl Numbered {
    fn code(self) -> u32 {
        self.flow << 17 | u32::from(self.back) << 16 | self.round
    }

    fn of(code: u32) -> Numbered {
        Numbered {
            flow: code >> 17,
            back: code & 1 << 16 != 0,
            round: code & 0xffff,
        }
    }

    /// Its frame: `size` bytes of UDP payload, between addresses that nobody has.
    fn frame(self, size: usize) -> Vec<u8> {
        let mut payload = vec![0x5a; size.max(8)];
        payload[..4].copy_from_slice(b"xtee");
        payload[4..8].copy_from_slice(&self.code().to_be_bytes());
        let client = format!("198.51.100.{}", 100 + self.flow % 100);
        let (near, far) = (
            (client.as_str(), 20000 + self.flow as u16),
            ("198.51.100.250", 443),
        );
        let ((from, port), (to, other)) = if self.back { (far, near) } else { (near, far) };
        packets::udp4(from, port, to, other, &payload)
    }
}

impl Lab {
    pub fn new(targets: usize) -> Lab {
        let (client, instance) = (Namespace::new(), Namespace::new());
        veth(
            &VethEnd::new(&client, "eth0").mac(packets::MAC_A),
            &VethEnd::new(&instance, "eth0").mac(packets::MAC_B),
        );
        let mut collectors = Vec::new();
        for number in 0..targets {
            let collector = Namespace::new();
            let (device, near, far) = (device(number), near(number), address(number));
            veth(
                &VethEnd::new(&instance, &device)
                    .mtu(1600)
                    .address(&format!("{near}/30")),
                &VethEnd::new(&collector, "mon0")
                    .mtu(1600)
                    .address(&format!("{far}/30")),
            );
            collectors.push(collector);
        }
        let from_client = RawSocket::open(&client, "eth0");
        let from_instance = RawSocket::open(&instance, "eth0");
        Lab {
            client,
            instance,
            collectors,
            from_client,
            from_instance,
        }
    }

    /// Sends one packet: through the instance's ingress, or, back, its egress.
    pub fn send(&self, packet: Numbered, size: usize) {
        let socket = if packet.back {
            &self.from_instance
        } else {
            &self.from_client
        };
        socket.send(&packet.frame(size));
    }

    /// Sends one packet of each of `flows` flows in each direction.
    pub fn round(&self, flows: u32, round: u32, size: usize) {
        for flow in 0..flows {
            for back in [false, true] {
                self.send(Numbered { flow, back, round }, size);
            }
        }
    }

    /// Sees what arrives at each collector.
    pub fn capture(&self) -> Vec<Capture> {
        let each = self.collectors.iter();
        each.map(|collector| RawSocket::open(collector, "mon0").in_background())
            .collect()
    }
}

/// The device of the instance that leads to a target.
pub fn device(target: usize) -> String {
    format!("mir{target}")
}

fn near(target: usize) -> String {
    format!("203.0.113.{}", 4 * target + 1)
}

/// The address of a target.
pub fn address(target: usize) -> String {
    format!("203.0.113.{}", 4 * target + 2)
}

/// The URL of a target.
pub fn url(target: usize, parameters: &str) -> String {
    format!("vxlan://{}?vni=7{parameters}", address(target))
}

/// What arrived at one collector: each packet with the time of its copies, nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Arrived(pub BTreeMap<Numbered, Vec<u64>>);

impl Arrived {
    pub fn of(capture: Capture) -> Arrived {
        let mut arrived = Arrived::default();
        for copy in copies::copies(&capture.stop()) {
            assert!(copy.is_vxlan(7));
            if let Some(packet) = numbered(&copy) {
                arrived.0.entry(packet).or_default().push(copy.timestamp_ns);
            }
        }
        arrived
    }

    pub fn flows(&self) -> BTreeSet<u32> {
        self.0.keys().map(|packet| packet.flow).collect()
    }

    /// Asserts that each packet of these flows and rounds came exactly once.
    pub fn assert_once(&self, flows: &BTreeSet<u32>, rounds: std::ops::Range<u32>) {
        let mut missing = Vec::new();
        for &flow in flows {
            for round in rounds.clone() {
                for back in [false, true] {
                    let packet = Numbered { flow, back, round };
                    if self.0.get(&packet).map(Vec::len) != Some(1) {
                        missing.push((packet, self.0.get(&packet).cloned()));
                    }
                }
            }
        }
        let some = &missing[..missing.len().min(10)];
        assert!(missing.is_empty(), "{} not once: {some:?}", missing.len());
    }
}

fn numbered(copy: &Copy) -> Option<Numbered> {
    copies::number_in(&copy.inner).map(Numbered::of)
}

/// Until every target can be sent to.
pub fn all_healthy(mirror: &Mirror) {
    netns::wait_until("healthy targets", Duration::from_secs(10), || {
        mirror.status().targets.iter().all(|target| target.healthy)
    });
}

/// A mirror of `eth0` to these targets, once all of them can be sent to.
pub fn start(lab: &Lab, urls: &[String]) -> Mirror {
    let mut arguments = vec!["tap:eth0", "--to"];
    arguments.extend(urls.iter().map(String::as_str));
    let mirror = Mirror::start(&lab.instance, &arguments);
    all_healthy(&mirror);
    mirror
}

/// What the chain of `watch` counted, by the text of its rule.
pub fn counted(namespace: &Namespace, rule: &str) -> u64 {
    let text = namespace.run("nft", &["list", "table", "inet", "watch"]);
    let line = text.lines().find(|line| line.contains(rule));
    let line = line.unwrap_or_else(|| panic!("no {rule:?} in {text}"));
    let number = line
        .split("packets ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a counter")
}
