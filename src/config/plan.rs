//! Configuration and facts of the host in, decisions out, each with its reason.
//!
//! A pure function: `run` carries the plan out, `check` prints it, tests make the facts up.

mod print;
pub mod sink;
mod source;
mod target;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::error::ConfigError;
use super::facts::HostFacts;
use super::settings::{
    Breaker, Config, Distribution, HealthCheck, Interface, Namespace, SourceKind, ZeroCopy,
};
use super::sink::SinkKind;
use crate::mirror::rules::Action;
use crate::packet::encap::{IpVersion, Marking, Tunnel};
use crate::packet::fit::Oversize;
use crate::packet::link::LinkType;
use crate::packet::Direction;

impl Plan {
    /// Whether the standard output is a capture, so that nothing else may be written to it.
    #[must_use]
    pub fn captures_to_standard_output(&self) -> bool {
        let is = |sink: &sink::SinkPlan| sink.kind == SinkKind::StandardOutput;
        self.sinks.iter().any(is)
    }
}

/// A decision and its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice<T> {
    /// What was decided.
    pub value: T,
    /// Why, in words for the user.
    pub why: String,
}

impl<T> Choice<T> {
    fn new(value: T, why: impl Into<String>) -> Self {
        Choice {
            value,
            why: why.into(),
        }
    }
}

/// All decisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order of the configuration.
    pub sources: Vec<SourcePlan>,
    /// In the order of the configuration.
    pub targets: Vec<TargetPlan>,
    /// In the order of the configuration.
    pub sinks: Vec<sink::SinkPlan>,
    /// Number of rules.
    pub rules: usize,
    /// Whether packets that no rule takes are mirrored.
    pub default_mirror: bool,
    /// When copies are shed.
    pub breaker: Breaker,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// What works, but not as the user may expect.
    pub warnings: Vec<String>,
}

/// Decisions for one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourcePlan {
    /// As users write it: `tap:eth0`.
    pub name: String,
    /// Which interface was asked for.
    #[serde(skip)]
    pub chosen: Interface,
    /// The network namespace that it is in; `None`: our own.
    #[serde(skip)]
    pub namespace: Option<Namespace>,
    /// The interface now.
    pub interface: String,
    /// Its number now.
    pub ifindex: u32,
    /// What packets of the interfaces begin with that it can be on.
    pub links: Vec<LinkType>,
    /// How packets are taken.
    pub capture: Capture,
    /// One thread each.
    pub workers: Vec<WorkerPlan>,
    /// The host's own traffic uses the interface.
    pub carries_host_traffic: bool,
    /// As configured.
    pub allow_link_reset: bool,
    /// As configured.
    pub allow_credential_endpoints: bool,
}

/// How packets are taken from the interface of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Capture {
    /// tc programs copy into rings, one for each worker.
    Tap {
        /// How they are attached.
        attach: Choice<Attach>,
        /// Bytes of each ring.
        ring_size: u32,
    },
    /// An XDP program steers to AF_XDP sockets, one for each queue.
    Span {
        /// How it is attached.
        mode: Choice<XdpMode>,
        /// Generic is tried where native fails.
        generic_if_native_fails: bool,
        /// AF_XDP zero copy to ask for.
        zero_copy: Choice<ZeroCopy>,
        /// Preferred busy polling.
        busy_poll: bool,
        /// Frames of the umem for each queue.
        frames: u32,
        /// Bytes in front of each frame for the outer header, 0 where no target is sent to by AF_XDP.
        room: Choice<u16>,
    },
}

/// How the tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// tcx links.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// Behind the driver.
    Generic,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerPlan {
    /// Its number among the workers of the source; a tap's ring has the same number.
    pub index: usize,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// The queues it serves; empty for a tap.
    pub queues: Vec<u32>,
}

/// Decisions for one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetPlan {
    /// `vxlan://203.0.113.2:4789?vni=7`.
    pub url: String,
    /// The tunnel.
    pub encapsulation: Tunnel,
    /// The name of the host, where the URL has one: it is resolved again while the mirror runs.
    #[serde(skip)]
    pub name: Option<String>,
    /// The address of the host.
    pub address: IpAddr,
    /// The outer source address that was asked for, else the route's, if it has one.
    pub source: Option<IpAddr>,
    /// It was asked for.
    #[serde(skip)]
    pub source_is_asked: bool,
    /// The device that the copies leave by.
    pub device: String,
    /// Its number.
    pub ifindex: u32,
    /// The device was asked for: sockets are bound to it.
    pub bind_device: bool,
    /// From that device down to the physical one, as far as it can be followed.
    pub path: Vec<String>,
    /// Who sends.
    pub transmit: Choice<Transmitter>,
    /// Who sends what does not fit a frame of AF_XDP; `None` where it is not used, or everything fits.
    pub jumbo: Option<Transmitter>,
    /// How a UDP socket sends; `None` for other transmitters.
    pub gso: Option<Choice<UdpSend>>,
    /// Number of outer source ports, from 61000 on.
    pub source_ports: u16,
    /// What happens to copies that do not fit the path.
    pub oversize: Oversize,
    /// Path MTU in bytes that was asked for.
    pub mtu: Option<u32>,
    /// Largest outer packet in bytes, from its IP header on, as far as it is known now.
    pub path_mtu: u32,
    /// Where that comes from.
    pub path_mtu_from: &'static str,
    /// Largest inner frame in bytes, its Ethernet header included, that fits in `path_mtu`.
    pub largest_frame: u32,
    /// Which packets it gets.
    pub distribution: Distribution,
    /// What makes it unhealthy.
    pub health: HealthCheck,
    /// Bits a second that it gets at most: outer packets from their IP header on.
    pub limit: Option<u64>,
    /// Nobody asked for that limit.
    pub limit_is_default: bool,
    /// Packets a second that it gets at most.
    pub limit_packets: Option<u64>,
    /// Differentiated services code point of the outer packets; `None`: 0.
    pub dscp: Option<u8>,
    /// `SO_PRIORITY` of the sockets that send; `None`: the kernel's, by the code point.
    pub priority: Option<u8>,
    /// Time to live, or hop limit, of the outer packets; `None`: 64.
    pub ttl: Option<u8>,
}

