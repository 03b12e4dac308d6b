//! Vector kernels: the register-tiled product behind every convolution and GEMM, chosen at run time.
//!
//! All `unsafe` of the crate's arithmetic lives here. Public functions are safe: they check every offset against its slice
//! before the kernel runs. Three bodies: AVX-512F (tiles 12×32, 24×16, 8×48), AVX2+FMA (4×24, 4×16, 12×8), portable Rust (4×8).
//!
//! NOTE: each output element is one chain of multiply-adds in step order, whatever the tile it lands in, so results do
//! not depend on how callers cut the work. The instruction set may change bits (the portable body does not fuse).

use crate::simd_vector::{Kernel, Vector, dispatch};

/// Rows of a tile come in groups of four: inside a group they are a constant distance apart.
pub const GROUP: usize = 4;

/// Most vectors a panel of any instruction set holds.
const MAX_GROUPS: usize = 6;

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
    pub fn lanes(self) -> usize {
        match self.0 {
            Level::Portable => <[f32; 8] as Vector>::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 8,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 16,
        }
    }

    /// Vectors of the widest panel.
    pub fn max_vecs(self) -> usize {
        (1..).take_while(|&vecs| self.max_groups(vecs) > 0).count()
    }

    /// Row groups the widest tile of `vecs` vectors (1, 2, ...) holds; 0 where the panel itself is too wide.
    pub fn max_groups(self, vecs: usize) -> usize {
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
pub enum Rows<'a> {
    /// Groups at these offsets, rows of a group `row` floats apart; the next step is the next float.
    Strided { groups: &'a [usize], row: usize },
    /// 4·`groups` adjacent floats from `first`; the next step is `step` floats on.
    Columns { groups: usize, first: usize, step: usize },
}

/// A tile's product, acc[row, col] = Σ over segments and steps of left[row, step] · right[step, col].
pub struct Product<'a> {
    pub left: &'a [f32],
    pub rows: Rows<'a>,
    pub right: &'a [f32],
    /// Floats between the right factor's steps.
    pub right_step: usize,
    /// Offsets added to left and right at the start of each run of `steps` steps.
    pub segments: &'a [(usize, usize)],
    pub steps: usize,
    /// Vectors per row of the tile.
    pub vecs: usize,
}

/// Where a tile goes and what is done on the way, in this order: old value, bias, addend, ReLU, rounding.
pub struct Output<'a> {
    pub data: &'a mut [f32],
    /// Offset of each group's first row and how many of its four rows exist.
    pub groups: &'a [(usize, usize)],
    /// Added to every offset.
    pub first: usize,
    /// Floats between the rows of a group, and how many columns of the tile exist.
    pub row: usize,
    pub cols: usize,
    /// Add to what `data` holds instead of overwriting.
    pub accumulate: bool,
    /// One value per column.
    pub bias: Option<&'a [f32]>,
    /// Same offsets as `data`.
    pub add: Option<&'a [f32]>,
    pub relu: bool,
    pub round_bf16: bool,
}

impl Output<'_> {
    /// Nothing to do but store a whole tile.
    fn plain(&self, width: usize) -> bool {
        let special = self.bias.is_some() || self.add.is_some() || self.relu || self.round_bf16;
        !special && self.cols == width && self.groups.iter().all(|group| group.1 == GROUP)
    }
}

/// Computes one tile. Panics where an offset leaves its slice.
#[track_caller]
pub fn tile(isa: Isa, product: &Product, out: &mut Output) {
    let raw = Raw::check(isa, product);
    let width = product.vecs * isa.lanes();
    assert!(out.cols <= width && out.groups.len() == raw.groups, "tile of {width} columns gives {}", out.cols);
    for &(offset, valid) in out.groups {
        let rows = valid.clamp(1, GROUP) - 1;
        let end = offset + out.first + rows * out.row + out.cols;
        assert!(end <= out.data.len() && out.add.is_none_or(|add| end <= add.len()), "tile leaves its output");
    }
    assert!(out.bias.is_none_or(|bias| bias.len() >= out.cols), "bias shorter than the tile");
    // SAFETY: `Raw::check` and the asserts above bound every access.
    unsafe { dispatch(isa, Tile { raw, out }) }
}

