//! Each decision of the plan, on hosts that are made up: sources here, targets in `target`.

mod places;
mod target;

use std::path::Path;

use super::*;
use crate::config::facts::{
    DeviceStep, InterfaceFacts, KernelFacts, RouteFacts, TargetFacts, TX_UDP_SEGMENTATION,
};
use crate::config::parse;

fn interface(name: &str, index: u32) -> InterfaceFacts {
    InterfaceFacts {
        name: name.to_owned(),
        index,
        exists: true,
        up: true,
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        mtu: 1500,
        driver: "ixgbe".to_owned(),
        rx_queues: 4,
        tx_queues: 4,
        features: [(TX_UDP_SEGMENTATION.to_owned(), false)].into(),
        has_ethernet_header: true,
        native_xdp: Some(true),
        zero_copy: Some(true),
        ..InterfaceFacts::default()
    }
}

fn step(device: &str, kind: &str) -> DeviceStep {
    DeviceStep {
        device: device.to_owned(),
        kind: kind.to_owned(),
    }
}

/// eth0 has the default route; eth1 is a mirror port; the target is reached by eth2, MTU 1600.
fn host() -> HostFacts {
    let mut eth0 = interface("eth0", 1);
    eth0.carries_host_traffic = true;
    let mut eth2 = interface("eth2", 3);
    eth2.mtu = 1600;
    HostFacts {
        interfaces: vec![eth0, interface("eth1", 2), eth2],
        default_route: vec!["eth0".to_owned()],
        elsewhere: Vec::new(),
        targets: vec![TargetFacts {
            resolved: Some([203, 0, 113, 2].into()),
            resolve_error: None,
            route: Some(RouteFacts {
                ifindex: 3,
                device: "eth2".to_owned(),
                gateway: None,
                prefsrc: Some([203, 0, 113, 1].into()),
                mtu: 1600,
                mtu_learned: false,
                neighbour: None,
            }),
            walk: vec![step("eth2", "")],
        }],
        sinks: Vec::new(),
        kernel: KernelFacts {
            release: "6.18.0".to_owned(),
            tcx: true,
            btf: true,
            cast_to_kern_ctx: true,
            xdp: true,
            af_xdp: true,
            udp_segment: true,
            prefer_busy_poll: true,
        },
        online_cpus: vec![0, 1, 2, 3],
    }
}

const TAP: &str = "[[source]]\nkind = \"tap\"\ninterface = \"eth0\"\n";
const SPAN: &str = "[[source]]\nkind = \"span\"\ninterface = \"eth1\"\n";
const HOST_SPAN: &str = "[[source]]\nkind = \"span\"\ninterface = \"eth0\"\n";
const VXLAN: &str = "[[target]]\nurl = \"vxlan://203.0.113.2?vni=7\"\n";
const GRE: &str = "[[target]]\nurl = \"gre://203.0.113.2?key=7\"\n";

fn decide(text: &str, facts: &HostFacts) -> Result<Plan, ConfigError> {
    plan(&parse(Path::new("test.toml"), text).unwrap(), facts)
}

#[track_caller]
fn refused(text: &str, facts: &HostFacts, line: usize, wrong: &str, allowed: &str) {
    let error = decide(text, facts).unwrap_err().to_string();
    assert!(error.starts_with(&format!("test.toml:{line}: ")), "{error}");
    assert!(error.contains(wrong), "{error}");
    assert!(error.contains(&format!("allowed: {allowed}")), "{error}");
}

fn attach_of(plan: &Plan) -> Attach {
    match &plan.sources[0].capture {
        Capture::Tap { attach, .. } => attach.value,
        span => panic!("not a tap: {span:?}"),
    }
}

type SpanDecisions = (Choice<XdpMode>, bool, Choice<ZeroCopy>, Choice<u16>);

fn span_of(plan: &Plan) -> SpanDecisions {
    match plan.sources[0].capture.clone() {
        Capture::Span {
            mode,
            generic_if_native_fails,
            zero_copy,
            room,
            ..
        } => (mode, generic_if_native_fails, zero_copy, room),
        tap => panic!("not a span: {tap:?}"),
    }
}

