//! Which closed segments have their index in memory: so many bytes of them, those that were asked for lately.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};

use super::segment::Index;
use super::{Log, Segment};

/// At most so many bytes together, unless one alone has more, in the order of their loading: one that was asked for since
/// it came to the front goes to the back.
pub struct Indexes {
    limit: usize,
    bytes: usize,
    loaded: VecDeque<(Weak<Segment>, usize)>,
}

impl Indexes {
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, loaded: VecDeque::new() }
    }

    fn put(&mut self, segment: &Arc<Segment>, size: usize) {
        let same = |other: &Weak<Segment>| other.as_ptr() == Arc::as_ptr(segment);
        match self.loaded.iter_mut().find(|(other, _)| same(other)) {
            Some((_, before)) => self.bytes -= std::mem::replace(before, size),
            None => self.loaded.push_back((Arc::downgrade(segment), size)),
        }
        self.bytes += size;
        while self.bytes > self.limit && self.loaded.len() > 1 {
            let (oldest, size) = self.loaded.pop_front().expect("there are several");
            match oldest.upgrade() {
                Some(segment) if segment.was_asked() => self.loaded.push_back((oldest, size)),
                gone => {
                    self.bytes -= size;
                    // Whoever looks into it has it until they are done.
                    gone.inspect(|segment| segment.unload());
                }
            }
        }
    }
}

impl Log {
    /// A segment's index, in memory.
    pub(super) fn index(&self, segment: &Arc<Segment>) -> io::Result<Arc<Index>> {
        let index = segment.index();
        if !index.is_loaded() {
            let size = index.lookup(segment)?.size();
            self.indexes.lock().unwrap().put(segment, size);
        }
        Ok(index)
    }
}
