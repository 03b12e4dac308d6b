//! Pooling, NHWC: maximum, average and global average, forward and backward.

use crate::elementwise::{column_sums, for_block_pairs, for_blocks};
use crate::io::{Io, Real};
use graph::PoolArgs;

/// Channels that a maximum is taken of together.
const LANES: usize = 8;

/// Sizes of a pooling: image h·w, output p·q, c channels.
#[derive(Clone, Copy)]
struct Window {
    pool: PoolArgs,
    h: usize,
    w: usize,
    p: usize,
    q: usize,
    c: usize,
}

impl Window {
    fn new(pool: PoolArgs, image: &[usize], output: &[usize]) -> Window {
        Window { pool, h: image[1], w: image[2], p: output[1], q: output[2], c: output[3] }
    }

    /// Taps of output (p, q) inside the image, row-major: index in the window, and offset of the pixel's first channel.
    fn taps(self, p: usize, q: usize) -> impl Iterator<Item = (u8, usize)> {
        let PoolArgs { kernel, stride, pad } = self.pool;
        let inside = |at: usize, size: usize| {
            pad.saturating_sub(at * stride)..kernel.min((size + pad).saturating_sub(at * stride))
        };
        let (rows, columns) = (inside(p, self.h), inside(q, self.w));
        rows.flat_map(move |r| columns.clone().map(move |s| (r, s))).map(move |(r, s)| {
            let pixel = (p * stride + r - pad) * self.w + q * stride + s - pad;
            ((r * kernel + s) as u8, pixel * self.c)
        })
    }
}

/// x → y, argmax: the first maximum of each window, NaN before any number, as torch.
pub(crate) fn max<T: Real>(io: &mut Io<'_>, pool: PoolArgs) {
    let x = io.real::<T>(0);
    let window = Window::new(pool, io.dims(0), io.outputs[0].shape.dims());
    let (image, row, c) = (window.h * window.w * window.c, window.q * window.c, window.c);
    let (y, argmax) = io.outputs.split_at_mut(1);
    for_block_pairs((y[0].real::<T>(), row), (argmax[0].u8(), row), |i, y, argmax| {
        let x = &x[i / window.p * image..][..image];
        let mut taps = Vec::with_capacity(pool.kernel * pool.kernel);
        for (q, (y, argmax)) in y.chunks_exact_mut(c).zip(argmax.chunks_exact_mut(c)).enumerate() {
            taps.clear();
            taps.extend(window.taps(i % window.p, q).map(|(tap, at)| (T::of(f64::from(tap)), at)));
            let (lanes, rest) = y.as_chunks_mut::<LANES>();
            let (lanes_argmax, rest_argmax) = argmax.as_chunks_mut::<LANES>();
            let done = lanes.len() * LANES;
            for (b, (y, argmax)) in lanes.iter_mut().zip(lanes_argmax).enumerate() {
                let [best, tap] = first_max(x, &taps, b * LANES);
                (*y, *argmax) = (best, tap.map(|tap| tap.to_f64() as u8));
            }
            for (j, (y, argmax)) in rest.iter_mut().zip(rest_argmax).enumerate() {
                let [[best], [tap]] = first_max(x, &taps, done + j);
                (*y, *argmax) = (best, tap.to_f64() as u8);
            }
        }
    });
}

/// The first maximum over the taps of `L` channels, and its tap. NOTE: the tap is a float, as wide as the values, and the
/// function is not inlined, so that it stays one until the end: else the compiler selects value by value.
#[inline(never)]
fn first_max<T: Real, const L: usize>(x: &[T], taps: &[(T, usize)], channel: usize) -> [[T; L]; 2] {
    let (mut best, mut argmax) = ([T::of(f64::NEG_INFINITY); L], [taps.first().map_or(T::ZERO, |t| t.0); L]);
    for &(tap, at) in taps {
        let x = &x[at + channel..][..L];
        for j in 0..L {
            let better = (x[j] > best[j]) | x[j].is_nan();
            best[j] = if better { x[j] } else { best[j] };
            argmax[j] = if better { tap } else { argmax[j] };
        }
    }
    [best, argmax]
}

