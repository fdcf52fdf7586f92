//! The Python face of the core: convert, release the GIL, map errors.
use pyo3::prelude::*;

#[pymodule]
mod _native {}
