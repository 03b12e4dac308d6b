//! The closed set of ops. An op is coarse: each becomes one hand-written kernel.
//!
//! Activations are NHWC, filters KRSC, outputs NPQK. An op says what; `infer` gives its shapes, `gradient` its backward.

use crate::graph::{SlotId, StateId};
use crate::row::{RowTable, RowTerm, Side};
use tensor::Dtype;

/// A factor that is a constant, or a constant times a value of `Scalars` that the host writes before each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    pub factor: f64,
    pub slot: Option<SlotId>,
}

impl Weight {
    /// A weight that changes only with its slot.
    pub fn slot(slot: SlotId) -> Weight {
        Weight { factor: 1.0, slot: Some(slot) }
    }

    /// Is the weight zero whatever the slots hold? Such a term is logged, its gradient is `Zero`, nothing is multiplied.
    pub fn is_zero(self) -> bool {
        self.factor == 0.0
    }

    /// The product of two weights; at most one of them may depend on a slot.
    #[track_caller]
    pub fn times(self, other: Weight) -> Weight {
        assert!(self.slot.is_none() || other.slot.is_none(), "a weight is scaled by at most one slot");
        Weight { factor: self.factor * other.factor, slot: self.slot.or(other.slot) }
    }
}

impl From<f64> for Weight {
    fn from(factor: f64) -> Weight {
        Weight { factor, slot: None }
    }
}

/// What a mean divides by: `constant + Σ_role per_unit[role] × units[role]`, the units of the whole global batch.
///
/// A mean over a micro-batch divides by the global count, so that micro-batches and ranks are summed, never averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Divisor {
    pub constant: u64,
    pub per_unit: [u64; 2],
}

/// Convolution without bias; the kernel size is the weight's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvArgs {
    pub stride: usize,
    pub pad: usize,
    pub groups: usize,
}

/// A pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolArgs {
    pub kernel: usize,
    pub stride: usize,
    pub pad: usize,
}

/// Crop, flip and normalise 8-bit images: y = (x / 255 - mean) / std on the crop, zero *pixels* outside the image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageArgs {
    /// Output height and width.
    pub size: [usize; 2],
    /// Zero pixels added on each side before the crop.
    pub pad: usize,
    pub mean: [f64; 3],
    pub std: [f64; 3],
    /// Whether crop offsets `[n, 2]` (row, column in the padded image) are an input; else the crop is central.
    pub crop: bool,
    /// Whether horizontal flips `[n]` are an input.
    pub flip: bool,
}

/// Batch-norm constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BnArgs {
    pub eps: f64,
    /// Runs of the batch that have statistics of their own.
    pub groups: usize,
}

/// Where a batch norm's mean and variance come from: it decides the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatsSource {
    /// Statistics of this batch: dx takes the two sums into account.
    Batch,
    /// Running statistics: the op is affine.
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    Relu,
    Relu6,
    Sigmoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Add,
    Sub,
    Mul,
}

/// The axis of a concat or slice: the first (batch) or the last (channels).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    Batch,
    Channel,
}

/// C = op(A) · op(B) (+ bias), `true` = transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatmulArgs {
    pub ta: bool,
    pub tb: bool,
    pub dtype: Dtype,
}

impl Divisor {
    /// Divides nothing.
    pub const ONE: Divisor = Divisor { constant: 1, per_unit: [0, 0] };
}

/// One parameter in an optimizer range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdParam {
    pub param: StateId,
    pub momentum: StateId,
    pub weight_decay: f64,
    pub lr_factor: f64,
}

/// SGD over many tensors at once, torch.optim.SGD with dampening 0:
/// g ← c·g + wd·w; m ← μ·m + g; w ← w − lr·(nesterov ? g + μ·m : m), c the clip factor.
#[derive(Clone, Debug, PartialEq)]
pub struct SgdArgs {
    pub params: Vec<SgdParam>,
    pub momentum: f64,
    pub nesterov: bool,
    /// Largest global gradient norm, if clipped.
    pub clip_norm: Option<f64>,
}

/// LARS over many tensors at once: You, Gitman, Ginsburg 2017, arXiv:1708.03888, algorithm 1.
/// v ← μ·v + r·lr·(g + wd·w); w ← w − v, with r = η‖w‖ / (‖g‖ + wd·‖w‖ + ε) over the tensor; r = 1 where ‖w‖ or ‖g‖ is 0, and for
/// tensors that are not adapted. The rate is part of the momentum, so that a change of it acts on new gradients alone.
#[derive(Clone, Debug, PartialEq)]
pub struct LarsArgs {
    pub params: Vec<SgdParam>,
    /// Whether the rate of a parameter is adapted, in the order of `params`.
    pub adapts: Vec<bool>,
    pub momentum: f64,
    /// η, the trust coefficient.
    pub trust: f64,
    /// ε
    pub epsilon: f64,
}

