//! The functions of one row of logits: value, and gradient by the logits of a side, of every `RowKind`.
//!
//! u = z/T, p = softmax(u). A gradient is first one by u; a temperature that is the row's own deviation is differentiated too.

use crate::io::Real;
use graph::{RowKind, Side, Target, Temperature};
use tensor::Dtype;

/// Rows of an operand from a first row on: logits or probabilities [n,k], labels [n], candidates [n,m], λ [].
pub(crate) struct Rows<'a, T> {
    real: &'a [T],
    int: &'a [i32],
    pub(crate) width: usize,
    start: usize,
}

impl<'a, T: Real> Rows<'a, T> {
    pub(crate) fn new(input: &crate::io::Input<'a>, start: usize) -> Rows<'a, T> {
        let is_int = input.dtype == Dtype::I32;
        let (real, int) = if is_int { (&[][..], input.i32()) } else { (input.real(), &[][..]) };
        let width = if input.shape.rank() > 1 { input.shape.dims()[input.shape.rank() - 1] } else { 1 };
        Rows { real, int, width, start }
    }

    pub(crate) fn row(&self, r: usize) -> &'a [T] {
        &self.real[(self.start + r) * self.width..][..self.width]
    }

    fn ints(&self, r: usize) -> &'a [i32] {
        &self.int[(self.start + r) * self.width..][..self.width]
    }

    /// The label, unless it is negative.
    pub(crate) fn label(&self, r: usize) -> Option<usize> {
        usize::try_from(self.ints(r)[0]).ok()
    }
}

/// Added to a deviation, so that equal logits divide by something (chapter 7.4).
const DEVIATION_GUARD: f64 = 1e-8;

/// Softmax of a row over a temperature. Kept from row to row, so that none allocates.
#[derive(Debug)]
pub(crate) struct Softmax<T> {
    pub(crate) log: Vec<T>,
    pub(crate) p: Vec<T>,
    /// What the logits were divided by.
    tau: f64,
    /// Of a temperature by deviation: the mean, and (k − 1) times the deviation times the guarded one.
    spread: Option<[f64; 2]>,
}

impl<T: Real> Softmax<T> {
    pub(crate) fn new() -> Softmax<T> {
        Softmax { log: vec![], p: vec![], tau: 1.0, spread: None }
    }

    pub(crate) fn set(&mut self, z: &[T], temperature: Temperature) {
        (self.tau, self.spread) = match temperature {
            Temperature::Fixed(tau) => (tau, None),
            Temperature::Std { scale } => {
                let mean = z.iter().map(|z| z.to_f64()).sum::<f64>() / z.len() as f64;
                let squares = z.iter().map(|z| (z.to_f64() - mean).powi(2)).sum::<f64>();
                let degrees = z.len() as f64 - 1.0;
                let deviation = (squares / degrees).sqrt();
                let guarded = deviation + DEVIATION_GUARD;
                (scale * guarded, Some([mean, degrees * deviation * guarded]))
            }
        };
        let tau = T::of(self.tau);
        let max = z.iter().copied().fold(T::of(f64::NEG_INFINITY), |max, z| if z > max { z } else { max });
        self.log.clear();
        self.log.extend(z.iter().map(|&z| (z - max) / tau));
        self.p.clear();
        self.p.extend(self.log.iter().map(|u| u.exp()));
        let sum = self.p.iter().copied().sum::<T>();
        let log_sum = sum.ln();
        self.log.iter_mut().for_each(|u| *u = *u - log_sum);
        self.p.iter_mut().for_each(|p| *p = *p / sum);
    }

    /// ln(1 − p_y), as a log-sum-exp over the other classes.
    fn log_others(&self, y: usize) -> T {
        let others = || self.log.iter().enumerate().filter(|&(j, _)| j != y).map(|(_, &log)| log);
        let max = others().fold(T::of(f64::NEG_INFINITY), |max, log| if log > max { log } else { max });
        max + others().map(|log| (log - max).exp()).sum::<T>().ln()
    }

    /// Turns a gradient by u into one by z.
    fn through_temperature(&self, z: &[T], d: &mut [T]) {
        if let Some([mean, spread]) = self.spread.filter(|spread| spread[1] > 0.0) {
            let centred = |z: &T| z.to_f64() - mean;
            let along = d.iter().zip(z).map(|(d, z)| d.to_f64() * centred(z)).sum::<f64>() / spread;
            d.iter_mut().zip(z).for_each(|(d, z)| *d = *d - T::of(along * centred(z)));
        }
        let tau = T::of(self.tau);
        d.iter_mut().for_each(|d| *d = *d / tau);
    }

