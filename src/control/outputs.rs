//! Opening the transmitters of a worker: one for each target, as the plan says.
//!
//! What the plan only preferred falls back, once and with the reason; what the user demanded fails.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicU32;
use std::sync::Arc;

use anyhow::{bail, Context as _};
use arc_swap::ArcSwap;

use super::explain::explain;
use super::paths::Successor;
use super::sinks::{RunningSinks, Sinks};
use super::sockets::{Kind, Sockets};
use crate::config::plan::{Plan, TargetPlan, Transmitter as Planned, UdpSend};
use crate::config::settings::{Distribution, TransmitChoice};
use crate::host::clock::monotonic;
use crate::host::path_mtu::OuterFlow;
use crate::mirror::limit::{Limit, Rates};
use crate::mirror::path::{PathProblem, PathState};
use crate::mirror::selection::{Selection, Terms};
use crate::mirror::tables::Tables;
use crate::packet::encap::{Tunnel, FIRST_SOURCE_PORT};
use crate::packet::fit::Oversize;
use crate::packet::headers::ETHERNET_HEADER;
use crate::packet::DEFAULT_PACKETS;
use crate::telemetry::sinks::SinkObserver;
use crate::transmit::auto::{AutoSender, SocketSender};
use crate::transmit::fragments::{FragmentOuter, FragmentSender, Identification};
use crate::transmit::raw::RawSender;
use crate::transmit::udp::UdpSender;
use crate::transmit::wrap::{Sequence, UtcOffset, Wrapping};
use crate::transmit::xsk::{BoundPort, Exchange, Outer, XskSender};
use crate::worker::counters::TargetCounters;
use crate::worker::ladder::Ladder;
use crate::worker::outputs::{Output, SinkOutput, Transmitter};
use crate::xsk::{Mode, PortConfig, TxPort, Umem, XskError};

/// Slots of a transmit ring.
pub(super) const TX_RING: u32 = 2048;

/// What all workers' outputs have in common.
#[derive(Debug)]
pub struct Opener {
    /// The plan's targets.
    pub targets: Arc<[TargetPlan]>,
    /// What the user asked for, in the same order.
    pub asked: Vec<TransmitChoice>,
    /// The targets' paths, in the same order.
    pub paths: Vec<Arc<ArcSwap<PathState>>>,
    /// What each target gets, in the same order; all workers have it in common.
    terms: Vec<Terms>,
    /// The numbers of fragmented datagrams, by target.
    identifications: Vec<Identification>,
    /// Queues taken by an AF_XDP transmitter, by device: a queue has one owner.
    taken: HashMap<u32, BTreeSet<u32>>,
    /// One for each target and tunnel, which all workers share.
    sequences: HashMap<(usize, Tunnel), Sequence>,
    /// Follows the host's clock.
    utc: UtcOffset,
    /// Why there are no frames for AF_XDP transmitters, where they were wanted.
    frames_refused: Option<String>,
    /// The counters of a worker that is opened again: they go on.
    known: VecDeque<Arc<TargetCounters>>,
    /// What fell back, with the reason.
    pub notes: Vec<String>,
    /// AF_XDP transmitters that need a new port when the route moves.
    pub successors: Vec<Successor>,
    /// Targets that copies do not travel to, until all workers are made.
    sinks: Option<Sinks>,
    sockets: Sockets,
}

/// The transmit half of a queue that a worker receives from.
#[derive(Debug)]
pub struct OwnPort {
    /// The device's number.
    pub ifindex: u32,
    /// The queue.
    pub queue: u32,
    /// The transmit half.
    pub port: TxPort,
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
    /// What gets the packets besides, on this host.
    pub sinks: Vec<SinkOutput>,
}

