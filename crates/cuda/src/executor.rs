//! Runs plans on a GPU: bodies per micro-batch, updates per step. The twin of `cpu::Executor`.
//!
//! Everything is put on one compute stream, in order, and goes on after a call returns; what gives values to the host waits.
//! Memory is reserved once, every launch of every plan is bound to its addresses then, and nothing moves after.

use crate::arena::{Map, Need, PerRegion, REGIONS, Region, pretended};
use crate::bind::bind;
use crate::binding::{Addresses, Math};
use crate::command::Address;
use crate::driver::{Buffer, Gpu, Stream};
use crate::error::CudaError;
use crate::facts::Facts;
use crate::input::Inputs;
use crate::module::Modules;
use crate::part::{Part, Parts};
use crate::program::{Bind, Bindings, Carried, Collected, Step, bind_plan, halve_states};
use crate::ranks::{Gradients, Ranks};
use crate::replay::{List, Mode, Replay, Timing};
use crate::scalars;
use crate::transfer::{ScalarRing, Transfer, floats, numbers};
use comm::GpuAt;
use graph::{NodeId, Op, Section, ValueId};
use plan::{Arena, Arg, Cost, Launch, Loc, Plan, Scalars, StateTable, Storage};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use tensor::{Dtype, HostTensor, Shape};

/// The lists of a plan.
#[derive(Debug, Default)]
pub(crate) struct Program {
    prepare: Vec<Step>,
    /// What tells that a body begins.
    begins: Vec<Vec<Step>>,
    bodies: Vec<(Vec<Step>, Carried)>,
    updates: Vec<Vec<Step>>,
    /// What stands between body and update where one list holds both: the copy of what the micro-batch carries to its slot, and
    /// what ranks exchange.
    pub between: Vec<Vec<Step>>,
    /// The sums over ranks that begin within a body, each after so many of its launches.
    pub sums: Vec<Vec<(usize, Step)>>,
}

/// What `reserve` made.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub programs: HashMap<u64, Program>,
    inputs: Inputs,
    scalars: ScalarRing,
    pub parts: Parts,
    map: Map,
    /// Makes all bf16 copies of states anew.
    refresh: Vec<Step>,
    buffers: Vec<Buffer>,
}

/// Memory and streams of one rank on one GPU. It stays on the thread that made it.
#[derive(Debug)]
pub struct Executor {
    // Dropped in this order: graphs, lists and memory before modules, streams and the context.
    replay: Replay,
    reserved: Option<Reserved>,
    transfer: RefCell<Transfer>,
    pub(crate) modules: RefCell<Modules>,
    pub(crate) stream: Stream,
    pub(crate) gpu: Rc<Gpu>,
    /// After the lists and graphs that hold its commands.
    pub(crate) ranks: Option<Rc<Ranks>>,
    math: Math,
    /// States changed since their bf16 copies were made.
    stale: bool,
}

impl Drop for Executor {
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
    }
}

impl Executor {
    /// Opens a GPU, counted from 0, and loads the kernels. Errors: no driver, too old a driver, no such GPU, no kernels for it.
    pub fn new(ordinal: usize, mode: Mode, math: Math) -> Result<Executor, CudaError> {
        let gpu = Gpu::open(ordinal)?;
        Ok(Executor {
            replay: Replay::new(mode),
            reserved: None,
            transfer: RefCell::new(Transfer::new(&gpu)?),
            modules: RefCell::new(Modules::load(&gpu)?),
            stream: Stream::new(&gpu)?,
            gpu,
            ranks: None,
            math,
            stale: true,
        })
    }

    pub fn facts(&self) -> &Facts {
        &self.gpu.facts
    }

    /// `GPU 0: NVIDIA H200, 132 multiprocessors, 139.80 GiB`
    pub fn describe(&self) -> String {
        let Facts { ordinal, name, sms, memory_bytes, .. } = &self.gpu.facts;
        format!("GPU {ordinal}: {name}, {sms} multiprocessors, {}", crate::error::size(*memory_bytes))
    }

    /// How plans must place values to run here.
    pub fn storage(&self) -> Storage {
        Storage::Device
    }

    /// How f32 matrix products are computed.
    pub fn math(&self) -> Math {
        self.math
    }

