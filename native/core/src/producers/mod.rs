//! What the log remembers of producers, so that a batch that is sent twice is stored once.

use std::collections::{BTreeMap, HashMap, VecDeque};

mod file;
#[cfg(test)]
mod tests;

/// 16 bytes that stand for a producer's id, and for a batch's records.
pub type Id = [u8; 16];
pub type Digest = [u8; 16];

/// What to do with a batch. Only `New` may be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    New,
    /// It is in the log, in this group.
    Duplicate {
        group: u64,
    },
    /// It is not the next one, or another batch had its sequence.
    Conflict {
        expected: u64,
    },
    /// It was in the log before, but where is no longer known.
    Forgotten,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// More make the longest idle unknown.
    pub producers: usize,
    /// Memory for all of them. More make the longest idle remember only its last batch.
    pub bytes: usize,
    /// Batches of a producer that still return their receipt.
    pub remembered: usize,
    /// ns of log time after which an idle producer is unknown.
    pub idle: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const DAY: u64 = 86_400_000_000_000;
        Self { producers: 10_000, bytes: 64 << 20, remembered: 1024, idle: 7 * DAY }
    }
}

type Key = (u32, Id);

/// What a producer costs beside its batches: its shares of a hash table that is at worst half
/// full and of a tree of half-full nodes, and what the allocator adds.
const PRODUCER: usize = 320;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    digest: Digest,
    group: u64,
}

/// The last batches of a producer, ending with sequence `last`; at least one.
#[derive(Default)]
struct Producer {
    last: u64,
    /// Log time of the last one.
    time: u64,
    batches: VecDeque<Batch>,
    turn: u64,
    thick: bool,
}

impl Producer {
    fn cost(&self) -> usize {
        PRODUCER + self.batches.capacity() * size_of::<Batch>()
    }

    fn last_group(&self) -> u64 {
        self.batches.back().map_or(0, |batch| batch.group)
    }

    /// The sequence of the first batch that is remembered.
    fn first(&self) -> u64 {
        self.last - (self.batches.len() as u64 - 1)
    }

    /// Whether it was applied before. A later group with an old sequence is no repetition: the
    /// producer had been forgotten, and began again.
    fn has(&self, fresh: &Fresh) -> bool {
        let last = self.batches.back();
        last.is_some_and(|last| fresh.sequence <= self.last && fresh.batch.group <= last.group)
    }

    /// Whether it is what can have been sent next: the next sequence, or the first again when it had been forgotten.
    fn follows(&self, fresh: &Fresh) -> bool {
        let Some(last) = self.batches.back() else {
            return true;
        };
        let next = self.last.checked_add(1) == Some(fresh.sequence);
        next && fresh.batch.group >= last.group || fresh.sequence == 0 && fresh.batch.group > last.group
    }

    fn add(&mut self, fresh: &Fresh, remembered: usize) {
        if self.last.checked_add(1) != Some(fresh.sequence) {
            self.batches.clear();
        }
        if self.batches.len() >= remembered.max(1) {
            self.batches.pop_front();
        }
        self.batches.push_back(fresh.batch);
        (self.last, self.time) = (fresh.sequence, self.time.max(fresh.time));
    }
}

/// A batch that is not in the file yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fresh {
    key: Key,
    sequence: u64,
    batch: Batch,
    time: u64,
}

/// Each producer is in exactly one of two queues, by the turn of its last batch: `thick` if it may
/// have batches to forget, else `thin`. Log time never goes back, so the front of a queue is the
/// longest idle. `fresh` is in the order of the log.
pub struct Producers {
    limits: Limits,
    known: HashMap<Key, Producer>,
    fresh: VecDeque<Fresh>,
    /// The last group that is known to be durable.
    durable: u64,
    /// The last group that had a batch of a producer that is known no more.
    forgotten: u64,
    /// What the file says of that.
    noted: u64,
    thick: BTreeMap<u64, Key>,
    thin: BTreeMap<u64, Key>,
    turns: u64,
    /// The time of the last batch: a clock may have gone back since.
    latest: u64,
    /// No producer expires before this log time.
    soonest: u64,
    bytes: usize,
    /// Whether the file has a stream that is to be in none.
    stale: bool,
}

impl Default for Producers {
    fn default() -> Self {
        Self::with_limits(Limits::default())
    }
}

impl Producers {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self {
            limits,
            known: HashMap::new(),
            fresh: VecDeque::new(),
            durable: 0,
            forgotten: 0,
            noted: 0,
            thick: BTreeMap::new(),
            thin: BTreeMap::new(),
            turns: 0,
            latest: 0,
            soonest: u64::MAX,
            bytes: 0,
            stale: false,
        }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Estimated memory of all producers, without what waits for `drain_new`.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Judges a batch; changes nothing.
    pub fn check(&self, stream: u32, id: &Id, sequence: u64, digest: &Digest) -> Verdict {
        let Some(producer) = self.known.get(&(stream, *id)) else {
            return if sequence == 0 { Verdict::New } else { Verdict::Conflict { expected: 0 } };
        };
        let expected = producer.last.saturating_add(1);
        if sequence > producer.last {
            return if sequence == expected { Verdict::New } else { Verdict::Conflict { expected } };
        }
        let Some(at) = sequence.checked_sub(producer.first()) else {
            return Verdict::Forgotten;
        };
        let batch = &producer.batches[at as usize];
        if batch.digest == *digest { Verdict::Duplicate { group: batch.group } } else { Verdict::Conflict { expected } }
    }

