//! `Log`: what the core knows of a log, under Python's hands.

mod appending;
mod derived;
mod erasure;
mod packing;
mod reading;
mod replaying;
mod retention;
mod salvage;
mod scrub;
mod sealed;
mod segment;

use std::io;
use std::sync::{Arc, Mutex};

use kimberlite_core::format::Damage;
use kimberlite_core::group::Database;
use kimberlite_core::keys::{Entropy, GroupKey, Key, derive, domain};
use kimberlite_core::log::{self, Failure, Files, Refused, Secrets};
use kimberlite_core::system::Declaration;
use pyo3::exceptions::{PyFileNotFoundError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

pub use self::derived::Proving;
pub use self::packing::Packing;
pub use self::reading::Frame;
pub use self::retention::Search;
pub use self::salvage::{Salvage, encode_repair};
pub use self::scrub::Scrub;
use self::sealed::Finisher;
pub use self::sealed::Sealed;
use self::segment::segment_file;
pub use self::segment::{Resume, Segment, closes, header_damage};
use crate::errors::{self, os_error};
use crate::meters::Meters;

const STRANGE: &str = "it names an append that the log has not; once it is deleted, it is made again";
const LONGER: &str = "it has records that no segment has; once it is deleted, it is made again";
const DISAGREE: &str = "it does not agree with the records; verify says which of them is damaged";

/// Files of closed segments and their indexes that are open at a time: a process has 1,024 unless it asks for more.
const MOST_FILES: usize = 128;

pub fn exactly<const N: usize>(bytes: &[u8], what: &str) -> PyResult<[u8; N]> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("{what} has {} bytes, not {N}", bytes.len())))
}

#[pyclass(frozen, module = "kimberlite._native")]
pub struct Log {
    pub inner: Arc<log::Log>,
    /// Of closed segments and their indexes.
    files: Arc<Files>,
    finisher: Mutex<Finisher>,
    #[pyo3(get)]
    meters: Py<Meters>,
}

impl Log {
    fn failure(&self, py: Python<'_>, failure: Failure) -> PyErr {
        match failure {
            Failure::Io(error) => io_error(py, error),
            Failure::Damaged { segment, place, group, position, what } => {
                errors::corrupt(py, what, &segment_file(segment), Some(place), Some(group), Some(position))
            }
            Failure::Unreadable { segment, place, group, position } => {
                let at = format!("{}, byte {place}, group {group}, position {position}", segment_file(segment));
                errors::raise(py, "Unavailable", &format!("{at}: {}", log::UNREADABLE))
            }
            Failure::HashesDamaged { position } => errors::corrupt(py, DISAGREE, "hashes", None, None, Some(position)),
            Failure::Misled { position } => errors::corrupt(py, LONGER, "checkpoint", None, None, Some(position)),
            Failure::ProducersDamaged { group } => errors::corrupt(py, STRANGE, "producers", None, Some(group), None),
            Failure::Dropped { stream, first } => {
                let streams = self.inner.streams.read().unwrap();
                let what = match stream {
                    Some(stream) => {
                        format!("of stream {:?} what is before offset {first}", streams.info[stream as usize].name)
                    }
                    None => format!("what is before position {first}"),
                };
                errors::dropped(py, &format!("{what} was dropped"), first)
            }
            Failure::Skipped { stream, first } => {
                let name = self.inner.streams.read().unwrap().info[stream as usize].name.clone();
                errors::dropped(py, &format!("stream {name:?} has a gap there, and goes on at offset {first}"), first)
            }
            Failure::NoKey { stream } => self.refused(py, Refused::NoKey { stream }),
            Failure::Erased(run) => self.refused(py, Refused::Erased { stream: run.stream }),
        }
    }

