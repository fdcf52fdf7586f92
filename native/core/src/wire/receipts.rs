//! The answer to appends: one message for all of a connection's that are in one group.
use super::cursor::{Cursor, Parsed, Put};
use crate::format::Hash;
use crate::log::Receipt;

/// What all receipts of a group have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    pub timestamp: u64,
    pub durable: bool,
    pub tree_size: u64,
    pub root: Hash,
    pub chain: Hash,
    pub incarnation: u32,
    pub group: u64,
}

impl From<&Receipt> for Ending {
    fn from(receipt: &Receipt) -> Self {
        let Receipt { timestamp, durable, tree_size, root, chain, incarnation, group, .. } = *receipt;
        Self { timestamp, durable, tree_size, root, chain, incarnation, group }
    }
}

/// One batch's own: where it is, and the receipt's MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub first_offset: u64,
    pub last_offset: u64,
    pub first_position: u64,
    pub last_position: u64,
    pub mac: [u8; 16],
}

/// `[timestamp, durable, tree size, root, chain, incarnation, group, answers]`, so far as the number of the answers.
pub fn put_ending(out: &mut Vec<u8>, ending: &Ending, answers: usize) {
    out.put_array(8);
    out.put_count(ending.timestamp);
    out.put_bool(ending.durable);
    out.put_count(ending.tree_size);
    out.put_bytes(&ending.root);
    out.put_bytes(&ending.chain);
    out.put_count(ending.incarnation.into());
    out.put_count(ending.group);
    out.put_array(answers);
}

/// `[id, [[first offset, last offset, first position, last position, mac], …]]`, so far as the number of the batches.
pub fn put_answer(out: &mut Vec<u8>, id: u32, batches: usize) {
    out.put_array(2);
    out.put_count(id.into());
    out.put_array(batches);
}

pub fn put_place(out: &mut Vec<u8>, place: &Place) {
    out.put_array(5);
    out.put_count(place.first_offset);
    out.put_count(place.last_offset);
    out.put_count(place.first_position);
    out.put_count(place.last_position);
    out.put_bytes(&place.mac);
}

/// The ending, and how many answers come behind it.
pub fn take_ending(cursor: &mut Cursor) -> Parsed<(Ending, usize)> {
    cursor.exactly(8)?;
    let ending = Ending {
        timestamp: cursor.count()?,
        durable: cursor.bool()?,
        tree_size: cursor.count()?,
        root: cursor.fixed()?,
        chain: cursor.fixed()?,
        incarnation: cursor.small()?,
        group: cursor.count()?,
    };
    Ok((ending, cursor.array()?))
}

/// An answer's id, and how many batches come behind it.
pub fn take_answer(cursor: &mut Cursor) -> Parsed<(u32, usize)> {
    cursor.exactly(2)?;
    Ok((cursor.small()?, cursor.array()?))
}

pub fn take_place(cursor: &mut Cursor) -> Parsed<Place> {
    cursor.exactly(5)?;
    Ok(Place {
        first_offset: cursor.count()?,
        last_offset: cursor.count()?,
        first_position: cursor.count()?,
        last_position: cursor.count()?,
        mac: cursor.fixed()?,
    })
}
