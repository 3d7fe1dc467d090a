//! Rules compiled into tables of bits, so that a packet costs one look-up a field, whatever the
//! number of rules: bit *n* of every word belongs to rule *n*, the words are ANDed, and the lowest
//! bit that is left is the first rule that matches.
//!
//! Pure. `bpf` writes the tables into maps and the kernel programs do what [`Tables::lookup`] does;
//! that function is the model they are tested against.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use thiserror::Error;

use super::rules::{mask4, mask6, Action, IpNet, PacketFacts, Ports, Rule, Verdict, MAX_RULES};
use super::slice::Slice;
use crate::packet::Direction;

/// Index of packets that are not IP in [`Tables::protocol`].
pub const PROTOCOL_NOT_IP: usize = 256;
/// Index of packets without ports in [`Tables::port_class_of`].
pub const NO_PORT: usize = 65536;
/// Size of the map of port classes.
pub const MAX_PORT_CLASSES: usize = 4096;
/// Size of each map of networks, one for IPv4 and one for IPv6.
pub const MAX_NETWORKS: usize = 16384;

/// Why rules cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CompileError {
    /// More rules than bits.
    #[error("{count} rules; at most {MAX_RULES} are possible")]
    TooManyRules {
        /// Rules given.
        count: usize,
    },
    /// The ports of the rules divide the port numbers into more classes than the map holds.
    #[error(
        "the ports of the rules make {count} different classes; at most {MAX_PORT_CLASSES} are \
         possible: use fewer or wider port ranges"
    )]
    TooManyPortClasses {
        /// Distinct classes.
        count: usize,
    },
    /// More different networks of one family than the map holds.
    #[error("{count} different {family} networks; at most {MAX_NETWORKS} are possible")]
    TooManyNetworks {
        /// "IPv4" or "IPv6".
        family: &'static str,
        /// Distinct networks.
        count: usize,
    },
}

/// The rules that a port satisfies, in each of its roles. A rule that does not ask for ports in a
/// role has its bit set there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortBits {
    /// As the source port.
    pub source: u64,
    /// As the destination port.
    pub destination: u64,
    /// As the port of one end.
    pub either: u64,
}

/// The rules that an address satisfies, in each of its roles. A rule that does not ask for networks
/// in a role has its bit set there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NetBits {
    /// As the source address.
    pub source: u64,
    /// As the destination address.
    pub destination: u64,
    /// As the address of one end.
    pub either: u64,
}

/// A compiled rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// A bit for each rule.
    pub all: u64,
    /// The rules whose action is mirror.
    pub mirror: u64,
    /// The rules that ask for ports.
    pub needs_ports: u64,
    /// The rules that ask for networks.
    pub needs_networks: u64,
    /// The rules that ask for a mark.
    pub needs_mark: u64,
    /// The rules that copy less than all they take.
    pub sliced: u64,
    /// How much each rule copies, by its number.
    pub slices: [Slice; MAX_RULES],
    /// What happens to packets that no rule takes.
    pub default_mirror: bool,
    /// By [`Direction`] as a number.
    pub direction: [u64; 2],
    /// By IP protocol; [`PROTOCOL_NOT_IP`] for packets that are not IP.
    pub protocol: [u64; PROTOCOL_NOT_IP + 1],
    /// The class of each port, host order; [`NO_PORT`] for packets without. 65537 entries.
    pub port_class_of: Vec<u16>,
    /// The classes, at most [`MAX_PORT_CLASSES`].
    pub port_classes: Vec<PortBits>,
    /// By the value of each byte of the mark, least significant byte first.
    pub mark: Box<[[u64; 256]; 4]>,
    /// (network, prefix length, rules): the network is the value of the address bytes in network
    /// order, host bits zero. Each value includes what all less specific networks give, so that
    /// the longest match alone is enough. Sorted, no duplicates.
    pub networks4: Vec<(u32, u8, NetBits)>,
    /// The same for IPv6.
    pub networks6: Vec<(u128, u8, NetBits)>,
    /// For packets that are not IP, and for addresses in none of the networks.
    pub no_network: NetBits,
}

