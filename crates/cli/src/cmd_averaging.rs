//! `retort averaging`.

use crate::error::CliError;
use crate::output::{Terminal, percent};
use averaging::{
    Analysis, Labels, LinearModel, Matrix, Parts, Probe, Record, Role, analyse, one_hot, top_two, two_hot,
};
use clap::{Args, ValueEnum};
use data::{CLUSTER_CUT, Dataset, Features, Noise, NoiseKind, NoisyLabels};
use std::path::{Path, PathBuf};
use tensor::HostTensor;
use tensor::safe::{self, Metadata, Tensors};
use train::{Exit, TrainError};

const EXAMPLES: &str = "\
Examples:
  retort averaging runs/pll_linear                       every round of a staged run on features
  retort averaging data/features --noise sym --rate 0.5  what theory says before training

Writes averaging.json and averaging.svg. Entropies are in nats.";

/// What label averaging did to a staged run of linear probes, and what theory says
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AveragingArgs {
    /// The folder of a finished staged run on features, or of the features themselves
    #[arg(value_name = "RUN|FEATURES")]
    from: PathBuf,
    /// Folder for averaging.json and averaging.svg [default: the one above]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Of features: the kind of label noise
    #[arg(long, value_enum, default_value_t = NoiseArg::Sym)]
    noise: NoiseArg,
    /// Of features: the share of wrong labels
    #[arg(long, default_value_t = 0.5)]
    rate: f64,
    /// Of features: the seed of the noise
    #[arg(long, default_value_t = 0)]
    noise_seed: u32,
    /// Of features: the probes' weight decay
    #[arg(long, default_value_t = 5e-4)]
    weight_decay: f64,
    /// Of features: rounds after the first
    #[arg(long, default_value_t = 4)]
    rounds: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum NoiseArg {
    Sym,
    Asym,
    Cc,
}

pub(crate) fn run(args: &AveragingArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let is_features = args.from.join("train.safetensors").is_file();
    let analysis = if is_features { of_features(args)? } else { of_run(&args.from)? };
    terminal.print(in_words(&analysis))?;
    analysis.warnings.iter().for_each(|warning| terminal.note(format!("warning: {warning}")));
    let out = args.out.as_ref().unwrap_or(&args.from);
    let json = serde_json::to_string_pretty(&analysis).map_err(|e| CliError::Usage(e.to_string()))?;
    for (name, text) in [("averaging.json", json + "\n"), ("averaging.svg", averaging::svg(&analysis))] {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(|source| io(&path, source))?;
        terminal.print(format!("wrote {}", path.display()))?;
    }
    Ok(Exit::Done)
}

fn io(path: &Path, source: std::io::Error) -> CliError {
    TrainError::Io { action: "cannot write", path: path.to_path_buf(), source }.into()
}

/// Features of both splits.
struct Data {
    train: Matrix,
    test: Matrix,
    truth: Vec<u32>,
    test_labels: Vec<u32>,
    classes: usize,
}

impl Data {
    fn open(folder: &Path) -> Result<Data, CliError> {
        let open = |split: &str| Features::open(&folder.join(format!("{split}.safetensors")), split);
        let (train, test) = (open("train")?, open("test")?);
        if train.classes() != test.classes() || train.channels() != test.channels() {
            let what = format!("{}: train and test differ in classes or in size; make both anew", folder.display());
            return Err(CliError::Usage(what));
        }
        let matrix = |set: &Features| {
            let row = |i: usize| set.floats(i).unwrap_or_default();
            Matrix::from_fn(set.len(), set.channels(), |i, k| f64::from(row(i)[k]))
        };
        Ok(Data {
            train: matrix(&train),
            test: matrix(&test),
            truth: train.labels().to_vec(),
            test_labels: test.labels().to_vec(),
            classes: train.classes().len(),
        })
    }

    fn analyse(&self, given: &[u32], weight_decay: f64, probes: &[Probe]) -> Result<Analysis, CliError> {
        let record = Record {
            features: &self.train,
            labels: Labels { given, truth: &self.truth },
            test_features: &self.test,
            test_labels: &self.test_labels,
            classes: self.classes,
            weight_decay,
            cut: CLUSTER_CUT,
        };
        Ok(analyse(record, probes)?)
    }
}

/// Closed-form probes on features.
fn of_features(args: &AveragingArgs) -> Result<Analysis, CliError> {
    let data = Data::open(&args.from)?;
    let kind = match args.noise {
        NoiseArg::Sym => NoiseKind::Sym,
        NoiseArg::Asym => NoiseKind::Asym,
        NoiseArg::Cc => NoiseKind::Cc,
    };
    let set = Features::open(&args.from.join("train.safetensors"), "features/train")?;
    let noisy = NoisyLabels::new(Box::new(set), Noise { kind, rate: args.rate, seed: args.noise_seed })?;
    let mut model = LinearModel::new(&data.train, &one_hot(noisy.labels(), data.classes)?, args.weight_decay)?;
    let first = model.weights();
    let targets = two_hot(&top_two(&(&data.train * first.transpose()))?, data.classes);
    let mut probes = vec![Probe { name: "round0".into(), role: Role::Given, weights: first }];
    for round in 1..=args.rounds {
        model.advance();
        let role = Role::Soft { teacher: round - 1 };
        probes.push(Probe { name: format!("round{round}"), role, weights: model.weights() });
    }
    let student = LinearModel::new(&data.train, &targets, args.weight_decay)?;
    probes.push(Probe { name: "pll".into(), role: Role::Top { teacher: 0 }, weights: student.weights() });
    data.analyse(noisy.labels(), args.weight_decay, &probes)
}

/// What a stage left, and what it learned from.
struct Stage {
    name: String,
    weights: HostTensor,
    recipe: toml::Table,
}

impl Stage {
    fn open(folder: &Path, name: &str) -> Result<Stage, CliError> {
        let path = folder.join(name).join("final.safetensors");
        let fail = |reason: String| TrainError::Weights { path: path.clone(), reason };
        let (mut tensors, metadata): (Tensors, Metadata) = safe::read(&path).map_err(TrainError::Tensor)?;
        let weights = tensors.remove("fc.weight").filter(|t| tensors.is_empty() && t.shape().rank() == 2);
        let weights =
            weights.ok_or_else(|| fail("is no linear probe; run it with network.name = \"linear\"".into()))?;
        let recipe = metadata.get("recipe").and_then(|text| text.parse().ok());
        let recipe = recipe.ok_or_else(|| fail("does not say its recipe; train the run again".into()))?;
        Ok(Stage { name: name.to_string(), weights, recipe })
    }

    fn key(&self, section: &str, key: &str) -> Option<&toml::Value> {
        self.recipe.get(section)?.get(key)
    }

    fn text(&self, section: &str, key: &str) -> &str {
        self.key(section, key).and_then(toml::Value::as_str).unwrap_or_default()
    }

    fn weight_decay(&self) -> f64 {
        self.key("optimizer", "weight_decay").and_then(toml::Value::as_float).unwrap_or_default()
    }

    /// Stage whose weights the teacher has.
    fn teacher(&self) -> Option<String> {
        let weights = Path::new(self.recipe.get("teacher")?.get(0)?.get("weights")?.as_str()?);
        Some(weights.parent()?.file_name()?.to_str()?.to_string())
    }

    /// What it learned from, given the stages before.
    fn role(&self, earlier: &[Stage]) -> Option<Role> {
        let Some(teacher) = self.teacher() else { return Some(Role::Given) };
        let teacher = earlier.iter().position(|stage| stage.name == teacher)?;
        let is_soft = self.text("method", "targets") == "soft";
        Some(if is_soft { Role::Soft { teacher } } else { Role::Top { teacher } })
    }
}

/// The stages of a run, teachers before students, further rounds before students of two candidates.
fn stages(run: &Path) -> Result<Vec<Stage>, CliError> {
    let unfinished = |what: &str| {
        CliError::Usage(format!("{}: {what}; expected a finished staged run on features, or features", run.display()))
    };
    let entries = std::fs::read_dir(run).map_err(|e| unfinished(&e.to_string()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| run.join(name).join("final.safetensors").is_file()).collect();
    names.sort();
    let mut left = names.iter().map(|name| Stage::open(run, name)).collect::<Result<Vec<_>, _>>()?;
    let mut done: Vec<Stage> = Vec::new();
    while !left.is_empty() {
        let ready = |soft: bool| {
            let wanted = |stage: &Stage| match stage.role(&done) {
                Some(Role::Top { .. }) => !soft,
                Some(_) => soft,
                None => false,
            };
            left.iter().position(wanted)
        };
        let next = ready(true).or_else(|| ready(false)).ok_or_else(|| unfinished("a stage's teacher is missing"))?;
        let stage = left.remove(next);
        done.push(stage);
    }
    if done.is_empty() { Err(unfinished("no stage is complete")) } else { Ok(done) }
}

fn of_run(run: &Path) -> Result<Analysis, CliError> {
    let stages = stages(run)?;
    let first = &stages[0];
    let folder = Path::new(first.text("data", "folder"));
    let data = Data::open(folder)?;
    let given = given_labels(&run.join(&first.name), &data)?;
    if let Some(other) = stages.iter().find(|s| s.weight_decay() != first.weight_decay()) {
        let what = format!("optimizer.weight_decay of {} and {} differ; expected one", first.name, other.name);
        return Err(CliError::Usage(what));
    }
    let mut probes = Vec::new();
    for (at, stage) in stages.iter().enumerate() {
        let values = stage.weights.to_f64().map_err(TrainError::Tensor)?;
        let dims = stage.weights.shape();
        let weights = Matrix::from_row_slice(dims[0], dims[1], &values);
        let role = stage.role(&stages[..at]).unwrap_or(Role::Given);
        probes.push(Probe { name: stage.name.clone(), role, weights });
    }
    data.analyse(&given, first.weight_decay(), &probes)
}

/// The labels that the first stage trained on: drawn ones if it drew any.
fn given_labels(stage: &Path, data: &Data) -> Result<Vec<u32>, CliError> {
    let path = stage.join("noisy_labels.safetensors");
    if !path.is_file() {
        return Ok(data.truth.clone());
    }
    let (tensors, _) = safe::read(&path).map_err(TrainError::Tensor)?;
    let labels = |name: &str| {
        let labels = tensors.get(name).and_then(|t| t.view::<i32>().ok());
        labels.map(|labels| labels.iter().map(|&l| l as u32).collect::<Vec<_>>())
    };
    match (labels("given"), labels("true")) {
        (Some(given), Some(truth)) if truth == data.truth => Ok(given),
        _ => {
            let reason =
                "its true labels are not those of the features; were the features made anew since?".to_string();
            Err(TrainError::Weights { path, reason }.into())
        }
    }
}

fn in_words(analysis: &Analysis) -> String {
    let share = |x: Option<f64>| x.map_or("-".to_string(), percent);
    let mean = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.3}"));
    let both = |parts: Option<Parts>, show: &dyn Fn(Option<f64>) -> String| {
        format!("{} / {}", show(parts.and_then(|p| p.clean)), show(parts.and_then(|p| p.noisy)))
    };
    let mut text = format!(
        "{} training samples, {} classes, {} wrong labels; S0 = K N lambda = {:.4}\n\
         pairs of columns: samples with a right / a wrong given label\n\n\
         {:<10}{:>10}{:>21}{:>10}{:>17}{:>10}{:>21}{:>11}{:>9}\n{:<10}{:>10}{:>21}{:>10}{:>17}{:>10}{:>21}{:>11}{:>9}\n",
        analysis.samples,
        analysis.classes,
        percent(analysis.noise),
        analysis.ridge,
        "",
        "test",
        "train, true labels",
        "given",
        "p(true class)",
        "p(given)",
        "truth in teacher's 2",
        "H(second)",
        "closed",
        "",
        "top1",
        "top1",
        "top1",
        "mean",
        "mean",
        "share",
        "mean",
        "corr.",
    );
    for probe in &analysis.probes {
        let teacher = probe.teacher.as_ref();
        let entropy = teacher.map(|t| t.second_entropy.iter().sum::<f64>() / t.second_entropy.len() as f64);
        text += &format!(
            "{:<10}{:>10}{:>21}{:>10}{:>17}{:>10}{:>21}{:>11}{:>9.4}\n",
            probe.name,
            percent(probe.test_accuracy),
            both(Some(probe.train.accuracy), &share),
            percent(probe.train.accuracy_given),
            both(Some(probe.train.confidence), &mean),
            mean(probe.train.confidence_given),
            both(teacher.map(|t| t.truth_in_top2), &share),
            mean(entropy),
            probe.predicted_correlation,
        );
    }
    let spread = |s: averaging::Spread| format!("{:.3} ± {:.3} ({})", s.mean, s.std, s.count);
    let c = &analysis.correlations;
    let groups = analysis.clusters.iter().max().map_or(0, |&last| last + 1);
    let or_none = |s: Option<averaging::Spread>| s.map_or("-".to_string(), spread);
    text += &format!(
        "\ncorrelations: in a class {}, in a cluster {}, across {}; {groups} clusters\n",
        spread(c.within),
        or_none(c.in_cluster),
        or_none(c.across)
    );
    let some = |at: usize| format!("{:.3e} ({:.3})", analysis.spectrum[at], analysis.damping[at]);
    let last = analysis.spectrum.len() - 1;
    let places = [0, analysis.classes.min(last), last / 2, last].map(some);
    text + &format!("eigenvalues (share left by a round): {}", places.join(", "))
}
