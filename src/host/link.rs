//! Interfaces as the kernel lists them: identity, state, kind, what they stand on.
//!
//! Must not change an interface. Called by facts, walk, watch, hooks and the doctor.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoVti, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp, State, XdpAttached,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, NetlinkError};

/// `ARPHRD_*` of devices whose frames begin with an Ethernet header: Ethernet and loopback. Tunnels
/// without one (tun, gre, ipip, wireguard: ARPHRD_NONE and friends) begin with the IP header.
const ETHERNET_TYPES: [u16; 2] = [libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK];

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpAttachment {
    /// `native`, `generic` or `offload`.
    pub mode: &'static str,
    /// Kernel-wide program id, as in `bpftool prog show id N`.
    pub program: u32,
}

/// Outer addresses of a tunnel device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Where the outer packets go; `None` if it is not fixed (external mode, forwarding table).
    pub remote: Option<IpAddr>,
    /// Outer source address, where one is set.
    pub local: Option<IpAddr>,
    /// Index of the device that the outer packets must use, where one is set.
    pub link: Option<u32>,
    /// "External" (collect metadata): each packet or route names its own remote.
    pub external: bool,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index in its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Hardware address, for devices that have one of 6 bytes.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Administratively up (`ip link set up`).
    pub up: bool,
    /// Up and with a carrier: packets can leave.
    pub running: bool,
    /// `ARPHRD_*`.
    pub arp_type: u16,
    /// Frames on this device begin with an Ethernet header.
    pub ethernet: bool,
    /// The device resolves no neighbours (IFF_NOARP).
    pub no_arp: bool,
    /// The loopback device.
    pub loopback: bool,
    /// `IFLA_INFO_KIND`: veth, vxlan, bridge, … `None` for a device of a driver.
    pub kind: Option<String>,
    /// `IFLA_LINK`: the device underneath (vlan, macvlan), or the peer (veth).
    pub parent: Option<u32>,
    /// `parent` is an index in another namespace.
    pub parent_elsewhere: bool,
    /// Bridge, bond or VRF that this interface is a port of.
    pub master: Option<u32>,
    /// Receive queues that the device was made with (channels may be fewer).
    pub rx_queues: u32,
    /// Transmit queues that the device was made with.
    pub tx_queues: u32,
    /// Largest super-packet that the stack hands down, in bytes.
    pub gso_max_size: u32,
    /// Largest super-packet that receive coalescing builds, in bytes.
    pub gro_max_size: u32,
    /// Outer addresses, for tunnels.
    pub tunnel: Option<Tunnel>,
    /// XDP programs attached.
    pub xdp: Vec<XdpAttachment>,
}

impl Link {
    /// Kind for the reader: `IFLA_INFO_KIND`, or `loopback`, or `device`.
    pub fn kind_name(&self) -> &str {
        match &self.kind {
            Some(kind) => kind,
            None if self.loopback => "loopback",
            None => "device",
        }
    }
}

/// The interface with this index, in the namespace of `netlink`.
pub fn by_index(netlink: &mut Netlink, index: u32) -> Result<Link, NetlinkError> {
    let mut message = request();
    message.header.index = index;
    get(netlink, &format!("interface {index}"), message)
}

/// The interface with this name.
pub fn by_name(netlink: &mut Netlink, name: &str) -> Result<Link, NetlinkError> {
    let mut message = request();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    get(netlink, &format!("interface {name:?}"), message)
}

/// All interfaces, by index.
pub fn all(netlink: &mut Netlink) -> Result<BTreeMap<u32, Link>, NetlinkError> {
    let answers = netlink.dump("interfaces", RouteNetlinkMessage::GetLink(request()))?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(parse(&message)),
        _ => None,
    });
    Ok(links.map(|link| (link.index, link)).collect())
}

/// A request without the statistics: they are half of the answer, and nobody here reads them.
fn request() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn get(netlink: &mut Netlink, what: &str, message: LinkMessage) -> Result<Link, NetlinkError> {
    match netlink.ask(what, RouteNetlinkMessage::GetLink(message))? {
        RouteNetlinkMessage::NewLink(message) => Ok(parse(&message)),
        other => Err(NetlinkError::Malformed {
            what: what.to_owned(),
            detail: format!("expected a link, got {other:?}"),
        }),
    }
}

