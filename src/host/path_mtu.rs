//! Learns path MTUs from the ICMP errors that routers send about our own outer flow.
//!
//! The kernel learns by itself only where a socket of its own sent the packet, so not for AF_XDP; here it is
//! the same for every transmitter. Believes an error only if it quotes a packet of ours that is too long for
//! what it reports, and nothing below what every path must carry. Called by `watch`, on its thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::sys;
use crate::packet::headers::{parse_ip, protocol, Fragment, Ports, ETHERTYPE_IPV4, ETHERTYPE_IPV6};

/// Linux's `min_pmtu`: RFC 791 promises 68, but no link below this has been seen for long, and a forged
/// error shall not make us send tiny packets.
pub const SMALLEST_IPV4: u32 = 552;
/// RFC 8200 section 5.
pub const SMALLEST_IPV6: u32 = 1280;
/// Linux's `mtu_expires`, and RFC 8201 section 4: after this long a larger packet is tried again.
pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(600);
/// Errors that are read in one go: a storm of them must not keep the watch from its work.
const MOST_AT_ONCE: usize = 256;

const IPV4_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;

/// How the outer packets to a target look, addresses aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OuterFlow {
    /// IP protocol: UDP or GRE.
    pub protocol: u8,
    /// UDP destination port; not looked at for GRE.
    pub destination_port: u16,
    /// UDP source ports; not looked at for GRE.
    pub source_ports: RangeInclusive<u16>,
}

/// What an ICMP error says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TooBig {
    /// Who says so.
    pub router: IpAddr,
    /// Largest packet that it can pass on, in bytes.
    pub mtu: u32,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: Ports,
    length: usize,
}

impl TooBig {
    /// From an IPv4 packet that carries an ICMP error.
    fn read_v4(packet: &[u8]) -> Option<Self> {
        let outer = parse_ip(packet, 0, ETHERTYPE_IPV4)?;
        let icmp = packet.get(outer.transport..)?;
        let (&[kind, code, ..], quotation) = icmp.split_at_checked(ICMP_HEADER)? else {
            return None;
        };
        if outer.protocol != protocol::ICMP || (kind, code) != (UNREACHABLE, FRAGMENTATION_NEEDED) {
            return None;
        }
        let mtu = u32::from(u16::from_be_bytes([icmp[6], icmp[7]]));
        // A router from before RFC 1191 reports 0: like the kernel, take the least.
        Self::about(outer.source, mtu.max(SMALLEST_IPV4), quotation)
    }

    /// From an ICMPv6 message of `router`.
    fn read_v6(router: IpAddr, message: &[u8]) -> Option<Self> {
        let (header, quotation) = message.split_at_checked(ICMP_HEADER)?;
        let mtu = u32::from_be_bytes(*header.last_chunk()?);
        // RFC 8201 section 4: a smaller value must be discarded.
        if header.first() != Some(&PACKET_TOO_BIG) || mtu < SMALLEST_IPV6 {
            return None;
        }
        Self::about(router, mtu, quotation)
    }

    fn about(router: IpAddr, mtu: u32, quotation: &[u8]) -> Option<Self> {
        let ethertype = match quotation.first()? >> 4 {
            4 => ETHERTYPE_IPV4,
            _ => ETHERTYPE_IPV6,
        };
        let ip = parse_ip(quotation, 0, ethertype)?;
        if ip.fragment == Fragment::Later {
            return None;
        }
        Some(Self {
            router,
            mtu,
            source: ip.source,
            destination: ip.destination,
            protocol: ip.protocol,
            ports: ip.ports,
            length: ip.end,
        })
    }

    /// Whether it is about a packet of `flow` from `source` to `destination` that was too long indeed.
    pub(super) fn is_about(&self, source: IpAddr, destination: IpAddr, flow: &OuterFlow) -> bool {
        let ports_match = match (flow.protocol, self.ports) {
            (protocol::UDP, Ports::Known(from, to)) => {
                flow.source_ports.contains(&from) && flow.destination_port == to
            }
            (protocol::UDP, _) => false,
            _ => true,
        };
        (self.source, self.destination) == (source, destination)
            && self.protocol == flow.protocol
            && ports_match
            && self.length > self.mtu as usize
    }
}

/// A path MTU that a router told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Learned {
    /// Bytes.
    pub mtu: u32,
    /// Who told.
    pub router: IpAddr,
    /// When.
    pub heard: Instant,
    /// The way that it is about, by device and next hop: another way has another MTU.
    pub way: (u32, IpAddr),
}

impl Learned {
    /// What is believed after an error, on the path `way`.
    pub(super) fn after(
        before: Option<Learned>,
        error: &TooBig,
        way: (u32, IpAddr),
        now: Instant,
    ) -> Learned {
        let heard = Learned {
            mtu: error.mtu,
            router: error.router,
            heard: now,
            way,
        };
        match before {
            // A late error about an earlier packet does not raise it.
            Some(before) if before.holds(way, now) && before.mtu < error.mtu => before,
            _ => heard,
        }
    }

