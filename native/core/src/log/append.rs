//! The way in: admitted, sealed, finished, published.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batches::several_head;
use super::erased::Said;
use super::segment::Index;
use super::{End, Log, Segment, Skipped};
use crate::format::{CLOSING, Checked, Damage, Hash, SegmentHeader, fits, put};
use crate::group::{self, Digest, Placed, Sealed};
use crate::index::{GroupEntry, RunEntry};
use crate::keys::{Key, domain};
use crate::producers::{Producers, Verdict};
use crate::record::{Batch, Producer, Record};
use crate::system::{Gap, Several, System};

/// One stream's share of an append.
pub struct Part {
    pub stream: u32,
    pub batch: Arc<Batch>,
    /// The offset its first record must get.
    pub expect: Option<u64>,
    /// Why the stream is moved to that offset first, if it is not as long. Then there need be no records.
    pub gap: Option<String>,
}

impl Part {
    /// Whether it may go where the stream ends now.
    fn fits(&self, length: u64) -> bool {
        match self.expect {
            None => true,
            Some(expect) if self.gap.is_none() => expect == length,
            Some(expect) => length < expect || length == expect && !self.batch.ends.is_empty(),
        }
    }
}

/// Why nothing was admitted, and nothing consumed.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    Expected {
        stream: u32,
        length: u64,
    },
    /// The stream would be longer than any may be.
    Full {
        stream: u32,
    },
    Sequence {
        expected: u64,
    },
    DigestDiffers,
    Forgotten,
    /// It may have been appended, by a producer that is known no more. The last group: whoever has not sent it before names
    /// this one, and is not late.
    Doubtful {
        group: u64,
    },
    NoKey {
        stream: u32,
    },
    Erased {
        stream: u32,
    },
    /// A system record that does not fit to the log.
    Unfit(&'static str),
    /// Of records that keep their time: the log's is later, or it is not that late yet.
    Past {
        last: u64,
    },
    Future,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Offset and position of each part's first record.
    New(Vec<(u64, u64)>),
    /// This very append is in a group already.
    Remembered { group: u64 },
}

/// A producer and what it sends, as tables know it.
pub(super) struct Named {
    pub stream: u32,
    pub id: [u8; 16],
    pub digest: [u8; 16],
}

impl Log {
    /// Gives the parts their numbers in the group that is forming.
    pub fn admit(
        &self,
        parts: &[Part],
        producer: Option<(&[u8], u64)>,
        several: bool,
        now: u64,
    ) -> Result<Admission, Refused> {
        self.admit_again(parts, producer, None, several, now)
    }

    /// The same for what may have been sent before, when this group was the last of which the producer knew.
    pub fn admit_again(
        &self,
        parts: &[Part],
        producer: Option<(&[u8], u64)>,
        since: Option<u64>,
        several: bool,
        now: u64,
    ) -> Result<Admission, Refused> {
        let mut tail = self.tail.lock().unwrap();
        let mut producers = self.producers.lock().unwrap();
        let mut streams = self.streams.write().unwrap();
        for &Part { stream, .. } in parts {
            if streams.erased(stream).is_some() {
                return Err(Refused::Erased { stream });
            }
            if !streams.list[stream as usize].opens() {
                return Err(Refused::NoKey { stream });
            }
        }
        let named = producer.map(|(id, _)| self.name(&streams, parts, id, several));
        if let (Some(named), Some((_, sequence))) = (&named, producer)
            && let Some(group) = judged(&producers, named, sequence, since, tail.sealer.group)?
        {
            return Ok(Admission::Remembered { group });
        }
        for part in parts {
            let length = streams.info[part.stream as usize].forming;
            if !part.fits(length) {
                return Err(Refused::Expected { stream: part.stream, length });
            }
            if !fits(part.expect.unwrap_or(length), part.batch.ends.len()) {
                return Err(Refused::Full { stream: part.stream });
            }
        }
        if let [Part { stream: 0, batch, .. }] = parts {
            let at = Said { position: tail.position, timestamp: tail.sealer.timestamp.max(now) };
            let heard = Record::decode(&batch.bytes).and_then(|(record, _)| System::decode(record.payload));
            heard.and_then(|system| streams.hear(&system, at)).map_err(|Damage(what)| Refused::Unfit(what))?;
        }
        if let (Some(named), Some((id, sequence))) = (named, producer) {
            let (group, time) = (tail.sealer.group, tail.sealer.timestamp.max(now));
            producers.apply(named.stream, &named.id, sequence, &named.digest, group, time);
            if named.stream == 0 {
                let declarations: Vec<_> = parts.iter().flat_map(|part| streams.undeclared(part.stream)).collect();
                for payload in &declarations {
                    tail.system(&mut streams, payload);
                }
                let parts = parts
                    .iter()
                    .map(|part| (part.stream, streams.info[part.stream as usize].forming, part.batch.ends.len() as u32))
                    .collect();
                let several = Several { producer: named.id, sequence, digest: named.digest, parts };
                tail.system(&mut streams, &several.encode());
            } else {
                let producer = Producer { id: id.to_vec(), sequence, digest: named.digest };
                parts[0].batch.producer.set(producer).expect("a batch is admitted once");
            }
        }
        let declarations: Vec<_> = parts.iter().flat_map(|part| streams.undeclared(part.stream)).collect();
        for payload in &declarations {
            tail.system(&mut streams, payload);
        }
        Ok(Admission::New(parts.iter().map(|part| tail.place(&mut streams, part)).collect()))
    }

