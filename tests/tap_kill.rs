//! A tap that is killed, stopped or ended under load: production goes on without one lost packet, and
//! nothing of ours stays behind that should not.

#[macro_use]
mod common;
#[path = "common/echo_stream.rs"]
mod echo_stream;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/odd_frames.rs"]
mod odd_frames;
#[path = "common/production.rs"]
mod production;
#[path = "common/wire.rs"]
mod wire;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use common::netns::Namespace;
use echo_stream::EchoStream;
use mirror::{source, target, Mirror, TestFolder};
use production::{MirrorDevice, Production, ETH};
use xtee::reason::Reason;

const VXLAN: &str = "vxlan://203.0.113.2?vni=7&limit=none";
const TCX: &[&str] = &["tap:eth0", "--to", VXLAN, "--attach", "tcx"];
const CLSACT: &[&str] = &["tap:eth0", "--to", VXLAN, "--attach", "clsact"];
/// Between two datagrams, each of which is echoed.
const STEADY: Option<Duration> = Some(Duration::from_micros(100));
/// Datagrams between two events.
const MOMENT: u64 = 2_000;

/// Names of the programs on the tcx hooks, ingress first.
fn tcx_programs(namespace: &Namespace) -> Vec<String> {
    let _there = namespace.enter();
    // SAFETY: the name ends with NUL.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS]
        .into_iter()
        .flat_map(|hook| {
            let mut ids = [0u32; 16];
            let mut options = libbpf_sys::bpf_prog_query_opts {
                sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
                prog_ids: ids.as_mut_ptr(),
                ..libbpf_sys::bpf_prog_query_opts::default()
            };
            options.__bindgen_anon_1.count = ids.len() as u32;
            // SAFETY: the options and the array that they point to live on; its length is given.
            let result =
                unsafe { libbpf_sys::bpf_prog_query_opts(index as i32, hook, &mut options) };
            assert_eq!(result, 0, "BPF_PROG_QUERY");
            // SAFETY: both members of the union are the same number.
            let count = unsafe { options.__bindgen_anon_1.count };
            ids.into_iter().take(count as usize).map(program_name)
        })
        .collect()
}

fn program_name(id: u32) -> String {
    // SAFETY: the call touches no memory of ours.
    let fd = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) };
    assert!(fd >= 0, "program {id}");
    // SAFETY: the descriptor was just opened and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of_val(&info) as u32;
    // SAFETY: the structure is as large as `size` says.
    let result =
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut size) };
    assert_eq!(result, 0, "program {id}");
    let name = info.name.iter().take_while(|&&letter| letter != 0);
    name.map(|&letter| char::from(letter as u8)).collect()
}

/// What stands on the two clsact hooks: how many filters of ours on each, and all that is others'.
#[derive(Clone, Debug, Default, PartialEq)]
struct Filters {
    ours: [usize; 2],
    others: Vec<serde_json::Value>,
}

impl Filters {
    fn of(namespace: &Namespace) -> Filters {
        let mut filters = Filters::default();
        for (ours, hook) in filters.ours.iter_mut().zip(["ingress", "egress"]) {
            let text = namespace.run("tc", &["-j", "filter", "show", "dev", ETH, hook]);
            let found: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON of tc");
            for filter in found {
                let name = filter["options"]["bpf_name"].as_str();
                if name.is_some_and(|name| name.starts_with("xtee")) {
                    *ours += 1;
                } else if filter["pref"] != 1 {
                    // Priority 1 is ours, and has an entry of its own.
                    filters.others.push(filter);
                }
            }
        }
        filters
    }

    fn with_ours(&self, number: usize) -> Filters {
        Filters {
            ours: [number; 2],
            others: self.others.clone(),
        }
    }
}

/// That it copies now.
fn assert_copies(mirror: &Mirror) {
    let before = target(&mirror.status()).sent_packets;
    mirror.wait_for("copies", |status| {
        target(status).sent_packets > before + 100
    });
}

#[test]
fn killed_with_tcx() {
    require_root!();
    let production = Production::new(MirrorDevice::Splits).silent();
    let folder = TestFolder::new();
    let socket = folder.file("xtee.sock");
    let instance = &production.instance;
    let stream = EchoStream::start(&production, 64, STEADY);
    for _ in 0..3 {
        let mirror = Mirror::start_at(instance, TCX, &socket);
        assert_copies(&mirror);
        let programs = tcx_programs(instance);
        assert_eq!(programs, ["xtee_ingress", "xtee_egress"]);
        stream.go_on(MOMENT);
        let killed = mirror.kill();
        // The socket of the dead is left behind, and no obstacle to the next.
        assert!(socket.exists() && killed.code.is_none());
        assert_eq!(tcx_programs(instance), Vec::<String>::new());
        stream.go_on(MOMENT);
    }
    let mirror = Mirror::start_at(instance, TCX, &socket);
    assert_copies(&mirror);
    let passed = stream.stop();
    mirror.assert_balanced();
    mirror.stop().assert_clean();
    assert_eq!(tcx_programs(instance), Vec::<String>::new());
    passed.assert_nothing_lost();
}

