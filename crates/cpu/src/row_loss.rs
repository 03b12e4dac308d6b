//! Losses over rows of logits: a term, and the table of all terms of a step.
//!
//! A term is Σ over counted rows of its row value / divisor (chapter 0.3; the KL here has no T²). A row whose labels are all
//! negative is padding: it adds nothing and has no gradient. Plain and fused forms share the functions of one row.
//!
//! NOTE: rows are computed in parallel, their values summed in row order, and gradients of terms added in the table's order:
//! bits do not depend on the number of threads.

use crate::elementwise::{for_block_pairs, for_blocks};
use crate::io::{Input, Io, Real, Scalars};
use crate::row_kind::{RowWork, Rows, Softmax};
use graph::{MaskRule, RowKind, RowMask, RowTable, RowTerm, Side, Target, Temperature, Weight};

/// Logits of a block of rows: a block takes some 100 µs.
const BLOCK: usize = 1 << 12;

/// Rows of width `k` in a block.
pub(crate) fn rows_of_block(k: usize) -> usize {
    (BLOCK / k.max(1)).max(1)
}

/// Softmax of rows.
pub(crate) fn softmax<T: Real>(io: &mut Io<'_>, temperature: f64) {
    let (x, k) = (io.real::<T>(0), io.dims(0)[1]);
    let size = rows_of_block(k) * k;
    for_blocks(io.out::<T>(), size, |i, out| {
        let mut softmax = Softmax::new();
        for (out, z) in out.chunks_exact_mut(k).zip(x[i * size..].chunks_exact(k)) {
            softmax.set(z, Temperature::Fixed(temperature));
            out.copy_from_slice(&softmax.p);
        }
    });
}

/// A term and its operands: logits, the target's, the mask's.
struct Term<'a, T> {
    term: RowTerm,
    operands: Vec<Rows<'a, T>>,
    rows: usize,
}

impl<'a, T: Real> Term<'a, T> {
    /// The term of `RowLoss`: its inputs, whole.
    fn whole(term: RowTerm, inputs: &[Input<'a>]) -> Term<'a, T> {
        let rows = inputs[0].shape[0];
        Term { term, operands: inputs.iter().map(|input| Rows::new(input, 0)).collect(), rows }
    }

    /// Is every label of the row negative?
    fn is_padding(&self, r: usize) -> bool {
        let absent = |i: usize| self.operands[i].label(r).is_none();
        match self.term.kind {
            RowKind::CrossEntropy { target, .. } | RowKind::Kl { target, .. } => match target {
                Target::Label { .. } => absent(1),
                Target::MixedLabel => absent(1) && absent(2),
                Target::Probabilities | Target::Logits => false,
            },
            RowKind::TargetKl { .. } | RowKind::NonTargetKl { .. } => absent(2),
            RowKind::GeneralizedCrossEntropy { .. } | RowKind::BinaryCrossEntropy { .. } | RowKind::Count => false,
        }
    }

    /// Does the row count?
    fn counts(&self, r: usize, softmax: &mut Softmax<T>) -> bool {
        if self.is_padding(r) {
            return false;
        }
        let masks = &self.operands[1 + self.term.kind.targets()..];
        match self.term.mask {
            RowMask::All => true,
            RowMask::Confident { threshold } => {
                softmax.set(masks[0].row(r), Temperature::Fixed(1.0));
                // A row that is not finite counts, so that its loss stops the run instead of being left out.
                softmax.p.iter().any(|&p| p >= T::of(threshold) || p.is_nan())
            }
            RowMask::LabelProb { rule } => masks[2].label(r).is_some_and(|label| {
                let [m, other] = [0, 1].map(|i| {
                    softmax.set(masks[i].row(r), Temperature::Fixed(1.0));
                    softmax.p[label]
                });
                match rule {
                    MaskRule::Greater => m > other,
                    MaskRule::GreaterOrEqual => m >= other,
                }
            }),
        }
    }

    /// Σ over counted rows / divisor. With a side and a weight, its gradient times the weight is added to the rows of `dz`.
    fn run(&self, grad: Option<(Side, Weight)>, scalars: &Scalars, dz: &mut [T]) -> f64 {
        let divisor = scalars.divisor(self.term.divisor);
        let factor = T::of(grad.map_or(0.0, |(_, weight)| scalars.weight(weight) / divisor));
        let (side, k) = (grad.map(|(side, _)| side), self.operands[0].width);
        let (rows, mut values) = (rows_of_block(k), vec![0.0; self.rows]);
        let dz = &mut dz[..if grad.is_some() { self.rows * k } else { 0 }];
        for_block_pairs((&mut values, rows), (dz, rows * k), |block, values, dz| {
            let (mut work, mut mask, mut dz) = (RowWork::new(), Softmax::new(), dz.chunks_exact_mut(k));
            for (i, value) in values.iter_mut().enumerate() {
                let (r, dz) = (block * rows + i, dz.next().unwrap_or_default());
                if self.counts(r, &mut mask) {
                    *value = work.run(self.term.kind, &self.operands, r, side).to_f64();
                    dz.iter_mut().zip(&work.d).for_each(|(dz, &d)| *dz += factor * d);
                }
            }
        });
        values.iter().sum::<f64>() / divisor
    }
}

/// logits, target's, [mask's] → value.
pub(crate) fn value<T: Real>(io: &mut Io<'_>, term: RowTerm) {
    let value = Term::<T>::whole(term, &io.inputs).run(None, io.scalars, &mut []);
    io.out()[0] = T::of(value);
}

/// logits, target's, [mask's] → gradient of one side times the weight.
pub(crate) fn gradient<T: Real>(io: &mut Io<'_>, term: RowTerm, side: Side, weight: Weight) {
    let term = Term::<T>::whole(term, &io.inputs);
    let scalars = io.scalars;
    let dz = io.out::<T>();
    dz.fill(T::ZERO);
    term.run(Some((side, weight)), scalars, dz);
}

/// Every row loss of a step: a value per term, then the gradients of the inputs listed in `grads`, terms in table order.
pub(crate) fn table<T: Real>(io: &mut Io<'_>, table: &RowTable) {
    let (values, grads) = io.outputs.split_at_mut(table.terms.len());
    grads.iter_mut().for_each(|g| g.real::<T>().fill(T::ZERO));
    for (line, value) in table.terms.iter().zip(values) {
        let operands = line.views.iter().map(|view| Rows::new(&io.inputs[view.input], view.start)).collect();
        let term = Term::<T> { term: line.term, operands, rows: line.rows };
        let mut total = None;
        for (side, weight) in [(Side::Student, line.student_grad), (Side::Target, line.target_grad)] {
            let Some(weight) = weight else { continue };
            let view = line.views[side as usize];
            let Some(i) = table.grads.iter().position(|&g| g == view.input) else { continue };
            let first = view.start * term.operands[side as usize].width;
            total = Some(term.run(Some((side, weight)), io.scalars, &mut grads[i].real::<T>()[first..]));
        }
        value.real::<T>()[0] = T::of(total.unwrap_or_else(|| term.run(None, io.scalars, &mut [])));
    }
}
