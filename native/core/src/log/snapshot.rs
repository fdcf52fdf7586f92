//! The index checkpoint: what a start needs so that it replays only what came after.

use std::sync::atomic::Ordering;

use super::erased;
use super::reread::State;
use super::retained::Reader;
use super::segment::{Index, NO_KEY, checked, derived_mac};
use super::{End, Failure, Hidden, Info, Log, Retained, Segment, Skipped};
use crate::format::{Checked, Damage, GroupHeader, HIGHEST, Hash, SegmentHeader, ensure, put, u16_at, u32_at, u64_at};
use crate::index::Lookup;
use crate::keys::{Key, TAG};
use crate::system::{Declaration, System};
use crate::tree::{Tree, root_from_peaks};

const MAGIC: &[u8; 8] = b"KIMBCKP1";
const FIXED: usize = 232;
const GAP: usize = 28;

/// In the place of a gap of stream 0, which has none: where a record says what was given up.
fn repair_row(&position: &u64) -> [u8; GAP] {
    gap_row(0, &Skipped { position, from: 0, to: 0 })
}

fn gap_row(stream: u32, gap: &Skipped) -> [u8; GAP] {
    let mut row = [0; GAP];
    put(&mut row, 0, stream.to_le_bytes());
    put(&mut row, 4, gap.position.to_le_bytes());
    put(&mut row, 12, gap.from.to_le_bytes());
    put(&mut row, 20, gap.to.to_le_bytes());
    row
}

/// Where a replay goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    pub segment: u64,
    pub place: u64,
    /// Of the last group before, 0 if the segment has none.
    pub last_place: u64,
    /// Of the segment: another one means that places have changed.
    pub salt: Hash,
    pub group: u64,
    /// Length of the file of producers, and the MAC of its last piece.
    pub producers: u64,
    pub last_piece: Hash,
    /// Hashes in the file of tree hashes.
    pub hashes: u64,
}

impl Log {
    /// Everything up to the last sealed group, whose end is at `place` of this segment.
    pub fn snapshot(&self, segment: u64, place: u64, salt: &Hash, producers: u64) -> Vec<u8> {
        let tail = self.tail.lock().unwrap();
        debug_assert!(tail.forming.is_empty(), "what forms is in no group yet");
        let streams = self.streams.read().unwrap();
        let tree = self.tree.read().unwrap();
        let mut out = Vec::with_capacity(FIXED + 64 * streams.info.len() + 32 * tree.peaks().len());
        out.extend(MAGIC);
        out.extend(self.database.id);
        out.extend((tail.sealer.group - 1).to_le_bytes());
        out.extend(tail.sealer.position.to_le_bytes());
        out.extend(tail.sealer.chain);
        out.extend(tail.sealer.timestamp.to_le_bytes());
        out.extend(tail.sealer.incarnation.to_le_bytes());
        let declared = streams.info.iter().skip(1).take_while(|info| info.declared).count();
        out.extend((declared as u32).to_le_bytes());
        out.extend(segment.to_le_bytes());
        out.extend(place.to_le_bytes());
        out.extend(salt);
        out.extend(producers.to_le_bytes());
        out.extend(streams.info[0].forming.to_le_bytes());
        out.extend((tree.peaks().len() as u32).to_le_bytes());
        let gaps: usize = streams.info.iter().map(|info| info.skipped.len()).sum();
        out.extend(((streams.repairs.len() + gaps) as u32).to_le_bytes());
        out.extend(tail.last_place.to_le_bytes());
        out.extend(tail.last_chain);
        out.extend(*self.last_piece.lock().unwrap());
        debug_assert_eq!(out.len(), FIXED);
        tree.peaks().iter().for_each(|peak| out.extend(peak));
        for info in streams.info.iter().skip(1).take(declared) {
            out.extend(info.forming.to_le_bytes());
            out.extend((info.declaration.len() as u16).to_le_bytes());
            out.extend(&info.declaration);
        }
        streams.repairs.iter().for_each(|position| out.extend(repair_row(position)));
        for (stream, info) in (0u32..).zip(&streams.info) {
            info.skipped.iter().for_each(|gap| out.extend(gap_row(stream, gap)));
        }
        erased::encode(&mut out, &streams.erasures_before(tail.sealer.position));
        out.extend(self.retained().map(|retained| retained.encode()).unwrap_or_default());
        let mac = derived_mac(&self.keys.receipt, &out);
        out.extend(mac);
        out
    }

