//! What an op sees of memory: typed views of its inputs, outputs and states, and the scalars of the step.
//!
//! Floats are stored as `T` (f32, or f64 for checks) whatever the value's dtype; a bf16 value is an f32 that was rounded.

use graph::{Divisor, SlotId, Weight};
use tensor::{Dtype, Shape};

/// The float type that an executor computes in.
pub trait Real: bytemuck::Pod + Send + Sync + PartialOrd + std::fmt::Debug + 'static
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
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            fn of(x: f64) -> $t {
                x as $t
            }
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn sqrt(self) -> $t {
                self.sqrt()
            }
            fn exp(self) -> $t {
                self.exp()
            }
            fn ln(self) -> $t {
                self.ln()
            }
            fn is_finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
real!(f32);
real!(f64);

/// A read-only value. `slots` > 1 for a carried value in the update: one copy per micro-batch, `slot_bytes` apart.
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

    pub fn u8(&mut self) -> &mut [u8] {
        let len = self.shape.elements();
        &mut self.bytes[..len]
    }
}

/// What the host writes before each step.
#[derive(Clone, Debug, Default)]
pub struct Scalars {
    /// By `SlotId`.
    pub slots: Vec<f64>,
    /// Units of each micro-batch of the global batch, per role.
    pub micro_units: Vec<[usize; 2]>,
    /// The micro-batch that a body is run for, counted over the global batch.
    pub micro: usize,
}

impl Scalars {
    pub fn get(&self, slot: SlotId) -> f64 {
        self.slots[slot.0 as usize]
    }

    pub fn weight(&self, weight: Weight) -> f64 {
        weight.factor * weight.slot.map_or(1.0, |s| self.get(s))
    }

    /// The count that a mean divides by.
    pub fn divisor(&self, divisor: Divisor) -> f64 {
        let units = |role: usize| divisor.per_unit[role] as f64 * self.get(SlotId::UNITS[role]);
        divisor.constant as f64 + units(0) + units(1)
    }

    /// Units of a role in the micro-batches before this one: where its rows of a rolling state begin.
    pub fn units_before(&self, role: usize) -> usize {
        self.micro_units[..self.micro].iter().map(|u| u[role]).sum()
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