/// Compiles rules. Packets that no rule takes are mirrored when there are no rules, else skipped.
///
/// # Errors
/// More rules, port classes or networks than the maps hold.
pub fn compile(rules: &[Rule]) -> Result<Tables, CompileError> {
    compile_with_default(rules, None)
}

/// Compiles rules; `default` is the action for packets that no rule takes, `None` as in [`compile`].
///
/// # Errors
/// More rules, port classes or networks than the maps hold.
pub fn compile_with_default(
    rules: &[Rule],
    default: Option<Action>,
) -> Result<Tables, CompileError> {
    if rules.len() > MAX_RULES {
        return Err(CompileError::TooManyRules { count: rules.len() });
    }
    let bits = |wanted: &dyn Fn(&Rule) -> bool| -> u64 {
        let each = rules.iter().enumerate().filter(|(_, r)| wanted(r));
        each.fold(0, |word, (n, _)| word | 1 << n)
    };
    let default = default.unwrap_or(if rules.is_empty() {
        Action::Mirror
    } else {
        Action::Skip
    });

    let mut protocol = [bits(&|r| r.protocol.is_none()); PROTOCOL_NOT_IP + 1];
    let mut mark = Box::new([[bits(&|r| r.mark.is_none()); 256]; 4]);
    for (number, rule) in rules.iter().enumerate() {
        let bit = 1u64 << number;
        if let Some(set) = rule.protocol {
            for number in (0..=255u8).filter(|&number| set.contains(number)) {
                protocol[usize::from(number)] |= bit;
            }
        }
        if let Some((wanted, mask)) = rule.mark {
            let bytes = wanted.to_le_bytes().into_iter().zip(mask.to_le_bytes());
            for (table, (wanted, mask)) in mark.iter_mut().zip(bytes) {
                for value in (0..=255u8).filter(|&value| value & mask == wanted) {
                    table[usize::from(value)] |= bit;
                }
            }
        }
    }
    let (port_class_of, port_classes) = ports(rules)?;

    let no_network = NetBits {
        source: bits(&|r| r.source.is_empty()),
        destination: bits(&|r| r.destination.is_empty()),
        either: bits(&|r| r.networks.is_empty()),
    };
    let (networks4, networks6) = networks(rules, no_network)?;

    let mut slices = [Slice::WHOLE; MAX_RULES];
    for (slice, rule) in slices.iter_mut().zip(rules) {
        *slice = rule.slice;
    }

    Ok(Tables {
        all: bits(&|_| true),
        mirror: bits(&|r| r.action == Action::Mirror),
        needs_ports: bits(&Rule::needs_ports),
        needs_networks: bits(&Rule::needs_networks),
        needs_mark: bits(&|r| r.mark.is_some()),
        sliced: bits(&|r| r.action == Action::Mirror && !r.slice.is_whole()),
        slices,
        default_mirror: default == Action::Mirror,
        direction: [Direction::In, Direction::Out]
            .map(|d| bits(&|r| r.direction.is_none_or(|wanted| wanted == d))),
        protocol,
        port_class_of,
        port_classes,
        mark,
        networks4,
        networks6,
        no_network,
    })
}

