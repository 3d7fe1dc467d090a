//! How busy the machine's CPUs are, from /proc/stat.
//!
//! Only looks. Called by control's shedding.

use std::fs;

/// Time of all CPUs together since the machine started, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// Not idle. What the hypervisor gave to others counts: it was not there for us.
    pub busy: u64,
    /// All of it.
    pub total: u64,
}

impl CpuTime {
    /// Now; `None` where /proc/stat cannot be read.
    #[must_use]
    pub fn now() -> Option<CpuTime> {
        parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// The busy share since an earlier time, in thousandths; `None` if no tick has passed.
    #[must_use]
    pub fn busy_since(&self, earlier: &CpuTime) -> Option<u32> {
        let busy = self.busy.saturating_sub(earlier.busy);
        let total = self.total.saturating_sub(earlier.total);
        u32::try_from((busy * 1000).checked_div(total)?).ok()
    }
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; guests are in user and nice.
fn parse(text: &str) -> Option<CpuTime> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Option<Vec<u64>> = line
        .split_whitespace()
        .take(8)
        .map(|field| field.parse().ok())
        .collect();
    let fields = fields?;
    let total: u64 = fields.iter().sum();
    let idle = fields.get(3)? + fields.get(4).unwrap_or(&0);
    Some(CpuTime {
        busy: total - idle,
        total,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_share_is_what_is_not_idle() {
        let before = parse("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!((before.busy, before.total), (150, 1000));
        let after = parse("cpu  140 0 60 830 60 5 10 5 0 0\nintr 5\n").unwrap();
        assert_eq!(after.busy_since(&before), Some(636));
        assert_eq!(after.busy_since(&after), None);
        assert_eq!(parse("cpu0 1 2 3\n"), None);
        assert_eq!(parse("cpu  1 x 3 4\n"), None);
    }

    #[test]
    fn this_machine_tells() {
        let time = CpuTime::now().unwrap();
        assert!(time.total > time.busy && time.busy > 0);
    }
}