struct Tile<'t, 'p, 'o> {
    raw: Raw<'p>,
    out: &'t mut Output<'o>,
}

impl Kernel for Tile<'_, '_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Tile { raw, out } = self;
        // SAFETY: offsets checked in `tile`; each arm names the sizes it was matched on.
        unsafe {
            match (raw.groups, raw.vecs) {
                (1, 1) => kernel::<V, 1, 1>(&raw, out),
                (2, 1) => kernel::<V, 2, 1>(&raw, out),
                (3, 1) => kernel::<V, 3, 1>(&raw, out),
                (4, 1) => kernel::<V, 4, 1>(&raw, out),
                (5, 1) => kernel::<V, 5, 1>(&raw, out),
                (6, 1) => kernel::<V, 6, 1>(&raw, out),
                (1, 2) => kernel::<V, 1, 2>(&raw, out),
                (2, 2) => kernel::<V, 2, 2>(&raw, out),
                (3, 2) => kernel::<V, 3, 2>(&raw, out),
                (1, 3) => kernel::<V, 1, 3>(&raw, out),
                (2, 3) => kernel::<V, 2, 3>(&raw, out),
                _ => unreachable!("max_groups lists the tiles"),
            }
        }
    }
}

/// A product whose offsets have been checked.
struct Raw<'a> {
    left: [*const f32; MAX_GROUPS],
    right: *const f32,
    groups: usize,
    vecs: usize,
    columns: bool,
    /// `row` of strided rows, `step` of columns.
    stride: usize,
    right_step: usize,
    segments: &'a [(usize, usize)],
    steps: usize,
}

impl<'a> Raw<'a> {
    #[track_caller]
    fn check(isa: Isa, product: &Product<'a>) -> Raw<'a> {
        let last = product.steps.saturating_sub(1);
        let (groups, columns, stride, reach) = match product.rows {
            Rows::Strided { groups, row } => {
                let far = groups.iter().max().expect("a tile has a group");
                (groups.len(), false, row, far + (GROUP - 1) * row + last)
            }
            Rows::Columns { groups, first, step } => (groups, true, step, first + GROUP * groups - 1 + last * step),
        };
        assert!(groups >= 1 && groups <= isa.max_groups(product.vecs), "tile of {groups} groups × {}", product.vecs);
        let (far_left, far_right) =
            product.segments.iter().fold((0, 0), |far, seg| (far.0.max(seg.0), far.1.max(seg.1)));
        if product.steps > 0 && !product.segments.is_empty() {
            let right_end = far_right + last * product.right_step + product.vecs * isa.lanes();
            assert!(far_left + reach < product.left.len(), "left factor too short");
            assert!(right_end <= product.right.len(), "right factor too short");
        }
        let mut left = [product.left.as_ptr(); MAX_GROUPS];
        for (g, pointer) in left.iter_mut().enumerate().take(groups) {
            let offset = match product.rows {
                Rows::Strided { groups, .. } => groups[g],
                Rows::Columns { first, .. } => first + GROUP * g,
            };
            *pointer = pointer.wrapping_add(offset);
        }
        Raw {
            left,
            right: product.right.as_ptr(),
            groups,
            vecs: product.vecs,
            columns,
            stride,
            right_step: product.right_step,
            segments: product.segments,
            steps: product.steps,
        }
    }
}

/// SAFETY: offsets checked by the caller, `V`'s instruction set available, `G` and `N` equal to `raw.groups` and `raw.vecs`.
#[inline(always)]
unsafe fn kernel<V: Vector, const G: usize, const N: usize>(raw: &Raw, out: &mut Output) {
    let mut tile = [0.0f32; TILE];
    let width = N * V::LANES;
    let plain = out.plain(width);
    let (base, row) = if plain { (out.data.as_mut_ptr(), out.row) } else { (tile.as_mut_ptr(), width) };
    let to = std::array::from_fn(|g| {
        base.wrapping_add(if plain { out.groups[g].0 + out.first } else { g * GROUP * width })
    });
    let to = Destination::<G> { groups: to, row, accumulate: out.accumulate };
    // SAFETY: handed on from the caller; a tile buffer holds 4·G·N vectors of every size in `Tile::run`.
    unsafe {
        if !plain && out.accumulate {
            edge::<V>(&mut tile, out, width, |tile, value, _, lanes| V::load(value, lanes).store(tile, lanes));
        }
        match raw.columns {
            true => product_columns::<V, G, N>(raw, &to),
            false => product_strided::<V, G, N>(raw, &to),
        }
        if !plain {
            let (bias, add, relu) = (out.bias, out.add, out.relu);
            edge::<V>(&mut tile, out, width, |tile, value, (at, col), lanes| {
                let mut sum = V::load(tile, lanes);
                if let Some(bias) = bias {
                    sum = sum.plus(V::load(bias.as_ptr().add(col), lanes));
                }
                if let Some(add) = add {
                    sum = sum.plus(V::load(add.as_ptr().add(at), lanes));
                }
                (if relu { sum.relu() } else { sum }).store(value, lanes);
            });
            if out.round_bf16 {
                round_bf16(out);
            }
        }
    }
}

/// Where the accumulators start from and end: `GROUP` rows from each pointer.
struct Destination<const G: usize> {
    groups: [*mut f32; G],
    row: usize,
    accumulate: bool,
}

impl<const G: usize> Destination<G> {
    /// SAFETY: every group's rows hold N vectors; `V`'s instruction set available.
    #[inline(always)]
    unsafe fn load<V: Vector, const N: usize>(&self) -> [[[V; N]; GROUP]; G] {
        // SAFETY: the caller's.
        unsafe {
            let mut acc = [[[V::zero(); N]; GROUP]; G];
            if self.accumulate {
                for g in 0..G {
                    for j in 0..GROUP {
                        for n in 0..N {
                            acc[g][j][n] = V::load(self.groups[g].add(j * self.row + n * V::LANES), V::LANES);
                        }
                    }
                }
            }
            acc
        }
    }

