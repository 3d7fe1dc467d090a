//! Why a packet was dropped: one list for the kernel programs, the workers and every report.
//!
//! Generated from `XTEE_DROP_REASONS` in `bpf/abi.h` by `bpf/build.rs`; nothing is listed here by hand.

include!(concat!(env!("OUT_DIR"), "/reason.rs"));

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn numbers_follow_the_list_and_names_are_distinct() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            assert!(!reason.text().is_empty());
        }
        let names: std::collections::BTreeSet<_> =
            Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::COUNT);
        assert_eq!(Reason::Ring.name(), "ring");
    }
}
