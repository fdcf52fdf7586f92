use sha2::Digest;

use super::{Job, Kernel, START, choose, digest, kernel, leaves, midstate, nodes};

const PREFIX: [u8; 64] = [7; 64];

/// The next of a sequence that is the same in every run (xorshift64).
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    (0..len).map(|_| next(&mut seed) as u8).collect()
}

fn reference(parts: &[&[u8]]) -> [u8; 32] {
    sha2::Sha256::digest(parts.concat()).into()
}

fn hex(text: &str) -> [u8; 32] {
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..][..2], 16).unwrap())
}

#[test]
fn every_length_to_300_in_every_kernel() {
    let bytes = noise(300, 1);
    for kernel in Kernel::here() {
        let jobs: Vec<_> =
            (0..=300).map(|len| Job { state: &START, absorbed: 0, head: &[], body: &bytes[..len] }).collect();
        let mut out = vec![[0; 32]; jobs.len()];
        kernel.many(&jobs, &mut out);
        for (len, hash) in out.iter().enumerate() {
            assert_eq!(*hash, reference(&[&bytes[..len]]), "{} at {len}", kernel.name);
        }
    }
}

#[test]
fn every_split_between_head_and_body() {
    let bytes = noise(260, 2);
    let state = midstate(&PREFIX);
    for kernel in Kernel::here() {
        for len in [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 128, 183, 184, 260] {
            let jobs: Vec<_> = (0..=len)
                .map(|at| (&bytes[..at], &bytes[at..len]))
                .map(|(head, body)| Job { state: &state, absorbed: 64, head, body })
                .collect();
            let mut out = vec![[0; 32]; jobs.len()];
            kernel.many(&jobs, &mut out);
            let right = reference(&[&PREFIX, &bytes[..len]]);
            assert!(out.iter().all(|hash| *hash == right), "{} at {len}", kernel.name);
        }
    }
}

#[test]
fn batches_of_any_size_and_mixed_lengths() {
    let bytes = noise(9000, 3);
    let state = midstate(&PREFIX);
    let mut seed = 4;
    for kernel in Kernel::here() {
        for size in (0..40).chain([100, 257]) {
            let jobs: Vec<_> = (0..size)
                .map(|_| {
                    let (from, long) = (next(&mut seed) % 4000, next(&mut seed).is_multiple_of(8));
                    let len = next(&mut seed) % if long { 5000 } else { 400 };
                    let body = &bytes[from as usize..][..len as usize];
                    Job { state: &state, absorbed: 64, head: &bytes[..32], body }
                })
                .collect();
            let mut out = vec![[0; 32]; size];
            kernel.many(&jobs, &mut out);
            for (job, hash) in jobs.iter().zip(out) {
                assert_eq!(hash, reference(&[&PREFIX, job.head, job.body]), "{}", kernel.name);
            }
        }
    }
}

#[test]
fn leaves_and_nodes_in_every_kernel_and_count() {
    let bytes = noise(54 * 64 * 40, 5);
    let entries = &bytes.as_chunks::<54>().0[..40];
    // Every last byte a node's second block can hold.
    let mut hashes = bytes.as_chunks::<32>().0[..600].to_vec();
    for (pair, last) in hashes.chunks_exact_mut(2).zip(0..) {
        pair[1][31] = last as u8;
    }
    for kernel in Kernel::here() {
        for count in 0..entries.len() {
            let mut out = vec![[0; 32]; count];
            kernel.leaves(&entries[..count], &mut out);
            for (entry, hash) in entries.iter().zip(out) {
                assert_eq!(hash, reference(&[&[0], entry]), "{}", kernel.name);
            }
        }
        for count in (0..40).chain([300]) {
            let mut out = vec![[0; 32]; count];
            kernel.nodes(&hashes[..2 * count], &mut out);
            for (pair, hash) in hashes.chunks_exact(2).zip(out) {
                assert_eq!(hash, reference(&[&[1], &pair[0], &pair[1]]), "{}", kernel.name);
            }
        }
    }
}

#[test]
fn a_digest_of_no_or_many_parts() {
    let empty = hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(digest(&[]), empty);
    assert_eq!(digest(&[b""]), empty);
    let abc = hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    for parts in [&[&b"abc"[..]][..], &[b"a", b"bc"], &[b"", b"a", b"b", b"", b"c"]] {
        assert_eq!(digest(parts), abc);
    }
}

#[test]
fn the_rfc_6962_tree_of_two_known_leaves() {
    let entries = [[b'0'; 54], [b'1'; 54]];
    let mut hashes = [[0; 32]; 2];
    leaves(&entries, &mut hashes);
    let mut root = [[0; 32]];
    nodes(&hashes, &mut root);
    assert_eq!(hashes[0], hex("2cbe652c938e4fcbdfc3dd38b9bd2b8db589aa9f4ca551170ba7083441fbdd84"));
    assert_eq!(root[0], hex("3790a8043246607aea4e302de3ee9573943b624fb6bbf089f0a452c413318e66"));
}

#[test]
fn the_rfc_6962_node_of_empty_leaves() {
    let leaf = digest(&[&[0]]);
    assert_eq!(leaf, hex("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"));
    let other = digest(&[&[0], &[0]]);
    assert_eq!(other, hex("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"));
    let mut root = [[0; 32]];
    nodes(&[leaf, other], &mut root);
    let known = hex("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125");
    assert_eq!(root[0], known);
}

#[test]
fn a_kernel_that_answers_wrong_is_refused_and_named() {
    let mut wrong = Kernel::PORTABLE;
    wrong.name = "wrong";
    let choice = choose(vec![wrong, Kernel::PORTABLE], |kernel| kernel.name != "wrong");
    assert_eq!(choice.kernel.name, "portable");
    assert_eq!(choice.said, "portable (refused, wrong answers: wrong)");
}

#[test]
fn the_kernel_in_use_is_the_first_of_those_here() {
    assert_eq!(kernel(), Kernel::here()[0].name);
}
