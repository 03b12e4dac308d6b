//! Accuracy of methods on Fashion-MNIST beside plain training: every recipe of `configs/fashion` over several seeds, as one table.
//!
//! Runs go to `--runs`, a folder each; finished ones are not run again, stopped ones go on. The table is rewritten after each run.
//! Teachers are trained once, with seed 1, and shared by all methods that want one.
//!
//! With `--pace` nothing is trained to the end: steps of each method are timed in turn with steps of plain training, and the table says how
//! that compares with the multiply-adds counted in the plan.

use clap::Parser;
use serde::{Deserialize, Serialize};
use spec::Section;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use train::recipe::{Recipe, TeacherSection};
use train::recipe_parse::Loaded;
use train::{Exit, RunOptions, Session, Verbosity};

#[derive(Debug, Parser)]
struct Args {
    /// Recipes by the part of their name before `_resnet8`, in the order of the table. Plain training comes first by itself.
    #[arg(long, value_delimiter = ',', default_value = "ips,mixskd,atsc,crld")]
    methods: Vec<String>,
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// More recipes, with one seed each.
    #[arg(long, value_delimiter = ',')]
    once: Vec<String>,
    /// Where recipes lie.
    #[arg(long, default_value = "configs/fashion")]
    configs: PathBuf,
    #[arg(long, default_value = "runs/accuracy")]
    runs: PathBuf,
    /// The table; a `.json` beside it has every run.
    #[arg(long, default_value = "benches/records/accuracy.md")]
    out: PathBuf,
    /// Time steps instead, in so many pairs with plain training.
    #[arg(long, value_name = "PAIRS")]
    pace: Option<usize>,
    /// Threads of each run; 0 for all cores. Results do not depend on it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Another folder with the whole of Fashion-MNIST.
    #[arg(long)]
    data: Option<PathBuf>,
}

/// One finished run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    method: String,
    seed: u64,
    epochs: usize,
    last: f64,
    best: f64,
    seconds: f64,
    /// Multiply-adds of a step's body per unit, times two.
    flops_per_unit: f64,
}

/// What is run: the row's name, the recipe, and edits of it.
struct Job {
    row: String,
    recipe: String,
    edits: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if let Some(pairs) = args.pace {
        return pace(&args, pairs);
    }
    let mut runs = Vec::new();
    let plain = |epochs: usize| Job {
        row: format!("ce, {epochs} epochs"),
        recipe: "ce".into(),
        edits: vec![format!("train.epochs={epochs}")],
    };
    let named = |m: &String| Job { row: m.clone(), recipe: m.clone(), edits: vec![] };
    let several = [plain(8), plain(16)].into_iter().chain(args.methods.iter().map(named)).map(|job| (job, args.seeds));
    for (job, seeds) in several.chain(args.once.iter().map(|m| (named(m), 1))) {
        for seed in 1..=seeds {
            runs.push(finish(&args, &job, seed)?);
            write(&args, &runs)?;
        }
    }
    Ok(())
}

/// The run's result, from its folder or by training.
fn finish(args: &Args, job: &Job, seed: u64) -> Result<Run, Box<dyn Error>> {
    let folder = args.runs.join(format!("{}-{seed}", job.row.replace(", ", "-").replace(' ', "_")));
    let done = folder.join("result.json");
    if let Ok(text) = std::fs::read_to_string(&done) {
        return Ok(serde_json::from_str(&text)?);
    }
    let mut edits = taught(args, &job.recipe)?;
    edits.extend(job.edits.iter().cloned().chain([format!("train.seed={seed}")]));
    let run = train(args, (job, seed), &edits, &folder)?;
    std::fs::write(&done, serde_json::to_string(&run)?)?;
    Ok(run)
}

fn load(args: &Args, recipe: &str, edits: &[String]) -> Result<Loaded, Box<dyn Error>> {
    let data = args.data.iter().map(|d| std::path::absolute(d).map(|d| format!("data.folder={d:?}")));
    let edits: Vec<String> = edits.iter().cloned().chain(data.collect::<Result<Vec<_>, _>>()?).collect();
    let mut loaded = Recipe::load(&args.configs.join(format!("{recipe}_resnet8.toml")), &edits)?;
    loaded.recipe.stage.clear(); // teachers are trained here
    Ok(loaded)
}

/// Edits that give the recipe's teachers their weights.
fn taught(args: &Args, recipe: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let teachers = load(args, recipe, &[])?.recipe.teacher.into_iter().enumerate();
    let weights = |(i, section): (usize, TeacherSection)| {
        Ok(format!("teacher.{i}.weights={:?}", std::path::absolute(teacher(args, &section.name)?)?))
    };
    teachers.map(weights).collect()
}

/// A run that can start, and the multiply-adds of a step's body per unit, times two.
fn open(args: &Args, recipe: &str, edits: &[String], folder: &Path) -> Result<(Session, f64), Box<dyn Error>> {
    let run_dir = Some(folder.to_path_buf());
    let options = RunOptions { run_dir, verbosity: Verbosity::Quiet, threads: args.threads, ..RunOptions::default() };
    let session = Session::open(load(args, recipe, edits)?, options)?;
    let plan = session.plan()?;
    let body = plan.graph.nodes.iter().filter(|n| n.place.section == Section::Body);
    let flops: u64 = body.map(|n| plan::cost(&plan.graph, n, &plan.placement.stored).flops).sum();
    Ok((session, flops as f64 / plan.graph.units[0] as f64))
}

