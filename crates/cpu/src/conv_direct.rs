//! fprop and dgrad: a GEMM over pixels whose left factor is read straight from the image (implicit im2col).
//!
//! A block of channels of some images or rows is copied once into a zero-padded scratch image of at most about half of L2;
//! the kernel then walks taps × channels as runs of adjacent floats. Filters are packed once per call into panels
//! [channel block][panel][tap y][tap x][channel][column]. A 1×1 filter of stride 1 reads the image itself.
//! dgrad is the same with flipped filters; stride s splits it into s² lattices of image pixels, each a stride-1 problem.

use rayon::prelude::*;

use crate::conv::{Conv, Epilogue};
use crate::scratch::with_scratch;
use crate::simd::{self, GROUP, Isa, Output, Product, Rows};

/// Floats of a scratch image, about half of a 1.25 MB L2.
const SCRATCH_FLOATS: usize = 160 * 1024;
/// Taps × channels of one pass over a tile: with 32 columns the panel stays near L1.
const REDUCTION: usize = 576;
/// Pixels a task should have for its pass over the filters.
const TASK_PIXELS: usize = 256;

/// A correlation written to a lattice of the destination: out[oy + i·step, ox + j·step, k0 + k] =
/// Σ src[i·stride + top + ty, j·stride + left + tx, c0 + c] · w[k, ty, tx, c].
struct Part {
    top: isize,
    left: isize,
    stride: usize,
    taps: (usize, usize),
    /// First channel and count, in the source and in the destination.
    source: (usize, usize),
    dest: (usize, usize),
    origin: (usize, usize),
    /// Lattice points in the whole destination image.
    points: (usize, usize),
    filters: FilterView,
    blocks: Blocks,
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
struct Blocks {
    channels: usize,
    channel_blocks: usize,
    /// First column and vectors of each panel.
    panels: Vec<(usize, usize)>,
    /// Floats of one packed (channel block, panel).
    packed: usize,
}

impl Blocks {
    fn new(isa: Isa, taps: usize, channels: usize, columns: usize) -> Blocks {
        let most = if taps == 0 { channels } else { (REDUCTION / taps).max(8) };
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
    isa: Isa,
    images: usize,
    /// Height, width, channels.
    source: (usize, usize, usize),
    dest: (usize, usize, usize),
    /// Lattice spacing in the destination.
    step: usize,
    parts: Vec<Part>,
    w: &'w [f32],
}

impl<'w> Direct<'w> {
    pub(crate) fn fprop(conv: &Conv, w: &'w [f32]) -> Direct<'w> {
        let (g, isa) = (&conv.geom, conv.isa);
        let (cg, kg) = (g.c / g.groups, g.k / g.groups);
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
            blocks: Blocks::new(isa, g.r * g.s, cg, kg),
        });
        let (source, dest) = ((g.h, g.w, g.c), (g.p, g.q, g.k));
        Direct { isa, images: g.n, source, dest, step: 1, parts: parts.collect(), w }
    }

    pub(crate) fn dgrad(conv: &Conv, w: &'w [f32]) -> Direct<'w> {
        let (g, isa) = (&conv.geom, conv.isa);
        let (cg, kg) = (g.c / g.groups, g.k / g.groups);
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
                blocks: Blocks::new(isa, ty * tx, kg, cg),
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
    fn packed_len(&self) -> usize {
        self.blocks.packed * self.blocks.channel_blocks * self.blocks.panels.len()
    }

    fn pack(&self, isa: Isa, w: &[f32], packed: &mut [f32]) {
        if packed.is_empty() {
            return;
        }
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
            for (tap, packed) in packed.chunks_exact_mut(self.blocks.channels * width).take(self.taps.0 * self.taps.1).enumerate() {
                let (ty, tx) = ((tap / self.taps.1) as isize, (tap % self.taps.1) as isize);
                let base = view.base.wrapping_add_signed(ty * view.y + tx * view.x);
                let base = base + first_channel * view.channel + first_column * view.column;
                if view.column == 1 {
                    for (c, row) in packed.chunks_exact_mut(width).take(channels).enumerate() {
                        row[..columns].copy_from_slice(&w[base + c * view.channel..][..columns]);
                    }
                } else {
                    for column in 0..columns {
                        let filter = &w[base + column * view.column..][..channels];
                        packed[column..].iter_mut().step_by(width).zip(filter).for_each(|(to, &from)| *to = from);
                    }
                }
            }
        });
    }
}

/// One piece of the destination, computed by one thread.
struct Task<'a> {
    direct: &'a Direct<'a>,
    src: &'a [f32],
    images: usize,
    /// First destination row and count, in each image.
    rows: (usize, usize),
    out: &'a mut [f32],
    epilogue: Epilogue<'a>,
}

