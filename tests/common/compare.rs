//! Copies compared with originals: byte for byte, each exactly once, in the order of their flow, and
//! decoded by tshark with all checksums verified.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use xtee::packet::encap::{decapsulate, Tunnel, TunnelPorts};

use crate::common::netns::run;
use crate::wire::{checksum, network, with_transport_checksum, write_pcap, Seen};

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Outer source ports unless told otherwise.
const PORTS: std::ops::RangeInclusive<u16> = 61000..=61063;

/// A tunnel packet that arrived.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The outer frame, its UDP checksum finished.
    pub outer: Vec<u8>,
    pub inner: Vec<u8>,
    /// 0 for GRE.
    pub source_port: u16,
    pub sequence: Option<u32>,
}

/// Takes the tunnel packets apart that came in on the mirror path. What is not IPv4 is not ours (ARP);
/// all IPv4 has to be a right tunnel packet of at most `mtu` bytes.
pub fn copies(arrived: &[Seen], tunnel: Tunnel, mtu: usize) -> Vec<Copy> {
    arrived
        .iter()
        .filter(|seen| !seen.outgoing && seen.bytes[12..14] == IPV4)
        .map(|seen| {
            assert_eq!(seen.gso, None, "a super-packet arrived unsplit");
            let outer = seen.packets().swap_remove(0);
            let length = outer.len();
            assert!(length <= ETHERNET + mtu, "{length} bytes on the path");
            assert_eq!(checksum(&outer[14..34]), 0, "outer IPv4 checksum");
            let found = decapsulate(&outer, TunnelPorts::default())
                .unwrap_or_else(|| panic!("not a tunnel packet: {:02x?}", &outer[..42]));
            assert_eq!(found.tunnel, tunnel);
            match tunnel {
                Tunnel::Vxlan { vni, .. } => {
                    assert!(PORTS.contains(&found.source_port), "{}", found.source_port);
                    let header = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes()].concat();
                    assert_eq!(outer[42..50], header, "VXLAN header (RFC 7348)");
                    assert_udp_checksum(&outer);
                }
                Tunnel::Gre { .. } => assert_eq!(outer[36..38], [0x65, 0x58]),
                other => panic!("{other:?} has a comparison of its own (the matrix)"),
            }
            Copy {
                inner: outer[found.inner].to_vec(),
                source_port: found.source_port,
                sequence: found.sequence,
                outer,
            }
        })
        .collect()
}

/// Zero (none) or right.
fn assert_udp_checksum(outer: &[u8]) {
    if outer[40..42] == [0, 0] {
        return;
    }
    let pseudo = [&outer[26..34], &[0, 17], &outer[38..40], &outer[34..]].concat();
    assert_eq!(checksum(&pseudo), 0, "outer UDP checksum");
}

/// Flow and direction of a frame: addresses, protocol, and the ports of TCP and UDP that is whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    source: Vec<u8>,
    destination: Vec<u8>,
    kind: Vec<u8>,
}

impl Flow {
    pub fn of(frame: &[u8]) -> Flow {
        let at = network(frame);
        let ethertype = [frame[at - 2], frame[at - 1]];
        let packet = &frame[at..];
        let (protocol, addresses, transport, fragment) = match ethertype {
            IPV4 => {
                let header = usize::from(packet[0] & 15) * 4;
                let fragment = packet[6] & 0x3f != 0 || packet[7] != 0;
                (packet[9], 12..20, header, fragment)
            }
            IPV6 => (packet[6], 8..40, 40, false),
            _ => {
                return Flow {
                    source: frame[6..12].to_vec(),
                    destination: frame[..6].to_vec(),
                    kind: ethertype.to_vec(),
                }
            }
        };
        let (source, destination) = packet[addresses.clone()].split_at(addresses.len() / 2);
        let (mut source, mut destination) = (source.to_vec(), destination.to_vec());
        if !fragment && matches!(protocol, 6 | 17) {
            source.extend(&packet[transport..transport + 2]);
            destination.extend(&packet[transport + 2..transport + 4]);
        }
        Flow {
            source,
            destination,
            kind: vec![ethertype[0], ethertype[1], protocol, u8::from(fragment)],
        }
    }

