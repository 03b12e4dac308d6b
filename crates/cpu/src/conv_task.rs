//! One piece of fprop or dgrad, computed by one thread.
//!
//! A block of channels of some images or rows is copied once into a zero-padded scratch image of at most about half of L2;
//! the kernel then walks taps × channels as runs of adjacent floats. A 1×1 filter of stride 1 reads the image itself.

use crate::conv::Epilogue;
use crate::conv_direct::{Direct, Part};
use crate::conv_winograd::Algorithm;
use crate::scratch::with_scratch;
use crate::simd::{self, Begin, GROUP, Output, Product, Rows};
use crate::simd_rows;

/// Some images, or some rows of one, of source and destination.
pub(crate) struct Task<'a> {
    pub(crate) direct: &'a Direct<'a>,
    pub(crate) src: &'a [f32],
    pub(crate) images: usize,
    /// First destination row and count, in each image.
    pub(crate) rows: (usize, usize),
    pub(crate) out: &'a mut [f32],
    pub(crate) epilogue: Epilogue<'a>,
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
    pub(crate) fn run(&mut self, packed: &[f32]) {
        let direct = self.direct;
        let Epilogue { bias, add, relu, round_bf16 } = self.epilogue;
        // Lattices that no filter tap reaches are cheaper filled all at once.
        let fill = bias.is_none() && !relu && !round_bf16 && direct.parts.iter().any(|part| part.taps == (0, 0));
        match add {
            _ if !fill => {}
            Some(add) => self.out.copy_from_slice(add),
            None => self.out.fill(0.0),
        }
        let mut rest = packed;
        for part in &direct.parts {
            let (mine, others) = rest.split_at(part.packed_len());
            rest = others;
            let step = direct.step;
            let first = self.rows.0 / step;
            let rows = (self.rows.0 + self.rows.1).saturating_sub(part.origin.0).div_ceil(step) - first;
            if rows * part.points.1 == 0 || fill && part.taps == (0, 0) {
                continue;
            }
            match part.algorithm {
                Algorithm::Winograd => self.winograd(part, mine, rows),
                Algorithm::Direct => self.part(part, mine, first, rows),
            }
        }
    }

    /// Lattice rows first .. first + rows of one part.
    fn part(&mut self, part: &Part, packed: &[f32], first: usize, rows: usize) {
        let direct = self.direct;
        let blocks = &part.blocks;
        let (left, ends) =
            if self.in_place(part, rows) { self.left_in_place(part) } else { self.left_in_scratch(part, first, rows) };
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
                        Some((_, sc)) => {
                            (0..part.taps.0).map(|ty| (ty * sc * blocks.channels, ty * run * width)).collect()
                        }
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
                        block,
                    };
                    self.tiles(pass);
                }
            }
        });
    }

    /// Whether the kernel may read the source itself: 1×1, stride 1, no padding, whole groups.
    fn in_place(&self, part: &Part, rows: usize) -> bool {
        let whole = (part.points.1, self.direct.step) == (self.direct.source.1, 1)
            && self.direct.source.0 == self.direct.dest.0;
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
                simd_rows::copy_rows(self.direct.isa, (to, block), (from, spacing * channels), count, inside - lo);
            }
        }
    }

    fn tiles(&mut self, pass: Pass) {
        let direct = self.direct;
        let (column, vecs) = pass.panel;
        let cols = (vecs * direct.isa.lanes()).min(pass.part.dest.1 - column);
        let last = pass.block + 1 == pass.part.blocks.channel_blocks;
        let epilogue = if last { self.epilogue.columns(pass.part.dest.0 + column) } else { Epilogue::default() };
        let product = Product {
            left: pass.left,
            rows: Rows::Strided { groups: pass.starts, row: pass.row },
            right: pass.right,
            right_step: vecs * direct.isa.lanes(),
            segments: pass.segments,
            steps: pass.steps,
            vecs,
        };
        let mut out = Output {
            data: &mut *self.out,
            groups: pass.ends,
            first: column,
            row: direct.step * direct.dest.2,
            cols,
            begin: Begin::after(pass.block),
            epilogue,
        };
        simd::product(direct.isa, &product, &mut out);
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
    block: usize,
}
