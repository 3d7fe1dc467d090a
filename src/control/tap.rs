//! Starting and ending a tap: program, rings, workers, hooks, in this order, and back.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{bail, Context as _};

use super::hold::Holds;
use super::mirror::Shared;
use super::outputs::Opener;
use super::thread;
use crate::bpf::needs::Needs;
use crate::bpf::skel::OwnFlow;
use crate::bpf::tap::{Links, Tap};
use crate::config::plan::{Capture, SourcePlan};
use crate::source::ring::Ring;
use crate::source::sleep::Sleeper;
use crate::telemetry::observer::{SourceNow, SourceObserver};
use crate::worker::breaker::Watch;
use crate::worker::counters::{SourceCounters, TargetCounters};
use crate::worker::outputs::Outputs;
use crate::worker::tap::TapWorker;
use crate::worker::BATCH;
use crate::xsk::{Umem, UmemConfig};

/// Frames that the AF_XDP transmitters of one worker send from.
const FRAMES: u32 = 2560;

/// A running tap.
#[derive(Debug)]
pub struct RunningTap {
    program: Tap,
    threads: Vec<JoinHandle<()>>,
    umems: Vec<Umem>,
    holds: Holds,
    now: Arc<Mutex<SourceNow>>,
}

/// What a started source gives to the observer.
#[derive(Debug)]
pub struct Started {
    /// The source's own.
    pub observer: SourceObserver,
    /// For each worker: each target's counters and words.
    pub targets: Vec<(Vec<Arc<TargetCounters>>, Vec<String>)>,
}

impl RunningTap {
    /// Loads the program and starts the workers. Nothing is attached yet.
    ///
    /// # Errors
    /// Whatever was in the way; what was started ends when the error is returned.
    pub fn start(
        plan: &SourcePlan,
        shared: &Shared<'_>,
        opener: &mut Opener,
        exclusions: &[OwnFlow],
    ) -> anyhow::Result<(RunningTap, Started)> {
        let Capture::Tap { attach, ring_size } = &plan.capture else {
            bail!("{} is not a tap", plan.name)
        };
        let holds = Holds::new(plan, attach.value)?;
        let needs = Needs::of(shared.tables);
        let links = Links::new(&plan.name, &plan.links);
        let mut program = Tap::load(plan.workers.len(), *ring_size, &links, needs)?;
        program.set_own_flows(exclusions)?;
        program.publish(shared.tables, plan.allow_credential_endpoints)?;
        let sleepers = Arc::new(program.sleepers()?);
        let mut running = RunningTap {
            threads: Vec::new(),
            umems: Vec::new(),
            holds,
            now: Arc::default(),
            program,
        };
        let mut workers = Vec::new();
        let mut targets = Vec::new();
        for worker in &plan.workers {
            let umem = match opener.tap_needs_frames().then(frames) {
                Some(Ok(umem)) => Some(umem),
                Some(Err(refusal)) => {
                    opener.refuse_frames(&refusal);
                    None
                }
                None => None,
            };
            let opened = opener.open(umem.as_ref(), true, None)?;
            let pool = umem.as_ref().and_then(|umem| umem.pool(0));
            running.umems.extend(umem);
            let counters = Arc::new(SourceCounters::default());
            let ring = Ring::new(running.program.ring(worker.index)?, *ring_size, BATCH)
                .context("cannot map a ring")?;
            let sleeper = Sleeper::new(sleepers.clone(), worker.index * Tap::SLEEPER_SIZE)
                .context("no sleep flag")?;
            let tap = TapWorker {
                ring,
                sleeper,
                outputs: Outputs::new(opened.outputs, opened.sinks, pool, shared.targets.clone()),
                watch: Watch::new(shared.breaker.clone(), shared.signatures.clone()),
                counters: counters.clone(),
                stop: shared.stop.clone(),
            };
            let name = format!("xtee-tap-{}", worker.index);
            running
                .threads
                .push(thread::start(&name, worker.cpu, move || tap.run())?);
            workers.push((worker.cpu, counters));
            targets.push((opened.counters, opened.transmit));
        }
        let observer = SourceObserver {
            name: plan.name.clone(),
            kind: "tap",
            now: running.now.clone(),
            program: running.program.counter_reader()?,
            rules: shared.rules,
            workers,
            sockets: Arc::default(),
        };
        Ok((running, Started { observer, targets }))
    }

    /// Says which outer flows are our own copies from now on, while the programs run.
    ///
    /// # Errors
    /// More flows than fit.
    pub fn change_own_flows(&self, flows: &[OwnFlow]) -> anyhow::Result<()> {
        Ok(self.program.change_own_flows(flows)?)
    }

    /// Attaches to both hooks of the interfaces that are there.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        let now = self.holds.attach_all(&self.program)?;
        publish(&self.now, now);
        Ok(())
    }

    /// Follows the interfaces: to be called often. Returns what the operator should know.
    pub fn follow(&mut self) -> Vec<String> {
        let Some((now, news)) = self.holds.follow(&self.program) else {
            return Vec::new();
        };
        publish(&self.now, now);
        news
    }

    /// Takes the programs off the hooks.
    pub fn detach(&mut self) {
        self.holds.release();
    }

    /// Whether a worker has ended although nobody asked it to.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for the workers, which have been asked to stop. Returns whether all ended well.
    pub fn join(&mut self) -> bool {
        let mut well = true;
        for thread in self.threads.drain(..) {
            well &= thread.join().is_ok();
        }
        well
    }

    /// Whether every frame of the AF_XDP transmitters came home. After `join`.
    pub fn frames_home(&self) -> bool {
        self.umems.iter().all(|umem| umem.balance().all_home())
    }
}

/// Replaces what status shows of a source.
pub(super) fn publish(shown: &Mutex<SourceNow>, now: SourceNow) {
    // Poisoned only if a reader panicked while it cloned a few words.
    *shown.lock().unwrap_or_else(PoisonError::into_inner) = now;
}

pub(super) fn frames() -> anyhow::Result<Umem> {
    let config = UmemConfig {
        frames_per_worker: FRAMES,
        fill_ring: 64,
        completion_ring: super::outputs::TX_RING,
        ..UmemConfig::default()
    };
    Ok(Umem::new(&config)?)
}
