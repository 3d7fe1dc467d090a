//! Marked test copies by the transmitter that a mirror would use, and what can be known of the way.
//!
//! What happens behind the last router nobody tells without an xtee collector: that is said, not guessed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::explain::explain;
use super::facts::plan_here;
use super::outputs::{outer_flow, Opener};
use super::sinks::Sinks;
use super::tap;
use crate::config::plan::{Plan, TargetPlan};
use crate::config::settings::Config;
use crate::host::clock::utc_offset;
use crate::host::icmp::{IcmpError, IcmpWatch};
use crate::host::watch::{PathTarget, PathWatch};
use crate::packet::{cut, probe, FrameMeta, Packets};
use crate::reason::Reason;
use crate::source::Frames;
use crate::transmit::wrap::UtcOffset;
use crate::worker::counters::TargetCounters;
use crate::worker::outputs::Outputs;

/// How long the next hop may take to answer.
const RESOLVE: Duration = Duration::from_secs(3);
/// Between two test copies: no burst, so that a router's limit of errors does not hide one.
const GAP: Duration = Duration::from_millis(20);
/// How long errors are waited for behind the last copy.
const ERRORS: Duration = Duration::from_millis(700);
const DRAIN: Duration = Duration::from_millis(500);
/// A full-size frame of an interface with the usual MTU of 1500.
const FULL_SIZE: u32 = 1514;

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// How many copies.
    pub count: u32,
    /// Bytes of the frame inside.
    pub size: usize,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The target.
    pub url: String,
    /// Why nothing could be sent.
    pub problem: Option<String>,
    /// The way there.
    pub way: Option<Way>,
    /// Who sends, and why.
    pub transmit: Option<String>,
    /// How a UDP socket would send runs of copies, and why.
    pub gso: Option<String>,
    /// Test copies that were to be sent.
    pub wanted: u64,
    /// That the kernel took.
    pub sent: u64,
    /// By reason, those that did not leave.
    pub dropped: BTreeMap<String, u64>,
    /// ICMP errors that came back; none where they could not be listened to.
    pub icmp: Option<Vec<IcmpCount>>,
    /// Why they could not be listened to.
    pub icmp_problem: Option<String>,
    /// What arrived: only a collector can tell.
    pub arrived: &'static str,
}

/// The way to the target.
#[derive(Debug, Serialize)]
pub struct Way {
    /// The target's address.
    pub address: IpAddr,
    /// From where the copies are sent.
    pub source: IpAddr,
    /// The device, and what it stands on.
    pub devices: Vec<String>,
    /// The router, or the target itself.
    pub next_hop: IpAddr,
    /// Its hardware address.
    pub next_hop_mac: Option<String>,
    /// How long its answer took, milliseconds; 0: it was known.
    pub resolved_ms: Option<u64>,
    /// Path MTU, bytes from the outer IP header on.
    pub path_mtu: u32,
    /// Largest inner frame that fits.
    pub largest_frame: u32,
    /// Whether a frame of 1514 bytes fits.
    pub full_size_fits: bool,
}

/// One kind of error.
#[derive(Debug, Serialize)]
pub struct IcmpCount {
    /// What it says.
    pub error: IcmpError,
    /// Who said it.
    pub from: IpAddr,
    /// How often.
    pub count: u64,
}

/// The test copies, lent to the transmitter.
struct Frame(Vec<u8>);

impl Frames for Frame {
    fn bytes(&self, _: u32) -> &[u8] {
        &self.0
    }
    fn meta(&self, _: u32) -> FrameMeta {
        FrameMeta::plain(self.0.len() as u32)
    }
}

/// Sends test copies to the only target of a configuration.
#[must_use]
pub fn probe(config: &Config, wish: &Wish) -> Report {
    let mut report = Report {
        url: config
            .targets
            .first()
            .map(|target| target.name())
            .unwrap_or_default(),
        wanted: u64::from(wish.count),
        arrived: "unknown: no xtee collector answered",
        ..Report::default()
    };
    if let Err(error) = send(config, wish, &mut report) {
        report.problem = Some(explain(&error));
    }
    report
}

fn send(config: &Config, wish: &Wish, report: &mut Report) -> anyhow::Result<()> {
    let plan = plan_here(config)?;
    let target = plan.targets.first().context("no target")?;
    report.transmit = Some(target.transmit.to_string());
    report.gso = target.gso.as_ref().map(ToString::to_string);
    let watch = PathWatch::start(vec![PathTarget {
        destination: target.address,
        source: target.source,
        source_is_routes: !target.source_is_asked,
        device: target.bind_device.then(|| target.device.clone()),
        flow: outer_flow(target),
        mtu: target.mtu,
    }])?;
    let path = watch.path(0).context("a target without a path")?;
    let asked = Instant::now();
    let mut resolved = None;
    while resolved.is_none() && asked.elapsed() < RESOLVE {
        match path.load().problem {
            None => resolved = Some(u64::try_from(asked.elapsed().as_millis())?),
            Some(crate::mirror::path::PathProblem::NoNeighbour) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Some(_) => break,
        }
    }
    report.way = Some(way(target, &path.load(), resolved));
    let icmp = match IcmpWatch::open(target.address) {
        Ok(watch) => Some(watch),
        Err(error) => {
            report.icmp_problem = Some(error.to_string());
            None
        }
    };
    let counters = send_copies(config, &plan, wish, path)?;
    report.sent = counters.sent_packets.get();
    for reason in Reason::ALL {
        let count = counters.dropped.get(reason);
        if count > 0 {
            report.dropped.insert(reason.name().to_owned(), count);
        }
    }
    if let Some(icmp) = icmp {
        std::thread::sleep(ERRORS);
        let mut counts: BTreeMap<(IcmpError, IpAddr), u64> = BTreeMap::new();
        for error in icmp.receive() {
            *counts.entry(error).or_default() += 1;
        }
        let counts = counts.into_iter();
        report.icmp = Some(
            counts
                .map(|((error, from), count)| IcmpCount { error, from, count })
                .collect(),
        );
    }
    Ok(())
}

