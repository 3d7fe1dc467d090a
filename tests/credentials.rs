//! What a cloud's credential endpoints say to the instance is never copied, and counted, unless that is
//! allowed.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/tapped_lab.rs"]
mod tapped_lab;

use std::time::Duration;

use common::{netns, raw_socket};
use mirror::{source, Mirror};
use tapped_lab::{Tapped, CLIENT_MAC, TARGET};

const PINGS: u64 = 3;

/// The client is the cloud's endpoint, too.
fn lab(endpoint: &str) -> Tapped {
    let lab = Tapped::with_ipv6();
    let prefix = if endpoint.contains(':') { 128 } else { 32 };
    lab.client.address("eth0", &format!("{endpoint}/{prefix}"));
    lab.instance.ip(&["route", "add", endpoint, "dev", "eth0"]);
    lab.instance.neighbour("eth0", endpoint, CLIENT_MAC);
    lab
}

fn ping(lab: &Tapped, address: &str) {
    let count = PINGS.to_string();
    lab.instance
        .run("ping", &["-c", &count, "-i", "0.01", "-W", "5", address]);
}

/// Copies of pings with this address, and how many packets were held back.
fn copied(endpoint: &str, protocol: &str, more: &[&str]) -> (u64, u64) {
    let lab = lab(endpoint);
    let mut arguments = vec!["tap:eth0", "--to", TARGET, "--protocol", protocol];
    arguments.extend(more);
    let mirror = Mirror::start(&lab.instance, &arguments);
    let monitor = lab.monitor();
    ping(&lab, endpoint);
    ping(&lab, tapped_lab::CLIENT);
    let status = mirror.assert_balanced();
    mirror.stop().assert_clean();
    let frames = monitor.until_idle(Duration::from_millis(20), Duration::from_secs(1));
    let address: Vec<u8> = match endpoint.parse().expect("an address") {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let names = |frame: &[u8]| frame.windows(address.len()).any(|bytes| bytes == address);
    let copies = copies::copies(&frames);
    let told = copies.iter().filter(|copy| names(&copy.inner)).count() as u64;
    let others = copies.len() as u64 - told;
    // In IPv6 the kernel has things to say at any time.
    if protocol == "1" {
        assert_eq!(source(&status).captured, copies.len() as u64, "{status}");
        assert_eq!(others, 2 * PINGS, "{status}");
    }
    (told, source(&status).dropped["sensitive"])
}

#[test]
fn the_metadata_service_is_not_copied() {
    require_root!("ping");
    for endpoint in ["169.254.169.254", "168.63.129.16"] {
        assert_eq!(copied(endpoint, "1", &[]), (0, 2 * PINGS), "{endpoint}");
    }
}

#[test]
fn the_metadata_service_is_not_copied_in_ipv6() {
    require_root!("ping");
    let (told, held_back) = copied("fd00:ec2::254", "icmpv6", &[]);
    assert_eq!(told, 0);
    // The kernel's neighbour discovery may add to the pings.
    assert!(held_back >= 2 * PINGS, "{held_back}");
}

#[test]
fn the_metadata_service_is_copied_where_that_is_allowed() {
    require_root!("ping");
    let allowed = ["--allow-credential-endpoints"];
    assert_eq!(copied("169.254.169.254", "1", &allowed), (2 * PINGS, 0));
    let (told, held_back) = copied("fd00:ec2::254", "icmpv6", &allowed);
    assert!(told >= 2 * PINGS, "{told}");
    assert_eq!(held_back, 0);
}
