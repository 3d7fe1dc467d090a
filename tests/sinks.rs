//! Targets on this host: captures in pcapng, to a file and to a pipe, and a dry run. What is written is
//! what the network target gets; nothing that the disk or the reader does costs the others a packet.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/numbered.rs"]
mod numbered;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/pcapng.rs"]
mod pcapng;
#[path = "common/span_lab.rs"]
mod span_lab;
#[path = "common/tapped_lab.rs"]
mod tapped_lab;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::netns::{self, run, wait_until, Namespace, Running};
use common::raw_socket;
use copies::{number_in, send, sink};
use mirror::{xtee, xtee_output, Mirror, TestFolder};
use numbered::Book;
use pcapng::{tshark, CaptureFile};
use tapped_lab::{Tapped, CLIENT, INSTANCE, TARGET};
use xtee::control::server::ask;
use xtee::telemetry::status::{Status, TargetStatus};

const PATIENCE: Duration = Duration::from_secs(15);

/// How often each frame stands among these.
fn tally<'f>(frames: impl Iterator<Item = &'f [u8]>) -> BTreeMap<&'f [u8], u32> {
    let mut tally = BTreeMap::new();
    for frame in frames {
        *tally.entry(frame).or_default() += 1;
    }
    tally
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock after 1970").as_nanos() as u64
}

fn of<'s>(status: &'s Status, scheme: &str) -> &'s TargetStatus {
    let mut found = status
        .targets
        .iter()
        .filter(|target| target.url.starts_with(scheme));
    found.next().expect("a target of this kind")
}

/// Sends so many bytes from one host to the other by TCP: super-packets on the way.
fn stream(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let listener = {
        let _there = to.enter();
        TcpListener::bind((address, 0)).expect("listen")
    };
    let port = listener.local_addr().expect("an address").port();
    let taking = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("receive")
    });
    let _there = from.enter();
    let mut stream = TcpStream::connect((address, port)).expect("connect");
    stream.write_all(&vec![0x5a; bytes]).expect("send");
    drop(stream);
    assert_eq!(taking.join().expect("the receiver"), bytes as u64);
}

