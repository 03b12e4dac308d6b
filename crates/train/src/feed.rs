//! The data of a run: sets, their division into steps, and the batches of an epoch from any step on.

use crate::engine::Micro;
use crate::error::TrainError;
use crate::inputs;
use crate::recipe::{BnPolicy, Recipe};
use data::{
    BatchSpec, ClassLists, Dataset, Deal, Epoch, EpochKey, LastBatch, Loader, NoisyLabels, OnBad, Prefetch, Split,
    Stats,
};
use spec::Spec;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// An open set and what normalises it.
pub(crate) struct Set {
    pub loader: Arc<Loader>,
    pub lists: Arc<ClassLists>,
    pub stats: Stats,
    /// What `data.noise` did to the labels.
    pub noise: Option<LabelNoise>,
}

/// Labels before the noise, and in words what became of them.
pub(crate) struct LabelNoise {
    pub truth: Arc<[u32]>,
    pub words: String,
}

/// Opens a split of the recipe's set. `draws` and `augment` only matter to training.
pub(crate) fn open_set(recipe: &Recipe, folder: &Path, split: Split, spec: BatchSpec) -> Result<Set, TrainError> {
    let d = &recipe.data;
    let holdout = data::Holdout { per_class: d.validation_per_class, seed: recipe.train.seed };
    let source =
        data::Source::open(&data::SourceSpec { set: d.set.clone(), folder: folder.to_path_buf(), split, holdout })?;
    let (mean, std) = (d.mean.clone().unwrap_or(source.stats.mean), d.std.clone().unwrap_or(source.stats.std));
    let (dataset, noise): (Arc<dyn Dataset>, _) = match d.noise.filter(|_| split == Split::Train) {
        Some(noise) => {
            let noisy = NoisyLabels::new(source.dataset, noise)?;
            let noise = LabelNoise { truth: noisy.truth(), words: noisy.describe() };
            (Arc::new(noisy), Some(noise))
        }
        None => (Arc::from(source.dataset), None),
    };
    let lists = Arc::new(ClassLists::of(dataset.as_ref()));
    let loader = Arc::new(Loader::new(dataset, spec)?);
    Ok(Set { loader, lists, stats: Stats { mean, std }, noise })
}

/// Batches for training.
pub(crate) fn train_spec(recipe: &Recipe, spec: &Spec) -> BatchSpec {
    BatchSpec {
        augment: inputs::train_augment(recipe),
        views: spec.views.iter().map(|v| v.augment).collect(),
        draws: spec.draws.clone(),
        on_bad: recipe.data.on_bad_sample,
        pad_units: 0,
    }
}

/// Batches for evaluation: one padded shape. A bad image counts as wrong.
pub(crate) fn eval_spec(recipe: &Recipe) -> BatchSpec {
    BatchSpec {
        augment: inputs::eval_augment(recipe),
        views: vec![],
        draws: vec![],
        on_bad: OnBad::Skip,
        pad_units: recipe.eval.batch,
    }
}

/// A rank's place among others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rank {
    pub rank: usize,
    pub world: usize,
}

/// A rank's part of a step.
pub(crate) struct StepBatches {
    pub micros: Vec<Micro>,
    /// Units of every micro-batch of the global batch, per role.
    pub all_units: Vec<[usize; 2]>,
    pub bad: Vec<data::BadSample>,
}

/// Waiting for data for longer than this is a stall.
const DATA_STALL: Duration = Duration::from_secs(30);

/// Has this rank's log say when it waits for one of these micro-batches. The watch counts the wait as lack of progress.
pub(crate) fn warned_of_stalls(micros: Prefetch, rank: Rank, what: String) -> Prefetch {
    micros.when_late(DATA_STALL, move |micro, waited| tracing::warn!("{}", stalled(rank, micro.number, &what, waited)))
}

fn stalled(Rank { rank, world }: Rank, micro: u32, what: &str, waited: Duration) -> String {
    let end = if world > 1 { "; all ranks wait for it, and ranks.hang_s ends the run with 77" } else { "" };
    format!(
        "rank {rank} waits for data since {} s: micro-batch {micro} of {what} is not read yet; look whether the disk is slow or \
         stuck, or use more data.workers{end}",
        waited.as_secs()
    )
}

