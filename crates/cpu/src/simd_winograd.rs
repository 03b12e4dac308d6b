//! Transforms of Winograd's F(4×4, 3×3) over vectors of channels.
//!
//! y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A with the points 0, ±1, ±2, ∞: a 4×4 tile of outputs from a 6×6 patch with 36
//! multiplications instead of 144 (Lavin and Gray 2015, arXiv:1509.09308, section 4.3). Hence, y being linear in g,
//! dg = Gᵀ[(A dy Aᵀ) ⊙ (Bᵀ d B)]G.

#![allow(
    clippy::needless_range_loop,
    reason = "indices name the registers of a tile; iterators keep arrays out of them"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "an unsafe function here is a kernel's body, its contract in its comment")]

use crate::conv::Epilogue;
use crate::simd::{Isa, finish};
use crate::simd_vector::{Kernel, Vector, dispatch};

/// Outputs and inputs along a side of a tile, values of a transformed tile.
pub(crate) const TILE: usize = 4;
pub(crate) const PATCH: usize = 6;
pub(crate) const POINTS: usize = PATCH * PATCH;

/// A window of an NHWC tensor; rows and columns outside the given ranges are zero, or not written.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    /// Offset of the first pixel, which may lie outside; floats between rows and between columns.
    pub(crate) start: isize,
    pub(crate) steps: (usize, usize),
    pub(crate) rows: (usize, usize),
    pub(crate) cols: (usize, usize),
    /// Whole vectors.
    pub(crate) channels: usize,
}

impl Window {
    fn at(&self, row: usize, col: usize) -> isize {
        self.start + (row * self.steps.0 + col * self.steps.1) as isize
    }

    /// Every pixel inside the ranges lies in a tensor of `len` floats.
    fn fits(&self, isa: Isa, side: usize, len: usize) -> bool {
        let (empty, last) = (self.rows.0 >= self.rows.1 || self.cols.0 >= self.cols.1, self.channels as isize);
        let inside = || {
            let first = self.at(self.rows.0, self.cols.0);
            first >= 0 && self.at(self.rows.1 - 1, self.cols.1 - 1) + last <= len as isize
        };
        self.rows.1.max(self.cols.1) <= side && self.channels.is_multiple_of(isa.lanes()) && (empty || inside())
    }
}

/// Values of a transformed tile: point p of channel c at p·`step` + c.
fn holds(len: usize, step: usize, channels: usize) -> bool {
    (POINTS - 1) * step + channels <= len
}

/// to = Bᵀ d B of a 6×6 patch of the image.
#[track_caller]
pub(crate) fn input(isa: Isa, image: &[f32], patch: &Window, to: &mut [f32], step: usize) {
    assert!(patch.fits(isa, PATCH, image.len()) && holds(to.len(), step, patch.channels), "patch leaves a slice");
    // SAFETY: the assert bounds every read and write.
    unsafe { dispatch(isa, Gather::<false> { from: image, window: patch, to, step }) }
}

/// to = A dy Aᵀ of a 4×4 tile of the output's gradient.
#[track_caller]
pub(crate) fn gradient(isa: Isa, dy: &[f32], tile: &Window, to: &mut [f32], step: usize) {
    assert!(tile.fits(isa, TILE, dy.len()) && holds(to.len(), step, tile.channels), "tile leaves a slice");
    // SAFETY: the assert bounds every read and write.
    unsafe { dispatch(isa, Gather::<true> { from: dy, window: tile, to, step }) }
}

/// From a tensor to points: the patch of an image, or the tile of a gradient.
struct Gather<'a, const GRADIENT: bool> {
    from: &'a [f32],
    window: &'a Window,
    to: &'a mut [f32],
    step: usize,
}

impl<const GRADIENT: bool> Kernel for Gather<'_, GRADIENT> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let window = *self.window;
        for c in (0..window.channels).step_by(V::LANES) {
            let (from, to) = (self.from.as_ptr().wrapping_add(c), self.to.as_mut_ptr().wrapping_add(c));
            let mut half = [[V::zero(); PATCH]; PATCH];
            for col in 0..PATCH {
                let mut d = [V::zero(); PATCH];
                if col >= window.cols.0 && col < window.cols.1 {
                    for row in 0..PATCH {
                        if row >= window.rows.0 && row < window.rows.1 {
                            d[row] = V::load(from.wrapping_offset(window.at(row, col)), V::LANES);
                        }
                    }
                }
                let column = if GRADIENT { gradient_side([d[0], d[1], d[2], d[3]]) } else { input_side(d) };
                for row in 0..PATCH {
                    half[row][col] = column[row];
                }
            }
            for row in 0..PATCH {
                let d = half[row];
                let values = if GRADIENT { gradient_side([d[0], d[1], d[2], d[3]]) } else { input_side(d) };
                for col in 0..PATCH {
                    values[col].store(to.wrapping_add((row * PATCH + col) * self.step), V::LANES);
                }
            }
        }
    }
}