fn way(target: &TargetPlan, path: &crate::mirror::path::PathState, resolved: Option<u64>) -> Way {
    let overhead = u32::try_from(target.overhead()).unwrap_or(u32::MAX);
    let largest_frame = match path.mtu == target.path_mtu {
        true => target.largest_frame,
        false => path.mtu.saturating_sub(overhead),
    };
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    Way {
        address: target.address,
        source: target.source.unwrap_or(path.source_ip),
        devices: match target.path.is_empty() {
            true => vec![target.device.clone()],
            false => target.path.clone(),
        },
        next_hop: path.next_hop,
        next_hop_mac: path.next_hop_mac.map(mac),
        resolved_ms: resolved.filter(|_| path.next_hop_mac.is_some()),
        path_mtu: path.mtu,
        largest_frame,
        full_size_fits: largest_frame >= FULL_SIZE,
    }
}

fn send_copies(
    config: &Config,
    plan: &Plan,
    wish: &Wish,
    path: std::sync::Arc<arc_swap::ArcSwap<crate::mirror::path::PathState>>,
) -> anyhow::Result<std::sync::Arc<TargetCounters>> {
    let utc = UtcOffset::default();
    utc.set(utc_offset());
    let asked = config
        .targets
        .iter()
        .map(|target| target.transmit)
        .collect();
    let sinks = Sinks::open(config, plan, utc.clone())?;
    let mut opener = Opener::new(plan, asked, vec![path], utc, sinks);
    let mut umem = None;
    if opener.needs_frames() {
        match tap::frames() {
            Ok(frames) => umem = Some(frames),
            Err(error) => opener.refuse_frames(&error),
        }
    }
    // As a span's worker would: one transmitter, which is not changed as the traffic suits.
    let opened = opener.open(umem.as_ref(), false, None)?;
    let counters = opened.counters.first().context("no counters")?.clone();
    let pool = umem.as_ref().and_then(|umem| umem.pool(0));
    let mut outputs = Outputs::new(opened.outputs, Vec::new(), pool, std::sync::Arc::default());
    let mut packets = Packets::default();
    let inner = plan
        .targets
        .first()
        .context("no target")?
        .encapsulation
        .inner();
    let id = std::process::id();
    for number in 0..wish.count {
        let frame = Frame(probe::frame(inner, id, number, wish.size));
        packets.clear();
        cut(&frame.meta(0), &frame.0, 0, &mut packets)
            .map_err(|error| anyhow::anyhow!("a test copy could not be made: {error}"))?;
        outputs.send(packets.list(), &frame);
        outputs.idle();
        std::thread::sleep(GAP);
    }
    outputs.drain(DRAIN);
    Ok(counters)
}

impl Report {
    /// Whether the kernel took every test copy.
    #[must_use]
    pub fn sent_all(&self) -> bool {
        self.problem.is_none() && self.sent == self.wanted
    }

    /// What went wrong, in a line.
    #[must_use]
    pub fn failure(&self) -> String {
        match &self.problem {
            Some(problem) => problem.clone(),
            None => format!(
                "{} of {} test copies were not sent",
                self.wanted - self.sent,
                self.wanted
            ),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "probe     {}", self.url)?;
        if let Some(way) = &self.way {
            writeln!(f, "  address   {}", way.address)?;
            writeln!(
                f,
                "  path      from {} by {}",
                way.source,
                way.devices.join(" over ")
            )?;
            let hop = match (&way.next_hop_mac, way.resolved_ms) {
                (Some(mac), Some(0)) => format!("{mac}, known"),
                (Some(mac), Some(ms)) => format!("{mac}, resolved in {ms} ms"),
                (Some(mac), None) => mac.clone(),
                (None, _) => "no hardware address".to_owned(),
            };
            writeln!(f, "  next hop  {} ({hop})", way.next_hop)?;
            let fits = match way.full_size_fits {
                true => "full-size frames (1514) fit".to_owned(),
                false => format!(
                    "full-size frames (1514) are {} bytes too long",
                    FULL_SIZE.saturating_sub(way.largest_frame)
                ),
            };
            writeln!(
                f,
                "  size      path MTU {}: inner frames of up to {} bytes fit; {fits}",
                way.path_mtu, way.largest_frame
            )?;
        }
        if let Some(transmit) = &self.transmit {
            writeln!(f, "  transmit  {transmit}")?;
        }
        if let Some(gso) = &self.gso {
            writeln!(f, "  gso       {gso}")?;
        }
        writeln!(
            f,
            "  sent      {} of {} test copies",
            self.sent, self.wanted
        )?;
        for (reason, count) in &self.dropped {
            writeln!(f, "  dropped   {count} by {reason}")?;
        }
        match (&self.icmp, &self.icmp_problem) {
            (Some(errors), _) if errors.is_empty() => writeln!(f, "  errors    none came back")?,
            (Some(errors), _) => {
                for error in errors {
                    let what = error.error.describe();
                    writeln!(f, "  errors    {} from {}: {what}", error.count, error.from)?;
                }
            }
            (None, Some(problem)) => writeln!(f, "  errors    not listened to: {problem}")?,
            (None, None) => {}
        }
        writeln!(f, "  arrived   {}", self.arrived)
    }
}
