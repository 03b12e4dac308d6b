//! Batch norm: kernels/bn_*.cu.

use crate::binding::{Bind, Blocks, Divide, Operand, Tensor};
use crate::command::Address;
use bytemuck::{Pod, Zeroable};
use graph::{BnArgs, StatsSource};

/// Threads of a block.
const THREADS: usize = 256;

/// `BnLines` of kernels/include/bn.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Lines {
    c: u32,
    width: u32,
    group: u32,
    packs: u32,
    chunk: u32,
    splits: u32,
}
const _: () = assert!(size_of::<Lines>() == 24);

impl Lines {
    /// Runs of `rows` rows of c channels, as parts of a group of `group` rows.
    pub(crate) fn of_rows(c: usize, group: usize, rows: usize) -> Lines {
        let u32 = |n: usize| u32::try_from(n).expect("sizes of 32 bits");
        Lines {
            c: u32(c),
            width: u32(c),
            group: u32(group * c),
            packs: 0,
            chunk: u32(rows),
            splits: u32(group.div_ceil(rows)),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct StatsArgs {
    x: Operand,
    mean: Address,
    m2: Address,
    lines: Lines,
}
const _: () = assert!(size_of::<StatsArgs>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct StatsMergeArgs {
    x: Operand,
    part_mean: Address,
    part_m2: Address,
    mean: Address,
    var: Address,
    unbiased: Address,
    lines: Lines,
}
const _: () = assert!(size_of::<StatsMergeArgs>() == 80);

impl StatsMergeArgs {
    /// Parts whose means are means: with `x`, they are less the first value of their channel and group in it.
    fn new([part_mean, part_m2]: [Address; 2], to: [Tensor; 3], lines: Lines) -> StatsMergeArgs {
        let [mean, var, unbiased] = to.map(|t| t.address);
        StatsMergeArgs { x: Operand::NONE, part_mean, part_m2, mean, var, unbiased, lines }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ApplyArgs {
    x: Operand,
    shortcut: Operand,
    y: Operand,
    mean: Address,
    var: Address,
    gamma: Address,
    beta: Address,
    mask: Address,
    eps: f64,
    lines: Lines,
    relu: u32,
    n: u32,
}
const _: () = assert!(size_of::<ApplyArgs>() == 128);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GradSumsArgs {
    dy: Operand,
    x: Operand,
    mean: Address,
    mask: Address,
    dy_sum: Address,
    dy_x_sum: Address,
    lines: Lines,
}
const _: () = assert!(size_of::<GradSumsArgs>() == 88);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GradSumsMergeArgs {
    dy_sum: Address,
    dy_x_sum: Address,
    var: Address,
    dgamma: Address,
    dbeta: Address,
    sums: Address,
    eps: f64,
    lines: Lines,
    groups: u32,
    pad: u32,
}
const _: () = assert!(size_of::<GradSumsMergeArgs>() == 88);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GradApplyArgs {
    dy: Operand,
    x: Operand,
    dx: Operand,
    dshortcut: Operand,
    mean: Address,
    var: Address,
    gamma: Address,
    sums: Address,
    mask: Address,
    eps: f64,
    lines: Lines,
    batch: u32,
    pad: u32,
}
const _: () = assert!(size_of::<GradApplyArgs>() == 144);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FoldArgs {
    w: Operand,
    y: Operand,
    mean: Address,
    var: Address,
    gamma: Address,
    beta: Address,
    bias: Address,
    eps: f64,
    filter: Divide,
    n: u32,
    k: u32,
    pad: u32,
}
const _: () = assert!(size_of::<FoldArgs>() == 104);

/// How a kernel's blocks lie over x.
struct Layout {
    lines: Lines,
    groups: usize,
    blocks: Blocks,
}

impl Layout {
    /// Blocks enough for three on each multiprocessor, as their registers allow, each thread with `unroll` packs or a multiple of them.
    fn new(sms: u32, x: Tensor, groups: usize, unroll: usize) -> Layout {
        let (c, group) = (x.last(), x.elements() / groups);
        let odd = 8 >> c.trailing_zeros().min(3); // 8 / gcd(c, 8)
        let width = c * odd;
        let columns = (width / 8).div_ceil(32);
        let packs = (width / 8).div_ceil(columns);
        let lines = group.div_ceil(width);
        let splits = (3 * sms as usize / (columns * groups)).max(1);
        let chunk = lines.div_ceil(splits).next_multiple_of(THREADS / packs * unroll);
        let splits = lines.div_ceil(chunk);
        let u32 = |n: usize| u32::try_from(n).expect("sizes of 32 bits");
        assert!(group < 1 << 31, "{}: {group} elements of a group, at most 2^31 - 1", x.shape);
        let grid = [u32(columns), u32(splits), u32(groups)];
        let lines = Lines {
            c: u32(c),
            width: u32(width),
            group: u32(group),
            packs: u32(packs),
            chunk: u32(chunk),
            splits: u32(splits),
        };
        Layout { lines, groups, blocks: Blocks { grid, block: THREADS as u32, shared_bytes: 0 } }
    }

    /// Of the names of the f32, bf16 and general kernel, the one that takes the operands.
    fn kernel(&self, operands: &[Tensor], names: [&'static str; 3]) -> &'static str {
        let dtype = operands[0].dtype;
        let packed = self.groups == 1 || self.lines.group.is_multiple_of(8);
        if !packed || operands.iter().any(|t| t.dtype != dtype || !t.address.is_multiple_of(16)) {
            names[2]
        } else {
            names[usize::from(operands[0].is_bf16())]
        }
    }

    /// Two arrays of partial results, f32 [groups, splits, width].
    fn partials(&self, b: &mut Bind<'_>) -> [Address; 2] {
        let bytes = self.groups * (self.lines.splits * self.lines.width) as usize * 4;
        [b.scratch(0, bytes), b.scratch(bytes, bytes)]
    }
}

/// Blocks that merge partial results: 8 channels each.
fn merge_blocks(lines: Lines, groups: usize) -> Blocks {
    Blocks { grid: [lines.c.div_ceil(8), groups as u32, 1], block: THREADS as u32, shared_bytes: 0 }
}

fn operand(t: Option<Tensor>) -> Operand {
    t.map_or(Operand::NONE, Operand::from)
}

/// x → mean, biased and unbiased variance [g,c].
pub(crate) fn stats(b: &mut Bind<'_>, groups: usize) {
    stats_of(b, b.input(0), [b.output(0), b.output(1), b.output(2)], groups);
}

/// The same of any x, to `to`.
pub(crate) fn stats_of(b: &mut Bind<'_>, x: Tensor, to: [Tensor; 3], groups: usize) {
    let layout = Layout::new(b.sms, x, groups, if x.is_bf16() { 8 } else { 4 });
    let lines = layout.lines;
    let parts = layout.partials(b);
    let name = layout.kernel(&[x], ["bn_stats_f32", "bn_stats_bf16", "bn_stats_any"]);
    b.kernel(name, layout.blocks, &StatsArgs { x: x.into(), mean: parts[0], m2: parts[1], lines });
    merge(b, groups, StatsMergeArgs { x: x.into(), ..StatsMergeArgs::new(parts, to, lines) });
}

/// Mean and squared deviations of parts, f32 [groups, splits, width] → mean, biased and unbiased variance.
pub(crate) fn merge_stats(b: &mut Bind<'_>, parts: [Address; 2], to: [Tensor; 3], lines: Lines, groups: usize) {
    merge(b, groups, StatsMergeArgs::new(parts, to, lines));
}

fn merge(b: &mut Bind<'_>, groups: usize, args: StatsMergeArgs) {
    b.kernel("bn_stats_merge", merge_blocks(args.lines, groups), &args);
}

/// x, mean, var, γ, β, [shortcut] → y, [mask].
pub(crate) fn apply(b: &mut Bind<'_>, bn: BnArgs, relu: bool) {
    let (x, shortcut, y) = (b.input(0), b.optional(5), b.output(0));
    let layout = Layout::new(b.sms, x, bn.groups, if x.is_bf16() { 3 } else { 2 });
    let operands: Vec<Tensor> = [Some(x), shortcut, Some(y)].into_iter().flatten().collect();
    let name = layout.kernel(&operands, ["bn_apply_f32", "bn_apply_bf16", "bn_apply_any"]);
    let [mean, var, gamma, beta] = [1, 2, 3, 4].map(|i| b.input(i).address);
    let args = ApplyArgs {
        x: x.into(),
        shortcut: operand(shortcut),
        y: y.into(),
        mean,
        var,
        gamma,
        beta,
        mask: b.launch.outputs.get(1).map_or(0, |_| b.output(1).address),
        eps: bn.eps,
        lines: layout.lines,
        relu: relu.into(),
        n: u32::try_from(x.elements()).expect("fewer than 2^32 elements"),
    };
    let blocks = if name == "bn_apply_any" { b.grid(x.elements().div_ceil(8)) } else { layout.blocks };
    b.kernel(name, blocks, &args);
}

/// dy, x, mean, var, [mask] → dγ, dβ, sums [g,2,c].
pub(crate) fn grad_sums(b: &mut Bind<'_>, bn: BnArgs) {
    let (dy, x) = (b.input(0), b.input(1));
    let layout = Layout::new(b.sms, x, bn.groups, if x.is_bf16() { 3 } else { 2 });
    let lines = layout.lines;
    let [dy_sum, dy_x_sum] = layout.partials(b);
    let [mean, var] = [2, 3].map(|i| b.input(i).address);
    let mask = b.optional(4).map_or(0, |m| m.address);
    let name = layout.kernel(&[dy, x], ["bn_grad_sums_f32", "bn_grad_sums_bf16", "bn_grad_sums_any"]);
    let args = GradSumsArgs { dy: dy.into(), x: x.into(), mean, mask, dy_sum, dy_x_sum, lines };
    b.kernel(name, layout.blocks, &args);
    let [dgamma, dbeta, sums] = [0, 1, 2].map(|i| b.output(i).address);
    let (eps, groups) = (bn.eps, bn.groups as u32);
    let args = GradSumsMergeArgs { dy_sum, dy_x_sum, var, dgamma, dbeta, sums, eps, lines, groups, pad: 0 };
    b.kernel("bn_grad_sums_merge", merge_blocks(lines, 1), &args);
}

/// dy, x, mean, var, γ, sums, [mask] → dx, [dshortcut].
pub(crate) fn grad_apply(b: &mut Bind<'_>, bn: BnArgs, source: StatsSource) {
    let (dy, x, dx) = (b.input(0), b.input(1), b.output(0));
    let dshortcut = b.launch.outputs.get(1).map(|_| b.output(1));
    let layout = Layout::new(b.sms, x, bn.groups, if x.is_bf16() { 2 } else { 1 });
    let operands: Vec<Tensor> = [Some(dy), Some(x), Some(dx), dshortcut].into_iter().flatten().collect();
    let name = layout.kernel(&operands, ["bn_grad_apply_f32", "bn_grad_apply_bf16", "bn_grad_apply_any"]);
    let [mean, var, gamma, sums] = [2, 3, 4, 5].map(|i| b.input(i).address);
    let args = GradApplyArgs {
        dy: dy.into(),
        x: x.into(),
        dx: dx.into(),
        dshortcut: operand(dshortcut),
        mean,
        var,
        gamma,
        sums,
        mask: b.optional(6).map_or(0, |m| m.address),
        eps: bn.eps,
        lines: layout.lines,
        batch: (source == StatsSource::Batch).into(),
        pad: 0,
    };
    b.kernel(name, layout.blocks, &args);
}

/// w KRSC, mean, var, γ, β → w · s, β − mean · s.
pub(crate) fn fold(b: &mut Bind<'_>, eps: f64) {
    let (w, y) = (b.input(0), b.output(0));
    let [mean, var, gamma, beta] = [1, 2, 3, 4].map(|i| b.input(i).address);
    let (n, k) = (w.elements(), b.input(3).elements());
    let args = FoldArgs {
        w: w.into(),
        y: y.into(),
        mean,
        var,
        gamma,
        beta,
        bias: b.output(1).address,
        eps,
        filter: Divide::by(n / k),
        n: u32::try_from(n).expect("fewer than 2^32 weights"),
        k: k as u32,
        pad: 0,
    };
    b.kernel("bn_fold", b.grid(n), &args);
}
