//! The configuration as the rest of the program sees it: checked, typed, with every default filled
//! in. `validate` makes it; `plan` turns it into decisions.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::error::Place;
use super::sink::Sink;
use crate::mirror::rules::{Action, Rule};
use crate::packet::encap::erspan::Version as ErspanVersion;
use crate::packet::encap::{Inner, Tunnel};
use crate::packet::fit::Oversize;

/// Ring of one worker of a tap, unless set: 16 MiB.
pub const DEFAULT_RING_SIZE: u32 = 16 << 20;
/// Frames of one queue of a span, unless set.
pub const DEFAULT_FRAMES: u32 = 4096;
/// Outer source ports, unless set.
pub const DEFAULT_SOURCE_PORTS: u16 = 64;
/// First outer source port: above Linux's ephemeral range, which ends at 60999.
pub const FIRST_SOURCE_PORT: u16 = 61000;
/// Bits a second that a target gets unless set: what a small cloud instance can spare.
pub const DEFAULT_LIMIT: u64 = 1_000_000_000;
/// Where `xtee status` finds the running mirror, unless set.
pub const DEFAULT_SOCKET: &str = "/run/xtee/xtee.sock";
/// Workers of one source.
pub const MAX_WORKERS: usize = 64;

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where packets come from; at least one.
    pub sources: Vec<Source>,
    /// In order; the first that matches decides.
    pub rules: Vec<Rule>,
    /// For packets that no rule takes; `None`: mirror without rules, else skip.
    pub default_action: Option<Action>,
    /// Where copies go by the network.
    pub targets: Vec<Target>,
    /// When copies are shed.
    pub breaker: Breaker,
    /// Where they stay on this host. There is at least one target or sink.
    pub sinks: Vec<Sink>,
    /// Path of the control socket.
    pub control_socket: PathBuf,
}

impl Config {
    /// The action for packets that no rule takes, with the default resolved.
    #[must_use]
    pub fn default_action(&self) -> Action {
        self.default_action.unwrap_or(if self.rules.is_empty() {
            Action::Mirror
        } else {
            Action::Skip
        })
    }
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where the user wrote it.
    pub place: Place,
    /// The interface.
    pub interface: Interface,
    /// The network namespace that it is in; `None`: our own.
    pub namespace: Option<Namespace>,
    /// How packets are taken from it.
    pub kind: SourceKind,
    /// CPUs that workers are pinned to; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Workers asked for; `None`: one for each CPU of `cpus`, else the kind's default.
    pub workers: Option<usize>,
    /// What can bounce the link may be done although the host's own traffic uses it.
    pub allow_link_reset: bool,
    /// Traffic of the cloud's credential endpoints may be copied.
    pub allow_credential_endpoints: bool,
}

impl Source {
    /// As users write it: `tap:eth0`, `tap:eth0@/run/netns/shop`.
    #[must_use]
    pub fn name(&self) -> String {
        let kind = match self.kind {
            SourceKind::Tap(_) => "tap",
            SourceKind::Span(_) => "span",
        };
        match &self.namespace {
            None => format!("{kind}:{}", self.interface),
            Some(namespace) => format!("{kind}:{}@{namespace}", self.interface),
        }
    }
}

/// Which interface a source is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The one of this name.
    Name(String),
    /// Those that the default routes lead to, IPv4 and IPv6: one or two, whichever they are now.
    DefaultRoute,
}

/// How users write [`Interface::DefaultRoute`].
pub const DEFAULT_ROUTE: &str = "default-route";

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Interface::Name(name) => name,
            Interface::DefaultRoute => DEFAULT_ROUTE,
        })
    }
}

/// A network namespace that is not our own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespace {
    /// The one that a file stands for: `/run/netns/NAME`.
    Path(PathBuf),
    /// The one that a process is in.
    Process(u32),
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Namespace::Path(path) => write!(f, "{}", path.display()),
            Namespace::Process(process) => write!(f, "pid:{process}"),
        }
    }
}

/// Settings of one kind of source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A live interface: its traffic is copied, the originals are not touched.
    Tap(Tap),
    /// An interface whose traffic is ours to take.
    Span(Span),
}

/// Settings of a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// How the tc programs are attached.
    pub attach: AttachChoice,
    /// Bytes of the ring of each worker, a power of two.
    pub ring_size: u32,
}

/// Settings of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// How the XDP program is attached.
    pub mode: ModeChoice,
    /// AF_XDP zero copy.
    pub zero_copy: ZeroCopy,
    /// Preferred busy polling.
    pub busy_poll: bool,
    /// Frames of the umem for each queue, a power of two.
    pub frames: u32,
}

/// How the programs of a tap are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachChoice {
    /// tcx where the kernel has it.
    Auto,
    /// tcx links.
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

