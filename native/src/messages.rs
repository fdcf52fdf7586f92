//! Messages that Python has a part in: put together and taken apart.
use std::sync::Arc;

use kimberlite_core::log;
use kimberlite_core::wire::append::{Append, Refused, put_one, put_several};
use kimberlite_core::wire::cursor::{Cursor, Malformed, Parsed, Put};
use kimberlite_core::wire::receipts::{self, Place, take_answer, take_ending, take_place};
use kimberlite_core::wire::{HEADER, LARGEST, kind, put_message};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMapping, PyTuple};

use crate::batch::Batch;
use crate::errors;
use crate::records::{self, Ending};
use crate::values;

/// A message with this body.
#[pyfunction]
pub fn encode_message<'py>(py: Python<'py>, kind: u32, id: u32, body: &[u8]) -> Bound<'py, PyBytes> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    put_message(&mut out, kind, id, |out| out.extend_from_slice(body));
    PyBytes::new(py, &out)
}

/// A producer's id and sequence and, if it may have sent this before, the last group that it knew of then.
pub struct Producer {
    pub id: Vec<u8>,
    pub sequence: u64,
    pub since: Option<u64>,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Producer {
    type Error = PyErr;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok((id, sequence)) = given.extract() {
            return Ok(Self { id, sequence, since: None });
        }
        let (id, sequence, since) = given.extract()?;
        Ok(Self { id, sequence, since: Some(since) })
    }
}

/// A stream's name, its batch, and the offset it must get.
type PyPart<'py> = (String, Bound<'py, Batch>, Option<u64>);

/// The message of an append: to one stream, or to `several` at once.
#[pyfunction]
pub fn encode_append<'py>(
    py: Python<'py>,
    id: u32,
    parts: Vec<PyPart<'py>>,
    several: bool,
    producer: Option<Producer>,
    sync: Option<&str>,
) -> PyResult<Bound<'py, PyBytes>> {
    let parts: Vec<_> =
        parts.iter().map(|(stream, batch, expect)| (&stream[..], &*batch.get().inner, *expect)).collect();
    let producer = producer.as_ref().map(|producer| (&producer.id[..], producer.sequence, producer.since));
    let mut out = Vec::with_capacity(parts.iter().map(|(_, batch, _)| batch.bytes.len() + 64).sum::<usize>() + 256);
    let kind = if several { kind::APPEND_MANY } else { kind::APPEND };
    put_message(&mut out, kind, id, |out| {
        if several {
            put_several(out, &parts, producer, sync);
        } else {
            put_one(out, parts[0], producer, sync);
        }
    });
    if out.len() > LARGEST + HEADER {
        let message = format!("a message has at most {LARGEST} bytes, and this append makes one of {}", out.len());
        return Err(errors::raise(py, "LimitExceeded", &message));
    }
    Ok(PyBytes::new(py, &out))
}

/// The receipts of a message, by the ids of their requests; `names` has the streams of each.
#[pyfunction]
pub fn decode_receipts<'py>(
    py: Python<'py>,
    body: &[u8],
    names: &Bound<'py, PyDict>,
) -> PyResult<Vec<(u32, Bound<'py, PyList>)>> {
    let mut found = Vec::new();
    let taken = take_receipts(&mut Cursor::new(body), names, &mut found);
    taken.map_err(|Malformed(what)| errors::raise(py, "ProtocolError", what))??;
    Ok(found)
}