/// Training batches, in the order of the run.
pub(crate) struct Feed {
    pub deal: Deal,
    pub units: usize,
    set: Arc<Set>,
    spec: Spec,
    seed: u64,
    stage: u8,
    rank: Rank,
    workers: usize,
    /// Where the images lie, for messages.
    folder: String,
    /// The epoch being read, its number, and the batches of this rank.
    epoch: Option<(usize, Arc<Epoch>, Prefetch)>,
    /// The epoch before: the previous batch of its first step lies there.
    last: Option<Arc<Epoch>>,
}

impl Feed {
    pub(crate) fn new(recipe: &Recipe, spec: &Spec, set: Arc<Set>, rank: Rank, stage: u8) -> Result<Feed, TrainError> {
        let t = &recipe.train;
        let units =
            Epoch::new(inputs::sampler(spec), set.lists.clone(), EpochKey { seed: t.seed, stage, epoch: 0 })?.units();
        let last = if recipe.data.keep_last { LastBatch::Keep } else { LastBatch::Drop };
        let micro = micro_batch(recipe, rank.world);
        let deal = Deal::new(units, t.global_batch.min(units.next_multiple_of(micro)), micro, last)?;
        let (seed, workers, spec) = (t.seed, recipe.data.workers, spec.clone());
        let folder = recipe.data.folder.display().to_string();
        Ok(Feed { deal, units, set, spec, seed, stage, rank, workers, folder, epoch: None, last: None })
    }

    /// Sizes of micro-batches that occur in the run, per role: the full one first.
    pub(crate) fn sizes(&self, micro: usize) -> ([usize; 2], Vec<[usize; 2]>) {
        let previous = usize::from(self.spec.previous);
        let full = [micro, previous * micro];
        let mut others: Vec<_> =
            self.kinds_of_steps().into_iter().flat_map(|(s, before)| self.all_units(s, before)).collect();
        others.retain(|u| *u != full);
        others.sort();
        others.dedup();
        (full, others)
    }

    /// A step of each kind with the one before it: only the last of an epoch, and the steps next to it, differ from the rest.
    fn kinds_of_steps(&self) -> [(usize, Option<usize>); 4] {
        let last = self.deal.steps() - 1;
        [(0, None), (0, Some(last)), (last, Some(last.saturating_sub(1))), (1.min(last), Some(0))]
    }

    /// Whether the ranks have the micro-batches that `train.bn` needs. Errors: with "sync" a rank would wait for batches that another
    /// has not; with "broadcast" rank 0 has none.
    pub(crate) fn check_norms(&self, recipe: &Recipe) -> Result<(), TrainError> {
        let (world, leaves) = (self.rank.world, self.deal.leaves());
        let own = |rank: usize| data::share(leaves, rank, world);
        if recipe.train.bn == BnPolicy::Broadcast && own(0).is_empty() {
            return Err(TrainError::Setting(format!(
                "train.bn = \"broadcast\": rank 0 of {world} has none of the {leaves} micro-batches of a step; use a smaller \
                 train.micro_batch, or fewer ranks"
            )));
        }
        if recipe.train.bn != BnPolicy::Sync {
            return Ok(());
        }
        for (step, before) in self.kinds_of_steps() {
            let all = self.all_units(step, before);
            // Whether each micro-batch of a rank sees the previous batch too.
            let of =
                |rank: usize| all.iter().enumerate().filter(move |(i, _)| own(rank).contains(i)).map(|(_, u)| u[1] > 0);
            if (1..world).all(|rank| of(rank).eq(of(0))) {
                continue;
            }
            let counts: Vec<_> = (0..world).map(|rank| of(rank).count().to_string()).collect();
            return Err(TrainError::Setting(format!(
                "train.bn = \"sync\": in step {step} of an epoch, of {} units, the ranks have {} micro-batches of {} units, expected as many \
                 on each, alike; set data.keep_last = false, or a train.micro_batch that deals every step out evenly",
                self.deal.step_units(step),
                counts.join(", "),
                micro_batch(recipe, world)
            )));
        }
        Ok(())
    }

