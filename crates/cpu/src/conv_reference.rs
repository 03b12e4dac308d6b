//! Convolution by plain loops, for any float: the oracle of tests and of the f64 check mode.
//!
//! Fixed order of sums: taps in row order, channels inside; wgrad sums pixels in NPQ order. Parallel over images or filters.

use std::ops::{Add, Mul};

use rayon::prelude::*;

use crate::conv::ConvGeom;

/// What the loops need of a number.
pub trait Number: Copy + Default + Send + Sync + Add<Output = Self> + Mul<Output = Self> {}
impl Number for f32 {}
impl Number for f64 {}

/// y[n,p,q,k] = Σ x[n, p·stride − pad + r, q·stride − pad + s, c] · w[k,r,s,c]; overwrites `y`.
pub fn fprop<T: Number>(geom: &ConvGeom, x: &[T], w: &[T], y: &mut [T]) {
    let g = *geom;
    let (cg, kg) = (g.c / g.groups, g.k / g.groups);
    y.par_chunks_mut(g.q * g.k).enumerate().for_each(|(row, y)| {
        let (n, p) = (row / g.p, row % g.p);
        y.fill(T::default());
        for (q, y) in y.chunks_exact_mut(g.k).enumerate() {
            for (r, s, pixel) in taps(&g, n, p, q) {
                for (k, y) in y.iter_mut().enumerate() {
                    let x = &x[pixel * g.c + k / kg * cg..][..cg];
                    let w = &w[((k * g.r + r) * g.s + s) * cg..][..cg];
                    *y = x.iter().zip(w).fold(*y, |sum, (&x, &w)| sum + x * w);
                }
            }
        }
    });
}

/// dx[n,h,w,c] = Σ dy[n,p,q,k] · w[k,r,s,c] over the outputs that read the pixel; overwrites `dx`.
pub fn dgrad<T: Number>(geom: &ConvGeom, dy: &[T], w: &[T], dx: &mut [T]) {
    let g = *geom;
    let (cg, kg) = (g.c / g.groups, g.k / g.groups);
    dx.par_chunks_mut(g.h * g.w * g.c).enumerate().for_each(|(n, dx)| {
        dx.fill(T::default());
        for (p, q) in (0..g.p).flat_map(|p| (0..g.q).map(move |q| (p, q))) {
            let dy = &dy[((n * g.p + p) * g.q + q) * g.k..][..g.k];
            for (r, s, pixel) in taps(&g, 0, p, q) {
                for (k, &dy) in dy.iter().enumerate() {
                    let dx = &mut dx[pixel * g.c + k / kg * cg..][..cg];
                    let w = &w[((k * g.r + r) * g.s + s) * cg..][..cg];
                    dx.iter_mut().zip(w).for_each(|(dx, &w)| *dx = *dx + dy * w);
                }
            }
        }
    });
}

/// dw[k,r,s,c] = Σ over n, p, q of dy[n,p,q,k] · x at the tap; overwrites `dw`.
pub fn wgrad<T: Number>(geom: &ConvGeom, x: &[T], dy: &[T], dw: &mut [T]) {
    let g = *geom;
    let (cg, kg) = (g.c / g.groups, g.k / g.groups);
    dw.par_chunks_mut(g.filter_len()).enumerate().for_each(|(k, dw)| {
        dw.fill(T::default());
        for (row, q) in (0..g.n * g.p).flat_map(|row| (0..g.q).map(move |q| (row, q))) {
            let dy = dy[(row * g.q + q) * g.k + k];
            for (r, s, pixel) in taps(&g, row / g.p, row % g.p, q) {
                let x = &x[pixel * g.c + k / kg * cg..][..cg];
                let dw = &mut dw[(r * g.s + s) * cg..][..cg];
                dw.iter_mut().zip(x).for_each(|(dw, &x)| *dw = *dw + dy * x);
            }
        }
    });
}

/// The filter taps of output (p, q) that fall inside image `n`, each with its pixel's index.
fn taps(g: &ConvGeom, n: usize, p: usize, q: usize) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let g = *g;
    (0..g.r).flat_map(move |r| (0..g.s).map(move |s| (r, s))).filter_map(move |(r, s)| {
        let h = (p * g.stride + r).checked_sub(g.pad).filter(|&h| h < g.h)?;
        let w = (q * g.stride + s).checked_sub(g.pad).filter(|&w| w < g.w)?;
        Some((r, s, (n * g.h + h) * g.w + w))
    })
}
