//! The loop guard's test bed: a host whose one interface is tapped and also leads to the collector.
//!
//! host eth0 198.51.100.2 ── 198.51.100.1 eth0 router col0 203.0.113.1 ── 203.0.113.2 mon0 collector
#![allow(dead_code)]

use super::netns::{veth, Namespace, VethEnd};

pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const HOST: &str = "198.51.100.2";
pub const ROUTER: &str = "198.51.100.1";
pub const COLLECTOR: &str = "203.0.113.2";

/// The three namespaces, wired and routed.
#[derive(Debug)]
pub struct Routed {
    pub host: Namespace,
    pub router: Namespace,
    pub collector: Namespace,
}

impl Routed {
    pub fn new() -> Routed {
        let lab = Routed {
            host: Namespace::new(),
            router: Namespace::new(),
            collector: Namespace::new(),
        };
        link(&lab.host, &lab.router);
        veth(
            &VethEnd::new(&lab.router, "col0").address("203.0.113.1/24"),
            &VethEnd::new(&lab.collector, "mon0").address("203.0.113.2/24"),
        );
        lab.router.write_sysctl("net/ipv4/ip_forward", "1");
        lab.host
            .ip(&["route", "add", "203.0.113.0/24", "via", ROUTER]);
        lab.collector
            .ip(&["route", "add", "default", "via", "203.0.113.1"]);
        // Neighbours are resolved before anything is counted.
        lab.host.run("ping", &["-c", "1", "-W", "5", COLLECTOR]);
        lab
    }
}

/// Two namespaces with an `eth0` each: the first has the host's address, the second the router's.
pub fn link(host: &Namespace, router: &Namespace) {
    veth(
        &VethEnd::new(host, "eth0")
            .mac(HOST_MAC)
            .address("198.51.100.2/24"),
        &VethEnd::new(router, "eth0")
            .mac(ROUTER_MAC)
            .address("198.51.100.1/24"),
    );
    host.neighbour("eth0", ROUTER, ROUTER_MAC);
    router.neighbour("eth0", HOST, HOST_MAC);
}

/// The kernel of this namespace answers every packet to a closed port, as fast as they come.
pub fn answer_without_limit(namespace: &Namespace) {
    namespace.write_sysctl("net/ipv4/icmp_ratelimit", "0");
    namespace.write_sysctl("net/ipv4/icmp_msgs_per_sec", "1000000");
    namespace.write_sysctl("net/ipv4/icmp_msgs_burst", "1000000");
}
