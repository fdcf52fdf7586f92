//! The ways this CPU has of hashing many messages, best first.

use super::feed::{Feed, Lanes, run};
use super::{Job, START};

#[cfg(target_arch = "x86_64")]
use super::{
    shani::ShaNi,
    wide::{Eight, Sixteen},
};

/// Vectors of messages while there are enough of them, then `narrow` for the rest.
#[derive(Clone, Copy)]
pub struct Kernel {
    pub name: &'static str,
    wide: Wide,
    narrow: Narrow,
}

#[derive(Clone, Copy)]
enum Wide {
    None,
    #[cfg(target_arch = "x86_64")]
    Eight(Eight),
    #[cfg(target_arch = "x86_64")]
    Sixteen(Sixteen),
}

/// The number is how many messages are interleaved.
#[derive(Clone, Copy)]
enum Narrow {
    Portable,
    #[cfg(target_arch = "x86_64")]
    ShaNi(ShaNi, usize),
}

impl Kernel {
    pub const PORTABLE: Self =
        Self { name: "portable", wide: Wide::None, narrow: Narrow::Portable };

    /// Every kernel this CPU can run, best first.
    #[cfg(target_arch = "x86_64")]
    pub fn here() -> Vec<Self> {
        let mut here = Vec::new();
        let ni = ShaNi::detect();
        if let Some(sixteen) = Sixteen::detect() {
            let narrow = ni.map_or(Narrow::Portable, |ni| Narrow::ShaNi(ni, 2));
            here.push(Self { name: "avx512 x16", wide: Wide::Sixteen(sixteen), narrow });
        }
        if let Some(ni) = ni {
            for (name, width) in
                [("sha-ni x2", 2), ("sha-ni x3", 3), ("sha-ni x4", 4), ("sha-ni x1", 1)]
            {
                here.push(Self { name, wide: Wide::None, narrow: Narrow::ShaNi(ni, width) });
            }
        }
        if let Some(eight) = Eight::detect() {
            let narrow = Narrow::Portable;
            here.push(Self { name: "avx2 x8", wide: Wide::Eight(eight), narrow });
        }
        here.push(Self::PORTABLE);
        here
    }

    /// Every kernel this CPU can run, best first.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn here() -> Vec<Self> {
        vec![Self::PORTABLE]
    }

    pub fn many(&self, jobs: &[Job], out: &mut [[u8; 32]]) {
        assert_eq!(jobs.len(), out.len(), "one hash a job");
        let mut feeds = jobs.iter().enumerate().map(|(slot, job)| Feed::new(job, slot));
        match &self.wide {
            #[cfg(target_arch = "x86_64")]
            Wide::Eight(lanes) if jobs.len() >= Eight::WORTH => {
                let rest = run(&mut lanes.clone(), &mut feeds, out);
                self.narrow.finish(rest, out);
            }
            #[cfg(target_arch = "x86_64")]
            Wide::Sixteen(lanes) if jobs.len() >= Sixteen::WORTH => {
                let rest = run(&mut lanes.clone(), &mut feeds, out);
                self.narrow.finish(rest, out);
            }
            _ => self.narrow.finish(feeds, out),
        }
    }

    pub fn leaves(&self, entries: &[[u8; 54]], out: &mut [[u8; 32]]) {
        assert_eq!(entries.len(), out.len(), "one hash an entry");
        let done = self.wide(entries, out, leaf);
        let (entries, out) = (&entries[done..], &mut out[done..]);
        match self.narrow {
            Narrow::Portable => drop(fixed(&mut START.clone(), entries, out, leaf)),
            #[cfg(target_arch = "x86_64")]
            Narrow::ShaNi(ni, width) => ni.leaves(width, entries, out),
        }
    }

    pub fn nodes(&self, hashes: &[[u8; 32]], out: &mut [[u8; 32]]) {
        assert_eq!(hashes.len(), out.len() * 2, "two hashes a node");
        let pairs = hashes.as_flattened().as_chunks::<64>().0;
        let done = self.wide(pairs, out, node);
        let (pairs, out) = (&pairs[done..], &mut out[done..]);
        match self.narrow {
            Narrow::Portable => drop(fixed(&mut START.clone(), pairs, out, node)),
            #[cfg(target_arch = "x86_64")]
            Narrow::ShaNi(ni, width) => ni.nodes(width, pairs, out),
        }
    }

    /// How many of `inputs` the vectors have hashed.
    fn wide<T, const B: usize>(
        &self,
        inputs: &[T],
        out: &mut [[u8; 32]],
        blocks: fn(&T) -> [[u8; 64]; B],
    ) -> usize {
        match &self.wide {
            Wide::None => 0,
            #[cfg(target_arch = "x86_64")]
            Wide::Eight(lanes) => fixed(&mut lanes.clone(), inputs, out, blocks),
            #[cfg(target_arch = "x86_64")]
            Wide::Sixteen(lanes) => fixed(&mut lanes.clone(), inputs, out, blocks),
        }
    }

    /// Whether both give the same hashes, whatever the length and however many.
    pub fn agrees(&self, other: &Self) -> bool {
        let bytes: Vec<u8> = (0..4096u32).map(|i| (i * i >> 4) as u8 ^ i as u8).collect();
        let state = std::array::from_fn(|i| START[7 - i]);
        let jobs: Vec<_> = (0..150)
            .map(|i| Job {
                state: &state,
                absorbed: 64,
                head: &bytes[i..][..i % 67],
                body: &bytes[2 * i..][..i * 37 % 320],
            })
            .collect();
        let entries = bytes.as_chunks::<54>().0;
        let hashes = bytes.as_chunks::<32>().0;
        let answers = |kernel: &Self| {
            let mut out = vec![[0; 32]; jobs.len() + entries.len() + hashes.len() / 2];
            let (of_jobs, rest) = out.split_at_mut(jobs.len());
            let (of_entries, of_pairs) = rest.split_at_mut(entries.len());
            kernel.many(&jobs, of_jobs);
            kernel.leaves(entries, of_entries);
            kernel.nodes(hashes, of_pairs);
            out
        };
        answers(self) == answers(other)
    }
}

