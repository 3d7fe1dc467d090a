//! What can be read of a running mirror, shared by the status server and the main thread.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::sinks::SinkObserver;
use super::status::{
    add_drop, nothing_dropped, BreakerStatus, SheddingStatus, SourceStatus, Status, TargetStatus,
    WorkerStatus,
};
use crate::bpf::{self, counters::CounterReader};
use crate::config::settings::Distribution;
use crate::mirror::path::PathState;
use crate::mirror::selection::TargetSet;
use crate::reason::Reason;
use crate::worker::breaker::Breaker;
use crate::worker::counters::{SourceCounters, TargetCounters};
use crate::xsk::Statistics;

/// Whether a source has an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// It is there and up.
    Present,
    /// It is there and down.
    Down,
    /// It is not there, or cannot be had: it is waited for.
    #[default]
    Waiting,
}

impl SourceState {
    /// The word in `xtee status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            SourceState::Present => "present",
            SourceState::Down => "down",
            SourceState::Waiting => "waiting",
        }
    }
}

/// What can be said of a source at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceNow {
    /// How it captures; empty until it is attached.
    pub mode: String,
    /// Whether it has an interface.
    pub state: SourceState,
    /// Names of the interfaces that it is on.
    pub interfaces: Vec<String>,
    /// Why it is not on those that it should be on.
    pub problem: String,
}

/// The sockets of a span, and what those that are closed have dropped.
#[derive(Debug, Default)]
pub struct SpanSockets {
    /// Open now.
    pub open: Vec<OwnedFd>,
    past: u64,
}

impl SpanSockets {
    /// Packets that full sockets dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let full = |socket: &OwnedFd| {
            // rx_dropped and rx_ring_full exclude each other; fill_ring_empty is in rx_dropped already.
            Statistics::of(socket.as_fd())
                .map_or(0, |counted| counted.rx_dropped + counted.rx_ring_full)
        };
        self.past + self.open.iter().map(full).sum::<u64>()
    }

    /// Closes these descriptors; what was counted stays.
    pub fn close(&mut self) {
        self.past = self.dropped();
        self.open.clear();
    }
}

/// One source's counters.
#[derive(Debug)]
pub struct SourceObserver {
    /// `tap:eth0`.
    pub name: String,
    /// `tap` or `span`.
    pub kind: &'static str,
    /// What can be said of it now; written by control.
    pub now: Arc<Mutex<SourceNow>>,
    /// The program's counters.
    pub program: CounterReader,
    /// Number of rules in force.
    pub rules: usize,
    /// Each worker's CPU and counters.
    pub workers: Vec<(Option<usize>, Arc<SourceCounters>)>,
    /// A span's sockets: what a full one dropped is counted there.
    pub sockets: Arc<Mutex<SpanSockets>>,
}

/// One target's counters.
#[derive(Debug)]
pub struct TargetObserver {
    /// The target's URL.
    pub url: String,
    /// Which packets it gets.
    pub distribution: Distribution,
    /// Who sends, by worker; the same text where all have the same.
    pub transmit: Vec<String>,
    /// Copies leave by a socket, which any device will do for.
    pub by_socket: bool,
    /// Its path.
    pub path: Arc<ArcSwap<PathState>>,
    /// Each worker's counters.
    pub workers: Vec<Arc<TargetCounters>>,
}

/// Everything that can be read of a mirror.
#[derive(Debug)]
pub struct Observer {
    /// When it started.
    pub started: Instant,
    /// Its sources.
    pub sources: Vec<SourceObserver>,
    /// Its targets.
    pub targets: Vec<TargetObserver>,
    /// Which targets get what now.
    pub set: Arc<ArcSwap<TargetSet>>,
    /// Its targets that copies do not travel to.
    pub sinks: Vec<SinkObserver>,
    /// Its breaker.
    pub breaker: Breaker,
    /// How often copies began to be shed.
    pub times_shed: Arc<AtomicU64>,
}

impl Observer {
    /// All counters, now.
    ///
    /// # Errors
    /// A program's counters could not be read.
    pub fn status(&self) -> Result<Status, bpf::Error> {
        let now = crate::host::clock::monotonic();
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            sources: self
                .sources
                .iter()
                .map(SourceObserver::status)
                .collect::<Result<_, _>>()?,
            targets: self
                .target_statuses()
                .into_iter()
                .chain(self.sinks.iter().map(|sink| sink.status(milliseconds)))
                .collect(),
            breaker: BreakerStatus {
                open: self.breaker.is_open(now),
                times_opened: self.breaker.times_opened(),
                remaining_seconds: self.breaker.remaining(now).div_ceil(1_000_000_000),
            },
            shedding: SheddingStatus {
                reason: self.set.load().shed.map(|reason| reason.name().to_owned()),
                times: self.times_shed.load(Ordering::Relaxed),
            },
        })
    }
}

