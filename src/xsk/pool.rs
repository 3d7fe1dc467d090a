//! Who has which free frames.
//!
//! Every frame has a home: the worker in whose part of the UMEM it lies. A [`Pool`] is one
//! worker's stock; frames of other workers that are put into it (a frame received by A, handed
//! over to B and completed there) go through a queue to their home, where the owner finds them
//! when its own stock runs out. No lock and no allocation after [`Pool`] was made. Knows frame
//! numbers only, no ring.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::frame::FreeFrame;
use super::umem::Shared;

/// The ways home, shared by all pools and ports of a UMEM.
#[derive(Debug)]
pub(super) struct Homes {
    frames_per_home: u32,
    homes: Box<[Home]>,
    /// Frames that a socket took along; see `port::Binding`.
    retired: AtomicU32,
}

#[derive(Debug)]
struct Home {
    /// Holds every frame of the home at once, so it is never full.
    returned: ArrayQueue<u32>,
    claimed: AtomicBool,
}

impl Homes {
    /// `homes` times `frames_per_home` frames, numbered from 0, all of them at home. Both are at
    /// least 1.
    pub(super) fn new(homes: u32, frames_per_home: u32) -> Self {
        let homes = (0..homes)
            .map(|home| {
                let returned = ArrayQueue::new(frames_per_home as usize);
                for index in home * frames_per_home..(home + 1) * frames_per_home {
                    let full = returned.push(index).is_err();
                    debug_assert!(!full);
                }
                Home {
                    returned,
                    claimed: AtomicBool::new(false),
                }
            })
            .collect();
        Self {
            frames_per_home,
            homes,
            retired: AtomicU32::new(0),
        }
    }

    /// Sends a frame home. The caller owned it and does not any more.
    #[inline]
    pub(super) fn send_home(&self, index: u32) {
        if let Some(home) = self.homes.get((index / self.frames_per_home) as usize) {
            // Cannot fail: the queue has a place for each frame of this home and a frame is
            // in one place only.
            let full = home.returned.push(index).is_err();
            debug_assert!(!full, "frame {index} came home twice");
        }
    }

    /// Books a frame that cannot come home before the UMEM ends.
    pub(super) fn retire(&self, count: u32) {
        self.retired.fetch_add(count, Ordering::Relaxed);
    }

    /// Frames in the return queues.
    pub(super) fn at_home(&self) -> u32 {
        self.homes
            .iter()
            .map(|home| home.returned.len() as u32)
            .sum()
    }

    pub(super) fn retired(&self) -> u32 {
        self.retired.load(Ordering::Relaxed)
    }

    pub(super) fn capacity(&self) -> u32 {
        self.frames_per_home * self.homes.len() as u32
    }
}

/// One worker's free frames. Made by [`Umem::pool`](super::Umem::pool), used by one thread.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    home: usize,
    first: u32,
    stock: Vec<u32>,
}

impl Pool {
    /// Claims the home, or `None` where there is no such home or another pool has it.
    pub(super) fn claim(shared: Arc<Shared>, home: usize) -> Option<Self> {
        let claimed = &shared.homes().homes.get(home)?.claimed;
        if claimed.swap(true, Ordering::AcqRel) {
            return None;
        }
        let frames = shared.homes().frames_per_home;
        let mut pool = Self {
            first: home as u32 * frames,
            stock: Vec::with_capacity(frames as usize),
            shared,
            home,
        };
        pool.collect();
        Some(pool)
    }

    /// Takes a free frame; `None` when all of this worker's frames are in use.
    #[inline]
    pub fn take(&mut self) -> Option<FreeFrame> {
        let index = self.take_index()?;
        // SAFETY: the stock holds numbers of frames that exist and that nobody else has; this
        // one has just left it. The pool keeps the memory mapped, and so does `Shared` after it,
        // as long as frames are missing.
        Some(FreeFrame::new(unsafe { self.shared.chunk(index, 0, 0) }))
    }

