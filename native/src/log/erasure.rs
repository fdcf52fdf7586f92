//! Streams whose key is no more.

use kimberlite_core::log::{Erasure, Info};
use kimberlite_core::system::{Confirmed, Erased};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::{Log, exactly};

/// Stream, its declaration's hash, when and why, its record's position, the master key's id, and when that was confirmed
/// to be no more.
type Listed<'py> = (u32, Bound<'py, PyBytes>, u64, Bound<'py, PyString>, u64, Bound<'py, PyBytes>, Option<u64>);

/// Stream, when and why, its record's position, and whether it is pending.
type Told<'py> = (Bound<'py, PyString>, u64, Bound<'py, PyString>, u64, bool);

#[pymethods]
impl Log {
    /// The erasures that are durable, in the order of the streams.
    #[getter]
    fn erasures<'py>(&self, py: Python<'py>) -> Vec<Listed<'py>> {
        let durable = self.inner.durable();
        let streams = self.inner.streams.read().unwrap();
        let list = |erasure: Erasure| {
            let declared = PyBytes::new(py, &streams.list[erasure.stream as usize].declaration);
            let (reason, master) = (PyString::new(py, &erasure.reason), PyBytes::new(py, &erasure.master));
            let confirmed = erasure.confirmed.map(|said| said.timestamp);
            (erasure.stream, declared, erasure.at.timestamp, reason, erasure.at.position, master, confirmed)
        };
        streams.erasures_before(durable).into_iter().map(list).collect()
    }

    /// Those of so many streams from this number on: name, when and why, the record's position, and whether it is pending.
    /// None if there is no such stream.
    fn erasures_of<'py>(&self, py: Python<'py>, start: usize, count: usize) -> Option<Vec<Told<'py>>> {
        let durable = self.inner.durable();
        let streams = self.inner.streams.read().unwrap();
        let left = streams.info.get(start..).filter(|left| !left.is_empty())?;
        let told = |info: &Info| {
            let Erasure { at, reason, confirmed, .. } = info.erasure_before(durable)?;
            let (name, reason) = (PyString::new(py, &info.name), PyString::new(py, &reason));
            Some((name, at.timestamp, reason, at.position, confirmed.is_none()))
        };
        Some(left.iter().take(count).filter_map(told).collect())
    }

    fn declaration_hash<'py>(&self, py: Python<'py>, stream: u32) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.declared(stream))
    }

    /// Raises Erased if the stream is, and nothing of it can be read any more.
    fn check_erased(&self, py: Python<'_>, stream: u32) -> PyResult<()> {
        let erased = {
            let streams = self.inner.streams.read().unwrap();
            streams.erased(stream).is_some() && !streams.list[stream as usize].opens()
        };
        if erased { Err(self.refused(py, kimberlite_core::log::Refused::Erased { stream })) } else { Ok(()) }
    }

    /// The payload of the record that erases a stream.
    fn erasure_record<'py>(
        &self,
        py: Python<'py>,
        stream: u32,
        master: &[u8],
        reason: String,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (declared, master) = (self.declared(stream), exactly(master, "key id")?);
        Ok(PyBytes::new(py, &Erased { stream, declared, master, reason }.encode()))
    }

    /// The payload of the record by which the master key of an erasure is no more.
    fn confirmation_record<'py>(&self, py: Python<'py>, stream: u32, master: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let (declared, master) = (self.declared(stream), exactly(master, "key id")?);
        Ok(PyBytes::new(py, &Confirmed { stream, declared, master }.encode()))
    }

    /// Lets go of the key of a stream, and of all that was opened or derived with it.
    fn forget(&self, py: Python<'_>, stream: u32) {
        py.detach(|| self.inner.forget(stream));
    }
}

impl Log {
    fn declared(&self, stream: u32) -> [u8; 32] {
        self.inner.streams.read().unwrap().list[stream as usize].declaration
    }
}
