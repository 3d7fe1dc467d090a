//! The generated skeletons: object bytes and the types that BPF and Rust share.
//!
//! Only `types` and the object bytes are used; the programs are opened as plain objects, because a
//! skeleton borrows its storage and could not move into a struct that lives as long as the mirror.

/// The tap program's object file.
pub const TAP_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tap.bpf.o"));
/// The steering program's object file.
pub const STEER_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

#[allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
#[allow(
    missing_docs,
    dead_code,
    non_camel_case_types,
    non_snake_case,
    unsafe_op_in_unsafe_fn,
    rustdoc::all
)]
mod tap {
    include!(concat!(env!("OUT_DIR"), "/tap.skel.rs"));
}

#[allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
#[allow(
    missing_docs,
    dead_code,
    non_camel_case_types,
    non_snake_case,
    unsafe_op_in_unsafe_fn,
    rustdoc::all
)]
mod steer {
    include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
}

pub use steer::types::rodata as SteerSettings;
pub use tap::types::{
    rodata as TapSettings, xtee_bits as Bits, xtee_control as Control, xtee_counters as Counters,
    xtee_network4_key as Network4Key, xtee_network6_key as Network6Key, xtee_own_flow as OwnFlow,
    xtee_policy as Policy, xtee_record as Record, xtee_sleeper as Sleeper,
};

/// Limits of `bpf/abi.h`.
pub const MAX_RINGS: usize = 64;
/// Limits of `bpf/abi.h`.
pub const MAX_OWN_FLOWS: usize = 16;
/// The record's rule number when no rule took the packet.
pub const DEFAULT_RULE: u8 = 255;

#[cfg(test)]
mod tests {
    use super::*;

    /// The number behind a `#define` in abi.h.
    fn limit(name: &str) -> usize {
        let header = include_str!("../../bpf/abi.h");
        let line = header
            .lines()
            .find(|line| line.starts_with(&format!("#define {name} ")))
            .unwrap();
        let word = line
            .split_whitespace()
            .nth(2)
            .unwrap()
            .trim_end_matches('u');
        word.parse().unwrap()
    }

    #[test]
    fn limits_and_sizes_are_those_of_the_header() {
        assert_eq!(limit("XTEE_MAX_RINGS"), MAX_RINGS);
        assert_eq!(limit("XTEE_MAX_OWN_FLOWS"), MAX_OWN_FLOWS);
        assert_eq!(limit("XTEE_DEFAULT_RULE"), usize::from(DEFAULT_RULE));
        assert_eq!(std::mem::size_of::<Record>(), 48);
        assert_eq!(
            limit("XTEE_SEARCHED_BYTES"),
            crate::packet::signature::LOOKED_AT_BYTES
        );
        let counters = Counters::default();
        assert_eq!(counters.dropped.len(), crate::reason::Reason::COUNT);
        assert_eq!(counters.rules.len(), limit("XTEE_MAX_RULES") + 1);
        assert_eq!(
            Policy::default().port_classes.len(),
            limit("XTEE_MAX_PORT_CLASSES")
        );
        assert_eq!(Control::default().own_flows.len(), MAX_OWN_FLOWS);
    }
}
