//! A small data set, a recipe, and the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

pub(crate) const RECIPE: &str = r#"[data]
set = "fashion"
folder = "images"
[network]
name = "resnet8"
[method]
name = "ips"
[train]
epochs = 1
global_batch = 10
[optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
"#;

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The program where no GPU is to be found.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retort"));
    command.args(args).current_dir(folder).env_remove("RETORT_DATA").env_remove("NO_COLOR").stdin(Stdio::null());
    command.env_remove("LD_LIBRARY_PATH").env("CUDA_VISIBLE_DEVICES", "-1");
    command
}

pub(crate) fn retort_in(folder: &Path, args: &[&str]) -> Ran {
    ran(&mut command(folder, args))
}

pub(crate) fn ran(command: &mut Command) -> Ran {
    let done = command.output().expect("retort starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text is UTF-8");
    Ran { code: done.status.code().expect("an exit code"), out: text(done.stdout), err: text(done.stderr) }
}

/// A folder with `recipe.toml`.
pub(crate) fn with_recipe(text: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.toml"), text).unwrap();
    folder
}

/// Fashion-MNIST's files with a few images: grey levels by class.
pub(crate) fn small_fashion(folder: &Path, images: u32) -> PathBuf {
    fashion(folder, images, images)
}

/// As `small_fashion`, with so many to train on and so many to test with.
pub(crate) fn fashion(folder: &Path, train: u32, test: u32) -> PathBuf {
    let folder = folder.join("images");
    std::fs::create_dir_all(&folder).unwrap();
    for (prefix, images) in [("train", train), ("t10k", test)] {
        let mut pixels = vec![0, 0, 8, 3];
        pixels.extend([images, 28, 28].map(u32::to_be_bytes).concat());
        pixels.extend((0..images * 28 * 28).map(|i| (i / (28 * 28) % 10 * 20) as u8 + (i * 7 % 31) as u8));
        let mut labels = vec![0, 0, 8, 1];
        labels.extend(images.to_be_bytes());
        labels.extend((0..images).map(|i| (i % 10) as u8));
        std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), pixels).unwrap();
        std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).unwrap();
    }
    folder
}
