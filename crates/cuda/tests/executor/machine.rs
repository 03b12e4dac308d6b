//! One run of a plan on either executor: small networks, inputs and states by name, everything that can be read afterwards.

use cuda::{CudaError, Executor, Math, Mode};
use nets::NetworkSpec;
use plan::{
    Fusion, NonFinite, OptimizerArgs, Options, Plan, Scalars, StateTable, StepGraph, StepSource, Storage, compile,
};
use spec::{
    Builder, Expr, Graph, ImageArgs, Losses, Method, Net, Network, Precision, Setting, SlotId, StateKind, StepInput,
    Taps, TrainRange, Weight,
};
use std::collections::BTreeMap;
use tensor::{Dtype, HostTensor};

pub(crate) const CLASSES: usize = 5;
/// Samples of the data set, as memories see them.
const SAMPLES: usize = 64;
/// Every value that was read, by name.
pub(crate) type Values = BTreeMap<String, Vec<f64>>;

/// A GPU, or why the test is skipped.
pub(crate) fn gpu(mode: Mode) -> Option<Executor> {
    match Executor::new(0, mode, Math::F32) {
        Ok(executor) => Some(executor),
        Err(e) if e.is_absence() => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// What both executors do.
pub(crate) trait Machine {
    fn storage(&self) -> Storage;
    fn reserve(&mut self, plans: &[&Plan], states: &StateTable, micros: usize);
    fn prepare(&mut self, plan: &Plan);
    fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor);
    fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars);
    fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars);
    fn phase(&mut self, plan: &Plan, phase: usize, scalars: &Scalars);
    fn first_nonfinite(&mut self, plan: &Plan, scalars: &Scalars) -> Option<NonFinite>;
    fn clear_reduce(&mut self, plan: &Plan, phase: usize);
    /// Adds what the last body left to the sum of those before it.
    fn add(&mut self, plan: &Plan, phase: usize, micro: usize);
    /// Gives the sum to the update.
    fn put(&mut self, plan: &Plan, phase: usize);
    fn read(&self, plan: &Plan, value: spec::ValueId) -> Vec<f64>;
    fn state(&self, offset: usize, elements: usize) -> Vec<f32>;
    fn set_state(&mut self, offset: usize, values: &[f32]);
}

/// With the sum of micro-batches.
pub(crate) struct Cpu(pub cpu::Executor<f32>, Vec<f32>);

impl Cpu {
    pub(crate) fn new() -> Cpu {
        Cpu(cpu::Executor::new(1).unwrap(), vec![])
    }
}

impl Machine for Cpu {
    fn storage(&self) -> Storage {
        Storage::CpuF32
    }
    fn reserve(&mut self, plans: &[&Plan], states: &StateTable, micros: usize) {
        plans.iter().for_each(|p| self.0.reserve(p, states, micros));
    }
    fn prepare(&mut self, plan: &Plan) {
        self.0.prepare(plan);
    }
    fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor) {
        self.0.set_input(plan, name, data).unwrap();
    }
    fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) {
        self.0.body(plan, phase, slot, scalars).unwrap();
    }
    fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) {
        self.0.update(plan, phase, scalars);
    }
    fn phase(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) {
        self.body(plan, phase, 0, scalars);
        self.update(plan, phase, scalars);
    }
    fn first_nonfinite(&mut self, plan: &Plan, scalars: &Scalars) -> Option<NonFinite> {
        self.0.first_nonfinite(plan, 0, 0, scalars).unwrap()
    }
    fn clear_reduce(&mut self, plan: &Plan, phase: usize) {
        self.0.reduce_mut(plan, phase).fill(0.0);
    }
    fn add(&mut self, plan: &Plan, phase: usize, micro: usize) {
        let part = self.0.reduce_mut(plan, phase);
        match micro {
            0 => self.1 = part.to_vec(),
            _ => self.1.iter_mut().zip(part).for_each(|(s, x)| *s += *x),
        }
    }
    fn put(&mut self, plan: &Plan, phase: usize) {
        self.0.reduce_mut(plan, phase).copy_from_slice(&self.1);
    }
    fn read(&self, plan: &Plan, value: spec::ValueId) -> Vec<f64> {
        self.0.read(plan, value)
    }
    fn state(&self, offset: usize, elements: usize) -> Vec<f32> {
        self.0.state(offset, elements).to_vec()
    }
    fn set_state(&mut self, offset: usize, values: &[f32]) {
        self.0.state_mut(offset, values.len()).copy_from_slice(values);
    }
}

