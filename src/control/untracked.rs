//! Keeps what our sockets send out of the host's connection tracking, as soon as there is any (see
//! `host::notrack`). AF_XDP passes no hook and needs none of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bpf::skel::OwnFlow;
use crate::host::notrack::{conntrack_is_in_use, Flow, Untracked};

/// How often it is looked for, nanoseconds.
const PERIOD: u64 = 1_000_000_000;

/// Our outer flows, tracked by nobody.
#[derive(Debug)]
pub struct Tracking {
    flows: Vec<Flow>,
    table: Option<Untracked>,
    refused: bool,
    next: u64,
}

impl Tracking {
    /// For our outer flows, in the network namespace of the calling thread.
    #[must_use]
    pub fn new(flows: &[OwnFlow]) -> Tracking {
        Tracking {
            flows: flows.iter().map(flow).collect(),
            table: None,
            refused: false,
            next: 0,
        }
    }

    /// A target has another address. A table that is there gives way to its successor; it stays where there
    /// can be none, for the other targets.
    pub fn follow(&mut self, flows: &[OwnFlow]) {
        self.flows = flows.iter().map(flow).collect();
        if self.table.is_some() {
            if let Ok(table) = Untracked::new(&self.flows) {
                self.table = Some(table);
            }
        }
    }

    /// Looks now and then whether conntrack is in use by now. Returns what the operator should know.
    pub fn tend(&mut self, now: u64) -> Option<String> {
        if self.table.is_some() || self.refused || now < self.next {
            return None;
        }
        self.next = now + PERIOD;
        if !conntrack_is_in_use() {
            return None;
        }
        match Untracked::new(&self.flows) {
            Ok(table) => {
                self.table = Some(table);
                None
            }
            Err(error) => {
                self.refused = true;
                Some(format!(
                    "the host's connection tracking sees the copies that sockets send, up to an entry for each outer \
                     source port: an nftables table of our own, which needs Linux 5.12 and CAP_NET_ADMIN, was refused: \
                     {error}"
                ))
            }
        }
    }
}

fn flow(own: &OwnFlow) -> Flow {
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(&own.destination) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let destination = match own.family {
        6 => IpAddr::from(Ipv6Addr::from(octets)),
        _ => IpAddr::from(Ipv4Addr::from_bits(own.destination[0].to_be())),
    };
    let sources = own.source_port_first..=own.source_port_last;
    Flow {
        destination,
        protocol: own.protocol,
        ports: (own.destination_port != 0).then_some((sources, own.destination_port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::own_flows::own_flows;
    use crate::packet::encap::Tunnel;

    #[test]
    fn a_flow_is_what_the_kernel_program_takes_for_ours() {
        let tunnel = Tunnel::Vxlan { vni: 7, port: 4789 };
        for address in ["203.0.113.2", "2001:db8::2"] {
            let address: IpAddr = address.parse().unwrap();
            let own = own_flows(address, &tunnel, 61000..=61063);
            let flow = flow(&own[0]);
            assert_eq!(flow.destination, address);
            assert_eq!(flow.protocol, 17);
            assert_eq!(flow.ports, Some((61000..=61063, 4789)));
        }
    }
}
