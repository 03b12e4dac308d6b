//! Expressions: copyable handles over a graph under construction, so that a method reads as its formula.

use crate::graph::{Graph, Place, Section, StateId, ValueId};
use crate::loss::Loss;
use crate::op::*;
use crate::row::*;
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

    /// The phase that new nodes belong to now.
    pub fn phase(&self) -> u32 {
        self.phase.get()
    }

    pub fn graph(&self) -> Ref<'_, Graph> {
        self.graph.borrow()
    }

    pub fn finish(self) -> Graph {
        self.graph.into_inner()
    }

    /// Changes the graph directly: for what no expression says.
    pub fn edit<T>(&self, change: impl FnOnce(&mut Graph) -> T) -> T {
        change(&mut self.graph.borrow_mut())
    }

    pub fn expr(&self, id: ValueId) -> Expr<'_> {
        Expr { builder: self, id }
    }

    /// A value that reads a state.
    pub fn read(&self, state: StateId) -> Expr<'_> {
        self.expr(self.edit(|g| g.read(state)))
    }

    /// Appends a node of the body. Panics, naming the node, when the op does not take the inputs.
    #[track_caller]
    pub fn push(&self, op: Op, inputs: &[Expr<'_>], path: &str) -> Vec<Expr<'_>> {
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

    /// Image rows with a box taken from image[permutation].
    #[track_caller]
    pub fn paste_box(self, permutation: Expr<'g>, cut: Expr<'g>) -> Expr<'g> {
        self.op(Op::PasteBox, &[permutation, cut])
    }

    /// Image rows with a box each filled.
    #[track_caller]
    pub fn erase_boxes(self, boxes: Expr<'g>, fill: [f64; 3]) -> Expr<'g> {
        self.op(Op::EraseBoxes { fill }, &[boxes])
    }

    /// Channels regrouped: out[i] = self[(i mod groups)(c/groups) + i div groups].
    #[track_caller]
    pub fn channel_shuffle(self, groups: usize) -> Expr<'g> {
        self.op(Op::ChannelShuffle { groups }, &[])
    }

    /// Classes of the k largest logits of each row, i32 [n,k].
    #[track_caller]
    pub fn top_k(self, k: usize) -> Expr<'g> {
        self.op(Op::TopK { k }, &[])
    }

    /// Targets from the predictions of similar rows: self are features [n,d].
    #[track_caller]
    pub fn neighbour_targets(self, logits: Expr<'g>, omega: f64, temperature: f64) -> Expr<'g> {
        self.op(Op::NeighbourTargets { omega, temperature }, &[logits])
    }

    /// y = self wᵀ + b, w [out,in], in the dtype of logits.
    #[track_caller]
    pub fn linear(self, w: Expr<'g>, b: Option<Expr<'g>>, path: &str) -> Expr<'g> {
        let dtype = self.builder.graph().precision.acc();
        let inputs: Vec<_> = [self, w].into_iter().chain(b).collect();
        self.builder.push(Op::Matmul(MatmulArgs { ta: false, tb: true, dtype }), &inputs, path)[0]
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

    /// Mean over rows of what `kind` measures, over the rows that the mask keeps, divided by all rows.
    #[track_caller]
    pub fn row_loss(self, kind: RowKind, targets: &[Expr<'g>], mask: RowMask, of: &[Expr<'g>]) -> Loss {
        let term = RowTerm { kind, mask, divisor: self.divisor(1) };
        self.op(Op::RowLoss(term), &[targets, of].concat()).id.into()
    }

    /// Mean over rows of −log softmax(self)[label].
    #[track_caller]
    pub fn cross_entropy(self, label: Expr<'g>) -> Loss {
        self.row_loss(RowKind::HARD, &[label], RowMask::All, &[])
    }

    /// Cross-entropy against `on` at the label and `off` elsewhere.
    #[track_caller]
    pub fn cross_entropy_smoothed(self, label: Expr<'g>, on: f64, off: f64) -> Loss {
        let kind = RowKind::CrossEntropy { target: Target::Label { on, off }, temperature: 1.0 };
        self.row_loss(kind, &[label], RowMask::All, &[])
    }

    /// λ CE(self, label) + (1 − λ) CE(self, label[permutation]), `mix` being permutation and λ.
    #[track_caller]
    pub fn cross_entropy_mixed(self, label: Expr<'g>, mix: [Expr<'g>; 2]) -> Loss {
        let kind = RowKind::CrossEntropy { target: Target::MixedLabel, temperature: 1.0 };
        self.row_loss(kind, &[label, label.gather(mix[0]), mix[1]], RowMask::All, &[])
    }

    /// Mean over rows of −Σ q log softmax(self), q rows of probabilities without gradient.
    #[track_caller]
    pub fn cross_entropy_soft(self, q: Expr<'g>) -> Loss {
        let kind = RowKind::CrossEntropy { target: Target::Probabilities, temperature: 1.0 };
        self.row_loss(kind, &[q], RowMask::All, &[])
    }

    /// Mean over rows of KL(softmax(teacher/T) ‖ softmax(self/T)), without T².
    #[track_caller]
    pub fn kl(self, teacher: Expr<'g>, temperature: f64) -> Loss {
        self.kl_where(teacher, temperature, RowMask::All, &[])
    }

    /// `kl` over the rows that the mask keeps, divided by all rows.
    #[track_caller]
    pub fn kl_where(self, teacher: Expr<'g>, temperature: f64, mask: RowMask, of: &[Expr<'g>]) -> Loss {
        let kind = RowKind::Kl { target: Target::Logits, temperature: Temperature::Fixed(temperature) };
        self.row_loss(kind, &[teacher], mask, of)
    }

    /// Mean over rows, or over columns, of 1 − the Pearson correlation of softmax(self) and softmax(teacher).
    #[track_caller]
    pub fn decorrelation(self, teacher: Expr<'g>, over: Axis) -> Loss {
        self.op(Op::Correlation { over, divisor: self.divisor(1) }, &[teacher]).id.into()
    }

    /// Mean over all elements of (self − other)².
    #[track_caller]
    pub fn mse(self, other: Expr<'g>) -> Loss {
        let elements: usize = self.shape().dims().iter().skip(1).product();
        self.op(Op::SquaredError { divisor: self.divisor(elements) }, &[other]).id.into()
    }

    /// Mean over all elements of self².
    pub fn mean_square(self) -> Loss {
        let elements: usize = self.shape().dims().iter().skip(1).product();
        self.op(Op::SquaredError { divisor: self.divisor(elements) }, &[]).id.into()
    }

    /// Σ over all elements of (self − other)²: no mean, for weights.
    #[track_caller]
    pub fn squared_distance(self, other: Expr<'g>) -> Loss {
        self.op(Op::SquaredError { divisor: Divisor::ONE }, &[other]).id.into()
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
