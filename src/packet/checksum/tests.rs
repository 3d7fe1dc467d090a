//! Sums against one that adds word by word.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::testing::slow_sum;
use super::*;

/// 0 and 0xffff are the same number modulo 0xffff.
fn same(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

/// The example of RFC 1071 section 3.
#[test]
fn rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(fold(sum(&bytes)), 0xddf2);
    assert_eq!(finish(sum(&bytes)), 0x220d);
}

/// The example of RFC 1624 section 4, where the older equation fails.
#[test]
fn rfc_1624() {
    assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn largest_sums_do_not_overflow() {
    let bytes = vec![0xff; 1 << 20];
    assert_eq!(fold(sum(&bytes)), 0xffff);
    assert_eq!(fold(u32::MAX), 0xffff);
}

proptest! {
    #[test]
    fn equals_word_by_word(bytes in vec(any::<u8>(), 0..2000), from in 0usize..9) {
        let bytes = &bytes[from.min(bytes.len())..];
        prop_assert_eq!(fold(sum(bytes)), slow_sum(bytes));
    }

    #[test]
    fn combines_at_any_place(bytes in vec(any::<u8>(), 0..200), at: prop::sample::Index) {
        let (first, second) = bytes.split_at(at.index(bytes.len() + 1));
        let combined = combine(sum(first), first.len(), sum(second));
        prop_assert!(same(fold(combined), slow_sum(&bytes)));
    }

    #[test]
    fn updates_like_computing_again(
        mut bytes in vec(any::<u8>(), 2..100), at: prop::sample::Index, new: u16,
    ) {
        let at = at.index(bytes.len() / 2) * 2;
        let before = finish(sum(&bytes));
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
        prop_assert!(same(update(before, old, new), finish(sum(&bytes))));
    }

    #[test]
    fn pseudo_header_of_ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) {
        let mut bytes = [source, destination].concat();
        bytes.extend([0, protocol]);
        bytes.extend(length.to_be_bytes());
        let sum = pseudo_header(&source, &destination, protocol, length.into());
        prop_assert!(same(fold(sum), slow_sum(&bytes)));
    }

    #[test]
    fn pseudo_header_of_ipv6(source: [u8; 16], destination: [u8; 16], protocol: u8, length: u32) {
        let mut bytes = [source, destination].concat();
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0, 0, protocol]);
        let sum = pseudo_header(&source, &destination, protocol, length);
        prop_assert!(same(fold(sum), slow_sum(&bytes)));
    }
}
