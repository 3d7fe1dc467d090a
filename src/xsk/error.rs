//! What can go wrong while a UMEM or a port is opened, said so that an operator can act on it.
//!
//! Nothing here is used after the set-up: the loop reports by counters, never by errors.
//! `control` prints these errors and `doctor` repeats the remedies.

use std::io;

use super::socket::Mode;

/// Why a UMEM could not be made or a port not be opened: what was asked, what the kernel said,
/// what would help.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// A size in the configuration that no kernel accepts.
    #[error("{name} is {value}, but must be {allowed}")]
    InvalidSize {
        /// The setting's name.
        name: &'static str,
        /// What was asked.
        value: u64,
        /// What is possible.
        allowed: &'static str,
    },
    /// The kernel refused the memory.
    #[error("cannot register {frames} frames of {frame_size} bytes as UMEM: {source}; {remedy}")]
    Umem {
        /// Number of frames asked for.
        frames: u32,
        /// Bytes in a frame.
        frame_size: u32,
        /// What the kernel said.
        source: io::Error,
        /// What would help.
        remedy: &'static str,
    },
    /// `xsk_rs` keeps its descriptors in a way that this module cannot write.
    #[error("xsk-rs lays its frame descriptors out in an unknown way; build with the version pinned in Cargo.toml")]
    DescriptorLayout,
    /// The kernel refused the socket.
    #[error(
        "cannot bind an AF_XDP socket to {interface} queue {queue} ({mode}): {source}; {remedy}"
    )]
    Bind {
        /// Interface name.
        interface: String,
        /// Queue number.
        queue: u32,
        /// What was asked.
        mode: Mode,
        /// What the kernel said.
        source: io::Error,
        /// What would help.
        remedy: &'static str,
    },
    /// The queue is open already, in this process and on this UMEM.
    #[error("{interface} queue {queue} is open already in this process; open it once, with open_both where it shall receive and send")]
    QueueOpen {
        /// Interface name.
        interface: String,
        /// Queue number.
        queue: u32,
    },
    /// All sockets of a UMEM have the mode of the first one.
    #[error("{interface} queue {queue} shall be bound with {asked}, but the first socket on this UMEM obtained {obtained} and the kernel gives every further one the same; use a second UMEM, or one mode for both")]
    ModeConflict {
        /// Interface name.
        interface: String,
        /// Queue number.
        queue: u32,
        /// What was asked.
        asked: Mode,
        /// What the UMEM has.
        obtained: &'static str,
    },
    /// Every port of the UMEM was closed; libxdp cannot open another one on it.
    #[error("cannot open {interface} queue {queue}: all ports of this UMEM were closed; make a new UMEM")]
    UmemSpent {
        /// Interface name.
        interface: String,
        /// Queue number.
        queue: u32,
    },
    /// A socket that is bound could not be asked what it obtained.
    #[error("cannot read {what} of the AF_XDP socket on {interface} queue {queue}: {source}")]
    Query {
        /// The option's name.
        what: &'static str,
        /// Interface name.
        interface: String,
        /// Queue number.
        queue: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What would help against `error`, as the kernel gave it when memory was registered.
pub(super) fn umem_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "AF_XDP needs CAP_NET_RAW (run as root, or grant it)",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity), grant CAP_IPC_LOCK, or use fewer frames"
        }
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
        _ => "see `xtee doctor`",
    }
}

/// What would help against `error`, as the kernel gave it when a socket was bound with `mode`.
pub(super) fn bind_remedy(error: &io::Error, mode: Mode) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "needs CAP_NET_RAW, and CAP_NET_ADMIN for zero copy (run as root, or grant them)"
        }
        Some(libc::EBUSY) => {
            "another AF_XDP socket has this queue (`ss --xdp -a -p` names its process): stop it, or take another queue"
        }
        Some(libc::EOPNOTSUPP) if mode == Mode::ZeroCopy => {
            "this driver has no AF_XDP zero copy: set zero_copy to \"prefer\" or \"never\""
        }
        Some(libc::EOPNOTSUPP) => "this driver or device type has no AF_XDP",
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            "raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity), grant CAP_IPC_LOCK, or use smaller rings"
        }
        Some(libc::ENODEV | libc::ENXIO) => "there is no such interface in this network namespace",
        Some(libc::EINVAL) if mode == Mode::ZeroCopy => {
            "the queue does not exist (`ethtool -l`), or the MTU does not fit into a frame, which zero copy needs"
        }
        Some(libc::EINVAL) => "the queue does not exist (`ethtool -l` shows how many there are)",
        Some(libc::ENETDOWN) => "the interface is down (`ip link set … up`)",
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
        _ => "see `xtee doctor`",
    }
}

/// The kernel's error number inside an error of `xsk_rs`, which keeps it as the source.
pub(super) fn kernel_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    match error
        .source()
        .and_then(|inner| inner.downcast_ref::<io::Error>())
    {
        Some(inner) => match inner.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::other(inner.to_string()),
        },
        None => io::Error::other(error.to_string()),
    }
}
