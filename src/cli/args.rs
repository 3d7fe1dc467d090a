//! The command line: subcommands, flags, help, and the configuration that arguments make.
//!
//! Arguments become the same document as a file and pass the same validation; errors name the flag
//! instead of the line. Nothing is carried out here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::error::{ConfigError, Origin, Site};
use crate::config::file::{
    At, BreakerTable, ControlTable, Document, RuleTable, SourceTable, TargetTable, Value,
};
use crate::config::settings::{Config, DEFAULT_SOCKET};
use crate::config::{load, sink, validate};

/// Mirrors the traffic of a cloud instance or of an appliance port to a remote NDR.
///
/// Copies leave in VXLAN or GRE; every packet is counted; production is never slowed.
#[derive(Debug, Parser)]
#[command(name = "xtee", version, propagate_version = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mirror as a configuration file says, until SIGINT or SIGTERM
    ///
    /// Then stops capturing, sends what is captured, detaches, prints the balance and ends with 0.
    /// A wrong configuration ends it with 2 before anything is attached.
    Run(RunArguments),
    /// Mirror one source as the arguments say: the same without a file
    #[command(after_help = EXAMPLES)]
    Mirror(Box<MirrorArguments>),
    /// Validate a configuration, and print what would be done on this host and why
    ///
    /// Changes nothing. Ends with 2 when the configuration is wrong or not possible here.
    Check(Box<CheckArguments>),
    /// Print the counters of the running mirror
    Status(StatusArguments),
    /// Send a few marked test copies to a target, and tell what can be known of the way there
    ///
    /// Ends with 0 when they were sent, with 1 when not, with 2 when the URL is wrong.
    Probe(ProbeArguments),
    /// Tell what this host can do, what stands in the way, and how to mend it
    Doctor(DoctorArguments),
    /// Tell from a capture file where TCP packets were lost: before us, behind us, or by the capture
    ///
    /// Reads pcap and pcapng, plain or in gzip, and looks into VLAN tags and tunnels. Ends with 0 also
    /// where the capture is damaged at its end: what could be read is reported, the damage named.
    Loss(LossArguments),
}

const EXAMPLES: &str = "\
Examples:
  xtee mirror tap:eth0 --to 'vxlan://203.0.113.2?vni=7'
  xtee mirror tap:eth0 --to 'vxlan://ndr.example.net?vni=7' --protocol tcp --port 443,8000-8100
  xtee mirror tap:eth0@/run/netns/shop --to 'vxlan://203.0.113.2?vni=7'
  xtee mirror span:eth1 --to 'gre://203.0.113.2?key=7' --cpus 2,3";

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The configuration file (TOML)
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
}

/// Arguments of `mirror`.
#[derive(Debug, Args)]
#[command(mut_arg("to", |to| to.required(true)))]
pub struct MirrorArguments {
    /// Where packets come from: tap:IF (a live interface, copied) or span:IF (an interface whose
    /// traffic is ours to take)
    ///
    /// tap:default-route is where the default route leads, and follows it. tap:IF@/run/netns/NAME and
    /// tap:IF@pid:N are an interface in another network namespace; the copies leave from ours.
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// How and what to mirror.
    #[command(flatten)]
    pub options: MirrorOptions,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["config", "source"]))]
pub struct CheckArguments {
    /// The configuration file to check
    #[arg(long, short, value_name = "FILE", conflicts_with_all = MIRROR_OPTIONS)]
    pub config: Option<PathBuf>,
    /// The source, as for `xtee mirror`
    #[arg(value_name = "SOURCE", requires = "to")]
    pub source: Option<String>,
    /// As for `mirror`; here `--to` is required only beside SOURCE.
    #[command(flatten)]
    pub options: MirrorOptions,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
}

/// The ids of all of [`MirrorOptions`]: a file leaves no room for them.
const MIRROR_OPTIONS: [&str; 30] = [
    "to",
    "protocol",
    "port",
    "source_port",
    "destination_port",
    "net",
    "source_net",
    "destination_net",
    "direction",
    "mark",
    "snaplen",
    "sample",
    "cutoff",
    "cpus",
    "workers",
    "attach",
    "ring_size",
    "mode",
    "zero_copy",
    "transmit",
    "gso",
    "distribution",
    "limit",
    "limit_packets",
    "budget",
    "budget_packets",
    "load",
    "allow_link_reset",
    "allow_credential_endpoints",
    "socket",
];

