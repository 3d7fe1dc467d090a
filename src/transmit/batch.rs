//! Messages for sendmmsg(2), in memory that is made once: the only place that holds iovec pointers.
//!
//! A packet is at most two parts: what was rebuilt or is short, copied here behind the tunnel header, and the
//! rest lent from the frame. Three parts a packet took 945 ns of a core for each 1500-byte copy where two
//! take 839 (median of 6 runs each, veth, device that cannot segment).
//!
//! The pointers are valid from `message` to `send` within one call of a transmitter, which borrows the
//! batch for that long; `clear` forgets them.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::tally::Extent;
use crate::packet::Part;

/// Room for a `UDP_SEGMENT` control message: `CMSG_SPACE(sizeof(u16))` on every 64-bit Linux.
const CONTROL: usize = 24;
/// Parts of one packet: what was copied together, and the tail in the frame.
const PARTS: usize = 2;
/// Tails up to this length are copied too, so that a run of short packets is one part: to gather a part
/// costs the kernel more than such a copy.
const SHORT_TAIL: usize = 256;
/// Most bytes of one packet that are copied: tunnel header, rebuilt head, short tail.
const MOST_COPIED: usize = 1024;
/// Copied bytes of a packet that a batch has room for on average.
const MEAN_COPIED: usize = 128;
/// `UIO_MAXIOV`: most messages of one call, and most parts of one message.
pub(super) const MAX_VECTOR: usize = 1024;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// One message's extent.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    first_part: usize,
    parts: usize,
    /// The last part is of what was copied.
    ends_copied: bool,
    packets: u32,
    extent: Extent,
    bytes: u64,
    /// `UDP_SEGMENT` size, 0 for none.
    segment: u16,
}

/// A reusable list of messages.
pub(super) struct Batch {
    parts: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
    controls: Vec<Control>,
    shapes: Vec<Shape>,
    /// Bytes that were copied: headers that differ from the frames, and short packets.
    copied: Box<[u8]>,
    used: usize,
}

// SAFETY: between two calls the lists are empty, so no pointer crosses threads.
unsafe impl Send for Batch {}

impl std::fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("messages", &self.shapes.len())
            .finish_non_exhaustive()
    }
}

/// What one call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// So many messages left.
    Messages(usize),
    /// The first message was refused.
    Refused(i32),
}

