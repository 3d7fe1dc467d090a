//! `[[target]]`: the URL, its parameters, and the keys beside it.

use std::net::IpAddr;

use super::sink::is_sink;
use super::Check;
use crate::bpf::skel::MAX_OWN_FLOWS;
use crate::config::error::{ConfigError, Site};
use crate::config::file::{At, TargetTable, Value};
use crate::config::settings::{
    Distribution, GsoChoice, HealthCheck, LimitChoice, Target, TransmitChoice, DEFAULT_SOURCE_PORTS,
};
use crate::config::url::host::unicast;
use crate::config::url::{self, TargetUrl};
use crate::config::values::{bit_rate, dscp, interface, packet_rate, small_number, word, Wrong};
use crate::packet::encap::Tunnel;
use crate::packet::fit::Oversize;

const TRANSMIT: [(&str, TransmitChoice); 4] = [
    ("auto", TransmitChoice::Auto),
    ("udp", TransmitChoice::Udp),
    ("xsk", TransmitChoice::Xsk),
    ("raw", TransmitChoice::Raw),
];
const GSO: [(&str, GsoChoice); 3] = [
    ("auto", GsoChoice::Auto),
    ("on", GsoChoice::On),
    ("off", GsoChoice::Off),
];
const DISTRIBUTION: [(&str, Distribution); 2] =
    [("all", Distribution::All), ("hash", Distribution::Hash)];
const HEALTH: [(&str, HealthCheck); 2] = [
    ("none", HealthCheck::None),
    ("neighbour", HealthCheck::Neighbour),
];
/// The workers know a target by a number of 8 bits.
const MOST_TARGETS: usize = 64;
const OVERSIZE: [(&str, Oversize); 4] = [
    ("resegment", Oversize::Resegment),
    ("fragment", Oversize::Fragment),
    ("truncate", Oversize::Truncate),
    ("drop", Oversize::Drop),
];
/// Less than Linux's smallest path MTU is an error of somebody's; an IP packet has at most 65535 bytes.
const PATH_MTU: std::ops::RangeInclusive<u32> = 552..=65535;
/// The loop guard excludes the whole range of outer source ports, so it stays small.
const MOST_SOURCE_PORTS: u16 = 1024;

/// A setting that may stand beside the URL or in it: its text and where that is.
type Setting<'a> = Option<(String, &'a Site)>;

