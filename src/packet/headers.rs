//! From a frame's bytes to the offsets and facts of its headers.
//!
//! Bounds-checked, copies nothing but addresses, never panics on any bytes. It reads what
//! `bpf/parse.h` reads, to the same verdict, because both sides hash and match the same packet. Called
//! by `segment`, `flow`, `signature`, the sources and the rule tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of an Ethernet header without tags.
pub const ETHERNET_HEADER: usize = 14;
/// In-band VLAN tags that are looked behind; a third one is an unknown ethertype.
pub const MAX_VLAN_TAGS: usize = 2;
/// IPv6 extension headers that are looked behind; the next one counts as the upper layer.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Protocol type of a bridged Ethernet frame in GRE and Geneve.
pub const ETHERTYPE_BRIDGED: u16 = 0x6558;

/// IP protocol numbers that the packet plane knows.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// Type of the jumbo payload option, RFC 2675 section 2.
const JUMBO_OPTION: u8 = 0xc2;

/// Whether an IP packet is a fragment. An atomic one (RFC 6946) is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not a fragment.
    Whole,
    /// The first: transport header and more fragments.
    First,
    /// A later one: no transport header.
    Later,
}

/// Transport ports, host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The protocol has none, or they were not captured.
    None,
    /// They stand in the first fragment and this is a later one.
    Unknown,
    /// Source and destination.
    Known(u16, u16),
}

/// IP version of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Offsets and facts of an IP packet. All offsets are in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Version of the header.
    pub version: Version,
    /// Start of the IP header.
    pub offset: usize,
    /// Start of what follows the IP header and its extension headers. May be beyond the frame.
    pub transport: usize,
    /// End of the packet by its own length fields, so without Ethernet padding. May be beyond the
    /// frame, and before `transport` if the length is wrong. The frame's end if `length_known` is not
    /// set.
    pub end: usize,
    /// Whether the header tells its length; BIG TCP has 0 there.
    pub length_known: bool,
    /// Protocol after the extension headers. In a later fragment, what its fragment header says.
    pub protocol: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Identification of the datagram, 0 where the header has none.
    pub identification: u32,
    /// Source address.
    pub source: IpAddr,
    /// Destination address in the IP header.
    pub destination: IpAddr,
    /// Where the destination address of the pseudo-header stands: behind a routing header with
    /// segments left that is the last address of the route (RFC 8200 section 8.1).
    pub final_destination: usize,
    /// Transport ports.
    pub ports: Ports,
}

/// Offsets and facts of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Ethertype behind the in-band VLAN tags. An IEEE 802.3 length stays as it is.
    pub ethertype: u16,
    /// Start of the network header.
    pub network: usize,
    /// The IP packet; `None` for anything else and for an IP header that is not whole.
    pub ip: Option<Ip>,
}

impl Headers {
    /// Reads the headers of `frame`, which starts with its Ethernet header; `None` if that is not whole.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (ethertype, network) = parse_ethernet(frame, 0)?;
        Some(Self {
            ethertype,
            network,
            ip: parse_ip(frame, network, ethertype),
        })
    }
}

/// Two bytes at `at`, big-endian.
#[inline]
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Four bytes at `at`, big-endian.
#[inline]
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Whether an ethertype announces a VLAN tag.
pub const fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}

/// Reads the Ethernet header at `at` and its tags: ethertype behind the tags, start of what follows.
#[inline]
pub fn parse_ethernet(frame: &[u8], at: usize) -> Option<(u16, usize)> {
    let mut ethertype = be16(frame, at + 12)?;
    let mut network = at + ETHERNET_HEADER;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ethertype) {
            break;
        }
        let Some(inner) = be16(frame, network + 2) else {
            break;
        };
        ethertype = inner;
        network += super::VLAN_TAG;
    }
    Some((ethertype, network))
}

