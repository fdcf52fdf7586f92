//! Sealing: batches in, the bytes of a group out.

use std::sync::Arc;

use super::ahead::{Drawn, Made, Salted, commit};
use super::leaf::{RunLeaves, hash_leaves};
use super::{Database, Stream};
use crate::format::{
    BLOCK, COMPRESSED, ENCRYPTED, ENDS, GROUP_HEADER, GroupHeader, Hash, RUN_HEADER, RUN_PLAINTEXT, RunHeader, check,
    padded, put,
};
use crate::keys::{Entropy, TAG, domain};
use crate::record::Batch;

/// The end of the log as sealed so far: the one place that gives out numbers, positions and offsets.
pub struct Sealer {
    pub group: u64,
    pub position: u64,
    pub chain: Hash,
    pub timestamp: u64,
    pub incarnation: u32,
    /// zstd level of runs; None is off.
    pub level: Option<i32>,
    pub entropy: Entropy,
}

/// A batch of a stream, and the offset of its first record.
pub struct Placed {
    pub stream: Arc<Stream>,
    pub offset: u64,
    pub batch: Arc<Batch>,
}

/// Records `from..to` of a batch, which end up in one run.
pub(super) struct Piece<'a> {
    pub batch: &'a Arc<Batch>,
    pub from: usize,
    pub to: usize,
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        &self.batch.bytes[self.batch.start(self.from)..self.batch.ends[self.to - 1] as usize]
    }

    fn ends(&self) -> bool {
        self.to == self.batch.ends.len()
    }

    fn entry_into(&self, out: &mut Vec<u8>) {
        let producer = self.batch.producer.get().filter(|_| self.from == 0);
        out.extend(((self.to - self.from) as u32).to_le_bytes());
        out.push(u8::from(self.ends()) | u8::from(producer.is_some()) << 1);
        if let Some(producer) = producer {
            out.push(producer.id.len() as u8);
            out.extend(&producer.id);
            out.extend(producer.sequence.to_le_bytes());
            out.extend(producer.digest);
        }
    }
}

/// A run that is to be sealed; of an encrypted stream it is one piece.
pub(super) struct Plan<'a> {
    stream: &'a Arc<Stream>,
    first_offset: u64,
    first_position: u64,
    records: u32,
    pub pieces: Vec<Piece<'a>>,
    drawn: Option<Drawn>,
}

/// Where a run went, and what its leaves are made of.
pub struct SealedRun {
    pub stream: Arc<Stream>,
    pub first_offset: u64,
    pub first_position: u64,
    pub records: u32,
    pub place: u64,
    pub length: u32,
    seed: Hash,
    commitments: Option<Vec<Hash>>,
    /// How many of the group's pieces are its own.
    pieces: usize,
}

/// A group whose bytes are ready to be written.
pub struct Sealed {
    pub number: u64,
    pub first_position: u64,
    pub records: u32,
    pub timestamp: u64,
    pub place: u64,
    /// Without and with padding.
    pub length: usize,
    pub padded: usize,
    pub chain: Hash,
    pub incarnation: u32,
    pub runs: Vec<SealedRun>,
    /// Streams that a gap moves, and where they go on.
    pub gaps: Vec<(u32, u64)>,
    /// Of the runs, one after another: a batch, its first record and the one behind its last.
    pieces: Vec<(Arc<Batch>, usize, usize)>,
}

/// What a batch takes of a group at most. A group is no longer than `OVERHEAD` and the bounds of its batches.
pub fn bound(batch: &Batch, quantum: usize) -> usize {
    let per_run = RUN_HEADER + 8 + 4 + TAG + 8 + quantum;
    let producer = batch.producer.get().map_or(0, |producer| producer.id.len() + 25);
    // A run is full when the next record no longer fits, so any two of them hold more than one limit.
    let runs = 2 + 2 * batch.bytes.len() / RUN_PLAINTEXT;
    batch.bytes.len() + 32 * batch.ends.len() + runs * (per_run + 5) + producer
}

