//! What the kernel counts for a socket (`XDP_STATISTICS`).
//!
//! Read by `telemetry` through the ports; never reset, never interpreted here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The kernel's counters of one socket since it was bound, in packets or descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Received packets dropped: larger than a frame, or no frame on the fill ring. In copy mode
    /// the latter count in [`fill_ring_empty`](Self::fill_ring_empty) as well, so do not add.
    pub rx_dropped: u64,
    /// Received packets dropped because the rx ring was full: the worker is too slow. Not in
    /// [`rx_dropped`](Self::rx_dropped).
    pub rx_ring_full: u64,
    /// Times no frame was on the fill ring: the stock, or the pool behind it, is too small.
    pub fill_ring_empty: u64,
    /// Descriptors on the fill ring that the kernel refused. A bug of ours if not 0.
    pub fill_invalid: u64,
    /// Descriptors on the tx ring that the kernel refused. A bug of ours if not 0.
    pub tx_invalid: u64,
    /// Times the kernel looked for something to send and found nothing.
    pub tx_ring_empty: u64,
}

impl Statistics {
    pub(super) fn read(fd: &xsk_rs::socket::Fd) -> io::Result<Self> {
        let kernel = fd.xdp_statistics()?;
        Ok(Self {
            rx_dropped: kernel.rx_dropped(),
            rx_ring_full: kernel.rx_ring_full(),
            fill_ring_empty: kernel.rx_fill_ring_empty_descs(),
            fill_invalid: kernel.rx_invalid_descs(),
            tx_invalid: kernel.tx_invalid_descs(),
            tx_ring_empty: kernel.tx_ring_empty_descs(),
        })
    }

    /// The counters of a socket whose port a worker holds, by a duplicate of its descriptor.
    ///
    /// # Errors
    /// What getsockopt(2) said.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a C struct of integers, for which all zeros is a value.
        let mut kernel: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        let mut length = std::mem::size_of::<libc::xdp_statistics>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to a struct of that length.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_STATISTICS,
                std::ptr::from_mut(&mut kernel).cast(),
                &mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            rx_dropped: kernel.rx_dropped,
            rx_ring_full: kernel.rx_ring_full,
            fill_ring_empty: kernel.rx_fill_ring_empty_descs,
            fill_invalid: kernel.rx_invalid_descs,
            tx_invalid: kernel.tx_invalid_descs,
            tx_ring_empty: kernel.tx_ring_empty_descs,
        })
    }
}
