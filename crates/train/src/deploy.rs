//! What is done with weights after training: evaluation, prediction, import and export.

use crate::checkpoint::{Checkpoints, Retention, Snapshot};
use crate::device::{Device, cores, executor};
use crate::disk::OsDisk;
use crate::error::TrainError;
use crate::evaluate::Evaluation;
use crate::head::{Head, Values};
use crate::recipe::Recipe;
use crate::recipe_parse::Loaded;
use crate::session::{RunOptions, Session, Start};
use crate::step::{Compile, Model, image_args};
use data::{Augment, BatchSpec, ClassLists, Dataset, Epoch, EpochKey, Loader, Meta, OnBad, RawImage, Sampler, Split};
use nets::{EntryValue, NetworkSpec, state_dict};
use plan::{Fusion, Plan, StateTable};
use spec::{Setting, StepInput};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::safe::{self, Metadata, Tensors};

/// Where weights come from.
#[derive(Clone, Debug)]
pub enum Weights {
    /// safetensors with published names.
    File(PathBuf),
    /// The newest good checkpoint of a run.
    Run(PathBuf),
}

/// What is evaluated, and how.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    pub weights: Weights,
    /// The moving average of a run's weights.
    pub ema: bool,
    pub split: Split,
    /// Default: as for a run.
    pub device: Option<Device>,
}

/// Exact counts of weights on a split.
pub fn evaluate(mut loaded: Loaded, options: &EvalOptions) -> Result<Evaluation, TrainError> {
    loaded.recipe.eval.ema = options.ema;
    let session = Session::open(loaded, RunOptions { device: options.device, ..RunOptions::default() })?;
    match &options.weights {
        Weights::File(path) => session.evaluate(options.split, Start::File(path)),
        Weights::Run(dir) => session.evaluate(options.split, Start::Snapshot(&newest(dir)?)),
    }
}

/// How `retort plan` looks at a recipe.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    pub fusion: Fusion,
    /// Side of the images, if not the data set's.
    pub image: Option<usize>,
    /// Gradient bytes after which a bucket is closed, if not the trainer's.
    pub bucket_bytes: Option<usize>,
}

/// The plan of a recipe's full training step. Without its data, as far as the recipe says what they are.
pub fn plan_of(loaded: Loaded, options: PlanOptions) -> Result<Plan, TrainError> {
    let recipe = loaded.recipe.clone();
    let on_cpu = RunOptions { device: Some(Device::Cpu), ..RunOptions::default() };
    let (mut model, mut compile, units) = match Session::open(loaded, on_cpu) {
        Ok(session) => {
            let units = session.full_units()?;
            (session.model, session.compile, units)
        }
        Err(TrainError::Data(_)) => {
            let model = Model::new(&recipe, crate::offline::setting(&recipe)?)?;
            let channels = model.setting.image[2];
            let stats = data::Stats { mean: vec![0.5; channels], std: vec![0.25; channels] };
            let input = crate::inputs::step_input(&crate::inputs::train_augment(&recipe), model.setting.image, &stats);
            let micro = crate::feed::micro_batch(&recipe, 1);
            let units = [micro, usize::from(model.spec.previous) * micro];
            (model, Compile::new(&recipe, (recipe.data.set != "features").then_some(input), None), units)
        }
        Err(other) => return Err(other),
    };
    compile.options.fusion = options.fusion;
    compile.options.bucket_bytes = options.bucket_bytes.unwrap_or(compile.options.bucket_bytes);
    if let Some(side) = options.image {
        let [h, w, _] = &mut model.setting.image;
        (*h, *w) = (side, side);
        if let Some(input) = &mut compile.train_input {
            (input.pixels, input.image.size) = ([side, side], [side, side]);
        }
    }
    compile.training(&model, units, &mut StateTable::default(), None)
}

/// The newest good checkpoint of a run folder.
pub(crate) fn newest(run: &Path) -> Result<Snapshot, TrainError> {
    let loaded = Checkpoints::new(Arc::new(OsDisk), run, Retention::default()).load_newest()?;
    let reasons: Vec<_> = loaded.rejected.iter().map(|r| format!("{}: {}", r.folder, r.reason)).collect();
    loaded.snapshot.ok_or_else(|| TrainError::Weights {
        path: run.to_path_buf(),
        reason: format!(
            "no good checkpoint in it; train first, or give the folder that --run named. {}",
            reasons.join("; ")
        ),
    })
}

fn read_text(path: &Path) -> Result<String, TrainError> {
    std::fs::read_to_string(path).map_err(|source| TrainError::Io {
        action: "cannot read",
        path: path.to_path_buf(),
        source,
    })
}

