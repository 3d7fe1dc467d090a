//! Two network namespaces, `near` and `far`, joined by two veth pairs.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::host::sys;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// `near` has a0 198.51.100.1/26 and b0 198.51.100.65/26, `far` has a1 …2 and b1 …66.
pub struct Pair {
    pub near: String,
    pub far: String,
}

impl Pair {
    /// Makes the namespaces; `None` (after saying why) where that cannot be done. In CI, where
    /// XTEE_FORBID_SKIP=1 is set, a skip is a failure.
    pub fn make() -> Option<Self> {
        // SAFETY: geteuid has no argument and cannot fail.
        let uid = unsafe { libc::geteuid() };
        if uid != 0 {
            let why = "network namespaces need root";
            let forbidden = std::env::var("XTEE_FORBID_SKIP").is_ok_and(|value| value == "1");
            assert!(!forbidden, "skipped, but skipping is forbidden: {why}");
            println!("skipped: {why}");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |end| format!("xtee-host-{}-{number}-{end}", std::process::id());
        let pair = Self {
            near: name("near"),
            far: name("far"),
        };
        for namespace in [&pair.near, &pair.far] {
            run(&format!("ip netns add {namespace}"));
            run(&format!("ip -n {namespace} link set lo up"));
        }
        for (link, near, far) in [
            ("a", "198.51.100.1/26", "198.51.100.2/26"),
            ("b", "198.51.100.65/26", "198.51.100.66/26"),
        ] {
            run(&format!(
                "ip -n {} link add {link}0 type veth peer name {link}1 netns {}",
                pair.near, pair.far
            ));
            pair.near_ip(&format!("addr add {near} dev {link}0"));
            pair.near_ip(&format!("link set {link}0 up"));
            pair.far_ip(&format!("addr add {far} dev {link}1"));
            pair.far_ip(&format!("link set {link}1 up"));
        }
        Some(pair)
    }

    /// `ip -n near …`
    pub fn near_ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.near));
    }

    /// `ip -n far …`
    pub fn far_ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.far));
    }

    /// Runs a function on a thread inside `near`.
    pub fn in_near<T: Send + 'static>(&self, function: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.near, function)
    }

    /// Sends one UDP datagram from `far`, so that its ARP tells `near` its address.
    pub fn far_speaks(&self) {
        inside(&self.far, || {
            let socket = UdpSocket::bind("198.51.100.2:0").unwrap();
            socket.send_to(b"x", "198.51.100.1:9").unwrap();
        });
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for namespace in [&self.near, &self.far] {
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
        }
    }
}

fn inside<T: Send + 'static>(namespace: &str, function: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::spawn(move || {
        // SAFETY: setns takes a descriptor, open here, and changes this thread's namespace only.
        let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        sys::check(result.into()).unwrap();
        function()
    })
    .join()
    .unwrap()
}

/// Runs a command that must succeed.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits until `look` gives true, for at most a second; returns how long it took.
pub fn within_a_second(what: &str, mut look: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !look() {
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "not within 1 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}
