//! Reading what was spoilt on the way, and reading receipts again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::published::{SHAPES, grow, step};
use super::world::{File, Kept, RECEIPT, World, index_file, offer};
use crate::format::{GROUP_HEADER, HASHES_HEADER, RUN_HEADER, SEGMENT_HEADER};
use crate::log::{Failure, Hidden, Index, MOST_LEAVES, Receipt, Segment, Span, Window, closes};
use crate::tree;

/// The place of the group and of the run of a position, and the segment's number.
fn place_of(world: &World, position: u64) -> (usize, usize, usize, usize) {
    let segment = world.log.segment_of(position).unwrap();
    let index = segment.index();
    let index = index.lookup(&segment).unwrap();
    let (group, run) = (index.group_of_position(position).unwrap(), index.run_of_position(position).unwrap());
    (segment.header.number as usize, group.place as usize, run.place as usize, run.length as usize)
}

fn without_cache(mut world: World) -> World {
    world.log.cache = crate::log::cache::Cache::new(0).into();
    world
}

#[test]
fn receipts_are_read_again_as_they_were_given() {
    for (seed, shape) in (0..).zip(SHAPES) {
        let mut world = grow(shape, seed + 40, 10);
        let mut ends = vec![(0, [0; 32], [0; 32])];
        for _ in 0..80 {
            let sealed = world.log.sealed().0;
            step(&mut world);
            world.settle();
            for _ in sealed..world.log.sealed().0 {
                let (size, root) = world.log.root();
                ends.push((size, root, world.log.sealed().2));
            }
        }
        let mut again = 0;
        for ((stream, id), sent) in &world.sent {
            for (sequence, sent) in (0..).zip(sent) {
                let parts = offer(&sent.parts, |_| None);
                let receipts = world.log.reread(sent.group, &parts, id, sequence, *stream == 0).unwrap();
                assert_eq!(receipts.len(), sent.parts.len());
                for ((receipt, (stream, batch)), (offset, position)) in
                    receipts.iter().zip(&sent.parts).zip(&sent.places)
                {
                    let more = batch.ends.len() as u64 - 1;
                    let timestamp = world.kept[*position as usize].timestamp;
                    assert_eq!((receipt.group, receipt.stream), (sent.group, *stream));
                    assert_eq!((receipt.first_offset, receipt.last_offset), (*offset, offset + more));
                    assert_eq!((receipt.first_position, receipt.last_position), (*position, position + more));
                    assert_eq!((receipt.timestamp, receipt.durable, receipt.incarnation), (timestamp, true, 0));
                    let in_tree = world.kept.iter().filter(|kept| kept.group <= sent.group).count() as u64;
                    assert_eq!(
                        (receipt.tree_size, Some(receipt.root)),
                        (in_tree, world.log.root_at(in_tree, MOST_LEAVES))
                    );
                    if let Some((size, root, _)) = ends.iter().find(|(size, ..)| *size == in_tree) {
                        assert_eq!((receipt.tree_size, receipt.root), (*size, *root));
                    }
                    again += 1;
                }
                assert!(world.log.reread(sent.group, &parts, b"somebody", sequence, *stream == 0).is_err());
                assert!(world.log.reread(sent.group, &parts, id, sequence + 1000, *stream == 0).is_err());
                assert!(world.log.reread(world.log.sealed().0, &parts, id, sequence, *stream == 0).is_err());
            }
        }
        assert!(again > 10, "{again}");
    }
}

#[test]
fn a_receipt_is_not_read_again_from_a_group_that_was_touched() {
    for shape in SHAPES {
        let world = grow(shape, 61, 60);
        let ((stream, id), sent) = world.sent.iter().next_back().unwrap();
        let (parts, first) = (offer(&sent[0].parts, |_| None), &sent[0]);
        let (segment, group, ..) = place_of(&world, first.places[0].1);
        let file = &world.files[segment];
        let length = crate::format::u32_at(&file.bytes(), group + 8) as usize;
        let reread = || world.log.reread(first.group, &parts, id, 0, *stream == 0);
        let right = reread().unwrap();
        for at in (group..group + length).step_by(if length > 2_000 { 97 } else { 3 }).chain([group + length - 1]) {
            // The tag is the last thing of a group that has one.
            file.flip(at);
            match reread() {
                Err(Failure::Damaged { segment: number, group, .. }) => {
                    assert_eq!((number, group), (segment as u64, first.group));
                }
                other => panic!("byte {} of {length}: {other:?}", at - group),
            }
            file.flip(at);
        }
        assert_eq!(reread().unwrap(), right);
    }
}

