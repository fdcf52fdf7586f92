//! Records and hashes that were asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kimberlite_core::format::Hash;
use kimberlite_core::group::Stream;
use kimberlite_core::log::{self, FEW_LEAVES, Found, Hidden, MOST_LEAVES, Receipt};
use kimberlite_core::wire::records::Runs;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::Log;
use crate::records::append_records;

/// Numbers before and behind the next that a stream which was lost may have had.
const LOST_STREAMS: u32 = 4096;

type Listed<'py> = (Bound<'py, PyString>, bool, u64, u32, bool);

/// Of a receipt, all but its MAC, as `kimberlite.Receipt` has them.
type Fields<'py> = (&'py str, u64, u64, u64, u64, u64, bool, u64, Hash, Hash, u32, u64);

fn hidden(until: bool) -> Hidden {
    if until { Hidden::Last } else { Hidden::First }
}

impl Log {
    fn gotten<'py>(&self, py: Python<'py>, positions: &[u64], most: usize) -> PyResult<Bound<'py, PyList>> {
        let out = PyList::empty(py);
        let mut window = log::Window::default();
        for &position in positions {
            let found = py.detach(|| self.inner.get(position, &mut window, most));
            append_records(py, &self.inner, &found.map_err(|failure| self.failure(py, failure))?, false, &out)?;
        }
        Ok(out)
    }

    fn put_run(&self, runs: &mut Runs, found: &Found, reverse: bool) {
        let opened = &found.run.opened;
        let header = &opened.header;
        let streams = self.inner.streams.read().unwrap();
        let name = &streams.info[header.stream as usize].name;
        let first = if reverse { found.to - 1 } else { found.from } as u64;
        let place = (header.first_offset + first, header.first_position + first);
        let count = found.to - found.from;
        let at = |i: usize| if reverse { found.to - 1 - i } else { found.from + i };
        runs.push(name, place, found.run.timestamp, (0..count).map(|i| opened.decoded(at(i))));
    }
}

/// Records as a message that is ready to be sent.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Frame {
    #[pyo3(get)]
    data: Py<PyBytes>,
    records: usize,
}

impl Frame {
    fn new(py: Python<'_>, id: u32, runs: Runs, records: usize) -> Self {
        Self { data: PyBytes::new(py, &runs.message(id)).unbind(), records }
    }
}

#[pymethods]
impl Frame {
    /// Records in it.
    fn __len__(&self) -> usize {
        self.records
    }
}

