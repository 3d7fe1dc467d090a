//! The URL of a target: `vxlan://HOST[:4789]?vni=N` or `gre://HOST?key=N&seq=on`, with parameters.

pub mod host;

use super::settings::Host;
use super::values::{word, Wrong};
use crate::packet::encap::{erspan, geneve, vxlan, Inner, Tunnel};

/// A target's URL, taken apart. Parameters that are keys of `[[target]]` too stay text: both are
/// read by the same code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetUrl {
    /// The host.
    pub host: Host,
    /// The tunnel.
    pub encapsulation: Tunnel,
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

const SCHEMES: &str = "vxlan://HOST[:4789]?vni=N, geneve://HOST[:6081]?vni=N, \
    gre://HOST[?key=N][&seq=on][&inner=ip], erspan://HOST?session=N[&version=3], pcap:FILE, pcap:-, discard:";
/// Parameters of every target.
const COMMON: [&str; 14] = [
    "gso",
    "transmit",
    "source",
    "dev",
    "ports",
    "oversize",
    "mtu",
    "distribution",
    "health",
    "limit",
    "limit_packets",
    "dscp",
    "priority",
    "ttl",
];

/// Parses a target's URL.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn parse(text: &str) -> Result<TargetUrl, Wrong> {
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(Wrong::new(format!("`{text}` is not a URL"), SCHEMES));
    };
    let own: &[&str] = match scheme {
        "vxlan" | "geneve" => &["vni"],
        "gre" => &["key", "seq", "inner"],
        "erspan" => &["session", "version"],
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
    let (host, port) = host::host_and_port(authority)?;
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
    let encapsulation = tunnel(scheme, port, &mut take)?;
    Ok(TargetUrl {
        host,
        encapsulation,
        parameters,
    })
}

/// The tunnel of a scheme that `parse` knows.
fn tunnel(
    scheme: &str,
    port: Option<u16>,
    take: &mut impl FnMut(&str) -> Option<String>,
) -> Result<Tunnel, Wrong> {
    let without_ports = |name: &str, allowed: &str| match port {
        Some(_) => Err(Wrong::new(format!("{name} has no ports"), allowed)),
        None => Ok(()),
    };
    match scheme {
        "vxlan" | "geneve" => {
            let Some(vni) = take("vni") else {
                return Err(Wrong::new(
                    "`vni` is missing",
                    format!("{scheme}://HOST?vni=N, N from 0 to 16777215"),
                ));
            };
            let vni = number("vni", &vni, vxlan::MAX_VNI)?;
            Ok(if scheme == "vxlan" {
                let port = port.unwrap_or(vxlan::PORT);
                Tunnel::Vxlan { vni, port }
            } else {
                let port = port.unwrap_or(geneve::PORT);
                Tunnel::Geneve { vni, port }
            })
        }
        "erspan" => {
            let allowed = "erspan://HOST?session=N[&version=3], N from 0 to 1023";
            without_ports("ERSPAN", allowed)?;
            let Some(session) = take("session") else {
                return Err(Wrong::new("`session` is missing", allowed));
            };
            let version = take("version").map(|version| {
                word(
                    &version,
                    &[("2", erspan::Version::Two), ("3", erspan::Version::Three)],
                )
            });
            Ok(Tunnel::Erspan {
                version: version.transpose()?.unwrap_or(erspan::Version::Two),
                // At most 10 bits.
                session: number("session", &session, u32::from(erspan::MAX_SESSION))? as u16,
            })
        }
        _ => {
            without_ports("GRE", "gre://HOST[?key=N][&seq=on][&inner=ip]")?;
            let key = take("key").map(|key| number("key", &key, u32::MAX));
            let sequence = take("seq").map(|seq| word(&seq, &[("on", true), ("off", false)]));
            let inner = take("inner")
                .map(|inner| word(&inner, &[("ethernet", Inner::Ethernet), ("ip", Inner::Ip)]));
            Ok(Tunnel::Gre {
                key: key.transpose()?,
                sequence: sequence.transpose()?.unwrap_or(false),
                inner: inner.transpose()?.unwrap_or_default(),
            })
        }
    }
}

fn parameter(pair: &str, own: &[&str]) -> Result<(String, String), Wrong> {
    let allowed = || [own, &COMMON[..]].concat().join(", ");
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = parse("vxlan://203.0.113.2?vni=7").unwrap();
        let plain = Tunnel::Vxlan { vni: 7, port: 4789 };
        assert_eq!(url.encapsulation, plain);
        assert_eq!(url.host, Host::Address([203, 0, 113, 2].into()));

        let url = parse("vxlan://ndr.example.net:8472?gso=off&vni=16777215&ports=8").unwrap();
        assert_eq!(url.host, Host::Name("ndr.example.net".to_owned()));
        let other = Tunnel::Vxlan {
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
            let inner = Inner::Ethernet;
            let gre = Tunnel::Gre {
                key,
                sequence,
                inner,
            };
            assert_eq!(url.encapsulation, gre);
        }
        for (text, tunnel) in [
            (
                "gre://[2001:db8::2]?key=7&inner=ip",
                Tunnel::Gre {
                    key: Some(7),
                    sequence: false,
                    inner: Inner::Ip,
                },
            ),
            (
                "geneve://203.0.113.2?vni=7",
                Tunnel::Geneve { vni: 7, port: 6081 },
            ),
            (
                "geneve://[2001:db8::2]:6082?vni=7",
                Tunnel::Geneve { vni: 7, port: 6082 },
            ),
            (
                "erspan://203.0.113.2?session=1023",
                Tunnel::Erspan {
                    version: erspan::Version::Two,
                    session: 1023,
                },
            ),
            (
                "erspan://203.0.113.2?version=3&session=0",
                Tunnel::Erspan {
                    version: erspan::Version::Three,
                    session: 0,
                },
            ),
        ] {
            assert_eq!(parse(text).unwrap().encapsulation, tunnel, "{text}");
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
                "geneve://203.0.113.2",
                "`vni` is missing",
                "geneve://HOST?vni=N",
            ),
            ("erspan://203.0.113.2", "`session` is missing", "0 to 1023"),
            (
                "erspan://203.0.113.2?session=1024",
                "`session`",
                "0 to 1023",
            ),
            ("erspan://203.0.113.2?session=1&version=1", "`1`", "2, 3"),
            ("erspan://203.0.113.2:1?session=1", "no ports", "erspan://"),
            ("gre://203.0.113.2?inner=vlan", "`vlan`", "ethernet, ip"),
            ("pcapng:file.pcap", "`pcapng` is not a kind", "pcap:FILE"),
            ("vxlan://[fe80::1%eth0]?vni=1", "scoped", "global"),
            ("vxlan://2001:db8::1?vni=1", "in brackets", "[2001:db8::1]"),
            ("vxlan://203.0.113.2", "`vni` is missing", "vni=N"),
            ("vxlan://203.0.113.2?vni=16777216", "`vni`", "0 to 16777215"),
            ("vxlan://203.0.113.2?vni=-1", "`vni`", "0 to 16777215"),
            ("vxlan://203.0.113.2?vni=", "no value", "vni=VALUE"),
            ("vxlan://203.0.113.2?vni=1&vni=2", "stands twice", "once"),
            ("vxlan://203.0.113.2?vni=1&mtu=", "no value", "mtu=VALUE"),
            (
                "vxlan://203.0.113.2?vni=1&key=2",
                "`key` is not a parameter",
                "vni, gso",
            ),
            (
                "gre://203.0.113.2?vni=1",
                "`vni` is not a parameter",
                "key, seq, inner, gso",
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
