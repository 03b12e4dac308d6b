//! Convolutions as implicit GEMM: kernels/include/conv_{fprop,dgrad,wgrad}.cuh. The launch choice is here.

use crate::binding::{Bind, Blocks, Divide, Math, Tensor};
use crate::command::Address;
use crate::{bn, conv_depthwise, conv_stem};
use bytemuck::{Pod, Zeroable};
use graph::{ConvArgs, Op};

/// `ConvProblem` of kernels/include/conv.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Problem {
    batch: u32,
    h: u32,
    w: u32,
    c: u32,
    p: u32,
    q: u32,
    k: u32,
    r: u32,
    s: u32,
    stride: u32,
    pad: u32,
    cg: u32,
    kg: u32,
    pixels: u32,
    by_cg: Divide,
    by_kg: Divide,
    by_s: Divide,
    by_q: Divide,
    by_pq: Divide,
    by_taps: [Divide; 2],
}
const _: () = assert!(size_of::<Problem>() == 140);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FpropArgs {
    x: Address,
    w: Address,
    add: Address,
    bias: Address,
    y: Address,
    mean: Address,
    m2: Address,
    a: Problem,
    by_tiles: Divide,
    relu: u32,
    run: u32,
    tiles: u32,
    pad: u32,
}
const _: () = assert!(size_of::<FpropArgs>() == 224);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct StatsArgs {
    mean: Address,
    m2: Address,
    run_mean: Address,
    run_m2: Address,
    k: u32,
    tiles: u32,
    runs: u32,
    rows: u32,
    group: u32,
    pad: u32,
}
const _: () = assert!(size_of::<StatsArgs>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct DgradArgs {
    dy: Address,
    w: Address,
    add: Address,
    dx: Address,
    a: Problem,
    by_tiles: Divide,
}
const _: () = assert!(size_of::<DgradArgs>() == 184);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct WgradArgs {
    dy: Address,
    x: Address,
    dw: Address,
    a: Problem,
    by_tiles: Divide,
    share: u32,
    pad: [u32; 3],
}
const _: () = assert!(size_of::<WgradArgs>() == 192);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct SumArgs {
    pub partial: Address,
    pub dw: Address,
    pub n: u32,
    pub splits: u32,
}
const _: () = assert!(size_of::<SumArgs>() == 24);

impl Problem {
    /// The convolution of x NHWC by w KRSC to y NPQK.
    pub(crate) fn new(x: Tensor, w: Tensor, y: Tensor, args: ConvArgs) -> Problem {
        let ([batch, h, wd, c], [k, r, s, cg], [_, p, q, _]) = (x.dims::<4>(), w.dims::<4>(), y.dims::<4>());
        let kg = k / args.groups;
        let u = |n: usize| u32::try_from(n).expect("a size of 32 bits");
        Problem {
            batch: u(batch),
            h: u(h),
            w: u(wd),
            c: u(c),
            p: u(p),
            q: u(q),
            k: u(k),
            r: u(r),
            s: u(s),
            stride: u(args.stride),
            pad: u(args.pad),
            cg: u(cg),
            kg: u(kg),
            pixels: u(batch * p * q),
            by_cg: Divide::by(cg),
            by_kg: Divide::by(kg),
            by_s: Divide::by(s),
            by_q: Divide::by(q),
            by_pq: Divide::by(p * q),
            by_taps: [Divide::by((s / args.stride).max(1)), Divide::by(s.div_ceil(args.stride))],
        }
    }

    /// Output pixels.
    pub(crate) fn pixels(&self) -> usize {
        self.pixels as usize
    }

    /// Elements of a filter (tap, channel), in whole units of `lanes`.
    fn row(&self, lanes: usize) -> usize {
        (self.r * self.s * self.cg).next_multiple_of(lanes as u32) as usize
    }

    /// Elements of a filter's window.
    pub(crate) fn taps(&self) -> usize {
        (self.r * self.s) as usize
    }
}

/// How a product is computed: on what units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bf16,
    Tf32,
    F32,
}