#[test]
fn a_receipt_says_in_its_mac_everything_it_says() {
    let world = grow(SHAPES[0], 1, 10);
    let receipt = Receipt {
        group: 1,
        tree_size: 2,
        root: [3; 32],
        chain: [4; 32],
        incarnation: 5,
        durable: true,
        stream: 6,
        first_offset: 7,
        last_offset: 8,
        first_position: 9,
        last_position: 10,
        timestamp: 11,
    };
    let others = [
        Receipt { group: 0, ..receipt },
        Receipt { tree_size: 0, ..receipt },
        Receipt { root: [0; 32], ..receipt },
        Receipt { chain: [0; 32], ..receipt },
        Receipt { incarnation: 0, ..receipt },
        Receipt { durable: false, ..receipt },
        Receipt { stream: 0, ..receipt },
        Receipt { first_offset: 0, ..receipt },
        Receipt { last_offset: 0, ..receipt },
        Receipt { first_position: 0, ..receipt },
        Receipt { last_position: 0, ..receipt },
        Receipt { timestamp: 0, ..receipt },
    ];
    let mac = receipt.mac(&world.log);
    assert!(others.iter().all(|other| other.mac(&world.log) != mac));
    let mut another = grow(SHAPES[0], 1, 10);
    another.log.keys.receipt = [8; 32];
    assert_ne!(receipt.mac(&another.log), mac, "with another key");
}

#[test]
fn every_byte_that_a_point_read_relies_on_is_checked() {
    for shape in SHAPES {
        let world = without_cache(grow(shape, 71, 60));
        for position in (0..world.published as u64).step_by(5) {
            let (number, group, run, length) = place_of(&world, position);
            let file = &world.files[number];
            let stride = if length > 1_000 { 501 } else { 37 };
            let places = (group..group + GROUP_HEADER).step_by(31).chain((run..run + length).step_by(stride));
            for at in places.chain([run + length - 1]) {
                file.flip(at);
                match world.log.get(position, &mut Window::default(), MOST_LEAVES).map(drop) {
                    Err(Failure::Damaged { segment, place, group, .. }) => {
                        assert_eq!((segment, place), (number as u64, run as u64));
                        assert_eq!(group, world.kept[position as usize].group);
                    }
                    other => panic!("byte {at} of segment {number}: {other:?}"),
                }
                file.flip(at);
            }
            world.log.get(position, &mut Window::default(), MOST_LEAVES).unwrap();
        }
    }
}

#[test]
fn a_leaf_is_led_to_its_peak_past_hashes_that_are_wrong_and_named_if_that_cannot_be() {
    let world = without_cache(grow(SHAPES[2], 72, 60));
    let size = world.log.root().0;
    let flip = |index: u64| world.hashes.flip(HASHES_HEADER + 32 * index as usize + index as usize % 32);
    let stored = tree::stored(size);
    for position in 0..world.published as u64 {
        let read = || world.log.get(position, &mut Window::default(), MOST_LEAVES).map(drop);
        for index in (0..stored).rev().step_by(7) {
            flip(index);
            read().unwrap();
            flip(index);
        }
        // All of them are made again from the records.
        (0..stored).for_each(flip);
        read().unwrap();
        (0..stored).for_each(flip);
    }
    let peaks = std::mem::replace(&mut *world.log.tree.write().unwrap(), other_peaks(size));
    for position in 0..world.published as u64 {
        let found = world.log.get(position, &mut Window::default(), MOST_LEAVES).map(drop);
        assert!(matches!(found, Err(Failure::HashesDamaged { position: at }) if at == position), "{found:?}");
    }
    *world.log.tree.write().unwrap() = peaks;
}

