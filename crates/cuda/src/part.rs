//! Partial sums of a phase's reduce range, in device memory that goes back to a pool.

use crate::command::Address;
use crate::driver::{Buffer, Gpu};
use crate::error::CudaError;
use std::cell::RefCell;
use std::rc::Rc;

/// A copy of a phase's range of the reduce arena.
#[derive(Debug)]
pub struct Part {
    buffer: Option<Buffer>,
    elements: usize,
    pool: Rc<RefCell<Vec<Buffer>>>,
}

impl Part {
    pub(crate) fn address(&self) -> Address {
        self.buffer.as_ref().map_or(0, |b| b.address)
    }

    pub(crate) fn elements(&self) -> usize {
        self.elements
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // All use of parts is on one stream, so the next owner's work comes after this one's.
        self.pool.borrow_mut().extend(self.buffer.take());
    }
}

#[derive(Debug)]
pub(crate) struct Parts {
    pool: Rc<RefCell<Vec<Buffer>>>,
    gpu: Rc<Gpu>,
    /// Bytes of each: the largest phase's.
    bytes: usize,
}

impl Parts {
    pub(crate) fn new(gpu: &Rc<Gpu>, count: usize, bytes: usize) -> Result<Parts, CudaError> {
        let pool = (0..count).map(|_| Buffer::new(gpu, bytes)).collect::<Result<_, _>>()?;
        Ok(Parts { pool: Rc::new(RefCell::new(pool)), gpu: gpu.clone(), bytes })
    }

    pub(crate) fn take(&self, elements: usize) -> Result<Part, CudaError> {
        assert!(4 * elements <= self.bytes, "a part of {elements} elements, the largest phase has {}", self.bytes / 4);
        let free = self.pool.borrow_mut().pop();
        let buffer = free.map_or_else(|| Buffer::new(&self.gpu, self.bytes), Ok)?;
        Ok(Part { buffer: Some(buffer), elements, pool: self.pool.clone() })
    }
}
