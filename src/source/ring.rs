//! The tap's ring, read in place: records are lent straight from the ring's pages, and the consumer
//! position moves once a batch.
//!
//! libbpf's consumer frees each record as its callback returns, so a send could not gather from the
//! ring; hence our own reader of the layout in `kernel/bpf/ringbuf.c`: one page with the consumer
//! position (writable), one with the producer position, then the data, twice in a row in the kernel, so that
//! a record that wraps is still contiguous. Of the second time as much is mapped as one record needs: mapped
//! pages count as resident, each time that they are mapped. Made by control, used by one worker.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::mapped::page_size;
use super::Frames;
use crate::packet::{Checksum, Direction, FrameMeta, Gso, VlanTag};

const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// `BPF_RINGBUF_HDR_SZ`: length with the two flags, then the page offset.
const RECORD_HEADER: usize = 8;
/// Bytes of a batch: what is summed for its checksum is still in the core's own cache when the kernel
/// copies it to send, and the ring's space comes back early.
const BATCH_BYTES: u64 = 192 << 10;
/// More than the longest record has behind the ring's end: the largest class of `bpf/copy.h`, its metadata
/// and its header.
const MOST_WRAPPED: usize = 68 << 10;
/// `struct xtee_record` of `bpf/abi.h`; a test holds the two together.
const META: usize = 48;

/// The reader of one ring.
#[derive(Debug)]
pub struct Ring {
    descriptor: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    size: u64,
    /// Where the data begins in the producer's mapping: behind one page.
    data: usize,
    /// Everything before this position has been released.
    released: u64,
    /// Everything before this position has been lent.
    position: u64,
    batch: RingBatch,
}

/// Where the frames of a batch are.
#[derive(Debug, Default)]
struct RingBatch {
    frames: Vec<(usize, usize)>,
    metas: Vec<FrameMeta>,
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread; one Ring owns it and is used by one thread at a time.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(
        descriptor: &OwnedFd,
        length: usize,
        offset: usize,
        writable: bool,
    ) -> io::Result<Mapping> {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new shared mapping of an open descriptor; the kernel checks length and offset.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                descriptor.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Mapping { base, length })
    }

    fn position(&self) -> &AtomicU64 {
        // SAFETY: the first word of a mapped page: aligned, alive as long as self, atomic on both sides.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u64>()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped once; whatever was lent borrowed the Ring.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

impl Ring {
    /// Maps a ring of `size` bytes; batches hold at most `batch` frames.
    ///
    /// # Errors
    /// What mmap(2) said.
    pub fn new(descriptor: OwnedFd, size: u32, batch: usize) -> io::Result<Ring> {
        let page = page_size();
        let size_bytes = size as usize;
        let consumer = Mapping::new(&descriptor, page, 0, true)?;
        let wrapped = size_bytes.min(MOST_WRAPPED).next_multiple_of(page);
        let producer = Mapping::new(&descriptor, page + size_bytes + wrapped, page, false)?;
        let released = consumer.position().load(Ordering::Relaxed);
        Ok(Ring {
            descriptor,
            consumer,
            producer,
            size: u64::from(size),
            data: page,
            released,
            position: released,
            batch: RingBatch {
                frames: Vec::with_capacity(batch),
                metas: Vec::with_capacity(batch),
            },
        })
    }

    /// The descriptor to sleep on.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// Whether nothing waits beyond what was lent. Tests the producer position, not a record: this is
    /// the reader's half of the sleep protocol.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.producer.position().load(Ordering::Acquire) == self.position
    }

    /// Bytes that wait in the ring or are lent.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.producer
            .position()
            .load(Ordering::Acquire)
            .wrapping_sub(self.released)
    }

    /// Lends the next frames, in order, and returns how many. Ends before a record that its writer has
    /// not submitted yet. What an earlier call lent must have been released.
    pub fn gather(&mut self) -> usize {
        self.batch.frames.clear();
        self.batch.metas.clear();
        let end = self.producer.position().load(Ordering::Acquire);
        let start = self.position;
        while self.position != end
            && self.batch.frames.len() < self.batch.frames.capacity()
            && self.position - start < BATCH_BYTES
        {
            let at = self.data + (self.position & (self.size - 1)) as usize;
            let header = self.record_word(at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                break;
            }
            let length = (header & !(BUSY | DISCARDED)) as usize;
            self.position += (length + RECORD_HEADER).next_multiple_of(8) as u64;
            if header & DISCARDED != 0 {
                continue;
            }
            let record = self.lend(at + RECORD_HEADER, length);
            let Some((meta, captured)) = decode(record) else {
                continue;
            };
            self.batch
                .frames
                .push((at + RECORD_HEADER + META, captured));
            self.batch.metas.push(meta);
        }
        self.batch.frames.len()
    }

    /// What is known of frame `index` of the batch.
    #[must_use]
    pub fn meta(&self, index: u32) -> Option<&FrameMeta> {
        self.batch.metas.get(index as usize)
    }

    /// Gives the batch's bytes back to the kernel, in one store.
    pub fn release(&mut self) {
        self.batch.frames.clear();
        self.batch.metas.clear();
        if self.released != self.position {
            self.released = self.position;
            self.consumer
                .position()
                .store(self.position, Ordering::Release);
        }
    }

    fn record_word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: records begin at multiples of 8 below the ring's size: inside the mapping.
        let word = unsafe { self.producer.base.as_ptr().add(at) };
        // SAFETY: aligned to 8, mapped as long as self, and written by the kernel as a word.
        unsafe { AtomicU32::from_ptr(word.cast::<u32>()) }
    }

    fn lend(&self, at: usize, length: usize) -> &[u8] {
        if at
            .checked_add(length)
            .is_none_or(|end| end > self.producer.length)
        {
            return &[];
        }
        // SAFETY: inside the mapping, checked above.
        let start = unsafe { self.producer.base.as_ptr().add(at) };
        // SAFETY: submitted and not released: the kernel does not write it before `release`, which
        // needs `&mut self` and so outlives no borrow.
        unsafe { std::slice::from_raw_parts(start, length) }
    }
}

