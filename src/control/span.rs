//! Starting and ending a span: program, umem, sockets, workers, XDP, in this order, and back.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{bail, Context as _};
use crossbeam::queue::ArrayQueue;

use super::lock::{lock, InterfaceLock};
use super::mirror::Shared;
use super::outputs::{Opener, OwnPort, TX_RING};
use super::tap::{publish, Started};
use super::thread;
use crate::bpf::attach::Hook;
use crate::bpf::steer::Steer;
use crate::config::plan::{Capture, SourcePlan, WorkerPlan, XdpMode};
use crate::config::settings::ZeroCopy;
use crate::host::clock::monotonic;
use crate::host::namespace::number;
use crate::telemetry::observer::{SourceNow, SourceObserver, SourceState};
use crate::worker::breaker::Watch;
use crate::worker::counters::SourceCounters;
use crate::worker::outputs::Outputs;
use crate::worker::span::{HandingOver, Inbox, SpanWorker};
use crate::xsk::{open_both, BusyPoll, Mode, Obtained, Pool, PortConfig, RxPort, Umem, UmemConfig};

/// Slots of a receive ring.
const RX_RING: u32 = 4096;
/// Frames on their way to a worker from the others.
const INBOX: usize = 4096;
/// Microseconds and packets of one busy poll: what Suricata and DPDK take.
const BUSY_POLL: BusyPoll = BusyPoll {
    micros: 20,
    budget: 64,
};

/// A running span.
#[derive(Debug)]
pub struct RunningSpan {
    program: Steer,
    threads: Vec<JoinHandle<()>>,
    umem: Umem,
    queues: Vec<u32>,
    plan: SourcePlan,
    mode: XdpMode,
    fall_back: bool,
    obtained: String,
    now: Arc<Mutex<SourceNow>>,
    _lock: InterfaceLock,
}

/// The settings of the plan that the sockets need.
struct Settings {
    zero_copy: ZeroCopy,
    busy_poll: bool,
    frames: u32,
    room: usize,
}

impl RunningSpan {
    /// Loads the program, opens the sockets and starts the workers. Nothing is attached yet.
    ///
    /// # Errors
    /// Whatever was in the way; what was started ends when the error is returned.
    pub fn start(
        plan: &SourcePlan,
        shared: &Shared<'_>,
        opener: &mut Opener<'_>,
    ) -> anyhow::Result<(RunningSpan, Started)> {
        let Capture::Span {
            mode,
            generic_if_native_fails,
            zero_copy,
            busy_poll,
            frames,
            room,
        } = &plan.capture
        else {
            bail!("{} is not a span", plan.name);
        };
        let settings = Settings {
            zero_copy: zero_copy.value,
            busy_poll: *busy_poll,
            frames: *frames,
            room: usize::from(room.value),
        };
        let lock = lock(&plan.interface, plan.ifindex, number())?;
        let mut program = Steer::load(u32::from(room.value))?;
        program.publish(shared.tables, plan.allow_credential_endpoints)?;
        let umem = umem(plan, &settings)?;
        let inboxes: Vec<Inbox> = plan
            .workers
            .iter()
            .map(|_| Arc::new(ArrayQueue::new(INBOX)))
            .collect();
        let handing_over = Arc::new(AtomicUsize::new(0));
        let mut running = RunningSpan {
            program,
            threads: Vec::new(),
            umem,
            queues: Vec::new(),
            plan: plan.clone(),
            mode: mode.value,
            fall_back: *generic_if_native_fails,
            obtained: String::new(),
            now: Arc::default(),
            _lock: lock,
        };
        let mut workers = Vec::new();
        let mut sockets = Vec::new();
        let mut targets = Vec::new();
        let mut ready = Vec::new();
        for worker in &plan.workers {
            let number = u32::try_from(worker.index)?;
            let mut pool = running
                .umem
                .pool(number)
                .context("no frames for a worker")?;
            let (ports, own) = running.open_ports(worker, &settings, opener, &mut pool)?;
            for (port, queue) in ports.iter().zip(&worker.queues) {
                sockets.push(duplicate(port)?);
                running.program.set_socket(*queue, port.as_fd())?;
                running.queues.push(*queue);
            }
            let opened = opener.open(Some(&running.umem), false, own)?;
            let counters = Arc::new(SourceCounters::default());
            workers.push((worker.cpu, counters.clone()));
            targets.push((opened.counters, opened.transmit));
            ready.push((
                worker.cpu,
                SpanWorker {
                    index: worker.index,
                    ports,
                    inboxes: inboxes.clone(),
                    handing_over: HandingOver::new(&handing_over),
                    room: settings.room,
                    outputs: Outputs::new(opened.outputs, opened.sinks, Some(pool)),
                    watch: Watch::new(shared.breaker.clone(), shared.signatures.clone()),
                    counters,
                    stop: shared.stop.clone(),
                    clock: monotonic,
                },
            ));
        }
        for (cpu, worker) in ready {
            let name = format!("xtee-span-{}", worker.index);
            running
                .threads
                .push(thread::start(&name, cpu, move || worker.run())?);
        }
        let observer = SourceObserver {
            name: plan.name.clone(),
            kind: "span",
            now: running.now.clone(),
            program: running.program.counter_reader()?,
            rules: shared.rules,
            workers,
            sockets,
        };
        Ok((running, Started { observer, targets }))
    }

