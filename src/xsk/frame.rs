//! Frames as tokens that can be moved but not copied, their state in the type.
//!
//! Who has a token has the frame's bytes, alone. A [`FreeFrame`] is written and becomes a
//! [`ToSendFrame`]; a [`ReceivedFrame`] is read, and becomes a [`ToSendFrame`] in place or a
//! [`FreeFrame`] again. Frames that the kernel holds have no token. A token must end in a pool or
//! a port; one that is merely dropped keeps its frame from being used again, and is counted in
//! [`lost_frames`]. Called by `source` and `transmit`; knows no ring.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gather::Gathered;

static LOST: AtomicU64 = AtomicU64::new(0);

/// Tokens dropped without coming back to a pool, since the process started. Anything but 0 is a
/// bug in the caller; the frames stay out of use, so memory stays sound.
pub fn lost_frames() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// A frame's memory and the part of it that counts. Private to `xsk`: the three public tokens
/// wrap it.
#[derive(Debug)]
pub(super) struct Chunk {
    base: NonNull<u8>,
    /// First byte that counts, from `base`.
    start: u16,
    /// Number of bytes that count.
    length: u16,
    /// Bytes in the whole frame.
    size: u16,
}

// SAFETY: a chunk is the only way to its bytes, so it may move to another thread like a Box<[u8]>.
unsafe impl Send for Chunk {}

impl Chunk {
    /// # Safety
    ///
    /// `base` must point to `size` bytes that stay mapped as long as the chunk exists and that
    /// nobody else, the kernel included, reads or writes meanwhile.
    #[inline]
    pub(super) unsafe fn new(base: NonNull<u8>, size: u16, start: u16, length: u16) -> Self {
        debug_assert!(u32::from(start) + u32::from(length) <= u32::from(size));
        Self {
            base,
            start,
            length,
            size,
        }
    }

    #[inline]
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    #[inline]
    pub(super) fn start(&self) -> usize {
        usize::from(self.start)
    }

    #[inline]
    pub(super) fn length(&self) -> usize {
        usize::from(self.length)
    }

