//! Vector kernels: the register-tiled product behind every convolution and GEMM, chosen at run time.
//!
//! All `unsafe` of the crate's arithmetic lives here. Public functions are safe: they check every offset against its slice
//! before the kernel runs. Three bodies: AVX-512F (tiles 12×32, 24×16, 8×48), AVX2+FMA (4×24, 4×16, 12×8), portable Rust (4×8).
//!
//! NOTE: each output element is one chain of multiply-adds in step order that begins at 0 or at the old value, whatever
//! the tile it lands in, so results do not depend on how rows and columns are cut. The instruction set may change bits (the portable body does not fuse).

#![allow(
    clippy::needless_range_loop,
    reason = "indices name the registers of a tile; iterators keep arrays out of them"
)]
#![allow(unsafe_op_in_unsafe_fn, reason = "an unsafe function here is a kernel's body, its contract in its comment")]

use std::mem::MaybeUninit;

use crate::conv::Epilogue;
use crate::simd_vector::{Kernel, Vector, dispatch};

/// Rows of a tile come in groups of four: inside a group they are a constant distance apart.
pub(crate) const GROUP: usize = 4;

/// Floats of the largest tile: 24 AVX-512 accumulators.
const TILE: usize = 24 * 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// An instruction set this machine has; values come only from [`Isa::available`], so holding one proves support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(crate) Level);

impl Isa {
    /// Every instruction set this machine can run, slowest first; never empty.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Isa(Level::Avx2));
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Isa(Level::Avx512));
            }
        }
        all
    }

    /// The fastest instruction set of this machine.
    pub fn detect() -> Isa {
        *Isa::available().last().expect("the portable body is always there")
    }

    /// f32 values per vector.
    pub(crate) fn lanes(self) -> usize {
        match self.0 {
            Level::Portable => <[f32; 8] as Vector>::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 8,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 16,
        }
    }

    /// Vectors of the widest panel.
    pub(crate) fn max_vecs(self) -> usize {
        (1..).take_while(|&vecs| self.max_groups(vecs) > 0).count()
    }

    /// Row groups the widest tile of `vecs` vectors (1, 2, ...) holds; 0 where the panel itself is too wide.
    pub(crate) fn max_groups(self, vecs: usize) -> usize {
        let by_vecs: &[usize] = match self.0 {
            Level::Portable => &[1],
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &[3, 1, 1],
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => &[6, 3, 2],
        };
        by_vecs.get(vecs - 1).copied().unwrap_or(0)
    }
}

/// Where the left factor's rows lie in its slice.
pub(crate) enum Rows<'a> {
    /// Groups at these offsets, rows of a group `row` floats apart; the next step is the next float.
    Strided { groups: &'a [usize], row: usize },
    /// Groups of adjacent floats, one after the other from `first`; the next step is `step` floats on.
    Columns { first: usize, step: usize },
}

/// sum[row, col] = Σ over segments and steps of left[row, step] · right[step, col] for any number of row groups and a
/// panel of columns.
pub(crate) struct Product<'a> {
    pub(crate) left: &'a [f32],
    pub(crate) rows: Rows<'a>,
    pub(crate) right: &'a [f32],
    /// Floats between the right factor's steps.
    pub(crate) right_step: usize,
    /// Offsets added to left and right at the start of each run of `steps` steps.
    pub(crate) segments: &'a [(usize, usize)],
    pub(crate) steps: usize,
    /// Vectors of a row of the panel.
    pub(crate) vecs: usize,
}

/// What a sum begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    Zero,
    /// What the output holds.
    Old,
}

impl Begin {
    /// For the sum that follows `done` others of the same outputs.
    pub(crate) fn after(done: usize) -> Begin {
        if done == 0 { Begin::Zero } else { Begin::Old }
    }
}