    /// Makes room for all plans of a run, its states and the carried values of `micro_batches`, and binds every launch.
    /// Errors: it does not fit (nothing was allocated then); a kernel is missing.
    pub fn reserve(&mut self, plans: &[&Plan], states: &StateTable, micro_batches: usize) -> Result<(), CudaError> {
        self.stream.synchronize()?;
        self.replay.forget();
        self.reserved = None;
        let halves = crate::arena::Halves::of(plans);
        let target = (self.math, self.gpu.facts.sms);
        let mut need = Need::of(plans, states.bytes, micro_batches);
        let mut counted = Collected::default();
        let pretend = Map { bases: pretended(), halves };
        for plan in plans {
            bind_plan(plan, &pretend, target, &mut counted);
        }
        need.regions[Region::Scratch] = counted.scratch_bytes;
        need.regions[Region::Constants] = counted.constants.len();
        if self.ranks.as_ref().is_some_and(|ranks| ranks.gradients == Gradients::Bf16) {
            need.regions[Region::HalfReduce] = need.regions[Region::Reduce] / 2;
        }
        let (free, total) = self.gpu.memory()?;
        need.check(&self.gpu.label(), free, total)?;
        let (mut bases, mut buffers) = (PerRegion::default(), Vec::new());
        for region in REGIONS {
            let buffer = Buffer::new(&self.gpu, need.regions[region])?;
            bases[region] = buffer.address;
            if region.begins_as_zeros() {
                self.fill(buffer.address, 0, buffer.bytes)?;
            }
            buffers.push(buffer);
        }
        let map = Map { bases, halves: pretend.halves };
        let mut all = Collected::default();
        let programs = plans.iter().map(|plan| {
            let bindings = bind_plan(plan, &map, target, &mut all);
            Ok((plan.key, self.program(plan, bindings, &map)?))
        });
        let programs = programs.collect::<Result<_, CudaError>>()?;
        assert!(all.constants.len() == counted.constants.len() && all.scratch_bytes <= counted.scratch_bytes);
        self.transfer.get_mut().store(&self.stream, bases[Region::Constants], &all.constants)?;
        let refresh = halve_states(map.halves.state.clone(), &map, target.1);
        let refresh = self.steps(refresh.into_iter().collect())?;
        let batch_bytes = need.regions[Region::Batch];
        self.reserved = Some(Reserved {
            programs,
            inputs: Inputs::new(&self.gpu, batch_bytes, bases[Region::Staging], bases[Region::Batch])?,
            scalars: ScalarRing::new(&self.gpu, need.regions[Region::Scalars])?,
            parts: Parts::new(&self.gpu, need.parts, need.part_bytes)?,
            map,
            refresh,
            buffers,
        });
        self.stale = true;
        self.stream.synchronize() // inputs come on a stream of their own
    }

