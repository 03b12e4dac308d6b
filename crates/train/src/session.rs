//! A run from its recipe: checks, sets, models, ranks; training, and what it came to.

use crate::checkpoint::{Checkpoints, Retention, Snapshot};
use crate::device::{Device, Job, all_cores, cores, executor};
use crate::disk::OsDisk;
use crate::engine::{Engine, Sizes};
use crate::error::TrainError;
use crate::evaluate::{Evaluation, evaluate};
use crate::executor::Executor;
use crate::exit::Exit;
use crate::feed::{Feed, Rank, Set, eval_spec, micro_batch, open_set, train_spec};
use crate::inputs::set_input;
use crate::joined::Joined;
use crate::journal::Verbosity;
use crate::link::bucket_bytes;
use crate::manifest::RunState;
use crate::ranks::{Ranks, first_cause};
use crate::recipe::Recipe;
use crate::recipe_parse::Loaded;
use crate::signals::Signals;
use crate::snapshot;
use crate::stages;
use crate::starts::Starts;
use crate::step::{Compile, Model};
use crate::trainer::Score;
use crate::weights::load_module;
use comm::{Communicator, Launcher, Solo};
use data::{BatchSpec, OnBad, Split, sample_hash};
use methods::{Ce, MethodSpec};
use nets::NetworkSpec;
use plan::Storage;
use spec::{Precision, Setting};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// What a run folder that holds checkpoints already means.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Resume {
    /// Go on from the newest good one.
    #[default]
    Auto,
    /// An error: this run starts anew.
    Never,
    /// Go on from this one; later ones are set aside.
    From(PathBuf),
}

#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Default: the recipe's `output.folder`, else `runs/<name of the recipe>`.
    pub run_dir: Option<PathBuf>,
    /// Default: the first GPU that works, else the CPU.
    pub device: Option<Device>,
    /// Ranks as threads of this process; 0 means 1.
    pub ranks: usize,
    /// The other processes of the run, if this is one rank of several.
    pub joined: Option<Arc<Joined>>,
    /// Threads of each rank; 0 shares the cores among the ranks.
    pub threads: usize,
    pub resume: Resume,
    pub verbosity: Verbosity,
    /// Number of the stage: keys its draws.
    pub stage: u8,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub exit: Exit,
    pub steps: u64,
    pub last: Option<Score>,
    pub best: Option<Score>,
    pub seconds: f64,
    /// Something on the way could not be written.
    pub degraded: bool,
    pub run_dir: PathBuf,
}

/// A run that can start: everything that can be checked before the first step has been.
pub struct Session {
    pub recipe: Recipe,
    pub(crate) device: Device,
    pub(crate) text: String,
    /// The resolved recipe with what the file did not set marked.
    annotated: String,
    pub model: Model,
    pub compile: Compile,
    pub(crate) train_set: Arc<Set>,
    pub(crate) eval_set: Arc<Set>,
    pub run_dir: PathBuf,
    pub(crate) options: RunOptions,
    /// Facts to print before the run starts.
    pub notes: Vec<String>,
}

impl Session {
    pub fn open(loaded: Loaded, options: RunOptions) -> Result<Session, TrainError> {
        let annotated = loaded.annotated();
        let (device, ranks) = match &options.joined {
            Some(joined) => (joined.device, joined.world_size),
            None => (Device::choose(options.device, loaded.recipe.train.precision)?, options.ranks.max(1)),
        };
        loaded.check_ranks(ranks)?;
        let Loaded { recipe, text, path, .. } = loaded;
        let folder = recipe.data.folder.clone();
        let plain = BatchSpec {
            views: vec![],
            draws: vec![],
            augment: crate::inputs::train_augment(&recipe),
            on_bad: OnBad::Fail,
            pad_units: 0,
        };
        let probe = open_set(&recipe, &folder, Split::Train, plain)?;
        let (classes, image) = (probe.lists.classes(), probe.loader.image_shape());
        if let Some(expected) = recipe.data.classes.filter(|&expected| expected != classes) {
            let what = format!("data.classes: expected {expected} classes in {}, got {classes}", folder.display());
            return Err(TrainError::Setting(what));
        }
        let setting = Setting::new(classes, image, probe.lists.images(), recipe.train.epochs);
        let model = Model::new(&recipe, setting)?;
        let train_set = open_set(&recipe, &folder, Split::Train, train_spec(&recipe, &model.spec))?;
        let eval_split = if recipe.eval.split == "val" { Split::Val } else { Split::Test };
        let eval_set = open_set(&recipe, &folder, eval_split, eval_spec(&recipe))?;
        if eval_set.lists.classes() != model.setting.classes {
            return Err(TrainError::Setting(format!(
                "data: the {eval_split} split has {} classes, the training set {}; expected the same folders in both",
                eval_set.lists.classes(),
                model.setting.classes
            )));
        }
        let train_input = set_input(&crate::inputs::train_augment(&recipe), &train_set, &train_set.stats);
        let eval_input = set_input(&crate::inputs::eval_augment(&recipe), &eval_set, &train_set.stats);
        let mut compile = Compile::new(&recipe, train_input, eval_input).over(ranks);
        if let (Some(link), true) = (recipe.ranks.link(), ranks > 1) {
            compile.options.bucket_bytes = bucket_bytes(link.latency_s, link.bytes_per_s, ranks);
        }
        let run_dir = options.run_dir.clone().unwrap_or_else(|| default_run_dir(&recipe, &path));
        let (train_set, eval_set) = (Arc::new(train_set), Arc::new(eval_set));
        if let Some(joined) = &options.joined {
            let named = train_set.clone();
            joined.name_samples(Box::new(move |i| named.loader.dataset().place(i as usize)));
        }
        let notes = vec![];
        let mut session =
            Session { recipe, device, text, annotated, model, compile, train_set, eval_set, run_dir, options, notes };
        session.notes = session.describe(ranks)?;
        Ok(session)
    }

