//! A span's worker: its queues in, every target out.
//!
//! NICs hash asymmetrically, so the two directions of a flow arrive on different queues, while a flow
//! has one worker: a frame that belongs to another worker is handed over, by a bounded lock-free queue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::breaker::{Look, Watch};
use super::counters::SourceCounters;
use super::outputs::{Outputs, SinkOutput, SpanFrames};
use super::stop::Stop;
use super::tap::DRAIN;
use super::BATCH;
use crate::packet::{cut, flow, FrameMeta, Packets};
use crate::reason::Reason;
use crate::source::sleep::{number, PollSet};
use crate::source::Frames as _;
use crate::xsk::{ReceivedFrame, RxPort};

/// Frames on their way from one worker to another.
pub type Inbox = Arc<ArrayQueue<ReceivedFrame>>;

/// Rounds of a millisecond in which nothing arrived, after which the queues of a detached source are
/// taken to be empty: a poll of the driver that began before the detach has ended by then.
const QUIET_ROUNDS: u32 = 5;

/// A worker's announcement that it may hand frames over, counted among those of its source. Taken back
/// when it is dropped at the latest: nobody waits for a worker that never ran, or that panicked.
#[derive(Debug)]
pub struct HandingOver {
    workers: Arc<AtomicUsize>,
    over: bool,
}

impl HandingOver {
    /// One more worker of the source that counts in `workers`. To be made before any of them runs.
    #[must_use]
    pub fn new(workers: &Arc<AtomicUsize>) -> HandingOver {
        workers.fetch_add(1, Ordering::Relaxed);
        HandingOver {
            workers: workers.clone(),
            over: false,
        }
    }

    fn anybody(&self) -> bool {
        self.workers.load(Ordering::Acquire) > 0
    }

