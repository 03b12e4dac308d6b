//! From what the data side delivers to what a body reads.

use crate::engine::Micro;
use crate::error::TrainError;
use crate::feed::Set;
use crate::recipe::{Augment, Recipe};
use crate::step::image_args;
use data::{Batch, DrawData, Stats};
use spec::{DrawKind, ImageArgs, Sampler, Spec, StepInput};
use tensor::{HostTensor, Shape};

/// How training images are varied, in the data side's terms.
pub(crate) fn train_augment(recipe: &Recipe) -> data::Augment {
    let pad = recipe.data.pad;
    match recipe.data.augment {
        Augment::None if sizes_differ(recipe) => eval_augment(recipe),
        Augment::None => data::Augment::None,
        Augment::PadCrop => data::Augment::PadCrop { pad },
        Augment::PadCropFlip => data::Augment::PadCropFlip { pad },
        Augment::RrcFlip => data::Augment::RandomResizedCropFlip {
            size: recipe.data.size,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
        },
    }
}

fn sizes_differ(recipe: &Recipe) -> bool {
    recipe.data.set == "folder"
}

pub(crate) fn eval_augment(recipe: &Recipe) -> data::Augment {
    if sizes_differ(recipe) || recipe.data.augment == Augment::RrcFlip {
        data::Augment::ResizeCenterCrop { resize: recipe.eval.resize, size: recipe.data.size }
    } else {
        data::Augment::None
    }
}

/// What the first kernel does with the images of a set; nothing with feature vectors.
pub(crate) fn set_input(augment: &data::Augment, set: &Set, stats: &Stats) -> Option<StepInput> {
    let is_images = set.loader.dataset().floats(0).is_none();
    is_images.then(|| step_input(augment, set.loader.image_shape(), stats))
}

/// What the first kernel does with delivered pixels of `[h, w, c]`.
pub(crate) fn step_input(augment: &data::Augment, pixels: [usize; 3], stats: &Stats) -> StepInput {
    let size = [pixels[0], pixels[1]];
    let args = image_args(size, &stats.mean, &stats.std);
    let image = match *augment {
        data::Augment::PadCrop { pad } => ImageArgs { pad, crop: true, ..args },
        data::Augment::PadCropFlip { pad } => ImageArgs { pad, crop: true, flip: true, ..args },
        data::Augment::RandomResizedCropFlip { .. } => ImageArgs { flip: true, ..args },
        data::Augment::None | data::Augment::ResizeCenterCrop { .. } | data::Augment::ResizeExact { .. } => args,
    };
    StepInput { pixels: size, image }
}

/// The sampler that a method asks for.
pub(crate) fn sampler(spec: &Spec) -> data::Sampler {
    match spec.sampler {
        Sampler::Shuffle if spec.views.len() + usize::from(spec.previous) > 1 => {
            data::Sampler::Views { views: spec.views.len() + usize::from(spec.previous) }
        }
        Sampler::Shuffle => data::Sampler::Shuffle,
        Sampler::Pairs { rule, partners } => data::Sampler::Pairs { rule, partners },
    }
}

/// The inputs of one body: the first `rows` of each unit's views, and of the previous batch its last view.
pub(crate) fn micro(batch: &Batch, previous: Option<&Batch>, spec: &Spec) -> Result<Micro, TrainError> {
    let units = batch.micro.units as usize;
    let rows = spec.rows_per_unit() * units;
    let mut inputs = rows_of(batch, 0..rows, "")?;
    let (labels, index) = (batch.row_labels.iter().zip(&batch.weight), &batch.index[..units]);
    // Rows that must not count (bad samples that are skipped) have no label.
    let labels: Vec<i32> = labels.take(rows).map(|(&l, &w)| if w == 0.0 { -1 } else { l }).collect();
    inputs.push(("label".to_string(), HostTensor::new(Shape::new(&[rows]), &labels)?));
    inputs.push(("index".to_string(), HostTensor::new(Shape::new(&[units]), index)?));
    for draw in &spec.draws {
        let Some(drawn) = batch.draws.get(&draw.name) else { continue };
        inputs.push((format!("draw.{}", draw.name), draw_tensor(drawn, draw.kind, units)?));
    }
    let mut previous_units = 0;
    if let Some(previous) = previous {
        previous_units = previous.micro.units as usize;
        let all = previous.row_labels.len();
        inputs.extend(rows_of(previous, all - previous_units..all, "previous.")?);
        let labels = &previous.labels[..previous_units];
        inputs.push(("previous.label".to_string(), HostTensor::new(Shape::new(&[previous_units]), labels)?));
    }
    Ok(Micro { leaf: batch.micro.leaf as usize, units: [units, previous_units], inputs })
}

fn rows_of(batch: &Batch, rows: std::ops::Range<usize>, prefix: &str) -> Result<Vec<(String, HostTensor)>, TrainError> {
    let [_, h, w, c] = batch.shape;
    let (size, count) = (h * w * c, rows.len());
    let (shape, part) = (Shape::new(&[count, h, w, c]), rows.start * size..rows.end * size);
    let mut inputs = vec![(format!("{prefix}image"), image_tensor(batch, shape, part)?)];
    for name in ["crop", "flip"] {
        if let Some(DrawData::I32(values)) = batch.draws.get(name) {
            let per = values.len() / batch.row_labels.len().max(1);
            let shape = if per == 2 { Shape::new(&[count, 2]) } else { Shape::new(&[count]) };
            let part = &values[rows.start * per..rows.end * per];
            inputs.push((format!("{prefix}{name}"), HostTensor::new(shape, part)?));
        }
    }
    Ok(inputs)
}

/// Pixels, or feature vectors, of a part of the batch.
fn image_tensor(batch: &Batch, shape: Shape, part: std::ops::Range<usize>) -> Result<HostTensor, TrainError> {
    Ok(if batch.images.is_empty() {
        HostTensor::new(shape, &batch.floats[part])?
    } else {
        HostTensor::new(shape, &batch.images[part])?
    })
}

fn draw_tensor(draw: &DrawData, kind: DrawKind, units: usize) -> Result<HostTensor, TrainError> {
    let shape = match kind {
        DrawKind::CellMask { cells, .. } => Shape::new(&[units, cells]),
        DrawKind::Permutation => Shape::new(&[units]),
        DrawKind::Lambda { .. } | DrawKind::CutShare { .. } => Shape::new(&[]),
        DrawKind::CutBox { .. } => Shape::new(&[4]),
        DrawKind::Cutout { .. } | DrawKind::Erase { .. } => Shape::new(&[units, 4]),
    };
    Ok(match draw {
        DrawData::F32(v) => HostTensor::new(shape, std::slice::from_ref(v))?,
        DrawData::I32(v) => HostTensor::new(shape, v)?,
        DrawData::Box(v) => HostTensor::new(shape, v)?,
        DrawData::Boxes(v) => HostTensor::new(shape, v.as_flattened())?,
        DrawData::U8(v) => HostTensor::new(shape, v)?,
    })
}

/// The inputs of an evaluation batch, padded to its full size.
pub(crate) fn eval_inputs(batch: &Batch) -> Result<Vec<(String, HostTensor)>, TrainError> {
    let labels: Vec<i32> =
        batch.row_labels.iter().zip(&batch.weight).map(|(&l, &w)| if w == 0.0 { -1 } else { l }).collect();
    Ok(vec![
        ("image".to_string(), image_tensor(batch, Shape::new(&batch.shape), 0..batch.shape.iter().product())?),
        ("label".to_string(), HostTensor::new(Shape::new(&[labels.len()]), &labels)?),
    ])
}
