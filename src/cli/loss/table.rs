//! How the outcome looks: a document for machines, and a table with a summary in words for people.

use std::fmt;
use std::path::Path;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::loss::{
    BlackHole, Counts, Ending, FlowReport, Flows, Frames, Monitor, SequenceCounts, Visibility,
};
use crate::source::capture::Outcome;

/// Below so many events a ratio says nothing.
const ENOUGH_EVENTS: u64 = 50;

/// All that `xtee loss` tells. Field names are an interface.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    file: String,
    /// What is wrong with the file, if anything is.
    damage: Option<String>,
    frames: Frames,
    unknown_link_frames: u64,
    unknown_link_type: Option<i32>,
    frames_back_in_time: u64,
    flows: Flows,
    /// Flows of which both directions were seen.
    tcp: Counts,
    /// All others: no ratio is made of these.
    tcp_not_seen_whole: Counts,
    ratios: Ratios,
    round_trip_client_side_us: Option<RoundTrips>,
    round_trip_server_side_us: Option<RoundTrips>,
    tunnels: Vec<Tunnel>,
    tunnel_packets_untracked: u64,
    /// Worst first.
    worst: Vec<Flow>,
}

#[derive(Debug, Serialize)]
struct Ratios {
    before_us: Ratio,
    behind_us: Ratio,
    capture: Ratio,
}

/// A share of packets with its 95 % interval (Wilson).
#[derive(Debug, Serialize)]
struct Ratio {
    lost: u64,
    of: u64,
    share: f64,
    low: f64,
    high: f64,
    enough: bool,
}

#[derive(Debug, Serialize)]
struct RoundTrips {
    samples: u64,
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

#[derive(Debug, Serialize)]
struct Tunnel {
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
    key: u32,
    protocol: u16,
    #[serde(flatten)]
    counts: SequenceCounts,
}

#[derive(Debug, Serialize)]
struct Flow {
    client: String,
    server: String,
    /// VNI, key or session of the tunnel that it was in.
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel: Option<u32>,
    start_ns: u64,
    end_ns: u64,
    ending: Ending,
    visibility: Visibility,
    midstream: bool,
    degraded: bool,
    to_server: Direction,
    to_client: Direction,
}

#[derive(Debug, Serialize)]
struct Direction {
    #[serde(flatten)]
    counts: Counts,
    pending_packets: u64,
    segment_size: u64,
    round_trip_to_receiver_us: Option<u32>,
    black_hole: Option<BlackHole>,
}

impl Document {
    pub(super) fn new(
        file: &Path,
        outcome: &Outcome,
        monitor: &Monitor,
        worst: Vec<FlowReport>,
    ) -> Self {
        let totals = monitor.tracker().totals();
        let tcp = totals.counts;
        let (up, down) = (tcp.upstream_loss.packets, tcp.downstream_loss.packets);
        let capture = tcp.capture_loss.packets;
        let tunnels = monitor.tunnels().streams().map(|(key, counts)| Tunnel {
            source: key.source,
            destination: key.destination,
            key: key.key,
            protocol: key.protocol,
            counts,
        });
        Self {
            file: file.display().to_string(),
            damage: outcome.damage.clone(),
            frames: *monitor.frames(),
            unknown_link_frames: outcome.unknown_links,
            unknown_link_type: outcome.unknown_link,
            frames_back_in_time: outcome.backwards,
            flows: totals.flows,
            tcp,
            tcp_not_seen_whole: totals.others,
            ratios: Ratios {
                before_us: ratio(up, tcp.data_packets + up + capture),
                behind_us: ratio(down, tcp.data_packets + capture),
                capture: ratio(capture, tcp.data_packets + capture),
            },
            round_trip_client_side_us: round_trips(monitor.tracker().client_side()),
            round_trip_server_side_us: round_trips(monitor.tracker().server_side()),
            tunnels: tunnels.collect(),
            tunnel_packets_untracked: monitor.tunnels().untracked,
            worst: worst.into_iter().map(flow).collect(),
        }
    }
}

fn flow(report: FlowReport) -> Flow {
    let [to_server, to_client] = report.directions.map(|direction| Direction {
        pending_packets: direction.counts.pending_packets(),
        counts: direction.counts,
        segment_size: direction.segment_size,
        round_trip_to_receiver_us: direction.round_trip_us,
        black_hole: direction.black_hole,
    });
    Flow {
        client: report.client.to_string(),
        server: report.server.to_string(),
        tunnel: (report.scope != 0).then_some(report.scope),
        start_ns: report.first_ns,
        end_ns: report.last_ns,
        ending: report.ending,
        visibility: report.visibility,
        midstream: report.midstream,
        degraded: report.degraded,
        to_server,
        to_client,
    }
}

fn ratio(lost: u64, of: u64) -> Ratio {
    let (events, trials) = (lost as f64, of.max(1) as f64);
    let share = (events / trials).min(1.0);
    let z = 1.96f64;
    let denominator = 1.0 + z * z / trials;
    let center = share + z * z / (2.0 * trials);
    let spread = z * (share * (1.0 - share) / trials + z * z / (4.0 * trials * trials)).sqrt();
    Ratio {
        lost,
        of,
        share,
        low: ((center - spread) / denominator).max(0.0),
        high: ((center + spread) / denominator).min(1.0),
        enough: lost >= ENOUGH_EVENTS,
    }
}

fn round_trips(histogram: &Histogram<u64>) -> Option<RoundTrips> {
    (!histogram.is_empty()).then(|| RoundTrips {
        samples: histogram.len(),
        min: histogram.min(),
        p50: histogram.value_at_quantile(0.5),
        p90: histogram.value_at_quantile(0.9),
        p99: histogram.value_at_quantile(0.99),
        max: histogram.max(),
    })
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table(f)?;
        self.summary(f)
    }
}

