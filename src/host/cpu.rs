//! CPUs: which are online, which are isolated, pinning, and where an interface is attached.
//!
//! [`pin_current_thread`] changes the calling thread; nothing else here changes anything. Called by
//! facts, by the doctor, and by the supervisor in each worker's thread before its loop begins.

use std::collections::BTreeSet;
use std::fs;

/// Why a thread could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The CPU does not exist or is switched off.
    #[error("CPU {cpu} is not online; online are {online}")]
    Offline {
        /// CPU asked for.
        cpu: usize,
        /// The kernel's list, such as `0-3`.
        online: String,
    },
    /// The kernel refused: a cpuset or container limit leaves this CPU out.
    #[error("cannot run on CPU {cpu}: it is outside this process's cpuset (see Cpus_allowed_list in /proc/self/status)")]
    NotAllowed {
        /// CPU asked for.
        cpu: usize,
    },
}

/// CPUs of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus {
    /// Online, isolated ones included.
    pub online: BTreeSet<usize>,
    /// Kept free of ordinary tasks by `isolcpus=`. They are the best ones for workers.
    pub isolated: BTreeSet<usize>,
    /// Those that this process may be pinned to, as far as its cpuset goes.
    pub allowed: BTreeSet<usize>,
}

/// Reads the CPU lists. Online CPUs come from sysfs, not from the process's affinity mask: the
/// mask leaves isolated CPUs out.
pub fn cpus() -> Cpus {
    let online = list_file("/sys/devices/system/cpu/online");
    let isolated = list_file("/sys/devices/system/cpu/isolated");
    let mut allowed = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
            parse_list(line.trim())
        })
        .unwrap_or_else(|| online.clone());
    // isolcpus= takes CPUs out of the default mask without forbidding them.
    allowed.extend(&isolated);
    Cpus {
        online,
        isolated,
        allowed,
    }
}

/// Pins the calling thread to one CPU.
///
/// `core_affinity::set_for_current` takes any id, while `core_affinity::get_core_ids` lists only the
/// current affinity mask and so hides isolated CPUs, which are the ones that users give to workers.
/// Therefore the id is made by hand, and checked against sysfs.
pub fn pin_current_thread(cpu: usize) -> Result<(), CpuError> {
    let online = list_file("/sys/devices/system/cpu/online");
    if !online.contains(&cpu) {
        return Err(CpuError::Offline {
            cpu,
            online: format_list(&online),
        });
    }
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(CpuError::NotAllowed { cpu })
    }
}

/// NUMA node of an interface's device; `None` where there is one node or a virtual device.
pub fn numa_node(interface: &str) -> Option<u32> {
    if interface.contains('/') {
        return None;
    }
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/device/numa_node")).ok()?;
    // -1: the firmware does not say.
    text.trim().parse::<i32>().ok()?.try_into().ok()
}

/// CPUs of a NUMA node.
pub fn node_cpus(node: u32) -> BTreeSet<usize> {
    list_file(&format!("/sys/devices/system/node/node{node}/cpulist"))
}

fn list_file(path: &str) -> BTreeSet<usize> {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| parse_list(text.trim()))
        .unwrap_or_default()
}

/// Reads the kernel's list form: `0-3,8,10-11`. Empty text is an empty list.
fn parse_list(text: &str) -> Option<BTreeSet<usize>> {
    /// More CPUs than any kernel is built for: bounds a nonsensical range.
    const MOST: usize = 1 << 16;
    let mut cpus = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Writes the kernel's list form.
pub fn format_list(cpus: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let parts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_both_ways() {
        for text in ["", "0", "0-3,8,10-11", "5,7"] {
            assert_eq!(format_list(&parse_list(text).unwrap()), text);
        }
        for bad in ["3-1", "a", "1-", "0-99999999"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_thread_can_be_pinned_to_each_allowed_cpu() {
        let cpus = cpus();
        assert!(!cpus.online.is_empty());
        for &cpu in cpus.allowed.intersection(&cpus.online) {
            std::thread::spawn(move || {
                pin_current_thread(cpu).unwrap();
                let status = fs::read_to_string("/proc/thread-self/status").unwrap();
                assert!(
                    status.contains(&format!("Cpus_allowed_list:\t{cpu}\n")),
                    "{status}"
                );
            })
            .join()
            .unwrap();
        }
    }

    #[test]
    fn a_missing_cpu_is_named_with_those_that_exist() {
        let error = pin_current_thread(60_000).unwrap_err().to_string();
        assert!(
            error.contains("60000") && error.contains("online are 0"),
            "{error}"
        );
    }
}
