//! What a rank is doing: written by the trainer's thread, read by the watch thread at any time. Atomics only.

use crate::Op;
use crate::gpu_word::{GpuPlace, GpuWord};
pub use crate::phase::Phase;
use crate::recorder::{Begin, Entry, Recorder, pack, unpack};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::ops::Add;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// Steps over which ranks are compared.
pub const WINDOW: usize = 20;
/// Classes of step durations: four to each power of two of microseconds.
const CLASSES: usize = 160;

/// Where a step spent its time before the first collective, where ranks begin to wait for each other, and what its link took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimes {
    /// Waited for batches.
    pub data: Duration,
    /// From batch ready to the first collective.
    pub own: Duration,
    /// CPU time of the process in `own`.
    pub cpu: Duration,
    /// Of the step's collectives: their bytes arrived, once the first had. Zero where that cannot be told from waiting.
    pub link: Duration,
}

impl Add for StepTimes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let Self { data, own, cpu, link } = other;
        Self { data: self.data + data, own: self.own + own, cpu: self.cpu + cpu, link: self.link + link }
    }
}

/// A rank's progress at one moment: what a heartbeat carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Grows with every sign of progress.
    pub moves: u64,
    pub phase: Phase,
    /// Steps begun by this process.
    pub steps: u64,
    /// Of the run.
    pub step: u64,
    /// Last sample given to the device; none before the first step.
    pub sample: Option<u64>,
    /// Number of the collective that the rank is in, or calls next.
    pub sequence: u64,
    pub inside: bool,
    /// The collective that it is in, or called last.
    call: u64,
    /// 99th percentile of the steps after the first without slow phases, rounded up by at most a quarter; 0: none yet.
    pub p99: Duration,
    /// Sums over the older and the newer half of the last [`WINDOW`] steps; none before there are so many.
    pub window: Option<[StepTimes; 2]>,
    /// What its GPU wrote last in the step; 0 where no GPU tells.
    gpu: u32,
}

impl Seen {
    /// The collective that the rank is in, or called last, and its bytes.
    pub fn call(&self) -> (Op, u64) {
        unpack(self.call)
    }

    /// Where the rank's GPU is; none: it tells nothing, or has not begun the step.
    pub fn gpu(&self) -> Option<GpuPlace> {
        GpuPlace::of(self.gpu)
    }

    /// In order within a step.
    pub(crate) fn gpu_word(&self) -> u32 {
        self.gpu
    }
}

