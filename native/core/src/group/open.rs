//! Opening: the bytes of a group in, runs and records out, or what is wrong with them.

use std::ops::Range;

use super::ahead::run_seed;
use super::leaf::{RunLeaves, commitments};
use super::seal::associated;
use super::{Database, Stream};
use crate::format::{
    CLOSING, COMPRESSED, Checked, Damage, ENDS, GROUP_HEADER, GroupHeader, Hash, RUN_PLAINTEXT, RunHeader, check,
    ensure, u32_at, u64_at, zeros,
};
use crate::keys::TAG;
use crate::record::{Producer, Record};
use crate::salts::salts;

/// A run of one record is never longer than this when it is opened, whatever it claims.
const LARGEST_PLAINTEXT: usize = 1 << 30;

/// What the next group of a sound log must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub number: u64,
    pub position: u64,
    pub previous: Hash,
    /// The timestamp before.
    pub timestamp: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub header: RunHeader,
    pub place: u64,
    pub bytes: &'a [u8],
}

/// A group whose every byte is accounted for.
#[derive(Debug)]
pub struct Group<'a> {
    pub header: GroupHeader,
    pub place: u64,
    pub runs: Vec<Run<'a>>,
    pub chain: Hash,
}

/// The group at `place`, whose first byte is the first of `bytes` and whose header is already decoded; checks,
/// chain, tag and the zeros behind it, up to `padded` bytes, are right.
pub fn open<'a>(
    database: &Database,
    header: GroupHeader,
    expected: &Expected,
    salt: &Hash,
    place: u64,
    bytes: &'a [u8],
) -> Checked<Group<'a>> {
    ensure(header.number == expected.number, "the group's number is not the next one")?;
    ensure(header.first_position == expected.position, "the group's position is not the next one")?;
    ensure(header.previous == expected.previous, "the chain is broken")?;
    ensure(header.timestamp >= expected.timestamp, "the group's time is before the last one's")?;
    ensure((header.flags & CLOSING != 0) == (header.records == 0), "a closing group, and only that, has no records")?;
    let tag = if database.tagged { TAG } else { 0 };
    let length = header.length as usize;
    let least = GROUP_HEADER + 8 * header.runs as usize + 32 + tag;
    ensure(length >= least && length <= bytes.len(), "the group is cut short")?;
    ensure(zeros(&bytes[length..]), "the padding is not zero")?;
    let trailer = length - (least - GROUP_HEADER);
    let (runs, hashes) = split(&header, salt, place, &bytes[..trailer], &bytes[trailer..])?;
    let body = blake3::hash(hashes.as_flattened());
    let chain = GroupHeader::chain(bytes, &header.previous, body.as_bytes());
    let behind = &bytes[trailer + 8 * runs.len()..length];
    ensure(chain == behind[..32], "the chain hash is wrong")?;
    if let (true, Some(key)) = (database.tagged, &database.group_key) {
        ensure(key.tag(&chain) == behind[32..], "the tag is wrong: this group was not sealed with the group key")?;
    }
    Ok(Group { header, place, runs, chain })
}

fn split<'a>(
    header: &GroupHeader,
    salt: &Hash,
    place: u64,
    bytes: &'a [u8],
    checks: &[u8],
) -> Checked<(Vec<Run<'a>>, Vec<Hash>)> {
    let mut at = GROUP_HEADER;
    let mut position = header.first_position;
    let (mut runs, mut hashes) = (Vec::new(), Vec::new());
    for i in 0..header.runs as usize {
        let run = RunHeader::decode(&bytes[at..])?;
        ensure(run.first_position == position, "a run's position is not the next one")?;
        let body = &bytes[at..at + run.length as usize];
        let hash = *blake3::hash(body).as_bytes();
        let run_place = place + at as u64;
        ensure(check(salt, &hash, run_place) == checks[8 * i..8 * i + 8], "a run's check is wrong")?;
        runs.push(Run { header: run, place: run_place, bytes: body });
        hashes.push(hash);
        position += run.records as u64;
        at += run.length as usize;
    }
    ensure(at == bytes.len(), "the runs do not fill the group")?;
    ensure(position == header.first_position + header.records as u64, "the runs do not add up to the group's records")?;
    Ok((runs, hashes))
}

/// The check that the group's trailer must have for a run read by itself.
pub fn check_of_run(salt: &Hash, place: u64, bytes: &[u8]) -> [u8; 8] {
    check(salt, blake3::hash(bytes).as_bytes(), place)
}

/// The plaintext of a run, taken apart.
pub struct Opened {
    pub header: RunHeader,
    plain: Vec<u8>,
    records: Vec<Range<u32>>,
    /// Which records are the last of their batch.
    pub ends: Vec<u32>,
    /// The producer of the batch that starts with this record.
    pub producers: Vec<(u32, Producer)>,
    seed: Hash,
}

