//! Telling a running program which outer flows are our own copies, by its mapped variables.
//!
//! Called by control: before the first copy is sent, and again when a target has another address.

use std::io;
use std::mem::offset_of;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use libbpf_rs::MapHandle;
use std::os::fd::AsFd;

use super::error::Error;
use super::skel::{Control, OwnFlow, MAX_OWN_FLOWS};
use crate::packet::encap::{Signature, Tunnel, UDP_HEADER};
use crate::source::mapped::MappedArray;

/// The entries by which a program knows the copies for one target: one, or two where GRE carries IP.
#[must_use]
pub fn own_flows(
    destination: IpAddr,
    tunnel: &Tunnel,
    source_ports: RangeInclusive<u16>,
) -> Vec<OwnFlow> {
    let signatures = tunnel.signatures();
    let entry = |signature: &Signature| {
        let mut flow = OwnFlow {
            protocol: tunnel.protocol(),
            ..OwnFlow::default()
        };
        match destination {
            IpAddr::V4(address) => {
                flow.family = 4;
                flow.destination[0] = u32::from_ne_bytes(address.octets());
            }
            IpAddr::V6(address) => {
                flow.family = 6;
                for (word, bytes) in flow.destination.iter_mut().zip(address.octets().chunks(4)) {
                    *word = word_at(bytes, 0);
                }
            }
        }
        let mut front = 0;
        if let Some(port) = tunnel.udp_port() {
            flow.destination_port = port;
            flow.source_port_first = *source_ports.start();
            flow.source_port_last = *source_ports.end();
            front = UDP_HEADER;
        }
        flow.header_offset = front as u8;
        flow.header_mask = word_at(&signature.mask, front);
        flow.header = word_at(&signature.bytes, front) & flow.header_mask;
        // The next word that counts, if there is one, holds the identifier.
        let identifier = (front + 4..signature.length)
            .step_by(4)
            .find(|at| word_at(&signature.mask, *at) != 0);
        if let Some(at) = identifier {
            flow.identifier_offset = at as u8;
            flow.identifier_mask = word_at(&signature.mask, at);
            flow.identifier = word_at(&signature.bytes, at) & flow.identifier_mask;
        }
        flow
    };
    signatures.iter().map(entry).collect()
}

/// Four bytes at `at` as a word in network order; 0 beyond the end.
fn word_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_ne_bytes(word.copied().unwrap_or_default())
}

/// The program's `control` variable, mapped.
#[derive(Debug)]
pub struct ControlWords {
    mapping: MappedArray,
}

impl ControlWords {
    /// Maps the variables of a loaded object; `control` is the only one, at offset 0.
    ///
    /// # Errors
    /// What mmap(2) said.
    pub fn map(variables: &MapHandle) -> Result<ControlWords, Error> {
        let mapping = MappedArray::new(variables.as_fd(), std::mem::size_of::<Control>(), 1)
            .map_err(Error::map_io("map the program's variables"))?;
        Ok(ControlWords { mapping })
    }

    /// Puts a generation in force: packets from now on are decided by the slot of its low bit.
    pub fn set_generation(&self, generation: u32) {
        if let Some(word) = self.mapping.word(offset_of!(Control, generation)) {
            word.store(generation, Ordering::Release);
        }
    }

    /// Replaces the list of our own outer flows. While it is written, the programs see a shorter list,
    /// so this belongs before the first copy is sent.
    ///
    /// # Errors
    /// More flows than fit.
    pub fn set_own_flows(&self, flows: &[OwnFlow]) -> Result<(), Error> {
        fits(flows)?;
        self.set_count(0);
        for (index, flow) in flows.iter().enumerate() {
            self.set_flow(index, flow);
        }
        self.set_count(flows.len());
        Ok(())
    }

    /// Replaces the list while the programs run: flows that are in both lists are known at every moment. New
    /// ones are written behind the others before the programs are told of them. Where there is no room for both,
    /// those that are not needed any more go first. One thread at a time.
    ///
    /// # Errors
    /// More flows than fit.
    pub fn change_own_flows(&self, flows: &[OwnFlow]) -> Result<(), Error> {
        fits(flows)?;
        let mut here = self.own_flows();
        let new: Vec<OwnFlow> = flows
            .iter()
            .filter(|flow| !has(&here, flow))
            .copied()
            .collect();
        if here.len() + new.len() > MAX_OWN_FLOWS {
            self.remove_others(&mut here, flows);
        }
        for flow in new {
            self.set_flow(here.len(), &flow);
            here.push(flow);
            self.set_count(here.len());
        }
        self.remove_others(&mut here, flows);
        Ok(())
    }

    /// Removes what is not in `wanted`: the last entry takes the place, and is known by the old one until then.
    fn remove_others(&self, here: &mut Vec<OwnFlow>, wanted: &[OwnFlow]) {
        let mut index = 0;
        while index < here.len() {
            if has(wanted, &here[index]) {
                index += 1;
                continue;
            }
            here.swap_remove(index);
            if let Some(moved) = here.get(index) {
                self.set_flow(index, moved);
            }
            self.set_count(here.len());
        }
    }

    /// The list as it is.
    fn own_flows(&self) -> Vec<OwnFlow> {
        let count = self.mapping.word(offset_of!(Control, own_flow_count));
        let count = count.map_or(0, |count| count.load(Ordering::SeqCst)) as usize;
        let flow = |index: usize| {
            let words = 0..std::mem::size_of::<OwnFlow>() / 4;
            let bytes: Vec<u8> = words
                .filter_map(|word| self.mapping.word(place(index) + word * 4))
                .flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
                .collect();
            super::policy::from_bytes(&bytes)
        };
        (0..count.min(MAX_OWN_FLOWS)).filter_map(flow).collect()
    }

    fn set_flow(&self, index: usize, flow: &OwnFlow) {
        for (number, chunk) in super::policy::bytes_of(flow).chunks_exact(4).enumerate() {
            let value = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            if let Some(word) = self.mapping.word(place(index) + number * 4) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Tells the programs how many entries count; what was written before is seen by then.
    fn set_count(&self, count: usize) {
        if let Some(word) = self.mapping.word(offset_of!(Control, own_flow_count)) {
            word.store(u32::try_from(count).unwrap_or(0), Ordering::SeqCst);
        }
    }
}

fn has(list: &[OwnFlow], flow: &OwnFlow) -> bool {
    let bytes = super::policy::bytes_of(flow);
    list.iter()
        .any(|other| super::policy::bytes_of(other) == bytes)
}

/// Where an entry stands among the variables.
fn place(index: usize) -> usize {
    offset_of!(Control, own_flows) + index * std::mem::size_of::<OwnFlow>()
}

fn fits(flows: &[OwnFlow]) -> Result<(), Error> {
    if flows.len() <= MAX_OWN_FLOWS {
        return Ok(());
    }
    Err(Error::Map {
        what: "store our outer flows",
        source: io::Error::other(format!(
            "{} targets, at most {MAX_OWN_FLOWS} fit",
            flows.len()
        )),
    })
}
