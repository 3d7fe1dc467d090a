//! Our own copies are never copied again: the target behind the tapped interface itself, behind a
//! tunnel that leaves by it, and on another host that mirrors back to us. Everything else that goes
//! to the collector stays visible.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/guard_lab.rs"]
mod guard_lab;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/packets.rs"]
mod packets;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use common::netns::{self, Namespace};
use common::raw_socket::{self, Captured, RawSocket};
use copies::{assert_one_each, Copy};
use guard_lab::{answer_without_limit, Routed, COLLECTOR, HOST, ROUTER};
use mirror::{source, target, Mirror};

const NUMBERS: u32 = 200;
const SSH_LIKE: u16 = 2222;

/// A conversation of the host with the collector that is none of xtee's.
fn talk(host: &Namespace, collector: &Namespace) {
    let listener = {
        let _there = collector.enter();
        TcpListener::bind((COLLECTOR, SSH_LIKE)).expect("listen")
    };
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut question = [0; 8];
        stream.read_exact(&mut question).expect("question");
        stream.write_all(b"answered").expect("answer");
    });
    let mut stream = {
        let _there = host.enter();
        TcpStream::connect((COLLECTOR, SSH_LIKE)).expect("connect")
    };
    stream.write_all(b"question").expect("question");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("answer");
    drop(stream);
    server.join().expect("server");
}

fn is_ssh_like(frame: &[u8]) -> bool {
    let port = SSH_LIKE.to_be_bytes();
    copies::ipv4_in(frame).is_some_and(|(protocol, _, _, segment)| {
        protocol == 6 && (segment[..2] == port || segment[2..4] == port)
    })
}

/// Frames that are like ours but for the tunnel's identifier, out of the host.
fn send_foreign_tunnels(host: &Namespace) {
    let socket = RawSocket::open(host, "eth0");
    let inner = packets::tcp4("203.0.113.77", 1, "203.0.113.78", 2);
    let mut vxlan = packets::V4::new(HOST, COLLECTOR, packets::UDP)
        .frame(&packets::vxlan(61001, 4789, 8, &inner));
    let mut gre =
        packets::V4::new(HOST, COLLECTOR, 47).frame(&packets::gre(0x2000, 0x6558, &[8], &inner));
    for frame in [&mut vxlan, &mut gre] {
        frame[..6].copy_from_slice(&guard_lab::ROUTER_MAC);
        frame[6..12].copy_from_slice(&guard_lab::HOST_MAC);
        socket.send(frame);
    }
}

/// Whatever the host and the collector say to each other is mirrored, our copies are not.
fn through_the_tapped_interface(url: &str, transmit: &str, ours: fn(&Copy) -> bool) {
    let lab = Routed::new();
    let (near, far) = (
        copies::sink(&lab.host, HOST),
        copies::sink(&lab.router, ROUTER),
    );
    let mirror = Mirror::start(
        &lab.host,
        &["tap:eth0", "--to", url, "--transmit", transmit],
    );
    let wire = RawSocket::open(&lab.router, "eth0").in_background();
    copies::send(&near, ROUTER, 0..NUMBERS, 100, Duration::ZERO);
    copies::send(&far, HOST, NUMBERS..2 * NUMBERS, 100, Duration::ZERO);
    talk(&lab.host, &lab.collector);
    send_foreign_tunnels(&lab.host);
    let status = mirror.assert_balanced();
    let frames = wire.stop();
    let finished = mirror.stop();
    finished.assert_clean();

    let came: Vec<Copy> = copies::copies(&frames).into_iter().filter(ours).collect();
    assert_one_each(&came, 0..2 * NUMBERS);
    let (source, target) = (source(&status), target(&status));
    assert_eq!(target.sent_packets, came.len() as u64, "{status}");
    assert_eq!(target.sent_packets, target.offered, "{status}");
    // AF_XDP leaves below the hook: there is nothing to leave alone.
    let seen_leaving = if transmit == "xsk" { 0 } else { came.len() };
    assert_eq!(source.own_copies, seen_leaving as u64, "{status}");
    assert_eq!(source.own_signatures, 0, "{status}");
    assert_eq!(status.breaker.times_opened, 0);

    let original = frames.iter().filter(|f| is_ssh_like(&f.bytes)).count();
    let copied = came.iter().filter(|copy| is_ssh_like(&copy.inner)).count();
    assert!(original >= 7, "{original} TCP packets");
    assert_eq!(copied, original, "TCP to the collector");
    let tunnels = came
        .iter()
        .filter_map(|copy| copies::open(&copy.inner, 0))
        .collect::<Vec<_>>();
    assert_eq!(tunnels.len(), 2, "{tunnels:?}");
    assert!(tunnels.iter().any(|copy| copy.is_vxlan(8)));
    assert!(tunnels.iter().any(|copy| copy.is_gre(8)));
}