/// A tile of an output and the kernel that makes it.
#[derive(Clone, Copy, Debug)]
struct Choice {
    name: &'static str,
    /// Rows and columns of the tile.
    tile: [usize; 2],
}

/// Bytes of the ring of four stages, which the epilogue reuses: both operands' tiles are 64 bytes deep along k.
fn shared_bytes(tile: [usize; 2]) -> u32 {
    4 * 64 * (tile[0] + tile[1]) as u32
}

impl Kind {
    fn of(b: &Bind<'_>, x: Tensor) -> Kind {
        match (x.is_bf16(), b.math) {
            (true, _) => Kind::Bf16,
            (false, Math::Tf32) => Kind::Tf32,
            (false, Math::F32) => Kind::F32,
        }
    }

    /// Elements of 16 bytes.
    fn lanes(self) -> usize {
        if self == Kind::Bf16 { 8 } else { 4 }
    }

    /// Do operands come in whole, aligned 16-byte chunks of these channels?
    fn chunks(self, channels: [u32; 2], tensors: &[Tensor]) -> bool {
        let whole = channels.iter().all(|c| c.is_multiple_of(self.lanes() as u32));
        whole && tensors.iter().all(|t| t.address.is_multiple_of(16))
    }
}

/// The largest tile that wastes little: no wider than the columns want, and lower where the device would stand idle.
fn choose(sizes: [usize; 2], sms: u32, choices: &[Choice]) -> Choice {
    let blocks = |c: &Choice| sizes[0].div_ceil(c.tile[0]) * sizes[1].div_ceil(c.tile[1]);
    let fits = |c: &&Choice| (0..2).all(|i| c.tile[i] < 2 * sizes[i].max(32)) && blocks(c) >= sms as usize;
    let smallest = choices[choices.len() - 1];
    choices.iter().find(fits).copied().unwrap_or(smallest)
}

macro_rules! choices {
    ($direction:literal, $math:literal: $($m:literal x $n:literal),*) => {
        &[$(Choice { name: concat!("conv_", $direction, "_", $math, "_", $m, "x", $n), tile: [$m, $n] }),*]
    };
}

/// What is added to a convolution's sums: the bias of a frozen one, and an addend of y's shape.
pub(crate) fn added(b: &Bind<'_>) -> [Option<Tensor>; 2] {
    match b.launch.op {
        Op::ConvAct { .. } => [b.optional(2), b.optional(3)],
        _ => [None, b.optional(2)],
    }
}

/// x NHWC, w KRSC, [bias], [addend] → y NPQK.
pub(crate) fn fprop(b: &mut Bind<'_>, args: ConvArgs, relu: bool) {
    if conv_depthwise::takes(args, b.input(0), b.input(1)) {
        conv_depthwise::fprop(b, args, relu);
    } else {
        launch_fprop(b, args, Tail::Act { relu });
    }
}

/// x NHWC, w KRSC, [addend] → y NPQK; mean, biased and unbiased variance [g,k] of y as stored.
pub(crate) fn stats(b: &mut Bind<'_>, args: ConvArgs, groups: usize) {
    let y = b.output(0);
    if conv_depthwise::takes(args, b.input(0), b.input(1)) {
        conv_depthwise::fprop(b, args, false);
        return bn::stats_of(b, y, [b.output(1), b.output(2), b.output(3)], groups);
    }
    launch_fprop(b, args, Tail::Stats { groups });
}

/// What follows the sums of a convolution.
#[derive(Clone, Copy, Debug)]
enum Tail {
    Act { relu: bool },
    Stats { groups: usize },
}

