//! The writer of a capture: opens the file or the standard output, and writes what the workers encoded, in
//! a thread of its own that may wait for a disk or a reader.
//!
//! An error is said once and counted; the mirror goes on. A file stays readable whatever happens: what was
//! written of a block that did not fit is cut off again. A reader that goes away ends a stream for good.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _};

use crate::config::sink::SinkKind;
use crate::host::clock::{monotonic, utc_offset};
use crate::host::wait_writable;
use crate::packet::pcapng::{self, Interface, Statistics};
use crate::reason::Reason;
use crate::telemetry::sinks::CaptureState;
use crate::transmit::capture::{Buffer, Channel, Outcome};

/// How long the writer sleeps when there is nothing to write.
const NAP: Duration = Duration::from_millis(1);
/// How long it waits for a full pipe before it looks whether the worker still wants that.
const PIPE_WAIT: Duration = Duration::from_millis(20);
/// How long the last words are waited for, and a writer that hangs in a dead disk with them.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What all captures of a mirror say about its sources, in their order.
#[derive(Clone, Debug)]
pub struct CapturedInterface {
    /// `eth0`
    pub interface: String,
    /// `tap:eth0`
    pub source: String,
}

/// A source's counts at the end. Unit: packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct FinalCounts {
    /// Seen by the source.
    pub seen: u64,
    /// Taken by the rules.
    pub matched: u64,
    /// Taken and not in the capture.
    pub dropped: u64,
    /// In the capture.
    pub written: u64,
}

/// An open capture that nobody writes to yet.
#[derive(Debug)]
pub struct OpenCapture {
    output: Output,
    /// Removed again if nothing comes of it.
    made: Option<PathBuf>,
}

/// Where blocks are written.
#[derive(Debug)]
struct Output {
    file: File,
    /// An ordinary file: what is written can be taken back.
    ordinary: bool,
    /// Bytes of whole blocks so far.
    good: u64,
    /// A stream that ended within a block, or without a reader: nothing can follow.
    ended: bool,
}

impl OpenCapture {
    /// Opens what a target says and writes the description of the interfaces.
    ///
    /// # Errors
    /// It cannot be opened or written; a file with content stands there; a terminal would be written to.
    pub fn open(kind: &SinkKind, interfaces: &[CapturedInterface]) -> anyhow::Result<OpenCapture> {
        let (file, made) = match kind {
            SinkKind::File(path) => open_file(path)?,
            SinkKind::StandardOutput => (standard_output()?, None),
            SinkKind::DryRun => bail!("a dry run writes nothing"),
        };
        let ordinary = file.metadata().is_ok_and(|found| found.is_file());
        let mut capture = OpenCapture {
            output: Output {
                file,
                ordinary,
                good: 0,
                ended: false,
            },
            made,
        };
        let mut head = Vec::new();
        let application = concat!("xtee ", env!("CARGO_PKG_VERSION"));
        pcapng::section_header(application, &mut head);
        for interface in interfaces {
            let described = Interface {
                name: &interface.interface,
                description: &interface.source,
                link_type: pcapng::ETHERNET,
            };
            pcapng::interface_description(&described, &mut head);
        }
        let written = capture.output.write(&head, &|| false);
        match written.error {
            Some(error) => Err(error).with_context(|| format!("cannot write {kind}")),
            None => Ok(capture),
        }
    }

    /// Starts to write what comes by `channels`.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start(
        mut self,
        channels: Vec<Arc<Channel>>,
        state: Arc<CaptureState>,
    ) -> anyhow::Result<RunningCapture> {
        let output = Output {
            file: self.output.file.try_clone()?,
            ..self.output
        };
        let (end, ended) = channel();
        let mut writer = Writer {
            output,
            channels,
            started_ns: monotonic().wrapping_add(utc_offset()),
            state,
            packets: 0,
        };
        let thread = std::thread::Builder::new()
            .name("xtee-capture".to_owned())
            .spawn(move || {
                writer.run(&ended);
                writer.packets
            })?;
        Ok(RunningCapture {
            end: Some(end),
            thread: Some(thread),
            made: self.made.take(),
        })
    }
}

