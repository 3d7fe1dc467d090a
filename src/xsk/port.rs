//! A bound queue as the worker sees it: receive, refill, push, kick, reclaim.
//!
//! Opening and dropping a port are `control`'s and may block; all else is the loop's and neither
//! blocks, allocates nor spins. A full ring is told to the caller, who drops and counts.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use super::error::XskError;
use super::frame::{Chunk, ReceivedFrame, ToSendFrame};
use super::gather::{Gatherer, Part};
use super::held::Held;
use super::pool::Pool;
use super::socket::{
    open, wake_receive, wake_transmit, Binding, Obtained, Opened, PortConfig, Use,
};
use super::stats::Statistics;
use super::umem::{Shared, Umem};

/// Descriptors moved between a ring and us at a time.
const BATCH: usize = 64;

/// `TX_BATCH_SIZE` of the kernel: what one call sends at least in copy mode before it wants to be
/// called again (see `XDP_MAX_TX_SKB_BUDGET`).
const KERNEL_TX_BATCH: u32 = 32;

/// The shortest packet a device takes: an Ethernet header.
const SHORTEST: usize = 14;

/// The receiving half of a queue: fill ring and rx ring.
///
/// Its socket goes into the XSKMAP by [`AsRawFd`]; [`open`](Self::open) has stocked the fill ring
/// before that can happen. For `poll(2)` the same descriptor serves (POLLIN).
#[derive(Debug)]
pub struct RxPort {
    // Before `binding`: the rings must be gone when the binding sends the frames home.
    rx: RxQueue,
    fill: FillQueue,
    held: Held,
    stock: u32,
    scratch: Box<[FrameDesc]>,
    gatherer: Gatherer,
    /// Frames whose bytes were gathered: the next that the kernel gets.
    spare: Vec<u32>,
    lost: u64,
    fd: RawFd,
    strays: u64,
    obtained: Obtained,
    binding: Arc<Binding>,
}

impl RxPort {
    /// Binds the queue and gives the kernel up to `stock` frames of `pool`, which is also the
    /// number that [`refill`](Self::refill) keeps up (at most the fill ring).
    pub fn open(
        umem: &Umem,
        config: &PortConfig,
        pool: &mut Pool,
        stock: u32,
    ) -> Result<Self, XskError> {
        let opened = open(umem.shared(), config, Use::Receive)?;
        let mut port = split(opened, stock, 0).0;
        port.refill(pool);
        Ok(port)
    }

    /// What the kernel gave.
    pub fn obtained(&self) -> &Obtained {
        &self.obtained
    }

    /// Appends received frames to `frames`, within its capacity, one batch (64) at most, and
    /// returns their number. With busy polling an empty ring makes the kernel poll the NIC first.
    #[inline]
    pub fn receive(&mut self, frames: &mut Vec<ReceivedFrame>) -> usize {
        let spared = self.spare.capacity() - self.spare.len();
        let room = frames.capacity() - frames.len();
        let wanted = self.scratch.len().min(room).min(spared);
        let mut count = self.consume(wanted);
        if count == 0 && self.obtained.busy_poll && wanted > 0 {
            wake_receive(self.fd);
            count = self.consume(wanted);
        }
        let mut appended = 0;
        for descriptor in &self.scratch[..count] {
            let Some(chunk) = received(self.binding.shared(), &mut self.held, descriptor) else {
                self.strays += 1;
                continue;
            };
            let more = descriptor.has_more_frames();
            if !more && !self.gatherer.is_open() {
                frames.push(ReceivedFrame::new(chunk));
                appended += 1;
                continue;
            }
            match self.gatherer.add(chunk.bytes(), !more) {
                Part::Last(gathered) => {
                    frames.push(ReceivedFrame::with_gathered(chunk, gathered));
                    appended += 1;
                    continue;
                }
                Part::Taken => {}
                Part::Lost => self.lost += 1,
            }
            if let Some(index) = self.binding.shared().index_of(&chunk) {
                self.spare.push(index);
            }
            chunk.release();
        }
        appended
    }