impl Check<'_> {
    pub(super) fn targets(&self, tables: &[At<TargetTable>]) -> Result<Vec<Target>, ConfigError> {
        if tables.is_empty() {
            let wrong = Wrong::new("there is no [[target]]", "at least one [[target]]");
            return Err(self.fault(&self.whole(), "target", wrong));
        }
        if let Some(extra) = tables.get(MOST_TARGETS) {
            let wrong = Wrong::new(
                format!("{} targets", tables.len()),
                format!("at most {MOST_TARGETS} targets"),
            );
            return Err(self.fault(&extra.site, "target", wrong));
        }
        let mut targets: Vec<Target> = Vec::with_capacity(tables.len());
        let mut guarded = 0;
        for table in tables.iter().filter(|table| !is_sink(&table.value)) {
            let target = self.target(table)?;
            let same = |other: &Target| {
                other.host == target.host && same_tunnel(other.encapsulation, target.encapsulation)
            };
            if targets.iter().any(same) {
                let site = table.value.url.as_ref().map(|at| &at.site);
                let wrong = format!("{} is a target already", target.name());
                let wrong = Wrong::new(wrong, "each target once");
                return Err(self.fault(site.unwrap_or(&table.site), "target.url", wrong));
            }
            // Each target's copies have to be known to the program in the kernel, or they would be copied.
            guarded += target.encapsulation.signatures().len();
            if guarded > MAX_OWN_FLOWS {
                let site = table.value.url.as_ref().map(|at| &at.site);
                let wrong = "more targets than the loop guard can tell from other traffic";
                let allowed =
                    format!("at most {MAX_OWN_FLOWS} targets; GRE that carries IP counts twice");
                let wrong = Wrong::new(wrong, allowed);
                return Err(self.fault(site.unwrap_or(&table.site), "target", wrong));
            }
            targets.push(target);
        }
        Ok(targets)
    }

    fn target(&self, at: &At<TargetTable>) -> Result<Target, ConfigError> {
        let table = &at.value;
        let Some(address) = &table.url else {
            let allowed =
                "vxlan://HOST?vni=N, geneve://HOST?vni=N, gre://HOST, erspan://HOST?session=N, \
                           pcap:FILE, pcap:-, discard:";
            return Err(self.missing(&at.site, "target.url", allowed));
        };
        let url = self.value(address, "target.url", url::parse)?;
        let written = |at: &Option<At<Value>>| {
            at.as_ref().map(|at| At {
                value: at.value.to_string(),
                site: at.site.clone(),
            })
        };
        let transmit = self.setting(&url, address, &table.transmit, "transmit", |text| {
            word(text, &TRANSMIT)
        })?;
        let gso = self.setting(&url, address, &table.gso, "gso", |t| word(t, &GSO))?;
        let source = self.setting(&url, address, &table.source, "source", source_address)?;
        let device = self.setting(&url, address, &table.dev, "dev", interface)?;
        let ports = self.setting(&url, address, &written(&table.ports), "ports", source_ports)?;
        let limit = self.setting(&url, address, &written(&table.limit), "limit", limit)?;
        let limit_packets = self.setting(
            &url,
            address,
            &written(&table.limit_packets),
            "limit_packets",
            limit_packets,
        )?;
        let distribution =
            self.setting(&url, address, &table.distribution, "distribution", |text| {
                word(text, &DISTRIBUTION)
            })?;
        let dscp = self.setting(&url, address, &written(&table.dscp), "dscp", dscp)?;
        // The classes of Linux's queueing disciplines; more than 6 takes CAP_NET_ADMIN, which xtee has.
        let priority = self.setting(
            &url,
            address,
            &written(&table.priority),
            "priority",
            |text| small_number(text, 0..=15),
        )?;
        let ttl = self.setting(&url, address, &written(&table.ttl), "ttl", |text| {
            small_number(text, 1..=255)
        })?;
        let health = self.setting(&url, address, &table.health, "health", health)?;
        let oversize = self.setting(&url, address, &table.oversize, "oversize", |text| {
            word(text, &OVERSIZE)
        })?;
        let mtu = self.setting(&url, address, &written(&table.mtu), "mtu", path_mtu)?;
        self.contradictions(&url, at, transmit.as_ref(), gso.as_ref())?;
        Ok(Target {
            place: self.origin.place(&at.site),
            host: url.host,
            encapsulation: url.encapsulation,
            transmit: transmit.unwrap_or(TransmitChoice::Auto),
            gso: gso.unwrap_or(GsoChoice::Auto),
            source,
            device,
            source_ports: ports.unwrap_or(DEFAULT_SOURCE_PORTS),
            distribution: distribution.unwrap_or(Distribution::All),
            health: health.unwrap_or(HealthCheck::Neighbour),
            limit: limit.unwrap_or(LimitChoice::Default),
            limit_packets: limit_packets.flatten(),
            dscp,
            priority,
            ttl,
            oversize: oversize.unwrap_or_default(),
            mtu,
        })
    }

    /// Reads a setting from the key beside the URL or from the URL's parameter of the same name.
    fn setting<T>(
        &self,
        url: &TargetUrl,
        address: &At<String>,
        key: &Option<At<String>>,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Result<Option<T>, ConfigError> {
        let path = format!("target.{name}");
        let setting: Setting<'_> = match (key, url.parameter(name)) {
            (Some(at), Some(_)) => {
                let wrong = format!("`{name}` stands in the URL too");
                let wrong = Wrong::new(wrong, "one of the two");
                return Err(self.fault(&at.site, &path, wrong));
            }
            (Some(at), None) => Some((at.value.clone(), &at.site)),
            (None, Some(text)) => Some((text.to_owned(), &address.site)),
            (None, None) => None,
        };
        let Some((text, site)) = setting else {
            return Ok(None);
        };
        let in_url = key.is_none();
        read(&text).map(Some).map_err(|mut wrong| {
            if in_url {
                wrong.wrong = format!("parameter `{name}`: {}", wrong.wrong);
                return self.fault(site, "target.url", wrong);
            }
            self.fault(site, &path, wrong)
        })
    }

    fn contradictions(
        &self,
        url: &TargetUrl,
        at: &At<TargetTable>,
        transmit: Option<&TransmitChoice>,
        gso: Option<&GsoChoice>,
    ) -> Result<(), ConfigError> {
        let table = &at.value;
        let site_of = |key: &Option<At<String>>| -> Site {
            let key = key.as_ref().or(table.url.as_ref());
            key.map_or(at.site.clone(), |key| key.site.clone())
        };
        let name = url.encapsulation.name();
        let in_udp = url.encapsulation.udp_port().is_some();
        if !in_udp && transmit == Some(&TransmitChoice::Udp) {
            let wrong = format!("{name} is not carried by UDP");
            let wrong = Wrong::new(wrong, "auto, xsk, raw");
            return Err(self.fault(&site_of(&table.transmit), "target.transmit", wrong));
        }
        if in_udp && transmit == Some(&TransmitChoice::Raw) {
            let wrong = format!("{name} is carried by UDP, which raw sockets do not send");
            let wrong = Wrong::new(wrong, "auto, udp, xsk");
            return Err(self.fault(&site_of(&table.transmit), "target.transmit", wrong));
        }
        let no_udp = !in_udp || transmit == Some(&TransmitChoice::Xsk);
        if gso == Some(&GsoChoice::On) && no_udp {
            let wrong = if in_udp {
                "GSO is done by UDP sockets, and `transmit` asks for another".to_owned()
            } else {
                format!("GSO is done by UDP sockets, and {name} is not carried by UDP")
            };
            let wrong = Wrong::new(wrong, "auto, off");
            return Err(self.fault(&site_of(&table.gso), "target.gso", wrong));
        }
        Ok(())
    }
}

