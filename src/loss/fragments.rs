//! Lengths of fragmented TCP segments: only what the first fragment's header says and how long the whole
//! is; no payload is kept.

use std::net::IpAddr;

use super::key::{FlowKey, Way};
use super::segment::Segment;

/// Datagrams at the same time; the oldest makes room.
const CAPACITY: usize = 64;
/// Fragments lie at multiples of eight octets and end below 64 KiB.
const UNITS: usize = 65_536 / 8;
/// RFC 1122 section 3.3.2 allows a minute at least; what takes longer than this is not of the same
/// datagram where identifications come round.
const PATIENCE_NS: u64 = 30_000_000_000;

/// What makes fragments one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub identification: u32,
    pub scope: u32,
}

/// One fragment: octets of the datagram's payload from `offset`, whether it is the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub offset: usize,
    pub length: usize,
    pub last: bool,
    /// Of the first one: flow and segment, its payload that of the fragment.
    pub head: Option<(FlowKey, Way, Segment)>,
}

struct Partial {
    datagram: Datagram,
    since_ns: u64,
    head: Option<(FlowKey, Way, Segment, usize)>,
    total: Option<usize>,
    covered: Box<[u64; UNITS / 64]>,
}

/// Datagrams that are not complete.
#[derive(Default)]
pub(super) struct Fragments {
    partial: Vec<Partial>,
}

impl Fragments {
    /// Takes a fragment; the whole segment once it is complete.
    pub(super) fn take(
        &mut self,
        now_ns: u64,
        datagram: Datagram,
        piece: &Piece,
    ) -> Option<(FlowKey, Way, Segment)> {
        let place = self.place(now_ns, datagram);
        let partial = &mut self.partial[place];
        if let Some((key, way, segment)) = piece.head {
            partial.head = Some((key, way, segment, piece.length));
        }
        let end = piece.offset + piece.length;
        if piece.last {
            partial.total = Some(end);
        }
        for unit in piece.offset / 8..end.div_ceil(8).min(UNITS) {
            partial.covered[unit / 64] |= 1 << (unit % 64);
        }
        let total = partial.total?;
        let (key, way, mut segment, first) = partial.head?;
        let units = total.div_ceil(8).min(UNITS);
        let covered = |unit: usize| partial.covered[unit / 64] & 1 << (unit % 64) != 0;
        if total < first || !(0..units).all(covered) {
            return None;
        }
        segment.payload += u32::try_from(total - first).ok()?;
        self.partial.swap_remove(place);
        Some((key, way, segment))
    }

    fn place(&mut self, now_ns: u64, datagram: Datagram) -> usize {
        let known = self.partial.iter().position(|partial| {
            partial.datagram == datagram && now_ns.saturating_sub(partial.since_ns) < PATIENCE_NS
        });
        if let Some(place) = known {
            return place;
        }
        let fresh = |covered| Partial {
            datagram,
            since_ns: now_ns,
            head: None,
            total: None,
            covered,
        };
        if self.partial.len() < CAPACITY {
            self.partial.push(fresh(Box::new([0; UNITS / 64])));
            return self.partial.len() - 1;
        }
        let ages = self.partial.iter().map(|partial| partial.since_ns);
        let place = ages.enumerate().min_by_key(|&(_, since)| since);
        let place = place.map_or(0, |(place, _)| place);
        self.partial[place] = fresh(Box::new([0; UNITS / 64]));
        place
    }
}
