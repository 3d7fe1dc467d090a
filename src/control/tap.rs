//! Starting and ending a tap: program, rings, workers, hooks, in this order, and back.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{bail, Context as _};

use super::lock::{lock, InterfaceLock};
use super::mirror::Shared;
use super::outputs::Opener;
use super::thread;
use crate::bpf::skel::OwnFlow;
use crate::bpf::tap::{Links, Tap};
use crate::config::plan::{Attach, Capture, SourcePlan};
use crate::host::hooks::{self, Attached, Hook, Hooks};
use crate::host::link;
use crate::host::netlink::Netlink;
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
const FRAMES: u32 = 2560;

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
        let mut program = Tap::load(
            plan.workers.len(),
            *ring_size,
            &Links::new(&plan.name, &[plan.link]),
        )?;
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
            program: running.program.counter_reader()?,
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
        let SourcePlan {
            ifindex,
            interface,
            link,
            ..
        } = &self.plan;
        let hooks = hooks_of(*ifindex).with_context(|| format!("cannot look at {interface}"))?;
        match self.attach {
            Attach::Tcx => {
                // Filters of a tap that was killed would go on copying into a ring that nobody reads.
                // No living xtee has them: the interface's lock is ours.
                if hooks.attached.iter().any(is_our_filter) {
                    self.program.remove_stale_filters(*ifindex)?;
                    tracing::info!("removed the clsact filters that an xtee left on {interface}");
                }
                self.program.attach_tcx(*ifindex, interface, *link)?;
            }
            Attach::Clsact => {
                if !hooks.clsact {
                    tracing::warn!(
                        "making the clsact qdisc of {interface}: the kernel drops what is sent in that moment. It \
                         stays, so that this happens once; `tc qdisc add dev {interface} clsact` at boot avoids it"
                    );
                }
                self.program.attach_clsact(*ifindex, interface, *link)?;
            }
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

fn hooks_of(ifindex: u32) -> anyhow::Result<Hooks> {
    let mut netlink = Netlink::open()?;
    let link = link::by_index(&mut netlink, ifindex)?;
    Ok(hooks::on(&mut netlink, &link)?)
}

fn is_our_filter(attached: &Attached) -> bool {
    attached.ours() && matches!(attached.hook, Hook::ClsactIngress | Hook::ClsactEgress)
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
