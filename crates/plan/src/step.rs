//! The graph of a whole step with its phases, as methods wrote it and passes change it.

use graph::{BnUse, Builder, Graph, Losses, Measure, Precision, Source, StateId, ValueId};
use spec::{BnMode, Method, Network, Setting, Spec, Step, StepInput, TrainRange};

/// The gradient of a parameter. An absent one skips the parameter altogether, a zero one decays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grad {
    Absent,
    Zero,
    /// Made by the body, by the update (terms that no image enters), or by both.
    Value {
        body: Option<ValueId>,
        update: Option<ValueId>,
    },
}

/// A loss and what it trains.
#[derive(Clone, Debug)]
pub struct Phase {
    pub name: String,
    pub trains: Vec<TrainRange>,
    pub losses: Losses,
    /// Per trained parameter, its range in `trains`, and the gradient; filled by `differentiate`.
    pub grads: Vec<(StateId, usize, Grad)>,
    /// Reduced value of each loss part and monitor, by the value it sums; filled by `optimize`.
    pub reduced: Vec<(ValueId, ValueId)>,
    /// Squared gradient norm and finite flag; filled by `optimize`.
    pub norm: Option<[ValueId; 2]>,
}

impl Phase {
    /// Values of losses and monitors, each once.
    pub fn scalars(&self) -> Vec<ValueId> {
        let losses = self.losses.terms.iter().flat_map(|t| t.loss.parts.iter().map(|p| p.1));
        let monitors = self.losses.monitors.iter().flat_map(|m| {
            let to = if let Measure::Ratio { to } = m.measure { Some(to) } else { None };
            std::iter::once(m.value).chain(to)
        });
        let mut all: Vec<_> = losses.chain(monitors).collect();
        let mut seen = std::collections::HashSet::new();
        all.retain(|v| seen.insert(*v));
        all
    }

    /// Values that the host reads when the step is over.
    pub fn held(&self) -> impl Iterator<Item = ValueId> + '_ {
        let outputs = self.losses.outputs.iter().map(|o| o.1);
        outputs.chain(self.reduced.iter().map(|r| r.1)).chain(self.norm.into_iter().flatten())
    }
}

#[derive(Clone, Debug)]
pub struct StepGraph {
    pub graph: Graph,
    pub phases: Vec<Phase>,
}

/// Everything a step is built from.
#[derive(Clone, Copy, Debug)]
pub struct StepSource<'a> {
    pub method: &'a dyn Method,
    pub spec: &'a Spec,
    pub setting: &'a Setting,
    pub student: &'a dyn Network,
    pub teachers: &'a [Box<dyn Network>],
    pub input: Option<StepInput>,
    pub precision: Precision,
    /// Units of this micro-batch, per role, and most units of a global batch.
    pub units: [usize; 2],
    pub rolling_units: usize,
}

impl StepSource<'_> {
    fn builder(&self) -> Builder {
        let mut graph = Graph::new(self.precision, self.units);
        graph.rolling_units = self.rolling_units;
        Builder::new(graph)
    }

    fn step<'g>(&'g self, builder: &'g Builder, bn: BnMode) -> Step<'g> {
        let Self { spec, setting, student, teachers, input, .. } = *self;
        Step { builder, spec, setting, student, teachers, input, bn }
    }

    /// Why the networks do not fit the method, if they do not.
    pub fn fits(&self) -> Result<(), String> {
        let builder = self.builder();
        self.method.fits(&self.step(&builder, BnMode::Train { groups: 1 }))
    }

    /// The training step: every phase of the method.
    pub fn training(&self) -> StepGraph {
        self.training_by(BnMode::Train { groups: 1 })
    }

    /// The training step whose batch norms take their statistics so.
    pub fn training_by(&self, bn: BnMode) -> StepGraph {
        let builder = self.builder();
        let step = self.step(&builder, bn);
        let mut phases = Vec::new();
        for (i, phase) in self.spec.phases.iter().enumerate() {
            builder.set_phase(i as u32);
            let losses = self.method.losses(i, &step);
            let (name, trains) = (phase.name.clone(), phase.trains.clone());
            phases.push(Phase { name, trains, losses, grads: vec![], reduced: vec![], norm: None });
        }
        StepGraph { graph: builder.finish(), phases }
    }

    /// The evaluation head: logits, their cross-entropy, and counts of correct rows. Labels below 0 mark padding.
    pub fn evaluation(&self) -> StepGraph {
        let builder = self.builder();
        let losses = {
            let spec = Spec::default();
            let source = StepSource { spec: &spec, ..*self };
            let step = source.step(&builder, BnMode::Eval);
            let (logits, label) = (self.method.head(&step), step.label());
            let losses = Losses::new().term("ce", 0.0, logits.cross_entropy(label)).logits(logits, label);
            let others = self.method.other_heads(&step).into_iter();
            others.fold(losses, |losses, (name, logits)| losses.accuracy(&name, logits, label))
        };
        let phase = Phase { name: "eval".into(), trains: vec![], losses, grads: vec![], reduced: vec![], norm: None };
        StepGraph { graph: builder.finish(), phases: vec![phase] }
    }
}

impl StepGraph {
    /// Whether a value depends on what the data side delivers.
    pub fn fed(&self) -> Vec<bool> {
        let graph = &self.graph;
        let mut fed: Vec<bool> = graph.values.iter().map(|v| matches!(v.source, Source::Batch(_))).collect();
        for node in &graph.nodes {
            if node.inputs.iter().any(|i| fed[i.0 as usize]) {
                node.outputs.iter().for_each(|o| fed[o.0 as usize] = true);
            }
        }
        fed
    }

    /// Batch norms of a phase that move running statistics.
    pub fn bn_uses(&self, phase: usize) -> Vec<BnUse> {
        let of_phase = |u: &&BnUse| self.graph.producer(u.stats[0]).is_some_and(|n| n.place.phase as usize == phase);
        self.graph.bn_uses.iter().filter(of_phase).copied().collect()
    }
}
