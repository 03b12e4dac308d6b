//! Rows of floats: strided copies and an elementwise multiply-add.

#![allow(unsafe_op_in_unsafe_fn, reason = "an unsafe function here is a kernel's body, its contract in its comment")]

use crate::simd::Isa;
use crate::simd_vector::{Kernel, Vector, dispatch};

/// Copies `rows` rows of `width` floats; `dst.1` and `src.1` are the floats between the starts of rows.
#[track_caller]
pub(crate) fn copy_rows(isa: Isa, dst: (&mut [f32], usize), src: (&[f32], usize), width: usize, rows: usize) {
    if rows == 0 || width == 0 {
        return;
    }
    if dst.1 == width && src.1 == width {
        return dst.0[..rows * width].copy_from_slice(&src.0[..rows * width]);
    }
    assert!(
        (rows - 1) * dst.1 + width <= dst.0.len() && (rows - 1) * src.1 + width <= src.0.len(),
        "rows leave a slice"
    );
    // SAFETY: the assert bounds every row.
    unsafe { dispatch(isa, CopyRows { dst, src, width, rows }) }
}

struct CopyRows<'a> {
    dst: (&'a mut [f32], usize),
    src: (&'a [f32], usize),
    width: usize,
    rows: usize,
}

impl Kernel for CopyRows<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        match (self.width / V::LANES, self.width % V::LANES) {
            (1, 0) => self.whole::<V, 1>(),
            (2, 0) => self.whole::<V, 2>(),
            (3, 0) => self.whole::<V, 3>(),
            (4, 0) => self.whole::<V, 4>(),
            _ => {
                for row in 0..self.rows {
                    for col in (0..self.width).step_by(V::LANES) {
                        self.vector::<V>(row, col, V::LANES.min(self.width - col));
                    }
                }
            }
        }
    }
}

impl CopyRows<'_> {
    /// SAFETY: rows are N whole vectors and were checked; `V`'s instruction set available.
    #[inline(always)]
    unsafe fn whole<V: Vector, const N: usize>(self) {
        let (mut to, mut from) = (self.dst.0.as_mut_ptr(), self.src.0.as_ptr());
        for _ in 0..self.rows {
            for n in 0..N {
                V::load(from.add(n * V::LANES), V::LANES).store(to.add(n * V::LANES), V::LANES);
            }
            (to, from) = (to.wrapping_add(self.dst.1), from.wrapping_add(self.src.1));
        }
    }

    /// SAFETY: the lanes lie in a checked row; `V`'s instruction set available.
    #[inline(always)]
    unsafe fn vector<V: Vector>(&mut self, row: usize, col: usize, lanes: usize) {
        let value = V::load(self.src.0.as_ptr().add(row * self.src.1 + col), lanes);
        value.store(self.dst.0.as_mut_ptr().add(row * self.dst.1 + col), lanes);
    }
}

/// y[i] += x[i] · w[i]. Panics where lengths differ.
#[track_caller]
pub(crate) fn multiply_add(isa: Isa, y: &mut [f32], x: &[f32], w: &[f32]) {
    assert!(y.len() == x.len() && y.len() == w.len(), "lengths {} {} {}", y.len(), x.len(), w.len());
    // SAFETY: lengths are equal.
    unsafe { dispatch(isa, MultiplyAdd { y, x, w }) }
}

struct MultiplyAdd<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
}

impl Kernel for MultiplyAdd<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for i in (0..self.y.len()).step_by(V::LANES) {
            let lanes = V::LANES.min(self.y.len() - i);
            let (x, w) = (V::load(self.x.as_ptr().add(i), lanes), V::load(self.w.as_ptr().add(i), lanes));
            let y = self.y.as_mut_ptr().add(i);
            x.mul_add(w, V::load(y, lanes)).store(y, lanes);
        }
    }
}