/// With the sum of micro-batches.
pub(crate) struct Gpu(pub Executor, Option<cuda::Part>);

impl Gpu {
    pub(crate) fn new(mode: Mode) -> Option<Gpu> {
        gpu(mode).map(|e| Gpu(e, None))
    }
}

#[track_caller]
fn good<T>(result: Result<T, CudaError>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

impl Machine for Gpu {
    fn storage(&self) -> Storage {
        self.0.storage()
    }
    fn reserve(&mut self, plans: &[&Plan], states: &StateTable, micros: usize) {
        good(self.0.reserve(plans, states, micros));
    }
    fn prepare(&mut self, plan: &Plan) {
        good(self.0.prepare(plan));
    }
    fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor) {
        good(self.0.set_input(plan, name, data));
    }
    fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) {
        good(self.0.body(plan, phase, slot, scalars));
    }
    fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) {
        good(self.0.update(plan, phase, scalars));
    }
    fn phase(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) {
        good(self.0.phase(plan, phase, 0, scalars));
    }
    fn first_nonfinite(&mut self, plan: &Plan, scalars: &Scalars) -> Option<NonFinite> {
        good(self.0.first_nonfinite(plan, 0, 0, scalars))
    }
    fn clear_reduce(&mut self, plan: &Plan, phase: usize) {
        good(self.0.clear_reduce(plan, phase));
    }
    fn add(&mut self, plan: &Plan, phase: usize, micro: usize) {
        let part = good(self.0.take_part(plan, phase));
        match (&mut self.1, micro) {
            (Some(sum), 1..) => good(self.0.add_parts(sum, &part)),
            (sum, _) => *sum = Some(part),
        }
    }
    fn put(&mut self, plan: &Plan, phase: usize) {
        let sum = self.1.take().expect("a body came before");
        let host = good(self.0.part_to_host(&sum));
        let again = good(self.0.part_from_host(&host));
        good(self.0.put_part(plan, phase, &again));
    }
    fn read(&self, plan: &Plan, value: spec::ValueId) -> Vec<f64> {
        good(self.0.read(plan, value))
    }
    fn state(&self, offset: usize, elements: usize) -> Vec<f32> {
        good(self.0.state(offset, elements))
    }
    fn set_state(&mut self, offset: usize, values: &[f32]) {
        good(self.0.set_state(offset, values));
    }
}

/// A method with its networks, on images of `side` × `side` pixels.
pub(crate) struct Model {
    pub method: Box<dyn Method>,
    pub student: &'static str,
    pub teachers: Vec<&'static str>,
    pub precision: Precision,
    pub side: usize,
}

/// Four convolutions with batch norms: as few roundings in a row as a network with stages has.
#[derive(Debug)]
struct Tiny;

impl Network for Tiny {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let mut x = net.bn("bn1", net.conv("conv1", image, 8, 3, 1)).relu();
        let mut stages = vec![x];
        for stage in 1..=3 {
            x = self.stage(&net.scope(&format!("layer{stage}")), stage, None, x).expect("a stage of three");
            stages.push(x);
        }
        let pooled = x.mean_hw();
        Taps { stages, pooled, logits: net.linear("fc", pooled, CLASSES) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }

    fn stage<'g>(&self, net: &Net<'g>, stage: usize, _: Option<usize>, x: Expr<'g>) -> Option<Expr<'g>> {
        let (net, width, stride) = (net.scope("0"), [8, 16, 32][stage - 1], [1, 2, 2][stage - 1]);
        Some(net.bn("bn1", net.conv("conv1", x, width, 3, stride)).relu())
    }
}

/// The plans of a run, by `units`: the first is that of a full micro-batch.
pub(crate) struct Run {
    pub plans: Vec<Plan>,
    pub eval: Plan,
    pub states: StateTable,
    pub micros: usize,
}

fn options(storage: Storage) -> Options {
    let optimizer = OptimizerArgs { clip_norm: Some(3.0), ema: true, ..OptimizerArgs::default() };
    Options { fusion: Fusion::Full, optimizer, storage, bucket_bytes: 1 << 12, keep_outputs: true }
}

impl Model {
    pub(crate) fn run(&self, storage: Storage, units: &[usize], micros: usize) -> Run {
        let size = [self.side; 2];
        let setting = Setting::new(CLASSES, [self.side, self.side, 3], SAMPLES, 1);
        let net = |name: &str| match name {
            "tiny" => Box::new(Tiny),
            _ => NetworkSpec::new(name).build(CLASSES).unwrap(),
        };
        let teachers: Vec<_> = self.teachers.iter().map(|t| net(t)).collect();
        let (spec, student) = (self.method.spec(&setting).unwrap(), net(self.student));
        let image = ImageArgs { size, pad: 1, mean: [0.5; 3], std: [0.25; 3], crop: true, flip: true };
        let previous = |n: usize| if spec.previous { n } else { 0 };
        let source = StepSource {
            method: self.method.as_ref(),
            spec: &spec,
            setting: &setting,
            student: student.as_ref(),
            teachers: &teachers,
            input: Some(StepInput { pixels: size, image }),
            precision: self.precision,
            units: [units[0], previous(units[0])],
            rolling_units: units[0] * micros,
        };
        let (mut states, mut plans) = (StateTable::default(), Vec::<Plan>::new());
        for &n in units {
            let step = StepSource { units: [n, previous(n)], ..source }.training();
            let layout = plans.first().map(|p| p.placement.layout.clone());
            plans
                .push(compile(step, &options(storage), &mut states, layout.as_ref()).unwrap_or_else(|e| panic!("{e}")));
        }
        let image = ImageArgs { crop: false, flip: false, pad: 0, ..image };
        let input = Some(StepInput { pixels: size, image });
        let step = StepSource { units: [3, 0], input, ..source }.evaluation();
        let eval = compile(step, &options(storage), &mut states, None).unwrap_or_else(|e| panic!("{e}"));
        Run { plans, eval, states, micros }
    }
}

/// Random numbers that depend on a name alone.
struct Rng(u64);

impl Rng {
    fn named(name: &str) -> Rng {
        Rng(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)) | 1)
    }
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }
    /// In ±1.
    fn real(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }
}

/// States by their names, as a network has them after some training.
pub(crate) fn start(machine: &mut impl Machine, states: &StateTable) {
    for entry in &states.entries {
        let mut rng = Rng::named(&entry.name);
        let (vector, fan) = (entry.shape.rank() == 1, entry.shape.dims().iter().skip(1).product::<usize>().max(1));
        let value = |u: f32| match entry.kind {
            StateKind::Momentum => 0.01 * u,
            _ if entry.name.ends_with("running_var") => 0.7 + 0.3 * u,
            _ if vector && entry.name.ends_with("weight") => 1.0 + 0.4 * u,
            _ => (2.0 / fan as f32).sqrt().min(0.4) * u,
        };
        let values: Vec<f32> = (0..entry.shape.elements()).map(|_| value(rng.real())).collect();
        machine.set_state(entry.offset, &values);
    }
}

