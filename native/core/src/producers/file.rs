//! The tables as bytes: an entry for each batch, in an order in which they can be applied again.

use std::collections::BTreeMap;

use super::{Batch, Fresh, Key, Limits, Producers};
use crate::format::{Checked, ensure, put, u32_at, u64_at, zeros};

/// An entry: id 16, digest 16, sequence 8, group 8, time 8, stream 4, zero 4.
const ENTRY: usize = 64;

/// In place of the last zero: nothing else is in the entry but a group, the last that had a batch of one who is forgotten.
const FORGOTTEN: u32 = 1;

fn encode_forgotten(out: &mut Vec<u8>, group: u64) {
    let mut entry = [0; ENTRY];
    put(&mut entry, 40, group.to_le_bytes());
    put(&mut entry, 60, FORGOTTEN.to_le_bytes());
    out.extend_from_slice(&entry);
}

/// None if it is the entry of a batch.
fn decode_forgotten(entry: &[u8; ENTRY]) -> Checked<Option<u64>> {
    if u32_at(entry, 60) != FORGOTTEN {
        return Ok(None);
    }
    let empty = zeros(&entry[..40]) && zeros(&entry[48..60]);
    ensure(empty, "an entry of forgotten producers has more than a group")?;
    Ok(Some(u64_at(entry, 40)))
}

fn encode(out: &mut Vec<u8>, fresh: &Fresh) {
    let mut entry = [0; ENTRY];
    put(&mut entry, 0, fresh.key.1);
    put(&mut entry, 16, fresh.batch.digest);
    put(&mut entry, 32, fresh.sequence.to_le_bytes());
    put(&mut entry, 40, fresh.batch.group.to_le_bytes());
    put(&mut entry, 48, fresh.time.to_le_bytes());
    put(&mut entry, 56, fresh.key.0.to_le_bytes());
    out.extend_from_slice(&entry);
}

fn decode(entry: &[u8; ENTRY]) -> Checked<Fresh> {
    ensure(zeros(&entry[60..]), "unnamed bytes of a producer's entry are not zero")?;
    let [id, digest] = [0, 16].map(|at| std::array::from_fn(|i| entry[at + i]));
    Ok(Fresh {
        key: (u32_at(entry, 56), id),
        sequence: u64_at(entry, 32),
        batch: Batch { digest, group: u64_at(entry, 40) },
        time: u64_at(entry, 48),
    })
}

impl Producers {
    /// The tables that these entries make.
    pub fn load(bytes: &[u8], limits: Limits) -> Checked<Self> {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        ensure(rest.is_empty(), "a producer's entry is cut short")?;
        if let Some(out) = Self::load_all(entries, limits)? {
            return Ok(out);
        }
        let mut out = Self::with_limits(limits);
        for entry in entries {
            if let Some(group) = decode_forgotten(entry)? {
                out.note_forgotten(group);
                continue;
            }
            let fresh = decode(entry)?;
            // All that is in the file is durable.
            out.durable = out.durable.max(fresh.batch.group);
            out.remember(&fresh);
        }
        Ok(out)
    }

    /// The same, and without the care for limits that `remember` takes at every entry; None if they are reached.
    fn load_all(entries: &[[u8; ENTRY]], limits: Limits) -> Checked<Option<Self>> {
        let mut out = Self::with_limits(limits);
        for entry in entries {
            if let Some(group) = decode_forgotten(entry)? {
                out.note_forgotten(group);
                continue;
            }
            let fresh = decode(entry)?;
            ensure(fresh.time >= out.latest, "a producer's entry is older than the one before")?;
            let producer = out.known.entry(fresh.key).or_default();
            ensure(producer.follows(&fresh), "a producer's entries do not follow each other")?;
            out.bytes -= if producer.batches.is_empty() { 0 } else { producer.cost() };
            producer.add(&fresh, limits.remembered);
            out.bytes += producer.cost();
            out.turns += 1;
            producer.turn = out.turns;
            out.soonest = out.soonest.min(fresh.time.saturating_add(limits.idle));
            (out.latest, out.durable) = (fresh.time, out.durable.max(fresh.batch.group));
        }
        if out.known.len() > limits.producers || out.bytes > limits.bytes || out.latest >= out.soonest {
            return Ok(None);
        }
        for (&key, producer) in &mut out.known {
            producer.thick = producer.batches.len() > 1;
            let queue = if producer.thick { &mut out.thick } else { &mut out.thin };
            queue.insert(producer.turn, key);
        }
        Ok(Some(out))
    }

