//! Drives an engine with made-up images, without recipe or data set.

use comm::{Communicator, Solo, Threads};
use data::{EpochKey, Purpose, Stream};
use plan::{Fusion, OptimizerArgs, Options, Storage};
use spec::{DrawKind, Method, Network, Precision, Sampler, Setting, Spec};
use std::collections::{BTreeMap, HashMap};
use tensor::{HostTensor, Shape};
use train::engine::{Engine, Micro, Sizes, StepInputs, StepValues};
use train::recipe::BnPolicy;
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
    /// States to begin with.
    pub(crate) start: Option<&'a States>,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Run { ranks: 1, micro: 24, units: &[24], lr: 0.1, reproducible: true, start: None }
    }
}

#[derive(Debug)]
pub(crate) struct Result {
    pub(crate) values: Vec<StepValues>,
    pub(crate) states: States,
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

fn compile(global_batch: usize) -> Compile {
    let optimizer = OptimizerArgs::default();
    let options = Options {
        fusion: Fusion::Full,
        optimizer,
        storage: Storage::CpuF32,
        bucket_bytes: 1 << 20,
        keep_outputs: false,
    };
    Compile { options, global_batch, train_input: None, eval_input: None, bn: BnPolicy::Local, world: 1 }
}

fn rank_main(run: &Run<'_>, network: fn() -> Box<dyn Network>, make: Make<'_>, comm: Box<dyn Communicator>) -> Result {
    let model = model(network, make);
    let spec = &model.spec;
    let place = (comm.rank(), comm.world_size());
    let mut others: Vec<_> = (0..run.units.len()).flat_map(|s| deal(run, spec, s, (0, 1)).1).collect();
    let full = [run.micro, if spec.previous { run.micro } else { 0 }];
    others.retain(|u| *u != full);
    others.sort();
    others.dedup();
    let leaves = run.units[0].div_ceil(run.micro);
    let sizes = Sizes { full, others, leaves, eval_batch: 4, reproducible: run.reproducible };
    let executor = cpu::Executor::<f32>::new(1).unwrap();
    let mut engine = Engine::new(&model, &compile(run.units[0]), &sizes, executor, comm).unwrap();
    engine.initialise(7).unwrap();
    if let Some(start) = run.start {
        for entry in engine.states.entries.clone() {
            let Some(values) = start.get(&entry.name) else { continue };
            let state = engine.executor.state_mut(entry.offset, values.len());
            state.iter_mut().zip(values).for_each(|(s, v)| *s = *v as f32);
        }
    }
    engine.loaded().unwrap();
    let ramps = spec.slots.iter().map(|s| (s.name.clone(), s.ramp.at(3)));
    let slots: HashMap<_, _> = ramps.chain([("lr".to_string(), run.lr)]).collect();
    let mut values = Vec::new();
    for step in 0..run.units.len() {
        let (micros, all_units) = deal(run, spec, step, place);
        values.push(engine.step(&StepInputs { micros: &micros, all_units: &all_units, slots: &slots }).unwrap());
    }
    let read = |e: &plan::StateEntry| {
        engine.executor.state(e.offset, e.shape.elements()).iter().map(|&x| f64::from(x)).collect()
    };
    let states = engine.states.entries.iter().map(|e| (e.name.clone(), read(e))).collect();
    Result { values, states }
}

fn tiny() -> Box<dyn Network> {
    Box::new(crate::Tiny)
}

/// Runs the steps; with several ranks, asserts that all end with the same values and states.
pub(crate) fn run(_: &crate::Tiny, make: Make<'_>, run: &Run<'_>) -> Result {
    if run.ranks == 1 {
        return rank_main(run, tiny, make, Box::new(Solo::default()));
    }
    let mut results: Vec<Result> = std::thread::scope(|scope| {
        let spawn = |comm: Threads| scope.spawn(move || rank_main(run, tiny, make, Box::new(comm)));
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
    let mut engine = Engine::new(&model, &compile(4), &sizes, executor, Box::new(Solo::default())).unwrap();
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
