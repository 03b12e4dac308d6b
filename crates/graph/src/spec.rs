//! What a method asks for (`Spec`) and what it is given (`Step`).

use crate::expr::{Builder, Expr};
use crate::graph::{BatchInput, Init, Rows, Source, State, StateId, StateKind, Value};
use crate::loss::Losses;
use crate::net::{BnMode, Net, Taps};
use crate::op::{ImageArgs, Op, Weight};
use tensor::{Dtype, Shape};

/// Facts of a run that a method may depend on.
#[derive(Clone, Debug)]
pub struct Setting {
    pub classes: usize,
    /// Height, width and channels of a training image.
    pub image: [usize; 3],
    /// Training samples.
    pub samples: usize,
    pub epochs: usize,
}

/// How units are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// A unit is an image; a fresh permutation each epoch.
    Shuffle,
    /// A unit is an anchor and a partner of its class (chapter 0.6); two rows, [anchors; partners].
    Pairs(PairRule),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairRule {
    /// One partner, uniform over the class, the anchor included.
    WithSelf,
    /// The anchor excluded, unless it is alone.
    WithoutSelf,
    /// Neighbours of the shuffled class: every image once an epoch.
    Partition,
}

/// What is done to the images of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augment {
    /// The recipe's.
    Recipe,
}

/// Images that a unit brings; the views of a unit lie one after the other in the image buffer, each with all its rows.
#[derive(Clone, Debug)]
pub struct View {
    pub name: String,
    pub augment: Augment,
}

/// How many cells of a grid are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellRule {
    /// Each with this probability.
    Probability(f64),
    /// Exactly so many.
    Count(usize),
    /// Between 1 and all but one, uniformly.
    UniformCount,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DrawKind {
    /// u8 [units, cells]: with probability `gate` a mask by the rule, else zeros.
    CellMask { cells: usize, gate: f64, rule: CellRule },
    /// i32 [units]: a permutation of the micro-batch.
    Permutation,
    /// [1]: λ ~ Beta(alpha, alpha), one a micro-batch.
    Lambda { alpha: f64 },
}

/// A random value that a step needs, drawn by the data side.
#[derive(Clone, Debug)]
pub struct DrawSpec {
    pub name: String,
    pub kind: DrawKind,
}

/// State of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateUse {
    /// A row per training sample.
    PerSample,
    /// The rows of the previous step.
    Rolling,
}

#[derive(Clone, Debug)]
pub struct StateSpec {
    pub name: String,
    pub usage: StateUse,
    /// Shape of a row.
    pub row: Vec<usize>,
}

/// A weight that follows the epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ramp {
    /// `to × min((epoch + 1) / epochs, 1)`, epochs from 0; constant when `epochs` is 0.
    Linear { to: f64, epochs: f64 },
}

#[derive(Clone, Debug)]
pub struct SlotSpec {
    pub name: String,
    pub ramp: Ramp,
}

/// Parameters of a phase that share their optimizer settings.
#[derive(Clone, Debug)]
pub struct TrainRange {
    /// Prefix of state names: `student.`, `teacher.fc.bias`.
    pub prefix: String,
    pub lr_factor: f64,
    pub decay: bool,
    /// Name of the momentum buffers: a parameter trained in two phases has two.
    pub momentum: String,
}

impl TrainRange {
    pub fn new(prefix: &str) -> TrainRange {
        TrainRange { prefix: prefix.to_string(), lr_factor: 1.0, decay: true, momentum: "momentum".to_string() }
    }
}

/// A phase: a loss and the parameters that it trains.
#[derive(Clone, Debug)]
pub struct PhaseSpec {
    pub name: String,
    pub trains: Vec<TrainRange>,
}

/// What a method needs.
#[derive(Clone, Debug)]
pub struct Spec {
    pub sampler: Sampler,
    pub views: Vec<View>,
    pub draws: Vec<DrawSpec>,
    pub states: Vec<StateSpec>,
    pub slots: Vec<SlotSpec>,
    pub phases: Vec<PhaseSpec>,
    /// Whether the step also sees the images and labels of the previous one.
    pub previous: bool,
    /// Frozen teachers that the recipe must name.
    pub teachers: usize,
}

impl Default for Spec {
    /// One image a unit, one phase that trains the student and the method's modules.
    fn default() -> Spec {
        let trains = vec![TrainRange::new("student."), TrainRange::new("method.")];
        Spec {
            sampler: Sampler::Shuffle,
            views: vec![View { name: String::new(), augment: Augment::Recipe }],
            draws: vec![],
            states: vec![],
            slots: vec![],
            phases: vec![PhaseSpec { name: "train".to_string(), trains }],
            previous: false,
            teachers: 0,
        }
    }
}

