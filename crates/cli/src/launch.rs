//! Who this process is among the ranks of its job, and how a rank of several starts and ends.

use crate::error::CliError;
use crate::exit_code;
use crate::logging::Log;
use clap::Args;
use comm::Choice;
use comm::Parent;
use comm::discover::{Environment, Explicit, Place, discover};
use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use train::recipe_parse::Loaded;
use train::{Device, Exit, Introduction, Joined};

/// What beats the launcher's environment.
#[derive(Debug, Args)]
#[command(next_help_heading = "Ranks as processes (mpirun, srun and torchrun say these by themselves)")]
pub(crate) struct LaunchArgs {
    /// Whose variables to believe: auto, torchrun, mpi, pmi, pmix, slurm or none
    #[arg(long, value_name = "NAME", default_value = Choice::Auto.word())]
    launcher: Choice,
    /// Number of this rank, from 0
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Number of ranks; 1 means this process alone
    #[arg(long, value_name = "N")]
    world_size: Option<usize>,
    /// Place among the ranks of this host: the GPU that it takes
    #[arg(long, value_name = "N")]
    local_rank: Option<usize>,
    /// Where the ranks meet: host:port of rank 0 (with RETORT_JOB_SECRET_FILE), or a file on a shared disk [default: through MPI;
    /// else, with RETORT_JOB_SECRET_FILE, a port of the first host of the node list or of MASTER_ADDR; else a file in the run folder]
    #[arg(long, value_name = "PLACE")]
    rendezvous: Option<String>,
}

impl LaunchArgs {
    /// This process's place. Errors: the launcher's variables are no job.
    pub(crate) fn place(&self) -> Result<Place, CliError> {
        let explicit = Explicit {
            rank: self.rank,
            world_size: self.world_size,
            local_rank: self.local_rank,
            rendezvous: self.rendezvous.clone(),
            launcher: self.launcher,
            terminal: std::io::stdin().is_terminal(),
        };
        let pmix = || comm::pmix::ask().ok();
        discover(&Environment::of_process(), &explicit, &pmix).map_err(|e| CliError::Ranks {
            exit: Exit::of_code(e.code()),
            text: e.to_string(),
            said: false,
        })
    }
}

/// What a rank of several knows before it meets the others.
pub(crate) struct Start<'a> {
    pub place: Place,
    pub run_dir: &'a Path,
    /// The recipe, if the command has one, or why it cannot be read.
    pub loaded: Result<Option<&'a Loaded>, &'a CliError>,
    pub device: Option<Device>,
    pub parent: u32,
    pub log: &'a Log,
}

/// Meets the other ranks.
pub(crate) fn join(start: Start<'_>) -> Result<Arc<Joined>, CliError> {
    let Start { place, run_dir, loaded, device, parent, log } = start;
    let launched = place.has_parent();
    let introduction = Introduction {
        place,
        run_dir,
        recipe: loaded.map(|l| l.map(|l| &l.recipe)).map_err(|e| (exit_code::of(e).code(), e.to_string())),
        device,
        parent: if launched { Parent::Launched { ppid: parent } } else { Parent::ByHand },
        log_tail: Some(log.tail.clone()),
    };
    let joined = Joined::join(introduction);
    joined.map(Arc::new).map_err(|e| CliError::Ranks { exit: Exit::of_code(e.code), text: e.text, said: e.said })
}

/// Does the work of a rank, and ends it with the others: an error or a panic of one ends all.
pub(crate) fn as_rank(joined: &Joined, work: impl FnOnce() -> Result<Exit, CliError>) -> Exit {
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let error = match outcome {
        Ok(Ok(exit)) => {
            joined.finish(exit);
            return exit;
        }
        Ok(Err(error)) => error,
        Err(panic) => {
            joined.failed(Exit::Internal.code(), &format!("a bug: it panicked: {}", train::words_of(panic.as_ref())))
        }
    };
    let (exit, text) = (exit_code::of(&error), error.to_string());
    match (exit, &error) {
        // Whoever read this rank's output has what they wanted.
        (Exit::Done, _) => {
            joined.finish(exit);
            exit
        }
        (Exit::PeerLost, _) => joined.lost(),
        (_, CliError::Train(e)) if e.is_everyones() => joined.agreed(e.culprit(), exit.code(), &text),
        _ => joined.failed(exit.code(), &text),
    }
}
