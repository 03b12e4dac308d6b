//! What a run folder holds when a run starts: the checkpoint to go on from, and the files that describe the run.

use crate::checkpoint::{CheckpointError, Snapshot};
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::session::{Resume, Session};
use std::io::Write;
use std::path::Path;
use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, Shape};

impl Session {
    /// The checkpoint to go on from. Damaged ones are reported on stderr; a run of another recipe or set is refused.
    pub(crate) fn resume(&self) -> Result<Option<Snapshot>, TrainError> {
        let checkpoints = self.checkpoints();
        for warning in checkpoints.prepare()? {
            warn(&warning);
        }
        let snapshot = match &self.options.resume {
            Resume::From(folder) => {
                let snapshot = checkpoints.load(folder)?;
                checkpoints.set_aside_after(snapshot.run.step)?;
                Some(snapshot)
            }
            Resume::Auto | Resume::Never => {
                let loaded = checkpoints.load_newest()?;
                for bad in &loaded.rejected {
                    warn(&format!("checkpoint {} is not used: {}", bad.folder, bad.reason));
                }
                if let (None, Some(bad)) = (&loaded.snapshot, loaded.rejected.first()) {
                    let reason = format!(
                        "no checkpoint is good; {}: {}; move the folder away to start anew",
                        bad.folder, bad.reason
                    );
                    return Err(CheckpointError::Damaged { path: self.run_dir.clone(), reason }.into());
                }
                loaded.snapshot
            }
        };
        // Lines of steps that will be done again, or were done before there was any checkpoint.
        let metrics = self.run_dir.join("metrics.jsonl");
        let cut = |step| crate::metrics::cut(&metrics, step).map_err(|e| self.io("cannot shorten metrics.jsonl in", e));
        let Some(snapshot) = snapshot else { return cut(0).map(|_| None) };
        let dir = self.run_dir.display();
        if self.options.resume == Resume::Never {
            return Err(TrainError::Setting(format!(
                "{dir} holds a run already; give another folder with --run, or --resume auto"
            )));
        }
        let own = self.run_state(1);
        if snapshot.run.sample_hash != own.sample_hash {
            return Err(TrainError::Setting(format!(
                "{dir}: the run was trained on other samples (hash {}, now {}); give another folder with --run",
                snapshot.run.sample_hash, own.sample_hash
            )));
        }
        if !same_training(&snapshot.run.recipe, &self.text) {
            return Err(TrainError::Setting(format!(
                "{dir} holds a run of another recipe; compare {dir}/recipe.toml, or give another folder with --run"
            )));
        }
        cut(snapshot.run.step)?;
        if let Err(error) = checkpoints.mend_latest(snapshot.run.step) {
            warn(&error.to_string());
        }
        Ok(Some(snapshot))
    }

    pub(crate) fn write_run_files(&self) -> Result<(), TrainError> {
        let run = serde_json::json!({
            "program": concat!("retort ", env!("CARGO_PKG_VERSION")),
            "git": option_env!("RETORT_GIT_HASH"),
            "device": self.device.to_string(),
            "threads": self.threads(),
            "ranks": self.world(),
            "members": self.members(),
            "classes": self.train_set.loader.dataset().classes(),
            "image": self.model.setting.image,
            "mean": self.train_set.stats.mean,
            "std": self.train_set.stats.std,
            "sample_hash": self.run_state(1).sample_hash,
        });
        // A program that is killed here, or a full disk, leaves the old file or the new one.
        let write = |name: &str, bytes: &[u8]| {
            let (path, new) = (self.run_dir.join(name), self.run_dir.join(format!("{name}.tmp")));
            if std::fs::read(&path).is_ok_and(|old| old == bytes) {
                return Ok(());
            }
            let written = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, &path));
            written.map_err(|source| self.io("cannot write into", source))
        };
        if let Some(noise) = &self.train_set.noise {
            write("noisy_labels.safetensors", &self.noisy_labels(&noise.truth)?)?;
        }
        write("recipe.toml", self.text.as_bytes())?;
        write("run.json", format!("{run:#}\n").as_bytes())
    }

    /// Host, process and device of each rank.
    fn members(&self) -> Vec<serde_json::Value> {
        let members = self.options.joined.iter().flat_map(|j| &j.members);
        members
            .map(|m| serde_json::json!({ "rank": m.rank, "host": m.host, "pid": m.pid, "device": m.device, "uuid": m.uuid }))
            .collect()
    }

    /// A file of the labels that the run trains on, `given` i32 [n], and those before the noise, `true`.
    fn noisy_labels(&self, truth: &[u32]) -> Result<Vec<u8>, TrainError> {
        let tensor = |labels: &[u32]| {
            let labels: Vec<i32> = labels.iter().map(|&l| l as i32).collect();
            HostTensor::new(Shape::new(&[labels.len()]), &labels)
        };
        let given = tensor(self.train_set.loader.dataset().labels())?;
        let tensors = Tensors::from([("given".to_string(), given), ("true".to_string(), tensor(truth)?)]);
        Ok(safe::to_bytes(&tensors, &Metadata::new())?)
    }
}

/// Whether two resolved recipes train the same: how long, where to and how often to save may differ.
fn same_training(a: &str, b: &str) -> bool {
    let essence = |text: &str| {
        // An older program's resolved recipe lacks keys that are newer than it: they get their defaults.
        let resolved = Recipe::parse(text.to_string(), Path::new("recipe.toml"), &[]).map(|loaded| loaded.text);
        let mut table: toml::Table = resolved.unwrap_or_else(|_| text.to_string()).parse().ok()?;
        for section in ["output", "eval", "ranks"] {
            table.remove(section);
        }
        for (section, key) in [("train", "max_steps"), ("data", "workers"), ("data", "folder")] {
            table.get_mut(section).and_then(|s| s.as_table_mut()).map(|s| s.remove(key));
        }
        Some(table)
    };
    essence(a) == essence(b)
}

/// A remark on stderr, if that is still open.
fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}
