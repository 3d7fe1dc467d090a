//! ICMP errors about our own outer packets: what routers and the target's host say to `xtee probe`.
//!
//! A raw socket sees every ICMP message to this namespace; those that quote a packet to the target are
//! told apart here. Needs CAP_NET_RAW. Called by control.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use serde::Serialize;

use super::sys::{check, own};

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IcmpError {
    /// Nobody listens on the port: a passive sensor reads the interface, not a socket.
    PortUnreachable,
    /// The host has no handler for the protocol (GRE): the same for a passive sensor.
    ProtocolUnreachable,
    /// The packet does not fit the path, whose MTU is this (0: not told).
    TooBig(u32),
    /// A router or host does not know the way.
    Unreachable,
    /// A firewall says no.
    Prohibited,
    /// The TTL ran out: a loop of routers.
    TimeExceeded,
    /// Another error.
    Other,
}

impl IcmpError {
    /// In words.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            IcmpError::PortUnreachable => {
                "port unreachable: normal for a passive sensor, which reads the \
                                           interface and not a socket"
                    .to_owned()
            }
            IcmpError::ProtocolUnreachable => {
                "protocol unreachable: normal for a passive sensor".to_owned()
            }
            IcmpError::TooBig(0) => "too big for the path".to_owned(),
            IcmpError::TooBig(mtu) => format!("too big for the path, whose MTU is {mtu}"),
            IcmpError::Unreachable => "host or network unreachable".to_owned(),
            IcmpError::Prohibited => "prohibited by a firewall".to_owned(),
            IcmpError::TimeExceeded => "time exceeded: routers send it in a circle".to_owned(),
            IcmpError::Other => "another ICMP error".to_owned(),
        }
    }

    /// The copy arrived at the host, which only has no use for it.
    #[must_use]
    pub fn is_normal(self) -> bool {
        matches!(
            self,
            IcmpError::PortUnreachable | IcmpError::ProtocolUnreachable
        )
    }
}

/// Listens to ICMP errors.
#[derive(Debug)]
pub struct IcmpWatch {
    socket: OwnedFd,
    target: IpAddr,
}

impl IcmpWatch {
    /// About packets to `target`.
    ///
    /// # Errors
    /// No socket, most likely for want of CAP_NET_RAW.
    pub fn open(target: IpAddr) -> io::Result<IcmpWatch> {
        let (family, protocol) = match target {
            IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
            IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        };
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes integers only.
        let socket = check(unsafe { libc::socket(family, kind, protocol) } as libc::c_long)?;
        Ok(IcmpWatch {
            socket: own(socket),
            target,
        })
    }

    /// What came since the last call, and who said it.
    #[must_use]
    pub fn receive(&self) -> Vec<(IcmpError, IpAddr)> {
        let mut errors = Vec::new();
        let mut buffer = [0u8; 2048];
        while let Some((length, from)) = self.receive_one(&mut buffer) {
            let message = &buffer[..length];
            let found = match self.target {
                IpAddr::V4(target) => about_v4(message, target.octets()),
                IpAddr::V6(target) => about_v6(message, target.octets()).map(|error| (error, from)),
            };
            errors.extend(found);
        }
        errors
    }

    fn receive_one(&self, buffer: &mut [u8]) -> Option<(usize, IpAddr)> {
        // SAFETY: a C struct of integers, for which zero is a value.
        let mut from: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        let mut length = std::mem::size_of_val(&from) as libc::socklen_t;
        // SAFETY: buffer and address outlive the call, and the kernel is told their sizes.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                std::ptr::from_mut(&mut from).cast(),
                &mut length,
            )
        };
        let received = usize::try_from(received).ok()?;
        Some((received, IpAddr::from(from.sin6_addr.s6_addr)))
    }
}

