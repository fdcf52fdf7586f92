//! A log whose oldest segments are gone is, from there on, what it was.

use std::sync::Arc;

use super::published::{SHAPES, grow};
use super::state::state;
use super::world::{World, empty_log, keys};
use crate::format::{Checked, Hash, SEGMENT_HEADER};
use crate::keys::Key;
use crate::log::retained;
use crate::log::{Dropped, Failure, Hidden, Log, MOST_LEAVES, Retained, Search, Segment, Source, Span, Stop, Window};
use crate::record::{Batch, Record};
use crate::system::Declaration;

type Keys<'a> = &'a mut dyn FnMut(&Declaration, &Hash) -> Checked<Option<Key>>;

/// Replays a world's segments from this one on.
pub fn follow(log: &Log, world: &World, from: usize, keys: Keys) -> Option<Stop> {
    let mut stop = None;
    for number in from..world.files.len() {
        let file = world.files[number].clone();
        let segment = Arc::new(Segment::active(world.header(number), file.clone()));
        log.attach(segment.clone());
        log.enter(&segment).unwrap();
        let data = file.read(SEGMENT_HEADER as u64, usize::MAX).unwrap();
        stop = Some(log.replay(&segment, SEGMENT_HEADER as u64, &data, u64::MAX, keys).stop);
        if matches!(stop, Some(Stop::Damaged(_))) {
            return stop;
        }
    }
    stop
}

/// What is kept reads as it did, and nothing else does.
fn agree_from(world: &World, log: &Log) {
    let (first, mut window) = (log.first(), Window::default());
    for (position, kept) in (0..).zip(&world.kept[..world.published]) {
        match log.get(position, &mut window, MOST_LEAVES) {
            Ok(found) => {
                assert!(position >= first && found.run.opened.record(found.from) == kept.bytes);
                assert_eq!(log.position_of(kept.stream, kept.offset).unwrap(), position);
                assert!(log.position_at(kept.timestamp, Hidden::Fails).unwrap() >= first);
            }
            Err(Failure::Dropped { stream: None, first: said }) => assert!(position < first && said == first),
            other => panic!("position {position}: {:?}", other.map(drop)),
        }
    }
    for stream in 0..world.lengths.len() as u32 {
        let offsets: Vec<u64> = (first..world.published as u64)
            .filter(|&at| world.kept[at as usize].stream == stream)
            .map(|at| world.kept[at as usize].offset)
            .collect();
        let (least, next) = {
            let streams = log.streams.read().unwrap();
            let Some(info) = streams.info.get(stream as usize) else { continue };
            (info.first, info.durable)
        };
        assert_eq!((least, next), (world.length_before(stream, first), world.length_before(stream, u64::MAX)));
        assert!(offsets.first().is_none_or(|&offset| offset >= least));
        if least > 0 {
            let span = Span { stream: Some(stream), start: least - 1, end: u64::MAX, reverse: false };
            match log.next(span, &mut window) {
                Err(Failure::Dropped { stream: Some(said), first }) => assert_eq!((said, first), (stream, least)),
                other => panic!("stream {stream}: {:?}", other.map(drop)),
            }
        }
        assert_eq!(log.offset_at(stream, first, Hidden::Fails).unwrap(), least);
        for reverse in [false, true] {
            let mut span = Span { stream: Some(stream), start: least, end: next, reverse };
            let mut count = 0;
            while let Some((found, left)) = log.next(span, &mut window).unwrap() {
                (count, span) = (count + found.to - found.from, left);
            }
            assert_eq!(count, offsets.len());
        }
    }
}

pub fn batch(payload: &[u8]) -> Batch {
    let mut batch = Batch::default();
    batch.push(&Record { key: None, headers: b"", event_time: None, payload });
    batch
}

/// Puts it into the log, in pieces of so many bytes.
pub fn say(world: &mut World, retained: &Retained, piece: usize) {
    for payload in retained.records(piece) {
        world.append(vec![(0, batch(&payload))], None, false);
    }
    world.settle();
}

fn grown(seed: u64) -> World {
    let mut world = grow(SHAPES[seed as usize % 4], 400 + seed, 70);
    (0..2).for_each(|_| world.rotate());
    for stream in [1, 2] {
        world.append(vec![(stream, batch(b"behind all"))], None, false);
    }
    world.cut();
    world
}

#[test]
fn a_log_begins_behind_whatever_was_dropped() {
    for seed in 0..4 {
        let world = grown(seed);
        for number in 1..world.files.len() {
            let retained = world.log.retain(number as u64, 9, "a rule", false).unwrap().unwrap();
            let bound = world.log.retained_bound();
            assert!((retained.encode().len()..retained.encode().len() + (32 << 10)).contains(&bound), "{bound}");
            assert_eq!(Retained::decode(&retained.encode()), Ok(retained.clone()));
            let log = empty_log(world.shape, 1 << 16);
            log.begin(retained, &mut keys).unwrap();
            assert_eq!(log.first(), world.header(number).first_position);
            follow(&log, &world, number, &mut keys);
            assert_eq!(state(&log), state(&world.log));
            agree_from(&world, &log);
            for ((stream, id), sent) in &world.sent {
                let parts = super::world::offer(&sent[0].parts, |_| None);
                let gap = log.admit(&parts, Some((id, sent.len() as u64 + 1)), *stream == 0, 0);
                assert_eq!(gap, Err(crate::log::Refused::Sequence { expected: sent.len() as u64 }));
            }
        }
        assert!(world.log.retain(0, 9, "a rule", false).unwrap().is_none());
        assert!(world.log.retain(world.files.len() as u64, 9, "a rule", false).unwrap().is_none());
    }
}