/// A tree of this size that no record leads to.
fn other_peaks(size: u64) -> tree::Tree {
    tree::Tree::from_peaks(size, vec![[7; 32]; size.count_ones() as usize]).unwrap()
}

#[test]
fn one_proven_record_proves_no_other_of_its_run() {
    let mut world = World::new(SHAPES[0], 3);
    world.add_stream(false);
    let mut batch = crate::record::Batch::default();
    let record = crate::record::Record { key: None, headers: b"", event_time: None, payload: b"one of many" };
    (0..130).for_each(|_| batch.push(&record));
    world.append(vec![(1, batch)], None, false);
    world.cut();
    let read = |position| world.log.get(position, &mut Window::default(), MOST_LEAVES);
    for proven in [1, 64, 70, 130] {
        read(proven).unwrap();
    }
    *world.log.tree.write().unwrap() = other_peaks(131);
    for position in 1..=130 {
        assert_eq!(read(position).is_ok(), [1, 64, 70, 130].contains(&position), "{position}");
    }
}

#[test]
fn an_index_that_is_gone_or_touched_is_made_again_from_the_segment() {
    let mut world = grow(SHAPES[1], 73, 60);
    world.rotate();
    let number = world.indexes.len() - 1;
    let right = world.indexes[number].clone();
    let closed = |bytes: Option<Vec<u8>>, key| {
        let file = bytes.map(|bytes| Arc::new(File(bytes.into())) as _);
        Segment::closed(world.header(number), world.files[number].clone(), file, key)
    };
    let streams = |segment: &Segment| segment.index().lookup(segment).unwrap().streams();
    let wanted = streams(&closed(Some(right.clone()), RECEIPT));
    assert!(!wanted.is_empty());
    let size = |segment: &Segment| segment.index().lookup(segment).unwrap().size();
    assert_eq!(streams(&closed(None, RECEIPT)), wanted);
    assert_eq!(size(&closed(None, RECEIPT)), size(&closed(Some(right.clone()), RECEIPT)));
    let segment = closed(Some(right.clone()), RECEIPT);
    let is_loaded = || matches!(&*segment.index(), Index::Closed { loaded, .. } if loaded.get().is_some());
    for _ in 0..2 {
        assert!(!is_loaded());
        assert_eq!(streams(&segment), wanted);
        assert!(is_loaded());
        segment.unload();
    }
    assert_eq!(streams(&closed(Some(right.clone()), [7; 32])), wanted);
    for at in 0..right.len() {
        let mut bad = right.clone();
        bad[at] ^= 4;
        assert_eq!(streams(&closed(Some(bad), RECEIPT)), wanted);
    }
    assert_eq!(streams(&closed(Some(right[..20].to_vec()), RECEIPT)), wanted);
    let made_again = Segment::resumed(world.header(number), world.files[number].clone(), u64::MAX).unwrap();
    assert!(index_file(&made_again).bytes() == right);
    // A file that is believed is not compared with the segment: its bytes are what is looked up.
    let unreadable =
        Segment::closed(world.header(number), Arc::new(File::default()), Some(Arc::new(File(right.into()))), RECEIPT);
    assert_eq!(streams(&unreadable), wanted);
}

/// Which of the published records are read, by position or by their streams' offsets, forwards or backwards.
fn readable(world: &World, by_stream: bool, reverse: bool) -> Vec<bool> {
    let mut all: Vec<usize> = (0..world.published).collect();
    if reverse {
        all.reverse();
    }
    let mut out = vec![false; world.published];
    for position in all {
        let kept = &world.kept[position];
        let (stream, start) = if by_stream { (Some(kept.stream), kept.offset) } else { (None, position as u64) };
        let span = Span { stream, start, end: start + 1, reverse };
        let mut got = vec![];
        let read = |found: &super::super::Found| got.push(found.run.opened.record(found.from).to_vec());
        match world.log.walk(span, 1, 1, true, read) {
            Ok(_) => assert_eq!(got, std::slice::from_ref(&kept.bytes)),
            Err(failure) => assert!(failure.is_damage(), "{failure:?}"),
        }
        out[position] = !got.is_empty();
    }
    out
}

