//! Readers on other threads while groups are sealed, finished and published.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::published::SHAPES;
use super::world::{File, Random, empty_log, offer, stream_key};
use crate::format::SEGMENT_HEADER;
use crate::group::{OVERHEAD, bound};
use crate::log::{Index, Log, MOST_LEAVES, Segment, Span, Window};
use crate::record::{Batch, Record};
use crate::system::Declaration;

/// Positions below this may be seen: it is raised before a group is published.
struct Promised(AtomicU64);

fn batch(random: &mut Random, position: u64) -> Batch {
    let mut batch = Batch::default();
    for i in 0..=random.below(70) {
        let payload = (position + i).to_le_bytes();
        batch.push(&Record { key: None, headers: b"", event_time: None, payload: &payload });
    }
    batch
}

fn begin(log: &Log, number: u64) -> (Arc<Segment>, Arc<File>) {
    let (header, file) = (log.next_segment(number), Arc::new(File::default()));
    let segment = Arc::new(Segment::active(header, file.clone()));
    log.attach(segment.clone());
    (segment, file)
}

/// Bytes reach the file between finishing and publishing: whoever reads sooner reads nothing.
fn write_all(log: &Log, promised: &Promised) {
    let mut random = Random(31);
    let (mut segment, mut file) = begin(log, 0);
    let mut place = SEGMENT_HEADER as u64;
    for group in 1..=240u64 {
        let closing = group % 40 == 0;
        let mut room = OVERHEAD + 4096;
        for _ in 0..if closing { 0 } else { 1 + random.below(3) } {
            // The first append is to the last stream, so that both declarations are in front of it.
            let first = log.tail.lock().unwrap().position;
            let (first, stream) = if first == 0 { (2, 2) } else { (first, 1 + random.below(2) as u32) };
            let batch = batch(&mut random, first);
            room += bound(&batch, 128);
            let parts = offer(&[(stream, batch)], |_| None);
            log.admit(&parts, None, false, group).unwrap();
        }
        let mut out = vec![0; room];
        let mut sealed = log.seal(&segment, place, group - 1, group, closing, &mut out);
        log.finish(&segment, &mut sealed);
        std::thread::yield_now();
        file.write(place as usize, &out[..sealed.padded]);
        promised.0.store(sealed.first_position + sealed.records as u64, Ordering::SeqCst);
        log.publish(&sealed);
        place += sealed.padded as u64;
        if closing {
            let closed = segment;
            (segment, file) = begin(log, group / 40);
            place = SEGMENT_HEADER as u64;
            *closed.index.write().unwrap() = Arc::new(Index::closed(None, [3; 32]));
        }
    }
}

fn read_forward(log: &Log, promised: &Promised, stream: Option<u32>, done: &AtomicBool) -> u64 {
    let (mut span, mut window) = (Span { stream, start: 0, end: u64::MAX, reverse: false }, Window::default());
    loop {
        let last = done.load(Ordering::SeqCst);
        while let Some((found, left)) = log.next(span, &mut window).unwrap() {
            let header = found.run.opened.header;
            assert!(header.first_position + found.to as u64 <= promised.0.load(Ordering::SeqCst));
            for i in (found.from..found.to).filter(|_| header.stream != 0) {
                let position = header.first_position + i as u64;
                assert_eq!(found.run.opened.decoded(i).payload, position.to_le_bytes(), "position {position}");
            }
            let base = if stream.is_some() { header.first_offset } else { header.first_position };
            assert_eq!(base + found.from as u64, span.start, "nothing is left out");
            span = left;
        }
        if last {
            return span.start;
        }
        std::thread::yield_now();
    }
}

fn read_the_newest(log: &Log, promised: &Promised, done: &AtomicBool) {
    let mut window = Window::default();
    while !done.load(Ordering::SeqCst) {
        let (durable, end) = (log.durable(), log.end());
        assert!(durable <= promised.0.load(Ordering::SeqCst));
        if durable > 0 {
            let found = log.get(durable - 1, &mut window, MOST_LEAVES).unwrap();
            assert_eq!(found.run.opened.header.first_position + found.from as u64, durable - 1);
            assert!(log.root_at(durable, MOST_LEAVES).is_some());
        }
        assert!(log.end().group >= end.group && log.durable() >= durable);
    }
}

#[test]
fn a_reader_beside_the_writer_sees_every_published_record_and_no_other() {
    for shape in [SHAPES[0], SHAPES[3]] {
        let log = empty_log(shape, 1 << 16);
        for (stream, encrypted) in [(1, false), (2, true)] {
            let (random, name) = ([0; 16], format!("stream {stream}"));
            let declaration = Declaration { stream, encrypted, random, largest_record: 0, name }.encode();
            log.add_stream(&declaration, encrypted.then(|| stream_key(stream)).as_ref()).unwrap();
        }
        let (promised, done) = (Promised(AtomicU64::new(0)), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (log, promised, done) = (&log, &promised, &done);
            let readers = [None, Some(0), Some(1), Some(2)]
                .map(|stream| scope.spawn(move || read_forward(log, promised, stream, done)));
            scope.spawn(|| read_the_newest(log, promised, done));
            write_all(log, promised);
            done.store(true, Ordering::SeqCst);
            let [all, system, plain, encrypted] = readers.map(|reader| reader.join().unwrap());
            assert_eq!((all, all), (log.durable(), system + plain + encrypted));
        });
    }
}
