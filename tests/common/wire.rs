//! What passes an interface, as the kernel has it (`PACKET_VNET_HDR`: super-packets with their segment
//! size, unfinished checksums), and as the packets that it is on a wire.
//!
//! The cutter here is the tests' own, slow and obvious; it shares nothing with `xtee::packet`.
#![allow(dead_code)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::common::netns::Namespace;

const ETH_P_ALL: u16 = 0x0003;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// `struct virtio_net_hdr`, linux/virtio_net.h.
const VNET_HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_UDP: u8 = 5;
const LARGEST: usize = 1 << 18;
const RECEIVE_BUFFER: libc::c_int = 512 << 20;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A frame as the kernel had it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// From the Ethernet header on, without the tag in `vlan`.
    pub bytes: Vec<u8>,
    /// The interface sent it.
    pub outgoing: bool,
    /// Payload bytes of each packet, where it is a super-packet, and whether it is one of UDP.
    pub gso: Option<(usize, bool)>,
    /// Where an unfinished checksum's sum starts, and where its field is from there.
    pub unfinished: Option<(usize, usize)>,
    /// The tag that the kernel took out: protocol and control information.
    pub vlan: Option<[u8; 4]>,
}

/// A running capture of one interface.
#[derive(Debug)]
pub struct WireCapture {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<Vec<Seen>>,
}

impl WireCapture {
    /// Both directions; frames are seen from now on.
    pub fn start(namespace: &Namespace, interface: &str) -> WireCapture {
        WireCapture::with(namespace, interface, false)
    }

    /// What comes in only.
    pub fn incoming(namespace: &Namespace, interface: &str) -> WireCapture {
        WireCapture::with(namespace, interface, true)
    }

    fn with(namespace: &Namespace, interface: &str, incoming: bool) -> WireCapture {
        let socket = open(namespace, interface, incoming);
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (asked, counter) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; LARGEST];
            let mut frames = Vec::new();
            loop {
                let last = asked.load(Ordering::Acquire);
                // Once asked to stop, what has arrived is still read.
                while wait(&socket) {
                    while let Some(frame) = read(&socket, &mut buffer) {
                        frames.push(frame);
                        counter.fetch_add(1, Ordering::Release);
                    }
                }
                if last {
                    assert_eq!(dropped(&socket), 0, "the capturing socket was too slow");
                    return frames;
                }
            }
        });
        WireCapture {
            stop,
            count,
            thread,
        }
    }

    /// Frames so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Reads what has arrived and ends. Panics if the socket lost any frame: nobody must judge by half
    /// a capture.
    pub fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("capture thread")
    }
}

fn check(what: &str, result: libc::c_int) {
    assert!(result == 0, "{what}: {}", io::Error::last_os_error());
}

fn open(namespace: &Namespace, interface: &str, incoming: bool) -> OwnedFd {
    let _there = namespace.enter();
    // SAFETY: socket touches no memory.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(raw >= 0, "AF_PACKET: {}", io::Error::last_os_error());
    // SAFETY: the descriptor was just opened and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut options = vec![
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER),
        (libc::SOL_PACKET, PACKET_VNET_HDR, 1),
        (libc::SOL_PACKET, libc::PACKET_AUXDATA, 1),
    ];
    if incoming {
        options.push((libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1));
    }
    for (level, option, value) in options {
        let pointer = std::ptr::from_ref(&value).cast();
        let size = size_of::<libc::c_int>() as u32;
        // SAFETY: the value is a c_int and its size is given.
        let result = unsafe { libc::setsockopt(raw, level, option, pointer, size) };
        check("socket option", result);
    }
    let name = CString::new(interface).expect("interface name");
    // SAFETY: the name ends with a NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert!(index != 0, "{interface}: {}", io::Error::last_os_error());
    // SAFETY: a sockaddr_ll of zeros is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ETH_P_ALL.to_be();
    address.sll_ifindex = index as i32;
    let pointer = std::ptr::from_ref(&address).cast();
    // SAFETY: the address is a sockaddr_ll and its size is given.
    let result = unsafe { libc::bind(raw, pointer, size_of::<libc::sockaddr_ll>() as u32) };
    check(interface, result);
    socket
}

/// Whether there is something to read; waits a moment for it.
fn wait(socket: &OwnedFd) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, and the count says so.
    unsafe { libc::poll(&mut poll, 1, 10) > 0 }
}

fn dropped(socket: &OwnedFd) -> u32 {
    // SAFETY: a tpacket_stats of zeros is valid.
    let mut statistics: libc::tpacket_stats = unsafe { zeroed() };
    let mut length = size_of::<libc::tpacket_stats>() as u32;
    // SAFETY: the buffer is as large as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut statistics).cast(),
            &mut length,
        )
    };
    check("PACKET_STATISTICS", result);
    statistics.tp_drops
}

fn read(socket: &OwnedFd, buffer: &mut [u8]) -> Option<Seen> {
    let mut control = [0u64; 16];
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
    message.msg_controllen = size_of::<[u64; 16]>() as _;
    // SAFETY: all pointers in the message point to buffers of the sizes given there.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    if length < 0 {
        let error = io::Error::last_os_error();
        let gone = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENETDOWN));
        assert!(gone, "recvmsg: {error}");
        return None;
    }
    let (header, bytes) = buffer[..length as usize].split_at(VNET_HEADER);
    let number = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    Some(Seen {
        bytes: bytes.to_vec(),
        outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
        gso: (header[1] != 0).then(|| (number(4), header[1] & 0x7f == GSO_UDP)),
        unfinished: (header[0] & NEEDS_CHECKSUM != 0).then(|| (number(6), number(8))),
        vlan: tag(&message),
    })
}

