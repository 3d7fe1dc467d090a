//! What the running kernel can do, found out by trying.
//!
//! Versions are not compared: distributions carry features back and turn others off. A probe touches
//! no interface of the host: hooks are asked about an interface that does not exist, and what has to
//! be attached is attached to the loopback of an own, empty network namespace that goes away with the
//! probe's thread. Called by facts and the doctor.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_packet_route::RouteNetlinkMessage;

use super::netlink::Netlink;
use super::{bpf_syscall as bpf, sys};

/// Result of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// It works.
    Yes,
    /// The kernel does not have it.
    No,
    /// The kernel did not let us try (EPERM): capabilities, lockdown or a security module.
    Denied,
    /// The probe failed in a way that says neither yes nor no.
    #[default]
    Unknown,
}

impl Probe {
    /// It is known to work.
    pub fn yes(self) -> bool {
        self == Self::Yes
    }

    /// In a word.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Denied => "not permitted to try",
            Self::Unknown => "unknown",
        }
    }

    fn of<T>(result: &io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Yes,
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Self::Denied,
                Some(
                    libc::EINVAL
                    | libc::EOPNOTSUPP
                    | libc::ENOSYS
                    | libc::EAFNOSUPPORT
                    | libc::ENOPROTOOPT
                    | libc::ENOENT
                    | libc::EPROTONOSUPPORT,
                ) => Self::No,
                _ => Self::Unknown,
            },
        }
    }
}

/// All that xtee asks of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    /// `uname -r`, for display only.
    pub release: String,
    /// Programs on tcx hooks (6.6 and newer, where CONFIG_NET_XGRESS is on).
    pub tcx: Probe,
    /// The `clsact` queueing discipline with a BPF classifier: what tap uses where tcx is missing.
    pub clsact: Probe,
    /// tc programs can be loaded.
    pub tc_program: Probe,
    /// XDP programs can be loaded.
    pub xdp_program: Probe,
    /// XDP programs can be attached by a link (5.9), which a crash takes away.
    pub xdp_link: Probe,
    /// BPF ring buffers (5.8).
    pub ring_buffer: Probe,
    /// Sockets of family AF_XDP.
    pub af_xdp: Probe,
    /// `UDP_SEGMENT` on UDP sockets.
    pub udp_segment: Probe,
    /// `SO_PREFER_BUSY_POLL`.
    pub prefer_busy_poll: Probe,
    /// /sys/kernel/btf/vmlinux is there.
    pub btf: bool,
    /// The kernel's BTF has the function `bpf_cast_to_kern_ctx` (6.2).
    pub cast_to_kern_ctx: bool,
    /// The kernel's BTF has tcx links: what to go by where [`Self::tcx`] could not be tried.
    pub tcx_in_btf: bool,
    /// net.core.bpf_jit_enable; `None` where the kernel always compiles.
    pub jit: Option<bool>,
}

/// Runs all probes. Takes some milliseconds.
pub fn probe() -> KernelFeatures {
    let btf = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    let tc_program = bpf::load_return(bpf::PROG_TYPE_SCHED_CLS, -1);
    let xdp_program = bpf::load_return(bpf::PROG_TYPE_XDP, XDP_PASS);
    let mut features = KernelFeatures {
        release: sys::kernel_release(),
        tcx: probe_tcx(),
        tc_program: Probe::of(&tc_program),
        xdp_program: Probe::of(&xdp_program),
        // The size must be a power of two of whole pages; 64 KiB is one on every architecture.
        ring_buffer: Probe::of(&bpf::create_map(bpf::MAP_TYPE_RINGBUF, 1 << 16)),
        af_xdp: Probe::of(&socket(libc::AF_XDP, libc::SOCK_RAW)),
        udp_segment: probe_option(libc::IPPROTO_UDP, UDP_SEGMENT, 1400),
        prefer_busy_poll: probe_option(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 0),
        btf: !btf.is_empty(),
        cast_to_kern_ctx: contains(&btf, b"\0bpf_cast_to_kern_ctx\0"),
        tcx_in_btf: contains(&btf, b"\0tcx_link\0"),
        jit: fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
            .ok()
            .map(|text| text.trim() != "0"),
        ..KernelFeatures::default()
    };
    (features.clsact, features.xdp_link) = probe_in_own_namespace();
    features
}

const XDP_PASS: i32 = 2;
/// linux/udp.h, 4.18.
const UDP_SEGMENT: libc::c_int = 103;
/// asm-generic/socket.h, 5.11.
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
/// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;

/// Asks for the programs on the tcx hook of an interface that cannot exist. A kernel with tcx looks
/// the interface up and finds none (ENODEV); one without does not know the hook (EINVAL).
fn probe_tcx() -> Probe {
    match bpf::query_hook(i32::MAX as u32, bpf::ATTACH_TCX_INGRESS) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Probe::Yes,
        other => Probe::of(&other),
    }
}

