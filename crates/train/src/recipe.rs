//! The recipe: one TOML file that describes a run. Every key is here; the rest of the program reads these structs.

use crate::link::{Bandwidth, Latency, Link};
use crate::schedule::Schedule;
use data::{Noise, OnBad};
use methods::MethodSpec;
use nets::NetworkSpec;
use serde::{Deserialize, Serialize};
use spec::Precision;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub data: DataSection,
    pub network: NetworkSpec,
    /// Frozen teachers; none for methods that need none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub teacher: Vec<TeacherSection>,
    pub method: MethodSpec,
    pub train: TrainSection,
    pub optimizer: OptimizerSection,
    #[serde(default)]
    pub schedule: Schedule,
    #[serde(default)]
    pub eval: EvalSection,
    #[serde(default)]
    pub output: OutputSection,
    #[serde(default)]
    pub ranks: RanksSection,
    /// For runs of several stages: the recipe with sections replaced, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage: Vec<StageSection>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageSection {
    /// Folder of the stage below the run's; later stages call its weights `@name`.
    pub name: String,
    /// Sections to replace; the keys are those of a recipe.
    #[serde(default)]
    pub set: toml::Table,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// fashion | cifar10 | cifar100 | folder | packed | features
    pub set: String,
    /// Where it lies; relative paths are tried from the recipe's folder, then from $RETORT_DATA.
    pub folder: PathBuf,
    /// How training images are varied. Default: what the set's publications use (chapter 0.5).
    #[serde(default)]
    pub augment: Augment,
    /// Zero pixels added on each side before the random crop. Default 4.
    #[serde(default = "four")]
    pub pad: usize,
    /// Side of training and test images of sets whose images differ in size; the length of feature vectors, where `step` and `plan` go
    /// without the data. Default 224.
    #[serde(default = "side224")]
    pub size: usize,
    /// Classes of sets that have no fixed number of them. Checked when the set is opened; lets `step` and `plan` go without the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Images of each class cut from the training set as a validation split. Default 0: none, and `eval.split` is the test set.
    #[serde(default)]
    pub validation_per_class: usize,
    /// Keep a short last batch. Default true, as the published code does.
    #[serde(default = "yes")]
    pub keep_last: bool,
    /// Normalisation, if it is not the set's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f64>>,
    /// substitute | skip | fail
    #[serde(default)]
    pub on_bad_sample: OnBad,
    /// Share of the set that may be bad before the run ends. Default 0.001.
    #[serde(default = "max_bad")]
    pub max_bad: f64,
    /// Threads that prepare batches. Default 1.
    #[serde(default = "one")]
    pub workers: usize,
    /// Wrong labels drawn for the training images; those of evaluation stay. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Augment {
    None,
    /// Pad with black, crop at random.
    PadCrop,
    /// Pad, crop, flip with probability one half.
    #[default]
    PadCropFlip,
    /// RandomResizedCrop with area (0.08, 1) and ratio (3/4, 4/3), flip.
    RrcFlip,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSection {
    pub name: String,
    /// safetensors with the published names.
    pub weights: PathBuf,
    /// Test top-1 that the weights must reach before training begins, within 0.001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_top1: Option<f64>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    pub epochs: usize,
    /// Sampler units (images, or pairs) of a step over all ranks.
    pub global_batch: usize,
    /// Units that go through the network at once. Default: the rank's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    #[serde(default)]
    pub seed: u64,
    /// f32 | bf16 | tf32 | f64 (CPU, for checks). Default f32.
    #[serde(default = "f32_name", with = "precision_name")]
    pub precision: Precision,
    /// The same bits at any number of ranks: micro-batches are the unit of everything. Default false.
    #[serde(default)]
    pub reproducible: bool,
    /// local | broadcast | sync: what batch norms take from other ranks. Default local.
    #[serde(default)]
    pub bn: BnPolicy,
    /// Largest global gradient norm. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Decay of a moving average of the weights. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Start from these weights (safetensors with the published names).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_weights: Option<PathBuf>,
    /// stop | skip: what a step whose loss or gradients are not finite does. Nothing of it is kept either way.
    #[serde(default)]
    pub on_nonfinite: OnNonfinite,
    /// End after so many steps. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
}

