//! Random rules and packets that draw from the same few values, so that rules match often and overlap.
//!
//! A packet comes with its facts as they were decided before a byte was written: no parser is trusted.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use xtee::mirror::rules::{Action, IpNet, Ports, Protocols, Rule, MAX_RULES, PROTOCOLS_WITH_PORTS};
use xtee::mirror::slice::Sample;
use xtee::packet::Direction;

use crate::packets::{self, Extension, V4};
use crate::random::Random;

const PORTS: [u16; 10] = [0, 1, 53, 443, 444, 8000, 8050, 8100, 65534, 65535];
const ADDRESSES4: [u32; 8] = [
    0,
    0xC633_6400,
    0xC633_6401,
    0xC633_6480,
    0xC633_6501,
    0xCB00_7101,
    0x8000_0000,
    0xFFFF_FFFF,
];
const ADDRESSES6: [u128; 6] = [
    0,
    0x2001_0db8_0000_0000_0000_0000_0000_0001,
    0x2001_0db8_0000_0000_0000_0000_0000_0002,
    0x2001_0db8_8000_0000_0000_0000_0000_0001,
    0x0000_0000_0000_0000_0000_ffff_c633_6401,
    u128::MAX,
];
const PREFIXES4: [u8; 8] = [0, 1, 8, 23, 24, 25, 31, 32];
const PREFIXES6: [u8; 8] = [0, 1, 16, 32, 33, 64, 127, 128];
pub const MARKS: [u32; 8] = [
    0,
    1,
    0x101,
    0xff,
    0x0100_0000,
    0x8000_0001,
    0x00ab_cd00,
    u32::MAX,
];
const MASKS: [u32; 6] = [0, 1, 0xff, 0xffff, 0xff00_00ff, u32::MAX];
const PROTOCOLS: [u8; 9] = [1, 6, 17, 33, 47, 58, 132, 136, 255];
/// Numbers that IPv6 has for its extension headers; never an upper layer there.
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

fn port(random: &mut Random) -> u16 {
    if random.chance(90) {
        *random.pick(&PORTS)
    } else {
        random.next() as u16
    }
}

fn ranges(random: &mut Random) -> Vec<RangeInclusive<u16>> {
    if random.chance(65) {
        return Vec::new();
    }
    let count = 1 + random.below(3);
    let range = |_| {
        let (a, b) = (port(random), port(random));
        a.min(b)..=a.max(b)
    };
    (0..count).map(range).collect()
}

fn network(random: &mut Random) -> IpNet {
    let net = if random.chance(65) {
        let prefix = *random.pick(&PREFIXES4);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let address = random.pick(&ADDRESSES4) & mask;
        IpNet::new(IpAddr::V4(Ipv4Addr::from_bits(address)), prefix)
    } else {
        let prefix = *random.pick(&PREFIXES6);
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        let address = random.pick(&ADDRESSES6) & mask;
        IpNet::new(IpAddr::V6(Ipv6Addr::from_bits(address)), prefix)
    };
    net.expect("host bits are cleared")
}

fn networks(random: &mut Random) -> Vec<IpNet> {
    if random.chance(72) {
        return Vec::new();
    }
    let count = 1 + random.below(3);
    (0..count).map(|_| network(random)).collect()
}

pub fn direction(random: &mut Random) -> Direction {
    *random.pick(&[Direction::In, Direction::Out])
}

fn action(random: &mut Random) -> Action {
    *random.pick(&[Action::Mirror, Action::Skip])
}

fn protocols(random: &mut Random) -> Protocols {
    match random.below(5) {
        0 => Protocols::icmp(),
        1 => (0..random.below(5)).map(|_| random.next() as u8).collect(),
        _ => Protocols::one(*random.pick(&PROTOCOLS)),
    }
}

fn rule(random: &mut Random) -> Rule {
    let mut rule = Rule::any(action(random));
    rule.direction = random.chance(30).then(|| direction(random));
    rule.protocol = random.chance(35).then(|| protocols(random));
    rule.ports = ranges(random);
    rule.source_ports = ranges(random);
    rule.destination_ports = ranges(random);
    rule.networks = networks(random);
    rule.source = networks(random);
    rule.destination = networks(random);
    if random.chance(20) {
        let (value, mask) = (*random.pick(&MARKS), *random.pick(&MASKS));
        // Now and then a value with bits outside of the mask, which no mark can equal.
        rule.mark = Some((
            if random.chance(90) {
                value & mask
            } else {
                value
            },
            mask,
        ));
    }
    if rule.action == Action::Mirror {
        if random.chance(30) {
            rule.slice.snaplen = *random.pick(&[64, 96, 128, 300]);
        }
        if random.chance(30) {
            rule.slice.sample = Sample::new(1, *random.pick(&[1, 2, 3, 16]));
        }
    }
    rule
}

/// A rule set, mostly short, now and then as long as can be.
pub fn rules(random: &mut Random) -> Vec<Rule> {
    let count = match random.below(40) {
        0 => MAX_RULES,
        1..8 => 6 + random.below(14),
        _ => random.below(6),
    };
    (0..count).map(|_| rule(random)).collect()
}

/// A default action, or what goes without saying.
pub fn default(random: &mut Random) -> Option<Action> {
    random.chance(50).then(|| action(random))
}

/// Which part of a datagram a packet is, and the datagram's identification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    First(u16),
    Later(u16),
}

