//! Judges the other programs on an interface's hooks: who stands before xtee, who may end the chain,
//! and what xtee then misses.

use super::Check;
use crate::host::hooks::{Attached, Hook, Hooks};

/// Programs known to end the chain (they return a verdict, not "next"): name's beginning, owner.
const ENDING: [(&str, &str); 5] = [
    ("cil_", "Cilium"),
    ("handle_ingress", "AWS network policy agent"),
    ("handle_egress", "AWS network policy agent"),
    ("cali_", "Calico"),
    ("calico_", "Calico"),
];

/// Judges one interface. `tcx`: xtee's tap uses tcx here, otherwise clsact.
pub(super) fn judge(interface: &str, hooks: &Hooks, tcx: bool) -> Vec<Check> {
    let area = format!("{interface} hooks");
    let mut checks = Vec::new();
    if let Some(why) = &hooks.unread {
        checks.push(Check::warning(
            area.as_str(),
            format!("cannot be read in full: {why}"),
            "sudo xtee doctor",
        ));
    }
    for attached in hooks.attached.iter().filter(|attached| !attached.ours()) {
        checks.push(match attached.hook {
            Hook::Xdp => before_everything(&area, interface, attached),
            hook => on_tc(&area, interface, hook, attached, hooks, tcx),
        });
    }
    let ours: Vec<&str> = hooks
        .attached
        .iter()
        .filter(|attached| attached.ours())
        .map(|attached| attached.hook.describe())
        .collect();
    if !ours.is_empty() {
        checks.push(Check::ok(
            area.as_str(),
            format!("xtee is attached: {}", ours.join(", ")),
        ));
    } else if checks.is_empty() {
        checks.push(Check::ok(area, "free"));
    }
    checks
}

fn before_everything(area: &str, interface: &str, attached: &Attached) -> Check {
    let generic = attached.kind.starts_with("generic");
    let off = if generic { "xdpgeneric" } else { "xdp" };
    Check::warning(
        area,
        format!(
            "{} stands on XDP: a tap does not see incoming packets that it drops, redirects or answers, and a span cannot be attached beside it (EBUSY)",
            attached.describe()
        ),
        format!("if it is not needed: ip link set dev {interface} {off} off"),
    )
}

/// Where another tc program or filter stands, as seen from ours.
enum Place {
    /// It runs first.
    Before,
    /// It runs after ours, or will.
    After,
}

fn on_tc(
    area: &str,
    interface: &str,
    hook: Hook,
    attached: &Attached,
    hooks: &Hooks,
    tcx: bool,
) -> Check {
    let what = format!("{} on {}", attached.describe(), hook.describe());
    let ours = ours(hook.ingress(), hooks);
    match place(attached, ours, hooks, tcx) {
        Place::After => Check::ok(
            area,
            format!(
                "{what} runs after xtee: the copy is made before it, also of packets that it drops or changes"
            ),
        ),
        Place::Before => {
            let ends = match owner(attached) {
                Some(owner) => format!("belongs to {owner} and ends the chain"),
                None => "may end the chain".to_owned(),
            };
            let missed = if hook.ingress() { "incoming" } else { "outgoing" };
            Check::warning(
                area,
                format!(
                    "{what} stands before xtee and {ends}: {missed} packets that it consumes, redirects, drops or lets pass by itself are not copied"
                ),
                remedy(interface, hook, ours, tcx),
            )
        }
    }
}

fn remedy(interface: &str, hook: Hook, ours: Option<&Attached>, tcx: bool) -> String {
    let legacy = |hook| matches!(hook, Hook::ClsactIngress | Hook::ClsactEgress);
    if !legacy(hook) && !ours.is_some_and(|ours| legacy(ours.hook)) {
        "restart xtee: it attaches itself first".to_owned()
    } else if tcx {
        "attach = \"auto\": by tcx xtee runs first".to_owned()
    } else {
        let direction = if hook.ingress() { "ingress" } else { "egress" };
        format!(
            "tc filter show dev {interface} {direction}  (give it a pref above 1; with kernel 6.6 or newer xtee uses tcx, which runs first)"
        )
    }
}

/// Ours in a direction, if xtee is attached.
fn ours(ingress: bool, hooks: &Hooks) -> Option<&Attached> {
    hooks.attached.iter().find(|attached| {
        attached.ours() && attached.hook != Hook::Xdp && attached.hook.ingress() == ingress
    })
}

