//! Appends on their way to a group: Python runs once for each of them, and what is done for many is done here.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use kimberlite_core::group::{Stream, make_ahead};
use kimberlite_core::log::{self, EndingKey, Part, Receipt};
use kimberlite_core::record;
use kimberlite_core::wire::receipts;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3::{PyTraverseError, PyVisit};

use crate::batch::Batch;
use crate::messages::Producer;
use crate::meters::{Appended, Meters};
use crate::records::{self, Ending};
use crate::session::Session;
use crate::writer::lock;

/// Of the system record of an append to several streams, beside its parts.
const SEVERAL: usize = 512;
/// Of the system record of a gap, beside its reason.
const GAP: usize = 256;
/// Of a producer's batch, beside its id.
const PRODUCER: usize = 32;

/// Who is answered.
pub enum Caller {
    /// A future of this process: it gets a receipt, or a list of them for an append to several streams, by these names.
    Future { future: Py<PyAny>, names: Vec<Py<PyAny>> },
    /// A client, by its request's id; what is open of its session is so many bytes less then.
    Client { session: Py<Session>, id: u32, weight: usize },
}

/// One append: its parts, what it waits for, and who waits for it.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Request {
    caller: Caller,
    pub parts: Vec<Part>,
    pub producer: Option<(Vec<u8>, u64)>,
    /// The last group that its producer knew of when it sent this before, if it did.
    pub since: Option<u64>,
    /// Whether its producer counts in stream 0.
    pub several: bool,
    policy: Policy,
    /// That its records keep.
    #[pyo3(get)]
    pub time: Option<u64>,
    /// Bytes of its records, and what it takes of a group at most.
    size: usize,
    #[pyo3(get)]
    bound: usize,
    born: Instant,
    /// Offset and position of each part's first record, once it is admitted.
    pub places: OnceLock<Vec<(u64, u64)>>,
}

/// With whom an append shares a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Alone,
    Group,
    Os,
}

impl Policy {
    pub fn named(sync: &str) -> Self {
        match sync {
            "os" => Self::Os,
            "group" => Self::Group,
            _ => Self::Alone,
        }
    }
}

/// A stream's name and number, its batch, and the offset it must get.
type PyPart<'py> = (Bound<'py, PyAny>, u32, Bound<'py, Batch>, Option<u64>);

impl Request {
    pub fn single(name: Py<PyAny>, part: Part, policy: &str, future: Py<PyAny>, quantum: usize) -> Self {
        let caller = Caller::Future { future, names: vec![name] };
        Self::build(caller, vec![part], Policy::named(policy), None, None, false, quantum)
    }

    pub fn build(
        caller: Caller,
        parts: Vec<Part>,
        policy: Policy,
        producer: Option<(Vec<u8>, u64)>,
        since: Option<u64>,
        several: bool,
        quantum: usize,
    ) -> Self {
        let size = parts.iter().map(|part| part.batch.bytes.len()).sum();
        let mut bound: usize = parts.iter().map(|part| kimberlite_core::group::bound(&part.batch, quantum)).sum();
        if let Some((id, _)) = &producer {
            bound += id.len() + PRODUCER + if several { SEVERAL + 16 * parts.len() } else { 0 };
        }
        let born = Instant::now();
        let (time, places) = (None, OnceLock::new());
        Self { caller, parts, producer, since, several, policy, time, size, bound, born, places }
    }

    /// The highest number of a stream that it goes to.
    fn last_stream(&self) -> u32 {
        self.parts.iter().map(|part| part.stream).max().unwrap_or(0)
    }
}

fn waits(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!future.call_method0(intern!(future.py(), "done"))?.is_truthy()?)
}

/// Answers appends, of one group all of them. Those of clients are gathered, and sent when they `leave`.
pub struct Answers<'py, 'a> {
    py: Python<'py>,
    log: &'a log::Log,
    meters: &'a Meters,
    appended: Appended,
    key: Option<EndingKey>,
    ending: Option<Ending<'py>>,
    sessions: Vec<(Py<Session>, receipts::Ending)>,
}

impl<'py, 'a> Answers<'py, 'a> {
    /// `sealed` is when their group's bytes were begun, unless they were answered before.
    pub fn new(py: Python<'py>, log: &'a log::Log, meters: &'a Meters, sealed: Option<Instant>) -> Self {
        Self { py, log, meters, appended: Appended::new(sealed), key: None, ending: None, sessions: Vec::new() }
    }

