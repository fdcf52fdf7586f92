//! Segments that are dropped, and a log that begins behind them.

use std::sync::{Arc, Mutex};

use kimberlite_core::format::{Damage, SegmentHeader};
use kimberlite_core::log::{self, Retained};
use kimberlite_core::salvage::Repaired;
use kimberlite_core::system::System;
use pyo3::exceptions::{PyBaseException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::Log;
use super::replaying::{Stopped, ask, stopped};

/// Positions from and up to, when first and last, and by what rule.
type Dropped = (u64, u64, u64, u64, String);

/// As `repairs` gives them.
type Repair<'py> = (u64, bool, Bound<'py, PyBytes>, u64, u32, u32, u64, Vec<(u64, u64)>, bool);

fn decoded(bytes: &[u8]) -> PyResult<Retained> {
    Retained::decode(bytes).map_err(|Damage(what)| PyValueError::new_err(what))
}

#[pymethods]
impl Log {
    /// Positions below this were dropped.
    #[getter]
    fn first(&self) -> u64 {
        self.inner.first()
    }

    /// Groups below this were dropped.
    #[getter]
    fn first_group(&self) -> u64 {
        self.inner.retained().map_or(0, |retained| retained.group)
    }

    /// The first offset of a stream that was not.
    fn first_offset(&self, stream: u32) -> u64 {
        self.inner.streams.read().unwrap().info[stream as usize].first
    }

    /// The first kept segment, and what was dropped.
    #[getter]
    fn dropped(&self) -> (u64, Vec<Dropped>) {
        let retained = self.inner.retained();
        let drops = retained.iter().flat_map(|retained| &retained.drops);
        let drops = drops.map(|each| (each.from, each.to, each.first, each.last, each.rule.clone())).collect();
        (retained.as_ref().map_or(0, |retained| retained.segment), drops)
    }

