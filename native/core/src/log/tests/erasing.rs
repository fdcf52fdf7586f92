//! What was erased is read by nobody, whatever a log is made from; everything else is what it was.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::published::{SHAPES, grow};
use super::retention::{batch, follow, say};
use super::state::state;
use super::world::{World, empty_log, keys, offer, stream_key};
use crate::format::{Checked, Damage, Hash};
use crate::group::Stream;
use crate::keys::Key;
use crate::log::{Erasure, Failure, Log, MOST_LEAVES, Refused, Retained, Span, Stop, Window};
use crate::system::{Confirmed, Declaration, Erased};

const OLD: [u8; 16] = [7; 16];
const NEW: [u8; 16] = [8; 16];

fn erased(world: &World, stream: u32) -> Erased {
    let declared = world.log.streams.read().unwrap().list[stream as usize].declaration;
    Erased { stream, declared, master: OLD, reason: format!("reason {stream}") }
}

fn confirmed(world: &World, stream: u32) -> Confirmed {
    Confirmed { stream, declared: erased(world, stream).declared, master: NEW }
}

/// Puts a system record into the log. Its group has another time here than the one that it was admitted at.
fn write(world: &mut World, payload: &[u8]) {
    world.append(vec![(0, batch(payload))], None, false);
    world.settle();
    let (position, timestamp) = (world.published as u64 - 1, world.log.end().timestamp);
    let mut streams = world.log.streams.write().unwrap();
    for erasure in streams.info.iter_mut().filter_map(|info| info.erased.as_mut()) {
        for said in std::iter::once(&mut erasure.at).chain(&mut erasure.confirmed) {
            said.timestamp = if said.position == position { timestamp } else { said.timestamp };
        }
    }
}

fn erase(world: &mut World, stream: u32) {
    let payload = erased(world, stream).encode();
    world.settle();
    write(world, &payload);
    world.log.forget(stream);
    world.sent.retain(|_, sent| sent.iter().all(|sent| sent.parts.iter().all(|part| part.0 != stream)));
}

fn encrypted(world: &World) -> Vec<u32> {
    let streams = world.log.streams.read().unwrap();
    let with_records = streams.list.iter().filter(|stream| streams.info[stream.number as usize].durable > 0);
    with_records.filter(|stream| stream.encrypted).map(|stream| stream.number).collect()
}

fn erasures(log: &Log) -> Vec<Erasure> {
    log.streams.read().unwrap().erasures_before(u64::MAX)
}

/// Two streams are erased between others' records, and one of them is confirmed.
fn erased_world(seed: u64) -> World {
    let mut world = grow(SHAPES[seed as usize % 4], 700 + seed, 70);
    while encrypted(&world).len() < 2 {
        let stream = world.add_stream(true);
        world.append(vec![(stream, batch(b"at least one"))], None, false);
        world.settle();
    }
    let (first, second) = (encrypted(&world)[0], encrypted(&world)[1]);
    erase(&mut world, first);
    world.rotate();
    (0..3).for_each(|i| world.append(vec![(1, batch(&[i; 40]))], None, false));
    world.cut();
    erase(&mut world, second);
    let payload = confirmed(&world, first).encode();
    write(&mut world, &payload);
    world.cut();
    world.rotate();
    world.append(vec![(1, batch(b"the last"))], None, false);
    world.cut();
    world
}

