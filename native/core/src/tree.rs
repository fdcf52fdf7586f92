//! The tree of RFC 6962 over leaf hashes, kept as the sequence that `docs/format.md` calls
//! *hashes*: each leaf, followed by every node it completes.

use std::collections::VecDeque;
use std::ops::Range;

use crate::format::{Checked, Hash, ensure};
use crate::sha256;

/// How many hashes are stored for a tree of so many leaves, below 2^63.
pub const fn stored(leaves: u64) -> u64 {
    2 * leaves - leaves.count_ones() as u64
}

/// Where the node over leaves `index << level .. (index + 1) << level` is stored.
pub const fn place(level: u32, index: u64) -> u64 {
    stored(((index + 1) << level) - 1) + level as u64
}

/// Level and index of the peaks of a tree of this size, largest first.
pub fn peak_nodes(size: u64) -> impl Iterator<Item = (u32, u64)> {
    let levels = (0..u64::BITS).rev().filter(move |level| size >> level & 1 == 1);
    levels.map(move |level| (level, (size >> level) - 1))
}

/// Where they are stored.
pub fn peak_places(size: u64) -> Vec<u64> {
    peak_nodes(size).map(|(level, index)| place(level, index)).collect()
}

/// The root over the peaks, largest first.
pub fn root_from_peaks(peaks: &[Hash]) -> Hash {
    let Some((&last, larger)) = peaks.split_last() else {
        return sha256::digest(&[]);
    };
    larger.iter().rev().fold(last, |right, &left| {
        let mut out = [[0; 32]];
        sha256::nodes(&[left, right], &mut out);
        out[0]
    })
}

/// Whether a tree of this size with these peaks is where `tree` came from: the smaller of its peaks lead, with hashes
/// that `node` finds by level and index, up to a peak of `tree`, and the larger ones are its own.
pub fn leads_to(
    size: u64,
    peaks: &[Hash],
    tree: (u64, &[Hash]),
    mut node: impl FnMut(u32, u64) -> Option<Hash>,
) -> bool {
    let same = u64::BITS - (size ^ tree.0).leading_zeros();
    // Bits above the first that differs: peaks that both have.
    let common = size.checked_shr(same).unwrap_or(0).count_ones() as usize;
    if size > tree.0 || peaks[..common] != tree.1[..common] {
        return false;
    }
    let mut rest = peaks[common..].to_vec();
    let Some(mut hash) = rest.pop() else { return true };
    let mut level = size.trailing_zeros();
    while level < same - 1 {
        let index = (size - 1) >> level;
        let pair = if index & 1 == 1 {
            [rest.pop().expect("a node on the right has a peak on its left"), hash]
        } else {
            let Some(right) = node(level, index + 1) else { return false };
            [hash, right]
        };
        hash = root_from_peaks(&pair);
        level += 1;
    }
    tree.1[common] == hash
}

/// Whether `tree` has this leaf at this index: it leads, with the nodes that `node` finds by level and index, up to a peak.
pub fn leaf_leads_to(
    index: u64,
    leaf: Hash,
    tree: (u64, &[Hash]),
    mut node: impl FnMut(u32, u64) -> Option<Hash>,
) -> bool {
    if index >= tree.0 {
        return false;
    }
    let top = top(index, tree.0);
    let mut hash = leaf;
    for level in 0..top {
        let at = index >> level;
        let Some(other) = node(level, at ^ 1) else { return false };
        hash = root_from_peaks(&if at & 1 == 1 { [other, hash] } else { [hash, other] });
    }
    let peak = tree.0.checked_shr(top + 1).unwrap_or(0).count_ones() as usize;
    tree.1[peak] == hash
}

/// The right hash of a node, where some of those that `get` finds by their place are wrong: from the peak above it down,
/// two halves are right if they make what is known. Those that do not are made again, if need be from the leaves that
/// `leaf_of` makes of their records, `most` of them.
pub fn descend(
    (level, index): (u32, u64),
    tree: (u64, &[Hash]),
    mut get: impl FnMut(u64) -> Option<Hash>,
    mut leaf_of: impl FnMut(u64) -> Option<Hash>,
    mut most: usize,
) -> Option<Hash> {
    let first = index << level;
    if first >= tree.0 {
        return None;
    }
    let top = top(first, tree.0);
    let peak = tree.0.checked_shr(top + 1).unwrap_or(0).count_ones() as usize;
    let mut known = (level <= top).then(|| tree.1[peak])?;
    for below in (level..top).rev() {
        let left = first >> below & !1;
        let mut found = [get(place(below, left)), get(place(below, left + 1))];
        for trust in [true, false] {
            if makes(found, known) {
                break;
            }
            found = [left, left + 1].map(|at| made_again(below, at, trust, &mut get, &mut leaf_of, &mut most));
        }
        known = makes(found, known).then_some(found[(first >> below & 1) as usize])??;
    }
    Some(known)
}

