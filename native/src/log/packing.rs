//! Closed segments on their way to lose their padding.

use std::sync::{Arc, Mutex};

use kimberlite_core::format::{Damage, SegmentHeader};
use kimberlite_core::log;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::replaying::{Stopped, stopped};
use super::{Log, exactly, io_error};

/// The groups of one segment, one piece after another.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Packing {
    log: Arc<log::Log>,
    inner: Mutex<log::Packing>,
    segment: SegmentHeader,
    /// Of the segment behind it.
    after: Option<SegmentHeader>,
}

#[pymethods]
impl Packing {
    /// What the groups in `data`, which starts at `place` of the segment, become; and as `Log.replay`.
    fn take<'py>(&self, py: Python<'py>, place: u64, data: &[u8]) -> (Bound<'py, PyBytes>, Stopped) {
        let (replayed, out) = py.detach(|| self.inner.lock().unwrap().take(&self.log.database, place, data));
        (PyBytes::new(py, &out), stopped(replayed))
    }

    /// Number and position of the group that is next.
    #[getter]
    fn expected(&self) -> (u64, u64) {
        let expected = *self.inner.lock().unwrap().expected();
        (expected.number, expected.position)
    }

    /// The new segment's header, without what only a packed one has.
    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.lock().unwrap().header().encode())
    }

    /// The first block of the segment as it was.
    #[getter]
    fn segment<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.segment.encode())
    }

    /// Header and index of the packed segment, when all is taken.
    #[allow(clippy::type_complexity)]
    fn finish<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let after = self.after.ok_or(Damage("no segment is behind it"));
        let finished = after.and_then(|after| self.inner.lock().unwrap().finish(&after));
        let (header, mut index) = finished.map_err(|Damage(what)| PyValueError::new_err(what))?;
        index.extend(log::derived_mac(&self.log.keys.receipt, &index));
        Ok((PyBytes::new(py, &header), PyBytes::new(py, &index)))
    }
}

#[pymethods]
impl Log {
    /// How long a closed segment is at most when it is packed; None if it is, or there is none of this number.
    fn packed_length(&self, py: Python<'_>, number: u64) -> PyResult<Option<u64>> {
        py.detach(|| self.inner.packed_length(number)).map_err(|error| io_error(py, error))
    }

    /// What makes of a packed segment, by its header, one that is not.
    fn unpacking(&self, header: &[u8], salt: &[u8]) -> PyResult<Packing> {
        let header = SegmentHeader::decode(header).map_err(|Damage(what)| PyValueError::new_err(what))?;
        let inner = log::Packing::unpacking(header, exactly(salt, "salt")?);
        Ok(Packing { log: self.inner.clone(), inner: Mutex::new(inner), segment: header, after: None })
    }

    /// What packs a closed segment under a salt.
    fn packing(&self, number: u64, salt: &[u8]) -> PyResult<Packing> {
        let headers = self.inner.headers(number);
        let (segment, after) = headers.ok_or_else(|| PyValueError::new_err("there is no such segment"))?;
        let inner = Mutex::new(log::Packing::new(segment, exactly(salt, "salt")?));
        Ok(Packing { log: self.inner.clone(), inner, segment, after: Some(after) })
    }
}