/// How the XDP program of a span is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeChoice {
    /// Native, generic where that fails.
    Auto,
    /// In the driver.
    Native,
    /// Behind the driver.
    Generic,
}

/// AF_XDP zero copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroCopy {
    /// Fail without.
    Require,
    /// Use it where it is to be had.
    Prefer,
    /// Copy.
    Never,
}

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where the user wrote it.
    pub place: Place,
    /// The host.
    pub host: Host,
    /// The tunnel.
    pub encapsulation: Tunnel,
    /// The transmitter asked for.
    pub transmit: TransmitChoice,
    /// UDP GSO asked for.
    pub gso: GsoChoice,
    /// Outer source address; `None`: the route's.
    pub source: Option<IpAddr>,
    /// Device that copies have to leave by; `None`: the route's.
    pub device: Option<String>,
    /// How many outer source ports, from [`FIRST_SOURCE_PORT`] on.
    pub source_ports: u16,
    /// Which packets it gets.
    pub distribution: Distribution,
    /// What makes it unhealthy.
    pub health: HealthCheck,
    /// Bits a second that it gets at most.
    pub limit: LimitChoice,
    /// Packets a second that it gets at most.
    pub limit_packets: Option<u64>,
    /// Differentiated services code point of the outer packets.
    pub dscp: Option<u8>,
    /// `SO_PRIORITY` of the sockets that send.
    pub priority: Option<u8>,
    /// Time to live, or hop limit, of the outer packets.
    pub ttl: Option<u8>,
    /// What happens to copies that do not fit the path.
    pub oversize: Oversize,
    /// Path MTU in bytes that the user knows; `None`: what the host knows and learns.
    pub mtu: Option<u32>,
}

impl Target {
    /// What tells this target from others, as a URL: `vxlan://203.0.113.2:4789?vni=7`.
    #[must_use]
    pub fn name(&self) -> String {
        let host = &self.host;
        match self.encapsulation {
            Tunnel::Vxlan { vni, port } => format!("vxlan://{host}:{port}?vni={vni}"),
            Tunnel::Geneve { vni, port } => format!("geneve://{host}:{port}?vni={vni}"),
            Tunnel::Gre {
                key,
                sequence,
                inner,
            } => {
                let key = key.map(|key| format!("key={key}"));
                let sequence = sequence.then(|| "seq=on".to_owned());
                let inner = (inner == Inner::Ip).then(|| "inner=ip".to_owned());
                let parameters: Vec<_> = key.into_iter().chain(sequence).chain(inner).collect();
                let mark = if parameters.is_empty() { "" } else { "?" };
                format!("gre://{host}{mark}{}", parameters.join("&"))
            }
            Tunnel::Erspan { version, session } => {
                let version = match version {
                    ErspanVersion::Two => "",
                    ErspanVersion::Three => "&version=3",
                };
                format!("erspan://{host}?session={session}{version}")
            }
        }
    }
}

/// The host of a target. Displayed as it stands in a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, resolved when the mirror starts and again while it runs.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Name(name) => write!(f, "{name}"),
        }
    }
}

/// Which packets a target gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Every packet.
    All,
    /// Its share of the flows: all targets with `hash` are one group, of which each packet goes to one.
    Hash,
}

/// What makes a target unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthCheck {
    /// Nothing.
    None,
    /// There is no route, the device is down, or the next hop does not answer.
    Neighbour,
}

/// Bits a second asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitChoice {
    /// Nothing was said: [`DEFAULT_LIMIT`].
    Default,
    /// As much as there is.
    None,
    /// This.
    Rate(u64),
}

impl LimitChoice {
    /// Bits a second of outer packets from their IP header on; `None`: no limit.
    #[must_use]
    pub fn bits(self) -> Option<u64> {
        match self {
            LimitChoice::Default => Some(DEFAULT_LIMIT),
            LimitChoice::None => None,
            LimitChoice::Rate(bits) => Some(bits),
        }
    }
}

/// When all copies are shed because production goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Breaker {
    /// Bits a second of all targets together.
    pub budget: Option<u64>,
    /// Packets a second of all targets together.
    pub budget_packets: Option<u64>,
    /// Busy time of all CPUs together, in thousandths.
    pub load: Option<u32>,
    /// The instance's network allowances are watched, where the driver has them.
    pub allowances: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker {
            budget: None,
            budget_packets: None,
            load: None,
            allowances: true,
        }
    }
}

/// The transmitter asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransmitChoice {
    /// The plan decides.
    Auto,
    /// A UDP socket.
    Udp,
    /// AF_XDP.
    Xsk,
    /// A raw socket.
    Raw,
}

/// UDP GSO asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GsoChoice {
    /// Where the wire sees single packets.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}
