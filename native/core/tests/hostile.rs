//! Bytes from anywhere: nothing that decodes them panics, or takes more memory than they can pay for.

use std::alloc::{GlobalAlloc, Layout, System as Heap};
use std::cell::Cell;
use std::io;
use std::sync::Arc;

use kimberlite_core::format::{GroupHeader, Hash, RUN_HEADER, RunHeader, SEGMENT_HEADER, SegmentHeader, check, put};
use kimberlite_core::group::{Database, Expected, OVERHEAD, Run, Stream, bound, open, open_run};
use kimberlite_core::index::ClosedIndex;
use kimberlite_core::keys::Entropy;
use kimberlite_core::log::{
    Dropped, Erasure, Left, Log, Part, Retained, Said, Secrets, Segment, Source, Window, closes, derived_mac,
};
use kimberlite_core::producers::{Limits, Producers};
use kimberlite_core::record::{Batch, Record, append_header};
use kimberlite_core::salvage::Repaired;
use kimberlite_core::system::{Confirmed, Declaration, Erased, Piece, Several, System};

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// Counts what a thread asks for, whether or not it gives it back.
struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = TAKEN.try_with(|taken| taken.set(taken.get() + layout.size()));
        // SAFETY: the caller's promises are the system's.
        unsafe { Heap.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { Heap.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn taken<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = TAKEN.get();
    let out = work();
    (out, TAKEN.get() - before)
}

/// xorshift64*: the same bytes on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    /// Noise, or some good bytes with a few of them changed, cut or made huge.
    fn spoil(&mut self, good: &[u8]) -> Vec<u8> {
        if self.below(8) == 0 {
            let length = self.below(2 * good.len() + 64);
            return (0..length).map(|_| self.below(256) as u8).collect();
        }
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(8) - 7);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 if bytes.len() > at + 4 => put(&mut bytes, at, (u32::MAX - self.below(3) as u32).to_le_bytes()),
                2 if bytes.len() > at + 8 => put(&mut bytes, at, u64::MAX.to_le_bytes()),
                _ if bytes.len() > at => bytes[at] = self.below(256) as u8,
                _ => {}
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    }
}

/// What an empty log and a few hashes take.
const BASE: usize = 64 << 10;

/// So many times over, what is decoded may be larger than its bytes.
fn fuzz(seed: u64, rounds: usize, times: usize, good: &[u8], decode: impl Fn(&[u8]) -> bool) {
    let mut random = Random(seed);
    let mut refused = 0;
    assert!(decode(good), "what is not spoilt decodes");
    for _ in 0..rounds {
        let bytes = random.spoil(good);
        let (sound, memory) = taken(|| decode(&bytes));
        refused += usize::from(!sound);
        assert!(memory <= times * bytes.len() + BASE, "{memory} bytes for {}", bytes.len());
    }
    assert!(refused > rounds / 4, "{refused} of {rounds}");
}

fn record() -> Vec<u8> {
    let mut headers = Vec::new();
    append_header(&mut headers, "name", b"value");
    append_header(&mut headers, "", b"");
    let mut out = Vec::new();
    Record { key: Some(b"key"), headers: &headers, event_time: Some(-5), payload: b"payload" }.append_to(&mut out);
    out
}

fn declaration() -> Declaration {
    Declaration { stream: 1, encrypted: false, random: [7; 16], largest_record: 0, name: "a stream".into() }
}

