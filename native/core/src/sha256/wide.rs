//! SHA-256 with a word of many messages in each vector: eight by AVX2, sixteen by AVX-512.
//! The rounds are written once over `Vector`, so the narrower one checks the wider one's code.

use super::State;
use super::feed::Lanes;
use super::portable::{IV, K};

/// As many words as there are messages. The operations are only sound to call where the
/// instructions are; `Wide` is made nowhere else.
pub trait Vector: Copy {
    const LANES: usize;
    unsafe fn splat(word: u32) -> Self;
    unsafe fn load(words: *const u32) -> Self;
    unsafe fn store(self, words: *mut u32);
    unsafe fn add(self, other: Self) -> Self;
    /// `L` is 32 - `R`: one of the two is what the instruction set wants.
    unsafe fn rotate<const R: i32, const L: i32>(self) -> Self;
    unsafe fn shift<const R: i32>(self) -> Self;
    unsafe fn xor3(a: Self, b: Self, c: Self) -> Self;
    unsafe fn choose(e: Self, f: Self, g: Self) -> Self;
    unsafe fn majority(a: Self, b: Self, c: Self) -> Self;
    /// Sixteen bytes at `at` of the blocks `first`, `first + 4`, ..., one to each 128-bit part,
    /// as big-endian words.
    unsafe fn quads(blocks: &[&[u8; 64]], first: usize, at: usize) -> Self;
    /// Interleave 32-bit (64-bit) elements of the low or high halves of each 128-bit part.
    unsafe fn low32(a: Self, b: Self) -> Self;
    unsafe fn high32(a: Self, b: Self) -> Self;
    unsafe fn low64(a: Self, b: Self) -> Self;
    unsafe fn high64(a: Self, b: Self) -> Self;
}

/// Words 4q to 4q+3 of every block: a 4x4 transposition inside each 128-bit part.
#[inline(always)]
unsafe fn transpose<V: Vector>(blocks: &[&[u8; 64]], quad: usize) -> [V; 4] {
    // SAFETY: the caller has the instructions.
    unsafe {
        let a = V::quads(blocks, 0, quad * 16);
        let b = V::quads(blocks, 1, quad * 16);
        let c = V::quads(blocks, 2, quad * 16);
        let d = V::quads(blocks, 3, quad * 16);
        let (ab, cd) = (V::low32(a, b), V::low32(c, d));
        let (ab_high, cd_high) = (V::high32(a, b), V::high32(c, d));
        [V::low64(ab, cd), V::high64(ab, cd), V::low64(ab_high, cd_high), V::high64(ab_high, cd_high)]
    }
}

#[inline(always)]
unsafe fn next_word<V: Vector, const I: usize>(w: &[V; 16]) -> V {
    let (a, b) = (w[(I + 1) % 16], w[(I + 14) % 16]);
    // SAFETY: the caller has the instructions.
    unsafe {
        let s0 = V::xor3(a.rotate::<7, 25>(), a.rotate::<18, 14>(), a.shift::<3>());
        let s1 = V::xor3(b.rotate::<17, 15>(), b.rotate::<19, 13>(), b.shift::<10>());
        w[I].add(s0).add(w[(I + 9) % 16].add(s1))
    }
}

/// One round of each of a block's four sixteens; `I` is constant so that words and state, whose
/// names move on instead of their values, stay in registers.
#[inline(always)]
unsafe fn round<V: Vector, const I: usize>(s: &mut [V; 8], w: &mut [V; 16], sixteen: usize) {
    let at = |name: usize| (name + 16 - I) % 8;
    // SAFETY: the caller has the instructions.
    unsafe {
        if sixteen > 0 {
            w[I] = next_word::<V, I>(w);
        }
        let wk = w[I].add(V::splat(K[sixteen * 16 + I]));
        let (a, e) = (s[at(0)], s[at(4)]);
        let s1 = V::xor3(e.rotate::<6, 26>(), e.rotate::<11, 21>(), e.rotate::<25, 7>());
        let t1 = s[at(7)].add(wk).add(s1).add(V::choose(e, s[at(5)], s[at(6)]));
        let s0 = V::xor3(a.rotate::<2, 30>(), a.rotate::<13, 19>(), a.rotate::<22, 10>());
        s[at(3)] = s[at(3)].add(t1);
        s[at(7)] = t1.add(s0.add(V::majority(a, s[at(1)], s[at(2)])));
    }
}

macro_rules! rounds {
    ($s:expr, $w:expr, $sixteen:expr, $($i:literal)+) => { $(round::<V, $i>($s, $w, $sixteen);)+ };
}

#[inline(always)]
unsafe fn compress<V: Vector, const N: usize>(state: &mut [[u32; N]; 8], blocks: [&[u8; 64]; N]) {
    // SAFETY: the caller has the instructions; each row of `state` is `N` words.
    unsafe {
        let mut w = [V::splat(0); 16];
        for quad in 0..4 {
            w[quad * 4..][..4].copy_from_slice(&transpose::<V>(&blocks, quad));
        }
        let mut before = [V::splat(0); 8];
        for (vector, row) in before.iter_mut().zip(&*state) {
            *vector = V::load(row.as_ptr());
        }
        let mut after = before;
        rounds!(&mut after, &mut w, 0, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        for sixteen in 1..4 {
            rounds!(&mut after, &mut w, sixteen, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        for ((row, before), after) in state.iter_mut().zip(before).zip(after) {
            before.add(after).store(row.as_mut_ptr());
        }
    }
}

macro_rules! wide {
    ($name:ident, $states:ident, $vector:ty, $lanes:literal, $worth:literal, $features:literal, $($has:tt),+) => {
        /// Held only by who has seen that the CPU has the instructions.
        #[derive(Clone, Copy)]
        pub struct $name(());

        impl $name {
            pub fn detect() -> Option<Self> {
                const { assert!(<$vector as Vector>::LANES == $lanes) };
                ($(is_x86_feature_detected!($has))&&+).then_some(Self(()))
            }

            pub fn lanes(self) -> $states {
                $states(self, IV.map(|word| [word; $lanes]))
            }
        }

        /// Word by word, the states of all lanes.
        pub struct $states($name, [[u32; $lanes]; 8]);

        impl $states {
            #[target_feature(enable = $features)]
            fn compress(&mut self, blocks: [&[u8; 64]; $lanes]) {
                // SAFETY: this function has the features.
                unsafe { compress::<$vector, $lanes>(&mut self.1, blocks) }
            }
        }

        impl Lanes<$lanes> for $states {
            const WORTH: usize = $worth;

            fn set(&mut self, lane: usize, state: &State) {
                for (row, word) in self.1.iter_mut().zip(state) {
                    row[lane] = *word;
                }
            }

            fn get(&self, lane: usize) -> State {
                std::array::from_fn(|word| self.1[word][lane])
            }

            fn step(&mut self, blocks: [&[u8; 64]; $lanes]) {
                // SAFETY: a `$name` exists only where the features do.
                unsafe { self.compress(blocks) }
            }
        }
    };
}

wide!(Eight, EightStates, super::avx2::V8, 8, 2, "avx2", "avx2");
wide!(Sixteen, SixteenStates, super::avx512::V16, 16, 12, "avx512f,avx512bw", "avx512f", "avx512bw");
