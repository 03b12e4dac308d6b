//! `retort export`.

use crate::edits::refuse_pickle;
use crate::error::CliError;
use crate::output::Terminal;
use clap::Args;
use std::path::PathBuf;
use train::Exit;

const EXAMPLES: &str = "\
Examples:
  retort export runs/quickstart --to resnet8.safetensors
  retort export runs/quickstart --ema --to resnet8-ema.safetensors";

/// A run's weights to safetensors with the published names
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExportArgs {
    /// The run folder
    run: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The moving average of the weights
    #[arg(long)]
    ema: bool,
}

pub(crate) fn run(args: &ExportArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    refuse_pickle(&args.to)?;
    terminal.print(train::export(&train::final_folder(&args.run), args.ema, &args.to)?)?;
    Ok(Exit::Done)
}
