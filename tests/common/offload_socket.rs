//! An AF_PACKET socket that sends super-packets and unfinished checksums, as a local stack does.
#![allow(dead_code)]

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::common::netns::Namespace;

/// Kinds of `struct virtio_net_hdr` (linux/virtio_net.h).
pub const NO_GSO: u8 = 0;
pub const TCP4: u8 = 1;
pub const TCP6: u8 = 4;
pub const UDP: u8 = 5;

const NEEDS_CHECKSUM: u8 = 1;
const PACKET_VNET_HDR: libc::c_int = 15;

/// What the network stack left to the device.
#[derive(Clone, Copy, Debug)]
pub struct Offload {
    pub kind: u8,
    /// Bytes of all headers.
    pub header_length: u16,
    /// Payload bytes of a segment.
    pub gso_size: u16,
    /// From the frame's start to the transport header, and from there to its checksum.
    pub checksum: (u16, u16),
}

/// Sends on one interface.
#[derive(Debug)]
pub struct OffloadSocket(OwnedFd);

impl OffloadSocket {
    pub fn open(namespace: &Namespace, interface: &str) -> OffloadSocket {
        let _there = namespace.enter();
        // SAFETY: socket touches no memory.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(raw >= 0, "AF_PACKET: {}", io::Error::last_os_error());
        // SAFETY: the descriptor was just opened and is nobody else's.
        let socket = OffloadSocket(unsafe { OwnedFd::from_raw_fd(raw) });
        let one: libc::c_int = 1;
        // SAFETY: the value is a c_int and its size is given.
        let result = unsafe {
            libc::setsockopt(
                raw,
                libc::SOL_PACKET,
                PACKET_VNET_HDR,
                std::ptr::from_ref(&one).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        assert_eq!(result, 0, "PACKET_VNET_HDR: {}", io::Error::last_os_error());
        let name = CString::new(interface).expect("interface name");
        // SAFETY: the name ends with a NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        // SAFETY: a sockaddr_ll of zeros is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        // SAFETY: the address is a sockaddr_ll and its size is given.
        let result = unsafe {
            libc::bind(
                raw,
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(result, 0, "bind: {}", io::Error::last_os_error());
        socket
    }

    pub fn send(&self, frame: &[u8], offload: Offload) {
        let mut bytes = vec![NEEDS_CHECKSUM, offload.kind];
        for field in [
            offload.header_length,
            offload.gso_size,
            offload.checksum.0,
            offload.checksum.1,
        ] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(frame);
        // SAFETY: the buffer and its length belong together.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        let error = io::Error::last_os_error();
        assert_eq!(sent, bytes.len() as isize, "{offload:?}: {error}");
    }
}
