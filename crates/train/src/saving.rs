//! Checkpoints of a run, and whether there is time for one before a launcher kills.

use crate::checkpoint::Snapshot;
use crate::error::TrainError;
use crate::executor::Executor;
use crate::exit::Exit;
use crate::manifest::RunState;
use crate::snapshot;
use crate::trainer::Trainer;
use comm::Launcher;
use comm::progress::Phase;
use std::time::{Duration, Instant};

/// What ranks take to leave once a checkpoint is saved.
const LEAVING_S: f64 = 0.5;
/// For TERM, once it was announced.
const LONGEST_WAIT_S: f64 = 30.0;

/// How saving went in this process.
pub(crate) struct Saves {
    /// Seconds of the last one; 0 before.
    took_s: f64,
    /// Seconds from TERM to KILL, if that will come.
    kill_s: Option<f64>,
    /// Step of the last good one.
    at: Option<u64>,
}

impl Saves {
    /// None yet. From TERM to KILL it is `term_s` of the recipe, or else what the launcher takes.
    pub(crate) fn new(term_s: f64, launcher: Launcher) -> Self {
        let launcher_s = launcher.term_to_kill().map(|kill| kill.as_secs_f64());
        Self { took_s: 0.0, kill_s: if term_s > 0.0 { Some(term_s) } else { launcher_s }, at: None }
    }

    /// Seconds that one may take after TERM, if there is a limit: leaving takes time too.
    fn time_s(&self) -> Option<f64> {
        self.kill_s.map(|s| (s - LEAVING_S).max(0.0))
    }

    /// Whether this step is to be saved yet, and one that takes as long as the last has no time after TERM.
    pub(crate) fn too_long_at(&self, step: u64) -> bool {
        self.at != Some(step) && self.time_s().is_some_and(|time| self.took_s > time)
    }
}

impl<E: Executor> Trainer<'_, E> {
    /// A checkpoint that the recipe asks for, in the log before it is made: so a resumed log has it, and once.
    pub(crate) fn scheduled_save(&mut self) -> Result<bool, TrainError> {
        if let Some(lead) = &mut self.lead {
            lead.journal.saving(&self.position);
        }
        self.save()
    }

    /// A checkpoint at this step. One that fails is a warning; the old ones stand.
    pub(crate) fn save(&mut self) -> Result<bool, TrainError> {
        let Some(lead) = &mut self.lead else { return Ok(true) };
        let step = self.position.global_step;
        self.progress.enter(Phase::Checkpoint);
        tracing::info!(step, "saves");
        let begin = Instant::now();
        let groups = snapshot::groups(&self.engine, self.position.forwards)?;
        let run = RunState {
            step,
            epoch: self.position.epoch as u64,
            position: (self.position.step * self.recipe.train.global_batch) as u64,
            recipe: self.recipe_text.to_string(),
            score: self.position.last.filter(|_| self.position.step == 0).map(|s| s.top1),
            state: serde_json::to_value(&self.position).unwrap_or_default(),
            ..lead.run.clone()
        };
        lead.journal.sync();
        let saved = lead.checkpoints.save(&Snapshot { run, groups });
        self.saves.took_s = begin.elapsed().as_secs_f64();
        match saved {
            Ok(report) => {
                self.saves.at = Some(step);
                lead.journal.saved(&report);
                Ok(true)
            }
            Err(why) => {
                lead.journal.save_failed(&self.position, &why.to_string());
                Ok(false)
            }
        }
    }

    /// TERM was announced: a checkpoint, and no step before TERM comes, or should have. It comes as long after its announcement as
    /// KILL after it.
    pub(crate) fn save_before_term(&mut self) -> Result<(), TrainError> {
        self.save()?;
        self.progress.enter(Phase::Checkpoint); // whose limit is long, on all ranks
        if let (Some(signals), Some(kill_s)) = (self.signals, self.saves.kill_s) {
            signals.wait_for_stop(Duration::from_secs_f64(kill_s.min(LONGEST_WAIT_S)));
        }
        Ok(())
    }

    /// Ends without a checkpoint of this step: the last good one stands.
    pub(crate) fn stop_now(&mut self) -> Result<Exit, TrainError> {
        if let Some(lead) = &mut self.lead {
            let (took, time) = (self.saves.took_s, self.saves.time_s().unwrap_or_default());
            lead.journal.message(&format!(
                "stopped by TERM without saving: the last checkpoint took {took:.1} s, and {time:.1} s are left before the launcher \
                 kills; where it waits longer, say so by ranks.term_s"
            ));
            lead.journal.finish();
        }
        Ok(Exit::Terminated)
    }

    /// The end of the run or of this part of it, with a checkpoint unless there is one of this step.
    pub(crate) fn save_and(&mut self, exit: Exit) -> Result<Exit, TrainError> {
        let saved = self.saves.at == Some(self.position.global_step) || self.save()?;
        if let Some(lead) = &mut self.lead {
            lead.journal.finish();
            lead.journal.report(self.recipe_text);
            if !saved {
                let newest = lead.checkpoints.load_newest().ok().and_then(|l| l.snapshot).map(|s| s.run.step);
                let newest = newest.map_or("none".to_string(), |s| format!("step-{s}"));
                return Err(TrainError::FinalSave(lead.journal.last_failure(), newest));
            }
        }
        Ok(exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_after_term_has_the_time_that_the_launcher_leaves() {
        let time = |term_s, launcher| Saves::new(term_s, launcher).time_s();
        assert_eq!((time(0.0, Launcher::OpenMpi), time(0.0, Launcher::Flux)), (Some(0.5), Some(1.5)));
        assert_eq!((time(0.0, Launcher::Slurm), time(0.0, Launcher::Torchrun)), (Some(29.5), Some(29.5)));
        assert_eq!((time(0.0, Launcher::Own), time(0.0, Launcher::None)), (None, None));
        assert_eq!((time(16.0, Launcher::OpenMpi), time(0.1, Launcher::Own)), (Some(15.5), Some(0.0)));
    }
}
