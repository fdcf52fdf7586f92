//! One kind of work, so many times over: what an instruction counter counts. `work` alone lists the kinds.
use std::env;
use std::hint::black_box;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use kimberlite_core::format::SEGMENT_HEADER;
use kimberlite_core::group::{Database, OVERHEAD, Placed, Sealer, Stream, bound};
use kimberlite_core::histogram::Recorder;
use kimberlite_core::keys::{Entropy, GroupKey};
use kimberlite_core::log::{Log, Part, Receipt, Secrets, Segment, Source, Window};
use kimberlite_core::record::{Batch, Record};
use kimberlite_core::sha256::Kernel;
use kimberlite_core::system::Declaration;
use kimberlite_core::wire::append::{self, Append};
use kimberlite_core::wire::receipts::{self, Ending, Place};
use kimberlite_core::wire::records::Runs;

/// Records of a batch, and bytes of each.
const BATCH: usize = 100;
const SIZE: usize = 256;
const QUANTUM: usize = 4096;

type Work = fn(usize);

/// What each does once is a batch of records, unless it says otherwise.
const KINDS: [(&str, Work); 10] = [
    ("encode", encode),
    ("decode", decode),
    ("seal", |times| seal(times, false)),
    ("seal encrypted", |times| seal(times, true)),
    ("hash portable", hash),
    ("append", |times| appends(times, BATCH)),
    ("append one", |times| appends(times, 1)),
    ("answer 64", answer),
    ("read", read),
    ("record a time", record),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match &arguments[..] {
        [] => KINDS.iter().for_each(|(name, _)| println!("{name}")),
        [name, times] => {
            let Some((_, work)) = KINDS.iter().find(|kind| kind.0 == name) else { return ExitCode::from(64) };
            work(times.parse().expect("a number"));
        }
        _ => return ExitCode::from(64),
    }
    ExitCode::SUCCESS
}

fn payload(i: usize) -> Vec<u8> {
    (0..SIZE).map(|byte| (i * 31 + byte * 7) as u8).collect()
}

fn batch(records: usize) -> Batch {
    let mut batch = Batch::default();
    (0..records).for_each(|i| batch.push(&plain(&payload(i))));
    batch
}

fn plain(payload: &[u8]) -> Record<'_> {
    Record { key: None, headers: b"", event_time: None, payload }
}

fn encode(times: usize) {
    let payloads: Vec<_> = (0..BATCH).map(payload).collect();
    for _ in 0..times {
        let mut batch = Batch::default();
        payloads.iter().for_each(|payload| batch.push(&plain(payload)));
        black_box(&batch);
    }
}

fn decode(times: usize) {
    let mut message = Vec::new();
    append::put_one(&mut message, ("stream", &batch(BATCH), None), Some((&[7; 16], 1, None)), Some("group"));
    for _ in 0..times {
        black_box(Append::to_one(black_box(&message)).expect("it is an append"));
    }
}

fn database(tagged: bool) -> Database {
    let group_key = tagged.then(|| GroupKey::new(&[9; 32]));
    Database { id: [1; 16], identity: [2; 32], quantum: QUANTUM, tagged, group_key }
}

fn seal(times: usize, encrypted: bool) {
    let (database, batch) = (database(encrypted), Arc::new(batch(BATCH)));
    let stream = Arc::new(Stream::new(1, [4; 32], encrypted, encrypted.then_some(&[7; 32])));
    let entropy = Entropy::seeded(b"work");
    let mut sealer =
        Sealer { group: 1, position: 0, chain: [2; 32], timestamp: 0, incarnation: 0, level: None, entropy };
    let mut out = vec![0; OVERHEAD + bound(&batch, QUANTUM)];
    for i in 0..times {
        let offset = (i * BATCH) as u64;
        let placed = [Placed { stream: stream.clone(), offset, batch: batch.clone() }];
        black_box(sealer.seal(&database, &placed, &[5; 32], 4096, 0, i as u64, 0, &mut out));
    }
}

fn hash(times: usize) {
    let entries: Vec<[u8; 54]> = (0..BATCH).map(|i| [i as u8; 54]).collect();
    let mut out = vec![[0; 32]; BATCH];
    for _ in 0..times {
        Kernel::PORTABLE.leaves(black_box(&entries), &mut out);
        black_box(&out);
    }
}

