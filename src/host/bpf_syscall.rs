//! The few bpf(2) commands that looking needs: query hooks, describe programs, and load throw-away
//! programs and maps for probes.
//!
//! Must not attach anything outside the probes' own empty network namespace, and knows nothing of
//! xtee's programs: `crate::bpf` loads those. libbpf is not used here because its probes print to
//! stderr and hide errno, which is what a probe is about. Called by features and hooks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::sys;

// linux/bpf.h, enum bpf_cmd
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;

/// enum bpf_prog_type: tc classifier.
pub(super) const PROG_TYPE_SCHED_CLS: u32 = 3;
/// enum bpf_prog_type: XDP.
pub(super) const PROG_TYPE_XDP: u32 = 6;
/// enum bpf_map_type: ring buffer, 5.8.
pub(super) const MAP_TYPE_RINGBUF: u32 = 27;
/// enum bpf_attach_type: XDP link.
pub(super) const ATTACH_XDP: u32 = 37;
/// enum bpf_attach_type: tcx, 6.6.
pub(super) const ATTACH_TCX_INGRESS: u32 = 46;
/// enum bpf_attach_type: tcx, 6.6.
pub(super) const ATTACH_TCX_EGRESS: u32 = 47;

/// `union bpf_attr` of a command: the kernel takes any size, and wants zeros beyond what it knows.
trait Attribute {}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}
impl Attribute for MapCreate {}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}
impl Attribute for ProgLoad {}

#[repr(C)]
#[derive(Default)]
struct GetById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}
impl Attribute for GetById {}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}
impl Attribute for GetInfo {}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}
impl Attribute for ProgQuery {}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}
impl Attribute for LinkCreate {}

fn call<A: Attribute>(command: libc::c_int, attribute: &mut A) -> io::Result<libc::c_long> {
    let pointer: *mut A = attribute;
    // SAFETY: `attribute` is a C structure without uninitialised padding, valid for its size; the
    // pointers in it were taken by the callers from buffers that outlive this call.
    sys::check(unsafe { libc::syscall(libc::SYS_bpf, command, pointer, std::mem::size_of::<A>()) })
}

/// Makes a map.
pub(super) fn create_map(map_type: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attribute = MapCreate {
        map_type,
        max_entries,
        ..MapCreate::default()
    };
    call(BPF_MAP_CREATE, &mut attribute).map(sys::own)
}

/// Loads the program `return value`.
pub(super) fn load_return(prog_type: u32, value: i32) -> io::Result<OwnedFd> {
    // struct bpf_insn: opcode, registers, offset, immediate. BPF_ALU64|BPF_MOV|BPF_K r0; BPF_EXIT.
    let mut code = [0u8; 16];
    code[0] = 0xb7;
    code[4..8].copy_from_slice(&value.to_ne_bytes());
    code[8] = 0x95;
    let license = c"GPL";
    let mut attribute = ProgLoad {
        prog_type,
        insn_cnt: 2,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..ProgLoad::default()
    };
    call(BPF_PROG_LOAD, &mut attribute).map(sys::own)
}

/// Attaches a program by a link, which the returned descriptor keeps. Only for probes, in their own
/// namespace.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    interface: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: interface,
        attach_type,
        flags,
    };
    call(BPF_LINK_CREATE, &mut attribute).map(sys::own)
}

/// Ids of the programs on a hook of an interface, in the order in which they run.
pub(super) fn query_hook(interface: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    // The kernel allows 63 programs on a tcx hook (BPF_MPROG_MAX 64).
    let mut ids = [0u32; 64];
    let mut attribute = ProgQuery {
        target_ifindex: interface,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..ProgQuery::default()
    };
    call(BPF_PROG_QUERY, &mut attribute)?;
    Ok(ids[..ids.len().min(attribute.count as usize)].to_vec())
}

/// Name of a program, at most 15 bytes, as its loader gave it.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    // struct bpf_prog_info up to and with `name`, which stands at byte 64.
    const NAME: usize = 64;
    const LENGTH: usize = NAME + 16;
    let mut by_id = GetById {
        id,
        ..GetById::default()
    };
    let program = sys::own(call(BPF_PROG_GET_FD_BY_ID, &mut by_id)?);
    let mut info = [0u8; LENGTH];
    let mut attribute = GetInfo {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: LENGTH as u32,
        info: info.as_mut_ptr() as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    let name = &info[NAME..];
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_those_of_linux_bpf_h() {
        assert_eq!(offset_of!(ProgQuery, prog_ids), 16);
        assert_eq!(offset_of!(ProgQuery, count), 24);
        assert_eq!(offset_of!(ProgQuery, prog_attach_flags), 32);
        assert_eq!(offset_of!(ProgQuery, revision), 56);
        assert_eq!(size_of::<ProgQuery>(), 64);
        assert_eq!(offset_of!(ProgLoad, license), 16);
        assert_eq!(size_of::<ProgLoad>(), 48);
        assert_eq!(size_of::<GetInfo>(), 16);
        assert_eq!(size_of::<LinkCreate>(), 16);
        assert_eq!(size_of::<MapCreate>(), 20);
    }
}
