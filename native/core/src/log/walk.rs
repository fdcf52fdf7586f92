//! A closed segment from its first group to its last, each checked whole; nothing else of the log is asked or changed.

use super::replay::{Replayed, Stop, find};
use crate::format::{Checked, SegmentHeader, ensure};
use crate::group::{self, Database, Expected, Group};
use crate::keys::TAG;

/// Goes on from piece to piece: every check, the chain, the tags and the padding are right up to where it is.
pub struct Walk {
    header: SegmentHeader,
    expected: Expected,
    closed: bool,
}

impl Walk {
    pub fn new(header: SegmentHeader) -> Self {
        let (number, position) = (header.first_group, header.first_position);
        let expected = Expected { number, position, previous: header.chain(), timestamp: 0 };
        Self { header, expected, closed: false }
    }

    /// The groups in `data`, which starts at `place` of the segment, are given to `each` with their bytes.
    pub fn take<'a>(
        &mut self,
        database: &Database,
        place: u64,
        data: &'a [u8],
        mut each: impl FnMut(&Group<'a>, &'a [u8]) -> Checked<()>,
    ) -> Replayed {
        let tag = if database.tagged { TAG } else { 0 };
        let (frames, stop) = find(&self.header, tag, place, data, u64::MAX, self.expected);
        let mut next = place;
        for frame in &frames {
            let salt = &self.header.salt;
            let opened = group::open(database, frame.header, &frame.expected, salt, frame.place, frame.bytes);
            let group = match opened.and_then(|group| each(&group, frame.bytes).map(|()| group)) {
                Ok(group) => group,
                Err(damage) => return Replayed { place: frame.place, stop: Stop::Bad(damage) },
            };
            let header = &group.header;
            self.expected = Expected {
                number: header.number + 1,
                position: header.first_position + header.records as u64,
                previous: group.chain,
                timestamp: header.timestamp,
            };
            next = frame.place + frame.bytes.len() as u64;
        }
        self.closed = stop == Stop::Closed;
        Replayed { place: next, stop }
    }

    /// What is next, or behind the end.
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Whether it ended, and the segment with this header goes on where it did.
    pub fn leads_to(&self, after: &SegmentHeader) -> Checked<()> {
        ensure(self.closed, "its closing group is not there")?;
        let next = &self.expected;
        let follows = (after.first_group, after.first_position, after.before);
        ensure(follows == (next.number, next.position, next.previous), "it does not end where the next one begins")
    }
}
