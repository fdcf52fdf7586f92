//! What can still be proven of a damaged log, file by file, whatever else is gone.
//!
//! * A group is what its header says if the header's check holds, or holds but for one byte of it; where the salt of the
//!   file is lost, if something that is sound names the chain hash that its bytes make, or its tag is right.
//! * A run is what was sealed if its check holds, or its group's chain. Where neither can be told, an encrypted run is if
//!   it opens, and a plain record is if it makes the leaf that the tree has at its position.
//! * Nothing else is taken. Of what contradicts each other, nothing that no watermark leads to.

mod forks;
mod prove;
mod repaired;
mod scan;

pub use prove::Fragment;
pub use repaired::Repaired;
pub use scan::Scanned;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::format::{BLOCK, Checked, GroupHeader, Hash, u32_at, u64_at};
use crate::group::{Database, Stream};
use crate::keys::Key;
use crate::log::{Collector, Erasure, Retained, Said, Source, is_unreadable};
use crate::system::{Confirmed, Declaration, System};

/// Of an erasure of which only its confirmation is left.
const REASON_LOST: &str = "the reason is lost";

/// A group whose header stands in some file.
struct Held {
    header: GroupHeader,
    /// What its bytes make, if its runs follow each other from its beginning to its end.
    made: Option<Hash>,
    /// As its trailer has it, if that is there.
    stated: Option<Hash>,
    tag: Option<[u8; 16]>,
    /// Whether the header is what was sealed.
    sure: bool,
    /// Its pieces.
    pieces: Range<usize>,
}

/// What looks like a run.
#[derive(Debug, Clone, Copy)]
struct Piece {
    file: u32,
    place: u64,
    length: u32,
    stream: u32,
    position: u64,
    offset: u64,
    records: u32,
    hash: Hash,
    encrypted: bool,
    group: Option<u32>,
    /// What a header that is not sound says of its time.
    guess: Option<u64>,
    /// Its bytes are those that were sealed.
    proven: bool,
}

impl Piece {
    fn end(&self) -> u64 {
        self.position + self.records as u64
    }
}

/// A stream, as far as anything is left that says what it is.
pub struct Known {
    pub stream: Arc<Stream>,
    pub name: Option<String>,
}

/// What a file has at these places, each with a length, in the order of the file, and zeros between them. What the disk
/// cannot give back of it is no part of anything.
pub fn read_extents(source: &dyn Source, extents: &[(usize, usize)]) -> io::Result<Vec<u8>> {
    const PIECE: usize = 1 << 20;
    // Zeros that nobody writes to take no memory.
    let mut out = vec![0; extents.last().map_or(0, |(place, length)| place + length)];
    for &(start, length) in extents {
        for (i, piece) in out[start..start + length].chunks_mut(PIECE).enumerate() {
            read_around(source, start + i * PIECE, piece)?;
        }
    }
    Ok(out)
}

fn read_around(source: &dyn Source, place: usize, out: &mut [u8]) -> io::Result<()> {
    match source.read(place as u64, out.len()) {
        Err(error) if is_unreadable(&error) && out.len() > BLOCK => {
            let mut blocks = out.chunks_mut(BLOCK).enumerate();
            return blocks.try_for_each(|(i, block)| read_around(source, place + i * BLOCK, block));
        }
        Err(error) if is_unreadable(&error) => out.fill(0xff),
        // Fewer where somebody cuts the file meanwhile.
        bytes => bytes.map(|bytes| out[..bytes.len()].copy_from_slice(&bytes))?,
    }
    Ok(())
}

pub struct Salvage {
    database: Database,
    sources: Vec<Arc<dyn Source>>,
    groups: Vec<Held>,
    pieces: Vec<Piece>,
    /// Chain hashes that are named by what is sound.
    named: HashSet<Hash>,
    /// The first group of a segment follows this chain, and the group before it ended with that one.
    entries: Vec<(Hash, Hash)>,
    /// Watermarks: chain hashes of groups that were durable.
    ends: Vec<Hash>,
    hashes: Option<Arc<dyn Source>>,
    /// From the indexes: first positions of groups, and their times; or where those of a segment end.
    times: BTreeMap<u64, Option<u64>>,
    pub streams: BTreeMap<u32, Known>,
    /// What was dropped, as the newest record has it that is left.
    pub retained: Option<Retained>,
    /// Streams whose records are read by nobody any more, whatever keys are left. Times are 0 where nothing says them.
    pub erased: BTreeMap<u32, Erasure>,
    /// Positions and payloads of the records that say what was given up before.
    pub repairs: BTreeSet<(u64, Vec<u8>)>,
    /// Stream, from and up to: offsets that were never any record's.
    pub gaps: Vec<(u32, u64, u64)>,
    /// Positions of which different records are left, and nothing says which of them is the log's.
    pub doubtful: Vec<Range<u64>>,
    /// How far `next` has come, in pieces and in positions.
    at: usize,
    position: u64,
}