impl Drop for OpenCapture {
    fn drop(&mut self) {
        remove(&mut self.made);
    }
}

fn remove(made: &mut Option<PathBuf>) {
    if let Some(path) = made.take() {
        // Nothing is in it but the description of interfaces; it would be in the way of the next start.
        let _ = std::fs::remove_file(path);
    }
}

fn open_file(path: &Path) -> anyhow::Result<(File, Option<PathBuf>)> {
    let is_new = std::fs::symlink_metadata(path).is_err();
    // A capture holds what was said in clear: it is for its owner alone. A FIFO without a reader is
    // refused (ENXIO) instead of waited for; an ordinary file knows no O_NONBLOCK.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let found = file.metadata()?;
    if found.is_file() && found.len() > 0 {
        bail!(
            "{} exists and is not empty; give the capture another name",
            path.display()
        );
    }
    Ok((file, (is_new && found.is_file()).then(|| path.to_owned())))
}

/// The standard output, opened anew where that is possible: so it can be written without waiting, and whoever
/// shares it notices nothing.
fn standard_output() -> anyhow::Result<File> {
    let shared = io::stdout();
    if shared.is_terminal() {
        bail!(
            "pcap:- would write a capture to the terminal: `| tcpdump -nr -` or `> FILE` takes it"
        );
    }
    let shared = File::from(shared.as_fd().try_clone_to_owned()?);
    let found = shared.metadata()?;
    // An ordinary file has a position that whoever opened it chose (`>>`): it stays shared.
    if found.is_file() {
        return Ok(shared);
    }
    let anew = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/proc/self/fd/1");
    match anew {
        Ok(file) if file.metadata().is_ok_and(|it| it.ino() == found.ino()) => Ok(file),
        // A socket, or no /proc: then the writer waits in the write itself.
        _ => Ok(shared),
    }
}

/// What became of one write.
struct Written {
    /// Whole blocks.
    blocks: u64,
    /// Their bytes.
    bytes: usize,
    error: Option<io::Error>,
}

impl Output {
    /// Writes whole blocks; `give_up` is asked while a reader keeps it waiting.
    fn write(&mut self, bytes: &[u8], give_up: &dyn Fn() -> bool) -> Written {
        let mut at = 0;
        let mut error = None;
        if self.ended {
            error = Some(io::ErrorKind::BrokenPipe.into());
        }
        while at < bytes.len() && error.is_none() {
            match self.file.write(&bytes[at..]) {
                Ok(0) => error = Some(io::ErrorKind::WriteZero.into()),
                Ok(count) => at += count,
                Err(refused) if refused.kind() == io::ErrorKind::Interrupted => {}
                Err(refused) if refused.kind() == io::ErrorKind::WouldBlock => {
                    if give_up() {
                        error = Some(refused);
                    } else if let Err(failed) = wait_writable(self.file.as_fd(), PIPE_WAIT) {
                        error = Some(failed);
                    }
                }
                Err(refused) => error = Some(refused),
            }
        }
        let (blocks, whole) = pcapng::whole_blocks(&bytes[..at]);
        self.good += whole as u64;
        if error.is_some() {
            self.mend(at > whole);
        }
        Written {
            blocks,
            bytes: whole,
            error,
        }
    }

    /// After an error, `torn` within a block.
    fn mend(&mut self, torn: bool) {
        if !torn {
            return;
        }
        // A position that was not ours to begin with (`>> FILE`) cannot be reckoned by what was written.
        let position = self.file.stream_position();
        let end = match (self.ordinary, position) {
            (true, Ok(_)) => self.good,
            _ => {
                self.ended = true;
                return;
            }
        };
        let cut = self
            .file
            .set_len(end)
            .and_then(|()| self.file.seek(io::SeekFrom::Start(end)));
        self.ended = cut.is_err();
    }
}

