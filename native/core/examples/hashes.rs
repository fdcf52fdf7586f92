//! Nanoseconds per commitment, leaf, node and salt, one core: medians of interleaved rounds.
//! `cargo run --release --example hashes [rounds] [records per batch]`

use std::hint::black_box;
use std::time::Instant;

use kimberlite_core::salts::salts;
use kimberlite_core::sha256::{Job, Kernel, State, kernel, midstate};
use sha2::Digest;

const PREFIX: [u8; 64] = [7; 64];
/// A 256-byte value with its stream, offset, time and key.
const RECORD: usize = 277;

struct Inputs {
    state: State,
    salts: Vec<[u8; 32]>,
    records: Vec<[u8; RECORD]>,
    entries: Vec<[u8; 54]>,
    hashes: Vec<[u8; 32]>,
}

type Work = Box<dyn Fn(&Inputs, &mut [[u8; 32]])>;

fn aws_lc(parts: &[&[u8]], midway: Option<&aws_lc_rs::digest::Context>) -> [u8; 32] {
    let fresh = || aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut context = midway.map_or_else(fresh, Clone::clone);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().expect("32 bytes")
}

fn crate_sha2(parts: &[&[u8]], midway: Option<&sha2::Sha256>) -> [u8; 32] {
    let mut hasher = midway.cloned().unwrap_or_default();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

/// One message at a time through `hash`; its `M` is the state after the prefix.
fn singly<M: 'static>(midway: M, hash: fn(&[&[u8]], Option<&M>) -> [u8; 32]) -> [Work; 3] {
    let commitments = move |inputs: &Inputs, out: &mut [[u8; 32]]| {
        for ((salt, record), out) in inputs.salts.iter().zip(&inputs.records).zip(out) {
            *out = hash(&[salt, record], Some(&midway));
        }
    };
    let leaves = move |inputs: &Inputs, out: &mut [[u8; 32]]| {
        for (entry, out) in inputs.entries.iter().zip(out) {
            *out = hash(&[&[0], entry], None);
        }
    };
    let nodes = move |inputs: &Inputs, out: &mut [[u8; 32]]| {
        for (pair, out) in inputs.hashes.chunks_exact(2).zip(out) {
            *out = hash(&[&[1], &pair[0], &pair[1]], None);
        }
    };
    [Box::new(commitments), Box::new(leaves), Box::new(nodes)]
}

fn together(kernel: Kernel) -> [Work; 3] {
    let commitments = move |inputs: &Inputs, out: &mut [[u8; 32]]| {
        let jobs: Vec<_> = inputs
            .salts
            .iter()
            .zip(&inputs.records)
            .map(|(head, body)| Job { state: &inputs.state, absorbed: 64, head, body })
            .collect();
        kernel.many(&jobs, out);
    };
    [
        Box::new(commitments),
        Box::new(move |inputs, out| kernel.leaves(&inputs.entries, out)),
        Box::new(move |inputs, out| kernel.nodes(&inputs.hashes, out)),
    ]
}

fn noise<const N: usize>(count: usize) -> Vec<[u8; N]> {
    let byte = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8;
    (0..count).map(|row| std::array::from_fn(|i| byte(row * N + i))).collect()
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse().expect("a number"));
    let rounds: usize = numbers.next().unwrap_or(51);
    let count: usize = numbers.next().unwrap_or(1000);
    let inputs = Inputs {
        state: midstate(&PREFIX),
        salts: noise(count),
        records: noise(count),
        entries: noise(count),
        hashes: noise(2 * count),
    };
    let mut aws = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    aws.update(&PREFIX);
    let sha2 = sha2::Sha256::new_with_prefix(PREFIX);
    let mut rows = vec![("aws-lc-rs", singly(aws, aws_lc)), ("sha2", singly(sha2, crate_sha2))];
    rows.extend(Kernel::here().into_iter().map(|kernel| (kernel.name, together(kernel))));
    let fill: Work = Box::new(|inputs, out| salts(&inputs.salts[0], 0, out));
    let medians = measure(&rows, &fill, &inputs, rounds);
    println!("in use: {}; {count} records a batch, ns each", kernel());
    println!("{:12} {:>10} {:>6} {:>6}", "", "commitment", "leaf", "node");
    for ((name, _), ns) in rows.iter().zip(medians.chunks_exact(3)) {
        println!("{name:12} {:10.1} {:6.1} {:6.1}", ns[0], ns[1], ns[2]);
    }
    println!("salt {:.1}", medians[rows.len() * 3]);
}

/// Each work's median; one of each in a round, so that noise falls on all alike.
fn measure(rows: &[(&str, [Work; 3])], salt: &Work, inputs: &Inputs, rounds: usize) -> Vec<f64> {
    let works: Vec<&Work> = rows.iter().flat_map(|row| &row.1).chain([salt]).collect();
    let mut times = vec![Vec::new(); works.len()];
    let mut out = vec![[0; 32]; inputs.entries.len()];
    for _ in 0..rounds {
        for (work, times) in works.iter().zip(&mut times) {
            let start = Instant::now();
            work(black_box(inputs), black_box(&mut out));
            times.push(start.elapsed().as_nanos() as f64 / inputs.entries.len() as f64);
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}
