//! Tensors in host memory.

use crate::{Dtype, Element, Shape, TensorError, bf16};
use std::fmt;

/// Order of axes that turns the filter layout of published weights (KCRS) into ours (KRSC), for [`HostTensor::permute4`].
pub const KCRS_TO_KRSC: [usize; 4] = [0, 2, 3, 1];
/// Inverse of [`KCRS_TO_KRSC`].
pub const KRSC_TO_KCRS: [usize; 4] = [0, 3, 1, 2];

/// A dense tensor in host memory, row-major, little-endian, owned. Equality is by bits (NaN equals itself, 0 differs from -0).
#[derive(Clone, PartialEq, Eq)]
pub struct HostTensor {
    dtype: Dtype,
    shape: Shape,
    /// The bytes in words of eight, so that a view of any element type is aligned; bytes beyond the end are zero.
    words: Vec<u64>,
}

impl HostTensor {
    /// A tensor of zeros.
    pub fn zeros(dtype: Dtype, shape: Shape) -> Self {
        let bytes = shape.elements() * dtype.size();
        Self { dtype, shape, words: vec![0; bytes.div_ceil(8)] }
    }

    /// A tensor of the element type of `values`. Errors if they do not fill the shape exactly.
    pub fn new<T: Element>(shape: Shape, values: &[T]) -> Result<Self, TensorError> {
        Self::from_bytes(T::DTYPE, shape, bytemuck::cast_slice(values))
    }

    /// A tensor of these little-endian bytes. Errors if they do not fill the shape exactly.
    pub fn from_bytes(dtype: Dtype, shape: Shape, bytes: &[u8]) -> Result<Self, TensorError> {
        let expected = shape.elements() * dtype.size();
        if bytes.len() != expected {
            return Err(TensorError::Length { dtype, shape, expected, got: bytes.len() });
        }
        let mut tensor = Self::zeros(dtype, shape);
        tensor.bytes_mut().copy_from_slice(bytes);
        Ok(tensor)
    }

