//! Targets that copies do not travel to: whether they are possible here.

use std::fmt;

use serde::Serialize;

use crate::config::error::ConfigError;
use crate::config::facts::{HostFacts, SinkFacts};
use crate::config::settings::Config;
use crate::config::sink::{Sink, SinkKind};

/// Decisions for one such target: there are none but whether it is possible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SinkPlan {
    /// `pcap:/tmp/mirror.pcapng`.
    pub url: String,
    /// What becomes of the packets.
    pub kind: SinkKind,
}

pub(super) fn sinks(config: &Config, facts: &HostFacts) -> Result<Vec<SinkPlan>, ConfigError> {
    let unknown = SinkFacts::default();
    let mut plans = Vec::with_capacity(config.sinks.len());
    for (index, sink) in config.sinks.iter().enumerate() {
        plans.push(plan_sink(sink, facts.sinks.get(index).unwrap_or(&unknown))?);
    }
    Ok(plans)
}

fn plan_sink(sink: &Sink, here: &SinkFacts) -> Result<SinkPlan, ConfigError> {
    let url = sink.kind.to_string();
    let error = |wrong: String, allowed: &str| ConfigError {
        place: sink.place.clone(),
        key: url.clone(),
        wrong,
        allowed: allowed.to_owned(),
    };
    if let SinkKind::File(path) = &sink.kind {
        // A capture that somebody made is worth more than the next: it is never overwritten.
        if here.has_content {
            let wrong = format!("{} exists and is not empty", path.display());
            return Err(error(
                wrong,
                "the name of a new file, or remove the old one",
            ));
        }
        if here.is_folder {
            return Err(error(
                format!("{} is a folder", path.display()),
                "the name of a new file",
            ));
        }
        if !here.folder_exists {
            return Err(error(
                format!("the folder of {} does not exist", path.display()),
                "a file in a folder that exists",
            ));
        }
    }
    Ok(SinkPlan {
        url,
        kind: sink.kind.clone(),
    })
}

impl fmt::Display for SinkPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "target    {}", self.url)?;
        match &self.kind {
            SinkKind::File(_) => writeln!(f, "  writes    pcapng to a new file, by a thread of its own"),
            SinkKind::StandardOutput => {
                writeln!(f, "  writes    pcapng to the standard output, by a thread of its own")
            }
            SinkKind::DryRun => writeln!(
                f,
                "  dry run   nothing leaves; `xtee status` and the final balance say what would, by rule"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::error::Place;

    fn plan(here: SinkFacts) -> Result<SinkPlan, ConfigError> {
        let sink = Sink {
            place: Place::Arguments,
            kind: SinkKind::File("/captures/a.pcapng".into()),
        };
        plan_sink(&sink, &here)
    }

    #[test]
    fn a_capture_is_never_overwritten() {
        let free = SinkFacts {
            folder_exists: true,
            ..SinkFacts::default()
        };
        assert_eq!(plan(free).unwrap().url, "pcap:/captures/a.pcapng");
        for (here, wrong) in [
            (
                SinkFacts {
                    has_content: true,
                    ..free
                },
                "exists and is not empty",
            ),
            (
                SinkFacts {
                    is_folder: true,
                    ..free
                },
                "is a folder",
            ),
            (SinkFacts::default(), "does not exist"),
        ] {
            let error = plan(here).unwrap_err();
            assert!(error.wrong.contains(wrong), "{error}");
        }
    }
}
