//! From requests to receipts.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use kimberlite_core::log::{self, Admission, Failure, Part, Refused};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::sealed::{Sealed, Shared, WORTH_A_THREAD};
use super::{Log, Segment};
use crate::batch::checked_batch;
use crate::buffer::Buffer;
use crate::pool::{Answers, Pool, Request};

#[pymethods]
impl Log {
    /// Where appends wait for a group.
    fn pool(&self, group_bytes: usize) -> Pool {
        Pool::new(self.inner.clone(), group_bytes)
    }

    /// An append of records to one stream; None if there is no stream of this name.
    fn request(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        records: &Bound<'_, PyAny>,
        policy: &str,
        future: Py<PyAny>,
    ) -> PyResult<Option<Request>> {
        let Ok(known) = name.to_str() else { return Ok(None) };
        let Some(stream) = self.inner.streams.read().unwrap().number(known) else { return Ok(None) };
        let part = Part { stream, batch: checked_batch(py, records)?, expect: None, gap: None };
        let name = name.clone().into_any().unbind();
        Ok(Some(Request::single(name, part, policy, future, self.inner.database.quantum)))
    }

    /// Puts appends into the group that is forming. Gives those that are in it, and those that are not: each with its
    /// error, or with the number of the group that it is in already.
    #[allow(clippy::type_complexity)]
    fn admit<'py>(
        &self,
        py: Python<'py>,
        requests: Vec<Bound<'py, Request>>,
        now: u64,
    ) -> PyResult<(Vec<Bound<'py, Request>>, Vec<(Bound<'py, Request>, Bound<'py, PyAny>)>)> {
        let (mut accepted, mut refused) = (Vec::with_capacity(requests.len()), Vec::new());
        for request in requests {
            let asked = request.get();
            let producer = asked.producer.as_ref().map(|(id, sequence)| (&id[..], *sequence));
            let admitted = match asked.time {
                Some(time) => self.inner.admit_at(&asked.parts, time, now),
                None => self.inner.admit_again(&asked.parts, producer, asked.since, asked.several, now),
            };
            match admitted {
                Ok(Admission::New(places)) => {
                    asked.places.set(places).expect("an append is admitted once");
                    accepted.push(request);
                }
                Ok(Admission::Remembered { group }) => refused.push((request, group.into_pyobject(py)?.into_any())),
                Err(error) => {
                    let error = self.refused(py, error).into_value(py);
                    refused.push((request, error.into_bound(py).into_any()));
                }
            }
        }
        Ok((accepted, refused))
    }

    /// The number of the group that an append is in already, None if it is in none, or an error if nobody can tell.
    fn repeated<'py>(&self, py: Python<'py>, request: &Request) -> PyResult<Bound<'py, PyAny>> {
        let Some((id, sequence)) = &request.producer else { return Ok(py.None().into_bound(py)) };
        match self.inner.repeated(&request.parts, (id, *sequence), request.since, request.several) {
            Ok(group) => Ok(group.into_pyobject(py)?.into_any()),
            Err(error) => Ok(self.refused(py, error).into_value(py).into_bound(py).into_any()),
        }
    }

    /// Answers an append of a producer that is in a durable group already as it was answered then.
    fn answer_again(&self, py: Python<'_>, number: u64, request: &Request) -> PyResult<()> {
        let (id, sequence) = request.producer.as_ref().expect("only a producer's append is remembered");
        let receipts = py.detach(|| self.inner.reread(number, &request.parts, id, *sequence, request.several));
        let receipts = receipts.map_err(|failure| match failure {
            Failure::Dropped { .. } => self.refused(py, Refused::Forgotten),
            failure => self.failure(py, failure),
        })?;
        let mut answers = Answers::new(py, &self.inner, self.meters.get(), None);
        answers.answer(request, &receipts)?;
        answers.leave();
        Ok(())
    }

    /// Puts declarations into the group that is forming, so many bytes of it at most; what they take.
    fn declare(&self, most: usize) -> usize {
        self.inner.declare(most)
    }

    /// Seals what was admitted into the buffer.
    #[allow(clippy::too_many_arguments)]
    fn seal(
        &self,
        py: Python<'_>,
        segment: &Segment,
        place: u64,
        durable_upto: u64,
        now: u64,
        closing: bool,
        buffer: &Buffer,
    ) -> Sealed {
        let (address, capacity) = (buffer.as_ptr() as usize, buffer.capacity());
        let segment = segment.inner.clone();
        let began = Instant::now();
        let (inner, took) = py.detach(|| {
            // SAFETY: the committer hands a buffer to one group at a time and keeps it until its write is done.
            let out = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, capacity) };
            (self.inner.seal(&segment, place, durable_upto, now, closing, out), began.elapsed())
        });
        self.meters.get().sealed(took);
        Sealed {
            number: inner.number,
            place: inner.place,
            padded: inner.padded,
            records: inner.records,
            timestamp: inner.timestamp,
            shared: Arc::new(Shared {
                group: Mutex::new(inner),
                segment,
                began,
                tree: Mutex::new(None),
                finished: Condvar::new(),
            }),
        }
    }

    /// Leaves, tree and index of a sealed group, while it is on its way to the disk.
    fn finish(&self, py: Python<'_>, sealed: &Sealed) {
        py.detach(|| {
            let mut finisher = self.finisher.lock().unwrap();
            let busy = finisher.last.as_ref().is_some_and(|last| last.tree.lock().unwrap().is_none());
            if busy || sealed.records >= WORTH_A_THREAD {
                finisher.submit(&self.inner, &sealed.shared);
            } else {
                finisher.last = None;
                sealed.shared.finish(&self.inner);
            }
        });
    }

    /// Returns when everything that was sealed is finished.
    fn settle(&self, py: Python<'_>) {
        py.detach(|| {
            if let Some(last) = self.finisher.lock().unwrap().last.take() {
                last.wait();
            }
        });
    }

    /// The group and all before it are durable: readers see them from here on.
    fn publish(&self, py: Python<'_>, sealed: &Sealed) {
        py.detach(|| {
            sealed.shared.wait();
            self.inner.publish(&sealed.shared.group.lock().unwrap());
        });
    }

    /// Answers the appends of a sealed and finished group.
    fn acknowledge(
        &self,
        py: Python<'_>,
        sealed: &Sealed,
        requests: Vec<Bound<'_, Request>>,
        durable: bool,
    ) -> PyResult<()> {
        let (size, root) = py.detach(|| sealed.shared.wait());
        let group = sealed.shared.group.lock().unwrap();
        let mut receipt = log::Receipt {
            group: group.number,
            tree_size: size,
            root,
            chain: group.chain,
            incarnation: group.incarnation,
            durable,
            stream: 0,
            first_offset: 0,
            last_offset: 0,
            first_position: 0,
            last_position: 0,
            timestamp: group.timestamp,
        };
        drop(group);
        let mut answers = Answers::new(py, &self.inner, self.meters.get(), Some(sealed.shared.began));
        let mut receipts = Vec::new();
        for request in &requests {
            let request = request.get();
            let places = request.places.get().expect("it was admitted");
            receipts.clear();
            for (part, (offset, position)) in request.parts.iter().zip(places) {
                // One that has none is answered for the record of its gap.
                let last = (part.batch.ends.len() as u64).saturating_sub(1);
                receipt.stream = if part.batch.ends.is_empty() { 0 } else { part.stream };
                (receipt.first_offset, receipt.last_offset) = (*offset, offset + last);
                (receipt.first_position, receipt.last_position) = (*position, position + last);
                receipts.push(receipt);
            }
            answers.answer(request, &receipts)?;
        }
        answers.leave();
        Ok(())
    }

    /// The header of the next segment; groups are chained to it from here on.
    fn next_segment_header<'py>(&self, py: Python<'py>, number: u64) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.next_segment(number).encode())
    }
}
