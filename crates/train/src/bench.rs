//! The speed of a recipe's training step on made-up images: no data is read.
//!
//! A step is what training does with a batch that is at hand: copies to the device, launches, losses read back. The learning rate is
//! 0, so that numbers stay as they are; that changes no launch.

use crate::bench_inputs::Synthetic;
use crate::bench_machine::{Machine, Timed};
use crate::bench_record::{BenchRecord, Costly, Rates, SCHEMA, Spread, Window, quantile};
use crate::device::{Device, open_cpu, open_gpu};
use crate::engine::{Engine, Micro, StepInputs};
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::recipe_parse::Loaded;
use comm::Solo;
use plan::{Launch, Plan};
use spec::{Precision, Section};
use std::collections::HashMap;
use std::time::Instant;

/// How a step is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Default: the first GPU that works, else the CPU.
    pub device: Option<Device>,
    /// Steps of a window. Default: 50 on a GPU, 5 on the CPU.
    pub steps: Option<usize>,
    /// Default: 10 on a GPU, 5 on the CPU.
    pub windows: Option<usize>,
    pub profiling: Profiling,
}

/// Whether launches are timed one by one afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profiling {
    Off,
    On,
}

/// The name that the stand-in GPU of the tests gives itself.
const STAND_IN: &str = "stand-in GPU";
/// Steps whose launches are timed, of which the median counts.
const PROFILED: usize = 5;

/// Measures a recipe's step. Errors: the device is the stand-in GPU, whose times say nothing; f64.
pub fn bench(loaded: Loaded, options: &BenchOptions) -> Result<BenchRecord, TrainError> {
    let Loaded { recipe, path, .. } = loaded;
    let (precision, name) = (recipe.train.precision, path.display().to_string());
    if precision == Precision::F64 {
        let what = "bench: f64 is for checks; expected --precision f32, tf32 or bf16".to_string();
        return Err(TrainError::Setting(what));
    }
    match Device::choose(options.device, precision)? {
        Device::Cpu => Bench::new(&recipe, open_cpu()?)?.run(name, options),
        Device::Cuda(ordinal) => {
            let gpu = open_gpu(ordinal, precision)?;
            if gpu.facts().name == STAND_IN {
                let what = format!(
                    "bench: GPU {ordinal} is the stand-in, which computes on the CPU: its times say nothing of a GPU; use --device cpu, or a \
                     machine with a GPU"
                );
                return Err(TrainError::Device(what));
            }
            Bench::new(&recipe, gpu)?.run(name, options)
        }
    }
}

/// A step that is ready to run again and again.
struct Bench<E: Machine> {
    precision: Precision,
    synthetic: Synthetic,
    rates: Rates,
    engine: Engine<E>,
    micros: Vec<Micro>,
    slots: HashMap<String, f64>,
    /// Seconds of each step that counts.
    times: Vec<f64>,
}

impl<E: Machine> Bench<E> {
    fn new(recipe: &Recipe, executor: E) -> Result<Bench<E>, TrainError> {
        let precision = recipe.train.precision;
        let mut synthetic = Synthetic::new(recipe)?;
        synthetic.sizes.eval_batch = 1; // no evaluation is measured
        let rates = executor.rates(precision)?;
        let Synthetic { model, compile, sizes } = &synthetic;
        let mut engine = Engine::new(model, compile, sizes, executor, Box::new(Solo::default()))?;
        engine.initialise(recipe.train.seed)?;
        engine.loaded()?;
        let micros = synthetic.micros(engine.plan())?;
        let slots = model.spec.slots.iter().map(|s| (s.name.clone(), s.ramp.at(recipe.train.epochs.saturating_sub(1))));
        let rest = [("lr", 0.0), ("ema_decay", recipe.train.ema_decay.unwrap_or(0.0))];
        let slots = slots.chain(rest.map(|(name, value)| (name.to_string(), value))).collect();
        Ok(Bench { precision, synthetic, rates, engine, micros, slots, times: vec![] })
    }

    fn step(&mut self) -> Result<(), TrainError> {
        let all_units = vec![self.synthetic.sizes.full; self.micros.len()];
        let step = StepInputs { micros: &self.micros, all_units: &all_units, slots: &self.slots };
        match self.engine.step(&step)?.nonfinite {
            Some((path, op)) => Err(TrainError::NonFinite { step: 0, path, op }),
            None => Ok(()),
        }
    }

    /// Images of a step, of every micro-batch.
    fn images(&self) -> usize {
        let graph = &self.engine.plan().graph;
        let rows = graph.batch.iter().find(|b| b.name == "image").map_or(1, |b| graph.shape(b.value).dims()[0]);
        rows * self.micros.len()
    }

    /// Images per second of `steps` steps.
    fn window(&mut self, steps: usize) -> Result<f64, TrainError> {
        let begin = Instant::now();
        for _ in 0..steps {
            let step = Instant::now();
            self.step()?;
            self.times.push(step.elapsed().as_secs_f64());
        }
        Ok((self.images() * steps) as f64 / begin.elapsed().as_secs_f64())
    }