impl Frames for Ring {
    fn bytes(&self, index: u32) -> &[u8] {
        self.batch
            .frames
            .get(index as usize)
            .map_or(&[], |&(at, length)| self.lend(at, length))
    }

    fn meta(&self, index: u32) -> FrameMeta {
        Ring::meta(self, index)
            .copied()
            .unwrap_or(FrameMeta::plain(0))
    }
}

fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([record[at], record[at + 1]])
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

/// The metadata and the captured length of a record; `None` when it is shorter than it says.
fn decode(record: &[u8]) -> Option<(FrameMeta, usize)> {
    if record.len() < META {
        return None;
    }
    let captured = u32_at(record, 12) as usize;
    if captured > record.len() - META {
        return None;
    }
    let vlan_protocol = u16_at(record, 34);
    let meta = FrameMeta {
        timestamp_ns: u64::from(u32_at(record, 0)) | u64::from(u32_at(record, 4)) << 32,
        wire_length: u32_at(record, 8),
        flow_hash: u32_at(record, 16),
        generation: u32_at(record, 20),
        gso_size: u16_at(record, 24),
        segments: u16_at(record, 26).max(1),
        checksum: match record[39] {
            1 => Checksum::Finished,
            2 => Checksum::Unfinished {
                start: u16_at(record, 28),
                offset: u16_at(record, 30),
            },
            _ => Checksum::Unknown,
        },
        vlan: (vlan_protocol != 0).then(|| VlanTag {
            tci: u16_at(record, 32),
            protocol: vlan_protocol,
        }),
        direction: if record[36] == 0 {
            Direction::In
        } else {
            Direction::Out
        },
        rule: record[37],
        gso: match record[40] {
            0 => Gso::None,
            1 => Gso::Tcp,
            2 => Gso::Udp,
            _ => Gso::Unknown,
        },
        snaplen: u32_at(record, 44),
    };
    Some((meta, captured))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::skel::Record;
    use std::mem::offset_of;

    #[test]
    fn the_longest_record_is_mapped_whole_wherever_it_begins() {
        let largest = include_str!("../../bpf/copy.h")
            .lines()
            .filter_map(|line| {
                line.trim()
                    .strip_prefix("XTEE_COPY_CLASS(")?
                    .strip_suffix(");")
            })
            .filter_map(|class| class.parse::<usize>().ok())
            .max()
            .unwrap();
        assert!(largest >= 64 << 10);
        assert!(RECORD_HEADER + META + largest <= MOST_WRAPPED);
    }

    #[test]
    fn decode_reads_the_layout_of_the_header_file() {
        assert_eq!(std::mem::size_of::<Record>(), META);
        assert_eq!(offset_of!(Record, wire_length), 8);
        assert_eq!(offset_of!(Record, captured_length), 12);
        assert_eq!(offset_of!(Record, flow_hash), 16);
        assert_eq!(offset_of!(Record, generation), 20);
        assert_eq!(offset_of!(Record, gso_size), 24);
        assert_eq!(offset_of!(Record, segments), 26);
        assert_eq!(offset_of!(Record, checksum_start), 28);
        assert_eq!(offset_of!(Record, checksum_offset), 30);
        assert_eq!(offset_of!(Record, vlan_tci), 32);
        assert_eq!(offset_of!(Record, vlan_protocol), 34);
        assert_eq!(offset_of!(Record, direction), 36);
        assert_eq!(offset_of!(Record, rule), 37);
        assert_eq!(offset_of!(Record, checksum), 39);
        assert_eq!(offset_of!(Record, gso), 40);
        assert_eq!(offset_of!(Record, snaplen), 44);
    }

    #[test]
    fn decode_refuses_records_that_are_shorter_than_they_say() {
        assert!(decode(&[0; META - 1]).is_none());
        let mut record = vec![0; META + 10];
        record[12] = 11;
        assert!(decode(&record).is_none());
        record[12] = 10;
        assert_eq!(decode(&record).map(|(_, captured)| captured), Some(10));
    }
}
