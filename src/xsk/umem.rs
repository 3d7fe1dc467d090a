//! The memory whose frames all sockets exchange, and its final balance.
//!
//! One UMEM serves every queue that a frame may travel between: RX sockets of all queues of the
//! span interface and TX sockets of the egress device share it, so that a frame goes from one to
//! the other without a copy. It is divided evenly among the workers. Made by `control` on the
//! thread (hence the NUMA node) of the worker; the loop does not call it.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::mem::ManuallyDrop;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use xsk_rs::config::UmemConfig as KernelConfig;
use xsk_rs::config::{FrameSize, QueueSize};

use super::descriptor::DescriptorLayout;
use super::error::{kernel_error, umem_remedy, XskError};
use super::frame::Chunk;
use super::pool::{Homes, Pool};
use super::socket::Anchor;

/// Bytes of a frame unless told otherwise: a page, the most that the kernel takes in ordinary pages.
pub const FRAME_SIZE: u32 = 4096;

/// Size of a huge page of x86-64 and arm64 with 4 KiB pages. Memory is rounded up to it where huge
/// pages are tried, since `munmap` of a part of one fails.
const HUGE_PAGE: u64 = 2 << 20;

/// The most frames of one UMEM: 64 GiB, far above what a host would pin, and frame numbers and
/// addresses stay well inside their integers.
const MAX_FRAMES: u64 = 1 << 24;

/// How large a UMEM shall be. The ring sizes are here because libxdp gives every socket on a UMEM
/// the same fill and completion ring sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UmemConfig {
    /// Bytes in a frame: 4096, or 2048. 256 of them stay free in front of a received packet.
    pub frame_size: u32,
    /// Number of pools.
    pub workers: u32,
    /// Frames in each pool.
    pub frames_per_worker: u32,
    /// Slots of every fill ring, a power of two; at least the NIC's rx ring plus the socket's is
    /// advised.
    pub fill_ring: u32,
    /// Slots of every completion ring, a power of two; at least the largest tx ring.
    pub completion_ring: u32,
    /// Try huge pages first.
    pub huge_pages: bool,
}

impl Default for UmemConfig {
    fn default() -> Self {
        Self {
            frame_size: FRAME_SIZE,
            workers: 1,
            frames_per_worker: 8192,
            fill_ring: 4096,
            completion_ring: 2048,
            huge_pages: true,
        }
    }
}

/// Where the frames are when nothing is moving: every pool dropped, every port closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// All frames.
    pub capacity: u32,
    /// Frames that lie in their home, free.
    pub home: u32,
    /// Frames that went with the first socket; the kernel lets go of them when the UMEM ends.
    pub retired: u32,
}

impl Balance {
    /// Nothing is missing.
    pub fn all_home(&self) -> bool {
        self.home + self.retired == self.capacity
    }
}

/// A UMEM. Cloning gives another handle on the same memory; it is unmapped when the last handle,
/// pool and port are gone (and not at all while a token is missing, which then stays valid).
#[derive(Clone, Debug)]
pub struct Umem {
    shared: Arc<Shared>,
}

impl Umem {
    /// Maps the memory and registers it with the kernel.
    ///
    /// The kernel pins it at once, so every page is touched on the calling thread: call from a
    /// thread that runs where the worker will. Needs CAP_NET_RAW, and CAP_IPC_LOCK or a high
    /// enough RLIMIT_MEMLOCK.
    pub fn new(config: &UmemConfig) -> Result<Self, XskError> {
        let frames = check(config)?;
        let layout = DescriptorLayout::probe().ok_or(XskError::DescriptorLayout)?;
        let kernel_config = kernel_config(config)?;

        let mut huge_pages = false;
        let mut attempt = Err(None);
        if config.huge_pages {
            let bytes = u64::from(frames) * u64::from(config.frame_size);
            let rounded = bytes.next_multiple_of(HUGE_PAGE) / u64::from(config.frame_size);
            attempt = map(kernel_config, rounded as u32, true).map_err(Some);
            huge_pages = attempt.is_ok();
        }
        // Mostly none are reserved (/proc/sys/vm/nr_hugepages): ordinary pages then.
        let (memory, base) = match attempt {
            Ok(mapped) => mapped,
            Err(_) => map(kernel_config, frames, false).map_err(|source| XskError::Umem {
                frames,
                frame_size: config.frame_size,
                remedy: umem_remedy(&source),
                source,
            })?,
        };
        Ok(Self::build(config, memory, base, layout, huge_pages))
    }

