//! The update section: kernels/opt_*.cu. Every write to a state is gated by the finite flag of its phase.

use crate::binding::{Bind, Blocks, Operand, Tensor};
use crate::command::{Address, Command, Kernel};
use bytemuck::{Pod, Zeroable, bytes_of};
use graph::{BnRunningLayer, LarsArgs, SgdArgs, SlotId};
use tensor::Dtype;

/// Elements of a block of the norm, which only reads, and of SGD and averages.
const NORM_CHUNK: usize = 1 << 14;
const CHUNK: usize = 1 << 13;
/// Channels of a block of running statistics.
const CHANNELS: usize = 128;
/// Threads of a block that serves a row a warp, and rows at once.
const ROW_THREADS: u32 = 256;
const ROWS: usize = 8;

/// The address of a value that is f32 on the device: gradients, statistics, optimizer state.
#[track_caller]
pub(crate) fn f32_address(t: Tensor) -> Address {
    assert_eq!(t.dtype, Dtype::F32, "{}: gradients, statistics and optimizer state are f32", t.shape);
    t.address
}

fn size(n: usize) -> u32 {
    u32::try_from(n).expect("a size of 32 bits")
}

/// Runs of at most `chunk` elements: first element and how many.
fn chunks(elements: usize, chunk: usize) -> impl Iterator<Item = (usize, u32)> {
    (0..elements).step_by(chunk).map(move |first| (first, chunk.min(elements - first) as u32))
}

