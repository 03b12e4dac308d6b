//! wgrad: dw[k, r·s·c] = Σ over pixels of dy[pixel, k] · patch[pixel, r·s·c], a GEMM whose long side is the reduction.
//!
//! dy is packed by tile, then a block of pixels of one panel of patch columns at a time (implicit im2col, zeros where the
//! filter leaves the image). Small filters are summed over a fixed number of image chunks, the partial sums added in chunk
//! order; large filters are also cut by output filter. Neither depends on the number of threads.

use rayon::prelude::*;

use crate::conv::{Conv, ConvGeom};
use crate::conv_direct::panels;
use crate::scratch::with_scratch;
use crate::simd::{self, GROUP, Isa, Output, Product, Rows};

/// Floats of a packed patch block, for L1, and of the packed dy it is multiplied with, for L2.
const RIGHT_FLOATS: usize = 8 * 1024;
const LEFT_FLOATS: usize = 64 * 1024;
/// Tasks wanted, and floats of partial filters that may be kept for them.
const TASKS: usize = 8;
const PARTIAL_FLOATS: usize = 512 * 1024;
/// Pixels a chunk must have to be worth a partial sum.
const CHUNK_PIXELS: usize = 64;

pub(crate) fn wgrad(conv: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = &conv.geom;
    let pixels = g.n * g.p * g.q;
    let chunks = TASKS.min(PARTIAL_FLOATS / dw.len()).min(pixels / CHUNK_PIXELS).clamp(1, g.n.max(1));
    let filters = g.k / g.groups;
    let blocks = TASKS.div_ceil(chunks * g.groups).min(filters.div_ceil(32));
    let block_filters = filters.div_ceil(blocks).next_multiple_of(GROUP);
    let cut = Cut { conv, x, dy, block_filters };
    if chunks == 1 {
        return cut.images(0..g.n, dw);
    }
    with_scratch(chunks * dw.len(), |partial| {
        let partial = &mut partial[..chunks * dw.len()];
        partial.par_chunks_mut(dw.len()).enumerate().for_each(|(i, partial)| {
            cut.images(i * g.n / chunks..(i + 1) * g.n / chunks, partial);
        });
        let partial = &*partial;
        let len = dw.len();
        dw.par_chunks_mut(4096).enumerate().for_each(|(i, dw)| {
            let at = |chunk: usize| &partial[chunk * len + i * 4096..][..dw.len()];
            dw.copy_from_slice(at(0));
            for chunk in 1..chunks {
                let add = &partial[chunk * len + i * 4096..];
                dw.iter_mut().zip(add).for_each(|(dw, &add)| *dw += add);
            }
        });
    });
}

struct Cut<'a> {
    conv: &'a Conv,
    x: &'a [f32],
    dy: &'a [f32],
    block_filters: usize,
}

impl Cut<'_> {
    /// Overwrites `dw` with the sum over some images.
    fn images(&self, images: std::ops::Range<usize>, dw: &mut [f32]) {
        let g = &self.conv.geom;
        let (filters, len) = (g.k / g.groups, g.filter_len());
        dw.par_chunks_mut(filters * len).enumerate().for_each(|(group, dw)| {
            dw.par_chunks_mut(self.block_filters * len).enumerate().for_each(|(i, dw)| {
                let first = group * filters + i * self.block_filters;
                self.block(group, images.clone(), (first, dw.len() / len), dw);
            });
        });
    }

    /// `filters`: first and count, all of one group.
    fn block(&self, group: usize, images: std::ops::Range<usize>, filters: (usize, usize), dw: &mut [f32]) {
        let (g, isa) = (&self.conv.geom, self.conv.isa);
        let per_image = g.p * g.q;
        let (start, end) = (images.start * per_image, images.end * per_image);
        if start == end {
            return dw.fill(0.0);
        }
        let tiles = Tiles::new(isa, g.filter_len(), filters.1);
        let steps = RIGHT_FLOATS / tiles.width;
        let slab = (LEFT_FLOATS / tiles.filters / steps).max(1) * steps;
        with_scratch(steps * tiles.width + slab * tiles.filters, |scratch| {
            let (right, left) = scratch.split_at_mut(steps * tiles.width);
            for first in (start..end).step_by(slab) {
                let last = (first + slab).min(end);
                for at in (first..last).step_by(steps) {
                    let count = steps.min(last - at);
                    let to = &mut left[(at - first) * tiles.filters..][..count * tiles.filters];
                    tiles.pack(isa, (&self.dy[at * g.k + filters.0..], g.k), count, to);
                }
                for &panel in &tiles.panels {
                    let patches = Patches { geom: g, isa, x: self.x, group, panel };
                    for at in (first..last).step_by(steps) {
                        let count = steps.min(last - at);
                        patches.pack(at..at + count, right);
                        let left = &left[(at - first) * tiles.filters..][..count * tiles.filters];
                        tiles.run(isa, (left, right), (panel, count), at > start, dw);
                    }
                }
            }
        });
    }
}

/// How a block of filters × filter floats is cut into register tiles.
struct Tiles {
    /// First column and vectors.
    panels: Vec<(usize, usize)>,
    /// Floats of the widest panel.
    width: usize,
    /// First filter and count of each tile; counts are whole groups, the last may reach past the block.
    rows: Vec<(usize, usize)>,
    /// Filters of the block, as they are and in whole groups; floats of one filter.
    valid: usize,
    filters: usize,
    len: usize,
}

