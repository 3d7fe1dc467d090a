//! One tapped run: captures at the client and at the collector, xtee between them, and what all three
//! say afterwards.
#![allow(dead_code)]

use std::time::Duration;

use xtee::packet::encap::Tunnel;
use xtee::telemetry::status::Status;

use crate::common::netns::wait_until;
use crate::common::raw_socket::RawSocket;
use crate::compare::{copies, Copy};
use crate::mirror::{target, Finished, Mirror};
use crate::production::{marker, Production, ETH, MIRROR_MTU, MONITOR};
use crate::wire::{Seen, WireCapture};

const PATIENCE: Duration = Duration::from_secs(10);

/// Captures and a mirror that run.
pub struct Tapped<'p> {
    production: &'p Production,
    tunnel: Tunnel,
    originals: WireCapture,
    arrived: WireCapture,
    marks: RawSocket,
    pub mirror: Mirror,
}

/// What a run showed.
pub struct Outcome {
    /// Before the mirror was ended, everything at rest.
    pub status: Status,
    pub finished: Finished,
    /// What the client's interface saw between the marks.
    pub originals: Vec<Seen>,
    /// What the collector got between the marks.
    pub copies: Vec<Copy>,
}

impl<'p> Tapped<'p> {
    /// Starts `xtee mirror tap:eth0 ARGUMENTS…` and returns when it copies.
    pub fn start(production: &'p Production, tunnel: Tunnel, arguments: &[&str]) -> Tapped<'p> {
        let originals = WireCapture::start(&production.client, ETH);
        let arrived = WireCapture::incoming(&production.collector, MONITOR);
        let arguments = [&["tap:eth0"], arguments].concat();
        let mirror = Mirror::start(&production.instance, &arguments);
        let marks = RawSocket::open(&production.client, ETH);
        // What passes while the mirror starts is not compared: marks say from when on and until when.
        let before = arrived.count();
        marks.send(&marker(1));
        wait_until("the first copy", PATIENCE, || arrived.count() > before);
        Tapped {
            production,
            tunnel,
            originals,
            arrived,
            marks,
            mirror,
        }
    }

    /// Ends the run at rest. Asserts that the balance holds and that every copy that xtee sent arrived
    /// as a right tunnel packet.
    pub fn finish(self) -> Outcome {
        self.mirror.assert_balanced();
        self.marks.send(&marker(2));
        let status = self.mirror.assert_balanced();
        let finished = self.mirror.stop();
        finished.assert_clean();
        println!("{}", finished.stdout);
        let originals = between_marks(self.originals.stop(), |seen| &seen.bytes);
        let all = copies(&self.arrived.stop(), self.tunnel, MIRROR_MTU);
        let lost = self.production.collector.counter(MONITOR, "rx_dropped");
        assert_eq!(lost, 0, "the collector's interface lost copies, not xtee");
        // By the balance at the end: a kernel speaks on its own, also after the last status.
        let sent = finished.final_number("sent");
        assert!(sent >= target(&status).sent_packets);
        assert_eq!(all.len() as u64, sent, "copies that arrived");
        Outcome {
            status,
            finished,
            originals,
            copies: between_marks(all, |copy| &copy.inner),
        }
    }
}

fn between_marks<T>(mut frames: Vec<T>, bytes: impl Fn(&T) -> &[u8]) -> Vec<T> {
    let find = |number| {
        let place = frames
            .iter()
            .position(|frame| bytes(frame) == marker(number));
        place.unwrap_or_else(|| panic!("mark {number} is missing"))
    };
    let (first, last) = (find(1), find(2));
    frames.drain(first + 1..last).collect()
}
