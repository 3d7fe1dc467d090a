use super::*;
use crate::packet::Part;

/// The bytes of a message as the kernel would gather them, and in how many parts.
fn gather(batch: &Batch, message: usize) -> (Vec<u8>, usize) {
    let shape = batch.shapes[message];
    let parts = &batch.parts[shape.first_part..shape.first_part + shape.parts];
    let mut bytes = Vec::new();
    for part in parts {
        // SAFETY: the test keeps what it lent, and the batch has not been cleared.
        bytes.extend_from_slice(unsafe {
            std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len)
        });
    }
    assert_eq!(bytes.len() as u64, batch.bytes(message));
    (bytes, parts.len())
}

#[test]
fn a_run_of_short_packets_is_one_part() {
    let mut batch = Batch::new(64);
    let mut expected = Vec::new();
    batch.begin();
    for number in 0..60 {
        let tail = [number; 50];
        batch.packet(Part::Whole, [&[1, 2], &[number, 3]], &tail);
        expected.extend_from_slice(&[1, 2, number, 3]);
        expected.extend_from_slice(&tail);
    }
    assert_eq!(gather(&batch, 0), (expected, 1));
    assert_eq!(batch.packets(0), 60);
}

#[test]
fn a_long_tail_is_lent_and_what_surrounds_it_keeps_its_place() {
    let long = [7; SHORT_TAIL + 1];
    let mut batch = Batch::new(8);
    batch.begin();
    batch.packet(Part::Whole, [&[1], &[2]], &[3]);
    batch.packet(Part::Whole, [&[4], &[]], &long);
    batch.packet(Part::Whole, [&[5], &[6]], &[]);
    let expected: Vec<u8> = [&[1, 2, 3, 4], long.as_slice(), &[5, 6]].concat();
    // 1 2 3 4 are one part: the second packet's front was copied right behind the first packet.
    assert_eq!(gather(&batch, 0), (expected, 3));
    assert_eq!(batch.parts[1].iov_base.cast_const().cast(), long.as_ptr());
}

#[test]
fn a_message_never_begins_in_the_part_of_another() {
    let mut batch = Batch::new(8);
    for number in 0..3 {
        batch.begin();
        batch.packet(Part::Whole, [&[number], &[]], &[number; 9]);
    }
    for number in 0..3 {
        assert_eq!(gather(&batch, usize::from(number)), (vec![number; 10], 1));
    }
}

#[test]
fn room_ends_before_the_longest_packet_would_not_fit_and_clear_gives_it_back() {
    let mut batch = Batch::new(16);
    let front = [9; MOST_COPIED - SHORT_TAIL];
    let tail = [8; SHORT_TAIL];
    for _ in 0..2 {
        let mut packets = 0;
        batch.begin();
        while batch.last_has_room() {
            batch.packet(Part::Whole, [&front, &[]], &tail);
            packets += 1;
        }
        let packet = [front.as_slice(), &tail].concat();
        assert!(packets > 1);
        assert_eq!(gather(&batch, 0), (packet.repeat(packets), 1));
        assert!(!batch.has_room());
        batch.clear();
        assert!(batch.has_room());
    }
}
