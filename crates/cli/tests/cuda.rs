//! The program on a GPU: the stand-in where LD_LIBRARY_PATH names its folder, a real one where there is one; else skipped aloud.

#[path = "support/program.rs"]
mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::{RECIPE, Ran, command, ran, retort_in, small_fashion, with_recipe};
use tempfile::TempDir;
use tensor::safe::{self, Metadata, Tensors};
use tensor::{HostTensor, Shape};

/// The program with the driver that these tests see.
fn with_driver(folder: &Path, args: &[&str]) -> Ran {
    ran(&mut command_with_driver(folder, args))
}

fn command_with_driver(folder: &Path, args: &[&str]) -> Command {
    let mut command = command(folder, args);
    for name in ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"] {
        match std::env::var_os(name) {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// The shipped quickstart with a small data set beside it; `None`, with the reason printed, where there is no GPU.
fn quickstart() -> Option<TempDir> {
    let folder = with_recipe(include_str!("../../../configs/quickstart.toml"));
    small_fashion(folder.path(), 24);
    let probe =
        with_driver(folder.path(), &["train", "recipe.toml", "--data", "images", "--device", "cuda", "--dry-run"]);
    if probe.code == 78 {
        println!("skipped: {}", probe.err.trim_end());
        return None;
    }
    assert_eq!(probe.code, 0, "{}", probe.err);
    Some(folder)
}

const CUT: [&str; 10] =
    ["--data", "images", "-b", "8", "--epochs", "1", "--set", "eval.batch=8", "--set", "output.log_every=1"];

/// Trains the cut-down quickstart.
fn train(folder: &Path, run: &str, args: &[&str]) {
    let ran = with_driver(folder, &[&["train", "recipe.toml", "-q", "--run", run], &CUT[..], args].concat());
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
}

/// Losses, terms and the evaluation of a run, by step and name.
fn losses(folder: &Path, run: &str) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(folder.join(run).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object a line"));
    let named = lines.flat_map(|line| {
        let of = |key: &str| line[key].as_str().map_or(line[key].to_string(), String::from);
        let at = format!("{} {}", of("kind"), of("step"));
        let values =
            line.as_object().unwrap().iter().filter(|(key, _)| key.contains("loss") || key.starts_with("term."));
        values.map(|(key, value)| (format!("{at} {key}"), value.as_f64().unwrap())).collect::<Vec<_>>()
    });
    named.collect()
}

#[track_caller]
fn close(got: &BTreeMap<String, f64>, expected: &BTreeMap<String, f64>, tolerance: f64) {
    assert!(expected.len() >= 6, "too little was logged: {expected:?}");
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let error = |name: &String| (got[name] - expected[name]).abs() / expected[name].abs().max(1e-3);
    let worst = expected.keys().max_by(|a, b| error(a).total_cmp(&error(b))).unwrap();
    println!("worst {:.1e} in {worst}", error(worst));
    assert!(error(worst) <= tolerance, "{worst}: {} on one device, {} on the other", got[worst], expected[worst]);
}

/// The tensors of a run's last checkpoint.
fn checkpoint(folder: &Path, run: &str) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder.join(run).join("checkpoints/step-3")).unwrap().map(|f| f.unwrap().path());
    let tensors = files.filter(|f| f.extension().is_some_and(|e| e == "safetensors"));
    tensors.map(|f| (f.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(f).unwrap())).collect()
}

#[test]
fn the_quickstart_in_f32_agrees_with_the_cpu_and_repeats_its_bits() {
    let Some(folder) = quickstart() else { return };
    let at = folder.path();
    train(at, "cpu", &["--device", "cpu"]);
    train(at, "gpu", &["--device", "cuda"]);
    close(&losses(at, "gpu"), &losses(at, "cpu"), 1e-4);
    train(at, "again", &["--device", "cuda:0"]);
    let (first, second) = (checkpoint(at, "gpu"), checkpoint(at, "again"));
    assert_eq!(first.len(), 2, "model and optimizer");
    assert!(first == second, "two runs on a GPU left other bytes");
    assert_eq!(losses(at, "gpu"), losses(at, "again"));
}

