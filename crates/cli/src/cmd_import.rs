//! `retort import`.

use crate::edits::refuse_pickle;
use crate::error::CliError;
use crate::output::Terminal;
use clap::Args;
use std::path::PathBuf;
use train::Exit;

const CONVERT: &str = "\
Pickles (.pth, .pt, .bin) run code when they are opened, so this program never opens one. Convert where you trust it:

  import torch; from safetensors.torch import save_file
  state = torch.load(\"net.pth\", map_location=\"cpu\", weights_only=True)
  save_file({k: v.contiguous() for k, v in state.get(\"state_dict\", state).items()}, \"net.safetensors\")

Example:
  retort import --from net.safetensors --net resnet18 --to resnet18.safetensors";

/// Foreign weights to ours: names and shapes are checked and reported
#[derive(Debug, Args)]
#[command(after_help = CONVERT)]
pub(crate) struct ImportArgs {
    /// safetensors with the names of the published implementation
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The network that they are of
    #[arg(long, value_name = "NAME")]
    net: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

pub(crate) fn run(args: &ImportArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    refuse_pickle(&args.from)?;
    terminal.print(train::import(&args.from, &args.net, &args.to)?)?;
    Ok(Exit::Done)
}
