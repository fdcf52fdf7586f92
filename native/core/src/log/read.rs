//! The way out: runs found by the index, checked, opened, and handed over whole.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{self, Relaxed};

use super::cache::CachedRun;
use super::segment::{is_unreadable, unindexed};
use super::{Log, Segment};
use crate::format::{Damage, GROUP_HEADER, GroupHeader, HASHES_HEADER, Hash, RunHeader};
use crate::group::{self, Run, hash_leaves};
use crate::index::{GroupEntry, RunEntry};
use crate::keys::TAG;
use crate::tree;

/// Hashes read at a time: most of those beside a leaf's way up are near it.
const NEAR: u64 = 128;

/// Records that are read at most to make wrong hashes again: for whoever must not wait, those of 256 KiB of the file,
/// for a receipt that is made again, and what a second reads for everybody else.
pub const FEW_LEAVES: usize = 1 << 12;
pub const SOME_LEAVES: usize = 1 << 16;
pub const MOST_LEAVES: usize = 1 << 20;

/// Read at a time when runs follow each other.
const WINDOW: usize = 256 << 10;

/// Why a record could not be read.
#[derive(Debug)]
pub enum Failure {
    Io(io::Error),
    Damaged {
        segment: u64,
        place: u64,
        group: u64,
        position: u64,
        what: &'static str,
    },
    /// The disk does not give what is there.
    Unreadable {
        segment: u64,
        place: u64,
        group: u64,
        position: u64,
    },
    /// Neither the indexes nor the segments lead to a record that the log has by its length.
    Misled {
        position: u64,
    },
    /// It was there, and was dropped: what is left begins with this.
    Dropped {
        stream: Option<u32>,
        first: u64,
    },
    /// It is in a gap, and the stream goes on there.
    Skipped {
        stream: u32,
        first: u64,
    },
    /// The file of producers names a batch that this group has not.
    ProducersDamaged {
        group: u64,
    },
    /// The leaf hash on file is not that of a record whose group is sound.
    HashesDamaged {
        position: u64,
    },
    NoKey {
        stream: u32,
    },
    /// A run of a stream that was erased; its check is right.
    Erased(RunHeader),
}

impl Failure {
    /// Whether what was asked for is there and is not what it was, or the disk does not give it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Unreadable { .. } | Self::Misled { .. } => true,
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => false,
            Self::Io(error) => unindexed(error).is_some() || is_unreadable(error),
            _ => false,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Records `from..to` of an opened run.
#[derive(Clone)]
pub struct Found {
    pub run: Arc<CachedRun>,
    pub from: usize,
    pub to: usize,
}

/// A run, and which of its records.
type Within = (Arc<CachedRun>, usize);

/// What to read: a range of positions, or of offsets of a stream, half open.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub stream: Option<u32>,
    pub start: u64,
    pub end: u64,
    pub reverse: bool,
}

