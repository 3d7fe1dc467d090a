//! Where xtee may not or cannot run: without privileges, where another one runs, where its socket cannot
//! be had, or asked to end while it starts. It says why, and leaves nothing behind.

#[macro_use]
mod common;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/refusal_lab.rs"]
mod refusal_lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::netns::{wait_until, Running};
use mirror::Mirror;
use refusal_lab::{Lab, Ran};
use xtee::control::server::ask;

const TO: &str = "vxlan://203.0.113.2?vni=7";
const PATIENCE: Duration = Duration::from_secs(15);

/// A copy of the program where everybody may run it, as `nobody` with these capabilities only.
fn as_nobody(lab: &Lab, capabilities: &[&str], arguments: &[&str]) -> Command {
    let program = lab.folder.file("xtee");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_xtee"), &program).expect("copy the program");
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(lab.folder.path(), open).expect("open the folder");
    }
    let granted: String = capabilities
        .iter()
        .map(|name| format!(",+{name}"))
        .collect();
    let mut command = lab.host.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        command.arg(format!("{set}=-all{granted}"));
    }
    command.arg(program).args(arguments);
    command
}

#[test]
fn without_privileges() {
    require_root!("setpriv");
    let lab = Lab::new();
    let socket = lab.path("xtee.sock");
    let ran = |capabilities: &[&str], arguments: &[&str]| {
        let mut command = as_nobody(&lab, capabilities, arguments);
        Ran::of(&command.output().expect("setpriv"))
    };
    let always = [
        "CAP_NET_ADMIN (",
        "CAP_BPF (",
        "CAP_PERFMON (",
        "xtee doctor",
    ];
    for (source, to) in [
        ("tap:tap0", TO),
        ("tap:tap0", "gre://203.0.113.2"),
        ("span:span0", TO),
    ] {
        let arguments = ["mirror", source, "--to", to, "--socket", &socket];
        let refused = ran(&[], &arguments);
        let line = refused.assert_refused(1, &always);
        assert!(line.starts_with("xtee: not permitted: this process lacks CAP_"));
        // Only what is missing is named. A tap that sends VXLAN needs no more than these.
        if source.starts_with("span") || to.starts_with("gre") {
            let refused = ran(&["net_admin", "bpf", "perfmon"], &arguments[..]);
            let line = refused.assert_refused(1, &["CAP_NET_RAW (AF_XDP and raw sockets)"]);
            assert!(!line.contains("CAP_BPF"), "{line}");
        }
    }
    assert!(!Path::new(&socket).exists());
    lab.assert_nothing_attached();

    // Looking needs less, and the doctor says what is missing and how to grant it.
    let check = ran(&[], &["check", "tap:tap0", "--to", TO]);
    assert_eq!(
        (check.code, check.stderr.as_str()),
        (Some(0), ""),
        "{check:#?}"
    );
    let doctor = ran(&[], &["doctor", "tap0"]);
    let problem = doctor
        .stdout
        .lines()
        .find(|line| line.starts_with("PROBLEM"));
    let problem = problem.expect("a problem");
    for word in [
        "privileges",
        "CAP_NET_RAW",
        "CAP_BPF",
        "->",
        "setcap cap_net_admin,",
    ] {
        assert!(problem.contains(word), "{problem}");
    }
}

/// With the capabilities that the doctor names, root is not needed.
#[test]
fn with_capabilities_alone() {
    require_root!("setpriv");
    let lab = Lab::new();
    let socket = lab.path("xtee.sock");
    let capabilities = ["net_admin", "net_raw", "bpf", "perfmon", "ipc_lock"];
    for (source, to) in [("tap:tap0", TO), ("span:span0", "gre://203.0.113.2?key=7")] {
        let arguments = ["mirror", source, "--to", to, "--socket", &socket];
        let mut process =
            Running::start(as_nobody(&lab, &capabilities, &arguments).stdout(Stdio::null()));
        wait_until("it answers", PATIENCE, || ask(Path::new(&socket)).is_ok());
        assert!(!lab.attached().is_empty());
        process.signal(libc::SIGTERM);
        assert_eq!(process.wait(PATIENCE).code(), Some(0));
        lab.assert_nothing_attached();
    }
}

