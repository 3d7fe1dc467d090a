//! Slices end to end: headers only, a share of the flows, the beginning of flows. Production is as it was, and
//! every packet that was left out is counted.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/span_lab.rs"]
mod span_lab;
#[path = "common/tapped_lab.rs"]
mod tapped_lab;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{netns, raw_socket};
use copies::{copies, ipv4_in, udp_in, Copy};
use mirror::{source, Mirror};
use tapped_lab::{Tapped, CLIENT, INSTANCE, TARGET};

/// Copies that arrived at the collector, once it is quiet.
fn arrived(monitor: &raw_socket::RawSocket) -> Vec<Copy> {
    let frames = monitor.until_idle(Duration::from_millis(100), Duration::from_secs(20));
    assert_eq!(monitor.dropped(), 0, "the test's socket was too slow");
    copies(&frames)
}

/// The IPv4 total length of a frame, plus its Ethernet header: what it was on the wire.
fn wire_length(frame: &[u8]) -> usize {
    14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))
}

/// A download of `size` bytes from the instance, read whole by the client. Returns what was read.
fn download(lab: &Tapped, size: usize) -> Vec<u8> {
    let listener = {
        let _there = lab.instance.enter();
        TcpListener::bind(format!("{INSTANCE}:80")).expect("listen")
    };
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut request = [0; 512];
        let _ = stream.read(&mut request).expect("the request");
        let body: Vec<u8> = (0..size).map(|at| (at * 7) as u8).collect();
        let header = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(header.as_bytes()).expect("the header");
        stream.write_all(&body).expect("the body");
    });
    let mut stream = {
        let _here = lab.client.enter();
        TcpStream::connect(format!("{INSTANCE}:80")).expect("connect")
    };
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
        .expect("the request");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the response");
    server.join().expect("the server");
    all
}

#[test]
fn an_http_download_in_slices_of_128_bytes() {
    require_root!();
    const SIZE: usize = 1 << 20;
    let lab = Tapped::new();
    let mirror = Mirror::start(
        &lab.instance,
        &[
            "tap:eth0",
            "--to",
            TARGET,
            "--protocol",
            "tcp",
            "--snaplen",
            "128",
        ],
    );
    assert!(mirror
        .stdout()
        .contains("Suricata and Zeek drop truncated packets"));
    let monitor = lab.monitor();
    let read = download(&lab, SIZE);
    assert!(read.len() > SIZE, "production got it all");
    let status = mirror.assert_balanced();
    mirror.stop().assert_clean();
    let copies = arrived(&monitor);
    let source = source(&status);
    assert_eq!(
        source.captured,
        copies.len() as u64,
        "a snaplen changes no count"
    );
    assert_eq!(source.matched, source.captured, "{status}");
    let long = |copy: &&Copy| wire_length(&copy.inner) > 128;
    assert_eq!(source.sliced, copies.iter().filter(long).count() as u64);
    assert!(source.sliced as usize > SIZE / 1500, "{status}");

    // Each packet of the wire is there with the first bytes of its own payload, super-packets' packets too.
    let mut covered = 0;
    let mut first = None;
    for copy in &copies {
        let frame = &copy.inner;
        let on_wire = wire_length(frame);
        assert_eq!(frame.len(), on_wire.min(128).max(54.min(on_wire)));
        let (protocol, from, _) = (frame[23], &frame[26..30], &frame[30..34]);
        assert_eq!(protocol, 6);
        let header = 34 + usize::from(frame[46] >> 4) * 4;
        let length = on_wire - header;
        if from == [198, 51, 100, 2] && length > 0 {
            let sequence = u32::from_be_bytes(frame[38..42].try_into().expect("four bytes"));
            let start = *first.get_or_insert(sequence);
            let at = sequence.wrapping_sub(start) as usize;
            covered += length;
            let payload = &frame[header..];
            assert_eq!(payload, &read[at..at + payload.len()], "payload at {at}");
        }
    }
    assert!(covered >= read.len(), "{covered} of {} bytes", read.len());
}

#[test]
fn a_sample_of_256_flows_keeps_whole_flows() {
    require_root!();
    const FLOWS: u16 = 256;
    const EACH: u32 = 4;
    let lab = Tapped::new();
    let mirror = Mirror::start(
        &lab.instance,
        &[
            "tap:eth0",
            "--to",
            TARGET,
            "--protocol",
            "udp",
            "--sample",
            "1/4",
        ],
    );
    let monitor = lab.monitor();
    let bind = |namespace: &netns::Namespace, address: String| {
        let _there = namespace.enter();
        UdpSocket::bind(address).expect("bind")
    };
    let server = bind(&lab.instance, format!("{INSTANCE}:7000"));
    server
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a time-out");
    for flow in 0..FLOWS {
        let client = bind(&lab.client, format!("{CLIENT}:{}", 20000 + flow));
        for _ in 0..EACH {
            client
                .send_to(b"question", format!("{INSTANCE}:7000"))
                .expect("send");
            let (_, from) = server.recv_from(&mut [0; 64]).expect("a question");
            server.send_to(b"answer", from).expect("answer");
            client
                .recv_from(&mut [0; 64])
                .expect("an answer: production works");
        }
    }
    let status = mirror.assert_balanced();
    mirror.stop().assert_clean();
    let mut flows: BTreeMap<u16, [u32; 2]> = BTreeMap::new();
    for copy in arrived(&monitor) {
        let (from, to, _) = udp_in(&copy.inner).expect("UDP");
        let back = usize::from(from == 7000);
        flows.entry(if back == 1 { to } else { from }).or_default()[back] += 1;
    }
    for (flow, counts) in &flows {
        assert_eq!(*counts, [EACH, EACH], "flow {flow}: whole, both directions");
    }
    let source = source(&status);
    let kept = flows.len() as u64;
    assert!((32..=96).contains(&kept), "{kept} of {FLOWS} flows");
    let all = u64::from(FLOWS) * u64::from(EACH) * 2;
    let kept = kept * u64::from(EACH) * 2;
    assert_eq!(
        (source.captured, source.dropped["sampled"]),
        (kept, all - kept)
    );
    assert_eq!(source.rules_left_out, [all - kept]);
}

