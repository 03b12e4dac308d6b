//! `retort predict`.

use crate::edits::refuse_pickle;
use crate::error::CliError;
use crate::output::{Terminal, percent};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use train::{Device, Exit, Prediction, Predictor, Weights};

const EXAMPLES: &str = "\
Examples:
  retort predict --run runs/quickstart shirt.png
  retort predict --weights resnet18.safetensors --topk 5 --json photos/";

/// Images that are predicted at a time.
const CHUNK: usize = 64;

/// Classes of image files
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PredictArgs {
    /// JPEG and PNG files, or folders that are searched for them
    #[arg(required = true, value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    /// The run folder
    #[arg(long, value_name = "DIR", required_unless_present = "weights", conflicts_with = "weights")]
    run: Option<PathBuf>,
    /// safetensors that `retort export` or `import` wrote
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Most likely classes to show
    #[arg(long, value_name = "K", default_value_t = 1)]
    topk: usize,
    /// What computes: cpu, cuda or cuda:N [default: the first GPU that works, else the CPU]
    #[arg(long)]
    device: Option<Device>,
    /// A JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &PredictArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let weights = match (&args.run, &args.weights) {
        (Some(run), _) => Weights::Run(train::final_folder(run)),
        (None, Some(file)) => {
            refuse_pickle(file)?;
            Weights::File(file.clone())
        }
        (None, None) => return Err(CliError::Usage("give --run DIR or --weights FILE".to_string())),
    };
    let mut images = Vec::new();
    for path in &args.images {
        collect(path, &mut images)?;
    }
    let mut predictor = Predictor::open(weights, args.device)?;
    for chunk in images.chunks(CHUNK) {
        for prediction in predictor.predict(chunk, args.topk.max(1))? {
            terminal.print(if args.json { as_json(&prediction) } else { in_words(&prediction) })?;
        }
    }
    Ok(Exit::Done)
}

/// A file as it is; of a folder all images in the order of their names.
fn collect(path: &Path, images: &mut Vec<PathBuf>) -> Result<(), CliError> {
    if !path.is_dir() {
        images.push(path.to_path_buf());
        return Ok(());
    }
    let fail = |source| CliError::Data(data::DataError::Io { path: path.to_path_buf(), source });
    let entries: Result<Vec<_>, _> = std::fs::read_dir(path).map_err(fail)?.collect();
    let mut entries: Vec<PathBuf> = entries.map_err(fail)?.into_iter().map(|e| e.path()).collect();
    entries.sort();
    for entry in entries {
        let suffix = entry.extension().unwrap_or_default().to_ascii_lowercase();
        if entry.is_dir() || ["jpg", "jpeg", "png"].iter().any(|s| suffix == *s) {
            collect(&entry, images)?;
        }
    }
    Ok(())
}

fn in_words(prediction: &Prediction) -> String {
    let classes = prediction.classes.iter().map(|(name, p)| format!("{name} {}", percent(f64::from(*p))));
    format!("{}: {}", prediction.path.display(), classes.collect::<Vec<_>>().join(", "))
}

fn as_json(prediction: &Prediction) -> String {
    let class = |(name, p): &(String, f32)| json!({"class": name, "probability": p});
    json!({"path": prediction.path, "classes": prediction.classes.iter().map(class).collect::<Vec<_>>()}).to_string()
}
