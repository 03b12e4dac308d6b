//! Checkpoints: at every instant after the first save a complete, verified one is on disk.
//!
//! `<run>/checkpoints/step-<n>/{<group>.safetensors, manifest.json}`. A save writes `tmp-<n>-<nonce>/`, the manifest last,
//! syncs files and folder, renames, syncs the parent; only then are older ones renamed to `trash-…` and removed.
//! Loading takes the newest step of which the manifest and every hash verify; the others are reported, never deleted.
//! `latest` is a hint for people and scripts: no load looks at it.

use crate::disk::{Disk, DiskFile};
use crate::manifest::{FileRecord, MANIFEST_FILE, Manifest, RunState};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use tensor::{TensorError, safe};

/// Age at which a half-written save is surely nobody's any more.
const TMP_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Saves that must fit on the disk before one is begun.
pub(crate) const SPACE_FOR_CHECKPOINTS: u64 = 2;

/// Why a save or load failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {free} bytes free, two checkpoints need {needed}; free some space or keep fewer", path.display())]
    NoSpace { path: PathBuf, free: u64, needed: u64 },
    #[error("{}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("tensor group `{0}`: expected lower-case letters, digits and `_`, since it names a file")]
    Group(String),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("manifest: {0}")]
    Manifest(#[from] serde_json::Error),
}

/// Everything that a run needs to go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub run: RunState,
    /// Tensors by group; a group is a file: `model`, `optim`, `ema`, `data`.
    pub groups: BTreeMap<String, safe::Tensors>,
}

/// Which checkpoints stay. The newest always does.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The newest so many.
    pub keep_last: usize,
    /// So many with the highest score; of equal ones the earlier.
    pub keep_best: usize,
    /// Every step that this divides.
    pub every: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep_last: 2, keep_best: 0, every: None }
    }
}

/// What a save did.
#[derive(Debug)]
pub struct SaveReport {
    pub folder: PathBuf,
    pub bytes: u64,
    /// What went wrong after the checkpoint was safe: the hint or old folders.
    pub warnings: Vec<String>,
}

/// A folder that is not a good checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub folder: String,
    pub reason: String,
}

/// Outcome of [`Checkpoints::load_newest`].
#[derive(Debug)]
pub struct Loaded {
    /// `None`: there is no good one.
    pub snapshot: Option<Snapshot>,
    /// Newer ones that are damaged.
    pub rejected: Vec<Rejected>,
}

/// The checkpoints of one run.
pub struct Checkpoints {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    retention: Retention,
    /// The folder is there, durably.
    created: AtomicBool,
}

impl Checkpoints {
    /// Those of the run in folder `run_dir`; touches no disk.
    pub fn new(disk: Arc<dyn Disk>, run_dir: &Path, retention: Retention) -> Self {
        Self { disk, root: run_dir.join("checkpoints"), retention, created: AtomicBool::new(false) }
    }

    /// At the start of a program: creates the folder, removes what dead programs left half written (after 24 h) or half
    /// removed. Returns what could not be removed; errors only if there is no folder to save in.
    pub fn prepare(&self) -> Result<Vec<String>, CheckpointError> {
        self.create_root()?;
        let entries = at("list", &self.root, |p| self.disk.list(p))?;
        let old =
            |e: &&crate::disk::Entry| e.name.starts_with("trash-") || e.name.starts_with("tmp-") && e.age > TMP_MAX_AGE;
        let failed = |name: &str| self.remove_tree(&self.root.join(name)).err();
        Ok(entries.iter().filter(old).filter_map(|e| failed(&e.name)).map(|e| e.to_string()).collect())
    }

    /// Errors if the disk has not room for two checkpoints of so many bytes.
    pub fn check_space(&self, checkpoint_bytes: u64) -> Result<(), CheckpointError> {
        let free = at("ask for the free space of", &self.root, |p| self.disk.free_bytes(p))?;
        let needed = checkpoint_bytes.saturating_mul(SPACE_FOR_CHECKPOINTS);
        if free < needed { Err(CheckpointError::NoSpace { path: self.root.clone(), free, needed }) } else { Ok(()) }
    }

