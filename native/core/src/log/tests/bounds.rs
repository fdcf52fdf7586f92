//! What is bounded: the cache of opened runs, and the room that a group takes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::published::{SHAPES, grow};
use super::world::{Random, World, empty_log, offer, stream_key};
use crate::format::{RunHeader, SEGMENT_HEADER};
use crate::group::{OVERHEAD, bound};
use crate::log::cache::{Cache, CachedRun};
use crate::log::{Segment, Source, Window};
use crate::record::{Batch, Record};
use crate::system::Declaration;

fn one(payload: &[u8]) -> Batch {
    let mut batch = Batch::default();
    batch.push(&Record { key: None, headers: b"", event_time: None, payload });
    batch
}

/// Opened runs of one record each, of these sizes.
fn runs(payloads: impl Iterator<Item = usize>) -> Vec<Arc<CachedRun>> {
    let mut world = World::new(SHAPES[0], 1);
    world.log.cache = Cache::new(0).into();
    world.add_stream(false);
    for length in payloads {
        world.append(vec![(1, one(&vec![b'x'; length]))], None, false);
        world.settle();
    }
    let read = |position| world.log.run_at(position, &mut Window::default(), 0).unwrap().0;
    (1..world.published as u64).map(read).collect()
}

#[test]
fn the_cache_gives_back_what_was_put_and_holds_no_more_than_its_limit() {
    const LIMIT: usize = 20_000;
    let mut random = Random(5);
    let runs = runs((0..40).map(|i| i * 150));
    let mut cache = Cache::new(LIMIT);
    let mut put: HashMap<(u64, u64), Arc<CachedRun>> = HashMap::new();
    for round in 0..4_000 {
        let at = (random.below(2), random.below(30));
        let run = &runs[random.below(40) as usize];
        let before = cache.get(at);
        assert!(before.as_ref().is_none_or(|found| Arc::ptr_eq(found, &put[&at])));
        cache.put(at, run.clone());
        match cache.get(at) {
            Some(found) => assert!(Arc::ptr_eq(&found, before.as_ref().unwrap_or(run))),
            None => assert!(before.is_none() && run.opened.size() > LIMIT / 4),
        }
        put.insert(at, before.unwrap_or(run.clone()));
        if round % 50 == 0 {
            let all = (0..2).flat_map(|segment| (0..30).map(move |place| (segment, place)));
            let held: usize = all.filter_map(|at| cache.get(at)).map(|run| run.opened.size()).sum();
            assert!(held <= LIMIT, "{held} bytes");
            assert!(round < 500 || held > LIMIT / 2, "{held} bytes");
        }
    }
}

#[test]
fn a_run_that_is_asked_for_outlives_those_that_are_not() {
    let runs = runs(std::iter::repeat_n(1_000, 2));
    let mut cache = Cache::new(8 * runs[0].opened.size());
    for place in 0..8 {
        cache.put((0, place), runs[0].clone());
    }
    for place in 8..200 {
        for asked in 0..4 {
            assert!(cache.get((0, asked)).is_some(), "{asked} before {place}");
        }
        cache.put((0, place), runs[1].clone());
    }
    assert!((4..8).all(|place| cache.get((0, place)).is_none()));
    assert!((0..200).filter(|&place| cache.get((0, place)).is_some()).count() == 8);
}

#[test]
fn nothing_is_cached_that_is_a_large_part_of_the_cache() {
    let runs = runs([1_000, 10].into_iter());
    let mut cache = Cache::new(4 * runs[0].opened.size() - 1);
    cache.put((0, 0), runs[0].clone());
    assert!(cache.get((0, 0)).is_none());
    cache.put((0, 1), runs[1].clone());
    assert!(cache.get((0, 1)).is_some());
}

/// A producer's id is at most this long where appends come in.
const LONGEST_ID: usize = 128;

#[test]
fn a_group_is_no_longer_than_the_bounds_of_batches_whose_producer_is_not_known_yet() {
    for shape in SHAPES {
        for encrypted in [false, true] {
            let log = empty_log(shape, 0);
            let segment = Segment::active(log.next_segment(0), Arc::new(super::world::File::default()));
            let declared =
                Declaration { stream: 1, encrypted, random: [0; 16], largest_record: 0, name: "stream".into() };
            log.add_stream(&declared.encode(), encrypted.then(|| stream_key(1)).as_ref()).unwrap();
            let mut room = OVERHEAD + log.streams.read().unwrap().undeclared_bound(0, u32::MAX);
            let mut random = Random(8);
            for sequence in 0..600 {
                let noise: Vec<u8> = (0..sequence % 128).map(|_| random.below(256) as u8).collect();
                let batch = one(&noise);
                room += bound(&batch, 128);
                let parts = offer(&[(1, batch)], |_| None);
                log.admit(&parts, Some((&[b'p'; LONGEST_ID], sequence)), false, 0).unwrap();
            }
            let sealed = log.seal(&segment, SEGMENT_HEADER as u64, 0, 0, false, &mut vec![0; room]);
            assert!(sealed.padded <= room);
        }
    }
}

#[test]
fn a_group_has_room_for_all_the_streams_that_it_declares() {
    for shape in SHAPES {
        let world = World::new(shape, 1);
        for stream in 1..=200 {
            let name = format!("{stream:0255}");
            let declaration = Declaration { stream, encrypted: false, random: [7; 16], largest_record: 0, name };
            world.log.add_stream(&declaration.encode(), None).unwrap();
        }
        let parts = offer(&[(200, one(b""))], |_| None);
        let room = OVERHEAD + world.log.streams.read().unwrap().undeclared_bound(0, u32::MAX) + bound(&one(b""), 128);
        world.log.admit(&parts, None, false, 0).unwrap();
        let mut out = vec![0; room];
        let sealed = world.log.seal(&world.segments[0], SEGMENT_HEADER as u64, 0, 0, false, &mut out);
        assert_eq!(sealed.records, 201);
        assert_eq!(world.log.streams.read().unwrap().undeclared_bound(0, u32::MAX), 0);
    }
}

#[test]
fn no_two_runs_have_the_same_seed_or_nonce() {
    for shape in SHAPES {
        let world = grow(shape, 90, 120);
        let mut seen = HashSet::new();
        for (number, file) in world.files.iter().enumerate() {
            let end = if number + 1 < world.files.len() { u64::MAX } else { world.place };
            let segment = Segment::resumed(world.header(number), file.clone(), end).unwrap();
            let index = segment.index();
            let index = index.lookup(&segment).unwrap();
            for stream in 0..world.lengths.len() as u32 {
                let first = index.stream(stream).and_then(|entry| index.run_of_offset(stream, entry.first));
                for run in std::iter::successors(first, |run| index.run_after(run)) {
                    let bytes = file.read(run.place.into(), run.length as usize).unwrap();
                    assert!(seen.insert(RunHeader::decode(&bytes).unwrap().random));
                }
            }
        }
        assert!(seen.len() > 30);
    }
}
