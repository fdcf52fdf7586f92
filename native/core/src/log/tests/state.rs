//! A log's state, to be compared with another's.

use crate::format::Hash;
use crate::group::Expected;
use crate::log::{End, Erasure, Log};

/// Everything that replaying must bring back.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    pub expected: Expected,
    pub end: End,
    pub sealed: (u64, u64, Hash),
    pub root: (u64, Hash),
    pub durable: u64,
    pub tail: (u64, u64, Hash),
    /// Name, declaration, length as given out and as durable, mode, id of the key.
    #[allow(clippy::type_complexity)]
    pub streams: Vec<(String, Vec<u8>, u64, u64, bool, Option<[u8; 16]>)>,
    pub erasures: Vec<Erasure>,
}

pub fn state(log: &Log) -> State {
    let streams = log.streams.read().unwrap();
    let erasures = streams.erasures_before(u64::MAX);
    let declared = streams.list.iter().zip(&streams.info).filter(|(_, info)| info.declared);
    let streams = declared
        .map(|(stream, info)| {
            let key = stream.keys.as_ref().map(|keys| keys.id);
            let lengths = (info.forming, info.durable);
            let name = (info.name.clone(), info.declaration.clone());
            (name.0, name.1, lengths.0, lengths.1, stream.encrypted, key)
        })
        .collect();
    let tail = {
        let tail = log.tail.lock().unwrap();
        (tail.position, tail.last_place, tail.last_chain)
    };
    State {
        expected: log.expected(),
        end: log.end(),
        sealed: log.sealed(),
        root: log.root(),
        durable: log.durable(),
        tail,
        streams,
        erasures,
    }
}
