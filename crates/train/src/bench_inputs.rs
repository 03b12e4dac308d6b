//! A step without data: what a recipe builds for images that only have their shapes, and a batch of such images.

use crate::engine::{Micro, Sizes};
use crate::error::TrainError;
use crate::feed::micro_batch;
use crate::inputs::{eval_augment, step_input, train_augment};
use crate::offline;
use crate::recipe::Recipe;
use crate::recipe_parse::Loaded;
use crate::step::{Compile, Model};
use cuda::{Footprint, Math};
use plan::{Plan, StateTable, Storage};
use spec::{BatchInput, DrawKind, Precision};
use tensor::{Dtype, HostTensor};

/// Multiprocessors of the GPU that a prediction is made for: H100, H200.
const SMS: u32 = 132;

/// A recipe's step, and its sizes.
pub(crate) struct Synthetic {
    pub model: Model,
    pub compile: Compile,
    pub sizes: Sizes,
}

impl Synthetic {
    /// With the global batch in whole micro-batches.
    pub(crate) fn new(recipe: &Recipe) -> Result<Synthetic, TrainError> {
        let model = Model::new(recipe, offline::setting(recipe)?)?;
        let channels = model.setting.image[2];
        let stats = data::Stats { mean: vec![0.5; channels], std: vec![0.25; channels] };
        let images = recipe.data.set != "features";
        let input = |augment| images.then(|| step_input(&augment, model.setting.image, &stats));
        let mut compile = Compile::new(recipe, input(train_augment(recipe)), input(eval_augment(recipe)));
        let micro = micro_batch(recipe, 1);
        let leaves = (recipe.train.global_batch / micro).max(1);
        compile.global_batch = leaves * micro;
        let full = [micro, usize::from(model.spec.previous) * micro];
        let eval_batch = recipe.eval.batch;
        let sizes = Sizes { full, others: vec![], leaves, eval_batch, reproducible: recipe.train.reproducible };
        Ok(Synthetic { model, compile, sizes })
    }

    /// The micro-batches of a step, all with the same values.
    pub(crate) fn micros(&self, plan: &Plan) -> Result<Vec<Micro>, TrainError> {
        let tensor = |b: &BatchInput| Ok((b.name.clone(), self.tensor(plan, b)?));
        let inputs = plan.graph.batch.iter().map(tensor).collect::<Result<Vec<_>, TrainError>>()?;
        let micro = |leaf| Micro { leaf, units: self.sizes.full, inputs: inputs.clone() };
        Ok((0..self.sizes.leaves).map(micro).collect())
    }

    /// Values of an input as the data side might deliver them.
    fn tensor(&self, plan: &Plan, input: &BatchInput) -> Result<HostTensor, TrainError> {
        let value = plan.graph.value(input.value);
        let (shape, count) = (value.shape, value.shape.elements());
        let noise = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9) >> 8;
        let draw = self.model.spec.draws.iter().find(|d| input.name.strip_prefix("draw.") == Some(&d.name));
        let [h, w, _] = self.model.setting.image;
        let whole = |i: usize| match (draw.map(|d| &d.kind), input.name.rsplit('.').next().unwrap_or_default()) {
            (Some(DrawKind::Permutation), _) => count - 1 - i,
            (Some(DrawKind::CutBox { .. } | DrawKind::Cutout { .. } | DrawKind::Erase { .. }), _) => {
                [h / 4, w / 4, 3 * h / 4, 3 * w / 4][i % 4]
            }
            (_, "label") => i % self.model.setting.classes,
            (_, "index") => i % self.model.setting.samples,
            (None, "image") => noise(i) as usize % 256,
            (None, "crop") => i % (2 * self.compile.train_input.map_or(0, |t| t.image.pad) + 1),
            _ => i % 2,
        };
        Ok(match value.dtype {
            Dtype::U8 => HostTensor::new(shape, &(0..count).map(|i| whole(i) as u8).collect::<Vec<_>>())?,
            Dtype::I32 => HostTensor::new(shape, &(0..count).map(|i| whole(i) as i32).collect::<Vec<_>>())?,
            _ if draw.is_some() => HostTensor::new(shape, &vec![0.6f32; count])?,
            _ => {
                let real = |i: usize| noise(i) as f32 / (1 << 23) as f32 - 1.0;
                HostTensor::new(shape, &(0..count).map(real).collect::<Vec<f32>>())?
            }
        })
    }
}

/// What a run of the recipe would take of a GPU: its plans bound, without data, driver or GPU.
pub fn footprint(loaded: &Loaded) -> Result<Footprint, TrainError> {
    let precision = loaded.recipe.train.precision;
    if precision == Precision::F64 {
        return Err(TrainError::Device("f64 is computed on the CPU alone".to_string()));
    }
    let Synthetic { model, compile, sizes } = Synthetic::new(&loaded.recipe)?;
    let (compile, mut states) = (compile.on(Storage::Device), StateTable::default());
    let training = compile.training(&model, sizes.full, &mut states, None)?;
    let eval = compile.evaluation(&model, sizes.eval_batch, &mut states)?;
    let math = if precision == Precision::Tf32 { Math::Tf32 } else { Math::F32 };
    Ok(cuda::footprint(&[&training, &eval], &states, sizes.leaves, (math, SMS))?)
}