impl Batch {
    /// Room for `packets` packets.
    pub(super) fn new(packets: usize) -> Batch {
        Batch {
            parts: Vec::with_capacity(packets * PARTS),
            messages: Vec::with_capacity(packets),
            controls: Vec::with_capacity(packets),
            shapes: Vec::with_capacity(packets),
            copied: vec![0; packets * MEAN_COPIED + MOST_COPIED].into_boxed_slice(),
            used: 0,
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.messages.clear();
        self.controls.clear();
        self.shapes.clear();
        self.used = 0;
    }

    /// Whether one more packet in a new message fits.
    pub(super) fn has_room(&self) -> bool {
        self.shapes.len() < self.shapes.capacity()
            && self.parts.len() + PARTS <= self.parts.capacity()
            && self.used + MOST_COPIED <= self.copied.len()
    }

    /// Whether one more packet fits into the last message.
    pub(super) fn last_has_room(&self) -> bool {
        self.parts.len() + PARTS <= self.parts.capacity()
            && self.used + MOST_COPIED <= self.copied.len()
            && self
                .shapes
                .last()
                .is_some_and(|shape| shape.parts + PARTS <= MAX_VECTOR)
    }

    /// Begins a message.
    pub(super) fn begin(&mut self) {
        self.shapes.push(Shape {
            first_part: self.parts.len(),
            ..Shape::default()
        });
    }

    /// Adds a packet to the last message. `front` is copied, and so is a short `tail`; a longer one must
    /// stay where it is until `send` or `clear`. Both of `front` together are at most [`MOST_COPIED`] less
    /// [`SHORT_TAIL`] bytes long.
    pub(super) fn packet(&mut self, part: Part, front: [&[u8]; 2], tail: &[u8]) {
        let is_short = tail.len() <= SHORT_TAIL;
        let (short, lent): (&[u8], &[u8]) = if is_short { (tail, &[]) } else { (&[], tail) };
        let start = self.used;
        let [header, head] = front;
        for bytes in [header, head, short] {
            let end = self.used + bytes.len();
            // There is room: whoever adds a packet has asked for it.
            if let Some(room) = self.copied.get_mut(self.used..end) {
                room.copy_from_slice(bytes);
                self.used = end;
            }
        }
        let Some(shape) = self.shapes.last_mut() else {
            return;
        };
        let copied = self.copied.get(start..self.used).unwrap_or(&[]);
        // What was copied for the packet before ends where this begins: one part for both.
        let goes_on = match self.parts.last_mut() {
            Some(last) if shape.parts > 0 && shape.ends_copied => {
                last.iov_len += copied.len();
                true
            }
            _ => false,
        };
        let parts = [if goes_on { &[] } else { copied }, lent];
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            self.parts.push(libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            shape.parts += 1;
        }
        shape.ends_copied = lent.is_empty() && shape.parts > 0;
        shape.packets += 1;
        shape.extent.add(part);
        shape.bytes += (copied.len() + lent.len()) as u64;
    }

    /// The last message goes out in segments of `size` bytes.
    pub(super) fn segment_last(&mut self, size: u16) {
        if let Some(shape) = self.shapes.last_mut() {
            shape.segment = size;
        }
    }

    /// Packets of message `index`.
    pub(super) fn packets(&self, index: usize) -> u32 {
        self.shapes.get(index).map_or(0, |shape| shape.packets)
    }

    /// What message `index` holds of copies.
    pub(super) fn extent(&self, index: usize) -> Extent {
        self.shapes
            .get(index)
            .map_or_else(Extent::default, |shape| shape.extent)
    }

    /// Bytes of message `index`.
    pub(super) fn bytes(&self, index: usize) -> u64 {
        self.shapes.get(index).map_or(0, |shape| shape.bytes)
    }

    /// Number of messages.
    pub(super) fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Builds the headers of all messages; nothing may be added afterwards.
    pub(super) fn finish(&mut self) {
        let base = self.parts.as_mut_ptr();
        for shape in &self.shapes {
            let mut control = Control([0; CONTROL]);
            write_segment(&mut control, shape.segment);
            self.controls.push(control);
            // SAFETY: a C struct for which all zeros is "no name, no control".
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            // SAFETY: the shape's first part is at most the length of `parts`, which does not grow now.
            header.msg_hdr.msg_iov = unsafe { base.add(shape.first_part) };
            header.msg_hdr.msg_iovlen = shape.parts as _;
            self.messages.push(header);
        }
        for ((message, shape), control) in self
            .messages
            .iter_mut()
            .zip(&self.shapes)
            .zip(&mut self.controls)
        {
            if shape.segment != 0 {
                message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                message.msg_hdr.msg_controllen = CONTROL as _;
            }
        }
    }

    /// Sends messages from `first` on, in one call, without waiting.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, first: usize) -> Sent {
        let count = self.messages.len().saturating_sub(first).min(MAX_VECTOR);
        // SAFETY: `first` is at most the length of `messages`.
        let start = unsafe {
            self.messages
                .as_mut_ptr()
                .add(first.min(self.messages.len()))
        };
        // SAFETY: `count` headers from `start` on are initialised, and all they point to is borrowed
        // by the transmitter's call for longer than this one.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                start,
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => Sent::Messages(sent),
            Err(_) => Sent::Refused(
                std::io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO),
            ),
        }
    }
}

/// `struct cmsghdr { size_t len; int level; int type; }` and the size of a segment.
fn write_segment(control: &mut Control, size: u16) {
    const HEADER: usize = 16;
    let length = (HEADER + 2) as u64;
    control.0[..8].copy_from_slice(&length.to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    control.0[HEADER..HEADER + 2].copy_from_slice(&size.to_ne_bytes());
}

#[cfg(test)]
mod tests;
