//! The Python face of the core: convert, release the GIL, map errors.
use pyo3::prelude::*;

mod buffer;
mod writer;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::buffer::Buffer;
    #[pymodule_export]
    use super::writer::{Writer, file_system};
}