/// What the tunnels ask of a frame's Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkHeader {
    /// Ethertype behind the tags; 0 where there is no whole header.
    pub ethertype: u16,
    /// Control information of the outermost tag, if there is one.
    pub tci: Option<u16>,
    /// Bytes of the header and its tags.
    pub length: usize,
}

impl LinkHeader {
    /// The most bytes that [`parse`](Self::parse) looks at.
    pub const LONGEST: usize = ETHERNET_HEADER + MAX_VLAN_TAGS * super::VLAN_TAG;

    /// Reads it from the front of a frame.
    #[inline]
    pub fn parse(frame: &[u8]) -> Self {
        let Some((ethertype, length)) = parse_ethernet(frame, 0) else {
            return Self::default();
        };
        let tag = (length > ETHERNET_HEADER).then(|| be16(frame, ETHERNET_HEADER));
        Self {
            ethertype,
            tci: tag.flatten(),
            length,
        }
    }

    /// Whether an IP packet follows.
    #[inline]
    pub const fn is_ip(&self) -> bool {
        matches!(self.ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6)
    }
}

/// Reads the IP header at `at`, of the version that `ethertype` says.
#[inline]
pub fn parse_ip(frame: &[u8], at: usize, ethertype: u16) -> Option<Ip> {
    match ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(frame, at),
        ETHERTYPE_IPV6 => parse_ipv6(frame, at),
        _ => None,
    }
}

/// Length of the TCP header at `at`, options included; `None` if it is not whole or not possible.
#[inline]
pub fn tcp_header_length(frame: &[u8], at: usize) -> Option<usize> {
    let length = usize::from(frame.get(at + 12)? >> 4) * 4;
    (length >= 20 && at + length <= frame.len()).then_some(length)
}