/// What is left reads as it did, and nothing else does.
fn agree(world: &World, log: &Log) {
    let gone: BTreeSet<u32> = erasures(log).iter().map(|erasure| erasure.stream).collect();
    let mut window = Window::default();
    let mut left = Vec::new();
    for (position, kept) in (0..).zip(&world.kept[..world.published]) {
        match log.get(position, &mut window, MOST_LEAVES) {
            Ok(found) => assert!(found.run.opened.record(found.from) == kept.bytes && !gone.contains(&kept.stream)),
            Err(Failure::Erased(run)) => assert!(gone.contains(&run.stream) && run.stream == kept.stream),
            Err(Failure::Dropped { first, .. }) => assert!(position < first),
            other => panic!("position {position}: {:?}", other.map(drop)),
        }
        if position >= log.first() && !gone.contains(&kept.stream) {
            left.push(position);
        }
    }
    let end = world.published as u64;
    for reverse in [false, true] {
        for limit in [1, 7, usize::MAX] {
            let (mut found, mut span) = (Vec::new(), Span { stream: None, start: log.first(), end, reverse });
            while span.start < span.end {
                let given = |each: &crate::log::Found| {
                    let first = each.run.opened.header.first_position;
                    let positions = (each.from..each.to).map(|i| first + i as u64);
                    if reverse { found.extend(positions.rev()) } else { found.extend(positions) }
                };
                span = log.walk(span, limit, 4096, true, given).unwrap();
            }
            if reverse {
                found.reverse();
            }
            assert_eq!(found, left);
        }
    }
    for &stream in &gone {
        let first = log.streams.read().unwrap().info[stream as usize].first;
        let span = Span { stream: Some(stream), start: first, end: u64::MAX, reverse: false };
        match log.walk(span, 9, 4096, true, |_| panic!("it was erased")) {
            Err(Failure::Erased(run)) => assert_eq!(run.stream, stream),
            Ok(_) => assert_eq!(log.streams.read().unwrap().info[stream as usize].durable, first),
            other => panic!("stream {stream}: {other:?}"),
        }
        let answer = log.admit(&offer(&[(stream, batch(b"late"))], |_| None), Some((b"p", 0)), false, 0);
        assert_eq!(answer, Err(Refused::Erased { stream }));
        let several = offer(&[(1, batch(b"one")), (stream, batch(b"late"))], |_| None);
        assert_eq!(log.admit(&several, Some((b"p", 0)), true, 0), Err(Refused::Erased { stream }));
        assert!(!log.streams.read().unwrap().list[stream as usize].opens());
        assert!(log.producers.lock().unwrap().silent(u64::MAX).keys().all(|&of| of != stream));
        assert_eq!(log.repeated(&offer(&[(stream, batch(b"late"))], |_| None), (b"p", 0), None, false), Ok(None));
    }
}

/// The keys of all streams but these.
fn but(gone: &[u32]) -> impl FnMut(&Declaration, &Hash) -> Checked<Option<Key>> {
    move |declaration, hash| if gone.contains(&declaration.stream) { Ok(None) } else { keys(declaration, hash) }
}

#[test]
fn a_log_is_the_same_whether_the_keys_are_still_there_or_not() {
    for seed in 0..8 {
        let world = erased_world(seed);
        let gone: Vec<u32> = erasures(&world.log).iter().map(|erasure| erasure.stream).collect();
        assert_eq!(gone.len(), 2);
        agree(&world, &world.log);
        for missing in [&gone[..], &gone[1..], &[]] {
            let log = empty_log(world.shape, 1 << 16);
            let stop = follow(&log, &world, 0, &mut but(missing));
            assert!(matches!(stop, Some(Stop::More(_))), "{stop:?}");
            assert_eq!(state(&log), state(&world.log));
            assert_eq!(erasures(&log), erasures(&world.log));
            agree(&world, &log);
        }
        for cut in &world.cuts {
            let log = empty_log(world.shape, 1 << 16);
            log.restore(&cut.snapshot, &mut but(&gone)).unwrap();
            assert_eq!(erasures(&log), world.log.streams.read().unwrap().erasures_before(log.durable()));
            assert!(world.log.was(&cut.snapshot).unwrap());
        }
        let before = world.cuts.iter().position(|cut| cut.state.end.group + 2 > world.log.end().group);
        assert!(before.is_some());
    }
}

#[test]
fn a_checkpoint_that_says_less_of_erasures_is_none_of_this_log() {
    let world = erased_world(1);
    let cut = world.cuts.last().unwrap();
    let mut streams = world.log.streams.write().unwrap();
    for info in &mut streams.info {
        info.erased = None;
    }
    drop(streams);
    assert!(!world.log.was(&cut.snapshot).unwrap());
}

#[test]
fn what_was_dropped_says_what_was_erased() {
    for seed in 0..4 {
        let mut world = erased_world(seed);
        let gone: Vec<u32> = erasures(&world.log).iter().map(|erasure| erasure.stream).collect();
        for number in 1..world.files.len() as u64 {
            let retained = world.log.retain(number, 9, "a rule", false).unwrap().unwrap();
            assert!(world.log.retained_bound() >= retained.encode().len());
            assert_eq!(Retained::decode(&retained.encode()), Ok(retained.clone()));
            let position = retained.position;
            let log = empty_log(world.shape, 1 << 16);
            log.begin(retained, &mut but(&gone)).unwrap();
            assert_eq!(erasures(&log), world.log.streams.read().unwrap().erasures_before(position));
            follow(&log, &world, number as usize, &mut but(&gone));
            assert_eq!(state(&log), state(&world.log));
            assert_eq!(erasures(&log), erasures(&world.log));
            agree(&world, &log);
        }
        let last = world.files.len() as u64 - 1;
        let retained = world.log.retain(last, 9, "a rule", false).unwrap().unwrap();
        assert_eq!(retained.erasures.len(), 2);
        let mut lie = retained.clone();
        lie.erasures[0].reason.push('!');
        for (retained, sound) in [(retained, true), (lie, false)] {
            let mut other = if sound { std::mem::replace(&mut world, erased_world(seed)) } else { erased_world(seed) };
            say(&mut other, &retained, 1 << 20);
            let log = empty_log(other.shape, 1 << 16);
            assert_eq!(!matches!(follow(&log, &other, 0, &mut keys), Some(Stop::Damaged(_))), sound);
        }
    }
}