/// Directions in which there is something to tell.
fn rows(flow: &Flow) -> impl Iterator<Item = (String, &Direction)> {
    let to_server = (
        format!("{} > {}", flow.client, flow.server),
        &flow.to_server,
    );
    let to_client = (
        format!("{} > {}", flow.server, flow.client),
        &flow.to_client,
    );
    [to_server, to_client].into_iter().filter(|(_, direction)| {
        let counts = &direction.counts;
        counts.lost_packets()
            + counts.unresolved.packets
            + counts.retransmitted.packets
            + counts.reordered.packets
            + counts.mirror_duplicates
            + counts.late_after_ack.packets
            + counts.syn_retransmitted
            > 0
    })
}

impl Document {
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.worst.is_empty() {
            return Ok(());
        }
        let all: Vec<_> = self.worst.iter().flat_map(rows).collect();
        let width = all
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0)
            .max(20);
        writeln!(
            f,
            "{:width$} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "flow, worst first",
            "data",
            "before us",
            "behind us",
            "capture",
            "reordered",
            "needless",
            "copies",
            "unknown"
        )?;
        for (name, direction) in all {
            let counts = &direction.counts;
            writeln!(
                f,
                "{name:width$} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
                counts.data_packets,
                counts.upstream_loss.packets,
                counts.downstream_loss.packets,
                counts.capture_loss.packets,
                counts.reordered.packets,
                counts.spurious.packets,
                counts.mirror_duplicates,
                counts.unresolved.packets,
            )?;
        }
        writeln!(f)
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frames, flows, tcp, ..
        } = self;
        writeln!(
            f,
            "{} frames, {} of them TCP, in {} flows: {} seen in both directions, {} data only, {} \
             acknowledgments only, {} half-open.",
            frames.total,
            frames.tcp,
            flows.total,
            flows.bidirectional,
            flows.data_only,
            flows.acknowledgments_only,
            flows.half_open
        )?;
        self.trouble_with_the_file(f)?;
        if flows.bidirectional > 0 {
            line(
                f,
                "Before us",
                "lost between the sender and us",
                &self.ratios.before_us,
            )?;
            line(
                f,
                "Behind us",
                "lost between us and the receiver",
                &self.ratios.behind_us,
            )?;
            line(
                f,
                "Capture",
                "arrived at the receiver and are not in this capture",
                &self.ratios.capture,
            )?;
            if tcp.capture_loss.events > 0 {
                writeln!(
                    f,
                    "  {} octets in {} holes; {} of the holes are retransmissions that the capture lacks.",
                    tcp.capture_loss.octets, tcp.capture_loss.events, tcp.capture_loss_ambiguous
                )?;
            }
        }
        self.further(f)?;
        self.round_trip_lines(f)?;
        self.tunnel_lines(f)
    }

    fn trouble_with_the_file(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(damage) = &self.damage {
            writeln!(f, "Damaged: {damage}. What comes before it was read.")?;
        }
        if let Some(link) = self.unknown_link_type {
            writeln!(
                f,
                "{} frames have link type {link} or another that is not known; they were left out.",
                self.unknown_link_frames
            )?;
        }
        if self.frames_back_in_time > 0 {
            writeln!(
                f,
                "{} frames lie before the frame that they follow in time.",
                self.frames_back_in_time
            )?;
        }
        let flows = &self.flows;
        if flows.degraded + flows.evicted > 0 {
            writeln!(
                f,
                "Memory was short: {} flows were thrown out before their end (--max-flows), {} have counts \
                 that are too low.",
                flows.evicted, flows.degraded
            )?;
        }
        Ok(())
    }

    fn further(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.tcp;
        all.merge(&self.tcp_not_seen_whole);
        let pending = self.tcp.pending_packets();
        for (count, words) in [
            (
                all.reordered.packets,
                "packets came after later ones (reordered before us)",
            ),
            (
                all.spurious.packets,
                "retransmissions were needless: the receiver had the data",
            ),
            (pending, "retransmissions are not decided"),
            (
                all.mirror_duplicates,
                "packets came twice, bit for bit (two taps on one path?)",
            ),
            (
                all.late_after_ack.packets,
                "packets came after their acknowledgment (directions skewed)",
            ),
            (
                all.unresolved.packets,
                "packets are missing and nobody can tell where they were lost",
            ),
            (
                all.fragment_gap.packets,
                "packets are missing as fragments that are not complete",
            ),
            (all.syn_retransmitted, "SYN were sent again"),
            (
                all.tuple_reuses,
                "connections used addresses and ports of an earlier one",
            ),
            (all.zero_windows, "packets closed the window"),
        ] {
            if count > 0 {
                writeln!(f, "{count} {words}.")?;
            }
        }
        if self.flows.black_holes > 0 {
            writeln!(
                f,
                "{} flows lack full-size packets while small ones pass: an MTU that is too small (see \
                 `black_hole` in --json).",
                self.flows.black_holes
            )?;
        }
        Ok(())
    }

    fn round_trip_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (side, trips) in [
            ("clients", &self.round_trip_client_side_us),
            ("servers", &self.round_trip_server_side_us),
        ] {
            if let Some(trips) = trips {
                writeln!(
                    f,
                    "Round trip to the {side}: median {}, 99 % below {}, shortest {} ({} samples).",
                    time(trips.p50),
                    time(trips.p99),
                    time(trips.min),
                    trips.samples
                )?;
            }
        }
        Ok(())
    }

    fn tunnel_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tunnel in &self.tunnels {
            let counts = &tunnel.counts;
            writeln!(
                f,
                "Tunnel {} > {} key {}: {} of {} numbered packets lost (exact), {} reordered, {} came twice, \
                 {} restarts.",
                tunnel.source,
                tunnel.destination,
                tunnel.key,
                counts.lost,
                counts.expected,
                counts.reordered,
                counts.duplicated,
                counts.restarts
            )?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, place: &str, words: &str, ratio: &Ratio) -> fmt::Result {
    if ratio.lost == 0 {
        return writeln!(f, "{place}: no packets {words}.");
    }
    write!(f, "{place}: about {} packets {words}", ratio.lost)?;
    if ratio.enough {
        writeln!(
            f,
            ", {:.2} % ({:.2} to {:.2} %).",
            ratio.share * 100.0,
            ratio.low * 100.0,
            ratio.high * 100.0
        )
    } else {
        writeln!(f, " of {}; too few for a percentage.", ratio.of)
    }
}

fn time(microseconds: u64) -> String {
    if microseconds >= 10_000 {
        format!("{} ms", microseconds / 1000)
    } else if microseconds >= 1000 {
        format!("{:.1} ms", microseconds as f64 / 1000.0)
    } else {
        format!("{microseconds} us")
    }
}