#[test]
fn a_tap_is_attached_by_tcx_where_the_kernel_has_it() {
    let mut facts = host();
    let asked = |how: &str| format!("{TAP}attach = \"{how}\"\n{VXLAN}");
    let plan = decide(&format!("{TAP}{VXLAN}"), &facts).unwrap();
    assert_eq!(attach_of(&plan), Attach::Tcx);
    assert_eq!(
        attach_of(&decide(&asked("clsact"), &facts).unwrap()),
        Attach::Clsact
    );
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    assert!(plan.sources[0].carries_host_traffic);
    assert_eq!(plan.sources[0].ifindex, 1);

    facts.kernel.tcx = false;
    facts.kernel.release = "6.1.0".to_owned();
    assert_eq!(
        attach_of(&decide(&asked("auto"), &facts).unwrap()),
        Attach::Clsact
    );
    refused(
        &asked("tcx"),
        &facts,
        1,
        "kernel (6.1.0) has no tcx",
        "attach = \"auto\"",
    );
}

#[test]
fn workers_cpus_and_queues() {
    let facts = host();
    let workers = |text: &str| {
        let plan = decide(&format!("{text}{VXLAN}"), &facts).unwrap();
        let workers = plan.sources[0].workers.iter();
        workers
            .map(|w| (w.cpu, w.queues.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(workers(TAP), [(None, vec![])]);
    let pinned = workers(&format!("{TAP}cpus = [3, 1]\n"));
    assert_eq!(pinned, [(Some(3), vec![]), (Some(1), vec![])]);
    assert_eq!(
        workers(&format!("{TAP}workers = 2\n")),
        [(None, vec![]), (None, vec![])]
    );
    let each = workers(SPAN);
    assert_eq!(
        each.iter().map(|w| w.1.clone()).collect::<Vec<_>>(),
        [[0], [1], [2], [3]]
    );
    let shared = workers(&format!("{SPAN}cpus = [1, 2]\n"));
    assert_eq!(shared, [(Some(1), vec![0, 2]), (Some(2), vec![1, 3])]);
    assert_eq!(
        workers(&format!("{SPAN}workers = 1\n")),
        [(None, vec![0, 1, 2, 3])]
    );

    let offline = format!("{TAP}cpus = [9]\n{VXLAN}");
    refused(
        &offline,
        &facts,
        1,
        "CPU 9 is not online",
        "`cpus` out of 0, 1, 2, 3",
    );
    let many = format!("{SPAN}workers = 5\n{VXLAN}");
    refused(
        &many,
        &facts,
        1,
        "5 workers for 4 receive queues",
        "at most 4",
    );
    let shared = format!("{TAP}cpus = [1]\n{SPAN}cpus = [0, 1]\n{VXLAN}");
    let plan = decide(&shared, &facts).unwrap();
    assert!(
        plan.warnings[0].contains("tap:eth0 and span:eth1 share CPU 1"),
        "{plan}"
    );
}

#[test]
fn sixty_four_queues_do_not_make_more_workers_than_cpus() {
    let mut facts = host();
    facts.interfaces[1].rx_queues = 64;
    let plan = decide(&format!("{SPAN}{VXLAN}"), &facts).unwrap();
    let workers = &plan.sources[0].workers;
    assert_eq!(workers.len(), 4);
    assert_eq!(workers.iter().map(|w| w.queues.len()).sum::<usize>(), 64);
}

#[test]
fn interfaces_have_to_be_there() {
    let mut facts = host();
    facts.interfaces[0].up = false;
    let plan = decide(&format!("{TAP}{VXLAN}"), &facts).unwrap();
    assert!(plan.warnings[0].contains("eth0 is down"), "{plan}");
    facts.interfaces[0].exists = false;
    refused(
        &format!("{TAP}{VXLAN}"),
        &facts,
        1,
        "no interface eth0",
        "eth1, eth2",
    );
    facts.interfaces[1].has_ethernet_header = false;
    refused(
        &format!("{SPAN}{VXLAN}"),
        &facts,
        1,
        "no Ethernet frames",
        "an Ethernet",
    );
    facts.kernel.af_xdp = false;
    refused(
        &format!("{SPAN}{VXLAN}"),
        &facts,
        1,
        "a span needs AF_XDP",
        "a kernel",
    );
}

#[test]
fn a_span_is_native_with_zero_copy_where_the_driver_can() {
    let mut facts = host();
    let text = format!("{SPAN}{VXLAN}");
    let (mode, fall_back, zero_copy, room) = span_of(&decide(&text, &facts).unwrap());
    assert_eq!((mode.value, fall_back), (XdpMode::Native, true));
    assert_eq!(zero_copy.value, ZeroCopy::Prefer);
    assert_eq!(room.value, 0);

    facts.interfaces[1].zero_copy = Some(false);
    let (mode, _, zero_copy, _) = span_of(&decide(&text, &facts).unwrap());
    assert_eq!(
        (mode.value, zero_copy.value),
        (XdpMode::Native, ZeroCopy::Never)
    );
    assert!(zero_copy.why.contains("driver of eth1 has no zero copy"));
    let require = format!("{SPAN}zero_copy = \"require\"\n{VXLAN}");
    refused(
        &require,
        &facts,
        1,
        "zero copy is required, and the driver",
        "zero_copy",
    );

    facts.interfaces[1].native_xdp = Some(false);
    let (mode, fall_back, zero_copy, _) = span_of(&decide(&text, &facts).unwrap());
    assert_eq!((mode.value, fall_back), (XdpMode::Generic, false));
    assert_eq!(zero_copy.value, ZeroCopy::Never);
    let native = format!("{SPAN}mode = \"native\"\n{VXLAN}");
    refused(
        &native,
        &facts,
        1,
        "driver of eth1 has no native XDP",
        "mode = \"auto\"",
    );

    // Where the kernel does not tell, it is tried.
    facts.interfaces[1].native_xdp = None;
    facts.interfaces[1].zero_copy = None;
    let (mode, fall_back, zero_copy, _) = span_of(&decide(&text, &facts).unwrap());
    assert_eq!((mode.value, fall_back), (XdpMode::Native, true));
    assert_eq!(zero_copy.value, ZeroCopy::Prefer);
}

#[test]
fn the_hosts_own_link_is_left_alone_unless_allowed() {
    let facts = host();
    let text = |lines: &str| format!("{HOST_SPAN}{lines}{VXLAN}");
    let plan = decide(&text(""), &facts).unwrap();
    let (mode, fall_back, zero_copy, _) = span_of(&plan);
    assert_eq!((mode.value, fall_back), (XdpMode::Generic, false));
    assert!(
        mode.why.contains("carries the host's own traffic"),
        "{}",
        mode.why
    );
    assert_eq!(zero_copy.value, ZeroCopy::Never);
    assert!(
        zero_copy.why.contains("allow_link_reset"),
        "{}",
        zero_copy.why
    );
    assert!(
        plan.warnings.iter().any(|w| w.contains("lost to the host")),
        "{plan}"
    );

    let own = "carries the host's own traffic";
    refused(
        &text("mode = \"native\"\n"),
        &facts,
        1,
        own,
        "mode = \"auto\"",
    );
    let native = decide(&text("mode = \"native\"\n"), &facts).unwrap_err();
    assert!(
        native.allowed.contains("allow_link_reset = true"),
        "{native}"
    );
    refused(
        &text("zero_copy = \"require\"\n"),
        &facts,
        1,
        own,
        "zero_copy = \"prefer\"",
    );

    let plan = decide(&text("allow_link_reset = true\n"), &facts).unwrap();
    let (mode, _, zero_copy, _) = span_of(&plan);
    assert_eq!(
        (mode.value, zero_copy.value),
        (XdpMode::Native, ZeroCopy::Prefer)
    );
    assert!(plan.sources[0].allow_link_reset);
}

#[test]
fn room_is_made_for_the_largest_header_that_af_xdp_sends() {
    let mut facts = host();
    facts.targets.push(facts.targets[0].clone());
    let room = |targets: &str| span_of(&decide(&format!("{SPAN}{targets}"), &facts).unwrap()).3;
    assert_eq!(room(VXLAN).value, 0);
    assert_eq!(room(GRE).value, 14 + 28);
    let xsk = format!("{GRE}{VXLAN}transmit = \"xsk\"\n");
    assert_eq!(room(&xsk).value, 14 + 36);
    let sequenced = "[[target]]\nurl = \"gre://203.0.113.2?key=7&seq=on\"\n";
    let text = format!("{SPAN}workers = 1\n{sequenced}");
    assert_eq!(span_of(&decide(&text, &facts).unwrap()).3.value, 14 + 32);
    facts.targets[0].resolved = Some("2001:db8::2".parse().unwrap());
    let largest = "[[target]]\nurl = \"erspan://[2001:db8::2]?session=7&version=3\"\n";
    let plan = decide(&format!("{SPAN}{largest}"), &facts).unwrap();
    assert_eq!(span_of(&plan).3.value, 14 + 60);
}

#[test]
fn workers_that_share_sequence_numbers_are_told() {
    let mut facts = host();
    // So that nothing is said of sizes.
    facts.targets[0].route.as_mut().unwrap().mtu = 1700;
    let warnings = |workers: usize, url: &str| {
        let text = format!("{TAP}workers = {workers}\n[[target]]\nurl = \"{url}\"\n");
        decide(&text, &facts).unwrap().warnings
    };
    for numbered in ["gre://203.0.113.2?seq=on", "erspan://203.0.113.2?session=1"] {
        assert!(warnings(1, numbered).is_empty());
        let told = warnings(2, numbered);
        assert!(
            told[0].contains("2 workers share its sequence numbers"),
            "{told:?}"
        );
    }
    assert!(warnings(2, "gre://203.0.113.2").is_empty());
}

#[test]
fn rules_that_a_span_cannot_satisfy_are_told() {
    let facts = host();
    let rule = "[[rule]]\naction = \"mirror\"\ndirection = \"out\"\nmark = 1\n";
    let plan = decide(&format!("{SPAN}{rule}{VXLAN}"), &facts).unwrap();
    assert_eq!(plan.warnings.len(), 2, "{plan}");
    let plan = decide(&format!("{TAP}{rule}{VXLAN}"), &facts).unwrap();
    assert!(plan.warnings.is_empty(), "{plan}");
    assert_eq!((plan.rules, plan.default_mirror), (1, false));
}

#[test]
fn the_plan_prints_and_serialises() {
    let facts = host();
    let mut two = facts.clone();
    two.targets.push(facts.targets[0].clone());
    let text = format!("{TAP}cpus = [3]\n{SPAN}{VXLAN}{GRE}");
    let plan = decide(&text, &two).unwrap();
    let shown = plan.to_string();
    for words in [
        "source    tap:eth0\n",
        "  attach    tcx (the kernel has tcx links",
        "  ring      16MiB for each worker",
        "  worker 0  CPU 3\n",
        "source    span:eth1\n",
        "  mode      native (",
        "rules     none: packets are mirrored",
        "target    vxlan://203.0.113.2:4789?vni=7\n",
        "path MTU 1600 (device): inner frames of up to 1564 bytes fit",
        "  transmit  xsk (GRE",
        "  gso       UDP_SEGMENT (",
        "control   /run/xtee/xtee.sock",
    ] {
        assert!(shown.contains(words), "{words} is missing in\n{shown}");
    }
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["sources"][0]["capture"]["kind"], "tap");
    assert_eq!(json["sources"][0]["capture"]["attach"]["value"], "tcx");
    assert_eq!(json["sources"][0]["workers"][0]["cpu"], 3);
    assert_eq!(json["sources"][1]["capture"]["mode"]["value"], "native");
    assert_eq!(json["targets"][0]["transmit"]["value"], "udp");
    assert_eq!(json["targets"][0]["encapsulation"]["vxlan"]["vni"], 7);
    assert_eq!(json["targets"][1]["gso"], serde_json::Value::Null);
    assert_eq!(json["targets"][1]["largest_frame"], 1572);
}
