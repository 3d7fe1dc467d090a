//! Memory for what is not in order: holes, retransmissions, SACK blocks and the counts of a direction.
//!
//! A direction gets a block when something first happens in it. Blocks come from a slab of fixed size,
//! and eight ranges of each kind are in a block; directions in real trouble borrow a larger area from a
//! second slab. When either is used up the flow goes on with less: with a scratch block whose contents
//! nobody keeps (the flow says so: degraded), or with its lowest holes merged. Nothing here grows.

use super::counts::Counts;

/// No block, no spill.
pub(super) const NONE: u32 = u32::MAX;
/// Ranges of each kind in a block.
const INLINE: usize = 8;
/// Ranges of each kind in a spill.
const SPILLED: usize = 64;
/// "Not yet" for a time.
pub(super) const NEVER: u64 = u64::MAX;

/// What is known of a hole besides its place.
pub(super) mod hole {
    /// `timestamp` is that of the opener.
    pub const TIMESTAMP: u8 = 1;
    /// `identification` is that of the opener.
    pub const IDENTIFICATION: u8 = 2;
    /// The receiver told that it misses these bytes.
    pub const MISSED: u8 = 4;
    /// An acknowledgment told of these bytes, not a segment behind them.
    pub const TAIL: u8 = 8;
}

/// A range that was not seen though something behind it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hole {
    pub start: u64,
    pub end: u64,
    /// When the segment that opened it came.
    pub opened_ns: u64,
    /// When all of it was acknowledged, or [`NEVER`].
    pub acknowledged_ns: u64,
    /// Of the segment that opened it.
    pub timestamp: u32,
    pub identification: u16,
    pub marks: u8,
}

impl Hole {
    const EMPTY: Self = Self {
        start: 0,
        end: 0,
        opened_ns: 0,
        acknowledged_ns: NEVER,
        timestamp: 0,
        identification: 0,
        marks: 0,
    };

    pub(super) const fn octets(&self) -> u64 {
        self.end - self.start
    }

    pub(super) const fn is(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    pub(super) const fn is_acknowledged(&self) -> bool {
        self.acknowledged_ns != NEVER
    }
}

/// What became of a retransmission so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Pending,
    Acknowledged,
    /// Counted as spurious; kept so that its D-SACK finds it.
    Spurious,
}

/// Bytes that were seen again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeat {
    pub start: u64,
    pub end: u64,
    pub seen_ns: u64,
    pub octets: u32,
    /// 0 where the rest of the packet decided how it counts.
    pub packets: u32,
    pub timestamp: u32,
    pub has_timestamp: bool,
    pub fate: Fate,
}

impl Repeat {
    const EMPTY: Self = Self {
        start: 0,
        end: 0,
        seen_ns: 0,
        octets: 0,
        packets: 0,
        timestamp: 0,
        has_timestamp: false,
        fate: Fate::Pending,
    };
}

/// Holes that were given up as single ranges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merged {
    pub start: u64,
    pub end: u64,
    /// Octets within it that were never seen.
    pub octets: u64,
    pub events: u64,
    pub acknowledged_ns: u64,
}

impl Merged {
    pub(super) const EMPTY: Self = Self {
        start: 0,
        end: 0,
        octets: 0,
        events: 0,
        acknowledged_ns: NEVER,
    };
}

/// A list in borrowed memory, in order of insertion.
pub(super) struct List<'a, T> {
    slots: &'a mut [T],
    length: &'a mut u8,
}

impl<T: Copy> List<'_, T> {
    pub(super) fn as_slice(&self) -> &[T] {
        &self.slots[..usize::from(*self.length)]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.slots[..usize::from(*self.length)]
    }

    pub(super) fn len(&self) -> usize {
        usize::from(*self.length)
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == self.slots.len()
    }

    /// Inserts before `at`; false if the list is full.
    pub(super) fn insert(&mut self, at: usize, item: T) -> bool {
        let length = self.len();
        if length == self.slots.len() || at > length {
            return false;
        }
        self.slots.copy_within(at..length, at + 1);
        self.slots[at] = item;
        *self.length += 1;
        true
    }

    pub(super) fn push(&mut self, item: T) -> bool {
        self.insert(self.len(), item)
    }

    pub(super) fn remove(&mut self, at: usize) -> T {
        let length = self.len();
        let item = self.slots[at];
        self.slots.copy_within(at + 1..length, at);
        *self.length -= 1;
        item
    }

    /// Keeps those for which `keep` says so; it may change them.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        let mut kept = 0;
        for at in 0..self.len() {
            let mut item = self.slots[at];
            if keep(&mut item) {
                self.slots[kept] = item;
                kept += 1;
            }
        }
        *self.length = kept as u8;
    }
}

/// What a block has besides its ranges.
#[derive(Clone, Copy)]
pub(super) struct Notes {
    pub counts: Counts,
    pub merged: Merged,
    sacked: [(u64, u64); 4],
    sacked_blocks: u8,
    /// Retransmissions of one full-size segment since the last progress.
    pub stuck: u8,
}

impl Notes {
    fn new() -> Self {
        Self {
            counts: Counts::default(),
            merged: Merged::EMPTY,
            sacked: [(0, 0); 4],
            sacked_blocks: 0,
            stuck: 0,
        }
    }

    /// Ranges of the last SACK option.
    pub(super) fn sacked(&self) -> &[(u64, u64)] {
        &self.sacked[..usize::from(self.sacked_blocks)]
    }

    pub(super) fn set_sacked(&mut self, blocks: &[(u64, u64)]) {
        let count = blocks.len().min(self.sacked.len());
        self.sacked[..count].copy_from_slice(&blocks[..count]);
        self.sacked_blocks = count as u8;
    }
}

