//! Dropping the oldest segments: what is to be said of them, and a log that begins behind them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::read::{MOST_LEAVES, Window};
use super::replay::Replayed;
use super::retained::{self, Collector, Dropped, Left, Retained};
use super::walk::Walk;
use super::{End, Failure, Info, Log, Segment};
use crate::format::{Checked, Damage, GROUP_HEADER, GroupHeader, Hash, SegmentHeader, ensure};
use crate::group::{self, Database, Stream};
use crate::keys::{Key, NONCE, TAG, Xaes, domain};
use crate::system::{Declaration, System};
use crate::tree::{Tree, peak_places, stored};

/// What is said of a producer, and of a stream that has no other, at most.
const PRODUCER: usize = 128;
/// What is said of anything else: peaks, droppings.
const FEW: usize = 16 << 10;
/// Groups of a segment that are asked for what a damaged one beside them does not say.
const NEAR: usize = 16;

impl Log {
    /// Positions below this were dropped.
    pub fn first(&self) -> u64 {
        self.first.load(Ordering::Acquire)
    }

    /// What is known of what was dropped; None if nothing was.
    pub fn retained(&self) -> Option<Arc<Retained>> {
        self.retained.read().unwrap().clone()
    }

    /// What a record takes at most that says what `retain` gives, whatever is dropped; seldom more, if the log says
    /// often what was given up.
    pub fn retained_bound(&self) -> usize {
        let streams = self.streams.read().unwrap().said;
        let given_up = self.retained().map_or(0, |retained| retained.repairs.iter().map(|(_, said)| said.len()).sum());
        FEW + streams + PRODUCER * self.producers.lock().unwrap().len() + given_up
    }

    /// All that the segments before this one say and the others need, so that they can be dropped. None if there are none
    /// before it, or it is not there. If the rule lets go `more` than that of the last dropping, it says it for both.
    pub fn retain(&self, number: u64, now: u64, rule: &str, more: bool) -> Result<Option<Retained>, Failure> {
        let before = self.retained();
        let from = before.as_ref().map_or(0, |before| before.segment);
        let segments = self.segments.read().unwrap().clone();
        let Some(kept) = segments.get(&number).filter(|_| number > from) else { return Ok(None) };
        let header = kept.header;
        let dropped: Vec<_> = segments.range(from..number).map(|(_, segment)| segment.clone()).collect();
        let (system, streams) = self.left(&dropped, header.first_position)?;
        let last = dropped.last().expect("there is one");
        let group = header.first_group - 1;
        let sealed = self.sealed_at(last, group).or_else(|failure| self.behind(last, failure));
        let (timestamp, incarnation) = sealed.or_else(|failure| self.at_least(last, group, failure))?;
        let position = header.first_position;
        let peaks = self.peaks_at(position, MOST_LEAVES).ok_or(Failure::HashesDamaged { position })?;
        let (producers, sealed) = self.silent(header.first_group);
        let mut drops = before.as_ref().map(|before| before.drops.clone()).unwrap_or_default();
        let from = before.map_or(0, |before| before.position);
        retained::add(&mut drops, Dropped { from, to: position, first: now, last: now, rule: rule.into() }, more);
        let erasures = self.streams.read().unwrap().erasures_before(position);
        let (repairs, _) = self.repairs_before(position)?;
        let (segment, group, chain) = (number, header.first_group, header.before);
        let out = Retained {
            segment,
            group,
            position,
            chain,
            timestamp,
            incarnation,
            system,
            peaks,
            streams,
            producers,
            sealed,
            drops,
            erasures,
            repairs,
        };
        Ok(Some(out))
    }

