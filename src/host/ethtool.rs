//! Driver, queues, offloads and driver counters of an interface, by the ethtool ioctls.
//!
//! Must not change a setting. Interfaces are named, and looked up in the network namespace of the
//! thread that opened the [`Ethtool`]. Called by facts and the doctor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::sys;

// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_SS_STATS: u32 = 1;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// Far more than any driver has; bounds what a wrong count makes us allocate.
const MOST_STRINGS: usize = 16 * 1024;

/// Why ethtool gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EthtoolError {
    /// No socket for the ioctl.
    #[error("ethtool socket: {0}")]
    Socket(#[source] io::Error),
    /// A name that no interface can have.
    #[error("{0:?} is not an interface name: 1 to 15 bytes, no '/' and no space")]
    Name(String),
    /// The driver or the kernel refused. EOPNOTSUPP: the driver has no such thing.
    #[error("{interface}: ethtool {what}: {source}")]
    Refused {
        /// Interface asked.
        interface: String,
        /// What was asked for.
        what: &'static str,
        /// The kernel's errno.
        source: io::Error,
    },
}

impl EthtoolError {
    /// The driver does not offer what was asked for.
    pub fn unsupported(&self) -> bool {
        matches!(self, Self::Refused { source, .. }
            if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP)))
    }
}

/// One offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// On now.
    pub on: bool,
    /// Cannot be changed (`[fixed]` in `ethtool -k`).
    pub fixed: bool,
}

/// Queues: configured now, and the most that the device can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Receive-only queues.
    pub rx: u32,
    /// Transmit-only queues.
    pub tx: u32,
    /// Queues that do both.
    pub combined: u32,
    /// Most receive-only queues.
    pub max_rx: u32,
    /// Most transmit-only queues.
    pub max_tx: u32,
    /// Most queues that do both.
    pub max_combined: u32,
}

impl Channels {
    /// Receive queues in all: each needs one AF_XDP socket.
    pub fn receiving(&self) -> u32 {
        self.rx + self.combined
    }

    /// Transmit queues in all.
    pub fn transmitting(&self) -> u32 {
        self.tx + self.combined
    }
}

/// Descriptors in the hardware rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// Receive descriptors now.
    pub rx: u32,
    /// Transmit descriptors now.
    pub tx: u32,
    /// Most receive descriptors.
    pub max_rx: u32,
    /// Most transmit descriptors.
    pub max_tx: u32,
}

/// A socket for ethtool ioctls in one network namespace.
pub struct Ethtool {
    socket: OwnedFd,
}

impl Ethtool {
    /// Opens the socket in the namespace of the calling thread. Any socket serves.
    pub fn open() -> Result<Self, EthtoolError> {
        // SAFETY: socket takes three integers and touches no memory of ours.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        let socket = sys::check(socket.into()).map_err(EthtoolError::Socket)?;
        Ok(Self {
            socket: sys::own(socket),
        })
    }

    /// Name of the driver: `ena`, `virtio_net`, `veth`, …
    pub fn driver(&self, interface: &str) -> Result<String, EthtoolError> {
        // struct ethtool_drvinfo: cmd, driver[32], version[32], … 196 bytes in all.
        let mut words = [0u32; 49];
        words[0] = ETHTOOL_GDRVINFO;
        self.call(interface, "driver", &mut words)?;
        let bytes: Vec<u8> = words[1..9]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        Ok(text(&bytes))
    }

    /// Queue counts. Drivers without channels (tun, loopback) answer with an error that is
    /// [`EthtoolError::unsupported`].
    pub fn channels(&self, interface: &str) -> Result<Channels, EthtoolError> {
        // struct ethtool_channels: cmd, max_{rx,tx,other,combined}, {rx,tx,other,combined}_count.
        let mut words = [0u32; 9];
        words[0] = ETHTOOL_GCHANNELS;
        self.call(interface, "channels", &mut words)?;
        Ok(Channels {
            max_rx: words[1],
            max_tx: words[2],
            max_combined: words[4],
            rx: words[5],
            tx: words[6],
            combined: words[8],
        })
    }

    /// Ring sizes.
    pub fn rings(&self, interface: &str) -> Result<Rings, EthtoolError> {
        // struct ethtool_ringparam: cmd, {rx,rx_mini,rx_jumbo,tx}_max_pending, then the same now.
        let mut words = [0u32; 9];
        words[0] = ETHTOOL_GRINGPARAM;
        self.call(interface, "rings", &mut words)?;
        Ok(Rings {
            max_rx: words[1],
            max_tx: words[4],
            rx: words[5],
            tx: words[8],
        })
    }

    /// All offloads by the kernel's own names, as `ethtool -k` shows them in full:
    /// `tx-udp-segmentation`, `rx-gro-hw`, `rx-lro`, `rx-vlan-hw-parse`, …
    pub fn features(&self, interface: &str) -> Result<BTreeMap<String, Feature>, EthtoolError> {
        let names = self.strings(interface, ETH_SS_FEATURES, "feature names")?;
        let blocks = names.len().div_ceil(32);
        // struct ethtool_gfeatures: cmd, size, then {available, requested, active, never_changed}.
        let mut words = vec![0u32; 2 + blocks * 4];
        words[0] = ETHTOOL_GFEATURES;
        words[1] = blocks as u32;
        self.call(interface, "features", &mut words)?;
        Ok(features(&names, &words[2..]))
    }