impl Spec {
    /// Image rows that a unit brings: one per view, two in a pair.
    pub fn rows_per_unit(&self) -> usize {
        let members = if matches!(self.sampler, Sampler::Pairs(_)) { 2 } else { 1 };
        members * self.views.len()
    }
}

/// A training method: what it needs, and the losses of each of its phases.
pub trait Method: std::fmt::Debug + Send + Sync {
    /// What the method needs, or why its settings make no sense in this run.
    fn spec(&self, setting: &Setting) -> Result<Spec, String>;

    /// The losses of a phase.
    fn losses<'g>(&self, phase: usize, step: &Step<'g>) -> Losses;

    /// Logits for evaluation and prediction, [n,classes]; the student's own unless the method has another head.
    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        step.student(step.image()).logits
    }
}

/// A network: a function from an image [n,h,w,c] to taps.
pub trait Network: std::fmt::Debug + Send + Sync {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g>;
}

/// The images, labels and draws of a micro-batch, and the networks, while the graph of a step is built.
#[derive(Debug)]
pub struct Step<'g> {
    pub builder: &'g Builder,
    pub spec: &'g Spec,
    pub setting: &'g Setting,
    pub student: &'g dyn Network,
    pub teachers: &'g [Box<dyn Network>],
    /// Crop and normalisation of 8-bit images; `None` when the batch holds normalised floats.
    pub input: Option<StepInput>,
    /// How students normalise: by the batch, or for evaluation by running statistics.
    pub bn: BnMode,
}

/// 8-bit images as they come.
#[derive(Clone, Copy, Debug)]
pub struct StepInput {
    /// Height and width of the delivered pixels.
    pub pixels: [usize; 2],
    pub image: ImageArgs,
}

impl<'g> Step<'g> {
    /// Units of this micro-batch.
    pub fn units(&self) -> usize {
        self.builder.graph().units[0]
    }

    /// Units of the previous batch that this micro-batch sees; 0 in the first step.
    pub fn previous_units(&self) -> usize {
        self.builder.graph().units[1]
    }

