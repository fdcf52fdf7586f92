//! SHA-NI, `N` messages interleaved: `sha256rnds2` takes four cycles and can start every two, so
//! one message alone leaves half the unit idle.

use std::arch::x86_64::*;

use super::State;
use super::feed::Lanes;
use super::portable::{IV, K};

/// ABEF and CDGH, the order the instructions want.
type Halves = [__m128i; 2];

/// Held only by who has seen that the CPU has the instructions.
#[derive(Clone, Copy)]
pub struct ShaNi(());

impl ShaNi {
    pub fn detect() -> Option<Self> {
        let here =
            is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1");
        here.then_some(Self(()))
    }

    pub fn lanes<const N: usize>(self) -> Interleaved<N> {
        // SAFETY: a ShaNi exists only where the features do.
        Interleaved(self, [unsafe { split(&IV) }; N])
    }

    pub fn leaves(self, width: usize, entries: &[[u8; 54]], out: &mut [[u8; 32]]) {
        // SAFETY: as above.
        match width {
            2 => unsafe { all_leaves::<2>(entries, out) },
            3 => unsafe { all_leaves::<3>(entries, out) },
            4 => unsafe { all_leaves::<4>(entries, out) },
            _ => unsafe { all_leaves::<1>(entries, out) },
        }
    }

    pub fn nodes(self, width: usize, pairs: &[[u8; 64]], out: &mut [[u8; 32]]) {
        // SAFETY: as above.
        match width {
            2 => unsafe { all_nodes::<2>(pairs, out) },
            3 => unsafe { all_nodes::<3>(pairs, out) },
            4 => unsafe { all_nodes::<4>(pairs, out) },
            _ => unsafe { all_nodes::<1>(pairs, out) },
        }
    }
}

pub struct Interleaved<const N: usize>(ShaNi, [Halves; N]);

impl<const N: usize> Lanes<N> for Interleaved<N> {
    const WORTH: usize = N;

    #[inline(always)]
    fn set(&mut self, lane: usize, state: &State) {
        // SAFETY: `self.0` proves the features.
        self.1[lane] = unsafe { split(state) };
    }

    #[inline(always)]
    fn get(&self, lane: usize) -> State {
        // SAFETY: as above.
        unsafe { join(self.1[lane]) }
    }

