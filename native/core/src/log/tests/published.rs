//! What is admitted, sealed, finished and published is what is read.

use std::sync::Arc;

use super::world::{Random, Sender, Shape, World};
use crate::format::Hash;
use crate::log::indexes::Indexes;
use crate::log::{Admission, Failure, Found, Hidden, Index, Log, MOST_LEAVES, Part, Refused, Segment, Span, Window};
use crate::record::Batch;
use crate::system::Declaration;
use crate::tree;

pub const SHAPES: [Shape; 4] = [
    Shape { tagged: false, level: None },
    Shape { tagged: true, level: None },
    Shape { tagged: false, level: Some(1) },
    Shape { tagged: true, level: Some(1) },
];

/// A log of several segments, streams of both modes and producers, with nothing in flight at its end.
pub fn grow(shape: Shape, seed: u64, steps: u64) -> World {
    let mut world = World::new(shape, seed);
    for encrypted in [false, true] {
        world.add_stream(encrypted);
    }
    for _ in 0..steps {
        step(&mut world);
    }
    world.cut();
    world
}

pub fn step(world: &mut World) {
    match world.random.below(24) {
        0 => world.rotate(),
        1 | 2 => world.cut(),
        3 if world.lengths.len() < 9 && world.kept.len() == world.sealed => {
            let encrypted = world.random.one_in(2);
            world.add_stream(encrypted);
        }
        4..10 => {
            if world.kept.len() > world.sealed {
                world.seal(false);
            }
            if world.in_flight() > world.random.below(4) as usize {
                world.publish_one();
            }
        }
        10 => try_what_is_refused(world),
        _ => append(world),
    }
}

fn any_stream(world: &mut World) -> u32 {
    1 + world.random.below(world.lengths.len() as u64 - 1) as u32
}

fn append(world: &mut World) {
    if world.random.one_in(6) {
        let stream = any_stream(world);
        let count = 1 + world.random.below(20);
        world.skip(stream, count);
    }
    let id = b"producer "[..world.random.below(4) as usize + 1].to_vec();
    let named = world.random.one_in(2);
    let first = any_stream(world);
    let mut parts = vec![(first, world.random.batch())];
    let several = world.random.one_in(4);
    if several {
        for stream in (1..world.lengths.len() as u32).filter(|stream| *stream != first) {
            if world.random.one_in(3) {
                parts.push((stream, world.random.batch()));
            }
        }
    }
    let sender: Sender = (if several { 0 } else { first }, id);
    let sequence = world.sent.get(&sender).map_or(0, Vec::len) as u64;
    world.append(parts, named.then_some((&sender.1[..], sequence)), several);
}

/// Each way to be refused, and a repetition of each producer's every batch.
fn try_what_is_refused(world: &mut World) {
    let stream = any_stream(world);
    let length = world.lengths[stream as usize];
    let parts = [(stream, world.random.batch())];
    let refused = Err(Refused::Expected { stream, length });
    assert_eq!(world.refuse(&parts, Some(length + 1), None, false), refused);
    assert_eq!(world.refuse(&parts, Some(length + 1), Some((b"nobody", 0)), false), refused);
    if let Some(less) = length.checked_sub(1) {
        assert_eq!(world.refuse(&parts, Some(less), None, false), refused);
    }
    assert_eq!(world.refuse(&parts, None, Some((b"nobody", 1)), false), Err(Refused::Sequence { expected: 0 }));
    for (expect, batch) in [(length, Batch::default()), (length.wrapping_sub(1), parts[0].1.clone())] {
        if expect <= length {
            let part = Part { stream, batch: Arc::new(batch), expect: Some(expect), gap: Some(String::new()) };
            assert_eq!(world.log.admit(&[part], None, false, 0), refused);
        }
    }
    for (sender, sent) in std::mem::take(&mut world.sent) {
        let several = sender.0 == 0;
        let id = &sender.1[..];
        let next = sent.len() as u64;
        for (sequence, sent) in (0..).zip(&sent) {
            let same = world.refuse(&sent.parts, Some(u64::MAX), Some((id, sequence)), several);
            assert_eq!(same, Ok(Admission::Remembered { group: sent.group }));
            let other = [(sent.parts[0].0, other_batch(&sent.parts[0].1))];
            let answer = world.refuse(&other, None, Some((id, sequence)), several);
            assert_eq!(answer, Err(Refused::DigestDiffers));
        }
        let gap = world.refuse(&sent[0].parts, None, Some((id, next + 1)), several);
        assert_eq!(gap, Err(Refused::Sequence { expected: next }));
        world.sent.insert(sender, sent);
    }
}

