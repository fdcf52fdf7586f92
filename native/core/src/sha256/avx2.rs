//! Eight words in a vector. Every function is sound only where AVX2 is (see `wide::Vector`).

use std::arch::x86_64::*;

use super::wide::Vector;

#[derive(Clone, Copy)]
pub struct V8(__m256i);

impl Vector for V8 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        Self(unsafe { _mm256_set1_epi32(word.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn load(words: *const u32) -> Self {
        Self(unsafe { _mm256_loadu_si256(words.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, words: *mut u32) {
        unsafe { _mm256_storeu_si256(words.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm256_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn rotate<const R: i32, const L: i32>(self) -> Self {
        Self(unsafe { _mm256_or_si256(_mm256_srli_epi32::<R>(self.0), _mm256_slli_epi32::<L>(self.0)) })
    }

    #[inline(always)]
    unsafe fn shift<const R: i32>(self) -> Self {
        Self(unsafe { _mm256_srli_epi32::<R>(self.0) })
    }

    #[inline(always)]
    unsafe fn xor3(a: Self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm256_xor_si256(_mm256_xor_si256(a.0, b.0), c.0) })
    }

    #[inline(always)]
    unsafe fn choose(e: Self, f: Self, g: Self) -> Self {
        Self(unsafe { _mm256_xor_si256(_mm256_and_si256(e.0, f.0), _mm256_andnot_si256(e.0, g.0)) })
    }

    #[inline(always)]
    unsafe fn majority(a: Self, b: Self, c: Self) -> Self {
        Self(unsafe {
            let either = _mm256_and_si256(_mm256_or_si256(a.0, b.0), c.0);
            _mm256_or_si256(_mm256_and_si256(a.0, b.0), either)
        })
    }

    #[inline(always)]
    unsafe fn quads(blocks: &[&[u8; 64]], first: usize, at: usize) -> Self {
        let quad = |block: usize| blocks[block][at..].first_chunk::<16>().expect("16 bytes");
        let (low, high) = (quad(first), quad(first + 4));
        unsafe {
            let low = _mm_loadu_si128(low.as_ptr().cast());
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), _mm_loadu_si128(high.as_ptr().cast()));
            let swap = _mm_set_epi64x(0x0c0d0e0f_08090a0b, 0x04050607_00010203);
            Self(_mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(swap)))
        }
    }

    #[inline(always)]
    unsafe fn low32(a: Self, b: Self) -> Self {
        Self(unsafe { _mm256_unpacklo_epi32(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn high32(a: Self, b: Self) -> Self {
        Self(unsafe { _mm256_unpackhi_epi32(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn low64(a: Self, b: Self) -> Self {
        Self(unsafe { _mm256_unpacklo_epi64(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn high64(a: Self, b: Self) -> Self {
        Self(unsafe { _mm256_unpackhi_epi64(a.0, b.0) })
    }
}