    fn refused(&self, py: Python<'_>, refused: Refused) -> PyErr {
        let name = |stream: u32| self.inner.streams.read().unwrap().info[stream as usize].name.clone();
        match refused {
            Refused::Expected { stream, length } => {
                errors::conflict(py, format!("stream {:?} has {length} records", name(stream)), Some(length), "stream")
            }
            Refused::Full { stream } => {
                let what = format!("stream {:?} would be longer than 2^63 - 1 records", name(stream));
                errors::raise(py, "LimitExceeded", &what)
            }
            Refused::Sequence { expected } => {
                errors::conflict(py, format!("the producer's next sequence is {expected}"), Some(expected), "producer")
            }
            Refused::DigestDiffers => {
                errors::conflict(py, "the producer has used this sequence for other records".into(), None, "producer")
            }
            Refused::Doubtful { group } => {
                let what = "it may have been appended, and its producer was forgotten since".into();
                errors::conflict(py, what, Some(group), "forgotten")
            }
            Refused::Forgotten => {
                errors::raise(py, "Duplicate", "appended before; its receipt is no longer remembered")
            }
            Refused::Past { last } => {
                let what =
                    format!("the log's time is {last} already, and goes not back: these records cannot keep theirs");
                errors::raise(py, "Invalid", &what)
            }
            Refused::Future => errors::raise(py, "Invalid", "it is not that late yet by this database's clock"),
            Refused::NoKey { stream } => {
                errors::raise(py, "KeyUnavailable", &format!("the key of stream {:?} is missing", name(stream)))
            }
            Refused::Erased { stream } => {
                let streams = self.inner.streams.read().unwrap();
                let (info, erasure) = streams.erased(stream).expect("it was just found to be so");
                errors::erased(py, &info.name, erasure.at.timestamp, &erasure.reason)
            }
            Refused::Unfit(what) => errors::raise(py, "Invalid", what),
        }
    }
}

#[pymethods]
impl Log {
    #[new]
    #[pyo3(signature = (database_id, identity, *, quantum, tagged, group_key, receipt_key, level, cache_bytes, seed=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
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
        let entropy = seed.map_or_else(Entropy::kernel, Entropy::seeded);
        let finisher = Mutex::new(Finisher { queue: None, last: None });
        let secrets = Secrets { receipt, several };
        let inner = Arc::new(log::Log::new(database, secrets, level, cache_bytes, entropy));
        let meters = Py::new(py, Meters::default())?;
        Ok(Self { inner, files: Files::new(MOST_FILES), finisher, meters })
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

    /// Number and chain of the last durable group.
    fn durable_group<'py>(&self, py: Python<'py>) -> (u64, Bound<'py, PyBytes>) {
        let end = self.inner.end();
        (end.group, PyBytes::new(py, &end.chain))
    }

    /// Of all streams, by number.
    #[getter]
    fn declarations<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let streams = self.inner.streams.read().unwrap();
        streams.info.iter().skip(1).map(|info| PyBytes::new(py, &info.declaration)).collect()
    }

    /// Of the groups that are sealed from here on.
    #[getter]
    fn incarnation(&self) -> u32 {
        self.inner.incarnation()
    }

    /// Groups from here on have at least this one.
    fn raise_incarnation(&self, incarnation: u32) {
        self.inner.raise_incarnation(incarnation);
    }

    /// When it was sealed; 0 if there is none.
    #[getter]
    fn durable_time(&self) -> u64 {
        self.inner.end().timestamp
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

    /// Lets go of every file. Nothing is read after this.
    fn close(&self) {
        self.inner.close();
    }
}

/// An error of a file, or damage that was found where an index was to be made again.
fn io_error(py: Python<'_>, error: io::Error) -> PyErr {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<log::Unindexed>()) {
        Some(found) if error.kind() == io::ErrorKind::NotFound => {
            PyFileNotFoundError::new_err((libc::ENOENT, found.what, segment_file(found.segment)))
        }
        Some(found) if found.what == log::UNREADABLE => {
            let file = segment_file(found.segment);
            errors::raise(py, "Unavailable", &format!("{file}, byte {}: {}", found.place, found.what))
        }
        Some(found) => errors::corrupt(py, found.what, &segment_file(found.segment), Some(found.place), None, None),
        None => os_error(error),
    }
}
