//! Groups: sealed here, and opened here. Reading, recovery and verification open with the same code.

mod ahead;
mod leaf;
mod open;
mod seal;
#[cfg(test)]
mod tests;

pub use ahead::{Ahead, make_ahead};
pub use leaf::{RunLeaves, hash_leaves};
pub use open::{Expected, Group, Opened, Run, check_of_run, open, open_damaged, open_run};
pub use seal::{OVERHEAD, Placed, Sealed, SealedRun, Sealer, bound};

use crate::format::Hash;
use crate::keys::{GroupKey, Key, StreamKeys, domain};
use crate::sha256::{State, midstate};

/// What every group of a database has in common.
#[derive(Clone)]
pub struct Database {
    pub id: [u8; 16],
    pub identity: Hash,
    /// Encrypted text is padded to this many bytes.
    pub quantum: usize,
    /// Groups carry a tag; without the key it is not checked.
    pub tagged: bool,
    pub group_key: Option<GroupKey>,
}

/// A stream as sealing and opening know it. Number 0 is the system's own.
#[derive(Clone)]
pub struct Stream {
    pub number: u32,
    pub encrypted: bool,
    /// Hash of the declaration; of stream 0 the identity hash.
    pub declaration: Hash,
    /// SHA-256 after the 64 bytes that start each of its commitments.
    pub prefix: State,
    /// None for a plain stream, and for an encrypted one whose key is not at hand.
    pub keys: Option<StreamKeys>,
}

impl Stream {
    pub fn new(number: u32, declaration: Hash, encrypted: bool, data_key: Option<&Key>) -> Self {
        let mut prefix = [0; 64];
        prefix[..32].copy_from_slice(&domain("kimberlite/record/1"));
        prefix[32..].copy_from_slice(&declaration);
        let keys = data_key.map(StreamKeys::new);
        Self { number, encrypted, declaration, prefix: midstate(&prefix), keys }
    }

    /// Whether what is in it can be read.
    pub fn opens(&self) -> bool {
        !self.encrypted || self.keys.is_some()
    }

    /// What digests and producer ids of this stream are keyed with.
    pub fn index_key<'a>(&'a self, identity: &'a Hash) -> Option<&'a Hash> {
        if self.encrypted { self.keys.as_ref().map(|keys| &keys.index) } else { Some(identity) }
    }
}

/// What a producer's batch is recognised by.
pub fn digest(key: &Hash, bytes: &[u8]) -> [u8; 16] {
    let mut digest = Digest::new(key);
    digest.update(bytes);
    digest.finish()
}

/// The same while the records are still coming.
pub struct Digest(blake3::Hasher);

impl Digest {
    pub fn new(key: &Hash) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(&domain("kimberlite/digest/1"));
        Self(hasher)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(&self) -> [u8; 16] {
        self.0.finalize().as_bytes()[..16].try_into().unwrap()
    }
}

/// What tables keep instead of a producer's id.
pub fn producer(key: &Hash, id: &[u8]) -> [u8; 16] {
    let hash = blake3::Hasher::new_keyed(key).update(&domain("kimberlite/producer/1")).update(id).finalize();
    hash.as_bytes()[..16].try_into().unwrap()
}