    /// Saves; blocks until the checkpoint is durable. After an error the old checkpoints are as they were.
    /// If the same step is there already with equal content, nothing is written; if it differs it is replaced, if it is
    /// damaged it is set aside as `damaged-…`.
    pub fn save(&self, snapshot: &Snapshot) -> Result<SaveReport, CheckpointError> {
        self.create_root()?;
        let layouts = layouts(snapshot)?;
        let bytes = layouts.values().map(|(_, layout)| layout.file_bytes as u64).sum();
        self.check_space(bytes)?;
        let (step, nonce) = (snapshot.run.step, nonce());
        let folder = self.root.join(format!("step-{step}"));
        let tmp = self.root.join(format!("tmp-{step}-{nonce}"));
        let committed = self.write_folder(snapshot, &layouts, &tmp).and_then(|new| self.commit(&tmp, &folder, &new));
        if let Err(error) = committed {
            // Best effort: the error that matters is already there, and old ones are removed at the next start.
            let _ = self.remove_tree(&tmp);
            return Err(error);
        }
        let warnings = [self.write_latest(step, &nonce), self.retire(step)];
        let warnings = warnings.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
        Ok(SaveReport { folder, bytes, warnings })
    }

    /// The newest good checkpoint and the newer ones that are not. Errors only if the folder exists and cannot be listed.
    pub fn load_newest(&self) -> Result<Loaded, CheckpointError> {
        let mut rejected = Vec::new();
        for (_, folder) in self.folders()?.into_iter().rev() {
            match self.load(&self.root.join(&folder)) {
                Ok(snapshot) => return Ok(Loaded { snapshot: Some(snapshot), rejected }),
                Err(CheckpointError::Damaged { reason, .. }) => rejected.push(Rejected { folder, reason }),
                Err(other) => rejected.push(Rejected { folder, reason: other.to_string() }),
            }
        }
        Ok(Loaded { snapshot: None, rejected })
    }

    /// The checkpoint in this folder, every hash verified.
    pub fn load(&self, folder: &Path) -> Result<Snapshot, CheckpointError> {
        let manifest = self.manifest(folder)?;
        let damaged = |reason: String| CheckpointError::Damaged { path: folder.into(), reason };
        let mut groups = BTreeMap::new();
        for record in &manifest.files {
            let group = record.name.strip_suffix(".safetensors").filter(|g| is_group(g));
            let group = group.ok_or_else(|| damaged(format!("manifest.json: `{}` is no file of ours", record.name)))?;
            let bytes = self.disk.read(&folder.join(&record.name));
            let bytes = bytes.map_err(|e| damaged(format!("{}: {e}", record.name)))?;
            groups.insert(group.to_owned(), manifest.verify_file(record, bytes).map_err(damaged)?);
        }
        Ok(Snapshot { run: manifest.run, groups })
    }

    /// Renames the checkpoints of later steps to `aside-…`, from which nothing is loaded: for a run that goes on from an
    /// older one than the newest. Returns their old names.
    pub fn set_aside_after(&self, step: u64) -> Result<Vec<String>, CheckpointError> {
        let later: Vec<_> = self.folders()?.into_iter().filter(|(s, _)| *s > step).collect();
        for (s, name) in &later {
            let aside = self.root.join(format!("aside-{s}-{}", nonce()));
            at("rename", &self.root.join(name), |p| self.disk.rename(p, &aside))?;
        }
        if !later.is_empty() {
            at("sync", &self.root, |p| self.disk.sync_dir(p))?;
        }
        Ok(later.into_iter().map(|(_, name)| name).collect())
    }

    fn manifest(&self, folder: &Path) -> Result<Manifest, CheckpointError> {
        let damaged = |reason: String| CheckpointError::Damaged { path: folder.into(), reason };
        let bytes = self.disk.read(&folder.join(MANIFEST_FILE));
        let bytes = bytes.map_err(|e| damaged(format!("{MANIFEST_FILE}: {e}")))?;
        let manifest = Manifest::from_bytes(&bytes).map_err(|e| damaged(format!("{MANIFEST_FILE}: {e}")))?;
        match folder.file_name().and_then(|name| step_of(&name.to_string_lossy())) {
            Some(step) if step != manifest.run.step => {
                Err(damaged(format!("the folder is of step {step}, its manifest of step {}", manifest.run.step)))
            }
            _ => Ok(manifest),
        }
    }

