//! Beside somebody else's tc programs, which drop some packets and end the chain for all others: xtee
//! sees what it can, their verdicts stay as they were, they stay attached, and `xtee doctor` says what
//! is missed.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/tapped_lab.rs"]
mod tapped_lab;
#[path = "common/tc_program.rs"]
mod tc_program;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::Duration;

use common::netns::{self, wait_until, Namespace, VethEnd};
use common::raw_socket;
use mirror::{source, xtee_output, Mirror};
use tapped_lab::{Tapped, CLIENT, INSTANCE, TARGET};
use tc_program::{Place, Program, DROPPED_PORT, NEXT, PASS};

const NUMBERS: u32 = 20;

/// Numbers by what happens to them: passing in, dropped in, passing out, dropped out.
fn kind_of(number: u32) -> usize {
    (number / NUMBERS) as usize
}

/// How many of each kind were copied.
type Copied = [u32; 4];
const ALL: Copied = [NUMBERS; 4];
const NONE: Copied = [0; 4];
const WITHOUT_DROPPED: Copied = [NUMBERS, 0, NUMBERS, 0];

struct Sockets {
    client: UdpSocket,
    instance: UdpSocket,
    /// Where datagrams must not arrive.
    forbidden: [UdpSocket; 2],
}

impl Sockets {
    fn open(lab: &Tapped) -> Sockets {
        let on = |namespace: &Namespace, address: &str, port: u16| {
            let _there = namespace.enter();
            let socket = UdpSocket::bind((address, port)).expect("bind");
            socket.set_nonblocking(true).expect("nonblocking");
            socket
        };
        Sockets {
            client: on(&lab.client, CLIENT, copies::PORT),
            instance: on(&lab.instance, INSTANCE, copies::PORT),
            forbidden: [
                on(&lab.client, CLIENT, DROPPED_PORT),
                on(&lab.instance, INSTANCE, DROPPED_PORT),
            ],
        }
    }

    /// Sends numbers of all kinds, and asserts that those pass which are let pass, and no others.
    fn exchange(&self) {
        let (pass, dropped) = (copies::PORT, DROPPED_PORT);
        for (kind, (from, to, port)) in [
            (&self.client, INSTANCE, pass),
            (&self.client, INSTANCE, dropped),
            (&self.instance, CLIENT, pass),
            (&self.instance, CLIENT, dropped),
        ]
        .into_iter()
        .enumerate()
        {
            let first = kind as u32 * NUMBERS;
            let to = format!("{to}:{port}");
            copies::send(from, &to, first..first + NUMBERS, 100, Duration::ZERO);
        }
        for (socket, kind) in [(&self.instance, 0), (&self.client, 2)] {
            let mut arrived = BTreeSet::new();
            wait_until("what is let pass arrives", Duration::from_secs(5), || {
                arrived.extend(received(socket));
                arrived.len() as u32 >= NUMBERS
            });
            assert!(arrived.iter().all(|&number| kind_of(number) == kind));
        }
        for socket in &self.forbidden {
            assert!(received(socket).is_empty(), "a dropped datagram arrived");
        }
    }
}

fn received(socket: &UdpSocket) -> Vec<u32> {
    let mut buffer = [0; 2048];
    let mut numbers = Vec::new();
    while let Ok(length) = socket.recv(&mut buffer) {
        numbers.extend(copies::number_of(&buffer[..length]));
    }
    numbers
}

