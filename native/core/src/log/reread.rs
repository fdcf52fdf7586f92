//! The receipt of an append that was acknowledged before, read back from its group.

use std::sync::Arc;

use super::append::Named;
use super::read::{Failure, SOME_LEAVES};
use super::{Log, Part, Receipt, Segment};
use crate::format::{Checked, Damage, GROUP_HEADER, GroupHeader, Hash};
use crate::group::{self, Expected, Group, Opened};
use crate::system::{Several, System};

/// The state of the log at the end of a group.
pub(super) struct State {
    pub header: GroupHeader,
    pub chain: Hash,
    pub size: u64,
    pub root: Hash,
}

/// A group's segment, place and bytes.
type GroupBytes = (Arc<Segment>, u64, Vec<u8>);

impl Log {
    /// The receipts of a producer's append, one a part, from the durable group that it is in.
    pub fn reread(
        &self,
        number: u64,
        parts: &[Part],
        id: &[u8],
        sequence: u64,
        several: bool,
    ) -> Result<Vec<Receipt>, Failure> {
        let named = self.name(&self.streams.read().unwrap(), parts, id, several);
        let found = self.again(|| self.group_bytes(number))?;
        let gone = || match self.retained() {
            Some(said) if number < said.group => Failure::Dropped { stream: None, first: said.position },
            _ => Failure::ProducersDamaged { group: number },
        };
        let (segment, place, bytes) = found.ok_or_else(gone)?;
        let group = self
            .open_again(&segment, place, &bytes)
            .map_err(|Damage(what)| self.damage(&segment, place, number, what))?;
        let remembered = |digest: &[u8; 16]| *digest == named.digest;
        let state = self.state_at(&group)?;
        for run in &group.runs {
            let header = run.header;
            let damaged = |Damage(what)| self.damage(&segment, run.place, number, what);
            if header.stream != named.stream {
                continue;
            }
            let stream = self.streams.read().unwrap().list[header.stream as usize].clone();
            let opened = group::open_run(&self.database, &stream, run).map_err(damaged)?;
            let opened = opened.ok_or_else(|| self.keyless(header))?;
            if several {
                if let Some(record) = find_several(&opened, &named, sequence).filter(|found| remembered(&found.digest))
                {
                    return record.parts.iter().map(|part| self.part_receipt(&state, *part)).collect();
                }
            } else if let Some((first, _)) =
                opened.producers.iter().find(|(_, p)| p.sequence == sequence && p.id == id && remembered(&p.digest))
            {
                let offset = header.first_offset + *first as u64;
                return Ok(vec![self.part_receipt(&state, (named.stream, offset, parts[0].batch.ends.len() as u32))?]);
            }
        }
        Err(Failure::ProducersDamaged { group: number })
    }

    /// The chain hash at the end of a durable group, from its bytes; None if there is no such group.
    pub fn chain_of(&self, number: u64) -> Result<Option<Hash>, Failure> {
        let end = self.end();
        if number >= end.group {
            return Ok((number == end.group).then_some(end.chain));
        }
        let Some((segment, place, bytes)) = self.again(|| self.group_bytes(number))? else { return Ok(None) };
        let group = self.open_again(&segment, place, &bytes);
        let group = group.map_err(|Damage(what)| self.damage(&segment, place, number, what))?;
        Ok((group.header.number == number).then_some(group.chain))
    }

    /// Of a durable group; None if there is none of this number.
    fn group_bytes(&self, number: u64) -> Result<Option<GroupBytes>, Failure> {
        if number > self.end().group {
            return Ok(None);
        }
        let Some(segment) = self.newest_first().into_iter().find(|segment| segment.header.first_group <= number) else {
            return Ok(None);
        };
        let index = self.index(&segment)?;
        let Some(group) = index.lookup(&segment)?.group_of_number(number) else { return Ok(None) };
        let place = group.place as u64;
        let damaged = |Damage(what)| self.damage(&segment, place, number, what);
        let head = segment.read(place, GROUP_HEADER)?;
        let header = GroupHeader::decode(&head, &segment.header.salt, place).map_err(damaged)?;
        if header.number != number {
            return Err(damaged(Damage("the group has another number")));
        }
        let bytes = segment.read(place, header.length as usize)?;
        Ok(Some((segment, place, bytes)))
    }

    /// Checked whole, since what its receipt says will be believed; that the group follows those before it was seen
    /// when it was sealed or replayed.
    fn open_again<'a>(&self, segment: &Segment, place: u64, bytes: &'a [u8]) -> Checked<Group<'a>> {
        let salt = &segment.header.salt;
        let header = GroupHeader::decode(bytes, salt, place)?;
        let (number, position, timestamp) = (header.number, header.first_position, header.timestamp);
        let expected = Expected { number, position, previous: header.previous, timestamp };
        group::open(&self.database, header, &expected, salt, place, bytes)
    }

    /// None if there is no durable group of this number.
    pub(super) fn state_after(&self, number: u64) -> Result<Option<State>, Failure> {
        let Some((segment, place, bytes)) = self.again(|| self.group_bytes(number))? else { return Ok(None) };
        let group = self.open_again(&segment, place, &bytes);
        let group = group.map_err(|Damage(what)| self.damage(&segment, place, number, what))?;
        self.state_at(&group).map(Some)
    }

    fn state_at(&self, group: &Group) -> Result<State, Failure> {
        let (header, chain) = (group.header, group.chain);
        let size = header.first_position + header.records as u64;
        let root = self.root_at(size, SOME_LEAVES).ok_or(Failure::HashesDamaged { position: size })?;
        Ok(State { header, chain, size, root })
    }

    fn part_receipt(&self, state: &State, (stream, offset, records): (u32, u64, u32)) -> Result<Receipt, Failure> {
        let position = self.position_of(stream, offset)?;
        let more = records as u64 - 1;
        Ok(Receipt {
            group: state.header.number,
            tree_size: state.size,
            root: state.root,
            chain: state.chain,
            incarnation: state.header.incarnation,
            durable: true,
            stream,
            first_offset: offset,
            last_offset: offset + more,
            first_position: position,
            last_position: position + more,
            timestamp: state.header.timestamp,
        })
    }

    fn damage(&self, segment: &Segment, place: u64, group: u64, what: &'static str) -> Failure {
        Failure::Damaged { segment: segment.header.number, place, group, position: segment.header.first_position, what }
    }
}

fn find_several(opened: &Opened, named: &Named, sequence: u64) -> Option<Several> {
    (0..opened.count()).find_map(|i| match System::decode(opened.decoded(i).payload) {
        Ok(System::Several(several)) if several.producer == named.id && several.sequence == sequence => Some(several),
        _ => None,
    })
}
