//! `Log`: what the core knows of a log, under Python's hands.
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

use kimberlite_core::format::{Checked, Damage, Hash, SegmentHeader};
use kimberlite_core::group::{self, Database};
use kimberlite_core::keys::{Entropy, GroupKey, Key, derive, domain};
use kimberlite_core::log::{self, Admission, Descriptor, Failure, Part, Refused, Secrets, Source, Stop};
use kimberlite_core::system::Declaration;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use crate::batch::checked_batch;
use crate::buffer::Buffer;
use crate::errors;
use crate::pool::Request;
use crate::records::{Ending, append_records};

pub fn exactly<const N: usize>(bytes: &[u8], what: &str) -> PyResult<[u8; N]> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("{what} has {} bytes, not {N}", bytes.len())))
}

/// A file of a backend that has no descriptor.
struct Foreign(Py<PyAny>);

impl Source for Foreign {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        Python::attach(|py| {
            let bytes = self.0.bind(py).call_method1("read", (place, length)).map_err(io::Error::other)?;
            bytes.extract().map_err(|_| io::ErrorKind::InvalidData.into())
        })
    }
}

pub fn source_of(file: &Bound<'_, PyAny>) -> PyResult<Arc<dyn Source>> {
    let fd: i32 = file.getattr("fd")?.extract()?;
    if fd < 0 {
        return Ok(Arc::new(Foreign(file.clone().unbind())));
    }
    // SAFETY: the file object, which we hold, keeps the descriptor open until it is duplicated.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    Ok(Arc::new(Descriptor::duplicate(borrowed).map_err(os_error)?))
}

/// A segment that can be read.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Segment {
    pub inner: Arc<log::Segment>,
    #[pyo3(get)]
    file: Py<PyAny>,
}

#[pymethods]
impl Segment {
    #[getter]
    fn number(&self) -> u64 {
        self.inner.header.number
    }
    #[getter]
    fn first_group(&self) -> u64 {
        self.inner.header.first_group
    }
    #[getter]
    fn first_position(&self) -> u64 {
        self.inner.header.first_position
    }
    #[getter]
    fn salt<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.header.salt)
    }
    #[getter]
    fn before<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.header.before)
    }
}

/// A sealed group on its way through the finisher.
struct Shared {
    group: Mutex<group::Sealed>,
    segment: Arc<log::Segment>,
    /// Size and root of the tree behind the group, once its leaves are made.
    tree: Mutex<Option<(u64, Hash)>>,
    finished: Condvar,
}

impl Shared {
    fn finish(&self, log: &log::Log) {
        let state = log.finish(&self.segment, &mut self.group.lock().unwrap());
        *self.tree.lock().unwrap() = Some(state);
        self.finished.notify_all();
    }

    fn wait(&self) -> (u64, Hash) {
        let guard = self.finished.wait_while(self.tree.lock().unwrap(), |state| state.is_none());
        guard.unwrap().expect("it was waited for")
    }
}

/// Leaves of larger groups are made by a thread of their own, in the order of the groups.
struct Finisher {
    queue: Option<Sender<Arc<Shared>>>,
    last: Option<Arc<Shared>>,
}

/// Fewer records are finished sooner than a thread wakes up.
const WORTH_A_THREAD: u32 = 400;

impl Finisher {
    fn submit(&mut self, log: &Arc<log::Log>, group: &Arc<Shared>) {
        let queue = self.queue.get_or_insert_with(|| {
            let (sender, receiver) = channel::<Arc<Shared>>();
            let log = log.clone();
            std::thread::Builder::new()
                .name("kimberlite-leaves".into())
                .spawn(move || receiver.iter().for_each(|group| group.finish(&log)))
                .expect("the process may have one more thread");
            sender
        });
        queue.send(group.clone()).expect("the thread lives as long as its queue");
        self.last = Some(group.clone());
    }
}

/// A group whose bytes are in a buffer.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Sealed {
    shared: Arc<Shared>,
    #[pyo3(get)]
    number: u64,
    #[pyo3(get)]
    place: u64,
    #[pyo3(get)]
    padded: usize,
    #[pyo3(get)]
    records: u32,
    #[pyo3(get)]
    timestamp: u64,
}