    /// The same for records that keep their time, which is that of all of the group. A gap has none.
    pub fn admit_at(&self, parts: &[Part], time: u64, now: u64) -> Result<Admission, Refused> {
        let last = self.tail.lock().unwrap().sealer.timestamp;
        if time < last && parts.iter().any(|part| !part.batch.ends.is_empty()) {
            return Err(Refused::Past { last });
        }
        if time > now {
            return Err(Refused::Future);
        }
        self.admit(parts, None, false, time)
    }

    /// The group that an append is in already, if it is in one; or why nobody can know, or tell. Of what was not appended
    /// nothing is said.
    pub fn repeated(
        &self,
        parts: &[Part],
        (id, sequence): (&[u8], u64),
        since: Option<u64>,
        several: bool,
    ) -> Result<Option<u64>, Refused> {
        let tail = self.tail.lock().unwrap();
        let producers = self.producers.lock().unwrap();
        let streams = self.streams.read().unwrap();
        if !parts.iter().all(|part| streams.list[part.stream as usize].opens()) {
            return Ok(None);
        }
        let named = self.name(&streams, parts, id, several);
        match judged(&producers, &named, sequence, since, tail.sealer.group) {
            Err(Refused::Sequence { .. }) => Ok(None),
            judged => judged,
        }
    }

    /// Puts declarations into the group that is forming, so many bytes of it at most; what they take.
    pub fn declare(&self, most: usize) -> usize {
        let mut tail = self.tail.lock().unwrap();
        let mut streams = self.streams.write().unwrap();
        let (declarations, bound) = streams.undeclared_within(most);
        for payload in &declarations {
            tail.system(&mut streams, payload);
        }
        bound
    }

    pub(super) fn name(&self, streams: &super::Streams, parts: &[Part], id: &[u8], several: bool) -> Named {
        let key_of = |part: &Part| {
            let stream = &streams.list[part.stream as usize];
            stream.index_key(&self.database.identity).expect("streams without a key were refused")
        };
        let of_stream = |part: &Part| group::digest(key_of(part), &part.batch.bytes);
        if let (false, [part]) = (several, parts) {
            return Named { stream: part.stream, id: group::producer(key_of(part), id), digest: of_stream(part) };
        }
        let key = &self.keys.several;
        let mut digest = Digest::new(key);
        for part in parts {
            digest.update(&several_head(part.stream, part.batch.ends.len() as u32));
            // Under the stream's own key: without that it is to say nothing of the records.
            digest.update(&of_stream(part));
        }
        Named { stream: 0, id: group::producer(key, id), digest: digest.finish() }
    }