#[test]
fn an_elephant_is_cut_off() {
    require_root!("iperf3");
    const CUTOFF: u64 = 2_000_000;
    let lab = Tapped::new();
    let mirror = Mirror::start(
        &lab.instance,
        &[
            "tap:eth0",
            "--to",
            TARGET,
            "--protocol",
            "tcp",
            "--port",
            "5201",
            "--cutoff",
            "2MB",
        ],
    );
    let monitor = lab.monitor();
    let server = lab.instance.spawn("iperf3", &["-s", "-1", "-B", INSTANCE]);
    netns::wait_until("iperf3 listens", Duration::from_secs(10), || {
        lab.instance
            .run("ss", &["-Hltn", "sport", "=", ":5201"])
            .contains("5201")
    });
    lab.client
        .run("iperf3", &["-c", INSTANCE, "-n", "40M", "--cport", "40000"]);
    drop(server);
    let status = mirror.assert_balanced();
    mirror.stop().assert_clean();
    let copies = arrived(&monitor);
    let source = source(&status);
    assert_eq!(source.captured, copies.len() as u64);
    assert!(source.dropped["cutoff"] > 1000, "{status}");
    let mut streams: BTreeMap<(u16, u16), u64> = BTreeMap::new();
    for copy in &copies {
        let (_, _, _, segment) = ipv4_in(&copy.inner).expect("IPv4");
        let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        *streams.entry((port(0), port(2))).or_default() += copy.inner.len() as u64;
    }
    // The elephant has its bytes, and at most a super-packet more; copies repeat the headers of a super-packet's
    // packets, 66 bytes for 1448.
    let elephant = streams[&(40000, 5201)];
    let most = (CUTOFF + 65600) * 108 / 100;
    assert!((CUTOFF..=most).contains(&elephant), "{elephant} bytes");
    // The control connection is a flow of its own, and whole.
    assert!(
        streams.keys().filter(|(_, to)| *to == 5201).count() == 2,
        "{streams:?}"
    );
}

#[test]
fn a_span_in_slices_by_every_transmitter() {
    require_root!();
    const PACKETS: u32 = 50;
    for (target, room) in [
        ("vxlan://203.0.113.2?vni=7&transmit=udp", false),
        ("gre://203.0.113.2?key=7&transmit=xsk", true),
    ] {
        let lab = span_lab::Lab::new(1, 1);
        lab.resolve_span();
        let file = format!(
            "[[source]]\nkind = \"span\"\ninterface = \"span0\"\n\
             [[rule]]\naction = \"mirror\"\nprotocol = \"udp\"\nports = [7000]\nsnaplen = 96\n\
             [[rule]]\naction = \"mirror\"\nprotocol = \"udp\"\nports = [7001]\n\
             [[rule]]\naction = \"mirror\"\nprotocol = \"udp\"\nports = [7002]\nsample = \"1/65536\"\n\
             [[target]]\nurl = \"{target}\"\n"
        );
        let mirror = Mirror::start_config(&lab.appliance, &file);
        let collector = span_lab::Collector::new(&lab.collector, "mon0");
        let socket = {
            let _there = lab.feeder.enter();
            UdpSocket::bind("198.51.100.1:9000").expect("bind")
        };
        let payload: Vec<u8> = (0..1000u32).map(|at| at as u8).collect();
        for _ in 0..PACKETS {
            for port in [7000, 7001, 7002] {
                socket
                    .send_to(&payload, ("198.51.100.2", port))
                    .expect("send");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let status = mirror.assert_balanced();
        mirror.stop().assert_clean();
        let copies = collector.rest();
        let source = source(&status);
        assert_eq!(source.sliced, u64::from(PACKETS), "{status}");
        assert_eq!(source.dropped["sampled"], u64::from(PACKETS), "{status}");
        assert_eq!(source.captured, u64::from(2 * PACKETS), "{status}");
        let of = |port: u16| {
            let wanted = port.to_be_bytes();
            copies
                .iter()
                .filter(move |copy| copy.inner[36..38] == wanted)
        };
        assert_eq!(of(7000).count() as u32, PACKETS, "in place: {room}");
        assert_eq!(of(7001).count() as u32, PACKETS);
        for copy in of(7000) {
            assert_eq!(copy.inner.len(), 96);
            assert_eq!(wire_length(&copy.inner), 1042, "the lengths stay honest");
            assert_eq!(copy.inner[42..], payload[..96 - 42]);
        }
        for copy in of(7001) {
            assert_eq!(copy.inner[42..], payload[..]);
        }
    }
}
