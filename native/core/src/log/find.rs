//! Where offsets and times are in the log.

use std::io;
use std::sync::Arc;

use super::{Failure, Log, Segment, Skipped, Span, Window};
use crate::index::StreamEntry;

/// Which of those it may be is the answer where damage hides it: none, or the first or last that is not known not to be it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    Fails,
    First,
    Last,
}

/// Where an offset is, as far as the segments that can be asked lead to it.
enum Place {
    At(u64),
    Nowhere,
    /// Between these positions, half open, and why nobody can say where.
    Within(u64, u64, io::Error),
}

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
        match self.position_anywhere(stream, offset) {
            Place::At(position) => Ok(position),
            Place::Nowhere => Err(Failure::Misled { position: self.durable() }),
            Place::Within(_, _, error) => Err(error.into()),
        }
    }

    /// The newest segment, since most want what is new; the one that is named, and the next.
    fn likely(&self, number: u64) -> Vec<Arc<Segment>> {
        let segments = self.segments.read().unwrap();
        let near = segments.range(number..).take(2).filter(|_| number > 0);
        segments.values().next_back().into_iter().chain(near.map(|(_, segment)| segment)).cloned().collect()
    }

    /// The offsets of a stream ascend from segment to segment, but it need not be in each.
    fn position_anywhere(&self, stream: u32, offset: u64) -> Place {
        let segments = self.newest_first();
        let (mut low, mut high) = (0, segments.len());
        while low < high {
            let middle = low.midpoint(high);
            let (mut found, mut unknown) = (None, None);
            for at in (middle..high).chain((low..middle).rev()) {
                match self.entry_in(&segments[at], stream) {
                    Ok(Some(entry)) => {
                        found = Some((at, entry));
                        break;
                    }
                    Ok(None) => {}
                    // The others may lead around it.
                    Err(error) => {
                        let (newest, oldest) =
                            unknown.map_or((at, at), |(newest, oldest, _)| (at.min(newest), at.max(oldest)));
                        unknown = Some((newest, oldest, error));
                    }
                }
            }
            (low, high) = match (found, unknown) {
                (None, None) => return Place::Nowhere,
                (None, Some((newest, oldest, error))) => return self.within(&segments, newest, oldest, error),
                (Some((at, entry)), _) if offset < entry.first => (at + 1, high),
                (Some((at, entry)), _) if offset >= entry.next => (low, at),
                (Some((at, _)), _) => {
                    return match self.position_in(&segments[at], stream, offset) {
                        Ok(Some(position)) => Place::At(position),
                        Ok(None) => Place::Nowhere,
                        Err(error) => self.within(&segments, at, at, error),
                    };
                }
            };
        }
        Place::Nowhere
    }

    fn within(&self, newest_first: &[Arc<Segment>], newest: usize, oldest: usize, error: io::Error) -> Place {
        let end = newest.checked_sub(1).map_or(self.durable(), |next| newest_first[next].header.first_position);
        Place::Within(newest_first[oldest].header.first_position, end, error)
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
    pub fn offset_at(&self, stream: u32, position: u64, hidden: Hidden) -> Result<u64, Failure> {
        let found = self.again(|| self.offset_from(stream, position, Hidden::Fails));
        self.unless_hidden(found, hidden, || self.offset_from(stream, position, hidden))
    }

    fn offset_from(&self, stream: u32, position: u64, hidden: Hidden) -> Result<u64, Failure> {
        let (first, end) = {
            let streams = self.streams.read().unwrap();
            let info = &streams.info[stream as usize];
            (info.first, info.durable)
        };
        let (mut low, mut high) = (first, end);
        while low < high {
            let middle = low.midpoint(high);
            if self.is_before(stream, middle, position, hidden)? {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let mut window = Window::default();
        let mut place = |offset| {
            if let Some(gap) = self.gap_at(stream, offset) {
                return Ok(Some(gap.position));
            }
            let found = self.located(stream, offset, &mut window, 0);
            readable(found.map(|(run, within)| run.opened.header.first_position + within as u64), hidden)
        };
        let late = low < end && place(low)?.is_some_and(|place| place < position);
        let early = low > first && place(low - 1)?.is_some_and(|place| place >= position);
        if late || early { Err(Failure::Misled { position }) } else { Ok(low) }
    }

    /// Whether an offset of a stream is before a position.
    fn is_before(&self, stream: u32, offset: u64, position: u64, hidden: Hidden) -> Result<bool, Failure> {
        if hidden == Hidden::Fails {
            return Ok(self.position_of(stream, offset)? < position);
        }
        if let Some(gap) = self.gap_at(stream, offset) {
            return Ok(gap.position < position);
        }
        match self.position_anywhere(stream, offset) {
            Place::At(at) => Ok(at < position),
            Place::Nowhere => Err(Failure::Misled { position: self.durable() }),
            Place::Within(first, end, error) => match Failure::from(error) {
                failure if !failure.is_damage() => Err(failure),
                _ if end <= position => Ok(true),
                _ => Ok(first < position && hidden == Hidden::Last),
            },
        }
    }

    /// The first durable position whose timestamp is not before this.
    pub fn position_at(&self, timestamp: u64, hidden: Hidden) -> Result<u64, Failure> {
        let found = self.again(|| self.position_from(timestamp, Hidden::Fails));
        self.unless_hidden(found, hidden, || self.position_from(timestamp, hidden))
    }

    fn position_from(&self, timestamp: u64, hidden: Hidden) -> Result<u64, Failure> {
        let end = self.durable();
        let mut segments = self.newest_first();
        let mut after = end;
        // One without records would say nothing of those before it.
        segments.retain(|segment| {
            segment.header.first_position < std::mem::replace(&mut after, segment.header.first_position)
        });
        let asked = |segment: &Arc<Segment>| -> io::Result<Option<u64>> {
            Ok(self.index(segment)?.lookup(segment)?.first_position_at_or_after(timestamp))
        };
        let (mut low, mut high, mut found) = (0, segments.len(), end);
        // What is still to come is asked for again and again.
        if let Some(newest) = segments.first()
            && matches!(asked(newest), Ok(None))
        {
            high = 0;
        }
        while low < high {
            let middle = low.midpoint(high);
            let mut unknown = None;
            let answer = (middle..high).chain((low..middle).rev()).find_map(|at| match asked(&segments[at]) {
                Ok(answer) => Some((at, answer)),
                // The others may lead around it.
                Err(error) => {
                    unknown = Some(error);
                    None
                }
            });
            match (answer, unknown) {
                (Some((at, Some(position))), _) => (low, found) = (at + 1, position.min(end)),
                (Some((at, None)), _) => high = at,
                // What is older than one that is too old is so too.
                _ if low.checked_sub(1).is_some_and(|at| found > segments[at].header.first_position) => break,
                (None, Some(error)) => match (hidden, Failure::from(error)) {
                    (Hidden::First, failure) if failure.is_damage() => {
                        return Ok(segments[high - 1].header.first_position);
                    }
                    (Hidden::Last, failure) if failure.is_damage() => return Ok(found),
                    (_, failure) => return Err(failure),
                },
                (None, None) => break,
            }
        }
        let mut window = Window::default();
        let mut time =
            |position| readable(self.indexed(position, &mut window, 0).map(|(run, _)| run.timestamp), hidden);
        let late = found < end && time(found)?.is_some_and(|time| time < timestamp);
        let early = found > self.first() && time(found - 1)?.is_some_and(|time| time >= timestamp);
        if late || early { Err(Failure::Misled { position: found }) } else { Ok(found) }
    }

    /// What was found, or else what is found around the damage.
    fn unless_hidden<T>(
        &self,
        found: Result<T, Failure>,
        hidden: Hidden,
        around: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match found {
            Err(failure) if hidden != Hidden::Fails && is_local(&failure) => self.again(around),
            found => found,
        }
    }
}

/// Whether it says that something is damaged, and not that something leads elsewhere.
fn is_local(failure: &Failure) -> bool {
    failure.is_damage() && !matches!(failure, Failure::Misled { .. })
}

/// None without the key, or where it is hidden.
fn readable<T>(found: Result<T, Failure>, hidden: Hidden) -> Result<Option<T>, Failure> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Failure::NoKey { .. } | Failure::Erased(_)) => Ok(None),
        Err(failure) if hidden != Hidden::Fails && is_local(&failure) => Ok(None),
        Err(failure) => Err(failure),
    }
}