/// points[36][n] = G g Gᵀ of taps[9][n], for filters that lie side by side.
#[track_caller]
pub(crate) fn filter(isa: Isa, taps: &[f32], points: &mut [f32]) {
    let n = taps.len() / 9;
    assert!(taps.len() == n * 9 && points.len() == n * POINTS && n.is_multiple_of(isa.lanes()), "filters do not match");
    // SAFETY: both slices hold n whole vectors per tap and point.
    unsafe { dispatch(isa, Filter { taps, points, n }) }
}

struct Filter<'a> {
    taps: &'a [f32],
    points: &'a mut [f32],
    n: usize,
}

impl Kernel for Filter<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for i in (0..self.n).step_by(V::LANES) {
            let (from, to) = (self.taps.as_ptr().wrapping_add(i), self.points.as_mut_ptr().wrapping_add(i));
            let mut half = [[V::zero(); 3]; PATCH];
            for col in 0..3 {
                let mut g = [V::zero(); 3];
                for row in 0..3 {
                    g[row] = V::load(from.add((row * 3 + col) * self.n), V::LANES);
                }
                let column = filter_side(g);
                for row in 0..PATCH {
                    half[row][col] = column[row];
                }
            }
            for row in 0..PATCH {
                let values = filter_side(half[row]);
                for col in 0..PATCH {
                    values[col].store(to.add((row * PATCH + col) * self.n), V::LANES);
                }
            }
        }
    }
}

/// out = epilogue(Aᵀ m A) of points m; `tile.channels` columns of the epilogue's bias.
#[track_caller]
pub(crate) fn output(isa: Isa, (points, step): (&[f32], usize), tile: &Window, out: &mut [f32], epilogue: Epilogue) {
    assert!(tile.fits(isa, TILE, out.len()) && holds(points.len(), step, tile.channels), "tile leaves a slice");
    assert!(epilogue.add.is_none_or(|add| add.len() == out.len()), "addend and output differ in length");
    assert!(epilogue.bias.is_none_or(|bias| tile.channels <= bias.len()), "bias shorter than the tile");
    // SAFETY: the asserts bound every access.
    unsafe { dispatch(isa, Scatter { points, step, tile, out, epilogue }) }
}

struct Scatter<'a> {
    points: &'a [f32],
    step: usize,
    tile: &'a Window,
    out: &'a mut [f32],
    epilogue: Epilogue<'a>,
}

impl Kernel for Scatter<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for c in (0..self.tile.channels).step_by(V::LANES) {
            let (from, to) = (self.points.as_ptr().wrapping_add(c), self.out.as_mut_ptr());
            let mut half = [[V::zero(); PATCH]; TILE];
            for col in 0..PATCH {
                let mut m = [V::zero(); PATCH];
                for row in 0..PATCH {
                    m[row] = V::load(from.wrapping_add((row * PATCH + col) * self.step), V::LANES);
                }
                let column = output_side(m);
                for row in 0..TILE {
                    half[row][col] = column[row];
                }
            }
            for row in 0..self.tile.rows.1 {
                let values = output_side(half[row]);
                for col in 0..self.tile.cols.1 {
                    let at = self.tile.at(row, col) as usize + c;
                    finish(values[col], to.add(at), &self.epilogue, (at, c), V::LANES);
                }
            }
        }
    }
}

/// dw[tap · `tap_step` + c] = Gᵀ m G of points m, `channels` whole vectors.
#[track_caller]
pub(crate) fn filter_gradient(
    isa: Isa,
    (points, step): (&[f32], usize),
    channels: usize,
    (dw, tap_step): (&mut [f32], usize),
) {
    assert!(holds(points.len(), step, channels) && 8 * tap_step + channels <= dw.len(), "filter leaves a slice");
    assert!(channels.is_multiple_of(isa.lanes()), "{channels} channels are not whole vectors");
    // SAFETY: the asserts bound every access.
    unsafe { dispatch(isa, FilterGradient { points, step, channels, dw, tap_step }) }
}

