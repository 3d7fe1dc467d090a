//! Capture files: pcap (micro- and nanoseconds, both byte orders) and pcapng, plain or in gzip.
//!
//! Read once from front to end through one buffer; memory does not depend on the file's size. Knows
//! nothing of what frames mean. Called by `xtee loss`.

use std::io::{self, Cursor, Read};
use std::sync::{Arc, Mutex};

use pcap_parser::{create_reader, Block, PcapBlockOwned, PcapError};

use crate::loss::Link;

/// Read at once.
const BUFFER: usize = 1 << 20;
/// No record is longer; a longer one is damage.
const LARGEST_BUFFER: usize = 64 << 20;
/// Enough to tell what a file is.
const HEAD: usize = 64 << 10;

/// More than the header of a pcap file; that of pcapng is longer.
const SHORTEST: usize = 25;

/// One frame of a capture.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// When it was captured, nanoseconds since 1970.
    pub time_ns: u64,
    /// Captured bytes.
    pub bytes: &'a [u8],
    /// Length on the wire.
    pub wire_length: usize,
    /// How it begins.
    pub link: Link,
}

/// What was read of a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is wrong with the file, and where; what came before was read.
    pub damage: Option<String>,
    /// Frames of link types that are not known, by number of the first such type.
    pub unknown_links: u64,
    /// That type.
    pub unknown_link: Option<i32>,
    /// Frames whose time lies before that of the frame before them.
    pub backwards: u64,
}

/// A file is no capture, or cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Nothing of it can be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// It does not begin as a capture does.
    #[error("is not a capture: expected pcap or pcapng, plain or in gzip")]
    NotACapture,
}

/// Fails once with an error.
struct Failing(Option<io::Error>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

/// Keeps the error that the parser only tells of.
struct Remembering<R> {
    inner: R,
    error: Arc<Mutex<Option<io::Error>>>,
}

impl<R: Read> Read for Remembering<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    if let Ok(mut slot) = self.error.lock() {
                        *slot = Some(error);
                    }
                    return Err(kind.into());
                }
                done => return done,
            }
        }
    }
}

/// Reads a capture to its end, or to where it is damaged; each frame goes to `take`.
///
/// # Errors
/// It is no capture, or nothing of it can be read.
pub fn read(
    mut source: impl Read + Send,
    take: &mut impl FnMut(Frame<'_>),
) -> Result<Outcome, CaptureError> {
    let head = head(&mut source).map_err(CaptureError::Unreadable)?;
    if head.starts_with(&[0x1f, 0x8b]) {
        // Several members in a row are one file, as gzip itself takes them.
        let mut plain = flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(
            BUFFER / 4,
            Cursor::new(head).chain(source),
        ));
        let mut first = Vec::with_capacity(HEAD);
        let outcome = (&mut plain).take(HEAD as u64).read_to_end(&mut first);
        let Err(error) = outcome else {
            return records(first, plain, take);
        };
        // Cut short already here: what came out of it is read, then the error is met.
        if first.len() < SHORTEST {
            return Err(CaptureError::Unreadable(error));
        }
        return records(first, Failing(Some(error)), take);
    }
    records(head, source, take)
}