fn train(args: &Args, (job, seed): (&Job, u64), edits: &[String], folder: &Path) -> Result<Run, Box<dyn Error>> {
    let (session, flops_per_unit) = open(args, &job.recipe, edits, folder)?;
    let (method, epochs) = (job.row.clone(), session.recipe.train.epochs);
    eprintln!("{method} seed {seed}");
    let outcome = session.train()?;
    let (Exit::Done, Some(last), Some(best)) = (outcome.exit, outcome.last, outcome.best) else {
        return Err(format!("{method} seed {seed} was stopped; run this again to go on").into());
    };
    Ok(Run { method, seed, epochs, last: last.top1, best: best.top1, seconds: outcome.seconds, flops_per_unit })
}

/// Weights of a teacher, trained once by the plain recipe.
fn teacher(args: &Args, network: &str) -> Result<PathBuf, Box<dyn Error>> {
    let folder = args.runs.join(format!("teacher-{network}"));
    let weights = folder.join("final.safetensors");
    if !weights.is_file() {
        let job = Job { row: format!("teacher {network}"), recipe: "ce".into(), edits: vec![] };
        let edits = [format!("network.name={network:?}"), "train.epochs=8".to_string(), "train.seed=1".to_string()];
        let run = train(args, (&job, 1), &edits, &folder)?;
        std::fs::write(folder.join("result.json"), serde_json::to_string(&run)?)?;
        train::export(&folder, false, &weights)?;
    }
    Ok(weights)
}

/// Steps of the shorter and the longer of two timed runs: their difference is free of what a run costs beside steps.
const STEPS: [u64; 2] = [5, 25];

/// Seconds of a step, and multiply-adds of it, both per unit.
fn step_cost(args: &Args, recipe: &str) -> Result<(f64, f64), Box<dyn Error>> {
    let taught = taught(args, recipe)?;
    let mut seconds = [0.0; 2];
    let (mut flops, mut units) = (0.0, 1);
    for (steps, seconds) in STEPS.iter().zip(&mut seconds) {
        let folder = args.runs.join("pace");
        let _ = std::fs::remove_dir_all(&folder);
        let edits: Vec<_> = taught.iter().cloned().chain([format!("train.max_steps={steps}")]).collect();
        let (session, counted) = open(args, recipe, &edits, &folder)?;
        (flops, units) = (counted, session.recipe.train.global_batch);
        *seconds = session.train()?.seconds;
    }
    Ok(((seconds[1] - seconds[0]) / (STEPS[1] - STEPS[0]) as f64 / units as f64, flops))
}

/// Times methods in pairs with plain training and writes the table.
fn pace(args: &Args, pairs: usize) -> Result<(), Box<dyn Error>> {
    let mut rows = Vec::new();
    for method in args.methods.iter().chain(&args.once) {
        let mut ratios = Vec::new();
        let mut counted = 1.0;
        for _ in 0..pairs {
            let (plain, of) = (step_cost(args, "ce")?, step_cost(args, method)?);
            ratios.push(of.0 / plain.0);
            counted = of.1 / plain.1;
        }
        ratios.sort_by(f64::total_cmp);
        let (least, middle, most) = (ratios[0], ratios[pairs / 2], ratios[pairs - 1]);
        rows.push(format!(
            "| {method} | {counted:.2} | {middle:.2} ({least:.2} … {most:.2}) | {:.2} |",
            middle / counted
        ));
        eprintln!("{}", rows[rows.len() - 1]);
    }
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let table = format!(
        "# Pace of methods, ResNet-8 on Fashion-MNIST\n\n\
         `cargo run --release -p benches --bin accuracy -- {command}`, f32, batch 128, 2 shared cores, data included.\n\
         Multiply-adds and time of a step per unit, relative to plain training in the same run; median (least … most) of {pairs} pairs.\n\n\
         | method | counted | time | time over count |\n|---|---|---|---|\n{}\n",
        rows.join("\n")
    );
    std::fs::write(&args.out, table)?;
    Ok(())
}

/// Mean and sample standard deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}

fn write(args: &Args, runs: &[Run]) -> Result<(), Box<dyn Error>> {
    std::fs::write(args.out.with_extension("json"), serde_json::to_string_pretty(runs)? + "\n")?;
    let mut rows: Vec<String> = Vec::new();
    let mut by_row: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    let mut order: Vec<&str> = Vec::new();
    for run in runs {
        if !by_row.contains_key(run.method.as_str()) {
            order.push(&run.method);
        }
        by_row.entry(&run.method).or_default().push(run);
    }
    let plain_flops = by_row[order[0]][0].flops_per_unit;
    for name in order {
        let of = &by_row[name];
        let text = |pick: fn(&Run) -> f64| {
            let (mean, sd) = spread(&of.iter().map(|r| pick(r)).collect::<Vec<_>>());
            if of.len() > 1 { format!("{mean:.4} ± {sd:.4}") } else { format!("{mean:.4}") }
        };
        rows.push(format!(
            "| {name} | {} | {} | {} | {} | {:.2} |",
            of[0].epochs,
            of.len(),
            text(|r| r.last),
            text(|r| r.best),
            of[0].flops_per_unit / plain_flops
        ));
    }
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let table = format!(
        "# Accuracy on Fashion-MNIST, ResNet-8\n\n\
         `cargo run --release -p benches --bin accuracy -- {command}`, recipes `configs/fashion/<method>_resnet8.toml`.\n\
         Test top1 of the last and of the best epoch, mean ± sample deviation over seeds 1, 2, …; multiply-adds\n\
         of an epoch relative to plain training, per unit (a pair, or an anchor with its extra images, is one); their time is in pace.md.\n\
         The best epoch is chosen on the test set and is listed because published tables do so.\n\n\
         | method | epochs | seeds | last | best | counted |\n|---|---|---|---|---|---|\n{}\n",
        rows.join("\n")
    );
    std::fs::write(&args.out, table)?;
    Ok(())
}
