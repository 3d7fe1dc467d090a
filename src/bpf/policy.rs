//! Publishing a compiled rule set to a program: whole, and between two packets.
//!
//! Two slots. The one that is not in force is filled, then one word says that it is. Before a slot is
//! written again, a grace period makes sure that no program still reads it.

use std::alloc::{self, Layout};
use std::io;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle, Object};

use super::error::Error;
use super::networks::{Entries, NetworkSlots};
use super::object;
use super::own_flows::ControlWords;
use super::skel::{Bits, Network4Key, Network6Key, Policy};
use crate::mirror::tables::{NetBits, PortBits, Tables};

/// The maps of one program that hold its rules.
#[derive(Debug)]
pub struct PolicyMaps {
    slots: [MapHandle; 2],
    networks4: NetworkSlots,
    networks6: NetworkSlots,
    generation: u32,
}

impl PolicyMaps {
    /// The maps of a loaded object.
    pub(super) fn of(program: &'static str, object: &Object) -> Result<PolicyMaps, Error> {
        let map = |name: &str| object::map(program, object, name);
        Ok(PolicyMaps {
            slots: [map("policy_even")?, map("policy_odd")?],
            networks4: NetworkSlots::new([map("networks4_even")?, map("networks4_odd")?]),
            networks6: NetworkSlots::new([map("networks6_even")?, map("networks6_odd")?]),
            generation: 0,
        })
    }

    /// The generation in force; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Puts a rule set in force and returns its generation.
    ///
    /// # Errors
    /// A failed map operation; the rule set that was in force stays so.
    pub fn publish(
        &mut self,
        words: &ControlWords,
        tables: &Tables,
        allow_credential_endpoints: bool,
    ) -> Result<u32, Error> {
        let generation = self.generation.wrapping_add(1);
        let slot = (generation & 1) as usize;
        wait_for_readers().map_err(Error::map_io("wait for running programs"))?;
        let policy = encode(tables, allow_credential_endpoints, generation);
        self.slots[slot]
            .update(&0u32.to_ne_bytes(), bytes_of(&*policy), MapFlags::ANY)
            .map_err(Error::map("write the rules"))?;
        // Without such rules the programs do not look there.
        if tables.needs_networks != 0 {
            self.networks4.fill(slot, &entries4(tables))?;
            self.networks6.fill(slot, &entries6(tables))?;
        }
        words.set_generation(generation);
        self.generation = generation;
        Ok(generation)
    }
}

fn entries4(tables: &Tables) -> Entries {
    let entry = |&(address, prefix, bits): &(u32, u8, NetBits)| {
        let key = Network4Key {
            prefix_length: u32::from(prefix),
            address: address.to_be(),
        };
        (bytes_of(&key).to_vec(), bits)
    };
    tables.networks4.iter().map(entry).collect()
}

fn entries6(tables: &Tables) -> Entries {
    let entry = |&(address, prefix, bits): &(u128, u8, NetBits)| {
        let words = [address >> 96, address >> 64, address >> 32, address];
        let key = Network6Key {
            prefix_length: u32::from(prefix),
            address: words.map(|word| (word as u32).to_be()),
        };
        (bytes_of(&key).to_vec(), bits)
    };
    tables.networks6.iter().map(entry).collect()
}

fn encode(tables: &Tables, allow_credential_endpoints: bool, generation: u32) -> Box<Policy> {
    let mut policy = zeroed_policy();
    policy.all = tables.all;
    policy.mirror = tables.mirror;
    policy.needs_ports = tables.needs_ports;
    policy.needs_networks = tables.needs_networks;
    policy.needs_mark = tables.needs_mark;
    policy.sliced = tables.sliced;
    for (words, slice) in policy.slices.iter_mut().zip(&tables.slices) {
        words.cutoff = slice.cutoff.unwrap_or(0);
        words.snaplen = slice.snaplen;
        words.sample_limit = slice.sample.map_or(u32::MAX, |sample| sample.limit());
    }
    policy.direction = tables.direction;
    policy.protocol = tables.protocol;
    policy.mark = *tables.mark;
    policy.no_network = net_bits(&tables.no_network);
    policy.generation = generation;
    policy.default_mirror = u8::from(tables.default_mirror);
    policy.allow_credential_endpoints = u8::from(allow_credential_endpoints);
    for (slot, class) in policy.port_classes.iter_mut().zip(&tables.port_classes) {
        let PortBits {
            source,
            destination,
            either,
        } = *class;
        *slot = Bits {
            source,
            destination,
            either,
        };
    }
    let ports = policy.port_class_of.len().min(tables.port_class_of.len());
    policy.port_class_of[..ports].copy_from_slice(&tables.port_class_of[..ports]);
    policy
}

/// A quarter of a megabyte: made on the heap, never on a stack.
fn zeroed_policy() -> Box<Policy> {
    let layout = Layout::new::<Policy>();
    // SAFETY: the layout's size is not zero.
    let memory = unsafe { alloc::alloc_zeroed(layout) };
    if memory.is_null() {
        alloc::handle_alloc_error(layout);
    }
    // SAFETY: of Box's own allocator and Policy's layout; integers only, for which all zeros is a value.
    unsafe { Box::from_raw(memory.cast::<Policy>()) }
}

fn net_bits(bits: &NetBits) -> Bits {
    Bits {
        source: bits.source,
        destination: bits.destination,
        either: bits.either,
    }
}

/// Waits until no program that began before this call still runs: programs run inside RCU read-side
/// sections, and MEMBARRIER_CMD_GLOBAL is synchronize_rcu (kernel/sched/membarrier.c).
fn wait_for_readers() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier takes integers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    // nohz_full kernels refuse the command; a program runs for microseconds, with preemption of its
    // migration off, so a pause far beyond that serves.
    std::thread::sleep(std::time::Duration::from_millis(50));
    Ok(())
}

/// Types of the skeleton that cross to the kernel as bytes: C layout, integers only, padding explicit.
pub trait Plain: Copy {}
impl Plain for Bits {}
impl Plain for Policy {}
impl Plain for Network4Key {}
impl Plain for Network6Key {}
impl Plain for super::skel::OwnFlow {}
impl Plain for super::skel::Counters {}
impl Plain for super::skel::Record {}
impl Plain for super::skel::TapSettings {}
impl Plain for super::skel::SteerSettings {}

/// A value's bytes.
#[must_use]
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: Plain types have no implicit padding, so every byte is initialised; lifetime of `value`.
    unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(value).cast::<u8>(),
            std::mem::size_of::<T>(),
        )
    }
}

/// A value from bytes, which may be longer; `None` when they are too short.
#[must_use]
pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < std::mem::size_of::<T>() {
        return None;
    }
    // SAFETY: long enough, and any bit pattern is a value of a Plain type; unaligned read.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}
