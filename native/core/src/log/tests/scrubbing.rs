//! A closed segment that is read again says what its hashes and its index are, and hides no damage.

use std::sync::{Arc, RwLock};

use super::published::{SHAPES, grow};
use super::world::{File, RECEIPT, World, empty_log, keys};
use crate::format::{HASHES_HEADER, Hash, SEGMENT_HEADER, SegmentHeader};
use crate::log::{Log, Segment, Source, Stop, derived_mac};
use crate::tree;

/// Hashes of a segment with the index of the first, and its index file.
type Found = ((u64, Vec<Hash>), Vec<u8>);

/// What a closed segment says, read in pieces of so many bytes.
fn scrubbed(log: &Log, file: &File, number: u64, piece: usize) -> Result<Found, &'static str> {
    let mut scrub = log.scrub(number).expect("it is closed");
    assert!(scrub.is_rooted());
    let (mut place, mut length) = (SEGMENT_HEADER as u64, piece);
    let mut hashes = (tree::stored(scrub.header.first_position), vec![]);
    loop {
        let data = file.read(place, length).unwrap();
        let (taken, (first, found)) = scrub.take(log, place, &data);
        assert_eq!(first, hashes.0 + hashes.1.len() as u64);
        hashes.1.extend(found);
        place = taken.place;
        match taken.stop {
            Stop::More(more) if data.len() == length => length = more.max(piece),
            Stop::Closed => break,
            Stop::Bad(damage) => return Err(damage.0),
            stop => panic!("{stop:?}"),
        }
    }
    let mut index = scrub.finish(file.bytes().len() as u64).map_err(|damage| damage.0)?;
    index.extend(derived_mac(&RECEIPT, &index));
    Ok((hashes, index))
}

/// The same log as somebody has it who has no key of a stream.
fn without_keys(world: &World) -> Log {
    let log = empty_log(world.shape, 1 << 16);
    for (number, file) in world.files.iter().enumerate() {
        let segment = Arc::new(Segment::active(world.header(number), file.clone()));
        log.attach(segment.clone());
        log.enter(&segment).unwrap();
        let data = file.read(SEGMENT_HEADER as u64, usize::MAX).unwrap();
        let replayed = log.replay(&segment, SEGMENT_HEADER as u64, &data, u64::MAX, &mut |declaration, hash| {
            if number % 2 == 0 && !world.shape.tagged { keys(declaration, hash) } else { Ok(None) }
        });
        assert!(!matches!(replayed.stop, Stop::Damaged(_)), "{replayed:?}");
    }
    log
}

#[test]
fn its_hashes_and_its_index_are_those_on_file() {
    for (seed, shape) in (0..8).zip(SHAPES.iter().cycle()) {
        let mut world = grow(*shape, 500 + seed, 60);
        world.rotate();
        world.flush_hashes();
        let bare = without_keys(&world);
        let file = world.hashes.bytes();
        for number in 0..world.files.len() - 1 {
            let piece = [1, 5_000, 70_000, 1 << 24][(seed as usize + number) % 4];
            for log in [&world.log, &bare] {
                let ((first, hashes), index) = scrubbed(log, &world.files[number], number as u64, piece).unwrap();
                let place = HASHES_HEADER + 32 * first as usize;
                assert!(file[place..].starts_with(hashes.as_flattened()));
                let behind = tree::stored(world.header(number + 1).first_position);
                assert_eq!(first + hashes.len() as u64, behind);
                assert!(index == world.indexes[number]);
            }
        }
        assert!(world.log.scrub(world.files.len() as u64 - 1).is_none(), "it is not closed");
    }
}

#[test]
fn every_byte_of_it_counts() {
    let mut world = grow(SHAPES[1], 510, 40);
    world.rotate();
    let number = world.files.len() - 2;
    let (file, length) = (&world.files[number], world.files[number].bytes().len());
    for at in (SEGMENT_HEADER..length).step_by(37).chain(length - 300..length) {
        file.flip(at);
        assert!(scrubbed(&world.log, file, number as u64, 1 << 24).is_err(), "byte {at}");
        file.flip(at);
    }
    scrubbed(&world.log, file, number as u64, 1 << 24).unwrap();
    let header = SegmentHeader { before: [7; 32], ..world.header(number + 1) };
    world.log.attach(Arc::new(Segment::active(header, Arc::new(File::default()))));
    let wrong = scrubbed(&world.log, file, number as u64, 1 << 24).err();
    assert_eq!(wrong, Some("it does not end where the next one begins"));
}

#[test]
fn it_is_known_whether_it_is_still_the_same_file() {
    let mut world = grow(SHAPES[0], 520, 40);
    world.rotate();
    let scrub = world.log.scrub(0).unwrap();
    assert!(world.log.is_current(&scrub));
    let header = SegmentHeader { salt: [9; 32], ..world.header(0) };
    world.log.attach(Arc::new(Segment::active(header, Arc::new(File(RwLock::default())))));
    assert!(!world.log.is_current(&scrub));
    world.log.close();
    assert!(world.log.scrub(0).is_none() && !world.log.is_current(&scrub));
}

#[test]
fn hashes_before_it_that_are_wrong_are_made_again_if_they_are_few() {
    let mut world = grow(SHAPES[1], 530, 150);
    world.rotate();
    world.flush_hashes();
    let begins = |number: usize| world.header(number).first_position;
    let some = (1..world.files.len() - 1).rfind(|&number| begins(number) > 0 && begins(number + 1) > begins(number));
    let number = some.unwrap() as u64;
    let places = tree::peak_places(world.header(number as usize).first_position);
    let right = scrubbed(&world.log, &world.files[number as usize], number, 1 << 24).unwrap().0;
    for &place in &places {
        world.hashes.flip(HASHES_HEADER + 32 * place as usize);
    }
    let found = scrubbed(&world.log, &world.files[number as usize], number, 1 << 24).unwrap().0;
    assert_eq!(found, right);
    assert!(world.log.doubted.load(std::sync::atomic::Ordering::Relaxed));
}