    /// Positions and payloads of the records up to a position that say what was given up; and why those that are damaged
    /// have no payload, but for those that were dropped so.
    #[allow(clippy::type_complexity)]
    pub fn repairs_before(&self, position: u64) -> Result<(Vec<(u64, Vec<u8>)>, Vec<(u64, Failure)>), Failure> {
        let (mut out, left) = {
            let streams = self.streams.read().unwrap();
            let left: Vec<u64> = streams.repairs.iter().copied().filter(|&at| at < position).collect();
            (self.retained().map(|retained| retained.repairs.clone()).unwrap_or_default(), left)
        };
        let mut damaged = Vec::new();
        for at in left {
            match self.run_at(at, &mut Window::default(), 0) {
                Ok((run, within)) => out.push((at, run.opened.decoded(within).payload.to_vec())),
                Err(failure) if is_lost(&failure) => {
                    out.push((at, Vec::new()));
                    damaged.push((at, failure));
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok((out, damaged))
    }

    /// Where a closed segment ends, and when its last group was sealed; None if none of this number is closed.
    pub fn ended(&self, number: u64) -> Result<Option<(u64, u64)>, Failure> {
        let both = || {
            let segments = self.segments.read().unwrap();
            Some((segments.get(&number)?.clone(), segments.get(&(number + 1))?.header))
        };
        // Of a reader's the file may be another by now.
        let found = self.again(|| {
            let Some((segment, next)) = both() else { return Ok(None) };
            let (timestamp, _) = self.sealed_at(&segment, next.first_group - 1)?;
            Ok(Some((next.first_position, timestamp)))
        });
        found.or_else(|failure| {
            let Some((segment, next)) = both() else { return Ok(None) };
            Ok(Some((next.first_position, self.no_later(&segment, failure)?)))
        })
    }

    /// Where stream 0 and all others go on behind these segments.
    fn left(&self, dropped: &[Arc<Segment>], position: u64) -> Result<(u64, Vec<Left>), Failure> {
        let (mut firsts, declarations): (Vec<_>, Vec<_>) = {
            let streams = self.streams.read().unwrap();
            let declared = streams.info.iter().take_while(|info| info.declared);
            let behind_gaps = |info: &Info| {
                let before = info.skipped.iter().rfind(|gap| gap.position < position);
                before.map_or(info.first, |gap| gap.to)
            };
            declared.map(|info| (behind_gaps(info), info.declaration.clone())).unzip()
        };
        for segment in dropped {
            let entries = self.index(segment).and_then(|index| Ok(index.lookup(segment)?.streams()));
            match entries.map_err(Failure::from) {
                Err(failure) if is_lost(&failure) => {
                    firsts = self.going_on(position, firsts.len())?;
                    break;
                }
                entries => {
                    for entry in entries? {
                        let first = firsts
                            .get_mut(entry.stream as usize)
                            .ok_or(Failure::Misled { position: self.durable() })?;
                        *first = (*first).max(entry.next);
                    }
                }
            }
        }
        let streams = firsts.iter().zip(declarations).skip(1);
        Ok((firsts[0], streams.map(|(&first, declaration)| Left { declaration, first }).collect()))
    }

    /// The same by what there is from this position on, which takes longer.
    fn going_on(&self, position: u64, count: usize) -> Result<Vec<u64>, Failure> {
        let mut firsts: Vec<_> = {
            let streams = self.streams.read().unwrap();
            let behind_gaps = |info: &Info| {
                let gap = info.skipped.iter().find(|gap| gap.position >= position);
                gap.map_or(info.durable, |gap| gap.from.min(info.durable))
            };
            streams.info.iter().take(count).map(behind_gaps).collect()
        };
        for segment in self.newest_first().iter().filter(|segment| segment.header.first_position >= position) {
            for entry in self.index(segment)?.lookup(segment)?.streams() {
                if let Some(first) = firsts.get_mut(entry.stream as usize) {
                    *first = (*first).min(entry.first);
                }
            }
        }
        Ok(firsts)
    }

    /// Time and incarnation of a group of a segment.
    fn sealed_at(&self, segment: &Arc<Segment>, number: u64) -> Result<(u64, u32), Failure> {
        let misled = || Failure::Misled { position: segment.header.first_position };
        let group = self.index(segment)?.lookup(segment)?.group_of_number(number).ok_or_else(misled)?;
        let place = group.place as u64;
        let bytes = segment.read(place, GROUP_HEADER)?;
        let header = GroupHeader::decode(&bytes, &segment.header.salt, place).map_err(|Damage(what)| {
            let (segment, position) = (segment.header.number, segment.header.first_position);
            Failure::Damaged { segment, place, group: number, position, what }
        })?;
        if header.number == number { Ok((header.timestamp, header.incarnation)) } else { Err(misled()) }
    }

    /// The same of what follows the segment, if its last group is damaged: neither is ever less there.
    fn behind(&self, segment: &Arc<Segment>, failure: Failure) -> Result<(u64, u32), Failure> {
        let next = self.segments.read().unwrap().get(&(segment.header.number + 1)).cloned();
        let Some(next) = next.filter(|_| is_lost(&failure)) else { return Err(failure) };
        let end = self.end();
        if end.group < next.header.first_group {
            return Ok((end.timestamp, end.incarnation));
        }
        self.sealed_at(&next, next.header.first_group).map_err(|_| failure)
    }

    /// What neither is less than there, if that is damaged, too.
    fn at_least(&self, segment: &Arc<Segment>, last: u64, failure: Failure) -> Result<(u64, u32), Failure> {
        if !is_lost(&failure) {
            return Err(failure);
        }
        let mut groups = (segment.header.first_group..last).rev().take(NEAR);
        let known = || self.retained().map_or((0, 0), |before| (before.timestamp, before.incarnation));
        Ok(groups.find_map(|group| self.sealed_at(segment, group).ok()).unwrap_or_else(known))
    }

    /// When the segment had ended at the latest.
    fn no_later(&self, segment: &Arc<Segment>, failure: Failure) -> Result<u64, Failure> {
        if !is_lost(&failure) {
            return Err(failure);
        }
        let after = segment.header.number + 1;
        let later: Vec<_> = self.segments.read().unwrap().range(after..).map(|(_, segment)| segment.clone()).collect();
        let end = self.end();
        for (i, segment) in later.iter().enumerate() {
            let upto = later.get(i + 1).map_or(end.group + 1, |after| after.header.first_group);
            let mut groups = (segment.header.first_group..upto).take(NEAR);
            if let Some((timestamp, _)) = groups.find_map(|group| self.sealed_at(segment, group).ok()) {
                return Ok(timestamp);
            }
        }
        Ok(end.timestamp)
    }

    /// Entries of the producers that have sent nothing since this group: in the clear, or sealed for each stream.
    #[allow(clippy::type_complexity)]
    fn silent(&self, group: u64) -> (Vec<u8>, Vec<(u32, [u8; NONCE], Vec<u8>)>) {
        let entries = self.producers.lock().unwrap().silent(group);
        // Copied: the tail's lock, which randomness is behind, comes before this one.
        let streams = self.streams.read().unwrap().list.clone();
        let (mut clear, mut sealed) = (Vec::new(), Vec::new());
        for (stream, mut entries) in entries {
            let known = &streams[stream as usize];
            if !known.encrypted {
                clear.extend(entries);
            } else if let Some(keys) = &known.keys {
                let mut nonce = [0; NONCE];
                self.tail.lock().unwrap().sealer.entropy.fill(&mut nonce);
                let tag = Xaes::new(&keys.index).seal(&nonce, &self.associated(stream), &mut entries);
                entries.extend(tag);
                sealed.push((stream, nonce, entries));
            }
        }
        (clear, sealed)
    }

    fn associated(&self, stream: u32) -> Vec<u8> {
        [&domain("kimberlite/retained/1")[..], &self.database.id, &stream.to_le_bytes()].concat()
    }

    /// From here on nothing before it is there.
    pub fn drop_before(&self, retained: Retained) {
        let retained = Arc::new(retained);
        let mut streams = self.streams.write().unwrap();
        streams.info[0].first = retained.system;
        streams.repairs.retain(|&position| position >= retained.position);
        for (info, left) in streams.info.iter_mut().skip(1).zip(&retained.streams) {
            info.first = left.first;
            info.skipped.retain(|gap| gap.position >= retained.position);
        }
        *self.retained.write().unwrap() = Some(retained.clone());
        self.first.store(retained.position, Ordering::Release);
        self.segments.write().unwrap().retain(|&number, _| number >= retained.segment);
    }

    /// Makes an empty log what it was where its first kept segment begins.
    pub fn begin(
        &self,
        retained: Retained,
        keys: &mut dyn FnMut(&Declaration, &Hash) -> Checked<Option<Key>>,
    ) -> Checked<()> {
        let mut tail = self.tail.lock().unwrap();
        let mut producers = self.producers.lock().unwrap();
        let mut streams = self.streams.write().unwrap();
        let (position, chain) = (retained.position, retained.chain);
        for left in &retained.streams {
            let System::Declaration(declaration) = System::decode(&left.declaration)? else {
                return Err(Damage("a retention record names a stream without a declaration"));
            };
            let key = keys(&declaration, &Declaration::hash(&left.declaration))?;
            streams.add(&declaration, &left.declaration, key.as_ref(), true)?;
            streams.set_next(declaration.stream as usize, left.first);
        }
        streams.set_erasures(&retained.erasures)?;
        streams.set_next(0, retained.system);
        let mut entries = retained.producers.clone();
        for (stream, nonce, text) in &retained.sealed {
            let known = streams.list.get(*stream as usize).ok_or(Damage("a retention record names no such stream"))?;
            let Some(keys) = &known.keys else { continue };
            let mut text = text.clone();
            ensure(text.len() >= TAG, "what a retention record keeps of producers is cut short")?;
            let opened = Xaes::new(&keys.index).open(nonce, &self.associated(*stream), &mut text);
            entries.extend_from_slice(
                opened.map_err(|_| Damage("what a retention record keeps of producers does not open"))?,
            );
        }
        producers.begin(&entries)?;
        *self.tree.write().unwrap() = Tree::from_peaks(position, retained.peaks.clone())?;
        let sealer = &mut tail.sealer;
        (sealer.group, sealer.position, sealer.chain) = (retained.group, position, chain);
        (sealer.timestamp, sealer.incarnation) = (retained.timestamp, retained.incarnation);
        tail.position = position;
        (tail.last_place, tail.last_chain) = (0, chain);
        self.durable.store(position, Ordering::Release);
        let (group, timestamp, incarnation) = (retained.group - 1, retained.timestamp, retained.incarnation);
        *self.end.lock().unwrap() = End { group, chain, timestamp, incarnation };
        drop((tail, producers, streams));
        self.collector.lock().unwrap().ahead = true;
        self.drop_before(retained);
        Ok(())
    }

    /// Whether what it began with has not come yet.
    pub fn is_beginning(&self) -> bool {
        self.collector.lock().unwrap().ahead
    }

    /// A retention record that a group has: it is of this log, and goes no less far than those before it.
    pub(super) fn follow_retained(&self, found: Retained) -> Checked<()> {
        const ANOTHER: &str = "a retention record is not of this log";
        {
            let streams = self.streams.read().unwrap();
            let known = streams.info.iter().skip(1).zip(&found.streams);
            let mut same = known.map(|(info, left)| info.declaration == left.declaration && left.first <= info.forming);
            ensure(found.streams.len() < streams.info.len() && same.all(|same| same), ANOTHER)?;
            ensure(found.erasures == streams.erasures_before(found.position), ANOTHER)?;
            let before = self.retained();
            let dropped = before.iter().flat_map(|before| &before.repairs).map(|(position, _)| *position);
            let known = dropped.chain(streams.repairs.iter().copied()).filter(|&position| position < found.position);
            ensure(known.eq(found.repairs.iter().map(|(position, _)| *position)), ANOTHER)?;
        }
        if let Some(before) = self.retained() {
            let ahead = &mut self.collector.lock().unwrap().ahead;
            if *ahead && found.segment < before.segment {
                return Ok(());
            }
            ensure(found.segment >= before.segment, "a retention record takes back what was dropped")?;
            ensure(found == *before || found.segment > before.segment && !*ahead, ANOTHER)?;
            *ahead = false;
        }
        ensure(found.position <= self.durable() && self.may_begin(&found), ANOTHER)?;
        if let Some(peaks) = self.peaks_at(found.position, 0) {
            ensure(peaks == found.peaks, "a retention record names another tree")?;
        }
        self.drop_before(found);
        Ok(())
    }

    /// Whether its first segment begins as it says, or is dropped by another that comes yet.
    fn may_begin(&self, found: &Retained) -> bool {
        let segments = self.segments.read().unwrap();
        match segments.get(&found.segment).map(|segment| &segment.header) {
            Some(first) => {
                (first.first_group, first.first_position, first.before) == (found.group, found.position, found.chain)
            }
            None => segments.keys().next().is_some_and(|&first| found.segment < first),
        }
    }

    /// A hash of the tree over what was dropped, of which only its peaks are sure to be known.
    pub(super) fn dropped_hash(&self, index: u64) -> Option<Hash> {
        if index >= stored(self.first()) {
            return None;
        }
        let retained = self.retained()?;
        let at = peak_places(retained.position).iter().position(|&place| place == index)?;
        Some(retained.peaks[at])
    }
}

/// Whether it is damaged, or a file of it is gone.
fn is_lost(failure: &Failure) -> bool {
    failure.is_damage() || matches!(failure, Failure::Io(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Looks through segments for what they say was dropped, of a log whose beginning is gone.
pub struct Search {
    system: Arc<Stream>,
    collector: Collector,
    walk: Option<Walk>,
}

impl Search {
    pub fn new(log: &Log) -> Self {
        let system = log.streams.read().unwrap().list[0].clone();
        Self { system, collector: Collector::default(), walk: None }
    }

    /// Goes on with the next segment.
    pub fn enter(&mut self, segment: SegmentHeader) {
        self.walk = Some(Walk::new(segment));
    }

    /// The group that is next in the segment, and its first position.
    pub fn next(&self) -> (u64, u64) {
        let next = self.walk.as_ref().expect("a segment was entered").expected();
        (next.number, next.position)
    }

    /// What the groups in `data`, which starts at `place` of the segment, say, in their order.
    pub fn take(&mut self, database: &Database, place: u64, data: &[u8]) -> (Replayed, Vec<Retained>) {
        let (system, collector, mut found) = (&self.system, &mut self.collector, Vec::new());
        let walk = self.walk.as_mut().expect("a segment was entered");
        let replayed = walk.take(database, place, data, |group, _| {
            for run in group.runs.iter().filter(|run| run.header.stream == 0) {
                let opened = group::open_run(database, system, run)?.ok_or(Damage("the system's stream is plain"))?;
                for i in 0..opened.count() {
                    // Of one whose first pieces were dropped the rest fits nowhere.
                    if let System::Retained(piece) = System::decode(opened.decoded(i).payload)?
                        && let Ok(Some(whole)) = collector.take(&piece)
                    {
                        found.push(whole);
                    }
                }
            }
            Ok(())
        });
        (replayed, found)
    }
}
