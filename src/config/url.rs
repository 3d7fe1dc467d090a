//! The URL of a target: `vxlan://HOST[:4789]?vni=N` or `gre://HOST?key=N&seq=on`, with parameters.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::settings::{Encapsulation, Host, VXLAN_PORT};
use super::values::{word, Wrong};

/// A target's URL, taken apart. Parameters that are keys of `[[target]]` too stay text: both are
/// read by the same code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetUrl {
    /// The host.
    pub host: Host,
    /// The tunnel.
    pub encapsulation: Encapsulation,
    /// The other parameters, each at most once.
    pub parameters: Vec<(String, String)>,
}

impl TargetUrl {
    /// The text of a parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

const SCHEMES: &str = "vxlan://HOST[:4789]?vni=N, gre://HOST[?key=N][&seq=on]";
/// Parameters of every target.
const COMMON: [&str; 6] = ["gso", "transmit", "source", "dev", "ports", "limit"];

/// Parses a target's URL.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn parse(text: &str) -> Result<TargetUrl, Wrong> {
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(Wrong::new(format!("`{text}` is not a URL"), SCHEMES));
    };
    let own: &[&str] = match scheme {
        "vxlan" => &["vni"],
        "gre" => &["key", "seq"],
        "geneve" | "erspan" | "pcap" | "discard" => {
            return Err(Wrong::not_built(&format!("a {scheme} target"), SCHEMES));
        }
        _ => {
            return Err(Wrong::new(
                format!("`{scheme}` is not a kind of target"),
                SCHEMES,
            ));
        }
    };
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(Wrong::new(
            format!("`{text}` has no `//` behind the kind of target"),
            SCHEMES,
        ));
    };
    let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, port) = host_and_port(authority)?;
    let mut parameters = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let parameter = parameter(pair, own)?;
        if parameters.iter().any(|(key, _)| *key == parameter.0) {
            return Err(Wrong::new(
                format!("the parameter `{}` stands twice", parameter.0),
                "each parameter once",
            ));
        }
        parameters.push(parameter);
    }
    let mut take = |name: &str| {
        let position = parameters.iter().position(|(key, _)| key == name)?;
        Some(parameters.remove(position).1)
    };
    let encapsulation = if scheme == "vxlan" {
        let Some(vni) = take("vni") else {
            return Err(Wrong::new(
                "`vni` is missing",
                "vxlan://HOST?vni=N, N from 0 to 16777215",
            ));
        };
        Encapsulation::Vxlan {
            vni: number("vni", &vni, (1 << 24) - 1)?,
            port: port.unwrap_or(VXLAN_PORT),
        }
    } else {
        if port.is_some() {
            return Err(Wrong::new(
                "GRE has no ports",
                "gre://HOST[?key=N][&seq=on]",
            ));
        }
        Encapsulation::Gre {
            key: take("key")
                .map(|key| number("key", &key, u32::MAX))
                .transpose()?,
            sequence: take("seq")
                .map(|seq| word(&seq, &[("on", true), ("off", false)]))
                .transpose()?
                .unwrap_or(false),
        }
    };
    Ok(TargetUrl {
        host,
        encapsulation,
        parameters,
    })
}

