//! The canonical record: what is stored, and what a commitment is over.

use std::sync::OnceLock;

use crate::format::{Checked, RECORD_HEADER, ensure, put, u16_at, u32_at};
use crate::group::Ahead;

/// Before a header's name: its length and that of its value.
pub const HEADER_HEAD: usize = 6;
/// Bytes of a header's name.
pub const LONGEST_HEADER: usize = u16::MAX as usize;

/// Records of a batch, and its bytes as they are stored.
pub const LARGEST_BATCH: usize = 65_536;
pub const LARGEST_BATCH_BYTES: usize = 16 << 20;

/// Bytes of a producer's id.
pub const LONGEST_PRODUCER: usize = 128;

pub const HAS_KEY: u8 = 1;
pub const HAS_EVENT_TIME: u8 = 2;

/// A record in the bytes it was stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub key: Option<&'a [u8]>,
    pub headers: &'a [u8],
    pub event_time: Option<i64>,
    pub payload: &'a [u8],
}

impl<'a> Record<'a> {
    pub fn length(&self) -> usize {
        RECORD_HEADER + self.key.map_or(0, <[u8]>::len) + self.headers.len() + self.payload.len()
    }

    pub fn append_to(&self, out: &mut Vec<u8>) {
        let key = self.key.unwrap_or_default();
        let mut head = [0; RECORD_HEADER];
        head[0] =
            if self.key.is_some() { HAS_KEY } else { 0 } | if self.event_time.is_some() { HAS_EVENT_TIME } else { 0 };
        put(&mut head, 1, (key.len() as u32).to_le_bytes());
        put(&mut head, 5, (self.headers.len() as u32).to_le_bytes());
        put(&mut head, 9, (self.payload.len() as u32).to_le_bytes());
        put(&mut head, 13, self.event_time.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(key);
        out.extend_from_slice(self.headers);
        out.extend_from_slice(self.payload);
    }

    /// How long the record is that starts these bytes.
    pub fn measure(bytes: &[u8]) -> Checked<usize> {
        ensure(bytes.len() >= RECORD_HEADER, "a record is cut short")?;
        let length = RECORD_HEADER + [1, 5, 9].map(|at| u32_at(bytes, at) as usize).iter().sum::<usize>();
        ensure(length <= bytes.len(), "a record is cut short")?;
        Ok(length)
    }

    /// The record that starts these bytes, and its length.
    pub fn decode(bytes: &'a [u8]) -> Checked<(Self, usize)> {
        let length = Self::measure(bytes)?;
        let (key, headers) = (u32_at(bytes, 1) as usize, u32_at(bytes, 5) as usize);
        let event_time = i64::from_le_bytes(bytes[13..21].try_into().unwrap());
        let flags = bytes[0];
        ensure(flags & !(HAS_KEY | HAS_EVENT_TIME) == 0, "unnamed flags of a record are set")?;
        ensure(flags & HAS_KEY != 0 || key == 0, "a record without a key has one")?;
        ensure(flags & HAS_EVENT_TIME != 0 || event_time == 0, "a record without an event time has one")?;
        let body = &bytes[RECORD_HEADER..length];
        let record = Self {
            key: (flags & HAS_KEY != 0).then_some(&body[..key]),
            headers: &body[key..key + headers],
            event_time: (flags & HAS_EVENT_TIME != 0).then_some(event_time),
            payload: &body[key + headers..],
        };
        record.headers().try_for_each(|header| header.map(drop))?;
        Ok((record, length))
    }

    /// Names and values, in order.
    pub fn headers(&self) -> impl Iterator<Item = Checked<(&'a str, &'a [u8])>> + use<'a> {
        let mut rest = self.headers;
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| {
                let header = split_header(rest);
                rest = header.map_or(&[][..], |(_, _, rest)| rest);
                header.map(|(name, value, _)| (name, value))
            })
        })
    }
}

fn split_header(bytes: &[u8]) -> Checked<(&str, &[u8], &[u8])> {
    ensure(bytes.len() >= HEADER_HEAD, "a header is cut short")?;
    let (name, value) = (u16_at(bytes, 0) as usize, u32_at(bytes, 2) as usize);
    ensure(bytes.len() - HEADER_HEAD >= name + value, "a header is cut short")?;
    let (name, rest) = bytes[HEADER_HEAD..].split_at(name);
    let text = std::str::from_utf8(name).map_err(|_| crate::format::Damage("a header's name is not UTF-8"))?;
    let (value, rest) = rest.split_at(value);
    Ok((text, value, rest))
}

pub fn append_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend((name.len() as u16).to_le_bytes());
    out.extend((value.len() as u32).to_le_bytes());
    out.extend(name.as_bytes());
    out.extend(value);
}

/// The records of one append request to one stream, encoded.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    /// Where each record ends in `bytes`.
    pub ends: Vec<u32>,
    /// Set once, when the stream, and with it the key of the digest, is known.
    pub producer: OnceLock<Producer>,
    /// What was made of it while it waited for a group.
    pub ahead: Ahead,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    pub id: Vec<u8>,
    pub sequence: u64,
    pub digest: [u8; 16],
}

impl Batch {
    pub fn push(&mut self, record: &Record) {
        record.append_to(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Of one record, as it is stored.
    pub fn of(record: &[u8]) -> Self {
        Self { bytes: record.to_vec(), ends: vec![record.len() as u32], ..Self::default() }
    }

    pub fn start(&self, record: usize) -> usize {
        if record == 0 { 0 } else { self.ends[record - 1] as usize }
    }

    pub fn record(&self, record: usize) -> &[u8] {
        &self.bytes[self.start(record)..self.ends[record] as usize]
    }
}
