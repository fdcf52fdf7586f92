//! A segment as readers know it: its header, its bytes and where its runs are.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use crate::format::{CLOSING, Damage, GROUP_HEADER, GroupHeader, RUN_HEADER, RunHeader, SEGMENT_HEADER, SegmentHeader};
use crate::index::{ClosedIndex, GroupEntry, Lookup, RunEntry, SegmentIndex, StreamEntry};
use crate::keys::{Key, domain};

/// Bytes of a file that somebody else keeps open.
pub trait Source: Send + Sync {
    /// Fewer only at the end of the file.
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>>;
}

/// A descriptor of our own: whoever reads may go on when the one it was made from is closed.
pub struct Descriptor(OwnedFd);

impl Descriptor {
    pub fn duplicate(fd: BorrowedFd) -> io::Result<Self> {
        Ok(Self(fd.try_clone_to_owned()?))
    }
}

impl Source for Descriptor {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut out: Vec<u8> = Vec::with_capacity(length);
        while out.len() < length {
            let (at, room) = (place + out.len() as u64, length - out.len());
            // SAFETY: the spare capacity is ours and at least `room` long; the kernel says how much it filled.
            let got = unsafe {
                libc::pread(self.0.as_raw_fd(), out.as_mut_ptr().add(out.len()).cast(), room, at as libc::off_t)
            };
            match got {
                0 => break,
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                // SAFETY: these bytes were just filled.
                got => unsafe { out.set_len(out.len() + got as usize) },
            }
        }
        Ok(out)
    }
}

/// Where the runs of a segment are. The compressed form of a closed segment joins here.
pub enum Index {
    Active(Box<SegmentIndex>),
    /// Of a closed segment: read from its file, which is not believed without its MAC, when it is needed. One that led to
    /// what is not there is `doubted`: it is asked only if the segment itself cannot be.
    Closed {
        file: Option<Arc<dyn Source>>,
        doubted: bool,
        key: Key,
        loaded: OnceLock<Box<dyn Lookup>>,
        streams: OnceLock<Known>,
    },
}

/// What stays in memory of an index that leaves it: the streams that the segment has, by number, if they are few; else a
/// bit for each.
#[derive(Clone)]
pub enum Known {
    Few(Arc<[StreamEntry]>),
    Many(Arc<[u64]>),
}

const FEW: usize = 16;

impl Known {
    fn of(streams: Vec<StreamEntry>) -> Self {
        if streams.len() <= FEW {
            return Self::Few(streams.into());
        }
        let mut bits = vec![0; streams.last().map_or(0, |entry| entry.stream as usize / 64 + 1)];
        streams.iter().for_each(|entry| bits[entry.stream as usize / 64] |= 1 << (entry.stream % 64));
        Self::Many(bits.into())
    }

    /// What there is of a stream; None if only the index can say.
    fn stream(&self, stream: u32) -> Option<Option<StreamEntry>> {
        match self {
            Self::Few(few) => {
                let at = few.binary_search_by_key(&stream, |entry| entry.stream);
                Some(at.ok().map(|at| few[at]))
            }
            Self::Many(bits) => {
                let bits = bits.get(stream as usize / 64).copied().unwrap_or(0);
                if bits >> (stream % 64) & 1 == 0 { Some(None) } else { None }
            }
        }
    }
}

pub struct Segment {
    pub header: SegmentHeader,
    source: RwLock<Arc<dyn Source>>,
    pub index: RwLock<Arc<Index>>,
    asked: AtomicBool,
    /// Whether its file is known to be missing, and not to have been dropped.
    lost: AtomicBool,
}

impl Segment {
    pub fn active(header: SegmentHeader, source: Arc<dyn Source>) -> Self {
        Self::of(header, source, Index::Active(Box::new(SegmentIndex::new(&header))))
    }

    /// Goes on behind what a checkpoint covers: the index up to there is made again.
    pub fn resumed(header: SegmentHeader, source: Arc<dyn Source>, place: u64) -> io::Result<Self> {
        let segment = Self::active(header, source);
        let index = scan(&segment, place)?;
        *segment.index.write().unwrap() = Arc::new(Index::Active(Box::new(index)));
        Ok(segment)
    }

    pub fn closed(header: SegmentHeader, source: Arc<dyn Source>, file: Option<Arc<dyn Source>>, key: Key) -> Self {
        Self::of(header, source, Index::closed(file, key))
    }

    fn of(header: SegmentHeader, source: Arc<dyn Source>, index: Index) -> Self {
        let (source, index) = (RwLock::new(source), RwLock::new(Arc::new(index)));
        Self { header, source, index, asked: AtomicBool::new(false), lost: AtomicBool::new(false) }
    }

