//! Groups from the disk, applied as if they had just been sealed. Recovery, verification and readers beside a
//! writer all come through here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batches::{Batches, Sent};
use super::erased;
use super::segment::{Index, append, entry};
use super::{End, Log, Segment};
use crate::format::{
    BLOCK, CLOSING, Checked, Damage, GROUP_HEADER, GroupHeader, Hash, Packed, SegmentHeader, ensure, zeros,
};
use crate::group::{self, Expected, Group, Stream, hash_leaves};
use crate::keys::{Key, TAG};
use crate::system::{Declaration, Gap, Piece, System};

/// How far it came, and why not further.
#[derive(Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Where the next group would be.
    pub place: u64,
    pub stop: Stop,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// All groups up to the wanted one.
    Done,
    /// So many bytes from `place` on are needed.
    More(usize),
    /// The segment's closing group was applied.
    Closed,
    /// No sound group is there.
    Bad(Damage),
    /// A group whose every byte was sealed so is not what a group can be.
    Damaged(Damage),
}

type Keys<'a> = &'a mut dyn FnMut(&Declaration, &Hash) -> Checked<Option<Key>>;

impl Log {
    /// What the next group must be.
    pub fn expected(&self) -> Expected {
        let tail = self.tail.lock().unwrap();
        let sealer = &tail.sealer;
        Expected {
            number: sealer.group,
            position: sealer.position,
            previous: sealer.chain,
            timestamp: sealer.timestamp,
        }
    }

    /// Follows a segment from its start: its header must be what the log so far says.
    pub fn enter(&self, segment: &Segment) -> Checked<()> {
        let header = &segment.header;
        let mut tail = self.tail.lock().unwrap();
        ensure(header.database == self.database.id, "the segment belongs to another database")?;
        ensure(header.before == tail.sealer.chain, "the segment does not follow the one before it")?;
        ensure(header.first_group == tail.sealer.group, "the segment's first group is not the next one")?;
        ensure(header.first_position == tail.sealer.position, "the segment's first position is not the next one")?;
        tail.sealer.chain = header.chain();
        tail.last_place = 0;
        Ok(())
    }

    /// Applies the groups in `data`, which starts at `place`, up to and including `last`: found one after another,
    /// checked and opened on two cores, and applied in their order.
    pub fn replay(&self, segment: &Segment, place: u64, data: &[u8], last: u64, keys: Keys) -> Replayed {
        let tag = if self.database.tagged { TAG } else { 0 };
        let (frames, mut stop) = find(&segment.header, tag, place, data, last, self.expected());
        let salt = &segment.header.salt;
        let mut groups = Vec::with_capacity(frames.len());
        for checked in on_two_cores(&frames, |frame| frame.bytes.len(), |frame| self.check(salt, frame)) {
            match checked {
                Ok(group) => groups.push(group),
                Err(damage) => {
                    stop = Stop::Bad(damage);
                    break;
                }
            }
        }
        let end = groups.len().checked_sub(1).map_or(place, |i| frames[i].place + frames[i].bytes.len() as u64);
        match self.apply(segment, &groups, keys) {
            Ok(()) if stop == Stop::Closed && !ends_as_packed(&segment.header, &groups, end) => {
                let place = groups.last().map_or(place, |group| group.place);
                Replayed { place, stop: Stop::Damaged(Damage("the segment does not end as its header says")) }
            }
            Ok(()) => Replayed { place: end, stop },
            Err((place, damage)) => Replayed { place, stop: Stop::Damaged(damage) },
        }
    }

