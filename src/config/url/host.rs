//! The host of a URL: a name, an IPv4 address, or an IPv6 address in brackets; and its port.

use std::net::{IpAddr, Ipv6Addr};

use crate::config::settings::Host;
use crate::config::values::Wrong;

const ALLOWED: &str = "an IPv4 address, an IPv6 address in brackets, or a host name";

/// Takes `HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT` apart.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn host_and_port(authority: &str) -> Result<(Host, Option<u16>), Wrong> {
    let (text, port) = split(authority)?;
    let port = port.map(port_number).transpose()?;
    let host = match unicast(text) {
        Some(address) => Host::Address(address?),
        None if authority.starts_with('[') => {
            return Err(Wrong::new(
                format!("`{text}` is not an IPv6 address"),
                ALLOWED,
            ));
        }
        None => Host::Name(name(text)?.to_owned()),
    };
    Ok((host, port))
}

/// The host without brackets, and the text behind its colon.
fn split(authority: &str) -> Result<(&str, Option<&str>), Wrong> {
    if let Some(rest) = authority.strip_prefix('[') {
        let Some((address, behind)) = rest.split_once(']') else {
            return Err(Wrong::new(format!("`{authority}` has no `]`"), ALLOWED));
        };
        return match behind.strip_prefix(':') {
            Some(port) => Ok((address, Some(port))),
            None if behind.is_empty() => Ok((address, None)),
            None => Err(Wrong::new(
                format!("`{behind}` behind the address is not a port"),
                "[ADDRESS]:PORT",
            )),
        };
    }
    let bare = authority.split('%').next().unwrap_or(authority);
    if bare.parse::<Ipv6Addr>().is_ok() {
        return Err(Wrong::new(
            format!("`{authority}`: an IPv6 address stands in brackets"),
            format!("[{authority}]"),
        ));
    }
    Ok(match authority.split_once(':') {
        None => (authority, None),
        Some((host, port)) => (host, Some(port)),
    })
}

fn port_number(text: &str) -> Result<u16, Wrong> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse::<u16>().ok()).flatten();
    number
        .filter(|&number| number != 0)
        .ok_or_else(|| Wrong::new(format!("`{text}` is not a port"), "a port from 1 to 65535"))
}

/// The address that `text` is, if it is one of a single host that needs no interface to be understood.
/// `None`: it is no address at all.
pub fn unicast(text: &str) -> Option<Result<IpAddr, Wrong>> {
    let (bare, zone) = match text.split_once('%') {
        Some((bare, zone)) => (bare, Some(zone)),
        None => (text, None),
    };
    let address = bare.parse::<IpAddr>().ok()?;
    if zone.is_some() || is_link_local(address) {
        return Some(Err(Wrong::new(
            format!("{text} is a scoped address: another host on every link"),
            "an IPv4 address, or a global or unique local IPv6 address (2000::/3, fc00::/7)",
        )));
    }
    Some(match address {
        IpAddr::V4(v4) if v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() => {
            Err(not_one_host(address, "IPv4"))
        }
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => {
            Err(not_one_host(address, "IPv6"))
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(Wrong::new(
                format!("{address} is an IPv4 address in IPv6's clothes"),
                v4.to_string(),
            )),
            None => Ok(address),
        },
        IpAddr::V4(_) => Ok(address),
    })
}

/// IPv6 addresses that mean something on one link only (RFC 4007). IPv4 has no zones: 169.254.0.0/16 goes
/// where the route does.
#[must_use]
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn not_one_host(address: IpAddr, version: &str) -> Wrong {
    Wrong::new(
        format!("{address} is not the address of one host"),
        format!("a unicast {version} address or a host name"),
    )
}

fn name(host: &str) -> Result<&str, Wrong> {
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
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_of_both_versions() {
        let address = |text: &str| Host::Address(text.parse().unwrap());
        for (text, host, port) in [
            ("203.0.113.2", address("203.0.113.2"), None),
            ("203.0.113.2:8472", address("203.0.113.2"), Some(8472)),
            ("[2001:db8::2]", address("2001:db8::2"), None),
            ("[2001:db8::2]:8472", address("2001:db8::2"), Some(8472)),
            ("[fd00::1]", address("fd00::1"), None),
            (
                "ndr.example.net",
                Host::Name("ndr.example.net".into()),
                None,
            ),
        ] {
            assert_eq!(host_and_port(text).unwrap(), (host, port), "{text}");
        }
    }

    #[test]
    fn scoped_addresses_are_refused() {
        for text in [
            "[fe80::1]",
            "[fe80::1%eth0]",
            "[fe80::1%3]:4789",
            "[2001:db8::1%eth0]",
        ] {
            let error = host_and_port(text).unwrap_err();
            assert!(error.wrong.contains("scoped"), "{error:?}");
            assert!(error.allowed.contains("fc00::/7"), "{error:?}");
        }
        // Not in brackets: that first.
        for text in ["fe80::1%eth0", "2001:db8::1", "::1"] {
            let error = host_and_port(text).unwrap_err();
            assert!(error.wrong.contains("in brackets"), "{error:?}");
            assert_eq!(error.allowed, format!("[{text}]"));
        }
    }

    #[test]
    fn what_is_not_one_host_is_refused() {
        for (text, wrong) in [
            ("[::]", "not the address of one host"),
            ("[ff02::1]", "not the address of one host"),
            ("[::ffff:203.0.113.2]", "IPv6's clothes"),
            ("[203.0.113.2", "no `]`"),
            ("[nonsense]", "not an IPv6 address"),
            ("[2001:db8::1]4789", "not a port"),
            ("[2001:db8::1]:0", "not a port"),
            ("a:b:c", "not a port"),
        ] {
            let error = host_and_port(text).unwrap_err();
            assert!(error.wrong.contains(wrong), "{text}: {error:?}");
        }
    }
}
