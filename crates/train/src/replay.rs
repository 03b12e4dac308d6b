//! Training steps on weights and a batch from files, everything that they compute written out: so that any program can be compared
//! with this one, term by term (`retort step`).
//!
//! Files are safetensors. Parameters and buffers carry their published names and layouts (KCRS): the student's plain, a method's
//! modules' under `method.`; each teacher has its own file. Images are normalised floats, NCHW.

use crate::device::{Device, Job, cores, executor, open_gpu};
use crate::engine::{Engine, Micro, Sizes, StepInputs, StepValues};
use crate::error::TrainError;
use crate::executor::Executor;
use crate::offline;
use crate::recipe::Recipe;
use crate::recipe_parse::Loaded;
use crate::replay_compare::{Compared, bound, compare};
use crate::replay_files::{Given, Wanted};
use crate::schedule::Moment;
use crate::session::plural;
use crate::step::{Compile, Model};
use crate::weights::{host_tensor, published, read_state};
use comm::Solo;
use cpu::Real;
use spec::{StateKind, StateUse};
use std::collections::HashMap;
use std::path::PathBuf;
use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, KRSC_TO_KCRS, Shape};

/// Files and numbers of a replay.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    pub weights: PathBuf,
    /// One per teacher, in the recipe's order.
    pub teachers: Vec<PathBuf>,
    pub batch: PathBuf,
    pub out: PathBuf,
    /// Default: as for a run.
    pub device: Option<Device>,
    /// Steps on the same batch.
    pub steps: usize,
    /// Epoch, from 0, whose learning rate and ramped weights count.
    pub epoch: usize,
    /// Whether the schedule's warm-up scales the rate of step 0.
    pub warmup: Warmup,
}

/// What becomes of the schedule's warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmup {
    Off,
    AsInRecipe,
}

/// The tensors that a recipe's step wants.
pub fn describe(loaded: Loaded) -> Result<Wanted, TrainError> {
    let model = Model::new(&loaded.recipe, offline::setting(&loaded.recipe)?)?;
    Wanted::of(&model, &loaded.recipe)
}

/// Runs the steps, writes the file, and gives its tensors.
pub fn replay(loaded: Loaded, options: &ReplayOptions) -> Result<Tensors, TrainError> {
    let tensors = compute(loaded, options)?;
    safe::write(&options.out, &tensors, &Metadata::from([("layout".to_string(), "KCRS".to_string())]))?;
    Ok(tensors)
}

/// As `replay`, without a file.
pub fn compute(loaded: Loaded, options: &ReplayOptions) -> Result<Tensors, TrainError> {
    let (recipe, model, given) = open(loaded, options)?;
    let precision = model.precision;
    let device = Device::choose(options.device, precision)?;
    executor(device, precision, cores(), Steps { recipe: &recipe, model, given, options })
}

/// Runs the first step on a GPU launch by launch, the CPU's op beside each launch on what it read there: the first launch past its
/// bound, else the worst. Errors: the device is not a GPU.
pub fn against_cpu(loaded: Loaded, options: &ReplayOptions) -> Result<Compared, TrainError> {
    let (recipe, model, given) = open(loaded, options)?;
    let precision = model.precision;
    let Device::Cuda(ordinal) = Device::choose(options.device, precision)? else {
        let what = "--against cpu compares a GPU with the CPU, and this step computes on the CPU; name a GPU (--device cuda), \
                    or compare with f64 (--against f64)";
        return Err(TrainError::Device(what.to_string()));
    };
    let mut replay = Replay::new(&recipe, model, given, open_gpu(ordinal, precision)?)?;
    let plan = replay.engine.plan().clone();
    let (micros, slots) = replay.inputs(options.epoch);
    let step = StepInputs { micros: &micros, all_units: &[replay.units], slots: &slots };
    compare(&mut replay.engine.executor, &plan, &step, bound(precision))
}

