//! A step of a method on networks of a test's own, whose feature maps are parameters.

use comm::Solo;
use plan::{Fusion, Grad, OptimizerArgs, Options, Storage};
use spec::{Expr, Losses, Method, Net, Network, Precision, Setting, Spec, Step, Taps, ValueId};
use std::collections::HashMap;
use tensor::{HostTensor, KCRS_TO_KRSC, KRSC_TO_KCRS, Shape};
use train::engine::{Engine, Micro, Sizes, StepInputs, StepValues};
use train::recipe::BnPolicy;
use train::step::{Compile, Model};

/// A method, showing what some of its nodes make.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) of: Box<dyn Method>,
    /// Values to show, by name, of the first phase.
    pub(crate) show: fn(&spec::Graph) -> Vec<(&'static str, ValueId)>,
}

impl Method for Watched {
    fn spec(&self, setting: &Setting) -> Result<Spec, String> {
        self.of.spec(setting)
    }

    fn fits<'g>(&self, step: &Step<'g>) -> Result<(), String> {
        self.of.fits(step)
    }

    fn losses<'g>(&self, phase: usize, step: &Step<'g>) -> Losses {
        let mut losses = self.of.losses(phase, step);
        if phase == 0 {
            let shown = (self.show)(&step.builder.graph());
            losses.outputs.extend(shown.into_iter().map(|(name, value)| (name.to_string(), value)));
        }
        losses
    }

    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        self.of.head(step)
    }
}

/// What the last node of a path makes.
pub(crate) fn last_of(graph: &spec::Graph, path: &str) -> ValueId {
    let node = graph.nodes.iter().rfind(|n| n.path == path);
    node.unwrap_or_else(|| panic!("{path}: {:?}", graph.nodes.iter().map(|n| &n.path).collect::<Vec<_>>())).outputs[0]
}

/// Rows as one-hot pixels, whose maps are the weights of 1×1 convolutions: image [n,h,w,3hw] of n = 3 rows, channel 3p + i of pixel p
/// is 1 in row i. Mixed rows 0.3 x + 0.7 x[π] become one-hot too: channels are [3hw plain, 3hw mixed], the latter at 3p + π(i).
#[derive(Debug)]
pub(crate) struct Leaves {
    pub(crate) classes: usize,
    /// Channels of the last maps; none: they are the one-hot rows.
    pub(crate) channels: Option<usize>,
}

/// Stages of `Leaves`.
pub(crate) const STAGES: usize = 4;

impl Leaves {
    fn last<'g>(&self, net: &Net<'g>, name: &str, x: Expr<'g>) -> Expr<'g> {
        self.channels.map_or(x, |c| net.conv(name, x, c, 1, 1))
    }
}

impl Network for Leaves {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let inputs = image.shape().dims()[3];
        let x = net.bias("detect", net.conv("detect", image, 2 * inputs, 1, 1), inputs).relu();
        let x = net.conv("code", x, 2 * inputs, 1, 1);
        let pooled = x.mean_hw();
        let mut stages = vec![x; STAGES];
        stages.push(self.last(net, "leaf", x));
        Taps { stages, pooled, logits: net.linear("fc", pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }

    fn stage<'g>(&self, net: &Net<'g>, stage: usize, _blocks: Option<usize>, x: Expr<'g>) -> Option<Expr<'g>> {
        Some(if stage == STAGES { self.last(net, "leaf", x) } else { x })
    }
}

/// A convolution of this stride, whose map is the network's last.
#[derive(Debug)]
pub(crate) struct Strided {
    pub(crate) channels: usize,
    pub(crate) stride: usize,
    pub(crate) classes: usize,
}

impl Network for Strided {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g> {
        let x = net.conv("conv", image, self.channels, 1, self.stride);
        let pooled = x.mean_hw();
        Taps { stages: vec![x, x], pooled, logits: net.linear("fc", pooled, self.classes) }
    }

    fn classifier(&self) -> &'static str {
        "fc"
    }
}

/// A compiled step in f64.
pub(crate) struct Bench {
    pub(crate) engine: Engine<cpu::Executor<f64>>,
}

/// What a `Bench` consists of.
pub(crate) struct Parts {
    pub(crate) method: Box<dyn Method>,
    pub(crate) student: Box<dyn Network>,
    pub(crate) teachers: Vec<Box<dyn Network>>,
    pub(crate) classes: usize,
    pub(crate) image: [usize; 3],
    pub(crate) units: usize,
}

