//! Single values as users write them: ports, sizes, marks, names. Pure text in, value out.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::file::Value;
use super::settings::{Interface, Namespace, DEFAULT_ROUTE};
use crate::mirror::rules::Protocols;
use crate::mirror::slice::{Sample, MAX_SAMPLE, MAX_SNAPLEN, MIN_SNAPLEN};

/// What is wrong with a value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What is wrong.
    pub wrong: String,
    /// What is allowed.
    pub allowed: String,
}

impl Wrong {
    /// Both halves.
    pub fn new(wrong: impl Into<String>, allowed: impl Into<String>) -> Self {
        Wrong {
            wrong: wrong.into(),
            allowed: allowed.into(),
        }
    }

    /// A value of the design that this version does not have.
    pub fn not_built(what: &str, allowed: impl Into<String>) -> Self {
        Wrong::new(format!("{what} is not built yet in this version"), allowed)
    }
}

/// One of a few words.
///
/// # Errors
/// Another word; lists the allowed ones.
pub fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Wrong> {
    let found = words.iter().find(|(name, _)| *name == text);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<_> = words.iter().map(|&(name, _)| name).collect();
        Wrong::new(format!("`{text}` is not possible"), names.join(", "))
    })
}

/// A decimal number without sign or spaces.
fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// A port or a range of ports: `443`, `"443"`, `"8000-8100"`.
///
/// # Errors
/// Not a port, or a range that runs backwards.
pub fn ports(value: &Value) -> Result<RangeInclusive<u16>, Wrong> {
    const ALLOWED: &str = "a port from 0 to 65535, or a range like \"8000-8100\"";
    let port = |text: &str| {
        let number = digits(text).and_then(|number| u16::try_from(number).ok());
        number.ok_or_else(|| Wrong::new(format!("`{text}` is not a port"), ALLOWED))
    };
    let text = value.to_string();
    let (first, last) = match text.split_once('-') {
        // A negative number is one bad port, not a range.
        Some((first, last)) if !first.is_empty() => (port(first.trim())?, port(last.trim())?),
        _ => (port(text.trim())?, port(text.trim())?),
    };
    if first > last {
        return Err(Wrong::new(
            format!("the range {first}-{last} runs backwards"),
            format!("\"{last}-{first}\""),
        ));
    }
    Ok(first..=last)
}

/// A protocol by name or number.
///
/// # Errors
/// Neither.
pub fn protocol(value: &Value) -> Result<Protocols, Wrong> {
    let text = value.to_string();
    Ok(match text.as_str() {
        "tcp" => Protocols::one(6),
        "udp" => Protocols::one(17),
        "icmp" => Protocols::icmp(),
        "icmpv6" => Protocols::one(58),
        "sctp" => Protocols::one(132),
        "gre" => Protocols::one(47),
        "esp" => Protocols::one(50),
        other => {
            let number = digits(other).and_then(|number| u8::try_from(number).ok());
            let number = number.ok_or_else(|| {
                Wrong::new(
                    format!("`{other}` is not a protocol"),
                    "tcp, udp, icmp (both versions), icmpv6, sctp, gre, esp, or a number from 0 to 255",
                )
            })?;
            Protocols::one(number)
        }
    })
}

/// A firewall mark, `value` or `value/mask`, decimal or hexadecimal.
///
/// # Errors
/// Not numbers of 32 bits, a mask of zero, or a value with bits outside of the mask.
pub fn mark(value: &Value) -> Result<(u32, u32), Wrong> {
    const ALLOWED: &str = "a value or value/mask, decimal or hexadecimal, like \"0x1/0xff\"";
    let number = |text: &str| {
        let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let number = match hexadecimal {
            Some(hex) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u32::from_str_radix(hex, 16).ok()
            }
            Some(_) => None,
            None => digits(text).and_then(|number| u32::try_from(number).ok()),
        };
        number.ok_or_else(|| Wrong::new(format!("`{text}` is not a number of 32 bits"), ALLOWED))
    };
    let text = value.to_string();
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (number(value.trim())?, number(mask.trim())?),
        None => (number(text.trim())?, u32::MAX),
    };
    if mask == 0 {
        return Err(Wrong::new(
            "a mask of 0 takes every packet",
            "a mask with bits set; leave the key out to take every mark",
        ));
    }
    if value & !mask != 0 {
        return Err(Wrong::new(
            format!("{value:#x} has bits outside of the mask {mask:#x}: no packet would match"),
            format!("\"{:#x}/{mask:#x}\"", value & mask),
        ));
    }
    Ok((value, mask))
}

/// Bytes of a packet that are copied; 0: all.
///
/// # Errors
/// Negative, or so few that headers would be missing, or so many that nothing would.
pub fn snaplen(value: &Value) -> Result<u32, Wrong> {
    let text = value.to_string();
    let number = digits(text.trim()).and_then(|number| u32::try_from(number).ok());
    match number {
        Some(0) => Ok(0),
        Some(number) if (MIN_SNAPLEN..=MAX_SNAPLEN).contains(&number) => Ok(number),
        _ => Err(Wrong::new(
            format!("a snaplen of {text} is not possible"),
            format!("0 (the whole packet), or {MIN_SNAPLEN} to {MAX_SNAPLEN} bytes"),
        )),
    }
}

/// A share of the flows: `1/16`.
///
/// # Errors
/// Not such a share.
pub fn sample(text: &str) -> Result<Sample, Wrong> {
    let share = text.split_once('/').and_then(|(kept, of)| {
        let number = |text: &str| u32::try_from(digits(text.trim())?).ok();
        Sample::new(number(kept)?, number(of)?)
    });
    share.ok_or_else(|| {
        Wrong::new(
            format!("`{text}` is not a share of the flows"),
            format!("how many of how many, like \"1/16\" (up to {MAX_SAMPLE})"),
        )
    })
}

