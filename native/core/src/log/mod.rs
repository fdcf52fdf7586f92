//! Everything that follows from the log so far: who its streams are, where its runs are, its tree, and its end.

mod append;
mod batches;
mod cache;
mod erased;
mod files;
mod find;
mod indexes;
mod pack;
mod past;
mod read;
mod replay;
mod reread;
mod retained;
mod retention;
mod scrub;
mod segment;
mod snapshot;
mod streams;
#[cfg(test)]
mod tests;
mod walk;

pub use append::{Admission, EndingKey, Part, Receipt, Refused};
pub use erased::{Erasure, Said};
pub use files::{Files, Open};
pub use find::Hidden;
pub use pack::Packing;
pub use past::Proving;
pub use read::{FEW_LEAVES, Failure, Found, MOST_LEAVES, Span, Window};
pub use replay::{Replayed, Stop};
pub use retained::{Collector, Dropped, Left, Retained};
pub use retention::Search;
pub use scrub::Scrub;
pub use segment::{
    Descriptor, Index, Segment, Source, UNREADABLE, Unindexed, checked, closes, derived_mac, is_unreadable,
};
pub use snapshot::Resume;
pub use streams::{Info, Skipped, Streams};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::format::Hash;
use crate::group::{Database, Placed, Sealer};
use crate::keys::{Entropy, Key, domain};
use crate::producers::{Limits, Producers};
use crate::tree::Tree;

/// The file of producers is made anew when it is so many times as long as what is remembered, or as this many bytes.
const SLACK: usize = 4;
const SHORT: usize = 256 * 1024;

/// Locks are taken in the order of the fields, and never held while a file is read.
pub struct Log {
    pub database: Database,
    pub keys: Secrets,
    /// Whether randomness comes from a seed, and so must be drawn in the order in which groups are sealed.
    pub seeded: bool,
    tail: Mutex<Tail>,
    producers: Mutex<Producers>,
    /// The MAC of the last piece in the file of producers.
    last_piece: Mutex<Hash>,
    pub streams: RwLock<Streams>,
    tree: RwLock<Tree>,
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    /// How often a segment of these became another file.
    renewed: AtomicU64,
    hashes: RwLock<Option<Arc<dyn Source>>>,
    /// Of what was dropped.
    past: RwLock<Option<Arc<dyn Source>>>,
    /// Whether something in the file of hashes was found wrong.
    pub doubted: AtomicBool,
    indexes: Mutex<indexes::Indexes>,
    cache: Mutex<cache::Cache>,
    collector: Mutex<Collector>,
    retained: RwLock<Option<Arc<Retained>>>,
    /// Positions below this were dropped.
    first: AtomicU64,
    /// Positions below this are durable, and nothing else is visible.
    durable: AtomicU64,
    /// The durable group, its chain and its time.
    end: Mutex<End>,
}

/// Keys of the database that are not a stream's.
pub struct Secrets {
    /// MACs receipts and derived files.
    pub receipt: Key,
    /// Producers of appends to several streams.
    pub several: Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub group: u64,
    pub chain: Hash,
    pub timestamp: u64,
    pub incarnation: u32,
}

struct Tail {
    sealer: Sealer,
    forming: Vec<Placed>,
    /// Of these, each stream that a gap moves, and where it goes on.
    gaps: Vec<(u32, u64)>,
    /// Position after what is forming.
    position: u64,
    /// Place of the last group in the active segment, 0 while it has none; and the last group's chain.
    last_place: u64,
    last_chain: Hash,
}

impl Log {
    pub fn new(database: Database, secrets: Secrets, level: Option<i32>, cache: usize, entropy: Entropy) -> Self {
        let (chain, seeded) = (database.identity, entropy.is_seeded());
        let sealer = Sealer { group: 1, position: 0, chain, timestamp: 0, incarnation: 0, level, entropy };
        Self {
            tail: Mutex::new(Tail {
                sealer,
                forming: vec![],
                gaps: vec![],
                position: 0,
                last_place: 0,
                last_chain: chain,
            }),
            producers: Mutex::new(Producers::new()),
            last_piece: Mutex::new(NO_PIECE),
            streams: RwLock::new(Streams::new(database.identity)),
            tree: RwLock::new(Tree::empty()),
            segments: RwLock::default(),
            renewed: AtomicU64::new(0),
            hashes: RwLock::default(),
            past: RwLock::default(),
            indexes: Mutex::new(indexes::Indexes::new(cache)),
            cache: Mutex::new(cache::Cache::new(cache)),
            doubted: AtomicBool::new(false),
            collector: Mutex::default(),
            retained: RwLock::default(),
            first: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            end: Mutex::new(End { group: 0, chain, timestamp: 0, incarnation: 0 }),
            keys: secrets,
            seeded,
            database,
        }
    }

    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub fn end(&self) -> End {
        *self.end.lock().unwrap()
    }

