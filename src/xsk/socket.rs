//! Binding a queue: flags, retries, and reading back what was obtained.
//!
//! All system calls of the set-up are here. `port` wraps the result; nothing here runs in the
//! loop, except the two wake-up calls at the end.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use super::error::{bind_remedy, kernel_error, XskError};
use super::umem::{ring_size, Shared};

/// The kernel frees a closed socket's queue in a work item: a bind right after a close gives EBUSY
/// for 10 to 50 ms, under load for 200 ms and more. After this long it is somebody else's.
const BUSY_RETRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// In zero copy the same work item tells the driver to stop, so a NIC may write into frames for
/// this long after the close.
const ZERO_COPY_RELEASE: Duration = Duration::from_millis(200);

/// `XDP_MAX_TX_SKB_BUDGET` (kernel 6.17): packets sent in one call in copy mode, 32 by default.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const TX_BUDGET: u32 = 128;

/// Copy mode charges each packet in flight to the socket's send buffer, whose default of 208 KiB
/// is some 90 packets of full size; the tx ring is the limit that we want.
const SEND_BUFFER: libc::c_int = 8 << 20;

/// How a socket shall be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `XDP_COPY`: the driver's queues are not touched. The only one allowed on an interface that
    /// carries the host's own traffic.
    Copy,
    /// `XDP_ZEROCOPY`: fails where the driver cannot.
    ZeroCopy,
    /// Neither: zero copy where the driver can, else copy.
    Any,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Mode::Copy => "copy mode",
            Mode::ZeroCopy => "zero copy required",
            Mode::Any => "zero copy preferred",
        })
    }
}

/// Preferred busy polling (kernel 5.11): the worker drives the NIC's NAPI by its own system calls.
/// It pays only together with `napi_defer_hard_irqs` and `gro_flush_timeout` of the interface,
/// which are `control`'s to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// Microseconds a blocking call may poll (`SO_BUSY_POLL`).
    pub micros: u32,
    /// Packets of one poll (`SO_BUSY_POLL_BUDGET`); above 64 needs CAP_NET_ADMIN.
    pub budget: u32,
}

/// Which queue shall be opened, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Interface name, in the network namespace of the calling thread.
    pub interface: String,
    /// Queue number.
    pub queue: u32,
    /// Copy or zero copy.
    pub mode: Mode,
    /// `XDP_USE_NEED_WAKEUP`: the kernel says when it wants to be called. Recommended.
    pub need_wakeup: bool,
    /// Preferred busy polling, if wanted.
    pub busy_poll: Option<BusyPoll>,
    /// `XDP_USE_SG`: packets larger than a frame come in several (kernel 6.6); without where it cannot be had.
    pub multi_buffer: bool,
    /// Slots of the rx ring, a power of two. Not used by a port that only sends.
    pub rx_ring: u32,
    /// Slots of the tx ring, a power of two. Not used by a port that only receives.
    pub tx_ring: u32,
}

impl PortConfig {
    /// Copy or zero copy as `mode` says, with need_wakeup, without busy polling, rings of 2048.
    pub fn new(interface: &str, queue: u32, mode: Mode) -> Self {
        Self {
            interface: interface.to_owned(),
            queue,
            mode,
            need_wakeup: true,
            busy_poll: None,
            multi_buffer: false,
            rx_ring: 2048,
            tx_ring: 2048,
        }
    }
}

/// What the kernel gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obtained {
    /// Frames go between NIC and UMEM without a copy (`XDP_OPTIONS`).
    pub zero_copy: bool,
    /// The kernel says when it wants to be called.
    pub need_wakeup: bool,
    /// Preferred busy polling is on.
    pub busy_poll: bool,
    /// Why busy polling is off although it was asked for.
    pub busy_poll_refused: Option<String>,
    /// The UMEM lies in huge pages.
    pub huge_pages: bool,
    /// Packets larger than a frame come in several; else they are dropped.
    pub multi_buffer: bool,
}

impl fmt::Display for Obtained {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on, yes, no| if on { yes } else { no };
        write!(
            formatter,
            "{}, {}, {}, {}",
            word(self.zero_copy, "zero copy", "copy"),
            word(self.need_wakeup, "need_wakeup", "no need_wakeup"),
            word(self.busy_poll, "busy polling", "no busy polling"),
            word(self.huge_pages, "huge pages", "ordinary pages"),
        )?;
        match &self.busy_poll_refused {
            Some(reason) => write!(formatter, " (busy polling refused: {reason})"),
            None => Ok(()),
        }
    }
}