    /// Folders to load from, oldest first. A replaced one counts as older than its replacement.
    fn folders(&self) -> Result<Vec<(u64, String)>, CheckpointError> {
        let entries = match self.disk.list(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => at("list", &self.root, |_| listed)?,
        };
        let mut found: Vec<_> = entries.into_iter().filter_map(|e| Some((step_of(&e.name)?, e.name))).collect();
        found.sort_by_key(|(step, name)| (*step, name.starts_with("step-")));
        Ok(found)
    }

    /// Writes files and manifest to a new folder and makes all of it durable, except the folder's own name.
    fn write_folder(
        &self,
        snapshot: &Snapshot,
        layouts: &Layouts<'_>,
        tmp: &Path,
    ) -> Result<Manifest, CheckpointError> {
        at("create", tmp, |p| self.disk.create_dir_all(p))?;
        let mut manifest = Manifest::new(snapshot.run.clone());
        for (name, (tensors, layout)) in layouts {
            manifest.add_tensors(name, layout, tensors);
            let record = at("write", &tmp.join(name), |path| {
                let mut out = HashedFile { file: self.disk.create(path)?, hasher: blake3::Hasher::new(), bytes: 0 };
                layout.write_to(&mut out, tensors)?;
                out.file.sync()?;
                Ok(FileRecord {
                    name: name.clone(),
                    bytes: out.bytes,
                    blake3: out.hasher.finalize().to_hex().to_string(),
                })
            })?;
            manifest.files.push(record);
        }
        self.write_synced(&tmp.join(MANIFEST_FILE), &manifest.to_bytes()?)?;
        at("sync", tmp, |p| self.disk.sync_dir(p))?;
        Ok(manifest)
    }

    /// Gives the written folder its final name. A folder that has the name already goes out of the way first, under a
    /// name from which it is still loaded should the next rename never happen.
    fn commit(&self, tmp: &Path, folder: &Path, new: &Manifest) -> Result<(), CheckpointError> {
        let rename = |from: &Path, to: &Path| at("rename", from, |p| self.disk.rename(p, to));
        if self.disk.list(folder).is_err() {
            rename(tmp, folder)?;
        } else {
            let set_aside = |kind: &str| self.root.join(format!("{kind}-{}-{}", new.run.step, nonce()));
            let aside = match self.load(folder).and_then(|_| self.manifest(folder)) {
                Ok(old) if old.run == new.run && old.files == new.files => None,
                Ok(_) => Some(set_aside("replaced")),
                Err(_) => Some(set_aside("damaged")),
            };
            match aside {
                None => self.remove_tree(tmp)?,
                Some(aside) => {
                    rename(folder, &aside)?;
                    // Best effort to undo: the error that matters is already there.
                    rename(tmp, folder).inspect_err(|_| drop(rename(&aside, folder)))?;
                }
            }
        }
        at("sync", &self.root, |p| self.disk.sync_dir(p))
    }

    /// Lets `latest` name the checkpoint of this step, if it is there: who was killed at the end of a save left the older name.
    pub fn mend_latest(&self, step: u64) -> Result<(), CheckpointError> {
        let name = format!("step-{step}");
        let is_there = self.disk.list(&self.root.join(&name)).is_ok();
        let named = self.disk.read(&self.root.join("latest"));
        if !is_there || named.is_ok_and(|named| named.trim_ascii() == name.as_bytes()) {
            return Ok(());
        }
        self.write_latest(step, &nonce())
    }

    fn write_latest(&self, step: u64, nonce: &str) -> Result<(), CheckpointError> {
        let tmp = self.root.join(format!("tmp-latest-{nonce}"));
        let written = self.write_synced(&tmp, format!("step-{step}\n").as_bytes());
        let written = written.and_then(|()| at("rename", &tmp, |p| self.disk.rename(p, &self.root.join("latest"))));
        if written.is_err() {
            // Best effort, as above.
            let _ = self.disk.remove_file(&tmp);
        }
        written.and_then(|()| at("sync", &self.root, |p| self.disk.sync_dir(p)))
    }

