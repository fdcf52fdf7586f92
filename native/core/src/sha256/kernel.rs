//! The ways this CPU has of hashing many messages, best first.

// Elsewhere there is only the portable kernel, and nothing to hand on between kernels.
#![cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, unused_variables))]

use super::feed::{Feed, Lanes, run};
use super::{Job, START};

#[cfg(target_arch = "x86_64")]
use super::{
    shani::ShaNi,
    wide::{Eight, Sixteen, SixteenStates},
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
    Sixteen(Sixteen),
}

#[derive(Clone, Copy)]
enum Narrow {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Eight(Eight),
    /// How many messages are interleaved. Four spill so many registers that two are faster.
    #[cfg(target_arch = "x86_64")]
    ShaNi(ShaNi, usize),
}

impl Kernel {
    pub const PORTABLE: Self = Self { name: "portable", wide: Wide::None, narrow: Narrow::Portable };

    /// Every kernel this CPU can run, best first.
    #[cfg(target_arch = "x86_64")]
    pub fn here() -> Vec<Self> {
        let (ni, eight) = (ShaNi::detect(), Eight::detect());
        let mut narrows = Vec::new();
        for (name, width) in [("sha-ni x2", 2), ("sha-ni x3", 3), ("sha-ni x4", 4), ("sha-ni", 1)] {
            narrows.extend(ni.map(|ni| (name, Narrow::ShaNi(ni, width))));
        }
        narrows.extend(eight.map(|eight| ("avx2 x8", Narrow::Eight(eight))));
        narrows.push((Self::PORTABLE.name, Narrow::Portable));
        let sixteen = Sixteen::detect().map(|sixteen| Self {
            name: "avx512 x16",
            wide: Wide::Sixteen(sixteen),
            narrow: narrows[0].1,
        });
        let narrows = narrows.into_iter();
        let narrows = narrows.map(|(name, narrow)| Self { name, wide: Wide::None, narrow });
        sixteen.into_iter().chain(narrows).collect()
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
            Wide::Sixteen(sixteen) if jobs.len() >= SixteenStates::WORTH => {
                let rest = run(&mut sixteen.lanes(), &mut feeds, out);
                self.narrow.finish(rest, out);
            }
            _ => self.narrow.finish(feeds, out),
        }
    }

    pub fn leaves(&self, entries: &[[u8; 54]], out: &mut [[u8; 32]]) {
        assert_eq!(entries.len(), out.len(), "one hash an entry");
        match self.narrow {
            #[cfg(target_arch = "x86_64")]
            Narrow::ShaNi(ni, width) => {
                let done = self.wide.fixed(entries, out, leaf);
                ni.leaves(width, &entries[done..], &mut out[done..]);
            }
            _ => self.fixed(entries, out, leaf),
        }
    }

    pub fn nodes(&self, hashes: &[[u8; 32]], out: &mut [[u8; 32]]) {
        assert_eq!(hashes.len(), out.len() * 2, "two hashes a node");
        let pairs = hashes.as_flattened().as_chunks::<64>().0;
        match self.narrow {
            #[cfg(target_arch = "x86_64")]
            Narrow::ShaNi(ni, width) => {
                let done = self.wide.fixed(pairs, out, node);
                ni.nodes(width, &pairs[done..], &mut out[done..]);
            }
            _ => self.fixed(pairs, out, node),
        }
    }

    /// Messages of one length, each made into `B` blocks, by ever narrower lanes.
    fn fixed<T, const B: usize>(&self, inputs: &[T], out: &mut [[u8; 32]], blocks: fn(&T) -> [[u8; 64]; B]) {
        let mut done = self.wide.fixed(inputs, out, blocks);
        #[cfg(target_arch = "x86_64")]
        if let Narrow::Eight(eight) = self.narrow {
            done += fixed(&mut eight.lanes(), &inputs[done..], &mut out[done..], blocks);
        }
        fixed(&mut START.clone(), &inputs[done..], &mut out[done..], blocks);
    }

    /// Whether both give the same hashes, whatever the length and however many.
    pub fn agrees(&self, other: &Self) -> bool {
        let bytes: Vec<u8> = (0..4096u32).map(|i| (i * i / 16) as u8 ^ i as u8).collect();
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

impl Wide {
    /// How many of `inputs` have been hashed.
    fn fixed<T, const B: usize>(&self, inputs: &[T], out: &mut [[u8; 32]], blocks: fn(&T) -> [[u8; 64]; B]) -> usize {
        match self {
            Self::None => 0,
            #[cfg(target_arch = "x86_64")]
            Self::Sixteen(sixteen) => fixed(&mut sixteen.lanes(), inputs, out, blocks),
        }
    }
}

impl Narrow {
    fn finish<'a>(self, mut feeds: impl Iterator<Item = Feed<'a>>, out: &mut [[u8; 32]]) {
        let feeds = &mut feeds;
        match self {
            Self::Portable => drop(run(&mut START.clone(), feeds, out)),
            #[cfg(target_arch = "x86_64")]
            Self::Eight(eight) => {
                drop(run(&mut START.clone(), &mut run(&mut eight.lanes(), feeds, out), out));
            }
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
