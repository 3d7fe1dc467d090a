//! What packets of a device begin with, and the Ethernet header that those without one get.
//!
//! A copy from a tun, WireGuard or PPP device begins with an IP header; every tunnel and every sensor
//! wants Ethernet. So the tap program puts a header in front: the right ethertype, and addresses that are
//! made up here, once for a source. Called by control when it loads the program.

use serde::Serialize;

use super::Direction;

/// What the packets of a device begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: copies get a synthetic Ethernet header.
    Ip,
}

/// Destination and source address as they stand in an Ethernet header.
pub type MacPair = [u8; 12];

/// The addresses of a source's synthetic headers by [`Direction`]: between a made-up end of ours and one
/// of the peer's, swapped in the other direction.
///
/// Both are locally administered (02:78:74:…) and follow from the source's name alone: the same after
/// a restart, on a new interface of the same name, and on every kernel.
#[must_use]
pub fn synthetic_macs(source: &str) -> [MacPair; 2] {
    let [_, first, second, third] = fnv1a(source.as_bytes()).to_be_bytes();
    let end = |last: u8| [0x02, 0x78, 0x74, first, second, third & 0xfe | last];
    let (ours, peer) = (end(0), end(1));
    let mut pairs = [[0; 12]; 2];
    for (direction, destination, source) in
        [(Direction::In, ours, peer), (Direction::Out, peer, ours)]
    {
        let pair = &mut pairs[direction as usize];
        pair[..6].copy_from_slice(&destination);
        pair[6..].copy_from_slice(&source);
    }
    pairs
}

/// FNV-1a, folded to spread short names over all bits.
fn fnv1a(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0x811C_9DC5_u32, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_two_directions_are_one_link() {
        let [incoming, outgoing] = synthetic_macs("tap:tun0");
        assert_eq!(incoming[..6], outgoing[6..]);
        assert_eq!(incoming[6..], outgoing[..6]);
        assert_ne!(incoming, outgoing);
        // Locally administered, and of one station.
        assert!(incoming[0] & 3 == 2 && incoming[6] & 3 == 2);
    }

    /// A collector's tables keep them: they must never change.
    #[test]
    fn they_are_the_same_for_ever() {
        let [incoming, _] = synthetic_macs("tap:tun0");
        assert_eq!(incoming, synthetic_macs("tap:tun0")[0]);
        assert_eq!(incoming[..3], [0x02, 0x78, 0x74]);
        assert_eq!(incoming[3..6], WANTED, "{incoming:02x?}");
    }
    const WANTED: [u8; 3] = [0x86, 0x90, 0x5a];

    #[test]
    fn sources_differ() {
        let names = (0..200).map(|number| format!("tap:wg{number}"));
        let all: HashSet<_> = names.map(|name| synthetic_macs(&name)[0]).collect();
        assert_eq!(all.len(), 200);
    }
}