/// Writes a run's weights under published names, with what `predict` needs in the metadata.
pub fn export(run: &Path, ema: bool, to: &Path) -> Result<String, TrainError> {
    let snapshot = newest(run)?;
    let group = if ema { "ema" } else { "model" };
    let fail = |reason: &str| TrainError::Weights { path: run.to_path_buf(), reason: reason.to_string() };
    let tensors =
        snapshot.groups.get(group).ok_or_else(|| fail("the run keeps no moving average; set train.ema_decay"))?;
    let metadata = Metadata::from([
        ("format".to_string(), "pt".to_string()),
        ("layout".to_string(), "KCRS".to_string()),
        ("recipe".to_string(), read_text(&run.join("recipe.toml"))?),
        ("run".to_string(), read_text(&run.join("run.json"))?),
        ("step".to_string(), snapshot.run.step.to_string()),
    ]);
    safe::write(to, tensors, &metadata)?;
    Ok(format!("{}: {} tensors of step {}", to.display(), tensors.len(), snapshot.run.step))
}

/// Checks foreign weights against a network and writes them with our metadata; the report lists what did not fit.
pub fn import(from: &Path, network: &str, to: &Path) -> Result<String, TrainError> {
    let (tensors, _) = safe::read(from)?;
    let stripped: Tensors =
        tensors.into_iter().map(|(name, t)| (name.strip_prefix("module.").unwrap_or(&name).to_string(), t)).collect();
    let spec = NetworkSpec::new(network);
    let setting = |e: nets::NetError| TrainError::Setting(e.to_string());
    let facts = spec.facts().map_err(setting)?;
    let head = format!("{}.weight", facts.head);
    let fail = |reason: String| TrainError::Weights { path: from.to_path_buf(), reason };
    let classes = stripped.get(&head).map(|t| t.shape().dims()[0]).ok_or_else(|| {
        let some: Vec<_> = stripped.keys().take(5).cloned().collect();
        fail(format!("{head} is missing, so this is no {network}; names begin {}", some.join(", ")))
    })?;
    let side = facts.side;
    let entries = |channels: usize| -> Result<Vec<nets::Entry>, TrainError> {
        let setting = Setting::new(classes, [side, side, channels], 1, 1);
        let model = Model::new(&Recipe::for_network(network)?, setting)?;
        let plan = Compile::head(None).evaluation(&model, 1, &mut StateTable::default())?;
        Ok(state_dict(&plan.graph, "student"))
    };
    let colour = entries(3)?;
    // The first convolution sees the image: [K, channels, R, S].
    let first = colour.first().and_then(|e| stripped.get(&e.name));
    let grey = first.is_some_and(|t| matches!(t.shape().dims(), [_, 1, _, _]));
    let mut kept = Tensors::new();
    let mut wrong = Vec::new();
    for entry in if grey { entries(1)? } else { colour } {
        match (stripped.get(&entry.name), entry.value) {
            (Some(tensor), _) if tensor.shape() == entry.shape => drop(kept.insert(entry.name, tensor.clone())),
            (Some(t), _) => wrong.push(format!("{}: expected {}, got {}", entry.name, entry.shape, t.shape())),
            (None, EntryValue::Counter { .. }) => {}
            (None, EntryValue::State(_)) => wrong.push(format!("{}: missing, expected {}", entry.name, entry.shape)),
        }
    }
    if !wrong.is_empty() {
        return Err(fail(format!("does not fit {network}\n  {}", wrong.join("\n  "))));
    }
    let unused: Vec<_> = stripped.keys().filter(|name| !kept.contains_key(*name)).cloned().collect();
    let metadata = Metadata::from([
        ("format".to_string(), "pt".to_string()),
        ("layout".to_string(), "KCRS".to_string()),
        ("network".to_string(), network.to_string()),
        ("classes".to_string(), classes.to_string()),
    ]);
    safe::write(to, &kept, &metadata)?;
    let rest = if unused.is_empty() { String::new() } else { format!("\nnot used: {}", unused.join(", ")) };
    Ok(format!("{}: {} tensors of {network} with {classes} classes{rest}", to.display(), kept.len()))
}

/// Classes of an image file, most likely first, with their probabilities.
#[derive(Clone, Debug)]
pub struct Prediction {
    pub path: PathBuf,
    pub classes: Vec<(String, f32)>,
}

/// A trained network that names the classes of image files.
pub struct Predictor {
    values: Values,
    classes: Vec<String>,
    image: [usize; 3],
}

/// Images that go through the network at once.
const BATCH: usize = 16;

