//! The harness of the root tests does what they rely on: separate networks, frames as they were on
//! the wire, and nothing left behind.

#[macro_use]
mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::netns::{veth, wait_until, Namespace, VethEnd};
use common::raw_socket::RawSocket;

const SECOND: Duration = Duration::from_secs(1);

fn own_namespace() -> u64 {
    fs::metadata("/proc/thread-self/ns/net")
        .expect("own namespace")
        .ino()
}

#[test]
fn a_thread_enters_and_comes_back() {
    require_root!();
    let outside = own_namespace();
    let namespace = Namespace::new();
    let guard = namespace.enter();
    assert_ne!(own_namespace(), outside);
    assert_eq!(
        own_namespace(),
        fs::metadata(namespace.path()).expect("namespace").ino()
    );
    drop(guard);
    assert_eq!(own_namespace(), outside);
}

#[test]
fn everything_is_removed_even_by_a_panic() {
    require_root!();
    let namespace = Namespace::new();
    let path = namespace.path();
    let sleeper = namespace.spawn("sleep", &["1000"]);
    let process = PathBuf::from(format!("/proc/{}", sleeper.pid()));
    assert!(path.exists() && process.exists());
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _both = (sleeper, namespace);
        panic!("on purpose");
    }));
    assert!(result.is_err());
    assert!(!path.exists() && !process.exists());
}

/// Sends `frame` into one end of a pair and returns what the other end sees.
fn across(frame: &[u8]) -> Vec<Vec<u8>> {
    let (one, other) = (Namespace::new(), Namespace::new());
    let mac = [2, 0, 0, 0, 0, 0x11];
    veth(
        &VethEnd::new(&one, "v0")
            .queues(2)
            .mtu(9000)
            .mac(mac)
            .address("198.51.100.1/24"),
        &VethEnd::new(&other, "v1")
            .queues(4)
            .mtu(9000)
            .address("198.51.100.2/24"),
    );
    one.offload("v0", &[("tx", false), ("tso", false)]);
    assert!(one
        .ip(&["link", "show", "v0"])
        .contains("02:00:00:00:00:11"));
    assert_eq!(
        other
            .run("ls", &["/sys/class/net/v1/queues"])
            .matches("rx-")
            .count(),
        4
    );
    let capture = RawSocket::open(&other, "v1").in_background();
    RawSocket::open(&one, "v0").send(frame);
    wait_until("the frame is counted", SECOND, || {
        other.counter("v1", "rx_packets") == 1
    });
    let frames = capture.stop();
    assert!(frames
        .iter()
        .all(|frame| frame.timestamp_ns > 1_600_000_000_000_000_000));
    frames
        .into_iter()
        .filter(|frame| !frame.outgoing)
        .map(|frame| frame.bytes)
        .collect()
}

#[test]
fn frames_arrive_as_they_were_sent() {
    require_root!();
    let mut frame = vec![0xa5; 9014];
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    assert_eq!(across(&frame), [frame]);
}

#[test]
fn vlan_tags_are_put_back() {
    require_root!();
    for protocol in [[0x81, 0x00], [0x88, 0xa8]] {
        let mut frame = vec![0x5a; 100];
        frame[12..18].copy_from_slice(&[protocol[0], protocol[1], 0x60, 0x07, 0x88, 0xb5]);
        assert_eq!(across(&frame), [frame]);
    }
}

#[test]
fn neighbours_reach_each_other() {
    require_root!("ping");
    let (one, other) = (Namespace::with_ipv6(), Namespace::with_ipv6());
    let mac = [2, 0, 0, 0, 0, 0x22];
    veth(
        &VethEnd::new(&one, "v0")
            .address("198.51.100.1/24")
            .address("2001:db8::1/64"),
        &VethEnd::new(&other, "v1")
            .mac(mac)
            .address("198.51.100.2/24")
            .address("2001:db8::2/64"),
    );
    one.neighbour("v0", "198.51.100.2", mac);
    one.run("ping", &["-c", "1", "-W", "5", "198.51.100.2"]);
    one.run("ping", &["-c", "1", "-W", "5", "2001:db8::2"]);
}

#[test]
fn namespaces_of_dead_processes_are_swept() {
    require_root!();
    // A pid that has just ended; it is not given out again for a long time.
    let mut child = std::process::Command::new("true").spawn().expect("true");
    child.wait().expect("end of a child");
    let name = format!("xtee-{}-0", child.id());
    common::netns::run(std::process::Command::new("ip").args(["netns", "add", &name]));
    // Not by the once-only sweep of this process: another test may have had it.
    common::netns::sweep();
    assert!(!Path::new("/run/netns").join(&name).exists());
}
