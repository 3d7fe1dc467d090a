//! How much of what it takes a rule copies: the beginning of each packet, some flows, the beginning of each flow.
//!
//! Plain data and the arithmetic that it stands for; `bpf/slice.h` does the same, held to it by tests. Text
//! of the user is read in `config`.

use std::fmt;

use crate::packet::flow;

/// Most flows of which one is kept.
pub const MAX_SAMPLE: u32 = 65536;
/// Bytes of a packet that a snaplen leaves at least: the shortest Ethernet frame, without its checksum and
/// rounded up, so that every header of a common packet's first is there.
pub const MIN_SNAPLEN: u32 = 64;
/// Bytes above which a snaplen would leave out nothing.
pub const MAX_SNAPLEN: u32 = 65535;

/// What of the packets that a rule takes is copied. The default: everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Bytes of each packet on the wire, from its Ethernet header on; 0: all.
    pub snaplen: u32,
    /// Which flows; `None`: all.
    pub sample: Option<Sample>,
    /// Bytes of each flow and direction, in frames as the kernel has them; `None`: all.
    pub cutoff: Option<u64>,
}

impl Slice {
    /// Everything.
    pub const WHOLE: Slice = Slice {
        snaplen: 0,
        sample: None,
        cutoff: None,
    };

    /// Whether nothing is left out.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        *self == Slice::WHOLE
    }
}

/// A share of the flows, whole and in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Flows that are kept …
    kept: u32,
    /// … of so many.
    of: u32,
}

impl Sample {
    /// `kept` of `of` flows; `None` unless 1 ≤ `kept` ≤ `of` ≤ [`MAX_SAMPLE`].
    #[must_use]
    pub fn new(kept: u32, of: u32) -> Option<Sample> {
        (1 <= kept && kept <= of && of <= MAX_SAMPLE).then_some(Sample { kept, of })
    }

    /// The largest [`flow::sample_hash`] that is kept.
    #[must_use]
    pub fn limit(&self) -> u32 {
        let kept = (u64::from(self.kept) << 32) / u64::from(self.of);
        (kept - 1) as u32
    }

    /// Whether the flow with this hash (its ports in it, see [`flow::combine`]) is kept.
    #[must_use]
    pub fn keeps(&self, flow_hash: u32) -> bool {
        flow::sample_hash(flow_hash) <= self.limit()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kept, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_keeps_its_share() {
        for (kept, of) in [(1, 2), (1, 16), (3, 4), (1, 1000)] {
            let sample = Sample::new(kept, of).unwrap();
            let flows = 400_000u32;
            let ends =
                |n: u32| flow::combine(flow::endpoint(&[n], 1), flow::endpoint(&[7], 443), 6);
            let count = (0..flows).filter(|&n| sample.keeps(ends(n))).count() as f64;
            let expected = f64::from(flows) * f64::from(kept) / f64::from(of);
            // Six standard deviations of a fair draw.
            let spread = 6.0 * expected.sqrt();
            assert!(
                (count - expected).abs() < spread,
                "{sample}: {count} of {expected}"
            );
        }
        assert_eq!(Sample::new(1, 1).unwrap().limit(), u32::MAX);
    }

    #[test]
    fn impossible_samples_are_none() {
        for (kept, of) in [(0, 16), (17, 16), (0, 0), (1, MAX_SAMPLE + 1)] {
            assert_eq!(Sample::new(kept, of), None);
        }
    }

    /// The bits that choose the ring (the highest) and the outer source port (the lowest) are as evenly
    /// spread among the flows that are kept as among all: else a sample would fill one ring of many.
    #[test]
    fn a_sample_does_not_choose_rings_or_ports() {
        let sample = Sample::new(1, 16).unwrap();
        let (mut rings, mut ports) = ([0u32; 8], [0u32; 8]);
        for n in 0..800_000u32 {
            let hash = flow::combine(flow::endpoint(&[n], 1), flow::endpoint(&[7], 53), 17);
            if sample.keeps(hash) {
                rings[(hash >> 29) as usize] += 1;
                ports[(hash & 7) as usize] += 1;
            }
        }
        // 6250 each; six standard deviations are 474.
        for count in rings.into_iter().chain(ports) {
            assert!((5776..=6724).contains(&count), "{rings:?} {ports:?}");
        }
    }
}
