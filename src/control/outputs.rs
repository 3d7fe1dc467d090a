//! Opening the transmitters of a worker: one for each target, as the plan says.
//!
//! What the plan only preferred falls back, once and with the reason; what the user demanded fails.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{bail, Context as _};
use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;

use super::paths::Successor;
use crate::config::plan::{Plan, TargetPlan, Transmitter as Planned, UdpSend};
use crate::config::settings::{Encapsulation, TransmitChoice};
use crate::mirror::path::PathState;
use crate::packet::encap::{Tunnel, FIRST_SOURCE_PORT};
use crate::packet::signature::OwnFlow;
use crate::packet::DEFAULT_PACKETS;
use crate::transmit::open::{self, Endpoint};
use crate::transmit::raw::RawSender;
use crate::transmit::udp::UdpSender;
use crate::transmit::xsk::{BoundPort, Outer, XskSender};
use crate::worker::counters::TargetCounters;
use crate::worker::outputs::{Output, Transmitter};
use crate::xsk::{Mode, PortConfig, TxPort, Umem, XskError};

/// Slots of a transmit ring.
pub(super) const TX_RING: u32 = 2048;

/// What all workers' outputs have in common.
#[derive(Debug)]
pub struct Opener<'p> {
    /// The plan's targets.
    pub targets: &'p [TargetPlan],
    /// What the user asked for, in the same order.
    pub asked: Vec<TransmitChoice>,
    /// The targets' paths, in the same order.
    pub paths: Vec<Arc<ArcSwap<PathState>>>,
    /// Queues taken by an AF_XDP transmitter, by device: a queue has one owner.
    taken: HashMap<u32, u32>,
    /// What fell back, with the reason.
    pub notes: Vec<String>,
    /// AF_XDP transmitters that need a new port when the route moves.
    pub successors: Vec<Successor>,
}

/// A worker's targets as they were opened.
#[derive(Debug, Default)]
pub struct Opened {
    /// One for each target.
    pub outputs: Vec<Output>,
    /// Their counters.
    pub counters: Vec<Arc<TargetCounters>>,
    /// Who sends, in words.
    pub transmit: Vec<String>,
}

impl<'p> Opener<'p> {
    /// For the targets of a plan.
    pub fn new(
        plan: &'p Plan,
        asked: Vec<TransmitChoice>,
        paths: Vec<Arc<ArcSwap<PathState>>>,
    ) -> Opener<'p> {
        Opener {
            targets: &plan.targets,
            asked,
            paths,
            taken: HashMap::new(),
            notes: Vec::new(),
            successors: Vec::new(),
        }
    }

    /// Whether any target is planned to be sent to by AF_XDP.
    pub fn needs_frames(&self) -> bool {
        self.targets
            .iter()
            .any(|target| target.transmit.value == Planned::Xsk)
    }

    /// The outputs of one worker. `umem` holds the frames of its AF_XDP transmitters; `own_port` gives
    /// the transmit half of a queue that the worker receives from, where the target's device is the
    /// source itself.
    ///
    /// # Errors
    /// A socket could not be opened and nothing else is allowed.
    pub fn open(
        &mut self,
        umem: Option<&Umem>,
        mut own_port: Option<(u32, TxPort)>,
    ) -> anyhow::Result<Opened> {
        let mut opened = Opened::default();
        for index in 0..self.targets.len() {
            let counters = Arc::new(TargetCounters::default());
            let (transmitter, words) = self
                .open_one(index, umem, &mut own_port)
                .with_context(|| format!("target {}", self.targets[index].url))?;
            opened.outputs.push(Output::new(
                transmitter,
                self.paths[index].clone(),
                counters.clone(),
            ));
            opened.counters.push(counters);
            opened.transmit.push(words);
        }
        Ok(opened)
    }

    fn open_one(
        &mut self,
        index: usize,
        umem: Option<&Umem>,
        own_port: &mut Option<(u32, TxPort)>,
    ) -> anyhow::Result<(Transmitter, String)> {
        let target = &self.targets[index];
        match target.transmit.value {
            Planned::Udp => open_udp(target),
            Planned::Raw => open_raw(target),
            Planned::Xsk => {
                let refusal = match self.open_xsk(index, umem, own_port) {
                    Ok(opened) => return Ok(opened),
                    Err(error) => error,
                };
                let target = &self.targets[index];
                if self.asked[index] == TransmitChoice::Xsk {
                    return Err(refusal);
                }
                let (transmitter, words) = match target.encapsulation {
                    Encapsulation::Vxlan { .. } => open_udp(target)?,
                    Encapsulation::Gre { .. } => open_raw(target)?,
                };
                self.notes.push(format!(
                    "{}: {words} instead of AF_XDP: {refusal:#}",
                    target.url
                ));
                Ok((transmitter, words))
            }
        }
    }

    fn open_xsk(
        &mut self,
        index: usize,
        umem: Option<&Umem>,
        own_port: &mut Option<(u32, TxPort)>,
    ) -> anyhow::Result<(Transmitter, String)> {
        let target = &self.targets[index];
        let Some(umem) = umem else {
            bail!("no frames to send from")
        };
        let port = match own_port.take_if(|(ifindex, _)| *ifindex == target.ifindex) {
            Some((_, port)) => port,
            None => {
                let queue = self.taken.entry(target.ifindex).or_insert(0);
                let port = open_port(umem, &target.device, *queue)?;
                *queue += 1;
                port
            }
        };
        let words = format!("xsk, {}", port.obtained());
        let mailbox = Arc::new(ArrayQueue::new(1));
        let outer = Outer {
            tunnel: tunnel(target.encapsulation),
            destination: target.address,
            source: target.source,
            source_ports: target.source_ports,
        };
        self.successors.push(Successor::new(
            self.paths[index].clone(),
            umem.clone(),
            mailbox.clone(),
            target.ifindex,
        ));
        let bound = BoundPort {
            port,
            ifindex: target.ifindex,
        };
        let sender = XskSender::new(bound, mailbox, outer, TX_RING as usize);
        Ok((Transmitter::Xsk(Box::new(sender)), words))
    }
}