    /// The same for both directions.
    fn both(&self) -> Flow {
        let mut flow = self.clone();
        if flow.source > flow.destination {
            std::mem::swap(&mut flow.source, &mut flow.destination);
        }
        flow
    }
}

/// What was compared.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Frames as the other end's interface saw them.
    pub originals: usize,
    /// Those of them that are several packets on a wire, of TCP and of UDP.
    pub super_packets: (usize, usize),
    /// Those whose checksum was left to the device.
    pub unfinished: usize,
    /// Those whose VLAN tag had been taken out.
    pub stripped_tags: usize,
    /// Packets on a wire, all of which have an equal copy.
    pub packets: usize,
    pub bytes: usize,
    pub flows: usize,
    /// Outer source ports in use.
    pub ports: BTreeSet<u16>,
}

/// How much of the originals has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Every packet, once.
    All,
    /// Packets may be missing, but none may be twice, out of order or different.
    Some,
}

/// Checks that the copies are the originals' packets: in every flow and direction the same bytes in
/// the same order, none twice, none larger than `mtu` allows, both directions of a flow from one source
/// port; and none missing, if all are expected.
///
/// # Errors
/// The first thing that is wrong, in words.
pub fn compare(
    originals: &[Seen],
    copies: &[Copy],
    mtu: usize,
    expect: Expect,
) -> Result<Comparison, String> {
    let mut result = Comparison {
        originals: originals.len(),
        ..Comparison::default()
    };
    let mut wanted: BTreeMap<Flow, Vec<Vec<u8>>> = BTreeMap::new();
    for seen in originals {
        match seen.gso {
            Some((_, true)) => result.super_packets.1 += 1,
            Some((_, false)) => result.super_packets.0 += 1,
            None => {}
        }
        result.unfinished += usize::from(seen.unfinished.is_some());
        result.stripped_tags += usize::from(seen.vlan.is_some());
        for packet in seen.packets() {
            result.packets += 1;
            result.bytes += packet.len();
            wanted.entry(Flow::of(&packet)).or_default().push(packet);
        }
    }
    result.flows = wanted.len();

    let mut got: BTreeMap<Flow, Vec<&[u8]>> = BTreeMap::new();
    let mut ports: BTreeMap<Flow, BTreeSet<u16>> = BTreeMap::new();
    for copy in copies {
        let inner = &copy.inner;
        if inner.len() > network(inner) + mtu {
            return Err(format!("larger than the MTU: {}", show(inner)));
        }
        let flow = Flow::of(inner);
        let used = ports.entry(flow.both()).or_default();
        used.insert(copy.source_port);
        got.entry(flow).or_default().push(inner);
    }
    for (flow, used) in &ports {
        if used.len() > 1 {
            return Err(format!("{flow:?} has several outer ports: {used:?}"));
        }
        result.ports.extend(used);
    }
    for (flow, copies) in &got {
        let packets = wanted.get(flow).map_or(&[][..], Vec::as_slice);
        match expect {
            Expect::All => equal(flow, packets, copies)?,
            Expect::Some => among(flow, packets, copies)?,
        }
    }
    if expect == Expect::All {
        for (flow, packets) in &wanted {
            if !got.contains_key(flow) {
                return Err(format!("{flow:?}: {} packets, no copy", packets.len()));
            }
        }
    }
    Ok(result)
}

/// The copies are a part of the packets, in their order.
fn among(flow: &Flow, packets: &[Vec<u8>], copies: &[&[u8]]) -> Result<(), String> {
    let mut rest = packets.iter();
    for (number, copy) in copies.iter().enumerate() {
        if !rest.any(|packet| packet == copy) {
            return Err(format!(
                "{flow:?}: copy number {number} of {} is no packet, or out of order or doubled: {}",
                copies.len(),
                show(copy)
            ));
        }
    }
    Ok(())
}

