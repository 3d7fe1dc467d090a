//! A sender, a receiver, and us between them: `S --up-- M --down-- R`. The sender has a fixed window,
//! recovers by SACK or duplicate acknowledgments, and by a retransmission timer. What is lost, delayed or
//! not mirrored is told to it, so the truth is known.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::super::segment::{flags, Segment, Timestamps};
use super::Seen;

const MS: u64 = 1_000_000;
/// When it begins.
pub const START: u64 = 1_700_000_000_000 * MS;

/// A copy of a segment: its number and how often it was sent before.
pub type Copy = (u32, u32);

/// What is done to whom. Numbers of segments mean their first transmission.
#[derive(Clone, Debug)]
pub struct Network {
    pub segments: u32,
    pub size: u32,
    pub window: u32,
    pub up_ns: u64,
    pub down_ns: u64,
    pub sack: bool,
    pub timestamps: bool,
    pub identification: bool,
    pub isn: u32,
    pub peer_isn: u32,
    pub lost_up: BTreeSet<Copy>,
    pub lost_down: BTreeSet<Copy>,
    pub not_mirrored: BTreeSet<Copy>,
    pub mirrored_twice: BTreeSet<u32>,
    /// Acknowledgments by number from 1.
    pub acks_lost: BTreeSet<u32>,
    pub acks_not_mirrored: BTreeSet<u32>,
    pub delayed_up: BTreeMap<Copy, u64>,
    pub delayed_down: BTreeMap<Copy, u64>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            segments: 100,
            size: 1000,
            window: 20,
            up_ns: 10 * MS,
            down_ns: 20 * MS,
            sack: true,
            timestamps: true,
            identification: true,
            isn: 1000,
            peer_isn: 500_000,
            lost_up: BTreeSet::new(),
            lost_down: BTreeSet::new(),
            not_mirrored: BTreeSet::new(),
            mirrored_twice: BTreeSet::new(),
            acks_lost: BTreeSet::new(),
            acks_not_mirrored: BTreeSet::new(),
            delayed_up: BTreeMap::new(),
            delayed_down: BTreeMap::new(),
        }
    }
}

/// First transmissions of these segments.
pub fn firsts(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<Copy> {
    numbers.into_iter().map(|number| (number, 0)).collect()
}

const GAP: u64 = MS / 2;
const TIMEOUT: u64 = 300 * MS;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Pump,
    Timeout(u32, u64),
    Arrives(u32, u32),
    Acknowledged(u32, Vec<(u32, u32)>, u32),
}

struct Run<'a> {
    network: &'a Network,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    seen: Vec<Seen>,
    copies: BTreeMap<u32, u32>,
    identifications: [u16; 2],
    una: u32,
    next: u32,
    sacked: BTreeSet<u32>,
    resent: BTreeSet<u32>,
    received: BTreeSet<u32>,
    expected: u32,
    acks: u32,
    recover: Option<u32>,
    repeated: u32,
    timer: u32,
    armed: bool,
    pumping: bool,
    sender_echo: u32,
    receiver_echo: u32,
    last: u64,
    duplicates: u64,
}

fn clock(at: u64) -> u32 {
    ((at - START) / MS) as u32 + 100_000
}

impl Network {
    /// What we see of it.
    pub fn run(&self) -> Vec<Seen> {
        self.run_and_tell().0
    }

    /// The same, and how many segments reached the receiver that it had already.
    pub fn run_and_tell(&self) -> (Vec<Seen>, u64) {
        let mut run = Run {
            network: self,
            events: BinaryHeap::new(),
            serial: 0,
            seen: Vec::new(),
            copies: BTreeMap::new(),
            identifications: [1000, 7000],
            una: 0,
            next: 0,
            sacked: BTreeSet::new(),
            resent: BTreeSet::new(),
            received: BTreeSet::new(),
            expected: 0,
            acks: 0,
            recover: None,
            repeated: 0,
            timer: 0,
            armed: false,
            pumping: false,
            sender_echo: 0,
            receiver_echo: 0,
            last: START,
            duplicates: 0,
        };
        run.open();
        run.transfer();
        run.close();
        (run.seen, run.duplicates)
    }

    fn sequence(&self, number: u32) -> u32 {
        self.isn
            .wrapping_add(1)
            .wrapping_add(number.wrapping_mul(self.size))
    }
}