fn other_batch(batch: &Batch) -> Batch {
    let mut other = batch.clone();
    let again = crate::record::Record { key: None, headers: b"", event_time: None, payload: b"other" };
    other.push(&again);
    other
}

/// Reads every record in every way, and what is not published in none.
pub fn agree(world: &World, log: &Log) {
    let mut window = Window::default();
    for (position, kept) in world.kept.iter().enumerate().take(world.published) {
        let found = log.get(position as u64, &mut window, MOST_LEAVES).unwrap();
        assert_eq!(found.run.opened.record(found.from), kept.bytes);
        assert_eq!((found.to, found.run.timestamp), (found.from + 1, kept.timestamp));
        assert_eq!(log.position_of(kept.stream, kept.offset).unwrap(), position as u64);
    }
    let positions: Vec<u64> = (0..world.published as u64).collect();
    for reverse in [false, true] {
        assert_eq!(scan(world, log, Span { stream: None, start: 0, end: u64::MAX, reverse: false }), positions);
        let all = Span { stream: None, start: 0, end: world.published as u64, reverse };
        assert_eq!(scan(world, log, all), in_order(&positions, reverse));
        for stream in 0..world.lengths.len() as u32 {
            let wanted: Vec<u64> =
                positions.iter().copied().filter(|&at| world.kept[at as usize].stream == stream).collect();
            let length = log.streams.read().unwrap().info.get(stream as usize).map_or(0, |info| info.durable);
            assert_eq!(length, world.length_before(stream, world.published as u64));
            let all = Span { stream: Some(stream), start: 0, end: length, reverse };
            assert_eq!(scan(world, log, all), in_order(&wanted, reverse));
        }
    }
}

fn in_order(positions: &[u64], reverse: bool) -> Vec<u64> {
    if reverse { positions.iter().rev().copied().collect() } else { positions.to_vec() }
}

/// The positions that a span gives, each compared with the list.
pub fn scan(world: &World, log: &Log, mut span: Span) -> Vec<u64> {
    let (mut out, mut window) = (Vec::new(), Window::default());
    while let Some((found, left)) = log.next(span, &mut window).unwrap() {
        assert!(found.from < found.to);
        let mut positions = compare(world, &found);
        if span.reverse {
            positions.reverse();
        }
        out.extend(positions);
        span = left;
    }
    out
}

fn compare(world: &World, found: &Found) -> Vec<u64> {
    let header = &found.run.opened.header;
    let one = |i: usize| {
        let (position, offset) = (header.first_position + i as u64, header.first_offset + i as u64);
        let kept = &world.kept[position as usize];
        assert_eq!((kept.stream, kept.offset), (header.stream, offset));
        assert_eq!((&kept.bytes[..], kept.timestamp), (found.run.opened.record(i), found.run.timestamp));
        position
    };
    (found.from..found.to).map(one).collect()
}

#[test]
fn what_is_published_is_read_in_every_way_and_nothing_else_is() {
    for seed in 0..12 {
        let mut world = World::new(SHAPES[seed as usize % 4], seed);
        world.add_stream(seed % 2 == 0);
        world.add_stream(seed % 3 == 0);
        for _ in 0..3 {
            (0..25).for_each(|_| step(&mut world));
            agree(&world, &world.log);
        }
    }
}

#[test]
fn part_of_a_span_is_the_same_part_of_the_whole() {
    let world = grow(SHAPES[2], 5, 160);
    let mut random = Random(9);
    for _ in 0..400 {
        let stream = random.one_in(2).then(|| random.below(world.lengths.len() as u64) as u32);
        let length = stream.map_or(world.published as u64, |stream| world.length_before(stream, u64::MAX));
        let start = random.below(length + 1);
        let end = start + random.below(length - start + 1);
        let span = Span { stream, start, end, reverse: random.one_in(2) };
        let inside = world.gaps.iter().find(|gap| stream == Some(gap.0) && gap.1 < start && start < gap.2);
        if let Some(gap) = inside.filter(|_| start < end && !span.reverse) {
            let found = world.log.next(span, &mut Window::default());
            assert!(matches!(found, Err(Failure::Skipped { stream, first }) if (stream, first) == (gap.0, gap.2)));
            continue;
        }
        let part: Vec<u64> = (0..world.published as u64)
            .filter(|&at| {
                let kept = &world.kept[at as usize];
                let place = if stream.is_some() { kept.offset } else { at };
                stream.is_none_or(|stream| kept.stream == stream) && (start..end).contains(&place)
            })
            .collect();
        assert_eq!(scan(&world, &world.log, span), in_order(&part, span.reverse));
    }
}

