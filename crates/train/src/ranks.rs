//! The ranks of a run, each with an executor of its own, and what they came to together.

use crate::checkpoint::Snapshot;
use crate::device::Job;
use crate::error::TrainError;
use crate::executor::Executor;
use crate::exit::Exit;
use crate::feed::Rank;
use crate::journal::{Facts, Journal, known_bad};
use crate::session::Session;
use crate::signals::Signals;
use crate::snapshot;
use crate::trainer::{Lead, Position, Trainer};
use comm::{Communicator, Solo, Threads};

/// Training of one stage, from a checkpoint if there is one.
pub(crate) struct Ranks<'a> {
    pub session: &'a Session,
    pub signals: &'a Signals,
    pub resumed: Option<&'a Snapshot>,
}

pub(crate) type RankResult = Result<(Exit, Position, bool), TrainError>;

impl Job for Ranks<'_> {
    type Output = Vec<RankResult>;

    fn run<E: Executor>(
        self,
        make: impl Fn(usize) -> Result<E, TrainError> + Sync,
    ) -> Result<Vec<RankResult>, TrainError> {
        let (this, make) = (&self, &make);
        let ranks = this.session.options.ranks.max(1);
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
                thread.join().unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    let what = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                    Err(TrainError::Panic { rank, what: what.unwrap_or_default() })
                })
            };
            threads.into_iter().map(join).collect()
        }))
    }
}

impl Ranks<'_> {
    fn rank<E: Executor>(&self, executor: E, comm: Box<dyn Communicator>, lead: Option<&Signals>) -> RankResult {
        let Ranks { session, resumed, .. } = *self;
        let recipe = &session.recipe;
        let rank = Rank { rank: comm.rank(), world: comm.world_size() };
        let feed = session.feed(rank)?;
        let mut engine = session.engine(&feed, executor, comm)?;
        let mut position = Position::default();
        if let Some(snapshot) = resumed {
            snapshot::restore(&mut engine, &snapshot.groups).map_err(TrainError::Setting)?;
            position = serde_json::from_value(snapshot.run.state.clone()).map_err(|e| {
                TrainError::Setting(format!("checkpoint state: {e}; resume from an older one with --resume"))
            })?;
        }
        let images = recipe.train.global_batch * session.model.spec.rows_per_unit();
        let facts = Facts {
            epochs: recipe.train.epochs,
            max_steps: recipe.train.max_steps.unwrap_or(u64::MAX),
            images_per_step: images,
            world_size: rank.world,
            log_every: recipe.output.log_every,
        };
        let lead = lead.map(|signals| {
            let mut journal =
                Journal::open(&session.run_dir, resumed.map(|r| r.run.step), facts, session.options.verbosity);
            session.notes.iter().for_each(|note| journal.message(note));
            journal.message(&session.device_note(&engine.executor));
            match resumed {
                Some(r) => {
                    journal.message(&format!("resumed at step {} from {}", r.run.step, session.run_dir.display()))
                }
                None => journal.text("recipe", &session.text),
            }
            Lead { checkpoints: session.checkpoints(), journal, signals, run: session.run_state(rank.world) }
        });
        let (base_lr, _) = recipe.optimizer.base_lr(recipe.train.global_batch);
        let log = session.run_dir.join("logs").join(format!("{}.jsonl", rank.rank));
        std::fs::create_dir_all(session.run_dir.join("logs"))
            .map_err(|source| session.io("cannot create logs in", source))?;
        crate::metrics::cut(&log, resumed.map_or(0, |r| r.run.step))
            .map_err(|e| session.io("cannot shorten a log in", e))?;
        let mut trainer = Trainer {
            recipe,
            recipe_text: &session.text,
            engine,
            feed,
            eval_set: &session.eval_set,
            slots: session.model.spec.slots.clone(),
            base_lr,
            position,
            bad: known_bad(&session.run_dir),
            log: crate::metrics::MetricsLog::append_to(&log),
            lead,
        };
        if let Some(lead) = &trainer.lead {
            let groups = snapshot::groups(&trainer.engine, 0)?;
            lead.checkpoints
                .check_space(groups.values().flat_map(|g| g.values()).map(|t| t.byte_len() as u64).sum())?;
        }
        let complete = trainer.position.epoch >= recipe.train.epochs;
        let exit = if complete { Exit::Done } else { trainer.run()? };
        let degraded = trainer.lead.as_ref().is_some_and(|l| l.journal.degraded);
        Ok((exit, trainer.position, degraded))
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
