//! Losses: softmax (kernels/loss_softmax.cu), squared error (loss_squared.cu); row losses are in `loss_rows`.

use crate::binding::{Bind, Blocks, Operand, Tensor};
use crate::command::Address;
pub(crate) use crate::loss_rows::{gradient, table, value};
use crate::scalars::{Divisor, Weight};
use bytemuck::{Pod, Zeroable};

/// Widest rows that a warp works on alone.
const WARP_CLASSES: usize = 128;

/// The kernel and the block of rows of `classes`: a warp or 256 threads a row.
pub(crate) fn row_kernel(classes: usize, [warp, block]: [&'static str; 2]) -> (&'static str, u32) {
    if classes <= WARP_CLASSES { (warp, 32) } else { (block, 256) }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SoftmaxArgs {
    x: Address,
    y: Address,
    classes: u32,
    stride: u32,
    tau: f32,
    scale: f32,
}
const _: () = assert!(size_of::<SoftmaxArgs>() == 32);

/// scale · softmax(x / temperature), rows `stride` elements apart at `y`.
pub(crate) fn softmax_rows(b: &mut Bind<'_>, x: Tensor, y: (Address, usize), [temperature, scale]: [f64; 2]) {
    let [rows, classes] = x.dims();
    let (name, block) = row_kernel(classes, ["loss_softmax_warp", "loss_softmax_block"]);
    let args = SoftmaxArgs {
        x: x.address,
        y: y.0,
        classes: classes as u32,
        stride: y.1 as u32,
        tau: temperature as f32,
        scale: scale as f32,
    };
    b.kernel(name, Blocks::line(rows, block), &args);
}

pub(crate) fn softmax(b: &mut Bind<'_>, temperature: f64) {
    let (x, y) = (b.input(0), b.output(0));
    softmax_rows(b, x, (y.address, y.last()), [temperature, 1.0]);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SquaredArgs {
    a: Operand,
    b: Operand,
    y: Operand,
    partial: Address,
    value: Address,
    weight: Weight,
    divisor: Divisor,
    scalars: Address,
    n: u32,
    aligned: u32,
    blocks: u32,
    pad: u32,
}
const _: () = assert!(size_of::<SquaredArgs>() == 128);

/// What both squared errors have in common; `blocks` is given by the number of elements alone, as the order of the sum is.
fn squared_args(b: &Bind<'_>, divisor: graph::Divisor) -> SquaredArgs {
    let (x, other) = (b.input(0), b.optional(1));
    let aligned = [Some(x), other, Some(b.output(0))].iter().flatten().all(|t| t.address % 16 == 0);
    SquaredArgs {
        a: x.into(),
        b: other.map_or(Operand::NONE, Operand::from),
        y: Operand::NONE,
        partial: 0,
        value: 0,
        weight: graph::Weight::from(0.0).into(),
        divisor: divisor.into(),
        scalars: b.scalars(),
        n: u32::try_from(x.elements()).expect("fewer than 2^32 elements"),
        aligned: u32::from(aligned),
        blocks: x.elements().div_ceil(256 * 8 * 4).clamp(1, 1024) as u32,
        pad: 0,
    }
}

/// a, [b] → Σ (a − b)² / divisor.
pub(crate) fn squared_error(b: &mut Bind<'_>, divisor: graph::Divisor) {
    let mut args = squared_args(b, divisor);
    args.partial = b.scratch(0, args.blocks as usize * 8);
    args.value = b.output(0).address;
    b.kernel("loss_squared_partial", Blocks::line(args.blocks as usize, 256), &args);
    b.kernel("loss_squared_value", Blocks::line(1, 256), &args);
}

/// a, [b] → 2 weight (a − b) / divisor.
pub(crate) fn squared_error_grad(b: &mut Bind<'_>, divisor: graph::Divisor, weight: graph::Weight) {
    let (mut args, y) = (squared_args(b, divisor), b.output(0));
    (args.y, args.weight) = (y.into(), weight.into());
    b.kernel("loss_squared_grad", b.grid(y.elements().div_ceil(8)), &args);
}
