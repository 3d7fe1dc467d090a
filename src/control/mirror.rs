//! A mirror from start to end.
//!
//! Starts whole or not at all: whatever fails, everything that was started ends, and nothing stays
//! attached. Ends by detaching first and draining then, so that the balance closes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;

use super::guard::Guard;
use super::names::Names;
use super::outputs::{outer_flow, Opener};
use super::shedding::{Probes, Shedding};
use super::sinks::{RunningSinks, Sinks};
use super::span::RunningSpan;
use super::tap::{RunningTap, Started};
use super::targets::Targets;
use super::untracked::Tracking;
use crate::config::plan::{Capture, Plan, Transmitter};
use crate::config::settings::Config;
use crate::host::clock::{monotonic, utc_offset};
use crate::host::limits::raise_open_files;
use crate::host::route::{source_towards, unspecified};
use crate::host::watch::{PathTarget, PathWatch};
use crate::mirror::path::PathState;
use crate::mirror::selection::TargetSet;
use crate::mirror::tables::{compile_with_default, Tables};
use crate::telemetry::observer::{Observer, TargetObserver};
use crate::telemetry::sinks::SinkObserver;
use crate::telemetry::status::Status;
use crate::transmit::wrap::UtcOffset;
use crate::worker::breaker::{Breaker, Signatures};
use crate::worker::stop::Stop;

/// What all sources of a mirror share.
#[derive(Debug)]
pub struct Shared<'t> {
    /// The compiled rules.
    pub tables: &'t Tables,
    /// How many rules there are.
    pub rules: usize,
    /// The breaker.
    pub breaker: Breaker,
    /// Our outer flows.
    pub signatures: Signatures,
    /// Which targets get what.
    pub targets: Arc<ArcSwap<TargetSet>>,
    /// Ends the workers.
    pub stop: Stop,
}

#[derive(Debug)]
enum Source {
    Tap(Box<RunningTap>),
    Span(Box<RunningSpan>),
}

/// A running mirror.
#[derive(Debug)]
pub struct Mirror {
    sources: Vec<Source>,
    stop: Stop,
    observer: Arc<Observer>,
    targets: Targets,
    shedding: Shedding,
    tracking: Tracking,
    opener: Opener,
    guard: Guard,
    names: Option<Names>,
    paths: Option<PathWatch>,
    utc: UtcOffset,
    sinks: RunningSinks,
    /// What fell back at the start, with the reason.
    pub notes: Vec<String>,
    times_opened: u64,
    told_refused: bool,
    /// Changes of each target's path MTU that were told.
    told_mtu: Vec<u64>,
}

