//! `retort plan`.

use crate::edits::Edits;
use crate::error::CliError;
use crate::output::Terminal;
use clap::{Args, ValueEnum};
use plan::Fusion;
use std::path::PathBuf;
use train::link::{Bandwidth, Latency, Link};
use train::{Exit, Footprint, PlanOptions, ScalingOptions};

const EXAMPLES: &str = "\
Examples:
  retort plan recipe.toml                    every launch with bytes, FLOPs and its place in memory
  retort plan recipe.toml --memory           what it adds up to
  retort plan recipe.toml --graph --fusion off --batch 2
  retort plan recipe.toml --world-size 8 --link 450GB/s
                                             what data-parallel training would lose to all-reduces
  retort plan recipe.toml --world-size 32 --link 320GB/s --latency 50us --step-ms 32

With --world-size the global batch is divided among the ranks, as training does it; --step-ms is what `retort bench` measures at a rank's
batch (`--batch`); without it a step takes what an H100 takes at least. An all-reduce takes the latency plus 2 (n - 1) / n × bytes / link,
the bus bandwidth of large messages: 450GB/s among GPUs of one node with NVSwitch, 320GB/s over nodes with 8 NICs of 400 Gb/s each, 45GB/s
with one.";

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
    /// Predict the scaling to N ranks: bytes to reduce, buckets, what of their all-reduce is exposed
    #[arg(long, value_name = "N", requires = "link", conflicts_with_all = ["graph", "memory", "fusion", "batch", "image"],
          value_parser = clap::value_parser!(u32).range(2..))]
    world_size: Option<u32>,
    /// Bus bandwidth between ranks, as 450GB/s (bytes) or 400Gb/s (bits)
    #[arg(long, value_name = "RATE", requires = "world_size")]
    link: Option<Bandwidth>,
    /// Latency of an all-reduce; 20us in a node and 50us over nodes are usual
    #[arg(long, value_name = "TIME", requires = "world_size", default_value = "20us")]
    latency: Latency,
    /// A rank's step without communication in milliseconds, as `retort bench` measures it [default: an H100's bound]
    #[arg(long, value_name = "X", requires = "world_size")]
    step_ms: Option<f64>,
    #[command(flatten)]
    edits: Edits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FusionArg {
    Off,
    Full,
}

pub(crate) fn run(args: &PlanArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    if let (Some(world_size), Some(Bandwidth(bytes_per_s))) = (args.world_size, args.link) {
        let link = Link { latency_s: args.latency.0, bytes_per_s };
        let options = ScalingOptions { world_size: world_size as usize, link, step_ms: args.step_ms };
        return scaling(args, options, terminal);
    }
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
    let plan = train::plan_of(loaded, PlanOptions { fusion, image: args.image, bucket_bytes: None })?;
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

fn scaling(args: &PlanArgs, options: ScalingOptions, terminal: &Terminal) -> Result<Exit, CliError> {
    if let Some(ms) = options.step_ms.filter(|ms| !(*ms > 0.0 && ms.is_finite())) {
        let what = format!("--step-ms: expected milliseconds above 0, got {ms}; `retort bench` measures them");
        return Err(CliError::Usage(what));
    }
    terminal.print(train::scaling_of(args.edits.load(&args.recipe)?, options)?)?;
    Ok(Exit::Done)
}
