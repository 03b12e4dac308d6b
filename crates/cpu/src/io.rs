//! What an op sees of memory: typed views of its inputs, outputs and states, and the scalars of the step.
//!
//! Floats are stored as `T` (f32, or f64 for checks) whatever the value's dtype; a bf16 value is an f32 that was rounded.

use crate::linear::Kernels;
use graph::Op;
use tensor::{Dtype, Shape};

pub use plan::Scalars;

/// The float type that an executor computes in.
pub trait Real: Kernels + bytemuck::Pod + Send + Sync + PartialOrd + std::fmt::Debug + 'static
where
    Self: std::ops::Add<Output = Self> + std::ops::Sub<Output = Self> + std::ops::Mul<Output = Self>,
    Self: std::ops::Div<Output = Self> + std::ops::Neg<Output = Self> + std::ops::AddAssign + std::iter::Sum,
{
    const ZERO: Self;
    const ONE: Self;
    fn of(x: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn is_finite(self) -> bool;
    fn is_nan(self) -> bool;
    /// The value after a store to bf16 and a load back.
    fn round_bf16(self) -> Self;
    /// Runs an op. Compiled here once per type: crates that use it need not compile every op again.
    fn run(op: &Op, io: &mut Io<'_>);
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            #[inline(always)]
            fn of(x: f64) -> $t {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                self.sqrt()
            }
            #[inline(always)]
            fn exp(self) -> $t {
                self.exp()
            }
            #[inline(always)]
            fn ln(self) -> $t {
                self.ln()
            }
            #[inline(always)]
            fn ln_1p(self) -> $t {
                self.ln_1p()
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                self.is_finite()
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                self.is_nan()
            }
            #[inline(always)]
            fn round_bf16(self) -> $t {
                tensor::round_bf16(self as f32) as $t
            }
            fn run(op: &Op, io: &mut Io<'_>) {
                crate::run::run::<$t>(op, io);
            }
        }
    };
}
real!(f32);
real!(f64);

/// Bytes of an element in memory: floats are stored as `T`, the rest as they are.
fn element_bytes<T: Real>(dtype: Dtype) -> usize {
    if dtype.is_float() { size_of::<T>() } else { dtype.size() }
}

/// A read-only value. A carried value in the update has one copy per micro-batch, `slot_bytes` apart.
/// A value that shares its memory with output 0 (`Accumulate`, `Detach`, `Reduce`, `Carry` in place) comes without bytes.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub shape: Shape,
    pub dtype: Dtype,
    pub bytes: &'a [u8],
    pub slot_bytes: usize,
}

impl<'a> Input<'a> {
    /// The elements, as the executor's float.
    pub fn real<T: Real>(&self) -> &'a [T] {
        bytemuck::cast_slice(&self.bytes[..self.shape.elements() * size_of::<T>()])
    }

    pub fn i32(&self) -> &'a [i32] {
        bytemuck::cast_slice(&self.bytes[..self.shape.elements() * 4])
    }

    pub fn u8(&self) -> &'a [u8] {
        &self.bytes[..self.shape.elements()]
    }

    /// The elements of any dtype, and the bytes of one, as an executor of `T` stores them.
    pub fn raw<T: Real>(&self) -> (&'a [u8], usize) {
        let size = element_bytes::<T>(self.dtype);
        (&self.bytes[..self.shape.elements() * size], size)
    }

    /// Whether the value lies in the memory of output 0.
    pub fn in_place(&self) -> bool {
        self.bytes.is_empty() && self.shape.elements() > 0
    }

    /// The copy of micro-batch `m`.
    pub fn slot(&self, m: usize) -> Input<'a> {
        Input { bytes: &self.bytes[m * self.slot_bytes..], ..*self }
    }
}

/// A value to write.
#[derive(Debug)]
pub struct Output<'a> {
    pub shape: Shape,
    pub dtype: Dtype,
    pub bytes: &'a mut [u8],
}

impl Output<'_> {
    pub fn real<T: Real>(&mut self) -> &mut [T] {
        let len = self.shape.elements() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.bytes[..len])
    }

    pub fn i32(&mut self) -> &mut [i32] {
        let len = self.shape.elements() * 4;
        bytemuck::cast_slice_mut(&mut self.bytes[..len])
    }

    pub fn u8(&mut self) -> &mut [u8] {
        let len = self.shape.elements();
        &mut self.bytes[..len]
    }

    /// The elements of any dtype, as an executor of `T` stores them.
    pub fn raw<T: Real>(&mut self) -> &mut [u8] {
        let len = self.shape.elements() * element_bytes::<T>(self.dtype);
        &mut self.bytes[..len]
    }
}

/// The memory of one launch.
#[derive(Debug)]
pub struct Io<'a> {
    pub inputs: Vec<Input<'a>>,
    pub outputs: Vec<Output<'a>>,
    /// In the order of `Op::states`.
    pub states: Vec<Output<'a>>,
    pub scalars: &'a Scalars,
}

impl<'a> Io<'a> {
    /// The elements of input `i`.
    pub fn real<T: Real>(&self, i: usize) -> &'a [T] {
        self.inputs[i].real()
    }

    /// Dimensions of input `i`.
    pub fn dims(&self, i: usize) -> &[usize] {
        self.inputs[i].shape.dims()
    }

    /// The first output's elements.
    pub fn out<T: Real>(&mut self) -> &mut [T] {
        self.outputs[0].real()
    }

    /// The flag of a gated update: whether the phase was finite.
    pub fn is_finite<T: Real>(&self, flag: usize) -> bool {
        self.real::<T>(flag)[0] != T::ZERO
    }
}
