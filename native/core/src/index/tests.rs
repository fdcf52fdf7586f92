use super::*;
use crate::format::SegmentHeader;

/// xorshift64*: the same segments on every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

fn header() -> SegmentHeader {
    SegmentHeader {
        database: [7; 16],
        number: 3,
        first_group: 900,
        first_position: 5_000_000_000,
        before: [8; 32],
        salt: [9; 32],
        packed: None,
    }
}

/// Lists that are searched from one end to the other.
struct Model {
    runs: Vec<RunEntry>,
    groups: Vec<GroupEntry>,
    next: u64,
}

impl Model {
    fn run(&self, found: impl FnMut(&&RunEntry) -> bool) -> Option<RunEntry> {
        self.runs.iter().find(found).copied()
    }

    fn run_of_offset(&self, stream: u32, offset: u64) -> Option<RunEntry> {
        self.run(|run| run.stream == stream && (run.offset..run.offset + run.records as u64).contains(&offset))
    }

    fn of_stream(&self, stream: u32) -> Vec<RunEntry> {
        self.runs.iter().filter(|run| run.stream == stream).copied().collect()
    }

    fn streams(&self) -> Vec<StreamEntry> {
        (0..10)
            .filter_map(|stream| {
                let runs = self.of_stream(stream);
                let last = runs.last()?;
                Some(StreamEntry { stream, first: runs[0].offset, next: last.offset + last.records as u64 })
            })
            .collect()
    }

    fn group_of_position(&self, position: u64) -> Option<GroupEntry> {
        let before = self.groups.iter().rev().find(|group| group.position <= position);
        before.filter(|_| position < self.next).copied()
    }
}

fn grow(chance: &mut Chance, groups: u64) -> (SegmentIndex, Model) {
    let index = SegmentIndex::new(&header());
    let mut model = Model { runs: vec![], groups: vec![], next: header().first_position };
    let mut offsets: Vec<u64> = (0..10).map(|stream| stream * 1000).collect();
    let (mut place, mut timestamp) = (4096, 50);
    for number in 0..groups {
        timestamp += chance.below(3);
        let group = GroupEntry { number: 900 + number, position: model.next, timestamp, place };
        let mut runs = Vec::new();
        place += 104;
        // A last group without runs, as the closing one is.
        for _ in 0..chance.below(5).min((groups - number - 1) * 5) {
            let (stream, records) = (chance.below(9) as u32, 1 + chance.below(6) as u32);
            let length = 88 + chance.below(1000) as u32;
            let offset = offsets[stream as usize];
            runs.push(RunEntry { position: model.next, offset, stream, records, place, length });
            offsets[stream as usize] += records as u64;
            if chance.below(6) == 0 {
                offsets[stream as usize] += chance.below(5);
            }
            model.next += records as u64;
            place += length;
        }
        index.append_group(&group, &runs).unwrap();
        model.runs.extend(runs);
        model.groups.push(group);
        place = place.next_multiple_of(4096);
    }
    (index, model)
}

fn agree(index: &dyn Lookup, model: &Model) {
    let first = header().first_position;
    assert_eq!((index.first_position(), index.next_position()), (first, model.next));
    for position in (first - 2..model.next + 2).chain([0, u64::MAX]) {
        let run = model.run(|run| (run.position..run.position + run.records as u64).contains(&position));
        assert_eq!(index.run_of_position(position), run);
        assert_eq!(index.group_of_position(position), run.and(model.group_of_position(position)));
    }
    assert_eq!(index.streams(), model.streams());
    for stream in 0..11 {
        agree_on_stream(index, model, stream);
    }
    let numbers = 899..902 + model.groups.len() as u64;
    for number in numbers {
        let group = model.groups.iter().find(|group| group.number == number).copied();
        assert_eq!(index.group_of_number(number), group);
    }
    for timestamp in 48..model.groups.last().map_or(50, |group| group.timestamp) + 3 {
        let group = model.groups.iter().find(|group| group.timestamp >= timestamp).copied();
        assert_eq!(index.group_at_or_after(timestamp), group);
        let position = group.map(|group| group.position).filter(|&position| position < model.next);
        assert_eq!(index.first_position_at_or_after(timestamp), position);
    }
}

