//! Attaching to tc by a `clsact` queueing discipline, where the kernel has no tcx (before 6.6).
//!
//! Such a filter outlives its process. So it carries a handle and a priority of ours: it is detached on
//! exit, a stale one is replaced on start, and nobody else's filter is ever touched.
//!
//! The qdisc stays when we go. The kernel deactivates the device while one is made or removed
//! (net/sched/sch_api.c, `qdisc_graft`), also a clsact that queues nothing: what is sent in that moment,
//! up to a millisecond, is dropped. Production pays that once at most, and an empty clsact costs nothing.

use std::os::fd::BorrowedFd;

use libbpf_rs::{TcHook, TC_EGRESS, TC_INGRESS};

use super::error::{to_io, Error};

/// Our filter's handle ("xt"): what we replace on start and remove on exit.
pub const HANDLE: u32 = 0x7874;
/// The first priority there is: before filters that end the chain.
pub const PRIORITY: u32 = 1;

/// One program attached by clsact; dropping it detaches.
pub struct ClsactAttachment {
    hook: TcHook,
}

impl std::fmt::Debug for ClsactAttachment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ClsactAttachment")
    }
}

/// Attaches to ingress or egress, replacing a stale filter of ours. Makes the clsact qdisc if needed.
///
/// # Errors
/// What the kernel said, for instance when another qdisc of that kind is in the way.
pub fn attach(
    program: BorrowedFd<'_>,
    ifindex: u32,
    interface: &str,
    ingress: bool,
) -> Result<ClsactAttachment, Error> {
    let hook_name = if ingress {
        "clsact ingress"
    } else {
        "clsact egress"
    };
    let error = |error: libbpf_rs::Error| Error::Attach {
        interface: interface.to_owned(),
        hook: hook_name,
        source: match error.kind() {
            libbpf_rs::ErrorKind::InvalidInput => std::io::Error::from_raw_os_error(libc::EINVAL),
            _ => to_io(&error),
        },
    };
    let mut hook = hook(program, ifindex, ingress).ok_or_else(|| {
        error(libbpf_rs::Error::from(std::io::Error::from(
            std::io::ErrorKind::InvalidInput,
        )))
    })?;
    hook.create().map_err(error)?;
    hook.attach().map_err(error)?;
    Ok(ClsactAttachment { hook })
}

/// Takes our filters off both hooks, whoever put them there: what an xtee that was killed left behind.
/// To be called only where such filters were seen.
pub fn remove_stale(program: BorrowedFd<'_>, ifindex: u32) {
    for ingress in [true, false] {
        if let Some(mut hook) = hook(program, ifindex, ingress) {
            // Gone meanwhile: nothing to do.
            let _ = hook.detach();
        }
    }
}

fn hook(program: BorrowedFd<'_>, ifindex: u32, ingress: bool) -> Option<TcHook> {
    let mut hook = TcHook::new(program);
    hook.ifindex(i32::try_from(ifindex).ok()?)
        .attach_point(if ingress { TC_INGRESS } else { TC_EGRESS })
        .replace(true)
        .handle(HANDLE)
        .priority(PRIORITY);
    Some(hook)
}

impl Drop for ClsactAttachment {
    fn drop(&mut self) {
        // The interface may be gone, and the filter with it: nothing is left to detach then.
        let _ = self.hook.detach();
    }
}