/// Reads the attributes that xtee cares for.
pub(crate) fn parse(message: &LinkMessage) -> Link {
    let header = &message.header;
    let arp_type = u16::from(header.link_layer_type);
    let up = header.flags.contains(LinkFlags::Up);
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up,
        running: up && header.flags.contains(LinkFlags::LowerUp),
        arp_type,
        ethernet: ETHERNET_TYPES.contains(&arp_type),
        no_arp: header.flags.contains(LinkFlags::Noarp),
        loopback: header.flags.contains(LinkFlags::Loopback),
        kind: None,
        parent: None,
        parent_elsewhere: false,
        master: None,
        rx_queues: 1,
        tx_queues: 1,
        gso_max_size: 0,
        gro_max_size: 0,
        tunnel: None,
        xdp: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(0) => {}
            LinkAttribute::Link(parent) => link.parent = Some(*parent),
            LinkAttribute::LinkNetNsId(_) => link.parent_elsewhere = true,
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = *queues,
            LinkAttribute::NumTxQueues(queues) => link.tx_queues = *queues,
            LinkAttribute::GsoMaxSize(size) => link.gso_max_size = *size,
            LinkAttribute::GroMaxSize(size) => link.gro_max_size = *size,
            // Drivers that never set an operational state report "unknown": the carrier decides.
            LinkAttribute::OperState(State::Down | State::LowerLayerDown | State::NotPresent) => {
                link.running = false;
            }
            LinkAttribute::LinkInfo(infos) => parse_info(infos, &mut link),
            LinkAttribute::Xdp(xdp) => link.xdp = parse_xdp(xdp),
            _ => {}
        }
    }
    link
}

fn parse_info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(data) => link.tunnel = parse_tunnel(data),
            _ => {}
        }
    }
}

/// Outer addresses by sort of tunnel. An address of zeros means "not set".
fn parse_tunnel(data: &InfoData) -> Option<Tunnel> {
    let mut tunnel = Tunnel::default();
    match data {
        InfoData::Vxlan(values) => {
            for value in values {
                match value {
                    InfoVxlan::Group(address) => tunnel.remote = known((*address).into()),
                    InfoVxlan::Group6(address) => tunnel.remote = known((*address).into()),
                    InfoVxlan::Local(address) => tunnel.local = known((*address).into()),
                    InfoVxlan::Local6(address) => tunnel.local = known((*address).into()),
                    InfoVxlan::Link(link) => tunnel.link = index(*link),
                    InfoVxlan::CollectMetadata(external) => tunnel.external = *external,
                    _ => {}
                }
            }
        }
        InfoData::Geneve(values) => {
            for value in values {
                match value {
                    InfoGeneve::Remote(address) => tunnel.remote = known((*address).into()),
                    InfoGeneve::Remote6(address) => tunnel.remote = known((*address).into()),
                    InfoGeneve::Local(address) => tunnel.local = known((*address).into()),
                    InfoGeneve::Local6(address) => tunnel.local = known((*address).into()),
                    InfoGeneve::CollectMetadata => tunnel.external = true,
                    _ => {}
                }
            }
        }
        InfoData::GreTun(values) | InfoData::GreTap(values) | InfoData::ErSpan(values) => {
            for value in values {
                match value {
                    InfoGre::Remote(address) => tunnel.remote = known((*address).into()),
                    InfoGre::Local(address) => tunnel.local = known((*address).into()),
                    InfoGre::Link(link) => tunnel.link = index(*link),
                    InfoGre::CollectMetadata => tunnel.external = true,
                    _ => {}
                }
            }
        }
        InfoData::GreTun6(values) | InfoData::GreTap6(values) | InfoData::Ip6ErSpan(values) => {
            for value in values {
                match value {
                    InfoGre6::Remote(address) => tunnel.remote = known((*address).into()),
                    InfoGre6::Local(address) => tunnel.local = known((*address).into()),
                    InfoGre6::Link(link) => tunnel.link = index(*link),
                    InfoGre6::CollectMetadata => tunnel.external = true,
                    _ => {}
                }
            }
        }
        InfoData::IpTunnel(values) => {
            for value in values {
                match value {
                    InfoIpTunnel::Remote(address) => tunnel.remote = known(*address),
                    InfoIpTunnel::Local(address) => tunnel.local = known(*address),
                    InfoIpTunnel::Link(link) => tunnel.link = index(*link),
                    InfoIpTunnel::CollectMetadata => tunnel.external = true,
                    _ => {}
                }
            }
        }
        InfoData::Vti(values) => {
            for value in values {
                match value {
                    InfoVti::Remote(address) => tunnel.remote = known(*address),
                    InfoVti::Local(address) => tunnel.local = known(*address),
                    InfoVti::Link(link) => tunnel.link = index(*link),
                    _ => {}
                }
            }
        }
        _ => return None,
    }
    Some(tunnel)
}

fn known(address: IpAddr) -> Option<IpAddr> {
    (!address.is_unspecified()).then_some(address)
}

