//! `[[rule]]`.

use std::ops::RangeInclusive;

use super::{Check, ACTIONS};
use crate::config::error::{ConfigError, Site};
use crate::config::file::{At, RuleTable, Value};
use crate::config::values::{cutoff, mark, ports, protocol, sample, snaplen, Wrong};
use crate::mirror::rules::{Action, IpNet, NetworkError, Rule};
use crate::mirror::slice::Slice;
use crate::packet::Direction;

const DIRECTIONS: [(&str, Option<Direction>); 5] = [
    ("both", None),
    ("in", Some(Direction::In)),
    ("out", Some(Direction::Out)),
    ("ingress", Some(Direction::In)),
    ("egress", Some(Direction::Out)),
];

impl Check<'_> {
    pub(super) fn rule(&self, at: &At<RuleTable>) -> Result<Rule, ConfigError> {
        let table = &at.value;
        let Some(action) = &table.action else {
            return Err(self.missing(&at.site, "rule.action", "mirror, skip"));
        };
        let action = self.word(action, "rule.action", &ACTIONS)?;
        let direction = match &table.direction {
            Some(at) => self.word(at, "rule.direction", &DIRECTIONS)?,
            None => None,
        };
        let protocol = match &table.protocol {
            Some(at) => Some(self.value(at, "rule.protocol", protocol)?),
            None => None,
        };
        let mark = match &table.mark {
            Some(at) => Some(self.value(at, "rule.mark", mark)?),
            None => None,
        };
        let slice = self.slice(table, action)?;
        let rule = Rule {
            action,
            direction,
            protocol,
            ports: self.ports(&table.ports, "rule.ports")?,
            source_ports: self.ports(&table.source_ports, "rule.source_ports")?,
            destination_ports: self.ports(&table.destination_ports, "rule.destination_ports")?,
            networks: self.networks(&table.networks, "rule.networks")?,
            source: self.networks(&table.source, "rule.source")?,
            destination: self.networks(&table.destination, "rule.destination")?,
            mark,
            slice,
        };
        if rule.needs_ports() && protocol.is_some_and(|set| !set.have_ports()) {
            let (site, key) = ports_site(table).unwrap_or((&at.site, "rule"));
            let name = table.protocol.as_ref().map(|at| at.value.to_string());
            let wrong = format!("{} has no ports", name.unwrap_or_default());
            let allowed = "no ports, or a protocol that has them: tcp, udp, sctp, 33 (DCCP), \
                           136 (UDP-Lite)";
            return Err(self.fault(site, key, Wrong::new(wrong, allowed)));
        }
        Ok(rule)
    }

    /// How much of what it takes the rule copies.
    fn slice(&self, table: &RuleTable, action: Action) -> Result<Slice, ConfigError> {
        let mut slice = Slice::WHOLE;
        if let Some(at) = &table.snaplen {
            slice.snaplen = self.value(at, "rule.snaplen", snaplen)?;
        }
        if let Some(at) = &table.sample {
            slice.sample = Some(self.value(at, "rule.sample", |text: &str| sample(text))?);
        }
        if let Some(at) = &table.cutoff {
            slice.cutoff = Some(self.value(at, "rule.cutoff", cutoff)?);
        }
        let found = [
            ("rule.snaplen", table.snaplen.as_ref().map(|at| &at.site)),
            ("rule.sample", table.sample.as_ref().map(|at| &at.site)),
            ("rule.cutoff", table.cutoff.as_ref().map(|at| &at.site)),
        ]
        .into_iter()
        .find_map(|(key, site)| Some((key, site?)));
        if let (Action::Skip, false, Some((key, site))) = (action, slice.is_whole(), found) {
            let wrong = Wrong::new(
                "a rule that skips copies nothing",
                "snaplen, sample and cutoff in rules with action = \"mirror\"",
            );
            return Err(self.fault(site, key, wrong));
        }
        Ok(slice)
    }

    fn ports(
        &self,
        list: &Option<At<Vec<At<Value>>>>,
        key: &str,
    ) -> Result<Vec<RangeInclusive<u16>>, ConfigError> {
        self.list(list, key, |at| self.value(at, key, ports))
    }

    fn networks(
        &self,
        list: &Option<At<Vec<At<String>>>>,
        key: &str,
    ) -> Result<Vec<IpNet>, ConfigError> {
        self.list(list, key, |at| {
            self.value(at, key, |text: &str| {
                text.parse().map_err(|error: NetworkError| {
                    let allowed = match &error {
                        NetworkError::HostBits {
                            addr,
                            network,
                            prefix,
                        } => format!("\"{network}/{prefix}\" or \"{addr}\""),
                        NetworkError::Prefix { bits, .. } => format!("a prefix of 0 to {bits}"),
                        NetworkError::Syntax(_) => {
                            "an address or a network, like \"198.51.100.0/24\" or \
                             \"2001:db8::/32\""
                                .to_owned()
                        }
                    };
                    let wrong = match error {
                        // The network is in `allowed` already.
                        NetworkError::HostBits { addr, prefix, .. } => {
                            format!("{addr}/{prefix} has bits set behind the prefix")
                        }
                        other => other.to_string(),
                    };
                    Wrong::new(wrong, allowed)
                })
            })
        })
    }

    fn list<T, U>(
        &self,
        list: &Option<At<Vec<At<T>>>>,
        key: &str,
        read: impl Fn(&At<T>) -> Result<U, ConfigError>,
    ) -> Result<Vec<U>, ConfigError> {
        let Some(list) = list else {
            return Ok(Vec::new());
        };
        if list.value.is_empty() {
            let wrong = Wrong::new(
                "the list is empty",
                "values; leave the key out to match any",
            );
            return Err(self.fault(&list.site, key, wrong));
        }
        list.value.iter().map(read).collect()
    }
}

/// Where the first list of ports stands, and its key.
fn ports_site(table: &RuleTable) -> Option<(&Site, &'static str)> {
    [
        (&table.ports, "rule.ports"),
        (&table.source_ports, "rule.source_ports"),
        (&table.destination_ports, "rule.destination_ports"),
    ]
    .into_iter()
    .find_map(|(list, key)| Some((&list.as_ref()?.site, key)))
}
