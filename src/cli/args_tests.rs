//! Arguments make the same configuration as a file, and errors name the flag.

use clap::{CommandFactory, Parser};

use super::*;
use crate::config::parse;
use crate::config::settings::{Source, Target};

fn mirror(arguments: &[&str]) -> Result<Config, ConfigError> {
    let start = ["xtee", "mirror"];
    let all = Arguments::try_parse_from(start.iter().chain(arguments)).unwrap();
    let Command::Mirror(mirror) = all.command else {
        panic!("not mirror");
    };
    mirror.config()
}

const TO: &str = "vxlan://203.0.113.2?vni=7";

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn check_knows_all_options_of_mirror() {
    let command = Arguments::command();
    let mirror = command.find_subcommand("mirror").unwrap();
    let ids = mirror.get_arguments().map(|a| a.get_id().as_str());
    let mut ids: Vec<_> = ids.filter(|id| *id != "source").collect();
    let mut listed = MIRROR_OPTIONS.to_vec();
    ids.sort_unstable();
    listed.sort_unstable();
    assert_eq!(ids, listed);
}

#[test]
fn every_argument_has_help() {
    for command in Arguments::command().get_subcommands() {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            let name = (command.get_name(), argument.get_id());
            assert!(argument.get_help().is_some(), "{name:?}");
        }
    }
}

#[test]
fn arguments_and_file_make_the_same_configuration() {
    let by_arguments = mirror(&[
        "tap:eth0",
        "--to",
        TO,
        "gre://ndr.example.net?key=1",
        "--protocol",
        "tcp",
        "--port",
        "443,8000-8100",
        "--source-port",
        "1",
        "--destination-port",
        "2-3",
        "--net",
        "198.51.100.0/24,2001:db8::/32",
        "--source-net",
        "203.0.113.7",
        "--destination-net",
        "::/0",
        "--direction",
        "ingress",
        "--mark",
        "0x1/0xff",
        "--cpus",
        "2,3",
        "--workers",
        "2",
        "--attach",
        "clsact",
        "--ring-size",
        "64KiB",
        "--allow-link-reset",
        "--allow-credential-endpoints",
        "--transmit",
        "auto",
        "--gso",
        "off",
        "--distribution",
        "hash",
        "--limit",
        "3Gbit/s",
        "--limit-packets",
        "200k/s",
        "--budget",
        "2Gbit/s",
        "--budget-packets",
        "1M/s",
        "--load",
        "80%",
        "--socket",
        "/tmp/s",
    ])
    .unwrap();
    let text = r#"
        [[source]]
        kind = "tap"
        interface = "eth0"
        cpus = [2, 3]
        workers = 2
        attach = "clsact"
        ring_size = 65536
        allow_link_reset = true
        allow_credential_endpoints = true
        [[rule]]
        action = "mirror"
        protocol = "tcp"
        ports = [443, "8000-8100"]
        source_ports = [1]
        destination_ports = ["2-3"]
        networks = ["198.51.100.0/24", "2001:db8::/32"]
        source = ["203.0.113.7"]
        destination = ["::/0"]
        direction = "in"
        mark = "1/255"
        [[target]]
        url = "vxlan://203.0.113.2?vni=7&gso=off&limit=3Gbit/s&limit_packets=200k/s&distribution=hash"
        [[target]]
        url = "gre://ndr.example.net?key=1"
        gso = "off"
        distribution = "hash"
        limit = "3Gbit/s"
        limit_packets = "200k/s"
        [breaker]
        budget = "2Gbit/s"
        budget_packets = "1M/s"
        load = "80%"
        [control]
        socket = "/tmp/s"
    "#;
    let mut by_file = parse("x.toml".as_ref(), text).unwrap();
    // All that may differ is where it was written.
    let place = by_arguments.sources[0].place.clone();
    by_file
        .sources
        .iter_mut()
        .for_each(|s: &mut Source| s.place = place.clone());
    by_file
        .targets
        .iter_mut()
        .for_each(|t: &mut Target| t.place = place.clone());
    assert_eq!(by_arguments, by_file);
}

