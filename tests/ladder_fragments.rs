//! Copies in outer fragments: the collector's kernel and tshark both put the original together again. And a
//! span's frames that do not fit, where those that fit are sent in place.

#[macro_use]
mod common;
#[path = "common/ladder_lab.rs"]
mod ladder_lab;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/odd_frames.rs"]
mod odd_frames;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/production.rs"]
mod production;
#[path = "common/span_lab.rs"]
mod span_lab;
#[path = "common/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::netns::{run, wait_until};
use ladder_lab::{all_sent, narrow, start, PATIENCE};
use mirror::{source, target, Mirror, TestFolder};
use packets::V4;
use production::{Production, ETH, MIRROR, MONITOR};
use span_lab::{decapsulate, Feeder, Lab};
use wire::{checksum, with_transport_checksum, write_pcap, WireCapture};

const VXLAN_HEADER: usize = 8;
const COLLECTOR_V4: &str = "203.0.113.2";
const COLLECTOR_V6: &str = "2001:db8:f::2";

/// The collector by IPv6 too, and its neighbour known: what waits for a neighbour is lost without a count.
fn reachable(production: &Production) {
    let Production {
        instance,
        collector,
        ..
    } = production;
    collector.write_sysctl(&format!("net/ipv6/conf/{MONITOR}/disable_ipv6"), "0");
    for (namespace, device, address) in [
        (instance, MIRROR, "2001:db8:f::1/64"),
        (collector, MONITOR, "2001:db8:f::2/64"),
    ] {
        namespace.ip(&["address", "add", address, "dev", device, "nodad"]);
    }
    for address in [COLLECTOR_V4, COLLECTOR_V6] {
        let ping = ["-c", "1", "-W", "1", address];
        wait_until(address, PATIENCE, || {
            instance.output("ping", &ping).status.success()
        });
    }
}

/// A socket that holds all that a test sends, so that nobody has to hurry to read it.
fn patient_socket(production: &Production, address: &str) -> UdpSocket {
    let socket = production::bind(&production.collector, address, 4789);
    let size: libc::c_int = 64 << 20;
    // SAFETY: the value is a c_int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&size).cast(),
            std::mem::size_of::<libc::c_int>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    socket
}

