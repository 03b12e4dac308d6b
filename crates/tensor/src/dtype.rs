//! Element types as values.

use crate::TensorError;
use std::fmt;

pub use half::bf16;

/// Type of one element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    F64,
    F32,
    Bf16,
    U8,
    I32,
    I64,
}

impl Dtype {
    /// Every type, in the order of the enum.
    pub const ALL: [Self; 6] = [Self::F64, Self::F32, Self::Bf16, Self::U8, Self::I32, Self::I64];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }

    /// Lower-case name, as recipes, plans and manifests write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }

    /// The type of that [`name`](Self::name).
    pub fn parse(name: &str) -> Result<Self, TensorError> {
        let found = Self::ALL.into_iter().find(|d| d.name() == name);
        found.ok_or_else(|| TensorError::UnknownDtype(name.into()))
    }

    /// True of f64, f32 and bf16.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::Bf16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Rust types that are elements of a tensor; used by the views of [`HostTensor`](crate::HostTensor).
pub trait Element: bytemuck::Pod {
    const DTYPE: Dtype;
}

impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;
}
impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}
impl Element for u8 {
    const DTYPE: Dtype = Dtype::U8;
}
impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
}
impl Element for i64 {
    const DTYPE: Dtype = Dtype::I64;
}

/// The value after a store to bf16 and a load back: nearest, ties to even; NaN stays NaN, overflow becomes infinity.
#[inline]
pub fn round_bf16(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for d in Dtype::ALL {
            assert_eq!(Dtype::parse(d.name()).unwrap(), d);
        }
        assert!(Dtype::parse("F32").unwrap_err().to_string().contains("unknown element type `F32`"));
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        // 8 bits of significand: 1 + 2^-7 is the next value after 1, 1 + 2^-8 is the tie between them.
        let (step, tie) = (1.0 + 1.0 / 128.0, 1.0 + 1.0 / 256.0);
        assert_eq!(round_bf16(step), step);
        assert_eq!(round_bf16(tie), 1.0);
        assert_eq!(round_bf16(tie + f32::EPSILON), step);
        assert_eq!(round_bf16(step + 1.0 / 256.0), 1.0 + 2.0 / 128.0);
        assert_eq!(round_bf16(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(round_bf16(f32::MAX), f32::INFINITY);
        assert!(round_bf16(f32::from_bits(0x7f80_0001)).is_nan());
    }
}
