//! Images: crop, flip, normalise 8-bit pixels; patches exchanged within pairs, boxes pasted and erased.

use crate::elementwise::for_blocks;
use crate::io::{Io, Real};
use graph::ImageArgs;
use std::ops::Range;

/// The cells of a patch swap: which image a pixel comes from.
struct Cells<'a> {
    mask: &'a [u8],
    cell: usize,
    columns: usize,
    /// Cells and pairs.
    cells: usize,
    pairs: usize,
}

impl<'a> Cells<'a> {
    fn new(mask: &'a [u8], cell: usize, rows: usize, width: usize) -> Cells<'a> {
        let pairs = rows / 2;
        Cells { mask, cell, columns: width.div_ceil(cell), cells: mask.len() / pairs.max(1), pairs }
    }

    /// The stretches of row `h` of image `i`, and the image that each is taken from.
    fn stretches(&self, i: usize, h: usize, width: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let pair = i % self.pairs;
        let row = pair * self.cells + h / self.cell * self.columns;
        let other = if i < self.pairs { i + self.pairs } else { pair };
        (0..self.columns).map(move |column| {
            let from = if self.mask[row + column] != 0 { other } else { i };
            (from, column * self.cell..width.min((column + 1) * self.cell))
        })
    }
}

/// Where the crop of an image begins when no offset is given, as torchvision's CenterCrop: halves go to even.
fn centre(size: usize, crop: usize, pad: usize) -> isize {
    let room = (size + 2 * pad) as isize - crop as isize;
    if room < 0 { room / 2 } else { (room + room / 2 % 2) / 2 }
}

/// pixels, [crop], [flip] → image; with `cell`: …, mask, patches exchanged in the same pass.
pub(crate) fn input<T: Real>(io: &mut Io<'_>, args: &ImageArgs, cell: Option<usize>) {
    let (pixels, [n, h, w, c]) = (io.inputs[0].u8(), std::array::from_fn(|i| io.dims(0)[i]));
    let [out_h, out_w] = args.size;
    let mut rest = io.inputs[1..].iter();
    let crop = args.crop.then(|| rest.next().map_or(&[][..], |i| i.i32()));
    let flip = args.flip.then(|| rest.next().map_or(&[][..], |i| i.i32()));
    let cells = cell.and_then(|cell| Some(Cells::new(rest.next()?.u8(), cell, n, out_w)));
    let normalise =
        |i: usize| (T::of((i % 256) as f64) / T::of(255.0) - T::of(args.mean[i / 256])) / T::of(args.std[i / 256]);
    let table: Vec<T> = (0..256 * c).map(normalise).collect();
    let outside = |from: isize, size: usize| from < 0 || from >= size as isize;
    let offset = |i: usize, axis: usize| match crop {
        Some(crop) => crop[2 * i + axis] as isize,
        None => centre([h, w][axis], args.size[axis], args.pad),
    };
    // Columns `columns` of row `row` of image `i`, to the same place of `out`.
    let stretch = |out: &mut [T], i: usize, row: usize, columns: Range<usize>| {
        let from_row = row as isize + offset(i, 0) - args.pad as isize;
        let left = offset(i, 1) - args.pad as isize;
        let flipped = flip.is_some_and(|flip| flip[i] != 0);
        for (q, out) in columns.clone().zip(out[columns.start * c..columns.end * c].chunks_exact_mut(c)) {
            let from = left + if flipped { out_w - 1 - q } else { q } as isize;
            if outside(from_row, h) || outside(from, w) {
                out.iter_mut().enumerate().for_each(|(channel, out)| *out = table[256 * channel]);
                continue;
            }
            let pixel = &pixels[((i * h + from_row as usize) * w + from as usize) * c..][..c];
            let values = pixel.iter().enumerate().map(|(channel, &p)| table[256 * channel + usize::from(p)]);
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
        }
    };
    for_blocks(io.out::<T>(), out_h * out_w * c, |i, out| {
        for (row, out) in out.chunks_exact_mut(out_w * c).enumerate() {
            match &cells {
                Some(cells) => {
                    cells.stretches(i, row, out_w).for_each(|(from, columns)| stretch(out, from, row, columns))
                }
                None => stretch(out, i, row, 0..out_w),
            }
        }
    });
}

/// image [2n,h,w,c], mask [n,cells] → the image with masked cells exchanged.
pub(crate) fn patch_swap<T: Real>(io: &mut Io<'_>, cell: usize) {
    let (x, [n, h, w, c]) = (io.real::<T>(0), std::array::from_fn(|i| io.dims(0)[i]));
    let cells = Cells::new(io.inputs[1].u8(), cell, n, w);
    for_blocks(io.out::<T>(), h * w * c, |i, out| {
        for (row, out) in out.chunks_exact_mut(w * c).enumerate() {
            for (from, columns) in cells.stretches(i, row, w) {
                let source = &x[(from * h + row) * w * c..][..w * c];
                let part = columns.start * c..columns.end * c;
                out[part.clone()].copy_from_slice(&source[part]);
            }
        }
    });
}

/// The rows and columns of a box (top, left, bottom, right; the last two exclusive) that lie in an image.
fn clipped(cut: &[i32], h: usize, w: usize) -> [Range<usize>; 2] {
    let inside = |from: i32, to: i32, size: usize| {
        let [from, to] = [from, to].map(|x| usize::try_from(x).unwrap_or(0).min(size));
        from..to.max(from)
    };
    [inside(cut[0], cut[2], h), inside(cut[1], cut[3], w)]
}

/// image [n,h,w,c], permutation [n], box [4] → image with the box taken from image[permutation].
pub(crate) fn paste_box<T: Real>(io: &mut Io<'_>) {
    let (x, permutation) = (io.real::<T>(0), io.inputs[1].i32());
    let [h, w, c] = std::array::from_fn(|i| io.dims(0)[i + 1]);
    let [rows, columns] = clipped(io.inputs[2].i32(), h, w);
    let size = h * w * c;
    for_blocks(io.out::<T>(), size.max(1), |i, out| {
        out.copy_from_slice(&x[i * size..][..size]);
        for row in rows.clone() {
            let part = (row * w + columns.start) * c..(row * w + columns.end) * c;
            out[part.clone()].copy_from_slice(&x[permutation[i] as usize * size..][part]);
        }
    });
}

/// image [n,h,w,c], boxes [n,4] → image with the box of each row filled; a grey image takes the first value.
pub(crate) fn erase_boxes<T: Real>(io: &mut Io<'_>, fill: [f64; 3]) {
    let (x, boxes, fill) = (io.real::<T>(0), io.inputs[1].i32(), fill.map(T::of));
    let [h, w, c] = std::array::from_fn(|i| io.dims(0)[i + 1]);
    let size = h * w * c;
    for_blocks(io.out::<T>(), size.max(1), |i, out| {
        out.copy_from_slice(&x[i * size..][..size]);
        let [rows, columns] = clipped(&boxes[4 * i..][..4], h, w);
        for row in rows {
            let part = &mut out[(row * w + columns.start) * c..(row * w + columns.end) * c];
            part.chunks_exact_mut(c).for_each(|pixel| pixel.iter_mut().zip(fill).for_each(|(x, fill)| *x = fill));
        }
    });
}
