//! Matrix products, and a bias and its gradient: kernels/matmul.cu and kernels/matmul_columns.cu.

use crate::binding::{Bind, Blocks, Divide, Math, Operand, Tensor};
use crate::command::Address;
use crate::update::f32_address;
use bytemuck::{Pod, Zeroable};
use graph::MatmulArgs;
use tensor::Dtype;

/// Rows and columns of a block's tile of the product, and the length of a step along k.
const TILE: usize = 64;
const STEP: usize = 32;
/// Steps of a slice of k at least, so that its partial sums cost less than they save, and slices at most.
const SLICE_STEPS: usize = 4;
const SLICES: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Factor {
    address: Address,
    dtype: u32,
    k_last: u32,
    vector: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Factor>() == 24);

impl Factor {
    fn new(t: Tensor, k_last: bool) -> Factor {
        let Tensor { address, .. } = t;
        let vector = is_aligned(t).into();
        Factor { address, dtype: t.is_bf16().into(), k_last: k_last.into(), vector, pad: 0 }
    }
}

/// Whether every row begins at a multiple of 16 bytes.
fn is_aligned(t: Tensor) -> bool {
    t.address.is_multiple_of(16) && (t.last() * t.dtype.size()).is_multiple_of(16)
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    a: Factor,
    b: Factor,
    c: Operand,
    bias: Operand,
    partials: Address,
    m: u32,
    n: u32,
    k: u32,
    steps_per_slice: u32,
}
const _: () = assert!(size_of::<Args>() == 104);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SlicesArgs {
    partials: Address,
    c: Operand,
    bias: Operand,
    n: Divide,
    elements: u32,
    slices: u32,
    pad: u32,
}
const _: () = assert!(size_of::<SlicesArgs>() == 64);

fn size(n: usize) -> u32 {
    u32::try_from(n).expect("a size of 32 bits")
}

/// Slices of k and steps of each: one slice where the tiles alone fill the device, else two blocks a multiprocessor.
fn slices(tiles: usize, steps: usize, sms: usize) -> (usize, usize) {
    let wanted = if tiles >= sms { 1 } else { (2 * sms / tiles.max(1)).min(steps / SLICE_STEPS).clamp(1, SLICES) };
    let each = steps.div_ceil(wanted).max(1);
    (steps.div_ceil(each).max(1), each)
}

/// The kernel of a product. As on the CPU: one bf16 operand or result makes it a product of bf16 factors.
fn kernel(dtypes: [Dtype; 3], math: Math) -> &'static str {
    match math {
        _ if dtypes.contains(&Dtype::Bf16) => "matmul_bf16",
        Math::F32 => "matmul_f32",
        Math::Tf32 => "matmul_tf32",
    }
}