#[test]
fn what_was_opened_before_is_not_kept() {
    let mut world = erased_world(3);
    let stream = world.add_stream(true);
    world.append(vec![(stream, batch(b"soon gone"))], Some((b"p", 0)), false);
    world.settle();
    let position = world.published as u64 - 1;
    let mut window = Window::default();
    world.log.get(position, &mut window, MOST_LEAVES).unwrap();
    let bytes = |world: &World| world.log.producers.lock().unwrap().bytes();
    let before = bytes(&world);
    erase(&mut world, stream);
    assert!(bytes(&world) < before);
    assert!(matches!(world.log.get(position, &mut window, MOST_LEAVES), Err(Failure::Erased(_))));
    let group = world.log.end().group;
    let (anew, entries) = {
        let (entries, anew) = world.log.take_producers(group, 0);
        (anew, entries)
    };
    assert!(anew, "what the file has of it must go");
    let of = |entry: &[u8]| u32::from_le_bytes(entry[56..60].try_into().unwrap());
    let entries = if entries.is_empty() { &[] } else { &entries[8..entries.len() - 32] };
    assert!(entries.chunks(64).all(|entry| of(entry) != stream));
    assert!(!world.log.take_producers(group, 0).1);
    agree(&world, &world.log);
}

/// As if nobody had said that it is erased: the log takes what it must not.
fn revive(world: &World, stream: u32) {
    let mut streams = world.log.streams.write().unwrap();
    let known = &streams.list[stream as usize];
    let revived = Stream::new(stream, known.declaration, true, Some(&stream_key(stream)));
    streams.list[stream as usize] = Arc::new(revived);
    streams.info[stream as usize].erased = None;
}

#[test]
fn an_erasure_that_does_not_fit_is_refused_and_damage() {
    let late = "a record of a stream stands behind its erasure";
    let pending = "an erasure is confirmed that is not pending";
    let own = "an erasure is confirmed under its own master key";
    let strange = "an erasure of a stream that is not there";
    for (case, what) in
        [late, "a stream is erased twice", "an erasure of a plain stream", strange, pending, pending, own, strange]
            .into_iter()
            .enumerate()
    {
        let mut world = grow(SHAPES[case % 4], 30 + case as u64, 40);
        let stream = world.add_stream(true);
        let plain = world.add_stream(false);
        world.append(vec![(stream, batch(b"secret")), (plain, batch(b"open"))], None, true);
        world.settle();
        let (said, known) = (erased(&world, stream), confirmed(&world, stream));
        if ![2, 3, 4].contains(&case) {
            write(&mut world, &said.encode());
        }
        if case == 5 {
            write(&mut world, &known.encode());
        }
        let payload = match case {
            0 | 1 => said.encode(),
            2 => erased(&world, plain).encode(),
            3 => Erased { declared: [1; 32], ..said }.encode(),
            4 | 5 => known.encode(),
            6 => Confirmed { master: OLD, ..known }.encode(),
            _ => Confirmed { stream: 99, ..known }.encode(),
        };
        let refused = if case == 0 { "a stream is erased twice" } else { what };
        let answer = world.log.admit(&offer(&[(0, batch(&payload))], |_| None), None, false, 0);
        assert_eq!(answer, Err(Refused::Unfit(refused)), "case {case}");
        // The log that says so all the same.
        if case == 0 {
            revive(&world, stream);
            world.append(vec![(stream, batch(b"late"))], None, false);
        } else {
            world.force(&payload);
        }
        world.settle();
        let log = empty_log(world.shape, 1 << 16);
        let stop = follow(&log, &world, 0, &mut keys);
        assert_eq!(stop, Some(Stop::Damaged(Damage(what))), "case {case}");
    }
}
