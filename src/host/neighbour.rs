//! Next-hop hardware addresses: look-up, and asking the kernel to find or confirm one.
//!
//! Must not send ARP or neighbour discovery itself: the kernel does, and keeps the table. Called by
//! watch (which keeps the addresses fresh), walk and facts.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, NetlinkError};

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Hardware address, if the kernel has a usable one.
    pub mac: Option<[u8; 6]>,
    /// State of the entry.
    pub state: NeighbourState,
    /// Time since the address was last confirmed, in milliseconds.
    pub confirmed_ms: u64,
}

impl Neighbour {
    /// The address can be used now. A stale one can: it was right when last seen, and sending to it
    /// is what the kernel does as well.
    pub fn usable(&self) -> bool {
        self.mac.is_some()
            && matches!(
                self.state,
                NeighbourState::Reachable
                    | NeighbourState::Stale
                    | NeighbourState::Delay
                    | NeighbourState::Probe
                    | NeighbourState::Permanent
                    | NeighbourState::Noarp
            )
    }

    /// Set by hand, or on a device that resolves nothing: never to be probed.
    pub fn fixed(&self) -> bool {
        matches!(
            self.state,
            NeighbourState::Permanent | NeighbourState::Noarp
        )
    }
}

/// The kernel's entry for `address` on the device with this index; `None` if there is none.
pub fn lookup(
    netlink: &mut Netlink,
    device: u32,
    address: IpAddr,
) -> Result<Option<Neighbour>, NetlinkError> {
    let what = format!("neighbour {address} on interface {device}");
    let request = RouteNetlinkMessage::GetNeighbour(message(device, address));
    match netlink.ask(&what, request) {
        Ok(RouteNetlinkMessage::NewNeighbour(message)) => Ok(Some(parse(&message))),
        Ok(other) => Err(NetlinkError::Malformed {
            what,
            detail: format!("expected a neighbour, got {other:?}"),
        }),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks the kernel to resolve a neighbour that it does not know or has given up on (NTF_USE: act as
/// if a packet had just been sent to it). Returns at once; the answer comes as an event. Needs
/// CAP_NET_ADMIN.
pub fn resolve(netlink: &mut Netlink, device: u32, address: IpAddr) -> Result<(), NetlinkError> {
    let mut message = message(device, address);
    message.header.flags = NeighbourFlags::Use;
    let what = format!("resolving {address} on interface {device}");
    netlink.change(
        &what,
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE,
    )
}

/// Asks the kernel to confirm a known address now, by a unicast probe. Without it an AF_XDP sender
/// would use an address for ever that nobody confirms: the kernel only re-checks entries that its own
/// stack sends through. The address stays usable while the probe runs. Needs CAP_NET_ADMIN.
pub fn confirm(netlink: &mut Netlink, device: u32, address: IpAddr) -> Result<(), NetlinkError> {
    let mut message = message(device, address);
    message.header.state = NeighbourState::Probe;
    let what = format!("confirming {address} on interface {device}");
    netlink.change(
        &what,
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_REPLACE,
    )
}

/// The port of a bridge behind which a hardware address was last seen, from the bridge's forwarding
/// table.
pub fn bridge_port(
    netlink: &mut Netlink,
    bridge: u32,
    mac: [u8; 6],
) -> Result<Option<u32>, NetlinkError> {
    let entries = forwarding(netlink)?;
    Ok(entries.iter().find_map(|message| {
        let mut at_bridge = false;
        let mut same_mac = false;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Controller(index) => at_bridge |= *index == bridge,
                NeighbourAttribute::LinkLayerAddress(bytes) => same_mac |= bytes[..] == mac[..],
                _ => {}
            }
        }
        (at_bridge && same_mac).then_some(message.header.ifindex)
    }))
}

/// Remote tunnel ends in the forwarding table of a VXLAN device, each once. Such a device may have
/// any number of them, besides or instead of its one configured remote.
pub fn tunnel_remotes(netlink: &mut Netlink, device: u32) -> Result<Vec<IpAddr>, NetlinkError> {
    let entries = forwarding(netlink)?;
    let mut remotes: Vec<IpAddr> = entries
        .iter()
        .filter(|message| message.header.ifindex == device)
        .flat_map(|message| &message.attributes)
        .filter_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some((*a).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some((*a).into()),
            // For AF_BRIDGE the library leaves the address as bytes.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                match bytes.as_slice() {
                    [a, b, c, d] => Some([*a, *b, *c, *d].into()),
                    bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
                }
            }
            _ => None,
        })
        .filter(|address: &IpAddr| !address.is_unspecified())
        .collect();
    remotes.sort_unstable();
    remotes.dedup();
    Ok(remotes)
}

fn forwarding(netlink: &mut Netlink) -> Result<Vec<NeighbourMessage>, NetlinkError> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    let answers = netlink.dump(
        "bridge forwarding table",
        RouteNetlinkMessage::GetNeighbour(request),
    )?;
    let entries = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message) => Some(message),
        _ => None,
    });
    Ok(entries.collect())
}

fn message(device: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = device;
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
}

fn parse(message: &NeighbourMessage) -> Neighbour {
    let mut neighbour = Neighbour {
        mac: None,
        state: message.header.state,
        confirmed_ms: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                neighbour.mac = bytes.as_slice().try_into().ok();
            }
            // Ages are in USER_HZ ticks, which is 100 a second on every architecture of today.
            NeighbourAttribute::CacheInfo(info) => {
                neighbour.confirmed_ms = u64::from(info.confirmed) * 10;
            }
            _ => {}
        }
    }
    neighbour
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_states_are_usable() {
        let with = |state, mac| Neighbour {
            mac,
            state,
            confirmed_ms: 0,
        };
        let mac = Some([2, 0, 0, 0, 0, 1]);
        for state in [
            NeighbourState::Reachable,
            NeighbourState::Stale,
            NeighbourState::Delay,
            NeighbourState::Probe,
            NeighbourState::Permanent,
        ] {
            assert!(with(state, mac).usable(), "{state}");
            assert!(!with(state, None).usable(), "{state}");
        }
        // The kernel keeps the old address in a failed entry; it is known to be wrong.
        for state in [NeighbourState::Failed, NeighbourState::Incomplete] {
            assert!(!with(state, mac).usable(), "{state}");
        }
        assert!(with(NeighbourState::Permanent, mac).fixed());
        assert!(!with(NeighbourState::Reachable, mac).fixed());
    }

    #[test]
    fn reads_address_and_age() {
        let mut entry = message(3, "198.51.100.1".parse().unwrap());
        entry.header.state = NeighbourState::Reachable;
        entry
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]));
        let neighbour = parse(&entry);
        assert_eq!(neighbour.mac, Some([2, 0, 0, 0, 0, 9]));
        assert!(neighbour.usable());
        entry.attributes.pop();
        // InfiniBand's 20 bytes are no Ethernet address.
        entry
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(vec![0; 20]));
        assert_eq!(parse(&entry).mac, None);
    }
}
