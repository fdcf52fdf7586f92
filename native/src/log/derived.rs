//! Index files, hashes, producers and checkpoints: what is made of a log and kept beside it.

use std::sync::{Arc, Mutex};

use kimberlite_core::format::{Damage, SegmentHeader};
use kimberlite_core::log;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::replaying::ask;
use super::segment::{reopened, source_of};
use super::{Log, Resume, Segment, io_error};

/// Hashes in the order of their file, one piece after another.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Proving {
    inner: Mutex<log::Proving>,
}

#[pymethods]
impl Proving {
    /// Takes the hashes that come with some leaves: the index of the first that is not what it must be, or None.
    fn take(&self, py: Python<'_>, hashes: &[u8]) -> Option<u64> {
        py.detach(|| self.inner.lock().unwrap().take(hashes.as_chunks().0).err())
    }

    /// Of all leaves so far.
    #[getter]
    fn root<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.lock().unwrap().tree().root())
    }
}

#[pymethods]
impl Log {
    /// A segment to read from and, when it is active, to seal into; `upto` is what a checkpoint covers of it.
    #[pyo3(signature = (header, file, upto=0))]
    fn attach(&self, py: Python<'_>, header: &[u8], file: &Bound<'_, PyAny>, upto: u64) -> PyResult<Segment> {
        let header = SegmentHeader::decode(header).map_err(|Damage(what)| PyValueError::new_err(what))?;
        let source = source_of(file)?;
        let inner = py.detach(|| log::Segment::resumed(header, source, upto)).map_err(|error| io_error(py, error))?;
        let inner = Arc::new(inner);
        self.inner.attach(inner.clone());
        Ok(Segment { inner })
    }

    /// From here on a segment's file is opened, by this call, whenever it is read and not open.
    fn release(&self, segment: &Segment, open: Py<PyAny>) {
        segment.inner.read_from(reopened(&self.files, open));
    }

    /// A closed segment, whose index is read from a file, or made again, when it is needed.
    #[pyo3(signature = (header, open, index))]
    fn attach_closed(&self, header: &[u8], open: Py<PyAny>, index: Option<Py<PyAny>>) -> PyResult<Segment> {
        let header = SegmentHeader::decode(header).map_err(|Damage(what)| PyValueError::new_err(what))?;
        let (source, index) = (reopened(&self.files, open), index.map(|open| reopened(&self.files, open)));
        let inner = Arc::new(log::Segment::closed(header, source, index, self.inner.keys.receipt));
        self.inner.attach(inner.clone());
        Ok(Segment { inner })
    }

    /// The index file of a segment that is active in memory.
    fn index_file<'py>(&self, py: Python<'py>, segment: &Segment) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| {
            let index = segment.inner.index();
            let log::Index::Active(index) = &*index else { return None };
            let mut bytes = index.encode();
            let mac = log::derived_mac(&self.inner.keys.receipt, &bytes);
            bytes.extend(mac);
            Some(bytes)
        });
        bytes.map(|bytes| PyBytes::new(py, &bytes)).ok_or_else(|| PyValueError::new_err("the segment is closed"))
    }

    /// From here on the runs of a segment are looked up in its index file.
    fn close_segment(&self, segment: &Segment, index: Py<PyAny>) {
        let closed = log::Index::closed(Some(reopened(&self.files, index)), self.inner.keys.receipt);
        *segment.inner.index.write().unwrap() = Arc::new(closed);
    }

    /// The file of tree hashes; None while there is none.
    #[pyo3(signature = (file))]
    fn set_hashes(&self, file: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.inner.set_hashes(file.map(source_of).transpose()?);
        Ok(())
    }

    /// The file of hashes of what was dropped; None if there is none.
    #[pyo3(signature = (file))]
    fn set_past(&self, file: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.inner.set_past(file.map(source_of).transpose()?);
        Ok(())
    }

    /// What goes over the hashes behind so many leaves; None if those of these are not there.
    fn proving(&self, py: Python<'_>, size: u64) -> Option<Proving> {
        py.detach(|| self.inner.proving(size)).map(|inner| Proving { inner: Mutex::new(inner) })
    }

    /// Whether the file of hashes is this database's, and has the peaks of the tree where they belong.
    fn hashes_fit(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.hashes_fit())
    }

    /// The peaks of the tree, each with its index in the file of hashes.
    fn peaks<'py>(&self, py: Python<'py>) -> Vec<(u64, Bound<'py, PyBytes>)> {
        self.inner.stored_peaks().iter().map(|(index, peak)| (*index, PyBytes::new(py, peak))).collect()
    }

    /// Hashes that nobody has taken for the file or, `again`, that were not flushed; so many at most: the index of the
    /// first, and they, joined.
    #[pyo3(signature = (most, again=false))]
    fn take_hashes<'py>(&self, py: Python<'py>, most: usize, again: bool) -> (u64, Bound<'py, PyBytes>) {
        let (first, hashes) = py.detach(|| self.inner.take_hashes(most, again));
        (first, PyBytes::new(py, hashes.as_flattened()))
    }

    fn flushed_hashes(&self, upto: u64) {
        self.inner.flushed_hashes(upto);
    }

    fn snapshot<'py>(&self, py: Python<'py>, segment: &Segment, place: u64, producers: u64) -> Bound<'py, PyBytes> {
        let header = &segment.inner.header;
        PyBytes::new(py, &self.inner.snapshot(header.number, place, &header.salt, producers))
    }

    /// Where a checkpoint leaves off; None if its MAC is wrong.
    fn resume(&self, bytes: &[u8]) -> Option<Resume> {
        self.inner.resume(bytes).map(Resume)
    }

    /// Whether the group that a restored checkpoint ends with is in its place.
    fn ends_with(&self, resume: &Resume, header: &[u8], group: &[u8]) -> bool {
        self.inner.ends_with(&resume.0, header, group)
    }

    /// Whether a checkpoint that resumes says what this log was at its group.
    fn was(&self, py: Python<'_>, checkpoint: &[u8]) -> PyResult<bool> {
        py.detach(|| self.inner.was(checkpoint)).map_err(|failure| self.failure(py, failure))
    }

    fn restore(&self, py: Python<'_>, bytes: &[u8], keys: Py<PyAny>) -> PyResult<()> {
        let mut failed = None;
        let restored = py.detach(|| self.inner.restore(bytes, &mut |d, hash| ask(&keys, d, hash, &mut failed)));
        match (failed, restored) {
            (Some(error), _) => Err(error),
            (None, restored) => restored.map_err(|Damage(what)| PyValueError::new_err(what)),
        }
    }

    /// A piece for the file of producers, which is so long; and whether it is to have no others.
    fn take_producers<'py>(&self, py: Python<'py>, upto_group: u64, length: usize) -> (Bound<'py, PyBytes>, bool) {
        let (piece, anew) = self.inner.take_producers(upto_group, length);
        (PyBytes::new(py, &piece), anew)
    }

    /// Takes the tables from a file of producers; false if it is not the one that the checkpoint names.
    fn load_producers(&self, py: Python<'_>, file: &[u8], resume: &Resume) -> bool {
        py.detach(|| self.inner.load_producers(file, &resume.0.last_piece))
    }

    /// Whether the log that was restored has what this segment has, up to where the checkpoint was taken.
    fn reaches(&self, segment: &Segment) -> bool {
        self.inner.reaches(&segment.inner)
    }
}
