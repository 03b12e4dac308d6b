//! fprop and dgrad: a GEMM over pixels whose left factor is read straight from the image (implicit im2col).
//!
//! Filters are packed once per call into panels [channel block][panel][tap y][tap x][channel][column]; the destination is
//! cut into tasks (`conv_task`) by the geometry alone. dgrad is the same with flipped filters; stride s splits it into s²
//! lattices of image pixels, each a stride-1 problem.

use rayon::prelude::*;

use crate::conv::{Conv, Epilogue};
use crate::conv_task::Task;
use crate::conv_winograd::{self, Algorithm};
use crate::scratch::with_scratch;
use crate::simd::Isa;
use crate::simd_winograd::{self, POINTS};

/// Floats of a scratch image, about half of a 1.25 MB L2.
const SCRATCH_FLOATS: usize = 160 * 1024;
/// Taps × channels of one pass over a tile: with 32 columns the panel stays near L1.
const REDUCTION: usize = 576;
/// Pixels a task should have for its pass over the filters.
const TASK_PIXELS: usize = 256;

/// A correlation written to a lattice of the destination: out[oy + i·step, ox + j·step, k0 + k] =
/// Σ src[i·stride + top + ty, j·stride + left + tx, c0 + c] · w[k, ty, tx, c].
pub(crate) struct Part {
    pub(crate) top: isize,
    pub(crate) left: isize,
    pub(crate) stride: usize,
    pub(crate) taps: (usize, usize),
    /// First channel and count, in the source and in the destination.
    pub(crate) source: (usize, usize),
    pub(crate) dest: (usize, usize),
    pub(crate) origin: (usize, usize),
    /// Lattice points in the whole destination image.
    pub(crate) points: (usize, usize),
    filters: FilterView,
    pub(crate) blocks: Blocks,
    pub(crate) algorithm: Algorithm,
}

/// Where w[k, ty, tx, c] lies: base + k·column + ty·y + tx·x + c·channel.
#[derive(Clone, Copy)]
struct FilterView {
    base: usize,
    column: usize,
    y: isize,
    x: isize,
    channel: usize,
}

/// How channels and columns are cut.
pub(crate) struct Blocks {
    pub(crate) channels: usize,
    pub(crate) channel_blocks: usize,
    /// First column and vectors of each panel.
    pub(crate) panels: Vec<(usize, usize)>,
    /// Floats of one packed (channel block, panel).
    pub(crate) packed: usize,
}

impl Blocks {
    fn new(isa: Isa, algorithm: Algorithm, taps: usize, channels: usize, columns: usize) -> Blocks {
        let whole = taps == 0 || algorithm == Algorithm::Winograd;
        let most = if whole { channels } else { (REDUCTION / taps).max(8) };
        let channel_blocks = channels.div_ceil(most);
        let channels = channels.div_ceil(channel_blocks);
        let panels = panels(isa, columns, 2);
        let widest = panels.iter().map(|panel| panel.1).max().unwrap_or(0) * isa.lanes();
        Blocks { channels, channel_blocks, panels, packed: taps * channels * widest }
    }
}

/// Cuts `columns` into panels of at most `widest` vectors, as equal as whole vectors allow: (first column, vectors).
pub(crate) fn panels(isa: Isa, columns: usize, widest: usize) -> Vec<(usize, usize)> {
    let widest = widest.min(isa.max_vecs());
    let vecs = columns.div_ceil(isa.lanes());
    let count = vecs.div_ceil(widest);
    let cut = |i: usize| i * vecs / count;
    (0..count).map(|i| (cut(i) * isa.lanes(), cut(i + 1) - cut(i))).collect()
}

pub(crate) struct Direct<'w> {
    pub(crate) isa: Isa,
    images: usize,
    /// Height, width, channels.
    pub(crate) source: (usize, usize, usize),
    pub(crate) dest: (usize, usize, usize),
    /// Lattice spacing in the destination.
    pub(crate) step: usize,
    pub(crate) parts: Vec<Part>,
    w: &'w [f32],
}