#[inline]
fn parse_ipv4(frame: &[u8], at: usize) -> Option<Ip> {
    let header: &[u8; 20] = frame.get(at..)?.first_chunk()?;
    let header_length = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || header_length < header.len() {
        return None;
    }
    let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment_field = u16::from_be_bytes([header[6], header[7]]);
    let fragment = match (fragment_field & 0x1fff, fragment_field & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let transport = at + header_length;
    Some(Ip {
        version: Version::V4,
        offset: at,
        transport,
        end: if total_length == 0 {
            frame.len()
        } else {
            at + total_length
        },
        length_known: total_length != 0,
        protocol: header[9],
        fragment,
        identification: u32::from(u16::from_be_bytes([header[4], header[5]])),
        source: IpAddr::V4(Ipv4Addr::new(
            header[12], header[13], header[14], header[15],
        )),
        destination: IpAddr::V4(Ipv4Addr::new(
            header[16], header[17], header[18], header[19],
        )),
        final_destination: at + 16,
        ports: parse_ports(frame, transport, header[9], fragment),
    })
}

#[inline]
fn parse_ipv6(frame: &[u8], at: usize) -> Option<Ip> {
    let header: &[u8; 40] = frame.get(at..)?.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let source: [u8; 16] = *header[8..].first_chunk()?;
    let destination: [u8; 16] = *header[24..].first_chunk()?;
    let payload_length = usize::from(u16::from_be_bytes([header[4], header[5]]));

    let mut ip = Ip {
        version: Version::V6,
        offset: at,
        transport: at + header.len(),
        end: at + header.len() + payload_length,
        length_known: true,
        protocol: header[6],
        fragment: Fragment::Whole,
        identification: 0,
        source: IpAddr::V6(Ipv6Addr::from(source)),
        destination: IpAddr::V6(Ipv6Addr::from(destination)),
        final_destination: at + 24,
        ports: Ports::None,
    };
    if payload_length == 0 {
        match jumbo_length(frame, &ip) {
            Some(length) => ip.end = at + header.len() + length,
            None => {
                ip.end = frame.len();
                ip.length_known = false;
            }
        }
    }
    // RFC 8200 section 4: walk to the upper layer; behind the header of a later fragment is none.
    for _ in 0..MAX_EXTENSION_HEADERS {
        if ip.fragment == Fragment::Later || !parse_extension(frame, &mut ip) {
            break;
        }
    }
    ip.ports = parse_ports(frame, ip.transport, ip.protocol, ip.fragment);
    Some(ip)
}

/// Steps over one extension header; false if there is none or it is not captured.
fn parse_extension(frame: &[u8], ip: &mut Ip) -> bool {
    let kind = ip.protocol;
    if !matches!(
        kind,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HIP
            | SHIM6
    ) {
        return false;
    }
    let Some(&extension) = frame
        .get(ip.transport..)
        .and_then(|rest| rest.first_chunk::<8>())
    else {
        return false;
    };
    let units = usize::from(extension[1]);
    match kind {
        FRAGMENT => {
            let field = u16::from_be_bytes([extension[2], extension[3]]);
            if field & 0xfff9 != 0 {
                ip.fragment = if field & 0xfff8 != 0 {
                    Fragment::Later
                } else {
                    Fragment::First
                };
                ip.identification =
                    u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
            }
            ip.transport += 8;
        }
        // AH counts in 4 bytes, less 2 (RFC 4302 section 2.2).
        AUTHENTICATION => ip.transport += (units + 2) * 4,
        ROUTING => {
            if let Some(at) = last_of_route(&extension, ip.transport) {
                if at + 16 <= frame.len() {
                    ip.final_destination = at;
                }
            }
            ip.transport += (units + 1) * 8;
        }
        _ => ip.transport += (units + 1) * 8,
    }
    ip.protocol = extension[0];
    true
}

/// Where the last address of a routing header at `at` stands, if it is still to be visited.
fn last_of_route(routing: &[u8; 8], at: usize) -> Option<usize> {
    let addresses = usize::from(routing[1]) / 2;
    let (kind, segments_left) = (routing[2], routing[3]);
    if segments_left == 0 || addresses == 0 {
        return None;
    }
    match kind {
        // RFC 5095 type 0 and RFC 6275 type 2 list the addresses in the order of the visits.
        0 | 2 => Some(at + 8 + (addresses - 1) * 16),
        // RFC 8754 section 2: the segment list is in reverse.
        4 => Some(at + 8),
        _ => None,
    }
}

/// Length after the IPv6 header by the jumbo option, where the kernel puts it for BIG TCP: first
/// option of a hop-by-hop header that comes first.
fn jumbo_length(frame: &[u8], ip: &Ip) -> Option<usize> {
    let hop_by_hop: &[u8; 8] = frame.get(ip.transport..)?.first_chunk()?;
    let is_jumbo = ip.protocol == HOP_BY_HOP && hop_by_hop[2] == JUMBO_OPTION && hop_by_hop[3] == 4;
    is_jumbo.then(|| {
        let length = [hop_by_hop[4], hop_by_hop[5], hop_by_hop[6], hop_by_hop[7]];
        u32::from_be_bytes(length) as usize
    })
}

/// Start of a hop-by-hop header that holds the jumbo option and nothing else, as BIG TCP has it.
pub(super) fn lone_jumbo_header(frame: &[u8], ip: &Ip) -> Option<usize> {
    let at = ip.offset + 40;
    let header: &[u8; 48] = frame.get(ip.offset..)?.first_chunk()?;
    let is_lone = ip.version == Version::V6
        && header[6] == HOP_BY_HOP
        && header[41] == 0
        && header[42] == JUMBO_OPTION
        && header[43] == 4;
    is_lone.then_some(at)
}

#[inline]
fn parse_ports(frame: &[u8], transport: usize, protocol: u8, fragment: Fragment) -> Ports {
    use protocol::{DCCP, SCTP, TCP, UDP, UDP_LITE};
    if !matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE) {
        return Ports::None;
    }
    if fragment == Fragment::Later {
        return Ports::Unknown;
    }
    match be32(frame, transport) {
        Some(pair) => Ports::Known((pair >> 16) as u16, pair as u16),
        None => Ports::None,
    }
}

#[cfg(test)]
mod tests;