    /// Whether it is still to be believed.
    pub(super) fn holds(&self, way: (u32, IpAddr), now: Instant) -> bool {
        self.way == way && now.duration_since(self.heard) < BELIEVED_FOR
    }
}

/// Sockets that hear ICMP and ICMPv6 errors of the network namespace.
#[derive(Debug)]
pub(super) struct Listener {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Listener {
    /// Needs CAP_NET_RAW. What cannot be opened is left out: then only what the kernel learns is known.
    pub(super) fn open() -> (Self, Option<io::Error>) {
        let mut refusal = None;
        let mut open = |family, protocol, filter: &mut [libc::sock_filter]| {
            sys::raw_socket(family, protocol, filter)
                .map_err(|error| refusal = Some(error))
                .ok()
        };
        let v4 = open(libc::AF_INET, libc::IPPROTO_ICMP, &mut only_v4());
        let v6 = open(libc::AF_INET6, libc::IPPROTO_ICMPV6, &mut only_v6());
        // A kernel without IPv6 has no use for the second.
        let refusal = refusal.filter(|_| v4.is_none());
        (Self { v4, v6 }, refusal)
    }

    /// To wait on.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.v4.iter().chain(&self.v6).map(AsFd::as_fd)
    }

    /// What was heard; does not wait.
    pub(super) fn receive(&self) -> Vec<TooBig> {
        let mut heard = Vec::new();
        // The quotation's headers are all that matters.
        let mut buffer = [0u8; 512];
        for _ in 0..MOST_AT_ONCE {
            let Some((length, _)) = self.v4.as_ref().and_then(|v4| take(v4, &mut buffer)) else {
                break;
            };
            heard.extend(TooBig::read_v4(&buffer[..length]));
        }
        for _ in 0..MOST_AT_ONCE {
            let Some((length, router)) = self.v6.as_ref().and_then(|v6| take(v6, &mut buffer))
            else {
                break;
            };
            heard.extend(TooBig::read_v6(router, &buffer[..length]));
        }
        heard
    }
}