    /// SAFETY: as `load`.
    #[inline(always)]
    unsafe fn store<V: Vector, const N: usize>(&self, acc: &[[[V; N]; GROUP]; G]) {
        for g in 0..G {
            for j in 0..GROUP {
                for n in 0..N {
                    // SAFETY: the caller's.
                    unsafe { acc[g][j][n].store(self.groups[g].add(j * self.row + n * V::LANES), V::LANES) };
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
    tile: &mut [f32; TILE],
    out: &mut Output,
    width: usize,
    mut each: impl FnMut(*mut f32, *mut f32, (usize, usize), usize),
) {
    for (g, &(offset, valid)) in out.groups.iter().enumerate() {
        for j in 0..valid.min(GROUP) {
            for col in (0..out.cols).step_by(V::LANES) {
                let at = offset + out.first + j * out.row + col;
                let from = tile.as_mut_ptr().wrapping_add((g * GROUP + j) * width + col);
                each(from, out.data.as_mut_ptr().wrapping_add(at), (at, col), V::LANES.min(out.cols - col));
            }
        }
    }
}

#[cold]
fn round_bf16(out: &mut Output) {
    for &(offset, valid) in out.groups {
        for j in 0..valid.min(GROUP) {
            let row = &mut out.data[offset + out.first + j * out.row..][..out.cols];
            row.iter_mut().for_each(|value| *value = half::bf16::from_f32(*value).to_f32());
        }
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
        std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags))
    };
    pointer
}

/// SAFETY: as [`kernel`].
#[inline(always)]
unsafe fn product_strided<V: Vector, const G: usize, const N: usize>(raw: &Raw, to: &Destination<G>) {
    // SAFETY: the checked reach covers every step of every segment.
    unsafe {
        let mut acc = to.load::<V, N>();
        let row = raw.stride;
        for &(left, right) in raw.segments {
            let mut a: [*const f32; G] = std::array::from_fn(|g| raw.left[g].add(left));
            let mut b = raw.right.add(right);
            for _ in 0..raw.steps / UNROLL {
                for g in a.iter_mut() {
                    *g = opaque(*g);
                }
                for step in 0..UNROLL {
                    let vector: [V; N] = std::array::from_fn(|n| V::load(b.add(n * V::LANES), V::LANES));
                    for g in 0..G {
                        for j in 0..GROUP {
                            let scalar = V::splat(*a[g].add(j * row + step));
                            for n in 0..N {
                                acc[g][j][n] = scalar.mul_add(vector[n], acc[g][j][n]);
                            }
                        }
                    }
                    b = b.add(raw.right_step);
                }
                for g in a.iter_mut() {
                    *g = g.add(UNROLL);
                }
            }
            for _ in 0..raw.steps % UNROLL {
                let vector: [V; N] = std::array::from_fn(|n| V::load(b.add(n * V::LANES), V::LANES));
                for g in 0..G {
                    a[g] = opaque(a[g]);
                    for j in 0..GROUP {
                        let scalar = V::splat(*a[g].add(j * row));
                        for n in 0..N {
                            acc[g][j][n] = scalar.mul_add(vector[n], acc[g][j][n]);
                        }
                    }
                    a[g] = a[g].add(1);
                }
                b = b.add(raw.right_step);
            }
        }
        to.store::<V, N>(&acc);
    }
}

/// SAFETY: as [`kernel`].
#[inline(always)]
unsafe fn product_columns<V: Vector, const G: usize, const N: usize>(raw: &Raw, to: &Destination<G>) {
    // SAFETY: the checked reach covers every step of every segment.
    unsafe {
        let mut acc = to.load::<V, N>();
        for &(left, right) in raw.segments {
            let mut a = raw.left[0].add(left);
            let mut b = raw.right.add(right);
            for _ in 0..raw.steps {
                let vector: [V; N] = std::array::from_fn(|n| V::load(b.add(n * V::LANES), V::LANES));
                for g in 0..G {
                    for j in 0..GROUP {
                        let scalar = V::splat(*a.add(g * GROUP + j));
                        for n in 0..N {
                            acc[g][j][n] = scalar.mul_add(vector[n], acc[g][j][n]);
                        }
                    }
                }
                a = a.wrapping_add(raw.stride);
                b = b.wrapping_add(raw.right_step);
            }
        }
        to.store::<V, N>(&acc);
    }
}

/// Copies `rows` rows of `width` floats; `dst.1` and `src.1` are the floats between the starts of rows.
#[track_caller]
pub fn copy_rows(isa: Isa, dst: (&mut [f32], usize), src: (&[f32], usize), width: usize, rows: usize) {
    if rows == 0 || width == 0 {
        return;
    }
    assert!((rows - 1) * dst.1 + width <= dst.0.len() && (rows - 1) * src.1 + width <= src.0.len(), "rows leave a slice");
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
    unsafe fn run<V: Vector>(self) {
        let (dst, src) = (self.dst.0.as_mut_ptr(), self.src.0.as_ptr());
        for row in 0..self.rows {
            for col in (0..self.width).step_by(V::LANES) {
                let lanes = V::LANES.min(self.width - col);
                // SAFETY: col + lanes ≤ width, and `copy_rows` checked the last row.
                unsafe {
                    let value = V::load(src.add(row * self.src.1 + col), lanes);
                    value.store(dst.add(row * self.dst.1 + col), lanes);
                }
            }
        }
    }
}

/// y[i] += x[i] · w[i]. Panics where lengths differ.
#[track_caller]
pub fn multiply_add(isa: Isa, y: &mut [f32], x: &[f32], w: &[f32]) {
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
            // SAFETY: i + lanes ≤ the common length.
            unsafe {
                let (x, w) = (V::load(self.x.as_ptr().add(i), lanes), V::load(self.w.as_ptr().add(i), lanes));
                let y = self.y.as_mut_ptr().add(i);
                x.mul_add(w, V::load(y, lanes)).store(y, lanes);
            }
        }
    }
}
