//! A message as the blocks it is hashed in, and the loop that keeps every lane of a kernel busy.

use super::{Job, State, portable};

/// One message on its way through a lane.
pub struct Feed<'a> {
    pub state: State,
    pub slot: usize,
    head: &'a [u8],
    body: &'a [u8],
    left: usize,
    bits: u64,
    marked: bool,
}

static ZEROS: [u8; 64] = [0; 64];

impl<'a> Feed<'a> {
    #[inline(always)]
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
        }
    }

    /// A lane with nothing to do: it is stepped with the others and its state is never read.
    fn idle() -> Self {
        let job = Job { state: &portable::IV, absorbed: 0, head: &[], body: &ZEROS };
        Self { left: 0, ..Self::new(&job, usize::MAX) }
    }

    /// Blocks that lie whole in the body are lent in place; only one that joins head and body, or
    /// carries padding, is built in `room`.
    #[inline(always)]
    fn next<'b>(&mut self, room: &'b mut [u8; 64]) -> &'b [u8; 64]
    where
        'a: 'b,
    {
        self.left = self.left.saturating_sub(1);
        if self.head.is_empty()
            && let Some((block, rest)) = self.body.split_first_chunk::<64>()
        {
            self.body = rest;
            return block;
        }
        self.build(room);
        room
    }

    fn build(&mut self, room: &mut [u8; 64]) {
        // A salt and the start of its record, in moves of known length.
        if let (Ok(head), Some((start, rest))) = (<&[u8; 32]>::try_from(self.head), self.body.split_first_chunk::<32>())
        {
            room[..32].copy_from_slice(head);
            room[32..].copy_from_slice(start);
            (self.head, self.body) = (&[], rest);
            return;
        }
        let used = self.take(room);
        room[used..].fill(0);
        if used < 64 && !self.marked {
            room[used] = 0x80;
            self.marked = true;
        }
        if self.left == 0 {
            room[56..].copy_from_slice(&self.bits.to_be_bytes());
        }
    }

    /// Copies what still fits of head, then body.
    fn take(&mut self, room: &mut [u8; 64]) -> usize {
        let mut used = 0;
        for part in [&mut self.head, &mut self.body] {
            let (now, rest) = part.split_at(part.len().min(64 - used));
            room[used..used + now.len()].copy_from_slice(now);
            used += now.len();
            *part = rest;
        }
        used
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
    let mut rooms = [[0; 64]; N];
    for (lane, feed) in held.iter().enumerate() {
        lanes.set(lane, &feed.state);
    }
    let mut busy = held.iter().filter(|feed| feed.left > 0).count();
    while busy >= L::WORTH {
        let mut blocks = [&ZEROS; N];
        for ((block, feed), room) in blocks.iter_mut().zip(&mut held).zip(&mut rooms) {
            *block = feed.next(room);
        }
        lanes.step(blocks);
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
