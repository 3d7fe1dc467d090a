//! By whichever transmitter the traffic suits. VXLAN and Geneve: UDP GSO where equal packets come in runs (bulk TCP,
//! super-packets, floods), AF_XDP where they do not (many small mixed flows).
//!
//! 64-byte VXLAN copies from one core over a veth: UDP GSO 0.40, 0.80 and 1.43 Mpps in runs of 1, 4 and 64,
//! AF_XDP in copy mode 0.77 to 0.87, so a run of about four favours GSO. The mean run of the traffic itself decides, with hysteresis, so that a mixture does not flap.
//! Jumbo packets, which are longer than a frame of the umem, always go by a socket.

use super::raw::RawSender;
use super::udp::{UdpSender, MAX_SEGMENTS};
use super::xsk::{XskSender, LONGEST};
use crate::mirror::path::PathState;
use crate::packet::{PacketList, PacketRef};
use crate::source::Frames;
use crate::worker::counters::TargetCounters;
use crate::xsk::Pool;

/// Packets that are measured before a decision.
const WINDOW: u64 = 4096;
/// Windows in a row that must agree.
const AGREE: u32 = 2;
/// Mean runs, in hundredths: below the first AF_XDP is faster, above the second GSO is.
const SHORT: u64 = 250;
const LONG: u64 = 500;

/// Measures runs: packets of one source port in a row that could leave as one super-packet.
#[derive(Debug)]
pub struct RunMeter {
    /// By port: size of the run's first packet, of its last, and its length.
    ports: Vec<(u32, u32, u32)>,
    packets: u64,
    runs: u64,
}

impl RunMeter {
    /// For so many source ports.
    #[must_use]
    pub fn new(ports: u16) -> RunMeter {
        RunMeter {
            ports: vec![(0, 0, 0); usize::from(ports.max(1))],
            packets: 0,
            runs: 0,
        }
    }

    /// Adds a batch; runs end with it, for so do super-packets.
    pub fn add(&mut self, packets: &[PacketRef]) {
        self.ports.fill((0, 0, 0));
        let ports = self.ports.len() as u32;
        for packet in packets {
            let length = packet.length() as u32;
            let (size, last, count) = &mut self.ports[(packet.flow_hash % ports) as usize];
            let goes_on = *count > 0 && *count < MAX_SEGMENTS && *last == *size && length <= *size;
            if goes_on {
                *count += 1;
            } else {
                (*size, *count) = (length, 1);
                self.runs += 1;
            }
            *last = length;
        }
        self.packets += packets.len() as u64;
    }

    /// The mean run in hundredths once enough was measured; begins anew then.
    pub fn take(&mut self) -> Option<u64> {
        if self.packets < WINDOW {
            return None;
        }
        let mean = self.packets * 100 / self.runs.max(1);
        (self.packets, self.runs) = (0, 0);
        Some(mean)
    }
}

/// The decision, pure: fed with mean runs, says who sends.
#[derive(Debug, Default)]
pub struct Choice {
    xsk: bool,
    disagree: u32,
}

impl Choice {
    /// Whether AF_XDP sends.
    #[must_use]
    pub fn is_xsk(&self) -> bool {
        self.xsk
    }

    /// A window's mean run, in hundredths.
    pub fn feed(&mut self, mean: u64) {
        let other_is_better = if self.xsk { mean > LONG } else { mean < SHORT };
        self.disagree = if other_is_better {
            self.disagree + 1
        } else {
            0
        };
        if self.disagree >= AGREE {
            self.xsk = !self.xsk;
            self.disagree = 0;
        }
    }
}

/// A socket that sends what AF_XDP does not.
#[derive(Debug)]
pub enum SocketSender {
    /// UDP sockets.
    Udp(UdpSender),
    /// A raw socket.
    Raw(RawSender),
}

impl SocketSender {
    fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        counters: &TargetCounters,
    ) {
        match self {
            SocketSender::Udp(sender) => sender.send(packets, frames, path, counters),
            SocketSender::Raw(sender) => sender.send(packets, frames, path, counters),
        }
    }

    /// Whether runs leave as super-packets.
    fn segments(&self) -> bool {
        match self {
            SocketSender::Udp(sender) => sender.segments(),
            SocketSender::Raw(_) => false,
        }
    }
}

/// When AF_XDP sends a batch.
#[derive(Debug)]
enum Policy {
    /// While runs are short.
    Runs(RunMeter, Choice),
    /// Always.
    Always,
}

/// Sends by a socket or by AF_XDP, batch by batch. Whatever the policy, a batch with a packet that is
/// longer than a frame of the umem goes by the socket.
#[derive(Debug)]
pub struct AutoSender {
    socket: SocketSender,
    xsk: XskSender,
    policy: Policy,
}

