//! AF_PACKET sockets for tests: send a frame as it is, and see frames as they were on the wire.
//!
//! A VLAN tag that the kernel took out of a frame is put back in. Everything panics when it fails.

use std::cell::RefCell;
use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::netns::Namespace;

const ETH_P_ALL: u16 = 0x0003;
const LARGEST_FRAME: usize = 1 << 17;
const RECEIVE_BUFFER: libc::c_int = 256 << 20;

/// A frame that a socket saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Its bytes from the Ethernet header on, VLAN tag included.
    pub bytes: Vec<u8>,
    /// Nanoseconds since 1970, when the kernel saw it.
    pub timestamp_ns: u64,
    /// The interface sent it (it did not come in).
    pub outgoing: bool,
    /// Its checksum is not computed yet (local traffic with checksum offload).
    pub checksum_unfinished: bool,
}

/// A socket that sends and sees every frame of one interface.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    buffer: RefCell<Vec<u8>>,
}

impl RawSocket {
    /// Opens the socket; it sees frames from now on, also while nobody reads (256 MiB of them).
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        let _there = namespace.enter();
        // SAFETY: socket touches no memory.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(raw >= 0, "AF_PACKET: {}", io::Error::last_os_error());
        // SAFETY: the descriptor was just opened and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let buffer = RefCell::new(vec![0; LARGEST_FRAME]);
        let socket = Self { fd, buffer };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER);
        socket.set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1);

        let name = CString::new(interface).expect("interface name");
        // SAFETY: the name ends with a NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert!(index != 0, "{interface}: {}", io::Error::last_os_error());
        // SAFETY: a sockaddr_ll of zeros is valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETH_P_ALL.to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: the address is a sockaddr_ll and its size is given.
        let result = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert!(
            result == 0,
            "bind to {interface}: {}",
            io::Error::last_os_error()
        );
        socket
    }

    fn set(&self, level: i32, option: i32, value: libc::c_int) {
        // SAFETY: the value is a c_int and its size is given.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        assert!(
            result == 0,
            "socket option {option}: {}",
            io::Error::last_os_error()
        );
    }

    /// Sends a frame that begins with its Ethernet header; waits while the device is busy.
    pub fn send(&self, frame: &[u8]) {
        loop {
            // SAFETY: the buffer and its length belong together.
            let sent =
                unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if sent == frame.len() as isize {
                return;
            }
            let error = io::Error::last_os_error();
            let later = error.raw_os_error() == Some(libc::ENOBUFS);
            assert!(later, "send {} bytes: {error}", frame.len());
            std::thread::yield_now();
        }
    }

    /// Waits at most `limit` for a frame.
    pub fn receive(&self, limit: Duration) -> Option<Captured> {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, and it says so.
        let ready = unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) };
        if ready <= 0 {
            return None;
        }
        self.read()
    }

    /// The frames that come until there was none for `idle`, but for no longer than `limit`.
    pub fn until_idle(&self, idle: Duration, limit: Duration) -> Vec<Captured> {
        let end = Instant::now() + limit;
        let mut frames = Vec::new();
        while let Some(frame) = self.receive(idle) {
            frames.push(frame);
            if Instant::now() >= end {
                break;
            }
        }
        frames
    }

    /// Reads in a thread of its own until [`Capture::stop`].
    pub fn in_background(self) -> Capture {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut frames = Vec::new();
            loop {
                let last = asked.load(Ordering::Acquire);
                // Once asked to stop, what has arrived is still read.
                while let Some(frame) = self.receive(Duration::from_millis(20)) {
                    frames.push(frame);
                }
                if last {
                    return (frames, self.dropped());
                }
            }
        });
        Capture { stop, thread }
    }

    /// Frames that the socket could not hold, since the last call.
    pub fn dropped(&self) -> u32 {
        // SAFETY: a tpacket_stats of zeros is valid.
        let mut statistics: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = size_of::<libc::tpacket_stats>() as u32;
        // SAFETY: the buffer is as large as `length` says.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut statistics).cast(),
                &mut length,
            )
        };
        assert!(
            result == 0,
            "PACKET_STATISTICS: {}",
            io::Error::last_os_error()
        );
        statistics.tp_drops
    }

    fn read(&self) -> Option<Captured> {
        let mut buffer = self.buffer.borrow_mut();
        let mut control = [0u64; 32];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: a sockaddr_ll of zeros is valid.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        // SAFETY: a msghdr of zeros is valid.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = std::ptr::from_mut(&mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<[u64; 32]>() as _;
        // SAFETY: all pointers in the message point to buffers of the sizes given there.
        let length =
            unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        if length < 0 {
            let error = io::Error::last_os_error();
            let gone = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENETDOWN));
            assert!(gone, "recvmsg: {error}");
            return None;
        }
        let mut frame = Captured {
            bytes: buffer[..length as usize].to_vec(),
            timestamp_ns: 0,
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            checksum_unfinished: false,
        };
        apply_control(&message, &mut frame);
        Some(frame)
    }
}

fn apply_control(message: &libc::msghdr, frame: &mut Captured) {
    // SAFETY: recvmsg has filled the control buffer and its length in.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: a header that is not null lies in the control buffer.
        let libc::cmsghdr {
            cmsg_level: level,
            cmsg_type: kind,
            ..
        } = unsafe { header.read_unaligned() };
        // SAFETY: as above; the data follow the header.
        let data = unsafe { libc::CMSG_DATA(header) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_TIMESTAMPNS {
            // SAFETY: the kernel puts a timespec under this type.
            let time = unsafe { data.cast::<libc::timespec>().read_unaligned() };
            frame.timestamp_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        }
        if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
            // SAFETY: the kernel puts a tpacket_auxdata under this type.
            let auxiliary = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
            apply_auxiliary(&auxiliary, frame);
        }
        // SAFETY: `header` came from the same message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
}

fn apply_auxiliary(auxiliary: &libc::tpacket_auxdata, frame: &mut Captured) {
    let has = |flag: u32| auxiliary.tp_status & flag != 0;
    frame.checksum_unfinished = has(libc::TP_STATUS_CSUMNOTREADY);
    if has(libc::TP_STATUS_VLAN_VALID) && frame.bytes.len() >= 12 {
        let protocol = if has(libc::TP_STATUS_VLAN_TPID_VALID) {
            auxiliary.tp_vlan_tpid
        } else {
            0x8100
        };
        let [a, b] = protocol.to_be_bytes();
        let [c, d] = auxiliary.tp_vlan_tci.to_be_bytes();
        frame.bytes.splice(12..12, [a, b, c, d]);
    }
}

/// A capture that runs in its own thread.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Captured>, u32)>,
}

impl Capture {
    /// Reads what has arrived, ends the thread and returns the frames. Panics if the socket lost
    /// any: a test must not judge by half a capture.
    pub fn stop(self) -> Vec<Captured> {
        self.stop.store(true, Ordering::Release);
        let (frames, dropped) = self.thread.join().expect("capture thread");
        assert_eq!(dropped, 0, "the capturing socket was too slow");
        frames
    }
}