impl Tiles {
    fn new(isa: Isa, len: usize, valid: usize) -> Tiles {
        let vecs = len.div_ceil(isa.lanes());
        let panels = panels(isa, len, if vecs.is_multiple_of(3) { 3 } else { 2 });
        let widest = panels.iter().map(|panel| panel.1).max().unwrap_or(1);
        let groups = valid.div_ceil(GROUP);
        let count = groups.div_ceil(isa.max_groups(widest));
        let cut = |i: usize| i * groups / count * GROUP;
        let rows = (0..count).map(|i| (cut(i), cut(i + 1) - cut(i))).collect();
        Tiles { panels, width: widest * isa.lanes(), rows, valid, filters: groups * GROUP, len }
    }

    /// Copies `count` pixels of dy as [tile][pixel][filter].
    fn pack(&self, isa: Isa, (dy, step): (&[f32], usize), count: usize, packed: &mut [f32]) {
        for &(first, rows) in &self.rows {
            let there = rows.min(self.valid - first);
            let packed = &mut packed[first * count..][..rows * count];
            if there < rows {
                packed.fill(0.0);
            }
            simd::copy_rows(isa, (packed, rows), (&dy[first..], step), there, count);
        }
    }

    /// dw[tiles, panel] (+)= dyᵀ · patches over the packed pixels.
    fn run(&self, isa: Isa, (left, right): (&[f32], &[f32]), (panel, steps): ((usize, usize), usize), accumulate: bool, dw: &mut [f32]) {
        let width = panel.1 * isa.lanes();
        for &(first, rows) in &self.rows {
            let mut ends = [(0, 0); 8];
            for (i, to) in ends.iter_mut().enumerate().take(rows / GROUP) {
                let filter = first + i * GROUP;
                *to = (filter * self.len, GROUP.min(self.valid - filter));
            }
            let product = Product {
                left,
                rows: Rows::Columns { groups: rows / GROUP, first: first * steps, step: rows },
                right,
                right_step: width,
                segments: &[(0, 0)],
                steps,
                vecs: panel.1,
            };
            let mut out = Output {
                data: dw,
                groups: &ends[..rows / GROUP],
                first: panel.0,
                row: self.len,
                cols: width.min(self.len - panel.0),
                accumulate,
                bias: None,
                add: None,
                relu: false,
                round_bf16: false,
            };
            simd::tile(isa, &product, &mut out);
        }
    }
}

/// One panel of the patch matrix: (first column, vectors) of r·s·c.
struct Patches<'a> {
    geom: &'a ConvGeom,
    isa: Isa,
    x: &'a [f32],
    group: usize,
    panel: (usize, usize),
}

impl Patches<'_> {
    /// Writes rows for `pixels` (indices in NPQ).
    fn pack(&self, pixels: std::ops::Range<usize>, packed: &mut [f32]) {
        let g = self.geom;
        let channels = g.c / g.groups;
        let width = self.panel.1 * self.isa.lanes();
        let columns = width.min(g.filter_len() - self.panel.0);
        // Columns of one filter row are adjacent in the image when there is one group, else those of one tap.
        let run = if g.groups == 1 { g.s * g.c } else { channels };
        let mut at = pixels.start;
        while at < pixels.end {
            let (row, q) = (at / g.q, at % g.q);
            let count = (g.q - q).min(pixels.end - at);
            let packed = &mut packed[(at - pixels.start) * width..][..count * width];
            let mut column = 0;
            while column < columns {
                let (index, offset) = ((self.panel.0 + column) / run, (self.panel.0 + column) % run);
                let piece = (run - offset).min(columns - column);
                let (r, s) = if g.groups == 1 { (index, 0) } else { (index / g.s, index % g.s) };
                let h = (row % g.p * g.stride + r).checked_sub(g.pad).filter(|&h| h < g.h);
                let image_row = h.map(|h| &self.x[(row / g.p * g.h + h) * g.w * g.c..][..g.w * g.c]);
                let first = (q * g.stride + s) * g.c + self.group * channels + offset;
                self.piece(image_row, first as isize - (g.pad * g.c) as isize, (count, piece), (&mut packed[column..], width));
                column += piece;
            }
            at += count;
        }
    }

    /// Rows of `shape.1` floats from `first`, `first` + stride·c, ... of an image row; zeros outside it.
    fn piece(&self, image_row: Option<&[f32]>, first: isize, shape: (usize, usize), to: (&mut [f32], usize)) {
        let (count, piece) = shape;
        let (packed, width) = to;
        let step = self.geom.stride * self.geom.c;
        let Some(row) = image_row else {
            return (0..count).for_each(|i| packed[i * width..][..piece].fill(0.0));
        };
        let start = |i: usize| first + (i * step) as isize;
        let inside = |i: usize| start(i) >= 0 && start(i) as usize + piece <= row.len();
        let lo = (0..count).find(|&i| inside(i)).unwrap_or(count);
        let hi = (lo..count).rev().find(|&i| inside(i)).map_or(lo, |i| i + 1);
        for i in (0..lo).chain(hi..count) {
            for (j, to) in packed[i * width..][..piece].iter_mut().enumerate() {
                let at = start(i) + j as isize;
                *to = usize::try_from(at).ok().and_then(|at| row.get(at)).copied().unwrap_or(0.0);
            }
        }
        if hi > lo {
            simd::copy_rows(self.isa, (&mut packed[lo * width..], width), (&row[start(lo) as usize..], step), piece, hi - lo);
        }
    }
}