    /// Packets of several frames that were lost since the last call, because too many were under way.
    #[inline]
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Gives the kernel new frames up to the stock, and wakes it when it waits for them. Returns
    /// their number. `pool` must be of this UMEM.
    #[inline]
    pub fn refill(&mut self, pool: &mut Pool) -> usize {
        let shared = self.binding.shared();
        if !std::ptr::eq(shared, Arc::as_ptr(pool.shared())) {
            return 0;
        }
        let mut total = 0;
        while self.held.count() < self.stock {
            let missing = (self.stock - self.held.count()).min(BATCH as u32);
            let room = self.fill.nb_free(missing).min(missing);
            let mut count = 0;
            while count < room as usize {
                let Some(index) = self.spare.pop().or_else(|| pool.take_index()) else {
                    break;
                };
                self.scratch[count] = shared.describe(index, 0, 0);
                self.held.insert(index);
                count += 1;
            }
            // SAFETY: the frames are of this UMEM and have just left the pool, so they are nobody
            // else's; they are booked in `held`.
            let produced = unsafe { self.fill.produce(&self.scratch[..count]) };
            // All or nothing, and there is room for all: only we produce.
            debug_assert_eq!(produced, count);
            total += produced;
            if count < BATCH {
                break;
            }
        }
        if self.fill.needs_wakeup() {
            wake_receive(self.fd);
        }
        total
    }

    /// Frames on the fill ring, in the driver or on the rx ring.
    pub fn with_kernel(&self) -> u32 {
        self.held.count()
    }

    /// Frames the kernel returned that it did not have, refused. A driver's bug if not 0.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// The kernel's counters of the socket.
    pub fn statistics(&self) -> std::io::Result<Statistics> {
        Statistics::read(self.rx.fd())
    }

    #[inline]
    fn consume(&mut self, wanted: usize) -> usize {
        // SAFETY: the scratch descriptors carry nothing; they are overwritten by those of frames
        // of this UMEM.
        unsafe { self.rx.consume(&mut self.scratch[..wanted]) }
    }
}

/// The frame that the kernel has filled; `None` if it is not one that it had.
#[inline]
fn received(shared: &Shared, held: &mut Held, descriptor: &FrameDesc) -> Option<Chunk> {
    let (index, start) = shared.locate(descriptor.addr())?;
    let room = usize::from(shared.frame_size()) - usize::from(start);
    let length = descriptor.lengths().data().min(room) as u16;
    if !held.remove(index) {
        return None;
    }
    // SAFETY: the kernel had this frame, by `held`, and has given it back; `length` fits.
    Some(unsafe { shared.chunk(index, start, length) })
}

impl AsRawFd for RxPort {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl AsFd for RxPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the binding keeps the descriptor open for as long as the port lives.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for RxPort {
    /// Closes this half. Packets still on the rx ring are gone, so stop redirecting and receive
    /// until nothing comes before.
    fn drop(&mut self) {
        self.binding.park(std::mem::take(&mut self.spare));
        self.binding.park(self.held.take_all());
    }
}

/// Why a frame was not taken. The frame is in it.
#[derive(Debug)]
pub enum Refused {
    /// The tx ring is full.
    RingFull(ToSendFrame),
    /// Shorter than an Ethernet header: the kernel would never complete it.
    TooShort(ToSendFrame),
    /// The frame belongs to another UMEM.
    Foreign(ToSendFrame),
}

impl Refused {
    /// The frame, to be put back into the pool.
    pub fn into_frame(self) -> ToSendFrame {
        match self {
            Refused::RingFull(frame) | Refused::TooShort(frame) | Refused::Foreign(frame) => frame,
        }
    }
}

/// What a kick came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kick {
    /// System calls made.
    pub calls: u32,
    /// Frames that the device dropped (copy mode). They are completed like those that were sent.
    pub dropped: u32,
    /// An error number that means more than "later": mostly ENETDOWN, the device is down. What is
    /// on the ring stays there.
    pub error: Option<i32>,
}

