//! The vector register of each instruction set, and the one place that enters code compiled for it.

#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "every function is a kernel's body; the contracts stand on `Kernel` and `Vector`"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::simd::{Isa, Level};

/// Work written once over any vector type. Implementations and all they call are `inline(always)`: only what is inlined
/// into `run_avx512` and `run_avx2` is compiled for their instruction sets.
pub(crate) trait Kernel {
    /// SAFETY: the caller has checked every offset; `V`'s instruction set is available.
    unsafe fn run<V: Vector>(self);
}

/// SAFETY: what `kernel` asks of its caller holds.
pub(crate) unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    // An `Isa` of a level exists only where the machine has it.
    match isa.0 {
        Level::Portable => kernel.run::<[f32; 8]>(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => run_avx2(kernel),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => run_avx512(kernel),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run::<__m512>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run::<__m256>();
}

/// A vector register.
///
/// SAFETY, for every method: its instruction set is available; `lanes` ≤ `LANES` values of memory are valid (no others are
/// touched, and they read as 0).
pub(crate) trait Vector: Copy {
    const LANES: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32, lanes: usize) -> Self;
    unsafe fn store(self, to: *mut f32, lanes: usize);
    /// self · factor + addend.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// max(self, 0) with NaN kept.
    unsafe fn relu(self) -> Self;
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self::splat(0.0)
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        self.mul_add(Self::splat(1.0), other)
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        other.mul_add(Self::splat(-1.0), self)
    }
}

impl Vector for [f32; 8] {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32, lanes: usize) -> Self {
        let mut values = [0.0; 8];
        std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), lanes);
        values
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: usize) {
        std::ptr::copy_nonoverlapping(self.as_ptr(), to, lanes);
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|i| self[i] * factor[i] + addend[i])
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
    unsafe fn splat(value: f32) -> Self {
        _mm256_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32, lanes: usize) -> Self {
        if lanes == 8 { _mm256_loadu_ps(from) } else { _mm256_maskload_ps(from, mask256(lanes)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: usize) {
        if lanes == 8 { _mm256_storeu_ps(to, self) } else { _mm256_maskstore_ps(to, mask256(lanes), self) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        _mm256_fmadd_ps(self, factor, addend)
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // max returns its second operand where one is NaN.
        _mm256_max_ps(_mm256_setzero_ps(), self)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn mask256(lanes: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        _mm512_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32, lanes: usize) -> Self {
        if lanes == 16 { _mm512_loadu_ps(from) } else { _mm512_maskz_loadu_ps(mask512(lanes), from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, lanes: usize) {
        if lanes == 16 { _mm512_storeu_ps(to, self) } else { _mm512_mask_storeu_ps(to, mask512(lanes), self) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        _mm512_fmadd_ps(self, factor, addend)
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        _mm512_max_ps(_mm512_setzero_ps(), self)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn mask512(lanes: usize) -> __mmask16 {
    ((1u32 << lanes) - 1) as __mmask16
}
