//! The VXLAN header, RFC 7348 section 5.
//!
//! Flags exactly 0x08 and every reserved bit 0: Suricata drops what has more. Called by the outer
//! template, the UDP transmitter and the decapsulation.

/// Length of the header in bytes.
pub const HEADER: usize = 8;
/// IANA's UDP port.
pub const PORT: u16 = 4789;
/// The largest network identifier.
pub const MAX_VNI: u32 = 0x00ff_ffff;

/// The I flag: the network identifier is valid.
const FLAG_VNI: u8 = 0x08;

/// The header for `vni`, of which the low 24 bits count.
pub const fn header(vni: u32) -> [u8; HEADER] {
    let [_, a, b, c] = vni.to_be_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

/// Reads the header at the front of a UDP payload: network identifier and start of the inner frame.
/// `None` if it is not whole or has no identifier.
pub fn parse(datagram: &[u8]) -> Option<(u32, usize)> {
    let header: &[u8; HEADER] = datagram.first_chunk()?;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    (header[0] & FLAG_VNI != 0).then_some((vni, HEADER))
}
