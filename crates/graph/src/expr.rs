//! Expressions: copyable handles over a graph under construction, so that a method reads as its formula.

use crate::graph::{Graph, Place, Section, StateId, ValueId};
use crate::loss::Loss;
use crate::op::*;
use std::cell::{Cell, Ref, RefCell};
use tensor::Shape;

/// A graph under construction. Handles borrow it; `finish` gives the graph back.
#[derive(Debug)]
pub struct Builder {
    graph: RefCell<Graph>,
    phase: Cell<u32>,
}

impl Builder {
    pub fn new(graph: Graph) -> Builder {
        Builder { graph: RefCell::new(graph), phase: Cell::new(0) }
    }

    /// The phase that new nodes belong to.
    pub fn set_phase(&self, phase: u32) {
        self.phase.set(phase);
    }

    pub(crate) fn phase(&self) -> u32 {
        self.phase.get()
    }

    pub fn graph(&self) -> Ref<'_, Graph> {
        self.graph.borrow()
    }

    pub fn finish(self) -> Graph {
        self.graph.into_inner()
    }

    pub(crate) fn edit<T>(&self, change: impl FnOnce(&mut Graph) -> T) -> T {
        change(&mut self.graph.borrow_mut())
    }

    pub fn expr(&self, id: ValueId) -> Expr<'_> {
        Expr { builder: self, id }
    }

    /// A value that reads a state.
    pub fn read(&self, state: StateId) -> Expr<'_> {
        self.expr(self.edit(|g| g.read(state)))
    }

    #[track_caller]
    pub(crate) fn push(&self, op: Op, inputs: &[Expr<'_>], path: &str) -> Vec<Expr<'_>> {
        let place = Place { phase: self.phase.get(), section: Section::Body };
        let ids: Vec<_> = inputs.iter().map(|e| e.id).collect();
        let out = self.edit(|g| g.push(op, &ids, path, place));
        out.into_iter().map(|id| self.expr(id)).collect()
    }
}

/// A value of the graph.
#[derive(Clone, Copy, Debug)]
pub struct Expr<'g> {
    builder: &'g Builder,
    id: ValueId,
}

impl<'g> Expr<'g> {
    pub fn id(self) -> ValueId {
        self.id
    }

