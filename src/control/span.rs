//! Starting and ending a span: program, umem, sockets, workers, XDP, in this order, and back.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{bail, Context as _};
use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;

use super::explain::explain;
use super::lock::{lock, InterfaceLock};
use super::lookout::{take_note, Lookout, Sight};
use super::mirror::Shared;
use super::outputs::{Opener, OwnPort, TX_RING};
use super::tap::{publish, Started};
use super::thread;
use crate::bpf::attach::Hook;
use crate::bpf::needs::Needs;
use crate::bpf::steer::Steer;
use crate::config::plan::{Capture, SourcePlan, WorkerPlan, XdpMode};
use crate::config::settings::ZeroCopy;
use crate::host::clock::monotonic;
use crate::host::link::Link;
use crate::host::namespace::number;
use crate::mirror::selection::TargetSet;
use crate::telemetry::observer::{SourceNow, SourceObserver, SourceState, SpanSockets};
use crate::worker::breaker::{Breaker, Signatures, Watch};
use crate::worker::counters::{SourceCounters, TargetCounters};
use crate::worker::outputs::{Outputs, SinkOutput};
use crate::worker::span::{HandingOver, Inbox, SpanWorker};
use crate::worker::stop::Stop;
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

/// A span, its interface there or not. The loaded program and all counters outlive the interface.
#[derive(Debug)]
pub struct RunningSpan {
    program: Steer,
    plan: SourcePlan,
    settings: Settings,
    lookout: Lookout,
    /// Whether the program notes how much of each frame is wanted.
    snaplen: bool,
    /// Which targets get what.
    gets: Arc<ArcSwap<TargetSet>>,
    life: Option<Life>,
    /// Of each worker that does not run: the targets on this host, which outlive the interface.
    sinks: Vec<Vec<SinkOutput>>,
    /// Whether the frames of earlier umems came home.
    came_home: bool,
    /// Of each worker: its own, and those of its targets.
    counters: Vec<(Arc<SourceCounters>, Vec<Arc<TargetCounters>>)>,
    sockets: Arc<Mutex<SpanSockets>>,
    breaker: Breaker,
    signatures: Signatures,
    now: Arc<Mutex<SourceNow>>,
    refused: String,
}

/// What lives as long as the interface: libxdp's umem is bound to the first socket's, so all of it is made
/// anew with the interface.
#[derive(Debug)]
struct Life {
    ifindex: u32,
    name: String,
    up: bool,
    umem: Umem,
    queues: Vec<u32>,
    threads: Vec<JoinHandle<Vec<SinkOutput>>>,
    /// What the workers have left behind, once they have ended.
    sinks: Vec<Vec<SinkOutput>>,
    stop: Stop,
    obtained: String,
    mode: String,
    _lock: InterfaceLock,
}

impl Life {
    /// Ends the workers. Returns whether all ended well.
    fn join(&mut self) -> bool {
        self.stop.ask();
        let mut well = true;
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            well &= ended.is_ok();
            self.sinks.push(ended.unwrap_or_default());
        }
        well
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.join();
    }
}