#[test]
fn an_offset_and_a_position_are_found_by_a_position_and_by_a_time() {
    all_are_found(&grow(SHAPES[0], 7, 90));
}

#[test]
fn indexes_take_turns_in_memory_and_lead_to_the_same() {
    let mut world = grow(SHAPES[0], 8, 60);
    world.settle();
    let late = world.add_stream(false);
    for _ in 0..8 {
        (0..6).for_each(|_| step(&mut world));
        world.rotate();
    }
    world.rotate();
    assert!(world.sent.values().flatten().any(|sent| sent.parts.iter().any(|part| part.0 == late)));
    let closed = &world.segments[..world.segments.len() - 1];
    let loaded = || closed.iter().filter(|segment| segment.index().is_loaded()).count();
    all_are_found(&world);
    assert!(closed.len() > 8 && loaded() > 8, "{} {}", closed.len(), loaded());
    closed.iter().for_each(|segment| segment.unload());
    *world.log.indexes.lock().unwrap() = Indexes::new(1);
    all_are_found(&world);
    agree(&world, &world.log);
    assert_eq!(loaded(), 1);
    // What an index that was dropped had of streams is known, but not if it was not believed.
    let known = |segment: &Segment| segment.index().stream(0).is_some();
    let empty = |number: usize| world.header(number + 1).first_position == world.header(number).first_position;
    assert!(closed.iter().enumerate().all(|(number, segment)| empty(number) || known(segment)));
    let damaged =
        closed.iter().find(|segment| matches!(&*segment.index(), Index::Closed { file: Some(_), .. })).unwrap();
    damaged.distrust();
    assert!(!known(damaged));
    all_are_found(&world);
}

fn all_are_found(world: &World) {
    let published = &world.kept[..world.published];
    for position in (0..=world.published as u64).step_by(3) {
        for stream in 0..world.lengths.len() as u32 {
            let before = world.length_before(stream, position);
            assert_eq!(world.log.offset_at(stream, position, Hidden::Fails).unwrap(), before);
        }
    }
    let times: Vec<u64> = published.iter().map(|kept| kept.timestamp).collect();
    for time in times.iter().flat_map(|&time| [time - 1, time, time + 1]).chain([0, u64::MAX]) {
        let first = times.partition_point(|&at| at < time);
        assert_eq!(world.log.position_at(time, Hidden::Fails).unwrap(), first as u64);
    }
}

/// The root over leaves of RFC 6962.
fn slow_root(leaves: &[Hash]) -> Hash {
    use sha2::{Digest, Sha256};
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            Sha256::new()
                .chain_update([1])
                .chain_update(slow_root(left))
                .chain_update(slow_root(right))
                .finalize()
                .into()
        }
    }
}

#[test]
fn the_root_of_every_size_is_that_of_the_leaves_whatever_the_file_says() {
    let mut world = grow(SHAPES[1], 11, 60);
    while world.kept.len() == world.sealed || world.log.take_hashes(usize::MAX, false).1.is_empty() {
        step(&mut world);
    }
    let size = world.log.root().0;
    let leaf = |at| world.log.hash(tree::stored(at)).unwrap();
    let leaves: Vec<Hash> = (0..size).map(leaf).collect();
    for size in 0..=size {
        assert_eq!(world.log.root_at(size, MOST_LEAVES), Some(slow_root(&leaves[..size as usize])));
    }
    assert_eq!(world.log.root_at(size + 1, MOST_LEAVES), None);
    let on_file = world.log.tree.read().unwrap().pending().start;
    assert!(on_file > 20);
    for size in 1..size {
        for at in tree::peak_places(size).into_iter().filter(|&at| at < on_file) {
            world.hashes.flip(crate::format::HASHES_HEADER + 32 * at as usize + 5);
            let right = slow_root(&leaves[..size as usize]);
            assert_eq!(world.log.root_at(size, MOST_LEAVES), Some(right), "hash {at} of size {size}");
            world.hashes.flip(crate::format::HASHES_HEADER + 32 * at as usize + 5);
        }
    }
}