    /// Bytes of device memory that nobody has taken.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        Ok(self.gpu.memory()?.0)
    }

    /// Bytes of device memory that `reserve` took, partial sums aside.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.iter().flat_map(|r| &r.buffers).map(|b| b.bytes).sum()
    }

    pub(crate) fn steps(&self, binds: Vec<Bind>) -> Result<Vec<Step>, CudaError> {
        let mut modules = self.modules.borrow_mut();
        binds.into_iter().map(|b| Step::new(b, &mut modules, self.ranks.as_ref())).collect()
    }

    fn program(&self, plan: &Plan, bindings: Vec<Bindings>, map: &Map) -> Result<Program, CudaError> {
        let mut program = Program::default();
        for Bindings { phase, section, binds } in bindings {
            let mut steps = self.steps(binds)?;
            match section {
                Section::Prepare => program.prepare = steps,
                Section::Update => {
                    steps.extend(self.mark_step(plan, phase, GpuAt::Done)?);
                    program.updates.push(steps);
                }
                Section::Body => {
                    let carried = Carried::of(plan, phase);
                    let (carry, slot_bytes) = (map.bases[Region::Carry], plan.placement.layout.carry_bytes as Address);
                    let own = self.ranks.as_ref().map_or(0, |ranks| ranks.rank());
                    let slot = carry + slot_bytes * (1 + own as Address);
                    let copy = |r: &Range<usize>| {
                        let (to, from) = (slot + r.start as Address, carry + r.start as Address);
                        crate::command::Command::Copy { to, from, bytes: r.len() }
                    };
                    let commands = carried.made.iter().map(copy).collect();
                    let (path, cost) = ("carried values".to_string(), Cost::default());
                    let mut between = self.steps(vec![Bind { path, op: "copy", cost, commands }])?;
                    let sums = self.shared_steps(plan, phase, map, &mut between)?;
                    program.between.push(between);
                    program.sums.push(sums);
                    program.begins.push(self.mark_step(plan, phase, GpuAt::Body)?);
                    program.bodies.push((steps, carried));
                }
            }
        }
        Ok(program)
    }

    pub(crate) fn reserved(&self) -> &Reserved {
        self.reserved.as_ref().expect("`reserve` comes before all else")
    }

    fn base(&self, region: Region) -> Address {
        self.reserved().map.bases[region]
    }

    fn fill(&self, to: Address, byte: u8, bytes: usize) -> Result<(), CudaError> {
        let done = if bytes > 0 { self.stream.fill(to, byte, bytes) } else { Ok(()) };
        done.map_err(|fault| CudaError::Driver { what: "filling memory".into(), fault })
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<(), CudaError> {
        let done = if bytes > 0 { self.stream.copy(to, from, bytes) } else { Ok(()) };
        done.map_err(|fault| CudaError::Driver { what: "copying on the GPU".into(), fault })
    }

    /// What comes before every list: inputs in their place, bf16 copies current, scalars written.
    pub(crate) fn begin(&mut self, scalars: &Scalars) -> Result<(), CudaError> {
        self.gpu.enter()?;
        let reserved = self.reserved.as_mut().expect("`reserve` comes before all else");
        reserved.inputs.flush(&self.stream)?;
        if std::mem::take(&mut self.stale) {
            for step in &reserved.refresh {
                step.commands.iter().try_for_each(|c| c.issue(&self.stream, step))?;
            }
        }
        reserved.scalars.write(&self.stream, reserved.map.bases[Region::Scalars], &scalars::encode(scalars))
    }

    fn run(&mut self, plan: &Plan, list: List) -> Result<(), CudaError> {
        let Executor { replay, reserved, stream, .. } = self;
        let reserved = reserved.as_ref().expect("`reserve` comes before all else");
        let program = reserved.programs.get(&plan.key).expect("a plan that `reserve` was given");
        let lists: Vec<&[Step]> = match list {
            List::Prepare => vec![&program.prepare],
            List::Body(phase) => vec![&program.begins[phase], &program.bodies[phase].0],
            List::Update(phase) => vec![&program.updates[phase]],
            List::Phase(p) => {
                let (mut rest, mut done, mut lists) =
                    (program.bodies[p].0.as_slice(), 0, vec![program.begins[p].as_slice()]);
                for (after, sum) in &program.sums[p] {
                    let (before, left) = rest.split_at(after - done);
                    lists.extend([before, std::slice::from_ref(sum)]);
                    (rest, done) = (left, *after);
                }
                lists.extend([rest, &program.between[p], &program.updates[p]]);
                lists
            }
        };
        replay.run((plan.key, list), &lists, stream)
    }

    /// Runs what depends on frozen state alone. Needed after the state was loaded, and when another plan was prepared.
    pub fn prepare(&mut self, plan: &Plan) -> Result<(), CudaError> {
        self.begin(&Scalars::default())?;
        self.run(plan, List::Prepare)
    }

    /// Fills an input of the next body. Floats are converted to the dtype of the input.
    pub fn set_input(&mut self, plan: &Plan, name: &str, data: &HostTensor) -> Result<(), CudaError> {
        let Some(input) = plan.graph.batch.iter().find(|b| b.name == name) else { return Ok(()) };
        let arg = plan.arg(input.value);
        let got = || format!("{}{}", data.dtype().name(), data.shape());
        let fail = |expected: String| CudaError::Tensor { name: name.to_string(), expected, got: got() };
        let exact = || fail(format!("{}{}", arg.dtype.name(), arg.shape));
        if data.shape() != arg.shape {
            return Err(exact());
        }
        let converted;
        let bytes = if data.dtype() == arg.dtype {
            data.bytes()
        } else if arg.dtype.is_float() && data.dtype().is_float() {
            let values = data.to_f32().map_err(|_| exact())?;
            converted = HostTensor::from_f32(arg.dtype, arg.shape, &values).map_err(|_| exact())?;
            converted.bytes()
        } else {
            return Err(exact());
        };
        self.gpu.enter()?;
        let range = arg.loc.offset..arg.loc.offset + bytes.len();
        let reserved = self.reserved.as_mut().expect("`reserve` comes before all else");
        reserved.inputs.put(range, &self.stream, |to| to.copy_from_slice(bytes))
    }

    /// Runs the body of a phase for one micro-batch. `slot` is its place in the global batch, where what it carries is kept.
    pub fn body(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), CudaError> {
        self.begin(scalars)?;
        self.unslot(plan, phase, slot)?;
        self.run(plan, List::Body(phase))?;
        self.enslot(plan, phase, slot)
    }

    fn carried(&self, plan: &Plan, phase: usize) -> &Carried {
        &self.reserved().programs[&plan.key].bodies[phase].1
    }

    /// Puts what earlier phases carried of this micro-batch where the body reads it.
    pub(crate) fn unslot(&self, plan: &Plan, phase: usize, slot: usize) -> Result<(), CudaError> {
        let (staging, own) = self.carry(plan, slot);
        let mut ranges = self.carried(plan, phase).read.iter();
        ranges.try_for_each(|r| self.copy(staging + r.start as Address, own + r.start as Address, r.len()))
    }

    /// Puts what the body made to be carried into the micro-batch's own slot.
    pub(crate) fn enslot(&self, plan: &Plan, phase: usize, slot: usize) -> Result<(), CudaError> {
        let (staging, own) = self.carry(plan, slot);
        let mut ranges = self.carried(plan, phase).made.iter();
        ranges.try_for_each(|r| self.copy(own + r.start as Address, staging + r.start as Address, r.len()))
    }

    /// The staging slot of carried values, and a micro-batch's own.
    pub(crate) fn carry(&self, plan: &Plan, slot: usize) -> (Address, Address) {
        let staging = self.base(Region::Carry);
        (staging, staging + ((1 + slot) * plan.placement.layout.carry_bytes) as Address)
    }

    /// Runs the update of a phase on reduced gradients and all carried values.
    pub fn update(&mut self, plan: &Plan, phase: usize, scalars: &Scalars) -> Result<(), CudaError> {
        self.begin(scalars)?;
        self.run(plan, List::Update(phase))
    }

    /// Body of the rank's one micro-batch, sums over the ranks, update: a phase as one list. `slot` is the rank, since each has one.
    pub fn phase(&mut self, plan: &Plan, phase: usize, slot: usize, scalars: &Scalars) -> Result<(), CudaError> {
        assert_eq!(slot, self.ranks.as_ref().map_or(0, |ranks| ranks.rank()), "the micro-batch of this rank");
        self.begin(scalars)?;
        self.unslot(plan, phase, slot)?;
        self.run(plan, List::Phase(phase))?;
        self.ranks.as_ref().map_or(Ok(()), |ranks| ranks.check())
    }

    /// The steps of a section, in the order of its launches, and the executor's own after them.
    pub(crate) fn steps_of(&self, plan: &Plan, phase: usize, section: Section) -> &[Step] {
        let program = self.reserved().programs.get(&plan.key).expect("a plan that `reserve` was given");
        match section {
            Section::Prepare => &program.prepare,
            Section::Body => &program.bodies[phase].0,
            Section::Update => &program.updates[phase],
        }
    }

    pub(crate) fn map(&self) -> &Map {
        &self.reserved().map
    }

    /// Starts or ends the timing of launches, which then run one by one; gives what was recorded.
    pub fn profile(&mut self, next: Option<()>) -> Vec<Timing> {
        std::mem::replace(&mut self.replay.profile, next.map(|()| Vec::new())).unwrap_or_default()
    }

    /// How many lists are captured graphs by now.
    pub fn graphs(&self) -> usize {
        self.replay.graphs()
    }

    /// Waits for all that was put on the GPU. Errors: any of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|e| self.replay.late(e))
    }

    pub(crate) fn fetch(&self, places: &[(Address, usize)]) -> Result<Vec<Vec<u8>>, CudaError> {
        self.transfer.borrow_mut().fetch(&self.stream, places).map_err(|e| self.replay.late(e))
    }

    pub(crate) fn store(&self, to: Address, bytes: &[u8]) -> Result<(), CudaError> {
        self.transfer.borrow_mut().store(&self.stream, to, bytes)
    }

    fn reduce_range(&self, plan: &Plan, phase: usize) -> (Address, usize) {
        let range = &plan.reduce.phases[phase];
        (self.base(Region::Reduce) + 4 * range.start as Address, range.len())
    }

    /// Copies what a phase's body left to be reduced.
    pub fn take_part(&mut self, plan: &Plan, phase: usize) -> Result<Part, CudaError> {
        let (from, elements) = self.reduce_range(plan, phase);
        let part = self.reserved().parts.take(elements)?;
        self.copy(part.address(), from, 4 * elements)?;
        Ok(part)
    }

    /// `left` += `right`, element by element, by the kernel of `Op::Accumulate`.
    pub fn add_parts(&mut self, left: &mut Part, right: &Part) -> Result<(), CudaError> {
        let shape = Shape::new(&[left.elements()]);
        let loc = Loc { arena: Arena::Reduce, offset: 0 };
        let arg = Arg { value: ValueId(0), loc, shape, stored: shape, dtype: Dtype::F32 };
        let launch = Launch {
            node: NodeId(0),
            op: Op::Accumulate,
            path: "sum of micro-batches".to_string(),
            inputs: vec![arg, arg],
            outputs: vec![arg],
            states: vec![],
            cost: Cost::default(),
        };
        let addresses = Addresses {
            inputs: vec![left.address(), right.address()],
            outputs: vec![left.address()],
            states: vec![],
            half: vec![0, 0],
            slot_bytes: 0,
            scalars: self.base(Region::Scalars),
            scratch: self.base(Region::Scratch),
            constants: self.base(Region::Constants),
        };
        let commands = bind(&launch, &addresses, self.math, self.gpu.facts.sms).commands;
        let bind = Bind { path: launch.path, op: "accumulate", cost: launch.cost, commands };
        for step in self.steps(vec![bind])? {
            step.commands.iter().try_for_each(|c| c.issue(&self.stream, &step))?;
        }
        Ok(())
    }

    /// Gives the update a part in place of what the last body left.
    pub fn put_part(&mut self, plan: &Plan, phase: usize, part: &Part) -> Result<(), CudaError> {
        let (to, elements) = self.reduce_range(plan, phase);
        assert_eq!(elements, part.elements(), "a part of another phase");
        self.copy(to, part.address(), 4 * elements)
    }

    /// Zeros the phase's range: before a body that does not make all of it.
    pub fn clear_reduce(&mut self, plan: &Plan, phase: usize) -> Result<(), CudaError> {
        let (to, elements) = self.reduce_range(plan, phase);
        self.fill(to, 0, 4 * elements)
    }

    pub fn part_to_host(&self, part: &Part) -> Result<Vec<f32>, CudaError> {
        Ok(floats(&self.fetch(&[(part.address(), 4 * part.elements())])?[0]))
    }

    pub fn part_from_host(&mut self, values: &[f32]) -> Result<Part, CudaError> {
        let part = self.reserved().parts.take(values.len())?;
        self.store(part.address(), bytemuck::cast_slice(values))?;
        Ok(part)
    }

    /// The carried values of micro-batches, by their places: `carry_bytes` of the plan's layout each.
    pub fn carry_to_host(&mut self, plan: &Plan, slots: Range<usize>) -> Result<Vec<u8>, CudaError> {
        let bytes = plan.placement.layout.carry_bytes * slots.len();
        Ok(self.fetch(&[(self.carry(plan, slots.start).1, bytes)])?.swap_remove(0))
    }

    /// Sets the carried values of as many micro-batches, from the first.
    pub fn carry_from_host(&mut self, plan: &Plan, bytes: &[u8]) -> Result<(), CudaError> {
        let room = self.reserved().buffers[Region::Carry as usize].bytes - plan.placement.layout.carry_bytes;
        assert!(bytes.len() <= room, "carried values of more micro-batches than `reserve` was told");
        self.store(self.carry(plan, 0).1, bytes)
    }

    /// A value that is still in memory; a carried one is the first micro-batch's.
    pub fn read(&self, plan: &Plan, value: ValueId) -> Result<Vec<f64>, CudaError> {
        Ok(self.read_all(plan, &[value])?.swap_remove(0))
    }

    /// As `read`, of several, with one wait.
    pub fn read_all(&self, plan: &Plan, values: &[ValueId]) -> Result<Vec<Vec<f64>>, CudaError> {
        let args: Vec<Arg> = values.iter().map(|&v| plan.arg(v)).collect();
        let map = &self.reserved().map;
        let place = |a: &Arg| (map.address(plan, a, Section::Update), a.shape.elements() * a.dtype.size());
        let bytes = self.fetch(&args.iter().map(place).collect::<Vec<_>>())?;
        Ok(bytes.iter().zip(&args).map(|(b, a)| numbers(b, a.dtype)).collect())
    }

    /// The elements of a state at `offset` of the table.
    pub fn state(&self, offset: usize, elements: usize) -> Result<Vec<f32>, CudaError> {
        let from = self.base(Region::State) + offset as Address;
        Ok(floats(&self.fetch(&[(from, 4 * elements)])?[0]))
    }

    pub fn set_state(&mut self, offset: usize, values: &[f32]) -> Result<(), CudaError> {
        self.stale = true;
        self.store(self.base(Region::State) + offset as Address, bytemuck::cast_slice(values))
    }
}
