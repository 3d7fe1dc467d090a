//! A tunnel in user space, as VPN daemons are: what is routed into its tun device leaves as the payload
//! of UDP datagrams. Receiving is up to the test.
#![allow(dead_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::netns::Namespace;

/// Where the relays send to and from.
pub const PORT: u16 = 9000;

/// `struct ifreq` with flags: the kernel reads 40 bytes.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

/// A running relay; ends on drop, and its device with it.
#[derive(Debug)]
pub struct TunRelay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TunRelay {
    /// Makes the device `tun0` with this address (CIDR) and MTU; relays from `from` to `to`.
    pub fn start(namespace: &Namespace, address: &str, mtu: u32, from: &str, to: &str) -> TunRelay {
        let _there = namespace.enter();
        let mut device = open("tun0");
        namespace.address("tun0", address);
        namespace.ip(&["link", "set", "tun0", "mtu", &mtu.to_string(), "up"]);
        let socket = UdpSocket::bind(format!("{from}:{PORT}")).expect("bind the relay");
        socket.connect(format!("{to}:{PORT}")).expect("connect");
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut packet = vec![0; 1 << 16];
            while !asked.load(Ordering::Acquire) {
                if !readable(&device) {
                    continue;
                }
                let length = device.read(&mut packet).expect("read from tun");
                // A full queue drops the packet, as a network does.
                let _ = socket.send(&packet[..length]);
            }
        });
        TunRelay {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for TunRelay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn readable(device: &File) -> bool {
    let mut poll = libc::pollfd {
        fd: device.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, and it says so.
    unsafe { libc::poll(&mut poll, 1, 20) > 0 }
}

fn open(name: &str) -> File {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("/dev/net/tun");
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        padding: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the request is as large as the kernel's ifreq.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", io::Error::last_os_error());
    device
}
