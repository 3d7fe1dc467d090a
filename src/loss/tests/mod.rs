//! The tracker against networks whose losses are known.

mod invariants;
mod memory;
mod network;
mod scenarios;

use super::{Counts, End, FlowKey, FlowReport, Segment, Settings, Totals, Tracker, Way};

/// A segment as the tracker gets it: time in nanoseconds, whether the client sends it, port of the client.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub at: u64,
    pub client: bool,
    pub port: u16,
    pub segment: Segment,
}

fn end(last: u8, port: u16) -> End {
    End {
        address: std::net::Ipv4Addr::new(198, 51, 100, last).into(),
        port,
    }
}

/// Keys with the client as the lower or as the higher end.
fn key_of(seen: &Seen, swapped: bool) -> (FlowKey, Way) {
    let (client, server) = if swapped { (9, 2) } else { (1, 2) };
    let (client, server) = (end(client, seen.port), end(server, 80));
    if seen.client {
        FlowKey::new(client, server, 0)
    } else {
        FlowKey::new(server, client, 0)
    }
}

/// Runs segments in the order of their time; totals of all flows and each flow.
fn run_with(mut seen: Vec<Seen>, settings: Settings, swapped: bool) -> (Totals, Vec<FlowReport>) {
    seen.sort_by_key(|seen| seen.at);
    let mut tracker = Tracker::new(settings);
    let mut reports = Vec::new();
    let mut ended = |report: &FlowReport| reports.push(report.clone());
    for seen in &seen {
        let (key, way) = key_of(seen, swapped);
        tracker.segment(seen.at, &key, way, &seen.segment, &mut ended);
    }
    tracker.finish(&mut ended);
    (*tracker.totals(), reports)
}

fn run(seen: Vec<Seen>) -> (Totals, Vec<FlowReport>) {
    run_with(seen, Settings::for_flows(64), false)
}

/// All counts, whatever could be seen of the flows.
fn sum(totals: &Totals) -> Counts {
    let mut counts = totals.counts;
    counts.merge(&totals.others);
    counts
}
