//! What a rule is, and what a packet has to show to be matched by one.
//!
//! Plain data, validated where it enters (`config`): this module neither parses text of the user
//! nor matches packets. `tables` compiles rules, `reference` interprets them.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

use super::slice::Slice;
use crate::packet::headers::{self, Headers};
use crate::packet::Direction;

/// A rule set holds at most this many rules: one bit each in a 64-bit word.
pub const MAX_RULES: usize = 64;

/// IP protocols whose header starts with a source and a destination port: TCP, UDP, DCCP, SCTP and
/// UDP-Lite.
pub const PROTOCOLS_WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// What happens to a packet that a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Copy it to the targets.
    Mirror,
    /// Leave it alone.
    Skip,
}

/// A set of IP protocol numbers (after IPv6 extension headers: the upper-layer protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocols([u64; 4]);

impl Protocols {
    /// The set of one protocol.
    #[must_use]
    pub fn one(number: u8) -> Self {
        [number].into_iter().collect()
    }

    /// ICMP and ICMPv6, which users mean alike by "icmp".
    #[must_use]
    pub fn icmp() -> Self {
        [1, 58].into_iter().collect()
    }

    /// Whether `number` is in the set.
    #[must_use]
    pub fn contains(&self, number: u8) -> bool {
        self.0[usize::from(number / 64)] & (1 << (number % 64)) != 0
    }

    /// Whether any protocol of the set carries ports.
    #[must_use]
    pub fn have_ports(&self) -> bool {
        PROTOCOLS_WITH_PORTS.iter().any(|&p| self.contains(p))
    }
}

impl FromIterator<u8> for Protocols {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        let mut set = Protocols::default();
        for number in numbers {
            set.0[usize::from(number / 64)] |= 1 << (number % 64);
        }
        set
    }
}

/// Why a network was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// Neither an address nor address/prefix.
    #[error("`{0}` is not an address or a network")]
    Syntax(String),
    /// The prefix is longer than the address.
    #[error("/{prefix} is longer than an address of {bits} bits")]
    Prefix {
        /// Length asked for.
        prefix: u8,
        /// Bits of the address family: 32 or 128.
        bits: u8,
    },
    /// Bits are set behind the prefix: most likely a typing error in one of the two.
    #[error("{addr}/{prefix} has bits set behind the prefix; the network is {network}/{prefix}")]
    HostBits {
        /// The address as given.
        addr: IpAddr,
        /// The prefix length as given.
        prefix: u8,
        /// The same address with the host bits cleared.
        network: IpAddr,
    },
}

/// An IPv4 or IPv6 network; no bit is set behind the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNet {
    addr: IpAddr,
    prefix: u8,
}

impl IpNet {
    /// A network of `prefix` bits.
    ///
    /// # Errors
    /// The prefix is longer than the address, or bits are set behind it.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Self, NetworkError> {
        let (bits, network): (u8, IpAddr) = match addr {
            IpAddr::V4(a) => (32, IpAddr::V4((a.to_bits() & mask4(prefix)).into())),
            IpAddr::V6(a) => (128, IpAddr::V6((a.to_bits() & mask6(prefix)).into())),
        };
        if prefix > bits {
            return Err(NetworkError::Prefix { prefix, bits });
        }
        if network != addr {
            return Err(NetworkError::HostBits {
                addr,
                prefix,
                network,
            });
        }
        Ok(IpNet { addr, prefix })
    }

    /// The first address.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `addr` is inside. An IPv4 address is never in an IPv6 network, not even when mapped:
    /// the packet's own header decides its family.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(net), IpAddr::V4(a)) => a.to_bits() & mask4(self.prefix) == net.to_bits(),
            (IpAddr::V6(net), IpAddr::V6(a)) => a.to_bits() & mask6(self.prefix) == net.to_bits(),
            _ => false,
        }
    }
}

/// The netmask of a prefix, as the value of the four bytes in network order.
#[must_use]
pub(crate) fn mask4(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

/// The netmask of a prefix, as the value of the sixteen bytes in network order.
#[must_use]
pub(crate) fn mask6(prefix: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(prefix.min(128)))
        .unwrap_or(0)
}

impl FromStr for IpNet {
    type Err = NetworkError;

