//! The span under more than it takes: every packet that it could not take is counted, and asked to end in
//! the middle of it, it accounts for all that it took, with every frame home.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/numbered.rs"]
mod numbered;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/span_lab.rs"]
mod span_lab;

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::netns::wait_until;
use mirror::{source, target, Mirror};
use numbered::Book;
use span_lab::{has_xdp, Collector, Feeder, Lab};
use xtee::host::cpu::{cpus, pin_current_thread};

const VXLAN: &str = "vxlan://203.0.113.2?vni=7&limit=none";
const GRE: &str = "gre://203.0.113.2?key=7&limit=none";
const PATIENCE: Duration = Duration::from_secs(10);

fn healthy(mirror: &Mirror) {
    mirror.wait_for("a path to the collector", |status| {
        status.targets.iter().all(|target| target.healthy)
    });
}

/// Whether all threads of a process are stopped.
fn stands_still(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let mut states = tasks.flatten().map(|task| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything.
        let (_, rest) = text.rsplit_once(") ").unwrap_or_default();
        rest.starts_with('T')
    });
    states.all(|stopped| stopped)
}

/// More than it takes: first while it cannot run at all, then as much as the feeder can.
fn overload(mode: &str, url: &str) {
    require_root!();
    let lab = Lab::new(1, 1);
    lab.resolve_span();
    let collector = Collector::new(&lab.collector, "mon0");
    let configuration = format!(
        "[[source]]\nkind = \"span\"\ninterface = \"span0\"\nmode = \"{mode}\"\nframes = 64\n\
         [[target]]\nurl = \"{url}\"\n"
    );
    let mirror = Mirror::start_config(&lab.appliance, &configuration);
    healthy(&mirror);
    let mut feeder = Feeder::new(&lab.feeder, "feed0", 1);
    let mut book = Book::default();

    mirror.signal(libc::SIGSTOP);
    wait_until("all of its threads to stand", PATIENCE, || {
        stands_still(mirror.pid())
    });
    let stopped = 200;
    for flow in 0..stopped {
        feeder.send(0, &book.next(flow % 40, false));
    }
    // In generic XDP they wait in a CPU's backlog, in native XDP on the veth's ring: not for long.
    wait_until("the frames to be dropped", PATIENCE, || {
        lab.appliance.counter("span0", "rx_packets") >= stopped as u64
    });
    mirror.signal(libc::SIGCONT);
    let status = mirror.assert_balanced();
    let lost = source(&status).dropped["ring"];
    assert_eq!(source(&status).seen, stopped as u64);
    assert!(lost >= stopped as u64 - 64, "{status}");
    let mut copies = Vec::new();
    collector.take(stopped - lost as usize, &mut copies);

    for number in 0..30_000 {
        feeder.push(0, &book.next(number % 40, false));
        if number % 50 == 49 {
            feeder.flush(0);
        }
    }
    let status = mirror.assert_balanced();
    let (counted, sent) = (source(&status), target(&status).sent_packets);
    assert_eq!(counted.seen + feeder.dropped(), book.len() as u64);
    assert!(counted.dropped["ring"] > lost, "{status}");
    for (reason, packets) in &counted.dropped {
        assert!(*packets == 0 || reason == "ring", "{status}");
    }
    copies.extend(collector.rest());
    let distinct: HashSet<_> = copies.iter().map(|copy| book.find(copy).number).collect();
    assert_eq!(distinct.len(), copies.len(), "copied twice");
    // The collector's own backlog may be full, too.
    assert!(copies.len() as u64 <= sent && copies.len() * 10 > sent as usize);
    mirror.stop().assert_clean();
}

#[test]
fn overload_native_gre() {
    overload("native", GRE);
}

#[test]
fn overload_generic_vxlan() {
    overload("generic", VXLAN);
}

/// Asked to end in the middle of a flood, with frames on their way between four workers: everything
/// that it took is accounted for, and every frame of its umem is home (it fails otherwise).
fn ends_in_order_under_load(mode: &str, url: &str) {
    require_root!();
    let lab = Lab::new(4, 4);
    let arguments = ["span:span0", "--mode", mode, "--workers", "4", "--to", url];
    let mut feeder = Feeder::new(&lab.feeder, "feed0", 4);
    for _ in 0..3 {
        let mirror = Mirror::start(&lab.appliance, &arguments);
        healthy(&mirror);
        let (end, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let finished = std::thread::scope(|scope| {
            scope.spawn(|| {
                let frames: Vec<_> = (0..64)
                    .map(|flow| numbered::frame(flow, flow % 2 == 0, flow as u32))
                    .collect();
                while !end.load(Ordering::Relaxed) {
                    for (number, frame) in frames.iter().enumerate() {
                        feeder.push(number % 4, frame);
                    }
                    (0..4).for_each(|queue| feeder.flush(queue));
                    sent.fetch_add(64, Ordering::Relaxed);
                }
            });
            mirror.wait_for("a flood", |status| {
                let workers = &source(status).workers;
                source(status).captured > 10_000
                    && workers
                        .iter()
                        .filter(|worker| worker.handed_over > 0)
                        .count()
                        > 1
            });
            let finished = mirror.stop();
            end.store(true, Ordering::Relaxed);
            finished
        });
        finished.assert_clean();
        assert!(finished.final_number("seen") <= sent.load(Ordering::Relaxed));
        assert!(!has_xdp(&lab.appliance, "span0"));
    }
}

#[test]
fn ends_in_order_under_load_native_gre() {
    ends_in_order_under_load("native", GRE);
}

#[test]
fn ends_in_order_under_load_generic_vxlan() {
    ends_in_order_under_load("generic", VXLAN);
}

/// Asked to end while one worker has hardly any CPU and a full queue, of which three quarters belong to
/// the others: they wait for what it hands over.
#[test]
fn ends_in_order_with_a_worker_that_lags() {
    require_root!();
    let lab = Lab::new(4, 4);
    let arguments = ["span:span0", "--mode", "native", "--workers", "4", "--to"];
    let mirror = Mirror::start(&lab.appliance, &[&arguments[..], &[GRE]].concat());
    healthy(&mirror);
    let mut feeder = Feeder::new(&lab.feeder, "feed0", 4);
    let end = AtomicBool::new(false);
    let finished = std::thread::scope(|scope| {
        for cpu in cpus().online {
            let end = &end;
            scope.spawn(move || {
                pin_current_thread(cpu).expect("a CPU");
                while !end.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        run_only_when_idle(mirror.pid(), "xtee-span-0");
        for number in 0..1500 {
            feeder.send(0, &numbered::frame(number % 64, false, number as u32));
        }
        let finished = mirror.stop();
        end.store(true, Ordering::Relaxed);
        finished
    });
    finished.assert_clean();
    assert_eq!(finished.final_number("seen") + feeder.dropped(), 1500);
}

/// Lets a thread run only while a CPU has nothing else to do (`SCHED_IDLE`).
fn run_only_when_idle(pid: u32, name: &str) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let thread = tasks.flatten().find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    let number = thread.expect("the thread").file_name();
    let number = number.to_str().and_then(|text| text.parse().ok());
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives on; the call reads it and changes a thread of our own child.
    let result =
        unsafe { libc::sched_setscheduler(number.expect("a number"), libc::SCHED_IDLE, &priority) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
