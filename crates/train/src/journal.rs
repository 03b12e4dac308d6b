//! What rank 0 tells: the progress line, metrics.jsonl, TensorBoard events, the ledger of bad samples.

use crate::checkpoint::SaveReport;
use crate::engine::StepValues;
use crate::evaluate::Evaluation;
use crate::metrics::{Kind, MetricsLog};
use crate::progress::{Progress, Status};
use crate::tensorboard::EventWriter;
use crate::trainer::Position;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LEDGER: &str = "bad_samples.jsonl";

/// How much is said on the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verbosity {
    Quiet,
    #[default]
    Normal,
}

/// How fast a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub lr: f64,
    pub steps_per_s: f64,
    /// Steps of an epoch.
    pub steps: usize,
    /// For data, in this epoch.
    pub waited: Duration,
}

pub(crate) struct Journal {
    metrics: MetricsLog,
    events: EventWriter,
    progress: Option<Progress>,
    ledger: PathBuf,
    epochs: usize,
    max_steps: u64,
    images_per_step: usize,
    world_size: usize,
    log_every: u64,
    epoch_begin: Instant,
    failure: String,
    pub degraded: bool,
}

/// Constants of a run that lines show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub epochs: usize,
    pub max_steps: u64,
    pub images_per_step: usize,
    pub world_size: usize,
    pub log_every: u64,
}

impl Journal {
    pub(crate) fn open(run: &Path, resumed_at: Option<u64>, facts: Facts, verbosity: Verbosity) -> Journal {
        let Facts { epochs, max_steps, images_per_step, world_size, log_every } = facts;
        Journal {
            metrics: MetricsLog::append_to(&run.join("metrics.jsonl")),
            events: EventWriter::create(&run.join("tensorboard"), resumed_at),
            progress: (verbosity == Verbosity::Normal).then(Progress::stderr),
            ledger: run.join(LEDGER),
            epochs,
            max_steps,
            images_per_step,
            world_size,
            log_every: log_every.max(1),
            epoch_begin: Instant::now(),
            failure: String::new(),
            degraded: false,
        }
    }

    pub(crate) fn message(&mut self, text: &str) {
        if let Some(progress) = &mut self.progress {
            progress.message(text);
        }
    }

    pub(crate) fn text(&mut self, tag: &str, text: &str) {
        self.events.text(0, tag, text);
    }

    pub(crate) fn step(&mut self, at: &Position, values: &StepValues, pace: Pace) {
        let step = at.global_step;
        let images_per_s = pace.steps_per_s * self.images_per_step as f64;
        if step.is_multiple_of(self.log_every) || values.nonfinite.is_some() {
            let mut fields = Map::new();
            fields.insert("epoch".into(), json!(at.epoch));
            fields.insert("loss".into(), json!(values.loss));
            for (name, weighted, plain) in &values.terms {
                fields.insert(format!("loss.{name}"), json!(weighted));
                fields.insert(format!("term.{name}"), json!(plain));
            }
            values.monitors.iter().for_each(|(name, value)| drop(fields.insert(format!("train.{name}"), json!(value))));
            fields.insert("lr".into(), json!(pace.lr));
            fields.insert("grad_norm".into(), json!(values.grad_norm));
            if let Some((path, op)) = &values.nonfinite {
                fields.insert("skipped".into(), json!(format!("not finite at {path} ({op})")));
            }
            self.metrics.write(step, Kind::Step, &fields);
            let mut scalars = vec![("train/loss", values.loss as f32), ("train/lr", pace.lr as f32)];
            scalars.extend(values.terms.iter().map(|(name, weighted, _)| (name.as_str(), *weighted as f32)));
            self.events.scalars(step, &scalars);
        }
        let total = ((self.epochs * pace.steps) as u64).min(self.max_steps) as f64;
        let left = (total - step as f64) / pace.steps_per_s.max(1e-9);
        let status = Status {
            epoch: at.epoch as u64 + 1,
            epochs: self.epochs as u64,
            step: at.step as u64,
            steps: pace.steps as u64,
            loss: values.loss as f32,
            terms: values.terms.iter().map(|(name, weighted, _)| (name.clone(), *weighted as f32)).collect(),
            lr: pace.lr as f32,
            top1: at.last.map(|s| 100.0 * s.top1),
            images_per_s,
            world_size: self.world_size,
            data_wait: pace.waited.as_secs_f64() / self.epoch_begin.elapsed().as_secs_f64().max(1e-9),
            eta: Some(Duration::from_secs_f64(left.clamp(0.0, 1e8))),
        };
        if let Some(progress) = &mut self.progress {
            progress.update(&status, Instant::now());
        }
    }

