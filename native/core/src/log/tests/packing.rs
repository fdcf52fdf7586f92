//! A packed segment is shorter, and in all that it says what it was.

use std::io;
use std::sync::{Arc, RwLock};

use super::published::{SHAPES, agree, grow};
use super::state::state;
use super::world::{File, RECEIPT, World, empty_log, keys};
use crate::format::{BLOCK, SEGMENT_HEADER, SegmentHeader};
use crate::log::{Packing, Segment, Source, Stop, closes, derived_mac};

/// A closed segment of a world, packed in pieces of so many bytes: its file and its index file; what was wrong with it.
fn packed(world: &World, number: usize, piece: usize) -> Result<(File, File), &'static str> {
    let mut packing = Packing::new(world.header(number), [50 + number as u8; 32]);
    let file = &world.files[number];
    let (mut place, mut length, mut out) = (SEGMENT_HEADER as u64, piece, vec![0; SEGMENT_HEADER]);
    loop {
        let data = file.read(place, length).unwrap();
        let (taken, bytes) = packing.take(&world.log.database, place, &data);
        out.extend(bytes);
        place = taken.place;
        match taken.stop {
            Stop::More(more) if data.len() == length => length = more.max(piece),
            Stop::Closed => break,
            Stop::Bad(damage) => return Err(damage.0),
            stop => panic!("{stop:?}"),
        }
    }
    let (header, mut index) = packing.finish(&world.header(number + 1)).map_err(|damage| damage.0)?;
    out[..SEGMENT_HEADER].copy_from_slice(&header);
    index.extend(derived_mac(&RECEIPT, &index));
    Ok((File(RwLock::new(out)), File(RwLock::new(index))))
}

fn header_of(file: &File) -> SegmentHeader {
    SegmentHeader::decode(&file.bytes()).unwrap()
}

#[test]
fn a_log_of_packed_segments_replays_to_what_it_was() {
    for (seed, shape) in (0..8).zip(SHAPES.iter().cycle()) {
        let mut world = grow(*shape, 300 + seed, 60);
        world.rotate();
        let log = empty_log(*shape, 1 << 16);
        for number in 0..world.files.len() {
            let whole = &world.files[number];
            let last = number + 1 == world.files.len();
            // Here and there one is as it was.
            let file = if last || (number as u64 + seed).is_multiple_of(4) {
                whole.clone()
            } else {
                let piece = [1, 5_000, 70_000, 1 << 24][(seed as usize + number) % 4];
                Arc::new(packed(&world, number, piece).unwrap().0)
            };
            let segment = Arc::new(Segment::active(header_of(&file), file.clone()));
            log.attach(segment.clone());
            assert_eq!(log.enter(&segment), Ok(()));
            let data = file.read(SEGMENT_HEADER as u64, usize::MAX).unwrap();
            let replayed = log.replay(&segment, SEGMENT_HEADER as u64, &data, u64::MAX, &mut keys);
            assert_eq!(matches!(replayed.stop, Stop::Closed), !last, "{:?}", replayed.stop);
            assert_eq!(replayed.place, file.bytes().len() as u64);
        }
        assert_eq!(state(&log), state(&world.log));
        agree(&world, &log);
    }
}

#[test]
fn packing_takes_out_padding_and_nothing_else() {
    let mut world = grow(SHAPES[1], 310, 60);
    world.rotate();
    for number in 0..world.files.len() - 1 {
        let (file, index) = packed(&world, number, 1 << 24).unwrap();
        let (long, short) = (world.files[number].bytes(), file.bytes());
        let least = world.log.packed_length(number as u64).unwrap().unwrap();
        assert!(short.len() as u64 <= least && least <= short.len() as u64 + 8 * (long.len() / BLOCK) as u64);
        let (header, after) = (header_of(&file), world.header(number + 1));
        let end = short.len() as u64;
        assert_eq!(closes(&header, &after, end, 0, &[]), None);
        for wrong in [end - 1, end + 1] {
            assert_eq!(closes(&header, &after, wrong, 0, &[]), Some("it is not as long as its header says"));
        }
        let (group, chain) = (after.first_group + 1, [7; 32]);
        assert!(closes(&header, &SegmentHeader { first_group: group, ..after }, end, 0, &[]).is_some());
        assert!(closes(&header, &SegmentHeader { before: chain, ..after }, end, 0, &[]).is_some());
        // The same index is made of the segment itself.
        let again = Segment::resumed(header, Arc::new(File(RwLock::new(short))), u64::MAX).unwrap();
        assert!(super::world::index_file(&again).bytes() == index.bytes());
    }
}

