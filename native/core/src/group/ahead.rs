//! What the bytes of encrypted runs wait for, made while their batch waits for a group.

use std::sync::{Arc, Mutex};

use super::Stream;
use super::leaf::commitments;
use super::seal::{Piece, Placed, plan};
use crate::format::Hash;
use crate::keys::{Entropy, domain};
use crate::record::Batch;
use crate::salts::salts;

/// What a run is sealed with: drawn once, and used for one run.
#[derive(Debug)]
pub(super) struct Drawn {
    /// Seed or nonce, as it stands in the header.
    pub random: Hash,
    pub seed: Hash,
    /// The bytes of a plain run do not wait for them.
    pub commitments: Option<Vec<Hash>>,
}

impl Drawn {
    pub fn without(entropy: &mut Entropy, stream: &Stream) -> Self {
        let mut random = [0; 32];
        if !stream.encrypted {
            entropy.fill(&mut random);
            return Self { random, seed: random, commitments: None };
        }
        entropy.fill(&mut random[..24]);
        let keys = stream.keys.as_ref().expect("an encrypted stream is written with its key");
        let seed = run_seed(&keys.salt, random[..24].try_into().unwrap());
        Self { random, seed, commitments: None }
    }

    /// Of a run that is one piece of a batch.
    pub fn with(entropy: &mut Entropy, stream: &Stream, piece: &Piece) -> Self {
        let drawn = Self::without(entropy, stream);
        let commitments = commit(&[(stream, &drawn.seed, std::slice::from_ref(piece))]);
        Self { commitments: Some(commitments), ..drawn }
    }
}

/// The runs of a batch that are made already. Another thread makes them one by one, until the batch is sealed.
#[derive(Debug, Default)]
pub struct Ahead(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sealed: bool,
    runs: Vec<Made>,
}

/// A run's first record and the one behind its last, and what was drawn for it.
pub(super) type Made = (usize, usize, Drawn);

/// A copy of a batch is another batch: nothing that was drawn for one is ever used for the other.
impl Clone for Ahead {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Ahead {
    /// What is made so far; nothing is made after this.
    pub(super) fn take(&self) -> Vec<Made> {
        let mut state = self.0.lock().unwrap();
        state.sealed = true;
        std::mem::take(&mut state.runs)
    }
}

/// Makes the runs of a batch of an encrypted stream, unless it is being sealed. With the producer that it may still get it can fall into other
/// runs: what does not fit them is thrown away.
pub fn make_ahead(stream: &Arc<Stream>, batch: &Arc<Batch>) {
    let placed = [Placed { stream: stream.clone(), offset: 0, batch: batch.clone() }];
    for run in plan(&placed, vec![vec![]], 0) {
        let mut state = batch.ahead.0.lock().unwrap();
        if state.sealed {
            return;
        }
        let piece = &run.pieces[0];
        state.runs.push((piece.from, piece.to, Drawn::with(&mut Entropy::kernel(), stream, piece)));
    }
}

pub(super) fn run_seed(key: &Hash, nonce: &[u8; 24]) -> Hash {
    *blake3::Hasher::new_keyed(key).update(&domain("kimberlite/seed/1")).update(nonce).finalize().as_bytes()
}

/// The stream of a run, its seed and its pieces.
pub(super) type Salted<'a> = (&'a Stream, &'a Hash, &'a [Piece<'a>]);

/// The commitments of runs, one run after another: records of small runs are hashed side by side, too.
pub(super) fn commit(runs: &[Salted]) -> Vec<Hash> {
    let count = |pieces: &[Piece]| pieces.iter().map(|piece| piece.to - piece.from).sum::<usize>();
    let mut salted = vec![[0; 32]; runs.iter().map(|(.., pieces)| count(pieces)).sum()];
    let mut rest = &mut salted[..];
    for (_, seed, pieces) in runs {
        salts(seed, 0, rest.split_off_mut(..count(pieces)).expect("there is one for each record"));
    }
    let pieces = runs.iter().flat_map(|(stream, _, pieces)| pieces.iter().map(|piece| (*stream, piece)));
    commitments(&salted, pieces.flat_map(|(stream, p)| (p.from..p.to).map(move |i| (stream, p.batch.record(i)))))
}