/// The thread.
struct Writer {
    output: Output,
    channels: Vec<Arc<Channel>>,
    started_ns: u64,
    state: Arc<CaptureState>,
    packets: u64,
}

impl Writer {
    /// Until it is told to end: with the final counts, or, when the mirror failed to start, without.
    fn run(&mut self, ended: &Receiver<Vec<FinalCounts>>) {
        loop {
            let mut wrote = false;
            for index in 0..self.channels.len() {
                if let Some(buffer) = self.channels[index].take() {
                    self.write(index, buffer);
                    wrote = true;
                }
            }
            if wrote {
                continue;
            }
            match ended.recv_timeout(NAP) {
                Ok(counts) => return self.last_words(&counts),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write(&mut self, index: usize, buffer: Buffer) {
        let channel = self.channels[index].clone();
        let written = self.output.write(buffer.bytes(), &|| channel.abandoned());
        self.packets += written.blocks;
        let reason = written.error.map(|error| self.tell(&error));
        if reason.is_none() {
            self.state.set_problem(None);
        }
        let outcome = Outcome {
            packets: written.blocks,
            bytes: written.bytes as u64,
            reason,
        };
        channel.give_back(buffer, outcome);
    }

    fn tell(&self, error: &io::Error) -> Reason {
        match error.kind() {
            // Given up because the mirror ends.
            io::ErrorKind::WouldBlock => return Reason::Shutdown,
            io::ErrorKind::BrokenPipe => {
                self.state.set_reader_gone();
                self.state
                    .set_problem(Some("whoever read the capture has gone"));
            }
            _ => {
                let problem = format!("the capture cannot be written: {error}");
                self.state.set_problem(Some(&problem));
            }
        }
        Reason::WriteError
    }

    /// The statistics of each interface.
    fn last_words(&mut self, counts: &[FinalCounts]) {
        let now_ns = monotonic().wrapping_add(utc_offset());
        let mut blocks = Vec::new();
        for (interface, counts) in (0..).zip(counts) {
            let statistics = Statistics {
                interface,
                started_ns: self.started_ns,
                now_ns,
                received: counts.seen,
                accepted: counts.matched,
                dropped: counts.dropped,
                delivered: counts.written,
            };
            pcapng::interface_statistics(&statistics, &mut blocks);
        }
        let end = Instant::now() + LAST_WORDS;
        let written = self.output.write(&blocks, &|| Instant::now() >= end);
        if let Some(error) = written.error {
            // A reader that ended with us (an interrupt goes to both) is no news.
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::warn!("the capture ends without its statistics: {error}");
            }
        }
    }
}

/// A capture that is being written.
#[derive(Debug)]
pub struct RunningCapture {
    end: Option<Sender<Vec<FinalCounts>>>,
    thread: Option<JoinHandle<u64>>,
    made: Option<PathBuf>,
}

impl RunningCapture {
    /// Ends it with the statistics of each source. The workers must have ended.
    pub fn finish(&mut self, counts: Vec<FinalCounts>) {
        if let Some(end) = self.end.take() {
            // It ends by itself only with its sender.
            let _ = end.send(counts);
        }
        self.made = None;
        self.join();
    }

    /// Returns how many packets are in the capture.
    fn join(&mut self) -> u64 {
        let Some(thread) = self.thread.take() else {
            return 0;
        };
        let patience = Instant::now() + LAST_WORDS + LAST_WORDS;
        while !thread.is_finished() {
            if Instant::now() >= patience {
                tracing::warn!("a capture's writer hangs in the kernel and is left behind");
                return u64::MAX;
            }
            std::thread::sleep(NAP);
        }
        thread.join().unwrap_or(u64::MAX)
    }
}

impl Drop for RunningCapture {
    fn drop(&mut self) {
        // Without its sender it ends.
        self.end = None;
        if self.join() == 0 {
            remove(&mut self.made);
        }
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
