//! A step from its parts to its memory: build, differentiate, optimize, plan, load, run. Nothing here names a method.

use crate::device::Device;
use crate::error::TrainError;
use crate::recipe::{BnPolicy, Recipe};
use plan::{Fusion, Layout, OptimizerArgs, Options, Plan, StateTable, StepSource, Storage};
use spec::{BnMode, Graph, ImageArgs, Method, Network, Precision, Setting, Spec, StepInput};

/// What a recipe builds, before any number is known.
#[derive(Debug)]
pub struct Model {
    pub method: Box<dyn Method>,
    pub spec: Spec,
    pub setting: Setting,
    pub student: Box<dyn Network>,
    pub teachers: Vec<Box<dyn Network>>,
    pub precision: Precision,
}

impl Model {
    /// Networks and method of a recipe, for images and classes as the data set has them.
    pub fn new(recipe: &Recipe, mut setting: Setting) -> Result<Model, TrainError> {
        let wrong = |what: String| TrainError::Setting(what);
        let student = recipe.network.build(setting.classes).map_err(|e| wrong(e.to_string()))?;
        let named = recipe.teacher.iter().map(|t| nets::NetworkSpec::new(&t.name).build(setting.classes));
        let teachers = named.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(format!("[[teacher]] {e}")))?;
        setting.teachers = teachers.iter().map(|t| t.classifier()).collect();
        setting.lr = recipe.optimizer.base_lr(recipe.train.global_batch).0;
        setting.momentum = recipe.optimizer.momentum;
        let method = recipe.method.clone().build();
        let spec = method.spec(&setting).map_err(|e| wrong(format!("[method] {e}")))?;
        if teachers.len() != spec.teachers {
            return Err(wrong(format!(
                "[[teacher]]: the method takes {}, the recipe names {}; a teacher is a section [[teacher]] with name and weights",
                spec.teachers,
                teachers.len()
            )));
        }
        let model = Model { method, spec, setting, student, teachers, precision: recipe.train.precision };
        model.source([2, 2], 2, None).fits().map_err(|e| wrong(format!("[method] {e}")))?;
        Ok(model)
    }

    /// The graph of a training step on float images, before any pass.
    pub(crate) fn training_graph(&self, units: [usize; 2]) -> Graph {
        self.source(units, units[0], None).training().graph
    }

    fn source(&self, units: [usize; 2], rolling_units: usize, input: Option<StepInput>) -> StepSource<'_> {
        let Model { method, spec, setting, student, teachers, precision } = self;
        StepSource {
            method: method.as_ref(),
            spec,
            setting,
            student: student.as_ref(),
            teachers,
            input,
            precision: *precision,
            units,
            rolling_units,
        }
    }
}

/// How steps of a run are compiled.
#[derive(Clone, Debug)]
pub struct Compile {
    pub options: Options,
    /// Most units of a global batch.
    pub global_batch: usize,
    pub train_input: Option<StepInput>,
    pub eval_input: Option<StepInput>,
    pub bn: BnPolicy,
    /// Ranks of the run.
    pub world: usize,
}

impl Compile {
    /// Options of a recipe for the CPU.
    pub fn new(recipe: &Recipe, train_input: Option<StepInput>, eval_input: Option<StepInput>) -> Compile {
        let o = &recipe.optimizer;
        let optimizer = OptimizerArgs {
            momentum: o.momentum,
            nesterov: o.nesterov,
            weight_decay: o.weight_decay,
            decay_bn_bias: o.decay_bn_bias,
            clip_norm: recipe.train.clip_norm,
            lars: o.lars(),
            ema: recipe.train.ema_decay.is_some(),
            bn_momentum: 0.1,
        };
        let storage = Device::Cpu.storage(recipe.train.precision);
        let options = Options { fusion: Fusion::Full, optimizer, storage, bucket_bytes: 25 << 20, keep_outputs: false };
        let (global_batch, bn) = (recipe.train.global_batch, recipe.train.bn);
        Compile { options, global_batch, train_input, eval_input, bn, world: 1 }
    }

    /// Options for an evaluation head alone.
    pub fn head(eval_input: Option<StepInput>) -> Compile {
        let optimizer = OptimizerArgs::default();
        let options = Options {
            fusion: Fusion::Full,
            optimizer,
            storage: Storage::CpuF32,
            bucket_bytes: 1 << 20,
            keep_outputs: true,
        };
        Compile { options, global_batch: 1, train_input: None, eval_input, bn: BnPolicy::Local, world: 1 }
    }

    /// The same for so many ranks.
    pub fn over(&self, world: usize) -> Compile {
        Compile { world, ..self.clone() }
    }

    /// The same for an executor that stores values so.
    pub fn on(&self, storage: Storage) -> Compile {
        Compile { options: Options { storage, ..self.options.clone() }, ..self.clone() }
    }

    /// The training step for micro-batches of so many units per role; others of the run share `layout` of the first.
    pub fn training(
        &self,
        model: &Model,
        units: [usize; 2],
        states: &mut StateTable,
        layout: Option<&Layout>,
    ) -> Result<Plan, TrainError> {
        let bn = match self.bn {
            BnPolicy::Sync => BnMode::TrainOver { groups: 1, ranks: self.world },
            BnPolicy::Local | BnPolicy::Broadcast => BnMode::Train { groups: 1 },
        };
        let step = model.source(units, self.global_batch, self.train_input).training_by(bn);
        Ok(plan::compile(step, &self.options, states, layout)?)
    }

    /// The evaluation head on `batch` images.
    pub fn evaluation(&self, model: &Model, batch: usize, states: &mut StateTable) -> Result<Plan, TrainError> {
        let step = model.source([batch, 0], batch, self.eval_input).evaluation();
        let options = Options { keep_outputs: true, ..self.options.clone() };
        Ok(plan::compile(step, &options, states, None)?)
    }
}

/// Normalisation of `channels` channels, from one or as many constants.
pub fn image_args(size: [usize; 2], mean: &[f64], std: &[f64]) -> ImageArgs {
    let three = |v: &[f64]| [v[0], v[1.min(v.len() - 1)], v[2.min(v.len() - 1)]];
    ImageArgs { size, pad: 0, mean: three(mean), std: three(std), crop: false, flip: false }
}