    /// `192.0.2.0/24`, `2001:db8::/32`, or an address alone, which is a network of one.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let syntax = || NetworkError::Syntax(text.to_owned());
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| syntax())?;
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            // `+8` and `008` parse as numbers, yet nobody writes them on purpose.
            Some(p) if p.is_empty() || p.len() > 3 || !p.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(syntax())
            }
            Some(p) => p.parse().map_err(|_| syntax())?,
        };
        IpNet::new(addr, prefix)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// One rule. A field that is `None` or empty matches everything; all others have to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What happens to the packets it takes.
    pub action: Action,
    /// Which way the packet goes, as the tapped interface sees it.
    pub direction: Option<Direction>,
    /// IP protocols. Packets that are not IP match no protocol.
    pub protocol: Option<Protocols>,
    /// Ports of either end. Packets without ports match no port.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Source ports.
    pub source_ports: Vec<RangeInclusive<u16>>,
    /// Destination ports.
    pub destination_ports: Vec<RangeInclusive<u16>>,
    /// Networks of either end. Packets that are not IP match no network.
    pub networks: Vec<IpNet>,
    /// Networks of the source.
    pub source: Vec<IpNet>,
    /// Networks of the destination.
    pub destination: Vec<IpNet>,
    /// (value, mask): the packet's mark AND mask has to equal value.
    pub mark: Option<(u32, u32)>,
    /// How much of what it takes is copied. A rule that skips copies nothing, whatever stands here.
    pub slice: Slice,
}

impl Rule {
    /// A rule that takes every packet.
    #[must_use]
    pub fn any(action: Action) -> Self {
        Rule {
            action,
            direction: None,
            protocol: None,
            ports: Vec::new(),
            source_ports: Vec::new(),
            destination_ports: Vec::new(),
            networks: Vec::new(),
            source: Vec::new(),
            destination: Vec::new(),
            mark: None,
            slice: Slice::WHOLE,
        }
    }

    /// Whether the rule asks for ports at all.
    #[must_use]
    pub fn needs_ports(&self) -> bool {
        !(self.ports.is_empty()
            && self.source_ports.is_empty()
            && self.destination_ports.is_empty())
    }

    /// Whether the rule asks for addresses at all.
    #[must_use]
    pub fn needs_networks(&self) -> bool {
        !(self.networks.is_empty() && self.source.is_empty() && self.destination.is_empty())
    }
}

/// What it takes, in the words of the configuration.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        match self.direction {
            Some(Direction::In) => words.push("in".to_owned()),
            Some(Direction::Out) => words.push("out".to_owned()),
            None => {}
        }
        if let Some(protocols) = &self.protocol {
            let names = (0..=u8::MAX).filter(|number| protocols.contains(*number));
            let names = names.map(|number| match number {
                6 => "tcp".to_owned(),
                17 => "udp".to_owned(),
                1 => "icmp".to_owned(),
                58 => "icmpv6".to_owned(),
                _ => format!("protocol {number}"),
            });
            words.push(names.collect::<Vec<_>>().join("/"));
        }
        for (name, ranges) in [
            ("port", &self.ports),
            ("source port", &self.source_ports),
            ("destination port", &self.destination_ports),
        ] {
            if !ranges.is_empty() {
                let range = |range: &RangeInclusive<u16>| match range.start() == range.end() {
                    true => range.start().to_string(),
                    false => format!("{}-{}", range.start(), range.end()),
                };
                let list: Vec<_> = ranges.iter().map(range).collect();
                words.push(format!("{name} {}", list.join(",")));
            }
        }
        for (name, networks) in [
            ("net", &self.networks),
            ("from", &self.source),
            ("to", &self.destination),
        ] {
            if !networks.is_empty() {
                let list: Vec<_> = networks.iter().map(IpNet::to_string).collect();
                words.push(format!("{name} {}", list.join(",")));
            }
        }
        if let Some((value, mask)) = self.mark {
            words.push(format!("mark {value:#x}/{mask:#x}"));
        }
        if words.is_empty() {
            words.push("everything".to_owned());
        }
        f.write_str(&words.join(" "))
    }
}

/// The ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The packet has none: not IP, or a protocol without ports.
    None,
    /// A later fragment whose first one is unknown: it has ports, but nobody can tell them.
    Unknown,
    /// Source and destination port.
    Known(u16, u16),
}

