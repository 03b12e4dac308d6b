//! One rank's machine: executor, plans and communicator. It runs steps and evaluations and knows no epochs.

use crate::error::TrainError;
use crate::executor::Executor;
use crate::init::{copy_states, initialise};
use crate::recipe::BnPolicy;
use crate::step::{Compile, Model};
use crate::tree::Tree;
use comm::Communicator;
use comm::progress::{Phase, Progress};
use plan::{Plan, Scalars, StateTable};
use spec::{Measure, SlotId, ValueId, Weight};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
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

pub struct Engine<E: Executor> {
    pub executor: E,
    pub states: StateTable,
    plans: BTreeMap<[usize; 2], Plan>,
    full: [usize; 2],
    /// Micro-batches of a full global batch.
    leaves: usize,
    pub eval: Option<Plan>,
    prepared: Option<Prepared>,
    /// The first micro-batch of the next step is where it will be read.
    staged: bool,
    comm: Rc<dyn Communicator>,
    reproducible: bool,
    /// Running statistics move by the first of a step's micro-batches, so many at most.
    running: usize,
    /// When the step that runs came to where ranks wait for each other first, and the CPU time of the process by then.
    pub(crate) first_wait: Option<(Instant, Duration)>,
    /// What this rank is doing, for its watch.
    pub progress: Arc<Progress>,
}

/// The step after the one that runs, as far as it is known.
pub trait Ahead {
    /// Its first micro-batch, which may be given to the executor while the one before is computed; `None` if not yet.
    fn micro(&mut self) -> Result<Option<&Micro>, TrainError>;
}

/// For steps on their own.
struct Alone;

impl Ahead for Alone {
    fn micro(&mut self) -> Result<Option<&Micro>, TrainError> {
        Ok(None)
    }
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
    pub reproducible: bool,
}

impl<E: Executor> Engine<E> {
    /// Compiles every plan of the run for the executor and makes room for them, in the same order on every rank.
    pub fn new(
        model: &Model,
        compile: &Compile,
        sizes: &Sizes,
        mut executor: E,
        comm: Box<dyn Communicator>,
    ) -> Result<Engine<E>, TrainError> {
        let comm: Rc<dyn Communicator> = comm.into();
        let world = comm.world_size();
        let compile = compile.on(executor.storage()).over(world);
        if world > 1 && !executor.meet(&comm) && compile.bn == BnPolicy::Sync {
            return Err(TrainError::Device(
                "train.bn = \"sync\" on GPUs needs NCCL, by which the ranks do not meet here: ranks that share a GPU \
                 (RETORT_SHARE_GPU) take train.bn = \"local\" or \"broadcast\", or --device cpu"
                    .to_string(),
            ));
        }
        let mut states = StateTable::default();
        let full = compile.training(model, sizes.full, &mut states, None)?;
        let layout = full.placement.layout.clone();
        let mut plans = BTreeMap::new();
        for &units in &sizes.others {
            plans.insert(units, compile.training(model, units, &mut states, Some(&layout))?);
        }
        plans.insert(sizes.full, full);
        let eval = compile.evaluation(model, sizes.eval_batch, &mut states)?;
        let all: Vec<_> = plans.values().chain([&eval]).collect();
        executor.reserve(&all, &states, sizes.leaves)?;
        let &Sizes { full, leaves, reproducible, .. } = sizes;
        // With `sync` the micro-batches of rank 0 have the statistics of all.
        let running = if compile.bn == BnPolicy::Local { leaves } else { data::share(leaves, 0, world).len() };
        let (eval, progress) = (Some(eval), Arc::default());
        let (prepared, staged, first_wait) = (None, false, None);
        Ok(Engine {
            executor,
            states,
            plans,
            full,
            leaves,
            eval,
            prepared,
            staged,
            comm,
            reproducible,
            running,
            first_wait,
            progress,
        })
    }

    /// The plan of a full micro-batch: its update serves all.
    pub fn plan(&self) -> &Plan {
        &self.plans[&self.full]
    }

    pub fn comm(&self) -> &dyn Communicator {
        self.comm.as_ref()
    }

    /// States from the seed; weights from files come after this, then `loaded`.
    pub fn initialise(&mut self, seed: u64) -> Result<(), TrainError> {
        initialise(&mut self.executor, &self.states, seed)
    }

    /// Takes the copies that are defined as they are after loading: anchors and moving averages.
    pub fn loaded(&mut self) -> Result<(), TrainError> {
        self.prepared = None;
        copy_states(&mut self.executor, &self.states)
    }

