//! Reading what the programs counted: one value a CPU, summed here.

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::error::Error;
use super::skel::Counters;

/// Reads and sums a program's counters. Unit: packets on the wire.
///
/// # Errors
/// A failed map look-up.
pub fn read(map: &MapHandle) -> Result<Counters, Error> {
    let mut sum = Counters::default();
    let values = map
        .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
        .map_err(Error::map("read the counters"))?
        .unwrap_or_default();
    for value in &values {
        if let Some(counters) = super::policy::from_bytes::<Counters>(value) {
            add(&mut sum, &counters);
        }
    }
    Ok(sum)
}

fn add(sum: &mut Counters, one: &Counters) {
    sum.seen += one.seen;
    sum.unmatched += one.unmatched;
    sum.matched += one.matched;
    sum.captured += one.captured;
    sum.own_copies += one.own_copies;
    sum.unknown_fragments += one.unknown_fragments;
    for (total, value) in sum.dropped.iter_mut().zip(one.dropped) {
        *total += value;
    }
    for (total, value) in sum.rules.iter_mut().zip(one.rules) {
        *total += value;
    }
}
