//! A rule on a firewall mark: nftables marks what leaves, and both directions of the flow are copied.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/learned_marks.rs"]
mod learned_marks;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/tapped_lab.rs"]
mod tapped_lab;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::netns::{self, Namespace};
use common::raw_socket::{self, Captured, RawSocket};
use mirror::{source, Mirror};
use tapped_lab::{Tapped, CLIENT, INSTANCE, TARGET};

const RULE: [&str; 2] = ["--mark", "0x1/0xff"];

/// Marks what leaves the instance and fits `what`.
fn mark(instance: &Namespace, what: &str, mark: u32) {
    instance.run(
        "nft",
        &[&format!(
            "add table ip marks; \
             add chain ip marks out {{ type filter hook output priority 0; }}; \
             add rule ip marks out {what} meta mark set {mark}"
        )],
    );
}

fn start(lab: &Tapped) -> Mirror {
    Mirror::start(
        &lab.instance,
        &["tap:eth0", "--to", TARGET, RULE[0], RULE[1]],
    )
}

/// A short TCP conversation.
fn talk(server: (&Namespace, &str), client: &Namespace, port: u16) {
    let listener = {
        let _there = server.0.enter();
        TcpListener::bind((server.1, port)).expect("listen")
    };
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut question = [0; 8];
        stream.read_exact(&mut question).expect("question");
        stream.write_all(b"answered").expect("answer");
        // Until the client has closed: the server's last packets are part of the conversation.
        let _ = stream.read(&mut question);
    });
    let mut stream = {
        let _there = client.enter();
        TcpStream::connect((server.1, port)).expect("connect")
    };
    stream.write_all(b"question").expect("question");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("answer");
    drop(stream);
    thread.join().expect("server");
}

/// TCP segments of a port, as frames.
fn segments(frames: impl IntoIterator<Item = Vec<u8>>, port: u16) -> Vec<Vec<u8>> {
    let port = port.to_be_bytes();
    let of_port = |frame: &Vec<u8>| {
        copies::ipv4_in(frame).is_some_and(|(protocol, _, _, segment)| {
            protocol == 6 && (segment[..2] == port || segment[2..4] == port)
        })
    };
    frames.into_iter().filter(of_port).collect()
}

fn bytes_of(frames: Vec<Captured>) -> Vec<Vec<u8>> {
    frames.into_iter().map(|frame| frame.bytes).collect()
}

/// What arrived at the collector, each copy's inner frame.
fn copied(monitor: &RawSocket) -> Vec<Vec<u8>> {
    let frames = monitor.until_idle(Duration::from_millis(20), Duration::from_secs(1));
    let copies = copies::copies(&frames);
    copies.into_iter().map(|copy| copy.inner).collect()
}

/// SYN without ACK.
fn is_opening(frame: &[u8]) -> bool {
    frame[14 + 20 + 13] & 0x12 == 0x02
}

/// Sequence number, acknowledgement, flags and length: what tells segments apart. Checksums of local
/// traffic are finished in the copy only.
fn identity(frame: &[u8]) -> Vec<u8> {
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let tcp = &frame[34..14 + total];
    [&frame[26..34], &tcp[..16], &tcp[20..]].concat()
}

fn sorted(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut identities: Vec<_> = frames.iter().map(|frame| identity(frame)).collect();
    identities.sort();
    identities
}

#[test]
fn a_flow_marked_on_output_is_copied_in_both_directions() {
    require_root!("nft");
    let lab = Tapped::new();
    mark(&lab.instance, "tcp dport 8080", 1);
    mark(&lab.instance, "tcp dport 8082", 2);
    let mirror = start(&lab);
    let monitor = lab.monitor();
    let wire = RawSocket::open(&lab.client, "eth0").in_background();
    for port in [8080, 8081, 8082] {
        talk((&lab.client, CLIENT), &lab.instance, port);
    }
    let status = mirror.assert_balanced();
    let wire = bytes_of(wire.stop());
    mirror.stop().assert_clean();

    let copied = copied(&monitor);
    let originals = segments(wire.iter().cloned(), 8080);
    assert!(originals.len() >= 7, "{} segments", originals.len());
    // The first packet of all leaves with the mark, so nothing is missing.
    assert_eq!(sorted(&copied), sorted(&originals));
    assert_eq!(source(&status).matched, originals.len() as u64, "{status}");
    assert!(!segments(wire, 8081).is_empty());
}