/// Bytes of images [n, height, width, channels] that differ as a whole, not by noise alone: each channel of each has a level.
fn pictures(rng: &mut Rng, dims: &[usize]) -> Vec<u8> {
    let (channels, image) = (dims[3], dims[1..].iter().product::<usize>());
    let levels: Vec<usize> = (0..dims[0] * channels).map(|_| rng.below(160)).collect();
    let byte = |i: usize| levels[i / image * channels + i % channels] + rng.below(96);
    (0..dims[0] * image).map(byte).map(|b| b as u8).collect()
}

/// Fills every input by its name and a number.
pub(crate) fn feed(machine: &mut impl Machine, plan: &Plan, number: usize) {
    for input in &plan.graph.batch {
        let (value, name) = (plan.graph.value(input.value), input.name.as_str());
        let (shape, count) = (value.shape, value.shape.elements());
        let mut rng = Rng::named(&format!("{name}{number}"));
        let whole = |rng: &mut Rng, i: usize| match name.rsplit('.').next().unwrap_or_default() {
            "label" => rng.below(CLASSES),
            "index" => (number * count + i) % SAMPLES,
            "permutation" => count - 1 - i,
            "box" => [1, 2, 5, 7][i % 4],
            "crop" => rng.below(3),
            _ => rng.below(2),
        };
        let lambda = |u: f32| if shape.rank() == 0 { u.abs() } else { u };
        let tensor = match value.dtype {
            Dtype::U8 if shape.rank() == 4 => HostTensor::new(shape, &pictures(&mut rng, shape.dims())),
            Dtype::U8 => HostTensor::new(shape, &(0..count).map(|i| whole(&mut rng, i) as u8).collect::<Vec<u8>>()),
            Dtype::I32 => HostTensor::new(shape, &(0..count).map(|i| whole(&mut rng, i) as i32).collect::<Vec<i32>>()),
            _ => HostTensor::new(shape, &(0..count).map(|_| lambda(rng.real())).collect::<Vec<f32>>()),
        };
        machine.set_input(plan, name, &tensor.unwrap());
    }
}

/// Of micro-batches of so many units, each with as many of the step before where the plan has any.
pub(crate) fn scalars(plan: &Plan, units: &[usize], micro: usize) -> Scalars {
    let count = |role: usize| if plan.graph.units[role] > 0 { units.iter().sum::<usize>() as f64 } else { 0.0 };
    // In bf16 a network at random weights makes much of each rounding: at 0.1 three steps go apart.
    let lr = if plan.graph.precision == Precision::Bf16 { 0.02 } else { 0.1 };
    let mut slots = vec![lr, count(0), count(1), 0.9];
    slots.resize(plan.graph.slots.len().max(4), 0.7);
    let previous = |u: usize| if plan.graph.units[1] > 0 { u } else { 0 };
    let running = units.len();
    Scalars { slots, micro_units: units.iter().map(|&u| [u, previous(u)]).collect(), micro, running }
}

