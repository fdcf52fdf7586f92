//! What is replayed from the bytes is what publishing left behind.

use std::sync::Arc;

use super::published::{SHAPES, agree, grow};
use super::world::{RECEIPT, Random, World, empty_log, index_file, keys, offer, state};
use crate::format::{BLOCK, Damage, SEGMENT_HEADER};
use crate::log::{Admission, Log, Refused, Replayed, Segment, Source, Stop, derived_mac};

/// Replays the rest of a world's groups up to and including `last`, in pieces of about `piece` bytes.
fn follow(log: &Log, world: &World, from: (usize, u64), until: usize, last: u64, piece: usize) -> Vec<Arc<Segment>> {
    let mut followed = Vec::new();
    for number in from.0..=until {
        let file = world.files[number].clone();
        let fresh = number > from.0 || from.1 == SEGMENT_HEADER as u64;
        let mut place = if fresh { SEGMENT_HEADER as u64 } else { from.1 };
        let segment = Arc::new(Segment::resumed(world.header(number), file.clone(), place).unwrap());
        log.attach(segment.clone());
        if number > from.0 || from == (0, SEGMENT_HEADER as u64) {
            assert_eq!(log.enter(&segment), Ok(()));
        }
        let mut length = piece;
        loop {
            let data = file.read(place, length).unwrap();
            let replayed = log.replay(&segment, place, &data, last, &mut keys);
            assert!(replayed.place >= place && replayed.place <= place + data.len() as u64);
            place = replayed.place;
            match replayed.stop {
                Stop::More(more) if data.len() == length => length = more.max(piece),
                Stop::More(_) | Stop::Done => break,
                Stop::Closed => {
                    assert_eq!(place, file.bytes().len() as u64);
                    break;
                }
                stop => panic!("segment {number}, place {place}: {stop:?}"),
            }
        }
        followed.push(segment);
    }
    followed
}

/// Whether the producers of a world's groups are known to a log that ends with this one.
fn remembers(log: &Log, world: &World, end: u64) {
    for ((stream, id), sent) in &world.sent {
        for (sequence, sent) in (0..).zip(sent).take_while(|(_, sent)| sent.group <= end) {
            let parts = offer(&sent.parts, |_| None);
            let answer = log.admit(&parts, Some((id, sequence)), *stream == 0, 0);
            assert_eq!(answer, Ok(Admission::Remembered { group: sent.group }));
        }
        let known = sent.iter().filter(|sent| sent.group <= end).count() as u64;
        if known > 0 {
            let parts = offer(&sent[0].parts, |_| None);
            let gap = log.admit(&parts, Some((id, known + 1)), *stream == 0, 0);
            assert_eq!(gap, Err(Refused::Sequence { expected: known }));
        }
    }
}

#[test]
fn replaying_brings_back_what_publishing_made_at_every_cut() {
    for (seed, shape) in (0..8).zip(SHAPES.iter().cycle()) {
        let world = grow(*shape, seed, 90);
        let piece = [1, 5_000, 70_000, 1 << 24][seed as usize % 4];
        for cut in world.cuts.iter().rev().step_by(3) {
            let log = empty_log(*shape, 1 << 16);
            let last = cut.state.end.group;
            let segments = follow(&log, &world, (0, SEGMENT_HEADER as u64), cut.segment, last, piece);
            assert_eq!(state(&log), cut.state);
            remembers(&log, &world, last);
            for (segment, index) in segments.iter().zip(&world.indexes).take(cut.segment) {
                assert!(index_file(segment).bytes() == *index);
            }
        }
        let log = empty_log(*shape, 1 << 16);
        let segments = follow(&log, &world, (0, SEGMENT_HEADER as u64), world.files.len() - 1, u64::MAX, piece);
        assert_eq!(state(&log), state(&world.log));
        let (again, live) = (index_file(segments.last().unwrap()), index_file(world.segments.last().unwrap()));
        assert!(again.bytes() == live.bytes());
        agree(&world, &log);
    }
}