    #[inline(always)]
    fn step(&mut self, blocks: [&[u8; 64]; N]) {
        // SAFETY: as above.
        unsafe { step(&mut self.1, blocks) }
    }
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn split(state: &State) -> Halves {
    let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
    [_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h)]
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn join([abef, cdgh]: Halves) -> State {
    let [mut low, mut high] = [[0u32; 4]; 2];
    let feba = _mm_shuffle_epi32::<0x1b>(abef);
    let dchg = _mm_shuffle_epi32::<0xb1>(cdgh);
    // SAFETY: four words each.
    unsafe {
        _mm_storeu_si128(low.as_mut_ptr().cast(), _mm_blend_epi16::<0xf0>(feba, dchg));
        _mm_storeu_si128(high.as_mut_ptr().cast(), _mm_alignr_epi8::<8>(dchg, feba));
    }
    let ([a, b, c, d], [e, f, g, h]) = (low, high);
    [a, b, c, d, e, f, g, h]
}

/// The 32 bytes of a digest, words big-endian.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn digest([abef, cdgh]: Halves, out: &mut [u8; 32]) {
    let feba = _mm_shuffle_epi32::<0x1b>(abef);
    let dchg = _mm_shuffle_epi32::<0xb1>(cdgh);
    let low = _mm_shuffle_epi8(_mm_blend_epi16::<0xf0>(feba, dchg), swap());
    let high = _mm_shuffle_epi8(_mm_alignr_epi8::<8>(dchg, feba), swap());
    // SAFETY: two halves of 32 bytes.
    unsafe {
        _mm_storeu_si128(out.as_mut_ptr().cast(), low);
        _mm_storeu_si128(out.as_mut_ptr().add(16).cast(), high);
    }
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn swap() -> __m128i {
    _mm_set_epi64x(0x0c0d0e0f_08090a0b, 0x04050607_00010203)
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn words(bytes: &[u8], at: usize) -> __m128i {
    let chunk: &[u8; 16] = bytes[at..].first_chunk().expect("sixteen bytes");
    // SAFETY: the chunk is sixteen bytes; the load needs no alignment.
    _mm_shuffle_epi8(unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) }, swap())
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn constant(table: &[u32; 64], round: usize) -> __m128i {
    let four: &[u32; 4] = table[round..].first_chunk().expect("four words");
    // SAFETY: sixteen bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(four.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn step<const N: usize>(states: &mut [Halves; N], blocks: [&[u8; 64]; N]) {
    let mut w = [[_mm_setzero_si128(); 4]; N];
    for lane in 0..N {
        let block = blocks[lane];
        w[lane] = [words(block, 0), words(block, 16), words(block, 32), words(block, 48)];
    }
    compress(states, w);
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn four_rounds(state: &mut Halves, wk: __m128i) {
    state[1] = _mm_sha256rnds2_epu32(state[1], state[0], wk);
    state[0] = _mm_sha256rnds2_epu32(state[0], state[1], _mm_shuffle_epi32::<0x0e>(wk));
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn compress<const N: usize>(states: &mut [Halves; N], mut w: [[__m128i; 4]; N]) {
    let before = *states;
    for quad in 0..4 {
        for (state, words) in states.iter_mut().zip(&w) {
            four_rounds(state, _mm_add_epi32(words[quad], constant(&K, quad * 4)));
        }
    }
    for quad in [4, 8, 12] {
        scheduled::<N, 0>(states, &mut w, quad);
        scheduled::<N, 1>(states, &mut w, quad + 1);
        scheduled::<N, 2>(states, &mut w, quad + 2);
        scheduled::<N, 3>(states, &mut w, quad + 3);
    }
    add(states, &before);
}

/// Four rounds on words made from the sixteen before them. `NOW`, the quad they replace, is
/// constant so that the words stay in registers.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn scheduled<const N: usize, const NOW: usize>(states: &mut [Halves; N], w: &mut [[__m128i; 4]; N], quad: usize) {
    for lane in 0..N {
        let words = &mut w[lane];
        let [w1, w2, w3] = [words[(NOW + 1) % 4], words[(NOW + 2) % 4], words[(NOW + 3) % 4]];
        let partial = _mm_sha256msg1_epu32(words[NOW], w1);
        let sum = _mm_add_epi32(partial, _mm_alignr_epi8::<4>(w3, w2));
        words[NOW] = _mm_sha256msg2_epu32(sum, w3);
        let wk = _mm_add_epi32(words[NOW], constant(&K, quad * 4));
        four_rounds(&mut states[lane], wk);
    }
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn add<const N: usize>(states: &mut [Halves; N], before: &[Halves; N]) {
    for lane in 0..N {
        for half in 0..2 {
            states[lane][half] = _mm_add_epi32(states[lane][half], before[lane][half]);
        }
    }
}

/// 0x00 and the 54 bytes of an entry fill one block with their padding; the shuffles put the
/// prefix and the padding around bytes loaded where they lie.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn leaves<const N: usize>(entries: &[[u8; 54]; N], out: &mut [[u8; 32]; N]) {
    let mut states = [split(&IV); N];
    let mut w = [[_mm_setzero_si128(); 4]; N];
    for lane in 0..N {
        let entry = &entries[lane];
        // The last quad: seven bytes of the entry, 0x80, and the length, 55 bytes in bits.
        let last = _mm_srli_si128::<9>(raw(entry, 38));
        let last = _mm_or_si128(last, _mm_set_epi64x(0xb801_u64.cast_signed() << 48, i64::MIN));
        w[lane] = [
            _mm_shuffle_epi8(_mm_slli_si128::<1>(raw(entry, 0)), swap()),
            words(entry, 15),
            words(entry, 31),
            _mm_shuffle_epi8(last, swap()),
        ];
    }
    compress(&mut states, w);
    for lane in 0..N {
        digest(states[lane], &mut out[lane]);
    }
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn raw(bytes: &[u8], at: usize) -> __m128i {
    let chunk: &[u8; 16] = bytes[at..].first_chunk().expect("sixteen bytes");
    // SAFETY: as in `words`.
    unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) }
}

/// 0x01 and two hashes: a full block, then a block of one byte and padding. (Looking up the 256
/// schedules that block can have gained 5 % for 64 KiB of cache.)
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn nodes<const N: usize>(pairs: &[[u8; 64]; N], out: &mut [[u8; 32]; N]) {
    let mut states = [split(&IV); N];
    let mut w = [[_mm_setzero_si128(); 4]; N];
    for lane in 0..N {
        let pair = &pairs[lane];
        let first = _mm_or_si128(_mm_slli_si128::<1>(raw(pair, 0)), _mm_cvtsi32_si128(1));
        w[lane] = [_mm_shuffle_epi8(first, swap()), words(pair, 15), words(pair, 31), words(pair, 47)];
    }
    compress(&mut states, w);
    let zero = _mm_setzero_si128();
    for lane in 0..N {
        let last = i32::from(pairs[lane][63]) << 24 | 0x80_0000;
        w[lane] = [_mm_cvtsi32_si128(last), zero, zero, _mm_set_epi32(65 * 8, 0, 0, 0)];
    }
    compress(&mut states, w);
    for lane in 0..N {
        digest(states[lane], &mut out[lane]);
    }
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn all_leaves<const N: usize>(entries: &[[u8; 54]], out: &mut [[u8; 32]]) {
    let (chunks, rest) = entries.as_chunks::<N>();
    let (to, to_rest) = out.as_chunks_mut::<N>();
    for (entries, out) in chunks.iter().zip(to) {
        leaves(entries, out);
    }
    for (entries, out) in rest.as_chunks::<1>().0.iter().zip(to_rest.as_chunks_mut::<1>().0) {
        leaves(entries, out);
    }
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn all_nodes<const N: usize>(pairs: &[[u8; 64]], out: &mut [[u8; 32]]) {
    let (chunks, rest) = pairs.as_chunks::<N>();
    let (to, to_rest) = out.as_chunks_mut::<N>();
    for (pairs, out) in chunks.iter().zip(to) {
        nodes(pairs, out);
    }
    for (pairs, out) in rest.as_chunks::<1>().0.iter().zip(to_rest.as_chunks_mut::<1>().0) {
        nodes(pairs, out);
    }
}