fn launch_fprop(b: &mut Bind<'_>, args: ConvArgs, tail: Tail) {
    let (x, y, [bias, add]) = (b.input(0), b.output(0), added(b));
    let filter = b.input(1);
    let (kind, stem) = (Kind::of(b, x), conv_stem::takes(x, filter));
    let mut w = match kind {
        _ if stem => conv_stem::widened(filter, x.dtype),
        Kind::Bf16 => b.half(1),
        _ => filter,
    };
    let a = Problem::new(x, w, y, args);
    let tensors: Vec<_> = [x, w, y].into_iter().chain(add).collect();
    let chunks = kind.chunks([if stem { a.kg } else { a.cg }, a.kg], &tensors);
    let choices: &[Choice] = match (chunks, kind) {
        (true, Kind::Bf16) if stem => choices!("fprop_stem", "bf16": 128 x 64, 64 x 64, 64 x 32),
        (false, Kind::Bf16) => &[Choice { name: "conv_fprop_any_bf16", tile: [64, 64] }],
        (false, Kind::Tf32) => &[Choice { name: "conv_fprop_any_tf32", tile: [64, 64] }],
        (false, Kind::F32) => &[Choice { name: "conv_fprop_any_f32", tile: [64, 64] }],
        (true, Kind::Bf16) => choices!("fprop", "bf16": 128 x 128, 128 x 64, 64 x 64, 64 x 32),
        (true, Kind::Tf32) => choices!("fprop", "tf32": 128 x 64, 64 x 32),
        (true, Kind::F32) => choices!("fprop", "f32": 128 x 64, 64 x 32),
    };
    let Choice { name, tile } = choose([a.pixels(), a.kg as usize], b.sms, choices);
    let runs = if let Tail::Stats { groups } = tail { groups } else { 1 };
    let run = a.pixels() / runs;
    let [rows, columns] = [run.div_ceil(tile[0]), (a.kg as usize).div_ceil(tile[1])];
    let moments = runs * rows * a.k as usize * 4;
    let [mean, m2] = match tail {
        Tail::Stats { .. } => [b.scratch(0, moments), b.scratch(moments, moments)],
        Tail::Act { .. } => [0, 0],
    };
    if stem {
        let row = a.row(if chunks { kind.lanes() } else { 1 });
        w.address = b.scratch((2 * moments).next_multiple_of(16), a.k as usize * row * w.dtype.size());
        conv_stem::widen(b, filter, w, row);
    }
    let address = |t: Option<Tensor>| t.map_or(0, |t| t.address);
    let args = FpropArgs {
        x: x.address,
        w: w.address,
        add: address(add),
        bias: address(bias),
        y: y.address,
        mean,
        m2,
        a,
        by_tiles: Divide::by(columns),
        relu: u32::from(matches!(tail, Tail::Act { relu: true })),
        run: run as u32,
        tiles: rows as u32,
        pad: 0,
    };
    let grid = [(columns * rows) as u32, runs as u32, a.c / a.cg];
    b.kernel(name, Blocks { grid, block: 128, shared_bytes: shared_bytes(tile) }, &args);
    if let Tail::Stats { groups } = tail {
        merge_moments(b, [mean, m2], Tiles { tiles: rows, rows: tile[0], run }, groups);
    }
}

/// How the pixels of a run are cut.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    tiles: usize,
    /// Pixels of a tile, and of the whole run.
    rows: usize,
    run: usize,
}

/// Moments of tiles, f32 [groups, tiles, k] → outputs 1 to 3. Many tiles are merged by runs of 64 first.
fn merge_moments(b: &mut Bind<'_>, [mean, m2]: [Address; 2], t: Tiles, groups: usize) {
    const RUN: usize = 64;
    let k = b.output(0).last();
    let (mut parts, mut tiles) = ([mean, m2], t);
    if t.tiles > 4 * RUN {
        let runs = t.tiles.div_ceil(RUN);
        let (used, bytes) = (2 * groups * t.tiles * k * 4, groups * runs * k * 4);
        let [run_mean, run_m2] = [b.scratch(used, bytes), b.scratch(used + bytes, bytes)];
        let [k32, tiles32, runs32, rows, group] = [k, t.tiles, runs, t.rows, t.run].map(|n| n as u32);
        let args = StatsArgs { mean, m2, run_mean, run_m2, k: k32, tiles: tiles32, runs: runs32, rows, group, pad: 0 };
        let grid = [runs32, k.div_ceil(64) as u32, groups as u32];
        b.kernel("conv_stats", Blocks { grid, block: 256, shared_bytes: 0 }, &args);
        (parts, tiles) = ([run_mean, run_m2], Tiles { tiles: runs, rows: RUN * t.rows, run: t.run });
    }
    let lines = bn::Lines::of_rows(k, tiles.run, tiles.rows);
    bn::merge_stats(b, parts, [b.output(1), b.output(2), b.output(3)], lines, groups);
}

