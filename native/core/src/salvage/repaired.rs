//! The record that says what was given up.

use std::cmp::Reverse;

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
    /// Whether some of these positions were kept.
    pub coarse: bool,
}

impl Repaired {
    pub const KIND: u16 = 7;
    const HEAD: usize = 47;
    /// Ranges that it names: each retention record repeats them.
    pub const RANGES: usize = 256;

    /// With no more ranges than that: those with the least between them become one.
    pub fn bounded(mut self) -> Self {
        let end = self.lost.pop_if(|(from, upto)| from == upto);
        let lost = &self.lost;
        if lost.len() > Self::RANGES {
            let mut begins: Vec<usize> = (1..lost.len()).collect();
            begins.sort_by_key(|&i| Reverse(lost[i].0.saturating_sub(lost[i - 1].1)));
            begins.truncate(Self::RANGES - 1);
            begins.push(0);
            begins.sort_unstable();
            let ends = begins[1..].iter().copied().chain([lost.len()]);
            let joined = begins.iter().zip(ends).map(|(&first, end)| &lost[first..end]);
            self.lost = joined.map(|one| (one[0].0, one.iter().fold(0, |end, range| end.max(range.1)))).collect();
            self.coarse = true;
        }
        self.lost.extend(end);
        self
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Self::KIND.to_le_bytes().to_vec();
        out.push(u8::from(self.salvaged) | u8::from(self.coarse) << 1);
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
        let whole = lost.len() as u64 == u32_at(payload, 43) as u64 * 16 && payload[2] <= 3;
        ensure(whole, "a system record is malformed")?;
        Ok(Self {
            salvaged: payload[2] & 1 != 0,
            database: payload[3..19].try_into().unwrap(),
            when: u64_at(payload, 19),
            before: u32_at(payload, 27),
            after: u32_at(payload, 31),
            kept: u64_at(payload, 35),
            lost: lost.chunks_exact(16).map(|range| (u64_at(range, 0), u64_at(range, 8))).collect(),
            coarse: payload[2] & 2 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repaired(lost: Vec<(u64, u64)>) -> Repaired {
        let (database, when, kept, coarse) = ([0; 16], 0, 0, false);
        Repaired { salvaged: true, database, when, before: 0, after: 1, kept, lost, coarse }
    }

    #[test]
    fn of_very_many_ranges_those_that_are_close_together_are_one() {
        // Every hundredth is far from the one before.
        let ranges =
            |count: u64| (0..count).map(|i| (1_000 * (i / 100) + 3 * i, 1_000 * (i / 100) + 3 * i + 1)).collect();
        let few: Vec<_> = ranges(256);
        assert_eq!(repaired(few.clone()).bounded(), repaired(few));
        let many: Vec<_> = ranges(20_000);
        let end = (1 << 40, 1 << 40);
        for open in [false, true] {
            let said = repaired(many.iter().copied().chain(open.then_some(end)).collect()).bounded();
            assert!(said.coarse);
            let mut lost = said.lost.clone();
            assert_eq!(open, lost.last() == Some(&end));
            lost.truncate(256);
            assert_eq!(lost.len(), 256);
            assert!(lost.windows(2).all(|pair| pair[0].1 < pair[1].0));
            let covers = |range: &(u64, u64)| lost.iter().any(|one| one.0 <= range.0 && range.1 <= one.1);
            assert!(many.iter().all(covers));
            assert!(lost.iter().all(|one| many.iter().any(|range| range.0 == one.0)));
            assert!(lost.iter().all(|one| many.iter().any(|range| range.1 == one.1)));
            // What was kept between those that were far from each other is not said to be lost.
            assert!(lost.iter().all(|one| one.1 - one.0 < 1_000));
            assert_eq!(said.clone().bounded(), said);
            assert_eq!(Repaired::decode(&said.encode()), Ok(said));
        }
    }
}
