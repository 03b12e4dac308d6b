//! One function per op: `run` executes an op on the memory of a launch.

use crate::elementwise::map_in_place;
use crate::io::{Io, Output, Real};
use crate::{bn, correlation, elementwise, image, linear, neighbours, pool, rank, ranks, row_loss, rows, update};
use graph::Op;
use tensor::Dtype;

/// Executes the op. Outputs of dtype bf16 are stored as `T` and rounded. Operands, order and formulas: [`graph::Op`].
/// Results are bit-identical for any number of threads; the caller's rayon pool does the work.
pub(crate) fn run<T: Real>(op: &Op, io: &mut Io<'_>) {
    match op {
        Op::ImageInput(args) => image::input::<T>(io, args, None),
        Op::PatchSwap { cell } => image::patch_swap::<T>(io, *cell),
        Op::ImageSwap { image, cell } => image::input::<T>(io, image, Some(*cell)),
        Op::MixRows => rows::mix::<T>(io),
        Op::MixRowsGrad => rows::mix_grad::<T>(io),
        Op::PasteBox => image::paste_box::<T>(io),
        Op::EraseBoxes { fill } => image::erase_boxes::<T>(io, *fill),
        Op::Concat { axis } => rows::concat::<T>(io, *axis),
        Op::Slice { axis, start, len: _ } => rows::slice::<T>(io, *axis, *start),
        Op::Unslice { axis, start, total: _ } => rows::unslice::<T>(io, *axis, *start),
        Op::GatherRows => rows::gather::<T>(io),
        Op::ChannelShuffle { groups } => rows::shuffle::<T>(io, *groups),
        Op::ScatterAddRows { rows: _ } => rows::scatter_add::<T>(io),
        Op::Conv(args) => linear::conv::<T>(io, *args),
        Op::ConvDgrad { conv, hw: _ } => linear::dgrad::<T>(io, *conv),
        Op::ConvWgrad { conv, kernel: _ } => linear::wgrad::<T>(io, *conv),
        Op::ConvStats { conv, groups } => {
            linear::conv::<T>(io, *conv);
            round::<T>(&mut io.outputs[0]);
            bn::output_stats::<T>(io, *groups);
        }
        Op::ConvAct { conv, relu } => linear::conv_act::<T>(io, *conv, *relu),
        Op::Matmul(args) => linear::matmul::<T>(io, *args),
        Op::AddBias => elementwise::add_bias::<T>(io),
        Op::ColumnSum => elementwise::column_sum::<T>(io),
        Op::BnStats { groups } => bn::stats::<T>(io, *groups),
        Op::BnApply { bn, source: _ } => bn::apply_act::<T>(io, *bn, false),
        Op::BnAct { bn, source: _, relu, mask: _ } => bn::apply_act::<T>(io, *bn, *relu),
        Op::BnGradSums { bn } => bn::grad_sums::<T>(io, *bn),
        Op::BnGradApply { bn, source, shortcut: _ } => bn::grad_apply::<T>(io, *bn, *source),
        Op::GatherRanks { world, count } => ranks::spread::<T>(io, &ranks::own::<T>(io, *count), *world),
        Op::BnMergeRanks => ranks::merge::<T>(io),
        Op::BnSumRanks { count } => ranks::sum::<T>(io, *count),
        Op::FoldBn { eps } => bn::fold::<T>(io, *eps),
        Op::Unary(kind) => elementwise::unary::<T>(io, *kind),
        Op::UnaryGrad(kind) => elementwise::unary_grad::<T>(io, *kind),
        Op::Binary(kind) => elementwise::binary::<T>(io, *kind),
        Op::Scale(weight) => elementwise::scale::<T>(io, *weight),
        Op::Zero => io.outputs[0].raw::<T>().fill(0),
        Op::Detach | Op::Reduce | Op::Carry => rows::copy::<T>(io),
        Op::MaxPool(args) => pool::max::<T>(io, *args),
        Op::MaxPoolGrad { pool, hw: _ } => pool::max_grad::<T>(io, *pool),
        Op::AvgPool(args) => pool::average::<T>(io, *args),
        Op::AvgPoolGrad { pool, hw: _ } => pool::average_grad::<T>(io, *pool),
        Op::GlobalAvgPool => pool::global::<T>(io),
        Op::GlobalAvgPoolGrad { hw } => pool::global_grad::<T>(io, *hw),
        Op::Softmax { temperature } => row_loss::softmax::<T>(io, *temperature),
        Op::RollingRows { rows: _ } => rows::rolling::<T>(io),
        Op::TopK { k } => rank::top_k::<T>(io, *k),
        Op::NeighbourTargets { omega, temperature } => neighbours::targets::<T>(io, *omega, *temperature),
        Op::Correlation { over, divisor } => correlation::value::<T>(io, *over, *divisor),
        Op::CorrelationGrad { over, divisor, weight } => correlation::gradient::<T>(io, *over, *divisor, *weight),
        Op::RowLoss(term) => row_loss::value::<T>(io, *term),
        Op::RowLossGrad { term, side, weight } => row_loss::gradient::<T>(io, *term, *side, *weight),
        Op::RowLosses(table) => row_loss::table::<T>(io, table),
        Op::SquaredError { divisor } => elementwise::squared_error::<T>(io, *divisor),
        Op::SquaredErrorGrad { divisor, weight } => elementwise::squared_error_grad::<T>(io, *divisor, *weight),
        Op::Correct { k } => rank::correct::<T>(io, *k),
        Op::GradNorm { grads } => update::grad_norm::<T>(io, *grads),
        Op::Accumulate => elementwise::accumulate::<T>(io),
        Op::Sgd(args) => update::sgd::<T>(io, args),
        Op::Lars(args) => update::lars::<T>(io, args),
        Op::Ema { pairs: _, decay } => update::ema::<T>(io, *decay),
        Op::BnRunning { momentum, layers } => update::bn_running::<T>(io, *momentum, layers),
        Op::Assign { state: _ } => update::assign::<T>(io),
        Op::ScatterRows { state: _ } => update::scatter::<T>(io),
    }
    io.outputs.iter_mut().for_each(round::<T>);
}

/// What a store to bf16 loses.
fn round<T: Real>(output: &mut Output<'_>) {
    if output.dtype == Dtype::Bf16 {
        map_in_place(output.real::<T>(), T::round_bf16);
    }
}
