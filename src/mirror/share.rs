//! Which target of the hash group a flow belongs to: rendezvous hashing, looked up in a table.
//!
//! Each slot belongs to the member with the highest score for it, and a member's scores depend on its
//! name and the slot alone. So a member that leaves takes nothing from the others, its slots fall to
//! whoever was next, and they come back to it when it returns. Two xtee with the same targets share
//! alike. Pure; control builds a table for each set of healthy members and publishes it, workers look
//! each packet's flow up.

/// Slots of a table. With 5 members a slot count of 65536 leaves them within about 2 % of each other,
/// which is less than the unevenness of 10 000 flows themselves.
pub const SLOTS: usize = 1 << 16;

/// The finalizer of splitmix64: every bit of the input changes half of the output's.
#[inline]
const fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A member's key, from what names it.
#[must_use]
pub fn key(name: &str) -> u64 {
    // FNV-1a, then mixed, for names differ in a digit or two.
    let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    mix(hash)
}

/// The slot of a flow. The flow hash's low bits choose the outer source port and its high bits the
/// worker, so it is mixed anew: otherwise a target would see some ports, or one worker, only.
#[inline]
#[must_use]
pub fn slot(flow_hash: u32) -> usize {
    let mixed = mix(u64::from(flow_hash).wrapping_add(0x9E37_79B9_7F4A_7C15));
    (mixed >> 48) as usize
}

/// Who owns each slot.
#[derive(Debug, PartialEq, Eq)]
pub struct Shares {
    owners: Box<[u8]>,
}

impl Shares {
    /// The table of these members: each a target's number and its [`key`]. `None` without members.
    #[must_use]
    pub fn new(members: &[(u8, u64)]) -> Option<Shares> {
        let owner = |slot: usize| {
            let salt = (slot as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let best = members
                .iter()
                .max_by_key(|(_, key)| (mix(key ^ salt), *key));
            best.map(|(number, _)| *number)
        };
        let owners = (0..SLOTS).map(owner).collect::<Option<Box<[u8]>>>()?;
        Some(Shares { owners })
    }

    /// The number of the target that a flow belongs to.
    #[inline]
    #[must_use]
    pub fn owner(&self, flow_hash: u32) -> u8 {
        // There are as many slots as `slot` can name.
        self.owners.get(slot(flow_hash)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::flow::{combine, endpoint};

    fn names(count: usize) -> Vec<String> {
        (0..count)
            .map(|number| format!("vxlan://203.0.113.{}:4789?vni=7", number + 2))
            .collect()
    }

    fn members(names: &[String], without: Option<usize>) -> Vec<(u8, u64)> {
        let all = names.iter().enumerate();
        all.filter(|(number, _)| Some(*number) != without)
            .map(|(number, name)| (number as u8, key(name)))
            .collect()
    }

    /// Flow hashes as traffic makes them: one server, clients in a network, ports one after the other.
    fn flows(server: u32, network: u32, first_port: u16, count: u32) -> Vec<(u32, u32)> {
        (0..count)
            .map(|number| {
                let client = network + number % 251;
                let port = first_port.wrapping_add((number / 251) as u16);
                let one = endpoint(&[client], port);
                let other = endpoint(&[server], 443);
                (combine(one, other, 6), combine(other, one, 6))
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn flows_are_spread_evenly_and_move_only_with_their_target(
            server: u32, network in any::<u32>().prop_map(|bits| bits & 0xFFFF_FF00), port: u16,
            lost in 0usize..5,
        ) {
            let names = names(5);
            let all = Shares::new(&members(&names, None)).unwrap();
            let fewer = Shares::new(&members(&names, Some(lost))).unwrap();
            let again = Shares::new(&members(&names, None)).unwrap();
            prop_assert_eq!(&again, &all, "what came back has what it had");
            let mut counts = [0u32; 5];
            for (there, back) in flows(server, network, port, 10_000) {
                let owner = all.owner(there);
                prop_assert_eq!(owner, all.owner(back), "both directions");
                counts[usize::from(owner)] += 1;
                let after = fewer.owner(there);
                prop_assert_ne!(usize::from(after), lost);
                if usize::from(owner) != lost {
                    prop_assert_eq!(after, owner, "a flow of a target that is still there moved");
                }
            }
            let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
            prop_assert!(u64::from(*most) * 100 <= u64::from(*least) * 115, "{counts:?}");
        }

        /// Of one target's flows every source port and every worker gets its part.
        #[test]
        fn the_share_is_independent_of_port_and_worker(server: u32, network: u32) {
            let names = names(2);
            let shares = Shares::new(&members(&names, None)).unwrap();
            let (mut ports, mut workers) = ([0u32; 8], [0u32; 4]);
            let mut total = 0u32;
            for (hash, _) in flows(server, network & 0xFFFF_FF00, 1024, 20_000) {
                if shares.owner(hash) == 0 {
                    total += 1;
                    ports[(hash % 8) as usize] += 1;
                    workers[(hash >> 30) as usize] += 1;
                }
            }
            for count in ports {
                prop_assert!((total / 8).abs_diff(count) < total / 40, "{ports:?}");
            }
            for count in workers {
                prop_assert!((total / 4).abs_diff(count) < total / 20, "{workers:?}");
            }
        }
    }

    /// The order of the targets in the configuration does not matter, nor who else is there.
    #[test]
    fn a_members_slots_go_with_its_name() {
        let names = names(3);
        let one = Shares::new(&members(&names, None)).unwrap();
        let turned = Shares::new(&[
            (7, key(&names[2])),
            (8, key(&names[1])),
            (9, key(&names[0])),
        ]);
        let turned = turned.unwrap();
        let same = [9, 8, 7];
        for address in 0..2000u32 {
            let hash = combine(endpoint(&[address], 1), endpoint(&[5], 2), 17);
            assert_eq!(turned.owner(hash), same[usize::from(one.owner(hash))]);
        }
    }

    #[test]
    fn nobody_and_one() {
        assert_eq!(Shares::new(&[]), None);
        let one = Shares::new(&[(3, key("x"))]).unwrap();
        let address = u32::from(Ipv4Addr::new(198, 51, 100, 1));
        assert_eq!(one.owner(address), 3);
        assert_eq!(one.owner(0), 3);
    }
}
