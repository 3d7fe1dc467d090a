//! `xtee loss`: what a capture file tells about loss.

mod table;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use super::args::LossArguments;
use crate::config::error::{ConfigError, Place};
use crate::loss::{FlowReport, Monitor, Settings};
use crate::source::capture::{self, CaptureError};
use table::Document;

/// Smaller files are read before a bar would be seen.
const LARGE: u64 = 64 << 20;
/// The bar moves after so many frames.
const BAR_EVERY: u64 = 4096;

/// Reads the capture and prints what it tells.
///
/// # Errors
/// The file is no capture or cannot be read.
pub fn loss(arguments: &LossArguments) -> anyhow::Result<()> {
    let (source, size): (Box<dyn Read + Send>, u64) = if arguments.file == Path::new("-") {
        (Box::new(io::stdin()), 0)
    } else {
        let file = File::open(&arguments.file)
            .map_err(|error| refused(&arguments.file, &CaptureError::Unreadable(error)))?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        (Box::new(file), size)
    };
    let position = Arc::new(AtomicU64::new(0));
    let counting = Counting {
        inner: source,
        position: Arc::clone(&position),
    };
    let bar = bar(size);

    let mut settings = Settings::for_flows(arguments.max_flows);
    settings.grace_ns = u64::from(arguments.grace) * 1_000_000;
    let mut monitor = Monitor::new(settings);
    let mut worst = Worst::new(arguments.flows);
    let mut frames = 0u64;
    let outcome = capture::read(counting, &mut |frame: capture::Frame<'_>| {
        frames += 1;
        if frames % BAR_EVERY == 0 {
            bar.set_position(position.load(Ordering::Relaxed));
        }
        let ended = &mut |report: &FlowReport| worst.add(report);
        monitor.frame(
            frame.time_ns,
            frame.bytes,
            frame.wire_length,
            frame.link,
            ended,
        );
    })
    .map_err(|error| refused(&arguments.file, &error))?;
    monitor.finish(&mut |report| worst.add(report));
    bar.finish_and_clear();

    let document = Document::new(&arguments.file, &outcome, &monitor, worst.into_sorted());
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print!("{document}");
    }
    Ok(())
}

fn refused(file: &Path, error: &CaptureError) -> ConfigError {
    ConfigError {
        place: Place::Arguments,
        key: "FILE".to_owned(),
        wrong: format!("{} {error}", file.display()),
        allowed: String::new(),
    }
}

/// A bar for who looks on and waits; else one that shows nothing.
fn bar(size: u64) -> ProgressBar {
    if size < LARGE || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent}% {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

struct Counting<R> {
    inner: R,
    position: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.position.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// The worst flows, as many as are to be shown: memory does not depend on the capture.
struct Worst {
    limit: usize,
    serial: u64,
    heap: BinaryHeap<Reverse<Ranked>>,
}

struct Ranked {
    rank: (u64, u64, Reverse<u64>),
    report: FlowReport,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Ranked {}

impl Worst {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            serial: 0,
            heap: BinaryHeap::new(),
        }
    }

    fn add(&mut self, report: &FlowReport) {
        let counts = report.counts();
        let troubles = counts.unresolved.packets
            + counts.retransmitted.packets
            + counts.reordered.packets
            + counts.mirror_duplicates
            + counts.late_after_ack.packets
            + counts.syn_retransmitted;
        let rank = (counts.lost_packets(), troubles);
        if rank == (0, 0) || self.limit == 0 {
            return;
        }
        self.serial += 1;
        let rank = (rank.0, rank.1, Reverse(self.serial));
        let full = self.heap.len() == self.limit;
        if full && self.heap.peek().is_some_and(|least| least.0.rank >= rank) {
            return;
        }
        if full {
            self.heap.pop();
        }
        let report = report.clone();
        self.heap.push(Reverse(Ranked { rank, report }));
    }

    fn into_sorted(self) -> Vec<FlowReport> {
        let sorted = self.heap.into_sorted_vec();
        sorted.into_iter().map(|Reverse(one)| one.report).collect()
    }
}
