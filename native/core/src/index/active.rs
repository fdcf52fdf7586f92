//! The index of the segment that is appended to.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::{
    Column, GroupEntry, Lookup, RunEntry, STRIDE, StreamEntry, last_at_most, partition, run_number, share, unpack,
};
use crate::format::{Checked, Damage, SegmentHeader, ensure};

/// Stream numbers are ours and dense, so nobody can choose ones that collide.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Streams<T> = HashMap<u32, T, BuildHasherDefault<Spread>>;

/// A stream's runs in order, and between which offsets they lie.
struct StreamRuns {
    runs: Vec<u32>,
    first: u64,
    next: u64,
}

/// Groups are appended whole and in order. Positions are contiguous from the segment's first, and
/// the offsets of each stream rise. `records` is published after all columns, so
/// a position that is visible has its run. Look-ups by position, group and time take no lock.
pub struct SegmentIndex {
    header: SegmentHeader,
    runs: Column<3>,
    groups: Column<2>,
    /// The number of the run at each multiple of `STRIDE`.
    samples: Column<1>,
    records: AtomicU32,
    /// Who writes it is the one who appends to the columns.
    streams: RwLock<Streams<StreamRuns>>,
}

impl SegmentIndex {
    pub fn new(header: &SegmentHeader) -> Self {
        Self {
            header: *header,
            runs: Column::default(),
            groups: Column::default(),
            samples: Column::default(),
            records: AtomicU32::new(0),
            streams: RwLock::default(),
        }
    }

    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Adds the next group. What is refused changes nothing.
    pub fn append_group(&self, group: &GroupEntry, runs: &[RunEntry]) -> Checked<()> {
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        self.judge(group)?;
        let ends = self.judge_runs(group, runs, &streams)?;
        let first = self.header.first_position;
        let first_run = self.runs.len() as u32;
        self.runs.extend(runs.iter().map(|run| run.row(first)));
        self.groups.extend([group.row(first)]);
        for (number, run) in (first_run as u64..).zip(runs) {
            let end = (run.position - first) + run.records as u64;
            let count = end.div_ceil(STRIDE as u64) as usize - self.samples.len();
            self.samples.extend(std::iter::repeat_n([number], count));
        }
        let records: u32 = runs.iter().map(|run| run.records).sum();
        self.records.fetch_add(records, Ordering::Release);
        for (number, run) in (first_run..).zip(runs) {
            let entry = streams.entry(run.stream).or_insert_with(|| StreamRuns {
                runs: Vec::new(),
                first: run.offset,
                next: run.offset,
            });
            entry.runs.push(number);
        }
        for (stream, next) in ends {
            streams.entry(stream).and_modify(|entry| entry.next = next);
        }
        Ok(())
    }

    /// Where the offsets of each stream that has a run here end.
    pub fn ends(&self) -> Vec<(u32, u64)> {
        self.streams().iter().map(|(&stream, runs)| (stream, runs.next)).collect()
    }

    fn judge(&self, group: &GroupEntry) -> Checked<()> {
        let count = self.groups.len();
        let number = self.header.first_group.checked_add(count as u64);
        ensure(number == Some(group.number), "a group's number is not the next one")?;
        ensure(group.position == self.next_position(), "a group's position is not the next one")?;
        let Some(last) = count.checked_sub(1).and_then(|last| self.group(last)) else {
            return Ok(());
        };
        ensure(group.timestamp >= last.timestamp, "a group is older than the one before")?;
        ensure(group.place > last.place, "a group's place is not behind the one before")
    }

    /// Where each stream's offsets end with these runs.
    fn judge_runs(
        &self,
        group: &GroupEntry,
        runs: &[RunEntry],
        streams: &Streams<StreamRuns>,
    ) -> Checked<Streams<u64>> {
        let mut ends = Streams::default();
        let (mut position, mut place) = (group.position, group.place);
        for run in runs {
            ensure(run.records > 0, "a run has no records")?;
            ensure(run.position == position, "a run's position is not the next one")?;
            ensure(run.place >= place, "a run's place is not behind the one before")?;
            let expected = ends.get(&run.stream).copied();
            let expected = expected.or_else(|| streams.get(&run.stream).map(|stream| stream.next));
            ensure(expected.is_none_or(|next| next <= run.offset), "a stream's offsets go back")?;
            let next = run.offset.checked_add(run.records as u64);
            ends.insert(run.stream, next.ok_or(Damage("a stream's offsets run over"))?);
            let end = run.place.checked_add(run.length);
            place = end.ok_or(Damage("a run's place is beyond 4 GiB"))?;
            position += run.records as u64;
        }
        let records = position - self.header.first_position;
        ensure(records <= u32::MAX as u64, "a segment has too many records")?;
        Ok(ends)
    }