    /// Steps until three windows agree within 1 %, as far as the machine is worth it; how many, and whether they did.
    fn warm_up(&mut self, steps: usize) -> Result<(usize, Option<bool>), TrainError> {
        self.window(E::PACE.warm_up)?;
        let mut rates = Vec::new();
        let steady = |rates: &[f64]| {
            let last = Spread::of(&rates[rates.len().saturating_sub(3)..]);
            rates.len() >= 3 && last.max <= 1.01 * last.min
        };
        while rates.len() < E::PACE.settling && !steady(&rates) {
            let rate = self.window(steps)?;
            rates.push(rate);
        }
        self.times.clear();
        let settled = (E::PACE.settling > 0).then(|| steady(&rates));
        Ok((E::PACE.warm_up + rates.len() * steps, settled))
    }

    fn run(mut self, recipe: String, options: &BenchOptions) -> Result<BenchRecord, TrainError> {
        let steps = options.steps.unwrap_or(E::PACE.steps);
        let (warm_up_steps, steady) = self.warm_up(steps)?;
        let count = options.windows.unwrap_or(E::PACE.windows);
        let windows = (0..count).map(|_| self.window(steps)).collect::<Result<Vec<_>, _>>()?;
        let step_ms = |q| 1e3 * quantile(&self.times, q);
        let (step_ms_p50, step_ms_p99) = (step_ms(0.5), step_ms(0.99));
        let captured = self.engine.executor.captured();
        let profile = if options.profiling == Profiling::On { self.profile()? } else { vec![] };
        let (plan, leaves) = (self.engine.plan(), self.micros.len());
        let launches = launches(plan, leaves);
        let sum = |of: &dyn Fn(&Launch) -> u64| launches.iter().map(|l| of(l)).sum::<u64>();
        let (bytes, flops) = (sum(&|l| l.cost.read + l.cost.written), sum(&|l| l.cost.flops));
        let bound_ms = launches.iter().map(|l| self.rates.bound_ms(l.cost.read + l.cost.written, l.cost.flops)).sum();
        let executor = &self.engine.executor;
        Ok(BenchRecord {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("RETORT_GIT_HASH"),
            recipe,
            device: executor.describe(),
            gpu_uuid: executor.uuid(),
            precision: format!("{:?}", self.precision).to_lowercase(),
            mode: "synthetic-host",
            batch: self.synthetic.compile.global_batch,
            micro_batch: self.synthetic.sizes.full[0],
            images: self.images(),
            warm_up_steps,
            steady,
            steps_per_window: steps,
            images_per_s: Spread::of(&windows),
            windows: windows.into_iter().map(|images_per_s| Window { images_per_s }).collect(),
            step_ms_p50,
            step_ms_p99,
            launches_per_step: launches.len(),
            captured,
            memory_bytes: executor.memory_bytes(plan, &self.engine.states, leaves),
            bytes_per_step: bytes,
            flops_per_step: flops,
            gbyte_per_s: bytes as f64 / step_ms_p50 / 1e6,
            gflop_per_s: flops as f64 / step_ms_p50 / 1e6,
            measured: self.rates,
            bound_ms,
            share_of_bound: bound_ms / step_ms_p50,
            profile,
        })
    }

    /// Every launch of a step on its own, the costliest first.
    fn profile(&mut self) -> Result<Vec<Costly>, TrainError> {
        let costs: Vec<_> = launches(self.engine.plan(), self.micros.len()).iter().map(|l| l.cost).collect();
        let mut runs: Vec<Vec<Timed>> = Vec::new();
        for _ in 0..PROFILED {
            self.engine.executor.start_profile();
            let done = self.step();
            runs.push(self.engine.executor.end_profile(&costs));
            done?;
        }
        let costly = |(i, timed): (usize, &Timed)| {
            let Timed { path, op, kernels, cost, .. } = timed.clone();
            let ms = quantile(&runs.iter().filter_map(|run| Some(run.get(i)?.ms)).collect::<Vec<_>>(), 0.5);
            let (bytes, flops) = (cost.read + cost.written, cost.flops);
            let share_of_bound = self.rates.bound_ms(bytes, flops) / ms.max(1e-9);
            Costly { path, op, kernels, ms, bytes, flops, share_of_bound }
        };
        let mut costly: Vec<_> = runs[0].iter().enumerate().map(costly).collect();
        costly.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Ok(costly)
    }
}

/// The launches of a step of so many micro-batches, in order.
fn launches(plan: &Plan, leaves: usize) -> Vec<&Launch> {
    let of_phase = |phase| {
        let bodies = (0..leaves).flat_map(move |_| plan.section(phase, Section::Body));
        bodies.chain(plan.section(phase, Section::Update))
    };
    (0..plan.phases.len()).flat_map(of_phase).collect()
}
