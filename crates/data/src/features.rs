//! Feature vectors of a frozen network as a data set: `train.safetensors` and `test.safetensors`, as `retort features` writes them.
//!
//! Tensors: `feature` f32 [n,d], `label` i32 [n]. Metadata: `classes`, a JSON list of names; `content`, the CRC32 of both tensors' bytes
//! in hexadecimal; and where they come from (`network`, `weights`, `set`, `split`, `sample_hash`, `transform`).

use std::path::{Path, PathBuf};

use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, Shape};

use crate::dataset::{Dataset, Meta, RawImage, limits};
use crate::error::DataError;

/// A set of feature vectors held in memory: images [1,1,d] of floats.
pub struct Features {
    meta: Meta,
    path: PathBuf,
    /// [len, d]
    rows: Vec<f32>,
    metadata: Metadata,
}

impl Features {
    /// Opens a file and verifies it. Errors: damage, missing parts, labels that are no class, values that are not finite.
    pub fn open(path: &Path, name: &str) -> Result<Features, DataError> {
        let fail = |detail: String| DataError::format(path, detail);
        let (tensors, metadata) = safe::read(path).map_err(|e| match e {
            tensor::TensorError::Io { path, source } => DataError::Io { path, source },
            other => fail(other.to_string()),
        })?;
        let part = |name: &str| {
            let missing = || fail(format!("no tensor {name:?}; expected a file that `retort features` wrote"));
            tensors.get(name).ok_or_else(missing)
        };
        let (feature, label) = (part("feature")?, part("label")?);
        let [len, size] = feature
            .shape()
            .dims()
            .try_into()
            .map_err(|_| fail(format!("feature has shape {}; expected [samples, values]", feature.shape())))?;
        if label.shape().dims() != [len] || len == 0 || size == 0 {
            return Err(fail(format!("{} labels for features {}; expected one a row", label.shape(), feature.shape())));
        }
        let named = |key: &str| {
            metadata.get(key).ok_or_else(|| fail(format!("no {key:?} in its metadata; make it with `retort features`")))
        };
        let (content, found) = (named("content")?, content(feature, label));
        if *content != found {
            return Err(fail(format!("content {found}, expected {content}: the file is damaged; make it anew")));
        }
        let classes: Vec<String> = serde_json::from_str(named("classes")?)
            .map_err(|e| fail(format!("classes: {e}; expected a list of names")))?;
        let rows = feature.view::<f32>().map_err(|e| fail(format!("feature: {e}")))?.to_vec();
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            return Err(fail(format!(
                "value {} of feature {} is {}; expected finite ones",
                at % size,
                at / size,
                rows[at]
            )));
        }
        let labels = label.view::<i32>().map_err(|e| fail(format!("label: {e}")))?;
        if let Some(at) = labels.iter().position(|&l| l < 0 || l as usize >= classes.len().min(limits::CLASSES)) {
            return Err(fail(format!(
                "label {at} is {}; expected 0 to {}",
                labels[at],
                classes.len().saturating_sub(1)
            )));
        }
        let labels = labels.iter().map(|&l| l as u32).collect();
        let meta = Meta { name: name.into(), classes, channels: size, size: Some([1, 1]), labels };
        Ok(Features { meta, path: path.to_path_buf(), rows, metadata })
    }

    /// Writes a file that `open` reads: `rows` [labels, d], and where they come from as `metadata`.
    pub fn write(
        path: &Path,
        rows: &[f32],
        labels: &[u32],
        classes: &[String],
        mut metadata: Metadata,
    ) -> Result<(), DataError> {
        let fail = |e: tensor::TensorError| match e {
            tensor::TensorError::Io { path, source } => DataError::Io { path, source },
            other => DataError::format(path, other.to_string()),
        };
        let size = rows.len() / labels.len().max(1);
        let feature = HostTensor::new(Shape::new(&[labels.len(), size]), rows).map_err(fail)?;
        let label: Vec<i32> = labels.iter().map(|&l| l as i32).collect();
        let label = HostTensor::new(Shape::new(&[labels.len()]), &label).map_err(fail)?;
        metadata.insert("content".into(), content(&feature, &label));
        metadata.insert("classes".into(), serde_json::json!(classes).to_string());
        let tensors = Tensors::from([("feature".to_string(), feature), ("label".to_string(), label)]);
        safe::write(path, &tensors, &metadata).map_err(fail)
    }

    /// Where the features come from.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

fn content(feature: &HostTensor, label: &HostTensor) -> String {
    let mut crc = crc32fast::Hasher::new();
    crc.update(feature.bytes());
    crc.update(label.bytes());
    format!("{:08x}", crc.finalize())
}

impl Dataset for Features {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, _index: usize, _image: &mut RawImage) -> Result<(), DataError> {
        Err(DataError::Setting(format!("{} holds feature vectors, and images were asked for", self.path.display())))
    }

    fn floats(&self, index: usize) -> Option<&[f32]> {
        let size = self.meta.channels;
        Some(&self.rows[index * size..][..size])
    }

    fn place(&self, index: usize) -> String {
        format!("{} row {index}", self.path.display())
    }
}
