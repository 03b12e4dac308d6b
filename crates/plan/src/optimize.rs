//! optimize: appends the update of every phase: reductions, gradient norm and finite flag, SGD or LARS, running statistics,
//! commits of a method's state, and after the last phase the moving average of the weights.
//!
//! In: a differentiated graph. Out: the same body without nodes that nobody reads, and updates. New state: momenta, EMA.

use crate::step::{Grad, Phase, StepGraph};
use graph::{
    Axis, BnRunningLayer, Commit, Graph, Init, LarsArgs, Node, Op, Place, Section, SgdArgs, SgdParam, SlotId, Source,
    State, StateId, StateKind, ValueId,
};
use spec::Decay;

/// What LARS has beyond SGD: see [`LarsArgs`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lars {
    pub trust: f64,
    pub epsilon: f64,
    /// Whether the rates of batch-norm scales and shifts and of biases are adapted too.
    pub adapt_bn_bias: bool,
}

/// Optimizer constants of a recipe.
#[derive(Clone, Debug)]
pub struct OptimizerArgs {
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
    /// Whether batch-norm scales and shifts and all biases decay too (published code does).
    pub decay_bn_bias: bool,
    /// Of SGD.
    pub clip_norm: Option<f64>,
    /// LARS takes the place of SGD.
    pub lars: Option<Lars>,
    /// Whether a moving average of the weights is kept.
    pub ema: bool,
    /// Of running statistics.
    pub bn_momentum: f64,
}

impl Default for OptimizerArgs {
    fn default() -> OptimizerArgs {
        let (momentum, weight_decay, bn_momentum) = (0.9, 5e-4, 0.1);
        OptimizerArgs {
            momentum,
            nesterov: false,
            weight_decay,
            decay_bn_bias: true,
            clip_norm: None,
            lars: None,
            ema: false,
            bn_momentum,
        }
    }
}

pub fn optimize(step: &StepGraph, args: &OptimizerArgs, keep_outputs: bool) -> StepGraph {
    let mut step = step.clone();
    for p in 0..step.phases.len() {
        let uses = step.bn_uses(p);
        let mut update = Update { graph: &mut step.graph, place: Place { phase: p as u32, section: Section::Update } };
        let phase = &mut step.phases[p];
        let (grads, params) = update.gradients(phase, args);
        if keep_outputs {
            let name = |p: &SgdParam| format!("grad.{}", update.graph.state(p.param).name);
            phase.losses.outputs.extend(params.iter().map(name).zip(grads.iter().copied()));
        }
        phase.reduced = phase.scalars().into_iter().map(|v| (v, update.reduce(v))).collect();
        let scalars: Vec<_> = phase.reduced.iter().map(|r| r.1).collect();
        if !keep_outputs {
            phase.losses.outputs.clear();
        }
        if grads.is_empty() && uses.is_empty() && phase.losses.commits.is_empty() {
            continue;
        }
        let inputs = [&grads[..], &scalars[..]].concat();
        let norm = update.push(Op::GradNorm { grads: grads.len() }, &inputs, "update/grad_norm");
        phase.norm = Some([norm[0], norm[1]]);
        if !params.is_empty() {
            let OptimizerArgs { momentum, nesterov, clip_norm, .. } = *args;
            if let Some(Lars { trust, epsilon, adapt_bn_bias }) = args.lars {
                let adapts = params.iter().map(|p| adapt_bn_bias || !update.is_vector(p.param)).collect();
                let lars = LarsArgs { params, adapts, momentum, trust, epsilon };
                update.push(Op::Lars(Box::new(lars)), &[&norm[1..], &grads[..]].concat(), "update/lars");
            } else {
                let sgd = SgdArgs { params, momentum, nesterov, clip_norm };
                update.push(Op::Sgd(Box::new(sgd)), &[&norm[..], &grads[..]].concat(), "update/sgd");
            }
        }
        update.running(&uses, norm[1], args.bn_momentum);
        update.commits(&phase.losses.commits, norm[1]);
    }
    let last = step.phases.iter().rposition(|p| p.norm.is_some());
    if let (true, Some(p)) = (args.ema, last) {
        let finite = step.phases[p].norm.expect("the last phase with an update")[1];
        let place = Place { phase: p as u32, section: Section::Update };
        Update { graph: &mut step.graph, place }.ema(finite);
    }
    let roots: Vec<_> = step.phases.iter().flat_map(Phase::held).collect();
    step.graph = step.graph.with_nodes(step.graph.nodes.clone()).pruned(&roots);
    step
}

struct Update<'a> {
    graph: &'a mut Graph,
    place: Place,
}

