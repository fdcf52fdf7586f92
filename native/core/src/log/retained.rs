//! What a log knows of the segments it has dropped: the record that says so, and all that is left to say of them.

use super::erased::{self, Erasure};
use crate::format::{Checked, Damage, HIGHEST, Hash, ensure, u32_at, u64_at};
use crate::keys::NONCE;
use crate::system::{Piece, System};

/// A stream as it was where the first kept segment begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub declaration: Vec<u8>,
    /// Its first offset that is kept, or is to come.
    pub first: u64,
}

/// One dropping, or several by the same rule in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Positions, half open.
    pub from: u64,
    pub to: u64,
    /// When the first and the last of them was.
    pub first: u64,
    pub last: u64,
    pub rule: String,
}

/// Everything that was dropped so far, as one: each record of it stands for all before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retained {
    /// The first kept segment, its first group and position.
    pub segment: u64,
    pub group: u64,
    pub position: u64,
    /// Of the last group that was dropped.
    pub chain: Hash,
    pub timestamp: u64,
    pub incarnation: u32,
    /// The first kept offset of stream 0.
    pub system: u64,
    /// Of the tree up to `position`, largest first.
    pub peaks: Vec<Hash>,
    /// By number, from 1.
    pub streams: Vec<Left>,
    /// Entries of producers whose last batch was dropped: of plain streams and of appends to several.
    pub producers: Vec<u8>,
    /// Those of encrypted streams: stream, nonce, and what only its index key opens.
    pub sealed: Vec<(u32, [u8; NONCE], Vec<u8>)>,
    pub drops: Vec<Dropped>,
    /// What was said of erasures before `position`.
    pub erasures: Vec<Erasure>,
    /// Positions and payloads of the records before `position` that say what was given up; of those that were damaged no
    /// payload.
    pub repairs: Vec<(u64, Vec<u8>)>,
}

/// Droppings that each record names one by one: all of them are in every one.
const DROPS: usize = 64;

/// Adds what has just been dropped: to the last one, if its rule is the same or lets go `more` than that. The oldest of
/// too many become one, which says so.
pub(super) fn add(drops: &mut Vec<Dropped>, now: Dropped, more: bool) {
    match drops.last_mut().filter(|last| more || last.rule == now.rule) {
        Some(last) => (last.to, last.last, last.rule) = (now.to, now.last, now.rule),
        None => drops.push(now),
    }
    if let Some(many) = drops.len().checked_sub(DROPS).filter(|&many| many > 0) {
        let (first, last) = (&drops[0], &drops[many]);
        let rule = format!("{SEVERAL}{}", last.rule);
        let one = Dropped { from: first.from, to: last.to, first: first.first, last: last.last, rule };
        drops.splice(..=many, [one]);
    }
}

const SEVERAL: &str = "several rules, the last of them: ";

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Checked<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Damage("a retention record is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Checked<u32> {
        Ok(u32_at(self.take(4)?, 0))
    }

    pub fn u64(&mut self) -> Checked<u64> {
        Ok(u64_at(self.take(8)?, 0))
    }

    pub fn array<const N: usize>(&mut self) -> Checked<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("so many were taken"))
    }

    pub fn bytes(&mut self) -> Checked<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// So many of them, each of which takes at least so many bytes.
    pub fn several<T>(&mut self, least: usize, mut one: impl FnMut(&mut Self) -> Checked<T>) -> Checked<Vec<T>> {
        let count = self.u32()? as usize;
        ensure(count <= self.0.len() / least, "a retention record is cut short")?;
        (0..count).map(|_| one(self)).collect()
    }
}

