//! The batches of a group, put together again from its runs: each is whole, is what its producer said, and stands where
//! an append to several streams said.

use crate::format::{Checked, Damage, ENDS, RunHeader, ensure};
use crate::group::{Digest, Opened, Stream, producer};
use crate::keys::Key;
use crate::system::{Several, System};

/// Stream, id, sequence and digest of a producer's batch, as tables know it.
pub type Sent = (u32, [u8; 16], u64, [u8; 16]);

pub struct Batches<'a> {
    identity: &'a [u8; 32],
    /// What digests of appends to several streams are keyed with, if that is known.
    several: Option<&'a Key>,
    open: Option<Batch>,
    awaited: Option<Awaited>,
    pub sent: Vec<Sent>,
}

/// A batch whose end has not come.
struct Batch {
    stream: u32,
    records: u32,
    /// Its producer's digest, and that of its records so far.
    digest: Option<([u8; 16], Digest)>,
    /// The same of a part of an append to several streams.
    part: Option<Digest>,
}

/// An append to several streams whose parts are coming.
struct Awaited {
    said: Several,
    /// The part that is next, or has begun.
    part: usize,
    /// None when the records of a part cannot be read.
    digest: Option<Digest>,
}

impl<'a> Batches<'a> {
    pub fn new(identity: &'a [u8; 32], several: Option<&'a Key>) -> Self {
        Self { identity, several, open: None, awaited: None, sent: vec![] }
    }

    /// A run of an encrypted stream without its key.
    pub fn sealed(&mut self, header: &RunHeader) -> Checked<()> {
        self.begin(header.stream, header.first_offset)?;
        if let Some(awaited) = &mut self.awaited {
            awaited.digest = None;
        }
        self.go_on(header.records, header.flags & ENDS != 0)
    }

    pub fn opened(&mut self, stream: &Stream, run: &Opened) -> Checked<()> {
        let key = stream.index_key(self.identity).ok_or(Damage("a run was opened without its key"))?;
        let mut start = 0;
        let mut producers = run.producers.iter().peekable();
        let end = run.count() as u32;
        let open = run.ends.last().is_none_or(|last| last + 1 < end).then_some(end);
        for (upto, ends) in run.ends.iter().map(|last| (last + 1, true)).chain(open.map(|end| (end, false))) {
            let begins = self.begin(stream.number, run.header.first_offset + start as u64)?;
            if begins && self.awaited.as_ref().is_some_and(|awaited| awaited.digest.is_some()) {
                self.open.as_mut().expect("it has begun").part = Some(Digest::new(key));
            }
            if let Some((_, said)) = producers.next_if(|(first, _)| *first == start) {
                ensure(begins, "a producer stands behind the front of its batch")?;
                ensure(stream.number > 0, "a producer of system records")?;
                self.sent.push((stream.number, producer(key, &said.id), said.sequence, said.digest));
                self.open.as_mut().expect("it has begun").digest = Some((said.digest, Digest::new(key)));
            }
            self.digest(run.bytes(start as usize..upto as usize));
            self.go_on(upto - start, ends)?;
            if stream.number == 0 {
                ensure(ends && upto == start + 1, "a system record is a batch of its own")?;
                self.system(run, start as usize)?;
            }
            start = upto;
        }
        Ok(())
    }

    /// Where a group ends.
    pub fn finish(self) -> Checked<Vec<Sent>> {
        ensure(self.open.is_none(), "the group ends inside a batch")?;
        ensure(self.awaited.is_none(), "the group ends inside an append to several streams")?;
        Ok(self.sent)
    }

    /// Whether a batch begins here and does not go on.
    fn begin(&mut self, stream: u32, offset: u64) -> Checked<bool> {
        if let Some(batch) = &self.open {
            ensure(batch.stream == stream, "a batch goes on in another stream")?;
            return Ok(false);
        }
        if let Some(awaited) = &mut self.awaited {
            let (wanted, first, records) = awaited.said.parts[awaited.part];
            ensure((stream, offset) == (wanted, first), "a part of an append to several streams does not follow it")?;
            if let Some(digest) = &mut awaited.digest {
                digest.update(&several_head(stream, records));
            }
        }
        self.open = Some(Batch { stream, records: 0, digest: None, part: None });
        Ok(true)
    }

    fn system(&mut self, run: &Opened, i: usize) -> Checked<()> {
        let record = run.decoded(i);
        let bare = record.key.is_none() && record.headers.is_empty() && record.event_time.is_none();
        ensure(bare, "a system record has a key, headers or an event time")?;
        let System::Several(said) = System::decode(record.payload)? else { return Ok(()) };
        let mut streams: Vec<u32> = said.parts.iter().map(|part| part.0).collect();
        streams.sort_unstable();
        streams.dedup();
        let sound = streams.len() == said.parts.len() && streams.first().is_some_and(|&first| first > 0);
        ensure(sound, "an append to several streams names none of them, the system's, or one twice")?;
        self.sent.push((0, said.producer, said.sequence, said.digest));
        self.awaited = Some(Awaited { said, part: 0, digest: self.several.map(Digest::new) });
        Ok(())
    }

    fn digest(&mut self, bytes: &[u8]) {
        let Some(batch) = &mut self.open else { return };
        if let Some((_, digest)) = &mut batch.digest {
            digest.update(bytes);
        }
        if let Some(digest) = &mut batch.part {
            digest.update(bytes);
        }
    }

    fn go_on(&mut self, records: u32, ends: bool) -> Checked<()> {
        let batch = self.open.as_mut().expect("it has begun");
        batch.records = batch.records.checked_add(records).ok_or(Damage("a batch is too long"))?;
        if !ends {
            return Ok(());
        }
        let batch = self.open.take().expect("it has begun");
        if let Some((said, digest)) = batch.digest {
            ensure(digest.finish() == said, "a batch is not what its producer's digest says")?;
        }
        let Some(mut awaited) = self.awaited.take() else { return Ok(()) };
        ensure(batch.records == awaited.said.parts[awaited.part].2, "a part of an append has another length")?;
        if let (Some(digest), Some(part)) = (&mut awaited.digest, batch.part) {
            digest.update(&part.finish());
        }
        awaited.part += 1;
        if awaited.part < awaited.said.parts.len() {
            self.awaited = Some(awaited);
        } else if let Some(digest) = awaited.digest {
            ensure(digest.finish() == awaited.said.digest, "an append to several streams is not what its digest says")?;
        }
        Ok(())
    }
}

/// What stands in front of each part in the digest of an append to several streams.
pub fn several_head(stream: u32, records: u32) -> [u8; 8] {
    (stream as u64 | (records as u64) << 32).to_le_bytes()
}
