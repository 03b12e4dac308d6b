//! Time of a whole training step on the CPU, ours and PyTorch's in turn (A B A B …) in one run.
//!
//! cargo run --release -p benches --bin step -- --python .venv/bin/python --threads 2 --json benches/records/step.json
//!
//! Both sides: forward, backward and SGD with Nesterov momentum on resident float images, cross-entropy, f32. GFLOP/s count
//! 2 × multiply-adds × 3, less the first layer's input gradient. Without `--python` only our side runs.

use clap::Parser;
use plan::{Fusion, OptimizerArgs, Options, Storage};
use serde_json::{Value, json};
use spec::{Precision, Setting};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tensor::{HostTensor, Shape};
use train::engine::{Engine, Micro, Sizes, StepInputs};
use train::recipe::BnPolicy;
use train::step::{Compile, Model};

#[derive(Parser)]
#[command(about = "Paired time of training steps: ours and PyTorch's")]
struct Args {
    /// Python with torch; none: only our side.
    #[arg(long)]
    python: Option<String>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Pairs of windows.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Networks, by our names.
    #[arg(long, value_delimiter = ',', default_values_t = ["cifar_resnet18", "resnet8x4", "resnet8"].map(String::from))]
    nets: Vec<String>,
    /// Where time goes, per op, of our side.
    #[arg(long)]
    profile: bool,
    /// Record to write.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

const SIDE: usize = 32;
const CLASSES: usize = 100;
/// A window is at least this long.
const WINDOW: Duration = Duration::from_millis(1500);

struct Ours {
    engine: Engine<cpu::Executor<f32>>,
    micro: [Micro; 1],
    units: [[usize; 2]; 1],
    slots: HashMap<String, f64>,
}

impl Ours {
    fn new(net: &str, args: &Args) -> Ours {
        let setting = Setting::new(CLASSES, [SIDE, SIDE, 3], args.batch, 1);
        let method = Box::new(methods::Ce::default());
        let spec = spec::Method::spec(method.as_ref(), &setting).expect("plain cross-entropy fits every run");
        let student = nets::NetworkSpec::new(net).build(CLASSES).unwrap_or_else(|e| panic!("{e}"));
        let model = Model { method, spec, setting, student, teachers: vec![], precision: Precision::F32 };
        let optimizer = OptimizerArgs { nesterov: true, ..OptimizerArgs::default() };
        let (fusion, storage) = (Fusion::Full, Storage::CpuF32);
        let options = Options { fusion, optimizer, storage, bucket_bytes: 25 << 20, keep_outputs: false };
        let (global_batch, bn) = (args.batch, BnPolicy::Local);
        let compile = Compile { options, global_batch, train_input: None, eval_input: None, bn, world: 1 };
        let units = [[args.batch, 0]];
        let sizes = Sizes { full: units[0], others: vec![], leaves: 1, eval_batch: 1, reproducible: false };
        let executor = cpu::Executor::new(args.threads).unwrap_or_else(|e| panic!("{e}"));
        let mut engine = Engine::new(&model, &compile, &sizes, executor, Box::new(comm::Solo::default()))
            .unwrap_or_else(|e| panic!("{e}"));
        let ready = engine.initialise(1).and_then(|()| engine.loaded());
        ready.unwrap_or_else(|e| panic!("{e}"));
        let pixels: Vec<f32> = (0..args.batch * SIDE * SIDE * 3).map(|i| (i as f32 * 0.37).sin()).collect();
        let labels: Vec<i32> = (0..args.batch).map(|i| (i * 7 % CLASSES) as i32).collect();
        let image = HostTensor::new(Shape::new(&[args.batch, SIDE, SIDE, 3]), &pixels);
        let label = HostTensor::new(Shape::new(&[args.batch]), &labels);
        let both = [("image", image), ("label", label)];
        let inputs = both.map(|(name, t)| (name.to_string(), t.unwrap_or_else(|e| panic!("{e}")))).to_vec();
        let micro = [Micro { leaf: 0, units: units[0], inputs }];
        Ours { engine, micro, units, slots: HashMap::from([("lr".to_string(), 0.01)]) }
    }

