//! A BPF array map mapped into memory, so that a word is written or read without a system call.
//!
//! Used by control for the generation word and by a worker for its sleep flag. Gives out atomics
//! only: the kernel programs read and write the same words at the same time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// A mapped `BPF_F_MMAPABLE` array.
#[derive(Debug)]
pub struct MappedArray {
    base: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and all access goes through atomics.
unsafe impl Send for MappedArray {}
// SAFETY: as above; shared references hand out `&AtomicU32` alone.
unsafe impl Sync for MappedArray {}

impl MappedArray {
    /// Maps the whole array: `entries` values of `value_size` bytes (rounded to 8 by the kernel).
    ///
    /// # Errors
    /// What mmap(2) said, for instance EPERM where the map is not mmapable.
    pub fn new(map: BorrowedFd<'_>, value_size: usize, entries: usize) -> io::Result<MappedArray> {
        let length = (value_size.next_multiple_of(8) * entries).next_multiple_of(page_size());
        // SAFETY: a new shared mapping of a descriptor that is open; the kernel checks the length.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(MappedArray { base, length })
    }

    /// The 32-bit word at a byte offset; `None` when it is unaligned or beyond the mapping.
    #[must_use]
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if offset % 4 != 0 || offset.checked_add(4)? > self.length {
            return None;
        }
        // SAFETY: inside the mapping, checked above.
        let word = unsafe { self.base.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: aligned, mapped for the lifetime of self, and only ever reached as an atomic.
        Some(unsafe { AtomicU32::from_ptr(word.cast::<u32>()) })
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once; no reference outlives self.
        unsafe { libc::munmap(self.base.as_ptr(), self.length) };
    }
}

/// Bytes of a memory page.
#[must_use]
pub fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
