//! What a driver says of its XDP: the `netdev` family of generic netlink (kernel 6.3 and newer).
//!
//! Must not attach anything: before this family existed, the only way to know was to try, which
//! bounces the link on several cloud drivers. Called by facts and the doctor.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::NlasIterator;
use netlink_sys::{protocols::NETLINK_GENERIC, Socket, SocketAddr};

use super::netlink::borrow;
use super::sys;

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
// linux/netdev.h
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const XDP_ACT_BASIC: u64 = 1;
const XDP_ACT_REDIRECT: u64 = 2;
const XDP_ACT_NDO_XMIT: u64 = 4;
const XDP_ACT_XSK_ZEROCOPY: u64 = 8;
const XDP_ACT_RX_SG: u64 = 32;

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// What the driver offers. A bit may depend on the configuration: veth's redirect target exists only
/// while the peer has a program, ENA's needs half of the queues to be free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Native XDP: pass, drop, transmit, abort.
    pub native: bool,
    /// Native XDP can redirect, to AF_XDP for instance.
    pub redirect: bool,
    /// Others can redirect to it.
    pub redirect_target: bool,
    /// AF_XDP without a copy.
    pub zero_copy: bool,
    /// Frames larger than a page.
    pub fragments: bool,
}

/// The features of an interface; `None` where the kernel does not tell.
pub fn xdp_features(interface: u32) -> io::Result<Option<XdpFeatures>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = match ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name) {
        Ok(answer) => match find(&answer, CTRL_ATTR_FAMILY_ID) {
            Some(value) if value.len() >= 2 => u16::from_ne_bytes([value[0], value[1]]),
            _ => return Ok(None),
        },
        // ENOENT: no such family, a kernel before 6.3.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let index = attribute(NETDEV_A_DEV_IFINDEX, &interface.to_ne_bytes());
    let answer = ask(&socket, family, NETDEV_CMD_DEV_GET, &index)?;
    let bits = find(&answer, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|value| Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)));
    Ok(bits.map(decode))
}

fn decode(bits: u64) -> XdpFeatures {
    XdpFeatures {
        native: bits & XDP_ACT_BASIC != 0,
        redirect: bits & XDP_ACT_REDIRECT != 0,
        redirect_target: bits & XDP_ACT_NDO_XMIT != 0,
        zero_copy: bits & XDP_ACT_XSK_ZEROCOPY != 0,
        fragments: bits & XDP_ACT_RX_SG != 0,
    }
}

/// One attribute: length, type, value, padding to 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends one request and returns the attributes of its one answer.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let length = HEADER + GENERIC_HEADER + attributes.len();
    request.extend((length as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend(1u32.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend([command, 1, 0, 0]);
    request.extend(attributes);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let [ready] = sys::wait_readable([borrow(socket).as_fd()], Some(Duration::from_secs(2)))?;
    if !ready {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut answer = Vec::with_capacity(32 * 1024);
    socket.recv(&mut answer, libc::MSG_DONTWAIT)?;
    payload(&answer)
}

/// The attributes of a generic netlink message, or the error that it carries.
fn payload(answer: &[u8]) -> io::Result<Vec<u8>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "short generic netlink message");
    let body = answer.get(HEADER..).ok_or_else(short)?;
    if u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR {
        let code = body.get(..4).ok_or_else(short)?;
        let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    Ok(body.get(GENERIC_HEADER..).ok_or_else(short)?.to_vec())
}

fn find(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found() {
        let mut bytes = attribute(2, b"netdev\0");
        assert_eq!(bytes.len(), 12);
        bytes.extend(attribute(3, &9u64.to_ne_bytes()));
        assert_eq!(find(&bytes, 2).unwrap(), b"netdev\0");
        assert_eq!(find(&bytes, 3).unwrap(), 9u64.to_ne_bytes());
        assert_eq!(find(&bytes, 4), None);
    }

    #[test]
    fn errors_and_short_answers() {
        let mut error = vec![0; HEADER];
        error[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        error.extend((-libc::ENODEV).to_ne_bytes());
        assert_eq!(
            payload(&error).unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
        assert!(payload(&[0; 8]).is_err());
        assert!(payload(&[0; HEADER]).is_err());
    }

    #[test]
    fn bits() {
        let features = decode(0b1011);
        assert!(features.native && features.redirect && features.zero_copy);
        assert!(!features.redirect_target && !features.fragments);
    }

    #[test]
    fn lo_has_no_native_xdp() {
        // None on kernels before 6.3.
        if let Some(features) = xdp_features(1).unwrap() {
            assert!(!features.native && !features.zero_copy);
        }
    }
}
