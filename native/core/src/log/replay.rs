//! Groups from the disk, applied as if they had just been sealed. Recovery, verification and readers beside a
//! writer all come through here.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::segment::{Index, append, entry};
use super::{End, Log, Segment};
use crate::format::{BLOCK, Checked, Damage, GROUP_HEADER, GroupHeader, Hash, ensure, padded, zeros};
use crate::group::{self, Expected, Group, Opened, RunLeaves, hash_leaves};
use crate::keys::Key;
use crate::system::{Declaration, System};

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

    /// Applies the groups in `data`, which starts at `place`, up to and including `last`.
    pub fn replay(&self, segment: &Segment, place: u64, data: &[u8], last: u64, keys: Keys) -> Replayed {
        let mut at = 0;
        let stop = loop {
            let expected = self.expected();
            if expected.number > last {
                break Stop::Done;
            }
            match self.replay_one(segment, place + at as u64, &data[at..], &expected, keys) {
                Ok(Step::Applied { length, closing }) => {
                    at += length;
                    if closing {
                        break Stop::Closed;
                    }
                }
                Ok(Step::More(needed)) => break Stop::More(needed),
                Err(damage) => break Stop::Bad(damage),
            }
        };
        Replayed { place: place + at as u64, stop }
    }

    fn replay_one(&self, segment: &Segment, place: u64, data: &[u8], expected: &Expected, keys: Keys) -> Checked<Step> {
        if data.len() < GROUP_HEADER {
            return Ok(Step::More(BLOCK));
        }
        let salt = &segment.header.salt;
        let header = GroupHeader::decode(data, salt, place)?;
        let length = padded(header.length as usize);
        if length > data.len() {
            // A header of another group would ask for the wrong bytes.
            ensure(header.number == expected.number, "the group's number is not the next one")?;
            return Ok(Step::More(length));
        }
        let group = group::open(&self.database, header, expected, salt, place, &data[..length])?;
        self.apply(segment, &group, keys)?;
        Ok(Step::Applied { length, closing: header.flags & crate::format::CLOSING != 0 })
    }

    fn apply(&self, segment: &Segment, group: &Group, keys: Keys) -> Checked<()> {
        let keys = self.keys_of(group, keys)?;
        let leaves = self.account(group, keys)?;
        let header = &group.header;
        if let Index::Active(index) = &*segment.index() {
            let runs: Vec<_> = group.runs.iter().map(|run| entry(&run.header, run.place)).collect();
            append(index, header, group.place, &runs)?;
        }
        self.tree.write().unwrap().push(&leaves);
        let mut tail = self.tail.lock().unwrap();
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
        Ok(())
    }

    /// The keys of the streams that a group declares, in its order; asked for while no lock is held.
    fn keys_of(&self, group: &Group, keys: Keys) -> Checked<VecDeque<Option<Key>>> {
        let mut found = VecDeque::new();
        for run in group.runs.iter().filter(|run| run.header.stream == 0) {
            let system = self.streams.read().unwrap().list[0].clone();
            let opened = group::open_run(&self.database, &system, run)?.ok_or(Damage("the system's stream is plain"))?;
            for i in 0..opened.count() {
                let payload = opened.decoded(i).payload;
                if let System::Declaration(declaration) = System::decode(payload)? {
                    found.push_back(keys(&declaration, &Declaration::hash(payload))?);
                }
            }
        }
        Ok(found)
    }

    /// Streams, offsets and producers of a group; its leaf hashes.
    fn account(&self, group: &Group, mut keys: VecDeque<Option<Key>>) -> Checked<Vec<Hash>> {
        let mut producers = self.producers.lock().unwrap();
        let mut streams = self.streams.write().unwrap();
        let time = group.header.timestamp;
        let mut opened: Vec<Option<Opened>> = Vec::with_capacity(group.runs.len());
        for run in &group.runs {
            let number = run.header.stream as usize;
            let stream = streams.list.get_mut(number).ok_or(Damage("a run's stream was never declared"))?;
            ensure(run.header.first_offset == stream.next, "a run's offset is not the next one")?;
            stream.next += run.header.records as u64;
            let stream = &streams.list[number];
            let run_opened = group::open_run(&self.database, stream, run)?;
            if let Some(run) = &run_opened {
                if let Some(key) = stream.index_key(&self.database.identity) {
                    for (_, producer) in &run.producers {
                        let id = group::producer(key, &producer.id);
                        producers.apply(number as u32, &id, producer.sequence, &producer.digest, group.header.number, time);
                    }
                }
            }
            let next = stream.next;
            streams.set_next(number, next);
            if number == 0 {
                let run = run_opened.as_ref().expect("the system's stream is plain");
                for i in 0..run.count() {
                    let payload = run.decoded(i).payload;
                    match System::decode(payload)? {
                        System::Declaration(declaration) => {
                            let key = keys.pop_front().flatten();
                            streams.add(&declaration, payload, key.as_ref(), true)?;
                        }
                        System::Several(several) => {
                            let (id, digest) = (&several.producer, &several.digest);
                            producers.apply(0, id, several.sequence, digest, group.header.number, time);
                        }
                    }
                }
            }
            opened.push(run_opened);
        }
        let runs: Checked<Vec<RunLeaves>> = group
            .runs
            .iter()
            .zip(&opened)
            .map(|(run, opened)| {
                let stream = &streams.list[run.header.stream as usize];
                let Some(opened) = opened else { return Ok(run.stated_leaves(stream, time)) };
                let leaves = opened.leaves(stream, time);
                let agrees = !stream.encrypted || leaves.commitments == run.stated();
                ensure(agrees, "a commitment does not match its record")?;
                Ok(leaves)
            })
            .collect();
        Ok(hash_leaves(&runs?))
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

enum Step {
    Applied { length: usize, closing: bool },
    More(usize),
}