/// An IPv4 packet with an ICMP error about a packet to `target` (RFC 792); also its sender.
fn about_v4(packet: &[u8], target: [u8; 4]) -> Option<(IcmpError, IpAddr)> {
    let header = usize::from(packet.first()? & 15) * 4;
    let icmp = packet.get(header..)?;
    let quoted = icmp.get(8..)?;
    if quoted.get(16..20)? != target || !matches!(quoted.get(9)?, 17 | 47) {
        return None;
    }
    let error = match (icmp.first()?, icmp.get(1)?) {
        (3, 3) => IcmpError::PortUnreachable,
        (3, 2) => IcmpError::ProtocolUnreachable,
        (3, 4) => IcmpError::TooBig(u32::from(u16::from_be_bytes([icmp[6], icmp[7]]))),
        (3, 9 | 10 | 13) => IcmpError::Prohibited,
        (3, _) => IcmpError::Unreachable,
        (11, _) => IcmpError::TimeExceeded,
        (4 | 5 | 12, _) => IcmpError::Other,
        _ => return None,
    };
    let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    Some((error, IpAddr::from(from)))
}

/// An ICMPv6 error about a packet to `target` (RFC 4443).
fn about_v6(icmp: &[u8], target: [u8; 16]) -> Option<IcmpError> {
    let quoted = icmp.get(8..)?;
    if quoted.get(24..40)? != target {
        return None;
    }
    Some(match (icmp.first()?, icmp.get(1)?) {
        (1, 4) => IcmpError::PortUnreachable,
        (1, 1) => IcmpError::Prohibited,
        (1, _) => IcmpError::Unreachable,
        (2, _) => IcmpError::TooBig(u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]])),
        (3, _) => IcmpError::TimeExceeded,
        (4, 1) => IcmpError::ProtocolUnreachable,
        (..128, _) => IcmpError::Other,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: [u8; 4] = [203, 0, 113, 2];

    /// An ICMP message to us that quotes a packet of `protocol` to `to`.
    fn message(kind: u8, code: u8, rest: [u8; 4], protocol: u8, to: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45; 12];
        packet.extend([198, 51, 100, 9, 198, 51, 100, 2, kind, code, 0, 0]);
        packet.extend(rest);
        let mut quoted = vec![0; 28];
        quoted[9] = protocol;
        quoted[16..20].copy_from_slice(&to);
        packet.extend(quoted);
        packet
    }

    #[test]
    fn errors_about_our_packets_are_told_apart() {
        let router: IpAddr = "198.51.100.9".parse().unwrap();
        for (kind, code, rest, error) in [
            (3, 3, [0; 4], IcmpError::PortUnreachable),
            (3, 2, [0; 4], IcmpError::ProtocolUnreachable),
            (3, 4, [0, 0, 5, 120], IcmpError::TooBig(1400)),
            (3, 1, [0; 4], IcmpError::Unreachable),
            (3, 13, [0; 4], IcmpError::Prohibited),
            (11, 0, [0; 4], IcmpError::TimeExceeded),
        ] {
            let packet = message(kind, code, rest, 17, TARGET);
            assert_eq!(about_v4(&packet, TARGET), Some((error, router)));
        }
        // An echo, somebody else's error, another protocol, and one cut short.
        assert_eq!(about_v4(&message(8, 0, [0; 4], 17, TARGET), TARGET), None);
        let other = message(3, 3, [0; 4], 17, [203, 0, 113, 3]);
        assert_eq!(about_v4(&other, TARGET), None);
        assert_eq!(about_v4(&message(3, 3, [0; 4], 6, TARGET), TARGET), None);
        assert_eq!(
            about_v4(&message(3, 3, [0; 4], 17, TARGET)[..40], TARGET),
            None
        );
    }

    #[test]
    fn errors_of_ipv6_are_told_apart() {
        let target = [7; 16];
        let message = |kind: u8, code: u8| {
            let mut icmp = vec![kind, code, 0, 0, 0, 0, 5, 0];
            icmp.extend([0; 24]);
            icmp.extend(target);
            icmp
        };
        assert_eq!(
            about_v6(&message(1, 4), target),
            Some(IcmpError::PortUnreachable)
        );
        assert_eq!(
            about_v6(&message(2, 0), target),
            Some(IcmpError::TooBig(1280))
        );
        assert_eq!(
            about_v6(&message(4, 1), target),
            Some(IcmpError::ProtocolUnreachable)
        );
        assert_eq!(about_v6(&message(128, 0), target), None);
        assert_eq!(about_v6(&message(1, 4), [8; 16]), None);
    }
}
