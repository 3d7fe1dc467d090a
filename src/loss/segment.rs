//! The facts of one TCP segment that tell about loss, read from its headers.
//!
//! Lengths come from the headers, never from what was captured: copies may be truncated.

/// TCP flags, as in byte 13 of the header.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number is valid.
    pub const ACK: u8 = 0x10;
}

/// A timestamps option (RFC 7323 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// When the sender sent the segment, by its own clock.
    pub value: u32,
    /// The value that it answers.
    pub echo: u32,
}

/// Blocks of a SACK option: first and past-the-last sequence number of each.
pub type SackBlocks = [(u32, u32); 4];

/// One TCP segment. Sequence numbers as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Payload bytes by the IP header's length.
    pub payload: u32,
    /// See [`flags`].
    pub flags: u8,
    /// How many of `sack` are valid.
    pub sack_blocks: u8,
    /// Whether it carries an MPTCP option (RFC 8684).
    pub multipath: bool,
    /// Advertised window, unscaled: only 0 has a meaning here.
    pub window: u16,
    /// TCP checksum as it stands there.
    pub checksum: u16,
    /// Maximum segment size option, 0 without.
    pub maximum_segment: u16,
    /// IPv4 identification; `None` in IPv6.
    pub identification: Option<u16>,
    /// Timestamps option.
    pub timestamps: Option<Timestamps>,
    /// SACK option.
    pub sack: SackBlocks,
}

impl Segment {
    /// A bare segment with ACK set, to build others from.
    #[must_use]
    pub const fn plain(sequence: u32, acknowledgment: u32, payload: u32) -> Self {
        Self {
            sequence,
            acknowledgment,
            payload,
            flags: flags::ACK,
            sack_blocks: 0,
            multipath: false,
            window: 1000,
            checksum: 0,
            maximum_segment: 0,
            identification: None,
            timestamps: None,
            sack: [(0, 0); 4],
        }
    }

    /// Reads the TCP header at `at`. `end` is where the IP packet ends by its own length, perhaps beyond
    /// the captured bytes. `None` if the header is not there or not possible; options that were not
    /// captured are absent.
    #[inline]
    #[must_use]
    pub fn parse(frame: &[u8], at: usize, end: usize, identification: Option<u16>) -> Option<Self> {
        let header: &[u8; 20] = frame.get(at..)?.first_chunk()?;
        let header_length = usize::from(header[12] >> 4) * 4;
        let payload = end.checked_sub(at + header_length)?;
        if header_length < header.len() {
            return None;
        }
        let mut segment = Self {
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            acknowledgment: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            payload: u32::try_from(payload).ok()?,
            flags: header[13],
            window: u16::from_be_bytes([header[14], header[15]]),
            checksum: u16::from_be_bytes([header[16], header[17]]),
            identification,
            ..Self::plain(0, 0, 0)
        };
        let options_end = (at + header_length).min(frame.len());
        segment.read_options(&frame[at + header.len()..options_end]);
        Some(segment)
    }

    #[inline]
    fn read_options(&mut self, options: &[u8]) {
        // What nearly every segment has: NOP, NOP, timestamps (RFC 7323 appendix A).
        if let &[1, 1, 8, 10, v0, v1, v2, v3, e0, e1, e2, e3] = options {
            self.timestamps = Some(Timestamps {
                value: u32::from_be_bytes([v0, v1, v2, v3]),
                echo: u32::from_be_bytes([e0, e1, e2, e3]),
            });
            return;
        }
        self.walk_options(options);
    }

    fn walk_options(&mut self, mut options: &[u8]) {
        while let [kind, rest @ ..] = options {
            match kind {
                0 => return,
                1 => options = rest,
                _ => {
                    let Some(&length) = rest.first() else { return };
                    let length = usize::from(length);
                    let Some(value) = options.get(2..length) else {
                        return;
                    };
                    self.read_option(*kind, value);
                    options = &options[length..];
                }
            }
        }
    }

    fn read_option(&mut self, kind: u8, value: &[u8]) {
        let word = |at: usize| {
            let bytes = value.get(at..)?.first_chunk()?;
            Some(u32::from_be_bytes(*bytes))
        };
        match (kind, value) {
            (2, &[high, low]) => self.maximum_segment = u16::from_be_bytes([high, low]),
            (8, [_, _, _, _, _, _, _, _]) => {
                if let (Some(value), Some(echo)) = (word(0), word(4)) {
                    self.timestamps = Some(Timestamps { value, echo });
                }
            }
            (5, _) => {
                let count = (value.len() / 8).min(self.sack.len());
                for (block, slot) in self.sack.iter_mut().enumerate().take(count) {
                    if let (Some(left), Some(right)) = (word(block * 8), word(block * 8 + 4)) {
                        *slot = (left, right);
                        self.sack_blocks = block as u8 + 1;
                    }
                }
            }
            (30, _) => self.multipath = true,
            _ => {}
        }
    }