/// What `mirror` and `check` have in common.
#[derive(Debug, Default, Args)]
pub struct MirrorOptions {
    /// Where copies go; several targets get a copy each, or share the flows (distribution=hash).
    /// `vxlan://HOST[:4789]?vni=N`, `geneve://HOST[:6081]?vni=N`, `gre://HOST[?key=N][&seq=on][&inner=ip]`
    /// or `erspan://HOST?session=N[&version=3]`, an IPv6 HOST in brackets; further parameters:
    /// limit=RATE|none, limit_packets=RATE, distribution=all|hash, health=none|neighbour,
    /// gso=auto|on|off, transmit=auto|udp|xsk|raw, source=IP, dev=IF, ports=N, dscp=N, ttl=N, priority=N
    /// On this host: `pcap:FILE` or `pcap:-` (pcapng; then everything else is printed to stderr),
    /// `discard:` (a dry run that says what would be mirrored)
    #[arg(long, value_name = "URL", num_args = 1..)]
    pub to: Vec<String>,

    /// Only this protocol: tcp, udp, icmp, icmpv6, sctp, gre, esp or a number
    #[arg(long, value_name = "PROTOCOL", help_heading = "Filter")]
    pub protocol: Option<String>,
    /// Only these ports of either end: 443,8000-8100
    #[arg(
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        help_heading = "Filter"
    )]
    pub port: Vec<String>,
    /// Only these source ports
    #[arg(
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        help_heading = "Filter"
    )]
    pub source_port: Vec<String>,
    /// Only these destination ports
    #[arg(
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        help_heading = "Filter"
    )]
    pub destination_port: Vec<String>,
    /// Only these networks or addresses of either end: 198.51.100.0/24,2001:db8::/32
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        help_heading = "Filter"
    )]
    pub net: Vec<String>,
    /// Only these networks or addresses of the source
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        help_heading = "Filter"
    )]
    pub source_net: Vec<String>,
    /// Only these networks or addresses of the destination
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        help_heading = "Filter"
    )]
    pub destination_net: Vec<String>,
    /// Only this direction, as the interface sees it: in, out, both (ingress, egress)
    #[arg(long, value_name = "DIRECTION", help_heading = "Filter")]
    pub direction: Option<String>,
    /// Only packets with this firewall mark, and their flows: VALUE or VALUE/MASK (tap)
    #[arg(long, value_name = "MARK", help_heading = "Filter")]
    pub mark: Option<String>,

    /// Copy only so many bytes of each packet: headers, for privacy or bandwidth. Suricata and Zeek drop
    /// truncated packets [default: 0, the whole packet]
    #[arg(long, value_name = "BYTES", help_heading = "Slice")]
    pub snaplen: Option<String>,
    /// Copy only this share of the flows, whole and in both directions: 1/16
    #[arg(long, value_name = "SHARE", help_heading = "Slice")]
    pub sample: Option<String>,
    /// Copy only so many bytes of each flow and direction: 10MB
    #[arg(long, value_name = "BYTES", help_heading = "Slice")]
    pub cutoff: Option<String>,

    /// CPUs that workers are pinned to, one worker each: 2,3
    #[arg(
        long,
        value_name = "CPUS",
        value_delimiter = ',',
        help_heading = "Source"
    )]
    pub cpus: Vec<i64>,
    /// Number of workers [default: one for each of --cpus, else 1 for a tap and one a queue for a
    /// span]
    #[arg(long, value_name = "N", help_heading = "Source")]
    pub workers: Option<i64>,
    /// How a tap is attached: auto, tcx, clsact [default: auto]
    #[arg(long, value_name = "HOW", help_heading = "Source")]
    pub attach: Option<String>,
    /// Ring of each worker of a tap, a power of two from 64KiB to 1GiB [default: 16MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Source")]
    pub ring_size: Option<String>,
    /// How a span is attached: auto, native, generic [default: auto]
    #[arg(long, value_name = "MODE", help_heading = "Source")]
    pub mode: Option<String>,
    /// AF_XDP zero copy of a span: require, prefer, never [default: prefer]
    #[arg(long, value_name = "WHETHER", help_heading = "Source")]
    pub zero_copy: Option<String>,
    /// Permit what can bounce the link of an interface that carries the host's own traffic
    #[arg(long, help_heading = "Source")]
    pub allow_link_reset: bool,
    /// Copy traffic of the cloud's credential endpoints too
    #[arg(long, help_heading = "Source")]
    pub allow_credential_endpoints: bool,

    /// Who sends, for every target: auto, udp, xsk, raw [default: auto]
    #[arg(long, value_name = "WHO", help_heading = "Target")]
    pub transmit: Option<String>,
    /// UDP GSO, for every target: auto, on, off [default: auto]
    #[arg(long, value_name = "WHETHER", help_heading = "Target")]
    pub gso: Option<String>,
    /// Which packets each target gets: all of them, or its share of the flows (hash) [default: all]
    #[arg(long, value_name = "HOW", help_heading = "Target")]
    pub distribution: Option<String>,
    /// What each target gets at most: a rate like 2Gbit/s, or none [default: 1Gbit/s]
    #[arg(long, value_name = "RATE", help_heading = "Target")]
    pub limit: Option<String>,
    /// Packets that each target gets at most: a rate like 200k/s [default: none]
    #[arg(long, value_name = "RATE", help_heading = "Target")]
    pub limit_packets: Option<String>,

    /// Copy nothing while all targets together would get more than this, like 5Gbit/s
    #[arg(long, value_name = "RATE", help_heading = "Production first")]
    pub budget: Option<String>,
    /// Copy nothing while all targets together would get more packets than this, like 1M/s
    #[arg(long, value_name = "RATE", help_heading = "Production first")]
    pub budget_packets: Option<String>,
    /// Copy nothing while all CPUs together are busy for more of the time than this, like 90%
    #[arg(long, value_name = "SHARE", help_heading = "Production first")]
    pub load: Option<String>,

    /// Where `xtee status` finds this mirror [default: /run/xtee/xtee.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The socket of the mirror to ask
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Arguments of `probe`.
#[derive(Debug, Args)]
pub struct ProbeArguments {
    /// The target, as for `--to` of `xtee mirror`
    #[arg(value_name = "URL")]
    pub url: String,
    /// How many test copies
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
    /// Bytes of the frame inside, its Ethernet header included: 1514 is a full-size one of production
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(122..=65000))]
    pub size: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Interfaces to look at; all without
    #[arg(value_name = "IF")]
    pub interfaces: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `loss`.