    fn check<'a>(&self, salt: &Hash, frame: &Frame<'a>) -> Checked<Group<'a>> {
        group::open(&self.database, frame.header, &frame.expected, salt, frame.place, frame.bytes)
    }

    /// Takes in the groups up to the first that contradicts what was before it; the error has its place.
    fn apply(&self, segment: &Segment, groups: &[Group], keys: Keys) -> Result<(), (u64, Damage)> {
        let mut failed = None;
        let mut followed = 0;
        let mut heard = Vec::with_capacity(groups.len());
        for group in groups {
            let said = self.said_by(group, keys);
            match said.and_then(|mut said| self.follow(group, &mut said).map(|()| said)) {
                Ok(said) => heard.push(said),
                Err(damage) => {
                    failed = Some((group.place, damage));
                    break;
                }
            }
            followed += 1;
        }
        let groups = &groups[..followed];
        let opened = {
            let streams = self.streams.read().unwrap();
            let size = |group: &Group| group.header.length as usize;
            on_two_cores(groups, size, |group| self.contents(group, &streams.list))
        };
        for ((group, contents), said) in groups.iter().zip(opened).zip(&heard) {
            let accepted = contents.and_then(|contents| self.accept(segment, group, contents, said));
            accepted.map_err(|damage| (group.place, damage))?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// What the system records of a group say. Keys are asked for while no lock is held.
    fn said_by(&self, group: &Group, keys: Keys) -> Checked<Said> {
        let mut said = Said::default();
        for run in group.runs.iter().filter(|run| run.header.stream == 0) {
            let system = self.streams.read().unwrap().list[0].clone();
            let opened =
                group::open_run(&self.database, &system, run)?.ok_or(Damage("the system's stream is plain"))?;
            for i in 0..opened.count() {
                let payload = opened.decoded(i).payload;
                match System::decode(payload)? {
                    System::Declaration(declaration) => {
                        let key = keys(&declaration, &Declaration::hash(payload))?;
                        said.declared.push((declaration, payload.to_vec(), key));
                    }
                    System::Retained(piece) => said.pieces.push(piece),
                    System::Gap(gap) => said.gaps.push((run.header.first_position + i as u64, gap)),
                    System::Several(_) => {}
                    heard @ (System::Erased(_) | System::Confirmed(_) | System::Repaired(_)) => {
                        said.heard.push((run.header.first_position + i as u64, heard));
                    }
                }
            }
        }
        Ok(said)
    }

    /// The streams that a group declares and erases, and the offsets that its runs go on from: a gap is one where it
    /// stands.
    fn follow(&self, group: &Group, said: &mut Said) -> Checked<()> {
        let mut streams = self.streams.write().unwrap();
        for (declaration, payload, key) in std::mem::take(&mut said.declared) {
            // A log that begins behind what was dropped knows also those that come again.
            let known = streams.info.get(declaration.stream as usize).map(|info| info.declaration == payload);
            match known {
                Some(same) => ensure(same, "a stream is declared twice")?,
                None => streams.add(&declaration, &payload, key.as_ref(), true)?,
            }
        }
        let mut heard = said.heard.iter().peekable();
        let mut gaps = said.gaps.iter().peekable();
        for run in &group.runs {
            let number = run.header.stream as usize;
            let end = run.header.first_position + run.header.records as u64;
            while let Some((position, system)) = heard.next_if(|(position, _)| *position < end) {
                streams.hear(system, erased::Said { position: *position, timestamp: group.header.timestamp })?;
            }
            while let Some((position, gap)) = gaps.next_if(|(position, _)| *position < run.header.first_position) {
                streams.follow_gap(*position, gap)?;
            }
            let info = streams.info.get(number).ok_or(Damage("a run's stream was never declared"))?;
            ensure(info.erased.is_none(), "a record of a stream stands behind its erasure")?;
            ensure(run.header.first_offset == info.forming, "a run's offset is not the next one")?;
            let next = info.forming + run.header.records as u64;
            streams.set_next(number, next);
        }
        gaps.try_for_each(|(position, gap)| streams.follow_gap(*position, gap))
    }

    /// Leaf hashes and producers of a group.
    fn contents(&self, group: &Group, streams: &[Arc<Stream>]) -> Checked<Contents> {
        let time = group.header.timestamp;
        let mut runs = Vec::with_capacity(group.runs.len());
        // A receipt key outside a vault may have been made anew since.
        let several = self.database.group_key.as_ref().map(|_| &self.keys.several);
        let mut batches = Batches::new(&self.database.identity, several);
        for run in &group.runs {
            let stream = &streams[run.header.stream as usize];
            let Some(opened) = group::open_run(&self.database, stream, run)? else {
                batches.sealed(&run.header)?;
                runs.push(run.stated_leaves(stream, time));
                continue;
            };
            batches.opened(stream, &opened)?;
            let leaves = opened.leaves(stream, time);
            let agrees = !stream.encrypted || leaves.commitments == run.stated();
            ensure(agrees, "a commitment does not match its record")?;
            runs.push(leaves);
        }
        Ok(Contents { leaves: hash_leaves(&runs), producers: batches.finish()? })
    }

    fn accept(&self, segment: &Segment, group: &Group, contents: Contents, said: &Said) -> Checked<()> {
        let header = &group.header;
        ensure(header.incarnation >= self.end().incarnation, "the group's incarnation falls")?;
        if let Index::Active(index) = &*segment.index() {
            let runs: Vec<_> = group.runs.iter().map(|run| entry(&run.header, run.place)).collect();
            append(index, header, group.place, &runs)?;
        }
        let mut tail = self.tail.lock().unwrap();
        let mut producers = self.producers.lock().unwrap();
        producers.reached(header.number);
        for (stream, id, sequence, digest) in &contents.producers {
            producers.apply(*stream, id, *sequence, digest, header.number, header.timestamp);
        }
        drop(producers);
        self.tree.write().unwrap().push(&contents.leaves);
        tail.sealer.group = header.number + 1;
        tail.sealer.position = header.first_position + header.records as u64;
        tail.position = tail.sealer.position;
        tail.sealer.chain = group.chain;
        (tail.last_place, tail.last_chain) = (group.place, group.chain);
        tail.sealer.timestamp = header.timestamp;
        tail.sealer.incarnation = header.incarnation;
        self.durable.store(tail.position, Ordering::Release);
        *self.end.lock().unwrap() = End {
            group: header.number,
            chain: group.chain,
            timestamp: header.timestamp,
            incarnation: header.incarnation,
        };
        drop(tail);
        for (_, system) in &said.heard {
            if let System::Erased(erased) = system {
                self.forget(erased.stream);
            }
        }
        for piece in &said.pieces {
            let whole = self.collector.lock().unwrap().take(piece)?;
            whole.map_or(Ok(()), |found| self.follow_retained(found))?;
        }
        Ok(())
    }

    /// The highest `durable_upto` of any sound group header from `place` on, and where the last byte that is not
    /// zero is. `data` is the rest of the segment, or a piece of it that starts at a multiple of a block.
    pub fn watermark(segment: &Segment, place: u64, data: &[u8]) -> (u64, Option<u64>) {
        let mut highest = 0;
        for (i, block) in data.chunks(BLOCK).enumerate() {
            if let Ok(header) = GroupHeader::decode(block, &segment.header.salt, place + (i * BLOCK) as u64) {
                highest = highest.max(header.durable_upto);
            }
        }
        let last = data.chunks(BLOCK).enumerate().rev().find(|(_, block)| !zeros(block)).map(|(i, block)| {
            let within = block.iter().rposition(|&b| b != 0).expect("the block has a byte that is not zero");
            place + (i * BLOCK + within) as u64
        });
        (highest, last)
    }
}

/// A declaration, its bytes and the stream's key.
type Declared = (Declaration, Vec<u8>, Option<Key>);

/// What a group's system records say.
#[derive(Default)]
struct Said {
    /// In their order, until they are followed.
    declared: Vec<Declared>,
    /// Of erasures and repairs, with their positions.
    heard: Vec<(u64, System)>,
    pieces: Vec<Piece>,
    /// With their positions.
    gaps: Vec<(u64, Gap)>,
}

struct Contents {
    leaves: Vec<Hash>,
    producers: Vec<Sent>,
}

/// A group that a header announces, with its padding, and what it must be if those before it are sound.
pub(super) struct Frame<'a> {
    pub header: GroupHeader,
    pub expected: Expected,
    pub place: u64,
    pub bytes: &'a [u8],
}

