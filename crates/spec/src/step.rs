//! What a method and its networks are given while the graph of a step is built.

use crate::net::{BnMode, Net, Taps};
use crate::spec::{DrawKind, Setting, Spec, StateUse};
use graph::{
    BatchInput, Builder, Expr, ImageArgs, Init, Losses, Op, Rows, Source, State, StateId, StateKind, Value, Weight,
};
use tensor::{Dtype, Shape};

/// A training method: what it needs, and the losses of each of its phases.
pub trait Method: std::fmt::Debug + Send + Sync {
    /// What the method needs, or why its settings make no sense in this run.
    fn spec(&self, setting: &Setting) -> Result<Spec, String>;

    /// Why these networks do not fit the method, if they do not. Called before `losses`, which may rely on it.
    fn fits<'g>(&self, _step: &Step<'g>) -> Result<(), String> {
        Ok(())
    }

    /// The losses of a phase.
    fn losses<'g>(&self, phase: usize, step: &Step<'g>) -> Losses;

    /// Logits for evaluation and prediction, [n,classes]; the student's own unless the method has another head.
    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        step.student(step.image()).logits
    }

    /// Other logits whose accuracy evaluation reports by name.
    fn other_heads<'g>(&self, _step: &Step<'g>) -> Vec<(String, Expr<'g>)> {
        vec![]
    }
}

/// A network: a function from an image [n,h,w,c] to taps.
pub trait Network: std::fmt::Debug + Send + Sync {
    fn build<'g>(&self, net: &Net<'g>, image: Expr<'g>) -> Taps<'g>;

    /// Name of the last linear layer: `fc`.
    fn classifier(&self) -> &'static str;

    /// A copy of stage `stage` (from 1) with parameters of its own, `0.conv1.weight` for its first block, on what the stage
    /// before it gives; `blocks` replaces its number of blocks. `None` where the network has no such stages.
    fn stage<'g>(&self, _net: &Net<'g>, _stage: usize, _blocks: Option<usize>, _x: Expr<'g>) -> Option<Expr<'g>> {
        None
    }
}

/// Module of teacher `i`: `teacher`, `teacher2`, …
pub fn teacher_module(i: usize) -> String {
    numbered("teacher", i)
}

/// `name`, `name2`, …: what belongs to the first, the second, … of several.
pub fn numbered(name: &str, i: usize) -> String {
    if i == 0 { name.to_string() } else { format!("{name}{}", i + 1) }
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
        let (key, acc) = (format!("draw.{name}"), self.builder.graph().precision.acc());
        match spec.kind {
            DrawKind::CellMask { cells, .. } => self.input(&key, &[cells], 1, (Dtype::U8, 0)),
            DrawKind::Permutation => self.input(&key, &[], 1, (Dtype::I32, 0)),
            DrawKind::Lambda { .. } | DrawKind::CutShare { .. } => self.input(&key, &[], 0, (acc, 0)),
            DrawKind::CutBox { .. } => self.input(&key, &[4], 0, (Dtype::I32, 0)),
            DrawKind::Cutout { .. } | DrawKind::Erase { .. } => self.input(&key, &[4], 1, (Dtype::I32, 0)),
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
        let bn = match self.bn {
            BnMode::Train { .. } => BnMode::Train { groups },
            BnMode::TrainOver { ranks, .. } => BnMode::TrainOver { groups, ranks },
            BnMode::Eval => BnMode::Eval,
        };
        self.student.build(&Net::new(self.builder, "student", bn), image)
    }

    /// The first teacher, frozen, on running statistics.
    pub fn teacher(&self, image: Expr<'g>) -> Taps<'g> {
        self.frozen_teacher(0, image)
    }

    /// Teacher `i`, on running statistics.
    pub fn frozen_teacher(&self, i: usize, image: Expr<'g>) -> Taps<'g> {
        self.teachers[i].build(&Net::new(self.builder, &teacher_module(i), BnMode::Eval), image)
    }

    /// Teacher `i` as a network in training.
    pub fn teacher_in_training(&self, i: usize, image: Expr<'g>) -> Taps<'g> {
        self.teachers[i].build(&Net::new(self.builder, &teacher_module(i), self.bn), image)
    }

    /// What the last linear layer of teacher `i` says of these vectors [n,c].
    pub fn teacher_classifier(&self, i: usize, pooled: Expr<'g>) -> Expr<'g> {
        let name = format!("{}.{}", teacher_module(i), self.teachers[i].classifier());
        let (w, b) = (self.param(&format!("{name}.weight")), self.param(&format!("{name}.bias")));
        pooled.linear(w, Some(b), &format!("{}/shared", teacher_module(i)))
    }

    /// Whether the last layer of teacher `i`, built before, is a matrix [classes,c] and a bias that `teacher_classifier` can read.
    pub fn has_linear_classifier(&self, i: usize) -> bool {
        let name = format!("{}.{}", teacher_module(i), self.teachers[i].classifier());
        let graph = self.builder.graph();
        let rank = |field: &str| graph.find_state(&format!("{name}.{field}")).map(|s| graph.state(s).shape.rank());
        (rank("weight"), rank("bias")) == (Some(2), Some(1))
    }

    /// Names of the parameters of a module so far, `teacher.`: of all, or of those with at least two axes.
    pub fn params(&self, module: &str, least_rank: usize) -> Vec<String> {
        let graph = self.builder.graph();
        let own = graph.states.iter().filter(|s| s.kind == StateKind::Param && s.name.starts_with(module));
        own.filter(|s| s.shape.rank() >= least_rank).map(|s| s.name.clone()).collect()
    }

    /// Scales of the batch norm of a module that was built last, [c].
    pub fn last_scale(&self, module: &str) -> Option<Expr<'g>> {
        let own =
            |s: &&State| s.kind == StateKind::Buffer && s.name.starts_with(module) && s.name.ends_with(".running_var");
        let last = self.builder.graph().states.iter().rfind(own).map(|s| s.name.replace("running_var", "weight"))?;
        Some(self.param(&last))
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
