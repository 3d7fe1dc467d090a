//! Targets that copies do not travel to, from start to end: what each worker gets, who writes, what can be
//! read of them.

use std::sync::Arc;

use super::capture::{CapturedInterface, FinalCounts, OpenCapture, RunningCapture};
use crate::config::plan::sink::SinkPlan;
use crate::config::plan::Plan;
use crate::config::settings::Config;
use crate::config::sink::SinkKind;
use crate::mirror::rules::Action;
use crate::mirror::tables::Tables;
use crate::packet::DEFAULT_RULE;
use crate::telemetry::sinks::{CaptureState, SinkObserver, SinkWorker};
use crate::telemetry::status::Status;
use crate::transmit::capture::{CaptureSender, Channel, BUFFER};
use crate::transmit::discard::{DryRun, RuleCounters};
use crate::transmit::wrap::UtcOffset;
use crate::worker::counters::TargetCounters;
use crate::worker::outputs::{Sink, SinkOutput};

/// All sinks of a mirror that is being started.
#[derive(Debug)]
pub struct Sinks {
    list: Vec<Opening>,
    utc: UtcOffset,
    /// Number of the source whose workers are being made.
    source: usize,
    /// Where that source's frames do not say which rule took them.
    tables: Option<Arc<Tables>>,
}

/// One of them.
#[derive(Debug)]
struct Opening {
    observer: SinkObserver,
    capture: Option<(OpenCapture, Vec<Arc<Channel>>)>,
}

impl Sinks {
    /// Opens what has to be opened. Nothing is written yet but the head of a capture.
    ///
    /// # Errors
    /// A capture cannot be written.
    pub fn open(config: &Config, plan: &Plan, utc: UtcOffset) -> anyhow::Result<Sinks> {
        let interfaces: Vec<CapturedInterface> = plan
            .sources
            .iter()
            .map(|source| CapturedInterface {
                interface: source.interface.clone(),
                source: source.name.clone(),
            })
            .collect();
        let list = plan
            .sinks
            .iter()
            .map(|sink| Opening::new(sink, &interfaces, config))
            .collect::<anyhow::Result<_>>()?;
        Ok(Sinks {
            list,
            utc,
            source: 0,
            tables: None,
        })
    }

    /// The workers that follow belong to source number `source`. `tables` where its frames do not say which
    /// rule took them.
    pub fn begin_source(&mut self, source: usize, tables: Option<&Tables>) {
        self.source = source;
        let dry_run = |sink: &Opening| sink.capture.is_none();
        // They are large, and only a dry run asks.
        self.tables = tables
            .filter(|_| self.list.iter().any(dry_run))
            .map(|tables| Arc::new(tables.clone()));
    }

    /// What one worker gives its packets to.
    pub fn outputs(&mut self) -> Vec<SinkOutput> {
        let mut outputs = Vec::with_capacity(self.list.len());
        for sink in &mut self.list {
            let counters = Arc::new(TargetCounters::default());
            let mut rules = None;
            let kind = match &mut sink.capture {
                Some((_, channels)) => {
                    let channel = Channel::new();
                    channels.push(channel.clone());
                    let interface = u32::try_from(self.source).unwrap_or(0);
                    let utc = self.utc.clone();
                    let sender = CaptureSender::new(channel, utc, interface, BUFFER);
                    Sink::Capture(Box::new(sender))
                }
                None => {
                    let by_rule = Arc::new(RuleCounters::default());
                    rules = Some(by_rule.clone());
                    Sink::DryRun(DryRun::new(by_rule, self.tables.clone()))
                }
            };
            sink.observer.workers.push(SinkWorker {
                source: self.source,
                counters: counters.clone(),
                rules,
            });
            outputs.push(SinkOutput {
                sink: kind,
                counters,
            });
        }
        outputs
    }

    /// All workers are made: captures are written from now on. Returns what can be read.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start(self) -> anyhow::Result<(RunningSinks, Vec<SinkObserver>)> {
        let mut running = RunningSinks::default();
        let mut observers = Vec::new();
        for sink in self.list {
            if let (Some((open, channels)), Some(state)) = (sink.capture, &sink.observer.capture) {
                let capture = open.start(channels, state.clone())?;
                running.captures.push((observers.len(), capture));
                running
                    .states
                    .push((sink.observer.url.clone(), state.clone()));
            }
            observers.push(sink.observer);
        }
        Ok((running, observers))
    }
}

impl Opening {
    fn new(
        plan: &SinkPlan,
        interfaces: &[CapturedInterface],
        config: &Config,
    ) -> anyhow::Result<Opening> {
        let dry_run = plan.kind == SinkKind::DryRun;
        let capture = match dry_run {
            true => None,
            false => Some((OpenCapture::open(&plan.kind, interfaces)?, Vec::new())),
        };
        Ok(Opening {
            observer: SinkObserver {
                url: plan.url.clone(),
                words: match plan.kind {
                    SinkKind::DryRun => "dry run: nothing leaves",
                    SinkKind::File(_) | SinkKind::StandardOutput => "pcapng",
                },
                capture: (!dry_run).then(Arc::default),
                workers: Vec::new(),
                rules: mirror_rules(config),
            },
            capture,
        })
    }
}

/// The rules that packets can come by, and the default action.
fn mirror_rules(config: &Config) -> Vec<(u8, String)> {
    let mirrors = |action: &Action| *action == Action::Mirror;
    let mut rules: Vec<(u8, String)> = (0..)
        .zip(&config.rules)
        .filter(|(_, rule)| mirrors(&rule.action))
        .map(|(number, rule)| (number, format!("rule {number}: {rule}")))
        .collect();
    // A later fragment can be taken for a rule's that might match, so the default is always possible.
    if mirrors(&config.default_action()) || rules.is_empty() {
        rules.push((DEFAULT_RULE, "no rule".to_owned()));
    }
    rules
}

/// All sinks of a running mirror.
#[derive(Debug, Default)]
pub struct RunningSinks {
    /// With their place among the sinks.
    captures: Vec<(usize, RunningCapture)>,
    states: Vec<(String, Arc<CaptureState>)>,
}

impl RunningSinks {
    /// What the operator should know and has not been told.
    pub fn news(&self) -> Vec<String> {
        let news = self.states.iter().flat_map(|(url, state)| {
            let news = state.take_news();
            news.into_iter().map(move |news| format!("{url}: {news}"))
        });
        news.collect()
    }

    /// Whether every capture's reader has gone, and there is one.
    pub fn readers_gone(&self) -> bool {
        !self.states.is_empty() && self.states.iter().all(|(_, state)| state.reader_gone())
    }

    /// Writes the statistics and closes the captures. The workers have ended and `status` is final.
    pub fn finish(&mut self, status: &Status, observers: &[SinkObserver]) {
        for (index, capture) in &mut self.captures {
            let counts = status.sources.iter().enumerate().map(|(number, source)| {
                let (written, dropped) = observers
                    .get(*index)
                    .map_or((0, 0), |sink| sink.of_source(number));
                FinalCounts {
                    seen: source.seen,
                    matched: source.matched,
                    dropped: source.dropped.values().sum::<u64>() + dropped,
                    written,
                }
            });
            capture.finish(counts.collect());
        }
    }
}