impl Observer {
    fn target_statuses(&self) -> Vec<TargetStatus> {
        let set = self.set.load();
        let each = self.targets.iter().enumerate();
        each.map(|(number, target)| target.status(set.is_unhealthy(number)))
            .collect()
    }
}

impl SourceObserver {
    fn status(&self) -> Result<SourceStatus, bpf::Error> {
        let program = self.program.read()?;
        let now = self
            .now
            .lock()
            .map_or_else(|_| SourceNow::default(), |now| now.clone());
        let mut dropped = nothing_dropped();
        for reason in Reason::ALL {
            let workers: u64 = self
                .workers
                .iter()
                .map(|(_, worker)| worker.dropped.get(reason))
                .sum();
            add_drop(
                &mut dropped,
                reason,
                program.dropped[reason as usize] + workers,
            );
        }
        let full = self.sockets.lock().map_or(0, |sockets| sockets.dropped());
        add_drop(&mut dropped, Reason::Ring, full);
        let sum = |count: fn(&SourceCounters) -> u64| -> u64 {
            self.workers.iter().map(|(_, worker)| count(worker)).sum()
        };
        let more = sum(|worker| worker.recounted_more.get());
        let fewer = sum(|worker| worker.recounted_fewer.get());
        let corrected = |packets: u64| (packets + more).saturating_sub(fewer);
        Ok(SourceStatus {
            name: self.name.clone(),
            kind: self.kind.to_owned(),
            mode: now.mode,
            state: now.state.name().to_owned(),
            interfaces: now.interfaces,
            problem: now.problem,
            seen: corrected(program.seen),
            unmatched: program.unmatched,
            matched: corrected(program.matched),
            captured: sum(|worker| worker.captured.get()),
            dropped,
            own_copies: program.own_copies,
            own_signatures: sum(|worker| worker.own_signatures.get()),
            unknown_fragments: program.unknown_fragments,
            sliced: sum(|worker| worker.sliced.get()),
            rules: program.rules.iter().take(self.rules).copied().collect(),
            rules_left_out: program.left_out.iter().take(self.rules).copied().collect(),
            default_action: program.rules.last().copied().unwrap_or(0),
            workers: self
                .workers
                .iter()
                .map(|(cpu, worker)| WorkerStatus {
                    cpu: *cpu,
                    frames: worker.frames.get(),
                    sleeps: worker.sleeps.get(),
                    handed_over: worker.handed_over.get(),
                })
                .collect(),
        })
    }
}

impl TargetObserver {
    fn status(&self, unhealthy: bool) -> TargetStatus {
        let sum = |count: fn(&TargetCounters) -> u64| -> u64 {
            self.workers.iter().map(|worker| count(worker)).sum()
        };
        let mut dropped = nothing_dropped();
        for reason in Reason::ALL {
            let packets = self
                .workers
                .iter()
                .map(|worker| worker.dropped.get(reason))
                .sum();
            add_drop(&mut dropped, reason, packets);
        }
        let path = self.path.load();
        let problem = match self.by_socket {
            true => path.socket_problem(),
            false => path.problem,
        };
        let mut transmit = self.transmit.clone();
        transmit.dedup();
        if sum(|worker| worker.by_xsk.get()) > 0 {
            transmit.push("xsk now".to_owned());
        }
        let runs = sum(|worker| worker.runs.get());
        TargetStatus {
            url: self.url.clone(),
            transmit: transmit.join(", "),
            offered: sum(|worker| worker.offered.get()),
            sent_packets: sum(|worker| worker.sent_packets.get()),
            sent_bytes: sum(|worker| worker.sent_bytes.get()),
            dropped,
            in_flight: sum(|worker| worker.in_flight.get()),
            // A target of the hash group that is back has its flows again a second later.
            healthy: problem.is_none() && !(unhealthy && self.distribution == Distribution::Hash),
            distribution: match self.distribution {
                Distribution::All => "all",
                Distribution::Hash => "hash",
            }
            .to_owned(),
            address: path.destination.to_string(),
            path: match problem {
                Some(problem) => problem.describe().to_owned(),
                None => format!("by {} from {}", path.device, path.source_ip),
            },
            path_mtu: path.mtu,
            path_mtu_from: path.mtu_source.to_string(),
            path_mtu_changes: path.mtu_changes,
            resegmented: sum(|worker| worker.resegmented.get()),
            fragmented: sum(|worker| worker.fragmented.get()),
            truncated: sum(|worker| worker.truncated.get()),
            pieces: sum(|worker| worker.pieces.get()),
            mean_run_hundredths: (sum(|worker| worker.run_packets.get()) * 100)
                .checked_div(runs)
                .unwrap_or(0),
            calls: sum(|worker| worker.calls.get()),
            dry_run: None,
        }
    }
}
