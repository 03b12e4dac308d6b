//! The scaling model on the plans of real networks, against the table of PERFORMANCE section 8.

use std::path::Path;
use train::link::Link;
use train::recipe::Recipe;
use train::recipe_parse::Loaded;
use train::{Scaling, ScalingOptions, scaling_of};

fn recipe(network: &str, global_batch: usize, more: &str) -> Loaded {
    let (classes, side) = if network.starts_with("resnet") { (1000, 224) } else { (100, 32) };
    let text = format!(
        "[data]\nset = \"folder\"\nfolder = \"nowhere\"\nclasses = {classes}\nsize = {side}\n[network]\nname = \"{network}\"\n\
         [method]\nname = \"ce\"\n[train]\nepochs = 1\nglobal_batch = {global_batch}\nprecision = \"bf16\"\n{more}\n\
         [optimizer]\nname = \"sgd\"\nlr = 0.1\n"
    );
    Recipe::parse(text, Path::new("some/recipe.toml"), &[]).unwrap()
}

fn scaling(network: &str, world_size: usize, link: Link, step_ms: f64) -> Scaling {
    let batch = world_size * if network == "resnet50" { 256 } else { 32 };
    scaling_of(recipe(network, batch, ""), ScalingOptions { world_size, link, step_ms: Some(step_ms) }).unwrap()
}

/// Without latency, which the table leaves out.
fn link(bytes_per_s: f64) -> Link {
    Link { latency_s: 0.0, bytes_per_s }
}

const IN_NODE: (usize, f64) = (8, 460e9);
const NODES: (usize, f64) = (32, 320e9);
const ONE_NIC: (usize, f64) = (8, 45e9);

/// Within 5 %, or what the last digit of the table rounds away.
#[test]
fn bytes_and_times_are_those_of_the_table() {
    let rows = [
        ("resnet50", 102.0, [(0.39, 0.005), (0.62, 0.005), (4.0, 0.05)]),
        ("resnet18", 46.7, [(0.18, 0.005), (0.28, 0.005), (1.8, 0.05)]),
        ("wrn_40_2", 9.0, [(0.03, 0.005), (0.05, 0.005), (0.35, 0.005)]),
    ];
    for (network, megabytes, times) in rows {
        for ((world, rate), (ms, digit)) in [IN_NODE, NODES, ONE_NIC].into_iter().zip(times) {
            let found = scaling(network, world, link(rate), 32.0);
            let [phase] = &found.phases[..] else { panic!("{network} has one phase") };
            let (mb, whole) = (phase.bytes as f64 / 1e6, phase.whole_s * 1e3);
            println!("{network}, {world} ranks, {:.0} GB/s: {mb:.2} MB, {whole:.3} ms", rate / 1e9);
            assert!((mb / megabytes - 1.0).abs() < 0.05, "{network}: {mb} MB");
            assert!(
                (whole - ms).abs() < f64::max(0.05 * ms, digit),
                "{network}, {world} ranks: {whole} ms against {ms}"
            );
        }
    }
}

/// 1.2 %, 2 % and 12 % of a step of 32 ms at 256 images a GPU.
#[test]
fn shares_of_a_step_without_overlap_are_those_of_the_text() {
    for ((world, rate), percent, digit) in [(IN_NODE, 1.2, 0.05), (NODES, 2.0, 0.5), (ONE_NIC, 12.0, 0.5)] {
        let found = scaling("resnet50", world, link(rate), 32.0);
        let share = 100.0 * found.whole_s() / found.step_s;
        assert!((share - percent).abs() < f64::max(0.05 * percent, digit), "{world} ranks: {share} %");
        let efficiency = found.efficiency(found.whole_s());
        assert!((efficiency - 1.0 / (1.0 + share / 100.0)).abs() < 1e-12);
    }
}

