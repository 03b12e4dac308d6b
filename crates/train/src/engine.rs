//! One rank's machine: executor, plans and communicator. It runs steps and evaluations and knows no epochs.

use crate::error::TrainError;
use crate::init::{copy_states, initialise};
use crate::step::{Compile, Model};
use crate::tree::Tree;
use comm::Communicator;
use cpu::{Executor, Real, Scalars};
use plan::{Plan, StateTable};
use spec::{Measure, SlotId, ValueId, Weight};
use std::collections::HashMap;
use tensor::HostTensor;

/// A micro-batch as the executor takes it.
#[derive(Debug)]
pub struct Micro {
    /// Place in the global batch.
    pub leaf: usize,
    pub units: [usize; 2],
    pub inputs: Vec<(String, HostTensor)>,
}

/// A rank's part of a step.
#[derive(Debug)]
pub struct StepInputs<'a> {
    pub micros: &'a [Micro],
    /// Units of every micro-batch of the global batch, per role.
    pub all_units: &'a [[usize; 2]],
    /// Values of scalars by name: `lr`, `ema_decay`, slots of the method.
    pub slots: &'a HashMap<String, f64>,
}

/// What a step computed, equal on all ranks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepValues {
    pub loss: f64,
    /// Name, weighted, unweighted.
    pub terms: Vec<(String, f64, f64)>,
    pub monitors: Vec<(String, f64)>,
    pub grad_norm: f64,
    /// Where the first value was that is not finite; the phase changed nothing then.
    pub nonfinite: Option<(String, &'static str)>,
}

pub struct Engine<T> {
    pub executor: Executor<T>,
    pub states: StateTable,
    plans: HashMap<[usize; 2], Plan>,
    full: [usize; 2],
    pub eval: Option<Plan>,
    prepared: Option<Prepared>,
    comm: Box<dyn Communicator>,
    reproducible: bool,
}

/// The plan whose frozen weights are folded at the moment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Prepared {
    Train([usize; 2]),
    Eval,
}

/// Sizes of a run's plans.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Units of a full micro-batch, per role, and of the shorter ones that occur.
    pub full: [usize; 2],
    pub others: Vec<[usize; 2]>,
    /// Micro-batches of a global batch.
    pub leaves: usize,
    pub eval_batch: usize,
    pub threads: usize,
    pub reproducible: bool,
}

impl<T: Real> Engine<T> {
    /// Compiles every plan of the run and makes room for them, in the same order on every rank.
    pub fn new(
        model: &Model,
        compile: &Compile,
        sizes: &Sizes,
        comm: Box<dyn Communicator>,
    ) -> Result<Engine<T>, TrainError> {
        let mut states = StateTable::default();
        let full = compile.training(model, sizes.full, &mut states, None)?;
        let layout = full.placement.layout.clone();
        let mut plans = HashMap::new();
        for &units in &sizes.others {
            plans.insert(units, compile.training(model, units, &mut states, Some(&layout))?);
        }
        plans.insert(sizes.full, full);
        let eval = compile.evaluation(model, sizes.eval_batch, &mut states)?;
        let mut executor = Executor::new(sizes.threads)?;
        for plan in plans.values().chain([&eval]) {
            executor.reserve(plan, &states, sizes.leaves);
        }
        let (full, reproducible) = (sizes.full, sizes.reproducible);
        Ok(Engine { executor, states, plans, full, eval: Some(eval), prepared: None, comm, reproducible })
    }

    /// The plan of a full micro-batch: its update serves all.
    pub fn plan(&self) -> &Plan {
        &self.plans[&self.full]
    }

    pub fn comm(&self) -> &dyn Communicator {
        self.comm.as_ref()
    }

    /// States from the seed; weights from files come after this, then `loaded`.
    pub fn initialise(&mut self, seed: u64) {
        initialise(&mut self.executor, &self.states, seed);
    }

    /// Takes the copies that are defined as they are after loading: anchors and moving averages.
    pub fn loaded(&mut self) {
        copy_states(&mut self.executor, &self.states);
        self.prepared = None;
    }

    fn prepare(&mut self, wanted: Prepared) {
        // States move between evaluations, so the folded weights of the evaluation are made anew each time.
        if self.prepared != Some(wanted) || wanted == Prepared::Eval {
            let plan = match wanted {
                Prepared::Train(units) => self.plans.get(&units),
                Prepared::Eval => self.eval.as_ref(),
            };
            if let Some(plan) = plan {
                self.executor.prepare(plan);
            }
            self.prepared = Some(wanted);
        }
    }

