//! What is imported: records that keep their offsets and times, on their way to a database, and runs of them out of one.
use super::append::{Refused, put_records, take_batch};
use super::cursor::{Cursor, Malformed, Parsed, Put};
use super::records::{RunHead, take_record};
use crate::format::HIGHEST;
use crate::record::{Batch, LARGEST_BATCH};
use crate::system::Gap;

/// One batch, or only a gap.
#[derive(Debug)]
pub struct Import<'a> {
    pub stream: &'a str,
    pub offset: u64,
    /// None: that of the server's clock.
    pub time: Option<u64>,
    pub batch: Option<Batch>,
    /// Why offsets may be missing in front of it.
    pub gap: Option<&'a str>,
}

impl<'a> Import<'a> {
    /// `[stream, offset, time, records, gap]`; nil is the end, when all before it is to be durable.
    pub fn take(body: &'a [u8]) -> Result<Option<Self>, Refused> {
        let mut cursor = Cursor::new(body);
        if cursor.nil()? {
            cursor.end()?;
            return Ok(None);
        }
        cursor.exactly(5)?;
        let (stream, offset) = (cursor.text()?, cursor.count()?);
        let time = if cursor.nil()? { None } else { Some(cursor.count()?) };
        let batch = if cursor.nil()? { None } else { Some(take_batch(&mut cursor)?) };
        let gap = if cursor.nil()? { None } else { Some(cursor.text()?) };
        cursor.end()?;
        if batch.is_none() && gap.is_none() {
            return Err(Malformed("neither records nor a gap are imported").into());
        }
        if offset > HIGHEST || time.is_some_and(|time| time > HIGHEST) {
            return Err(Refused::Invalid("an offset and a time are numbers from 0 to 2^63 - 1"));
        }
        if gap.is_some_and(|reason| reason.len() > Gap::LONGEST) {
            return Err(Refused::Invalid("the reason of a gap has at most 255 bytes"));
        }
        Ok(Some(Self { stream, offset, time, batch, gap }))
    }
}

/// The body that `Import::take` reads.
pub fn put_import(
    out: &mut Vec<u8>,
    stream: &str,
    offset: u64,
    time: Option<u64>,
    batch: Option<&Batch>,
    gap: Option<&str>,
) {
    out.put_array(5);
    out.put_text(stream);
    out.put_count(offset);
    out.put_optional(time, |out, time| out.put_count(time));
    out.put_optional(batch, put_records);
    out.put_optional(gap, |out, gap| out.put_text(gap));
}

/// Neighbours of one stream and one time, as they are stored.
#[derive(Debug)]
pub struct Run<'a> {
    pub head: RunHead<'a>,
    pub batch: Batch,
}

/// A batch of several runs takes no more runs when it has so many bytes.
const TOGETHER: usize = 1 << 20;

/// The runs of a message of records; those that follow each other are one.
pub fn take_runs(body: &[u8]) -> Parsed<Vec<Run<'_>>> {
    let mut cursor = Cursor::new(body);
    let mut runs: Vec<Run> = Vec::new();
    let mut headers = Vec::new();
    for _ in 0..cursor.array()? {
        let head = RunHead::take(&mut cursor)?;
        let goes_on = runs.last().is_some_and(|last| {
            let next = last.head.offset.checked_add(last.batch.ends.len() as u64);
            let together = last.batch.ends.len() + head.records <= LARGEST_BATCH && last.batch.bytes.len() < TOGETHER;
            (last.head.stream, last.head.timestamp, next) == (head.stream, head.timestamp, Some(head.offset))
                && together
        });
        if !goes_on {
            runs.push(Run { head, batch: Batch::default() });
        }
        let batch = &mut runs.last_mut().expect("there is one").batch;
        for _ in 0..head.records {
            batch.push(&take_record(&mut cursor, &mut headers)?);
        }
    }
    cursor.end()?;
    Ok(runs)
}

/// What a message of records has, or is to be left of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Picked {
    pub body: Vec<u8>,
    pub records: u64,
    /// Offset and position of the last record of the whole message.
    pub last: (u64, u64),
}

/// The runs of a message of records that `wants` their streams.
pub fn pick_runs(body: &[u8], wants: impl Fn(&str) -> bool) -> Parsed<Picked> {
    let mut cursor = Cursor::new(body);
    let (mut kept, mut count, mut records, mut last) = (Vec::new(), 0u32, 0, (0, 0));
    let mut headers = Vec::new();
    for _ in 0..cursor.array()? {
        let start = body.len() - cursor.left();
        let head = RunHead::take(&mut cursor)?;
        for _ in 0..head.records {
            take_record(&mut cursor, &mut headers)?;
        }
        let more = (head.records as u64).saturating_sub(1);
        last = (head.offset.wrapping_add(more), head.position.wrapping_add(more));
        if wants(head.stream) {
            kept.extend_from_slice(&body[start..body.len() - cursor.left()]);
            (count, records) = (count + 1, records + head.records as u64);
        }
    }
    cursor.end()?;
    let mut out = vec![0xdd];
    out.extend(count.to_be_bytes());
    out.extend(kept);
    Ok(Picked { body: out, records, last })
}