/// Whether a receiver could not tell the two tunnels apart.
fn same_tunnel(one: Tunnel, other: Tunnel) -> bool {
    let unnumbered = |tunnel| match tunnel {
        Tunnel::Gre { key, inner, .. } => Tunnel::Gre {
            key,
            inner,
            sequence: false,
        },
        other => other,
    };
    unnumbered(one) == unnumbered(other)
}

fn source_address(text: &str) -> Result<IpAddr, Wrong> {
    let wrong = || {
        Wrong::new(
            format!("`{text}` is not a source address"),
            "an IPv4 or IPv6 address of this host",
        )
    };
    unicast(text).ok_or_else(wrong)?
}

fn source_ports(text: &str) -> Result<u16, Wrong> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let number = plain.then(|| text.parse::<u16>().ok()).flatten();
    let number = number.filter(|ports| (1..=MOST_SOURCE_PORTS).contains(ports));
    number.ok_or_else(|| {
        Wrong::new(
            format!("`{text}` source ports are not possible"),
            format!("a number from 1 to {MOST_SOURCE_PORTS}"),
        )
    })
}

fn health(text: &str) -> Result<HealthCheck, Wrong> {
    if text == "heartbeat" {
        let what = "`health = \"heartbeat\"` (it needs xtee's own collector)";
        return Err(Wrong::not_built(what, "none, neighbour"));
    }
    word(text, &HEALTH)
}

fn path_mtu(text: &str) -> Result<u32, Wrong> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let number = plain.then(|| text.parse::<u32>().ok()).flatten();
    number.filter(|mtu| PATH_MTU.contains(mtu)).ok_or_else(|| {
        Wrong::new(
            format!("`{text}` is not a path MTU"),
            format!(
                "bytes of the largest outer IP packet, a number from {} to {}",
                PATH_MTU.start(),
                PATH_MTU.end()
            ),
        )
    })
}

fn limit(text: &str) -> Result<LimitChoice, Wrong> {
    match text {
        "none" => Ok(LimitChoice::None),
        _ => bit_rate(text).map(LimitChoice::Rate).map_err(or_none),
    }
}

fn limit_packets(text: &str) -> Result<Option<u64>, Wrong> {
    match text {
        "none" => Ok(None),
        _ => packet_rate(text).map(Some).map_err(or_none),
    }
}

fn or_none(wrong: Wrong) -> Wrong {
    Wrong {
        allowed: format!("\"none\", or {}", wrong.allowed),
        ..wrong
    }
}
