//! Opening the sockets that send: what needs privileges or may fail. Called by control, before a
//! worker starts; the worker gets descriptors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::packet::encap::{IpVersion, Marking};

/// How a socket shall send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Outer source address; `None`: the route's.
    pub source: Option<IpAddr>,
    /// Outer destination address.
    pub destination: IpAddr,
    /// Outer UDP destination port.
    pub port: u16,
    /// Device that the copies have to leave by.
    pub device: Option<String>,
    /// TTL and DSCP.
    pub marking: Marking,
    /// Class in the host's queueing disciplines; `None`: the kernel's choice.
    pub priority: Option<u8>,
}

impl Endpoint {
    /// Version of the outer IP header.
    #[must_use]
    pub fn version(&self) -> IpVersion {
        match self.destination {
            IpAddr::V4(_) => IpVersion::V4,
            IpAddr::V6(_) => IpVersion::V6,
        }
    }
}

/// Bytes of a socket's send buffer: a few super-packets.
const SEND_BUFFER: libc::c_int = 8 << 20;

/// A UDP socket for each of `ports` source ports from `first_port` on, connected to the target.
///
/// # Errors
/// What the kernel said, with what was tried.
pub fn udp(endpoint: &Endpoint, first_port: u16, ports: u16) -> io::Result<Vec<OwnedFd>> {
    (0..ports)
        .map(|number| udp_one(endpoint, first_port + number))
        .collect()
}

fn udp_one(endpoint: &Endpoint, source_port: u16) -> io::Result<OwnedFd> {
    let socket = socket(endpoint, libc::SOCK_DGRAM, libc::IPPROTO_UDP)?;
    // Each worker has a socket on each source port, and so has a second xtee of this host.
    set(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    if endpoint.version() == IpVersion::V6 {
        // Else a socket for IPv6 takes the port for IPv4 as well.
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    prepare(&socket, endpoint)?;
    let any = match endpoint.version() {
        IpVersion::V4 => Ipv4Addr::UNSPECIFIED.into(),
        IpVersion::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    bind(&socket, endpoint.source.unwrap_or(any), source_port).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("bind to UDP port {source_port}: {error}"),
        )
    })?;
    connect(&socket, endpoint.destination, endpoint.port)?;
    Ok(socket)
}

/// A raw GRE socket, connected to the target. Needs CAP_NET_RAW.
///
/// # Errors
/// What the kernel said, with what was tried.
pub fn raw_gre(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let socket = socket(endpoint, libc::SOCK_RAW, libc::IPPROTO_GRE)?;
    prepare(&socket, endpoint)?;
    if let Some(source) = endpoint.source {
        bind(&socket, source, 0)?;
    }
    connect(&socket, endpoint.destination, 0)?;
    Ok(socket)
}

/// A raw socket that takes whole IP packets, header included, connected to the target. Needs CAP_NET_RAW.
///
/// # Errors
/// What the kernel said, with what was tried.
pub fn whole_packets(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    /// `IP_NODEFRAG` of linux/in.h: connection tracking shall not put our fragments together.
    const IP_NODEFRAG: libc::c_int = 22;
    let socket = socket(endpoint, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    prepare(&socket, endpoint)?;
    if endpoint.version() == IpVersion::V4 {
        set(&socket, libc::IPPROTO_IP, IP_NODEFRAG, 1)?;
    }
    if let Some(source) = endpoint.source {
        bind(&socket, source, 0)?;
    }
    connect(&socket, endpoint.destination, 0)?;
    Ok(socket)
}

/// Puts a socket in the place of another: whoever sends by `old`'s descriptor sends by `new` from the next call
/// on. No call fails meanwhile; one that is under way ends on the old socket.
///
/// # Errors
/// What dup3(2) said.
pub fn replace(old: BorrowedFd<'_>, new: &OwnedFd) -> io::Result<()> {
    // SAFETY: two open descriptors. `old`'s number stays open and its owner's; only what it stands for changes,
    // which is a socket of the same kind.
    check(unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) })
}

