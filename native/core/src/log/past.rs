//! Hashes of what was dropped: no segment gives them any more, so they are kept in a file of their own.

use std::sync::Arc;

use super::read::MOST_LEAVES;
use super::{Log, Source};
use crate::format::{Checked, HASHES_HEADER, Hash};
use crate::tree::{Tree, stored};

/// Goes over hashes in the order of their file: from the leaves follows all else.
pub struct Proving {
    tree: Tree,
}

impl Proving {
    /// Behind the hashes of so many leaves, whose tree has these peaks.
    pub fn new(size: u64, peaks: Vec<Hash>) -> Checked<Self> {
        Ok(Self { tree: Tree::from_peaks(size, peaks)? })
    }

    /// Takes the hashes that come with some leaves; the index of the first that is not what it must be is an error, and
    /// leaves it where it was.
    pub fn take(&mut self, hashes: &[Hash]) -> Result<(), u64> {
        let size = self.tree.size();
        let first = stored(size);
        let places = (size..).map(|leaf| (stored(leaf) - first) as usize).take_while(|&at| at < hashes.len());
        let leaves: Vec<Hash> = places.map(|at| hashes[at]).collect();
        let before = self.tree.peaks().to_vec();
        self.tree.push(&leaves);
        let (_, made) = self.tree.take_pending(usize::MAX);
        self.tree.flushed(first + made.len() as u64);
        let wrong = match made.iter().zip(hashes).position(|(made, found)| made != found) {
            None if made.len() == hashes.len() => return Ok(()),
            wrong => wrong.unwrap_or(hashes.len()) as u64,
        };
        self.tree = Tree::from_peaks(size, before).expect("they were its peaks");
        Err(first + wrong)
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }
}

impl Log {
    pub fn set_past(&self, source: Option<Arc<dyn Source>>) {
        *self.past.write().unwrap() = source;
    }

    /// What goes on behind so many leaves; None if their hashes are not there.
    pub fn proving(&self, size: u64) -> Option<Proving> {
        // Of what was dropped last they are known though the file cannot be read.
        let known = self.retained().filter(|said| said.position == size).map(|said| said.peaks.clone());
        Proving::new(size, known.or_else(|| self.peaks_at(size, MOST_LEAVES))?).ok()
    }

    /// As the file has it; it is believed in nothing.
    pub(super) fn past_hash(&self, index: u64) -> Option<Hash> {
        if index >= stored(self.first()) {
            return None;
        }
        let source = self.past.read().unwrap().clone()?;
        let hash: Hash = source.read(HASHES_HEADER as u64 + 32 * index, 32).ok()?.try_into().ok()?;
        // Where nothing was kept it has a hole.
        Some(hash).filter(|hash| *hash != [0; 32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_the_leaves_is_taken_and_nothing_else() {
        let mut tree = Tree::empty();
        let leaves: Vec<Hash> = (0..100u8).map(|i| [i + 1; 32]).collect();
        tree.push(&leaves);
        let (_, hashes) = tree.take_pending(usize::MAX);
        let at = |size: u64| stored(size) as usize;
        for begin in [0, 1, 6, 7, 64, 99] {
            let mut before = Tree::empty();
            before.push(&leaves[..begin as usize]);
            let proving = || Proving::new(begin, before.peaks().to_vec()).unwrap();
            let mut all = proving();
            for (from, to) in [(begin, begin.midpoint(100)), (begin.midpoint(100), 100)] {
                assert_eq!(all.take(&hashes[at(from)..at(to)]), Ok(()));
            }
            assert_eq!(all.tree().root(), tree.root());
            for wrong in at(begin)..at(100) {
                let mut changed = hashes.clone();
                changed[wrong][31] ^= 1;
                // A leaf is noticed by the node above it.
                assert!(proving().take(&changed[at(begin)..]).unwrap_err() as usize >= wrong);
            }
            assert!(proving().take(&hashes[at(begin)..at(100) - 1]).is_err());
            let mut after = proving();
            assert!(after.take(&vec![[7; 32]; at(100) - at(begin)]).is_err());
            assert_eq!(after.take(&hashes[at(begin)..at(100)]), Ok(()));
            assert_eq!(after.tree().root(), tree.root());
        }
    }
}
