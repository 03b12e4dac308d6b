//! The command line as users meet it: exit codes, what is on stdout and stderr, and where errors point.

#[path = "support/program.rs"]
mod support;

use std::path::Path;
use std::process::Stdio;
use support::{RECIPE, Ran, command, retort_in, small_fashion, with_recipe};

fn retort(args: &[&str]) -> Ran {
    retort_in(Path::new("."), args)
}

#[test]
fn help_and_version_are_results() {
    let help = retort(&["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for command in ["train", "eval", "plan", "bench", "doctor", "pack", "import", "export", "predict"] {
        assert!(help.out.contains(&format!("\n  {command} ")), "{command} is not in {}", help.out);
        let own = retort(&[command, "--help"]);
        assert_eq!(own.code, 0, "{command}: {}", own.err);
        assert!(own.out.contains(&format!("retort {command} ")), "{command} has no example: {}", own.out);
    }
    let version = retort(&["--version"]);
    assert_eq!((version.code, version.out.as_str()), (0, concat!("retort ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn usage_errors_end_with_64_and_name_the_nearest_flag() {
    let cases: [(&[&str], &str); 7] = [
        (&["train", "r.toml", "--epoch", "3"], "'--epochs'"),
        (&["trian", "r.toml"], "'train'"),
        (&["train", "r.toml", "--ranks", "0"], "at least 1"),
        (&["train", "r.toml", "--device", "gpu"], "cpu, cuda"),
        (&["predict", "a.png"], "--run"),
        (&["eval", "x", "--split", "tset"], "expected train, val or test"),
        (&[], "Usage"),
    ];
    for (args, expected) in cases {
        let ran = retort(args);
        assert_eq!(ran.code, 64, "{args:?}: {}", ran.err);
        assert!(ran.out.is_empty() && ran.err.contains(expected), "{args:?}: {}", ran.err);
    }
}

#[test]
fn a_misspelt_key_is_drawn_with_its_line_and_the_nearest_name() {
    let folder = with_recipe(&RECIPE.replace("momentum", "momentun"));
    let ran = retort_in(folder.path(), &["train", "recipe.toml"]);
    assert_eq!((ran.code, ran.out.as_str()), (64, ""));
    for part in ["unknown field `momentun`", "[recipe.toml:14:1]", "14 │ momentun = 0.9", "did you mean `momentum`?"]
    {
        assert!(ran.err.contains(part), "no {part} in {}", ran.err);
    }
    assert!(!ran.err.contains('\x1b'), "colour where there is no terminal: {}", ran.err);
    let colored = retort_in(folder.path(), &["train", "recipe.toml", "--color", "always"]);
    assert!(colored.err.contains('\x1b'));
}

#[test]
fn wrong_edits_are_shown_as_they_were_given() {
    let folder = with_recipe(RECIPE);
    let cases: [(&[&str], &[&str]); 5] = [
        (&["--set", "optimizer.momentun=1"], &["command line:1:7", "--set optimizer.momentun=1", "`momentum`"]),
        (&["--set", "method.alfa=1"], &["unknown field `alfa`", "--set method.alfa=1", "did you mean `alpha`?"]),
        (&["--set", "epochs"], &["there is no `=`"]),
        (&["--epochs", "many"], &["--set train.epochs=many", "expected a whole number"]),
        (&["--lr", "-1"], &["optimizer.lr: expected a finite number above 0, got -1"]),
    ];
    for (args, parts) in cases {
        let ran = retort_in(folder.path(), &[&["train", "recipe.toml"], args].concat());
        assert_eq!(ran.code, 64, "{args:?}: {}", ran.err);
        for part in parts {
            assert!(ran.err.contains(part), "{args:?}: no {part} in {}", ran.err);
        }
    }
}

#[test]
fn what_cannot_run_is_said_before_anything_runs() {
    let folder = with_recipe(RECIPE);
    let ran = retort_in(folder.path(), &["train", "recipe.toml"]);
    assert_eq!(ran.code, 64);
    assert!(
        ran.err.contains("data.folder: there is nothing at") && ran.err.contains("[recipe.toml:3:10]"),
        "{}",
        ran.err
    );
    let ran = retort_in(folder.path(), &["train", "recipe.toml", "--ranks", "4"]);
    assert!(ran.err.contains("global_batch 10 is not divisible by world_size 4"), "{}", ran.err);
    assert!(ran.err.contains("use 8 or 12"), "{}", ran.err);
    for command in ["train", "bench"] {
        for device in ["cuda", "cuda:7"] {
            let ran = retort_in(folder.path(), &[command, "recipe.toml", "--device", device]);
            assert_eq!((ran.code, ran.err.lines().count()), (78, 1), "{command}: {}", ran.err);
            assert!(ran.err.contains("CUDA driver") && ran.err.contains("--device cpu"), "{command}: {}", ran.err);
        }
    }
    let ran = retort_in(folder.path(), &["train", "no.toml"]);
    assert_eq!(ran.code, 64);
    assert!(ran.err.contains("no.toml: cannot read the recipe"), "{}", ran.err);
    assert!(std::fs::read_dir(folder.path()).unwrap().count() == 1, "nothing was written");
}

#[test]
fn pickles_are_never_opened() {
    let folder = with_recipe(RECIPE);
    // A folder in the place of the file: opening it would be another error.
    std::fs::create_dir(folder.path().join("net.pth")).unwrap();
    let cases: [&[&str]; 5] = [
        &["import", "--from", "net.pth", "--net", "resnet8", "--to", "x.safetensors"],
        &["eval", "recipe.toml", "--weights", "net.pth"],
        &["predict", "--weights", "net.pth", "a.png"],
        &["train", "recipe.toml", "--init-weights", "net.pth"],
        &["train", "recipe.toml", "--set", "train.init_weights=net.PT"],
    ];
    for args in cases {
        let ran = retort_in(folder.path(), args);
        assert_eq!(ran.code, 64, "{args:?}: {}", ran.err);
        assert!(ran.err.contains("pickle is never opened; see `retort import --help`"), "{args:?}: {}", ran.err);
    }
    let help = retort(&["import", "--help"]).out;
    assert!(help.contains("torch.load(\"net.pth\"") && help.contains("save_file("), "{help}");
}

#[test]
fn pack_writes_a_set_and_says_how_much() {
    let folder = tempfile::tempdir().unwrap();
    small_fashion(folder.path(), 30);
    let args = ["pack", "--set", "fashion", "--from", "images", "--split", "test", "--to", "test.pack"];
    let ran = retort_in(folder.path(), &args);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("test.pack: 30 images, ") && ran.out.ends_with(", 0 left out\n"), "{}", ran.out);
    let again = ["pack", "--set", "packed", "--from", ".", "--split", "test", "--to", "raw.pack", "--codec", "raw"];
    let ran = retort_in(folder.path(), &again);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let bytes = std::fs::metadata(folder.path().join("raw.pack")).unwrap().len();
    assert!(bytes > 30 * 28 * 28 && ran.out.contains(&format!("{bytes} bytes")), "{bytes}: {}", ran.out);
    std::fs::write(folder.path().join("test.pack"), b"no").unwrap();
    let ran = retort_in(folder.path(), &again);
    assert_eq!(ran.code, 65, "{}", ran.err);
    assert!(ran.err.starts_with("retort: ") && ran.err.contains("test.pack"), "{}", ran.err);
    let ran = retort_in(folder.path(), &["pack", "--set", "fashoin", "--from", "images", "--to", "x.pack"]);
    assert_eq!(ran.code, 64, "{}", ran.err);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    small_fashion(folder.path(), 10);
    for args in [&["pack", "--set", "fashion", "--from", "images", "--to", "a.pack"][..], &["train", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let done = command(folder.path(), args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned()), (Some(0), String::new()));
    }
}

#[test]
fn a_plan_predicts_the_scaling_of_a_recipe() {
    let folder = with_recipe(RECIPE);
    let plan = |args: &[&str]| retort_in(folder.path(), &[&["plan", "recipe.toml", "-b", "64"], args].concat());
    let shown = plan(&["--world-size", "4", "--link", "400Gb/s", "--latency", "50us", "--step-ms", "12.5"]);
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    for part in
        ["4 ranks, micro-batches of 16", "t = 50 µs + 2 (4 − 1) / 4 × bytes / 50 GB/s", "ready after", "efficiency"]
    {
        assert!(shown.out.contains(part), "no {part} in {}", shown.out);
    }
    let bound = plan(&["--world-size", "4", "--link", "450GB/s"]);
    assert_eq!((bound.code, bound.err.as_str()), (0, ""));
    assert!(bound.out.contains("what an H100 takes at least") && bound.out.contains("efficiency"), "{}", bound.out);
    let cases: [(&[&str], &str); 6] = [
        (&["--world-size", "4", "--link", "450", "--step-ms", "1"], "400Gb/s"),
        (&["--world-size", "4", "--link", "45GB/s", "--latency", "20", "--step-ms", "1"], "20us"),
        (&["--world-size", "1", "--link", "45GB/s", "--step-ms", "1"], "2.."),
        (&["--world-size", "4"], "--link"),
        (&["--world-size", "4", "--link", "45GB/s", "--step-ms", "0"], "milliseconds above 0"),
        (&["--world-size", "7", "--link", "45GB/s", "--step-ms", "1"], "not divisible by world_size 7"),
    ];
    for (args, expected) in cases {
        let ran = plan(args);
        assert_eq!((ran.code, ran.out.as_str()), (64, ""), "{args:?}: {}", ran.err);
        assert!(ran.err.contains(expected), "{args:?}: {}", ran.err);
    }
}
