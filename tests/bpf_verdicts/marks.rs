//! Marks: seen at egress, learned for the flow, followed at ingress.

use xtee::mirror::rules::Rule;
use xtee::packet::Direction::{self, In, Out};

use crate::bpf_run::{Context, TapBench};
use crate::packets::{ethernet, tcp4, tcp6, udp4, V4};
use crate::require_root;
use crate::{mirror, skip};

const A: &str = "198.51.100.1";
const B: &str = "198.51.100.2";

fn marked(value: u32, mask: u32) -> Rule {
    Rule {
        mark: Some((value, mask)),
        ..mirror()
    }
}

fn rule(tap: &mut TapBench, direction: Direction, mark: u32, frame: &[u8]) -> Option<u8> {
    let context = Context {
        mark,
        ..Context::default()
    };
    tap.run_with(direction, frame, context).rule.expect("seen")
}

#[test]
fn ingress_follows_what_egress_showed() {
    require_root!();
    for (out, back, other) in [
        (
            tcp4(A, 40000, B, 443),
            tcp4(B, 443, A, 40000),
            tcp4(B, 443, A, 40001),
        ),
        (
            tcp6("2001:db8::1", 40000, "2001:db8::2", 443),
            tcp6("2001:db8::2", 443, "2001:db8::1", 40000),
            { tcp6("2001:db8::2", 443, "2001:db8::1", 40001) },
        ),
        // The larger address or port first, and the same address at both ends.
        (
            tcp4(B, 40000, A, 443),
            tcp4(A, 443, B, 40000),
            tcp4(A, 443, B, 40001),
        ),
        (
            tcp4(A, 40000, A, 443),
            tcp4(A, 443, A, 40000),
            tcp4(A, 443, A, 40001),
        ),
        (
            V4::new(A, B, 1).frame(&[8; 8]),
            V4::new(B, A, 1).frame(&[0; 8]),
            V4::new(B, A, 47).frame(&[0; 8]),
        ),
    ] {
        let mut tap = TapBench::new();
        tap.rules(&[marked(1, 1)], None);
        assert_eq!(rule(&mut tap, In, 0, &back), None, "nothing learned yet");
        assert_eq!(rule(&mut tap, Out, 0, &out), None, "no mark");
        assert_eq!(
            rule(&mut tap, In, 0, &back),
            None,
            "nothing learned from no mark"
        );
        assert_eq!(rule(&mut tap, Out, 1, &out), Some(0));
        assert_eq!(
            rule(&mut tap, In, 0, &back),
            Some(0),
            "from the next packet on"
        );
        assert_eq!(
            rule(&mut tap, In, 0, &out),
            Some(0),
            "the key has no direction"
        );
        assert_eq!(rule(&mut tap, In, 0, &other), None, "another flow");
        assert_eq!(
            rule(&mut tap, Out, 0, &out),
            None,
            "at egress the mark itself counts"
        );
    }
}

#[test]
fn the_mask_decides_which_marks_count() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(
        &[
            marked(0x0100_0000, 0xff00_0000),
            marked(0x20, 0xf0),
            marked(0, 0),
        ],
        None,
    );
    let frame = tcp4(A, 1, B, 2);
    for (mark, expected) in [
        (0x0100_0000, 0),
        (0x01ff_ffff, 0),
        (0x0000_0020, 1),
        (0x002f, 1),
        (0x0200_002f, 1),
        (0x0100_0020, 0),
        (0x0200_0000, 2),
        (0, 2),
        (u32::MAX, 2),
    ] {
        assert_eq!(
            rule(&mut tap, Out, mark, &frame),
            Some(expected),
            "{mark:#x}"
        );
    }
}

#[test]
fn each_byte_of_the_mark_is_looked_at() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[marked(0x1234_5678, u32::MAX)], None);
    let frame = tcp4(A, 1, B, 2);
    assert_eq!(rule(&mut tap, Out, 0x1234_5678, &frame), Some(0));
    for bit in 0..32 {
        assert_eq!(
            rule(&mut tap, Out, 0x1234_5678 ^ 1 << bit, &frame),
            None,
            "bit {bit}"
        );
    }
}

/// Marks that no rule asks for fill no table, and a mark that changes is learned anew.
#[test]
fn only_marks_that_a_rule_asks_for_are_learned() {
    require_root!();
    let mut tap = TapBench::new();
    let mut one_way = marked(2, 2);
    one_way.direction = Some(Out);
    tap.rules(&[marked(1, 0xff), one_way, marked(3, 0xff), skip()], None);
    let (out, back) = (udp4(A, 1, B, 2, b""), udp4(B, 2, A, 1, b""));
    assert_eq!(rule(&mut tap, Out, 8, &out), Some(3));
    assert_eq!(rule(&mut tap, In, 0, &back), Some(3));
    assert_eq!(rule(&mut tap, Out, 1, &out), Some(0));
    assert_eq!(rule(&mut tap, In, 0, &back), Some(0));
    assert_eq!(rule(&mut tap, Out, 3, &out), Some(1));
    assert_eq!(
        rule(&mut tap, In, 0, &back),
        Some(2),
        "the newer mark, rules for ingress"
    );
}

#[test]
fn a_mark_at_ingress_counts_itself() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[marked(1, 0xff)], None);
    let (out, back) = (udp4(A, 1, B, 2, b""), udp4(B, 2, A, 1, b""));
    assert_eq!(rule(&mut tap, In, 1, &back), Some(0));
    assert_eq!(
        rule(&mut tap, In, 0, &back),
        None,
        "ingress teaches nothing"
    );
    assert_eq!(rule(&mut tap, Out, 1, &out), Some(0));
    assert_eq!(rule(&mut tap, In, 2, &back), None, "its own mark wins");
}

#[test]
fn what_is_not_ip_has_its_own_mark_alone() {
    require_root!();
    let mut tap = TapBench::new();
    tap.rules(&[marked(1, 0xff)], None);
    let arp = ethernet(0x0806, &[0; 28]);
    assert_eq!(rule(&mut tap, Out, 1, &arp), Some(0));
    assert_eq!(rule(&mut tap, In, 0, &arp), None);
    assert_eq!(rule(&mut tap, In, 1, &arp), Some(0));
}
