//! Drives an engine with made-up images, without recipe or data set, on any machine.

use comm::{Communicator, Solo, Threads};
use cpu::Real;
use data::{EpochKey, Purpose, Stream};
use plan::{Fusion, OptimizerArgs, Options, Storage};
use spec::{DrawKind, Method, Network, Precision, Sampler, Setting, Spec};
use std::collections::{BTreeMap, HashMap};
use tensor::{HostTensor, Shape};
use train::TrainError;
use train::engine::{Engine, Micro, Sizes, StepInputs, StepValues};
use train::executor::Executor;
use train::recipe::{BnPolicy, RanksSection};
use train::step::{Compile, Model};

pub(crate) const SIDE: usize = 8;
const CLASSES: usize = 4;
const SAMPLES: usize = 96;

pub(crate) type States = BTreeMap<String, Vec<f64>>;
pub(crate) type Make<'a> = &'a (dyn Fn() -> Box<dyn Method> + Sync);

#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) ranks: usize,
    pub(crate) micro: usize,
    /// Units of each step.
    pub(crate) units: &'a [usize],
    pub(crate) lr: f64,
    pub(crate) reproducible: bool,
    pub(crate) bucket_bytes: usize,
    /// States to begin with.
    pub(crate) start: Option<&'a States>,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Run { ranks: 1, micro: 24, units: &[24], lr: 0.1, reproducible: true, bucket_bytes: 1 << 20, start: None }
    }
}

#[derive(Debug)]
pub(crate) struct Result {
    pub(crate) values: Vec<StepValues>,
    pub(crate) states: States,
    pub(crate) phases: usize,
    /// Slices of the gradients that are summed over ranks, each as soon as it is there.
    pub(crate) buckets: usize,
    /// Lists of launches that were captured, on a machine that captures.
    pub(crate) graphs: usize,
}

/// The executor of one rank.
pub(crate) trait Machine: Executor {
    fn of(rank: usize) -> Self;

    fn graphs(&self) -> usize {
        0
    }

    /// Ends a rank that met an error.
    fn fail(rank: usize, error: &TrainError) -> ! {
        panic!("rank {rank}: {error}")
    }
}

impl Machine for cpu::Executor<f32> {
    fn of(_: usize) -> Self {
        Self::new(1).unwrap()
    }
}

/// States whose names begin so.
pub(crate) fn states_of<'a>(result: &'a Result, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Vec<f64>)> {
    result.states.iter().filter(move |(name, _)| name.starts_with(prefix))
}

/// Samples of a step: distinct within a step, coming back in later ones.
pub(crate) fn samples(step: usize, units: usize) -> Vec<i32> {
    (0..units).map(|i| ((step * 17 + i * 3) % SAMPLES) as i32).collect()
}

fn pixel(sample: i32, view: usize, i: usize) -> f32 {
    let x = (sample as f32 * 12.9898 + view as f32 * 4.1414 + i as f32 * 0.731).sin() * 43758.547;
    2.0 * (x - x.floor()) - 1.0
}

/// Sample and view of every image of these units: the views, or anchors and then partners of their class, grouped by anchor.
fn rows(spec: &Spec, samples: &[i32]) -> Vec<(i32, usize)> {
    if let Sampler::Pairs { partners, .. } = spec.sampler {
        let other = |anchor: i32, p: usize| (anchor + (p * CLASSES) as i32) % SAMPLES as i32;
        let others = samples.iter().flat_map(|&s| (1..=partners).map(move |p| (other(s, p), 0)));
        return samples.iter().map(|&s| (s, 0)).chain(others).collect();
    }
    (0..spec.views.len()).flat_map(|view| samples.iter().map(move |&s| (s, view))).collect()
}

fn images(rows: &[(i32, usize)]) -> HostTensor {
    let size = SIDE * SIDE * 3;
    let values: Vec<f32> = rows.iter().flat_map(|&(s, v)| (0..size).map(move |i| pixel(s, v, i))).collect();
    HostTensor::new(Shape::new(&[rows.len(), SIDE, SIDE, 3]), &values).unwrap()
}

fn labels(rows: &[(i32, usize)]) -> HostTensor {
    ints(&rows.iter().map(|(s, _)| s % CLASSES as i32).collect::<Vec<_>>())
}

fn ints(values: &[i32]) -> HostTensor {
    HostTensor::new(Shape::new(&[values.len()]), values).unwrap()
}

/// A box of the image, of more than half a side and less than a whole one.
fn some_box(stream: &mut Stream) -> [i32; 4] {
    let [top, left, height, width] = [0, 0, 4, 4].map(|least| least + stream.below(4) as i32);
    [top, left, (top + height).min(SIDE as i32), (left + width).min(SIDE as i32)]
}

