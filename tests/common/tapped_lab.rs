//! A live instance between its client and, on an interface of its own, the collector.
//!
//! client eth0 198.51.100.1 ── 198.51.100.2 eth0 instance mir0 203.0.113.1 ── 203.0.113.2 mon0 collector
#![allow(dead_code)]

use super::netns::{veth, Namespace, VethEnd};
use super::raw_socket::RawSocket;

pub const CLIENT: &str = "198.51.100.1";
pub const INSTANCE: &str = "198.51.100.2";
pub const CLIENT6: &str = "2001:db8::1";
pub const INSTANCE6: &str = "2001:db8::2";
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const INSTANCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const TARGET: &str = "vxlan://203.0.113.2?vni=7";

/// The three namespaces, wired.
#[derive(Debug)]
pub struct Tapped {
    pub client: Namespace,
    pub instance: Namespace,
    pub collector: Namespace,
}

impl Tapped {
    /// IPv4 only: nothing crosses that the test does not send.
    pub fn new() -> Tapped {
        Tapped::between(Namespace::new(), Namespace::new())
    }

    /// Both families; the kernel's own IPv6 packets cross, too.
    pub fn with_ipv6() -> Tapped {
        let lab = Tapped::between(Namespace::with_ipv6(), Namespace::with_ipv6());
        lab.client.address("eth0", "2001:db8::1/64");
        lab.instance.address("eth0", "2001:db8::2/64");
        lab.client.neighbour("eth0", INSTANCE6, INSTANCE_MAC);
        lab.instance.neighbour("eth0", CLIENT6, CLIENT_MAC);
        lab
    }

    fn between(client: Namespace, instance: Namespace) -> Tapped {
        let collector = Namespace::new();
        veth(
            &VethEnd::new(&instance, "mir0")
                .mtu(1600)
                .address("203.0.113.1/24"),
            &VethEnd::new(&collector, "mon0")
                .mtu(1600)
                .address("203.0.113.2/24"),
        );
        let lab = Tapped {
            client,
            instance,
            collector,
        };
        lab.wire_again();
        lab
    }

    /// Makes the veth pair between client and instance, after the test has deleted it.
    pub fn wire_again(&self) {
        veth(
            &VethEnd::new(&self.client, "eth0")
                .mac(CLIENT_MAC)
                .address("198.51.100.1/24"),
            &VethEnd::new(&self.instance, "eth0")
                .mac(INSTANCE_MAC)
                .address("198.51.100.2/24"),
        );
        self.client.neighbour("eth0", INSTANCE, INSTANCE_MAC);
        self.instance.neighbour("eth0", CLIENT, CLIENT_MAC);
    }

    /// Sees the copies arrive.
    pub fn monitor(&self) -> RawSocket {
        RawSocket::open(&self.collector, "mon0")
    }
}