impl Opened {
    pub fn record(&self, i: usize) -> &[u8] {
        let range = &self.records[i];
        &self.plain[range.start as usize..range.end as usize]
    }

    /// Neighbouring records, one after another.
    pub fn bytes(&self, records: Range<usize>) -> &[u8] {
        &self.plain[self.records[records.start].start as usize..self.records[records.end - 1].end as usize]
    }

    pub fn decoded(&self, i: usize) -> Record<'_> {
        Record::decode(self.record(i)).expect("every record was decoded when the run was opened").0
    }

    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// Bytes of memory it holds.
    pub fn size(&self) -> usize {
        self.plain.capacity() + self.records.capacity() * 8 + self.ends.capacity() * 4 + 256
    }

    pub fn commitments(&self, stream: &Stream, range: Range<usize>) -> Vec<Hash> {
        let mut salted = vec![[0; 32]; range.len()];
        salts(&self.seed, range.start as u64, &mut salted);
        commitments(&salted, range.map(|i| (stream, self.record(i))))
    }

    /// The same for one record.
    pub fn leaf_of<'a>(&self, stream: &'a Stream, timestamp: u64, i: usize) -> RunLeaves<'a> {
        RunLeaves {
            stream,
            timestamp,
            first_offset: self.header.first_offset + i as u64,
            ends: if self.ends.binary_search(&(i as u32)).is_ok() { vec![0] } else { vec![] },
            commitments: self.commitments(stream, i..i + 1),
        }
    }

    /// What the tree must hold for this run, from its records alone.
    pub fn leaves<'a>(&self, stream: &'a Stream, timestamp: u64) -> RunLeaves<'a> {
        RunLeaves {
            stream,
            timestamp,
            first_offset: self.header.first_offset,
            ends: self.ends.clone(),
            commitments: self.commitments(stream, 0..self.count()),
        }
    }
}

impl Run<'_> {
    /// The commitments that stand in an encrypted run.
    pub fn stated(&self) -> Vec<Hash> {
        self.bytes[crate::format::RUN_HEADER..self.header.text()].as_chunks().0.to_vec()
    }

    /// What the tree must hold for an encrypted run, for whoever has no key.
    pub fn stated_leaves<'a>(&self, stream: &'a Stream, timestamp: u64) -> RunLeaves<'a> {
        let ends = if self.header.flags & ENDS != 0 { vec![self.header.records - 1] } else { vec![] };
        RunLeaves { stream, timestamp, first_offset: self.header.first_offset, ends, commitments: self.stated() }
    }

    /// The same for one record.
    pub fn stated_leaf<'a>(&self, stream: &'a Stream, timestamp: u64, i: usize) -> RunLeaves<'a> {
        let last = self.header.flags & ENDS != 0 && i + 1 == self.header.records as usize;
        let ends = if last { vec![0] } else { vec![] };
        let first_offset = self.header.first_offset + i as u64;
        RunLeaves { stream, timestamp, first_offset, ends, commitments: vec![self.stated()[i]] }
    }
}

/// Opens a run of this stream; None if it is encrypted and the key is not at hand.
pub fn open_run(database: &Database, stream: &Stream, run: &Run) -> Checked<Option<Opened>> {
    let header = run.header;
    ensure(header.encrypted() == stream.encrypted, "a run's mode is not its stream's")?;
    let text = &run.bytes[header.text()..];
    let (plain, seed) = if header.encrypted() {
        let Some(keys) = &stream.keys else { return Ok(None) };
        ensure(header.key_id == keys.id, "a run was encrypted with another key than its stream's")?;
        (decrypt(database, keys, run)?, run_seed(&keys.salt, header.nonce()))
    } else if header.flags & COMPRESSED != 0 {
        let plain = expand(text, &header, header.plain as usize)?;
        ensure(text.len() < plain.len(), "a run is compressed that is not shorter for it")?;
        (plain, header.random)
    } else {
        ensure(text.len() == header.plain as usize, "a run's length is wrong")?;
        (text.to_vec(), header.random)
    };
    let opened = take_apart(header, plain, seed)?;
    if header.encrypted() {
        let ends = header.flags & ENDS != 0;
        ensure(ends != opened.ends.is_empty(), "an encrypted run and its header disagree on where the batch ends")?;
    }
    Ok(Some(opened))
}