/// Bounds by time, of the log and of each stream, lie so that nothing is on their wrong side but what is hidden; where
/// nothing is, they are right.
fn bounds_miss_only(world: &World, hidden: impl Fn(&Kept) -> bool) {
    let published = &world.kept[..world.published];
    let times: std::collections::BTreeSet<u64> = published.iter().map(|kept| kept.timestamp).collect();
    for time in times.iter().flat_map(|&time| [time - 1, time, time + 1]).chain([0, u64::MAX]) {
        let truth = published.partition_point(|kept| kept.timestamp < time);
        for last in [Hidden::First, Hidden::Last] {
            let position = world.log.position_at(time, last).unwrap();
            let bound = position as usize;
            assert!(truth == bound || (last == Hidden::Last) == (truth < bound), "{time}: {truth} {bound} {last:?}");
            let between = &published[truth.min(bound)..truth.max(bound)];
            assert!(between.iter().all(&hidden), "{time}: {truth} {bound} {last:?}");
            for stream in 0..world.lengths.len() as u32 {
                let right = world.length_before(stream, truth as u64);
                let found = world.log.offset_at(stream, position, last).unwrap();
                let wrong = right.min(found)..right.max(found);
                let mut between = published.iter().filter(|kept| kept.stream == stream && wrong.contains(&kept.offset));
                assert!(between.all(&hidden), "{time}: {stream} {right} {found} {last:?}");
                assert!(
                    right == found || (last == Hidden::Last) == (right < found),
                    "{time}: {stream} {right} {found}"
                );
            }
        }
    }
}

#[test]
fn a_damaged_group_hides_no_record_of_another_in_whatever_order_they_are_read() {
    let mut world = without_cache(grow(SHAPES[0], 77, 60));
    while world.segments.len() < 12 {
        (0..6).for_each(|_| step(&mut world));
        world.rotate();
    }
    let is_filed = |number: usize| matches!(&*world.segments[number].index(), Index::Closed { file: Some(_), .. });
    let groups = |number: usize| {
        let range = world.header(number).first_position..world.header(number + 1).first_position;
        range.map(|position| world.kept[position as usize].group)
    };
    let several = |number: &usize| groups(*number).collect::<std::collections::BTreeSet<_>>().len() > 2;
    let (mut filed, mut bare) = (0, 0);
    for number in (0..world.segments.len() - 1).filter(several) {
        let position = world.header(number).first_position + groups(number).count() as u64 / 2;
        let damaged = world.kept[position as usize].group;
        let at = place_of(&world, position).1 + 20;
        world.segments[number].unload();
        world.files[number].flip(at);
        let hidden = |kept: &Kept| {
            // Without its index a segment leads to none of its records.
            kept.group == damaged || !is_filed(number) && groups(number).any(|group| group == kept.group)
        };
        let wanted: Vec<bool> = world.kept[..world.published].iter().map(|kept| !hidden(kept)).collect();
        for (by_stream, reverse) in [(true, true), (true, false), (false, false), (true, false), (false, true)] {
            assert_eq!(readable(&world, by_stream, reverse), wanted, "segment {number}");
        }
        bounds_miss_only(&world, hidden);
        *if is_filed(number) { &mut filed } else { &mut bare } += 1;
        world.files[number].flip(at);
    }
    assert!(filed > 0 && bare > 0, "{filed} {bare}");
}

#[test]
fn a_segment_is_closed_by_its_last_block_or_it_says_why_not() {
    let mut world = grow(SHAPES[1], 74, 60);
    (0..2).for_each(|_| world.rotate());
    for number in 0..world.files.len() - 1 {
        let (file, after) = (world.files[number].bytes(), world.header(number + 1));
        let place = file.len() - 4096;
        let header = world.header(number);
        assert_eq!(closes(&header, &after, 0, place as u64, &file[place..]), None);
        let gone = closes(&header, &after, 0, place as u64 - 4096, &file[place - 4096..place]);
        assert!(gone.is_some());
        assert_eq!(closes(&header, &after, 0, place as u64, &[0; 4096]), Some("its closing group is not there"));
        let ends = Some("it does not end where the next one begins");
        let group = crate::format::SegmentHeader { first_group: after.first_group + 1, ..after };
        assert_eq!(closes(&header, &group, 0, place as u64, &file[place..]), ends);
        let position = crate::format::SegmentHeader { first_position: after.first_position + 1, ..after };
        assert_eq!(closes(&header, &position, 0, place as u64, &file[place..]), ends);
        let chain = crate::format::SegmentHeader { before: [7; 32], ..after };
        let last = Some("its last chain is not the one the next one follows");
        assert_eq!(closes(&header, &chain, 0, place as u64, &file[place..]), last);
    }
}

