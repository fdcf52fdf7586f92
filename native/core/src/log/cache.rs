//! Opened runs that were asked for lately: a bounded SIEVE.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::group::Opened;

/// The beginning of a segment's salt, and a place: when it is packed it gets another salt.
pub type At = (u64, u64);

struct Slot {
    at: At,
    run: Arc<CachedRun>,
    asked: bool,
}

pub struct CachedRun {
    pub opened: Opened,
    pub timestamp: u64,
    /// A bit for each record that was found to match its leaf.
    proven: Vec<AtomicU64>,
}

impl CachedRun {
    pub fn new(opened: Opened, timestamp: u64) -> Self {
        let proven = (0..opened.count().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { opened, timestamp, proven }
    }

    pub fn is_proven(&self, record: usize) -> bool {
        self.proven[record / 64].load(Ordering::Relaxed) >> (record % 64) & 1 == 1
    }

    pub fn prove(&self, record: usize) {
        self.proven[record / 64].fetch_or(1 << (record % 64), Ordering::Relaxed);
    }
}

/// The hand walks from the oldest; a run that was asked for since the hand last passed stays.
pub struct Cache {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    places: HashMap<At, usize>,
    hand: usize,
    bytes: usize,
    limit: usize,
}

impl Cache {
    pub fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), places: HashMap::new(), hand: 0, bytes: 0, limit }
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.limit);
    }

    /// Lets go of the runs of a stream.
    pub fn forget(&mut self, stream: u32) {
        for index in 0..self.slots.len() {
            if self.slots[index].as_ref().is_some_and(|slot| slot.run.opened.header.stream == stream) {
                self.take(index);
            }
        }
    }

    pub fn get(&mut self, at: At) -> Option<Arc<CachedRun>> {
        let slot = self.slots[*self.places.get(&at)?].as_mut()?;
        slot.asked = true;
        Some(slot.run.clone())
    }

    pub fn put(&mut self, at: At, run: Arc<CachedRun>) {
        let size = run.opened.size();
        if size > self.limit / 4 || self.places.contains_key(&at) {
            return;
        }
        while self.bytes + size > self.limit {
            self.evict();
        }
        let slot = Some(Slot { at, run, asked: false });
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.places.insert(at, index);
        self.bytes += size;
    }

    fn evict(&mut self) {
        loop {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            match &mut self.slots[self.hand] {
                None => {}
                Some(slot) if slot.asked => slot.asked = false,
                Some(_) => break,
            }
        }
        self.take(self.hand);
    }

    fn take(&mut self, index: usize) {
        let slot = self.slots[index].take().expect("a run is there");
        self.bytes -= slot.run.opened.size();
        self.places.remove(&slot.at);
        self.free.push(index);
    }
}
