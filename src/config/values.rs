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

/// Largest number of bits, and of packets, a second.
const MOST_BITS: u64 = 1_000_000_000_000;
const MOST_PACKETS: u64 = 1_000_000_000;
/// Fewer bits a second than this are a mistake: one packet of 1500 bytes takes longer than a second.
const LEAST_BITS: u64 = 8000;

/// Bits a second: `"2Gbit/s"`, `"1.5Mbit/s"`.
///
/// # Errors
/// Not such a rate, or out of range.
pub fn bit_rate(text: &str) -> Result<u64, Wrong> {
    const ALLOWED: &str =
        "a rate from 8kbit/s to 1Tbit/s, like \"2Gbit/s\" (units: bit/s, kbit/s, Mbit/s, Gbit/s)";
    let units = [
        ("Tbit/s", 1_000_000_000_000),
        ("Gbit/s", 1_000_000_000),
        ("Mbit/s", 1_000_000),
        ("kbit/s", 1000),
        ("bit/s", 1),
    ];
    rate(text, &units, LEAST_BITS..=MOST_BITS, ALLOWED)
}

/// Packets a second: `"200k/s"`, `"1.5M/s"`, `"500/s"`.
///
/// # Errors
/// Not such a rate, or out of range.
pub fn packet_rate(text: &str) -> Result<u64, Wrong> {
    const ALLOWED: &str =
        "packets a second from 1/s to 1000M/s, like \"200k/s\" (units: /s, k/s, M/s)";
    let units = [("M/s", 1_000_000), ("k/s", 1000), ("/s", 1)];
    rate(text, &units, 1..=MOST_PACKETS, ALLOWED)
}

/// A decimal number and its unit; the first unit that the text ends with counts.
fn rate(
    text: &str,
    units: &[(&str, u64)],
    limits: RangeInclusive<u64>,
    allowed: &str,
) -> Result<u64, Wrong> {
    let wrong = |what: String| Wrong::new(what, allowed);
    let found = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim(), *factor)));
    let Some((number, factor)) = found else {
        return Err(wrong(format!("`{text}` has no unit of a rate")));
    };
    let rate = decimal(number, factor).ok_or_else(|| wrong(format!("`{text}` is not a rate")))?;
    if limits.contains(&rate) {
        Ok(rate)
    } else {
        Err(wrong(format!("{text} is out of range")))
    }
}

/// `factor` times a decimal number like `1.25`, where that is a whole number.
fn decimal(text: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let scale = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let rest = digits(fraction)?.checked_mul(factor)?;
    let whole = digits(whole)?.checked_mul(factor)?;
    (rest % scale == 0).then(|| whole.checked_add(rest / scale))?
}

/// Code points by name: RFC 2474, RFC 2597, RFC 3246, RFC 5865, RFC 8622.
const CODE_POINTS: [(&str, u8); 23] = [
    ("cs0", 0),
    ("cs1", 8),
    ("cs2", 16),
    ("cs3", 24),
    ("cs4", 32),
    ("cs5", 40),
    ("cs6", 48),
    ("cs7", 56),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("ef", 46),
    ("voice-admit", 44),
    ("le", 1),
];

/// A differentiated services code point: a number from 0 to 63, or its name.
///
/// # Errors
/// Neither.
pub fn dscp(text: &str) -> Result<u8, Wrong> {
    let named = CODE_POINTS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text));
    let number = || digits(text).and_then(|number| u8::try_from(number).ok());
    let found = named.map(|(_, number)| *number).or_else(number);
    found.filter(|number| *number < 64).ok_or_else(|| {
        Wrong::new(
            format!("`{text}` is not a DSCP"),
            "a number from 0 to 63, or a name like cs1, af11, ef, le",
        )
    })
}

/// A number in a range.
///
/// # Errors
/// Not a number, or out of range.
pub fn small_number(text: &str, limits: RangeInclusive<u8>) -> Result<u8, Wrong> {
    let number = digits(text).and_then(|number| u8::try_from(number).ok());
    number
        .filter(|number| limits.contains(number))
        .ok_or_else(|| {
            Wrong::new(
                format!("`{text}` is not possible"),
                format!("a number from {} to {}", limits.start(), limits.end()),
            )
        })
}

/// A share of the whole in thousandths: `"90%"`, `"87.5%"`.
///
/// # Errors
/// Not a percentage from 1 to 100.
pub fn percentage(text: &str) -> Result<u32, Wrong> {
    const ALLOWED: &str = "a percentage from 1% to 100%, like \"90%\"";
    let number = text.strip_suffix('%').map(str::trim);
    let thousandths = number.and_then(|number| decimal(number, 10));
    match thousandths.and_then(|number| u32::try_from(number).ok()) {
        Some(number) if (10..=1000).contains(&number) => Ok(number),
        _ => Err(Wrong::new(format!("`{text}` is not possible"), ALLOWED)),
    }
}

/// Bits a second in the largest unit that leaves a whole number.
#[must_use]
pub fn human_bits(bits: u64) -> String {
    match bits {
        0 => "0bit/s".to_owned(),
        _ if bits % 1_000_000_000 == 0 => format!("{}Gbit/s", bits / 1_000_000_000),
        _ if bits % 1_000_000 == 0 => format!("{}Mbit/s", bits / 1_000_000),
        _ if bits % 1000 == 0 => format!("{}kbit/s", bits / 1000),
        _ => format!("{bits}bit/s"),
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
