//! The queue between a worker and the writer: everything is accounted for, whatever the writer does.

use super::*;
use crate::packet::pcapng::whole_blocks;
use crate::packet::{Direction, FrameMeta, PacketRef};

/// Frames of given bytes, all captured at one time.
struct Made {
    frames: Vec<Vec<u8>>,
    meta: FrameMeta,
}

impl Frames for Made {
    fn bytes(&self, index: u32) -> &[u8] {
        self.frames.get(index as usize).map_or(&[], Vec::as_slice)
    }
    fn meta(&self, _: u32) -> FrameMeta {
        self.meta
    }
}

const SMALL: usize = 4096;

struct Bench {
    sender: CaptureSender,
    channel: Arc<Channel>,
    counters: TargetCounters,
    frames: Made,
    refs: Vec<PacketRef>,
}

impl Bench {
    /// A batch of so many frames of `size` bytes.
    fn new(count: u32, size: usize) -> Bench {
        let channel = Channel::new();
        let utc = UtcOffset::default();
        utc.set(1_000);
        Bench {
            sender: CaptureSender::new(channel.clone(), utc, 3, SMALL),
            channel,
            counters: TargetCounters::default(),
            frames: Made {
                frames: (0..count).map(|number| vec![number as u8; size]).collect(),
                meta: FrameMeta {
                    timestamp_ns: 500,
                    direction: Direction::Out,
                    ..FrameMeta::plain(size as u32)
                },
            },
            refs: (0..count)
                .map(|frame| PacketRef {
                    frame,
                    head: (0, 0),
                    tail: (0, size as u32),
                    part: crate::packet::Part::Whole,
                    flow_hash: 0,
                })
                .collect(),
        }
    }

    fn send(&mut self) {
        let list = PacketList::new(&[], &self.refs);
        self.sender.send(list, &self.frames, &self.counters);
        self.assert_balance();
    }

    fn assert_balance(&self) {
        let counters = &self.counters;
        assert_eq!(
            counters.offered.get(),
            counters.sent_packets.get() + counters.dropped.total() + counters.in_flight.get()
        );
    }
}

fn written(buffer: &Buffer) -> Outcome {
    Outcome {
        packets: buffer.packets(),
        bytes: buffer.bytes().len() as u64,
        reason: None,
    }
}

#[test]
fn packets_are_handed_over_when_idle_and_counted_when_they_come_back() {
    let mut bench = Bench::new(3, 60);
    bench.send();
    assert!(bench.channel.take().is_none(), "a batch may follow");
    assert_eq!(bench.counters.in_flight.get(), 3);
    bench.sender.idle(&bench.counters);
    let buffer = bench.channel.take().expect("what waited");
    assert_eq!(whole_blocks(buffer.bytes()), (3, buffer.bytes().len()));
    let word = |at: usize| u32::from_le_bytes(buffer.bytes()[at..at + 4].try_into().unwrap());
    assert_eq!(
        (word(8), word(16)),
        (3, 1_500),
        "interface and wall-utc time"
    );
    assert_eq!(bench.counters.sent_packets.get(), 0);
    let outcome = written(&buffer);
    bench.channel.give_back(buffer, outcome);
    bench.sender.idle(&bench.counters);
    bench.assert_balance();
    assert_eq!(bench.counters.sent_packets.get(), 3);
    assert_eq!(bench.counters.sent_bytes.get(), outcome.bytes);
    assert_eq!(bench.counters.in_flight.get(), 0);
}