    /// Ends the token without counting its frame as lost: the caller books the frame elsewhere.
    #[inline]
    pub(super) fn release(self) {
        std::mem::forget(self);
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` lies within the chunk's memory (see `new`).
        let first = unsafe { self.base.add(self.start()) };
        // SAFETY: `start + length <= size` always holds, and the bytes are ours alone (see `new`).
        unsafe { std::slice::from_raw_parts(first.as_ptr(), self.length()) }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` lies within the chunk's memory (see `new`).
        let first = unsafe { self.base.add(self.start()) };
        // SAFETY: `start + length <= size` always holds, and the bytes are ours alone (see `new`).
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), self.length()) }
    }

    fn trim_front(&mut self, bytes: usize) {
        let bytes = bytes.min(self.length()) as u16;
        self.start += bytes;
        self.length -= bytes;
    }

    fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        if bytes > self.start() {
            return None;
        }
        self.start -= bytes as u16;
        self.length += bytes as u16;
        Some(&mut self.bytes_mut()[..bytes])
    }

    fn truncate(&mut self, length: usize) {
        self.length = length.min(self.length()) as u16;
    }

    fn whole(mut self) -> Self {
        self.start = 0;
        self.length = self.size;
        self
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // Not a panic: this may run in the data plane, or while another panic unwinds.
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// A frame without content. From [`Pool::take`](super::Pool::take); goes back by
/// [`Pool::put`](super::Pool::put).
#[must_use = "a frame that is dropped is lost to its pool"]
#[derive(Debug)]
pub struct FreeFrame(Chunk);

impl FreeFrame {
    /// `chunk` is taken as it is: all of its bytes may be written.
    #[inline]
    pub(super) fn new(chunk: Chunk) -> Self {
        Self(chunk.whole())
    }

    #[inline]
    pub(super) fn into_chunk(self) -> Chunk {
        self.0
    }

    /// Bytes that can be written.
    pub fn capacity(&self) -> usize {
        self.0.length()
    }

    /// Lets `write` fill the frame from its first byte; it returns how many bytes it wrote
    /// (more than there is room for counts as all of it). The buffer holds old bytes at first.
    #[inline]
    pub fn write(mut self, write: impl FnOnce(&mut [u8]) -> usize) -> ToSendFrame {
        let length = write(self.0.bytes_mut());
        self.0.truncate(length);
        ToSendFrame(self.0)
    }
}

/// A frame that the kernel filled. From [`RxPort::receive`](super::RxPort::receive).
///
/// Where the XDP program made room in front of the packet, the room is part of
/// [`bytes`](Self::bytes). Where it did not, the frame's headroom can be had by
/// [`prepend`](Self::prepend): the kernel leaves `XDP_PACKET_HEADROOM` (256 bytes) in front of
/// every packet.
///
/// A packet that is larger than a frame came in several and was [gathered](Self::is_gathered): it can be
/// read as any, but not be sent in place.
#[must_use = "a frame that is dropped is lost to its pool"]
#[derive(Debug)]
pub struct ReceivedFrame {
    chunk: Chunk,
    gathered: Option<Gathered>,
}

impl ReceivedFrame {
    #[inline]
    pub(super) fn new(chunk: Chunk) -> Self {
        Self {
            chunk,
            gathered: None,
        }
    }

    /// The packet's bytes stand in `gathered`; `chunk` is the first of its frames.
    #[inline]
    pub(super) fn with_gathered(chunk: Chunk, gathered: Gathered) -> Self {
        Self {
            chunk,
            gathered: Some(gathered),
        }
    }

    /// The packet was larger than a frame: [`into_send`](Self::into_send) is of no use.
    #[inline]
    pub fn is_gathered(&self) -> bool {
        self.gathered.is_some()
    }

    /// What was received.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.gathered {
            None => self.chunk.bytes(),
            Some(gathered) => gathered.bytes(),
        }
    }

    /// What was received, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.gathered {
            None => self.chunk.bytes_mut(),
            Some(gathered) => gathered.bytes_mut(),
        }
    }

    /// Free bytes in front of [`bytes`](Self::bytes).
    #[inline]
    pub fn headroom(&self) -> usize {
        match &self.gathered {
            None => self.chunk.start(),
            Some(_) => 0,
        }
    }

    /// Extends the frame by `bytes` at the front and returns them, to be written; `None`, and no
    /// change, where [`headroom`](Self::headroom) is less. They hold old bytes at first.
    #[inline]
    pub fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        match &self.gathered {
            None => self.chunk.prepend(bytes),
            Some(_) => None,
        }
    }

    /// Takes `bytes` away at the front (at most all).
    #[inline]
    pub fn trim_front(&mut self, bytes: usize) {
        match &mut self.gathered {
            None => self.chunk.trim_front(bytes),
            Some(gathered) => gathered.trim_front(bytes),
        }
    }

    /// Shortens the frame to `length` bytes, if it is longer.
    #[inline]
    pub fn truncate(&mut self, length: usize) {
        match &mut self.gathered {
            None => self.chunk.truncate(length),
            Some(gathered) => gathered.truncate(length),
        }
    }

    /// The frame is done with.
    #[inline]
    pub fn into_free(self) -> FreeFrame {
        FreeFrame(self.chunk.whole())
    }

    /// The frame, from byte `offset` of [`bytes`](Self::bytes) on, shall be sent as it is now. No
    /// byte is copied. Of a gathered packet nothing is left: a port refuses the frame as too short.
    #[inline]
    pub fn into_send(mut self, offset: usize) -> ToSendFrame {
        if self.is_gathered() {
            self.chunk.truncate(0);
        }
        self.chunk.trim_front(offset);
        ToSendFrame(self.chunk)
    }
}

/// A frame with a packet to transmit, Ethernet header first. For
/// [`TxPort::push`](super::TxPort::push).
#[must_use = "a frame that is dropped is lost to its pool"]
#[derive(Debug)]
pub struct ToSendFrame(Chunk);

impl ToSendFrame {
    #[inline]
    pub(super) fn chunk(&self) -> &Chunk {
        &self.0
    }

    #[inline]
    pub(super) fn into_chunk(self) -> Chunk {
        self.0
    }

    /// What will be sent.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// What will be sent, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    /// The frame shall not be sent after all.
    #[inline]
    pub fn into_free(self) -> FreeFrame {
        FreeFrame(self.0.whole())
    }
}
