//! The record that says what was given up.

use crate::format::{Checked, ensure, u32_at, u64_at};

/// What was given up of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Whether a salvage could not save it, and not a repair that gave it up.
    pub salvaged: bool,
    /// Of which: this one, or one that it was salvaged from.
    pub database: [u8; 16],
    /// ns since 1970.
    pub when: u64,
    /// Incarnations.
    pub before: u32,
    pub after: u32,
    /// Records that were kept.
    pub kept: u64,
    /// Positions, half open, that were not. Of the last nobody may know where it ended: then at its own beginning.
    pub lost: Vec<(u64, u64)>,
}

impl Repaired {
    pub const KIND: u16 = 7;
    const HEAD: usize = 47;

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Self::KIND.to_le_bytes().to_vec();
        out.push(u8::from(self.salvaged));
        out.extend(self.database);
        out.extend(self.when.to_le_bytes());
        out.extend(self.before.to_le_bytes());
        out.extend(self.after.to_le_bytes());
        out.extend(self.kept.to_le_bytes());
        out.extend((self.lost.len() as u32).to_le_bytes());
        for (from, upto) in &self.lost {
            out.extend(from.to_le_bytes());
            out.extend(upto.to_le_bytes());
        }
        out
    }

    pub fn decode(payload: &[u8]) -> Checked<Self> {
        ensure(payload.len() >= Self::HEAD, "a system record is cut short")?;
        let lost = &payload[Self::HEAD..];
        let whole = lost.len() as u64 == u32_at(payload, 43) as u64 * 16 && payload[2] <= 1;
        ensure(whole, "a system record is malformed")?;
        Ok(Self {
            salvaged: payload[2] == 1,
            database: payload[3..19].try_into().unwrap(),
            when: u64_at(payload, 19),
            before: u32_at(payload, 27),
            after: u32_at(payload, 31),
            kept: u64_at(payload, 35),
            lost: lost.chunks_exact(16).map(|range| (u64_at(range, 0), u64_at(range, 8))).collect(),
        })
    }
}