/// The class of every port, and the classes.
///
/// The ends of all ranges cut the port numbers into intervals within which every port is alike;
/// intervals with the same bits share a class.
fn ports(rules: &[Rule]) -> Result<(Vec<u16>, Vec<PortBits>), CompileError> {
    let mut cuts = BTreeSet::from([0u32]);
    let lists = |r: &'_ Rule| -> [Vec<RangeInclusive<u16>>; 3] {
        [&r.source_ports, &r.destination_ports, &r.ports].map(|ranges| merged(ranges))
    };
    let all: Vec<_> = rules.iter().map(lists).collect();
    for range in all.iter().flatten().flatten() {
        cuts.insert(u32::from(*range.start()));
        cuts.insert(u32::from(*range.end()) + 1);
    }
    let starts: Vec<u32> = cuts.into_iter().filter(|&cut| cut <= 65535).collect();

    let mut no_port = PortBits::default();
    let mut intervals = vec![PortBits::default(); starts.len()];
    for (number, lists) in all.iter().enumerate() {
        let bit = 1u64 << number;
        for (role, ranges) in lists.iter().enumerate() {
            let set = |bits: &mut PortBits| match role {
                0 => bits.source |= bit,
                1 => bits.destination |= bit,
                _ => bits.either |= bit,
            };
            if ranges.is_empty() {
                intervals.iter_mut().for_each(set);
                set(&mut no_port);
            }
            for range in ranges {
                let first = starts.partition_point(|&s| s < u32::from(*range.start()));
                let after = starts.partition_point(|&s| s <= u32::from(*range.end()));
                intervals[first..after].iter_mut().for_each(set);
            }
        }
    }

    let mut classes: Vec<PortBits> = Vec::new();
    let mut class_by_bits: HashMap<PortBits, usize> = HashMap::new();
    let mut class_of = |bits: PortBits| {
        *class_by_bits.entry(bits).or_insert_with(|| {
            classes.push(bits);
            classes.len() - 1
        })
    };
    let of_interval: Vec<usize> = intervals.iter().map(|&bits| class_of(bits)).collect();
    let of_no_port = class_of(no_port);
    if classes.len() > MAX_PORT_CLASSES {
        return Err(CompileError::TooManyPortClasses {
            count: classes.len(),
        });
    }

    let mut port_class_of = vec![of_no_port as u16; NO_PORT + 1];
    for (index, &class) in of_interval.iter().enumerate() {
        let start = starts[index] as usize;
        let end = starts.get(index + 1).map_or(NO_PORT, |&s| s as usize);
        port_class_of[start..end].fill(class as u16);
    }
    Ok((port_class_of, classes))
}

/// Sorted ranges without overlaps, so that the work above is bounded by the number of ports and
/// not by how often a user repeats a range.
fn merged(ranges: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let mut sorted: Vec<_> = ranges.to_vec();
    sorted.sort_by_key(|r| *r.start());
    let mut out: Vec<RangeInclusive<u16>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match out.last_mut() {
            Some(last) if range.start() <= last.end() => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => out.push(range),
        }
    }
    out
}

type Networks4 = Vec<(u32, u8, NetBits)>;
type Networks6 = Vec<(u128, u8, NetBits)>;

fn networks(rules: &[Rule], base: NetBits) -> Result<(Networks4, Networks6), CompileError> {
    let mut bits4: HashMap<(u32, u8), NetBits> = HashMap::new();
    let mut bits6: HashMap<(u128, u8), NetBits> = HashMap::new();
    for (number, rule) in rules.iter().enumerate() {
        let mut each = |networks: &[IpNet], set: &dyn Fn(&mut NetBits)| {
            for network in networks {
                set(match network.addr() {
                    IpAddr::V4(a) => bits4.entry((a.to_bits(), network.prefix())).or_default(),
                    IpAddr::V6(a) => bits6.entry((a.to_bits(), network.prefix())).or_default(),
                });
            }
        };
        let bit = 1u64 << number;
        each(&rule.source, &|b| b.source |= bit);
        each(&rule.destination, &|b| b.destination |= bit);
        each(&rule.networks, &|b| b.either |= bit);
    }
    for (family, count) in [("IPv4", bits4.len()), ("IPv6", bits6.len())] {
        if count > MAX_NETWORKS {
            return Err(CompileError::TooManyNetworks { family, count });
        }
    }
    let networks4 = bits4.into_iter().map(|((a, p), b)| (a, p, b)).collect();
    let networks6 = bits6.into_iter().map(|((a, p), b)| (a, p, b)).collect();
    Ok((
        inherit(networks4, base, |net, prefix, addr| {
            addr & mask4(prefix) == net
        }),
        inherit(networks6, base, |net, prefix, addr| {
            addr & mask6(prefix) == net
        }),
    ))
}

