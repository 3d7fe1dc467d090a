//! What each network driver does when XDP comes: facts read in the drivers' sources (Linux 6.12) and
//! release notes, needed where the kernel itself does not tell.

/// Facts of one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Driver {
    /// As `ethtool -i` prints it.
    pub(super) name: &'static str,
    /// Largest MTU with a native XDP program that does not take fragments, in bytes.
    pub(super) xdp_mtu: Option<u32>,
    /// The XDP program takes half of the queues: more configured ones make the attach fail.
    pub(super) half_the_queues: bool,
    /// The first attach stops and restarts the interface or all of its queues.
    pub(super) link_bounces: bool,
    /// LRO (RSC) must be off before XDP is attached.
    pub(super) refuses_lro: bool,
    /// Native XDP with redirect, where the kernel does not tell (before 6.3).
    pub(super) native: bool,
    /// AF_XDP without a copy, where the kernel does not tell.
    pub(super) zero_copy: bool,
    /// Hands UDP super-packets on unsplit, so that they arrive as one large datagram.
    pub(super) passes_super_packets_on: bool,
    /// Anything else to know.
    pub(super) note: Option<&'static str>,
}

const PLAIN: Driver = Driver {
    name: "",
    xdp_mtu: None,
    half_the_queues: false,
    link_bounces: false,
    refuses_lro: false,
    native: false,
    zero_copy: false,
    passes_super_packets_on: false,
    note: None,
};

const DRIVERS: [Driver; 11] = [
    // ena_xdp.h: 4096 - 14 - 4 - 4 - 256 - 320; ena_xdp.c: ena_down/ena_up, xdp_first_ring.
    Driver {
        name: "ena",
        xdp_mtu: Some(3498),
        half_the_queues: true,
        link_bounces: true,
        native: true,
        note: Some("AF_XDP copies in the kernel's own driver; zero-copy only in Amazon's separate driver from 2.13 on"),
        ..PLAIN
    },
    // gve_main.c, verify_xdp_configuration: GQI 2048 - 14 - 2; DQO refuses XDP before 6.17.
    Driver {
        name: "gve",
        xdp_mtu: Some(2032),
        half_the_queues: true,
        link_bounces: true,
        refuses_lro: true,
        native: true,
        zero_copy: true,
        note: Some("third-generation machines (DQO queues) take XDP from kernel 6.17 on"),
        ..PLAIN
    },
    // virtio_net.c, virtnet_xdp_set.
    Driver {
        name: "virtio_net",
        xdp_mtu: Some(3506),
        link_bounces: true,
        native: true,
        passes_super_packets_on: true,
        note: Some("wants one more queue pair for each CPU, or transmits under a lock; refuses XDP where the host coalesces and does not let the guest turn that off"),
        ..PLAIN
    },
    // netvsc_bpf.c.
    Driver {
        name: "hv_netvsc",
        xdp_mtu: Some(3506),
        refuses_lro: true,
        native: true,
        note: Some("native XDP copies each packet into a page; traffic on the accelerated path is seen at the virtual function's interface as well"),
        ..PLAIN
    },
    Driver {
        name: "mana",
        xdp_mtu: Some(3506),
        native: true,
        ..PLAIN
    },
    // veth.c, veth_xdp_set: 4096 - headroom - skb_shared_info, and the peer's MTU counts.
    Driver {
        name: "veth",
        xdp_mtu: Some(3506),
        native: true,
        passes_super_packets_on: true,
        note: Some("rings of 256 slots; XDP takes segmentation offload from the peer; leave it without a queueing discipline"),
        ..PLAIN
    },
    Driver {
        name: "tun",
        native: true,
        passes_super_packets_on: true,
        ..PLAIN
    },
    Driver {
        name: "mlx5_core",
        native: true,
        zero_copy: true,
        link_bounces: true,
        note: Some("a virtual function on Azure can be taken away during host maintenance; traffic then moves to hv_netvsc"),
        ..PLAIN
    },
    Driver {
        name: "ice",
        native: true,
        zero_copy: true,
        link_bounces: true,
        ..PLAIN
    },
    Driver {
        name: "i40e",
        native: true,
        zero_copy: true,
        link_bounces: true,
        ..PLAIN
    },
    // ixgbevf_main.c: pass, drop and transmit, no redirect.
    Driver {
        name: "ixgbevf",
        note: Some("native XDP cannot redirect: AF_XDP works in generic mode only"),
        ..PLAIN
    },
];

/// The facts of a driver; of an unknown one, nothing special.
pub(super) fn of(name: &str) -> Driver {
    DRIVERS
        .into_iter()
        .find(|driver| driver.name == name)
        .unwrap_or(PLAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_drivers() {
        assert_eq!(of("ena").xdp_mtu, Some(3498));
        assert!(of("ena").half_the_queues && of("ena").link_bounces);
        assert_eq!(of("something else"), PLAIN);
        for (position, driver) in DRIVERS.iter().enumerate() {
            let first = DRIVERS.iter().position(|other| other.name == driver.name);
            assert_eq!(first, Some(position), "{} is listed once", driver.name);
        }
    }
}
