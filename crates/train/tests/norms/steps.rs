//! Some steps of an engine on made-up images, on one rank or several, and what they leave.

use comm::{Communicator, Solo, Threads};
use nets::NetworkSpec;
use plan::{Fusion, OptimizerArgs, Options};
use spec::{Expr, Losses, Method, Precision, Setting, Spec, Step, View};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use tensor::{HostTensor, Shape};
use train::TrainError;
use train::engine::{Engine, Micro, Sizes, StepInputs, StepValues};
use train::executor::Executor;
use train::recipe::BnPolicy;
use train::step::{Compile, Model};

const SIDE: usize = 8;
const CLASSES: usize = 4;

/// How a method normalises its images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Views {
    One,
    /// Two views, a forward each.
    TwoForwards,
    /// Two views in one forward of two groups.
    TwoGroups,
}

impl Method for Views {
    fn spec(&self, _: &Setting) -> Result<Spec, String> {
        let view = |name: &str| View { name: name.into(), augment: spec::Augment::Recipe };
        let spec = Spec::default();
        Ok(if *self == Views::One { spec } else { Spec { views: vec![view("weak"), view("strong")], ..spec } })
    }

    fn losses<'g>(&self, _: usize, step: &Step<'g>) -> Losses {
        let label = step.unit_label();
        let of = |weak: Expr<'g>, strong: Expr<'g>| {
            let ce = weak.cross_entropy(label) + strong.cross_entropy(label);
            Losses::new().term("ce", 1.0, ce).term("kl", 0.5, strong.kl(weak.detach(), 2.0))
        };
        match self {
            Views::One => Losses::new().term("ce", 1.0, step.student(step.image()).logits.cross_entropy(label)),
            Views::TwoForwards => of(step.student(step.view("weak")).logits, step.student(step.view("strong")).logits),
            Views::TwoGroups => {
                let (weak, strong) = step.student_grouped(step.image(), 2).logits.halves();
                of(weak, strong)
            }
        }
    }
}

/// A run: so many ranks, units of a full micro-batch, and the samples of each step.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub views: Views,
    pub bn: BnPolicy,
    pub ranks: usize,
    pub micro: usize,
    pub steps: Vec<Vec<usize>>,
    pub precision: Precision,
    /// A sample whose pixels are not numbers.
    pub spoilt: Option<usize>,
}

impl Run {
    /// Two steps of eight samples each, without a previous one among them.
    pub(crate) fn new(views: Views, bn: BnPolicy, ranks: usize, micro: usize) -> Run {
        let steps = vec![(0..8).collect(), (8..16).collect()];
        Run { views, bn, ranks, micro, steps, precision: Precision::F32, spoilt: None }
    }
}

/// What a rank has after its last step; gradients are those of all steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Left {
    pub values: Vec<StepValues>,
    pub gradients: BTreeMap<String, Vec<f64>>,
    pub states: BTreeMap<String, Vec<f64>>,
}

fn pixel(sample: usize, view: usize, i: usize) -> f32 {
    let x = (sample as f32 * 12.9898 + view as f32 * 4.1414 + i as f32 * 0.731).sin() * 43758.547;
    2.0 * (x - x.floor()) - 1.0 + (sample % 3) as f32
}

fn micro(run: &Run, leaf: usize, samples: &[usize], views: usize) -> Micro {
    let rows: Vec<_> = (0..views).flat_map(|view| samples.iter().map(move |&s| (s, view))).collect();
    let value = |(s, view): (usize, usize), i| if run.spoilt == Some(s) { f32::NAN } else { pixel(s, view, i) };
    let pixels: Vec<f32> = rows.iter().flat_map(|&row| (0..SIDE * SIDE * 3).map(move |i| value(row, i))).collect();
    let labels: Vec<i32> = rows.iter().map(|&(s, _)| (s % CLASSES) as i32).collect();
    let image = HostTensor::new(Shape::new(&[rows.len(), SIDE, SIDE, 3]), &pixels).unwrap();
    let label = HostTensor::new(Shape::new(&[rows.len()]), &labels).unwrap();
    Micro { leaf, units: [samples.len(), 0], inputs: vec![("image".into(), image), ("label".into(), label)] }
}

fn model(run: &Run) -> Model {
    let student = || NetworkSpec::new("resnet8").build(CLASSES).unwrap();
    let setting = Setting { lr: 0.1, momentum: 0.9, ..Setting::new(CLASSES, [SIDE, SIDE, 3], 64, 1) };
    let spec = run.views.spec(&setting).unwrap();
    Model { method: Box::new(run.views), spec, setting, student: student(), teachers: vec![], precision: run.precision }
}

