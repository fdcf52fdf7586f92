//! The bodies of messages as Python has them: strict on the way in, plain on the way out.
use kimberlite_core::wire::cursor::{Make, Malformed, Put, Value, make};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::errors;

struct Objects<'py>(Python<'py>);

impl<'py> Make for Objects<'py> {
    type Made = PyResult<Bound<'py, PyAny>>;

    fn leaf(&mut self, value: Value) -> Self::Made {
        let py = self.0;
        Ok(match value {
            Value::Bool(value) => PyBool::new(py, value).to_owned().into_any(),
            Value::Integer(value) => PyInt::new(py, value).into_any(),
            Value::Count(value) => PyInt::new(py, value).into_any(),
            Value::Float(value) => PyFloat::new(py, value).into_any(),
            Value::Bytes(value) => PyBytes::new(py, value).into_any(),
            Value::Text(value) => PyString::new(py, value).into_any(),
            Value::Nil | Value::Array(_) | Value::Map(_) => py.None().into_bound(py),
        })
    }

    fn array(&mut self, elements: Vec<Self::Made>) -> Self::Made {
        let elements: PyResult<Vec<_>> = elements.into_iter().collect();
        Ok(PyList::new(self.0, elements?)?.into_any())
    }

    fn map(&mut self, pairs: Vec<(&str, Self::Made)>) -> Self::Made {
        let made = PyDict::new(self.0);
        pairs.into_iter().try_for_each(|(name, value)| made.set_item(name, value?))?;
        Ok(made.into_any())
    }
}

/// What a message says; ProtocolError if it may not.
#[pyfunction]
pub fn unpack<'py>(py: Python<'py>, body: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match make(body, &mut Objects(py)) {
        Ok(made) => made,
        Err(Malformed(what)) => Err(errors::raise(py, "ProtocolError", what)),
    }
}

/// A message's body: of None, bools, ints, floats, strings, bytes, and lists, tuples and dicts of these.
#[pyfunction]
pub fn pack<'py>(py: Python<'py>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let mut out = Vec::new();
    put(&mut out, value)?;
    Ok(PyBytes::new(py, &out))
}

pub fn put(out: &mut Vec<u8>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if value.is_none() {
        out.put_nil();
    } else if let Ok(value) = value.cast::<PyBool>() {
        out.put_bool(value.is_true());
    } else if value.is_instance_of::<PyInt>() {
        match value.extract::<u64>() {
            Ok(count) => out.put_count(count),
            Err(_) => out.put_integer(value.extract()?),
        }
    } else if let Ok(value) = value.cast::<PyFloat>() {
        out.put_float(value.value());
    } else if let Ok(value) = value.cast::<PyString>() {
        out.put_text(&value.to_string_lossy());
    } else if let Ok(value) = value.cast::<PyBytes>() {
        out.put_bytes(value.as_bytes());
    } else if let Ok(value) = value.cast::<PyDict>() {
        out.put_map(value.len());
        for (name, value) in value {
            out.put_text(&name.cast::<PyString>()?.to_string_lossy());
            put(out, &value)?;
        }
    } else if let Ok(value) = value.cast::<PyList>() {
        out.put_array(value.len());
        value.iter().try_for_each(|element| put(out, &element))?;
    } else if let Ok(value) = value.cast::<PyTuple>() {
        out.put_array(value.len());
        value.iter().try_for_each(|element| put(out, &element))?;
    } else {
        return Err(PyTypeError::new_err(format!("no message has {}", value.get_type())));
    }
    Ok(())
}
