//! Shapes: up to five dimensions, copied by value.

use crate::TensorError;
use std::{fmt, ops::Index};

/// Most dimensions of a shape.
pub const MAX_RANK: usize = 5;

/// Most elements of a tensor; leaves room for any element size in signed 64-bit byte counts.
const MAX_ELEMENTS: usize = 1 << 47;

/// Dimensions of a tensor, outermost first. A shape without dimensions is a scalar of one element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    rank: u8,
    /// Entries from `rank` on are zero, so that derived equality and hashing hold.
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// The shape of these dimensions. Panics where [`try_new`](Self::try_new) errs.
    #[track_caller]
    pub fn new(dims: &[usize]) -> Self {
        match Self::try_new(dims) {
            Ok(shape) => shape,
            Err(error) => panic!("{error}"),
        }
    }

    /// The shape of dimensions that come from a file. Errors: more than [`MAX_RANK`] of them, or 2^47 elements and more.
    pub fn try_new(dims: &[usize]) -> Result<Self, TensorError> {
        let bad = || TensorError::Shape { dims: dims.to_vec() };
        let mut shape = Self { rank: dims.len() as u8, dims: [0; MAX_RANK] };
        shape.dims.get_mut(..dims.len()).ok_or_else(bad)?.copy_from_slice(dims);
        // Zeros do not hide an overflow of the others, so that products over part of a shape are safe too.
        let product = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1))).ok_or_else(bad)?;
        if product > MAX_ELEMENTS { Err(bad()) } else { Ok(shape) }
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank()]
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Number of elements: the product of the dimensions, 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }
}

impl Index<usize> for Shape {
    type Output = usize;

    #[track_caller]
    fn index(&self, axis: usize) -> &usize {
        &self.dims()[axis]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dims_elements_and_text() {
        let s = Shape::new(&[64, 32, 32, 16]);
        assert_eq!((s.rank(), s.elements(), s[3]), (4, 1 << 20, 16));
        assert_eq!(s.to_string(), "[64, 32, 32, 16]");
        assert_eq!(Shape::new(&[]).elements(), 1);
        assert_eq!(Shape::new(&[3, 0]).elements(), 0);
        assert_ne!(Shape::new(&[1]), Shape::new(&[1, 1]));
    }

    #[test]
    fn hostile_sizes_are_errors() {
        for dims in [&[1; 6][..], &[usize::MAX, 2], &[0, usize::MAX, usize::MAX], &[1 << 48], &[1; 300]] {
            assert!(Shape::try_new(dims).is_err(), "{dims:?}");
        }
    }
}
