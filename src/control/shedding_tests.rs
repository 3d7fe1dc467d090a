//! Measurements that are made up, and what comes of them.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;

/// A host whose numbers the test sets.
#[derive(Default)]
struct Host {
    cpu: CpuTime,
    statistics: BTreeMap<String, Statistics>,
    asked: Vec<String>,
}

struct Bench {
    host: Rc<RefCell<Host>>,
    shedding: Shedding,
    now: u64,
    offered: Offered,
}

impl Bench {
    fn new(settings: Breaker) -> Bench {
        let host = Rc::new(RefCell::new(Host::default()));
        let (cpu, statistics) = (host.clone(), host.clone());
        let probes = Probes {
            cpu: Box::new(move || Some(cpu.borrow().cpu)),
            statistics: Box::new(move |device| {
                let mut host = statistics.borrow_mut();
                host.asked.push(device.to_owned());
                host.statistics.get(device).cloned().unwrap_or_default()
            }),
        };
        let thresholds = Thresholds {
            bits: settings.budget,
            packets: settings.budget_packets,
            load: settings.load,
        };
        let shedding = Shedding {
            settings,
            shedder: Shedder::new(thresholds),
            probes,
            cost: Cost::default(),
            allowances: Allowances::default(),
            devices: ["eth0", "eth1"].map(str::to_owned).into(),
            paths: Vec::new(),
            window: VecDeque::new(),
            next: 0,
            next_allowances: 0,
            times: Arc::default(),
        };
        Bench {
            host,
            shedding,
            now: 1000 * SECOND,
            offered: Offered::default(),
        }
    }

    /// A quarter of a second with so many bits and packets a second, and so much of the CPUs busy (percent).
    fn quarter(&mut self, bits: u64, packets: u64, busy: u64) -> Option<(Option<Reason>, String)> {
        self.now += PERIOD;
        self.offered.bytes += bits / 8 / 4;
        self.offered.packets += packets / 4;
        {
            let cpu = &mut self.host.borrow_mut().cpu;
            cpu.busy += busy;
            cpu.total += 100;
        }
        self.shedding.measure(self.now, self.offered)
    }

    /// Quarters until something changes, at most a minute; how many, and what.
    fn until(&mut self, bits: u64, packets: u64, busy: u64) -> (u32, Option<Reason>, String) {
        for count in 1..=240 {
            if let Some((reason, text)) = self.quarter(bits, packets, busy) {
                return (count, reason, text);
            }
        }
        panic!("nothing changes");
    }

    fn set(&self, device: &str, name: &str, value: u64) {
        let statistics = &mut self.host.borrow_mut().statistics;
        let of_device = statistics.entry(device.to_owned()).or_default();
        of_device.insert(name.to_owned(), value);
    }
}

fn settings() -> Breaker {
    Breaker {
        budget: Some(100_000_000),
        budget_packets: Some(10_000),
        load: Some(900),
        allowances: true,
    }
}

#[test]
fn above_the_budget_copies_are_shed_until_it_is_calm() {
    let mut bench = Bench::new(settings());
    for _ in 0..20 {
        assert_eq!(bench.quarter(90_000_000, 9000, 50), None);
    }
    let (quarters, reason, text) = bench.until(150_000_000, 9000, 50);
    assert!(quarters <= 4, "{quarters}");
    assert_eq!(reason, Some(Reason::Budget));
    assert!(text.contains("Mbit/s"), "{text}");
    for _ in 0..40 {
        assert_eq!(bench.quarter(90_000_000, 9000, 50), None, "not calm");
    }
    let (quarters, reason, _) = bench.until(50_000_000, 5000, 50);
    // The window of a second has to empty itself first.
    assert!((20..=25).contains(&quarters), "{quarters}");
    assert_eq!(reason, None);
    let (_, reason, _) = bench.until(50_000_000, 20_000, 50);
    assert_eq!(reason, Some(Reason::Budget));
    assert_eq!(bench.shedding.times().load(Ordering::Relaxed), 2);
}

#[test]
fn a_busy_machine_sheds() {
    let mut bench = Bench::new(settings());
    for _ in 0..20 {
        assert_eq!(bench.quarter(0, 0, 89), None);
    }
    let (_, reason, text) = bench.until(0, 0, 100);
    assert_eq!(reason, Some(Reason::Load));
    assert!(text.contains("the CPUs were busy for 9"), "{text}");
    assert_eq!(bench.until(0, 0, 40).1, None);
}

#[test]
fn an_allowance_that_rises_sheds_within_a_second_and_one_that_stands_does_not() {
    for name in ALLOWANCES {
        let mut bench = Bench::new(settings());
        bench.set("eth0", name, 1234);
        bench.set("eth0", "tx_timeout", 5);
        for quarter in 0..20 {
            bench.set("eth0", "tx_timeout", quarter);
            assert_eq!(bench.quarter(0, 0, 0), None, "what it was before the start");
        }
        bench.set("eth0", name, 1235);
        let (quarters, reason, text) = bench.until(0, 0, 0);
        assert!(quarters <= 4, "{quarters}");
        assert_eq!(reason, Some(Reason::Allowance));
        assert!(text.contains(&format!("{name} of eth0")), "{text}");
        // As long as it rises nothing goes.
        for quarter in 0..40 {
            bench.set("eth0", name, 1236 + quarter);
            assert_eq!(bench.quarter(0, 0, 0), None);
        }
        let (quarters, reason, _) = bench.until(0, 0, 0);
        assert!((20..=25).contains(&quarters), "{quarters}");
        assert_eq!(reason, None);
        // A driver that was loaded anew.
        bench.set("eth0", name, 0);
        assert_eq!(bench.quarter(0, 0, 0), None);
        let asked = bench.host.borrow().asked.clone();
        let of = |device: &str| asked.iter().filter(|asked| *asked == device).count();
        assert!(of("eth0") > 15);
        assert_eq!(of("eth1"), 1, "a driver without them is asked once");
    }
}

#[test]
fn allowances_can_be_left_alone() {
    let mut bench = Bench::new(Breaker {
        allowances: false,
        ..settings()
    });
    for value in 0..10 {
        bench.set("eth0", ALLOWANCES[0], value);
        assert_eq!(bench.quarter(0, 0, 0), None);
    }
    assert!(bench.host.borrow().asked.is_empty());
}
