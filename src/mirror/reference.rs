//! The rules read the slow, obvious way: one after the other, field by field.
//!
//! The oracle that the tables and the kernel programs are tested against. Nothing on the data path
//! calls it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::rules::{Action, IpNet, PacketFacts, Ports, Rule, Verdict};
use crate::packet::flow;

/// What `rules` say about a packet; `default` applies where no rule takes it.
#[must_use]
pub fn verdict(rules: &[Rule], default: Action, packet: &PacketFacts) -> Verdict {
    if packet.ports == Ports::Unknown {
        return verdict_unknown_ports(rules, default, packet);
    }
    for (number, rule) in rules.iter().enumerate() {
        if matches_without_ports(rule, packet) && matches_ports(rule, packet.ports) {
            return Verdict {
                rule: Some(number as u8),
                action: rule.action,
                unknown_ports_copied: false,
            };
        }
    }
    Verdict {
        rule: None,
        action: default,
        unknown_ports_copied: false,
    }
}

/// Whether the rule that took a packet leaves its flow out. A fragment goes the way of its flow as soon as its
/// ports are known; one whose ports nobody knows is kept. `mac_hash`: the flow hash of the frame, for what is
/// not IP.
#[must_use]
pub fn sampled_out(rule: &Rule, packet: &PacketFacts, mac_hash: u32) -> bool {
    let Some(sample) = rule.slice.sample else {
        return false;
    };
    let (from, to) = match packet.ports {
        Ports::Unknown => return false,
        Ports::None => (0, 0),
        Ports::Known(from, to) => (from, to),
    };
    let hash = match (packet.source, packet.destination, packet.protocol) {
        (Some(source), Some(destination), Some(protocol)) => flow::combine(
            flow::ip_endpoint(source, from),
            flow::ip_endpoint(destination, to),
            u32::from(protocol),
        ),
        _ => mac_hash,
    };
    !sample.keeps(hash)
}

/// A packet that has ports which nobody knows: any rule that asks for ports might be the one that
/// takes it, up to the first rule that takes it for certain. A copy too many is better than a
/// datagram with a hole, so one rule that would mirror is enough.
fn verdict_unknown_ports(rules: &[Rule], default: Action, packet: &PacketFacts) -> Verdict {
    let mut uncertain = false;
    let mut would_mirror = None;
    let mut decided = None;
    for (number, rule) in rules.iter().enumerate() {
        if !matches_without_ports(rule, packet) {
            continue;
        }
        if rule.action == Action::Mirror && would_mirror.is_none() {
            would_mirror = Some(number as u8);
        }
        if rule.needs_ports() {
            uncertain = true;
        } else {
            decided = Some((number as u8, rule.action));
            break;
        }
    }
    let (rule, action) = match (would_mirror, decided) {
        (Some(number), _) => (Some(number), Action::Mirror),
        (None, Some((number, action))) => (Some(number), action),
        (None, None) => (None, default),
    };
    Verdict {
        rule,
        action,
        unknown_ports_copied: uncertain && action == Action::Mirror,
    }
}

fn matches_without_ports(rule: &Rule, packet: &PacketFacts) -> bool {
    if rule.direction.is_some_and(|d| d != packet.direction) {
        return false;
    }
    if let Some(set) = &rule.protocol {
        if !packet.protocol.is_some_and(|p| set.contains(p)) {
            return false;
        }
    }
    if let Some((value, mask)) = rule.mark {
        if packet.mark & mask != value {
            return false;
        }
    }
    let source = inside(&rule.source, packet.source);
    let destination = inside(&rule.destination, packet.destination);
    let either =
        inside(&rule.networks, packet.source) || inside(&rule.networks, packet.destination);
    source && destination && either
}

fn inside(networks: &[IpNet], addr: Option<IpAddr>) -> bool {
    networks.is_empty() || addr.is_some_and(|a| networks.iter().any(|n| n.contains(a)))
}

fn matches_ports(rule: &Rule, ports: Ports) -> bool {
    let (source, destination) = match ports {
        Ports::Known(source, destination) => (Some(source), Some(destination)),
        Ports::None | Ports::Unknown => (None, None),
    };
    among(&rule.source_ports, source)
        && among(&rule.destination_ports, destination)
        && (among(&rule.ports, source) || among(&rule.ports, destination))
}

fn among(ranges: &[RangeInclusive<u16>], port: Option<u16>) -> bool {
    ranges.is_empty() || port.is_some_and(|p| ranges.iter().any(|r| r.contains(&p)))
}
