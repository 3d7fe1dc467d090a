//! User-space half of the kernel programs: load, attach, detach, typed access to their maps.
//!
//! Control plane. Knows no packet; names no ring of a worker beyond handing out its descriptor.
//! The kernel half is in `bpf/`; the types both share come from the generated skeleton.

pub mod attach;
pub mod clsact;
pub mod counters;
mod error;
pub mod needs;
mod networks;
mod object;
pub mod own_flows;
pub mod policy;
pub mod skel;
pub mod steer;
pub mod tap;

pub use error::Error;
