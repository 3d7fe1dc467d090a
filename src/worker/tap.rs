//! A tap's worker: one ring in, every target out.

use std::sync::Arc;
use std::time::Duration;

use super::breaker::{Look, Watch};
use super::counters::SourceCounters;
use super::outputs::Outputs;
use super::stop::Stop;
use crate::packet::{cut, CutError, Packets};
use crate::reason::Reason;
use crate::source::ring::Ring;
use crate::source::sleep::{PollSet, Sleeper};
use crate::source::Frames;

/// A nap while traffic comes: the kernel program is not asked to end it, for a wake-up costs production ten
/// times what the copy costs. What waits meanwhile is a batch, and batches are cheaper.
const NAP: Duration = Duration::from_micros(50);
/// Naps without a frame, about 10 ms, after which the worker asks to be woken and sleeps longer.
const NAPS: u32 = 100;

/// How long a worker waits for completions when it ends.
pub(super) const DRAIN: Duration = Duration::from_millis(500);

/// A tap's worker before it runs.
#[derive(Debug)]
pub struct TapWorker {
    /// Its ring.
    pub ring: Ring,
    /// Its sleep flag.
    pub sleeper: Sleeper,
    /// Its targets.
    pub outputs: Outputs,
    /// Its look-out for our own copies.
    pub watch: Watch,
    /// Its counters.
    pub counters: Arc<SourceCounters>,
    /// When to end.
    pub stop: Stop,
}

impl TapWorker {
    /// Runs until it is asked to stop and its ring is empty.
    pub fn run(mut self) {
        let mut packets = Packets::default();
        let mut poll = PollSet::new([self.ring.descriptor()]);
        let mut idle = 0;
        loop {
            if self.ring.gather() > 0 {
                self.process(&mut packets);
                self.ring.release();
                idle = 0;
                continue;
            }
            self.ring.release();
            self.outputs.idle();
            if !self.ring.is_empty() {
                // A record is being written on another CPU.
                continue;
            }
            if self.stop.asked() {
                break;
            }
            if idle < NAPS {
                idle += 1;
                std::thread::sleep(NAP);
            } else if self.sleeper.announce(|| self.ring.is_empty()) {
                self.counters.sleeps.add(1);
                // Bounded: should a wake-up be lost, no packet waits longer than this.
                poll.wait(1);
                self.sleeper.awake();
            }
        }
        self.outputs.drain(DRAIN);
        self.counters.ended.set(1);
    }

    /// Cuts the batch into packets and sends them, in as many rounds as the packets need.
    fn process(&mut self, packets: &mut Packets) {
        let mut index = 0;
        packets.clear();
        if let Some(reason) = self.outputs.shed() {
            self.shed(reason);
            return;
        }
        while let Some(meta) = self.ring.meta(index) {
            let frame = self.ring.bytes(index);
            let count = u64::from(meta.segments);
            match self.watch.look(frame, meta.timestamp_ns) {
                Look::Clear => {}
                Look::OwnCopy => {
                    self.counters.own_signatures.add(1);
                    self.counters.dropped.add(Reason::LoopBreaker, count);
                    index += 1;
                    continue;
                }
                Look::OwnError | Look::Open => {
                    self.counters.dropped.add(Reason::LoopBreaker, count);
                    index += 1;
                    continue;
                }
            }
            match cut(meta, frame, index, packets) {
                Ok(cut) => {
                    self.counters.frames.add(1);
                    let cut = u64::from(cut);
                    self.counters.captured.add(cut);
                    if cut > count {
                        self.counters.recounted_more.add(cut - count);
                    } else if cut < count {
                        self.counters.recounted_fewer.add(count - cut);
                    }
                }
                Err(CutError::NoRoom) => {
                    self.send(packets);
                    packets.clear();
                    continue;
                }
                Err(CutError::Drop(reason)) => self.counters.dropped.add(reason, count),
            }
            index += 1;
        }
        self.send(packets);
    }

    fn send(&mut self, packets: &Packets) {
        self.counters.sliced.add(packets.sliced());
        self.outputs.send(packets.list(), &self.ring);
    }
    /// Production goes first: the batch is counted and nothing else.
    fn shed(&mut self, reason: Reason) {
        let mut index = 0;
        while let Some(meta) = self.ring.meta(index) {
            self.counters.dropped.add(reason, u64::from(meta.segments));
            self.counters.shed_bytes.add(u64::from(meta.wire_length));
            index += 1;
        }
    }
}