#[test]
fn a_capture_file_holds_what_the_collector_gets() {
    require_root!("tshark", "capinfos");
    let lab = Tapped::new();
    let folder = TestFolder::new();
    let path = folder.file("tap.pcapng");
    let url = format!("pcap:{}", path.display());
    let monitor = lab.monitor().in_background();
    let mirror = Mirror::start(
        &lab.instance,
        &["tap:eth0", "--to", TARGET, &url, "discard:"],
    );
    mirror.wait_for("a path", |status| of(status, "vxlan").healthy);
    let before = now();
    let (near, far) = (sink(&lab.client, CLIENT), sink(&lab.instance, INSTANCE));
    send(&near, INSTANCE, 0..200, 300, Duration::ZERO);
    send(&far, CLIENT, 200..400, 1400, Duration::ZERO);
    stream(&lab.client, &lab.instance, INSTANCE, 1 << 20);
    stream(&lab.instance, &lab.client, CLIENT, 1 << 20);
    let status = mirror.assert_balanced();
    let after = now();
    let finished = mirror.stop();
    finished.assert_clean();

    let bytes = fs::read(&path).expect("the capture");
    let file = CaptureFile::parse(&bytes);
    let arrived = copies::copies(&monitor.stop());
    assert_eq!(lab.collector.counter("mon0", "rx_dropped"), 0);
    assert_eq!(
        tally(file.packets.iter().map(|packet| &packet.bytes[..])),
        tally(arrived.iter().map(|copy| &copy.inner[..])),
        "the capture and the collector have the same packets"
    );
    let captured = of(&status, "pcap");
    assert_eq!(captured.sent_packets, file.packets.len() as u64);
    assert!(file.packets.len() > 400 + 2 * (1 << 20) / 1460);
    assert_eq!(file.interfaces.len(), 1);
    let (link, options) = &file.interfaces[0];
    assert_eq!(
        (*link, &options[&2][..], &options[&3][..]),
        (1, &b"eth0"[..], &b"tap:eth0"[..])
    );
    for packet in &file.packets {
        assert_eq!(packet.original_length as usize, packet.bytes.len());
        assert!((before..=after).contains(&packet.time), "time of day");
        let to_instance = packet.bytes[..6] == tapped_lab::INSTANCE_MAC;
        assert_eq!(packet.direction(), if to_instance { "in" } else { "out" });
    }
    // isb_ifrecv, isb_ifdrop, isb_filteraccept, isb_usrdeliv
    let last = &finished.stdout;
    assert_eq!(
        file.statistic(0, 4),
        finished.final_number("seen"),
        "{last}"
    );
    assert_eq!(file.statistic(0, 5), 0);
    assert_eq!(
        file.statistic(0, 6),
        finished.final_number("seen"),
        "no rules"
    );
    assert_eq!(file.statistic(0, 8), file.packets.len() as u64);

    // Others read it too.
    let seen = tshark(
        &path,
        &[
            "frame.interface_name",
            "frame.packet_flags_direction",
            "frame.len",
        ],
    );
    assert_eq!(seen.len(), file.packets.len());
    for (line, packet) in seen.iter().zip(&file.packets) {
        assert_eq!(line[0], "eth0");
        let direction = u32::from_str_radix(line[1].trim_start_matches("0x"), 16).expect("hex");
        assert_eq!(direction, if packet.direction() == "in" { 1 } else { 2 });
        assert_eq!(line[2], packet.bytes.len().to_string());
    }
    let wrong = run(Command::new("tshark")
        .args(["-n", "-r"])
        .arg(&path)
        .args([
            "-o",
            "tcp.check_checksum:TRUE",
            "-o",
            "ip.check_checksum:TRUE",
        ])
        .args([
            "-Y",
            "tcp.checksum.status == 0 || ip.checksum.status == 0 || _ws.malformed",
        ]));
    assert_eq!(wrong, "", "packets as on the wire");
    let text = run(Command::new("capinfos").args(["-M"]).arg(&path));
    assert!(text.contains("nanoseconds"), "{text}");

    // The same packets were counted by the dry run.
    let dry_run = of(&status, "discard").dry_run.as_ref().expect("a dry run");
    let total: usize = file.packets.iter().map(|packet| packet.bytes.len()).sum();
    assert_eq!(dry_run.total.packets, file.packets.len() as u64);
    assert_eq!(dry_run.total.frame_bytes, total as u64);

    // What stands there stays there.
    let again = xtee_output(&lab.instance, &["mirror", "tap:eth0", "--to", &url]);
    assert_eq!(again.status.code(), Some(2));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("exists and is not empty"), "{said}");
    assert_eq!(fs::read(&path).expect("the capture"), bytes);
}

/// An `xtee mirror` whose standard output is a pipe, with its log in a file.
struct Piped {
    process: Running,
    folder: TestFolder,
}

impl Piped {
    fn start(namespace: &Namespace, arguments: &[&str]) -> Piped {
        let folder = TestFolder::new();
        let socket = folder.file("xtee.sock");
        let mut all = vec!["mirror"];
        all.extend(arguments);
        let text = socket.to_str().expect("a path in UTF-8").to_owned();
        all.extend(["--socket", &text]);
        let mut command = xtee(namespace, &all);
        command.stdout(Stdio::piped());
        command.stderr(File::create(folder.file("stderr")).expect("a file"));
        let process = Running::start(&mut command);
        let piped = Piped { process, folder };
        wait_until("xtee answers", PATIENCE, || ask(&socket).is_ok());
        piped
    }

    fn status(&self) -> Status {
        ask(&self.folder.file("xtee.sock")).expect("a status")
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.folder.file("stderr")).unwrap_or_default()
    }

    /// Waits for its end, which must be in order.
    fn ends_well(mut self) -> String {
        let code = self.process.wait(PATIENCE).code();
        let said = self.stderr();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("balance   holds"), "{said}");
        said
    }
}

