//! The frames of an export: `docs/format.md` draws them.
use crate::format::{Hash, put, u32_at};
use crate::keys::domain;

/// In front of a frame's text.
pub const HEAD: usize = 44;
/// Of a frame's body, and of its text.
pub const LARGEST: usize = 64 << 20;
const LEVEL: i32 = 3;

/// A frame behind the one with the hash `previous`.
pub fn seal(kind: u8, body: &[u8], previous: &Hash) -> Vec<u8> {
    assert!(body.len() <= LARGEST, "a frame has room for any message");
    let text = zstd::bulk::compress(body, LEVEL).expect("there is memory for a frame");
    let mut out = vec![0; HEAD];
    put(&mut out, 0, (text.len() as u32).to_le_bytes());
    put(&mut out, 4, (body.len() as u32).to_le_bytes());
    out[8] = kind;
    let hash = hash(&out, &text, previous);
    put(&mut out, 12, hash);
    out.extend(text);
    out
}

/// Kind and body of a frame; None if it is not what was sealed behind `previous`.
pub fn open(head: &[u8; HEAD], text: &[u8], previous: &Hash) -> Option<(u8, Vec<u8>)> {
    let length = u32_at(head, 4) as usize;
    let sound = text.len() == u32_at(head, 0) as usize && length <= LARGEST && hash(head, text, previous) == head[12..];
    let body = sound.then(|| zstd::bulk::decompress(text, length).ok())??;
    (body.len() == length).then_some((head[8], body))
}

fn hash(head: &[u8], text: &[u8], previous: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&domain("kimberlite/export/1")).update(previous).update(&head[..12]).update(text);
    *hasher.finalize().as_bytes()
}
