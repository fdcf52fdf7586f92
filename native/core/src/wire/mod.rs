//! The protocol's bytes, as pure functions: `docs/protocol.md` draws them.
pub mod append;
pub mod cursor;
pub mod frames;
pub mod import;
pub mod inbox;
pub mod kind;
pub mod receipts;
pub mod records;
#[cfg(test)]
mod tests;

/// In front of every message: the length of its body, its kind and the request's id.
pub const HEADER: usize = 12;
/// Of a request's body.
pub const LARGEST: usize = 16 << 20;
/// Of a reply's: a record of the largest size, with what is said of it and a piece of what is before it.
pub const LARGEST_REPLY: usize = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub length: usize,
    pub kind: u32,
    pub id: u32,
}

impl Header {
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        let at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
        Self { length: at(0) as usize, kind: at(4), id: at(8) }
    }

    pub fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }
}

/// Puts a message of this kind at the end of `out`: a header, and the body that `put` makes.
pub fn put_message(out: &mut Vec<u8>, kind: u32, id: u32, put: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    put(out);
    let header = Header { length: out.len() - start - HEADER, kind, id };
    out[start..start + HEADER].copy_from_slice(&header.encode());
}