/// dy NPQK, w KRSC, [dx of the other branch] → dx NHWC.
pub(crate) fn dgrad(b: &mut Bind<'_>, args: ConvArgs) {
    let (dy, dx, add) = (b.input(0), b.output(0), b.optional(2));
    if conv_depthwise::takes(args, dx, b.input(1)) {
        return conv_depthwise::dgrad(b, args);
    }
    let kind = Kind::of(b, dy);
    let w = if kind == Kind::Bf16 { b.half(1) } else { b.input(1) };
    let a = Problem::new(dx, w, dy, args);
    let tensors: Vec<_> = [dy, w, dx].into_iter().chain(add).collect();
    let choices: &[Choice] = match (kind.chunks([a.cg, a.kg], &tensors), kind) {
        (false, Kind::Bf16) => &[Choice { name: "conv_dgrad_any_bf16", tile: [64, 64] }],
        (false, Kind::Tf32) => &[Choice { name: "conv_dgrad_any_tf32", tile: [64, 64] }],
        (false, Kind::F32) => &[Choice { name: "conv_dgrad_any_f32", tile: [64, 64] }],
        (true, Kind::Bf16) => choices!("dgrad", "bf16": 128 x 128, 128 x 64, 64 x 64, 64 x 32),
        (true, Kind::Tf32) => choices!("dgrad", "tf32": 128 x 64, 64 x 32),
        (true, Kind::F32) => choices!("dgrad", "f32": 128 x 64, 64 x 32),
    };
    // Pixels of the largest sub-problem.
    let pixels = (a.batch * a.h.div_ceil(a.stride) * a.w.div_ceil(a.stride)) as usize;
    let Choice { name, tile } = choose([pixels, a.cg as usize], b.sms, choices);
    let columns = (a.cg as usize).div_ceil(tile[1]);
    let by_tiles = Divide::by(columns);
    let add = add.map_or(0, |t| t.address);
    let args = DgradArgs { dy: dy.address, w: w.address, add, dx: dx.address, a, by_tiles };
    let grid = [(columns * pixels.div_ceil(tile[0])) as u32, a.stride * a.stride, a.c / a.cg];
    b.kernel(name, Blocks { grid, block: 128, shared_bytes: shared_bytes(tile) }, &args);
}

