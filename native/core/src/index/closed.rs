//! The index of a closed segment, read where its bytes lie. `docs/format.md` draws it.

use std::ops::Range;

use super::{GroupEntry, Lookup, RunEntry, STRIDE, StreamEntry, last_at_most, run_number, share, unpack};
use crate::format::{Checked, Damage, SegmentHeader, ensure, put, u32_at};

const MAGIC: &[u8; 8] = b"KIMBIDX1";
const HEADER: usize = 96;

/// The header of an index over so many groups, runs, records and streams.
pub(super) fn header(segment: &SegmentHeader, counts: [u32; 4]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    put(&mut out, 0, *MAGIC);
    put(&mut out, 8, segment.database);
    put(&mut out, 24, segment.number.to_le_bytes());
    put(&mut out, 32, segment.first_group.to_le_bytes());
    put(&mut out, 40, segment.first_position.to_le_bytes());
    put(&mut out, 48, segment.salt);
    for (at, count) in (80..).step_by(4).zip(counts) {
        put(&mut out, at, count.to_le_bytes());
    }
    out
}

/// Decoding looked at every row: all tables lie in the bytes, sorted ones are sorted, runs cover
/// the records without a gap, and the streams' runs are exactly the runs.
pub struct ClosedIndex {
    bytes: Box<[u8]>,
    /// Where each table is in the bytes.
    groups: Range<usize>,
    runs: Range<usize>,
    streams: Range<usize>,
    sorted: Range<usize>,
    /// The number of the run at each multiple of `STRIDE`; made when decoding.
    samples: Vec<u32>,
    first_group: u64,
    first_position: u64,
    records: u32,
}

fn words<const N: usize, const BYTES: usize>(row: &[u8; BYTES]) -> [u64; N] {
    let words = row.as_chunks().0;
    std::array::from_fn(|at| u64::from_le_bytes(words[at]))
}

fn position(row: &[u8]) -> u32 {
    u32_at(row, 0)
}

fn place(row: &[u8]) -> u32 {
    u32_at(row, 4)
}

impl ClosedIndex {
    /// How long the index of this segment is, by its beginning; None if that is not it.
    pub fn length(beginning: &[u8], segment: &SegmentHeader) -> Option<usize> {
        let beginning = beginning.get(..HEADER)?;
        let counts = [80, 84, 88, 92].map(|at| u32_at(beginning, at));
        let [groups, runs, _, streams] = counts.map(u64::from);
        let length = HEADER as u64 + 16 * groups + 28 * runs + 24 * streams;
        // A segment is at most 2 GiB, a run at least 89 bytes, and a group a block.
        (beginning == header(segment, counts) && length <= 1 << 30).then_some(length as usize)
    }

    /// The index of the segment with this header, whose salt says where its places are valid.
    pub fn decode(bytes: &[u8], segment: &SegmentHeader) -> Checked<Self> {
        ensure(bytes.len() >= HEADER, "an index is cut short")?;
        ensure(bytes[..8] == *MAGIC, "this is not an index")?;
        let counts = [80, 84, 88, 92].map(|at| u32_at(bytes, at));
        let same = bytes[..HEADER] == header(segment, counts);
        ensure(same, "an index is of another segment")?;
        let [groups, runs, records, streams] = counts.map(u64::from);
        let mut end = HEADER as u64;
        let tables = [16 * groups, 24 * runs, 24 * streams, 4 * runs].map(|size| {
            end += size;
            (end - size) as usize..end as usize
        });
        ensure(bytes.len() as u64 == end, "an index has another length than it says")?;
        let (first_group, first_position) = (segment.first_group, segment.first_position);
        ensure(first_group.checked_add(groups).is_some(), "group numbers run over")?;
        ensure(first_position.checked_add(records).is_some(), "positions run over")?;
        let [groups, runs, streams, sorted] = tables;
        let (bytes, samples, records) = (bytes.into(), Vec::new(), records as u32);
        let mut index = Self { bytes, groups, runs, streams, sorted, samples, first_group, first_position, records };
        index.judge_groups()?;
        index.judge_runs()?;
        index.judge_streams()?;
        index.samples = index.sample();
        Ok(index)
    }

