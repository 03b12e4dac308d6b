//! Passes over whole tensors: maps, maps with a constant per channel, and sums in a fixed order.
//!
//! NOTE: work is cut into blocks by sizes alone and partial sums are merged in block order, so that results are
//! bit-identical for any number of threads. Inner loops are one formula over slices of one length: that the compiler
//! vectorises; arrays of neighbours or interleaved constants make it shuffle instead.

use crate::io::{Io, Real};
use graph::{Binary, Divisor, Unary, Weight};
use rayon::prelude::*;

/// Elements of a block: a few operands of it fit L2.
pub(crate) const BLOCK: usize = 1 << 14;
/// Rows added up in `T` before they go to f64.
const RUN: usize = 32;

/// Runs `f(block, part of a, part of b)` over blocks of `a.1` and `b.1` elements, in parallel; `b` may be empty.
pub(crate) fn for_block_pairs<A: Send, B: Send>(
    a: (&mut [A], usize),
    b: (&mut [B], usize),
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    if a.0.len() <= a.1 {
        return f(0, a.0, b.0);
    }
    let mut second = b.0.chunks_mut(b.1);
    let blocks: Vec<_> = a.0.chunks_mut(a.1).map(|a| (a, second.next().unwrap_or_default())).collect();
    blocks.into_par_iter().enumerate().for_each(|(i, (a, b))| f(i, a, b));
}

/// Runs `f(block, part of out)` over blocks of `size` elements, in parallel.
pub(crate) fn for_blocks<A: Send>(out: &mut [A], size: usize, f: impl Fn(usize, &mut [A]) + Sync) {
    for_block_pairs((out, size), (&mut [(); 0], 1), |i, out, _| f(i, out));
}

/// K constants per channel, each repeated over whole rows until it is long enough for an inner loop.
pub(crate) type Tile<T, const K: usize> = [Vec<T>; K];

/// Elements of a tile of `c` channels.
fn tile_width(c: usize) -> usize {
    c * (128 / c.max(1)).max(1)
}

/// The tile of `f(channel)`.
pub(crate) fn tile<T: Real, const K: usize>(c: usize, f: impl Fn(usize) -> [T; K]) -> Tile<T, K> {
    let channels: Vec<[T; K]> = (0..c).map(f).collect();
    std::array::from_fn(|k| channels.iter().map(|t| t[k]).cycle().take(tile_width(c)).collect())
}

/// out[i] = f(inputs[i], constants of channel i mod c), for whole rows of c channels.
pub(crate) fn apply<T: Real, const N: usize, const K: usize>(
    out: &mut [T],
    inputs: [&[T]; N],
    tile: &Tile<T, K>,
    f: impl Fn([T; N], [T; K]) -> T,
) {
    let width = tile[0].len();
    for (row, out) in out.chunks_mut(width).enumerate() {
        let inputs = inputs.map(|x| &x[row * width..][..out.len()]);
        let tile = tile.each_ref().map(|t| &t[..out.len()]);
        for (j, out) in out.iter_mut().enumerate() {
            *out = f(inputs.map(|x| x[j]), tile.map(|t| t[j]));
        }
    }
}

/// out[i] = f(inputs[i]) in parallel.
pub(crate) fn map<T: Real, const N: usize>(out: &mut [T], inputs: [&[T]; N], f: impl Fn([T; N]) -> T + Sync) {
    for_blocks(out, BLOCK, |i, out| {
        let inputs = inputs.map(|x| &x[i * BLOCK..][..out.len()]);
        out.iter_mut().enumerate().for_each(|(j, out)| *out = f(inputs.map(|x| x[j])));
    });
}

/// out[i] = f(out[i]) in parallel.
pub(crate) fn map_in_place<T: Real>(out: &mut [T], f: impl Fn(T) -> T + Sync) {
    for_blocks(out, BLOCK, |_, out| out.iter_mut().for_each(|y| *y = f(*y)));
}

/// Rows of a block of `c` channels; a multiple of 8, so that a block's mask starts at a byte.
pub(crate) fn block_rows(c: usize) -> usize {
    (BLOCK / c.max(1)).max(1).next_multiple_of(8)
}

/// Sums over rows: total[s][channel] = Σ f(inputs, constants)[s], each run of rows in `T`, runs in f64, all in order.
pub(crate) fn column_sums<T: Real, const N: usize, const K: usize, const S: usize>(
    inputs: [&[T]; N],
    tile: &Tile<T, K>,
    c: usize,
    f: impl Fn([T; N], [T; K]) -> [T; S],
) -> [Vec<f64>; S] {
    let (width, len) = (tile_width(c), inputs[0].len());
    let (mut totals, mut sums) = ([(); S].map(|()| vec![0.0; c]), [(); S].map(|()| vec![T::ZERO; width]));
    for run in (0..len).step_by(RUN * width) {
        sums.iter_mut().for_each(|s| s.fill(T::ZERO));
        for at in (run..len.min(run + RUN * width)).step_by(width) {
            let n = width.min(len - at);
            let inputs = inputs.map(|x| &x[at..][..n]);
            let tile = tile.each_ref().map(|t| &t[..n]);
            let sums = sums.each_mut().map(|s| &mut s[..n]);
            for j in 0..n {
                let values = f(inputs.map(|x| x[j]), tile.map(|t| t[j]));
                (0..S).for_each(|s| sums[s][j] += values[s]);
            }
        }
        for (total, sums) in totals.iter_mut().zip(&sums) {
            for row in sums.chunks_exact(c) {
                total.iter_mut().zip(row).for_each(|(total, sum)| *total += sum.to_f64());
            }
        }
    }
    totals
}