/// Bytes of a flow: a number, or text with a unit, decimal or binary.
///
/// # Errors
/// Not such a size, or none at all.
pub fn cutoff(value: &Value) -> Result<u64, Wrong> {
    let allowed = "bytes, like \"10MB\" (units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)";
    let text = value.to_string();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[number.len()..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => return Err(Wrong::new(format!("`{unit}` is not a unit"), allowed)),
    };
    match digits(number.trim()).and_then(|number| number.checked_mul(unit)) {
        Some(0) => Err(Wrong::new(
            "a cutoff of 0 copies nothing",
            format!("{allowed}; leave the key out to copy whole flows, skip to copy none"),
        )),
        Some(bytes) => Ok(bytes),
        None => Err(Wrong::new(format!("`{text}` is not a size"), allowed)),
    }
}

/// A size in bytes: a number, or text with a unit.
///
/// # Errors
/// Not a size, not a power of two, or out of `limits`.
pub fn size(value: &Value, limits: RangeInclusive<u32>) -> Result<u32, Wrong> {
    let allowed = || {
        format!(
            "a power of two from {} to {}, like \"8MiB\" (units: B, KiB, MiB, GiB)",
            human(*limits.start()),
            human(*limits.end())
        )
    };
    let text = value.to_string();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[number.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(Wrong::new(format!("`{unit}` is not a unit"), allowed())),
    };
    let bytes = digits(number.trim()).and_then(|number| number.checked_mul(unit));
    let bytes = bytes.ok_or_else(|| Wrong::new(format!("`{text}` is not a size"), allowed()))?;
    match u32::try_from(bytes) {
        Ok(bytes) if limits.contains(&bytes) && bytes.is_power_of_two() => Ok(bytes),
        Ok(bytes) if limits.contains(&bytes) => Err(Wrong::new(
            format!("{text} is not a power of two"),
            allowed(),
        )),
        _ => Err(Wrong::new(format!("{text} is out of range"), allowed())),
    }
}

/// A power of two of bytes, in the largest unit that leaves a whole number.
#[must_use]
pub fn human(bytes: u32) -> String {
    match bytes.trailing_zeros() {
        30.. if bytes != 0 => format!("{}GiB", bytes >> 30),
        20..=29 => format!("{}MiB", bytes >> 20),
        10..=19 => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

/// The name of an interface, by the kernel's rules (`dev_valid_name`).
///
/// # Errors
/// Not a name that an interface can have.
pub fn interface(text: &str) -> Result<String, Wrong> {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(forbidden)
    {
        return Err(Wrong::new(
            format!("`{text}` is not the name of an interface"),
            "1 to 15 bytes without `/`, `:` and spaces, like eth0",
        ));
    }
    Ok(text.to_owned())
}

/// An interface, perhaps with its namespace: `eth0`, `default-route`, `eth0@/run/netns/shop`, `eth0@pid:123`.
///
/// # Errors
/// Neither name nor `default-route`, or no namespace behind the `@`.
pub fn interface_in_namespace(text: &str) -> Result<(Interface, Option<Namespace>), Wrong> {
    let (name, place) = match text.split_once('@') {
        Some((name, place)) => (name, Some(namespace(place)?)),
        None => (text, None),
    };
    let chosen = match name {
        DEFAULT_ROUTE => Interface::DefaultRoute,
        name => Interface::Name(interface(name)?),
    };
    Ok((chosen, place))
}

/// A network namespace: the path of its file, or `pid:` and the number of a process in it.
///
/// # Errors
/// Neither.
pub fn namespace(text: &str) -> Result<Namespace, Wrong> {
    const ALLOWED: &str = "the path of a namespace, like /run/netns/NAME, or pid:N";
    if let Some(process) = text.strip_prefix("pid:") {
        return digits(process)
            .and_then(|number| i32::try_from(number).ok())
            .filter(|&number| number > 0)
            .map(|number| Namespace::Process(number.unsigned_abs()))
            .ok_or_else(|| Wrong::new(format!("`{process}` is not a process"), ALLOWED));
    }
    if !text.starts_with('/') || text.contains('\0') {
        return Err(Wrong::new(
            format!("`{text}` is not a network namespace"),
            ALLOWED,
        ));
    }
    Ok(Namespace::Path(PathBuf::from(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_and_namespaces_are_told_apart() {
        let named = |name: &str| Interface::Name(name.to_owned());
        let path = |path: &str| Some(Namespace::Path(path.into()));
        for (text, wanted) in [
            ("eth0", (named("eth0"), None)),
            ("default-route", (Interface::DefaultRoute, None)),
            (
                "eth0@/run/netns/a@b",
                (named("eth0"), path("/run/netns/a@b")),
            ),
            ("eth0@pid:7", (named("eth0"), Some(Namespace::Process(7)))),
            (
                "default-route@/run/netns/x",
                (Interface::DefaultRoute, path("/run/netns/x")),
            ),
        ] {
            assert_eq!(interface_in_namespace(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_namespace_says_so() {
        for text in [
            "eth0@",
            "eth0@shop",
            "eth0@pid:",
            "eth0@pid:0",
            "eth0@pid:-1",
            "eth0@pid:x",
            "eth0@pid:4294967296",
            "@/run/netns/x",
            "a/b@/run/netns/x",
        ] {
            assert!(interface_in_namespace(text).is_err(), "{text}");
        }
    }
}