#[test]
fn a_reader_of_the_pipe_sees_packets_at_once_and_ends_the_mirror_when_it_goes() {
    require_root!();
    let lab = Tapped::new();
    let mut piped = Piped::start(
        &lab.instance,
        &["tap:eth0", "--to", "pcap:-", "--protocol", "udp"],
    );
    let mut out = piped.process.child().stdout.take().expect("a pipe");
    let read = Arc::new(Mutex::new(Vec::new()));
    let into = read.clone();
    let reading = std::thread::spawn(move || {
        let mut part = [0; 4096];
        loop {
            let count = out.read(&mut part).expect("read");
            let mut read = into.lock().expect("the buffer");
            read.extend(&part[..count]);
            let (file, _) = CaptureFile::parse_whole(&read);
            if count == 0 || file.packets.len() >= 60 {
                return;
            }
        }
    });
    let _far = sink(&lab.instance, INSTANCE);
    let near = sink(&lab.client, CLIENT);
    for round in 0..3 {
        send(
            &near,
            INSTANCE,
            round * 20..round * 20 + 20,
            100,
            Duration::from_micros(300),
        );
        // Nothing else comes that could push them through.
        wait_until("the packets at the reader", PATIENCE, || {
            let read = read.lock().expect("the buffer");
            let (file, rest) = CaptureFile::parse_whole(&read);
            rest == 0 && file.packets.len() as u32 == (round + 1) * 20
        });
    }
    reading.join().expect("the reader, which has gone now");
    let numbers: Vec<_> = {
        let read = read.lock().expect("the buffer");
        let packets = CaptureFile::parse(&read).packets;
        packets
            .iter()
            .filter_map(|packet| number_in(&packet.bytes))
            .collect()
    };
    assert_eq!(numbers, (0..60).collect::<Vec<_>>(), "in order");
    // It is noticed with the next packet.
    send(&near, INSTANCE, 60..70, 100, Duration::ZERO);
    let said = piped.ends_well();
    assert!(said.contains("whoever read the capture has gone"), "{said}");
    assert!(
        said.contains("source    tap:eth0"),
        "the balance goes to stderr: {said}"
    );
}

#[test]
fn tcpdump_reads_the_pipe() {
    require_root!("tcpdump");
    let lab = Tapped::new();
    let mut piped = Piped::start(
        &lab.instance,
        &["tap:eth0", "--to", "pcap:-", "--protocol", "udp"],
    );
    let out = piped.process.child().stdout.take().expect("a pipe");
    let mut reader = Running::start(
        Command::new("tcpdump")
            .args(["-nr", "-", "-c", "5"])
            .stdin(out)
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    );
    let mut printed = reader.child().stdout.take().expect("a pipe");
    let _far = sink(&lab.instance, INSTANCE);
    let near = sink(&lab.client, CLIENT);
    send(&near, INSTANCE, 0..5, 100, Duration::ZERO);
    assert!(reader.wait(PATIENCE).success());
    let mut text = String::new();
    printed
        .read_to_string(&mut text)
        .expect("what tcpdump printed");
    let lines = text
        .lines()
        .filter(|line| line.contains("198.51.100.1.7000 > 198.51.100.2.7000"));
    assert_eq!(lines.count(), 5, "{text}");
    send(&near, INSTANCE, 5..6, 100, Duration::ZERO);
    piped.ends_well();
}

#[test]
fn a_reader_that_stalls_costs_its_own_packets_only() {
    require_root!();
    let lab = Tapped::new();
    let monitor = lab.monitor();
    let arguments = ["tap:eth0", "--to", TARGET, "pcap:-", "--protocol", "udp"];
    let piped = Piped::start(&lab.instance, &arguments);
    let _far = sink(&lab.instance, INSTANCE);
    let near = sink(&lab.client, CLIENT);
    // More than the pipe and all buffers hold; in portions that the tap's ring takes.
    let mut sent = 0;
    let before = lab.collector.counter("mon0", "rx_packets");
    while of(&piped.status(), "pcap").dropped["writer_full"] == 0 {
        assert!(sent < 100_000, "{}", piped.status());
        send(&near, INSTANCE, sent..sent + 2000, 1400, Duration::ZERO);
        sent += 2000;
        wait_until("the worker", PATIENCE, || {
            of(&piped.status(), "pcap").offered == u64::from(sent)
        });
    }
    let status = piped.status();
    assert_eq!(status.imbalances(), Vec::<String>::new(), "{status}");
    let capture = of(&status, "pcap");
    assert!(capture.in_flight > 20_000, "{status}");
    assert_eq!(
        of(&status, "vxlan").sent_packets,
        u64::from(sent),
        "{status}"
    );
    let arrived = lab.collector.counter("mon0", "rx_packets") - before;
    assert!(arrived >= u64::from(sent), "{arrived} of {sent}");
    drop(monitor);
    piped.process.signal(libc::SIGINT);
    let said = piped.ends_well();
    assert!(said.contains("writer_full"), "{said}");
    assert!(said.contains("shutdown"), "{said}");
}