impl<'w> Direct<'w> {
    pub(crate) fn fprop(conv: &Conv, w: &'w [f32]) -> Direct<'w> {
        let (g, isa) = (&conv.geom, conv.isa);
        let (cg, kg) = (g.c / g.groups, g.k / g.groups);
        let algorithm = conv_winograd::algorithm(g, (g.p, g.q));
        let parts = (0..g.groups).map(|group| Part {
            top: -(g.pad as isize),
            left: -(g.pad as isize),
            stride: g.stride,
            taps: (g.r, g.s),
            source: (group * cg, cg),
            dest: (group * kg, kg),
            origin: (0, 0),
            points: (g.p, g.q),
            filters: FilterView {
                base: group * kg * g.filter_len(),
                column: g.filter_len(),
                y: (g.s * cg) as isize,
                x: cg as isize,
                channel: 1,
            },
            blocks: Blocks::new(isa, algorithm, g.r * g.s, cg, kg),
            algorithm,
        });
        let (source, dest) = ((g.h, g.w, g.c), (g.p, g.q, g.k));
        Direct { isa, images: g.n, source, dest, step: 1, parts: parts.collect(), w }
    }

    pub(crate) fn dgrad(conv: &Conv, w: &'w [f32]) -> Direct<'w> {
        let (g, isa) = (&conv.geom, conv.isa);
        let (cg, kg) = (g.c / g.groups, g.k / g.groups);
        let algorithm = conv_winograd::algorithm(g, (g.h, g.w));
        let mut parts = Vec::new();
        for (group, oy, ox) in lattices(g.groups, g.stride.min(g.h), g.stride.min(g.w)) {
            // Taps first, first + stride, ... reach this lattice, the last of them from the lowest output row.
            let (first_y, ty, top) = lattice_taps(oy, g.r, g.stride, g.pad);
            let (first_x, tx, left) = lattice_taps(ox, g.s, g.stride, g.pad);
            let last = |first: usize, taps: usize| first + g.stride * taps.saturating_sub(1);
            parts.push(Part {
                top,
                left,
                stride: 1,
                taps: if ty * tx == 0 { (0, 0) } else { (ty, tx) },
                source: (group * kg, kg),
                dest: (group * cg, cg),
                origin: (oy, ox),
                points: ((g.h - oy).div_ceil(g.stride), (g.w - ox).div_ceil(g.stride)),
                filters: FilterView {
                    base: ((group * kg * g.r + last(first_y, ty)) * g.s + last(first_x, tx)) * cg,
                    column: 1,
                    y: -((g.stride * g.s * cg) as isize),
                    x: -((g.stride * cg) as isize),
                    channel: g.filter_len(),
                },
                blocks: Blocks::new(isa, algorithm, ty * tx, kg, cg),
                algorithm,
            });
        }
        let (source, dest) = ((g.p, g.q, g.k), (g.h, g.w, g.c));
        Direct { isa, images: g.n, source, dest, step: g.stride, parts, w }
    }

    pub(crate) fn run(&self, src: &[f32], out: &mut [f32], epilogue: Epilogue) {
        let (height, width, channels) = self.dest;
        let (images, rows) = self.task();
        let (image, band) = (height * width * channels, rows * width * channels);
        let packed_len = self.parts.iter().map(Part::packed_len).sum();
        with_scratch(packed_len, |packed| {
            let mut rest = &mut *packed;
            for part in &self.parts {
                let (mine, others) = rest.split_at_mut(part.packed_len());
                part.pack(self.isa, self.w, mine);
                rest = others;
            }
            let packed = &*packed;
            out.par_chunks_mut(images * image).enumerate().for_each(|(i, out)| {
                // A task is some whole images, or a band of rows of one image.
                let bands = if images > 1 { out.len() } else { band };
                out.par_chunks_mut(bands).enumerate().for_each(|(j, out)| {
                    let start = i * images * image + j * bands;
                    let add = epilogue.add.map(|add| &add[start..start + out.len()]);
                    let count = out.len().div_ceil(image);
                    let rows = out.len() / (width * channels * count);
                    let mut task = Task {
                        direct: self,
                        src: &src[i * images * self.source_image()..][..count * self.source_image()],
                        images: count,
                        rows: (j * rows_per(bands, width * channels, images), rows),
                        out,
                        epilogue: Epilogue { add, ..epilogue },
                    };
                    task.run(packed);
                });
            });
        });
    }

    fn source_image(&self) -> usize {
        self.source.0 * self.source.1 * self.source.2
    }

    /// Images and destination rows of one task: enough pixels to pay for a pass over the filters, a scratch that stays
    /// in L2, and at least eight tasks where the batch allows.
    fn task(&self) -> (usize, usize) {
        let (height, width, _) = self.dest;
        if self.parts.iter().any(|part| part.algorithm == Algorithm::Winograd) {
            return conv_winograd::task((height, width), self.images);
        }
        let channels = self.parts.iter().map(|part| part.blocks.channels).max().unwrap_or(1);
        let source_row = (self.source.1 + 2) * channels;
        let per_row = source_row * self.source.0.div_ceil(height).max(1);
        let rows = (SCRATCH_FLOATS / per_row).max(4).next_multiple_of(self.step);
        if rows < height {
            return (1, rows);
        }
        let images = (TASK_PIXELS / (height * width)).min(rows / height).min(self.images.div_ceil(8));
        (images.max(1), height)
    }
}

/// Rows in a chunk of one image; whole images start at row 0 anyway.
fn rows_per(chunk: usize, row: usize, images: usize) -> usize {
    if images > 1 { 0 } else { chunk / row }
}

fn lattices(groups: usize, rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..groups).flat_map(move |g| (0..rows).flat_map(move |y| (0..cols).map(move |x| (g, y, x))))
}

/// For image rows offset, offset + stride, ...: the first filter tap that reaches them, how many do, and the output row
/// that the last of these reads for the first image row.
fn lattice_taps(offset: usize, taps: usize, stride: usize, pad: usize) -> (usize, usize, isize) {
    let first = (offset + pad) % stride;
    let count = taps.saturating_sub(first).div_ceil(stride);
    (first, count, ((offset + pad) / stride) as isize - count as isize + 1)
}

impl Part {
    /// Distance of neighbouring lattice points in the scratch image.
    pub(crate) fn scratch_stride(&self) -> usize {
        if self.taps == (1, 1) { 1 } else { self.stride }
    }

