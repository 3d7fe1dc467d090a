//! A target that is given by name follows it while the mirror runs: no copy is lost or doubled, the loop guard
//! holds, and the balance is exact. And `source` and `dev` choose among routing tables and interfaces.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/guard_lab.rs"]
mod guard_lab;
#[path = "common/mirror.rs"]
mod mirror;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::netns::{self, veth, Namespace, VethEnd};
use common::raw_socket::{self, RawSocket};
use copies::{assert_one_each, number_in, Copy};
use guard_lab::{Routed, COLLECTOR, HOST, ROUTER};
use mirror::{source, target, Mirror};

const NAME: &str = "sensor.example.net";
const SECOND: &str = "203.0.113.3";
/// Sent while the name gets another address, and after the target has followed.
const MOVING: u32 = 2000;
const MOVED: u32 = 200;

/// `/etc/hosts` as programs in a namespace see it (ip-netns(8)); removed on drop.
struct Hosts {
    folder: PathBuf,
}

impl Hosts {
    fn new(namespace: &Namespace, address: &str) -> Hosts {
        let folder = PathBuf::from("/etc/netns").join(namespace.name());
        fs::create_dir_all(&folder).expect("a folder for the namespace's files");
        let hosts = Hosts { folder };
        hosts.set(address);
        // No server is asked: there is none in a namespace.
        fs::write(hosts.folder.join("nsswitch.conf"), "hosts: files\n").expect("write");
        hosts
    }

    /// In place: the file is bound over the other one, and a new one would not be.
    fn set(&self, address: &str) {
        let text = format!("127.0.0.1 localhost\n{address} {NAME}\n");
        fs::write(self.folder.join("hosts"), text).expect("write");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
        // Somebody else's files stay.
        let _ = fs::remove_dir("/etc/netns");
    }
}

/// The collector has another address while traffic runs, through the tapped interface itself.
fn the_name_moves(url: &str, transmit: &str, ours: fn(&Copy) -> bool) {
    let lab = Routed::new();
    lab.collector.address("mon0", "203.0.113.3/24");
    lab.host.run("ping", &["-c", "1", "-W", "5", SECOND]);
    let hosts = Hosts::new(&lab.host, COLLECTOR);
    let near = copies::sink(&lab.host, HOST);
    let _far = copies::sink(&lab.router, ROUTER);
    let mirror = Mirror::start(
        &lab.host,
        &["tap:eth0", "--to", url, "--transmit", transmit],
    );
    assert_eq!(target(&mirror.status()).address, COLLECTOR);
    let wire = RawSocket::open(&lab.router, "eth0").in_background();
    let gap = Duration::from_millis(1);
    std::thread::scope(|scope| {
        scope.spawn(|| copies::send(&near, ROUTER, 0..MOVING, 100, gap));
        mirror.wait_for("copies to the first address", |status| {
            target(status).sent_packets > 20
        });
        hosts.set(SECOND);
        mirror.wait_for("the second address", |status| {
            target(status).address == SECOND
        });
    });
    // The sockets follow within a round of control; what is sent from now on has to find them so.
    std::thread::sleep(Duration::from_millis(500));
    copies::send(&near, ROUTER, MOVING..MOVING + MOVED, 100, Duration::ZERO);
    let status = mirror.assert_balanced();
    let frames = wire.stop();
    let log = mirror.stderr();
    mirror.stop().assert_clean();

    let came: Vec<Copy> = copies::copies(&frames).into_iter().filter(ours).collect();
    // No copy is missing, and none is a copy of a copy.
    assert_one_each(&came, 0..MOVING + MOVED);
    assert_eq!(came.len(), (MOVING + MOVED) as usize);
    let numbers_to = |address: &str| -> Vec<u32> {
        came.iter()
            .filter(|copy| copy.destination.to_string() == address)
            .map(|copy| number_in(&copy.inner).expect("a number"))
            .collect()
    };
    let (first, second) = (numbers_to(COLLECTOR), numbers_to(SECOND));
    assert_eq!(first.len() + second.len(), came.len());
    assert!(first.contains(&0), "it began with the first address");
    for number in MOVING..MOVING + MOVED {
        assert!(second.contains(&number), "{number} went to the old address");
    }
    let (source, target) = (source(&status), target(&status));
    assert_eq!(target.sent_packets, came.len() as u64, "{status}");
    assert_eq!(target.offered, target.sent_packets, "{status}");
    let passed = if transmit == "xsk" { 0 } else { came.len() };
    assert_eq!(source.own_copies, passed as u64, "{status}");
    assert_eq!(source.own_signatures, 0, "{status}");
    // The collector's kernel listens to no tunnel: its errors are not copied either.
    let errors = frames.iter().filter(|frame| {
        copies::ipv4_in(&frame.bytes)
            .is_some_and(|(protocol, _, _, message)| protocol == 1 && message[0] == 3)
    });
    let errors = errors.count() as u64;
    assert_eq!(source.dropped["loop_breaker"], errors, "{status}");
    assert_eq!(status.breaker.times_opened, 0, "{status}");
    let told = log
        .lines()
        .filter(|line| line.contains("copies go there"))
        .count();
    assert_eq!(told, 1, "{log}");
}

