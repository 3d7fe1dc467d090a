//! Every encapsulation, over both IP versions, by every transmitter, around every kind of frame: each copy is
//! taken apart by tshark and equals its original byte for byte, and Suricata finds no broken packet.
//!
//! One xtee for each transmitter with all of its targets at once, one capture, one look by each judge.

#[macro_use]
mod common;
#[path = "common/dissect.rs"]
mod dissect;
#[path = "common/inner_frames.rs"]
mod inner_frames;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/sensor.rs"]
mod sensor;
#[path = "common/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use xtee::telemetry::status::TargetStatus;

use common::netns::{veth, wait_until, Namespace, VethEnd};
use common::raw_socket::RawSocket;
use dissect::{dissect, Dissected};
use inner_frames::{inner_frames, InnerFrame, JUMBO};
use mirror::{Mirror, TestFolder};
use wire::{write_pcap, WireCapture};

/// Holds the largest frame in the largest outer header.
const MIRROR_MTU: u32 = 9200;
const PATIENCE: Duration = Duration::from_secs(20);
/// AF_XDP transmitters have a queue each.
const QUEUES: u32 = 16;
const SOURCE_PORTS: std::ops::RangeInclusive<u64> = 61000..=61063;

/// One of the tunnels of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Vxlan,
    Geneve,
    Gre,
    GreKeySequence,
    GreIp,
    ErspanII,
    ErspanIII,
}
use Kind::*;

const KINDS: [Kind; 7] = [
    Vxlan,
    Geneve,
    Gre,
    GreKeySequence,
    GreIp,
    ErspanII,
    ErspanIII,
];

impl Kind {
    fn url(self, host: &str) -> String {
        match self {
            Vxlan => format!("vxlan://{host}?vni=70001"),
            Geneve => format!("geneve://{host}?vni=70002"),
            Gre => format!("gre://{host}"),
            GreKeySequence => format!("gre://{host}?key=4000000003&seq=on"),
            GreIp => format!("gre://{host}?key=4&inner=ip"),
            ErspanII => format!("erspan://{host}?session=1005"),
            ErspanIII => format!("erspan://{host}?session=1006&version=3"),
        }
    }

    fn in_udp(self) -> bool {
        matches!(self, Vxlan | Geneve)
    }

    fn is_numbered(self) -> bool {
        matches!(self, GreKeySequence | ErspanII | ErspanIII)
    }

    /// What tshark must have found, by field.
    fn fields(self) -> &'static [(&'static str, u64)] {
        match self {
            Vxlan => &[
                ("udp.dstport", 4789),
                ("vxlan.flags", 0x800),
                ("vxlan.vni", 70001),
            ],
            Geneve => &[
                ("udp.dstport", 6081),
                ("geneve.version", 0),
                ("geneve.vni", 70002),
            ],
            Gre => &[("gre.proto", 0x6558)],
            GreKeySequence => &[("gre.proto", 0x6558), ("gre.key", 4_000_000_003)],
            GreIp => &[("gre.key", 4)],
            ErspanII => &[
                ("gre.proto", 0x88be),
                ("erspan.version", 1),
                ("erspan.spanid", 1005),
            ],
            ErspanIII => &[
                ("gre.proto", 0x22eb),
                ("erspan.version", 2),
                ("erspan.spanid", 1006),
            ],
        }
    }

    /// Which tunnel tshark found.
    fn of(dissected: &Dissected) -> Kind {
        let is = |kind: &Kind| {
            let wanted = kind.fields().iter();
            let all = wanted
                .clone()
                .all(|(field, value)| dissected.number(field) == Some(*value));
            let keyed = dissected.number("gre.key").is_some();
            all && (keyed == matches!(kind, GreKeySequence | GreIp))
        };
        let found: Vec<Kind> = KINDS.into_iter().filter(is).collect();
        assert_eq!(found.len(), 1, "{found:?}: {dissected:?}");
        found[0]
    }
}

/// Which copies go together: tunnel, and whether the outer header is IPv6.
type Target = (Kind, bool);

struct Lab {
    client: Namespace,
    instance: Namespace,
    collector: Namespace,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab {
            client: Namespace::new(),
            instance: Namespace::with_ipv6(),
            collector: Namespace::with_ipv6(),
        };
        veth(
            &VethEnd::new(&lab.client, "eth0").mtu(JUMBO as u32),
            &VethEnd::new(&lab.instance, "eth0").mtu(JUMBO as u32),
        );
        // Every frame on it is the test's.
        lab.instance
            .write_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
        veth(
            &VethEnd::new(&lab.instance, "mir0")
                .mtu(MIRROR_MTU)
                .queues(QUEUES)
                .address("203.0.113.1/24")
                .address("2001:db8:f::1/64"),
            &VethEnd::new(&lab.collector, "mon0")
                .mtu(MIRROR_MTU)
                .queues(QUEUES)
                .address("203.0.113.2/24")
                .address("2001:db8:f::2/64"),
        );
        lab.instance
            .offload("mir0", &[("tx-udp-segmentation", false)]);
        // AF_XDP drops what has no neighbour yet, and this is not about that.
        for address in ["203.0.113.2", "2001:db8:f::2"] {
            let ping = ["-c", "1", "-W", "1", address];
            wait_until(address, PATIENCE, || {
                lab.instance.output("ping", &ping).status.success()
            });
        }
        lab
    }

    /// Sends every frame in its direction.
    fn send(&self, frames: &BTreeMap<bool, Vec<InnerFrame>>) {
        for (out, frames) in frames {
            let end = if *out { &self.instance } else { &self.client };
            let socket = RawSocket::open(end, "eth0");
            for frame in frames {
                socket.send(&frame.bytes);
            }
        }
    }
}

