//! Pooled features of a frozen network, once for all training on them: `retort features` (chapter 6.2).
//!
//! Evaluation mode, the evaluation's transform, true labels, images in the order of the set. A file that is there already is used again
//! if it is whole and of the same weights, samples and transform.

use crate::checkpoint::Snapshot;
use crate::deploy::{Weights, newest};
use crate::device::{Device, cores, executor};
use crate::error::TrainError;
use crate::feed::{Set, eval_spec, open_set};
use crate::head::{Head, Values};
use crate::inputs::{eval_augment, eval_inputs, set_input};
use crate::recipe::Recipe;
use crate::recipe_parse::Loaded;
use crate::step::Model;
use data::{
    Augment, BatchSpec, Deal, Epoch, EpochKey, Features, LastBatch, OnBad, Prefetch, Sampler, Split, sample_hash,
};
use methods::{Ce, MethodSpec};
use spec::{Expr, Losses, Method, Setting, Spec, Step};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, Shape};

/// How images are brought to size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// As for the recipe's evaluation.
    Recipe,
    /// All to `data.size`², aspect ratio not kept.
    Exact,
}

/// What to extract with, and where to.
#[derive(Clone, Debug)]
pub struct FeatureOptions {
    pub weights: Weights,
    /// Gets `train.safetensors` and `test.safetensors`.
    pub out: PathBuf,
    /// Split whose features are the training ones: `Val` for images that the network was not trained on.
    pub train_split: Split,
    pub resize: Resize,
    /// Default: as for a run.
    pub device: Option<Device>,
}

/// A file of features that is there now.
#[derive(Clone, Debug)]
pub struct Extracted {
    pub path: PathBuf,
    pub samples: usize,
    /// Length of a feature vector.
    pub size: usize,
    /// It was there before.
    pub reused: bool,
}

/// Extracts the features of training and test images with the recipe's network. Errors: weights that do not fit, a set without test
/// images, an image that cannot be read.
pub fn extract_features(loaded: Loaded, options: &FeatureOptions) -> Result<Vec<Extracted>, TrainError> {
    let mut recipe = loaded.recipe;
    if recipe.data.set == "features" {
        return Err(TrainError::Setting("data.set: expected images to extract features from, got features".into()));
    }
    // Neither noise nor a method changes what the network sees in an image.
    recipe.data.noise = None;
    (recipe.method, recipe.teacher) = (MethodSpec::Ce(Ce::default()), vec![]);
    let (tensors, path) = match &options.weights {
        Weights::File(path) => (safe::read(path)?.0, path),
        Weights::Run(dir) => {
            let Snapshot { mut groups, .. } = newest(dir)?;
            (groups.remove("model").unwrap_or_default(), dir)
        }
    };
    let checksum = blake3::hash(&safe::to_bytes(&tensors, &Metadata::new())?).to_hex().to_string();
    let augment = match options.resize {
        Resize::Recipe => eval_augment(&recipe),
        Resize::Exact => Augment::ResizeExact { size: recipe.data.size },
    };
    std::fs::create_dir_all(&options.out).map_err(|source| TrainError::Io {
        action: "cannot create",
        path: options.out.clone(),
        source,
    })?;
    let mut network = None;
    let mut done = Vec::new();
    for (split, name) in [(options.train_split, "train"), (Split::Test, "test")] {
        let spec = BatchSpec { augment, on_bad: OnBad::Fail, ..eval_spec(&recipe) };
        let set = open_set(&recipe, &recipe.data.folder, split, spec)?;
        let from = origin(&recipe, &set, &augment, &checksum);
        let to = options.out.join(format!("{name}.safetensors"));
        if let Some(found) = reusable(&to, &from) {
            done.push(found);
            continue;
        }
        let network = match &mut network {
            Some(network) => network,
            none => none.insert(frozen((&recipe, options.device), &set, &augment, (&tensors, path))?),
        };
        let (rows, size) = features(network, &set, &recipe)?;
        let dataset = set.loader.dataset();
        Features::write(&to, &rows, dataset.labels(), dataset.classes(), from)?;
        done.push(Extracted { path: to, samples: dataset.len(), size, reused: false });
    }
    Ok(done)
}