/// dy, argmax → dx: each dy is added where its maximum was, windows in order.
pub(crate) fn max_grad<T: Real>(io: &mut Io<'_>, pool: PoolArgs) {
    let (dy, argmax) = (io.real::<T>(0), io.inputs[1].u8());
    let window = Window::new(pool, io.outputs[0].shape.dims(), io.dims(0));
    let (image, output, c) = (window.h * window.w * window.c, window.p * window.q * window.c, window.c);
    for_blocks(io.out::<T>(), image, |n, dx| {
        dx.fill(T::ZERO);
        // Where each tap of a window is in the image.
        let mut offsets = [usize::MAX; 256];
        for at in 0..window.p * window.q {
            offsets[..pool.kernel * pool.kernel].fill(usize::MAX);
            window.taps(at / window.q, at % window.q).for_each(|(tap, pixel)| offsets[usize::from(tap)] = pixel);
            let from = n * output + at * c;
            for (channel, (&dy, &tap)) in dy[from..from + c].iter().zip(&argmax[from..from + c]).enumerate() {
                if let Some(dx) = dx.get_mut(offsets[usize::from(tap)].saturating_add(channel)) {
                    *dx += dy;
                }
            }
        }
    });
}

/// x → y, the sum of the window over its whole size.
pub(crate) fn average<T: Real>(io: &mut Io<'_>, pool: PoolArgs) {
    let x = io.real::<T>(0);
    let window = Window::new(pool, io.dims(0), io.outputs[0].shape.dims());
    let (image, c, size) = (window.h * window.w * window.c, window.c, T::of((pool.kernel * pool.kernel) as f64));
    for_blocks(io.out::<T>(), window.q * c, |i, y| {
        let x = &x[i / window.p * image..][..image];
        for (q, y) in y.chunks_exact_mut(c).enumerate() {
            y.fill(T::ZERO);
            for (_, at) in window.taps(i % window.p, q) {
                y.iter_mut().zip(&x[at..at + c]).for_each(|(y, &x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y = *y / size);
        }
    });
}

/// dy → dx.
pub(crate) fn average_grad<T: Real>(io: &mut Io<'_>, pool: PoolArgs) {
    let dy = io.real::<T>(0);
    let window = Window::new(pool, io.outputs[0].shape.dims(), io.dims(0));
    let (image, c, size) = (window.h * window.w * window.c, window.c, T::of((pool.kernel * pool.kernel) as f64));
    for_blocks(io.out::<T>(), image, |n, dx| {
        dx.fill(T::ZERO);
        for at in 0..window.p * window.q {
            let dy = &dy[(n * window.p * window.q + at) * c..][..c];
            for (_, at) in window.taps(at / window.q, at % window.q) {
                dx[at..at + c].iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy / size);
            }
        }
    });
}

/// [n,h,w,c] → [n,c].
pub(crate) fn global<T: Real>(io: &mut Io<'_>) {
    let (x, c) = (io.real::<T>(0), io.outputs[0].shape[1]);
    let image = x.len() / io.dims(0)[0].max(1);
    for_blocks(io.out::<T>(), c, |n, y| {
        let [sums] = column_sums([&x[n * image..][..image]], &[], c, |x, []| x);
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = T::of(sum / (image / c) as f64));
    });
}

/// dy [n,c] → dx of height and width `hw`.
pub(crate) fn global_grad<T: Real>(io: &mut Io<'_>, hw: [usize; 2]) {
    let (dy, c) = (io.real::<T>(0), io.dims(0)[1]);
    let pixels = T::of((hw[0] * hw[1]) as f64);
    for_blocks(io.out::<T>(), hw[0] * hw[1] * c, |n, dx| {
        let dy: Vec<T> = dy[n * c..][..c].iter().map(|&dy| dy / pixels).collect();
        dx.chunks_exact_mut(c).for_each(|dx| dx.copy_from_slice(&dy));
    });
}