/// A log as a start makes it from a checkpoint, before it replays the tail.
fn restored(world: &World, cut: usize) -> Log {
    let cut = &world.cuts[cut];
    let log = empty_log(world.shape, 1 << 16);
    let resume = log.resume(&cut.snapshot).unwrap();
    assert_eq!((resume.segment, resume.place), (cut.segment as u64, cut.place));
    assert_eq!((resume.group, resume.salt), (cut.state.end.group, world.header(cut.segment).salt));
    assert_eq!(resume.last_place, cut.state.tail.1);
    assert!(log.load_producers(&world.entries[..resume.producers as usize], &resume.last_piece));
    log.restore(&cut.snapshot, &mut keys).unwrap();
    log.set_hashes(Some(world.hashes.clone()));
    for number in 0..cut.segment {
        let file = world.files[number].clone();
        log.attach(Arc::new(Segment::closed(world.header(number), file, None, RECEIPT)));
    }
    let file = &world.files[cut.segment];
    let group = file.read(resume.last_place, (cut.place - resume.last_place) as usize).unwrap();
    assert!(log.ends_with(&resume, &file.bytes(), &group));
    log
}

#[test]
fn a_snapshot_and_the_tail_bring_back_the_same() {
    for (seed, shape) in (20..28).zip(SHAPES.iter().cycle()) {
        let world = grow(*shape, seed, 90);
        for cut in (0..world.cuts.len()).rev().step_by(4) {
            let log = restored(&world, cut);
            let cut = &world.cuts[cut];
            assert_eq!(state(&log), cut.state);
            remembers(&log, &world, cut.state.end.group);
            // Nothing was entered: a place at the start of a segment is behind its header's chain already.
            let segments = follow_tail(&log, &world, cut.segment, cut.place);
            assert_eq!(state(&log), state(&world.log));
            remembers(&log, &world, u64::MAX);
            let (again, live) = (index_file(segments.last().unwrap()), index_file(world.segments.last().unwrap()));
            assert!(again.bytes() == live.bytes());
        }
        agree(&world, &{
            let log = restored(&world, world.cuts.len() / 2);
            let cut = &world.cuts[world.cuts.len() / 2];
            follow_tail(&log, &world, cut.segment, cut.place);
            log
        });
    }
}

fn follow_tail(log: &Log, world: &World, number: usize, place: u64) -> Vec<Arc<Segment>> {
    let file = world.files[number].clone();
    let segment = Arc::new(Segment::resumed(world.header(number), file.clone(), place).unwrap());
    log.attach(segment.clone());
    let data = file.read(place, usize::MAX).unwrap();
    let replayed = log.replay(&segment, place, &data, u64::MAX, &mut keys);
    assert_eq!(replayed.place, place + data.len() as u64);
    let mut followed = vec![segment];
    if number + 1 < world.files.len() {
        assert_eq!(replayed.stop, Stop::Closed);
        let next = (number + 1, SEGMENT_HEADER as u64);
        let first = Arc::new(Segment::active(world.header(next.0), world.files[next.0].clone()));
        assert_eq!(log.enter(&first), Ok(()));
        followed.extend(follow_entered(log, world, next.0));
    } else {
        assert_eq!(replayed.stop, Stop::More(BLOCK));
    }
    followed
}

fn follow_entered(log: &Log, world: &World, number: usize) -> Vec<Arc<Segment>> {
    follow_tail(log, world, number, SEGMENT_HEADER as u64)
}

#[test]
fn a_snapshot_that_was_touched_is_not_used() {
    let world = grow(SHAPES[1], 3, 40);
    let snapshot = &world.cuts.last().unwrap().snapshot;
    let fresh = || empty_log(world.shape, 0);
    for at in (0..snapshot.len()).step_by(7) {
        let mut bad = snapshot.clone();
        bad[at] ^= 0x10;
        assert_eq!(fresh().resume(&bad), None);
        assert_eq!(fresh().restore(&bad, &mut keys), Err(Damage("the checkpoint's MAC is wrong")));
        assert_eq!(fresh().resume(&snapshot[..at]), None);
    }
    let body = &snapshot[..snapshot.len() - 32];
    for wrong in [[body, &[0]].concat(), body[..body.len() - 1].to_vec()] {
        let signed = [&wrong[..], &derived_mac(&RECEIPT, &wrong)].concat();
        assert!(fresh().restore(&signed, &mut keys).is_err());
    }
    let mut other = fresh();
    other.database.id = [7; 16];
    assert_eq!(other.resume(snapshot), None, "of another database");
}

