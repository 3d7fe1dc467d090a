//! One frame of every kind that the matrix sends through every tunnel: both IP versions, tags, ARP,
//! fragments, ICMP, jumbo. From and to MAC addresses that are nobody's, so that no kernel answers.
#![allow(dead_code)]

use crate::wire::{checksum, with_transport_checksum};

/// The production MTU that the largest frames fill.
pub const JUMBO: usize = 9000;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
/// Priority 3, VLAN 7; and a service tag: priority 1, VLAN 9.
const TAG: [u8; 4] = [0x81, 0x00, 0x60, 0x07];
const SERVICE_TAG: [u8; 4] = [0x88, 0xa8, 0x20, 0x09];

/// A frame and what it is.
#[derive(Clone, Debug)]
pub struct InnerFrame {
    pub kind: &'static str,
    pub bytes: Vec<u8>,
    /// It carries IP.
    pub ip: bool,
}

/// Which way the frames go: each end has its own addresses.
fn ends(out: bool) -> ([u8; 4], [u8; 4]) {
    let (client, instance) = ([198, 51, 100, 1], [198, 51, 100, 2]);
    match out {
        true => (instance, client),
        false => (client, instance),
    }
}

fn ethernet(out: bool, tags: &[[u8; 4]], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let (from, to) = if out { (0xb, 0xa) } else { (0xa, 0xb) };
    let mut frame = vec![2, 0, 0, 0, 0xff, to, 2, 0, 0, 0, 0xff, from];
    frame.extend(tags.concat());
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn v4(out: bool, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(out);
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0x12, 0x34]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend([from, to].concat());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

fn v6(out: bool, next: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = ends(out);
    let address = |end: [u8; 4]| [&[0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &end[3..]].concat();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(address(from));
    packet.extend(address(to));
    packet.extend(payload);
    packet
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let words = [40000u16, 40001, 8 + payload.len() as u16, 0];
    let header: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    [&header, payload].concat()
}

fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x41, 0x9c, 0x42, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10];
    segment.extend([2, 0, 0, 0, 0, 0]);
    segment.extend(payload);
    segment
}

fn icmp_echo(payload: &[u8]) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, 1];
    message.extend(payload);
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

fn icmpv6_echo(out: bool, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![128, 0, 0, 0, 0, 1, 0, 1];
    message.extend(payload);
    let packet = v6(out, 58, &message);
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&packet[8..40], &length, &[0, 0, 0, 58], &message].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    v6(out, 58, &message)
}

fn arp(out: bool) -> Vec<u8> {
    let (from, to) = ends(out);
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0xff, 0xa];
    request.extend(from);
    request.extend([0; 6]);
    request.extend(to);
    // Padding to the least that Ethernet sends.
    request.resize(46, 0);
    request
}

/// An IPv6 fragment header in front of a piece.
fn fragment6(out: bool, offset: u16, more: bool, piece: &[u8]) -> Vec<u8> {
    let mut payload = vec![17, 0];
    payload.extend((offset | u16::from(more)).to_be_bytes());
    payload.extend([0, 0, 0x12, 0x34]);
    payload.extend(piece);
    v6(out, 44, &payload)
}

/// All frames of one direction, `out` of the instance or into it, in the order in which they are sent.
pub fn inner_frames(out: bool) -> Vec<InnerFrame> {
    let mut frames = Vec::new();
    let mut add = |kind, tags: &[[u8; 4]], ethertype, packet: Vec<u8>, summed: bool| {
        let frame = ethernet(out, tags, ethertype, &packet);
        frames.push(InnerFrame {
            kind,
            ip: ethertype != ARP,
            bytes: match summed {
                true => with_transport_checksum(frame),
                false => frame,
            },
        });
    };
    const NO_TAG: &[[u8; 4]] = &[];
    add(
        "IPv4 UDP",
        NO_TAG,
        IPV4,
        v4(out, 17, 0x4000, &udp(b"four")),
        true,
    );
    add(
        "IPv4 TCP",
        NO_TAG,
        IPV4,
        v4(out, 6, 0x4000, &tcp(b"segment")),
        true,
    );
    add(
        "IPv4, odd length",
        NO_TAG,
        IPV4,
        v4(out, 17, 0, &udp(b"odd")),
        true,
    );
    add("IPv6 UDP", NO_TAG, IPV6, v6(out, 17, &udp(b"six")), true);
    add("IPv6 TCP", NO_TAG, IPV6, v6(out, 6, &tcp(b"segment")), true);
    add(
        "VLAN IPv4",
        &[TAG],
        IPV4,
        v4(out, 17, 0, &udp(b"tagged")),
        true,
    );
    add(
        "VLAN IPv6",
        &[TAG],
        IPV6,
        v6(out, 17, &udp(b"tagged")),
        true,
    );
    add(
        "QinQ",
        &[SERVICE_TAG, TAG],
        IPV4,
        v4(out, 6, 0, &tcp(b"QinQ")),
        true,
    );
    add("ARP", NO_TAG, ARP, arp(out), false);
    add("VLAN ARP", &[TAG], ARP, arp(out), false);
    add(
        "ICMP",
        NO_TAG,
        IPV4,
        v4(out, 1, 0, &icmp_echo(b"ping")),
        false,
    );
    add("ICMPv6", NO_TAG, IPV6, icmpv6_echo(out, b"ping"), false);
    // One datagram in two: its checksum covers both.
    let body: Vec<u8> = (0..1000u32).map(|at| (at * 7) as u8).collect();
    let whole = with_transport_checksum(ethernet(out, NO_TAG, IPV4, &v4(out, 17, 0, &udp(&body))));
    let (first, later) = whole[34..].split_at(800);
    add(
        "IPv4, first fragment",
        NO_TAG,
        IPV4,
        v4(out, 17, 0x2000, first),
        false,
    );
    add(
        "IPv4, later fragment",
        NO_TAG,
        IPV4,
        v4(out, 17, 100, later),
        false,
    );
    let whole = with_transport_checksum(ethernet(out, NO_TAG, IPV6, &v6(out, 17, &udp(&body))));
    let (first, later) = whole[54..].split_at(800);
    add(
        "IPv6, first fragment",
        NO_TAG,
        IPV6,
        fragment6(out, 0, true, first),
        false,
    );
    add(
        "IPv6, later fragment",
        NO_TAG,
        IPV6,
        fragment6(out, 800, false, later),
        false,
    );
    let jumbo: Vec<u8> = (0..JUMBO as u32)
        .map(|at| (at * 13 + at / 256) as u8)
        .collect();
    add(
        "jumbo IPv4",
        NO_TAG,
        IPV4,
        v4(out, 17, 0x4000, &udp(&jumbo[..JUMBO - 28])),
        true,
    );
    add(
        "jumbo IPv6",
        NO_TAG,
        IPV6,
        v6(out, 6, &tcp(&jumbo[..JUMBO - 60])),
        true,
    );
    add(
        "jumbo VLAN",
        &[TAG],
        IPV4,
        v4(out, 6, 0x4000, &tcp(&jumbo[..JUMBO - 40])),
        true,
    );
    frames
}