/// Recipe, networks and files of a step.
fn open(loaded: Loaded, options: &ReplayOptions) -> Result<(Recipe, Model, Given), TrainError> {
    let mut recipe = loaded.recipe;
    if options.warmup == Warmup::Off {
        recipe.schedule.warmup_epochs = 0;
    }
    let given = Given::read(options)?;
    let setting = given.setting(&recipe, offline::setting(&recipe)?)?;
    let model = Model::new(&recipe, setting)?;
    let (wanted, got) = (recipe.teacher.len(), options.teachers.len());
    if wanted != got {
        return Err(TrainError::Setting(format!(
            "--teacher: the recipe names {wanted} teacher{}, got {got} file{}; give a file for each, in the recipe's order",
            plural(wanted),
            plural(got)
        )));
    }
    Ok((recipe, model, given))
}

/// The steps, before it is known what runs them.
struct Steps<'a> {
    recipe: &'a Recipe,
    model: Model,
    given: Given,
    options: &'a ReplayOptions,
}

impl Job for Steps<'_> {
    type Output = Tensors;

    fn run<E: Executor>(self, make: impl Fn(usize) -> Result<E, TrainError> + Sync) -> Result<Tensors, TrainError> {
        Replay::new(self.recipe, self.model, self.given, make(0)?)?.run(self.options)
    }
}

/// A step that is ready to run.
struct Replay<'a, E: Executor> {
    recipe: &'a Recipe,
    model: Model,
    engine: Engine<E>,
    inputs: Vec<(String, HostTensor)>,
    units: [usize; 2],
    /// Rows of per-sample memory that are the batch's.
    index: Vec<i32>,
}

