//! Every golden of a method (tests/goldens/methods, PyTorch, f64), run as `retort step` runs it: recipe, weights and batch as files.
//!
//! A file's attributes: `recipe`, the TOML text; `weights` and `teachers`, names and published shapes, whose values come from the formula
//! of tests/goldens/README.md; `steps` and `epoch`; `limits`, tolerances of coarser arithmetic. Tensors `in.NAME` are the batch, `out.NAME`
//! what the step must write.

mod bench;
mod bf16;
mod comparators;
mod comparators_data;
mod comparators_faults;
mod comparators_runs;
#[path = "../goldens/golden.rs"]
#[allow(dead_code)] // the other tests read more of it
mod golden;
mod oracles_atsc;
mod oracles_crld;
mod oracles_ips;
mod oracles_mixskd;
mod oracles_pll;
mod probe;
mod replayed;
#[path = "../../../nets/tests/support/wave.rs"]
mod wave;

use golden::{Differences, Golden, names};
use replayed::Replayed;

/// The tolerance of a precision: the file's own where its small batches amplify roundings, else `least`.
fn limit(golden: &Golden, precision: &str, least: f64) -> f64 {
    golden.attr["limits"][precision].as_f64().unwrap_or(golden.tolerance).max(least)
}

/// Runs the file's steps in a precision and compares every `out.` tensor.
fn check(name: &str, precision: &str, least: f64) {
    let golden = Golden::open("methods", name);
    let results = Replayed::of(&golden).run(precision);
    let mut found = Differences::new(format!("{name} {precision}"));
    for key in golden.after("out.") {
        let got = results.get(key).unwrap_or_else(|| panic!("{name}: the step wrote no {key}: {:?}", results.keys()));
        let both = (&got.to_f64().unwrap()[..], &golden.get(&format!("out.{key}"))[..]);
        found.add(key, both, limit(&golden, precision, least));
    }
}

fn each(check: impl Fn(&str) + std::panic::RefUnwindSafe) {
    each_of("methods", check);
}

/// Checks every golden of a folder, so that a failure names all that fail.
fn each_of(part: &str, check: impl Fn(&str) + std::panic::RefUnwindSafe) {
    let names = names(part);
    let failed: Vec<_> = names.iter().filter(|name| std::panic::catch_unwind(|| check(name)).is_err()).collect();
    assert!(failed.is_empty(), "{} of {} fail: {failed:?}", failed.len(), names.len());
}

#[test]
fn goldens_of_methods_in_f64() {
    each(|name| check(name, "f64", 1e-9));
}

#[test]
fn goldens_of_methods_in_f32() {
    each(|name| check(name, "f32", 1e-4));
}

/// Losses and logits with activations rounded on store.
#[test]
fn goldens_of_methods_in_bf16() {
    each(|name| {
        let golden = Golden::open("methods", name);
        let results = Replayed::of(&golden).run("bf16");
        let mut found = Differences::new(format!("{name} bf16"));
        let wanted = |key: &&str| *key == "loss" || key.starts_with("logits") || key.starts_with("teacher.logits");
        for key in golden.after("out.").filter(wanted) {
            let both = (&results[key].to_f64().unwrap()[..], &golden.get(&format!("out.{key}"))[..]);
            found.add(key, both, limit(&golden, "bf16", 2e-2));
        }
    });
}

/// Ten steps on one batch: the loss of each. What errors of rounding grow to in ten steps of a small network is far below 1e-7.
#[test]
fn ten_losses_of_methods() {
    let mut found = Differences::new("ten losses".to_string());
    let mut cases = 0;
    for name in names("methods") {
        let golden = Golden::open("methods", &name);
        if golden.after("ten.").next().is_none() {
            continue;
        }
        let results = Replayed { steps: 10, ..Replayed::of(&golden) }.run("f64");
        let losses: Vec<f64> = (0..10).map(|k| results[&format!("step{k}.loss")].to_f64().unwrap()[0]).collect();
        found.add(&name, (&losses, &golden.get("ten.loss")), 1e-7);
        cases += 1;
    }
    assert!(cases > 50, "{cases} files have ten losses");
}
