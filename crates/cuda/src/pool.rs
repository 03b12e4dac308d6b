//! Pooling: kernels/pool_*.cu.

use crate::binding::{Bind, Blocks, Divide, Operand, Tensor};
use crate::command::Address;
use bytemuck::{Pod, Zeroable};
use graph::PoolArgs;

/// `PoolArgs` of kernels/include/pool.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct WindowArgs {
    image: Operand,
    output: Operand,
    argmax: Address,
    packs: Divide,
    columns: Divide,
    rows: Divide,
    stride: Divide,
    threads: u32,
    h: u32,
    w: u32,
    p: u32,
    q: u32,
    c: u32,
    kernel: u32,
    pad: u32,
    scale: f32,
    pad_bytes: u32,
}
const _: () = assert!(size_of::<WindowArgs>() == 128);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GlobalArgs {
    image: Operand,
    output: Operand,
    packs: Divide,
    pixels_by: Divide,
    threads: u32,
    pixels: u32,
    c: u32,
    block_packs: u32,
    scale: f32,
    pad: u32,
}
const _: () = assert!(size_of::<GlobalArgs>() == 80);

/// Channels of a thread, and of the names of the f32, bf16 and general kernel the one that takes the operands. A byte array counts
/// with its alignment alone.
fn choose(operands: &[Tensor], names: [&'static str; 3]) -> (usize, &'static str) {
    let dtype = operands[0].dtype;
    let fits = |t: &Tensor| (!t.dtype.is_float() || t.dtype == dtype) && t.address.is_multiple_of(16);
    if operands[0].last().is_multiple_of(8) && operands.iter().all(fits) {
        (8, names[usize::from(operands[0].is_bf16())])
    } else {
        (1, names[2])
    }
}

fn u32_of(n: usize) -> u32 {
    u32::try_from(n).ok().filter(|&n| n < 1 << 31).expect("sizes below 2^31")
}

/// A pooling's operands: the image's side, the output's, and of a maximum where it was.
struct Operands {
    image: Tensor,
    output: Tensor,
    argmax: Option<Tensor>,
}

/// Launches a kernel of one thread per channels of a pixel of `over`.
fn windows(b: &mut Bind<'_>, pool: PoolArgs, operands: Operands, over: Tensor, names: [&'static str; 3]) {
    let Operands { image, output, argmax } = operands;
    let all: Vec<Tensor> = [Some(image), Some(output), argmax].into_iter().flatten().collect();
    let (channels, name) = choose(&all, names);
    let ([_, h, w, c], [_, p, q, _]) = (image.dims(), output.dims());
    let [_, rows, columns, _] = over.dims();
    let threads = over.elements() / channels;
    let args = WindowArgs {
        image: image.into(),
        output: output.into(),
        argmax: argmax.map_or(0, |t| t.address),
        packs: Divide::by(c / channels),
        columns: Divide::by(columns),
        rows: Divide::by(rows),
        stride: Divide::by(pool.stride),
        threads: u32_of(threads),
        h: u32_of(h),
        w: u32_of(w),
        p: u32_of(p),
        q: u32_of(q),
        c: u32_of(c),
        kernel: u32_of(pool.kernel),
        pad: u32_of(pool.pad),
        scale: 1.0 / (pool.kernel * pool.kernel) as f32,
        pad_bytes: 0,
    };
    b.kernel(name, b.grid(threads), &args);
}

/// x → y, argmax.
pub(crate) fn max(b: &mut Bind<'_>, args: PoolArgs) {
    let (image, output) = (b.input(0), b.output(0));
    let operands = Operands { image, output, argmax: Some(b.output(1)) };
    windows(b, args, operands, output, ["pool_max_f32", "pool_max_bf16", "pool_max_any"]);
}

/// dy, argmax → dx.
pub(crate) fn max_grad(b: &mut Bind<'_>, args: PoolArgs) {
    let (image, output) = (b.output(0), b.input(0));
    let operands = Operands { image, output, argmax: Some(b.input(1)) };
    windows(b, args, operands, image, ["pool_max_grad_f32", "pool_max_grad_bf16", "pool_max_grad_any"]);
}

/// x → y.
pub(crate) fn average(b: &mut Bind<'_>, args: PoolArgs) {
    let (image, output) = (b.input(0), b.output(0));
    let operands = Operands { image, output, argmax: None };
    windows(b, args, operands, output, ["pool_average_f32", "pool_average_bf16", "pool_average_any"]);
}

/// dy → dx.
pub(crate) fn average_grad(b: &mut Bind<'_>, args: PoolArgs) {
    let (image, output) = (b.output(0), b.input(0));
    let operands = Operands { image, output, argmax: None };
    windows(b, args, operands, image, ["pool_average_grad_f32", "pool_average_grad_bf16", "pool_average_grad_any"]);
}

/// Arguments of the kernels over all pixels, with a thread per `channels` of `over`.
fn global_args(image: Tensor, output: Tensor, channels: usize, over: Tensor) -> GlobalArgs {
    let [_, h, w, c] = image.dims();
    let packs = c / channels;
    GlobalArgs {
        image: image.into(),
        output: output.into(),
        packs: Divide::by(packs),
        pixels_by: Divide::by(h * w),
        threads: u32_of(over.elements() / channels),
        pixels: u32_of(h * w),
        c: u32_of(c),
        block_packs: u32_of(packs.div_ceil(packs.div_ceil(32))),
        scale: 1.0 / (h * w) as f32,
        pad: 0,
    }
}

/// [n,h,w,c] → [n,c].
pub(crate) fn global(b: &mut Bind<'_>) {
    let (image, output) = (b.input(0), b.output(0));
    let [n, c] = output.dims();
    let (channels, name) = choose(&[image, output], ["pool_global_f32", "pool_global_bf16", "pool_global_any"]);
    let args = global_args(image, output, channels, output);
    let blocks = match channels {
        1 => b.grid(n * c),
        // A row of threads takes at most 32 packs, so that eight rows share the pixels. NOTE: images are the grid's second axis.
        _ => Blocks { grid: [(args.c / 8).div_ceil(args.block_packs), u32_of(n), 1], block: 256, shared_bytes: 0 },
    };
    b.kernel(name, blocks, &args);
}

/// dy [n,c] → dx.
pub(crate) fn global_grad(b: &mut Bind<'_>) {
    let (image, output) = (b.output(0), b.input(0));
    let names = ["pool_global_grad_f32", "pool_global_grad_bf16", "pool_global_grad_any"];
    let (channels, name) = choose(&[image, output], names);
    let args = global_args(image, output, channels, image);
    b.kernel(name, b.grid(args.threads as usize), &args);
}
