//! Properties of ordinary frames, and of any bytes at all.

use proptest::prelude::*;

use super::super::super::headers::Headers;
use super::super::super::testing::{any_spec, slow_sum, TransportSpec};
use super::super::super::{wire_packets, Checksum, FrameMeta, Gso, VlanTag};
use super::super::CutError;
use super::{cut_all, unfinished};
use crate::reason::Reason;

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200),
        3 => any_spec(300).prop_map(|spec| spec.build().bytes),
    ]
}

fn any_checksum() -> impl Strategy<Value = Checksum> {
    prop_oneof![
        Just(Checksum::Unknown),
        Just(Checksum::Finished),
        (0u16..120, 0u16..30).prop_map(|(start, offset)| Checksum::Unfinished { start, offset }),
        any::<(u16, u16)>().prop_map(|(start, offset)| Checksum::Unfinished { start, offset }),
    ]
}

fn any_gso() -> impl Strategy<Value = (Gso, u16)> {
    let kind = prop_oneof![
        Just(Gso::None),
        Just(Gso::Tcp),
        Just(Gso::Udp),
        Just(Gso::Unknown)
    ];
    let size = prop_oneof![Just(0u16), 1u16..200, any::<u16>()];
    (kind, size)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn unfinished_ones_are_completed(spec in any_spec(600), told: bool, strip: bool) {
        prop_assume!(!matches!(spec.transport, TransportSpec::Udp { checksum: false }));
        let built = spec.build_unfinished();
        // A tunnel's checksum is right for the finished packet, as the kernel leaves it.
        let mut expected = spec.build().bytes;
        let mut frame = expected.clone();
        let at = built.transport + spec.checksum_offset();
        frame[at..at + 2].copy_from_slice(&built.bytes[at..at + 2]);
        let checksum = if told { unfinished(&spec, &built) } else { Checksum::Unknown };
        let mut meta = FrameMeta { checksum, ..FrameMeta::plain(frame.len() as u32) };
        if let (true, Some(&(protocol, tci))) = (strip, spec.tags.first()) {
            meta.vlan = Some(VlanTag { tci, protocol });
            frame.drain(12..16);
            if let Checksum::Unfinished { start, .. } = &mut meta.checksum {
                *start -= 4;
            }
        }
        // 0 and 0xffff are the same number; the kernel writes 0xffff.
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xff);
        }
        prop_assert_eq!(cut_all(&meta, &frame).unwrap(), vec![expected]);
    }

    /// What the kernel calls finished is not touched at all. Where it told nothing, what is not
    /// unfinished is not touched either; a corrupt field can look so once in 65 536 times.
    #[test]
    fn finished_ones_are_not_touched(
        spec in any_spec(200), place: prop::sample::Index, bits in 1u8.., corrupt: bool,
    ) {
        let mut frame = spec.build().bytes;
        if corrupt {
            let at = place.index(frame.len());
            frame[at] ^= bits;
        }
        let mut meta = FrameMeta::plain(frame.len() as u32);
        let packets = cut_all(&meta, &frame).unwrap();
        if packets[0] != frame {
            let ip = Headers::parse(&frame).and_then(|headers| headers.ip);
            let covered = ip.map_or(0, |ip| ip.transport);
            prop_assert!(corrupt && slow_sum(&frame[covered..]) != 0xffff);
        }
        meta.checksum = Checksum::Finished;
        prop_assert_eq!(cut_all(&meta, &frame).unwrap(), vec![frame]);
    }

    /// Whatever the bytes and whatever is said about them: no panic, and what comes out is counted
    /// the same by both functions.
    #[test]
    fn any_bytes_do_no_harm(
        mut frame in any_frame(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep: prop::sample::Index,
        missing in prop_oneof![4 => Just(0u32), 1 => 0u32..100],
        (gso, gso_size) in any_gso(),
        checksum in any_checksum(),
        tagged: bool,
    ) {
        for (place, byte) in changes {
            if !frame.is_empty() {
                let at = place.index(frame.len());
                frame[at] = byte;
            }
        }
        if missing > 0 {
            frame.truncate(keep.index(frame.len() + 1));
        }
        let tag = if tagged { 4 } else { 0 };
        let mut meta = FrameMeta::plain(frame.len() as u32 + missing + tag);
        meta.gso = gso;
        meta.gso_size = gso_size;
        meta.checksum = checksum;
        meta.vlan = tagged.then_some(VlanTag { tci: 5, protocol: 0x8100 });
        match cut_all(&meta, &frame) {
            Ok(packets) => {
                prop_assert_eq!(wire_packets(&meta, &frame), Some(packets.len() as u32));
                if gso_size == 0 {
                    let tag = if frame.len() < 14 { 0 } else { tag as usize };
                    prop_assert_eq!(packets[0].len(), frame.len() + tag);
                }
            }
            Err(CutError::Drop(reason)) => {
                prop_assert!(gso_size > 0);
                prop_assert!(matches!(reason, Reason::Malformed | Reason::SuperPacket));
            }
            Err(CutError::NoRoom) => prop_assert!(false, "an empty batch has room or never will"),
        }
    }
}
