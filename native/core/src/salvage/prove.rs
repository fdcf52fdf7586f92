//! From what looks like a run to records that are the log's.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{Piece, Salvage};
use crate::format::{HASHES_HEADER, Hash, RunHeader};
use crate::group::{Opened, Run, Stream, hash_leaves, open_damaged, open_run};
use crate::log::is_unreadable;
use crate::record::{Batch, Record};
use crate::tree::stored;

/// Neighbouring records of one stream.
pub struct Fragment {
    pub position: u64,
    pub stream: u32,
    pub offset: u64,
    /// None if nothing is left that says it.
    pub timestamp: Option<u64>,
    records: usize,
    /// None if they do not open: there is no key.
    pub batch: Option<Batch>,
}

impl Fragment {
    fn of(opened: &Opened, records: Range<usize>, timestamp: Option<u64>) -> Self {
        let (header, first) = (&opened.header, records.start as u64);
        let mut batch = Batch::default();
        for i in records.clone() {
            batch.bytes.extend(opened.record(i));
            batch.ends.push(batch.bytes.len() as u32);
        }
        let (position, offset) = (header.first_position + first, header.first_offset + first);
        Self { position, stream: header.stream, offset, timestamp, records: records.len(), batch: Some(batch) }
    }

    pub fn records(&self) -> usize {
        self.records
    }

    pub fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let batch = self.batch.iter();
        batch.flat_map(|batch| {
            (0..batch.ends.len()).filter_map(|i| Some(Record::decode(batch.record(i)).ok()?.0.payload))
        })
    }

    /// What it has of these positions.
    pub fn between(self, from: u64, upto: u64) -> Option<Self> {
        let first = from.max(self.position);
        let end = upto.min(self.position + self.records as u64);
        if first >= end {
            return None;
        }
        let (before, records) = ((first - self.position) as usize, (end - first) as usize);
        let batch = self.batch.map(|batch| {
            let mut part = Batch::default();
            for i in before..before + records {
                part.bytes.extend(batch.record(i));
                part.ends.push(part.bytes.len() as u32);
            }
            part
        });
        Some(Self { position: first, offset: self.offset + before as u64, records, batch, ..self })
    }
}

impl Salvage {
    /// The records in what looks like a run that are the log's.
    pub(super) fn open(&self, piece: &Piece) -> io::Result<Vec<Fragment>> {
        let bytes = match self.sources[piece.file as usize].read(piece.place, piece.length as usize) {
            Ok(bytes) => bytes,
            Err(error) if is_unreadable(&error) => return Ok(vec![]),
            Err(error) => return Err(error),
        };
        let Ok(header) = RunHeader::decode(&bytes) else { return Ok(vec![]) };
        let run = Run { header, place: piece.place, bytes: &bytes };
        let known = self.streams.get(&header.stream).map(|known| known.stream.clone());
        let stream = known.unwrap_or_else(|| Arc::new(Stream::new(header.stream, [0; 32], header.encrypted(), None)));
        let opened = open_run(&self.database, &stream, &run);
        match opened {
            Ok(Some(opened)) if piece.proven || header.encrypted() => {
                let timestamp = self.time_of(piece, &stream, &opened)?;
                Ok(vec![Fragment::of(&opened, 0..opened.count(), timestamp)])
            }
            _ if piece.proven => Ok(vec![Fragment {
                position: piece.position,
                stream: piece.stream,
                offset: header.first_offset,
                timestamp: self.known_time(piece),
                records: piece.records as usize,
                batch: None,
            }]),
            _ => self.by_leaves(piece, &stream, &run),
        }
    }

    /// Records of a plain run that make the leaves which the tree has.
    fn by_leaves(&self, piece: &Piece, stream: &Stream, run: &Run) -> io::Result<Vec<Fragment>> {
        let Some(opened) = open_damaged(run) else { return Ok(vec![]) };
        let wanted = self.leaves(piece.position, opened.count())?;
        for time in [self.known_time(piece), piece.guess].into_iter().flatten() {
            let made = hash_leaves(&[opened.leaves(stream, time)]);
            let same: Vec<bool> = made.iter().zip(&wanted).map(|(one, other)| one == other).collect();
            let mut out = Vec::new();
            let mut from = 0;
            for part in same.chunk_by(|one, other| one == other) {
                if part[0] {
                    out.push(Fragment::of(&opened, from..from + part.len(), Some(time)));
                }
                from += part.len();
            }
            if !out.is_empty() {
                return Ok(out);
            }
        }
        Ok(vec![])
    }

    /// When its group was: as the group's header says, or the index, or a damaged header that the tree agrees with.
    fn time_of(&self, piece: &Piece, stream: &Stream, opened: &Opened) -> io::Result<Option<u64>> {
        let known = self.known_time(piece);
        let (None, Some(guess)) = (known, piece.guess) else { return Ok(known) };
        let wanted = self.leaves(piece.position, 1)?;
        let made = hash_leaves(&[opened.leaf_of(stream, guess, 0)]);
        Ok((made == wanted).then_some(guess))
    }

    fn known_time(&self, piece: &Piece) -> Option<u64> {
        let group = piece.group.map(|group| &self.groups[group as usize]).filter(|group| group.sure);
        let indexed = || *self.times.range(..=piece.position).next_back()?.1;
        group.map(|group| group.header.timestamp).or_else(indexed)
    }

    /// What the tree has at these positions; fewer where it ends or the disk does not give it back.
    fn leaves(&self, position: u64, count: usize) -> io::Result<Vec<Hash>> {
        let Some(hashes) = &self.hashes else { return Ok(vec![]) };
        if position.checked_add(count as u64).is_none_or(|end| end >= 1 << 58) {
            return Ok(vec![]);
        }
        let place = |position: u64| HASHES_HEADER as u64 + 32 * stored(position);
        let length = (place(position + count as u64) - place(position)) as usize;
        let bytes = match hashes.read(place(position), length) {
            Err(error) if is_unreadable(&error) => return self.leaves_one_by_one(position, count),
            bytes => bytes?,
        };
        let at = |i: u64| (place(position + i) - place(position)) as usize;
        let leaf = |i| bytes.get(at(i)..at(i) + 32).and_then(|leaf| leaf.try_into().ok());
        Ok((0..count as u64).map_while(leaf).collect())
    }

    /// The same where some of it cannot be read: zeros are no leaf.
    fn leaves_one_by_one(&self, position: u64, count: usize) -> io::Result<Vec<Hash>> {
        let hashes = self.hashes.as_ref().expect("they were read before");
        let mut out = Vec::with_capacity(count);
        for position in position..position + count as u64 {
            out.push(match hashes.read(HASHES_HEADER as u64 + 32 * stored(position), 32) {
                Ok(leaf) => leaf.try_into().unwrap_or_default(),
                Err(error) if is_unreadable(&error) => [0; 32],
                Err(error) => return Err(error),
            });
        }
        Ok(out)
    }
}