    /// Opens a worker's queues; where a target's device is the span itself, the first queue sends too.
    fn open_ports(
        &mut self,
        worker: &WorkerPlan,
        settings: &Settings,
        opener: &Opener<'_>,
        pool: &mut Pool,
    ) -> anyhow::Result<(Vec<RxPort>, Option<OwnPort>)> {
        let mode = match (settings.zero_copy, opener.needs_frames()) {
            (ZeroCopy::Require, _) => Mode::ZeroCopy,
            // One UMEM has one mode (libxdp), and the egress is bound in copy mode.
            (ZeroCopy::Prefer, false) => Mode::Any,
            (ZeroCopy::Prefer, true) | (ZeroCopy::Never, _) => Mode::Copy,
        };
        let share = pool.capacity() / u32::try_from(worker.queues.len().max(1))?;
        // Three quarters of the frames wait in the fill ring for a burst, the others may be on their way.
        let stock = (share - share / 4).clamp(64, 4096);
        let sends_here = opener
            .targets
            .iter()
            .any(|target| target.ifindex == self.plan.ifindex);
        let mut ports = Vec::new();
        let mut own = None;
        for &queue in &worker.queues {
            let mut config = PortConfig::new(&self.plan.interface, queue, mode);
            config.rx_ring = RX_RING;
            config.tx_ring = TX_RING;
            config.busy_poll = settings.busy_poll.then_some(BUSY_POLL);
            let port = if sends_here && own.is_none() {
                let (port, transmit) = open_both(&self.umem, &config, pool, stock)?;
                own = Some(OwnPort {
                    ifindex: self.plan.ifindex,
                    queue,
                    port: transmit,
                });
                port
            } else {
                RxPort::open(&self.umem, &config, pool, stock)?
            };
            self.obtained = describe(port.obtained());
            ports.push(port);
        }
        Ok((ports, own))
    }

    /// Attaches to XDP: native, or generic where that was allowed.
    ///
    /// # Errors
    /// The kernel refused what was demanded.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        let native = self.mode == XdpMode::Native;
        let first = self
            .program
            .attach(self.plan.ifindex, &self.plan.interface, native);
        let mut why = String::new();
        if let Err(error) = first {
            if !native || !self.fall_back {
                return Err(error.into());
            }
            self.program
                .attach(self.plan.ifindex, &self.plan.interface, false)?;
            why = format!(" because {error}");
        }
        let hook = self.program.hook().map_or("", Hook::name);
        publish(
            &self.now,
            SourceNow {
                mode: format!("{hook}{why}, {}", self.obtained),
                state: SourceState::Present,
                interfaces: vec![self.plan.interface.clone()],
                problem: String::new(),
            },
        );
        Ok(())
    }

    /// Takes the program off the interface.
    pub fn detach(&mut self) {
        self.program.detach();
        for queue in &self.queues {
            self.program.clear_socket(*queue);
        }
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

    /// Whether every frame came home. After `join`.
    pub fn frames_home(&self) -> bool {
        self.umem.balance().all_home()
    }
}

fn umem(plan: &SourcePlan, settings: &Settings) -> anyhow::Result<Umem> {
    let queues = plan
        .workers
        .iter()
        .map(|worker| worker.queues.len())
        .max()
        .unwrap_or(1)
        .max(1);
    let config = UmemConfig {
        workers: u32::try_from(plan.workers.len())?,
        frames_per_worker: settings.frames * u32::try_from(queues)?,
        ..UmemConfig::default()
    };
    Ok(Umem::new(&config)?)
}

fn describe(obtained: &Obtained) -> String {
    format!("AF_XDP {obtained}")
}

fn duplicate(port: &RxPort) -> anyhow::Result<OwnedFd> {
    port.as_fd()
        .try_clone_to_owned()
        .context("cannot duplicate a socket's descriptor")
}
