//! Looking through one file for groups and, where their headers are lost, for runs.

use std::ops::Range;
use std::sync::Arc;

use super::{Held, Piece, Salvage};
use crate::format::{
    BLOCK, GROUP_HEADER, GroupHeader, HIGHEST, Hash, RUN_HEADER, RunHeader, SEGMENT_HEADER, SegmentHeader, check,
};
use crate::format::{u64_at, zeros};
use crate::keys::TAG;
use crate::log::Source;

/// Headers of a file that are tried with each value in each of their bytes: what looks like one costs some milliseconds.
const MENDED: usize = 4096;
/// Behind a run its check is looked for no further than a group is long.
const REACH: usize = 32 << 20;

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// Of another database.
    Foreign,
    /// The number that its header says, if that is sound; groups that have a header.
    Segment { number: Option<u64>, groups: usize },
}

/// What is known of a file before its groups are.
struct File<'a> {
    number: u32,
    data: &'a [u8],
    salt: Option<Hash>,
    /// What groups begin at multiples of.
    step: usize,
    mended: usize,
}

impl Salvage {
    /// Takes in a file; `salts` are those of files whose own header may be lost.
    pub fn scan(&mut self, source: Arc<dyn Source>, data: &[u8], salts: &[Hash]) -> Scanned {
        let header = SegmentHeader::decode(data).ok();
        if header.is_some_and(|header| header.database != self.database.id) {
            return Scanned::Foreign;
        }
        let number = self.sources.len() as u32;
        self.sources.push(source);
        let salt = header.map(|header| header.salt).or_else(|| salt_of(data, salts));
        let step = if header.is_some_and(|header| header.packed.is_none()) { BLOCK } else { 8 };
        let mut file = File { number, data, salt, step, mended: 0 };
        let (mut place, mut position) = (0, None);
        if let Some(header) = &header {
            (place, position) = (SEGMENT_HEADER, Some(header.first_position));
            self.named.insert(header.before);
            self.named.extend(header.packed.map(|packed| packed.last_chain));
            self.entries.push((header.chain(), header.before));
        }
        let (before, mut from) = (self.groups.len(), place);
        while let Some(at) = next_start(data, place, step) {
            place = at + step;
            let Some(group) = self.group(&mut file, at) else { continue };
            self.lost(&file, from..at, position, Some(group.first_position));
            from = (at + group.length as usize).min(data.len());
            place = from.next_multiple_of(step);
            position = Some(group.first_position + group.records as u64);
        }
        self.lost(&file, from..data.len(), position, None);
        Scanned::Segment { number: header.map(|header| header.number), groups: self.groups.len() - before }
    }

    /// The group that begins there: by its check, or, where there is no salt, if its bytes make the chain hash at its end.
    fn group(&mut self, file: &mut File, at: usize) -> Option<GroupHeader> {
        let header = match &file.salt {
            Some(salt) => sound(&file.data[at..], salt, at as u64, &mut file.mended)?,
            None => GroupHeader::unchecked(&file.data[at..]).ok()?,
        };
        let tag = if self.database.tagged { TAG } else { 0 };
        let trailer = at + (header.length as usize).checked_sub(8 * header.runs as usize + 32 + tag)?;
        let walked = walk(file.data, at, trailer, &header);
        let made = walked.as_ref().map(|runs| chain(&header, runs));
        let behind = trailer + 8 * header.runs as usize;
        let stated = file.data.get(behind..).and_then(|rest| rest.first_chunk::<32>()).copied();
        let sealed = made.is_some() && made == stated;
        if file.salt.is_none() && !sealed {
            return None;
        }
        let (first, group, sure) = (self.pieces.len(), self.groups.len() as u32, file.salt.is_some());
        let checks = file.data.get(trailer..behind).unwrap_or_default().as_chunks::<8>().0;
        let holds = |hash: &Hash, place: usize| {
            file.salt.is_some_and(|salt| sealed || checks.contains(&check(&salt, hash, place as u64)))
        };
        let guess = (!sure).then_some(header.timestamp);
        let piece = |place: usize, run: &RunHeader, hash: Hash| {
            let proven = holds(&hash, place);
            piece(file.number, place, run, hash, Some(group), guess, proven)
        };
        match &walked {
            Some(runs) => self.pieces.extend(runs.iter().map(|(place, run, hash)| piece(*place, run, *hash))),
            None => {
                let positions = header.first_position..header.first_position + header.records as u64;
                let within = at + GROUP_HEADER..trailer.min(file.data.len());
                self.pieces.extend(look(file.data, within, positions, piece));
            }
        }
        let tag = file.data.get(behind + 32..).filter(|_| tag > 0).and_then(|rest| rest.first_chunk::<16>()).copied();
        self.groups.push(Held { header, made, stated, tag, sure, pieces: first..self.pieces.len() });
        Some(header)
    }