/// Header, trailer and padding of a group.
pub const OVERHEAD: usize = 2 * BLOCK;

/// The runs that batches become, and what was `made` of them.
pub(super) fn plan(batches: &[Placed], made: Vec<Vec<Made>>, mut position: u64) -> Vec<Plan<'_>> {
    let mut plans: Vec<Plan> = Vec::new();
    // Plaintext of the run that is being filled; usize::MAX when nothing may join it.
    let mut filled = usize::MAX;
    for (Placed { stream, offset, batch }, made) in batches.iter().zip(made) {
        let mut next = *offset;
        let mut made = made.into_iter();
        let joins = !stream.encrypted && plans.last().is_some_and(|last| last.stream.number == stream.number);
        if !joins {
            filled = usize::MAX;
        }
        let mut from = 0;
        while from < batch.ends.len() {
            let entry = 5 + batch.producer.get().map_or(0, |p| p.id.len() + 25);
            let used = if filled == usize::MAX { 4 } else { filled } + entry;
            let fits = |to: usize| used + batch.ends[to - 1] as usize - batch.start(from) <= RUN_PLAINTEXT;
            let mut to = from
                + batch.ends[from..].partition_point(|&end| used + end as usize - batch.start(from) <= RUN_PLAINTEXT);
            if to == from {
                if filled != usize::MAX {
                    filled = usize::MAX;
                    continue;
                }
                to = from + 1;
            }
            debug_assert!(to == from + 1 || fits(to));
            let piece = Piece { batch, from, to };
            let length = piece.bytes().len();
            let records = (to - from) as u32;
            if filled == usize::MAX {
                let drawn = made.next().filter(|&(first, end, _)| (first, end) == (from, to)).map(|(.., drawn)| drawn);
                let pieces = vec![piece];
                plans.push(Plan { stream, first_offset: next, first_position: position, records, pieces, drawn });
            } else {
                let last = plans.last_mut().expect("a run is being filled");
                last.records += records;
                last.pieces.push(piece);
            }
            filled = if stream.encrypted || to < batch.ends.len() { usize::MAX } else { used + length };
            next += records as u64;
            position += records as u64;
            from = to;
        }
    }
    plans
}

impl Sealer {
    /// The bytes of the next group, into `out`, which is at least `bound` long and may hold anything.
    #[allow(clippy::too_many_arguments)]
    pub fn seal(
        &mut self,
        database: &Database,
        batches: &[Placed],
        salt: &Hash,
        place: u64,
        durable_upto: u64,
        now: u64,
        flags: u32,
        out: &mut [u8],
    ) -> Sealed {
        let made = batches.iter().map(|placed| placed.batch.ahead.take()).collect();
        let mut plans = plan(batches, made, self.position);
        self.draw(&mut plans);
        let mut at = GROUP_HEADER;
        let mut hashes = Vec::with_capacity(plans.len());
        let mut runs = Vec::with_capacity(plans.len());
        let mut pieces = Vec::with_capacity(batches.len());
        for plan in plans {
            pieces.extend(plan.pieces.iter().map(|piece| (piece.batch.clone(), piece.from, piece.to)));
            let mut run = self.seal_run(database, plan, &mut out[at..]);
            run.place = place + at as u64;
            hashes.push(*blake3::hash(&out[at..at + run.length as usize]).as_bytes());
            at += run.length as usize;
            runs.push(run);
        }
        let records: u32 = runs.iter().map(|run| run.records).sum();
        let tag = if database.tagged { TAG } else { 0 };
        let length = at + 8 * runs.len() + 32 + tag;
        self.timestamp = self.timestamp.max(now);
        let header = GroupHeader {
            length: length as u32,
            flags,
            number: self.group,
            first_position: self.position,
            records,
            runs: runs.len() as u32,
            durable_upto,
            timestamp: self.timestamp,
            incarnation: self.incarnation,
            previous: self.chain,
        };
        header.encode(out, salt, place);
        for (run, hash) in runs.iter().zip(&hashes) {
            put(out, at, check(salt, hash, run.place));
            at += 8;
        }
        let body = blake3::hash(hashes.as_flattened());
        self.chain = GroupHeader::chain(out, &header.previous, body.as_bytes());
        put(out, at, self.chain);
        if database.tagged {
            let key = database.group_key.as_ref().expect("a tagged database is written with its key");
            put(out, at + 32, key.tag(&self.chain));
        }
        let padded = padded(length);
        out[length..padded].fill(0);
        self.group += 1;
        self.position += records as u64;
        Sealed {
            number: header.number,
            first_position: header.first_position,
            records,
            timestamp: header.timestamp,
            place,
            length,
            padded,
            chain: self.chain,
            incarnation: self.incarnation,
            runs,
            gaps: vec![],
            pieces,
        }
    }

