//! wgrad: dw[k, r·s·c] = Σ over pixels of dy[pixel, k] · patch[pixel, r·s·c], a GEMM whose long side is the reduction.
//!
//! dy is packed by tile, then a block of pixels of one panel of patch columns at a time (implicit im2col, zeros where the
//! filter leaves the image). Small filters are summed over a fixed number of image chunks, the partial sums added in chunk
//! order; large filters are also cut by output filter. Neither depends on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::conv::{Conv, ConvGeom, Epilogue};
use crate::conv_direct::panels;
use crate::conv_winograd::{self, Algorithm};
use crate::scratch::with_scratch;
use crate::simd::{self, Begin, GROUP, Isa, Output, Product, Rows};
use crate::simd_rows;

/// Floats of a packed patch block, for L1, and of the packed dy it is multiplied with, for L2.
const RIGHT_FLOATS: usize = 8 * 1024;
const LEFT_FLOATS: usize = 64 * 1024;
/// Tasks wanted, and floats of partial filters that may be kept for them.
const TASKS: usize = 8;
const PARTIAL_FLOATS: usize = 1280 * 1024;
/// Pixels a chunk must have to be worth a partial sum.
const CHUNK_PIXELS: usize = 64;

pub(crate) fn wgrad(conv: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let g = &conv.geom;
    let pixels = g.n * g.p * g.q;
    let chunks = TASKS.min(PARTIAL_FLOATS / dw.len()).min(pixels / CHUNK_PIXELS).clamp(1, g.n.max(1));
    let filters = g.k / g.groups;
    let blocks = TASKS.div_ceil(chunks * g.groups).min(filters.div_ceil(128));
    let algorithm = conv_winograd::algorithm(g, (g.p, g.q));
    let block_filters = match algorithm {
        Algorithm::Winograd => conv_winograd::BLOCK,
        Algorithm::Direct => filters.div_ceil(blocks).next_multiple_of(GROUP),
    };
    let cut = Cut { conv, x, dy, block_filters, algorithm };
    if chunks == 1 {
        return cut.images(0..g.n, dw);
    }
    with_scratch(chunks * dw.len(), |partial| {
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
    algorithm: Algorithm,
}

impl Cut<'_> {
    /// Overwrites `dw` with the sum over some images.
    fn images(&self, images: Range<usize>, dw: &mut [f32]) {
        let g = &self.conv.geom;
        let (filters, len) = (g.k / g.groups, g.filter_len());
        dw.par_chunks_mut(filters * len).enumerate().for_each(|(group, dw)| {
            dw.par_chunks_mut(self.block_filters * len).enumerate().for_each(|(i, dw)| {
                let first = group * filters + i * self.block_filters;
                let filters = (first, dw.len() / len);
                match self.algorithm {
                    Algorithm::Winograd => {
                        conv_winograd::wgrad(self.conv, (self.x, self.dy), images.clone(), filters, dw)
                    }
                    Algorithm::Direct => self.block(group, images.clone(), filters, dw),
                }
            });
        });
    }

    /// `filters`: first and count, all of one group.
    fn block(&self, group: usize, images: Range<usize>, filters: (usize, usize), dw: &mut [f32]) {
        let (g, isa) = (&self.conv.geom, self.conv.isa);
        let tiles = Tiles::new(g, isa, filters.1);
        let patches = Patches { geom: g, isa, x: self.x, group };
        let bands = tiles.bands(g, images);
        let most = bands.iter().map(|band| band.pixels(g).len()).max().unwrap_or(0);
        let slab = (LEFT_FLOATS / tiles.filters / most.max(1)).max(1);
        let right_len = bands.iter().map(|band| tiles.packed_rows(band) * g.q * tiles.width).max().unwrap_or(0);
        if bands.is_empty() {
            return dw.fill(0.0);
        }
        with_scratch(right_len + slab * most * tiles.filters, |scratch| {
            let (right, left) = scratch.split_at_mut(right_len);
            for (i, bands) in bands.chunks(slab).enumerate() {
                for (band, left) in bands.iter().zip(left.chunks_exact_mut(most * tiles.filters)) {
                    tiles.pack(
                        isa,
                        (&self.dy[band.pixels(g).start * g.k + filters.0..], g.k),
                        band.pixels(g).len(),
                        left,
                    );
                }
                for panel in &tiles.panels {
                    for (j, (band, left)) in bands.iter().zip(left.chunks_exact(most * tiles.filters)).enumerate() {
                        patches.pack(panel, band, right);
                        for tap in 0..panel.taps {
                            tiles.run(&patches, (left, right), (panel, band, tap), Begin::after(i + j), dw);
                        }
                    }
                }
            }
        });
    }
}

/// Output pixels packed together: all rows of some images, or some rows of one.
struct Band {
    images: Range<usize>,
    rows: Range<usize>,
}

impl Band {
    /// Indices in NPQ.
    fn pixels(&self, g: &ConvGeom) -> Range<usize> {
        let start = (self.images.start * g.p + self.rows.start) * g.q;
        start..start + self.images.len() * self.rows.len() * g.q
    }
}

/// Patch columns that are packed together. Filter rows `stride` apart see the same image rows one output row on, so one
/// packed panel serves `taps` of them.
struct Panel {
    /// First column of the first tap in r·s·c, columns, vectors.
    first: usize,
    columns: usize,
    vecs: usize,
    taps: usize,
}

/// How a block of filters × filter floats is cut into register tiles.
struct Tiles {
    panels: Vec<Panel>,
    /// Floats of the widest panel.
    width: usize,
    /// First filter and count of each tile; counts are whole groups, the last may reach past the block.
    rows: Vec<(usize, usize)>,
    /// Filters of the block, as they are and in whole groups.
    valid: usize,
    filters: usize,
}

impl Tiles {
    fn new(g: &ConvGeom, isa: Isa, valid: usize) -> Tiles {
        // Where a filter row fills no vector, or is not adjacent in the image, a panel crosses filter rows.
        let shared = g.groups == 1 && g.s * g.c >= isa.lanes();
        let (run, firsts) = if shared { (g.s * g.c, g.stride.min(g.r)) } else { (g.filter_len(), 1) };
        let cut = panels(isa, run, if run.div_ceil(isa.lanes()).is_multiple_of(3) { 3 } else { 2 });
        let widest = cut.iter().map(|panel| panel.1).max().unwrap_or(1);
        let panel = |tap: usize, first: usize, vecs: usize| Panel {
            first: tap * run + first,
            columns: (vecs * isa.lanes()).min(run - first),
            vecs,
            taps: if shared { (g.r - tap).div_ceil(g.stride) } else { 1 },
        };
        let panels =
            (0..firsts).flat_map(|tap| cut.iter().map(move |&(first, vecs)| panel(tap, first, vecs))).collect();
        let groups = valid.div_ceil(GROUP);
        let count = groups.div_ceil(isa.max_groups(widest));
        let at = |i: usize| i * groups / count * GROUP;
        let rows = (0..count).map(|i| (at(i), at(i + 1) - at(i))).collect();
        Tiles { panels, width: widest * isa.lanes(), rows, valid, filters: groups * GROUP }
    }

    /// Cuts images into bands whose widest panel is about `RIGHT_FLOATS`.
    fn bands(&self, g: &ConvGeom, images: Range<usize>) -> Vec<Band> {
        let pixels = RIGHT_FLOATS / self.width;
        let together = (pixels / (g.p * g.q)).max(1);
        let cuts = if together > 1 { 1 } else { g.p.div_ceil((pixels / g.q).max(1)) };
        let band = |first: usize, cut: usize| Band {
            images: first..(first + together).min(images.end),
            rows: cut * g.p / cuts..(cut + 1) * g.p / cuts,
        };
        images.clone().step_by(together).flat_map(|first| (0..cuts).map(move |cut| band(first, cut))).collect()
    }

    /// Rows of a packed band, with the most rows that later taps add.
    fn packed_rows(&self, band: &Band) -> usize {
        let taps = self.panels.iter().map(|panel| panel.taps).max().unwrap_or(1);
        band.images.len() * (band.rows.len() + taps - 1)
    }

    /// Copies `count` pixels of dy as [tile][pixel][filter].
    fn pack(&self, isa: Isa, (dy, step): (&[f32], usize), count: usize, packed: &mut [f32]) {
        for &(first, rows) in &self.rows {
            let there = rows.min(self.valid - first);
            let packed = &mut packed[first * count..][..rows * count];
            if there < rows {
                packed.fill(0.0);
            }
            simd_rows::copy_rows(isa, (packed, rows), (&dy[first..], step), there, count);
        }
    }

    /// dw[tiles, one tap of a panel] (+)= dyᵀ · patches over a packed band.
    fn run(
        &self,
        patches: &Patches,
        (left, right): (&[f32], &[f32]),
        (panel, band, tap): (&Panel, &Band, usize),
        begin: Begin,
        dw: &mut [f32],
    ) {
        let (g, isa) = (patches.geom, patches.isa);
        let width = panel.vecs * isa.lanes();
        let (pixels, steps) = (band.pixels(g).len(), band.rows.len() * g.q);
        let mut segments = Vec::with_capacity(band.images.len());
        for &(first, rows) in &self.rows {
            segments.clear();
            segments.extend((0..band.images.len()).map(|image| {
                let row = image * (band.rows.len() + panel.taps - 1) + tap;
                (image * steps * rows, row * g.q * width)
            }));
            let mut ends = [(0, 0); 8];
            for (i, to) in ends.iter_mut().enumerate().take(rows / GROUP) {
                let filter = first + i * GROUP;
                *to = (filter * g.filter_len(), GROUP.min(self.valid - filter));
            }
            let product = Product {
                left,
                rows: Rows::Columns { first: first * pixels, step: rows },
                right,
                right_step: width,
                segments: &segments,
                steps,
                vecs: panel.vecs,
            };
            let mut out = Output {
                data: dw,
                groups: &ends[..rows / GROUP],
                first: panel.first + tap * g.stride * g.s * g.c,
                row: g.filter_len(),
                cols: panel.columns,
                begin,
                epilogue: Epilogue::default(),
            };
            simd::product(isa, &product, &mut out);
        }
    }
}

/// The patch matrix of one channel group.
struct Patches<'a> {
    geom: &'a ConvGeom,
    isa: Isa,
    x: &'a [f32],
    group: usize,
}

