//! The vector register of each instruction set, and the one place that enters code compiled for it.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::simd::{Isa, Level};

/// Work written once over any vector type.
pub(crate) trait Kernel {
    /// SAFETY: the caller has checked every offset; `V`'s instruction set is available.
    unsafe fn run<V: Vector>(self);
}

/// SAFETY: what `kernel` asks of its caller holds.
pub(crate) unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    // SAFETY: an `Isa` of a level exists only where the machine has it; the rest is handed on from the caller.
    unsafe {
        match isa.0 {
            Level::Portable => kernel.run::<[f32; 8]>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => run_avx2(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => run_avx512(kernel),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: handed on from `dispatch`.
    unsafe { kernel.run::<__m512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: handed on from `dispatch`.
    unsafe { kernel.run::<__m256>() }
}

/// A vector register. Methods are called only where its instruction set is present; `lanes` ≤ `LANES` values are
/// touched in memory, the others read as 0.
pub(crate) trait Vector: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32, lanes: usize) -> Self;
    unsafe fn store(self, to: *mut f32, lanes: usize);
    /// self · factor + addend.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn plus(self, other: Self) -> Self;
    /// max(self, 0) with NaN kept.
    unsafe fn relu(self) -> Self;
}

impl Vector for [f32; 8] {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32, lanes: usize) -> Self {
        if lanes == 8 {
            // SAFETY: the caller gives 8 readable values.
            return unsafe { from.cast::<[f32; 8]>().read_unaligned() };
        }
        // SAFETY: only the first `lanes` values are read.
        std::array::from_fn(|i| if i < lanes { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: usize) {
        // SAFETY: the caller gives `lanes` writable values.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), to, lanes) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|i| self[i] * factor[i] + addend[i])
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        self.map(|v| if v < 0.0 { 0.0 } else { v })
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256 {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 is present, so for every method here.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32, lanes: usize) -> Self {
        // SAFETY: the mask keeps to `lanes` values.
        unsafe { if lanes == 8 { _mm256_loadu_ps(from) } else { _mm256_maskload_ps(from, mask256(lanes)) } }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: usize) {
        // SAFETY: the mask keeps to `lanes` values.
        unsafe { if lanes == 8 { _mm256_storeu_ps(to, self) } else { _mm256_maskstore_ps(to, mask256(lanes), self) } }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: FMA is present with AVX2.
        unsafe { _mm256_fmadd_ps(self, factor, addend) }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm256_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // SAFETY: see `zero`. max returns its second operand where one is NaN.
        unsafe { _mm256_max_ps(_mm256_setzero_ps(), self) }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn mask256(lanes: usize) -> __m256i {
    // SAFETY: AVX2 is present.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX-512F is present, so for every method here.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32, lanes: usize) -> Self {
        // SAFETY: the mask keeps to `lanes` values.
        unsafe { if lanes == 16 { _mm512_loadu_ps(from) } else { _mm512_maskz_loadu_ps(mask512(lanes), from) } }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: usize) {
        // SAFETY: the mask keeps to `lanes` values.
        unsafe { if lanes == 16 { _mm512_storeu_ps(to, self) } else { _mm512_mask_storeu_ps(to, mask512(lanes), self) } }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm512_fmadd_ps(self, factor, addend) }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: see `zero`.
        unsafe { _mm512_add_ps(self, other) }
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // SAFETY: see `zero`. max returns its second operand where one is NaN.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), self) }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn mask512(lanes: usize) -> __mmask16 {
    ((1u32 << lanes) - 1) as __mmask16
}
