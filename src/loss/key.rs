//! The name of a flow: both ends in a fixed order, so that both directions have one key.

use std::net::{IpAddr, Ipv6Addr};

/// Which way a segment of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Way {
    /// From the lower end of the key to the higher one.
    Up = 0,
    /// From the higher end to the lower one.
    Down = 1,
}

impl Way {
    /// The other one.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Address; IPv4 stays IPv4.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

/// Key of a flow: 40 bytes. IPv4 addresses are kept as mapped IPv6 ones (RFC 4291 section 2.5.5.2);
/// a real IPv6 flow between mapped addresses never is on a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    low: [u64; 2],
    high: [u64; 2],
    low_port: u16,
    high_port: u16,
    scope: u32,
}

const MAPPED: u64 = 0xffff_0000_0000;

const fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, MAPPED | address.to_bits() as u64],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [(bits >> 64) as u64, bits as u64]
        }
    }
}

fn address([left, right]: [u64; 2]) -> IpAddr {
    let bits = u128::from(left) << 64 | u128::from(right);
    let address = Ipv6Addr::from_bits(bits);
    address
        .to_ipv4_mapped()
        .map_or(IpAddr::V6(address), IpAddr::V4)
}

impl FlowKey {
    /// The key of a segment that goes from `source` to `destination`, and its way. `scope` keeps apart
    /// what has the same addresses and is not the same flow: the tunnel's VNI or key, a link.
    #[inline]
    #[must_use]
    pub fn new(source: End, destination: End, scope: u32) -> (Self, Way) {
        let (from, to) = (words(source.address), words(destination.address));
        let up = (from, source.port) <= (to, destination.port);
        let ((low, low_port), (high, high_port)) = if up {
            ((from, source.port), (to, destination.port))
        } else {
            ((to, destination.port), (from, source.port))
        };
        let key = Self {
            low,
            high,
            low_port,
            high_port,
            scope,
        };
        (key, if up { Way::Up } else { Way::Down })
    }

    /// The end that sends in direction `way`.
    #[must_use]
    pub fn sender(&self, way: Way) -> End {
        match way {
            Way::Up => End {
                address: address(self.low),
                port: self.low_port,
            },
            Way::Down => End {
                address: address(self.high),
                port: self.high_port,
            },
        }
    }

    /// What was given to [`FlowKey::new`].
    #[must_use]
    pub const fn scope(&self) -> u32 {
        self.scope
    }

    /// Hash under a seed that nobody outside knows: whoever chooses addresses must not choose buckets.
    #[inline]
    pub(super) fn hash(&self, seed: &foldhash::fast::FixedState) -> u64 {
        use std::hash::{BuildHasher as _, Hasher as _};
        let mut hasher = seed.build_hasher();
        for word in [self.low[0], self.low[1], self.high[0], self.high[1]] {
            hasher.write_u64(word);
        }
        let ports = u64::from(self.low_port) << 16 | u64::from(self.high_port);
        hasher.write_u64(u64::from(self.scope) << 32 | ports);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(address: &str, port: u16) -> End {
        End {
            address: address.parse().unwrap(),
            port,
        }
    }

    #[test]
    fn both_directions_have_one_key() {
        for (a, b) in [
            (end("198.51.100.1", 80), end("198.51.100.2", 40000)),
            (end("198.51.100.2", 80), end("198.51.100.2", 40000)),
            (end("2001:db8::1", 80), end("2001:db8::2", 80)),
        ] {
            let (there, way) = FlowKey::new(a, b, 7);
            let (back, yaw) = FlowKey::new(b, a, 7);
            assert_eq!(there, back);
            assert_eq!(way.reverse(), yaw);
            assert_eq!(there.sender(way), a);
            assert_eq!(there.sender(yaw), b);
            assert_ne!(there, FlowKey::new(a, b, 8).0);
        }
        assert_eq!(size_of::<FlowKey>(), 40);
    }
}
