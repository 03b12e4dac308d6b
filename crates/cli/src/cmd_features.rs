//! `retort features`.

use crate::edits::{Edits, refuse_pickle};
use crate::error::CliError;
use crate::output::Terminal;
use clap::{Args, ValueEnum};
use data::Split;
use std::path::PathBuf;
use train::{Device, Exit, FeatureOptions, Resize, Weights};

const EXAMPLES: &str = "\
Examples:
  retort features runs/ce_resnet8 --out data/features
  retort features recipe.toml --weights resnet34.safetensors --resize exact --out data/features

A recipe trains on them with [data] set = \"features\", folder = \"data/features\", augment = \"none\" and
[network] name = \"linear\".";

/// Pooled features of a frozen network, as a data set
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct FeaturesArgs {
    /// A run folder, or a recipe together with --weights: network, images and normalisation
    #[arg(value_name = "RUN|RECIPE")]
    from: PathBuf,
    /// safetensors with the published names [default: the run's newest good checkpoint]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Folder for train.safetensors and test.safetensors; files of the same origin are used again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The split whose features are the training ones; val, held out by data.validation_per_class, has images that the
    /// network was not trained on
    #[arg(long, default_value = "train")]
    train_split: Split,
    /// How images are brought to size
    #[arg(long, value_enum, default_value_t = ResizeArg::Recipe)]
    resize: ResizeArg,
    /// What computes: cpu, cuda or cuda:N [default: the first GPU that works, else the CPU]
    #[arg(long)]
    device: Option<Device>,
    #[command(flatten)]
    edits: Edits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ResizeArg {
    /// As for the recipe's evaluation
    Recipe,
    /// All to data.size squared, aspect ratio not kept
    Exact,
}

pub(crate) fn run(args: &FeaturesArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let is_run = args.from.is_dir();
    let weights = match &args.weights {
        Some(file) => {
            refuse_pickle(file)?;
            Weights::File(file.clone())
        }
        None if is_run => Weights::Run(args.from.clone()),
        None => {
            let what = format!("{} is a recipe: give --weights FILE, or a run folder instead", args.from.display());
            return Err(CliError::Usage(what));
        }
    };
    let recipe = if is_run { args.from.join("recipe.toml") } else { args.from.clone() };
    let loaded = args.edits.load(&recipe)?;
    let resize = match args.resize {
        ResizeArg::Recipe => Resize::Recipe,
        ResizeArg::Exact => Resize::Exact,
    };
    let (out, train_split, device) = (args.out.clone(), args.train_split, args.device);
    let options = FeatureOptions { weights, out, train_split, resize, device };
    for file in train::extract_features(loaded, &options)? {
        let how = if file.reused { "there already, of the same weights and images: used again" } else { "written" };
        terminal.print(format!("{}: {} features of {} values, {how}", file.path.display(), file.samples, file.size))?;
    }
    Ok(Exit::Done)
}
