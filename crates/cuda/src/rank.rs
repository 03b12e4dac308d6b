//! Ranks of classes and targets from whole batches of predictions: kernels/rank_*.cu.

use crate::binding::{Bind, Blocks, Operand};
use crate::command::Address;
use crate::loss::{row_kernel, softmax_rows};
use crate::scalars::{Divisor, Weight};
use bytemuck::{Pod, Zeroable};
use graph::Axis;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct TopKArgs {
    logits: Address,
    y: Address,
    classes: u32,
    k: u32,
    staged: u32,
    pad: u32,
}
const _: () = assert!(size_of::<TopKArgs>() == 32);

/// Largest row that is kept in shared memory.
const STAGED_BYTES: usize = 47 << 10;

/// logits → i32 [n,k].
pub(crate) fn top_k(b: &mut Bind<'_>, k: usize) {
    let (x, y) = (b.input(0), b.output(0));
    let [rows, classes] = x.dims();
    let (name, block) = row_kernel(classes, ["rank_top_k_warp", "rank_top_k_block"]);
    let staged = classes * 4 <= STAGED_BYTES;
    let shared_bytes = if staged { classes as u32 * 4 } else { 0 };
    let args = TopKArgs {
        logits: x.address,
        y: y.address,
        classes: classes as u32,
        k: k as u32,
        staged: u32::from(staged),
        pad: 0,
    };
    b.kernel(name, Blocks { shared_bytes, ..Blocks::line(rows, block) }, &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CorrectArgs {
    logits: Address,
    label: Address,
    rank: Address,
    counts: Address,
    rows: u32,
    classes: u32,
    k: u32,
    pad: u32,
}
const _: () = assert!(size_of::<CorrectArgs>() == 48);

/// logits, label → counts of rows whose label is first, and among the first `k`.
pub(crate) fn correct(b: &mut Bind<'_>, k: usize) {
    let (logits, label, counts) = (b.input(0), b.input(1), b.output(0));
    let [rows, classes] = logits.dims();
    let args = CorrectArgs {
        logits: logits.address,
        label: label.address,
        rank: b.scratch(0, rows * 4),
        counts: counts.address,
        rows: rows as u32,
        classes: classes as u32,
        k: k as u32,
        pad: 0,
    };
    b.kernel("rank_correct_rows", Blocks::line(rows.div_ceil(8), 256), &args);
    b.kernel("rank_correct_counts", Blocks::line(1, 256), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct NeighboursArgs {
    features: Operand,
    gram: Address,
    from: Address,
    to: Address,
    out: Address,
    n: u32,
    d: u32,
    k: u32,
    omega: f32,
}
const _: () = assert!(size_of::<NeighboursArgs>() == 64);

/// Rows and columns of a product's tile.
const TILE: usize = 32;

/// Steps of the product after which ω^(2^steps), what is left out, is nothing in f32.
fn steps(omega: f64) -> usize {
    let power = |steps: i32| omega.abs().powf(2f64.powi(steps));
    (1..24).find(|&s| power(s) < 1e-9).unwrap_or(24) as usize
}

/// features [n,d], logits [n,k] → Q [n,k].
pub(crate) fn neighbour_targets(b: &mut Bind<'_>, omega: f64, temperature: f64) {
    let (features, logits, out) = (b.input(0), b.input(1), b.output(0));
    let ([n, d], k) = (features.dims(), logits.last());
    if n == 1 {
        return softmax_rows(b, logits, (out.address, k), [temperature, 1.0]);
    }
    let (gram_bytes, pair_bytes) = ((n * n * 4).next_multiple_of(16), (n * (n + k) * 4).next_multiple_of(16));
    let buffers = [0, 1].map(|i| b.scratch(gram_bytes + i * pair_bytes, pair_bytes));
    let mut args = NeighboursArgs {
        features: features.into(),
        gram: b.scratch(0, gram_bytes),
        from: 0,
        to: buffers[0],
        out: 0,
        n: n as u32,
        d: d as u32,
        k: k as u32,
        omega: omega as f32,
    };
    let tiles = |rows: usize, columns: usize| Blocks {
        grid: [columns.div_ceil(TILE) as u32, rows.div_ceil(TILE) as u32, 1],
        block: 256,
        shared_bytes: 0,
    };
    b.kernel("rank_neighbours_gram", tiles(n, n), &args);
    b.kernel("rank_neighbours_weights", Blocks::line(n, 256), &args);
    softmax_rows(b, logits, (buffers[0] + n as Address * 4, n + k), [temperature, 1.0 - omega]);
    let steps = steps(omega);
    for step in 0..steps {
        (args.from, args.to) = (buffers[step % 2], buffers[(step + 1) % 2]);
        let last = step + 1 == steps;
        args.out = if last { out.address } else { 0 };
        b.kernel("rank_neighbours_step", tiles(n, if last { k } else { n + k }), &args);
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CorrelationArgs {
    a: Address,
    b: Address,
    lines: Address,
    value: Address,
    dz: Address,
    scalars: Address,
    divisor: Divisor,
    weight: Weight,
    factor: f64,
    rows: u32,
    classes: u32,
    columns: u32,
    lines_n: u32,
}
const _: () = assert!(size_of::<CorrelationArgs>() == 112);

/// Bytes of a CorrelationLine.
const LINE_BYTES: usize = 40;

/// z, t → value, or with a weight the gradient by z.
pub(crate) fn correlation(b: &mut Bind<'_>, over: Axis, divisor: graph::Divisor, grad: Option<graph::Weight>) {
    let (z, t, out) = (b.input(0), b.input(1), b.output(0));
    let [rows, classes] = z.dims();
    let columns = over == Axis::Channel;
    let lines = if columns { classes } else { rows };
    let bytes = (rows * classes * 4).next_multiple_of(16);
    let [pa, pb] = [0, 1].map(|i| b.scratch(i * bytes, bytes));
    softmax_rows(b, z, (pa, classes), [1.0, 1.0]);
    softmax_rows(b, t, (pb, classes), [1.0, 1.0]);
    let args = CorrelationArgs {
        a: pa,
        b: pb,
        lines: b.scratch(2 * bytes, lines * LINE_BYTES),
        value: out.address,
        dz: out.address,
        scalars: b.scalars(),
        divisor: divisor.into(),
        weight: grad.unwrap_or(0.0.into()).into(),
        factor: rows as f64 / lines as f64,
        rows: rows as u32,
        classes: classes as u32,
        columns: u32::from(columns),
        lines_n: lines as u32,
    };
    if columns {
        b.kernel("rank_correlation_columns", Blocks::line(classes.div_ceil(32), 256), &args);
    } else {
        let (name, block) = row_kernel(classes, ["rank_correlation_rows_warp", "rank_correlation_rows_block"]);
        b.kernel(name, Blocks::line(rows, block), &args);
    }
    if grad.is_some() {
        let (name, block) = row_kernel(classes, ["rank_correlation_grad_warp", "rank_correlation_grad_block"]);
        b.kernel(name, Blocks::line(rows, block), &args);
    } else {
        b.kernel("rank_correlation_value", Blocks::line(1, 256), &args);
    }
}

#[cfg(test)]
mod tests {
    use super::steps;

    #[test]
    fn steps_leave_nothing_that_f32_sees() {
        for omega in [0.0, 0.1, 0.5, 0.9, 0.999, 0.99999] {
            assert!(f64::powf(omega, 2f64.powi(steps(omega) as i32)) < 1e-9, "{omega}");
        }
        assert_eq!((steps(0.5), steps(0.9)), (5, 8));
    }
}