    /// What was not made ahead; the bytes of encrypted runs need their commitments, too.
    fn draw(&mut self, plans: &mut [Plan]) {
        let mut bare: Vec<&mut Plan> = plans.iter_mut().filter(|plan| plan.drawn.is_none()).collect();
        self.entropy.draw(bare.len() * size_of::<Hash>());
        let drawn: Vec<_> = bare.iter().map(|plan| Drawn::without(&mut self.entropy, plan.stream)).collect();
        let encrypted = bare.iter().zip(&drawn).filter(|(plan, _)| plan.stream.encrypted);
        let encrypted: Vec<Salted> =
            encrypted.map(|(plan, drawn)| (&**plan.stream, &drawn.seed, &plan.pieces[..])).collect();
        let mut made = commit(&encrypted).into_iter();
        for (plan, mut drawn) in bare.iter_mut().zip(drawn) {
            if plan.stream.encrypted {
                drawn.commitments = Some(made.by_ref().take(plan.records as usize).collect());
            }
            plan.drawn = Some(drawn);
        }
    }

    fn seal_run(&self, database: &Database, mut plan: Plan, out: &mut [u8]) -> SealedRun {
        let drawn = plan.drawn.take().expect("it was drawn");
        let mut header = RunHeader {
            length: 0,
            stream: plan.stream.number,
            flags: 0,
            records: plan.records,
            first_offset: plan.first_offset,
            first_position: plan.first_position,
            plain: 0,
            key_id: [0; 16],
            random: drawn.random,
        };
        match &drawn.commitments {
            Some(commitments) if plan.stream.encrypted => {
                self.encrypted_run(database, &plan, commitments, &mut header, out)
            }
            _ => self.plain_run(&plan, &mut header, out),
        }
        SealedRun {
            stream: plan.stream.clone(),
            first_offset: plan.first_offset,
            first_position: plan.first_position,
            records: plan.records,
            place: 0,
            length: header.length,
            seed: drawn.seed,
            commitments: drawn.commitments,
            pieces: plan.pieces.len(),
        }
    }

    fn plain_run(&self, plan: &Plan, header: &mut RunHeader, out: &mut [u8]) {
        let text = &mut out[RUN_HEADER..];
        let plain = write_plaintext(plan, text);
        header.plain = plain as u32;
        let packed = self.level.and_then(|level| compressed(&text[..plain], level));
        let length = packed.as_ref().map_or(plain, |packed| {
            header.flags |= COMPRESSED;
            text[..packed.len()].copy_from_slice(packed);
            packed.len()
        });
        header.length = (RUN_HEADER + length) as u32;
        header.encode(out);
    }