#[test]
fn vxlan_by_udp_follows_its_name() {
    require_root!("ping");
    let url = format!("vxlan://{NAME}?vni=7");
    the_name_moves(&url, "udp", |copy| copy.is_vxlan(7));
}

#[test]
fn gre_by_af_xdp_follows_its_name() {
    require_root!("ping");
    let url = format!("gre://{NAME}?key=7");
    the_name_moves(&url, "xsk", |copy| copy.is_gre(7));
}

#[test]
fn gre_by_a_raw_socket_follows_its_name() {
    require_root!("ping");
    let url = format!("gre://{NAME}?key=7");
    the_name_moves(&url, "raw", |copy| copy.is_gre(7));
}

/// A name that cannot be resolved any more keeps its address; that is said once, and its end.
#[test]
fn a_name_that_is_lost_keeps_its_address() {
    require_root!("ping");
    let lab = Routed::new();
    let hosts = Hosts::new(&lab.host, COLLECTOR);
    let url = format!("vxlan://{NAME}?vni=7");
    let mirror = Mirror::start(&lab.host, &["tap:eth0", "--to", &url]);
    let said = |words: &str| mirror.stderr().matches(words).count();
    fs::write(hosts.folder.join("hosts"), "127.0.0.1 localhost\n").expect("write");
    mirror.wait_for("the loss", |_| said("is not resolved") == 1);
    assert_eq!(target(&mirror.status()).address, COLLECTOR);
    hosts.set("2001:db8::3");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(said("is not resolved"), 1, "once");
    assert_eq!(target(&mirror.status()).address, COLLECTOR);
    hosts.set(COLLECTOR);
    mirror.wait_for("the return", |_| said("is resolved again") == 1);
    assert_eq!(said("is not resolved"), 1, "once");
    assert_eq!(said("copies go there"), 0);
    mirror.stop().assert_clean();
}

/// The main table leads to the collector by mir0; a table for packets from mir1's address, or by mir1, by mir1.
#[test]
fn source_and_dev_choose_another_table_and_interface() {
    require_root!("ping");
    let (host, client) = (Namespace::new(), Namespace::new());
    veth(
        &VethEnd::new(&client, "eth0").address("198.51.100.33/30"),
        &VethEnd::new(&host, "eth0").address("198.51.100.34/30"),
    );
    let collectors: Vec<Namespace> = (0..2)
        .map(|number| {
            let collector = Namespace::new();
            let (near, far) = (4 * number + 2, 4 * number + 1);
            veth(
                &VethEnd::new(&host, &format!("mir{number}"))
                    .mtu(1600)
                    .address(&format!("198.51.100.{near}/30")),
                &VethEnd::new(&collector, "mon0")
                    .mtu(1600)
                    .address(&format!("198.51.100.{far}/30")),
            );
            collector.address("lo", "203.0.113.2/32");
            collector
        })
        .collect();
    host.ip(&["route", "add", COLLECTOR, "via", "198.51.100.1"]);
    host.ip(&[
        "route",
        "add",
        COLLECTOR,
        "via",
        "198.51.100.5",
        "table",
        "100",
    ]);
    host.ip(&["rule", "add", "from", "198.51.100.6", "lookup", "100"]);
    host.ip(&["rule", "add", "oif", "mir1", "lookup", "100"]);
    for gateway in ["198.51.100.1", "198.51.100.5"] {
        host.run("ping", &["-c", "1", "-W", "5", gateway]);
    }
    let from = copies::sink(&client, "198.51.100.33");
    let _to = copies::sink(&host, "198.51.100.34");
    let url = "vxlan://203.0.113.2?vni=7";
    let choices: [(&[&str], usize, &str); 3] = [
        (&[], 0, "198.51.100.2"),
        (&["source=198.51.100.6"], 1, "198.51.100.6"),
        (&["dev=mir1"], 1, "198.51.100.6"),
    ];
    for transmit in ["udp", "xsk"] {
        for (parameters, wanted, address) in &choices {
            let to = parameters.iter().fold(url.to_owned(), |url, parameter| {
                format!("{url}&{parameter}")
            });
            let mirror = Mirror::start(&host, &["tap:eth0", "--to", &to, "--transmit", transmit]);
            let watches: Vec<_> = collectors
                .iter()
                .map(|collector| RawSocket::open(collector, "mon0").in_background())
                .collect();
            copies::send(&from, "198.51.100.34", 0..50, 100, Duration::ZERO);
            let status = mirror.assert_balanced();
            mirror.stop().assert_clean();
            assert_eq!(target(&status).sent_packets, target(&status).offered);
            for (number, watch) in watches.into_iter().enumerate() {
                let came = copies::copies(&watch.stop());
                if number != *wanted {
                    assert!(came.is_empty(), "{to} by {transmit}: by mir{number}");
                    continue;
                }
                assert_one_each(&came, 0..50);
                for copy in &came {
                    assert_eq!(copy.source.to_string(), *address, "{to} by {transmit}");
                }
            }
        }
    }
}