fn index(link: u32) -> Option<u32> {
    (link != 0).then_some(link)
}

fn parse_xdp(attributes: &[LinkXdp]) -> Vec<XdpAttachment> {
    let mut found = Vec::new();
    let mut single = None;
    let mut attached = None;
    for attribute in attributes {
        let (mode, program) = match attribute {
            LinkXdp::Attached(mode) => {
                attached = Some(mode);
                continue;
            }
            LinkXdp::ProgId(program) => {
                single = Some(*program);
                continue;
            }
            LinkXdp::DrvProgId(program) => ("native", *program),
            LinkXdp::SkbProgId(program) => ("generic", *program),
            LinkXdp::HwProgId(program) => ("offload", *program),
            _ => continue,
        };
        found.push(XdpAttachment { mode, program });
    }
    // The per-mode ids are there only from 4.20 on; before, the one id belongs to the one mode.
    if let (true, Some(program)) = (found.is_empty(), single) {
        let mode = match attached {
            Some(XdpAttached::SocketBuffer) => "generic",
            Some(XdpAttached::Hardware) => "offload",
            _ => "native",
        };
        found.push(XdpAttachment { mode, program });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::{InfoKind, LinkLayerType};

    fn message(kind: InfoKind, data: InfoData) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName("vx7".into()),
            LinkAttribute::Mtu(1450),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::Link(3),
            LinkAttribute::Controller(9),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ];
        message
    }

    #[test]
    fn reads_a_vxlan_device() {
        let link = parse(&message(
            InfoKind::Vxlan,
            InfoData::Vxlan(vec![
                InfoVxlan::Id(7),
                InfoVxlan::Group("203.0.113.2".parse().unwrap()),
                InfoVxlan::Local("0.0.0.0".parse().unwrap()),
                InfoVxlan::Link(3),
            ]),
        ));
        assert_eq!((link.index, link.mtu, link.name.as_str()), (7, 1450, "vx7"));
        assert_eq!(link.mac, Some([2, 0, 0, 0, 0, 7]));
        assert_eq!((link.parent, link.master), (Some(3), Some(9)));
        assert!(link.ethernet && link.up && link.running);
        assert_eq!(link.kind_name(), "vxlan");
        let tunnel = link.tunnel.unwrap();
        assert_eq!(tunnel.remote, Some("203.0.113.2".parse().unwrap()));
        assert_eq!((tunnel.local, tunnel.link), (None, Some(3)));
    }

    #[test]
    fn operational_state_takes_away_running() {
        let mut down = message(InfoKind::Veth, InfoData::Other(Vec::new()));
        down.attributes.push(LinkAttribute::OperState(State::Down));
        assert!(parse(&down).up && !parse(&down).running);
        let mut unknown = message(InfoKind::Veth, InfoData::Other(Vec::new()));
        unknown
            .attributes
            .push(LinkAttribute::OperState(State::Unknown));
        assert!(parse(&unknown).running);
    }

    #[test]
    fn a_tunnel_without_ethernet_is_told_apart() {
        let mut tun = message(InfoKind::Tun, InfoData::Other(Vec::new()));
        tun.header.link_layer_type = LinkLayerType::from(libc::ARPHRD_NONE);
        tun.attributes
            .retain(|a| !matches!(a, LinkAttribute::Address(_)));
        let link = parse(&tun);
        assert!(!link.ethernet);
        assert_eq!((link.mac, link.tunnel), (None, None));
    }

    #[test]
    fn xdp_modes() {
        let found = parse_xdp(&[LinkXdp::ProgId(5), LinkXdp::DrvProgId(5)]);
        assert_eq!(
            found,
            [XdpAttachment {
                mode: "native",
                program: 5
            }]
        );
        let old = parse_xdp(&[
            LinkXdp::Attached(XdpAttached::SocketBuffer),
            LinkXdp::ProgId(5),
        ]);
        assert_eq!(old[0].mode, "generic");
        assert!(parse_xdp(&[LinkXdp::Attached(XdpAttached::None)]).is_empty());
    }

    #[test]
    fn lo_is_found_by_name_and_index() {
        let mut netlink = Netlink::open().unwrap();
        let lo = by_name(&mut netlink, "lo").unwrap();
        assert!(lo.loopback && lo.ethernet);
        assert_eq!(by_index(&mut netlink, lo.index).unwrap(), lo);
        assert_eq!(all(&mut netlink).unwrap()[&lo.index].name, "lo");
        let error = by_name(&mut netlink, "xtee-none").unwrap_err().to_string();
        assert!(error.contains("xtee-none"), "{error}");
    }
}