    pub fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        let source = self.source.read().unwrap().clone();
        source.read(place, length).map_err(|error| match error.kind() {
            // As long as it may have been dropped it is no damage.
            kind @ io::ErrorKind::NotFound => {
                let kind = if self.lost.load(Ordering::Relaxed) { io::ErrorKind::InvalidData } else { kind };
                io::Error::new(kind, Unindexed { segment: self.header.number, place, what: MISSING })
            }
            _ => error,
        })
    }

    /// Whether nobody knew that its file is missing and was not dropped: from here on that is damage.
    pub fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::Relaxed)
    }

    /// From here on its bytes come from there.
    pub fn read_from(&self, source: Arc<dyn Source>) {
        *self.source.write().unwrap() = source;
    }

    pub fn index(&self) -> Arc<Index> {
        self.asked.store(true, Ordering::Relaxed);
        self.index.read().unwrap().clone()
    }

    /// The same segment in another file, if that is what its name leads to by now.
    pub fn renewed(&self) -> Option<Self> {
        let Index::Closed { file, key, .. } = &*self.index() else { return None };
        let source = self.source.read().unwrap().clone();
        let header = SegmentHeader::decode(&source.read(0, SEGMENT_HEADER).ok()?).ok()?;
        let same = SegmentHeader { salt: self.header.salt, packed: self.header.packed, ..header } == self.header;
        (same && header.salt != self.header.salt).then(|| Self::closed(header, source, file.clone(), *key))
    }

    /// Whether anybody wanted its index since this was last called.
    pub fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// What was read of a closed segment's index is read again when it is needed again.
    pub fn unload(&self) {
        let mut index = self.index.write().unwrap();
        if let Index::Closed { file, doubted, key, streams, .. } = &**index {
            let (file, loaded, streams) = (file.clone(), OnceLock::new(), streams.clone());
            *index = Arc::new(Index::Closed { file, doubted: *doubted, key: *key, loaded, streams });
        }
    }

    /// From here on the index is one made from the segment itself, if that can be made.
    pub fn distrust(&self) {
        let mut index = self.index.write().unwrap();
        if let Index::Closed { file: Some(file), doubted: false, key, .. } = &**index {
            let (file, loaded, streams) = (Some(file.clone()), OnceLock::new(), OnceLock::new());
            *index = Arc::new(Index::Closed { file, doubted: true, key: *key, loaded, streams });
        }
    }

    /// From here on its index's file is not open.
    pub fn forget_index(&self) {
        let mut index = self.index.write().unwrap();
        if let Index::Closed { file: Some(_), key, .. } = **index {
            *index = Arc::new(Index::closed(None, key));
        }
    }
}

/// The MAC at the end of every derived file that has one.
pub fn derived_mac(key: &Key, bytes: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new_keyed(key).update(&domain("kimberlite/derived/1")).update(bytes).finalize().as_bytes()
}

/// The bytes in front of a MAC that is right.
pub fn checked<'a>(key: &Key, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (bytes, mac) = bytes.split_last_chunk::<32>()?;
    (derived_mac(key, bytes) == *mac).then_some(bytes)
}

impl Index {
    pub fn closed(file: Option<Arc<dyn Source>>, key: Key) -> Self {
        Self::Closed { file, doubted: false, key, loaded: OnceLock::new(), streams: OnceLock::new() }
    }

    pub fn is_loaded(&self) -> bool {
        match self {
            Self::Active(_) => true,
            Self::Closed { loaded, .. } => loaded.get().is_some(),
        }
    }

    /// What the segment has of a stream, if that can be told from memory.
    pub fn stream(&self, stream: u32) -> Option<Option<StreamEntry>> {
        let (loaded, streams) = match self {
            Self::Active(index) => return Some(index.stream(stream)),
            Self::Closed { loaded, streams, .. } => (loaded.get(), streams.get()?),
        };
        loaded.map_or_else(|| streams.stream(stream), |index| Some(index.stream(stream)))
    }

    pub fn lookup(&self, segment: &Segment) -> io::Result<&dyn Lookup> {
        match self {
            Self::Active(index) => Ok(&**index),
            Self::Closed { file, doubted, key, loaded, streams } => {
                if let Some(index) = loaded.get() {
                    return Ok(&**index);
                }
                let filed = || match from_file(&**file.as_ref()?, key, &segment.header) {
                    Ok(Some(index)) => Some(Box::new(index) as Box<dyn Lookup>),
                    _ => None,
                };
                let index = if *doubted {
                    made_again(segment).or_else(|error| filed().ok_or(error))?
                } else {
                    filed().map_or_else(|| made_again(segment), Ok)?
                };
                streams.get_or_init(|| Known::of(index.streams()));
                Ok(&**loaded.get_or_init(|| index))
            }
        }
    }
}

/// What grows has room to grow, which a closed segment needs none of.
fn made_again(segment: &Segment) -> io::Result<Box<dyn Lookup>> {
    let index = scan(segment, u64::MAX)?;
    let compact = ClosedIndex::decode(&index.encode(), &segment.header);
    Ok(compact.map_or_else(|_| Box::new(index) as Box<dyn Lookup>, |index| Box::new(index)))
}