/// The last bytes read of one segment: neighbours are often wanted next.
#[derive(Default)]
pub struct Window {
    pub(super) segment: u64,
    file: u64,
    place: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn get(&mut self, segment: &Segment, place: u64, length: usize, ahead: usize) -> io::Result<&[u8]> {
        let end = place + length as u64;
        let file = segment.header.file();
        let inside = self.file == file && place >= self.place && end <= self.place + self.bytes.len() as u64;
        if !inside {
            let alone = |error| if ahead > length { segment.read(place, length) } else { Err(error) };
            self.bytes = segment.read(place, length.max(ahead)).or_else(alone)?;
            (self.segment, self.file, self.place) = (segment.header.number, file, place);
        }
        let from = (place - self.place) as usize;
        self.bytes.get(from..from + length).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Log {
    pub(super) fn segment_of(&self, position: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap();
        // Few enough that a walk from the end is as fast as anything; most reads want the newest.
        segments.values().rev().find(|segment| segment.header.first_position <= position).cloned()
    }

    /// A copy, so that an index may be read from its file without the lock.
    pub fn newest_first(&self) -> Vec<Arc<Segment>> {
        self.segments.read().unwrap().values().rev().cloned().collect()
    }

    /// An index that does not lead to what it should is made again from its segment, and asked once more: also when
    /// somebody else has just made it again, or has dropped segments beneath it.
    pub(super) fn again<T>(&self, mut work: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let (mut distrusted, mut misled) = (Vec::new(), false);
        loop {
            let (first, renewed) = (self.first(), self.renewed.load(Ordering::Acquire));
            let outcome = work();
            let Err(failure) = &outcome else { return outcome };
            if self.first() > first {
                continue;
            }
            // As often as there is another file: several may be in the way, and others may have come to them before.
            if failure.is_damage() && self.renewed.load(Ordering::Acquire) != renewed {
                continue;
            }
            match failure {
                Failure::Damaged { segment, .. } if self.renew(*segment) => {}
                Failure::Io(error) if unindexed(error).is_some_and(|found| self.renew(found.segment)) => {}
                Failure::Damaged { segment, .. } if !distrusted.contains(segment) => {
                    distrusted.push(*segment);
                    if let Some(segment) = self.segments.read().unwrap().get(segment) {
                        segment.distrust();
                    }
                }
                Failure::Misled { .. } if !misled => {
                    misled = true;
                    self.newest_first().iter().for_each(|segment| segment.distrust());
                }
                _ => return outcome,
            }
        }
    }

    /// Whether a segment's file is another by now, with other places: from here on it is what that says.
    fn renew(&self, number: u64) -> bool {
        let segment = self.segments.read().unwrap().get(&number).cloned();
        let Some(renewed) = segment.and_then(|segment| segment.renewed()) else { return false };
        // It may have been dropped by now.
        let mut segments = self.segments.write().unwrap();
        let known = segments.get_mut(&number).map(|segment| *segment = Arc::new(renewed)).is_some();
        self.renewed.fetch_add(1, Ordering::Release);
        known
    }

    /// The first position, or offset of a stream, that is kept.
    fn first_of(&self, stream: Option<u32>) -> u64 {
        let Some(stream) = stream else { return self.first() };
        self.streams.read().unwrap().info.get(stream as usize).map_or(0, |info| info.first)
    }

    fn check_kept(&self, stream: Option<u32>, wanted: u64) -> Result<(), Failure> {
        let first = self.first_of(stream);
        if wanted < first { Err(Failure::Dropped { stream, first }) } else { Ok(()) }
    }

    /// Whether a read by these bounds asks for nothing that is gone. At offset 0 nobody goes on who has read what is before
    /// it: a gap that begins there is one that is begun in its middle.
    pub fn check_bounds(&self, stream: Option<u32>, start: Option<u64>, until: Option<u64>) -> Result<(), Failure> {
        for bound in [start, until].into_iter().flatten() {
            self.check_kept(stream, bound)?;
        }
        let Some(stream) = stream.filter(|_| start == Some(0)) else { return Ok(()) };
        let streams = self.streams.read().unwrap();
        let info = streams.info.get(stream as usize);
        match info.and_then(|info| info.gap_at(0).filter(|gap| gap.to <= info.durable)) {
            Some(gap) => Err(Failure::Skipped { stream, first: gap.to }),
            None => Ok(()),
        }
    }

    /// What failed may have done so because it was dropped meanwhile.
    fn unless_dropped<T>(&self, stream: Option<u32>, wanted: u64, failure: Failure) -> Result<T, Failure> {
        self.check_kept(stream, wanted).and(Err(failure))
    }

    /// The run that holds a position, which must be durable.
    pub fn run_at(&self, position: u64, window: &mut Window, ahead: usize) -> Result<Within, Failure> {
        self.again(|| self.indexed(position, window, ahead))
    }

    pub(super) fn indexed(&self, position: u64, window: &mut Window, ahead: usize) -> Result<Within, Failure> {
        let misled = Failure::Misled { position };
        let Some(segment) = self.segment_of(position) else { return Err(misled) };
        let index = self.index(&segment)?;
        let index = index.lookup(&segment)?;
        let Some(entry) = index.run_of_position(position) else { return Err(misled) };
        let at = (segment.header.file(), entry.place as u64);
        let cached = self.cache.lock().unwrap().get(at);
        let run = if let Some(run) = cached {
            run
        } else {
            let Some(place) = index.group_of_position(position) else { return Err(misled) };
            let run = Arc::new(self.load(&segment, &entry, &place, window, ahead)?);
            // An erasure that has come meanwhile has looked through the cache already.
            let streams = self.streams.read().unwrap();
            if streams.list[run.opened.header.stream as usize].opens() {
                self.cache.lock().unwrap().put(at, run.clone());
            }
            run
        };
        let within = position.checked_sub(run.opened.header.first_position).map(|within| within as usize);
        match within.filter(|&within| within < run.opened.count()) {
            Some(within) => Ok((run, within)),
            None => Err(misled),
        }
    }

    /// The run that holds an offset of a stream, which must be durable.
    pub(super) fn located(
        &self,
        stream: u32,
        offset: u64,
        window: &mut Window,
        ahead: usize,
    ) -> Result<Within, Failure> {
        let position = self.position_near(stream, offset, window.segment)?;
        let (run, within) = self.indexed(position, window, ahead)?;
        let header = &run.opened.header;
        let right = header.stream == stream && header.first_offset.checked_add(within as u64) == Some(offset);
        if right { Ok((run, within)) } else { Err(Failure::Misled { position }) }
    }

    /// Opens a run by itself.
    fn load(
        &self,
        segment: &Segment,
        entry: &RunEntry,
        at: &GroupEntry,
        window: &mut Window,
        ahead: usize,
    ) -> Result<CachedRun, Failure> {
        let (run, timestamp) = self.checked(segment, entry, at, window, ahead)?;
        let stream = self.streams.read().unwrap().list.get(run.header.stream as usize).cloned();
        let stream = stream.ok_or(Damage("a run's stream was never declared"));
        let opened = stream.and_then(|stream| group::open_run(&self.database, &stream, &run));
        let opened = opened.map_err(|Damage(what)| Failure::Damaged {
            segment: segment.header.number,
            place: entry.place as u64,
            group: at.number,
            position: entry.position,
            what,
        })?;
        let opened = opened.ok_or_else(|| self.keyless(run.header))?;
        Ok(CachedRun::new(opened, timestamp))
    }

    /// A run by itself, and its time: its group's header and its own check are right.
    fn checked<'a>(
        &self,
        segment: &Segment,
        entry: &RunEntry,
        at: &GroupEntry,
        window: &'a mut Window,
        ahead: usize,
    ) -> Result<(Run<'a>, u64), Failure> {
        let damaged = |Damage(what)| Failure::Damaged {
            segment: segment.header.number,
            place: entry.place as u64,
            group: at.number,
            position: entry.position,
            what,
        };
        let unreadable = |error: io::Error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                // One that was packed since is shorter.
                return damaged(Damage("the segment ends before it"));
            }
            if !is_unreadable(&error) {
                return Failure::Io(error);
            }
            let (segment, place) = (segment.header.number, entry.place as u64);
            Failure::Unreadable { segment, place, group: at.number, position: entry.position }
        };
        let salt = &segment.header.salt;
        let head = window.get(segment, at.place as u64, GROUP_HEADER, ahead).map_err(unreadable)?;
        let header = GroupHeader::decode(head, salt, at.place as u64).map_err(damaged)?;
        if header.incarnation > self.end().incarnation {
            // Beneath a reader. It may look like what was there.
            return Err(damaged(Damage("the group is of a log that was repaired since")));
        }
        let checks_length = 8 * header.runs as usize;
        let tag = if self.database.tagged { TAG } else { 0 };
        let before = (header.length as u64).checked_sub((checks_length + 32 + tag) as u64);
        let before = before.ok_or_else(|| damaged(Damage("the group is too short")))?;
        let checks_place = at.place as u64 + before;
        let checks = window.get(segment, checks_place, checks_length, 0).map_err(unreadable)?.to_vec();
        let bytes = window.get(segment, entry.place as u64, entry.length as usize, ahead).map_err(unreadable)?;
        let run = RunHeader::decode(bytes).map_err(damaged)?;
        let same = run.stream == entry.stream
            && run.first_offset == entry.offset
            && run.first_position == entry.position
            && run.records == entry.records
            && run.length == entry.length;
        let check = group::check_of_run(salt, entry.place as u64, bytes);
        let sound = checks.chunks_exact(8).any(|found| found == check);
        if !same || !sound {
            return Err(damaged(Damage("the run's check is wrong")));
        }
        Ok((Run { header: run, place: entry.place as u64, bytes }, header.timestamp))
    }

    /// The leaf of a record whose stream has no key, by what its run states.
    fn stated_leaf(&self, position: u64, window: &mut Window) -> Option<Hash> {
        let segment = self.segment_of(position)?;
        let index = self.index(&segment).ok()?;
        let index = index.lookup(&segment).ok()?;
        let (entry, at) = (index.run_of_position(position)?, index.group_of_position(position)?);
        let (run, timestamp) = self.checked(&segment, &entry, &at, window, 0).ok()?;
        let within = position.checked_sub(run.header.first_position).filter(|&i| i < run.header.records as u64)?;
        let stream = self.streams.read().unwrap().list.get(run.header.stream as usize).cloned()?;
        Some(hash_leaves(&[run.stated_leaf(&stream, timestamp, within as usize)])[0])
    }

    /// Why a run does not open whose stream has no key.
    pub(super) fn keyless(&self, run: RunHeader) -> Failure {
        let erased = self.streams.read().unwrap().erased(run.stream).is_some();
        if erased { Failure::Erased(run) } else { Failure::NoKey { stream: run.stream } }
    }

    /// One record, checked against its leaf; `most` are read to make hashes again that are wrong.
    pub fn get(&self, position: u64, window: &mut Window, most: usize) -> Result<Found, Failure> {
        self.check_kept(None, position)?;
        let (run, within) =
            self.run_at(position, window, 0).or_else(|failure| self.unless_dropped(None, position, failure))?;
        if !run.is_proven(within) {
            let stream = self.streams.read().unwrap().list[run.opened.header.stream as usize].clone();
            let leaf = hash_leaves(&[run.opened.leaf_of(&stream, run.timestamp, within)])[0];
            if !self.is_leaf(position, leaf) && self.made_again((0, position), most) != Some(leaf) {
                return Err(Failure::HashesDamaged { position });
            }
            run.prove(within);
        }
        Ok(Found { run, from: within, to: within + 1 })
    }

    /// A hash of the tree by its index in the file. What the file has not, or the disk cannot read, is not there.
    pub fn hash(&self, index: u64) -> Option<Hash> {
        if let Some(hash) = self.tree.read().unwrap().pending_get(index) {
            return Some(*hash);
        }
        if let Some(hash) = self.dropped_hash(index).or_else(|| self.past_hash(index)) {
            return Some(hash);
        }
        let source = self.hashes.read().unwrap().clone()?;
        source.read(HASHES_HEADER as u64 + 32 * index, 32).ok()?.try_into().ok()
    }

    /// Whether the tree has this leaf there. The file of hashes is believed in nothing: with what it says the leaf must
    /// lead to a peak.
    fn is_leaf(&self, position: u64, leaf: Hash) -> bool {
        let (size, peaks) = self.peaks();
        // Those before are in the file already.
        let in_memory = self.tree.read().unwrap().pending().start;
        let first = tree::stored(position) / NEAR * NEAR;
        let source = self.hashes.read().unwrap().clone();
        let near = source.and_then(|source| source.read(HASHES_HEADER as u64 + 32 * first, 32 * NEAR as usize).ok());
        let near = near.unwrap_or_default();
        let (near, _) = near.as_chunks::<32>();
        // Of what was dropped it may have nothing.
        let there = tree::stored(self.first())..in_memory;
        let near = |index: u64| near.get(index.checked_sub(first)? as usize).filter(|_| there.contains(&index));
        tree::leaf_leads_to(position, leaf, (size, &peaks), |level, at| {
            let index = tree::place(level, at);
            near(index).copied().or_else(|| self.hash(index))
        })
    }

    /// The right hash of a node by its level and index, where the file of hashes is not as it should be.
    fn made_again(&self, node: (u32, u64), most: usize) -> Option<Hash> {
        if (node.1 + 1) << node.0 > self.first() {
            // Of what was dropped the file has none.
            self.doubted.store(true, Relaxed);
        }
        let (size, peaks) = self.peaks();
        let mut window = Window::default();
        let leaf_of = |position| {
            let (run, within) = match self.indexed(position, &mut window, 0) {
                Ok(found) => found,
                Err(Failure::Erased(_) | Failure::NoKey { .. }) => return self.stated_leaf(position, &mut window),
                Err(_) => return None,
            };
            let stream = self.streams.read().unwrap().list[run.opened.header.stream as usize].clone();
            Some(hash_leaves(&[run.opened.leaf_of(&stream, run.timestamp, within)])[0])
        };
        tree::descend(node, (size, &peaks), |index| self.hash(index), leaf_of, most)
    }

    fn peaks(&self) -> (u64, Vec<Hash>) {
        let tree = self.tree.read().unwrap();
        (tree.size(), tree.peaks().to_vec())
    }

    /// Whether the file of hashes is this database's, and has the peaks of the tree where they belong.
    pub fn hashes_fit(&self) -> bool {
        let Some(source) = self.hashes.read().unwrap().clone() else { return false };
        let head = source.read(0, HASHES_HEADER).unwrap_or_default();
        let rest = head.strip_prefix(b"KIMBTRE1").and_then(|rest| rest.strip_prefix(&self.database.id));
        if rest.is_none_or(|rest| rest.iter().any(|&byte| byte != 0)) {
            return false;
        }
        self.stored_peaks().into_iter().all(|(index, peak)| self.hash(index) == Some(peak))
    }

    /// The peaks of the tree, each with its index in the file.
    pub fn stored_peaks(&self) -> Vec<(u64, Hash)> {
        let (size, peaks) = self.peaks();
        tree::peak_places(size).into_iter().zip(peaks).collect()
    }

    /// The root of the tree when it had so many leaves; None if hashes are not there, or too many of them wrong.
    pub fn root_at(&self, size: u64, most: usize) -> Option<Hash> {
        self.peaks_at(size, most).map(|peaks| tree::root_from_peaks(&peaks))
    }

    /// The peaks of the tree when it had so many leaves, largest first.
    pub(super) fn peaks_at(&self, size: u64, most: usize) -> Option<Vec<Hash>> {
        let (now, known) = self.peaks();
        if size > now {
            return None;
        }
        let by_file = |level, at| self.hash(tree::place(level, at));
        let found = tree::peak_nodes(size).map(|(level, at)| by_file(level, at)).collect::<Option<Vec<_>>>();
        let right = found.filter(|peaks| tree::leads_to(size, peaks, (now, &known), by_file));
        let again = || tree::peak_nodes(size).map(|node| self.made_again(node, most)).collect();
        // Whoever may make none again has no doubts.
        right.or_else(|| if most > 0 { again() } else { None })
    }

    /// The span without the gap that it begins, or reversed ends, with. Who begins behind the first offset of a gap has
    /// been somewhere else before.
    fn over(&self, mut span: Span) -> Result<Span, Failure> {
        while let Some(stream) = span.stream.filter(|_| span.start < span.end) {
            let wanted = if span.reverse { span.end - 1 } else { span.start };
            match self.gap_at(stream, wanted) {
                None => break,
                Some(gap) if span.reverse => span.end = gap.from,
                Some(gap) if gap.from == wanted => span.start = gap.to,
                Some(gap) => return Err(Failure::Skipped { stream, first: gap.to }),
            }
        }
        Ok(span)
    }

    /// The next run of a span, from its start or, reversed, from its end; and the span that is left.
    pub fn next(&self, span: Span, window: &mut Window) -> Result<Option<(Found, Span)>, Failure> {
        self.next_over(self.over(span)?, window)
    }

    fn next_over(&self, span: Span, window: &mut Window) -> Result<Option<(Found, Span)>, Failure> {
        if span.start >= span.end {
            return Ok(None);
        }
        let wanted = if span.reverse { span.end - 1 } else { span.start };
        let end = match span.stream {
            None => self.durable(),
            Some(stream) => self.streams.read().unwrap().info.get(stream as usize).map_or(0, |info| info.durable),
        };
        if wanted >= end {
            return Ok(None);
        }
        self.check_kept(span.stream, wanted)?;
        let found = match span.stream {
            None => self.run_at(wanted, window, WINDOW),
            Some(stream) => self.again(|| self.located(stream, wanted, window, WINDOW)),
        };
        let (run, within) = found.or_else(|failure| self.unless_dropped(span.stream, wanted, failure))?;
        let header = &run.opened.header;
        let base = if span.stream.is_some() { header.first_offset } else { header.first_position };
        let (from, to, left) = if span.reverse {
            let from = span.start.saturating_sub(base) as usize;
            (from, within + 1, Span { end: base + from as u64, ..span })
        } else {
            let to = (span.end - base).min(run.opened.count() as u64) as usize;
            (within, to, Span { start: base + to as u64, ..span })
        };
        Ok(Some((Found { run, from, to }, left)))
    }

    /// Gives the runs of a span, at most `limit` records and about `size` bytes of them, up to what cannot be read; and the
    /// span that is left. Of a span of all streams those that were erased are left out.
    pub fn walk(
        &self,
        mut span: Span,
        limit: usize,
        size: usize,
        system: bool,
        mut give: impl FnMut(&Found),
    ) -> Result<Span, Failure> {
        let mut window = Window::default();
        let (mut records, mut bytes) = (0, 0);
        while records < limit && bytes < size {
            let next = match self.over(span).and_then(|over| {
                span = over;
                self.next_over(span, &mut window)
            }) {
                // Of the whole log the others are read all the same.
                Err(Failure::Erased(run)) if span.stream.is_none() => {
                    let end = run.first_position + run.records as u64;
                    if span.reverse {
                        span.end = run.first_position.max(span.start);
                    } else {
                        span.start = end.min(span.end);
                    }
                    bytes += run.length as usize;
                    continue;
                }
                // Whoever goes on there hears of it.
                Err(_) if records > 0 => break,
                next => next?,
            };
            let Some((mut found, left)) = next else {
                span.end = span.start;
                break;
            };
            span = left;
            if found.run.opened.header.stream != 0 || system {
                let cut = (found.to - found.from).saturating_sub(limit - records);
                if span.reverse {
                    found.from += cut;
                    span.end += cut as u64;
                } else {
                    found.to -= cut;
                    span.start -= cut as u64;
                }
                records += found.to - found.from;
                give(&found);
            }
            bytes += found.run.opened.size();
        }
        Ok(span)
    }
}