/// What `xtee doctor` says of the other's program: status and finding, ingress first.
fn diagnosis(instance: &Namespace) -> Vec<(String, String)> {
    let output = xtee_output(instance, &["doctor", "eth0", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report in JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter(|check| check["area"] == "eth0 hooks")
        .map(|check| (text(&check["status"]), text(&check["finding"])))
        .filter(|(_, finding)| finding.contains("somebody") || finding.contains("filter"))
        .collect()
}

/// How the other's program is attached.
#[derive(Clone, Copy, Debug)]
enum Way {
    Tcx { in_front: bool },
    Clsact { priority: u32 },
}

fn places(lab: &Tapped) -> [Place<'_>; 2] {
    [true, false].map(|ingress| Place {
        namespace: &lab.instance,
        interface: "eth0",
        ingress,
    })
}

fn attach(program: &Program, way: Way, lab: &Tapped) -> Vec<OwnedFd> {
    places(lab)
        .iter()
        .filter_map(|place| match way {
            Way::Tcx { in_front } => Some(program.attach_tcx(place, in_front)),
            Way::Clsact { priority } => {
                program.attach_clsact(place, priority);
                None
            }
        })
        .collect()
}

/// Whether the other's program is still where it was put, in both directions, and no other with it.
fn assert_alone(program: &Program, way: Way, lab: &Tapped) {
    for place in places(lab) {
        let filters = place.clsact_filters();
        assert!(!filters.contains("xtee"), "{filters}");
        match way {
            Way::Tcx { .. } => assert_eq!(place.tcx_programs(), [program.id()]),
            Way::Clsact { .. } => {
                assert!(place.tcx_programs().is_empty());
                assert!(
                    filters.contains(&format!("id {} ", program.id())),
                    "{filters}"
                );
            }
        }
    }
}

/// One order of events: xtee attached by `ours`, the other by `way`, before or after xtee, with
/// `verdict` for what it does not drop. `before` tells whether it then stands before xtee.
struct Order {
    ours: &'static str,
    way: Way,
    other_first: bool,
    verdict: i32,
    copied: Copied,
    before: bool,
}

fn check(order: &Order) {
    let Order { ours, way, .. } = *order;
    let lab = Tapped::new();
    let sockets = Sockets::open(&lab);
    let program = Program::load(order.verdict);
    let mut links = Vec::new();
    if order.other_first {
        links = attach(&program, way, &lab);
        sockets.exchange();
        for (status, finding) in diagnosis(&lab.instance) {
            assert_eq!(status, "ok", "xtee will go first: {finding}");
        }
    }
    let mirror = Mirror::start(
        &lab.instance,
        &["tap:eth0", "--to", TARGET, "--attach", ours],
    );
    if !order.other_first {
        links = attach(&program, way, &lab);
    }
    let monitor = lab.monitor();
    sockets.exchange();
    let status = mirror.assert_balanced();
    let wanted: u32 = order.copied.iter().sum();
    let frames = monitor.until_idle(Duration::from_millis(20), Duration::from_secs(1));
    let mut copied = NONE;
    for copy in copies::copies(&frames) {
        if let Some(number) = copies::number_in(&copy.inner) {
            copied[kind_of(number)] += 1;
        }
    }
    assert_eq!(copied, order.copied);
    assert_eq!(source(&status).seen, u64::from(wanted), "{status}");

    let found = diagnosis(&lab.instance);
    assert_eq!(found.len(), 2, "{found:?}");
    for ((status, finding), direction) in found.iter().zip(["incoming", "outgoing"]) {
        if order.before {
            assert_eq!(status, "warning", "{finding}");
            assert!(finding.contains("stands before xtee"), "{finding}");
            assert!(finding.contains("may end the chain"), "{finding}");
            assert!(finding.contains(direction), "{finding}");
        } else {
            assert_eq!(status, "ok", "{finding}");
            assert!(finding.contains("runs after xtee"), "{finding}");
        }
    }
    mirror.stop().assert_clean();
    assert_alone(&program, way, &lab);
    sockets.exchange();
    drop(links);
}

#[test]
fn by_tcx_xtee_goes_first_although_the_other_was_there_before() {
    require_root!("tc");
    check(&Order {
        ours: "tcx",
        way: Way::Tcx { in_front: true },
        other_first: true,
        verdict: PASS,
        copied: ALL,
        before: false,
    });
}

#[test]
fn by_tcx_another_that_puts_itself_in_front_later_ends_the_chain() {
    require_root!("tc");
    check(&Order {
        ours: "tcx",
        way: Way::Tcx { in_front: true },
        other_first: false,
        verdict: PASS,
        copied: NONE,
        before: true,
    });
}

#[test]
fn by_tcx_another_in_front_that_goes_on_hides_only_what_it_drops() {
    require_root!("tc");
    check(&Order {
        ours: "tcx",
        way: Way::Tcx { in_front: true },
        other_first: false,
        verdict: NEXT,
        copied: WITHOUT_DROPPED,
        before: true,
    });
}

#[test]
fn by_tcx_xtee_runs_before_every_clsact_filter() {
    require_root!("tc");
    for other_first in [true, false] {
        check(&Order {
            ours: "tcx",
            way: Way::Clsact { priority: 1 },
            other_first,
            verdict: PASS,
            copied: ALL,
            before: false,
        });
    }
}

#[test]
fn by_clsact_xtee_goes_before_filters_of_the_same_and_of_later_priorities() {
    require_root!("tc");
    for priority in [1, 50] {
        check(&Order {
            ours: "clsact",
            way: Way::Clsact { priority },
            other_first: true,
            verdict: PASS,
            copied: ALL,
            before: false,
        });
    }
}

#[test]
fn by_clsact_a_later_filter_of_the_same_priority_stands_before() {
    require_root!("tc");
    check(&Order {
        ours: "clsact",
        way: Way::Clsact { priority: 1 },
        other_first: false,
        verdict: PASS,
        copied: NONE,
        before: true,
    });
}

#[test]
fn by_clsact_every_tcx_program_stands_before() {
    require_root!("tc");
    check(&Order {
        ours: "clsact",
        way: Way::Tcx { in_front: false },
        other_first: false,
        verdict: PASS,
        copied: NONE,
        before: true,
    });
}

/// Filters that are no programs, with a priority: `tc … u32 …` sends what is to be dropped into a device
/// that leads nowhere.
fn add_u32_filters(lab: &Tapped, priority: &str) {
    netns::veth(
        &VethEnd::new(&lab.instance, "hole0"),
        &VethEnd::new(&lab.instance, "hole1"),
    );
    let add_clsact = ["qdisc", "add", "dev", "eth0", "clsact"];
    lab.instance.run("tc", &add_clsact);
    let port = DROPPED_PORT.to_string();
    for place in places(lab) {
        let mut arguments = vec!["filter", "add", "dev", "eth0", place.direction()];
        arguments.extend(["pref", priority, "protocol", "ip", "u32"]);
        arguments.extend(["match", "ip", "protocol", "17", "0xff"]);
        arguments.extend(["match", "ip", "dport", &port, "0xffff"]);
        arguments.extend(["action", "mirred", "egress", "redirect", "dev", "hole0"]);
        lab.instance.run("tc", &arguments);
    }
}

fn beside_u32(ours: &str, priority: &str) {
    let lab = Tapped::new();
    let sockets = Sockets::open(&lab);
    add_u32_filters(&lab, priority);
    let before: Vec<String> = places(&lab).iter().map(Place::clsact_filters).collect();
    let mirror = Mirror::start(
        &lab.instance,
        &["tap:eth0", "--to", TARGET, "--attach", ours],
    );
    sockets.exchange();
    let status = mirror.assert_balanced();
    assert_eq!(source(&status).seen, u64::from(4 * NUMBERS), "{status}");
    let found = diagnosis(&lab.instance);
    assert!(!found.is_empty());
    for (status, finding) in found {
        assert_eq!(status, "ok", "{finding}");
        assert!(finding.contains("runs after xtee"), "{finding}");
    }
    mirror.stop().assert_clean();
    sockets.exchange();
    let after: Vec<String> = places(&lab).iter().map(Place::clsact_filters).collect();
    // The counters in the output move, the filters do not.
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before.lines().count(), after.lines().count(), "{after}");
        assert!(after.contains("u32") && !after.contains("xtee"), "{after}");
    }
}

