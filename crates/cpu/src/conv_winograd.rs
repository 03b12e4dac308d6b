//! Winograd's F(4×4, 3×3) for 3×3 layers of stride 1: 36 products of tiles × channels × filters in place of one with nine
//! times the channels, a quarter of the multiplications.
//!
//! Tiles are transformed in batches that stay in L2. fprop and dgrad run the 36 products one panel of output columns at a
//! time and transform it back at once; wgrad sums 36 products over all batches of a block of filters × channels, then
//! transforms back. Normalised error against f64 about 2e-6 to 5e-6, growing with the root of the channels, which is why
//! they are limited.

use std::ops::Range;

use crate::conv::{Conv, ConvGeom};
use crate::conv_direct::{Part, panels};
use crate::conv_task::Task;
use crate::scratch::with_scratch;
use crate::simd::{self, Begin, GROUP, Isa, Output, Product, Rows};
use crate::simd_winograd::{self as transform, PATCH, POINTS, TILE, Window};

/// Tiles transformed together by fprop and dgrad, and by wgrad.
const BATCH: usize = 64;
const GRADIENT_BATCH: usize = 32;
/// Filters and channels of a block of wgrad.
pub(crate) const BLOCK: usize = 64;
/// Keeps equal places of different points out of the same cache set.
const PADDING: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Direct,
    Winograd,
}

/// Winograd where the tiles save more than the transforms cost; `output` is the size of what is cut into tiles.
pub(crate) fn algorithm(g: &ConvGeom, output: (usize, usize)) -> Algorithm {
    let shape = (g.r, g.s, g.stride, g.groups) == (3, 3, 1, 1) && g.pad <= 2;
    let channels = |count: usize| count == 16 || (32..=512).contains(&count) && count.is_multiple_of(32);
    let covered = output.0.next_multiple_of(TILE) * output.1.next_multiple_of(TILE);
    let pays = shape && channels(g.c) && channels(g.k) && 3 * covered <= 4 * output.0 * output.1;
    if pays { Algorithm::Winograd } else { Algorithm::Direct }
}

/// Images and output rows of one task: a batch of tiles, at least.
pub(crate) fn task((height, width): (usize, usize), images: usize) -> (usize, usize) {
    let tiles = height.div_ceil(TILE) * width.div_ceil(TILE);
    if tiles >= 4 * BATCH {
        return (1, BATCH.div_ceil(width.div_ceil(TILE)) * TILE);
    }
    // An even number of tasks of equal size.
    let tasks = images.div_ceil(BATCH.div_ceil(tiles)).next_multiple_of(2);
    (images.div_ceil(tasks).max(1), height)
}

/// Tiles of some images: rows and columns of tiles, rows and columns of pixels.
#[derive(Clone, Copy)]
struct Grid {
    tiles: (usize, usize),
    pixels: (usize, usize),
}

impl Grid {
    fn new(rows: usize, cols: usize) -> Grid {
        Grid { tiles: (rows.div_ceil(TILE), cols.div_ceil(TILE)), pixels: (rows, cols) }
    }

    /// Image, row and column of a tile's first pixel.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let row = tile / self.tiles.1;
        (row / self.tiles.0, row % self.tiles.0 * TILE, tile % self.tiles.1 * TILE)
    }

    /// The tile itself in a tensor of this many rows, columns, channels; its first pixel is pixel `first` of the image.
    fn tile(&self, tile: usize, (height, width, channels): (usize, usize, usize), block: (usize, usize)) -> Window {
        let (image, row, col) = self.place(tile);
        Window {
            start: (((image * height + row) * width + col) * channels + block.0) as isize,
            steps: (width * channels, channels),
            rows: (0, (self.pixels.0 - row).min(TILE)),
            cols: (0, (self.pixels.1 - col).min(TILE)),
            channels: block.1,
        }
    }

    /// The patch a tile is computed from; its first pixel is (`top`, `left`) away from the tile's.
    fn patch(&self, tile: usize, size: (usize, usize, usize), corner: (isize, isize), block: (usize, usize)) -> Window {
        let (height, width, channels) = size;
        let (image, row, col) = self.place(tile);
        let (h, w) = (row as isize + corner.0, col as isize + corner.1);
        let inside = |at: isize, size: usize| {
            let end = (size as isize - at).clamp(0, PATCH as isize);
            ((-at).clamp(0, end) as usize, end as usize)
        };
        let pixel = ((image * height) as isize + h) * width as isize + w;
        Window {
            start: pixel * channels as isize + block.0 as isize,
            steps: (width * channels, channels),
            rows: inside(h, height),
            cols: inside(w, width),
            channels: block.1,
        }
    }
}