/// Outside what is wrong with the bytes, inside with Python.
fn take_receipts<'py>(
    cursor: &mut Cursor,
    names: &Bound<'py, PyDict>,
    found: &mut Vec<(u32, Bound<'py, PyList>)>,
) -> Parsed<PyResult<()>> {
    let py = names.py();
    let (ending, answers) = take_ending(cursor)?;
    let mut receipt = log::Receipt {
        group: ending.group,
        tree_size: ending.tree_size,
        root: ending.root,
        chain: ending.chain,
        incarnation: ending.incarnation,
        durable: ending.durable,
        stream: 0,
        first_offset: 0,
        last_offset: 0,
        first_position: 0,
        last_position: 0,
        timestamp: ending.timestamp,
    };
    let shared = Ending::of(py, &receipt);
    for _ in 0..answers {
        let (id, batches) = take_answer(cursor)?;
        let streams = match names.get_item(id) {
            Ok(streams) => streams.and_then(|streams| streams.cast_into::<PyTuple>().ok()),
            Err(error) => return Ok(Err(error)),
        };
        let list = PyList::empty(py);
        for i in 0..batches {
            let place = take_place(cursor)?;
            (receipt.first_offset, receipt.last_offset) = (place.first_offset, place.last_offset);
            (receipt.first_position, receipt.last_position) = (place.first_position, place.last_position);
            let Some(streams) = &streams else { continue };
            let made = streams.get_item(i).and_then(|name| records::receipt(py, &name, &receipt, &shared, &place.mac));
            if let Err(error) = made.and_then(|made| list.append(made)) {
                return Ok(Err(error));
            }
        }
        found.push((id, list));
    }
    cursor.end()?;
    Ok(Ok(()))
}

pub fn put_refusal(out: &mut Vec<u8>, id: u32, code: &str, message: &str) {
    put_message(out, kind::ERROR, id, |out| {
        out.put_map(2);
        out.put_text("code");
        out.put_text(code);
        out.put_text("message");
        out.put_text(message);
    });
}

/// An error of `kimberlite.errors`, by its code, which is given back, and what it says of itself.
pub fn put_error(out: &mut Vec<u8>, id: u32, error: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = error.py();
    let body = PyDict::new(py);
    let code = error.getattr(intern!(py, "code"))?;
    body.set_item(intern!(py, "code"), &code)?;
    body.set_item(intern!(py, "message"), error.str()?)?;
    body.update(error.getattr(intern!(py, "__dict__"))?.cast::<PyMapping>()?)?;
    let mut failed = Ok(());
    put_message(out, kind::ERROR, id, |out| failed = values::put(out, &body));
    failed.and_then(|()| code.extract())
}

/// Of a receipt as `kimberlite.Receipt` has it.
pub fn ending_of(receipt: &Bound<'_, PyTuple>) -> PyResult<receipts::Ending> {
    Ok(receipts::Ending {
        timestamp: receipt.get_item(5)?.extract()?,
        durable: receipt.get_item(6)?.extract()?,
        tree_size: receipt.get_item(7)?.extract()?,
        root: receipt.get_item(8)?.extract()?,
        chain: receipt.get_item(9)?.extract()?,
        incarnation: receipt.get_item(10)?.extract()?,
        group: receipt.get_item(11)?.extract()?,
    })
}

pub fn place_of(receipt: &Bound<'_, PyTuple>) -> PyResult<Place> {
    Ok(Place {
        first_offset: receipt.get_item(1)?.extract()?,
        last_offset: receipt.get_item(2)?.extract()?,
        first_position: receipt.get_item(3)?.extract()?,
        last_position: receipt.get_item(4)?.extract()?,
        mac: receipt.get_item(12)?.extract()?,
    })
}

/// An append's body for Python: name, batch and expected offset of each part, producer and sync.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn decode_append<'py>(
    py: Python<'py>,
    kind: u32,
    body: &[u8],
) -> PyResult<(Bound<'py, PyList>, Option<Bound<'py, PyTuple>>, Option<String>)> {
    let append = if kind == kind::APPEND { Append::to_one(body) } else { Append::to_several(body) };
    let append = append.map_err(|refused| match refused {
        Refused::Malformed(Malformed(what)) => errors::raise(py, "ProtocolError", what),
        Refused::Invalid(what) => errors::raise(py, "Invalid", what),
        Refused::TooLarge(what) => errors::raise(py, "LimitExceeded", &what),
    })?;
    let parts = PyList::empty(py);
    for part in append.parts {
        let batch = Batch { inner: Arc::new(part.batch) };
        parts.append((part.stream, Bound::new(py, batch)?, part.expect))?;
    }
    let producer = append.producer.map(|(id, sequence)| {
        let id = PyBytes::new(py, id);
        match append.since {
            None => (id, sequence).into_pyobject(py),
            Some(group) => (id, sequence, group).into_pyobject(py),
        }
    });
    Ok((parts, producer.transpose()?, append.sync.map(str::to_owned)))
}
