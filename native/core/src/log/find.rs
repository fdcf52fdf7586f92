//! Where offsets and times are in the log.

use std::io;
use std::sync::Arc;

use super::{Failure, Log, Segment, Skipped, Span, Window};
use crate::index::StreamEntry;

impl Log {
    /// Where a stream's offset, which is durable, is in the log, as the indexes have it; of one in a gap, what says so.
    pub fn position_of(&self, stream: u32, offset: u64) -> Result<u64, Failure> {
        match self.gap_at(stream, offset) {
            Some(gap) => Ok(gap.position),
            None => self.position_near(stream, offset, 0),
        }
    }

    pub(super) fn gap_at(&self, stream: u32, offset: u64) -> Option<Skipped> {
        self.streams.read().unwrap().info.get(stream as usize)?.gap_at(offset)
    }

    /// The same, looked for in this segment before others.
    pub(super) fn position_near(&self, stream: u32, offset: u64, segment: u64) -> Result<u64, Failure> {
        for segment in self.likely(segment) {
            // One that cannot be asked need not be the one.
            if let Ok(Some(position)) = self.position_in(&segment, stream, offset) {
                return Ok(position);
            }
        }
        self.position_anywhere(stream, offset)?.ok_or(Failure::Misled { position: self.durable() })
    }

    /// The newest segment, since most want what is new; the one that is named, and the next.
    fn likely(&self, number: u64) -> Vec<Arc<Segment>> {
        let segments = self.segments.read().unwrap();
        let near = segments.range(number..).take(2).filter(|_| number > 0);
        segments.values().next_back().into_iter().chain(near.map(|(_, segment)| segment)).cloned().collect()
    }

    /// The offsets of a stream ascend from segment to segment, but it need not be in each.
    fn position_anywhere(&self, stream: u32, offset: u64) -> io::Result<Option<u64>> {
        let segments = self.newest_first();
        let mut left = &segments[..];
        while !left.is_empty() {
            let middle = left.len() / 2;
            let (mut found, mut unknown) = (None, Ok(None));
            for at in (middle..left.len()).chain((0..middle).rev()) {
                match self.entry_in(&left[at], stream) {
                    Ok(Some(entry)) => {
                        found = Some((at, entry));
                        break;
                    }
                    Ok(None) => {}
                    // The others may lead around it.
                    Err(error) => unknown = Err(error),
                }
            }
            left = match found {
                None => return unknown,
                Some((at, entry)) if offset < entry.first => &left[at + 1..],
                Some((at, entry)) if offset >= entry.next => &left[..at],
                Some((at, _)) => return self.position_in(&left[at], stream, offset),
            };
        }
        Ok(None)
    }

    /// Of a span that begins, or reversed ends, in a segment whose index is in memory, what is in that segment: whoever must
    /// not wait may read it. None if what is first wanted is elsewhere.
    pub fn at_hand(&self, span: Span) -> Option<(u64, u64)> {
        let wanted = if span.reverse { span.end.checked_sub(1)? } else { span.start };
        let segment = match span.stream {
            None => self.segment_of(wanted)?,
            Some(_) => self.likely(0).pop()?,
        };
        let index = segment.index();
        if !index.is_loaded() {
            return None;
        }
        let (first, next) = match span.stream {
            None => {
                let index = index.lookup(&segment).ok()?;
                (index.first_position(), index.next_position())
            }
            Some(stream) => index.stream(stream).flatten().map(|entry| (entry.first, entry.next))?,
        };
        (first..next).contains(&wanted).then(|| (span.start.max(first), span.end.min(next)))
    }

    /// What a segment has of a stream. Not each index that is asked for this must be in memory.
    fn entry_in(&self, segment: &Arc<Segment>, stream: u32) -> io::Result<Option<StreamEntry>> {
        match segment.index().stream(stream) {
            Some(known) => Ok(known),
            None => Ok(self.index(segment)?.lookup(segment)?.stream(stream)),
        }
    }

    fn position_in(&self, segment: &Arc<Segment>, stream: u32, offset: u64) -> io::Result<Option<u64>> {
        if !self.entry_in(segment, stream)?.is_some_and(|entry| (entry.first..entry.next).contains(&offset)) {
            return Ok(None);
        }
        let entry = self.index(segment)?.lookup(segment)?.run_of_offset(stream, offset);
        Ok(entry.map(|entry| entry.position.wrapping_add(offset.wrapping_sub(entry.offset))))
    }

    /// The first offset of a stream that is not before a position.
    pub fn offset_at(&self, stream: u32, position: u64) -> Result<u64, Failure> {
        let mut window = Window::default();
        self.again(|| {
            let (first, end) = {
                let streams = self.streams.read().unwrap();
                let info = &streams.info[stream as usize];
                (info.first, info.durable)
            };
            let (mut low, mut high) = (first, end);
            while low < high {
                let middle = low.midpoint(high);
                if self.position_of(stream, middle)? < position {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            let mut place = |offset| {
                if let Some(gap) = self.gap_at(stream, offset) {
                    return Ok(Some(gap.position));
                }
                let found = self.located(stream, offset, &mut window, 0);
                readable(found.map(|(run, within)| run.opened.header.first_position + within as u64))
            };
            let late = low < end && place(low)?.is_some_and(|place| place < position);
            let early = low > first && place(low - 1)?.is_some_and(|place| place >= position);
            if late || early { Err(Failure::Misled { position }) } else { Ok(low) }
        })
    }

    /// The first durable position whose timestamp is not before this.
    pub fn position_at(&self, timestamp: u64) -> Result<u64, Failure> {
        let mut window = Window::default();
        self.again(|| {
            let end = self.durable();
            let mut segments = self.newest_first();
            let mut after = end;
            // One without records would say nothing of those before it.
            segments.retain(|segment| {
                segment.header.first_position < std::mem::replace(&mut after, segment.header.first_position)
            });
            let (mut low, mut high, mut found) = (0, segments.len(), end);
            if let Some(newest) = segments.first()
                && self.index(newest)?.lookup(newest)?.first_position_at_or_after(timestamp).is_none()
            {
                // What is still to come is asked for again and again.
                high = 0;
            }
            while low < high {
                let middle = low.midpoint(high);
                let segment = &segments[middle];
                match self.index(segment)?.lookup(segment)?.first_position_at_or_after(timestamp) {
                    Some(position) => (low, found) = (middle + 1, position.min(end)),
                    None => high = middle,
                }
            }
            let mut time = |position| readable(self.indexed(position, &mut window, 0).map(|(run, _)| run.timestamp));
            let late = found < end && time(found)?.is_some_and(|time| time < timestamp);
            let early = found > self.first() && time(found - 1)?.is_some_and(|time| time >= timestamp);
            if late || early { Err(Failure::Misled { position: found }) } else { Ok(found) }
        })
    }
}

/// None without the key.
fn readable<T>(found: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Failure::NoKey { .. } | Failure::Erased(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}