/// AF_XDP is only preferred: without CAP_NET_RAW, or where its memory exceeds memlock, a tap sends by UDP and
/// says why. Who demands AF_XDP is refused with the same reason.
#[test]
fn a_tap_goes_on_by_udp_where_af_xdp_may_not_have_its_memory() {
    require_root!("setpriv", "prlimit");
    let lab = Lab::new();
    let limited = |capabilities: &[&str], arguments: &[&str]| {
        let command = as_nobody(&lab, capabilities, arguments);
        let mut limited = Command::new("prlimit");
        limited.arg("--memlock=65536:65536");
        limited.arg(command.get_program()).args(command.get_args());
        limited
    };
    let basic = ["net_admin", "bpf", "perfmon"];
    let with_raw = ["net_admin", "bpf", "perfmon", "net_raw"];
    for capabilities in [basic.as_slice(), &with_raw] {
        let socket = lab.path("xtee.sock");
        let arguments = ["mirror", "tap:tap0", "--to", TO, "--socket", &socket];
        let log = lab.folder.file("xtee.err");
        let file = fs::File::create(&log).expect("a log");
        let mut process = Running::start(
            limited(capabilities, &arguments)
                .stdout(Stdio::null())
                .stderr(file),
        );
        wait_until("it answers", PATIENCE, || ask(Path::new(&socket)).is_ok());
        let status = ask(Path::new(&socket)).expect("status");
        assert!(
            status.targets[0].transmit.starts_with("udp"),
            "{}",
            status.targets[0].transmit
        );
        process.signal(libc::SIGTERM);
        assert_eq!(process.wait(PATIENCE).code(), Some(0));
        let log = fs::read_to_string(&log).expect("the log");
        assert!(log.contains("only, also while runs are short"), "{log}");
        lab.assert_nothing_attached();

        let demanded = [&arguments[..], &["--transmit", "xsk"]].concat();
        let refused = limited(capabilities, &demanded).output().expect("prlimit");
        Ran::of(&refused).assert_refused(1, &["xtee: "]);
        lab.assert_nothing_attached();
    }
}

/// One xtee an interface: a second one says so and harms nothing, whatever its socket.
#[test]
fn second_on_the_same_interface() {
    require_root!();
    let lab = Lab::new();
    for (source, attached) in [("tap:tap0", 2), ("span:span0", 1)] {
        let first = Mirror::start(&lab.host, &[source, "--to", TO]);
        assert_eq!(lab.attached().len(), attached);
        let interface = source.split_once(':').expect("a source").1;
        let socket = lab.path("second.sock");
        for kind in ["tap", "span"] {
            let second = format!("{kind}:{interface}");
            let other = "gre://203.0.113.2?key=9";
            let ran = lab.run(&["mirror", &second, "--to", other, "--socket", &socket]);
            let wanted = format!("another xtee mirrors {interface} already");
            ran.assert_refused(1, &[&second, &wanted, "[[target]]"]);
            assert!(!Path::new(&socket).exists());
        }
        assert_eq!(lab.attached().len(), attached);
        first.assert_balanced();
        first.stop().assert_clean();
        lab.assert_nothing_attached();
        // The lock went with the first.
        Mirror::start(&lab.host, &[source, "--to", TO])
            .stop()
            .assert_clean();
    }
}