    fn streams(&self) -> RwLockReadGuard<'_, Streams<StreamRuns>> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> u32 {
        self.records.load(Ordering::Acquire)
    }

    /// The position relative to the first, and how many there are.
    fn relative(&self, position: u64) -> Option<(u32, u32)> {
        let relative = position.checked_sub(self.header.first_position)?;
        let records = self.records();
        (relative < records as u64).then_some((relative as u32, records))
    }

    fn run(&self, number: usize) -> Option<RunEntry> {
        // Taken before the next run is looked for: if there is none yet, this one ends here.
        let records = self.records();
        let row = self.runs.get(number)?;
        let end = self.runs.get(number + 1).map_or(records, |next| unpack(next[0]).0);
        Some(RunEntry::from_row(self.header.first_position, row, end))
    }

    fn group(&self, index: usize) -> Option<GroupEntry> {
        let number = self.header.first_group + index as u64;
        Some(GroupEntry::from_row(number, self.header.first_position, self.groups.get(index)?))
    }

    /// The index as a file, without the MAC around it. Groups wait until it is made.
    pub fn encode(&self) -> Vec<u8> {
        let streams = self.streams();
        let mut sorted: Vec<_> = streams.iter().collect();
        sorted.sort_unstable_by_key(|(number, _)| **number);
        let counts = [self.groups.len(), self.runs.len(), self.records() as usize, sorted.len()];
        let mut out = super::closed::header(&self.header, counts.map(|count| count as u32));
        put_rows(&mut out, self.groups.iter());
        put_rows(&mut out, self.runs.iter());
        let mut begin = 0;
        put_rows(
            &mut out,
            sorted.iter().map(|(number, stream)| {
                begin += stream.runs.len() as u32;
                let begin = begin - stream.runs.len() as u32;
                [super::pack(**number, begin), stream.first, stream.next]
            }),
        );
        for number in sorted.iter().flat_map(|(_, stream)| &stream.runs) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out
    }
}

fn put_rows<const N: usize>(out: &mut Vec<u8>, rows: impl Iterator<Item = [u64; N]>) {
    for word in rows.flatten() {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

impl Lookup for SegmentIndex {
    fn size(&self) -> usize {
        // A run is in a list of its stream too.
        self.runs.size() + self.groups.size() + self.samples.size() + 4 * self.runs.len()
    }

    fn extent(&self) -> (u64, u64, u64) {
        let lengths = self.runs.iter().map(|row| unpack(row[1]).0 as u64);
        (self.groups.len() as u64, self.runs.len() as u64, lengths.sum())
    }

    fn first_position(&self) -> u64 {
        self.header.first_position
    }

    fn next_position(&self) -> u64 {
        self.header.first_position + self.records() as u64
    }

    fn run_of_position(&self, position: u64) -> Option<RunEntry> {
        let (relative, _) = self.relative(position)?;
        let sample = |at| self.samples.get(at).map(|[number]| number as usize);
        let first = |at| self.runs.get(at).map_or(u64::MAX, |row| unpack(row[0]).0 as u64);
        self.run(run_number(relative, self.runs.len(), sample, first)?)
    }

    fn ordinal(&self, stream: u32, offset: u64) -> Option<usize> {
        let streams = self.streams();
        let entry = streams.get(&stream)?;
        if offset < entry.first || offset >= entry.next {
            return None;
        }
        let count = entry.runs.len();
        let guess = share(offset - entry.first, entry.next - entry.first, count);
        last_at_most(0..count, guess, offset, |at| {
            self.runs.get(entry.runs[at] as usize).map_or(u64::MAX, |row| row[2])
        })
    }

    fn run_of_stream(&self, stream: u32, ordinal: usize) -> Option<RunEntry> {
        let number = *self.streams().get(&stream)?.runs.get(ordinal)?;
        self.run(number as usize)
    }

    fn group_of_number(&self, number: u64) -> Option<GroupEntry> {
        self.group(usize::try_from(number.checked_sub(self.header.first_group)?).ok()?)
    }

    fn group_of_position(&self, position: u64) -> Option<GroupEntry> {
        let (relative, records) = self.relative(position)?;
        let (relative, count) = (relative as u64, self.groups.len());
        let first = |at| self.groups.get(at).map_or(u64::MAX, |row| unpack(row[0]).0 as u64);
        let guess = share(relative, records as u64, count);
        self.group(last_at_most(0..count, guess, relative, first)?)
    }

    fn group_at_or_after(&self, timestamp: u64) -> Option<GroupEntry> {
        let older = |at| self.groups.get(at).is_some_and(|row| row[1] < timestamp);
        self.group(partition(0..self.groups.len(), older))
    }

    fn stream(&self, stream: u32) -> Option<StreamEntry> {
        let streams = self.streams();
        let entry = streams.get(&stream)?;
        Some(StreamEntry { stream, first: entry.first, next: entry.next })
    }

    fn streams(&self) -> Vec<StreamEntry> {
        let mut out: Vec<_> = SegmentIndex::streams(self)
            .iter()
            .map(|(&stream, entry)| StreamEntry { stream, first: entry.first, next: entry.next })
            .collect();
        out.sort_unstable_by_key(|entry| entry.stream);
        out
    }
}
