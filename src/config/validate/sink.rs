//! `[[target]]` tables whose URL is `pcap:` or `discard:`.

use super::Check;
use crate::config::error::ConfigError;
use crate::config::file::{At, TargetTable};
use crate::config::sink::{self, Sink};
use crate::config::values::Wrong;

/// Whether a table is one of these.
pub(super) fn is_sink(table: &TargetTable) -> bool {
    let url = table.url.as_ref();
    url.is_some_and(|url| sink::parse(&url.value).is_some())
}

impl Check<'_> {
    pub(super) fn sinks(&self, tables: &[At<TargetTable>]) -> Result<Vec<Sink>, ConfigError> {
        let mut sinks: Vec<Sink> = Vec::new();
        for at in tables {
            let Some(url) = &at.value.url else { continue };
            let Some(kind) = sink::parse(&url.value) else {
                continue;
            };
            let fault = |wrong| self.fault(&url.site, "target.url", wrong);
            let kind = kind.map_err(fault)?;
            let bare = TargetTable {
                url: at.value.url.clone(),
                ..TargetTable::default()
            };
            if at.value != bare {
                return Err(fault(Wrong::new(
                    format!(
                        "{kind} takes every packet as it is: no other key has a meaning for it"
                    ),
                    "`url` alone",
                )));
            }
            if sinks.iter().any(|other| other.kind == kind) {
                let wrong = format!("{kind} is a target already");
                return Err(fault(Wrong::new(wrong, "each target once")));
            }
            sinks.push(Sink {
                place: self.origin.place(&at.site),
                kind,
            });
        }
        Ok(sinks)
    }
}