    /// Milliseconds a step over `steps`.
    fn run(&mut self, steps: usize) -> f64 {
        let begin = Instant::now();
        for _ in 0..steps {
            let step = StepInputs { micros: &self.micro, all_units: &self.units, slots: &self.slots };
            self.engine.step(&step).unwrap_or_else(|e| panic!("{e}"));
        }
        begin.elapsed().as_secs_f64() * 1e3 / steps as f64
    }
}

struct Theirs {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    versions: Value,
}

impl Theirs {
    fn new(python: &str, net: &str, args: &Args) -> std::io::Result<Theirs> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/step.py");
        let [threads, batch] = [args.threads, args.batch].map(|n| n.to_string());
        let mut child = Command::new(python)
            .args([script, "--net", net, "--threads", &threads, "--batch", &batch, "--warmup", "2", "--serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { return Err(std::io::Error::other("no pipes")) };
        let mut peer = Theirs { child, to, from: BufReader::new(from), versions: Value::Null };
        peer.versions = peer.line()?;
        Ok(peer)
    }

    fn line(&mut self) -> std::io::Result<Value> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Median milliseconds a step over `steps`.
    fn run(&mut self, steps: usize) -> std::io::Result<f64> {
        writeln!(self.to, "{steps}")?;
        self.to.flush()?;
        let answer = self.line()?;
        answer["median_ms"].as_f64().ok_or_else(|| std::io::Error::other(format!("the peer answered {answer}")))
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // The peer ends when its input does; a second try hurts nobody.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(lo, hi), &v| (v.min(lo), v.max(hi)))
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let mut rows = Vec::new();
    println!(
        "{:<16} {:>9} {:>9} {:>8} {:>8} {:>7} {:>15}",
        "net", "ours ms", "img/s", "GFLOP/s", "peer ms", "ratio", "ratio min..max"
    );
    for net in &args.nets {
        let mut ours = Ours::new(net, &args);
        let flops = ours.engine.plan().launches.iter().map(|l| l.cost.flops).sum::<u64>() as f64;
        let mut theirs = args.python.as_deref().map(|p| Theirs::new(p, net, &args)).transpose()?;
        ours.run(2);
        let steps = (WINDOW.as_secs_f64() * 1e3 / ours.run(2)).ceil().max(2.0) as usize;
        if args.profile {
            profile(&mut ours, steps);
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..args.pairs {
            a.push(ours.run(steps));
            if let Some(theirs) = &mut theirs {
                b.push(theirs.run(steps)?);
            }
        }
        let ms = median(&a);
        let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b / a).collect();
        let (images, gflops) = (args.batch as f64 * 1e3 / ms, flops / ms / 1e6);
        let mut row = json!({ "net": net, "ours_ms": a, "images_per_s": images, "gflop_per_s": gflops });
        print!("{net:<16} {ms:>9.1} {images:>9.1} {gflops:>8.1}");
        if let Some(theirs) = &theirs {
            let (low, high) = spread(&ratios);
            println!(" {:>8.1} {:>7.2} {low:>7.2}..{high:.2}", median(&b), median(&ratios));
            row["peer_ms"] = json!(b);
            row["ratio"] = json!(median(&ratios));
            row["peer"] = theirs.versions.clone();
        } else {
            println!();
        }
        rows.push(row);
    }
    let ratios: Vec<f64> = rows.iter().filter_map(|r| r["ratio"].as_f64()).collect();
    let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp();
    if !ratios.is_empty() {
        println!("geometric mean of the ratios (peer's time / ours): {mean:.2}");
    }
    if let Some(path) = &args.json {
        let record = json!({ "schema": 1, "threads": args.threads, "batch": args.batch, "cpu": cpu(), "rows": rows, "geometric_mean": mean });
        std::fs::write(path, format!("{record:#}\n"))?;
    }
    Ok(())
}

/// Our time by op.
fn profile(ours: &mut Ours, steps: usize) {
    ours.engine.executor.profile(Some(()));
    ours.run(steps);
    let mut by_op: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
    for (_, op, time) in ours.engine.executor.profile(None) {
        let entry = by_op.entry(op).or_default();
        *entry = (entry.0 + 1, entry.1 + time);
    }
    let mut rows: Vec<_> = by_op.into_iter().collect();
    rows.sort_by_key(|r| std::cmp::Reverse(r.1.1));
    for (op, (count, time)) in rows {
        println!("  {op:<22} {:>4} launches {:>8.2} ms a step", count / steps, time.as_secs_f64() * 1e3 / steps as f64);
    }
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    model.unwrap_or("unknown").to_string()
}
