//! The Geneve header, RFC 8926 section 3.4: version 0, bridged Ethernet, no options.
//!
//! Called by the tunnel header, the UDP transmitter and the decapsulation.

use crate::packet::headers::{be16, ETHERTYPE_BRIDGED};

/// Length of the header in bytes.
pub const HEADER: usize = 8;
/// IANA's UDP port.
pub const PORT: u16 = 6081;

/// O: a control packet, which carries no frame.
const FLAG_CONTROL: u8 = 0x80;

/// The header for `vni`, of which the low 24 bits count.
pub const fn header(vni: u32) -> [u8; HEADER] {
    let [_, a, b, c] = vni.to_be_bytes();
    let [high, low] = ETHERTYPE_BRIDGED.to_be_bytes();
    [0, 0, high, low, a, b, c, 0]
}

/// Reads the header at the front of a UDP payload: network identifier and start of the inner frame,
/// behind whatever options there are. `None` if it is not whole, of another version, a control packet
/// or without Ethernet inside.
pub fn parse(datagram: &[u8]) -> Option<(u32, usize)> {
    let header: &[u8; HEADER] = datagram.first_chunk()?;
    let options = usize::from(header[0] & 0x3f) * 4;
    let ours = header[0] >> 6 == 0
        && header[1] & FLAG_CONTROL == 0
        && be16(header, 2)? == ETHERTYPE_BRIDGED
        && datagram.len() >= HEADER + options;
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    ours.then_some((vni, HEADER + options))
}
