//! What is mirrored, and which target gets which copy: the rules and their tables, the paths, the shares of
//! the flows, the limits, the health.
//!
//! Pure: no socket, no ring, no clock, no import of the control plane. The configuration compiles
//! rules into [`tables::Tables`]; `bpf` writes those tables into maps; the kernel programs match, and
//! the slow matcher in [`mod@reference`] is what both are tested against. Control publishes a
//! [`selection::TargetSet`]; the workers go by it.

#![forbid(unsafe_code)]

pub mod health;
pub mod limit;
pub mod path;
pub mod reference;
pub mod rules;
pub mod selection;
pub mod share;
pub mod shed;
pub mod slice;
pub mod tables;
