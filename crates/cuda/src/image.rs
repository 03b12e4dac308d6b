//! Images and rows mixed: kernels/image_*.cu, kernels/rows_mix.cu.

use crate::binding::{Bind, Divide, Operand, Tensor};
use crate::command::Address;
use crate::rows::{count, lanes, scatter, unit};
use bytemuck::{Pod, Zeroable};
use graph::ImageArgs;
use tensor::{Dtype, bf16};

/// The cells of a patch swap: `Cells` of kernels/include/cells.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Cells {
    mask: Address,
    units: Divide,
    rows: Divide,
    columns: u32,
    cells: u32,
    pairs: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Cells>() == 48);

impl Cells {
    /// Cells of `cell` rows and `units` units, in `images` images of `width` columns.
    fn new(mask: Tensor, [cell, units]: [usize; 2], images: usize, width: usize) -> Cells {
        let pairs = images / 2;
        Cells {
            mask: mask.address,
            units: Divide::by(units),
            rows: Divide::by(cell),
            columns: count(width.div_ceil(cell)),
            cells: count(mask.elements() / pairs.max(1)),
            pairs: count(pairs),
            pad: 0,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct InputArgs {
    pixels: Address,
    crop: Address,
    flip: Address,
    table: Address,
    image: Address,
    swap: Cells,
    units: Divide,
    rows: Divide,
    channels: Divide,
    n: u32,
    h: u32,
    w: u32,
    out_w: u32,
    origin: [i32; 2],
    pixel_channels: u32,
}
const _: () = assert!(size_of::<InputArgs>() == 152);

/// Where the crop of an image begins when no offset is given, as torchvision's CenterCrop: halves go to even.
fn centre(size: usize, crop: usize, pad: usize) -> i32 {
    let room = (size + 2 * pad) as i32 - crop as i32;
    if room < 0 { room / 2 } else { (room + room / 2 % 2) / 2 }
}

/// The input that a pixel of each value becomes, [channels][256].
fn table(b: &mut Bind<'_>, args: &ImageArgs, channels: usize, dtype: Dtype) -> Address {
    let (mean, std) = (args.mean.map(|x| x as f32), args.std.map(|x| x as f32));
    let entry = |i: usize| ((i % 256) as f32 / 255.0 - mean[i / 256]) / std[i / 256];
    let table: Vec<f32> = (0..256 * channels).map(entry).collect();
    match dtype {
        Dtype::Bf16 => b.table(&table.iter().map(|&x| bf16::from_f32(x).to_bits()).collect::<Vec<u16>>()),
        _ => b.table(&table),
    }
}

/// pixels, [crop], [flip] → image, in memory perhaps with a channel of zeros more; with `swap`, the cell's size: …, mask, patches exchanged in the same pass.
pub(crate) fn input(b: &mut Bind<'_>, args: &ImageArgs, swap: Option<usize>) {
    let (pixels, image) = (b.input(0), b.output(0));
    let [n, h, w, pixel_channels] = pixels.dims();
    let ([out_h, out_w], c) = (args.size, image.last());
    let mut rest = 1..;
    let mut next = |wanted: bool| if wanted { rest.next().map(|i| b.input(i)) } else { None };
    let (crop, flip, mask) = (next(args.crop), next(args.flip), next(swap.is_some()));
    let cell = swap.unwrap_or(out_w);
    let lanes = [lanes(&[image], out_w * c), lanes(&[image], cell * c)].into_iter().min().unwrap_or(1);
    let swap = mask.map_or(Cells::zeroed(), |mask| Cells::new(mask, [cell, cell * c / lanes], n, out_w));
    let address = |t: Option<Tensor>| t.map_or(0, |t| t.address);
    let origin = |size: usize, crop: usize| {
        let start = if args.crop { 0 } else { centre(size, crop, args.pad) };
        start - args.pad as i32
    };
    let kernel_args = InputArgs {
        pixels: pixels.address,
        crop: address(crop),
        flip: address(flip),
        table: table(b, args, pixel_channels, image.dtype),
        image: image.address,
        swap,
        units: Divide::by(out_w * c / lanes),
        rows: Divide::by(out_h),
        channels: Divide::by(c),
        n: count(image.elements() / lanes),
        h: count(h),
        w: count(w),
        out_w: count(out_w),
        origin: [origin(h, out_h), origin(w, out_w)],
        pixel_channels: count(pixel_channels),
    };
    let name = match (image.is_bf16(), lanes) {
        (false, 1) => "image_input_f32_one",
        (false, _) => "image_input_f32",
        (true, 1) => "image_input_bf16_one",
        (true, _) => "image_input_bf16",
    };
    b.kernel(name, b.grid(image.elements() / lanes), &kernel_args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SwapArgs {
    x: Address,
    y: Address,
    swap: Cells,
    units: Divide,
    rows: Divide,
    n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<SwapArgs>() == 96);

/// image [2n,h,w,c], mask [n,cells] → the image with masked cells exchanged.
pub(crate) fn patch_swap(b: &mut Bind<'_>, cell: usize) {
    let (x, mask, y) = (b.input(0), b.input(1), b.output(0));
    let [n, h, w, c] = x.dims();
    let pixel = c * x.dtype.size();
    let unit = unit([x.address, y.address, (w * pixel) as u64, (cell * pixel) as u64]);
    let args = SwapArgs {
        x: x.address,
        y: y.address,
        swap: Cells::new(mask, [cell, cell * pixel / unit], n, w),
        units: Divide::by(w * pixel / unit),
        rows: Divide::by(h),
        n: count(y.bytes() / unit),
        pad: 0,
    };
    let name = match unit {
        16 => "image_swap_16",
        4 => "image_swap_4",
        _ => "image_swap_2",
    };
    b.kernel(name, b.grid(y.bytes() / unit), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct MixArgs {
    x: Address,
    y: Address,
    permutation: Address,
    lambda: Operand,
    units: Divide,
    n: u32,
}
const _: () = assert!(size_of::<MixArgs>() == 56);

/// x, permutation, λ → λ x + (1 − λ) x[permutation].
pub(crate) fn mix(b: &mut Bind<'_>) {
    let (x, permutation, lambda, y) = (b.input(0), b.input(1), b.input(2), b.output(0));
    let row = x.elements() / permutation.elements().max(1);
    let lanes = lanes(&[x, y], row);
    let args = MixArgs {
        x: x.address,
        y: y.address,
        permutation: permutation.address,
        lambda: lambda.into(),
        units: Divide::by(row / lanes),
        n: count(y.elements() / lanes),
    };
    let name = match (y.is_bf16(), lanes) {
        (false, 1) => "rows_mix_f32_one",
        (false, _) => "rows_mix_f32",
        (true, 1) => "rows_mix_bf16_one",
        (true, _) => "rows_mix_bf16",
    };
    b.kernel(name, b.grid(y.elements() / lanes), &args);
}

/// dy, permutation, λ → dx[i] = λ dy[i] + Σ over j that took row i of (1 − λ) dy[j], j ascending.
pub(crate) fn mix_grad(b: &mut Bind<'_>) {
    let lambda = b.input(2);
    scatter(b, Some(lambda));
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BoxArgs {
    x: Address,
    y: Address,
    boxes: Address,
    permutation: Address,
    units: Divide,
    rows: Divide,
    channels: Divide,
    fill: [f32; 3],
    n: u32,
    w: u32,
    box_stride: u32,
    pad: u32,
}
const _: () = assert!(size_of::<BoxArgs>() == 96);

/// Input 0 with a box replaced: one box for all images, or one an image.
fn replace_box(b: &mut Bind<'_>, boxes: Tensor, permutation: Address, fill: [f64; 3]) {
    let (x, y) = (b.input(0), b.output(0));
    let [_, h, w, c] = x.dims();
    let lanes = lanes(&[x, y], w * c);
    let args = BoxArgs {
        x: x.address,
        y: y.address,
        boxes: boxes.address,
        permutation,
        units: Divide::by(w * c / lanes),
        rows: Divide::by(h),
        channels: Divide::by(c),
        fill: fill.map(|x| x as f32),
        n: count(y.elements() / lanes),
        w: count(w),
        box_stride: if permutation == 0 { 4 } else { 0 },
        pad: 0,
    };
    let name = match (y.is_bf16(), lanes) {
        (false, 1) => "image_box_f32_one",
        (false, _) => "image_box_f32",
        (true, 1) => "image_box_bf16_one",
        (true, _) => "image_box_bf16",
    };
    b.kernel(name, b.grid(y.elements() / lanes), &args);
}

/// image [n,h,w,c], permutation [n], box [4] → image with the box taken from image[permutation].
pub(crate) fn paste_box(b: &mut Bind<'_>) {
    replace_box(b, b.input(2), b.input(1).address, [0.0; 3]);
}

/// image [n,h,w,c], boxes [n,4] → image with the box of each row filled; a grey image takes the first value.
pub(crate) fn erase_boxes(b: &mut Bind<'_>, fill: [f64; 3]) {
    replace_box(b, b.input(1), 0, fill);
}
