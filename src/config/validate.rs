//! From the shape of the configuration to the configuration: every value read, every contradiction
//! found, before anything is asked of the host.
//!
//! Files and arguments come through here alike. The first thing that is wrong ends it, with one
//! error that says where, what, and what is allowed.

mod breaker;
mod rule;
mod sink;
mod source;
mod target;

use std::path::PathBuf;

use super::error::{ConfigError, Origin, Site};
use super::file::{At, ControlTable, Document, TargetTable};
use super::settings::{Config, DEFAULT_SOCKET};
use super::values::{word, Wrong};
use crate::mirror::rules::{Action, MAX_RULES};
use crate::mirror::tables::compile_with_default;

/// `sun_path` has 108 bytes, one of them for the final zero.
const LONGEST_SOCKET_PATH: usize = 107;

const ACTIONS: [(&str, Action); 2] = [("mirror", Action::Mirror), ("skip", Action::Skip)];

/// Validates a document; `origin` is where it came from.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(document: &Document, origin: Origin<'_>) -> Result<Config, ConfigError> {
    let check = Check { origin };
    if let Origin::File { text, .. } = origin {
        if text.trim().is_empty() {
            let needed = "at least one [[source]] and one [[target]]";
            return Err(origin.error(&Site::Span(0..0), "", "the file is empty", needed));
        }
    }
    let sources = check.sources(&document.source)?;
    if let Some(extra) = document.rule.get(MAX_RULES) {
        return Err(check.fault(
            &extra.site,
            "rule",
            Wrong::new(
                format!("{} rules", document.rule.len()),
                format!("at most {MAX_RULES} rules"),
            ),
        ));
    }
    let mut rules = Vec::with_capacity(document.rule.len());
    for table in &document.rule {
        rules.push(check.rule(table)?);
    }
    let default_action = match &document.default_action {
        Some(action) => Some(check.word(action, "default_action", &ACTIONS)?),
        None => None,
    };
    if let (Err(error), Some(first)) = (
        compile_with_default(&rules, default_action),
        document.rule.first(),
    ) {
        let wrong = Wrong::new(error.to_string(), "");
        return Err(check.fault(&first.site, "rule", wrong));
    }
    let targets = check.targets(&document.target)?;
    let breaker = check.breaker(document.breaker.as_ref())?;
    let sinks = check.sinks(&document.target)?;
    let control_socket = check.control(document.control.as_ref())?;
    Ok(Config {
        sources,
        rules,
        default_action,
        targets,
        breaker,
        sinks,
        control_socket,
    })
}

/// A configuration of one target that copies travel to, without a source: for a probe.
///
/// # Errors
/// What is wrong with the URL.
pub fn target_alone(url: &str) -> Result<Config, ConfigError> {
    let origin = Origin::Arguments;
    let check = Check { origin };
    let site = Site::Flag("URL");
    if super::sink::parse(url).is_some() {
        let wrong = Wrong::new(
            format!("there is no way to {url} that could be probed"),
            "vxlan://…, geneve://…, gre://…, erspan://…",
        );
        return Err(check.fault(&site, "", wrong));
    }
    let table = TargetTable {
        url: Some(At::flag("URL", url.to_owned())),
        ..TargetTable::default()
    };
    Ok(Config {
        sources: Vec::new(),
        rules: Vec::new(),
        default_action: None,
        targets: check.targets(&[At::flag("URL", table)])?,
        breaker: check.breaker(None)?,
        sinks: Vec::new(),
        control_socket: PathBuf::new(),
    })
}

/// Reads the parts of a document; knows where they came from.
struct Check<'a> {
    origin: Origin<'a>,
}

impl Check<'_> {
    fn fault(&self, site: &Site, key: &str, wrong: Wrong) -> ConfigError {
        self.origin.error(site, key, wrong.wrong, wrong.allowed)
    }

    /// Reads one value.
    fn value<T, V: ?Sized, U>(
        &self,
        at: &At<U>,
        key: &str,
        read: impl FnOnce(&V) -> Result<T, Wrong>,
    ) -> Result<T, ConfigError>
    where
        U: std::borrow::Borrow<V>,
    {
        read(at.value.borrow()).map_err(|wrong| self.fault(&at.site, key, wrong))
    }

    fn word<T: Copy>(
        &self,
        at: &At<String>,
        key: &str,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        self.value(at, key, |text: &str| word(text, words))
    }

    fn missing(&self, section: &Site, key: &str, allowed: &str) -> ConfigError {
        let name = key.rsplit('.').next().unwrap_or(key);
        self.fault(
            section,
            key,
            Wrong::new(format!("`{name}` is missing"), allowed),
        )
    }

    /// The site for what is missing as a whole.
    fn whole(&self) -> Site {
        match self.origin {
            Origin::File { .. } => Site::Span(0..0),
            Origin::Arguments => Site::Flag(""),
        }
    }

    fn control(&self, table: Option<&At<ControlTable>>) -> Result<PathBuf, ConfigError> {
        let Some(socket) = table.and_then(|table| table.value.socket.as_ref()) else {
            return Ok(PathBuf::from(DEFAULT_SOCKET));
        };
        self.value(socket, "control.socket", |path: &str| {
            if path.is_empty() || path.len() > LONGEST_SOCKET_PATH || path.contains('\0') {
                let wrong = format!("a path of {} bytes is not possible", path.len());
                let allowed =
                    format!("the path of a UNIX socket, 1 to {LONGEST_SOCKET_PATH} bytes");
                return Err(Wrong::new(wrong, allowed));
            }
            Ok(PathBuf::from(path))
        })
    }
}
