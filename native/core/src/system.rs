//! What the records of stream 0 say.

use crate::format::{Checked, Damage, HIGHEST, Hash, ensure, u16_at, u32_at, u64_at};
use crate::keys::domain;
use crate::salvage::Repaired;

pub const DECLARATION: u16 = 1;
pub const SEVERAL: u16 = 2;
pub const RETAINED: u16 = 3;
pub const ERASED: u16 = 4;
pub const CONFIRMED: u16 = 5;
pub const GAP: u16 = 6;

/// Bytes of the reason of an erasure.
pub const LONGEST_REASON: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    pub stream: u32,
    pub encrypted: bool,
    pub random: [u8; 16],
    /// 0 is the default.
    pub largest_record: u32,
    pub name: String,
}

impl Declaration {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = DECLARATION.to_le_bytes().to_vec();
        out.extend(self.stream.to_le_bytes());
        out.push(u8::from(self.encrypted));
        out.extend(self.random);
        out.extend(self.largest_record.to_le_bytes());
        out.extend((self.name.len() as u16).to_le_bytes());
        out.extend(self.name.as_bytes());
        out
    }

    pub fn hash(encoded: &[u8]) -> Hash {
        crate::sha256::digest(&[&domain("kimberlite/declaration/1"), encoded])
    }
}

/// A piece of what is known of dropped segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub number: u32,
    pub pieces: u32,
    /// BLAKE3 of all of them.
    pub whole: Hash,
    pub bytes: Vec<u8>,
}

impl Piece {
    const HEAD: usize = 42;

    pub fn encode(&self) -> Vec<u8> {
        let mut out = RETAINED.to_le_bytes().to_vec();
        out.extend(self.number.to_le_bytes());
        out.extend(self.pieces.to_le_bytes());
        out.extend(self.whole);
        out.extend(&self.bytes);
        out
    }

    fn decode(payload: &[u8]) -> Checked<Self> {
        ensure(payload.len() >= Self::HEAD, "a system record is cut short")?;
        let (number, pieces) = (u32_at(payload, 2), u32_at(payload, 6));
        ensure(number < pieces, "a piece of a retention record has a wrong number")?;
        let whole = payload[10..Self::HEAD].try_into().unwrap();
        Ok(Self { number, pieces, whole, bytes: payload[Self::HEAD..].to_vec() })
    }
}

/// A producer's append to several streams: what each of them got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Several {
    pub producer: [u8; 16],
    pub sequence: u64,
    pub digest: [u8; 16],
    /// Stream, first offset, records.
    pub parts: Vec<(u32, u64, u32)>,
}

impl Several {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SEVERAL.to_le_bytes().to_vec();
        out.extend(self.producer);
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.digest);
        out.extend((self.parts.len() as u32).to_le_bytes());
        for (stream, offset, records) in &self.parts {
            out.extend(stream.to_le_bytes());
            out.extend(offset.to_le_bytes());
            out.extend(records.to_le_bytes());
        }
        out
    }
}

/// From here on a stream has no key, and no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    pub stream: u32,
    /// Hash of its declaration.
    pub declared: Hash,
    /// Id of the master key that wraps its key.
    pub master: [u8; 16],
    pub reason: String,
}

impl Erased {
    const HEAD: usize = 56;

    pub fn encode(&self) -> Vec<u8> {
        let mut out = ERASED.to_le_bytes().to_vec();
        out.extend(self.stream.to_le_bytes());
        out.extend(self.declared);
        out.extend(self.master);
        out.extend((self.reason.len() as u16).to_le_bytes());
        out.extend(self.reason.as_bytes());
        out
    }

    fn decode(payload: &[u8]) -> Checked<Self> {
        ensure(payload.len() >= Self::HEAD, "a system record is cut short")?;
        let reason = &payload[Self::HEAD..];
        let sound = reason.len() == u16_at(payload, 54) as usize && (1..=LONGEST_REASON).contains(&reason.len());
        ensure(sound, "the reason of an erasure has a wrong length")?;
        Ok(Self {
            stream: u32_at(payload, 2),
            declared: payload[6..38].try_into().unwrap(),
            master: payload[38..54].try_into().unwrap(),
            reason: String::from_utf8(reason.to_vec()).map_err(|_| Damage("the reason of an erasure is not UTF-8"))?,
        })
    }
}

