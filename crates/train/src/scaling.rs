//! What a recipe's step costs at several ranks, by the model of `link`: bytes to reduce, buckets, how much of their all-reduce hides
//! behind the backward pass, and the scaling efficiency that is left. Nothing runs.
//!
//! A step without communication takes what the caller measured (`retort bench` at a rank's batch), or else what an H100 would take at
//! least. It is divided among launches by what they count: the larger of their bytes and of their FLOPs in bytes' time. Gradients are
//! summed over a rank's micro-batches first, so a bucket is reduced while the last micro-batch's body runs on; buckets follow each
//! other on the link.
//! Not in the model: multiprocessors that the all-reduce takes from the kernels, ranks that are late, input.

use crate::deploy::{PlanOptions, plan_of};
use crate::error::TrainError;
use crate::feed::micro_batch;
use crate::link::{Link, bucket_bytes};
use crate::recipe_parse::Loaded;
use plan::{Bucket, Fusion, Launch, Plan};
use spec::{Precision, Section};
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::ops::Range;

/// At what a recipe is looked at.
#[derive(Clone, Copy, Debug)]
pub struct ScalingOptions {
    /// At least 2.
    pub world_size: usize,
    pub link: Link,
    /// Milliseconds of a rank's step on its share of the global batch, without communication; none: what an H100 takes at least.
    pub step_ms: Option<f64>,
}

/// A slice of what a phase reduces.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaledBucket {
    /// Elements of the reduce arena.
    pub range: Range<usize>,
    pub bytes: usize,
    /// Path of the launch after which it is complete.
    pub ready_after: String,
    /// Share of the body's time that is still to come then.
    pub left: f64,
    pub all_reduce_s: f64,
}

/// What a phase reduces, and what of that is in the way.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaledPhase {
    pub name: String,
    pub bytes: usize,
    pub buckets: Vec<ScaledBucket>,
    /// Seconds of the body of one micro-batch.
    pub body_s: f64,
    /// Seconds that one all-reduce of everything takes after the body.
    pub whole_s: f64,
    /// Seconds from the end of the body to the end of the last bucket.
    pub exposed_s: f64,
}

/// A recipe's step at several ranks.
#[derive(Clone, Debug)]
pub struct Scaling {
    pub options: ScalingOptions,
    pub network: String,
    /// Units of a micro-batch, and how many of them a rank has a step.
    pub micro_batch: usize,
    pub micro_batches: usize,
    pub bucket_bytes: usize,
    /// Seconds of a rank's step without communication.
    pub step_s: f64,
    pub phases: Vec<ScaledPhase>,
}

/// The model's figures for a recipe. Errors: what the recipe's plan has, or a global batch that the ranks cannot share.
pub fn scaling_of(mut loaded: Loaded, options: ScalingOptions) -> Result<Scaling, TrainError> {
    let ScalingOptions { world_size, link, .. } = options;
    loaded.check_ranks(world_size)?;
    let train = &mut loaded.recipe.train;
    let global_batch = train.global_batch;
    let micro_batch = micro_batch(&loaded.recipe, world_size);
    loaded.recipe.train.micro_batch = Some(micro_batch);
    let micro_batches = (global_batch / micro_batch).div_ceil(world_size).max(1);
    let network = loaded.recipe.network.name.clone();
    let bucket_bytes = bucket_bytes(link.latency_s, link.bytes_per_s, world_size);
    let planning = PlanOptions { fusion: Fusion::Full, image: None, bucket_bytes: Some(bucket_bytes) };
    let plan = plan_of(loaded, planning)?;
    let bytes = counted_in_step(&plan, micro_batches);
    let step_s = options.step_ms.map_or(bytes / BYTES_PER_S, |ms| ms / 1e3);
    let phases = phases(&plan, step_s / bytes.max(1.0), &options);
    Ok(Scaling { options, network, micro_batch, micro_batches, bucket_bytes, step_s, phases })
}

impl Scaling {
    /// Seconds that a step's all-reduces add, one after the body of each phase.
    pub fn whole_s(&self) -> f64 {
        self.phases.iter().map(|p| p.whole_s).sum()
    }

    /// Seconds that they add where buckets overlap with the bodies.
    pub fn exposed_s(&self) -> f64 {
        self.phases.iter().map(|p| p.exposed_s).sum()
    }

    /// The share of a step that is not communication, if that adds `seconds` to it.
    pub fn efficiency(&self, seconds: f64) -> f64 {
        self.step_s / (self.step_s + seconds)
    }
}

/// What launches count in the time of a step, in bytes.
fn counted(launches: &[Launch], precision: Precision) -> f64 {
    launches.iter().fold(0.0, |sum, launch| sum + weight(launch, precision))
}

fn counted_in_step(plan: &Plan, micro_batches: usize) -> f64 {
    let of = |p, section| counted(plan.section(p, section), plan.graph.precision);
    (0..plan.phases.len()).map(|p| micro_batches as f64 * of(p, Section::Body) + of(p, Section::Update)).sum()
}

