//! The fixed headers of `docs/format.md`, in both directions.

use crate::keys::domain;

pub const BLOCK: usize = 4096;
pub const SEGMENT_HEADER: usize = 4096;
pub const GROUP_HEADER: usize = 104;
pub const RUN_HEADER: usize = 88;
pub const RECORD_HEADER: usize = 21;
/// Plaintext that a run holds at most, unless one record is larger.
pub const RUN_PLAINTEXT: usize = 64 << 10;
pub const CLOSING: u32 = 1;
/// Of the file of tree hashes.
pub const HASHES_HEADER: usize = 4096;
/// No stream and no log is longer, and no number of a group and no time is higher.
pub const HIGHEST: u64 = (1 << 63) - 1;

pub type Hash = [u8; 32];

const HASHED: usize = 96;
const CHECK: usize = 8;

/// What is wrong with some bytes, for the person who has to look at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage(pub &'static str);

pub type Checked<T> = Result<T, Damage>;

pub fn ensure(condition: bool, what: &'static str) -> Checked<()> {
    if condition { Ok(()) } else { Err(Damage(what)) }
}

/// Whether so many records may have the offsets, or the positions, from this one on.
pub fn fits(first: u64, records: usize) -> bool {
    first.checked_add(records as u64).is_some_and(|end| end <= HIGHEST)
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

pub fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

pub fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK)
}

/// What a group of this length takes of a packed segment.
pub fn packed(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// Eight bytes that nobody makes who has not seen the segment's salt.
pub fn check(salt: &Hash, bytes: &[u8], place: u64) -> [u8; CHECK] {
    let hash = blake3::Hasher::new_keyed(salt).update(bytes).update(&place.to_le_bytes()).finalize();
    hash.as_bytes()[..CHECK].try_into().unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub database: [u8; 16],
    pub number: u64,
    pub first_group: u64,
    pub first_position: u64,
    /// Chain of the last group before this segment.
    pub before: Hash,
    pub salt: Hash,
    pub packed: Option<Packed>,
}

/// Where a packed segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Of the file.
    pub length: u64,
    pub last_group: u64,
    pub last_chain: Hash,
}

impl SegmentHeader {
    const MAGIC: &[u8; 8] = b"KIMBSEG1";
    const PACKED: u16 = 1;

    /// Tells its file from others, which has its places.
    pub fn file(&self) -> u64 {
        u64_at(&self.salt, 0)
    }

    /// What a group takes of the file. Nothing follows a packed segment's last.
    pub fn step(&self, group: &GroupHeader) -> usize {
        let length = group.length as usize;
        match self.packed {
            None => padded(length),
            Some(_) if group.flags & CLOSING != 0 => length,
            Some(_) => packed(length),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; SEGMENT_HEADER];
        put(&mut out, 0, *Self::MAGIC);
        put(&mut out, 8, 1u16.to_le_bytes());
        put(&mut out, 16, self.database);
        put(&mut out, 32, self.number.to_le_bytes());
        put(&mut out, 40, self.first_group.to_le_bytes());
        put(&mut out, 48, self.first_position.to_le_bytes());
        put(&mut out, 56, self.before);
        put(&mut out, 88, self.salt);
        if let Some(packed) = self.packed {
            put(&mut out, 10, Self::PACKED.to_le_bytes());
            put(&mut out, 120, packed.length.to_le_bytes());
            put(&mut out, 128, packed.last_group.to_le_bytes());
            put(&mut out, 136, packed.last_chain);
        }
        let hash = blake3::keyed_hash(&self.salt, &out[..SEGMENT_HEADER - CHECK]);
        out[SEGMENT_HEADER - CHECK..].copy_from_slice(&hash.as_bytes()[..CHECK]);
        out
    }

