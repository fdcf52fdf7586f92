//! What has arrived and is not yet taken.
use super::{HEADER, Header};

/// Bytes of one connection, and the messages in them.
///
/// * `bytes[start..end]` has arrived and is not taken; the next read goes to what follows.
/// * It grows only as a message that is longer than it arrives, never by what is announced, and shrinks behind it.
#[derive(Debug)]
pub struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    usual: usize,
    largest: usize,
}

/// A message is announced that is empty, or larger than any may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfit(pub usize);

impl Inbox {
    /// So many bytes as a rule; no message is larger than the largest.
    pub fn new(usual: usize, largest: usize) -> Self {
        Self { bytes: vec![0; usual], start: 0, end: 0, usual, largest }
    }

    /// Where the next read goes; there is always room, or the message that fills it all is still to be taken.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// So many bytes were read to where there was room.
    pub fn arrived(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "more was read than there was room for");
        self.end += count;
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the next read needs more memory.
    pub fn is_full(&self) -> bool {
        self.start == 0 && self.end == self.bytes.len()
    }

    /// Of memory.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// The next message that is there as a whole. It stays until it is taken.
    pub fn next(&self) -> Result<Option<(Header, &[u8])>, Unfit> {
        let arrived = &self.bytes[self.start..self.end];
        let Some((head, rest)) = arrived.split_first_chunk::<HEADER>() else { return Ok(None) };
        let header = Header::decode(head);
        if header.length == 0 || header.length > self.largest {
            return Err(Unfit(header.length));
        }
        Ok(rest.get(..header.length).map(|body| (header, body)))
    }

    /// Goes on behind the message that `next` gave.
    pub fn take(&mut self, header: Header) {
        self.start += HEADER + header.length;
        debug_assert!(self.start <= self.end);
    }

    /// Makes room for the next read, which is when `next` has no more.
    pub fn make_room(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() {
            // A message that is not there as a whole, so it is shorter than what is allowed.
            let most = HEADER + self.largest;
            self.bytes.resize((2 * self.bytes.len()).min(most), 0);
        } else if self.bytes.len() > self.usual && self.end < self.usual / 2 {
            self.bytes.truncate(self.usual);
            self.bytes.shrink_to_fit();
        }
    }
}
