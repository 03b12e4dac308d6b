//! Losses over rows of logits, and counts of correct rows.
//!
//! A term is Σ over counted rows of its row value / divisor (chapter 0.3; the KL here has no T²). A row whose label is
//! negative is padding: it adds nothing and has no gradient. Plain and fused forms share the functions of one row.

use crate::elementwise::{map, sum};
use crate::io::{Input, Io, Real, Scalars};
use graph::{Divisor, MaskRule, RowKind, RowMask, RowTable, RowTerm, Side, Weight};
use std::cmp::Ordering;
use tensor::Dtype;

/// log softmax(z / T).
fn log_softmax<T: Real>(z: &[T], temperature: f64) -> Vec<T> {
    let t = T::of(temperature);
    let max = z.iter().copied().fold(T::of(f64::NEG_INFINITY), |max, z| if z > max { z } else { max });
    let mut row: Vec<T> = z.iter().map(|&z| (z - max) / t).collect();
    let log_sum = row.iter().map(|z| z.exp()).sum::<T>().ln();
    row.iter_mut().for_each(|z| *z = *z - log_sum);
    row
}

/// Softmax of rows.
pub(crate) fn softmax<T: Real>(io: &mut Io<'_>, temperature: f64) {
    let (x, k) = (io.real::<T>(0), io.dims(0)[1]);
    for (out, z) in io.out::<T>().chunks_exact_mut(k).zip(x.chunks_exact(k)) {
        out.iter_mut().zip(log_softmax(z, temperature)).for_each(|(out, log)| *out = log.exp());
    }
}

/// Rows of an operand from a first row on: logits, probabilities or labels.
struct Rows<'a, T> {
    real: &'a [T],
    label: &'a [i32],
    width: usize,
    start: usize,
}

impl<'a, T: Real> Rows<'a, T> {
    fn new(input: &Input<'a>, start: usize) -> Rows<'a, T> {
        let labels = input.dtype == Dtype::I32;
        let (real, label) = if labels { (&[][..], input.i32()) } else { (input.real(), &[][..]) };
        Rows { real, label, width: input.shape.dims().last().copied().unwrap_or(1), start }
    }

    fn row(&self, r: usize) -> &'a [T] {
        &self.real[(self.start + r) * self.width..][..self.width]
    }

    fn label(&self, r: usize) -> Option<usize> {
        usize::try_from(self.label[self.start + r]).ok()
    }
}

/// A term and its operands: student, target, mask inputs.
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

    /// Does the row count?
    fn counts(&self, r: usize) -> bool {
        let padded = matches!(self.term.kind, RowKind::CrossEntropy { .. }) && self.operands[1].label(r).is_none();
        let masks = &self.operands[2..];
        let log_p = |i: usize| log_softmax(masks[i].row(r), 1.0);
        !padded
            && match self.term.mask {
                RowMask::All => true,
                RowMask::Confident { threshold } => log_p(0).iter().any(|log_p| log_p.exp() >= T::of(threshold)),
                RowMask::LabelProb { rule } => masks[2].label(r).is_some_and(|label| {
                    let (m, other) = (log_p(0)[label].exp(), log_p(1)[label].exp());
                    match rule {
                        MaskRule::Greater => m > other,
                        MaskRule::GreaterOrEqual => m >= other,
                    }
                }),
            }
    }

    /// Temperature of the softmax, and the target's log-probabilities or probabilities.
    fn temperature(&self) -> f64 {
        if let RowKind::Kl { temperature } = self.term.kind { temperature } else { 1.0 }
    }

    fn row_value(&self, r: usize) -> T {
        let (student, target) = (&self.operands[0], &self.operands[1]);
        let log_p = log_softmax(student.row(r), self.temperature());
        match self.term.kind {
            RowKind::CrossEntropy { on, off } => {
                let weight = |j: usize| T::of(if target.label(r) == Some(j) { on } else { off });
                let weighted = log_p.iter().enumerate().filter(|&(j, _)| weight(j) != T::ZERO);
                -weighted.map(|(j, &log_p)| weight(j) * log_p).sum::<T>()
            }
            RowKind::SoftCrossEntropy => -target.row(r).iter().zip(&log_p).map(|(&q, &log_p)| q * log_p).sum::<T>(),
            RowKind::Kl { temperature } => {
                let log_q = log_softmax(target.row(r), temperature);
                log_q.iter().zip(&log_p).map(|(&log_q, &log_p)| log_q.exp() * (log_q - log_p)).sum()
            }
        }
    }

    /// Σ over counted rows / divisor.
    fn value(&self, scalars: &Scalars) -> f64 {
        let rows = (0..self.rows).filter(|&r| self.counts(r)).map(|r| self.row_value(r).to_f64());
        rows.sum::<f64>() / scalars.divisor(self.term.divisor)
    }

    /// dz += factor · d(row value)/dz for the logits of one side.
    fn add_row_gradient(&self, r: usize, side: Side, factor: f64, dz: &mut [T]) {
        let (student, target) = (&self.operands[0], &self.operands[1]);
        let factor = T::of(factor / self.temperature());
        let log_p = log_softmax(student.row(r), self.temperature());
        let add = |(dz, d): (&mut T, T)| *dz += factor * d;
        match (self.term.kind, side) {
            (RowKind::CrossEntropy { on, off }, _) => {
                let total = T::of(on + off * (log_p.len() as f64 - 1.0));
                let weight = |j: usize| T::of(if target.label(r) == Some(j) { on } else { off });
                let d = log_p.iter().enumerate().map(|(j, log_p)| total * log_p.exp() - weight(j));
                dz.iter_mut().zip(d).for_each(add);
            }
            (RowKind::SoftCrossEntropy, _) => {
                let q = target.row(r);
                let total = q.iter().copied().sum::<T>();
                let d = log_p.iter().zip(q).map(|(log_p, &q)| total * log_p.exp() - q);
                dz.iter_mut().zip(d).for_each(add);
            }
            (RowKind::Kl { temperature }, side) => {
                let log_q = log_softmax(target.row(r), temperature);
                let pairs = log_q.iter().zip(&log_p);
                if side == Side::Student {
                    return dz.iter_mut().zip(pairs.map(|(log_q, log_p)| log_p.exp() - log_q.exp())).for_each(add);
                }
                // q (log q − log p − KL), ratios relative to the likeliest class: no cancellation where q is nearly 1.
                let top = (1..log_q.len()).fold(0, |top, j| if log_q[j] > log_q[top] { j } else { top });
                let pivot = log_q[top] - log_p[top];
                let pairs = pairs.map(|(&log_q, &log_p)| (log_q.exp(), log_q - log_p - pivot));
                let mean = pairs.clone().map(|(q, ratio)| q * ratio).sum::<T>();
                dz.iter_mut().zip(pairs.map(|(q, ratio)| q * (ratio - mean))).for_each(add);
            }
        }
    }

    /// Adds the gradient of one side, times the weight, to rows of width k.
    fn add_gradient(&self, side: Side, weight: Weight, scalars: &Scalars, dz: &mut [T]) {
        let factor = scalars.weight(weight) / scalars.divisor(self.term.divisor);
        let k = self.operands[side as usize].width;
        for (r, dz) in dz.chunks_exact_mut(k).take(self.rows).enumerate().filter(|&(r, _)| self.counts(r)) {
            self.add_row_gradient(r, side, factor, dz);
        }
    }
}