    fn prepare(&mut self, wanted: Prepared) -> Result<(), TrainError> {
        // States move between evaluations, so the folded weights of the evaluation are made anew each time.
        if self.prepared != Some(wanted) || wanted == Prepared::Eval {
            let plan = match wanted {
                Prepared::Train(units) => self.plans.get(&units),
                Prepared::Eval => self.eval.as_ref(),
            };
            if let Some(plan) = plan {
                self.executor.prepare(plan)?;
            }
            self.prepared = Some(wanted);
        }
        Ok(())
    }

    /// Gives all ranks the states of rank 0 and makes sure that they have them.
    pub fn share_states(&mut self) -> Result<(), TrainError> {
        for entry in &self.states.entries {
            let mut values = self.executor.state(entry.offset, entry.shape.elements())?;
            self.comm.broadcast(bytemuck::cast_slice_mut(&mut values), 0)?;
            self.executor.set_state(entry.offset, &values)?;
        }
        self.prepared = None;
        match self.odd_ranks()?.as_slice() {
            [] => Ok(()),
            odd => Err(TrainError::Diverged { step: 0, ranks: odd.to_vec() }),
        }
    }

    /// Ranks whose states differ from those of most ranks; all where no majority is. Called by all ranks.
    pub fn odd_ranks(&self) -> Result<Vec<usize>, TrainError> {
        let mut hasher = blake3::Hasher::new();
        for entry in &self.states.entries {
            let values = self.executor.state(entry.offset, entry.shape.elements())?;
            hasher.update(bytemuck::cast_slice(&values));
        }
        let all = self.comm.all_gather(hasher.finalize().as_bytes())?;
        let hashes: Vec<_> = all.chunks_exact(blake3::OUT_LEN).collect();
        let votes = |hash: &&[u8]| hashes.iter().filter(|h| *h == hash).count();
        let majority = hashes.iter().find(|hash| 2 * votes(hash) > hashes.len());
        let odd = |rank: &usize| Some(&hashes[*rank]) != majority;
        Ok((0..hashes.len()).filter(odd).collect())
    }

    /// Runs all phases of a step.
    pub fn step(&mut self, step: &StepInputs<'_>) -> Result<StepValues, TrainError> {
        self.step_ahead(step, &mut Alone)
    }

    /// As `step`; while the executor computes, the next step's inputs are put on their way.
    pub fn step_ahead(&mut self, step: &StepInputs<'_>, next: &mut dyn Ahead) -> Result<StepValues, TrainError> {
        let mut values = StepValues::default();
        let phases = self.plan().phases.len();
        for phase in 0..phases {
            self.phase(phase, step)?;
            if let (true, Some(micro)) = (phase + 1 == phases, next.micro()?) {
                self.feed(micro)?;
                self.staged = true;
            }
            let plan = &self.plans[&self.full];
            let finite = read_values(&self.executor, plan, phase, &self.scalars(plan, step, 0), &mut values)?;
            if !finite {
                self.staged = false; // the replay takes the place of inputs
                values.nonfinite = Some(self.first_nonfinite(phase, step)?);
                break;
            }
        }
        Ok(values)
    }

    /// Bodies, reduction and update of a phase.
    fn phase(&mut self, phase: usize, step: &StepInputs<'_>) -> Result<(), TrainError> {
        let world = self.comm.world_size();
        let one_each = step.all_units.len() == world && step.all_units.iter().all(|u| *u == self.full);
        let at_once = world == 1 || self.leaves == world && !self.reproducible && self.executor.sums_over_ranks();
        if let ([micro], true) = (step.micros, one_each && at_once) {
            if phase == 0 && !std::mem::take(&mut self.staged) {
                self.feed(micro)?; // inputs stay for the phases after it
            }
            let plan = &self.plans[&self.full];
            self.progress.enter(Phase::Forward);
            self.executor.phase(plan, phase, micro.leaf, &self.scalars(plan, step, micro.leaf))?;
            self.first_wait.get_or_insert_with(|| (Instant::now(), cpu_time()));
            return Ok(());
        }
        let mut tree = Tree::new();
        self.progress.enter(Phase::Forward);
        self.staged &= phase == 0;
        for micro in step.micros {
            self.body(phase, micro, step)?;
            if step.micros.len() > 1 || self.reproducible && world > 1 {
                let part = self.executor.take_part(&self.plans[&self.full], phase)?;
                tree.push(&mut self.executor, micro.leaf, part)?;
            }
        }
        self.first_wait.get_or_insert_with(|| (Instant::now(), cpu_time()));
        self.progress.enter(Phase::Reduce);
        self.reduce(phase, tree, step)?;
        self.progress.enter(Phase::Update);
        let plan = &self.plans[&self.full];
        self.executor.update(plan, phase, &self.scalars(plan, step, 0))
    }