    pub fn decode(bytes: &[u8]) -> Checked<Self> {
        ensure(bytes.len() >= SEGMENT_HEADER, "the header is cut short")?;
        let bytes = &bytes[..SEGMENT_HEADER];
        let salt: Hash = bytes[88..120].try_into().unwrap();
        let hash = blake3::keyed_hash(&salt, &bytes[..SEGMENT_HEADER - CHECK]);
        ensure(hash.as_bytes()[..CHECK] == bytes[SEGMENT_HEADER - CHECK..], "the header's check is wrong")?;
        ensure(&bytes[..8] == Self::MAGIC, "this is not a segment")?;
        ensure(u16_at(bytes, 8) == 1, "the format version is not 1")?;
        let packed = u16_at(bytes, 10) == Self::PACKED;
        let named = if packed { (12, 168) } else { (10, 120) };
        let unnamed = zeros(&bytes[named.0..16]) && zeros(&bytes[named.1..SEGMENT_HEADER - CHECK]);
        ensure(unnamed, "unnamed bytes are not zero")?;
        let packed = packed.then(|| Packed {
            length: u64_at(bytes, 120),
            last_group: u64_at(bytes, 128),
            last_chain: bytes[136..168].try_into().unwrap(),
        });
        Ok(Self {
            database: bytes[16..32].try_into().unwrap(),
            number: u64_at(bytes, 32),
            first_group: u64_at(bytes, 40),
            first_position: u64_at(bytes, 48),
            before: bytes[56..88].try_into().unwrap(),
            salt,
            packed,
        })
    }

