//! Memory that a socket is read into, and the messages in it.
use std::ffi::c_int;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use kimberlite_core::wire::LARGEST_REPLY;
use kimberlite_core::wire::inbox::{Inbox as Bytes, Unfit};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors;
use crate::writer::lock;

/// Bytes for what arrives at a server, as long as no message is longer.
pub const USUAL: usize = 128 << 10;
/// The same for a client: a message of records is no longer. They are taken when they are used.
const OF_A_CLIENT: usize = 2 << 20;

/// Whether the room for the next read is lent to whoever reads: nothing moves it until it is back.
#[derive(Default)]
pub struct Lease(AtomicBool);

impl Lease {
    /// An error if it is lent already, and so may not be moved.
    pub fn check(&self) -> PyResult<()> {
        if self.0.load(Relaxed) { Err(PyBufferError::new_err("it is being read into already")) } else { Ok(()) }
    }

    /// Lends the room, which is the owner's.
    pub fn lend<T>(
        &self,
        owner: &Bound<'_, T>,
        room: &mut [u8],
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        self.check()?;
        // SAFETY: the view keeps a reference to the owner, and nothing moves the room while it is lent.
        let filled = unsafe {
            let length = room.len() as ffi::Py_ssize_t;
            ffi::PyBuffer_FillInfo(view, owner.as_ptr(), room.as_mut_ptr().cast(), length, 0, flags)
        };
        if filled != 0 {
            return Err(PyErr::fetch(owner.py()));
        }
        self.0.store(true, Relaxed);
        Ok(())
    }

    pub fn take_back(&self) {
        self.0.store(false, Relaxed);
    }
}

/// So many bytes were read, if there was room for them.
pub fn arrived(bytes: &mut Bytes, count: usize) -> PyResult<()> {
    if count > bytes.room().len() {
        return Err(PyValueError::new_err("more was read than there was room for"));
    }
    bytes.arrived(count);
    Ok(())
}

/// What has arrived of a connection to a server and is not yet taken; reads go into it.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Inbox {
    bytes: Mutex<Bytes>,
    lease: Lease,
}

#[pymethods]
impl Inbox {
    #[new]
    fn new() -> Self {
        Self { bytes: Mutex::new(Bytes::new(OF_A_CLIENT, LARGEST_REPLY)), lease: Lease::default() }
    }

    /// A buffer that has none would be refused.
    fn __len__(&self) -> usize {
        lock(&self.bytes).capacity()
    }

    /// Where the next read goes.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut bytes = lock(&this.bytes);
        this.lease.check()?;
        bytes.make_room();
        this.lease.lend(&slf, bytes.room(), view, flags)
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.lease.take_back();
    }

    /// The messages that are there as a whole, so many bytes later: kind, id and body of each.
    fn take<'py>(&self, py: Python<'py>, count: usize) -> PyResult<Vec<(u32, u32, Bound<'py, PyBytes>)>> {
        let mut bytes = lock(&self.bytes);
        arrived(&mut bytes, count)?;
        let mut taken = Vec::new();
        loop {
            match bytes.next() {
                Ok(None) => return Ok(taken),
                Ok(Some((header, body))) => {
                    taken.push((header.kind, header.id, PyBytes::new(py, body)));
                    bytes.take(header);
                }
                Err(Unfit(length)) => {
                    let message = format!("a reply has 1 to {LARGEST_REPLY} bytes, not {length}");
                    return Err(errors::raise(py, "FrameTooLarge", &message));
                }
            }
        }
    }
}
