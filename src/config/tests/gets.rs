//! What a target may get, written wrong: shares, health, limits, marks.

use super::refused::refused;
use super::{SOURCE, TARGET};

#[test]
fn what_a_target_gets() {
    let target = |line: &str| format!("{SOURCE}{TARGET}{line}\n");
    for (line, key, wrong, allowed) in [
        (
            "distribution = \"any\"",
            "target.distribution",
            "not possible",
            "all, hash",
        ),
        (
            "health = \"heartbeat\"",
            "target.health",
            "collector) is not built yet",
            "none, neighbour",
        ),
        (
            "health = \"icmp\"",
            "target.health",
            "not possible",
            "none, neighbour",
        ),
        (
            "limit = \"2Gbit\"",
            "target.limit",
            "unit",
            "\"none\", or a rate",
        ),
        ("dscp = 64", "target.dscp", "`64` is not a DSCP", "0 to 63"),
        ("dscp = \"af5\"", "target.dscp", "not a DSCP", "af11"),
        ("priority = 16", "target.priority", "`16`", "0 to 15"),
        ("ttl = 0", "target.ttl", "`0`", "1 to 255"),
        ("limit = 1000", "target.limit", "unit", "\"2Gbit/s\""),
        ("limit = \"1kbit/s\"", "target.limit", "range", "8kbit/s"),
        ("limit = \"2Tbit/s\"", "target.limit", "range", "1Tbit/s"),
        ("limit = \"-1bit/s\"", "target.limit", "not a rate", "none"),
        ("limit = \"0.1bit/s\"", "target.limit", "not a rate", "none"),
        (
            "limit_packets = 1000",
            "target.limit_packets",
            "unit",
            "\"200k/s\"",
        ),
        (
            "limit_packets = \"0/s\"",
            "target.limit_packets",
            "range",
            "1/s",
        ),
    ] {
        refused(&target(line), 6, key, wrong, allowed);
    }
}
