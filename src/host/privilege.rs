//! Capabilities and limits of this process, and what xtee needs of them.
//!
//! Must not raise or drop anything. Called by facts, by the doctor and by whoever has to explain an
//! EPERM.

use std::{fs, io};

use super::sys;

/// A capability that xtee uses. Numbers of linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Capability {
    /// CAP_NET_ADMIN: attach programs, resolve neighbours.
    NetAdmin = 12,
    /// CAP_NET_RAW: AF_XDP and raw sockets.
    NetRaw = 13,
    /// CAP_IPC_LOCK: a umem larger than RLIMIT_MEMLOCK.
    IpcLock = 14,
    /// CAP_SYS_ADMIN: stands in for BPF and PERFMON; other namespaces.
    SysAdmin = 21,
    /// CAP_PERFMON: programs that read kernel pointers.
    Perfmon = 38,
    /// CAP_BPF: load programs and maps.
    Bpf = 39,
}

impl Capability {
    /// All that this module knows.
    pub const ALL: [Self; 6] = [
        Self::NetAdmin,
        Self::NetRaw,
        Self::IpcLock,
        Self::SysAdmin,
        Self::Perfmon,
        Self::Bpf,
    ];

    /// Name as `capsh` and systemd write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::IpcLock => "CAP_IPC_LOCK",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }

    /// What fails without it.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::NetAdmin => "attaching programs to interfaces, resolving next hops",
            Self::NetRaw => "AF_XDP and raw sockets",
            Self::IpcLock => "packet memory beyond the memlock limit",
            Self::SysAdmin => "other network namespaces; stands in for CAP_BPF and CAP_PERFMON",
            Self::Perfmon => "programs that read the kernel's packet structure",
            Self::Bpf => "loading programs and making maps",
        }
    }
}

/// Effective capabilities and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// CapEff as a bit set.
    pub effective: u64,
    /// Soft RLIMIT_MEMLOCK in bytes; `None`: unlimited.
    pub memlock: Option<u64>,
    /// Effective user id.
    pub uid: u32,
}

impl Privileges {
    /// Those of this process.
    pub fn current() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/thread-self/status")?;
        let (effective, uid) = parse_status(&status).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/thread-self/status has no CapEff and Uid lines",
            )
        })?;
        Ok(Self {
            effective,
            memlock: sys::memlock_limit()?,
            uid,
        })
    }

    /// This capability is effective.
    pub fn has(&self, capability: Capability) -> bool {
        self.effective & (1 << capability as u8) != 0
    }

    /// What mirroring needs and this process lacks. CAP_SYS_ADMIN stands in for BPF and PERFMON
    /// (kernels before 5.8 know only it); IPC_LOCK is asked for only where memlock is limited.
    pub fn missing(&self) -> Vec<Capability> {
        let admin = self.has(Capability::SysAdmin);
        Capability::ALL
            .into_iter()
            .filter(|capability| match capability {
                Capability::SysAdmin => false,
                Capability::Bpf | Capability::Perfmon => !admin && !self.has(*capability),
                Capability::IpcLock => self.memlock.is_some() && !self.has(*capability),
                other => !self.has(*other),
            })
            .collect()
    }
}

/// (CapEff, effective uid) of a status file.
fn parse_status(status: &str) -> Option<(u64, u32)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let effective = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
    let uid = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    Some((effective, uid))
}

/// Settings that turn a permitted BPF call into EPERM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfRestrictions {
    /// kernel.unprivileged_bpf_disabled: 0 allowed, 1 off for good, 2 off; matters without CAP_BPF.
    pub unprivileged_disabled: Option<u32>,
    /// Kernel lockdown: `none`, `integrity`, `confidentiality`; `None` where the kernel has none.
    pub lockdown: Option<String>,
}

/// Reads them.
pub fn bpf_restrictions() -> BpfRestrictions {
    BpfRestrictions {
        unprivileged_disabled: fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled")
            .ok()
            .and_then(|text| text.trim().parse().ok()),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
            .ok()
            .and_then(|text| parse_lockdown(&text)),
    }
}

/// The chosen word stands in brackets: `none [integrity] confidentiality`.
fn parse_lockdown(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\txtee\nUid:\t1000\t1001\t1000\t1000\nCapPrm:\t0\nCapEff:\t0000000000003000\n";

    fn with(effective: u64, memlock: Option<u64>) -> Privileges {
        Privileges {
            effective,
            memlock,
            uid: 1,
        }
    }

    #[test]
    fn reads_a_status_file() {
        assert_eq!(parse_status(STATUS), Some((0x3000, 1001)));
        assert_eq!(parse_status("Name:\tx\n"), None);
        Privileges::current().unwrap();
    }

    #[test]
    fn what_is_missing() {
        use Capability::*;
        let network = 1 << 12 | 1 << 13;
        assert_eq!(with(network, None).missing(), [Perfmon, Bpf]);
        assert_eq!(
            with(network, Some(65536)).missing(),
            [IpcLock, Perfmon, Bpf]
        );
        assert!(with(network | 1 << 21, None).missing().is_empty());
        assert!(with(network | 1 << 38 | 1 << 39, None).missing().is_empty());
        assert_eq!(with(1 << 21, None).missing(), [NetAdmin, NetRaw]);
    }

    #[test]
    fn reads_lockdown() {
        let text = "none [integrity] confidentiality\n";
        assert_eq!(parse_lockdown(text).as_deref(), Some("integrity"));
        assert_eq!(parse_lockdown("none"), None);
    }
}