/// The strings of BTF are NUL-terminated and each stands there once.
fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn socket(family: libc::c_int, kind: libc::c_int) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: socket takes three integers and touches no memory of ours.
    let descriptor = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    sys::check(descriptor.into()).map(sys::own)
}

fn probe_option(level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Probe {
    use std::os::fd::AsRawFd as _;
    let Ok(socket) = socket(libc::AF_INET, libc::SOCK_DGRAM) else {
        return Probe::Unknown;
    };
    let pointer: *const libc::c_int = &value;
    // SAFETY: the option value is one int, valid for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            pointer.cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Probe::of(&sys::check(result.into()))
}

/// What can only be known by attaching: on a thread of its own, in a network namespace of its own,
/// on that namespace's loopback. Returns (clsact, XDP link).
fn probe_in_own_namespace() -> (Probe, Probe) {
    let thread = std::thread::Builder::new()
        .name("xtee-probe".into())
        .spawn(|| match sys::enter_new_network_namespace() {
            Ok(()) => (probe_clsact(), probe_xdp_link()),
            Err(error) => {
                let result = Probe::of::<()>(&Err(error));
                (result, result)
            }
        });
    thread
        .ok()
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

/// A new namespace holds the loopback alone, and it has index 1.
const LOOPBACK: u32 = 1;

fn probe_clsact() -> Probe {
    let Ok(program) = bpf::load_return(bpf::PROG_TYPE_SCHED_CLS, -1) else {
        return Probe::Unknown;
    };
    let Ok(mut netlink) = Netlink::open() else {
        return Probe::Unknown;
    };
    let mut qdisc = TcMessage::default();
    qdisc.header.index = LOOPBACK as i32;
    qdisc.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    qdisc.header.parent = TcHandle::CLSACT;
    qdisc.attributes = vec![TcAttribute::Kind("clsact".into())];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let made = netlink.change(
        "clsact on the probe's loopback",
        RouteNetlinkMessage::NewQueueDiscipline(qdisc),
        flags,
    );
    if let Err(error) = made {
        return of_netlink(error.errno());
    }
    use std::os::fd::AsRawFd as _;
    let mut filter = TcMessage::default();
    filter.header.index = LOOPBACK as i32;
    filter.header.parent = TcHandle {
        major: 0xffff,
        minor: TcHandle::MIN_INGRESS,
    };
    // Priority 1 above, ETH_P_ALL in network order below.
    filter.header.info = 1 << 16 | u32::from(3u16.to_be());
    filter.attributes = vec![
        TcAttribute::Kind("bpf".into()),
        TcAttribute::Options(vec![TcOption::Bpf(TcFilterBpfOption::ProgFd(
            program.as_raw_fd() as u32,
        ))]),
    ];
    let made = netlink.change(
        "BPF classifier on the probe's loopback",
        RouteNetlinkMessage::NewTrafficFilter(filter),
        flags,
    );
    match made {
        Ok(()) => Probe::Yes,
        Err(error) => of_netlink(error.errno()),
    }
}

fn of_netlink(errno: Option<i32>) -> Probe {
    Probe::of::<()>(&Err(errno.map_or_else(
        || io::ErrorKind::Other.into(),
        io::Error::from_raw_os_error,
    )))
}

fn probe_xdp_link() -> Probe {
    let Ok(program) = bpf::load_return(bpf::PROG_TYPE_XDP, XDP_PASS) else {
        return Probe::Unknown;
    };
    Probe::of(&bpf::create_link(
        program.as_fd(),
        LOOPBACK,
        bpf::ATTACH_XDP,
        XDP_FLAGS_SKB_MODE,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_to_answer() {
        let of = |errno| Probe::of::<()>(&Err(io::Error::from_raw_os_error(errno)));
        assert_eq!(of(libc::EPERM), Probe::Denied);
        assert_eq!(of(libc::EINVAL), Probe::No);
        assert_eq!(of(libc::EAFNOSUPPORT), Probe::No);
        assert_eq!(of(libc::ENOMEM), Probe::Unknown);
        assert!(Probe::of(&Ok(())).yes());
    }

    #[test]
    fn a_name_is_found_only_as_a_whole() {
        assert!(contains(b"\0a\0bpf_cast\0b\0", b"\0bpf_cast\0"));
        assert!(!contains(b"\0bpf_cast_more\0", b"\0bpf_cast\0"));
        assert!(!contains(b"", b"\0x\0"));
    }

    #[test]
    fn without_bpf_rights_probes_say_denied_and_never_fail() {
        let features = probe();
        assert!(!features.release.is_empty());
        assert!(features.udp_segment.yes(), "4.18 has it");
        assert!(features.prefer_busy_poll.yes(), "5.11 has it");
    }
}