    fn scalars(&self, plan: &Plan, step: &StepInputs<'_>, micro: usize) -> Scalars {
        Scalars { running: self.running.min(step.all_units.len()), ..scalars(plan, step, micro) }
    }

    /// Puts a micro-batch where its plan reads it.
    fn feed(&mut self, micro: &Micro) -> Result<(), TrainError> {
        self.prepare(Prepared::Train(micro.units))?;
        let Some(plan) = self.plans.get(&micro.units) else {
            return Err(TrainError::Setting(format!("no plan for a micro-batch of {:?} units", micro.units)));
        };
        micro.inputs.iter().try_for_each(|(name, data)| self.executor.set_input(plan, name, data))
    }

    fn body(&mut self, phase: usize, micro: &Micro, step: &StepInputs<'_>) -> Result<(), TrainError> {
        if !std::mem::take(&mut self.staged) {
            self.feed(micro)?;
        }
        let (plan, full) = (&self.plans[&micro.units], &self.plans[&self.full]);
        if plan.reduce.entries.len() != full.reduce.entries.len() {
            self.executor.clear_reduce(full, phase)?;
        }
        self.executor.body(plan, phase, micro.leaf, &self.scalars(plan, step, micro.leaf))
    }

    /// Sums gradients and loss values over micro-batches and ranks, and gathers what bodies hand to the update. Without parts in
    /// `tree` the sum of this rank lies in the reduce arena, if it had any micro-batch.
    fn reduce(&mut self, phase: usize, mut tree: Tree<E>, step: &StepInputs<'_>) -> Result<(), TrainError> {
        let Engine { executor, plans, full, comm, reproducible, leaves, .. } = self;
        let (plan, comm, present) = (&plans[&*full], comm.as_ref(), step.all_units.len());
        let (world, len) = (comm.world_size(), plan.reduce.phases[phase].len());
        let clip = |share: Range<usize>| share.start.min(present)..share.end.min(present);
        let shares: Vec<_> = (0..world).map(|rank| clip(data::share(*leaves, rank, world))).collect();
        if world > 1 && *reproducible {
            tree = tree.share(executor, comm, &shares, len)?;
        }
        if let Some(sum) = tree.sum(executor)? {
            executor.put_part(plan, phase, &sum)?;
        } else if step.micros.is_empty() {
            executor.clear_reduce(plan, phase)?;
        }
        if world == 1 {
            return Ok(());
        }
        if !*reproducible {
            executor.all_reduce(comm, plan, phase)?;
        }
        executor.share_carry(comm, plan, &shares)
    }

    /// Replays the bodies of a phase, which committed nothing, and names the first launch that is not finite. The lowest
    /// rank that finds one speaks for all.
    fn first_nonfinite(&mut self, phase: usize, step: &StepInputs<'_>) -> Result<(String, &'static str), TrainError> {
        let mut found = None;
        for micro in step.micros {
            self.feed(micro)?;
            let plan = &self.plans[&micro.units];
            let scalars = self.scalars(plan, step, micro.leaf);
            // All of them: other ranks may wait for what these give.
            let first = self.executor.first_nonfinite(plan, phase, micro.leaf, &scalars)?;
            // What was gathered comes from a rank that finds it where it was made.
            found = found.or(first.filter(|f| f.op != "gather_ranks"));
        }
        let own = found.as_ref().map(|f| f.path.clone()).unwrap_or_default();
        let all = self.comm.all_gather_varied(own.as_bytes())?;
        let first = all.iter().find(|p| !p.is_empty()).map(|p| String::from_utf8_lossy(p).into_owned());
        let op = found.filter(|f| first.as_ref() == Some(&f.path)).map_or("on another rank", |f| f.op);
        Ok(first.map_or(("update/sum of gradients".to_string(), "reduce"), |path| (path, op)))
    }

    /// Names of the method's other heads, in the order of `EvalValues::others`.
    pub fn other_heads(&self) -> Vec<String> {
        let plan = self.eval.iter();
        plan.flat_map(|p| p.phases[0].losses.monitors[1..].iter().map(|m| m.name.clone())).collect()
    }