    /// With a receipt for each of its parts.
    pub fn answer(&mut self, request: &Request, receipts: &[Receipt]) -> PyResult<()> {
        let records = request.parts.iter().map(|part| part.batch.ends.len()).sum();
        self.appended.count(self.meters, request.born, records, request.size);
        let key = self.key.get_or_insert_with(|| receipts[0].ending_key(self.log));
        match &request.caller {
            Caller::Client { session, id, weight } => {
                if session.get().answer(*id, *weight, receipts, key) {
                    self.sessions.push((session.clone_ref(self.py), (&receipts[0]).into()));
                }
                Ok(())
            }
            Caller::Future { future, names } => {
                let (py, future) = (self.py, future.bind(self.py));
                if !waits(future)? {
                    return Ok(());
                }
                let ending = self.ending.get_or_insert_with(|| Ending::of(py, &receipts[0]));
                let named = names.iter().zip(receipts);
                let made: PyResult<Vec<_>> =
                    named.map(|(name, r)| records::receipt(py, name.bind(py), r, ending, &r.mac_under(key))).collect();
                let mut made = made?;
                let answer = if request.several {
                    PyList::new(py, made)?.into_any()
                } else {
                    made.pop().expect("an append has at least one part")
                };
                future.call_method1(intern!(py, "set_result"), (answer,))?;
                Ok(())
            }
        }
    }

    /// Sends what was put together.
    pub fn leave(self) {
        self.appended.add(self.meters);
        for (session, ending) in self.sessions {
            session.get().send_answers(self.py, &ending);
        }
    }
}

#[pymethods]
impl Request {
    #[new]
    fn new(
        parts: Vec<PyPart<'_>>,
        policy: &str,
        producer: Option<Producer>,
        several: bool,
        future: Py<PyAny>,
        quantum: usize,
    ) -> Self {
        let part = |(_, stream, batch, expect): &PyPart<'_>| Part {
            stream: *stream,
            batch: batch.get().inner.clone(),
            expect: *expect,
            gap: None,
        };
        let core = parts.iter().map(part).collect();
        let names = parts.into_iter().map(|(name, ..)| name.unbind()).collect();
        let since = producer.as_ref().and_then(|producer| producer.since);
        let producer = producer.map(|producer| (producer.id, producer.sequence));
        Self::build(Caller::Future { future, names }, core, Policy::named(policy), producer, since, several, quantum)
    }

    /// What is imported: records at this offset or none, behind a gap if there is a reason for one; or, without an offset, a
    /// record of the system's. Its answer is nobody's receipt of durability.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)]
    fn importing(
        name: Py<PyAny>,
        stream: u32,
        offset: Option<u64>,
        time: Option<u64>,
        batch: Option<Bound<'_, Batch>>,
        gap: Option<String>,
        future: Py<PyAny>,
        quantum: usize,
    ) -> Self {
        let more = GAP + gap.as_ref().map_or(0, String::len);
        let batch = batch.map(|batch| batch.get().inner.clone()).unwrap_or_default();
        let part = Part { stream, batch, expect: offset, gap };
        let caller = Caller::Future { future, names: vec![name] };
        let request = Self::build(caller, vec![part], Policy::Os, None, None, false, quantum);
        Self { time, bound: request.bound + more, ..request }
    }

    /// An error that answers it may lead to a frame that leads back here.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match &self.caller {
            Caller::Future { future, names } => {
                names.iter().try_for_each(|name| visit.call(name))?;
                visit.call(future)
            }
            Caller::Client { session, .. } => visit.call(session),
        }
    }

    /// Whether it is answered only when it is on the disk.
    #[getter]
    fn durable(&self) -> bool {
        self.policy != Policy::Os
    }

    /// Nothing, if nobody waits any more.
    fn refuse(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        match &self.caller {
            Caller::Client { session, id, weight } => session.get().refuse(py, *id, *weight, error)?,
            Caller::Future { future, .. } if waits(future.bind(py))? => {
                future.bind(py).call_method1(intern!(py, "set_exception"), (error,))?;
            }
            Caller::Future { .. } => {}
        }
        Ok(())
    }
}

/// A batch that waits, and its stream.
type Waits = (Arc<Stream>, Arc<record::Batch>);

/// Fewer records are hashed sooner than a thread wakes up.
const WORTH_A_THREAD: usize = 32;

/// The appends that wait for a group, in the order in which they came. While those of encrypted streams wait, a thread
/// makes what their bytes will need.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Pool {
    log: Arc<log::Log>,
    state: Mutex<Waiting>,
    /// Whether the committer is to look at those that have come, and has not yet.
    due: AtomicBool,
    /// Bytes that are worth a group of their own, even beside one that is being written.
    group_bytes: usize,
    /// Whether a group is being written: the next waits a little.
    writing: AtomicBool,
    /// Appends that wait for room in here; none passes them.
    turns: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Py<Request>>,
    bytes: usize,
    ahead: Option<Sender<Waits>>,
}

impl Pool {
    pub fn new(log: Arc<log::Log>, group_bytes: usize) -> Self {
        Self {
            log,
            state: Mutex::default(),
            due: AtomicBool::new(false),
            group_bytes,
            writing: AtomicBool::new(false),
            turns: AtomicUsize::new(0),
        }
    }

