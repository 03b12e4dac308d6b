//! The loop of one rank: epochs, steps, evaluations, checkpoints. Rank 0 alone writes.

use crate::checkpoint::Checkpoints;
use crate::engine::{Ahead, Engine, Micro, StepInputs, StepValues, cpu_time};
use crate::error::TrainError;
use crate::evaluate::{Evaluation, evaluate};
use crate::executor::Executor;
use crate::exit::Exit;
use crate::feed::{Feed, Set, StepBatches};
use crate::joined::Joined;
use crate::journal::Journal;
use crate::manifest::RunState;
use crate::metrics::{Kind, MetricsLog};
use crate::recipe::{OnNonfinite, Recipe};
use crate::saving::Saves;
use crate::schedule::Moment;
use crate::signals::{Request, Signals};
use crate::snapshot;
use comm::progress::{Phase, Progress, StepTimes};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps of a process before its pace counts.
const WARM_STEPS: u64 = 5;

/// Steps in a row that may be skipped as not finite.
const MAX_SKIPPED: u64 = 20;

/// Where a run is, and what it remembers besides tensors; stored in the manifest, equal on all ranks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub epoch: usize,
    /// Steps done of the epoch.
    pub step: usize,
    /// Steps done of the run.
    pub global_step: u64,
    /// Training micro-batches so far, over all ranks.
    pub forwards: u64,
    /// Sums over the steps of the epoch: loss, then each term (weighted), then each monitor.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub sums: Vec<f64>,
    /// Steps in `sums`: those that were not skipped.
    #[serde(default)]
    pub counted: usize,
    pub skipped: u64,
    pub last: Option<Score>,
    pub best: Option<Score>,
    /// First values of monitors that raise an alarm, and those that did.
    #[serde(default)]
    pub firsts: BTreeMap<String, f64>,
    #[serde(default)]
    pub alarmed: BTreeSet<String>,
}

/// An evaluation's result and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub epoch: usize,
    pub top1: f64,
    pub top5: f64,
    /// May be infinite or NaN, which JSON writes as null.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
}

fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn nulls_are_nan<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    Ok(Vec::<Option<f64>>::deserialize(from)?.into_iter().map(|x| x.unwrap_or(f64::NAN)).collect())
}

/// What the loop needs besides the engine.
///
/// Invariant: every rank calls the collectives of the loop in the same order, whatever it alone has met.
pub(crate) struct Trainer<'a, E: Executor> {
    pub recipe: &'a Recipe,
    pub recipe_text: &'a str,
    pub engine: Engine<E>,
    pub feed: Feed,
    /// The step after the one that runs, if it is known already.
    pub next: Option<StepBatches>,
    pub eval_set: &'a Set,
    pub slots: Vec<spec::SlotSpec>,
    pub base_lr: f64,
    pub position: Position,
    /// Samples that could not be read so far, by index, on any rank.
    pub bad: BTreeSet<usize>,
    /// Those that this rank has met and the others do not know of.
    pub unlisted: Vec<data::BadSample>,
    /// `logs/<rank>.jsonl`: what this rank itself saw.
    pub log: MetricsLog,
    /// Of one thread of each process.
    pub signals: Option<&'a Signals>,
    pub joined: Option<&'a Joined>,
    pub progress: Arc<Progress>,
    pub saves: Saves,
    /// Time that the epoch had waited for batches at the last step.
    pub waited_before: Duration,
    /// Steps of this process.
    pub warm: u64,
    /// Of rank 0.
    pub lead: Option<Lead>,
}

/// What only rank 0 has.
pub(crate) struct Lead {
    pub checkpoints: Checkpoints,
    pub journal: Journal,
    pub run: RunState,
}

/// A flag beside the requests of signals: a rank has bad samples to tell of.
const BAD_SAMPLES: u32 = 1 << 16;
/// A flag: rank 0 cannot save within the time that is left after TERM.
const NO_TIME: u32 = 1 << 17;
/// The next step's batches, read while this one runs.
struct Next<'a> {
    progress: &'a Progress,
    feed: &'a mut Feed,
    /// Its number in the epoch; `None` where the epoch, or the run, ends before it.
    step: Option<usize>,
    batches: &'a mut Option<StepBatches>,
}

