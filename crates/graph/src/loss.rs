//! Losses as linear combinations of scalar values, so that a loss reads as its formula and costs no launch.

use crate::expr::Expr;
use crate::graph::{StateId, ValueId};
use crate::op::{Divisor, Weight};
use std::ops::{Add, Mul};

/// Σ weight × value, over scalar values of the graph.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    pub parts: Vec<(Weight, ValueId)>,
}

impl From<ValueId> for Loss {
    fn from(value: ValueId) -> Loss {
        Loss { parts: vec![(Weight::from(1.0), value)] }
    }
}

impl Add for Loss {
    type Output = Loss;
    fn add(mut self, other: Loss) -> Loss {
        self.parts.extend(other.parts);
        self
    }
}

impl Mul<Loss> for Weight {
    type Output = Loss;
    fn mul(self, loss: Loss) -> Loss {
        Loss { parts: loss.parts.into_iter().map(|(w, v)| (w.times(self), v)).collect() }
    }
}

impl Mul<Loss> for f64 {
    type Output = Loss;
    fn mul(self, loss: Loss) -> Loss {
        Weight::from(self) * loss
    }
}

/// A named term: logged as `weight × loss`, weighted, and as `loss`, unweighted.
#[derive(Clone, Debug)]
pub struct LossTerm {
    pub name: String,
    pub weight: Weight,
    pub loss: Loss,
}

/// What the host makes of a watched value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The first element.
    Value,
    /// The square root of the first element.
    Root,
    /// The mean of the elements' magnitudes.
    MeanMagnitude,
    /// The first element over that of another watched value, which is divided alike.
    Ratio { to: ValueId },
}

/// A value watched, not trained: Σ over micro-batches and ranks, divided on the host, then measured.
#[derive(Clone, Debug)]
pub struct Monitor {
    pub name: String,
    pub value: ValueId,
    pub divisor: Divisor,
    pub measure: Measure,
    /// The run warns when the measure falls below this share of its first value.
    pub alarm: Option<f64>,
}

/// What a phase writes into a method's state when it ends, if the phase was finite.
#[derive(Clone, Copy, Debug)]
pub enum Commit {
    /// Rolling state: the rows of this step, read by the next one.
    Assign { state: StateId, rows: ValueId },
    /// Per-sample memory: `state[index] = rows`.
    Scatter { state: StateId, index: ValueId, rows: ValueId },
}

/// What one phase of a method computes.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    pub terms: Vec<LossTerm>,
    pub commits: Vec<Commit>,
    pub monitors: Vec<Monitor>,
    /// Values by name, for `retort step`: `logits`, `logits.weak`, `teacher.logits`.
    pub outputs: Vec<(String, ValueId)>,
}

impl Losses {
    pub fn new() -> Losses {
        Losses::default()
    }

    /// A named term `weight × loss`.
    pub fn term(mut self, name: &str, weight: impl Into<Weight>, loss: Loss) -> Losses {
        self.terms.push(LossTerm { name: name.to_string(), weight: weight.into(), loss });
        self
    }

    /// Logits to write out as `logits` and, with their labels, to count the training accuracy on.
    pub fn logits(self, logits: Expr<'_>, label: Expr<'_>) -> Losses {
        self.accuracy("top1", logits, label).output("logits", logits)
    }

    /// The share of rows whose label has the largest logit.
    pub fn accuracy(self, name: &str, logits: Expr<'_>, label: Expr<'_>) -> Losses {
        let correct = logits.detach().correct(label, 5);
        self.monitor(name, correct.id(), logits.divisor(1), Measure::Value)
    }

    /// A value to watch.
    pub fn monitor(mut self, name: &str, value: ValueId, divisor: Divisor, measure: Measure) -> Losses {
        self.monitors.push(Monitor { name: name.to_string(), value, divisor, measure, alarm: None });
        self
    }

    /// Warns when the monitor named last falls below this share of its first value.
    pub fn alarm_below(mut self, share: f64) -> Losses {
        self.monitors.last_mut().expect("an alarm belongs to a monitor").alarm = Some(share);
        self
    }

    /// A value that `retort step` writes.
    pub fn output(mut self, name: &str, value: Expr<'_>) -> Losses {
        self.outputs.push((name.to_string(), value.id()));
        self
    }

    /// Rolling state: `rows` of this step are what the next step reads.
    pub fn assign(mut self, state: StateId, rows: Expr<'_>) -> Losses {
        self.commits.push(Commit::Assign { state, rows: rows.id() });
        self
    }

    /// Per-sample memory: `state[index] = rows` at the end of the phase.
    pub fn remember(mut self, state: StateId, index: Expr<'_>, rows: Expr<'_>) -> Losses {
        self.commits.push(Commit::Scatter { state, index: index.id(), rows: rows.id() });
        self
    }
}
