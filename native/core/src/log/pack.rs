//! A segment with other padding between its groups: the same groups, under the checks of another salt.

use std::io;

use super::replay::Replayed;
use super::segment::{append, entry};
use super::walk::Walk;
use super::{Log, Segment};
use crate::format::{Checked, GROUP_HEADER, Hash, Packed, SEGMENT_HEADER, SegmentHeader, packed, padded, put};
use crate::group::{self, Database, Expected, Group};
use crate::index::SegmentIndex;
use crate::keys::TAG;

/// Groups go from the one file to the other in their order: what is damaged is never packed.
pub struct Packing {
    walk: Walk,
    new: New,
}

struct New {
    header: SegmentHeader,
    index: SegmentIndex,
    /// Where the last group ends, and what each takes of the file.
    end: u64,
    step: fn(usize) -> usize,
}

impl Packing {
    pub fn new(segment: SegmentHeader, salt: Hash) -> Self {
        Self::under(segment, SegmentHeader { salt, ..segment }, packed)
    }

    /// The way back, for a segment that loses its end.
    pub fn unpacking(segment: SegmentHeader, salt: Hash) -> Self {
        Self::under(segment, SegmentHeader { salt, packed: None, ..segment }, padded)
    }

    fn under(segment: SegmentHeader, header: SegmentHeader, step: fn(usize) -> usize) -> Self {
        let new = New { header, index: SegmentIndex::new(&header), end: SEGMENT_HEADER as u64, step };
        Self { walk: Walk::new(segment), new }
    }

    /// The new file's header, without what only a packed one has.
    pub fn header(&self) -> &SegmentHeader {
        &self.new.header
    }

    /// The groups in `data`, which starts at `place` of the segment, as they go behind those before them.
    pub fn take(&mut self, database: &Database, place: u64, data: &[u8]) -> (Replayed, Vec<u8>) {
        let tag = if database.tagged { TAG } else { 0 };
        let (new, mut out) = (&mut self.new, Vec::new());
        let replayed = self.walk.take(database, place, data, |group, bytes| new.put(group, bytes, tag, &mut out));
        (replayed, out)
    }

    /// What is next of the segment.
    pub fn expected(&self) -> &Expected {
        self.walk.expected()
    }

    /// The new file's header, and its index without the MAC around it, when all groups were taken; `after` is the
    /// header of the segment behind this one.
    pub fn finish(&self, after: &SegmentHeader) -> Checked<(Vec<u8>, Vec<u8>)> {
        self.walk.leads_to(after)?;
        let last = self.walk.expected();
        let packed = Packed { length: self.new.end, last_group: last.number - 1, last_chain: last.previous };
        let header = SegmentHeader { packed: Some(packed), ..self.new.header };
        Ok((header.encode(), self.new.index.encode()))
    }
}

impl New {
    fn put(&mut self, group: &Group, bytes: &[u8], tag: usize, out: &mut Vec<u8>) -> Checked<()> {
        let (header, salt) = (&group.header, &self.header.salt);
        let (length, runs) = (header.length as usize, group.runs.len());
        let place = (self.step)(self.end as usize) as u64;
        out.resize(out.len() + (place - self.end) as usize, 0);
        let at = out.len();
        out.extend(&bytes[..length]);
        let moved = &mut out[at..];
        header.encode(&mut moved[..GROUP_HEADER], salt, place);
        let checks = length - tag - 32 - 8 * runs;
        let mut entries = Vec::with_capacity(runs);
        for (i, run) in group.runs.iter().enumerate() {
            let place = place + (run.place - group.place);
            put(moved, checks + 8 * i, group::check_of_run(salt, place, run.bytes));
            entries.push(entry(&run.header, place));
        }
        append(&self.index, header, place, &entries)?;
        self.end = place + length as u64;
        Ok(())
    }
}

impl Log {
    fn segment(&self, number: u64) -> Option<std::sync::Arc<Segment>> {
        self.segments.read().unwrap().get(&number).cloned()
    }

    /// How long a closed segment is at most when it is packed; None if it is, or there is none of this number.
    pub fn packed_length(&self, number: u64) -> io::Result<Option<u64>> {
        let Some(segment) = self.segment(number).filter(|segment| segment.header.packed.is_none()) else {
            return Ok(None);
        };
        let (groups, runs, bytes) = self.index(&segment)?.lookup(&segment)?.extent();
        let tag = if self.database.tagged { TAG as u64 } else { 0 };
        Ok(Some(SEGMENT_HEADER as u64 + groups * (GROUP_HEADER as u64 + 32 + tag + 7) + 8 * runs + bytes))
    }

    /// The headers of a closed segment and of the one behind it; None if there is none of this number.
    pub fn headers(&self, number: u64) -> Option<(SegmentHeader, SegmentHeader)> {
        Some((self.segment(number)?.header, self.segment(number + 1)?.header))
    }
}