impl Run {
    /// Some steps of the micro-batches `units`, and what they leave: reduced values of each step, states, then an evaluation.
    pub(crate) fn go(&self, machine: &mut impl Machine, units: &[usize], steps: usize) -> Values {
        let all: Vec<&Plan> = self.plans.iter().chain([&self.eval]).collect();
        machine.reserve(&all, &self.states, self.micros);
        start(machine, &self.states);
        let (full, mut prepared, mut values) = (&self.plans[0], None, Values::new());
        for step in 0..steps {
            for phase in 0..full.phases.len() {
                for (micro, &n) in units.iter().enumerate() {
                    let plan = self.plans.iter().find(|p| p.graph.units[0] == n).expect("a plan of these units");
                    if prepared != Some(n) {
                        machine.prepare(plan);
                        prepared = Some(n);
                    }
                    feed(machine, plan, step * units.len() + micro);
                    if units.len() == 1 {
                        machine.phase(plan, phase, &scalars(plan, units, 0));
                        continue;
                    }
                    if plan.reduce.entries.len() != full.reduce.entries.len() {
                        machine.clear_reduce(full, phase);
                    }
                    machine.body(plan, phase, micro, &scalars(plan, units, micro));
                    machine.add(full, phase, micro);
                }
                if units.len() > 1 {
                    machine.put(full, phase);
                    machine.update(full, phase, &scalars(full, units, 0));
                }
                for (i, reduced) in full.phases[phase].reduced.iter().enumerate() {
                    values.insert(format!("step {step}/{phase}/reduced {i}"), machine.read(full, reduced.1));
                }
                for (i, value) in full.phases[phase].norm.into_iter().flatten().enumerate() {
                    values.insert(format!("norm {step}/{phase}/{i}"), machine.read(full, value));
                }
            }
        }
        for entry in &self.states.entries {
            let state = machine.state(entry.offset, entry.shape.elements());
            values.insert(entry.name.clone(), state.into_iter().map(f64::from).collect());
        }
        machine.prepare(&self.eval);
        feed(machine, &self.eval, 77);
        machine.body(&self.eval, 0, 0, &scalars(&self.eval, &[3], 0));
        let losses = &self.eval.phases[0].losses;
        values.insert("eval/logits".into(), machine.read(&self.eval, losses.outputs[0].1));
        values
    }
}

/// Asserts equal names, and each tensor within a normalised error.
#[track_caller]
pub(crate) fn close(what: &str, got: &Values, expected: &Values, tolerance: f64) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}: names");
    let mut worst = (0.0, "");
    for (name, values) in expected {
        assert!(values.iter().all(|x| x.is_finite()), "{what}: {name} is not finite on the CPU: the test says nothing");
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let error =
            norm(&mut got[name].iter().zip(values).map(|(g, e)| g - e)) / norm(&mut values.iter().copied()).max(1e-3);
        assert!(got[name].iter().all(|x| x.is_finite()), "{what}: {name} is not finite");
        if error > worst.0 {
            worst = (error, name);
        }
    }
    println!("{what}: worst {:.2e} in {}", worst.0, worst.1);
    assert!(worst.0 <= tolerance, "{what}: {} is off by {:.2e}, at most {tolerance:.0e}", worst.1, worst.0);
}

/// A step of elementwise ops alone, by hand: y = slot 0 · relu(a · x + b). It trains nothing.
pub(crate) fn elementwise(rows: usize, precision: Precision) -> StepGraph {
    use spec::{BatchInput, Rows, Source, Value};
    let mut graph = Graph::new(precision, [rows, 0]);
    let shape = tensor::Shape::new(&[rows, 24]);
    let mut input = |name: &str| {
        let source = Source::Batch(graph.batch.len() as u32);
        let value = graph.add_value(Value { shape, dtype: precision.act(), rows: Rows([1, 0]), source });
        graph.batch.push(BatchInput { name: name.to_string(), value });
        value
    };
    let [x, a, b] = ["x", "a", "b"].map(&mut input);
    let builder = Builder::new(graph);
    let [x, a, b] = [x, a, b].map(|v| builder.expr(v));
    let y = (a * x + b).relu().scale(Weight { factor: 1.0, slot: Some(SlotId(0)) });
    let losses = Losses::new().output("y", y);
    let phase = plan::Phase {
        name: "only".into(),
        trains: Vec::<TrainRange>::new(),
        losses,
        grads: vec![],
        reduced: vec![],
        norm: None,
    };
    StepGraph { graph: builder.finish(), phases: vec![phase] }
}

/// Its plan.
pub(crate) fn elementwise_plan(rows: usize, precision: Precision, storage: Storage) -> (Plan, StateTable) {
    let mut states = StateTable::default();
    let plan = compile(elementwise(rows, precision), &options(storage), &mut states, None);
    (plan.unwrap_or_else(|e| panic!("{e}")), states)
}