/// A draw of a micro-batch: a function of step and leaf, so that it is equal at any number of ranks.
fn draw(kind: DrawKind, stream: &mut Stream, units: usize) -> HostTensor {
    let boxes = |stream: &mut Stream, n: usize| (0..n).flat_map(|_| some_box(stream)).collect::<Vec<_>>();
    match kind {
        DrawKind::CellMask { cells, .. } => {
            let mask: Vec<u8> = (0..units * cells).map(|_| u8::from(stream.bernoulli(0.5))).collect();
            HostTensor::new(Shape::new(&[units, cells]), &mask).unwrap()
        }
        DrawKind::Permutation => ints(&stream.permutation(units).into_iter().map(|i| i as i32).collect::<Vec<_>>()),
        DrawKind::Lambda { .. } => HostTensor::new(Shape::new(&[]), &[0.2 + 0.6 * stream.f32()]).unwrap(),
        DrawKind::CutBox { .. } => ints(&some_box(stream)),
        DrawKind::CutShare { .. } => {
            let [top, left, bottom, right] = some_box(stream);
            let share = 1.0 - ((bottom - top) * (right - left)) as f32 / (SIDE * SIDE) as f32;
            HostTensor::new(Shape::new(&[]), &[share]).unwrap()
        }
        DrawKind::Cutout { .. } | DrawKind::Erase { .. } => {
            HostTensor::new(Shape::new(&[units, 4]), &boxes(stream, units)).unwrap()
        }
    }
}

fn draws(spec: &Spec, step: usize, leaf: usize, units: usize) -> impl Iterator<Item = (String, HostTensor)> {
    spec.draws.iter().map(move |d| {
        // One stream for a box and its share.
        let boxed = matches!(d.kind, DrawKind::CutBox { .. } | DrawKind::CutShare { .. });
        let purpose = if boxed { Purpose::CUT_BOX } else { Purpose::named(&d.name) };
        let key = EpochKey { seed: 11, stage: 0, epoch: step as u32 };
        (format!("draw.{}", d.name), draw(d.kind, &mut key.stream(purpose, leaf as u32, 0), units))
    })
}

/// The micro-batches of a step that a rank of `world` runs, and the units of all.
fn deal(run: &Run<'_>, spec: &Spec, step: usize, (rank, world): (usize, usize)) -> (Vec<Micro>, Vec<[usize; 2]>) {
    let own = samples(step, run.units[step]);
    let before = if spec.previous && step > 0 { samples(step - 1, run.units[step - 1]) } else { vec![] };
    let leaves = own.len().div_ceil(run.micro);
    let share = before.len().div_ceil(leaves).max(1);
    let parts: Vec<_> = own.chunks(run.micro).collect();
    let shares: Vec<Vec<i32>> =
        (0..leaves).map(|i| before.iter().skip(i * share).take(share).copied().collect()).collect();
    let all: Vec<_> = parts.iter().zip(&shares).map(|(p, s)| [p.len(), s.len()]).collect();
    let full = run.units[0].div_ceil(run.micro);
    let mine = full * rank / world..(full * (rank + 1) / world).min(leaves).max(full * rank / world);
    let micros = mine.filter(|&leaf| leaf < leaves).map(|leaf| {
        let own = rows(spec, parts[leaf]);
        let mut inputs = vec![
            ("image".to_string(), images(&own)),
            ("label".to_string(), labels(&own)),
            ("index".to_string(), ints(parts[leaf])),
        ];
        inputs.extend(draws(spec, step, leaf, parts[leaf].len()));
        if !shares[leaf].is_empty() {
            let last: Vec<_> = shares[leaf].iter().map(|&s| (s, 0)).collect();
            inputs.push(("previous.image".to_string(), images(&last)));
            inputs.push(("previous.label".to_string(), labels(&last)));
        }
        Micro { leaf, units: all[leaf], inputs }
    });
    (micros.collect(), all)
}

fn model(network: fn() -> Box<dyn Network>, make: Make<'_>) -> Model {
    let facts = Setting::new(CLASSES, [SIDE, SIDE, 3], SAMPLES, 10);
    let setting = Setting { lr: 0.1, momentum: 0.9, teachers: vec![network().classifier()], ..facts };
    let method = make();
    let spec = method.spec(&setting).unwrap();
    Model { method, spec, setting, student: network(), teachers: vec![network()], precision: Precision::F32 }
}

fn compile(global_batch: usize, bucket_bytes: usize) -> Compile {
    let optimizer = OptimizerArgs::default();
    let options =
        Options { fusion: Fusion::Full, optimizer, storage: Storage::CpuF32, bucket_bytes, keep_outputs: false };
    Compile { options, global_batch, train_input: None, eval_input: None, bn: BnPolicy::Local, world: 1 }
}

