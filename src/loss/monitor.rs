//! Frames in, counts out: finds the TCP segment in each frame and hands it to the tracker, and the numbers
//! of tunnels to theirs.

use serde::Serialize;

use super::fragments::{Datagram, Fragments, Piece};
use super::frame::{innermost, Inner, Link};
use super::key::{End, FlowKey, Way};
use super::report::FlowReport;
use super::segment::Segment;
use super::tracker::Tracker;
use super::tunnel::Tunnels;
use super::Settings;
use crate::packet::headers::{protocol, Fragment, Ports, Version};

/// After so many frames flows that are silent are looked for.
const EXPIRE_EVERY: u64 = 64;
/// And so many of each kind are looked at.
const EXPIRE_BUDGET: usize = 16;

/// What frames were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Frames {
    /// All.
    pub total: u64,
    /// With a TCP segment.
    pub tcp: u64,
    /// IP without TCP.
    pub other_ip: u64,
    /// Fragments.
    pub fragments: u64,
    /// Without IP, or with headers that are damaged or not captured.
    pub unreadable: u64,
}

/// See the module.
pub struct Monitor {
    tracker: Tracker,
    tunnels: Tunnels,
    fragments: Fragments,
    frames: Frames,
}

impl Monitor {
    /// A monitor with a tracker of these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            tracker: Tracker::new(settings),
            tunnels: Tunnels::default(),
            fragments: Fragments::default(),
            frames: Frames::default(),
        }
    }

    /// Takes one frame, of which `frame` was captured, seen at `now_ns`. Flows that end go to `ended`.
    pub fn frame(
        &mut self,
        now_ns: u64,
        frame: &[u8],
        wire_length: usize,
        link: Link,
        ended: &mut impl FnMut(&FlowReport),
    ) {
        self.frames.total += 1;
        if self.frames.total % EXPIRE_EVERY == 0 {
            self.tracker.expire(now_ns, EXPIRE_BUDGET, ended);
        }
        let tunnels = &mut self.tunnels;
        let mut stream = |key: &_, number| tunnels.take(key, number);
        let Some(inner) = innermost(frame, wire_length, link, &mut stream) else {
            self.frames.unreadable += 1;
            return;
        };
        if inner.ip.fragment != Fragment::Whole {
            self.frames.fragments += 1;
            self.fragment(now_ns, frame, &inner, ended);
            return;
        }
        if inner.ip.protocol != protocol::TCP {
            self.frames.other_ip += 1;
            return;
        }
        match segment(frame, &inner) {
            Some((key, way, segment)) => {
                self.frames.tcp += 1;
                self.tracker.segment(now_ns, &key, way, &segment, ended);
            }
            None => self.frames.unreadable += 1,
        }
    }

    fn fragment(
        &mut self,
        now_ns: u64,
        frame: &[u8],
        inner: &Inner,
        ended: &mut impl FnMut(&FlowReport),
    ) {
        let Some((offset, last)) = fragment_place(frame, inner) else {
            return;
        };
        let head = if inner.ip.fragment == Fragment::First && inner.ip.protocol == protocol::TCP {
            segment(frame, inner)
        } else {
            None
        };
        if let Some((key, way, _)) = &head {
            self.tracker.fragment(key, *way, false);
        }
        let datagram = Datagram {
            source: inner.ip.source,
            destination: inner.ip.destination,
            identification: inner.ip.identification,
            scope: inner.scope,
        };
        let piece = Piece {
            offset,
            length: inner.end.saturating_sub(inner.ip.transport),
            last,
            head,
        };
        if let Some((key, way, segment)) = self.fragments.take(now_ns, datagram, &piece) {
            self.frames.tcp += 1;
            self.tracker.fragment(&key, way, true);
            self.tracker.segment(now_ns, &key, way, &segment, ended);
        }
    }

    /// Ends all flows.
    pub fn finish(&mut self, ended: &mut impl FnMut(&FlowReport)) {
        self.tracker.finish(ended);
    }

    /// The tracker of TCP flows.
    #[must_use]
    pub const fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The numbered tunnels.
    #[must_use]
    pub const fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    /// What the frames were.
    #[must_use]
    pub const fn frames(&self) -> &Frames {
        &self.frames
    }
}

fn segment(frame: &[u8], inner: &Inner) -> Option<(FlowKey, Way, Segment)> {
    let Ports::Known(source_port, destination_port) = inner.ip.ports else {
        return None;
    };
    let identification = match inner.ip.version {
        Version::V4 => Some(inner.ip.identification as u16),
        Version::V6 => None,
    };
    let segment = Segment::parse(frame, inner.ip.transport, inner.end, identification)?;
    let source = End {
        address: inner.ip.source,
        port: source_port,
    };
    let destination = End {
        address: inner.ip.destination,
        port: destination_port,
    };
    let (key, way) = FlowKey::new(source, destination, inner.scope);
    Some((key, way, segment))
}

/// Offset in octets and whether it is the last fragment.
fn fragment_place(frame: &[u8], inner: &Inner) -> Option<(usize, bool)> {
    let field_at = match inner.ip.version {
        Version::V4 => inner.ip.offset + 6,
        // The fragment header is the last one before the payload in all but contrived packets.
        Version::V6 => inner.ip.transport.checked_sub(6)?,
    };
    let field = u16::from_be_bytes(*frame.get(field_at..)?.first_chunk()?);
    Some(match inner.ip.version {
        Version::V4 => (usize::from(field & 0x1fff) * 8, field & 0x2000 == 0),
        Version::V6 => (usize::from(field & 0xfff8), field & 1 == 0),
    })
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
