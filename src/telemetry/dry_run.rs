//! What a dry run found, in numbers that can be held against a bill.
//!
//! Averages over the whole time. Bytes on the way are those of VXLAN over IPv4, from the outer IP header
//! on: what most clouds count.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::sinks::TYPICAL_OVERHEAD;

/// A dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunStatus {
    /// How long it has run.
    pub milliseconds: u64,
    /// By rule; what no rule took comes last.
    pub rules: Vec<DryRunRule>,
    /// The sum.
    pub total: DryRunRule,
}

/// What one rule would mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunRule {
    /// The rule's number; none for the default action and for the sum.
    pub number: Option<u8>,
    /// What it takes, in words.
    pub rule: String,
    /// Packets.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub frame_bytes: u64,
    /// Bytes of their copies, from the outer IP header on.
    pub outer_bytes: u64,
    /// Packets per second.
    pub packets_per_second: u64,
    /// Bits per second of the copies.
    pub bits_per_second: u64,
    /// Millions of bytes a day of the copies.
    pub megabytes_per_day: u64,
}

impl DryRunRule {
    /// From what was counted in so many milliseconds, at least 1.
    #[must_use]
    pub fn new(
        rule: String,
        number: Option<u8>,
        packets: u64,
        frame_bytes: u64,
        milliseconds: u64,
    ) -> DryRunRule {
        let outer_bytes = frame_bytes + packets * TYPICAL_OVERHEAD;
        let rate = |count: u64, factor: u128, divisor: u128| {
            let rate = u128::from(count) * factor / (u128::from(milliseconds.max(1)) * divisor);
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        DryRunRule {
            number,
            rule,
            packets,
            frame_bytes,
            outer_bytes,
            packets_per_second: rate(packets, 1000, 1),
            bits_per_second: rate(outer_bytes, 8 * 1000, 1),
            // 86 400 000 ms a day, 1 000 000 bytes.
            megabytes_per_day: rate(outer_bytes, 86_400_000, 1_000_000),
        }
    }
}

impl fmt::Display for DryRunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  would be mirrored, in VXLAN over IPv4 ({TYPICAL_OVERHEAD} bytes more than the frame), by the mean of {}.{} s:",
            self.milliseconds / 1000,
            self.milliseconds % 1000 / 100
        )?;
        for rule in self.rules.iter().chain([&self.total]) {
            writeln!(
                f,
                "    {:>10} packets/s {:>12} {:>10} GB a day  {}",
                rule.packets_per_second,
                bits(rule.bits_per_second),
                gigabytes(rule.megabytes_per_day),
                rule.rule
            )?;
        }
        Ok(())
    }
}

fn bits(rate: u64) -> String {
    match rate {
        0..=9_999 => format!("{rate} bit/s"),
        10_000..=9_999_999 => format!("{}.{} kbit/s", rate / 1000, rate % 1000 / 100),
        10_000_000..=9_999_999_999 => {
            format!("{}.{} Mbit/s", rate / 1_000_000, rate % 1_000_000 / 100_000)
        }
        _ => format!(
            "{}.{} Gbit/s",
            rate / 1_000_000_000,
            rate % 1_000_000_000 / 100_000_000
        ),
    }
}

fn gigabytes(megabytes: u64) -> String {
    format!("{}.{:03}", megabytes / 1000, megabytes % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_a_bill() {
        // 1000 packets of 964 bytes in 10 s: 100 packets/s, 800 kbit/s with 36 bytes more each.
        let rule = DryRunRule::new("all".to_owned(), None, 1000, 964_000, 10_000);
        assert_eq!(rule.outer_bytes, 1_000_000);
        assert_eq!(rule.packets_per_second, 100);
        assert_eq!(rule.bits_per_second, 800_000);
        // 100 kB/s are 8.64 GB a day.
        assert_eq!(rule.megabytes_per_day, 8_640);
        let status = DryRunStatus {
            milliseconds: 10_000,
            rules: vec![DryRunRule::default()],
            total: rule,
        };
        let text = status.to_string();
        assert!(text.contains("800.0 kbit/s"), "{text}");
        assert!(text.contains("8.640 GB a day"), "{text}");
        assert!(text.contains("10.0 s"), "{text}");
    }

    #[test]
    fn rates_have_the_unit_that_reads_best() {
        assert_eq!(bits(999), "999 bit/s");
        assert_eq!(bits(12_345), "12.3 kbit/s");
        assert_eq!(bits(12_345_678), "12.3 Mbit/s");
        assert_eq!(bits(12_345_678_901), "12.3 Gbit/s");
        assert_eq!(gigabytes(5), "0.005");
    }
}