fn place(attached: &Attached, ours: Option<&Attached>, hooks: &Hooks, tcx: bool) -> Place {
    // Within a direction the list is in running order, tcx before clsact.
    let position = |wanted| hooks.attached.iter().position(|other| other == wanted);
    let before = match ours {
        Some(ours) => position(attached) < position(ours),
        // Not attached yet. On tcx xtee goes first, and tcx runs before clsact, whatever the priorities.
        None if tcx => false,
        // On clsact it takes priority 1, where bpf filters run newest first (cls_bpf_change) and other
        // kinds keep the place to themselves.
        None => attached.priority == Some(1) && attached.kind != "bpf",
    };
    if before {
        Place::Before
    } else {
        Place::After
    }
}

fn owner(attached: &Attached) -> Option<&'static str> {
    let name = attached.name.as_deref()?;
    ENDING
        .iter()
        .find(|(beginning, _)| name.starts_with(beginning))
        .map(|(_, owner)| *owner)
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_remedies;
    use super::super::Status;
    use super::*;

    fn program(hook: Hook, name: &str, priority: Option<u16>) -> Attached {
        Attached {
            hook,
            kind: "bpf".into(),
            name: Some(name.into()),
            program: Some(7),
            priority,
        }
    }

    fn judged(attached: Vec<Attached>, tcx: bool) -> Vec<Check> {
        let hooks = Hooks {
            attached,
            ..Hooks::default()
        };
        let checks = judge("eth0", &hooks, tcx);
        assert_remedies(&checks);
        checks
    }

    #[test]
    fn an_empty_interface_is_free() {
        assert_eq!(judged(Vec::new(), true), [Check::ok("eth0 hooks", "free")]);
    }

    #[test]
    fn who_stands_before_xtee_is_a_warning() {
        let cilium = program(Hook::TcxIngress, "cil_from_netdev", None);
        let ours = program(Hook::TcxIngress, "xtee_ingress", None);
        let checks = judged(vec![cilium.clone(), ours.clone()], true);
        assert_eq!(checks[0].status, Status::Warning);
        assert!(checks[0].finding.contains("Cilium and ends the chain"));
        assert!(checks[0].finding.contains("incoming packets"));
        let checks = judged(vec![ours, cilium.clone()], true);
        assert_eq!(checks[0].status, Status::Ok);
        // Before xtee is started: it will attach itself first.
        assert_eq!(judged(vec![cilium], true)[0].status, Status::Ok);
    }

    #[test]
    fn legacy_filters_run_after_tcx_and_by_priority_without_it() {
        let first = program(Hook::ClsactEgress, "other", Some(1));
        let later = program(Hook::ClsactEgress, "other", Some(50));
        let ours = program(Hook::ClsactEgress, "xtee_egress", Some(1));
        assert_eq!(judged(vec![first.clone()], true)[0].status, Status::Ok);
        let checks = judged(vec![first.clone(), ours.clone()], false);
        assert_eq!(checks[0].status, Status::Warning);
        assert!(checks[0].finding.contains("outgoing packets"));
        assert_eq!(
            judged(vec![ours, first.clone()], false)[0].status,
            Status::Ok
        );
        assert_eq!(judged(vec![later], false)[0].status, Status::Ok);
        // Not attached yet: a bpf filter of the same priority would run after ours, others before.
        assert_eq!(judged(vec![first.clone()], false)[0].status, Status::Ok);
        let other_kind = Attached {
            kind: "u32".into(),
            name: None,
            ..first
        };
        assert_eq!(judged(vec![other_kind], false)[0].status, Status::Warning);
    }

    #[test]
    fn where_ours_stands_counts_and_not_where_it_could() {
        let other = program(Hook::TcxIngress, "other", None);
        let ours = program(Hook::ClsactIngress, "xtee_ingress", Some(1));
        let egress = program(Hook::TcxEgress, "other", None);
        let checks = judged(vec![other, ours, egress], true);
        assert_eq!(checks[0].status, Status::Warning);
        assert!(checks[0].remedy.as_ref().unwrap().contains("auto"));
        assert_eq!(checks[1].status, Status::Ok);
    }

    #[test]
    fn xdp_is_before_everything() {
        let mut xdp = program(Hook::Xdp, "firewall", None);
        xdp.kind = "generic xdp".into();
        let checks = judged(vec![xdp], true);
        assert_eq!(checks[0].status, Status::Warning);
        assert!(checks[0]
            .remedy
            .as_ref()
            .unwrap()
            .contains("xdpgeneric off"));
        let ours = program(Hook::Xdp, "xtee_steer", None);
        assert_eq!(judged(vec![ours], true)[0].status, Status::Ok);
    }

    #[test]
    fn what_could_not_be_read_is_said() {
        let hooks = Hooks {
            unread: Some("tcx ingress: EPERM".into()),
            ..Hooks::default()
        };
        let checks = judge("eth0", &hooks, true);
        assert_remedies(&checks);
        assert_eq!(checks[0].status, Status::Warning);
    }
}
