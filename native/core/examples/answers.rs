//! A server that does nothing but answer: appends get a receipt at once, made of zeros. What clients reach with it is what
//! sockets allow. It says its port, serves until its input ends, and answers a hello with the message that its argument is,
//! in hexadecimal.
use std::env;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::exit;
use std::thread;

use kimberlite_core::wire::inbox::Inbox;
use kimberlite_core::wire::receipts::{self, Ending, Place};
use kimberlite_core::wire::{LARGEST, kind, put_message};

const USUAL: usize = 256 << 10;
/// Sockets that are told of at a time.
const MOST: usize = 256;
const ENDING: Ending =
    Ending { timestamp: 0, durable: true, tree_size: 0, root: [0; 32], chain: [0; 32], incarnation: 0, group: 0 };
const PLACE: Place = Place { first_offset: 0, last_offset: 0, first_position: 0, last_position: 0, mac: [0; 16] };

struct Client {
    socket: TcpStream,
    inbox: Inbox,
}

fn main() -> io::Result<()> {
    let welcome = env::args().nth(1).and_then(|text| bytes(&text)).expect("a message in hexadecimal");
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        exit(0);
    });
    // SAFETY: a descriptor of our own, as long as the process lives.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    // The first number is the listener's.
    let mut clients: Vec<Option<Client>> = Vec::from([None]);
    watch(epoll, &listener, 0)?;
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST];
    loop {
        // SAFETY: the kernel writes to as many as there are.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), MOST as i32, -1) };
        for event in &events[..count.max(0) as usize] {
            let i = event.u64 as usize;
            if i == 0 {
                let (socket, _) = listener.accept()?;
                socket.set_nodelay(true)?;
                watch(epoll, &socket, clients.len() as u64)?;
                clients.push(Some(Client { socket, inbox: Inbox::new(USUAL, LARGEST) }));
            } else if clients[i].as_mut().is_none_or(|client| client.serve(&welcome).is_err()) {
                clients[i] = None;
            }
        }
    }
}

impl Client {
    /// One read, and one write for all that it asked.
    fn serve(&mut self, welcome: &[u8]) -> io::Result<()> {
        self.inbox.make_room();
        let count = self.socket.read(self.inbox.room())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inbox.arrived(count);
        let (mut out, mut answers, mut answered) = (Vec::new(), Vec::new(), 0);
        while let Ok(Some((header, _))) = self.inbox.next() {
            if header.kind == kind::HELLO {
                put_message(&mut out, kind::WELCOME, header.id, |out| out.extend_from_slice(welcome));
            } else {
                receipts::put_answer(&mut answers, header.id, 1);
                receipts::put_place(&mut answers, &PLACE);
                answered += 1;
            }
            self.inbox.take(header);
        }
        if answered > 0 {
            put_message(&mut out, kind::RECEIPTS, kind::NOBODY, |out| {
                receipts::put_ending(out, &ENDING, answered);
                out.extend_from_slice(&answers);
            });
        }
        self.socket.write_all(&out)
    }
}

fn watch(epoll: i32, socket: &impl AsRawFd, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: data };
    // SAFETY: both descriptors are open.
    match unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
