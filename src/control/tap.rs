//! Starting and ending a tap: program, rings, workers, hooks, in this order, and back.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{bail, Context as _};

use super::lock::{lock, InterfaceLock};
use super::mirror::Shared;
use super::outputs::Opener;
use super::thread;
use crate::bpf::skel::OwnFlow;
use crate::bpf::tap::Tap;
use crate::config::plan::{Attach, Capture, SourcePlan};
use crate::source::ring::Ring;
use crate::source::sleep::Sleeper;
use crate::telemetry::observer::SourceObserver;
use crate::worker::breaker::Watch;
use crate::worker::counters::{SourceCounters, TargetCounters};
use crate::worker::outputs::Outputs;
use crate::worker::tap::TapWorker;
use crate::worker::BATCH;
use crate::xsk::{Umem, UmemConfig};

/// Frames that the AF_XDP transmitters of one worker send from.
const FRAMES: u32 = 4096;

/// A running tap.
#[derive(Debug)]
pub struct RunningTap {
    program: Tap,
    threads: Vec<JoinHandle<()>>,
    umems: Vec<Umem>,
    plan: SourcePlan,
    attach: Attach,
    _lock: InterfaceLock,
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
        opener: &mut Opener<'_>,
        exclusions: &[OwnFlow],
    ) -> anyhow::Result<(RunningTap, Started)> {
        let Capture::Tap { attach, ring_size } = &plan.capture else {
            bail!("{} is not a tap", plan.name)
        };
        let lock = lock(&plan.interface, plan.ifindex)?;
        let mut program = Tap::load(plan.workers.len(), *ring_size)?;
        program.set_own_flows(exclusions)?;
        program.publish(shared.tables, plan.allow_credential_endpoints)?;
        let sleepers = Arc::new(program.sleepers()?);
        let mut running = RunningTap {
            threads: Vec::new(),
            umems: Vec::new(),
            plan: plan.clone(),
            attach: attach.value,
            _lock: lock,
            program,
        };
        let mut workers = Vec::new();
        let mut targets = Vec::new();
        for worker in &plan.workers {
            let umem = match opener.needs_frames() {
                true => Some(frames()?),
                false => None,
            };
            let opened = opener.open(umem.as_ref(), None)?;
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
                outputs: Outputs::new(opened.outputs, pool),
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
            mode: Mutex::new(String::new()),
            program: running.program.counters_map()?,
            rules: shared.rules,
            workers,
            sockets: Vec::new(),
        };
        Ok((running, Started { observer, targets }))
    }

    /// Attaches to both hooks. Returns how, in words.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attach(&mut self) -> anyhow::Result<String> {
        match self.attach {
            Attach::Tcx => self
                .program
                .attach_tcx(self.plan.ifindex, &self.plan.interface)?,
            Attach::Clsact => self
                .program
                .attach_clsact(self.plan.ifindex, &self.plan.interface)?,
        }
        Ok(self.attach.to_string())
    }

    /// Takes the programs off the hooks.
    pub fn detach(&mut self) {
        self.program.detach();
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

fn frames() -> anyhow::Result<Umem> {
    let config = UmemConfig {
        frames_per_worker: FRAMES,
        fill_ring: 64,
        completion_ring: super::outputs::TX_RING,
        ..UmemConfig::default()
    };
    Ok(Umem::new(&config)?)
}