    fn judge_groups(&self) -> Checked<()> {
        let rows = self.groups();
        let follows = |a: &[u8; 16], b: &[u8; 16]| {
            let (a_time, b_time) = (words::<2, 16>(a)[1], words::<2, 16>(b)[1]);
            position(a) <= position(b) && place(a) < place(b) && a_time <= b_time
        };
        ensure(rows.is_sorted_by(follows), "an index has groups out of order")?;
        let (first, last) = (rows.first(), rows.last());
        let within = first.is_none_or(|row| position(row) == 0) && last.is_none_or(|row| position(row) <= self.records);
        ensure(within, "an index has groups in wrong positions")
    }

    fn judge_runs(&self) -> Checked<()> {
        let rows = self.runs();
        ensure(rows.is_empty() == (self.records == 0), "an index has records in no run")?;
        ensure(rows.is_empty() || !self.groups().is_empty(), "an index has runs in no group")?;
        ensure(rows.first().is_none_or(|row| position(row) == 0), "an index misses a first run")?;
        let mut end = 0;
        for (row, next) in rows.iter().zip(self.ends()) {
            ensure(position(row) < next, "an index has runs in wrong positions")?;
            ensure(place(row) >= end, "an index has runs in wrong places")?;
            end = place(row).checked_add(u32_at(row, 8)).ok_or(Damage("a run ends nowhere"))?;
        }
        Ok(())
    }

    fn sample(&self) -> Vec<u32> {
        let mut samples = Vec::new();
        for (number, end) in (0..).zip(self.ends()) {
            samples.resize(end.div_ceil(STRIDE) as usize, number);
        }
        samples
    }

    /// The positions where runs end.
    fn ends(&self) -> impl Iterator<Item = u32> {
        self.runs().iter().skip(1).map(|row| position(row)).chain([self.records])
    }

    fn judge_streams(&self) -> Checked<()> {
        let rows = self.streams();
        let ascending = rows.is_sorted_by(|a, b| u32_at(a, 0) < u32_at(b, 0));
        ensure(ascending, "an index has streams out of order")?;
        let mut begin = 0;
        for at in 0..rows.len() {
            let part = self.part(at);
            ensure(part.start == begin && part.end > begin, "an index has a stream without runs")?;
            begin = part.end;
            let runs = self.sorted().get(part);
            self.judge_stream(at, runs.ok_or(Damage("an index has a stream of too many runs"))?)?;
        }
        ensure(begin == self.sorted().len(), "an index has runs of no stream")
    }

    fn judge_stream(&self, at: usize, numbers: &[[u8; 4]]) -> Checked<()> {
        let entry = self.entry(at);
        let (mut offset, mut most) = (entry.first, entry.first);
        let numbers = numbers.iter().map(|number| u32::from_le_bytes(*number));
        ensure(numbers.clone().is_sorted_by(|a, b| a < b), "a stream's runs are out of order")?;
        for number in numbers {
            let run = self.run(number as usize);
            // The first run has the first offset; before others there may be gaps.
            let run = run.filter(|run| run.stream == entry.stream && (offset..=most).contains(&run.offset));
            let run = run.ok_or(Damage("a stream's runs do not follow each other"))?;
            let next = run.offset.checked_add(run.records as u64);
            offset = next.ok_or(Damage("a stream's offsets run over"))?;
            most = u64::MAX;
        }
        ensure(offset == entry.next, "a stream ends elsewhere")
    }

    fn groups(&self) -> &[[u8; 16]] {
        self.bytes[self.groups.clone()].as_chunks().0
    }

    fn runs(&self) -> &[[u8; 24]] {
        self.bytes[self.runs.clone()].as_chunks().0
    }

    fn streams(&self) -> &[[u8; 24]] {
        self.bytes[self.streams.clone()].as_chunks().0
    }

    fn sorted(&self) -> &[[u8; 4]] {
        self.bytes[self.sorted.clone()].as_chunks().0
    }

