use std::sync::Arc;

use super::*;
use crate::format::{CLOSING, GroupHeader, Hash};
use crate::keys::Entropy;
use crate::record::{Batch, Producer, Record};
use crate::sha256;

const SALT: Hash = [5; 32];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn bytes(&mut self, limit: u64) -> Vec<u8> {
        let kind = self.below(3);
        (0..self.below(limit)).map(|_| if kind == 0 { b'a' } else { self.below(256) as u8 }).collect()
    }
}

fn database(tagged: bool) -> Database {
    let group_key = tagged.then(|| GroupKey::new(&[9; 32]));
    Database { id: [1; 16], identity: [2; 32], quantum: 128, tagged, group_key }
}

fn room(batches: &[(u32, Arc<Batch>)]) -> usize {
    OVERHEAD + batches.iter().map(|(_, batch)| bound(batch, 128)).sum::<usize>()
}

fn streams() -> Vec<Stream> {
    vec![
        Stream::new(0, [2; 32], false, None),
        Stream::new(1, [3; 32], false, None),
        Stream::new(2, [4; 32], true, Some(&[7; 32])),
        Stream::new(3, [6; 32], false, None),
    ]
}

fn sealer(level: Option<i32>) -> Sealer {
    let entropy = Entropy::seeded(b"test");
    Sealer { group: 1, position: 0, chain: [2; 32], timestamp: 0, incarnation: 0, level, entropy }
}

fn batch(random: &mut Random) -> Batch {
    let mut batch = Batch::default();
    let limit = [40, 400, 9000, 100_000][random.below(4) as usize];
    for _ in 0..=random.below(30) {
        let (key, payload) = (random.bytes(20), random.bytes(limit));
        let mut headers = Vec::new();
        (0..random.below(3)).for_each(|_| crate::record::append_header(&mut headers, "name", &key));
        let key = (random.below(2) == 0).then_some(&key[..]);
        let event_time = (random.below(2) == 0).then(|| random.below(1 << 60) as i64 - (1 << 59));
        batch.push(&Record { key, headers: &headers, event_time, payload: &payload });
    }
    if random.below(3) == 0 {
        let producer = Producer { id: random.bytes(200), sequence: random.below(1000), digest: [8; 16] };
        batch.producer = producer.into();
    }
    batch
}

/// A batch and its stream; some have waited, and some of these were told their producer only then.
fn waited(streams: &[Stream], random: &mut Random) -> (u32, Arc<Batch>) {
    let (number, mut batch) = (1 + random.below(3) as u32, batch(random));
    let stream = &streams[number as usize];
    if !stream.encrypted || random.below(3) == 0 {
        return (number, Arc::new(batch));
    }
    let producer = batch.producer.take();
    let batch = Arc::new(batch);
    make_ahead(&Arc::new(stream.clone()), &batch);
    if let Some(producer) = producer {
        batch.producer.set(producer).unwrap();
    }
    (number, batch)
}

/// Each batch behind what its stream has by now.
fn placed(streams: &[Stream], lengths: &mut [u64], batches: &[(u32, Arc<Batch>)]) -> Vec<Placed> {
    let place = |(number, batch): &(u32, Arc<Batch>)| {
        let number = *number as usize;
        let offset = lengths[number];
        lengths[number] += batch.ends.len() as u64;
        Placed { stream: Arc::new(streams[number].clone()), offset, batch: batch.clone() }
    };
    batches.iter().map(place).collect()
}

/// What a group holds, said without the code under test.
fn check_group(
    group: &Group,
    batches: &[(u32, Arc<Batch>)],
    database: &Database,
    streams: &[Stream],
) -> Vec<RunRecords> {
    let mut seen: Vec<RunRecords> = Vec::new();
    for run in &group.runs {
        let opened = open_run(database, &streams[run.header.stream as usize], run).unwrap().unwrap();
        assert!(opened.count() == 1 || opened.size() <= 2 * crate::format::RUN_PLAINTEXT + 40_000);
        let records = (0..opened.count()).map(|i| opened.record(i).to_vec()).collect();
        let starts = opened.producers.iter().map(|(i, p)| (*i, p.clone())).collect();
        seen.push((run.header.stream, records, opened.ends.clone(), starts));
    }
    let flat: Vec<_> = seen.iter().flat_map(|(s, records, ..)| records.iter().map(|r| (*s, r.clone()))).collect();
    let wanted: Vec<_> =
        batches.iter().flat_map(|(s, b)| (0..b.ends.len()).map(|i| (*s, b.record(i).to_vec()))).collect();
    assert_eq!(flat, wanted);
    let ends: usize = seen.iter().map(|(_, _, ends, _)| ends.len()).sum();
    assert_eq!(ends, batches.len());
    let producers: Vec<_> = seen.iter().flat_map(|(.., starts)| starts.iter().map(|(_, p)| p.clone())).collect();
    assert_eq!(producers, batches.iter().filter_map(|(_, b)| b.producer.get().cloned()).collect::<Vec<_>>());
    seen
}