fn tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: recvmsg has filled the control buffer and its length in.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    if header.is_null() {
        return None;
    }
    // PACKET_AUXDATA is the only control message that was asked for.
    // SAFETY: a header that is not null lies in the control buffer, and its data follow it.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: the kernel puts a tpacket_auxdata there.
    let auxiliary = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
    if auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let [a, b] = auxiliary.tp_vlan_tpid.to_be_bytes();
    let [c, d] = auxiliary.tp_vlan_tci.to_be_bytes();
    Some([a, b, c, d])
}

impl Seen {
    /// The packets that it is on a wire: cut, checksums finished, VLAN tag put back.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        let mut packets = match (self.gso, self.unfinished) {
            (Some((size, udp)), Some((transport, field))) => {
                cut(&self.bytes, size, udp, transport, field)
            }
            (Some(_), None) => panic!("a super-packet with a finished checksum: {self:?}"),
            (None, Some((start, field))) => {
                let mut bytes = self.bytes.clone();
                finish(&mut bytes, start, field, true);
                vec![bytes]
            }
            (None, None) => vec![self.bytes.clone()],
        };
        if let Some(tag) = self.vlan {
            for packet in &mut packets {
                packet.splice(12..12, tag);
            }
        }
        packets
    }
}

/// Internet checksum (RFC 1071) of `bytes`.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Completes a checksum whose field holds the pseudo-header's sum. `mangle`: 0 becomes 0xffff, as in
/// skb_checksum_help, whatever the protocol; segmentation does so for UDP only.
fn finish(bytes: &mut [u8], start: usize, field: usize, mangle: bool) {
    let sum = match checksum(&bytes[start..]) {
        0 if mangle => 0xffff,
        sum => sum,
    };
    bytes[start + field..start + field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A super-packet as packets of `size` payload bytes each. IP ID counts up, FIN and PSH stand on the
/// last only, CWR on the first only (tcp_gso_segment, __udp_gso_segment).
fn cut(frame: &[u8], size: usize, udp: bool, transport: usize, field: usize) -> Vec<Vec<u8>> {
    let network = network(frame);
    let header = match udp {
        true => 8,
        false => usize::from(frame[transport + 12] >> 4) * 4,
    };
    let payload = &frame[transport + header..];
    let pieces = payload.chunks(size).count();
    let mut packets = Vec::new();
    for (number, piece) in payload.chunks(size).enumerate() {
        let mut packet = [&frame[..transport + header], piece].concat();
        let length = packet.len();
        if packet[network] >> 4 == 4 {
            put(&mut packet, network + 2, |_| length - network);
            put(&mut packet, network + 4, |id| id + number);
            put(&mut packet, network + 10, |_| 0);
            let sum = checksum(&packet[network..transport]);
            put(&mut packet, network + 10, |_| usize::from(sum));
        } else {
            put(&mut packet, network + 4, |_| length - network - 40);
        }
        if udp {
            put(&mut packet, transport + 4, |_| length - transport);
        } else {
            let at = transport + 4..transport + 8;
            let sequence = u32::from_be_bytes(packet[at.clone()].try_into().expect("4 bytes"));
            let sequence = sequence.wrapping_add((number * size) as u32);
            packet[at].copy_from_slice(&sequence.to_be_bytes());
            let flags = &mut packet[transport + 13];
            if number + 1 < pieces {
                *flags &= !(FIN | PSH);
            }
            if number > 0 {
                *flags &= !CWR;
            }
        }
        put(&mut packet, transport + field, |_| 0);
        let pseudo = pseudo_header(&packet, network, transport, if udp { 17 } else { 6 });
        let sum = !checksum(&pseudo);
        put(&mut packet, transport + field, |_| usize::from(sum));
        finish(&mut packet, transport, field, udp);
        packets.push(packet);
    }
    packets
}

/// Start of the IP header, behind tags.
pub fn network(frame: &[u8]) -> usize {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    at + 2
}

fn pseudo_header(packet: &[u8], network: usize, transport: usize, protocol: u8) -> Vec<u8> {
    let addresses = match packet[network] >> 4 {
        4 => &packet[network + 12..network + 20],
        _ => &packet[network + 8..network + 40],
    };
    let length = ((packet.len() - transport) as u16).to_be_bytes();
    [addresses, &[0, protocol], &length].concat()
}

fn put(packet: &mut [u8], at: usize, change: impl Fn(usize) -> usize) {
    let old = usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    packet[at..at + 2].copy_from_slice(&(change(old) as u16).to_be_bytes());
}

/// Finishes the transport checksum of an IPv4 or IPv6 packet without extension headers.
pub fn with_transport_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let network = network(&packet);
    let (transport, protocol) = match packet[network] >> 4 {
        4 => (
            network + usize::from(packet[network] & 15) * 4,
            packet[network + 9],
        ),
        _ => (network + 40, packet[network + 6]),
    };
    let field = if protocol == 6 { 16 } else { 6 };
    put(&mut packet, transport + field, |_| 0);
    let pseudo = !checksum(&pseudo_header(&packet, network, transport, protocol));
    put(&mut packet, transport + field, |_| usize::from(pseudo));
    finish(&mut packet, transport, field, protocol == 17);
    packet
}

/// A capture file in the classic format, nanoseconds left 0.
pub fn write_pcap<'a>(file: &Path, frames: impl Iterator<Item = &'a [u8]>) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 1 << 18, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for frame in frames {
        let length = frame.len() as u32;
        for word in [0, 0, length, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    fs::write(file, bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