#[test]
fn vxlan_by_udp_through_the_tapped_interface() {
    require_root!("ping");
    through_the_tapped_interface("vxlan://203.0.113.2?vni=7", "udp", |copy| copy.is_vxlan(7));
}

#[test]
fn gre_by_af_xdp_through_the_tapped_interface() {
    require_root!("ping");
    through_the_tapped_interface("gre://203.0.113.2?key=7", "xsk", |copy| copy.is_gre(7));
}

#[test]
fn gre_by_a_raw_socket_through_the_tapped_interface() {
    require_root!("ping");
    through_the_tapped_interface("gre://203.0.113.2?key=7", "raw", |copy| copy.is_gre(7));
}

/// ICMP errors among these frames.
fn errors_in(frames: &[Captured]) -> usize {
    let is_error = |frame: &&Captured| {
        copies::ipv4_in(&frame.bytes)
            .is_some_and(|(protocol, _, _, message)| protocol == 1 && message[0] == 3)
    };
    frames.iter().filter(is_error).count()
}

/// A passive sensor's kernel answers every copy with an error. None costs a copy; none is mirrored,
/// for its copy would be answered, too, and so on for ever.
fn the_collector_refuses_every_copy(url: &str, transmit: &str, ours: fn(&Copy) -> bool) {
    let lab = Routed::new();
    answer_without_limit(&lab.collector);
    let (near, far) = (
        copies::sink(&lab.host, HOST),
        copies::sink(&lab.router, ROUTER),
    );
    let mirror = Mirror::start(
        &lab.host,
        &["tap:eth0", "--to", url, "--transmit", transmit],
    );
    let wire = RawSocket::open(&lab.router, "eth0").in_background();
    copies::send(&near, ROUTER, 0..NUMBERS, 100, Duration::ZERO);
    copies::send(
        &far,
        HOST,
        NUMBERS..2 * NUMBERS,
        100,
        Duration::from_millis(1),
    );
    copies::send(&near, ROUTER, 2 * NUMBERS..6 * NUMBERS, 100, Duration::ZERO);
    let status = mirror.assert_balanced();
    let frames = wire.stop();
    mirror.stop().assert_clean();

    let came: Vec<Copy> = copies::copies(&frames).into_iter().filter(ours).collect();
    assert_one_each(&came, 0..6 * NUMBERS);
    let (source, target) = (source(&status), target(&status));
    let errors = errors_in(&frames);
    assert!(errors > came.len() / 2, "{errors} answers");
    assert_eq!(source.dropped["loop_breaker"], errors as u64, "{status}");
    assert_eq!(target.sent_packets, target.offered, "{status}");
    assert_eq!(target.sent_packets, came.len() as u64, "{status}");
    assert!(target.healthy);
    assert_eq!(source.own_signatures, 0, "{status}");
    assert_eq!(status.breaker.times_opened, 0);
}

#[test]
fn errors_of_a_passive_sensor_cost_no_vxlan_copy() {
    require_root!("ping");
    the_collector_refuses_every_copy("vxlan://203.0.113.2?vni=7", "udp", |copy| copy.is_vxlan(7));
}

#[test]
fn errors_of_a_passive_sensor_cost_no_gre_copy() {
    require_root!("ping");
    the_collector_refuses_every_copy("gre://203.0.113.2?key=7", "raw", |copy| copy.is_gre(7));
}