    /// What is sealed: the next group, the next position and the chain.
    pub fn sealed(&self) -> (u64, u64, Hash) {
        let tail = self.tail.lock().unwrap();
        (tail.sealer.group, tail.sealer.position, tail.sealer.chain)
    }

    /// Lets go of every file. Nothing is read after this.
    pub fn close(&self) {
        self.segments.write().unwrap().clear();
        *self.hashes.write().unwrap() = None;
        *self.past.write().unwrap() = None;
        self.cache.lock().unwrap().clear();
    }

    pub fn attach(&self, segment: Arc<Segment>) {
        self.segments.write().unwrap().insert(segment.header.number, segment);
    }

    pub fn set_hashes(&self, source: Option<Arc<dyn Source>>) {
        *self.hashes.write().unwrap() = source;
    }

    /// Size and root of the tree over everything whose leaves are made.
    pub fn root(&self) -> (u64, Hash) {
        let tree = self.tree.read().unwrap();
        (tree.size(), tree.root())
    }

    /// Hashes that nobody has taken for the file yet, or that are not in it, so many at most: the index of the first, and
    /// they.
    pub fn take_hashes(&self, most: usize, again: bool) -> (u64, Vec<Hash>) {
        let mut tree = self.tree.write().unwrap();
        if again {
            tree.untake();
        }
        tree.take_pending(most)
    }

    /// Entries for the file of producers, of groups up to this one: those that are new, or, if the file is much longer
    /// than it must be, all that are remembered, and then it is to be made anew.
    pub fn take_producers(&self, upto_group: u64, length: usize) -> (Vec<u8>, bool) {
        let mut producers = self.producers.lock().unwrap();
        let anew = length > SLACK * producers.live_bytes().max(SHORT) || producers.is_stale();
        let entries = if anew { producers.compact(upto_group) } else { producers.drain_new(upto_group) };
        let mut last = self.last_piece.lock().unwrap();
        if anew {
            *last = NO_PIECE;
        }
        if entries.is_empty() {
            return (entries, anew);
        }
        let mut piece = (entries.len() as u64).to_le_bytes().to_vec();
        piece.extend(entries);
        *last = piece_mac(&self.keys.receipt, &last, &piece);
        piece.extend(&*last);
        (piece, anew)
    }

    /// Takes the tables from a file of producers whose last piece has this MAC; false if it is not what was written.
    pub fn load_producers(&self, file: &[u8], last: &Hash) -> bool {
        let entries = entries_of(&self.keys.receipt, file).filter(|(_, found)| found == last);
        let loaded = entries.and_then(|(entries, _)| Producers::load(&entries, Limits::default()).ok());
        let Some(loaded) = loaded else { return false };
        *self.producers.lock().unwrap() = loaded;
        *self.last_piece.lock().unwrap() = *last;
        true
    }

    /// Hashes below this index are in the file.
    pub fn flushed_hashes(&self, upto: u64) {
        self.tree.write().unwrap().flushed(upto);
    }
}

/// What is before the first piece of the file of producers.
const NO_PIECE: Hash = [0; 32];

/// Of a piece of the file of producers and, with the one before, of all of it.
fn piece_mac(key: &Key, before: &Hash, piece: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    *hasher.update(&domain("kimberlite/derived/1")).update(before).update(piece).finalize().as_bytes()
}

/// The entries in a file of producers, and the MAC of its last piece; None if a piece is not what was written.
fn entries_of(key: &Key, mut file: &[u8]) -> Option<(Vec<u8>, Hash)> {
    let (mut entries, mut last) = (Vec::with_capacity(file.len()), NO_PIECE);
    while !file.is_empty() {
        let length = usize::try_from(u64::from_le_bytes(*file.first_chunk::<8>()?)).ok()?.checked_add(8)?;
        let (piece, rest) = file.split_at_checked(length)?;
        let (mac, rest) = rest.split_first_chunk::<32>()?;
        last = piece_mac(key, &last, piece);
        if last != *mac {
            return None;
        }
        entries.extend(&piece[8..]);
        file = rest;
    }
    Some((entries, last))
}