/// The master key that wrapped the key of an erased stream is no more, nor are those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    pub stream: u32,
    /// Hash of its declaration.
    pub declared: Hash,
    /// Id of the master key that wraps the others since.
    pub master: [u8; 16],
}

impl Confirmed {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = CONFIRMED.to_le_bytes().to_vec();
        out.extend(self.stream.to_le_bytes());
        out.extend(self.declared);
        out.extend(self.master);
        out
    }

    fn decode(payload: &[u8]) -> Checked<Self> {
        ensure(payload.len() == 54, "a system record has a wrong length")?;
        let (declared, master) = (payload[6..38].try_into().unwrap(), payload[38..54].try_into().unwrap());
        Ok(Self { stream: u32_at(payload, 2), declared, master })
    }
}

/// A stream goes on at another offset than the next: those from and up to are no record's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub stream: u32,
    pub from: u64,
    pub to: u64,
    pub reason: String,
}

impl Gap {
    const HEAD: usize = 22;
    /// Bytes of a reason.
    pub const LONGEST: usize = 255;

    pub fn encode(&self) -> Vec<u8> {
        let mut out = GAP.to_le_bytes().to_vec();
        out.extend(self.stream.to_le_bytes());
        out.extend(self.from.to_le_bytes());
        out.extend(self.to.to_le_bytes());
        out.extend(self.reason.as_bytes());
        out
    }

    fn decode(payload: &[u8]) -> Checked<Self> {
        ensure(payload.len() >= Self::HEAD, "a system record is cut short")?;
        let (stream, from, to) = (u32_at(payload, 2), u64_at(payload, 6), u64_at(payload, 14));
        let sound = stream > 0 && from < to && to <= HIGHEST && payload.len() <= Self::HEAD + Self::LONGEST;
        ensure(sound, "a gap is malformed")?;
        let reason = String::from_utf8(payload[Self::HEAD..].to_vec());
        let reason = reason.map_err(|_| Damage("the reason of a gap is not UTF-8"))?;
        Ok(Self { stream, from, to, reason })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum System {
    Repaired(Repaired),
    Declaration(Declaration),
    Several(Several),
    Retained(Piece),
    Erased(Erased),
    Confirmed(Confirmed),
    Gap(Gap),
}

impl System {
    pub fn decode(payload: &[u8]) -> Checked<Self> {
        ensure(payload.len() >= 2, "a system record is cut short")?;
        match u16_at(payload, 0) {
            Repaired::KIND => Ok(Self::Repaired(Repaired::decode(payload)?)),
            DECLARATION => declaration(payload),
            SEVERAL => several(payload),
            RETAINED => Ok(Self::Retained(Piece::decode(payload)?)),
            ERASED => Ok(Self::Erased(Erased::decode(payload)?)),
            CONFIRMED => Ok(Self::Confirmed(Confirmed::decode(payload)?)),
            GAP => Ok(Self::Gap(Gap::decode(payload)?)),
            _ => Err(Damage("a system record of an unknown kind")),
        }
    }
}

fn declaration(payload: &[u8]) -> Checked<System> {
    ensure(payload.len() >= 29, "a declaration is cut short")?;
    ensure(payload.len() == 29 + u16_at(payload, 27) as usize && payload[6] <= 1, "a declaration is malformed")?;
    Ok(System::Declaration(Declaration {
        stream: u32_at(payload, 2),
        encrypted: payload[6] == 1,
        random: payload[7..23].try_into().unwrap(),
        largest_record: u32_at(payload, 23),
        name: String::from_utf8(payload[29..].to_vec()).map_err(|_| Damage("a stream's name is not UTF-8"))?,
    }))
}

fn several(payload: &[u8]) -> Checked<System> {
    ensure(payload.len() >= 46, "a system record is cut short")?;
    let parts = &payload[46..];
    ensure(parts.len() as u64 == u32_at(payload, 42) as u64 * 16, "a system record is malformed")?;
    Ok(System::Several(Several {
        producer: payload[2..18].try_into().unwrap(),
        sequence: u64_at(payload, 18),
        digest: payload[26..42].try_into().unwrap(),
        parts: parts.chunks_exact(16).map(|p| (u32_at(p, 0), u64_at(p, 4), u32_at(p, 12))).collect(),
    }))
}
