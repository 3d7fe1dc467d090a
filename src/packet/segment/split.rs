//! Super-packets: one head for each packet on the wire, payload by reference.
//!
//! Does what Linux's `tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment`, `ipv6_gso_segment` and
//! the tunnels' segmentation functions do, but always computes every checksum. Called by `cut`.

use super::layers::{understand, Addresses, Layer, Shape, Transport};
use super::ordinary::{self, write_tagged, MAC_ADDRESSES, TCP_CHECKSUM, UDP_CHECKSUM};
use super::{check_room, packets_of, CutError};
use crate::packet::headers::{be16, be32, protocol};
use crate::packet::packets::MAX_HEAD;
use crate::packet::{checksum, Checksum, FrameMeta, Packets, VlanTag, VLAN_TAG};
use crate::reason::Reason;

/// Length of the hop-by-hop header that BIG TCP adds (RFC 2675).
const JUMBO_HEADER: usize = 8;
const IPV6_HEADER: usize = 40;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

const MALFORMED: CutError = CutError::Drop(Reason::Malformed);

pub(super) fn append(
    meta: &FrameMeta,
    frame: &[u8],
    frame_index: u32,
    out: &mut Packets,
) -> Result<u32, CutError> {
    let length = meta.byte_length();
    let shape = understand(meta, frame, length).ok_or(MALFORMED)?;
    if frame.len() < length {
        return Err(MALFORMED);
    }
    let payload = frame.get(shape.payload..).ok_or(MALFORMED)?;
    let packets = packets_of(payload.len(), meta.gso_size);
    // A frame of one packet was never put together: it is on the wire as it is. BIG TCP's never are one.
    if packets == 1 {
        return ordinary::append(meta, frame, frame_index, out);
    }
    let mut buffer = [0; MAX_HEAD];
    let template = Template::new(meta, frame, &shape, &mut buffer).ok_or(MALFORMED)?;
    let head_length = template.head.len();
    if head_length + usize::from(meta.gso_size) > usize::from(u16::MAX) {
        return Err(MALFORMED);
    }
    check_room(out, packets as usize, packets as usize * head_length)?;

    let gso_size = usize::from(meta.gso_size);
    for (index, piece) in payload.chunks(gso_size).enumerate() {
        let start = shape.payload + index * gso_size;
        let tail = (start as u32, piece.len() as u32);
        let head = out
            .push(frame_index, head_length, tail, meta.flow_hash)
            .ok_or(CutError::NoRoom)?;
        let position = Position {
            index: index as u32,
            sequence: (index * gso_size) as u32,
            is_first: index == 0,
            is_last: index + 1 == packets as usize,
        };
        template.write(head, piece, &position);
    }
    Ok(packets)
}

/// Place of a packet in its super-packet.
struct Position {
    index: u32,
    /// Payload bytes before it.
    sequence: u32,
    is_first: bool,
    is_last: bool,
}

/// The headers as they are in every packet, without the checksums.
struct Template<'a> {
    head: &'a [u8],
    shape: &'a Shape,
    map: Map,
    transport_at: usize,
    has_checksum: bool,
    /// Partial sum of the transport's pseudo-header without its length.
    pseudo: u32,
    flags: u8,
    sequence: u32,
}

/// From offsets in the frame to offsets in the head, which has a tag more or a header less.
#[derive(Clone, Copy)]
struct Map {
    tag: usize,
    jumbo: Option<usize>,
}

impl Map {
    fn of(self, at: usize) -> usize {
        let removed = match self.jumbo {
            Some(jumbo) if at > jumbo => JUMBO_HEADER,
            _ => 0,
        };
        at + self.tag - removed
    }
}

impl<'a> Template<'a> {
    fn new(
        meta: &FrameMeta,
        frame: &[u8],
        shape: &'a Shape,
        buffer: &'a mut [u8; MAX_HEAD],
    ) -> Option<Self> {
        let map = Map {
            tag: if meta.vlan.is_some() { VLAN_TAG } else { 0 },
            jumbo: shape.jumbo_header,
        };
        let head = buffer.get_mut(..map.of(shape.payload))?;
        write_without_jumbo(head, frame, shape, meta.vlan)?;

        let transport_at = map.of(shape.transport_at);
        let (checksum_at, protocol) = match shape.transport {
            Transport::Tcp => (transport_at + TCP_CHECKSUM, protocol::TCP),
            Transport::Udp => (transport_at + UDP_CHECKSUM, protocol::UDP),
        };
        // 0 in UDP says that the sender computed none, unless the kernel says that it is to come.
        let has_checksum = shape.transport == Transport::Tcp
            || be16(head, checksum_at)? != 0
            || matches!(meta.checksum, Checksum::Unfinished { .. });
        let (flags, sequence) = match shape.transport {
            Transport::Tcp => (*head.get(transport_at + 13)?, be32(head, transport_at + 4)?),
            Transport::Udp => (0, 0),
        };
        let pseudo = pseudo(head, shape.ip, map, protocol)?;
        put16(head, checksum_at, 0);
        Some(Self {
            head,
            shape,
            map,
            transport_at,
            has_checksum,
            pseudo,
            flags,
            sequence,
        })
    }

