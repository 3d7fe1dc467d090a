//! The sockets of the transmitters, and following a target to another address with them.
//!
//! A socket is bound to its source and connected to its destination. When the path has others, control opens new
//! sockets and puts each in the place of the old one: workers go on sending by the same descriptors.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::explain::explain;
use crate::config::plan::TargetPlan;
use crate::mirror::path::PathState;
use crate::packet::encap::FIRST_SOURCE_PORT;
use crate::transmit::open::{self, Endpoint};

/// After a refusal new sockets are tried again at most this often.
const RETRY: Duration = Duration::from_secs(1);

/// Which sockets a transmitter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UDP, one a source port.
    Udp,
    /// Raw, for GRE.
    Gre,
    /// Raw, for whole IP packets.
    WholePackets,
}

/// The sockets of one transmitter.
#[derive(Debug)]
struct Transmitter {
    /// Its target's number.
    target: usize,
    kind: Kind,
    ports: u16,
    /// What they were opened for last.
    endpoint: Endpoint,
    sockets: Vec<Arc<OwnedFd>>,
    /// Since when they cannot be opened for the path as it is.
    refused: Option<Instant>,
}

impl Transmitter {
    fn fits(&self, path: &PathState) -> bool {
        let source = path.source_ip;
        self.endpoint.destination == path.destination
            && (source.is_unspecified() || self.endpoint.source == Some(source))
    }

    /// Its worker has gone, and the sockets were its own.
    fn is_abandoned(&self) -> bool {
        self.sockets
            .iter()
            .all(|socket| Arc::strong_count(socket) == 1)
    }

    fn follow(&mut self, path: &PathState) -> io::Result<()> {
        let mut endpoint = self.endpoint.clone();
        endpoint.destination = path.destination;
        let source = Some(path.source_ip);
        endpoint.source = source.filter(|source| !source.is_unspecified());
        let new = open(self.kind, &endpoint, self.ports)?;
        for (old, new) in self.sockets.iter().zip(&new) {
            open::replace(old.as_fd(), new)?;
        }
        self.endpoint = endpoint;
        Ok(())
    }
}

/// The sockets of all transmitters.
#[derive(Debug, Default)]
pub struct Sockets {
    list: Vec<Transmitter>,
}

impl Sockets {
    /// Opens the sockets of one transmitter of target number `target`; they are followed from now on.
    ///
    /// # Errors
    /// What the kernel said, with what was tried.
    pub fn open(
        &mut self,
        target: usize,
        plan: &TargetPlan,
        kind: Kind,
    ) -> io::Result<Vec<Arc<OwnedFd>>> {
        let endpoint = endpoint(plan);
        let sockets = open(kind, &endpoint, plan.source_ports)?;
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        self.list.push(Transmitter {
            target,
            kind,
            ports: plan.source_ports,
            endpoint,
            sockets: sockets.clone(),
            refused: None,
        });
        Ok(sockets)
    }

    /// The same for the kinds that are one socket.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_one(
        &mut self,
        target: usize,
        plan: &TargetPlan,
        kind: Kind,
    ) -> io::Result<Arc<OwnedFd>> {
        let mut sockets = self.open(target, plan, kind)?;
        sockets.pop().ok_or_else(|| io::Error::other("no socket"))
    }

    /// Brings all sockets to where the paths lead now. Returns what is in the way, once.
    pub fn follow(
        &mut self,
        targets: &[TargetPlan],
        paths: &[Arc<ArcSwap<PathState>>],
    ) -> Vec<String> {
        let mut news = Vec::new();
        self.list.retain(|transmitter| !transmitter.is_abandoned());
        for transmitter in &mut self.list {
            let (Some(plan), Some(path)) = (
                targets.get(transmitter.target),
                paths.get(transmitter.target),
            ) else {
                continue;
            };
            let path = path.load();
            let waits = transmitter
                .refused
                .is_some_and(|since| since.elapsed() < RETRY);
            // Without a route nobody knows the source.
            if transmitter.fits(&path) || path.ifindex == 0 || waits {
                continue;
            }
            let told = transmitter.refused.is_some();
            match transmitter.follow(&path) {
                Ok(()) => transmitter.refused = None,
                Err(error) => {
                    transmitter.refused = Some(Instant::now());
                    let new = format!(
                        "{}: no sockets to {} from {}: {}; copies go on to {}",
                        plan.url,
                        path.destination,
                        path.source_ip,
                        explain(&anyhow::Error::new(error)),
                        transmitter.endpoint.destination
                    );
                    if !told && !news.contains(&new) {
                        news.push(new);
                    }
                }
            }
        }
        news
    }

    /// Whether copies for a target leave for this address only.
    pub fn all_go_to(&self, target: usize, destination: IpAddr) -> bool {
        self.list
            .iter()
            .filter(|transmitter| transmitter.target == target)
            .all(|transmitter| transmitter.endpoint.destination == destination)
    }
}

/// How the sockets of a target shall send.
pub(super) fn endpoint(target: &TargetPlan) -> Endpoint {
    Endpoint {
        source: target.source,
        destination: target.address,
        port: target.encapsulation.udp_port().unwrap_or(0),
        device: target.bind_device.then(|| target.device.clone()),
        marking: target.marking(),
        priority: target.priority,
    }
}

fn open(kind: Kind, endpoint: &Endpoint, ports: u16) -> io::Result<Vec<OwnedFd>> {
    match kind {
        Kind::Udp => open::udp(endpoint, FIRST_SOURCE_PORT, ports),
        Kind::Gre => Ok(vec![open::raw_gre(endpoint)?]),
        Kind::WholePackets => Ok(vec![open::whole_packets(endpoint)?]),
    }
}