/// The engine of a rank, in its first state.
pub(crate) fn engine<E: Executor>(
    run: &Run,
    executor: E,
    comm: Box<dyn Communicator>,
) -> Result<Engine<E>, TrainError> {
    let options = Options {
        fusion: Fusion::Full,
        optimizer: OptimizerArgs::default(),
        storage: executor.storage(),
        bucket_bytes: 1 << 14,
        keep_outputs: true,
    };
    let global_batch = run.steps[0].len();
    let compile = Compile { options, global_batch, train_input: None, eval_input: None, bn: run.bn, world: 1 };
    let units = run.steps.iter().flat_map(|s| s.chunks(run.micro)).map(|m| [m.len(), 0]);
    let mut others: Vec<_> = units.filter(|u| u[0] != run.micro).collect();
    others.dedup();
    let leaves = global_batch.div_ceil(run.micro);
    let sizes = Sizes { full: [run.micro, 0], others, leaves, eval_batch: 4, reproducible: false };
    let mut engine = Engine::new(&model(run), &compile, &sizes, executor, comm)?;
    engine.initialise(7)?;
    engine.loaded()?;
    Ok(engine)
}

/// Runs the steps `range` of a run.
pub(crate) fn steps<E: Executor>(run: &Run, engine: &mut Engine<E>, range: Range<usize>) -> Result<Left, TrainError> {
    let (views, mut left) = (model(run).spec.rows_per_unit(), Left::default());
    let slots = HashMap::from([("lr".to_string(), 0.05)]);
    for step in range {
        let parts: Vec<_> = run.steps[step].chunks(run.micro).collect();
        let all_units: Vec<_> = parts.iter().map(|p| [p.len(), 0]).collect();
        let own = data::share(run.steps[0].len().div_ceil(run.micro), engine.comm().rank(), run.ranks);
        let own = own.filter(|&leaf| leaf < parts.len());
        let micros: Vec<_> = own.map(|leaf| micro(run, leaf, parts[leaf], views)).collect();
        left.values.push(engine.step(&StepInputs { micros: &micros, all_units: &all_units, slots: &slots })?);
        let plan = engine.plan();
        for (name, value) in plan.phases[0].losses.outputs.iter().filter(|o| o.0.starts_with("grad.")) {
            left.gradients.insert(format!("step {step} {name}"), engine.executor.read(plan, *value)?);
        }
    }
    for entry in &engine.states.entries {
        let values = engine.executor.state(entry.offset, entry.shape.elements())?;
        left.states.insert(entry.name.clone(), values.iter().map(|x| cpu::Real::to_f64(*x)).collect());
    }
    Ok(left)
}

/// What each rank has after all steps; `make` opens a rank's executor and lets it meet the others.
pub(crate) fn ranks<E: Executor>(
    run: &Run,
    make: impl Fn(&dyn Communicator) -> Result<E, TrainError> + Sync,
) -> Vec<Result<Left, TrainError>> {
    let rank = |comm: Box<dyn Communicator>| {
        let mut engine = engine(run, make(comm.as_ref())?, comm)?;
        steps(run, &mut engine, 0..run.steps.len())
    };
    if run.ranks == 1 {
        return vec![rank(Box::<Solo>::default())];
    }
    let rank = &rank;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            Threads::world(run.ranks).into_iter().map(|comm| scope.spawn(move || rank(Box::new(comm)))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// On the CPU; all ranks have the same.
pub(crate) fn on_cpu(run: &Run) -> Left {
    let all = match run.precision {
        Precision::F64 => ranks(run, |_| Ok(cpu::Executor::<f64>::new(1)?)),
        _ => ranks(run, |_| Ok(cpu::Executor::<f32>::new(1)?)),
    };
    same(all)
}

/// What all ranks have alike.
pub(crate) fn same(all: Vec<Result<Left, TrainError>>) -> Left {
    let mut all: Vec<Left> = all.into_iter().map(|left| left.unwrap()).collect();
    assert!(all.iter().all(|left| *left == all[0]), "ranks differ");
    all.swap_remove(0)
}

/// Compares by the largest value of each tensor.
#[track_caller]
pub(crate) fn close(got: &Left, expected: &Left, tolerance: f64) {
    let tensors = |left: &Left| -> Vec<(String, Vec<f64>)> {
        let losses = left.values.iter().enumerate().map(|(i, v)| (format!("loss {i}"), vec![v.loss]));
        let rest = left.gradients.iter().chain(&left.states).map(|(name, values)| (name.clone(), values.clone()));
        losses.chain(rest).collect()
    };
    let (got, expected) = (tensors(got), tensors(expected));
    assert_eq!(got.len(), expected.len());
    let mut worst = (0.0, "");
    for ((name, got), (other, expected)) in got.iter().zip(&expected) {
        assert_eq!((name, got.len()), (other, expected.len()));
        let most = expected.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
        let error = got.iter().zip(expected).map(|(g, e)| (g - e).abs() / most).fold(0.0, f64::max);
        assert!(
            got.iter().all(|g| g.is_finite()) && error <= tolerance,
            "{name}: error {error:e}, at most {tolerance:e}"
        );
        worst = if error > worst.0 { (error, name) } else { worst };
    }
    println!("largest error {:e}, {}", worst.0, worst.1);
}
