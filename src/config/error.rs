//! The one error that a wrong configuration gives: where, which key, what is wrong with it, and
//! what would be right.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file; the line counts from 1, `None` where the file as a whole is meant.
    File {
        /// The file as the user named it.
        path: PathBuf,
        /// The line.
        line: Option<usize>,
    },
    /// On the command line.
    Arguments,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}", path.display()),
            Place::File { path, line: None } => write!(f, "{}", path.display()),
            Place::Arguments => write!(f, "arguments"),
        }
    }
}

/// A wrong setting. The program ends with [`ConfigError::EXIT_CODE`] and has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// Where it stands.
    pub place: Place,
    /// The key (`rule.ports`) or the flag (`--port`); empty where no single one is meant.
    pub key: String,
    /// What is wrong.
    pub wrong: String,
    /// What would be right; empty where `wrong` says it already.
    pub allowed: String,
}

impl ConfigError {
    /// Exit code for wrong configurations and arguments (clap uses the same).
    pub const EXIT_CODE: u8 = 2;
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "`{}`: ", self.key)?;
        }
        write!(f, "{}", self.wrong)?;
        if !self.allowed.is_empty() {
            write!(f, "; allowed: {}", self.allowed)?;
        }
        Ok(())
    }
}

/// Where a value came from, before lines are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Site {
    /// Bytes of the file.
    Span(Range<usize>),
    /// A flag or a positional argument.
    Flag(&'static str),
}

/// What is being read, to turn a [`Site`] into a [`Place`].
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// A file.
    File {
        /// Its name.
        path: &'a Path,
        /// Its text.
        text: &'a str,
    },
    /// The command line.
    Arguments,
}

impl Origin<'_> {
    /// The place of `site`.
    #[must_use]
    pub fn place(&self, site: &Site) -> Place {
        match (self, site) {
            (Origin::File { path, text }, Site::Span(span)) => Place::File {
                path: path.to_path_buf(),
                line: Some(line_of(text, span.start)),
            },
            (Origin::File { path, .. }, Site::Flag(_)) => Place::File {
                path: path.to_path_buf(),
                line: None,
            },
            (Origin::Arguments, _) => Place::Arguments,
        }
    }

    /// An error about the value at `site`. On the command line the flag stands for the key.
    #[must_use]
    pub fn error(
        &self,
        site: &Site,
        key: &str,
        wrong: impl Into<String>,
        allowed: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            place: self.place(site),
            key: match site {
                Site::Flag(flag) => (*flag).to_owned(),
                Site::Span(_) => key.to_owned(),
            },
            wrong: wrong.into(),
            allowed: allowed.into(),
        }
    }
}

/// The line, from 1, of a byte of the text.
fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}