impl Opener {
    /// For the targets of a plan.
    pub fn new(
        plan: &Plan,
        asked: Vec<TransmitChoice>,
        paths: Vec<Arc<ArcSwap<PathState>>>,
        utc: UtcOffset,
        sinks: Sinks,
    ) -> Opener {
        Opener {
            targets: plan.targets.clone().into(),
            asked,
            paths,
            terms: terms(plan),
            // Not the same after each start: a receiver may hold fragments of the run before.
            identifications: plan
                .targets
                .iter()
                .map(|_| {
                    Identification::new(AtomicU32::new(crate::host::clock::monotonic() as u32))
                })
                .collect(),
            taken: HashMap::new(),
            known: VecDeque::new(),
            sequences: HashMap::new(),
            utc,
            frames_refused: None,
            notes: Vec::new(),
            successors: Vec::new(),
            sinks: Some(sinks),
            sockets: Sockets::default(),
        }
    }

    /// The frames that AF_XDP transmitters of the next worker would send from could not be made (memlock
    /// without CAP_IPC_LOCK, no CAP_NET_RAW): who demands AF_XDP fails with this reason in `open`, who only
    /// prefers it does without.
    pub fn refuse_frames(&mut self, why: &anyhow::Error) {
        self.frames_refused = Some(explain(why));
    }

    /// The workers that follow belong to source number `source`; see [`Sinks::begin_source`].
    pub fn begin_source(&mut self, source: usize, tables: Option<&Tables>) {
        if let Some(sinks) = &mut self.sinks {
            sinks.begin_source(source, tables);
        }
    }

