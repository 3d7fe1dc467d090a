//! Tiny XDP programs as raw instructions, so that a test needs no BPF compiler: let everything pass,
//! and redirect to AF_XDP sockets.
#![allow(dead_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);
/// r0 = XDP_PASS
const PASS: u64 = instruction(0xb7, 0, 0, 0, 2);

fn owned(fd: i32, what: &str) -> OwnedFd {
    assert!(fd >= 0, "{what}: {}", std::io::Error::last_os_error());
    // SAFETY: the call has just returned this descriptor to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn load(instructions: &[u64]) -> OwnedFd {
    // SAFETY: strings end with NUL, and an instruction is 8 bytes as the kernel lays it out.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_XDP,
            c"xtee_test".as_ptr(),
            c"GPL".as_ptr(),
            instructions.as_ptr().cast(),
            instructions.len() as u64,
            std::ptr::null_mut(),
        )
    };
    owned(fd, "load")
}

/// Lets everything pass.
pub fn pass() -> OwnedFd {
    load(&[PASS, EXIT])
}

/// Redirects to the socket of the queue in `sockets`, with `room` bytes in front.
pub fn redirect(sockets: RawFd, room: i32) -> OwnedFd {
    load(&[
        // r6 = context
        instruction(0xbf, 6, 1, 0, 0),
        // if bpf_xdp_adjust_head(context, -room) != 0 goto pass
        instruction(0xb7, 2, 0, 0, -room),
        instruction(0x85, 0, 0, 0, 44),
        instruction(0x55, 0, 0, 6, 0),
        // return bpf_redirect_map(sockets, context->rx_queue_index, XDP_PASS)
        instruction(0x61, 2, 6, 16, 0),
        instruction(0x18, 1, 1, 0, sockets),
        0,
        instruction(0xb7, 3, 0, 0, 2),
        instruction(0x85, 0, 0, 0, 51),
        EXIT,
        PASS,
        EXIT,
    ])
}

/// An XSKMAP with a place for each of `queues`.
pub fn sockets(queues: u32) -> OwnedFd {
    // SAFETY: the name ends with NUL; no options.
    let fd = unsafe {
        libbpf_sys::bpf_map_create(
            libbpf_sys::BPF_MAP_TYPE_XSKMAP,
            c"sockets".as_ptr(),
            4,
            4,
            queues,
            std::ptr::null(),
        )
    };
    owned(fd, "XSKMAP")
}

pub fn insert(sockets: &OwnedFd, queue: u32, socket: RawFd) {
    // SAFETY: key and value are 4 bytes each, as the map was made.
    let result = unsafe {
        libbpf_sys::bpf_map_update_elem(
            sockets.as_raw_fd(),
            std::ptr::from_ref(&queue).cast(),
            std::ptr::from_ref(&socket).cast(),
            0,
        )
    };
    assert_eq!(result, 0, "XSKMAP: {}", std::io::Error::last_os_error());
}

/// Attaches in native mode, in the namespace of the calling thread.
pub fn attach(interface: &str, program: &OwnedFd) {
    let name = CString::new(interface).expect("interface name");
    // SAFETY: the name ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: no options.
    let result = unsafe {
        libbpf_sys::bpf_xdp_attach(
            index as i32,
            program.as_raw_fd(),
            libbpf_sys::XDP_FLAGS_DRV_MODE,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "attach to {interface}: error {result}");
}
