//! User-space half of the kernel programs: load, attach, detach, typed access to their maps.
//!
//! Control plane. Knows no packet; names no ring of a worker beyond handing out its descriptor.
//! The kernel half is in `bpf/`; the types both share come from the generated skeleton.

pub mod attach;
pub mod clsact;
pub mod counters;
mod error;
mod networks;
mod object;
pub mod own_flows;
pub mod policy;
pub mod skel;
pub mod steer;
pub mod tap;

pub use error::Error;

/// What libbpf prints goes to the log at debug level: it reports as errors what is expected here, such as
/// a clsact qdisc that exists already, and real failures come back as errors of ours.
pub fn quiet_libbpf() {
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |_, text| {
        tracing::debug!("libbpf: {}", text.trim_end());
    })));
}