#[test]
fn records_and_system_records_of_any_bytes_are_refused_or_sound() {
    fuzz(1, 30_000, 1, &record(), |bytes| match Record::decode(bytes) {
        Ok((record, length)) => {
            let mut again = Vec::new();
            record.append_to(&mut again);
            again == bytes[..length]
        }
        Err(_) => false,
    });
    let parts = vec![(1, 2, 3), (4, 5, 6), (u32::MAX, u64::MAX, u32::MAX)];
    let several = Several { producer: [1; 16], sequence: 9, digest: [2; 16], parts }.encode();
    let piece = Piece { number: 1, pieces: 2, whole: [3; 32], bytes: b"of a retention record".to_vec() }.encode();
    let (before, after, lost) = (4, 5, vec![(6, 7), (8, u64::MAX)]);
    let (database, when, kept) = ([4; 16], 3, 9);
    let repaired = Repaired { salvaged: true, database, when, before, after, kept, lost, coarse: true }.encode();
    let erased = Erased { stream: 3, declared: [4; 32], master: [5; 16], reason: "on request".into() }.encode();
    let confirmed = Confirmed { stream: 3, declared: [4; 32], master: [6; 16] }.encode();
    for (seed, good) in (2..).zip([declaration().encode(), several, piece, erased, confirmed, repaired.clone()]) {
        fuzz(seed, 20_000, 4, &good, |bytes| match System::decode(bytes) {
            Ok(System::Repaired(repaired)) => repaired.encode() == bytes,
            Ok(System::Declaration(declaration)) => declaration.encode() == bytes,
            Ok(System::Several(several)) => several.encode() == bytes,
            Ok(System::Retained(piece)) => piece.encode() == bytes,
            Ok(System::Erased(erased)) => erased.encode() == bytes,
            Ok(System::Confirmed(confirmed)) => confirmed.encode() == bytes,
            Ok(System::Gap(gap)) => gap.encode() == bytes,
            Err(_) => false,
        });
    }
    let left = Left { declaration: declaration().encode(), first: 7 };
    let dropped = Dropped { from: 0, to: 6, first: 8, last: 9, rule: "age".into() };
    let (at, reason) = (Said { position: 4, timestamp: 5 }, "on request".into());
    let erasure = Erasure { stream: 2, at, master: [6; 16], reason, confirmed: None };
    let retained = Retained {
        segment: 1,
        group: 2,
        position: 6,
        peaks: vec![[4; 32], [5; 32]],
        streams: vec![left; 3],
        producers: vec![7; 64],
        sealed: vec![(2, [8; 24], vec![9; 80])],
        drops: vec![dropped.clone(), Dropped { from: 6, ..dropped }],
        erasures: vec![erasure.clone(), Erasure { confirmed: Some(at), ..erasure }],
        repairs: vec![(5, repaired)],
        ..Retained::default()
    };
    fuzz(60, 20_000, 8, &retained.encode(), |bytes| Retained::decode(bytes).is_ok_and(|found| found.encode() == bytes));
}

const SALT: Hash = [5; 32];

fn database() -> Database {
    Database { id: [1; 16], identity: [2; 32], quantum: 128, tagged: false, group_key: None }
}

fn fresh() -> Log {
    let secrets = Secrets { receipt: [3; 32], several: [4; 32] };
    Log::new(database(), secrets, Some(1), 1 << 16, Entropy::seeded(b"log"))
}

struct Bytes(Vec<u8>);

impl Source for Bytes {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        let from = (place as usize).min(self.0.len());
        Ok(self.0[from..from.saturating_add(length).min(self.0.len())].to_vec())
    }
}

fn keys(declaration: &Declaration, _: &Hash) -> kimberlite_core::format::Checked<Option<[u8; 32]>> {
    Ok(declaration.encrypted.then_some([6; 32]))
}

/// A small segment of three groups, two streams and a producer, and the closing group: its header, and its bytes.
fn segment() -> (SegmentHeader, Vec<u8>, Log) {
    let log = fresh();
    let header = log.next_segment(0);
    let segment = Segment::active(header, Arc::new(Bytes(vec![])));
    log.add_stream(&declaration().encode(), None).unwrap();
    let locked = Declaration { stream: 2, encrypted: true, name: "locked".into(), ..declaration() };
    log.add_stream(&locked.encode(), Some(&[6; 32])).unwrap();
    let mut out = header.encode();
    for sequence in 0..4 {
        let mut room = OVERHEAD + 4096;
        let closing = sequence == 3;
        for stream in if closing { &[][..] } else { &[1, 2] } {
            let stream = *stream;
            let mut batch = Batch::default();
            let payload = [b'x'; 300];
            (0..3).for_each(|_| batch.push(&Record { key: None, headers: b"", event_time: None, payload: &payload }));
            room += bound(&batch, 128);
            let parts = [Part { stream, batch: Arc::new(batch), expect: None, gap: None }];
            log.admit(&parts, Some((b"id", sequence)), false, 7).unwrap();
        }
        let mut bytes = vec![0; room];
        let mut sealed = log.seal(&segment, out.len() as u64, sequence, 7, closing, &mut bytes);
        log.finish(&segment, &mut sealed);
        log.publish(&sealed);
        out.extend(&bytes[..sealed.padded]);
    }
    (header, out, log)
}