fn configuration(kinds: &[Kind], transmit: &str, workers: usize) -> String {
    let mut text = format!(
        "[[source]]\nkind = \"tap\"\ninterface = \"eth0\"\nworkers = {workers}\nring_size = \"16MiB\"\n"
    );
    for kind in kinds {
        for host in ["203.0.113.2", "[2001:db8:f::2]"] {
            let url = kind.url(host);
            text += &format!("\n[[target]]\nurl = \"{url}\"\ntransmit = \"{transmit}\"\n");
        }
    }
    text
}

/// The unit of ERSPAN III's time stamp, of now.
fn erspan_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_nanos() as u64 / 100
}

/// What one transmitter made of all frames.
struct Run {
    frames: BTreeMap<bool, Vec<InnerFrame>>,
    /// Outer packets as tshark saw them, by target.
    copies: BTreeMap<Target, Vec<(Dissected, Vec<u8>)>>,
    status: Vec<TargetStatus>,
    /// Before the first frame and after the last.
    time: (u64, u64),
}

fn mirror_all(
    lab: &Lab,
    folder: &TestFolder,
    kinds: &[Kind],
    transmit: &str,
    workers: usize,
) -> Run {
    let frames: BTreeMap<bool, Vec<InnerFrame>> = [false, true]
        .into_iter()
        .map(|out| (out, inner_frames(out)))
        .collect();
    let capture = WireCapture::incoming(&lab.collector, "mon0");
    let mirror = Mirror::start_config(&lab.instance, &configuration(kinds, transmit, workers));
    let before = erspan_now();
    lab.send(&frames);
    let sent = (2 * frames[&true].len()) as u64;
    mirror.wait_for("all frames seen", |status| {
        status.sources[0].captured == sent
    });
    let status = mirror.assert_balanced();
    let after = erspan_now();
    mirror.stop().assert_clean();

    let arrived = capture.stop();
    let outer: Vec<Vec<u8>> = arrived
        .iter()
        .map(|seen| seen.packets().swap_remove(0))
        .filter(|frame| is_tunnel_packet(frame))
        .collect();
    let file = folder.file(&format!("{transmit}.pcap"));
    write_pcap(&file, outer.iter().map(Vec::as_slice));
    let mut copies: BTreeMap<Target, Vec<(Dissected, Vec<u8>)>> = BTreeMap::new();
    for (dissected, frame) in dissect(&file).into_iter().zip(outer) {
        let six = frame[12..14] == [0x86, 0xdd];
        copies
            .entry((Kind::of(&dissected), six))
            .or_default()
            .push((dissected, frame));
    }
    Run {
        frames,
        copies,
        status: status.targets,
        time: (before, after),
    }
}

/// UDP or GRE from the instance: not neighbour discovery, nor a kernel's ICMP.
fn is_tunnel_packet(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => matches!(frame[23], 17 | 47),
        [0x86, 0xdd] => matches!(frame[20], 17 | 47),
        _ => false,
    }
}

impl Run {
    fn assert_complete(&self, kinds: &[Kind], transmit: &str) {
        let targets: Vec<Target> = kinds
            .iter()
            .flat_map(|kind| [(*kind, false), (*kind, true)])
            .collect();
        let found: Vec<Target> = self.copies.keys().copied().collect();
        let mut wanted = targets.clone();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{transmit}");
        for (target, status) in targets.iter().zip(&self.status) {
            self.assert_target(*target, status, transmit);
        }
    }

    fn assert_target(&self, target: Target, status: &TargetStatus, transmit: &str) {
        let (kind, six) = target;
        let what = format!("{kind:?} over IPv{} by {transmit}", if six { 6 } else { 4 });
        assert!(status.transmit.starts_with(transmit), "{what}: {status:?}");
        let copies = &self.copies[&target];
        let mut carried: Vec<Vec<u8>> = Vec::new();
        for (dissected, frame) in copies {
            carried.push(self.assert_copy(kind, dissected, frame, &what));
        }
        let mut originals = Vec::new();
        let mut left_out = 0;
        for frame in self.frames.values().flatten() {
            match (kind, frame.ip) {
                (GreIp, false) => left_out += 1,
                (GreIp, true) => {
                    originals.push(frame.bytes[wire::network(&frame.bytes)..].to_vec())
                }
                _ => originals.push(frame.bytes.clone()),
            }
        }
        let not_ip = status.dropped.get("not_ip").copied().unwrap_or(0);
        assert_eq!(not_ip, left_out, "{what}: {status:?}");
        let dropped: u64 = status.dropped.values().sum();
        assert_eq!(
            (dropped, status.sent_packets),
            (left_out, originals.len() as u64),
            "{what}"
        );
        // Flows have their own ports and may overtake each other.
        for (number, original) in originals.iter().enumerate() {
            let times = carried.iter().filter(|copy| *copy == original).count();
            assert_eq!(times, 1, "{what}: copies equal to frame number {number}");
        }
        assert_eq!(carried.len(), originals.len(), "{what}");
        if kind.is_numbered() {
            let number = |(dissected, _): &(Dissected, _)| dissected.number("gre.sequence_number");
            let mut numbers: Vec<u64> = copies.iter().filter_map(number).collect();
            numbers.sort_unstable();
            assert!(
                numbers.iter().copied().eq(0..copies.len() as u64),
                "{what}: {numbers:?}"
            );
        }
    }