impl Predictor {
    /// The newest checkpoint of a run, or a file that `export` wrote.
    pub fn open(weights: Weights, device: Option<Device>) -> Result<Predictor, TrainError> {
        let (tensors, recipe, run, path) = match weights {
            Weights::Run(dir) => {
                let tensors = newest(&dir)?.groups.remove("model").unwrap_or_default();
                (tensors, read_text(&dir.join("recipe.toml"))?, read_text(&dir.join("run.json"))?, dir)
            }
            Weights::File(path) => {
                let (tensors, mut metadata) = safe::read(&path)?;
                let (Some(recipe), Some(run)) = (metadata.remove("recipe"), metadata.remove("run")) else {
                    let reason = "the file does not say its classes and normalisation; predict from a run, or from what `retort export` wrote";
                    return Err(TrainError::Weights { path, reason: reason.into() });
                };
                (tensors, recipe, run, path)
            }
        };
        let fail = |reason: String| TrainError::Weights { path: path.clone(), reason };
        let loaded = Recipe::parse(recipe, &path.join("recipe.toml"), &[])?;
        if loaded.recipe.data.set == "features" {
            let reason = "the run was trained on feature vectors, and predict reads image files; predict with the network that made them";
            return Err(fail(reason.into()));
        }
        let facts: Facts = serde_json::from_str(&run).map_err(|e| fail(format!("run.json: {e}")))?;
        let [h, w, _] = facts.image;
        let setting = Setting::new(facts.classes.len(), facts.image, 1, 1);
        let model = Model::new(&loaded.recipe, setting)?;
        let image = image_args([h, w], &facts.mean, &facts.std);
        let input = Some(StepInput { pixels: [h, w], image });
        let head = Head { model: &model, batch: BATCH, input, tensors: &tensors, path: &path };
        let device = Device::choose(device, model.precision)?;
        let values = executor(device, model.precision, cores(), head)?;
        Ok(Predictor { values, classes: facts.classes, image: facts.image })
    }

    /// The `topk` most likely classes of each file. An unreadable file is an error that names it.
    pub fn predict(&mut self, paths: &[PathBuf], topk: usize) -> Result<Vec<Prediction>, TrainError> {
        let [h, w, channels] = self.image;
        let files = Arc::new(Files::new(paths, self.classes.clone(), channels));
        let augment = Augment::ResizeCenterCrop { resize: h.max(w), size: h.max(w) };
        let spec = BatchSpec { augment, views: vec![], draws: vec![], on_bad: OnBad::Fail, pad_units: BATCH };
        let loader = Loader::new(files.clone(), spec)?;
        let epoch = Epoch::new(
            Sampler::Sequential,
            Arc::new(ClassLists::of(files.as_ref())),
            EpochKey { seed: 0, stage: 0, epoch: 0 },
        )?;
        let deal = data::Deal::new(paths.len(), BATCH, BATCH, data::LastBatch::Keep)?;
        let mut predictions = Vec::with_capacity(paths.len());
        for micro in (0..deal.steps()).flat_map(|s| deal.deal(s, 0, 1)) {
            let batch = loader.batch(&epoch, &micro)?;
            let logits = (self.values)(&crate::inputs::eval_inputs(&batch)?)?;
            for row in 0..micro.units as usize {
                let path = paths[predictions.len()].clone();
                let row = &logits[row * self.classes.len()..(row + 1) * self.classes.len()];
                predictions.push(Prediction { path, classes: self.ranked(row, topk) });
            }
        }
        Ok(predictions)
    }

    fn ranked(&self, logits: &[f64], topk: usize) -> Vec<(String, f32)> {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let share = |k: usize| ((logits[k] - max).exp() / sum) as f32;
        order.into_iter().take(topk).map(|k| (self.classes[k].clone(), share(k))).collect()
    }
}

/// What `run.json` says of images and classes.
#[derive(serde::Deserialize)]
struct Facts {
    classes: Vec<String>,
    image: [usize; 3],
    mean: Vec<f64>,
    std: Vec<f64>,
}

/// Image files as a set without labels.
struct Files {
    paths: Vec<PathBuf>,
    meta: Meta,
}

impl Files {
    fn new(paths: &[PathBuf], classes: Vec<String>, channels: usize) -> Files {
        let meta = Meta { name: "files".into(), classes, channels, size: None, labels: vec![0; paths.len()] };
        Files { paths: paths.to_vec(), meta }
    }
}

impl Dataset for Files {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), data::DataError> {
        let path = &self.paths[index];
        let bad = |reason: String| data::DataError::Sample { index, place: path.display().to_string(), reason };
        let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        data::decode_image(&bytes, image).map_err(bad)?;
        convert(image, self.meta.channels);
        Ok(())
    }

    fn place(&self, index: usize) -> String {
        self.paths[index].display().to_string()
    }
}

/// Grey to colour by repetition, colour to grey by ITU-R 601 luma, as Pillow does.
fn convert(image: &mut RawImage, channels: usize) {
    if image.channels == channels {
        return;
    }
    image.pixels = if channels == 3 {
        image.pixels.iter().flat_map(|&v| [v; 3]).collect()
    } else {
        let luma = |p: &[u8]| {
            ((19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]) + 32768) >> 16) as u8
        };
        image.pixels.chunks_exact(3).map(luma).collect()
    };
    image.channels = channels;
}
