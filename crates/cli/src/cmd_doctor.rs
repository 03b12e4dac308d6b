//! `retort doctor`.

use crate::edits::Edits;
use crate::error::CliError;
use crate::launch::{self, LaunchArgs, Start};
use crate::output::Terminal;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use train::doctor::{Asked, Finding, State, bandwidth, bindings, examine, skew};
use train::link::{Bandwidth, Latency, Link};
use train::{Device, Exit, Joined};

const EXAMPLES: &str = "\
Examples:
  retort doctor                              this machine
  retort doctor recipe.toml --run runs/a     also its data, memory and disk
  mpirun -n 8 --bind-to none retort doctor recipe.toml --all-ranks
  mpirun -n 8 --bind-to none retort doctor recipe.toml --all-ranks --bandwidth --link 450GB/s

A finding is ok, warn or fail; below the last two stands what to do. The last line counts them. Ends with 78 if anything fails, within
ten seconds once all ranks have met (ranks.rendezvous_s). Nothing is trained, and no file stays but logs of --all-ranks.

--bandwidth measures between GPUs NCCL, an all-reduce of all ranks and of neighbours, and holds them to ranks.link of the recipe. Otherwise
it measures the run's own collectives, and TCP from process to process; those are held to --link alone. 0.7 of the link is enough.";

/// For everything but the time until ranks have met, and the least that a measurement gets.
const WHOLE: Duration = Duration::from_secs(9);
const LEAST: Duration = Duration::from_secs(1);

/// Check this machine, the launcher and a recipe before a run; 10 s at most
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// The recipe, a TOML file
    recipe: Option<PathBuf>,
    /// Run folder [default: that of the recipe]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// What is to compute: cpu, cuda or cuda:N [default: the first GPU that works, else the CPU]
    #[arg(long)]
    device: Option<Device>,
    /// The findings as a JSON array
    #[arg(long)]
    json: bool,
    /// Under a launcher: all ranks meet and look; rank 0 prints
    #[arg(long)]
    all_ranks: bool,
    /// With --all-ranks: also measure how fast the ranks exchange data, in seconds
    #[arg(long, requires = "all_ranks")]
    bandwidth: bool,
    /// Bus bandwidth to expect of the link between ranks: 450GB/s, 400Gb/s [default: between GPUs ranks.link]
    #[arg(long, value_name = "RATE", requires = "bandwidth")]
    link: Option<Bandwidth>,
    /// Latency to expect of an all-reduce on that link
    #[arg(long, value_name = "TIME", requires = "link", default_value = "20us")]
    latency: Latency,
    #[command(flatten)]
    launch: LaunchArgs,
    #[command(flatten)]
    edits: Edits,
}

pub(crate) fn run(args: &DoctorArgs, terminal: &Terminal) -> Result<Exit, CliError> {
    let (parent, begin) = (std::os::unix::process::parent_id(), Instant::now());
    let place = args.launch.place();
    let recipe = args.recipe.as_ref().map(|path| args.edits.load(path));
    let run_dir = args.run.clone().or_else(|| match &recipe {
        Some(Ok(loaded)) => Some(train::run_dir(loaded)),
        Some(Err(_)) => Some(Path::new("runs").join(args.recipe.as_ref()?.file_stem().unwrap_or_default())),
        None => None,
    });
    let together = place.as_ref().ok().filter(|p| args.all_ranks && p.world_size > 1).cloned();
    if together.is_some() && run_dir.is_none() {
        let what = "--all-ranks: expected a recipe or --run DIR, a folder that all ranks share; add one";
        return Err(CliError::Usage(what.to_string()));
    }
    // Before the ranks meet: who cannot meet them has looked by then, and a launcher ends all as soon as one ends.
    let found = examine(Asked {
        place: place.map_err(|e| e.to_string()),
        recipe: recipe.as_ref().map(|r| r.as_ref().cloned().map_err(CliError::to_string)),
        run_dir: run_dir.clone(),
        device: args.device,
        all_ranks: args.all_ranks,
    });
    let left = WHOLE.saturating_sub(begin.elapsed()).max(LEAST);
    let (Some(place), Some(run_dir)) = (together, run_dir) else {
        let alone = Finding::of_error("bandwidth", State::Ok, "not measured: one rank exchanges data with nobody", "");
        let found = [found, if args.bandwidth { vec![alone] } else { vec![] }].concat();
        return report(args, terminal, &found);
    };
    let loaded = recipe.as_ref().map(Result::as_ref).transpose();
    let (device, log) = (args.device, &terminal.log);
    match launch::join(Start { place, run_dir: &run_dir, loaded, device, parent, log }) {
        Ok(joined) => Ok(launch::as_rank(&joined, || {
            let mut found =
                [vec![table(&joined)], bindings(&joined), train::doctor::together(&joined, &found)?].concat();
            found.extend(skew(&joined)?);
            if args.bandwidth {
                let link = args.link.map(|rate| Link { latency_s: args.latency.0, bytes_per_s: rate.0 });
                found.extend(bandwidth(&joined, link, loaded.ok().flatten().map(|l| &l.recipe), left)?);
            }
            if joined.rank == 0 { report(args, terminal, &found) } else { Ok(verdict(&found)) }
        })),
        Err(CliError::Ranks { said: true, .. }) => Ok(Exit::Preflight),
        Err(error) => {
            let remedy = "start all ranks by one command, of one build, with one recipe";
            let met = Finding::of_error("ranks", State::Fail, &error.to_string(), remedy);
            report(args, terminal, &[vec![met], found].concat())
        }
    }
}

/// Who met.
fn table(joined: &Joined) -> Finding {
    Finding::of_error("ranks", State::Ok, &joined.table().replace("; met by", ", met by"), "")
}

fn verdict(found: &[Finding]) -> Exit {
    if found.iter().any(|f| f.state == State::Fail) { Exit::Preflight } else { Exit::Done }
}

fn report(args: &DoctorArgs, terminal: &Terminal, found: &[Finding]) -> Result<Exit, CliError> {
    if args.json {
        terminal.print(serde_json::to_string_pretty(found).map_err(|e| CliError::Usage(e.to_string()))?)?;
    } else {
        terminal.print(in_words(found))?;
    }
    Ok(verdict(found))
}

/// A line a finding, its remedy below it, and the count of the worst.
fn in_words(found: &[Finding]) -> String {
    let width = found.iter().map(|f| f.area.len()).max().unwrap_or(0);
    let indent = " ".repeat("warn  ".len() + width + 2);
    let mut text = String::new();
    for Finding { area, state, found, remedy, measured, ranks } in found {
        let ranks = if ranks.is_empty() { String::new() } else { format!("{}: ", comm::name_ranks(ranks)) };
        let measured = measured.as_ref().map(|m| format!(" {m}")).unwrap_or_default();
        let found = format!("{ranks}{found}{measured}").replace('\n', &format!("\n{indent}"));
        text += &format!("{state:<4}  {area:<width$}  {found}\n");
        if *state != State::Ok {
            text += &format!("{indent}-> {}\n", remedy.replace('\n', &format!("\n{indent}   ")));
        }
    }
    let worst = found.iter().map(|f| f.state).max().unwrap_or(State::Ok);
    match worst {
        State::Ok => text + "ok",
        worst => text + &format!("{worst} ({})", found.iter().filter(|f| f.state == worst).count()),
    }
}