impl AutoSender {
    /// By UDP while equal packets come in long runs, else by AF_XDP.
    #[must_use]
    pub fn by_runs(udp: UdpSender, xsk: XskSender, source_ports: u16) -> AutoSender {
        AutoSender {
            socket: SocketSender::Udp(udp),
            xsk,
            policy: Policy::Runs(RunMeter::new(source_ports), Choice::default()),
        }
    }

    /// By AF_XDP whatever fits its frames.
    #[must_use]
    pub fn by_size(socket: SocketSender, xsk: XskSender) -> AutoSender {
        AutoSender {
            socket,
            xsk,
            policy: Policy::Always,
        }
    }

    /// Sends a batch. Both transmitters hand a packet to the device before they return, so the order
    /// within a flow outlives a change from one to the other.
    pub fn send(
        &mut self,
        packets: PacketList<'_>,
        frames: &impl Frames,
        path: &PathState,
        pool: &mut Pool,
        counters: &TargetCounters,
    ) {
        let by_xsk = match &mut self.policy {
            Policy::Runs(meter, choice) => {
                meter.add(packets.refs());
                if let Some(mean) = meter.take() {
                    // One by one, a UDP socket makes no use of runs.
                    let segments = self.socket.segments();
                    choice.feed(if segments { mean } else { 100 });
                    counters.by_xsk.set(u64::from(choice.is_xsk()));
                }
                choice.is_xsk()
            }
            Policy::Always => true,
        };
        let longest = || packets.refs().iter().map(PacketRef::length).max();
        if !by_xsk || longest().is_some_and(|longest| longest > LONGEST) {
            self.socket.send(packets, frames, path, counters);
            return;
        }
        match (self.xsk.begin(path, pool, counters), &self.policy) {
            (None, _) => self.xsk.send_begun(packets, frames, path, pool, counters),
            // Where AF_XDP cannot send now (no neighbour yet, a moving route), the kernel's own path may.
            (Some(_), Policy::Runs(..)) => self.socket.send(packets, frames, path, counters),
            (Some(reason), Policy::Always) => {
                counters.offered.add(packets.copies() as u64);
                counters.dropped.add(reason, packets.copies() as u64);
            }
        }
    }

    /// The UDP half, if the socket is UDP's.
    pub fn udp(&mut self) -> Option<&mut UdpSender> {
        match &mut self.socket {
            SocketSender::Udp(sender) => Some(sender),
            SocketSender::Raw(_) => None,
        }
    }

    /// The AF_XDP half, for completions.
    pub fn xsk(&mut self) -> &mut XskSender {
        &mut self.xsk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Part;

    fn packet(flow_hash: u32, length: u32) -> PacketRef {
        PacketRef {
            frame: 0,
            head: (0, 0),
            tail: (0, length),
            flow_hash,
            part: Part::Whole,
        }
    }

    fn mean(meter: &mut RunMeter, batch: &[PacketRef]) -> u64 {
        loop {
            meter.add(batch);
            if let Some(mean) = meter.take() {
                return mean;
            }
        }
    }

    #[test]
    fn runs_are_equal_packets_of_one_port_with_a_shorter_last() {
        let mut meter = RunMeter::new(64);
        let bulk: Vec<_> = (0..64).map(|_| packet(5, 1500)).collect();
        assert_eq!(mean(&mut meter, &bulk), 6400);
        // Two flows interleaved keep their runs, for packets are grouped by port.
        let two: Vec<_> = (0..64).map(|number| packet(number % 2, 1500)).collect();
        assert_eq!(mean(&mut meter, &two), 3200);
        let growing: Vec<_> = (0..64).map(|number| packet(1, 100 + number)).collect();
        assert_eq!(mean(&mut meter, &growing), 100);
        let ends_short = [
            packet(1, 1500),
            packet(1, 1500),
            packet(1, 10),
            packet(1, 10),
        ];
        assert_eq!(mean(&mut meter, &ends_short), 200);
    }

    #[test]
    fn the_choice_changes_after_windows_that_agree_and_does_not_flap() {
        let mut choice = Choice::default();
        choice.feed(100);
        assert!(!choice.is_xsk());
        choice.feed(300);
        choice.feed(100);
        assert!(!choice.is_xsk());
        choice.feed(100);
        assert!(choice.is_xsk());
        for _ in 0..10 {
            choice.feed(400);
        }
        assert!(choice.is_xsk());
        choice.feed(600);
        choice.feed(600);
        assert!(!choice.is_xsk());
    }
}