    /// Gives a frame back, to this pool or, if it is another worker's, to that one's.
    #[inline]
    pub fn put(&mut self, frame: FreeFrame) {
        let chunk = frame.into_chunk();
        // A frame of another UMEM is dropped, hence counted as lost: its number means nothing here.
        if let Some(index) = self.shared.index_of(&chunk) {
            chunk.release();
            self.put_index(index);
        }
    }

    /// Number of frames whose home this is.
    pub fn capacity(&self) -> u32 {
        self.shared.homes().frames_per_home
    }

    /// Frames that can be taken now.
    pub fn available(&self) -> u32 {
        let returned = self.returned().map_or(0, ArrayQueue::len);
        self.stock.len() as u32 + returned as u32
    }

    /// Frames of this home that are elsewhere: tokens in somebody's hands, or with the kernel.
    pub fn outstanding(&self) -> u32 {
        self.capacity() - self.available()
    }

    #[inline]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    #[inline]
    pub(super) fn take_index(&mut self) -> Option<u32> {
        if self.stock.is_empty() {
            self.collect();
        }
        self.stock.pop()
    }

    #[inline]
    pub(super) fn put_index(&mut self, index: u32) {
        let here = index.wrapping_sub(self.first) < self.shared.homes().frames_per_home;
        if here && self.stock.len() < self.stock.capacity() {
            self.stock.push(index);
        } else {
            self.shared.homes().send_home(index);
        }
    }

    fn returned(&self) -> Option<&ArrayQueue<u32>> {
        Some(&self.shared.homes().homes.get(self.home)?.returned)
    }

    #[cold]
    fn collect(&mut self) {
        let Some(home) = self.shared.homes().homes.get(self.home) else {
            return;
        };
        while self.stock.len() < self.stock.capacity() {
            match home.returned.pop() {
                Some(index) => self.stock.push(index),
                None => break,
            }
        }
    }
}