/// The filters of clsact outlive their process. The qdisc is there from the start, as the kernel drops
/// what an interface sends while one is made or removed (`qdisc_graft` deactivates the device).
#[test]
fn killed_with_clsact() {
    require_root!("tc");
    let production = Production::new(MirrorDevice::Splits).silent();
    let instance = &production.instance;
    instance.run("tc", &["qdisc", "add", "dev", ETH, "clsact"]);
    for hook in ["ingress", "egress"] {
        // Somebody else's, which must not be touched.
        let add = [
            "filter", "add", "dev", ETH, hook, "protocol", "all", "prio", "9",
        ];
        let all = ["u32", "match", "u32", "0", "0", "flowid", "1:1"];
        instance.run("tc", &[&add[..], &all].concat());
    }
    let before = Filters::of(instance);
    assert!(
        before.ours == [0; 2] && before.others.len() > 1,
        "{before:?}"
    );
    let stream = EchoStream::start(&production, 64, STEADY);
    for _ in 0..2 {
        let mirror = Mirror::start(instance, CLSACT);
        assert_copies(&mirror);
        assert_eq!(Filters::of(instance), before.with_ours(1));
        mirror.kill();
        assert_eq!(Filters::of(instance), before.with_ours(1));
        stream.go_on(MOMENT);
    }
    let mirror = Mirror::start(instance, CLSACT);
    assert_copies(&mirror);
    // The stale ones were replaced.
    assert_eq!(Filters::of(instance), before.with_ours(1));
    mirror.stop().assert_clean();
    assert_eq!(Filters::of(instance), before);
    stream.go_on(MOMENT);
    stream.stop().assert_nothing_lost();
}

/// The qdisc is made where there is none, with a word about what that costs, and stays.
#[test]
fn the_clsact_qdisc_is_made_once() {
    require_root!("tc");
    let production = Production::new(MirrorDevice::Splits).silent();
    let instance = &production.instance;
    let qdiscs = || instance.run("tc", &["qdisc", "show", "dev", ETH]);
    assert!(!qdiscs().contains("clsact"), "{}", qdiscs());
    for told in [true, false] {
        let mirror = Mirror::start(instance, CLSACT);
        assert_eq!(Filters::of(instance).ours, [1; 2]);
        let finished = mirror.stop();
        finished.assert_clean();
        let said = finished.stderr.contains("the kernel drops what is sent");
        assert_eq!(said, told, "{}", finished.stderr);
        assert_eq!(Filters::of(instance), Filters::default());
        assert!(qdiscs().contains("clsact"), "{}", qdiscs());
    }
}

/// After a kill with clsact a start with tcx must not copy twice.
#[test]
fn restarted_with_tcx_after_a_kill_with_clsact() {
    require_root!("tc");
    let production = Production::new(MirrorDevice::Splits).silent();
    let instance = &production.instance;
    instance.run("tc", &["qdisc", "add", "dev", ETH, "clsact"]);
    let stream = EchoStream::start(&production, 64, STEADY);
    Mirror::start(instance, CLSACT).kill();
    assert_eq!(Filters::of(instance).ours, [1; 2]);
    let mirror = Mirror::start(instance, TCX);
    assert_copies(&mirror);
    assert_eq!(Filters::of(instance).ours, [0; 2]);
    mirror.stop().assert_clean();
    stream.stop().assert_nothing_lost();
}

#[test]
fn stopped_for_two_seconds() {
    require_root!();
    let production = Production::new(MirrorDevice::Splits).silent();
    let arguments = [TCX, &["--ring-size", "1MiB"]].concat();
    let mirror = Mirror::start(&production.instance, &arguments);
    let stream = EchoStream::start(&production, 64, STEADY);
    assert_copies(&mirror);
    mirror.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(2));
    mirror.signal(libc::SIGCONT);
    assert_copies(&mirror);
    stream.go_on(MOMENT);
    let passed = stream.stop();
    passed.assert_nothing_lost();
    let status = mirror.assert_balanced();
    println!("{status}");
    assert_eq!(source(&status).seen, 2 * passed.sent, "{status}");
    assert!(source(&status).dropped[Reason::Ring.name()] > 0, "{status}");
    mirror.stop().assert_clean();
}

#[test]
fn sigterm_is_as_good_as_sigint() {
    require_root!();
    let production = Production::new(MirrorDevice::Splits).silent();
    let mirror = Mirror::start(&production.instance, TCX);
    let stream = EchoStream::start(&production, 64, STEADY);
    assert_copies(&mirror);
    let finished = mirror.end_by(libc::SIGTERM);
    finished.assert_clean();
    stream.stop().assert_nothing_lost();
}