impl TargetPlan {
    /// Version of the outer IP header.
    #[must_use]
    pub fn outer(&self) -> IpVersion {
        match self.address {
            IpAddr::V4(_) => IpVersion::V4,
            IpAddr::V6(_) => IpVersion::V6,
        }
    }

    /// How the outer packets are marked.
    #[must_use]
    pub fn marking(&self) -> Marking {
        let unmarked = Marking::default();
        Marking {
            ttl: self.ttl.unwrap_or(unmarked.ttl),
            // The code point is the upper six bits of the octet (RFC 2474).
            tos: self.dscp.map_or(unmarked.tos, |dscp| dscp << 2),
        }
    }

    /// Bytes between the start of the outer IP header and the inner frame.
    #[must_use]
    pub fn overhead(&self) -> usize {
        self.encapsulation.ip_overhead(self.outer())
    }
}

/// Who sends copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transmitter {
    /// A UDP socket.
    Udp,
    /// An AF_XDP socket, in copy mode.
    Xsk,
    /// A raw socket.
    Raw,
}

/// How a UDP socket sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UdpSend {
    /// Runs of copies as one super-packet (`UDP_SEGMENT`).
    Segment,
    /// One by one, many a call.
    Sendmmsg,
}

/// Decides everything that a configuration leaves to the host.
///
/// # Errors
/// What the configuration asks for is not possible on this host: the first such thing.
pub fn plan(config: &Config, facts: &HostFacts) -> Result<Plan, ConfigError> {
    let mut warnings = Vec::new();
    let targets = target::targets(config, facts, &mut warnings)?;
    let sinks = sink::sinks(config, facts)?;
    let sources = source::sources(config, facts, &targets, &mut warnings)?;
    shared_sequence_numbers(config, &sources, &mut warnings);
    rules_without_effect(config, &mut warnings);
    group_of_one(config, &mut warnings);
    truncated_copies(config, &mut warnings);
    Ok(Plan {
        sources,
        targets,
        sinks,
        rules: config.rules.len(),
        default_mirror: config.default_action() == Action::Mirror,
        breaker: config.breaker,
        control_socket: config.control_socket.clone(),
        warnings,
    })
}

/// Workers that send with the same key or session take their numbers from one counter, so that every
/// missing one is a loss; but they do not wait for each other.
fn shared_sequence_numbers(config: &Config, sources: &[SourcePlan], warnings: &mut Vec<String>) {
    let workers: usize = sources.iter().map(|source| source.workers.len()).sum();
    for target in &config.targets {
        if target.encapsulation.is_numbered() && workers > 1 {
            warnings.push(format!(
                "{}: {workers} workers share its sequence numbers: those of one flow arrive in order, those of \
                 different flows may not. A receiver that drops what is out of order wants one source with \
                 workers = 1",
                target.name()
            ));
        }
    }
}

/// One target alone shares with nobody.
fn group_of_one(config: &Config, warnings: &mut Vec<String>) {
    let hash = |target: &&super::settings::Target| target.distribution == Distribution::Hash;
    let mut group = config.targets.iter().filter(hash);
    if let (Some(one), None) = (group.next(), group.next()) {
        warnings.push(format!(
            "{}: distribution = \"hash\" for this target alone: it gets every packet",
            one.name()
        ));
    }
}

/// Copies that some collectors throw away without a word.
fn truncated_copies(config: &Config, warnings: &mut Vec<String>) {
    let short = |rule: &crate::mirror::rules::Rule| rule.slice.snaplen != 0;
    if let Some(number) = config.rules.iter().position(short) {
        let bytes = config.rules[number].slice.snaplen;
        warnings.push(format!(
            "rule {number} copies {bytes} bytes of a packet (snaplen): Suricata and Zeek drop truncated packets"
        ));
    }
}

/// Rules that ask for what no source can show.
fn rules_without_effect(config: &Config, warnings: &mut Vec<String>) {
    let tapped = |source: &super::settings::Source| matches!(source.kind, SourceKind::Tap(_));
    if config.sources.iter().any(tapped) {
        return;
    }
    for (number, rule) in config.rules.iter().enumerate() {
        if rule.direction == Some(Direction::Out) {
            warnings.push(format!(
                "rule {number} takes nothing: a span sees every packet as incoming"
            ));
        }
        if rule.mark.is_some_and(|(value, _)| value != 0) {
            warnings.push(format!(
                "rule {number} takes nothing: packets of a span carry no firewall mark"
            ));
        }
    }
}
