//! Reading what the programs counted: one value a CPU, summed here.

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::error::Error;
use super::skel::Counters;

/// A program's counters; reads them also after the program is gone.
#[derive(Debug)]
pub struct CounterReader(MapHandle);

impl CounterReader {
    pub(super) fn new(map: MapHandle) -> CounterReader {
        CounterReader(map)
    }

    pub(super) fn try_clone(&self) -> Result<CounterReader, Error> {
        MapHandle::try_from(&self.0)
            .map(CounterReader)
            .map_err(Error::map("duplicate the counters"))
    }

    /// Reads and sums the counters of all CPUs. Unit: packets on the wire.
    ///
    /// # Errors
    /// A failed map look-up.
    pub fn read(&self) -> Result<Counters, Error> {
        let mut sum = Counters::default();
        let values = self
            .0
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
    for (total, value) in sum.left_out.iter_mut().zip(one.left_out) {
        *total += value;
    }
}
