//! What an op is bound with: the launch, its addresses, and the commands, tables and working memory that it becomes.

use crate::command::{Address, Command, Gathered, Kernel};
use bytemuck::{NoUninit, Pod, Zeroable};
use plan::Launch;
use tensor::{Dtype, Shape};

/// How matrix products of f32 values are computed; bf16 values always take bf16 tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Math {
    /// f32 multiply-adds.
    F32,
    /// tf32 tensor cores.
    Tf32,
}

/// Where a launch finds its memory.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Address of each operand.
    pub inputs: Vec<Address>,
    pub outputs: Vec<Address>,
    pub states: Vec<Address>,
    /// The bf16 copy of an f32 input, kept current by the executor for weights (State and Prepared); 0 where there is none.
    pub half: Vec<Address>,
    /// Bytes between the micro-batches of a carried input, in an update.
    pub slot_bytes: usize,
    /// The device's `Scalars`.
    pub scalars: Address,
    /// Working memory of one launch, shared by all: `Bound::scratch_bytes` of it.
    pub scratch: Address,
    /// Where the constants of this launch will lie.
    pub constants: Address,
}

/// A launch with its addresses, and the commands that it becomes.
#[derive(Debug)]
pub(crate) struct Bind<'a> {
    pub(crate) launch: &'a Launch,
    addresses: &'a Addresses,
    pub(crate) math: Math,
    /// Multiprocessors of the device: splits and persistent grids depend on it.
    pub(crate) sms: u32,
    bound: Bound,
}

/// What a launch becomes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bound {
    pub commands: Vec<Command>,
    /// Tables that kernels read, to be copied to `Addresses::constants` once.
    pub constants: Vec<u8>,
    pub scratch_bytes: usize,
}

/// An operand: where, what shape in memory, what dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor {
    pub address: Address,
    pub shape: Shape,
    pub dtype: Dtype,
}

impl Tensor {
    pub(crate) fn elements(&self) -> usize {
        self.shape.elements()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    pub(crate) fn is_bf16(&self) -> bool {
        self.dtype == Dtype::Bf16
    }

    pub(crate) fn dims<const N: usize>(&self) -> [usize; N] {
        self.shape.dims().try_into().expect("the rank that shape inference checked")
    }

    /// The last axis, 1 of a scalar.
    pub(crate) fn last(&self) -> usize {
        self.shape.dims().last().copied().unwrap_or(1)
    }
}

/// A float operand whose dtype the kernel reads: `Operand` of kernels/include/memory.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Operand {
    address: Address,
    dtype: u32,
    pad: u32,
}

impl Operand {
    /// No operand.
    pub(crate) const NONE: Operand = Operand { address: 0, dtype: 0, pad: 0 };
}

impl From<Tensor> for Operand {
    fn from(t: Tensor) -> Operand {
        let dtype = match t.dtype {
            Dtype::F32 => 0,
            Dtype::Bf16 => 1,
            other => unreachable!("{other} is no float that a kernel takes"),
        };
        Operand { address: t.address, dtype, pad: 0 }
    }
}

/// Division of n < 2^31 by a number that the host knows: `Divide` of kernels/include/memory.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
pub(crate) struct Divide {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl Divide {
    /// n / divisor = (n · multiplier) >> (32 + shift), exact for n < 2^31: multiplier = ⌈2^(32 + shift) / divisor⌉ with
    /// shift = ⌈log2 divisor⌉ − 1, so that its error stays below 2^-31 of a quotient.
    pub(crate) fn by(divisor: usize) -> Divide {
        let d = u32::try_from(divisor).expect("a divisor of 32 bits").max(1);
        if d == 1 {
            return Divide { divisor: 1, multiplier: 0, shift: 0 };
        }
        let shift = 31 - (d - 1).leading_zeros();
        let multiplier = (1u64 << (32 + shift)).div_ceil(u64::from(d));
        Divide { divisor: d, multiplier: multiplier as u32, shift }
    }
}

impl<'a> Bind<'a> {
    pub(crate) fn new(launch: &'a Launch, addresses: &'a Addresses, math: Math, sms: u32) -> Bind<'a> {
        Bind { launch, addresses, math, sms, bound: Bound::default() }
    }

    /// What it has become.
    pub(crate) fn end(self) -> Bound {
        self.bound
    }

    pub(crate) fn input(&self, i: usize) -> Tensor {
        let arg = &self.launch.inputs[i];
        Tensor { address: self.addresses.inputs[i], shape: arg.stored, dtype: arg.dtype }
    }

