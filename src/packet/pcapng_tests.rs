//! Blocks written here, read back by a reader of the tests' own, which follows the draft's text.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// One block: type, body, options where the body ends at `fixed`.
fn blocks(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut blocks = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        assert_eq!(rest.len() % 4, 0, "blocks are aligned to 32 bits");
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let length = word(4) as usize;
        assert!((12..=rest.len()).contains(&length), "a length of {length}");
        assert_eq!(word(length - 4) as usize, length, "the length stands twice");
        blocks.push((word(0), rest[8..length - 4].to_vec()));
        rest = &rest[length..];
    }
    blocks
}

fn options(mut rest: &[u8]) -> BTreeMap<u16, Vec<u8>> {
    let mut found = BTreeMap::new();
    loop {
        let code = u16::from_le_bytes(rest[..2].try_into().unwrap());
        let length = usize::from(u16::from_le_bytes(rest[2..4].try_into().unwrap()));
        if code == 0 {
            assert_eq!((length, rest.len()), (0, 4), "opt_endofopt ends the block");
            return found;
        }
        assert!(found.insert(code, rest[4..4 + length].to_vec()).is_none());
        rest = &rest[4 + length.next_multiple_of(4)..];
    }
}

fn info(interface: u32, time_ns: u64, original_length: u32) -> PacketInfo {
    PacketInfo {
        interface,
        time_ns,
        original_length,
        direction: Direction::In,
        lost: 0,
    }
}

fn copy(bytes: &[u8]) -> impl FnOnce(&mut [u8]) -> Option<usize> + '_ {
    |out| {
        out.copy_from_slice(bytes);
        Some(bytes.len())
    }
}

#[test]
fn a_file_begins_with_its_section_and_interfaces() {
    let mut out = Vec::new();
    section_header("xtee 0.1.0", &mut out);
    let interface = Interface {
        name: "eth0",
        description: "tap:eth0",
        link_type: ETHERNET,
    };
    interface_description(&interface, &mut out);
    let blocks = blocks(&out);
    let (kind, body) = &blocks[0];
    assert_eq!(*kind, 0x0a0d_0d0a);
    assert_eq!(
        body[..16],
        [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]
    );
    assert_eq!(options(&body[16..])[&4], b"xtee 0.1.0");
    let (kind, body) = &blocks[1];
    assert_eq!((*kind, &body[..8]), (1, &[1, 0, 0, 0, 0, 0, 0, 0][..]));
    let options = options(&body[8..]);
    assert_eq!(options[&2], b"eth0");
    assert_eq!(options[&3], b"tap:eth0");
    assert_eq!(options[&9], [9], "nanoseconds");
}

#[test]
fn statistics_stand_in_their_options() {
    let mut out = Vec::new();
    let statistics = Statistics {
        interface: 1,
        started_ns: 0x1_0000_0002,
        now_ns: 0x3_0000_0004,
        received: 10,
        accepted: 7,
        dropped: 2,
        delivered: 5,
    };
    interface_statistics(&statistics, &mut out);
    let blocks = blocks(&out);
    let (kind, body) = &blocks[0];
    assert_eq!(*kind, 5);
    assert_eq!(body[..12], [1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    let options = options(&body[12..]);
    assert_eq!(options[&2], [1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(options[&3], [3, 0, 0, 0, 4, 0, 0, 0]);
    for (code, count) in [(4, 10u64), (5, 2), (6, 7), (8, 5)] {
        assert_eq!(options[&code], count.to_le_bytes(), "option {code}");
    }
}

#[test]
fn a_packet_that_does_not_fit_is_not_written() {
    let bytes = [7; 61];
    let needed = packet_length(61, false);
    let mut out = vec![0; needed];
    let all = write_packet(&mut out, &info(0, 1, 61), 61, copy(&bytes));
    assert_eq!(all, Some(needed));
    let short = &mut out[..needed - 1];
    assert_eq!(write_packet(short, &info(0, 1, 61), 61, copy(&bytes)), None);
    let fails = write_packet(&mut out, &info(0, 1, 61), 61, |_| None);
    assert_eq!(fails, None);
}

#[test]
fn whole_blocks_end_where_a_write_was_cut_off() {
    let mut out = vec![0; 4096];
    let mut at = 0;
    for size in [60, 61, 1500] {
        let bytes = vec![1; size];
        at += write_packet(&mut out[at..], &info(0, 1, 1), size, copy(&bytes)).unwrap();
    }
    let two = packet_length(60, false) + packet_length(61, false);
    assert_eq!(whole_blocks(&out[..at]), (3, at));
    for cut in [two, two + 3, two + 8, at - 1] {
        assert_eq!(whole_blocks(&out[..cut]), (2, two), "cut at {cut}");
    }
    assert_eq!(whole_blocks(&[]), (0, 0));
    // A length that is none must not turn in a circle.
    assert_eq!(whole_blocks(&[0; 64]), (0, 0));
}

proptest! {
    #[test]
    fn packets_are_read_back_as_they_were(
        packets in proptest::collection::vec(
            (
                proptest::collection::vec(any::<u8>(), 0..200),
                (0u32..4, any::<u64>(), any::<u32>(), any::<bool>(), prop_oneof![Just(0u64), any::<u64>()]),
            ),
            1..8,
        )
    ) {
        let mut out = vec![0xaa; 4096];
        let mut at = 0;
        for (bytes, (interface, time_ns, original_length, outgoing, lost)) in &packets {
            let info = PacketInfo {
                interface: *interface,
                time_ns: *time_ns,
                original_length: *original_length,
                direction: if *outgoing { Direction::Out } else { Direction::In },
                lost: *lost,
            };
            let written = write_packet(&mut out[at..], &info, bytes.len(), copy(bytes)).unwrap();
            prop_assert_eq!(written, packet_length(bytes.len(), *lost > 0));
            at += written;
        }
        prop_assert_eq!(whole_blocks(&out[..at]), (packets.len() as u64, at));
        for ((kind, body), (bytes, (interface, time_ns, original_length, outgoing, lost))) in
            blocks(&out[..at]).iter().zip(&packets)
        {
            prop_assert_eq!(*kind, 6);
            let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
            prop_assert_eq!(word(0), *interface);
            prop_assert_eq!(u64::from(word(4)) << 32 | u64::from(word(8)), *time_ns);
            prop_assert_eq!(word(12) as usize, bytes.len());
            prop_assert_eq!(word(16), *original_length);
            let end = 20 + bytes.len();
            prop_assert_eq!(&body[20..end], &bytes[..]);
            let padded = end.next_multiple_of(4);
            prop_assert!(body[end..padded].iter().all(|byte| *byte == 0));
            let options = options(&body[padded..]);
            let flags = if *outgoing { 2u32 } else { 1 };
            prop_assert_eq!(&options[&2], &flags.to_le_bytes());
            let told = options.get(&4).map(|lost| u64::from_le_bytes(lost[..].try_into().unwrap()));
            prop_assert_eq!(told, (*lost > 0).then_some(*lost));
        }
    }
}
