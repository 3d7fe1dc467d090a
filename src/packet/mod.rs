//! The packet plane: bytes in, bytes and decisions out.
//!
//! Everything here is pure: it knows no socket, ring, clock or counter, never allocates after
//! construction, never panics on any input and has no `unsafe`. The worker calls [`cut`] on each
//! captured frame and hands the resulting [`Packets`] to a transmitter; `mirror`, `source` and the
//! tests use the parser, the flow hash and the outer headers.
#![forbid(unsafe_code)]

pub mod checksum;
mod crc32c;
pub mod encap;
pub mod fit;
pub mod flow;
pub mod headers;
pub mod link;
mod packets;
pub mod pcapng;
pub mod probe;
pub mod segment;
pub mod signature;
#[cfg(test)]
mod testing;

pub use packets::{PacketList, PacketRef, Packets, Part, DEFAULT_ARENA_BYTES, DEFAULT_PACKETS};
pub use segment::{cut, wire_packets, CutError};

/// Rule number of a frame that no rule matched and the default action took.
pub const DEFAULT_RULE: u8 = 255;

/// Bytes of a VLAN tag: protocol and control information.
pub const VLAN_TAG: usize = 4;

/// Which way a frame went, as the tapped interface sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Received by the interface (ingress).
    #[default]
    In = 0,
    /// Sent by the interface (egress).
    Out = 1,
}

/// A VLAN tag that the kernel or the NIC took out of the frame's bytes. Host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Priority, drop eligibility and VLAN identifier, as on the wire.
    pub tci: u16,
    /// Tag protocol: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
}

/// What kind of super-packet the kernel says the frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// Not a super-packet.
    #[default]
    None,
    /// TCP segmentation (`SKB_GSO_TCPV4`/`TCPV6`), perhaps within a tunnel.
    Tcp,
    /// UDP segmentation (`SKB_GSO_UDP_L4`), perhaps within a tunnel.
    Udp,
    /// The kernel did not tell: decided from the headers when `gso_size` is not 0.
    Unknown,
}

/// State of the frame's transport checksum, as the kernel keeps it in `skb->ip_summed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The kernel did not tell. Completed only where the field holds the folded pseudo-header sum.
    #[default]
    Unknown,
    /// The bytes are as they are on the wire, right or wrong: never touched.
    Finished,
    /// `CHECKSUM_PARTIAL`: the field holds the pseudo-header sum and a NIC would finish it.
    Unfinished {
        /// First byte that the sum covers: byte offset in the captured frame.
        start: u16,
        /// Place of the checksum field, in bytes from `start`.
        offset: u16,
    },
}

/// What a source knows about one captured frame besides its bytes. All numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMeta {
    /// Capture time, nanoseconds.
    pub timestamp_ns: u64,
    /// Length in bytes of the frame in the kernel's hands, plus 4 for the tag in `vlan`. A frame
    /// whose captured bytes and tag are fewer is truncated.
    pub wire_length: u32,
    /// Hash of the flow, equal in both directions (see [`flow`]).
    pub flow_hash: u32,
    /// Kind of super-packet.
    pub gso: Gso,
    /// Transport payload bytes of each packet of a super-packet; 0: not a super-packet.
    pub gso_size: u16,
    /// Packets that the frame is on the wire, at least 1.
    pub segments: u16,
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// The tag that was stripped from the bytes, if any.
    pub vlan: Option<VlanTag>,
    /// Which way the frame went.
    pub direction: Direction,
    /// Rule that selected the frame; [`DEFAULT_RULE`] for the default action.
    pub rule: u8,
    /// Generation of the rule set that selected it.
    pub generation: u32,
    /// Bytes that are wanted of each packet on the wire, its VLAN tags included; 0: all.
    pub snaplen: u32,
}

impl FrameMeta {
    /// Length that the captured bytes have if nothing is missing: `wire_length` without the tag.
    pub fn byte_length(&self) -> usize {
        let tag = if self.vlan.is_some() { VLAN_TAG } else { 0 };
        (self.wire_length as usize).saturating_sub(tag)
    }

    /// Metadata of an ordinary, complete frame of `wire_length` bytes of which nothing else is known.
    pub const fn plain(wire_length: u32) -> Self {
        Self {
            timestamp_ns: 0,
            wire_length,
            flow_hash: 0,
            gso: Gso::None,
            gso_size: 0,
            segments: 1,
            checksum: Checksum::Unknown,
            vlan: None,
            direction: Direction::In,
            rule: DEFAULT_RULE,
            generation: 0,
            snaplen: 0,
        }
    }
}