    /// Whether nobody can know if a producer has appended something since this group: it is unknown, and others that
    /// have were forgotten.
    pub fn is_doubtful(&self, stream: u32, id: &Id, since: u64) -> bool {
        self.forgotten > since && !self.known.contains_key(&(stream, *id))
    }

    /// The last group that had a batch of a producer that is known no more.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// This group is durable, and all before it.
    pub fn reached(&mut self, group: u64) {
        self.durable = self.durable.max(group);
    }

    /// Remembers a batch that the log has, or will have with this group. Batches come in the order
    /// of the log; one that is known already, as when the log is read again, changes nothing.
    pub fn apply(&mut self, stream: u32, id: &Id, sequence: u64, digest: &Digest, group: u64, time: u64) {
        let batch = Batch { digest: *digest, group };
        let fresh = Fresh { key: (stream, *id), sequence, batch, time: time.max(self.latest) };
        if self.remember(&fresh) {
            self.fresh.push_back(fresh);
        }
    }

    /// Forgets producers that were idle too long at this log time.
    pub fn expire(&mut self, now: u64) {
        while now >= self.soonest {
            let Some((_, key)) = self.longest_idle() else {
                self.soonest = u64::MAX;
                return;
            };
            self.soonest = self.known[&key].time.saturating_add(self.limits.idle);
            if now >= self.soonest {
                self.forget(&key);
            }
        }
    }

    /// Whether the batch was news.
    fn remember(&mut self, fresh: &Fresh) -> bool {
        self.latest = self.latest.max(fresh.time);
        self.expire(fresh.time);
        let producer = self.known.entry(fresh.key).or_default();
        if producer.has(fresh) {
            return false;
        }
        let known = !producer.batches.is_empty();
        self.bytes -= if known { producer.cost() } else { 0 };
        producer.add(fresh, self.limits.remembered);
        self.bytes += producer.cost();
        self.soonest = self.soonest.min(fresh.time.saturating_add(self.limits.idle));
        let (turn, thick) = (producer.turn, producer.batches.len() > 1);
        // Who had the last turn and has the next one too stays where it is.
        if !known || turn != self.turns || thick != producer.thick {
            let queue = if producer.thick { &mut self.thick } else { &mut self.thin };
            queue.remove(&turn);
            self.turns += 1;
            (producer.turn, producer.thick) = (self.turns, thick);
            let queue = if thick { &mut self.thick } else { &mut self.thin };
            queue.insert(self.turns, fresh.key);
        }
        self.shrink();
        true
    }

    fn forget(&mut self, key: &Key) {
        if let Some(producer) = self.take(key) {
            self.forgotten = self.forgotten.max(producer.last_group());
        }
    }

    fn take(&mut self, key: &Key) -> Option<Producer> {
        let producer = self.known.remove(key)?;
        self.bytes -= producer.cost();
        let queue = if producer.thick { &mut self.thick } else { &mut self.thin };
        queue.remove(&producer.turn);
        Some(producer)
    }

    /// Nobody sends to this stream any more.
    pub fn forget_stream(&mut self, stream: u32) {
        let keys: Vec<Key> = self.known.keys().filter(|key| key.0 == stream).copied().collect();
        self.stale |= !keys.is_empty();
        for key in keys {
            self.take(&key);
        }
        self.fresh.retain(|fresh| fresh.key.0 != stream);
    }

    /// Whether the file must be made anew whatever its length.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    fn longest_idle(&self) -> Option<(u64, Key)> {
        let fronts = [self.thick.first_key_value(), self.thin.first_key_value()];
        fronts.into_iter().flatten().min().map(|(&turn, &key)| (turn, key))
    }

    /// Back within the limits: batches go first, then whole producers, of the longest idle each.
    fn shrink(&mut self) {
        while self.bytes > self.limits.bytes
            && let Some((turn, key)) = self.thick.pop_first()
            && let Some(producer) = self.known.get_mut(&key)
        {
            self.bytes -= producer.cost();
            // The last durable one stays too: a crash may take those behind it, and then the
            // producer goes on from there.
            let durable = producer.batches.partition_point(|batch| batch.group <= self.durable);
            let kept = durable.clamp(1, producer.batches.len()) - 1;
            producer.batches.drain(..kept);
            producer.batches.shrink_to_fit();
            self.bytes += producer.cost();
            producer.thick = false;
            self.thin.insert(turn, key);
        }
        while (self.known.len() > self.limits.producers || self.bytes > self.limits.bytes)
            && let Some((_, key)) = self.longest_idle()
        {
            self.forget(&key);
        }
    }
}