#[test]
fn a_writer_that_does_not_come_costs_packets_beyond_its_buffers_only() {
    let mut bench = Bench::new(32, 1000);
    let per_buffer = (SMALL / packet_length(1000, false)) as u64;
    for _ in 0..20 {
        bench.send();
        bench.sender.idle(&bench.counters);
    }
    let room = per_buffer * BUFFERS as u64;
    assert_eq!(bench.counters.in_flight.get(), room);
    assert_eq!(bench.counters.dropped.get(Reason::WriterFull), 640 - room);
    // The first packet after the gap says how large it was.
    let buffer = bench.channel.take().expect("a full buffer");
    let outcome = written(&buffer);
    bench.channel.give_back(buffer, outcome);
    bench.refs.truncate(1);
    bench.send();
    while let Some(buffer) = bench.channel.take() {
        let outcome = written(&buffer);
        bench.channel.give_back(buffer, outcome);
    }
    bench.sender.idle(&bench.counters);
    let last = bench.channel.take().expect("the packet after the gap");
    let at = 8 + 20 + 1000 + 8;
    let option = &last.bytes()[at..at + 12];
    assert_eq!(option[..4], [4, 0, 8, 0], "epb_dropcount");
    assert_eq!(option[4..], (640 - room).to_le_bytes());
}

#[test]
fn a_busy_writer_gets_full_buffers_not_many_small_ones() {
    let mut bench = Bench::new(1, 60);
    bench.send();
    bench.sender.idle(&bench.counters);
    // The writer is still at the first: the following wait together …
    for _ in 0..5 {
        bench.send();
        bench.sender.idle(&bench.counters);
    }
    let first = bench.channel.take().expect("the first");
    assert_eq!(first.packets(), 1);
    assert!(bench.channel.take().is_none());
    bench.sender.idle(&bench.counters);
    assert_eq!(bench.channel.take().expect("the others").packets(), 5);
    // … but not for ever, while packets come without a pause.
    bench.send();
    bench.frames.meta.timestamp_ns += OLDEST_NS + 1;
    bench.send();
    assert_eq!(bench.channel.take().expect("old ones").packets(), 2);
}

#[test]
fn what_could_not_be_written_is_dropped_for_the_writers_reason() {
    let mut bench = Bench::new(4, 60);
    bench.send();
    bench.sender.idle(&bench.counters);
    let buffer = bench.channel.take().expect("a buffer");
    let outcome = Outcome {
        packets: 1,
        bytes: 100,
        reason: Some(Reason::WriteError),
    };
    bench.channel.give_back(buffer, outcome);
    bench.sender.idle(&bench.counters);
    bench.assert_balance();
    assert_eq!(bench.counters.sent_packets.get(), 1);
    assert_eq!(bench.counters.dropped.get(Reason::WriteError), 3);
}

#[test]
fn truncated_packets_say_how_long_they_were_and_pieces_of_super_packets_do_not() {
    let mut bench = Bench::new(1, 60);
    bench.frames.meta.wire_length = 1514;
    bench.send();
    bench.frames.meta.gso_size = 60;
    bench.send();
    bench.sender.idle(&bench.counters);
    let buffer = bench.channel.take().expect("a buffer");
    let word = |at: usize| u32::from_le_bytes(buffer.bytes()[at..at + 4].try_into().unwrap());
    assert_eq!((word(20), word(24)), (60, 1514));
    let second = packet_length(60, false);
    assert_eq!((word(second + 20), word(second + 24)), (60, 60));
}

#[test]
fn at_the_end_a_writer_is_waited_for_and_a_stuck_one_is_told() {
    let mut bench = Bench::new(5, 60);
    bench.send();
    let channel = bench.channel.clone();
    let writer = std::thread::spawn(move || loop {
        match channel.take() {
            Some(buffer) => {
                std::thread::sleep(Duration::from_millis(20));
                let outcome = written(&buffer);
                channel.give_back(buffer, outcome);
                break;
            }
            None => std::thread::yield_now(),
        }
    });
    bench.sender.drain(&bench.counters);
    writer.join().expect("the writer");
    bench.assert_balance();
    assert_eq!(bench.counters.sent_packets.get(), 5);
    assert!(!bench.channel.abandoned());

    // A writer that never comes back.
    bench.send();
    bench.sender.drain(&bench.counters);
    assert!(bench.channel.abandoned());
    bench.assert_balance();
    assert_eq!(bench.counters.dropped.get(Reason::Shutdown), 5);
    assert_eq!(bench.counters.in_flight.get(), 0);
}
