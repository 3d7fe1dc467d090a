//! Network namespaces for tests that need root: make them, wire them with veth pairs, run programs
//! and threads in them, and leave nothing behind.
//!
//! Uses std, libc and the programs `ip` and `ethtool` only. Everything panics with the command and
//! its output when it fails: these are tests. Nothing touches the namespace the test was started
//! in. A test that cannot run says so through [`require_root!`](crate::require_root).

use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Once;
use std::time::{Duration, Instant};

const PREFIX: &str = "xtee-";
static NUMBER: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// Ends the test, with the reason on standard output, unless it runs as root and the programs named
/// exist. With `XTEE_FORBID_SKIP=1`, as in CI, it fails the test instead.
///
/// `require_root!();` or `require_root!("iperf3", "tshark");`
#[macro_export]
macro_rules! require_root {
    ($($program:expr),* $(,)?) => {
        if $crate::common::netns::skipped(&[$($program),*]) {
            return;
        }
    };
}

/// Whether something is missing; says what. For [`require_root!`](crate::require_root).
pub fn skipped(programs: &[&str]) -> bool {
    let Some(why) = missing(programs) else {
        return false;
    };
    skip(&why);
    true
}

/// Says why a test is skipped, for needs that only the test knows (a kernel feature, say).
pub fn skip(why: &str) {
    let forbidden = std::env::var_os("XTEE_FORBID_SKIP").is_some_and(|value| value == "1");
    assert!(
        !forbidden,
        "must not be skipped here (XTEE_FORBID_SKIP=1), but {why}"
    );
    println!("skipped: {why}");
}

fn missing(programs: &[&str]) -> Option<String> {
    // SAFETY: geteuid only returns a number.
    if unsafe { libc::geteuid() } != 0 {
        return Some("not root".to_owned());
    }
    ["ip", "ethtool"]
        .iter()
        .chain(programs)
        .find(|program| find(program).is_none())
        .map(|program| format!("there is no program {program}"))
}

