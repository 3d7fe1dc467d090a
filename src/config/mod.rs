//! The configuration: its file, its validation, and the plan that it makes of a host.
//!
//! Control plane. `cli` calls [`load`] (or builds the same document from arguments), hands the
//! result and the facts of the host to [`plan::plan`], and `control` carries the plan out. Nothing
//! here touches the system, except that `load` reads the file.

#![forbid(unsafe_code)]

pub mod error;
pub mod facts;
pub mod file;
pub mod plan;
pub mod settings;
pub mod sink;
pub mod url;
pub mod validate;
pub mod values;

use std::path::Path;

use error::{ConfigError, Origin, Place};
use settings::Config;

/// Reads and validates a configuration file.
///
/// # Errors
/// The first thing that is wrong.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
        place: Place::File {
            path: path.to_path_buf(),
            line: None,
        },
        key: String::new(),
        wrong: format!("cannot be read: {error}"),
        allowed: String::new(),
    })?;
    parse(path, &text)
}

/// Validates the text of a configuration file; `path` only names it in errors.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let document = file::parse(path, text)?;
    validate::validate(&document, Origin::File { path, text })
}

#[cfg(test)]
mod tests;
