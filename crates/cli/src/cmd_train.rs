//! `retort train`.

use crate::edits::Edits;
use crate::error::CliError;
use crate::launch::{self, LaunchArgs, Start};
use crate::output::Terminal;
use crate::summary;
use clap::Args;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use train::recipe_parse::Loaded;
use train::{Device, Exit, Joined, Resume, RunOptions, Session, Verbosity};

const EXAMPLES: &str = "\
Examples:
  retort train configs/quickstart.toml
  retort train recipe.toml --run runs/a --epochs 20 --set method.temperature=2
  retort train recipe.toml --ranks 4 --reproducible --micro-batch 32
  mpirun -n 8 --bind-to none retort train recipe.toml
  retort train recipe.toml --dry-run      all checks, the full recipe and the plan; no step

A run folder that holds a good checkpoint is gone on with. USR2 saves one and ends with 75, TERM
with 143, Ctrl-C with 130; a second TERM or Ctrl-C ends at once.";

/// Train; goes on by itself if the run folder has a good checkpoint
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TrainArgs {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Run folder [default: the recipe's output.folder, else runs/ and the name of the recipe]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// What computes: cpu, cuda or cuda:N [default: the first GPU that works, else the CPU]
    #[arg(long)]
    device: Option<Device>,
    /// Ranks, as threads of this process
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    ranks: usize,
    /// Threads of each rank [default: the cores, shared among the ranks]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    /// auto, never, or the checkpoint folder to go on from
    #[arg(long, value_name = "auto|never|DIR", default_value = "auto")]
    resume: ResumeArg,
    /// All checks, the full recipe and the plan, but no step
    #[arg(long)]
    dry_run: bool,
    /// No progress line
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Also the full recipe, with what the file did not set
    #[arg(short, long)]
    verbose: bool,
    /// The outcome as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    launch: LaunchArgs,
    #[command(flatten)]
    edits: Edits,
}

#[derive(Clone, Debug)]
struct ResumeArg(Resume);

impl FromStr for ResumeArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<ResumeArg, Infallible> {
        Ok(ResumeArg(match text {
            "auto" => Resume::Auto,
            "never" => Resume::Never,
            folder => Resume::From(folder.into()),
        }))
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n >= 1).ok_or_else(|| "expected a whole number of at least 1".to_string())
}

pub(crate) fn run(args: &TrainArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let parent = std::os::unix::process::parent_id();
    let place = args.launch.place()?;
    let loaded = args.edits.load(&args.recipe);
    if place.world_size == 1 {
        return train(args, terminal, loaded?, None);
    }
    if args.ranks > 1 {
        let what = format!("--ranks {} in one of {} processes: leave one of the two out", args.ranks, place.world_size);
        return Err(CliError::Usage(what));
    }
    let world_size = place.world_size;
    let loaded = loaded.and_then(|l| l.check_ranks(world_size).map(|()| l).map_err(CliError::from));
    let run_dir = args.run.clone().unwrap_or_else(|| match &loaded {
        Ok(loaded) => train::run_dir(loaded),
        Err(_) => Path::new("runs").join(args.recipe.file_stem().unwrap_or_default()),
    });
    let recipe = loaded.as_ref().map(Some);
    let (device, log) = (args.device, &terminal.log);
    let joined = launch::join(Start { place, run_dir: &run_dir, loaded: recipe, device, parent, log })?;
    if joined.rank > 0 {
        terminal.log.move_to_file(&run_dir, joined.rank);
    } else if !args.quiet {
        terminal.note(joined.table());
    }
    tracing::info!(rank = joined.rank, world_size = joined.world_size, device = %joined.device, "joined");
    Ok(launch::as_rank(&joined, || train(args, terminal, loaded?, Some(joined.clone()))))
}

fn train(args: &TrainArgs, terminal: &Terminal, loaded: Loaded, joined: Option<Arc<Joined>>) -> Result<Exit, CliError> {
    let leads = joined.as_ref().is_none_or(|j| j.rank == 0);
    if joined.is_none() {
        Device::choose(args.device, loaded.recipe.train.precision)?;
        loaded.check_ranks(args.ranks)?;
    }
    loaded.check_files()?;
    if args.verbose && leads {
        terminal.note(loaded.annotated());
    }
    let quiet = args.quiet || !leads;
    let options = RunOptions {
        run_dir: args.run.clone(),
        device: args.device,
        ranks: args.ranks,
        joined,
        threads: args.threads.unwrap_or(0),
        resume: args.resume.0.clone(),
        verbosity: if quiet { Verbosity::Quiet } else { Verbosity::Normal },
        ..RunOptions::default()
    };
    let session = Session::open(loaded, options)?;
    if args.dry_run {
        if leads {
            terminal.print(session.dry_run()?)?;
        }
        return Ok(Exit::Done);
    }
    if !quiet {
        terminal.note(opening(&session));
    }
    let outcome = session.train()?;
    if !leads {
        return Ok(outcome.exit);
    }
    if args.json {
        terminal.print(summary::as_json(&outcome))?;
    } else {
        terminal.print(summary::in_words(&outcome, &session.recipe))?;
    }
    if !args.quiet && !args.json {
        let header = std::fs::read_to_string(&args.recipe).unwrap_or_default();
        terminal.note(summary::next(&outcome, &args.recipe, &header));
    }
    Ok(outcome.exit)
}

fn opening(session: &Session) -> String {
    let recipe = &session.recipe;
    let method = serde_json::to_value(&recipe.method).unwrap_or_default();
    let stages: Vec<&str> = recipe.stage.iter().map(|s| s.name.as_str()).collect();
    let what = match stages.is_empty() {
        true => format!("{} by {}", recipe.network.name, method["name"].as_str().unwrap_or_default()),
        false => format!("stages {}", stages.join(", ")),
    };
    format!("run: {what}, in {}; Ctrl-C stops and saves, the same command goes on", session.run_dir.display())
}