#[pyclass(frozen, module = "kimberlite._native")]
pub struct Log {
    pub inner: Arc<log::Log>,
    finisher: Mutex<Finisher>,
}

impl Log {
    fn failure(&self, py: Python<'_>, failure: Failure) -> PyErr {
        match failure {
            Failure::Io(error) => io_error(py, error),
            Failure::Damaged { segment, place, group, position, what } => {
                errors::corrupt(py, what, &segment_file(segment), Some(place), Some(group), Some(position))
            }
            Failure::HashesDamaged { position } => {
                errors::corrupt(py, "a record does not match its leaf", "hashes", None, None, Some(position))
            }
            Failure::NoKey { stream } => self.refused(py, Refused::NoKey { stream }),
        }
    }

    fn refused(&self, py: Python<'_>, refused: Refused) -> PyErr {
        let name = |stream: u32| self.inner.streams.read().unwrap().info[stream as usize].name.clone();
        match refused {
            Refused::Expected { stream, length } => {
                errors::conflict(py, format!("stream {:?} has {length} records", name(stream)), Some(length))
            }
            Refused::Sequence { expected } => {
                errors::conflict(py, format!("the producer's next sequence is {expected}"), Some(expected))
            }
            Refused::DigestDiffers => {
                errors::conflict(py, "the producer has used this sequence for other records".into(), None)
            }
            Refused::Forgotten => {
                errors::raise(py, "Duplicate", "appended before; its receipt is no longer remembered")
            }
            Refused::NoKey { stream } => {
                errors::raise(py, "KeyUnavailable", &format!("the key of stream {:?} is missing", name(stream)))
            }
        }
    }
}

