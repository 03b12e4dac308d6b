//! The second executor: a GPU.

use crate::error::TrainError;
use crate::executor::{Executor, on_host};
use crate::joined::{Joined, shares_gpu, shares_gpu_by_nccl};
use crate::recipe::{Gradients, RanksSection};
use comm::discover::Environment;
use comm::{Communicator, Library, Nccl, NcclSettings};
use plan::{NonFinite, Plan, Scalars, StateTable, Storage};
use spec::ValueId;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use tensor::HostTensor;

/// For NCCL to connect all ranks.
const JOIN_LIMIT: Duration = Duration::from_secs(120);

impl Executor for cuda::Executor {
    type Real = f32;
    type Part = cuda::Part;

    fn describe(&self) -> String {
        self.describe()
    }

    fn storage(&self) -> Storage {
        self.storage()
    }

    /// By NCCL; where ranks share a GPU, by way of the host.
    fn join(
        &mut self,
        comm: &dyn Communicator,
        settings: &RanksSection,
        joined: Option<&Joined>,
    ) -> Result<(), TrainError> {
        let (world, gradients) = (comm.world_size(), settings.gradients);
        let gradients = if gradients == Gradients::Bf16 { cuda::Gradients::Bf16 } else { cuda::Gradients::F32 };
        let environment = Environment::of_process();
        if world == 1 || shares_gpu(&environment) && !shares_gpu_by_nccl(&environment) {
            return Ok(());
        }
        let failed =
            |e| TrainError::from(cuda::CudaError::Ranks { what: "the ranks' GPUs".to_string(), source: Box::new(e) });
        let library = Library::open().map_err(failed)?;
        let id = if comm.rank() == 0 { Nccl::unique_id(&library).map_err(failed)? } else { [0; 128] };
        let mut shared = id;
        comm.broadcast(&mut shared, 0)?;
        let settings = NcclSettings { limit: JOIN_LIMIT, max_ctas: None };
        let (rank, word) = (comm.rank(), joined.map(|j| j.progress.gpu_word()));
        let meeting = cuda::Meeting { library, id: shared, rank, world, settings, gradients, word };
        let aborter = self.join(meeting)?;
        if let Some(joined) = joined {
            let asked = aborter.clone();
            joined.poll(Box::new(move || asked.poll().err().filter(|e| !e.is_peer()).map(|e| e.to_string())));
            joined.on_abort(Box::new(move || drop(aborter.abort())));
        }
        Ok(())
    }

    fn meet(&mut self, _comm: &Rc<dyn Communicator>) -> bool {
        self.is_joined()
    }

    fn sums_over_ranks(&self) -> bool {
        self.is_joined()
    }

    fn all_reduce(&mut self, comm: &dyn Communicator, plan: &Plan, phase: usize) -> Result<(), TrainError> {
        if !self.is_joined() {
            return on_host::all_reduce(self, comm, plan, phase);
        }
        Ok(self.all_reduce(plan, phase)?)
    }

    fn share_parts(
        &mut self,
        comm: &dyn Communicator,
        own: Vec<cuda::Part>,
        owners: &[usize],
        len: usize,
    ) -> Result<Vec<cuda::Part>, TrainError> {
        if !self.is_joined() {
            return on_host::share_parts(self, comm, own, (owners, len));
        }
        Ok(self.share_parts(own, owners, len)?)
    }

    fn share_carry(&mut self, comm: &dyn Communicator, plan: &Plan, slots: &[Range<usize>]) -> Result<(), TrainError> {
        if !self.is_joined() {
            return on_host::share_carry(self, comm, plan, slots);
        }
        Ok(self.share_carry(plan, slots)?)
    }

    fn reserve(&mut self, plans: &[&Plan], states: &StateTable, micro_batches: usize) -> Result<(), TrainError> {
        Ok(self.reserve(plans, states, micro_batches)?)
    }

    fn prepare(&mut self, plan: &Plan) -> Result<(), TrainError> {
        Ok(self.prepare(plan)?)
    }

    fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor) -> Result<(), TrainError> {
        Ok(self.set_input(plan, name, data)?)
    }

    fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), TrainError> {
        Ok(self.body(plan, phase, slot, scalars)?)
    }

    fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) -> Result<(), TrainError> {
        Ok(self.update(plan, phase, scalars)?)
    }

    fn phase(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), TrainError> {
        Ok(self.phase(plan, phase, slot, scalars)?)
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

    fn take_part(&mut self, plan: &Plan, phase: usize) -> Result<cuda::Part, TrainError> {
        Ok(self.take_part(plan, phase)?)
    }

    fn add_parts(&mut self, left: &mut cuda::Part, right: &cuda::Part) -> Result<(), TrainError> {
        Ok(self.add_parts(left, right)?)
    }

    fn put_part(&mut self, plan: &Plan, phase: usize, part: &cuda::Part) -> Result<(), TrainError> {
        Ok(self.put_part(plan, phase, part)?)
    }

    fn clear_reduce(&mut self, plan: &Plan, phase: usize) -> Result<(), TrainError> {
        Ok(self.clear_reduce(plan, phase)?)
    }

    fn part_to_host(&self, part: &cuda::Part) -> Result<Vec<f32>, TrainError> {
        Ok(self.part_to_host(part)?)
    }

    fn part_from_host(&mut self, values: &[f32]) -> Result<cuda::Part, TrainError> {
        Ok(self.part_from_host(values)?)
    }

    fn carry_to_host(&mut self, plan: &Plan, slots: Range<usize>) -> Result<Vec<u8>, TrainError> {
        Ok(self.carry_to_host(plan, slots)?)
    }

    fn carry_from_host(&mut self, plan: &Plan, bytes: &[u8]) -> Result<(), TrainError> {
        Ok(self.carry_from_host(plan, bytes)?)
    }

    fn read(&self, plan: &Plan, value: ValueId) -> Result<Vec<f64>, TrainError> {
        Ok(self.read(plan, value)?)
    }

    fn read_all(&self, plan: &Plan, values: &[ValueId]) -> Result<Vec<Vec<f64>>, TrainError> {
        Ok(self.read_all(plan, values)?)
    }

    fn state(&self, offset: usize, elements: usize) -> Result<Vec<f32>, TrainError> {
        Ok(self.state(offset, elements)?)
    }

    fn set_state(&mut self, offset: usize, values: &[f32]) -> Result<(), TrainError> {
        Ok(self.set_state(offset, values)?)
    }
}