/// A file system that is soon full; unmounted on drop.
struct SmallDisk<'f>(&'f Path);

impl<'f> SmallDisk<'f> {
    fn new(path: &'f Path) -> SmallDisk<'f> {
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k", "xtee-test"])
            .arg(path));
        SmallDisk(path)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_counted_and_leaves_a_readable_file() {
    require_root!("tshark");
    let lab = Tapped::new();
    let folder = TestFolder::new();
    let small = SmallDisk::new(folder.path());
    let path = folder.file("full.pcapng");
    let url = format!("pcap:{}", path.display());
    let arguments = ["tap:eth0", "--to", TARGET, &url, "--protocol", "udp"];
    let mirror = Mirror::start(&lab.instance, &arguments);
    let _far = sink(&lab.instance, INSTANCE);
    let near = sink(&lab.client, CLIENT);
    send(&near, INSTANCE, 0..1000, 1400, Duration::ZERO);
    let status = mirror.assert_balanced();
    let capture = of(&status, "pcap");
    assert!(capture.dropped["write_error"] > 500, "{status}");
    assert!(capture.sent_packets > 100, "{status}");
    assert!(!capture.healthy);
    assert_eq!(of(&status, "vxlan").sent_packets, 1000, "{status}");
    let said = mirror.stderr();
    assert_eq!(
        said.matches("cannot be written").count(),
        1,
        "said once: {said}"
    );
    // There is room again: it goes on where it stopped.
    let mut half = fs::OpenOptions::new()
        .append(true)
        .open(folder.file("stdout"))
        .ok();
    drop(half.take());
    run(Command::new("mount")
        .args(["-o", "remount,size=4m"])
        .arg(folder.path()));
    send(&near, INSTANCE, 1000..1100, 1400, Duration::ZERO);
    let status = mirror.assert_balanced();
    assert!(of(&status, "pcap").healthy, "{status}");
    let written = of(&status, "pcap").sent_packets;
    let finished = mirror.stop();
    finished.assert_clean();
    let file = CaptureFile::parse(&fs::read(&path).expect("the capture"));
    assert_eq!(file.packets.len() as u64, written);
    let last: Vec<_> = file
        .packets
        .iter()
        .filter_map(|packet| number_in(&packet.bytes))
        .collect();
    assert!(last.ends_with(&(1000..1100).collect::<Vec<_>>()));
    let dropped = of(&status, "pcap").dropped["write_error"];
    assert_eq!(file.statistic(0, 5), dropped);
    // What was lost before the packet that follows the gap.
    let gaps = file
        .packets
        .iter()
        .filter_map(|packet| packet.options.get(&4));
    let gaps: u64 = gaps
        .map(|gap| u64::from_le_bytes(gap[..].try_into().unwrap()))
        .sum();
    assert_eq!(gaps, dropped);
    assert_eq!(tshark(&path, &["frame.number"]).len() as u64, written);
    drop(small);
}

const RULES: &str = "
[[rule]]
action = \"skip\"
networks = [\"198.51.100.2/32\"]
[[rule]]
action = \"mirror\"
protocol = \"udp\"
[[rule]]
action = \"mirror\"
protocol = \"tcp\"
";

#[test]
fn a_span_is_captured_and_a_dry_run_counts_by_rule() {
    require_root!();
    let lab = span_lab::Lab::new(1, 1);
    lab.resolve_span();
    let folder = TestFolder::new();
    let path = folder.file("span.pcapng");
    let configuration = format!(
        "default_action = \"mirror\"\n{RULES}[[source]]\nkind = \"span\"\ninterface = \"span0\"\n\
         [[target]]\nurl = \"gre://203.0.113.2?key=7\"\n\
         [[target]]\nurl = \"pcap:{}\"\n[[target]]\nurl = \"discard:\"\n",
        path.display()
    );
    let mirror = Mirror::start_config(&lab.appliance, &configuration);
    mirror.wait_for("a path", |status| of(status, "gre").healthy);
    let mut feeder = span_lab::Feeder::new(&lab.feeder, "feed0", 1);
    let mut book = Book::default();
    let mut expected: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut fed = Vec::new();
    for round in 0..8 {
        for flow in 0..26 {
            let frame = book.next(flow, round % 2 == 1);
            let headers = xtee::packet::headers::Headers::parse(&frame);
            let rule = match headers.and_then(|headers| headers.ip).map(|ip| ip.protocol) {
                Some(17) => "rule 1: udp",
                Some(6) => "rule 2: tcp",
                _ => "no rule",
            };
            let count = expected.entry(rule).or_default();
            *count = (count.0 + 1, count.1 + frame.len() as u64);
            feeder.send(0, &frame);
            fed.push(frame);
        }
        let sent = fed.len() as u64;
        mirror.wait_for("the worker", |status| of(status, "discard").offered == sent);
    }
    let status = mirror.assert_balanced();
    mirror.stop().assert_clean();
    let dry_run = of(&status, "discard").dry_run.clone().expect("a dry run");
    let counted: BTreeMap<&str, (u64, u64)> = dry_run
        .rules
        .iter()
        .map(|rule| (rule.rule.as_str(), (rule.packets, rule.frame_bytes)))
        .collect();
    assert_eq!(counted, expected);
    assert_eq!(of(&status, "discard").dropped["dry_run"], fed.len() as u64);
    let file = CaptureFile::parse(&fs::read(&path).expect("the capture"));
    let written: Vec<_> = file
        .packets
        .iter()
        .map(|packet| packet.bytes.clone())
        .collect();
    assert_eq!(written, fed, "in order, byte for byte");
    assert!(file.packets.iter().all(|packet| packet.direction() == "in"));
    assert_eq!(file.interfaces[0].1[&3], b"span:span0");
}

#[test]
fn a_dry_run_of_a_tap_says_what_it_would_cost() {
    require_root!();
    let lab = Tapped::new();
    let configuration = "[[rule]]\naction = \"mirror\"\nprotocol = \"udp\"\ndirection = \"in\"\n[[rule]]\naction = \"mirror\"\nprotocol = \"udp\"\n\
                         [[source]]\nkind = \"tap\"\ninterface = \"eth0\"\n[[target]]\nurl = \"discard:\"\n";
    let mirror = Mirror::start_config(&lab.instance, configuration);
    let (near, far) = (sink(&lab.client, CLIENT), sink(&lab.instance, INSTANCE));
    let before = lab.instance.counter("eth0", "tx_packets");
    send(&near, INSTANCE, 0..300, 958, Duration::ZERO);
    send(&far, CLIENT, 0..100, 458, Duration::ZERO);
    let status = mirror.assert_balanced();
    assert_eq!(
        lab.instance.counter("eth0", "tx_packets") - before,
        100,
        "nothing leaves"
    );
    assert_eq!(
        lab.instance.counter("mir0", "tx_packets"),
        0,
        "nothing leaves"
    );
    let dry_run = of(&status, "discard").dry_run.clone().expect("a dry run");
    let counted: Vec<_> = dry_run
        .rules
        .iter()
        .map(|rule| (rule.number, rule.packets, rule.outer_bytes))
        .collect();
    // 42 bytes of Ethernet, IPv4 and UDP inside, 36 of IPv4, UDP and VXLAN outside.
    assert_eq!(
        counted,
        [(Some(0), 300, 300 * 1036), (Some(1), 100, 100 * 536)]
    );
    let finished = mirror.stop();
    finished.assert_clean();
    let text = &finished.stdout;
    assert!(text.contains("GB a day  rule 0: in udp"), "{text}");
    assert!(text.contains("GB a day  all"), "{text}");
}