    /// The previous chain of the segment's first group.
    pub fn chain(&self) -> Hash {
        crate::sha256::digest(&[
            &domain("kimberlite/segment/1"),
            &self.number.to_le_bytes(),
            &self.first_group.to_le_bytes(),
            &self.first_position.to_le_bytes(),
            &self.before,
        ])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupHeader {
    pub length: u32,
    pub flags: u32,
    pub number: u64,
    pub first_position: u64,
    pub records: u32,
    pub runs: u32,
    pub durable_upto: u64,
    pub timestamp: u64,
    pub incarnation: u32,
    pub previous: Hash,
}

impl GroupHeader {
    pub const MAGIC: &[u8; 8] = b"KIMBGRP1";

    pub fn encode(&self, out: &mut [u8], salt: &Hash, place: u64) {
        put(out, 0, *Self::MAGIC);
        put(out, 8, self.length.to_le_bytes());
        put(out, 12, self.flags.to_le_bytes());
        put(out, 16, self.number.to_le_bytes());
        put(out, 24, self.first_position.to_le_bytes());
        put(out, 32, self.records.to_le_bytes());
        put(out, 36, self.runs.to_le_bytes());
        put(out, 40, self.durable_upto.to_le_bytes());
        put(out, 48, self.timestamp.to_le_bytes());
        put(out, 56, self.incarnation.to_le_bytes());
        put(out, 60, [0; 4]);
        put(out, 64, self.previous);
        let check = check(salt, &out[..HASHED], place);
        put(out, HASHED, check);
    }

    /// Sound by itself: the check holds for this place, and the numbers make sense together.
    pub fn decode(bytes: &[u8], salt: &Hash, place: u64) -> Checked<Self> {
        ensure(bytes.len() >= GROUP_HEADER, "the group header is cut short")?;
        ensure(&bytes[..8] == Self::MAGIC, "no group starts here")?;
        ensure(
            check(salt, &bytes[..HASHED], place) == bytes[HASHED..GROUP_HEADER],
            "the group header's check is wrong",
        )?;
        Self::unchecked(bytes)
    }

    /// What stands there, if the numbers make sense together: nothing says that it was sealed so.
    pub fn unchecked(bytes: &[u8]) -> Checked<Self> {
        ensure(bytes.len() >= GROUP_HEADER, "the group header is cut short")?;
        let header = Self {
            length: u32_at(bytes, 8),
            flags: u32_at(bytes, 12),
            number: u64_at(bytes, 16),
            first_position: u64_at(bytes, 24),
            records: u32_at(bytes, 32),
            runs: u32_at(bytes, 36),
            durable_upto: u64_at(bytes, 40),
            timestamp: u64_at(bytes, 48),
            incarnation: u32_at(bytes, 56),
            previous: bytes[64..96].try_into().unwrap(),
        };
        ensure(zeros(&bytes[60..64]) && header.flags & !CLOSING == 0, "unnamed bytes are not zero")?;
        ensure(header.durable_upto < header.number, "the group claims to be durable itself")?;
        let bounded = header.number < HIGHEST && header.timestamp <= HIGHEST;
        ensure(bounded && fits(header.first_position, header.records as usize), "the group's numbers run over")?;
        let least = GROUP_HEADER as u64 + header.runs as u64 * (RUN_HEADER as u64 + 8) + 32;
        ensure(header.length as u64 >= least, "the group's length is too small")?;
        ensure(
            (header.records == 0) == (header.runs == 0) && header.records >= header.runs,
            "runs and records disagree",
        )?;
        Ok(header)
    }

    pub fn chain(header: &[u8], previous: &Hash, body: &Hash) -> Hash {
        crate::sha256::digest(&[&domain("kimberlite/chain/1"), previous, &header[..HASHED], body])
    }
}

pub const ENCRYPTED: u8 = 1;
pub const COMPRESSED: u8 = 2;
pub const ENDS: u8 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunHeader {
    pub length: u32,
    pub stream: u32,
    pub flags: u8,
    pub records: u32,
    pub first_offset: u64,
    pub first_position: u64,
    /// Of a plain run.
    pub plain: u32,
    pub key_id: [u8; 16],
    /// The seed of a plain run; the nonce of an encrypted one.
    pub random: Hash,
}

impl RunHeader {
    pub fn encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    pub fn nonce(&self) -> &[u8; 24] {
        self.random[..24].try_into().unwrap()
    }

    /// Where the text begins: behind the header and, in an encrypted run, the commitments.
    pub fn text(&self) -> usize {
        RUN_HEADER + if self.encrypted() { 32 * self.records as usize } else { 0 }
    }

    pub fn encode(&self, out: &mut [u8]) {
        out[..RUN_HEADER].fill(0);
        put(out, 0, self.length.to_le_bytes());
        put(out, 4, self.stream.to_le_bytes());
        out[8] = self.flags;
        put(out, 12, self.records.to_le_bytes());
        put(out, 16, self.first_offset.to_le_bytes());
        put(out, 24, self.first_position.to_le_bytes());
        put(out, 32, self.plain.to_le_bytes());
        put(out, 40, self.key_id);
        put(out, 56, self.random);
    }

    /// The header of the run that starts these bytes and lies in them whole.
    pub fn decode(bytes: &[u8]) -> Checked<Self> {
        ensure(bytes.len() >= RUN_HEADER, "a run is cut short")?;
        let run = Self {
            length: u32_at(bytes, 0),
            stream: u32_at(bytes, 4),
            flags: bytes[8],
            records: u32_at(bytes, 12),
            first_offset: u64_at(bytes, 16),
            first_position: u64_at(bytes, 24),
            plain: u32_at(bytes, 32),
            key_id: bytes[40..56].try_into().unwrap(),
            random: bytes[56..88].try_into().unwrap(),
        };
        ensure(zeros(&bytes[9..12]) && zeros(&bytes[36..40]), "unnamed bytes of a run are not zero")?;
        ensure(run.records > 0, "a run has no records")?;
        let bounded = [run.first_offset, run.first_position].into_iter().all(|first| fits(first, run.records as usize));
        ensure(bounded, "a run's numbers run over")?;
        let kind = if run.encrypted() {
            run.flags & COMPRESSED == 0 && run.plain == 0 && zeros(&run.random[24..]) && run.stream != 0
        } else {
            run.flags & !COMPRESSED == 0 && zeros(&run.key_id)
        };
        ensure(kind && run.flags & !7 == 0, "the fields of a run contradict each other")?;
        ensure(run.length as usize <= bytes.len() && run.text() <= run.length as usize, "a run's length is wrong")?;
        Ok(run)
    }
}

/// The 54 bytes of a leaf. `declaration` is the hash of the stream's.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub encrypted: bool,
    pub ends: bool,
    pub stream: u32,
    pub offset: u64,
    pub timestamp: u64,
    pub commitment: Hash,
}

impl Entry {
    pub fn encode(&self, declaration: &Hash) -> [u8; 54] {
        let mut out = [0; 54];
        out[0] = 1;
        out[1] = u8::from(self.encrypted) | u8::from(self.stream == 0) << 1 | u8::from(self.ends) << 2;
        put(&mut out, 2, self.stream.to_le_bytes());
        put(&mut out, 6, self.offset.to_le_bytes());
        put(&mut out, 14, self.timestamp.to_le_bytes());
        put(&mut out, 22, self.commitment);
        if self.offset == 0 {
            let first = crate::sha256::digest(&[&domain("kimberlite/first/1"), &self.commitment, declaration]);
            put(&mut out, 22, first);
        }
        out
    }
}