/// The left factor of a task: groups of four pixels of a slice.
struct Left {
    /// Offset of each group's first pixel.
    starts: Vec<usize>,
    /// Floats between pixels of a group.
    row: usize,
    /// Scratch rows and columns; none where the source itself is read.
    scratch: Option<(usize, usize)>,
}

impl Task<'_> {
    fn run(&mut self, packed: &[f32]) {
        let direct = self.direct;
        let mut rest = packed;
        for part in &direct.parts {
            let (mine, others) = rest.split_at(part.packed_len());
            rest = others;
            let step = direct.step;
            let first = self.rows.0 / step;
            let rows = (self.rows.0 + self.rows.1).saturating_sub(part.origin.0).div_ceil(step) - first;
            if rows * part.points.1 > 0 {
                self.part(part, mine, first, rows);
            }
        }
    }

    /// Lattice rows first .. first + rows of one part.
    fn part(&mut self, part: &Part, packed: &[f32], first: usize, rows: usize) {
        let direct = self.direct;
        let blocks = &part.blocks;
        let (left, ends) = if self.in_place(part, rows) {
            self.left_in_place(part)
        } else {
            self.left_in_scratch(part, first, rows)
        };
        let slack = GROUP * left.row + part.taps.1 * blocks.channels;
        let scratch_len = left.scratch.map_or(0, |(sr, sc)| self.images * sr * sc * blocks.channels + slack);
        with_scratch(scratch_len, |scratch| {
            for block in 0..blocks.channel_blocks {
                let first_channel = block * blocks.channels;
                let channels = blocks.channels.min(part.source.1 - first_channel);
                if let Some(shape) = left.scratch {
                    self.fill(part, (first, first_channel), shape, scratch);
                }
                for (i, &panel) in blocks.panels.iter().enumerate() {
                    let packed = &packed[(block * blocks.panels.len() + i) * blocks.packed..][..blocks.packed];
                    let width = panel.1 * direct.isa.lanes();
                    let run = part.taps.1 * blocks.channels;
                    let segments: Vec<(usize, usize)> = match left.scratch {
                        Some((_, sc)) => (0..part.taps.0).map(|ty| (ty * sc * blocks.channels, ty * run * width)).collect(),
                        None => vec![(part.source.0 + first_channel, 0)],
                    };
                    let pass = Pass {
                        left: if left.scratch.is_some() { scratch } else { self.src },
                        starts: &left.starts,
                        row: left.row,
                        ends: &ends,
                        right: packed,
                        segments: &segments,
                        steps: if left.scratch.is_some() { run } else { channels },
                        panel,
                        part,
                        first: block == 0,
                        last: block + 1 == blocks.channel_blocks,
                    };
                    self.tiles(pass);
                }
            }
        });
    }

    /// Whether the kernel may read the source itself: 1×1, stride 1, no padding, whole groups.
    fn in_place(&self, part: &Part, rows: usize) -> bool {
        let whole = (part.points.1, self.direct.step) == (self.direct.source.1, 1) && self.direct.source.0 == self.direct.dest.0;
        let aligned = (self.images * rows * part.points.1).is_multiple_of(GROUP);
        part.taps == (1, 1) && part.stride == 1 && (part.top, part.left) == (0, 0) && whole && aligned
    }

    fn left_in_place(&self, part: &Part) -> (Left, Vec<(usize, usize)>) {
        let (_, width, channels) = self.direct.source;
        let out_channels = self.direct.dest.2;
        let first = self.rows.0 * width;
        let pixels = (0..self.images * self.rows.1 * width).step_by(GROUP);
        let starts = pixels.clone().map(|pixel| (first + pixel) * channels).collect();
        let ends = pixels.map(|pixel| (pixel * out_channels + part.dest.0, GROUP)).collect();
        (Left { starts, row: channels, scratch: None }, ends)
    }

    fn left_in_scratch(&self, part: &Part, first: usize, rows: usize) -> (Left, Vec<(usize, usize)>) {
        let (height, width, channels) = self.direct.dest;
        let (step, stride) = (self.direct.step, part.scratch_stride());
        let cols = part.points.1;
        let reach = |points: usize, taps: usize| if taps == 0 { 0 } else { (points - 1) * stride + taps };
        let (sr, sc) = (reach(rows, part.taps.0), reach(cols, part.taps.1));
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for (image, i) in (0..self.images).flat_map(|image| (0..rows).map(move |i| (image, i))) {
            let out_row = image * height + part.origin.0 + (first + i) * step - self.rows.0;
            for j in (0..cols).step_by(GROUP) {
                starts.push(((image * sr + i * stride) * sc + j * stride) * part.blocks.channels);
                let pixel = out_row * width + part.origin.1 + j * step;
                ends.push((pixel * channels + part.dest.0, GROUP.min(cols - j)));
            }
        }
        (Left { starts, row: stride * part.blocks.channels, scratch: Some((sr, sc)) }, ends)
    }

    /// Copies one channel block of the source rows the lattice rows need, with zeros around; `at`: first lattice row,
    /// first channel.
    fn fill(&self, part: &Part, at: (usize, usize), shape: (usize, usize), scratch: &mut [f32]) {
        let (height, width, channels) = self.direct.source;
        let block = part.blocks.channels;
        let count = block.min(part.source.1 - at.1);
        // A lone tap needs only every stride-th pixel.
        let spacing = part.stride / part.scratch_stride();
        let lo = (-part.left).max(0).unsigned_abs().div_ceil(spacing).min(shape.1);
        let inside = (width as isize - part.left).max(0).unsigned_abs().div_ceil(spacing).min(shape.1).max(lo);
        for (row, to) in scratch.chunks_exact_mut((shape.1 * block).max(1)).take(self.images * shape.0).enumerate() {
            let h = (at.0 * part.stride + row % shape.0 * spacing) as isize + part.top;
            if h < 0 || h >= height as isize {
                to.fill(0.0);
                continue;
            }
            if count < block {
                to.fill(0.0);
            }
            to[..lo * block].fill(0.0);
            to[inside * block..].fill(0.0);
            let pixel = (row / shape.0 * height + h as usize) * width;
            let from = pixel as isize + part.left + (lo * spacing) as isize;
            if inside > lo {
                let from = &self.src[from as usize * channels + part.source.0 + at.1..];
                let to = &mut to[lo * block..inside * block];
                simd::copy_rows(self.direct.isa, (to, block), (from, spacing * channels), count, inside - lo);
            }
        }
    }

    fn tiles(&mut self, pass: Pass) {
        let direct = self.direct;
        let (column, vecs) = pass.panel;
        let cols = (vecs * direct.isa.lanes()).min(pass.part.dest.1 - column);
        let bias = self.epilogue.bias.filter(|_| pass.last);
        let count = pass.starts.len();
        let tiles = count.div_ceil(direct.isa.max_groups(vecs));
        for i in 0..tiles {
            let range = i * count / tiles..(i + 1) * count / tiles;
            let product = Product {
                left: pass.left,
                rows: Rows::Strided { groups: &pass.starts[range.clone()], row: pass.row },
                right: pass.right,
                right_step: vecs * direct.isa.lanes(),
                segments: pass.segments,
                steps: pass.steps,
                vecs,
            };
            let mut out = Output {
                data: &mut *self.out,
                groups: &pass.ends[range],
                first: column,
                row: direct.step * direct.dest.2,
                cols,
                accumulate: !pass.first,
                bias: bias.map(|bias| &bias[pass.part.dest.0 + column..]),
                add: self.epilogue.add.filter(|_| pass.last),
                relu: self.epilogue.relu && pass.last,
                round_bf16: self.epilogue.round_bf16 && pass.last,
            };
            simd::tile(direct.isa, &product, &mut out);
        }
    }
}

impl Part {
    /// Distance of neighbouring lattice points in the scratch image.
    fn scratch_stride(&self) -> usize {
        if self.taps == (1, 1) { 1 } else { self.stride }
    }
}

/// One channel block × one panel over all pixels of a task.
struct Pass<'a> {
    left: &'a [f32],
    starts: &'a [usize],
    row: usize,
    ends: &'a [(usize, usize)],
    right: &'a [f32],
    segments: &'a [(usize, usize)],
    steps: usize,
    panel: (usize, usize),
    part: &'a Part,
    first: bool,
    last: bool,
}
