//! Preflight of a recipe: itself, its data, the memory that it takes, and how fast images are read.

use crate::bench_machine::cpu_bytes;
use crate::device::Device;
use crate::doctor::{Asked, Finding, State, Tell, size};
use crate::error::TrainError;
use crate::feed::Rank;
use crate::inputs::sampler;
use crate::session::{RunOptions, Session};
use crate::snapshot::stored_bytes;
use cuda::Math;
use data::{Epoch, EpochKey, Micro, Prefetch};
use plan::StateTable;
use spec::Precision;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// How long images are read.
const READING: Duration = Duration::from_secs(1);
/// Units that a reader makes at once: few, so that it ends in time.
const UNITS: usize = 8;
const CORRECT: &str = "correct the recipe; `retort train --dry-run` shows all of it";
const PUT: &str = "put the set there, or name its folder by --data or $RETORT_DATA";

/// Also tells the disk what a checkpoint takes.
pub(crate) fn recipe(asked: &Asked, tell: &Tell, checkpoint_bytes: Sender<u64>) {
    let loaded = match &asked.recipe {
        Some(Ok(loaded)) => loaded.clone(),
        Some(Err(text)) => return tell.tell(Finding::of_error("recipe", State::Fail, first_line(text), CORRECT)),
        None => return tell.tell(Finding::ok("recipe", "none was given: data and memory are not looked at")),
    };
    let mut ranks = asked.world();
    if let Err(e) = loaded.check_ranks(ranks) {
        tell.tell(Finding::of_error("recipe", State::Fail, first_line(&e.to_string()), CORRECT));
        ranks = 1;
    }
    if let Err(e) = loaded.check_files() {
        return tell.tell(Finding::of_error("data", State::Fail, first_line(&e.to_string()), PUT));
    }
    // A GPU that cannot be had is another check's finding.
    let device = asked.chosen().unwrap_or(Device::Cpu);
    let options = RunOptions { run_dir: asked.run_dir.clone(), device: Some(device), ranks, ..RunOptions::default() };
    let session = match Session::open(loaded, options) {
        Ok(session) => session,
        Err(e @ TrainError::Data(_)) => return tell.tell(Finding::of_error("data", State::Fail, &e.to_string(), PUT)),
        Err(e) => return tell.tell(Finding::of_error("recipe", State::Fail, first_line(&e.to_string()), CORRECT)),
    };
    for note in &session.notes {
        let (area, found) = match note.split_once(": ") {
            Some(("data", found)) => ("data", found),
            Some(("steps", _)) => ("recipe", note.as_str()),
            _ => ("data", note.as_str()),
        };
        tell.tell(Finding::ok(area, found));
    }
    match memory(asked, &session, &checkpoint_bytes) {
        Ok(finding) => tell.tell(finding),
        Err(e) => tell.tell(Finding::of_error("memory", State::Fail, first_line(&e.to_string()), CORRECT)),
    }
    drop(checkpoint_bytes);
    match pace(&session) {
        Ok(finding) => tell.tell(finding),
        Err(e) => tell.tell(Finding::of_error("data", State::Fail, &e.to_string(), "replace or remove that image")),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What the run takes of the machine that computes, against what is free there.
fn memory(asked: &Asked, session: &Session, checkpoint_bytes: &Sender<u64>) -> Result<Finding, TrainError> {
    let (recipe, device) = (&session.recipe, session.device);
    let compile = session.compile.on(device.storage(recipe.train.precision));
    let mut states = StateTable::default();
    let training = compile.training(&session.model, session.full_units()?, &mut states, None)?;
    let eval = compile.evaluation(&session.model, recipe.eval.batch, &mut states)?;
    let _ = checkpoint_bytes.send(stored_bytes(&states, &training, &eval)); // the disk may have failed before
    let leaves = session.feed(Rank { rank: 0, world: session.world() })?.deal.leaves();
    let (needed, free, place) = match device {
        Device::Cuda(ordinal) => {
            let math = if recipe.train.precision == Precision::Tf32 { Math::Tf32 } else { Math::F32 };
            let sms = cuda::devices()?.get(ordinal).map_or(1, |gpu| gpu.sms);
            let needed = cuda::footprint(&[&training, &eval], &states, leaves, (math, sms))?.bytes as u64;
            (needed, Some(cuda::free_memory(ordinal)?.0 as u64), format!("GPU {ordinal}"))
        }
        Device::Cpu => {
            let plans = [&training, &eval].map(|plan| cpu_bytes(plan, &states, leaves));
            let local = asked.local_ranks() as u64;
            let needed = plans.into_iter().max().unwrap_or(0) as u64 * local;
            let ranks = if local > 1 { format!(", by {local} ranks") } else { String::new() };
            (needed, available(), format!("this host{ranks}"))
        }
    };
    let what = format!("the run takes {} of {place}", size(needed));
    Ok(match free {
        None => Finding::ok("memory", format!("{what}; what is free is not known")),
        Some(free) if free < needed => {
            let remedy = "set train.micro_batch, or a smaller one, and a smaller eval.batch";
            Finding::fail("memory", format!("{what}, {} are free", size(free)), remedy)
        }
        Some(free) => Finding::ok("memory", format!("{what}, free are")).measured(free as f64 / 1e9, "GB"),
    })
}

/// Bytes of host memory that can be had: of the machine, and of the control group if that is less.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let machine = 1024 * line.split_whitespace().next()?.parse::<u64>().ok()?;
    let number =
        |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let group = number("memory.max").zip(number("memory.current")).map(|(max, now)| max.saturating_sub(now));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// Reads training images for a while as a run would.
fn pace(session: &Session) -> Result<Finding, TrainError> {
    let (recipe, set) = (&session.recipe, &session.train_set);
    let key = EpochKey { seed: recipe.train.seed, stage: 0, epoch: 0 };
    let epoch = Arc::new(Epoch::new(sampler(&session.model.spec), set.lists.clone(), key)?);
    let micro = |first: usize| Micro {
        step: 0,
        leaf: 0,
        number: 0,
        first_slot: first as u32,
        units: UNITS.min(epoch.units() - first) as u32,
    };
    let micros: Vec<Micro> = (0..epoch.units()).step_by(UNITS).map(micro).collect();
    let workers = recipe.data.workers;
    let begin = Instant::now();
    let (mut images, mut bad) = (0, 0);
    for batch in Prefetch::new(set.loader.clone(), epoch.clone(), micros, workers, 2)? {
        let batch = batch?;
        images += batch.row_labels.len();
        bad += batch.bad.len();
        if begin.elapsed() >= READING {
            break;
        }
    }
    let rate = images as f64 / begin.elapsed().as_secs_f64();
    let by = format!("{workers} reader{}", if workers == 1 { "" } else { "s" });
    Ok(if bad > 0 {
        let what = format!("{bad} of the first {images} images cannot be read; the others are read by {by} at");
        Finding::warn("data", what, "replace them; `retort pack` lists all").measured(rate, "img/s")
    } else {
        Finding::ok("data", format!("read by {by} at")).measured(rate, "img/s")
    })
}
