//! Fragments of one datagram get one verdict, end to end, in both families and directions; a later
//! fragment that comes before its first is copied, and counted.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/tapped_lab.rs"]
mod tapped_lab;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use common::netns::{self, Namespace};
use common::raw_socket::{self, Captured, RawSocket};
use mirror::{source, Mirror};
use packets::{Extension, UDP, V4};
use tapped_lab::{Tapped, CLIENT, CLIENT6, CLIENT_MAC, INSTANCE, INSTANCE6, INSTANCE_MAC, TARGET};

const WANTED: u16 = 7000;
const OTHER: u16 = 7100;
/// Bytes of payload, so that a fragment tells whose it is.
const WANTED_BYTE: u8 = 0xa1;
const OTHER_BYTE: u8 = 0xb2;

fn is_fragment(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0,
        [0x86, 0xdd] => frame[20] == 44,
        _ => false,
    }
}

fn fragments(frames: Vec<Captured>) -> Vec<Vec<u8>> {
    let frames = frames.into_iter().map(|frame| frame.bytes);
    frames.filter(|frame| is_fragment(frame)).collect()
}

/// The fragments among the copies that arrived.
fn copied(monitor: &RawSocket) -> Vec<Vec<u8>> {
    let frames = monitor.until_idle(Duration::from_millis(20), Duration::from_secs(1));
    let copies = copies::copies(&frames).into_iter().map(|copy| copy.inner);
    copies.filter(|frame| is_fragment(frame)).collect()
}

fn sorted(mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.sort();
    frames
}

#[test]
fn large_pings_are_copied_whole() {
    require_root!("ping");
    let lab = Tapped::with_ipv6();
    let mirror = Mirror::start(
        &lab.instance,
        &["tap:eth0", "--to", TARGET, "--protocol", "icmp"],
    );
    let monitor = lab.monitor();
    let wire = RawSocket::open(&lab.client, "eth0").in_background();
    for address in [CLIENT, CLIENT6] {
        let arguments = ["-c", "3", "-i", "0.01", "-W", "5", "-s", "4000", address];
        lab.instance.run("ping", &arguments);
    }
    let status = mirror.assert_balanced();
    let originals = fragments(wire.stop());
    mirror.stop().assert_clean();
    // Three fragments each, three pings with answers, two families.
    assert_eq!(originals.len(), 3 * 3 * 2 * 2);
    assert_eq!(sorted(copied(&monitor)), sorted(originals));
    assert_eq!(source(&status).unknown_fragments, 0, "{status}");
}

fn bound(namespace: &Namespace, address: &str, port: u16) -> UdpSocket {
    let _there = namespace.enter();
    let address: IpAddr = address.parse().expect("an address");
    UdpSocket::bind((address, port)).expect("bind")
}

#[test]
fn fragments_follow_the_ports_of_the_first() {
    require_root!();
    let lab = Tapped::with_ipv6();
    let port = WANTED.to_string();
    let mirror = Mirror::start(
        &lab.instance,
        &[
            "tap:eth0",
            "--to",
            TARGET,
            "--protocol",
            "udp",
            "--port",
            &port,
        ],
    );
    let monitor = lab.monitor();
    let wire = RawSocket::open(&lab.client, "eth0").in_background();
    for (client, instance) in [(CLIENT, INSTANCE), (CLIENT6, INSTANCE6)] {
        for (port, byte) in [(WANTED, WANTED_BYTE), (OTHER, OTHER_BYTE)] {
            let near = bound(&lab.instance, instance, port);
            let far = bound(&lab.client, client, port);
            let datagram = [byte; 4000];
            for (from, to) in [(&near, &far), (&far, &near)] {
                let to = to.local_addr().expect("an address");
                for _ in 0..5 {
                    from.send_to(&datagram, to).expect("send");
                }
            }
        }
    }
    let status = mirror.assert_balanced();
    let originals = fragments(wire.stop());
    mirror.stop().assert_clean();
    let (wanted, others): (Vec<_>, Vec<_>) = originals
        .into_iter()
        .partition(|frame| frame.last() == Some(&WANTED_BYTE));
    assert_eq!((wanted.len(), others.len()), (60, 60));
    assert_eq!(sorted(copied(&monitor)), sorted(wanted));
    assert_eq!(source(&status).unknown_fragments, 0, "{status}");
}

/// Fragments of one datagram to the instance: first, second, third.
fn crafted(port: u16, ipv6: bool) -> [Vec<u8>; 3] {
    let datagram = packets::udp(port, port, &vec![port as u8; 2392]);
    let id = 0x4000 + port;
    [0, 1, 2].map(|part: u16| {
        let at = 800 * usize::from(part);
        let (bytes, offset, more) = (&datagram[at..at + 800], 100 * part, part < 2);
        let mut frame = if ipv6 {
            let header = Extension::fragment(id.into(), offset, more);
            packets::frame6(CLIENT6, INSTANCE6, &[header], UDP, bytes)
        } else {
            let header = V4 {
                identification: id,
                offset,
                more,
                ..V4::new(CLIENT, INSTANCE, UDP)
            };
            header.frame(bytes)
        };
        frame[..6].copy_from_slice(&INSTANCE_MAC);
        frame[6..12].copy_from_slice(&CLIENT_MAC);
        frame
    })
}

#[test]
fn later_fragments_before_their_first_are_copied_and_counted() {
    require_root!();
    let lab = Tapped::with_ipv6();
    let port = WANTED.to_string();
    let mirror = Mirror::start(
        &lab.instance,
        &[
            "tap:eth0",
            "--to",
            TARGET,
            "--protocol",
            "udp",
            "--port",
            &port,
        ],
    );
    let monitor = lab.monitor();
    let client = RawSocket::open(&lab.client, "eth0");
    let mut wanted = Vec::new();
    for ipv6 in [false, true] {
        for port in [WANTED, OTHER] {
            let [first, second, third] = crafted(port, ipv6);
            for frame in [&third, &first, &second] {
                client.send(frame);
            }
            // Before the first nothing is known; behind it everything is.
            wanted.push(third);
            if port == WANTED {
                wanted.extend([first, second]);
            }
        }
    }
    let status = mirror.assert_balanced();
    mirror.stop().assert_clean();
    assert_eq!(copied(&monitor), wanted);
    assert_eq!(source(&status).unknown_fragments, 4, "{status}");
}