    fn end(&mut self) {
        if !self.over {
            self.over = true;
            self.workers.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for HandingOver {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the XDP program says of a frame, in the bytes before it: `struct xtee_note` of `bpf/abi.h`.
#[derive(Clone, Copy, Debug, Default)]
struct Note {
    snaplen: u32,
    wire_length: u32,
}

impl Note {
    const LENGTH: usize = 8;

    /// Reads the note before the frame, which stays as it is.
    fn of(frame: &mut ReceivedFrame) -> Note {
        let Some(bytes) = frame.prepend(Self::LENGTH) else {
            return Note::default();
        };
        let word = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_ne_bytes)
        };
        let note = Note {
            snaplen: word(0),
            wire_length: word(4),
        };
        frame.trim_front(Self::LENGTH);
        note
    }
}

/// A span's worker before it runs.
#[derive(Debug)]
pub struct SpanWorker {
    /// Its number among the source's workers.
    pub index: usize,
    /// Its queues.
    pub ports: Vec<RxPort>,
    /// The inboxes of all workers of the source, its own among them.
    pub inboxes: Vec<Inbox>,
    /// Its announcement that it may hand frames over.
    pub handing_over: HandingOver,
    /// Bytes that the XDP program makes in front of each frame.
    pub room: usize,
    /// Whether the program puts a note in front of each frame: a rule has a snaplen.
    pub notes: bool,
    /// Its targets.
    pub outputs: Outputs,
    /// Its look-out for our own copies.
    pub watch: Watch,
    /// Its counters.
    pub counters: Arc<SourceCounters>,
    /// When to end.
    pub stop: Stop,
    /// Reads the time for the breaker: nanoseconds of CLOCK_MONOTONIC.
    pub clock: fn() -> u64,
}

impl SpanWorker {
    /// Runs until it is asked to stop and its queues and inbox are empty. Returns what outlives the
    /// interface: the targets that copies do not travel to.
    pub fn run(mut self) -> Vec<SinkOutput> {
        let mut packets = Packets::default();
        let mut poll = PollSet::new(self.ports.iter().map(number));
        let mut arrived = Vec::with_capacity(BATCH);
        let mut mine = SpanFrames {
            list: Vec::with_capacity(2 * BATCH),
            room: self.room,
            received_ns: 0,
            wire_lengths: Vec::with_capacity(2 * BATCH),
        };
        let mut quiet = 0;
        loop {
            // Asked before the look into the inbox: once nobody hands over, what is there is all.
            let alone = !self.handing_over.anybody();
            self.receive(&mut arrived);
            quiet = if arrived.is_empty() { quiet + 1 } else { 0 };
            self.sort(&mut arrived, &mut mine);
            self.take_inbox(&mut mine);
            if !mine.list.is_empty() {
                self.process(&mut packets, &mut mine);
                self.refill();
                continue;
            }
            self.outputs.idle();
            self.refill();
            if !self.stop.asked() {
                quiet = 0;
            } else if alone {
                break;
            } else if quiet >= QUIET_ROUNDS {
                self.handing_over.end();
            }
            self.counters.sleeps.add(1);
            poll.wait(1);
        }
        self.outputs.drain(DRAIN);
        self.counters.ended.set(1);
        self.outputs.into_sinks()
    }

    fn receive(&mut self, arrived: &mut Vec<ReceivedFrame>) {
        for port in &mut self.ports {
            port.receive(arrived);
            self.counters.dropped.add(Reason::Ring, port.take_lost());
        }
    }

    /// Keeps the frames of its own flows, hands over the others.
    fn sort(&mut self, arrived: &mut Vec<ReceivedFrame>, mine: &mut SpanFrames) {
        let workers = self.inboxes.len() as u64;
        if workers == 1 {
            mine.list.append(arrived);
            return;
        }
        for frame in arrived.drain(..) {
            let hash = flow::hash_frame(frame.bytes().get(self.room..).unwrap_or(&[]));
            let owner = ((u64::from(hash) * workers) >> 32) as usize;
            if owner == self.index {
                mine.list.push(frame);
                continue;
            }
            self.counters.handed_over.add(1);
            if let Err(frame) = self.inboxes[owner].push(frame) {
                self.counters.dropped.add(Reason::Ring, 1);
                if let Some(pool) = self.outputs.pool() {
                    pool.put(frame.into_free());
                }
            }
        }
    }

    fn take_inbox(&mut self, mine: &mut SpanFrames) {
        while mine.list.len() < mine.list.capacity() {
            let Some(frame) = self.inboxes[self.index].pop() else {
                break;
            };
            mine.list.push(frame);
        }
    }

    fn process(&mut self, packets: &mut Packets, mine: &mut SpanFrames) {
        let now = (self.clock)();
        mine.received_ns = now;
        mine.wire_lengths.clear();
        packets.clear();
        if let Some(reason) = self.outputs.shed() {
            self.shed(reason, mine);
            return;
        }
        let mut index = 0;
        while index < mine.list.len() {
            let note = match self.notes {
                true => Note::of(&mut mine.list[index]),
                false => Note::default(),
            };
            let frame = mine.bytes(index as u32);
            let meta = FrameMeta {
                snaplen: note.snaplen,
                wire_length: note.wire_length.max(frame.len() as u32),
                ..mine.meta(index as u32)
            };
            let reason = match self.watch.look(frame, now) {
                Look::Clear => match cut(&meta, frame, index as u32, packets) {
                    Ok(_) => None,
                    // A batch of ordinary frames always fits an empty list.
                    Err(_) => Some(Reason::Malformed),
                },
                Look::OwnCopy => {
                    self.counters.own_signatures.add(1);
                    Some(Reason::LoopBreaker)
                }
                Look::OwnError | Look::Open => Some(Reason::LoopBreaker),
            };
            let Some(reason) = reason else {
                if self.notes {
                    mine.wire_lengths.push(note.wire_length);
                }
                if note.snaplen != 0 {
                    // What AF_XDP sends in place is the frame, not the packet that was cut from it.
                    mine.list[index].truncate(self.room + note.snaplen as usize);
                }
                self.counters.frames.add(1);
                self.counters.captured.add(1);
                index += 1;
                continue;
            };
            self.counters.dropped.add(reason, 1);
            let frame = mine.list.remove(index);
            if let Some(pool) = self.outputs.pool() {
                pool.put(frame.into_free());
            }
        }
        self.counters.sliced.add(packets.sliced());
        self.outputs.send_span(packets.list(), mine);
    }

    /// Production goes first: the frames go home as they are.
    fn shed(&mut self, reason: Reason, mine: &mut SpanFrames) {
        let Some(pool) = self.outputs.pool() else {
            return;
        };
        for frame in mine.list.drain(..) {
            let length = frame.bytes().len().saturating_sub(mine.room);
            self.counters.shed_bytes.add(length as u64);
            self.counters.dropped.add(reason, 1);
            pool.put(frame.into_free());
        }
    }

    fn refill(&mut self) {
        let Some(pool) = self.outputs.pool() else {
            return;
        };
        for port in &mut self.ports {
            port.refill(pool);
        }
    }
}
