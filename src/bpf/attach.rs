//! Links that hold a program on a hook: tcx and XDP.
//!
//! A link is a descriptor: the kernel detaches when the last one closes, crash included, so nothing is
//! left behind (kernel commit e420bed02507 for tcx, 5.9 for XDP). Nothing is pinned.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::error::Error;

/// Which hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// tc ingress, by tcx.
    TcxIngress,
    /// tc egress, by tcx.
    TcxEgress,
    /// XDP in the driver.
    XdpNative,
    /// XDP in the stack.
    XdpGeneric,
}

impl Hook {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Hook::TcxIngress => "tcx ingress",
            Hook::TcxEgress => "tcx egress",
            Hook::XdpNative => "native XDP",
            Hook::XdpGeneric => "generic XDP",
        }
    }

    fn attach_type(self) -> libbpf_sys::bpf_attach_type {
        match self {
            Hook::TcxIngress => libbpf_sys::BPF_TCX_INGRESS,
            Hook::TcxEgress => libbpf_sys::BPF_TCX_EGRESS,
            Hook::XdpNative | Hook::XdpGeneric => libbpf_sys::BPF_XDP,
        }
    }

    fn flags(self) -> u32 {
        match self {
            // Before all others: Cilium's and the AWS network-policy programs end the chain.
            Hook::TcxIngress | Hook::TcxEgress => libbpf_sys::BPF_F_BEFORE,
            Hook::XdpNative => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Hook::XdpGeneric => libbpf_sys::XDP_FLAGS_SKB_MODE,
        }
    }
}

/// An attached program; dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    link: OwnedFd,
    /// Where it is attached.
    pub hook: Hook,
}

impl Attachment {
    /// Whether the interface is still there: when one is deleted, the kernel empties the link.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        // SAFETY: a plain C struct for which all zeros is valid.
        let mut info: libbpf_sys::bpf_link_info = unsafe { std::mem::zeroed() };
        let mut size = std::mem::size_of::<libbpf_sys::bpf_link_info>() as u32;
        // SAFETY: the descriptor is open, and the structure is as large as `size` says.
        let result = unsafe {
            libbpf_sys::bpf_link_get_info_by_fd(self.link.as_raw_fd(), &raw mut info, &raw mut size)
        };
        // SAFETY: tcx and XDP both begin with the interface's number, an integer.
        let ifindex = unsafe { info.__bindgen_anon_1.tcx.ifindex };
        // A kernel that does not tell is taken at its word that it attached.
        result != 0 || ifindex != 0
    }
}

/// Attaches a program to a hook of an interface.
///
/// # Errors
/// EINVAL where the kernel has no tcx, EBUSY where another XDP program is attached, EOPNOTSUPP where
/// the driver has no native XDP, ERANGE/EINVAL where its MTU or queues do not allow it.
pub fn attach(
    program: BorrowedFd<'_>,
    ifindex: u32,
    interface: &str,
    hook: Hook,
) -> Result<Attachment, Error> {
    create_link(program, ifindex, hook)
        .map(|link| Attachment { link, hook })
        .map_err(|source| Error::Attach {
            interface: interface.to_owned(),
            hook: hook.name(),
            source,
        })
}

fn create_link(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    let ifindex =
        i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: a plain C struct for which all zeros is "no options".
    let mut options: libbpf_sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = std::mem::size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t;
    options.flags = hook.flags();
    // SAFETY: the descriptor is open for the call and the options are initialised, with their size.
    let link = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, hook.attach_type(), &options)
    };
    if link < 0 {
        return Err(io::Error::from_raw_os_error(-link));
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}
