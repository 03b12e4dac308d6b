//! Shipped recipes of several stages, cut short: one command trains the teacher and the student, and the run is read as one.

use crate::program::{retort_in, small_fashion};
use std::path::PathBuf;

const CUT: [&str; 10] =
    ["-q", "--epochs", "1", "--max-steps", "2", "--global-batch", "8", "--set", "output.log_every=1", "--data"];

#[test]
fn a_teacher_and_its_student_are_one_run() {
    let folder = tempfile::tempdir().unwrap();
    small_fashion(folder.path(), 40);
    let configs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs/fashion");
    for method in ["kd", "atsc", "simkd", "crld"] {
        let recipe = configs.join(format!("{method}_resnet8.toml")).display().to_string();
        let ok = |args: &[&str]| {
            let ran = retort_in(folder.path(), args);
            assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
            ran.out
        };
        let train = [&["train", &recipe, "--run", method][..], &CUT, &["images"]].concat();
        ok(&train);
        for stage in ["teacher", "student"] {
            assert!(folder.path().join(method).join(stage).join("final.safetensors").is_file(), "{method} {stage}");
        }
        // The student's folder is what the run came to; its weights alone give the same figures.
        let (by_run, by_stage) = (ok(&["eval", method]), ok(&["eval", &format!("{method}/student")]));
        assert_eq!(by_run, by_stage, "{method}");
        ok(&["export", method, "--to", "weights.safetensors"]);
        let by_file = ok(&["eval", &format!("{method}/student/recipe.toml"), "--weights", "weights.safetensors"]);
        assert_eq!(by_run, by_file, "{method}");
        // Complete stages are not trained again.
        ok(&train);
    }
}