/// An op. Inputs and outputs are listed in order; `[..]` marks what may be absent.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    // ---- images
    /// pixels u8 [n,h,w,c], [crop i32 [n,2]], [flip i32 [n]] → [n,oh,ow,c]
    ImageInput(ImageArgs),
    /// image [2n,h,w,c], mask u8 [n,cells] → image with masked cells exchanged between rows i and n+i. Its own inverse.
    PatchSwap {
        cell: usize,
    },
    /// Fused: ImageInput then PatchSwap in one pass. Inputs of both.
    ImageSwap {
        image: ImageArgs,
        cell: usize,
    },
    /// x [n,..], permutation i32 [n], λ [] → λ x + (1 − λ) x[permutation]
    MixRows,
    /// dy, permutation, λ → dx of MixRows
    MixRowsGrad,
    /// image [n,h,w,c], permutation i32 [n], box i32 [4] (top, left, bottom, right, the last two exclusive) → image with the box taken
    /// from image[permutation]
    PasteBox,
    /// image [n,h,w,c], boxes i32 [n,4] → image with each row's box filled, a value a channel
    EraseBoxes {
        fill: [f64; 3],
    },
    // ---- rows and channels
    Concat {
        axis: Axis,
    },
    Slice {
        axis: Axis,
        start: usize,
        len: usize,
    },
    /// dy → zeros of width `total` with dy at `start`: the gradient of Slice
    Unslice {
        axis: Axis,
        start: usize,
        total: usize,
    },
    /// x [m,..], index i32 [n] → x[index]
    GatherRows,
    /// x [..,c] → y[.., i] = x[.., (i mod g)(c/g) + i div g], g = groups
    ChannelShuffle {
        groups: usize,
    },
    /// dy [n,..], index i32 [n] → [rows,..], rows added in order
    ScatterAddRows {
        rows: usize,
    },
    // ---- linear maps
    /// x NHWC, w KRSC, [addend NPQK] → NPQK
    Conv(ConvArgs),
    /// dy NPQK, w KRSC, [dx of the other branch] → dx NHWC of height and width `hw`
    ConvDgrad {
        conv: ConvArgs,
        hw: [usize; 2],
    },
    /// x NHWC, dy NPQK → dw KRSC
    ConvWgrad {
        conv: ConvArgs,
        kernel: [usize; 2],
    },
    /// Fused: Conv, and BnStats of its output as stored. x, w, [addend] → y, mean [g,k], biased variance, unbiased variance
    ConvStats {
        conv: ConvArgs,
        groups: usize,
    },
    /// Fused, for frozen networks: conv, bias, [add], [relu]. x, w, bias, [shortcut] → y
    ConvAct {
        conv: ConvArgs,
        relu: bool,
    },
    /// a, b, [bias [n]] → c
    Matmul(MatmulArgs),
    /// x [..,c], bias [c] → x + bias
    AddBias,
    /// x [..,c] → [c], summed over the rest
    ColumnSum,
    // ---- batch norm
    /// x → mean [g,c], biased variance [g,c], unbiased variance [g,c]
    BnStats {
        groups: usize,
    },
    /// x, mean, var, γ, β → γ (x − mean) / sqrt(var + eps) + β
    BnApply {
        bn: BnArgs,
        source: StatsSource,
    },
    /// Fused: BnApply, [add], [relu]. x, mean, var, γ, β, [shortcut] → y, [mask: a bit per element of y > 0]
    BnAct {
        bn: BnArgs,
        source: StatsSource,
        relu: bool,
        mask: bool,
    },
    /// dy, x, mean, var, [mask] → dγ [c], dβ [c], sums [g,2,c] (Σdy, Σdy·x̂ per group)
    BnGradSums {
        bn: BnArgs,
    },
    /// dy, x, mean, var, γ, sums, [mask] → dx, [dshortcut: dy under the mask]
    BnGradApply {
        bn: BnArgs,
        source: StatsSource,
        shortcut: bool,
    },
    /// values → each of them of all ranks [world,..], in rank order, and their counts [world]; this rank's is `count`
    GatherRanks {
        world: usize,
        count: usize,
    },
    /// mean, var [world,g,c], rows of a group [world] → mean [g,c], biased variance, unbiased variance over the rows of all ranks
    BnMergeRanks,
    /// sums [world,g,2,c], rows of a group [world] → sums over ranks [g,2,c], times `count` rows of this rank over those of all
    BnSumRanks {
        count: usize,
    },
    /// w KRSC, mean, var, γ, β → w·s, β − mean·s with s = γ / sqrt(var + eps)
    FoldBn {
        eps: f64,
    },
    // ---- elementwise
    Unary(Unary),
    /// dy, y → dx
    UnaryGrad(Unary),
    /// a, b of one shape
    Binary(Binary),
    Scale(Weight),
    Zero,
    /// Passes the value, stops the gradient.
    Detach,
    // ---- pooling
    /// x → y, argmax u8 (index within the window, row-major)
    MaxPool(PoolArgs),
    /// dy, argmax → dx
    MaxPoolGrad {
        pool: PoolArgs,
        hw: [usize; 2],
    },
    /// Divides by the whole window, padding included.
    AvgPool(PoolArgs),
    AvgPoolGrad {
        pool: PoolArgs,
        hw: [usize; 2],
    },
    /// [n,h,w,c] → [n,c]
    GlobalAvgPool,
    GlobalAvgPoolGrad {
        hw: [usize; 2],
    },
    // ---- losses
    /// softmax(x / T) of each row
    Softmax {
        temperature: f64,
    },
    /// Rolling state → the rows of it that belong to this micro-batch
    RollingRows {
        rows: usize,
    },
    /// logits [n,k] → i32 [n,k'], the largest first, of equal ones the lower class; −1 in a row with a NaN
    TopK {
        k: usize,
    },
    /// features [n,d], logits [n,k] → Q [n,k] = (1 − ω)(I − ωW)⁻¹ softmax(logits/T), W the row softmax of cosine similarities of
    /// features without the diagonal (chapter 7.11); one row alone keeps its own softmax
    NeighbourTargets {
        omega: f64,
        temperature: f64,
    },
    /// logits z, logits t [n,k] → Σ (1 − ρ)/divisor over rows, or n times the mean of (1 − ρ) over columns divided by it; ρ the Pearson
    /// correlation of softmax(z) and softmax(t) along the other axis (chapter 7.5)
    Correlation {
        over: Axis,
        divisor: Divisor,
    },
    /// z, t → gradient of z times the weight
    CorrelationGrad {
        over: Axis,
        divisor: Divisor,
        weight: Weight,
    },
    /// logits [n,k], target's operands, [mask inputs] → value []
    RowLoss(RowTerm),
    /// inputs of RowLoss → gradient of one side times the weight
    RowLossGrad {
        term: RowTerm,
        side: Side,
        weight: Weight,
    },
    /// Fused: every row loss and its gradients.
    RowLosses(Box<RowTable>),
    /// a, [b] → Σ (a − b)² / divisor, value []; b is zero where absent
    SquaredError {
        divisor: Divisor,
    },
    /// a, [b] → 2 weight (a − b) / divisor
    SquaredErrorGrad {
        divisor: Divisor,
        weight: Weight,
    },
    /// logits [n,k], label i32 [n] → counts [2]: rows whose label is first, and among the first `k`
    Correct {
        k: usize,
    },
    // ---- between body and update
    /// Body value → its sum over micro-batches and ranks
    Reduce,
    /// Body value [..] → [micro-batches of the global batch, ..]
    Carry,
    // ---- update
    /// gradients and loss values → Σ g² over the first `grads` inputs, finite flag (1 or 0)
    GradNorm {
        grads: usize,
    },
    /// dst += src, in the gradient arena: terms that no image enters
    Accumulate,
    /// norm², finite, then a gradient per parameter
    Sgd(Box<SgdArgs>),
    /// finite, then a gradient per parameter
    Lars(Box<LarsArgs>),
    /// finite → ema ← d·ema + (1 − d)·source, d in a slot
    Ema {
        pairs: Vec<(StateId, StateId)>,
        decay: SlotId,
    },
    /// finite, then carried mean and unbiased variance per layer → running statistics, in (micro-batch, forward, group) order
    BnRunning {
        momentum: f64,
        layers: Vec<BnRunningLayer>,
    },
    /// finite, carried value [m,..] → state [m·rows,..]: rolling state, the state's rows in global order
    Assign {
        state: StateId,
    },
    /// finite, carried index [m,n], carried rows [m,n,..] → state[index] = rows, the highest slot wins
    ScatterRows {
        state: StateId,
    },
}

/// The running statistics of one batch norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BnRunningLayer {
    pub mean: StateId,
    pub var: StateId,
    /// Times that each batch of statistics is applied (2 for three layers of the published WRNs).
    pub updates: usize,
    /// Forwards of the layer in the phase: so many pairs of carried statistics, applied in turn in each micro-batch.
    pub forwards: usize,
}

impl Op {
    /// States that the op reads and writes in place, in the order that executors hand them over.
    pub fn states(&self) -> Vec<StateId> {
        match self {
            Op::Sgd(_) | Op::Lars(_) => self.trained().iter().flat_map(|p| [p.param, p.momentum]).collect(),
            Op::Ema { pairs, .. } => pairs.iter().flat_map(|&(ema, source)| [ema, source]).collect(),
            Op::BnRunning { layers, .. } => layers.iter().flat_map(|l| [l.mean, l.var]).collect(),
            Op::Assign { state } | Op::ScatterRows { state } => vec![*state],
            _ => vec![],
        }
    }

    /// The parameters that an optimizer moves; none for other ops.
    pub fn trained(&self) -> &[SgdParam] {
        match self {
            Op::Sgd(args) => &args.params,
            Op::Lars(args) => &args.params,
            _ => &[],
        }
    }
}