impl Run<'_> {
    fn identification(&mut self, client: bool) -> Option<u16> {
        let counter = &mut self.identifications[usize::from(!client)];
        *counter = counter.wrapping_add(1);
        Some(if self.network.identification {
            *counter
        } else {
            0
        })
    }

    fn options(&self, sent: u64, echo: u32) -> Option<Timestamps> {
        self.network.timestamps.then(|| Timestamps {
            value: clock(sent),
            echo,
        })
    }

    fn see(&mut self, at: u64, client: bool, segment: Segment) {
        // A checksum tells different segments apart, as on the wire.
        let mut checksum = segment.sequence ^ segment.acknowledgment.rotate_left(7);
        if let Some(timestamps) = segment.timestamps {
            checksum ^= timestamps.value.rotate_left(3) ^ timestamps.echo.rotate_left(11);
        }
        let checksum = (checksum ^ checksum >> 16) as u16;
        self.seen.push(Seen {
            at,
            client,
            port: 40000,
            segment: Segment {
                checksum,
                ..segment
            },
        });
    }

    fn control(&mut self, sent: u64, client: bool, numbers: (u32, u32), bits: u8, echo: u32) {
        let way = if client {
            self.network.up_ns
        } else {
            self.network.down_ns
        };
        let identification = self.identification(client);
        let maximum_segment = if bits & flags::SYN != 0 {
            self.network.size as u16
        } else {
            0
        };
        let segment = Segment {
            flags: bits,
            maximum_segment,
            identification,
            timestamps: self.options(sent, echo),
            window: if bits & flags::SYN != 0 { 64240 } else { 502 },
            ..Segment::plain(numbers.0, numbers.1, 0)
        };
        self.see(sent + way, client, segment);
    }

    fn open(&mut self) {
        let Network {
            isn,
            peer_isn,
            up_ns,
            down_ns,
            ..
        } = *self.network;
        let one_way = up_ns + down_ns;
        let (answered, confirmed) = (START + one_way, START + 2 * one_way);
        let (first, peer_first) = (isn.wrapping_add(1), peer_isn.wrapping_add(1));
        self.control(START, true, (isn, 0), flags::SYN, 0);
        let both = flags::SYN | flags::ACK;
        self.control(answered, false, (peer_isn, first), both, clock(START));
        let echo = clock(answered);
        self.control(confirmed, true, (first, peer_first), flags::ACK, echo);
        self.sender_echo = echo;
        self.receiver_echo = clock(START);
        self.later(confirmed, Event::Pump);
    }

    fn close(&mut self) {
        let Network {
            isn: _,
            peer_isn,
            up_ns,
            down_ns,
            ..
        } = *self.network;
        let end = self.network.sequence(self.network.segments);
        let sent = self.last + 500 * MS;
        let answered = sent + up_ns + down_ns;
        let confirmed = answered + up_ns + down_ns;
        let bits = flags::FIN | flags::ACK;
        let peer = peer_isn.wrapping_add(1);
        self.control(sent, true, (end, peer), bits, self.sender_echo);
        let after = end.wrapping_add(1);
        self.control(answered, false, (peer, after), bits, clock(sent));
        let numbers = (after, peer.wrapping_add(1));
        self.control(confirmed, true, numbers, flags::ACK, clock(answered));
    }

    fn later(&mut self, at: u64, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, event)));
    }

    fn transfer(&mut self) {
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            assert!(now < START + 600_000 * MS, "it ends");
            match event {
                Event::Pump => self.pump(now),
                Event::Timeout(timer, wait) => self.timeout(now, timer, wait),
                Event::Arrives(number, sent) => self.arrives(now, number, sent),
                Event::Acknowledged(to, blocks, sent) => self.acknowledged(now, to, &blocks, sent),
            }
        }
    }

    fn send(&mut self, now: u64, number: u32) {
        let network = self.network;
        let count = self.copies.entry(number).or_insert(0);
        let copy = (number, *count);
        *count += 1;
        let identification = self.identification(true);
        if network.lost_up.contains(&copy) {
            return;
        }
        let at = now + network.up_ns + network.delayed_up.get(&copy).copied().unwrap_or(0);
        let segment = Segment {
            identification,
            timestamps: self.options(now, self.sender_echo),
            window: 502,
            ..Segment::plain(
                network.sequence(number),
                network.peer_isn.wrapping_add(1),
                network.size,
            )
        };
        if !network.not_mirrored.contains(&copy) {
            self.see(at, true, segment);
            if network.mirrored_twice.contains(&number) {
                self.see(at + 20_000, true, segment);
            }
        }
        if !network.lost_down.contains(&copy) {
            let delay = network.delayed_down.get(&copy).copied().unwrap_or(0);
            self.later(
                at + network.down_ns + delay,
                Event::Arrives(number, clock(now)),
            );
        }
    }

    fn pump(&mut self, now: u64) {
        self.pumping = false;
        if self.next < self.network.segments && self.next - self.una < self.network.window {
            self.send(now, self.next);
            self.next += 1;
            if !self.armed {
                self.arm(now, TIMEOUT);
            }
            self.again(now);
        }
    }

    fn again(&mut self, now: u64) {
        if !self.pumping {
            self.pumping = true;
            self.later(now + GAP, Event::Pump);
        }
    }

    fn arm(&mut self, now: u64, wait: u64) {
        self.armed = true;
        self.timer += 1;
        self.later(now + wait, Event::Timeout(self.timer, wait));
    }

    fn timeout(&mut self, now: u64, timer: u32, wait: u64) {
        if timer != self.timer || self.una >= self.network.segments {
            return;
        }
        self.sacked.clear();
        self.resent.clear();
        self.recover = Some(self.next);
        self.send(now, self.una);
        self.resent.insert(self.una);
        self.arm(now, wait * 2);
    }

    fn arrives(&mut self, now: u64, number: u32, sent: u32) {
        self.last = now;
        let duplicate = number < self.expected || !self.received.insert(number);
        self.duplicates += u64::from(duplicate);
        let expected = self.expected;
        while self.received.contains(&self.expected) {
            self.expected += 1;
        }
        if number == expected {
            self.receiver_echo = sent;
        }
        let mut blocks = Vec::new();
        if self.network.sack {
            if duplicate {
                blocks.push((number, number + 1));
            }
            let mut ranges: Vec<(u32, u32)> = Vec::new();
            for &held in self.received.range(self.expected..) {
                match ranges.last_mut() {
                    Some(last) if last.1 == held => last.1 = held + 1,
                    _ => ranges.push((held, held + 1)),
                }
            }
            // The most recent first (RFC 2018 section 4).
            ranges.sort_by_key(|range| !(range.0..range.1).contains(&number));
            let room = if self.network.timestamps { 3 } else { 4 } - blocks.len();
            blocks.extend(ranges.into_iter().take(room));
        }
        self.acks += 1;
        let identification = self.identification(false);
        let mut segment = Segment {
            identification,
            timestamps: self.options(now, self.receiver_echo),
            window: 501,
            ..Segment::plain(
                self.network.peer_isn.wrapping_add(1),
                self.network.sequence(self.expected),
                0,
            )
        };
        for (slot, &(left, right)) in segment.sack.iter_mut().zip(&blocks) {
            *slot = (self.network.sequence(left), self.network.sequence(right));
        }
        segment.sack_blocks = blocks.len() as u8;
        let at = now + self.network.down_ns;
        if !self.network.acks_not_mirrored.contains(&self.acks) {
            self.see(at, false, segment);
        }
        if !self.network.acks_lost.contains(&self.acks) {
            let ranges = if duplicate && self.network.sack {
                blocks[1..].to_vec()
            } else {
                blocks
            };
            let event = Event::Acknowledged(self.expected, ranges, clock(now));
            self.later(at + self.network.up_ns, event);
        }
    }

    fn acknowledged(&mut self, now: u64, to: u32, blocks: &[(u32, u32)], sent: u32) {
        self.sender_echo = sent;
        self.last = now;
        for &(left, right) in blocks {
            self.sacked.extend(left..right);
        }
        if to > self.una {
            self.una = to;
            self.repeated = 0;
            self.sacked = self.sacked.split_off(&to);
            if self.una >= self.network.segments {
                self.timer += 1;
                return;
            }
            self.arm(now, TIMEOUT);
            if let Some(recover) = self.recover {
                if to < recover && !self.network.sack && self.resent.insert(to) {
                    self.send(now, to);
                }
                if to >= recover {
                    self.recover = None;
                    self.resent.clear();
                }
            }
        } else if to == self.una && self.next > self.una {
            self.repeated += 1;
            if !self.network.sack && self.repeated == 3 && self.resent.insert(to) {
                self.recover = Some(self.next);
                self.send(now, to);
                self.arm(now, TIMEOUT);
            }
        }
        if self.network.sack {
            for number in self.una..self.next {
                let above = self.sacked.range(number + 1..).count();
                if above < 3 {
                    break;
                }
                if !self.sacked.contains(&number) && self.resent.insert(number) {
                    self.recover = Some(self.next);
                    self.send(now, number);
                    self.arm(now, TIMEOUT);
                }
            }
        }
        self.again(now);
    }
}