/// x NHWC, dy NPQK → dw KRSC in f32.
pub(crate) fn wgrad(b: &mut Bind<'_>, args: ConvArgs) {
    let (x, dy, dw) = (b.input(0), b.input(1), b.output(0));
    if conv_depthwise::takes(args, x, dw) {
        return conv_depthwise::wgrad(b, args);
    }
    let (kind, stem) = (Kind::of(b, x), conv_stem::takes(x, dw));
    let a = Problem::new(x, if stem { conv_stem::widened(dw, dw.dtype) } else { dw }, dy, args);
    let chunks = kind.chunks([if stem { a.kg } else { a.cg }, a.kg], &[x, dy, dw]);
    let choices: &[Choice] = match (chunks, kind) {
        (true, Kind::Bf16) if stem => choices!("wgrad_stem", "bf16": 64 x 128, 64 x 64, 32 x 64),
        (false, Kind::Bf16) => &[Choice { name: "conv_wgrad_any_bf16", tile: [64, 64] }],
        (false, Kind::Tf32) => &[Choice { name: "conv_wgrad_any_tf32", tile: [64, 64] }],
        (false, Kind::F32) => &[Choice { name: "conv_wgrad_any_f32", tile: [64, 64] }],
        (true, Kind::Bf16) => choices!("wgrad", "bf16": 128 x 128, 128 x 64, 64 x 64, 32 x 64),
        (true, Kind::Tf32) => choices!("wgrad", "tf32": 64 x 64, 32 x 64),
        (true, Kind::F32) => choices!("wgrad", "f32": 64 x 64, 32 x 64),
    };
    let taps = a.row(if chunks { kind.lanes() } else { 1 });
    // Splits fill the device, so the tile is the largest that wastes little.
    let Choice { name, tile } = choose([a.kg as usize, taps], 1, choices);
    let tiles = [(a.kg as usize).div_ceil(tile[0]), taps.div_ceil(tile[1])];
    let groups = a.c / a.cg;
    let step = if kind == Kind::Bf16 { 32 } else { 16 };
    let share = share(a.pixels as usize, tiles[0] * tiles[1] * groups as usize, step, b.sms as usize);
    let splits = (a.pixels as usize).div_ceil(share).max(1);
    let elements = a.k as usize * taps;
    let partial = if splits > 1 || stem { b.scratch(0, splits * elements * 4) } else { dw.address };
    let by_tiles = Divide::by(tiles[0]);
    let args = WgradArgs { dy: dy.address, x: x.address, dw: partial, a, by_tiles, share: share as u32, pad: [0; 3] };
    let grid = [(tiles[0] * tiles[1]) as u32, splits as u32, groups];
    b.kernel(name, Blocks { grid, block: 128, shared_bytes: shared_bytes(tile) }, &args);
    if stem {
        conv_stem::sum(b, partial, dw, [splits, taps]);
    } else if splits > 1 {
        let sum = SumArgs { partial, dw: dw.address, n: elements as u32, splits: splits as u32 };
        b.kernel("conv_wgrad_sum", b.grid(elements), &sum);
    }
}

/// Pixels of a split: enough splits for two blocks a multiprocessor, each of at least 16 steps, the partial sums at most 64.
fn share(pixels: usize, tiles: usize, step: usize, sms: usize) -> usize {
    let splits = (2 * sms).div_ceil(tiles).clamp(1, 64);
    pixels.div_ceil(splits).max(16 * step).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::{Choice, choose, share};

    const CHOICES: &[Choice] = choices!("fprop", "bf16": 128 x 128, 128 x 64, 64 x 64, 64 x 32);

    #[test]
    fn tiles_follow_the_problem() {
        let tile = |rows, columns, sms| choose([rows, columns], sms, CHOICES).tile;
        assert_eq!(tile(802_816, 256, 132), [128, 128], "large and wide");
        assert_eq!(tile(802_816, 64, 132), [128, 64], "narrow: no wider than twice the columns");
        assert_eq!(tile(65_536, 16, 132), [64, 32], "the narrowest");
        assert_eq!(tile(4096, 64, 132), [64, 32], "few rows: more, lower tiles");
        assert_eq!(tile(12_544, 64, 132), [64, 64], "98 tiles of 128 rows would leave multiprocessors idle");
        assert_eq!(tile(1, 1, 132), [64, 32], "one pixel");
    }

    #[test]
    fn splits_cover_all_pixels_and_fill_the_device() {
        for pixels in [1, 31, 512, 513, 49 * 256, 802_816] {
            for tiles in [1, 3, 132, 5000] {
                let share = share(pixels, tiles, 32, 132);
                assert!(share.is_multiple_of(32) && pixels.div_ceil(share) <= 64, "{pixels} {tiles}");
            }
        }
        assert_eq!(802_816usize.div_ceil(share(802_816, 1, 32, 132)), 64);
        assert_eq!(802_816usize.div_ceil(share(802_816, 300, 32, 132)), 1);
    }
}