impl<'a, E: Executor> Replay<'a, E> {
    fn new(recipe: &'a Recipe, model: Model, mut given: Given, executor: E) -> Result<Replay<'a, E>, TrainError> {
        let units = given.units(&model);
        let mut compile = Compile::new(recipe, None, None);
        compile.options.keep_outputs = true;
        compile.global_batch = units[0].max(units[1]);
        let sizes = Sizes { full: units, others: vec![], leaves: 1, eval_batch: 1, reproducible: true };
        let mut engine = Engine::new(&model, &compile, &sizes, executor, Box::new(Solo::default()))?;
        engine.initialise(recipe.train.seed)?;
        let inputs = given.inputs(&model, engine.plan());
        let index = inputs.iter().find(|i| i.0 == "index").map(|i| i.1.view::<i32>().map(<[i32]>::to_vec));
        let index = index.transpose()?.unwrap_or_default();
        given.fill_modules(&mut engine);
        given.fill_memory(&model, &mut engine, &index)?;
        given.finish()?;
        engine.loaded()?;
        Ok(Replay { recipe, model, engine, inputs, units, index })
    }

    fn run(mut self, options: &ReplayOptions) -> Result<Tensors, TrainError> {
        let mut out = Tensors::new();
        for step in 0..options.steps {
            let values = self.step(options.epoch)?;
            if let Some((path, op)) = &values.nonfinite {
                return Err(TrainError::NonFinite { step: step as u64, path: path.clone(), op });
            }
            let mut losses = Tensors::new();
            self.losses(&values, &mut losses)?;
            if options.steps > 1 {
                out.extend(losses.iter().map(|(name, t)| (format!("step{step}.{name}"), t.clone())));
            }
            if step == 0 {
                out.extend(losses);
                self.outputs(&mut out)?;
            }
        }
        self.states(&mut out)?;
        Ok(out)
    }

    fn step(&mut self, epoch: usize) -> Result<StepValues, TrainError> {
        let (micros, slots) = self.inputs(epoch);
        self.engine.step(&StepInputs { micros: &micros, all_units: &[self.units], slots: &slots })
    }

    /// The one micro-batch, and the step's scalars by name.
    fn inputs(&self, epoch: usize) -> ([Micro; 1], HashMap<String, f64>) {
        let (base, _) = self.recipe.optimizer.base_lr(self.recipe.train.global_batch);
        let at = Moment { epoch, step: 0, steps_per_epoch: 1, epochs: self.recipe.train.epochs };
        let slots = self.model.spec.slots.iter().map(|s| (s.name.clone(), s.ramp.at(epoch)));
        let rates =
            [("lr", self.recipe.schedule.lr(base, at)), ("ema_decay", self.recipe.train.ema_decay.unwrap_or(0.0))];
        let slots = slots.chain(rates.map(|(name, value)| (name.to_string(), value))).collect();
        ([Micro { leaf: 0, units: self.units, inputs: self.inputs.clone() }], slots)
    }

    /// `loss`, `loss.<term>` weighted and `term.<term>` not.
    fn losses(&self, values: &StepValues, out: &mut Tensors) -> Result<(), TrainError> {
        let mut scalar =
            |name: String, value: f64| number::<E::Real>(Shape::new(&[]), &[value]).map(|t| drop(out.insert(name, t)));
        scalar("loss".to_string(), values.loss)?;
        for (name, weighted, plain) in &values.terms {
            scalar(format!("loss.{name}"), *weighted)?;
            scalar(format!("term.{name}"), *plain)?;
        }
        values.monitors.iter().try_for_each(|(name, value)| scalar(format!("monitor.{name}"), *value))
    }

    /// What the method names, and gradients: before clipping, decay and momentum.
    fn outputs(&self, out: &mut Tensors) -> Result<(), TrainError> {
        let plan = self.engine.plan();
        for (p, phase) in plan.phases.iter().enumerate() {
            for (name, value) in &phase.losses.outputs {
                let (shape, values) = (plan.graph.shape(*value), self.engine.executor.read(plan, *value)?);
                let Some(state) = name.strip_prefix("grad.") else {
                    drop(out.insert(name.clone(), number::<E::Real>(shape, &values)?));
                    continue;
                };
                // A parameter of two phases has a gradient in each; the later one carries its phase's name.
                let first = format!("grad.{}", published(state));
                let key = if p > 0 && out.contains_key(&first) {
                    format!("grad.{}.{}", phase.name, published(state))
                } else {
                    first
                };
                let tensor = number::<E::Real>(shape, &values)?;
                out.insert(key, if shape.rank() == 4 { tensor.permute4(KRSC_TO_KCRS)? } else { tensor });
            }
        }
        Ok(())
    }

    /// Every parameter and buffer, and this batch's rows of a method's memory, as the last step left them.
    fn states(&self, out: &mut Tensors) -> Result<(), TrainError> {
        for entry in &self.engine.states.entries {
            if matches!(entry.kind, StateKind::Param | StateKind::Buffer) {
                out.insert(format!("after.{}", published(&entry.name)), read_state(&self.engine.executor, entry)?);
            }
        }
        for state in &self.model.spec.states {
            let Some(entry) = self.engine.states.find(&format!("method.{}", state.name)) else { continue };
            let rows: Vec<usize> = match state.usage {
                StateUse::PerSample => self.index.iter().map(|&i| i as usize).collect(),
                StateUse::Rolling => (0..self.units[0]).collect(),
            };
            let width: usize = state.row.iter().product();
            let all = self.engine.executor.state(entry.offset, entry.shape.elements())?;
            let values: Vec<_> = rows.iter().flat_map(|&r| &all[r * width..(r + 1) * width]).copied().collect();
            let shape = Shape::new(&[&[rows.len()], &state.row[..]].concat());
            out.insert(format!("after.{}", state.name), host_tensor(shape, &values)?);
        }
        Ok(())
    }
}

/// Values in the executor's float type.
fn number<T: Real>(shape: Shape, values: &[f64]) -> Result<HostTensor, TrainError> {
    host_tensor(shape, &values.iter().map(|&x| T::of(x)).collect::<Vec<_>>())
}