    /// Runs all phases of a step.
    pub fn step(&mut self, step: &StepInputs<'_>) -> Result<StepValues, TrainError> {
        let mut values = StepValues::default();
        for phase in 0..self.plan().phases.len() {
            let mut tree = Tree::new();
            for (slot, micro) in step.micros.iter().enumerate() {
                self.body(phase, slot, micro, step)?;
                let plan = &self.plans[&self.full];
                let part = self.executor.reduce_mut(plan, phase);
                if step.all_units.len() > 1 {
                    tree.push(micro.leaf, part);
                }
            }
            self.reduce(phase, tree, step)?;
            let plan = &self.plans[&self.full];
            let scalars = scalars(plan, step, 0);
            self.executor.update(plan, phase, &scalars);
            read_values(&self.executor, plan, phase, &scalars, &mut values);
            let finite = plan.phases[phase].norm.is_none_or(|n| self.executor.read(plan, n[1])[0] == 1.0);
            if !finite {
                values.nonfinite = Some(self.first_nonfinite(phase, step)?);
                break;
            }
        }
        Ok(values)
    }

    fn body(&mut self, phase: usize, slot: usize, micro: &Micro, step: &StepInputs<'_>) -> Result<(), TrainError> {
        self.prepare(Prepared::Train(micro.units));
        let full = &self.plans[&self.full];
        let Some(plan) = self.plans.get(&micro.units) else {
            return Err(TrainError::Setting(format!("no plan for a micro-batch of {:?} units", micro.units)));
        };
        for (name, data) in &micro.inputs {
            self.executor.set_input(plan, name, data)?;
        }
        if plan.reduce.entries.len() != full.reduce.entries.len() {
            self.executor.reduce_mut(full, phase).fill(T::ZERO);
        }
        self.executor.body(plan, phase, slot, &scalars(plan, step, micro.leaf));
        Ok(())
    }

    /// Sums gradients and loss values over micro-batches and ranks, and gathers what bodies hand to the update.
    fn reduce(&mut self, phase: usize, mut tree: Tree<T>, step: &StepInputs<'_>) -> Result<(), TrainError> {
        let plan = &self.plans[&self.full];
        let leaves = step.all_units.len();
        if leaves > 1 {
            let part = self.executor.reduce_mut(plan, phase);
            let len = part.len();
            if self.comm.world_size() > 1 {
                if self.reproducible {
                    let parts = self.comm.all_gather_varied(&tree.to_bytes())?;
                    tree = Tree::new();
                    parts.iter().for_each(|p| tree.absorb(p, len));
                } else {
                    let mut own = tree.sum().unwrap_or_else(|| vec![T::ZERO; len]);
                    all_reduce(self.comm.as_ref(), &mut own)?;
                    tree = Tree::new();
                    tree.push(0, &own);
                }
            }
            if let Some(sum) = tree.sum() {
                self.executor.reduce_mut(plan, phase).copy_from_slice(&sum);
            }
        } else if self.comm.world_size() > 1 {
            // One micro-batch: the rank that ran it hands its sums to the others.
            let len = self.executor.reduce_mut(plan, phase).len();
            let own = if step.micros.is_empty() { vec![] } else { self.executor.reduce_mut(plan, phase).to_vec() };
            let parts = self.comm.all_gather_varied(bytemuck::cast_slice(&own))?;
            let whole: Vec<T> = bytemuck::pod_collect_to_vec(&parts.concat());
            debug_assert_eq!(whole.len(), len);
            self.executor.reduce_mut(plan, phase).copy_from_slice(&whole);
        }
        if self.comm.world_size() > 1 {
            let own = self.executor.carry_mut(plan, step.micros.len()).to_vec();
            let all = self.comm.all_gather_varied(&own)?.concat();
            self.executor.carry_mut(plan, leaves).copy_from_slice(&all);
        }
        Ok(())
    }

    /// Replays the bodies of a phase, which committed nothing, and names the first launch that is not finite. The lowest
    /// rank that finds one speaks for all.
    fn first_nonfinite(&mut self, phase: usize, step: &StepInputs<'_>) -> Result<(String, &'static str), TrainError> {
        let mut found = None;
        for (slot, micro) in step.micros.iter().enumerate() {
            let Some(plan) = self.plans.get(&micro.units) else { continue };
            for (name, data) in &micro.inputs {
                self.executor.set_input(plan, name, data)?;
            }
            found = self.executor.first_nonfinite(plan, phase, slot, &scalars(plan, step, micro.leaf));
            if found.is_some() {
                break;
            }
        }
        let own = found.as_ref().map(|f| f.path.clone()).unwrap_or_default();
        let all = self.comm.all_gather_varied(own.as_bytes())?;
        let first = all.iter().find(|p| !p.is_empty()).map(|p| String::from_utf8_lossy(p).into_owned());
        let op = found.map_or("on another rank", |f| f.op);
        Ok(first.map_or(("update/sum of gradients".to_string(), "reduce"), |path| (path, op)))
    }