/// The first socket bound on a UMEM. libxdp opens it on the UMEM's own descriptor, so the kernel
/// gives its mode to all others, and it stays bound until the UMEM ends.
#[derive(Debug, Default)]
pub(super) struct Anchor {
    /// Mode and need_wakeup, once there is a first socket.
    bound: Option<(bool, bool)>,
    /// Packets come in several frames where they are larger than one.
    multi_buffer: bool,
    /// Sockets open now.
    live: u32,
}

/// A bound socket, kept by the rx and the tx half of its port. When both are gone, so is the
/// socket, and the frames the kernel had come home.
#[derive(Debug)]
pub(super) struct Binding {
    shared: Arc<Shared>,
    parked: Mutex<Vec<u32>>,
    is_anchor: bool,
    zero_copy: bool,
}

impl Binding {
    /// Takes note of frames that the kernel has until the socket closes.
    pub(super) fn park(&self, frames: Vec<u32>) {
        self.parked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(frames);
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Binding {
    /// Both halves have dropped their rings before they let go of the binding, so libxdp has closed
    /// the socket, unless it is the anchor: that one's frames stay with the kernel.
    fn drop(&mut self) {
        let parked = self
            .parked
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_anchor {
            self.shared.homes().retire(parked.len() as u32);
        } else {
            if self.zero_copy && !parked.is_empty() {
                sleep(ZERO_COPY_RELEASE);
            }
            for index in parked.drain(..) {
                self.shared.homes().send_home(index);
            }
        }
        let mut anchor = self
            .shared
            .anchor()
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        anchor.live -= 1;
    }
}

/// A bound socket's parts.
pub(super) struct Opened {
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) tx: TxQueue,
    pub(super) completion: CompQueue,
    pub(super) binding: Arc<Binding>,
    pub(super) obtained: Obtained,
}

/// Which halves of a socket will be used; the other's ring is made as small as can be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Receive,
    Send,
    Both,
}

/// Binds the queue and reads back what was obtained.
pub(super) fn open(
    shared: &Arc<Shared>,
    config: &PortConfig,
    purpose: Use,
) -> Result<Opened, XskError> {
    const UNUSED: u32 = 64;
    let rx_ring = if purpose == Use::Send {
        UNUSED
    } else {
        config.rx_ring
    };
    let tx_ring = if purpose == Use::Receive {
        UNUSED
    } else {
        config.tx_ring
    };
    let mut flags = match config.mode {
        Mode::Copy => BindFlags::XDP_COPY,
        Mode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        Mode::Any => BindFlags::empty(),
    };
    if config.need_wakeup {
        flags |= BindFlags::XDP_USE_NEED_WAKEUP;
    }
    let (rx_ring_size, tx_ring_size) = (
        ring_size("rx_ring", rx_ring)?,
        ring_size("tx_ring", tx_ring)?,
    );
    let socket_config = |flags| {
        SocketConfig::builder()
            .rx_queue_size(rx_ring_size)
            .tx_queue_size(tx_ring_size)
            .bind_flags(flags)
            // Our own program steers; libxdp's would take every packet of the interface.
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .build()
    };

    // Held to the end: the first socket decides for those that wait.
    let mut anchor = shared
        .anchor()
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    check_against(&anchor, config)?;
    let is_anchor = anchor.bound.is_none();

    let several = BindFlags::XDP_USE_SG;
    let mut multi_buffer = config.multi_buffer && is_anchor;
    let bound = match multi_buffer {
        true => bind(shared, config, socket_config(flags | several)).or_else(|_| {
            // A kernel before 6.6, or a driver without: as it was before.
            multi_buffer = false;
            bind(shared, config, socket_config(flags))
        }),
        false => bind(shared, config, socket_config(flags)),
    };
    let (tx, rx, rings) = bound?;
    let fd = rx.fd().as_raw_fd();
    let Some((fill, completion)) = rings else {
        return Err(XskError::QueueOpen {
            interface: config.interface.clone(),
            queue: config.queue,
        });
    };
    if is_anchor {
        // At once, so that no other socket is taken for the first if what follows fails.
        anchor.bound = Some((false, config.need_wakeup));
        anchor.multi_buffer = multi_buffer;
    }
    let zero_copy = is_zero_copy(fd).map_err(|source| XskError::Query {
        what: "XDP_OPTIONS",
        interface: config.interface.clone(),
        queue: config.queue,
        source,
    })?;
    if is_anchor {
        anchor.bound = Some((zero_copy, config.need_wakeup));
    }
    let need_wakeup = anchor.bound.is_some_and(|(_, need_wakeup)| need_wakeup);

    if purpose != Use::Receive {
        tune_transmit(fd, tx_ring);
    }
    let busy_poll = config.busy_poll.map(|wish| prefer_busy_poll(fd, wish));
    let obtained = Obtained {
        zero_copy,
        need_wakeup,
        busy_poll: matches!(busy_poll, Some(Ok(()))),
        busy_poll_refused: match busy_poll {
            Some(Err(reason)) => Some(reason),
            _ => None,
        },
        huge_pages: shared.huge_pages(),
        multi_buffer: anchor.multi_buffer,
    };
    anchor.live += 1;
    Ok(Opened {
        rx,
        fill,
        tx,
        completion,
        binding: Arc::new(Binding {
            shared: shared.clone(),
            parked: Mutex::new(Vec::new()),
            is_anchor,
            zero_copy,
        }),
        obtained,
    })
}

