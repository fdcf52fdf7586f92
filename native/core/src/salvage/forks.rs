//! What contradicts each other: files of a copy of the database that went on by itself, or went on from this one.

use std::collections::{HashMap, HashSet};

use super::{Held, Salvage};
use crate::format::{GroupHeader, Hash};

impl Salvage {
    /// Where two groups have one number, that one is the log's which a watermark follows; and so is nothing that follows
    /// the others. Where no watermark follows any of them, none is.
    pub(super) fn drop_forks(&mut self) {
        let mut order: Vec<&Held> = self.groups.iter().filter(|group| group.sure).collect();
        order.sort_by_key(|group| group.header.number);
        let forked =
            |pair: &[&Held]| pair[0].header.number == pair[1].header.number && pair[0].header != pair[1].header;
        if !order.windows(2).any(forked) {
            return;
        }
        let chain =
            |group: &Held| group.made.filter(|made| group.stated == Some(*made)).or(group.stated).or(group.made);
        let ended: HashMap<Hash, &GroupHeader> =
            order.iter().filter_map(|group| Some((chain(group)?, &group.header))).collect();
        let entries: HashMap<Hash, Hash> = self.entries.iter().copied().collect();
        let before = |header: &GroupHeader| {
            let previous = &header.previous;
            ended.get(entries.get(previous).unwrap_or(previous)).copied()
        };
        let mut followed = HashSet::new();
        for end in &self.ends {
            let mut next = ended.get(end).copied();
            while let Some(header) = next.filter(|header| followed.insert(*header)) {
                next = before(header);
            }
        }
        let (mut dropped, mut doubtful) = (HashSet::new(), HashSet::new());
        for same in order.chunk_by(|one, other| one.header.number == other.header.number) {
            let alone = same.iter().all(|group| group.header == same[0].header);
            let decided = same.iter().any(|group| followed.contains(&group.header));
            for header in same.iter().map(|group| group.header).filter(|header| !followed.contains(header)) {
                let leader = before(&header).filter(|leader| dropped.contains(*leader));
                if !decided && (!alone || leader.is_some_and(|leader| doubtful.contains(leader))) {
                    doubtful.insert(header);
                }
                if !alone || leader.is_some() {
                    dropped.insert(header);
                }
            }
        }
        let positions = |header: &GroupHeader| header.first_position..header.first_position + header.records as u64;
        self.doubtful.extend(doubtful.iter().map(positions));
        let groups = &mut self.groups;
        groups.iter_mut().for_each(|group| group.sure &= !dropped.contains(&group.header));
        self.pieces.retain(|piece| piece.group.is_none_or(|group| !dropped.contains(&groups[group as usize].header)));
    }

    /// Runs that were found more than once are one. Of those that say something else of the same positions, only the tree
    /// can tell.
    pub(super) fn drop_contradictions(&mut self) {
        let pieces = std::mem::take(&mut self.pieces);
        let (proven, mut rest): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|piece| piece.proven);
        let (mut kept, mut cluster) = (Vec::with_capacity(proven.len()), Vec::new());
        let mut end = 0;
        for piece in proven.into_iter().map(Some).chain([None]) {
            if let Some(piece) = piece
                && piece.position < end
            {
                end = end.max(piece.end());
                cluster.push(piece);
                continue;
            }
            if let Some(&first) = cluster.first() {
                let same = |other: &super::Piece| (other.position, other.hash) == (first.position, first.hash);
                if cluster.iter().all(same) {
                    kept.push(first);
                } else {
                    self.doubtful.push(first.position..end);
                    // An encrypted run opens, whichever of them it is.
                    rest.extend(
                        cluster
                            .iter()
                            .filter(|piece| !piece.encrypted)
                            .map(|piece| super::Piece { proven: false, ..*piece }),
                    );
                }
            }
            cluster.clear();
            if let Some(piece) = piece {
                end = piece.end();
                cluster.push(piece);
            }
        }
        kept.extend(rest);
        kept.sort_by_key(|piece| (piece.position, !piece.proven));
        self.pieces = kept;
    }
}
