//! Frames of all kinds: tags, tunnels, truncation, fragments, and bytes at random.

use proptest::prelude::*;

use super::*;
use crate::loss::{flags, Counts};

const START: u64 = 1_700_000_000_000_000_000;

/// An IPv4 TCP packet of 20 + 20 header bytes.
fn packet(client: bool, sequence: u32, acknowledgment: u32, payload: u16, number: u16) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((40 + payload).to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.extend([0x40, 0, 64, 6, 0, 0]);
    let (from, to) = if client { (1, 2) } else { (2, 1) };
    bytes.extend([198, 51, 100, from, 198, 51, 100, to]);
    let ports: [u16; 2] = if client { [40000, 80] } else { [80, 40000] };
    bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledgment.to_be_bytes());
    bytes.extend([0x50, flags::ACK, 3, 232, 0, 0, 0, 0]);
    bytes.resize(40 + usize::from(payload), 0);
    bytes
}

fn ethernet(tags: &[[u8; 4]], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    tags.iter().for_each(|tag| frame.extend(tag));
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}

/// A stream with a hole of 1000 octets that is acknowledged; `wrap` makes a frame of each packet.
fn run(snap: usize, link: Link, wrap: impl Fn(&[u8]) -> Vec<u8>) -> Counts {
    let mut monitor = Monitor::new(Settings::for_flows(8));
    let ended = &mut |_: &FlowReport| {};
    for at in 0..50u32 {
        let data = packet(true, 1001 + at * 1000, 5001, 1000, at as u16 + 1);
        let answer = packet(false, 5001, 2001 + at * 1000, 0, at as u16 + 1);
        for (later, packet) in [(0, data), (5_000_000, answer)] {
            if at == 25 && later == 0 {
                continue;
            }
            let frame = wrap(&packet);
            let now = START + u64::from(at) * 10_000_000 + later;
            let captured = &frame[..frame.len().min(snap)];
            monitor.frame(now, captured, frame.len(), link, ended);
        }
    }
    monitor.finish(ended);
    assert_eq!(monitor.frames().tcp, 99);
    let totals = monitor.tracker().totals();
    assert_eq!(totals.flows.bidirectional, 1);
    totals.counts
}

fn assert_one_hole(counts: &Counts) {
    assert_eq!(
        (counts.capture_loss.events, counts.capture_loss.octets),
        (1, 1000)
    );
    assert_eq!(counts.unique_octets, 49_000);
    assert_eq!(counts.lost_packets(), 1);
}

/// Scenario 43: lengths come from the IP header, whatever was captured.
#[test]
fn s43_truncated_copies_lose_nothing_but_what_is_missing() {
    assert_one_hole(&run(64, Link::Ethernet, |packet| ethernet(&[], packet)));
    // Also where the wire length was cut as well.
    assert_one_hole(&run(usize::MAX, Link::Ethernet, |packet| {
        ethernet(&[], packet)[..54].to_vec()
    }));
}

#[test]
fn every_link_and_tag_is_looked_behind() {
    for link in [
        Link::Ip,
        Link::Loopback,
        Link::Cooked,
        Link::Cooked2,
        Link::Ppp,
    ] {
        let head: &[u8] = match link {
            Link::Loopback => &[2, 0, 0, 0],
            Link::Cooked => &[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0],
            Link::Cooked2 => &[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0],
            Link::Ppp => &[0xff, 3, 0, 0x21],
            _ => &[],
        };
        let wrap = |packet: &[u8]| [head, packet].concat();
        assert_one_hole(&run(usize::MAX, link, wrap));
    }
    let tags = [[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8], [0x81, 0, 0, 9]];
    for count in 0..=3 {
        let wrap = |packet: &[u8]| ethernet(&tags[..count], packet);
        assert_one_hole(&run(usize::MAX, Link::Ethernet, wrap));
    }
}

fn outer(protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend((20 + body.len() as u16).to_be_bytes());
    bytes.extend([
        0, 1, 0, 0, 64, protocol, 0, 0, 203, 0, 113, 1, 203, 0, 113, 2,
    ]);
    bytes.extend(body);
    ethernet(&[], &bytes)
}

