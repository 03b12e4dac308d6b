//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// What can go wrong between a file and a batch.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A file or folder does not have the promised structure. `detail` says expected, got and remedy.
    #[error("{}: {detail}", path.display())]
    Format { path: PathBuf, detail: String },
    /// One image cannot be used; the policy on bad samples decides what follows.
    #[error("sample {index} ({place}): {reason}")]
    Sample { index: usize, place: String, reason: String },
    /// A setting is out of range or contradicts the data set.
    #[error("{0}")]
    Setting(String),
    /// A worker thread ended without a result: a bug, not a fault of the data.
    #[error("a data worker thread ended early while preparing micro-batch {0}; its message is on stderr")]
    Worker(u32),
}

impl DataError {
    /// For `map_err`: an I/O error with its path.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
        let path = path.to_path_buf();
        move |source| DataError::Io { path, source }
    }

    pub(crate) fn format(path: &Path, detail: impl Into<String>) -> DataError {
        DataError::Format { path: path.to_path_buf(), detail: detail.into() }
    }
}
