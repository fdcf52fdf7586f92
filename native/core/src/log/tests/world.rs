//! A log on files in memory, and beside it the list of what it must hold.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, RwLock};

pub use super::bytes::{File, Random};
pub use super::state::{State, state};
use crate::format::{Checked, Hash, SEGMENT_HEADER, SegmentHeader};
use crate::group::{self, Database, OVERHEAD, Placed, Sealed, bound};
use crate::keys::{Entropy, GroupKey, Key, StreamKeys};
use crate::log::{Admission, Index, Log, Part, Refused, Secrets, Segment, Source, derived_mac};
use crate::record::{Batch, Record};
use crate::system::{Declaration, Gap, Several};

pub const IDENTITY: Hash = [2; 32];
pub const RECEIPT: Key = [3; 32];
pub const SEVERAL: Key = [4; 32];
pub const QUANTUM: usize = 128;

#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub tagged: bool,
    pub level: Option<i32>,
}

pub fn empty_log(shape: Shape, cache: usize) -> Log {
    let group_key = shape.tagged.then(|| GroupKey::new(&[9; 32]));
    let database = Database { id: [1; 16], identity: IDENTITY, quantum: QUANTUM, tagged: shape.tagged, group_key };
    let secrets = Secrets { receipt: RECEIPT, several: SEVERAL };
    Log::new(database, secrets, shape.level, cache, Entropy::seeded(b"log"))
}

pub fn stream_key(stream: u32) -> Key {
    [100 + stream as u8; 32]
}

pub fn keys(declaration: &Declaration, _: &Hash) -> Checked<Option<Key>> {
    Ok(declaration.encrypted.then(|| stream_key(declaration.stream)))
}

/// A record that was sealed or is about to be; its index in the list is its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub stream: u32,
    pub offset: u64,
    pub bytes: Vec<u8>,
    pub group: u64,
    pub timestamp: u64,
}

/// What a producer sent: its parts, and where they are.
pub struct Sent {
    pub parts: Vec<(u32, Batch)>,
    pub group: u64,
    /// Offset and position of the first record of each part.
    pub places: Vec<(u64, u64)>,
}

/// A producer, and the stream that it counts in.
pub type Sender = (u32, Vec<u8>);

/// The log as it was when nothing was in flight.
pub struct Cut {
    pub segment: usize,
    pub place: u64,
    pub snapshot: Vec<u8>,
    pub state: State,
}

pub struct World {
    pub shape: Shape,
    pub log: Log,
    pub random: Random,
    pub files: Vec<Arc<File>>,
    pub segments: Vec<Arc<Segment>>,
    pub hashes: Arc<File>,
    /// The file of producers' entries.
    pub entries: Vec<u8>,
    pub kept: Vec<Kept>,
    /// Kept records that are sealed, and that are published.
    pub sealed: usize,
    pub published: usize,
    pub lengths: Vec<u64>,
    /// Stream, from, up to, and the position of what says so.
    pub gaps: Vec<(u32, u64, u64, u64)>,
    pub sent: BTreeMap<Sender, Vec<Sent>>,
    pub place: u64,
    pub cuts: Vec<Cut>,
    /// The index of each closed segment, as its file.
    pub indexes: Vec<Vec<u8>>,
    declarations: Vec<Vec<u8>>,
    declared: usize,
    group: u64,
    time: u64,
    room: usize,
    flying: VecDeque<Sealed>,
}