#[test]
fn headers_of_any_bytes_are_refused_or_lie_in_their_bytes() {
    let (header, bytes, _) = segment();
    let encoded = header.encode();
    fuzz(4, 1_000, 0, &encoded, |bytes| SegmentHeader::decode(bytes).is_ok_and(|header| header.encode() == bytes));
    let group = &bytes[SEGMENT_HEADER..][..104];
    let salt = header.salt;
    fuzz(5, 20_000, 0, group, |bytes| GroupHeader::decode(bytes, &salt, SEGMENT_HEADER as u64).is_ok());
    let rechecked = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        if bytes.len() >= 104 {
            let right = check(&SALT, &bytes[..96], 4096);
            put(&mut bytes, 96, right);
        }
        let header = GroupHeader::decode(&bytes, &SALT, 4096);
        let after = SegmentHeader { first_group: 4, ..SegmentHeader::decode(&encoded).unwrap() };
        let _ = closes(&SegmentHeader { salt: SALT, ..after }, &after, 0, 4096, &bytes);
        header.is_ok_and(|header| header.length >= 136 && header.durable_upto < header.number)
    };
    fuzz(6, 20_000, 2, group, rechecked);
    let run = &bytes[SEGMENT_HEADER + 104..][..400];
    fuzz(7, 20_000, 0, run, |bytes| {
        RunHeader::decode(bytes).is_ok_and(|run| run.length as usize <= bytes.len() && run.text() <= bytes.len())
    });
}

#[test]
fn runs_of_any_text_are_refused_or_hold_their_records() {
    let mut plain = Vec::new();
    plain.extend(2u32.to_le_bytes());
    plain.extend([&2u32.to_le_bytes()[..], &[3, 2], b"id", &5u64.to_le_bytes(), &[8; 16]].concat());
    plain.extend([1, 0, 0, 0, 1]);
    (0..3).for_each(|_| plain.extend(record()));
    let stream = Stream::new(1, [3; 32], false, None);
    let run = |text: &[u8], flags, plain| {
        let length = (RUN_HEADER + text.len()) as u32;
        let [first_offset, first_position] = [0, 0];
        let random = [1; 32];
        let header = RunHeader {
            length,
            stream: 1,
            flags,
            records: 3,
            first_offset,
            first_position,
            plain,
            key_id: [0; 16],
            random,
        };
        let mut bytes = vec![0; length as usize];
        header.encode(&mut bytes);
        bytes[RUN_HEADER..].copy_from_slice(text);
        let run = Run { header, place: 0, bytes: &bytes };
        let opened = open_run(&database(), &stream, &run);
        opened.is_ok_and(|opened| opened.is_some_and(|opened| opened.count() == 3 && opened.ends == [1, 2]))
    };
    fuzz(8, 30_000, 8, &plain, |text| run(text, 0, text.len() as u32));
    // A frame may say that it holds more than its bytes: no more is taken than the run itself claims.
    let packed = zstd::bulk::compress(&plain, 1).unwrap();
    let length = plain.len() as u32;
    fuzz(9, 20_000, 40, &packed, |text| run(text, 2, length));
    let (sound, memory) = taken(|| run(&packed, 2, u32::MAX));
    assert!(!sound && memory < 4096, "{memory}");
    // A frame of 17 bytes that says, as its run does, that it holds 2 GiB.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    bomb.extend((2u64 << 30).to_le_bytes());
    bomb.extend([3, 0, 0, 0]);
    let (sound, memory) = taken(|| run(&bomb, 2, 2 << 30));
    assert!(!sound && memory < 4096, "{memory}");
}