    fn describe(&self, ranks: usize) -> Result<Vec<String>, TrainError> {
        let (train, test) = (&self.train_set, &self.eval_set);
        let feed = self.feed(Rank { rank: 0, world: ranks })?;
        feed.check_norms(&self.recipe)?;
        let [h, w, c] = self.model.setting.image;
        let rule = self.recipe.lr_rule();
        let mut notes = vec![
            format!(
                "data: {} training and {} {} images of {h}x{w}x{c}, {} classes, sample hash {:016x}",
                train.lists.images(),
                test.lists.images(),
                self.recipe.eval.split,
                self.model.setting.classes,
                sample_hash(train.loader.dataset().as_ref())
            ),
            format!(
                "steps: {} a epoch of {} units in batches of {} (micro-batches of {}), {} epochs; {rule}",
                feed.deal.steps(),
                feed.units,
                self.recipe.train.global_batch,
                micro_batch(&self.recipe, ranks),
                self.recipe.train.epochs
            )
            .replace("a epoch", "an epoch"),
        ];
        notes.extend(train.noise.iter().map(|noise| noise.words.clone()));
        Ok(notes)
    }

    /// What computes, as its executor describes itself.
    pub(crate) fn device_note(&self, executor: &impl Executor) -> String {
        let on_cpu = executor.storage() != Storage::Device;
        let tf32 = on_cpu && self.recipe.train.precision == Precision::Tf32;
        let tf32 = if tf32 { ", tf32 computed as f32" } else { "" };
        let ranks = self.world();
        let ranks = if ranks > 1 { format!("; the like for each of {ranks} ranks") } else { String::new() };
        format!("device: {}{tf32}{ranks}", executor.describe())
    }

    /// Ranks of the run.
    pub fn world(&self) -> usize {
        self.options.joined.as_ref().map_or(self.options.ranks.max(1), |j| j.world_size)
    }

    /// Whether this process writes: rank 0 is here.
    pub fn leads(&self) -> bool {
        self.options.joined.as_ref().is_none_or(|j| j.rank == 0)
    }

    /// Waits for all processes of the run.
    pub(crate) fn meet(&self) -> Result<(), TrainError> {
        if let Some(joined) = &self.options.joined {
            joined.comm()?.barrier()?;
        }
        Ok(())
    }

    pub(crate) fn threads(&self) -> usize {
        // A launcher that binds ranks to cores leaves each its own.
        let sharing = match &self.options.joined {
            Some(_) if cores() < all_cores() => 1,
            Some(joined) => joined.local_size(),
            None => self.options.ranks.max(1),
        };
        let share = (cores() / sharing).max(1);
        if self.options.threads > 0 { self.options.threads } else { share }
    }

    pub(crate) fn feed(&self, rank: Rank) -> Result<Feed, TrainError> {
        Feed::new(&self.recipe, &self.model.spec, self.train_set.clone(), rank, self.options.stage)
    }

