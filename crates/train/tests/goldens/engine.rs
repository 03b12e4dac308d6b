//! A run's engine without recipe and files: a test sets weights, images and labels, and reads what it likes.

use crate::wave;
use comm::{Communicator, Solo};
use cpu::Real;
use plan::{Fusion, Grad, OptimizerArgs, Options, StateEntry, Storage};
use spec::{Method, Network, Precision, Setting, StateKind, StepInput};
use std::collections::{BTreeMap, HashMap};
use tensor::{HostTensor, KCRS_TO_KRSC, KRSC_TO_KCRS, Shape};
use train::engine::{Engine, Micro, Sizes, StepInputs, StepValues};
use train::recipe::BnPolicy;
use train::step::{Compile, Model};

/// What a run consists of. Fields that a test does not care about come from `Case::new`.
pub(crate) struct Case {
    pub(crate) method: Box<dyn Method>,
    pub(crate) student: Box<dyn Network>,
    pub(crate) teachers: Vec<Box<dyn Network>>,
    pub(crate) classes: usize,
    pub(crate) image: [usize; 3],
    pub(crate) input: Option<StepInput>,
    pub(crate) precision: Precision,
    pub(crate) fusion: Fusion,
    pub(crate) optimizer: OptimizerArgs,
}

pub(crate) fn setting(classes: usize, image: [usize; 3]) -> Setting {
    Setting::new(classes, image, 100, 10)
}

impl Case {
    /// In f64, on float images, fused.
    pub(crate) fn new(method: Box<dyn Method>, student: Box<dyn Network>, classes: usize, image: [usize; 3]) -> Case {
        let (teachers, precision, fusion, optimizer) = (vec![], Precision::F64, Fusion::Full, OptimizerArgs::default());
        Case { method, student, teachers, classes, image, input: None, precision, fusion, optimizer }
    }

    /// One micro-batch of `units` on one thread.
    pub(crate) fn engine<T: Real>(self, units: usize) -> Engine<cpu::Executor<T>> {
        self.split(&[units], Box::new(Solo::default()))
    }

    /// Micro-batches of so many units, the first the largest; the same bits at any number of ranks.
    pub(crate) fn split<T: Real>(self, units: &[usize], comm: Box<dyn Communicator>) -> Engine<cpu::Executor<T>> {
        let setting = setting(self.classes, self.image);
        let spec = self.method.spec(&setting).unwrap();
        let Case { method, student, teachers, precision, fusion, optimizer, input, .. } = self;
        let model = Model { method, spec, setting, student, teachers, precision };
        let storage = if size_of::<T>() == 8 { Storage::CpuF64 } else { Storage::CpuF32 };
        let options = Options { fusion, optimizer, storage, bucket_bytes: 1 << 20, keep_outputs: true };
        let global_batch = units.iter().sum();
        let compile =
            Compile { options, global_batch, train_input: input, eval_input: input, bn: BnPolicy::Local, world: 1 };
        let full = [units[0], 0];
        let mut others: Vec<_> = units.iter().map(|&u| [u, 0]).filter(|u| *u != full).collect();
        others.dedup();
        let rows = model.spec.rows_per_unit() * units[0];
        let sizes = Sizes { full, others, leaves: units.len(), eval_batch: rows, reproducible: true };
        let mut engine = Engine::new(&model, &compile, &sizes, cpu::Executor::new(1).unwrap(), comm).unwrap();
        engine.initialise(0).unwrap();
        fill(&mut engine);
        engine
    }
}

/// Parameters and running statistics by the formula of the goldens.
fn fill<T: Real>(engine: &mut Engine<cpu::Executor<T>>) {
    for entry in engine.states.entries.clone() {
        if !matches!(entry.kind, StateKind::Param | StateKind::Buffer) {
            continue;
        }
        let (prefix, name) = match entry.name.strip_prefix("student.") {
            Some(name) => ("", name),
            None => ("teacher.", entry.name.strip_prefix("teacher.").unwrap()),
        };
        let shape = published_shape(entry.shape);
        write(engine, &entry, &wave::weight(prefix, name, shape.dims()));
    }
    engine.loaded().unwrap();
}