    pub(crate) fn evaluation(&mut self, at: &Position, e: &Evaluation) {
        let mut fields = Map::new();
        fields.insert("epoch".into(), json!(at.epoch));
        for (key, value) in [("samples", json!(e.samples)), ("correct", json!(e.top1)), ("loss", json!(e.loss))] {
            fields.insert(key.into(), value);
        }
        fields.insert("top1".into(), json!(e.accuracy()));
        fields.insert("top5".into(), json!(e.accuracy5()));
        for (name, correct) in &e.others {
            fields.insert(name.clone(), json!(*correct as f64 / e.samples.max(1) as f64));
        }
        self.metrics.write(at.global_step, Kind::Eval, &fields);
        let scalars =
            [("eval/top1", e.accuracy() as f32), ("eval/top5", e.accuracy5() as f32), ("eval/loss", e.loss as f32)];
        self.events.scalars(at.global_step, &scalars);
    }

    /// Closes an epoch: one line that stays on the terminal.
    pub(crate) fn epoch(&mut self, at: &Position) {
        let steps = at.counted.max(1) as f64;
        let mean = at.sums.first().map_or(0.0, |s| s / steps);
        let train = at.sums.last().map_or(0.0, |s| 100.0 * s / steps);
        let eval = at.last.filter(|s| s.epoch == at.epoch);
        let test = eval.map_or(String::new(), |s| format!("  test top1 {:.2} %  loss {:.4}", 100.0 * s.top1, s.loss));
        let seconds = self.epoch_begin.elapsed().as_secs_f64();
        let line = format!(
            "epoch {:>3}/{}  train loss {mean:.4}  top1 {train:.2} %{test}  {seconds:.1} s",
            at.epoch + 1,
            self.epochs
        );
        self.message(&line);
        let fields: Map<String, Value> = [
            ("event".to_string(), json!("epoch")),
            ("epoch".to_string(), json!(at.epoch)),
            ("train_loss".to_string(), json!(mean)),
        ]
        .into_iter()
        .collect();
        self.metrics.write(at.global_step, Kind::Event, &fields);
        self.epoch_begin = Instant::now();
    }

    pub(crate) fn event(&mut self, step: u64, event: &str, text: &str) {
        let fields = [("event", json!(event)), ("text", json!(text))];
        let fields = fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        self.metrics.write(step, Kind::Event, &fields);
    }

    pub(crate) fn alarm(&mut self, step: u64, monitor: &str, value: f64) {
        let fields = [("event", json!("alarm")), ("monitor", json!(monitor)), ("value", json!(value))];
        let fields = fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        self.metrics.write(step, Kind::Event, &fields);
    }

    pub(crate) fn saving(&mut self, at: &Position) {
        let folder = json!(format!("step-{}", at.global_step));
        self.metrics.write(at.global_step, Kind::Save, &[("folder".to_string(), folder)].into_iter().collect());
    }

    pub(crate) fn saved(&mut self, report: &SaveReport) {
        self.failure.clear();
        for warning in &report.warnings {
            self.message(&format!("warning: {warning}"));
        }
    }

    pub(crate) fn save_failed(&mut self, at: &Position, why: &str) {
        self.degraded = true;
        if self.failure.is_empty() {
            self.message(&format!(
                "warning: step {}: checkpoint not written: {why}; older ones are intact",
                at.global_step
            ));
        }
        self.failure = why.to_string();
        let fields =
            [("event".to_string(), json!("save failed")), ("reason".to_string(), json!(why))].into_iter().collect();
        self.metrics.write(at.global_step, Kind::Event, &fields);
    }

    pub(crate) fn last_failure(&self) -> String {
        self.failure.clone()
    }

    pub(crate) fn bad_samples(&mut self, bad: &[&data::BadSample]) {
        let lines: String =
            bad.iter().map(|b| serde_json::to_string(b).map(|s| s + "\n").unwrap_or_default()).collect();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.ledger);
        if file.and_then(|mut f| f.write_all(lines.as_bytes())).is_err() {
            self.degraded = true;
        }
        self.message(&format!("warning: unreadable images: {} more, see {}", bad.len(), self.ledger.display()));
    }

    pub(crate) fn reopen(&mut self) {
        self.metrics.sink.reopen();
    }

    /// Lines reach the disk before the checkpoint that counts on them.
    pub(crate) fn sync(&mut self) {
        self.degraded |= !self.metrics.sink.sync();
    }

    /// The page that sums the run up.
    pub(crate) fn report(&mut self, recipe: &str) {
        let run = self.ledger.parent().unwrap_or(Path::new("."));
        if let Err(why) = crate::report::write(run, recipe) {
            self.degraded = true;
            self.message(&format!("warning: report.html not written: {why}"));
        }
    }

    pub(crate) fn finish(&mut self) {
        self.sync();
        if let Some(warning) = self.metrics.sink.take_warning() {
            self.message(&format!("warning: {warning}"));
        }
        if let Some(progress) = &mut self.progress {
            progress.finish();
        }
    }
}

/// Indices of the samples that a run has listed as bad already.
pub(crate) fn known_bad(run: &Path) -> BTreeSet<usize> {
    #[derive(serde::Deserialize)]
    struct Line {
        index: usize,
    }
    let text = std::fs::read_to_string(run.join(LEDGER)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).map(|line: Line| line.index).collect()
}

impl Drop for Journal {
    /// An error that is printed next begins on a line of its own.
    fn drop(&mut self) {
        if let Some(progress) = &mut self.progress {
            progress.finish();
        }
    }
}
