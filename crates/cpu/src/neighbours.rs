//! Targets from the predictions of similar rows (chapter 7.11): Q = (1 − ω)(I − ωW)⁻¹ P.
//!
//! P = softmax(logits/T); W is the row softmax of the cosine similarities of the features, its diagonal zero. One row alone keeps P.
//! All in f64: rows of W sum to 1, so I − ωW is dominated by its diagonal and elimination needs no pivots (growth at most 2).

use crate::elementwise::{BLOCK, for_blocks};
use crate::io::{Io, Real};
use crate::row_kind::Softmax;
use graph::Temperature;

/// Features as f64, each row of length 1; a zero row stays zero.
fn normalised<T: Real>(features: &[T], width: usize) -> Vec<f64> {
    let mut rows: Vec<f64> = features.iter().map(|x| x.to_f64()).collect();
    for row in rows.chunks_exact_mut(width) {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A NaN norm passes on: it must stop the run.
        let divisor = if norm < 1e-12 { 1e-12 } else { norm };
        row.iter_mut().for_each(|x| *x /= divisor);
    }
    rows
}

/// Row `i` of I − ωW into `out`.
fn system_row(f: &[f64], i: usize, omega: f64, out: &mut [f64]) {
    let n = out.len();
    let d = f.len() / n;
    let dot = |j: usize| (0..d).map(|c| f[i * d + c] * f[j * d + c]).sum::<f64>();
    out.iter_mut().enumerate().for_each(|(j, out)| *out = if j == i { 0.0 } else { dot(j) });
    // Similarities are at most 1: no exponential overflows.
    let mut sum = 0.0;
    for (_, w) in out.iter_mut().enumerate().filter(|(j, _)| *j != i) {
        *w = w.exp();
        sum += *w;
    }
    out.iter_mut().for_each(|w| *w *= -omega / sum);
    out[i] = 1.0;
}

/// Solves the n equations of a matrix [n, n + k]: the last k columns become the solutions.
fn solve(matrix: &mut [f64], n: usize) {
    let width = matrix.len() / n;
    let size = (BLOCK / width).max(1) * width;
    for i in 0..n {
        let (above, below) = matrix.split_at_mut((i + 1) * width);
        let pivot = &above[i * width..];
        for_blocks(below, size, |_, rows| {
            for row in rows.chunks_exact_mut(width) {
                let factor = row[i] / pivot[i];
                row[i..].iter_mut().zip(&pivot[i..]).for_each(|(x, p)| *x -= factor * p);
            }
        });
    }
    for i in (0..n).rev() {
        let (above, below) = matrix.split_at_mut(i * width);
        let solved = &mut below[..width];
        let pivot = solved[i];
        solved[n..].iter_mut().for_each(|x| *x /= pivot);
        for row in above.chunks_exact_mut(width) {
            let factor = row[i];
            row[n..].iter_mut().zip(&solved[n..]).for_each(|(x, s)| *x -= factor * s);
        }
    }
}

/// features [n,d], logits [n,k] → Q [n,k].
pub(crate) fn targets<T: Real>(io: &mut Io<'_>, omega: f64, temperature: f64) {
    let (features, logits) = (io.real::<T>(0), io.real::<T>(1));
    let ([n, d], k) = ([io.dims(0)[0], io.dims(0)[1]], io.dims(1)[1]);
    let f = normalised(features, d);
    let mut matrix = vec![0.0; n * (n + k)];
    for_blocks(&mut matrix, (BLOCK / (n + k)).max(1) * (n + k), |block, rows| {
        let first = block * (BLOCK / (n + k)).max(1);
        let (mut softmax, mut z) = (Softmax::<f64>::new(), vec![]);
        for (at, row) in rows.chunks_exact_mut(n + k).enumerate() {
            let i = first + at;
            z.clear();
            z.extend(logits[i * k..][..k].iter().map(|x| x.to_f64()));
            softmax.set(&z, Temperature::Fixed(temperature));
            let (w, p) = row.split_at_mut(n);
            if n > 1 {
                system_row(&f, i, omega, w);
                p.iter_mut().zip(&softmax.p).for_each(|(out, p)| *out = (1.0 - omega) * p);
            } else {
                w[0] = 1.0;
                p.copy_from_slice(&softmax.p);
            }
        }
    });
    solve(&mut matrix, n);
    for (out, row) in io.out::<T>().chunks_exact_mut(k).zip(matrix.chunks_exact(n + k)) {
        out.iter_mut().zip(&row[n..]).for_each(|(out, &q)| *out = T::of(q));
    }
}
