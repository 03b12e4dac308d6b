//! What a benchmark asks of a machine beyond running steps: its rates, its memory, the time of each launch.

use crate::bench_record::Rates;
use crate::error::TrainError;
use crate::executor::Executor;
use plan::{Cost, Plan, StateTable};
use spec::Precision;
use std::time::{Duration, Instant};
use tensor::Dtype;

/// Steps and windows where nobody asked for others.
pub(crate) struct Pace {
    pub steps: usize,
    pub windows: usize,
    /// Least steps of the warm-up, and most windows until it settles.
    pub warm_up: usize,
    pub settling: usize,
}

/// What a launch took.
#[derive(Clone)]
pub(crate) struct Timed {
    pub path: String,
    pub op: &'static str,
    /// Kernels, copies and fills of a GPU.
    pub kernels: Vec<&'static str>,
    pub ms: f64,
    pub cost: Cost,
}

pub(crate) trait Machine: Executor {
    const PACE: Pace;

    /// Measures it; nothing was reserved yet.
    fn rates(&self, precision: Precision) -> Result<Rates, TrainError>;

    fn uuid(&self) -> Option<String>;

    fn captured(&self) -> bool;

    /// Bytes reserved for a run of this plan.
    fn memory_bytes(&self, plan: &Plan, states: &StateTable, leaves: usize) -> usize;

    fn start_profile(&mut self);

    /// What was timed, in order. `costs` are those of the launches of the plan.
    fn end_profile(&mut self, costs: &[Cost]) -> Vec<Timed>;
}

impl Machine for cuda::Executor {
    const PACE: Pace = Pace { steps: 50, windows: 10, warm_up: 20, settling: 20 };

    fn rates(&self, precision: Precision) -> Result<Rates, TrainError> {
        let dtype = if precision == Precision::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let (bytes, flops) = (self.copy_rate(1 << 30)?, self.product_rate(8192, dtype)?);
        Ok(Rates { gbyte_per_s: bytes / 1e9, gflop_per_s: Some(flops / 1e9) })
    }

    fn uuid(&self) -> Option<String> {
        Some(self.facts().uuid.clone())
    }

    fn captured(&self) -> bool {
        self.graphs() > 0
    }

    fn memory_bytes(&self, _: &Plan, _: &StateTable, _: usize) -> usize {
        self.reserved_bytes()
    }

    fn start_profile(&mut self) {
        self.profile(Some(()));
    }

    fn end_profile(&mut self, _: &[Cost]) -> Vec<Timed> {
        let timed = |t: cuda::Timing| {
            let ms = t.commands.iter().map(|c| f64::from(c.1)).sum();
            let kernels = t.commands.iter().map(|c| c.0).collect();
            Timed { path: t.path, op: t.op, kernels, ms, cost: t.cost }
        };
        self.profile(None).into_iter().map(timed).collect()
    }
}

impl Machine for cpu::Executor<f32> {
    const PACE: Pace = Pace { steps: 5, windows: 5, warm_up: 3, settling: 0 };

    fn rates(&self, _: Precision) -> Result<Rates, TrainError> {
        Ok(Rates { gbyte_per_s: copy_rate(self.threads()) / 1e9, gflop_per_s: None })
    }

    fn uuid(&self) -> Option<String> {
        None
    }

    fn captured(&self) -> bool {
        false
    }

    fn memory_bytes(&self, plan: &Plan, states: &StateTable, leaves: usize) -> usize {
        cpu_bytes(plan, states, leaves)
    }

    fn start_profile(&mut self) {
        self.profile(Some(()));
    }

    fn end_profile(&mut self, costs: &[Cost]) -> Vec<Timed> {
        let timed = |((path, op, time), &cost): ((String, &'static str, Duration), &Cost)| Timed {
            path,
            op,
            kernels: vec![],
            ms: 1e3 * time.as_secs_f64(),
            cost,
        };
        self.profile(None).into_iter().zip(costs).map(timed).collect()
    }
}

/// Bytes that a run of this plan reserves on the CPU.
pub(crate) fn cpu_bytes(plan: &Plan, states: &StateTable, leaves: usize) -> usize {
    let p = &plan.placement;
    let run = p.batch_bytes + p.prepared_bytes + p.work_bytes;
    states.bytes + run + p.layout.reduce_bytes + leaves * p.layout.carry_bytes
}

/// Timed repeats of a rate on the CPU, of which the best counts: others share the machine.
const REPEATS: usize = 5;

fn best_seconds(mut work: impl FnMut()) -> f64 {
    let time = |_| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64()
    };
    (0..=REPEATS).map(time).skip(1).fold(f64::INFINITY, f64::min)
}

/// Bytes per second, read and written both counted, of copies of 128 MiB by all threads.
fn copy_rate(threads: usize) -> f64 {
    const BYTES: usize = 128 << 20;
    let (from, mut to) = (vec![1u8; BYTES], vec![0u8; BYTES]);
    let part = BYTES.div_ceil(threads.max(1));
    let seconds = best_seconds(|| {
        std::thread::scope(|scope| {
            for (from, to) in from.chunks(part).zip(to.chunks_mut(part)) {
                scope.spawn(move || to.copy_from_slice(from));
            }
        });
        std::hint::black_box(&to);
    });
    2.0 * BYTES as f64 / seconds
}