/// The level of the peak above a leaf: that of the first bit in which its index differs from the size.
fn top(leaf: u64, size: u64) -> u32 {
    u64::BITS - 1 - (leaf ^ size).leading_zeros()
}

fn makes(halves: [Option<Hash>; 2], known: Hash) -> bool {
    matches!(halves, [Some(left), Some(right)] if root_from_peaks(&[left, right]) == known)
}

/// A node from those below it, unless it is to be trusted where it is made of the two that are found below it.
fn made_again(
    level: u32,
    index: u64,
    trust: bool,
    get: &mut impl FnMut(u64) -> Option<Hash>,
    leaf_of: &mut impl FnMut(u64) -> Option<Hash>,
    most: &mut usize,
) -> Option<Hash> {
    if level == 0 {
        *most = most.checked_sub(1)?;
        return leaf_of(index).or_else(|| get(place(level, index)));
    }
    if trust
        && let Some(found) = get(place(level, index))
        && makes([get(place(level - 1, 2 * index)), get(place(level - 1, 2 * index + 1))], found)
    {
        return Some(found);
    }
    let left = made_again(level - 1, 2 * index, trust, get, leaf_of, most)?;
    let right = made_again(level - 1, 2 * index + 1, trust, get, leaf_of, most)?;
    Some(root_from_peaks(&[left, right]))
}

/// `peaks` are the roots of the perfect subtrees, one for each bit set in `size`, largest first.
/// Of the stored sequence, `pending` is what may not be in the file yet: it starts at index
/// `first_unflushed` and ends with the last hash there is; what is before `taken` was handed out
/// for writing and can be read here until it is confirmed.
pub struct Tree {
    size: u64,
    peaks: Vec<Hash>,
    first_unflushed: u64,
    taken: u64,
    pending: VecDeque<Hash>,
}

impl Tree {
    pub fn empty() -> Self {
        Self { size: 0, peaks: Vec::new(), first_unflushed: 0, taken: 0, pending: VecDeque::new() }
    }

