//! Reusable buffers aligned to cache lines: one pool per thread, so that a convolution allocates nothing once warm.

use std::cell::RefCell;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    static POOL: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` on a buffer of at least `len` floats with unspecified contents. Calls may nest.
pub(crate) fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut lines = POOL.with_borrow_mut(|pool| pool.pop()).unwrap_or_default();
    let needed = len.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, Line([0.0; 16]));
    }
    let result = work(bytemuck::cast_slice_mut(&mut lines[..needed]));
    POOL.with_borrow_mut(|pool| pool.push(lines));
    result
}
