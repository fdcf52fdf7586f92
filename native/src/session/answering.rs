//! What leaves to the client: receipts of a group at a time, and whatever Python has to say.

use std::sync::atomic::Ordering::Relaxed;

use kimberlite_core::log::{EndingKey, Receipt};
use kimberlite_core::wire::receipts::{self, Ending, Place};
use kimberlite_core::wire::{kind, put_message};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::Session;
use crate::messages::{ending_of, place_of, put_error};
use crate::writer::lock;

#[pymethods]
impl Session {
    /// Sends a message; the `last` one to its id closes the request.
    fn send(&self, py: Python<'_>, kind: u32, id: u32, body: &[u8], last: bool) {
        let mut out = Vec::with_capacity(body.len() + 16);
        put_message(&mut out, kind, id, |out| out.extend_from_slice(body));
        self.write(py, &out);
        if last {
            self.close_handed(py, id);
        }
    }

    /// Sends what is put together already.
    fn send_bytes(&self, py: Python<'_>, bytes: &[u8]) {
        self.write(py, bytes);
    }

    /// Answers a request with an error, or nobody's.
    #[pyo3(signature = (id, error))]
    fn fail(&self, py: Python<'_>, id: u32, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.write_error(py, id, error)?;
        self.close_handed(py, id);
        Ok(())
    }

    /// Answers an append that Python took.
    fn acknowledge(&self, py: Python<'_>, id: u32, receipts: Vec<Bound<'_, PyTuple>>) -> PyResult<()> {
        let mut out = Vec::new();
        let first = receipts.first().ok_or_else(|| PyValueError::new_err("an append has a receipt"))?;
        let mut failed = Ok(());
        put_message(&mut out, kind::RECEIPTS, kind::NOBODY, |out| {
            failed = (|| {
                receipts::put_ending(out, &ending_of(first)?, 1);
                receipts::put_answer(out, id, receipts.len());
                for receipt in &receipts {
                    receipts::put_place(out, &place_of(receipt)?);
                }
                Ok::<_, PyErr>(())
            })();
        });
        failed?;
        self.write(py, &out);
        self.close_handed(py, id);
        Ok(())
    }
}

impl Session {
    /// Puts an append's receipts to the answers that leave with `send_answers`; whether they are the first.
    pub fn answer(&self, id: u32, weight: usize, receipts: &[Receipt], key: &EndingKey) -> bool {
        let mut state = lock(&self.state);
        if state.connection.is_none() {
            return false;
        }
        receipts::put_answer(&mut state.answers, id, receipts.len());
        for receipt in receipts {
            let place = Place {
                first_offset: receipt.first_offset,
                last_offset: receipt.last_offset,
                first_position: receipt.first_position,
                last_position: receipt.last_position,
                mac: receipt.mac_under(key),
            };
            receipts::put_place(&mut state.answers, &place);
        }
        state.answered += 1;
        state.requests -= 1;
        state.bytes -= weight;
        state.answered == 1
    }

    pub fn send_answers(&self, py: Python<'_>, ending: &Ending) {
        let mut state = lock(&self.state);
        let answered = std::mem::take(&mut state.answered);
        if answered == 0 {
            return;
        }
        let mut out = Vec::with_capacity(state.answers.len() + 160);
        put_message(&mut out, kind::RECEIPTS, kind::NOBODY, |out| {
            receipts::put_ending(out, ending, answered);
            out.extend_from_slice(&state.answers);
        });
        state.answers.clear();
        drop(state);
        self.write(py, &out);
        self.room(py);
    }

    pub fn refuse(&self, py: Python<'_>, id: u32, weight: usize, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.write_error(py, id, error)?;
        self.close_request(py, weight);
        Ok(())
    }

    fn write_error(&self, py: Python<'_>, id: u32, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut out = Vec::new();
        self.limits.get().count(&put_error(&mut out, id, error)?);
        self.write(py, &out);
        Ok(())
    }

    /// A request that Python had is answered.
    fn close_handed(&self, py: Python<'_>, id: u32) {
        let weight = lock(&self.state).handed.remove(&id);
        if let Some(weight) = weight {
            self.close_request(py, weight);
        }
    }

    fn close_request(&self, py: Python<'_>, weight: usize) {
        let mut state = lock(&self.state);
        if state.connection.is_some() {
            state.requests -= 1;
            state.bytes -= weight;
        }
        drop(state);
        self.room(py);
    }

    /// Goes on if it had stopped because too much was open.
    fn room(&self, py: Python<'_>) {
        let mut state = lock(&self.state);
        let limits = self.limits.get();
        // Not at every one: the next requests are taken together.
        let roomy = state.requests <= limits.requests / 2 && state.bytes <= limits.bytes / 2;
        if !state.full || !roomy {
            return;
        }
        state.full = false;
        let connection = state.connection.as_ref().map(|connection| connection.clone_ref(py));
        drop(state);
        if let Some(connection) = connection
            && let Err(error) = connection.bind(py).call_method0(intern!(py, "go_on"))
        {
            error.write_unraisable(py, None);
        }
    }

    /// What a client's socket does is no concern of whoever answers it.
    pub(super) fn write(&self, py: Python<'_>, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.limits.get().sent.fetch_add(bytes.len() as u64, Relaxed);
        let write = lock(&self.state).write.as_ref().map(|write| write.clone_ref(py));
        if let Some(write) = write
            && let Err(error) = write.bind(py).call1((PyBytes::new(py, bytes),))
        {
            error.write_unraisable(py, None);
        }
    }
}