fn published_shape(shape: Shape) -> Shape {
    if shape.rank() == 4 { Shape::new(&KRSC_TO_KCRS.map(|axis| shape[axis])) } else { shape }
}

/// Values in the published layout.
fn published(shape: Shape, values: Vec<f64>) -> Vec<f64> {
    if shape.rank() != 4 {
        return values;
    }
    HostTensor::new(shape, &values).unwrap().permute4(KRSC_TO_KCRS).unwrap().to_f64().unwrap()
}

fn write<T: Real>(engine: &mut Engine<cpu::Executor<T>>, entry: &StateEntry, published: &[f64]) {
    let mut values = HostTensor::new(published_shape(entry.shape), published).unwrap();
    if entry.shape.rank() == 4 {
        values = values.permute4(KCRS_TO_KRSC).unwrap();
    }
    let state = engine.executor.state_mut(entry.offset, published.len());
    state.iter_mut().zip(values.to_f64().unwrap()).for_each(|(s, v)| *s = T::of(v));
}

/// Sets a state of the student, by published name and layout.
pub(crate) fn set_state<T: Real>(engine: &mut Engine<cpu::Executor<T>>, name: &str, values: &[f64]) {
    let entry = engine.states.find(&format!("student.{name}")).unwrap().clone();
    write(engine, &entry, values);
    engine.loaded().unwrap();
}

/// A state of the student, by published name and layout.
pub(crate) fn state<T: Real>(engine: &Engine<cpu::Executor<T>>, name: &str) -> Vec<f64> {
    let entry = engine.states.find(&format!("student.{name}")).unwrap();
    let values = engine.executor.state(entry.offset, entry.shape.elements()).iter().map(|x| x.to_f64()).collect();
    published(entry.shape, values)
}

/// Every parameter and running statistic of the student.
pub(crate) fn states<T: Real>(engine: &Engine<cpu::Executor<T>>) -> BTreeMap<String, Vec<f64>> {
    let wanted = engine.states.entries.iter().filter(|e| matches!(e.kind, StateKind::Param | StateKind::Buffer));
    let names = wanted.filter_map(|e| e.name.strip_prefix("student."));
    names.map(|name| (name.to_string(), state(engine, name))).collect()
}

/// Gradients of the step that ran last, before clipping, decay and momentum, by published name and in that layout.
pub(crate) fn gradients<T: Real>(engine: &Engine<cpu::Executor<T>>) -> BTreeMap<String, Vec<f64>> {
    let plan = engine.plan();
    let of = |&(state, _, grad): &(spec::StateId, usize, Grad)| {
        let state = plan.graph.state(state);
        let Grad::Value { body: Some(value), update: None } = grad else { panic!("{}: {grad:?}", state.name) };
        let name = state.name.strip_prefix("student.").unwrap();
        (name.to_string(), published(state.shape, engine.executor.read(plan, value)))
    };
    plan.phases[0].grads.iter().map(of).collect()
}

/// A value that the method names, of the micro-batch that ran last.
pub(crate) fn output<T: Real>(engine: &Engine<cpu::Executor<T>>, name: &str) -> Vec<f64> {
    let plan = engine.plan();
    let (_, value) = plan.phases[0].losses.outputs.iter().find(|(output, _)| output == name).unwrap();
    engine.executor.read(plan, *value)
}

pub(crate) type Inputs = Vec<(String, HostTensor)>;

/// Float images [n,h,w,c] and a label per image.
pub(crate) fn images(shape: &[usize], pixels: &[f64], labels: &[i32]) -> Inputs {
    vec![
        ("image".to_string(), HostTensor::new(Shape::new(shape), pixels).unwrap()),
        ("label".to_string(), HostTensor::new(Shape::new(&[labels.len()]), labels).unwrap()),
    ]
}

/// A step of one micro-batch.
pub(crate) fn step<T: Real>(engine: &mut Engine<cpu::Executor<T>>, inputs: Inputs, lr: f64) -> StepValues {
    let units = engine.plan().graph.units;
    let micros = [Micro { leaf: 0, units, inputs }];
    let slots = HashMap::from([("lr".to_string(), lr)]);
    engine.step(&StepInputs { micros: &micros, all_units: &[units], slots: &slots }).unwrap()
}