    /// The same from ordinary memory that no kernel knows: pools and frames work, ports cannot be
    /// opened. For tests and benches of what stands above the rings.
    pub fn detached(config: &UmemConfig) -> Result<Self, XskError> {
        let frames = check(config)?;
        kernel_config(config)?;
        let descriptors = DescriptorLayout::probe().ok_or(XskError::DescriptorLayout)?;
        let bytes = frames as usize * config.frame_size as usize;
        let Ok(layout) = Layout::from_size_align(bytes, 4096) else {
            return Err(XskError::InvalidSize {
                name: "frames",
                value: u64::from(frames),
                allowed: "small enough for the address space",
            });
        };
        // SAFETY: `check` refuses sizes of 0.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        let memory = Memory::Detached { base, layout };
        Ok(Self::build(config, memory, base, descriptors, false))
    }

    fn build(
        config: &UmemConfig,
        memory: Memory,
        base: NonNull<u8>,
        descriptors: DescriptorLayout,
        huge_pages: bool,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                memory: ManuallyDrop::new(memory),
                base,
                frame_size: config.frame_size as u16,
                frame_shift: config.frame_size.trailing_zeros(),
                fill_ring: config.fill_ring,
                huge_pages,
                descriptors,
                homes: Homes::new(config.workers, config.frames_per_worker),
                anchor: Mutex::new(Anchor::default()),
            }),
        }
    }

    /// The frames of one worker, all that are at home now; `None` where there is no such worker
    /// or its pool exists already.
    pub fn pool(&self, worker: u32) -> Option<Pool> {
        Pool::claim(self.shared.clone(), worker as usize)
    }

    /// Whether the memory lies in huge pages.
    pub fn huge_pages(&self) -> bool {
        self.shared.huge_pages
    }

    /// Bytes in a frame.
    pub fn frame_size(&self) -> u32 {
        u32::from(self.shared.frame_size)
    }

    /// Where the frames are. Complete once all pools are dropped and all ports closed.
    pub fn balance(&self) -> Balance {
        let homes = self.shared.homes();
        Balance {
            capacity: homes.capacity(),
            home: homes.at_home(),
            retired: homes.retired(),
        }
    }

    /// Whether both are handles on one memory.
    pub fn is(&self, other: &Umem) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

#[derive(Debug)]
enum Memory {
    Kernel(xsk_rs::Umem),
    Detached { base: NonNull<u8>, layout: Layout },
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Detached { base, layout } = self {
            // SAFETY: allocated with this layout in `detached`, and freed only here.
            unsafe { dealloc(base.as_ptr(), *layout) };
        }
    }
}

/// What pools, ports and handles have in common.
#[derive(Debug)]
pub(super) struct Shared {
    memory: ManuallyDrop<Memory>,
    base: NonNull<u8>,
    frame_size: u16,
    frame_shift: u32,
    fill_ring: u32,
    huge_pages: bool,
    descriptors: DescriptorLayout,
    homes: Homes,
    /// Locked while a port is opened or closed, never in the loop.
    anchor: Mutex<Anchor>,
}