/// The address of f32 element `i`.
fn element(base: Address, i: usize) -> Address {
    base + 4 * i as Address
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct NormChunk {
    x: Address,
    n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<NormChunk>() == 16);

/// Bytes of a block's partial sum and flag.
const NORM_PARTIAL: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct NormArgs {
    chunks: Address,
    partials: Address,
}
const _: () = assert!(size_of::<NormArgs>() == 16);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct NormFinishArgs {
    partials: Address,
    norm2: Address,
    finite: Address,
    chunks: u32,
    grad_chunks: u32,
}
const _: () = assert!(size_of::<NormFinishArgs>() == 32);

/// gradients and loss values → Σ g² over the first `grads`, finite flag.
pub(crate) fn grad_norm(b: &mut Bind<'_>, grads: usize) {
    let mut table = Vec::new();
    let mut grad_chunks = 0;
    for i in 0..b.launch.inputs.len() {
        let x = b.input(i);
        let at = f32_address(x);
        table.extend(chunks(x.elements(), NORM_CHUNK).map(|(first, n)| NormChunk { x: element(at, first), n, pad: 0 }));
        if i < grads {
            grad_chunks = table.len();
        }
    }
    let (chunks, partials) = (b.table(&table), b.scratch(0, table.len() * NORM_PARTIAL));
    b.kernel("opt_norm_partial", Blocks::line(table.len(), 256), &NormArgs { chunks, partials });
    let [norm2, finite] = [0, 1].map(|i| f32_address(b.output(i)));
    let (chunks, grad_chunks) = (size(table.len()), size(grad_chunks));
    let args = NormFinishArgs { partials, norm2, finite, chunks, grad_chunks };
    b.kernel("opt_norm_finish", Blocks::line(1, 512), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SgdChunk {
    w: Address,
    m: Address,
    g: Address,
    lr_factor: f64,
    decay: f32,
    n: u32,
}
const _: () = assert!(size_of::<SgdChunk>() == 40);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SgdLaunch {
    chunks: Address,
    norm2: Address,
    finite: Address,
    scalars: Address,
    momentum: f32,
    clip_norm: f32,
    clips: u32,
    nesterov: u32,
    lr_slot: u32,
    pad: u32,
}
const _: () = assert!(size_of::<SgdLaunch>() == 56);

/// norm², finite, gradients; states: parameter, momentum, …
pub(crate) fn sgd(b: &mut Bind<'_>, args: &SgdArgs) {
    let mut table = Vec::new();
    for (i, param) in args.params.iter().enumerate() {
        let elements = b.state(2 * i).elements();
        let [w, m, g] = [b.state(2 * i), b.state(2 * i + 1), b.input(2 + i)].map(f32_address);
        table.extend(chunks(elements, CHUNK).map(|(first, n)| SgdChunk {
            w: element(w, first),
            m: element(m, first),
            g: element(g, first),
            lr_factor: param.lr_factor,
            decay: param.weight_decay as f32,
            n,
        }));
    }
    let launch = SgdLaunch {
        chunks: b.table(&table),
        norm2: f32_address(b.input(0)),
        finite: f32_address(b.input(1)),
        scalars: b.scalars(),
        momentum: args.momentum as f32,
        clip_norm: args.clip_norm.unwrap_or_default() as f32,
        clips: args.clip_norm.is_some().into(),
        nesterov: args.nesterov.into(),
        lr_slot: SlotId::LR.0,
        pad: 0,
    };
    b.kernel("opt_sgd", Blocks::line(table.len(), 256), &launch);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LarsChunk {
    w: Address,
    v: Address,
    g: Address,
    lr_factor: f64,
    decay: f64,
    first: u32,
    partials: u32,
    n: u32,
    adapts: u32,
}
const _: () = assert!(size_of::<LarsChunk>() == 56);

/// Bytes of a chunk's sums of squares, of weights and gradients.
const LARS_PARTIAL: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LarsLaunch {
    chunks: Address,
    partials: Address,
    finite: Address,
    scalars: Address,
    trust: f64,
    epsilon: f64,
    momentum: f32,
    lr_slot: u32,
}
const _: () = assert!(size_of::<LarsLaunch>() == 56);

/// finite, gradients; states: parameter, momentum, … Norms first, then the update, a block a chunk in both.
pub(crate) fn lars(b: &mut Bind<'_>, args: &LarsArgs) {
    let mut table: Vec<LarsChunk> = Vec::new();
    for (i, (param, &adapts)) in args.params.iter().zip(&args.adapts).enumerate() {
        let elements = b.state(2 * i).elements();
        let [w, v, g] = [b.state(2 * i), b.state(2 * i + 1), b.input(1 + i)].map(f32_address);
        let (begin, partials) = (size(table.len()), size(elements.div_ceil(CHUNK)));
        table.extend(chunks(elements, CHUNK).map(|(first, n)| LarsChunk {
            w: element(w, first),
            v: element(v, first),
            g: element(g, first),
            lr_factor: param.lr_factor,
            decay: param.weight_decay,
            first: begin,
            partials,
            n,
            adapts: adapts.into(),
        }));
    }
    let launch = LarsLaunch {
        chunks: b.table(&table),
        partials: b.scratch(0, table.len() * LARS_PARTIAL),
        finite: f32_address(b.input(0)),
        scalars: b.scalars(),
        trust: args.trust,
        epsilon: args.epsilon,
        momentum: args.momentum as f32,
        lr_slot: SlotId::LR.0,
    };
    b.kernel("opt_lars_norms", Blocks::line(table.len(), 256), &launch);
    b.kernel("opt_lars", Blocks::line(table.len(), 256), &launch);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct EmaChunk {
    average: Address,
    source: Address,
    n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<EmaChunk>() == 24);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct EmaArgs {
    chunks: Address,
    finite: Address,
    scalars: Address,
    decay_slot: u32,
    pad: u32,
}
const _: () = assert!(size_of::<EmaArgs>() == 32);

/// finite; states: average, source, …
pub(crate) fn ema(b: &mut Bind<'_>, decay: SlotId) {
    let mut table = Vec::new();
    for pair in 0..b.launch.states.len() / 2 {
        let elements = b.state(2 * pair).elements();
        let [average, source] = [0, 1].map(|i| f32_address(b.state(2 * pair + i)));
        table.extend(chunks(elements, CHUNK).map(|(first, n)| EmaChunk {
            average: element(average, first),
            source: element(source, first),
            n,
            pad: 0,
        }));
    }
    let (chunks, finite, scalars) = (b.table(&table), f32_address(b.input(0)), b.scalars());
    let args = EmaArgs { chunks, finite, scalars, decay_slot: decay.0, pad: 0 };
    b.kernel("opt_ema", Blocks::line(table.len(), 256), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RunningForward {
    p: Address,
    groups: u32,
    pad: u32,
}
const _: () = assert!(size_of::<RunningForward>() == 16);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RunningBlock {
    running: Address,
    first_forward: u32,
    forwards: u32,
    channels: u32,
    first_channel: u32,
    updates: u32,
    pad: u32,
}
const _: () = assert!(size_of::<RunningBlock>() == 32);

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RunningArgs {
    blocks: Address,
    forwards: Address,
    finite: Address,
    scalars: Address,
    slot_bytes: u64,
    keep: f32,
    take: f32,
}
const _: () = assert!(size_of::<RunningArgs>() == 48);

/// finite, then for each layer `forwards` pairs of carried mean and unbiased variance [g,c]; states: mean, variance, …
pub(crate) fn bn_running(b: &mut Bind<'_>, momentum: f64, layers: &[BnRunningLayer]) {
    let (mut blocks, mut forwards) = (Vec::new(), Vec::new());
    let mut pair = 1; // input of the layer's first mean; its variance is the next
    for (l, layer) in layers.iter().enumerate() {
        for which in 0..2 {
            let state = b.state(2 * l + which);
            let (running, channels) = (f32_address(state), state.elements());
            let first_forward = size(forwards.len());
            forwards.extend((0..layer.forwards).map(|f| {
                let statistic = b.input(pair + 2 * f + which);
                let groups = size(statistic.elements() / channels.max(1));
                RunningForward { p: f32_address(statistic), groups, pad: 0 }
            }));
            blocks.extend((0..channels).step_by(CHANNELS).map(|first_channel| RunningBlock {
                running,
                first_forward,
                forwards: size(layer.forwards),
                channels: size(channels),
                first_channel: size(first_channel),
                updates: size(layer.updates),
                pad: 0,
            }));
        }
        pair += 2 * layer.forwards;
    }
    let args = RunningArgs {
        blocks: b.table(&blocks),
        forwards: b.table(&forwards),
        finite: f32_address(b.input(0)),
        scalars: b.scalars(),
        slot_bytes: b.slot_bytes() as u64,
        keep: (1.0 - momentum) as f32,
        take: momentum as f32,
    };
    b.kernel("opt_running", Blocks::line(blocks.len(), CHANNELS as u32), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RowsArgs {
    state: Operand,
    rows: Operand,
    index: Address,
    finite: Address,
    scalars: Address,
    slot_bytes: u64,
    count: u32,
    width: u32,
    state_rows: u32,
    pad: u32,
}
const _: () = assert!(size_of::<RowsArgs>() == 80);

/// Arguments of `count` carried rows each micro-batch, and the rows of the state.
fn rows_args(b: &Bind<'_>, rows: Tensor, count: usize, index: Address) -> (RowsArgs, usize) {
    let (state, width) = (b.state(0), rows.elements() / count.max(1));
    let state_rows = state.elements() / width.max(1);
    let args = RowsArgs {
        state: state.into(),
        rows: rows.into(),
        index,
        finite: f32_address(b.input(0)),
        scalars: b.scalars(),
        slot_bytes: b.slot_bytes() as u64,
        count: size(count),
        width: size(width),
        state_rows: size(state_rows),
        pad: 0,
    };
    (args, state_rows)
}

/// finite, carried rows → the state.
pub(crate) fn assign(b: &mut Bind<'_>) {
    let rows = b.input(1);
    let (args, state_rows) = rows_args(b, rows, rows.shape[0], 0);
    let blocks = state_rows.div_ceil(ROWS).min(16 * b.sms as usize);
    b.kernel("opt_rows_assign", Blocks::line(blocks, ROW_THREADS), &args);
}

/// finite, carried index, carried rows → state[index] = rows. How many micro-batches there are, only the device knows.
pub(crate) fn scatter_rows(b: &mut Bind<'_>) {
    let (index, rows) = (b.input(1), b.input(2));
    let (args, _) = rows_args(b, rows, index.elements(), index.address);
    let blocks = index.elements().min(4 * b.sms as usize);
    b.kernel("opt_rows_scatter", Blocks::line(blocks, ROW_THREADS), &args);
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CastArgs {
    from: Address,
    to: Address,
    n: u32,
    pad: u32,
}
const _: () = assert!(size_of::<CastArgs>() == 24);

/// bf16 at `to` from f32 at `from`: the copies of weights that tensor cores read. Fewer than 2^31 elements, at least one.
pub(crate) fn cast(to: Address, from: Address, elements: usize, sms: u32) -> Command {
    casting("opt_cast", (to, from), elements, sms)
}

/// f32 at `to` from bf16 at `from`: gradients that came from other ranks.
pub(crate) fn cast_back(to: Address, from: Address, elements: usize, sms: u32) -> Command {
    casting("opt_cast_back", (to, from), elements, sms)
}

fn casting(name: &'static str, (to, from): (Address, Address), elements: usize, sms: u32) -> Command {
    let args = CastArgs { from, to, n: size(elements), pad: 0 };
    let blocks = size(elements.div_ceil(8 * 256)).min(16 * sms);
    Command::Kernel(Kernel { name, grid: [blocks, 1, 1], block: 256, shared_bytes: 0, args: bytes_of(&args).to_vec() })
}