#[derive(Clone, Copy)]
struct Block {
    notes: Notes,
    /// Holes and repeats, wherever they are.
    lengths: [u8; 2],
    spill: u32,
    holes: [Hole; INLINE],
    repeats: [Repeat; INLINE],
}

impl Block {
    fn new() -> Self {
        Self {
            notes: Notes::new(),
            lengths: [0; 2],
            spill: NONE,
            holes: [Hole::EMPTY; INLINE],
            repeats: [Repeat::EMPTY; INLINE],
        }
    }
}

#[derive(Clone, Copy)]
struct Spill {
    holes: [Hole; SPILLED],
    repeats: [Repeat; SPILLED],
}

/// A block, opened.
pub(super) struct View<'a> {
    pub holes: List<'a, Hole>,
    pub repeats: List<'a, Repeat>,
    pub notes: &'a mut Notes,
}

/// A pool of items that never moves nor grows.
struct Pool<T> {
    items: Vec<T>,
    free: Vec<u32>,
    capacity: usize,
}

impl<T: Copy> Pool<T> {
    fn new(capacity: usize) -> Self {
        Self {
            items: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            capacity,
        }
    }

    fn allocate(&mut self, fresh: impl FnOnce() -> T) -> Option<u32> {
        if let Some(at) = self.free.pop() {
            self.items[at as usize] = fresh();
            return Some(at);
        }
        if self.items.len() == self.capacity {
            return None;
        }
        self.items.push(fresh());
        u32::try_from(self.items.len() - 1).ok()
    }

    fn in_use(&self) -> usize {
        self.items.len() - self.free.len()
    }
}

/// All blocks of a tracker.
pub(super) struct Slab {
    blocks: Pool<Block>,
    spills: Pool<Spill>,
    scratch: Block,
}

/// Bytes of a block and of a spill, for who plans memory.
pub(super) const BLOCK_BYTES: usize = size_of::<Block>();
pub(super) const SPILL_BYTES: usize = size_of::<Spill>();

impl Slab {
    pub(super) fn new(blocks: usize, spills: usize) -> Self {
        Self {
            blocks: Pool::new(blocks),
            spills: Pool::new(spills),
            scratch: Block::new(),
        }
    }

    /// Blocks and spills in use.
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.blocks.in_use(), self.spills.in_use())
    }

    /// Whether who needs a block now gets none.
    pub(super) fn is_exhausted(&self) -> bool {
        self.blocks.in_use() == self.blocks.capacity
    }

    /// Opens the block that `handle` names, gets one if it names none. Without any left it is a scratch
    /// block, and `handle` stays [`NONE`].
    pub(super) fn open(&mut self, handle: &mut u32) -> View<'_> {
        if *handle == NONE {
            match self.blocks.allocate(Block::new) {
                Some(at) => *handle = at,
                None => {
                    self.scratch = Block::new();
                    return self.scratch.view(None);
                }
            }
        }
        self.view(*handle)
    }

    /// Opens a block that is there.
    pub(super) fn view(&mut self, handle: u32) -> View<'_> {
        let block = &mut self.blocks.items[handle as usize];
        let spill = self.spills.items.get_mut(block.spill as usize);
        block.view(spill)
    }

    /// Borrows a spill if `room` more holes or one more repeat would not fit, and gives it back when the
    /// ranges fit again. `handle` may be [`NONE`].
    #[inline]
    pub(super) fn fit(&mut self, handle: u32, room: usize) {
        let Some(block) = self.blocks.items.get_mut(handle as usize) else {
            return;
        };
        let [holes, repeats] = block.lengths.map(usize::from);
        if block.spill == NONE {
            if holes + room <= INLINE && repeats < INLINE {
                return;
            }
            let spill = self.spills.allocate(|| Spill {
                holes: [Hole::EMPTY; SPILLED],
                repeats: [Repeat::EMPTY; SPILLED],
            });
            if let Some(at) = spill {
                let spill = &mut self.spills.items[at as usize];
                spill.holes[..holes].copy_from_slice(&block.holes[..holes]);
                spill.repeats[..repeats].copy_from_slice(&block.repeats[..repeats]);
                block.spill = at;
            }
        } else if holes <= 1 && repeats <= 2 && room < INLINE - 1 {
            let at = std::mem::replace(&mut block.spill, NONE);
            let spill = &self.spills.items[at as usize];
            block.holes[..holes].copy_from_slice(&spill.holes[..holes]);
            block.repeats[..repeats].copy_from_slice(&spill.repeats[..repeats]);
            self.spills.free.push(at);
        }
    }

    /// Gives a block back, if there is one; its counts.
    pub(super) fn release(&mut self, handle: &mut u32) -> Counts {
        let at = std::mem::replace(handle, NONE);
        let Some(block) = self.blocks.items.get_mut(at as usize) else {
            return Counts::default();
        };
        if block.spill != NONE {
            self.spills
                .free
                .push(std::mem::replace(&mut block.spill, NONE));
        }
        self.blocks.free.push(at);
        block.notes.counts
    }
}

impl Block {
    fn view<'a>(&'a mut self, spill: Option<&'a mut Spill>) -> View<'a> {
        let (holes, repeats) = match spill {
            Some(spill) => (&mut spill.holes[..], &mut spill.repeats[..]),
            None => (&mut self.holes[..], &mut self.repeats[..]),
        };
        let [hole_count, repeat_count] = &mut self.lengths;
        View {
            holes: List {
                slots: holes,
                length: hole_count,
            },
            repeats: List {
                slots: repeats,
                length: repeat_count,
            },
            notes: &mut self.notes,
        }
    }
}
