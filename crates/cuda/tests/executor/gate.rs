//! What is said where there is no GPU, too old a driver, or too few devices. A process has one driver, so each case runs
//! this test program again with another environment.

use cuda::{Executor, Math, Mode, devices};
use std::path::Path;
use std::process::Command;

/// What a process with this environment says of the GPU that `GATE_CHILD` counts to.
fn says(set: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "gate::child", "--nocapture"]).env("GATE_CHILD", "0").env_remove("SIMGPU_DEVICES");
    let output = command.envs(set.iter().copied()).output().expect("this program runs again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().find_map(|l| Some(l.split_once("GATE: ")?.1.to_string())).unwrap_or_else(|| panic!("said {text}"))
}

/// The child's part; nothing in an ordinary run.
#[test]
fn child() {
    let Some(ordinal) = std::env::var("GATE_CHILD").ok().and_then(|n| n.parse().ok()) else { return };
    match Executor::new(ordinal, Mode::Captured, Math::F32) {
        Ok(executor) => println!("GATE: opened {}", executor.describe()),
        Err(e) => println!("GATE: {}{e}", if e.is_absence() { "" } else { "not an absence: " }),
    }
}

/// Builds a driver library of a few lines of C; `None` where there is no compiler.
fn fake_driver(folder: &Path, source: &str) -> Option<()> {
    let file = folder.join("driver.c");
    std::fs::write(&file, source).expect("a temporary folder is writable");
    let library = folder.join("libcuda.so.1");
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(file).status();
    match built {
        Ok(status) => {
            assert!(status.success(), "gcc refuses {source}");
            Some(())
        }
        Err(e) => {
            println!("skipped: gcc: {e}");
            None
        }
    }
}

#[test]
fn without_a_driver_it_is_said() {
    let text = says(&[("LD_LIBRARY_PATH", "")]);
    if text.starts_with("opened") {
        println!("skipped: this machine has a driver of its own");
        return;
    }
    assert!(text.contains("libcuda.so.1 was not found") && text.contains("--device cpu"), "{text}");
}

#[test]
fn an_old_driver_is_named_with_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let source = "int cuDriverGetVersion(int *v) { *v = 12040; return 0; }";
    if fake_driver(folder.path(), source).is_some() {
        let text = says(&[("LD_LIBRARY_PATH", folder.path().to_str().unwrap())]);
        assert!(text.contains("is for CUDA 12.4, expected 13.0 or newer") && text.contains("580"), "{text}");
    }
}

#[test]
fn a_missing_function_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = "int cuDriverGetVersion(int *v) { *v = 13010; return 0; }\nint cuInit(unsigned f) { return f; }";
    if fake_driver(folder.path(), source).is_some() {
        let text = says(&[("LD_LIBRARY_PATH", folder.path().to_str().unwrap())]);
        assert!(text.contains("lacks the function cuGetErrorName"), "{text}");
    }
}

#[test]
fn no_device_and_a_number_too_high_are_said() {
    let all = match devices() {
        Ok(all) => all,
        Err(e) => return println!("skipped: {e}"),
    };
    let count = all.len().to_string(); // the stand-in's is a variable, which the child does not inherit
    let text = says(&[("GATE_CHILD", "97"), ("SIMGPU_DEVICES", &count)]);
    assert_eq!(text, format!("no GPU 97: this machine has {} (numbered from 0)", all.len()));
    // CUDA_VISIBLE_DEVICES hides real ones, SIMGPU_DEVICES those of the stand-in.
    let text = says(&[("SIMGPU_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "")]);
    assert!(text.contains("finds no GPU"), "{text}");
}

#[test]
fn devices_say_what_they_are() {
    let Ok(all) = devices() else { return println!("skipped: no GPU") };
    for (i, facts) in all.iter().enumerate() {
        assert_eq!(facts.ordinal, i);
        assert!(!facts.name.is_empty() && facts.sms > 0 && facts.memory_bytes > 1 << 20, "{facts:?}");
        assert!(facts.uuid.len() == 40 && facts.uuid.starts_with("GPU-"), "{facts:?}");
    }
}