fn equal(flow: &Flow, packets: &[Vec<u8>], copies: &[&[u8]]) -> Result<(), String> {
    if packets.len() == copies.len() && packets.iter().zip(copies).all(|(one, other)| one == other)
    {
        return Ok(());
    }
    let at = packets
        .iter()
        .zip(copies)
        .position(|(packet, copy)| packet != copy)
        .unwrap_or(packets.len().min(copies.len()));
    let mut text = format!(
        "{flow:?}: {} packets, {} copies; they differ from number {at} on",
        packets.len(),
        copies.len()
    );
    match (packets.get(at), copies.get(at)) {
        (Some(packet), Some(copy)) => {
            let byte = packet
                .iter()
                .zip(*copy)
                .position(|(one, other)| one != other);
            text += &format!("\noriginal {}\ncopy     {}", show(packet), show(copy));
            text += &format!("\nfirst different byte {byte:?}");
            let elsewhere = copies.iter().position(|copy| copy == packet);
            text += &format!("\nthe original equals copy number {elsewhere:?}");
        }
        (Some(packet), None) => text += &format!("\nno copy of {}", show(packet)),
        (None, Some(copy)) => text += &format!("\none copy more: {}", show(copy)),
        (None, None) => {}
    }
    Err(text)
}

fn show(frame: &[u8]) -> String {
    let head = &frame[..frame.len().min(90)];
    let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes: {hex}", frame.len())
}

/// Asserts that tshark, verifying every checksum, outer and inner, finds a bad one or a malformed
/// packet in exactly those copies whose inner frame is one of `wrong`.
pub fn assert_tshark_agrees(copies: &[Copy], wrong: &[Vec<u8>], folder: &Path) {
    const BAD: &str = "tcp.checksum.status==0 || udp.checksum.status==0 || ip.checksum.status==0 || \
                       icmp.checksum.status==0 || icmpv6.checksum.status==0 || _ws.malformed || _ws.short";
    let file = folder.join("copies.pcap");
    write_pcap(&file, copies.iter().map(|copy| copy.outer.as_slice()));
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(&file);
    for protocol in ["tcp", "udp", "ip"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    // Payload is payload: iperf3 sends random bytes from random ports, and where such a port is also that
    // of some protocol, tshark would take the bytes for it and call them malformed.
    command.args(["-d", "tcp.port==1-65535,data"]);
    command.args(["-Y", BAD, "-T", "fields", "-e", "frame.number"]);
    let bad: Vec<usize> = run(&mut command)
        .lines()
        .map(|line| line.trim().parse::<usize>().expect("a frame number"))
        .filter(|number| !has_the_other_zero(&copies[number - 1].inner))
        .collect();
    let expected: Vec<usize> = (1..)
        .zip(copies)
        .filter(|(_, copy)| wrong.contains(&copy.inner))
        .map(|(number, _)| number)
        .collect();
    assert_eq!(expected.len(), wrong.len(), "the wrong packets' copies");
    assert_eq!(bad, expected, "copies that tshark finds bad");
}

/// One TCP packet in 65 536 has a checksum of 0, for which Linux writes 0xffff where no device computes
/// it (skb_checksum_help). It is right (RFC 1624, section 3), but tshark would have it 0.
fn has_the_other_zero(frame: &[u8]) -> bool {
    let at = network(frame);
    let (protocol, transport) = match frame[at] >> 4 {
        4 => (frame[at + 9], at + usize::from(frame[at] & 15) * 4),
        _ => (frame[at + 6], at + 40),
    };
    let field = transport + 16..transport + 18;
    protocol == 6
        && frame.get(field.clone()) == Some(&[0xff, 0xff])
        && with_transport_checksum(frame.to_vec())[field] == [0, 0]
}