    /// Driver counters, as `ethtool -S` shows them. Empty where the driver has none.
    pub fn statistics(&self, interface: &str) -> Result<BTreeMap<String, u64>, EthtoolError> {
        let names = self.strings(interface, ETH_SS_STATS, "statistics names")?;
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        // struct ethtool_stats: cmd, n_stats, then u64 each.
        let mut words = vec![0u32; 2 + names.len() * 2];
        words[0] = ETHTOOL_GSTATS;
        words[1] = names.len() as u32;
        self.call(interface, "statistics", &mut words)?;
        let values = words[2..].chunks_exact(2).map(|pair| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&pair[0].to_ne_bytes());
            bytes[4..].copy_from_slice(&pair[1].to_ne_bytes());
            u64::from_ne_bytes(bytes)
        });
        Ok(names.into_iter().zip(values).collect())
    }

    fn strings(
        &self,
        interface: &str,
        set: u32,
        what: &'static str,
    ) -> Result<Vec<String>, EthtoolError> {
        // struct ethtool_sset_info: cmd, reserved, u64 mask, then a count for each bit set.
        let mut words = [0u32; 5];
        words[0] = ETHTOOL_GSSET_INFO;
        let mask = (1u64 << set).to_ne_bytes();
        words[2] = u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]);
        words[3] = u32::from_ne_bytes([mask[4], mask[5], mask[6], mask[7]]);
        self.call(interface, what, &mut words)?;
        // The mask comes back with the sets that exist; the count is there only for those.
        let exists = words[2] != 0 || words[3] != 0;
        let count = if exists { words[4] as usize } else { 0 };
        if count == 0 || count > MOST_STRINGS {
            return Ok(Vec::new());
        }
        // struct ethtool_gstrings: cmd, string_set, len, then 32 bytes each.
        let mut words = vec![0u32; 3 + count * ETH_GSTRING_LEN / 4];
        words[0] = ETHTOOL_GSTRINGS;
        words[1] = set;
        words[2] = count as u32;
        self.call(interface, what, &mut words)?;
        Ok(words[3..]
            .chunks_exact(ETH_GSTRING_LEN / 4)
            .map(|chunk| {
                let bytes: Vec<u8> = chunk.iter().flat_map(|word| word.to_ne_bytes()).collect();
                text(&bytes)
            })
            .collect())
    }

    /// One SIOCETHTOOL. `words` is the command's structure: its size was told to the kernel by a
    /// count inside it (strings, features, statistics) or is fixed by the command.
    fn call(
        &self,
        interface: &str,
        what: &'static str,
        words: &mut [u32],
    ) -> Result<(), EthtoolError> {
        // SAFETY: an ifreq is plain data, for which all zeros is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = interface.as_bytes();
        let valid = !name.is_empty()
            && name.len() < request.ifr_name.len()
            && !name
                .iter()
                .any(|b| *b == b'/' || *b == 0 || b.is_ascii_whitespace());
        if !valid {
            return Err(EthtoolError::Name(interface.to_owned()));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: `request` names a NUL-terminated interface and points to `words`, which is as large
        // as the command makes the kernel write and outlives the call. A u32 buffer is aligned
        // enough: the kernel copies bytes to and from it.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) };
        sys::check(result.into())
            .map(drop)
            .map_err(|source| EthtoolError::Refused {
                interface: interface.to_owned(),
                what,
                source,
            })
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Names each bit of the feature blocks. Bits without a name are unused by this kernel.
fn features(names: &[String], blocks: &[u32]) -> BTreeMap<String, Feature> {
    let mut found = BTreeMap::new();
    for (position, name) in names.iter().enumerate() {
        let bit = 1u32 << (position % 32);
        let Some([available, _, active, never_changed]) =
            blocks.get(position / 32 * 4..position / 32 * 4 + 4)
        else {
            break;
        };
        if name.is_empty() {
            continue;
        }
        let feature = Feature {
            on: active & bit != 0,
            fixed: never_changed & bit != 0 || available & bit == 0,
        };
        found.insert(name.clone(), feature);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_bits_beyond_the_first_block() {
        let mut names = vec![String::new(); 34];
        names[0] = "tx-scatter-gather".into();
        names[33] = "tx-udp-segmentation".into();
        let blocks = [1, 1, 1, 0, 0b10, 0, 0b10, 0];
        let found = features(&names, &blocks);
        assert_eq!(found.len(), 2);
        let segmentation = found["tx-udp-segmentation"];
        assert!(segmentation.on && !segmentation.fixed);
        // Not available means that it cannot be changed.
        assert!(features(&names, &[0; 8])["tx-udp-segmentation"].fixed);
        // A kernel that knows fewer blocks than names.
        assert_eq!(features(&names, &blocks[..4]).len(), 1);
    }

    #[test]
    fn lo_has_features_and_no_channels() {
        let ethtool = Ethtool::open().unwrap();
        let features = ethtool.features("lo").unwrap();
        assert!(features.contains_key("tx-udp-segmentation"), "{features:?}");
        assert!(ethtool.channels("lo").unwrap_err().unsupported());
    }

    #[test]
    fn bad_names_are_refused_before_the_kernel_sees_them() {
        let ethtool = Ethtool::open().unwrap();
        for name in ["", "a/b", "sixteen-bytes-xx", "a b"] {
            let error = ethtool.driver(name).unwrap_err();
            assert!(matches!(error, EthtoolError::Name(_)), "{name}: {error}");
        }
        let error = ethtool.driver("xtee-none").unwrap_err();
        assert!(error.to_string().contains("xtee-none"), "{error}");
    }
}