impl Mirror {
    /// Starts what the plan says.
    ///
    /// # Errors
    /// What was in the way. Nothing is left attached.
    pub fn start(config: &Config, plan: &Plan) -> anyhow::Result<Mirror> {
        raise_open_files();
        let tables = compile_with_default(&config.rules, config.default_action)?;
        let watch = PathWatch::start(
            plan.targets
                .iter()
                .map(|target| PathTarget {
                    destination: target.address,
                    source: target.source,
                    source_is_routes: !target.source_is_asked,
                    device: target.bind_device.then(|| target.device.clone()),
                    flow: outer_flow(target),
                    mtu: target.mtu,
                })
                .collect(),
        )?;
        let deaf = watch.deaf().map(|error| {
            format!(
                "ICMP errors about the path MTU are not heard (it needs CAP_NET_RAW): {error}; AF_XDP does not \
                 learn it, `mtu` sets it"
            )
        });
        let paths = (0..plan.targets.len())
            .map(|index| watch.path(index).context("a target without a path"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let targets = Targets::new(plan, &paths);
        let guard = Guard::new(&plan.targets, &paths);
        let names = Names::start(plan, &paths)?;
        let shedding = Shedding::new(plan, &paths, Probes::of_host());
        let shared = Shared {
            tables: &tables,
            rules: config.rules.len(),
            breaker: Breaker::default(),
            signatures: guard.signatures(),
            targets: targets.published(),
            stop: Stop::default(),
        };
        let asked = config
            .targets
            .iter()
            .map(|target| target.transmit)
            .collect();
        let utc = UtcOffset::default();
        utc.set(utc_offset());
        let sinks = Sinks::open(config, plan, utc.clone())?;
        let mut opener = Opener::new(plan, asked, paths.clone(), utc.clone(), sinks);
        let mut sources = Sources {
            list: Vec::new(),
            stop: shared.stop.clone(),
        };
        let mut started = Vec::new();
        for (number, source) in plan.sources.iter().enumerate() {
            let tap = matches!(source.capture, Capture::Tap { .. });
            opener.begin_source(number, (!tap).then_some(&tables));
            let began = match &source.capture {
                Capture::Tap { .. } => {
                    let (tap, began) =
                        RunningTap::start(source, &shared, &mut opener, &guard.exclusions())
                            .with_context(|| source.name.clone())?;
                    sources.list.push(Source::Tap(Box::new(tap)));
                    began
                }
                Capture::Span { .. } => {
                    let (span, began) = RunningSpan::start(source, &shared, &mut opener)
                        .with_context(|| source.name.clone())?;
                    sources.list.push(Source::Span(Box::new(span)));
                    began
                }
            };
            started.push(began);
        }
        let (running_sinks, sink_observers) = opener.start_sinks()?;
        let observer = observe(plan, &paths, started, sink_observers, &shared, &shedding);
        // Before the first copy, where conntrack is in use already.
        let mut tracking = Tracking::new(&guard.exclusions());
        opener.notes.extend(tracking.tend(monotonic()));
        for (source, observed) in sources.list.iter_mut().zip(&observer.sources) {
            match source {
                Source::Tap(tap) => tap.attach(),
                Source::Span(span) => span.attach(),
            }
            .with_context(|| observed.name.clone())?;
        }
        Ok(Mirror {
            sources: std::mem::take(&mut sources.list),
            stop: shared.stop.clone(),
            observer: Arc::new(observer),
            targets,
            shedding,
            tracking,
            paths: Some(watch),
            utc,
            sinks: running_sinks,
            notes: std::mem::take(&mut opener.notes)
                .into_iter()
                .chain(deaf)
                .collect(),
            opener,
            guard,
            names,
            times_opened: 0,
            told_refused: false,
            told_mtu: Vec::new(),
        })
    }

    /// What can be read of it.
    #[must_use]
    pub fn observer(&self) -> Arc<Observer> {
        self.observer.clone()
    }

    /// Looks after the mirror: to be called many times a second. Returns what the operator should know.
    ///
    /// # Errors
    /// A worker has ended: a mirror is whole or it ends.
    pub fn tend(&mut self) -> anyhow::Result<Vec<String>> {
        self.utc.set(utc_offset());
        let now = monotonic();
        let mut news: Vec<String> = self.targets.tend(now);
        if let Some((reason, text)) = self.shedding.tend(now, &self.observer) {
            self.targets.shed(reason);
            news.push(text);
        }
        news.extend(self.tracking.tend(now));
        for (source, observed) in self.sources.iter_mut().zip(&self.observer.sources) {
            let told = match source {
                Source::Tap(tap) => tap.follow(),
                Source::Span(span) => span.follow(&mut self.opener),
            };
            let name = &observed.name;
            news.extend(told.into_iter().map(|new| format!("{name}: {new}")));
        }
        news.append(&mut self.opener.notes);
        news.extend(self.follow_addresses());
        let transmitters = u32::try_from(self.opener.successors.len())?;
        for successor in &mut self.opener.successors {
            news.extend(successor.follow(transmitters));
        }
        news.extend(self.sinks.news());
        news.extend(self.path_mtu_news());
        let opened = self.observer.breaker.times_opened();
        if opened != self.times_opened {
            self.times_opened = opened;
            let seconds = self
                .observer
                .breaker
                .remaining(monotonic())
                .div_ceil(1_000_000_000);
            news.push(format!(
                "STOPPED MIRRORING for {seconds} s: our own copies come back to the source, so the mirror would feed \
                 itself. Take the target's path off the tapped interface, or skip the tunnel's outer flow with a rule"
            ));
        }
        let refused = self
            .observer
            .targets
            .iter()
            .flat_map(|target| &target.workers)
            .any(|worker| worker.gso_refused.get() > 0);
        if refused && !self.told_refused {
            self.told_refused = true;
            news.push(
                "the device refuses UDP_SEGMENT (no checksum offload): copies go out one by one"
                    .to_owned(),
            );
        }
        let ended = self.sources.iter().any(|source| match source {
            Source::Tap(tap) => tap.has_ended(),
            Source::Span(span) => span.has_ended(),
        });
        anyhow::ensure!(!ended, "a worker has ended; the mirror stops");
        Ok(news)
    }

    /// Whether nobody is left to mirror for: the only targets were captures, and their readers have gone.
    #[must_use]
    pub fn is_pointless(&self) -> bool {
        let captures_only = self.observer.targets.is_empty()
            && self
                .observer
                .sinks
                .iter()
                .all(|sink| sink.capture.is_some());
        captures_only && self.sinks.readers_gone()
    }

    /// Targets that have another address, and what has to follow: first whoever knows our copies by it, then the
    /// path, and the sockets once there is one.
    fn follow_addresses(&mut self) -> Vec<String> {
        let found = self.names.as_mut().map(Names::tend).unwrap_or_default();
        let mut news = found.news;
        for (target, address) in &found.moves {
            self.guard.expect(*target, self.way_to(*target, *address));
        }
        if !found.moves.is_empty() {
            news.extend(self.tell_programs());
        }
        if let Some(watch) = &self.paths {
            for (target, address) in found.moves {
                watch.move_to(target, address);
            }
        }
        let opener = &self.opener;
        if self
            .guard
            .tend(&opener.paths, |target, way| opener.all_go_to(target, way))
        {
            news.extend(self.tell_programs());
        }
        news.extend(self.opener.follow_addresses());
        news
    }

    /// Source and destination of a target's copies once it has this address.
    fn way_to(&self, target: usize, address: IpAddr) -> (IpAddr, IpAddr) {
        let Some(plan) = self.opener.targets.get(target) else {
            return (address, address);
        };
        let asked = plan.source.filter(|_| plan.source_is_asked);
        let device = plan.bind_device.then_some(plan.device.as_str());
        let source = asked.or_else(|| source_towards(address, device));
        (source.unwrap_or_else(|| unspecified(address)), address)
    }

    fn tell_programs(&mut self) -> Option<String> {
        let flows = self.guard.exclusions();
        self.tracking.follow(&flows);
        self.sources.iter().find_map(|source| match source {
            Source::Tap(tap) => tap
                .change_own_flows(&flows)
                .err()
                .map(|error| format!("the loop guard does not follow: {error:#}")),
            Source::Span(_) => None,
        })
    }

    /// Path MTUs that have changed since the last look.
    fn path_mtu_news(&mut self) -> Vec<String> {
        let mut news = Vec::new();
        self.told_mtu.resize(self.observer.targets.len(), 0);
        for (target, told) in self.observer.targets.iter().zip(&mut self.told_mtu) {
            let path = target.path.load();
            if path.mtu_changes != *told {
                *told = path.mtu_changes;
                news.push(format!(
                    "{}: the path MTU is {} now ({})",
                    target.url, path.mtu, path.mtu_source
                ));
            }
        }
        news
    }

    /// Detaches, drains, and returns the final balance.
    ///
    /// # Errors
    /// The counters could not be read, a worker ended badly, or a frame did not come home.
    pub fn stop(mut self) -> anyhow::Result<Status> {
        end(&mut self.sources, &self.stop)?;
        let status = self.observer.status()?;
        self.sinks.finish(&status, &self.observer.sinks);
        if let Some(watch) = self.paths.take() {
            watch.stop();
        }
        // With the ports that workers have left, and their frames.
        self.opener.successors.clear();
        for source in &self.sources {
            let home = match source {
                Source::Tap(tap) => tap.frames_home(),
                Source::Span(span) => span.frames_home(),
            };
            anyhow::ensure!(home, "a frame of the umem did not come home");
        }
        Ok(status)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // After `stop` this finds nothing to do.
        let _ = end(&mut self.sources, &self.stop);
    }
}

/// Sources on their way up: whatever fails, they end.
struct Sources {
    list: Vec<Source>,
    stop: Stop,
}

impl Drop for Sources {
    fn drop(&mut self) {
        // Empty once the mirror has taken them over: then there is nobody to stop.
        if !self.list.is_empty() {
            let _ = end(&mut self.list, &self.stop);
        }
    }
}

fn end(sources: &mut [Source], stop: &Stop) -> anyhow::Result<()> {
    for source in sources.iter_mut() {
        match source {
            Source::Tap(tap) => tap.detach(),
            Source::Span(span) => span.detach(),
        }
    }
    // A program that began before the detach may still be copying; it ends within microseconds.
    std::thread::sleep(Duration::from_millis(20));
    stop.ask();
    let mut well = true;
    for source in sources.iter_mut() {
        well &= match source {
            Source::Tap(tap) => tap.join(),
            Source::Span(span) => span.join(),
        };
    }
    anyhow::ensure!(well, "a worker panicked");
    Ok(())
}

fn observe(
    plan: &Plan,
    paths: &[Arc<ArcSwap<PathState>>],
    started: Vec<Started>,
    sinks: Vec<SinkObserver>,
    shared: &Shared<'_>,
    shedding: &Shedding,
) -> Observer {
    let mut targets: Vec<TargetObserver> = plan
        .targets
        .iter()
        .zip(paths)
        .map(|(target, path)| TargetObserver {
            url: target.url.clone(),
            distribution: target.distribution,
            transmit: Vec::new(),
            by_socket: target.transmit.value != Transmitter::Xsk,
            path: path.clone(),
            workers: Vec::new(),
        })
        .collect();
    let mut sources = Vec::new();
    for began in started {
        for (counters, words) in began.targets {
            for ((target, counters), words) in targets.iter_mut().zip(counters).zip(words) {
                target.workers.push(counters);
                target.transmit.push(words);
            }
        }
        sources.push(began.observer);
    }
    Observer {
        started: Instant::now(),
        sources,
        targets,
        sinks,
        set: shared.targets.clone(),
        breaker: shared.breaker.clone(),
        times_shed: shedding.times(),
    }
}
