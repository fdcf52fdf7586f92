use std::collections::BTreeMap;

use super::*;

const WIDE: Limits = Limits { producers: 1000, bytes: 1 << 20, remembered: 5, idle: 1000 };

fn id(n: u8) -> Id {
    [n; 16]
}

fn digest(n: u64) -> Digest {
    (u128::from(n) * 0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

/// xorshift64*: the same histories on every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// Sequence, digest, group.
type Told = (u64, Digest, u64);

/// Every batch that was ever applied and not forgotten, with nothing shared and nothing queued.
#[derive(Default)]
struct Model {
    batches: BTreeMap<Key, Vec<Told>>,
    heard: BTreeMap<Key, (u64, u64)>,
    turns: u64,
}

impl Model {
    fn check(&self, limits: &Limits, key: Key, sequence: u64, digest: &Digest) -> Verdict {
        let batches = self.batches.get(&key).map_or(&[][..], |batches| batches);
        let expected = batches.len() as u64;
        if sequence >= expected {
            let new = sequence == expected;
            return if new { Verdict::New } else { Verdict::Conflict { expected } };
        }
        let (_, had, group) = batches[sequence as usize];
        if expected - sequence > limits.remembered as u64 {
            Verdict::Forgotten
        } else if had == *digest {
            Verdict::Duplicate { group }
        } else {
            Verdict::Conflict { expected }
        }
    }

    fn forget(&mut self, key: &Key) {
        self.batches.remove(key);
        self.heard.remove(key);
    }

    fn apply(&mut self, limits: &Limits, key: Key, batch: Told, time: u64) {
        let heard = self.heard.clone();
        for (idle, _) in heard.iter().filter(|(_, (_, then))| time - then >= limits.idle) {
            self.forget(idle);
        }
        self.batches.entry(key).or_default().push(batch);
        self.turns += 1;
        self.heard.insert(key, (self.turns, time));
        if self.heard.len() > limits.producers {
            let oldest = *self.heard.iter().min_by_key(|(_, turn)| **turn).unwrap().0;
            self.forget(&oldest);
        }
    }
}

fn agree(table: &Producers, model: &Model, limits: &Limits) {
    assert_eq!(table.len(), model.batches.len());
    for (stream, n) in (0..3).flat_map(|stream| (0..7).map(move |n| (stream, n))) {
        for sequence in (0..40).chain([u64::MAX]) {
            for digest in [digest(sequence), digest(99)] {
                let expected = model.check(limits, (stream, id(n)), sequence, &digest);
                let verdict = table.check(stream, &id(n), sequence, &digest);
                assert_eq!(verdict, expected, "stream {stream}, id {n}, {sequence}");
            }
        }
    }
}

/// Batches of random producers, each first checked; what is in the file is loaded as it grows.
fn live(seed: u64, limits: Limits) {
    let (mut table, mut model) = (Producers::with_limits(limits), Model::default());
    let (mut chance, mut file, mut time) = (Chance(seed), Vec::new(), 1);
    for group in 1..400 {
        time += chance.below(4) * chance.below(40);
        for _ in 0..chance.below(4) {
            let key = (chance.below(3) as u32, id(chance.below(6) as u8));
            let expired = model.heard.get(&key).is_none_or(|(_, then)| time - then >= limits.idle);
            table.expire(time);
            let sequence = if expired { 0 } else { model.batches[&key].len() as u64 };
            let digest = digest(sequence);
            assert_eq!(table.check(key.0, &key.1, sequence, &digest), Verdict::New);
            table.apply(key.0, &key.1, sequence, &digest, group, time);
            table.apply(key.0, &key.1, sequence, &digest, group, time);
            model.apply(&limits, key, (sequence, digest, group), time);
        }
        if chance.below(40) == 0 {
            file = table.compact(group);
            assert!(file.len() <= table.live_bytes());
        } else {
            file.extend(table.drain_new(group));
        }
        if group % 10 == 0 {
            model.apply(&limits, (9, id(9)), (0, digest(0), group), time);
            table.apply(9, &id(9), model.batches[&(9, id(9))].len() as u64 - 1, &digest(0), group, time);
            agree(&table, &model, &limits);
            file.extend(table.drain_new(group));
            agree(&Producers::load(&file, limits).unwrap(), &model, &limits);
        }
    }
}

#[test]
fn who_was_forgotten_is_doubted_and_nobody_else_before_and_after_loading() {
    let limits = Limits { producers: 4, ..WIDE };
    let mut table = Producers::with_limits(limits);
    let mut file = Vec::new();
    for group in 1..=9 {
        // The first three stay, since they go on; of the others the last one is known.
        for n in [1, 2, 3, 3 + group as u8] {
            let sequence = if n > 3 { 0 } else { group - 1 };
            table.apply(1, &id(n), sequence, &digest(sequence), group, group);
        }
        file.extend(table.drain_new(group));
    }
    let loaded = Producers::load(&file, limits).unwrap();
    let anew = Producers::load(&table.compact(9), limits).unwrap();
    assert_eq!(anew.len(), 4);
    for table in [&table, &loaded, &anew] {
        // Number 11 was forgotten when 12 came, and it was in group 8.
        for (n, since, doubtful) in [(11, 7, true), (11, 8, false), (4, 0, true), (50, 7, true), (50, 8, false)] {
            assert_eq!(table.is_doubtful(1, &id(n), since), doubtful, "{n} {since}");
        }
        assert!([1, 2, 3, 12].iter().all(|&n| !table.is_doubtful(1, &id(n), 0)));
        assert!(table.is_doubtful(2, &id(1), 0), "streams are apart");
    }
    let mut few = Producers::with_limits(limits);
    (0..9).for_each(|n| few.apply(1, &id(1), n, &digest(n), n + 1, n));
    for few in [&Producers::load(&few.compact(9), limits).unwrap(), &few] {
        assert!(!few.is_doubtful(1, &id(2), 0), "nobody was forgotten");
    }
}

#[test]
fn what_is_read_again_is_remembered_as_well_as_what_was_appended() {
    // Room for all producers, and for few batches of each.
    let limits = Limits { bytes: 50 * (PRODUCER + 60), ..WIDE };
    let (mut live, mut again) = (Producers::with_limits(limits), Producers::with_limits(limits));
    for group in 1..=250 {
        let (n, sequence) = ((group - 1) / 5, (group - 1) % 5);
        again.reached(group);
        for table in [&mut live, &mut again] {
            table.apply(1, &id(n as u8), sequence, &digest(group), group, group);
        }
        live.drain_new(group);
    }
    assert_eq!((live.len(), again.len()), (50, 50));
    assert!((0..50).all(|n| again.check(1, &id(n), 5, &digest(251)) == Verdict::New));
}

#[test]
fn verdicts_are_those_of_a_list_of_all_batches_before_and_after_loading() {
    for seed in 1..5 {
        live(seed, WIDE);
        live(seed, Limits { idle: 60, ..WIDE });
        live(seed, Limits { producers: 9, ..WIDE });
        live(seed, Limits { producers: 4, idle: 200, remembered: 1, ..WIDE });
    }
}

#[test]
fn the_four_verdicts() {
    let mut table = Producers::with_limits(WIDE);
    let check = |table: &Producers, n, of| table.check(1, &id(1), n, &digest(of));
    assert_eq!(check(&table, 0, 0), Verdict::New);
    assert_eq!(check(&table, 1, 1), Verdict::Conflict { expected: 0 });
    for n in 0..8 {
        table.apply(1, &id(1), n, &digest(n), 10 + n, n);
    }
    assert_eq!(check(&table, 8, 8), Verdict::New);
    assert_eq!(check(&table, 9, 9), Verdict::Conflict { expected: 8 });
    assert_eq!(check(&table, 7, 7), Verdict::Duplicate { group: 17 });
    assert_eq!(check(&table, 3, 3), Verdict::Duplicate { group: 13 });
    assert_eq!(check(&table, 3, 4), Verdict::Conflict { expected: 8 });
    assert_eq!(check(&table, 2, 2), Verdict::Forgotten);
    assert_eq!(table.check(2, &id(1), 0, &digest(0)), Verdict::New, "streams are apart");
}

#[test]
fn the_longest_idle_forgets_its_older_batches_first_and_then_itself() {
    let cost = {
        let mut table = Producers::with_limits(WIDE);
        table.apply(1, &id(1), 0, &digest(0), 1, 1);
        table.bytes()
    };
    let mut table = Producers::with_limits(Limits { bytes: 3 * cost + 50, ..WIDE });
    let mut apply = |n: u8, sequence, group| {
        table.apply(1, &id(n), sequence, &digest(sequence), group, group);
        table.drain_new(group);
        assert!(table.bytes() <= 3 * cost + 50);
        [1, 2, 3, 4].map(|n| [0, 1, 2, 3, 4].map(|s| table.check(1, &id(n), s, &digest(s))))
    };
    for sequence in 0..5 {
        apply(1, sequence, 1 + sequence);
    }
    apply(2, 0, 6);
    let [first, ..] = apply(3, 0, 7);
    assert_eq!(first[3..], [Verdict::Forgotten, Verdict::Duplicate { group: 5 }]);
    let [first, second, _, fourth] = apply(4, 0, 8);
    assert_eq!(first[..2], [Verdict::New, Verdict::Conflict { expected: 0 }]);
    assert_eq!(second[0], Verdict::Duplicate { group: 6 });
    assert_eq!(fourth[0], Verdict::Duplicate { group: 8 });
}

#[test]
fn forgetting_keeps_what_a_crash_would_fall_back_to() {
    let mut table = Producers::with_limits(WIDE);
    for n in 0..5 {
        table.apply(1, &id(1), n, &digest(n), 1 + n, n);
    }
    table.drain_new(2);
    table.limits.bytes = table.bytes() + 400;
    table.apply(1, &id(2), 0, &digest(0), 6, 6);
    assert_eq!(table.check(1, &id(1), 0, &digest(0)), Verdict::Forgotten);
    let crashed = Producers::load(&table.compact(2), WIDE).unwrap();
    assert_eq!(crashed.check(1, &id(1), 1, &digest(1)), Verdict::Duplicate { group: 2 });
    assert_eq!(crashed.check(1, &id(1), 2, &digest(2)), Verdict::New);
    assert_eq!(crashed.len(), 1);
}

#[test]
fn a_producer_that_was_forgotten_and_began_again_is_loaded_with_its_new_beginning() {
    let narrow = Limits { producers: 1, ..WIDE };
    let mut table = Producers::with_limits(narrow);
    for (group, (n, sequence)) in (1..).zip([(1, 0), (1, 1), (2, 0), (1, 0)]) {
        assert_eq!(table.check(1, &id(n), sequence, &digest(group)), Verdict::New);
        table.apply(1, &id(n), sequence, &digest(group), group, 5);
    }
    let file = table.drain_new(9);
    for limits in [narrow, WIDE] {
        let again = Producers::load(&file, limits).unwrap();
        assert_eq!(again.check(1, &id(1), 0, &digest(4)), Verdict::Duplicate { group: 4 });
        assert_eq!(again.check(1, &id(1), 1, &digest(2)), Verdict::New);
    }
}

#[test]
fn nothing_of_a_group_that_is_not_durable_is_written() {
    let mut table = Producers::with_limits(WIDE);
    for n in 0..6 {
        table.apply(1, &id(n as u8 % 2), n / 2, &digest(n / 2), 1 + n / 2, 100 + n);
    }
    let mut file = table.drain_new(1);
    assert_eq!((file.len(), table.drain_new(1).len()), (2 * 64, 0));
    assert_eq!(table.compact(2).len(), 4 * 64);
    file = table.compact(2);
    file.extend(table.drain_new(3));
    assert_eq!(file.len(), 6 * 64);
    let again = Producers::load(&file, WIDE).unwrap();
    for n in [0, 1] {
        assert_eq!(again.check(1, &id(n), 2, &digest(2)), Verdict::Duplicate { group: 3 });
    }
}

#[test]
fn an_entry_has_the_bytes_of_the_format() {
    let mut table = Producers::with_limits(WIDE);
    table.apply(0x0403_0201, &id(0xaa), 0, &[0xbb; 16], 0x1111, 0x2222);
    let mut expected = [&[0xaa; 16][..], &[0xbb; 16], &[0; 8], &[0x11, 0x11, 0, 0, 0, 0, 0, 0]].concat();
    expected.extend([0x22, 0x22, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(table.compact(u64::MAX), expected);
}

#[test]
fn hostile_bytes_are_refused_or_hold_to_the_limits() {
    let mut table = Producers::with_limits(WIDE);
    for n in 0..12 {
        table.apply(n as u32 % 2, &id(1), n / 2, &digest(n), n, n);
    }
    let bytes = table.drain_new(u64::MAX);
    assert!(Producers::load(&bytes, WIDE).is_ok());
    for length in (0..bytes.len()).filter(|length| length % 64 != 0) {
        assert!(Producers::load(&bytes[..length], WIDE).is_err());
    }
    let swapped = [&bytes[128..256], &bytes[..128]].concat();
    assert!(Producers::load(&swapped, WIDE).is_err(), "time goes back");
    let missing = [&bytes[..128], &bytes[256..]].concat();
    assert!(Producers::load(&missing, WIDE).is_err(), "a sequence is missing");
    let mut refused = 0;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match Producers::load(&flipped, Limits { producers: 2, ..WIDE }) {
            Ok(table) => assert!(table.len() <= 2 && table.bytes() < 2 * 1000),
            Err(_) => refused += 1,
        }
        assert!(bit / 8 % 64 < 60 || Producers::load(&flipped, WIDE).is_err(), "bit {bit}");
    }
    assert!(refused > bytes.len(), "sequences, times and zeros are noticed: {refused}");
    let mut last = vec![0; 64];
    last[32..56].fill(0xff);
    let table = Producers::load(&last, WIDE).unwrap();
    assert_eq!(table.check(0, &id(0), u64::MAX, &[0; 16]), Verdict::Duplicate { group: u64::MAX });
}