impl Retained {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [self.segment, self.group, self.position] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.chain);
        out.extend(self.timestamp.to_le_bytes());
        out.extend(self.incarnation.to_le_bytes());
        out.extend(self.system.to_le_bytes());
        out.extend((self.peaks.len() as u32).to_le_bytes());
        out.extend(self.peaks.as_flattened());
        out.extend((self.streams.len() as u32).to_le_bytes());
        for left in &self.streams {
            out.extend(left.first.to_le_bytes());
            bytes(&mut out, &left.declaration);
        }
        bytes(&mut out, &self.producers);
        out.extend((self.sealed.len() as u32).to_le_bytes());
        for (stream, nonce, text) in &self.sealed {
            out.extend(stream.to_le_bytes());
            out.extend(nonce);
            bytes(&mut out, text);
        }
        out.extend((self.drops.len() as u32).to_le_bytes());
        for drop in &self.drops {
            for number in [drop.from, drop.to, drop.first, drop.last] {
                out.extend(number.to_le_bytes());
            }
            bytes(&mut out, drop.rule.as_bytes());
        }
        erased::encode(&mut out, &self.erasures);
        if !self.repairs.is_empty() {
            out.extend((self.repairs.len() as u32).to_le_bytes());
            for (position, payload) in &self.repairs {
                out.extend(position.to_le_bytes());
                bytes(&mut out, payload);
            }
        }
        out
    }

    pub fn decode(encoded: &[u8]) -> Checked<Self> {
        let mut from = Reader(encoded);
        let out = Self {
            segment: from.u64()?,
            group: from.u64()?,
            position: from.u64()?,
            chain: from.array()?,
            timestamp: from.u64()?,
            incarnation: from.u32()?,
            system: from.u64()?,
            peaks: from.several(32, Reader::array)?,
            streams: from.several(12, |from| {
                let first = from.u64()?;
                Ok(Left { first, declaration: from.bytes()?.to_vec() })
            })?,
            producers: from.bytes()?.to_vec(),
            sealed: from.several(32, |from| Ok((from.u32()?, from.array()?, from.bytes()?.to_vec())))?,
            drops: from.several(36, |from| {
                let [at, to, first, last] = [from.u64()?, from.u64()?, from.u64()?, from.u64()?];
                let rule = String::from_utf8(from.bytes()?.to_vec());
                let rule = rule.map_err(|_| Damage("a rule of retention is not UTF-8"))?;
                Ok(Dropped { from: at, to, first, last, rule })
            })?,
            erasures: erased::decode(&mut from)?,
            repairs: match from.0 {
                [] => vec![],
                _ => {
                    let found = from.several(12, |from| Ok((from.u64()?, from.bytes()?.to_vec())))?;
                    ensure(!found.is_empty(), "a retention record has bytes behind its end")?;
                    found
                }
            },
        };
        ensure(from.0.is_empty(), "a retention record has bytes behind its end")?;
        let numbers = [out.segment, out.group, out.position, out.timestamp, out.system];
        let mut numbers = numbers.into_iter().chain(out.streams.iter().map(|left| left.first));
        let sound = out.segment > 0 && out.group > 1 && numbers.all(|number| number <= HIGHEST);
        let mut repairs = out.repairs.iter();
        let repaired = repairs.all(|(position, payload)| {
            let said = payload.is_empty() || matches!(System::decode(payload), Ok(System::Repaired(_)));
            *position < out.position && said
        });
        let mut end = 0;
        let joined = out.drops.iter().all(|drop| std::mem::replace(&mut end, drop.to) == drop.from);
        ensure(
            sound && joined && repaired && end == out.position && out.peaks.len() == out.position.count_ones() as usize,
            "a retention record contradicts itself",
        )?;
        Ok(out)
    }
}

impl Retained {
    /// The payloads of its system records, in their order; none is longer than the others by more than its head.
    pub fn records(&self, piece: usize) -> Vec<Vec<u8>> {
        let encoded = self.encode();
        let whole = *blake3::hash(&encoded).as_bytes();
        let pieces = encoded.chunks(piece).len() as u32;
        let record = |(number, bytes): (u32, &[u8])| Piece { number, pieces, whole, bytes: bytes.to_vec() }.encode();
        (0..).zip(encoded.chunks(piece)).map(record).collect()
    }
}

/// Pieces until they are whole. One that was given up before its last is followed by the first of another.
#[derive(Default)]
pub struct Collector {
    whole: Hash,
    pieces: u32,
    next: u32,
    bytes: Vec<u8>,
    /// What the log began with comes yet, behind those that it stands for.
    pub ahead: bool,
}

impl Collector {
    /// What was dropped, if this is the last piece of what says so.
    pub fn take(&mut self, piece: &Piece) -> Checked<Option<Retained>> {
        if piece.number == 0 {
            (self.whole, self.pieces, self.next, self.bytes) = (piece.whole, piece.pieces, 0, Vec::new());
        } else if self.ahead && self.pieces == 0 {
            // Those before it were dropped.
            return Ok(None);
        }
        let fits = (piece.whole, piece.pieces, piece.number) == (self.whole, self.pieces, self.next);
        ensure(fits, "the pieces of a retention record do not fit together")?;
        self.next += 1;
        self.bytes.extend(&piece.bytes);
        if self.next < piece.pieces {
            return Ok(None);
        }
        let encoded = std::mem::take(&mut self.bytes);
        ensure(*blake3::hash(&encoded).as_bytes() == self.whole, "a retention record is not what its pieces say")?;
        Retained::decode(&encoded).map(Some)
    }
}