#[test]
fn a_snapshot_whose_last_group_is_not_there_says_so() {
    let world = grow(SHAPES[1], 4, 60);
    let cut = world.cuts.iter().rev().find(|cut| cut.state.tail.1 > 0).unwrap();
    let log = empty_log(world.shape, 0);
    log.restore(&cut.snapshot, &mut keys).unwrap();
    let resume = log.resume(&cut.snapshot).unwrap();
    let file = world.files[cut.segment].bytes();
    let (header, group) = (&file[..SEGMENT_HEADER], &file[resume.last_place as usize..cut.place as usize]);
    assert!(log.ends_with(&resume, header, group));
    assert!(!log.ends_with(&resume, &file[..SEGMENT_HEADER - 1], group));
    assert!(!log.ends_with(&resume, header, &group[..100]));
    let other = &world.files[if cut.segment == 0 { 1 } else { 0 }].bytes();
    assert!(!log.ends_with(&resume, other, group), "a segment with another salt");
    for (what, changed) in [
        ("place", crate::log::Resume { last_place: resume.last_place + BLOCK as u64, ..resume }),
        ("group", crate::log::Resume { group: resume.group + 1, ..resume }),
    ] {
        assert!(!log.ends_with(&changed, header, group), "{what}");
    }
    let length = crate::format::u32_at(group, 8) as usize;
    for at in (0..104).chain(length - 48..length - 16) {
        let mut bad = group.to_vec();
        bad[at] ^= 1;
        assert!(!log.ends_with(&resume, header, &bad), "byte {at}");
    }
}

#[test]
fn a_segment_that_does_not_follow_is_not_entered() {
    let mut world = World::new(SHAPES[0], 6);
    world.add_stream(false);
    for _ in 0..3 {
        let batch = world.random.batch();
        world.append(vec![(1, batch)], None, false);
        world.rotate();
    }
    let log = empty_log(world.shape, 0);
    follow(&log, &world, (0, SEGMENT_HEADER as u64), 0, u64::MAX, 1 << 20);
    let right = world.header(1);
    let enter = |header| log.enter(&Segment::active(header, world.files[1].clone()));
    let before = state(&log);
    for (header, what) in [
        (world.header(0), "the segment does not follow the one before it"),
        (world.header(2), "the segment does not follow the one before it"),
        (
            {
                let mut h = right;
                h.database[0] ^= 1;
                h
            },
            "the segment belongs to another database",
        ),
        (
            {
                let mut h = right;
                h.before[31] ^= 1;
                h
            },
            "the segment does not follow the one before it",
        ),
        (
            {
                let mut h = right;
                h.first_group += 1;
                h
            },
            "the segment's first group is not the next one",
        ),
        (
            {
                let mut h = right;
                h.first_position -= 1;
                h
            },
            "the segment's first position is not the next one",
        ),
    ] {
        assert_eq!(enter(header), Err(Damage(what)));
        assert_eq!(state(&log), before);
    }
    assert_eq!(enter(right), Ok(()));
}