impl Patches<'_> {
    /// Writes a panel's columns for a band's pixels, with the rows its later taps add after those of each image.
    fn pack(&self, panel: &Panel, band: &Band, packed: &mut [f32]) {
        let g = self.geom;
        let channels = g.c / g.groups;
        let width = panel.vecs * self.isa.lanes();
        let rows = band.rows.start..band.rows.end + panel.taps - 1;
        let all = band.images.clone().flat_map(|image| rows.clone().map(move |row| (image, row)));
        for ((image, row), packed) in all.zip(packed.chunks_exact_mut(g.q * width)) {
            let mut column = 0;
            while column < panel.columns {
                // Columns of one filter row are adjacent in the image when there is one group, else those of one tap.
                let run = if g.groups == 1 { g.s * g.c } else { channels };
                let (index, offset) = ((panel.first + column) / run, (panel.first + column) % run);
                let piece = (run - offset).min(panel.columns - column);
                let (r, s) = if g.groups == 1 { (index, 0) } else { (index / g.s, index % g.s) };
                let h = (row * g.stride + r).checked_sub(g.pad).filter(|&h| h < g.h);
                let image_row = h.map(|h| &self.x[(image * g.h + h) * g.w * g.c..][..g.w * g.c]);
                let first = (s * g.c + self.group * channels + offset) as isize - (g.pad * g.c) as isize;
                self.piece(image_row, first, piece, (&mut packed[column..], width));
                column += piece;
            }
        }
    }

    /// `piece` floats from `first`, `first` + stride·c, ... of an image row for each output column; zeros outside it.
    fn piece(&self, image_row: Option<&[f32]>, first: isize, piece: usize, (packed, width): (&mut [f32], usize)) {
        let (count, step) = (self.geom.q, self.geom.stride * self.geom.c);
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
            simd_rows::copy_rows(
                self.isa,
                (&mut packed[lo * width..], width),
                (&row[start(lo) as usize..], step),
                piece,
                hi - lo,
            );
        }
    }
}