    /// Input `i` where the op has so many.
    pub(crate) fn optional(&self, i: usize) -> Option<Tensor> {
        (i < self.launch.inputs.len()).then(|| self.input(i))
    }

    pub(crate) fn output(&self, i: usize) -> Tensor {
        let arg = &self.launch.outputs[i];
        Tensor { address: self.addresses.outputs[i], shape: arg.stored, dtype: arg.dtype }
    }

    pub(crate) fn state(&self, i: usize) -> Tensor {
        let arg = &self.launch.states[i];
        Tensor { address: self.addresses.states[i], shape: arg.shape, dtype: arg.dtype }
    }

    /// Input `i` in bf16: itself, or the copy that the executor keeps of a weight.
    pub(crate) fn half(&self, i: usize) -> Tensor {
        let x = self.input(i);
        if x.is_bf16() { x } else { Tensor { address: self.addresses.half[i], dtype: Dtype::Bf16, ..x } }
    }

    pub(crate) fn slot_bytes(&self) -> usize {
        self.addresses.slot_bytes
    }

    pub(crate) fn scalars(&self) -> Address {
        self.addresses.scalars
    }

    /// `bytes` of working memory at `offset` of the launch's own.
    pub(crate) fn scratch(&mut self, offset: usize, bytes: usize) -> Address {
        self.bound.scratch_bytes = self.bound.scratch_bytes.max(offset + bytes);
        self.addresses.scratch + offset as Address
    }

    /// A table in device memory, 16-byte aligned.
    pub(crate) fn table<T: NoUninit>(&mut self, table: &[T]) -> Address {
        let at = self.bound.constants.len();
        self.bound.constants.extend_from_slice(bytemuck::cast_slice(table));
        self.bound.constants.resize(self.bound.constants.len().next_multiple_of(16), 0);
        self.addresses.constants + at as Address
    }

    /// Adds a kernel; a grid without blocks launches nothing.
    pub(crate) fn kernel<A: NoUninit>(&mut self, name: &'static str, shape: Blocks, args: &A) {
        if shape.grid.iter().all(|&g| g > 0) {
            let Blocks { grid, block, shared_bytes } = shape;
            let args = bytemuck::bytes_of(args).to_vec();
            self.bound.commands.push(Command::Kernel(Kernel { name, grid, block, shared_bytes, args }));
        }
    }

    pub(crate) fn zero(&mut self, to: Tensor) {
        if to.bytes() > 0 {
            self.bound.commands.push(Command::Zero { to: to.address, bytes: to.bytes() });
        }
    }

    pub(crate) fn gather(&mut self, parts: Vec<Gathered>) {
        self.bound.commands.push(Command::Gather(parts));
    }

    pub(crate) fn copy(&mut self, to: Address, from: Address, bytes: usize) {
        if bytes > 0 && to != from {
            self.bound.commands.push(Command::Copy { to, from, bytes });
        }
    }
}

/// Blocks of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: u32,
}

impl Blocks {
    /// A one-dimensional grid.
    pub(crate) fn line(blocks: usize, block: u32) -> Blocks {
        let blocks = u32::try_from(blocks).expect("a grid of 32 bits");
        Blocks { grid: [blocks, 1, 1], block, shared_bytes: 0 }
    }
}

impl Bind<'_> {
    /// Blocks of 256 threads for `items` of one thread each, at most 16 a multiprocessor: kernels loop over the rest.
    pub(crate) fn grid(&self, items: usize) -> Blocks {
        Blocks::line(items.div_ceil(256).min(16 * self.sms as usize), 256)
    }
}

#[cfg(test)]
mod tests {
    use super::Divide;

    #[test]
    fn division_by_multiplication_is_exact() {
        let mut divisors: Vec<usize> = (1..=1100).collect();
        divisors.extend((1..31).flat_map(|s| [(1 << s) - 1, 1 << s, (1 << s) + 1]));
        for d in divisors {
            let Divide { divisor, multiplier, shift } = Divide::by(d);
            let q =
                |n: u32| if divisor == 1 { n } else { ((u64::from(n) * u64::from(multiplier)) >> 32) as u32 >> shift };
            let top = (1u32 << 31) - 1;
            let near = (1..200u32)
                .flat_map(|k| [k, top - k, (d as u32).wrapping_mul(k), (d as u32).wrapping_mul(k).wrapping_sub(1)]);
            for n in near.filter(|&n| n <= top) {
                assert_eq!(q(n), n / d as u32, "{n} / {d}");
            }
        }
    }
}
