//! Frames that no ordinary program sends, for a raw socket: VLAN tags, extension headers, padding,
//! checksums that are wrong or absent.
#![allow(dead_code)]

use crate::wire::{checksum, with_transport_checksum};

/// One end of the odd frames.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub mac: [u8; 6],
    pub v4: [u8; 4],
    pub v6: [u8; 16],
}

fn ethernet(from: End, to: End, tags: &[[u8; 4]], ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let tags = tags.concat();
    [&to.mac[..], &from.mac, &tags, &ethertype, payload].concat()
}

fn v4(from: End, to: End, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b] = (20 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x45, 0, a, b, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
    header.extend([from.v4, to.v4].concat());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

fn v6(from: End, to: End, next: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b] = (payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, a, b, next, 64];
    packet.extend([from.v6, to.v6].concat());
    packet.extend(payload);
    packet
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let words = [40000u16, port, length, 0];
    let header: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    [&header, payload].concat()
}

fn tcp(port: u16, payload: &[u8]) -> Vec<u8> {
    let [a, b] = port.to_be_bytes();
    let mut segment = vec![0x9c, 0x41, a, b, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 2, 0];
    segment.extend([0, 0, 0, 0]);
    segment.extend(payload);
    segment
}

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// For local experiments (IEEE 802).
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
const TAG: [u8; 4] = [0x81, 0x00, 0x60, 0x07];
const SERVICE_TAG: [u8; 4] = [0x88, 0xa8, 0x20, 0x09];

/// IP packets that are right as they are.
pub fn right(from: End, to: End) -> Vec<Vec<u8>> {
    let whole = |tags: &[[u8; 4]], ethertype, packet: Vec<u8>| {
        with_transport_checksum(ethernet(from, to, tags, ethertype, &packet))
    };
    let full = vec![0x5a; 1500 - 28];
    let padded = {
        let mut frame = whole(&[], IPV4, v4(from, to, 17, &udp(9, b"x")));
        frame.resize(60, 0xcc);
        frame
    };
    vec![
        whole(&[TAG], IPV4, v4(from, to, 17, &udp(9, b"tagged"))),
        whole(&[TAG], IPV6, v6(from, to, 17, &udp(9, b"tagged"))),
        whole(&[SERVICE_TAG], IPV4, v4(from, to, 6, &tcp(9, b"service"))),
        whole(&[SERVICE_TAG, TAG], IPV4, v4(from, to, 6, &tcp(9, b"QinQ"))),
        // The largest, and the largest with a tag.
        whole(&[], IPV4, v4(from, to, 17, &udp(9, &full))),
        whole(&[TAG], IPV4, v4(from, to, 17, &udp(9, &full))),
        // No checksum at all, which UDP over IPv4 may do.
        ethernet(from, to, &[], IPV4, &v4(from, to, 17, &udp(9, b"none"))),
        // Padding behind the packet's own end stays.
        padded,
    ]
}

/// Frames that are right, of protocols that nobody knows.
pub fn unknown(from: End, to: End) -> Vec<Vec<u8>> {
    vec![
        // Hop-by-hop options (PadN) before an unknown protocol.
        ethernet(
            from,
            to,
            &[],
            IPV6,
            &v6(from, to, 0, &[253, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3]),
        ),
        ethernet(from, to, &[], EXPERIMENTAL, &[0x77; 46]),
        ethernet(from, to, &[TAG], EXPERIMENTAL, &[0x78; 46]),
    ]
}

/// TCP packets whose checksum is wrong: an ordinary error, and one that looks like a checksum which
/// the kernel has left to the device (the folded pseudo-header sum) and is none.
pub fn wrong(from: End, to: End) -> Vec<Vec<u8>> {
    const FIELD: usize = 14 + 20 + 16;
    let packet = v4(from, to, 6, &tcp(9, b"wrong on purpose"));
    let mut corrupt = with_transport_checksum(ethernet(from, to, &[], IPV4, &packet));
    corrupt[FIELD] ^= 0x55;
    let mut looks_unfinished = corrupt.clone();
    let length = (packet.len() - 20) as u16;
    let pseudo = [&from.v4[..], &to.v4, &[0, 6], &length.to_be_bytes()].concat();
    looks_unfinished[FIELD..FIELD + 2].copy_from_slice(&(!checksum(&pseudo)).to_be_bytes());
    vec![corrupt, looks_unfinished]
}