#[test]
fn groups_that_come_twice_or_out_of_order_are_refused_and_change_nothing() {
    let world = grow(SHAPES[3], 8, 60);
    let file = world.files[0].bytes();
    let log = empty_log(world.shape, 0);
    let segment = Segment::active(world.header(0), world.files[0].clone());
    log.enter(&segment).unwrap();
    let start = SEGMENT_HEADER as u64;
    let first = log.replay(&segment, start, &file[SEGMENT_HEADER..], 1, &mut keys);
    assert_eq!(first.stop, Stop::Done);
    let before = state(&log);
    let not_next = Stop::Bad(Damage("the group's number is not the next one"));
    let again = log.replay(&segment, start, &file[SEGMENT_HEADER..], u64::MAX, &mut keys);
    assert_eq!(again, Replayed { place: start, stop: not_next });
    let third =
        first.place + crate::format::padded(crate::format::u32_at(&file, first.place as usize + 8) as usize) as u64;
    let skipped = log.replay(&segment, third, &file[third as usize..], u64::MAX, &mut keys);
    assert_eq!(skipped.place, third);
    assert_eq!(skipped.stop, Stop::Bad(Damage("the group's number is not the next one")));
    let moved = log.replay(&segment, third, &file[first.place as usize..], u64::MAX, &mut keys);
    assert_eq!(moved.stop, Stop::Bad(Damage("the group header's check is wrong")));
    assert_eq!(state(&log), before);
    let rest = log.replay(&segment, first.place, &file[first.place as usize..], u64::MAX, &mut keys);
    assert!(matches!(rest.stop, Stop::Closed | Stop::More(BLOCK)), "{rest:?}");
}

#[test]
fn a_replay_says_how_much_more_it_needs() {
    let mut world = World::new(SHAPES[0], 2);
    world.add_stream(false);
    let mut batch = crate::record::Batch::default();
    let record = crate::record::Record { key: None, headers: b"", event_time: None, payload: &[b'x'; 30_000] };
    batch.push(&record);
    world.append(vec![(1, batch)], None, false);
    world.settle();
    let data = &world.files[0].bytes()[SEGMENT_HEADER..];
    let log = empty_log(world.shape, 0);
    let segment = Segment::active(world.header(0), world.files[0].clone());
    log.enter(&segment).unwrap();
    let replay = |data: &[u8], last| log.replay(&segment, SEGMENT_HEADER as u64, data, last, &mut keys);
    let place = SEGMENT_HEADER as u64;
    assert_eq!(replay(&data[..0], 1), Replayed { place, stop: Stop::More(BLOCK) });
    assert_eq!(replay(&data[..103], 1), Replayed { place, stop: Stop::More(BLOCK) });
    assert_eq!(replay(&data[..104], 1), Replayed { place, stop: Stop::More(data.len()) });
    assert_eq!(replay(&data[..data.len() - 1], 1), Replayed { place, stop: Stop::More(data.len()) });
    assert_eq!(replay(data, 0), Replayed { place, stop: Stop::Done });
    assert_eq!(replay(&[0; 4096], 1), Replayed { place, stop: Stop::Bad(Damage("no group starts here")) });
    let end = place + data.len() as u64;
    let more = [data, &[0; 104]].concat();
    assert_eq!(replay(&more, 9), Replayed { place: end, stop: Stop::Bad(Damage("no group starts here")) });
}

#[test]
fn the_watermark_is_the_highest_of_any_sound_header() {
    let mut world = World::new(SHAPES[0], 2);
    world.add_stream(false);
    let mut random = Random(4);
    for _ in 0..6 {
        world.append(vec![(1, random.batch())], None, false);
        world.settle();
    }
    let segment = &world.segments[0];
    let data = &world.files[0].bytes()[SEGMENT_HEADER..];
    let place = SEGMENT_HEADER as u64;
    let last = data.iter().rposition(|&byte| byte != 0).unwrap() as u64 + place;
    assert_eq!(Log::watermark(segment, place, data), (5, Some(last)));
    assert_eq!(Log::watermark(segment, place + BLOCK as u64, data), (0, Some(last + BLOCK as u64)), "moved");
    let last_group = world.segments[0].index().lookup(segment).unwrap().group_of_number(6).unwrap();
    let mut spoilt = data.to_vec();
    spoilt[(last_group.place as u64 - place) as usize] ^= 1;
    assert_eq!(Log::watermark(segment, place, &spoilt), (4, Some(last)));
    assert_eq!(Log::watermark(segment, place, &[0; 3 * BLOCK]), (0, None));
    let mut one = [0; 3 * BLOCK];
    one[5_000] = 1;
    assert_eq!(Log::watermark(segment, place, &one), (0, Some(place + 5_000)));
}