    /// Where a checkpoint leaves off, if its MAC is right and it is this database's. Without the receipt key none is:
    /// anybody knows the key that stands for it.
    pub fn resume(&self, bytes: &[u8]) -> Option<Resume> {
        if self.keys.receipt == NO_KEY {
            return None;
        }
        let bytes = checked(&self.keys.receipt, bytes)?;
        if bytes.len() < FIXED || bytes[..8] != *MAGIC || bytes[8..24] != self.database.id {
            return None;
        }
        let (group, position) = (u64_at(bytes, 24), u64_at(bytes, 32));
        if group >= HIGHEST || position > HIGHEST {
            return None;
        }
        Some(Resume {
            segment: u64_at(bytes, 88),
            place: u64_at(bytes, 96),
            last_place: u64_at(bytes, 160),
            salt: bytes[104..136].try_into().unwrap(),
            group,
            producers: u64_at(bytes, 136),
            last_piece: bytes[200..232].try_into().unwrap(),
            hashes: crate::tree::stored(position),
        })
    }

    /// Whether a checkpoint, whose MAC is right, says what this log, which has come further, was at its group.
    pub fn was(&self, bytes: &[u8]) -> Result<bool, Failure> {
        let (group, position) = (u64_at(bytes, 24), u64_at(bytes, 32));
        let (size, time, incarnation, chain, root) = match (self.retained(), self.state_after(group)) {
            (_, Ok(Some(State { header, chain, size, root }))) => {
                (size, header.timestamp, header.incarnation, chain, root)
            }
            // It may end where what is left begins.
            (Some(now), Ok(None)) if group + 1 == now.group => {
                (now.position, now.timestamp, now.incarnation, now.chain, root_from_peaks(&now.peaks))
            }
            // Of what was dropped since, as on a full disk, nobody can say.
            (Some(now), Ok(None)) if group + 1 < now.group => return Ok(true),
            (_, Ok(None)) => return Ok((group, position) == (0, 0)),
            // A writer that begins takes the hashes away: then nobody can say.
            (_, Err(Failure::HashesDamaged { .. })) => return Ok(true),
            (_, Err(failure)) => return Err(failure),
        };
        let said = (position, u64_at(bytes, 72), &bytes[168..200]);
        // A repair had raised it, and nothing was sealed since.
        let raised = incarnation..=self.incarnation();
        if said != (size, time, &chain[..]) || !raised.contains(&u32_at(bytes, 80)) {
            return Ok(false);
        }
        let mut rest = &bytes[FIXED..bytes.len() - 32];
        let (mut peaks, count) = (Vec::new(), u32_at(bytes, 152));
        for _ in 0..count.min(64) {
            let Some((peak, more)) = rest.split_first_chunk::<32>() else { return Ok(false) };
            peaks.push(*peak);
            rest = more;
        }
        if root_from_peaks(&peaks) != root || self.offset_at(0, position, Hidden::Fails)? != u64_at(bytes, 144) {
            return Ok(false);
        }
        for number in 1..=u32_at(bytes, 84) {
            let known = self.streams.read().unwrap().info.get(number as usize).map(|info| info.declaration.clone());
            let Some(declaration) = known else { return Ok(false) };
            let mut entry = self.offset_at(number, position, Hidden::Fails)?.to_le_bytes().to_vec();
            entry.extend((declaration.len() as u16).to_le_bytes());
            entry.extend(declaration);
            let Some(more) = rest.strip_prefix(&entry[..]) else { return Ok(false) };
            rest = more;
        }
        let Some((gaps, rest)) = rest.split_at_checked(GAP * u32_at(bytes, 156) as usize) else { return Ok(false) };
        if !self.had_gaps(gaps, position) {
            return Ok(false);
        }
        let mut erasures = Vec::new();
        erased::encode(&mut erasures, &self.streams.read().unwrap().erasures_before(position));
        let Some(rest) = rest.strip_prefix(&erasures[..]) else { return Ok(false) };
        // What was dropped then may be less than what is dropped now.
        let before = if rest.is_empty() { None } else { Retained::decode(rest).ok() };
        let now = self.retained();
        Ok(match (&before, &now) {
            (None, _) => rest.is_empty(),
            (Some(before), Some(now)) => before.segment < now.segment || *before == **now,
            (Some(_), None) => false,
        })
    }

    /// Whether these rows are the repairs and gaps before a position, of those that were not dropped since.
    fn had_gaps(&self, rows: &[u8], position: u64) -> bool {
        let streams = self.streams.read().unwrap();
        let gaps =
            (0u32..).zip(&streams.info).flat_map(|(stream, info)| info.skipped.iter().map(move |gap| (stream, gap)));
        let gaps = gaps.filter(|(_, gap)| gap.position < position).map(|(stream, gap)| gap_row(stream, gap));
        let known = streams.repairs.iter().filter(|&&at| at < position).map(repair_row).chain(gaps);
        let rows = rows.as_chunks::<GAP>().0.iter().filter(|row| u64_at(&row[..], 4) >= self.first());
        known.eq(rows.copied())
    }