    /// What a rank computes with: all plans, and the states as the run begins.
    pub(crate) fn engine<E: Executor>(
        &self,
        feed: &Feed,
        executor: E,
        comm: Box<dyn Communicator>,
    ) -> Result<Engine<E>, TrainError> {
        let (full, others) = feed.sizes(micro_batch(&self.recipe, comm.world_size()));
        let sizes = Sizes {
            full,
            others,
            leaves: feed.deal.leaves(),
            eval_batch: self.recipe.eval.batch,
            reproducible: self.recipe.train.reproducible,
        };
        let mut engine = Engine::new(&self.model, &self.compile, &sizes, executor, comm)?;
        engine.initialise(self.recipe.train.seed)?;
        if let Some(path) = &self.recipe.train.init_weights {
            load_module(&mut engine.executor, &engine.states, "student.", path)?;
        }
        for (i, teacher) in self.recipe.teacher.iter().enumerate() {
            let module = format!("{}.", spec::teacher_module(i));
            load_module(&mut engine.executor, &engine.states, &module, &teacher.weights)?;
        }
        engine.loaded()?;
        Ok(engine)
    }

    /// Units of a full micro-batch, per role.
    pub(crate) fn full_units(&self) -> Result<[usize; 2], TrainError> {
        let ranks = self.world();
        let feed = self.feed(Rank { rank: 0, world: ranks })?;
        Ok(feed.sizes(micro_batch(&self.recipe, ranks)).0)
    }

    /// The plan of a full step, as `--dry-run` prints it.
    pub fn plan(&self) -> Result<plan::Plan, TrainError> {
        let compile = self.compile.on(self.device.storage(self.recipe.train.precision));
        compile.training(&self.model, self.full_units()?, &mut plan::StateTable::default(), None)
    }

    /// All checks and the plan's summary, without a step.
    pub fn dry_run(&self) -> Result<String, TrainError> {
        let device = self.on_executor(Described(self))?;
        let (recipe, notes) = (self.annotated.trim_end(), self.notes.join("\n"));
        Ok(format!("{recipe}\n\n{notes}\n{device}\n{}", plan::summary(&self.plan()?)))
    }

    /// Runs a job on the executors of this session.
    fn on_executor<J: Job>(&self, job: J) -> Result<J::Output, TrainError> {
        executor(self.device, self.recipe.train.precision, self.threads(), job)
    }

    /// Exact counts on a split of the weights in `start`.
    pub(crate) fn evaluate(&self, split: Split, start: Start<'_>) -> Result<Evaluation, TrainError> {
        self.on_executor(Evaluate { session: self, split, start })
    }

    /// Holds each teacher to the accuracy that the recipe expects of it.
    fn check_teachers(&self) -> Result<(), TrainError> {
        for teacher in &self.recipe.teacher {
            let Some(expected) = teacher.expect_top1 else { continue };
            let network = NetworkSpec::new(&teacher.name);
            let recipe =
                Recipe { network, teacher: vec![], method: MethodSpec::Ce(Ce::default()), ..self.recipe.clone() };
            let model = Model::new(&recipe, self.model.setting.clone())?;
            let (train_set, eval_set) = (self.train_set.clone(), self.eval_set.clone());
            let (device, text, annotated, run_dir) = (self.device, String::new(), String::new(), PathBuf::new());
            let (compile, options) = (self.compile.clone(), self.options.clone());
            let alone = Session {
                recipe,
                device,
                text,
                annotated,
                model,
                compile,
                train_set,
                eval_set,
                run_dir,
                options,
                notes: vec![],
            };
            let split = if self.recipe.eval.split == "val" { Split::Val } else { Split::Test };
            let got = alone.evaluate(split, Start::File(&teacher.weights))?.accuracy();
            if got < expected - 0.001 {
                let reason = format!(
                    "expected top1 {expected} of the teacher {}, got {got:.4}; check its normalisation and classes",
                    teacher.name
                );
                return Err(TrainError::Weights { path: teacher.weights.clone(), reason });
            }
        }
        Ok(())
    }

    /// Trains; resumes by itself where the run folder says so.
    pub fn train(&self) -> Result<Outcome, TrainError> {
        let signals = Signals::install(self.recipe.ranks.preempt_signal, self.launcher())
            .map_err(|source| self.io("cannot handle signals for", source))?;
        if self.recipe.stage.is_empty() { self.train_under(&signals) } else { stages::run(self, &signals) }
    }

    /// Who started the ranks.
    pub(crate) fn launcher(&self) -> Launcher {
        self.options.joined.as_ref().map_or(Launcher::None, |joined| joined.launcher())
    }

