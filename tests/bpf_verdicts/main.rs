//! The kernel programs' verdicts and records, packet by packet, on the real verifier and kernel.
//!
//! Each module loads the programs anew and attaches them to nothing but `live`, which needs an
//! interface: a veth pair in namespaces of its own.

#[path = "../common/bpf_run.rs"]
mod bpf_run;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/xsk_lab.rs"]
mod lab;
#[path = "../common/offload_socket.rs"]
mod offload_socket;
#[path = "../common/packets.rs"]
mod packets;
#[path = "../common/xdp_program.rs"]
mod program;
#[path = "../common/random.rs"]
mod random;
#[path = "../common/random_rules.rs"]
mod random_rules;

mod flow_hash;
mod fragments;
mod links;
mod live;
mod loop_guard;
mod marks;
mod offload;
mod own_tunnels;
mod ports_and_networks;
mod ring;
mod sensitive;
mod slices;
mod steer;
mod table;
mod truncated;

use xtee::mirror::rules::{Action, IpNet, Protocols, Rule};

/// A rule to start from that mirrors.
fn mirror() -> Rule {
    Rule::any(Action::Mirror)
}

/// A rule to start from that skips.
fn skip() -> Rule {
    Rule::any(Action::Skip)
}

/// Narrows a rule down.
trait Narrow {
    fn protocol(self, number: u8) -> Rule;
    fn icmp(self) -> Rule;
    fn port(self, port: u16) -> Rule;
    fn network(self, network: &str) -> Rule;
}

impl Narrow for Rule {
    fn protocol(mut self, number: u8) -> Rule {
        self.protocol = Some(Protocols::one(number));
        self
    }

    fn icmp(mut self) -> Rule {
        self.protocol = Some(Protocols::icmp());
        self
    }

    fn port(mut self, port: u16) -> Rule {
        self.ports = vec![port..=port];
        self
    }

    fn network(mut self, network: &str) -> Rule {
        self.networks = vec![net(network)];
        self
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}
