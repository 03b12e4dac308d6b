//! The ranks of a run, each with an executor of its own, and what they came to together.

use crate::checkpoint::Snapshot;
use crate::device::Job;
use crate::engine::Engine;
use crate::error::TrainError;
use crate::executor::Executor;
use crate::exit::Exit;
use crate::feed::Rank;
use crate::journal::{Facts, Journal, known_bad};
use crate::saving::Saves;
use crate::session::Session;
use crate::signals::Signals;
use crate::snapshot;
use crate::trainer::{Lead, Position, Trainer};
use comm::progress::Phase;
use comm::{Communicator, Solo, Threads};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Training of one stage, from a checkpoint if there is one: what rank 0, or every thread of a process of several ranks, was given.
pub(crate) struct Ranks<'a> {
    pub session: &'a Session,
    pub signals: &'a Signals,
    pub resumed: Option<&'a Snapshot>,
}

pub(crate) type RankResult = Result<(Exit, Position, bool), TrainError>;

/// Where a run begins, as rank 0 tells the others.
#[derive(Default, Serialize, Deserialize)]
struct Start {
    /// Steps of the checkpoint; `None` without one.
    resumed_at: Option<u64>,
    position: Position,
    bad: BTreeSet<usize>,
}

impl Job for Ranks<'_> {
    type Output = Vec<RankResult>;

    fn run<E: Executor>(
        self,
        make: impl Fn(usize) -> Result<E, TrainError> + Sync,
    ) -> Result<Vec<RankResult>, TrainError> {
        let (this, make) = (&self, &make);
        if let Some(joined) = &this.session.options.joined {
            return Ok(vec![this.rank(make(0)?, Box::new(joined.comm()?), Some(this.signals))]);
        }
        let ranks = this.session.world();
        if ranks == 1 {
            return Ok(vec![this.rank(make(0)?, Box::new(Solo::default()), Some(this.signals))]);
        }
        Ok(std::thread::scope(|scope| {
            let spawn = |comm: Threads| {
                let rank = comm.rank();
                let signals = (rank == 0).then_some(this.signals);
                (rank, scope.spawn(move || this.rank(make(rank)?, Box::new(comm), signals)))
            };
            let threads: Vec<_> = Threads::world(ranks).into_iter().map(spawn).collect();
            let join = |(rank, thread): (usize, std::thread::ScopedJoinHandle<'_, RankResult>)| {
                thread.join().unwrap_or_else(|panic| Err(TrainError::Panic { rank, what: words_of(panic.as_ref()) }))
            };
            threads.into_iter().map(join).collect()
        }))
    }
}

/// What a panic said.
pub fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default().to_string()
}