/// Shared by the two threads.
pub struct Progress {
    origin: Instant,
    /// Unix time of `origin`, microseconds.
    origin_us: u64,
    moves: AtomicU64,
    phase: AtomicU64,
    steps: AtomicU64,
    step: AtomicU64,
    before: AtomicU64,
    sample: AtomicU64,
    /// Twice the number of collectives that completed, plus one inside of one.
    collective: AtomicU64,
    call: AtomicU64,
    stepped_us: AtomicU64,
    /// The step is not the first, and there was no slow phase since it began.
    plain: AtomicBool,
    durations: [AtomicU32; CLASSES],
    timed: AtomicU64,
    /// Nanoseconds that bytes of collectives took to arrive since the step began.
    arriving: AtomicU64,
    /// Nanoseconds: data, own, cpu, link.
    times: [[AtomicU64; 4]; WINDOW],
    beats: AtomicU64,
    /// A slow phase began or ended. It holds a lock for the instants in which a waiter comes or goes.
    turned: Notify,
    recorder: Recorder,
    /// Written by the GPU.
    gpu: OnceLock<Arc<GpuWord>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// A rank that starts.
    pub fn new() -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let zero = || AtomicU64::new(0);
        Self {
            origin: Instant::now(),
            origin_us: unix.as_micros() as u64,
            moves: zero(),
            phase: AtomicU64::new(Phase::Start as u64),
            steps: zero(),
            step: zero(),
            before: zero(),
            sample: zero(),
            collective: zero(),
            call: zero(),
            stepped_us: zero(),
            plain: AtomicBool::new(false),
            durations: std::array::from_fn(|_| AtomicU32::new(0)),
            timed: zero(),
            arriving: zero(),
            times: std::array::from_fn(|_| std::array::from_fn(|_| zero())),
            beats: zero(),
            turned: Notify::new(),
            recorder: Recorder::new(),
            gpu: OnceLock::new(),
        }
    }

    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Release);
    }

    fn elapsed_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    /// A phase begins. Calling it again in a long phase shows that the rank is alive. Where a slow phase begins or ends the watch tells
    /// so at once; those of a step follow each other too fast for that.
    pub fn enter(&self, phase: Phase) {
        if phase.is_slow() {
            self.plain.store(false, Ordering::Relaxed);
        }
        let last = Phase::from_number(self.phase.swap(phase as u64, Ordering::Relaxed));
        self.moved();
        if last != phase && (last.is_slow() || phase.is_slow()) {
            self.turned.notify_one();
        }
    }

    /// Until a slow phase begins or ends, or at once if one did since the last call.
    pub(crate) async fn turned(&self) {
        self.turned.notified().await;
    }

    /// A step of the run begins; `sample` is the index of the last sample given to the device.
    pub fn step(&self, global_step: u64, sample: u64) {
        let now = self.elapsed_us();
        let last = self.stepped_us.swap(now, Ordering::Relaxed);
        // The first step warms up: as one of a few it would set the limit of all.
        let is_first = self.steps.load(Ordering::Relaxed) == 0;
        if self.plain.swap(!is_first, Ordering::Relaxed) {
            self.durations[class(now - last)].fetch_add(1, Ordering::Relaxed);
        }
        self.before.store(self.sample.swap(sample, Ordering::Relaxed), Ordering::Relaxed);
        self.step.store(global_step, Ordering::Relaxed);
        self.arriving.store(0, Ordering::Relaxed);
        if let Some(word) = self.gpu.get() {
            word.set(0);
        }
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.moved();
    }

    /// The word in which the rank's GPU tells where it is. From then on [`step`](Self::step) is called while the GPU does nothing.
    pub fn gpu_word(&self) -> Arc<GpuWord> {
        self.gpu.get_or_init(Arc::default).clone()
    }

    /// The rank calls a collective. One at a time.
    pub fn begin_collective(&self, op: Op, bytes: usize) {
        let call = pack(op, bytes);
        let sequence = self.collective.load(Ordering::Relaxed) / 2;
        self.recorder.begin(&Begin {
            sequence,
            step: self.step.load(Ordering::Relaxed),
            phase: Phase::from_number(self.phase.load(Ordering::Relaxed)),
            call,
            begin_us: self.origin_us + self.elapsed_us(),
            samples: (self.before.load(Ordering::Relaxed), self.sample.load(Ordering::Relaxed)),
        });
        self.call.store(call, Ordering::Relaxed);
        self.collective.store(2 * sequence + 1, Ordering::Release);
        self.moved();
    }

    /// The collective completed. Not called for one that failed: the rank is never out of it.
    pub fn end_collective(&self) {
        let sequence = self.collective.load(Ordering::Relaxed) / 2;
        self.recorder.end(sequence, self.origin_us + self.elapsed_us());
        self.collective.store(2 * sequence + 2, Ordering::Release);
        self.moved();
    }

    /// The bytes of a collective took so long to arrive.
    pub(crate) fn arrived(&self, took: Duration) {
        self.arriving.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// How long the bytes of the step's collectives took to arrive until now.
    pub fn arriving(&self) -> Duration {
        Duration::from_nanos(self.arriving.load(Ordering::Relaxed))
    }

    /// Times of the step that reached its first collective.
    pub fn step_times(&self, times: StepTimes) {
        let slot = &self.times[self.timed.load(Ordering::Relaxed) as usize % WINDOW];
        for (to, from) in slot.iter().zip([times.data, times.own, times.cpu, times.link]) {
            to.store(from.as_nanos() as u64, Ordering::Relaxed);
        }
        self.timed.fetch_add(1, Ordering::Release);
    }

    /// What the rank is doing now. Values of different moments may meet in it, by the length of a call.
    pub fn look(&self) -> Seen {
        let moves = self.moves.load(Ordering::Acquire);
        let steps = self.steps.load(Ordering::Relaxed);
        let collective = self.collective.load(Ordering::Acquire);
        Seen {
            moves,
            phase: Phase::from_number(self.phase.load(Ordering::Relaxed)),
            steps,
            step: self.step.load(Ordering::Relaxed),
            sample: (steps > 0).then(|| self.sample.load(Ordering::Relaxed)),
            sequence: collective / 2,
            inside: collective % 2 == 1,
            call: self.call.load(Ordering::Relaxed),
            p99: self.p99(),
            window: self.window(),
            gpu: self.gpu.get().map_or(0, |word| word.get()),
        }
    }

    /// What a heartbeat carries.
    pub(crate) fn beat(&self) -> Seen {
        let seen = self.look();
        self.beats.fetch_add(1, Ordering::Release);
        seen
    }

    /// How many heartbeats carried this progress; 0 as long as nobody watches.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Acquire)
    }

    fn window(&self) -> Option<[StepTimes; 2]> {
        let timed = self.timed.load(Ordering::Acquire) as usize;
        let half = |begin: usize| {
            let steps = (begin..begin + WINDOW / 2).map(|at| &self.times[at % WINDOW]);
            let sum = |i: usize| Duration::from_nanos(steps.clone().map(|t| t[i].load(Ordering::Relaxed)).sum());
            StepTimes { data: sum(0), own: sum(1), cpu: sum(2), link: sum(3) }
        };
        // The oldest step is where the next one goes.
        (timed >= WINDOW).then(|| [half(timed), half(timed + WINDOW / 2)])
    }

    fn p99(&self) -> Duration {
        let counts: Vec<u64> = self.durations.iter().map(|n| n.load(Ordering::Relaxed).into()).collect();
        let mut above = counts.iter().sum::<u64>() / 100;
        for (class, &count) in counts.iter().enumerate().rev() {
            if count > above {
                return Duration::from_micros(class_end(class));
            }
            above -= count;
        }
        Duration::ZERO
    }

    /// At most the last `most` collectives, oldest first.
    pub fn last(&self, most: usize) -> Vec<Entry> {
        self.recorder.last(most)
    }

    /// The flight recorder as JSON lines, oldest first.
    pub fn dump(&self, to: &mut impl Write) -> io::Result<()> {
        self.recorder.dump(to)
    }
}

