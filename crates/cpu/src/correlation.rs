//! Correlation of two sets of predictions (DIST, chapter 7.5): a = softmax(z), b = softmax(t), both at temperature 1.
//!
//! Over `Axis::Batch` one correlation a row, along its classes: loss = Σ_rows (1 − ρ)/divisor. Over `Axis::Channel` one a class, along
//! the rows: loss = (n/k) Σ_classes (1 − ρ)/divisor. ρ = ac·bc / (|ac||bc| + 1e-8), ac and bc centred along the same line. Sums are f64.

use crate::elementwise::{for_block_pairs, for_blocks};
use crate::io::{Io, Real};
use crate::row_kind::Softmax;
use crate::row_loss::rows_of_block;
use graph::{Axis, Divisor, Temperature, Weight};

/// Added to the denominator.
const GUARD: f64 = 1e-8;

/// Sums along a line of one correlation.
#[derive(Clone, Copy, Default)]
struct Line {
    mean: [f64; 2],
    /// |ac|², |bc|², ac·bc
    products: [f64; 3],
}

impl Line {
    fn denominator(&self) -> f64 {
        self.products[0].sqrt() * self.products[1].sqrt() + GUARD
    }

    fn correlation(&self) -> f64 {
        self.products[2] / self.denominator()
    }

    /// dρ/dac = x ac + y bc: x and y. A line of equal numbers has no direction: x is zero there.
    fn slope(&self) -> [f64; 2] {
        let [aa, bb, ab] = self.products;
        let d = self.denominator();
        [if aa > 0.0 { -ab / (d * d) * (bb / aa).sqrt() } else { 0.0 }, 1.0 / d]
    }
}

/// Both softmaxes and the sums of every line.
struct Predictions {
    a: Vec<f64>,
    b: Vec<f64>,
    rows: usize,
    classes: usize,
    over: Axis,
    lines: Vec<Line>,
}

impl Predictions {
    fn new<T: Real>(io: &Io<'_>, over: Axis) -> Predictions {
        let (z, t, [rows, classes]) = (io.real::<T>(0), io.real::<T>(1), [io.dims(0)[0], io.dims(0)[1]]);
        let (mut a, mut b) = (vec![0.0; z.len()], vec![0.0; z.len()]);
        let size = rows_of_block(classes) * classes;
        for_block_pairs((&mut a, size), (&mut b, size), |i, a, b| {
            let (mut softmax, mut row) = (Softmax::<f64>::new(), vec![]);
            for (out, x) in [(a, z), (b, t)] {
                for (out, x) in out.chunks_exact_mut(classes).zip(x[i * size..].chunks_exact(classes)) {
                    row.clear();
                    row.extend(x.iter().map(|x| x.to_f64()));
                    softmax.set(&row, Temperature::Fixed(1.0));
                    out.copy_from_slice(&softmax.p);
                }
            }
        });
        let mut predictions = Predictions { a, b, rows, classes, over, lines: vec![] };
        predictions.sum_lines();
        predictions
    }

    /// Two passes in the order of rows: means, then products of what is centred.
    fn sum_lines(&mut self) {
        let (count, length) = match self.over {
            Axis::Batch => (self.rows, self.classes),
            Axis::Channel => (self.classes, self.rows),
        };
        let mut lines = vec![Line::default(); count];
        self.each(&mut lines, |line, a, b| line.mean = [line.mean[0] + a, line.mean[1] + b]);
        lines.iter_mut().for_each(|line| line.mean = line.mean.map(|sum| sum / length as f64));
        self.each(&mut lines, |line, a, b| {
            let (a, b) = (a - line.mean[0], b - line.mean[1]);
            let [aa, bb, ab] = line.products;
            line.products = [aa + a * a, bb + b * b, ab + a * b];
        });
        self.lines = lines;
    }

    /// f(its line, a, b) for every element, in the order of rows.
    fn each(&self, lines: &mut [Line], f: impl Fn(&mut Line, f64, f64)) {
        for (r, (a, b)) in self.a.chunks_exact(self.classes).zip(self.b.chunks_exact(self.classes)).enumerate() {
            match self.over {
                Axis::Batch => a.iter().zip(b).for_each(|(&a, &b)| f(&mut lines[r], a, b)),
                Axis::Channel => lines.iter_mut().zip(a.iter().zip(b)).for_each(|(line, (&a, &b))| f(line, a, b)),
            }
        }
    }

    /// What 1 − ρ of a line is multiplied by, but for the divisor.
    fn factor(&self) -> f64 {
        self.rows as f64 / self.lines.len() as f64
    }
}

/// z, t → value.
pub(crate) fn value<T: Real>(io: &mut Io<'_>, over: Axis, divisor: Divisor) {
    let predictions = Predictions::new::<T>(io, over);
    let sum = predictions.lines.iter().map(|line| 1.0 - line.correlation()).sum::<f64>();
    let value = predictions.factor() * sum / io.scalars.divisor(divisor);
    io.out()[0] = T::of(value);
}

/// z, t → gradient by z times the weight, through the softmax: dz = a (da − Σ a da).
pub(crate) fn gradient<T: Real>(io: &mut Io<'_>, over: Axis, divisor: Divisor, weight: Weight) {
    let predictions = Predictions::new::<T>(io, over);
    let Predictions { a, b, classes, lines, .. } = &predictions;
    let factor = -predictions.factor() * io.scalars.weight(weight) / io.scalars.divisor(divisor);
    let slopes: Vec<[f64; 2]> = lines.iter().map(|line| line.slope().map(|x| factor * x)).collect();
    let rows = rows_of_block(*classes);
    for_blocks(io.out::<T>(), rows * classes, |i, out| {
        let mut da = vec![0.0; *classes];
        for (at, out) in out.chunks_exact_mut(*classes).enumerate() {
            let r = i * rows + at;
            let (a, b) = (&a[r * classes..][..*classes], &b[r * classes..][..*classes]);
            for (k, da) in da.iter_mut().enumerate() {
                let l = if over == Axis::Batch { r } else { k };
                let (line, [x, y]) = (&lines[l], slopes[l]);
                *da = x * (a[k] - line.mean[0]) + y * (b[k] - line.mean[1]);
            }
            let mean = a.iter().zip(&da).map(|(a, da)| a * da).sum::<f64>();
            out.iter_mut().zip(a.iter().zip(&da)).for_each(|(out, (a, da))| *out = T::of(a * (da - mean)));
        }
    });
}