impl Ahead for Next<'_> {
    fn micro(&mut self) -> Result<Option<&Micro>, TrainError> {
        if let (None, Some(step)) = (&self.batches, self.step) {
            let before = self.progress.look().phase;
            self.progress.enter(Phase::Load);
            *self.batches = Some(self.feed.step(step)?);
            self.progress.enter(before);
        }
        Ok(self.batches.as_ref().and_then(|b| b.micros.first()))
    }
}

impl<E: Executor> Trainer<'_, E> {
    /// Trains to the end, or to a signal.
    pub(crate) fn run(&mut self) -> Result<Exit, TrainError> {
        let steps = self.feed.deal.steps();
        let last_step = self.recipe.train.max_steps.unwrap_or(u64::MAX);
        let begin = Instant::now();
        let first = self.position.global_step;
        while self.position.epoch < self.recipe.train.epochs && self.position.global_step < last_step {
            self.feed.seek(self.position.epoch, self.position.step)?;
            self.next = None;
            while self.position.step < steps && self.position.global_step < last_step {
                match self.requested()? {
                    Request::Preempt => return self.save_and(Exit::Preempted),
                    Request::Interrupt => return self.save_and(Exit::Interrupted),
                    Request::Stop => return self.save_and(Exit::Terminated),
                    Request::StopNow => return self.stop_now(),
                    Request::Save => {
                        self.save_before_term()?;
                        continue;
                    }
                    Request::None | Request::Reopen => {}
                }
                let values = self.step(steps)?;
                self.compare_weights()?;
                let pace = (self.position.global_step - first) as f64 / begin.elapsed().as_secs_f64();
                self.record(&values, steps, pace);
                if let Some(every) = self.recipe.output.checkpoint_steps
                    && self.position.global_step.is_multiple_of(every)
                    && self.position.step < steps
                {
                    self.scheduled_save()?;
                }
            }
            if self.position.step == steps {
                self.end_epoch()?;
            }
        }
        self.save_and(Exit::Done)
    }

    /// The strongest request of any rank: a signal to one is enough.
    fn requested(&mut self) -> Result<Request, TrainError> {
        let own = self.signals.map_or(Request::None, Signals::take);
        if own == Request::Reopen {
            self.log.sink.reopen();
            self.lead.iter_mut().for_each(|lead| lead.journal.reopen());
        }
        let mut flags = own.bit();
        if !self.unlisted.is_empty() {
            flags |= BAD_SAMPLES;
        }
        if self.lead.is_some() && self.saves.too_long_at(self.position.global_step) {
            flags |= NO_TIME;
        }
        let all = self.engine.comm().all_reduce_or(flags)?;
        if all & BAD_SAMPLES != 0 {
            self.list_bad()?;
        }
        self.tell_warnings();
        match Request::strongest(all) {
            Request::Stop if all & NO_TIME != 0 => Ok(Request::StopNow),
            request => Ok(request),
        }
    }

    /// What the watch saw of slow ranks.
    fn tell_warnings(&mut self) {
        let (Some(joined), Some(lead)) = (self.joined, &mut self.lead) else { return };
        for warning in joined.warnings() {
            lead.journal.message(&warning);
            lead.journal.event(self.position.global_step, "straggler", &warning);
        }
    }

    /// Every so many steps: whether all ranks still hold the same states.
    fn compare_weights(&mut self) -> Result<(), TrainError> {
        let (every, step) = (self.recipe.ranks.check_every, self.position.global_step);
        if self.engine.comm().world_size() == 1 || every == 0 || !step.is_multiple_of(every) {
            return Ok(());
        }
        match self.engine.odd_ranks()? {
            ranks if ranks.is_empty() => Ok(()),
            ranks => Err(TrainError::Diverged { step, ranks }),
        }
    }

    fn moment(&self, steps: usize) -> Moment {
        let (epoch, step) = (self.position.epoch, self.position.step);
        Moment { epoch, step, steps_per_epoch: steps, epochs: self.recipe.train.epochs }
    }

    fn lr(&self, steps: usize) -> f64 {
        self.recipe.schedule.lr(self.base_lr, self.moment(steps))
    }

    fn step(&mut self, steps: usize) -> Result<StepValues, TrainError> {
        self.progress.enter(Phase::Load);
        let StepBatches { micros, all_units, bad } = match self.next.take() {
            Some(batches) => batches,
            None => self.feed.step(self.position.step)?,
        };
        self.unlisted.extend(bad);
        let waited = self.feed.waited(); // from the beginning of the epoch
        let data = waited.checked_sub(self.waited_before).unwrap_or(waited);
        self.waited_before = waited;
        if self.engine.comm().world_size() == 1 {
            self.list_bad()?;
        }
        let last = micros.iter().flat_map(|m| &m.inputs).find(|(name, _)| name == "index");
        let last = last.and_then(|(_, indices)| indices.view::<i32>().ok()?.last().copied());
        self.progress.step(self.position.global_step + 1, last.unwrap_or_default() as u64);
        let mut slots: HashMap<String, f64> =
            self.slots.iter().map(|s| (s.name.clone(), s.ramp.at(self.position.epoch))).collect();
        slots.insert("lr".to_string(), self.lr(steps));
        slots.insert("ema_decay".to_string(), self.recipe.train.ema_decay.unwrap_or(0.0));
        let inputs = StepInputs { micros: &micros, all_units: &all_units, slots: &slots };
        let (ready, cpu_then) = (Instant::now(), cpu_time());
        self.engine.first_wait = None;
        let after = self.position.step + 1;
        let more = after < steps && Some(self.position.global_step + 1) != self.recipe.train.max_steps;
        let step = more.then_some(after);
        let mut next = Next { progress: &self.progress, feed: &mut self.feed, step, batches: &mut self.next };
        let values = self.engine.step_ahead(&inputs, &mut next)?;
        if let Some((at, cpu)) = self.engine.first_wait {
            let (own, cpu) = (at.saturating_duration_since(ready), cpu.saturating_sub(cpu_then));
            // The first steps make what later ones find made.
            self.warm += 1;
            if self.warm > WARM_STEPS {
                self.progress.step_times(StepTimes { data, own, cpu, link: self.progress.arriving() });
            }
        }
        if let Some((path, op)) = values.nonfinite.clone() {
            self.position.skipped += 1;
            if self.recipe.train.on_nonfinite == OnNonfinite::Stop || self.position.skipped >= MAX_SKIPPED {
                self.position.skipped = 0;
                self.save()?;
                return Err(TrainError::NonFinite { step: self.position.global_step + 1, path, op });
            }
        } else {
            self.position.skipped = 0;
        }
        self.position.step += 1;
        self.position.global_step += 1;
        self.position.forwards += all_units.len() as u64;
        Ok(values)
    }

    /// Warns, once each, of monitors that fell below the share of their first value at which the method calls it lost.
    fn alarms(&mut self, values: &StepValues) {
        let monitors = self.engine.plan().phases.iter().flat_map(|p| &p.losses.monitors);
        let alarms: Vec<_> = monitors.filter_map(|m| Some((m.name.clone(), m.alarm?))).collect();
        for (name, share) in alarms {
            let Some(now) = values.monitors.iter().find(|m| m.0 == name).map(|m| m.1) else { continue };
            let first = *self.position.firsts.entry(name.clone()).or_insert(now);
            if now < share * first
                && self.position.alarmed.insert(name.clone())
                && let Some(lead) = &mut self.lead
            {
                let step = self.position.global_step;
                let what = format!("{name} is {now:.4}, below {share} of the {first:.4} it began with");
                lead.journal.message(&format!("warning: step {step}: {what}: the features have collapsed"));
                lead.journal.alarm(step, &name, now);
            }
        }
    }

    /// Tells all ranks of the bad samples that any has met, counts them against the limit and lists them, each once.
    fn list_bad(&mut self) -> Result<(), TrainError> {
        let mut bad = std::mem::take(&mut self.unlisted);
        if self.engine.comm().world_size() > 1 {
            let own = serde_json::to_vec(&bad).map_err(|e| TrainError::Setting(format!("bad samples: {e}")))?;
            bad.clear();
            for part in self.engine.comm().all_gather_varied(&own)? {
                let part: Vec<data::BadSample> =
                    serde_json::from_slice(&part).map_err(|e| TrainError::Setting(format!("bad samples: {e}")))?;
                bad.extend(part);
            }
        }
        bad.sort_by_key(|b| b.index);
        let new: Vec<_> = bad.iter().filter(|b| self.bad.insert(b.index)).collect();
        if let (Some(lead), false) = (&mut self.lead, new.is_empty()) {
            lead.journal.bad_samples(&new);
        }
        let (seen, max) = (self.feed.units, self.recipe.data.max_bad);
        match bad.first() {
            Some(first) if self.bad.len() as f64 > max * seen as f64 => {
                let first = format!("{} ({})", first.place, first.reason);
                Err(TrainError::TooManyBad { bad: self.bad.len(), seen, max, first })
            }
            _ => Ok(()),
        }
    }

    fn record(&mut self, values: &StepValues, steps: usize, pace: f64) {
        let row: Vec<f64> = std::iter::once(values.loss)
            .chain(values.terms.iter().map(|t| t.1))
            .chain(values.monitors.iter().filter(|m| m.0 != "top1").map(|m| m.1))
            .chain(values.monitors.iter().filter(|m| m.0 == "top1").map(|m| m.1)) // the journal reads the last one
            .collect();
        self.alarms(values);
        if values.nonfinite.is_none() {
            self.position.counted += 1;
            self.position.sums.resize(row.len(), 0.0);
            self.position.sums.iter_mut().zip(&row).for_each(|(s, v)| *s += v);
        }
        let before = Moment { step: self.position.step - 1, ..self.moment(steps) };
        let lr = self.recipe.schedule.lr(self.base_lr, before);
        let waited = self.feed.waited();
        if self.position.global_step.is_multiple_of(self.recipe.output.log_every.max(1)) {
            let fields = [
                ("epoch".to_string(), self.position.epoch.into()),
                ("loss".to_string(), values.loss.into()),
                ("data_wait_s".to_string(), waited.as_secs_f64().into()),
            ];
            self.log.write(self.position.global_step, Kind::Step, &fields.into_iter().collect());
        }
        if let Some(lead) = &mut self.lead {
            lead.journal.step(&self.position, values, crate::journal::Pace { lr, steps_per_s: pace, steps, waited });
        }
    }

    /// Evaluates where the recipe asks for it, closes the epoch in the log, and saves.
    fn end_epoch(&mut self) -> Result<(), TrainError> {
        let epoch = self.position.epoch;
        let last = epoch + 1 == self.recipe.train.epochs;
        if self.engine.comm().all_reduce_or(u32::from(!self.unlisted.is_empty()))? != 0 {
            self.list_bad()?;
        }
        if last || (epoch + 1).is_multiple_of(self.recipe.eval.every) {
            let evaluation = self.evaluate()?;
            let score =
                Score { epoch, top1: evaluation.accuracy(), top5: evaluation.accuracy5(), loss: evaluation.loss };
            self.position.last = Some(score);
            if self.position.best.is_none_or(|b| score.top1 > b.top1) {
                self.position.best = Some(score);
            }
            if let Some(lead) = &mut self.lead {
                lead.journal.evaluation(&self.position, &evaluation);
            }
        }
        if let Some(lead) = &mut self.lead {
            lead.journal.epoch(&self.position);
        }
        self.position.epoch += 1;
        self.position.step = 0;
        self.position.sums.clear();
        self.position.counted = 0;
        if !last && (epoch + 1).is_multiple_of(self.recipe.output.checkpoint_every.max(1)) {
            self.scheduled_save()?;
        }
        Ok(())
    }

    pub(crate) fn evaluate(&mut self) -> Result<Evaluation, TrainError> {
        self.progress.enter(Phase::Evaluate);
        tracing::info!(step = self.position.global_step, epoch = self.position.epoch, "evaluates");
        let ema = self.recipe.eval.ema;
        if ema {
            snapshot::swap_ema(&mut self.engine)?;
        }
        let result = evaluate(&mut self.engine, self.eval_set, self.recipe.eval.batch, self.recipe.data.workers);
        if ema {
            snapshot::swap_ema(&mut self.engine)?;
        }
        result
    }
}