impl Task<'_> {
    /// `rows` output rows of one part, filters packed as [panel][point][channel][column].
    pub(crate) fn winograd(&mut self, part: &Part, filters: &[f32], rows: usize) {
        let isa = self.direct.isa;
        let channels = part.source.1;
        let grid = Grid::new(rows, part.points.1);
        let tiles = self.images * grid.tiles.0 * grid.tiles.1;
        let batches = tiles.div_ceil(BATCH);
        let most = tiles.div_ceil(batches).next_multiple_of(GROUP);
        let widest = part.blocks.packed / (9 * channels);
        let (in_step, out_step) = (most * channels + PADDING, most * widest + PADDING);
        let starts: Vec<usize> = row_groups(most, channels).into_iter().map(|group| group.0).collect();
        let corner = (part.top + self.rows.0 as isize, part.left);
        with_scratch(POINTS * (in_step + out_step), |scratch| {
            let (input, output) = scratch.split_at_mut(POINTS * in_step);
            for batch in 0..batches {
                let (first, end) = (batch * tiles / batches, (batch + 1) * tiles / batches);
                for tile in first..end {
                    let patch = grid.patch(tile, self.direct.source, corner, (0, channels));
                    transform::input(isa, self.src, &patch, &mut input[(tile - first) * channels..], in_step);
                }
                for (i, &(column, vecs)) in part.blocks.panels.iter().enumerate() {
                    let width = vecs * isa.lanes();
                    let filters = &filters[i * POINTS * channels * widest..];
                    let ends = row_groups(end - first, width);
                    for point in 0..POINTS {
                        let product = Product {
                            left: &input[point * in_step..],
                            rows: Rows::Strided { groups: &starts[..ends.len()], row: channels },
                            right: &filters[point * channels * widest..],
                            right_step: width,
                            segments: &[(0, 0)],
                            steps: channels,
                            vecs,
                        };
                        whole(isa, &product, &ends, Begin::Zero, (&mut output[point * out_step..], width));
                    }
                    for tile in first..end {
                        let window = grid.tile(tile, self.direct.dest, (column, width));
                        let points = (&output[(tile - first) * width..], out_step);
                        transform::output(isa, points, &window, self.out, self.epilogue.columns(column));
                    }
                }
            }
        });
    }
}

/// Offsets of groups of rows `row` floats long.
fn row_groups(rows: usize, row: usize) -> Vec<(usize, usize)> {
    (0..rows.div_ceil(GROUP)).map(|group| (group * GROUP * row, GROUP)).collect()
}

/// Runs a panel all of whose rows are there.
fn whole(isa: Isa, product: &Product, groups: &[(usize, usize)], begin: Begin, (data, row): (&mut [f32], usize)) {
    let cols = product.vecs * isa.lanes();
    let epilogue = Default::default();
    simd::product(isa, product, &mut Output { data, groups, first: 0, row, cols, begin, epilogue });
}

/// Overwrites `dw`, `filters` (first, count) × r·s·c, with the sum over some images.
pub(crate) fn wgrad(
    conv: &Conv,
    (x, dy): (&[f32], &[f32]),
    images: Range<usize>,
    filters: (usize, usize),
    dw: &mut [f32],
) {
    let (g, isa) = (&conv.geom, conv.isa);
    let grid = Grid::new(g.p, g.q);
    let per_image = grid.tiles.0 * grid.tiles.1;
    let (start, end) = (images.start * per_image, images.end * per_image);
    let corner = (-(g.pad as isize), -(g.pad as isize));
    if start == end {
        return dw.fill(0.0);
    }
    let (in_step, dy_step) = (GRADIENT_BATCH * BLOCK + PADDING, GRADIENT_BATCH * filters.1 + PADDING);
    let sum_step = filters.1 * BLOCK + PADDING;
    with_scratch(POINTS * (in_step + dy_step + sum_step), |scratch| {
        let (input, rest) = scratch.split_at_mut(POINTS * in_step);
        let (gradient, sums) = rest.split_at_mut(POINTS * dy_step);
        for block in (0..g.c).step_by(BLOCK) {
            let channels = BLOCK.min(g.c - block);
            let (panels, groups) = (panels(isa, channels, 2), row_groups(filters.1, channels));
            for first in (start..end).step_by(GRADIENT_BATCH) {
                let count = GRADIENT_BATCH.min(end - first);
                for tile in first..first + count {
                    let patch = grid.patch(tile, (g.h, g.w, g.c), corner, (block, channels));
                    transform::input(isa, x, &patch, &mut input[(tile - first) * channels..], in_step);
                    let window = grid.tile(tile, (g.p, g.q, g.k), filters);
                    transform::gradient(isa, dy, &window, &mut gradient[(tile - first) * filters.1..], dy_step);
                }
                for (point, &(column, vecs)) in
                    (0..POINTS).flat_map(|point| panels.iter().map(move |panel| (point, panel)))
                {
                    let product = Product {
                        left: &gradient[point * dy_step..],
                        rows: Rows::Columns { first: 0, step: filters.1 },
                        right: &input[point * in_step + column..],
                        right_step: channels,
                        segments: &[(0, 0)],
                        steps: count,
                        vecs,
                    };
                    let sums = &mut sums[point * sum_step + column..];
                    whole(isa, &product, &groups, Begin::after(first - start), (sums, channels));
                }
            }
            for filter in 0..filters.1 {
                let sums = (&sums[filter * channels..], sum_step);
                transform::filter_gradient(isa, sums, channels, (&mut dw[filter * 9 * g.c + block..], g.c));
            }
        }
    });
}