    /// Checks the headers of a copy as tshark read them; returns what is inside.
    fn assert_copy(&self, kind: Kind, dissected: &Dissected, frame: &[u8], what: &str) -> Vec<u8> {
        let six = frame[12..14] == [0x86, 0xdd];
        let ttl = if six { "ipv6.hlim" } else { "ip.ttl" };
        assert_eq!(dissected.number(ttl), Some(64), "{what}");
        if kind.in_udp() {
            let port = dissected.number("udp.srcport").expect("a source port");
            assert!(SOURCE_PORTS.contains(&port), "{what}: port {port}");
            let at = 14 + if six { 40 } else { 20 };
            // tshark has judged it; over IPv6 there has to be one.
            assert!(
                !six || frame[at + 6..at + 8] != [0, 0],
                "{what}: no UDP checksum"
            );
        }
        if kind == GreIp {
            let inner = frame[dissected.ip..].to_vec();
            let version = inner[0] >> 4;
            let protocol_type = if version == 4 { 0x0800 } else { 0x86dd };
            assert_eq!(dissected.number("gre.proto"), Some(protocol_type), "{what}");
            return inner;
        }
        let inner = frame[dissected.ethernet..].to_vec();
        if matches!(kind, ErspanII | ErspanIII) {
            let tagged = matches!(inner[12..14], [0x81, 0x00] | [0x88, 0xa8]);
            let vlan = if tagged { u64::from(inner[15]) } else { 0 };
            assert_eq!(dissected.number("erspan.vlan"), Some(vlan), "{what}");
        }
        if kind == ErspanIII {
            let out = self.frames[&true]
                .iter()
                .any(|original| original.bytes == inner);
            let direction = dissected.number("erspan.direction");
            assert_eq!(direction, Some(u64::from(out)), "{what}: direction");
            assert_eq!(dissected.number("erspan.gra"), Some(1), "{what}: 100 ns");
            let stamp = dissected.number("erspan.timestamp").expect("a time stamp") as u32;
            let since = stamp.wrapping_sub(self.time.0 as u32);
            // The offset between the clocks is as old as control's last round.
            let slack = 100_000;
            let whole = (self.time.1 - self.time.0) as u32;
            let late = since.wrapping_add(slack) <= whole + 2 * slack;
            assert!(late, "{what}: stamp {stamp}, {:?}", self.time);
        }
        inner
    }
}

#[test]
fn every_tunnel_over_every_outer_header_by_every_transmitter_around_every_frame() {
    require_root!("tshark", "suricata", "ping");
    let lab = Lab::new();
    let folder = TestFolder::new();
    let in_udp = [Vxlan, Geneve];
    let in_gre = [Gre, GreKeySequence, GreIp, ErspanII, ErspanIII];
    let mut for_suricata: Vec<Vec<u8>> = Vec::new();
    let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
    // By AF_XDP, jumbo packets leave by the tunnel's socket. Two workers share sequence numbers by a raw one.
    for (transmit, kinds, workers) in [
        ("udp", &in_udp[..], 1),
        ("xsk", &KINDS[..], 1),
        ("raw", &in_gre[..], 2),
    ] {
        let run = mirror_all(&lab, &folder, kinds, transmit, workers);
        run.assert_complete(kinds, transmit);
        for ((kind, _), copies) in run.copies {
            // Suricata has no ERSPAN III.
            if kind != ErspanIII {
                *counts.entry(kind).or_default() += copies.len() as u64;
                for_suricata.extend(copies.into_iter().map(|(_, frame)| frame));
            }
        }
    }
    let file = folder.file("all.pcap");
    write_pcap(&file, for_suricata.iter().map(Vec::as_slice));
    let report = sensor::read(&file);
    let gre: u64 = [Gre, GreKeySequence, GreIp, ErspanII]
        .map(|kind| counts[&kind])
        .iter()
        .sum();
    for (counter, count) in [
        ("decoder.vxlan", counts[&Vxlan]),
        ("decoder.geneve", counts[&Geneve]),
        ("decoder.gre", gre),
        ("decoder.erspan", counts[&ErspanII]),
    ] {
        assert_eq!(report.counter(counter), count, "{counter}: {report:?}");
    }
    assert_eq!(report.faults(), BTreeMap::new(), "{report:?}");
}
