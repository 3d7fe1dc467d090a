//! Numbered datagrams, and the copies of them that arrive: which tunnel, from whom, and what is inside.
//!
//! Used beside [`netns`](super::netns) and [`raw_socket`](super::raw_socket).
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use super::netns::Namespace;
use super::raw_socket::Captured;

const ETHERNET: usize = 14;
const MARKER: &[u8; 4] = b"xtee";
/// Where the numbered datagrams go to and come from.
pub const PORT: u16 = 7000;

/// The tunnel of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    Vxlan { vni: u32, source_port: u16 },
    Gre { key: Option<u32> },
}

/// A tunnel packet that was seen on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub tunnel: Tunnel,
    pub inner: Vec<u8>,
    pub timestamp_ns: u64,
}

impl Copy {
    pub fn is_vxlan(&self, wanted: u32) -> bool {
        matches!(self.tunnel, Tunnel::Vxlan { vni, .. } if vni == wanted)
    }

    pub fn is_gre(&self, wanted: u32) -> bool {
        self.tunnel == Tunnel::Gre { key: Some(wanted) }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Protocol, source, destination and payload of an unfragmented IPv4 packet.
pub fn ipv4(packet: &[u8]) -> Option<(u8, Ipv4Addr, Ipv4Addr, &[u8])> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let whole = be16(packet, 6)? & 0x3fff == 0;
    let total = usize::from(be16(packet, 2)?);
    (packet[0] >> 4 == 4 && whole).then_some(())?;
    Some((
        packet[9],
        Ipv4Addr::from(be32(packet, 12)?),
        Ipv4Addr::from(be32(packet, 16)?),
        packet.get(header..total)?,
    ))
}

/// The IPv4 packet in a frame without tags.
pub fn ipv4_in(frame: &[u8]) -> Option<(u8, Ipv4Addr, Ipv4Addr, &[u8])> {
    (be16(frame, 12)? == 0x0800).then(|| ipv4(&frame[ETHERNET..]))?
}

/// Source port, destination port and payload of a UDP datagram in a frame.
pub fn udp_in(frame: &[u8]) -> Option<(u16, u16, &[u8])> {
    let (protocol, _, _, payload) = ipv4_in(frame)?;
    (protocol == 17).then_some(())?;
    Some((be16(payload, 0)?, be16(payload, 2)?, payload.get(8..)?))
}

/// What a tunnel packet carries.
pub fn open(frame: &[u8], timestamp_ns: u64) -> Option<Copy> {
    let (protocol, source, destination, payload) = ipv4_in(frame)?;
    let (tunnel, inner) = match protocol {
        17 if be16(payload, 2)? == 4789 => {
            assert_eq!(be32(payload, 8)?, 0x0800_0000, "VXLAN flags");
            let vni = be32(payload, 12)? >> 8;
            let source_port = be16(payload, 0)?;
            (Tunnel::Vxlan { vni, source_port }, payload.get(16..)?)
        }
        47 if be16(payload, 2)? == 0x6558 => {
            let flags = be16(payload, 0)?;
            let has_key = flags & 0x2000 != 0;
            let options = usize::from(has_key) + usize::from(flags & 0x1000 != 0);
            let key = has_key.then(|| be32(payload, 4)).flatten();
            (Tunnel::Gre { key }, payload.get(4 + 4 * options..)?)
        }
        _ => return None,
    };
    Some(Copy {
        source,
        destination,
        tunnel,
        inner: inner.to_vec(),
        timestamp_ns,
    })
}

/// The tunnel packets that came in.
pub fn copies(frames: &[Captured]) -> Vec<Copy> {
    frames
        .iter()
        .filter(|frame| !frame.outgoing)
        .filter_map(|frame| open(&frame.bytes, frame.timestamp_ns))
        .collect()
}

/// The number of a datagram of [`send`].
pub fn number_in(frame: &[u8]) -> Option<u32> {
    number_of(udp_in(frame)?.2)
}

/// The number in a datagram's payload.
pub fn number_of(payload: &[u8]) -> Option<u32> {
    (payload.get(..4)? == MARKER).then(|| be32(payload, 4))?
}

/// How often each number stands in these frames.
pub fn tally<'f>(frames: impl IntoIterator<Item = &'f [u8]>) -> BTreeMap<u32, u32> {
    let mut tally = BTreeMap::new();
    for number in frames.into_iter().filter_map(number_in) {
        *tally.entry(number).or_default() += 1;
    }
    tally
}

/// Asserts that each of these numbers has exactly one copy, and that there are no others.
pub fn assert_one_each<'c>(copies: impl IntoIterator<Item = &'c Copy>, numbers: Range<u32>) {
    let tally = tally(copies.into_iter().map(|copy| copy.inner.as_slice()));
    let wanted: BTreeMap<u32, u32> = numbers.map(|number| (number, 1)).collect();
    let wrong: Vec<_> = wanted
        .keys()
        .chain(tally.keys())
        .filter(|number| wanted.get(number) != tally.get(number))
        .map(|number| (number, tally.get(number)))
        .collect();
    assert!(
        wrong.is_empty(),
        "number and its copies: {:?}",
        &wrong[..wrong.len().min(20)]
    );
}

/// Takes and ignores the datagrams to an address, so that its kernel does not answer with errors.
/// The port is [`PORT`].
pub fn sink(namespace: &Namespace, address: &str) -> UdpSocket {
    let _there = namespace.enter();
    UdpSocket::bind(format!("{address}:{PORT}")).expect("bind a sink")
}

/// Sends a numbered datagram of `size` bytes of payload for each number, `gap` apart, from a socket
/// of [`sink`]. To [`PORT`], unless the address says another.
pub fn send(from: &UdpSocket, to: &str, numbers: Range<u32>, size: usize, gap: Duration) {
    let to: SocketAddr = to
        .parse()
        .or_else(|_| format!("{to}:{PORT}").parse())
        .expect("an address");
    let mut payload = vec![0x5a; size.max(8)];
    payload[..4].copy_from_slice(MARKER);
    for number in numbers {
        payload[4..8].copy_from_slice(&number.to_be_bytes());
        from.send_to(&payload, to).expect("send a datagram");
        if !gap.is_zero() {
            std::thread::sleep(gap);
        }
    }
}
