//! The body of an append: decoded into what is stored, from the bytes that arrived, and put together by a client.
use super::cursor::{Cursor, MOST_NODES, Malformed, Parsed, Put};
use super::records::{put_record, take_record};
use crate::format::RECORD_HEADER;
use crate::record::{Batch, LARGEST_BATCH, LARGEST_BATCH_BYTES, Record};

/// Streams of one append.
pub const MOST_PARTS: usize = MOST_NODES / 16;

/// What is wrong with an append: the first is the end of the connection, the others only of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    Malformed(Malformed),
    Invalid(&'static str),
    TooLarge(String),
}

impl From<Malformed> for Refused {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// A stream, what it gets, and the offset that the first record must get there.
#[derive(Debug)]
pub struct Part<'a> {
    pub stream: &'a str,
    pub batch: Batch,
    pub expect: Option<u64>,
}

/// One append to one stream, or to several at once.
#[derive(Debug)]
pub struct Append<'a> {
    pub parts: Vec<Part<'a>>,
    pub producer: Option<(&'a [u8], u64)>,
    /// The last group that the client knew of when it sent this before, if it did.
    pub since: Option<u64>,
    pub sync: Option<&'a str>,
}

impl<'a> Append<'a> {
    /// `[stream, records, expect, producer, sync]`.
    pub fn to_one(body: &'a [u8]) -> Result<Self, Refused> {
        let mut cursor = Cursor::new(body);
        cursor.exactly(5)?;
        let parts = vec![Part::take(&mut cursor)?];
        Ok(Self::take_how(cursor, parts)?)
    }

    /// `[[[stream, records, expect], …], producer, sync]`.
    pub fn to_several(body: &'a [u8]) -> Result<Self, Refused> {
        let mut cursor = Cursor::new(body);
        cursor.exactly(3)?;
        let count = cursor.array()?;
        if count == 0 {
            return Err(Refused::Invalid(NO_RECORDS));
        }
        if count > MOST_PARTS {
            return Err(Refused::TooLarge(format!("an append goes to at most {MOST_PARTS} streams, not {count}")));
        }
        let mut parts = Vec::new();
        for _ in 0..count {
            cursor.exactly(3)?;
            parts.push(Part::take(&mut cursor)?);
        }
        Ok(Self::take_how(cursor, parts)?)
    }

    fn take_how(mut cursor: Cursor<'a>, parts: Vec<Part<'a>>) -> Parsed<Self> {
        let (mut producer, mut since) = (None, None);
        if !cursor.nil()? {
            let length = cursor.array()?;
            if length != 2 && length != 3 {
                return Err(Malformed("an array has another length than it should"));
            }
            producer = Some((cursor.bytes()?, cursor.count()?));
            since = if length == 3 { Some(cursor.count()?) } else { None };
        }
        let sync = if cursor.nil()? { None } else { Some(cursor.text()?) };
        cursor.end()?;
        Ok(Self { parts, producer, since, sync })
    }
}

impl<'a> Part<'a> {
    fn take(cursor: &mut Cursor<'a>) -> Result<Self, Refused> {
        let (stream, batch) = (cursor.text()?, take_batch(cursor)?);
        let expect = if cursor.nil()? { None } else { Some(cursor.count()?) };
        Ok(Self { stream, batch, expect })
    }
}

const NO_RECORDS: &str = "there are no records to append";

pub(super) fn take_batch(cursor: &mut Cursor) -> Result<Batch, Refused> {
    let count = cursor.array()?;
    if count == 0 {
        return Err(Refused::Invalid(NO_RECORDS));
    }
    if count > LARGEST_BATCH {
        return Err(Refused::TooLarge(format!("a batch has at most {LARGEST_BATCH} records, not {count}")));
    }
    let mut batch = Batch::default();
    batch.ends.reserve_exact(count);
    // All of them are mostly as long as the first, and none is longer than what has arrived.
    batch.bytes.reserve((count * (cursor.ahead() + RECORD_HEADER)).min(cursor.left() + count * RECORD_HEADER));
    let mut headers = Vec::new();
    for _ in 0..count {
        batch.push(&take_record(cursor, &mut headers)?);
    }
    let size = batch.bytes.len();
    if size > LARGEST_BATCH_BYTES {
        return Err(Refused::TooLarge(format!("a batch has at most {LARGEST_BATCH_BYTES} bytes, not {size}")));
    }
    Ok(batch)
}

/// A producer's id and sequence and, if this was sent before, the last group that it knew of then.
pub type Sender<'a> = (&'a [u8], u64, Option<u64>);

/// The body of an append to one stream.
pub fn put_one(out: &mut Vec<u8>, part: (&str, &Batch, Option<u64>), producer: Option<Sender>, sync: Option<&str>) {
    out.put_array(5);
    put_part(out, part);
    put_how(out, producer, sync);
}

/// The body of an append to several streams.
pub fn put_several(
    out: &mut Vec<u8>,
    parts: &[(&str, &Batch, Option<u64>)],
    producer: Option<Sender>,
    sync: Option<&str>,
) {
    out.put_array(3);
    out.put_array(parts.len());
    for part in parts {
        out.put_array(3);
        put_part(out, *part);
    }
    put_how(out, producer, sync);
}

fn put_part(out: &mut Vec<u8>, (stream, batch, expect): (&str, &Batch, Option<u64>)) {
    out.put_text(stream);
    put_records(out, batch);
    out.put_optional(expect, |out, offset| out.put_count(offset));
}

/// A batch's records.
pub fn put_records(out: &mut Vec<u8>, batch: &Batch) {
    out.put_array(batch.ends.len());
    for i in 0..batch.ends.len() {
        let (record, _) = Record::decode(batch.record(i)).expect("a batch holds what it was given");
        put_record(out, &record);
    }
}

fn put_how(out: &mut Vec<u8>, producer: Option<Sender>, sync: Option<&str>) {
    out.put_optional(producer, |out, (id, sequence, since)| {
        out.put_array(if since.is_some() { 3 } else { 2 });
        out.put_bytes(id);
        out.put_count(sequence);
        since.into_iter().for_each(|group| out.put_count(group));
    });
    out.put_optional(sync, |out, sync| out.put_text(sync));
}
