//! A message as the blocks it is hashed in, and the loop that keeps every lane of a kernel busy.

use super::{Job, State, portable};

/// One message on its way through a lane. Blocks that lie whole in the body are lent in place;
/// only a block that joins head and body, or carries padding, is built in `join`.
pub struct Feed<'a> {
    pub state: State,
    pub slot: usize,
    head: &'a [u8],
    body: &'a [u8],
    left: usize,
    bits: u64,
    marked: bool,
    join: [u8; 64],
}

impl<'a> Feed<'a> {
    pub fn new(job: &Job<'a>, slot: usize) -> Self {
        let len = job.head.len() + job.body.len();
        Self {
            state: *job.state,
            slot,
            head: job.head,
            body: job.body,
            left: (len + 9).div_ceil(64),
            bits: (job.absorbed + len as u64) * 8,
            marked: false,
            join: [0; 64],
        }
    }

    /// A lane with nothing to do: it is stepped with the others and its state is never read.
    fn idle() -> Self {
        let job = Job { state: &portable::IV, absorbed: 0, head: &[], body: &[] };
        Self { left: 0, ..Self::new(&job, usize::MAX) }
    }

    #[inline(always)]
    pub fn next(&mut self) -> &[u8; 64] {
        self.left = self.left.saturating_sub(1);
        if self.head.is_empty()
            && let Some((block, rest)) = self.body.split_first_chunk::<64>()
        {
            self.body = rest;
            return block;
        }
        self.joined()
    }

    fn joined(&mut self) -> &[u8; 64] {
        let from_head = self.head.len().min(64);
        let from_body = self.body.len().min(64 - from_head);
        let used = from_head + from_body;
        let (now, rest) = self.head.split_at(from_head);
        self.join[..from_head].copy_from_slice(now);
        self.head = rest;
        let (now, rest) = self.body.split_at(from_body);
        self.join[from_head..used].copy_from_slice(now);
        self.body = rest;
        self.join[used..].fill(0);
        if used < 64 && !self.marked {
            self.join[used] = 0x80;
            self.marked = true;
        }
        if self.left == 0 {
            self.join[56..].copy_from_slice(&self.bits.to_be_bytes());
        }
        &self.join
    }
}

/// `N` hash states stepped together, one block each.
pub trait Lanes<const N: usize> {
    /// With fewer busy lanes than this, the rest is cheaper in a narrower kernel.
    const WORTH: usize;
    fn set(&mut self, lane: usize, state: &State);
    fn get(&self, lane: usize) -> State;
    fn step(&mut self, blocks: [&[u8; 64]; N]);
}

/// Hashes what `feeds` yields, refilling a lane the moment its message ends. Returns what was
/// still in the lanes when fewer than `WORTH` could be kept busy, for a narrower kernel to finish.
#[inline(always)]
pub fn run<'a, const N: usize, L: Lanes<N>, I: Iterator<Item = Feed<'a>>>(
    lanes: &mut L,
    feeds: &mut I,
    out: &mut [[u8; 32]],
) -> impl Iterator<Item = Feed<'a>> + use<'a, N, L, I> {
    let mut held: [Feed; N] = std::array::from_fn(|_| feeds.next().unwrap_or_else(Feed::idle));
    for (lane, feed) in held.iter().enumerate() {
        lanes.set(lane, &feed.state);
    }
    let mut busy = held.iter().filter(|feed| feed.left > 0).count();
    while busy >= L::WORTH {
        lanes.step(held.each_mut().map(Feed::next));
        for (lane, feed) in held.iter_mut().enumerate() {
            if feed.left > 0 || feed.slot == usize::MAX {
                continue;
            }
            out[feed.slot] = portable::bytes(&lanes.get(lane));
            match feeds.next() {
                Some(next) => *feed = next,
                None => {
                    *feed = Feed::idle();
                    busy -= 1;
                }
            }
            lanes.set(lane, &feed.state);
        }
    }
    for (lane, feed) in held.iter_mut().enumerate() {
        feed.state = lanes.get(lane);
    }
    held.into_iter().filter(|feed| feed.left > 0)
}

/// The portable kernel: one message at a time.
impl Lanes<1> for State {
    const WORTH: usize = 1;

    fn set(&mut self, _: usize, state: &State) {
        *self = *state;
    }

    fn get(&self, _: usize) -> State {
        *self
    }

    fn step(&mut self, [block]: [&[u8; 64]; 1]) {
        portable::compress(self, block);
    }
}