#[test]
fn a_stream_whose_key_is_not_at_hand_says_so_and_hides_no_other() {
    let world = grow(SHAPES[1], 75, 60);
    let log = super::world::empty_log(world.shape, 1 << 16);
    let mut no_keys = |_: &crate::system::Declaration, _: &crate::format::Hash| Ok(None);
    for (number, file) in world.files.iter().enumerate() {
        let segment = Arc::new(Segment::active(world.header(number), file.clone()));
        log.attach(segment.clone());
        log.enter(&segment).unwrap();
        log.replay(&segment, SEGMENT_HEADER as u64, &file.bytes()[SEGMENT_HEADER..], u64::MAX, &mut no_keys);
    }
    assert_eq!(log.root(), world.log.root(), "the tree needs no keys");
    let streams = log.streams.read().unwrap();
    for (position, kept) in (0..).zip(&world.kept) {
        let locked = streams.list[kept.stream as usize].encrypted;
        match log.get(position, &mut Window::default(), MOST_LEAVES) {
            Ok(found) => assert!(!locked && found.run.opened.record(found.from) == kept.bytes),
            Err(Failure::NoKey { stream }) => assert!(locked && stream == kept.stream),
            other => panic!("position {position}: {:?}", other.map(drop)),
        }
    }
}

#[test]
fn a_span_ends_where_the_log_does_however_far_it_reaches() {
    let mut world = grow(SHAPES[0], 76, 40);
    world.append(vec![(1, world_batch())], None, false);
    world.seal(false);
    let (log, mut window) = (&world.log, Window::default());
    let (published, length) = (world.published as u64, log.streams.read().unwrap().info[1].durable);
    assert!(published < world.kept.len() as u64 && length < world.lengths[1]);
    for (stream, start) in [(None, published), (Some(1), length), (Some(1), u64::MAX - 1), (Some(99), 0)] {
        let span = Span { stream, start, end: u64::MAX, reverse: false };
        assert!(log.next(span, &mut window).unwrap().is_none(), "{span:?}");
    }
    let none = Span { stream: None, start: 3, end: 3, reverse: true };
    assert!(log.next(none, &mut window).unwrap().is_none());
    assert_eq!(log.durable.load(Ordering::Acquire), published);
}

fn world_batch() -> crate::record::Batch {
    let mut batch = crate::record::Batch::default();
    batch.push(&crate::record::Record { key: None, headers: b"", event_time: None, payload: b"not yet" });
    batch
}

#[test]
fn a_run_of_a_stream_that_was_never_declared_is_damage() {
    let mut world = World::new(SHAPES[0], 9);
    world.add_stream(false);
    world.append(vec![(1, world_batch())], None, false);
    world.settle();
    world.rotate();
    let position = 1;
    let (number, group, run, length) = place_of(&world, position);
    let file = &world.files[number];
    let mut bytes = file.bytes();
    let salt = world.header(number).salt;
    crate::format::put(&mut bytes, run + 4, 99u32.to_le_bytes());
    let check = crate::group::check_of_run(&salt, run as u64, &bytes[run..run + length]);
    let header = crate::format::GroupHeader::decode(&bytes[group..], &salt, group as u64).unwrap();
    let checks = group + header.length as usize - 32 - 8 * header.runs as usize;
    crate::format::put(&mut bytes, checks + 8, check);
    file.write(0, &bytes);
    *world.segments[number].index.write().unwrap() = Arc::new(Index::closed(None, RECEIPT));
    let found = world.log.get(position, &mut Window::default(), MOST_LEAVES).map(drop);
    assert!(matches!(found, Err(Failure::Damaged { segment: 0, place, .. }) if place == run as u64), "{found:?}");
    assert!(length > RUN_HEADER);
}
