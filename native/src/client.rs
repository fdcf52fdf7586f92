//! The client's side of a connection: what arrives is taken apart, appends are put together, receipts taken out.
use std::ffi::c_int;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kimberlite_core::log;
use kimberlite_core::wire::append::{put_one, put_several};
use kimberlite_core::wire::cursor::{Cursor, Malformed, Parsed};
use kimberlite_core::wire::inbox::{Inbox as Bytes, Unfit};
use kimberlite_core::wire::receipts::{take_answer, take_ending, take_place};
use kimberlite_core::wire::{LARGEST, LARGEST_REPLY, kind, put_message};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::batch::Batch;
use crate::errors;
use crate::records::{self, Ending};
use crate::writer::lock;

const USUAL: usize = 128 << 10;

/// What has arrived of a connection and is not yet taken; reads go into it.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Inbox {
    bytes: Mutex<Bytes>,
    exports: AtomicUsize,
}

#[pymethods]
impl Inbox {
    #[new]
    fn new() -> Self {
        Self { bytes: Mutex::new(Bytes::new(USUAL, LARGEST_REPLY)), exports: AtomicUsize::new(0) }
    }

    /// A buffer that has none would be refused.
    fn __len__(&self) -> usize {
        lock(&self.bytes).capacity()
    }

    /// Where the next read goes.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut bytes = lock(&this.bytes);
        if this.exports.load(Relaxed) > 0 {
            return Err(PyBufferError::new_err("it is being read into already"));
        }
        bytes.make_room();
        let room = bytes.room();
        // SAFETY: the view keeps a reference to the inbox, and nothing moves the room while it is exported.
        let filled = unsafe {
            let length = room.len() as ffi::Py_ssize_t;
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), room.as_mut_ptr().cast(), length, 0, flags)
        };
        if filled != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        this.exports.fetch_add(1, Relaxed);
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Relaxed);
    }

    /// The messages that are there as a whole, so many bytes later: kind, id and body of each.
    fn take<'py>(&self, py: Python<'py>, count: usize) -> PyResult<Vec<(u32, u32, Bound<'py, PyBytes>)>> {
        let mut bytes = lock(&self.bytes);
        if count > bytes.room().len() {
            return Err(PyValueError::new_err("more was read than there was room for"));
        }
        bytes.arrived(count);
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

/// A stream's name, its batch, and the offset it must get.
type PyPart<'py> = (String, Bound<'py, Batch>, Option<u64>);

/// The message of an append: to one stream, or to `several` at once.
#[pyfunction]
pub fn encode_append<'py>(
    py: Python<'py>,
    id: u32,
    parts: Vec<PyPart<'py>>,
    several: bool,
    producer: Option<(Vec<u8>, u64)>,
    sync: Option<&str>,
) -> PyResult<Bound<'py, PyBytes>> {
    let parts: Vec<_> =
        parts.iter().map(|(stream, batch, expect)| (&stream[..], &*batch.get().inner, *expect)).collect();
    let producer = producer.as_ref().map(|(id, sequence)| (&id[..], *sequence));
    let mut out = Vec::with_capacity(parts.iter().map(|(_, batch, _)| batch.bytes.len() + 64).sum::<usize>() + 256);
    let kind = if several { kind::APPEND_MANY } else { kind::APPEND };
    put_message(&mut out, kind, id, |out| {
        if several {
            put_several(out, &parts, producer, sync);
        } else {
            put_one(out, parts[0], producer, sync);
        }
    });
    if out.len() > LARGEST + kimberlite_core::wire::HEADER {
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