/// Opens a queue for sending, in copy mode: on an uplink nothing else is allowed, and it needs no XDP
/// program and resets no link.
pub(super) fn open_port(umem: &Umem, device: &str, queue: u32) -> Result<TxPort, XskError> {
    let mut config = PortConfig::new(device, queue, Mode::Copy);
    config.tx_ring = TX_RING;
    TxPort::open(umem, &config)
}

fn endpoint(target: &TargetPlan, port: u16) -> Endpoint {
    Endpoint {
        source: target.source,
        destination: target.address,
        port,
        device: target.bind_device.then(|| target.device.clone()),
    }
}

fn open_udp(target: &TargetPlan) -> anyhow::Result<(Transmitter, String)> {
    let Encapsulation::Vxlan { vni, port } = target.encapsulation else {
        bail!("a UDP socket sends VXLAN only");
    };
    let sockets = open::udp(
        &endpoint(target, port),
        FIRST_SOURCE_PORT,
        target.source_ports,
    )
    .context("cannot open the UDP sockets")?;
    let send = target
        .gso
        .as_ref()
        .map_or(UdpSend::Sendmmsg, |gso| gso.value);
    let sender = UdpSender::new(sockets, vni, send == UdpSend::Segment, DEFAULT_PACKETS);
    Ok((Transmitter::Udp(Box::new(sender)), format!("udp, {send}")))
}

fn open_raw(target: &TargetPlan) -> anyhow::Result<(Transmitter, String)> {
    let Encapsulation::Gre { key, sequence } = target.encapsulation else {
        bail!("a raw socket sends GRE only");
    };
    let socket = open::raw_gre(&endpoint(target, 0))
        .context("cannot open the raw socket (it needs CAP_NET_RAW)")?;
    let sender = RawSender::new(socket, key, sequence, DEFAULT_PACKETS);
    Ok((Transmitter::Raw(Box::new(sender)), "raw".to_owned()))
}

/// The tunnel of a target as the packet plane knows it.
pub(super) fn tunnel(encapsulation: Encapsulation) -> Tunnel {
    match encapsulation {
        Encapsulation::Vxlan { vni, port } => Tunnel::Vxlan { vni, port },
        Encapsulation::Gre { key, sequence } => Tunnel::Gre { key, sequence },
    }
}

/// Our outer flows as the workers look for them.
pub(super) fn signatures(plan: &Plan, paths: &[Arc<ArcSwap<PathState>>]) -> Vec<OwnFlow> {
    let mut flows = Vec::new();
    for (target, path) in plan.targets.iter().zip(paths) {
        let source = match (target.source, path.load().source_ip) {
            (Some(source), _) => source,
            (None, IpAddr::V4(source)) => source,
            (None, IpAddr::V6(_)) => continue,
        };
        flows.push(OwnFlow {
            source,
            destination: target.address,
            tunnel: tunnel(target.encapsulation),
            source_ports: FIRST_SOURCE_PORT..=FIRST_SOURCE_PORT + (target.source_ports - 1),
        });
    }
    flows
}

/// Our outer flows as the kernel program excludes them.
pub(super) fn exclusions(plan: &Plan) -> Vec<crate::bpf::skel::OwnFlow> {
    plan.targets
        .iter()
        .map(|target| {
            let mut flow = crate::bpf::skel::OwnFlow {
                destination: u32::from(target.address).to_be(),
                ..Default::default()
            };
            match target.encapsulation {
                Encapsulation::Vxlan { vni, port } => {
                    flow.identifier = vni;
                    flow.has_identifier = 1;
                    flow.destination_port = port;
                    flow.source_port_first = FIRST_SOURCE_PORT;
                    flow.source_port_last = FIRST_SOURCE_PORT + (target.source_ports - 1);
                    flow.protocol = 17;
                }
                Encapsulation::Gre { key, .. } => {
                    flow.identifier = key.unwrap_or(0);
                    flow.has_identifier = u8::from(key.is_some());
                    flow.protocol = 47;
                }
            }
            flow
        })
        .collect()
}
