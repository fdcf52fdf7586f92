//! One kind of work, so many times over: `work KIND TIMES` for whoever counts instructions, `work KIND SECONDSs` for how
//! many nanoseconds it takes, in the mean and at the 99th percentile. `work` alone lists the kinds whose instructions can be
//! counted.
use std::env;
use std::hint::black_box;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kimberlite_core::format::SEGMENT_HEADER;
use kimberlite_core::group::{Database, OVERHEAD, Placed, Sealer, Stream, bound};
use kimberlite_core::histogram::Recorder;
use kimberlite_core::keys::{Entropy, GroupKey, Xaes};
use kimberlite_core::log::{Log, Part, Receipt, Secrets, Segment, Source, Window};
use kimberlite_core::record::{Batch, Record};
use kimberlite_core::sha256::{self, Job, Kernel, START};
use kimberlite_core::system::Declaration;
use kimberlite_core::wire::append::{self, Append};
use kimberlite_core::wire::receipts::{self, Ending, Place};
use kimberlite_core::wire::records::Runs;

/// Records of a batch, and bytes of each.
const BATCH: usize = 100;
const SIZE: usize = 256;
const QUANTUM: usize = 4096;

type Work = Box<dyn FnMut()>;
type Kind = (&'static str, fn() -> Work);

/// What each does once is a batch of records, unless it says otherwise.
const KINDS: [Kind; 10] = [
    ("encode", encode),
    ("decode", decode),
    ("seal", || seal(false)),
    ("seal encrypted", || seal(true)),
    ("hash portable", hash),
    ("append", || appends(BATCH)),
    ("append one", || appends(1)),
    ("answer 64", answer),
    ("read", read),
    ("record a time", record),
];

/// What depends on what the processor has for it, which an instruction counter hides.
const HARDWARE: [Kind; 6] = [
    ("sha256 leaves", leaves),
    ("sha256 chain 1 KiB", chain),
    ("sha256 64 x 1 KiB", many),
    ("blake3 1 KiB", || blake(1 << 10)),
    ("blake3 1 MiB", || blake(1 << 20)),
    ("aes 1 KiB", encrypt),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [name, much] = &arguments[..] else {
        KINDS.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::from(if arguments.is_empty() { 0 } else { 64 });
    };
    let Some((_, make)) = KINDS.iter().chain(&HARDWARE).find(|kind| kind.0 == name) else { return ExitCode::from(64) };
    let mut work = make();
    match much.strip_suffix('s') {
        Some(seconds) => timed(&mut work, Duration::from_secs_f64(seconds.parse().expect("seconds"))),
        None => (0..much.parse().expect("a number")).for_each(|_| work()),
    }
    ExitCode::SUCCESS
}

fn timed(work: &mut Work, whole: Duration) {
    let mut times = Vec::new();
    let begun = Instant::now();
    let mut last = begun;
    while last.duration_since(begun) < whole {
        work();
        let now = Instant::now();
        times.push(now.duration_since(last).as_nanos() as u64);
        last = now;
    }
    let mean = times.iter().sum::<u64>() / times.len() as u64;
    times.sort_unstable();
    println!("{mean} {}", times[times.len() * 99 / 100]);
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

fn encode() -> Work {
    let payloads: Vec<_> = (0..BATCH).map(payload).collect();
    Box::new(move || {
        let mut batch = Batch::default();
        payloads.iter().for_each(|payload| batch.push(&plain(payload)));
        black_box(&batch);
    })
}

fn decode() -> Work {
    let mut message = Vec::new();
    append::put_one(&mut message, ("stream", &batch(BATCH), None), Some((&[7; 16], 1, None)), Some("group"));
    Box::new(move || {
        black_box(Append::to_one(black_box(&message)).expect("it is an append"));
    })
}

fn database(tagged: bool) -> Database {
    let group_key = tagged.then(|| GroupKey::new(&[9; 32]));
    Database { id: [1; 16], identity: [2; 32], quantum: QUANTUM, tagged, group_key }
}

fn seal(encrypted: bool) -> Work {
    let (database, batch) = (database(encrypted), Arc::new(batch(BATCH)));
    let stream = Arc::new(Stream::new(1, [4; 32], encrypted, encrypted.then_some(&[7; 32])));
    let entropy = Entropy::seeded(b"work");
    let mut sealer =
        Sealer { group: 1, position: 0, chain: [2; 32], timestamp: 0, incarnation: 0, level: None, entropy };
    let mut out = vec![0; OVERHEAD + bound(&batch, QUANTUM)];
    let mut offset = 0;
    Box::new(move || {
        let placed = [Placed { stream: stream.clone(), offset, batch: batch.clone() }];
        black_box(sealer.seal(&database, &placed, &[5; 32], 4096, 0, offset, 0, &mut out));
        offset += BATCH as u64;
    })
}

fn hash() -> Work {
    let entries: Vec<[u8; 54]> = (0..BATCH).map(|i| [i as u8; 54]).collect();
    let mut out = vec![[0; 32]; BATCH];
    Box::new(move || {
        Kernel::PORTABLE.leaves(black_box(&entries), &mut out);
        black_box(&out);
    })
}

/// Of a batch's records, and the nodes above them.
fn leaves() -> Work {
    let entries: Vec<[u8; 54]> = (0..BATCH).map(|i| [i as u8; 54]).collect();
    let (mut out, mut above) = (vec![[0; 32]; BATCH], vec![[0; 32]; BATCH / 2]);
    Box::new(move || {
        sha256::leaves(black_box(&entries), &mut out);
        sha256::nodes(&out, &mut above);
        black_box(&above);
    })
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
        let part = Part { stream: self.stream, batch: Arc::new(batch.clone()), expect: None, gap: None };
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

fn appends(records: usize) -> Work {
    let (mut log, batch) = (Appending::new(1 << 20), batch(records));
    Box::new(move || log.append(&batch, false))
}

fn answer() -> Work {
    let ending = Ending {
        timestamp: 1 << 60,
        durable: true,
        tree_size: 1 << 30,
        root: [1; 32],
        chain: [2; 32],
        incarnation: 0,
        group: 9,
    };
    Box::new(move || {
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
    })
}

/// From bytes of the file, looked up and checked, to a message.
fn read() -> Work {
    let (mut log, batch) = (Appending::new(0), batch(BATCH));
    (0..8).for_each(|_| log.append(&batch, true));
    let mut i = 0;
    Box::new(move || {
        // Behind the declaration.
        let found = log.log.get(1 + (i * BATCH % (8 * BATCH)) as u64, &mut Window::default(), 0);
        let found = found.unwrap_or_else(|_| panic!("it was appended"));
        let mut runs = Runs::default();
        let opened = &found.run.opened;
        runs.push("stream", (0, 0), found.run.timestamp, (0..opened.count()).map(|i| opened.decoded(i)));
        black_box(runs.message(1));
        i += 1;
    })
}

fn record() -> Work {
    let recorder = Recorder::default();
    let mut time = 1000;
    Box::new(move || {
        recorder.record(black_box(time));
        time += 1;
    })
}

/// Each hash is of the one before and a kibibyte.
fn chain() -> Work {
    let (data, mut last) = ([7; 1 << 10], [0; 32]);
    Box::new(move || last = sha256::digest(&[&last, &data]))
}

fn many() -> Work {
    let data: Vec<Vec<u8>> = (0..64).map(|i| vec![i; 1 << 10]).collect();
    let mut out = vec![[0; 32]; data.len()];
    Box::new(move || {
        let jobs: Vec<_> = data.iter().map(|body| Job { state: &START, absorbed: 0, head: &[], body }).collect();
        sha256::many(&jobs, &mut out);
        black_box(&out);
    })
}

fn blake(size: usize) -> Work {
    let data = vec![7; size];
    Box::new(move || {
        black_box(blake3::hash(black_box(&data)));
    })
}

fn encrypt() -> Work {
    let (cipher, mut data, mut nonce, mut number) = (Xaes::new(&[7; 32]), [7; 1 << 10], [0; 24], 0);
    Box::new(move || {
        // Of one key; a nonce is not used twice, even here.
        number += 1;
        nonce[16..].copy_from_slice(&u64::to_le_bytes(number));
        black_box(cipher.seal(&nonce, b"", &mut data));
    })
}
