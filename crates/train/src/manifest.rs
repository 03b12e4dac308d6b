//! `manifest.json`: what a checkpoint is, and the hash of every part of it. It is written last and is the commit record.
//!
//! File: `{"blake3":"<64 hex digits>","manifest":{…}}`; the hash is over all bytes behind its closing quote, so that no
//! change of the manifest goes unseen either.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tensor::{HostTensor, TensorError, safe};

/// Version of the layout that this program writes; it reads no newer one.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the manifest in its folder.
pub const MANIFEST_FILE: &str = "manifest.json";

const HASH_PREFIX: &str = r#"{"blake3":""#;
const BODY_PREFIX: &str = r#"","manifest":"#;
const HASH_DIGITS: usize = 64;

/// Where a run stands, beside its tensors. JSON has no NaN or infinity: `state` must hold such numbers as text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    pub run_id: String,
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Sampler units consumed of the epoch that is under way.
    pub position: u64,
    /// In sampler units.
    pub global_batch: u64,
    pub world_size: u64,
    pub seed: u64,
    /// The resolved recipe, as text.
    pub recipe: String,
    /// Number of training samples and hash of their list.
    pub sample_count: u64,
    pub sample_hash: String,
    /// Image decoder in use, whose pixels may differ from another's.
    pub decoder: String,
    /// What decides which checkpoints are the best ones: higher is better. `None`: not evaluated at this step.
    pub score: Option<f64>,
    /// Schedule state, metric accumulators, table of the best, seconds of work so far: whatever the trainer must get back.
    pub state: serde_json::Value,
}

/// Content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format_version: u32,
    /// Version and git hash of the program that wrote it.
    pub program: String,
    pub git_hash: Option<String>,
    /// Seconds since 1970 when it was written.
    pub unix_s: u64,
    pub recipe_blake3: String,
    pub run: RunState,
    pub files: Vec<FileRecord>,
    pub tensors: Vec<TensorRecord>,
}

/// One file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// `<group>.safetensors`.
    pub name: String,
    pub bytes: u64,
    pub blake3: String,
}

/// One tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRecord {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub file: String,
    /// First byte in the file.
    pub offset: u64,
    pub bytes: u64,
    pub blake3: String,
}

impl TensorRecord {
    fn new(name: &str, tensor: &HostTensor, file: &str, offset: usize) -> Self {
        Self {
            name: name.into(),
            dtype: tensor.dtype().name().into(),
            shape: tensor.shape().dims().to_vec(),
            file: file.into(),
            offset: offset as u64,
            bytes: tensor.byte_len() as u64,
            blake3: hash(tensor.bytes()),
        }
    }
}

impl Manifest {
    /// A manifest for this state, without files yet.
    pub fn new(run: RunState) -> Self {
        let unix_s = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        Self {
            format_version: FORMAT_VERSION,
            program: format!("retort {}", env!("CARGO_PKG_VERSION")),
            git_hash: option_env!("RETORT_GIT_HASH").map(str::to_owned),
            unix_s,
            recipe_blake3: hash(run.recipe.as_bytes()),
            run,
            files: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Records the tensors of a file.
    pub fn add_tensors(&mut self, file: &str, layout: &safe::Layout, tensors: &safe::Tensors) {
        let record = |(name, offset): &(String, usize)| TensorRecord::new(name, &tensors[name], file, *offset);
        self.tensors.extend(layout.places.iter().map(record));
    }

    /// The bytes of `manifest.json`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let hashed = format!("{BODY_PREFIX}{}}}\n", serde_json::to_string_pretty(self)?);
        Ok(format!("{HASH_PREFIX}{}{hashed}", hash(hashed.as_bytes())).into_bytes())
    }

    /// Reads `manifest.json`. Errors say what is wrong: damage, or a version newer than [`FORMAT_VERSION`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(HASH_PREFIX.as_bytes()).ok_or("does not begin as a manifest")?;
        let (expected, hashed) = rest.split_at_checked(HASH_DIGITS).ok_or("is truncated")?;
        if hash(hashed).as_bytes() != expected {
            return Err("BLAKE3 differs: the manifest is truncated or damaged".into());
        }
        let body = hashed.strip_prefix(BODY_PREFIX.as_bytes()).and_then(|b| b.strip_suffix(b"}\n"));
        let body = body.ok_or("does not begin as a manifest")?;
        // The version first: the fields of a newer one are not ours to know.
        let Version { format_version } = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        if format_version > FORMAT_VERSION {
            return Err(format!("has format version {format_version}, this program reads up to {FORMAT_VERSION}"));
        }
        let manifest: Self = serde_json::from_slice(body).map_err(|e| e.to_string())?;
        if manifest.recipe_blake3 != hash(manifest.run.recipe.as_bytes()) {
            return Err("BLAKE3 of the recipe differs".into());
        }
        Ok(manifest)
    }

    /// Checks a file against its record and returns its tensors. Errors name the file and, where one can be told, the
    /// damaged tensor.
    pub fn verify_file(&self, record: &FileRecord, bytes: Vec<u8>) -> Result<safe::Tensors, String> {
        let name = &record.name;
        if bytes.len() as u64 != record.bytes {
            return Err(format!("{name}: has {} bytes, the manifest says {}", bytes.len(), record.bytes));
        }
        let records = self.tensors.iter().filter(|t| t.file == *name);
        if hash(&bytes) != record.blake3 {
            let part = |t: &TensorRecord| bytes.get(t.offset as usize..(t.offset.checked_add(t.bytes)?) as usize);
            let damaged = records.clone().find(|t| part(t).is_none_or(|p| hash(p) != t.blake3));
            let which = damaged.map_or("header".into(), |t| format!("tensor `{}`", t.name));
            return Err(format!("{name}: BLAKE3 differs: {which} is damaged"));
        }
        let tensors = safe::SafeFile::from_bytes(bytes, name).and_then(|f| f.tensors());
        let tensors = tensors.map_err(|e: TensorError| e.to_string())?;
        let expected: BTreeMap<&str, &TensorRecord> = records.map(|t| (t.name.as_str(), t)).collect();
        let differs = |(key, t): (&String, &HostTensor)| {
            expected.get(key.as_str()).is_none_or(|&r| *r != TensorRecord::new(key, t, name, r.offset as usize))
        };
        if tensors.len() != expected.len() || tensors.iter().any(differs) {
            return Err(format!("{name}: holds other tensors than the manifest says"));
        }
        Ok(tensors)
    }
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// BLAKE3 in hexadecimal.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
