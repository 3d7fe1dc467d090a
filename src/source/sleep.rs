//! How a worker sleeps: bounded, and woken by the kernel program only when it has said that it sleeps.
//!
//! The other half of the protocol, with the reason for its barrier, is in `bpf/copy.h`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{fence, AtomicU32, Ordering};
use std::sync::Arc;

use super::mapped::MappedArray;

/// A worker's sleep flag, shared with the kernel program.
#[derive(Clone, Debug)]
pub struct Sleeper {
    array: Arc<MappedArray>,
    offset: usize,
}

impl Sleeper {
    /// The flag at a byte offset of the shared array; `None` when it lies outside.
    #[must_use]
    pub fn new(array: Arc<MappedArray>, offset: usize) -> Option<Sleeper> {
        array.word(offset)?;
        Some(Sleeper { array, offset })
    }

    /// Says "I sleep", then asks `still_empty`; the caller may sleep only if this returns true. The
    /// full barrier between the two pairs with the one between the program's reserve and its read.
    pub fn announce(&self, still_empty: impl FnOnce() -> bool) -> bool {
        self.set(1);
        fence(Ordering::SeqCst);
        if still_empty() {
            return true;
        }
        self.set(0);
        false
    }

    /// Says "I am awake".
    pub fn awake(&self) {
        self.set(0);
    }

    fn set(&self, value: u32) {
        if let Some(word) = self.word() {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn word(&self) -> Option<&AtomicU32> {
        self.array.word(self.offset)
    }
}

/// Descriptors to sleep on; made once.
#[derive(Debug)]
pub struct PollSet {
    entries: Vec<libc::pollfd>,
}

impl PollSet {
    /// Waits for any of these to become readable. They must stay open for as long as the set is used.
    #[must_use]
    pub fn new(descriptors: impl IntoIterator<Item = RawFd>) -> PollSet {
        let entries = descriptors
            .into_iter()
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        PollSet { entries }
    }

    /// Sleeps until one is readable, at most `milliseconds`; returns whether one was.
    pub fn wait(&mut self, milliseconds: i32) -> bool {
        let count = self.entries.len() as libc::nfds_t;
        // SAFETY: the vector's entries, as many as said, outlive the call.
        let ready = unsafe { libc::poll(self.entries.as_mut_ptr(), count, milliseconds) };
        ready > 0
    }
}

/// A descriptor's number, for a [`PollSet`].
pub fn number(descriptor: &impl AsRawFd) -> RawFd {
    descriptor.as_raw_fd()
}
