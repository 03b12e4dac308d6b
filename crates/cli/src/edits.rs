//! Flags that several commands share, and how they become edits of the recipe.

use crate::error::CliError;
use clap::Args;
use std::path::{Path, PathBuf};
use train::recipe::Recipe;
use train::recipe_parse::Loaded;

/// Edits of a recipe. Order: the file, then --set, then the flags.
#[derive(Debug, Args)]
#[command(next_help_heading = "Keys of the recipe")]
pub(crate) struct Edits {
    /// Set any key, for example optimizer.lr=0.1 or teacher.0.weights=F; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// data.folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// train.epochs
    #[arg(long, value_name = "N")]
    epochs: Option<String>,
    /// optimizer.lr; takes the place of lr_per_256 too
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr: Option<String>,
    /// train.global_batch, over all ranks
    #[arg(short = 'b', long, value_name = "N")]
    global_batch: Option<String>,
    /// train.micro_batch, what goes through the network at once
    #[arg(long, value_name = "N")]
    micro_batch: Option<String>,
    /// train.seed
    #[arg(long, value_name = "N")]
    seed: Option<String>,
    /// train.precision: f32, bf16, tf32 or f64
    #[arg(long, value_name = "NAME")]
    precision: Option<String>,
    /// train.reproducible = true: the same bits at any number of ranks
    #[arg(long)]
    reproducible: bool,
    /// train.max_steps
    #[arg(long, value_name = "N")]
    max_steps: Option<String>,
    /// train.init_weights
    #[arg(long, value_name = "FILE")]
    init_weights: Option<PathBuf>,
}

impl Edits {
    /// Reads a recipe with all edits.
    pub(crate) fn load(&self, recipe: &Path) -> Result<Loaded, CliError> {
        self.load_with(recipe, &[])
    }

    /// As `load`, then `more` edits.
    pub(crate) fn load_with(&self, recipe: &Path, more: &[String]) -> Result<Loaded, CliError> {
        let here = |path: &PathBuf| {
            let path = std::path::absolute(path).unwrap_or(path.clone());
            toml::Value::from(path.to_string_lossy().into_owned()).to_string()
        };
        let flags = [
            ("data.folder", self.data.as_ref().map(here)),
            ("train.epochs", self.epochs.clone()),
            ("optimizer.lr", self.lr.clone()),
            ("train.global_batch", self.global_batch.clone()),
            ("train.micro_batch", self.micro_batch.clone()),
            ("train.seed", self.seed.clone()),
            ("train.precision", self.precision.clone()),
            ("train.reproducible", self.reproducible.then(|| "true".to_string())),
            ("train.max_steps", self.max_steps.clone()),
            ("train.init_weights", self.init_weights.as_ref().map(here)),
        ];
        if let Some(weights) = &self.init_weights {
            refuse_pickle(weights)?;
        }
        let flags = flags.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        let sets: Vec<String> = self.sets.iter().cloned().chain(flags).chain(more.iter().cloned()).collect();
        let loaded = Recipe::load(recipe, &sets)?;
        for weights in loaded.recipe.teacher.iter().map(|t| &t.weights).chain(&loaded.recipe.train.init_weights) {
            refuse_pickle(weights)?;
        }
        Ok(loaded)
    }
}

/// Pickles run code when they are opened, so none ever is.
pub(crate) fn refuse_pickle(weights: &Path) -> Result<(), CliError> {
    let suffix = weights.extension().unwrap_or_default().to_ascii_lowercase();
    if ["pth", "pt", "bin", "pkl", "ckpt", "tar"].iter().any(|pickle| suffix == *pickle) {
        let what = format!("{}: pickle is never opened; see `retort import --help`", weights.display());
        return Err(CliError::Usage(what));
    }
    Ok(())
}
