//! What is left of a damaged log, as Python has its files.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kimberlite_core::format::{Damage, Hash};
use kimberlite_core::group::Database;
use kimberlite_core::keys::{GroupKey, Key};
use kimberlite_core::log::{Erasure, Said};
use kimberlite_core::salvage::{self, Fragment, Repaired, Scanned, read_extents};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::segment::source_of;
use super::{exactly, io_error};
use crate::batch::Batch;

/// Position, records, stream, offset, timestamp if anything says it, and the records if they open.
type Found = (u64, usize, u32, u64, Option<u64>, Option<Batch>);

/// Of an erasure: stream, time, reason, position, master key's id, and when it was confirmed.
type Gone<'py> = (u32, u64, String, u64, Bound<'py, PyBytes>, Option<u64>);

#[pyclass(frozen, module = "kimberlite._native")]
pub struct Salvage(Mutex<salvage::Salvage>);

impl Salvage {
    fn inner(&self) -> std::sync::MutexGuard<'_, salvage::Salvage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks Python for the key of a stream that was declared so.
fn keys_from<'a>(keys: &'a Py<PyAny>, failed: &'a mut Option<PyErr>) -> impl FnMut(u32, &Hash) -> Option<Key> + 'a {
    move |stream, hash| {
        Python::attach(|py| {
            let key = keys.call1(py, (stream, PyBytes::new(py, hash)));
            let key = key.and_then(|key| key.extract::<Option<Vec<u8>>>(py));
            let key = key.and_then(|key| key.map(|key| exactly(&key, "data key")).transpose());
            key.unwrap_or_else(|error| {
                *failed = Some(error);
                None
            })
        })
    }
}

#[pymethods]
impl Salvage {
    #[new]
    #[pyo3(signature = (database_id, identity, *, quantum, tagged, group_key))]
    fn new(
        database_id: &[u8],
        identity: &[u8],
        quantum: usize,
        tagged: bool,
        group_key: Option<&[u8]>,
    ) -> PyResult<Self> {
        let group_key = group_key.map(|key| exactly(key, "group key").map(|key| GroupKey::new(&key))).transpose()?;
        let (id, identity) = (exactly(database_id, "database id")?, exactly(identity, "identity hash")?);
        Ok(Self(Mutex::new(salvage::Salvage::new(Database { id, identity, quantum, tagged, group_key }))))
    }

    /// Takes in a file, which has only zeros elsewhere than at these places, each with a length. The number that it says
    /// it has, how many groups have a header in it, and whether it is another database's, of which nothing is taken.
    /// `salts` are those of files whose own may be lost.
    fn scan(
        &self,
        py: Python<'_>,
        file: &Bound<'_, PyAny>,
        extents: Vec<(usize, usize)>,
        salts: Vec<Vec<u8>>,
    ) -> PyResult<(Option<u64>, usize, bool)> {
        let source = source_of(file)?;
        let salts: Vec<Hash> = salts.iter().map(|salt| exactly(salt, "salt")).collect::<PyResult<_>>()?;
        let scanned = py.detach(|| {
            let data = read_extents(&*source, &extents)?;
            Ok(self.inner().scan(source, &data, &salts))
        });
        match scanned.map_err(|error| io_error(py, error))? {
            Scanned::Foreign => Ok((None, 0, true)),
            Scanned::Segment { number, groups } => Ok((number, groups, false)),
        }
    }

    /// The file of tree hashes: a record that makes the leaf at its position is the log's.
    fn set_hashes(&self, file: &Bound<'_, PyAny>) -> PyResult<()> {
        self.inner().set_hashes(source_of(file)?);
        Ok(())
    }

    /// A group with this chain hash was durable.
    fn durable(&self, chain: &[u8]) -> PyResult<()> {
        self.inner().durable(exactly(chain, "chain")?);
        Ok(())
    }

    /// When the groups of a closed segment were: from its index, whose MAC is right.
    fn indexed(&self, index: &[u8]) {
        self.inner().indexed(index);
    }

    /// A stream that a declaration names, which is in no record that is left.
    fn declared(&self, payload: &[u8], keys: Py<PyAny>) -> PyResult<()> {
        let mut failed = None;
        let declared = self.inner().declared(payload, &mut keys_from(&keys, &mut failed));
        failed.map_or(Ok(()), Err)?;
        declared.map_err(|Damage(what)| PyValueError::new_err(what))
    }

    /// What was dropped of this log, which a checkpoint has restored.
    fn retained(&self, log: &super::Log, keys: Py<PyAny>) -> PyResult<()> {
        let mut failed = None;
        if let Some(retained) = log.inner.retained() {
            self.inner().follow_retained((*retained).clone(), &mut keys_from(&keys, &mut failed));
        }
        failed.map_or(Ok(()), Err)
    }

    /// A stream of which only a key is left, and the hash of its declaration.
    fn adopt(&self, stream: u32, declaration: &[u8], key: &[u8]) -> PyResult<()> {
        self.inner().adopt(stream, exactly(declaration, "declaration hash")?, &exactly(key, "data key")?);
        Ok(())
    }

