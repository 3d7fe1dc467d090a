//! Production and its mirror path: client ⇄ instance, which is tapped, and the collector, each in a
//! namespace of its own; and the traffic between client and instance.
//!
//! Traffic runs on one CPU, and the mirror's worker on another where there is one: packets of a flow
//! that were sent on two CPUs can change places in a veth before they come to the tap.
#![allow(dead_code)]

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::common::netns::{veth, wait_until, Namespace, Running, VethEnd};
use crate::common::raw_socket::RawSocket;
use crate::odd_frames::End;

pub const MTU: usize = 1500;
pub const MIRROR_MTU: usize = 1600;
pub const CLIENT: End = End {
    mac: [2, 0, 0, 0, 0, 0x0c],
    v4: [198, 51, 100, 1],
    v6: [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
};
pub const INSTANCE: End = End {
    mac: [2, 0, 0, 0, 0, 0x0d],
    v4: [198, 51, 100, 2],
    v6: [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
};
pub const CLIENT_V4: &str = "198.51.100.1";
pub const INSTANCE_V4: &str = "198.51.100.2";
pub const INSTANCE_V6: &str = "2001:db8::2";
pub const COLLECTOR: &str = "203.0.113.2";
/// The tapped interface, and its other end.
pub const ETH: &str = "eth0";
/// The mirror path's ends.
pub const MIRROR: &str = "mir0";
pub const MONITOR: &str = "mon0";

const SECONDS: Duration = Duration::from_secs(20);
const TRAFFIC_CPU: &str = "0";
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The CPU for the mirror's worker.
pub fn worker_cpu() -> &'static str {
    match std::thread::available_parallelism() {
        Ok(count) if count.get() > 1 => "1",
        _ => "0",
    }
}

/// Whether the mirror path's device takes UDP super-packets (which a veth hands on unsplit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorDevice {
    Splits,
    TakesSuperPackets,
}

pub struct Production {
    pub client: Namespace,
    pub instance: Namespace,
    pub collector: Namespace,
    /// Tests of one program do not disturb each other.
    _alone: MutexGuard<'static, ()>,
}

impl Production {
    pub fn new(device: MirrorDevice) -> Production {
        let production = Production::unwired(device);
        veth(
            &VethEnd::new(&production.client, ETH)
                .mac(CLIENT.mac)
                .address("198.51.100.1/24")
                .address("2001:db8::1/64"),
            &VethEnd::new(&production.instance, ETH)
                .mac(INSTANCE.mac)
                .address("198.51.100.2/24")
                .address("2001:db8::2/64"),
        );
        production
    }