/// Where sums go and what is done on the way, in this order: old value, bias, addend, ReLU, rounding.
pub(crate) struct Output<'a> {
    pub(crate) data: &'a mut [f32],
    /// Offset of each group's first row and how many of its four rows exist, at least one.
    pub(crate) groups: &'a [(usize, usize)],
    /// Added to every offset.
    pub(crate) first: usize,
    /// Floats between the rows of a group, and how many columns of the panel exist.
    pub(crate) row: usize,
    pub(crate) cols: usize,
    pub(crate) begin: Begin,
    /// Its bias begins at the panel's first column, its addend has the offsets of `data`.
    pub(crate) epilogue: Epilogue<'a>,
}

/// Computes a panel, tile by tile. Panics where an offset leaves its slice.
#[track_caller]
pub(crate) fn product(isa: Isa, product: &Product, out: &mut Output) {
    let width = product.vecs * isa.lanes();
    let most = isa.max_groups(product.vecs);
    assert!(most > 0 && out.cols <= width && !out.groups.is_empty(), "panel of {width} columns gives {}", out.cols);
    let last = product.steps.saturating_sub(1);
    let reach = match product.rows {
        Rows::Strided { groups, row } => {
            assert!(groups.len() == out.groups.len(), "row groups come and go");
            groups.iter().max().map_or(0, |far| far + (GROUP - 1) * row + last)
        }
        Rows::Columns { first, step } => first + GROUP * out.groups.len() - 1 + last * step,
    };
    if product.steps > 0 && !product.segments.is_empty() {
        let far = product.segments.iter().fold((0, 0), |far, segment| (far.0.max(segment.0), far.1.max(segment.1)));
        assert!(far.0 + reach < product.left.len(), "left factor too short");
        assert!(far.1 + last * product.right_step + width <= product.right.len(), "right factor too short");
    }
    let end = out.groups.iter().map(|group| group.0 + (group.1.clamp(1, GROUP) - 1) * out.row).max().unwrap_or(0);
    let end = end + out.first + out.cols;
    assert!(end <= out.data.len() && out.epilogue.add.is_none_or(|add| end <= add.len()), "panel leaves its output");
    assert!(out.epilogue.bias.is_none_or(|bias| bias.len() >= out.cols), "bias shorter than the panel");
    // SAFETY: the asserts above bound every access; `most` is a size of the instruction set's tiles.
    unsafe { dispatch(isa, Tiles { product, out, most }) }
}

struct Tiles<'t, 'p, 'o> {
    product: &'t Product<'p>,
    out: &'t mut Output<'o>,
    most: usize,
}

impl Kernel for Tiles<'_, '_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Tiles { product: p, out, most } = self;
        let groups = out.groups.len();
        let count = groups.div_ceil(most);
        for i in 0..count {
            let first = i * groups / count;
            match ((i + 1) * groups / count - first, p.vecs) {
                (1, 1) => tile::<V, 1, 1>(p, out, first),
                (2, 1) => tile::<V, 2, 1>(p, out, first),
                (3, 1) => tile::<V, 3, 1>(p, out, first),
                (4, 1) => tile::<V, 4, 1>(p, out, first),
                (5, 1) => tile::<V, 5, 1>(p, out, first),
                (6, 1) => tile::<V, 6, 1>(p, out, first),
                (1, 2) => tile::<V, 1, 2>(p, out, first),
                (2, 2) => tile::<V, 2, 2>(p, out, first),
                (3, 2) => tile::<V, 3, 2>(p, out, first),
                (1, 3) => tile::<V, 1, 3>(p, out, first),
                (2, 3) => tile::<V, 2, 3>(p, out, first),
                _ => unreachable!("max_groups lists the tiles"),
            }
        }
    }
}