impl Salvage {
    pub fn new(database: Database) -> Self {
        let system = Arc::new(Stream::new(0, database.identity, false, None));
        Self {
            database,
            sources: Vec::new(),
            groups: Vec::new(),
            pieces: Vec::new(),
            named: HashSet::new(),
            entries: Vec::new(),
            ends: Vec::new(),
            hashes: None,
            times: BTreeMap::new(),
            streams: BTreeMap::from([(0, Known { stream: system, name: Some(String::new()) })]),
            retained: None,
            erased: BTreeMap::new(),
            repairs: BTreeSet::new(),
            gaps: Vec::new(),
            doubtful: Vec::new(),
            at: 0,
            position: 0,
        }
    }

    /// The file of tree hashes: a record that makes the leaf at its position is the log's.
    pub fn set_hashes(&mut self, hashes: Arc<dyn Source>) {
        self.hashes = Some(hashes);
    }

    /// A group with this chain hash was durable.
    pub fn durable(&mut self, chain: Hash) {
        self.named.insert(chain);
        self.ends.push(chain);
    }

    /// When the groups of a closed segment were: from its index, whose MAC is right.
    pub fn indexed(&mut self, index: &[u8]) {
        const HEADER: usize = 96;
        if index.len() < HEADER {
            return;
        }
        let (first, groups, records) = (u64_at(index, 40), u32_at(index, 80) as usize, u32_at(index, 88));
        // The closing group has no records.
        let rows = index[HEADER..].chunks_exact(16).take(groups).filter(|row| u32_at(row, 0) < records);
        self.times.extend(rows.map(|row| (first.saturating_add(u32_at(row, 0) as u64), Some(u64_at(row, 8)))));
        self.times.entry(first.saturating_add(records as u64)).or_insert(None);
    }

    /// A stream that a declaration names.
    pub fn declared(&mut self, payload: &[u8], keys: &mut dyn FnMut(u32, &Hash) -> Option<Key>) -> Checked<()> {
        if let System::Declaration(declaration) = System::decode(payload)? {
            let (number, hash) = (declaration.stream, Declaration::hash(payload));
            let key = if declaration.encrypted { keys(number, &hash) } else { None };
            let stream = Arc::new(Stream::new(number, hash, declaration.encrypted, key.as_ref()));
            self.streams.insert(number, Known { stream, name: Some(declaration.name) });
        }
        Ok(())
    }

    /// A stream of which no declaration is left: its key opens its runs, and the hash that the key is bound to makes its
    /// leaves.
    pub fn adopt(&mut self, number: u32, declaration: Hash, key: &Key) {
        let stream = Arc::new(Stream::new(number, declaration, true, Some(key)));
        self.streams.entry(number).or_insert(Known { stream, name: None });
    }