    /// Names of the method's other heads, in the order of `EvalValues::others`.
    pub fn other_heads(&self) -> Vec<String> {
        let plan = self.eval.iter();
        plan.flat_map(|p| p.phases[0].losses.monitors[1..].iter().map(|m| m.name.clone())).collect()
    }

    /// Logits of the evaluation head, and its counts, for one batch.
    pub fn evaluate(&mut self, inputs: &[(String, HostTensor)]) -> Result<EvalValues, TrainError> {
        self.prepare(Prepared::Eval);
        let Some(plan) = &self.eval else { return Err(TrainError::Setting("no evaluation head was compiled".into())) };
        for (name, data) in inputs {
            self.executor.set_input(plan, name, data)?;
        }
        let mut scalars =
            Scalars { slots: vec![0.0; plan.graph.slots.len()], micro_units: vec![plan.graph.units], micro: 0 };
        scalars.slots[SlotId::UNITS[0].0 as usize] = 1.0; // sums instead of means
        self.executor.body(plan, 0, 0, &scalars);
        let losses = &plan.phases[0].losses;
        let read = |value: ValueId| self.executor.read(plan, value);
        let counts = read(losses.monitors[0].value);
        Ok(EvalValues {
            loss_sum: read(losses.terms[0].loss.parts[0].1)[0],
            top1: counts[0] as u64,
            top5: counts[1] as u64,
            others: losses.monitors[1..].iter().map(|m| (m.name.clone(), read(m.value)[0] as u64)).collect(),
            logits: read(losses.outputs[0].1),
        })
    }

    /// After evaluations: the next body folds its own frozen weights again.
    pub fn end_evaluation(&mut self) {
        self.prepared = None;
    }
}

/// Sums over the valid rows of an evaluation batch.
#[derive(Clone, Debug)]
pub struct EvalValues {
    pub loss_sum: f64,
    pub top1: u64,
    pub top5: u64,
    /// Correct rows of the method's other heads.
    pub others: Vec<(String, u64)>,
    /// [batch, classes]
    pub logits: Vec<f64>,
}

fn all_reduce<T: Real>(comm: &dyn Communicator, values: &mut [T]) -> Result<(), TrainError> {
    if size_of::<T>() == 8 {
        comm.all_reduce_sum_f64(bytemuck::cast_slice_mut(values))?;
    } else {
        comm.all_reduce_sum(bytemuck::cast_slice_mut(values))?;
    }
    Ok(())
}

fn scalars(plan: &Plan, step: &StepInputs<'_>, micro: usize) -> Scalars {
    let mut slots: Vec<f64> =
        plan.graph.slots.iter().map(|name| step.slots.get(name).copied().unwrap_or(0.0)).collect();
    for role in 0..2 {
        slots[SlotId::UNITS[role].0 as usize] = step.all_units.iter().map(|u| u[role]).sum::<usize>() as f64;
    }
    Scalars { slots, micro_units: step.all_units.to_vec(), micro }
}

/// Reads what a phase reduced.
fn read_values<T: Real>(executor: &Executor<T>, plan: &Plan, phase: usize, scalars: &Scalars, into: &mut StepValues) {
    let phase = &plan.phases[phase];
    let reduced: HashMap<ValueId, ValueId> = phase.reduced.iter().copied().collect();
    let read = |value: ValueId, at: usize| executor.read(plan, reduced[&value])[at];
    let weight = |w: Weight| scalars.weight(w);
    for term in &phase.losses.terms {
        let plain: f64 = term.loss.parts.iter().map(|&(w, v)| weight(w) * read(v, 0)).sum();
        let weighted = if term.weight.is_zero() { 0.0 } else { weight(term.weight) * plain };
        into.loss += weighted;
        into.terms.push((term.name.clone(), weighted, plain));
    }
    for monitor in &phase.losses.monitors {
        let by = scalars.divisor(monitor.divisor).max(1.0);
        let value = match monitor.measure {
            Measure::Value => read(monitor.value, 0) / by,
            Measure::Root => (read(monitor.value, 0) / by).sqrt(),
            Measure::Ratio { to } => read(monitor.value, 0) / read(to, 0),
            Measure::MeanMagnitude => {
                let all = executor.read(plan, reduced[&monitor.value]);
                all.iter().map(|x| x.abs()).sum::<f64>() / (by * all.len() as f64)
            }
        };
        into.monitors.push((monitor.name.clone(), value));
    }
    if let Some([norm, _]) = phase.norm {
        into.grad_norm = executor.read(plan, norm)[0].sqrt();
    }
}
