//! What a run asks of the machine that computes. There are two: the CPU (`cpu::Executor`, here) and CUDA.

use crate::error::TrainError;
use crate::joined::Joined;
use crate::recipe::{Gradients, RanksSection};
use crate::session::plural;
use comm::Communicator;
use cpu::{CpuError, Gather, Real};
use plan::{NonFinite, Plan, Scalars, StateTable, Storage};
use spec::ValueId;
use std::ops::Range;
use std::rc::Rc;
use tensor::HostTensor;

/// Memory of one rank, and what runs plans on it. Work may go on after a call returns; whatever gives values to the host waits
/// for it. Every error is one of the machine, or of an input that does not fit.
pub trait Executor: Sized + 'static {
    /// What states and reduced values are stored as.
    type Real: Real;
    /// A copy of a phase's range of the reduce arena, in the executor's memory.
    type Part;

    /// Name and size of the machine, for people.
    fn describe(&self) -> String;

    /// How plans must place values to run here.
    fn storage(&self) -> Storage;

    /// Meets the executors of the other ranks, where it has a way of its own to reach them. Called once, before `reserve`.
    fn join(
        &mut self,
        comm: &dyn Communicator,
        settings: &RanksSection,
        joined: Option<&Joined>,
    ) -> Result<(), TrainError>;

    /// Whether bodies can exchange values with the other ranks; `comm` is a way there. Called once, before `reserve`.
    fn meet(&mut self, comm: &Rc<dyn Communicator>) -> bool;

    /// Makes room for all plans of a run, its states and the carried values of `micro_batches`: called once, before all else.
    fn reserve(&mut self, plans: &[&Plan], states: &StateTable, micro_batches: usize) -> Result<(), TrainError>;

    /// Runs what depends on frozen state alone. Needed after the state was loaded, and when another plan was prepared.
    fn prepare(&mut self, plan: &Plan) -> Result<(), TrainError>;

    /// Fills an input of the plan's next bodies; it stays until it is filled again, or one of another plan is. Inputs that the plan
    /// has not are ignored. Floats are converted.
    fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor) -> Result<(), TrainError>;

    /// Runs the body of a phase for one micro-batch. `slot` is its place in the global batch, where what it carries is kept.
    fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), TrainError>;

    /// Runs the update of a phase on reduced gradients and all carried values.
    fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) -> Result<(), TrainError>;

    /// Whether [`phase`](Self::phase) may be used by several ranks: it sums over them itself.
    fn sums_over_ranks(&self) -> bool {
        false
    }

    /// A phase of a step in which each rank has one micro-batch, at place `slot`: body, sums over the ranks, update.
    fn phase(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), TrainError> {
        self.body(plan, phase, slot, scalars)?;
        self.update(plan, phase, scalars)
    }

    /// Runs a body launch by launch, to its end, and finds the first whose output is not finite.
    fn first_nonfinite(
        &mut self,
        plan: &Plan,
        phase: usize,
        slot: usize,
        scalars: &Scalars,
    ) -> Result<Option<NonFinite>, TrainError>;

    /// Copies what a phase's body left to be reduced.
    fn take_part(&mut self, plan: &Plan, phase: usize) -> Result<Self::Part, TrainError>;

    /// `left` += `right`, element by element.
    fn add_parts(&mut self, left: &mut Self::Part, right: &Self::Part) -> Result<(), TrainError>;

    /// Gives the update a part in place of what the last body left.
    fn put_part(&mut self, plan: &Plan, phase: usize, part: &Self::Part) -> Result<(), TrainError>;

    /// Zeros the phase's range: before a body that does not make all of it.
    fn clear_reduce(&mut self, plan: &Plan, phase: usize) -> Result<(), TrainError>;

    fn part_to_host(&self, part: &Self::Part) -> Result<Vec<Self::Real>, TrainError>;

    fn part_from_host(&mut self, values: &[Self::Real]) -> Result<Self::Part, TrainError>;

    /// The carried values of micro-batches, by their places: `carry_bytes` of the plan's layout each.
    fn carry_to_host(&mut self, plan: &Plan, slots: Range<usize>) -> Result<Vec<u8>, TrainError>;

    /// Sets the carried values of as many micro-batches, from the first.
    fn carry_from_host(&mut self, plan: &Plan, bytes: &[u8]) -> Result<(), TrainError>;

    /// Sums the phase's range of the reduce arena over the ranks, as fast as that goes: equal bits on all of them and in every
    /// run, but not at another number of ranks.
    fn all_reduce(&mut self, comm: &dyn Communicator, plan: &Plan, phase: usize) -> Result<(), TrainError> {
        on_host::all_reduce(self, comm, plan, phase)
    }

    /// Parts of all ranks on every rank. `owners` says, for each part of the result, whose it is; own ones are given in order.
    /// Each has `len` elements. Ranks come one after the other in `owners`.
    fn share_parts(
        &mut self,
        comm: &dyn Communicator,
        own: Vec<Self::Part>,
        owners: &[usize],
        len: usize,
    ) -> Result<Vec<Self::Part>, TrainError> {
        on_host::share_parts(self, comm, own, (owners, len))
    }

    /// Gives every rank what all carried: `slots` are each rank's places, in the order of ranks.
    fn share_carry(&mut self, comm: &dyn Communicator, plan: &Plan, slots: &[Range<usize>]) -> Result<(), TrainError> {
        on_host::share_carry(self, comm, plan, slots)
    }

    /// The elements of a float value that is still in memory.
    fn read(&self, plan: &Plan, value: ValueId) -> Result<Vec<f64>, TrainError>;

    /// As `read`, of several: a step reads its losses at once.
    fn read_all(&self, plan: &Plan, values: &[ValueId]) -> Result<Vec<Vec<f64>>, TrainError> {
        values.iter().map(|&value| self.read(plan, value)).collect()
    }

    /// The elements of a state at `offset` (bytes) of the table.
    fn state(&self, offset: usize, elements: usize) -> Result<Vec<Self::Real>, TrainError>;

    fn set_state(&mut self, offset: usize, values: &[Self::Real]) -> Result<(), TrainError>;
}

