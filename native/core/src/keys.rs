//! Keys: derivation, XAES-256-GCM, tags. `docs/format.md`, "Keys and the vault".

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac};

pub type Key = [u8; 32];
pub const TAG: usize = 16;
pub const NONCE: usize = 24;

/// A word that opens every hash and every sealed thing.
pub const fn domain(word: &str) -> [u8; 32] {
    let bytes = word.as_bytes();
    assert!(bytes.len() <= 32);
    let mut out = [0; 32];
    let mut i = 0;
    while i < bytes.len() {
        out[i] = bytes[i];
        i += 1;
    }
    out
}

/// HKDF-SHA-256 with an empty salt and 32 bytes out.
pub fn derive(key: &[u8], info: &[&[u8]]) -> Key {
    let mut out = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
        .extract(key)
        .expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out))
        .expect("32 bytes is a length HKDF has");
    out
}

pub fn key_id(key: &Key) -> [u8; 16] {
    derive(key, &[b"kimberlite/key id/1"])[..16].try_into().unwrap()
}

/// AES-256-GCM with a subkey for every 24-byte nonce, so that nonces may be random.
#[derive(Clone)]
pub struct Xaes {
    cipher: aes::Aes256,
    /// The CMAC subkey K1.
    k1: [u8; 16],
}

/// The text does not belong to this key, nonce and associated data.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsealable;

impl Xaes {
    pub fn new(key: &Key) -> Self {
        let cipher = aes::Aes256::new(&Array::from(*key));
        let mut l = Array::from([0u8; 16]);
        cipher.encrypt_block(&mut l);
        let l = u128::from_be_bytes(l.into());
        let k1 = (l << 1) ^ if l >> 127 == 1 { 0x87 } else { 0 };
        Self { cipher, k1: k1.to_be_bytes() }
    }

    fn subkey(&self, nonce: &[u8; NONCE]) -> LessSafeKey {
        let mut derived = [0; 32];
        for half in 0..2 {
            let mut block = [0u8; 16];
            block[1] = half as u8 + 1;
            block[2] = b'X';
            block[4..].copy_from_slice(&nonce[..12]);
            for (b, k) in block.iter_mut().zip(&self.k1) {
                *b ^= k;
            }
            let mut block = Array::from(block);
            self.cipher.encrypt_block(&mut block);
            derived[half * 16..][..16].copy_from_slice(&block);
        }
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &derived).expect("32 bytes are an AES-256 key"))
    }

    /// Encrypts in place; the tag is returned, to stand behind the text.
    pub fn seal(&self, nonce: &[u8; NONCE], aad: &[u8], text: &mut [u8]) -> [u8; TAG] {
        let tail = Nonce::assume_unique_for_key(nonce[12..].try_into().unwrap());
        let tag = self
            .subkey(nonce)
            .seal_in_place_separate_tag(tail, Aad::from(aad), text)
            .expect("a run is far below the limit of AES-GCM");
        tag.as_ref().try_into().unwrap()
    }

    /// Decrypts text and tag in place; the plaintext is everything but the last 16 bytes.
    pub fn open<'a>(&self, nonce: &[u8; NONCE], aad: &[u8], text: &'a mut [u8]) -> Result<&'a mut [u8], Unsealable> {
        let tail = Nonce::assume_unique_for_key(nonce[12..].try_into().unwrap());
        self.subkey(nonce).open_in_place(tail, Aad::from(aad), text).map_err(|_| Unsealable)
    }
}

/// What is derived from a stream's data key. The data key itself is not kept.
#[derive(Clone)]
pub struct StreamKeys {
    pub id: [u8; 16],
    pub seal: Xaes,
    pub salt: Key,
    pub index: Key,
}

impl StreamKeys {
    pub fn new(data_key: &Key) -> Self {
        Self {
            id: key_id(data_key),
            seal: Xaes::new(&derive(data_key, &[b"kimberlite/seal key/1"])),
            salt: derive(data_key, &[b"kimberlite/salt key/1"]),
            index: derive(data_key, &[b"kimberlite/index key/1"]),
        }
    }
}

/// The key of the tags of groups.
#[derive(Clone)]
pub struct GroupKey(hmac::Key);

impl GroupKey {
    pub fn new(key: &Key) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    pub fn tag(&self, chain: &[u8; 32]) -> [u8; TAG] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&domain("kimberlite/tag/1"));
        context.update(chain);
        context.sign().as_ref()[..TAG].try_into().unwrap()
    }
}

const RANDOM: &str = "the kernel always has random bytes";

/// Where random bytes come from: the kernel, or a seed in tests that compare bytes.
pub enum Entropy {
    /// With what was drawn ahead, each byte of which is given out once.
    Kernel(Vec<u8>),
    Seeded(Box<blake3::OutputReader>),
}

impl Entropy {
    pub fn kernel() -> Self {
        Self::Kernel(Vec::new())
    }

    pub fn seeded(seed: &[u8]) -> Self {
        Self::Seeded(Box::new(blake3::Hasher::new().update(seed).finalize_xof()))
    }

    pub fn is_seeded(&self) -> bool {
        matches!(self, Self::Seeded(_))
    }

    /// Asks the kernel once for all that `fill` is about to give; what is left of it is thrown away by the next call.
    pub fn draw(&mut self, count: usize) {
        if let Self::Kernel(ahead) = self {
            ahead.clear();
            ahead.resize(count, 0);
            getrandom::fill(ahead).expect(RANDOM);
        }
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        match self {
            Self::Kernel(ahead) => match ahead.len().checked_sub(out.len()) {
                Some(rest) => {
                    out.copy_from_slice(&ahead[rest..]);
                    ahead.truncate(rest);
                }
                None => getrandom::fill(out).expect(RANDOM),
            },
            Self::Seeded(reader) => reader.fill(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn xaes_gives_the_published_vectors() {
        let nonce: [u8; 24] = *b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let mut text = *b"XAES-256-GCM";
        let tag = Xaes::new(&[1; 32]).seal(&nonce, b"", &mut text);
        assert_eq!(hex(&text) + &hex(&tag), "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
        let mut text = *b"XAES-256-GCM";
        let tag = Xaes::new(&[3; 32]).seal(&nonce, b"c2sp.org/XAES-256-GCM", &mut text);
        assert_eq!(hex(&text) + &hex(&tag), "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d");
    }

    #[test]
    fn random_bytes_are_given_out_once_whether_they_were_drawn_ahead_or_not() {
        let mut entropy = Entropy::kernel();
        let mut seen = std::collections::HashSet::new();
        for drawn in [0, 0, 64, 100, 32, 0] {
            entropy.draw(drawn);
            for _ in 0..5 {
                let (mut seed, mut nonce) = ([0; 32], [0; 24]);
                entropy.fill(&mut seed);
                entropy.fill(&mut nonce);
                assert!(seen.insert(seed[..24].to_vec()) && seen.insert(nonce.to_vec()));
            }
        }
    }

    #[test]
    fn a_changed_text_nonce_or_context_does_not_open() {
        let (x, nonce) = (Xaes::new(&[7; 32]), [9; 24]);
        let mut text = b"pay 100 to anne".to_vec();
        let tag = x.seal(&nonce, b"context", &mut text);
        text.extend(tag);
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(x.open(&nonce, b"context", &mut bad), Err(Unsealable));
        }
        assert_eq!(x.open(&nonce, b"contexu", &mut text.clone()), Err(Unsealable));
        assert_eq!(x.open(&[8; 24], b"context", &mut text.clone()), Err(Unsealable));
        assert_eq!(x.open(&nonce, b"context", &mut text).unwrap(), b"pay 100 to anne");
    }
}