    /// Whether whoever comes has to wait for its turn.
    pub fn crowded(&self, most: usize) -> bool {
        self.turns.load(Relaxed) > 0 || self.bytes() >= most
    }

    /// Whether the committer wants to know that appends have come: unless it is to look at them already.
    pub fn matters(&self) -> bool {
        !self.due.load(Relaxed) || self.bytes() >= self.group_bytes
    }
}

impl Waiting {
    fn make_ahead(&mut self, log: &log::Log, request: &Request) {
        let streams = log.streams.read().unwrap();
        for part in &request.parts {
            let stream = &streams.list[part.stream as usize];
            if stream.encrypted && stream.keys.is_some() && part.batch.ends.len() >= WORTH_A_THREAD {
                let ahead = self.ahead.get_or_insert_with(|| {
                    let (sender, receiver) = channel::<Waits>();
                    std::thread::Builder::new()
                        .name("kimberlite-ahead".into())
                        .spawn(move || receiver.iter().for_each(|(stream, batch)| make_ahead(&stream, &batch)))
                        .expect("the process may have one more thread");
                    sender
                });
                ahead.send((stream.clone(), part.batch.clone())).expect("the thread lives as long as its queue");
            }
        }
    }
}

#[pymethods]
impl Pool {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // What cannot be looked at now is not garbage.
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        state.queue.iter().try_for_each(|request| visit.call(request))
    }

    #[getter]
    fn due(&self) -> bool {
        self.due.load(Relaxed)
    }

    #[setter]
    fn set_due(&self, due: bool) {
        self.due.store(due, Relaxed);
    }

    #[getter]
    fn writing(&self) -> bool {
        self.writing.load(Relaxed)
    }

    #[setter]
    fn set_writing(&self, writing: bool) {
        self.writing.store(writing, Relaxed);
    }

    #[getter]
    fn turns(&self) -> usize {
        self.turns.load(Relaxed)
    }

    #[setter]
    fn set_turns(&self, turns: usize) {
        self.turns.store(turns, Relaxed);
    }

    fn __len__(&self) -> usize {
        lock(&self.state).queue.len()
    }

    /// Bytes of the records that wait.
    #[getter]
    pub fn bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// What the first takes of a group at most, and what the declarations in front of it take; 0 if there is none.
    #[getter]
    fn first(&self) -> (usize, usize) {
        let state = lock(&self.state);
        let Some(first) = state.queue.front().map(|first| first.get()) else { return (0, 0) };
        (first.bound, self.log.streams.read().unwrap().undeclared_bound(0, first.last_stream()))
    }

    /// The time that the first keeps.
    #[getter]
    fn time(&self) -> Option<u64> {
        lock(&self.state).queue.front().and_then(|first| first.get().time)
    }

    /// Whether what has gathered is worth a group beside one that is being written: nothing more may join it, or it is
    /// large enough.
    #[getter]
    fn ripe(&self) -> bool {
        let state = lock(&self.state);
        let times = state.queue.front().zip(state.queue.back()).map(|(a, b)| (a.get().time, b.get().time));
        state.bytes >= self.group_bytes || times.is_some_and(|(first, last)| first != last)
    }

    /// Empties it, and gives what was in it.
    fn clear(&self) -> Vec<Py<Request>> {
        std::mem::take(&mut *lock(&self.state)).queue.into()
    }

    pub fn push(&self, request: Bound<'_, Request>) {
        let mut state = lock(&self.state);
        if (self.writing.load(Relaxed) || !state.queue.is_empty()) && !self.log.seeded {
            state.make_ahead(&self.log, request.get());
        }
        state.bytes += request.get().size;
        state.queue.push_back(request.unbind());
    }

    /// The first, and with it those of its policy and time that follow and fit: together they take `most` of a group, unless
    /// the first alone takes more. Also what they take at most, declarations in front of them included.
    fn take(&self, most: usize) -> (Vec<Py<Request>>, usize) {
        let mut state = lock(&self.state);
        let streams = self.log.streams.read().unwrap();
        let (mut taken, mut bound, mut declared) = (Vec::new(), 0, 0);
        let mut first = None;
        while let Some(next) = state.queue.front().map(|next| next.get()) {
            let more = next.bound + streams.undeclared_bound(declared, next.last_stream());
            let same = first == Some((next.policy, next.time));
            let joins = same && next.policy != Policy::Alone && bound + more <= most;
            if first.is_some() && !joins {
                break;
            }
            first = Some((next.policy, next.time));
            (bound, declared) = (bound + more, declared.max(next.last_stream()));
            state.bytes -= next.size;
            taken.extend(state.queue.pop_front());
        }
        (taken, bound)
    }
}
