//! Depthwise convolution (groups = channels = filters): direct, vectors over channels, filters turned to [tap][channel].
//!
//! Reads and writes a few floats per multiplication, so it runs at memory speed; no blocking is needed.

use rayon::prelude::*;

use crate::conv::{Conv, ConvGeom, Epilogue};
use crate::scratch::with_scratch;
use crate::simd_rows;

/// Image chunks of wgrad, fixed so that the order of the sums is.
const CHUNKS: usize = 8;

pub(crate) fn fprop(conv: &Conv, x: &[f32], w: &[f32], y: &mut [f32], epilogue: Epilogue) {
    let g = &conv.geom;
    with_taps(g, w, |taps| {
        y.par_chunks_mut(g.q * g.k).enumerate().for_each(|(row, y)| {
            y.fill(0.0);
            for (tap, r, s) in taps_of(g) {
                let Some(h) = inside(row % g.p * g.stride + r, g.pad, g.h) else { continue };
                for (q, y) in y.chunks_exact_mut(g.k).enumerate() {
                    let Some(w) = inside(q * g.stride + s, g.pad, g.w) else { continue };
                    let pixel = (row / g.p * g.h + h) * g.w + w;
                    simd_rows::multiply_add(conv.isa, y, &x[pixel * g.c..][..g.c], &taps[tap * g.c..][..g.c]);
                }
            }
            finish(y, row * g.q * g.k, epilogue);
        });
    });
}

pub(crate) fn dgrad(conv: &Conv, dy: &[f32], w: &[f32], dx: &mut [f32], epilogue: Epilogue) {
    let g = &conv.geom;
    with_taps(g, w, |taps| {
        dx.par_chunks_mut(g.w * g.c).enumerate().for_each(|(row, dx)| {
            dx.fill(0.0);
            for (tap, r, s) in taps_of(g) {
                let Some(p) = output(row % g.h + g.pad, r, g.stride, g.p) else { continue };
                for (w, dx) in dx.chunks_exact_mut(g.c).enumerate() {
                    let Some(q) = output(w + g.pad, s, g.stride, g.q) else { continue };
                    let pixel = (row / g.h * g.p + p) * g.q + q;
                    simd_rows::multiply_add(conv.isa, dx, &dy[pixel * g.c..][..g.c], &taps[tap * g.c..][..g.c]);
                }
            }
            finish(dx, row * g.w * g.c, epilogue);
        });
    });
}

pub(crate) fn wgrad(conv: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = &conv.geom;
    let taps = g.r * g.s;
    with_scratch(CHUNKS * dw.len(), |partial| {
        partial.par_chunks_mut(dw.len()).enumerate().for_each(|(chunk, sums)| {
            sums.fill(0.0);
            for row in chunk * g.n / CHUNKS * g.p..(chunk + 1) * g.n / CHUNKS * g.p {
                for (tap, r, s) in taps_of(g) {
                    let Some(h) = inside(row % g.p * g.stride + r, g.pad, g.h) else { continue };
                    for q in 0..g.q {
                        let Some(w) = inside(q * g.stride + s, g.pad, g.w) else { continue };
                        let x = &x[((row / g.p * g.h + h) * g.w + w) * g.c..][..g.c];
                        let dy = &dy[(row * g.q + q) * g.c..][..g.c];
                        simd_rows::multiply_add(conv.isa, &mut sums[tap * g.c..][..g.c], x, dy);
                    }
                }
            }
        });
        for (i, dw) in dw.iter_mut().enumerate() {
            let at = i % taps * g.c + i / taps;
            *dw = partial.chunks_exact(taps * g.c).fold(0.0, |sum, chunk| sum + chunk[at]);
        }
    });
}

/// Gives `work` the filters as [tap][channel].
fn with_taps(g: &ConvGeom, w: &[f32], work: impl FnOnce(&[f32])) {
    let taps = g.r * g.s;
    with_scratch(w.len(), |turned| {
        for (i, &w) in w.iter().enumerate() {
            turned[i % taps * g.c + i / taps] = w;
        }
        work(turned);
    });
}

/// (index, r, s) of each tap.
fn taps_of(g: &ConvGeom) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let s = g.s;
    (0..g.r * s).map(move |tap| (tap, tap / s, tap % s))
}

/// The image coordinate of a padded one, where it is inside.
fn inside(padded: usize, pad: usize, size: usize) -> Option<usize> {
    padded.checked_sub(pad).filter(|&at| at < size)
}

/// The output coordinate that reads padded image coordinate `padded` through a tap.
fn output(padded: usize, tap: usize, stride: usize, size: usize) -> Option<usize> {
    let at = padded.checked_sub(tap)?;
    (at.is_multiple_of(stride) && at / stride < size).then_some(at / stride)
}

fn finish(out: &mut [f32], offset: usize, epilogue: Epilogue) {
    let channels = epilogue.bias.map_or(out.len(), <[f32]>::len);
    for (i, value) in out.iter_mut().enumerate() {
        *value += epilogue.bias.map_or(0.0, |bias| bias[i % channels]);
        *value += epilogue.add.map_or(0.0, |add| add[offset + i]);
        *value = if epilogue.relu && *value < 0.0 { 0.0 } else { *value };
        if epilogue.round_bf16 {
            *value = half::bf16::from_f32(*value).to_f32();
        }
    }
}
