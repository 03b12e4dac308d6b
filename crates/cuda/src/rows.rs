//! Rows and channels moved about, of any dtype: kernels/rows_*.cu.

use crate::binding::{Bind, Blocks, Divide, Operand, Tensor};
use crate::command::Address;
use bytemuck::{Pod, Zeroable};
use graph::Axis;
use tensor::{Dtype, Shape};

/// The largest unit, 16, 4, 2 or 1 bytes, that divides addresses and sizes.
pub(crate) fn unit(of: impl IntoIterator<Item = u64>) -> usize {
    match of.into_iter().fold(0, |all, x| all | x).trailing_zeros() {
        0 => 1,
        1 => 2,
        2 | 3 => 4,
        _ => 16,
    }
}

/// A number of units or elements, as kernels count them.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).ok().filter(|&n| n < 1 << 31).expect("fewer than 2^31 units")
}

/// Elements of 16 bytes if a row of `row` elements and the tensors' memory can be cut into such; else 1.
pub(crate) fn lanes(tensors: &[Tensor], row: usize) -> usize {
    let size = tensors[0].dtype.size();
    let whole = unit(tensors.iter().map(|t| t.address).chain([(row * size) as u64])) == 16;
    if whole { 16 / size } else { 1 }
}

/// Columns of a row that is put together; all in bytes.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// 0: zeros.
    from: Address,
    begin: usize,
    /// Bytes between rows of `from`.
    stride: usize,
}