impl World {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let mut world = Self {
            shape,
            log: empty_log(shape, 1 << 16),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            files: vec![],
            segments: vec![],
            hashes: Arc::default(),
            entries: vec![],
            kept: vec![],
            sealed: 0,
            published: 0,
            lengths: vec![0],
            gaps: vec![],
            sent: BTreeMap::new(),
            place: 0,
            cuts: vec![],
            indexes: vec![],
            declarations: vec![vec![]],
            declared: 0,
            group: 1,
            time: 0,
            room: OVERHEAD,
            flying: VecDeque::new(),
        };
        world.log.set_hashes(Some(world.hashes.clone()));
        world.begin_segment();
        world
    }

    fn begin_segment(&mut self) {
        let header = self.log.next_segment(self.files.len() as u64);
        let file = Arc::new(File::default());
        file.write(0, &header.encode());
        let segment = Arc::new(Segment::active(header, file.clone()));
        self.log.attach(segment.clone());
        self.files.push(file);
        self.segments.push(segment);
        self.place = SEGMENT_HEADER as u64;
    }

    pub fn header(&self, segment: usize) -> SegmentHeader {
        self.segments[segment].header
    }

    pub fn add_stream(&mut self, encrypted: bool) -> u32 {
        assert_eq!(self.kept.len(), self.sealed, "a group's room is known before it forms");
        let stream = self.lengths.len() as u32;
        let name = format!("stream {stream}");
        let declaration = Declaration { stream, encrypted, random: [stream as u8; 16], largest_record: 0, name };
        let key = encrypted.then(|| stream_key(stream));
        assert_eq!(self.log.add_stream(&declaration.encode(), key.as_ref()), Ok(stream));
        self.declarations.push(declaration.encode());
        self.lengths.push(0);
        stream
    }

    fn keep(&mut self, stream: u32, bytes: &[u8]) {
        let offset = &mut self.lengths[stream as usize];
        self.kept.push(Kept { stream, offset: *offset, bytes: bytes.to_vec(), group: self.group, timestamp: 0 });
        *offset += 1;
    }

    fn keep_system(&mut self, payload: &[u8]) {
        let mut bytes = Vec::new();
        Record { key: None, headers: b"", event_time: None, payload }.append_to(&mut bytes);
        self.keep(0, &bytes);
    }

    /// Admits an append that must be accepted, and keeps what the group must get for it.
    pub fn append(&mut self, parts: Vec<(u32, Batch)>, producer: Option<(&[u8], u64)>, several: bool) {
        let expect = |stream: &u32| Some(self.lengths[*stream as usize]);
        let offered = offer(&parts, expect);
        if self.kept.len() == self.sealed {
            self.room = OVERHEAD + self.log.streams.read().unwrap().undeclared_bound(0, u32::MAX);
        }
        self.room += parts.iter().map(|(_, batch)| bound(batch, QUANTUM)).sum::<usize>();
        self.room += if several && producer.is_some() { 512 + 16 * parts.len() } else { 0 };
        // A clock may go back, log time may not.
        let now = self.random.below(2 * self.time + 1);
        let admitted = self.log.admit(&offered, producer, several, now);
        parts.iter().for_each(|(stream, _)| self.keep_declarations(*stream));
        if let (true, Some((id, sequence))) = (several, producer) {
            self.keep_system(&self.several(&parts, id, sequence).encode());
        }
        let mut places = Vec::new();
        for (stream, batch) in &parts {
            places.push((self.lengths[*stream as usize], self.kept.len() as u64));
            (0..batch.ends.len()).for_each(|i| self.keep(*stream, batch.record(i)));
        }
        assert_eq!(admitted, Ok(Admission::New(places.clone())));
        if let Some((id, sequence)) = producer {
            let sender = (if several { 0 } else { parts[0].0 }, id.to_vec());
            let sent = self.sent.entry(sender).or_default();
            assert_eq!(sent.len() as u64, sequence);
            sent.push(Sent { parts, group: self.group, places });
        }
    }

    /// Puts a system record into the group that is forming, whatever it says.
    pub fn force(&mut self, payload: &[u8]) {
        let mut batch = Batch::default();
        batch.push(&Record { key: None, headers: b"", event_time: None, payload });
        self.room += bound(&batch, QUANTUM);
        {
            let mut tail = self.log.tail.lock().unwrap();
            let mut streams = self.log.streams.write().unwrap();
            let offset = streams.info[0].forming;
            (streams.info[0].forming, tail.position) = (offset + 1, tail.position + 1);
            tail.forming.push(Placed { stream: streams.list[0].clone(), offset, batch: Arc::new(batch) });
        }
        self.keep_system(payload);
    }

    fn keep_declarations(&mut self, upto: u32) {
        for number in self.declared + 1..=upto as usize {
            self.declared = number;
            self.keep_system(&self.declarations[number].clone());
        }
    }

    /// Moves a stream on, with nothing at so many offsets.
    pub fn skip(&mut self, stream: u32, count: u64) {
        if self.kept.len() == self.sealed {
            self.room = OVERHEAD + self.log.streams.read().unwrap().undeclared_bound(0, u32::MAX);
        }
        self.room += 512;
        let from = self.lengths[stream as usize];
        let (to, reason) = (from + count, "lost".to_owned());
        let part = Part { stream, batch: Arc::default(), expect: Some(to), gap: Some(reason.clone()) };
        let admitted = self.log.admit(&[part], None, false, 0);
        self.keep_declarations(stream);
        let place = (self.lengths[0], self.kept.len() as u64);
        self.keep_system(&Gap { stream, from, to, reason }.encode());
        self.gaps.push((stream, from, to, place.1));
        self.lengths[stream as usize] = to;
        assert_eq!(admitted, Ok(Admission::New(vec![place])));
    }

    /// How long a stream was where a position is.
    pub fn length_before(&self, stream: u32, position: u64) -> u64 {
        let before = self.kept.iter().take(position as usize).rfind(|kept| kept.stream == stream);
        let gap = self.gaps.iter().rfind(|gap| gap.0 == stream && gap.3 < position);
        before.map_or(0, |kept| kept.offset + 1).max(gap.map_or(0, |gap| gap.2))
    }

    /// The system record of an append to several streams, spelled out.
    fn several(&self, parts: &[(u32, Batch)], id: &[u8], sequence: u64) -> Several {
        let mut text = Vec::new();
        let mut listed = Vec::new();
        for (stream, batch) in parts {
            let count = batch.ends.len() as u32;
            text.extend([stream.to_le_bytes(), count.to_le_bytes()].concat());
            let encrypted = self.log.streams.read().unwrap().list[*stream as usize].encrypted;
            let key = if encrypted { StreamKeys::new(&stream_key(*stream)).index } else { IDENTITY };
            text.extend(group::digest(&key, &batch.bytes));
            listed.push((*stream, self.lengths[*stream as usize], count));
        }
        let digest = group::digest(&SEVERAL, &text);
        Several { producer: group::producer(&SEVERAL, id), sequence, digest, parts: listed }
    }

    /// Admits what must be refused, or remembered, and must leave no trace.
    pub fn refuse(
        &mut self,
        parts: &[(u32, Batch)],
        expect: Option<u64>,
        producer: Option<(&[u8], u64)>,
        several: bool,
    ) -> Result<Admission, Refused> {
        let before = state(&self.log);
        let forming = self.log.tail.lock().unwrap().forming.len();
        let answer = self.log.admit(&offer(parts, |_| expect), producer, several, self.time);
        assert_eq!(state(&self.log), before);
        assert_eq!(self.log.tail.lock().unwrap().forming.len(), forming);
        answer
    }

    /// Seals what is forming, writes it and makes its leaves; nobody may see it yet.
    pub fn seal(&mut self, closing: bool) {
        let now = 1_000 + self.random.below(2_000) + self.sealed as u64 * 10;
        self.time = self.time.max(now);
        for kept in &mut self.kept[self.sealed..] {
            kept.timestamp = self.time;
        }
        let segment = self.segments.last().unwrap().clone();
        let mut out = vec![0xee; std::mem::replace(&mut self.room, OVERHEAD)];
        let durable = self.group - 1 - self.flying.len() as u64;
        let mut sealed = self.log.seal(&segment, self.place, durable, now, closing, &mut out);
        assert_eq!((sealed.number, sealed.first_position), (self.group, self.sealed as u64));
        assert_eq!(sealed.records as usize, self.kept.len() - self.sealed);
        assert_eq!(sealed.timestamp, self.time);
        self.files.last().unwrap().write(self.place as usize, &out[..sealed.padded]);
        let (size, root) = self.log.finish(&segment, &mut sealed);
        assert_eq!((size, root), self.log.root());
        self.place += sealed.padded as u64;
        self.sealed = self.kept.len();
        self.group += 1;
        self.flying.push_back(sealed);
    }

    pub fn publish_one(&mut self) {
        let sealed = self.flying.pop_front().unwrap();
        self.log.publish(&sealed);
        self.published += sealed.records as usize;
        assert_eq!(self.log.durable(), self.published as u64);
        let end = self.log.end();
        assert_eq!((end.group, end.chain, end.timestamp), (sealed.number, sealed.chain, sealed.timestamp));
    }

    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    pub fn publish(&mut self) {
        while !self.flying.is_empty() {
            self.publish_one();
        }
    }

    /// Seals what is forming, if anything is, and publishes everything.
    pub fn settle(&mut self) {
        if self.kept.len() > self.sealed {
            self.seal(false);
        }
        self.publish();
    }

    /// Writes derived files, and takes a snapshot.
    pub fn cut(&mut self) {
        self.settle();
        self.flush_hashes();
        self.entries.extend(self.log.take_producers(self.group - 1, 0).0);
        let segment = self.segments.len() - 1;
        let salt = self.header(segment).salt;
        let snapshot = self.log.snapshot(segment as u64, self.place, &salt, self.entries.len() as u64);
        self.cuts.push(Cut { segment, place: self.place, snapshot, state: state(&self.log) });
    }

    pub fn flush_hashes(&mut self) {
        let (first, hashes) = self.log.take_hashes(usize::MAX, false);
        self.hashes.write(crate::format::HASHES_HEADER + 32 * first as usize, hashes.as_flattened());
        self.log.flushed_hashes(first + hashes.len() as u64);
    }

    /// Ends the segment and begins the next; the old one is looked up in its index file, or in none.
    pub fn rotate(&mut self) {
        self.settle();
        self.seal(true);
        self.publish();
        let closed = self.segments.last().unwrap().clone();
        let file = Arc::new(index_file(&closed));
        self.indexes.push(file.bytes());
        let file = self.random.one_in(2).then_some(file as Arc<dyn Source>);
        *closed.index.write().unwrap() = Arc::new(Index::closed(file, RECEIPT));
        self.begin_segment();
    }
}

/// The index of a segment that is active, as its file.
pub fn index_file(segment: &Segment) -> File {
    let Index::Active(index) = &*segment.index() else { panic!("the segment is closed") };
    let mut bytes = index.encode();
    bytes.extend(derived_mac(&RECEIPT, &bytes));
    File(RwLock::new(bytes))
}

pub fn offer(parts: &[(u32, Batch)], expect: impl Fn(&u32) -> Option<u64>) -> Vec<Part> {
    let part = |(stream, batch): &(u32, Batch)| Part {
        stream: *stream,
        batch: Arc::new(batch.clone()),
        expect: expect(stream),
        gap: None,
    };
    parts.iter().map(part).collect()
}