/// What ranks exchange by way of the host.
pub(crate) mod on_host {
    use super::*;

    pub(crate) fn all_reduce<E: Executor>(
        executor: &mut E,
        comm: &dyn Communicator,
        plan: &Plan,
        phase: usize,
    ) -> Result<(), TrainError> {
        let part = executor.take_part(plan, phase)?;
        let mut values = executor.part_to_host(&part)?;
        if size_of::<E::Real>() == 8 {
            comm.all_reduce_sum_f64(bytemuck::cast_slice_mut(&mut values))?;
        } else {
            comm.all_reduce_sum(bytemuck::cast_slice_mut(&mut values))?;
        }
        let sum = executor.part_from_host(&values)?;
        executor.put_part(plan, phase, &sum)
    }

    pub(crate) fn share_parts<E: Executor>(
        executor: &mut E,
        comm: &dyn Communicator,
        own: Vec<E::Part>,
        (owners, len): (&[usize], usize),
    ) -> Result<Vec<E::Part>, TrainError> {
        let mut bytes = Vec::new();
        for part in &own {
            bytes.extend_from_slice(bytemuck::cast_slice(&executor.part_to_host(part)?));
        }
        drop(own);
        let all = comm.all_gather_varied(&bytes)?.concat();
        let parts = all.chunks_exact(len * size_of::<E::Real>());
        assert_eq!(parts.len(), owners.len(), "parts of all ranks");
        parts.map(|p| executor.part_from_host(&bytemuck::pod_collect_to_vec::<u8, E::Real>(p))).collect()
    }

    pub(crate) fn share_carry<E: Executor>(
        executor: &mut E,
        comm: &dyn Communicator,
        plan: &Plan,
        slots: &[Range<usize>],
    ) -> Result<(), TrainError> {
        let own = executor.carry_to_host(plan, slots[comm.rank()].clone())?;
        let all = comm.all_gather_varied(&own)?.concat();
        executor.carry_from_host(plan, &all)
    }
}

/// What bodies on the CPU exchange, by the communicator of the run.
struct ByComm(Rc<dyn Communicator>);

impl std::fmt::Debug for ByComm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.0.rank(), self.0.world_size())
    }
}

impl Gather for ByComm {
    fn all_gather(&self, own: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.all_gather(own)?)
    }
}

