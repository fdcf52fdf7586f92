//! Sixteen words in a vector. Every function is sound only where AVX-512 F and BW are (see
//! `wide::Vector`).

use std::arch::x86_64::*;

use super::wide::Vector;

#[derive(Clone, Copy)]
pub struct V16(__m512i);

impl Vector for V16 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        Self(unsafe { _mm512_set1_epi32(word.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn load(words: *const u32) -> Self {
        Self(unsafe { _mm512_loadu_si512(words.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, words: *mut u32) {
        unsafe { _mm512_storeu_si512(words.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn rotate<const R: i32, const L: i32>(self) -> Self {
        Self(unsafe { _mm512_ror_epi32::<R>(self.0) })
    }

    #[inline(always)]
    unsafe fn shift<const R: i32>(self) -> Self {
        Self(unsafe { _mm512_srl_epi32(self.0, _mm_cvtsi32_si128(R)) })
    }

    // The immediates are truth tables: bit 4a + 2b + c is the result for the bits a, b, c.
    #[inline(always)]
    unsafe fn xor3(a: Self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm512_ternarylogic_epi32::<0b1001_0110>(a.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn choose(e: Self, f: Self, g: Self) -> Self {
        Self(unsafe { _mm512_ternarylogic_epi32::<0b1100_1010>(e.0, f.0, g.0) })
    }

    #[inline(always)]
    unsafe fn majority(a: Self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm512_ternarylogic_epi32::<0b1110_1000>(a.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn quads(blocks: &[&[u8; 64]], first: usize, at: usize) -> Self {
        let quad = |part: usize| {
            let chunk = blocks[first + 4 * part][at..].first_chunk::<16>().expect("16 bytes");
            unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) }
        };
        unsafe {
            let all = _mm512_castsi128_si512(quad(0));
            let all = _mm512_inserti32x4::<1>(all, quad(1));
            let all = _mm512_inserti32x4::<2>(all, quad(2));
            let all = _mm512_inserti32x4::<3>(all, quad(3));
            let swap = _mm_set_epi64x(0x0c0d0e0f_08090a0b, 0x04050607_00010203);
            Self(_mm512_shuffle_epi8(all, _mm512_broadcast_i32x4(swap)))
        }
    }

    #[inline(always)]
    unsafe fn low32(a: Self, b: Self) -> Self {
        Self(unsafe { _mm512_unpacklo_epi32(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn high32(a: Self, b: Self) -> Self {
        Self(unsafe { _mm512_unpackhi_epi32(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn low64(a: Self, b: Self) -> Self {
        Self(unsafe { _mm512_unpacklo_epi64(a.0, b.0) })
    }

    #[inline(always)]
    unsafe fn high64(a: Self, b: Self) -> Self {
        Self(unsafe { _mm512_unpackhi_epi64(a.0, b.0) })
    }
}
