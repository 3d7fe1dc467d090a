//! Properties of any bytes at all.

use proptest::prelude::*;

use super::super::super::testing::any_spec;
use super::super::super::{PacketList, PacketRef, Part};
use super::super::{fragment, resegment, truncate, Pieces};

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..300),
        3 => any_spec(300).prop_map(|spec| spec.build().bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn nothing_panics_and_everything_fits(
        mut frame in any_frame(),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        outer in prop::collection::vec(any::<u8>(), 0..80),
        arena in prop::collection::vec(any::<u8>(), 0..100),
        head in (0u32..120, 0u16..600),
        tail in (0u32..120, 0u32..400),
        limit in 0usize..400,
    ) {
        for (at, value) in wrong {
            if !frame.is_empty() {
                let at = at.index(frame.len());
                frame[at] = value;
            }
        }
        let consistent = PacketRef {
            frame: 0,
            head: (0, 0),
            tail: (0, frame.len() as u32),
            flow_hash: 1,
            part: Part::Whole,
        };
        let any = PacketRef { head, tail, ..consistent };
        for packet in [consistent, any] {
            let refs = [packet];
            let batch = PacketList::new(&arena, &refs);
            let mut out = Pieces::new(20, 4000);
            let _ = resegment(batch, &packet, &frame, limit, &mut out);
            let _ = fragment(&outer, batch, &packet, &frame, limit, 9, &mut out);
            for piece in out.list(batch).refs() {
                prop_assert!(piece.length() <= limit);
            }
            prop_assert!(truncate(&packet, limit).length() <= limit);
        }
    }
}