impl Narrow {
    fn finish<'a>(self, mut feeds: impl Iterator<Item = Feed<'a>>, out: &mut [[u8; 32]]) {
        let feeds = &mut feeds;
        match self {
            Self::Portable => drop(run(&mut START.clone(), feeds, out)),
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi(ni, width) => {
                let one = &mut ni.lanes::<1>();
                match width {
                    2 => drop(run(one, &mut run(&mut ni.lanes::<2>(), feeds, out), out)),
                    3 => drop(run(one, &mut run(&mut ni.lanes::<3>(), feeds, out), out)),
                    4 => drop(run(one, &mut run(&mut ni.lanes::<4>(), feeds, out), out)),
                    _ => drop(run(one, feeds, out)),
                }
            }
        }
    }
}

/// Hashes as many of `inputs` as fill all lanes, each made into `B` whole blocks.
fn fixed<const N: usize, const B: usize, L: Lanes<N>, T>(
    lanes: &mut L,
    inputs: &[T],
    out: &mut [[u8; 32]],
    blocks: fn(&T) -> [[u8; 64]; B],
) -> usize {
    let inputs = inputs.as_chunks::<N>().0;
    for (inputs, out) in inputs.iter().zip(out.as_chunks_mut::<N>().0) {
        let blocks = inputs.each_ref().map(blocks);
        (0..N).for_each(|lane| lanes.set(lane, &START));
        (0..B).for_each(|block| lanes.step(blocks.each_ref().map(|of| &of[block])));
        for (lane, out) in out.iter_mut().enumerate() {
            *out = super::portable::bytes(&lanes.get(lane));
        }
    }
    inputs.len() * N
}

fn leaf(entry: &[u8; 54]) -> [[u8; 64]; 1] {
    let mut block = [0; 64];
    block[1..55].copy_from_slice(entry);
    block[55] = 0x80;
    block[56..].copy_from_slice(&(55 * 8u64).to_be_bytes());
    [block]
}

fn node(pair: &[u8; 64]) -> [[u8; 64]; 2] {
    let mut blocks = [[0; 64]; 2];
    blocks[0][0] = 1;
    blocks[0][1..].copy_from_slice(&pair[..63]);
    blocks[1][..2].copy_from_slice(&[pair[63], 0x80]);
    blocks[1][56..].copy_from_slice(&(65 * 8u64).to_be_bytes());
    blocks
}