/// The settings of the plan that the sockets need.
#[derive(Clone, Copy, Debug)]
struct Settings {
    mode: XdpMode,
    fall_back: bool,
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
        opener: &mut Opener,
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
        let mut lookout = Lookout::new(&plan.chosen, None)?;
        let link = match lookout.look(&[]) {
            Sight::Wanted(links, reason) => links.into_iter().next().context(reason)?,
            Sight::Unknown => bail!("the kernel does not say which interfaces there are"),
        };
        // Before the program is loaded: a second xtee is told at once.
        let lock = lock(&link.name, link.index, number())?;
        let needs = Needs::of(shared.tables);
        let mut program = Steer::load(u32::from(room.value), needs)?;
        program.publish(shared.tables, plan.allow_credential_endpoints)?;
        let mut running = RunningSpan {
            program,
            plan: plan.clone(),
            settings: Settings {
                mode: mode.value,
                fall_back: *generic_if_native_fails,
                zero_copy: zero_copy.value,
                busy_poll: *busy_poll,
                frames: *frames,
                room: usize::from(room.value),
            },
            lookout,
            snaplen: needs.snaplen,
            gets: shared.targets.clone(),
            life: None,
            sinks: Vec::new(),
            came_home: true,
            counters: Vec::new(),
            sockets: Arc::default(),
            breaker: shared.breaker.clone(),
            signatures: shared.signatures.clone(),
            now: Arc::default(),
            refused: String::new(),
        };
        let (life, words) = running.begin(&link, lock, opener)?;
        running.life = Some(life);
        let workers = plan
            .workers
            .iter()
            .zip(&running.counters)
            .map(|(worker, (counters, _))| (worker.cpu, counters.clone()))
            .collect();
        let targets = running
            .counters
            .iter()
            .zip(words)
            .map(|((_, counters), words)| (counters.clone(), words))
            .collect();
        let observer = SourceObserver {
            name: plan.name.clone(),
            kind: "span",
            now: running.now.clone(),
            program: running.program.counter_reader()?,
            rules: shared.rules,
            workers,
            sockets: running.sockets.clone(),
        };
        Ok((running, Started { observer, targets }))
    }

    /// Opens the sockets on an interface and starts the workers. Counters that are there go on. Returns
    /// also who sends, by worker.
    fn begin(
        &mut self,
        link: &Link,
        lock: InterfaceLock,
        opener: &mut Opener,
    ) -> anyhow::Result<(Life, Vec<Vec<String>>)> {
        let mut life = Life {
            ifindex: link.index,
            name: link.name.clone(),
            up: link.up,
            umem: umem(&self.plan, &self.settings)?,
            queues: Vec::new(),
            threads: Vec::new(),
            sinks: Vec::new(),
            stop: Stop::default(),
            obtained: String::new(),
            mode: String::new(),
            _lock: lock,
        };
        match self.fill(&mut life, opener) {
            Ok(words) => Ok((life, words)),
            Err(error) => {
                self.end(life, opener);
                Err(error)
            }
        }
    }

    fn fill(&mut self, life: &mut Life, opener: &mut Opener) -> anyhow::Result<Vec<Vec<String>>> {
        let plan = self.plan.clone();
        let inboxes: Vec<Inbox> = plan
            .workers
            .iter()
            .map(|_| Arc::new(ArrayQueue::new(INBOX)))
            .collect();
        let handing_over = Arc::new(AtomicUsize::new(0));
        let mut words = Vec::new();
        let mut ready = Vec::new();
        for worker in &plan.workers {
            let number = u32::try_from(worker.index)?;
            let mut pool = life.umem.pool(number).context("no frames for a worker")?;
            let (ports, own) = self.open_ports(worker, life, opener, &mut pool)?;
            for (port, queue) in ports.iter().zip(&worker.queues) {
                let socket = duplicate(port)?;
                self.sockets().open.push(socket);
                self.program.set_socket(*queue, port.as_fd())?;
                life.queues.push(*queue);
            }
            let known = self.counters.get(worker.index).cloned();
            if let Some((_, targets)) = &known {
                opener.again(targets);
            }
            let opened = opener.open(Some(&life.umem), false, own)?;
            words.push(opened.transmit);
            let counters = match known {
                Some((counters, _)) => counters,
                None => {
                    let counters = Arc::new(SourceCounters::default());
                    self.counters.push((counters.clone(), opened.counters));
                    self.sinks.push(opened.sinks);
                    counters
                }
            };
            ready.push((
                worker.cpu,
                SpanWorker {
                    index: worker.index,
                    ports,
                    inboxes: inboxes.clone(),
                    handing_over: HandingOver::new(&handing_over),
                    room: self.settings.room,
                    notes: self.snaplen,
                    outputs: Outputs::new(
                        opened.outputs,
                        Vec::new(),
                        Some(pool),
                        self.gets.clone(),
                    ),
                    watch: Watch::new(self.breaker.clone(), self.signatures.clone()),
                    counters,
                    stop: life.stop.clone(),
                    clock: monotonic,
                },
            ));
        }
        for (cpu, mut worker) in ready {
            if let Some(sinks) = self.sinks.get_mut(worker.index) {
                worker.outputs.take_sinks(std::mem::take(sinks));
            }
            let name = format!("xtee-span-{}", worker.index);
            life.threads
                .push(thread::start(&name, cpu, move || worker.run())?);
        }
        Ok(words)
    }

    fn sockets(&self) -> MutexGuard<'_, SpanSockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what lived with the interface. Returns whether it ended well.
    fn end(&mut self, mut life: Life, opener: &mut Opener) -> bool {
        self.program.detach();
        for queue in &life.queues {
            self.program.clear_socket(*queue);
        }
        let well = life.join();
        for (index, sinks) in life.sinks.drain(..).enumerate() {
            if let Some(place) = self.sinks.get_mut(index) {
                *place = sinks;
            }
        }
        self.sockets().close();
        opener.forget(&life.umem);
        self.came_home &= life.umem.balance().all_home();
        well
    }

    /// Follows the interface: to be called often. Returns what the operator should know.
    pub fn follow(&mut self, opener: &mut Opener) -> Vec<String> {
        if !self.lookout.is_due() {
            return Vec::new();
        }
        let held: Vec<u32> = self.life.iter().map(|life| life.ifindex).collect();
        let Sight::Wanted(links, reason) = self.lookout.look(&held) else {
            return Vec::new();
        };
        let link = links.first();
        let mut news = Vec::new();
        let here = |life: &Life| link.is_some_and(|link| link.index == life.ifindex);
        let lost = |life: &mut Life| !here(life) || !self.program.is_attached();
        if let Some(life) = self.life.take_if(lost) {
            let why = match reason.as_str() {
                "" => format!("{} was lost", life.name),
                _ => reason.clone(),
            };
            news.push(format!("{why}; waiting until it is there again"));
            if !self.end(life, opener) {
                news.push("a worker panicked".to_owned());
            }
        }
        let mut problem = reason;
        match (link, &mut self.life) {
            (Some(link), Some(life)) => news.extend(life.changed(link)),
            (Some(link), None) => match self.come_back(link, opener) {
                Ok(()) => {
                    self.refused.clear();
                    let number = link.index;
                    news.push(format!(
                        "{} (interface {number}) is there and mirrored",
                        link.name
                    ));
                }
                Err(error) => {
                    problem = explain(&error);
                    if problem != self.refused {
                        news.push(format!("{problem}; trying again"));
                        self.refused.clone_from(&problem);
                    }
                }
            },
            (None, _) => {}
        }
        publish(&self.now, self.state(problem));
        news
    }

    fn come_back(&mut self, link: &Link, opener: &mut Opener) -> anyhow::Result<()> {
        let lock = lock(&link.name, link.index, number())?;
        let (life, _) = self.begin(link, lock, opener)?;
        self.life = Some(life);
        let attached = self.attach();
        if attached.is_err() {
            if let Some(life) = self.life.take() {
                self.end(life, opener);
            }
        }
        attached
    }

    fn state(&self, problem: String) -> SourceNow {
        let Some(life) = &self.life else {
            return SourceNow {
                mode: String::new(),
                state: SourceState::Waiting,
                interfaces: Vec::new(),
                problem,
            };
        };
        SourceNow {
            mode: life.mode.clone(),
            state: match life.up {
                true => SourceState::Present,
                false => SourceState::Down,
            },
            interfaces: vec![life.name.clone()],
            problem,
        }
    }

    /// Opens a worker's queues; where a target's device is the span itself, the first queue sends too.
    fn open_ports(
        &self,
        worker: &WorkerPlan,
        life: &mut Life,
        opener: &Opener,
        pool: &mut Pool,
    ) -> anyhow::Result<(Vec<RxPort>, Option<OwnPort>)> {
        let mode = match (self.settings.zero_copy, opener.needs_frames()) {
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
            .any(|target| target.ifindex == life.ifindex);
        let mut ports = Vec::new();
        let mut own = None;
        for &queue in &worker.queues {
            let mut config = PortConfig::new(&life.name, queue, mode);
            config.rx_ring = RX_RING;
            config.tx_ring = TX_RING;
            config.busy_poll = self.settings.busy_poll.then_some(BUSY_POLL);
            config.multi_buffer = true;
            let port = if sends_here && own.is_none() {
                let (port, transmit) = open_both(&life.umem, &config, pool, stock)?;
                own = Some(OwnPort {
                    ifindex: life.ifindex,
                    queue,
                    port: transmit,
                });
                port
            } else {
                RxPort::open(&life.umem, &config, pool, stock)?
            };
            life.obtained = describe(port.obtained());
            ports.push(port);
        }
        Ok((ports, own))
    }

    /// Attaches to XDP: native, or generic where that was allowed.
    ///
    /// # Errors
    /// The kernel refused what was demanded.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        let life = self.life.as_mut().context("there is no interface")?;
        let native = self.settings.mode == XdpMode::Native;
        let first = self.program.attach(life.ifindex, &life.name, native);
        let mut why = String::new();
        if let Err(error) = first {
            if !native || !self.settings.fall_back {
                return Err(error.into());
            }
            self.program.attach(life.ifindex, &life.name, false)?;
            why = format!(" because {error}");
        }
        let hook = self.program.hook().map_or("", Hook::name);
        life.mode = format!("{hook}{why}, {}", life.obtained);
        publish(&self.now, self.state(String::new()));
        Ok(())
    }

    /// Takes the program off the interface.
    pub fn detach(&mut self) {
        self.program.detach();
        for queue in self.life.iter().flat_map(|life| &life.queues) {
            self.program.clear_socket(*queue);
        }
    }

    /// Whether a worker has ended although nobody asked it to.
    pub fn has_ended(&self) -> bool {
        let threads = self.life.iter().flat_map(|life| &life.threads);
        threads.into_iter().any(JoinHandle::is_finished)
    }

    /// Ends the workers. Returns whether all ended well.
    pub fn join(&mut self) -> bool {
        self.life.as_mut().is_none_or(Life::join)
    }

    /// Whether every frame came home. After `join`.
    pub fn frames_home(&self) -> bool {
        let home = |life: &Life| life.umem.balance().all_home();
        self.came_home && self.life.as_ref().is_none_or(home)
    }
}

impl Life {
    /// Takes note of what is new about the interface.
    fn changed(&mut self, link: &Link) -> Option<String> {
        take_note(&mut self.name, &mut self.up, link)
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
    let several = match obtained.multi_buffer {
        true => "frames of any size",
        false => "frames of up to a page: the kernel has no multi-buffer",
    };
    format!("AF_XDP {obtained}, {several}")
}

fn duplicate(port: &RxPort) -> anyhow::Result<OwnedFd> {
    port.as_fd()
        .try_clone_to_owned()
        .context("cannot duplicate a socket's descriptor")
}