    /// All files were scanned: what they hold of each other is settled, and what the system's records say is taken in.
    fn settle(&self, py: Python<'_>, keys: Py<PyAny>) -> PyResult<()> {
        let mut failed = None;
        let settled = py.detach(|| self.inner().settle(&mut keys_from(&keys, &mut failed)));
        failed.map_or(Ok(()), Err)?;
        settled.map_err(|error| io_error(py, error))
    }

    /// The next records that are the log's, about so many, in the order of their positions; empty at the end.
    fn next(&self, py: Python<'_>, most: usize) -> PyResult<Vec<Found>> {
        let found = py.detach(|| self.inner().next(most)).map_err(|error| io_error(py, error))?;
        Ok(found.into_iter().map(shown).collect())
    }

    /// The number of each stream, and its name if anything says it.
    #[getter]
    fn streams(&self) -> Vec<(u32, Option<String>)> {
        self.inner().streams.iter().map(|(&number, known)| (number, known.name.clone())).collect()
    }

    /// Number of the last group, and the position behind it.
    #[getter]
    fn end(&self) -> (u64, u64) {
        self.inner().end()
    }

    #[getter]
    fn incarnation(&self) -> u32 {
        self.inner().incarnation()
    }

    /// Positions below this were dropped; and the first offset of each stream by number, from 1, that was not.
    #[getter]
    fn dropped(&self) -> (u64, Vec<u64>) {
        let inner = self.inner();
        let firsts = |retained: &kimberlite_core::log::Retained| {
            (retained.position, retained.streams.iter().map(|left| left.first).collect())
        };
        inner.retained.as_ref().map_or((0, vec![]), firsts)
    }

    /// A stream that is said to be erased, as `Log.erasures` has it: nothing of it opens.
    fn erase(
        &self,
        stream: u32,
        when: u64,
        reason: String,
        position: u64,
        master: &[u8],
        confirmed: Option<u64>,
    ) -> PyResult<()> {
        let at = Said { position, timestamp: when };
        let confirmed = confirmed.map(|timestamp| Said { position, timestamp });
        self.inner().erase(Erasure { stream, at, master: exactly(master, "key id")?, reason, confirmed });
        Ok(())
    }

    /// Stream, when and why, the record's position, the master key's id, and when that was confirmed to be no more. Times
    /// are 0 where nothing says them.
    #[getter]
    fn erasures<'py>(&self, py: Python<'py>) -> Vec<Gone<'py>> {
        let list = |(&stream, erasure): (&u32, &Erasure)| {
            let confirmed = erasure.confirmed.map(|said| said.timestamp);
            let master = PyBytes::new(py, &erasure.master);
            (stream, erasure.at.timestamp, erasure.reason.clone(), erasure.at.position, master, confirmed)
        };
        self.inner().erased.iter().map(list).collect()
    }

    /// What is known elsewhere of a record that says what was given up before: its position and payload.
    fn repaired(&self, position: u64, payload: Vec<u8>) {
        self.inner().repairs.insert((position, payload));
    }

    /// Positions and payloads of those that are left, in their order.
    #[getter]
    fn repairs<'py>(&self, py: Python<'py>) -> Vec<(u64, Bound<'py, PyBytes>)> {
        self.inner().repairs.iter().map(|(position, payload)| (*position, PyBytes::new(py, payload))).collect()
    }

    /// Where each stream went on behind the last of its runs that is whole, whether it opens or not.
    #[getter]
    fn lengths(&self) -> BTreeMap<u32, u64> {
        self.inner().lengths()
    }

    /// Stream, from and up to: offsets that were never any record's.
    #[getter]
    fn gaps(&self) -> Vec<(u32, u64, u64)> {
        self.inner().gaps.clone()
    }

    /// Positions of which different records are left, and nothing says which are the log's.
    #[getter]
    fn doubtful(&self) -> Vec<(u64, u64)> {
        self.inner().doubtful.iter().map(|range| (range.start, range.end)).collect()
    }

    /// How far it has come, of how many.
    #[getter]
    fn progress(&self) -> (usize, usize) {
        self.inner().progress()
    }
}

fn shown(found: Fragment) -> Found {
    let records = found.records();
    let batch = found.batch.map(|batch| Batch { inner: Arc::new(batch) });
    (found.position, records, found.stream, found.offset, found.timestamp, batch)
}

/// The payload of the record that says what was given up; of very many ranges those that are close together as one.
#[pyfunction]
#[pyo3(signature = (database_id, *, salvaged, when, before, after, kept, lost))]
#[allow(clippy::too_many_arguments)]
pub fn encode_repair<'py>(
    py: Python<'py>,
    database_id: &[u8],
    salvaged: bool,
    when: u64,
    before: u32,
    after: u32,
    kept: u64,
    lost: Vec<(u64, u64)>,
) -> PyResult<Bound<'py, PyBytes>> {
    let database = exactly(database_id, "database id")?;
    let repaired = Repaired { salvaged, database, when, before, after, kept, lost, coarse: false };
    Ok(PyBytes::new(py, &repaired.bounded().encode()))
}
