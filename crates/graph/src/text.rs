//! The text form of ops and graphs: one line a node, for golden files and eyes.

use crate::graph::{Graph, Section, Source, ValueId};
use crate::op::{Binary, Op, Unary};
use crate::row::{RowKind, RowTable, Target, Temperature};
use std::fmt::{self, Display, Formatter, Write};

impl Op {
    /// The kernel's name.
    pub fn name(&self) -> &'static str {
        match self {
            Op::ImageInput(_) => "image_input",
            Op::PatchSwap { .. } => "patch_swap",
            Op::ImageSwap { .. } => "image_swap",
            Op::MixRows => "mix_rows",
            Op::MixRowsGrad => "mix_rows_grad",
            Op::PasteBox => "paste_box",
            Op::EraseBoxes { .. } => "erase_boxes",
            Op::ChannelShuffle { .. } => "channel_shuffle",
            Op::TopK { .. } => "top_k",
            Op::NeighbourTargets { .. } => "neighbour_targets",
            Op::Correlation { .. } => "correlation",
            Op::CorrelationGrad { .. } => "correlation_grad",
            Op::Concat { .. } => "concat",
            Op::Slice { .. } => "slice",
            Op::Unslice { .. } => "unslice",
            Op::GatherRows => "gather_rows",
            Op::ScatterAddRows { .. } => "scatter_add_rows",
            Op::RollingRows { .. } => "rolling_rows",
            Op::Conv(_) => "conv_fprop",
            Op::ConvDgrad { .. } => "conv_dgrad",
            Op::ConvWgrad { .. } => "conv_wgrad",
            Op::ConvStats { .. } => "conv_stats",
            Op::ConvAct { .. } => "conv_act",
            Op::Matmul(_) => "matmul",
            Op::AddBias => "add_bias",
            Op::ColumnSum => "column_sum",
            Op::BnStats { .. } => "bn_stats",
            Op::BnApply { .. } => "bn_apply",
            Op::BnAct { .. } => "bn_act",
            Op::BnGradSums { .. } => "bn_grad_sums",
            Op::BnGradApply { .. } => "bn_grad_apply",
            Op::FoldBn { .. } => "fold_bn",
            Op::GatherRanks { .. } => "gather_ranks",
            Op::BnMergeRanks => "bn_merge_ranks",
            Op::BnSumRanks { .. } => "bn_sum_ranks",
            Op::Unary(Unary::Relu) => "relu",
            Op::Unary(Unary::Relu6) => "relu6",
            Op::Unary(Unary::Sigmoid) => "sigmoid",
            Op::UnaryGrad(Unary::Relu) => "relu_grad",
            Op::UnaryGrad(Unary::Relu6) => "relu6_grad",
            Op::UnaryGrad(Unary::Sigmoid) => "sigmoid_grad",
            Op::Binary(Binary::Add) => "add",
            Op::Binary(Binary::Sub) => "sub",
            Op::Binary(Binary::Mul) => "mul",
            Op::Scale(_) => "scale",
            Op::Zero => "zero",
            Op::Detach => "detach",
            Op::MaxPool(_) => "max_pool",
            Op::MaxPoolGrad { .. } => "max_pool_grad",
            Op::AvgPool(_) => "avg_pool",
            Op::AvgPoolGrad { .. } => "avg_pool_grad",
            Op::GlobalAvgPool => "global_avg_pool",
            Op::GlobalAvgPoolGrad { .. } => "global_avg_pool_grad",
            Op::Softmax { .. } => "softmax",
            Op::RowLoss(_) => "row_loss",
            Op::RowLossGrad { .. } => "row_loss_grad",
            Op::RowLosses(_) => "row_losses",
            Op::SquaredError { .. } => "squared_error",
            Op::SquaredErrorGrad { .. } => "squared_error_grad",
            Op::Correct { .. } => "correct",
            Op::Reduce => "reduce",
            Op::Carry => "carry",
            Op::GradNorm { .. } => "grad_norm",
            Op::Accumulate => "accumulate",
            Op::Sgd(_) => "sgd",
            Op::Lars(_) => "lars",
            Op::Ema { .. } => "ema",
            Op::BnRunning { .. } => "bn_running",
            Op::Assign { .. } => "assign",
            Op::ScatterRows { .. } => "scatter_rows",
        }
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Op::ImageInput(a) | Op::ImageSwap { image: a, .. } => {
                write!(f, "(size {}x{}, pad {}", a.size[0], a.size[1], a.pad)?;
                f.write_str(if a.crop { ", crop" } else { "" })?;
                f.write_str(if a.flip { ", flip" } else { "" })?;
                if let Op::ImageSwap { cell, .. } = self {
                    write!(f, ", cell {cell}")?;
                }
                f.write_char(')')
            }
            Op::PatchSwap { cell } => write!(f, "(cell {cell})"),
            Op::Concat { axis } => write!(f, "({axis:?})"),
            Op::Slice { axis, start, len } => write!(f, "({axis:?}, {start}..{})", start + len),
            Op::Unslice { axis, start, total } => write!(f, "({axis:?}, from {start} of {total})"),
            Op::Conv(a)
            | Op::ConvDgrad { conv: a, .. }
            | Op::ConvWgrad { conv: a, .. }
            | Op::ConvStats { conv: a, .. }
            | Op::ConvAct { conv: a, .. } => {
                write!(f, "(stride {}, pad {}", a.stride, a.pad)?;
                if a.groups > 1 {
                    write!(f, ", groups {}", a.groups)?;
                }
                f.write_str(if matches!(self, Op::ConvAct { relu: true, .. }) { ", relu)" } else { ")" })
            }
            Op::Matmul(a) => write!(f, "({}{})", if a.ta { 'T' } else { 'N' }, if a.tb { 'T' } else { 'N' }),
            Op::BnStats { groups } if *groups > 1 => write!(f, "(groups {groups})"),
            Op::GatherRanks { world, .. } => write!(f, "({world} ranks)"),
            Op::BnApply { source, .. } => write!(f, "({source:?})"),
            Op::BnAct { source, relu, .. } => write!(f, "({source:?}{})", if *relu { ", relu" } else { "" }),
            Op::Scale(weight) => write!(f, "({})", weight.factor),
            Op::ChannelShuffle { groups } => write!(f, "(groups {groups})"),
            Op::TopK { k } => write!(f, "({k})"),
            Op::NeighbourTargets { omega, temperature } => write!(f, "(ω {omega}, T {temperature})"),
            Op::Correlation { over, .. } => write!(f, "({over:?})"),
            Op::MaxPool(a) | Op::AvgPool(a) => write!(f, "({}, stride {}, pad {})", a.kernel, a.stride, a.pad),
            Op::RowLoss(term) => write!(f, "({})", term.kind),
            Op::RowLossGrad { term, side, weight } => {
                write!(f, "({}, {side:?}, weight {})", term.kind, weight.factor)
            }
            Op::RowLosses(table) => write!(f, "({table})"),
            Op::Sgd(args) => {
                write!(f, "({} tensors{})", args.params.len(), if args.nesterov { ", nesterov" } else { "" })
            }
            Op::Lars(args) => write!(f, "({} tensors)", args.params.len()),
            Op::Ema { pairs, .. } => write!(f, "({} tensors)", pairs.len()),
            Op::BnRunning { layers, .. } => write!(f, "({} layers)", layers.len()),
            _ => Ok(()),
        }
    }
}