    pub(crate) fn packed_len(&self) -> usize {
        let plain = self.blocks.packed * self.blocks.channel_blocks * self.blocks.panels.len();
        if self.algorithm == Algorithm::Winograd { plain / 9 * POINTS } else { plain }
    }

    fn pack(&self, isa: Isa, w: &[f32], packed: &mut [f32]) {
        if self.algorithm == Algorithm::Winograd {
            let plain = packed.len() / POINTS * 9;
            with_scratch(plain, |taps| {
                self.pack_taps(isa, w, taps);
                let panel = self.blocks.packed / 9;
                let panels = packed.par_chunks_mut(panel * POINTS).zip(taps.par_chunks(panel * 9));
                panels.for_each(|(packed, taps)| simd_winograd::filter(isa, taps, packed));
            });
        } else if !packed.is_empty() {
            self.pack_taps(isa, w, packed);
        }
    }

    fn pack_taps(&self, isa: Isa, w: &[f32], packed: &mut [f32]) {
        let panels = &self.blocks.panels;
        packed.par_chunks_mut(self.blocks.packed).enumerate().for_each(|(i, packed)| {
            let (first_column, vecs) = panels[i % panels.len()];
            let first_channel = i / panels.len() * self.blocks.channels;
            let channels = self.blocks.channels.min(self.source.1 - first_channel);
            let width = vecs * isa.lanes();
            let columns = width.min(self.dest.1 - first_column);
            if columns < width || channels < self.blocks.channels {
                packed.fill(0.0);
            }
            let view = &self.filters;
            for (tap, packed) in
                packed.chunks_exact_mut(self.blocks.channels * width).take(self.taps.0 * self.taps.1).enumerate()
            {
                let (ty, tx) = ((tap / self.taps.1) as isize, (tap % self.taps.1) as isize);
                let base = view.base.wrapping_add_signed(ty * view.y + tx * view.x);
                let base = base + first_channel * view.channel + first_column * view.column;
                if view.column == 1 {
                    for (c, row) in packed.chunks_exact_mut(width).take(channels).enumerate() {
                        row[..columns].copy_from_slice(&w[base + c * view.channel..][..columns]);
                    }
                } else {
                    // Few channels at a time, so that the rows written stay in L1.
                    for first in (0..channels).step_by(32) {
                        let count = 32.min(channels - first);
                        for column in 0..columns {
                            let filter = &w[base + column * view.column + first..][..count];
                            let to = packed[first * width + column..].iter_mut().step_by(width);
                            to.zip(filter).for_each(|(to, &from)| *to = from);
                        }
                    }
                }
            }
        });
    }
}
