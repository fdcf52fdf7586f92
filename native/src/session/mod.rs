//! One client's connection to the server, all but its socket: what arrived is taken apart, appends go to the pool,
//! and their answers leave, with Python once a read and once a group.
mod answering;

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use kimberlite_core::log::{self, Part};
use kimberlite_core::record::LONGEST_PRODUCER;
use kimberlite_core::wire::append::{Append, Refused};
use kimberlite_core::wire::inbox::{Inbox, Unfit};
use kimberlite_core::wire::{Header, LARGEST, cursor, kind, put_message};
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::{PyTraverseError, PyVisit, ffi, intern};

use crate::inbox::{Lease, USUAL, arrived};
use crate::limits::Limits;
use crate::log::Log;
use crate::messages::put_refusal;
use crate::pool::{Caller, Policy, Pool, Request};
use crate::writer::lock;

#[derive(Default)]
struct State {
    inbox: Option<Inbox>,
    /// Bytes that the inbox may grow by at the next read.
    reserved: usize,
    /// The streams that it may append to without a word with Python, by their numbers.
    streams: HashMap<String, u32>,
    /// Whether it has said hello; before that nothing is an append.
    greeted: bool,
    /// Appends that Python takes: until all before them are in the pool, none may pass them.
    slow: usize,
    /// Not yet answered, and their bytes.
    requests: usize,
    bytes: usize,
    /// Those of them that were handed to Python, by their ids, and their bytes.
    handed: HashMap<u32, usize>,
    /// Whether `take` stopped because too much is open.
    full: bool,
    /// Answers of the group that is being acknowledged, and how many.
    answers: Vec<u8>,
    answered: usize,
    /// What leaves with the next write.
    out: Vec<u8>,
    /// Takes bytes for the client; None before there is a socket, and when it is closed.
    write: Option<Py<PyAny>>,
    /// Is called when appends have come into the pool; None when it is closed.
    wake: Option<Py<PyAny>>,
    /// Is told what is not ours to do; None when it is closed.
    connection: Option<Py<PyAny>>,
    /// Whether nothing is taken of what arrives.
    held: bool,
    /// Messages and bytes that have arrived.
    counted: (u64, u64),
}

/// * Requests are taken in the order in which they arrive, and appends enter the pool in it.
/// * What is open never exceeds the limits by more than one request.
/// * After `close` nothing is taken and nothing is written.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Session {
    log: Arc<log::Log>,
    pool: Py<Pool>,
    limits: Py<Limits>,
    policy: String,
    state: Mutex<State>,
    lease: Lease,
}

/// Why `take` took no more.
enum Stop {
    /// All that has arrived is taken.
    Empty,
    Full,
    Crowded,
    Memory,
    Hello,
    /// Others have their turn first.
    Enough,
    Broken(&'static str, String),
}

impl Stop {
    fn name(&self) -> Option<&'static str> {
        match self {
            Self::Empty => None,
            Self::Full => Some("full"),
            Self::Crowded => Some("crowded"),
            Self::Memory => Some("memory"),
            Self::Hello => Some("hello"),
            Self::Enough => Some("enough"),
            Self::Broken(code, _) => Some(code),
        }
    }
}

/// What becomes of one request.
enum Taken {
    Pushed,
    Refused(&'static str, String),
    /// Done already, whether it has an answer or not.
    Done,
    /// Python's to do.
    Frame,
    Broken(String),
}

#[pymethods]
impl Session {
    /// `wake` is called when appends have come into the pool. The connection's `took` is called with what is not ours to do, its `go_on` when there is room for requests again.
    #[new]
    fn new(
        log: &Log,
        pool: Py<Pool>,
        limits: Py<Limits>,
        policy: String,
        wake: Py<PyAny>,
        connection: Py<PyAny>,
    ) -> Self {
        let inbox = Some(Inbox::new(USUAL, LARGEST));
        let state = State { inbox, wake: Some(wake), connection: Some(connection), ..State::default() };
        Self { log: log.inner.clone(), pool, limits, policy, state: Mutex::new(state), lease: Lease::default() }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.pool)?;
        // What cannot be looked at now is not garbage.
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        visit.call(&state.write)?;
        visit.call(&state.wake)?;
        visit.call(&state.connection)
    }