struct FilterGradient<'a> {
    points: &'a [f32],
    step: usize,
    channels: usize,
    dw: &'a mut [f32],
    tap_step: usize,
}

impl Kernel for FilterGradient<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for c in (0..self.channels).step_by(V::LANES) {
            let (from, to) = (self.points.as_ptr().wrapping_add(c), self.dw.as_mut_ptr().wrapping_add(c));
            let mut half = [[V::zero(); PATCH]; 3];
            for col in 0..PATCH {
                let mut m = [V::zero(); PATCH];
                for row in 0..PATCH {
                    m[row] = V::load(from.wrapping_add((row * PATCH + col) * self.step), V::LANES);
                }
                let column = filter_gradient_side(m);
                for row in 0..3 {
                    half[row][col] = column[row];
                }
            }
            for row in 0..3 {
                let values = filter_gradient_side(half[row]);
                for col in 0..3 {
                    values[col].store(to.add((row * 3 + col) * self.tap_step), V::LANES);
                }
            }
        }
    }
}

/// by · value.
///
/// SAFETY: `V`'s instruction set available, so for the functions below.
#[inline(always)]
unsafe fn scaled<V: Vector>(by: f32, value: V) -> V {
    V::splat(by).mul_add(value, V::zero())
}

/// Bᵀ d.
#[inline(always)]
unsafe fn input_side<V: Vector>(d: [V; PATCH]) -> [V; PATCH] {
    let (even, odd) = (V::splat(-4.0).mul_add(d[2], d[4]), V::splat(-4.0).mul_add(d[1], d[3]));
    let (far, near) = (d[4].minus(d[2]), d[3].minus(d[1]));
    [
        V::splat(4.0).mul_add(d[0], V::splat(-5.0).mul_add(d[2], d[4])),
        even.plus(odd),
        even.minus(odd),
        V::splat(2.0).mul_add(near, far),
        V::splat(-2.0).mul_add(near, far),
        V::splat(4.0).mul_add(d[1], V::splat(-5.0).mul_add(d[3], d[5])),
    ]
}

/// G g.
#[inline(always)]
unsafe fn filter_side<V: Vector>(g: [V; 3]) -> [V; PATCH] {
    let near = scaled(-1.0 / 6.0, g[0].plus(g[2]));
    let far = V::splat(1.0 / 6.0).mul_add(g[2], scaled(1.0 / 24.0, g[0]));
    let (one, two) = (scaled(1.0 / 6.0, g[1]), scaled(1.0 / 12.0, g[1]));
    [scaled(0.25, g[0]), near.minus(one), near.plus(one), far.plus(two), far.minus(two), g[2]]
}

/// Aᵀ m.
#[inline(always)]
unsafe fn output_side<V: Vector>(m: [V; PATCH]) -> [V; TILE] {
    let (near, far) = (m[1].plus(m[2]), m[3].plus(m[4]));
    let (near_odd, far_odd) = (m[1].minus(m[2]), m[3].minus(m[4]));
    [
        m[0].plus(near).plus(far),
        V::splat(2.0).mul_add(far_odd, near_odd),
        V::splat(4.0).mul_add(far, near),
        V::splat(8.0).mul_add(far_odd, near_odd).plus(m[5]),
    ]
}

/// A m.
#[inline(always)]
unsafe fn gradient_side<V: Vector>(m: [V; TILE]) -> [V; PATCH] {
    let (near, near_odd) = (m[0].plus(m[2]), m[1].plus(m[3]));
    let (far, far_odd) = (V::splat(4.0).mul_add(m[2], m[0]), scaled(2.0, V::splat(4.0).mul_add(m[3], m[1])));
    [m[0], near.plus(near_odd), near.minus(near_odd), far.plus(far_odd), far.minus(far_odd), m[3]]
}

/// Gᵀ m.
#[inline(always)]
unsafe fn filter_gradient_side<V: Vector>(m: [V; PATCH]) -> [V; 3] {
    let (near, far) = (scaled(-1.0 / 6.0, m[1].plus(m[2])), m[3].plus(m[4]));
    let (near_odd, far_odd) = (m[2].minus(m[1]), m[3].minus(m[4]));
    [
        V::splat(0.25).mul_add(m[0], V::splat(1.0 / 24.0).mul_add(far, near)),
        V::splat(1.0 / 6.0).mul_add(near_odd, scaled(1.0 / 12.0, far_odd)),
        V::splat(1.0 / 6.0).mul_add(far, near).plus(m[5]),
    ]
}
