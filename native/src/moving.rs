//! Records on their way from one database into another.
use std::sync::Arc;

use kimberlite_core::wire::append::Refused;
use kimberlite_core::wire::cursor::Malformed;
use kimberlite_core::wire::import::{self, put_import, take_runs};
use kimberlite_core::wire::{LARGEST, frames};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batch::Batch;
use crate::errors;

/// The body of a message that imports records, or a gap.
#[pyfunction]
#[pyo3(signature = (stream, offset, time, batch, gap))]
pub fn encode_import<'py>(
    py: Python<'py>,
    stream: &str,
    offset: u64,
    time: Option<u64>,
    batch: Option<&Batch>,
    gap: Option<&str>,
) -> PyResult<Bound<'py, PyBytes>> {
    let batch = batch.map(|batch| &*batch.inner);
    let mut out = Vec::with_capacity(batch.map_or(0, |batch| batch.bytes.len()) + 512);
    put_import(&mut out, stream, offset, time, batch, gap);
    if out.len() > LARGEST {
        let message = format!("a message has at most {LARGEST} bytes, and these records make one of {}", out.len());
        return Err(errors::raise(py, "LimitExceeded", &message));
    }
    Ok(PyBytes::new(py, &out))
}

type Imported = (String, u64, Option<u64>, Option<Batch>, Option<String>);

/// Stream, offset, time, records and the reason of a gap; None at the end.
#[pyfunction]
pub fn decode_import(py: Python<'_>, body: &[u8]) -> PyResult<Option<Imported>> {
    let taken = import::Import::take(body).map_err(|refused| match refused {
        Refused::Malformed(Malformed(what)) => errors::raise(py, "ProtocolError", what),
        Refused::Invalid(what) => errors::raise(py, "Invalid", what),
        Refused::TooLarge(what) => errors::raise(py, "LimitExceeded", &what),
    })?;
    Ok(taken.map(|taken| {
        let batch = taken.batch.map(|batch| Batch { inner: Arc::new(batch) });
        (taken.stream.to_owned(), taken.offset, taken.time, batch, taken.gap.map(str::to_owned))
    }))
}

fn malformed(Malformed(what): Malformed) -> PyErr {
    PyValueError::new_err(what)
}

/// Stream, first offset, time and records of each run of a message of records; those that follow each other are one.
#[pyfunction]
pub fn decode_runs(py: Python<'_>, body: &[u8]) -> PyResult<Vec<(String, u64, u64, Batch)>> {
    let runs = py.detach(|| take_runs(body)).map_err(malformed)?;
    let runs = runs.into_iter().filter(|run| !run.batch.ends.is_empty());
    Ok(runs
        .map(|run| {
            let batch = Batch { inner: Arc::new(run.batch) };
            (run.head.stream.to_owned(), run.head.offset, run.head.timestamp, batch)
        })
        .collect())
}

/// Of a message of records those of these streams, or all; how many records they are; and offset and position of the
/// last record that the message has.
#[pyfunction]
pub fn pick_runs<'py>(
    py: Python<'py>,
    body: &[u8],
    streams: Option<Vec<String>>,
) -> PyResult<(Bound<'py, PyBytes>, u64, u64, u64)> {
    let wants = |stream: &str| streams.as_ref().is_none_or(|streams| streams.iter().any(|wanted| wanted == stream));
    let picked = py.detach(|| import::pick_runs(body, wants)).map_err(malformed)?;
    Ok((PyBytes::new(py, &picked.body), picked.records, picked.last.0, picked.last.1))
}

/// A frame of an export, behind the one with the hash `previous`.
#[pyfunction]
pub fn seal_frame<'py>(py: Python<'py>, kind: u8, body: &[u8], previous: [u8; 32]) -> Bound<'py, PyBytes> {
    let frame = py.detach(|| frames::seal(kind, body, &previous));
    PyBytes::new(py, &frame)
}

/// Kind and body of a frame; None if it is not what was sealed behind the one with the hash `previous`.
#[pyfunction]
pub fn open_frame<'py>(
    py: Python<'py>,
    head: [u8; frames::HEAD],
    text: &[u8],
    previous: [u8; 32],
) -> Option<(u8, Bound<'py, PyBytes>)> {
    let opened = py.detach(|| frames::open(&head, text, &previous));
    opened.map(|(kind, body)| (kind, PyBytes::new(py, &body)))
}