    /// Units of each micro-batch of a step, per role; `before` is the previous step, in its own epoch.
    pub(crate) fn all_units(&self, step: usize, before: Option<usize>) -> Vec<[usize; 2]> {
        let micros = self.deal.deal(step, 0, 1);
        let shares = before.filter(|_| self.spec.previous).map(|b| self.previous_shares(b, micros.len()));
        let share = |i: usize| shares.as_ref().map_or(0, |s| s[i].1);
        micros.iter().enumerate().map(|(i, m)| [m.units as usize, share(i)]).collect()
    }

    /// The previous step's units, dealt to the micro-batches of this one: first slot and count.
    fn previous_shares(&self, before: usize, leaves: usize) -> Vec<(u32, usize)> {
        let units = self.deal.step_units(before);
        let first = self.deal.deal(before, 0, 1).first().map_or(0, |m| m.first_slot);
        let each = units.div_ceil(leaves);
        (0..leaves).map(|i| (first + (i * each).min(units) as u32, each.min(units.saturating_sub(i * each)))).collect()
    }

    /// Starts reading `epoch` at `step`.
    pub(crate) fn seek(&mut self, epoch: usize, step: usize) -> Result<(), TrainError> {
        let make = |epoch: usize| {
            let key = EpochKey { seed: self.seed, stage: self.stage, epoch: epoch as u32 };
            Epoch::new(inputs::sampler(&self.spec), self.set.lists.clone(), key).map(Arc::new)
        };
        self.last = if epoch > 0 { Some(make(epoch - 1)?) } else { None };
        let order = make(epoch)?;
        let micros =
            (step..self.deal.steps()).flat_map(|s| self.deal.deal(s, self.rank.rank, self.rank.world)).collect();
        let prefetch = Prefetch::new(self.set.loader.clone(), order.clone(), micros, self.workers, 2)?;
        let what = format!("epoch {} from {}", epoch + 1, self.folder);
        self.epoch = Some((epoch, order, warned_of_stalls(prefetch, self.rank, what)));
        Ok(())
    }

    /// This rank's part of a step.
    pub(crate) fn step(&mut self, step: usize) -> Result<StepBatches, TrainError> {
        let own = self.deal.deal(step, self.rank.rank, self.rank.world).len();
        let Some((epoch, order, prefetch)) = &mut self.epoch else {
            return Err(TrainError::Setting("no epoch is open".into()));
        };
        let batches = prefetch.take(own).collect::<Result<Vec<_>, _>>()?;
        let (epoch, order) = (*epoch, order.clone());
        let before = step.checked_sub(1).or_else(|| (epoch > 0).then(|| self.deal.steps() - 1));
        let all = self.all_units(step, before);
        let source = if step > 0 { Some(order) } else { self.last.clone() };
        let mut micros = Vec::with_capacity(own);
        for batch in &batches {
            let leaf = batch.micro.leaf as usize;
            let previous = match (before, &source) {
                (Some(before), Some(order)) if self.spec.previous && all[leaf][1] > 0 => {
                    let (first_slot, units) = self.previous_shares(before, all.len())[leaf];
                    let micro = data::Micro { first_slot, units: units as u32, ..batch.micro };
                    Some(self.set.loader.batch(order, &micro)?)
                }
                _ => None,
            };
            micros.push(inputs::micro(batch, previous.as_ref(), &self.spec)?);
        }
        Ok(StepBatches { micros, all_units: all, bad: batches.into_iter().flat_map(|b| b.bad).collect() })
    }

    /// Time spent waiting for batches of this epoch.
    pub(crate) fn waited(&self) -> Duration {
        self.epoch.as_ref().map_or(Duration::ZERO, |e| e.2.waited())
    }
}

/// Units of a micro-batch: the recipe's, else the rank's share.
pub(crate) fn micro_batch(recipe: &Recipe, world: usize) -> usize {
    recipe.train.micro_batch.unwrap_or(recipe.train.global_batch / world.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_told_with_rank_time_and_place() {
        let text = stalled(Rank { rank: 3, world: 8 }, 41, "epoch 2 from /data/set", DATA_STALL);
        assert!(text.starts_with("rank 3 waits for data since 30 s: micro-batch 41 of epoch 2 from /data/set is not"));
        assert!(text.ends_with("ranks.hang_s ends the run with 77"), "{text}");
        assert!(stalled(Rank { rank: 0, world: 1 }, 0, "x", 3 * DATA_STALL).ends_with("data.workers"));
    }
}