/// SAFETY: offsets checked, `V`'s instruction set available, groups `first` .. `first` + G exist, N equals `p.vecs`.
#[inline(always)]
unsafe fn tile<V: Vector, const G: usize, const N: usize>(p: &Product, out: &mut Output, first: usize) {
    let mut buffer = MaybeUninit::<[f32; TILE]>::uninit();
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    let width = N * V::LANES;
    let groups = &out.groups[first..first + G];
    let Epilogue { bias, add, relu, round_bf16 } = out.epilogue;
    let special = bias.is_some() || add.is_some() || relu || round_bf16;
    // Whole tiles with nothing more to do are summed in place, the others in a buffer.
    let plain = !special && out.cols == width && groups.iter().all(|group| group.1 == GROUP);
    let base = if plain { out.data.as_mut_ptr().wrapping_add(out.first) } else { buffer };
    let offset = |g: usize| if plain { groups[g].0 } else { g * GROUP * width };
    let sums = Sums::<G> {
        groups: std::array::from_fn(|g| base.wrapping_add(offset(g))),
        row: if plain { out.row } else { width },
        begin: out.begin,
    };
    if !plain && out.begin == Begin::Old {
        buffer.write_bytes(0, TILE);
        edge::<V>(buffer, out, groups, width, |sum, value, _, lanes| V::load(value, lanes).store(sum, lanes));
    }
    match p.rows {
        Rows::Strided { groups, row } => {
            let left = std::array::from_fn(|g| p.left.as_ptr().wrapping_add(groups[first + g]));
            sum_strided::<V, G, N>(p, (left, row), &sums);
        }
        Rows::Columns { first: offset, step } => {
            let left = p.left.as_ptr().wrapping_add(offset + GROUP * first);
            sum_columns::<V, G, N>(p, (left, step), &sums);
        }
    }
    if !plain {
        let epilogue = out.epilogue;
        edge::<V>(buffer, out, groups, width, |sum, to, (at, col), lanes| {
            finish(V::load(sum, lanes), to, &epilogue, (at, col), lanes);
        });
    }
}

/// Where the accumulators of a tile begin and end: `GROUP` rows from each pointer.
struct Sums<const G: usize> {
    groups: [*mut f32; G],
    row: usize,
    begin: Begin,
}

impl<const G: usize> Sums<G> {
    /// SAFETY: every group's rows hold N vectors; `V`'s instruction set available.
    #[inline(always)]
    unsafe fn load<V: Vector, const N: usize>(&self) -> [[[V; N]; GROUP]; G] {
        let mut sums = [[[V::zero(); N]; GROUP]; G];
        if self.begin == Begin::Old {
            for g in 0..G {
                for j in 0..GROUP {
                    for n in 0..N {
                        sums[g][j][n] = V::load(self.groups[g].add(j * self.row + n * V::LANES), V::LANES);
                    }
                }
            }
        }
        sums
    }

    /// SAFETY: as `load`.
    #[inline(always)]
    unsafe fn store<V: Vector, const N: usize>(&self, sums: &[[[V; N]; GROUP]; G]) {
        for g in 0..G {
            for j in 0..GROUP {
                for n in 0..N {
                    sums[g][j][n].store(self.groups[g].add(j * self.row + n * V::LANES), V::LANES);
                }
            }
        }
    }
}

/// Calls `each` with every vector of the tile that exists in the output: its place in the tile and in the output, its
/// offset in the output and column, its lanes.
///
/// SAFETY: `out` was checked; `tile` holds its rows of `width` floats.
#[inline(always)]
unsafe fn edge<V: Vector>(
    tile: *mut f32,
    out: &mut Output,
    groups: &[(usize, usize)],
    width: usize,
    mut each: impl FnMut(*mut f32, *mut f32, (usize, usize), usize),
) {
    for (g, &(offset, valid)) in groups.iter().enumerate() {
        for j in 0..valid.min(GROUP) {
            for col in (0..out.cols).step_by(V::LANES) {
                let at = offset + out.first + j * out.row + col;
                let from = tile.wrapping_add((g * GROUP + j) * width + col);
                each(from, out.data.as_mut_ptr().wrapping_add(at), (at, col), V::LANES.min(out.cols - col));
            }
        }
    }
}