#[test]
fn a_refusal_consumes_nothing_and_says_what_would_have_been_right() {
    for (seed, shape) in (0..).zip(SHAPES) {
        let mut world = grow(shape, seed + 100, 80);
        assert!(world.sent.len() > 4);
        try_what_is_refused(&mut world);
        append(&mut world);
        try_what_is_refused(&mut world);
        world.settle();
        agree(&world, &world.log);
    }
}

#[test]
fn an_encrypted_stream_without_its_key_is_not_appended_to() {
    let world = World::new(SHAPES[0], 1);
    let declaration =
        Declaration { stream: 1, encrypted: true, random: [0; 16], largest_record: 0, name: "locked".into() };
    world.log.add_stream(&declaration.encode(), None).unwrap();
    let parts = super::world::offer(&[(1, Random(3).batch())], |_| None);
    assert_eq!(world.log.admit(&parts, None, false, 0), Err(Refused::NoKey { stream: 1 }));
    assert_eq!(world.log.admit(&parts, Some((b"id", 0)), false, 0), Err(Refused::NoKey { stream: 1 }));
    assert!(!world.log.streams.read().unwrap().info[1].declared);
}

#[test]
fn a_stream_that_cannot_be_declared_is_not_added() {
    let mut world = World::new(SHAPES[0], 1);
    world.add_stream(false);
    let good = Declaration { stream: 2, encrypted: false, random: [0; 16], largest_record: 0, name: "new".into() };
    let twice = Declaration { name: "stream 1".into(), ..good.clone() };
    let nameless = Declaration { name: String::new(), ..good.clone() };
    for number in [0, 1, 3, u32::MAX] {
        let misnumbered = Declaration { stream: number, ..good.clone() };
        assert!(world.log.add_stream(&misnumbered.encode(), None).is_err());
    }
    assert!(world.log.add_stream(&twice.encode(), None).is_err());
    assert!(world.log.add_stream(&nameless.encode(), None).is_err());
    assert_eq!(world.log.add_stream(&good.encode(), None), Ok(2));
    assert_eq!(world.log.streams.read().unwrap().number("new"), Some(2));
}

#[test]
fn a_clock_that_goes_back_spoils_no_file_of_producers() {
    let log = super::world::empty_log(SHAPES[0], 0);
    let header = log.next_segment(0);
    let segment = crate::log::Segment::active(header, Arc::new(super::world::File::default()));
    let declaration =
        Declaration { stream: 1, encrypted: false, random: [0; 16], largest_record: 0, name: "stream".into() };
    log.add_stream(&declaration.encode(), None).unwrap();
    let mut place = crate::format::SEGMENT_HEADER as u64;
    let mut entries = Vec::new();
    for (sequence, [now, sealed_at]) in (0..).zip([[9_000, 500], [4_000, 600], [3_000, 700], [800, 9_500]]) {
        for (id, back) in [(&b"one"[..], 0), (b"two", 300)] {
            let parts = super::world::offer(&[(1, Random(sequence + 1).batch())], |_| None);
            log.admit(&parts, Some((id, sequence)), false, now - back).unwrap();
        }
        let mut sealed = log.seal(&segment, place, sequence, sealed_at, false, &mut vec![0; 1 << 20]);
        log.finish(&segment, &mut sealed);
        log.publish(&sealed);
        place += sealed.padded as u64;
        entries.extend(log.take_producers(sealed.number, 0).0);
    }
    assert_eq!(entries.len(), 8 * 64 + 4 * 40);
    let last = *entries.last_chunk().unwrap();
    let load = |file: &[u8], last| super::world::empty_log(SHAPES[0], 0).load_producers(file, &last);
    assert!(load(&entries, last));
    // A file of before, which is sound in itself, and pieces of it in another order.
    let piece = entries.len() / 4;
    assert!(!load(&entries[..3 * piece], last));
    assert!(!load(&[&entries[piece..], &entries[..piece]].concat(), last));
    assert!(load(&entries[..piece], *entries[..piece].last_chunk().unwrap()));
}