    /// Client and instance are not connected: the test gives both an interface [`ETH`] and its addresses.
    pub fn unwired(device: MirrorDevice) -> Production {
        let production = Production {
            _alone: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner),
            client: Namespace::with_ipv6(),
            instance: Namespace::with_ipv6(),
            collector: Namespace::new(),
        };
        let Production {
            instance,
            collector,
            ..
        } = &production;
        veth(
            &VethEnd::new(instance, MIRROR)
                .mtu(MIRROR_MTU as u32)
                .address("203.0.113.1/24"),
            &VethEnd::new(collector, MONITOR)
                .mtu(MIRROR_MTU as u32)
                .address("203.0.113.2/24"),
        );
        instance.offload(
            MIRROR,
            &[(
                "tx-udp-segmentation",
                device == MirrorDevice::TakesSuperPackets,
            )],
        );
        production
    }

    /// Both production interfaces as a wire is: single packets, checksums finished.
    pub fn without_offloads(self) -> Production {
        for namespace in [&self.client, &self.instance] {
            let off = ["tso", "gso", "gro", "tx"].map(|feature| (feature, false));
            namespace.offload(ETH, &off);
        }
        self
    }

    /// Both production interfaces without what the kernels say on their own: no IPv6, and neighbours
    /// that are known. All packets are the test's.
    pub fn silent(self) -> Production {
        for namespace in [&self.client, &self.instance] {
            namespace.write_sysctl(&format!("net/ipv6/conf/{ETH}/disable_ipv6"), "1");
        }
        self.client.neighbour(ETH, INSTANCE_V4, INSTANCE.mac);
        self.instance.neighbour(ETH, CLIENT_V4, CLIENT.mac);
        self
    }

    fn server(&self, port: u16, program: &str, arguments: &[&str]) -> Running {
        let all = [&["-c", TRAFFIC_CPU, program], arguments].concat();
        let mut command = self.instance.command("taskset");
        let running = Running::start(
            command
                .args(all)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .stdin(Stdio::null()),
        );
        let filter = format!("sport = :{port}");
        wait_until(program, SECONDS, || {
            !self
                .instance
                .run("ss", &["-H", "-l", "-n", "-t", "-u", &filter])
                .trim()
                .is_empty()
        });
        running
    }

    fn client_runs(&self, program: &str, arguments: &[&str]) -> String {
        let all = [&["-c", TRAFFIC_CPU, program], arguments].concat();
        self.client.run("taskset", &all)
    }

    /// iperf3 from the client to an address of the instance, with further arguments (`-R`, `-u`).
    /// Returns its report.
    pub fn iperf(&self, address: &str, arguments: &[&str]) -> serde_json::Value {
        let mut server = self.server(5201, "iperf3", &["-s", "-1"]);
        let all = [&["-J", "-c", address], arguments].concat();
        let report = self.client_runs("iperf3", &all);
        server.wait(SECONDS);
        serde_json::from_str(&report).expect("iperf3's report")
    }

    /// A file of the instance's web server, which begins with `beginning` and has `size` bytes more.
    pub fn http(&self, folder: &Path, name: &str, beginning: &[u8], size: usize) {
        let mut body = beginning.to_vec();
        body.extend((0..size).map(|at| (at * 7 + at / 251) as u8));
        fs::write(folder.join(name), &body).expect("write the file to serve");
        let served = folder.to_str().expect("a path in UTF-8");
        let arguments = ["-m", "http.server", "--directory", served, "80"];
        let _server = self.server(80, "python3", &arguments);
        let fetched = folder.join("fetched");
        let out = fetched.to_str().expect("a path in UTF-8");
        let url = format!("http://{INSTANCE_V4}/{name}");
        self.client_runs("curl", &["-sSf", "-m", "20", "-o", out, &url]);
        assert!(
            fs::read(&fetched).expect("the fetched file") == body,
            "production is harmed"
        );
    }

    /// Name look-ups, by UDP and by TCP.
    pub fn dns(&self) {
        let address = format!("--address=/www.example/{INSTANCE_V4}");
        let arguments = [
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file",
            &address,
        ];
        let _server = self.server(53, "dnsmasq", &arguments);
        let at = format!("@{INSTANCE_V4}");
        for transport in ["+notcp", "+tcp"] {
            let arguments = ["+short", "+tries=1", transport, &at, "www.example"];
            let answer = self.client_runs("dig", &arguments);
            assert_eq!(answer.trim(), INSTANCE_V4);
        }
    }

    /// Echoes of a small, a full-size and a fragmented packet, over IPv4 and IPv6, after the
    /// neighbours were forgotten: ARP and neighbour solicitation come first.
    pub fn pings(&self) {
        self.client.ip(&["neighbour", "flush", "dev", ETH]);
        for address in [INSTANCE_V4, INSTANCE_V6] {
            for size in ["56", "1400", "4000"] {
                let arguments = ["-c", "3", "-i", "0.01", "-W", "5", "-s", size, address];
                self.client_runs("ping", &arguments);
            }
        }
    }

    /// Datagrams in super-packets (`UDP_SEGMENT`) in both directions.
    pub fn udp_super_packets(&self) {
        let receiver = bind(&self.instance, INSTANCE_V4, 7001);
        let sender = bind(&self.client, CLIENT_V4, 7002);
        for (from, to, address) in [
            (&sender, &receiver, "198.51.100.2:7001"),
            (&receiver, &sender, "198.51.100.1:7002"),
        ] {
            set_segment_size(from, 1200);
            // The last is shorter; one alone is no super-packet.
            for length in [1200 * 20 + 37, 1200 * 2, 1200, 5] {
                let payload: Vec<u8> = (0..length).map(|at| (at * 3 + length) as u8).collect();
                let sent = from.send_to(&payload, address).expect("send");
                assert_eq!(sent, length);
                let mut received: Vec<u8> = Vec::new();
                let mut buffer = [0; 2000];
                while received.len() < length {
                    let size = to.recv(&mut buffer).expect("receive");
                    received.extend(&buffer[..size]);
                }
                assert_eq!(received, payload);
            }
        }
    }

    /// Raw frames from the client and from the instance.
    pub fn raw_frames(&self, make: impl Fn(End, End) -> Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for (namespace, from, to) in [
            (&self.client, CLIENT, INSTANCE),
            (&self.instance, INSTANCE, CLIENT),
        ] {
            let socket = RawSocket::open(namespace, ETH);
            for frame in make(from, to) {
                socket.send(&frame);
                all.push(frame);
            }
        }
        all
    }
}

/// A UDP socket in a namespace.
pub fn bind(namespace: &Namespace, address: &str, port: u16) -> UdpSocket {
    let _there = namespace.enter();
    let socket = UdpSocket::bind((address, port)).expect("bind");
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("read timeout");
    socket
}

fn set_segment_size(socket: &UdpSocket, size: libc::c_int) {
    // SAFETY: the value is a c_int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            std::ptr::from_ref(&size).cast(),
            std::mem::size_of::<libc::c_int>() as u32,
        )
    };
    assert_eq!(result, 0, "UDP_SEGMENT: {}", io::Error::last_os_error());
}

/// A frame that nothing answers, to mark a moment in captures.
pub fn marker(number: u8) -> Vec<u8> {
    let mut frame = [&INSTANCE.mac[..], &CLIENT.mac, &[0x88, 0xb6]].concat();
    frame.resize(60, number);
    frame
}