    /// All workers are made: captures are written from now on. To be called once.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start_sinks(&mut self) -> anyhow::Result<(RunningSinks, Vec<SinkObserver>)> {
        match self.sinks.take() {
            Some(sinks) => sinks.start(),
            None => Ok(Default::default()),
        }
    }

    /// The next outputs are those of a worker that had these counters, one for each target.
    pub fn again(&mut self, counters: &[Arc<TargetCounters>]) {
        self.known = counters.iter().cloned().collect();
    }

    /// The AF_XDP transmitters that send from this umem are closed: their queues are free, and nothing is
    /// followed for them.
    pub fn forget(&mut self, umem: &Umem) {
        let taken = &mut self.taken;
        self.successors.retain(|successor| {
            let gone = successor.sends_from(umem);
            if let (true, (ifindex, queue)) = (gone, successor.opened_at()) {
                taken.entry(ifindex).or_default().remove(&queue);
            }
            !gone
        });
    }

    /// Whether any target is planned to be sent to by AF_XDP.
    pub fn needs_frames(&self) -> bool {
        self.targets
            .iter()
            .any(|target| target.transmit.value == Planned::Xsk)
    }

    /// Whether a target is sent to by UDP or by AF_XDP, as its traffic suits: unless the user chose, on a device that takes Ethernet frames.
    fn suits_itself(&self, index: usize) -> bool {
        let targets = self.targets.clone();
        let target = &targets[index];
        target.transmit.value == Planned::Udp
            && self.asked[index] == TransmitChoice::Auto
            && self.paths[index].load().problem != Some(PathProblem::NotEthernet)
    }

    /// Whether a tap's worker needs frames of its own to send from.
    pub fn tap_needs_frames(&self) -> bool {
        self.needs_frames() || (0..self.targets.len()).any(|index| self.suits_itself(index))
    }

    /// The outputs of one worker. `umem` holds the frames of its AF_XDP transmitters; `own_port` is
    /// the transmit half of a queue that the worker receives from, for a target whose device is the
    /// source itself. Only a `tap` sends to a target by UDP or AF_XDP as the traffic suits: a span's umem
    /// would have to give up zero copy for it (one umem has one mode).
    ///
    /// # Errors
    /// A socket could not be opened and nothing else is allowed.
    pub fn open(
        &mut self,
        umem: Option<&Umem>,
        tap: bool,
        mut own_port: Option<OwnPort>,
    ) -> anyhow::Result<Opened> {
        let mut opened = Opened {
            // A worker that is made again later brings its own with it.
            sinks: self.sinks.as_mut().map_or_else(Vec::new, Sinks::outputs),
            ..Opened::default()
        };
        for index in 0..self.targets.len() {
            let counters = self.known.pop_front().unwrap_or_default();
            let (transmitter, words) = self
                .open_one(index, umem, tap, &mut own_port)
                .with_context(|| format!("target {}", self.targets[index].url))?;
            let selection = Selection::new(self.terms[index].clone(), DEFAULT_PACKETS);
            let ladder = self.open_ladder(index)?;
            opened.outputs.push(Output::new(
                selection,
                transmitter,
                ladder,
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
        tap: bool,
        own_port: &mut Option<OwnPort>,
    ) -> anyhow::Result<(Transmitter, String)> {
        let targets = self.targets.clone();
        let target = &targets[index];
        match target.transmit.value {
            Planned::Udp if tap && self.suits_itself(index) => self.open_auto(index, umem),
            Planned::Udp => self.open_udp(index),
            Planned::Raw => self.open_raw(index),
            Planned::Xsk => {
                let refusal = match self.open_xsk(index, umem, own_port) {
                    Ok((sender, words)) if tap => return self.with_socket(index, sender, words),
                    Ok((sender, words)) => return Ok((Transmitter::Xsk(Box::new(sender)), words)),
                    Err(error) => error,
                };
                let targets = self.targets.clone();
                let target = &targets[index];
                if self.asked[index] == TransmitChoice::Xsk {
                    return Err(refusal);
                }
                let (transmitter, words) = match target.encapsulation.udp_port() {
                    Some(_) => self.open_udp(index)?,
                    None => self.open_raw(index)?,
                };
                let targets = self.targets.clone();
                let target = &targets[index];
                self.notes.push(format!(
                    "{}: {words} instead of AF_XDP: {}",
                    target.url,
                    explain(&refusal)
                ));
                Ok((transmitter, words))
            }
        }
    }

    /// The MTU ladder of a target, with a socket for fragments where it may need one.
    fn open_ladder(&mut self, index: usize) -> anyhow::Result<Ladder> {
        let target = &self.targets[index];
        let (oversize, tunnel, version) = (target.oversize, target.encapsulation, target.outer());
        let socket = match oversize {
            Oversize::Truncate | Oversize::Drop => None,
            Oversize::Resegment | Oversize::Fragment => {
                match self.sockets.open_one(index, target, Kind::WholePackets) {
                    Ok(socket) => Some(socket),
                    Err(error) if oversize == Oversize::Fragment => {
                        return Err(error).context(format!(
                            "target {}: cannot open the raw socket for fragments (it needs CAP_NET_RAW)",
                            target.url
                        ));
                    }
                    Err(error) => {
                        let note = format!(
                            "{}: what is not TCP and does not fit the path is dropped: no raw socket for \
                             fragments (it needs CAP_NET_RAW): {error}",
                            target.url
                        );
                        if !self.notes.contains(&note) {
                            self.notes.push(note);
                        }
                        None
                    }
                }
            }
        };
        if oversize == Oversize::Truncate {
            let note = format!(
                "{}: oversize = \"truncate\": Suricata and Zeek drop truncated packets",
                target.url
            );
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        let fragments = socket.map(|socket| {
            let target = &self.targets[index];
            let outer = FragmentOuter {
                marking: target.marking(),
                identification: self.identifications[index].clone(),
                wrapping: self.wrapping(index),
            };
            FragmentSender::new(socket, outer)
        });
        Ok(Ladder::new(oversize, tunnel, version, fragments))
    }

    fn wrapping(&mut self, index: usize) -> Wrapping {
        let targets = self.targets.clone();
        let target = &targets[index];
        let key = (index, target.encapsulation);
        Wrapping {
            tunnel: target.encapsulation,
            source_ports: target.source_ports,
            sequence: self.sequences.entry(key).or_default().clone(),
            utc: self.utc.clone(),
        }
    }

    /// A tap's AF_XDP transmitter, with a socket beside it where there are packets that its frames are too
    /// short for. (A span's frames came in such frames.)
    fn with_socket(
        &mut self,
        index: usize,
        xsk: XskSender,
        words: String,
    ) -> anyhow::Result<(Transmitter, String)> {
        let targets = self.targets.clone();
        let target = &targets[index];
        let socket = match target.jumbo {
            None => return Ok((Transmitter::Xsk(Box::new(xsk)), words)),
            Some(Planned::Udp) => SocketSender::Udp(self.open_udp_sender(index)?.0),
            Some(_) => SocketSender::Raw(self.open_raw_sender(index)?),
        };
        let sender = AutoSender::by_size(socket, xsk);
        Ok((Transmitter::Auto(Box::new(sender)), words))
    }

    fn open_auto(
        &mut self,
        index: usize,
        umem: Option<&Umem>,
    ) -> anyhow::Result<(Transmitter, String)> {
        let (udp, words) = self.open_udp_sender(index)?;
        match self.open_xsk(index, umem, &mut None) {
            Ok((xsk, _)) => {
                let sender = AutoSender::by_runs(udp, xsk, self.targets[index].source_ports);
                let words = format!("auto: {words}; xsk, copy, while runs are short");
                Ok((Transmitter::Auto(Box::new(sender)), words))
            }
            Err(refusal) => {
                self.notes.push(format!(
                    "{}: {words} only, also while runs are short: {}",
                    self.targets[index].url,
                    explain(&refusal)
                ));
                Ok((Transmitter::Udp(Box::new(udp)), words))
            }
        }
    }

    fn open_xsk(
        &mut self,
        index: usize,
        umem: Option<&Umem>,
        own_port: &mut Option<OwnPort>,
    ) -> anyhow::Result<(XskSender, String)> {
        let targets = self.targets.clone();
        let target = &targets[index];
        let Some(umem) = umem else {
            let why = self.frames_refused.as_deref();
            bail!("{}", why.unwrap_or("no frames to send from"))
        };
        let (queue, port) = match own_port.take_if(|own| own.ifindex == target.ifindex) {
            Some(own) => (own.queue, own.port),
            None => {
                let taken = self.taken.entry(target.ifindex).or_default();
                let queue = (0..).find(|queue| !taken.contains(queue)).unwrap_or(0);
                let port = open_port(umem, &target.device, queue)?;
                taken.insert(queue);
                (queue, port)
            }
        };
        let words = format!("xsk, {}", port.obtained());
        let exchange = Exchange::new();
        let outer = Outer {
            wrapping: self.wrapping(index),
            marking: target.marking(),
        };
        self.successors.push(Successor::new(
            self.paths[index].clone(),
            umem.clone(),
            exchange.clone(),
            queue,
            target.ifindex,
        ));
        let bound = BoundPort {
            port,
            ifindex: target.ifindex,
        };
        let sender = XskSender::new(bound, exchange, outer, TX_RING as usize);
        Ok((sender, words))
    }

    fn open_udp(&mut self, index: usize) -> anyhow::Result<(Transmitter, String)> {
        let (sender, words) = self.open_udp_sender(index)?;
        Ok((Transmitter::Udp(Box::new(sender)), words))
    }

    fn open_udp_sender(&mut self, index: usize) -> anyhow::Result<(UdpSender, String)> {
        let target = &self.targets[index];
        let sockets = self
            .sockets
            .open(index, target, Kind::Udp)
            .context("cannot open the UDP sockets")?;
        let send = target
            .gso
            .as_ref()
            .map_or(UdpSend::Sendmmsg, |gso| gso.value);
        let sender = UdpSender::new(
            sockets,
            target.encapsulation,
            target.outer(),
            send == UdpSend::Segment,
            DEFAULT_PACKETS,
        )
        .context("the tunnel is not carried by UDP")?;
        Ok((sender, format!("udp, {send}")))
    }

    fn open_raw(&mut self, index: usize) -> anyhow::Result<(Transmitter, String)> {
        let sender = self.open_raw_sender(index)?;
        Ok((Transmitter::Raw(Box::new(sender)), "raw".to_owned()))
    }

    fn open_raw_sender(&mut self, index: usize) -> anyhow::Result<RawSender> {
        let wrapping = self.wrapping(index);
        let target = &self.targets[index];
        let socket = self
            .sockets
            .open_one(index, target, Kind::Gre)
            .context("cannot open the raw socket (it needs CAP_NET_RAW)")?;
        RawSender::new(socket, wrapping, target.outer(), DEFAULT_PACKETS)
            .context("a raw socket sends what GRE carries")
    }

    /// Brings the sockets, and the plan for those that are opened later, to where the paths lead now. Returns
    /// what is in the way.
    pub fn follow_addresses(&mut self) -> Vec<String> {
        let has_moved = |(target, path): (&TargetPlan, &Arc<ArcSwap<PathState>>)| {
            let path = path.load();
            path.ifindex != 0
                && (target.address != path.destination || target.source != known(path.source_ip))
        };
        if self.targets.iter().zip(&self.paths).any(has_moved) {
            let mut targets = self.targets.to_vec();
            for (target, path) in targets.iter_mut().zip(&self.paths) {
                let path = path.load();
                if path.ifindex != 0 {
                    target.address = path.destination;
                    target.source = known(path.source_ip);
                }
            }
            self.targets = targets.into();
        }
        self.sockets.follow(&self.targets, &self.paths)
    }

    /// Whether no socket sends to another address of a target than this.
    pub fn all_go_to(&self, target: usize, destination: IpAddr) -> bool {
        self.sockets.all_go_to(target, destination)
    }
}

/// An address, unless it stands for none.
fn known(address: IpAddr) -> Option<IpAddr> {
    Some(address).filter(|address| !address.is_unspecified())
}

/// What each target gets. Limits begin now.
fn terms(plan: &Plan) -> Vec<Terms> {
    let now = monotonic();
    let budgeted = plan.breaker.budget.is_some() || plan.breaker.budget_packets.is_some();
    let each = plan.targets.iter().enumerate();
    each.map(|(number, target)| {
        let rates = Rates {
            bits: target.limit,
            packets: target.limit_packets,
        };
        Terms {
            share: share_number(target, number),
            limit: Limit::new(rates, now).map(Arc::new),
            overhead: added(target),
            measured: budgeted,
        }
    })
    .collect()
}

/// Bytes that a copy's outer packet has more than its frame, from the outer IP header on.
pub(super) fn added(target: &TargetPlan) -> u32 {
    let stripped = target.encapsulation.stripped(ETHERNET_HEADER);
    u32::try_from(target.overhead().saturating_sub(stripped)).unwrap_or(0)
}

/// The number by which the hash group knows a target of it.
pub(super) fn share_number(target: &TargetPlan, number: usize) -> Option<u8> {
    match target.distribution {
        Distribution::All => None,
        // The loop guard's table is smaller than this.
        Distribution::Hash => u8::try_from(number).ok(),
    }
}

/// Opens a queue for sending, in copy mode: on an uplink nothing else is allowed, and it needs no XDP
/// program and resets no link.
pub(super) fn open_port(umem: &Umem, device: &str, queue: u32) -> Result<TxPort, XskError> {
    let mut config = PortConfig::new(device, queue, Mode::Copy);
    config.tx_ring = TX_RING;
    TxPort::open(umem, &config)
}

/// How the outer packets of a target look.
pub(super) fn outer_flow(target: &TargetPlan) -> OuterFlow {
    let (protocol, destination_port) = match target.encapsulation.udp_port() {
        Some(port) => (17, port),
        None => (47, 0),
    };
    OuterFlow {
        protocol,
        destination_port,
        source_ports: ports(target),
    }
}

/// The outer UDP source ports of a target.
pub(super) fn ports(target: &TargetPlan) -> RangeInclusive<u16> {
    FIRST_SOURCE_PORT..=FIRST_SOURCE_PORT + (target.source_ports - 1)
}