/// Where a program is. `/usr/sbin` counts although it is not in every PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Runs a command to its end and returns what it printed; panics if it fails.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Calls `done` until it is true; panics with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A network namespace `xtee-<pid>-<number>`, with its loopback up and IPv6 off; removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A namespace without IPv6: no router solicitations and no duplicate address detection
    /// disturb captures.
    pub fn new() -> Self {
        let namespace = Self::make();
        namespace.write_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        namespace.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        namespace
    }

    /// A namespace with IPv6, whose addresses can be used at once. Link-local chatter remains.
    pub fn with_ipv6() -> Self {
        let namespace = Self::make();
        for scope in ["all", "default"] {
            namespace.write_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
            namespace.write_sysctl(&format!("net/ipv6/conf/{scope}/router_solicitations"), "0");
        }
        namespace
    }

    /// As [`new`](Self::new), where another namespace was: at this path.
    pub fn at(path: &Path) -> Self {
        let name = path.file_name().expect("a name").to_string_lossy();
        let namespace = Self::named(name.into_owned());
        namespace.write_sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        namespace.write_sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        namespace
    }

    fn make() -> Self {
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::named(format!("{PREFIX}{}-{number}", std::process::id()))
    }

    fn named(name: String) -> Self {
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip -n <namespace> …`; returns what it printed.
    pub fn ip(&self, arguments: &[&str]) -> String {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments))
    }

    /// A command that will run in here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a program in here to its end; returns what it printed, panics if it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        run(self.command(program).args(arguments))
    }

    /// Runs a program in here to its end, which may be a failure.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        output(self.command(program).args(arguments))
    }

    /// Starts a program in here that ends with the guard, or with the calling thread.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Running {
        Running::start(self.command(program).args(arguments))
    }

    /// `ethtool -K DEVICE FEATURE on|off …`
    pub fn offload(&self, device: &str, switches: &[(&str, bool)]) {
        let mut command = self.command("ethtool");
        command.args(["-K", device]);
        for (feature, on) in switches {
            command.args([*feature, if *on { "on" } else { "off" }]);
        }
        run(&mut command);
    }

    /// Adds an address in CIDR notation.
    pub fn address(&self, device: &str, address: &str) {
        self.ip(&["address", "add", address, "dev", device]);
    }

    /// Adds a static neighbour, so that no ARP is needed.
    pub fn neighbour(&self, device: &str, address: &str, mac: [u8; 6]) {
        let mac = mac_text(mac);
        self.ip(&[
            "neighbour",
            "replace",
            address,
            "lladdr",
            &mac,
            "dev",
            device,
        ]);
    }

    /// Writes a file below `/proc/sys` as this namespace has it.
    pub fn write_sysctl(&self, key: &str, value: &str) {
        let _here = self.enter();
        let file = format!("/proc/sys/{key}");
        fs::write(&file, value).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// A counter of a device in here, such as `rx_packets` or `tx_dropped`.
    pub fn counter(&self, device: &str, name: &str) -> u64 {
        // /sys shows the namespace it was mounted in; `ip netns exec` mounts it anew.
        let file = format!("/sys/class/net/{device}/statistics/{name}");
        let text = self.run("cat", &[&file]);
        text.trim()
            .parse()
            .unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Moves the calling thread into the namespace until the guard is dropped.
    pub fn enter(&self) -> Entered {
        // Not /proc/self: that is the main thread's.
        let back = File::open("/proc/thread-self/ns/net").expect("own namespace");
        let there = File::open(self.path()).expect("namespace file");
        set_namespace(&there).unwrap_or_else(|error| panic!("enter {}: {error}", self.name));
        Entered {
            back,
            stays_on_its_thread: PhantomData,
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// While this lives, its thread is in the namespace. Threads started meanwhile are, too.
#[derive(Debug)]
pub struct Entered {
    back: File,
    /// Makes it `!Send`: dropped on another thread it would move the wrong one.
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = set_namespace(&self.back) {
            // Whatever this thread did next would happen in the wrong place.
            eprintln!("cannot leave the namespace: {error}");
            std::process::abort();
        }
    }
}

fn set_namespace(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call changes the calling thread only.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn remove(name: &str) {
    // Fails only where it is gone already; a Drop may run during a panic, so it stays silent.
    let _ = Command::new("ip")
        .args(["netns", "del", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Removes namespaces of test processes that were killed.
pub fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}

/// A program that was started; it and what it started are killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts `command` in a process group of its own. The kernel kills it too when the calling
    /// thread ends, so start it from the thread of the test.
    pub fn start(command: &mut Command) -> Self {
        command.process_group(0);
        let end_with_the_thread = || {
            // SAFETY: prctl with these arguments reads and writes no memory.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure runs in the forked child and makes one call that is safe there.
        unsafe { command.pre_exec(end_with_the_thread) };
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child }
    }

    /// The process, to take its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program (not to what it started).
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill touches no memory. The child has not been waited for, so the id is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Waits for its end; panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                return status;
            }
            assert!(
                Instant::now() < end,
                "process {} did not end in {limit:?}",
                self.pid()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: kill touches no memory. The child has not been waited for, so the group
            // still is its own.
            unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
            let _ = self.child.wait();
        }
    }
}

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub struct VethEnd<'a> {
    namespace: &'a Namespace,
    name: &'a str,
    mac: Option<[u8; 6]>,
    mtu: u32,
    queues: u32,
    addresses: Vec<&'a str>,
}

impl<'a> VethEnd<'a> {
    /// An end with one queue, the usual MTU of 1500 and an address of the kernel's choice.
    pub fn new(namespace: &'a Namespace, name: &'a str) -> Self {
        Self {
            namespace,
            name,
            mac: None,
            mtu: 1500,
            queues: 1,
            addresses: Vec::new(),
        }
    }

    /// Its hardware address.
    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Its MTU, in bytes.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Number of rx and of tx queues.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// Adds an address in CIDR notation.
    pub fn address(mut self, address: &'a str) -> Self {
        self.addresses.push(address);
        self
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["name".to_owned(), self.name.to_owned()];
        let mut add = |key: &str, value: String| arguments.extend([key.to_owned(), value]);
        add("netns", self.namespace.name.clone());
        add("mtu", self.mtu.to_string());
        add("numrxqueues", self.queues.to_string());
        add("numtxqueues", self.queues.to_string());
        if let Some(mac) = self.mac {
            add("address", mac_text(mac));
        }
        arguments
    }

    fn finish(&self) {
        for address in &self.addresses {
            self.namespace.address(self.name, address);
        }
        self.namespace.ip(&["link", "set", self.name, "up"]);
    }
}

/// Makes a veth pair with these ends, both up with their addresses. It goes with either namespace.
pub fn veth(one: &VethEnd, other: &VethEnd) {
    let mut command = Command::new("ip");
    // From inside, so that the names are free even for a moment.
    command.args(["-n", &one.namespace.name, "link", "add"]);
    command.args(one.arguments());
    command.args(["type", "veth", "peer"]);
    command.args(other.arguments());
    run(&mut command);
    one.finish();
    other.finish();
}

/// `02:00:00:00:00:01`
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
