//! Segments and their files, as Python hands them over.

use std::io;
use std::sync::Arc;

use kimberlite_core::format::{Damage, SegmentHeader};
use kimberlite_core::log::{self, Descriptor, Files, Source};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::os_error;

/// A file of a backend that has no descriptor.
struct Foreign(Py<PyAny>);

impl Source for Foreign {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        Python::attach(|py| {
            let read = self.0.bind(py).call_method1("read", (place, length));
            let bytes = read.map_err(|error| io_error(py, error))?;
            bytes.extract().map_err(|_| io::ErrorKind::InvalidData.into())
        })
    }
}

/// With the number that the system gave it.
fn io_error(py: Python<'_>, error: PyErr) -> io::Error {
    match error.value(py).getattr("errno").and_then(|errno| errno.extract()) {
        Ok(errno) => io::Error::from_raw_os_error(errno),
        Err(_) => io::Error::other(error),
    }
}

pub fn source_of(file: &Bound<'_, PyAny>) -> PyResult<Arc<dyn Source>> {
    let fd: i32 = file.getattr("fd")?.extract()?;
    if fd < 0 {
        return Ok(Arc::new(Foreign(file.clone().unbind())));
    }
    // SAFETY: the file object, which we hold, keeps the descriptor open until it is duplicated.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    Ok(Arc::new(Descriptor::duplicate(borrowed).map_err(os_error)?))
}

/// A file that Python opens whenever it is to be read and is not open.
pub fn reopened(files: &Arc<Files>, open: Py<PyAny>) -> Arc<dyn Source> {
    files.source(Box::new(move || {
        Python::attach(|py| {
            let opened = || {
                let file = open.bind(py).call0()?;
                let source = source_of(&file)?;
                if file.getattr("fd")?.extract::<i32>()? >= 0 {
                    // The source has a descriptor of its own.
                    file.call_method0("close")?;
                }
                Ok(source)
            };
            opened().map_err(|error: PyErr| io_error(py, error))
        })
    }))
}

/// A segment that can be read.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Segment {
    pub inner: Arc<log::Segment>,
}

#[pymethods]
impl Segment {
    #[getter]
    fn number(&self) -> u64 {
        self.inner.header.number
    }
    #[getter]
    fn first_group(&self) -> u64 {
        self.inner.header.first_group
    }
    #[getter]
    fn first_position(&self) -> u64 {
        self.inner.header.first_position
    }
    #[getter]
    fn salt<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.header.salt)
    }
    #[getter]
    fn before<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.header.before)
    }
}

/// What is wrong with a segment's header; None if nothing is.
#[pyfunction]
pub fn header_damage(header: &[u8], database_id: &[u8], number: u64) -> Option<&'static str> {
    match SegmentHeader::decode(header) {
        Err(Damage(what)) => Some(what),
        Ok(header) if header.database != database_id => Some("the segment belongs to another database"),
        Ok(header) if header.number != number => Some("the segment has another number"),
        Ok(_) => None,
    }
}

/// Why a segment of this size does not end where the next one begins, judged by its last block; None if it does.
#[pyfunction]
pub fn closes(header: &[u8], after: &[u8], size: u64, place: u64, block: &[u8]) -> Option<&'static str> {
    match (SegmentHeader::decode(header), SegmentHeader::decode(after)) {
        (Ok(header), Ok(after)) => log::closes(&header, &after, size, place, block),
        _ => Some("its header is damaged"),
    }
}

/// Where a replay goes on after a checkpoint.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Resume(pub log::Resume);

#[pymethods]
impl Resume {
    #[getter]
    fn segment(&self) -> u64 {
        self.0.segment
    }
    #[getter]
    fn place(&self) -> u64 {
        self.0.place
    }
    #[getter]
    fn last_place(&self) -> u64 {
        self.0.last_place
    }
    #[getter]
    fn group(&self) -> u64 {
        self.0.group
    }
    #[getter]
    fn producers(&self) -> u64 {
        self.0.producers
    }
    #[getter]
    fn hashes(&self) -> u64 {
        self.0.hashes
    }
}

pub fn segment_file(number: u64) -> String {
    format!("segments/{number:020}.seg")
}
