//! The errors of `kimberlite.errors`, raised from here, and those of the operating system.
use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("kimberlite.errors")?.getattr(name)
}

pub fn raise(py: Python<'_>, name: &str, message: &str) -> PyErr {
    class(py, name).and_then(|class| class.call1((message,))).map_or_else(|error| error, PyErr::from_value)
}

pub fn conflict(py: Python<'_>, message: String, expected: Option<u64>, about: &str) -> PyErr {
    class(py, "Conflict")
        .and_then(|class| class.call1((message, expected, about)))
        .map_or_else(|error| error, PyErr::from_value)
}

pub fn dropped(py: Python<'_>, message: &str, first: u64) -> PyErr {
    let error = class(py, "Dropped").and_then(|class| class.call1((message, first)));
    error.map_or_else(|error| error, PyErr::from_value)
}

pub fn erased(py: Python<'_>, stream: &str, when: u64, reason: &str) -> PyErr {
    let error = class(py, "Erased").and_then(|class| class.call_method1("of", (stream, when, reason)));
    error.map_or_else(|error| error, PyErr::from_value)
}

pub fn corrupt(
    py: Python<'_>,
    message: &str,
    file: &str,
    place: Option<u64>,
    group: Option<u64>,
    position: Option<u64>,
) -> PyErr {
    let build = || {
        let named = PyDict::new(py);
        named.set_item("file", file)?;
        named.set_item("place", place)?;
        named.set_item("group", group)?;
        named.set_item("position", position)?;
        class(py, "Corrupt")?.call((message,), Some(&named))
    };
    build().map_or_else(|error| error, PyErr::from_value)
}

/// The OSError with its errno, which the plain conversion leaves out.
pub fn os_error(error: io::Error) -> PyErr {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, text.split(" (os error").next().unwrap_or_default().to_owned())),
        None => PyOSError::new_err(text),
    }
}
