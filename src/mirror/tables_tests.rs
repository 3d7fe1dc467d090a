//! The tables against the reference matcher, on many random rule sets.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::reference;
use super::super::rules::Protocols;
use super::*;

// Rules and packets draw from the same few values, so that matches are common and rules overlap.
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
const PREFIXES: [u8; 9] = [0, 1, 8, 23, 24, 25, 31, 32, 64];
const MARKS: [u32; 8] = [
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
const PROTOCOLS: [u8; 7] = [1, 6, 17, 47, 58, 132, 255];

fn range() -> impl Strategy<Value = RangeInclusive<u16>> {
    let any_port = || prop_oneof![9 => select(&PORTS[..]), 1 => any::<u16>()];
    (any_port(), any_port()).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn ranges() -> impl Strategy<Value = Vec<RangeInclusive<u16>>> {
    prop_oneof![3 => Just(Vec::new()), 2 => vec(range(), 1..4)]
}

fn network() -> impl Strategy<Value = IpNet> {
    let four = (select(&ADDRESSES4[..]), select(&PREFIXES[..])).prop_map(|(addr, prefix)| {
        let prefix = prefix.min(32);
        IpNet::new(IpAddr::V4((addr & mask4(prefix)).into()), prefix)
    });
    let six = (select(&ADDRESSES6[..]), select(&PREFIXES[..])).prop_map(|(addr, prefix)| {
        let prefix = if prefix == 31 { 128 } else { prefix };
        IpNet::new(IpAddr::V6((addr & mask6(prefix)).into()), prefix)
    });
    prop_oneof![2 => four, 1 => six].prop_map(|net| net.expect("host bits are masked"))
}

fn networks() -> impl Strategy<Value = Vec<IpNet>> {
    prop_oneof![4 => Just(Vec::new()), 2 => vec(network(), 1..4)]
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::In), Just(Direction::Out)]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Mirror), Just(Action::Skip)]
}

fn protocols() -> impl Strategy<Value = Protocols> {
    prop_oneof![
        3 => select(&PROTOCOLS[..]).prop_map(Protocols::one),
        1 => Just(Protocols::icmp()),
        1 => vec(any::<u8>(), 0..5).prop_map(|numbers| numbers.into_iter().collect()),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let mark = (select(&MARKS[..]), select(&MASKS[..]), any::<bool>()).prop_map(
        // Now and then a value with bits outside of the mask, which no mark can equal.
        |(value, mask, outside)| (if outside { value } else { value & mask }, mask),
    );
    (
        (action(), option::weighted(0.3, direction())),
        option::weighted(0.4, protocols()),
        (ranges(), ranges(), ranges()),
        (networks(), networks(), networks()),
        option::weighted(0.2, mark),
    )
        .prop_map(|((action, direction), protocol, ports, nets, mark)| Rule {
            action,
            direction,
            protocol,
            ports: ports.0,
            source_ports: ports.1,
            destination_ports: ports.2,
            networks: nets.0,
            source: nets.1,
            destination: nets.2,
            mark,
            slice: Slice::WHOLE,
        })
}

fn packet() -> impl Strategy<Value = PacketFacts> {
    let port = || prop_oneof![9 => select(&PORTS[..]), 1 => any::<u16>()];
    let ports = prop_oneof![
        1 => Just(Ports::None),
        1 => Just(Ports::Unknown),
        4 => (port(), port()).prop_map(|(a, b)| Ports::Known(a, b)),
    ];
    let four = || {
        prop_oneof![9 => select(&ADDRESSES4[..]), 1 => any::<u32>()]
            .prop_map(|a| IpAddr::V4(Ipv4Addr::from_bits(a)))
    };
    let six = || {
        prop_oneof![9 => select(&ADDRESSES6[..]), 1 => any::<u128>()]
            .prop_map(|a| IpAddr::V6(Ipv6Addr::from_bits(a)))
    };
    let addresses = prop_oneof![
        1 => Just(None),
        5 => (four(), four()).prop_map(Some),
        3 => (six(), six()).prop_map(Some),
    ];
    let protocol = prop_oneof![9 => select(&PROTOCOLS[..]), 1 => any::<u8>()];
    let mark = prop_oneof![9 => select(&MARKS[..]), 1 => any::<u32>()];
    (direction(), protocol, addresses, ports, mark).prop_map(
        |(direction, protocol, addresses, ports, mark)| PacketFacts {
            direction,
            protocol: addresses.map(|_| protocol),
            source: addresses.map(|(source, _)| source),
            destination: addresses.map(|(_, destination)| destination),
            // A packet that is not IP has no ports.
            ports: if addresses.is_some() {
                ports
            } else {
                Ports::None
            },
            mark,
        },
    )
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    prop_oneof![30 => vec(rule(), 0..6), 6 => vec(rule(), 6..20), 1 => vec(rule(), MAX_RULES)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12_000, ..ProptestConfig::default() })]

    #[test]
    fn tables_agree_with_the_reference(
        rules in rules(),
        default in option::of(action()),
        packets in vec(packet(), 8),
    ) {
        let tables = compile_with_default(&rules, default).unwrap();
        let default = default.unwrap_or(if rules.is_empty() { Action::Mirror } else { Action::Skip });
        for packet in &packets {
            prop_assert_eq!(
                tables.lookup(packet),
                reference::verdict(&rules, default, packet),
                "{:?}",
                packet
            );
        }
    }
}