#[derive(Debug, Args)]
pub struct LossArguments {
    /// The capture file; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show so many flows, the worst first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub flows: usize,
    /// Follow so many flows at the same time; each takes up to 256 bytes
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = flows_at_once)]
    pub max_flows: usize,
    /// How long data may come after its acknowledgment, milliseconds: above the skew between the two
    /// directions of the mirrored link
    #[arg(long, value_name = "MS", default_value_t = 50)]
    pub grace: u32,
}

fn flows_at_once(text: &str) -> Result<usize, String> {
    let flows: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1..1 << 24).contains(&flows) {
        Ok(flows)
    } else {
        Err("1 to 16777215".to_owned())
    }
}

impl MirrorArguments {
    /// The configuration that the arguments make.
    ///
    /// # Errors
    /// The first argument that is wrong.
    pub fn config(&self) -> Result<Config, ConfigError> {
        self.options.config(&self.source)
    }
}

impl CheckArguments {
    /// The configuration to check: the file's or the arguments'.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn config(&self) -> Result<Config, ConfigError> {
        match (&self.config, &self.source) {
            (Some(path), _) => load(path),
            (None, Some(source)) => self.options.config(source),
            (None, None) => Err(Origin::Arguments.error(
                &Site::Flag("SOURCE"),
                "",
                "nothing to check",
                "--config FILE, or SOURCE --to URL",
            )),
        }
    }
}

impl MirrorOptions {
    fn config(&self, source: &str) -> Result<Config, ConfigError> {
        let document = Document {
            source: vec![At::flag("SOURCE", self.source_table(source)?)],
            rule: self.rule_table().into_iter().collect(),
            target: self.to.iter().map(|url| self.target_table(url)).collect(),
            control: self.socket.as_ref().map(|path| {
                let socket = Some(At::flag("--socket", path.clone()));
                At::flag("--socket", ControlTable { socket })
            }),
            breaker: self.breaker_table(),
            default_action: None,
        };
        validate::validate(&document, Origin::Arguments)
    }

