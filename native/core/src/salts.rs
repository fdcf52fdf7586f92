//! The salts of a run's records: keyed BLAKE3 in counter mode, so that any one can be made, and
//! given away, without the others.

const DOMAIN: [u8; 32] = crate::keys::domain("kimberlite/salts/1");

/// Salts `first`, `first + 1`, ... under `seed`: the `i`-th 32 bytes of its output stream.
pub fn salts(seed: &[u8; 32], first: u64, out: &mut [[u8; 32]]) {
    let mut stream = blake3::Hasher::new_keyed(seed).update(&DOMAIN).finalize_xof();
    stream.set_position(first.checked_mul(32).expect("a salt's index is a record's in its run"));
    stream.fill(out.as_flattened_mut());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u8; 32] = *b"whats the Elvish word for friend";

    /// The slow way: each salt alone, read byte by byte from the start of the stream.
    fn one(index: usize) -> [u8; 32] {
        let mut stream = blake3::Hasher::new_keyed(&SEED).update(&DOMAIN).finalize_xof();
        let mut byte = [0];
        let mut salt = [0; 32];
        for at in 0..(index + 1) * 32 {
            stream.fill(&mut byte);
            salt[at % 32] = byte[0];
        }
        salt
    }

    #[test]
    fn any_range_is_the_same_as_each_alone() {
        let alone: Vec<_> = (0..70).map(one).collect();
        for first in 0..20 {
            for count in [0, 1, 2, 3, 15, 16, 17, 50] {
                let mut out = vec![[0; 32]; count];
                salts(&SEED, first as u64, &mut out);
                assert_eq!(out, alone[first..][..count], "{count} from {first}");
            }
        }
    }

    #[test]
    fn the_first_salt_is_the_keyed_hash_of_the_domain() {
        let mut out = [[0; 32]];
        salts(&SEED, 0, &mut out);
        assert_eq!(out[0], *blake3::keyed_hash(&SEED, &DOMAIN).as_bytes());
    }

    #[test]
    fn another_seed_gives_other_salts() {
        let [mut a, mut b] = [[[0; 32]; 4]; 2];
        salts(&SEED, 0, &mut a);
        salts(&[0; 32], 0, &mut b);
        assert!(a.iter().all(|salt| !b.contains(salt)));
    }

    #[test]
    #[should_panic(expected = "index")]
    fn an_index_past_the_stream_is_a_bug() {
        salts(&SEED, u64::MAX / 16, &mut [[0; 32]]);
    }
}
