//! Reusable buffers aligned to cache lines: a few per thread, so that a convolution allocates nothing once warm.

use std::cell::RefCell;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    static POOL: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` on a buffer of `len` floats with unspecified contents. Calls may nest.
pub(crate) fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let needed = len.div_ceil(16);
    let mut lines = POOL.with_borrow_mut(|pool| {
        // The smallest that is large enough; else the largest is given up for a new one.
        let fits = pool.iter().position(|lines| lines.len() >= needed);
        fits.or(pool.len().checked_sub(1)).map(|i| pool.remove(i)).unwrap_or_default()
    });
    if lines.len() < needed {
        drop(std::mem::take(&mut lines));
        lines = vec![Line([0.0; 16]); needed];
    }
    let result = work(&mut bytemuck::cast_slice_mut(&mut lines)[..len]);
    POOL.with_borrow_mut(|pool| {
        let at = pool.partition_point(|other| other.len() < lines.len());
        pool.insert(at, lines);
    });
    result
}