    /// A tensor of float type `dtype`, each value rounded to it. Errors if `dtype` is an integer or the shape is not filled.
    pub fn from_f32(dtype: Dtype, shape: Shape, values: &[f32]) -> Result<Self, TensorError> {
        match dtype {
            Dtype::F64 => Self::new(shape, &values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
            Dtype::F32 => Self::new(shape, values),
            Dtype::Bf16 => Self::new(shape, &values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
            Dtype::U8 | Dtype::I32 | Dtype::I64 => Err(TensorError::Dtype { expected: "f64, f32 or bf16", got: dtype }),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Dimensions.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Size in bytes.
    pub fn byte_len(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    /// All bytes, row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.byte_len()]
    }

    /// As [`bytes`](Self::bytes), to write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.byte_len();
        &mut bytemuck::cast_slice_mut(&mut self.words)[..len]
    }

    /// The elements. Errors if `T` is not the element type.
    pub fn view<T: Element>(&self) -> Result<&[T], TensorError> {
        self.expect_dtype(T::DTYPE)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// The elements, to write to. Errors if `T` is not the element type.
    pub fn view_mut<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        self.expect_dtype(T::DTYPE)?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    fn expect_dtype(&self, dtype: Dtype) -> Result<(), TensorError> {
        if self.dtype == dtype { Ok(()) } else { Err(TensorError::Dtype { expected: dtype.name(), got: self.dtype }) }
    }

    /// The values as f64, exact. Errors on integer tensors.
    pub fn to_f64(&self) -> Result<Vec<f64>, TensorError> {
        match self.dtype {
            Dtype::F64 => Ok(self.view()?.to_vec()),
            Dtype::F32 => Ok(self.view()?.iter().map(|&x: &f32| x.into()).collect()),
            Dtype::Bf16 => Ok(self.view()?.iter().map(|&x: &bf16| x.into()).collect()),
            Dtype::U8 | Dtype::I32 | Dtype::I64 => Err(self.not_float()),
        }
    }

    /// The values as f32, rounded where the tensor is f64. Errors on integer tensors.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        match self.dtype {
            Dtype::F64 => Ok(self.view()?.iter().map(|&x: &f64| x as f32).collect()),
            Dtype::F32 => Ok(self.view()?.to_vec()),
            Dtype::Bf16 => Ok(self.view()?.iter().map(|&x: &bf16| x.into()).collect()),
            Dtype::U8 | Dtype::I32 | Dtype::I64 => Err(self.not_float()),
        }
    }

    fn not_float(&self) -> TensorError {
        TensorError::Dtype { expected: "f64, f32 or bf16", got: self.dtype }
    }

    /// A tensor of four dimensions with its axes reordered: axis `i` of the result is axis `order[i]` of this one.
    /// Errors if the tensor has another rank or `order` is no permutation of 0 to 3.
    pub fn permute4(&self, order: [usize; 4]) -> Result<Self, TensorError> {
        let mut sorted = order;
        sorted.sort_unstable();
        let &[d0, d1, d2, d3] = self.shape.dims() else {
            return Err(TensorError::Permutation { shape: self.shape, order });
        };
        if sorted != [0, 1, 2, 3] {
            return Err(TensorError::Permutation { shape: self.shape, order });
        }
        let (dims, strides) = ([d0, d1, d2, d3], [d1 * d2 * d3, d2 * d3, d3, 1]);
        let [n0, n1, n2, n3] = order.map(|axis| dims[axis]);
        let [s0, s1, s2, s3] = order.map(|axis| strides[axis]);
        let size = self.dtype.size();
        let mut out = Self::zeros(self.dtype, Shape::try_new(&[n0, n1, n2, n3])?);
        let mut to = out.bytes_mut().chunks_exact_mut(size);
        let from = self.bytes();
        for (i0, i1) in (0..n0).flat_map(|i0| (0..n1).map(move |i1| (i0, i1))) {
            for (i2, i3) in (0..n2).flat_map(|i2| (0..n3).map(move |i3| (i2, i3))) {
                let at = size * (i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3);
                to.next().expect("one slot per element").copy_from_slice(&from[at..at + size]);
            }
        }
        Ok(out)
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTensor({} {})", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_typed_and_aligned() {
        let mut t = HostTensor::new(Shape::new(&[3]), &[1u8, 2, 3]).unwrap();
        assert_eq!(t.bytes(), [1, 2, 3]);
        assert_eq!(t.view::<f32>().unwrap_err().to_string(), "expected a tensor of type f32, got u8");
        t.view_mut::<u8>().unwrap()[2] = 9;
        assert_eq!(t, HostTensor::new(Shape::new(&[3]), &[1u8, 2, 9]).unwrap());
        let t = HostTensor::new(Shape::new(&[2, 1]), &[1.5f64, -2.0]).unwrap();
        assert_eq!(t.view::<f64>().unwrap(), [1.5, -2.0]);
        assert_eq!(t.to_f32().unwrap(), [1.5, -2.0]);
        let e = HostTensor::new(Shape::new(&[2]), &[1i64]).unwrap_err().to_string();
        assert_eq!(e, "i64 tensor of shape [2] needs 16 bytes, got 8");
        assert_eq!(HostTensor::zeros(Dtype::I32, Shape::new(&[2])).view::<i32>().unwrap(), [0, 0]);
    }

    #[test]
    fn conversions() {
        let x = [1.0f32, 1.0 + 1.0 / 256.0, -3.5, f32::INFINITY];
        let shape = Shape::new(&[4]);
        let b = HostTensor::from_f32(Dtype::Bf16, shape, &x).unwrap();
        assert_eq!(b.to_f32().unwrap(), x.map(crate::round_bf16));
        assert_eq!(b.to_f64().unwrap(), x.map(|v| f64::from(crate::round_bf16(v))));
        assert_eq!(HostTensor::from_f32(Dtype::F64, shape, &x).unwrap().to_f32().unwrap(), x);
        assert!(HostTensor::from_f32(Dtype::I32, shape, &x).is_err());
        assert!(HostTensor::zeros(Dtype::I64, shape).to_f64().is_err());
    }

    #[test]
    fn permute_moves_every_element() {
        let (k, c, r, s) = (2, 3, 4, 5);
        let values: Vec<i32> = (0..(k * c * r * s) as i32).collect();
        let kcrs = HostTensor::new(Shape::new(&[k, c, r, s]), &values).unwrap();
        let krsc = kcrs.permute4(KCRS_TO_KRSC).unwrap();
        assert_eq!(krsc.shape(), Shape::new(&[k, r, s, c]));
        let got = krsc.view::<i32>().unwrap();
        for (ik, ic, ir, is) in [(0, 0, 0, 0), (1, 2, 3, 4), (1, 0, 2, 3), (0, 2, 1, 0)] {
            assert_eq!(got[((ik * r + ir) * s + is) * c + ic], values[((ik * c + ic) * r + ir) * s + is]);
        }
        assert_eq!(krsc.permute4(KRSC_TO_KCRS).unwrap(), kcrs);
        assert!(kcrs.permute4([0, 1, 2, 2]).is_err());
        assert!(HostTensor::zeros(Dtype::F32, Shape::new(&[4])).permute4(KCRS_TO_KRSC).is_err());
    }
}
