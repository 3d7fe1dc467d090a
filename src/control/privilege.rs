//! Whether this process may do what a plan asks for, asked before anything is opened: the kernel's own
//! answer would be EPERM from the middle of libbpf.

use anyhow::ensure;

use crate::config::plan::{Capture, Plan, Transmitter};
use crate::host::privilege::{Capability, Privileges};

/// What a plan needs. CAP_IPC_LOCK is not asked for: whether the memory fits the limit, the kernel says.
fn needed(plan: &Plan) -> impl Fn(&Capability) -> bool {
    let span =
        |source: &crate::config::plan::SourcePlan| matches!(source.capture, Capture::Span { .. });
    let packets = plan.sources.iter().any(span)
        || plan
            .targets
            .iter()
            .any(|target| target.transmit.value != Transmitter::Udp);
    move |capability| match capability {
        Capability::NetRaw => packets,
        Capability::IpcLock | Capability::SysAdmin => false,
        Capability::NetAdmin | Capability::Bpf | Capability::Perfmon => true,
    }
}

/// Whether all capabilities are there.
///
/// # Errors
/// Those that are missing, and how to grant them.
pub fn check(plan: &Plan) -> anyhow::Result<()> {
    let privileges = Privileges::current()?;
    let enters = plan.sources.iter().any(|source| source.namespace.is_some());
    let elsewhere =
        (enters && !privileges.has(Capability::SysAdmin)).then_some(Capability::SysAdmin);
    let missing: Vec<_> = privileges
        .missing()
        .into_iter()
        .filter(needed(plan))
        .chain(elsewhere)
        .map(|capability| format!("{} ({})", capability.name(), capability.purpose()))
        .collect();
    ensure!(
        missing.is_empty(),
        "not permitted: this process lacks {}; run it as root, or grant them (`xtee doctor` shows how)",
        missing.join(", ")
    );
    Ok(())
}