/// Reads the datagrams that the collector's kernel has put together, until there are `count` and none more:
/// the inner frames.
fn datagrams(socket: &UdpSocket, count: u64) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let mut found = Vec::new();
    loop {
        let missing = (found.len() as u64) < count;
        let limit = Duration::from_millis(if missing { 5000 } else { 100 });
        socket.set_read_timeout(Some(limit)).unwrap();
        match socket.recv(&mut buffer) {
            Ok(length) => found.push(buffer[VXLAN_HEADER..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The inner frames as tshark has them, which puts outer fragments together and verifies the UDP checksum; with
/// IPv6 there must be one (RFC 8200 section 8.1).
fn by_tshark(capture: &Path, checksums: bool) -> Vec<Vec<u8>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(capture);
    for option in [
        "ip.defragment:TRUE",
        "ipv6.defragment:TRUE",
        "udp.check_checksum:TRUE",
    ] {
        command.args(["-o", option]);
    }
    // The payload as it is.
    command.args(["-d", "udp.port==4789,data", "-Y", "udp.dstport==4789"]);
    command.args([
        "-T",
        "fields",
        "-e",
        "udp.checksum.status",
        "-e",
        "data.data",
    ]);
    run(&mut command)
        .lines()
        .map(|line| {
            let (status, hex) = line.split_once('\t').expect("two fields");
            assert!(status == "1" || (!checksums && status != "0"), "{line}");
            let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
            let payload = hex.chunks(2).map(|digits| {
                let text = std::str::from_utf8(digits).expect("ASCII");
                u8::from_str_radix(text, 16).expect("hexadecimal")
            });
            payload.skip(VXLAN_HEADER).collect()
        })
        .collect()
}

fn in_order_of_bytes(mut frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.sort();
    frames
}

fn fragmented(address: &str, transmit: &str) {
    // Every packet is the test's: a report of the kernel's own (MLD) could come when the counters were read.
    let production = narrow().silent();
    reachable(&production);
    let folder = TestFolder::new();
    let socket = patient_socket(&production, address);
    let arrived = WireCapture::incoming(&production.collector, MONITOR);
    let originals = WireCapture::start(&production.client, ETH);
    let host = match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    };
    let url = format!("vxlan://{host}?vni=7&limit=none&oversize=fragment");
    let mirror = start(&production, &url, transmit);
    production.http(folder.path(), "page.bin", b"", 100_000);
    let status = mirror.settled();
    println!("{status}");
    let sender = all_sent(&status);
    assert!(sender.fragmented >= 60, "{status}");
    assert_eq!(sender.pieces, 2 * sender.fragmented, "{status}");
    assert_eq!(sender.resegmented, 0, "{status}");
    let finished = mirror.stop();
    finished.assert_clean();

    let sent = finished.final_number("sent");
    let found = datagrams(&socket, sent);
    let kernel = production
        .collector
        .run("grep", &["-E", "^(Ip|Udp)", "/proc/net/snmp"]);
    assert_eq!(found.len() as u64, sent, "{kernel}");
    let originals = originals.stop();
    let originals = originals.iter().flat_map(|seen| seen.packets()).collect();
    let originals = in_order_of_bytes(originals);
    let same = in_order_of_bytes(found) == originals;
    assert!(same, "the kernel's datagrams are not the originals");

    let arrived: Vec<_> = arrived
        .stop()
        .iter()
        .flat_map(|seen| seen.packets())
        .collect();
    assert!(arrived.iter().all(|frame| frame.len() <= 14 + 1500));
    let capture = folder.file("fragments.pcap");
    write_pcap(&capture, arrived.iter().map(Vec::as_slice));
    let found = by_tshark(&capture, address.contains(':'));
    assert_eq!(found.len() as u64, sent);
    let same = in_order_of_bytes(found) == originals;
    assert!(same, "what tshark put together is not the originals");
}

macro_rules! require_programs {
    () => {
        require_root!("curl", "python3", "taskset", "ss", "ping", "tshark");
    };
}

#[test]
fn fragments_by_udp_become_the_original_again() {
    require_programs!();
    fragmented(COLLECTOR_V4, "udp");
}

#[test]
fn fragments_beside_af_xdp_become_the_original_again() {
    require_programs!();
    fragmented(COLLECTOR_V4, "xsk");
}

#[test]
fn fragments_over_ipv6_become_the_original_again() {
    require_programs!();
    fragmented(COLLECTOR_V6, "udp");
}

/// Frames of a span, of three kinds in turn: one that fits, TCP and UDP that do not.
const ROUNDS: u32 = 20;
const PAYLOAD: usize = 1400;

fn payload(number: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..PAYLOAD).map(|at| (at * 7 + at / 251) as u8).collect();
    bytes[PAYLOAD - 4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn frame(protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut frame = V4::new("198.51.100.7", "198.51.100.8", protocol).frame(segment);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    with_transport_checksum(frame)
}

fn small(number: u32) -> Vec<u8> {
    frame(
        17,
        &packets::udp(5001, 5002, &payload(number)[PAYLOAD - 100..]),
    )
}

fn long_udp(number: u32) -> Vec<u8> {
    frame(17, &packets::udp(5003, 5004, &payload(number)))
}

fn long_tcp(number: u32) -> Vec<u8> {
    let mut segment = packets::tcp(5005, 5006, &payload(number));
    segment[4..8].copy_from_slice(&(number * PAYLOAD as u32).to_be_bytes());
    frame(6, &segment)
}

/// What came to the collector: whole packets' inner frames, and fragments (offset, bytes) by number.
type Arrived = (Vec<Vec<u8>>, BTreeMap<u16, BTreeMap<usize, Vec<u8>>>);

fn sorted_out(capture: WireCapture) -> Arrived {
    let mut arrived = Arrived::default();
    for seen in capture.stop() {
        let frame = seen.packets().swap_remove(0);
        if frame[12..14] != [8, 0] || frame[23] != 47 {
            continue;
        }
        assert!(frame.len() <= 14 + 1000, "{} bytes", frame.len());
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        if word(20) & 0x3fff == 0 {
            let copy = decapsulate(&frame).expect("a copy");
            arrived.0.push(copy.inner);
        } else {
            assert_eq!(checksum(&frame[14..34]), 0);
            let fragments = arrived.1.entry(word(18)).or_default();
            let offset = usize::from(word(20) & 0x1fff) * 8;
            fragments.insert(offset, frame[34..14 + usize::from(word(16))].to_vec());
        }
    }
    arrived
}

#[test]
fn a_span_cuts_what_does_not_fit_between_what_it_sends_in_place() {
    require_root!();
    let lab = Lab::new(1, 1);
    let arrived = WireCapture::incoming(&lab.collector, "mon0");
    let mirror = Mirror::start_config(
        &lab.appliance,
        "default_action = \"mirror\"\n\
         [[source]]\nkind = \"span\"\ninterface = \"span0\"\nmode = \"native\"\nworkers = 1\n\
         [[target]]\nurl = \"gre://203.0.113.2?key=7&mtu=1000&limit=none\"\ntransmit = \"xsk\"\n",
    );
    mirror.wait_for("a path to the collector", |status| target(status).healthy);
    let mut feeder = Feeder::new(&lab.feeder, "feed0", 1);
    for number in 0..ROUNDS {
        for frame in [small(number), long_tcp(number), long_udp(number)] {
            feeder.send(0, &frame);
        }
    }
    let rounds = u64::from(ROUNDS);
    mirror.wait_for("all frames", |status| source(status).captured == 3 * rounds);
    let status = mirror.assert_balanced();
    println!("{status}");
    let sender = all_sent(&status);
    assert_eq!(sender.offered, 3 * rounds, "{status}");
    assert_eq!(
        (sender.resegmented, sender.fragmented, sender.pieces),
        (rounds, rounds, 4 * rounds),
        "{status}"
    );
    wait_until("the last copy", PATIENCE, || arrived.count() >= 5 * rounds);
    mirror.stop().assert_clean();

    let (whole, fragments) = sorted_out(arrived);
    assert_eq!(whole.len() as u64, 3 * rounds);
    let mut streamed: Vec<u8> = Vec::new();
    let mut order = Vec::new();
    for inner in &whole {
        if inner[23] == 17 {
            let number = u32::from_be_bytes(inner[inner.len() - 4..].try_into().unwrap());
            assert!(*inner == small(number), "a frame sent in place differs");
            order.push(2 * number);
            continue;
        }
        let (_, sequence, _, payload) = ladder_lab::tcp(inner).expect("TCP");
        assert_eq!(checksum(&inner[14..34]), 0, "inner IPv4 checksum");
        assert!(
            *inner == with_transport_checksum(inner.clone()),
            "TCP checksum"
        );
        assert_eq!(sequence as usize, streamed.len(), "out of order");
        streamed.extend(payload);
        order.push(2 * (sequence / PAYLOAD as u32) + 1);
    }
    assert!(order.is_sorted(), "{order:?}");
    let wanted: Vec<u8> = (0..ROUNDS).flat_map(payload).collect();
    assert!(streamed == wanted, "the stream differs");

    // Key and no sequence number: 8 bytes of GRE.
    let whole = fragments.into_values().map(|fragments| {
        let mut whole = Vec::new();
        for (offset, bytes) in fragments {
            assert_eq!(offset, whole.len());
            whole.extend(bytes);
        }
        assert_eq!(whole[..8], [0x20, 0, 0x65, 0x58, 0, 0, 0, 7]);
        whole.split_off(8)
    });
    let wanted = (0..ROUNDS).map(long_udp).collect();
    assert!(in_order_of_bytes(whole.collect()) == in_order_of_bytes(wanted));
}