#[test]
fn mirror_wants_a_target() {
    let error = Arguments::try_parse_from(["xtee", "mirror", "tap:eth0"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("--to"), "{error}");
}

#[test]
fn without_filters_everything_is_mirrored() {
    let config = mirror(&["span:eth1", "--to", TO]).unwrap();
    assert!(config.rules.is_empty());
    assert_eq!(config.sources[0].name(), "span:eth1");
}

#[test]
fn errors_name_the_flag() {
    for (arguments, flag, wrong, allowed) in [
        (vec!["eth0"], "SOURCE", "how packets are taken", "tap:IF"),
        (
            vec!["wire:eth0,eth1"],
            "SOURCE",
            "wire is not built yet",
            "tap, span",
        ),
        (vec!["tap:"], "SOURCE", "not the name", "15 bytes"),
        (
            vec!["tap:eth0@shop"],
            "SOURCE",
            "not a network namespace",
            "pid:N",
        ),
        (
            vec!["tap:eth0", "--port", "443,70000"],
            "--port",
            "`70000`",
            "65535",
        ),
        (
            vec!["tap:eth0", "--protocol", "icmp", "--port", "1"],
            "--port",
            "icmp has no",
            "tcp",
        ),
        (
            vec!["tap:eth0", "--net", "10.0.0.1/8"],
            "--net",
            "bits set",
            "10.0.0.0/8",
        ),
        (
            vec!["tap:eth0", "--direction", "up"],
            "--direction",
            "`up`",
            "both",
        ),
        (vec!["tap:eth0", "--mark", "x"], "--mark", "`x`", "0x1/0xff"),
        (
            vec!["tap:eth0", "--mode", "native"],
            "--mode",
            "setting of a span",
            "attach",
        ),
        (
            vec!["span:eth0", "--ring-size", "1MiB"],
            "--ring-size",
            "setting of a tap",
            "mode",
        ),
        (vec!["tap:eth0", "--cpus", "1,1"], "--cpus", "twice", "once"),
        (
            vec!["tap:eth0", "--workers", "0"],
            "--workers",
            "0 workers",
            "1 to 64",
        ),
        (
            vec!["tap:eth0", "--gso", "yes"],
            "--gso",
            "`yes`",
            "auto, on, off",
        ),
        (
            vec!["tap:eth0", "--transmit", "xsk", "--gso", "on"],
            "--gso",
            "UDP sockets",
            "off",
        ),
    ] {
        let all: Vec<_> = arguments.iter().copied().chain(["--to", TO]).collect();
        let error = mirror(&all).unwrap_err();
        let shown = error.to_string();
        assert_eq!(error.key, flag, "{shown}");
        assert!(error.wrong.contains(wrong), "{shown}");
        assert!(error.allowed.contains(allowed), "{shown}");
        assert!(
            shown.starts_with(&format!("arguments: `{flag}`: ")),
            "{shown}"
        );
    }
    let error = mirror(&["tap:eth0", "--to", "http://x"]).unwrap_err();
    assert_eq!(error.key, "--to");
}

#[test]
fn check_takes_a_file_or_arguments() {
    let check = |arguments: &[&str]| {
        let start = ["xtee", "check"];
        Arguments::try_parse_from(start.iter().chain(arguments)).map(|all| match all.command {
            Command::Check(check) => check,
            other => panic!("not check: {other:?}"),
        })
    };
    let by_arguments = check(&["tap:eth0", "--to", TO, "--json"]).unwrap();
    assert!(by_arguments.json);
    assert!(by_arguments.config().is_ok());
    let by_file = check(&["--config", "/nonexistent.toml"]).unwrap();
    assert!(by_file
        .config()
        .unwrap_err()
        .to_string()
        .contains("cannot be read"));
    for wrong in [
        &[][..],
        &["tap:eth0"],
        &["--to", TO],
        &["--config", "x", "--to", TO],
        &["--config", "x", "tap:eth0", "--to", TO],
        &["--config", "x", "--port", "1"],
    ] {
        let error = check(wrong).unwrap_err();
        assert_eq!(
            error.exit_code(),
            i32::from(ConfigError::EXIT_CODE),
            "{wrong:?}"
        );
    }
}