/// The test above proves nothing if the generators seldom let a rule match.
#[test]
fn generators_make_every_kind_of_verdict() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let (mut by_rule, mut by_later_rule, mut by_default, mut guessed) = (0, 0, 0, 0);
    for _ in 0..500 {
        let rules = rules().new_tree(&mut runner).unwrap().current();
        let tables = compile(&rules).unwrap();
        for _ in 0..8 {
            let packet = packet().new_tree(&mut runner).unwrap().current();
            let verdict = tables.lookup(&packet);
            match verdict.rule {
                None => by_default += 1,
                Some(0) => by_rule += 1,
                Some(_) => by_later_rule += 1,
            }
            guessed += usize::from(verdict.unknown_ports_copied);
        }
    }
    for (kind, count) in [
        ("first rule", by_rule),
        ("later rule", by_later_rule),
        ("default", by_default),
        ("unknown ports", guessed),
    ] {
        assert!(count > 50, "{kind}: {count} of 4000 packets");
    }
}

fn tcp(source: &str, from: u16, destination: &str, to: u16) -> PacketFacts {
    PacketFacts {
        direction: Direction::In,
        protocol: Some(6),
        source: Some(source.parse().unwrap()),
        destination: Some(destination.parse().unwrap()),
        ports: Ports::Known(from, to),
        mark: 0,
    }
}

#[test]
fn no_rules_mirror_everything_and_rules_skip_the_rest() {
    let packet = tcp("198.51.100.1", 40000, "198.51.100.2", 443);
    let everything = compile(&[]).unwrap();
    assert_eq!(everything.lookup(&packet).action, Action::Mirror);
    assert_eq!(everything.lookup(&packet).rule, None);
    let mut rule = Rule::any(Action::Mirror);
    rule.ports = vec![80..=80];
    let tables = compile(&[rule]).unwrap();
    assert_eq!(tables.lookup(&packet).action, Action::Skip);
}

#[test]
fn a_later_fragment_is_copied_when_a_rule_before_the_certain_one_mirrors() {
    let mut https = Rule::any(Action::Mirror);
    https.ports = vec![443..=443];
    let rules = [https.clone(), Rule::any(Action::Skip)];
    let mut packet = tcp("198.51.100.1", 0, "198.51.100.2", 0);
    packet.ports = Ports::Unknown;
    let verdict = compile(&rules).unwrap().lookup(&packet);
    assert_eq!(verdict.action, Action::Mirror);
    assert_eq!(verdict.rule, Some(0));
    assert!(verdict.unknown_ports_copied);
    // Behind the rule that is certain, nothing counts.
    let rules = [Rule::any(Action::Skip), https];
    let verdict = compile(&rules).unwrap().lookup(&packet);
    assert_eq!((verdict.rule, verdict.action), (Some(0), Action::Skip));
    assert!(!verdict.unknown_ports_copied);
}

#[test]
fn limits_are_told() {
    let rules = vec![Rule::any(Action::Skip); MAX_RULES + 1];
    let error = compile(&rules).unwrap_err();
    assert!(error.to_string().contains("65 rules"), "{error}");
    assert!(compile(&rules[1..]).is_ok());

    // 13 rules on the bits of the port number make all 2^13 combinations.
    let bits: Vec<Rule> = (0..13)
        .map(|bit| {
            let mut rule = Rule::any(Action::Mirror);
            let ports = (0..8192u16).filter(|port| port & (1 << bit) != 0);
            rule.ports = ports.map(|port| port..=port).collect();
            rule
        })
        .collect();
    let error = compile(&bits).unwrap_err();
    assert_eq!(error, CompileError::TooManyPortClasses { count: 8192 });
    assert!(compile(&bits[..12]).is_ok());

    let mut rule = Rule::any(Action::Mirror);
    rule.source = (0..=MAX_NETWORKS as u32)
        .map(|n| IpNet::new(IpAddr::V4(n.into()), 32).unwrap())
        .collect();
    let error = compile(&[rule]).unwrap_err();
    assert!(error.to_string().contains("IPv4"), "{error}");
}