impl Bench {
    /// Parameters as seed 0 draws them.
    pub(crate) fn new(parts: Parts) -> Bench {
        let Parts { method, student, teachers, classes, image, units } = parts;
        let mut setting = Setting::new(classes, image, 100, 10);
        setting.teachers = teachers.iter().map(|t| t.classifier()).collect();
        let spec = method.spec(&setting).unwrap();
        let model = Model { method, spec, setting, student, teachers, precision: Precision::F64 };
        let (fusion, storage, optimizer) = (Fusion::Full, Storage::CpuF64, OptimizerArgs::default());
        let options = Options { fusion, optimizer, storage, bucket_bytes: 1 << 20, keep_outputs: true };
        let compile = Compile {
            options,
            global_batch: units,
            train_input: None,
            eval_input: None,
            bn: BnPolicy::Local,
            world: 1,
        };
        let (full, others) = ([units, 0], vec![]);
        let sizes = Sizes { full, others, leaves: 1, eval_batch: units, reproducible: true };
        let mut engine =
            Engine::new(&model, &compile, &sizes, cpu::Executor::new(1).unwrap(), Box::new(Solo::default())).unwrap();
        engine.initialise(0).unwrap();
        engine.loaded().unwrap();
        Bench { engine }
    }

    /// Names of all states that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let names = self.engine.states.entries.iter().map(|e| e.name.clone());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Sets a state, `student.fc.weight`; filters are KCRS.
    pub(crate) fn set(&mut self, name: &str, values: &[f64]) {
        let entry = self.engine.states.find(name).unwrap_or_else(|| panic!("{name}: {:?}", self.names(""))).clone();
        let mut tensor = HostTensor::new(published(entry.shape), values).unwrap();
        if entry.shape.rank() == 4 {
            tensor = tensor.permute4(KCRS_TO_KRSC).unwrap();
        }
        let state = self.engine.executor.state_mut(entry.offset, values.len());
        state.copy_from_slice(&tensor.to_f64().unwrap());
        self.engine.loaded().unwrap();
    }

    pub(crate) fn state(&self, name: &str) -> Vec<f64> {
        let entry = self.engine.states.find(name).unwrap_or_else(|| panic!("{name}: {:?}", self.names("")));
        let values = self.engine.executor.state(entry.offset, entry.shape.elements());
        kcrs(entry.shape, values.to_vec())
    }

    /// A step of learning rate 0.
    pub(crate) fn step(&mut self, inputs: &[(&str, HostTensor)]) -> StepValues {
        let units = self.engine.plan().graph.units;
        let inputs = inputs.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
        let micros = [Micro { leaf: 0, units, inputs }];
        let slots = HashMap::from([("lr".to_string(), 0.0)]);
        self.engine.step(&StepInputs { micros: &micros, all_units: &[units], slots: &slots }).unwrap()
    }

    /// Logits of the evaluation head.
    pub(crate) fn evaluate(&mut self, inputs: &[(&str, HostTensor)]) -> Vec<f64> {
        let inputs: Vec<_> = inputs.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
        self.engine.evaluate(&inputs).unwrap().logits
    }

    /// A value that the method names.
    pub(crate) fn output(&self, name: &str) -> Vec<f64> {
        let plan = self.engine.plan();
        let (_, value) = plan.phases[0].losses.outputs.iter().find(|(output, _)| output == name).unwrap();
        self.engine.executor.read(plan, *value)
    }

    /// The body's gradient of a parameter in the first phase, filters KCRS; zeros where there is none.
    pub(crate) fn gradient(&self, name: &str) -> Vec<f64> {
        let plan = self.engine.plan();
        let entry = self.engine.states.find(name).unwrap_or_else(|| panic!("{name}: {:?}", self.names("")));
        let found = plan.phases[0].grads.iter().find(|(state, ..)| plan.graph.state(*state).name == name);
        match found {
            Some((_, _, Grad::Value { body: Some(value), .. })) => {
                kcrs(entry.shape, self.engine.executor.read(plan, *value))
            }
            _ => vec![0.0; entry.shape.elements()],
        }
    }
}

fn published(shape: Shape) -> Shape {
    if shape.rank() == 4 { Shape::new(&KRSC_TO_KCRS.map(|axis| shape[axis])) } else { shape }
}

fn kcrs(shape: Shape, values: Vec<f64>) -> Vec<f64> {
    if shape.rank() != 4 {
        return values;
    }
    HostTensor::new(shape, &values).unwrap().permute4(KRSC_TO_KCRS).unwrap().to_f64().unwrap()
}