    /// The bytes of the group that is forming, into `out`.
    pub fn seal(
        &self,
        segment: &Segment,
        place: u64,
        durable_upto: u64,
        now: u64,
        closing: bool,
        out: &mut [u8],
    ) -> Sealed {
        let mut tail = self.tail.lock().unwrap();
        let forming = std::mem::take(&mut tail.forming);
        let flags = if closing { CLOSING } else { 0 };
        let salt = &segment.header.salt;
        let mut sealed = tail.sealer.seal(&self.database, &forming, salt, place, durable_upto, now, flags, out);
        sealed.gaps = std::mem::take(&mut tail.gaps);
        (tail.last_place, tail.last_chain) = (place, sealed.chain);
        sealed
    }

    /// Leaves, tree and index of a sealed group: what its bytes did not have to wait for. Returns size and root.
    pub fn finish(&self, segment: &Segment, sealed: &mut Sealed) -> (u64, Hash) {
        let leaves = sealed.leaves();
        let runs: Vec<RunEntry> = sealed
            .runs
            .iter()
            .map(|run| RunEntry {
                position: run.first_position,
                offset: run.first_offset,
                stream: run.stream.number,
                records: run.records,
                place: run.place as u32,
                length: run.length,
            })
            .collect();
        let (number, position, timestamp) = (sealed.number, sealed.first_position, sealed.timestamp);
        let group = GroupEntry { number, position, timestamp, place: sealed.place as u32 };
        let index = segment.index();
        let Index::Active(index) = &*index else { panic!("groups are sealed into the active segment") };
        index.append_group(&group, &runs).expect("what is sealed follows what was sealed before");
        let mut tree = self.tree.write().unwrap();
        tree.push(&leaves);
        (tree.size(), tree.root())
    }

    /// The group, and with it every one before it, is on the disk.
    pub fn publish(&self, sealed: &Sealed) {
        // Whoever finds a group knows its incarnation.
        *self.end.lock().unwrap() = End {
            group: sealed.number,
            chain: sealed.chain,
            timestamp: sealed.timestamp,
            incarnation: sealed.incarnation,
        };
        let mut streams = self.streams.write().unwrap();
        let runs = sealed.runs.iter().map(|run| (run.stream.number, run.first_offset + run.records as u64));
        for (stream, next) in runs.chain(sealed.gaps.iter().copied()) {
            let durable = &mut streams.info[stream as usize].durable;
            *durable = next.max(*durable);
        }
        self.durable.store(sealed.first_position + sealed.records as u64, Ordering::Release);
    }

    /// The header of the next segment; from here on groups are chained to it.
    pub fn next_segment(&self, number: u64) -> SegmentHeader {
        let mut tail = self.tail.lock().unwrap();
        let mut salt = [0; 32];
        tail.sealer.entropy.fill(&mut salt);
        let header = SegmentHeader {
            database: self.database.id,
            number,
            first_group: tail.sealer.group,
            first_position: tail.sealer.position,
            before: tail.sealer.chain,
            salt,
            packed: None,
        };
        tail.sealer.chain = header.chain();
        tail.last_place = 0;
        header
    }
}

impl Log {
    /// Adds a stream whose declaration is in no group yet.
    pub fn add_stream(&self, encoded: &[u8], key: Option<&Key>) -> Checked<u32> {
        let System::Declaration(declaration) = System::decode(encoded)? else {
            return Err(Damage("this is not a declaration"));
        };
        self.streams.write().unwrap().add(&declaration, encoded, key, false)?;
        Ok(declaration.stream)
    }

    /// Groups from here on have at least this one.
    pub fn raise_incarnation(&self, incarnation: u32) {
        let sealer = &mut self.tail.lock().unwrap().sealer;
        sealer.incarnation = sealer.incarnation.max(incarnation);
    }

    /// Of the groups that are sealed from here on.
    pub fn incarnation(&self) -> u32 {
        self.tail.lock().unwrap().sealer.incarnation
    }

    pub fn random(&self) -> [u8; 16] {
        let mut out = [0; 16];
        self.tail.lock().unwrap().sealer.entropy.fill(&mut out);
        out
    }
}

