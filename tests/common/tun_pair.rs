//! Two tun devices in two namespaces, joined by a relay in user space, as the ends of a VPN are: what one
//! sends, the other receives. Super-packets and unfinished checksums cross as they are (IFF_VNET_HDR).
#![allow(dead_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::common::netns::Namespace;

const IFF_VNET_HDR: libc::c_short = 0x4000;
/// linux/if_tun.h: checksum, TSO4, TSO6, USO4, USO6.
const OFFLOADS: libc::c_uint = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;
/// `struct virtio_net_hdr` and the largest super-packet.
const LARGEST: usize = 10 + (1 << 16);

/// `struct ifreq` with flags: the kernel reads 40 bytes.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

/// A running relay; ends on drop, and the devices with it.
#[derive(Debug)]
pub struct TunPair {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl TunPair {
    /// Makes a device `name` in both namespaces. They are down and have no address.
    pub fn new(one: &Namespace, other: &Namespace, name: &str) -> TunPair {
        let (one, other) = (open(one, name), open(other, name));
        let stop = Arc::new(AtomicBool::new(false));
        let twin = |file: &File| file.try_clone().expect("duplicate a descriptor");
        let pairs = [(twin(&one), twin(&other)), (other, one)];
        let threads = pairs.map(|(from, to)| {
            let asked = stop.clone();
            std::thread::spawn(move || relay(from, to, &asked))
        });
        TunPair {
            stop,
            threads: threads.into(),
        }
    }
}

impl Drop for TunPair {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn relay(mut from: File, mut to: File, stop: &AtomicBool) {
    let mut packet = vec![0; LARGEST];
    while !stop.load(Ordering::Acquire) {
        match from.read(&mut packet) {
            // A device that is down, or what is no IP packet, is refused: lost, as in a network.
            Ok(length) => drop(to.write(&packet[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(&from),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

fn wait(device: &File) {
    let mut poll = libc::pollfd {
        fd: device.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, and it says so.
    unsafe { libc::poll(&mut poll, 1, 20) };
}

fn open(namespace: &Namespace, name: &str) -> File {
    let _there = namespace.enter();
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("/dev/net/tun");
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: libc::IFF_TUN as libc::c_short | libc::IFF_NO_PI as libc::c_short | IFF_VNET_HDR,
        padding: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request is as large as the kernel's ifreq.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", io::Error::last_os_error());
    let offloads = libc::c_ulong::from(OFFLOADS);
    // SAFETY: the argument is a number.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads) };
    assert_eq!(result, 0, "TUNSETOFFLOAD: {}", io::Error::last_os_error());
    device
}