/// a, b, [bias] → c.
pub(crate) fn matmul(b: &mut Bind<'_>, args: MatmulArgs) {
    let (left, right, c) = (b.input(0), b.input(1), b.output(0));
    let [m, n] = c.dims();
    let k = left.shape[usize::from(!args.ta)];
    let tiles = [m.div_ceil(TILE), n.div_ceil(TILE)];
    let (slices, each) = slices(tiles[0] * tiles[1], k.div_ceil(STEP), b.sms as usize);
    let bias = b.optional(2).map_or(Operand::NONE, Operand::from);
    let partials = if slices > 1 { b.scratch(0, slices * c.elements() * 4) } else { 0 };
    let name = kernel([left.dtype, right.dtype, c.dtype], b.math);
    let launch = Args {
        a: Factor::new(left, !args.ta),
        b: Factor::new(right, args.tb),
        c: c.into(),
        bias,
        partials,
        m: size(m),
        n: size(n),
        k: size(k),
        steps_per_slice: size(each),
    };
    let grid = [size(tiles[0]), size(tiles[1]), size(slices)];
    b.kernel(name, Blocks { grid, block: 128, shared_bytes: 0 }, &launch);
    if slices > 1 {
        let (elements, slices) = (size(c.elements()), size(slices));
        let sum = SlicesArgs { partials, c: c.into(), bias, n: Divide::by(n), elements, slices, pad: 0 };
        b.kernel("matmul_slices", b.grid(c.elements()), &sum);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BiasArgs {
    x: Address,
    bias: Address,
    y: Address,
    packs_per_row: Divide,
    packs: u32,
}
const _: () = assert!(size_of::<BiasArgs>() == 40);

/// Elements that a thread reads at once.
fn width(x: Tensor) -> usize {
    if is_aligned(x) { 16 / x.dtype.size() } else { 1 }
}

/// x [..,c], bias [c] → x + bias.
pub(crate) fn add_bias(b: &mut Bind<'_>) {
    let (x, bias, y) = (b.input(0), f32_address(b.input(1)), b.output(0));
    let width = width(x).min(width(y));
    let name = match (x.is_bf16(), width > 1) {
        (false, true) => "matmul_columns_bias_f32",
        (true, true) => "matmul_columns_bias_bf16",
        (false, false) => "matmul_columns_bias_any_f32",
        (true, false) => "matmul_columns_bias_any_bf16",
    };
    let (packs, packs_per_row) = (x.elements() / width, Divide::by(x.last() / width));
    let args = BiasArgs { x: x.address, bias, y: y.address, packs_per_row, packs: size(packs) };
    b.kernel(name, b.grid(packs), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ColumnSumArgs {
    x: Address,
    sums: Address,
    rows: u32,
    c: u32,
    rows_per_block: u32,
    pad: u32,
}
const _: () = assert!(size_of::<ColumnSumArgs>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ColumnFinishArgs {
    partials: Address,
    sums: Address,
    slices: u32,
    c: u32,
}
const _: () = assert!(size_of::<ColumnFinishArgs>() == 24);

/// Columns of a block; rows of a block at least, and slices of the rows at most.
const COLUMNS: usize = 64;
const SLICE_ROWS: usize = 128;
const ROW_SLICES: usize = 256;

/// Slices of the rows and rows of each: four blocks a multiprocessor where there are rows enough.
fn row_slices(rows: usize, column_tiles: usize, sms: usize) -> (usize, usize) {
    let wanted = (4 * sms / column_tiles.max(1)).min(rows / SLICE_ROWS).clamp(1, ROW_SLICES);
    let each = rows.div_ceil(wanted).max(1);
    (rows.div_ceil(each).max(1), each)
}

/// x [..,c] → [c] in f32.
pub(crate) fn column_sum(b: &mut Bind<'_>) {
    let (x, y) = (b.input(0), f32_address(b.output(0)));
    let c = x.last();
    let (rows, tiles) = (x.elements() / c.max(1), c.div_ceil(COLUMNS));
    let (slices, each) = row_slices(rows, tiles, b.sms as usize);
    let sums = if slices > 1 { b.scratch(0, slices * c * 4) } else { y };
    let name = match (x.is_bf16(), width(x) > 1) {
        (false, true) => "matmul_columns_sum_f32",
        (true, true) => "matmul_columns_sum_bf16",
        (false, false) => "matmul_columns_sum_any_f32",
        (true, false) => "matmul_columns_sum_any_bf16",
    };
    let args = ColumnSumArgs { x: x.address, sums, rows: size(rows), c: size(c), rows_per_block: size(each), pad: 0 };
    b.kernel(name, Blocks { grid: [size(tiles), size(slices), 1], block: 256, shared_bytes: 0 }, &args);
    if slices > 1 {
        let args = ColumnFinishArgs { partials: sums, sums: y, slices: size(slices), c: size(c) };
        b.kernel("matmul_columns_finish", Blocks::line(c.div_ceil(32), 256), &args);
    }
}

#[cfg(test)]
mod tests {
    use super::{row_slices, slices};

    /// Slices are not empty and cover all; few tiles and much k are cut, many tiles or little k are not.
    #[test]
    fn cuts() {
        for (tiles, steps, sms) in [(1, 688, 132), (64, 64, 132), (132, 64, 132), (3, 7, 132), (3, 9, 132), (1, 0, 1)] {
            let (slices, each) = slices(tiles, steps, sms);
            assert!(slices * each >= steps && (slices - 1) * each < steps.max(1), "{tiles} {steps} {sms}");
        }
        assert_eq!(slices(1, 688, 132), (32, 22));
        assert_eq!(slices(64, 64, 132), (4, 16)); // ResNet-50's classifier at batch 256
        assert_eq!(slices(132, 64, 132), (1, 64));
        assert_eq!(slices(3, 7, 132), (1, 7));
        assert_eq!(row_slices(256, 16, 132), (2, 128));
        assert_eq!(row_slices(255, 16, 132), (1, 255));
        assert_eq!(row_slices(1 << 20, 1, 132), (256, 4096));
        assert_eq!(row_slices(1 << 20, 32, 132).0, 16);
    }
}
