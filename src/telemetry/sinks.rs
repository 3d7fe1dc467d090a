//! What can be read of targets that copies do not travel to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::status::{add_drop, nothing_dropped, DryRunRule, DryRunStatus, TargetStatus};
use crate::packet::DEFAULT_RULE;
use crate::reason::Reason;
use crate::transmit::discard::RuleCounters;
use crate::worker::counters::TargetCounters;

/// Bytes that VXLAN over IPv4 puts around a frame, from the outer IP header on: what most clouds bill.
pub const TYPICAL_OVERHEAD: u64 = 20 + 8 + 8;

/// What a capture's writer tells.
#[derive(Debug, Default)]
pub struct CaptureState {
    problem: Mutex<Option<String>>,
    news: Mutex<Vec<String>>,
    reader_gone: AtomicBool,
}

impl CaptureState {
    /// What stands in the way now, and what the operator should know of it; nothing with `None`.
    pub fn set_problem(&self, problem: Option<&str>) {
        let Ok(mut now) = self.problem.lock() else {
            return;
        };
        // Said once, until it is over.
        if let (Some(problem), None, Ok(mut news)) = (problem, &*now, self.news.lock()) {
            news.push(problem.to_owned());
        }
        *now = problem.map(str::to_owned);
    }

    /// What has not been said yet.
    #[must_use]
    pub fn take_news(&self) -> Vec<String> {
        self.news
            .lock()
            .map_or_else(|_| Vec::new(), |mut news| std::mem::take(&mut *news))
    }

    /// Whoever read the capture has gone.
    pub fn set_reader_gone(&self) {
        self.reader_gone.store(true, Ordering::Release);
    }

    /// Whether whoever read the capture has gone.
    #[must_use]
    pub fn reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Acquire)
    }
}

/// One worker's share of a sink.
#[derive(Debug)]
pub struct SinkWorker {
    /// Number of the worker's source.
    pub source: usize,
    /// Its counters.
    pub counters: Arc<TargetCounters>,
    /// By rule, where it is a dry run.
    pub rules: Option<Arc<RuleCounters>>,
}

/// One sink's counters.
#[derive(Debug)]
pub struct SinkObserver {
    /// As users write it.
    pub url: String,
    /// What becomes of the packets, in words.
    pub words: &'static str,
    /// A capture's state.
    pub capture: Option<Arc<CaptureState>>,
    /// Its workers.
    pub workers: Vec<SinkWorker>,
    /// The rules that can take packets: number and description.
    pub rules: Vec<(u8, String)>,
}

impl SinkObserver {
    /// All counters, now; `milliseconds` after the mirror started.
    #[must_use]
    pub fn status(&self, milliseconds: u64) -> TargetStatus {
        let sum = |count: fn(&TargetCounters) -> u64| -> u64 {
            self.workers
                .iter()
                .map(|worker| count(&worker.counters))
                .sum()
        };
        let mut dropped = nothing_dropped();
        for worker in &self.workers {
            for reason in Reason::ALL {
                add_drop(&mut dropped, reason, worker.counters.dropped.get(reason));
            }
        }
        let problem = self
            .capture
            .as_ref()
            .and_then(|state| state.problem.lock().ok()?.clone());
        TargetStatus {
            url: self.url.clone(),
            transmit: self.words.to_owned(),
            offered: sum(|worker| worker.offered.get()),
            sent_packets: sum(|worker| worker.sent_packets.get()),
            sent_bytes: sum(|worker| worker.sent_bytes.get()),
            dropped,
            in_flight: sum(|worker| worker.in_flight.get()),
            healthy: problem.is_none(),
            path: problem.unwrap_or_else(|| "on this host".to_owned()),
            calls: sum(|worker| worker.calls.get()),
            dry_run: self
                .capture
                .is_none()
                .then(|| self.dry_run(milliseconds.max(1))),
            ..TargetStatus::default()
        }
    }

    fn dry_run(&self, milliseconds: u64) -> DryRunStatus {
        let of = |rule: u8| {
            let counters = self
                .workers
                .iter()
                .filter_map(|worker| worker.rules.as_ref());
            counters.fold((0, 0), |(packets, bytes), counters| {
                let counter = counters.of(rule);
                (packets + counter.packets.get(), bytes + counter.bytes.get())
            })
        };
        let mut rules = Vec::new();
        let mut total = (0, 0);
        for (number, description) in &self.rules {
            let (packets, bytes) = of(*number);
            total = (total.0 + packets, total.1 + bytes);
            rules.push(DryRunRule::new(
                description.clone(),
                (*number != DEFAULT_RULE).then_some(*number),
                packets,
                bytes,
                milliseconds,
            ));
        }
        DryRunStatus {
            milliseconds,
            rules,
            total: DryRunRule::new("all".to_owned(), None, total.0, total.1, milliseconds),
        }
    }

    /// Packets of one source that are in the capture, and that were dropped.
    #[must_use]
    pub fn of_source(&self, source: usize) -> (u64, u64) {
        self.workers
            .iter()
            .filter(|worker| worker.source == source)
            .fold((0, 0), |(sent, dropped), worker| {
                let counters = &worker.counters;
                (
                    sent + counters.sent_packets.get(),
                    dropped + counters.dropped.total(),
                )
            })
    }
}