/// Gradients come as classifier and stage 4, stage 3, the rest: two thirds are ready while most of the body is still to come.
#[test]
fn buckets_overlap_with_the_body_and_the_last_is_exposed() {
    let found = scaling("resnet50", 32, Link::ACROSS_NODES, 32.0);
    println!("{found}");
    let [phase] = &found.phases[..] else { panic!("one phase") };
    let buckets = &phase.buckets;
    assert!(buckets.len() >= 3, "{} buckets", buckets.len());
    assert_eq!(buckets.iter().map(|b| b.bytes).sum::<usize>(), phase.bytes);
    assert!(buckets.windows(2).all(|b| b[0].range.end == b[1].range.start && b[0].left > b[1].left));
    assert!(buckets[..buckets.len() - 1].iter().all(|b| b.bytes >= found.bucket_bytes));
    let early: usize = buckets.iter().filter(|b| b.left > 0.4).map(|b| b.bytes).sum();
    assert!(early as f64 > 0.6 * phase.bytes as f64, "{early} of {} bytes are early", phase.bytes);
    let last = buckets.last().unwrap();
    assert!(last.left < 0.01, "{}", last.left);
    // On a fast link the buckets before are done by then, so that the last one is all that shows.
    assert!((phase.exposed_s - last.all_reduce_s).abs() < 0.01 * phase.body_s, "{} s", phase.exposed_s);
    assert!(found.exposed_s() < found.whole_s());
    assert!(found.efficiency(found.exposed_s()) > 0.98);
    // On a slow one they queue: what shows is all of their time but what passed since the first was ready.
    let slow = scaling("resnet50", 32, Link { latency_s: 50e-6, bytes_per_s: 2e9 }, 32.0);
    let [phase] = &slow.phases[..] else { panic!("one phase") };
    let all: f64 = phase.buckets.iter().map(|b| b.all_reduce_s).sum();
    assert!((phase.exposed_s - (all - phase.buckets[0].left * phase.body_s)).abs() < 1e-9);
}

/// Without a measured step: 32 ms at 256 images of ResNet-50 and 4.9 ms at 32, where latencies count too, are what a very good program
/// comes to; a bound lies below, and not far.
#[test]
fn without_a_measured_step_a_gpus_bound_is_taken() {
    for (images, ms) in [(256, 32.0), (32, 4.9)] {
        let options = ScalingOptions { world_size: 8, link: link(450e9), step_ms: None };
        let found = scaling_of(recipe("resnet50", 8 * images, ""), options).unwrap();
        let bound = 1e3 * found.step_s;
        println!("{images} images: {bound} ms of {ms}");
        assert!((0.5 * ms..ms).contains(&bound), "{images} images: {bound} ms of {ms}");
        let measured =
            scaling_of(recipe("resnet50", 8 * images, ""), ScalingOptions { step_ms: Some(ms), ..options }).unwrap();
        assert!(found.efficiency(found.whole_s()) < measured.efficiency(measured.whole_s()));
        assert!(found.to_string().contains("what an H100 takes at least") && !measured.to_string().contains("H100"));
    }
}

/// Micro-batches before the last hide nothing; their time is part of the step, though.
#[test]
fn only_the_last_micro_batch_hides() {
    let options = ScalingOptions { world_size: 4, link: Link::IN_NODE, step_ms: Some(40.0) };
    let of = |more: &str| scaling_of(recipe("cifar_resnet18", 512, more), options).unwrap();
    let (whole, split) = (of(""), of("micro_batch = 32"));
    assert_eq!((whole.micro_batch, whole.micro_batches, split.micro_batch, split.micro_batches), (128, 1, 32, 4));
    assert_eq!(whole.phases[0].bytes, split.phases[0].bytes);
    let ratio = whole.phases[0].body_s / split.phases[0].body_s;
    assert!((3.9..4.1).contains(&ratio), "{ratio}");
}

#[test]
fn a_global_batch_that_ranks_cannot_share_is_refused() {
    let options = ScalingOptions { world_size: 3, link: Link::IN_NODE, step_ms: Some(10.0) };
    let error = scaling_of(recipe("wrn_40_2", 64, ""), options).unwrap_err().to_string();
    assert!(
        error.contains("global_batch 64 is not divisible by world_size 3") && error.contains("63 or 66"),
        "{error}"
    );
}
