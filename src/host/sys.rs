//! The few system calls that the rest of `host` needs and that std does not offer: poll, eventfd,
//! setns-free thread namespaces, uname, resource limits.
//!
//! Must not decide anything: each function is one call with its errors turned into `io::Error`.
//! Called by the other files of `host`, on control threads only.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Turns the return value of a system call into a result.
pub(super) fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(super) fn own(descriptor: libc::c_long) -> OwnedFd {
    // SAFETY: only called with a value that the kernel returned as a new descriptor and that nobody
    // else holds.
    unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) }
}

/// Waits until one of `descriptors` is readable or in error; returns which are, by position.
/// An interrupted wait counts as "none". `None` as the timeout waits for ever.
pub(super) fn wait_readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut ready = [false; N];
    let found = wait_any(&descriptors, timeout)?;
    ready.copy_from_slice(&found);
    Ok(ready)
}

/// The same for a number of descriptors that is not known beforehand.
pub(super) fn wait_any(
    descriptors: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
) -> io::Result<Vec<bool>> {
    let mut entries: Vec<_> = descriptors
        .iter()
        .map(|descriptor| libc::pollfd {
            fd: descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // Round up: a wait of 0.4 ms must not become a busy loop.
    let milliseconds = match timeout {
        None => -1,
        Some(time) => time.as_micros().div_ceil(1000).min(i32::MAX as u128) as libc::c_int,
    };
    let count = entries.len() as libc::nfds_t;
    // SAFETY: the pointer and the length describe `entries`, which outlives the call.
    let result = unsafe { libc::poll(entries.as_mut_ptr(), count, milliseconds) };
    match check(result as libc::c_long) {
        Ok(_) => Ok(entries.iter().map(|entry| entry.revents != 0).collect()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            Ok(vec![false; descriptors.len()])
        }
        Err(error) => Err(error),
    }
}

/// Waits until a descriptor can be written, is in error, or `timeout` has passed.
pub fn wait_writable(descriptor: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let mut entry = libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    let milliseconds = timeout.as_millis().min(i32::MAX as u128) as libc::c_int;
    // SAFETY: one entry, which outlives the call.
    let result = unsafe { libc::poll(&mut entry, 1, milliseconds) };
    match check(result as libc::c_long) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// A raw socket that takes only what `filter`, a classic BPF program, accepts.
pub(super) fn raw_socket(
    family: libc::c_int,
    protocol: libc::c_int,
    filter: &mut [libc::sock_filter],
) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes integers only.
    let descriptor = unsafe { libc::socket(family, kind, protocol) };
    let socket = own(check(descriptor as libc::c_long)?);
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions outlive the call; the kernel copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            std::mem::size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check(result as libc::c_long)?;
    Ok(socket)
}

/// Takes one datagram off a socket without waiting: its length, as far as it fits, and who sent it.
pub(super) fn receive_from(
    socket: RawFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<SocketAddr>)> {
    // SAFETY: a C struct for which all zeros is "no address".
    let mut from: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut length = std::mem::size_of_val(&from) as libc::socklen_t;
    // SAFETY: the buffer and the address have the lengths that are told, and outlive the call.
    let received = unsafe {
        libc::recvfrom(
            socket,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            std::ptr::from_mut(&mut from).cast(),
            &mut length,
        )
    };
    let received = check(received as libc::c_long)? as usize;
    let place = std::ptr::from_ref(&from);
    let address = match libc::c_int::from(from.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel says that it wrote an IPv4 address; the storage is large enough.
            let v4 = unsafe { place.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the kernel says that it wrote an IPv6 address; the storage is large enough.
            let v6 = unsafe { place.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::from((ip, u16::from_be(v6.sin6_port))))
        }
        _ => None,
    };
    Ok((received, address))
}

/// A descriptor that one thread signals and another waits on.
pub(super) struct Signal(std::fs::File);

impl Signal {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers and touches no memory of ours.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self(own(check(descriptor as libc::c_long)?).into()))
    }

    /// Takes what was raised so far: the next wait is for the next signal.
    pub(super) fn clear(&self) {
        use std::io::Read as _;
        // Fails only when nothing was raised.
        let _ = (&self.0).read(&mut [0; 8]);
    }

    /// Wakes whoever waits. A second signal before the first is seen is absorbed.
    pub(super) fn raise(&self) {
        use std::io::Write as _;
        // The write fails only when the counter is full, and then the waiter is awake anyway.
        let _ = (&self.0).write_all(&1u64.to_ne_bytes());
    }
}

impl std::os::fd::AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}

/// Moves the calling thread, and only it, into a new and empty network namespace, which goes away
/// with the thread (and with the descriptors opened in it). Needs CAP_SYS_ADMIN.
pub(super) fn enter_new_network_namespace() -> io::Result<()> {
    // SAFETY: unshare takes a flag word; CLONE_NEWNET changes the calling thread's namespace only.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    check(result as libc::c_long).map(drop)
}

/// Moves the calling thread, and only it, into the network namespace of a descriptor: one of a namespace's
/// file, or a pidfd (kernel 5.8). Needs CAP_SYS_ADMIN.
pub(super) fn enter_network_namespace(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: setns takes two integers; CLONE_NEWNET changes the calling thread's namespace only.
    let result = unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) };
    check(result as libc::c_long).map(drop)
}

/// A descriptor of a process (kernel 5.3), which goes on meaning this process when its number is another's.
pub(super) fn open_process(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) };
    check(descriptor).map(own)
}

/// Kernel release string, as `uname -r` shows it.
pub(super) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|text| text.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}

/// Soft RLIMIT_MEMLOCK in bytes; `None` when there is no limit.
pub(super) fn memlock_limit() -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that the call fills in.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    check(result as libc::c_long)?;
    Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur))
}