fn from_file(file: &dyn Source, key: &Key, header: &SegmentHeader) -> io::Result<Option<ClosedIndex>> {
    if *key == NO_KEY {
        return Ok(None);
    }
    let Some(length) = ClosedIndex::length(&file.read(0, PIECE)?, header) else { return Ok(None) };
    // No more than it says, whatever the file's length.
    let bytes = file.read(0, length + MAC + 1)?;
    Ok(checked(key, &bytes).and_then(|bytes| ClosedIndex::decode(bytes, header).ok()))
}

/// Stands for a receipt key that is not at hand, and makes no MAC that is believed.
pub const NO_KEY: Key = [0; 32];

/// Of an index file, enough to say how long it is.
const PIECE: usize = 4096;

/// Behind the bytes of a derived file.
const MAC: usize = 32;

/// Whether the disk does not give back what is there. To direct reads it says so in other words than to buffered ones.
pub fn is_unreadable(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ENODATA | libc::EREMOTEIO | libc::EILSEQ))
}

pub const UNREADABLE: &str = "the disk cannot read what is there";

const MISSING: &str = "it is missing";

/// What keeps the index of a segment from being made again, inside the `io::Error` that says so.
#[derive(Debug)]
pub struct Unindexed {
    pub segment: u64,
    pub place: u64,
    pub what: &'static str,
}

pub fn unindexed(error: &io::Error) -> Option<&Unindexed> {
    error.get_ref()?.downcast_ref()
}

impl std::fmt::Display for Unindexed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.what)
    }
}

impl std::error::Error for Unindexed {}

/// The index made again from the segment's own headers: of the groups before `upto`, at most up to the closing one.
fn scan(segment: &Segment, upto: u64) -> io::Result<SegmentIndex> {
    let index = SegmentIndex::new(&segment.header);
    let number = segment.header.number;
    let damaged = |place, what| io::Error::new(io::ErrorKind::InvalidData, Unindexed { segment: number, place, what });
    let mut place = SEGMENT_HEADER as u64;
    loop {
        if place >= upto {
            return Ok(index);
        }
        let read = |length| {
            let unreadable = |error| if is_unreadable(&error) { damaged(place, UNREADABLE) } else { error };
            segment.read(place, length).map_err(unreadable)
        };
        let head = read(GROUP_HEADER)?;
        let group = GroupHeader::decode(&head, &segment.header.salt, place);
        let group = group.map_err(|Damage(what)| damaged(place, what))?;
        let bytes = read(group.length as usize)?;
        let mut at = GROUP_HEADER;
        let mut runs = Vec::with_capacity(group.runs as usize);
        for _ in 0..group.runs {
            let run = bytes.get(at..).filter(|rest| rest.len() >= RUN_HEADER).map(RunHeader::decode);
            let Some(Ok(run)) = run else { return Err(damaged(place, "a run is damaged")) };
            runs.push(entry(&run, place + at as u64));
            at += run.length as usize;
        }
        append(&index, &group, place, &runs).map_err(|Damage(what)| damaged(place, what))?;
        if group.flags & CLOSING != 0 {
            return Ok(index);
        }
        place += segment.header.step(&group) as u64;
    }
}

pub fn entry(run: &RunHeader, place: u64) -> RunEntry {
    RunEntry {
        position: run.first_position,
        offset: run.first_offset,
        stream: run.stream,
        records: run.records,
        place: place as u32,
        length: run.length,
    }
}

pub fn append(index: &SegmentIndex, group: &GroupHeader, place: u64, runs: &[RunEntry]) -> crate::format::Checked<()> {
    let (position, timestamp) = (group.first_position, group.timestamp);
    index.append_group(&GroupEntry { number: group.number, position, timestamp, place: place as u32 }, runs)
}

/// Why a segment, which is so long, does not end where the next one begins; `last` is its last block and that block's
/// place.
pub fn closes(
    header: &SegmentHeader,
    after: &SegmentHeader,
    size: u64,
    place: u64,
    last: &[u8],
) -> Option<&'static str> {
    const ELSEWHERE: &str = "it does not end where the next one begins";
    const OTHERWISE: &str = "its last chain is not the one the next one follows";
    if let Some(packed) = header.packed {
        if packed.length != size {
            return Some("it is not as long as its header says");
        }
        if packed.last_group.checked_add(1) != Some(after.first_group) {
            return Some(ELSEWHERE);
        }
        return (packed.last_chain != after.before).then_some(OTHERWISE);
    }
    let Ok(group) = GroupHeader::decode(last, &header.salt, place) else {
        return Some("its closing group is not there");
    };
    if group.flags & CLOSING == 0
        || group.number + 1 != after.first_group
        || group.first_position != after.first_position
    {
        return Some(ELSEWHERE);
    }
    let chain = last.get(GROUP_HEADER..GROUP_HEADER + 32);
    (chain != Some(&after.before)).then_some(OTHERWISE)
}