    /// Trains one stage.
    pub(crate) fn train_under(&self, signals: &Signals) -> Result<Outcome, TrainError> {
        let begin = Instant::now();
        let mut resumed = None;
        let starts = Starts::new(&OsDisk, &self.run_dir, &self.text);
        if self.leads() {
            resumed = self.resume()?;
            self.begin(&starts, resumed.as_ref().map_or(0, |r| r.run.step))?;
        }
        self.meet()?;
        let results = self.on_executor(Ranks { session: self, signals, resumed: resumed.as_ref() })?;
        let (exit, position, degraded) = first_cause(results)?;
        let stuck = exit == Exit::Preempted && position.global_step == resumed.as_ref().map_or(0, |r| r.run.step);
        if self.leads() && !stuck {
            starts.forget().unwrap_or_else(|e| tracing::warn!("the note of starts stays in the run folder: {e}"));
        }
        Ok(Outcome {
            exit,
            steps: position.global_step,
            last: position.last,
            best: position.best,
            seconds: begin.elapsed().as_secs_f64(),
            degraded,
            run_dir: self.run_dir.clone(),
        })
    }

    /// What rank 0 does before the first step; the last of it is the note of this start.
    fn begin(&self, starts: &Starts<'_>, step: u64) -> Result<(), TrainError> {
        match self.options.resume {
            Resume::Never => {
                starts.forget().map_err(|source| self.io("cannot remove the note of starts in", source))?
            }
            Resume::Auto | Resume::From(_) => starts.check(step)?,
        }
        self.check_teachers()?;
        std::fs::create_dir_all(&self.run_dir).map_err(|source| self.io("cannot create", source))?;
        self.write_run_files()?;
        // A disk on which that fails shall not end a run that goes on without.
        starts.note(step).unwrap_or_else(|e| tracing::warn!("this start is not counted: {e}"));
        Ok(())
    }

    pub(crate) fn checkpoints(&self) -> Checkpoints {
        let retention =
            Retention { keep_last: self.recipe.output.keep, keep_best: self.recipe.output.keep_best, every: None };
        Checkpoints::new(Arc::new(OsDisk), &self.run_dir, retention)
    }

    pub(crate) fn run_state(&self, world: usize) -> RunState {
        let dataset = self.train_set.loader.dataset();
        RunState {
            run_id: self.run_dir.display().to_string(),
            global_batch: self.recipe.train.global_batch as u64,
            world_size: world as u64,
            seed: self.recipe.train.seed,
            sample_count: dataset.len() as u64,
            sample_hash: format!("{:016x}", sample_hash(dataset.as_ref())),
            ..RunState::default()
        }
    }

    pub(crate) fn io(&self, action: &'static str, source: std::io::Error) -> TrainError {
        TrainError::Io { action, path: self.run_dir.clone(), source }
    }
}

/// The folder of a recipe's run, unless another is asked for.
pub fn run_dir(loaded: &Loaded) -> PathBuf {
    default_run_dir(&loaded.recipe, &loaded.path)
}

fn default_run_dir(recipe: &Recipe, path: &Path) -> PathBuf {
    let stem = path.file_stem().map_or("run".into(), |s| s.to_string_lossy().into_owned());
    recipe.output.folder.clone().unwrap_or_else(|| Path::new("runs").join(stem))
}

/// The weights that an evaluation starts from.
pub(crate) enum Start<'a> {
    File(&'a Path),
    Snapshot(&'a Snapshot),
}

struct Evaluate<'a> {
    session: &'a Session,
    split: Split,
    start: Start<'a>,
}

impl Job for Evaluate<'_> {
    type Output = Evaluation;

    fn run<E: Executor>(self, make: impl Fn(usize) -> Result<E, TrainError> + Sync) -> Result<Evaluation, TrainError> {
        let Evaluate { session, split, start } = self;
        let recipe = &session.recipe;
        let feed = session.feed(Rank { rank: 0, world: 1 })?;
        let mut engine = session.engine(&feed, make(0)?, Box::new(Solo::default()))?;
        match start {
            Start::File(path) => {
                load_module(&mut engine.executor, &engine.states, "student.", path)?;
            }
            Start::Snapshot(snapshot) => {
                snapshot::restore(&mut engine, &snapshot.groups).map_err(TrainError::Setting)?;
            }
        }
        engine.end_evaluation();
        let set = open_set(recipe, &recipe.data.folder, split, eval_spec(recipe))?;
        if recipe.eval.ema {
            snapshot::swap_ema(&mut engine)?;
        }
        evaluate(&mut engine, &set, recipe.eval.batch, recipe.data.workers)
    }
}

/// The note on the device, from an executor that does nothing else.
struct Described<'a>(&'a Session);

impl Job for Described<'_> {
    type Output = String;

    fn run<E: Executor>(self, make: impl Fn(usize) -> Result<E, TrainError> + Sync) -> Result<String, TrainError> {
        Ok(self.0.device_note(&make(0)?))
    }
}

pub(crate) fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}
