//! `xtee doctor`: what this host can do, what stands in the way, and the command that mends it.
//!
//! Only looks; changes nothing and attaches nothing to the host's interfaces. Observation (`host`)
//! and judgement (the files below) are apart, so that the judgement is tested on made-up hosts.
//! Called by the command line.

mod drivers;
mod hooks;
mod interface;
mod kernel;
mod offloads;

use std::fmt;

use serde::Serialize;

use crate::host::ethtool::Ethtool;
use crate::host::netlink::Netlink;
use crate::host::{features, privilege, route};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be. A remedy here is a hint.
    Ok,
    /// xtee works, but slower, or it misses something.
    Warning,
    /// Something does not work.
    Problem,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at: `kernel`, `privileges`, `eth0 offloads`, …
    pub area: String,
    /// How bad it is.
    pub status: Status,
    /// What was found, and what follows from it.
    pub finding: String,
    /// The command or setting that mends it. Warnings and problems always have one.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(area: impl Into<String>, finding: impl Into<String>) -> Self {
        Self {
            area: area.into(),
            status: Status::Ok,
            finding: finding.into(),
            remedy: None,
        }
    }

    fn hint(
        area: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..Self::ok(area, finding)
        }
    }

    fn warning(
        area: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Warning,
            ..Self::hint(area, finding, remedy)
        }
    }

    fn problem(
        area: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Problem,
            ..Self::hint(area, finding, remedy)
        }
    }
}

/// All findings, host first, then interface by interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst status of all findings.
    pub fn worst(&self) -> Status {
        self.checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(Status::Ok)
    }

    fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }
}

impl fmt::Display for Report {
    /// One line a finding: mark, area, what, remedy; a summary at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|c| c.area.len()).max().unwrap_or(0);
        for check in &self.checks {
            let mark = match check.status {
                Status::Ok => "ok     ",
                Status::Warning => "warning",
                Status::Problem => "PROBLEM",
            };
            write!(f, "{mark}  {:width$}  {}", check.area, check.finding)?;
            if let Some(remedy) = &check.remedy {
                write!(f, "  ->  {remedy}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "{} ok, {} warnings, {} problems",
            self.count(Status::Ok),
            self.count(Status::Warning),
            self.count(Status::Problem)
        )
    }
}

/// Examines the host and these interfaces, or the ones with a default route when none are named.
/// Never fails: what cannot be looked at becomes a finding.
pub fn doctor(interfaces: &[String]) -> Report {
    let features = features::probe();
    let mut report = Report::default();
    let checks = &mut report.checks;
    match privilege::Privileges::current() {
        Ok(privileges) => {
            let restrictions = privilege::bpf_restrictions();
            checks.extend(kernel::privileges(&privileges, &restrictions, &features));
        }
        Err(error) => checks.push(Check::problem(
            "privileges",
            format!("cannot be read: {error}"),
            "mount -t proc proc /proc",
        )),
    }
    checks.extend(kernel::features(&features));
    checks.extend(kernel::cpus(&crate::host::cpu::cpus()));
    checks.extend(kernel::settings(&kernel::Settings::read()));
    match (Netlink::open(), Ethtool::open()) {
        (Ok(mut netlink), Ok(ethtool)) => {
            let defaults = route::default_devices(&mut netlink).unwrap_or_default();
            let names = named_or_default(&mut netlink, interfaces, &defaults);
            if names.is_empty() {
                checks.push(Check::hint(
                    "interfaces",
                    "none named, and no default route to go by",
                    "xtee doctor IF…  (ip -br link lists them)",
                ));
            }
            for name in names {
                checks.extend(interface::examine(
                    &mut netlink,
                    &ethtool,
                    &name,
                    &defaults,
                    &features,
                ));
            }
        }
        (Err(error), _) => checks.push(no_socket(&error)),
        (_, Err(error)) => checks.push(no_socket(&error)),
    }
    report
}

fn no_socket(error: &dyn std::error::Error) -> Check {
    Check::problem(
        "interfaces",
        format!("cannot be looked at: {error}"),
        "allow the address families AF_NETLINK and AF_INET (systemd: RestrictAddressFamilies=)",
    )
}

fn named_or_default(netlink: &mut Netlink, named: &[String], defaults: &[u32]) -> Vec<String> {
    if !named.is_empty() {
        return named.to_vec();
    }
    defaults
        .iter()
        .filter_map(|index| crate::host::link::by_index(netlink, *index).ok())
        .map(|link| link.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Used by the tests of the judging files as well.
    pub(super) fn assert_remedies(checks: &[Check]) {
        for check in checks {
            assert!(
                check.status == Status::Ok || check.remedy.is_some(),
                "no remedy: {check:?}"
            );
            assert!(!check.finding.contains('\n'), "one line each: {check:?}");
        }
    }

    #[test]
    fn every_line_has_mark_area_finding_and_remedy() {
        let report = Report {
            checks: vec![
                Check::ok("kernel", "6.12"),
                Check::warning("eth0 offloads", "LRO is on", "ethtool -K eth0 lro off"),
            ],
        };
        assert_eq!(
            report.to_string(),
            "ok       kernel         6.12\n\
             warning  eth0 offloads  LRO is on  ->  ethtool -K eth0 lro off\n\
             1 ok, 1 warnings, 0 problems\n"
        );
        assert_eq!(report.worst(), Status::Warning);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["status"], "warning");
        assert_eq!(json["checks"][0]["remedy"], serde_json::Value::Null);
    }

    #[test]
    fn this_host_can_be_examined() {
        let report = doctor(&["lo".into(), "xtee-none".into()]);
        assert_remedies(&report.checks);
        let missing = report
            .checks
            .iter()
            .find(|check| check.area == "xtee-none")
            .unwrap();
        assert_eq!(missing.status, Status::Problem);
        assert!(report
            .checks
            .iter()
            .any(|check| check.area.starts_with("lo")));
    }
}