#[test]
fn tunnels_are_looked_into() {
    let vxlan = |packet: &[u8]| {
        let inner = ethernet(&[], packet);
        let mut body = vec![0xc0, 0, 0x12, 0xb5];
        body.extend((16 + inner.len() as u16).to_be_bytes());
        body.extend([0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
        outer(17, &[body, inner].concat())
    };
    assert_one_hole(&run(usize::MAX, Link::Ethernet, vxlan));
    let geneve = |packet: &[u8]| {
        let inner = ethernet(&[], packet);
        let mut body = vec![0xc0, 0, 0x17, 0xc1];
        body.extend((20 + inner.len() as u16).to_be_bytes());
        body.extend([0, 0, 1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 0]);
        outer(17, &[body, inner].concat())
    };
    assert_one_hole(&run(usize::MAX, Link::Ethernet, geneve));
    let gre = |packet: &[u8]| {
        let head = [0x20, 0, 0x65, 0x58, 0, 0, 0, 7];
        outer(47, &[&head[..], &ethernet(&[], packet)].concat())
    };
    assert_one_hole(&run(usize::MAX, Link::Ethernet, gre));
    let erspan = |packet: &[u8]| {
        let head = [0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 0, 0, 5, 0, 0, 0, 0];
        outer(47, &[&head[..], &ethernet(&[], packet)].concat())
    };
    assert_one_hole(&run(usize::MAX, Link::Ethernet, erspan));
    assert_one_hole(&run(usize::MAX, Link::Ethernet, |packet| outer(4, packet)));
}

/// A segment in two fragments counts as one; with one of them missing it is neither seen nor lost.
#[test]
fn fragments_come_together_by_their_lengths() {
    let split = |packet: &[u8]| {
        let (mut first, mut second) = (packet[..20 + 520].to_vec(), packet[..20].to_vec());
        second.extend(&packet[20 + 520..]);
        for (piece, field) in [(&mut first, 0x2000u16), (&mut second, 520 / 8)] {
            let length = piece.len() as u16;
            piece[2..4].copy_from_slice(&length.to_be_bytes());
            piece[6..8].copy_from_slice(&field.to_be_bytes());
        }
        [ethernet(&[], &first), ethernet(&[], &second)]
    };
    for missing in [None, Some(0), Some(1)] {
        let mut monitor = Monitor::new(Settings::for_flows(8));
        let ended = &mut |_: &FlowReport| {};
        for at in 0..20u32 {
            let now = START + u64::from(at) * 100_000_000;
            let data = packet(true, 1001 + at * 1000, 5001, 1000, at as u16 + 1);
            if at == 10 {
                for (place, piece) in split(&data).iter().enumerate() {
                    if missing != Some(place) {
                        monitor.frame(now, piece, piece.len(), Link::Ethernet, ended);
                    }
                }
            } else {
                monitor.frame(now, &ethernet(&[], &data), 0, Link::Ethernet, ended);
            }
            let answer = ethernet(
                &[],
                &packet(false, 5001, 2001 + at * 1000, 0, at as u16 + 1),
            );
            monitor.frame(
                now + 5_000_000,
                &answer,
                answer.len(),
                Link::Ethernet,
                ended,
            );
        }
        monitor.finish(ended);
        let counts = monitor.tracker().totals().counts;
        let octets = (counts.fragment_gap.octets, counts.capture_loss.octets);
        let expected = match missing {
            None => (0, 0),
            // Nothing tells of which flow the rest is.
            Some(0) => (0, 1000),
            _ => (1000, 0),
        };
        assert_eq!(octets, expected, "{missing:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..50), link in 0usize..6) {
        let links = [Link::Ethernet, Link::Ip, Link::Loopback, Link::Cooked, Link::Cooked2, Link::Ppp];
        let mut monitor = Monitor::new(Settings::for_flows(4));
        for (at, frame) in frames.iter().enumerate() {
            monitor.frame(START + at as u64, frame, frame.len(), links[link], &mut |_| ());
        }
        monitor.finish(&mut |_| ());
    }

    /// Valid frames with some bytes changed and cut reach further.
    #[test]
    fn no_damage_makes_it_panic(changes in prop::collection::vec((0usize..120, any::<u8>()), 0..12), cut in 0usize..200, deep in 0usize..3) {
        let mut frame = ethernet(&[[0x81, 0, 0, 7]], &packet(true, 1, 1, 60, 1));
        for _ in 0..deep {
            let head = [0x30, 0, 0x65, 0x58, 0, 0, 0, 7, 0, 0, 0, 1];
            frame = outer(47, &[&head[..], &frame].concat());
        }
        for (at, byte) in changes {
            if let Some(slot) = frame.get_mut(at) {
                *slot = byte;
            }
        }
        frame.truncate(cut);
        let mut monitor = Monitor::new(Settings::for_flows(4));
        for at in 0..3 {
            monitor.frame(START + at, &frame, frame.len(), Link::Ethernet, &mut |_| ());
        }
        monitor.finish(&mut |_| ());
    }
}