fn parameter(pair: &str, own: &[&str]) -> Result<(String, String), Wrong> {
    let allowed = || [own, &COMMON[..]].concat().join(", ");
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if key == "mtu" {
        return Err(Wrong::not_built("the parameter `mtu`", allowed()));
    }
    if !own.contains(&key) && !COMMON.contains(&key) {
        return Err(Wrong::new(
            format!("`{key}` is not a parameter of this target"),
            allowed(),
        ));
    }
    if value.is_empty() {
        return Err(Wrong::new(
            format!("the parameter `{key}` has no value"),
            format!("{key}=VALUE"),
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn number(name: &str, text: &str, largest: u32) -> Result<u32, Wrong> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let number = plain.then(|| text.parse::<u32>().ok()).flatten();
    number.filter(|&number| number <= largest).ok_or_else(|| {
        Wrong::new(
            format!("`{text}` is not possible for `{name}`"),
            format!("a number from 0 to {largest}"),
        )
    })
}

fn host_and_port(authority: &str) -> Result<(Host, Option<u16>), Wrong> {
    const ALLOWED: &str = "an IPv4 address or a host name";
    let bare = authority.trim_start_matches('[');
    let bare = bare.split(']').next().unwrap_or(bare);
    if bare.parse::<Ipv6Addr>().is_ok() || authority.starts_with('[') {
        return Err(Wrong::not_built(
            &format!("a target with an IPv6 address (`{authority}`)"),
            ALLOWED,
        ));
    }
    let (host, port) = match authority.split_once(':') {
        None => (authority, None),
        Some((host, port)) => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| port.parse::<u16>().ok()).flatten();
            let number = number.filter(|&number| number != 0).ok_or_else(|| {
                Wrong::new(format!("`{port}` is not a port"), "a port from 1 to 65535")
            })?;
            (host, Some(number))
        }
    };
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            return Err(Wrong::new(
                format!("{address} is not the address of one host"),
                "a unicast IPv4 address or a host name",
            ));
        }
        return Ok((Host::Address(address), port));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // `300.1.2.3` and `1.2.3` are addresses gone wrong: no top-level domain is a number.
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let last_is_numeric = name.rsplit('.').next().is_some_and(numeric);
    if name.len() > 253 || !name.split('.').all(label) || last_is_numeric {
        return Err(Wrong::new(format!("`{host}` is not a host"), ALLOWED));
    }
    Ok((Host::Name(host.to_owned()), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = parse("vxlan://203.0.113.2?vni=7").unwrap();
        let plain = Encapsulation::Vxlan { vni: 7, port: 4789 };
        assert_eq!(url.encapsulation, plain);
        assert_eq!(url.host, Host::Address(Ipv4Addr::new(203, 0, 113, 2)));

        let url = parse("vxlan://ndr.example.net:8472?gso=off&vni=16777215&ports=8").unwrap();
        assert_eq!(url.host, Host::Name("ndr.example.net".to_owned()));
        let other = Encapsulation::Vxlan {
            vni: 0xff_ffff,
            port: 8472,
        };
        assert_eq!(url.encapsulation, other);
        assert_eq!(url.parameter("gso"), Some("off"));
        assert_eq!(url.parameter("ports"), Some("8"));
        assert_eq!(url.parameter("vni"), None);

        for (text, key, sequence) in [
            ("gre://203.0.113.2", None, false),
            ("gre://203.0.113.2?key=0", Some(0), false),
            ("gre://203.0.113.2?seq=on", None, true),
            (
                "gre://203.0.113.2?key=4294967295&seq=off",
                Some(u32::MAX),
                false,
            ),
        ] {
            let url = parse(text).unwrap();
            assert_eq!(url.encapsulation, Encapsulation::Gre { key, sequence });
        }
    }

    #[test]
    fn wrong_urls_say_what_is_allowed() {
        for (text, wrong, allowed) in [
            ("", "not a URL", "vxlan://"),
            ("203.0.113.2", "not a URL", "vxlan://"),
            ("http://203.0.113.2", "`http` is not a kind", "gre://"),
            ("vxlan:203.0.113.2", "no `//`", "vxlan://"),
            (
                "geneve://203.0.113.2?vni=1",
                "geneve target is not built yet",
                "vxlan://",
            ),
            (
                "erspan://203.0.113.2?session=1",
                "erspan target is not built yet",
                "gre://",
            ),
            ("pcap:file.pcap", "pcap target is not built yet", "vxlan://"),
            ("discard:", "discard target is not built yet", "vxlan://"),
            ("vxlan://[2001:db8::1]?vni=1", "IPv6", "IPv4 address"),
            ("vxlan://2001:db8::1?vni=1", "IPv6", "IPv4 address"),
            ("vxlan://203.0.113.2", "`vni` is missing", "vni=N"),
            ("vxlan://203.0.113.2?vni=16777216", "`vni`", "0 to 16777215"),
            ("vxlan://203.0.113.2?vni=-1", "`vni`", "0 to 16777215"),
            ("vxlan://203.0.113.2?vni=", "no value", "vni=VALUE"),
            ("vxlan://203.0.113.2?vni=1&vni=2", "stands twice", "once"),
            (
                "vxlan://203.0.113.2?vni=1&mtu=1400",
                "`mtu` is not built yet",
                "vni, gso",
            ),
            (
                "vxlan://203.0.113.2?vni=1&key=2",
                "`key` is not a parameter",
                "vni, gso",
            ),
            (
                "gre://203.0.113.2?vni=1",
                "`vni` is not a parameter",
                "key, seq, gso",
            ),
            ("gre://203.0.113.2?key=4294967296", "`key`", "4294967295"),
            ("gre://203.0.113.2?seq=yes", "`yes`", "on, off"),
            ("gre://203.0.113.2:47", "no ports", "gre://HOST"),
            ("vxlan://203.0.113.2:0?vni=1", "not a port", "1 to 65535"),
            (
                "vxlan://203.0.113.2:70000?vni=1",
                "not a port",
                "1 to 65535",
            ),
            ("vxlan://?vni=1", "not a host", "host name"),
            ("vxlan://300.1.2.3?vni=1", "not a host", "IPv4 address"),
            ("vxlan://a_b..c?vni=1", "not a host", "host name"),
            ("vxlan://203.0.113.2/x?vni=1", "not a host", "host name"),
            (
                "vxlan://239.1.1.1?vni=1",
                "not the address of one host",
                "unicast",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.wrong.contains(wrong), "{text}: {error:?}");
            assert!(error.allowed.contains(allowed), "{text}: {error:?}");
        }
    }
}
