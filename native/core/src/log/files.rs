//! Files of closed segments: opened when they are read, and only so many of them at a time.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::Source;

/// Opens a file again. It may take its time, and is called with no lock held.
pub type Open = Box<dyn Fn() -> io::Result<Arc<dyn Source>> + Send + Sync>;

/// The files that are open at the moment, oldest first: one that was read since it came to the front goes to the back.
pub struct Files {
    most: usize,
    open: Mutex<VecDeque<Weak<Reopened>>>,
}

struct Reopened {
    open: Open,
    held: Mutex<Option<Arc<dyn Source>>>,
    read: AtomicBool,
    files: Arc<Files>,
    me: Weak<Self>,
}

impl Files {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// A file that is opened when it is first read, and again whenever it was closed for the sake of others.
    pub fn source(self: &Arc<Self>, open: Open) -> Arc<dyn Source> {
        Arc::new_cyclic(|me: &Weak<Reopened>| Reopened {
            open,
            held: Mutex::default(),
            read: AtomicBool::new(false),
            files: self.clone(),
            me: me.clone(),
        })
    }

    fn opened(&self, file: &Weak<Reopened>) {
        let mut open = self.open.lock().unwrap();
        open.push_back(file.clone());
        while open.len() > self.most {
            let Some(oldest) = open.pop_front() else { return };
            let Some(oldest_file) = oldest.upgrade() else { continue };
            if oldest_file.read.swap(false, Ordering::Relaxed) {
                open.push_back(oldest);
            } else {
                // Whoever is reading it has it until they are done.
                oldest_file.held.lock().unwrap().take();
            }
        }
    }
}

impl Reopened {
    fn get(&self) -> io::Result<Arc<dyn Source>> {
        self.read.store(true, Ordering::Relaxed);
        if let Some(source) = &*self.held.lock().unwrap() {
            return Ok(source.clone());
        }
        let source = (self.open)()?;
        let other = self.held.lock().unwrap().replace(source.clone());
        // Somebody else may have been as fast.
        if other.is_none() {
            self.files.opened(&self.me);
        }
        Ok(source)
    }
}

impl Source for Reopened {
    fn read(&self, place: u64, length: usize) -> io::Result<Vec<u8>> {
        self.get()?.read(place, length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// How many of them are open.
    static OPEN: AtomicUsize = AtomicUsize::new(0);

    struct Counted(u8);

    impl Source for Counted {
        fn read(&self, _: u64, length: usize) -> io::Result<Vec<u8>> {
            Ok(vec![self.0; length])
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            OPEN.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn no_more_than_so_many_are_open_and_all_can_be_read() {
        let files = Files::new(3);
        let open = |i: u8| -> Open {
            Box::new(move || {
                OPEN.fetch_add(1, Ordering::SeqCst);
                Ok(Arc::new(Counted(i)) as Arc<dyn Source>)
            })
        };
        let sources: Vec<_> = (0..10).map(|i| files.source(open(i))).collect();
        assert_eq!(OPEN.load(Ordering::SeqCst), 0);
        for round in 0..5 {
            for (i, source) in sources.iter().enumerate() {
                assert_eq!(source.read(0, 2 + round).unwrap(), vec![i as u8; 2 + round]);
                // What is read all the time stays.
                assert_eq!(sources[0].read(0, 1).unwrap(), [0]);
                assert!(OPEN.load(Ordering::SeqCst) <= 3);
            }
        }
        drop(sources);
        assert_eq!(OPEN.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_cannot_be_opened_is_tried_again() {
        let tries = Arc::new(AtomicUsize::new(0));
        let count = tries.clone();
        let source = Files::new(1).source(Box::new(move || match count.fetch_add(1, Ordering::SeqCst) {
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(Arc::new(Held) as Arc<dyn Source>),
        }));
        assert_eq!(source.read(0, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(source.read(0, 1).unwrap(), [7]);
        assert_eq!(source.read(0, 1).unwrap(), [7]);
        assert_eq!(tries.load(Ordering::SeqCst), 2);
    }

    struct Held;

    impl Source for Held {
        fn read(&self, _: u64, length: usize) -> io::Result<Vec<u8>> {
            Ok(vec![7; length])
        }
    }
}