    fn source_table(&self, source: &str) -> Result<SourceTable, ConfigError> {
        let Some((kind, interface)) = source.split_once(':') else {
            return Err(Origin::Arguments.error(
                &Site::Flag("SOURCE"),
                "",
                format!("`{source}` does not say how packets are taken"),
                "tap:IF, span:IF",
            ));
        };
        let cpus = self.cpus.iter().map(|&cpu| At::flag("--cpus", cpu));
        let cpus: Vec<_> = cpus.collect();
        let yes = |flag, set: bool| set.then(|| At::flag(flag, true));
        Ok(SourceTable {
            kind: Some(At::flag("SOURCE", kind.to_owned())),
            interface: Some(At::flag("SOURCE", interface.to_owned())),
            namespace: None,
            cpus: (!cpus.is_empty()).then(|| At::flag("--cpus", cpus)),
            workers: self.workers.map(|workers| At::flag("--workers", workers)),
            attach: text("--attach", &self.attach),
            ring_size: value("--ring-size", &self.ring_size),
            mode: text("--mode", &self.mode),
            zero_copy: text("--zero-copy", &self.zero_copy),
            busy_poll: None,
            frames: None,
            allow_link_reset: yes("--allow-link-reset", self.allow_link_reset),
            allow_credential_endpoints: yes(
                "--allow-credential-endpoints",
                self.allow_credential_endpoints,
            ),
        })
    }

    /// All filters make one rule; without any there is none, and everything is mirrored.
    fn rule_table(&self) -> Option<At<RuleTable>> {
        let filter = RuleTable {
            action: None,
            direction: text("--direction", &self.direction),
            protocol: value("--protocol", &self.protocol),
            ports: values("--port", &self.port),
            source_ports: values("--source-port", &self.source_port),
            destination_ports: values("--destination-port", &self.destination_port),
            networks: texts("--net", &self.net),
            source: texts("--source-net", &self.source_net),
            destination: texts("--destination-net", &self.destination_net),
            mark: value("--mark", &self.mark),
            snaplen: value("--snaplen", &self.snaplen),
            sample: text("--sample", &self.sample),
            cutoff: value("--cutoff", &self.cutoff),
        };
        if filter == RuleTable::default() {
            return None;
        }
        let action = Some(At::flag("filter", "mirror".to_owned()));
        Some(At::flag("filter", RuleTable { action, ..filter }))
    }

    fn breaker_table(&self) -> Option<At<BreakerTable>> {
        let table = BreakerTable {
            budget: value("--budget", &self.budget),
            budget_packets: value("--budget-packets", &self.budget_packets),
            load: value("--load", &self.load),
            allowances: None,
        };
        (table != BreakerTable::default()).then(|| At::flag("--budget", table))
    }

    fn target_table(&self, url: &str) -> At<TargetTable> {
        // A capture and a dry run have no transmitter that the flags could choose.
        if sink::parse(url).is_some() {
            let url = Some(At::flag("--to", url.to_owned()));
            let table = TargetTable {
                url,
                ..TargetTable::default()
            };
            return At::flag("--to", table);
        }
        At::flag(
            "--to",
            TargetTable {
                url: Some(At::flag("--to", url.to_owned())),
                transmit: text("--transmit", &self.transmit),
                gso: text("--gso", &self.gso),
                distribution: text("--distribution", &self.distribution),
                limit: value("--limit", &self.limit),
                limit_packets: value("--limit-packets", &self.limit_packets),
                ..TargetTable::default()
            },
        )
    }
}

fn text(flag: &'static str, text: &Option<String>) -> Option<At<String>> {
    text.as_ref().map(|text| At::flag(flag, text.clone()))
}

fn value(flag: &'static str, text: &Option<String>) -> Option<At<Value>> {
    let text = text.as_ref()?;
    Some(At::flag(flag, Value::Text(text.clone())))
}

fn texts(flag: &'static str, texts: &[String]) -> Option<At<Vec<At<String>>>> {
    let each = texts.iter().map(|text| At::flag(flag, text.clone()));
    (!texts.is_empty()).then(|| At::flag(flag, each.collect()))
}

fn values(flag: &'static str, texts: &[String]) -> Option<At<Vec<At<Value>>>> {
    let each = texts
        .iter()
        .map(|text| At::flag(flag, Value::Text(text.clone())));
    (!texts.is_empty()).then(|| At::flag(flag, each.collect()))
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