/// The runs of a stream from the one that has this offset.
fn runs_from(index: &dyn Lookup, stream: u32, offset: u64) -> impl Iterator<Item = RunEntry> {
    std::iter::successors(index.run_of_offset(stream, offset), |run| index.run_after(run))
}

fn agree_on_stream(index: &dyn Lookup, model: &Model, stream: u32) {
    let runs = model.of_stream(stream);
    let entry = model.streams().into_iter().find(|entry| entry.stream == stream);
    assert_eq!(index.stream(stream), entry);
    let (first, next) = entry.map_or((0, 3), |entry| (entry.first, entry.next));
    for offset in (first.saturating_sub(2)..next + 2).chain([0, u64::MAX]) {
        assert_eq!(index.run_of_offset(stream, offset), model.run_of_offset(stream, offset));
        let rest = runs.iter().filter(|run| run.offset + run.records as u64 > offset);
        let found = model.run_of_offset(stream, offset.max(first)).is_some();
        let rest: Vec<_> = rest.filter(|_| found).copied().collect();
        assert_eq!(runs_from(index, stream, offset.max(first)).collect::<Vec<_>>(), rest);
    }
    for pair in runs.windows(2) {
        assert_eq!(index.run_after(&pair[0]), Some(pair[1]));
        assert_eq!(index.run_before(&pair[1]), Some(pair[0]));
    }
    assert_eq!(runs.last().and_then(|last| index.run_after(last)), None);
    assert_eq!(runs.first().and_then(|first| index.run_before(first)), None);
}

#[test]
fn both_forms_answer_as_lists_searched_from_end_to_end() {
    let mut chance = Chance(1);
    for groups in (0..12).chain([40, 150]) {
        let (index, model) = grow(&mut chance, groups);
        agree(&index, &model);
        agree(&ClosedIndex::decode(&index.encode(), &header()).unwrap(), &model);
    }
}

#[test]
fn a_group_that_does_not_follow_changes_nothing() {
    let (index, model) = grow(&mut Chance(5), 20);
    let group = GroupEntry { number: 920, position: model.next, timestamp: 1000, place: 9 << 20 };
    let last = model.runs.last().unwrap();
    let run = RunEntry { position: model.next, offset: last.offset + last.records as u64, place: 10 << 20, ..*last };
    let second = RunEntry { position: run.position + run.records as u64, place: 11 << 20, ..run };
    let groups = [
        GroupEntry { number: 921, ..group },
        GroupEntry { position: group.position + 1, ..group },
        GroupEntry { timestamp: 1, ..group },
        GroupEntry { place: 4096, ..group },
    ];
    for wrong in groups {
        assert!(index.append_group(&wrong, &[]).is_err(), "{wrong:?}");
    }
    let runs = [
        [RunEntry { records: 0, ..run }, second],
        [RunEntry { position: run.position + 1, ..run }, second],
        [RunEntry { offset: run.offset - 1, ..run }, second],
        [RunEntry { place: 4096, ..run }, second],
        [RunEntry { length: u32::MAX, ..run }, second],
        [RunEntry { records: u32::MAX, ..run }, second],
        [run, second],
    ];
    for wrong in runs {
        assert!(index.append_group(&group, &wrong).is_err(), "{wrong:?}");
        agree(&index, &model);
    }
    index.append_group(&group, &[run]).unwrap();
    assert_eq!(index.run_of_position(run.position), Some(run));
}