/// A packet and what is true of it.
#[derive(Clone, Debug)]
pub struct Packet {
    pub frame: Vec<u8>,
    /// As in the packet: in a later IPv6 fragment the first header behind the fragment header.
    pub protocol: Option<u8>,
    pub addresses: Option<(IpAddr, IpAddr)>,
    pub ports: Ports,
    pub part: Part,
}

impl Packet {
    /// The facts of one that is not IP.
    fn other(frame: Vec<u8>) -> Packet {
        Packet {
            frame,
            protocol: None,
            addresses: None,
            ports: Ports::None,
            part: Part::Whole,
        }
    }
}

fn tags(random: &mut Random) -> Vec<(u16, u16)> {
    let count = random.below(12).saturating_sub(9);
    let tag = |_| {
        (
            *random.pick(&[0x8100, 0x88a8, 0x9100]),
            random.next() as u16,
        )
    };
    (0..count).map(tag).collect()
}

/// A packet; fragments have one of the `identifications`.
pub fn packet(random: &mut Random, identifications: &[u16]) -> Packet {
    let tags = tags(random);
    if random.chance(6) {
        let ethertype = *random.pick(&[0x0806, 0x88cc, 0x0026, 0x8847]);
        return Packet::other(packets::tagged(&tags, ethertype, &[0x45; 50]));
    }
    let part = match random.below(8) {
        0 => Part::First(*random.pick(identifications)),
        1 => Part::Later(*random.pick(identifications)),
        _ => Part::Whole,
    };
    let (from, to) = (port(random), port(random));
    let mut payload = [from.to_be_bytes(), to.to_be_bytes()].concat();
    payload.resize(8 * (1 + random.below(20)), 0x55);
    if random.chance(65) {
        packet4(random, &tags, part, (from, to), &payload)
    } else {
        packet6(random, &tags, part, (from, to), &payload)
    }
}

fn ports_of(protocol: u8, part: Part, (from, to): (u16, u16)) -> Ports {
    match (PROTOCOLS_WITH_PORTS.contains(&protocol), part) {
        (false, _) => Ports::None,
        (true, Part::Later(_)) => Ports::Unknown,
        (true, _) => Ports::Known(from, to),
    }
}

fn packet4(
    random: &mut Random,
    tags: &[(u16, u16)],
    part: Part,
    ports: (u16, u16),
    payload: &[u8],
) -> Packet {
    let address = |random: &mut Random| {
        if random.chance(90) {
            Ipv4Addr::from_bits(*random.pick(&ADDRESSES4))
        } else {
            Ipv4Addr::from_bits(random.next() as u32)
        }
    };
    let (source, destination) = (address(random), address(random));
    let protocol = if random.chance(90) {
        *random.pick(&PROTOCOLS)
    } else {
        random.next() as u8
    };
    let (identification, offset, more) = match part {
        Part::Whole => (random.next() as u16, 0, false),
        Part::First(identification) => (identification, 0, true),
        Part::Later(identification) => (
            identification,
            1 + random.below(100) as u16,
            random.chance(50),
        ),
    };
    let header = V4 {
        source,
        destination,
        protocol,
        identification,
        offset,
        more,
        options: if random.chance(10) {
            random.below(11) as u8
        } else {
            0
        },
    };
    Packet {
        frame: packets::tagged(tags, packets::IPV4, &header.packet(payload)),
        protocol: Some(protocol),
        addresses: Some((source.into(), destination.into())),
        ports: ports_of(protocol, part, ports),
        part,
    }
}

fn extension(random: &mut Random) -> Extension {
    match *random.pick(&EXTENSIONS) {
        51 => Extension::authentication(3 + random.below(4) as u8),
        // An atomic fragment.
        44 => Extension::fragment(random.next() as u32, 0, false),
        number => Extension::plain(number, random.below(3) as u8),
    }
}

fn packet6(
    random: &mut Random,
    tags: &[(u16, u16)],
    part: Part,
    ports: (u16, u16),
    payload: &[u8],
) -> Packet {
    let address = |random: &mut Random| Ipv6Addr::from_bits(*random.pick(&ADDRESSES6));
    let (source, destination) = (address(random), address(random));
    let mut protocol = if random.chance(90) {
        *random.pick(&PROTOCOLS)
    } else {
        random.next() as u8
    };
    if EXTENSIONS.contains(&protocol) {
        protocol = 17;
    }
    let count = random.below(8).saturating_sub(4);
    let mut extensions: Vec<_> = (0..count).map(|_| extension(random)).collect();
    let mut seen = protocol;
    match part {
        Part::Whole => {}
        Part::First(identification) => {
            extensions.push(Extension::fragment(identification.into(), 0, true));
            if random.chance(30) {
                extensions.push(Extension::plain(60, 1));
            }
        }
        Part::Later(identification) => {
            // The header of the first fragment may be an extension, and nobody can look behind it.
            seen = if random.chance(30) { 60 } else { protocol };
            let offset = 1 + random.below(100) as u16;
            extensions.push(Extension::fragment(
                identification.into(),
                offset,
                random.chance(50),
            ));
        }
    }
    let (source_text, destination_text) = (source.to_string(), destination.to_string());
    let bytes = packets::ipv6(&source_text, &destination_text, &extensions, seen, payload);
    Packet {
        frame: packets::tagged(tags, packets::IPV6, &bytes),
        protocol: Some(seen),
        addresses: Some((source.into(), destination.into())),
        ports: ports_of(seen, part, ports),
        part,
    }
}