/// Applies the epilogue and stores. `at`: offset in the addend, `col`: in the bias.
///
/// SAFETY: `lanes` values lie at `to` and at both offsets; `V`'s instruction set available.
#[inline(always)]
pub(crate) unsafe fn finish<V: Vector>(
    mut sum: V,
    to: *mut f32,
    epilogue: &Epilogue,
    (at, col): (usize, usize),
    lanes: usize,
) {
    if let Some(bias) = epilogue.bias {
        sum = sum.plus(V::load(bias.as_ptr().add(col), lanes));
    }
    if let Some(add) = epilogue.add {
        sum = sum.plus(V::load(add.as_ptr().add(at), lanes));
    }
    (if epilogue.relu { sum.relu() } else { sum }).store(to, lanes);
    if epilogue.round_bf16 {
        let values = std::slice::from_raw_parts_mut(to, lanes);
        values.iter_mut().for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
    }
}

/// Steps of the inner loop's body.
const UNROLL: usize = 2;

/// Hides where a pointer came from. NOTE: without it the compiler keeps a pointer per row of the tile instead of one per
/// group, spills most of them and halves the speed.
#[inline(always)]
fn opaque(mut pointer: *const f32) -> *const f32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no instruction is emitted.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, readonly, nostack, preserves_flags))
    };
    pointer
}

/// SAFETY: as [`tile`].
#[inline(always)]
unsafe fn sum_strided<V: Vector, const G: usize, const N: usize>(
    p: &Product,
    (start, row): ([*const f32; G], usize),
    to: &Sums<G>,
) {
    let mut sums = to.load::<V, N>();
    for &(left, right) in p.segments {
        let mut a = start.map(|group| group.wrapping_add(left));
        let mut b = p.right.as_ptr().wrapping_add(right);
        for _ in 0..p.steps / UNROLL {
            a = a.map(opaque);
            for step in 0..UNROLL {
                multiply_add(&mut sums, a.map(|group| group.wrapping_add(step)), row, b);
                b = b.wrapping_add(p.right_step);
            }
            a = a.map(|group| group.wrapping_add(UNROLL));
        }
        for _ in 0..p.steps % UNROLL {
            a = a.map(opaque);
            multiply_add(&mut sums, a, row, b);
            a = a.map(|group| group.wrapping_add(1));
            b = b.wrapping_add(p.right_step);
        }
    }
    to.store::<V, N>(&sums);
}

/// SAFETY: as [`tile`].
#[inline(always)]
unsafe fn sum_columns<V: Vector, const G: usize, const N: usize>(
    p: &Product,
    (start, step): (*const f32, usize),
    to: &Sums<G>,
) {
    let mut sums = to.load::<V, N>();
    for &(left, right) in p.segments {
        let mut a = start.wrapping_add(left);
        let mut b = p.right.as_ptr().wrapping_add(right);
        for _ in 0..p.steps {
            multiply_add(&mut sums, std::array::from_fn(|g| a.wrapping_add(g * GROUP)), 1, b);
            a = a.wrapping_add(step);
            b = b.wrapping_add(p.right_step);
        }
    }
    to.store::<V, N>(&sums);
}

/// sums[g][j] += a[g][j · row] · b.
///
/// SAFETY: `V`'s instruction set available; 4·G values of a and N vectors of b are readable.
#[inline(always)]
unsafe fn multiply_add<V: Vector, const G: usize, const N: usize>(
    sums: &mut [[[V; N]; GROUP]; G],
    a: [*const f32; G],
    row: usize,
    b: *const f32,
) {
    let mut right = [V::zero(); N];
    for n in 0..N {
        right[n] = V::load(b.add(n * V::LANES), V::LANES);
    }
    for g in 0..G {
        for j in 0..GROUP {
            let left = V::splat(*a[g].add(j * row));
            for n in 0..N {
                sums[g][j][n] = left.mul_add(right[n], sums[g][j][n]);
            }
        }
    }
}