type RunRecords = (u32, Vec<Vec<u8>>, Vec<u32>, Vec<(u32, Producer)>);

fn slow_leaves(group: &Group, database: &Database, streams: &[Stream]) -> Vec<Hash> {
    let mut out = Vec::new();
    for run in &group.runs {
        let stream = &streams[run.header.stream as usize];
        let opened = open_run(database, stream, run).unwrap().unwrap();
        let mut leaves = hash_leaves(&[opened.leaves(stream, group.header.timestamp)]);
        if run.header.encrypted() {
            assert_eq!(leaves, hash_leaves(&[run.stated_leaves(stream, group.header.timestamp)]));
        }
        out.append(&mut leaves);
    }
    out
}

#[test]
fn what_is_sealed_opens_as_it_was() {
    for seed in 1..400 {
        let mut random = Random(seed * 0x9e37_79b9);
        let database = database(random.below(2) == 0);
        let streams = streams();
        let mut lengths = [0; 4];
        let mut sealer = sealer([None, Some(1)][random.below(2) as usize]);
        let mut expected = Expected { number: 1, position: 0, previous: [2; 32], timestamp: 0 };
        let mut place = 4096;
        for _ in 0..random.below(4) {
            let count = random.below(6);
            let batches: Vec<_> = (0..count).map(|_| waited(&streams, &mut random)).collect();
            let mut out = vec![0xee; room(&batches)];
            let durable = expected.number - 1;
            let placed = placed(&streams, &mut lengths, &batches);
            let flags = if batches.is_empty() { CLOSING } else { 0 };
            let mut sealed = sealer.seal(&database, &placed, &SALT, place, durable, random.below(100), flags, &mut out);
            let header = GroupHeader::decode(&out, &SALT, place).unwrap();
            assert_eq!((header.length as usize, header.number), (sealed.length, sealed.number));
            let group = open(&database, header, &expected, &SALT, place, &out[..sealed.padded]).unwrap();
            assert_eq!(group.chain, sealed.chain);
            check_group(&group, &batches, &database, &streams);
            assert_eq!(sealed.leaves(), slow_leaves(&group, &database, &streams));
            expected = Expected {
                number: header.number + 1,
                position: sealer.position,
                previous: sealed.chain,
                timestamp: header.timestamp,
            };
            place += sealed.padded as u64;
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for tagged in [false, true] {
        let database = database(tagged);
        let streams = streams();
        let mut sealer = sealer(Some(1));
        let mut small = Batch::default();
        small.push(&Record { key: Some(b"k"), headers: b"", event_time: Some(3), payload: &[b'p'; 200] });
        let small = Arc::new(small);
        let batches = vec![(1, small.clone()), (2, small.clone()), (3, small)];
        let mut out = vec![0; room(&batches)];
        let sealed = sealer.seal(&database, &placed(&streams, &mut [0; 4], &batches), &SALT, 4096, 0, 7, 0, &mut out);
        out.truncate(sealed.padded);
        let expected = Expected { number: 1, position: 0, previous: [2; 32], timestamp: 0 };
        let opens = |bytes: &[u8], place| {
            let header = GroupHeader::decode(bytes, &SALT, place)?;
            open(&database, header, &expected, &SALT, place, bytes).map(drop)
        };
        assert_eq!(opens(&out, 4096), Ok(()));
        assert!(opens(&out, 8192).is_err());
        for bit in 0..out.len() * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            assert!(opens(&out, 4096).is_err(), "bit {bit} of {}", sealed.length);
            out[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_stream_without_its_key_shows_commitments_and_no_text() {
    let database = database(true);
    let streams = streams();
    let mut random = Random(77);
    let batches = vec![(2, Arc::new(batch(&mut random)))];
    let mut out = vec![0; room(&batches)];
    let mut sealed =
        sealer(None).seal(&database, &placed(&streams, &mut [0; 4], &batches), &SALT, 4096, 0, 7, 0, &mut out);
    let header = GroupHeader::decode(&out, &SALT, 4096).unwrap();
    let expected = Expected { number: 1, position: 0, previous: [2; 32], timestamp: 0 };
    let group = open(&database, header, &expected, &SALT, 4096, &out[..sealed.padded]).unwrap();
    let blind = Stream { keys: None, ..streams[2].clone() };
    let mut stated = Vec::new();
    for run in &group.runs {
        assert!(open_run(&database, &blind, run).unwrap().is_none());
        stated.append(&mut hash_leaves(&[run.stated_leaves(&blind, 7)]));
    }
    assert_eq!(stated, sealed.leaves());
}

#[test]
fn a_salt_is_the_nth_of_its_run_whoever_asks() {
    let streams = streams();
    let mut plain = Batch::default();
    plain.push(&Record { key: None, headers: b"", event_time: None, payload: b"x" });
    let salt = crate::salts::salts;
    let mut salts = [[0; 32]; 3];
    salt(&[1; 32], 0, &mut salts);
    let prefix = [&domain("kimberlite/record/1")[..], &streams[1].declaration].concat();
    let expected = sha256::digest(&[&prefix, &salts[0], plain.record(0)]);
    let got = super::leaf::commitments(&salts[..1], std::iter::once((&streams[1], plain.record(0))));
    assert_eq!(got, vec![expected]);
}

#[test]
fn what_does_not_compress_spoils_nothing_for_what_does() {
    let (database, streams) = (database(false), streams());
    let mut random = Random(99);
    let noise: Vec<u8> = (0..300).map(|_| random.below(256) as u8).collect();
    let one = |payload: &[u8]| {
        let mut batch = Batch::default();
        batch.push(&Record { key: None, headers: b"", event_time: None, payload });
        Arc::new(batch)
    };
    let batches = vec![(1, one(&noise)), (3, one(&[b'a'; 9000])), (2, one(&noise)), (2, one(&[b'a'; 9000]))];
    let mut out = vec![0; room(&batches)];
    let sealed =
        sealer(Some(1)).seal(&database, &placed(&streams, &mut [0; 4], &batches), &SALT, 4096, 0, 7, 0, &mut out);
    assert!(sealed.length < 2500, "{} bytes", sealed.length);
}

#[test]
fn a_frame_that_is_not_shorter_than_its_text_is_refused() {
    let mut plain = [1u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
    plain.push(1);
    Record { key: None, headers: b"", event_time: None, payload: b"tiny" }.append_to(&mut plain);
    // One raw block, the last, in a frame that states its length in a byte.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, plain.len() as u8];
    frame.extend(&((plain.len() << 3 | 1) as u32).to_le_bytes()[..3]);
    frame.extend(&plain);
    assert_eq!(zstd::bulk::decompress(&frame, plain.len()).unwrap(), plain);
    let open = |flags, text: &[u8]| {
        let header = crate::format::RunHeader {
            length: (crate::format::RUN_HEADER + text.len()) as u32,
            stream: 1,
            flags,
            records: 1,
            first_offset: 0,
            first_position: 0,
            plain: plain.len() as u32,
            key_id: [0; 16],
            random: [1; 32],
        };
        let mut bytes = vec![0; header.length as usize];
        header.encode(&mut bytes);
        bytes[crate::format::RUN_HEADER..].copy_from_slice(text);
        open_run(&database(false), &streams()[1], &Run { header, place: 0, bytes: &bytes }).map(drop)
    };
    assert_eq!(open(0, &plain), Ok(()));
    let longer = crate::format::Damage("a run is compressed that is not shorter for it");
    assert_eq!(open(crate::format::COMPRESSED, &frame), Err(longer));
}

#[test]
fn what_was_made_ahead_is_used_once_and_nothing_is_made_after_sealing() {
    let (database, streams) = (database(true), streams());
    let stream = Arc::new(streams[2].clone());
    let mut random = Random(7);
    let mut nonces = Vec::new();
    let batch = Arc::new(batch(&mut random));
    make_ahead(&stream, &batch);
    let copy = Arc::new(Batch::clone(&batch));
    for batch in [&batch, &batch, &copy] {
        let batches = [(2, batch.clone())];
        let mut out = vec![0; room(&batches)];
        let placed = placed(&streams, &mut [0; 4], &batches);
        let mut sealer = sealer(None);
        sealer.entropy = Entropy::kernel();
        let sealed = sealer.seal(&database, &placed, &SALT, 4096, 0, 1, 0, &mut out);
        let header = GroupHeader::decode(&out, &SALT, 4096).unwrap();
        let expected = Expected { number: 1, position: 0, previous: [2; 32], timestamp: 0 };
        let group = open(&database, header, &expected, &SALT, 4096, &out[..sealed.padded]).unwrap();
        nonces.extend(group.runs.iter().map(|run| *run.header.nonce()));
        make_ahead(&stream, batch);
    }
    let count = nonces.len();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), count);
}