/// Asks for everything; nothing may panic or disagree with itself.
fn ask(index: &ClosedIndex) {
    for position in index.first_position()..index.next_position() {
        let run = index.run_of_position(position).unwrap();
        assert!((run.position..run.position + run.records as u64).contains(&position));
        assert!(index.group_of_position(position).unwrap().position <= position);
        let offset = run.offset + (position - run.position);
        assert_eq!(index.run_of_offset(run.stream, offset), Some(run));
    }
    for entry in index.streams() {
        let records = runs_from(index, entry.stream, entry.first).map(|run| run.records as u64);
        assert!(records.sum::<u64>() <= entry.next - entry.first);
    }
    index.group_at_or_after(51);
    index.group_of_number(u64::MAX);
}

#[test]
fn hostile_bytes_are_refused_or_consistent() {
    let (index, _) = grow(&mut Chance(11), 7);
    let bytes = index.encode();
    let mut refused = 0;
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match ClosedIndex::decode(&flipped, &header()) {
            Ok(index) => ask(&index),
            Err(_) => refused += 1,
        }
        assert!(bit >= 96 * 8 || ClosedIndex::decode(&flipped, &header()).is_err(), "bit {bit}");
    }
    assert!(refused > bytes.len() * 4, "most flips are noticed: {refused} of {}", bytes.len() * 8);
    let mut chance = Chance(13);
    for _ in 0..20_000 {
        let mut wild = bytes.clone();
        for _ in 0..=chance.below(3) {
            let at = 80 + chance.below((bytes.len() - 80) as u64) as usize;
            wild[at] = chance.below(256) as u8;
        }
        if let Ok(index) = ClosedIndex::decode(&wild, &header()) {
            ask(&index);
        }
    }
}