/// Gives each network the bits of all that contain it. Sorted by address, then prefix, a network
/// stands behind those that contain it, so the ones still open form a stack.
fn inherit<A: Ord + Copy>(
    mut networks: Vec<(A, u8, NetBits)>,
    base: NetBits,
    contains: impl Fn(A, u8, A) -> bool,
) -> Vec<(A, u8, NetBits)> {
    networks.sort_by_key(|&(addr, prefix, _)| (addr, prefix));
    let mut open: Vec<(A, u8, NetBits)> = Vec::new();
    for (addr, prefix, bits) in &mut networks {
        while open
            .last()
            .is_some_and(|&(net, p, _)| !contains(net, p, *addr))
        {
            open.pop();
        }
        let outer = open.last().map_or(base, |&(_, _, bits)| bits);
        bits.source |= outer.source;
        bits.destination |= outer.destination;
        bits.either |= outer.either;
        open.push((*addr, *prefix, *bits));
    }
    networks
}

impl Tables {
    /// What the rules say about a packet: step by step what the kernel programs do.
    #[must_use]
    pub fn lookup(&self, packet: &PacketFacts) -> Verdict {
        let protocol = packet.protocol.map_or(PROTOCOL_NOT_IP, usize::from);
        let source = self.network(packet.source);
        let destination = self.network(packet.destination);
        let mark = packet.mark.to_le_bytes();
        let mut candidates = self.all
            & self.direction[packet.direction as usize]
            & self.protocol[protocol]
            & source.source
            & destination.destination
            & (source.either | destination.either)
            & self.mark[0][usize::from(mark[0])]
            & self.mark[1][usize::from(mark[1])]
            & self.mark[2][usize::from(mark[2])]
            & self.mark[3][usize::from(mark[3])];
        if packet.ports == Ports::Unknown {
            return self.verdict_unknown_ports(candidates);
        }
        let (from, to) = match packet.ports {
            Ports::Known(from, to) => (usize::from(from), usize::from(to)),
            Ports::None | Ports::Unknown => (NO_PORT, NO_PORT),
        };
        let (from, to) = (self.port(from), self.port(to));
        candidates &= from.source & to.destination & (from.either | to.either);
        self.first(candidates, false)
    }

    /// Candidates ignore the ports here. Rules up to the first that is certain may be the one; if
    /// any of them mirrors, the packet is copied.
    fn verdict_unknown_ports(&self, candidates: u64) -> Verdict {
        let certain = candidates & !self.needs_ports;
        // The lowest certain bit and all below it; all bits when there is none.
        let not_after = certain ^ certain.wrapping_sub(1);
        let possible = candidates & not_after;
        let uncertain = possible & self.needs_ports != 0;
        let mirroring = possible & self.mirror;
        self.first(if mirroring != 0 { mirroring } else { certain }, uncertain)
    }

    fn first(&self, candidates: u64, uncertain: bool) -> Verdict {
        let rule = (candidates != 0).then(|| candidates.trailing_zeros() as u8);
        let mirrored = rule.map_or(self.default_mirror, |n| self.mirror & (1 << n) != 0);
        Verdict {
            rule,
            action: if mirrored {
                Action::Mirror
            } else {
                Action::Skip
            },
            unknown_ports_copied: uncertain && mirrored,
        }
    }

    fn port(&self, index: usize) -> PortBits {
        self.port_classes[usize::from(self.port_class_of[index])]
    }

    /// The longest match, as the kernel's LPM trie finds it.
    fn network(&self, addr: Option<IpAddr>) -> NetBits {
        let longest = match addr {
            None => None,
            Some(IpAddr::V4(a)) => self
                .networks4
                .iter()
                .filter(|&&(net, prefix, _)| a.to_bits() & mask4(prefix) == net)
                .max_by_key(|&&(_, prefix, _)| prefix)
                .map(|&(_, _, bits)| bits),
            Some(IpAddr::V6(a)) => self
                .networks6
                .iter()
                .filter(|&&(net, prefix, _)| a.to_bits() & mask6(prefix) == net)
                .max_by_key(|&&(_, prefix, _)| prefix)
                .map(|&(_, _, bits)| bits),
        };
        longest.unwrap_or(self.no_network)
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