fn phases(plan: &Plan, seconds_a_byte: f64, options: &ScalingOptions) -> Vec<ScaledPhase> {
    let precision = plan.graph.precision;
    let element = plan.placement.storage.bytes(precision.acc());
    let of_phase = |p: usize| {
        let body = plan.section(p, Section::Body);
        let total = counted(body, precision);
        let bucket = |b: &Bucket| {
            let after = body.iter().position(|l| l.node > b.ready_after).unwrap_or(body.len());
            let bytes = b.range.len() * element;
            ScaledBucket {
                range: b.range.clone(),
                bytes,
                ready_after: plan.graph.node(b.ready_after).path.clone(),
                left: counted(&body[after..], precision) / total.max(1.0),
                all_reduce_s: options.link.all_reduce_s(options.world_size, bytes),
            }
        };
        let buckets: Vec<_> = plan.reduce.buckets.iter().filter(|b| b.phase == p).map(bucket).collect();
        let (bytes, body_s) = (plan.reduce.phases[p].len() * element, total * seconds_a_byte);
        let whole_s = options.link.all_reduce_s(options.world_size, bytes);
        ScaledPhase {
            name: plan.phases[p].name.clone(),
            bytes,
            exposed_s: exposed(&buckets, body_s),
            buckets,
            body_s,
            whole_s,
        }
    };
    (0..plan.phases.len()).filter(|&p| !plan.reduce.phases[p].is_empty()).map(of_phase).collect()
}

/// Seconds from the end of the body to the end of the last bucket: each waits for its gradients and for the one before.
fn exposed(buckets: &[ScaledBucket], body_s: f64) -> f64 {
    let end = buckets.iter().fold(0.0, |free: f64, b| free.max((1.0 - b.left) * body_s) + b.all_reduce_s);
    (end - body_s).max(0.0)
}

/// What a launch counts in the time of its phase, in bytes: a GPU is busy with the larger of the two.
fn weight(launch: &Launch, precision: Precision) -> f64 {
    let bytes = (launch.cost.read + launch.cost.written) as f64;
    bytes.max(launch.cost.flops as f64 / flops_a_byte(precision))
}

/// What an H100 copies.
const BYTES_PER_S: f64 = 3.0e12;

/// FLOPs that a GPU computes in the time of a byte: an H100 multiplies 790 TFLOP/s in bf16, half of that in tf32, 60 in f32 without
/// tensor cores.
fn flops_a_byte(precision: Precision) -> f64 {
    match precision {
        Precision::Bf16 => 263.0,
        Precision::Tf32 => 132.0,
        Precision::F32 => 20.0,
        Precision::F64 => 10.0,
    }
}

impl Display for Scaling {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let ScalingOptions { world_size: n, link, step_ms } = self.options;
        // To the nanosecond and megabyte: a unit's factor leaves binary fractions.
        let (alpha, rate) = ((link.latency_s * 1e9).round() / 1e3, (link.bytes_per_s / 1e6).round() / 1e3);
        let mb = |bytes: usize| bytes as f64 / 1e6;
        writeln!(
            f,
            "{}: {n} ranks, micro-batches of {}, {} a step on each",
            self.network, self.micro_batch, self.micro_batches
        )?;
        writeln!(f, "all-reduce: t = {alpha} µs + 2 ({n} − 1) / {n} × bytes / {rate} GB/s")?;
        writeln!(
            f,
            "buckets of {:.1} MB at least: 3.5 times what the link moves in {alpha} µs",
            mb(self.bucket_bytes)
        )?;
        for phase in &self.phases {
            let (name, buckets) = (&phase.name, phase.buckets.len());
            let plural = if buckets == 1 { "bucket" } else { "buckets" };
            writeln!(f, "\nphase {name}: {:.1} MB to reduce in {buckets} {plural}", mb(phase.bytes))?;
            writeln!(f, "{:>9} {:>11} {:>10}  {:<23} ready after", "MB", "all-reduce", "body left", "elements")?;
            for b in &phase.buckets {
                let range = format!("{}..{}", b.range.start, b.range.end);
                let (ms, left) = (b.all_reduce_s * 1e3, 100.0 * b.left);
                writeln!(f, "{:>9.2} {ms:>8.3} ms {left:>8.1} %  {range:<23} {}", mb(b.bytes), b.ready_after)?;
            }
            let (whole, exposed) = (phase.whole_s * 1e3, phase.exposed_s * 1e3);
            writeln!(
                f,
                "one all-reduce after the body: {whole:.3} ms; of overlapped buckets, exposed: {exposed:.3} ms"
            )?;
        }
        let share = |seconds: f64| 100.0 * seconds / self.step_s;
        let (whole, exposed) = (self.whole_s(), self.exposed_s());
        let source = match step_ms {
            Some(_) => "",
            None => " (what an H100 takes at least for its bytes and FLOPs; measured by `retort bench`: --step-ms)",
        };
        let ms = (self.step_s * 1e6).round() / 1e3;
        writeln!(f, "\na step of {ms} ms on each rank, without communication{source}:")?;
        for (how, seconds) in [("one all-reduce a phase", whole), ("overlapped buckets", exposed)] {
            let (ms, efficiency) = (seconds * 1e3, 100.0 * self.efficiency(seconds));
            writeln!(
                f,
                "{how:>24}: + {ms:.3} ms, {:.1} % of it; scaling efficiency {efficiency:.1} %",
                share(seconds)
            )?;
        }
        write!(f, "Not counted: late ranks, input, multiprocessors that the all-reduce takes from the kernels.")
    }
}