    fn run(&self, number: usize) -> Option<RunEntry> {
        let rows = self.runs();
        let row = rows.get(number)?;
        let end = rows.get(number + 1).map_or(self.records, |next| position(next));
        Some(RunEntry::from_row(self.first_position, words(row), end))
    }

    fn group(&self, index: usize) -> Option<GroupEntry> {
        let row = words(self.groups().get(index)?);
        Some(GroupEntry::from_row(self.first_group + index as u64, self.first_position, row))
    }

    /// Which of the sorted runs are of the stream in this row.
    fn part(&self, at: usize) -> Range<usize> {
        let rows = self.streams();
        let begin = |row: &[u8; 24]| u32_at(row, 4) as usize;
        begin(&rows[at])..rows.get(at + 1).map_or(self.sorted().len(), begin)
    }

    fn entry(&self, at: usize) -> StreamEntry {
        let [number, first, next] = words(&self.streams()[at]);
        StreamEntry { stream: unpack(number).0, first, next }
    }

    fn find(&self, stream: u32) -> Option<usize> {
        self.streams().binary_search_by_key(&stream, |row| u32_at(row, 0)).ok()
    }

    fn relative(&self, position: u64) -> Option<u32> {
        let relative = position.checked_sub(self.first_position)?;
        (relative < self.records as u64).then_some(relative as u32)
    }
}

impl Lookup for ClosedIndex {
    fn size(&self) -> usize {
        self.bytes.len() + size_of_val(&*self.samples)
    }

    fn extent(&self) -> (u64, u64, u64) {
        let lengths = self.runs().iter().map(|row| u32_at(row, 8) as u64);
        (self.groups().len() as u64, self.runs().len() as u64, lengths.sum())
    }

    fn first_position(&self) -> u64 {
        self.first_position
    }

    fn next_position(&self) -> u64 {
        self.first_position + self.records as u64
    }

    fn run_of_position(&self, position: u64) -> Option<RunEntry> {
        let relative = self.relative(position)?;
        let runs = self.runs();
        let sample = |at: usize| self.samples.get(at).map(|&number| number as usize);
        let first = |at: usize| u32_at(&runs[at], 0) as u64;
        self.run(run_number(relative, runs.len(), sample, first)?)
    }

    fn ordinal(&self, stream: u32, offset: u64) -> Option<usize> {
        let at = self.find(stream)?;
        let entry = self.entry(at);
        if offset < entry.first || offset >= entry.next {
            return None;
        }
        let (runs, numbers) = (self.runs(), &self.sorted()[self.part(at)]);
        let guess = share(offset - entry.first, entry.next - entry.first, numbers.len());
        last_at_most(0..numbers.len(), guess, offset, |at| {
            words::<3, 24>(&runs[u32::from_le_bytes(numbers[at]) as usize])[2]
        })
    }

    fn run_of_stream(&self, stream: u32, ordinal: usize) -> Option<RunEntry> {
        let numbers = &self.sorted()[self.part(self.find(stream)?)];
        self.run(u32::from_le_bytes(*numbers.get(ordinal)?) as usize)
    }

    fn group_of_number(&self, number: u64) -> Option<GroupEntry> {
        self.group(usize::try_from(number.checked_sub(self.first_group)?).ok()?)
    }

    fn group_of_position(&self, position: u64) -> Option<GroupEntry> {
        let (relative, groups) = (self.relative(position)? as u64, self.groups());
        let guess = share(relative, self.records as u64, groups.len());
        let first = |at: usize| u32_at(&groups[at], 0) as u64;
        self.group(last_at_most(0..groups.len(), guess, relative, first)?)
    }

    fn group_at_or_after(&self, timestamp: u64) -> Option<GroupEntry> {
        self.group(self.groups().partition_point(|row| words::<2, 16>(row)[1] < timestamp))
    }

    fn stream(&self, stream: u32) -> Option<StreamEntry> {
        Some(self.entry(self.find(stream)?))
    }

    fn streams(&self) -> Vec<StreamEntry> {
        (0..ClosedIndex::streams(self).len()).map(|at| self.entry(at)).collect()
    }
}