    /// Whether all of `wanted` is set.
    #[inline]
    #[must_use]
    pub const fn has(&self, wanted: u8) -> bool {
        self.flags & wanted == wanted
    }

    /// Whether any of `wanted` is set.
    #[inline]
    #[must_use]
    pub const fn has_any(&self, wanted: u8) -> bool {
        self.flags & wanted != 0
    }

    /// The SACK blocks that are there.
    #[must_use]
    pub fn sack_blocks(&self) -> &[(u32, u32)] {
        &self.sack[..usize::from(self.sack_blocks)]
    }

    /// What two copies of one transmission have in common and two transmissions have not. Taken from the
    /// TCP header on: TTL, MAC addresses and tags differ between two taps of one path.
    #[inline]
    pub(super) const fn identity(&self) -> u32 {
        let timestamp = match self.timestamps {
            Some(timestamps) => timestamps.value,
            None => 0,
        };
        let identification = match self.identification {
            Some(identification) => identification,
            None => 0,
        };
        let a = (self.sequence as u64) << 32 | self.acknowledgment as u64;
        let b = (self.payload as u64) << 32 | (self.flags as u64) << 16 | self.window as u64;
        let c = (timestamp as u64) << 32 | (self.checksum as u64) << 16 | identification as u64;
        let hash = fold(a ^ 0x9E37_79B9_7F4A_7C15, b ^ 0xD1B5_4A32_D192_ED03);
        (fold(hash ^ c, 0x8CB9_2BA7_2F3D_8DD7) >> 32) as u32
    }
}

/// The two halves of a 128-bit product, folded.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[4..8].copy_from_slice(&7u32.to_be_bytes());
        bytes[8..12].copy_from_slice(&9u32.to_be_bytes());
        bytes[12] = (((20 + options.len()) / 4) << 4) as u8;
        bytes[13] = flags::ACK | flags::PSH;
        bytes.extend_from_slice(options);
        bytes
    }

    #[test]
    fn options_are_read_in_any_order() {
        let mut options = vec![2, 4, 5, 0xb4, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 30, 4, 0, 0];
        options.extend([5, 18]);
        options.extend([0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 6]);
        let bytes = header(&options);
        let segment = Segment::parse(&bytes, 0, bytes.len() + 100, Some(5)).unwrap();
        assert_eq!(segment.payload, 100);
        assert_eq!(segment.maximum_segment, 1460);
        assert_eq!(segment.timestamps, Some(Timestamps { value: 1, echo: 2 }));
        assert_eq!(segment.sack_blocks(), [(3, 4), (5, 6)]);
        assert!(segment.multipath && segment.has(flags::ACK));
        assert_eq!((segment.sequence, segment.acknowledgment), (7, 9));
    }

    #[test]
    fn truncated_options_are_absent() {
        let bytes = header(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        let whole = Segment::parse(&bytes, 0, 100, None).unwrap();
        assert_eq!(whole.payload, 68);
        assert!(whole.timestamps.is_some());
        let cut = Segment::parse(&bytes[..24], 0, 100, None).unwrap();
        assert_eq!((cut.payload, cut.timestamps), (68, None));
        assert_eq!(Segment::parse(&bytes[..19], 0, 100, None), None);
        assert_eq!(Segment::parse(&bytes, 0, 31, None), None);
    }

    #[test]
    fn the_identity_sees_every_field() {
        let one = Segment {
            timestamps: Some(Timestamps { value: 1, echo: 1 }),
            identification: Some(1),
            ..Segment::plain(1, 1, 1)
        };
        let mut others = [one; 8];
        others[0].sequence = 2;
        others[1].acknowledgment = 2;
        others[2].payload = 2;
        others[3].flags = 2;
        others[4].window = 2;
        others[5].checksum = 2;
        others[6].identification = Some(2);
        others[7].timestamps = Some(Timestamps { value: 2, echo: 1 });
        for other in others {
            assert_ne!(one.identity(), other.identity());
        }
    }
}
