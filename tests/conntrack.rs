//! What sockets send stays out of the host's connection tracking, and nothing of that outlives the process.

#[macro_use]
mod common;
#[path = "common/copies.rs"]
mod copies;
#[path = "common/guard_lab.rs"]
mod guard_lab;
#[path = "common/mirror.rs"]
mod mirror;
#[path = "common/packets.rs"]
mod packets;
#[path = "common/targets_lab.rs"]
mod targets_lab;

use std::time::Duration;

use common::{netns, raw_socket};
use targets_lab::{counted, start, url, Lab};

const PATIENCE: Duration = Duration::from_secs(10);

/// A host that tracks connections has no entry of ours, and no table of ours once xtee was killed.
#[test]
fn our_outer_flow_is_not_tracked() {
    require_root!("nft", "ping");
    let lab = Lab::new(2);
    let watch = "table inet watch { chain out { type filter hook output priority 0; ct state new counter; udp dport \
                 4789 ct state untracked counter; }; }";
    lab.instance.run("nft", &[watch]);
    for number in 0..2 {
        let address = targets_lab::address(number);
        lab.instance.run("ping", &["-c", "1", "-W", "5", &address]);
    }
    let entries = || lab.instance.run("cat", &["/proc/net/nf_conntrack"]);
    assert!(entries().contains("icmp"), "{}", entries());
    let gre = format!("gre://{}?key=7&transmit=raw", targets_lab::address(1));
    let mirror = start(&lab, &[url(0, "&transmit=udp"), gre]);
    // An ordinary datagram beside it is tracked as ever.
    let other = copies::sink(&lab.instance, "203.0.113.1");
    copies::send(&other, "203.0.113.2:4790", 0..1, 8, Duration::ZERO);
    lab.round(50, 0, 64);
    let status = mirror.assert_balanced();
    let sent = status.targets[0].sent_packets;
    assert!(
        sent >= 100 && status.targets[1].sent_packets == sent,
        "{status}"
    );
    let text = entries();
    assert!(text.contains("dport=4790"), "{text}");
    assert!(!text.contains("dport=4789"), "{text}");
    assert!(!text.contains("gre") && !text.contains(" 47 "), "{text}");
    assert!(counted(&lab.instance, "untracked") >= sent / 64);
    let tables = || lab.instance.run("nft", &["list", "tables"]);
    assert!(tables().contains("inet xtee-"), "{}", tables());
    mirror.kill();
    netns::wait_until("the table is gone", PATIENCE, || !tables().contains("xtee"));
}

/// A host without connections to track gets no table: it would cost each of its packets.
#[test]
fn nothing_is_made_where_nothing_is_tracked() {
    require_root!("nft");
    let lab = Lab::new(1);
    let mirror = start(&lab, &[url(0, "&transmit=udp")]);
    lab.round(50, 0, 64);
    mirror.assert_balanced();
    let tables = lab.instance.run("nft", &["list", "tables"]);
    assert_eq!(tables, "");
    mirror.stop().assert_clean();
}