    /// The square of a temperature by deviation; 1 for a fixed one.
    fn factor(&self) -> T {
        T::of(if self.spread.is_some() { self.tau * self.tau } else { 1.0 })
    }
}

/// Memory of the functions of a row.
#[derive(Debug)]
pub(crate) struct RowWork<T> {
    student: Softmax<T>,
    target: Softmax<T>,
    /// The target distribution.
    q: Vec<T>,
    /// Gradient of the row value by the logits of a side.
    pub(crate) d: Vec<T>,
}

impl<T: Real> RowWork<T> {
    pub(crate) fn new() -> RowWork<T> {
        RowWork { student: Softmax::new(), target: Softmax::new(), q: vec![], d: vec![] }
    }

    /// The value of row `r` of the operands (logits, the kind's targets). With a side, `d` becomes the gradient by its logits.
    pub(crate) fn run(&mut self, kind: RowKind, of: &[Rows<'_, T>], r: usize, side: Option<Side>) -> T {
        let z = of[0].row(r);
        let temperature = match kind {
            RowKind::CrossEntropy { temperature, .. } => Temperature::Fixed(temperature),
            RowKind::Kl { temperature, .. } => temperature,
            RowKind::TargetKl { temperature } | RowKind::NonTargetKl { temperature } => temperature,
            RowKind::GeneralizedCrossEntropy { .. } | RowKind::BinaryCrossEntropy { .. } | RowKind::Count => {
                Temperature::Fixed(1.0)
            }
        };
        self.student.set(z, temperature);
        self.d.clear();
        let mut factor = T::ONE;
        let value = match kind {
            RowKind::CrossEntropy { target, .. } => {
                let total = self.set_target(target, temperature, of, r);
                self.pull(total, side);
                let terms = self.q.iter().zip(&self.student.log).filter(|t| *t.0 != T::ZERO);
                -terms.map(|(&q, &log_p)| q * log_p).sum::<T>()
            }
            RowKind::Kl { target, .. } => {
                let total = self.set_target(target, temperature, of, r);
                if target == Target::Logits {
                    factor = self.target.factor();
                }
                match side {
                    Some(Side::Target) => self.target_gradient(),
                    side => self.pull(total, side),
                }
                self.divergence(target)
            }
            RowKind::TargetKl { .. } | RowKind::NonTargetKl { .. } => {
                self.target.set(of[1].row(r), temperature);
                factor = self.target.factor();
                let y = of[2].label(r).unwrap_or_default();
                if matches!(kind, RowKind::TargetKl { .. }) { self.target_kl(y) } else { self.non_target_kl(y) }
            }
            RowKind::GeneralizedCrossEntropy { q } => self.generalized(of[1].ints(r), q),
            RowKind::BinaryCrossEntropy { class } => self.binary(z, class),
            RowKind::Count => T::ONE,
        };
        if side.is_some() {
            let (softmax, z) = match side {
                Some(Side::Target) => (&self.target, of[1].row(r)),
                _ => (&self.student, z),
            };
            softmax.through_temperature(z, &mut self.d);
            if factor != T::ONE {
                self.d.iter_mut().for_each(|d| *d = factor * *d);
            }
        }
        factor * value
    }

    /// Fills q, of logits `target` too; gives its sum.
    fn set_target(&mut self, target: Target, temperature: Temperature, of: &[Rows<'_, T>], r: usize) -> T {
        let k = self.student.p.len();
        self.q.clear();
        match target {
            Target::Label { on, off } => {
                let label = of[1].label(r);
                self.q.extend((0..k).map(|j| T::of(if label == Some(j) { on } else { off })));
                T::of(on + off * (k as f64 - 1.0))
            }
            Target::MixedLabel => {
                let lambda = of[3].real[0];
                self.q.resize(k, T::ZERO);
                let parts = [(of[1].label(r), lambda), (of[2].label(r), T::ONE - lambda)];
                let parts = parts.into_iter().filter_map(|(label, part)| Some((label?, part)));
                parts.map(|(label, part)| (self.q[label] += part, part).1).sum()
            }
            Target::Probabilities => {
                self.q.extend_from_slice(of[1].row(r));
                self.q.iter().copied().sum()
            }
            Target::Logits => {
                self.target.set(of[1].row(r), temperature);
                self.q.extend_from_slice(&self.target.p);
                T::ONE
            }
        }
    }

    /// Gradient of −Σ q log p by the student's u.
    fn pull(&mut self, total: T, side: Option<Side>) {
        if side.is_some() {
            self.d.extend(self.student.p.iter().zip(&self.q).map(|(&p, &q)| total * p - q));
        }
    }

    /// Σ q (log q − log p), 0 log 0 being 0.
    fn divergence(&self, target: Target) -> T {
        let log_q = |j: usize| if target == Target::Logits { self.target.log[j] } else { self.q[j].ln() };
        let terms = self.q.iter().zip(&self.student.log).enumerate().filter(|(_, (q, _))| **q != T::ZERO);
        terms.map(|(j, (&q, &log_p))| q * (log_q(j) - log_p)).sum()
    }

    /// q (log q − log p − KL), ratios relative to the likeliest class: no cancellation where q is nearly 1.
    fn target_gradient(&mut self) {
        let (log_q, log_p) = (&self.target.log, &self.student.log);
        let top = (1..log_q.len()).fold(0, |top, j| if log_q[j] > log_q[top] { j } else { top });
        let pivot = log_q[top] - log_p[top];
        let ratio = |j: usize| log_q[j] - log_p[j] - pivot;
        let mean = self.q.iter().enumerate().map(|(j, &q)| q * ratio(j)).sum::<T>();
        self.d.extend(self.q.iter().enumerate().map(|(j, &q)| q * (ratio(j) - mean)));
    }

    /// KL between (q_y, 1 − q_y) and (p_y, 1 − p_y), and its gradient by the student's u.
    fn target_kl(&mut self, y: usize) -> T {
        // ln p_y of a p_y close to 1 is exact through 1 − p_y alone.
        let split = |s: &Softmax<T>| {
            let others = s.log_others(y);
            [if others < T::of(-1.0) { (-others.exp()).ln_1p() } else { s.log[y] }, others]
        };
        let ([log_q, log_not_q], [log_p, log_not_p]) = (split(&self.target), split(&self.student));
        let ([q, not_q], [p, not_p]) = ([log_q.exp(), log_not_q.exp()], [log_p.exp(), log_not_p.exp()]);
        // The smaller numbers' difference is the more exact.
        let pull = if not_q < q { not_q - not_p } else { p - q };
        let student = self.student.log.iter().enumerate();
        self.d.extend(student.map(|(j, &log)| if j == y { pull } else { -pull * (log - log_not_p).exp() }));
        q * (log_q - log_p) + not_q * (log_not_q - log_not_p)
    }

    /// KL between q and p renormalised over the classes but y, and its gradient by the student's u.
    fn non_target_kl(&mut self, y: usize) -> T {
        let (log_not_q, log_not_p) = (self.target.log_others(y), self.student.log_others(y));
        let mut value = T::ZERO;
        for (j, (&log_q, &log_p)) in self.target.log.iter().zip(&self.student.log).enumerate() {
            let (log_q, log_p) = (log_q - log_not_q, log_p - log_not_p);
            if j != y {
                value += log_q.exp() * (log_q - log_p);
            }
            self.d.push(if j == y { T::ZERO } else { log_p.exp() - log_q.exp() });
        }
        value
    }

    /// Mean over candidates of (1 − p_c^q)/q and its gradient; NaN where a candidate is negative: a row of a teacher with a NaN.
    fn generalized(&mut self, candidates: &[i32], q: f64) -> T {
        let count = candidates.len() as f64;
        self.d.resize(self.student.p.len(), T::ZERO);
        let (mut value, mut total) = (0.0, 0.0);
        for &c in candidates {
            let Ok(c) = usize::try_from(c) else {
                self.d.fill(T::of(f64::NAN));
                return T::of(f64::NAN);
            };
            let exponent = q * self.student.log[c].to_f64();
            value -= exponent.exp_m1() / q;
            total += exponent.exp();
            self.d[c] += T::of(-exponent.exp() / count);
        }
        let total = T::of(total / count);
        self.d.iter_mut().zip(&self.student.p).for_each(|(d, &p)| *d += total * p);
        T::of(value / count)
    }

    /// Σ softplus(z_k) − z_class, and its gradient.
    fn binary(&mut self, z: &[T], class: usize) -> T {
        let mut value = T::ZERO;
        for (k, &z) in z.iter().enumerate() {
            // softplus(z) − z = softplus(−z); e^−|z| does not overflow.
            let signed = if k == class { -z } else { z };
            let small = (if z < T::ZERO { z } else { -z }).exp();
            value += if signed > T::ZERO { signed } else { T::ZERO } + small.ln_1p();
            let sigmoid = if signed < T::ZERO { small } else { T::ONE } / (T::ONE + small);
            self.d.push(if k == class { -sigmoid } else { sigmoid });
        }
        value
    }
}
