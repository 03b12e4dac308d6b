//! Runs plans on the CPU: bodies per micro-batch, updates per step, in a thread pool of its own.

use crate::arena::Arenas;
use crate::io::Real;
use crate::ranks::{self, Gather};
use graph::{Op, Section, ValueId};
use plan::{Arena, Launch, Loc, NonFinite, Plan, Scalars, StateTable};
use std::time::{Duration, Instant};
use tensor::{Dtype, HostTensor};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum CpuError {
    #[error("cannot start {threads} threads: {source}")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
    #[error("{name}: expected {expected}, got {got}")]
    Tensor { name: String, expected: String, got: String },
    /// The ranks could not exchange what a batch norm over all of them needs.
    #[error("exchange between ranks: {0}")]
    Ranks(Box<dyn std::error::Error + Send + Sync>),
}

/// Memory and threads of one rank. `T` is f32, or f64 for checks.
#[derive(Debug)]
pub struct Executor<T> {
    arenas: Arenas,
    pool: rayon::ThreadPool,
    /// The way to the other ranks, if there are any.
    ranks: Option<Box<dyn Gather>>,
    /// Time per launch, when asked for.
    profile: Option<Vec<(String, &'static str, Duration)>>,
    real: std::marker::PhantomData<T>,
}

impl<T: Real> Executor<T> {
    pub fn new(threads: usize) -> Result<Executor<T>, CpuError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("cpu-{i}")).build();
        let pool = pool.map_err(|source| CpuError::Threads { threads, source })?;
        Ok(Executor { arenas: Arenas::default(), pool, ranks: None, profile: None, real: std::marker::PhantomData })
    }

    /// Threads that it computes with.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Bodies exchange values with other ranks so. Plans for several ranks need it.
    pub fn meet(&mut self, ranks: Box<dyn Gather>) {
        self.ranks = Some(ranks);
    }

    /// Makes room for a plan and `micro_batches` of carried values.
    pub fn reserve(&mut self, plan: &Plan, states: &StateTable, micro_batches: usize) {
        let p = &plan.placement;
        self.arenas.state.reserve(states.bytes);
        self.arenas.batch.reserve(p.batch_bytes);
        self.arenas.prepared.reserve(p.prepared_bytes);
        self.arenas.reduce.reserve(p.layout.reduce_bytes);
        self.arenas.carry.reserve(p.layout.carry_bytes * micro_batches);
        self.arenas.work.reserve(p.work_bytes);
    }

    /// Runs what depends on frozen state alone. Needed after the state was loaded, and when another plan was prepared.
    pub fn prepare(&mut self, plan: &Plan) {
        self.compute(plan, plan.section(0, Section::Prepare), Some(0), &Scalars::default());
    }

    /// Fills an input of the next body. Floats are converted to the executor's own type.
    pub fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor) -> Result<(), CpuError> {
        let Some(input) = plan.graph.batch.iter().find(|b| b.name == name) else { return Ok(()) };
        let arg = plan.arg(input.value);
        let fail = |expected: String| CpuError::Tensor {
            name: name.to_string(),
            expected,
            got: format!("{}{}", data.dtype().name(), data.shape()),
        };
        if data.shape() != arg.shape {
            return Err(fail(format!("{}{}", arg.dtype.name(), arg.shape)));
        }
        let bytes = plan.placement.storage.size(arg.shape, arg.dtype);
        let to = &mut self.arenas.batch.bytes_mut()[arg.loc.offset..arg.loc.offset + bytes];
        if matches!(arg.dtype, Dtype::F32 | Dtype::F64 | Dtype::Bf16) {
            let values = data.to_f64().map_err(|_| fail("a float dtype".into()))?;
            let to: &mut [T] = bytemuck::cast_slice_mut(to);
            to.iter_mut().zip(values).for_each(|(t, v)| *t = T::of(v));
        } else if data.dtype() == arg.dtype {
            to.copy_from_slice(data.bytes());
        } else {
            return Err(fail(format!("{}{}", arg.dtype.name(), arg.shape)));
        }
        Ok(())
    }

    /// Runs the body of a phase for one micro-batch. `slot` is its place in the global batch, where what it carries is kept.
    /// Errors: the ranks could not exchange values.
    pub fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), CpuError> {
        self.launches(plan, plan.section(phase, Section::Body), slot, scalars)
    }

    /// Runs the update of a phase on reduced gradients and all carried values.
    pub fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) {
        self.compute(plan, plan.section(phase, Section::Update), None, scalars);
    }

    /// Runs a body launch by launch, to its end since other ranks may wait for what it gives, and names the first whose output is not
    /// finite.
    pub fn first_nonfinite(
        &mut self,
        plan: &Plan,
        phase: usize,
        slot: usize,
        scalars: &Scalars,
    ) -> Result<Option<NonFinite>, CpuError> {
        let mut found = None;
        for launch in plan.section(phase, Section::Body) {
            self.launches(plan, std::slice::from_ref(launch), slot, scalars)?;
            let io = self.arenas.io(plan, launch, Some(slot), scalars);
            let float = |o: &&mut crate::io::Output<'_>| matches!(o.dtype, Dtype::F32 | Dtype::F64 | Dtype::Bf16);
            let mut outputs = io.outputs;
            let finite = outputs.iter_mut().filter(float).all(|o| o.real::<T>().iter().all(|x| x.is_finite()));
            if !finite && found.is_none() {
                found = Some(NonFinite { path: launch.path.clone(), op: launch.op.name() });
            }
        }
        Ok(found)
    }

    /// Launches of a body: what is exchanged with other ranks goes by this thread, the rest by the pool.
    fn launches(&mut self, plan: &Plan, launches: &[Launch], slot: usize, scalars: &Scalars) -> Result<(), CpuError> {
        let Some(ranks) = self.ranks.take() else {
            self.compute(plan, launches, Some(slot), scalars);
            return Ok(());
        };
        let mut done = Ok(());
        for run in launches.split_inclusive(|l| matches!(l.op, Op::GatherRanks { .. })) {
            match run {
                [before @ .., Launch { op: Op::GatherRanks { world, count }, .. }] => {
                    self.compute(plan, before, Some(slot), scalars);
                    let mut io = self.arenas.io(plan, &run[before.len()], Some(slot), scalars);
                    let all = ranks.all_gather(&ranks::own::<T>(&io, *count));
                    done = all.map(|all| ranks::spread::<T>(&mut io, &all, *world)).map_err(CpuError::Ranks);
                }
                run => self.compute(plan, run, Some(slot), scalars),
            }
            if done.is_err() {
                break;
            }
        }
        self.ranks = Some(ranks);
        done
    }

    fn compute(&mut self, plan: &Plan, launches: &[Launch], slot: Option<usize>, scalars: &Scalars) {
        let Executor { arenas, pool, profile, .. } = self;
        pool.install(|| {
            for launch in launches {
                let begin = Instant::now();
                T::run(&launch.op, &mut arenas.io(plan, launch, slot, scalars));
                if let Some(profile) = profile {
                    profile.push((launch.path.clone(), launch.op.name(), begin.elapsed()));
                }
            }
        });
    }

    /// Starts or ends the timing of launches; gives what was recorded.
    pub fn profile(&mut self, next: Option<()>) -> Vec<(String, &'static str, Duration)> {
        std::mem::replace(&mut self.profile, next.map(|()| Vec::new())).unwrap_or_default()
    }

    /// A phase's part of the reduce arena: loss values, monitors and gradients.
    pub fn reduce_mut(&mut self, plan: &Plan, phase: usize) -> &mut [T] {
        let range = plan.reduce.phases[phase].clone();
        let all: &mut [T] = bytemuck::cast_slice_mut(self.arenas.reduce.bytes_mut());
        &mut all[range]
    }

    /// The carried values of micro-batches, by their places in the global batch.
    pub fn carry_mut(&mut self, plan: &Plan, slots: std::ops::Range<usize>) -> &mut [u8] {
        let bytes = plan.placement.layout.carry_bytes;
        &mut self.arenas.carry.bytes_mut()[bytes * slots.start..bytes * slots.end]
    }

    /// A value that is still in memory.
    pub fn read(&self, plan: &Plan, value: ValueId) -> Vec<f64> {
        let arg = plan.arg(value);
        self.reals(arg.loc, arg.shape.elements()).iter().map(|x| x.to_f64()).collect()
    }

    pub(crate) fn reals(&self, loc: Loc, elements: usize) -> &[T] {
        let bytes = self.arenas.get(loc.arena).bytes();
        bytemuck::cast_slice(&bytes[loc.offset..loc.offset + elements * size_of::<T>()])
    }

    /// The elements of a state at `offset` of the table.
    pub fn state(&self, offset: usize, elements: usize) -> &[T] {
        self.reals(Loc { arena: Arena::State, offset }, elements)
    }

    pub fn state_mut(&mut self, offset: usize, elements: usize) -> &mut [T] {
        let bytes = self.arenas.state.bytes_mut();
        bytemuck::cast_slice_mut(&mut bytes[offset..offset + elements * size_of::<T>()])
    }
}
