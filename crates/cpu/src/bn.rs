//! Batch norm over the last axis, forward and backward, plain and fused with add and ReLU.
//!
//! x̂ = (x − mean) · rstd, rstd = 1 / sqrt(var + eps). Rows are pixels; each of `groups` equal runs of rows has statistics of
//! its own. A mask holds a bit per element, bit i mod 8 of byte i / 8: where y > 0.

use crate::elementwise::{Tile, apply, block_rows, column_sums, for_block_pairs, map, relu, tile};
use crate::io::{Io, Output, Real};
use graph::{BnArgs, StatsSource};
use rayon::prelude::*;
use std::ops::Range;

/// How the elements of x fall into groups and blocks.
#[derive(Clone, Copy)]
struct Layout {
    groups: usize,
    /// Channels, and elements of a group and of a block.
    c: usize,
    group: usize,
    block: usize,
}

impl Layout {
    fn new(elements: usize, groups: usize, c: usize) -> Layout {
        Layout { groups, c, group: elements / groups, block: block_rows(c) * c }
    }

    /// Rows of a group.
    fn rows(&self) -> usize {
        self.group / self.c
    }

    /// The parts of `elements` that lie in one group each.
    fn runs(self, elements: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        (elements.start / self.group..elements.end.div_ceil(self.group))
            .map(move |g| (g, elements.start.max(g * self.group)..elements.end.min((g + 1) * self.group)))
    }

    /// Sums of each group: partial sums of its blocks, made in parallel and folded in order.
    fn sums<R: Send>(self, partial: impl Fn(usize, Range<usize>) -> R + Sync, mut fold: impl FnMut(usize, R)) {
        let starts = (0..self.group).step_by(self.block);
        let blocks: Vec<_> = (0..self.groups).flat_map(|g| starts.clone().map(move |at| (g, at))).collect();
        let range = |(g, at): (usize, usize)| g * self.group + at..g * self.group + self.group.min(at + self.block);
        let partials: Vec<R> = blocks.par_iter().map(|&block| partial(block.0, range(block))).collect();
        blocks.iter().zip(partials).for_each(|(&(g, _), part)| fold(g, part));
    }
}

/// Statistics of some rows: count, and per channel the mean and the sum of squared deviations.
#[derive(Clone)]
struct Moments {
    count: f64,
    mean: Vec<f64>,
    m2: Vec<f64>,
}

impl Moments {
    fn of<T: Real>(x: &[T], c: usize) -> Moments {
        let count = (x.len() / c) as f64;
        let [sums] = column_sums([x], &[], c, |x, []| x);
        let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
        let tile = tile(c, |channel| [T::of(mean[channel])]);
        let [m2] = column_sums([x], &tile, c, |[x], [mean]| [(x - mean) * (x - mean)]);
        Moments { count, mean, m2 }
    }

    /// Chan's formula.
    fn merge(&mut self, other: &Moments) {
        let count = self.count + other.count;
        for (c, (mean, m2)) in self.mean.iter_mut().zip(&mut self.m2).enumerate() {
            let delta = other.mean[c] - *mean;
            *mean += delta * other.count / count;
            *m2 += other.m2[c] + delta * delta * self.count * other.count / count;
        }
        self.count = count;
    }
}

/// x → mean, biased and unbiased variance [g,c]. A single row has the biased variance twice.
pub(crate) fn stats<T: Real>(io: &mut Io<'_>, groups: usize) {
    stats_of(io.real::<T>(0), &mut io.outputs, groups);
}

/// The same of the first output: the others are its statistics.
pub(crate) fn output_stats<T: Real>(io: &mut Io<'_>, groups: usize) {
    let (x, stats) = io.outputs.split_at_mut(1);
    stats_of(&*x[0].real::<T>(), stats, groups);
}

