//! What a program is loaded with only where its rules ask for it, so that nobody else pays: memory that
//! the kernel takes when a map is made, and settings that are constants to the verifier.
//!
//! Control plane.

use std::io;

use libbpf_rs::OpenObject;

use super::error::Error;
use super::object;
use crate::mirror::tables::Tables;

/// Streams that `cutoff` counts at the same time, in the largest rule set; the longest unseen is forgotten.
const STREAMS: u32 = 65536;

/// What rule sets may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A rule has a `cutoff`: room to count streams, about 10 MB of kernel memory.
    pub cutoff: bool,
    /// A rule has a `snaplen`: a span's frames carry it to the worker.
    pub snaplen: bool,
}

impl Needs {
    /// What these rules ask for.
    #[must_use]
    pub fn of(tables: &Tables) -> Needs {
        Needs {
            cutoff: tables.slices.iter().any(|slice| slice.cutoff.is_some()),
            snaplen: tables.slices.iter().any(|slice| slice.snaplen != 0),
        }
    }

    /// Gives the map of streams its size.
    pub(super) fn set_streams(
        &self,
        program: &'static str,
        object: &mut OpenObject,
    ) -> Result<(), Error> {
        let entries = if self.cutoff { STREAMS } else { 1 };
        object::set_entries(program, object, "streams", entries)
    }

    /// # Errors
    /// The rules ask for more than the program was loaded with.
    pub(super) fn check(&self, tables: &Tables) -> Result<(), Error> {
        let asked = Needs::of(tables);
        let missing = match () {
            () if asked.cutoff && !self.cutoff => "cutoff",
            () if asked.snaplen && !self.snaplen => "snaplen",
            () => return Ok(()),
        };
        Err(Error::Map {
            what: "put rules in force",
            source: io::Error::other(format!(
                "the first rule with a {missing} needs a restart: the program was loaded without"
            )),
        })
    }
}
