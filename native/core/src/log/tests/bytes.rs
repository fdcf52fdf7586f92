//! Bytes by chance, and files of bytes.

use std::io;
use std::sync::RwLock;

use crate::log::Source;
use crate::record::{Batch, Record};

/// xorshift64*: the same log on every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn bytes(&mut self, limit: u64) -> Vec<u8> {
        let dull = self.one_in(2);
        (0..self.below(limit)).map(|_| if dull { b'a' } else { self.below(256) as u8 }).collect()
    }

    pub fn batch(&mut self) -> Batch {
        let (count, limit) = [(1, 60), (4, 200), (12, 30), (3, 40_000)][self.below(40).min(3) as usize];
        let mut batch = Batch::default();
        for _ in 0..=self.below(count) {
            let (key, payload) = (self.bytes(12), self.bytes(limit));
            let event_time = self.one_in(2).then_some(self.0 as i64);
            let key = self.one_in(2).then_some(&key[..]);
            batch.push(&Record { key, headers: b"", event_time, payload: &payload });
        }
        batch
    }
}

/// A file whose bytes tests may write and spoil.
#[derive(Default)]
pub struct File(pub RwLock<Vec<u8>>);

impl File {
    pub fn write(&self, place: usize, bytes: &[u8]) {
        let mut file = self.0.write().unwrap();
        let end = place + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[place..end].copy_from_slice(bytes);
    }

    pub fn flip(&self, place: usize) {
        self.0.write().unwrap()[place] ^= 1;
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.read().unwrap().clone()
    }
}

impl Source for File {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = self.0.read().unwrap();
        let from = (place as usize).min(file.len());
        Ok(file[from..from.saturating_add(length).min(file.len())].to_vec())
    }
}