/// The sending half of a queue: tx ring and completion ring.
#[derive(Debug)]
pub struct TxPort {
    // Before `binding`: the rings must be gone when the binding sends the frames home.
    tx: TxQueue,
    completion: CompQueue,
    held: Held,
    ring: u32,
    /// Free slots of the ring that are known of and not taken by `staged`.
    room: u32,
    staged: Vec<FrameDesc>,
    scratch: Box<[FrameDesc]>,
    fd: RawFd,
    strays: u64,
    dropped: u64,
    obtained: Obtained,
    binding: Arc<Binding>,
}

impl TxPort {
    /// Binds the queue for sending only: nothing goes on its fill ring, no XDP program is needed
    /// in copy mode.
    pub fn open(umem: &Umem, config: &PortConfig) -> Result<Self, XskError> {
        let opened = open(umem.shared(), config, Use::Send)?;
        Ok(split(opened, 0, config.tx_ring).1)
    }

    /// What the kernel gave.
    pub fn obtained(&self) -> &Obtained {
        &self.obtained
    }

    /// Takes a frame for the next [`flush`](Self::flush), or gives it back.
    #[inline]
    pub fn push(&mut self, frame: ToSendFrame) -> Result<(), Refused> {
        let shared = self.binding.shared();
        let chunk = frame.chunk();
        let Some(index) = shared.index_of(chunk) else {
            return Err(Refused::Foreign(frame));
        };
        if chunk.length() < SHORTEST {
            return Err(Refused::TooShort(frame));
        }
        if self.room == 0 {
            self.room = self.tx.nb_free_exact() - self.staged.len() as u32;
            if self.room == 0 {
                return Err(Refused::RingFull(frame));
            }
        }
        self.room -= 1;
        self.staged
            .push(shared.describe(index, chunk.start(), chunk.length()));
        self.held.insert(index);
        frame.into_chunk().release();
        Ok(())
    }

    /// Puts what was pushed on the tx ring. Returns how many.
    #[inline]
    pub fn flush(&mut self) -> usize {
        // SAFETY: the frames are of this UMEM, their tokens have ended in `push`, and they are
        // booked in `held`.
        let produced = unsafe { self.tx.produce(&self.staged) };
        // All or nothing, and `push` made sure that there is room for all.
        debug_assert_eq!(produced, self.staged.len());
        if produced == self.staged.len() {
            self.staged.clear();
        }
        produced
    }

    /// Makes the kernel send what is on the tx ring. In copy mode a call sends no more than a
    /// budget (32 before kernel 6.17), so it is repeated as long as there is progress, but not
    /// more often than the ring's size needs.
    #[inline]
    pub fn kick(&mut self) -> Kick {
        let mut kick = Kick::default();
        let mut pending = self.pending();
        let most = self.ring.div_ceil(KERNEL_TX_BATCH);
        while pending > 0 && kick.calls < most {
            if self.obtained.need_wakeup && !self.tx.needs_wakeup() {
                break;
            }
            let error = wake_transmit(self.fd);
            kick.calls += 1;
            // In zero copy the driver goes on by itself.
            if self.obtained.zero_copy && error == 0 {
                break;
            }
            let left = self.pending();
            let progress = left < pending;
            pending = left;
            match error {
                0 | libc::EAGAIN | libc::ENOBUFS | libc::EINTR => {}
                // NET_XMIT_DROP of the device: the frame is consumed, and the call ends there.
                libc::EBUSY if progress => kick.dropped += 1,
                libc::EBUSY => {}
                other => {
                    kick.error = Some(other);
                    break;
                }
            }
            if !progress {
                break;
            }
        }
        self.dropped += u64::from(kick.dropped);
        kick
    }

    /// [`flush`](Self::flush), then [`kick`](Self::kick).
    #[inline]
    pub fn flush_and_kick(&mut self) -> Kick {
        self.flush();
        self.kick()
    }

