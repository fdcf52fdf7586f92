//! A vector of rows that one thread appends to while others read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const FIRST: usize = 1024;
/// Enough for 2^32 rows.
const CHUNKS: usize = 23;

/// Chunks, each twice as long as the one before, never move; their zeroed pages are not touched
/// before they are used, so growing costs no pause. Rows below `length` never change; it is
/// published after them, so a reader that sees it sees them. One thread at a time appends.
pub struct Column<const N: usize> {
    chunks: [OnceLock<Box<[[AtomicU64; N]]>>; CHUNKS],
    length: AtomicUsize,
}

/// Which chunk, and where in it.
fn locate(index: usize) -> (usize, usize) {
    let shifted = index + FIRST;
    let chunk = (shifted.ilog2() - FIRST.ilog2()) as usize;
    (chunk, shifted - (FIRST << chunk))
}

fn new_chunk<const N: usize>(length: usize) -> Box<[[AtomicU64; N]]> {
    // SAFETY: an atomic integer may be all zeros.
    unsafe { Box::new_zeroed_slice(length).assume_init() }
}

impl<const N: usize> Default for Column<N> {
    fn default() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], length: AtomicUsize::new(0) }
    }
}

impl<const N: usize> Column<N> {
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all chunks that there are.
    pub fn size(&self) -> usize {
        self.chunks.iter().filter_map(OnceLock::get).map(|chunk| size_of_val(&**chunk)).sum()
    }

    pub fn get(&self, index: usize) -> Option<[u64; N]> {
        if index >= self.len() {
            return None;
        }
        let (chunk, at) = locate(index);
        let row = &self.chunks[chunk].get()?[at];
        Some(std::array::from_fn(|word| row[word].load(Ordering::Relaxed)))
    }

    /// Appends all of them, and publishes them together.
    pub(super) fn extend(&self, rows: impl IntoIterator<Item = [u64; N]>) {
        let mut length = self.length.load(Ordering::Relaxed);
        for row in rows {
            let (chunk, at) = locate(length);
            let cells = &self.chunks[chunk].get_or_init(|| new_chunk(FIRST << chunk))[at];
            cells.iter().zip(row).for_each(|(cell, word)| cell.store(word, Ordering::Relaxed));
            length += 1;
        }
        self.length.store(length, Ordering::Release);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = [u64; N]> {
        (0..self.len()).map_while(|index| self.get(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_where_they_were_put_across_chunks() {
        let column = Column::<2>::default();
        assert!(column.is_empty() && column.get(0).is_none());
        for part in (0..20_000u64).collect::<Vec<_>>().chunks(777) {
            column.extend(part.iter().map(|n| [*n, n * n]));
        }
        assert_eq!(column.len(), 20_000);
        assert!(column.iter().eq((0..20_000).map(|n| [n, n * n])));
        assert_eq!(column.get(20_000), None);
    }

    #[test]
    fn chunks_meet_without_gap_or_overlap_up_to_the_last_row_of_32_bits() {
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
    fn readers_see_only_whole_rows_while_another_thread_appends() {
        let column = Column::<2>::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..50_000u64 {
                    column.extend([[n, n.wrapping_mul(0x9e37_79b1) | 1]; 3]);
                }
            });
            let mut seen = 0;
            while seen < 150_000 {
                seen = column.len();
                assert_eq!(seen % 3, 0, "three are published together");
                for index in seen.saturating_sub(50)..seen {
                    let n = index as u64 / 3;
                    assert_eq!(column.get(index), Some([n, n.wrapping_mul(0x9e37_79b1) | 1]));
                }
            }
        });
    }
}