/// Rows put together from columns of other rows; all in bytes.
#[derive(Debug)]
struct Move<'a> {
    parts: &'a [Part],
    to: Address,
    rows: usize,
    width: usize,
    source_rows: usize,
    /// i32 [rows]: which row of the source, instead of the same.
    index: Address,
    /// Scalars, where the source is a rolling state.
    scalars: Address,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PartArgs {
    from: Address,
    begin: u32,
    stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct MoveArgs {
    parts: [PartArgs; 4],
    to: Address,
    index: Address,
    scalars: Address,
    columns: Divide,
    stride: u32,
    n: u32,
    source_rows: u32,
}
const _: () = assert!(size_of::<MoveArgs>() == 112);

/// A kernel moves four parts.
fn move_rows(b: &mut Bind<'_>, m: &Move<'_>) {
    for (k, parts) in m.parts.chunks(4).enumerate() {
        let begin = parts[0].begin;
        let end = m.parts.get(4 * k + 4).map_or(m.width, |next| next.begin);
        let to = m.to + begin as Address;
        let sizes = parts.iter().flat_map(|p| [p.from, (p.begin - begin) as u64, p.stride as u64]);
        let unit = unit(sizes.chain([to, m.width as u64, (end - begin) as u64]));
        let mut args = MoveArgs {
            parts: [PartArgs { from: 0, begin: u32::MAX, stride: 0 }; 4],
            to,
            index: m.index,
            scalars: m.scalars,
            columns: Divide::by((end - begin) / unit),
            stride: count(m.width / unit),
            n: count(m.rows * ((end - begin) / unit)),
            source_rows: count(m.source_rows),
        };
        for (to, p) in args.parts.iter_mut().zip(parts) {
            *to = PartArgs { from: p.from, begin: count((p.begin - begin) / unit), stride: count(p.stride / unit) };
        }
        let name = match unit {
            16 => "rows_move_16",
            4 => "rows_move_4",
            2 => "rows_move_2",
            _ => "rows_move_1",
        };
        b.kernel(name, b.grid((args.n as usize).div_ceil(4)), &args);
    }
}

/// Bytes of a row: what lies under one index of the first axis.
fn row_bytes(t: Tensor) -> usize {
    t.bytes() / t.shape.dims().first().copied().unwrap_or(1).max(1)
}

/// Bytes of the channels of one position, and positions.
fn channels(t: Tensor) -> (usize, usize) {
    (t.last() * t.dtype.size(), t.elements() / t.last().max(1))
}

/// `parts` side by side in the channels of the output.
fn move_channels(b: &mut Bind<'_>, parts: &[Part]) {
    let y = b.output(0);
    let (width, rows) = channels(y);
    let (index, scalars) = (0, 0);
    move_rows(b, &Move { parts, to: y.address, rows, width, source_rows: rows, index, scalars });
}

/// a, b, … → one after another along the axis.
pub(crate) fn concat(b: &mut Bind<'_>, axis: Axis) {
    let (mut parts, mut at) = (vec![], 0);
    let inputs: Vec<Tensor> = (0..).map_while(|i| b.optional(i)).collect();
    for x in inputs {
        if axis == Axis::Batch {
            b.copy(b.output(0).address + at as Address, x.address, x.bytes());
            at += x.bytes();
        } else if x.bytes() > 0 {
            let (stride, _) = channels(x);
            parts.push(Part { from: x.address, begin: at, stride });
            at += stride;
        }
    }
    move_channels(b, &parts);
}

/// x → `len` rows or channels from `start`, the output's shape saying how many.
pub(crate) fn slice(b: &mut Bind<'_>, axis: Axis, start: usize) {
    let (x, y) = (b.input(0), b.output(0));
    if axis == Axis::Batch {
        return b.copy(y.address, x.address + (start * row_bytes(x)) as Address, y.bytes());
    }
    let from = x.address + (start * x.dtype.size()) as Address;
    move_channels(b, &[Part { from, begin: 0, stride: channels(x).0 }]);
}

/// dy → zeros with dy from `start`.
pub(crate) fn unslice(b: &mut Bind<'_>, axis: Axis, start: usize) {
    let (dy, dx) = (b.input(0), b.output(0));
    if axis == Axis::Batch {
        let begin = start * row_bytes(dx);
        let end = begin + dy.bytes();
        for zeros in [0..begin, end..dx.bytes()] {
            let address = dx.address + zeros.start as Address;
            b.zero(Tensor { address, shape: Shape::new(&[zeros.len()]), dtype: Dtype::U8 });
        }
        return b.copy(dx.address + begin as Address, dy.address, dy.bytes());
    }
    let (begin, (stride, _)) = (start * dy.dtype.size(), channels(dy));
    let zeros = |begin| Part { from: 0, begin, stride: 0 };
    move_channels(b, &[zeros(0), Part { from: dy.address, begin, stride }, zeros(begin + stride)]);
}

/// Rows of input 0, chosen by an index or by the units before this micro-batch.
fn choose(b: &mut Bind<'_>, index: Address, scalars: Address) {
    let (x, y) = (b.input(0), b.output(0));
    let (width, rows) = (row_bytes(y), y.shape.dims()[0]);
    let parts = [Part { from: x.address, begin: 0, stride: width }];
    move_rows(b, &Move { parts: &parts, to: y.address, rows, width, source_rows: x.shape.dims()[0], index, scalars });
}

/// x, index → x[index]; an index outside x, such as a negative one, gives zeros.
pub(crate) fn gather(b: &mut Bind<'_>) {
    choose(b, b.input(1).address, 0);
}

/// Rolling state → the rows of this micro-batch, zeros past the state's end.
pub(crate) fn rolling(b: &mut Bind<'_>) {
    choose(b, 0, b.scalars());
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ShuffleArgs {
    x: Address,
    y: Address,
    channels: Divide,
    groups: Divide,
    group_channels: u32,
    n: u32,
}
const _: () = assert!(size_of::<ShuffleArgs>() == 48);

/// x [..,c] → y[.., i] = x[.., (i mod g)(c/g) + i div g], g the groups.
pub(crate) fn shuffle(b: &mut Bind<'_>, groups: usize) {
    let (x, y) = (b.input(0), b.output(0));
    let args = ShuffleArgs {
        x: x.address,
        y: y.address,
        channels: Divide::by(y.last()),
        groups: Divide::by(groups),
        group_channels: count(y.last() / groups),
        n: count(y.elements()),
    };
    let name = if y.is_bf16() { "rows_shuffle_2" } else { "rows_shuffle_4" };
    b.kernel(name, b.grid(y.bytes().div_ceil(16)), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ScatterArgs {
    dy: Address,
    dx: Address,
    index: Address,
    lambda: Operand,
    n: u32,
    units: u32,
}
const _: () = assert!(size_of::<ScatterArgs>() == 48);

/// dy, index → rows added in the order of the index; with λ: λ dy, and what is added times 1 − λ.
pub(crate) fn scatter(b: &mut Bind<'_>, lambda: Option<Tensor>) {
    let (dy, index, dx) = (b.input(0), b.input(1), b.output(0));
    let rows = dx.shape.dims()[0];
    let row = dx.elements() / rows.max(1);
    let lanes = lanes(&[dx, dy], row);
    let args = ScatterArgs {
        dy: dy.address,
        dx: dx.address,
        index: index.address,
        lambda: lambda.map_or(Operand::NONE, Operand::from),
        n: count(index.elements()),
        units: count(row / lanes),
    };
    let name = match (dx.is_bf16(), lanes) {
        (false, 1) => "rows_scatter_f32_one",
        (false, _) => "rows_scatter_f32",
        (true, 1) => "rows_scatter_bf16_one",
        (true, _) => "rows_scatter_bf16",
    };
    let grid = [count(rows), count((row / lanes).div_ceil(512)), 1];
    if grid[1] > 0 {
        b.kernel(name, Blocks { grid, block: 256, shared_bytes: 0 }, &args);
    }
}

pub(crate) fn scatter_add(b: &mut Bind<'_>) {
    scatter(b, None);
}