/// Whether the groups end where the header of a packed segment says.
fn ends_as_packed(header: &SegmentHeader, groups: &[Group], end: u64) -> bool {
    let Some((packed, last)) = header.packed.zip(groups.last()) else { return true };
    packed == Packed { length: end, last_group: last.header.number, last_chain: last.chain }
}

/// The groups in these bytes, by their headers alone, and why there are no more of them.
pub(super) fn find<'a>(
    segment: &SegmentHeader,
    tag: usize,
    place: u64,
    data: &'a [u8],
    last: u64,
    mut expected: Expected,
) -> (Vec<Frame<'a>>, Stop) {
    let mut frames = Vec::new();
    let mut at = 0;
    loop {
        if expected.number > last {
            return (frames, Stop::Done);
        }
        let rest = &data[at..];
        if rest.len() < GROUP_HEADER {
            return (frames, Stop::More(BLOCK));
        }
        let place = place + at as u64;
        let header = match GroupHeader::decode(rest, &segment.salt, place) {
            Ok(header) => header,
            Err(damage) => return (frames, Stop::Bad(damage)),
        };
        let length = segment.step(&header);
        if header.number != expected.number {
            return (frames, Stop::Bad(Damage("the group's number is not the next one")));
        }
        if length > rest.len() {
            return (frames, Stop::More(length));
        }
        let (next, closing) = (following(&header, rest, tag), header.flags & CLOSING != 0);
        frames.push(Frame { header, expected, place, bytes: &rest[..length] });
        let Some(next) = next else { return (frames, Stop::Bad(Damage("the group is too short"))) };
        expected = next;
        at += length;
        if closing {
            return (frames, Stop::Closed);
        }
    }
}

/// What comes after a group, if its chain hash is the one it states.
fn following(header: &GroupHeader, bytes: &[u8], tag: usize) -> Option<Expected> {
    let chain = bytes.get(..(header.length as usize).checked_sub(tag)?)?;
    Some(Expected {
        number: header.number + 1,
        position: header.first_position + header.records as u64,
        previous: *chain.last_chunk::<32>()?,
        timestamp: header.timestamp,
    })
}

/// The results in order; the second half, by size, is made on another thread when that is worth it.
fn on_two_cores<T: Sync, R: Send>(items: &[T], size: impl Fn(&T) -> usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let total: usize = items.iter().map(&size).sum();
    let mut first = 0;
    let split = items.iter().position(|item| {
        first += size(item);
        first >= total / 2
    });
    let split = split.map_or(0, |i| i + 1);
    if total < WORTH_A_THREAD || split == items.len() {
        return items.iter().map(work).collect();
    }
    std::thread::scope(|scope| {
        let second = scope.spawn(|| items[split..].iter().map(&work).collect::<Vec<_>>());
        let mut out: Vec<R> = items[..split].iter().map(&work).collect();
        out.extend(second.join().expect("checking a group does not panic"));
        out
    })
}

/// Fewer bytes are checked sooner than a thread starts.
const WORTH_A_THREAD: usize = 256 << 10;