    fn __clear__(&self) {
        self.close();
    }

    /// From here on there is a socket, and `write` takes bytes for the client.
    fn begin(&self, write: Py<PyAny>) {
        lock(&self.state).write = Some(write);
    }

    /// As a protocol of asyncio: the memory for the next read.
    #[allow(unused_variables)]
    fn get_buffer<'py>(slf: &Bound<'py, Self>, sizehint: isize) -> Bound<'py, Self> {
        slf.clone()
    }

    /// As a protocol of asyncio: so many bytes were read. They are taken, unless it is held.
    fn buffer_updated(slf: &Bound<'_, Self>, nbytes: usize) -> PyResult<()> {
        let mut state = lock(&slf.get().state);
        state.counted.1 += nbytes as u64;
        slf.get().limits.get().received.fetch_add(nbytes as u64, Relaxed);
        let Some(inbox) = &mut state.inbox else { return Ok(()) };
        arrived(inbox, nbytes)?;
        let held = state.held;
        drop(state);
        if held { Ok(()) } else { Self::take(slf, false) }
    }

    /// From here on what arrives is taken, or not.
    fn hold(&self, held: bool) {
        lock(&self.state).held = held;
    }

    /// Where the next read goes.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut state = lock(&this.state);
        let State { inbox, reserved, .. } = &mut *state;
        let Some(inbox) = inbox else { return Err(PyBufferError::new_err("the session is closed")) };
        this.lease.check()?;
        this.make_room(inbox, reserved);
        this.lease.lend(&slf, inbox.room(), view, flags)
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.lease.take_back();
    }

    /// A buffer that has none would be refused.
    fn __len__(&self) -> usize {
        lock(&self.state).inbox.as_ref().map_or(0, Inbox::capacity)
    }

    /// Takes what has arrived. Appends that can go to the pool are in it then; of everything else, and of why no more
    /// was taken though more has arrived, the connection is told. It waits behind those who wait for the pool, unless
    /// this is its `turn`.
    fn take(slf: &Bound<'_, Self>, turn: bool) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let pool = this.pool.get();
        if !turn && pool.crowded(this.limits.get().pool_bytes) {
            return this.tell(py, Vec::new(), &Stop::Crowded);
        }
        let mut state = lock(&this.state);
        let Some(mut inbox) = state.inbox.take() else { return Ok(()) };
        let (mut pushed, mut frames) = (false, Vec::new());
        let stop = loop {
            let (header, body) = match inbox.next() {
                Ok(Some(found)) => found,
                Ok(None) => {
                    break if this.has_memory(&inbox, &mut state.reserved) { Stop::Empty } else { Stop::Memory };
                }
                Err(Unfit(length)) => {
                    let message = format!("a message has 1 to {LARGEST} bytes, not {length}");
                    break Stop::Broken("FRAME_TOO_LARGE", message);
                }
            };
            if header.id == kind::NOBODY {
                break Stop::Broken("PROTOCOL_ERROR", "no request has this id".into());
            }
            if let Some(stop) = this.held_up(&state, header.kind) {
                break stop;
            }
            state.counted.0 += 1;
            let taken = this.taken(slf, &mut state, header, body)?;
            let ended = matches!(taken, Taken::Refused(..) | Taken::Done);
            match taken {
                Taken::Pushed => pushed = true,
                Taken::Done => {}
                Taken::Refused(code, message) => {
                    this.limits.get().count(code);
                    put_refusal(&mut state.out, header.id, code, &message);
                }
                Taken::Frame => {
                    let answered = !matches!(header.kind, kind::HELLO | kind::CREDIT | kind::STOP);
                    if answered && state.handed.insert(header.id, header.length).is_some() {
                        break Stop::Broken("PROTOCOL_ERROR", format!("request {} is open already", header.id));
                    }
                    frames.push((header.kind, header.id, PyBytes::new(py, body)));
                }
                Taken::Broken(message) => break Stop::Broken("PROTOCOL_ERROR", message),
            }
            if !matches!(header.kind, kind::HELLO | kind::CREDIT | kind::STOP) && !ended {
                state.requests += 1;
                state.bytes += header.length;
            }
            inbox.take(header);
            if header.kind == kind::HELLO && !state.greeted {
                break Stop::Hello;
            }
            if frames.len() == MOST_FRAMES {
                break Stop::Enough;
            }
        };
        state.full = matches!(stop, Stop::Full);
        state.inbox = Some(inbox);
        let out = std::mem::take(&mut state.out);
        drop(state);
        this.write(py, &out);
        if pushed && pool.matters() {
            let wake = lock(&this.state).wake.as_ref().map(|wake| wake.clone_ref(py));
            wake.map(|wake| wake.call0(py)).transpose()?;
        }
        if frames.is_empty() && matches!(stop, Stop::Empty) {
            return Ok(());
        }
        this.tell(py, frames, &stop)
    }

    /// From here on it may append.
    fn greet(&self) {
        lock(&self.state).greeted = true;
    }

    /// From here on its appends to a stream need no word with Python.
    fn permit(&self, stream: &str) {
        if let Some(number) = self.log.streams.read().unwrap().number(stream) {
            lock(&self.state).streams.insert(stream.to_owned(), number);
        }
    }

    /// From here on none of its appends goes without a word with Python.
    fn forbid(&self) {
        lock(&self.state).streams.clear();
    }

    /// An append that Python took is in the pool, or will never be.
    fn entered(&self) {
        lock(&self.state).slow -= 1;
    }

    /// Requests that are not yet answered, and their bytes.
    #[getter]
    fn open(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.requests, state.bytes)
    }

    /// Whether a part of a message has arrived.
    #[getter]
    fn partial(&self) -> bool {
        lock(&self.state).inbox.as_ref().is_some_and(|inbox| !inbox.is_empty())
    }

    /// Messages and bytes that have arrived.
    #[getter]
    fn counted(&self) -> (u64, u64) {
        lock(&self.state).counted
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        let ended = std::mem::take(&mut *state);
        drop(state);
        if let Some(inbox) = &ended.inbox {
            self.limits.get().give_back(inbox.capacity() - USUAL + ended.reserved);
        }
    }
}

