//! Streams whose key is no more: what the log says of each, and what goes with the key.

use super::Log;
use super::retained::Reader;
use super::streams::{Info, Streams};
use crate::format::{Checked, Damage, ensure};
use crate::system::System;

/// When a system record was written, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    pub position: u64,
    pub timestamp: u64,
}

/// All of a stream up to this record, behind which it has no others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    pub stream: u32,
    pub at: Said,
    /// Id of the master key that wrapped the stream's.
    pub master: [u8; 16],
    pub reason: String,
    /// The record by which that master key is no more, if there is one.
    pub confirmed: Option<Said>,
}

/// Of an encoded one, without its reason.
const ERASURE: usize = 56;

/// In place of a confirmation that there is none of: at position 0 is a declaration.
const PENDING: Said = Said { position: 0, timestamp: 0 };

pub fn encode(out: &mut Vec<u8>, erasures: &[Erasure]) {
    out.extend((erasures.len() as u32).to_le_bytes());
    for erasure in erasures {
        let confirmed = erasure.confirmed.unwrap_or(PENDING);
        out.extend(erasure.stream.to_le_bytes());
        out.extend(erasure.at.position.to_le_bytes());
        out.extend(erasure.at.timestamp.to_le_bytes());
        out.extend(erasure.master);
        out.extend(confirmed.position.to_le_bytes());
        out.extend(confirmed.timestamp.to_le_bytes());
        out.extend((erasure.reason.len() as u32).to_le_bytes());
        out.extend(erasure.reason.as_bytes());
    }
}

pub fn decode(from: &mut Reader) -> Checked<Vec<Erasure>> {
    from.several(ERASURE, |from| {
        let stream = from.u32()?;
        let at = said(from)?;
        let (master, confirmed) = (from.array()?, said(from)?);
        let reason = String::from_utf8(from.bytes()?.to_vec());
        let reason = reason.map_err(|_| Damage("the reason of an erasure is not UTF-8"))?;
        Ok(Erasure { stream, at, master, reason, confirmed: Some(confirmed).filter(|&said| said != PENDING) })
    })
}

fn said(from: &mut Reader) -> Checked<Said> {
    Ok(Said { position: from.u64()?, timestamp: from.u64()? })
}

impl Info {
    /// What the log said of its erasure before it had this position.
    pub fn erasure_before(&self, position: u64) -> Option<Erasure> {
        let mut then = self.erased.clone().filter(|erasure| erasure.at.position < position)?;
        then.confirmed = then.confirmed.filter(|said| said.position < position);
        Some(then)
    }
}

impl Streams {
    /// Takes in what a system record says of erasures, and where one says what was given up.
    pub fn hear(&mut self, system: &System, at: Said) -> Checked<()> {
        let (stream, declared) = match system {
            System::Repaired(_) => {
                self.repairs.push(at.position);
                return Ok(());
            }
            System::Erased(said) => (said.stream, said.declared),
            System::Confirmed(said) => (said.stream, said.declared),
            _ => return Ok(()),
        };
        let number = stream as usize;
        let known = self.list.get(number).filter(|known| known.declaration == declared && self.info[number].declared);
        let known = known.ok_or(Damage("an erasure of a stream that is not there"))?;
        ensure(known.encrypted, "an erasure of a plain stream")?;
        let before = &mut self.info[number].erased;
        match system {
            System::Erased(said) => {
                ensure(before.is_none(), "a stream is erased twice")?;
                let (master, reason) = (said.master, said.reason.clone());
                self.said += ERASURE + reason.len();
                *before = Some(Erasure { stream, at, master, reason, confirmed: None });
            }
            System::Confirmed(said) => {
                let pending = before.as_mut().filter(|erasure| erasure.confirmed.is_none());
                let pending = pending.ok_or(Damage("an erasure is confirmed that is not pending"))?;
                ensure(pending.master != said.master, "an erasure is confirmed under its own master key")?;
                pending.confirmed = Some(at);
            }
            _ => {}
        }
        Ok(())
    }

    /// What the log said of erasures before it had this position.
    pub fn erasures_before(&self, position: u64) -> Vec<Erasure> {
        self.info.iter().filter_map(|info| info.erasure_before(position)).collect()
    }

    /// What was said of erasures before the log was loaded.
    pub fn set_erasures(&mut self, erasures: &[Erasure]) -> Checked<()> {
        for erasure in erasures {
            let number = erasure.stream as usize;
            let encrypted = self.list.get(number).is_some_and(|stream| stream.encrypted);
            ensure(encrypted, "an erasure of a stream that is not there")?;
            self.info[number].erased = Some(erasure.clone());
            self.said += ERASURE + erasure.reason.len();
            self.drop_keys(erasure.stream);
        }
        Ok(())
    }

    fn drop_keys(&mut self, stream: u32) {
        let stream = &mut self.list[stream as usize];
        *stream = std::sync::Arc::new(crate::group::Stream { keys: None, ..(**stream).clone() });
    }

    /// The stream of this number, if it is erased.
    pub fn erased(&self, number: u32) -> Option<(&Info, &Erasure)> {
        let info = self.info.get(number as usize)?;
        Some((info, info.erased.as_ref()?))
    }
}

impl Log {
    /// Lets go of the key of a stream, and of all that was opened or derived with it.
    pub fn forget(&self, stream: u32) {
        let mut producers = self.producers.lock().unwrap();
        self.streams.write().unwrap().drop_keys(stream);
        producers.forget_stream(stream);
        drop(producers);
        self.cache.lock().unwrap().forget(stream);
    }
}