#[test]
fn filters_that_are_no_programs_run_after_xtee_by_tcx() {
    require_root!("tc");
    beside_u32("tcx", "1");
}

#[test]
fn filters_that_are_no_programs_run_after_xtee_by_clsact() {
    require_root!("tc");
    beside_u32("clsact", "10");
}

/// The first priority is taken by a filter of another kind: ours cannot stand before it, says so, and
/// leaves everything as it was.
#[test]
fn by_clsact_a_taken_first_priority_is_told() {
    require_root!("tc");
    let lab = Tapped::new();
    let sockets = Sockets::open(&lab);
    add_u32_filters(&lab, "1");
    for (status, finding) in diagnosis(&lab.instance) {
        assert_eq!(status, "ok", "by tcx it will be first: {finding}");
    }
    let output = xtee_output(
        &lab.instance,
        &["mirror", "tap:eth0", "--to", TARGET, "--attach", "clsact"],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("cannot attach to eth0 (clsact"), "{said}");
    assert!(said.contains("give it a pref above 1"), "{said}");
    assert_eq!(said.matches("os error").count(), 1, "{said}");
    assert!(!said.contains("libbpf"), "{said}");
    for place in places(&lab) {
        let filters = place.clsact_filters();
        assert!(
            filters.contains("u32") && !filters.contains("xtee"),
            "{filters}"
        );
    }
    sockets.exchange();
}