#[test]
fn an_index_of_another_length_or_segment_is_refused() {
    let bytes = grow(&mut Chance(17), 9).0.encode();
    for length in 0..bytes.len() {
        assert!(ClosedIndex::decode(&bytes[..length], &header()).is_err(), "{length} bytes");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(ClosedIndex::decode(&longer, &header()).is_err());
    let mut claims = bytes[..96].to_vec();
    claims[80..96].fill(0xff);
    assert!(ClosedIndex::decode(&claims, &header()).is_err());
    let others = [
        SegmentHeader { salt: [1; 32], ..header() },
        SegmentHeader { database: [1; 16], ..header() },
        SegmentHeader { number: 4, ..header() },
        SegmentHeader { first_position: 0, ..header() },
        SegmentHeader { first_group: 1, ..header() },
    ];
    for other in others {
        assert!(ClosedIndex::decode(&bytes, &other).is_err());
    }
    assert!(ClosedIndex::decode(&bytes, &header()).is_ok());
}

#[test]
fn an_index_that_contradicts_itself_is_refused() {
    let index = SegmentIndex::new(&header());
    let first = header().first_position;
    let group = |number: u64, at: u64| GroupEntry {
        number: 900 + number,
        position: first + at,
        timestamp: 100 + number,
        place: 4096 * (number as u32 + 1),
    };
    let run = |at: u64, stream, offset, records, place| {
        let position = first + at;
        RunEntry { position, offset, stream, records, place, length: 90 }
    };
    index.append_group(&group(0, 0), &[run(0, 1, 0, 2, 4200), run(2, 2, 0, 3, 4300)]).unwrap();
    index.append_group(&group(1, 5), &[run(5, 1, 2, 1, 9000)]).unwrap();
    let bytes = index.encode();
    let (runs, streams, sorted) = (96 + 2 * 16, 96 + 2 * 16 + 3 * 24, 96 + 2 * 16 + 5 * 24);
    let refused = |what: &str, changes: &[(usize, u32)]| {
        let mut wrong = bytes.clone();
        for &(at, value) in changes {
            wrong[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        assert!(wrong != bytes && ClosedIndex::decode(&wrong, &header()).is_err(), "{what}");
    };
    refused("the first group is not first", &[(96, 1)]);
    refused("a group is behind all records", &[(96 + 16, 7)]);
    refused("groups share a place", &[(96 + 16 + 4, 4096)]);
    refused("time goes back", &[(96 + 16 + 8, 99)]);
    refused("the first run is not first", &[(runs, 1)]);
    let shorter = [(runs + 48, 2), (streams + 16, 6), (streams + 24 + 16, 0)];
    refused("a run without records", &shorter);
    refused("a last run without records", &[(runs + 48, 6), (88, 6), (streams + 16, 2)]);
    refused("runs overlap", &[(runs + 8, 101)]);
    refused("a run runs over", &[(runs + 48 + 8, u32::MAX)]);
    refused("a run of no stream", &[(runs + 12, 3)]);
    let numbers = [(sorted, 1), (sorted + 4, 0), (sorted + 8, 2)];
    let swapped = [&[(streams, 2), (streams + 24, 1), (streams + 28, 1)][..], &numbers].concat();
    refused("streams out of order", &swapped);
    refused("a stream's runs begin late", &[(streams + 4, 1), (streams + 8, 2)]);
    refused("a stream's runs begin behind the end", &[(streams + 24 + 4, 4)]);
    refused("a stream's first offset", &[(streams + 8, 1)]);
    refused("a stream's next offset", &[(streams + 16, 4)]);
    refused("a run twice", &[(sorted + 4, 0)]);
    refused("a run there is not", &[(sorted + 8, 3)]);
    refused("no streams", &[(92, 0)]);
}

#[test]
fn readers_find_whole_runs_while_groups_are_appended() {
    let index = SegmentIndex::new(&header());
    let first = header().first_position;
    const GROUPS: u64 = 5_000;
    let run = |n: u64| RunEntry {
        position: first + 7 * n,
        offset: 7 * (n / 2),
        stream: (n % 2) as u32,
        records: 7,
        place: 4096 * (n as u32 + 1),
        length: 300,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..GROUPS {
                let RunEntry { position, place, .. } = run(n);
                let group = GroupEntry { number: 900 + n, position, timestamp: n, place };
                index.append_group(&group, &[run(n)]).unwrap();
            }
        });
        let mut seen = 0;
        while seen < 7 * GROUPS {
            seen = index.next_position() - first;
            for back in 1..=seen.min(20) {
                let n = (seen - back) / 7;
                assert_eq!(index.run_of_position(first + seen - back), Some(run(n)));
                assert_eq!(index.group_of_position(first + seen - back).unwrap().number, 900 + n);
            }
            if let Some(entry) = index.stream(1) {
                let last = index.run_of_offset(1, entry.next - 1).unwrap();
                assert_eq!(last, run(2 * (entry.next / 7) - 1));
            }
        }
    });
}

#[test]
fn two_groups_never_share_a_place() {
    let header = header();
    let index = SegmentIndex::new(&header);
    let (position, timestamp) = (header.first_position, 1);
    let group = |number, place| GroupEntry { number, position, timestamp, place };
    assert!(index.append_group(&group(900, 4096), &[]).is_ok());
    assert!(index.append_group(&group(901, 4096), &[]).is_err());
    assert!(index.append_group(&group(901, 4095), &[]).is_err());
    assert!(index.append_group(&group(901, 4097), &[]).is_ok());
}

#[test]
fn a_segment_has_no_more_records_than_its_rows_can_number() {
    let header = header();
    let index = SegmentIndex::new(&header);
    let group = GroupEntry { number: 900, position: header.first_position, timestamp: 1, place: 4096 };
    let first =
        RunEntry { position: header.first_position, offset: 0, stream: 1, records: u32::MAX, place: 4200, length: 100 };
    let position = header.first_position + u32::MAX as u64;
    let second = RunEntry { position, offset: u32::MAX as u64, records: 1, place: 4300, ..first };
    let refused = index.append_group(&group, &[first, second]);
    assert_eq!(refused, Err(crate::format::Damage("a segment has too many records")));
    assert_eq!((index.next_position(), index.streams().len()), (header.first_position, 0));
}