#[pymethods]
impl Log {
    #[new]
    #[pyo3(signature = (database_id, identity, *, quantum, tagged, group_key, receipt_key, level, cache_bytes, seed=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        database_id: &[u8],
        identity: &[u8],
        quantum: usize,
        tagged: bool,
        group_key: Option<&[u8]>,
        receipt_key: &[u8],
        level: Option<i32>,
        cache_bytes: usize,
        seed: Option<&[u8]>,
    ) -> PyResult<Self> {
        let group_key = group_key.map(|key| exactly(key, "group key").map(|key| GroupKey::new(&key))).transpose()?;
        let database = Database {
            id: exactly(database_id, "database id")?,
            identity: exactly(identity, "identity hash")?,
            quantum,
            tagged,
            group_key,
        };
        let receipt: Key = exactly(receipt_key, "receipt key")?;
        let several = derive(&receipt, &[&domain("kimberlite/producer/1")]);
        let entropy = seed.map_or(Entropy::Kernel, Entropy::seeded);
        let finisher = Mutex::new(Finisher { queue: None, last: None });
        let secrets = Secrets { receipt, several };
        Ok(Self { inner: Arc::new(log::Log::new(database, secrets, level, cache_bytes, entropy)), finisher })
    }

    /// The number of a stream; None if there is none of this name.
    fn stream(&self, name: &str) -> Option<u32> {
        self.inner.streams.read().unwrap().number(name)
    }

    /// Number, declaration and its hash for each new stream. They are not added.
    #[allow(clippy::type_complexity)]
    fn drafts<'py>(
        &self,
        py: Python<'py>,
        names: Vec<String>,
        encrypted: bool,
    ) -> Vec<(u32, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let first = self.inner.streams.read().unwrap().list.len() as u32;
        let draft = |(stream, name)| {
            let random = self.inner.random();
            let encoded = Declaration { stream, encrypted, random, largest_record: 0, name }.encode();
            (stream, PyBytes::new(py, &encoded), PyBytes::new(py, &Declaration::hash(&encoded)))
        };
        (first..).zip(names).map(draft).collect()
    }

    /// Adds a drafted stream. Its declaration goes in front of its first record.
    #[pyo3(signature = (declaration, data_key))]
    fn add_stream(&self, declaration: &[u8], data_key: Option<&[u8]>) -> PyResult<u32> {
        let key = data_key.map(|key| exactly(key, "data key")).transpose()?;
        self.inner.add_stream(declaration, key.as_ref()).map_err(|Damage(what)| PyValueError::new_err(what))
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
        let part = Part { stream, batch: checked_batch(py, records)?, expect: None };
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
            match self.inner.admit(&asked.parts, producer, asked.several, now) {
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

    /// Answers an append of a producer that is in a durable group already as it was answered then.
    fn answer_again(&self, py: Python<'_>, number: u64, request: &Request) -> PyResult<()> {
        let (id, sequence) = request.producer.as_ref().expect("only a producer's append is remembered");
        let receipts = py.detach(|| self.inner.reread(number, &request.parts, id, *sequence, request.several));
        let receipts = receipts.map_err(|failure| self.failure(py, failure))?;
        let named = request.names.iter().zip(&receipts);
        let receipts: PyResult<Vec<_>> = named
            .map(|(name, r)| crate::records::receipt(py, name.bind(py), r, &Ending::of(py, r), &r.mac(&self.inner)))
            .collect();
        request.answer(py, receipts?)
    }

    /// What a group takes at most beside its batches.
    fn overhead(&self) -> usize {
        group::OVERHEAD + self.inner.streams.read().unwrap().undeclared_bound()
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
        let inner = py.detach(|| {
            // SAFETY: the committer hands a buffer to one group at a time and keeps it until its write is done.
            let out = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, capacity) };
            self.inner.seal(&segment, place, durable_upto, now, closing, out)
        });
        Sealed {
            number: inner.number,
            place: inner.place,
            padded: inner.padded,
            records: inner.records,
            timestamp: inner.timestamp,
            shared: Arc::new(Shared {
                group: Mutex::new(inner),
                segment,
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
        let ending = Ending::of(py, &receipt);
        for request in &requests {
            let request = request.get();
            let places = request.places.get().expect("it was admitted");
            let mut receipts = Vec::with_capacity(places.len());
            for ((name, part), (offset, position)) in request.names.iter().zip(&request.parts).zip(places) {
                let last = part.batch.ends.len() as u64 - 1;
                receipt.stream = part.stream;
                (receipt.first_offset, receipt.last_offset) = (*offset, offset + last);
                (receipt.first_position, receipt.last_position) = (*position, position + last);
                let mac = receipt.mac(&self.inner);
                receipts.push(crate::records::receipt(py, name.bind(py), &receipt, &ending, &mac)?);
            }
            request.answer(py, receipts)?;
        }
        Ok(())
    }

    /// Number and chain of the last durable group.
    fn durable_group<'py>(&self, py: Python<'py>) -> (u64, Bound<'py, PyBytes>) {
        let end = self.inner.end();
        (end.group, PyBytes::new(py, &end.chain))
    }

    /// Lets go of every file. Nothing is read after this.
    fn close(&self) {
        self.inner.close();
    }

    /// Positions below this are durable.
    #[getter]
    fn durable(&self) -> u64 {
        self.inner.durable()
    }

    /// Number of the next group, position of the next record, chain, incarnation and time of what is sealed.
    fn sealed<'py>(&self, py: Python<'py>) -> (u64, u64, Bound<'py, PyBytes>) {
        let (group, position, chain) = self.inner.sealed();
        (group, position, PyBytes::new(py, &chain))
    }

    fn root<'py>(&self, py: Python<'py>) -> (u64, Bound<'py, PyBytes>) {
        let (size, root) = self.inner.root();
        (size, PyBytes::new(py, &root))
    }

    /// The header of the next segment; groups are chained to it from here on.
    fn next_segment_header<'py>(&self, py: Python<'py>, number: u64) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.inner.next_segment(number).encode())
    }

    /// A segment to read from and, when it is active, to seal into; `upto` is what a checkpoint covers of it.
    #[pyo3(signature = (header, file, upto=0))]
    fn attach(&self, py: Python<'_>, header: &[u8], file: &Bound<'_, PyAny>, upto: u64) -> PyResult<Segment> {
        let header = SegmentHeader::decode(header).map_err(|Damage(what)| PyValueError::new_err(what))?;
        let source = source_of(file)?;
        let inner = py.detach(|| log::Segment::resumed(header, source, upto)).map_err(|error| io_error(py, error))?;
        let inner = Arc::new(inner);
        self.inner.attach(inner.clone());
        Ok(Segment { inner, file: file.clone().unbind() })
    }

    /// A closed segment, whose index is read from a file, or made again, when it is needed.
    #[pyo3(signature = (header, file, index))]
    fn attach_closed(
        &self,
        header: &[u8],
        file: &Bound<'_, PyAny>,
        index: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Segment> {
        let header = SegmentHeader::decode(header).map_err(|Damage(what)| PyValueError::new_err(what))?;
        let index = index.map(source_of).transpose()?;
        let inner = Arc::new(log::Segment::closed(header, source_of(file)?, index, self.inner.keys.receipt));
        self.inner.attach(inner.clone());
        Ok(Segment { inner, file: file.clone().unbind() })
    }

    /// The index file of a segment that is active in memory.
    fn index_file<'py>(&self, py: Python<'py>, segment: &Segment) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| {
            let index = segment.inner.index();
            let log::Index::Active(index) = &*index else { return None };
            let mut bytes = index.encode();
            let mac = log::derived_mac(&self.inner.keys.receipt, &bytes);
            bytes.extend(mac);
            Some(bytes)
        });
        bytes.map(|bytes| PyBytes::new(py, &bytes)).ok_or_else(|| PyValueError::new_err("the segment is closed"))
    }

    /// The file of tree hashes; None while there is none.
    #[pyo3(signature = (file))]
    fn set_hashes(&self, file: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.inner.set_hashes(file.map(source_of).transpose()?);
        Ok(())
    }

    /// Hashes that nobody has taken for the file, so many at most: the index of the first, and they, joined.
    fn take_hashes<'py>(&self, py: Python<'py>, most: usize) -> (u64, Bound<'py, PyBytes>) {
        let (first, hashes) = py.detach(|| self.inner.take_hashes(most));
        (first, PyBytes::new(py, hashes.as_flattened()))
    }

    fn flushed_hashes(&self, upto: u64) {
        self.inner.flushed_hashes(upto);
    }

    fn snapshot<'py>(&self, py: Python<'py>, segment: &Segment, place: u64, producers: u64) -> Bound<'py, PyBytes> {
        let header = &segment.inner.header;
        PyBytes::new(py, &self.inner.snapshot(header.number, place, &header.salt, producers))
    }

    /// Where a checkpoint leaves off; None if its MAC is wrong.
    fn resume(&self, bytes: &[u8]) -> Option<Resume> {
        self.inner.resume(bytes).map(Resume)
    }

    /// Whether the group that a restored checkpoint ends with is in its place.
    fn ends_with(&self, resume: &Resume, header: &[u8], group: &[u8]) -> bool {
        self.inner.ends_with(&resume.0, header, group)
    }

    /// Entries for the file of producers, which is so long, with their MAC; and whether it is to have no others.
    fn take_producers<'py>(&self, py: Python<'py>, upto_group: u64, length: usize) -> (Bound<'py, PyBytes>, bool) {
        let (entries, anew) = self.inner.take_producers(upto_group, length);
        if entries.is_empty() {
            return (PyBytes::new(py, &[]), anew);
        }
        let mut piece = (entries.len() as u64).to_le_bytes().to_vec();
        piece.extend(entries);
        let mac = log::derived_mac(&self.inner.keys.receipt, &piece);
        piece.extend(mac);
        (PyBytes::new(py, &piece), anew)
    }

    /// The entries in a file of producers; None if a piece is not what was written.
    fn unwrap<'py>(&self, py: Python<'py>, mut file: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let mut entries = Vec::with_capacity(file.len());
        while !file.is_empty() {
            let length = u64::from_le_bytes(*file.first_chunk::<8>()?) as usize;
            let piece = file.get(..length.checked_add(40)?)?;
            entries.extend(&log::checked(&self.inner.keys.receipt, piece)?[8..]);
            file = &file[length + 40..];
        }
        Some(PyBytes::new(py, &entries))
    }

    fn load_producers(&self, entries: &[u8]) -> PyResult<()> {
        self.inner.load_producers(entries).map_err(|Damage(what)| PyValueError::new_err(what))
    }

    /// The root when the tree had so many leaves; None if its hashes are not there.
    fn root_at<'py>(&self, py: Python<'py>, size: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        Ok(self.inner.root_at(size).map_err(os_error)?.map(|root| PyBytes::new(py, &root)))
    }

    /// The chain hash at the end of a durable group; None if there is no such group.
    fn chain_of<'py>(&self, py: Python<'py>, group: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let chain = py.detach(|| self.inner.chain_of(group)).map_err(|failure| self.failure(py, failure))?;
        Ok(chain.map(|chain| PyBytes::new(py, &chain)))
    }

    /// From here on a segment is read through its index file.
    fn close_segment(&self, segment: &Segment, index: &Bound<'_, PyAny>) -> PyResult<()> {
        let closed = log::Index::closed(Some(source_of(index)?), self.inner.keys.receipt);
        *segment.inner.index.write().unwrap() = Arc::new(closed);
        Ok(())
    }

    fn restore(&self, py: Python<'_>, bytes: &[u8], keys: Py<PyAny>) -> PyResult<()> {
        let mut failed = None;
        let restored = py.detach(|| self.inner.restore(bytes, &mut |d, hash| ask(&keys, d, hash, &mut failed)));
        match (failed, restored) {
            (Some(error), _) => Err(error),
            (None, restored) => restored.map_err(|Damage(what)| PyValueError::new_err(what)),
        }
    }

    /// Name, mode, durable length and number of every stream that has records.
    fn streams<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyString>, bool, u64, u32)> {
        let streams = self.inner.streams.read().unwrap();
        let all = streams.info.iter().zip(&streams.list).skip(1).filter(|(info, _)| info.durable > 0);
        all.map(|(info, s)| (PyString::new(py, &info.name), s.encrypted, info.durable, s.number)).collect()
    }

    /// Durable length of a stream by its number.
    fn length(&self, stream: u32) -> u64 {
        self.inner.streams.read().unwrap().info[stream as usize].durable
    }

    /// One record, checked against its leaf.
    fn get<'py>(&self, py: Python<'py>, position: u64) -> PyResult<Bound<'py, PyAny>> {
        self.get_many(py, vec![position])?.get_item(0)
    }

    /// Records in the order asked for, each checked against its leaf.
    fn get_many<'py>(&self, py: Python<'py>, positions: Vec<u64>) -> PyResult<Bound<'py, PyList>> {
        let out = PyList::empty(py);
        let mut window = log::Window::default();
        for position in positions {
            let found = py.detach(|| self.inner.get(position, &mut window));
            append_records(py, &self.inner, &found.map_err(|failure| self.failure(py, failure))?, false, &out)?;
        }
        Ok(out)
    }

    /// The first position at or after a time.
    fn position_at(&self, py: Python<'_>, timestamp: u64) -> PyResult<u64> {
        py.detach(|| self.inner.position_at(timestamp)).map_err(|error| io_error(py, error))
    }

    /// The first offset of a stream that is not before a position.
    fn offset_at(&self, py: Python<'_>, stream: u32, position: u64) -> PyResult<u64> {
        py.detach(|| self.inner.offset_at(stream, position)).map_err(|error| io_error(py, error))
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
        let out = PyList::empty(py);
        let mut span = log::Span { stream, start, end, reverse };
        let mut window = log::Window::default();
        let mut bytes = 0;
        while out.len() < limit && bytes < size {
            let next = py.detach(|| self.inner.next(span, &mut window));
            let Some((mut found, left)) = next.map_err(|failure| self.failure(py, failure))? else {
                span.end = span.start;
                break;
            };
            let skip = found.run.opened.header.stream == 0 && !system;
            let room = limit - out.len();
            let mut cut = 0;
            if !skip && found.to - found.from > room {
                cut = found.to - found.from - room;
                if reverse { found.from += cut } else { found.to -= cut }
            }
            if !skip {
                append_records(py, &self.inner, &found, reverse, &out)?;
            }
            bytes += found.run.opened.size();
            span = left;
            if reverse { span.end += cut as u64 } else { span.start -= cut as u64 }
        }
        Ok((out, span.start, span.end))
    }

    /// Why the log cannot go on with this segment; None if it can.
    fn enter(&self, segment: &Segment) -> Option<&'static str> {
        self.inner.enter(&segment.inner).err().map(|Damage(what)| what)
    }

    /// Applies groups up to `last`. Gives the next place, and `done`, `closed`, `more`, `bad` or `damaged` with how many bytes or why.
    fn replay(
        &self,
        py: Python<'_>,
        segment: &Segment,
        place: u64,
        data: &[u8],
        last: u64,
        keys: Py<PyAny>,
    ) -> PyResult<(u64, &'static str, usize, &'static str)> {
        let mut failed = None;
        let replayed = py.detach(|| {
            let mut key_of = |declaration: &Declaration, hash: &Hash| ask(&keys, declaration, hash, &mut failed);
            self.inner.replay(&segment.inner, place, data, last, &mut key_of)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let (kind, needed, what) = match replayed.stop {
            Stop::Done => ("done", 0, ""),
            Stop::Closed => ("closed", 0, ""),
            Stop::More(needed) => ("more", needed, ""),
            Stop::Bad(Damage(what)) => ("bad", 0, what),
            Stop::Damaged(Damage(what)) => ("damaged", 0, what),
        };
        Ok((replayed.place, kind, needed, what))
    }

    /// The highest durable group that any sound header in `data` names, and where its last byte is that is not zero.
    #[staticmethod]
    fn watermark(py: Python<'_>, segment: &Segment, place: u64, data: &[u8]) -> (u64, Option<u64>) {
        py.detach(|| log::Log::watermark(&segment.inner, place, data))
    }
}

/// A stream's key from Python's vault.
fn ask(keys: &Py<PyAny>, declaration: &Declaration, hash: &Hash, failed: &mut Option<PyErr>) -> Checked<Option<Key>> {
    if !declaration.encrypted {
        return Ok(None);
    }
    Python::attach(|py| {
        let key = keys.call1(py, (declaration.stream, PyBytes::new(py, hash)));
        let key = key.and_then(|key| key.extract::<Option<Vec<u8>>>(py));
        key.and_then(|key| key.map(|key| exactly(&key, "data key")).transpose()).map_err(|error| {
            *failed = Some(error);
            Damage("the stream's key is not to be had")
        })
    })
}

/// What is wrong with a segment's header; None if nothing is.
#[pyfunction]
pub fn header_damage(header: &[u8], database_id: &[u8], number: u64) -> Option<&'static str> {
    match SegmentHeader::decode(header) {
        Err(Damage(what)) => Some(what),
        Ok(header) if header.database != database_id => Some("the segment belongs to another database"),
        Ok(header) if header.number != number => Some("the segment has another number"),
        Ok(_) => None,
    }
}