fn take(socket: &OwnedFd, buffer: &mut [u8]) -> Option<(usize, IpAddr)> {
    let (length, from) = sys::receive_from(socket.as_raw_fd(), buffer).ok()?;
    let from = match from {
        Some(SocketAddr::V6(from)) => IpAddr::V6(*SocketAddrV6::ip(&from)),
        Some(SocketAddr::V4(from)) => IpAddr::V4(*from.ip()),
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    Some((length, from))
}

/// A classic BPF instruction.
const fn op(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

const LOAD_HEADER_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LOAD_BYTE_AT: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Takes "fragmentation needed" alone, so that the port unreachables of a passive sensor wake nobody. A raw
/// IPv4 socket sees the packet from its IP header on.
fn only_v4() -> [libc::sock_filter; 7] {
    [
        op(LOAD_HEADER_LENGTH, 0, 0, 0),
        op(LOAD_BYTE, 0, 0, 0),
        op(JUMP_EQUAL, 0, 3, UNREACHABLE as u32),
        op(LOAD_BYTE, 0, 0, 1),
        op(JUMP_EQUAL, 0, 1, FRAGMENTATION_NEEDED as u32),
        op(RETURN, 0, 0, u32::MAX),
        op(RETURN, 0, 0, 0),
    ]
}

/// Takes "packet too big" alone. A raw ICMPv6 socket sees the packet from its ICMPv6 header on.
fn only_v6() -> [libc::sock_filter; 4] {
    [
        op(LOAD_BYTE_AT, 0, 0, 0),
        op(JUMP_EQUAL, 0, 1, PACKET_TOO_BIG as u32),
        op(RETURN, 0, 0, u32::MAX),
        op(RETURN, 0, 0, 0),
    ]
}

/// The least path MTU that is believed for a target.
pub fn smallest(target: IpAddr) -> u32 {
    match target {
        IpAddr::V4(_) => SMALLEST_IPV4,
        IpAddr::V6(_) => SMALLEST_IPV6,
    }
}

const _: () = assert!(IPV4_HEADER + ICMP_HEADER < 512);

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "203.0.113.1";
    const COLLECTOR: &str = "203.0.113.2";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn vxlan() -> OuterFlow {
        OuterFlow {
            protocol: 17,
            destination_port: 4789,
            source_ports: 61000..=61063,
        }
    }

    /// An ICMP error of 198.51.100.9 with a quoted IPv4 packet.
    fn error(mtu: u16, quoted_length: u16, protocol: u8, ports: (u16, u16)) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend([198, 51, 100, 9, 203, 0, 113, 1]);
        packet.extend([3, 4, 0, 0, 0, 0]);
        packet.extend(mtu.to_be_bytes());
        let mut quoted = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 63, protocol, 0, 0];
        quoted[2..4].copy_from_slice(&quoted_length.to_be_bytes());
        quoted.extend([203, 0, 113, 1, 203, 0, 113, 2]);
        quoted.extend(ports.0.to_be_bytes());
        quoted.extend(ports.1.to_be_bytes());
        quoted.extend([0; 4]);
        packet.extend(quoted);
        packet
    }

    fn ours(packet: &[u8], flow: &OuterFlow) -> Option<u32> {
        let heard = TooBig::read_v4(packet)?;
        heard
            .is_about(ip(OURS), ip(COLLECTOR), flow)
            .then_some(heard.mtu)
    }

    #[test]
    fn errors_about_our_flow_are_believed_and_no_others() {
        let good = error(1400, 1500, 17, (61005, 4789));
        assert_eq!(ours(&good, &vxlan()), Some(1400));
        assert_eq!(TooBig::read_v4(&good).unwrap().router, ip("198.51.100.9"));
        for wrong in [
            error(1400, 1500, 17, (60999, 4789)),
            error(1400, 1500, 17, (61005, 4790)),
            error(1400, 1500, 6, (61005, 4789)),
            // A packet of this length would have passed.
            error(1400, 1400, 17, (61005, 4789)),
        ] {
            assert_eq!(ours(&wrong, &vxlan()), None);
        }
        let heard = TooBig::read_v4(&good).unwrap();
        assert!(!heard.is_about(ip(COLLECTOR), ip(OURS), &vxlan()));
        let gre = OuterFlow {
            protocol: 47,
            ..vxlan()
        };
        assert_eq!(ours(&error(1400, 1500, 47, (0, 0)), &gre), Some(1400));
        // Another kind of error, and one that is cut short.
        let mut unreachable = good.clone();
        unreachable[21] = 3;
        assert_eq!(ours(&unreachable, &vxlan()), None);
        assert_eq!(ours(&good[..47], &vxlan()), None);
    }

    #[test]
    fn no_path_becomes_smaller_than_any_real_one() {
        for mtu in [0, 68, 551, 552] {
            let packet = error(mtu, 1500, 17, (61005, 4789));
            assert_eq!(ours(&packet, &vxlan()), Some(552));
        }
    }

    #[test]
    fn packet_too_big_of_ipv6() {
        let (source, destination) = (ip("2001:db8::1"), ip("2001:db8::2"));
        let message = |mtu: u32| {
            let mut message = vec![2, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend([0x60, 0, 0, 0, 5, 0xdc, 17, 64]);
            message.extend(
                "2001:db8::1"
                    .parse::<std::net::Ipv6Addr>()
                    .unwrap()
                    .octets(),
            );
            message.extend(
                "2001:db8::2"
                    .parse::<std::net::Ipv6Addr>()
                    .unwrap()
                    .octets(),
            );
            message.extend(61001u16.to_be_bytes());
            message.extend(4789u16.to_be_bytes());
            message.extend([0; 4]);
            message
        };
        let heard = TooBig::read_v6(ip("2001:db8::9"), &message(1400)).unwrap();
        assert_eq!(heard.mtu, 1400);
        assert!(heard.is_about(source, destination, &vxlan()));
        assert_eq!(TooBig::read_v6(ip("2001:db8::9"), &message(1279)), None);
        assert_eq!(
            TooBig::read_v6(ip("2001:db8::9"), &message(1400)[..20]),
            None
        );
    }

    #[test]
    fn it_goes_down_at_once_and_up_when_it_has_grown_old_or_the_way_is_another() {
        let way = (3, ip("198.51.100.2"));
        let start = Instant::now();
        let heard = |mtu| TooBig::read_v4(&error(mtu, 1500, 17, (61005, 4789))).unwrap();
        let first = Learned::after(None, &heard(1400), way, start);
        let lower = Learned::after(Some(first), &heard(1300), way, start);
        assert_eq!(lower.mtu, 1300);
        assert_eq!(Learned::after(Some(lower), &heard(1400), way, start), lower);
        assert!(lower.holds(way, start + BELIEVED_FOR / 2));
        assert!(!lower.holds(way, start + BELIEVED_FOR));
        assert!(!lower.holds((4, way.1), start));
        let later = start + BELIEVED_FOR;
        let anew = Learned::after(Some(lower), &heard(1400), way, later);
        assert_eq!(anew.mtu, 1400);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do_no_harm(
            mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120),
            good: bool,
            at: proptest::sample::Index,
            value: u8,
        ) {
            if good {
                bytes = error(1400, 1500, 17, (61005, 4789));
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            for heard in [TooBig::read_v4(&bytes), TooBig::read_v6(ip("::1"), &bytes)].into_iter().flatten() {
                proptest::prop_assert!(heard.mtu >= SMALLEST_IPV4);
            }
        }
    }
}