impl Update<'_> {
    fn push(&mut self, op: Op, inputs: &[ValueId], path: &str) -> Vec<ValueId> {
        self.graph.push(op, inputs, path, self.place)
    }

    fn in_body(&self, value: ValueId) -> bool {
        self.graph.producer(value).is_some_and(|n| n.place.section == Section::Body)
    }

    /// The sum over micro-batches and ranks; a value of the update is that sum already.
    fn reduce(&mut self, value: ValueId) -> ValueId {
        if !self.in_body(value) {
            return value;
        }
        let path = self.graph.producer(value).map(|n| n.path.clone()).unwrap_or_default();
        self.push(Op::Reduce, &[value], &path)[0]
    }

    /// All micro-batches of a value. What no node makes is copied first: a batch buffer is used again, a state changes.
    fn carry(&mut self, mut value: ValueId, path: &str) -> ValueId {
        while let Some(Node { op: Op::Detach, inputs, .. }) = self.graph.producer(value) {
            value = inputs[0];
        }
        let copied = match self.graph.value(value).source {
            Source::Batch(_) | Source::State(_) => {
                let len = self.graph.shape(value).dims()[0];
                let body = Place { section: Section::Body, ..self.place };
                self.graph.push(Op::Slice { axis: Axis::Batch, start: 0, len }, &[value], path, body)[0]
            }
            _ => value,
        };
        self.push(Op::Carry, &[copied], path)[0]
    }

    /// Reduced gradients and their parameters, in the order in which the body makes them.
    fn gradients(&mut self, phase: &Phase, args: &OptimizerArgs) -> (Vec<ValueId>, Vec<SgdParam>) {
        let mut made: Vec<(ValueId, SgdParam)> = Vec::new();
        for &(param, range, grad) in &phase.grads {
            let name = self.graph.state(param).name.clone();
            let value = match grad {
                Grad::Absent => continue,
                Grad::Zero => {
                    let read = self.graph.read(param);
                    self.push(Op::Zero, &[read], &format!("update/{name}"))[0]
                }
                Grad::Value { body: Some(body), update: None } => self.reduce(body),
                Grad::Value { body: None, update: Some(update) } => update,
                Grad::Value { body: Some(body), update: Some(update) } => {
                    let reduced = self.reduce(body);
                    self.push(Op::Accumulate, &[reduced, update], &format!("update/{name}"))[0]
                }
                Grad::Value { body: None, update: None } => unreachable!("differentiate calls this Absent or Zero"),
            };
            let range = &phase.trains[range];
            let momentum = self.state_like(param, &range.momentum, StateKind::Momentum);
            let vector = self.is_vector(param);
            let layer = name.rsplit_once('.').map_or(&name[..], |(layer, _)| layer);
            let in_bn = self.graph.find_state(&format!("{layer}.running_var")).is_some();
            let decays = (!vector || args.decay_bn_bias) && (!in_bn || range.decay == Decay::All);
            let weight_decay = if decays { args.weight_decay } else { 0.0 };
            made.push((value, SgdParam { param, momentum, weight_decay, lr_factor: range.lr_factor }));
        }
        made.sort_by_key(|(value, _)| match self.graph.producer(*value) {
            Some(node) if node.op == Op::Reduce => node.inputs[0],
            _ => *value,
        });
        made.into_iter().unzip()
    }

    /// Scales and shifts of batch norms, and biases.
    fn is_vector(&self, param: StateId) -> bool {
        self.graph.state(param).shape.dims().len() < 2
    }

    fn state_like(&mut self, of: StateId, prefix: &str, kind: StateKind) -> StateId {
        let State { name, shape, dtype, .. } = self.graph.state(of).clone();
        let name = format!("{prefix}.{name}");
        let init = if kind == StateKind::Ema { Init::CopyOf(of) } else { Init::Const(0.0) };
        let found = self.graph.find_state(&name);
        found.unwrap_or_else(|| self.graph.add_state(State { name, shape, dtype, kind, init }))
    }

    fn running(&mut self, uses: &[graph::BnUse], finite: ValueId, momentum: f64) {
        if uses.is_empty() {
            return;
        }
        let mut inputs = vec![finite];
        let mut layers: Vec<BnRunningLayer> = Vec::new();
        for first in uses {
            if layers.iter().any(|l| l.mean == first.mean) {
                continue; // a later forward of the same layer: listed with the first
            }
            let same: Vec<_> = uses.iter().filter(|u| u.mean == first.mean).collect();
            for u in &same {
                let path = self.graph.producer(u.stats[0]).map(|n| n.path.clone()).unwrap_or_default();
                inputs.extend(u.stats.map(|s| self.carry(s, &path)));
            }
            let graph::BnUse { mean, var, updates, .. } = *first;
            layers.push(BnRunningLayer { mean, var, updates, forwards: same.len() });
        }
        self.push(Op::BnRunning { momentum, layers }, &inputs, "update/bn_running");
    }

    fn commits(&mut self, commits: &[Commit], finite: ValueId) {
        for commit in commits {
            match *commit {
                Commit::Assign { state, rows } => {
                    let path = self.graph.state(state).name.clone();
                    let rows = self.carry(rows, &path);
                    self.push(Op::Assign { state }, &[finite, rows], &path);
                }
                Commit::Scatter { state, index, rows } => {
                    let path = self.graph.state(state).name.clone();
                    let (index, rows) = (self.carry(index, &path), self.carry(rows, &path));
                    self.push(Op::ScatterRows { state }, &[finite, index, rows], &path);
                }
            }
        }
    }

    /// The moving average covers whatever training moves: parameters with a momentum, and running statistics.
    fn ema(&mut self, finite: ValueId) {
        let nodes = &self.graph.nodes;
        let mut sources: Vec<StateId> = nodes
            .iter()
            .flat_map(|n| match &n.op {
                Op::BnRunning { layers, .. } => layers.iter().flat_map(|l| [l.mean, l.var]).collect::<Vec<_>>(),
                op => op.trained().iter().map(|p| p.param).collect(),
            })
            .collect();
        sources.sort();
        sources.dedup();
        let pairs = sources.into_iter().map(|s| (self.state_like(s, "ema", StateKind::Ema), s)).collect();
        self.push(Op::Ema { pairs, decay: SlotId::EMA_DECAY }, &[finite], "update/ema");
    }
}