/// All of a packet that rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketFacts {
    /// Which way it goes.
    pub direction: Direction,
    /// IP protocol, `None` when the packet is not IP.
    pub protocol: Option<u8>,
    /// Source address, `None` when the packet is not IP.
    pub source: Option<IpAddr>,
    /// Destination address, `None` when the packet is not IP.
    pub destination: Option<IpAddr>,
    /// Ports.
    pub ports: Ports,
    /// The mark of the packet, or the one learned for its flow.
    pub mark: u32,
}

impl PacketFacts {
    /// Of a frame that starts with its Ethernet header; a mark that was learned is the caller's to give.
    #[must_use]
    pub fn of_frame(frame: &[u8], direction: Direction, mark: u32) -> PacketFacts {
        let ip = Headers::parse(frame).and_then(|headers| headers.ip);
        PacketFacts {
            direction,
            protocol: ip.map(|ip| ip.protocol),
            source: ip.map(|ip| ip.source),
            destination: ip.map(|ip| ip.destination),
            ports: match ip.map(|ip| ip.ports) {
                None | Some(headers::Ports::None) => Ports::None,
                Some(headers::Ports::Unknown) => Ports::Unknown,
                Some(headers::Ports::Known(source, destination)) => {
                    Ports::Known(source, destination)
                }
            },
            mark,
        }
    }
}

/// What the rules say about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The rule that took the packet, `None` for the default action.
    pub rule: Option<u8>,
    /// What happens to it.
    pub action: Action,
    /// The packet is copied although its unknown ports might have made an earlier rule, or this
    /// one, decide otherwise. Counted, because it can be a packet nobody asked for.
    pub unknown_ports_copied: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_in_words() {
        let rule = Rule {
            direction: Some(Direction::Out),
            protocol: Some(Protocols::one(6)),
            ports: vec![443..=443, 8000..=8100],
            destination: vec!["198.51.100.0/24".parse().unwrap()],
            mark: Some((1, 0xff)),
            ..Rule::any(Action::Mirror)
        };
        assert_eq!(
            rule.to_string(),
            "out tcp port 443,8000-8100 to 198.51.100.0/24 mark 0x1/0xff"
        );
        assert_eq!(Rule::any(Action::Skip).to_string(), "everything");
        let icmp = Rule {
            protocol: Some(Protocols::icmp()),
            ..Rule::any(Action::Mirror)
        };
        assert_eq!(icmp.to_string(), "icmp/icmpv6");
    }

    #[test]
    fn networks_parse_and_contain() {
        let net: IpNet = "198.51.100.0/24".parse().unwrap();
        assert!(net.contains("198.51.100.255".parse().unwrap()));
        assert!(!net.contains("198.51.101.0".parse().unwrap()));
        assert!(!net.contains("::ffff:198.51.100.1".parse().unwrap()));
        let one: IpNet = "2001:db8::1".parse().unwrap();
        assert_eq!(one.prefix(), 128);
        assert!(one.contains("2001:db8::1".parse().unwrap()));
        assert!(!one.contains("2001:db8::2".parse().unwrap()));
        let all: IpNet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(!all.contains("::".parse().unwrap()));
        assert_eq!(net.to_string(), "198.51.100.0/24");
    }

    #[test]
    fn bad_networks_are_refused() {
        let error = "198.51.100.7/24".parse::<IpNet>().unwrap_err();
        assert!(error.to_string().contains("198.51.100.0/24"), "{error}");
        assert!(matches!(
            "2001:db8::1/32".parse::<IpNet>(),
            Err(NetworkError::HostBits { .. })
        ));
        assert!(matches!(
            "198.51.100.0/33".parse::<IpNet>(),
            Err(NetworkError::Prefix { bits: 32, .. })
        ));
        for text in [
            "",
            "/",
            "a/8",
            "198.51.100.0/",
            "1.2.3/8",
            "0.0.0.0/+0",
            "::/0000",
            "::/999",
        ] {
            assert!(
                matches!(
                    text.parse::<IpNet>(),
                    Err(NetworkError::Syntax(_) | NetworkError::Prefix { .. })
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn icmp_is_both_families() {
        let icmp = Protocols::icmp();
        assert!(icmp.contains(1) && icmp.contains(58) && !icmp.contains(6));
        assert!(!icmp.have_ports());
        assert!(Protocols::one(132).have_ports());
        assert!(Protocols::one(255).contains(255));
    }
}