#[test]
fn replaying_and_opening_spoilt_groups_never_panics() {
    let (header, bytes, log) = segment();
    let good = &bytes[SEGMENT_HEADER..];
    let replay = |data: &[u8]| {
        let log = fresh();
        let segment = Segment::active(header, Arc::new(Bytes(data.to_vec())));
        log.enter(&segment).unwrap();
        log.replay(&segment, SEGMENT_HEADER as u64, data, 4, &mut keys);
        log.root() == self::segment_root()
    };
    assert_eq!(log.root(), segment_root());
    fuzz(10, 400, 60, good, replay);
    // With the header's check made right again, what is behind it has to notice.
    let place = SEGMENT_HEADER as u64;
    let expected = Expected { number: 1, position: 0, previous: header.chain(), timestamp: 0 };
    fuzz(11, 3_000, 40, &good[..4096], |data| {
        let mut data = data.to_vec();
        if data.len() >= 104 {
            let right = check(&header.salt, &data[..96], place);
            put(&mut data, 96, right);
        }
        GroupHeader::decode(&data, &header.salt, place)
            .and_then(|group| open(&database(), group, &expected, &header.salt, place, &data).map(drop))
            .is_ok()
    });
}

fn segment_root() -> (u64, Hash) {
    thread_local! {
        static ROOT: (u64, Hash) = segment().2.root();
    }
    ROOT.with(|root| *root)
}

#[test]
fn a_closed_segment_of_any_bytes_is_read_without_a_panic() {
    let (header, bytes, log) = segment();
    let records = log.durable();
    fuzz(12, 500, 400, &bytes, |bytes| {
        let log = fresh();
        log.add_stream(&declaration().encode(), None).unwrap();
        let locked = Declaration { stream: 2, encrypted: true, name: "locked".into(), ..declaration() };
        log.add_stream(&locked.encode(), Some(&[6; 32])).unwrap();
        log.attach(Arc::new(Segment::closed(header, Arc::new(Bytes(bytes.to_vec())), None, [3; 32])));
        let read = |position| log.run_at(position, &mut Window::default(), 0).is_ok();
        (0..records).filter(|&position| read(position)).count() as u64 == records
    });
}

#[test]
fn derived_files_of_any_bytes_are_refused_or_sound() {
    let (header, bytes, log) = segment();
    let end = bytes.len() as u64;
    let made_again = Segment::resumed(header, Arc::new(Bytes(bytes.clone())), end).unwrap();
    let kimberlite_core::log::Index::Active(index) = &*made_again.index() else { panic!("it is active") };
    fuzz(13, 20_000, 4, &index.encode(), |bytes| ClosedIndex::decode(bytes, &header).is_ok());
    let piece = log.take_producers(3, 0).0;
    let last = *piece.last_chunk().unwrap();
    fuzz(17, 20_000, 40, &piece, |bytes| fresh().load_producers(bytes, &last));
    fuzz(14, 20_000, 40, &piece[8..piece.len() - 32], |bytes| {
        Producers::load(bytes, Limits::default()).is_ok_and(|table| table.len() == 2)
    });
    let snapshot = log.snapshot(0, bytes.len() as u64, &header.salt, 0);
    let body = &snapshot[..snapshot.len() - 32];
    let restore = |bytes: &[u8], mac: [u8; 32]| {
        let log = fresh();
        let bytes = [bytes, &mac].concat();
        log.resume(&bytes).is_some() && log.restore(&bytes, &mut keys).is_ok()
    };
    // Nobody without the receipt key makes one that is read at all.
    fuzz(15, 3_000, 40, body, |bytes| restore(bytes, snapshot[snapshot.len() - 32..].try_into().unwrap()));
    let mut random = Random(16);
    for _ in 0..3_000 {
        let bytes = random.spoil(body);
        let (_, memory) = taken(|| restore(&bytes, derived_mac(&[3; 32], &bytes)));
        assert!(memory <= 40 * bytes.len() + (1 << 16), "{memory} bytes for {}", bytes.len());
    }
}
