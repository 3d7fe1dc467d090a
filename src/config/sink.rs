//! Targets that copies do not travel to: `pcap:FILE`, `pcap:-` and `discard:`.
//!
//! They have no host, no tunnel, no path and no transmitter, so they are no [`super::settings::Target`].

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::error::Place;
use super::values::Wrong;

/// What these URLs look like.
pub const SCHEMES: &str = "pcap:FILE, pcap:-, discard:";

/// One such target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// Where the user wrote it.
    pub place: Place,
    /// What becomes of the packets.
    pub kind: SinkKind,
}

/// What becomes of the packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkKind {
    /// They are written to a new file, as pcapng.
    File(PathBuf),
    /// They are written to the standard output, as pcapng.
    StandardOutput,
    /// They are counted, by rule.
    DryRun,
}

impl fmt::Display for SinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkKind::File(path) => write!(f, "pcap:{}", path.display()),
            SinkKind::StandardOutput => f.write_str("pcap:-"),
            SinkKind::DryRun => f.write_str("discard:"),
        }
    }
}

/// Reads the URL of a sink; `None` when it is another target's.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn parse(text: &str) -> Option<Result<SinkKind, Wrong>> {
    let (scheme, rest) = text.split_once(':')?;
    let kind = match (scheme, rest) {
        ("pcap", "") => Err(Wrong::new("`pcap:` names no file", "pcap:FILE, pcap:-")),
        ("pcap", _) if rest.contains('\0') => Err(Wrong::new(
            "the name of a file has no zero byte",
            "pcap:FILE, pcap:-",
        )),
        ("pcap", "-") => Ok(SinkKind::StandardOutput),
        ("pcap", path) => Ok(SinkKind::File(PathBuf::from(path))),
        ("discard", "" | "//") => Ok(SinkKind::DryRun),
        ("discard", _) => Err(Wrong::new(
            format!("`{rest}` has no meaning in a dry run"),
            "discard:",
        )),
        _ => return None,
    };
    Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinks_are_told_from_targets() {
        let file = |path: &str| Some(Ok(SinkKind::File(PathBuf::from(path))));
        assert_eq!(parse("pcap:/tmp/a b?c=d"), file("/tmp/a b?c=d"));
        assert_eq!(parse("pcap:./-"), file("./-"));
        assert_eq!(parse("pcap:-"), Some(Ok(SinkKind::StandardOutput)));
        assert_eq!(parse("discard:"), Some(Ok(SinkKind::DryRun)));
        assert_eq!(parse("discard://"), Some(Ok(SinkKind::DryRun)));
        for other in ["vxlan://203.0.113.2?vni=1", "pcapng:a", "", "/tmp/a"] {
            assert_eq!(parse(other), None, "{other}");
        }
        for wrong in ["pcap:", "discard:x", "discard:?vni=1", "pcap:a\0b"] {
            assert!(parse(wrong).is_some_and(|read| read.is_err()), "{wrong:?}");
        }
    }
}