impl Session {
    fn tell(&self, py: Python<'_>, frames: Vec<(u32, u32, Bound<'_, PyBytes>)>, stop: &Stop) -> PyResult<()> {
        let connection = lock(&self.state).connection.as_ref().map(|connection| connection.clone_ref(py));
        let Some(connection) = connection else { return Ok(()) };
        let message = if let Stop::Broken(_, message) = stop { message } else { "" };
        connection.bind(py).call_method1(intern!(py, "took"), (frames, stop.name(), message))?;
        Ok(())
    }

    /// Why the next request, of this kind, has to wait.
    fn held_up(&self, state: &State, kind: u32) -> Option<Stop> {
        let limits = self.limits.get();
        if matches!(kind, kind::CREDIT | kind::STOP) {
            return None;
        }
        if state.requests >= limits.requests || state.bytes >= limits.bytes {
            return Some(Stop::Full);
        }
        let append = matches!(kind, kind::APPEND | kind::APPEND_MANY);
        (append && self.pool.get().bytes() >= limits.pool_bytes).then_some(Stop::Crowded)
    }

    /// Whether there is room for what arrives next, or may be: then that much of what all inboxes may grow by is taken.
    fn has_memory(&self, inbox: &Inbox, reserved: &mut usize) -> bool {
        if !inbox.is_full() || *reserved > 0 {
            return true;
        }
        if self.limits.get().reserve(inbox.capacity()) {
            *reserved = inbox.capacity();
        }
        *reserved > 0
    }

    fn make_room(&self, inbox: &mut Inbox, reserved: &mut usize) {
        let before = inbox.capacity() + std::mem::take(reserved);
        inbox.make_room();
        self.limits.get().settle(before, inbox.capacity());
    }

    fn taken(&self, slf: &Bound<'_, Self>, state: &mut State, header: Header, body: &[u8]) -> PyResult<Taken> {
        if !state.greeted {
            let hello = header.kind == kind::HELLO;
            return Ok(if hello { Taken::Frame } else { Taken::Broken("the first message is a hello".into()) });
        }
        match header.kind {
            kind::APPEND_MANY => {
                state.slow += 1;
                return Ok(Taken::Frame);
            }
            kind::APPEND => {}
            kind::PING => return Ok(ping(state, header.id, body)),
            // To what has just ended they come too late.
            kind::CREDIT if !state.handed.contains_key(&header.id) => {
                let mut cursor = cursor::Cursor::new(body);
                let sound = cursor.count().is_ok() && cursor.end().is_ok();
                return Ok(if sound { Taken::Done } else { Taken::Broken("a credit is a number of bytes".into()) });
            }
            kind::STOP if !state.handed.contains_key(&header.id) => {
                return Ok(if body == NIL { Taken::Done } else { Taken::Broken("a stop says nothing".into()) });
            }
            kind::HELLO => return Ok(Taken::Broken("it has said hello already".into())),
            _ => return Ok(Taken::Frame),
        }
        if state.slow > 0 {
            state.slow += 1;
            return Ok(Taken::Frame);
        }
        let append = match Append::to_one(body) {
            Ok(append) => append,
            Err(Refused::Malformed(cursor::Malformed(what))) => return Ok(Taken::Broken(what.into())),
            Err(Refused::Invalid(what)) => return Ok(Taken::Refused("INVALID", what.into())),
            Err(Refused::TooLarge(what)) => return Ok(Taken::Refused("LIMIT_EXCEEDED", what)),
        };
        let Append { mut parts, producer, since, sync } = append;
        let part = parts.pop().expect("it is to one stream");
        let sync = sync.unwrap_or(&self.policy);
        let splits = sync == "record" && part.batch.ends.len() > 1;
        let Some(&stream) = state.streams.get(part.stream).filter(|_| !splits) else {
            state.slow += 1;
            return Ok(Taken::Frame);
        };
        if let Some(what) = unfit(part.expect, producer, sync) {
            return Ok(Taken::Refused("INVALID", what.into()));
        }
        let caller = Caller::Client { session: slf.clone().unbind(), id: header.id, weight: header.length };
        let part = Part { stream, batch: Arc::new(part.batch), expect: part.expect, gap: None };
        let producer = producer.map(|(id, sequence)| (id.to_vec(), sequence));
        let quantum = self.log.database.quantum;
        let request = Request::build(caller, vec![part], Policy::named(sync), producer, since, false, quantum);
        self.pool.get().push(Bound::new(slf.py(), request)?);
        Ok(Taken::Pushed)
    }
}

/// Nil, as a message's body.
const NIL: &[u8] = &[0xc0];

/// Messages that Python is told of at a time.
const MOST_FRAMES: usize = 64;

fn ping(state: &mut State, id: u32, body: &[u8]) -> Taken {
    if body != NIL {
        return Taken::Broken("this request says nothing".into());
    }
    if state.handed.contains_key(&id) {
        return Taken::Broken(format!("request {id} is open already"));
    }
    put_message(&mut state.out, kind::RESULT, id, |out| out.extend_from_slice(NIL));
    Taken::Done
}

/// What an append may not have besides its records.
fn unfit(expect: Option<u64>, producer: Option<(&[u8], u64)>, sync: &str) -> Option<&'static str> {
    if !matches!(sync, "record" | "batch" | "group" | "os") {
        return Some("sync is one of record, batch, group, os");
    }
    if expect.is_some_and(|offset| offset >= 1 << 63) {
        return Some("expect is an offset or nil");
    }
    match producer {
        Some((id, _)) if id.is_empty() || id.len() > LONGEST_PRODUCER => Some("a producer's id is 1 to 128 bytes"),
        Some((_, sequence)) if sequence >= 1 << 63 => Some("a producer's sequence counts from 0"),
        _ => None,
    }
}
