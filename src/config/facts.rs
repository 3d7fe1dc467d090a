//! What the plan has to know about the host, as plain data.
//!
//! `host` fills it in; `plan` reads it; tests make it up. Nothing here asks the system for anything.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::settings::{Interface, Namespace, Source};

/// `ethtool -k` name: the device takes UDP super-packets.
pub const TX_UDP_SEGMENTATION: &str = "tx-udp-segmentation";
/// `ethtool -k` name: the device takes super-packets inside of a UDP tunnel.
pub const TX_UDP_TNL_SEGMENTATION: &str = "tx-udp_tnl-segmentation";

/// All that the plan looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Every interface of the network namespace, or at least those that the configuration names
    /// and those on the way to its targets.
    pub interfaces: Vec<InterfaceFacts>,
    /// Names of the interfaces that the default routes lead to: IPv4 first.
    pub default_route: Vec<String>,
    /// The other network namespaces that sources are in.
    pub elsewhere: Vec<NamespaceFacts>,
    /// One for each target, in the order of the configuration.
    pub targets: Vec<TargetFacts>,
    /// One for each sink, in the order of the configuration.
    pub sinks: Vec<SinkFacts>,
    /// What the kernel can do.
    pub kernel: KernelFacts,
    /// CPUs that are online, ascending.
    pub online_cpus: Vec<usize>,
}

impl HostFacts {
    /// The interface of that name, unless it does not exist.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&InterfaceFacts> {
        self.interfaces.iter().find(|i| i.exists && i.name == name)
    }

    /// The interfaces that a source is on now: none, or one, or two where the default routes part.
    #[must_use]
    pub fn interfaces_of(&self, source: &Source) -> Vec<&InterfaceFacts> {
        let (interfaces, default_route) = match &source.namespace {
            None => (&self.interfaces, &self.default_route),
            Some(namespace) => match self.namespace(namespace) {
                Some(facts) => (&facts.interfaces, &facts.default_route),
                None => return Vec::new(),
            },
        };
        let names = match &source.interface {
            Interface::Name(name) => std::slice::from_ref(name),
            Interface::DefaultRoute => default_route,
        };
        let find = |name| interfaces.iter().find(|i| i.exists && &i.name == name);
        names.iter().filter_map(find).collect()
    }

    /// What was seen of another namespace.
    #[must_use]
    pub fn namespace(&self, namespace: &Namespace) -> Option<&NamespaceFacts> {
        let name = namespace.to_string();
        self.elsewhere.iter().find(|facts| facts.namespace == name)
    }
}

/// Another network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamespaceFacts {
    /// As users write it: `/run/netns/shop`, `pid:123`.
    pub namespace: String,
    /// Why nothing is known of it.
    pub problem: Option<String>,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceFacts>,
    /// Names of those that its default routes lead to: IPv4 first.
    pub default_route: Vec<String>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Its number, 0 when it does not exist.
    pub index: u32,
    /// Whether there is such an interface.
    pub exists: bool,
    /// Administratively up.
    pub up: bool,
    /// Hardware address, where it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Largest layer 3 packet, in bytes.
    pub mtu: u32,
    /// `IFLA_INFO_KIND`: "veth", "tun", "vxlan", "wireguard" …; empty for a physical device and for
    /// the loopback.
    pub kind: String,
    /// The driver's name as ethtool tells it; empty where unknown.
    pub driver: String,
    /// Receive queues in use.
    pub rx_queues: u32,
    /// Transmit queues in use.
    pub tx_queues: u32,
    /// Offloads by the kernel's names, as `ethtool -k` prints them (see [`TX_UDP_SEGMENTATION`]).
    /// Dashes and underscores are taken for the same. A name that is missing is not known.
    pub features: BTreeMap<String, bool>,
    /// It carries the host's own traffic: it has a default route. (That it is tapped by this very
    /// configuration, the plan sees for itself.)
    pub carries_host_traffic: bool,
    /// Frames begin with an Ethernet header (false for tun, wireguard, …).
    pub has_ethernet_header: bool,
    /// `ARPHRD_*`: what its frames begin with.
    pub arp_type: u16,
    /// It is the loopback.
    pub loopback: bool,
    /// The driver has native XDP; `None` where the kernel does not tell (before 6.3).
    pub native_xdp: Option<bool>,
    /// The driver has AF_XDP zero copy; `None` where the kernel does not tell (before 6.3).
    pub zero_copy: Option<bool>,
}

impl InterfaceFacts {
    /// Whether an offload is on, `None` when that is not known.
    #[must_use]
    pub fn feature(&self, name: &str) -> Option<bool> {
        let plain = |text: &str| text.replace('_', "-");
        let wanted = plain(name);
        let found = self.features.iter().find(|(name, _)| plain(name) == wanted);
        found.map(|(_, &on)| on)
    }
}

/// Where copies for one target go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TargetFacts {
    /// The address of the target's host.
    pub resolved: Option<IpAddr>,
    /// Why there is no address.
    pub resolve_error: Option<String>,
    /// The route there (looked up with the target's `source` and `dev`, if it has them).
    pub route: Option<RouteFacts>,
    /// From the route's device (first) down to the physical device (last), as far as it can be
    /// followed: behind a tun device stands a program, and the walk ends there.
    pub walk: Vec<DeviceStep>,
}

/// The place where a capture shall be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SinkFacts {
    /// An ordinary file with something in it stands there.
    pub has_content: bool,
    /// A folder stands there.
    pub is_folder: bool,
    /// The folder that the file would stand in exists.
    pub folder_exists: bool,
}

/// A route, resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RouteFacts {
    /// Number of the device.
    pub ifindex: u32,
    /// Name of the device.
    pub device: String,
    /// The gateway, `None` when the target is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would choose.
    pub prefsrc: Option<IpAddr>,
    /// Path MTU of the route as far as it is known, in bytes of layer 3.
    pub mtu: u32,
    /// The kernel has learned it from a router on the way.
    pub mtu_learned: bool,
    /// Hardware address of the next hop, `None` while it is not resolved.
    pub neighbour: Option<[u8; 6]>,
}

/// A device on the way of the copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceStep {
    /// Name of the device.
    pub device: String,
    /// Its kind, as in [`InterfaceFacts::kind`].
    pub kind: String,
}

/// What the kernel can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// Links on tcx (6.6 and newer).
    pub tcx: bool,
    /// BTF of the running kernel is there.
    pub btf: bool,
    /// The function `bpf_cast_to_kern_ctx` (6.2 and newer).
    pub cast_to_kern_ctx: bool,
    /// XDP programs can be loaded.
    pub xdp: bool,
    /// Sockets of family AF_XDP can be made.
    pub af_xdp: bool,
    /// `UDP_SEGMENT` on UDP sockets.
    pub udp_segment: bool,
    /// `SO_PREFER_BUSY_POLL` (5.11 and newer).
    pub prefer_busy_poll: bool,
}
