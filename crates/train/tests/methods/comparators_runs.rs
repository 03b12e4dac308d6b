//! Every method trains on a small set through sampler, views and draws; stopped in the middle and gone on with, and on two ranks, it
//! ends with the same bits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use train::recipe::Recipe;
use train::{Exit, RunOptions, Session, Verbosity};

/// Two steps of 8 and one of 6.
const IMAGES: u32 = 22;

/// Fashion-MNIST's files with a few images: noise on grey levels by class. The last class has one image, the others two or three.
pub(crate) fn small_set(folder: &Path) {
    for prefix in ["train", "t10k"] {
        let mut pixels = vec![0, 0, 8, 3];
        pixels.extend([IMAGES, 28, 28].map(u32::to_be_bytes).concat());
        pixels.extend(
            (0..IMAGES * 784).map(|i| (i / 784 % 9 * 20) as u8 + (i.wrapping_mul(2_654_435_761) >> 25) as u8 / 2),
        );
        let mut labels = vec![0, 0, 8, 1];
        labels.extend(IMAGES.to_be_bytes());
        labels.extend((0..IMAGES).map(|i| if i == 9 { 9 } else { (i % 9) as u8 }));
        std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), pixels).unwrap();
        std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).unwrap();
    }
}

struct Job<'a> {
    folder: &'a Path,
    method: &'a str,
    teacher: Option<PathBuf>,
}

impl Job<'_> {
    fn recipe(&self) -> String {
        let teacher = self.teacher.as_ref();
        let teacher = teacher.map(|w| format!("[[teacher]]\nname = \"resnet8\"\nweights = \"{}\"\n", w.display()));
        format!(
            "[data]\nset = \"fashion\"\nfolder = \"{}\"\naugment = \"pad_crop_flip\"\npad = 2\n[network]\nname = \"resnet8\"\n{}\
             [method]\nname = \"{}\"\n[train]\nepochs = 2\nglobal_batch = 8\nmicro_batch = 4\nseed = 5\nreproducible = true\n\
             [optimizer]\nname = \"sgd\"\nlr = 0.02\nnesterov = true\nweight_decay = 5e-4\n[eval]\nbatch = 32\n[output]\nlog_every = 1\n",
            self.folder.display(),
            teacher.unwrap_or_default(),
            self.method
        )
    }

    /// Trains into folder `run`; steps made.
    fn train(&self, run: &str, ranks: usize, edits: &[&str]) -> u64 {
        let edits: Vec<String> = edits.iter().map(|e| e.to_string()).collect();
        let loaded = Recipe::parse(self.recipe(), &self.folder.join("small.toml"), &edits).unwrap();
        let run_dir = Some(self.folder.join(run));
        let options = RunOptions { run_dir, ranks, threads: 1, verbosity: Verbosity::Quiet, ..RunOptions::default() };
        let outcome = Session::open(loaded, options).and_then(|session| session.train());
        let outcome = outcome.unwrap_or_else(|e| panic!("{}: {e}", self.method));
        assert!(!outcome.degraded && outcome.exit == Exit::Done, "{}: {:?}", self.method, outcome.exit);
        outcome.steps
    }

    /// Files of the newest checkpoint but the manifest, and metrics without the clock.
    fn state(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let run = self.folder.join(run);
        let latest = std::fs::read_to_string(run.join("checkpoints/latest")).unwrap();
        let files = std::fs::read_dir(run.join("checkpoints").join(latest.trim())).unwrap().map(|e| e.unwrap());
        let files = files.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
        let mut state: BTreeMap<_, _> = files.filter(|(name, _)| name != "manifest.json").collect();
        let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        for (i, line) in metrics.lines().enumerate() {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("t").unwrap();
            state.insert(format!("line {i} of metrics"), line.to_string().into_bytes());
        }
        state
    }

    fn assert_equal(&self, run: &str, expected: &str) {
        let (found, expected) = (self.state(run), self.state(expected));
        let names = |state: &BTreeMap<String, Vec<u8>>| state.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{} {run}", self.method);
        for (name, bytes) in &found {
            let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
            assert!(
                *bytes == expected[name],
                "{} {run}: {name}\n{}\n{}",
                self.method,
                text(bytes),
                text(&expected[name])
            );
        }
    }
}

/// 7.10 and 7.12 among them: memory and the last batch are in the checkpoint. A class of one image pairs it with itself.
#[test]
fn every_method_goes_on_where_it_stopped_and_needs_no_certain_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    small_set(folder.path());
    let first = Job { folder: folder.path(), method: "ce", teacher: None };
    first.train("teacher", 1, &["train.max_steps=2"]);
    let weights = folder.path().join("teacher.safetensors");
    train::export(&folder.path().join("teacher"), false, &weights).unwrap();
    for method in methods::MethodSpec::names() {
        let taught = ["kd", "dkd", "normkd", "dist", "tf_kd_self", "pll", "crld", "atsc", "simkd"].contains(&method);
        let job = Job { folder: folder.path(), method, teacher: taught.then(|| weights.clone()) };
        let steps = job.train(&format!("{method}-whole"), 1, &[]);
        assert_eq!(steps, 6, "{method}: 22 units in steps of 8, twice");
        // In the first epoch, at the end of one, in the last.
        for stop in ["1", "3", "5"] {
            job.train(&format!("{method}-parts"), 1, &[&format!("train.max_steps={stop}")]);
        }
        job.train(&format!("{method}-parts"), 1, &[]);
        job.assert_equal(&format!("{method}-parts"), &format!("{method}-whole"));
        job.train(&format!("{method}-ranks"), 2, &[]);
        job.assert_equal(&format!("{method}-ranks"), &format!("{method}-whole"));
    }
}

/// 4.7: decay that nothing opposes shrinks the adapted teacher's features; the run says so once, also when it is gone on with.
#[test]
fn a_collapse_of_the_adapted_teacher_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    small_set(folder.path());
    Job { folder: folder.path(), method: "ce", teacher: None }.train("teacher", 1, &["train.max_steps=2"]);
    let weights = folder.path().join("teacher.safetensors");
    train::export(&folder.path().join("teacher"), false, &weights).unwrap();
    let job = Job { folder: folder.path(), method: "atsc", teacher: Some(weights) };
    let shrinking =
        ["optimizer.weight_decay=5.0", "optimizer.momentum=0.0", "optimizer.nesterov=false", "train.epochs=14"];
    let loose = ["method.anchor_weight=0.0", "method.anchor_bn=false"];
    let edits = [&shrinking[..], &loose[..]].concat();
    let alarms = || {
        let metrics = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
        metrics.lines().filter(|line| line.contains("\"alarm\"") && line.contains("\"feature_rms\"")).count()
    };
    job.train("run", 1, &[&edits[..], &["train.max_steps=6"]].concat());
    assert_eq!(alarms(), 0, "six steps leave half of the scale");
    job.train("run", 1, &[&edits[..], &["train.max_steps=36"]].concat());
    assert_eq!(alarms(), 1);
    job.train("run", 1, &edits);
    assert_eq!(alarms(), 1, "an alarm is remembered");
}
