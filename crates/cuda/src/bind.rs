//! bind: a launch of a plan becomes commands: kernels with grids and argument structs, copies, fills.
//!
//! A pure function of the launch, the addresses and the number of SMs: equal on every rank, testable without a GPU. One
//! function per op, in the module of its family; each kernel's argument struct lies beside it, its size asserted on both sides.

use crate::binding::{Addresses, Bind, Bound, Math};
use crate::{bn, bn_ranks, conv, elementwise, image, loss, matmul, pool, rank, rows, update};
use graph::Op;
use plan::Launch;

/// The commands of a launch.
pub fn bind(launch: &Launch, addresses: &Addresses, math: Math, sms: u32) -> Bound {
    let mut b = Bind::new(launch, addresses, math, sms);
    op(&mut b, &launch.op);
    b.end()
}

/// One function per op.
fn op(b: &mut Bind<'_>, op: &Op) {
    match op {
        Op::ImageInput(args) => image::input(b, args, None),
        Op::PatchSwap { cell } => image::patch_swap(b, *cell),
        Op::ImageSwap { image, cell } => image::input(b, image, Some(*cell)),
        Op::MixRows => image::mix(b),
        Op::MixRowsGrad => image::mix_grad(b),
        Op::PasteBox => image::paste_box(b),
        Op::EraseBoxes { fill } => image::erase_boxes(b, *fill),
        Op::Concat { axis } => rows::concat(b, *axis),
        Op::Slice { axis, start, len: _ } => rows::slice(b, *axis, *start),
        Op::Unslice { axis, start, total: _ } => rows::unslice(b, *axis, *start),
        Op::GatherRows => rows::gather(b),
        Op::ChannelShuffle { groups } => rows::shuffle(b, *groups),
        Op::ScatterAddRows { rows: _ } => rows::scatter_add(b),
        Op::Conv(args) => conv::fprop(b, *args, false),
        Op::ConvDgrad { conv, hw: _ } => conv::dgrad(b, *conv),
        Op::ConvWgrad { conv, kernel: _ } => conv::wgrad(b, *conv),
        Op::ConvStats { conv, groups } => conv::stats(b, *conv, *groups),
        Op::ConvAct { conv, relu } => conv::fprop(b, *conv, *relu),
        Op::Matmul(args) => matmul::matmul(b, *args),
        Op::AddBias => matmul::add_bias(b),
        Op::ColumnSum => matmul::column_sum(b),
        Op::BnStats { groups } => bn::stats(b, *groups),
        Op::BnApply { bn, source: _ } => bn::apply(b, *bn, false),
        Op::BnAct { bn, source: _, relu, mask: _ } => bn::apply(b, *bn, *relu),
        Op::BnGradSums { bn } => bn::grad_sums(b, *bn),
        Op::BnGradApply { bn, source, shortcut: _ } => bn::grad_apply(b, *bn, *source),
        Op::GatherRanks { world, count } => bn_ranks::gather(b, *world, *count),
        Op::BnMergeRanks => bn_ranks::merge(b),
        Op::BnSumRanks { count } => bn_ranks::sum(b, *count),
        Op::FoldBn { eps } => bn::fold(b, *eps),
        Op::Unary(kind) => elementwise::unary(b, *kind),
        Op::UnaryGrad(kind) => elementwise::unary_grad(b, *kind),
        Op::Binary(kind) => elementwise::binary(b, *kind),
        Op::Scale(weight) => elementwise::scale(b, *weight),
        Op::Zero => b.zero(b.output(0)),
        Op::Detach | Op::Reduce | Op::Carry => elementwise::copy(b),
        Op::MaxPool(args) => pool::max(b, *args),
        Op::MaxPoolGrad { pool, hw: _ } => pool::max_grad(b, *pool),
        Op::AvgPool(args) => pool::average(b, *args),
        Op::AvgPoolGrad { pool, hw: _ } => pool::average_grad(b, *pool),
        Op::GlobalAvgPool => pool::global(b),
        Op::GlobalAvgPoolGrad { hw: _ } => pool::global_grad(b),
        Op::Softmax { temperature } => loss::softmax(b, *temperature),
        Op::RollingRows { rows: _ } => rows::rolling(b),
        Op::TopK { k } => rank::top_k(b, *k),
        Op::NeighbourTargets { omega, temperature } => rank::neighbour_targets(b, *omega, *temperature),
        Op::Correlation { over, divisor } => rank::correlation(b, *over, *divisor, None),
        Op::CorrelationGrad { over, divisor, weight } => rank::correlation(b, *over, *divisor, Some(*weight)),
        Op::RowLoss(term) => loss::value(b, *term),
        Op::RowLossGrad { term, side, weight } => loss::gradient(b, *term, *side, *weight),
        Op::RowLosses(table) => loss::table(b, table),
        Op::SquaredError { divisor } => loss::squared_error(b, *divisor),
        Op::SquaredErrorGrad { divisor, weight } => loss::squared_error_grad(b, *divisor, *weight),
        Op::Correct { k } => rank::correct(b, *k),
        Op::GradNorm { grads } => update::grad_norm(b, *grads),
        Op::Accumulate => elementwise::accumulate(b),
        Op::Sgd(args) => update::sgd(b, args),
        Op::Lars(args) => update::lars(b, args),
        Op::Ema { pairs: _, decay } => update::ema(b, *decay),
        Op::BnRunning { momentum, layers } => update::bn_running(b, *momentum, layers),
        Op::Assign { state: _ } => update::assign(b),
        Op::ScatterRows { state: _ } => update::scatter_rows(b),
    }
}
