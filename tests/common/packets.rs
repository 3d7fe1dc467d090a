//! Packets for the tests, byte by byte; what is not said is plausible. Checksums are 0: nothing that
//! matches or copies looks at them.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;

/// From MAC B to MAC A, as the peer of an interface with MAC A sends.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    tagged(&[], ethertype, payload)
}

/// With VLAN tags (protocol, control information), the outermost first.
pub fn tagged(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [MAC_A, MAC_B].concat();
    for (protocol, tci) in tags {
        frame.extend(protocol.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What an IPv4 header says besides lengths.
#[derive(Clone, Copy, Debug)]
pub struct V4 {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub identification: u16,
    /// In units of 8 bytes.
    pub offset: u16,
    pub more: bool,
    /// In units of 4 bytes, at most 10.
    pub options: u8,
}

impl V4 {
    pub fn new(source: &str, destination: &str, protocol: u8) -> V4 {
        V4 {
            source: source.parse().expect("an IPv4 address"),
            destination: destination.parse().expect("an IPv4 address"),
            protocol,
            identification: 0x1234,
            offset: 0,
            more: false,
            options: 0,
        }
    }

    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + 4 * usize::from(self.options);
        let flags = u16::from(self.more) << 13 | self.offset;
        let mut bytes = vec![0x45 + self.options, 0];
        bytes.extend(((header + payload.len()) as u16).to_be_bytes());
        bytes.extend(self.identification.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.resize(header, 1);
        bytes.extend(payload);
        bytes
    }

    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(IPV4, &self.packet(payload))
    }
}

/// An IPv6 extension header: its number and its bytes, of which the first will be the next header.
#[derive(Clone, Debug)]
pub struct Extension(pub u8, pub Vec<u8>);

impl Extension {
    /// One with a length byte in units of 8 bytes beyond the first 8.
    pub fn plain(number: u8, units: u8) -> Extension {
        let mut bytes = vec![0; 8 + 8 * usize::from(units)];
        bytes[1] = units;
        Extension(number, bytes)
    }

    /// An authentication header of `words` 4-byte words.
    pub fn authentication(words: u8) -> Extension {
        let mut bytes = vec![0; 4 * usize::from(words)];
        bytes[1] = words - 2;
        Extension(51, bytes)
    }

    /// A fragment header; the offset is in units of 8 bytes.
    pub fn fragment(identification: u32, offset: u16, more: bool) -> Extension {
        let mut bytes = vec![0; 2];
        bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
        bytes.extend(identification.to_be_bytes());
        Extension(44, bytes)
    }
}

/// An IPv6 packet.
pub fn ipv6(
    source: &str,
    destination: &str,
    extensions: &[Extension],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().expect("an IPv6 address");
    let destination: Ipv6Addr = destination.parse().expect("an IPv6 address");
    let mut next = protocol;
    let mut body = payload.to_vec();
    for Extension(number, bytes) in extensions.iter().rev() {
        let mut bytes = bytes.clone();
        bytes[0] = next;
        bytes.extend(body);
        (next, body) = (*number, bytes);
    }
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(body);
    packet
}

/// An IPv6 packet in its frame.
pub fn frame6(
    source: &str,
    destination: &str,
    extensions: &[Extension],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    ethernet(
        IPV6,
        &ipv6(source, destination, extensions, protocol, payload),
    )
}

/// A frame of either family.
pub fn ip_frame(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source_text, destination_text) = (source.to_string(), destination.to_string());
    match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            V4::new(&source_text, &destination_text, protocol).frame(payload)
        }
        _ => frame6(&source_text, &destination_text, &[], protocol, payload),
    }
}

pub fn tcp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// A TCP segment over IPv4, the commonest packet.
pub fn tcp4(source: &str, from: u16, destination: &str, to: u16) -> Vec<u8> {
    V4::new(source, destination, TCP).frame(&tcp(from, to, b"payload"))
}

/// A UDP datagram over IPv4.
pub fn udp4(source: &str, from: u16, destination: &str, to: u16, payload: &[u8]) -> Vec<u8> {
    V4::new(source, destination, UDP).frame(&udp(from, to, payload))
}

/// A TCP segment over IPv6.
pub fn tcp6(source: &str, from: u16, destination: &str, to: u16) -> Vec<u8> {
    frame6(source, destination, &[], TCP, &tcp(from, to, b"payload"))
}

/// A VXLAN header with its UDP header.
pub fn vxlan(source: u16, destination: u16, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    udp(source, destination, &payload)
}

/// A GRE header of these flags and words.
pub fn gre(flags: u16, protocol: u16, words: &[u32], inner: &[u8]) -> Vec<u8> {
    let mut bytes = [flags.to_be_bytes(), protocol.to_be_bytes()].concat();
    bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    bytes.extend(inner);
    bytes
}