    /// Runs in bytes that no sound group has, between these positions. Their group's trailer has their checks, wherever
    /// it is.
    fn lost(&mut self, file: &File, within: Range<usize>, first: Option<u64>, behind: Option<u64>) {
        if within.is_empty() || zeros(&file.data[within.clone()]) {
            return;
        }
        let end = within.end;
        // No record is shorter than a byte.
        let most = first.map_or(HIGHEST, |first| first.saturating_add(within.len() as u64));
        let positions = first.unwrap_or(0)..behind.map_or(most, |behind| behind.min(most));
        let mut header = within.start.next_multiple_of(file.step);
        let found = look(file.data, within, positions, |place, run, hash| {
            // Of the last header that may be one: all that is asked of it is a time that the leaf agrees with.
            while let Some(next) = next_start(&file.data[..place], header + 1, 8) {
                header = next;
            }
            let guess = file.data.get(header + 48..header + 56).map(|bytes| u64_at(bytes, 0));
            let guess = guess.filter(|time| *time <= HIGHEST);
            let behind = place + run.length as usize;
            let proven = file.salt.is_some_and(|salt| {
                let check = check(&salt, &hash, place as u64);
                file.data[behind..end.min(behind + REACH)].windows(8).any(|bytes| bytes == check)
            });
            piece(file.number, place, run, hash, None, guess, proven)
        });
        self.pieces.extend(found);
    }

    /// Groups that only what is sound can vouch for: each that is named names the one before it.
    pub(super) fn promote(&mut self) {
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_unstable_by_key(|&i| std::cmp::Reverse(self.groups[i].header.number));
        self.named.extend(self.groups.iter().filter(|group| group.sure).map(|group| group.header.previous));
        for i in order {
            let group = &mut self.groups[i];
            let Some(made) = group.made else { continue };
            let key = self.database.group_key.as_ref();
            let tagged = key.is_some_and(|key| group.tag.is_some_and(|tag| key.tag(&made) == tag));
            if tagged || self.named.contains(&made) {
                group.sure = true;
                self.named.insert(group.header.previous);
                self.pieces[group.pieces.clone()].iter_mut().for_each(|piece| piece.proven = true);
            }
        }
    }
}

fn piece(
    file: u32,
    place: usize,
    run: &RunHeader,
    hash: Hash,
    group: Option<u32>,
    guess: Option<u64>,
    proven: bool,
) -> Piece {
    let (stream, position, offset) = (run.stream, run.first_position, run.first_offset);
    let (records, encrypted) = (run.records, run.encrypted());
    Piece {
        file,
        place: place as u64,
        length: run.length,
        stream,
        position,
        offset,
        records,
        hash,
        encrypted,
        group,
        guess,
        proven,
    }
}

/// Where a group may begin: one byte of the word that it begins with may be wrong.
fn next_start(data: &[u8], from: usize, step: usize) -> Option<usize> {
    let from = from.next_multiple_of(step);
    (from..(data.len() + 1).saturating_sub(GROUP_HEADER))
        .step_by(step)
        .find(|&at| near(&data[at..at + 8], GroupHeader::MAGIC))
}

/// The same but for one byte at most.
fn near(bytes: &[u8], wanted: &[u8; 8]) -> bool {
    bytes.iter().zip(wanted).filter(|(one, other)| one != other).count() <= 1
}

