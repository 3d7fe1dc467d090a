//! Judges the kernel, the privileges and the settings that hold for the whole host.

use std::fs;

use super::Check;
use crate::host::cpu::{format_list, Cpus};
use crate::host::features::{KernelFeatures, Probe};
use crate::host::privilege::{BpfRestrictions, Capability, Privileges};

/// A umem of 4096 frames of 4 KiB for each of four queues: what a small span needs locked.
const USUAL_UMEM: u64 = 64 << 20;

/// Capabilities, the memlock limit, and what turns a permitted call into EPERM.
pub(super) fn privileges(
    privileges: &Privileges,
    restrictions: &BpfRestrictions,
    features: &KernelFeatures,
) -> Vec<Check> {
    const AREA: &str = "privileges";
    let mut checks = Vec::new();
    let missing = privileges.missing();
    let needed: Vec<Capability> = missing
        .iter()
        .copied()
        .filter(|capability| *capability != Capability::IpcLock)
        .collect();
    if needed.is_empty() {
        checks.push(Check::ok(AREA, "all capabilities for mirroring are there"));
    } else {
        let list: Vec<String> = needed
            .iter()
            .map(|capability| format!("{} ({})", capability.name(), capability.purpose()))
            .collect();
        let mut finding = format!("missing: {}", list.join(", "));
        if needed.contains(&Capability::Bpf) && restrictions.unprivileged_disabled != Some(0) {
            finding += "; kernel.unprivileged_bpf_disabled forbids BPF without CAP_BPF";
        }
        checks.push(Check::problem(
            AREA,
            finding,
            "sudo setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_ipc_lock+ep \
             \"$(command -v xtee)\"  (systemd: AmbientCapabilities=)",
        ));
    }
    if let (Some(limit), false) = (privileges.memlock, privileges.has(Capability::IpcLock)) {
        let finding = format!(
            "memlock is limited to {} KiB and CAP_IPC_LOCK is missing",
            limit / 1024
        );
        checks.push(if limit < USUAL_UMEM {
            Check::warning(
                "memlock",
                format!("{finding}: AF_XDP packet memory (and BPF maps before 5.11) fail with ENOBUFS, ENOMEM or EPERM"),
                "ulimit -l unlimited  (systemd: LimitMEMLOCK=infinity)",
            )
        } else {
            Check::ok("memlock", finding)
        });
    }
    if restrictions.lockdown.as_deref() == Some("confidentiality") {
        checks.push(Check::warning(
            "lockdown",
            "the kernel is locked down for confidentiality: programs that read kernel memory are refused with EPERM, whatever the capabilities",
            "boot with lockdown=integrity  (cat /sys/kernel/security/lockdown shows the state)",
        ));
    }
    let denied = [
        ("tc programs", features.tc_program),
        ("XDP programs", features.xdp_program),
        ("ring buffers", features.ring_buffer),
        ("AF_XDP sockets", features.af_xdp),
    ];
    let denied: Vec<&str> = denied
        .iter()
        .filter(|(_, probe)| *probe == Probe::Denied)
        .map(|(what, _)| *what)
        .collect();
    if !denied.is_empty() && needed.is_empty() {
        checks.push(Check::problem(
            AREA,
            format!(
                "EPERM for {} although the capabilities are there: a seccomp filter, a security module, or a user namespace whose root is not the host's",
                denied.join(", ")
            ),
            "journalctl -k | grep -iE 'apparmor|avc|seccomp'  (container: --security-opt seccomp=unconfined, host user namespace)",
        ));
    }
    checks
}

