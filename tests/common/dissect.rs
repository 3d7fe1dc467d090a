//! What tshark makes of tunnel packets: which tunnel with which identifiers, and where the inner frame or
//! packet begins. An implementation that shares nothing with ours.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::netns::run;

/// Values of the fields of one packet, by field; several where a field stands there several times.
pub type Fields = BTreeMap<&'static str, Vec<String>>;

const FIELDS: [&str; 19] = [
    "ip.version",
    "ip.dsfield.dscp",
    "ip.ttl",
    "ipv6.hlim",
    "udp.srcport",
    "udp.dstport",
    "vxlan.flags",
    "vxlan.vni",
    "geneve.version",
    "geneve.vni",
    "gre.proto",
    "gre.key",
    "gre.sequence_number",
    "erspan.version",
    "erspan.spanid",
    "erspan.direction",
    "erspan.timestamp",
    "erspan.gra",
    "erspan.vlan",
];
/// A checksum that is wrong, anything that cannot be read.
const BAD: &str = "tcp.checksum.status==0 || udp.checksum.status==0 || ip.checksum.status==0 || \
                   icmp.checksum.status==0 || icmpv6.checksum.status==0 || _ws.malformed || _ws.short";

/// A packet that tshark has taken apart.
#[derive(Clone, Debug)]
pub struct Dissected {
    pub fields: Fields,
    /// Where the innermost Ethernet header begins, in bytes.
    pub ethernet: usize,
    /// Where the innermost IP header begins.
    pub ip: usize,
}

impl Dissected {
    /// The first value of a field as a number, decimal or hexadecimal.
    pub fn number(&self, field: &str) -> Option<u64> {
        let text = self.fields.get(field)?.first()?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

/// Takes the packets of a capture file apart, verifying every checksum, and returns them in order.
/// Panics if tshark finds anything wrong with one.
pub fn dissect(file: &Path) -> Vec<Dissected> {
    let tshark = || {
        let mut command = Command::new("tshark");
        command.args(["-n", "-r"]).arg(file);
        for protocol in ["tcp", "udp", "ip"] {
            command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        // Payload is payload, and each packet is looked at by itself.
        command.args(["-d", "udp.port==40001,data", "-d", "tcp.port==40002,data"]);
        command.args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]);
        command
    };
    let bad = run(tshark().args(["-Y", BAD]));
    assert_eq!(bad, "", "packets that tshark finds bad");

    let mut command = tshark();
    command.args(["-T", "fields", "-E", "separator=|", "-E", "aggregator=,"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let fields: Vec<Fields> = run(&mut command).lines().map(fields_of).collect();
    let json = run(tshark().args(["-T", "json", "-x", "-j", "eth ip ipv6"]));
    let places: Vec<Value> = serde_json::from_str(&json).expect("tshark's JSON");
    assert_eq!(places.len(), fields.len());
    fields
        .into_iter()
        .zip(places)
        .map(|(fields, packet)| {
            let layers = &packet["_source"]["layers"];
            // Of equal keys the last one counts: the innermost layer.
            let at = |layer: &str| layers[layer][1].as_u64().map_or(0, |at| at as usize);
            Dissected {
                fields,
                ethernet: at("eth_raw"),
                ip: at("ip_raw").max(at("ipv6_raw")),
            }
        })
        .collect()
}

fn fields_of(line: &str) -> Fields {
    let values = line.split('|').map(|value| {
        let parts = value.split(',').filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    });
    FIELDS.into_iter().zip(values).collect()
}
