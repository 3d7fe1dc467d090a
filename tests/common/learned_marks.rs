//! The marks that a running xtee has learned, as its program holds them: made old by hand, so that a
//! test need not wait for minutes.
#![allow(dead_code)]

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct xtee_flow_key` and `struct xtee_learned` of bpf/abi.h.
const KEY: usize = 40;
const VALUE: usize = 16;

/// Makes all learned marks older; returns how many there are.
pub fn age(pid: u32, seconds: u64) -> usize {
    let map = map_of(pid, "learned_marks");
    let mut key = [0u8; KEY];
    let mut previous: Option<[u8; KEY]> = None;
    let mut count = 0;
    loop {
        let from = previous
            .as_ref()
            .map_or(std::ptr::null(), |key| key.as_ptr().cast());
        // SAFETY: both keys are as large as the map's.
        let result = unsafe {
            libbpf_sys::bpf_map_get_next_key(map.as_raw_fd(), from, key.as_mut_ptr().cast())
        };
        if result != 0 {
            return count;
        }
        previous = Some(key);
        let mut value = [0u8; VALUE];
        // SAFETY: key and value are as large as the map's.
        let found = unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                map.as_raw_fd(),
                key.as_ptr().cast(),
                value.as_mut_ptr().cast(),
            )
        };
        if found != 0 {
            continue;
        }
        let seen = u64::from_ne_bytes(value[..8].try_into().expect("8 bytes"));
        let earlier = seen.wrapping_sub(seconds * 1_000_000_000);
        value[..8].copy_from_slice(&earlier.to_ne_bytes());
        // SAFETY: as above.
        let result = unsafe {
            libbpf_sys::bpf_map_update_elem(
                map.as_raw_fd(),
                key.as_ptr().cast(),
                value.as_ptr().cast(),
                libbpf_sys::BPF_EXIST.into(),
            )
        };
        assert_eq!(result, 0, "update a learned mark");
        count += 1;
    }
}

/// A map that a process holds, by name.
fn map_of(pid: u32, name: &str) -> OwnedFd {
    fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .expect("descriptors of a process")
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter_map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("map_id:"))?;
            line.trim().parse().ok()
        })
        .map(open)
        .find(|map| name_of(map) == name)
        .unwrap_or_else(|| panic!("process {pid} has no map {name}"))
}

fn open(id: u32) -> OwnedFd {
    // SAFETY: takes an integer.
    let fd = unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) };
    assert!(fd >= 0, "map {id}: {}", std::io::Error::last_os_error());
    // SAFETY: the call has just returned this descriptor to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn name_of(map: &OwnedFd) -> String {
    // SAFETY: a plain C struct for which all zeros is valid.
    let mut info: libbpf_sys::bpf_map_info = unsafe { std::mem::zeroed() };
    let mut length = std::mem::size_of_val(&info) as u32;
    // SAFETY: the buffer is as large as `length` says.
    let result = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            map.as_raw_fd(),
            std::ptr::from_mut(&mut info).cast(),
            &mut length,
        )
    };
    assert_eq!(result, 0, "map info");
    let bytes = info.name.iter().map(|&byte| byte as u8);
    String::from_utf8_lossy(&bytes.take_while(|&byte| byte != 0).collect::<Vec<_>>()).into_owned()
}