    /// Returns completed frames to their homes, `pool` or others; at most a ring full. Returns
    /// their number. `pool` must be of this UMEM.
    #[inline]
    pub fn reclaim(&mut self, pool: &mut Pool) -> usize {
        let shared = self.binding.shared();
        if !std::ptr::eq(shared, Arc::as_ptr(pool.shared())) {
            return 0;
        }
        let mut total = 0;
        while total < self.ring as usize && self.held.count() > 0 {
            // SAFETY: the scratch descriptors carry nothing; they are overwritten by those of
            // frames of this UMEM.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            for descriptor in &self.scratch[..count] {
                match shared.locate(descriptor.addr()) {
                    Some((index, _)) if self.held.remove(index) => pool.put_index(index),
                    _ => self.strays += 1,
                }
            }
            total += count;
            if count < self.scratch.len() {
                break;
            }
        }
        total
    }

    /// Sends and reclaims until nothing is in flight or `limit` has passed, and returns how many
    /// frames still are. Blocks: for the shutdown only. A driver that lost a completion would make
    /// an unbounded wait endless.
    pub fn drain(&mut self, pool: &mut Pool, limit: Duration) -> u32 {
        let end = Instant::now() + limit;
        loop {
            self.flush_and_kick();
            self.reclaim(pool);
            if self.in_flight() == 0 || Instant::now() >= end {
                return self.in_flight();
            }
            sleep(Duration::from_micros(100));
        }
    }

    /// Frames pushed and not reclaimed yet.
    pub fn in_flight(&self) -> u32 {
        self.held.count()
    }

    /// Frames that the device dropped since the port was opened (copy mode): the sum of
    /// [`Kick::dropped`], those during [`drain`](Self::drain) included.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Frames the kernel returned that it did not have, refused. A driver's bug if not 0.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// The kernel's counters of the socket.
    pub fn statistics(&self) -> std::io::Result<Statistics> {
        Statistics::read(self.tx.fd())
    }

    /// Descriptors on the tx ring that the kernel has not taken yet.
    #[inline]
    fn pending(&mut self) -> u32 {
        self.ring - self.tx.nb_free_exact()
    }
}

impl AsRawFd for TxPort {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl Drop for TxPort {
    /// Closes this half. What is on the tx ring is not sent any more: [`drain`](Self::drain) first.
    fn drop(&mut self) {
        self.binding.park(self.held.take_all());
    }
}

/// Opens one queue for both: where frames leave by the queue they came from. The socket closes when
/// both halves are dropped. See [`RxPort::open`].
pub fn open_both(
    umem: &Umem,
    config: &PortConfig,
    pool: &mut Pool,
    stock: u32,
) -> Result<(RxPort, TxPort), XskError> {
    let opened = open(umem.shared(), config, Use::Both)?;
    let (mut rx, tx) = split(opened, stock, config.tx_ring);
    rx.refill(pool);
    Ok((rx, tx))
}

/// Both halves of an opened socket. The one that is not wanted may be dropped at once: it holds no
/// frames.
fn split(opened: Opened, stock: u32, tx_ring: u32) -> (RxPort, TxPort) {
    let Opened {
        rx,
        fill,
        tx,
        completion,
        binding,
        obtained,
    } = opened;
    let shared = binding.shared();
    let frames = shared.homes().capacity();
    let stock = stock.min(shared.fill_ring());
    let fd = rx.fd().as_raw_fd();
    let scratch = || vec![FrameDesc::default(); BATCH].into_boxed_slice();
    let receiving = RxPort {
        rx,
        fill,
        held: Held::new(frames),
        stock,
        scratch: scratch(),
        gatherer: Gatherer::new(stock > 0 && obtained.multi_buffer),
        // Emptied by each refill, and never more than are received between two of them.
        spare: Vec::with_capacity(if stock > 0 { frames as usize } else { 0 }),
        lost: 0,
        fd,
        strays: 0,
        obtained: obtained.clone(),
        binding: binding.clone(),
    };
    let sending = TxPort {
        tx,
        completion,
        held: Held::new(frames),
        ring: tx_ring,
        room: 0,
        staged: Vec::with_capacity(tx_ring as usize),
        scratch: scratch(),
        fd,
        strays: 0,
        dropped: 0,
        obtained,
        binding,
    };
    (receiving, sending)
}