#[test]
fn what_was_dropped_is_found_in_what_is_left() {
    for (seed, piece) in [(0, 64), (1, 1 << 20), (2, 300), (3, 7)] {
        let mut world = grown(seed);
        let last = world.files.len() as u64 - 1;
        let first = world.log.retain(1, 9, "age", false).unwrap().unwrap();
        say(&mut world, &first, piece);
        world.log.drop_before(first.clone());
        agree_from(&world, &world.log);
        let second = world.log.retain(last, 11, if seed % 2 == 0 { "age" } else { "size" }, false).unwrap().unwrap();
        assert_eq!(second.drops.len(), if seed % 2 == 0 { 1 } else { 2 });
        assert_eq!((second.drops[0].from, second.drops.last().unwrap().to), (0, second.position));
        say(&mut world, &second, piece);
        // From the very beginning, as if no file had been unlinked yet.
        let log = empty_log(world.shape, 1 << 16);
        follow(&log, &world, 0, &mut keys);
        assert_eq!(log.retained().as_deref(), Some(&second));
        agree_from(&world, &log);
        // And from where each of them says.
        for (number, said) in [(1, &first), (last as usize, &second)] {
            let log = empty_log(world.shape, 1 << 16);
            let mut search = Search::new(&log);
            let mut found = Vec::new();
            for number in number..world.files.len() {
                search.enter(world.header(number));
                let data = world.files[number].read(SEGMENT_HEADER as u64, usize::MAX).unwrap();
                found.extend(search.take(&log.database, SEGMENT_HEADER as u64, &data).1);
            }
            let begins = found.into_iter().find(|found| found.segment >= number as u64).unwrap();
            assert_eq!(begins, *said);
            log.begin(begins, &mut keys).unwrap();
            let stop = follow(&log, &world, number, &mut keys);
            assert!(matches!(stop, Some(Stop::More(_))), "{stop:?}");
            assert_eq!(log.root(), world.log.root());
            assert_eq!(log.retained().as_deref(), Some(&second));
            agree_from(&world, &log);
        }
    }
}

#[test]
fn a_retention_record_that_is_not_of_this_log_is_damage() {
    let lies: [fn(&mut Retained); 9] = [
        |lie| lie.group += 1,
        |lie| lie.position ^= 1,
        |lie| lie.chain[3] ^= 1,
        |lie| lie.peaks[0][5] ^= 1,
        |lie| lie.streams[0].declaration[9] ^= 1,
        |lie| lie.streams[0].first += 1 << 40,
        |lie| lie.streams.push(lie.streams[0].clone()),
        |lie| lie.position += 1 << 40,
        |lie| (lie.segment, lie.group) = (lie.segment - 1, lie.group - 1),
    ];
    for (number, lie) in lies.iter().enumerate() {
        let mut world = grown(number as u64 % 4);
        let middle = world.files.len() as u64 - 2;
        let truth = world.log.retain(middle, 9, "age", false).unwrap().unwrap();
        let mut retained = truth.clone();
        lie(&mut retained);
        if number == 8 {
            // What was dropped stays dropped.
            say(&mut world, &truth, 1 << 20);
        }
        say(&mut world, &retained, 1 << 20);
        let log = empty_log(world.shape, 1 << 16);
        assert!(matches!(follow(&log, &world, 0, &mut keys), Some(Stop::Damaged(_))), "lie {number}");
    }
}

#[test]
fn droppings_are_told_apart_as_long_as_they_are_few() {
    let dropped = |i: u64, rule: &str| Dropped { from: i, to: i + 1, first: 10 * i, last: 10 * i, rule: rule.into() };
    let mut drops = Vec::new();
    for i in 0..1_000 {
        retained::add(&mut drops, dropped(i, &format!("before position {i}")), i > 0);
    }
    let all = Dropped { from: 0, to: 1_000, first: 0, last: 9_990, rule: "before position 999".into() };
    assert_eq!(drops, [all]);
    for i in 1_000..3_000 {
        retained::add(&mut drops, dropped(i, ["age", "size"][i as usize % 2]), false);
        assert!(drops.len() <= 64);
    }
    assert!(drops.iter().skip(1).all(|one| one.rule == "age" || one.rule == "size"));
    let oldest = &drops[0];
    assert_eq!((oldest.from, oldest.to, oldest.first, oldest.last), (0, 2_937, 0, 29_360));
    assert_eq!(oldest.rule, "several rules, the last of them: age");
    assert!(drops.windows(2).all(|pair| pair[0].to == pair[1].from));
    assert_eq!((drops.len(), drops[63].to, drops[63].last), (64, 3_000, 29_990));
    // A list of many that is there already.
    let mut drops: Vec<_> = (0..6_000).map(|i| dropped(i, &format!("before position {i}"))).collect();
    retained::add(&mut drops, dropped(6_000, "age"), false);
    assert_eq!((drops.len(), drops[0].to, drops[1].from), (64, 5_938, 5_938));
}

#[test]
fn a_checkpoint_says_what_was_dropped() {
    let mut world = grown(1);
    let retained = world.log.retain(2, 9, "age", false).unwrap().unwrap();
    say(&mut world, &retained, 1 << 20);
    world.log.drop_before(retained.clone());
    world.cut();
    let cut = world.cuts.last().unwrap();
    let log = empty_log(world.shape, 1 << 16);
    log.restore(&cut.snapshot, &mut keys).unwrap();
    assert_eq!(log.retained().as_deref(), Some(&retained));
    assert_eq!(state(&log), cut.state);
    assert!(world.log.was(&cut.snapshot).unwrap());
}