/// What a file says of where its features come from.
fn origin(recipe: &Recipe, set: &Set, augment: &Augment, checksum: &str) -> Metadata {
    let dataset = set.loader.dataset();
    let entries = [
        ("network", recipe.network.name.clone()),
        ("weights", checksum.to_string()),
        ("set", dataset.name().to_string()),
        ("sample_hash", format!("{:016x}", sample_hash(dataset.as_ref()))),
        ("transform", format!("{augment:?}, mean {:?}, std {:?}", set.stats.mean, set.stats.std)),
    ];
    entries.map(|(key, value)| (key.to_string(), value)).into()
}

/// The file at `path`, if it is whole and from the same origin.
fn reusable(path: &Path, from: &Metadata) -> Option<Extracted> {
    use data::Dataset;
    let found = Features::open(path, "features").ok()?;
    let same = from.iter().all(|(key, value)| found.metadata().get(key) == Some(value));
    same.then(|| Extracted { path: path.to_path_buf(), samples: found.len(), size: found.channels(), reused: true })
}

/// A method whose evaluation head is what lies before the classifier.
#[derive(Debug)]
struct Pooled;

impl Method for Pooled {
    fn spec(&self, _setting: &Setting) -> Result<Spec, String> {
        Ok(Spec::default())
    }

    fn losses<'g>(&self, _phase: usize, _step: &Step<'g>) -> Losses {
        Losses::new()
    }

    fn head<'g>(&self, step: &Step<'g>) -> Expr<'g> {
        step.student(step.image()).pooled
    }
}

/// A network that only looks.
fn frozen(
    (recipe, device): (&Recipe, Option<Device>),
    set: &Set,
    augment: &Augment,
    (tensors, path): (&Tensors, &Path),
) -> Result<Values, TrainError> {
    let fail = |reason: String| TrainError::Weights { path: path.to_path_buf(), reason };
    let facts = recipe.network.facts().map_err(|e| TrainError::Setting(e.to_string()))?;
    let head = format!("{}.weight", facts.head);
    // The classifier is not used, so its classes need not be those of the set.
    let classes = tensors.get(&head).and_then(|t| t.shape().dims().first().copied());
    let classes = classes.ok_or_else(|| fail(format!("{head} is missing, so this is no {}", recipe.network.name)))?;
    let setting = Setting::new(classes, set.loader.image_shape(), set.lists.images(), 1);
    let model = Model { method: Box::new(Pooled), ..Model::new(recipe, setting)? };
    let input = set_input(augment, set, &set.stats);
    let head = Head { model: &model, batch: recipe.eval.batch, input, tensors, path };
    executor(Device::choose(device, model.precision)?, model.precision, cores(), head)
}

/// Features of all images, row by row, and the length of one.
fn features(values: &mut Values, set: &Set, recipe: &Recipe) -> Result<(Vec<f32>, usize), TrainError> {
    let key = EpochKey { seed: 0, stage: 0, epoch: 0 };
    let epoch = Arc::new(Epoch::new(Sampler::Sequential, set.lists.clone(), key)?);
    let batch = recipe.eval.batch;
    let deal = Deal::new(epoch.units(), batch, batch, LastBatch::Keep)?;
    let micros = (0..deal.steps()).flat_map(|s| deal.deal(s, 0, 1)).collect();
    let (mut rows, mut size) = (Vec::new(), 0);
    for delivered in Prefetch::new(set.loader.clone(), epoch, micros, recipe.data.workers, 2)? {
        let delivered = delivered?;
        let mut inputs = eval_inputs(&delivered)?;
        for (_, label) in inputs.iter_mut().filter(|(name, _)| name == "label") {
            *label = HostTensor::new(Shape::new(&[batch]), &vec![-1_i32; batch])?; // a label is no index into features
        }
        let found = values(&inputs)?;
        size = found.len() / batch;
        rows.extend(found[..delivered.micro.units as usize * size].iter().map(|&x| x as f32));
    }
    Ok((rows, size))
}