/// What a damaged plain run still has of records, up to the first that cannot be told from the next. Nothing says yet that
/// any of them is what was sealed, and not all of them may be records.
pub fn open_damaged(run: &Run) -> Option<Opened> {
    let (header, text) = (run.header, &run.bytes[run.header.text()..]);
    let plain = match header.flags {
        0 => text.to_vec(),
        COMPRESSED => expand(text, &header, header.plain as usize).ok()?,
        _ => return None,
    };
    let (entries, mut at) = batch_entries(&plain).ok()?;
    let (mut records, mut ends, mut behind) = (Vec::new(), Vec::new(), 0u64);
    for entry in entries {
        behind += entry.records as u64;
        if entry.ends {
            ends.push(behind.min(u32::MAX as u64) as u32 - 1);
        }
    }
    while records.len() < header.records as usize
        && let Ok(length) = Record::measure(&plain[at..])
    {
        records.push(at as u32..(at + length) as u32);
        at += length;
    }
    (!records.is_empty()).then_some(Opened { header, plain, records, ends, producers: vec![], seed: header.random })
}

fn decrypt(database: &Database, keys: &crate::keys::StreamKeys, run: &Run) -> Checked<Vec<u8>> {
    let start = run.header.text();
    let mut text = run.bytes[start..].to_vec();
    ensure(text.len() >= TAG + 8, "a run is cut short")?;
    let inner = keys
        .seal
        .open(run.header.nonce(), &associated(&database.id, &run.bytes[..start]), &mut text)
        .map_err(|_| Damage("an encrypted run does not open with its stream's key"))?;
    let (plain, length) = (u32_at(inner, 0) as usize, u32_at(inner, 4) as usize);
    ensure(length <= inner.len() - 8 && length <= plain, "the lengths in a run are wrong")?;
    let expected = (8 + length).next_multiple_of(database.quantum);
    ensure(inner.len() == expected && zeros(&inner[8 + length..]), "the padding in a run is wrong")?;
    let packed = &inner[8..8 + length];
    if length < plain { expand(packed, &run.header, plain) } else { Ok(packed.to_vec()) }
}

fn expand(packed: &[u8], header: &RunHeader, length: usize) -> Checked<Vec<u8>> {
    let most = if header.records == 1 { LARGEST_PLAINTEXT } else { RUN_PLAINTEXT };
    ensure(length <= most, "a run's plaintext is too long")?;
    // The capacity is what bounds the memory of a frame that lies about itself.
    let plain = zstd::bulk::decompress(packed, length).map_err(|_| Damage("a compressed run does not expand"))?;
    ensure(plain.len() == length, "a compressed run has another length than it says")?;
    Ok(plain)
}

struct BatchEntry {
    records: u32,
    ends: bool,
    producer: Option<Producer>,
}

/// The batch entries of a plaintext, and where its records start.
fn batch_entries(plain: &[u8]) -> Checked<(Vec<BatchEntry>, usize)> {
    ensure(plain.len() >= 4, "a run's plaintext is cut short")?;
    let count = u32_at(plain, 0) as usize;
    ensure(count >= 1 && count <= plain.len() / 5, "a run's batch entries are wrong")?;
    let mut at = 4;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        ensure(plain.len() >= at + 5, "a run's batch entries are cut short")?;
        let (records, flags) = (u32_at(plain, at), plain[at + 4]);
        ensure(flags & !3 == 0 && records > 0, "a batch entry is wrong")?;
        at += 5;
        let mut producer = None;
        if flags & 2 != 0 {
            ensure(plain.len() > at && plain.len() >= at + 25 + plain[at] as usize, "a batch entry is cut short")?;
            let end = at + 1 + plain[at] as usize;
            let digest = plain[end + 8..end + 24].try_into().unwrap();
            producer = Some(Producer { id: plain[at + 1..end].to_vec(), sequence: u64_at(plain, end), digest });
            at = end + 24;
        }
        entries.push(BatchEntry { records, ends: flags & 1 != 0, producer });
    }
    Ok((entries, at))
}

fn take_apart(header: RunHeader, plain: Vec<u8>, seed: Hash) -> Checked<Opened> {
    ensure(header.records == 1 || plain.len() <= RUN_PLAINTEXT, "a run of several records is too long")?;
    let (entries, mut at) = batch_entries(&plain)?;
    ensure(!header.encrypted() || entries.len() == 1, "an encrypted run holds several batches")?;
    let mut opened =
        Opened { header, plain: Vec::new(), records: Vec::with_capacity(0), ends: vec![], producers: vec![], seed };
    let mut first = 0u64;
    for entry in entries {
        if let Some(producer) = entry.producer {
            opened.producers.push((first as u32, producer));
        }
        first += entry.records as u64;
        ensure(first <= header.records as u64, "a run's batches do not add up to its records")?;
        ensure(entry.ends || first == header.records as u64, "a batch goes on behind another one")?;
        if entry.ends {
            opened.ends.push((first - 1) as u32);
        }
    }
    ensure(first == header.records as u64, "a run's batches do not add up to its records")?;
    for _ in 0..header.records {
        let length = Record::decode(&plain[at..])?.1;
        opened.records.push(at as u32..(at + length) as u32);
        at += length;
    }
    ensure(at == plain.len(), "a run has bytes behind its records")?;
    opened.plain = plain;
    Ok(opened)
}
