//! Many clients in one thread.
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Tally;
use super::client::{Client, Failure, Pace};
use super::poll::Poll;
use crate::wire::LARGEST_REPLY;
use crate::wire::inbox::{Inbox, Unfit};

/// Bytes for what arrives, as long as no message is longer; a message of records is not. They are taken when they are used.
const USUAL: usize = 2 << 20;

/// A client and its socket, which does not block.
struct Link {
    socket: File,
    client: Client,
    inbox: Inbox,
    out: Vec<u8>,
    /// Of `out`, what has left.
    sent: usize,
}

/// Clients that are greeted already, and ask and are answered while `run` runs.
pub struct Swarm {
    links: Vec<Link>,
    poll: Poll,
    epoch: Instant,
}

impl Default for Swarm {
    fn default() -> Self {
        Self { links: Vec::new(), poll: Poll::default(), epoch: Instant::now() }
    }
}

impl Swarm {
    pub fn add(&mut self, socket: OwnedFd, client: Client) {
        self.poll.add(socket.as_raw_fd());
        let inbox = Inbox::new(USUAL, LARGEST_REPLY);
        self.links.push(Link { socket: socket.into(), client, inbox, out: Vec::new(), sent: 0 });
    }

    pub fn clients(&self) -> impl Iterator<Item = &Client> {
        self.links.iter().map(|link| &link.client)
    }

    /// What was answered so far does not count.
    pub fn reset(&mut self) {
        self.links.iter_mut().for_each(|link| link.client.tally = Tally::default());
    }

    /// From now on every client asks at this interval, one after another; None: as fast as it is answered.
    pub fn pace(&mut self, interval: Option<Duration>) {
        let (now, count) = (self.now(), self.links.len() as u64);
        for (i, link) in self.links.iter_mut().enumerate() {
            link.client.pace = interval.map(|interval| {
                let interval = interval.as_nanos() as u64;
                Pace { due: now + interval * i as u64 / count, interval }
            });
        }
    }

    /// Asks and takes answers for so long; with `asking` false only the latter, and no longer than anything is open.
    /// Gives whether something is.
    pub fn run(&mut self, most: Duration, asking: bool) -> Result<bool, Failure> {
        let end = self.now() + most.as_nanos() as u64;
        loop {
            let now = self.now();
            if asking {
                for i in 0..self.links.len() {
                    let link = &mut self.links[i];
                    link.client.ask(now, &mut link.out);
                    self.send(i)?;
                }
            }
            let open = self.links.iter().any(|link| link.client.open() > 0);
            if now >= end || !(asking || open) {
                return Ok(open);
            }
            let due = self.links.iter().filter_map(|link| link.client.due()).min().filter(|_| asking);
            let until = due.unwrap_or(end).min(end);
            self.poll.wait(Duration::from_nanos(until.saturating_sub(self.now()))).map_err(lost)?;
            for i in 0..self.links.len() {
                let ready = self.poll.ready(i);
                if ready.readable {
                    self.receive(i)?;
                }
                if ready.writable {
                    self.send(i)?;
                }
            }
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn send(&mut self, i: usize) -> Result<(), Failure> {
        let link = &mut self.links[i];
        while link.sent < link.out.len() {
            match link.socket.write(&link.out[link.sent..]) {
                Ok(count) => link.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(lost(error)),
            }
        }
        if link.sent == link.out.len() {
            link.out.clear();
            link.sent = 0;
        }
        let unsent = !link.out.is_empty();
        self.poll.want_room(i, unsent);
        Ok(())
    }

    fn receive(&mut self, i: usize) -> Result<(), Failure> {
        let link = &mut self.links[i];
        link.inbox.make_room();
        match link.socket.read(link.inbox.room()) {
            Ok(0) => return Err(Failure::Lost("the server closed the connection".into())),
            Ok(count) => link.inbox.arrived(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(lost(error)),
        }
        let now = self.epoch.elapsed().as_nanos() as u64;
        loop {
            match link.inbox.next() {
                Ok(None) => return Ok(()),
                Ok(Some((header, body))) => {
                    link.client.take(header, body, now)?;
                    link.inbox.take(header);
                }
                Err(Unfit(_)) => return Err(Failure::Malformed("a reply is longer than any may be")),
            }
        }
    }
}

fn lost(error: io::Error) -> Failure {
    Failure::Lost(error.to_string())
}