// SAFETY: `base` is only used to find a frame's address; a frame's bytes are only reached through
// its token, which has one owner. All other fields are Send and Sync by themselves.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    #[inline]
    pub(super) fn homes(&self) -> &Homes {
        &self.homes
    }

    pub(super) fn anchor(&self) -> &Mutex<Anchor> {
        &self.anchor
    }

    pub(super) fn kernel(&self) -> Option<&xsk_rs::Umem> {
        match &*self.memory {
            Memory::Kernel(umem) => Some(umem),
            Memory::Detached { .. } => None,
        }
    }

    pub(super) fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    pub(super) fn fill_ring(&self) -> u32 {
        self.fill_ring
    }

    /// The token of a frame, of whose bytes `length` from `start` on count.
    ///
    /// # Safety
    ///
    /// The caller owns the frame: its number was in a pool's stock or with the kernel, and is not
    /// any more. `start + length` is at most a frame.
    #[inline]
    pub(super) unsafe fn chunk(&self, index: u32, start: u16, length: u16) -> Chunk {
        let offset = (index as usize) << self.frame_shift;
        // SAFETY: the frame lies within the mapped memory, since its number is one that was given
        // out by `homes`.
        let base = unsafe { self.base.add(offset) };
        // SAFETY: the frame is `frame_size` bytes that are the caller's alone, and stay mapped:
        // see `Drop`.
        unsafe { Chunk::new(base, self.frame_size, start, length) }
    }

    /// The number of a token's frame, `None` for one of another UMEM.
    #[inline]
    pub(super) fn index_of(&self, chunk: &Chunk) -> Option<u32> {
        let offset = (chunk.base().as_ptr() as usize).checked_sub(self.base.as_ptr() as usize)?;
        let index = offset >> self.frame_shift;
        (index < self.homes.capacity() as usize).then_some(index as u32)
    }

    /// Splits an address of the kernel into frame number and offset; `None` beyond the UMEM.
    #[inline]
    pub(super) fn locate(&self, address: usize) -> Option<(u32, u16)> {
        let index = address >> self.frame_shift;
        let start = address & ((1 << self.frame_shift) - 1);
        (index < self.homes.capacity() as usize).then_some((index as u32, start as u16))
    }

    #[inline]
    pub(super) fn frame_size(&self) -> u16 {
        self.frame_size
    }

    /// A descriptor of `length` bytes, `start` bytes into a frame.
    #[inline]
    pub(super) fn describe(&self, index: u32, start: usize, length: usize) -> xsk_rs::FrameDesc {
        let address = ((index as usize) << self.frame_shift) + start;
        self.descriptors.describe(address, length)
    }
}

impl Drop for Shared {
    /// All pools and ports are gone here, so what is not at home is a token in somebody's hands
    /// (or was dropped and counted as lost). Its bytes must stay readable: the memory is then left
    /// mapped for good.
    fn drop(&mut self) {
        if self.homes.at_home() + self.homes.retired() == self.homes.capacity() {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// The number of frames, if all sizes are possible.
fn check(config: &UmemConfig) -> Result<u32, XskError> {
    let invalid = |name, value: u64, allowed| XskError::InvalidSize {
        name,
        value,
        allowed,
    };
    if config.frame_size != 2048 && config.frame_size != 4096 {
        let value = u64::from(config.frame_size);
        return Err(invalid("frame_size", value, "2048 or 4096 bytes"));
    }
    let frames = u64::from(config.workers) * u64::from(config.frames_per_worker);
    if frames == 0 || frames > MAX_FRAMES {
        let allowed = "1 to 16777216 in total (workers times frames_per_worker)";
        return Err(invalid("frames", frames, allowed));
    }
    Ok(frames as u32)
}

fn kernel_config(config: &UmemConfig) -> Result<KernelConfig, XskError> {
    let mut builder = KernelConfig::builder();
    let frame_size = FrameSize::new(config.frame_size).map_err(|_| XskError::InvalidSize {
        name: "frame_size",
        value: u64::from(config.frame_size),
        allowed: "2048 or 4096 bytes",
    })?;
    builder
        .frame_size(frame_size)
        .fill_queue_size(ring_size("fill_ring", config.fill_ring)?)
        .comp_queue_size(ring_size("completion_ring", config.completion_ring)?);
    builder.build().map_err(|_| XskError::InvalidSize {
        name: "frame_size",
        value: u64::from(config.frame_size),
        allowed: "2048 or 4096 bytes",
    })
}

/// A ring's size as `xsk_rs` wants it.
pub(super) fn ring_size(name: &'static str, slots: u32) -> Result<QueueSize, XskError> {
    let invalid = XskError::InvalidSize {
        name,
        value: u64::from(slots),
        allowed: "a power of two from 64 to 65536",
    };
    if !(64..=65536).contains(&slots) {
        return Err(invalid);
    }
    QueueSize::new(slots).map_err(|_| invalid)
}

fn map(
    config: KernelConfig,
    frames: u32,
    huge_pages: bool,
) -> Result<(Memory, NonNull<u8>), std::io::Error> {
    let count =
        NonZeroU32::new(frames).ok_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    let (umem, descriptors) =
        xsk_rs::Umem::new(config, count, huge_pages).map_err(|error| kernel_error(&error))?;
    let Some(first) = descriptors.first() else {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
    };
    // SAFETY: the descriptor is of this UMEM, and nobody else has seen it yet.
    let data = unsafe { umem.data(first) };
    // The memory was mapped by mmap, outside of Rust's allocations: a pointer into it may be moved
    // all over it.
    let start = data.contents().as_ptr().expose_provenance() - first.addr();
    let base = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(start))
        .ok_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok((Memory::Kernel(umem), base))
}