    /// Makes an empty log what it was when the checkpoint was taken.
    pub fn restore(
        &self,
        bytes: &[u8],
        keys: &mut dyn FnMut(&Declaration, &Hash) -> Checked<Option<Key>>,
    ) -> Checked<()> {
        let bytes = checked(&self.keys.receipt, bytes).ok_or(Damage("the checkpoint's MAC is wrong"))?;
        let mut tail = self.tail.lock().unwrap();
        let mut streams = self.streams.write().unwrap();
        let (group, position, timestamp) = (u64_at(bytes, 24), u64_at(bytes, 32), u64_at(bytes, 72));
        let (chain, incarnation): (Hash, u32) = (bytes[40..72].try_into().unwrap(), u32_at(bytes, 80));
        let mut at = FIXED;
        let mut take = |length: usize| {
            let taken = bytes.get(at..at + length).ok_or(Damage("the checkpoint is cut short"));
            at += length;
            taken
        };
        let mut peaks = Vec::new();
        for _ in 0..u32_at(bytes, 152).min(64) {
            peaks.push(take(32)?.try_into().unwrap());
        }
        let system = u64_at(bytes, 144);
        for _ in 0..u32_at(bytes, 84) {
            let head = take(10)?;
            let payload = take(u16_at(head, 8) as usize)?;
            let System::Declaration(declaration) = System::decode(payload)? else {
                return Err(Damage("the checkpoint names a stream without a declaration"));
            };
            let key = keys(&declaration, &Declaration::hash(payload))?;
            streams.add(&declaration, payload, key.as_ref(), true)?;
            let length = u64_at(head, 0);
            ensure(length <= HIGHEST, "the checkpoint has a stream that is too long")?;
            streams.set_next(declaration.stream as usize, length);
        }
        for _ in 0..u32_at(bytes, 156) {
            let row = take(GAP)?;
            if u32_at(row, 0) == 0 {
                streams.repairs.push(u64_at(row, 4));
                continue;
            }
            let info = streams.info.get_mut(u32_at(row, 0) as usize);
            let info = info.ok_or(Damage("the checkpoint names a gap of no stream"))?;
            info.skipped.push(Skipped { position: u64_at(row, 4), from: u64_at(row, 12), to: u64_at(row, 20) });
        }
        let mut rest = Reader(&bytes[at.min(bytes.len())..]);
        streams.set_erasures(&erased::decode(&mut rest)?)?;
        let dropped = match rest.0 {
            [] => None,
            rest => Some(Retained::decode(rest)?),
        };
        streams.set_next(0, system);
        *self.tree.write().unwrap() = Tree::from_peaks(position, peaks)?;
        let sealer = &mut tail.sealer;
        (sealer.group, sealer.position, sealer.chain) = (group + 1, position, chain);
        (sealer.timestamp, sealer.incarnation) = (timestamp, incarnation);
        tail.position = position;
        (tail.last_place, tail.last_chain) = (u64_at(bytes, 160), bytes[168..200].try_into().unwrap());
        let chain = tail.last_chain;
        self.durable.store(position, Ordering::Release);
        *self.end.lock().unwrap() = End { group, chain, timestamp, incarnation };
        drop((tail, streams));
        dropped.into_iter().for_each(|dropped| self.drop_before(dropped));
        Ok(())
    }

    /// Whether the segment of the checkpoint that was restored has, in the right place, the group it ends with.
    /// `group` is what is between the last group's place and the next one's.
    pub fn ends_with(&self, resume: &Resume, header: &[u8], group: &[u8]) -> bool {
        let tail = self.tail.lock().unwrap();
        let Ok(header) = SegmentHeader::decode(header) else { return false };
        if header.salt != resume.salt {
            return false;
        }
        let sealer = &tail.sealer;
        if resume.last_place == 0 {
            let first = (header.first_group, header.first_position);
            return header.chain() == sealer.chain && first == (sealer.group, sealer.position);
        }
        let Ok(found) = GroupHeader::decode(group, &resume.salt, resume.last_place) else { return false };
        let tag = if self.database.tagged { TAG } else { 0 };
        let chain = (found.length as usize).checked_sub(32 + tag).and_then(|at| group.get(at..at + 32));
        let end = found.first_position + found.records as u64;
        let state = (found.number + 1, end, found.timestamp);
        let said = (sealer.group, sealer.position, sealer.timestamp);
        // A repair may have raised it, and nothing was sealed since.
        found.number == resume.group
            && state == said
            && found.incarnation <= sealer.incarnation
            && chain == Some(&tail.last_chain)
            && sealer.chain == tail.last_chain
    }

    /// Whether the segment that the checkpoint ends in, whose index is made up to there, ends as the checkpoint says.
    pub fn reaches(&self, segment: &Segment) -> bool {
        let Index::Active(index) = &*segment.index() else { return false };
        let streams = self.streams.read().unwrap();
        let length = |stream: u32| streams.info.get(stream as usize).map(Info::recorded);
        let end = self.tail.lock().unwrap().position;
        index.next_position() == end && index.ends().iter().all(|&(stream, end)| length(stream) == Some(end))
    }
}
