//! The way back from segments to a log.

use kimberlite_core::format::{Checked, Damage, Hash, ensure};
use kimberlite_core::keys::Key;
use kimberlite_core::log::{self, Replayed, Stop};
use kimberlite_core::system::Declaration;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{Log, Segment, exactly};

#[pymethods]
impl Log {
    /// Why the log cannot go on with this segment; None if it can.
    fn enter(&self, segment: &Segment) -> Option<&'static str> {
        self.inner.enter(&segment.inner).err().map(|Damage(what)| what)
    }

    /// Applies groups up to `last`. Gives the next place, and `done`, `closed`, `more`, `bad` or `damaged` with how many bytes or why.
    fn replay(
        &self,
        py: Python<'_>,
        segment: &Segment,
        place: u64,
        data: &[u8],
        last: u64,
        keys: Py<PyAny>,
    ) -> PyResult<Stopped> {
        let mut failed = None;
        let replayed = py.detach(|| {
            let tagged = self.inner.database.tagged;
            let mut key_of = |declaration: &Declaration, hash: &Hash| {
                ensure(tagged || !declaration.encrypted, "an encrypted stream in a database without a master key")?;
                ask(&keys, declaration, hash, &mut failed)
            };
            self.inner.replay(&segment.inner, place, data, last, &mut key_of)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        Ok(stopped(replayed))
    }

    /// The highest durable group that any sound header in `data` names, and where its last byte is that is not zero.
    #[staticmethod]
    fn watermark(py: Python<'_>, segment: &Segment, place: u64, data: &[u8]) -> (u64, Option<u64>) {
        py.detach(|| log::Log::watermark(&segment.inner, place, data))
    }
}

/// The next place, why it is no further, how many bytes that takes, and what is wrong.
pub type Stopped = (u64, &'static str, usize, &'static str);

pub fn stopped(replayed: Replayed) -> Stopped {
    let (kind, needed, what) = match replayed.stop {
        Stop::Done => ("done", 0, ""),
        Stop::Closed => ("closed", 0, ""),
        Stop::More(needed) => ("more", needed, ""),
        Stop::Bad(Damage(what)) => ("bad", 0, what),
        Stop::Damaged(Damage(what)) => ("damaged", 0, what),
    };
    (replayed.place, kind, needed, what)
}

/// A stream's key from Python's vault.
pub fn ask(
    keys: &Py<PyAny>,
    declaration: &Declaration,
    hash: &Hash,
    failed: &mut Option<PyErr>,
) -> Checked<Option<Key>> {
    if !declaration.encrypted {
        return Ok(None);
    }
    Python::attach(|py| {
        let key = keys.call1(py, (declaration.stream, PyBytes::new(py, hash)));
        let key = key.and_then(|key| key.extract::<Option<Vec<u8>>>(py));
        key.and_then(|key| key.map(|key| exactly(&key, "data key")).transpose()).map_err(|error| {
            *failed = Some(error);
            Damage("the stream's key is not to be had")
        })
    })
}
