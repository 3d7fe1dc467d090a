//! Frames of every kind that a span sees, each with a number of its own, in flows of two directions.
#![allow(dead_code)]

use std::collections::HashMap;

use crate::packets::{ethernet, frame6, tagged, tcp, udp, Extension, IPV4, IPV6, TCP, UDP, V4};
use crate::span_lab::Copy;

const SERVER: &str = "198.51.100.200";
const SERVER6: &str = "2001:db8::200";

/// Kinds of flows; flow `n` is of kind `n % KINDS`.
pub const KINDS: usize = 13;

/// Frame `number` of a flow. In the direction back the addresses are swapped, on every layer.
pub fn frame(flow: usize, back: bool, number: u32) -> Vec<u8> {
    let client = format!("198.51.100.{}", 100 + flow % 100);
    let client6 = format!("2001:db8::{:x}", 0x1000 + flow);
    let port = 40000 + flow as u16;
    let (from, to) = swap(back, client.as_str(), SERVER);
    let (from6, to6) = swap(back, client6.as_str(), SERVER6);
    let (source, destination) = swap(back, port, 443);
    let payload = |least: usize| {
        let mut bytes = vec![number as u8; least + number as usize * 37 % 1300];
        bytes.extend(number.to_be_bytes());
        bytes
    };
    let tcp = |least| tcp(source, destination, &payload(least));
    let udp = |least| udp(source, destination, &payload(least));
    let v4 = |protocol| V4::new(from, to, protocol);
    let mut frame = match flow % KINDS {
        0 => v4(TCP).frame(&tcp(0)),
        1 => v4(UDP).frame(&udp(0)),
        2 => v4(1).frame(&[&[if back { 0 } else { 8 }, 0, 0, 0][..], &payload(4)].concat()),
        // No broadcast: a request to all and its answer do not have the same two ends.
        3 => ethernet(0x0806, &[&arp(back)[..], &payload(18)[..22]].concat()),
        4 => tagged(&[(0x8100, 0x2064)], IPV4, &v4(UDP).packet(&udp(0))),
        5 => tagged(
            &[(0x88a8, 5), (0x8100, 100)],
            IPV4,
            &v4(TCP).packet(&tcp(0)),
        ),
        6 => frame6(from6, to6, &[], TCP, &tcp(0)),
        7 => frame6(
            from6,
            to6,
            &[Extension::plain(0, 0), Extension::plain(60, 2)],
            UDP,
            &udp(0),
        ),
        8 => fragment4(v4(UDP), number, &udp(64)),
        9 => {
            let first = number % 4 < 2;
            let offset = if first { 0 } else { 181 };
            let fragment = Extension::fragment(number / 4, offset, first);
            frame6(from6, to6, &[fragment], UDP, &udp(64))
        }
        10 => ethernet(0x88b5, &payload(46)),
        11 => tagged(
            &[(0x8100, 7)],
            IPV6,
            &frame6(from6, to6, &[], UDP, &udp(0))[14..],
        ),
        // The longest, and the shortest that Ethernet has.
        _ => {
            let mut bytes = vec![number as u8; if number % 4 < 2 { 1468 } else { 14 }];
            bytes.extend(number.to_be_bytes());
            v4(UDP).frame(&crate::packets::udp(source, destination, &bytes))
        }
    };
    // The frame's end is the number in every kind but ARP, whose padding is cut to its size.
    let end = frame.len() - 4;
    frame[end..].copy_from_slice(&number.to_be_bytes());
    // Ends of its own for each flow: those without IP addresses are told apart by them alone.
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 9, u8::from(back)]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 9, u8::from(!back)]);
    let client = if back { 0 } else { 6 };
    frame[client + 3] = flow as u8 + 1;
    frame
}

fn swap<T>(back: bool, one: T, other: T) -> (T, T) {
    if back {
        (other, one)
    } else {
        (one, other)
    }
}

fn arp(back: bool) -> [u8; 28] {
    let mut bytes = [7; 28];
    bytes[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1 + u8::from(back)]);
    bytes
}

/// First and later fragments of datagrams, two of each in turn.
fn fragment4(mut header: V4, number: u32, datagram: &[u8]) -> Vec<u8> {
    let first = number % 4 < 2;
    header.identification = (number / 4) as u16;
    header.more = first;
    header.offset = if first { 0 } else { 181 };
    header.frame(datagram)
}

/// What was sent: by its bytes, which the number makes its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub flow: usize,
    pub back: bool,
    pub number: u32,
}

/// All frames that were sent.
#[derive(Debug, Default)]
pub struct Book {
    sent: HashMap<Vec<u8>, Sent>,
}

impl Book {
    /// The next frame of a flow.
    pub fn next(&mut self, flow: usize, back: bool) -> Vec<u8> {
        let number = self.sent.len() as u32;
        let bytes = frame(flow, back, number);
        let entry = Sent { flow, back, number };
        assert_eq!(self.sent.insert(bytes.clone(), entry), None);
        bytes
    }

    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// What a copy is the copy of. Panics if it is none.
    pub fn find(&self, copy: &Copy) -> Sent {
        *self
            .sent
            .get(&copy.inner)
            .unwrap_or_else(|| panic!("nobody sent this: {:02x?}", copy.inner))
    }

    /// Asserts that every frame has exactly one copy, that both directions of a flow have one outer
    /// source port, and, if `ordered`, that the frames of each direction of each flow came in order.
    pub fn assert_copied_once(&self, copies: &[Copy], ordered: bool) {
        let mut seen: HashMap<u32, u32> = HashMap::new();
        let mut ports: HashMap<usize, u16> = HashMap::new();
        let mut last: HashMap<(usize, bool), u32> = HashMap::new();
        for copy in copies {
            let sent = self.find(copy);
            *seen.entry(sent.number).or_default() += 1;
            let port = *ports.entry(sent.flow).or_insert(copy.source_port);
            assert_eq!(port, copy.source_port, "two source ports for {sent:?}");
            let before = last.insert((sent.flow, sent.back), sent.number);
            assert!(
                !ordered || before.is_none_or(|before| before < sent.number),
                "{sent:?} came after {before:?}"
            );
        }
        let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "copied more than once: {twice:?}");
        assert_eq!(seen.len(), self.sent.len(), "not every frame was copied");
        let different: std::collections::HashSet<_> = ports.values().collect();
        let vxlan = copies.iter().any(|copy| copy.source_port != 0);
        assert!(!vxlan || different.len() > 1, "flows share one source port");
    }
}