    pub fn builder(self) -> &'g Builder {
        self.builder
    }

    pub fn shape(self) -> Shape {
        self.builder.graph().shape(self.id)
    }

    /// Rows of axis 0.
    pub fn rows(self) -> usize {
        self.shape().dims()[0]
    }

    #[track_caller]
    fn op(self, op: Op, others: &[Expr<'g>]) -> Expr<'g> {
        let path = self.path(op.name());
        let inputs: Vec<_> = std::iter::once(self).chain(others.iter().copied()).collect();
        self.builder.push(op, &inputs, &path)[0]
    }

    /// Path of a new node: that of the layer that made this value, and what is done to it: `student/layer1.0/bn1.relu`.
    fn path(self, op: &str) -> String {
        match self.builder.graph().producer(self.id) {
            Some(node) => {
                let layer = node.path.rfind('/').map_or(0, |slash| slash + 1);
                let end = node.path[layer..].find('.').map_or(node.path.len(), |dot| layer + dot);
                format!("{}.{op}", &node.path[..end])
            }
            None => op.to_string(),
        }
    }

    /// Stops the gradient.
    pub fn detach(self) -> Expr<'g> {
        self.op(Op::Detach, &[])
    }

    pub fn relu(self) -> Expr<'g> {
        self.op(Op::Unary(Unary::Relu), &[])
    }

    pub fn relu6(self) -> Expr<'g> {
        self.op(Op::Unary(Unary::Relu6), &[])
    }

    pub fn sigmoid(self) -> Expr<'g> {
        self.op(Op::Unary(Unary::Sigmoid), &[])
    }

    /// weight × self.
    pub fn scale(self, weight: impl Into<Weight>) -> Expr<'g> {
        self.op(Op::Scale(weight.into()), &[])
    }

    pub fn max_pool(self, kernel: usize, stride: usize, pad: usize) -> Expr<'g> {
        self.op(Op::MaxPool(PoolArgs { kernel, stride, pad }), &[])
    }

    /// Mean over the window, padding zeros counted.
    pub fn avg_pool(self, kernel: usize, stride: usize, pad: usize) -> Expr<'g> {
        self.op(Op::AvgPool(PoolArgs { kernel, stride, pad }), &[])
    }

    /// Mean over height and width: [n,h,w,c] → [n,c].
    pub fn mean_hw(self) -> Expr<'g> {
        self.op(Op::GlobalAvgPool, &[])
    }

    /// Rows `start..start + len` of axis 0.
    #[track_caller]
    pub fn slice_rows(self, start: usize, len: usize) -> Expr<'g> {
        self.op(Op::Slice { axis: Axis::Batch, start, len }, &[])
    }

    #[track_caller]
    pub fn slice_channels(self, start: usize, len: usize) -> Expr<'g> {
        self.op(Op::Slice { axis: Axis::Channel, start, len }, &[])
    }

    /// The first and the second half of the rows.
    #[track_caller]
    pub fn halves(self) -> (Expr<'g>, Expr<'g>) {
        let half = self.rows() / 2;
        (self.slice_rows(0, half), self.slice_rows(half, half))
    }

    #[track_caller]
    pub fn concat_rows(self, others: &[Expr<'g>]) -> Expr<'g> {
        self.op(Op::Concat { axis: Axis::Batch }, others)
    }

    #[track_caller]
    pub fn concat_channels(self, others: &[Expr<'g>]) -> Expr<'g> {
        self.op(Op::Concat { axis: Axis::Channel }, others)
    }

    /// Rows `index` (i32) of this value.
    #[track_caller]
    pub fn gather(self, index: Expr<'g>) -> Expr<'g> {
        self.op(Op::GatherRows, &[index])
    }

    /// λ self + (1 − λ) self[permutation].
    #[track_caller]
    pub fn mix(self, permutation: Expr<'g>, lambda: Expr<'g>) -> Expr<'g> {
        self.op(Op::MixRows, &[permutation, lambda])
    }

    /// Exchanges the masked cells of `cell` pixels between rows i and n + i; mask u8 [n, cells].
    #[track_caller]
    pub fn patch_swap(self, mask: Expr<'g>, cell: usize) -> Expr<'g> {
        self.op(Op::PatchSwap { cell }, &[mask])
    }

    /// Rows of softmax(self / temperature), as a target: no gradient passes.
    pub fn softmax(self, temperature: f64) -> Expr<'g> {
        self.op(Op::Softmax { temperature }, &[])
    }

    /// Counts [2] of rows whose label is first, and among the first k.
    #[track_caller]
    pub fn correct(self, label: Expr<'g>, k: usize) -> Expr<'g> {
        self.op(Op::Correct { k }, &[label])
    }

    /// The divisor of a mean over all rows of this value in the global batch, times `elements` of each row.
    pub fn divisor(self, elements: usize) -> Divisor {
        let rows = self.builder.graph().value(self.id).rows;
        let per_unit = rows.0.map(|r| r as u64 * elements as u64);
        let constant = if per_unit == [0, 0] { self.shape().elements() as u64 } else { 0 };
        Divisor { constant, per_unit }
    }

    #[track_caller]
    fn row_loss(self, kind: RowKind, target: Expr<'g>, mask: RowMask, mask_inputs: &[Expr<'g>]) -> Loss {
        let term = RowTerm { kind, mask, divisor: self.divisor(1) };
        let others: Vec<_> = std::iter::once(target).chain(mask_inputs.iter().copied()).collect();
        self.op(Op::RowLoss(term), &others).id.into()
    }

    /// Mean over rows of −log softmax(self)[label].
    #[track_caller]
    pub fn cross_entropy(self, label: Expr<'g>) -> Loss {
        self.row_loss(RowKind::CrossEntropy { on: 1.0, off: 0.0 }, label, RowMask::All, &[])
    }

    /// Cross-entropy against `on` at the label and `off` elsewhere.
    #[track_caller]
    pub fn cross_entropy_smoothed(self, label: Expr<'g>, on: f64, off: f64) -> Loss {
        self.row_loss(RowKind::CrossEntropy { on, off }, label, RowMask::All, &[])
    }

    /// Mean over rows of −Σ q log softmax(self), q rows of probabilities without gradient.
    #[track_caller]
    pub fn cross_entropy_soft(self, q: Expr<'g>) -> Loss {
        self.row_loss(RowKind::SoftCrossEntropy, q, RowMask::All, &[])
    }

    /// Mean over rows of KL(softmax(teacher/T) ‖ softmax(self/T)), without T².
    #[track_caller]
    pub fn kl(self, teacher: Expr<'g>, temperature: f64) -> Loss {
        self.row_loss(RowKind::Kl { temperature }, teacher, RowMask::All, &[])
    }

    /// `kl` over the rows that the mask keeps, divided by all rows.
    #[track_caller]
    pub fn kl_where(self, teacher: Expr<'g>, temperature: f64, mask: RowMask, of: &[Expr<'g>]) -> Loss {
        self.row_loss(RowKind::Kl { temperature }, teacher, mask, of)
    }

    /// Mean over all elements of (self − other)².
    #[track_caller]
    pub fn mse(self, other: Expr<'g>) -> Loss {
        let elements: usize = self.shape().dims().iter().skip(1).product();
        self.op(Op::SquaredError { divisor: self.divisor(elements) }, &[other]).id.into()
    }

    /// Σ over all elements of (self − other)²: no mean, for weights.
    #[track_caller]
    pub fn squared_distance(self, other: Expr<'g>) -> Loss {
        self.op(Op::SquaredError { divisor: Divisor { constant: 1, per_unit: [0, 0] } }, &[other]).id.into()
    }
}

impl<'g> std::ops::Add for Expr<'g> {
    type Output = Expr<'g>;
    #[track_caller]
    fn add(self, other: Expr<'g>) -> Expr<'g> {
        self.op(Op::Binary(Binary::Add), &[other])
    }
}

impl<'g> std::ops::Sub for Expr<'g> {
    type Output = Expr<'g>;
    #[track_caller]
    fn sub(self, other: Expr<'g>) -> Expr<'g> {
        self.op(Op::Binary(Binary::Sub), &[other])
    }
}

impl<'g> std::ops::Mul for Expr<'g> {
    type Output = Expr<'g>;
    #[track_caller]
    fn mul(self, other: Expr<'g>) -> Expr<'g> {
        self.op(Op::Binary(Binary::Mul), &[other])
    }
}