#[pymethods]
impl Log {
    /// Name, mode, durable length, number and whether it is erased of the streams that have records, so many from the so
    /// manieth on.
    #[pyo3(signature = (start=0, count=usize::MAX))]
    fn streams<'py>(&self, py: Python<'py>, start: usize, count: usize) -> Vec<Listed<'py>> {
        let streams = self.inner.streams.read().unwrap();
        let all = streams.info.iter().zip(&streams.list).skip(1).filter(|(info, _)| info.durable > 0);
        let listed = |(info, stream): (&log::Info, &Arc<Stream>)| {
            let erased = info.erased.is_some() && !stream.opens();
            (PyString::new(py, &info.name), stream.encrypted, info.durable, stream.number, erased)
        };
        all.skip(start).take(count).map(listed).collect()
    }

    fn name_of<'py>(&self, py: Python<'py>, stream: u32) -> Bound<'py, PyString> {
        PyString::new(py, &self.inner.streams.read().unwrap().info[stream as usize].name)
    }

    fn is_encrypted(&self, stream: u32) -> bool {
        self.inner.streams.read().unwrap().list[stream as usize].encrypted
    }

    /// How many streams have records.
    #[getter]
    fn stream_count(&self) -> usize {
        let streams = self.inner.streams.read().unwrap();
        streams.info.iter().skip(1).filter(|info| info.durable > 0).count()
    }

    /// Durable length of a stream by its number.
    fn length(&self, stream: u32) -> u64 {
        self.inner.streams.read().unwrap().info[stream as usize].durable
    }

    /// One record, checked against its leaf.
    fn get<'py>(&self, py: Python<'py>, position: u64) -> PyResult<Bound<'py, PyAny>> {
        self.gotten(py, &[position], FEW_LEAVES)?.get_item(0)
    }

    /// Records in the order asked for, each checked against its leaf, if need be with much work.
    fn get_many<'py>(&self, py: Python<'py>, positions: Vec<u64>) -> PyResult<Bound<'py, PyList>> {
        self.gotten(py, &positions, MOST_LEAVES)
    }

    /// Whether something in the file of hashes was found wrong.
    #[getter]
    fn doubted(&self) -> bool {
        self.inner.doubted.load(Relaxed)
    }

    /// Raises Dropped if a read that starts or ends there, an offset of a stream or a position, asks for what is gone.
    #[pyo3(signature = (stream, start, until=None))]
    fn check_bounds(
        &self,
        py: Python<'_>,
        stream: Option<u32>,
        start: Option<u64>,
        until: Option<u64>,
    ) -> PyResult<()> {
        self.inner.check_bounds(stream, start, until).map_err(|failure| self.failure(py, failure))
    }

    /// What of a span may be read without waiting for an index; None if what is first wanted may not.
    fn at_hand(&self, stream: Option<u32>, start: u64, end: u64, reverse: bool) -> Option<(u64, u64)> {
        self.inner.at_hand(log::Span { stream, start, end, reverse })
    }

    /// The first position at or after a time; where damage hides it, of those that it may be the first, or the last of a
    /// read `until` there: what is hidden is read, and found to be damaged.
    fn position_at(&self, py: Python<'_>, timestamp: u64, until: bool) -> PyResult<u64> {
        py.detach(|| self.inner.position_at(timestamp, hidden(until))).map_err(|failure| self.failure(py, failure))
    }

    /// The first offset of a stream that is not before a position; where damage hides it likewise.
    fn offset_at(&self, py: Python<'_>, stream: u32, position: u64, until: bool) -> PyResult<u64> {
        py.detach(|| self.inner.offset_at(stream, position, hidden(until))).map_err(|failure| self.failure(py, failure))
    }

    /// Records of a span, at most `limit` and about `size` bytes of them; and the span that is left.
    #[pyo3(signature = (stream, start, end, reverse, limit, size, system))]
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn read<'py>(
        &self,
        py: Python<'py>,
        stream: Option<u32>,
        start: u64,
        end: u64,
        reverse: bool,
        limit: usize,
        size: usize,
        system: bool,
    ) -> PyResult<(Bound<'py, PyList>, u64, u64)> {
        let span = log::Span { stream, start, end, reverse };
        let mut found = Vec::new();
        let left = py.detach(|| self.inner.walk(span, limit, size, system, |each| found.push(each.clone())));
        let left = left.map_err(|failure| self.failure(py, failure))?;
        let out = PyList::empty(py);
        found.iter().try_for_each(|each| append_records(py, &self.inner, each, reverse, &out))?;
        Ok((out, left.start, left.end))
    }

    /// The same as a message to a client's request.
    #[pyo3(signature = (id, stream, start, end, reverse, limit, size, system))]
    #[allow(clippy::too_many_arguments)]
    fn read_frame(
        &self,
        py: Python<'_>,
        id: u32,
        stream: Option<u32>,
        start: u64,
        end: u64,
        reverse: bool,
        limit: usize,
        size: usize,
        system: bool,
    ) -> PyResult<(Frame, u64, u64)> {
        let span = log::Span { stream, start, end, reverse };
        let mut runs = Runs::default();
        let mut records = 0;
        let left = py.detach(|| {
            self.inner.walk(span, limit, size, system, |found| {
                records += found.to - found.from;
                self.put_run(&mut runs, found, reverse);
            })
        });
        let left = left.map_err(|failure| self.failure(py, failure))?;
        Ok((Frame::new(py, id, runs, records), left.start, left.end))
    }

    /// Records in the order asked for, as a message to a client's request: about `size` bytes of them, and one at least.
    fn get_frame(&self, py: Python<'_>, id: u32, positions: Vec<u64>, size: usize) -> PyResult<Frame> {
        let mut runs = Runs::default();
        let mut records = 0;
        let found = py.detach(|| {
            let mut window = log::Window::default();
            for &position in &positions {
                self.put_run(&mut runs, &self.inner.get(position, &mut window, MOST_LEAVES)?, false);
                records += 1;
                if runs.length() >= size {
                    break;
                }
            }
            Ok(())
        });
        found.map_err(|failure| self.failure(py, failure))?;
        Ok(Frame::new(py, id, runs, records))
    }

    /// The root when the tree had so many leaves; None if its hashes are not there.
    fn root_at<'py>(&self, py: Python<'py>, size: u64) -> Option<Bound<'py, PyBytes>> {
        py.detach(|| self.inner.root_at(size, MOST_LEAVES)).map(|root| PyBytes::new(py, &root))
    }

    /// The chain hash at the end of a durable group; None if there is no such group.
    fn chain_of<'py>(&self, py: Python<'py>, group: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let chain = py.detach(|| self.inner.chain_of(group)).map_err(|failure| self.failure(py, failure))?;
        Ok(chain.map(|chain| PyBytes::new(py, &chain)))
    }

    /// The MAC that a receipt of these fields has; None if its stream is not there.
    fn receipt_mac<'py>(&self, py: Python<'py>, fields: Fields<'_>) -> Option<Bound<'py, PyBytes>> {
        let receipt = receipt_of(fields, self.stream(fields.0)?);
        Some(PyBytes::new(py, &receipt.mac(&self.inner)))
    }

    /// Whether this is the MAC of a receipt of these fields for a stream that is not there, but was: of the numbers near
    /// the next one, which is where those are that a log has lost.
    fn is_mac_of_lost_stream(&self, py: Python<'_>, fields: Fields<'_>, mac: [u8; 16]) -> bool {
        let next = self.inner.streams.read().unwrap().list.len() as u32;
        let mut receipt = receipt_of(fields, 0);
        let key = receipt.ending_key(&self.inner);
        py.detach(|| {
            (next.saturating_sub(LOST_STREAMS)..next.saturating_add(LOST_STREAMS)).any(|stream| {
                receipt.stream = stream;
                receipt.mac_under(&key) == mac
            })
        })
    }
}

fn receipt_of(fields: Fields<'_>, stream: u32) -> Receipt {
    let (_, first_offset, last_offset, first_position, last_position, timestamp, ..) = fields;
    let (.., durable, tree_size, root, chain, incarnation, group) = fields;
    #[rustfmt::skip]
    let receipt = Receipt {
        group, tree_size, root, chain, incarnation, durable, stream,
        first_offset, last_offset, first_position, last_position, timestamp,
    };
    receipt
}
