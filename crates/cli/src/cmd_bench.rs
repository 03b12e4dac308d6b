//! `retort bench`.

use crate::edits::Edits;
use crate::error::CliError;
use crate::output::Terminal;
use clap::Args;
use std::path::PathBuf;
use train::{BenchOptions, Device, Exit, Profiling, TrainError};

const EXAMPLES: &str = "\
Examples:
  retort bench recipe.toml
  retort bench recipe.toml --device cuda --precision bf16 --batch 256 --json record.json
  retort bench recipe.toml --device cpu --steps 3 --windows 3 --profile

Images are made up and no data is read, if the recipe names a known set or says data.classes and data.size. A step is what training
does with a batch at hand: the copy to the device, every launch, the losses read back; the learning rate is 0. The bound is the sum over
launches of max(bytes / bandwidth, FLOPs / rate): bytes and FLOPs by the plan's count in the recipe's precision, bandwidth and rate
measured just before by a large copy and a large product of our own kernels. On the CPU bytes alone bound it, as its Winograd
convolutions do with fewer FLOPs than are counted, and bf16 is stored as f32. The record's schema is 1.";

/// Measure the speed of a recipe's training step
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// What computes: cpu, cuda or cuda:N [default: the first GPU that works, else the CPU]
    #[arg(long)]
    device: Option<Device>,
    /// Steps of a window [default: 50 on a GPU, 5 on the CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Windows, after a warm-up [default: 10 on a GPU, 5 on the CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    windows: Option<u32>,
    /// Units of a step, all at once through the network [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Also write the record as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also time every launch on its own, and print the costliest
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    edits: Edits,
}

pub(crate) fn run(args: &BenchArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let batch = |n| [format!("train.global_batch={n}"), format!("train.micro_batch={n}")];
    let more: Vec<String> = args.batch.map(batch).into_iter().flatten().collect();
    let loaded = args.edits.load_with(&args.recipe, &more)?;
    let options = BenchOptions {
        device: args.device,
        steps: args.steps.map(|n| n as usize),
        windows: args.windows.map(|n| n as usize),
        profiling: if args.profile { Profiling::On } else { Profiling::Off },
    };
    let record = train::bench(loaded, &options)?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&record).unwrap_or_default() + "\n";
        let fail = |source| TrainError::Io { action: "cannot write", path: path.clone(), source };
        std::fs::write(path, text).map_err(fail)?;
    }
    terminal.print(record)?;
    Ok(Exit::Done)
}
