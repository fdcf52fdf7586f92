//! The streams of a database by name and by number.

use std::collections::HashMap;
use std::sync::Arc;

use super::erased::Erasure;
use crate::format::{Checked, Damage, Hash, ensure};
use crate::group::Stream;
use crate::keys::Key;
use crate::system::{Declaration, Gap};

/// Of a declaration in a group, beside itself: record and batch headers and, at worst, a run of its own.
const DECLARED: usize = 256;
/// Of a stream in a record of retention, beside its declaration.
const SAID: usize = 12;

/// Offsets that no record has, half open, and the position of the record that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skipped {
    pub position: u64,
    pub from: u64,
    pub to: u64,
}

/// What is known of a stream beside what sealing needs.
pub struct Info {
    pub name: String,
    pub declaration: Vec<u8>,
    /// Offsets below this were dropped.
    pub first: u64,
    /// In their order.
    pub skipped: Vec<Skipped>,
    /// The offset after what is forming, and after what is durable.
    pub forming: u64,
    pub durable: u64,
    /// Whether its declaration is in the log, or in the group that is forming.
    pub declared: bool,
    /// Said by a record that is in the log, or in the group that is forming.
    pub erased: Option<Erasure>,
}

impl Info {
    /// The gap that an offset is in.
    pub fn gap_at(&self, offset: u64) -> Option<Skipped> {
        let at = self.skipped.partition_point(|gap| gap.to <= offset);
        self.skipped.get(at).filter(|gap| gap.from <= offset).copied()
    }

    /// The offset after the last durable record.
    pub fn recorded(&self) -> u64 {
        let durable = self.skipped.iter().rev().filter(|gap| gap.to <= self.durable);
        durable.fold(self.durable, |end, gap| if gap.to == end { gap.from } else { end })
    }
}

/// Numbers count from 0, the system's, without a gap; a name has one number for ever.
pub struct Streams {
    pub list: Vec<Arc<Stream>>,
    pub info: Vec<Info>,
    /// Positions of the records that say what was given up, but for those that were dropped.
    pub repairs: Vec<u64>,
    /// What a record of retention takes to say what all of them are called, and which are erased.
    pub said: usize,
    names: HashMap<String, u32>,
}

impl Streams {
    pub fn new(identity: Hash) -> Self {
        let (name, declaration, skipped) = (String::new(), vec![], vec![]);
        let (forming, durable) = (0, 0);
        let info = Info { name, declaration, first: 0, skipped, forming, durable, declared: true, erased: None };
        let list = vec![Arc::new(Stream::new(0, identity, false, None))];
        Self { list, info: vec![info], repairs: vec![], said: 0, names: HashMap::new() }
    }

    pub fn number(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// Adds the stream that a declaration names, which must have the next number and a new name.
    pub fn add(&mut self, declaration: &Declaration, encoded: &[u8], key: Option<&Key>, declared: bool) -> Checked<()> {
        ensure(declaration.stream as usize == self.list.len(), "a declaration's number is not the next one")?;
        ensure(!self.names.contains_key(&declaration.name), "a stream is declared twice")?;
        ensure(!declaration.name.is_empty(), "a stream is declared without a name")?;
        let hash = Declaration::hash(encoded);
        self.list.push(Arc::new(Stream::new(declaration.stream, hash, declaration.encrypted, key)));
        self.names.insert(declaration.name.clone(), declaration.stream);
        self.said += SAID + encoded.len();
        self.info.push(Info {
            name: declaration.name.clone(),
            declaration: encoded.to_vec(),
            first: 0,
            skipped: vec![],
            forming: 0,
            durable: 0,
            declared,
            erased: None,
        });
        Ok(())
    }

    /// A stream's length when the log was loaded.
    pub fn set_next(&mut self, number: usize, next: u64) {
        (self.info[number].forming, self.info[number].durable) = (next, next);
    }

    /// A gap: the stream goes on behind it.
    pub fn skip(&mut self, number: usize, gap: Skipped) {
        self.info[number].forming = gap.to;
        self.info[number].skipped.push(gap);
    }

    /// The same for one that the log has.
    pub fn follow_gap(&mut self, position: u64, gap: &Gap) -> Checked<()> {
        let number = gap.stream as usize;
        let info = self.info.get(number).ok_or(Damage("a gap's stream was never declared"))?;
        ensure(gap.from == info.forming, "a gap does not begin where its stream ends")?;
        self.skip(number, Skipped { position, from: gap.from, to: gap.to });
        self.set_next(number, gap.to);
        Ok(())
    }

    /// What declarations that are in no group yet take of one at most: those that must be there before a record of
    /// `upto`, but for those up to `above`.
    pub fn undeclared_bound(&self, above: u32, upto: u32) -> usize {
        let end = (upto as usize).min(self.info.len() - 1);
        let between = self.info.get(above as usize + 1..=end).unwrap_or_default();
        let waiting = between.iter().rev().take_while(|info| !info.declared);
        waiting.map(|info| info.declaration.len() + DECLARED).sum()
    }

    /// Declarations that are in no group yet, in their order, which take so much of one; the first whatever it takes.
    pub fn undeclared_within(&mut self, most: usize) -> (Vec<Vec<u8>>, usize) {
        let first = self.info.iter().rposition(|info| info.declared).map_or(0, |last| last + 1);
        let (mut upto, mut taken) = (first, 0);
        while let Some(info) = self.info.get(upto) {
            let length = info.declaration.len() + DECLARED;
            if upto > first && taken + length > most {
                break;
            }
            (upto, taken) = (upto + 1, taken + length);
        }
        if upto == first { (Vec::new(), 0) } else { (self.undeclared(upto as u32 - 1), taken) }
    }

    /// Streams below this one, itself included, whose declarations are in no group yet.
    pub fn undeclared(&mut self, upto: u32) -> Vec<Vec<u8>> {
        let last = upto as usize;
        if self.info[last].declared {
            return Vec::new();
        }
        let mut from = last;
        while from > 0 && !self.info[from - 1].declared {
            from -= 1;
        }
        self.info[from..=last]
            .iter_mut()
            .map(|info| {
                info.declared = true;
                info.declaration.clone()
            })
            .collect()
    }
}
