//! One connection's share of the load: what it asks, and what its answers say. Pure, without a socket.
use std::sync::Arc;

use super::Tally;
use crate::record::Batch;
use crate::wire::append::put_records;
use crate::wire::cursor::{Cursor, Malformed, Parsed, Put};
use crate::wire::receipts::{take_answer, take_ending, take_place};
use crate::wire::records::{RunHead, take_record};
use crate::wire::{Header, kind, put_message};

/// What a read may send without being asked again: all of it.
const CREDIT: u64 = 1 << 40;

/// What a client does, over and over.
#[derive(Debug)]
pub enum Work {
    /// Appends these to its stream, in turn; each is a batch as the wire has it.
    Append { stream: String, batches: Arc<Vec<Vec<u8>>>, sync: Option<String>, next: usize },
    /// Reads so many records in a row, and the next so many, of what lies below `end`, round and round.
    Read { next: u64, end: u64, batch: u64 },
}

impl Work {
    /// Batches as appends have them.
    pub fn batches(batches: &[&Batch]) -> Vec<Vec<u8>> {
        let encoded = |batch: &&Batch| {
            let mut out = Vec::with_capacity(batch.bytes.len() + 64);
            put_records(&mut out, batch);
            out
        };
        batches.iter().map(encoded).collect()
    }

    fn put(&mut self, out: &mut Vec<u8>, id: u32) {
        match self {
            Self::Append { stream, batches, sync, next } => {
                let batch = &batches[*next % batches.len()];
                *next += 1;
                put_message(out, kind::APPEND, id, |out| {
                    out.put_array(5);
                    out.put_text(stream);
                    out.extend_from_slice(batch);
                    // Nothing is expected, and there is no producer.
                    out.put_nil();
                    out.put_nil();
                    out.put_optional(sync.as_deref(), |out, sync| out.put_text(sync));
                });
            }
            Self::Read { next, end, batch } => {
                let start = if *next + *batch <= *end { *next } else { 0 };
                *next = start + *batch;
                put_message(out, kind::READ, id, |out| {
                    out.put_map(7);
                    out.put_text("stream");
                    out.put_nil();
                    out.put_text("start");
                    out.put_count(start);
                    out.put_text("until");
                    out.put_nil();
                    out.put_text("limit");
                    out.put_count(*batch);
                    out.put_text("reverse");
                    out.put_bool(false);
                    out.put_text("system");
                    out.put_bool(false);
                    out.put_text("credit");
                    out.put_count(CREDIT);
                });
            }
        }
    }
}

/// Why a client cannot go on.
#[derive(Debug)]
pub enum Failure {
    /// The body of the error that the server answered with.
    Refused(Vec<u8>),
    Malformed(&'static str),
    Lost(String),
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.0)
    }
}

/// When requests are meant to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The next one.
    pub due: u64,
    pub interval: u64,
}

/// * A request's time begins when it was meant to be sent: with a pace that is when it was due, however long the
///   answers before it took, and otherwise when there was room for it.
/// * No more are open than there are slots; the slot is the request's id.
#[derive(Debug)]
pub struct Client {
    pub work: Work,
    /// When the request of each slot was meant to be sent; None of those that are free.
    meant: Vec<Option<u64>>,
    free: Vec<u32>,
    pub pace: Option<Pace>,
    pub tally: Tally,
}

impl Client {
    pub fn new(work: Work, depth: u32) -> Self {
        let meant = vec![None; depth as usize];
        Self { work, meant, free: (0..depth).rev().collect(), pace: None, tally: Tally::default() }
    }

    /// Requests that are not answered yet.
    pub fn open(&self) -> usize {
        self.meant.len() - self.free.len()
    }

    /// When it would ask again by itself; None if only an answer makes it.
    pub fn due(&self) -> Option<u64> {
        self.pace.filter(|_| !self.free.is_empty()).map(|pace| pace.due)
    }

    /// Asks what is due and for what there is room.
    pub fn ask(&mut self, now: u64, out: &mut Vec<u8>) {
        while let Some(&id) = self.free.last() {
            let meant = match &mut self.pace {
                None => now,
                Some(pace) if pace.due <= now => {
                    pace.due += pace.interval;
                    pace.due - pace.interval
                }
                Some(_) => return,
            };
            self.free.pop();
            self.meant[id as usize] = Some(meant);
            self.work.put(out, id);
        }
    }

    /// Takes a message.
    pub fn take(&mut self, header: Header, body: &[u8], now: u64) -> Result<(), Failure> {
        match header.kind {
            kind::RECEIPTS => {
                let mut cursor = Cursor::new(body);
                let (_, answers) = take_ending(&mut cursor)?;
                for _ in 0..answers {
                    let (id, batches) = take_answer(&mut cursor)?;
                    for _ in 0..batches {
                        let place = take_place(&mut cursor)?;
                        self.tally.records += place.last_offset + 1 - place.first_offset;
                    }
                    self.answered(id, now)?;
                }
                Ok(cursor.end()?)
            }
            kind::RECORDS => {
                self.tally.records += count_records(body)?;
                Ok(())
            }
            kind::END => self.answered(header.id, now),
            kind::ERROR => Err(Failure::Refused(body.to_vec())),
            _ => Err(Failure::Malformed("this answers nothing that was asked")),
        }
    }

    fn answered(&mut self, id: u32, now: u64) -> Result<(), Failure> {
        let meant = self.meant.get_mut(id as usize).and_then(Option::take);
        let meant = meant.ok_or(Failure::Malformed("an answer to what is not open"))?;
        self.tally.requests += 1;
        self.tally.times.record(now.saturating_sub(meant));
        self.free.push(id);
        Ok(())
    }
}

/// Of a message of records; every byte of it is looked at, as whoever wants them would.
fn count_records(body: &[u8]) -> Parsed<u64> {
    let mut cursor = Cursor::new(body);
    let mut headers = Vec::new();
    let mut found = 0;
    for _ in 0..cursor.array()? {
        let head = RunHead::take(&mut cursor)?;
        for _ in 0..head.records {
            take_record(&mut cursor, &mut headers)?;
        }
        found += head.records as u64;
    }
    cursor.end()?;
    Ok(found)
}
