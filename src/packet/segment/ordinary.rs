//! Frames that are one packet: untouched, or with a VLAN tag put back or a checksum completed.
//!
//! The head is the frame up to the last changed byte, so nothing is copied where nothing changes.
//! Called by `cut`.

use super::super::headers::{be16, protocol, Fragment, Headers, Ip, ETHERNET_HEADER};
use super::layers::Addresses;
use super::{check_room, inner_network, CutError};
use crate::packet::packets::MAX_HEAD;
use crate::packet::{checksum, crc32c::crc32c, Checksum, FrameMeta, Packets, VlanTag, VLAN_TAG};

/// Where the MAC addresses end and a VLAN tag stands.
pub(super) const MAC_ADDRESSES: usize = 12;

/// Place of the checksum in a TCP, UDP and SCTP header.
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;
const SCTP_CHECKSUM: usize = 8;

/// Tunnels within tunnels that are looked into for an unfinished checksum.
const MAX_TUNNELS: usize = 2;

/// A field to be written over the frame's bytes.
struct Change {
    at: usize,
    bytes: [u8; 4],
    length: usize,
}

impl Change {
    fn checksum(at: usize, value: u16) -> Self {
        let [high, low] = value.to_be_bytes();
        Self {
            at,
            bytes: [high, low, 0, 0],
            length: 2,
        }
    }
}

#[inline]
pub(super) fn append(
    meta: &FrameMeta,
    frame: &[u8],
    frame_index: u32,
    out: &mut Packets,
) -> Result<u32, CutError> {
    let change = match meta.checksum {
        Checksum::Finished => None,
        _ if frame.len() < meta.byte_length() => None,
        Checksum::Unfinished { start, offset } => {
            complete(frame, usize::from(start), usize::from(offset))
        }
        Checksum::Unknown => complete_if_pseudo(frame),
    };
    // A checksum further back than any header can be is a wrong statement about the frame.
    let change = change.filter(|change| change.at + change.length + VLAN_TAG <= MAX_HEAD);
    let tag = meta.vlan.filter(|_| frame.len() >= ETHERNET_HEADER);

    let start = match (&change, tag) {
        (Some(change), _) => change.at + change.length,
        (None, Some(_)) => MAC_ADDRESSES,
        (None, None) => 0,
    };
    let tag_length = if tag.is_some() { VLAN_TAG } else { 0 };
    let head_length = start + tag_length;
    check_room(out, 1, head_length)?;

    let tail = (start as u32, frame.len().saturating_sub(start) as u32);
    let head = out
        .push(frame_index, head_length, tail, meta.flow_hash)
        .ok_or(CutError::NoRoom)?;
    if head_length > 0 {
        write_tagged(head, frame, start, tag);
        if let Some(change) = change {
            let at = change.at + tag_length;
            let field = head.get_mut(at..at + change.length);
            if let (Some(field), Some(bytes)) = (field, change.bytes.get(..change.length)) {
                field.copy_from_slice(bytes);
            }
        }
    }
    Ok(1)
}

/// Fills `head` with the first `length` bytes of `frame` and puts `tag` behind the MAC addresses.
pub(super) fn write_tagged(head: &mut [u8], frame: &[u8], length: usize, tag: Option<VlanTag>) {
    let Some(bytes) = frame.get(..length) else {
        return;
    };
    match tag {
        Some(tag) if length >= MAC_ADDRESSES && head.len() == length + VLAN_TAG => {
            let (addresses, rest) = bytes.split_at(MAC_ADDRESSES);
            head[..MAC_ADDRESSES].copy_from_slice(addresses);
            head[MAC_ADDRESSES..][..2].copy_from_slice(&tag.protocol.to_be_bytes());
            head[MAC_ADDRESSES + 2..][..2].copy_from_slice(&tag.tci.to_be_bytes());
            head[MAC_ADDRESSES + VLAN_TAG..].copy_from_slice(rest);
        }
        _ if head.len() == length => head.copy_from_slice(bytes),
        _ => {}
    }
}

/// What the kernel's `skb_checksum_help` would write: the sum from `start` to the frame's end, field
/// included, and 0xffff for 0.
fn complete(frame: &[u8], start: usize, offset: usize) -> Option<Change> {
    let at = start + offset;
    // Only SCTP has its field there; the kernel calls skb_crc32c_csum_help then (`csum_not_inet`).
    if offset == SCTP_CHECKSUM {
        return complete_sctp(frame, start);
    }
    frame.get(at..at + 2)?;
    let field = checksum::finish(checksum::sum(frame.get(start..)?));
    Some(Change::checksum(
        at,
        if field == 0 { 0xffff } else { field },
    ))
}

fn complete_sctp(frame: &[u8], start: usize) -> Option<Change> {
    let ip = find_transport(frame, start)?;
    if ip.protocol != protocol::SCTP {
        return None;
    }
    let at = start + SCTP_CHECKSUM;
    frame.get(at..at + 4)?;
    Some(Change {
        at,
        bytes: crc32c(frame.get(start..)?).to_le_bytes(),
        length: 4,
    })
}

/// The IP header, perhaps in a tunnel, whose transport header starts at `start`.
fn find_transport(frame: &[u8], start: usize) -> Option<Ip> {
    packets_in(frame).find(|ip| ip.transport == start)
}

/// The IP packet of the frame and those in its tunnels.
fn packets_in(frame: &[u8]) -> impl Iterator<Item = Ip> + '_ {
    let outermost = Headers::parse(frame).and_then(|headers| headers.ip);
    std::iter::successors(outermost, |ip| {
        let (network, ethertype) = inner_network(frame, ip)?;
        super::super::headers::parse_ip(frame, network, ethertype)
    })
    .take(1 + MAX_TUNNELS)
}

/// Completes a TCP or UDP checksum that holds the folded pseudo-header sum, as Linux leaves it.
///
/// A finished one can look the same once in 65 536 packets. If it is right, completing it gives the
/// same bytes again.
fn complete_if_pseudo(frame: &[u8]) -> Option<Change> {
    packets_in(frame).find_map(|ip| complete_packet_if_pseudo(frame, &ip))
}

fn complete_packet_if_pseudo(frame: &[u8], ip: &Ip) -> Option<Change> {
    let offset = match ip.protocol {
        protocol::TCP => TCP_CHECKSUM,
        protocol::UDP => UDP_CHECKSUM,
        _ => return None,
    };
    if ip.fragment != Fragment::Whole || !ip.length_known {
        return None;
    }
    let segment = frame.get(ip.transport..ip.end)?;
    let field = be16(segment, offset)?;
    let addresses = Addresses::of(ip);
    let source = frame.get(addresses.source..addresses.source + addresses.length)?;
    let destination = frame.get(addresses.destination..addresses.destination + addresses.length)?;
    let length = segment.len() as u32;
    let pseudo = checksum::pseudo_header(source, destination, ip.protocol, length);
    // 0 in UDP says that there is no checksum; no pseudo-header's sum is 0.
    if field == 0 || field != checksum::fold(pseudo) {
        return None;
    }
    let value = checksum::finish(checksum::sum(segment));
    let value = if value == 0 { 0xffff } else { value };
    Some(Change::checksum(ip.transport + offset, value))
}