/// Class of a duration in microseconds: exponent and the two bits below the highest.
fn class(us: u64) -> usize {
    let us = us.max(4);
    let exponent = us.ilog2();
    let class = 4 * (exponent as usize - 2) + (us >> (exponent - 2) & 3) as usize;
    class.min(CLASSES - 1)
}

/// First duration beyond a class.
fn class_end(class: usize) -> u64 {
    (5 + class as u64 % 4) << (class / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_shows_what_was_written() {
        let progress = Progress::new();
        let start = progress.look();
        assert_eq!((start.phase, start.sample, start.inside, start.window), (Phase::Start, None, false, None));
        progress.enter(Phase::Forward);
        progress.step(7, 99);
        progress.begin_collective(Op::AllReduce, 4096);
        let seen = progress.look();
        assert_eq!((seen.phase, seen.step, seen.sample), (Phase::Forward, 7, Some(99)));
        assert_eq!((seen.sequence, seen.inside, seen.call()), (0, true, (Op::AllReduce, 4096)));
        progress.end_collective();
        let next = progress.look();
        assert_eq!((next.sequence, next.inside), (1, false));
        assert!(start.moves < seen.moves && seen.moves < next.moves);
        let entries = progress.last(16);
        assert_eq!((entries.len(), entries[0].step, entries[0].samples), (1, 7, (0, 99)));
        assert!(entries[0].end_us >= Some(entries[0].begin_us));
    }

    #[test]
    fn the_window_is_two_sums_of_the_last_steps() {
        let progress = Progress::new();
        let ms = Duration::from_millis;
        for i in 0..53 {
            assert_eq!(progress.look().window.is_some(), i >= WINDOW as u64);
            progress.step_times(StepTimes { data: ms(i), own: ms(2), cpu: ms(1), link: ms(3) });
        }
        let halves =
            [33..43, 43..53].map(|steps| StepTimes { data: ms(steps.sum()), own: ms(20), cpu: ms(10), link: ms(30) });
        assert_eq!(progress.look().window, Some(halves));
    }

    #[test]
    fn classes_of_durations_are_narrow_and_in_order() {
        for us in (4..5_000_u64).chain([1 << 20, 60_000_000, 3_600_000_000]) {
            let class = class(us);
            assert!(class_end(class) > us && class_end(class) <= us + us / 4 + 1, "{us}");
            assert!(class == 0 || class_end(class - 1) <= us, "{us}");
        }
        assert_eq!(class(u64::MAX), CLASSES - 1);
    }

    #[test]
    fn the_99th_percentile_leaves_out_one_in_a_hundred_and_slow_phases_and_the_first_step() {
        let progress = Progress::new();
        assert_eq!(progress.look().p99, Duration::ZERO);
        progress.durations[class(1_000)].store(200, Ordering::Relaxed);
        progress.durations[class(9_000_000)].store(1, Ordering::Relaxed);
        assert_eq!(progress.look().p99, Duration::from_micros(class_end(class(1_000))));
        let counted = || progress.durations.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u32>();
        progress.step(0, 0);
        progress.step(1, 0);
        assert_eq!(counted(), 201, "the first step is over");
        progress.step(2, 0);
        assert_eq!(counted(), 202, "the second is");
        progress.enter(Phase::Evaluate);
        progress.step(3, 0);
        assert_eq!(counted(), 202, "the third had an evaluation");
    }

    /// Watching costs at most half a percent of a step of a millisecond with two collectives: 5 us.
    #[test]
    fn a_call_costs_less_than_a_microsecond() {
        let progress = Progress::new();
        let rounds = 20_000;
        let begin = Instant::now();
        for i in 0..rounds {
            progress.step(i, i);
            progress.begin_collective(Op::AllReduce, 1024);
            progress.end_collective();
        }
        let each = begin.elapsed() / (3 * rounds as u32);
        assert!(each < Duration::from_micros(1), "{each:?} a call");
    }
}
