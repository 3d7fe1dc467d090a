//! A pair of network tables (LPM tries), one a policy slot, kept as the compiled rules want them.
//!
//! Only the difference is written. A new trie put into the array of maps would cost a grace period of
//! its own (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c), so the slots keep theirs. Called by
//! `policy`, which makes sure that no program reads the slot meanwhile.

use std::collections::HashMap;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use super::error::Error;
use super::policy::bytes_of;
use super::skel::Bits;
use crate::mirror::tables::NetBits;

/// Entries of a network table (bpf/control_maps.h).
const MAX_NETWORKS: usize = 65536;

/// What a trie holds: the key's bytes and its rules.
pub(super) type Entries = HashMap<Vec<u8>, NetBits>;

/// The tries of one address family, and what is in them.
#[derive(Debug)]
pub(super) struct NetworkSlots {
    tries: [MapHandle; 2],
    written: [Entries; 2],
}

impl NetworkSlots {
    /// Empty tries, the even slot's first.
    pub(super) fn new(tries: [MapHandle; 2]) -> NetworkSlots {
        NetworkSlots {
            tries,
            written: [Entries::new(), Entries::new()],
        }
    }

    /// Makes the slot's trie hold exactly `wanted`. After an error the slot holds a part of it, and the
    /// next call mends that.
    pub(super) fn fill(&mut self, slot: usize, wanted: &Entries) -> Result<(), Error> {
        if wanted.len() > MAX_NETWORKS {
            return Err(Error::TooManyNetworks {
                count: wanted.len(),
                limit: MAX_NETWORKS,
            });
        }
        let (trie, written) = (&self.tries[slot], &mut self.written[slot]);
        // First what must go, so that there is room.
        let stale: Vec<Vec<u8>> = written
            .keys()
            .filter(|key| !wanted.contains_key(*key))
            .cloned()
            .collect();
        for key in stale {
            trie.delete(&key).map_err(Error::map("remove a network"))?;
            written.remove(&key);
        }
        for (key, bits) in wanted {
            if written.get(key) == Some(bits) {
                continue;
            }
            let NetBits {
                source,
                destination,
                either,
            } = *bits;
            trie.update(
                key,
                bytes_of(&Bits {
                    source,
                    destination,
                    either,
                }),
                MapFlags::ANY,
            )
            .map_err(Error::map("write a network"))?;
            written.insert(key.clone(), *bits);
        }
        Ok(())
    }
}