/// What the table says of a producer's batch: the group that it is in; None if it is the next one.
fn judged(
    producers: &Producers,
    named: &Named,
    sequence: u64,
    since: Option<u64>,
    forming: u64,
) -> Result<Option<u64>, Refused> {
    if let Some(since) = since {
        // Whoever has seen a group that is not there yet has seen another log.
        if since >= forming || producers.is_doubtful(named.stream, &named.id, since) {
            // One that is forming is sealed before anybody is told.
            return Err(Refused::Doubtful { group: producers.forgotten().max(forming - 1) });
        }
    }
    match producers.check(named.stream, &named.id, sequence, &named.digest) {
        Verdict::New => Ok(None),
        Verdict::Duplicate { group } => Ok(Some(group)),
        Verdict::Conflict { expected } if expected > sequence => Err(Refused::DigestDiffers),
        Verdict::Conflict { expected } => Err(Refused::Sequence { expected }),
        Verdict::Forgotten => Err(Refused::Forgotten),
    }
}

/// What an acknowledged append is told. `docs/format.md`, "Receipts".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub group: u64,
    pub tree_size: u64,
    pub root: Hash,
    pub chain: Hash,
    pub incarnation: u32,
    pub durable: bool,
    pub stream: u32,
    pub first_offset: u64,
    pub last_offset: u64,
    pub first_position: u64,
    pub last_position: u64,
    pub timestamp: u64,
}

/// The key of the receipts that share an ending: made once for a group.
pub struct EndingKey([u8; 32]);

impl Receipt {
    pub fn ending_key(&self, log: &Log) -> EndingKey {
        let mut hasher = blake3::Hasher::new_keyed(&log.keys.receipt);
        hasher.update(&domain("kimberlite/receipt/1")).update(&log.database.id);
        hasher.update(&self.group.to_le_bytes()).update(&self.tree_size.to_le_bytes());
        hasher.update(&self.root).update(&self.chain).update(&self.incarnation.to_le_bytes());
        hasher.update(&[u8::from(self.durable)]).update(&self.timestamp.to_le_bytes());
        EndingKey(*hasher.finalize().as_bytes())
    }

    pub fn mac_under(&self, key: &EndingKey) -> [u8; 16] {
        let mut places = [0; 36];
        put(&mut places, 0, self.stream.to_le_bytes());
        put(&mut places, 4, self.first_offset.to_le_bytes());
        put(&mut places, 12, self.last_offset.to_le_bytes());
        put(&mut places, 20, self.first_position.to_le_bytes());
        put(&mut places, 28, self.last_position.to_le_bytes());
        blake3::keyed_hash(&key.0, &places).as_bytes()[..16].try_into().unwrap()
    }

    pub fn mac(&self, log: &Log) -> [u8; 16] {
        self.mac_under(&self.ending_key(log))
    }
}

impl super::Tail {
    /// Offset and position of its first record, or of what says that there is a gap if it has none.
    fn place(&mut self, streams: &mut super::Streams, part: &Part) -> (u64, u64) {
        let from = streams.info[part.stream as usize].forming;
        if let Some((to, reason)) = part.expect.zip(part.gap.clone()).filter(|(to, _)| *to > from) {
            let said = self.system(streams, &Gap { stream: part.stream, from, to, reason }.encode());
            streams.skip(part.stream as usize, Skipped { position: said.1, from, to });
            self.gaps.push((part.stream, to));
            if part.batch.ends.is_empty() {
                return said;
            }
        }
        self.add(streams, part.stream, part.batch.clone())
    }

    fn add(&mut self, streams: &mut super::Streams, stream: u32, batch: Arc<Batch>) -> (u64, u64) {
        let forming = &mut streams.info[stream as usize].forming;
        let places = (*forming, self.position);
        *forming += batch.ends.len() as u64;
        self.position += batch.ends.len() as u64;
        self.forming.push(Placed { stream: streams.list[stream as usize].clone(), offset: places.0, batch });
        places
    }

    fn system(&mut self, streams: &mut super::Streams, payload: &[u8]) -> (u64, u64) {
        let mut batch = Batch::default();
        batch.push(&Record { key: None, headers: &[], event_time: None, payload });
        self.add(streams, 0, Arc::new(batch))
    }
}
