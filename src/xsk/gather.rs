//! Packets larger than a frame (multi-buffer, kernel 6.6): the kernel hands them over in several frames,
//! and here they are put together in one piece of memory, because everybody behind wants to read one.
//!
//! The memory is made when a port is opened and comes back when the packet is done with; the loop neither
//! allocates nor frees. Used by `port` and, for their bytes, by `frame`.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

/// `MAX_SKB_FRAGS` (17) pages and the first: the largest packet that the kernel builds.
const LARGEST: usize = 18 * 4096;
/// Packets under way at a time, those in other workers' hands among them. Pages that are never written
/// take no memory.
const PACKETS: usize = 512;

type Store = ArrayQueue<Box<[u8]>>;

/// A packet put together.
#[derive(Debug)]
pub(super) struct Gathered {
    /// `None` only while it is dropped.
    memory: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    home: Arc<Store>,
}

impl Gathered {
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        let memory = self.memory.as_deref().unwrap_or(&[]);
        memory.get(self.start..self.end).unwrap_or(&[])
    }

    #[inline]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = self.memory.as_deref_mut().unwrap_or(&mut []);
        memory.get_mut(self.start..self.end).unwrap_or(&mut [])
    }

    pub(super) fn trim_front(&mut self, bytes: usize) {
        self.start = self.end.min(self.start + bytes);
    }

    pub(super) fn truncate(&mut self, length: usize) {
        self.end = self.end.min(self.start + length);
    }

    /// Appends; false, with nothing written, where it does not fit.
    fn append(&mut self, bytes: &[u8]) -> bool {
        let end = self.end + bytes.len();
        let memory = self.memory.as_deref_mut().unwrap_or(&mut []);
        let Some(free) = memory.get_mut(self.end..end) else {
            return false;
        };
        free.copy_from_slice(bytes);
        self.end = end;
        true
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            // There is room: the queue was made for all.
            drop(self.home.push(memory));
        }
    }
}

/// What became of a part.
#[derive(Debug)]
pub(super) enum Part {
    /// More parts are to come.
    Taken,
    /// It was the last: here is the packet.
    Last(Gathered),
    /// It was the last of a packet for which there was no memory.
    Lost,
}

/// Puts the packets of one port together.
#[derive(Debug)]
pub(super) struct Gatherer {
    store: Arc<Store>,
    open: Option<Gathered>,
    losing: bool,
}

impl Gatherer {
    /// With memory of its own, unless the port gets no such packets.
    pub(super) fn new(wanted: bool) -> Gatherer {
        let count = if wanted { PACKETS } else { 0 };
        let store = Store::new(count.max(1));
        for _ in 0..count {
            drop(store.push(vec![0; LARGEST].into_boxed_slice()));
        }
        Gatherer {
            store: Arc::new(store),
            open: None,
            losing: false,
        }
    }

    /// Whether a packet has begun and not ended.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some() || self.losing
    }

    /// Takes the next part of a packet.
    pub(super) fn add(&mut self, bytes: &[u8], is_last: bool) -> Part {
        if !self.is_open() {
            self.open = self.store.pop().map(|memory| Gathered {
                memory: Some(memory),
                start: 0,
                end: 0,
                home: self.store.clone(),
            });
        }
        let taken = self.open.as_mut().is_some_and(|open| open.append(bytes));
        if !taken {
            self.open = None;
            self.losing = true;
        }
        if !is_last {
            return Part::Taken;
        }
        self.losing = false;
        match self.open.take() {
            Some(gathered) => Part::Last(gathered),
            None => Part::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(part: Part) -> Gathered {
        match part {
            Part::Last(gathered) => gathered,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_become_one_packet_and_its_memory_comes_back() {
        let mut gatherer = Gatherer::new(true);
        let mut held = Vec::new();
        for round in 0..2 {
            for number in 0..PACKETS {
                let byte = (number * 2 + round) as u8;
                assert!(matches!(gatherer.add(&[byte; 3000], false), Part::Taken));
                assert!(gatherer.is_open());
                assert!(matches!(
                    gatherer.add(&[byte ^ 1; 3000], false),
                    Part::Taken
                ));
                let mut gathered = last(gatherer.add(&[9; 10], true));
                assert!(!gatherer.is_open());
                let wanted = [vec![byte; 3000], vec![byte ^ 1; 3000], vec![9; 10]].concat();
                assert_eq!(gathered.bytes(), wanted);
                gathered.trim_front(42);
                gathered.truncate(100);
                assert_eq!(gathered.bytes_mut(), &wanted[42..142]);
                held.push(gathered);
            }
            // All memory is in use: a packet more is lost, whole, and the next one after it too.
            for _ in 0..2 {
                assert!(matches!(gatherer.add(&[1; 10], false), Part::Taken));
                assert!(matches!(gatherer.add(&[2; 10], true), Part::Lost));
            }
            held.clear();
        }
    }

    #[test]
    fn what_is_too_large_is_lost_and_the_next_is_not() {
        let mut gatherer = Gatherer::new(true);
        for _ in 0..40 {
            assert!(matches!(gatherer.add(&[1; 4096], false), Part::Taken));
        }
        assert!(matches!(gatherer.add(&[1; 1], true), Part::Lost));
        assert_eq!(last(gatherer.add(&[5; 7], true)).bytes(), [5; 7]);
        let mut none = Gatherer::new(false);
        assert!(matches!(none.add(&[1], true), Part::Lost));
    }
}