fn stats_of<T: Real>(x: &[T], outputs: &mut [Output<'_>], groups: usize) {
    let c = outputs[0].shape[1];
    let layout = Layout::new(x.len(), groups, c);
    let mut moments: Vec<Option<Moments>> = vec![None; groups];
    let fold = |g: usize, part: Moments| match &mut moments[g] {
        Some(all) => all.merge(&part),
        empty => *empty = Some(part),
    };
    layout.sums(|_, range| Moments::of(&x[range], c), fold);
    for (g, moments) in moments.into_iter().flatten().enumerate() {
        for channel in 0..c {
            let (mean, m2) = (moments.mean[channel], moments.m2[channel]);
            let values = [mean, m2 / moments.count, m2 / (moments.count - 1.0).max(1.0)];
            for (output, value) in outputs.iter_mut().zip(values) {
                output.real::<T>()[g * c + channel] = T::of(value);
            }
        }
    }
}

/// The tile of each group.
fn tiles<T: Real, const K: usize>(layout: Layout, f: impl Fn(usize, usize) -> [T; K]) -> Vec<Tile<T, K>> {
    (0..layout.groups).map(|g| tile(layout.c, |channel| f(g, channel))).collect()
}

fn rstd<T: Real>(var: T, eps: f64) -> T {
    T::ONE / (var + T::of(eps)).sqrt()
}

/// BnApply, BnAct: x, mean, var, γ, β, [shortcut] → y, [mask].
pub(crate) fn apply_act<T: Real>(io: &mut Io<'_>, bn: BnArgs, with_relu: bool) {
    let [x, mean, var, gamma, beta] = std::array::from_fn(|i| io.real::<T>(i));
    let shortcut = io.inputs.get(5).map(|s| s.real::<T>());
    let layout = Layout::new(x.len(), bn.groups, gamma.len());
    let at = |g: usize, channel: usize| g * layout.c + channel;
    let scale = |g, channel| gamma[channel] * rstd(var[at(g, channel)], bn.eps);
    let tiles = tiles(layout, |g, channel| [mean[at(g, channel)], scale(g, channel), beta[channel]]);
    let (y, mask) = io.outputs.split_at_mut(1);
    let mask = mask.first_mut().map(|m| m.u8()).unwrap_or_default();
    for_block_pairs((y[0].real(), layout.block), (mask, layout.block / 8), |i, y, mask| {
        let start = i * layout.block;
        for (g, range) in layout.runs(start..start + y.len()) {
            let y = &mut y[range.start - start..range.end - start];
            let affine = |x: T, [mean, scale, beta]: [T; 3]| (x - mean) * scale + beta;
            let (x, tile) = (&x[range.clone()], &tiles[g]);
            match (shortcut.map(|s| &s[range]), with_relu) {
                (None, false) => apply(y, [x], tile, |[x], t| affine(x, t)),
                (None, true) => apply(y, [x], tile, |[x], t| relu(affine(x, t))),
                (Some(s), false) => apply(y, [x, s], tile, |[x, s], t| affine(x, t) + s),
                (Some(s), true) => apply(y, [x, s], tile, |[x, s], t| relu(affine(x, t) + s)),
            }
        }
        signs(y, mask);
    });
}

/// Elements whose mask bits are held as bytes at a time: plain loops over bytes vectorise, bits do not.
const STRIP: usize = 512;

/// The bits of each byte.
const BITS: [[u8; 8]; 256] = {
    let mut bits = [[0; 8]; 256];
    let mut i = 0;
    while i < 256 * 8 {
        bits[i / 8][i % 8] = ((i / 8) >> (i % 8) & 1) as u8;
        i += 1;
    }
    bits
};

/// Writes the mask of y.
fn signs<T: Real>(y: &[T], mask: &mut [u8]) {
    for (y, mask) in y.chunks(STRIP).zip(mask.chunks_mut(STRIP / 8)) {
        let mut flags = [0u8; STRIP];
        flags.iter_mut().zip(y).for_each(|(flag, &y)| *flag = u8::from(y > T::ZERO));
        for (mask, flags) in mask.iter_mut().zip(flags.as_chunks().0) {
            // The product moves the lowest bit of byte j to bit 56 + j.
            *mask = (u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
    }
}

/// out[i] = dy[i] where bit `start + i` of the mask is set, else 0.
fn unmask<T: Real>(out: &mut [T], dy: &[T], mask: &[u8], start: usize) {
    let mut flags = [0u8; STRIP + 8];
    for (i, (out, dy)) in out.chunks_mut(STRIP).zip(dy.chunks(STRIP)).enumerate() {
        let bytes = &mask[(start + i * STRIP) / 8..];
        flags.as_chunks_mut().0.iter_mut().zip(bytes).for_each(|(flags, &byte)| *flags = BITS[usize::from(byte)]);
        for ((out, &dy), &keep) in out.iter_mut().zip(dy).zip(&flags[start % 8..]) {
            *out = if keep != 0 { dy } else { T::ZERO };
        }
    }
}

/// dy, x, mean, var, [mask] → dγ, dβ, sums [g,2,c].
pub(crate) fn grad_sums<T: Real>(io: &mut Io<'_>, bn: BnArgs) {
    let [dy, x, mean, var] = std::array::from_fn(|i| io.real::<T>(i));
    let mask = io.inputs.get(4).map(|m| m.u8());
    let layout = Layout::new(x.len(), bn.groups, io.outputs[0].shape[0]);
    let c = layout.c;
    let tiles = tiles(layout, |g, channel| [mean[g * c + channel]]);
    let partial = |g: usize, range: Range<usize>| {
        let mut masked = vec![];
        if let Some(mask) = mask {
            masked.resize(range.len(), T::ZERO);
            unmask(&mut masked, &dy[range.clone()], mask, range.start);
        }
        let dy = if mask.is_some() { &masked } else { &dy[range.clone()] };
        column_sums([dy, &x[range]], &tiles[g], c, |[dy, x], [mean]| [dy, dy * (x - mean)])
    };
    let mut sums = vec![0.0; layout.groups * 2 * c];
    layout.sums(partial, |g, [dy, dy_x]| {
        let sums = &mut sums[g * 2 * c..][..2 * c];
        sums.iter_mut().zip(dy.iter().chain(&dy_x)).for_each(|(sum, part)| *sum += part);
    });
    let mut channels = vec![[0.0; 2]; c];
    for g in 0..layout.groups {
        for (channel, total) in channels.iter_mut().enumerate() {
            let rstd = rstd(var[g * c + channel].to_f64(), bn.eps);
            let [dy, dy_x] = [g * 2 * c + channel, (g * 2 + 1) * c + channel];
            sums[dy_x] *= rstd;
            *total = [total[0] + sums[dy_x], total[1] + sums[dy]];
        }
    }
    let columns = (0..2).flat_map(|k| channels.iter().map(move |t| t[k])).chain(sums.iter().copied());
    let outputs = io.outputs.iter_mut().flat_map(|o| o.real::<T>());
    outputs.zip(columns).for_each(|(out, value)| *out = T::of(value));
}

/// dy, x, mean, var, γ, sums, [mask] → dx, [dshortcut: dy under the mask].
pub(crate) fn grad_apply<T: Real>(io: &mut Io<'_>, bn: BnArgs, source: StatsSource) {
    let [dy, x, mean, var, gamma, sums] = std::array::from_fn(|i| io.real::<T>(i));
    let mask = io.inputs.get(6).map(|m| m.u8());
    let layout = Layout::new(x.len(), bn.groups, gamma.len());
    let (c, n) = (layout.c, T::of(layout.rows() as f64));
    let tiles = tiles(layout, |g, channel| {
        let rstd = rstd(var[g * c + channel], bn.eps);
        let mean_dy = sums[g * 2 * c + channel] / n;
        let mean_dy_x = sums[(g * 2 + 1) * c + channel] / n * rstd;
        [mean[g * c + channel], gamma[channel] * rstd, mean_dy, mean_dy_x]
    });
    let (dx, dshortcut) = io.outputs.split_at_mut(1);
    let dshortcut = dshortcut.first_mut().map(|d| d.real::<T>()).unwrap_or_default();
    for_block_pairs((dx[0].real(), layout.block), (dshortcut, layout.block), |i, dx, dshortcut| {
        let start = i * layout.block;
        let mut masked = vec![];
        let mut dy = &dy[start..start + dx.len()];
        if let Some(mask) = mask {
            masked.resize(if dshortcut.is_empty() { dx.len() } else { 0 }, T::ZERO);
            let out = if dshortcut.is_empty() { &mut masked } else { dshortcut };
            unmask(out, dy, mask, start);
            dy = out;
        } else if !dshortcut.is_empty() {
            dshortcut.copy_from_slice(dy);
        }
        for (g, range) in layout.runs(start..start + dx.len()) {
            let local = range.start - start..range.end - start;
            let (dx, dy) = (&mut dx[local.clone()], &dy[local]);
            match source {
                StatsSource::Running => apply(dx, [dy], &tiles[g], |[dy], [_, scale, _, _]| scale * dy),
                StatsSource::Batch => {
                    apply(dx, [dy, &x[range]], &tiles[g], |[dy, x], [mean, scale, mean_dy, mean_dy_x]| {
                        scale * (dy - mean_dy - (x - mean) * mean_dy_x)
                    });
                }
            }
        }
    });
}

/// w KRSC, mean, var, γ, β → w · s, β − mean · s.
pub(crate) fn fold<T: Real>(io: &mut Io<'_>, eps: f64) {
    let [w, mean, var, gamma, beta] = std::array::from_fn(|i| io.real::<T>(i));
    let filter = w.len() / gamma.len();
    let scale: Vec<T> = gamma.iter().zip(var).map(|(&gamma, &var)| gamma * rstd(var, eps)).collect();
    for (k, out) in io.out::<T>().chunks_exact_mut(filter).enumerate() {
        map(out, [&w[k * filter..][..filter]], |[w]| w * scale[k]);
    }
    let bias = io.outputs[1].real::<T>();
    bias.iter_mut().enumerate().for_each(|(k, b)| *b = beta[k] - mean[k] * scale[k]);
}