/// Σ f(inputs[i]) in f64: blocks in parallel, merged in order.
pub(crate) fn sum<T: Real, const N: usize>(inputs: [&[T]; N], f: impl Fn([T; N]) -> f64 + Sync) -> f64 {
    let len = inputs[0].len();
    let block = |at: usize| {
        let inputs = inputs.map(|x| x[at..len.min(at + BLOCK)].as_chunks::<8>());
        let mut sums = [0.0; 8];
        for b in 0..inputs[0].0.len() {
            let x = inputs.map(|x| x.0[b]);
            (0..8).for_each(|j| sums[j] += f(x.map(|x| x[j])));
        }
        let rest = (0..inputs[0].1.len()).map(|j| f(inputs.map(|x| x.1[j])));
        sums.into_iter().chain(rest).sum::<f64>()
    };
    if len <= BLOCK {
        return block(0);
    }
    (0..len.div_ceil(BLOCK)).into_par_iter().map(|i| block(i * BLOCK)).collect::<Vec<_>>().iter().sum()
}

/// The value where it is not negative, else zero; NaN stays.
#[inline(always)]
pub(crate) fn relu<T: Real>(x: T) -> T {
    if x < T::ZERO { T::ZERO } else { x }
}

pub(crate) fn unary<T: Real>(io: &mut Io<'_>, kind: Unary) {
    let x = io.real(0);
    match kind {
        Unary::Relu => map(io.out::<T>(), [x], |[x]| relu(x)),
        Unary::Relu6 => {
            let six = T::of(6.0);
            map(io.out(), [x], |[x]| if x > six { six } else { relu(x) });
        }
        Unary::Sigmoid => map(io.out::<T>(), [x], |[x]| T::ONE / (T::ONE + (-x).exp())),
    }
}

/// dy, y → dx; zero at the kinks.
pub(crate) fn unary_grad<T: Real>(io: &mut Io<'_>, kind: Unary) {
    let inputs = [io.real(0), io.real(1)];
    match kind {
        Unary::Relu => map(io.out::<T>(), inputs, |[dy, y]| if y > T::ZERO { dy } else { T::ZERO }),
        Unary::Relu6 => {
            let inside = |y: T| y > T::ZERO && y < T::of(6.0);
            map(io.out(), inputs, |[dy, y]| if inside(y) { dy } else { T::ZERO });
        }
        Unary::Sigmoid => map(io.out::<T>(), inputs, |[dy, y]| dy * y * (T::ONE - y)),
    }
}

pub(crate) fn binary<T: Real>(io: &mut Io<'_>, kind: Binary) {
    let inputs = [io.real(0), io.real(1)];
    match kind {
        Binary::Add => map(io.out::<T>(), inputs, |[a, b]| a + b),
        Binary::Sub => map(io.out::<T>(), inputs, |[a, b]| a - b),
        Binary::Mul => map(io.out::<T>(), inputs, |[a, b]| a * b),
    }
}

pub(crate) fn scale<T: Real>(io: &mut Io<'_>, weight: Weight) {
    let (x, weight) = (io.real::<T>(0), T::of(io.scalars.weight(weight)));
    map(io.out(), [x], |[x]| weight * x);
}

/// a, [b] → Σ (a − b)² / divisor; b is zero where absent.
pub(crate) fn squared_error<T: Real>(io: &mut Io<'_>, divisor: Divisor) {
    let square = |d: T| d.to_f64() * d.to_f64();
    let total = match io.inputs.len() {
        1 => sum([io.real::<T>(0)], |[a]| square(a)),
        _ => sum([io.real::<T>(0), io.real(1)], |[a, b]| square(a - b)),
    };
    let value = total / io.scalars.divisor(divisor);
    io.out()[0] = T::of(value);
}

/// a, [b] → 2 weight (a − b) / divisor.
pub(crate) fn squared_error_grad<T: Real>(io: &mut Io<'_>, divisor: Divisor, weight: Weight) {
    let factor = T::of(2.0 * io.scalars.weight(weight) / io.scalars.divisor(divisor));
    let a = io.real::<T>(0);
    match io.inputs.len() {
        1 => map(io.out(), [a], |[a]| factor * a),
        _ => {
            let b = io.real(1);
            map(io.out(), [a, b], |[a, b]| factor * (a - b));
        }
    }
}

/// x [..,c] + bias [c].
pub(crate) fn add_bias<T: Real>(io: &mut Io<'_>) {
    let (x, bias) = (io.real::<T>(0), io.real::<T>(1));
    let c = bias.len();
    let (tile, size) = (tile(c, |channel| [bias[channel]]), block_rows(c) * c);
    for_blocks(io.out(), size, |i, out| {
        apply(out, [&x[i * size..][..out.len()]], &tile, |[x], [bias]| x + bias);
    });
}

/// [..,c] → [c].
pub(crate) fn column_sum<T: Real>(io: &mut Io<'_>) {
    let (x, c) = (io.real::<T>(0), io.outputs[0].shape[0]);
    let blocks = x.par_chunks(block_rows(c) * c).map(|x| column_sums([x], &[], c, |x, []| x));
    let sums = blocks.collect::<Vec<_>>();
    for (channel, out) in io.out::<T>().iter_mut().enumerate() {
        *out = T::of(sums.iter().map(|[block]| block[channel]).sum());
    }
}

/// a + b; a's memory may be the output's.
pub(crate) fn accumulate<T: Real>(io: &mut Io<'_>) {
    let (a, b) = (io.inputs[0], io.real::<T>(1));
    if !a.in_place() {
        return map(io.out(), [a.real(), b], |[a, b]| a + b);
    }
    for_blocks(io.out::<T>(), BLOCK, |i, out| {
        out.iter_mut().zip(&b[i * BLOCK..]).for_each(|(out, &b)| *out += b);
    });
}
