//! A vector that one thread appends to while others read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

const FIRST: usize = 1024;
/// Enough for 2^32 entries.
const CHUNKS: usize = 23;

/// What a column holds: integers that have an atomic of their size.
pub trait Entry: Copy {
    type Cell;
    fn chunk(length: usize) -> Box<[Self::Cell]>;
    fn load(cell: &Self::Cell) -> Self;
    fn store(self, cell: &Self::Cell);
}

impl Entry for u32 {
    type Cell = AtomicU32;

    fn chunk(length: usize) -> Box<[AtomicU32]> {
        // SAFETY: an atomic integer may be all zeros.
        unsafe { Box::new_zeroed_slice(length).assume_init() }
    }

    fn load(cell: &AtomicU32) -> Self {
        cell.load(Ordering::Relaxed)
    }

    fn store(self, cell: &AtomicU32) {
        cell.store(self, Ordering::Relaxed);
    }
}

impl<const N: usize> Entry for [u64; N] {
    type Cell = [AtomicU64; N];

    fn chunk(length: usize) -> Box<[Self::Cell]> {
        // SAFETY: an atomic integer may be all zeros.
        unsafe { Box::new_zeroed_slice(length).assume_init() }
    }

    fn load(cell: &Self::Cell) -> Self {
        std::array::from_fn(|at| cell[at].load(Ordering::Relaxed))
    }

    fn store(self, cell: &Self::Cell) {
        cell.iter().zip(self).for_each(|(cell, word)| cell.store(word, Ordering::Relaxed));
    }
}

/// Chunks, each twice as long as the one before, never move; their zeroed pages are not touched
/// before they are used, so growing costs no pause. Entries below `length` never change;
/// it is published after them, so a reader that sees it sees them. One thread at a time appends.
pub struct Column<T: Entry> {
    chunks: [OnceLock<Box<[T::Cell]>>; CHUNKS],
    length: AtomicUsize,
}

/// Which chunk, and where in it.
fn locate(index: usize) -> (usize, usize) {
    let shifted = index + FIRST;
    let chunk = (shifted.ilog2() - FIRST.ilog2()) as usize;
    (chunk, shifted - (FIRST << chunk))
}

impl<T: Entry> Default for Column<T> {
    fn default() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], length: AtomicUsize::new(0) }
    }
}

impl<T: Entry> Column<T> {
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        let (chunk, at) = locate(index);
        Some(T::load(&self.chunks[chunk].get()?[at]))
    }

    /// Appends all of them, and publishes them together.
    pub(super) fn extend(&self, values: impl IntoIterator<Item = T>) {
        let mut length = self.length.load(Ordering::Relaxed);
        for value in values {
            let (chunk, at) = locate(length);
            value.store(&self.chunks[chunk].get_or_init(|| T::chunk(FIRST << chunk))[at]);
            length += 1;
        }
        self.length.store(length, Ordering::Release);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> {
        (0..self.len()).map_while(|index| self.get(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_where_they_were_put_across_chunks() {
        let column = Column::<[u64; 2]>::default();
        assert!(column.is_empty() && column.get(0).is_none());
        for part in (0..20_000u64).collect::<Vec<_>>().chunks(777) {
            column.extend(part.iter().map(|n| [*n, n * n]));
        }
        assert_eq!(column.len(), 20_000);
        assert!(column.iter().eq((0..20_000).map(|n| [n, n * n])));
        assert_eq!(column.get(20_000), None);
    }

    #[test]
    fn chunks_meet_without_gap_or_overlap_up_to_the_last_entry_of_32_bits() {
        let mut expected = (0, 0);
        for index in 0..100_000 {
            assert_eq!(locate(index), expected);
            expected.1 += 1;
            if expected.1 == FIRST << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert!(locate(u32::MAX as usize).0 < CHUNKS);
    }

    #[test]
    fn readers_see_only_whole_entries_while_another_thread_appends() {
        let column = Column::<u32>::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..50_000u32 {
                    column.extend([n.wrapping_mul(0x9e37_79b1) | 1; 3]);
                }
            });
            let mut seen = 0;
            while seen < 150_000 {
                seen = column.len();
                assert_eq!(seen % 3, 0, "three are published together");
                for index in seen.saturating_sub(50)..seen {
                    let value = (index as u32 / 3).wrapping_mul(0x9e37_79b1) | 1;
                    assert_eq!(column.get(index), Some(value));
                }
            }
        });
    }
}
