//! A folder of class folders of JPEG and PNG files, `class/*.{JPEG,jpg,jpeg,png}`.
//!
//! Classes are the folders sorted by name (code points, as torchvision does), images the files sorted by name inside a class.

use std::fs;
use std::path::{Path, PathBuf};

use crate::dataset::{Dataset, Meta, RawImage, limits};
use crate::decode::decode_image;
use crate::error::DataError;

/// An image folder; files are read when asked for.
pub struct Folder {
    meta: Meta,
    root: PathBuf,
    /// File name of each image.
    files: Vec<Box<str>>,
}

impl Folder {
    /// Lists `root`, the folder of one split. Every class folder must have an image.
    pub fn open(root: &Path, name: &str) -> Result<Folder, DataError> {
        let classes = sorted_names(root, |path| path.is_dir())?;
        if classes.is_empty() || classes.len() > limits::CLASSES {
            return Err(DataError::format(
                root,
                format!("{} class folders; expected one folder a class", classes.len()),
            ));
        }
        let (mut files, mut labels) = (Vec::new(), Vec::new());
        for (label, class) in classes.iter().enumerate() {
            let folder = root.join(class);
            let images = sorted_names(&folder, has_image_suffix)?;
            if images.is_empty() {
                return Err(DataError::format(
                    &folder,
                    "class folder has no .jpeg, .jpg or .png file; remove it or add images",
                ));
            }
            labels.resize(labels.len() + images.len(), label as u32);
            files.extend(images.into_iter().map(String::into_boxed_str));
        }
        if u32::try_from(files.len()).is_err() {
            return Err(DataError::format(root, format!("{} images; expected fewer than 2^32", files.len())));
        }
        let meta = Meta { name: name.into(), classes, channels: 3, size: None, labels };
        Ok(Folder { meta, root: root.to_path_buf(), files })
    }

    fn path(&self, index: usize) -> PathBuf {
        self.root.join(&self.meta.classes[self.label(index) as usize]).join(&*self.files[index])
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let path = self.path(index);
        let bytes = fs::metadata(&path).map_err(DataError::io(&path))?.len();
        if bytes > limits::FILE_BYTES {
            return Err(self.sample_error(index, format!("{bytes} bytes; expected at most {}", limits::FILE_BYTES)));
        }
        fs::read(&path).map_err(DataError::io(&path))
    }

    fn sample_error(&self, index: usize, reason: String) -> DataError {
        DataError::Sample { index, place: self.place(index), reason }
    }
}

fn has_image_suffix(path: &Path) -> bool {
    let suffix = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    ["jpeg", "jpg", "png"].iter().any(|known| suffix.eq_ignore_ascii_case(known))
}

/// Names of the entries of `folder` whose path passes `keep`, sorted.
fn sorted_names(folder: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = entry.map_err(DataError::io(folder))?.path();
        if keep(&path) {
            let name = path.file_name().and_then(|n| n.to_str());
            names.push(name.ok_or_else(|| DataError::format(&path, "name is not UTF-8; rename it"))?.to_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}

impl Dataset for Folder {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn read(&self, index: usize, image: &mut RawImage) -> Result<(), DataError> {
        decode_image(&self.bytes(index)?, image).map_err(|reason| self.sample_error(index, reason))
    }

    fn place(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn encoded(&self, index: usize) -> Result<Option<Vec<u8>>, DataError> {
        self.bytes(index).map(Some)
    }
}