impl Drop for Pool {
    /// The stock goes to the return queue, so that [`Umem::balance`](super::Umem::balance) sees it
    /// and the home can be claimed anew.
    fn drop(&mut self) {
        let homes = self.shared.homes();
        for index in self.stock.drain(..) {
            homes.send_home(index);
        }
        if let Some(home) = homes.homes.get(self.home) {
            home.claimed.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::{lost_frames, ReceivedFrame, ToSendFrame};
    use super::super::umem::{Umem, UmemConfig};
    use super::*;

    const WORKERS: usize = 3;
    const FRAMES: u32 = 8;

    fn umem() -> Umem {
        Umem::detached(&UmemConfig {
            workers: WORKERS as u32,
            frames_per_worker: FRAMES,
            ..UmemConfig::default()
        })
        .expect("detached UMEM")
    }

    /// A frame in somebody's hand, in each of its states.
    enum Token {
        Free(FreeFrame),
        ToSend(ToSendFrame),
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Take {
            worker: usize,
        },
        Write {
            token: usize,
            length: usize,
        },
        Put {
            token: usize,
            worker: usize,
        },
        /// The pool goes and is claimed anew.
        Restart {
            worker: usize,
        },
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let worker = 0..WORKERS;
        prop_oneof![
            4 => worker.clone().prop_map(|worker| Operation::Take { worker }),
            2 => (any::<usize>(), 0usize..5000)
                .prop_map(|(token, length)| Operation::Write { token, length }),
            3 => (any::<usize>(), worker.clone())
                .prop_map(|(token, worker)| Operation::Put { token, worker }),
            1 => worker.prop_map(|worker| Operation::Restart { worker }),
        ]
    }

    fn base(token: &Token) -> usize {
        match token {
            Token::ToSend(frame) => frame.chunk().base().as_ptr() as usize,
            Token::Free(_) => 0,
        }
    }

    proptest! {
        /// Whatever is taken, written, handed over and put: no frame is lost, none is there twice,
        /// and what is written into one stays in it.
        #[test]
        fn frames_are_conserved(operations in prop::collection::vec(operation(), 0..300)) {
            let umem = umem();
            let mut pools: Vec<Option<Pool>> =
                (0..WORKERS).map(|worker| umem.pool(worker as u32)).collect();
            prop_assert!(pools.iter().all(Option::is_some));
            prop_assert!(umem.pool(0).is_none() && umem.pool(WORKERS as u32).is_none());
            let mut tokens: Vec<(Token, u8, usize)> = Vec::new();
            let mut mark = 0u8;
            for operation in operations {
                match operation {
                    Operation::Take { worker } => {
                        let pool = pools[worker].as_mut().expect("pool");
                        let available = pool.available();
                        match pool.take() {
                            Some(frame) => {
                                prop_assert_eq!(pool.available() + 1, available);
                                tokens.push((Token::Free(frame), 0, 0));
                            }
                            None => prop_assert_eq!(available, 0),
                        }
                    }
                    Operation::Write { token, length } if !tokens.is_empty() => {
                        let position = token % tokens.len();
                        let (token, old_mark, old_length) = tokens.swap_remove(position);
                        let free = match token {
                            Token::Free(frame) => frame,
                            Token::ToSend(frame) => {
                                prop_assert_eq!(frame.bytes(), vec![old_mark; old_length]);
                                frame.into_free()
                            }
                        };
                        prop_assert_eq!(free.capacity(), 4096);
                        mark = mark.wrapping_add(1);
                        let sent = free.write(|buffer| {
                            let end = length.min(buffer.len());
                            buffer[..end].fill(mark);
                            length
                        });
                        let length = length.min(4096);
                        prop_assert_eq!(sent.bytes().len(), length);
                        prop_assert!(tokens.iter().all(|(other, ..)| base(other) != sent.chunk().base().as_ptr() as usize));
                        tokens.push((Token::ToSend(sent), mark, length));
                    }
                    Operation::Put { token, worker } if !tokens.is_empty() => {
                        let position = token % tokens.len();
                        let (token, mark, length) = tokens.swap_remove(position);
                        let frame = match token {
                            Token::Free(frame) => frame,
                            Token::ToSend(frame) => {
                                prop_assert_eq!(frame.bytes(), vec![mark; length]);
                                frame.into_free()
                            }
                        };
                        pools[worker].as_mut().expect("pool").put(frame);
                    }
                    Operation::Restart { worker } => {
                        pools[worker] = None;
                        pools[worker] = umem.pool(worker as u32);
                        prop_assert!(pools[worker].is_some());
                    }
                    Operation::Write { .. } | Operation::Put { .. } => {}
                }
                let outstanding: u32 =
                    pools.iter().flatten().map(Pool::outstanding).sum();
                prop_assert_eq!(outstanding as usize, tokens.len());
            }
            for (token, ..) in tokens {
                let frame = match token {
                    Token::Free(frame) => frame,
                    Token::ToSend(frame) => frame.into_free(),
                };
                pools[0].as_mut().expect("pool").put(frame);
            }
            drop(pools);
            prop_assert!(umem.balance().all_home());
        }

        /// Moving the front and the end of a received frame, against a plain range.
        #[test]
        fn a_received_frame_is_a_range_of_its_chunk(
            steps in prop::collection::vec((0u8..3, 0usize..1500), 0..20),
        ) {
            let umem = umem();
            let mut pool = umem.pool(0).expect("pool");
            let index = pool.take_index().expect("frame");
            // SAFETY: the frame has just left the pool.
            let mut frame = ReceivedFrame::new(unsafe { umem.shared().chunk(index, 256, 1514) });
            let (mut start, mut end) = (256, 256 + 1514);
            for (step, bytes) in steps {
                match step {
                    0 => {
                        let possible = bytes <= start;
                        prop_assert_eq!(frame.prepend(bytes).map(|room| room.len()), possible.then_some(bytes));
                        start -= if possible { bytes } else { 0 };
                    }
                    1 => {
                        frame.trim_front(bytes);
                        start = end.min(start + bytes);
                    }
                    _ => {
                        frame.truncate(bytes);
                        end = end.min(start + bytes);
                    }
                }
                prop_assert_eq!(frame.headroom(), start);
                prop_assert_eq!(frame.bytes().len(), end - start);
                prop_assert_eq!(frame.bytes_mut().len(), end - start);
            }
            let first = frame.bytes().as_ptr();
            let offset = 10.min(end - start);
            let sent = frame.into_send(offset);
            prop_assert_eq!(sent.bytes().as_ptr() as usize, first as usize + offset);
            pool.put(sent.into_free());
            drop(pool);
            prop_assert!(umem.balance().all_home());
        }
    }

    #[test]
    fn frames_cross_threads_and_come_home() {
        let umem = umem();
        let rounds = 20_000;
        let (to, from) = crossbeam::channel::bounded::<FreeFrame>(FRAMES as usize);
        std::thread::scope(|scope| {
            let mut pool = umem.pool(0).expect("pool");
            scope.spawn(move || {
                let mut sent = 0;
                while sent < rounds {
                    match pool.take() {
                        Some(frame) => {
                            to.send(frame).expect("receiver");
                            sent += 1;
                        }
                        None => std::thread::yield_now(),
                    }
                }
            });
            let mut pool = umem.pool(1).expect("pool");
            scope.spawn(move || {
                for frame in from {
                    pool.put(frame);
                }
            });
        });
        assert!(umem.balance().all_home(), "{:?}", umem.balance());
    }

    #[test]
    fn a_token_that_is_dropped_shows() {
        let umem = umem();
        let mut pool = umem.pool(0).expect("pool");
        let before = lost_frames();
        drop(pool.take());
        assert_eq!(lost_frames(), before + 1);
        assert_eq!(pool.outstanding(), 1);
        drop(pool);
        assert!(!umem.balance().all_home());
        assert_eq!(umem.balance().home, WORKERS as u32 * FRAMES - 1);
    }

    #[test]
    fn a_token_outlives_its_umem() {
        let umem = umem();
        let mut pool = umem.pool(0).expect("pool");
        let frame = pool.take().expect("frame").write(|buffer| {
            buffer.fill(7);
            buffer.len()
        });
        drop((pool, umem));
        assert!(frame.bytes().iter().all(|byte| *byte == 7));
        // Its home is gone; not to be counted as lost in the test beside.
        frame.into_chunk().release();
    }

    #[test]
    fn a_frame_of_another_umem_is_not_taken() {
        let (ours, theirs) = (umem(), umem());
        let mut pool = ours.pool(0).expect("pool");
        let mut other = theirs.pool(0).expect("pool");
        let frame = other.take().expect("frame").write(|_| 0);
        assert_eq!(ours.shared().index_of(frame.chunk()), None);
        other.put(frame.into_free());
        let frame = pool.take().expect("frame");
        pool.put(frame);
        drop((pool, other));
        assert!(ours.balance().all_home() && theirs.balance().all_home());
    }

    #[test]
    fn impossible_sizes_are_refused_by_name() {
        let wrong = [
            (
                UmemConfig {
                    frame_size: 1024,
                    ..UmemConfig::default()
                },
                "frame_size is 1024",
            ),
            (
                UmemConfig {
                    workers: 0,
                    ..UmemConfig::default()
                },
                "frames is 0",
            ),
            (
                UmemConfig {
                    workers: 4096,
                    frames_per_worker: 1 << 20,
                    ..UmemConfig::default()
                },
                "frames is 4294967296",
            ),
            (
                UmemConfig {
                    fill_ring: 1000,
                    ..UmemConfig::default()
                },
                "fill_ring is 1000",
            ),
            (
                UmemConfig {
                    completion_ring: 1 << 20,
                    ..UmemConfig::default()
                },
                "completion_ring is 1048576",
            ),
        ];
        for (config, says) in wrong {
            let error = Umem::detached(&config).expect_err("impossible").to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