    /// What was given up, by every record that says so: its position, whether it was of another log, that one's id, when,
    /// the incarnations before and after, how many records were kept, the positions that were not, and
    /// whether some of these were, too. Those that are damaged are left out.
    fn repairs<'py>(&self, py: Python<'py>) -> PyResult<Vec<Repair<'py>>> {
        let durable = self.inner.durable();
        let (found, _) =
            py.detach(|| self.inner.repairs_before(durable)).map_err(|failure| self.failure(py, failure))?;
        let repaired = found.into_iter().filter_map(|(position, payload)| match System::decode(&payload) {
            Ok(System::Repaired(said)) => Some((position, said.bounded())),
            _ => None,
        });
        let shown = |(position, said): (u64, Repaired)| {
            let database = PyBytes::new(py, &said.database);
            (position, said.salvaged, database, said.when, said.before, said.after, said.kept, said.lost, said.coarse)
        };
        Ok(repaired.map(shown).collect())
    }

    /// Positions of the records that say what was given up, and the payloads of those that were dropped.
    #[getter]
    fn repaired<'py>(&self, py: Python<'py>) -> Vec<(u64, Option<Bound<'py, PyBytes>>)> {
        let retained = self.inner.retained();
        let dropped = retained.iter().flat_map(|retained| &retained.repairs);
        let dropped = dropped.map(|(position, payload)| (*position, Some(PyBytes::new(py, payload))));
        let left = self.inner.streams.read().unwrap().repairs.clone();
        dropped.chain(left.into_iter().map(|position| (position, None))).collect()
    }

    /// The positions before this one of such records that are damaged, and why; of those that were dropped so, None.
    fn damaged_repairs<'py>(
        &self,
        py: Python<'py>,
        position: u64,
    ) -> PyResult<Vec<(u64, Option<Bound<'py, PyBaseException>>)>> {
        let found = py.detach(|| self.inner.repairs_before(position)).map_err(|failure| self.failure(py, failure))?;
        let (repairs, mut damaged) = found;
        let unsaid = repairs.into_iter().filter(|(_, payload)| payload.is_empty()).map(|(position, _)| {
            let at = damaged.iter().position(|(at, _)| *at == position);
            (position, at.map(|at| self.failure(py, damaged.swap_remove(at).1).into_value(py).into_bound(py)))
        });
        Ok(unsaid.collect())
    }

    /// All that the segments before this one say and the others need; None if there is nothing to drop. `more` is whether
    /// the rule of the last dropping was of the same kind, and let go no more than this one.
    fn retain<'py>(
        &self,
        py: Python<'py>,
        number: u64,
        now: u64,
        rule: &Bound<'py, PyString>,
        more: bool,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let rule = rule.to_str()?.to_owned();
        let retained = py.detach(|| self.inner.retain(number, now, &rule, more));
        let retained = retained.map_err(|failure| self.failure(py, failure))?;
        Ok(retained.map(|retained| PyBytes::new(py, &retained.encode())))
    }

    /// What such a record takes at most, whatever is dropped.
    #[getter]
    fn retained_bound(&self) -> usize {
        self.inner.retained_bound()
    }

    /// The payloads of its system records, of about so many bytes each.
    #[staticmethod]
    fn retention_records<'py>(py: Python<'py>, retained: &[u8], piece: usize) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let records = decoded(retained)?.records(piece);
        Ok(records.iter().map(|record| PyBytes::new(py, record)).collect())
    }

    /// Where a closed segment ends, and when its last group was sealed; None if none of this number is closed.
    fn ended(&self, py: Python<'_>, number: u64) -> PyResult<Option<(u64, u64)>> {
        let ended = py.detach(|| self.inner.ended(number));
        ended.map_err(|failure| self.failure(py, failure))
    }

    /// From here on the indexes of the segments before this one are made again from them, and their files are not open.
    fn forget_indexes(&self, number: u64) {
        let segments = self.inner.newest_first();
        segments.iter().filter(|segment| segment.header.number < number).for_each(|segment| segment.forget_index());
    }

    /// Whether nobody knew that the file of this segment is missing and was not dropped: from here on that is damage.
    fn lose(&self, number: u64) -> bool {
        self.inner.newest_first().iter().any(|segment| segment.header.number == number && segment.lose())
    }

    /// The segment that has this position, or would.
    fn segment_of(&self, position: u64) -> u64 {
        let segments = self.inner.newest_first();
        let found = segments.iter().find(|segment| segment.header.first_position <= position);
        found.or(segments.last()).map_or(0, |segment| segment.header.number)
    }

    /// From here on nothing before it is there.
    fn drop_before(&self, retained: &[u8]) -> PyResult<()> {
        self.inner.drop_before(decoded(retained)?);
        Ok(())
    }

    /// Makes an empty log what it was where its first kept segment begins.
    fn begin(&self, py: Python<'_>, retained: &[u8], keys: Py<PyAny>) -> PyResult<()> {
        let retained = decoded(retained)?;
        let mut failed = None;
        let begun = py.detach(|| self.inner.begin(retained, &mut |d, hash| ask(&keys, d, hash, &mut failed)));
        match (failed, begun) {
            (Some(error), _) => Err(error),
            (None, begun) => begun.map_err(|Damage(what)| PyValueError::new_err(what)),
        }
    }

    /// Whether what the log began with has not come yet.
    #[getter]
    fn is_beginning(&self) -> bool {
        self.inner.is_beginning()
    }

    /// Looks through segments for what they say was dropped.
    fn search(&self) -> Search {
        Search { log: self.inner.clone(), inner: Mutex::new(log::Search::new(&self.inner)) }
    }
}

#[pyclass(frozen, module = "kimberlite._native")]
pub struct Search {
    log: Arc<log::Log>,
    inner: Mutex<log::Search>,
}

#[pymethods]
impl Search {
    /// Goes on with the segment that has this header.
    fn enter(&self, header: &[u8]) -> PyResult<()> {
        let header = SegmentHeader::decode(header).map_err(|Damage(what)| PyValueError::new_err(what))?;
        self.inner.lock().unwrap().enter(header);
        Ok(())
    }

    /// The group that is next in the segment, and its first position.
    #[getter]
    fn next(&self) -> (u64, u64) {
        self.inner.lock().unwrap().next()
    }

    /// What the groups in `data`, which starts at `place` of the segment, say: the first kept segment, and all of it; and
    /// as `Log.replay`.
    #[allow(clippy::type_complexity)]
    fn take<'py>(&self, py: Python<'py>, place: u64, data: &[u8]) -> (Vec<(u64, Bound<'py, PyBytes>)>, Stopped) {
        let (replayed, found) = py.detach(|| self.inner.lock().unwrap().take(&self.log.database, place, data));
        let found = found.iter().map(|each| (each.segment, PyBytes::new(py, &each.encode()))).collect();
        (found, stopped(replayed))
    }
}
