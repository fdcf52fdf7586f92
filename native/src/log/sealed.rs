//! Sealed groups, and the thread that makes the leaves of large ones.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use kimberlite_core::format::Hash;
use kimberlite_core::{group, log};
use pyo3::prelude::*;

/// A sealed group on its way through the finisher.
pub struct Shared {
    pub group: Mutex<group::Sealed>,
    pub segment: Arc<log::Segment>,
    /// When its bytes were begun.
    pub began: Instant,
    /// Size and root of the tree behind the group, once its leaves are made.
    pub tree: Mutex<Option<(u64, Hash)>>,
    pub finished: Condvar,
}

impl Shared {
    pub fn finish(&self, log: &log::Log) {
        let state = log.finish(&self.segment, &mut self.group.lock().unwrap());
        *self.tree.lock().unwrap() = Some(state);
        self.finished.notify_all();
    }

    pub fn wait(&self) -> (u64, Hash) {
        let guard = self.finished.wait_while(self.tree.lock().unwrap(), |state| state.is_none());
        guard.unwrap().expect("it was waited for")
    }
}

/// Leaves of larger groups are made by a thread of their own, in the order of the groups.
pub struct Finisher {
    pub queue: Option<Sender<Arc<Shared>>>,
    pub last: Option<Arc<Shared>>,
}

/// Fewer records are finished sooner than a thread wakes up.
pub const WORTH_A_THREAD: u32 = 400;

impl Finisher {
    pub fn submit(&mut self, log: &Arc<log::Log>, group: &Arc<Shared>) {
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
    pub shared: Arc<Shared>,
    #[pyo3(get)]
    pub number: u64,
    #[pyo3(get)]
    pub place: u64,
    #[pyo3(get)]
    pub padded: usize,
    #[pyo3(get)]
    pub records: u32,
    #[pyo3(get)]
    pub timestamp: u64,
}