fn head(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    source.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// What is known of an interface of a pcapng section.
struct Interface {
    link: i32,
    units: u64,
    offset_s: i64,
}

#[derive(Default)]
struct State {
    interfaces: Vec<Interface>,
    legacy: Option<(i32, bool)>,
    outcome: Outcome,
    last_ns: u64,
}

/// Reads records from `head` and what follows it.
fn records(
    mut head: Vec<u8>,
    rest: impl Read + Send,
    take: &mut impl FnMut(Frame<'_>),
) -> Result<Outcome, CaptureError> {
    let error = Arc::new(Mutex::new(None));
    // The parser reads twice before it gives anything out: neither must meet an error of what follows.
    let last = if head.len() < SHORTEST {
        Vec::new()
    } else {
        head.split_off(head.len() - 1)
    };
    let source = Remembering {
        inner: Cursor::new(head).chain(Cursor::new(last)).chain(rest),
        error: Arc::clone(&error),
    };
    let mut reader = create_reader(BUFFER, source).map_err(|_| CaptureError::NotACapture)?;
    let mut state = State::default();
    let mut capacity = BUFFER;
    loop {
        let consumed = reader.consumed();
        let refill = match reader.next() {
            Ok((length, block)) => {
                let damage = state.block(&block, take);
                reader.consume(length);
                if let Some(damage) = damage {
                    state.outcome.damage = Some(format!("{damage} at byte {consumed}"));
                    break;
                }
                continue;
            }
            Err(PcapError::Eof) => break,
            Err(PcapError::Incomplete(_)) => true,
            Err(PcapError::BufferTooSmall) if capacity < LARGEST_BUFFER => {
                capacity = (capacity * 4).min(LARGEST_BUFFER);
                false
            }
            Err(PcapError::BufferTooSmall) => {
                state.damaged("a record of impossible length", consumed);
                break;
            }
            Err(PcapError::UnexpectedEof) => {
                state.damaged("the file ends within a record", consumed);
                break;
            }
            Err(_) => {
                state.damaged("a record that cannot be read", consumed);
                break;
            }
        };
        if !refill {
            reader.grow(capacity);
        }
        if reader.refill().is_err() {
            let told = error.lock().ok().and_then(|mut slot| slot.take());
            let told = told.map_or_else(|| "reading failed".to_owned(), |error| error.to_string());
            state.damaged(&told, consumed);
            break;
        }
    }
    Ok(state.outcome)
}

impl State {
    fn damaged(&mut self, what: &str, at: usize) {
        self.outcome.damage = Some(format!("{what} at byte {at}"));
    }

    /// Takes one block; what is wrong with it.
    fn block(
        &mut self,
        block: &PcapBlockOwned<'_>,
        take: &mut impl FnMut(Frame<'_>),
    ) -> Option<&'static str> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.legacy = Some((header.network.0, header.is_nanosecond_precision()));
            }
            PcapBlockOwned::Legacy(record) => {
                let (link, nanoseconds) = self.legacy?;
                let unit = if nanoseconds { 1 } else { 1000 };
                let time_ns =
                    u64::from(record.ts_sec) * 1_000_000_000 + u64::from(record.ts_usec) * unit;
                self.frame(link, time_ns, record.data, record.origlen, take);
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => self.interfaces.clear(),
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                let Some(units) = interface.ts_resolution().filter(|&units| units > 0) else {
                    return Some("an interface without a possible time resolution");
                };
                self.interfaces.push(Interface {
                    link: interface.linktype.0,
                    units,
                    offset_s: interface.ts_offset(),
                });
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let Some(interface) = self.interfaces.get(packet.if_id as usize) else {
                    return Some("a packet of an interface that is not described");
                };
                let stamp = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let (link, time_ns) = (interface.link, interface.nanoseconds(stamp));
                let length = packet.data.len().min(packet.caplen as usize);
                self.frame(link, time_ns, &packet.data[..length], packet.origlen, take);
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                let Some(interface) = self.interfaces.first() else {
                    return Some("a packet of an interface that is not described");
                };
                // It has no time: the order is what there is.
                let (link, time_ns) = (interface.link, self.last_ns);
                let length = packet.data.len().min(packet.origlen as usize);
                self.frame(link, time_ns, &packet.data[..length], packet.origlen, take);
            }
            PcapBlockOwned::NG(_) => {}
        }
        None
    }

    fn frame(
        &mut self,
        link: i32,
        time_ns: u64,
        bytes: &[u8],
        wire_length: u32,
        take: &mut impl FnMut(Frame<'_>),
    ) {
        self.outcome.backwards += u64::from(time_ns < self.last_ns);
        self.last_ns = time_ns;
        let Some(link) = known_link(link) else {
            self.outcome.unknown_links += 1;
            self.outcome.unknown_link.get_or_insert(link);
            return;
        };
        take(Frame {
            time_ns,
            bytes,
            wire_length: wire_length as usize,
            link,
        });
    }
}

impl Interface {
    fn nanoseconds(&self, stamp: u64) -> u64 {
        let whole = u128::from(stamp) * 1_000_000_000 / u128::from(self.units);
        let offset = i128::from(self.offset_s) * 1_000_000_000;
        u64::try_from(i128::try_from(whole).unwrap_or(0) + offset).unwrap_or(0)
    }
}

/// Numbers of link types: <https://www.tcpdump.org/linktypes.html>. Some differ between a file and the
/// system that wrote it.
const fn known_link(number: i32) -> Option<Link> {
    // The upper bits of a pcap header tell about checksums of frames.
    Some(match number & 0xffff {
        1 => Link::Ethernet,
        0 | 108 => Link::Loopback,
        9 | 50 => Link::Ppp,
        12 | 14 | 101 | 228 | 229 => Link::Ip,
        113 => Link::Cooked,
        276 => Link::Cooked2,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
