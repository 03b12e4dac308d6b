//! `retort step`.

use crate::edits::{Edits, refuse_pickle};
use crate::error::CliError;
use crate::output::Terminal;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use train::{Compared, Device, Exit, NodeError, ReplayOptions, Wanted, WantedTensor, Warmup};

const EXAMPLES: &str = "\
Examples:
  retort step recipe.toml --describe
  retort step recipe.toml --weights w.safetensors --batch b.safetensors --out o.safetensors --precision f64
  retort step recipe.toml --weights w.safetensors --teacher t.safetensors --batch b.safetensors --out o.safetensors -n 3
  retort step recipe.toml --weights w.safetensors --batch b.safetensors --out o.safetensors --device cuda --against cpu

Files are safetensors with published PyTorch names and layouts (KCRS, NCHW): the student's plain, a method's modules under method.,
each teacher in a file of its own. The batch has `image` (normalised floats) or `image.<view>`, `label`, `index`, and what is drawn
as `draw.<name>`. The output has, of the first step, `loss`, `loss.<term>` (weighted), `term.<term>` (not weighted), `monitor.<name>`,
`logits` or `logits.<view>`, `teacher.logits`, and `grad.<parameter>` (before clipping, decay and momentum; in a later phase
`grad.<phase>.<parameter>`); `after.<parameter or buffer>` of the last step; with -n above 1 also `step0.loss`, `step1.loss`, … The
learning rate is that of step 0 of the epoch, without warm-up unless --warmup.";

/// Run training steps on weights and a batch from files, and write all that they compute
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StepArgs {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Print which tensors the recipe wants, with types and shapes
    #[arg(long)]
    describe: bool,
    /// With --describe: as JSON
    #[arg(long, requires = "describe")]
    json: bool,
    /// The student and the method's modules
    #[arg(long, value_name = "FILE", required_unless_present = "describe")]
    weights: Option<PathBuf>,
    /// A teacher; repeat it in the recipe's order
    #[arg(long, value_name = "FILE")]
    teacher: Vec<PathBuf>,
    /// Images, labels, draws
    #[arg(long, value_name = "FILE", required_unless_present = "describe")]
    batch: Option<PathBuf>,
    /// Where the results go
    #[arg(long, value_name = "FILE", required_unless_present = "describe")]
    out: Option<PathBuf>,
    /// Steps, all on the same batch
    #[arg(short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    steps: u64,
    /// Epoch, from 0, for the learning rate and for weights that follow the epoch
    #[arg(long, value_name = "E", default_value_t = 0)]
    epoch: usize,
    /// Scale the learning rate by the schedule's warm-up
    #[arg(long)]
    warmup: bool,
    /// What computes: cpu, cuda or cuda:N [default: the first GPU that works, else the CPU]
    #[arg(long)]
    device: Option<Device>,
    /// Also compare: cpu runs the first step on the GPU launch by launch, each beside the CPU's op on equal inputs, and names the
    /// first launch past its bound (exit code 1), else the worst; f64 runs all on the CPU in f64, and prints how far each result
    /// is from that
    #[arg(long, value_enum)]
    against: Option<Against>,
    #[command(flatten)]
    edits: Edits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    Cpu,
    F64,
}

pub(crate) fn run(args: &StepArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let loaded = args.edits.load(&args.recipe)?;
    let (Some(weights), Some(batch), Some(out), false) = (&args.weights, &args.batch, &args.out, args.describe) else {
        let wanted = train::describe(loaded)?;
        let text = if args.json { serde_json::to_string_pretty(&wanted).unwrap_or_default() } else { table(&wanted) };
        terminal.print(text.trim_end())?;
        return Ok(Exit::Done);
    };
    args.teacher.iter().chain([weights, batch]).try_for_each(|file| refuse_pickle(file))?;
    let options = ReplayOptions {
        weights: weights.clone(),
        teachers: args.teacher.clone(),
        batch: batch.clone(),
        out: out.clone(),
        device: args.device,
        steps: args.steps as usize,
        epoch: args.epoch,
        warmup: if args.warmup { Warmup::AsInRecipe } else { Warmup::Off },
    };
    let results = train::replay(loaded, &options)?;
    let scalars = results.iter().filter(|(name, _)| name.as_str() == "loss" || name.starts_with("loss."));
    for (name, value) in scalars {
        terminal.print(format!("{name:<24} {:.9}", value.to_f64().map_err(train::TrainError::from)?[0]))?;
    }
    match args.against {
        None => Ok(Exit::Done),
        Some(Against::Cpu) => node_by_node(args, &options, terminal),
        Some(Against::F64) => {
            let exact = args.edits.load_with(&args.recipe, &["train.precision=\"f64\"".to_string()])?;
            let exact = train::compute(exact, &ReplayOptions { device: Some(Device::Cpu), ..options })?;
            for (name, value) in &results {
                let (got, want) = (
                    value.to_f64().map_err(train::TrainError::from)?,
                    exact[name].to_f64().map_err(train::TrainError::from)?,
                );
                terminal.print(format!("{name:<48} {:.1e}", distance(&got, &want)))?;
            }
            Ok(Exit::Done)
        }
    }
}

/// The launches of the first step on the GPU beside the CPU's ops.
fn node_by_node(args: &StepArgs, options: &ReplayOptions, terminal: &Terminal) -> Result<Exit, CliError> {
    let Compared { launches, bound, past, worst } = train::against_cpu(args.edits.load(&args.recipe)?, options)?;
    let words = |e: &NodeError| format!("{} ({}), {}: error {:.2e}", e.path, e.op, e.output, e.error);
    match (past, worst) {
        (Some(past), _) => {
            terminal
                .print(format!("against cpu: launch {launches} is past its bound {bound:.0e}: {}", words(&past)))?;
            Ok(Exit::Differs)
        }
        (None, worst) => {
            let worst = worst.as_ref().map_or(String::new(), |w| format!("; the worst: {}", words(w)));
            terminal.print(format!("against cpu: {launches} launches, all within {bound:.0e}{worst}"))?;
            Ok(Exit::Done)
        }
    }
}

/// |a − b| / |b| over all elements, |a| where b is zero.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let (gap, size) = (norm(&mut a.iter().zip(b).map(|(a, b)| a - b)), norm(&mut b.iter().copied()));
    if size > 0.0 { gap / size } else { gap }
}

fn table(wanted: &Wanted) -> String {
    let mut text = String::from("n: units of the batch; m: those of the previous one\n");
    let mut part = |title: &str, tensors: &[WantedTensor]| {
        text += &format!("\n{title}\n");
        for t in tensors {
            let note = if t.note.is_empty() { String::new() } else { format!("  {}", t.note) };
            text += &format!("  {:<48} {:<6} [{}]{note}\n", t.name, t.dtype, t.shape.join(", "));
        }
    };
    part("--weights", &wanted.weights);
    wanted.teachers.iter().for_each(|t| part("--teacher", t));
    part("--batch", &wanted.batch);
    text
}
