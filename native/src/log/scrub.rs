//! Closed segments that are read again while nobody asks for them.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use kimberlite_core::format::Damage;
use kimberlite_core::log;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::Log;
use super::replaying::{Stopped, stopped};

/// The groups of one segment, one piece after another.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Scrub {
    log: Arc<log::Log>,
    inner: Mutex<log::Scrub>,
}

#[pymethods]
impl Scrub {
    /// The first block of its file.
    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.lock().unwrap().header.encode())
    }

    /// Whether the log still has the segment in this file.
    #[getter]
    fn is_current(&self) -> bool {
        self.log.is_current(&self.inner.lock().unwrap())
    }

    /// Whether the hashes before the segment are known; without them `take` gives none.
    #[getter]
    fn is_rooted(&self) -> bool {
        self.inner.lock().unwrap().is_rooted()
    }

    /// Number and position of the group that is next.
    #[getter]
    fn expected(&self) -> (u64, u64) {
        let expected = *self.inner.lock().unwrap().expected();
        (expected.number, expected.position)
    }

    /// The hashes that the groups in `data`, which starts at `place` of the segment, make: the index of the first, and
    /// they, joined; and as `Log.replay`.
    #[allow(clippy::type_complexity)]
    fn take<'py>(&self, py: Python<'py>, place: u64, data: &[u8]) -> ((u64, Bound<'py, PyBytes>), Stopped) {
        let (replayed, (first, hashes)) = py.detach(|| self.inner.lock().unwrap().take(&self.log, place, data));
        ((first, PyBytes::new(py, hashes.as_flattened())), stopped(replayed))
    }

    /// Its index file, when all is taken of a file of this size.
    fn finish<'py>(&self, py: Python<'py>, size: u64) -> PyResult<Bound<'py, PyBytes>> {
        let index = py.detach(|| {
            let mut index = self.inner.lock().unwrap().finish(size)?;
            index.extend(log::derived_mac(&self.log.keys.receipt, &index));
            Ok(index)
        });
        index.map(|index| PyBytes::new(py, &index)).map_err(|Damage(what)| PyValueError::new_err(what))
    }
}

#[pymethods]
impl Log {
    /// What reads a closed segment again; None if there is none of this number.
    fn scrub(&self, py: Python<'_>, number: u64) -> Option<Scrub> {
        let inner = py.detach(|| self.inner.scrub(number))?;
        Some(Scrub { log: self.inner.clone(), inner: Mutex::new(inner) })
    }

    /// Something in the file of hashes is wrong: the next start makes it again.
    fn doubt(&self) {
        self.inner.doubted.store(true, Relaxed);
    }
}