    /// Entries to append to the file: all new ones of groups up to this one, which is durable.
    pub fn drain_new(&mut self, upto_group: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for fresh in self.settle(upto_group) {
            encode(&mut out, &fresh);
        }
        if self.forgotten > self.noted {
            self.noted = self.forgotten;
            encode_forgotten(&mut out, self.forgotten);
        }
        out
    }

    /// The last entry of each producer that has sent nothing since this group, by stream and in the order of time.
    pub fn silent(&self, group: u64) -> BTreeMap<u32, Vec<u8>> {
        let mut silent: Vec<_> = self.known.iter().filter(|(_, producer)| producer.last_group() < group).collect();
        silent.sort_unstable_by_key(|(_, producer)| producer.turn);
        let mut out: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for (&key, producer) in silent {
            let Some(&batch) = producer.batches.back() else { continue };
            let fresh = Fresh { key, sequence: producer.last, batch, time: producer.time };
            encode(out.entry(key.0).or_default(), &fresh);
        }
        out
    }

    /// The tables of a log that begins: what is in these entries was dropped.
    pub fn begin(&mut self, bytes: &[u8]) -> Checked<()> {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        ensure(rest.is_empty(), "a producer's entry is cut short")?;
        let mut entries = entries.iter().map(decode).collect::<Checked<Vec<_>>>()?;
        entries.sort_by_key(|fresh| fresh.time);
        for fresh in entries {
            self.durable = self.durable.max(fresh.batch.group);
            if self.remember(&fresh) {
                self.fresh.push_back(fresh);
            }
        }
        Ok(())
    }

    fn note_forgotten(&mut self, group: u64) {
        self.forgotten = self.forgotten.max(group);
        self.noted = self.forgotten;
    }

    fn settle(&mut self, upto_group: u64) -> impl Iterator<Item = Fresh> {
        self.reached(upto_group);
        let durable = |fresh: &Fresh| fresh.batch.group <= upto_group;
        let count = self.fresh.iter().take_while(|fresh| durable(fresh)).count();
        self.fresh.drain(..count)
    }

    /// The file anew: what is remembered of groups up to this one, which is durable. Entries of
    /// later groups are still to be drained.
    pub fn compact(&mut self, upto_group: u64) -> Vec<u8> {
        drop(self.settle(upto_group));
        self.stale = false;
        // Entries that are appended later may not be older.
        let latest = self.fresh.front().map_or(u64::MAX, |fresh| fresh.time);
        let mut out = Vec::with_capacity(self.live_bytes());
        let mut queue: Vec<(&u64, &Key)> = self.thick.iter().chain(&self.thin).collect();
        queue.sort_unstable();
        for (_, &key) in queue {
            let producer = &self.known[&key];
            let time = producer.time.min(latest);
            for (sequence, &batch) in (producer.first()..=producer.last).zip(&producer.batches) {
                if batch.group <= upto_group {
                    encode(&mut out, &Fresh { key, sequence, batch, time });
                }
            }
        }
        if self.forgotten > 0 {
            self.noted = self.forgotten;
            encode_forgotten(&mut out, self.forgotten);
        }
        out
    }

    /// How long the file is at most when it is made anew.
    pub fn live_bytes(&self) -> usize {
        ENTRY * (self.known.values().map(|producer| producer.batches.len()).sum::<usize>() + 1)
    }
}