    fn write(&self, head: &mut [u8], piece: &[u8], position: &Position) {
        head.copy_from_slice(self.head);
        let length = head.len() + piece.len();

        for layer in self.shape.layers() {
            match *layer {
                Layer::Ipv4 { at, .. } => {
                    let at = self.map.of(at);
                    put16(head, at + 2, (length - at) as u16);
                    // As inet_gso_segment: the identification counts, with DF too.
                    let first = be16(head, at + 4).unwrap_or(0);
                    put16(head, at + 4, first.wrapping_add(position.index as u16));
                }
                Layer::Ipv6 { at } => {
                    let at = self.map.of(at);
                    put16(head, at + 4, (length - at - IPV6_HEADER) as u16);
                }
                Layer::Udp { at, .. } => {
                    let at = self.map.of(at);
                    put16(head, at + 4, (length - at) as u16);
                }
                Layer::Gre { .. } => {}
            }
        }
        let payload = checksum::sum(piece);
        self.write_transport(head, length, payload, position);
        // From the inside out, because a tunnel's checksum covers all that it carries.
        for layer in self.shape.layers().iter().rev() {
            self.write_layer_checksum(head, layer, length, payload);
        }
    }

    fn write_transport(&self, head: &mut [u8], length: usize, payload: u32, position: &Position) {
        let at = self.transport_at;
        let transport_length = length - at;
        let checksum_at = match self.shape.transport {
            Transport::Tcp => {
                let sequence = self.sequence.wrapping_add(position.sequence);
                put32(head, at + 4, sequence);
                let mut flags = self.flags;
                if !position.is_first {
                    flags &= !CWR;
                }
                if !position.is_last {
                    flags &= !(FIN | PSH);
                }
                if let Some(field) = head.get_mut(at + 13) {
                    *field = flags;
                }
                at + TCP_CHECKSUM
            }
            Transport::Udp => {
                put16(head, at + 4, transport_length as u16);
                at + UDP_CHECKSUM
            }
        };
        if !self.has_checksum {
            return;
        }
        let pseudo = self.pseudo + checksum::length_sum(transport_length as u32);
        let field = checksum::finish(pseudo + sum_from(head, at, payload));
        let field = match self.shape.transport {
            Transport::Udp if field == 0 => 0xffff,
            _ => field,
        };
        put16(head, checksum_at, field);
    }

    fn write_layer_checksum(&self, head: &mut [u8], layer: &Layer, length: usize, payload: u32) {
        match *layer {
            Layer::Ipv4 { at, header_length } => {
                let at = self.map.of(at);
                put16(head, at + 10, 0);
                let header = head.get(at..at + header_length).unwrap_or(&[]);
                let field = checksum::finish(checksum::sum(header));
                put16(head, at + 10, field);
            }
            Layer::Ipv6 { .. } => {}
            Layer::Udp { at, ip } => {
                let at = self.map.of(at);
                // 0 stays 0: the tunnel has no checksum (RFC 6935 for IPv6).
                if be16(head, at + UDP_CHECKSUM) == Some(0) {
                    return;
                }
                put16(head, at + UDP_CHECKSUM, 0);
                let pseudo = pseudo(head, ip, self.map, protocol::UDP).unwrap_or(0)
                    + checksum::length_sum((length - at) as u32);
                let field = checksum::finish(pseudo + sum_from(head, at, payload));
                let field = if field == 0 { 0xffff } else { field };
                put16(head, at + UDP_CHECKSUM, field);
            }
            Layer::Gre { at } => {
                let at = self.map.of(at);
                put16(head, at + 4, 0);
                let field = checksum::finish(sum_from(head, at, payload));
                put16(head, at + 4, field);
            }
        }
    }
}

/// Fills `head` with the frame's headers, the tag put in and the jumbo header left out.
fn write_without_jumbo(
    head: &mut [u8],
    frame: &[u8],
    shape: &Shape,
    tag: Option<VlanTag>,
) -> Option<()> {
    if frame.len() < MAC_ADDRESSES {
        return None;
    }
    let Some(jumbo) = shape.jumbo_header else {
        write_tagged(head, frame, shape.payload, tag);
        return Some(());
    };
    let tag_length = if tag.is_some() { VLAN_TAG } else { 0 };
    let (front, back) = head.split_at_mut_checked(jumbo + tag_length)?;
    write_tagged(front, frame, jumbo, tag);
    let rest = frame.get(jumbo + JUMBO_HEADER..shape.payload)?;
    if back.len() != rest.len() {
        return None;
    }
    back.copy_from_slice(rest);
    // The IPv6 header then names what the removed header named: next header, 40 bytes before it.
    let next_header = *frame.get(jumbo)?;
    *front.get_mut(jumbo + tag_length - IPV6_HEADER + 6)? = next_header;
    Some(())
}

/// Partial sum of a pseudo-header without its length.
fn pseudo(head: &[u8], ip: Addresses, map: Map, protocol: u8) -> Option<u32> {
    let source = map.of(ip.source);
    let destination = map.of(ip.destination);
    Some(checksum::pseudo_header(
        head.get(source..source + ip.length)?,
        head.get(destination..destination + ip.length)?,
        protocol,
        0,
    ))
}

/// Partial sum of the packet from `at` to its end, when `payload` is that of what follows the head.
fn sum_from(head: &[u8], at: usize, payload: u32) -> u32 {
    let rest = head.get(at..).unwrap_or(&[]);
    checksum::combine(checksum::sum(rest), rest.len(), payload)
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}