    /// All images of the micro-batch, [rows,h,w,c]: the views, or anchors and partners, one after the other.
    pub fn image(&self) -> Expr<'g> {
        self.image_of("image", 0)
    }

    /// The images of one view, [units,h,w,c].
    pub fn view(&self, name: &str) -> Expr<'g> {
        let at = self.spec.views.iter().position(|v| v.name == name).expect("the method's own view");
        self.image().slice_rows(at * self.units(), self.units())
    }

    /// Images of the previous batch, [previous units,h,w,c].
    pub fn previous_image(&self) -> Expr<'g> {
        self.image_of("previous.image", 1)
    }

    fn image_of(&self, name: &str, role: usize) -> Expr<'g> {
        let rows = if role == 0 { self.spec.rows_per_unit() } else { 1 };
        let [h, w, c] = self.setting.image;
        let Some(input) = self.input else {
            let dtype = self.builder.graph().precision.act();
            return self.input(name, &[h, w, c], rows, (dtype, role));
        };
        let [ph, pw] = input.pixels;
        let mut inputs = vec![self.input(name, &[ph, pw, c], rows, (Dtype::U8, role))];
        let draw = |draw: &str| if role == 0 { draw.to_string() } else { format!("previous.{draw}") };
        if input.image.crop {
            inputs.push(self.input(&draw("crop"), &[2], rows, (Dtype::I32, role)));
        }
        if input.image.flip {
            inputs.push(self.input(&draw("flip"), &[], rows, (Dtype::I32, role)));
        }
        let path = format!("input/{name}");
        if let Some(made) =
            self.builder.graph().nodes.iter().find(|n| n.path == path && n.place.phase == self.builder.phase())
        {
            return self.builder.expr(made.outputs[0]);
        }
        self.builder.push(Op::ImageInput(input.image), &inputs, &path)[0]
    }

    /// Labels of the rows of `image()`.
    pub fn label(&self) -> Expr<'g> {
        self.input("label", &[], self.spec.rows_per_unit(), (Dtype::I32, 0))
    }

    /// Labels of one view's rows, i32 [units]: views share them.
    pub fn unit_label(&self) -> Expr<'g> {
        self.label().slice_rows(0, self.units())
    }

    pub fn previous_label(&self) -> Expr<'g> {
        self.input("previous.label", &[], 1, (Dtype::I32, 1))
    }

    /// Sample numbers of the units, i32 [units].
    pub fn index(&self) -> Expr<'g> {
        self.input("index", &[], 1, (Dtype::I32, 0))
    }

    /// A draw that the spec names.
    pub fn draw(&self, name: &str) -> Expr<'g> {
        let spec = self.spec.draws.iter().find(|d| d.name == name).expect("the method's own draw");
        let key = format!("draw.{name}");
        match spec.kind {
            DrawKind::CellMask { cells, .. } => self.input(&key, &[cells], 1, (Dtype::U8, 0)),
            DrawKind::Permutation => self.input(&key, &[], 1, (Dtype::I32, 0)),
            DrawKind::Lambda { .. } => self.input(&key, &[], 0, (self.builder.graph().precision.acc(), 0)),
        }
    }

    /// A value that the data side delivers: `rows` rows of shape `row` per unit, or `row` alone for 0.
    fn input(&self, name: &str, row: &[usize], rows: usize, (dtype, role): (Dtype, usize)) -> Expr<'g> {
        let id = self.builder.edit(|g| {
            if let Some(found) = g.batch.iter().find(|b| b.name == name) {
                return found.value;
            }
            let mut per_unit = Rows::default();
            per_unit.0[role] = rows as u32;
            let dims: Vec<usize> =
                (rows > 0).then(|| g.count_rows(per_unit)).into_iter().chain(row.iter().copied()).collect();
            let source = Source::Batch(g.batch.len() as u32);
            let value = g.add_value(Value { shape: Shape::new(&dims), dtype, rows: per_unit, source });
            g.batch.push(BatchInput { name: name.to_string(), value });
            value
        });
        self.builder.expr(id)
    }

    /// The student on these images.
    pub fn student(&self, image: Expr<'g>) -> Taps<'g> {
        self.student.build(&Net::new(self.builder, "student", self.bn), image)
    }

    /// The student with statistics over each of `groups` equal runs of the rows.
    pub fn student_grouped(&self, image: Expr<'g>, groups: usize) -> Taps<'g> {
        let bn = if self.bn == BnMode::Eval { BnMode::Eval } else { BnMode::Train { groups } };
        self.student.build(&Net::new(self.builder, "student", bn), image)
    }

    /// The first teacher, frozen, on running statistics.
    pub fn teacher(&self, image: Expr<'g>) -> Taps<'g> {
        self.teachers[0].build(&Net::new(self.builder, "teacher", BnMode::Eval), image)
    }

    /// The first teacher as a network in training.
    pub fn teacher_in_training(&self, image: Expr<'g>) -> Taps<'g> {
        self.teachers[0].build(&Net::new(self.builder, "teacher", self.bn), image)
    }

    /// A module of the method's own: `method.projector`.
    pub fn module(&self, name: &str) -> Net<'g> {
        Net::new(self.builder, &format!("method.{name}"), self.bn)
    }

    /// A weight that follows a slot of the spec.
    pub fn slot(&self, name: &str) -> Weight {
        Weight::slot(self.builder.edit(|g| g.add_slot(name)))
    }

    /// The state behind a name of the spec. Per-sample state is [samples, row]; rolling state holds a global batch.
    pub fn state(&self, name: &str) -> StateId {
        let spec = self.spec.states.iter().find(|s| s.name == name).expect("the method's own state");
        let full = format!("method.{name}");
        self.builder.edit(|g| {
            g.find_state(&full).unwrap_or_else(|| {
                let rows = match spec.usage {
                    StateUse::PerSample => self.setting.samples,
                    StateUse::Rolling => g.rolling_units,
                };
                let shape = Shape::new(&[&[rows], &spec.row[..]].concat());
                let (dtype, kind) = (g.precision.acc(), StateKind::Memory);
                g.add_state(State { name: full, shape, dtype, kind, init: Init::Const(0.0) })
            })
        })
    }

    /// Rows of a per-sample state.
    pub fn recall(&self, state: StateId, index: Expr<'g>) -> Expr<'g> {
        self.builder.read(state).gather(index)
    }

    /// The rows that the previous step left in a rolling state, [previous units, ..].
    pub fn rolling(&self, state: StateId) -> Expr<'g> {
        let rows = self.previous_units();
        let path = format!("method/{}", self.builder.graph().state(state).name);
        let id = self.builder.push(Op::RollingRows { rows }, &[self.builder.read(state)], &path)[0].id();
        self.builder.edit(|g| g.values[id.0 as usize].rows = Rows([0, 1]));
        self.builder.expr(id)
    }

    /// A parameter, read as it is when the phase reads it.
    pub fn param(&self, name: &str) -> Expr<'g> {
        let id = self.builder.graph().find_state(name).expect("a parameter of a network that was built");
        self.builder.read(id)
    }

    /// The value that a parameter had when training began, never updated.
    pub fn initial(&self, name: &str) -> Expr<'g> {
        let anchor = self.builder.edit(|g| {
            let of = g.find_state(name).expect("a parameter of a network that was built");
            let full = format!("anchor.{name}");
            g.find_state(&full).unwrap_or_else(|| {
                let State { shape, dtype, .. } = *g.state(of);
                g.add_state(State { name: full, shape, dtype, kind: StateKind::Anchor, init: Init::CopyOf(of) })
            })
        });
        self.builder.read(anchor)
    }
}