/// Batch norm over ranks. With one rank all three are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BnPolicy {
    /// Each micro-batch is normalised by its own statistics. Running statistics move by those of all micro-batches of all ranks, in
    /// the order of the global batch, so that they do not depend on the number of ranks.
    #[default]
    Local,
    /// As `local`, but running statistics move by the micro-batches of rank 0 alone: what torch's DistributedDataParallel does by
    /// default (broadcast_buffers).
    Broadcast,
    /// Statistics, and their gradients, are those of the same micro-batch of all ranks together: torch's SyncBatchNorm. Every rank
    /// needs as many micro-batches as the others in every step.
    Sync,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    #[default]
    Stop,
    Skip,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSection {
    pub name: OptimizerName,
    /// Learning rate; or `lr_per_256`, which is scaled by global_batch / 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_per_256: Option<f64>,
    /// Default 0.9.
    #[serde(default = "momentum")]
    pub momentum: f64,
    #[serde(default)]
    pub nesterov: bool,
    /// Coupled: added to the gradient. Default 0.
    #[serde(default)]
    pub weight_decay: f64,
    /// Whether batch-norm scales and shifts and all biases decay too. Default true, as the published code does; with `lars` the value of
    /// `adapt_bn_bias`.
    #[serde(default = "yes")]
    pub decay_bn_bias: bool,
    /// Only for `lars`: η of the trust ratio. Default 0.001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_coefficient: Option<f64>,
    /// Only for `lars`: ε in the divisor of the trust ratio. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// Only for `lars`: whether the rates of batch-norm scales and shifts and of biases are adapted too. Default false, as in MLPerf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapt_bn_bias: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    Sgd,
    /// A rate per tensor, for large batches: You, Gitman, Ginsburg 2017, arXiv:1708.03888. The rate is part of the momentum, as in the
    /// paper and in MLPerf, where `sgd` applies it afterwards.
    Lars,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalSection {
    /// test | val. Default test.
    pub split: String,
    /// Images per evaluation batch. Default 256. Results do not depend on it.
    pub batch: usize,
    /// Epochs between evaluations; the last epoch is always evaluated. Default 1.
    pub every: usize,
    /// For images that differ in size: shorter side, then central crop of `data.size`. Default 256.
    pub resize: usize,
    /// Evaluate the moving average instead of the weights. Default false.
    pub ema: bool,
}

impl Default for EvalSection {
    fn default() -> EvalSection {
        EvalSection { split: "test".to_string(), batch: 256, every: 1, resize: 256, ema: false }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputSection {
    /// Run folder. Default `runs/` and the name of the recipe.
    pub folder: Option<PathBuf>,
    /// Epochs between checkpoints. Default 1; there is always one at the end.
    pub checkpoint_every: usize,
    /// Steps between checkpoints, besides those at the ends of epochs. Default: none.
    pub checkpoint_steps: Option<u64>,
    /// Newest checkpoints kept. Default 2.
    pub keep: usize,
    /// Best checkpoints kept, by evaluation top-1. Default 1.
    pub keep_best: usize,
    /// Steps between lines of the log. Default 20.
    pub log_every: u64,
}

impl Default for OutputSection {
    fn default() -> OutputSection {
        OutputSection {
            folder: None,
            checkpoint_every: 1,
            checkpoint_steps: None,
            keep: 2,
            keep_best: 1,
            log_every: 20,
        }
    }
}

/// Of runs of several processes. All limits are seconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RanksSection {
    /// Until all ranks have met. Default 300.
    pub rendezvous_s: f64,
    /// From one heartbeat to the next. Default 1.
    pub heartbeat_s: f64,
    /// Without progress in a step for so long, or ten times the 99th percentile of the steps after the first, a rank hangs. Default 60.
    pub hang_s: f64,
    /// From TERM to KILL, of whatever stops the run: a checkpoint is saved after TERM if it takes less. Default 0: 1 under Open MPI and
    /// PMIx, 30 under srun and torchrun, 2 under other launchers, no limit where nobody launched the ranks.
    pub term_s: f64,
    /// both | usr2 | usr1: what asks for a checkpoint and the end with code 75. The other one of two is ignored. Default both.
    pub preempt_signal: PreemptSignal,
    /// As `hang_s`, for the first step, evaluations, checkpoints and resuming. Default 300.
    pub slow_phase_s: f64,
    /// Steps between comparisons of the weights of all ranks; 0: never. Default 1000.
    pub check_every: u64,
    /// f32 | bf16: what gradients are summed over GPUs as. Default f32; bf16 halves the bytes and rounds the gradients of each rank.
    pub gradients: Gradients,
    /// Bus bandwidth and latency between the GPUs, as `retort plan --link` takes them: they decide how gradients are cut into buckets.
    /// Default 460GB/s and 20us, a node with NVSwitch; across nodes 320GB/s and 50us are usual.
    pub link: String,
    pub latency: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PreemptSignal {
    #[default]
    Both,
    Usr2,
    Usr1,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradients {
    #[default]
    F32,
    Bf16,
}

impl Default for RanksSection {
    fn default() -> RanksSection {
        RanksSection {
            rendezvous_s: 300.0,
            heartbeat_s: 1.0,
            hang_s: 60.0,
            term_s: 0.0,
            preempt_signal: PreemptSignal::Both,
            slow_phase_s: 300.0,
            check_every: 1000,
            gradients: Gradients::F32,
            link: "460GB/s".to_string(),
            latency: "20us".to_string(),
        }
    }
}

impl RanksSection {
    /// The link between GPUs; `None` where a text is no bandwidth or no latency.
    pub(crate) fn link(&self) -> Option<Link> {
        let Bandwidth(bytes_per_s) = self.link.parse().ok()?;
        let Latency(latency_s) = self.latency.parse().ok()?;
        Some(Link { latency_s, bytes_per_s })
    }

    /// Limits of the watch.
    pub(crate) fn watch(&self) -> comm::Limits {
        comm::Limits {
            heartbeat: Duration::from_secs_f64(self.heartbeat_s),
            hang: Duration::from_secs_f64(self.hang_s),
            slow_phase: Duration::from_secs_f64(self.slow_phase_s),
            ..Default::default()
        }
    }
}

impl Recipe {
    /// The least recipe that names a network, to check its weights.
    pub(crate) fn for_network(name: &str) -> Result<Recipe, crate::TrainError> {
        let text = format!(
            "[data]\nset = \"folder\"\nfolder = \".\"\n[network]\nname = {name:?}\n[method]\nname = \"ce\"\n\
             [train]\nepochs = 1\nglobal_batch = 1\n[optimizer]\nname = \"sgd\"\nlr = 1.0\n"
        );
        Ok(Recipe::parse(text, std::path::Path::new("network"), &[])?.recipe)
    }
}

impl Recipe {
    /// Where the learning rate comes from, with its figures, and its warm-up.
    pub fn lr_rule(&self) -> String {
        let rule = self.optimizer.base_lr(self.train.global_batch).1;
        match self.schedule.warmup_epochs {
            0 => rule,
            1 => format!("{rule}, warm-up over 1 epoch"),
            n => format!("{rule}, warm-up over {n} epochs"),
        }
    }
}

impl OptimizerSection {
    /// The base learning rate of a global batch, and the rule in words: the linear scaling rule of Goyal et al. 2017, arXiv:1706.02677,
    /// where the rate is given per 256.
    pub fn base_lr(&self, global_batch: usize) -> (f64, String) {
        match (self.lr, self.lr_per_256) {
            (_, Some(per)) => {
                let lr = per * global_batch as f64 / 256.0;
                // Without what binary fractions leave in the last places.
                let shown = (lr * 1e9).round() / 1e9;
                (lr, format!("lr {per} per 256 × {global_batch} = {shown}"))
            }
            (lr, None) => (lr.unwrap_or_default(), format!("lr {}", lr.unwrap_or_default())),
        }
    }

    /// What LARS has beyond SGD; none for SGD.
    pub(crate) fn lars(&self) -> Option<plan::Lars> {
        (self.name == OptimizerName::Lars).then(|| plan::Lars {
            trust: self.trust_coefficient.unwrap_or(0.001),
            epsilon: self.epsilon.unwrap_or(0.0),
            adapt_bn_bias: self.adapt_bn_bias.unwrap_or(false),
        })
    }

    /// Writes out the defaults that hold for LARS alone. `decay_given`: the recipe says whether batch norms and biases decay.
    pub(crate) fn resolve(&mut self, decay_given: Option<bool>) {
        if let Some(lars) = self.lars() {
            self.trust_coefficient = Some(lars.trust);
            self.epsilon = Some(lars.epsilon);
            self.adapt_bn_bias = Some(lars.adapt_bn_bias);
            self.decay_bn_bias = decay_given.unwrap_or(lars.adapt_bn_bias);
        }
    }
}

fn four() -> usize {
    4
}
fn side224() -> usize {
    224
}
fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}
fn max_bad() -> f64 {
    0.001
}
fn momentum() -> f64 {
    0.9
}
fn f32_name() -> Precision {
    Precision::F32
}

/// Precisions by their names in recipes.
pub mod precision_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use spec::Precision;

    const NAMES: [(&str, Precision); 4] =
        [("f32", Precision::F32), ("tf32", Precision::Tf32), ("bf16", Precision::Bf16), ("f64", Precision::F64)];

    /// Reads `"f32"`, `"tf32"`, `"bf16"` or `"f64"`.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Precision, D::Error> {
        let name = String::deserialize(from)?;
        let found = NAMES.iter().find(|n| n.0 == name).map(|n| n.1);
        found.ok_or_else(|| D::Error::unknown_variant(&name, &["f32", "tf32", "bf16", "f64"]))
    }

    /// Writes the name.
    pub fn serialize<S: Serializer>(precision: &Precision, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(NAMES.iter().find(|n| n.1 == *precision).map_or("f32", |n| n.0))
    }
}