#[test]
fn a_servers_flow_is_copied_from_its_first_answer_on() {
    require_root!("nft");
    let lab = Tapped::new();
    mark(&lab.instance, "tcp sport 8080", 1);
    let mirror = start(&lab);
    let monitor = lab.monitor();
    let wire = RawSocket::open(&lab.client, "eth0").in_background();
    for port in [8080, 8081] {
        talk((&lab.instance, INSTANCE), &lab.client, port);
    }
    mirror.assert_balanced();
    let wire = bytes_of(wire.stop());
    mirror.stop().assert_clean();

    let (opening, rest): (Vec<_>, Vec<_>) = segments(wire, 8080)
        .into_iter()
        .partition(|frame| is_opening(frame));
    assert_eq!(opening.len(), 1);
    assert_eq!(sorted(&copied(&monitor)), sorted(&rest));
}

fn bound(namespace: &Namespace, address: &str, port: u16) -> UdpSocket {
    let _there = namespace.enter();
    UdpSocket::bind((address, port)).expect("bind")
}

fn say(from: &UdpSocket, to: (&str, u16), number: u32) {
    let address = format!("{}:{}", to.0, to.1);
    copies::send(from, &address, number..number + 1, 100, Duration::ZERO);
}

fn numbers(frames: &[Vec<u8>]) -> Vec<u32> {
    let mut numbers: Vec<u32> = frames
        .iter()
        .filter_map(|frame| copies::number_in(frame))
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn the_mask_says_which_bits_count() {
    require_root!("nft");
    let marks = [0x1, 0x101, 0xffff_ff01, 0x2, 0x11, 0x100, 0x0];
    let lab = Tapped::new();
    let port_of = |index: usize| 9000 + index as u16;
    for (index, value) in marks.iter().enumerate() {
        mark(
            &lab.instance,
            &format!("udp dport {}", port_of(index)),
            *value,
        );
    }
    let mirror = start(&lab);
    let monitor = lab.monitor();
    let instance = bound(&lab.instance, INSTANCE, copies::PORT);
    let mut wanted = Vec::new();
    for (index, value) in marks.iter().enumerate() {
        let client = bound(&lab.client, CLIENT, port_of(index));
        let number = 10 * index as u32;
        say(&instance, (CLIENT, port_of(index)), number);
        say(&client, (INSTANCE, copies::PORT), number + 1);
        if value & 0xff == 1 {
            wanted.extend([number, number + 1]);
        }
    }
    mirror.assert_balanced();
    mirror.stop().assert_clean();
    assert_eq!(numbers(&copied(&monitor)), wanted);
}

/// Ports are used again, by a flow that nobody marks: what was learned for the old one is good for five
/// minutes without a marked packet, no longer.
#[test]
fn a_learned_mark_is_forgotten() {
    require_root!("nft");
    let lab = Tapped::new();
    mark(&lab.instance, "udp dport 9000", 1);
    let mirror = start(&lab);
    let monitor = lab.monitor();
    let instance = bound(&lab.instance, INSTANCE, copies::PORT);
    let client = bound(&lab.client, CLIENT, 9000);
    let (there, back) = ((CLIENT, 9000), (INSTANCE, copies::PORT));
    say(&client, back, 0);
    say(&instance, there, 1);
    say(&client, back, 2);
    lab.instance
        .run("nft", &["flush", "chain", "ip", "marks", "out"]);
    // Unmarked now: only what was learned speaks for the flow, and it does for incoming packets.
    say(&instance, there, 3);
    say(&client, back, 4);
    mirror.settled();
    assert_eq!(learned_marks::age(mirror.pid(), 290), 1);
    say(&client, back, 5);
    mirror.settled();
    assert_eq!(learned_marks::age(mirror.pid(), 11), 1);
    say(&client, back, 6);
    say(&instance, there, 7);
    say(&client, back, 8);
    mirror.assert_balanced();
    mirror.stop().assert_clean();
    assert_eq!(numbers(&copied(&monitor)), [1, 2, 4, 5]);
}
