//! `retort eval`.

use crate::edits::{Edits, refuse_pickle};
use crate::error::CliError;
use crate::output::{Terminal, percent};
use clap::Args;
use data::Split;
use serde_json::json;
use std::path::PathBuf;
use train::{Device, EvalOptions, Evaluation, Exit, Weights};

const EXAMPLES: &str = "\
Examples:
  retort eval runs/quickstart --per-class
  retort eval recipe.toml --weights resnet20.safetensors --split test --json";

/// Exact top-1 and top-5 of a run or of weights
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EvalArgs {
    /// A run folder, or a recipe together with --weights
    #[arg(value_name = "RUN|RECIPE")]
    from: PathBuf,
    /// safetensors with the published names [default: the run's newest good checkpoint]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// train, val or test [default: the recipe's eval.split]
    #[arg(long)]
    split: Option<Split>,
    /// The moving average of the run's weights
    #[arg(long)]
    ema: bool,
    /// What computes: cpu, cuda or cuda:N [default: the first GPU that works, else the CPU]
    #[arg(long)]
    device: Option<Device>,
    /// Also each class
    #[arg(long)]
    per_class: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    edits: Edits,
}

pub(crate) fn run(args: &EvalArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let is_run = args.from.is_dir();
    let from = train::final_folder(&args.from);
    let weights = match &args.weights {
        Some(file) => {
            refuse_pickle(file)?;
            Weights::File(file.clone())
        }
        None if is_run => Weights::Run(from.clone()),
        None => {
            let what = format!("{} is a recipe: give --weights FILE, or a run folder instead", args.from.display());
            return Err(CliError::Usage(what));
        }
    };
    let recipe = if is_run { from.join("recipe.toml") } else { from };
    let loaded = args.edits.load(&recipe)?;
    loaded.check_files()?;
    let split = match args.split {
        Some(split) => split,
        None => loaded.recipe.eval.split.parse()?,
    };
    let result = train::evaluate(loaded, &EvalOptions { weights, ema: args.ema, split, device: args.device })?;
    terminal.print(if args.json { as_json(&result, split, args.per_class) } else { in_words(&result, split) })?;
    if args.per_class && !args.json {
        for (class, correct, total) in &result.per_class {
            terminal.print(format!("{:>9} {correct:>6} of {total:>6}  {class}", percent(share(*correct, *total))))?;
        }
    }
    Ok(Exit::Done)
}

fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}

fn in_words(result: &Evaluation, split: Split) -> String {
    let Evaluation { samples, top1, top5, loss, .. } = result;
    let [first, five] = [*top1, *top5].map(|n| percent(share(n, *samples)));
    format!("{split}: top1 {first} ({top1} of {samples}), top5 {five} ({top5}), loss {loss:.4}")
}

fn as_json(result: &Evaluation, split: Split, per_class: bool) -> String {
    let mut object = json!({
        "split": split.to_string(),
        "samples": result.samples,
        "top1": share(result.top1, result.samples),
        "top5": share(result.top5, result.samples),
        "top1_count": result.top1,
        "top5_count": result.top5,
        "loss": result.loss,
    });
    if per_class {
        let class =
            |(name, correct, total): &(String, u64, u64)| json!({"class": name, "correct": correct, "total": total});
        object["classes"] = result.per_class.iter().map(class).collect();
    }
    object.to_string()
}
