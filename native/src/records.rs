//! Records and receipts on their way to Python.
use kimberlite_core::format::Damage;
use kimberlite_core::log::{Found, Log, Receipt};
use kimberlite_core::record::Record;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyInt, PyList, PyString, PyTuple, PyType};

use crate::batch::record_type;

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
    let class = record_type(py)?;
    let header = &found.run.opened.header;
    let name = PyString::new(py, &log.streams.read().unwrap().info[header.stream as usize].name);
    let timestamp = found.run.timestamp.into_pyobject(py)?;
    let empty = PyTuple::empty(py);
    let none = py.None().into_bound(py);
    let one = |i: usize| -> PyResult<()> {
        let record: Record = found.run.opened.decoded(i);
        let headers = if record.headers.is_empty() { empty.clone() } else { headers(py, &record)? };
        let fields: [Bound<'_, PyAny>; 8] = [
            PyBytes::new(py, record.payload).into_any(),
            record.key.map_or_else(|| none.clone(), |key| PyBytes::new(py, key).into_any()),
            headers.into_any(),
            record.event_time.map_or_else(|| Ok(none.clone()), |time| time.into_pyobject(py).map(Bound::into_any))?,
            name.clone().into_any(),
            (header.first_offset + i as u64).into_pyobject(py)?.into_any(),
            (header.first_position + i as u64).into_pyobject(py)?.into_any(),
            timestamp.clone().into_any(),
        ];
        out.append(named(class, PyTuple::new(py, fields)?)?)
    };
    if reverse { (found.from..found.to).rev().try_for_each(one) } else { (found.from..found.to).try_for_each(one) }
}

fn headers<'py>(py: Python<'py>, record: &Record) -> PyResult<Bound<'py, PyTuple>> {
    let pairs: Result<Vec<_>, Damage> = record
        .headers()
        .map(|header| header.map(|(name, value)| (PyString::new(py, name), PyBytes::new(py, value))))
        .collect();
    PyTuple::new(py, pairs.expect("headers were decoded when the run was opened"))
}