fn prepare(socket: &OwnedFd, endpoint: &Endpoint) -> io::Result<()> {
    let Marking { ttl, tos } = endpoint.marking;
    let (ttl, tos) = (libc::c_int::from(ttl), libc::c_int::from(tos));
    // Without RECVERR the kernel hides that its queue or device refused a datagram (udp_send_skb).
    // PMTUDISC_DO sets DF: a copy that does not fit is told by EMSGSIZE, never fragmented behind our back.
    let options = match endpoint.version() {
        IpVersion::V4 => [
            (libc::IP_RECVERR, 1),
            (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
            (libc::IP_TTL, ttl),
            (libc::IP_TOS, tos),
        ],
        IpVersion::V6 => [
            (libc::IPV6_RECVERR, 1),
            (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
            (libc::IPV6_UNICAST_HOPS, ttl),
            (libc::IPV6_TCLASS, tos),
        ],
    };
    let level = match endpoint.version() {
        IpVersion::V4 => libc::IPPROTO_IP,
        IpVersion::V6 => libc::IPPROTO_IPV6,
    };
    for (name, value) in options {
        set(socket, level, name, value)?;
    }
    if let Some(priority) = endpoint.priority {
        // After the type of service, which sets it too.
        let priority = libc::c_int::from(priority);
        set(socket, libc::SOL_SOCKET, libc::SO_PRIORITY, priority)?;
    }
    if set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER).is_err() {
        set(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER)?;
    }
    refuse_input(socket)?;
    if let Some(device) = &endpoint.device {
        bind_device(socket, device).map_err(|error| {
            io::Error::new(error.kind(), format!("bind to device {device}: {error}"))
        })?;
    }
    Ok(())
}

fn socket(endpoint: &Endpoint, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let family = match endpoint.version() {
        IpVersion::V4 => libc::AF_INET,
        IpVersion::V6 => libc::AF_INET6,
    };
    // SAFETY: socket takes integers only.
    let raw = unsafe {
        libc::socket(
            family,
            kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            protocol,
        )
    };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn set(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option is an int that outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

/// We only send; whatever comes back is dropped by a filter instead of filling the receive buffer.
fn refuse_input(socket: &OwnedFd) -> io::Result<()> {
    // BPF_RET | BPF_K, 0: accept no byte.
    let mut refuse = libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &mut refuse,
    };
    // SAFETY: the program and its one instruction outlive the call; the kernel copies them.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            std::mem::size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
}

fn bind_device(socket: &OwnedFd, device: &str) -> io::Result<()> {
    // SAFETY: the name's bytes outlive the call; the kernel is told their number.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            device.as_ptr().cast(),
            device.len() as libc::socklen_t,
        )
    })
}

/// An address as the kernel takes it.
#[repr(C)]
union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

fn address(ip: IpAddr, port: u16) -> (Address, libc::socklen_t) {
    match SocketAddr::new(ip, port) {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            let length = std::mem::size_of_val(&address) as libc::socklen_t;
            (Address { v4: address }, length)
        }
        SocketAddr::V6(v6) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: port.to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: 0,
            };
            let length = std::mem::size_of_val(&address) as libc::socklen_t;
            (Address { v6: address }, length)
        }
    }
}

fn bind(socket: &OwnedFd, ip: IpAddr, port: u16) -> io::Result<()> {
    let (address, length) = address(ip, port);
    // SAFETY: an address of which `length` bytes are initialised.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            length,
        )
    })
}

fn connect(socket: &OwnedFd, ip: IpAddr, port: u16) -> io::Result<()> {
    let (address, length) = address(ip, port);
    // SAFETY: an address of which `length` bytes are initialised.
    check(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            length,
        )
    })
    .map_err(|error| io::Error::new(error.kind(), format!("connect to {ip}: {error}")))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What the kernel takes for the path MTU of a connected socket, in bytes.
pub(super) fn path_mtu(socket: BorrowedFd<'_>, version: IpVersion) -> Option<u32> {
    let (level, name) = match version {
        IpVersion::V4 => (libc::IPPROTO_IP, libc::IP_MTU),
        IpVersion::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: libc::c_int = 0;
    let mut length = std::mem::size_of_val(&mtu) as libc::socklen_t;
    // SAFETY: the option is an int, of the length that is told, that outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut mtu).cast(),
            &mut length,
        )
    };
    check(result).ok()?;
    u32::try_from(mtu).ok()
}

/// Takes all pending errors off a socket's error queue; returns how many. The receive buffer bounds
/// them, and so does this.
pub(super) fn clear_errors(socket: BorrowedFd<'_>) -> usize {
    const MOST: usize = 1024;
    let mut byte = [0u8; 1];
    for taken in 0..MOST {
        // SAFETY: a buffer of the given length that outlives the call.
        let received = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                byte.as_mut_ptr().cast(),
                byte.len(),
                libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
            )
        };
        if received < 0 {
            return taken;
        }
    }
    MOST
}