/// The salt under which some header of this file holds.
fn salt_of(data: &[u8], salts: &[Hash]) -> Option<Hash> {
    let mut at = 0;
    // Some of them may be damaged, or be none.
    for _ in 0..64 {
        let place = next_start(data, at, 8)?;
        let holds = |salt: &&Hash| GroupHeader::decode(&data[place..], salt, place as u64).is_ok();
        if let Some(salt) = salts.iter().find(holds) {
            return Some(*salt);
        }
        at = place + 8;
    }
    None
}

/// The header that begins these bytes: as it stands, or with one other byte, if its check is right then.
fn sound(bytes: &[u8], salt: &Hash, place: u64, mended: &mut usize) -> Option<GroupHeader> {
    if let Ok(header) = GroupHeader::decode(bytes, salt, place) {
        return Some(header);
    }
    *mended += 1;
    if *mended > MENDED {
        return None;
    }
    let mut copy: [u8; GROUP_HEADER] = bytes[..GROUP_HEADER].try_into().expect("so many are there");
    let wrong = copy[..8] != *GroupHeader::MAGIC;
    copy[..8].copy_from_slice(GroupHeader::MAGIC);
    let (head, stated) = copy.split_at_mut(GROUP_HEADER - 8);
    let stated: [u8; 8] = (*stated).try_into().expect("a check has 8 bytes");
    let made = check(salt, head, place);
    if if wrong { made == stated } else { near(&made, &stated) } {
        return GroupHeader::unchecked(&copy).ok();
    }
    for i in (8..GROUP_HEADER - 8).filter(|_| !wrong) {
        let was = head[i];
        for value in 0..=u8::MAX {
            head[i] = value;
            if check(salt, head, place) == stated {
                return GroupHeader::unchecked(&copy).ok();
            }
        }
        head[i] = was;
    }
    None
}

type Walked = Vec<(usize, RunHeader, Hash)>;

/// The runs of a group, if they fill it and have the positions that its header says.
fn walk(data: &[u8], at: usize, trailer: usize, header: &GroupHeader) -> Option<Walked> {
    let (mut place, mut position) = (at + GROUP_HEADER, header.first_position);
    let bytes = data.get(..trailer)?;
    let mut runs = Vec::with_capacity(header.runs.min(1 << 16) as usize);
    for _ in 0..header.runs {
        let run = RunHeader::decode(bytes.get(place..)?).ok().filter(|run| run.first_position == position)?;
        let end = place + run.length as usize;
        runs.push((place, run, *blake3::hash(&bytes[place..end]).as_bytes()));
        (place, position) = (end, position + run.records as u64);
    }
    (place == trailer && position == header.first_position + header.records as u64).then_some(runs)
}

/// The chain hash that a group's bytes make.
fn chain(header: &GroupHeader, runs: &Walked) -> Hash {
    let mut bytes = [0; GROUP_HEADER];
    header.encode(&mut bytes, &[0; 32], 0);
    let mut body = blake3::Hasher::new();
    for (_, _, hash) in runs {
        body.update(hash);
    }
    GroupHeader::chain(&bytes, &header.previous, body.finalize().as_bytes())
}

/// What looks like a run, at every byte; behind one that is proven it goes on at its end.
fn look(
    data: &[u8],
    within: Range<usize>,
    positions: Range<u64>,
    mut piece: impl FnMut(usize, &RunHeader, Hash) -> Piece,
) -> Vec<Piece> {
    let (mut at, mut out) = (within.start, Vec::new());
    while at + RUN_HEADER <= within.end {
        let first = u64_at(data, at + 24);
        let run = if positions.contains(&first) { RunHeader::decode(&data[at..within.end]).ok() } else { None };
        let Some(run) = run.filter(|run| run.records as u64 <= positions.end - first) else {
            at += 1;
            continue;
        };
        let length = run.length as usize;
        let found = piece(at, &run, *blake3::hash(&data[at..at + length]).as_bytes());
        at += if found.proven { length } else { 1 };
        out.push(found);
    }
    out
}
