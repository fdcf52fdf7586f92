//! Where the runs of a segment are: by position, by stream and offset, by group, by time.

use std::ops::Range;

mod active;
mod closed;
mod column;
#[cfg(test)]
mod tests;

pub use active::SegmentIndex;
pub use closed::ClosedIndex;
pub use column::Column;

/// A run; its positions and its offsets are contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunEntry {
    pub position: u64,
    pub offset: u64,
    pub stream: u32,
    pub records: u32,
    /// In the segment's file, and its length there.
    pub place: u32,
    pub length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupEntry {
    pub number: u64,
    pub position: u64,
    pub timestamp: u64,
    pub place: u32,
}

/// What a segment has of a stream: the offsets from `first` up to `next`, but for gaps between runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEntry {
    pub stream: u32,
    pub first: u64,
    pub next: u64,
}

/// The look-ups that every form of a segment's index answers. The runs of a stream are numbered from 0 in each
/// segment: that number is a run's *ordinal*.
pub trait Lookup: Send + Sync {
    /// Bytes of memory, about.
    fn size(&self) -> usize;

    /// Groups, runs, and the bytes of all runs.
    fn extent(&self) -> (u64, u64, u64);

    fn first_position(&self) -> u64;

    /// The position after the segment's last.
    fn next_position(&self) -> u64;

    fn run_of_position(&self, position: u64) -> Option<RunEntry>;

    /// Which of the stream's runs has this offset, or is the last before the gap that it is in.
    fn ordinal(&self, stream: u32, offset: u64) -> Option<usize>;

    fn run_of_stream(&self, stream: u32, ordinal: usize) -> Option<RunEntry>;

    fn group_of_number(&self, number: u64) -> Option<GroupEntry>;

    fn group_of_position(&self, position: u64) -> Option<GroupEntry>;

    /// The first group that is not older than this.
    fn group_at_or_after(&self, timestamp: u64) -> Option<GroupEntry>;

    fn stream(&self, stream: u32) -> Option<StreamEntry>;

    /// By number.
    fn streams(&self) -> Vec<StreamEntry>;

    fn run_of_offset(&self, stream: u32, offset: u64) -> Option<RunEntry> {
        let run = self.run_of_stream(stream, self.ordinal(stream, offset)?)?;
        (offset - run.offset < run.records as u64).then_some(run)
    }

    /// The stream's next run in this segment.
    fn run_after(&self, run: &RunEntry) -> Option<RunEntry> {
        self.run_of_stream(run.stream, self.ordinal(run.stream, run.offset)? + 1)
    }

    fn run_before(&self, run: &RunEntry) -> Option<RunEntry> {
        self.run_of_stream(run.stream, self.ordinal(run.stream, run.offset)?.checked_sub(1)?)
    }

    /// The position of the first record that is not older than this.
    fn first_position_at_or_after(&self, timestamp: u64) -> Option<u64> {
        let position = self.group_at_or_after(timestamp)?.position;
        (position < self.next_position()).then_some(position)
    }
}

/// A run's row, as in the file: u32 position ‖ u32 place ‖ u32 length ‖ u32 stream ‖ u64 offset.
/// Positions in rows are relative to the segment's first.
type RunRow = [u64; 3];

/// A group's row: u32 position ‖ u32 place ‖ u64 timestamp.
type GroupRow = [u64; 2];

fn pack(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

fn unpack(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl RunEntry {
    /// `end` is the relative position after its last.
    fn from_row(first_position: u64, row: RunRow, end: u32) -> Self {
        let ((position, place), (length, stream)) = (unpack(row[0]), unpack(row[1]));
        Self {
            position: first_position + position as u64,
            offset: row[2],
            stream,
            records: end.saturating_sub(position),
            place,
            length,
        }
    }

    fn row(&self, first_position: u64) -> RunRow {
        let position = (self.position - first_position) as u32;
        [pack(position, self.place), pack(self.length, self.stream), self.offset]
    }
}

impl GroupEntry {
    fn from_row(number: u64, first_position: u64, row: GroupRow) -> Self {
        let (position, place) = unpack(row[0]);
        Self { number, position: first_position + position as u64, timestamp: row[1], place }
    }

    fn row(&self, first_position: u64) -> GroupRow {
        [pack((self.position - first_position) as u32, self.place), self.timestamp]
    }
}

/// The first in the range that is not `before`, or its end.
fn partition(range: Range<usize>, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Of ascending keys the last in the range that is at most `target`. It is looked for from `guess`
/// at ever greater distance: what a look-up costs is the memory lines it touches.
fn last_at_most(range: Range<usize>, guess: usize, target: u64, key: impl Fn(usize) -> u64) -> Option<usize> {
    let (mut low, mut high, mut step) = (range.start, range.end, 1);
    let guess = guess.clamp(low, high);
    if guess < high && key(guess) <= target {
        low = guess + 1;
        while low + step <= high {
            if key(low + step - 1) > target {
                high = low + step - 1;
                break;
            }
            (low, step) = (low + step, 2 * step);
        }
    } else {
        high = guess;
        while low + step <= high {
            if key(high - step) <= target {
                low = high - step + 1;
                break;
            }
            (high, step) = (high - step, 2 * step);
        }
    }
    let after = partition(low..high, |at| key(at) <= target);
    after.checked_sub(1).filter(|&last| last >= range.start)
}

/// Where `part` of `whole` would be if `length` entries were evenly spaced.
fn share(part: u64, whole: u64, length: usize) -> usize {
    (part.min(u32::MAX as u64) * length as u64 / whole.max(1)) as usize
}

/// For every position that is a multiple of this, relative to the first, the number of its run is
/// kept, so that a position is looked for among few runs.
const STRIDE: u32 = 64;

/// The number of the run that has a position. `sample` has the kept numbers.
fn run_number(
    relative: u32,
    runs: usize,
    sample: impl Fn(usize) -> Option<usize>,
    first: impl Fn(usize) -> u64,
) -> Option<usize> {
    let at = (relative / STRIDE) as usize;
    let low = sample(at)?;
    let high = sample(at + 1).map_or(runs, |next| next + 1);
    let guess = low + share((relative % STRIDE) as u64, STRIDE as u64, high - low - 1);
    last_at_most(low..high, guess, relative as u64, first)
}