/// `cross_entropy(label)`, `kl(logits, T 4)`, `target_kl(deviation × 2)`.
impl Display for RowKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            RowKind::HARD => f.write_str("cross_entropy(label)"),
            RowKind::CrossEntropy { target, temperature } => write!(f, "cross_entropy({target}, T {temperature})"),
            RowKind::Kl { target, temperature } => write!(f, "kl({target}, {temperature})"),
            RowKind::TargetKl { temperature } => write!(f, "target_kl({temperature})"),
            RowKind::NonTargetKl { temperature } => write!(f, "non_target_kl({temperature})"),
            RowKind::GeneralizedCrossEntropy { q } => write!(f, "generalized_cross_entropy(q {q})"),
            RowKind::BinaryCrossEntropy { class } => write!(f, "binary_cross_entropy(class {class})"),
            RowKind::Count => f.write_str("count"),
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Target::Label { on, off } => write!(f, "label {on} / {off}"),
            Target::MixedLabel => f.write_str("mixed label"),
            Target::Probabilities => f.write_str("probabilities"),
            Target::Logits => f.write_str("logits"),
        }
    }
}

impl Display for Temperature {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Temperature::Fixed(t) => write!(f, "T {t}"),
            Temperature::Std { scale } => write!(f, "deviation × {scale}"),
        }
    }
}

/// `kl(logits, T 4), rows #0+0 #0+64, student grad 8`: operands as the number of an input and the first row.
impl Display for RowTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, line) in self.terms.iter().enumerate() {
            write!(f, "{}{}, rows", if i > 0 { "; " } else { "" }, line.term.kind)?;
            line.views.iter().try_for_each(|v| write!(f, " #{}+{}", v.input, v.start))?;
            for (side, weight) in [("student", line.student_grad), ("target", line.target_grad)] {
                weight.map_or(Ok(()), |w| write!(f, ", {side} grad {}", w.factor))?;
            }
        }
        Ok(())
    }
}

impl Graph {
    /// `%7`, `batch.image`, `student.conv1.weight`.
    pub fn name(&self, id: ValueId) -> String {
        match self.value(id).source {
            Source::Node(..) => format!("%{}", id.0),
            Source::Batch(i) => format!("batch.{}", self.batch[i as usize].name),
            Source::State(state) => self.state(state).name.clone(),
            Source::Dropped => format!("%{} (dropped)", id.0),
        }
    }
}

impl Display for Graph {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut place = None;
        for node in &self.nodes {
            if place != Some(node.place) {
                place = Some(node.place);
                let section = match node.place.section {
                    Section::Prepare => "prepare",
                    Section::Body => "body",
                    Section::Update => "update",
                };
                writeln!(f, "{section} {}", node.place.phase)?;
            }
            let outputs: Vec<_> = node
                .outputs
                .iter()
                .map(|&o| format!("{}: {}{}", self.name(o), self.value(o).dtype.name(), self.shape(o)))
                .collect();
            let inputs: Vec<_> = node.inputs.iter().map(|&i| self.name(i)).collect();
            let made = if outputs.is_empty() { String::new() } else { outputs.join(", ") + " = " };
            writeln!(f, "  {made}{}({})  ; {}", node.op, inputs.join(", "), node.path)?;
        }
        Ok(())
    }
}