#[test]
fn control_sockets_that_cannot_be_had() {
    require_root!();
    let lab = Lab::new();
    let first = Mirror::start(&lab.host, &["tap:tap0", "--to", TO]);
    let before = lab.attached();
    let living = first.socket().to_str().expect("a path in UTF-8").to_owned();
    let (file, folder) = (lab.file("file", "precious"), lab.path(""));
    for (socket, words) in [
        (
            living.as_str(),
            ["belongs to a running xtee", "another --socket"],
        ),
        (&file, ["exists and is not a socket", "another --socket"]),
        (&folder, ["exists and is not a socket", "another --socket"]),
        (
            "/proc/xtee.sock",
            ["cannot listen on /proc/xtee.sock", "No such file"],
        ),
        (
            "/proc/xtee/xtee.sock",
            ["cannot make /proc/xtee", "No such file"],
        ),
    ] {
        let other = "gre://203.0.113.2?key=9";
        let ran = lab.run(&["mirror", "span:span0", "--to", other, "--socket", socket]);
        ran.assert_refused(1, &words);
        assert_eq!(lab.attached(), before);
    }
    assert_eq!(fs::read_to_string(&file).expect("the file"), "precious");
    assert_eq!(ask(first.socket()).expect("the first").pid, first.pid());
    first.stop().assert_clean();

    // What a killed one left is taken over, and nobody else may ask.
    let socket = lab.path("stale.sock");
    let arguments = ["mirror", "span:span0", "--to", TO, "--socket", &socket];
    let mut killed = lab.start("killed", &arguments);
    wait_until("it answers", PATIENCE, || ask(Path::new(&socket)).is_ok());
    killed.process.signal(libc::SIGKILL);
    killed.process.wait(PATIENCE);
    assert!(Path::new(&socket).exists());
    let again = lab.start("again", &arguments);
    wait_until("it answers", PATIENCE, || ask(Path::new(&socket)).is_ok());
    let mode = fs::metadata(&socket)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    again.process.signal(libc::SIGTERM);
    assert_eq!(again.end().1.code, Some(0));
    assert!(!Path::new(&socket).exists());
    lab.assert_nothing_attached();
}

#[test]
fn status_without_a_mirror() {
    require_root!();
    let lab = Lab::new();
    let (none, file) = (lab.path("none.sock"), lab.file("file", ""));
    for json in [&[][..], &["--json"]] {
        for socket in [&none, &file] {
            let mut all = vec!["status", "--socket", socket];
            all.extend(json);
            let ran = lab.run(&all);
            let wanted = format!("no xtee answers on {socket}");
            ran.assert_refused(1, &[&wanted, "is one running?"]);
            assert_eq!(ran.stdout, "");
        }
    }
    let silent = lab.path("silent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&silent).expect("a socket");
    let closes = std::thread::spawn(move || drop(listener.accept()));
    let ran = lab.run(&["status", "--socket", &silent]);
    ran.assert_refused(1, &["did not answer with a status"]);
    closes.join().expect("the other side");
}

/// Asked to end while it starts, at any moment: an orderly end, or none of it was there yet.
#[test]
fn signals_during_the_start() {
    require_root!();
    let lab = Lab::new();
    let socket = lab.path("xtee.sock");
    for (number, source) in ["tap:tap0", "span:span0"]
        .iter()
        .cycle()
        .take(12)
        .enumerate()
    {
        let arguments = ["mirror", source, "--to", TO, "--socket", &socket];
        let started = lab.start("started", &arguments);
        match number {
            // Once the plan is printed, signals are in order.
            0..4 => wait_until("the plan", PATIENCE, || {
                started.stdout().contains("control ")
            }),
            // Or at a moment that has no name.
            _ => std::thread::sleep(Duration::from_millis(4 * number as u64)),
        }
        started.process.signal(if number % 2 == 0 {
            libc::SIGTERM
        } else {
            libc::SIGINT
        });
        let (status, ran) = started.end();
        let orderly = status.code() == Some(0) && ran.stdout.contains("balance   holds");
        let too_early = number >= 4
            && matches!(status.signal(), Some(libc::SIGTERM | libc::SIGINT))
            && ran.stdout.is_empty();
        assert!(orderly || too_early, "{number}: {status}: {ran:#?}");
        assert!(!Path::new(&socket).exists());
        lab.assert_nothing_attached();
    }
}