/// Why a segment does not end where the next one begins, judged by its last block; None if it does.
#[pyfunction]
pub fn closes(header: &[u8], after: &[u8], place: u64, block: &[u8]) -> Option<&'static str> {
    match (SegmentHeader::decode(header), SegmentHeader::decode(after)) {
        (Ok(header), Ok(after)) => log::closes(&header, &after, place, block),
        _ => Some("its header is damaged"),
    }
}

/// Where a replay goes on after a checkpoint.
#[pyclass(frozen, module = "kimberlite._native")]
pub struct Resume(log::Resume);

#[pymethods]
impl Resume {
    #[getter]
    fn segment(&self) -> u64 {
        self.0.segment
    }
    #[getter]
    fn place(&self) -> u64 {
        self.0.place
    }
    #[getter]
    fn last_place(&self) -> u64 {
        self.0.last_place
    }
    #[getter]
    fn group(&self) -> u64 {
        self.0.group
    }
    #[getter]
    fn producers(&self) -> u64 {
        self.0.producers
    }
    #[getter]
    fn hashes(&self) -> u64 {
        self.0.hashes
    }
}

fn segment_file(number: u64) -> String {
    format!("segments/{number:020}.seg")
}

/// An error of a file, or damage that was found where an index was to be made again.
fn io_error(py: Python<'_>, error: io::Error) -> PyErr {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<log::Unindexed>()) {
        Some(found) => errors::corrupt(py, found.what, &segment_file(found.segment), Some(found.place), None, None),
        None => os_error(error),
    }
}

pub fn os_error(error: io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(code) => PyOSError::new_err((code, error.to_string())),
        None => PyOSError::new_err(error.to_string()),
    }
}