    /// Logits of the evaluation head, and its counts, for one batch.
    pub fn evaluate(&mut self, inputs: &[(String, HostTensor)]) -> Result<EvalValues, TrainError> {
        self.prepare(Prepared::Eval)?;
        let Some(plan) = &self.eval else { return Err(TrainError::Setting("no evaluation head was compiled".into())) };
        for (name, data) in inputs {
            self.executor.set_input(plan, name, data)?;
        }
        let mut scalars = Scalars {
            slots: vec![0.0; plan.graph.slots.len()],
            micro_units: vec![plan.graph.units],
            ..Scalars::default()
        };
        scalars.slots[SlotId::UNITS[0].0 as usize] = 1.0; // sums instead of means
        self.executor.body(plan, 0, 0, &scalars)?;
        let losses = &plan.phases[0].losses;
        let counts = losses.monitors.iter().map(|m| m.value);
        let values: Vec<_> = [losses.outputs[0].1, losses.terms[0].loss.parts[0].1].into_iter().chain(counts).collect();
        let mut read = self.executor.read_all(plan, &values)?;
        let counts = read.split_off(2);
        let others = losses.monitors[1..].iter().zip(&counts[1..]);
        Ok(EvalValues {
            loss_sum: read[1][0],
            top1: counts[0][0] as u64,
            top5: counts[0][1] as u64,
            others: others.map(|(m, count)| (m.name.clone(), count[0] as u64)).collect(),
            logits: read.swap_remove(0),
        })
    }

    /// After evaluations: the next body folds its own frozen weights again.
    pub fn end_evaluation(&mut self) {
        self.prepared = None;
        self.staged = false;
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

/// CPU time of this process, all threads.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Of micro-batch `micro` of a step, as `plan` numbers its slots.
pub(crate) fn scalars(plan: &Plan, step: &StepInputs<'_>, micro: usize) -> Scalars {
    let mut slots: Vec<f64> =
        plan.graph.slots.iter().map(|name| step.slots.get(name).copied().unwrap_or(0.0)).collect();
    for role in 0..2 {
        slots[SlotId::UNITS[role].0 as usize] = step.all_units.iter().map(|u| u[role]).sum::<usize>() as f64;
    }
    Scalars { slots, micro_units: step.all_units.to_vec(), micro, running: step.all_units.len() }
}

/// Reads what a phase reduced; whether all was finite.
fn read_values<E: Executor>(
    executor: &E,
    plan: &Plan,
    phase: usize,
    scalars: &Scalars,
    into: &mut StepValues,
) -> Result<bool, TrainError> {
    let phase = &plan.phases[phase];
    let wanted: Vec<ValueId> = phase.reduced.iter().map(|r| r.1).chain(phase.norm.into_iter().flatten()).collect();
    let all = executor.read_all(plan, &wanted)?;
    let reduced: HashMap<ValueId, &[f64]> =
        phase.reduced.iter().map(|r| r.0).zip(all.iter().map(Vec::as_slice)).collect();
    let read = |value: ValueId| reduced[&value][0];
    let weight = |w: Weight| scalars.weight(w);
    for term in &phase.losses.terms {
        let plain: f64 = term.loss.parts.iter().map(|&(w, v)| weight(w) * read(v)).sum();
        let weighted = if term.weight.is_zero() { 0.0 } else { weight(term.weight) * plain };
        into.loss += weighted;
        into.terms.push((term.name.clone(), weighted, plain));
    }
    for monitor in &phase.losses.monitors {
        let by = scalars.divisor(monitor.divisor).max(1.0);
        let value = match monitor.measure {
            Measure::Value => read(monitor.value) / by,
            Measure::Root => (read(monitor.value) / by).sqrt(),
            Measure::Ratio { to } => read(monitor.value) / read(to),
            Measure::MeanMagnitude => {
                let all = reduced[&monitor.value];
                all.iter().map(|x| x.abs()).sum::<f64>() / (by * all.len() as f64)
            }
        };
        into.monitors.push((monitor.name.clone(), value));
    }
    let [norm, finite] = [phase.reduced.len(), phase.reduced.len() + 1].map(|i| all.get(i).map(|v| v[0]));
    into.grad_norm = norm.map_or(into.grad_norm, f64::sqrt);
    Ok(finite.is_none_or(|flag| flag == 1.0))
}