/// Refuses what the kernel would not: it silently gives the first socket's mode to all.
fn check_against(anchor: &Anchor, config: &PortConfig) -> Result<(), XskError> {
    let Some((zero_copy, _)) = anchor.bound else {
        return Ok(());
    };
    if anchor.live == 0 {
        return Err(XskError::UmemSpent {
            interface: config.interface.clone(),
            queue: config.queue,
        });
    }
    match (config.mode, zero_copy) {
        (Mode::Copy, true) | (Mode::ZeroCopy, false) => Err(XskError::ModeConflict {
            interface: config.interface.clone(),
            queue: config.queue,
            asked: config.mode,
            obtained: if zero_copy { "zero copy" } else { "copy mode" },
        }),
        _ => Ok(()),
    }
}

type Queues = (TxQueue, RxQueue, Option<(FillQueue, CompQueue)>);

fn bind(
    shared: &Arc<Shared>,
    config: &PortConfig,
    socket_config: SocketConfig,
) -> Result<Queues, XskError> {
    let failed = |source: io::Error| XskError::Bind {
        interface: config.interface.clone(),
        queue: config.queue,
        mode: config.mode,
        remedy: bind_remedy(&source, config.mode),
        source,
    };
    let Some(umem) = shared.kernel() else {
        return Err(failed(io::Error::other(
            "this UMEM is detached from the kernel",
        )));
    };
    let name = CString::new(config.interface.as_str())
        .map_err(|_| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
    let interface = Interface::new(name);
    let mut attempts = 0;
    loop {
        // SAFETY: the contract asks for INHIBIT_PROG_LOAD where a queue is bound twice; it is
        // always set.
        let opened = unsafe { Socket::new(socket_config, umem, &interface, config.queue) };
        let error = match opened {
            Ok(queues) => return Ok(queues),
            Err(error) => kernel_error(&error),
        };
        if error.raw_os_error() != Some(libc::EBUSY) || attempts == BUSY_RETRIES {
            return Err(failed(error));
        }
        attempts += 1;
        sleep(BUSY_PAUSE);
    }
}

fn is_zero_copy(fd: RawFd) -> io::Result<bool> {
    let mut flags: u32 = 0;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: struct xdp_options is one u32, and `length` says so.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            std::ptr::from_mut(&mut flags).cast(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Best effort: older kernels and lesser privileges only make the kicks smaller.
fn tune_transmit(fd: RawFd, tx_ring: u32) {
    let budget = TX_BUDGET.min(tx_ring) as libc::c_int;
    let _ = set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget);
    if set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER).is_err() {
        let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER);
    }
}

fn prefer_busy_poll(fd: RawFd, wish: BusyPoll) -> Result<(), String> {
    let steps = [
        ("SO_PREFER_BUSY_POLL", libc::SO_PREFER_BUSY_POLL, 1),
        ("SO_BUSY_POLL", libc::SO_BUSY_POLL, wish.micros),
        (
            "SO_BUSY_POLL_BUDGET",
            libc::SO_BUSY_POLL_BUDGET,
            wish.budget,
        ),
    ];
    for (name, option, value) in steps {
        let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
        if let Err(error) = set_option(fd, libc::SOL_SOCKET, option, value) {
            // Half of it would make receive() poll without the effect.
            let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 0);
            return Err(format!("{name}={value}: {error}"));
        }
    }
    Ok(())
}

fn set_option(fd: RawFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is a c_int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the kernel work on the receive side without waiting; 0 or the error number.
#[inline]
pub(super) fn wake_receive(fd: RawFd) -> i32 {
    // SAFETY: no buffer is given, so none is written.
    let result = unsafe {
        libc::recvfrom(
            fd,
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    error_number(result)
}

/// Lets the kernel send what is on the tx ring without waiting; 0 or the error number.
#[inline]
pub(super) fn wake_transmit(fd: RawFd) -> i32 {
    // SAFETY: no buffer and no address are given, so none is read.
    let result = unsafe {
        libc::sendto(
            fd,
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    error_number(result)
}

#[inline]
fn error_number(result: libc::ssize_t) -> i32 {
    if result >= 0 {
        return 0;
    }
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}