    /// A tree whose stored hashes are all in the file.
    pub fn from_peaks(size: u64, peaks: Vec<Hash>) -> Checked<Self> {
        ensure(size < 1 << 63, "a tree is too large")?;
        ensure(peaks.len() == size.count_ones() as usize, "a tree's size and peaks disagree")?;
        let end = stored(size);
        Ok(Self { size, peaks, first_unflushed: end, taken: end, pending: VecDeque::new() })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    pub fn root(&self) -> Hash {
        root_from_peaks(&self.peaks)
    }

    /// Adds leaves. Each level is hashed in one call, so that its nodes are done side by side.
    pub fn push(&mut self, leaves: &[Hash]) {
        if leaves.is_empty() {
            return;
        }
        let (old, new) = (self.size, self.size + leaves.len() as u64);
        let added = stored(new) - stored(old);
        self.pending.resize(self.pending.len() + added as usize, [0; 32]);
        let mut row = Vec::with_capacity(leaves.len() + 1);
        row.extend(self.peak_at(0));
        row.extend_from_slice(leaves);
        let mut fresh = Vec::new();
        let mut level = 0;
        while new >> level > old >> level {
            let begun = row.len() - ((new >> level) - (old >> level)) as usize;
            self.keep(level, old >> level, &row[begun..]);
            let pairs = row.len() / 2;
            if row.len() % 2 == 1 {
                fresh.push(row[2 * pairs]);
            }
            level += 1;
            let mut above = Vec::with_capacity(pairs + 1);
            if new >> level > old >> level {
                above.extend(self.peak_at(level));
            }
            let begun = above.len();
            above.resize(begun + pairs, [0; 32]);
            sha256::nodes(&row[..2 * pairs], &mut above[begun..]);
            row = above;
        }
        self.peaks.extend(fresh.into_iter().rev());
        self.size = new;
    }

    /// Takes the old peak of this level, if there is one; all lower ones have been taken.
    fn peak_at(&mut self, level: u32) -> Option<Hash> {
        if self.size >> level & 1 == 1 { self.peaks.pop() } else { None }
    }

    /// Puts nodes of a level, from `first` on, where they belong in the sequence.
    fn keep(&mut self, level: u32, first: u64, nodes: &[Hash]) {
        for (index, node) in (first..).zip(nodes) {
            self.pending[(place(level, index) - self.first_unflushed) as usize] = *node;
        }
    }

    /// What was taken and is not flushed was not written after all.
    pub fn untake(&mut self) {
        self.taken = self.first_unflushed;
    }

    /// Hashes that nobody has taken for writing, `most` of them, and the index of the first.
    pub fn take_pending(&mut self, most: usize) -> (u64, Vec<Hash>) {
        let first = self.taken;
        let from = (first - self.first_unflushed) as usize;
        let hashes: Vec<Hash> =
            self.pending.range(from..self.pending.len().min(from.saturating_add(most))).copied().collect();
        self.taken += hashes.len() as u64;
        (first, hashes)
    }

    /// A hash that may not be in the file yet.
    pub fn pending_get(&self, index: u64) -> Option<&Hash> {
        self.pending.get(index.checked_sub(self.first_unflushed)? as usize)
    }

    /// The indices that `pending_get` has.
    pub fn pending(&self) -> Range<u64> {
        self.first_unflushed..self.first_unflushed + self.pending.len() as u64
    }

    /// Every taken hash below this index can be read from the file.
    pub fn flushed(&mut self, upto: u64) {
        let upto = upto.clamp(self.first_unflushed, self.taken);
        self.pending.drain(..(upto - self.first_unflushed) as usize);
        self.first_unflushed = upto;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(n: u64) -> Hash {
        let mut out = [0; 32];
        out[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        out
    }

    fn node(left: &Hash, right: &Hash) -> Hash {
        use sha2::{Digest, Sha256};
        Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
    }

    /// MTH of RFC 6962, section 2.1, over leaf hashes.
    fn slow_root(leaves: &[Hash]) -> Hash {
        use sha2::{Digest, Sha256};
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node(&slow_root(left), &slow_root(right))
            }
        }
    }

    fn slow_sequence(leaves: &[Hash]) -> Vec<Hash> {
        let mut out = Vec::new();
        for n in 0..leaves.len() {
            for level in 0..=(n + 1).trailing_zeros() {
                out.push(slow_root(&leaves[n + 1 - (1 << level)..=n]));
            }
        }
        out
    }

    #[test]
    fn the_empty_root_is_the_hash_of_nothing() {
        let text: String = Tree::empty().root().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn pushes_of_any_length_store_what_the_slow_model_stores() {
        let leaves: Vec<Hash> = (0..300).map(leaf).collect();
        let sequence = slow_sequence(&leaves);
        assert_eq!(stored(300), sequence.len() as u64);
        for first in 0..70 {
            for step in [1, 2, 3, 7, 16, 65, 300] {
                let (mut tree, mut file) = (Tree::empty(), Vec::new());
                tree.push(&leaves[..first]);
                for part in leaves[first..].chunks(step) {
                    tree.push(part);
                    if tree.size() % 3 == 0 {
                        let (at, hashes) = tree.take_pending(usize::MAX);
                        assert_eq!(at, file.len() as u64);
                        file.extend(hashes);
                        tree.flushed(file.len() as u64);
                        tree.push(&[]);
                    }
                }
                let (at, hashes) = tree.take_pending(usize::MAX);
                assert_eq!(at, file.len() as u64);
                file.extend(hashes);
                assert!(file == sequence, "first {first}, step {step}");
            }
        }
    }

    #[test]
    fn roots_of_all_sizes_agree_however_they_are_found() {
        let leaves: Vec<Hash> = (0..260).map(leaf).collect();
        let mut tree = Tree::empty();
        for size in 0..=leaves.len() {
            let root = slow_root(&leaves[..size]);
            assert_eq!(tree.root(), root, "size {size}");
            let places = peak_places(size as u64);
            let peaks: Vec<Hash> = places.iter().map(|&at| *tree.pending_get(at).unwrap()).collect();
            assert_eq!(peaks, tree.peaks());
            assert_eq!(root_from_peaks(&peaks), root);
            let mut again = Tree::from_peaks(size as u64, peaks).unwrap();
            again.push(&leaves[size..]);
            assert_eq!(again.root(), slow_root(&leaves), "from size {size}");
            if size < leaves.len() {
                tree.push(&leaves[size..=size]);
            }
        }
    }

    #[test]
    fn a_smaller_tree_leads_to_a_larger_one_unless_a_hash_is_wrong() {
        let leaves: Vec<Hash> = (0..70).map(leaf).collect();
        for larger in 0..=leaves.len() as u64 {
            let mut tree = Tree::empty();
            tree.push(&leaves[..larger as usize]);
            let node = |level, at| tree.pending_get(place(level, at)).copied();
            for smaller in 0..=larger {
                let peaks: Vec<Hash> = peak_places(smaller).iter().map(|&at| *tree.pending_get(at).unwrap()).collect();
                let leads = |peaks: &[Hash]| leads_to(smaller, peaks, (larger, tree.peaks()), node);
                assert!(leads(&peaks), "{smaller} of {larger}");
                for at in 0..peaks.len() {
                    let mut wrong = peaks.clone();
                    wrong[at][9] ^= 1;
                    assert!(!leads(&wrong), "{smaller} of {larger}, peak {at}");
                }
            }
            assert!(!leads_to(larger + 1, &[leaf(1); 7], (larger, tree.peaks()), node));
        }
    }

    #[test]
    fn every_node_is_found_from_its_peak_down_whatever_the_file_says() {
        for size in [1, 2, 7, 8, 13, 64, 70] {
            let leaves: Vec<Hash> = (0..size).map(leaf).collect();
            let (mut tree, mut fork) = (Tree::empty(), Tree::empty());
            tree.push(&leaves);
            fork.push(&(0..size).map(|i| leaf(i + 1000)).collect::<Vec<_>>());
            let of = |tree: &Tree, at| tree.pending_get(at).copied();
            let leaf_of = |at| Some(leaf(at));
            for wrong in 0..stored(size) {
                // One hash that fits nothing, some of a fork, which fit each other, and none at all.
                let one = |at| if at == wrong { Some([7; 32]) } else { of(&tree, at) };
                let some = |at| of(if wrong <= at && at < wrong + 20 { &fork } else { &tree }, at);
                let none = |at| if at < wrong { of(&tree, at) } else { None };
                for level in 0..=size.ilog2() {
                    for index in 0..size >> level {
                        let right = of(&tree, place(level, index));
                        let find = |get: &dyn Fn(u64) -> Option<Hash>| {
                            descend((level, index), (size, tree.peaks()), get, leaf_of, 1 << 10)
                        };
                        assert_eq!(
                            [find(&one), find(&some), find(&none)],
                            [right; 3],
                            "{size} {wrong} {level} {index}"
                        );
                    }
                }
            }
            assert_eq!(descend((0, size), (size, tree.peaks()), |at| of(&tree, at), leaf_of, 1 << 10), None);
        }
        let mut tree = Tree::empty();
        tree.push(&(0..64).map(leaf).collect::<Vec<_>>());
        let find = |most| descend((0, 5), (64, tree.peaks()), |_| None, |at| Some(leaf(at)), most);
        assert_eq!(find(20), None);
        assert_eq!(find(1000), Some(leaf(5)));
    }

    #[test]
    fn every_leaf_leads_to_its_peak_and_no_other_does() {
        for size in 1..70u64 {
            let leaves: Vec<Hash> = (0..size).map(leaf).collect();
            let mut tree = Tree::empty();
            tree.push(&leaves);
            let node = |level, at| tree.pending_get(place(level, at)).copied();
            for index in 0..size {
                let leads = |index, hash| leaf_leads_to(index, hash, (size, tree.peaks()), node);
                assert!(leads(index, leaf(index)));
                assert!(!leads(index, leaf(index + 1)));
            }
            assert!(!leaf_leads_to(size, leaf(size), (size, tree.peaks()), node));
        }
    }

    #[test]
    fn a_taken_hash_can_be_read_until_it_is_flushed() {
        let mut tree = Tree::empty();
        tree.push(&[leaf(0), leaf(1)]);
        assert_eq!(tree.take_pending(usize::MAX).1.len(), 3);
        tree.push(&[leaf(2)]);
        tree.flushed(u64::MAX);
        assert_eq!(tree.pending(), 3..4, "what was never taken stays");
        assert_eq!((tree.pending_get(2), tree.pending_get(3)), (None, Some(&leaf(2))));
        assert_eq!(tree.take_pending(usize::MAX), (3, vec![leaf(2)]));
        tree.untake();
        assert_eq!(tree.take_pending(usize::MAX), (3, vec![leaf(2)]));
        assert_eq!(tree.pending_get(3), Some(&leaf(2)));
        tree.flushed(4);
        assert_eq!(tree.pending(), 4..4);
    }

    #[test]
    fn peaks_that_cannot_be_of_that_size_are_refused() {
        assert!(Tree::from_peaks(3, vec![leaf(0)]).is_err());
        assert!(Tree::from_peaks(u64::MAX, vec![leaf(0); 64]).is_err());
        assert!(Tree::from_peaks(0, vec![]).is_ok());
    }
}