/// A failed exchange is an error between the ranks, whoever asked for it.
impl From<CpuError> for TrainError {
    fn from(error: CpuError) -> TrainError {
        match error {
            CpuError::Ranks(source) => match source.downcast() {
                Ok(comm) => TrainError::Comm(*comm),
                Err(source) => TrainError::Cpu(CpuError::Ranks(source)),
            },
            other => TrainError::Cpu(other),
        }
    }
}

impl<T: Real> Executor for cpu::Executor<T> {
    type Real = T;
    type Part = Vec<T>;

    fn describe(&self) -> String {
        format!("CPU, {} thread{}", self.threads(), plural(self.threads()))
    }

    fn storage(&self) -> Storage {
        if size_of::<T>() == 8 { Storage::CpuF64 } else { Storage::CpuF32 }
    }

    fn meet(&mut self, comm: &Rc<dyn Communicator>) -> bool {
        self.meet(Box::new(ByComm(comm.clone())));
        true
    }

    /// CPUs have no way but the communicator.
    fn join(
        &mut self,
        comm: &dyn Communicator,
        settings: &RanksSection,
        _joined: Option<&Joined>,
    ) -> Result<(), TrainError> {
        if comm.world_size() > 1 && settings.gradients == Gradients::Bf16 {
            let what = "ranks.gradients = \"bf16\" is for GPUs, got CPU ranks; remove the key";
            return Err(TrainError::Setting(what.to_string()));
        }
        Ok(())
    }

    fn reserve(&mut self, plans: &[&Plan], states: &StateTable, micro_batches: usize) -> Result<(), TrainError> {
        plans.iter().for_each(|plan| self.reserve(plan, states, micro_batches));
        Ok(())
    }

    fn prepare(&mut self, plan: &Plan) -> Result<(), TrainError> {
        self.prepare(plan);
        Ok(())
    }

    fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor) -> Result<(), TrainError> {
        Ok(self.set_input(plan, name, data)?)
    }

    fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), TrainError> {
        Ok(self.body(plan, phase, slot, scalars)?)
    }

    fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) -> Result<(), TrainError> {
        self.update(plan, phase, scalars);
        Ok(())
    }

    fn first_nonfinite(
        &mut self,
        plan: &Plan,
        phase: usize,
        slot: usize,
        scalars: &Scalars,
    ) -> Result<Option<NonFinite>, TrainError> {
        Ok(self.first_nonfinite(plan, phase, slot, scalars)?)
    }

    fn take_part(&mut self, plan: &Plan, phase: usize) -> Result<Vec<T>, TrainError> {
        Ok(self.reduce_mut(plan, phase).to_vec())
    }

    fn add_parts(&mut self, left: &mut Vec<T>, right: &Vec<T>) -> Result<(), TrainError> {
        left.iter_mut().zip(right).for_each(|(l, r)| *l += *r);
        Ok(())
    }

    fn put_part(&mut self, plan: &Plan, phase: usize, part: &Vec<T>) -> Result<(), TrainError> {
        self.reduce_mut(plan, phase).copy_from_slice(part);
        Ok(())
    }

    fn clear_reduce(&mut self, plan: &Plan, phase: usize) -> Result<(), TrainError> {
        self.reduce_mut(plan, phase).fill(T::ZERO);
        Ok(())
    }

    fn part_to_host(&self, part: &Vec<T>) -> Result<Vec<T>, TrainError> {
        Ok(part.clone())
    }

    fn part_from_host(&mut self, values: &[T]) -> Result<Vec<T>, TrainError> {
        Ok(values.to_vec())
    }

    fn carry_to_host(&mut self, plan: &Plan, slots: Range<usize>) -> Result<Vec<u8>, TrainError> {
        Ok(self.carry_mut(plan, slots).to_vec())
    }

    fn carry_from_host(&mut self, plan: &Plan, bytes: &[u8]) -> Result<(), TrainError> {
        let slots = bytes.len() / plan.placement.layout.carry_bytes.max(1);
        self.carry_mut(plan, 0..slots).copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, plan: &Plan, value: ValueId) -> Result<Vec<f64>, TrainError> {
        Ok(self.read(plan, value))
    }

    fn state(&self, offset: usize, elements: usize) -> Result<Vec<T>, TrainError> {
        Ok(self.state(offset, elements).to_vec())
    }

    fn set_state(&mut self, offset: usize, values: &[T]) -> Result<(), TrainError> {
        self.state_mut(offset, values.len()).copy_from_slice(values);
        Ok(())
    }
}