    fn encrypted_run(
        &self,
        database: &Database,
        plan: &Plan,
        commitments: &[Hash],
        header: &mut RunHeader,
        out: &mut [u8],
    ) {
        let keys = plan.stream.keys.as_ref().expect("an encrypted stream is written with its key");
        let piece = &plan.pieces[0];
        header.flags = ENCRYPTED | if piece.ends() { ENDS } else { 0 };
        header.key_id = keys.id;
        let start = header.text();
        out[RUN_HEADER..start].copy_from_slice(commitments.as_flattened());
        let plain = write_plaintext(plan, &mut out[start + 8..]);
        let mut length = plain;
        if let Some(packed) = self.level.and_then(|level| compressed(&out[start + 8..start + 8 + plain], level)) {
            out[start + 8..start + 8 + packed.len()].copy_from_slice(&packed);
            length = packed.len();
        }
        put(out, start, (plain as u32).to_le_bytes());
        put(out, start + 4, (length as u32).to_le_bytes());
        let inner = (8 + length).next_multiple_of(database.quantum);
        out[start + 8 + length..start + inner].fill(0);
        header.length = (start + inner + TAG) as u32;
        header.encode(out);
        let (clear, text) = out.split_at_mut(start);
        let tag = keys.seal.seal(header.nonce(), &associated(&database.id, clear), &mut text[..inner]);
        put(text, inner, tag);
    }
}

pub(super) fn associated(database: &[u8; 16], clear: &[u8]) -> Vec<u8> {
    [&domain("kimberlite/run/1")[..], database, clear].concat()
}

fn write_plaintext(plan: &Plan, out: &mut [u8]) -> usize {
    let mut head = (plan.pieces.len() as u32).to_le_bytes().to_vec();
    plan.pieces.iter().for_each(|piece| piece.entry_into(&mut head));
    let mut at = head.len();
    out[..at].copy_from_slice(&head);
    for piece in &plan.pieces {
        let bytes = piece.bytes();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    at
}

/// One zstd frame, if it is shorter than what it holds.
fn compressed(plain: &[u8], level: i32) -> Option<Vec<u8>> {
    thread_local! {
        static CONTEXT: std::cell::RefCell<zstd::bulk::Compressor<'static>> =
            std::cell::RefCell::new(zstd::bulk::Compressor::new(0).expect("zstd has a context"));
    }
    CONTEXT.with_borrow_mut(|context| {
        context.set_compression_level(level).ok()?;
        // Always room enough: a frame that does not fit leaves the context unusable.
        let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
        context.compress_to_buffer(plain, &mut out).ok()?;
        (out.len() < plain.len()).then_some(out)
    })
}

impl Sealed {
    /// The group's leaf hashes. What they need of the records is kept until this has run once.
    pub fn leaves(&mut self) -> Vec<Hash> {
        let owned = std::mem::take(&mut self.pieces);
        let pieces: Vec<Piece> = owned.iter().map(|(batch, from, to)| Piece { batch, from: *from, to: *to }).collect();
        let mut rest = &pieces[..];
        let mut of_runs = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            of_runs.push(rest.split_off(..run.pieces).expect("a run has its pieces"));
        }
        let bare = self.runs.iter().zip(&of_runs).filter(|(run, _)| run.commitments.is_none());
        let bare: Vec<Salted> = bare.map(|(run, pieces)| (&*run.stream, &run.seed, *pieces)).collect();
        let mut made = commit(&bare).into_iter();
        let runs: Vec<RunLeaves> = self
            .runs
            .iter_mut()
            .zip(of_runs)
            .map(|(run, pieces)| {
                let commitments = run.commitments.take();
                let commitments = commitments.unwrap_or_else(|| made.by_ref().take(run.records as usize).collect());
                let mut upto = 0;
                let mut ends = Vec::with_capacity(pieces.len());
                for piece in pieces {
                    upto += (piece.to - piece.from) as u32;
                    if piece.ends() {
                        ends.push(upto - 1);
                    }
                }
                let (stream, first_offset) = (&*run.stream, run.first_offset);
                RunLeaves { stream, timestamp: self.timestamp, first_offset, ends, commitments }
            })
            .collect();
        hash_leaves(&runs)
    }
}