/// What the kernel can do.
pub(super) fn features(features: &KernelFeatures) -> Vec<Check> {
    const AREA: &str = "kernel";
    let mut checks = vec![Check::ok(
        AREA,
        format!("Linux {}, judged by probing", features.release),
    )];
    let newer = "install a kernel of 5.15 or newer with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF, CONFIG_NET_SCH_INGRESS and CONFIG_XDP_SOCKETS";
    for (what, probe, consequence) in [
        ("tc programs", features.tc_program, "no tap"),
        ("BPF ring buffers", features.ring_buffer, "no tap"),
        (
            "XDP programs",
            features.xdp_program,
            "no span, wire and collector by XDP",
        ),
        (
            "AF_XDP sockets",
            features.af_xdp,
            "no span, wire and AF_XDP transmit",
        ),
    ] {
        match probe {
            Probe::Yes => {}
            Probe::No => checks.push(Check::problem(
                AREA,
                format!("{what} are missing: {consequence}"),
                newer,
            )),
            Probe::Denied => checks.push(Check::warning(
                AREA,
                format!("{what}: not permitted to try"),
                "sudo xtee doctor",
            )),
            Probe::Unknown => checks.push(Check::warning(
                AREA,
                format!("{what}: the probe gave no clear answer"),
                "bpftool feature probe kernel",
            )),
        }
    }
    checks.extend(tap_hook(features));
    if features.xdp_link == Probe::No {
        checks.push(Check::warning(
            AREA,
            "XDP cannot be attached by a link: after a crash the program stays on the interface",
            "after a crash: ip link set dev IF xdp off",
        ));
    }
    checks.push(match (features.btf, features.cast_to_kern_ctx) {
        (true, true) => Check::ok(
            AREA,
            "BTF with bpf_cast_to_kern_ctx: the state of each packet's checksum is read from the kernel",
        ),
        (btf, _) => {
            let what = if btf { "BTF lacks bpf_cast_to_kern_ctx" } else { "no BTF" };
            let finding = format!("{what}: whether a checksum is unfinished is judged from the packet's bytes");
            Check::hint(AREA, finding, "kernel 6.2 or newer with CONFIG_DEBUG_INFO_BTF reads it exactly")
        }
    });
    if features.jit == Some(false) {
        checks.push(Check::problem(
            AREA,
            "BPF programs are interpreted: every production packet pays several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        ));
    }
    if !features.udp_segment.yes() {
        checks.push(Check::warning(
            AREA,
            "UDP_SEGMENT is missing: VXLAN copies are sent one by one",
            "kernel 4.18 or newer; until then set gso=off in the target's URL",
        ));
    }
    if !features.prefer_busy_poll.yes() {
        checks.push(Check::hint(
            AREA,
            "preferred busy polling is missing: a span takes more CPU at high rates",
            "kernel 5.11 or newer",
        ));
    }
    checks
}

/// tcx or clsact.
fn tap_hook(features: &KernelFeatures) -> Option<Check> {
    const AREA: &str = "tap hook";
    let tcx = features.tcx.yes() || (features.tcx == Probe::Denied && features.tcx_in_btf);
    Some(match (tcx, features.clsact) {
        (true, _) => Check::ok(AREA, "tcx: the programs go away with the process, crash included"),
        (false, Probe::No) => Check::problem(
            AREA,
            "neither tcx nor clsact with a BPF classifier: a tap cannot be attached",
            "modprobe -a sch_ingress cls_bpf  (part of linux-modules-extra on some clouds)",
        ),
        (false, Probe::Yes) => Check::hint(
            AREA,
            "clsact (no tcx, which is in 6.6 and newer): detached on exit and replaced on start, but after a crash the filters stay until then",
            "after a crash: start xtee again, or tc filter del dev IF ingress; tc filter del dev IF egress",
        ),
        (false, _) => Check::warning(AREA, "tcx and clsact could not be tried", "sudo xtee doctor"),
    })
}

/// CPUs for workers.
pub(super) fn cpus(cpus: &Cpus) -> Vec<Check> {
    const AREA: &str = "cpus";
    let online = format_list(&cpus.online);
    let mut checks = Vec::new();
    if cpus.isolated.is_empty() {
        checks.push(if cpus.online.len() < 2 {
            Check::warning(
                AREA,
                format!("online {online}: workers share the only CPU with production"),
                "choose an instance with two or more CPUs, or set limit= in the target's URL low",
            )
        } else {
            Check::hint(
                AREA,
                format!(
                    "online {online}, none isolated: production tasks may run on a worker's CPU"
                ),
                "boot with isolcpus=N and set cpus = [N] in the source",
            )
        });
    } else {
        let isolated = format_list(&cpus.isolated);
        checks.push(Check::ok(
            AREA,
            format!("online {online}, isolated {isolated}: give those to the workers (cpus = […])"),
        ));
    }
    checks
}

/// Settings under /proc/sys. `None`: not there, or not visible from this namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) rmem_max: Option<u64>,
    pub(super) wmem_max: Option<u64>,
    pub(super) netdev_max_backlog: Option<u64>,
    pub(super) conntrack_count: Option<u64>,
    pub(super) conntrack_max: Option<u64>,
}

impl Settings {
    pub(super) fn read() -> Self {
        let number = |path: &str| {
            fs::read_to_string(format!("/proc/sys/net/{path}"))
                .ok()
                .and_then(|text| text.trim().parse().ok())
        };
        Self {
            rmem_max: number("core/rmem_max"),
            wmem_max: number("core/wmem_max"),
            netdev_max_backlog: number("core/netdev_max_backlog"),
            conntrack_count: number("netfilter/nf_conntrack_count"),
            conntrack_max: number("netfilter/nf_conntrack_max"),
        }
    }
}

pub(super) fn settings(settings: &Settings) -> Vec<Check> {
    /// Room for some milliseconds of copies at 10 Gbit/s.
    const BUFFER: u64 = 4 << 20;
    let mut checks = Vec::new();
    for (name, value, consequence) in [
        (
            "wmem_max",
            settings.wmem_max,
            "bursts of copies meet a full send buffer; AF_XDP in copy mode is held by it as well",
        ),
        (
            "rmem_max",
            settings.rmem_max,
            "a collector's sockets and the route watch have little room for bursts",
        ),
    ] {
        if let Some(value) = value.filter(|value| *value < BUFFER) {
            checks.push(Check::hint(
                "sysctl",
                format!("net.core.{name} is {value}: without CAP_NET_ADMIN {consequence}"),
                format!("sysctl -w net.core.{name}={BUFFER}"),
            ));
        }
    }
    if let Some(backlog) = settings.netdev_max_backlog.filter(|value| *value < 10_000) {
        checks.push(Check::hint(
            "sysctl",
            format!("net.core.netdev_max_backlog is {backlog}: a feed interface or a collector behind RPS drops in bursts"),
            "sysctl -w net.core.netdev_max_backlog=10000",
        ));
    }
    if let (Some(count), Some(max)) = (settings.conntrack_count, settings.conntrack_max) {
        let finding = format!("{count} of {max} connections tracked; copies sent by sockets are tracked too, one entry for each outer source port");
        // Nearly full: new production connections are about to be dropped, with or without us.
        checks.push(if max > 0 && count.saturating_mul(10) >= max.saturating_mul(8) {
            Check::warning(
                "conntrack",
                finding,
                format!(
                    "sysctl -w net.netfilter.nf_conntrack_max={}",
                    max.saturating_mul(2)
                ),
            )
        } else {
            Check::hint(
                "conntrack",
                finding,
                "nft 'add table inet xtee; add chain inet xtee out { type filter hook output priority raw; }; add rule inet xtee out udp dport 4789 notrack'",
            )
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_remedies;
    use super::super::Status;
    use super::*;

    fn able() -> KernelFeatures {
        KernelFeatures {
            tcx: Probe::Yes,
            clsact: Probe::Yes,
            tc_program: Probe::Yes,
            xdp_program: Probe::Yes,
            xdp_link: Probe::Yes,
            ring_buffer: Probe::Yes,
            af_xdp: Probe::Yes,
            udp_segment: Probe::Yes,
            prefer_busy_poll: Probe::Yes,
            btf: true,
            cast_to_kern_ctx: true,
            ..KernelFeatures::default()
        }
    }

    fn root() -> Privileges {
        Privileges {
            effective: u64::MAX,
            memlock: None,
            uid: 0,
        }
    }

    #[test]
    fn a_good_kernel_has_nothing_to_mend() {
        let mut checks = features(&able());
        checks.extend(privileges(&root(), &BpfRestrictions::default(), &able()));
        assert!(checks.iter().all(|c| c.status == Status::Ok), "{checks:#?}");
    }

    #[test]
    fn missing_capabilities_are_named_with_their_purpose() {
        let nobody = Privileges {
            effective: 0,
            memlock: Some(8 << 20),
            uid: 1000,
        };
        let restrictions = BpfRestrictions {
            unprivileged_disabled: Some(2),
            lockdown: Some("confidentiality".into()),
        };
        let checks = privileges(&nobody, &restrictions, &able());
        assert_remedies(&checks);
        let text = format!("{checks:?}");
        for word in [
            "CAP_NET_ADMIN",
            "CAP_BPF",
            "unprivileged_bpf_disabled",
            "setcap",
            "ulimit -l",
            "lockdown=",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn eperm_with_capabilities_points_at_security_modules() {
        let denied = KernelFeatures {
            tc_program: Probe::Denied,
            ..able()
        };
        let checks = privileges(&root(), &BpfRestrictions::default(), &denied);
        assert_remedies(&checks);
        assert!(checks.iter().any(|c| c.finding.contains("seccomp")));
    }

    #[test]
    fn every_gap_of_a_kernel_has_a_remedy() {
        let none = KernelFeatures {
            tcx: Probe::No,
            clsact: Probe::No,
            tc_program: Probe::No,
            xdp_program: Probe::Denied,
            xdp_link: Probe::No,
            ring_buffer: Probe::Unknown,
            af_xdp: Probe::No,
            jit: Some(false),
            ..KernelFeatures::default()
        };
        let checks = features(&none);
        assert_remedies(&checks);
        assert!(
            checks
                .iter()
                .filter(|c| c.status == Status::Problem)
                .count()
                >= 4
        );
        let old = KernelFeatures {
            tcx: Probe::No,
            ..able()
        };
        let checks = features(&old);
        assert!(checks.iter().any(|c| c.finding.starts_with("clsact")));
        assert!(checks.iter().all(|c| c.status == Status::Ok));
    }

    #[test]
    fn settings_of_a_busy_host() {
        let checks = settings(&Settings {
            rmem_max: Some(212_992),
            wmem_max: Some(212_992),
            netdev_max_backlog: Some(1000),
            conntrack_count: Some(90),
            conntrack_max: Some(100),
        });
        assert_remedies(&checks);
        assert_eq!(checks.len(), 4);
        assert_eq!(checks[3].status, Status::Warning);
        assert!(settings(&Settings::default()).is_empty());
    }

    #[test]
    fn one_cpu_is_too_few() {
        let one = Cpus {
            online: [0].into(),
            ..Cpus::default()
        };
        assert_eq!(cpus(&one)[0].status, Status::Warning);
        let isolated = Cpus {
            online: [0, 1, 2].into(),
            isolated: [2].into(),
            ..Cpus::default()
        };
        assert!(cpus(&isolated)[0].finding.contains("isolated 2"));
    }
}