#[test]
fn nothing_that_is_damaged_is_packed() {
    let mut world = grow(SHAPES[1], 320, 40);
    world.rotate();
    let number = world.files.len() - 2;
    assert!(packed(&world, number, 1 << 24).is_ok());
    let length = world.files[number].bytes().len();
    for at in (SEGMENT_HEADER..length).step_by(37).chain(length - 300..length) {
        world.files[number].flip(at);
        assert!(packed(&world, number, 1 << 24).is_err(), "byte {at}");
        world.files[number].flip(at);
    }
    world.segments[number + 1] = Arc::new(Segment::active(world.header(number), Arc::new(File::default())));
    assert_eq!(packed(&world, number, 1 << 24).err(), Some("it does not end where the next one begins"));
}

#[test]
fn a_packed_segment_that_does_not_end_as_its_header_says_is_damaged() {
    let mut world = grow(SHAPES[0], 330, 40);
    world.rotate();
    let file = packed(&world, 0, 1 << 24).unwrap().0;
    let right = header_of(&file).packed.unwrap();
    for wrong in [
        crate::format::Packed { length: right.length + 8, ..right },
        crate::format::Packed { last_group: right.last_group + 1, ..right },
        crate::format::Packed { last_chain: [1; 32], ..right },
    ] {
        let header = SegmentHeader { packed: Some(wrong), ..header_of(&file) };
        let log = empty_log(world.shape, 1 << 16);
        let segment = Arc::new(Segment::active(header, Arc::new(File::default())));
        log.enter(&segment).unwrap();
        let data = &file.bytes()[SEGMENT_HEADER..];
        let replayed = log.replay(&segment, SEGMENT_HEADER as u64, data, u64::MAX, &mut keys);
        assert!(matches!(replayed.stop, Stop::Damaged(_)), "{:?}", replayed.stop);
    }
}

/// A name that leads to another file from one moment on.
struct Name(RwLock<Arc<File>>);

impl Source for Name {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        self.0.read().unwrap().clone().read(place, length)
    }
}

#[test]
fn who_reads_a_segment_that_is_packed_beneath_them_looks_again() {
    for (seed, indexed) in [(340, false), (341, true)] {
        let mut world = grow(SHAPES[1], seed, 60);
        world.rotate();
        let names: Vec<_> = world.files.iter().map(|file| Arc::new(Name(RwLock::new(file.clone())))).collect();
        for (number, index) in world.indexes.iter().enumerate() {
            let index = indexed.then(|| Arc::new(File(RwLock::new(index.clone()))) as Arc<dyn Source>);
            let segment = Segment::closed(world.header(number), names[number].clone(), index, RECEIPT);
            world.log.attach(Arc::new(segment));
        }
        agree(&world, &world.log);
        for (number, name) in names[..world.files.len() - 1].iter().enumerate() {
            *name.0.write().unwrap() = Arc::new(packed(&world, number, 1 << 24).unwrap().0);
            agree(&world, &world.log);
        }
        for segment in world.log.newest_first().iter().skip(1) {
            segment.unload();
            let number = segment.header.number as usize;
            let empty = world.header(number + 1).first_position == segment.header.first_position;
            assert!(empty || segment.header.packed.is_some());
        }
        agree(&world, &world.log);
    }
}