/// A file in memory.
#[derive(Default)]
struct File(Mutex<Vec<u8>>);

impl Source for File {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = self.0.lock().unwrap();
        let end = file.len().min(place as usize + length);
        Ok(file[(place as usize).min(end)..end].to_vec())
    }
}

/// A log that is appended to without a disk.
struct Appending {
    log: Log,
    file: Arc<File>,
    segment: Arc<Segment>,
    stream: u32,
    place: u64,
    group: u64,
}

impl Appending {
    fn new(cache: usize) -> Self {
        let secrets = Secrets { receipt: [3; 32], several: [4; 32] };
        let log = Log::new(database(false), secrets, None, cache, Entropy::seeded(b"work"));
        let header = log.next_segment(0);
        let file = Arc::new(File(Mutex::new(header.encode().to_vec())));
        let segment = Arc::new(Segment::active(header, file.clone()));
        log.attach(segment.clone());
        let declaration =
            Declaration { stream: 1, encrypted: false, random: [1; 16], largest_record: 0, name: "stream".into() };
        let stream = log.add_stream(&declaration.encode(), None).expect("it is the first");
        Self { log, file, segment, stream, place: SEGMENT_HEADER as u64, group: 1 }
    }

    /// From a batch to its receipt's MAC; `kept` in the file, if it is to be read.
    fn append(&mut self, batch: &Batch, kept: bool) {
        let part = Part { stream: self.stream, batch: Arc::new(batch.clone()), expect: None };
        let mut out = vec![0; OVERHEAD + 4096 + bound(batch, QUANTUM)];
        self.log.admit(&[part], None, false, self.group).expect("there is nothing wrong with it");
        let mut sealed = self.log.seal(&self.segment, self.place, self.group - 1, self.group, false, &mut out);
        let (tree_size, root) = self.log.finish(&self.segment, &mut sealed);
        self.log.publish(&sealed);
        if kept {
            self.file.0.lock().unwrap().extend(&out[..sealed.padded]);
        }
        let receipt = Receipt {
            group: sealed.number,
            tree_size,
            root,
            chain: sealed.chain,
            incarnation: 0,
            durable: true,
            stream: self.stream,
            first_offset: 0,
            last_offset: 0,
            first_position: 0,
            last_position: 0,
            timestamp: sealed.timestamp,
        };
        black_box(receipt.mac(&self.log));
        self.place += sealed.padded as u64;
        self.group += 1;
    }
}

fn appends(times: usize, records: usize) {
    let (mut log, batch) = (Appending::new(1 << 20), batch(records));
    (0..times).for_each(|_| log.append(&batch, false));
}

fn answer(times: usize) {
    let ending = Ending {
        timestamp: 1 << 60,
        durable: true,
        tree_size: 1 << 30,
        root: [1; 32],
        chain: [2; 32],
        incarnation: 0,
        group: 9,
    };
    for _ in 0..times {
        let mut out = Vec::new();
        receipts::put_ending(&mut out, &ending, 64);
        for id in 0..64u32 {
            let at = u64::from(id) << 20;
            receipts::put_answer(&mut out, id, 1);
            let place =
                Place { first_offset: at, last_offset: at, first_position: at, last_position: at, mac: [7; 16] };
            receipts::put_place(&mut out, &place);
        }
        black_box(&out);
    }
}

/// From bytes of the file, looked up and checked, to a message.
fn read(times: usize) {
    let (mut log, batch) = (Appending::new(0), batch(BATCH));
    (0..8).for_each(|_| log.append(&batch, true));
    for i in 0..times {
        // Behind the declaration.
        let found = log.log.get(1 + (i * BATCH % (8 * BATCH)) as u64, &mut Window::default(), 0);
        let found = found.unwrap_or_else(|_| panic!("it was appended"));
        let mut runs = Runs::default();
        let opened = &found.run.opened;
        runs.push("stream", (0, 0), found.run.timestamp, (0..opened.count()).map(|i| opened.decoded(i)));
        black_box(runs.message(1));
    }
}

fn record(times: usize) {
    let recorder = Recorder::default();
    for i in 0..times {
        recorder.record(black_box(1000 + i as u64));
    }
    black_box(recorder.sum());
}