    /// All files were scanned: what they hold of each other is settled, and what the system's records say is taken in.
    pub fn settle(&mut self, keys: &mut dyn FnMut(u32, &Hash) -> Option<Key>) -> io::Result<()> {
        self.promote();
        self.drop_forks();
        let groups = &self.groups;
        let dated = |piece: &Piece| piece.group.is_some_and(|group| groups[group as usize].sure);
        self.pieces.sort_by_key(|piece| (piece.position, !piece.proven, !dated(piece)));
        self.drop_contradictions();
        let system: Vec<Piece> = self.pieces.iter().filter(|piece| piece.stream == 0).copied().collect();
        let (mut collector, mut confirmed) = (Collector::default(), Vec::new());
        for piece in system {
            for fragment in self.open(&piece)? {
                for (position, payload) in (fragment.position..).zip(fragment.payloads()) {
                    let at = Said { position, timestamp: fragment.timestamp.unwrap_or(0) };
                    match System::decode(payload) {
                        Ok(System::Declaration(_)) => self.declared(payload, keys).expect("it was decoded"),
                        Ok(System::Erased(said)) => {
                            self.name_erased(said.stream, said.declared);
                            let (stream, master, reason) = (said.stream, said.master, said.reason);
                            self.erase(Erasure { stream, at, master, reason, confirmed: None });
                        }
                        Ok(System::Confirmed(said)) => confirmed.push((said, at)),
                        Ok(System::Gap(gap)) => self.gaps.push((gap.stream, gap.from, gap.to)),
                        Ok(System::Repaired(_)) => {
                            self.repairs.insert((position, payload.to_vec()));
                        }
                        Ok(System::Retained(part)) => {
                            // Pieces of which some are lost fit nowhere.
                            if let Ok(Some(whole)) = collector.take(&part) {
                                self.follow_retained(whole, keys);
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        for (Confirmed { stream, declared, .. }, at) in confirmed {
            self.name_erased(stream, declared);
            let reason = REASON_LOST.into();
            self.erase(Erasure { stream, at, master: [0; 16], reason, confirmed: Some(at) });
        }
        for number in self.erased.keys() {
            if let Some(known) = self.streams.get_mut(number) {
                known.stream = Arc::new(Stream::new(*number, known.stream.declaration, true, None));
            }
        }
        // What was dropped is gone, also where some of it is left.
        self.position = self.retained.as_ref().map_or(0, |retained| retained.position);
        Ok(())
    }

    /// A stream that is said to be erased: nothing of it opens.
    pub fn erase(&mut self, erasure: Erasure) {
        let confirmed = erasure.confirmed;
        let known = self.erased.entry(erasure.stream).or_insert(erasure);
        known.confirmed = known.confirmed.or(confirmed);
    }

    /// Its declaration may be lost.
    fn name_erased(&mut self, number: u32, declared: Hash) {
        let stream = Arc::new(Stream::new(number, declared, true, None));
        self.streams.entry(number).or_insert(Known { stream, name: None });
    }

    /// Where each stream went on behind the last of its runs that is whole, or behind a gap, whether it opens or not.
    pub fn lengths(&self) -> BTreeMap<u32, u64> {
        let whole = self.pieces.iter().filter(|piece| piece.proven && piece.stream > 0);
        let runs = whole.map(|piece| (piece.stream, piece.offset.saturating_add(piece.records as u64)));
        let mut out = BTreeMap::new();
        for (stream, end) in runs.chain(self.gaps.iter().map(|&(stream, _, to)| (stream, to))) {
            let length = out.entry(stream).or_insert(0);
            *length = end.max(*length);
        }
        out
    }

    /// What was dropped, as a record or a checkpoint has it.
    pub fn follow_retained(&mut self, found: Retained, keys: &mut dyn FnMut(u32, &Hash) -> Option<Key>) {
        for left in &found.streams {
            // It was decoded when it was dropped.
            let _ = self.declared(&left.declaration, keys);
        }
        self.named.insert(found.chain);
        found.erasures.iter().cloned().for_each(|erasure| self.erase(erasure));
        // Of one that was damaged there is only the position.
        self.repairs.extend(found.repairs.iter().filter(|(_, payload)| !payload.is_empty()).cloned());
        if self.retained.as_ref().is_none_or(|before| before.position < found.position) {
            self.retained = Some(found);
        }
    }

    /// Where the sound groups end: number of the last, and the position behind it.
    pub fn end(&self) -> (u64, u64) {
        let sure = self.groups.iter().filter(|group| group.sure);
        let ends = sure.map(|group| (group.header.number, group.header.first_position + group.header.records as u64));
        ends.max().unwrap_or((0, 0))
    }

    /// The highest incarnation that a sound group has.
    pub fn incarnation(&self) -> u32 {
        self.groups.iter().filter(|group| group.sure).map(|group| group.header.incarnation).max().unwrap_or(0)
    }

    /// What the files hold from where the last call ended, so many records or a few more, in the order of their positions;
    /// empty at the end.
    pub fn next(&mut self, most: usize) -> io::Result<Vec<Fragment>> {
        let (mut out, mut count) = (Vec::new(), 0);
        while count < most && self.at < self.pieces.len() {
            // All that may be of the positions before the next run that is whole.
            let rest = &self.pieces[self.at..];
            let unproven = rest.iter().take_while(|piece| !piece.proven).count();
            let taken: Vec<Piece> = rest[..unproven.max(1)].to_vec();
            let upto = rest.get(taken.len()).filter(|_| unproven > 0).map_or(u64::MAX, |piece| piece.position);
            self.at += taken.len();
            let mut found = Vec::new();
            for piece in &taken {
                if piece.end() > self.position {
                    found.extend(self.open(piece)?);
                }
            }
            found.sort_by_key(|fragment| fragment.position);
            for fragment in found {
                let Some(fragment) = fragment.between(self.position, upto) else { continue };
                self.position = fragment.position + fragment.records() as u64;
                count += fragment.records();
                out.push(fragment);
            }
        }
        Ok(out)
    }

    /// How far it has come, of how many.
    pub fn progress(&self) -> (usize, usize) {
        (self.at, self.pieces.len())
    }
}