    /// Removes what retention does not keep. Left alone: folders whose manifest does not verify, and later steps, which
    /// this run did not come from.
    fn retire(&self, newest: u64) -> Result<(), CheckpointError> {
        let mut good = Vec::new();
        let mut doomed = Vec::new();
        for (step, name) in self.folders()? {
            match self.manifest(&self.root.join(&name)) {
                Ok(_) if name.starts_with("replaced-") => doomed.push((step, name)),
                Ok(manifest) if name.starts_with("step-") && step <= newest => good.push((step, manifest.run.score)),
                _ => {}
            }
        }
        let kept = self.retention.kept(&good, newest);
        let dropped = good.iter().filter(|(step, _)| !kept.contains(step));
        doomed.extend(dropped.map(|(step, _)| (*step, format!("step-{step}"))));
        let mut trash = Vec::new();
        for (step, name) in doomed {
            let path = self.root.join(format!("trash-{step}-{}", nonce()));
            at("rename", &self.root.join(name), |p| self.disk.rename(p, &path))?;
            trash.push(path);
        }
        if !trash.is_empty() {
            at("sync", &self.root, |p| self.disk.sync_dir(p))?;
        }
        trash.iter().try_for_each(|path| self.remove_tree(path))
    }

    /// Creates our folder and makes its name durable, and those of the folders above, which may be new too.
    fn create_root(&self) -> Result<(), CheckpointError> {
        if self.created.load(Ordering::Relaxed) {
            return Ok(());
        }
        at("create", &self.root, |p| self.disk.create_dir_all(p))?;
        for (level, path) in self.root.ancestors().skip(1).enumerate() {
            let synced = self.disk.sync_dir(if path.as_os_str().is_empty() { Path::new(".") } else { path });
            // Folders above the run's belong to others, and not all of them may be opened.
            if level == 0 {
                at("sync", path, |_| synced)?;
            }
        }
        self.created.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn write_synced(&self, path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
        at("write", path, |p| {
            let mut file = self.disk.create(p)?;
            file.write_all(bytes)?;
            file.sync()
        })
    }

    /// Removes a file, or a folder of files.
    fn remove_tree(&self, path: &Path) -> Result<(), CheckpointError> {
        at("remove", path, |p| {
            let Ok(entries) = self.disk.list(p) else { return self.disk.remove_file(p) };
            entries.iter().try_for_each(|e| self.disk.remove_file(&p.join(&e.name)))?;
            self.disk.remove_dir(p)
        })
    }
}

impl Retention {
    /// The steps to keep of `(step, score)`, ascending.
    fn kept(&self, good: &[(u64, Option<f64>)], newest: u64) -> BTreeSet<u64> {
        let last = good.iter().rev().take(self.keep_last).map(|(step, _)| *step);
        let mut scored: Vec<_> = good.iter().filter_map(|(step, score)| Some((*step, (*score)?))).collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        let best = scored.iter().take(self.keep_best).map(|(step, _)| *step);
        let every =
            good.iter().map(|(step, _)| *step).filter(|s| self.every.is_some_and(|n| s.checked_rem(n) == Some(0)));
        last.chain(best).chain(every).chain([newest]).collect()
    }
}

/// Files of a snapshot by name: tensors and their places.
type Layouts<'a> = BTreeMap<String, (&'a safe::Tensors, safe::Layout)>;

fn layouts(snapshot: &Snapshot) -> Result<Layouts<'_>, CheckpointError> {
    let layout = |(group, tensors): (&String, _)| {
        if !is_group(group) {
            return Err(CheckpointError::Group(group.clone()));
        }
        let name = format!("{group}.safetensors");
        let layout = safe::Layout::new(tensors, &safe::Metadata::new(), &name)?;
        Ok((name, (tensors, layout)))
    };
    snapshot.groups.iter().map(layout).collect()
}

/// Calls the disk, naming action and path in an error.
fn at<T>(action: &'static str, path: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, CheckpointError> {
    call(path).map_err(|source| CheckpointError::Io { action, path: path.into(), source })
}

fn is_group(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// The step of a folder to load from: `step-<n>`, `replaced-<n>-<nonce>` or `damaged-<n>-<nonce>`.
fn step_of(name: &str) -> Option<u64> {
    let (kind, rest) = name.split_once('-')?;
    let step = match kind {
        "step" => rest,
        "replaced" | "damaged" => rest.split_once('-')?.0,
        _ => return None,
    };
    step.parse().ok().filter(|n: &u64| n.to_string() == step)
}

/// Differs between processes, and between calls in one.
fn nonce() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64;
    format!("{:x}_{nanos:x}_{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A file whose hash grows as it is written.
struct HashedFile {
    file: Box<dyn DiskFile>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
