//! Memory that O_DIRECT takes: sealed into by Rust, written out by a backend.
use std::ffi::c_int;
use std::ptr;

use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

/// Any address and length that is a multiple of this suits the disks and file systems we know.
const ALIGNMENT: usize = 4096;

/// Page-aligned, zeroed, of a fixed size, and writable through Python's buffer protocol.
///
/// Nothing here says who may write when: whoever submits it leaves it alone until the backend is done with it.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Buffer {
    address: *mut u8,
    capacity: usize,
}

// SAFETY: the mapping belongs to this object alone and stays where it is until it is dropped; access to its bytes
// goes through raw pointers, whose users answer for it.
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    pub fn as_ptr(&self) -> *mut u8 {
        self.address
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[pymethods]
impl Buffer {
    #[new]
    fn new(capacity: usize) -> PyResult<Self> {
        let capacity = match capacity.checked_next_multiple_of(ALIGNMENT) {
            Some(rounded) if rounded > 0 && rounded <= isize::MAX as usize => rounded,
            _ => return Err(PyValueError::new_err("capacity must be from 1 to 2**63 - 4096 bytes")),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), capacity, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(PyMemoryError::new_err(format!("no memory for {capacity} bytes")));
        }
        Ok(Self { address: address.cast(), capacity })
    }

    /// Bytes, a multiple of 4096.
    #[getter(capacity)]
    fn capacity_in_bytes(&self) -> usize {
        self.capacity
    }

    fn __len__(&self) -> usize {
        self.capacity
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        // SAFETY: the view keeps a reference to the object, so the mapping outlives it.
        let filled = unsafe {
            let length = this.capacity as ffi::Py_ssize_t;
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), this.address.cast(), length, 0, flags)
        };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and no view is left.
        unsafe { libc::munmap(self.address.cast(), self.capacity) };
    }
}