/// Starts it on two ranks, processes by hand, with these variables.
fn start_two(folder: &Path, run: &str, more: &[&str], variables: &[(&str, &str)]) -> [Child; 2] {
    [0, 1].map(|rank: usize| {
        let args = ["train", "recipe.toml", "-q", "--run", run];
        let mut command = command_with_driver(folder, &[&args, &CUT[..], more, &["--device", "cuda"]].concat());
        for (name, value) in [("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)] {
            command.env(format!("RETORT_{name}"), value.to_string());
        }
        command.envs(variables.iter().copied()).stderr(Stdio::piped()).spawn().unwrap()
    })
}

/// Trains it on two ranks.
fn train_on_two(folder: &Path, run: &str, more: &[&str], variables: &[(&str, &str)]) {
    for (rank, process) in start_two(folder, run, more, variables).into_iter().enumerate() {
        let done = process.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(0), "rank {rank}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Two micro-batches a step.
const IN_TWO: [&str; 3] = ["--micro-batch", "4", "--reproducible"];

#[test]
fn two_processes_end_with_the_weights_of_one() {
    let Some(folder) = quickstart() else { return };
    train(folder.path(), "one", &[&IN_TWO[..], &["--device", "cuda"]].concat());
    let one = checkpoint(folder.path(), "one");
    // By way of the host, both on the first GPU; then by NCCL, on two.
    train_on_two(
        folder.path(),
        "shared",
        &IN_TWO,
        &[("RETORT_SHARE_GPU", "1"), ("SIMGPU_DEVICES", "1"), ("CUDA_VISIBLE_DEVICES", "0")],
    );
    assert!(checkpoint(folder.path(), "shared") == one, "two ranks on one GPU");
    let second = ["train", "recipe.toml", "--data", "images", "--device", "cuda:1", "--dry-run"];
    if with_driver(folder.path(), &second).code != 0 {
        println!("skipped: there is one GPU, so nothing goes by NCCL");
        return;
    }
    train_on_two(folder.path(), "apart", &IN_TWO, &[]);
    assert!(checkpoint(folder.path(), "apart") == one, "two ranks on two GPUs");
}

/// Sums of the captured phase, in several buckets; gradients as they are, and rounded on their way.
#[test]
fn gradients_may_go_between_gpus_as_bf16() {
    let Some(folder) = quickstart() else { return };
    let second = ["train", "recipe.toml", "--data", "images", "--device", "cuda:1", "--dry-run"];
    if with_driver(folder.path(), &second).code != 0 {
        return println!("skipped: there is one GPU");
    }
    let narrow = ["--micro-batch", "4", "--set", "ranks.link=1GB/s", "--set", "ranks.latency=1us"];
    train_on_two(folder.path(), "f32", &narrow, &[]);
    train_on_two(folder.path(), "bf16", &[&narrow[..], &["--set", "ranks.gradients=bf16"]].concat(), &[]);
    let [whole, rounded] = ["f32", "bf16"].map(|run| losses(folder.path(), run));
    close(&rounded, &whole, 3e-2);
    assert!(rounded != whole, "nothing was rounded");
}

#[test]
fn the_quickstart_in_bf16_agrees_with_the_cpu() {
    let Some(folder) = quickstart() else { return };
    train(folder.path(), "cpu", &["--device", "cpu", "--precision", "bf16"]);
    train(folder.path(), "gpu", &["--device", "cuda", "--precision", "bf16"]);
    // The KL term, a thousandth of the loss, is the gap of two nearly equal softmaxes: roundings of the logits are much of it.
    let [got, expected] = ["gpu", "cpu"].map(|run| losses(folder.path(), run));
    let part = |of: &BTreeMap<String, f64>, kl| -> BTreeMap<String, f64> {
        of.iter().filter(|(name, _)| name.ends_with(".kd") == kl).map(|(name, &x)| (name.clone(), x)).collect()
    };
    close(&part(&got, false), &part(&expected, false), 3e-2);
    close(&part(&got, true), &part(&expected, true), 1e-1);
}

#[test]
fn a_run_saved_on_one_device_goes_on_on_the_other() {
    let Some(folder) = quickstart() else { return };
    let at = folder.path();
    train(at, "whole", &["--device", "cpu"]);
    for (run, first, then) in [("to_cpu", "cuda", "cpu"), ("to_gpu", "cpu", "cuda")] {
        train(at, run, &["--device", first, "--max-steps", "1"]);
        train(at, run, &["--device", then]);
        close(&losses(at, run), &losses(at, "whole"), 1e-4);
    }
}

/// Tensors as `retort step --describe --json` lists them, for two units.
fn made_up(wanted: &Value) -> Tensors {
    let tensor = |w: &Value| {
        let (name, text) = (w["name"].as_str().unwrap(), |d: &Value| d.as_str().unwrap().to_string());
        let size = |d: &Value| match text(d).strip_suffix('n') {
            Some(rows) => 2 * rows.parse().unwrap_or(1),
            None => text(d).parse().unwrap(),
        };
        let dims: Vec<usize> = w["shape"].as_array().unwrap().iter().map(size).collect();
        let (shape, n) = (Shape::new(&dims), dims.iter().product::<usize>());
        let wave = |i: usize| ((i * 7919 + name.len() * 31) % 1009) as f32 / 504.5 - 1.0;
        let fan = dims.iter().skip(1).product::<usize>().max(1) as f32;
        let float = |i: usize| match name {
            _ if name.contains("image") => wave(i),
            _ if name.ends_with("running_var") || (dims.len() == 1 && name.ends_with("weight")) => 1.0 + 0.4 * wave(i),
            _ => (2.0 / fan).sqrt().min(0.4) * wave(i),
        };
        let made = if w["dtype"] == "int" {
            HostTensor::new(shape, &(0..n).map(|i| (i % 2) as i32).collect::<Vec<_>>())
        } else {
            HostTensor::new(shape, &(0..n).map(float).collect::<Vec<_>>())
        };
        (name.to_string(), made.unwrap())
    };
    wanted.as_array().unwrap().iter().map(tensor).collect()
}

#[test]
fn a_step_is_within_its_bounds_node_by_node() {
    let Some(folder) = quickstart() else { return };
    let at = folder.path();
    let described = retort_in(at, &["step", "recipe.toml", "--describe", "--json"]);
    let wanted: Value = serde_json::from_str(&described.out).expect("one JSON object");
    for name in ["weights", "batch"] {
        safe::write(&at.join(name), &made_up(&wanted[name]), &Metadata::new()).unwrap();
    }
    let step = ["step", "recipe.toml", "--weights", "weights", "--batch", "batch", "--out"];
    let loss = |file: &str| safe::read(&at.join(file)).unwrap().0["loss"].to_f64().unwrap()[0];
    for (precision, tolerance) in [("f32", 1e-5), ("tf32", 5e-3), ("bf16", 3e-2)] {
        let flags = ["--precision", precision, "--device"];
        let on_gpu = [&step[..], &["gpu"], &flags, &["cuda", "--against", "cpu"]].concat();
        let ran = with_driver(at, &on_gpu);
        assert_eq!(ran.code, 0, "{precision}: {}{}", ran.out, ran.err);
        let verdict = ran.out.lines().last().unwrap_or_default();
        assert!(verdict.starts_with("against cpu: ") && verdict.contains("launches, all within"), "{}", ran.out);
        println!("{precision}: {verdict}");
        let ran = with_driver(at, &[&step[..], &["cpu"], &flags, &["cpu"]].concat());
        assert_eq!(ran.code, 0, "{precision}: {}", ran.err);
        let (got, expected) = (loss("gpu"), loss("cpu"));
        assert!((got - expected).abs() <= tolerance * expected, "{precision}: {got} on the GPU, {expected} on the CPU");
    }
    let ran = with_driver(at, &[&step[..], &["cpu", "--device", "cpu", "--against", "cpu"]].concat());
    assert_eq!(ran.code, 78, "{}", ran.err);
    assert!(ran.err.contains("--device cuda") && ran.err.contains("--against f64"), "{}", ran.err);
}

#[test]
fn what_a_gpu_cannot_do_is_said() {
    if quickstart().is_none() {
        return;
    }
    let folder = with_recipe(RECIPE);
    small_fashion(folder.path(), 24);
    let refused = with_driver(folder.path(), &["train", "recipe.toml", "--device", "cuda:99"]);
    assert_eq!((refused.code, refused.err.lines().count()), (78, 1), "{}", refused.err);
    assert!(refused.err.contains("no GPU 99: this machine has "), "{}", refused.err);
    let refused = with_driver(folder.path(), &["train", "recipe.toml", "--device", "cuda", "--precision", "f64"]);
    assert_eq!(refused.code, 78, "{}", refused.err);
    // The GPU is the default where it works, so the stand-in is refused with no flag.
    let measured = with_driver(folder.path(), &["bench", "recipe.toml", "--steps", "5", "--windows", "2"]);
    if measured.err.contains("stand-in") {
        assert_eq!(
            (measured.code, measured.err.lines().count(), measured.out.as_str()),
            (78, 1, ""),
            "{}",
            measured.err
        );
    } else {
        assert_eq!(measured.code, 0, "{}", measured.err);
        assert!(measured.out.contains("a step, captured"), "{}", measured.out);
    }
}

/// A rank whose GPU never takes part in a sum: the report says which one all GPUs are in, by the words that they wrote themselves, for
/// the hosts only wait for them.
#[test]
fn a_hang_between_gpus_is_reported_with_its_bucket() {
    let Some(folder) = quickstart() else { return };
    let devices = std::env::var("SIMGPU_DEVICES").ok().and_then(|n| n.parse::<usize>().ok());
    if devices.is_none_or(|n| n < 2) {
        return println!("skipped: only the stand-in hangs when it is told to (with SIMGPU_DEVICES=2)");
    }
    // Also the limit of the first step, and of all that comes before it.
    let hang = ["--set", "ranks.hang_s=4", "--set", "ranks.slow_phase_s=10", "--set", "ranks.heartbeat_s=0.2"];
    let shared = ["--micro-batch", "4"];
    let fault = [("SIMNCCL_FAULT", "rank=1,op=all_reduce,seq=1,do=hang")];
    let ranks = start_two(folder.path(), "hung", &[&shared[..], &hang].concat(), &fault);
    let ended = ranks.map(|rank| rank.wait_with_output().unwrap());
    let said = ended.each_ref().map(|rank| String::from_utf8_lossy(&rank.stderr));
    assert_eq!(ended.each_ref().map(|rank| rank.status.code()), [Some(77); 2], "{said:?}");
    assert!(said[0].contains(" hung: all_reduce of bucket 1 of 1, step "), "{}", said[0]);
    assert!(said[0].contains("all ranks, also ") && said[0].contains(", wait in it; "), "{}", said[0]);
}
