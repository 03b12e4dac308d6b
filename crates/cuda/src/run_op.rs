//! One op on given operands, through the driver: the op table's column on hardware.

use crate::arena::{Region, pretended};
use crate::bind::bind;
use crate::binding::{Addresses, Math};
use crate::command::Address;
use crate::driver::Buffer;
use crate::error::CudaError;
use crate::executor::Executor;
use crate::program::{Bind, Step};
use crate::replay::stepped;
use crate::scalars;
use graph::{NodeId, Op, ValueId};
use plan::{Arena, Arg, Cost, Launch, Loc, Scalars};
use tensor::{Dtype, HostTensor, Shape, bf16};

/// An op and its operands.
#[derive(Clone, Debug)]
pub struct OpRun<'a> {
    pub name: &'a str,
    pub op: &'a Op,
    pub inputs: &'a [HostTensor],
    /// Shape and dtype of each output.
    pub outputs: &'a [(Shape, Dtype)],
    pub states: &'a [HostTensor],
    pub scalars: &'a Scalars,
    pub math: Math,
    /// Whole data of carried inputs, by input: that of all micro-batches, `slot_bytes` apart.
    pub carried: &'a [(usize, Vec<u8>)],
    pub slot_bytes: usize,
    /// Multiprocessors that the binding believes in; 0: those of the GPU.
    pub sms: u32,
}

/// Bytes on both sides of an operand that no kernel may touch, and what they hold.
const MARGIN: usize = 256;
const GUARD: u8 = 0xa5;

/// An operand in device memory between two margins; NaN where it has no data.
struct Operand {
    memory: Buffer,
    bytes: usize,
}

impl Operand {
    fn new(executor: &Executor, bytes: usize, data: Option<&[u8]>) -> Result<Operand, CudaError> {
        let memory = Buffer::new(&executor.gpu, bytes.next_multiple_of(MARGIN) + 2 * MARGIN)?;
        let mut all = vec![GUARD; memory.bytes];
        all[MARGIN..MARGIN + bytes].fill(0xff);
        if let Some(data) = data {
            all[MARGIN..MARGIN + data.len()].copy_from_slice(data);
        }
        executor.store(memory.address, &all)?;
        Ok(Operand { memory, bytes })
    }

    fn address(&self) -> Address {
        self.memory.address + MARGIN as Address
    }

    /// Its bytes. Errors: its margins were written.
    fn read(&self, executor: &Executor, run: &OpRun<'_>, what: &str) -> Result<Vec<u8>, CudaError> {
        let all = executor.fetch(&[(self.memory.address, self.memory.bytes)])?.swap_remove(0);
        let (before, after) = (&all[..MARGIN], &all[MARGIN + self.bytes..]);
        if before.iter().chain(after).any(|&b| b != GUARD) {
            let (name, expected) = (format!("{}: {what}", run.name), format!("writes within its {} bytes", self.bytes));
            return Err(CudaError::Tensor { name, expected, got: "writes outside".into() });
        }
        Ok(all[MARGIN..MARGIN + self.bytes].to_vec())
    }
}

impl Executor {
    /// Runs an op launch by launch on memory of its own; outputs and then states come back. Outputs and scratch hold NaN before.
    /// Errors: a kernel is missing or failed, or wrote outside its operands.
    pub fn run_op(&self, run: &OpRun<'_>) -> Result<Vec<HostTensor>, CudaError> {
        let data = |i: usize| run.carried.iter().find(|c| c.0 == i).map_or(run.inputs[i].bytes(), |c| c.1.as_slice());
        let new = |bytes: &[u8]| Operand::new(self, bytes.len(), Some(bytes));
        let inputs = (0..run.inputs.len()).map(|i| new(data(i))).collect::<Result<Vec<_>, _>>()?;
        let halves = run.inputs.iter().map(|x| new(&half(x))).collect::<Result<Vec<_>, _>>()?;
        let states = run.states.iter().map(|s| new(s.bytes())).collect::<Result<Vec<_>, _>>()?;
        let in_place = *run.op == Op::Accumulate;
        let output = |&(shape, dtype): &(Shape, Dtype)| {
            Operand::new(self, shape.elements() * dtype.size(), in_place.then(|| data(0)))
        };
        let outputs = run.outputs.iter().map(output).collect::<Result<Vec<_>, _>>()?;
        let scalars = new(&scalars::encode(run.scalars))?;
        let all = |operands: &[Operand]| -> Vec<Address> { operands.iter().map(Operand::address).collect() };
        let mut addresses = Addresses {
            inputs: all(&inputs),
            outputs: all(&outputs),
            states: all(&states),
            half: all(&halves),
            slot_bytes: run.slot_bytes,
            scalars: scalars.address(),
            scratch: pretended()[Region::Scratch],
            constants: pretended()[Region::Constants],
        };
        if in_place {
            addresses.inputs[0] = addresses.outputs[0];
        }
        let launch = launch(run);
        let sms = if run.sms == 0 { self.gpu.facts.sms } else { run.sms };
        let counted = bind(&launch, &addresses, run.math, sms);
        let scratch = Operand::new(self, counted.scratch_bytes, None)?;
        let constants = new(&counted.constants)?;
        (addresses.scratch, addresses.constants) = (scratch.address(), constants.address());
        let bound = bind(&launch, &addresses, run.math, sms);
        self.store(constants.address(), &bound.constants)?;
        let bind =
            Bind { path: run.name.to_string(), op: run.op.name(), cost: Cost::default(), commands: bound.commands };
        let step = Step::new(bind, &mut self.modules.borrow_mut(), None)?;
        stepped(&step, &self.stream)?;
        for (i, input) in inputs.iter().chain(&halves).chain([&scratch, &constants, &scalars]).enumerate() {
            input.read(self, run, &format!("operand {i}"))?;
        }
        let shapes = run.outputs.iter().copied().chain(run.states.iter().map(|s| (s.shape(), s.dtype())));
        let written = outputs.iter().chain(&states).zip(shapes).enumerate();
        written
            .map(|(i, (operand, (shape, dtype)))| {
                let bytes = operand.read(self, run, &format!("output {i}"))?;
                Ok(HostTensor::from_bytes(dtype, shape, &bytes).expect("as many bytes as the shape has"))
            })
            .collect()
    }
}

/// The bf16 copy of an f32 tensor; nothing of another.
fn half(x: &HostTensor) -> Vec<u8> {
    let values = x.view::<f32>().unwrap_or_default();
    values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
}

fn launch(run: &OpRun<'_>) -> Launch {
    let loc = Loc { arena: Arena::Work, offset: 0 };
    let arg = |shape, dtype| Arg { value: ValueId(0), loc, shape, stored: shape, dtype };
    Launch {
        node: NodeId(0),
        op: run.op.clone(),
        path: run.name.to_string(),
        inputs: run.inputs.iter().map(|x| arg(x.shape(), x.dtype())).collect(),
        outputs: run.outputs.iter().map(|&(s, d)| arg(s, d)).collect(),
        states: run.states.iter().map(|x| arg(x.shape(), x.dtype())).collect(),
        cost: Cost::default(),
    }
}