impl Ranks<'_> {
    fn rank<E: Executor>(&self, mut executor: E, comm: Box<dyn Communicator>, signals: Option<&Signals>) -> RankResult {
        let session = self.session;
        let recipe = &session.recipe;
        let rank = Rank { rank: comm.rank(), world: comm.world_size() };
        let progress = session.options.joined.as_ref().map_or_else(Arc::default, |j| j.progress.clone());
        progress.enter(Phase::Resume);
        executor.join(comm.as_ref(), &recipe.ranks, session.options.joined.as_deref())?;
        let feed = session.feed(rank)?;
        let mut engine = session.engine(&feed, executor, comm)?;
        let start = self.start(&mut engine)?;
        std::fs::create_dir_all(session.run_dir.join("logs"))
            .map_err(|source| session.io("cannot create logs in", source))?;
        let log = session.run_dir.join("logs").join(format!("{}.jsonl", rank.rank));
        crate::metrics::cut(&log, start.resumed_at.unwrap_or(0))
            .map_err(|e| session.io("cannot shorten a log in", e))?;
        let lead = (rank.rank == 0).then(|| self.lead(&engine, start.resumed_at)).transpose()?;
        let (base_lr, _) = recipe.optimizer.base_lr(recipe.train.global_batch);
        engine.progress = progress.clone();
        let mut trainer = Trainer {
            recipe,
            recipe_text: &session.text,
            engine,
            feed,
            next: None,
            eval_set: &session.eval_set,
            slots: session.model.spec.slots.clone(),
            base_lr,
            position: start.position,
            bad: start.bad,
            unlisted: vec![],
            log: crate::metrics::MetricsLog::append_to(&log),
            signals,
            joined: session.options.joined.as_deref(),
            progress,
            saves: Saves::new(recipe.ranks.term_s, session.launcher()),
            waited_before: Duration::ZERO,
            warm: 0,
            lead,
        };
        let complete = trainer.position.epoch >= recipe.train.epochs;
        let exit = if complete { Exit::Done } else { trainer.run()? };
        let degraded = trainer.lead.as_ref().is_some_and(|l| l.journal.degraded);
        Ok((exit, trainer.position, degraded))
    }

    /// Puts every rank where the checkpoint of rank 0 is, or the beginning, with rank 0's states.
    fn start<E: Executor>(&self, engine: &mut Engine<E>) -> Result<Start, TrainError> {
        let mut start = Start { bad: known_bad(&self.session.run_dir), ..Start::default() };
        if let Some(snapshot) = self.resumed {
            snapshot::restore(engine, &snapshot.groups).map_err(TrainError::Setting)?;
            start.resumed_at = Some(snapshot.run.step);
            start.position = serde_json::from_value(snapshot.run.state.clone()).map_err(|e| {
                TrainError::Setting(format!("checkpoint state: {e}; resume from an older one with --resume"))
            })?;
        }
        if engine.comm().world_size() == 1 {
            return Ok(start);
        }
        let own = serde_json::to_vec(&start).map_err(|e| TrainError::Setting(format!("the state of a run: {e}")))?;
        let all = engine.comm().broadcast_varied(own, 0)?;
        let start = serde_json::from_slice(&all).map_err(|e| TrainError::Setting(format!("rank 0's state: {e}")))?;
        engine.share_states()?;
        Ok(start)
    }

    /// What rank 0 has besides. Errors: no room for two checkpoints.
    fn lead<E: Executor>(&self, engine: &Engine<E>, resumed_at: Option<u64>) -> Result<Lead, TrainError> {
        let session = self.session;
        let (recipe, world) = (&session.recipe, engine.comm().world_size());
        let facts = Facts {
            epochs: recipe.train.epochs,
            max_steps: recipe.train.max_steps.unwrap_or(u64::MAX),
            images_per_step: recipe.train.global_batch * session.model.spec.rows_per_unit(),
            world_size: world,
            log_every: recipe.output.log_every,
        };
        let mut journal = Journal::open(&session.run_dir, resumed_at, facts, session.options.verbosity);
        session.notes.iter().for_each(|note| journal.message(note));
        journal.message(&session.device_note(&engine.executor));
        match resumed_at {
            Some(step) => journal.message(&format!("resumed at step {step} from {}", session.run_dir.display())),
            None => journal.text("recipe", &session.text),
        }
        let checkpoints = session.checkpoints();
        let groups = snapshot::groups(engine, 0)?;
        checkpoints.check_space(groups.values().flat_map(|g| g.values()).map(|t| t.byte_len() as u64).sum())?;
        Ok(Lead { checkpoints, journal, run: session.run_state(world) })
    }
}

/// Rank 0's result, or the error that made the others fail.
pub(crate) fn first_cause(results: Vec<RankResult>) -> RankResult {
    let mut lost = None;
    let mut done = None;
    for result in results {
        match result {
            Err(TrainError::Comm(e)) => lost = lost.or(Some(TrainError::Comm(e))),
            Err(cause) => return Err(cause),
            Ok(value) => done = done.or(Some(value)),
        }
    }
    match (lost, done) {
        (Some(lost), _) => Err(lost),
        (None, Some(done)) => Ok(done),
        (None, None) => Err(TrainError::Setting("no rank ran".into())),
    }
}
