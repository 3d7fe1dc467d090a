//! The rules of what is mirrored: their shape, the tables the kernel programs look them up in, and
//! the slow matcher that both are tested against.
//!
//! Pure: no socket, no ring, no clock, no import of the control plane. The configuration compiles
//! rules into [`tables::Tables`]; `bpf` writes those tables into maps; the kernel programs match.

#![forbid(unsafe_code)]

pub mod path;
pub mod reference;
pub mod rules;
pub mod slice;
pub mod tables;
