//! Another party's tc program: drops UDP to one port and answers a verdict of choice to everything
//! else. Attached by tcx or clsact, in front or behind.
#![allow(dead_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::{TcHook, TC_EGRESS, TC_INGRESS};

use super::netns::Namespace;

/// Datagrams to this port are dropped.
pub const DROPPED_PORT: u16 = 7001;
/// "Let it pass", which ends the chain.
pub const PASS: i32 = 0;
/// "No opinion": the next program decides.
pub const NEXT: i32 = -1;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

fn owned(fd: i32, what: &str) -> OwnedFd {
    assert!(fd >= 0, "{what}: {}", std::io::Error::last_os_error());
    // SAFETY: the call has just returned this descriptor to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The other party's program, loaded.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Ends with `otherwise` for all that it does not drop.
    pub fn load(otherwise: i32) -> Program {
        let instructions = [
            // The legacy loads take the context in r6.
            instruction(0xbf, 6, 1, 0, 0),
            // r0 = IPv4 protocol; not UDP: pass
            instruction(0x30, 0, 0, 0, 23),
            instruction(0x55, 0, 0, 4, 17),
            // r0 = destination port
            instruction(0x28, 0, 0, 0, 36),
            instruction(0x55, 0, 0, 2, DROPPED_PORT as i32),
            // TC_ACT_SHOT
            instruction(0xb7, 0, 0, 0, 2),
            instruction(0x95, 0, 0, 0, 0),
            instruction(0xb7, 0, 0, 0, otherwise),
            instruction(0x95, 0, 0, 0, 0),
        ];
        // SAFETY: strings end with NUL, and an instruction is 8 bytes as the kernel lays it out.
        let fd = unsafe {
            libbpf_sys::bpf_prog_load(
                libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
                c"somebody".as_ptr(),
                c"GPL".as_ptr(),
                instructions.as_ptr().cast(),
                instructions.len() as u64,
                std::ptr::null_mut(),
            )
        };
        Program(owned(fd, "load"))
    }

    /// The number that the kernel gave it.
    pub fn id(&self) -> u32 {
        // SAFETY: a plain C struct for which all zeros is valid.
        let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
        let mut length = std::mem::size_of_val(&info) as u32;
        // SAFETY: the buffer is as large as `length` says.
        let result = unsafe {
            libbpf_sys::bpf_obj_get_info_by_fd(
                self.0.as_raw_fd(),
                std::ptr::from_mut(&mut info).cast(),
                &mut length,
            )
        };
        assert_eq!(result, 0, "program info");
        info.id
    }

    /// By tcx, in front of all others or behind them. Detached when the link is dropped.
    pub fn attach_tcx(&self, place: &Place, in_front: bool) -> OwnedFd {
        let _there = place.namespace.enter();
        // SAFETY: a plain C struct for which all zeros is "no options".
        let mut options: libbpf_sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
        options.sz = std::mem::size_of_val(&options) as libbpf_sys::size_t;
        if in_front {
            options.flags = libbpf_sys::BPF_F_BEFORE;
        }
        // SAFETY: the descriptor is open for the call and the options are initialised.
        let link = unsafe {
            libbpf_sys::bpf_link_create(
                self.0.as_raw_fd(),
                place.index() as i32,
                place.tcx_type(),
                &options,
            )
        };
        owned(link, "tcx link")
    }

    /// By clsact, with this priority. Stays until the interface goes.
    pub fn attach_clsact(&self, place: &Place, priority: u32) {
        let _there = place.namespace.enter();
        let mut hook = TcHook::new(self.0.as_fd());
        hook.ifindex(place.index() as i32)
            .attach_point(if place.ingress { TC_INGRESS } else { TC_EGRESS })
            .handle(1)
            .priority(priority);
        hook.create().expect("clsact");
        hook.attach().expect("attach by clsact");
    }
}

/// A direction of an interface.
#[derive(Clone, Copy, Debug)]
pub struct Place<'n> {
    pub namespace: &'n Namespace,
    pub interface: &'n str,
    pub ingress: bool,
}

impl Place<'_> {
    fn index(&self) -> u32 {
        let name = CString::new(self.interface).expect("interface name");
        // SAFETY: the name ends with NUL.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    }

    fn tcx_type(&self) -> libbpf_sys::bpf_attach_type {
        match self.ingress {
            true => libbpf_sys::BPF_TCX_INGRESS,
            false => libbpf_sys::BPF_TCX_EGRESS,
        }
    }

    /// `ingress` or `egress`, as tc(8) says.
    pub fn direction(&self) -> &'static str {
        match self.ingress {
            true => "ingress",
            false => "egress",
        }
    }

    /// Ids of the programs on tcx, in running order.
    pub fn tcx_programs(&self) -> Vec<u32> {
        let _there = self.namespace.enter();
        let mut ids = [0u32; 16];
        let mut count = ids.len() as u32;
        let mut flags = 0;
        // SAFETY: the buffer has room for `count` ids.
        let result = unsafe {
            libbpf_sys::bpf_prog_query(
                self.index() as i32,
                self.tcx_type(),
                0,
                &mut flags,
                ids.as_mut_ptr(),
                &mut count,
            )
        };
        assert_eq!(result, 0, "query tcx");
        ids[..count as usize].to_vec()
    }

    /// What tc(8) says of the clsact filters.
    pub fn clsact_filters(&self) -> String {
        let arguments = ["filter", "show", "dev", self.interface, self.direction()];
        self.namespace.run("tc", &arguments)
    }
}
