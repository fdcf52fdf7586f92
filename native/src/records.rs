//! Records and receipts on their way to Python.
use kimberlite_core::format::Damage;
use kimberlite_core::log::{Found, Log, Receipt};
use kimberlite_core::record::Record;
use kimberlite_core::wire::cursor::{Cursor, Malformed, Parsed};
use kimberlite_core::wire::records::{RunHead, take_record};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyInt, PyList, PyString, PyTuple, PyType};

use crate::batch::record_type;
use crate::errors;

static RECEIPT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static NEW: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// An instance of a NamedTuple without the detour through its Python constructor.
fn named<'py>(class: &Bound<'py, PyType>, fields: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    let py = class.py();
    let new = NEW.get_or_try_init(py, || py.get_type::<PyTuple>().getattr("__new__").map(Bound::unbind))?;
    new.bind(py).call1((class, fields))
}

/// What all receipts of a group have in common, made once.
pub struct Ending<'py> {
    timestamp: Bound<'py, PyAny>,
    tree_size: Bound<'py, PyAny>,
    root: Bound<'py, PyAny>,
    chain: Bound<'py, PyAny>,
    group: Bound<'py, PyAny>,
}

impl<'py> Ending<'py> {
    pub fn of(py: Python<'py>, r: &Receipt) -> Self {
        Self {
            timestamp: PyInt::new(py, r.timestamp).into_any(),
            tree_size: PyInt::new(py, r.tree_size).into_any(),
            root: PyBytes::new(py, &r.root).into_any(),
            chain: PyBytes::new(py, &r.chain).into_any(),
            group: PyInt::new(py, r.group).into_any(),
        }
    }
}

pub fn receipt<'py>(
    py: Python<'py>,
    name: &Bound<'py, PyAny>,
    r: &Receipt,
    ending: &Ending<'py>,
    mac: &[u8; 16],
) -> PyResult<Bound<'py, PyAny>> {
    let class = RECEIPT.import(py, "kimberlite.records", "Receipt")?;
    let fields: [Bound<'py, PyAny>; 13] = [
        name.clone(),
        PyInt::new(py, r.first_offset).into_any(),
        PyInt::new(py, r.last_offset).into_any(),
        PyInt::new(py, r.first_position).into_any(),
        PyInt::new(py, r.last_position).into_any(),
        ending.timestamp.clone(),
        PyBool::new(py, r.durable).to_owned().into_any(),
        ending.tree_size.clone(),
        ending.root.clone(),
        ending.chain.clone(),
        PyInt::new(py, r.incarnation).into_any(),
        ending.group.clone(),
        PyBytes::new(py, mac).into_any(),
    ];
    named(class, PyTuple::new(py, fields)?)
}

/// Puts the records that were found, `reverse` or not, behind those that are in the list.
pub fn append_records(
    py: Python<'_>,
    log: &Log,
    found: &Found,
    reverse: bool,
    out: &Bound<'_, PyList>,
) -> PyResult<()> {
    let header = &found.run.opened.header;
    let name = PyString::new(py, &log.streams.read().unwrap().info[header.stream as usize].name).into_any();
    let timestamp = PyInt::new(py, found.run.timestamp).into_any();
    let one = |i: usize| -> PyResult<()> {
        let place = (header.first_offset + i as u64, header.first_position + i as u64);
        out.append(make_record(py, &found.run.opened.decoded(i), &name, place, &timestamp)?)
    };
    if reverse { (found.from..found.to).rev().try_for_each(one) } else { (found.from..found.to).try_for_each(one) }
}

fn make_record<'py>(
    py: Python<'py>,
    record: &Record,
    stream: &Bound<'py, PyAny>,
    (offset, position): (u64, u64),
    timestamp: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let none = || py.None().into_bound(py);
    let headers = if record.headers.is_empty() { PyTuple::empty(py) } else { headers(py, record)? };
    let fields: [Bound<'_, PyAny>; 8] = [
        PyBytes::new(py, record.payload).into_any(),
        record.key.map_or_else(none, |key| PyBytes::new(py, key).into_any()),
        headers.into_any(),
        record.event_time.map_or_else(none, |time| PyInt::new(py, time).into_any()),
        stream.clone(),
        PyInt::new(py, offset).into_any(),
        PyInt::new(py, position).into_any(),
        timestamp.clone(),
    ];
    named(record_type(py)?, PyTuple::new(py, fields)?)
}

fn headers<'py>(py: Python<'py>, record: &Record) -> PyResult<Bound<'py, PyTuple>> {
    let pairs: Result<Vec<_>, Damage> = record
        .headers()
        .map(|header| header.map(|(name, value)| (PyString::new(py, name), PyBytes::new(py, value))))
        .collect();
    PyTuple::new(py, pairs.expect("headers were decoded when the run was opened"))
}

/// The records of a message, in their order; `reverse`: offsets and positions go down in each run.
#[pyfunction]
pub fn decode_records<'py>(py: Python<'py>, body: &[u8], reverse: bool) -> PyResult<Bound<'py, PyList>> {
    let out = PyList::empty(py);
    let mut cursor = Cursor::new(body);
    take_runs(&mut cursor, reverse, &out).map_err(|Malformed(what)| errors::raise(py, "ProtocolError", what))??;
    Ok(out)
}

/// Outside what is wrong with the bytes, inside with Python.
fn take_runs(cursor: &mut Cursor, reverse: bool, out: &Bound<'_, PyList>) -> Parsed<PyResult<()>> {
    let py = out.py();
    let mut stored = Vec::new();
    for _ in 0..cursor.array()? {
        let head = RunHead::take(cursor)?;
        let (stream, timestamp) =
            (PyString::new(py, head.stream).into_any(), PyInt::new(py, head.timestamp).into_any());
        for i in 0..head.records as u64 {
            let record = take_record(cursor, &mut stored)?;
            let place = |first: u64| if reverse { first.wrapping_sub(i) } else { first.wrapping_add(i) };
            let made = make_record(py, &record, &stream, (place(head.offset), place(head.position)), &timestamp);
            if let Err(error) = made.and_then(|made| out.append(made)) {
                return Ok(Err(error));
            }
        }
    }
    cursor.end()?;
    Ok(Ok(()))
}
