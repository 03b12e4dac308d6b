//! `retort plan`.

use crate::args::Edits;
use crate::error::CliError;
use crate::output::Terminal;
use clap::{Args, ValueEnum};
use plan::Fusion;
use std::path::PathBuf;
use train::{Exit, Footprint, PlanOptions};

const EXAMPLES: &str = "\
Examples:
  retort plan recipe.toml                    every launch with bytes, FLOPs and its place in memory
  retort plan recipe.toml --memory           what it adds up to
  retort plan recipe.toml --graph --fusion off --batch 2";

/// Print what a step launches, without a step
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PlanArgs {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// The graph after all passes as text
    #[arg(long, conflicts_with = "memory")]
    graph: bool,
    /// Only memory, traffic and launches by kind
    #[arg(long)]
    memory: bool,
    /// Which ops are fused
    #[arg(long, value_enum, default_value_t = FusionArg::Full)]
    fusion: FusionArg,
    /// Units that go through the network at once [default: the recipe's]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Side of the images [default: the set's]
    #[arg(long, value_name = "H")]
    image: Option<usize>,
    #[command(flatten)]
    edits: Edits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FusionArg {
    Off,
    Full,
}

pub(crate) fn run(args: &PlanArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let batch = |n| [format!("train.global_batch={n}"), format!("train.micro_batch={n}")];
    let more: Vec<String> = args.batch.map(batch).into_iter().flatten().collect();
    let loaded = args.edits.load_with(&args.recipe, &more)?;
    let fusion = match args.fusion {
        FusionArg::Off => Fusion::Off,
        FusionArg::Full => Fusion::Full,
    };
    // What a GPU would need is that of the recipe as it runs.
    let as_run = args.image.is_none() && args.fusion == FusionArg::Full;
    let footprint = (args.memory && as_run).then(|| train::footprint(&loaded)).and_then(Result::ok);
    let plan = train::plan_of(loaded, PlanOptions { fusion, image: args.image })?;
    let text = match (args.graph, args.memory) {
        (true, _) => plan.graph.to_string(),
        (false, true) => {
            let on_gpu = |f: Footprint| {
                format!(
                    "on a GPU: {:.1} MB with all copies and the evaluation, {} commands\n",
                    f.bytes as f64 / 1e6,
                    f.commands
                )
            };
            plan::summary(&plan) + &footprint.map(on_gpu).unwrap_or_default()
        }
        (false, false) => plan.to_string(),
    };
    terminal.print(text.trim_end())?;
    Ok(Exit::Done)
}