/// student, target, [mask inputs] → value.
pub(crate) fn value<T: Real>(io: &mut Io<'_>, term: RowTerm) {
    let value = Term::<T>::whole(term, &io.inputs).value(io.scalars);
    io.out()[0] = T::of(value);
}

/// student, target, [mask inputs] → gradient of one side times the weight.
pub(crate) fn gradient<T: Real>(io: &mut Io<'_>, term: RowTerm, side: Side, weight: Weight) {
    let term = Term::<T>::whole(term, &io.inputs);
    let scalars = io.scalars;
    let dz = io.out::<T>();
    dz.fill(T::ZERO);
    term.add_gradient(side, weight, scalars, dz);
}

/// Every row loss of a step: a value per term, then the gradients of the inputs listed in `grads`, terms in table order.
pub(crate) fn table<T: Real>(io: &mut Io<'_>, table: &RowTable) {
    let (values, grads) = io.outputs.split_at_mut(table.terms.len());
    grads.iter_mut().for_each(|g| g.real::<T>().fill(T::ZERO));
    for (line, value) in table.terms.iter().zip(values) {
        let operands = line.views.iter().map(|view| Rows::new(&io.inputs[view.input], view.start)).collect();
        let term = Term::<T> { term: line.term, operands, rows: line.rows };
        value.real::<T>()[0] = T::of(term.value(io.scalars));
        for (side, weight) in [(Side::Student, line.student_grad), (Side::Target, line.target_grad)] {
            let view = line.views[side as usize];
            let Some((weight, i)) = weight.zip(table.grads.iter().position(|&g| g == view.input)) else { continue };
            let first = view.start * term.operands[side as usize].width;
            term.add_gradient(side, weight, io.scalars, &mut grads[i].real::<T>()[first..]);
        }
    }
}

/// a, b → Σ (a − b)² / divisor.
pub(crate) fn squared_error<T: Real>(io: &mut Io<'_>, divisor: Divisor) {
    let total = sum([io.real::<T>(0), io.real(1)], |[a, b]| {
        let d = (a - b).to_f64();
        d * d
    });
    let value = total / io.scalars.divisor(divisor);
    io.out()[0] = T::of(value);
}

/// a, b → 2 weight (a − b) / divisor.
pub(crate) fn squared_error_grad<T: Real>(io: &mut Io<'_>, divisor: Divisor, weight: Weight) {
    let factor = T::of(2.0 * io.scalars.weight(weight) / io.scalars.divisor(divisor));
    let inputs = [io.real::<T>(0), io.real(1)];
    map(io.out(), inputs, |[a, b]| factor * (a - b));
}

/// logits, label → rows whose label is first, and among the first `k`; of equal logits the lower class comes first.
pub(crate) fn correct<T: Real>(io: &mut Io<'_>, k: usize) {
    let (logits, label, classes) = (io.real::<T>(0), io.inputs[1].i32(), io.dims(0)[1]);
    let mut counts = [0.0; 2];
    for (z, &label) in logits.chunks_exact(classes).zip(label) {
        let Ok(label) = usize::try_from(label) else { continue };
        // A NaN anywhere comes before the label: the row is wrong.
        let before = |(j, z_j): &(usize, &T)| match z_j.partial_cmp(&&z[label]) {
            Some(Ordering::Less) => false,
            Some(Ordering::Equal) => *j < label,
            Some(Ordering::Greater) | None => true,
        };
        let rank = z.iter().enumerate().filter(before).count();
        counts[0] += f64::from(rank == 0);
        counts[1] += f64::from(rank < k);
    }
    io.out::<T>().iter_mut().zip(counts).for_each(|(out, count)| *out = T::of(count));
}
