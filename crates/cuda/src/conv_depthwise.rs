//! Depthwise convolutions, one filter a channel: kernels/conv_depthwise_*.cu.

use crate::binding::{Bind, Blocks, Divide, Tensor};
use crate::command::Address;
use crate::conv::{Problem, SumArgs, added};
use bytemuck::{Pod, Zeroable};
use graph::ConvArgs;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FpropArgs {
    x: Address,
    w: Address,
    add: Address,
    bias: Address,
    y: Address,
    a: Problem,
    relu: u32,
}
const _: () = assert!(size_of::<FpropArgs>() == 184);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct DgradArgs {
    dy: Address,
    w: Address,
    add: Address,
    dx: Address,
    a: Problem,
    by_hw: Divide,
    by_w: Divide,
    by_stride: Divide,
}
const _: () = assert!(size_of::<DgradArgs>() == 208);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct WgradArgs {
    dy: Address,
    x: Address,
    dw: Address,
    a: Problem,
    share: u32,
}
const _: () = assert!(size_of::<WgradArgs>() == 168);

/// Largest filter width of the gradient kernel.
const FILTER_COLUMNS: usize = 8;
const THREADS: u32 = 256;

/// Does the convolution have one filter a channel, narrow enough for these kernels?
pub(crate) fn takes(args: ConvArgs, x: Tensor, w: Tensor) -> bool {
    let ([.., c], [k, _, s, cg]) = (x.dims::<4>(), w.dims::<4>());
    cg == 1 && args.groups == c && k == c && s <= FILTER_COLUMNS
}

/// How a block's threads divide channels and pixels: with 16 bytes of channels each, or one.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    /// Channels and pixels of a block.
    channels: usize,
    rows: usize,
}

/// The variant of a kernel by dtype and alignment: `names` are bf16, f32, any bf16, any f32.
fn shape(names: [&'static str; 4], tensors: &[Tensor]) -> Shape {
    let bf16 = tensors[0].is_bf16();
    let lanes = if bf16 { 8 } else { 4 };
    let whole = tensors.iter().all(|t| t.last().is_multiple_of(lanes) && t.address.is_multiple_of(16));
    let name = names[usize::from(!bf16) + if whole { 0 } else { 2 }];
    let (chunks, lanes) = if whole { (8, lanes) } else { (32, 1) };
    Shape { name, channels: chunks * lanes, rows: THREADS as usize / chunks }
}

/// Blocks of pixels: at most 16 a multiprocessor, each thread several pixels of one filter load.
fn pixel_blocks(b: &Bind<'_>, pixels: usize, channel_blocks: usize, rows: usize) -> u32 {
    let most = (16 * b.sms as usize).div_ceil(channel_blocks).max(1);
    pixels.div_ceil(rows).min(most) as u32
}

/// x, w [c,r,s,1], [bias], [addend] → y.
pub(crate) fn fprop(b: &mut Bind<'_>, args: ConvArgs, relu: bool) {
    let (x, y, [bias, add]) = (b.input(0), b.output(0), added(b));
    let w = if x.is_bf16() { b.half(1) } else { b.input(1) };
    let a = Problem::new(x, w, y, args);
    let tensors: Vec<_> = [x, y].into_iter().chain(add).collect();
    let names = [
        "conv_depthwise_fprop_bf16",
        "conv_depthwise_fprop_f32",
        "conv_depthwise_fprop_any_bf16",
        "conv_depthwise_fprop_any_f32",
    ];
    let Shape { name, channels, rows } = shape(names, &tensors);
    let blocks = x.last().div_ceil(channels);
    let grid = [pixel_blocks(b, a.pixels(), blocks, rows), blocks as u32, 1];
    let shared_bytes = (a.taps() * channels * 4) as u32;
    let address = |t: Option<Tensor>| t.map_or(0, |t| t.address);
    let (add, bias) = (address(add), address(bias));
    let args = FpropArgs { x: x.address, w: w.address, add, bias, y: y.address, a, relu: u32::from(relu) };
    b.kernel(name, Blocks { grid, block: THREADS, shared_bytes }, &args);
}

/// dy, w, [dx of the other branch] → dx.
pub(crate) fn dgrad(b: &mut Bind<'_>, args: ConvArgs) {
    let (dy, dx, add) = (b.input(0), b.output(0), b.optional(2));
    let w = if dy.is_bf16() { b.half(1) } else { b.input(1) };
    let a = Problem::new(dx, w, dy, args);
    let tensors: Vec<_> = [dy, dx].into_iter().chain(add).collect();
    let names = [
        "conv_depthwise_dgrad_bf16",
        "conv_depthwise_dgrad_f32",
        "conv_depthwise_dgrad_any_bf16",
        "conv_depthwise_dgrad_any_f32",
    ];
    let Shape { name, channels, rows } = shape(names, &tensors);
    let [n, h, width, c] = dx.dims::<4>();
    let blocks = c.div_ceil(channels);
    let grid = [pixel_blocks(b, n * h * width, blocks, rows), blocks as u32, 1];
    let shared_bytes = (a.taps() * channels * 4) as u32;
    let (by_hw, by_w, by_stride) = (Divide::by(h * width), Divide::by(width), Divide::by(args.stride));
    let add = add.map_or(0, |t| t.address);
    let args = DgradArgs { dy: dy.address, w: w.address, add, dx: dx.address, a, by_hw, by_w, by_stride };
    b.kernel(name, Blocks { grid, block: THREADS, shared_bytes }, &args);
}

/// x, dy → dw in f32.
pub(crate) fn wgrad(b: &mut Bind<'_>, args: ConvArgs) {
    let (x, dy, dw) = (b.input(0), b.input(1), b.output(0));
    let a = Problem::new(x, dw, dy, args);
    let names = [
        "conv_depthwise_wgrad_bf16",
        "conv_depthwise_wgrad_f32",
        "conv_depthwise_wgrad_any_bf16",
        "conv_depthwise_wgrad_any_f32",
    ];
    let Shape { name, channels, rows } = shape(names, &[x, dy]);
    let [_, r, ..] = dw.dims::<4>();
    let blocks = x.last().div_ceil(channels);
    // Splits fill the device, at most 64, each thread at least 8 pixels.
    let splits = (8 * b.sms as usize).div_ceil(blocks * r).clamp(1, 64);
    let share = a.pixels().div_ceil(splits).max(8 * rows);
    let splits = a.pixels().div_ceil(share).max(1);
    let elements = dw.elements();
    let partial = if splits > 1 { b.scratch(0, splits * elements * 4) } else { dw.address };
    let args = WgradArgs { dy: dy.address, x: x.address, dw: partial, a, share: share as u32 };
    let grid = [splits as u32, blocks as u32, r as u32];
    b.kernel(name, Blocks { grid, block: THREADS, shared_bytes: (rows * channels * 4) as u32 }, &args);
    if splits > 1 {
        let sum = SumArgs { partial, dw: dw.address, n: elements as u32, splits: splits as u32 };
        b.kernel("conv_wgrad_sum", b.grid(elements), &sum);
    }
}
