//! Super-packets of every shape against the reference.

use proptest::prelude::*;

use super::super::super::testing::{any_spec, Spec, TransportSpec};
use super::super::super::{wire_packets, Checksum, FrameMeta, Gso, VlanTag};
use super::{cut_all, unfinished};

/// What the kernel may tell about a super-packet.
#[derive(Clone, Copy, Debug)]
struct Told {
    kind: bool,
    checksum: u8,
    strip_tag: bool,
}

fn check(spec: &Spec, gso_size: usize, told: Told) -> Result<(), TestCaseError> {
    let none = matches!(spec.transport, TransportSpec::Udp { checksum: false });
    // Without a UDP checksum there is nothing to be finished.
    let built = if none {
        spec.build()
    } else {
        spec.build_unfinished()
    };
    let count = spec.payload.len().div_ceil(gso_size);
    let mut frame = built.bytes.clone();
    let mut meta = FrameMeta::plain(frame.len() as u32);
    meta.flow_hash = 0x1234_5678;
    meta.gso_size = gso_size as u16;
    meta.segments = count as u16;
    meta.gso = match (told.kind, &spec.transport) {
        (false, _) => Gso::Unknown,
        (true, TransportSpec::Tcp { .. }) => Gso::Tcp,
        (true, TransportSpec::Udp { .. }) => Gso::Udp,
    };
    meta.checksum = match told.checksum {
        0 => Checksum::Unknown,
        1 => Checksum::Finished,
        _ if none => Checksum::Finished,
        _ => unfinished(spec, &built),
    };
    if told.strip_tag {
        if let Some(&(protocol, tci)) = spec.tags.first() {
            meta.vlan = Some(VlanTag { tci, protocol });
            frame.drain(12..16);
            if let Checksum::Unfinished { start, .. } = &mut meta.checksum {
                *start -= 4;
            }
        }
    }
    prop_assert_eq!(wire_packets(&meta, &frame), Some(count as u32));
    let packets = cut_all(&meta, &frame).unwrap();
    prop_assert_eq!(packets.len(), count);
    for (index, packet) in packets.iter().enumerate() {
        let expected = spec.piece(index, count, gso_size).build();
        prop_assert_eq!(packet, &expected.bytes, "packet {} of {}", index, count);
    }
    Ok(())
}

fn any_told() -> impl Strategy<Value = Told> {
    (any::<bool>(), 0u8..3, any::<bool>()).prop_map(|(kind, checksum, strip_tag)| Told {
        kind,
        checksum,
        strip_tag,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn equal_the_reference(spec in any_spec(3000), size in 1usize..1500, told in any_told()) {
        // At least two packets, at most the 1100 that a batch holds.
        let gso_size = size.max(spec.payload.len() / 1000 + 1);
        prop_assume!(spec.payload.len() > gso_size);
        check(&spec, gso_size, told)?;
    }

    /// One packet that was never put together is on the wire as it is.
    #[test]
    fn single_packets_are_ordinary(spec in any_spec(500), more in 0usize..500) {
        let built = spec.build();
        let mut meta = FrameMeta::plain(built.bytes.len() as u32);
        meta.gso = Gso::Unknown;
        meta.gso_size = (spec.payload.len() + more).max(1) as u16;
        meta.checksum = Checksum::Finished;
        prop_assert_eq!(wire_packets(&meta, &built.bytes), Some(1));
        prop_assert_eq!(cut_all(&meta, &built.bytes).unwrap(), vec![built.bytes]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn large_ones_equal_the_reference(
        mut spec in any_spec(0),
        length in 20_000usize..64_500,
        gso_size in 536usize..9000,
        seed: u8,
        told in any_told(),
    ) {
        let byte = |i: usize| (i as u8).wrapping_mul(31) ^ seed ^ (i >> 8) as u8;
        spec.payload = (0..length).map(byte).collect();
        check(&spec, gso_size, told)?;
    }
}
