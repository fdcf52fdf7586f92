//! Records on the wire: one as an append has it, and runs of them on their way to a reader.
use super::cursor::{Cursor, Malformed, Parsed, Put};
use super::{HEADER, Header, kind};
use crate::record::{LONGEST_HEADER, Record, append_header};

/// A payload, or `[payload, key, headers, event time]`.
pub fn put_record(out: &mut Vec<u8>, record: &Record) {
    if record.key.is_none() && record.headers.is_empty() && record.event_time.is_none() {
        return out.put_bytes(record.payload);
    }
    out.put_array(4);
    out.put_bytes(record.payload);
    out.put_optional(record.key, |out, key| out.put_bytes(key));
    out.put_array(record.headers().count());
    for (name, value) in record.headers().flatten() {
        out.put_array(2);
        out.put_text(name);
        out.put_bytes(value);
    }
    out.put_optional(record.event_time, |out, time| out.put_integer(time));
}

/// The next record; its headers, as they are stored, are in `headers`.
pub fn take_record<'b, 'a: 'b>(cursor: &mut Cursor<'a>, headers: &'b mut Vec<u8>) -> Parsed<Record<'b>> {
    headers.clear();
    if cursor.bytes_come()? {
        return Ok(Record { key: None, headers: &[], event_time: None, payload: cursor.bytes()? });
    }
    cursor.exactly(4)?;
    let payload = cursor.bytes()?;
    let key = if cursor.nil()? { None } else { Some(cursor.bytes()?) };
    for _ in 0..cursor.array()? {
        cursor.exactly(2)?;
        let (name, value) = (cursor.text()?, cursor.bytes()?);
        if name.is_empty() || name.len() > LONGEST_HEADER {
            return Err(Malformed("a header's name has 1 to 65,535 bytes"));
        }
        append_header(headers, name, value);
    }
    let event_time = if cursor.nil()? { None } else { Some(cursor.integer()?) };
    Ok(Record { key, headers, event_time, payload })
}

/// A message of records, made a run at a time.
#[derive(Debug)]
pub struct Runs {
    bytes: Vec<u8>,
    count: u32,
}

/// The head of an array whose length takes four bytes; like the message's own it is filled in at the end.
const ARRAY: [u8; 5] = [0xdd, 0, 0, 0, 0];

impl Default for Runs {
    fn default() -> Self {
        Self { bytes: [&[0; HEADER][..], &ARRAY].concat(), count: 0 }
    }
}

impl Runs {
    /// Records of one stream in a row, up or down, the first of which has this offset and position.
    pub fn push<'a>(
        &mut self,
        stream: &str,
        (offset, position): (u64, u64),
        timestamp: u64,
        records: impl ExactSizeIterator<Item = Record<'a>>,
    ) {
        self.count += 1;
        let out = &mut self.bytes;
        out.put_array(5);
        out.put_text(stream);
        out.put_count(offset);
        out.put_count(position);
        out.put_count(timestamp);
        out.put_array(records.len());
        for record in records {
            put_record(out, &record);
        }
    }

    /// Bytes so far.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The message for the request of this id.
    pub fn message(mut self, id: u32) -> Vec<u8> {
        let header = Header { length: self.bytes.len() - HEADER, kind: kind::RECORDS, id };
        self.bytes[..HEADER].copy_from_slice(&header.encode());
        self.bytes[HEADER + 1..HEADER + ARRAY.len()].copy_from_slice(&self.count.to_be_bytes());
        self.bytes
    }
}

/// What a run says of all its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunHead<'a> {
    pub stream: &'a str,
    pub offset: u64,
    pub position: u64,
    pub timestamp: u64,
    pub records: usize,
}

impl<'a> RunHead<'a> {
    /// The next run's; its records come next.
    pub fn take(cursor: &mut Cursor<'a>) -> Parsed<Self> {
        cursor.exactly(5)?;
        Ok(Self {
            stream: cursor.text()?,
            offset: cursor.count()?,
            position: cursor.count()?,
            timestamp: cursor.count()?,
            records: cursor.array()?,
        })
    }
}