/// Plans of the micro-batches that occur.
fn sizes(run: &Run<'_>, spec: &Spec) -> Sizes {
    let mut others: Vec<_> = (0..run.units.len()).flat_map(|s| deal(run, spec, s, (0, 1)).1).collect();
    let full = [run.micro, if spec.previous { run.micro } else { 0 }];
    others.retain(|u| *u != full);
    others.sort();
    others.dedup();
    let leaves = run.units[0].div_ceil(run.micro);
    Sizes { full, others, leaves, eval_batch: 4, reproducible: run.reproducible }
}

fn rank_main<E: Machine>(
    run: &Run<'_>,
    model: &Model,
    comm: Box<dyn Communicator>,
) -> core::result::Result<Result, TrainError> {
    let spec = &model.spec;
    let place = (comm.rank(), comm.world_size());
    let mut executor = E::of(place.0);
    executor.join(comm.as_ref(), &RanksSection::default(), None)?;
    let compile = compile(run.units[0], run.bucket_bytes);
    let mut engine = Engine::new(model, &compile, &sizes(run, spec), executor, comm)?;
    engine.initialise(7)?;
    if let Some(start) = run.start {
        for entry in engine.states.entries.clone() {
            let Some(values) = start.get(&entry.name) else { continue };
            let values: Vec<_> = values.iter().map(|&v| E::Real::of(v)).collect();
            engine.executor.set_state(entry.offset, &values)?;
        }
    }
    engine.loaded()?;
    let ramps = spec.slots.iter().map(|s| (s.name.clone(), s.ramp.at(3)));
    let slots: HashMap<_, _> = ramps.chain([("lr".to_string(), run.lr)]).collect();
    let mut values = Vec::new();
    for step in 0..run.units.len() {
        let (micros, all_units) = deal(run, spec, step, place);
        values.push(engine.step(&StepInputs { micros: &micros, all_units: &all_units, slots: &slots })?);
    }
    let mut states = States::new();
    for entry in &engine.states.entries {
        let values = engine.executor.state(entry.offset, entry.shape.elements())?;
        states.insert(entry.name.clone(), values.into_iter().map(Real::to_f64).collect());
    }
    let (plan, graphs) = (engine.plan(), engine.executor.graphs());
    Ok(Result { values, states, phases: plan.phases.len(), buckets: plan.reduce.buckets.len(), graphs })
}

fn tiny() -> Box<dyn Network> {
    Box::new(crate::Tiny)
}

/// Runs the steps on CPUs; with several ranks, asserts that all end with the same values and states.
pub(crate) fn run(_: &crate::Tiny, make: Make<'_>, run: &Run<'_>) -> Result {
    run_on::<cpu::Executor<f32>>(make, run)
}

/// As `run`, on ranks with such executors.
pub(crate) fn run_on<E: Machine>(make: Make<'_>, run: &Run<'_>) -> Result {
    let rank_main = &|comm: Box<dyn Communicator>| {
        let rank = comm.rank();
        rank_main::<E>(run, &model(tiny, make), comm).unwrap_or_else(|e| E::fail(rank, &e))
    };
    if run.ranks == 1 {
        return rank_main(Box::<Solo>::default());
    }
    let mut results: Vec<Result> = std::thread::scope(|scope| {
        let spawn = |comm: Threads| scope.spawn(move || rank_main(Box::new(comm)));
        let threads: Vec<_> = Threads::world(run.ranks).into_iter().map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for other in &results[1..] {
        assert_eq!(results[0].values, other.values, "ranks agree on values");
        assert_eq!(results[0].states, other.states, "ranks agree on states");
    }
    results.swap_remove(0)
}

/// Logits of the evaluation head, after adding to every element of a state.
pub(crate) fn logits(_: &crate::Tiny, make: Make<'_>, change: Option<(&str, f64)>) -> Vec<f64> {
    let model = model(tiny, make);
    let sizes = Sizes { full: [4, 0], others: vec![], leaves: 1, eval_batch: 4, reproducible: true };
    let executor = cpu::Executor::<f32>::new(1).unwrap();
    let mut engine = Engine::new(&model, &compile(4, 1 << 20), &sizes, executor, Box::new(Solo::default())).unwrap();
    engine.initialise(7).unwrap();
    if let Some((name, delta)) = change {
        let entry = engine.states.find(name).expect("a state of the model").clone();
        let state = engine.executor.state_mut(entry.offset, entry.shape.elements());
        state.iter_mut().enumerate().for_each(|(i, s)| *s += (delta * (i as f64).sin()) as f32);
    }
    engine.loaded().unwrap();
    let own: Vec<_> = samples(0, 4).into_iter().map(|s| (s, 0)).collect();
    engine.evaluate(&[("image".to_string(), images(&own)), ("label".to_string(), labels(&own))]).unwrap().logits
}
