//! What a benchmark measured: the record, and its form for people.

use serde::Serialize;
use std::fmt::{Display, Formatter, Result};

/// Version of the record.
pub(crate) const SCHEMA: u32 = 1;

/// How fast a machine moves bytes and multiplies, measured just before.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rates {
    /// Of large copies, read and written both counted, in 10^9 bytes.
    pub gbyte_per_s: f64,
    /// Of a large matrix product in the precision of the run, by kernels of our own. Not on the CPU: its Winograd convolutions do
    /// with fewer FLOPs than are counted, so none bounds them.
    pub gflop_per_s: Option<f64>,
}

impl Rates {
    /// Milliseconds that bytes and FLOPs take at least.
    pub(crate) fn bound_ms(&self, bytes: u64, flops: u64) -> f64 {
        let computing = self.gflop_per_s.map_or(0.0, |rate| flops as f64 / rate);
        (bytes as f64 / self.gbyte_per_s).max(computing) / 1e6
    }
}

/// Consecutive steps.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Window {
    pub images_per_s: f64,
}

/// What windows give.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub mean: f64,
    pub sd: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Spread {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let at = |q| quantile(values, q);
        Spread { median: at(0.5), mean, sd: variance.sqrt(), min: at(0.0), max: at(1.0) }
    }
}

/// The value that a share `q` of all is not above, between neighbours by proportion; 0 of none.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    sorted[low] + part * (sorted[(low + 1).min(last)] - sorted[low])
}

/// A launch, run on its own.
#[derive(Clone, Debug, Serialize)]
pub struct Costly {
    pub path: String,
    pub op: &'static str,
    /// Its kernels, copies and fills on a GPU.
    pub kernels: Vec<&'static str>,
    /// The median.
    pub ms: f64,
    pub bytes: u64,
    pub flops: u64,
    /// max(bytes / bandwidth, FLOPs / rate) over its time.
    pub share_of_bound: f64,
}

/// A benchmark of a training step. Bytes and FLOPs are those of the plan: each distinct input of a launch read once, each output
/// written once, in the dtypes of the graph.
#[derive(Clone, Debug, Serialize)]
pub struct BenchRecord {
    pub schema: u32,
    pub version: &'static str,
    /// Where the build was told (`RETORT_GIT_HASH`).
    pub commit: Option<&'static str>,
    pub recipe: String,
    pub device: String,
    pub gpu_uuid: Option<String>,
    pub precision: String,
    /// `synthetic-host`: one made-up batch, copied to the device in every step.
    pub mode: &'static str,
    /// Units of a step.
    pub batch: usize,
    pub micro_batch: usize,
    /// Images of a step: units of several views or partners have several.
    pub images: usize,
    pub warm_up_steps: usize,
    /// Whether the last three windows of the warm-up agreed within 1 %; the CPU, which others share, is not asked for that.
    pub steady: Option<bool>,
    pub steps_per_window: usize,
    pub windows: Vec<Window>,
    pub images_per_s: Spread,
    pub step_ms_p50: f64,
    pub step_ms_p99: f64,
    pub launches_per_step: usize,
    /// Whether the launches of a step were captured graphs.
    pub captured: bool,
    /// Planned: of the device, or of the host where the CPU computes.
    pub memory_bytes: usize,
    pub bytes_per_step: u64,
    pub flops_per_step: u64,
    pub gbyte_per_s: f64,
    pub gflop_per_s: f64,
    pub measured: Rates,
    /// The sum over launches of max(bytes / bandwidth, FLOPs / rate).
    pub bound_ms: f64,
    pub share_of_bound: f64,
    /// The costliest first; empty unless asked for.
    pub profile: Vec<Costly>,
}

impl Display for BenchRecord {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let s = &self.images_per_s;
        writeln!(f, "{}, {}, batch {}{}", self.device, self.precision, self.batch, self.micros())?;
        writeln!(
            f,
            "images/s   {:.1} (median of {} windows of {} steps; {:.1} to {:.1}, spread {:.1} %){}",
            s.median,
            self.windows.len(),
            self.steps_per_window,
            s.min,
            s.max,
            100.0 * (s.max - s.min) / s.median,
            if self.steady == Some(false) { "; the warm-up did not settle within 1 %" } else { "" }
        )?;
        writeln!(f, "step       {:.3} ms p50, {:.3} ms p99", self.step_ms_p50, self.step_ms_p99)?;
        let (gflops, rates) = (self.gflop_per_s, &self.measured);
        writeln!(f, "moved      {:.1} GB/s of {:.1} measured", self.gbyte_per_s, rates.gbyte_per_s)?;
        match rates.gflop_per_s {
            Some(most) => writeln!(f, "computed   {gflops:.1} GFLOP/s of {most:.1} measured")?,
            None => writeln!(f, "computed   {gflops:.1} GFLOP/s")?,
        }
        let by = if rates.gflop_per_s.is_some() { "bytes and FLOPs" } else { "bytes alone" };
        let share = 100.0 * self.share_of_bound;
        writeln!(f, "bound      {:.3} ms by the plan's {by}: {share:.1} % of it reached", self.bound_ms)?;
        let captured = if self.captured { "captured" } else { "not captured" };
        writeln!(f, "launches   {} a step, {captured}", self.launches_per_step)?;
        write!(f, "memory     {:.1} MB planned", self.memory_bytes as f64 / 1e6)?;
        self.table(f)
    }
}

/// Launches that the table shows.
const SHOWN: usize = 20;

impl BenchRecord {
    fn micros(&self) -> String {
        let images = if self.images == self.batch { String::new() } else { format!(" ({} images)", self.images) };
        let micro = format!(" in micro-batches of {}", self.micro_batch);
        images + if self.micro_batch == self.batch { "" } else { &micro }
    }

    fn table(&self, f: &mut Formatter<'_>) -> Result {
        if self.profile.is_empty() {
            return Ok(());
        }
        let all: f64 = self.profile.iter().map(|c| c.ms).sum();
        let count = self.profile.len();
        write!(f, "\n\nlaunch by launch {all:.3} ms; the costliest {} of {count}", SHOWN.min(count))?;
        write!(f, "\n{:>9} {:>6} {:>8} {:>9} {:>7}  launch", "ms", "share", "GB/s", "GFLOP/s", "bound")?;
        for c in self.profile.iter().take(SHOWN) {
            let rate = |n: u64| n as f64 / c.ms.max(1e-9) / 1e6;
            let kernels = if c.kernels.is_empty() { String::new() } else { format!(": {}", c.kernels.join(", ")) };
            write!(
                f,
                "\n{:>9.4} {:>5.1}% {:>8.1} {:>9.1} {:>6.1}%  {} ({}){kernels}",
                c.ms,
                100.0 * c.ms / all,
                rate(c.bytes),
                rate(c.flops),
                100.0 * c.share_of_bound,
                c.path,
                c.op
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_quantiles_and_bounds() {
        let s = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((s.median, s.mean, s.min, s.max), (2.5, 2.5, 1.0, 4.0));
        assert!((s.sd - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        let rates = Rates { gbyte_per_s: 2.0, gflop_per_s: Some(100.0) };
        assert_eq!((rates.bound_ms(4_000_000, 0), rates.bound_ms(0, 300_000_000)), (2.0, 3.0));
        assert_eq!(Rates { gflop_per_s: None, ..rates }.bound_ms(4_000_000, 300_000_000), 2.0);
    }
}
